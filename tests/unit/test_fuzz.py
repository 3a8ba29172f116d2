"""200,000 mutated frames, and a second of each promise of tests/fuzz; 5,000,000 frames are in
tests/chaos, ten minutes of the promises in `tox -e fuzz`. KNOCK_SEED chooses others."""

import os
import sys

import pytest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TESTS, os.path.join(TESTS, 'fuzz')]
import frames       # noqa: E402

pytestmark = pytest.mark.kernel
FRAMES = 200000
SEED = int(os.environ.get('KNOCK_SEED', '8'))


def test_mutated_frames_raise_nothing_open_nothing_and_kernel_and_parser_agree(monkeypatch):
    taken, grown = frames.shake(monkeypatch, SEED, FRAMES)
    print('%d frames, %d of them candidates, %d kB more' % (FRAMES, taken, grown))
    assert FRAMES / 20 < taken < FRAMES * 0.9, 'a corpus of one kind proves nothing'
    assert grown < 4000


def test_whatever_is_read_raises_nothing_but_the_one_error(tmp_path):
    pytest.importorskip('hypothesis', reason='tox -e kernel has it')
    import shaken
    for name in sorted(shaken.PROMISES):
        assert shaken.shake(name, 1, SEED, str(tmp_path / 'input'))
