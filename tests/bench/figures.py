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


def interval(samples):
    """Between what 19 of 20 such runs have their median, however the samples are spread: ranks of
    the binomial distribution, by its normal approximation."""
    ordered, aside = sorted(samples), 0.98 * len(samples) ** 0.5
    first = max(0, int(len(samples) / 2 - aside) - 1)
    return ordered[first], ordered[len(samples) - 1 - first]


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


# The table of the README: what it is called there, and the figures of a row, %s for a program.
PROGRAMS = ('knockd.py', 'fwknopd as shipped', 'fwknopd tuned', 'fwknopd UDP server', 'knockd')
QUIET = 'after 0.5 s of quiet'
ROWS = (
    ('last packet to connect, hot; after 0.5 s of quiet',
     ('  last packet to connect, hot: %s', '  last packet to connect, ' + QUIET + ': %s')),
    ('of it the server\'s share, until the kernel has the opening',
     ('knock to open, the server\'s share, hot: %s',
      'knock to open, the server\'s share, ' + QUIET + ': %s')),
    ('client\'s start to connect, hot; after quiet',
     ('client start to connect, hot: %s', 'client start to connect, ' + QUIET + ': %s')),
    ('junk a second with 20 of 20 knocks open, random bytes; well-formed for each',
     ('junk rate with 20 of 20 open, random bytes: %s',
      'junk rate with 20 of 20 open, well-formed: %s')),
    ('processor time for a million junk packets, random bytes; well-formed, 100 clients',
     ('processor time for a million junk packets, random bytes: %s',
      'processor time for a million junk packets, well-formed: %s')),
    ('a junk packet with 1,000 clients; with 10,000',
     ('1000 clients: %s: junk packet in user space',
      '10000 clients: %s: junk packet in user space')),
    ('knock to open with 1 client; with 10,000',
     ('1 clients: %s: good knock to open', '10000 clients: %s: good knock to open')),
    ('knock to open beside 1 opening; beside 5,000',
     ('1 openings: %s: the next knock to open', '5000 openings: %s: the next knock to open')),
    ('idle: wake-ups a minute', ('idle: wake-ups a minute: %s',)),
    ('idle: memory', ('idle: resident memory: %s',)),
    ('other traffic through the box, of that with no daemon',
     ('throughput, of none: %s',)),
    ('of that with connection tracking alone',
     ('throughput, of connection tracking alone: %s',)),
    ('ledger after 100,000 knocks', ('ledger: size after 100,000 knocks: %s',)))
TRACKING = 'throughput, of none: connection tracking alone'


def short(entry):
    """A median as people write it."""
    value = statistics.median(entry.samples)
    text = '%.2f' % value if value < 10 else '{:,.0f}'.format(value)
    missed = ' (*missed*)' if verdict(entry) == 'MISSED' else ''
    return (text + ' ' + entry.unit).strip() + missed


def summary(about, sections):
    """The table as the README has it; a cell without a figure is empty."""
    known = {entry.name: entry for _, entries in sections for entry in entries if entry.samples}
    lines = ['kernel %(kernel)s, %(processors)s processors, %(nft)s, load %(load)s' % about]
    if TRACKING in known:
        lines.append('connection tracking alone lets through %s of none' % short(known[TRACKING]))
    lines += ['', '| | %s |' % ' | '.join(PROGRAMS), '|---' * (len(PROGRAMS) + 1) + '|']
    for title, names in ROWS:
        cells = ['; '.join([short(known[name % program]) for name in names
                            if name % program in known]) for program in PROGRAMS]
        if any(cells):
            lines.append('| %s | %s |' % (title, ' | '.join(cells)))
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
