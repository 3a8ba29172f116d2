"""Prints the figures: what, target, measured median, spread, ok or MISSED.

    python tests/bench/bench.py [--json FILE] [--quick] [--only WORD]

Real daemons and clients in namespaces of their own (tests/e2e/network.py). A figure of a section
is a function that yields Figures; SECTIONS at the end lists them, the dearest last. --only runs
the sections with WORD in their name.
"""

import argparse
import collections
import contextlib
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
sys.path[:0] = [TOP, os.path.join(TOP, 'tests', 'e2e')]

import network      # noqa: E402  the path above

SERVER = '10.9.0.1'
TICK = os.sysconf('SC_CLK_TCK')
DEBIAN = '/usr/bin/python3'
FIRST_PORT = 3000                       # of the range that many openings are made of

# limit: what the median may be at most (or at least, where `least`); None: told, not judged
Figure = collections.namedtuple('Figure', 'name unit samples limit least note')


def figure(name, unit, samples, limit=None, least=False, note=''):
    return Figure(name, unit, [value for value in samples if value is not None], limit, least, note)


def verdict(entry):
    if not entry.samples:
        return 'MISSED'
    median = statistics.median(entry.samples)
    if entry.limit is None:
        return ''
    return 'ok' if (median >= entry.limit if entry.least else median <= entry.limit) else 'MISSED'


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
    """A daemon run by any interpreter."""

    def __init__(self, namespace, folder, settings='', python=DEBIAN, **clients):
        self.python = python
        network.Daemon.__init__(self, namespace, folder, settings, **clients)

    def launch(self, *arguments):
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(self.python, network.KNOCKD, '--config', self.config,
                                       'run', *arguments),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=network.environment())

    @property
    def pid(self):
        return self.process.pid


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
        checksums(self.wire.stranger, 1)

    def count(self, many, few):
        return few if self.quick else many

    def source(self):
        """An address for which nothing is open: each serves once in 750 samples."""
        self.next_source += 1
        return self.sources[self.next_source % len(self.sources)]

    @contextlib.contextmanager
    def daemon(self, settings='', python=DEBIAN, clients=60, lines=''):
        """A daemon with clients m0, m1, ...: five knocks a second and client are allowed."""
        folder = tempfile.mkdtemp(prefix='bench')
        names = {'m%d' % number: lines for number in range(clients)}
        daemon = Daemon(self.server, folder, settings, python, **names)
        try:
            yield daemon.start()
        finally:
            daemon.remove()
            shutil.rmtree(folder)

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


def knock_to_open(bench, datagram, seconds=5, port=network.HIDDEN):
    """Milliseconds from the datagram on the wire to a connect that succeeds, or None."""
    source = bench.source()
    with bench.client.make_socket(network.socket.AF_INET, network.socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        began = time.monotonic()
        sender.sendto(datagram, (SERVER, 40000))
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


def knocks(bench, daemon, number, pause, clients=60):
    """That many knocks, each by another client and from another address."""
    samples = []
    for index in range(number):
        time.sleep(pause)
        name = 'm%d' % (index % clients)
        samples.append(knock_to_open(bench, daemon.datagram(
            name, open='tcp/%d' % network.HIDDEN, seconds=2)))
    return samples


def told(daemon):
    """The milliseconds that the daemon's own log gives for each opening."""
    return [float(line.split()[-1][:-2]) for line in daemon.text().splitlines()
            if line.startswith('open m')]


@contextlib.contextmanager
def flood(bench, rate, seconds, prefix=''):
    """Junk from the stranger to the server, by a sender a core: one alone is the bottleneck."""
    senders = os.cpu_count() or 1
    with bench.wire.stranger.make_socket(network.socket.AF_INET,
                                         network.socket.SOCK_DGRAM) as sender:
        processes = [subprocess.Popen(
            [sys.executable, os.path.join(HERE, 'flood.py'), str(sender.fileno()), SERVER,
             str(rate / senders), str(seconds), prefix], pass_fds=[sender.fileno()],
            stdout=subprocess.PIPE) for _ in range(senders)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# --- issue 2: knock to open, start to open, junk -------------------------------------------------
def open_times(bench):
    """Packet on the wire to connect succeeding."""
    number = bench.count(40, 20)
    with bench.daemon() as daemon:
        knocks(bench, daemon, 3, 0)
        before = len(told(daemon))
        yield figure('knock to open, hot', 'ms', knocks(bench, daemon, number, 0.02), 10)
        yield figure('  by the daemon\'s log', 'ms', told(daemon)[before:])
        before = len(told(daemon))
        yield figure('knock to open, 0.5 s of quiet before', 'ms',
                     knocks(bench, daemon, number, 0.5), 10)
        yield figure('  by the daemon\'s log', 'ms', told(daemon)[before:])
        yield figure('nft -f -, cold, with an empty file', 'ms', nft_times(bench, number),
                     note='what any change costs at least; measured beside it')


def nft_times(bench, number):
    """The execution of nft alone, after 0.5 s of quiet, timed inside the server's namespace."""
    code = ('import subprocess, time\nfor _ in range(%d):\n time.sleep(.5)\n'
            ' began = time.monotonic()\n'
            ' subprocess.run(["nft", "-f", "-"], input=b"")\n'
            ' print((time.monotonic() - began) * 1000)' % number)
    return [float(line) for line in
            bench.server.must(DEBIAN, '-ISc', code).split()]


def start_times(bench):
    """knock.py, process start to its end, which is when it has seen the port open."""
    for python in interpreters()[:1 if bench.quick else 2]:
        with bench.daemon() as daemon:
            uri = daemon.uri('m0', SERVER)
            common = [python, network.KNOCK, '-q']
            opening = common + ['--open', 'tcp/2222', '--for', '30', '--wait', '5', uri]
            closing = common + ['--close', '--wait', '0', uri]
            out = bench.client.must(
                DEBIAN, os.path.join(HERE, 'laps.py'), str(bench.count(30, 20)), '0.4', SERVER,
                '2222', *(opening + ['--'] + closing), timeout=120)
            samples = json.loads(out)
            yield figure('knock.py start to port open, ' + version_of(python), 'ms', samples,
                         100 if python == DEBIAN else None,
                         note='' if None not in samples else
                         '%d did not open' % samples.count(None))


def junk(bench):
    """Knocks, and the daemon's processor time, under 300,000 junk datagrams a second."""
    number, seconds = 20, 10
    for rate, target in ((0, None), (300000, 2), (330000, None))[:3 if not bench.quick else 2]:
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
        samples += [knock_to_open(bench, daemon.datagram(
            'm%d' % index, open='tcp/%d' % network.HIDDEN, seconds=2), 2)]
    time.sleep(max(0, began + seconds - time.monotonic()))
    passed = time.monotonic() - began
    used, fine = cpu_ticks(daemon.pid) - ticks, cpu_exact(daemon.pid) - exact
    size, packets = [now - then for now, then in zip(received(bench.server), before)]
    singles = no_ports(bench.server) - ports
    name = 'junk %d/s' % rate
    yield figure(name + ': packets counted at the server', '1/s', [packets / passed],
                 rate * 0.98 if target else None, True,
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
    for python in interpreters()[:2 if bench.quick else None]:
        bare = []
        for _ in range(3):
            process = subprocess.Popen([python, '-I', '-S', '-c', sleeper])
            time.sleep(0.5)
            bare.append(status(process.pid)['VmRSS'])
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


def version_times(bench):
    """knock.py --version beside an interpreter that does nothing."""
    for python in interpreters()[:2 if bench.quick else None]:
        commands = {'bare': [python, '-I', '-S', '-c', 'pass'],
                    'site': [python, '-c', 'pass'],
                    'ours': [python, network.KNOCK, '--version']}
        laps = {name: [] for name in commands}
        for _ in range(bench.count(30, 20)):
            for name, command in commands.items():
                began = time.monotonic()
                subprocess.check_call(command, stdout=subprocess.DEVNULL)
                laps[name].append((time.monotonic() - began) * 1000)
        bare, site = statistics.median(laps['bare']), statistics.median(laps['site'])
        yield figure('knock.py --version over bare, Python ' + version_of(python), 'ms',
                     [lap - bare for lap in laps['ours']], 25,
                     note='bare %.1f; least over least +%.1f; site alone +%.1f' % (
                         bare, min(laps['ours']) - min(laps['bare']), site - bare))


# --- issue 9: clients, openings, idle, ledger ----------------------------------------------------
def clients(bench):
    """What grows with the number of clients."""
    for number in (1, 100) if bench.quick else (1, 10, 100, 1000, 10000):
        with bench.daemon(clients=number) as daemon:
            resident = status(daemon.pid)['VmRSS']
            name = '%d clients: ' % number
            yield figure(name + 'memory', 'kB', [resident])
            pause = 0.02 if number >= 100 else 0.25
            yield figure(name + 'knock to open', 'ms', knocks(bench, daemon, 20, pause, number))
            yield junk_cost(bench, daemon, name)
            if not bench.quick:
                yield figure(name + 'step change, processor time', 'ms', [step_cost(daemon)],
                             100 if number == 10000 else None)


def junk_cost(bench, daemon, name):
    """Processor time of the daemon for each junk packet."""
    with flood(bench, 150000, 5):
        time.sleep(1)
        before, used = received(bench.server)[1], cpu_exact(daemon.pid)
        time.sleep(3)
        packets, used = received(bench.server)[1] - before, cpu_exact(daemon.pid) - used
    return figure(name + 'junk packet in user space', 'us', [used * 1e6 / max(1, packets)],
                  None, note='%d/s; 0.0x is the noise of interrupts' % (packets / 3))


def step_cost(daemon):
    """Milliseconds on a processor from just before a step begins until it has settled."""
    step = network.knock.STEP / 1000
    time.sleep(step - time.time() % step - 0.2 if time.time() % step < step - 0.3 else step)
    before = cpu_exact(daemon.pid)
    network.until(lambda: cpu_exact(daemon.pid) > before, 3)
    settled = [before]
    while len(settled) < 2 or settled[-1] != settled[-2]:
        time.sleep(0.5)
        settled.append(cpu_exact(daemon.pid))
    return (settled[-1] - before) * 1000


def openings(bench):
    """What grows with the number of live openings."""
    for number in (1, 1000) if bench.quick else (1, 100, 1000, 5000):
        last = FIRST_PORT + number - 1
        settings = 'hide = tcp/2222, tcp/2229, tcp/%d-%d' % (FIRST_PORT, last)
        with bench.daemon(settings, lines='allow = %s\n' % settings.partition('= ')[2]) as daemon:
            began = time.monotonic()
            bench.client.send(daemon.datagram(
                'm59', open='tcp/%d-%d' % (FIRST_PORT, last), seconds=600), SERVER)
            daemon.says('open m59 ')
            yield figure('%d openings by one knock' % number, 'ms',
                         [(time.monotonic() - began) * 1000])
            used = cpu_exact(daemon.pid)
            samples = knocks(bench, daemon, 20, 0.05, 50)
            yield figure('%d openings: the next knock to open' % number, 'ms', samples,
                         note='%.2f ms of the daemon\'s own processor time each' % (
                             (cpu_exact(daemon.pid) - used) * 50))


def idle(bench):
    """A daemon that nobody knocks at."""
    seconds = bench.count(120, 35)
    with bench.daemon(clients=3) as daemon:
        time.sleep(1)
        before, used, nft = status(daemon.pid), cpu_exact(daemon.pid), children_cpu(daemon.pid)
        time.sleep(seconds)
        after = status(daemon.pid)
        minute = 60 / seconds
        wakes = after['voluntary_ctxt_switches'] - before['voluntary_ctxt_switches']
        yield figure('idle: wake-ups a minute', '', [wakes * minute], 4,
                     note='voluntary context switches over %d s' % seconds)
        yield figure('idle: processor time a minute', 'ms',
                     [(cpu_exact(daemon.pid) - used) * 1000 * minute],
                     note='and %.0f ms of nft' % (
                         (children_cpu(daemon.pid) - nft) * 1000 * minute))


def ledger(bench):
    """Knocks that only have to be spent: they close what is not open."""
    number = bench.count(1000, 200)
    with bench.daemon(clients=250) as daemon:
        ready = [daemon.datagram('m%d' % (index % 250), op='close') for index in range(number)]
        sender = bench.client.make_socket(network.socket.AF_INET, network.socket.SOCK_DGRAM)
        before, began = written(daemon.pid), time.monotonic()
        for index, datagram in enumerate(ready, 1):
            sender.sendto(datagram, (SERVER, 40000))
            if index % 20 == 0:         # a full socket would lose some
                network.until(lambda done=index: daemon.count('close m') >= done)
        passed = time.monotonic() - began
        sender.close()
        done = daemon.count('close m')
        yield figure('ledger: knocks a second', '1/s', [done / passed],
                     note='%d of %d spent' % (done, number))
        yield figure('ledger: bytes written a knock', 'B', [(written(daemon.pid) - before) / done],
                     note='file of %d bytes, log lines counted in'
                     % os.path.getsize(daemon.ledger))


def written(pid):
    """Bytes a process has passed to write()."""
    with open('/proc/%d/io' % pid) as lines:
        return int(dict(line.split(':') for line in lines)['wchar'])


# --- the table -----------------------------------------------------------------------------------
SECTIONS = (version_times, memory, open_times, start_times, junk, idle, openings, ledger, clients)


def row(entry):
    """What the table shows of a figure."""
    target = '' if entry.limit is None else '%s %g' % ('>=' if entry.least else '<=', entry.limit)
    if not entry.samples:
        return (entry.name, target, 'none', '', 'MISSED', entry.note)
    low, high = min(entry.samples), max(entry.samples)
    spread = '%.4g..%.4g, n=%d' % (low, high, len(entry.samples)) if len(entry.samples) > 1 else ''
    median = '%.6g' % round(statistics.median(entry.samples), 2)
    return (entry.name, target, (median + ' ' + entry.unit).strip(), spread, verdict(entry),
            entry.note)


WIDTHS = (52, 12, 14, 22, 7)


def show(cells):
    print('  '.join([cell.ljust(width) for cell, width in zip(cells, WIDTHS)] + [cells[-1]])
          .rstrip(), flush=True)


def machine():
    """Where and with what these figures were had."""
    nft = subprocess.check_output(['nft', '--version'], env=network.environment()).decode()
    return {'date': time.strftime('%Y-%m-%d'), 'kernel': platform.release(),
            'processors': os.cpu_count(), 'machine': platform.machine(),
            'load': list(os.getloadavg()), 'nft': nft.strip(),
            'python': [version_of(python) for python in interpreters()]}


def parse_arguments():
    parser = argparse.ArgumentParser(description='Prints the figures.')
    parser.add_argument('--json', metavar='FILE', help='the same as JSON')
    parser.add_argument('--quick', action='store_true', help='fewer samples, fewer sizes')
    parser.add_argument('--only', metavar='WORD', default='', help='sections with WORD in: ' +
                        ', '.join(section.__name__ for section in SECTIONS))
    return parser.parse_args()


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    about, figures = machine(), []
    print(', '.join('%s %s' % entry for entry in about.items()))
    show(('FIGURE', 'TARGET', 'MEDIAN', 'SPREAD', '', ''))
    bench = Bench(args.quick)
    try:
        for section in SECTIONS:
            if args.only in section.__name__:
                for entry in section(bench):
                    figures.append(dict(entry._asdict(), verdict=verdict(entry)))
                    show(row(entry))
    finally:
        bench.close()
        if args.json:
            with open(args.json, 'w') as out:
                json.dump({'machine': about, 'figures': figures}, out, indent=1)
    return 1 if any(entry['verdict'] == 'MISSED' for entry in figures) else 0


if __name__ == '__main__':
    sys.exit(main())
