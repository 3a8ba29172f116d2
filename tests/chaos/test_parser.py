"""5,000,000 mutated frames: see tests/fuzz.py. About five minutes."""

import os
import time

import fuzz
import pytest

pytestmark = pytest.mark.chaos
FRAMES = int(os.environ.get('KNOCK_FRAMES', '5000000'))


def test_mutated_frames_raise_nothing_open_nothing_and_kernel_and_parser_agree(monkeypatch):
    began = time.monotonic()
    taken, grown = fuzz.shake(monkeypatch, int(os.environ.get('KNOCK_SEED', '88')), FRAMES)
    print('%d frames in %d s, %d of them candidates, %d kB more' % (
        FRAMES, time.monotonic() - began, taken, grown))
    assert FRAMES / 20 < taken
    assert grown < 4000
