"""Walks of both clocks, and lives of the ledger, in greater number: see tests/unit."""

import collections
import os

import clocks
import pytest
from ledger_model import World

pytestmark = pytest.mark.chaos
SEED = int(os.environ.get('KNOCK_SEED', '1000'))


@pytest.mark.parametrize('first', range(SEED, SEED + 500, 100))
def test_no_jump_locks_a_client_out_for_longer_than_it_lasts(tmp_path, monkeypatch, first):
    counts = collections.Counter()
    for seed in range(first, first + 100):
        counts.update(clocks.walk(tmp_path, monkeypatch, seed, 40))
    print('seeds %d to %d: %s' % (first, first + 99, dict(counts)))
    assert min(counts.values()) > 500


@pytest.mark.parametrize('first', range(SEED, SEED + 1500, 500))
def test_nothing_is_honoured_twice_and_what_is_due_is_honoured(monkeypatch, first):
    counts = collections.Counter()
    for seed in range(first, first + 500):
        world = World(seed, monkeypatch)
        try:
            world.walk(8, 60)
        finally:
            world.close()
        counts += world.counts
    print('seeds %d to %d: %s' % (first, first + 499, dict(counts)))
    assert counts['honoured'] > 3000 and counts['due'] > 1500, counts
