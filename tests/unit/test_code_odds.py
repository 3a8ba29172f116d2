"""The chance of blind senders to hit a code (DESIGN 3.5), by running the state machine for a year.

As a program it prints the figures: PYTHONPATH=. python3 tests/unit/test_code_odds.py
"""

import math

import pytest

import knockd

pytestmark = pytest.mark.kernel

STEP, YEAR = 30000, 365 * 86400000
MANY = 3 * 10 ** 6              # no need to count on: it has failed by then
VALID_CODES, ALL_CODES = 3, 10 ** 8     # T - 1, T, T + 1


def flat_out(codes, now, tries):
    """Whenever it is awake."""
    return now


def two_a_step(codes, now, tries):
    """Never a third in one step."""
    return now if tries % 2 else (now // STEP + 1) * STEP


def waiting_for_quiet(wakings):
    """Spends so many wakings, then stays quiet for so long that all may be forgiven."""
    def strategy(codes, now, tries):
        return now if tries % (3 * wakings) else max(now, woken(codes, now)) + knockd.QUIET + 1
    return strategy


def two_and_quiet(codes, now, tries):
    """Never a third without quiet before it."""
    return now if tries % 2 else now + knockd.QUIET + 1


STRATEGIES = [('flat out', flat_out), ('two a step', two_a_step),
              ('two, then quiet', two_and_quiet)]
STRATEGIES += [('%d wakings, then quiet' % wakings, waiting_for_quiet(wakings))
               for wakings in range(1, 9)]


def woken(codes, now):
    """When the carrier is awake again."""
    return max(now, codes.asleep * STEP)


def tries_a_year(strategy):
    """How many different codes are looked at in a year of the strategy."""
    codes, now, tries = knockd.Codes(), YEAR, 0
    while now < 2 * YEAR and tries < MANY:
        now = woken(codes, strategy(codes, now, tries))
        codes.touch('blind', 10000 + tries % 10000, now, {})
        codes.touch('blind', 20000 + tries // 10000 % 10000, now, {})
        tries += 1
    return tries


def chance(tries):
    """Of at least one hit, for one client."""
    return -math.expm1(tries * math.log1p(-VALID_CODES / ALL_CODES))


@pytest.mark.parametrize('name, strategy', STRATEGIES)
def test_a_blind_sender_succeeds_with_less_than_a_tenth_of_a_percent_a_year(name, strategy):
    tries = tries_a_year(strategy)
    print('%s: %d tries, %.4f %% a year and client' % (name, tries, 100 * chance(tries)))
    assert chance(tries) < 0.001


def test_flat_out_it_is_what_the_design_says():
    """3 tries in 121 steps: 26,064 a year, 0.0782 %; a few more before the sleeps are long."""
    assert 26064 <= tries_a_year(flat_out) <= 26064 + 30


if __name__ == '__main__':
    for label, chosen in STRATEGIES:
        number = tries_a_year(chosen)
        print('%-32s %8d tries  %.4f %% a year and client' % (label, number,
                                                              100 * chance(number)))
