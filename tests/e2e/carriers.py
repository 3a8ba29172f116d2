"""What the tests of the other carriers share: doors, knocks by hand, forged SYNs, fake clocks."""

import contextlib
import glob
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import knock
import network
import pytest
from network import KNOCK, be16, family_of, syn_packet, until
from segments import ACK, RST, SYN, tcp_segment  # noqa: F401

FENCE, FIRST_DOOR, LAST_DOOR = 100, 101, 999    # below 1024: no sequence goes through them
DOORS = 'hide = tcp/%d-%d' % (FENCE, LAST_DOOR)
FREE_DOORS = itertools.cycle(range(FIRST_DOOR, LAST_DOOR + 1))


def tool(name):
    """The path of a program that is not ours."""
    path = shutil.which(name, path=network.environment()['PATH'])
    if path is None:
        pytest.skip('%s is not installed' % name)
    return path


class House(network.Daemon):
    """A daemon whose clients each have a hidden port of their own, so that no test waits until
    the opening of another is over. A client who already has `allow` keeps it."""

    def __init__(self, namespace, folder, settings='', **clients):
        self.doors = {name: next(FREE_DOORS) for name in sorted(clients)}
        sections = {name: lines if 'allow' in lines else
                    'allow = tcp/%d\n%s' % (self.doors[name], lines)
                    for name, lines in clients.items()}
        sections['fence'] = 'allow = tcp/%d' % FENCE
        self.listeners = [namespace.listen(port) for port in self.doors.values()]
        network.Daemon.__init__(self, namespace, folder, settings + '\n' + DOORS, **sections)

    def settle(self, namespace, address=None):
        """Waits until every datagram sent from a namespace so far has been judged."""
        before = self.count('open fence ')

        def judged():
            namespace.send(self.datagram('fence', open='tcp/%d' % FENCE),
                           address or self.namespace.addresses[0])
            return until(lambda: self.count('open fence ') > before, 1)
        if not until(judged):
            raise AssertionError('the fence client is not let in:\n' + self.text())

    def shown(self, name, address, via, **options):
        """What `knock.py --print` shows."""
        printed = self.namespace.run(sys.executable, KNOCK, '--print', '--via', via,
                                     self.uri(name, address), **options)
        assert printed.code == 0, printed.err
        return printed.out.split()

    def opened(self, namespace, name, address):
        """True when the client's own port can be had from a namespace."""
        return namespace.connects(address, self.doors[name])

    def opens(self, namespace, name, address):
        """Waits until it can be had."""
        return until(lambda: self.opened(namespace, name, address), 5)

    def settle_slowly(self):
        """The same for a daemon to whom no datagram counts: signals are heeded before packets
        are read, so the second reload comes after all that was there at the first."""
        self.reload()
        self.reload()

    def settled_shut(self, namespace, name, address, opens=0):
        """True when all that was sent opened nothing (more). SYNs are read after datagrams, so
        two fences: the second one's wake-up comes after the SYNs that the first one's saw."""
        self.settle(namespace, address)
        self.settle(namespace, address)
        return self.count('open %s ' % name) == opens and not (
            opens == 0 and self.opened(namespace, name, address))


@contextlib.contextmanager
def housing(wire, tmp_path_factory, settings='', kind=House, **clients):
    """Such a daemon in place of any other, for as long as the block lasts."""
    wire.clear()
    wire.daemons.append(kind(wire.server, tmp_path_factory.mktemp('knockd'), settings, **clients))
    house = wire.daemons[-1]
    try:
        yield house.start()
    finally:
        wire.clear()
        for listener in house.listeners:
            listener.close()


def keys_of(daemon, name):
    return knock.derive_keys(daemon.secrets[name], daemon.server_id)


def fresh_step(seconds=3):
    """Waits out the end of a step, so that what is printed now still holds when it is used."""
    left = 30 - time.time() % 30
    if left < seconds:
        time.sleep(left + 0.01)


def touch(namespace, address, port, source=None):
    """One SYN by an ordinary connect; waits for the answer, so that the next comes later."""
    with namespace.make_socket(family_of(address), socket.SOCK_STREAM) as attempt:
        attempt.settimeout(0.2)
        if source:
            attempt.bind((source, 0))
        try:
            attempt.connect((address, port))
        except OSError:
            pass


def touch_all(namespace, address, ports, source=None):
    for port in ports:
        touch(namespace, address, int(port), source)


def syns_seen(capture, target, after=0):
    """[(source port, destination port, seq || ack || window)] of the SYNs to an address."""
    found = []
    for packet in capture.packets()[after:]:
        size = network.header_size(packet)
        if network.protocol_of(packet) == 6 and packet[size + 13] & 0x17 == SYN and \
                network.target_of(packet) == target:
            segment = packet[size:]
            found.append((int.from_bytes(segment[:2], 'big'), int.from_bytes(segment[2:4], 'big'),
                          segment[4:12] + segment[14:16]))
    return found


def scan(namespace, address, ports, sources=None, rate=None, burst=150):
    """Raw SYNs from forged sources, at full speed unless a rate (a second) is given.

    The source port is chosen so that ports add up to a constant: one checksum fits all of a
    source. Returns how many were sent."""
    sources = sources or [namespace.addresses[':' in address]]
    sent, began = 0, time.monotonic()
    with namespace.raw_sender(address) as send:
        for source in sources:
            model = syn_packet(source, address, 1, 65534)
            size = network.header_size(model)
            head, tail = model[:size], model[size + 4:]
            for port in ports:
                send(head + be16(65535 - port) + be16(port) + tail)
                sent += 1
                if rate and sent % burst == 0:
                    time.sleep(max(0, began + sent / rate - time.monotonic()))
    return sent


def resident(daemon):
    """Kilobytes of the daemon's memory, as the kernel counts them."""
    with open('/proc/%d/status' % daemon.process.pid) as status:
        return int(re.search(r'VmRSS:\s+(\d+)', status.read()).group(1))


def processor_time(daemon):
    """Seconds of processor that the daemon has used."""
    with open('/proc/%d/stat' % daemon.process.pid) as stat:
        fields = stat.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class FakedTime(House):
    """A daemon whose wall clock is Debian's libfaketime's, set by set_clock() at any time."""

    clock = None
    # libfaketime 0.9.10 breaks clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME), by which
    # Python 3.11 and later sleep: EINVAL. select() sleeps as well.
    SLEEP = 'import select, time\ntime.sleep = lambda time: select.select([], [], [], time)\n'

    def set_clock(self, text):
        """'@2001-01-01 00:00:00' starts there and runs on; '+0' is the real time."""
        path = os.path.join(self.folder, 'clock')
        with open(path + '.new', 'w') as out:
            out.write(text + '\n')
        os.rename(path + '.new', path)

    def faked(self):
        libraries = glob.glob('/usr/lib*/faketime/libfaketime.so.1') + \
            glob.glob('/usr/lib/*/faketime/libfaketime.so.1')
        if not libraries:
            pytest.skip('faketime is not installed')
        with open(os.path.join(self.folder, 'sitecustomize.py'), 'w') as out:
            out.write(self.SLEEP)
        return ['env', '-u', 'FAKETIME', 'LD_PRELOAD=' + libraries[0], 'TZ=UTC',
                'PYTHONPATH=' + self.folder,
                'FAKETIME_TIMESTAMP_FILE=' + os.path.join(self.folder, 'clock'),
                'FAKETIME_NO_CACHE=1', 'FAKETIME_DISABLE_SHM=1',
                'DONT_FAKE_MONOTONIC=1', 'NO_FAKE_STAT=1']

    def launch(self, *arguments):
        self.set_clock(self.clock or '+0')
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(*(self.faked() + self.argv('run', *arguments))),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=network.environment())

