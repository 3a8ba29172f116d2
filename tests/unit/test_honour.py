"""What the daemon does with a decision: ledger, firewall, log, in this order, or not at all."""

import knockd
import pytest
from knocks import ELSEWHERE, HERE, MAIL, SSH, STEP, WALL, at, fresh_state, knock


@pytest.fixture
def state():
    return fresh_state()


class Recorder:
    """Stands in for ledger file and firewall: writes down who was called, and can fail."""

    def __init__(self):
        self.calls, self.fails, self.openings = [], (), {}
        self.path = '/nowhere/ledger.json'

    def save(self, ledger):
        self.calls.append('save')
        if 'save' in self.fails:
            raise OSError(28, 'No space left on device')

    def open(self, openings, now):
        self.calls.append('open %s' % ' '.join('%s/%d' % (opening.source, opening.port)
                                               for opening in openings))
        if 'open' in self.fails:
            raise knockd.KnockError('nft failed')

    def close(self, openings):
        self.calls.append('close')

    def chosen(self, knock):
        return []


@pytest.fixture
def daemon(state, monkeypatch):
    lines = []
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: lines.append(text))
    monkeypatch.setattr(knockd, 'moment', at)
    made = knockd.Daemon(state.config)
    made.state, made.lines = state, lines
    made.file = made.firewall = Recorder()
    made.listened = []
    monkeypatch.setattr(made, 'listen', lambda: made.listened.append(set(made.muted)))
    return made


def test_the_ledger_is_on_disk_before_the_firewall_opens(daemon, state):
    daemon.handle(knock(state), at())
    assert daemon.file.calls == ['save', 'open 203.0.113.5/32/22']
    assert len(daemon.lines) == 1
    assert daemon.lines[0].startswith('open anna 203.0.113.5 tcp/22 30s udp skew +0.0s ')


def test_what_cannot_be_written_opens_nothing_and_is_spent(daemon, state):
    daemon.file.fails = ('save',)
    packet = knock(state)
    daemon.handle(packet, at())
    assert daemon.file.calls == ['save']
    assert len(daemon.lines) == 1 and 'No space left on device' in daemon.lines[0]
    daemon.file.fails = ()
    daemon.handle(packet, at(mono=5003000))
    assert daemon.file.calls == ['save'] and daemon.lines[1].endswith(' replay')


def test_a_firewall_that_fails_is_told_and_the_knock_stays_spent(daemon, state):
    daemon.file.fails = ('open',)
    packet = knock(state)
    daemon.handle(packet, at())
    assert len(daemon.lines) == 1 and 'nft failed' in daemon.lines[0]
    assert state.ledger.refusal(state.config.clients['anna'].fingerprint,
                                packet.payload[8:24].hex(), WALL) == 'replay'


def test_an_opening_that_failed_is_forgotten_or_it_would_fail_with_every_load(daemon, state):
    def half(openings, now):
        daemon.firewall.openings.update((opening[1:5], opening) for opening in openings)
        raise knockd.KnockError('nft failed')
    daemon.firewall.open = half
    daemon.handle(knock(state), at())
    assert daemon.firewall.openings == {} and 'nft failed' in daemon.lines[0]


def test_a_copy_is_silent_for_two_seconds(daemon, state):
    packet = knock(state)
    for mono in (0, 0, 1, 2000):
        daemon.handle(packet, at(mono=mono))
    assert daemon.file.calls == ['save', 'open 203.0.113.5/32/22'] and len(daemon.lines) == 1
    daemon.handle(packet, at(mono=2001))
    assert daemon.lines[1:] == ['refused anna 203.0.113.5 replay']


def test_a_copy_from_another_source_is_no_copy(daemon, state):
    packet = knock(state)
    for sender in (HERE, ELSEWHERE):
        daemon.handle(packet._replace(source=sender), at())
    assert daemon.lines[1:] == ['refused anna 203.0.113.6 replay']


def test_copies_of_two_clients_are_told_apart(daemon, state):
    """The id of a SYN is its step alone, the same for everybody."""
    tokens = [knockd.Credential(state.config.clients[name], 'syn', STEP, None, ())
              for name in ('anna', 'trusted')]
    for _ in range(2):
        for token, sender in zip(tokens, (HERE, ELSEWHERE)):
            daemon.handle(knockd.Packet('syn', sender, token), at())
    assert len(daemon.file.calls) == 4 and len(daemon.lines) == 2, daemon.lines


def test_the_copy_of_a_knock_for_another_source_is_silent_too(daemon, state):
    packet = knock(state, 'trusted', source='203.0.113.99', services=[SSH])
    for _ in range(2):
        daemon.handle(packet, at())
    assert daemon.file.calls == ['save', 'open 203.0.113.99/32/22']
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
    for _ in range(1000):
        daemon.handle(forged, at())
    assert daemon.listened == [{packet.payload[:8]}], 'queued frames must not recompile it each'
    assert daemon.unmute == 5001000
    daemon.offset, daemon.steps = WALL - 5000000, knockd.window_steps(WALL, 60000)
    daemon.watch(at(WALL + 999, 5000999))
    assert len(daemon.listened) == 1
    daemon.watch(at(WALL + 1000, 5001000))
    assert daemon.listened[1:] == [set()]


def test_junk_is_neither_logged_nor_written(daemon, state):
    packet = knock(state)
    for place in range(len(packet.payload)):
        forged = bytearray(packet.payload)
        forged[place] ^= 0x80
        daemon.handle(packet._replace(payload=bytes(forged)), at(mono=place * 1000))
    assert daemon.file.calls == [] and daemon.lines == []
