"""`tox -e fuzz`: every promise of shaken.py for its share of 10 minutes, and mutated frames.

KNOCK_FUZZ_SECONDS is the time of all together, KNOCK_SEED chooses other inputs.
"""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import frames       # noqa: E402
import shaken       # noqa: E402

SECONDS = int(os.environ.get('KNOCK_FUZZ_SECONDS', '600'))
SEED = int(os.environ.get('KNOCK_SEED', '1'))
FRAMES_A_SECOND = 3000


@pytest.mark.parametrize('name', sorted(shaken.PROMISES))
def test_no_error_but_the_one_no_hang_and_bounded_memory(name, tmp_path):
    seconds = SECONDS / (len(shaken.PROMISES) + 1)
    tried = shaken.shake(name, seconds, SEED, str(tmp_path / 'input'))
    print('%s: %d inputs' % (name, tried))
    assert tried > 20


def test_mutated_frames(monkeypatch):
    count = SECONDS * FRAMES_A_SECOND // (len(shaken.PROMISES) + 1)
    taken, grown = frames.shake(monkeypatch, SEED, count)
    print('%d frames, %d of them candidates, %d kB more' % (count, taken, grown))
    assert grown < 4000
