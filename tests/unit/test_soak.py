"""A day in seconds: 2,880 steps, clients coming and going, and nothing grows."""

import gc
import os
import random
import socket

import clocks
import knockd
import pytest

pytestmark = pytest.mark.kernel
STEPS, SEED = 2880, int(os.environ.get('KNOCK_SEED', '8'))
CLIENT = '\n[client %s]\nsecret = %s\ncode = yes\n'


CAPTURE = knockd.Capture        # the real one; clocks plays it


class Filters(knockd.Capture):
    """The kernel's sockets, but of a family that needs no privilege; remembers their programs."""

    def attach(self, shares, program):
        CAPTURE.attach(self, shares, program)
        self.size = sum(len(program(share, share is shares[0])) for share in shares)

    def drops(self):
        return 0


def measured(box):
    """(objects, descriptors, bytes of what the ledger knows, instructions in the filters)"""
    gc.collect()
    return (len(gc.get_objects()), len(os.listdir('/proc/self/fd')),
            len(box.daemon.state.ledger.state_line()),
            box.daemon.hearing.datagrams.size + box.daemon.hearing.syns.size)


def test_a_day_leaves_memory_descriptors_ledger_and_filter_as_they_were(tmp_path, monkeypatch):
    """Five clients at any time, another one in place of the eldest every hour."""
    chance = random.Random(SEED)
    monkeypatch.setattr(knockd, 'packet_socket', lambda protocol: socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM))
    box = clocks.Box(tmp_path, monkeypatch, clocks.RIGHT)
    base, secrets = clocks.CONFIG % (box.config.ledger, knockd.encode_secret(clocks.SECRET)), []
    hearing = box.daemon.hearing
    hearing.datagrams, hearing.syns = Filters(8), Filters(1)
    marks, honoured, began = [], 0, box.mono

    def hire():
        secrets.append(chance.getrandbits(256).to_bytes(32, 'big'))
        text = base + ''.join(CLIENT % ('c%d' % number, knockd.encode_secret(secret))
                              for number, secret in list(enumerate(secrets))[-4:])
        with open(box.config.path, 'w') as out:
            out.write(text)
        os.chmod(box.config.path, 0o600)
        box.daemon.reload(box.moment())
        box.daemon.settle_all(box.moment())
    for step in range(STEPS):
        if step % 120 == 0:
            hire()
        box.sleep()
        box.keys = chance.choice(list(box.daemon.config.clients.values())).keys
        via = chance.choice(('udp', 'icmp', 'syn', 'ports', 'code'))
        if step % 3 == 0:
            honoured += box.hear(clocks.knock_by(box, via, box.wall + 20))
            del box.opened[:]
        if step % 480 == 479:
            marks.append(measured(box))
            print('%5.1f hours: %d objects, %d descriptors, a ledger of %d bytes, filters of %d '
                  'instructions' % (((box.mono - began) / 3600000,) + marks[-1]))
    for capture in (hearing.datagrams, hearing.syns):
        capture.attach([], None)
    assert honoured == STEPS // 3, [line for line in box.lines if 'refused' in line][:3]
    first, last = marks[1], marks[-1]
    assert last[0] - first[0] < 1500 and last[1] == first[1] and last[3] <= first[3] + 16
    assert last[2] < first[2] + 2500, 'a key that has left costs its last knocks, and no more'
