"""The order of judgement (DESIGN 3.8), the edges of each check, budgets, copies, sources."""
import ipaddress

import pytest

import knockd
from knock import encode_plain, seal

SECRETS = {name: knockd.encode_secret(bytes([number + 1]) * 32)
           for number, name in enumerate(('anna', 'bert', 'careful', 'trusted', 'short'))}
SERVER = '''[server]
id = home
hide = tcp/22, tcp/25, udp/51820
ledger = /nowhere/ledger.json
'''
CLIENTS = '''
[client anna]
secret = %(anna)s
allow = tcp/22, udp/51820
default = tcp/22
[client bert]
secret = %(bert)s
expires = 2023-11-14 22:13
[client careful]
secret = %(careful)s
require_source = yes
[client trusted]
secret = %(trusted)s
any_source = yes
[client short]
secret = %(short)s
default =
open_for = 2h
''' % SECRETS
WALL = 1700000025000            # 2023-11-14 22:13:45 UTC, the middle of step 56666667
STEP = 56666667
HERE, ELSEWHERE = ipaddress.ip_address('203.0.113.5'), ipaddress.ip_address('203.0.113.6')
SSH, MAIL, VPN = knockd.Service(6, 22, 22), knockd.Service(6, 25, 25), knockd.Service(17, 51820,
                                                                                    51820)


def at(wall=WALL, mono=5000000):
    return knockd.Moment(wall, mono)


def valid_tags(config, wall, known=()):
    """As the daemon has them: {tag: (client, step)} of every loaded step."""
    return {tag: owner for tokens in knockd.valid_tokens(config, wall, known)[:-1]
            for tag, owner in tokens.tags.items()}


CONFIG = knockd.parse_config(SERVER + CLIENTS, '/nowhere/knockd.ini')
TAGS = valid_tags(CONFIG, WALL)


@pytest.fixture
def state():
    made = knockd.State(CONFIG, knockd.Ledger('home'))
    made.tags = dict(TAGS)
    return made


class Nonces:
    """A fresh nonce a call."""
    count = 0


def knock(state, name='anna', op='open', time=WALL, step=None, source=None, seconds=0, services=(),
          action=None, sender=HERE, plain=None, carrier='udp', key=None):
    """The Packet of a knock; every part can be made wrong."""
    Nonces.count += 1
    request = knockd.Request(op, time, source and ipaddress.ip_address(source), seconds,
                             tuple(services), action, None, None)
    plain = encode_plain(request) if plain is None else plain
    keys = state.config.clients[name].keys if key is None else key
    sealed = seal(keys, Nonces.count.to_bytes(16, 'big'), plain,
                         time // 30000 if step is None else step)
    return knockd.Packet(carrier, sender, sealed)


def said(state, packet, now=None):
    """(verdict, reason) of the judge, and the ledger told as the daemon does."""
    decision = knockd.judge(packet, now or at(), state)
    if decision.verdict in ('open', 'close'):
        request = decision.knock.request
        state.ledger.record(decision.knock.client.fingerprint, decision.knock.knock_id,
                            request.time, state.config.window)
    return decision.verdict, decision.reason


# --- what is honoured ---------------------------------------------------------------------------
def test_a_good_knock_opens_the_default_for_where_it_comes_from(state):
    decision = knockd.judge(knock(state), at(), state)
    assert decision.verdict == 'open' and decision.reason is None
    granted = decision.knock
    assert (granted.client.name, granted.source, granted.services, granted.seconds) == (
        'anna', HERE, (SSH,), 30)
    assert granted.knock_id == Nonces.count.to_bytes(16, 'big').hex()


def test_a_knock_opens_what_it_names_for_as_long_as_it_says(state):
    granted = knockd.judge(knock(state, services=[SSH, VPN], seconds=7), at(), state).knock
    assert (granted.services, granted.seconds) == ((SSH, VPN), 7)


def test_a_close_without_ports_names_none(state):
    decision = knockd.judge(knock(state, op='close'), at(), state)
    assert (decision.verdict, decision.knock.services) == ('close', ())


@pytest.mark.parametrize('name,asked,granted', [
    ('anna', 0, 30), ('anna', 1, 1), ('anna', 3600, 3600), ('anna', 3601, 3600),
    ('anna', 65535, 3600), ('short', 0, 7200), ('short', 65535, 7200)])
def test_nobody_opens_for_longer_than_the_config_says(state, name, asked, granted):
    packet = knock(state, name, seconds=asked, services=[SSH])
    assert knockd.judge(packet, at(), state).knock.seconds == granted


# --- the order: every later check would object too ----------------------------------------------
def forbidden(*_):
    raise AssertionError('a check that is later in the order came first')


def test_an_unknown_tag_costs_no_mac(state, monkeypatch):
    monkeypatch.setattr(knockd, 'unseal', forbidden)
    stranger = knockd.derive_keys(b'x' * 32, 'home')
    assert said(state, knock(state, key=stranger)) == ('junk', None)


def test_a_knock_for_another_server_is_junk(state):
    other = knockd.derive_keys(bytes([1]) * 32, 'office')
    assert other != state.config.clients['anna'].keys
    assert said(state, knock(state, key=other)) == ('junk', None)


def test_a_forged_mac_is_never_parsed(state, monkeypatch):
    monkeypatch.setattr(knockd, 'decode_plain', forbidden)
    packet = knock(state)
    for place in range(8, len(packet.payload)):
        forged = bytearray(packet.payload)
        forged[place] ^= 1
        now = at(mono=place * 1000)
        assert said(state, packet._replace(payload=bytes(forged)), now) == ('junk', None)


def test_the_tag_of_one_client_and_the_mac_of_another_is_junk(state):
    anna, bert = [state.config.clients[name].keys for name in ('anna', 'bert')]
    assert said(state, knock(state, key=dict(bert, tag=anna['tag']))) == ('junk', None)


def test_a_malformed_knock_is_refused_by_name_and_asks_nothing_else(state, monkeypatch):
    monkeypatch.setattr(knockd, 'stamp_flaw', forbidden)
    monkeypatch.setattr(state.ledger, 'refusal', forbidden)
    plain = encode_plain(knockd.Request('open', WALL, None, 0, (), None, None, None))
    verdict, reason = said(state, knock(state, plain=b'\2' + plain[1:]))
    assert verdict == 'refused' and reason.startswith('malformed: ')


FLAWS = [           # in the order of DESIGN 3.8: what makes it so, the reason
    ('clock', dict(time=WALL - 60001), 'clock -60s'),
    ('expired', dict(name='bert'), 'expired'),
    ('source', dict(source='203.0.113.99'), 'source 203.0.113.99'),
    ('scope', dict(services=[knockd.Service(6, 80, 80)]), 'not allowed tcp/80'),
]


@pytest.mark.parametrize('number', range(len(FLAWS)), ids=[flaw[0] for flaw in FLAWS])
def test_the_first_flaw_in_the_order_is_the_one_told(state, number):
    wrong = {}
    for _, settings, _ in FLAWS[number:]:
        wrong.update(settings)
    packet = knock(state, **wrong)
    fingerprint = state.config.clients[wrong.get('name', 'anna')].fingerprint
    nonce = packet.payload[8:24].hex()
    state.ledger.record(fingerprint, nonce, wrong.get('time', WALL), 60000)     # a replay as well
    assert said(state, packet) == ('refused', FLAWS[number][2])


def test_a_replay_within_the_window_is_called_a_replay(state):
    packet = knock(state)
    assert said(state, packet) == ('open', None)
    assert said(state, packet._replace(source=ELSEWHERE)) == ('refused', 'replay')


def test_a_replay_outside_the_window_says_clock_not_replay(state):
    packet = knock(state)
    assert said(state, packet) == ('open', None)
    assert said(state, packet, at(WALL + 60001)) == ('refused', 'clock -60s')


def test_a_replay_does_not_use_up_the_pace(state):
    packet = knock(state)
    assert said(state, packet) == ('open', None)
    for _ in range(20):
        assert said(state, packet._replace(source=ELSEWHERE)) == ('refused', 'replay')
    assert said(state, knock(state)) == ('open', None)


def test_the_ledger_is_asked_for_the_key_not_for_the_name(state):
    packet = knock(state)
    assert said(state, packet) == ('open', None)
    renamed = knockd.parse_config(SERVER + CLIENTS.replace('client anna', 'client zoe'), '/n/k')
    state.config, state.tags = renamed, valid_tags(renamed, WALL)
    assert said(state, packet._replace(source=ELSEWHERE)) == ('refused', 'replay')


def test_judging_alone_spends_nothing(state):
    """The daemon records; a judge that did would spend knocks that are never written."""
    packet = knock(state)
    for second in range(3):
        assert knockd.judge(packet, at(mono=second * 1000), state).verdict == 'open'


# --- the window, to the millisecond -------------------------------------------------------------
@pytest.mark.parametrize('window', [1000, 60000, 600000])
def test_the_edges_of_the_window_to_the_millisecond(state, window):
    state.config = state.config._replace(window=window)
    for wall in (WALL, WALL + 15001, WALL + 29999):
        state.tags = valid_tags(state.config, wall)
        for distance in (-window, window):
            assert said(state, knock(state, time=wall + distance), at(wall)) == ('open', None)
        for distance in (-window - 1, window + 1):
            verdict, reason = said(state, knock(state, time=wall + distance), at(wall))
            assert verdict == 'junk' or (
                verdict == 'refused' and reason.startswith('clock ')), distance
        state.knocks, state.ledger = knockd.Budget(5), knockd.Ledger('home')


def test_a_stamp_far_off_is_told_with_sign_and_seconds(state):
    state.tags = {knockd.tag_at(client.keys, step): (client, step)
                  for client in state.config.clients.values() for step in range(STEP - 9, STEP + 9)}
    assert said(state, knock(state, time=WALL + 87000)) == ('refused', 'clock +87s')
    assert said(state, knock(state, time=WALL - 87400)) == ('refused', 'clock -87s')


@pytest.mark.parametrize('step', [STEP - 1, STEP + 1])
def test_a_stamp_in_another_step_than_the_tag_is_refused(state, step):
    verdict, reason = said(state, knock(state, step=step))
    assert verdict == 'refused' and reason.startswith('clock ')


def test_the_last_and_the_first_millisecond_of_a_step_belong_to_their_tags(state):
    begin = STEP * 30000
    assert said(state, knock(state, time=begin - 1, step=STEP - 1)) == ('open', None)
    assert said(state, knock(state, time=begin, step=STEP)) == ('open', None)
    assert said(state, knock(state, time=begin, step=STEP - 1))[0] == 'refused'
    assert said(state, knock(state, time=begin - 1, step=STEP))[0] == 'refused'


def test_the_tags_of_the_window_and_of_the_step_after_it_are_known(state):
    anna = state.config.clients['anna']
    for wall in (STEP * 30000, STEP * 30000 + 29999):
        tags = valid_tags(state.config, wall)
        steps = sorted(step for client, step in tags.values() if client == anna)
        assert steps == [STEP - 2, STEP - 1, STEP, STEP + 1, STEP + 2, STEP + 3]
        assert all(knockd.tag_at(client.keys, step) == tag
                   for tag, (client, step) in tags.items())


@pytest.mark.parametrize('later', [-60000, -30000, 0, 1, 30000, 60000, 10 ** 9])
def test_tags_made_from_those_of_the_last_time_are_those_made_afresh(later):
    """Time goes by, stands still, or is set; the step to come is derived, or half derived."""
    for count in (0, 1, None):
        known = knockd.valid_tokens(CONFIG, WALL)
        known[-1].derive(count)
        assert valid_tags(CONFIG, WALL + later, known) == valid_tags(CONFIG, WALL + later)


def test_what_is_derived_in_slices_is_what_is_derived_at_once():
    config = CONFIG._replace(carriers=('udp', 'syn', 'ports'))
    sliced, whole = knockd.StepTokens(config, STEP), knockd.StepTokens(config, STEP)
    whole.derive()
    rounds = 0
    while sliced.waiting:
        sliced.derive(2)
        rounds += 1
    assert rounds == (len(config.clients) + 1) // 2 > 1
    assert (sliced.tags, sliced.syns, sliced.sequences) == (whole.tags, whole.syns, whole.sequences)
    assert len(whole.tags) == len(whole.syns) == len(config.clients)
    assert sum(map(len, whole.sequences.values())) == len(config.clients)


def test_a_step_that_is_known_is_not_derived_again():
    """Tokens of a sequence that somebody has begun are told by being the same object."""
    known = knockd.valid_tokens(CONFIG, WALL)
    known[-1].derive()
    later = knockd.valid_tokens(CONFIG, WALL + 30000, known)
    assert [each is then for each, then in zip(later, known[1:])] == [True] * (len(known) - 1)
    assert later[-1].step == known[-1].step + 1 and not later[-1].tags


@pytest.mark.parametrize('wall', [0, 1, 29999, 59999, 60000, 60001])
def test_a_clock_that_wakes_up_in_1970_has_tags_too(state, wall):
    """Routers without a clock do (DESIGN 3.9): there are no steps before the first."""
    steps = {step for _, step in valid_tags(state.config, wall).values()}
    assert min(steps) == max(0, wall - 60000) // 30000
    assert max(steps) == (wall + 60000) // 30000 + 1
    state.tags = valid_tags(state.config, wall)
    state.ledger = knockd.Ledger('home')
    assert said(state, knock(state, time=wall + 1), at(wall)) == ('open', None)


# --- expiry -------------------------------------------------------------------------------------
def test_a_client_expires_at_its_minute(state):
    expires = 1699999980000     # 22:13:00 UTC
    for wall, expected in ((expires - 1, ('open', None)), (expires, ('refused', 'expired'))):
        state.tags = valid_tags(state.config, wall)
        assert said(state, knock(state, 'bert', time=wall), at(wall)) == expected


# --- scope --------------------------------------------------------------------------------------
@pytest.mark.parametrize('op', ['open', 'close'])
@pytest.mark.parametrize('services,reason', [
    ([MAIL], 'not allowed tcp/25'), ([SSH, MAIL], 'not allowed tcp/25'),
    ([knockd.Service(17, 22, 22)], 'not allowed udp/22'),
    ([knockd.Service(6, 22, 23)], 'not allowed tcp/22-23'),
    ([knockd.Service(6, 1, 65535)], 'not allowed tcp/1-65535')])
def test_what_is_not_allowed_is_refused_whole(state, op, services, reason):
    assert said(state, knock(state, op=op, services=services)) == ('refused', reason)


def test_a_client_without_allow_may_open_all_that_is_hidden(state):
    asked = [SSH, MAIL, VPN]
    assert said(state, knock(state, 'trusted', services=asked)) == ('open', None)


def test_a_client_without_default_must_say_what_to_open(state):
    assert said(state, knock(state, 'short'))[0] == 'refused'
    assert said(state, knock(state, 'short', services=[SSH])) == ('open', None)


def test_running_an_action_is_refused(state):
    assert said(state, knock(state, op='run', action='reboot')) == (
        'refused', 'not allowed action reboot')


# --- source -------------------------------------------------------------------------------------
@pytest.mark.parametrize('name,named,expected', [
    ('anna', None, ('open', None)),
    ('anna', '203.0.113.5', ('open', None)),
    ('anna', '203.0.113.6', ('refused', 'source 203.0.113.6')),
    ('anna', '2001:db8::5', ('refused', 'source 2001:db8::5')),
    ('careful', None, ('refused', 'no source named')),
    ('careful', '203.0.113.5', ('open', None)),
    ('careful', '203.0.113.6', ('refused', 'source 203.0.113.6')),
    ('trusted', None, ('open', None)),
    ('trusted', '203.0.113.5', ('open', None)),
    ('trusted', '203.0.113.6', ('open', None)),
    ('trusted', '2001:db8::5', ('open', None)),
    ('trusted', '224.0.0.1', ('refused', 'source 224.0.0.1')),
    ('trusted', 'ff02::1', ('refused', 'source ff02::1')),
    ('trusted', '127.0.0.1', ('refused', 'source 127.0.0.1')),
    ('trusted', '::1', ('refused', 'source ::1'))])
def test_the_source_a_knock_names(state, name, named, expected):
    assert said(state, knock(state, name, source=named)) == expected


@pytest.mark.parametrize('named,opened', [
    (None, '203.0.113.5'), ('203.0.113.6', '203.0.113.6'), ('2001:db8::5', '2001:db8::5')])
def test_any_source_opens_for_the_named_one(state, named, opened):
    decision = knockd.judge(knock(state, 'trusted', source=named), at(), state)
    assert decision.knock.source == ipaddress.ip_address(opened)


def test_a_knock_that_names_its_source_is_useless_from_elsewhere(state):
    packet = knock(state, source='203.0.113.5')
    assert said(state, packet._replace(source=ELSEWHERE)) == ('refused', 'source 203.0.113.5')
    assert said(state, packet) == ('open', None), 'and was not spent by the thief'


def test_a_mapped_ipv4_source_equals_the_ipv4_address(state):
    assert said(state, knock(state, source='::ffff:203.0.113.5')) == ('open', None)


# --- budgets ------------------------------------------------------------------------------------
def test_two_hundred_macs_a_second_are_checked_for_a_tag(state, monkeypatch):
    checked = []
    monkeypatch.setattr(knockd, 'unseal', lambda keys, payload: checked.append(payload))
    packet = knock(state)
    verdicts = [said(state, packet)[0] for _ in range(250)]
    assert verdicts == ['junk'] * 200 + ['mute'] * 50
    assert len(checked) == 200


def test_a_muted_tag_costs_other_clients_nothing(state):
    forged = knock(state)._replace(payload=knock(state).payload[:-1] + b'x')
    for _ in range(300):
        said(state, forged)
    assert said(state, knock(state))[0] == 'mute'
    assert said(state, knock(state, 'trusted')) == ('open', None)
    assert said(state, knock(state, time=WALL + 30000)) == ('open', None), 'nor the next step'


def test_a_muted_tag_is_heard_again_in_the_next_second(state):
    for _ in range(201):
        last = said(state, knock(state)._replace(payload=knock(state).payload[:-1] + b'x'),
                    at(mono=5000999))
    assert last == ('mute', None)
    assert said(state, knock(state), at(mono=5000999)) == ('mute', None)
    assert said(state, knock(state), at(mono=5001000)) == ('open', None)


def test_five_knocks_a_second_are_honoured_for_a_client(state):
    verdicts = [said(state, knock(state)) for _ in range(7)]
    assert verdicts == [('open', None)] * 5 + [('refused', 'too fast')] * 2
    assert said(state, knock(state, 'trusted')) == ('open', None), 'each client for itself'
    assert said(state, knock(state), at(mono=5001000)) == ('open', None)


def test_a_knock_that_came_too_fast_is_not_spent(state):
    packets = [knock(state) for _ in range(6)]
    assert [said(state, packet)[0] for packet in packets] == ['open'] * 5 + ['refused']
    assert said(state, packets[5], at(mono=5001000)) == ('open', None)


def test_refused_knocks_do_not_count_as_honoured_ones(state):
    for _ in range(20):
        assert said(state, knock(state, services=[MAIL]))[0] == 'refused'
    assert said(state, knock(state)) == ('open', None)


def test_a_budget_remembers_one_second_only():
    budget = knockd.Budget(2)
    assert [budget.spend('a', 1) for _ in range(3)] == [True, True, False]
    for number in range(1000):
        budget.spend(number, 2)
    assert budget.spend('a', 3) and len(budget.used) == 1


# --- the daemon's part: what it does with a decision --------------------------------------------
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


def test_a_copy_of_what_was_refused_is_refused_again(state):
    packet = knock(state, services=[MAIL])
    assert [said(state, packet) for _ in range(2)] == [('refused', 'not allowed tcp/25')] * 2


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
    for mono in (0, 1000, 59999):
        daemon.handle(knock(state, services=[MAIL]), at(mono=mono))
    daemon.handle(knock(state, op='run', action='reboot'), at(mono=59999))
    assert daemon.lines == ['refused anna 203.0.113.5 not allowed tcp/25']
    daemon.handle(knock(state, 'careful'), at(mono=59999))
    daemon.handle(knock(state, services=[MAIL]), at(mono=60000))
    assert daemon.lines[1:] == ['refused careful 203.0.113.5 no source named',
                                'refused anna 203.0.113.5 not allowed tcp/25 (3 more before)']


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
