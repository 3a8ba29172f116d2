"""Sequences and codes (DESIGN 3.4, 3.5): touched ports and milliseconds in, tokens out."""

import gc
import random

import pytest

import knockd

HERE, THERE = 'here', 'there'
SIX = (2001, 3002, 4003, 5004, 6005, 7006)
OTHER = (12001, 13002, 14003, 15004, 16005, 17006)
STEP = 30000
START = 7000 * STEP             # monotonic milliseconds, the beginning of a step of the carrier


def token(name, ports, step=1):
    return knockd.Credential(name, 'ports', step, None, ports)


def table(*tokens):
    """By their first ports."""
    found = {}
    for each in tokens:
        found.setdefault(each.ports[0], []).append(each)
    return found


ANNA, BERT = token('anna', SIX), token('bert', OTHER)


@pytest.fixture
def sequences():
    return knockd.Sequences(table(ANNA, BERT))


def completed(sequences, source, port, now):
    """The tokens that a port completes, whatever else touch() tells."""
    told = sequences.touch(source, port, now)
    return told[0] if isinstance(told, tuple) else told


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
    other = token('carl', (SIX[0],) + OTHER[1:])
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
        token('c%d' % client, tuple(numbers.sample(range(1024, 65536), 6)))
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
    assert sum(len(sources) for sources in sequences.sources) == 4096
    assert touched(sequences, SIX[2:], begin=1100) == [ANNA]
    assert touched(sequences, OTHER, THERE, begin=1100) == [BERT]


def test_ports_that_begin_nothing_are_not_kept(sequences):
    for number in range(1000):
        completed(sequences, number, 50000, 0)
    assert sum(len(sources) for sources in sequences.sources) == 0


def test_an_attempt_outlives_the_turn_of_a_step(sequences):
    assert touched(sequences, SIX[:3]) == []
    sequences.tables[1:] = [table(token('anna', (9001, 9002, 9003, 9004, 9005, 9006), 2))]
    assert touched(sequences, SIX[3:], begin=300) == [ANNA]


# --- codes ---------------------------------------------------------------------------------------
CODE = knockd.Credential('anna', 'code', 1, None, ())
CODES = {'12345678': CODE}
FIRST, SECOND = 11234, 25678


@pytest.fixture
def codes():
    return knockd.Codes()


def tried(codes, now, first=19000, second=29000, source=THERE):
    """One try; None unless it is right."""
    return codes.touch(source, first, now, CODES) or codes.touch(source, second, now, CODES)


def awake(codes, now):
    """Does the right code, typed by somebody now, count? (Without telling that it succeeded.)"""
    return tried(codes, now, FIRST, SECOND, 'probe') is CODE


def put_to_sleep(codes, now):
    for number in range(3):
        tried(codes, now, 19000 + number)


def test_two_ports_are_a_code(codes):
    assert codes.touch(HERE, FIRST, START, CODES) is None
    assert codes.touch(HERE, SECOND, START + 60000, CODES) is CODE


def test_a_code_has_sixty_seconds(codes):
    codes.touch(HERE, FIRST, START, CODES)
    assert codes.touch(HERE, SECOND, START + 60001, CODES) is None


@pytest.mark.parametrize('ports', ((SECOND, FIRST), (FIRST, FIRST), (SECOND, SECOND)))
def test_another_order_is_no_code(codes, ports):
    assert [codes.touch(HERE, port, START, CODES) for port in ports] == [None, None]


def test_a_new_first_port_replaces_the_old_one(codes):
    codes.touch(HERE, FIRST, START, CODES)
    codes.touch(HERE, FIRST + 1, START, CODES)
    assert codes.touch(HERE, SECOND, START, CODES) is None


def test_two_sources_make_no_code(codes):
    codes.touch(HERE, FIRST, START, CODES)
    assert codes.touch(THERE, SECOND, START, CODES) is None


def test_ports_outside_do_not_count(codes):
    codes.touch(HERE, FIRST, START, CODES)
    for port in (9999, 30000, 1, 65535):
        assert codes.touch(HERE, port, START, CODES) is None
    assert codes.touch(HERE, SECOND, START, CODES) is CODE


def test_copies_of_a_wrong_try_are_one_try(codes):
    """A browser sends each SYN twice, and a dropping box gets it again after a second."""
    for pause in range(10):
        tried(codes, START + pause)
    assert awake(codes, START + 100)


def test_the_third_wrong_try_puts_it_to_sleep_whoever_tried(codes):
    for source in ('one', 'two'):
        tried(codes, START, source=source)
    assert awake(codes, START)
    tried(codes, START, source='three')
    assert not awake(codes, START)


def test_it_sleeps_for_a_whole_step_and_wakes(codes):
    put_to_sleep(codes, START + 10000)
    assert not awake(codes, START + 2 * STEP - 1)
    assert awake(codes, START + 2 * STEP)


def test_it_sleeps_twice_as_long_each_time_up_to_an_hour(codes):
    now, naps = START, []
    for _ in range(12):
        put_to_sleep(codes, now)
        slept = next(step for step in range(1, 1000) if awake(codes, now + step * STEP))
        naps.append(slept - 1)          # besides the rest of the step in which it was spent
        now += slept * STEP
    assert naps == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]


def test_an_hour_of_sleep_is_not_a_quiet_hour(codes):
    """Otherwise the back-off would begin anew as soon as it has reached an hour."""
    now = START
    for nap in (1, 2, 4, 8, 16, 32, 64, 120):
        put_to_sleep(codes, now)
        now += (1 + nap) * STEP
    put_to_sleep(codes, now)
    assert not awake(codes, now + 100 * STEP)


def test_six_quiet_hours_after_waking_shorten_the_next_sleep(codes):
    put_to_sleep(codes, START)
    later = START + 2 * STEP + 6 * 3600000 + 1
    put_to_sleep(codes, later)
    assert awake(codes, later + 2 * STEP)


def test_a_success_forgives_all(codes):
    now = START
    for nap in (1, 2, 4):
        put_to_sleep(codes, now)
        now += (1 + nap) * STEP
    assert awake(codes, now)
    codes.succeed()
    put_to_sleep(codes, now)
    assert awake(codes, now + 2 * STEP)


def test_what_was_typed_before_a_sleep_does_not_count_after_it(codes):
    codes.touch(HERE, FIRST, START, CODES)
    put_to_sleep(codes, START + 29000)
    assert codes.touch(HERE, SECOND, START + 2 * STEP, CODES) is None


def test_a_hundred_thousand_sources_leave_the_memory_of_codes_flat(codes):
    for number in range(100000):
        codes.touch(number, 15000, START, CODES)
    assert len(codes.held) <= 4096
    assert tried(codes, START, FIRST, SECOND, HERE) is CODE
