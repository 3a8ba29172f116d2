"""A server whose clock stands in 2001 (DESIGN 3.9): the daemon's own functions, a clock of ours.

The ledger is a real file; sockets and firewall are played. Every knock is a frame.
"""

import ipaddress
import os
import struct

import pytest

import knockd

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
paper = 1700000000:9
'''
CLOCK_CARRIERS = ('udp', 'icmp', 'syn', 'ports', 'code')


class Deaf:
    """Plays the sockets."""

    def load(self, tokens, program):
        self.tokens = tokens

    def drops(self):
        return 0


class Doors:
    """Plays the firewall; remembers what was opened."""

    def __init__(self):
        self.opened, self.openings = [], {}

    def open(self, openings, now):
        self.opened.append(openings[0].source)

    def tend(self, now):
        pass


class Box:
    """A daemon and its clocks."""

    def __init__(self, folder, patch):
        self.wall, self.mono, self.lines = YEAR_2001, 5000, []
        patch.setattr(knockd, 'moment', self.moment)
        patch.setattr(knockd, 'log', lambda text, level=6: self.lines.append(text))
        patch.setattr(knockd, 'is_own', lambda address, interface: True)
        path = str(folder / 'knockd.ini')
        self.config = knockd.parse_config(CONFIG % (
            folder / 'ledger.json', knockd.encode_secret(SECRET)), path)
        with open(path, 'w') as out:
            out.write('written in the year in which this test runs')
        self.keys = self.config.clients['anna'].keys
        knockd.LedgerFile(self.config.ledger).save(knockd.Ledger('box'))
        self.start()

    def moment(self):
        return knockd.Moment(self.wall, self.mono)

    def start(self):
        """A life of the daemon, up to where it would wait."""
        self.daemon = knockd.Daemon(self.config)
        self.daemon.datagrams, self.daemon.syns = Deaf(), Deaf()
        self.daemon.firewall = self.doors = Doors()
        ledger, _ = knockd.open_ledger(self.daemon.file, self.config, self.moment())
        self.daemon.state = knockd.State(self.config, ledger)
        self.daemon.turn(self.moment())

    def sleep(self):
        """To where the daemon would wake up by itself; at most a step."""
        patience = self.daemon.patience(self.moment())
        assert 0 < patience <= knockd.STEP + 1
        self.wall, self.mono = self.wall + patience, self.mono + patience
        self.daemon.watch(self.moment())

    def hear(self, frames, wait=20):
        """How many doors these frames open."""
        before = len(self.doors.opened)
        for protocol, body in frames:
            self.mono += wait
            self.wall += wait
            frame = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0,
                                CLIENT, BOX) + body
            hear = self.daemon.hear_syn if protocol == 6 else self.daemon.hear_datagram
            hear(4, frame, 'eth0', self.moment())
        return len(self.doors.opened) - before

    def says(self, text):
        return sum(text in line for line in self.lines)


def syn(port, token=bytes(10)):
    return 6, struct.pack('>HH8sBB2sHH', 40001, port, token[:8], 5 << 4, 2, token[8:], 0, 0)


def knock_by(box, via, time):
    """[(protocol, segment)] of a knock made at that time."""
    keys, step = box.keys, time // knockd.STEP
    if via == 'syn':
        return [syn(22, knockd.syn_token(keys, step))]
    if via in ('ports', 'code'):
        ports = knockd.step_ports(keys, step) if via == 'ports' else \
            knockd.code_ports(knockd.code_at(keys, step))
        return [syn(port) for port in ports]
    request = knockd.Request('open', time, None, 0, (), None, None, None)
    data = knockd.seal(keys, os.urandom(16), knockd.encode_plain(request), step)
    if via == 'icmp':
        return [(1, struct.pack('>BBHHH', 8, 0, 0, 1, 1) + data)]
    return [(17, struct.pack('>HHHH', 40001, 50000, 8 + len(data), 0) + data)]


def paper(box, number):
    return [syn(port) for port in knockd.paper_ports(box.keys, 1700000000, number)]


@pytest.fixture
def box(tmp_path, monkeypatch):
    return Box(tmp_path, monkeypatch)


def test_in_2001_paper_works_and_is_all_that_works(box):
    assert box.says('clock: 2001-09-09 01:46 UTC is before') == 1
    for via in CLOCK_CARRIERS:
        assert box.hear(knock_by(box, via, RIGHT)) == 0, via
    assert box.hear(paper(box, 1)) == 1
    assert box.doors.opened == [ipaddress.ip_address('192.0.2.7')]


@pytest.mark.parametrize('via', CLOCK_CARRIERS)
def test_within_one_step_of_being_set_right_it_serves(box, via):
    for _ in range(3):
        box.sleep()
    box.wall = RIGHT
    began = box.mono
    box.sleep()
    assert box.mono - began <= knockd.STEP + 1
    assert box.hear(knock_by(box, via, box.wall)) == 1
    assert box.says('clock: plausible again') == 1


def test_nothing_is_replayed_neither_then_nor_after_a_restart_nor_in_2001_again(box):
    """What was knocked by clocks that agreed in 2001, on paper, and after the clock was right."""
    used = [paper(box, 3)]
    assert box.hear(used[0]) == 1
    for via in CLOCK_CARRIERS:
        box.mono += 1000        # five knocks a second
        used.append(knock_by(box, via, box.wall))
        assert box.hear(used[-1]) == 1, via
    box.wall = RIGHT
    box.sleep()
    for via in CLOCK_CARRIERS:
        box.mono += 1000
        used.append(knock_by(box, via, box.wall))
        assert box.hear(used[-1]) == 1, via
    for wall in (box.wall, YEAR_2001, RIGHT + 500):
        for restart in (False, True):
            box.wall = wall
            box.start() if restart else box.sleep()
            for frames in used + [paper(box, number) for number in (1, 2)]:
                box.mono += 21000       # whatever was begun is over
                assert box.hear(frames, 0) == 0, (wall, restart, frames)
    assert box.hear(paper(box, 4)) == 1, 'rising numbers go on'
