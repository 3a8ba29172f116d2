"""A daemon in process, its clocks in our hands: for the tests of what a wrong clock does.

The ledger is a real file; sockets and firewall are played. Every knock is a frame.
"""

import functools
import os
import random
import struct

import knock
import knockd
import played
from segments import tcp_segment

YEAR_2001, RIGHT = 1000000000000, 1800000012345         # milliseconds
SECRET = bytes(range(32))
CLIENT, BOX = bytes([192, 0, 2, 7]), bytes([192, 0, 2, 1])
CONFIG = '''[server]
id = box
hide = tcp/22
carriers = udp, icmp, syn, ports, code
ledger = %s
[client anna]
secret = %s
code = yes
paper = 1700000000:99
'''


class Box:
    """A daemon and its clocks."""

    def __init__(self, folder, patch, wall=YEAR_2001):
        self.wall, self.mono, self.lines, self.patch = wall, 5000, [], patch
        patch.setattr(knockd, 'moment', self.moment)
        patch.setattr(knockd, 'log', lambda text, level=6: self.lines.append(text))
        patch.setattr(knockd, 'is_own', functools.lru_cache(1)(lambda address, interface: True))
        path = str(folder / 'knockd.ini')
        self.config = knockd.parse_config(CONFIG % (
            folder / 'ledger.json', knockd.encode_secret(SECRET)), path)
        with open(path, 'w') as out:
            out.write('written in the year in which this test runs')
        self.keys = self.config.clients['anna'].keys
        knockd.LedgerFile(self.config.ledger).rewrite(knockd.Ledger('box'))
        self.start()

    def moment(self):
        return knockd.Moment(self.wall, self.mono)

    def start(self):
        """A life of the daemon, up to where it would wait."""
        self.keeper = played.Keeper()
        file = knockd.LedgerFile(self.config.ledger)
        ledger, _ = knockd.open_ledger(file, self.config, self.moment())
        state = knockd.State(self.config, ledger)
        self.daemon = played.furnished(self.patch, self.config, state, self.moment(), self.keeper)
        self.daemon.file = file
        self.opened = []

    def sleep(self):
        """To where the daemon would wake up by itself; at most a step."""
        self.daemon.use_leisure()
        patience = self.daemon.patience(self.moment())
        assert 0 < patience <= knockd.STEP + 1
        self.wall, self.mono = self.wall + patience, self.mono + patience
        self.daemon.watch(self.moment())

    def hear(self, frames, wait=20):
        """How many doors these frames open."""
        before = len(self.opened)
        for protocol, body in frames:
            self.mono += wait
            self.wall += wait
            frame = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0,
                                CLIENT, BOX) + body
            self.daemon.hear(frame, 'eth0')
            honoured = len(self.daemon.doors.orders)
            self.daemon.settle_all(self.moment())
            self.opened += ['192.0.2.7'] * honoured
        return len(self.opened) - before

    def says(self, text):
        return sum(text in line for line in self.lines)


def syn(port, badge=bytes(10)):
    return 6, tcp_segment(port, badge)


def knock_by(box, via, time):
    """[(protocol, segment)] of a knock made at that time."""
    keys, step = box.keys, time // knockd.STEP
    if via == 'syn':
        return [syn(22, knockd.syn_badge(keys, step))]
    if via in ('ports', 'code'):
        ports = knockd.step_ports(keys, step) if via == 'ports' else \
            knock.code_ports(knockd.code_at(keys, step))
        return [syn(port) for port in ports]
    request = knockd.Request('open', time, None, 0, (), None, None, None)
    data = knock.seal(keys, os.urandom(16), knock.encode_plain(request), step)
    if via == 'icmp':
        return [(1, struct.pack('>BBHHH', 8, 0, 0, 1, 1) + data)]
    return [(17, struct.pack('>HHHH', 40001, 50000, 8 + len(data), 0) + data)]


def paper(box, number):
    return [syn(port) for port in knockd.paper_ports(box.keys, 1700000000, number)]


# --- a walk: both clocks jump, by seconds to decades --------------------------------------------
SECOND, WINDOW, YEAR = 1000, 60000, 365 * 86400000
MEMORY = 2 * WINDOW + 60000     # DESIGN 4: how far the floor is below the latest stamp
JUMPS = (0, 1, 999, SECOND, SECOND + 1, 2 * SECOND, 29 * SECOND, 30 * SECOND, WINDOW - SECOND,
         WINDOW + SECOND, MEMORY, 3600 * SECOND, 86400 * SECOND, YEAR, 25 * YEAR)


class Broken(AssertionError):
    """A promise was broken."""


class Walk:
    """Truth goes on; the server's clock and the client's are off by what chance will have."""

    def __init__(self, box, seed):
        self.box, self.chance, self.seed = box, random.Random(seed), seed
        self.start, self.began = RIGHT, box.mono
        self.server = self.client = self.latest = 0
        self.sent, self.number, self.counts = [], 0, {'honoured': 0, 'refused': 0, 'way out': 0}

    def truth(self):
        return self.start + self.box.mono - self.began

    def offset(self):
        """Right, or off by one of the jumps, or to just before or after a tick."""
        chance = self.chance
        jump = chance.choice(JUMPS) * chance.choice((-1, 1))
        if chance.random() < 0.3:
            jump += knockd.STEP - (self.truth() + jump) % knockd.STEP + chance.choice((-1, 0, 1))
        return jump

    def set_clocks(self, server, client):
        """Then the daemon has a step to notice, and no more."""
        self.server, self.client = server, client
        self.box.wall = self.truth() + server
        self.box.sleep()
        self.box.mono += 1000       # five knocks a second
        self.box.wall = self.truth() + server

    def event(self):
        """The clocks are set; he knocks, an attacker replays, the clocks are set right."""
        jump = self.offset()
        both = jump if self.chance.random() < 0.2 else -abs(jump)       # ahead is for long
        self.set_clocks(*self.chance.choice((
            (jump, 0), (0, jump), (both, both), (jump, self.offset()), (0, 0))))
        self.knock()
        self.replay()
        if self.chance.random() < 0.5:
            self.set_clocks(0, 0)
            self.knock()
            self.replay()

    def knock(self):
        """Honoured if, and only if, both clocks agree and it is not below the floor."""
        box, stamp = self.box, self.truth() + self.client + 20
        if stamp < 0 or box.wall < 0:
            return
        agree = abs(self.server - self.client) <= WINDOW
        expected = agree and stamp >= self.latest - MEMORY
        frames = knock_by(box, 'udp', stamp)
        if box.hear(frames) != expected:
            raise Broken('seed %d: server %+d ms, client %+d ms: expected %s; %s' % (
                self.seed, self.server, self.client, expected, box.lines[-3:]))
        if expected:
            self.sent.append(frames)
            self.latest = max(self.latest, stamp)
        self.counts['honoured' if expected else 'refused'] += 1
        if agree and not expected:
            self.way_out()

    def way_out(self):
        """Locked out though the clocks agree: he knocked before by clocks that ran ahead."""
        box = self.box
        if not [line for line in box.lines if 'only paper knocks count' in line]:
            raise Broken('seed %d: the log names no way out: %s' % (self.seed, box.lines))
        self.number += 1
        if self.number < 100 and box.hear(paper(box, self.number)) != 1:
            raise Broken('seed %d: paper %d does not open' % (self.seed, self.number))
        self.counts['way out'] += 1

    def replay(self):
        for frames in self.chance.sample(self.sent, min(3, len(self.sent))) + self.sent[-1:]:
            self.box.mono += 1000
            self.box.wall += 1000
            if self.box.hear(frames, 0):
                raise Broken('seed %d: honoured twice' % self.seed)


def walk(folder, patch, seed, events):
    """Counts of one walk; a new ledger and a new daemon each."""
    made = Walk(Box(folder, patch, RIGHT), seed)
    for _ in range(events):
        made.event()
        if made.chance.random() < 0.1:
            made.box.start()
    return made.counts
