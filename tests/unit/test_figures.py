"""What the bench says follows from what it measured: bisection, verdicts, tables."""

import math
import os
import random
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                'bench'))

import figures      # noqa: E402  the path above

RATES = [100 * 2 ** power for power in range(13)]


@pytest.mark.parametrize('limit', [0, 99, 100, 101, 3200, 409599, 409600, 10 ** 9])
def test_the_bisection_finds_what_a_search_from_below_would(limit):
    tried = []

    def holds(rate):
        tried.append(rate)
        return rate <= limit
    expected = max([rate for rate in RATES if rate <= limit], default=None)
    assert figures.highest(RATES, holds) == expected
    assert len(tried) <= 5 and len(set(tried)) == len(tried)


def test_the_median_is_what_is_judged_and_an_empty_figure_with_a_target_is_missed():
    assert figures.verdict(figures.figure('', 'ms', [1, 2, 90], 2)) == 'ok'
    assert figures.verdict(figures.figure('', 'ms', [1, 3, 90], 2)) == 'MISSED'
    assert figures.verdict(figures.figure('', '1/s', [9, 10, 11], 10, True)) == 'ok'
    assert figures.verdict(figures.figure('', '1/s', [9, 9, 11], 10, True)) == 'MISSED'
    assert figures.verdict(figures.figure('', 'ms', [None], 2)) == 'MISSED'
    assert figures.verdict(figures.figure('', 'ms', [5])) == ''


def test_a_ratio_is_of_medians_and_missing_where_a_side_is():
    ours, theirs = figures.figure('', 'ms', [9, 10, 30]), figures.figure('', 'ms', [40, 40, 1])
    assert figures.ratio('', ours, theirs, 0.25).samples == [0.25]
    assert figures.ratio('', ours, figures.figure('', 'ms', []), 1).samples == []


def test_both_tables_show_target_median_spread_and_verdict():
    entry = figures.figure('a|b', 'ms', [1, 2.345, 9], 2, note='why')
    assert figures.row(entry) == ('a|b', '<= 2', '2.35 ms', '1..9, n=3', 'MISSED', 'why')
    text = figures.markdown({'date': '2026-11-24'}, [('times', [entry])])
    assert '| a\\|b | ≤ 2 | 2.35 ms | 1..9, n=3 | MISSED | why |\n' in text
    assert text.startswith('## Figures\n\ndate: 2026-11-24  \n\n### times\n')


def test_between_what_a_median_is_holds_in_19_of_20_runs():
    chance, held = random.Random(1), 0
    for _ in range(1000):
        low, high = figures.interval([chance.expovariate(1) for _ in range(40)])
        held += low <= math.log(2) <= high      # the median of that distribution
    assert 940 <= held <= 980
    assert figures.interval([3]) == (3, 3) and figures.interval([1, 2]) == (1, 2)
