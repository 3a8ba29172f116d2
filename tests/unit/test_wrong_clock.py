"""A server whose clock is wrong (DESIGN 3.9): the daemon's own functions, a clock of ours."""

import collections
import os

import clocks
import knockd
import pytest

CARRIERS = ('udp', 'icmp', 'syn', 'ports', 'code')
SEED = int(os.environ.get('KNOCK_SEED', '8'))


@pytest.fixture
def box(tmp_path, monkeypatch):
    return clocks.Box(tmp_path, monkeypatch)


def test_in_2001_paper_works_and_is_all_that_works(box):
    assert box.says('clock: 2001-09-09 01:46 UTC is before') == 1
    for via in CARRIERS:
        assert box.hear(clocks.knock_by(box, via, clocks.RIGHT)) == 0, via
    assert box.hear(clocks.paper(box, 1)) == 1
    assert [str(each.source) for each in box.keeper.opened] == ['192.0.2.7/32']


@pytest.mark.parametrize('via', CARRIERS)
def test_within_one_step_of_being_set_right_it_serves(box, via):
    for _ in range(3):
        box.sleep()
    box.wall = clocks.RIGHT
    began = box.mono
    box.sleep()
    assert box.mono - began <= knockd.STEP + 1
    assert box.hear(clocks.knock_by(box, via, box.wall)) == 1
    assert box.says('clock: plausible again') == 1


def test_nothing_is_replayed_neither_then_nor_after_a_restart_nor_in_2001_again(box):
    """What was knocked by clocks that agreed in 2001, on paper, and after the clock was right."""
    used = [clocks.paper(box, 3)]
    assert box.hear(used[0]) == 1
    for via in [name for name in CARRIERS if name != 'code']:   # no code is valid in doubt
        box.mono += 1000        # five knocks a second
        used.append(clocks.knock_by(box, via, box.wall))
        assert box.hear(used[-1]) == 1, via
    box.wall = clocks.RIGHT
    box.sleep()
    for via in CARRIERS:
        box.mono += 1000
        used.append(clocks.knock_by(box, via, box.wall))
        assert box.hear(used[-1]) == 1, via
    for wall in (box.wall, clocks.YEAR_2001, clocks.RIGHT + 500):
        for restart in (False, True):
            box.wall = wall
            box.start() if restart else box.sleep()
            for frames in used + [clocks.paper(box, number) for number in (1, 2)]:
                box.mono += 21000       # whatever was begun is over
                assert box.hear(frames, 0) == 0, (wall, restart, frames)
    assert box.hear(clocks.paper(box, 4)) == 1, 'rising numbers go on'


@pytest.mark.kernel
def test_no_jump_locks_a_client_out_for_longer_than_it_lasts(tmp_path, monkeypatch):
    """Unless he knocked while both clocks ran ahead: then the log names paper, and that opens."""
    counts = collections.Counter()
    print('seeds %d to %d' % (SEED, SEED + 11))
    for seed in range(SEED, SEED + 12):
        counts.update(clocks.walk(tmp_path, monkeypatch, seed, 30))
    print(dict(counts))
    assert min(counts.values()) > 15, 'a walk that goes nowhere proves nothing'


def test_junk_is_one_line_an_hour_if_there_was_any(tmp_path, monkeypatch):
    box = clocks.Box(tmp_path, monkeypatch, clocks.RIGHT)
    for step in range(3 * 120):
        if step < 240:                      # junk in the first two hours, none in the third
            box.hear([(17, bytes([0x9c, 0x40, 0x1f, 0x90, 0, 90, 0, 0]) + bytes(82))])
        box.sleep()
    told = [line for line in box.lines if line.startswith('junk: ')]
    assert len(told) in (2, 3)              # whether or not an hour began under way
    assert sum(int(line.split()[1]) for line in told) == 240
