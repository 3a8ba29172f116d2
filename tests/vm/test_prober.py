"""The stranger's judgement, on answers made up here: what passes as a closed port, what
does not."""

import io
import json
import struct

import pytest

import prober

HIDDEN, CLOSED, DECOY = 22, 23, 61022
SYN, RST, ACK = 0x02, 0x04, 0x10


class Box:
    """Answers what it is told to, and keeps what the prober logs of it."""

    def __init__(self):
        self.asked = prober.Asked(HIDDEN, CLOSED)
        self.log = prober.Log(io.StringIO())
        self.now = 1000.0
        self.turns = 0

    def ask(self, family, seq=7):
        """Asks both ports; returns their questions by role."""
        self.turns += 1
        self.now += prober.GAP
        questions = {}
        for port, role in self.asked.roles.items():
            packet = prober.syn(family, port, 20000 + self.turns, seq)
            questions[role] = prober.Question(
                family, port, 20000 + self.turns, seq, packet, self.now)
        self.asked.ask(family, list(questions.values()), self.now)
        return questions

    def hear(self, packet):
        prober.hear(packet, self.asked, self.log, self.now)

    def wait(self, seconds):
        self.now += seconds
        for late in self.asked.overdue(self.now):
            self.log.note(*late)

    def differences(self):
        self.wait(prober.PATIENCE + 1)
        self.log.flush(self.now + 1)
        lines = [json.loads(text) for text in self.log.out.getvalue().splitlines()]
        return prober.differences([prober.Line(*line) for line in lines if len(line) > 1])


def ip(family, protocol, payload, ttl=64, label=0x777, ident=0, fragment=0x4000):
    addresses = prober.packed(family, prober.BOX[family]) \
        + prober.packed(family, prober.STRANGER[family])
    if family == 6:
        return struct.pack('>IHBB', 6 << 28 | label, len(payload), protocol, ttl) \
            + addresses + payload
    head = struct.pack(
        '>BBHHHBBH', 0x45, 0, 20 + len(payload), ident, fragment, ttl, protocol, 0)
    return head + addresses + payload


def tcp(question, flags=RST | ACK, port=None, window=0, ack=None, **more):
    ack = question.seq + 1 if ack is None else ack
    return ip(question.family, prober.TCP, struct.pack(
        '>HHIIBBHHH', port or question.port, question.source_port, 0, ack, 5 << 4, flags,
        window, 0, 0), **more)


def icmp(question, port=None, **more):
    octets = 20 if question.family == 4 else 40
    quoted = bytearray(question.packet)
    quoted[octets + 2:octets + 4] = struct.pack('>H', port or question.port)
    kind, protocol = (1, 1), prober.ICMPV6
    if question.family == 4:
        kind, protocol = (3, 13), prober.ICMP
    return ip(question.family, protocol, bytes(kind) + bytes(6) + bytes(quoted), **more)


@pytest.fixture(params=(4, 6))
def family(request):
    return request.param


def test_two_closed_ports_cannot_be_told_apart(family):
    box = Box()
    for _ in range(100):
        for question in box.ask(family).values():
            box.hear(tcp(question))
    assert box.differences() == []


def test_neither_can_two_ports_that_are_refused_alike(family):
    box = Box()
    for _ in range(100):
        for question in box.ask(family).values():
            box.hear(icmp(question))
    assert box.differences() == []


def test_nor_two_that_are_silent(family):
    box = Box()
    for _ in range(100):
        box.ask(family)
    assert box.differences() == []


@pytest.mark.parametrize('unlike', [
    {'flags': SYN | ACK, 'window': 64240}, {'flags': RST}, {'window': 1}, {'ack': 99},
    {'ttl': 63}, {'port': DECOY}], ids=str)
def test_one_answer_in_a_thousand_tells_them_apart(family, unlike):
    box = Box()
    for turn in range(1000):
        asked = box.ask(family)
        box.hear(tcp(asked['closed']))
        box.hear(tcp(asked['hidden'], **(unlike if turn == 500 else {})))
    assert [(one.family, one.count) for one in box.differences()] == [(family, 1)]


def test_what_tcp_says_again_for_want_of_an_answer_is_of_the_time_when_it_first_said_it(family):
    box = Box()
    asked = box.ask(family)
    for seconds in (1, 2, 4, 8):
        box.hear(tcp(asked['hidden'], SYN | ACK, window=64240))
        box.wait(seconds)
    found, = box.differences()
    assert (found.count, found.last) == (1, found.first)


def test_another_flow_label_tells_them_apart():
    box = Box()
    asked = box.ask(6)
    box.hear(tcp(asked['closed']))
    box.hear(tcp(asked['hidden'], label=0))
    assert len(box.differences()) == 1


def test_a_label_that_is_ours_by_chance_tells_nothing():
    box = Box()
    for question in box.ask(6).values():
        box.hear(tcp(question, label=0x777))
    asked = box.ask(6)
    box.hear(tcp(asked['closed']))
    box.hear(tcp(asked['hidden'], label=prober.FLOW_LABEL))
    again, = box.asked.again
    assert again == prober.syn(6, HIDDEN, asked['hidden'].source_port, 7, prober.OTHER_LABEL)
    box.hear(tcp(asked['hidden'], label=prober.FLOW_LABEL))
    assert box.differences() == []


@pytest.mark.parametrize('then', [prober.OTHER_LABEL, None])
def test_a_label_that_repeats_ours_tells_them_apart(then):
    box = Box()
    asked = box.ask(6)
    box.hear(tcp(asked['closed']))
    box.hear(tcp(asked['hidden'], label=prober.FLOW_LABEL))
    if then:
        box.hear(tcp(asked['hidden'], label=then))
    found, = box.differences()
    assert 'label ours' in found.what


def test_a_flow_that_has_no_label_by_chance_tells_nothing():
    box = Box()
    asked = [box.ask(6) for _ in range(3)]
    for one in asked:
        box.hear(tcp(one['closed']))
    for one, label in zip(asked, (0x777, 0, 0x777)):
        box.hear(tcp(one['hidden'], label=label))
    again, = box.asked.again
    assert again == prober.syn(
        6, HIDDEN, asked[1]['hidden'].source_port, 7, prober.OTHER_LABEL)
    box.hear(tcp(asked[1]['hidden'], label=0))
    assert box.differences() == []


@pytest.mark.parametrize('then, times', [(0x777, 1), (0, 2)], ids=str)
def test_a_label_that_is_missing_tells_them_apart(then, times):
    box = Box()
    asked = [box.ask(6) for _ in range(2)]
    for one, label in zip(asked, (0, then)):
        box.hear(tcp(one['closed']))
        box.hear(tcp(one['hidden'], label=label))
    box.hear(tcp(asked[0]['hidden'], label=then))
    found, = box.differences()
    assert ('label 0' in found.what, found.count) == (True, times)


@pytest.mark.parametrize('idents, times', [((7, 0, 9), 0), ((0, 0, 9), 2)], ids=str)
def test_a_counter_comes_to_no_id_once_and_who_writes_none_does_so_twice(idents, times):
    box = Box()
    for ident in idents:
        asked = box.ask(4)
        box.hear(icmp(asked['closed'], ident=5, fragment=0))
        box.hear(icmp(asked['hidden'], ident=ident, fragment=0))
    assert sum(found.count for found in box.differences()) == times


def test_an_error_that_quotes_the_decoy_tells_them_apart(family):
    box = Box()
    asked = box.ask(family)
    box.hear(icmp(asked['closed']))
    box.hear(icmp(asked['hidden'], port=DECOY))
    assert len(box.differences()) == 1


def test_an_error_that_quotes_a_question_of_the_round_before_tells_nothing(family):
    box = Box()
    before = box.ask(family)
    box.turns = 0
    asked = box.ask(family, seq=9)
    box.hear(icmp(asked['closed']))
    box.hear(icmp(before['hidden']))
    assert box.differences() == []


def test_an_error_that_quotes_what_nobody_asked_tells_them_apart(family):
    box = Box()
    asked = box.ask(family)
    packet = prober.syn(family, HIDDEN, asked['hidden'].source_port, 8)
    box.hear(icmp(asked['closed']))
    box.hear(icmp(asked['hidden']._replace(packet=packet)))
    assert len(box.differences()) == 1


def test_a_second_answer_counts_like_a_first(family):
    box = Box()
    asked = box.ask(family)
    box.hear(tcp(asked['closed']))
    box.hear(tcp(asked['hidden']))
    box.wait(5)
    box.hear(tcp(asked['hidden'], flags=SYN | ACK))
    assert len(box.differences()) == 1


def test_the_answer_of_a_box_that_slept_counts(family):
    box = Box()
    asked = box.ask(family)
    box.wait(20)
    box.hear(tcp(asked['closed']))
    box.hear(tcp(asked['hidden'], flags=SYN | ACK))
    assert len(box.differences()) == 1


@pytest.mark.parametrize('apart, found', [(0.5, 0), (3, 1)])
def test_what_the_closed_port_says_counts_at_its_time_alone(family, apart, found):
    box = Box()
    asked = box.ask(family)
    box.hear(icmp(asked['hidden']))
    box.wait(apart)
    box.hear(icmp(asked['closed']))
    assert len(box.differences()) == found


@pytest.mark.parametrize('role, other', [('hidden', 'closed'), ('closed', 'hidden')])
@pytest.mark.parametrize('pairs, found', [
    (prober.LONG_SILENCE - 1, 0), (prober.LONG_SILENCE, 1)])
def test_a_long_silence_of_one_alone_tells(family, role, other, pairs, found):
    box = Box()
    for answered in (True, False, True):
        for _ in range(pairs if not answered else 3):
            asked = box.ask(family)
            box.hear(tcp(asked[other]))
            if answered:
                box.hear(tcp(asked[role]))
    assert len(box.differences()) == found


def test_what_others_send_is_no_answer():
    box = Box()
    asked = box.ask(4)
    for packet in (b'', b'\x45', ip(4, 17, bytes(8)), ip(4, prober.TCP, bytes(5)),
                   tcp(asked['hidden']._replace(source_port=1))):
        with pytest.raises(prober.Unasked):
            prober.answer(packet, box.asked)
