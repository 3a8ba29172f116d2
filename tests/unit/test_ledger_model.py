"""Nothing is ever honoured twice: random lives of the daemon against a model (ledger_model.py).

The walks have teeth: with each mistake that DESIGN 4 names built in, they find a double use.
"""
import collections
import json

import pytest

import knock
import knockd
from ledger_model import EMPTY, KEYS, Broken, Sent, World

pytestmark = pytest.mark.kernel        # of the rules, not of the interpreter


def walk(seed, patch, flaw='', runs=8, events=60):
    world = World(seed, patch, flaw)
    try:
        world.walk(runs, events)
    finally:
        world.close()
    return world.counts


@pytest.fixture(autouse=True)
def quick_tags(monkeypatch):
    """The tags of the same few keys, computed once: most of a walk's time otherwise."""
    known, tag_at = {}, knockd.tag_at

    def remembered(keys, step):
        place = (keys['tag'], step)
        if place not in known:
            known[place] = tag_at(keys, step)
        return known[place]
    monkeypatch.setattr(knockd, 'tag_at', remembered)


@pytest.mark.parametrize('first', range(0, 48, 12))
def test_nothing_is_honoured_twice_and_what_is_due_is_honoured(first, monkeypatch):
    counts = collections.Counter()
    for seed in range(first, first + 12):
        counts += walk(seed, monkeypatch)
    assert counts['honoured'] > 70 and counts['due'] > 35, counts
    assert counts['replays that the clock lets through'] > 350, counts


# --- what the walks have found, step by step ----------------------------------------------------
@pytest.fixture
def world(monkeypatch):
    made = World(0, monkeypatch)
    made.text = EMPTY
    yield made
    made.close()


def honour_once(world):
    """A knock from a clock that is ahead, honoured; then the ledger is lost."""
    ahead = Sent(0, world.wall + 55000, knock.seal(KEYS[0], bytes(16), knock.encode_plain(
        knockd.Request('open', world.wall + 55000, None, 0, (), None, None, None)),
        (world.wall + 55000) // 30000), 0)
    world.live_through(lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 1
    world.text = None
    return ahead


def test_a_clock_that_was_set_is_noticed_before_the_next_knock_is_judged(world):
    """What wakes the daemon after the step is the replay itself."""
    ahead, right = honour_once(world), world.truth
    world.wall -= 30000

    def set_right_and_replay(world):
        world.set_clock(max(right, world.truth))
        return world.deliver([ahead])
    world.live_through(set_right_and_replay)
    assert world.counts['honoured'] == 1


def test_a_step_forward_counts_whatever_steps_back_came_before(world):
    ahead = honour_once(world)
    world.wall -= 50000
    world.live_through(
        lambda world: world.set_clock(world.wall - 3600000),
        lambda world: world.tick(50000),
        lambda world: world.set_clock(world.wall + 3600500),
        lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 1


def test_a_second_quarantine_outlives_the_process(world):
    ahead = honour_once(world)
    world.wall -= 30000
    world.live_through(lambda world: world.set_clock(world.truth))
    world.live_through(lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 1


def test_no_line_is_appended_behind_a_quarantine_that_is_not_on_disk(world):
    """The disk is full when the clock goes forward; the next knock on disk brings the floor."""
    ahead = honour_once(world)
    world.wall -= 30000

    def set_right_on_a_full_disk(world):
        world.full = True
        world.set_clock(world.truth)

    def knock_when_it_is_over(world):
        world.full = False
        world.tick(63000)
        fresh = Sent(1, world.wall, knock.seal(KEYS[1], bytes(16), knock.encode_plain(
            knockd.Request('open', world.wall, None, 0, (), None, None, None)),
            world.wall // 30000), 0)
        return world.deliver([fresh])
    world.live_through(set_right_on_a_full_disk, knock_when_it_is_over)
    assert world.counts['honoured'] == 2
    world.live_through(lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 2


def test_what_was_written_before_a_crash_is_spent(world):
    ahead = honour_once(world)
    world.text = EMPTY
    world.model.honoured.clear()

    def crash_after_the_write(world):
        world.crash = 'after the write'
        return world.deliver([ahead])
    world.live_through(crash_after_the_write)
    world.live_through(lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 1, 'the crash has cost a knock, and no more'


def test_what_was_not_written_before_a_crash_is_not_honoured_either(world):
    ahead = honour_once(world)
    world.text = EMPTY
    world.model.honoured.clear()

    def crash_before_the_write(world):
        world.crash = 'before the write'
        return world.deliver([ahead])
    world.live_through(crash_before_the_write)
    assert world.counts['honoured'] == 1
    world.live_through(lambda world: world.deliver([ahead]), lambda world: world.deliver([ahead]))
    assert world.counts['honoured'] == 2, 'once, now'


# --- the walks find every mistake ---------------------------------------------------------------
def entry(mark, knock_id, time):
    return json.dumps({'key': mark, 'spent': knock_id, 'time': time}) + '\n'


def floor_of_the_current_window(ledger, mark, knock_id, time, window, paper=None):
    """record() that computes the floor anew: it falls when the window grows."""
    key = ledger.keys.get(mark, {'spent': {}})
    floor = time - (2 * window + 60000)
    spent = {known: when for known, when in list(key['spent'].items()) + [(knock_id, time)]
             if when >= floor}
    ledger.keys[mark] = {'floor': max(0, floor), 'spent': spent, 'paper': [0, 0]}
    return entry(mark, knock_id, time)


def forgetting_by_age(ledger, mark, knock_id, time, window, paper=None):
    """record() that forgets what is older than the window, floor or no floor."""
    key = ledger.keys.get(mark, {'spent': {}})
    spent = {known: when for known, when in key['spent'].items() if when >= time - window}
    ledger.keys[mark] = {'floor': 0, 'spent': dict(spent, **{knock_id: time}), 'paper': [0, 0]}
    return entry(mark, knock_id, time)


def state_without_floor(ledger):
    """state_line() of a quarantine that is kept in memory alone."""
    state = {'knockd': 2, 'id': ledger.server_id, 'floor': 0, 'keys': ledger.keys}
    return json.dumps(state) + '\n'


def without_key_floor(ledger, mark, knock_id, time, paper=None):
    """refusal() that looks at the ids alone."""
    spent = ledger.keys.get(mark, {'spent': {}})['spent']
    return 'replay' if knock_id in spent or time <= ledger.floor else None


def without_file_floor(ledger, mark, knock_id, time, paper=None):
    """refusal() without a quarantine."""
    key = ledger.keys.get(mark, {'spent': {}, 'floor': 0})
    return 'replay' if knock_id in key['spent'] or time < key['floor'] else None


def overlooking_broken_lines(text, server_id, parse=knockd.parse_ledger):
    """parse_ledger() that skips what it cannot read."""
    first, *rest = text.split('\n')
    sound = [first]
    for line in rest:
        try:
            parse('\n'.join([first, line, '']), server_id)
        except knockd.KnockError:
            continue
        sound.append(line)
    return parse('\n'.join(sound + ['']), server_id)


def saved_at_last(file, ledger, line, what, saved=knockd.saved):
    """saved() that lets a knock pass whose line is not on disk."""
    saved(file, ledger, line, what)
    return True


def end_of_the_last_line(text):
    """journal_end() that takes the end of a torn line for a line."""
    return text.rfind('\n') + 1


MISTAKES = [
    ('never synced', None, None),
    ('folder not synced', None, None),
    ('entries by name', None, None),
    ('add makes a ledger', None, None),
    ('written later', None, None),
    ('floor of the current window', 'record', floor_of_the_current_window),
    ('ids forgotten by age', 'record', forgetting_by_age),
    ('quarantine kept in memory alone', 'state_line', state_without_floor),
    ('no second quarantine', 'quarantine', lambda ledger, now, window: None),
    ('no look at the floor of the key', 'refusal', without_key_floor),
    ('no look at the floor of the file', 'refusal', without_file_floor),
]


@pytest.mark.parametrize('flaw,method,mistake', MISTAKES, ids=[each[0] for each in MISTAKES])
def test_a_walk_finds(flaw, method, mistake, monkeypatch):
    if method:
        monkeypatch.setattr(knockd.Ledger, method, mistake)
    with pytest.raises(Broken, match='^honoured twice'):
        for seed in range(20, 20 + 40):
            walk(seed, monkeypatch, flaw)


def test_a_walk_finds_a_knock_that_passes_without_its_line_on_disk(monkeypatch):
    monkeypatch.setattr(knockd, 'saved', saved_at_last)
    with pytest.raises(Broken, match='^honoured twice'):
        for seed in range(20, 20 + 40):
            walk(seed, monkeypatch)


@pytest.mark.parametrize('name,mistake', [
    ('parse_ledger', overlooking_broken_lines), ('journal_end', end_of_the_last_line)])
def test_a_walk_finds_a_torn_or_broken_line_that_is_taken_wrong(name, mistake, monkeypatch):
    monkeypatch.setattr(knockd, name, mistake)
    with pytest.raises(Broken, match='a crash has cost|^honoured twice'):
        for seed in range(20, 20 + 400):
            walk(seed, monkeypatch)


def test_a_walk_finds_a_knock_that_should_have_been_honoured(monkeypatch):
    monkeypatch.setattr(knockd.Ledger, 'refusal', lambda ledger, *knock: 'replay')
    with pytest.raises(Broken, match='^not honoured'):
        walk(0, monkeypatch)
