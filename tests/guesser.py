"""Who guesses codes: the strategies, and what they get of the real state machine.

A strategy is a generator: it yields (milliseconds, [(source, port), ...]), SYNs that arrive then,
and sees the carrier's state, which no stranger can; so a real one does no better. What counts is
not what he calls a try but every look at the table of valid codes, so that no guess can be free:
each pair of a number and a step is a chance, once, of the likeliest of the 10^8 numbers.
"""
import collections
import random

import knockd

STEP, HOUR, DAY = 30000, 3600000, 86400000
YEAR = 365 * DAY
BEGIN = 2 * YEAR
# RFC 4226: 31 bits modulo 10^8: the lower half of the numbers comes 22 times, the rest 21 times.
LIKELIEST = 22 / 2 ** 31
OWN = '99999999'                # what the owner types; the guesser, cleverly, does not


class Valid:
    """Plays {digits: Credential}; writes down which numbers were looked up in which step."""

    def __init__(self):
        self.step, self.looks, self.chances = 0, 0, 0
        self.tested = collections.deque(maxlen=5000)
        self.known = set()

    def get(self, digits):
        if digits == OWN:
            return 'the owner'
        self.looks += 1
        for step in (self.step - 1, self.step, self.step + 1):
            if (digits, step) not in self.known:
                self.known.add((digits, step))
                self.chances += 1
        if len(self.known) > 10000:
            self.known = {each for each in self.known if each[1] >= self.step - 1}
        return None


def played(strategy, length=YEAR, owner=0):
    """(looks, chance of at least one hit) of a strategy; the owner succeeds so often a day."""
    codes, valid, honoured = knockd.Codes(), Valid(), []
    moves = strategy(codes, honoured)
    every = DAY // owner if owner else 0
    next_success = BEGIN + every
    for now, syns in moves:
        if now >= BEGIN + length:
            break
        # Whoever finds it asleep types again when it wakes, and is faster than the guesser.
        while owner and awake(codes, next_success) <= now:
            typed_at = awake(codes, next_success)
            heard(codes, valid, typed_at, [('owner', 19999), ('owner', 29999)])
            honoured.append(typed_at)
            next_success = typed_at // every * every + every
        heard(codes, valid, now, syns)
    return valid.looks, 1 - (1 - LIKELIEST) ** valid.chances


def heard(codes, valid, now, syns):
    valid.step = now // STEP
    for source, port in syns:
        codes.touch(source, port, knockd.Moment(now, now), valid)


# --- strategies ---------------------------------------------------------------------------------
def numbers():
    """Pairs of ports, all different for a year."""
    while True:
        for second in range(20000, 30000):
            for first in range(10000, 15000):
                yield first, second


def awake(codes, now):
    return max(now, codes.asleep_until)


def pair(source, ports):
    return [(source, port) for port in ports]


def flat_out(codes, honoured, wait=1):
    """A new number whenever it is awake."""
    now = BEGIN
    for ports in numbers():
        now = awake(codes, now)
        yield now, pair('one', ports)
        now += wait


def at_the_end_of_steps(codes, honoured):
    """Spends the three at the end of a step, so that the rest of it is not slept."""
    now = BEGIN
    for ports in numbers():
        now = awake(codes, now) // STEP * STEP + STEP - 1
        yield now, pair('one', ports)


def a_fresh_address_for_each(codes, honoured):
    """An IPv6 /64: never the same source."""
    now = BEGIN
    for number, ports in enumerate(numbers()):
        now = awake(codes, now)
        yield now, pair('2001:db8::%x' % number, ports)
        now += 1


def sleeps_then_quiet(sleeps, more):
    """So many sleeps, then some tries that bring no sleep, then quiet until all is forgiven."""
    def strategy(codes, honoured):
        now, ports = BEGIN, numbers()
        while True:
            for _ in range(3 * sleeps + more):
                now = awake(codes, now)
                yield now, pair('one', next(ports))
                now += 1
            now = max(awake(codes, now), codes.forgiven_at)
    return strategy


def two_then_quiet(hours):
    """Never a third in so many hours."""
    def strategy(codes, honoured):
        now, ports = BEGIN, numbers()
        while True:
            for _ in range(2):
                now = awake(codes, now)
                yield now, pair('one', next(ports))
            now += hours * HOUR + 1
    return strategy


def the_same_in_each_step(sources, at=0):
    """What was free in 0.1: repeats, of one wrong number a source."""
    def strategy(codes, honoured):
        now = BEGIN
        typed = [pair(source, (10000 + source, 20000)) for source in range(sources)]
        while True:
            now = awake(codes, now) // STEP * STEP + at
            for each in typed:
                yield now, each
            now += STEP
    return strategy


def copies_over_the_edge(codes, honoured):
    """Second ports again as TCP repeats them: behind the edge of a step, and ten seconds later."""
    now, ports = BEGIN, numbers()
    while True:
        first, second = next(ports)
        edge = awake(codes, now) // STEP * STEP + STEP
        yield edge - 1, pair('one', (first, second))
        for later in (0, 1, 2999, 9998, 9999, 10000, 15000, 29999):
            yield edge + later, pair('one', (second,))
        now = edge + STEP


def typed_ahead(codes, honoured):
    """First ports from fifty sources before it sleeps, second ports when it wakes."""
    now, ports = BEGIN, numbers()
    while True:
        now = awake(codes, now)
        ready = [next(ports) for _ in range(50)]
        yield now, [(number, first) for number, (first, _) in enumerate(ready)]
        for later in (0, STEP, 2 * STEP - 1):
            yield now + later, [(number, second) for number, (_, second) in enumerate(ready)]
        now += 2 * STEP


def two_a_success(codes, honoured):
    """Never a third, so that the owner is never kept waiting; two more after each success."""
    now, ports = BEGIN, numbers()
    while True:
        seen = len(honoured)
        for _ in range(2):
            now = awake(codes, now)
            yield now, pair('one', next(ports))
        while len(honoured) == seen and now < BEGIN + YEAR:
            now += STEP
            yield now, []


WAITS = (0, STEP, 10 * STEP, HOUR // 2, HOUR, None)     # None: until all is forgiven


def by_table(table):
    """Waits before each try as a table says, by tries since the last sleep and doublings."""
    def strategy(codes, honoured):
        now = BEGIN
        for ports in numbers():
            now = awake(codes, now)
            doublings = min(9, max(0, codes.forgiven_at - now + HOUR - 1) // HOUR)
            wait = table[codes.wrong, doublings]
            now = max(now, codes.forgiven_at) if wait is None else now + wait
            now = awake(codes, now)
            yield now, pair('one', ports)
    return strategy


def searched(seed, rounds=60, length=20 * DAY):
    """The best table that climbing finds from a random one."""
    chance = random.Random(seed)
    places = [(wrong, doublings) for wrong in range(3) for doublings in range(10)]
    best = {place: chance.choice(WAITS) for place in places}
    most = played(by_table(best), length)[0]
    for _ in range(rounds):
        table = dict(best)
        for place in chance.sample(places, 3):
            table[place] = chance.choice(WAITS)
        looks = played(by_table(table), length)[0]
        if looks >= most:
            best, most = table, looks
    return by_table(best)
