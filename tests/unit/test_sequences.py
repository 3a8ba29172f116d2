"""Sequences and codes: touched ports and milliseconds in, credentials out."""

import gc
import ipaddress
import random

import pytest

import knockd

HERE, THERE = 'here', 'there'
SIX = (2001, 3002, 4003, 5004, 6005, 7006)
OTHER = (12001, 13002, 14003, 15004, 16005, 17006)
STEP = 30000
START = 7000 * STEP             # monotonic milliseconds, the beginning of a step of the carrier


def sequence(name, ports, step=1):
    return knockd.Credential(name, 'ports', step, None, ports)


def table(*credentials):
    """By their first ports."""
    found = {}
    for each in credentials:
        found.setdefault(each.ports[0], []).append(each)
    return found


ANNA, BERT = sequence('anna', SIX), sequence('bert', OTHER)


@pytest.fixture
def sequences():
    return knockd.Sequences(table(ANNA, BERT))


def completed(sequences, source, port, now):
    """The credentials that a port completes."""
    return sequences.touch(source, port, now).finished


def touched(sequences, ports, source=HERE, begin=0, pause=100):
    """All that the ports complete."""
    found = []
    for number, port in enumerate(ports):
        found += completed(sequences, source, port, begin + number * pause)
    return found


# --- sequences -----------------------------------------------------------------------------------
def test_six_ports_in_order_complete_a_sequence_with_the_last(sequences):
    assert touched(sequences, SIX[:5]) == []
    assert completed(sequences, HERE, SIX[5], 600) == [ANNA]


@pytest.mark.parametrize('ports', (
    SIX[::-1], SIX[1:] + SIX[:1], SIX[:4] + SIX[5:] + SIX[4:5], SIX[1:], SIX[:5]))
def test_another_order_or_less_completes_nothing(sequences, ports):
    assert touched(sequences, ports) == []


def test_two_sources_do_not_add_up(sequences):
    assert touched(sequences, SIX[:3], HERE) + touched(sequences, SIX[3:], THERE, 300) == []


def test_a_port_already_taken_changes_nothing(sequences):
    """Browsers send two SYNs, networks repeat them, late copies come out of order."""
    ports = []
    for number, port in enumerate(SIX):
        ports += [port, port] + list(SIX[:number]) * 3
    assert touched(sequences, ports, pause=10) == [ANNA]


@pytest.mark.parametrize('strikes, opens', ((10, True), (11, False)))
def test_the_eleventh_strike_ends_an_attempt(sequences, strikes, opens):
    ports = SIX[:3] + tuple(range(40000, 40000 + strikes)) + SIX[3:]
    assert touched(sequences, ports) == ([ANNA] if opens else [])


def test_strikes_count_against_all_attempts_of_the_source(sequences):
    ports = SIX[:3] + OTHER[:3] + tuple(range(40000, 40011)) + SIX[3:] + OTHER[3:]
    assert touched(sequences, ports) == []


def test_what_one_attempt_explains_is_no_strike_against_another(sequences):
    ports = SIX[:1] + OTHER[:5] * 3 + SIX[1:] + OTHER[5:]
    assert touched(sequences, ports) == [ANNA, BERT]


def test_an_attempt_that_was_struck_out_can_begin_anew(sequences):
    assert touched(sequences, SIX[:3] + tuple(range(40000, 40011))) == []
    assert touched(sequences, SIX, begin=2000) == [ANNA]


@pytest.mark.parametrize('last, opens', ((20000, True), (20001, False)))
def test_twenty_seconds_from_first_to_last(sequences, last, opens):
    assert touched(sequences, SIX[:5]) == []
    assert completed(sequences, HERE, SIX[5], last) == ([ANNA] if opens else [])


def test_two_clients_of_one_step_behind_one_address_both_get_in(sequences):
    """Their knocks have the same id, for an id names the step."""
    ports = [port for pair in zip(SIX, OTHER) for port in pair]
    assert touched(sequences, ports) == [ANNA, BERT]


def test_a_second_client_gets_in_right_after_the_first(sequences):
    assert touched(sequences, SIX) == [ANNA]
    assert touched(sequences, OTHER, begin=700) == [BERT]


def test_two_clients_with_the_same_first_port_both_get_in():
    other = sequence('carl', (SIX[0],) + OTHER[1:])
    sequences = knockd.Sequences(table(ANNA, other))
    ports = SIX[:1] + tuple(port for pair in zip(SIX[1:], OTHER[1:]) for port in pair)
    assert touched(sequences, ports) == [ANNA, other]


def test_a_finished_attempt_explains_late_copies_for_twenty_seconds(sequences):
    """Copies of it are no strikes against the other client behind that address."""
    assert touched(sequences, SIX) == [ANNA]
    ports = OTHER[:3] + SIX * 3 + OTHER[3:]
    assert touched(sequences, ports, begin=1000) == [BERT]
    assert completed(sequences, HERE, SIX[0], 20500) == []
    assert touched(sequences, SIX[1:], begin=20501) == [], 'it began again only after 20.5 s'
    assert touched(sequences, SIX, begin=60000) == [ANNA]


def test_full_scans_never_add_up():
    """Ascending, descending and two random orders over the sequences of 100 clients."""
    numbers = random.Random(4)
    sequences = knockd.Sequences(table(*[
        sequence('c%d' % client, tuple(numbers.sample(range(1024, 65536), 6)))
        for client in range(100)]))
    for number in range(4):
        order = list(range(1024, 65536))[::-1 if number else 1]
        if number > 1:
            numbers.shuffle(order)
        assert touched(sequences, order, 'scanner', number * 100000, 1) == []


def test_a_hundred_thousand_sources_leave_memory_flat_and_a_real_sequence_works(sequences):
    """Each starts a sequence; one with two ports outlives those with one."""
    touched(sequences, SIX[:2])
    objects = []
    for number in range(100000):
        assert completed(sequences, number, SIX[0], 1000) == []
        if number in (9999, 99999):
            objects.append(len(gc.get_objects()))
    assert abs(objects[1] - objects[0]) < 200
    assert len(sequences.beginners) + len(sequences.advanced) == 4096
    assert touched(sequences, SIX[2:], begin=1100) == [ANNA]
    assert touched(sequences, OTHER, THERE, begin=1100) == [BERT]


def test_ports_that_begin_nothing_are_not_kept(sequences):
    for number in range(1000):
        completed(sequences, number, 50000, 0)
    assert len(sequences.beginners) + len(sequences.advanced) == 0


def test_an_attempt_outlives_the_turn_of_a_step(sequences):
    assert touched(sequences, SIX[:3]) == []
    sequences.tables[1:] = [table(sequence('anna', (9001, 9002, 9003, 9004, 9005, 9006), 2))]
    assert touched(sequences, SIX[3:], begin=300) == [ANNA]


def test_what_goes_on_is_told_for_it_is_half_of_no_code(sequences):
    """A first port may be half of a code; what follows it in its order is not."""
    told = [sequences.touch(HERE, port, 0).goes_on for port in (
        SIX[0], SIX[0], 50000, SIX[1], SIX[0], 50000, OTHER[0], SIX[2])]
    assert told == [False, False, False, True, True, False, False, True]


def test_ten_strikes_are_forgiven_and_copies_are_none(sequences):
    ports = SIX[:2] + tuple(range(40000, 40010)) + SIX[:2] * 20 + SIX[2:]
    assert touched(sequences, ports, pause=1) == [ANNA]


def test_beginning_another_sequence_is_no_strike(sequences):
    firsts = [sequence('c%d' % number, (20000 + number,) + OTHER[1:]) for number in range(30)]
    sequences.tables.append(table(*firsts))
    ports = SIX[:2] + tuple(range(20000, 20030)) + SIX[2:]
    assert touched(sequences, ports, pause=10)[:1] == [ANNA]


def test_those_who_came_further_and_stopped_keep_nobody_from_beginning(sequences):
    """Nor does the memory of them grow."""
    for number in range(4096):
        touched(sequences, SIX[:2], number, 1000, 1)
    assert touched(sequences, SIX, 'late', 21500) == [ANNA]
    assert touched(sequences, SIX, 'later', 22500) == [ANNA]
    assert len(sequences.beginners) + len(sequences.advanced) == 4096


def test_those_who_are_under_way_are_not_forgotten_for_newcomers(sequences):
    for number in range(4096):
        touched(sequences, SIX[:2], number, 1000, 1)
    touched(sequences, SIX[:1], 'new', 1100)
    assert touched(sequences, SIX[2:], 0, 1100) == [ANNA]
    assert touched(sequences, SIX[2:], 4095, 1100) == [ANNA]


def test_a_source_with_one_port_goes_before_one_with_two(sequences):
    touched(sequences, SIX[:2], 'two')
    for number in range(4095):
        touched(sequences, SIX[:1], number, 1000)
    touched(sequences, OTHER[:1], 'last', 1001)
    assert touched(sequences, SIX[1:], 0, 1100) == [], 'the eldest with one'
    assert touched(sequences, SIX[2:], 'two', 1100) == [ANNA]
    assert touched(sequences, OTHER[1:], 'last', 1100) == [BERT]


def test_a_source_counts_by_what_has_come_furthest(sequences):
    """It began another one meanwhile."""
    touched(sequences, SIX[:2] + OTHER[:1], 'two')
    for number in range(4095):
        touched(sequences, SIX[:1], number, 1000)
    touched(sequences, OTHER[:1], 'last', 1001)
    assert touched(sequences, SIX[2:], 'two', 1100) == [ANNA]


@pytest.mark.parametrize('struck', [False, True])
def test_one_that_is_dead_takes_nobody_with_it_who_is_under_way(sequences, struck):
    """Be it another attempt of the same source, or a later source's."""
    touched(sequences, SIX[:2], 'two', 0)
    touched(sequences, OTHER[:2], 'two', 15000)
    if struck:
        touched(sequences, SIX[:2] + tuple(range(40000, 40011)), 'struck', 15300)
    for number in range(4096 - len(sequences.advanced)):
        touched(sequences, SIX[:2], number, 16000, 1)
    touched(sequences, SIX[:1], 'new', 21500)
    assert len(sequences.beginners) + len(sequences.advanced) == 4096
    assert touched(sequences, OTHER[2:], 'two', 22000) == [BERT]


def test_a_port_is_strange_or_fits_or_is_the_last_to_an_attempt():
    attempt = knockd.Attempt(ANNA, 1000)
    ports = SIX[:1] + SIX[2:3] + SIX[1:] + SIX[5:] + OTHER[:1]
    told = [attempt.touch(port, 2000) for port in ports]
    assert told == ['fits', 'strange', 'fits', 'fits', 'fits', 'fits', 'last', 'fits', 'strange']
    assert (attempt.taken, attempt.strikes, attempt.since) == (6, 0, 2000)


def paper_config(**clients):
    text = '[server]\nid = home\nhide = tcp/22\n'
    for number, (name, sheet) in enumerate(clients.items()):
        secret = knockd.encode_secret(bytes([number + 1]) * 32)
        text += '[client %s]\nsecret = %s\n%s\n' % (name, secret, sheet)
    return knockd.parse_config(text, '/nowhere/knockd.ini')


def test_every_number_of_every_sheet_has_its_sequence():
    config = paper_config(anna='paper = 1700000000:3', bert='', carl='paper = 1700000001:2')
    found = [each for row in knockd.paper_sequences(config).values() for each in row]
    expected = set()
    for name, sheet, count in (('anna', 1700000000, 3), ('carl', 1700000001, 2)):
        client = config.clients[name]
        for number in range(1, count + 1):
            ports = knockd.paper_ports(client.keys, sheet, number)
            expected.add((name, 'paper', 0, (sheet, number), ports))
    assert {(each.client.name,) + each[1:] for each in found} == expected
    assert len(found) == 5
    for first, row in knockd.paper_sequences(config).items():
        assert {each.ports[0] for each in row} == {first}


# --- codes ---------------------------------------------------------------------------------------
CODE = knockd.Credential('anna', 'code', 1, None, ())
CODES = {'12345678': CODE}
FIRST, SECOND = 11234, 25678
WALL = 1700000010000            # the beginning of a step, of this clock as of the other


@pytest.fixture
def codes():
    return knockd.Codes()


def at(mono):
    """The clocks: their steps begin together."""
    return knockd.Moment(WALL + mono - START, mono)


def tried(codes, now, first=19000, second=29000, source=THERE):
    """One try; None unless it is right."""
    return codes.touch(source, first, at(now), CODES) or codes.touch(source, second, at(now), CODES)


def awake(codes, now):
    """Does the right code, typed by somebody new, count?"""
    return tried(codes, now, FIRST, SECOND, object()) is CODE


def put_to_sleep(codes, now):
    for number in range(3):
        assert awake(codes, now)
        tried(codes, now, 19000 + number)
    assert not awake(codes, now)


def slept(codes, now):
    """For how many whole steps, besides the rest of the one in which it was spent."""
    put_to_sleep(codes, now)
    return next(step for step in range(1, 1000) if awake(codes, now + step * STEP)) - 1


def test_two_ports_are_a_code(codes):
    assert codes.touch(HERE, FIRST, at(START), CODES) is None
    assert codes.touch(HERE, SECOND, at(START + 60000), CODES) is CODE


def test_a_code_has_sixty_seconds(codes):
    codes.touch(HERE, FIRST, at(START), CODES)
    assert codes.touch(HERE, SECOND, at(START + 60001), CODES) is None
    assert codes.wrong == 0, 'and is no try after them'


@pytest.mark.parametrize('code', ('00000000', '99999999', '00009999', '99990000'))
def test_every_digit_counts(codes, code):
    first, second = 10000 + int(code[:4]), 20000 + int(code[4:])
    assert codes.touch(HERE, first, at(START), {code: CODE}) is None
    assert codes.touch(HERE, second, at(START), {code: CODE}) is CODE


@pytest.mark.parametrize('ports', ((SECOND, FIRST), (FIRST, FIRST), (SECOND, SECOND)))
def test_another_order_is_no_code(codes, ports):
    assert [codes.touch(HERE, port, at(START), CODES) for port in ports] == [None, None]


def test_a_new_first_port_replaces_the_old_one(codes):
    codes.touch(HERE, FIRST, at(START), CODES)
    codes.touch(HERE, FIRST + 1, at(START), CODES)
    assert codes.touch(HERE, SECOND, at(START), CODES) is None
    assert tried(codes, START, FIRST, SECOND, HERE) is CODE


def test_two_sources_make_no_code(codes):
    codes.touch(HERE, FIRST, at(START), CODES)
    assert codes.touch(THERE, SECOND, at(START), CODES) is None


def test_ports_outside_do_not_count(codes):
    codes.touch(HERE, FIRST, at(START), CODES)
    for port in (9999, 30000, 1, 65535):
        assert codes.touch(HERE, port, at(START), CODES) is None
    assert codes.wrong == 0
    assert codes.touch(HERE, SECOND, at(START), CODES) is CODE


# What is a try, and what is a copy.
@pytest.mark.parametrize('times,tries', [
    ((0, 250, 1000, 3000, 7000, 15000, 29999), 1),      # one step: a copy tells nothing new
    ((25000, 26000, 28000, 32000), 1),                  # TCP sends again after 1, 3, 7 s
    ((29999, 30000, 39998), 1),
    ((29999, 39999), 2),                                # too late for a copy, and another step
    ((0, 30000), 2),                                    # a repeat in another step is a try
    ((20000, 30000), 2)])
def test_a_repeat_is_a_try_in_another_step_and_a_copy_where_the_network_makes_it(
        codes, times, tries):
    for time in times:
        tried(codes, START + time)
    assert codes.wrong == tries


def test_copies_of_the_second_port_alone_are_copies_too(codes):
    for time in (0, 0, 1000, 3000):
        codes.touch(HERE, 19000, at(START + time), CODES) if time == 0 else None
        codes.touch(HERE, 29000, at(START + time), CODES)
    assert codes.wrong == 1


def test_what_is_not_counted_is_not_looked_at(codes):
    """A copy behind the edge of a step would be a free guess at the new step's code."""
    assert tried(codes, START + 29000) is None
    copy = {'90009000': CODE}
    assert codes.touch(THERE, 29000, at(START + 31000), copy) is None
    assert codes.touch(THERE, 29000, at(START + 39000), copy) is CODE
    assert codes.wrong == 1


def test_another_pair_in_the_same_step_is_a_try(codes):
    tried(codes, START, 19000, 29000)
    tried(codes, START, 19000, 29001)
    assert codes.wrong == 2
    tried(codes, START, 19001, 29001)
    assert not awake(codes, START)


def test_the_same_wrong_code_step_after_step_puts_it_to_sleep(codes):
    """0.1 let it go on for ever."""
    for step in range(3):
        assert awake(codes, START + step * STEP)
        tried(codes, START + step * STEP)
    assert not awake(codes, START + 3 * STEP)


def test_the_third_wrong_try_puts_it_to_sleep_whoever_tried(codes):
    for source in ('one', 'two'):
        tried(codes, START, source=source)
    assert awake(codes, START)
    tried(codes, START, source='three')
    assert not awake(codes, START)


def test_right_codes_are_no_wrong_tries(codes):
    for number in range(10):
        assert tried(codes, START, FIRST, SECOND, number) is CODE
    assert awake(codes, START)


# How long it sleeps.
def test_it_sleeps_for_a_whole_step_and_wakes(codes):
    put_to_sleep(codes, START + 10000)
    assert not awake(codes, START + 2 * STEP - 1)
    assert awake(codes, START + 2 * STEP)


def test_it_sleeps_twice_as_long_each_time_up_to_an_hour(codes):
    now, naps = START, []
    for _ in range(11):
        naps.append(slept(codes, now))
        now += (naps[-1] + 1) * STEP
    # The second 64: an hour is over, and one doubling with it.
    assert naps == [1, 2, 4, 8, 16, 32, 64, 64, 120, 120, 120]


@pytest.mark.parametrize('later,nap', [(0, 8), (1, 4), (2, 2), (3, 1), (1000, 1)])
def test_every_hour_takes_one_doubling_back(codes, later, nap):
    """Counted from the first sleep on; below nothing there is nothing to save up."""
    for number in range(3):
        now = START + number * 10 * STEP
        put_to_sleep(codes, now)
    assert slept(codes, START + later * 3600000 + 30 * STEP) == nap


def test_a_doubling_is_taken_back_to_the_millisecond(codes):
    put_to_sleep(codes, START)
    before, after = START + 3600000 - 1, START + 3600000
    codes.forgiven_at, kept = START + 3600000, codes.forgiven_at
    assert kept == after
    assert slept(codes, before) == 2
    assert slept(codes, codes.forgiven_at) == 1


def test_a_success_takes_nothing_back(codes):
    """Or every knock of every client would give a guesser 24 tries more."""
    now, naps = START, []
    for _ in range(4):
        assert awake(codes, now)
        naps.append(slept(codes, now))
        now += (naps[-1] + 1) * STEP
    assert naps == [1, 2, 4, 8]
    tried(codes, now)
    tried(codes, now, 19001)
    assert awake(codes, now)
    tried(codes, now, 19002)
    assert not awake(codes, now)


def test_what_was_typed_before_a_sleep_does_not_count_after_it(codes):
    codes.touch(HERE, FIRST, at(START), CODES)
    for number in range(3):
        tried(codes, START + 29000, 19000 + number)
    assert codes.touch(HERE, SECOND, at(START + 2 * STEP), CODES) is None
    assert awake(codes, START + 2 * STEP)


def test_what_is_typed_in_its_sleep_does_not_count(codes):
    put_to_sleep(codes, START)
    codes.touch(HERE, FIRST, at(START + STEP), CODES)
    assert codes.touch(HERE, SECOND, at(START + 2 * STEP), CODES) is None


def test_a_hundred_thousand_sources_leave_the_memory_of_codes_flat(codes):
    for number in range(100000):
        codes.touch(number, 15000, at(START), CODES)
        codes.touch('second %d' % number, 25000, at(START), CODES)
    assert len(codes.typing) == 4096
    assert codes.wrong == 0, 'a second port alone is no try'
    assert tried(codes, START, FIRST, SECOND, HERE) is CODE


def test_the_source_that_typed_last_is_forgotten_last(codes):
    codes.touch(HERE, 15000, at(START), CODES)
    codes.touch(THERE, 15000, at(START), CODES)
    codes.touch(HERE, FIRST, at(START), CODES)
    for number in range(4095):
        codes.touch(number, 15000, at(START), CODES)
    assert codes.touch(THERE, SECOND, at(START), CODES) is None
    assert codes.touch(HERE, SECOND, at(START), CODES) is CODE


# Which codes are valid.
def code_config(carriers='udp, code'):
    text = '[server]\nid = home\nhide = tcp/22\ncarriers = %s\n' % carriers
    for number, (name, code) in enumerate((('anna', 'yes'), ('bert', 'no'), ('carl', 'yes'))):
        secret = knockd.encode_secret(bytes([number + 1]) * 32)
        text += '[client %s]\nsecret = %s\ncode = %s\n' % (name, secret, code)
    return knockd.parse_config(text, '/nowhere/knockd.ini')


@pytest.mark.parametrize('wall,steps', [
    (0, [0, 1, 2]), (30000, [0, 1, 2, 3]), (89999, [1, 2, 3, 4]), (90000, [2, 3, 4, 5])])
def test_the_codes_around_a_step_are_known(wall, steps):
    config = code_config()
    found = knockd.valid_codes(config, wall)
    expected = {}
    for name in ('anna', 'carl'):
        client = config.clients[name]
        for step in steps:
            code = knockd.code_at(client.keys, step)
            expected[code] = knockd.Credential(client, 'code', step, None, ())
    assert found == expected


def test_without_the_carrier_no_code_is_valid():
    assert knockd.valid_codes(code_config('udp, ports'), WALL) == {}


@pytest.mark.parametrize('distance,verdict', [(-2, 'refused'), (-1, 'open'), (0, 'open'),
                                              (1, 'open'), (2, 'refused')])
def test_a_code_counts_in_its_step_and_those_beside_it(distance, verdict):
    config = code_config()
    state = knockd.State(config._replace(window=600000), knockd.Ledger('home'))
    client = config.clients['anna']
    step = knockd.step_of(WALL) + distance
    credential = knockd.Credential(client, 'code', step, None, ())
    packet = knockd.Packet('code', ipaddress.ip_address('203.0.113.5'), credential)
    decision = knockd.judge(packet, knockd.Moment(WALL, 0), state)
    assert decision.verdict == verdict
    assert decision.kind == (None if verdict == 'open' else 'clock')


# --- the keyring: the daemon and `watch` ask it what a SYN completes ---------------------------
def keyring_of(hide):
    secret = knockd.encode_secret(bytes(range(32)))
    config = knockd.parse_config(
        '[server]\nid = home\nhide = %s\n[client anna]\nsecret = %s\n' % (hide, secret), '/k/k.ini')
    keyring = knockd.Keyring(knockd.State(config, knockd.Ledger('home')), knockd.Codes())
    keyring.adopt(knockd.Moment(START, 0))
    return keyring


def carriers_completed(hide, badges_alone=False):
    """By six SYNs to anna's ports of this step."""
    keyring = keyring_of(hide)
    keys = keyring.state.config.clients['anna'].keys
    source, found = ipaddress.ip_address('192.0.2.1'), []
    for port in knockd.step_ports(keys, START // STEP):
        syn = knockd.Syn(source, source, port, bytes(10))
        found += keyring.packets_of(syn, knockd.Moment(START, 1000), badges_alone)
    return [packet.carrier for packet in found]


def test_a_sequence_counts_unless_a_port_of_it_is_hidden_or_sequences_sleep():
    fourth = knockd.step_ports(
        keyring_of('tcp/22').state.config.clients['anna'].keys, START // STEP)[3]
    assert carriers_completed('tcp/22') == ['ports']
    assert carriers_completed('tcp/%d' % fourth) == []
    assert carriers_completed('tcp/22', badges_alone=True) == []


def keyring_with(lines, server='carriers = udp, syn, ports, code'):
    """The keyring of a config whose client anna has such lines, and her keys."""
    secret = knockd.encode_secret(bytes(range(32)))
    config = knockd.parse_config('[server]\nid = home\nhide = tcp/22\n%s\n[client anna]\n'
                                 'secret = %s\n%s\n' % (server, secret, lines), '/k/k.ini')
    keyring = knockd.Keyring(knockd.State(config, knockd.Ledger('home')), knockd.Codes())
    keyring.adopt(knockd.Moment(START, 0))
    return keyring, config.clients['anna'].keys


def heard(keyring, ports, badge=bytes(10), source='192.0.2.1', mono=1000):
    """The carriers of what SYNs to these ports complete."""
    source, found = ipaddress.ip_address(source), []
    for port in ports:
        syn = knockd.Syn(source, source, port, badge)
        found += keyring.packets_of(syn, knockd.Moment(START, mono))
    for packet in found:
        assert (packet.source, packet.carrier) == (source, packet.payload.carrier)
    return [packet.carrier for packet in found]


def test_a_badge_counts_whatever_its_port_and_nothing_else_is_one():
    keyring, keys = keyring_with('')
    badge = knockd.syn_badge(keys, START // STEP)
    for port in (1, 22, 1024, 50000, 65535):
        assert heard(keyring, [port], badge) == ['syn']
        assert heard(keyring, [port], badge[:-1] + b'x') == []


def test_a_code_is_heard_by_its_two_ports_and_not_while_the_clock_is_in_doubt():
    keyring, keys = keyring_with('code = yes')
    code = knockd.code_at(keys, START // STEP)
    ports = [10000 + int(code[:4]), 20000 + int(code[4:])]
    assert heard(keyring, ports) == ['code']
    keyring.turn(knockd.Moment(START, 0), doubt='it is wrong')
    assert heard(keyring, ports, source='192.0.2.2') == []
    assert keyring.codes.wrong == 0
    keyring.turn(knockd.Moment(START, 0))
    assert heard(keyring, ports, source='192.0.2.3') == ['code']


def test_a_paper_knock_is_heard_by_its_six_ports():
    keyring, keys = keyring_with('paper = 1700000000:3')
    assert heard(keyring, knockd.paper_ports(keys, 1700000000, 2)) == ['paper']
    assert heard(keyring, knockd.paper_ports(keys, 1700000000, 4)) == []


def test_a_port_below_1024_does_not_count_and_1024_does():
    """Nor is it a strike."""
    for between, completes in ((1023, ['ports']), (1, ['ports']), (1024, [])):
        keyring, keys = keyring_with('', 'carriers = udp, ports')
        ports = knockd.step_ports(keys, START // STEP)
        assert 1024 not in ports
        assert heard(keyring, ports[:3] + (between,) * 11 + ports[3:]) == completes


def test_another_config_is_heard_by_its_own_keys_alone():
    keyring, keys = keyring_with('code = yes')
    other, new = keyring_with('code = yes')[0].state.config, knockd.derive_keys(b'n' * 32, 'home')
    client = other.clients['anna']._replace(keys=new, fingerprint=knockd.fingerprint(new))
    keyring.state.adopt(other._replace(clients={'anna': client}))
    keyring.adopt(knockd.Moment(START, 0))
    for made, carriers in ((keys, []), (new, ['ports'])):
        assert heard(keyring, knockd.step_ports(made, START // STEP)) == carriers
        assert (knockd.tag_at(made, START // STEP) in keyring.state.tags) is bool(carriers)
        assert (knockd.syn_badge(made, START // STEP) in keyring.state.badges) is bool(carriers)
        assert (knockd.code_at(made, START // STEP) in keyring.state.codes) is bool(carriers)


def test_a_step_turns_once_and_what_is_over_is_heard_no_more():
    keyring, keys = keyring_with('')
    assert not keyring.turned(knockd.Moment(START + STEP - 1, 0))
    for wall in (START + STEP, START - 1, START + 9 * STEP):
        assert keyring.turned(knockd.Moment(wall, 0))
        keyring.turn(knockd.Moment(wall, 0))
        assert not keyring.turned(knockd.Moment(wall, 0))
        steps = [made.step for made in keyring.credentials]
        assert steps == list(range(wall // STEP - 2, wall // STEP + 4))
        assert keyring.sequences.tables[1:] == [made.sequences for made in keyring.credentials]
        assert keyring.sequences.tables[0] == {}
        assert set(keyring.state.tags) == {knockd.tag_at(keys, step) for step in steps}
        assert set(keyring.state.badges) == {knockd.syn_badge(keys, step) for step in steps}


def test_one_step_more_is_made_ahead_and_not_again():
    keyring, _ = keyring_with('')
    assert keyring.lacks_next()
    keyring.prepare()
    assert not keyring.lacks_next()
    steps = [made.step for made in keyring.credentials]
    assert steps == list(range(START // STEP - 2, START // STEP + 5))
    ahead = keyring.credentials[-1]
    keyring.prepare()
    assert keyring.credentials[-1] is ahead
    keyring.turn(knockd.Moment(START + STEP, 0))
    assert keyring.credentials[-1] is ahead and keyring.lacks_next()
