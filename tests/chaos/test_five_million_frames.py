"""5,000,000 mutated frames, a million with each seed: see tests/fuzz. About five minutes."""

import os
import time

import frames
import pytest

pytestmark = pytest.mark.chaos
FRAMES, SEED = 1000000, int(os.environ.get('KNOCK_SEED', '88'))


@pytest.mark.parametrize('seed', range(SEED, SEED + 5))
def test_mutated_frames_raise_nothing_open_nothing_and_kernel_and_parser_agree(
        monkeypatch, seed):
    began = time.monotonic()
    taken, grown = frames.shake(monkeypatch, seed, FRAMES)
    print('%d frames in %d s, %d of them candidates, %d kB more' % (
        FRAMES, time.monotonic() - began, taken, grown))
    assert FRAMES / 20 < taken
    assert grown < 4000
