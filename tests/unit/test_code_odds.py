"""The best chance that a guesser of codes has in a year, for each client: the real state machine.

As a program it prints the figures: PYTHONPATH=.:tests python3 tests/unit/test_code_odds.py
"""
import pytest

import knockd
from guesser import (DAY, a_fresh_address_for_each, at_the_end_of_steps, copies_over_the_edge,
                     flat_out, played, searched, sleeps_then_quiet, the_same_in_each_step,
                     two_a_success, two_then_quiet, typed_ahead)

pytestmark = pytest.mark.kernel

LIMIT = 0.001
STRATEGIES = [
    ('flat out', flat_out), ('at the end of steps', at_the_end_of_steps),
    ('a fresh address for each', a_fresh_address_for_each),
    ('two, then an hour of quiet', two_then_quiet(1)),
    ('the same from 1 source', the_same_in_each_step(1)),
    ('the same from 2 sources', the_same_in_each_step(2)),
    ('the same from 40 sources', the_same_in_each_step(40, 29999)),
    ('copies over the edge', copies_over_the_edge),
    ('first ports ahead', typed_ahead)]
STRATEGIES += [('%d sleeps and %d, then quiet' % (sleeps, more), sleeps_then_quiet(sleeps, more))
               for sleeps in (1, 2, 3, 5, 7, 8, 9, 12, 40) for more in (0, 2)]
STRATEGIES += [('the best found, seed %d' % seed, seed) for seed in (1, 2)]
NAMES = [name for name, _ in STRATEGIES]


def shown(name, owner, looks, chance):
    print('%-32s owner %5d a day %8d looks  %.4f %% a year and client' % (
        name, owner, looks, 100 * chance))


@pytest.mark.parametrize('name,strategy', STRATEGIES, ids=NAMES)
def test_a_blind_sender_succeeds_with_less_than_a_tenth_of_a_percent_a_year(name, strategy):
    """For each client: with more of them a number may be anybody's, but each has three a step."""
    if isinstance(strategy, int):
        strategy = searched(strategy)
    looks, chance = played(strategy)
    shown(name, 0, looks, chance)
    assert 0 < chance < LIMIT
    assert looks <= 3 * (365 * 24 + 10), 'three an hour, and those before the sleeps are long'


@pytest.mark.parametrize('owner', [1, 5, 24, 2880])
@pytest.mark.parametrize('strategy', [flat_out, two_a_success])
def test_successes_of_owners_give_a_guesser_nothing(strategy, owner):
    """One who knocks five times a day, ten clients, or one who helps: a knock in each step."""
    looks, chance = played(strategy, owner=owner)
    shown(strategy.__name__, owner, looks, chance)
    assert chance <= LIMIT


def test_the_strategies_are_sharp_enough_to_see_what_0_1_gave_away(monkeypatch):
    """A carrier that does not count repeats, or forgives with each success, is found out."""
    class Forgiving(knockd.Codes):
        def touch(self, source, port, now, codes):
            found = super().touch(source, port, now, codes)
            if found:
                self.wrong = self.forgiven_at = 0
            return found

    class Blind(knockd.Codes):
        def fail(self, now):
            if self.typing_before != self.typing_now:
                super().fail(now)

        def touch(self, source, port, now, codes):
            typing = self.typing.get(source)
            self.typing_before = typing and typing.tried
            self.typing_now = (typing and typing.first, port)
            return super().touch(source, port, now, codes)
    monkeypatch.setattr(knockd, 'Codes', Forgiving)
    assert played(flat_out, owner=5)[1] > LIMIT
    monkeypatch.setattr(knockd, 'Codes', Blind)
    assert played(the_same_in_each_step(2), 30 * DAY)[1] > LIMIT


if __name__ == '__main__':
    for label, chosen in STRATEGIES:
        shown(label, 0, *played(searched(chosen) if isinstance(chosen, int) else chosen))
    for often in (1, 5, 24, 2880):
        shown('flat out', often, *played(flat_out, owner=often))
