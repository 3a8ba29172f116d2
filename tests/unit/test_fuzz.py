"""200,000 mutated frames; 5,000,000 are in tests/chaos. KNOCK_SEED chooses others."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import fuzz     # noqa: E402

pytestmark = pytest.mark.kernel
FRAMES = 200000


def test_mutated_frames_raise_nothing_open_nothing_and_kernel_and_parser_agree(monkeypatch):
    taken, grown = fuzz.shake(monkeypatch, int(os.environ.get('KNOCK_SEED', '8')), FRAMES)
    print('%d frames, %d of them candidates, %d kB more' % (FRAMES, taken, grown))
    assert FRAMES / 20 < taken < FRAMES * 0.9, 'a corpus of one kind proves nothing'
    assert grown < 4000
