"""The keeper's thread with a firewall that is played: what it runs, in which order, and what it
says. The real one: tests/e2e/test_keeper.py."""

import collections
import contextlib
import ipaddress
import socket
import threading
import time
import types

import knockd
import pytest
from ruleset_event import message

Seen = collections.namedtuple('Seen', 'ours box accepts taken_ports decoys')
CONFIG = knockd.parse_config('[server]\nid = home\nhide = tcp/22\n', '/nowhere/knockd.ini')
OTHER = CONFIG._replace(hide=(knockd.Service(6, 25, 25),))
# The kernel says that our table was deleted.
GONE = message(2, 'knockd')
FINE = Seen('ours', 'accepts all', ([], []), set(), {})


class Tool:
    """Plays nft: its texts say what they are for."""
    name, sysctls = 'played', ()

    def whole(self, config, seen, decoys, openings, now):
        return [(['load'], '%s %s' % (knockd.format_services(config.hide), ' '.join(openings)))]

    def change(self, before, after, now):
        if list(before) == list(after):
            return []
        return [(['change'], ' '.join(after))]

    def nothing(self):
        return [(['nothing'], '')]


class Box:
    """Plays the kernel, and remembers."""

    def __init__(self, monkeypatch):
        self.ran, self.fails, self.gate, self.seen = [], {}, threading.Event(), FINE
        self.gate.set()
        self.listing = None     # a Process: looking takes until that is killed
        self.tells, self.seconds = [], 0        # what the kernel says of each command; its time
        self.foreign, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.ends = [self.foreign, ours]
        monkeypatch.setattr(knockd, 'ruleset_events', lambda: ours)
        monkeypatch.setattr(knockd, 'see_box', self.see)
        monkeypatch.setattr(knockd, 'run', self.run)
        monkeypatch.setattr(knockd, 'decoy_ports', lambda config, seen: ([], set()))
        monkeypatch.setattr(knockd, 'live', lambda openings, now: openings)
        # Its openings are letters.
        monkeypatch.setattr(knockd.Keeper, 'unspent', lambda self, wanted: wanted.openings)
        monkeypatch.setattr(knockd, 'guard_script', lambda commands, variables: 'guard')
        monkeypatch.setattr(knockd, 'RETRY_TIME', 50)
        work = knockd.Keeper.work

        def until_the_end(keeper):
            with contextlib.suppress(SystemExit):
                work(keeper)
        monkeypatch.setattr(knockd.Keeper, 'work', until_the_end)
        self.keeper = knockd.Keeper(Tool(), False)
        self.done = []

    def end(self, threads):
        """Its thread must not outlive the test, or it has a share in all later ones."""
        def leave():
            raise SystemExit
        self.keeper.wait = leave
        self.gate.set()
        self.keeper.looks.give_way()
        for thread in threads:
            while thread.is_alive():
                self.keeper.called.ring()
                thread.join(0.01)
        for end in self.ends:
            end.close()

    def see(self, tool, config, looks=None):
        self.ran.append('look' if looks else 'see')
        if looks and self.listing:
            looks.begin(self.listing)
            until(lambda: self.listing.killed)
            raise knockd.KnockError('nft failed (-9)')
        return self.seen

    def run(self, argv, text='', seconds=0):
        self.gate.wait(5)
        if self.fails.get(argv[0], 0) > 0:
            self.fails[argv[0]] -= 1
            self.ran.append(argv[0] + ' failed')
            raise knockd.KnockError('no ' + argv[0])
        time.sleep(self.seconds)
        for event in self.tells:
            self.foreign.send(event)
        self.ran.append(argv[0] + ' ' + text)

    def wait(self, number):
        """Until that is in force; returns all that was said."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            self.done += self.keeper.results()
            if any(done.number >= number and done.error is None for done in self.done):
                return self.done
            time.sleep(0.002)
        raise AssertionError((self.ran, self.done))

    def changes(self):
        return [each for each in self.ran if each not in ('see', 'look')]


@pytest.fixture
def box(monkeypatch):
    others = set(threading.enumerate())
    made = Box(monkeypatch)
    # It keeps no process from ending.
    assert [thread.daemon for thread in set(threading.enumerate()) - others] == [True]
    yield made
    made.end(set(threading.enumerate()) - others)


def settled(box):
    box.wait(box.keeper.want(CONFIG, ('a',)))
    until(lambda: box.keeper.standing.seen)
    del box.ran[:], box.done[:]
    return box


def until(predicate):
    end = time.monotonic() + 5
    while not predicate():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_first_is_loaded_whole_and_openings_alone_are_elements(box):
    first = box.wait(box.keeper.want(CONFIG, ('a',)))
    assert first[0].loaded.guard == 'guard'
    until(lambda: box.ran == ['see', 'load tcp/22 a', 'look'])
    later = box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert box.changes()[1:] == ['change a b'] and later[-1].loaded is None


def test_what_changes_nothing_runs_nothing(box):
    settled(box).wait(box.keeper.want(CONFIG, ('a',)))
    box.wait(box.keeper.want(CONFIG._replace(window=1), ('a',)))
    assert box.changes() == [], 'nor does a config with the same rules'


def test_another_config_is_loaded_whole(box):
    settled(box).wait(box.keeper.want(OTHER, ('a',)))
    assert box.changes() == ['load tcp/25 a']


def test_the_newest_wins_and_those_between_are_in_force_with_it(box):
    settled(box).gate.clear()
    numbers = [box.keeper.want(CONFIG, ('a', str(count))) for count in range(20)]
    time.sleep(0.05)
    last = box.keeper.want(CONFIG, ('z',))
    box.gate.set()
    done = box.wait(last)
    assert box.changes()[-1] == 'change z' and len(box.changes()) == 2
    assert [each.number for each in done][-1] == last == numbers[-1] + 1


def test_elements_that_fail_are_loaded_whole(box):
    settled(box).fails['change'] = 1
    done = box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert box.changes() == ['change failed', 'load tcp/22 a b']
    assert [each.error for each in done] == [None]


def test_what_fails_altogether_is_told_and_tried_again_a_moment_later(box):
    settled(box).fails.update(change=1, load=2, nothing=9)
    began = time.monotonic()
    done = box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert time.monotonic() - began > 0.04
    assert [str(each.error) for each in done] == ['no load', 'None'] or \
        [str(each.error) for each in done] == ['no load', 'no load', 'None']
    assert box.changes()[-1] == 'load tcp/22 a b'


def tell(box):
    """The kernel says that a rule was changed."""
    box.foreign.send(message(6))


def test_what_is_put_back_is_looked_at_right_after(box):
    """What of ours stands in others' chains may be gone as well."""
    settled(box).keeper.looks.rested = 0
    box.foreign.send(GONE)
    until(lambda: box.keeper.standing.seen and len(box.ran) > 1)
    assert box.ran == ['load tcp/22 a', 'look']


def test_a_foreign_change_that_harms_us_is_put_back_and_one_that_does_not_is_left(box):
    settled(box)
    tell(box)
    until(lambda: 'look' in box.ran)
    assert box.changes() == []
    box.seen = FINE._replace(ours='half of it')
    tell(box)
    until(lambda: box.changes() == ['load tcp/22 a'])
    until(box.keeper.results)
    box.seen = box.seen._replace(box='drops now')
    tell(box)
    until(lambda: len(box.changes()) == 2)


def test_a_table_of_ours_that_is_gone_is_back_without_a_rest(box):
    """Else a flush beside a slow look left the port open for twice as long again."""
    settled(box).keeper.looks.rested = knockd.moment().mono + 60000
    tell(box)
    box.seen = FINE._replace(ours=None)
    box.foreign.send(GONE)
    until(box.changes)
    assert box.ran == ['load tcp/22 a'], 'to look first would double the time'


def test_what_we_change_ourselves_is_not_put_back(box):
    """That would be for ever, for it is told as well."""
    box.tells = [GONE, message(6, 'knockd') + message(12, 'knockd')]
    settled(box).wait(box.keeper.want(CONFIG._replace(hide=()), ()))
    until(lambda: box.keeper.standing.seen)
    box.wait(box.keeper.want(CONFIG._replace(hide=()), ('b',)))
    time.sleep(0.05)
    assert box.changes() == ['load  ', 'change b'] and not box.keeper.standing.harmed


def test_harm_without_end_costs_a_third_of_the_time_and_its_end_is_in_order(box):
    settled(box).seconds = 0.02
    box.tells = [GONE, message(2, 'knockd', 701)]       # while we load, somebody else as well
    box.foreign.send(GONE)
    time.sleep(0.6)
    assert 2 < len(box.changes()) < 18, 'without a rest 29'
    box.tells = []
    until(lambda: box.ran[-1] == 'look')
    assert not box.keeper.standing.harmed


def test_a_change_during_the_load_is_seen_and_loaded_again_but_not_for_ever(box):
    box.seen = FINE._replace(accepts=(['input'], []))   # missing, whatever is loaded
    box.wait(box.keeper.want(CONFIG, ()))
    time.sleep(0.3)
    assert len(box.changes()) == 2


def test_what_fails_amid_a_reload_of_others_is_tried_again_at_once_with_the_box_as_it_is(
        box, monkeypatch):
    """fw4 takes away its chains, which our transaction names."""
    settled(box)
    monkeypatch.setattr(knockd, 'RETRY_TIME', 5000)
    states = [FINE._replace(ours=None), FINE._replace(ours=None, box='of fw4 nothing is left'),
              FINE._replace(box='of fw4 nothing is left')]
    monkeypatch.setattr(knockd, 'see_box', lambda *_: states.pop(0) if states[1:] else states[0])
    box.fails['load'] = 1
    tell(box)
    until(lambda: box.changes() == ['load failed', 'load tcp/22 a'])
    results = []
    until(lambda: results.extend(box.keeper.results()) or results)
    assert [done.error for done in results] == [None]


def test_what_fails_is_not_tried_again_at_once_in_a_box_that_stays_as_it_is(box, monkeypatch):
    settled(box)
    monkeypatch.setattr(knockd, 'RETRY_TIME', 500)
    box.seen = FINE._replace(ours=None)
    box.fails['load'] = 9
    tell(box)
    until(lambda: box.changes() == ['load failed'])
    time.sleep(0.2)
    assert box.changes() == ['load failed']
    box.fails.clear()                       # or its thread would fail in the tests behind
    box.wait(box.keeper.want(CONFIG, ('b',)))


def test_many_changes_are_few_looks(box):
    settled(box)
    for _ in range(200):
        tell(box)
    until(lambda: 'look' in box.ran)
    time.sleep(0.1)
    assert box.ran.count('look') <= 3


class Process:
    def __init__(self):
        self.killed = False

    def kill(self):
        self.killed = True


def test_a_look_rests_twice_its_time_and_gives_way():
    looks, process = knockd.Looks(), Process()
    looks.ask(1000)
    assert looks.due == 1000 + knockd.COALESCE
    looks.start()
    looks.begin(process)
    looks.give_way()
    assert process.killed
    assert looks.end(1000, 1500), 'it was broken off'
    assert looks.due == 2500, 'and is due again when it has rested'
    looks.ask(2600)
    assert looks.due == 2500, 'what is due already is not put off'
    looks.start()
    looks.begin(Process())
    assert not looks.end(3000, 3100) and looks.due is None
    looks.give_way()                        # nothing runs: nobody is killed


def test_a_look_whose_command_has_just_ended_gives_way_without_an_error():
    """Python 3.6 to 3.8 kill by number, and another thread may have waited for it."""
    class Gone:
        def kill(self):
            raise ProcessLookupError(3, 'No such process')
    looks = knockd.Looks()
    looks.start()
    looks.begin(Gone())
    looks.give_way()
    assert looks.end(0, 1)


def test_a_look_gives_way_before_its_first_command_and_between_two_of_them():
    """The command that runs when a knock comes has perhaps ended, and the next one begins."""
    looks = knockd.Looks()
    for ended in ([], [Process()]):
        looks.start()
        for process in ended:
            looks.begin(process)
        looks.give_way()
        process = Process()
        looks.begin(process)
        assert process.killed and looks.end(0, 1)
    looks.give_way()                        # none is under way
    looks.start()
    looks.begin(Process())
    assert not looks.end(0, 1)


def test_a_knock_does_not_wait_for_a_look_and_the_look_is_made_later(box):
    settled(box)
    box.listing = Process()
    tell(box)
    until(lambda: 'look' in box.ran)
    began = time.monotonic()
    done = box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert time.monotonic() - began < 1
    assert [each.error for each in done] == [None], 'to be broken off is no failure'
    box.listing = None
    until(lambda: box.ran.count('look') == 2)


def test_a_look_right_after_a_load_keeps_no_knock_waiting_and_costs_no_second_load(box):
    box.listing = Process()
    box.wait(box.keeper.want(CONFIG, ('a',)))
    until(lambda: box.ran == ['see', 'load tcp/22 a', 'look'])
    box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert box.listing.killed and box.changes() == ['load tcp/22 a', 'change a b']
    box.listing = None
    until(lambda: box.ran.count('look') == 2)
    time.sleep(0.05)
    assert len(box.changes()) == 2


def test_what_went_right_after_a_load_is_put_back(box):
    box.seen = FINE._replace(ours=None)
    box.wait(box.keeper.want(CONFIG, ('a',)))
    until(lambda: box.changes()[:2] == 2 * ['load tcp/22 a'])
    box.seen = FINE
    until(lambda: box.keeper.standing.seen == FINE)


def test_knocks_without_end_do_not_keep_what_is_gone_from_being_put_back():
    looks = knockd.Looks()
    broken = 0
    while broken < 10:
        process = Process()
        looks.start()
        looks.begin(process)
        looks.give_way()
        broken_off = looks.end(0, 1)
        assert broken_off == process.killed
        if not broken_off:
            break
        broken += 1
    assert broken == knockd.BROKEN_LOOKS


def test_a_listing_that_was_broken_off_is_not_taken_for_another_box(monkeypatch):
    looks = knockd.Looks()
    looks.start()

    def finish(process, argv, text):
        if argv[0] == 'cat':
            looks.give_way()
            raise knockd.KnockError('cat failed (-9)')
        return ''
    monkeypatch.setattr(knockd, 'start', lambda argv: Process())
    monkeypatch.setattr(knockd, 'finish', finish)
    tool = types.SimpleNamespace(name='nft', list_commands=lambda has: [['cat', 'x'], ['nft']],
                                 read=lambda outputs, config: outputs)
    with pytest.raises(knockd.KnockError):
        knockd.see_box(tool, CONFIG, looks)
    assert looks.end(0, 1)


def test_a_look_that_fails_keeps_no_knock_waiting(box, monkeypatch):
    settled(box)
    monkeypatch.setattr(knockd, 'RETRY_TIME', 60000)

    def fails(tool, config, looks=None):
        box.ran.append('look')
        raise knockd.KnockError('nft failed (1)')
    monkeypatch.setattr(knockd, 'see_box', fails)
    tell(box)
    until(lambda: any(each.error for each in box.keeper.results()))
    box.wait(box.keeper.want(CONFIG, ('a', 'b')))
    assert box.changes() == ['change a b']


def test_the_first_look_that_succeeds_again_says_so(box, monkeypatch):
    """Or `status` would show the trouble of one failed look until the next knock."""
    settled(box)
    fails = []

    def see(tool, config, looks=None):
        if not fails:
            fails.append(1)
            raise knockd.KnockError('nft failed (1)')
        return FINE
    monkeypatch.setattr(knockd, 'see_box', see)
    tell(box)
    told = []

    def errors():
        told.extend(each.error is not None for each in box.keeper.results())
        return told
    until(lambda: errors() == [True, False])
    tell(box)
    until(lambda: len(box.ran) > 0 or box.keeper.looks.due is None)
    assert errors() == [True, False], 'once'


def test_a_defect_ends_no_thread_and_is_said_of_what_was_wanted(box, monkeypatch):
    """A reload that meets it goes back; by an older number the daemon would wait for ever."""
    settled(box)
    monkeypatch.setattr(box.keeper.tool, 'change', lambda *_: 1 / 0, raising=False)
    number = box.keeper.want(CONFIG, ('b',))
    told = []
    until(lambda: told.extend(box.keeper.results()) or told)
    assert told[0].number == number and 'internal error' in str(told[0].error)
    monkeypatch.undo()
    monkeypatch.setattr(knockd, 'run', box.run)
    monkeypatch.setattr(knockd, 'see_box', box.see)
    monkeypatch.setattr(knockd, 'live', lambda openings, now: openings)
    monkeypatch.setattr(knockd, 'decoy_ports', lambda config, seen: ([], set()))
    assert box.wait(number)


def test_what_of_once_stood_before_a_whole_load_lapses_and_nothing_else():
    network = ipaddress.ip_network('192.0.2.7')
    often, once = [knockd.Opening('f' * 16, 'anna', network, knockd.Service(6, 22, 22), kind,
                                  5000, (), False) for kind in (False, True)]
    new = once._replace(expires=9000)
    keeper = types.SimpleNamespace(standing=types.SimpleNamespace(
        wanted=knockd.Wanted(1, None, (often, once))))
    wanted = knockd.Wanted(2, None, (often, once, new))
    assert knockd.Keeper.unspent(keeper, wanted) == [often, new]
