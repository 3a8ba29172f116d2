"""A guest with a real kernel, the wire to it, and who stands at the other end of that
wire.

            the namespace                                the guest
    10.77.0.1  fd77::1  the client   --- wire ---   10.77.0.2  fd77::2
    10.77.0.3  fd77::3  the stranger

Commands reach the guest by a virtio-serial port (agent.py), which no firewall and no
reload touches.
"""

import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import namedtuple

import images
import prober

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
KNOCKD = os.path.join(TOP, 'knockd.py')
KNOCK = os.path.join(TOP, 'knock.py')
CLIENT = {4: '10.77.0.1', 6: 'fd77::1'}
WIRE = 'wire'
# Seconds: an emulated box on a busy machine takes its time, a dead one takes for ever.
SOON = 600
# TCG now and then runs an instruction that the guest's kernel has just rewritten on its
# other processor ("Oops: int3", most often Debian 13's); with one it cannot.
PROCESSORS = {'trixie': '1'}
STEP = 30                       # after which the daemon looks without being told
BOOT_ID = '/proc/sys/kernel/random/boot_id'
CLONE_NEWNET = 0x40000000       # <linux/sched.h>
SO_RCVBUFFORCE = 33             # <asm-generic/socket.h>

RESTART = {
    'systemd': 'systemctl restart knockd',
    'sysvinit': '/etc/init.d/knockd restart',
    'openrc': 'rc-service knockd restart',
    'runit': 'sv restart knockd',
}

Result = namedtuple('Result', 'code out err')


class Broken(Exception):
    """A guest, or a command, did not do what it was asked to in time."""


def until(predicate, seconds, what):
    """Polls until the predicate holds and returns its value; raises Broken when time is
    over."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Broken('not within %s s: %s' % (seconds, what))
        time.sleep(0.02)


@functools.lru_cache(None)
def accelerator(kernel):
    """Returns qemu's arguments for the processor: KVM where a kernel boots under it, else
    TCG.

    That /dev/kvm is there says little: a hypervisor without the processor's help emulates
    the kernel, slower than TCG, and stops at an instruction it does not know. So a kernel
    without a disk is booted: it panics within a second, and qemu ends."""
    kvm = ['-accel', 'kvm', '-cpu', 'host']
    if os.access('/dev/kvm', os.R_OK | os.W_OK):
        try:
            tried = subprocess.run(
                ['qemu-system-x86_64', *kvm, '-nodefaults', '-no-user-config',
                 '-display', 'none', '-m', '256', '-no-reboot', '-serial', 'stdio',
                 '-kernel', kernel, '-append', 'console=ttyS0 panic=-1'],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=8)
            if tried.returncode == 0 and b'Kernel panic' in tried.stdout:
                return kvm
        except subprocess.TimeoutExpired:
            pass
    return ['-accel', 'tcg,thread=multi', '-cpu', 'Nehalem']


def emulated(kernel):
    return 'tcg,thread=multi' in accelerator(kernel)


class Wire:
    """A network namespace with one end of the wire in it; gone with this process."""

    def __init__(self):
        self.holder = subprocess.Popen(
            ['unshare', '--net', 'sh', '-c', 'echo ready; exec cat'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b'ready\n':
            raise Broken('this kernel, or this container, lets nobody make a namespace')
        neighbour = 'neigh replace %%s lladdr %s dev %s nud permanent' % (
            prober.BOX_MAC, WIRE)
        for line in (
                'link set lo up',
                'tuntap add dev %s mode tap' % WIRE,
                'addr add 10.77.0.1/24 dev %s' % WIRE,
                'addr add fd77::1/64 dev %s nodad' % WIRE,
                # Deprecated: the kernel answers for it, and knock.py does not take it as
                # its own.
                'addr add 10.77.0.3/24 dev %s preferred_lft 0' % WIRE,
                'addr add fd77::3/64 dev %s nodad preferred_lft 0' % WIRE,
                'link set %s up address %s' % (WIRE, prober.OUR_MAC),
                neighbour % prober.BOX[4],
                neighbour % prober.BOX[6]):
            subprocess.run(self.inside('ip', *line.split()), check=True)

    def inside(self, *argv):
        return ['nsenter', '--net=/proc/%d/ns/net' % self.holder.pid, *argv]

    def socket(self, family, kind, protocol=0):
        """Returns a socket that lives in the namespace, made by this very process."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open('/proc/self/ns/net') as here, \
                open('/proc/%d/ns/net' % self.holder.pid) as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), 'setns')
            try:
                return socket.socket(family, kind, protocol)
            finally:
                libc.setns(here.fileno(), CLONE_NEWNET)

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()
        self.holder.stdout.close()


class Prober:
    """The stranger: runs from before the first boot until the end."""

    def __init__(self, wire, folder, hidden=22, closed=23,
                 first_source=prober.FIRST_SOURCE, gap=prober.GAP):
        self.path = os.path.join(folder, 'answers-%d' % hidden)
        open(self.path, 'w').close()
        self.process = subprocess.Popen(
            wire.inside(sys.executable, os.path.join(HERE, 'prober.py'), WIRE, self.path,
                        str(hidden), str(closed), str(first_source), str(gap)),
            stdin=subprocess.PIPE)
        self.since = time.time()

    def forget(self):
        """What was seen until now is none of the next test's business."""
        self.since = time.time()

    def seen(self):
        """Returns all Lines since the last `seen` or `forget`, of a second at least, once
        their answers are in."""
        since = self.since
        now = max(time.time(), since + 1)

        def complete():
            if self.process.poll() is not None:
                raise Broken('the prober ended')
            # A class of the closed port counts for NEAR seconds before and after.
            lines, written = prober.read_log(self.path, since - prober.NEAR)
            return lines if written >= now + prober.NEAR else None
        lines = until(complete, SOON, 'the prober had its answers')
        self.since = now
        return [line for line in lines
                if line.role == 'closed' or since <= line.last and line.first <= now]

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdin.close()
        self.process.wait()


class Guest:
    def __init__(self, image, wire, folder):
        self.image = image
        self.wire = wire
        self.folder = folder
        self.disk = os.path.join(folder, 'disk.qcow2')
        self.console = os.path.join(folder, 'console')
        self.process = None
        self.channel = None
        self.pending = b''
        self.number = int(time.time())
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw',
                        '-b', image.disk, self.disk], check=True)

    def switch_on(self):
        """Starts the machine; the kernel begins to boot."""
        path = os.path.join(self.folder, 'agent')
        processors = os.environ.get('KNOCK_VM_PROCESSORS',
                                    PROCESSORS.get(self.image.kind.suite, '2'))
        self.process = subprocess.Popen(
            self.wire.inside(
                'qemu-system-x86_64', *accelerator(self.image.kernel),
                '-M', 'q35,sata=off', '-smp', processors, '-m', '1024',
                '-nodefaults', '-no-user-config', '-display', 'none',
                '-kernel', self.image.kernel,
                '-append', 'root=/dev/nvme0n1 rw console=ttyS0 net.ifnames=0 panic=5 '
                           'quiet loglevel=5 apparmor=0 mitigations=off',
                '-drive', 'file=%s,if=none,id=disk,format=qcow2' % self.disk,
                '-device', 'nvme,drive=disk,serial=disk',
                '-netdev', 'tap,id=wire,ifname=%s,script=no,downscript=no' % WIRE,
                '-device', 'virtio-net-pci,romfile=,netdev=wire,mac=' + prober.BOX_MAC,
                '-device', 'virtio-rng-pci', '-device', 'virtio-serial-pci',
                '-chardev', 'socket,id=agent,path=%s,server=on,wait=off' % path,
                '-device', 'virtserialport,chardev=agent,name=agent',
                '-chardev', 'file,id=console,path=%s,append=on' % self.console,
                '-serial', 'chardev:console'),
            stdin=subprocess.DEVNULL)
        self.channel = until(lambda: self.connected(path), SOON, 'qemu opened its socket')
        self.pending = b''

    def connected(self, path):
        if self.process.poll() is not None:
            raise Broken('qemu ended with %d' % self.process.returncode)
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(path)
        except OSError:
            channel.close()
            return None
        return channel

    def wait_until_up(self, seconds=SOON, not_boot=None):
        """Returns the id of the boot whose agent answers, which is not `not_boot`."""
        def boot():
            try:
                found = self.run('cat', BOOT_ID, seconds=5, grace=0)
            except Broken:
                return None
            return found.out if found.code == 0 and found.out != not_boot else None
        try:
            return until(boot, seconds, 'the guest booted')
        except Broken as error:
            raise Broken('%s; console: %s' % (error, self.last_words()))

    def last_words(self):
        with open(self.console, errors='replace') as text:
            return text.read()[-2000:]

    def kernels_trouble(self):
        """Returns the console from the kernel's first word of a bug on, its stack included."""
        with open(self.console, errors='replace') as text:
            found = re.search(r'[^\n]*(BUG:|Oops|Call Trace|detected stall).*', text.read(),
                              re.DOTALL)
        return found.group()[:8000] if found else ''

    def boot(self):
        self.switch_on()
        return self.wait_until_up()

    def run(self, *argv, input='', seconds=SOON, grace=10):
        """Runs a command in the guest, for so many seconds at most; returns its
        Result."""
        self.number += 1
        request = {'id': self.number, 'argv': argv, 'input': input, 'seconds': seconds}
        self.channel.settimeout(seconds)
        self.channel.sendall(json.dumps(request).encode() + b'\n')
        deadline = time.monotonic() + seconds + grace
        while True:
            reply = self.reply(deadline, argv)
            if reply.get('id') == self.number:
                return Result(reply['code'], reply['out'], reply['err'])

    def reply(self, deadline, argv):
        while b'\n' not in self.pending:
            self.channel.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.channel.recv(65536)
            except socket.timeout:
                raise Broken('the guest did not answer: ' + ' '.join(argv)[:200])
            if not data:
                raise Broken('qemu is gone')
            self.pending += data
        line, self.pending = self.pending.split(b'\n', 1)
        try:
            return json.loads(line.decode())
        except ValueError:
            return {}               # cut short by a reboot

    def sh(self, text, seconds=SOON, code=0):
        """Runs a line of shell, which must end with `code`; returns its standard
        output."""
        result = self.run('sh', '-c', text, seconds=seconds)
        if code is not None and result.code != code:
            raise Broken('%s: %d\n%s%s' % (text, result.code, result.out, result.err))
        return result.out

    def put(self, path, text, mode='644'):
        self.run('sh', '-c', 'cat >"$0" && chmod "$1" "$0"', path, mode, input=text)

    def cut_power(self):
        """What the guest has not handed to its disk by now is lost."""
        self.process.kill()
        self.gone()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stall(self, seconds):
        """All its processors stand still for so long."""
        self.freeze()
        end = time.monotonic() + seconds
        until(lambda: time.monotonic() > end, seconds + SOON, 'the stall was over')
        self.thaw()

    def reboot(self):
        before = self.sh('cat ' + BOOT_ID)
        self.begin('reboot')
        return self.wait_until_up(not_boot=before)

    def shut_down(self, seconds=SOON):
        self.begin('poweroff')
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Broken('the power is still on; console: ' + self.last_words())
        self.gone()

    def begin(self, verb):
        if self.image.kind.init == 'runit':
            verb = {'reboot': 'init 6', 'poweroff': 'init 0'}[verb]
        self.run('sh', '-c', 'setsid %s </dev/null >/dev/null 2>&1 &' % verb)

    def is_on(self):
        return self.process is not None and self.process.poll() is None

    def gone(self):
        self.process.wait()
        self.channel.close()

    def close(self):
        if self.is_on():
            self.thaw()             # a frozen one would not be gone
            self.cut_power()
        if self.process is not None:
            print(self.kernels_trouble())


class Client:
    """Somebody with a line, in the namespace; his address is not the stranger's."""

    def __init__(self, wire, folder):
        self.wire = wire
        self.home = os.path.join(folder, 'client')
        os.makedirs(self.home)
        self.key = os.path.join(self.home, 'id')
        subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', self.key],
                       check=True)

    def public_key(self):
        with open(self.key + '.pub') as text:
            return text.read()

    def run(self, *argv, input='', seconds=SOON):
        ours = {'HOME': self.home, 'XDG_CONFIG_HOME': self.home + '/.config'}
        done = subprocess.run(
            self.wire.inside(*argv), input=input, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, timeout=seconds,
            env=dict(os.environ, **ours))
        return Result(done.returncode, done.stdout, done.stderr)

    def knock(self, *argv, input=''):
        return self.run(sys.executable, KNOCK, *argv, input=input)

    def ssh(self, address, command, *options):
        return self.run(
            'ssh', '-q', '-i', self.key, '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=60',
            '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null',
            *options, 'root@' + address, command)


def duration(found):
    """Seconds from the first of these Differences to the last."""
    if not found:
        return 0.0
    return max(one.last for one in found) - min(one.first for one in found)


def longest(found):
    """Seconds of the longest of these Differences: a reload is several changes in a row, and
    the daemon follows each of them."""
    return max([one.last - one.first for one in found], default=0.0)


def first_datagram(capture):
    """Returns (port, data) of the first UDP datagram that this packet socket holds."""
    capture.setblocking(False)
    while True:
        packet = capture.recv(2048)
        if packet[0] == 0x45 and packet[9] == socket.IPPROTO_UDP:
            return struct.unpack('>H', packet[22:24])[0], packet[28:]


class Host:
    """All of the above for one kind of guest, in a folder that is thrown away."""

    def __init__(self, image):
        self.temporary = tempfile.TemporaryDirectory(prefix='knock-vm-')
        self.folder = self.temporary.name
        self.wire = Wire()
        self.guest = Guest(image, self.wire, self.folder)
        self.prober = Prober(self.wire, self.folder)
        self.probers = [self.prober]
        self.installed = False
        self.client = Client(self.wire, self.folder)

    def furnish(self):
        """Makes the box its owner's: his key, his firewall."""
        self.guest.sh('mkdir -p -m 700 /root/.ssh')
        self.guest.put('/root/.ssh/authorized_keys', self.client.public_key(), '600')
        for line in self.guest.image.kind.prepare:
            self.guest.sh(line)
        until(lambda: self.opens_to(CLIENT[4]), SOON, 'sshd answered')

    def watch_too(self, hidden, closed):
        """A stranger asks that pair of ports as well, from now on; less often, for to answer
        costs an emulated box as much as all else that it does."""
        first = prober.FIRST_SOURCE + len(self.probers) * prober.SOURCE_PORTS
        self.probers.append(
            Prober(self.wire, self.folder, hidden, closed, first, 4 * prober.GAP))

    def make_ready(self):
        """Boots the box again, should a test before have left it dead."""
        if not self.guest.is_on():
            self.guest.boot()
            self.wait_for_daemon()

    def time_open(self):
        """Returns for how long a hidden port has differed from a closed one since last
        asked; once it does no more."""
        return duration(self.told_apart())

    def story(self, found):
        began = min((one.first for one in found), default=0)
        return ''.join('\nIPv%d %5d answers, %.3f to %.3f s: %s' % (
            one.family, one.count, one.first - began, one.last - began, one.what)
            for one in found)

    def is_hidden(self):
        self.forget()
        return all(self.seems_closed(stranger) for stranger in self.probers)

    def seems_closed(self, stranger):
        lines = stranger.seen()
        closed = {line.family for line in lines if line.role == 'closed'}
        return closed == {4, 6} and not prober.differences(lines)

    def forget(self):
        for stranger in self.probers:
            stranger.forget()

    def told_apart(self):
        """Returns the Differences since last asked, of all pairs of ports, once there are no
        more."""
        return sorted(one for stranger in self.probers for one in self.told_by(stranger))

    def told_by(self, stranger):
        found = []

        def are_alike():
            more = prober.differences(stranger.seen())
            found.extend(more)
            return not any(one.last > stranger.since - 0.5 for one in more)
        until(are_alike, SOON, 'the ports were alike again')
        return found

    def heal_time(self):
        """The living daemon puts rules back within 0.1 s, which is 20 calls of nft and
        more on a real processor. Here it is as many calls as slow as they are here and
        now; of iptables nothing promises to tell, so a step comes on top."""
        listing, step = 'nft list ruleset', 0
        if not images.has_nft(self.guest.image.kind):
            listing, step = 'iptables-save', STEP
        times = self.guest.sh('date +%%s.%%N; %s >&2; date +%%s.%%N' % listing).split()
        return step + max(0.1, 20 * (float(times[1]) - float(times[0])))

    def promised_heal_time(self):
        return 2 if emulated(self.guest.image.kernel) else 0.1

    def daemon(self):
        """Returns the process id of who listens on packet sockets in the guest, or
        None."""
        found = re.search(r'pid=(\d+)', self.guest.sh('ss -0 -p -H', code=None))
        return found and int(found.group(1))

    def wait_for_daemon(self, other_than=None):
        return until(lambda: self.daemon() not in (None, other_than) and self.daemon(),
                     SOON, 'a daemon ran')

    def kill_daemon(self, name):
        """Sends the daemon a signal that is its end, and waits for the next one."""
        before = self.wait_for_daemon()
        self.guest.sh('kill -%s %d' % (name, before))
        self.wait_for_daemon(other_than=before)

    def restart_daemon(self):
        self.guest.sh(RESTART[self.guest.image.kind.init])

    def opens_to(self, source):
        """True if a connection from that address to the hidden port comes about."""
        with self.wire.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((source, 0))
            probe.settimeout(1)
            try:
                probe.connect((prober.BOX[4], 22))
                # An ICMP error may wake connect() before the socket knows of it: seen once
                # in some thousand tries, with no SYN-ACK on the wire.
                probe.getpeername()
            except OSError:
                return False
            return True

    def asks_web(self, port, family=4):
        """Returns the first line that a web server there says to the client; or nothing."""
        inet = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
        with self.wire.socket(inet, socket.SOCK_STREAM) as web:
            web.bind((CLIENT[family], 0))
            web.settimeout(20)
            try:
                web.connect((prober.BOX[family], port))
                web.sendall(b'GET / HTTP/1.0\r\n\r\n')
                return web.recv(4096).split(b'\r')[0].decode('latin-1')
            except OSError:
                return ''

    def knock_and_cut_power(self):
        """Knocks, and cuts the power as soon as that opened; returns (port, datagram)."""
        self.client.knock('--close', 'laptop')
        until(lambda: not self.opens_to(CLIENT[4]), SOON, 'an older opening was over')
        every = prober.ETH_P_ALL
        with self.wire.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as capture:
            # Until it opens nobody reads, and two strangers fill what a socket has by default.
            capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
            capture.bind((WIRE, every))
            sent = self.client.knock('--wait', '0', 'laptop')
            if sent.code != 0:
                raise Broken('knock.py: %s' % (sent,))
            until(lambda: self.opens_to(CLIENT[4]), SOON, 'the knock opened')
            opened = time.monotonic()
            self.guest.cut_power()
            took = time.monotonic() - opened
            if took > 0.2:
                raise Broken('the power was cut only %.3f s after the opening' % took)
            return first_datagram(capture)

    def replay(self, datagram, source):
        port, data = datagram
        with self.wire.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.bind((source, 0))
            for to in (port, port, 40001):
                out.sendto(data, (prober.BOX[4], to))

    def close(self):
        self.guest.close()
        for stranger in self.probers:
            stranger.close()
        self.wire.close()
        kept = os.environ.get('KNOCK_VM_LOGS')
        if kept:                    # a folder: what the strangers were told, and the console
            open(self.guest.console, 'a').close()       # it may never have been on
            for path in [self.guest.console] + [stranger.path for stranger in self.probers]:
                shutil.copy(path, os.path.join(kept, '%s-%s' % (
                    self.guest.image.kind.name, os.path.basename(path))))
        self.temporary.cleanup()
