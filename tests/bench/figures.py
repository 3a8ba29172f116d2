"""A figure, its verdict, the tables that show it, and the bisection: nothing here measures."""

import collections
import statistics

# limit: what the median may be at most (or at least, where `least`); None: told, not judged
Figure = collections.namedtuple('Figure', 'name unit samples limit least note')

COLUMNS = ('FIGURE', 'TARGET', 'MEDIAN', 'SPREAD', '', '')
WIDTHS = (58, 12, 14, 26, 7)


def figure(name, unit, samples, limit=None, least=False, note=''):
    return Figure(name, unit, [value for value in samples if value is not None], limit, least, note)


def ratio(name, ours, theirs, limit, least=False):
    """How much of one median another is; None where there is nothing to compare."""
    samples = [statistics.median(ours.samples) / statistics.median(theirs.samples)] \
        if ours.samples and theirs.samples and statistics.median(theirs.samples) else []
    return figure(name, 'x', samples, limit, least)


def verdict(entry):
    if not entry.samples:
        return 'MISSED' if entry.limit is not None else 'none'
    median = statistics.median(entry.samples)
    if entry.limit is None:
        return ''
    return 'ok' if (median >= entry.limit if entry.least else median <= entry.limit) else 'MISSED'


def row(entry):
    """What a table shows of a figure."""
    target = '' if entry.limit is None else '%s %g' % ('>=' if entry.least else '<=', entry.limit)
    if not entry.samples:
        return (entry.name, target, 'none', '', verdict(entry), entry.note)
    low, high = min(entry.samples), max(entry.samples)
    spread = '%.4g..%.4g, n=%d' % (low, high, len(entry.samples)) if len(entry.samples) > 1 else ''
    median = '%.6g' % round(statistics.median(entry.samples), 2)
    return (entry.name, target, (median + ' ' + entry.unit).strip(), spread, verdict(entry),
            entry.note)


def line(cells):
    """A line for a terminal."""
    return '  '.join([cell.ljust(width) for cell, width in zip(cells, WIDTHS)] +
                     [cells[-1]]).rstrip()


def markdown(about, sections):
    """A section for the README. about: {what: text}; sections: [(name, [Figure])]"""
    lines = ['## Figures', ''] + ['%s: %s  ' % entry for entry in about.items()]
    for name, entries in sections:
        lines += ['', '### ' + name, '', '| figure | target | median | spread | | |',
                  '|---|---|---|---|---|---|']
        lines += ['| %s |' % ' | '.join(cell.strip().replace('|', '\\|').replace('<=', '≤')
                                        .replace('>=', '≥') for cell in row(entry))
                  for entry in entries]
    return '\n'.join(lines) + '\n'


def highest(rates, holds):
    """The highest of these ascending rates at which holds(rate), None if it is none of them.

    The top first, for who stands that needs no search; then as if what holds at one rate holds at
    every lower one."""
    if holds(rates[-1]):
        return rates[-1]
    low, high = -1, len(rates) - 1          # rates[low] holds, rates[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(rates[middle]) else (low, middle)
    return rates[low] if low >= 0 else None
