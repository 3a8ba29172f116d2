"""Prints the figures: what, target, measured median, spread, ok or MISSED.

    python tests/bench/bench.py [--json FILE] [--markdown FILE] [--quick] [--only WORD]

Real daemons and clients in namespaces of their own (tests/e2e/network.py), fwknopd and knockd
beside ours where this machine has them (peers.py), in the same namespaces, with the same probe. A
section is a function that yields Figures; SECTIONS at the end lists them. --only runs the sections
with WORD in their name; --read shows what an earlier run wrote with --json.
"""

import argparse
import collections
import contextlib
import functools
import glob
import json
import os
import platform
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [TOP, os.path.join(TOP, 'tests'), os.path.join(TOP, 'tests', 'e2e')]

import knockd       # noqa: E402  the path above
import network      # noqa: E402
import peers        # noqa: E402
import through      # noqa: E402
from figures import (COLUMNS, Figure, figure, highest, interval, line, markdown,  # noqa: E402
                     ratio, row, summary, verdict)

SERVER = '10.9.0.1'
TICK = os.sysconf('SC_CLK_TCK')
DEBIAN = '/usr/bin/python3'
OURS, SHIPPED = 'knockd.py', 'fwknopd as shipped'
STATEFUL = 'connection tracking alone'          # as on any box with a stateful firewall
ALIKE = 'another box like that'                 # it would get 1.00 if there were no chance
FEW = OURS + ' with 3 clients'
NAT = 'a router with NAT'                       # its hooks are there already
BEHIND_NAT = FEW + ' and NAT'
ONE_RULE = 'table inet box {\n chain input {\n  type filter hook input priority 0;\n' \
    '  ct state established,related accept\n }\n}'
MASQUERADE = ONE_RULE + '\ntable ip nat {\n chain out {\n  type nat hook postrouting priority ' \
    'srcnat;\n  ip saddr 192.0.2.0/24 masquerade\n }\n}'
AIMS = (STATEFUL, FEW), (STATEFUL, OURS), (NAT, BEHIND_NAT)
SHARE = 'knock to open, the server\'s share, %s: ' + OURS
FIRST_PORT, ELEMENTS = 3000, 64         # what many openings are made of: so many a client


# --- what the system tells -----------------------------------------------------------------------
def status(pid):
    """{key: first number} of /proc/PID/status."""
    with open('/proc/%d/status' % pid) as lines:
        fields = [line.split() for line in lines]
    return {words[0].rstrip(':'): int(words[1]) for words in fields
            if len(words) > 1 and words[1].isdigit()}


def cpu_ticks(pid):
    """utime + stime of one process, in seconds; its children not counted."""
    with open('/proc/%d/stat' % pid) as file:
        words = file.read().rpartition(')')[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def cpu_exact(pid):
    """Seconds on a processor by the scheduler's clock, which also sees what is shorter than a
    tick; the time the kernel's packet work took from it may be in it."""
    try:
        with open('/proc/%d/schedstat' % pid) as file:
            return int(file.read().split()[0]) / 1e9
    except (OSError, IndexError):
        return cpu_ticks(pid)


def children_cpu(pid):
    """Seconds of the children that have ended: every nft."""
    with open('/proc/%d/stat' % pid) as file:
        words = file.read().rpartition(')')[2].split()
    return (int(words[13]) + int(words[14])) / TICK


def received(namespace, interface='eth0'):
    """(bytes, packets) that an interface has received."""
    with open('/proc/%d/net/dev' % namespace.pid) as lines:
        for line in lines:
            name, _, numbers = line.partition(':')
            if name.strip() == interface:
                return int(numbers.split()[0]), int(numbers.split()[1])
    raise KeyError(interface)


def no_ports(namespace):
    """Datagrams that the server's UDP got one by one, and nobody listened."""
    with open('/proc/%d/net/snmp' % namespace.pid) as lines:
        udp = [line.split() for line in lines if line.startswith('Udp:')]
    return int(dict(zip(*udp))['NoPorts'])


def interpreters():
    """Debian's own first, then the one that runs us, then pyenv's."""
    found = [DEBIAN] if os.path.exists(DEBIAN) else []
    root = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
    found += [sys.executable] + sorted(glob.glob(root + '/versions/3.*/bin/python3'),
                                       key=lambda path: [int(part) for part in
                                                         path.split('/')[-3].split('.')])
    unique = collections.OrderedDict((os.path.realpath(path), path) for path in found)
    return list(unique.values())


def version_of(python):
    text = subprocess.check_output([python, '-ISc', 'import sys; print(sys.version.split()[0])'])
    return text.decode().strip() + (' (Debian)' if python == DEBIAN else '')


# --- the set-up ----------------------------------------------------------------------------------
class Daemon(network.Daemon):
    """A daemon run by any interpreter, isolated as the service of `install` runs it."""

    def __init__(self, namespace, folder, settings='', python=DEBIAN, **clients):
        self.python = python
        network.Daemon.__init__(self, namespace, folder, settings, **clients)

    def launch(self, *arguments):
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(self.python, '-I', network.KNOCKD, '--config', self.config,
                                       'run', *arguments),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=network.environment())

    @property
    def pid(self):
        return self.process.pid

    def argv(self, _, number):
        """What a user types; the probe is the same for all, so it does not wait."""
        return [self.python, network.KNOCK, '-q', '--open', 'tcp/%d' % network.HIDDEN, '--for', '2',
                '--wait', '0', self.uri('m%d' % number, SERVER)]

    def know_all(self):
        """A ledger in which every client has knocked."""
        ledger = knockd.Ledger(self.server_id)
        for number, secret in enumerate(self.secrets.values()):
            ledger.record(knockd.fingerprint(knockd.derive_keys(secret, self.server_id)),
                          '%032x' % number, int(time.time() * 1000), 60000)
        knockd.replace_file(self.ledger, ledger.state_line().encode())

    def send(self, client, source, number):
        """The same knock from a socket of ours; returns when it left."""
        datagram = self.datagram('m%d' % number, open='tcp/%d' % network.HIDDEN, seconds=2)
        with client.make_socket(network.socket.AF_INET, network.socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            began = time.monotonic()
            sender.sendto(datagram, (SERVER, 40000))
        return began

    @property
    def junk(self):
        """Words for flood.py: random bytes, and behind a tag that is good now, another client's."""
        return [('random bytes', []), ('well-formed', [self.datagram('fence')[:8].hex()])]


class Bench:
    """The wire, its listener, and what one run was asked for."""

    def __init__(self, quick):
        self.quick = quick
        self.wire = network.Wire()
        self.server, self.client = self.wire.server, self.wire.client
        # as shipped: the tests' wire lets the box complain about every datagram to a closed port
        self.server.set(ipv4__icmp_ratelimit=1000, ipv4__icmp_ratemask=6168)
        self.listener = self.server.listen(network.HIDDEN)
        self.sources = ['10.9.%d.%d' % (high, low) for high in (1, 2, 3) for low in range(1, 251)]
        self.client.must('ip', '-b', '-', stdin=''.join(
            'addr add %s/16 dev eth0\n' % source for source in self.sources))
        self.server.must('ip', 'addr', 'add', SERVER + '/16', 'dev', 'eth0')
        self.next_source = 0
        self.peers = peers.installed()
        checksums(self.wire.stranger, 1)

    def count(self, many, few):
        return few if self.quick else many

    def source(self):
        """An address for which nothing is open: each serves once in 750 samples."""
        self.next_source += 1
        return self.sources[self.next_source % len(self.sources)]

    @contextlib.contextmanager
    def daemon(self, settings='', python=DEBIAN, clients=60, lines='', box=None):
        """A daemon with clients m0, m1, ...: five knocks a second and client are allowed."""
        folder = tempfile.mkdtemp(prefix='bench')
        names = {'m%d' % number: lines for number in range(clients)}
        daemon = Daemon(box or self.server, folder, settings, python, **names)
        try:
            yield daemon.start()
        finally:
            daemon.remove()
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def running(self, name, clients=60, box=None):
        """Ours or a peer, by its name, with so many clients; in the server if no box is named."""
        if name == OURS:
            with self.daemon(clients=clients, box=box) as daemon:
                yield daemon
            return
        peer = self.peers[name](name, box or self.server, clients).start()
        try:
            yield peer
        finally:
            peer.remove()

    def names(self, word='', few=False):
        """The peers that are there, and ours last, so that it can be compared with them."""
        return [name for name in self.peers if word in name and
                not (few and name not in (SHIPPED, 'knockd'))] + [OURS]

    def close(self):
        self.listener.close()
        self.wire.close()


def checksums(namespace, on):
    """UDP_SEGMENT wants a card that can add checksums, on kernels before 6.11."""
    value = network.array.array('I', [network.ETHTOOL_STXCSUM, on])
    with namespace.make_socket(network.socket.AF_INET, network.socket.SOCK_DGRAM) as control:
        network.fcntl.ioctl(control, network.SIOCETHTOOL, struct.pack(
            '16sP16x', b'eth0', value.buffer_info()[0]))
    namespace.must('ip', 'link', 'set', 'eth0', 'gso_max_segs', '1')


def knock_to_open(bench, send, seconds=5, port=network.HIDDEN):
    """Milliseconds from what send(source) returns to a connect that succeeds, or None."""
    source = bench.source()
    began = send(source)
    while time.monotonic() < began + seconds:
        with bench.client.make_socket(network.socket.AF_INET,
                                      network.socket.SOCK_STREAM) as attempt:
            attempt.settimeout(1)
            attempt.bind((source, 0))
            try:
                attempt.connect((SERVER, port))
            except OSError:
                continue
            ended = time.monotonic()
            accepted, _ = bench.listener.accept()
            accepted.close()
            return (ended - began) * 1000
    return None


def knock(bench, daemon, number=0, seconds=5):
    """One knock of client `number`, from an address of its own."""
    return knock_to_open(
        bench, lambda source: daemon.send(bench.client, source, number), seconds)


def knocks(bench, daemon, number, pause, clients=60):
    """That many knocks, each by another client and from another address."""
    samples = []
    for index in range(number):
        time.sleep(pause)
        samples.append(knock(bench, daemon, index % clients))
    return samples


def told(daemon):
    """The milliseconds that the daemon's own log gives for each opening."""
    return [float(line.split()[-1][:-2]) for line in daemon.text().splitlines()
            if line.startswith('open m')]


@contextlib.contextmanager
def flood(bench, rate, seconds, words=()):
    """Junk from the stranger to the server, by a sender a core: one alone is the bottleneck."""
    senders = os.cpu_count() or 1
    kind = (network.socket.SOCK_RAW, network.socket.IPPROTO_RAW) if '--syn' in words else \
        (network.socket.SOCK_DGRAM,)
    with bench.wire.stranger.make_socket(network.socket.AF_INET, *kind) as sender:
        processes = [subprocess.Popen(
            [sys.executable, os.path.join(HERE, 'flood.py'), str(sender.fileno()), SERVER,
             str(rate / senders), str(seconds)] + list(words), pass_fds=[sender.fileno()],
            stdout=subprocess.PIPE) for _ in range(senders)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# --- issue 2: knock to open, start to open, junk -------------------------------------------------
def open_times(bench):
    """Packet on the wire to connect succeeding; and the server's share, to the kernel's word that
    the source is in, while nobody probes. Its log tells more, in whole milliseconds: nft has ended
    by then."""
    number = bench.count(25, 12)
    with bench.daemon() as daemon:
        knocks(bench, daemon, 3, 0)
        before = len(told(daemon))
        yield figure('knock to open, hot', 'ms', knocks(bench, daemon, number, 0.02))
        yield figure('  by its log, hot', 'ms', told(daemon)[before:])
        yield figure(SHARE % 'hot', 'ms', shares(bench, daemon, number, 0.02), 4)
        before = len(told(daemon))
        cold = figure('knock to open, 0.5 s of quiet before', 'ms',
                      knocks(bench, daemon, number, 0.5))
        yield cold
        yield figure('  by its log, after 0.5 s of quiet', 'ms', told(daemon)[before:])
        yield figure(SHARE % 'after 0.5 s of quiet', 'ms', shares(bench, daemon, number, 0.5), 6)
        # In a set of our own: the daemon would put its table back in order at the same time.
        bench.server.nft('table inet same { set open4 { flags timeout\n'
                         ' type ipv4_addr . inet_proto . inet_service\n }\n}')
        for what, text in (
                ('the same change', 'add element inet same open4 '
                 '{ 10.8.0.1 . tcp . %d timeout 1s }' % network.HIDDEN),
                ('an empty file', '')):
            nft = figure('nft -f -, cold, with ' + what, 'ms', nft_times(bench, number, text))
            yield nft
            yield ratio('  knock to open of it', cold, nft, None)
        disk = figure('ledger alone, cold: a line, fdatasync', 'ms', save_times(daemon, number))
        yield disk
        yield ratio('  of knock to open', disk, cold, None)


def shares(bench, daemon, number, pause):
    """Milliseconds from the datagram to the kernel's word that an element is new, each time for
    another client and source."""
    samples = []
    with ruleset_events(bench) as events:
        for index in range(number):
            time.sleep(pause)
            done = daemon.count('open m')
            began = daemon.send(bench.client, bench.source(), index % 60)
            samples.append((told_at(events, NEW_ELEMENT) - began) * 1000)
            network.until(lambda before=done: daemon.count('open m') > before)
    return samples


def nft_times(bench, number, text):
    """An execution of nft, after 0.5 s of quiet, timed inside the server's namespace."""
    code = ('import subprocess, time\nfor _ in range(%d):\n time.sleep(.5)\n'
            ' began = time.monotonic()\n'
            ' subprocess.run(["nft", "-f", "-"], input=%r, check=True)\n'
            ' print((time.monotonic() - began) * 1000)' % (number, text.encode()))
    return [float(line) for line in
            bench.server.must(DEBIAN, '-ISc', code, timeout=60).split()]


def save_times(daemon, number):
    """What a line costs that is written and synced as the ledger's are, on the same disk."""
    path, samples = daemon.ledger + '.bench', []
    with open(path, 'wb', buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 65536)
        os.fsync(file.fileno())
        for _ in range(number):
            time.sleep(0.5)
            began = time.monotonic()
            file.write(b'x' * 100)
            os.fdatasync(file.fileno())
            samples.append((time.monotonic() - began) * 1000)
    os.unlink(path)
    return samples


def start_times(bench):
    """knock.py, process start to its end, which is when it has seen the port open."""
    for python in interpreters()[:1 if bench.quick else 2]:
        with bench.daemon() as daemon:
            uri = daemon.uri('m0', SERVER)
            common = [python, network.KNOCK, '-q']
            opening = common + ['--open', 'tcp/2222', '--for', '30', '--wait', '5', uri]
            closing = common + ['--close', '--wait', '0', uri]
            out = bench.client.must(
                DEBIAN, os.path.join(HERE, 'laps.py'), str(bench.count(20, 10)), '0.5', SERVER,
                '2222', *(opening + ['--'] + closing), timeout=120)
            samples = json.loads(out)
            yield figure('knock.py start to port open, ' + version_of(python), 'ms', samples,
                         100 if python == DEBIAN else None,
                         note='' if None not in samples else
                         '%d did not open' % samples.count(None))


JUNK = 300000                   # a second


def junk(bench):
    """Knocks, and the daemon's processor time, under JUNK datagrams a second; a tenth more is sent,
    for not every one gets as far as the server."""
    number, seconds = 20, 10
    for rate, target in ((0, None), (1.1 * JUNK, 2)):
        with bench.daemon() as daemon:
            knocks(bench, daemon, 2, 0)
            with contextlib.ExitStack() as stack:
                if rate:
                    stack.enter_context(flood(bench, rate, seconds + 5))
                    time.sleep(1)
                yield from one_flood(bench, daemon, rate, target, number, seconds)


def one_flood(bench, daemon, rate, target, number, seconds):
    began, before = time.monotonic(), received(bench.server)
    ports, ticks, exact = no_ports(bench.server), cpu_ticks(daemon.pid), cpu_exact(daemon.pid)
    samples = []
    for index in range(number):
        time.sleep(max(0, began + (index + 0.5) * seconds / number - time.monotonic()))
        samples += [knock(bench, daemon, index, 2)]
    time.sleep(max(0, began + seconds - time.monotonic()))
    passed = time.monotonic() - began
    used, fine = cpu_ticks(daemon.pid) - ticks, cpu_exact(daemon.pid) - exact
    size, packets = [now - then for now, then in zip(received(bench.server), before)]
    singles = no_ports(bench.server) - ports
    name = 'junk %d/s' % (JUNK if target else 0)
    yield figure(name + ': packets counted at the server', '1/s', [packets / passed],
                 JUNK if target else None, True,
                 'UDP_SEGMENT, %d bytes each on average; %d/s reached a closed port one by one'
                 % (size / max(1, packets), singles / passed))
    opened = [sample for sample in samples if sample is not None]
    yield figure(name + ': knocks opened of %d' % number, '', [len(opened)], number, True)
    yield figure(name + ': knock to open', 'ms', opened)
    yield figure(name + ': daemon\'s processor time', '%', [100 * used / passed], target,
                 note='by the scheduler\'s clock %.2f %%, of it the %d knocks'
                 % (100 * fine / passed, number))


# --- issue 3: memory and start -------------------------------------------------------------------
def memory(bench):
    """Resident memory of the idle daemon beside a bare interpreter's."""
    sleeper = 'import time; time.sleep(9)'
    for python in interpreters()[:2 if bench.quick else 5]:
        sleepers = [subprocess.Popen([python, '-I', '-S', '-c', sleeper]) for _ in range(10)]
        time.sleep(1)
        bare = [status(process.pid)['VmRSS'] for process in sleepers]
        for process in sleepers:
            process.kill()
            process.wait()
        with bench.daemon(python=python, clients=1) as daemon:
            time.sleep(1)
            idle = status(daemon.pid)
            knocks(bench, daemon, 3, 0.3, 1)
            after = status(daemon.pid)
        yield figure('idle daemon\'s memory, Python ' + version_of(python), 'x bare',
                     [idle['VmRSS'] / value for value in bare], 2,
                     note='%d of %d kB; %d after 3 knocks' % (
                         idle['VmRSS'], statistics.median(bare), after['VmRSS']))


# --- issue 9: side by side with fwknopd and knockd -----------------------------------------------
JUNK_RATES = [100 * 2 ** power for power in range(13)]
SIZES = {'clients': (1, 10, 100, 1000, 10000), 'openings': (1, 100, 1000, 5000)}


def reach(bench):
    """From the start of the client's program to a connection, and the server's share of it."""
    number, figures = 10, {}
    for name in bench.names(few=bench.quick):
        for kind, pause in (('hot', 0), ('after 0.5 s of quiet', 0.5)):
            with bench.running(name) as daemon:
                asked = [(source, daemon.argv(source, index)) for index, source in
                         enumerate(bench.source() for _ in range(number + 2))]
                out = bench.client.must(
                    DEBIAN, os.path.join(HERE, 'reach.py'), SERVER, str(network.HIDDEN),
                    str(pause), '5', stdin=json.dumps(asked), timeout=120)
                samples = json.loads(out)[2:]
                figures[kind, name] = figure(
                    'client start to connect, %s: %s' % (kind, name), 'ms', samples,
                    note=lost(samples))
                yield figures[kind, name]
                network.drain(bench.listener)
                bench.listener.settimeout(5)
                samples = knocks(bench, daemon, number, pause + 0.02)
                yield figure('  last packet to connect, %s: %s' % (kind, name), 'ms', samples,
                             note=lost(samples))
    for kind in ('hot', 'after 0.5 s of quiet'):
        for name, most in ((SHIPPED, 0.3), ('knockd', None)):
            if name in bench.peers:
                yield ratio('client start to connect, %s: ours of %s' % (kind, name),
                            figures[kind, OURS], figures[kind, name], most)


def lost(samples):
    return '%d did not open' % samples.count(None) if None in samples else ''


def limits(bench):
    """The highest junk rate at which 20 of 20 knocks still open."""
    found = {}
    for name in bench.names(few=bench.quick):
        for index, kind in enumerate(('random bytes', 'well-formed')):
            came = {}
            rate = highest(JUNK_RATES[::bench.count(1, 4)],
                           functools.partial(stands, bench, name, index, came))
            entry = found[name, kind] = figure(
                'junk rate with 20 of 20 open, %s: %s' % (kind, name), '1/s',
                [0 if rate is None else min(rate, came[rate])],
                note='the most that was sent' if rate == JUNK_RATES[-1] else
                'tried: %s' % ', '.join('%d' % each for each in sorted(came)))
            yield entry
    if SHIPPED in bench.peers:
        for kind in ('random bytes', 'well-formed'):
            yield ratio('junk rate, %s: ours of fwknopd\'s as shipped' % kind,
                        found[OURS, kind], found[SHIPPED, kind], 100, True)


def stands(bench, name, index, came, rate):
    """Do 20 of 20 knocks open under that much junk? came[rate] is what reached the server."""
    with bench.running(name, 60 if name == OURS else 1) as daemon:
        words = daemon.junk[index][1]
        knock(bench, daemon)
        with flood(bench, rate, 60, words):
            time.sleep(0.7)
            began, before = time.monotonic(), received(bench.server)[1]
            opened = 0
            while opened < 20 and knock(bench, daemon, 1 + opened, 2) is not None:
                opened += 1
                time.sleep(0.03)
            came[rate] = (received(bench.server)[1] - before) / (time.monotonic() - began)
    return opened == 20


def junk_cpu(bench):
    """Processor time for a million junk packets, 100 clients; what it starts is counted in."""
    found = {}
    for name in bench.names('' if not bench.quick else 'shipped'):
        rate = 150000 if name == OURS else 1000
        with bench.running(name, 100) as daemon:
            for kind, words in daemon.junk:
                entry = found[name, kind] = figure(
                    'processor time for a million junk packets, %s: %s' % (kind, name), 's',
                    junk_cost(bench, daemon, rate, words), note='at %d/s' % rate)
                yield entry
    if SHIPPED in bench.peers:
        for kind in ('random bytes', 'well-formed'):
            yield ratio('processor time for junk, %s: ours of fwknopd\'s as shipped' % kind,
                        found[OURS, kind], found[SHIPPED, kind], 0.05)


def junk_cost(bench, daemon, rate, words=()):
    """Processor time of the daemon for each junk packet, in us, ten times."""
    samples = []
    with flood(bench, rate, 30, words):
        time.sleep(1)
        for _ in range(10):
            packets, used = received(bench.server)[1], work_of(daemon)
            time.sleep(0.4)
            samples.append((work_of(daemon) - used) * 1e6 /
                           max(1, received(bench.server)[1] - packets))
    return samples


def work_of(daemon):
    """Seconds of processor of a daemon and of the programs it has started."""
    return cpu_exact(daemon.pid) + children_cpu(daemon.pid)


def clients(bench):
    """What grows with the number of clients."""
    for name in bench.names('shipped'):
        first, last = {}, {}
        for number in (1, 100) if bench.quick else SIZES['clients']:
            with bench.running(name, number) as daemon:
                for entry in with_clients(bench, daemon, name, number):
                    yield entry
                    what = entry.name.rpartition(': ')[2]
                    last[what] = entry
                    first.setdefault(what, entry)
        for what, limit in (('good knock to open', 1.2),
                            ('the same, when all have knocked before', None)):
            if name == OURS:
                yield ratio('%s, with %d clients: of that with 1' % (what, number), last[what],
                            first[what], limit)


def with_clients(bench, daemon, name, number):
    """The figures for one number of clients."""
    start, ours = '%d clients: %s: ' % (number, name), name == OURS
    yield figure(start + 'memory', 'kB', [status(daemon.pid)['VmRSS']])
    rate = 150000 if ours else min(1000, 50000 // number)       # what it can take
    free = ours and number <= 1000      # more clients shall be correct, not free
    limit = 0.1 if free else None
    yield figure(start + 'junk packet in user space', 'us',
                 junk_cost(bench, daemon, rate, daemon.junk[ours - 1][1]), limit,
                 note='%s at %d/s; 0.0x is the noise of interrupts' % (
                     daemon.junk[ours - 1][0], rate))
    if ours:
        turns, _, slices = turned(bench, daemon, 0)
        yield figure(start + 'step change, processor time', 'ms', turns, 100 if free else None,
                     note='before it, in slices of at most %.1f ms: %.0f ms a step' % (
                         max(map(max, slices)), statistics.median(map(sum, slices))))
    pause = 0.25 if ours else 0.02      # five knocks a second and client; the same for all sizes
    knocks(bench, daemon, 2, pause, number)
    used = work_of(daemon)
    samples = knocks(bench, daemon, 20, pause, number)
    yield figure(start + 'good knock to open', 'ms', samples,
                 note='%.1f ms of processor each' % ((work_of(daemon) - used) * 50))
    if ours:
        daemon.kill()
        daemon.know_all()
        daemon.start()
        knocks(bench, daemon, 2, pause, number)
        yield figure(start + 'the same, when all have knocked before', 'ms',
                     knocks(bench, daemon, 20, pause, number),
                     note='a ledger of %d bytes' % os.path.getsize(daemon.ledger))


def turned(bench, daemon, openings):
    """What turns.py tells: the milliseconds of ten step changes, of forgetting the openings."""
    return json.loads(bench.server.must(
        DEBIAN, os.path.join(HERE, 'turns.py'), daemon.config, '10', str(openings), timeout=120))


def openings(bench):
    """What grows with the number of live openings."""
    found = {}
    for number in (1, 1000) if bench.quick else SIZES['openings']:
        last = FIRST_PORT + 2 * number
        settings = 'hide = tcp/2222, tcp/2229, udp/%d-%d' % (FIRST_PORT, last)   # no decoys
        owners = -(-number // ELEMENTS)
        with bench.daemon(settings, lines='allow = %s\n' % settings.partition('= ')[2],
                          clients=50 + owners) as daemon:
            began = time.monotonic()
            # Every other port: neighbours would be one range, and that is one element.
            ports = ['udp/%d' % port for port in range(FIRST_PORT, last, 2)]
            for owner in range(owners):
                name, asked = 'm%d' % (50 + owner), ports[owner * ELEMENTS:][:ELEMENTS]
                bench.client.send(daemon.datagram(name, open=','.join(asked), seconds=600), SERVER)
                daemon.says('open %s ' % name)
            yield figure('%d openings, %d a knock' % (number, ELEMENTS), 'ms',
                         [(time.monotonic() - began) * 1000])
            used = work_of(daemon)
            samples = knocks(bench, daemon, bench.count(30, 20), 0.05, 50)
            found[number] = figure(
                '%d openings: %s: the next knock to open' % (number, OURS), 'ms', samples,
                note='%.1f ms of processor each' % ((work_of(daemon) - used) * 1000 / len(samples)))
            yield found[number]
            yield figure('%d openings: forgotten when they have expired' % number, 'ms',
                         turned(bench, daemon, number)[1],
                         note='once a step; the kernel has closed them')
    yield ratio('the next knock with %d openings: of that with 1' % number, found[number],
                found[1], 1.5)
    for number in (1, 100, 1000) if SHIPPED in bench.peers and not bench.quick else ():
        yield from fwknopd_openings(bench, number)


def fwknopd_openings(bench, number):
    """The same of fwknopd, whose chain is filled by hand: a thousand knocks would take minutes."""
    start = '%d openings: %s: ' % (number, SHIPPED)
    with bench.running(SHIPPED, 1) as daemon:
        daemon.fill(number, 600)
        yield figure(start + 'the next knock to open', 'ms', knocks(bench, daemon, 10, 0.05))
        daemon.namespace.must('iptables', '-F', 'FWKNOP_INPUT')
        time.sleep(3)
        daemon.fill(number, 2)
        used, began = work_of(daemon), time.monotonic()
        gone = network.until(lambda: '_exp_' not in bench.server.must(
            'iptables-save', '-t', 'filter'), 15)
        yield figure(start + 'processor time until they are gone', 'ms',
                     [(work_of(daemon) - used) * 1000],
                     note='%.0f s%s' % (time.monotonic() - began,
                                        '' if gone else ': not yet gone'))


def idle(bench):
    """A daemon that nobody knocks at; a peer that wakes ten times a second needs no two minutes."""
    for name in bench.names():
        seconds = bench.count(65, 33) if name == OURS else bench.count(10, 4)
        with bench.running(name, 3 if name == OURS else 1) as daemon:
            time.sleep(2)
            before, used, children = status(daemon.pid), cpu_exact(daemon.pid), \
                children_cpu(daemon.pid)
            time.sleep(seconds)
            after, minute, ours = status(daemon.pid), 60 / seconds, name == OURS
            wakes = after['voluntary_ctxt_switches'] - before['voluntary_ctxt_switches']
            yield figure('idle: wake-ups a minute: ' + name, '', [wakes * minute],
                         4 if ours else None,
                         note='voluntary context switches over %d s' % seconds)
            yield figure('idle: processor time a minute: ' + name, 'ms',
                         [(cpu_exact(daemon.pid) - used) * 1000 * minute],
                         note='and %.0f ms of what it starts' % (
                             (children_cpu(daemon.pid) - children) * 1000 * minute))
            yield figure('idle: resident memory: ' + name, 'kB', [after['VmRSS']])


def throughput(bench):
    """TCP through boxes that route between client and stranger, which all stand at once; with
    1,000 clients if nothing else is said: their tags take a socket more."""
    others = bench.names('' if not bench.quick else 'shipped')
    names = ['none', STATEFUL, ALIKE, FEW, NAT, BEHIND_NAT] + others
    with contextlib.ExitStack() as stack:
        boxes = [stack.enter_context(through.router(bench.wire, number))
                 for number in range(len(names))]
        for name, box in zip(names, boxes):
            if name in (STATEFUL, ALIKE):
                box.nft(ONE_RULE)
            if name in (NAT, BEHIND_NAT):
                box.nft(MASQUERADE)
            if name in (FEW, BEHIND_NAT):
                stack.enter_context(bench.daemon(clients=3, box=box))
            if name in others:
                stack.enter_context(bench.running(name, 1000, box))
        yield from gets_through(bench, names, boxes, 1, '', 0.95)
        yield from gets_through(bench, names, boxes, 0, ', packets of 1,500 bytes', None)


def gets_through(bench, names, boxes, offload, how, target):
    """With segmentation offloaded, as Linux has it, a packet is up to 64 kB on its way."""
    size = (2 << 20) if offload else (1 << 18)
    members = boxes + [bench.client, bench.wire.stranger]
    for member in members:
        network.finish_checksums(member, 'eth0', offload)
    before = received(boxes[0])
    try:
        rounds = list(through.costs(bench.wire, len(names), size, bench.count(30, 10)))
    finally:
        for member in members:
            network.finish_checksums(member, 'eth0')
    count, packets = [now - then for now, then in zip(received(boxes[0]), before)]
    for number, name in enumerate(names):
        speeds = [size * 8e3 / statistics.median(found[number]) for found in rounds]
        each = count / packets * 8 / statistics.median(speeds)
        yield figure('throughput with %s%s' % (name, how), 'Mbit/s', speeds,
                     note='of a processor; %.0f bytes and %.2f us a packet' % (
                         count / packets, each))
    for base in map(names.index, ('none', STATEFUL, NAT)):
        for number, name in enumerate(names[base + 1:], base + 1):
            if names[base] == NAT and name != BEHIND_NAT:
                continue
            samples = through.ratios(rounds, base, number)
            yield figure('throughput, of %s%s: %s' % (names[base], how, name), 'x', samples,
                         target if (names[base], name) in AIMS else None, True,
                         note='19 times in 20 from %.3f to %.3f' % interval(samples))


def ledger(bench):
    """Knocks that only have to be spent: they close what is not open."""
    number = bench.count(1000, 200)
    with bench.daemon(clients=250) as daemon:
        ready = [daemon.datagram('m%d' % (index % 250), op='close') for index in range(number)]
        sender = bench.client.make_socket(network.socket.AF_INET, network.socket.SOCK_DGRAM)
        before, began, rates = written(daemon.pid), time.monotonic(), []
        for index, datagram in enumerate(ready, 1):
            sender.sendto(datagram, (SERVER, 40000))
            if index % 20 == 0:         # a full socket would lose some
                network.until(lambda done=index: daemon.count('close m') >= done)
            if index % (number // 10) == 0:
                rates.append(number // 10 / (time.monotonic() - began))
                began = time.monotonic()
        sender.close()
        done = daemon.count('close m')
        yield figure('ledger: knocks a second: ' + OURS, '1/s', rates,
                     note='%d of %d spent, each on disk before it counts' % (done, number))
        yield figure('ledger: bytes written a knock', 'B', [(written(daemon.pid) - before) / done],
                     note='250 clients at once; file of %d bytes, log lines counted in'
                     % os.path.getsize(daemon.ledger))
    yield figure('ledger: size after 100,000 knocks: ' + OURS, 'B', [size_after(100000)], 1 << 20,
                 note='100 clients, each once in ten seconds')
    yield figure('ledger: largest size, a client', 'B', [size_after(3000, 1, 1)], 1 << 17,
                 note='who knocks without a pause')
    if SHIPPED in bench.peers:
        yield from fwknopd_ledger(bench, 10)


def size_after(number, clients=100, pause=100):
    """Bytes of the file when so many knocks have been spent in turn, one each `pause` ms."""
    known, keys = knockd.Ledger('0a6c161f2a772fb8'), ['%016x' % key for key in range(clients)]
    for index in range(number):
        known.record(keys[index % clients], os.urandom(16).hex(), 1800000000000 + index * pause,
                     60000)
    return len(known.state_line())


def fwknopd_ledger(bench, number):
    with bench.running(SHIPPED, 1) as daemon:
        packets = [daemon.packet(bench.source()) for _ in range(number)]
        began = time.monotonic()
        for packet in packets:
            bench.client.send(packet, SERVER, peers.SPA_PORT)
        done = network.until(lambda: daemon.text().count('Added access rule') >= number, 30)
        yield figure('ledger: knocks a second: ' + SHIPPED, '1/s',
                     [number / (time.monotonic() - began)],
                     note='each opens; %s' % ('all honoured' if done else 'some lost'))
        size = os.path.getsize(daemon.ledger()) / number
        yield figure('ledger: size after 100,000 knocks: ' + SHIPPED, 'B', [size * 100000],
                     note='%d bytes a knock, never fewer; not synced to disk' % size)


def written(pid):
    """Bytes a process has passed to write()."""
    with open('/proc/%d/io' % pid) as lines:
        return int(dict(line.split(':') for line in lines)['wchar'])


NEW_TABLE, DELETED_TABLE, NEW_ELEMENT = 0, 2, 12        # linux/netfilter/nf_tables.h


def heal(bench):
    """From the kernel's word that our table is gone to its word that it is there again."""
    for loss in ('flush ruleset', 'delete table inet knockd'):
        samples, open_after = [], 0
        with bench.daemon() as daemon:
            knocks(bench, daemon, 2, 0.1)
            for _ in range(bench.count(20, 10)):
                time.sleep(0.5)         # what the last one stirred up has settled
                with ruleset_events(bench) as events:
                    bench.server.nft(loss)
                    began = told_at(events, DELETED_TABLE)
                    samples.append((told_at(events, NEW_TABLE) - began) * 1000)
                open_after += bench.client.connects(SERVER)
        yield figure('nft %s to the guard standing again' % loss, 'ms', samples, 100,
                     note='hidden port open afterwards: %d of %d' % (open_after, len(samples)))


def ruleset_events(bench):
    """A socket on which the server's kernel tells what changes in its rules."""
    events = bench.server.make_socket(network.socket.AF_NETLINK, network.socket.SOCK_RAW,
                                      knockd.NETLINK_NETFILTER)
    events.bind((0, 1 << knockd.NFNLGRP_NFTABLES - 1))
    events.settimeout(5)
    return events


def told_at(events, kind):
    """When the kernel told of it, in seconds."""
    while True:
        data, now = events.recv(65536), time.monotonic()
        while data:
            length, number = network.struct.unpack_from('=IH', data)
            if number & 0xff == kind:
                return now
            data = data[length + 3 & ~3:]


# --- the tables ----------------------------------------------------------------------------------
SECTIONS = (memory, open_times, reach, start_times, heal, junk, limits, junk_cpu,
            idle, openings, throughput, ledger, clients)


def machine():
    """Where and with what these figures were had."""
    nft = subprocess.check_output(['nft', '--version'], env=network.environment()).decode()
    about = {'date': time.strftime('%Y-%m-%d'), 'kernel': platform.release(),
             'processors': os.cpu_count(), 'machine': platform.machine(),
             'load': '%.2f %.2f %.2f' % os.getloadavg(), 'nft': nft.strip(),
             'python': ', '.join(version_of(python) for python in interpreters())}
    about.update(peers.versions())
    return about


def run(chosen, quick):
    """[(section, [Figure])], shown as they come; what a failure leaves of a section is kept."""
    sections, bench = [], Bench(quick)
    try:
        for section in chosen:
            name, entries, began = section.__name__.replace('_', ' '), [], time.monotonic()
            sections.append((name, entries))
            print('--- ' + name)
            try:
                for entry in section(bench):
                    entries.append(entry)
                    print(line(row(entry)), flush=True)
            except Exception as problem:        # the other sections' figures are worth having
                entries.append(figure('%s broke off' % name, '', [], 0, note=repr(problem)[:300]))
                print(line(row(entries[-1])), flush=True)
            print('    %.0f s' % (time.monotonic() - began), flush=True)
    finally:
        bench.close()
    return sections


def parse_arguments():
    parser = argparse.ArgumentParser(description='Prints the figures.')
    parser.add_argument('--json', metavar='FILE', help='the same as JSON')
    parser.add_argument('--markdown', metavar='FILE', help='the same as a section of Markdown')
    parser.add_argument('--read', metavar='FILE', help='measure nothing, take these JSON figures')
    parser.add_argument('--quick', action='store_true', help='fewer samples, fewer sizes')
    parser.add_argument('--only', metavar='WORD', default='', help='sections with WORD in: ' +
                        ', '.join(section.__name__ for section in SECTIONS))
    return parser.parse_args()


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if args.read:
        with open(args.read) as file:
            data = json.load(file)
        about = data['machine']
        sections = [(name, [Figure(**entry) for entry in entries])
                    for name, entries in data['sections']]
    else:
        about = machine()
        print(', '.join('%s %s' % entry for entry in about.items()))
        print(line(COLUMNS))
        sections = run([each for each in SECTIONS if args.only in each.__name__], args.quick)
    print('\n' + summary(about, sections))
    if args.json:
        with open(args.json, 'w') as out:
            json.dump({'machine': about, 'sections': [
                (name, [entry._asdict() for entry in entries]) for name, entries in sections]},
                out, indent=1)
    if args.markdown:
        with open(args.markdown, 'w') as out:
            out.write(markdown(about, sections))
    return int(any(verdict(entry) == 'MISSED' for _, entries in sections for entry in entries))


if __name__ == '__main__':
    sys.exit(main())
