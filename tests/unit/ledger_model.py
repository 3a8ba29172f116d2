"""A world in which the daemon's own loop runs: clock and kernel are played, the disk fails, and
chance decides when.

World.walk() runs knockd.Daemon.loop() again and again. Between two wake-ups the played poll() does
one random thing: a fresh knock, a replay, the clock going anywhere, a crash, a full disk, another
config, a lost ledger. Model remembers every knock that was honoured, for ever, and knows nothing
of floors; it raises Broken when one is honoured twice, or when a good one is not.

Excused is only what DESIGN 4 names: ledger and clock lost together. Of a knock that was honoured
before the ledger was lost that means: whenever a quarantine was set since, and could be written,
the clock showed an earlier time, or the window was shorter, than when it was honoured.
"""
import collections
import errno
import functools
import os
import random
import shutil
import signal
import struct
import tempfile

import knockd
import played
from knock import encode_plain, seal
from segments import tcp_segment

SECRETS = [bytes([number]) * 32 for number in (1, 2, 3)]
KEYS = [knockd.derive_keys(secret, 'home') for secret in SECRETS]
WINDOWS = (1000, 10000, 60000, 60000, 120000, 600000)
EMPTY = '{"knockd": 1, "id": "home", "floor": 0, "keys": {}}'
MARGIN = 2000                   # DESIGN 4: the quarantine ends at now + w + 2 s
ADDRESSES = (bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
MIDDLE = 1700000000000
CRASHES = ('before the write', 'in the write', 'after the rename', 'after the write')
# No descriptor of ours is that high: for SYNs, for datagrams, the keeper's.
SOCKETS, KEEPER = (10 ** 6, 10 ** 6 + 1), 10 ** 6 + 2

# payload: the datagram, or the ten bytes of a SYN; slack: a SYN names no more than its step
Sent = collections.namedtuple('Sent', 'owner time payload slack')


class Broken(BaseException):
    """A promise was broken. Nothing in the daemon may swallow this, hence no Exception."""


class Crash(BaseException):
    """kill -9"""


class Quiet:
    """Whatever else the daemon asks of a part that is played: it does nothing."""

    def __getattr__(self, name):
        return lambda *arguments, **keywords: None


class Honoured:
    """A knock that was honoured: when, under which window, and what has become of the ledger."""

    def __init__(self, clock, window):
        self.clock, self.window = clock, window
        self.forgotten = self.safe = self.safe_here = False

    def covered_by(self, clock, window):
        """Does a quarantine set at this time refuse it, if the clock was not lost too?"""
        return clock + MARGIN >= self.clock and window >= self.window


class Model:
    """Remembers every acceptance for ever."""

    def __init__(self):
        self.honoured, self.end, self.lost, self.stepped_now = {}, 0, False, False
        self.known = {}         # owner: highest stamp, latest clock, shortest window it came with
        self.second, self.pace = None, collections.Counter()

    def started(self, sound, clock, window):
        """A process begins; without a sound ledger it begins with a quarantine."""
        self.lost, self.stepped_now = not sound, False
        for knock in self.honoured.values():
            knock.safe_here = False
            if not sound:
                knock.forgotten, knock.safe = True, knock.covered_by(clock, window)
        if not sound:
            self.end = clock + window + MARGIN

    def stepped(self, distance, clock, window):
        """The clock was set while the process runs."""
        if self.lost and distance > 1000:
            self.end, self.stepped_now = max(self.end, clock + window + MARGIN), True
            for knock in self.honoured.values():
                knock.safe_here = knock.safe_here or knock.covered_by(clock, window)

    def written(self):
        """What the process knows is on disk now."""
        self.stepped_now = False
        for knock in self.honoured.values():
            knock.safe = knock.safe or knock.safe_here

    def honour(self, sent, clock, window):
        knock = self.honoured.get(sent.payload)
        if knock and not (knock.forgotten and not knock.safe and not knock.safe_here):
            raise Broken('honoured twice: first at %d within %d, again at %d within %d'
                         % (knock.clock, knock.window, clock, window))
        if abs(sent.time - clock) > window + sent.slack:
            raise Broken('honoured %d ms off within %d' % (sent.time - clock, window))
        self.honoured[sent.payload] = Honoured(clock, window)

    def deliver(self, sent, clock, window, mono):
        """Whether honoured or not: the ledger may know it from now on."""
        if self.second != mono // 1000:
            self.second, self.pace = mono // 1000, collections.Counter()
        self.pace[sent.owner] += 1
        if abs(sent.time - clock) <= window + sent.slack:
            time, latest, shortest = self.known.get(sent.owner, (0, 0, window))
            self.known[sent.owner] = (max(time, sent.time), max(latest, clock),
                                      min(shortest, window))

    def is_due(self, sent, clock, window, mono):
        """A fresh knock that must be honoured: nothing that DESIGN names speaks against it."""
        time, latest, shortest = self.known.get(sent.owner, (-1, 0, window))
        ahead = sent.time > time or (clock >= latest and window <= shortest + 60000)
        paced = self.second != mono // 1000 or self.pace[sent.owner] < 5
        return abs(sent.time - clock) <= window and sent.time > self.end and ahead and paced


def frame_of(sent, address):
    """An IPv4 packet with this knock."""
    body, length = sent.payload, len(sent.payload)
    if sent.slack:
        body = tcp_segment(50000, body)
    else:
        body = struct.pack('>HHHH', 40000, 50000, 8 + length, 0) + body
    return struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(body), 0, 0, 64, 6 if sent.slack else 17,
                       0, address, bytes([192, 0, 2, 9])) + body


class World:
    """Everything around the daemon, and chance."""

    def __init__(self, seed, patch, flaw=''):
        self.chance, self.flaw, self.model = random.Random(seed), flaw, Model()
        self.wall = self.truth = MIDDLE + self.chance.randrange(10 ** 6)
        self.mono = 10 ** 6
        self.full, self.crash, self.fault, self.damaged = False, None, False, False
        self.names, self.window, self.edition = ['anna', 'bert', 'carl'], 60000, 0
        self.sent, self.by_payload, self.frames, self.waiting = [], {}, [], None
        self.opened, self.events, self.reading = set(), 0, None
        self.counts = collections.Counter()
        self.reader, self.writer = os.pipe()
        for name, ours in (
                ('moment', lambda: knockd.Moment(self.wall, self.mono)), ('log', self.log),
                ('state_line', lambda *_: 'ready'),
                ('read_config', lambda path: self.config()), ('select', Select(self)),
                ('config_stamp', lambda path: (0, self.edition)),
                ('is_own', functools.lru_cache()(lambda *_: True)),
                ('status_socket', lambda config: Quiet()), ('runtime_folder', lambda: '/nowhere'),
                ('own_namespace', lambda: None), ('reflect_marks', lambda *_: True),
                ('choose_tool', lambda config: (knockd.NFT, None)),
                ('changes_silently', lambda tool: False),
                ('JOURNAL_ROOM', 400), ('JOURNAL_LINES', 6),
                ('Keeper', self.make_keeper), ('Doors', functools.partial(Doors, self)),
                ('Capture', lambda limit: Sockets(self, SOCKETS[limit > 1]))):
            patch.setattr(knockd, name, ours)
        self.disk = Disk(self, patch)

    def make_keeper(self, *_):
        self.keeper = Keeper()
        return self.keeper

    def close(self):
        os.close(self.reader)
        os.close(self.writer)
        shutil.rmtree(self.disk.folder)

    @property
    def text(self):
        return self.disk.get()

    @text.setter
    def text(self, text):
        self.damaged = True
        self.disk.put(text)

    def log(self, text, level=6):
        if text.startswith('internal error'):
            raise Broken(text)

    def config(self):
        """The Config of now; clients go by other names or are missing, their secrets stay."""
        lines = ['[server]', 'id = home', 'hide = tcp/22', 'window = %d' % (self.window // 1000),
                 'carriers = udp, syn',
                 'ledger = ' + self.disk.path]
        for name, secret in zip(self.names, SECRETS):
            if name:
                lines += ['[client %s]' % name, 'secret = ' + knockd.encode_secret(secret)]
        config = knockd.parse_config('\n'.join(lines), '/played/knockd.ini')
        if self.flaw == 'entries by name':
            for name, client in config.clients.items():
                config.clients[name] = client._replace(fingerprint=name.encode().hex()[:16].zfill(
                    16))
        return config

    # --- the walk
    def walk(self, runs, events):
        """So many lives of the daemon, each with up to so many things happening to it."""
        self.text = EMPTY
        for _ in range(runs):
            if self.chance.random() < 0.2:
                self.crash = self.chance.choice(CRASHES)
            self.live(lambda world: world.chance.choice(world.HAPPENINGS)(world), events)
            self.between_runs()

    def live(self, happen, events):
        """One life of the daemon, which ends by kill -9 if not before."""
        self.happen, self.events, self.waiting, self.fault = happen, events, None, False
        sound = self.is_sound()
        if not sound and not self.damaged:
            raise Broken('a crash has cost the ledger: %r' % self.text)
        self.damaged = not sound
        self.model.started(sound, self.wall, self.window)
        try:
            knockd.Daemon(self.config()).loop(self.reader)
        except Crash:
            pass
        self.frames, self.crash = [], None
        self.disk.end_of_a_process()

    def live_through(self, *script):
        """One life in which these things happen one after the other, and nothing by chance."""
        left = list(script)
        self.live(lambda world: left.pop(0)(world), len(script))

    def is_sound(self):
        try:
            knockd.parse_ledger(self.text or '', 'home')
        except knockd.KnockError:
            return False
        return True

    def between_runs(self):
        chance = self.chance
        if chance.random() < 0.5:
            self.disk.power_cut()
        self.tick(chance.choice((0, 0, 100, 1000, 1000, 5000, 60000, 700000)))
        if chance.random() < 0.4:
            self.change_config()
        if chance.random() < 0.3:
            self.wall = self.anywhere()
        if chance.random() < 0.2:
            self.lose()
            if chance.random() < 0.5:       # a router without a battery
                self.wall = self.truth - chance.randrange(90000)
        self.full = self.full and chance.random() < 0.5
        if self.flaw == 'add makes a ledger' and not self.is_sound():
            self.text = EMPTY

    def wake(self):
        """The daemon has done what the last event asked for, and would sleep."""
        self.settle()
        self.events -= 1
        if self.events < 0:
            raise Crash()
        self.tick(self.chance.choice((0, 50, 300, 1000, 1000)))
        ready = self.happen(self) or []
        return ready + [(KEEPER, 1)] * bool(self.keeper.done)

    def settle(self):
        """Was a knock that had to be honoured honoured? Is what had to be written written?"""
        if self.waiting and self.waiting.payload not in self.opened:
            raise Broken('not honoured: stamp %+d ms' % (self.waiting.time - self.wall))
        self.waiting, self.frames = None, []
        if self.model.stepped_now and not self.full:
            self.model.written()
        self.model.stepped_now = False

    def tick(self, distance):
        self.wall += distance
        self.mono += distance
        self.truth += distance

    # --- what happens
    def knock(self):
        """A fresh one, its stamp anywhere in the window and a little beyond."""
        chance, window = self.chance, self.window
        owner = chance.randrange(len(SECRETS))
        time = max(0, self.wall + chance.choice((
            0, 0, window, -window, window + 1, -window - 1,
            chance.randint(-window, window), chance.randint(-window, window))))
        sent = self.make(owner, time)
        fresh = sent.payload not in self.by_payload
        if fresh and self.names[owner] and not self.full and not self.crash and \
                self.model.is_due(sent, self.wall, self.window, self.mono):
            self.waiting = sent
            self.counts['due'] += 1
        return self.deliver([sent])

    def make(self, owner, time):
        """A datagram or a SYN of this client."""
        chance, step = self.chance, time // 30000
        if chance.random() < 0.15:
            return Sent(owner, step * 30000, knockd.syn_badge(KEYS[owner], step), 30000)
        request = knockd.Request(chance.choice(('open', 'open', 'close')), time, None, 0, (), None,
                                 None, None)
        return Sent(owner, time, seal(
            KEYS[owner], chance.getrandbits(128).to_bytes(16, 'big'),
            encode_plain(request), step), 0)

    def deliver(self, knocks):
        """Each waits in the socket for its kind."""
        for sent in knocks:
            if sent.payload not in self.by_payload:
                self.sent.append(sent)
                self.by_payload[sent.payload] = sent
            self.model.deliver(sent, self.wall, self.window, self.mono)
        self.frames = list(knocks)
        return [(SOCKETS[not sent.slack], 1) for sent in knocks]

    def replay(self):
        """Old ones, those first that the clock would let through."""
        fitting = [sent for sent in self.sent if abs(sent.time - self.wall) <= self.window]
        pool = fitting if fitting and self.chance.random() < 0.9 else self.sent
        if not pool:
            return []
        self.counts['replays that the clock lets through'] += pool is fitting
        return self.deliver([self.chance.choice(pool), self.chance.choice(pool[-5:]),
                             max(pool, key=lambda sent: sent.time)])

    def anywhere(self):
        """A time: the right one, a little behind it, near an old stamp, a little off, far away."""
        chance = self.chance
        if chance.random() < 0.4:
            return self.truth - chance.choice((0, 0, chance.randrange(90000)))
        if self.sent and chance.random() < 0.6:
            return max(0, chance.choice(self.sent).time + chance.randint(-70000, 70000))
        return max(0, chance.choice((
            self.wall + chance.choice((-3000, -1001, -999, 999, 1001, 3000, 20000)),
            self.wall + chance.randint(-10 ** 6, 10 ** 6), MIDDLE + chance.randrange(10 ** 6),
            MIDDLE, chance.randrange(200000))))

    def step(self):
        """The clock is set; now and then the next thing to wake the daemon is a replay."""
        late = self.wall < self.truth and self.chance.random() < 0.7
        self.set_clock(self.truth if late else self.anywhere())
        return self.replay() if self.chance.random() < 0.5 else []

    def set_clock(self, wall):
        distance, self.wall = wall - self.wall, wall
        self.model.stepped(distance, wall, self.window)

    def rest(self):
        self.tick(self.chance.choice((1000, 10000, 30000, 90000)))

    def arm(self):
        """The next write, and what it was for, will not be seen to its end."""
        self.crash = self.chance.choice(CRASHES)
        return self.knock() if self.chance.random() < 0.5 else self.replay()

    def kill(self):
        if self.chance.random() < 0.5:
            raise Crash()
        os.write(self.writer, bytes([signal.SIGTERM]))
        return [(self.reader, 1)]

    def reload(self):
        self.change_config()
        os.write(self.writer, bytes([signal.SIGHUP]))
        return [(self.reader, 1)]

    def change_config(self):
        self.edition += 1
        self.window = self.chance.choice(WINDOWS)
        owner = self.chance.randrange(len(SECRETS))
        taken = [name for name in self.names if name]
        spare = [name for name in ('anna', 'bert', 'carl', 'dora', 'emil') if name not in taken]
        self.names[owner] = self.chance.choice((self.chance.choice(spare), None)) \
            if self.names[owner] else self.chance.choice(spare)

    def fill(self):
        self.full = not self.full

    def fail(self):
        """The next sync of the journal fails, which costs nobody his knock."""
        self.fault = True

    def lose(self):
        """Gone, cut short, damaged, or another server's; now and then in the file that is open."""
        text, chance = self.text or '', self.chance
        first = text.find('\n') + 1
        lines = text[:text.rfind('\n') + 1].splitlines(True)
        middle = chance.randrange(max(1, len(lines) - 1))
        broken = [line if number != middle else chance.choice((line[1:], '\0' * len(line), '\n'))
                  for number, line in enumerate(lines)]
        self.damaged = True
        self.disk.put(chance.choice((
            None, '', text[:chance.randrange(first + 1)][:-1], '\0' * len(text), '[]',
            text.replace('"home"', '"work"'), ''.join(broken), ''.join(broken))),
            in_place=chance.random() < 0.3)

    HAPPENINGS = (knock,) * 12 + (replay,) * 12 + (step,) * 3 + (rest,) * 2 + (
        arm, kill, reload, fill, fail, lose)

    # --- what the daemon does
    def honour(self):
        """The firewall was told; about the knock that is being read."""
        sent = self.by_payload[self.reading]
        self.counts['honoured'] += 1
        self.model.honour(sent, self.wall, self.window)
        self.opened.add(sent.payload)


class Select:
    """Plays the module select: to wait is to let something happen."""
    POLLIN = 1

    def __init__(self, world):
        self.world = world

    def poll(self, timeout=None):
        """select.poll() makes the object; its poll(timeout) waits."""
        return self if timeout is None else self.world.wake()

    def register(self, descriptor, events):
        pass

    def select(self, *descriptors):
        pass


class Disk:
    """A folder on a disk that fails when it is told to, and that a power cut leaves as it may.

    What was written and not synced is not there after a power cut, or only its beginning, or only
    its end, for which zero bytes stand before; a rename is undone unless the folder was synced."""
    real = {name: getattr(os, name)
            for name in ('pwrite', 'fsync', 'fdatasync', 'rename', 'posix_fallocate')}

    def __init__(self, world, patch):
        self.world, self.chance = world, world.chance
        shared = '/dev/shm'
        self.folder = tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None)
        self.path = os.path.join(self.folder, 'ledger.json')
        self.reserves = self.chance.random() < 0.7
        self.unsynced, self.undo, self.file = [], (), None
        patch.setattr(knockd, 'LedgerFile', self.open)
        for name in self.real:
            patch.setattr(os, name, getattr(self, name))

    def open(self, path, make=knockd.LedgerFile):
        self.file = make(path)
        return self.file

    def end_of_a_process(self):
        """Descriptors and lock are gone with it."""
        for descriptor in (self.file.lock, self.file.journal):
            if descriptor is not None:
                os.close(descriptor)
        for name in os.listdir(self.folder):
            if name.endswith('.new'):
                os.unlink(os.path.join(self.folder, name))

    def get(self):
        if not os.path.exists(self.path):
            return None
        with open(self.path, encoding='latin-1', newline='') as file:
            return file.read()

    def put(self, text, in_place=False):
        if not in_place and os.path.exists(self.path):
            os.unlink(self.path)
        if text is not None:
            with open(self.path, 'w', encoding='latin-1', newline='') as file:
                file.write(text)
            os.chmod(self.path, 0o600)

    def power_cut(self):
        """Every block of what was not synced is on disk or not."""
        if self.undo and self.chance.random() < 0.5:
            self.put(*self.undo)
            self.world.damaged = True       # perhaps
            self.undo = ()
        for inode, offset, data in self.unsynced:
            if os.path.exists(self.path) and os.stat(self.path).st_ino == inode:
                with open(self.path, 'r+b') as file:
                    self.real['pwrite'](file.fileno(), self.torn(data), offset)
        self.unsynced, self.undo = [], ()

    def torn(self, data):
        cut = self.chance.randrange(len(data) + 1)
        return self.chance.choice((bytes(len(data)), data[:cut] + bytes(len(data) - cut),
                                   bytes(cut) + data[cut:]))

    # --- what the daemon calls
    def pwrite(self, descriptor, data, offset):
        world, status = self.world, os.fstat(descriptor)
        name = os.readlink('/proc/self/fd/%d' % descriptor)
        if not name.startswith(self.path) or name.endswith('.lock'):
            return self.real['pwrite'](descriptor, data, offset)
        if world.crash == 'before the write':
            raise Crash()
        if world.full and offset + len(data) > status.st_size:
            fits = data[:max(0, status.st_size - offset)]
            if not fits or self.chance.random() < 0.5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = fits
        if world.flaw == 'written later' and offset:
            return len(data)
        self.unsynced.append((status.st_ino, offset, data))
        written = self.real['pwrite'](descriptor, data, offset)
        if world.crash == 'in the write':
            raise Crash()
        return written

    def synced(self, descriptor):
        inode = os.fstat(descriptor).st_ino
        self.unsynced = [each for each in self.unsynced if each[0] != inode]

    def fdatasync(self, descriptor):
        if self.world.fault:
            self.world.fault = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.real['fdatasync'](descriptor)
        if self.world.flaw != 'never synced':
            self.synced(descriptor)
        self.on_disk()

    def fsync(self, descriptor):
        self.real['fsync'](descriptor)
        if os.readlink('/proc/self/fd/%d' % descriptor) != self.folder:
            self.synced(descriptor)
        elif self.world.flaw != 'folder not synced':
            self.undo = ()
            self.on_disk()

    def on_disk(self):
        self.world.model.written()
        if self.world.crash == 'after the write':
            raise Crash()

    def rename(self, source, target):
        if target == self.path:
            self.undo = self.undo or (self.get(),)
        self.real['rename'](source, target)
        if target == self.path and self.world.crash == 'after the rename':
            raise Crash()

    def posix_fallocate(self, descriptor, offset, size):
        if self.world.full or not self.reserves:
            number = errno.ENOSPC if self.world.full else errno.EOPNOTSUPP
            raise OSError(number, os.strerror(number))
        self.real['posix_fallocate'](descriptor, offset, size)


class Sockets(Quiet):
    """Plays a knockd.Capture with one socket, whose filter passes everything."""

    def __init__(self, world, descriptor):
        self.world, self.descriptor = world, descriptor

    @property
    def taps(self):
        return [self]

    def fileno(self):
        return self.descriptor

    def drops(self):
        return 0

    def recvfrom(self, size):
        world = self.world
        for sent in world.frames:
            if SOCKETS[not sent.slack] == self.descriptor:
                world.frames.remove(sent)
                world.reading = sent.payload
                return frame_of(sent, world.chance.choice(ADDRESSES)), ('eth0', 0, 0, 1, b'')
        raise BlockingIOError(11, 'Resource temporarily unavailable')

    def frames(self, sock):
        return knockd.receive(sock)


class Keeper(played.Keeper):
    """What is wanted is in force when the daemon wakes up next."""

    def fileno(self):
        return KEEPER


class Doors(knockd.Doors):
    """Tells the world of each knock that is honoured."""

    def __init__(self, world, *arguments):
        super().__init__(*arguments)
        self.world = world

    def enter(self, decision, now):
        self.world.honour()
        super().enter(decision, now)
