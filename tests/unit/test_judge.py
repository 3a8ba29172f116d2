"""The order of judgement, the edges of each check, budgets, copies, sources."""
import ipaddress

import knockd
import pytest
from knock import encode_plain
from knocks import (CLIENTS, CONFIG, ELSEWHERE, HERE, MAIL, SERVER, SSH, STEP, VPN, WALL, Nonces,
                    at, fresh_state, knock, said, valid_tags)


@pytest.fixture
def state():
    return fresh_state()


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


@pytest.mark.parametrize('carrier', ['udp', 'icmp'])
def test_a_datagram_is_judged_as_one_by_whichever_carrier_it_comes(state, carrier):
    decision = knockd.judge(knock(state, carrier=carrier), at(), state)
    assert (decision.verdict, decision.knock.carrier) == ('open', carrier)
    early = knock(state, carrier=carrier, time=WALL - 60001)
    assert said(state, early) == ('refused', 'clock -60s')


def test_a_close_without_ports_names_none(state):
    decision = knockd.judge(knock(state, op='close'), at(), state)
    assert (decision.verdict, decision.knock.services) == ('close', ())


@pytest.mark.parametrize('name,asked,granted', [
    ('anna', 0, 30), ('anna', 1, 1), ('anna', 3600, 3600), ('anna', 3601, 3600),
    ('anna', 65535, 3600), ('short', 0, 7200), ('short', 65535, 7200)])
def test_nobody_opens_for_longer_than_the_config_says(state, name, asked, granted):
    packet = knock(state, name, seconds=asked, services=[SSH])
    assert knockd.judge(packet, at(), state).knock.seconds == granted


def test_what_is_told_is_never_longer_than_the_client_may_or_than_the_kernel_counts(state):
    anna = state.config.clients['anna']
    for changes, granted in ((dict(expires=WALL + 7900), 7), (dict(expires=WALL + 400), 0),
                             (dict(open_for=691200000), 691200),
                             (dict(open_for=691200000, once=True), 604800)):
        client = anna._replace(**changes)
        state.config = state.config._replace(clients=dict(state.config.clients, anna=client))
        state.tags = valid_tags(state.config, WALL)
        assert knockd.judge(knock(state, services=[SSH]), at(), state).knock.seconds == granted


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
    monkeypatch.setattr(state.ledger, 'refusal', forbidden)
    plain = encode_plain(knockd.Request('open', WALL - 60001, None, 0, (), None, None, None))
    decision = knockd.judge(knock(state, 'bert', plain=b'\2' + plain[1:]), at(), state)
    assert (decision.verdict, decision.kind) == ('refused', 'malformed')
    assert decision.reason.startswith('malformed: ')
    assert (decision.knock.client.name, decision.knock.source) == ('bert', HERE)


# In the order of judgement: kind, what makes a knock so, the reason that is told.
FLAWS = [
    ('clock', dict(time=WALL - 60001), 'clock -60s'),
    ('expired', dict(name='bert'), 'expired'),
    ('source', dict(source='203.0.113.99'), 'source 203.0.113.99'),
    ('scope', dict(services=[knockd.Service(6, 80, 80)]), 'not allowed tcp/80'),
    ('size', 'full', 'too much at a time: more than 64 port ranges'),
    ('signature', 'ssh key', 'no signature'),
    ('replay', 'spent', 'replay'),
    ('pace', 'hasty', 'too fast')]
PAIRS = [(first, second) for first in range(len(FLAWS)) for second in range(first, len(FLAWS))]


@pytest.mark.parametrize('first,second', PAIRS, ids=['%s %s' % (FLAWS[a][0], FLAWS[b][0])
                                                     for a, b in PAIRS])
def test_a_knock_with_two_flaws_is_refused_for_the_earlier(state, first, second):
    wrong, world = {}, set()
    for _, makes, _ in (FLAWS[second], FLAWS[first]):
        if isinstance(makes, dict):
            wrong.update(makes)
        else:
            world.add(makes)
    name = wrong.get('name', 'anna')
    if 'ssh key' in world:
        client = state.config.clients[name]._replace(ssh_key='ssh-ed25519 AAAA')
        state.config = state.config._replace(clients=dict(state.config.clients, **{name: client}))
        state.tags = valid_tags(state.config, WALL)
    client = state.config.clients[name]
    packet = knock(state, **wrong)
    if 'full' in world:
        state.openings = held(client, 65)
    if 'spent' in world:
        nonce = packet.payload[8:24].hex()
        state.ledger.record(client.fingerprint, nonce, wrong.get('time', WALL), 60000)
    if 'hasty' in world:
        for _ in range(5):
            state.knocks.spend(client.fingerprint, 5000)
    kind, _, reason = FLAWS[first]
    decision = knockd.judge(packet, at(), state)
    assert (decision.verdict, decision.kind, decision.reason) == ('refused', kind, reason)
    assert decision.knock.client == client


def held(client, count, expires=9000000, source='203.0.113.5/32'):
    """So many single ports that a client has open, no two of them neighbours."""
    network = ipaddress.ip_network(source)
    openings = {}
    for number in range(count):
        service = knockd.Service(6, 1000 + 2 * number, 1000 + 2 * number)
        openings[client.fingerprint, network, service, ()] = knockd.Opening(
            client.fingerprint, client.name, network, service, False, expires, (), False)
    return openings


@pytest.mark.parametrize('paper,ledger,kind', [
    ((1700000000, 1), knockd.Ledger('home', 1700000000000), 'void'),
    (None, knockd.Ledger('home', WALL), 'quarantine')])
def test_after_a_lost_ledger_the_kind_and_the_whole_reason_are_told(state, paper, ledger, kind):
    state.ledger = ledger
    client = state.config.clients['anna']
    packet = knock(state)
    if paper:
        packet = knockd.Packet('paper', HERE, knockd.Credential(client, 'paper', 0, paper, ()))
    decision = knockd.judge(packet, at(), state)
    assert (decision.verdict, decision.kind) == ('refused', kind)
    assert decision.reason == ledger.refusal(client.fingerprint, 'x', WALL, paper)


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


# --- what is known ------------------------------------------------------------------------------
def test_a_judge_who_has_learned_nothing_opens_to_nobody(state):
    new = knockd.State(CONFIG, knockd.Ledger('home'))
    assert (new.tags, new.badges, new.codes, new.openings) == ({}, {}, {}, {})
    assert said(new, knock(state)) == ('junk', None)
    assert [new.signatures.spend('anna', 1) for _ in range(3)] == [True, True, False]


def test_he_judges_by_what_he_learned_last(state):
    packet = knock(state)
    state.learn({}, {}, {})
    assert said(state, packet) == ('junk', None)
    badge = knockd.Credential(CONFIG.clients['anna'], 'syn', STEP, None, ())
    state.learn(valid_tags(CONFIG, WALL), {bytes(10): badge}, {'12345678': badge})
    assert said(state, packet) == ('open', None)
    assert (state.badges, state.codes) == ({bytes(10): badge}, {'12345678': badge})


def test_he_judges_by_the_config_of_now(state):
    state.adopt(CONFIG._replace(window=1000))
    assert said(state, knock(state, time=WALL - 1001)) == ('refused', 'clock -1s')
    state.adopt(CONFIG)
    assert said(state, knock(state, time=WALL - 1001)) == ('open', None)


def test_he_knows_what_is_open(state):
    state.hold(held(roomy(state), 64))
    assert said(state, knock(state))[0] == 'refused'


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
                  for client in state.config.clients.values()
                  for step in range(STEP - 9, STEP + 250)}
    assert said(state, knock(state, time=WALL + 87000)) == ('refused', 'clock +87s')
    assert said(state, knock(state, time=WALL - 87400)) == ('refused', 'clock -87s')
    assert said(state, knock(state, time=WALL + 7380000)) == ('refused', 'clock +7380s')


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
    """Time goes by, stands still, or is set; the step to come was made ahead, or was not."""
    known = knockd.valid_steps(CONFIG, WALL)
    ahead = known + [knockd.StepCredentials(CONFIG, known[-1].step + 1)]
    for made in (known, ahead):
        assert valid_tags(CONFIG, WALL + later, made) == valid_tags(CONFIG, WALL + later)


def test_a_step_that_was_made_ahead_is_not_made_at_the_tick(monkeypatch):
    known = knockd.valid_steps(CONFIG, WALL)
    known.append(knockd.StepCredentials(CONFIG, known[-1].step + 1))
    monkeypatch.setattr(knockd, 'StepCredentials', forbidden)
    later = knockd.valid_steps(CONFIG, WALL + 30000, known)
    assert [made.step for made in later] == list(range(STEP - 1, STEP + 5))


@pytest.mark.parametrize('carriers', [(), ('syn',), ('ports',), ('syn', 'ports')])
def test_a_step_holds_what_each_client_may_send_in_it(carriers):
    made = knockd.StepCredentials(CONFIG._replace(carriers=('udp',) + carriers), STEP)
    for client in CONFIG.clients.values():
        assert made.tags[knockd.tag_at(client.keys, STEP)] == (client, STEP)
        if 'syn' in carriers:
            expected = knockd.Credential(client, 'syn', STEP, None, ())
            assert made.badges[knockd.syn_badge(client.keys, STEP)] == expected
        if 'ports' in carriers:
            ports = knockd.step_ports(client.keys, STEP)
            expected = knockd.Credential(client, 'ports', STEP, None, ports)
            assert expected in made.sequences[ports[0]]
    assert len(made.tags) == 5
    assert len(made.badges) == (5 if 'syn' in carriers else 0)
    assert sum(map(len, made.sequences.values())) == (5 if 'ports' in carriers else 0)


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
    assert said(state, knock(state, 'short')) == ('refused', 'not allowed anything')
    assert said(state, knock(state, 'short', services=[SSH])) == ('open', None)


def test_an_action_must_be_the_clients(state):
    assert said(state, knock(state, op='run', action='reboot')) == (
        'refused', 'not allowed action reboot')
    clients = dict(state.config.clients)
    clients['anna'] = clients['anna']._replace(may_run=('reboot',))
    state.config = state.config._replace(clients=clients)
    state.tags = valid_tags(state.config, WALL)
    assert said(state, knock(state, op='run', action='reboot')) == ('run', None)
    assert said(state, knock(state, op='run', action='halt')) == (
        'refused', 'not allowed action halt')


def test_neighbours_that_are_allowed_one_by_one_are_allowed_as_a_range(state):
    client = state.config.clients['anna']._replace(
        allow=(knockd.Service(6, 22, 22), knockd.Service(6, 23, 23)))
    state.config = state.config._replace(clients={'anna': client})
    state.tags = valid_tags(state.config, WALL)
    both = knockd.Service(6, 22, 23)
    assert said(state, knock(state, services=[both])) == ('open', None)
    assert said(state, knock(state, services=[knockd.Service(6, 21, 22)]))[0] == 'refused'


def test_a_client_of_some_addresses_alone_opens_them_by_their_own_family(state):
    only = ipaddress.ip_address('192.0.2.8'),
    client = state.config.clients['anna']._replace(only=only)
    state.config = state.config._replace(clients={'anna': client})
    state.tags = valid_tags(state.config, WALL)
    six = ipaddress.ip_address('2001:db8::5')
    assert said(state, knock(state)) == ('open', None)
    assert said(state, knock(state, sender=six)) == (
        'refused', 'not allowed over IPv6: only names no such address')
    assert said(state, knock(state, op='close', sender=six)) == ('close', None)


def test_what_a_key_must_sign_names_server_step_and_knock(state):
    request = knockd.Request('open', WALL, None, 0, (SSH,), None, b's' * 83, None)
    packet = knock(state, plain=encode_plain(request, bytes(5)))
    signed = knockd.judge(packet, at(), state).knock.request.signed
    before = encode_plain(request._replace(signature=None))
    assert signed == b'knock/1 home\0' + packet.payload[:24] + before


# --- how much at a time -------------------------------------------------------------------------
def roomy(state, low=1000, high=2000):
    """anna may have these ports as well."""
    client = state.config.clients['anna']
    client = client._replace(allow=client.allow + (knockd.Service(6, low, high),))
    state.config = state.config._replace(clients=dict(state.config.clients, anna=client))
    state.tags = valid_tags(state.config, WALL)
    return client


@pytest.mark.parametrize('count,verdict', [(63, 'open'), (64, 'refused')])
def test_sixty_four_port_ranges_are_all_that_a_client_has_open_at_a_time(state, count, verdict):
    state.openings = held(roomy(state), count)
    assert said(state, knock(state))[0] == verdict


def test_what_is_open_already_can_be_knocked_for_again(state):
    client = roomy(state)
    state.openings = held(client, 64)
    assert said(state, knock(state, services=[knockd.Service(6, 1000, 1000)])) == ('open', None)


def test_what_is_over_and_what_others_have_does_not_count(state):
    state.openings = held(roomy(state), 64, expires=5000000)
    state.openings.update(held(state.config.clients['trusted'], 64))
    assert said(state, knock(state)) == ('open', None)


def test_a_range_is_one_however_many_ports_it_has(state):
    roomy(state, 1000, 65535)
    assert said(state, knock(state, services=[knockd.Service(6, 1000, 65535)])) == ('open', None)


def test_ports_that_touch_are_one_range(state):
    roomy(state)
    ports = [knockd.Service(6, port, port) for port in range(1000, 1100)]
    assert said(state, knock(state, services=ports)) == ('open', None)
    apart = [knockd.Service(6, port, port) for port in range(1000, 1130, 2)]
    assert said(state, knock(state, services=apart)) == (
        'refused', 'too much at a time: more than 64 port ranges')


def nested(client, count, apart=0):
    """One wide range with so many single ports in it: 2 * count + 1 elements, and some apart."""
    openings = held(client, count)
    network = ipaddress.ip_network('203.0.113.5/32')
    services = [knockd.Service(6, 999, 2 * count + 1000)]
    services += [knockd.Service(6, 3000 + 2 * number, 3000 + 2 * number) for number in range(apart)]
    for end, service in enumerate(services):
        openings[client.fingerprint, network, service, ()] = knockd.Opening(
            client.fingerprint, 'anna', network, service, False, 8000000 + end, (), False)
    return openings


@pytest.mark.parametrize('apart,verdict', [(0, 'open'), (1, 'refused')])
def test_the_ranges_that_the_kernel_must_hold_are_counted_as_well(state, apart, verdict):
    """Few openings that lie in each other are many elements: 63 and the one that is asked for."""
    state.openings = nested(roomy(state, 900, 4000), 31, apart)
    assert len(state.openings) == 32 + apart
    assert said(state, knock(state, services=[knockd.Service(6, 950, 950)]))[0] == verdict


@pytest.mark.parametrize('count,verdict', [(63, 'open'), (64, 'refused')])
def test_openings_are_counted_even_where_one_range_covers_them(state, count, verdict):
    """Or what one client can have in the daemon's memory had no bound."""
    client = roomy(state, 900, 4000)
    network = ipaddress.ip_network('203.0.113.5/32')
    for low in range(1000, 1000 + count):
        service = knockd.Service(6, low, 2000)
        state.openings[client.fingerprint, network, service, ()] = knockd.Opening(
            client.fingerprint, 'anna', network, service, False, 9000000, (), False)
    wide = knockd.Service(6, 999, 2001)
    assert said(state, knock(state, services=[wide], seconds=3600))[0] == verdict


def test_what_would_leave_too_many_parts_cannot_be_closed_in_part_but_whole(state):
    client = roomy(state, 1000, 3000)
    state.openings = dict(held(client, 63))
    wide = knockd.Service(6, 2000, 3000)
    network = ipaddress.ip_network('203.0.113.5/32')
    state.openings[client.fingerprint, network, wide, ()] = knockd.Opening(
        client.fingerprint, 'anna', network, wide, False, 9000000, (), False)
    part = knockd.Service(6, 2500, 2500)
    assert said(state, knock(state, op='close', services=[part]))[0] == 'refused'
    assert said(state, knock(state, op='close', services=[wide])) == ('close', None)
    assert said(state, knock(state, op='close')) == ('close', None)


# --- a new secret -------------------------------------------------------------------------------
def test_the_old_secret_counts_until_the_new_one_is_used(state):
    old = state.config.clients['anna']
    keys = knockd.derive_keys(b'n' * 32, 'home')
    new = old._replace(keys=keys, fingerprint=knockd.fingerprint(keys), old=old)
    state.config = state.config._replace(clients=dict(state.config.clients, anna=new))
    state.tags = valid_tags(state.config, WALL)
    decision = knockd.judge(knock(state, key=old.keys), at(), state)
    assert (decision.verdict, decision.knock.client.fingerprint) == ('open', old.fingerprint)
    assert said(state, knock(state, key=new.keys)) == ('open', None)
    decision = knockd.judge(knock(state, key=old.keys), at(), state)
    assert (decision.verdict, decision.kind) == ('refused', 'expired')
    assert decision.reason == 'expired: a newer secret of this client is in use'


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
    ('trusted', '0.0.0.0', ('refused', 'source 0.0.0.0')),
    ('trusted', '224.0.0.1', ('refused', 'source 224.0.0.1')),
    ('trusted', 'ff02::1', ('refused', 'source ff02::1')),
    ('trusted', '127.0.0.1', ('refused', 'source 127.0.0.1')),
    ('trusted', '::1', ('refused', 'source ::1'))])
def test_the_source_a_knock_names(state, name, named, expected):
    assert said(state, knock(state, name, source=named)) == expected


@pytest.mark.parametrize('named,opened,elsewhere', [
    (None, '203.0.113.5', False), ('203.0.113.5', '203.0.113.5', False),
    ('203.0.113.6', '203.0.113.6', True), ('2001:db8::5', '2001:db8::5', True)])
def test_any_source_opens_for_the_named_one(state, named, opened, elsewhere):
    decision = knockd.judge(knock(state, 'trusted', source=named), at(), state)
    assert decision.knock.source == ipaddress.ip_address(opened)
    openings = knockd.after_open({}, decision.knock, at()).values()
    assert [opening.elsewhere for opening in openings] == len(openings) * [elsewhere] != []


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


def test_the_budgets_are_for_a_second_not_for_a_millisecond(state):
    forged = knock(state)._replace(payload=knock(state).payload[:-1] + b'x')
    verdicts = [said(state, forged, at(mono=5000000 + number)) for number in range(201)]
    assert verdicts[-2:] == [('junk', None), ('mute', None)]
    verdicts = [said(state, knock(state, 'trusted'), at(mono=5000000 + 199 * number))
                for number in range(6)]
    assert verdicts[-2:] == [('open', None), ('refused', 'too fast')]


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


def test_a_budget_counts_what_comes_besides():
    budget = knockd.Budget(10)
    assert budget.spend('syn', 1, 9) is True
    assert budget.spend('syn', 1) is False
    assert budget.spend('other', 1, 10) is False


# --- copies -------------------------------------------------------------------------------------
def accepted(state, packet, mono=0):
    """The packet is honoured, as the daemon does it."""
    knock = knockd.judge(packet, at(mono=mono), state).knock
    state.ledger.record(knock.client.fingerprint, knock.knock_id, knock.request.time, 60000)
    state.copies.remember(knock, packet.source, mono)


@pytest.mark.parametrize('later,sender,verdict', [
    (0, HERE, 'copy'), (2000, HERE, 'copy'), (2001, HERE, 'refused'), (1, ELSEWHERE, 'refused')])
def test_the_networks_duplicate_of_what_was_accepted_is_a_copy(state, later, sender, verdict):
    packet = knock(state)
    accepted(state, packet)
    decision = knockd.judge(packet._replace(source=sender), at(mono=later), state)
    assert decision.verdict == verdict
    assert decision.kind == (None if verdict == 'copy' else 'replay')


def test_a_copy_that_is_wrong_in_another_way_is_refused(state):
    packet = knock(state)
    accepted(state, packet)
    assert knockd.judge(packet, at(WALL + 60001, 1000), state).kind == 'clock'


def test_a_copy_of_what_was_refused_is_refused_again(state):
    packet = knock(state, services=[MAIL])
    assert [said(state, packet) for _ in range(2)] == [('refused', 'not allowed tcp/25')] * 2


def test_what_copies_are_known_by_never_fills_memory(state, monkeypatch):
    monkeypatch.setattr(knockd, 'COPIES_LIMIT', 3)
    for number in range(1000):
        accepted(state, knock(state, time=WALL + number), number * 1000)
    assert len(state.copies.honoured) == 3


@pytest.mark.parametrize('carrier,paper,knock_id', [
    ('syn', None, 'syn:56666667'), ('ports', None, 'ports:56666667'),
    ('code', None, 'code:56666667'), ('paper', (1700000000, 7), 'paper:(1700000000, 7)')])
def test_what_has_no_room_for_a_request_asks_for_the_default_and_is_spent_by_its_step(
        state, carrier, paper, knock_id):
    client = state.config.clients['anna']
    credential = knockd.Credential(client, carrier, STEP, paper, ())
    decision = knockd.judge(knockd.Packet(carrier, HERE, credential), at(), state)
    granted = decision.knock
    assert (decision.verdict, granted.knock_id, granted.services) == ('open', knock_id, (SSH,))
    assert (granted.request.time, granted.paper, granted.seconds) == (STEP * 30000, paper, 30)


def test_the_budgets_are_those_that_the_readme_names():
    assert (knockd.SYNS_A_SECOND, knockd.MACS_A_SECOND, knockd.KNOCKS_A_SECOND,
            knockd.SIGNATURES_A_SECOND) == (20000, 200, 5, 2)


def test_a_client_is_refused_by_a_carrier_that_is_not_his(state):
    """The filter lets by what another client may use."""
    client = state.config.clients['anna']._replace(carriers=('icmp',))
    for tag, (owner, step) in state.tags.items():
        if owner.name == 'anna':
            state.tags[tag] = client, step
    assert said(state, knock(state)) == ('refused', 'not allowed carrier udp')
    assert said(state, knock(state, carrier='icmp'))[0] == 'open'


@pytest.mark.parametrize('away,verdict', [(-2, 'refused'), (-1, 'open'), (0, 'open'), (1, 'open'),
                                          (2, 'refused')])
def test_a_code_is_good_for_its_step_and_the_ones_beside_it(state, away, verdict):
    client = CONFIG.clients['trusted']
    credential = knockd.Credential(client, 'code', STEP + away, None, ())
    decision = knockd.judge(knockd.Packet('code', HERE, credential), at(), state)
    assert decision.verdict == verdict
