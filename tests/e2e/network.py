"""A wire in namespaces of our own, without root: server, client and stranger on one bridge.

          10.9.0.1 / fd00:9::1        .2                  .3
               server               client             stranger      each a network namespace
                  \\                   |                   /
                   +--- port server --+-- port stranger --+          the namespace `wire`, where
                            \\______ one bridge ______/                everything can be captured

Each namespace is held by a small Python that hands out sockets made inside it, so that a test
connects, listens, forges and captures in its own process. It ends when this process does.
"""

import array
import contextlib
import fcntl
import functools
import ipaddress
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections import namedtuple

import knock
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from compiled import started                    # beside this folder; floods import us by path
from segments import SYN, tcp_segment

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KNOCKD = os.path.join(TOP, 'knockd.py')
KNOCK = os.path.join(TOP, 'knock.py')
LIGHT = os.path.join(TOP, 'tests', 'light')
HIDDEN, HIDDEN_TOO, HIDDEN_UDP, CLOSED = 2222, 2229, 5182, 2233
ETH_P_ALL, SIOCETHTOOL = 0x0003, 0x8946                 # <linux/if_ether.h>, <linux/sockios.h>
ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGRO = 0x17, 0x1f, 0x2c          # <linux/ethtool.h>

AGENT = """
import array, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
while True:
    request = control.recv(64)
    if not request:
        break
    made = socket.socket(*[int(word) for word in request.split()])
    rights = array.array('i', [made.fileno()])
    control.sendmsg([b'.'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    made.close()
"""

LISTENERS = weakref.WeakSet()

Result = namedtuple('Result', 'code out err')


class Forbidden(Exception):
    """This kernel, or this container, does not let us make namespaces."""


def until(predicate, timeout=10):
    """Polls until the predicate holds; returns its last value, false when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.005)


def family_of(address):
    return socket.AF_INET6 if ':' in address else socket.AF_INET


def environment():
    """What the scripts are started with: nothing of the caller's own knocks or services."""
    ours = ('KNOCK_URI', 'KNOCKD_CONFIG', 'NOTIFY_SOCKET', 'JOURNAL_STREAM', 'WATCHDOG_USEC')
    values = {name: text for name, text in os.environ.items() if name not in ours}
    values['PATH'] += ':/usr/sbin:/sbin'
    values['LC_ALL'] = 'C.UTF-8'
    if values.get('KNOCK_LIGHT') == '1':
        values['PYTHONPATH'] = LIGHT
    return values


class Namespace:
    """A network namespace, and the process whose life it shares."""

    def __init__(self, name, enter, addresses=()):
        self.name, self.addresses = name, addresses
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                enter + [sys.executable, '-ISc', AGENT, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=[theirs.fileno()])
        self.user = ['-U'] if '-Urnm' in enter or '-U' in enter else []
        try:
            self.make_socket(socket.AF_INET, socket.SOCK_DGRAM).close()    # it is there, entered
        except OSError:
            self.close()
            raise Forbidden(self.complaint)

    @property
    def pid(self):
        return self.process.pid

    def close(self):
        self.control.close()
        self.complaint = self.process.communicate()[1].decode().strip()

    def make_socket(self, family, kind, protocol=0):
        """Returns a socket that lives in this namespace."""
        self.control.sendall(('%d %d %d' % (family, kind, protocol)).encode())
        _, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(4))
        if not ancillary:
            raise OSError('no socket from namespace ' + self.name)
        return socket.socket(family, kind, protocol, fileno=array.array('i', ancillary[0][2])[0])

    def command(self, *argv):
        """Returns the argument list that runs argv in here; it dies with us."""
        return (['nsenter', '--preserve-credentials'] + self.user + ['-m', '-n',
                 '-t', str(self.pid), 'setpriv', '--pdeathsig', 'KILL'] + list(argv))

    @contextlib.contextmanager
    def start(self, *argv):
        """Starts a program; it is killed at the end of the with statement."""
        process = subprocess.Popen(self.command(*argv), stdin=subprocess.DEVNULL,
                                   env=environment())
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, *argv, **options):
        """Runs to completion; returns code, out, err. Options: stdin (text), env, timeout."""
        process = subprocess.Popen(
            self.command(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=options.get('env') or environment())
        try:
            out, err = process.communicate(options.get('stdin', '').encode(),
                                           options.get('timeout', 60))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError('%s does not end: %r %r' % (argv, out, err))
        return Result(process.returncode, out.decode(), err.decode())

    def must(self, *argv, **options):
        """Runs what has to succeed; returns what it printed."""
        result = self.run(*argv, **options)
        if result.code:
            raise AssertionError('%s: %s' % (' '.join(argv), result.err.strip()))
        return result.out

    def nft(self, text):
        return self.must('nft', '-f', '-', stdin=text)

    def knock(self, *arguments):
        """Runs knock.py to completion."""
        return self.run(sys.executable, KNOCK, *arguments)

    def set(self, **values):
        """Sets kernel variables of the namespace, a dot for each double underscore."""
        self.must('sysctl', '-qw', *['net.%s=%s' % (name.replace('__', '.'), value)
                                     for name, value in values.items()])

    def connection(self, address, port, timeout=0.25, source_port=0):
        """Returns a connected socket, or None."""
        attempt = self.make_socket(family_of(address), socket.SOCK_STREAM)
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.settimeout(timeout)
        try:
            attempt.bind(('', source_port))
            attempt.connect((address, port))
        except OSError:
            attempt.close()
            return None
        return attempt

    def socket_error(self, address, port):
        """Returns what a connect ends in: None or the class of the error."""
        with self.make_socket(family_of(address), socket.SOCK_STREAM) as attempt:
            attempt.settimeout(0.25)
            try:
                attempt.connect((address, port))
            except OSError as problem:
                return type(problem)
        return None

    def connects(self, address, port=HIDDEN, timeout=0.25):
        """True when a TCP connection can be had."""
        connection = self.connection(address, port, timeout)
        if connection:
            connection.close()
            for listener in LISTENERS:
                drain(listener)
        return bool(connection)

    def reaches(self, address, port=HIDDEN):
        """Waits until a connection can be had."""
        return until(lambda: self.connects(address, port), 5)

    def listen(self, port, kind=socket.SOCK_STREAM):
        """Returns a listener for both families; the kernel completes the handshakes."""
        listener = self.make_socket(socket.AF_INET6, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(('::', port))
        listener.settimeout(5)
        if kind == socket.SOCK_STREAM:
            listener.listen(1000)
            LISTENERS.add(listener)
        return listener

    def send(self, payload, address, port=40000, source_port=0):
        """Sends one UDP datagram."""
        with self.make_socket(family_of(address), socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sender.bind(('', source_port))
            sender.sendto(payload, (address, port))

    def hardware_address(self, interface='eth0'):
        return self.must('ip', '-o', 'link', 'show', interface).split('link/ether ')[1].split()[0]

    @contextlib.contextmanager
    def raw_sender(self, target):
        """Yields a function that sends IP packets as they are: any source, any flags."""
        family = family_of(target)
        with self.make_socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            yield lambda packet: sender.sendto(packet, (target, 0))

    def inject(self, packet):
        """Sends one such packet."""
        target = target_of(packet)
        with self.raw_sender(target) as send:
            send(packet)

    def sockets(self):
        """What listens in here, as the kernel tells; a packet socket is not listed."""
        tables = {}
        for table in ('tcp', 'tcp6', 'udp', 'udp6', 'udplite', 'udplite6', 'raw', 'raw6', 'icmp',
                      'icmp6'):
            path = '/proc/%d/net/%s' % (self.pid, table)
            if os.path.exists(path):
                with open(path) as lines:
                    tables[table] = sorted(
                        line.split()[1:4] for line in lines
                        if not table.startswith('tcp') or line.split()[3] == '0A')      # LISTEN
        return tables


def checksum(data):
    """The Internet checksum, RFC 1071."""
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff


def pseudo_header(source, target, protocol, length):
    return socket_address(source) + socket_address(target) + struct.pack('!LL', length, protocol)


def socket_address(address):
    return ipaddress.ip_address(address).packed


def ip_packet(source, target, protocol, payload, **fields):
    """An IP packet. Fields: tos, hops, label (IPv6), options and fragment (IPv4)."""
    tos, hops = fields.get('tos', 0), fields.get('hops', 64)
    if ':' in target:
        first = 6 << 28 | tos << 20 | fields.get('label', 0)
        head = struct.pack('!LHBB', first, len(payload), protocol, hops)
        return head + socket_address(source) + socket_address(target) + payload
    options = fields.get('options', b'')
    size = 20 + len(options)
    head = struct.pack('!BBHHHBBH', 4 << 4 | size // 4, tos, size + len(payload), 1,
                       fields.get('fragment', 0x4000), hops, protocol, 0)
    return head + socket_address(source) + socket_address(target) + options + payload


def syn_packet(source, target, port, source_port=40000, badge=bytes(10), flags=SYN):
    """A SYN with a right checksum; badge is its seq, ack and window."""
    fields = port, badge, source_port, flags, b''
    check = checksum(pseudo_header(source, target, 6, 20) + tcp_segment(*fields))
    return ip_packet(source, target, 6, tcp_segment(*fields, check=check))


def forged(source, target, payload, source_port=40001, port=40000):
    """A UDP packet that claims to come from somebody else."""
    head = struct.pack('!HHH', source_port, port, 8 + len(payload))
    whole = pseudo_header(source, target, 17, 8 + len(payload)) + head + b'\0\0' + payload
    return ip_packet(source, target, 17, head + be16(checksum(whole) or 0xffff) + payload)


def drain(listener):
    """Closes the connections that nobody wants, before they fill the queue."""
    try:
        listener.settimeout(0)
        while True:
            listener.accept()[0].close()
    except OSError:
        pass                                                    # no more, or closed meanwhile


def accept(listener, connection):
    """Returns the server's end of a connection; those nobody asks for are closed."""
    listener.settimeout(5)
    while True:
        end, peer = listener.accept()
        if peer[1] == connection.getsockname()[1]:
            end.settimeout(5)
            return end
        end.close()


def alive(connection, end):
    """True when bytes go both ways."""
    connection.sendall(b'there?')
    if end.recv(100) != b'there?':
        return False
    end.sendall(b'here')
    return connection.recv(100) == b'here'


def carries(connection, end, size=60000):
    """True when that many bytes come through, sent at once."""
    connection.sendall(bytes(size))
    left = size
    with contextlib.suppress(OSError):
        while left:
            left -= len(end.recv(left)) or left + 1
    return left == 0


class Capture:
    """Every frame that crosses one interface of a namespace, both directions."""

    def __init__(self, namespace, interface):
        self.socket = namespace.make_socket(socket.AF_PACKET, socket.SOCK_RAW,
                                            socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.setblocking(False)
        self.seen = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def read(self):
        while True:
            try:
                frame = self.socket.recv(65536)
            except BlockingIOError:
                return
            if frame[12:14] in (b'\x08\x00', b'\x86\xdd'):
                self.seen.append(frame[14:])

    def packets(self, source=None):
        """The IP packets seen so far, from their IP header on; source: only those sent by it."""
        self.read()
        return [packet for packet in self.seen if source in (None, source_of(packet))]

    def datagrams(self, port):
        """The UDP payloads sent to a port."""
        return [packet[size + 8:] for packet in self.packets() for size in [header_size(packet)]
                if protocol_of(packet) == 17 and packet[size + 2:size + 4] == be16(port)]


def be16(number):
    return struct.pack('!H', number)


def header_size(packet):
    return (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40


def protocol_of(packet):
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def source_of(packet):
    return str(ipaddress.ip_address(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]))


def target_of(packet):
    return str(ipaddress.ip_address(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]))


class Wire:
    """The four namespaces, joined."""

    def __init__(self, kind='-Urnm'):
        self.members, self.daemons, user = [], [], [kind]
        try:
            self.hub = Namespace('wire', ['unshare'] + user)
        except Forbidden:
            if os.geteuid():
                raise
            self.hub = Namespace('wire', ['unshare', '-nm'])        # root where users may not
        self.members.append(self.hub)
        try:
            self.build()
        except AssertionError as problem:
            self.close()
            raise Forbidden(str(problem))

    def build(self):
        for folder in ('/run', '/var/lib'):           # what the scripts keep there by default
            self.hub.must('mount', '-t', 'tmpfs', 'tmpfs', folder)
        self.hub.must('ip', 'link', 'add', 'bridge', 'type', 'bridge', 'mcast_snooping', '0')
        self.hub.must('ip', 'link', 'set', 'bridge', 'up')
        self.server, self.client, self.stranger = [
            self.join(name, number) for number, name in
            enumerate(('server', 'client', 'stranger'), 1)]
        self.server.set(ipv4__icmp_ratemask=0, ipv6__icmp__ratemask=255)     # answer every probe
        for address in self.server.addresses:
            if not until(functools.partial(self.reached, address)):
                raise AssertionError('nothing crosses the wire to ' + address)

    def join(self, name, number, unshared='-n'):
        """One more on the bridge; unshared='-nm': with mounts of its own, as a whole box."""
        member = Namespace(name, ['nsenter', '--preserve-credentials'] + self.hub.user + [
            '-m', '-t', str(self.hub.pid), 'unshare', unshared],
            ('10.9.0.%d' % number, 'fd00:9::%d' % number))
        self.members.append(member)
        self.hub.must('ip', '-b', '-', stdin='''
            link add %s type veth peer name eth0 netns %d
            link set %s master bridge up\n''' % (name, member.pid, name))
        member.must('ip', '-b', '-', stdin='''
            link set lo up
            link set eth0 up
            addr add %s/24 dev eth0
            addr add %s/64 dev eth0 nodad\n''' % member.addresses)
        for other in self.members[1:-1]:        # one that is gone may have had these addresses
            for address in member.addresses:
                other.must('ip', 'neigh', 'flush', 'to', address)
        finish_checksums(member, 'eth0')
        return member

    def reached(self, address):
        """True when the server answers with a reset, so neighbours have been found as well."""
        for member in (self.client, self.stranger):
            with member.make_socket(family_of(address), socket.SOCK_STREAM) as attempt:
                attempt.settimeout(1)
                try:
                    attempt.connect((address, CLOSED))
                except ConnectionRefusedError:
                    continue
                except OSError:
                    return False
        return True

    def capture(self, member):
        """Captures what the member sends and gets, seen from outside."""
        return Capture(self.hub, member.name)

    def clear(self):
        """Takes daemons and rules away, so that the next test finds a plain server."""
        for daemon in self.daemons:
            daemon.kill()
        self.daemons.clear()
        self.server.nft('flush ruleset')

    def close(self):
        for member in reversed(self.members):
            member.close()


def finish_checksums(namespace, interface, left=0):
    """Captured checksums shall be final, not left to a network card that is not there. left=1: as
    Linux has it, which lets a packet be as long as the card takes it."""
    ethtool(namespace, interface, ETHTOOL_STXCSUM, left)


def ethtool(namespace, interface, command, value):
    words = array.array('I', [command, value])
    with namespace.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL,
                    struct.pack('16sP16x', interface.encode(), words.buffer_info()[0]))


@contextlib.contextmanager
def many_at_once(wire):
    """The server's card hands over many packets together, as real ones do."""
    switches = [(wire.hub, 'server', ETHTOOL_STSO, 0), (wire.client, 'eth0', ETHTOOL_STSO, 0),
                (wire.server, 'eth0', ETHTOOL_SGRO, 1)]
    for namespace, interface, command, value in switches:
        ethtool(namespace, interface, command, value)
    # So small that not all becomes one packet.
    wire.server.must('ip', 'link', 'set', 'eth0', 'gro_max_size', '3000')
    try:
        yield
    finally:
        wire.server.must('ip', 'link', 'set', 'eth0', 'gro_max_size', '65536')
        for namespace, interface, command, value in switches:
            ethtool(namespace, interface, command, 1 - value)


class Daemon:
    """knockd.py in a namespace, its config, ledger and log in one folder.

    Keywords are clients and the lines of their sections; who has none may open HIDDEN. There is
    always a client `fence`, who may open another hidden port: once he has been obeyed, every
    earlier packet of that family has been judged.
    """

    def __init__(self, namespace, folder, settings='', **clients):
        self.namespace, self.folder = namespace, str(folder)
        self.config = os.path.join(self.folder, 'knockd.ini')
        self.ledger = os.path.join(self.folder, 'state', 'ledger.json')
        os.mkdir(os.path.dirname(self.ledger), 0o700)
        self.log = os.path.join(self.folder, 'log')
        self.server_id = 'box-' + os.urandom(4).hex()
        self.secrets = {}
        self.process = None
        self.visits = 0
        self.settings, self.clients = settings, dict({'fence': 'allow = tcp/2229'}, **clients)
        self.write_config()
        with open(self.ledger, 'w') as out:       # DESIGN.md, section 4: a ledger of somebody who
            json.dump({'knockd': 1, 'id': self.server_id, 'floor': 0, 'keys': {}}, out)   # is new
        os.chmod(self.ledger, 0o600)

    def write_config(self):
        settings = self.settings
        if not re.search('^hide', settings, re.M):
            settings += '\nhide = tcp/%d, tcp/%d, udp/%d' % (HIDDEN, HIDDEN_TOO, HIDDEN_UDP)
        parts = ['[server]\nid = %s\nledger = %s\n%s\n' % (self.server_id, self.ledger, settings)]
        for name, lines in self.clients.items():
            secret = self.secrets.setdefault(name, os.urandom(32))
            lines = lines if 'allow' in lines else 'allow = tcp/%d\n%s' % (HIDDEN, lines)
            parts.append('[client %s]\nsecret = %s\n%s\n' % (
                name, knock.encode_secret(secret), lines))
        with open(self.config, 'w') as out:
            out.write('\n'.join(line.strip() for line in '\n'.join(parts).splitlines()) + '\n')
        os.chmod(self.config, 0o600)

    def do(self, *arguments, **options):
        """Runs `knockd.py --config FILE ARGUMENTS` to completion."""
        return self.namespace.run(*self.argv(*arguments), **options)

    def argv(self, *arguments):
        return started(KNOCKD) + ['--config', self.config] + list(arguments)

    def launch(self, *arguments):
        """Starts the daemon and does not wait."""
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(*self.argv('run', *arguments)),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment())

    def start(self, *arguments):
        """Starts the daemon and waits until everything is in force."""
        readies = self.count('ready: ')
        self.launch(*arguments)
        if not until(lambda: self.count('ready: ') > readies or self.process.poll() is not None,
                     30) or self.process.poll() is not None:
            self.kill()
            raise AssertionError('the daemon does not become ready:\n' + self.text())
        return self

    def text(self):
        if not os.path.exists(self.log):
            return ''
        with open(self.log) as log:
            return log.read()

    def printed(self):
        """What the daemon wrote to its standard output."""
        with open(self.log + '.out') as out:
            return out.read()

    def count(self, text):
        return self.text().count(text)

    def says(self, text, times=1):
        """Waits until a line has been logged; returns it."""
        if not until(lambda: self.count(text) >= times):
            raise AssertionError('%r was not logged:\n%s' % (text, self.text()))
        return [line for line in self.text().splitlines() if text in line][-1]

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def reload(self, said='config reloaded'):
        before = self.count(said)
        self.hang_up()
        return self.says(said, before + 1)

    def kill(self):
        """kill -9, the daemon's worst end."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """An orderly end; returns the exit code."""
        self.process.terminate()
        return self.process.wait(20)

    def remove(self):
        """Takes away daemon and rules, where no fixture does."""
        self.kill()
        self.namespace.nft('flush ruleset')

    def uri(self, name, address, **changed):
        host = '[%s]' % address if ':' in address else address
        return 'knock://%s:%s@%s?id=%s' % (
            name, knock.encode_secret(changed.get('secret', self.secrets.get(name))), host,
            changed.get('server_id', self.server_id))

    def datagram(self, name, **fields):
        """Builds a knock of our own. Fields: op, time, step, source, seconds, open, secret,
        server_id, plain."""
        now = fields.get('time', int(time.time() * 1000))
        keys = knock.derive_keys(fields.get('secret', self.secrets[name]),
                                 fields.get('server_id', self.server_id))
        source = fields.get('source')
        request = knock.Request(
            fields.get('op', 'open'), now, source and ipaddress.ip_address(source),
            fields.get('seconds', 0), knock.parse_services(fields.get('open', '')), None, None,
            b'')
        plain = fields.get('plain', knock.encode_plain(request))
        return knock.seal(keys, os.urandom(16), plain, fields.get('step', knock.step_of(now)))

    def settle(self, namespace):
        """Waits until everything that was sent from a namespace so far has been judged."""
        before = self.count('close fence ')

        def judged():
            namespace.send(self.datagram('fence', op='close'), self.namespace.addresses[0])
            return until(lambda: self.count('close fence ') > before, 1)    # or he was too fast
        if not until(judged):
            raise AssertionError('the fence client is not let in:\n' + self.text())
