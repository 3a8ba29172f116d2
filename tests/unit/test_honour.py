"""What the daemon does with a decision: ledger, firewall, log, in this order, or not at all."""

import knockd
import played
import pytest
from knocks import ELSEWHERE, HERE, MAIL, SSH, STEP, WALL, at, fresh_state, knock


@pytest.fixture
def state():
    return fresh_state()


class Journal:
    """Plays the ledger's file: writes down when it is written, and can fail."""
    path = '/nowhere/ledger.json'

    def __init__(self, calls):
        self.calls, self.fails = calls, False

    def append(self, line):
        self.calls.append('append')
        if self.fails:
            raise OSError(28, 'No space left on device')

    rewrite = append

    def abandon(self):
        pass


class Heard:
    """A daemon, what it did in which order, and what it said."""

    def __init__(self, monkeypatch, state):
        self.lines, self.keeper = [], played.Keeper()
        monkeypatch.setattr(knockd, 'log', lambda text, level=6: self.lines.append(text))
        monkeypatch.setattr(knockd, 'moment', at)
        self.daemon = played.furnished(monkeypatch, state.config, state, at(), self.keeper)
        self.calls = self.keeper.calls
        self.daemon.file = Journal(self.calls)
        del self.calls[:]

    def handle(self, packet, now):
        played.heard(self.daemon, packet, now)

    def filters(self):
        """What the filter for datagrams had to let by, each time that it was changed."""
        return self.daemon.hearing.datagrams.loads


@pytest.fixture
def daemon(state, monkeypatch):
    return Heard(monkeypatch, state)


def test_the_ledger_is_on_disk_before_the_firewall_opens(daemon, state):
    daemon.handle(knock(state), at())
    assert daemon.calls == ['append', 'open 203.0.113.5/32/tcp/22']
    assert len(daemon.lines) == 1
    assert daemon.lines[0].startswith('open anna 203.0.113.5 tcp/22 30s udp skew +0.0s ')


def test_less_time_than_was_asked_for_is_told(daemon, state):
    daemon.handle(knock(state, services=[SSH], seconds=7200), at())
    assert daemon.lines[0].startswith('open anna 203.0.113.5 tcp/22 3600s (7200s asked) udp ')


def test_what_cannot_be_written_opens_nothing_and_is_spent(daemon, state):
    daemon.daemon.file.fails = True
    packet = knock(state)
    daemon.handle(packet, at())
    assert set(daemon.calls) == {'append'}
    assert len(daemon.lines) == 1 and 'No space left on device' in daemon.lines[0]
    daemon.daemon.file.fails = False
    daemon.handle(packet, at(mono=5003000))
    assert set(daemon.calls) == {'append'} and daemon.lines[1].endswith(' replay')


def test_a_firewall_that_fails_is_told_and_the_knock_stays_spent(daemon, state):
    daemon.keeper.fails = 'nft failed'
    packet = knock(state)
    daemon.handle(packet, at())
    assert daemon.lines == ['firewall: nft failed', 'open anna 203.0.113.5 failed: nft failed']
    assert state.ledger.refusal(state.config.clients['anna'].fingerprint,
                                packet.payload[8:24].hex(), WALL) == 'replay'


def test_open_is_said_when_it_is_and_not_before(daemon, state):
    daemon.keeper.slow = True
    daemon.handle(knock(state), at())
    assert daemon.lines == []
    daemon.daemon.watch(at(WALL + 2000, 5002000))
    assert daemon.lines == ['open anna 203.0.113.5 waits: nft is not done after 2 s']
    daemon.keeper.done.append(knockd.Done(daemon.keeper.number, None, False, None))
    daemon.daemon.settle_all(at(WALL + 2500, 5002500))
    assert daemon.lines[1:] == ['open anna 203.0.113.5 tcp/22 30s udp skew +0.0s 2500ms']


def test_what_could_not_be_opened_in_its_time_is_forgotten(daemon, state):
    daemon.keeper.fails = 'nft failed'
    daemon.handle(knock(state), at())
    assert len(daemon.daemon.doors.orders) == 1
    for mono in (5000000, 5031000):
        daemon.keeper.done.append(knockd.Done(9, knockd.KnockError('nft failed'), False, None))
        daemon.daemon.settle_all(at(mono=mono))
    assert daemon.daemon.doors.orders == []


def test_a_copy_is_silent_for_two_seconds(daemon, state):
    packet = knock(state)
    for mono in (0, 0, 1, 2000):
        daemon.handle(packet, at(mono=mono))
    assert daemon.calls == ['append', 'open 203.0.113.5/32/tcp/22'] and len(daemon.lines) == 1
    daemon.handle(packet, at(mono=2001))
    assert daemon.lines[1:] == ['refused anna 203.0.113.5 replay']


def test_a_copy_from_another_source_is_no_copy(daemon, state):
    packet = knock(state)
    for sender in (HERE, ELSEWHERE):
        daemon.handle(packet._replace(source=sender), at())
    assert daemon.lines[1:] == ['refused anna 203.0.113.6 replay']


def test_copies_of_two_clients_are_told_apart(daemon, state):
    """The id of a SYN is its step alone, the same for everybody."""
    credentials = [knockd.Credential(state.config.clients[name], 'syn', STEP, None, ())
                   for name in ('anna', 'trusted')]
    for _ in range(2):
        for credential, sender in zip(credentials, (HERE, ELSEWHERE)):
            daemon.handle(knockd.Packet('syn', sender, credential), at())
    assert len(daemon.calls) == 4 and len(daemon.lines) == 2, daemon.lines


def test_the_copy_of_a_knock_for_another_source_is_silent_too(daemon, state):
    packet = knock(state, 'trusted', source='203.0.113.99', services=[SSH])
    for _ in range(2):
        daemon.handle(packet, at())
    assert daemon.calls == ['append', 'open 203.0.113.99/32/tcp/22']
    assert len(daemon.lines) == 1, daemon.lines


def test_the_same_refusal_is_logged_once_a_minute_and_counted(daemon, state):
    """By client and kind: one kind silences no other."""
    for mono in (0, 1000, 59999):
        daemon.handle(knock(state, services=[MAIL]), at(mono=mono))
    assert daemon.lines == ['refused anna 203.0.113.5 not allowed tcp/25']
    daemon.handle(knock(state, 'careful'), at(mono=59999))
    daemon.handle(knock(state, source='203.0.113.9'), at(mono=59999))
    daemon.handle(knock(state, 'trusted', services=[knockd.Service(6, 1000, 1000)]), at(mono=59999))
    daemon.handle(knock(state, services=[MAIL]), at(mono=60000))
    assert daemon.lines[1:] == [
        'refused careful 203.0.113.5 no source named',
        'refused anna 203.0.113.5 source 203.0.113.9',
        'refused trusted 203.0.113.5 not allowed tcp/1000',
        'refused anna 203.0.113.5 not allowed tcp/25 (2 more before)']


def test_a_tag_over_its_budget_leaves_the_filter_once_until_the_next_second(daemon, state):
    packet = knock(state)
    forged = packet._replace(payload=packet.payload[:-1] + b'x')
    before = len(daemon.filters())
    for _ in range(1000):
        daemon.handle(forged, at())
    assert len(daemon.filters()) == before + 1, 'queued frames must not recompile it each'
    assert packet.payload[:8] not in daemon.filters()[-1]
    daemon.daemon.watch(at(WALL + 999, 5000999))
    assert len(daemon.filters()) == before + 1
    daemon.daemon.watch(at(WALL + 1000, 5001000))
    assert packet.payload[:8] in daemon.filters()[-1]


def test_junk_is_neither_logged_nor_written(daemon, state):
    packet = knock(state)
    for place in range(len(packet.payload)):
        forged = bytearray(packet.payload)
        forged[place] ^= 0x80
        daemon.handle(packet._replace(payload=bytes(forged)), at(mono=place * 1000))
    assert daemon.calls == [] and daemon.lines == []


class Walked(dict):
    """Openings that count how often somebody walks through all of them."""
    walks = 0

    def values(self):
        self.walks += 1
        return dict.values(self)

    def items(self):
        self.walks += 1
        return dict.items(self)


def test_the_ends_of_many_visits_are_one_walk_through_the_openings(daemon, state):
    """For each visit one, of 5,000 openings, stopped the daemon for 0.2 s at a time."""
    daemon.handle(knock(state), at())
    doors = daemon.daemon.doors
    visit, = doors.visits
    for port in range(1000, 1100):
        services = (knockd.Service(6, port, port),)
        doors.visits[visit._replace(services=services)] = at().mono + 30000
    state.hold(Walked(state.openings))
    doors.next_end = 0
    doors.look_for_ends(at())
    assert list(doors.visits) == [visit], 'of the others nothing is open'
    assert state.openings.walks <= 2
