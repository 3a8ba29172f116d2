"""The filter in the kernel and the parser behind it agree on every frame, and with RFC 791,
8200, 768, 792 and 4443 where the answer is written here by hand.

Every program is asked twice: tests/bpf.py interprets it, and the kernel itself runs it on a pair
of AF_UNIX sockets, whose packets start with the first byte sent and are PACKET_HOST.
"""
import errno
import os
import random
import socket
import struct
import sys

import pytest

import knock
import knockd

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bpf      # noqa: E402
from segments import tcp_segment        # noqa: E402

BOTH = ('udp', 'icmp')
WORD = 0x8badf00d
# tag, nonce, plain, mac of the shortest and the longest datagram: DESIGN 3.2
SHORTEST, LONGEST = 8 + 16 + (1 + 1 + 8 + 16 + 2) + 16, 1232
PAYLOAD = struct.pack('>I', WORD) + bytes(range(256)) * 5


def payload(length=SHORTEST, word=WORD):
    return (struct.pack('>I', word) + PAYLOAD[4:])[:length]


def udp(data, port=40000, length=None):
    return struct.pack('>HHHH', 5353, port, 8 + len(data) if length is None else length, 0) + data


def echo(data, kind, code=0):
    return struct.pack('>BBHHH', kind, code, 0, 1, 2) + data


def ip4(body, protocol=17, options=b'', total=None, fragment=0, version=4, words=None):
    """An IPv4 packet; every length may lie."""
    words = 5 + len(options) // 4 if words is None else words
    total = 20 + len(options) + len(body) if total is None else total
    return struct.pack('>BBHHHBBH4s4s', version << 4 | words, 0, total, 7, fragment, 64, protocol,
                       0, bytes([192, 0, 2, 1]), bytes([198, 51, 100, 1])) + options + body


def ip6(body, following=17, length=None, version=6):
    length = len(body) if length is None else length
    source = bytes([0x20, 1, 0xd, 0xb8]) + bytes(11) + b'\1'
    return struct.pack('>IHBB', version << 28, length, following, 64) + source + source + body


GOOD, LONG, SHORT = payload(), payload(LONGEST), payload(SHORTEST - 1)
HOPS = bytes([17, 0, 1, 4, 0, 0, 0, 0])         # RFC 8200: hop-by-hop options, PadN; UDP follows
# What is said of it, IP version, frame, may it be a knock?
BY_HAND = [
    ('udp', 4, ip4(udp(GOOD)), True),
    ('udp', 6, ip6(udp(GOOD)), True),
    ('longest udp', 4, ip4(udp(LONG)), True),
    ('longest udp', 6, ip6(udp(LONG)), True),
    ('one byte less than the shortest', 4, ip4(udp(SHORT)), False),
    ('one byte less than the shortest', 6, ip6(udp(SHORT)), False),
    ('one byte more than the longest', 4, ip4(udp(payload(LONGEST + 1))), False),
    ('one byte more than the longest', 6, ip6(udp(payload(LONGEST + 1))), False),
    ('echo request', 4, ip4(echo(GOOD, 8), 1), True),
    ('echo request', 6, ip6(echo(GOOD, 128), 58), True),
    ('longest echo request', 4, ip4(echo(LONG, 8), 1), True),
    ('shorter echo request', 6, ip6(echo(SHORT, 128), 58), False),
    ('echo reply', 4, ip4(echo(GOOD, 0), 1), False),
    ('echo reply', 6, ip6(echo(GOOD, 129), 58), False),
    ('echo request of a code that is not', 4, ip4(echo(GOOD, 8, 1), 1), False),
    ('echo request of a code that is not', 6, ip6(echo(GOOD, 128, 1), 58), False),
    ('the type of the other family', 4, ip4(echo(GOOD, 128), 1), False),
    ('the type of the other family', 6, ip6(echo(GOOD, 8), 58), False),
    ('ICMPv6 in IPv4', 4, ip4(echo(GOOD, 128), 58), False),
    ('ICMP in IPv6', 6, ip6(echo(GOOD, 8), 1), False),
    ('TCP', 4, ip4(udp(GOOD), 6), False),
    ('TCP', 6, ip6(udp(GOOD), 6), False),
    ('options', 4, ip4(udp(GOOD), options=b'\x94\4\0\0'), True),
    ('all the options there can be', 4, ip4(udp(GOOD), options=bytes(40)), True),
    ('a header of 16 bytes', 4, ip4(udp(GOOD), words=4), False),
    ('a header of 16 bytes and the knock right behind it', 4,
     ip4(b'', words=4, total=16 + 8 + SHORTEST)[:16] + udp(GOOD), False),
    ('a header of no bytes', 4, ip4(udp(GOOD), words=0), False),
    ('a header longer than the packet', 4, ip4(udp(GOOD), words=15, total=40), False),
    ('a header that covers the UDP header', 4, ip4(udp(GOOD), words=7), False),
    ("don't fragment", 4, ip4(udp(GOOD), fragment=0x4000), True),
    ('first fragment', 4, ip4(udp(GOOD), fragment=0x2000), False),
    ('last fragment', 4, ip4(udp(GOOD), fragment=1), False),
    ('fragment in the middle', 4, ip4(udp(GOOD), fragment=0x3fff), False),
    ('the highest offset bit', 4, ip4(udp(GOOD), fragment=0x1000), False),
    ('IPv4 that says version 6', 4, ip4(udp(GOOD), version=6), False),
    ('IPv6 that says version 4', 6, ip6(udp(GOOD), version=4), False),
    ('IPv4 that says version 5', 4, ip4(udp(GOOD), version=5), False),
    ('IPv6 that says version 7', 6, ip6(udp(GOOD), version=7), False),
    ('padded by Ethernet', 4, ip4(udp(GOOD)) + bytes(18), True),
    ('padded by Ethernet', 6, ip6(udp(GOOD)) + bytes(18), True),
    ('IP length one too long', 4, ip4(udp(GOOD), total=97), False),
    ('IP length one too long', 6, ip6(udp(GOOD), length=77), False),
    ('IP length one too short', 4, ip4(udp(GOOD), total=95), False),
    ('IP length one too short', 6, ip6(udp(GOOD), length=75), False),
    ('IP length 0', 4, ip4(udp(GOOD), total=0), False),
    ('IP length 19', 4, ip4(udp(GOOD), total=19), False),
    ('IP length 20', 4, ip4(udp(GOOD), total=20), False),
    ('jumbogram or an offload: length 0', 6, ip6(udp(GOOD), length=0), False),
    ('UDP length one too long', 4, ip4(udp(GOOD, length=77)), False),
    ('UDP length one too long', 6, ip6(udp(GOOD, length=77)), False),
    ('UDP length 0', 4, ip4(udp(GOOD, length=0)), False),
    ('UDP length 7', 6, ip6(udp(GOOD, length=7)), False),
    ('UDP length 65535', 4, ip4(udp(GOOD, length=65535)), False),
    ('UDP length beyond its IP length, in the padding', 4,
     ip4(udp(GOOD, length=80), total=96) + bytes(18), False),
    ('UDP length that ends a longer packet early', 4, ip4(udp(LONG, length=8 + SHORTEST)), True),
    ('UDP length that makes it too short', 6, ip6(udp(LONG, length=7 + SHORTEST)), False),
    ('echo request in the padding', 4, ip4(echo(GOOD, 8), 1, total=95) + bytes(9), False),
    ('hop-by-hop options', 6, ip6(HOPS + udp(GOOD), 0), False),
    ('destination options', 6, ip6(HOPS + udp(GOOD), 60), False),
    ('routing header', 6, ip6(HOPS + udp(GOOD), 43), False),
    ('atomic fragment', 6, ip6(bytes([17, 0, 0, 0, 0, 0, 0, 1]) + udp(GOOD), 44), False),
    ('nothing', 4, b'', False),
    ('nothing', 6, b'', False),
    ('other word', 4, ip4(udp(payload(word=WORD + 1))), False),
    ('other word', 6, ip6(echo(payload(word=WORD - 1), 128), 58), False),
]


@pytest.fixture
def kernel():
    """A function (program, frames) that says for each frame whether the kernel passes it."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.setblocking(False)

    def passes(program, frames):
        knockd.attach_filter(receiver, program)
        return [is_delivered(frame) for frame in frames]

    def is_delivered(frame):
        sender.send(frame)
        try:
            return receiver.recv(70000) == frame
        except BlockingIOError:
            return False
    yield passes
    sender.close()
    receiver.close()


def interpreted(program, frames, pkttype=0, **told):
    """Whether the program passes each frame, by tests/bpf.py, which checks it first."""
    bpf.check(program)
    compiled = bpf.compile_program(program)
    return [bpf.run(compiled, frame, pkttype, **told) >= len(frame) > 0 for frame in frames]


def parsed(carriers, port, words, frames):
    """Whether parser and look-up let each frame through."""
    packets = [knockd.parse_packet(frame, carriers, port) for frame in frames]
    return [packet is not None and
            (words is None or int.from_bytes(packet.payload[:4], 'big') in words)
            for packet in packets]


# --- what is written by hand --------------------------------------------------------------------
@pytest.mark.parametrize('said,version,frame,expected', BY_HAND,
                         ids=['%s, %d' % (said, version) for said, version, _, _ in BY_HAND])
def test_filter_parser_and_kernel_take_what_the_rfcs_allow(kernel, said, version, frame, expected):
    program = knockd.datagram_filter(BOTH, None, {WORD, 5})
    assert interpreted(program, [frame]) == [expected]
    assert kernel(program, [frame]) == [expected]
    assert parsed(BOTH, None, {WORD, 5}, [frame]) == [expected]


@pytest.mark.parametrize('version', [4, 6])
def test_only_packets_for_this_box_are_passed(version):
    frame = ip4(udp(GOOD)) if version == 4 else ip6(udp(GOOD))
    program = knockd.datagram_filter(BOTH, None, {WORD})
    # linux/if_packet.h: host, broadcast, multicast, other host, outgoing, loopback, user, kernel
    assert [interpreted(program, [frame], kind)[0] for kind in range(8)] == [True] + [False] * 7


@pytest.mark.parametrize('version', [4, 6])
def test_what_a_bridge_passes_on_is_taken_where_hosts_behind_the_box_are_guarded(version):
    make = ip4 if version == 4 else ip6
    alone, guarding = [knockd.parse_config('[server]\nid = a\nhide = tcp/22\n' + more, '/x/y.ini')
                       for more in ('', 'behind = 192.0.2.1')]
    for frame, program in (
            (make(udp(GOOD)), lambda begin: knockd.datagram_filter(
                BOTH, None, {WORD}, begin)),
            (make(tcp_segment(22, payload(10)), 6), lambda begin: knockd.syn_filter(
                None, {WORD}, begin))):
        for config, other in ((alone, False), (guarding, True)):
            passed = [interpreted(program(knockd.packets_for(config)), [frame], kind)[0]
                      for kind in range(8)]
            assert passed == [True, False, False, other, False, False, False, False]


@pytest.mark.parametrize('version', [4, 6])
@pytest.mark.parametrize('carriers', [('udp',), ('icmp',), ('udp', 'icmp'), ()])
def test_only_the_carriers_of_the_config_are_passed(kernel, version, carriers):
    frames = [ip4(udp(GOOD)), ip4(echo(GOOD, 8), 1)] if version == 4 else [
        ip6(udp(GOOD)), ip6(echo(GOOD, 128), 58)]
    expected = ['udp' in carriers, 'icmp' in carriers]
    program = knockd.datagram_filter(carriers, None, {WORD})
    assert interpreted(program, frames) == kernel(program, frames) == expected
    assert parsed(carriers, None, {WORD}, frames) == expected


@pytest.mark.parametrize('version', [4, 6])
def test_with_a_port_udp_to_other_ports_is_dropped_and_echo_is_not(kernel, version):
    ports = [40000, 39999, 40001, 0, 65535, 0x9c40 >> 8, 0x409c]
    frames = [ip4(udp(GOOD, port)) if version == 4 else ip6(udp(GOOD, port)) for port in ports]
    frames.append(ip4(echo(GOOD, 8), 1) if version == 4 else ip6(echo(GOOD, 128), 58))
    expected = [True] + [False] * 6 + [True]
    program = knockd.datagram_filter(BOTH, 40000, {WORD})
    assert interpreted(program, frames) == kernel(program, frames) == expected
    assert parsed(BOTH, 40000, {WORD}, frames) == expected


@pytest.mark.parametrize('version', [4, 6])
def test_without_words_nothing_passes_and_a_coarse_filter_passes_by_length(kernel, version):
    make = ip4 if version == 4 else ip6
    lengths = [0, 3, SHORTEST - 1, SHORTEST, LONGEST, LONGEST + 1]
    frames = [make(udp(payload(length, 0x11223344))) for length in lengths]
    empty = knockd.datagram_filter(BOTH, None, set())
    coarse = knockd.datagram_filter(BOTH, None, None)
    assert interpreted(empty, frames) == kernel(empty, frames) == [False] * 6
    expected = [False, False, False, True, True, False]
    assert interpreted(coarse, frames) == kernel(coarse, frames) == expected


# --- the same answers on a multitude of frames --------------------------------------------------
def mutated(chance, frame):
    """The frame with some bytes changed, cut or added."""
    frame = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        place = chance.randrange(min(len(frame), 60))
        frame[place] = chance.choice((0, 1, 4, 8, 17, 58, 0x45, 0x60, 255, chance.getrandbits(8)))
    if chance.random() < 0.3:
        del frame[chance.randrange(len(frame)):]
    if chance.random() < 0.2:
        frame += bytes(chance.randrange(60))
    return bytes(frame)


def random_frame(chance, version, words):
    """A knock, or something that nearly is one: each part lies now and then."""
    def part(usual, *rare):
        return chance.choice(rare) if chance.random() < 0.12 else usual
    data = payload(part(chance.randint(SHORTEST, LONGEST), SHORTEST, LONGEST, SHORTEST - 1,
                        LONGEST + 1, 0, 3), part(chance.choice(words), chance.getrandbits(32)))
    if chance.random() < 0.5:
        body = udp(data, part(40000, 53), part(None, chance.randrange(1400), len(data) + 7))
        protocol = 17
    else:
        body = echo(data, part((8, 128)[version == 6], 8, 128, 0, 129), part(0, 1))
        protocol = (1, 58)[version == 6]
    lie = part(None, 0, 20, 60, len(body), len(body) + 21, chance.getrandbits(16))
    if version == 6:
        return ip6(body, part(protocol, 0, 1, 44, 58), lie)
    return ip4(body, part(protocol, 6, 58), bytes(part(0, 4, 40)), lie,
               part(0, 0x4000, 0x2000, 0x1fff), words=part(None, 0, 4, 6, 15))


def corpus(seed, version, words, count):
    """Real frames truncated at every byte, then random ones."""
    chance, real = random.Random(seed), [frame for _, _, frame, _ in BY_HAND]
    frames = [frame[:end] for frame in real[:2] + real[8:10] for end in range(len(frame))]
    while len(frames) < count:
        frame = random_frame(chance, version, words)
        frames += [frame, mutated(chance, frame), mutated(chance, chance.choice(real[:50]))]
    return frames


@pytest.mark.parametrize('version,carriers,port', [
    (4, BOTH, None), (6, BOTH, None), (4, ('udp',), 40000), (6, ('udp', 'icmp'), 40000),
    (4, ('icmp',), None), (6, ('icmp',), 40000)])
def test_filter_kernel_and_parser_agree_on_every_frame(kernel, version, carriers, port):
    words = [WORD, 0, 0xffffffff, 0x80000000, 0x7fffffff]
    frames = corpus(version, version, words, 6000)
    program = knockd.datagram_filter(carriers, port, set(words))
    by_parser = parsed(carriers, port, words, frames)
    assert by_parser == interpreted(program, frames)
    assert by_parser == kernel(program, frames)
    assert 300 < sum(by_parser) < 4000, 'a corpus of one kind of frame proves nothing'


@pytest.mark.parametrize('version', [4, 6])
def test_a_coarse_filter_and_the_parser_agree(kernel, version):
    frames = corpus(100 + version, version, [WORD], 3000)
    program = knockd.datagram_filter(BOTH, None, None)
    by_parser = parsed(BOTH, None, None, frames)
    assert by_parser == interpreted(program, frames) == kernel(program, frames)


# --- SYNs ---------------------------------------------------------------------------------------
def tcp(port=5000, flags=2, badge=bytes(range(10)), options=b''):
    return tcp_segment(port, badge, flags=flags, options=options)


BADGE = struct.pack('>I', WORD) + bytes(6)
SEQUENCES = (1024, 65535)
# What is said of it, its segment, passed for sequences and words?, for words alone?
SYNS = [
    ('SYN to a high port', tcp(), True, False),
    ('SYN with options', tcp(options=b'\2\4\5\xb4'), True, False),
    ('SYN to the lowest port that counts', tcp(1024), True, False),
    ('SYN to the highest port', tcp(65535), True, False),
    ('SYN to a port that does not count', tcp(1023), False, False),
    ('SYN with a word, anywhere', tcp(22, badge=BADGE), True, True),
    ('SYN with ECN asked for', tcp(flags=0xc2), True, False),
    ('SYN and ACK', tcp(flags=0x12), False, False),
    ('SYN, ACK and a word', tcp(22, 0x12, BADGE), False, False),
    ('ACK', tcp(flags=0x10), False, False),
    ('FIN', tcp(flags=1), False, False),
    ('SYN and FIN', tcp(flags=3), False, False),
    ('RST', tcp(flags=4), False, False),
    ('SYN and RST', tcp(flags=6), False, False),
    ('no flag', tcp(flags=0), False, False),
    ('a byte too short', tcp()[:-1], False, False),
]


@pytest.mark.parametrize('version', [4, 6])
@pytest.mark.parametrize('said,segment,all_of_it,by_word', SYNS, ids=[syn[0] for syn in SYNS])
def test_only_syns_pass_to_a_port_that_counts_or_with_a_word(
        kernel, version, said, segment, all_of_it, by_word):
    frame = (ip4 if version == 4 else ip6)(segment, 6)
    for ports, expected in ((SEQUENCES, all_of_it), (None, by_word)):
        program = knockd.syn_filter(ports, {WORD, 7})
        assert interpreted(program, [frame]) == kernel(program, [frame]) == [expected]
        assert interpreted(program, [frame], 4) == [False], 'nothing that this box sends'


def test_for_codes_only_their_ports_count(kernel):
    frames = [ip4(tcp(port), 6) for port in (9999, 10000, 29999, 30000)]
    program = knockd.syn_filter((10000, 29999), set())
    assert interpreted(program, frames) == kernel(program, frames) == [False, True, True, False]


@pytest.mark.parametrize('version', [4, 6])
def test_what_the_syn_filter_passes_is_parsed_and_the_other_way_round(kernel, version):
    chance, make = random.Random(version), (ip4 if version == 4 else ip6)
    frames = [make(segment, 6) for _, segment, _, _ in SYNS]
    frames += [frame[:end] for frame in frames[:2] for end in range(len(frame))]
    while len(frames) < 3000:
        segment = tcp(chance.choice((22, 1023, 1024, 65535, chance.getrandbits(16))),
                      chance.choice((2, 2, 2, 0x12, chance.getrandbits(8))),
                      chance.choice((BADGE, bytes(10))), bytes(chance.choice((0, 4, 20))))
        frame = make(segment, chance.choice((6, 6, 6, 17)))
        frames += [frame, mutated(chance, frame)]
    program = knockd.syn_filter(SEQUENCES, {WORD})
    syns = [knockd.parse_syn(frame) for frame in frames]
    passed = [syn is not None and (syn.port >= 1024 or syn.badge[:4] == BADGE[:4])
              for syn in syns]
    assert passed == interpreted(program, frames) == kernel(program, frames)
    assert 500 < sum(passed) < 2500


@pytest.mark.parametrize('version', [4, 6])
def test_one_program_of_two_takes_what_either_of_them_takes(kernel, version):
    chance, make = random.Random(200 + version), (ip4 if version == 4 else ip6)
    frames = [make(segment, 6) for _, segment, _, _ in SYNS] + corpus(300, version, [WORD, 7], 3000)
    frames += [mutated(chance, frame) for frame in frames[:len(SYNS)] for _ in range(20)]
    frames += [frame[:end] for frame in frames[:2] for end in range(len(frame))]
    syns = knockd.syn_filter(SEQUENCES, {WORD})
    datagrams = knockd.datagram_filter(BOTH, None, {WORD, 7})
    both = knockd.by_protocol(syns, datagrams)
    expected = [syn or datagram for syn, datagram in
                zip(interpreted(syns, frames), interpreted(datagrams, frames))]
    assert interpreted(both, frames) == kernel(both, frames) == expected
    taken = sum(interpreted(syns, frames)), sum(interpreted(datagrams, frames))
    assert 50 < taken[0] < 500 < taken[1] < 2500, 'a corpus of one kind of frame proves nothing'


@pytest.mark.parametrize('count', [0, 33, 2049, 3400])
def test_one_program_of_two_has_room_for_as_many_tags(kernel, count):
    both = knockd.by_protocol(knockd.syn_filter(SEQUENCES, ()),
                              knockd.datagram_filter(BOTH, 40000, some_words(count)))
    bpf.check(both)
    assert kernel(both, [b'junk', ip4(tcp(), 6), ip6(tcp(), 6)]) == [False, True, True]


BY_VERSION = {4: (ip4(udp(GOOD)), ip4(tcp(), 6)), 6: (ip6(udp(GOOD)), ip6(tcp(), 6))}


@pytest.mark.parametrize('version', [4, 6])
def test_what_this_box_sends_or_what_is_for_another_is_no_knock(version):
    """linux/if_packet.h: broadcast, multicast, other host, outgoing."""
    frame, segment = BY_VERSION[version]
    for program, sent in ((knockd.datagram_filter(BOTH, None, None), frame),
                          (knockd.syn_filter(SEQUENCES, None), segment)):
        passed = [interpreted(program, [sent], kind) for kind in range(5)]
        assert passed == [[True], [False], [False], [False], [False]]
        # linux/if_vlan.h: a tag with a priority (5) and a number (7), or none. What has a number
        # comes again by the interface of its VLAN; IP takes the other as if it had no tag.
        assert interpreted(program, [sent], tagged=1, tag=0xa007) == [False]
        assert interpreted(program, [sent], tagged=1, tag=0xa000) == [True]
        # Linux 5 leaves there what it has taken off.
        assert interpreted(program, [sent], tagged=0, tag=0xa007) == [True]


# --- the tree -----------------------------------------------------------------------------------
def tree_program(words):
    """Loads the first word and asks the tree."""
    return [(0x20, 0, 0, 0)] + knockd.word_tree(sorted(words))        # BPF_LD|BPF_W|BPF_ABS


def some_words(count):
    """So many, the edges among them, and some beside each other."""
    chance, words = random.Random(count), {0, 0xffffffff, 0x80000000, 0x7fffffff}
    while len(words) < max(count, 8):
        word = chance.getrandbits(32)
        words |= {word, word ^ 1} if chance.random() < 0.1 else {word}
    return set(sorted(words, key=lambda word: (word not in (0, 0xffffffff), word % 7919))[
        :count])


@pytest.mark.parametrize('count', [0, 1, 2, 32, 33, 100, 255, 2049, 3400])
def test_a_tree_takes_exactly_its_words(kernel, count):
    words = some_words(count)
    assert len(words) == count
    asked = sorted({(word + step) & 0xffffffff for word in words for step in (-1, 0, 1)} |
                   {0, 1, 0x7fffffff, 0x80000000, 0xffffffff})
    frames = [struct.pack('>I', word) for word in asked]
    expected = [word in words for word in asked]
    assert interpreted(tree_program(words), frames) == expected
    assert kernel(tree_program(words), frames) == expected


def test_the_tree_is_balanced():
    compiled = bpf.compile_program(tree_program(some_words(3400)))
    longest = max(steps_of(compiled, struct.pack('>I', word)) for word in some_words(3400))
    assert longest <= 1 + 2 * 7 + 27 + 1        # load, 7 levels with long jumps, a leaf, return


def steps_of(compiled, frame):
    """How many instructions one run takes."""
    steps, place, value = 0, 0, int.from_bytes(frame, 'big')
    while True:
        word, _, yes, no, k = compiled[place]
        steps, place = steps + 1, place + 1
        if word == 'ret':
            return steps
        if word in bpf.TESTS:
            place += yes if bpf.TESTS[word](value, k) else no
        elif word == 'ja':
            place += k


@pytest.mark.parametrize('count', [0, 1, 33, 255, 1000, 2049, 3400])
def test_every_program_is_valid_to_the_interpreter_and_to_the_kernel(kernel, count):
    for port in (None, 62201):
        program = knockd.datagram_filter(BOTH, port, some_words(count))
        bpf.check(program)
        assert kernel(program, [b'junk']) == [False]


def test_a_half_that_eight_bits_do_not_reach_is_reached():
    program = knockd.word_tree(sorted(some_words(3400)))
    far = [k for code, _, _, k in program if code == 0x05]              # BPF_JMP|BPF_JA
    assert max(far) > 255
    assert all(yes < 256 and no < 256 for _, yes, no, _ in program)


def test_a_filter_of_the_promised_size_fits_for_every_number_of_words():
    for count in list(range(0, 40)) + list(range(40, 3400, 19)) + [3400]:
        words = range(0, count * 3, 3)
        program = knockd.datagram_filter(BOTH, 1, words)
        assert len(knockd.syn_filter(SEQUENCES, words)) <= len(program)
        assert len(program) <= bpf.MAXIMUM
        assert max(max(yes, no) for _, yes, no, _ in program) < 256


def test_the_prefix_of_a_real_tag_passes_and_that_of_another_server_does_not(kernel):
    keys = [knockd.derive_keys(bytes(range(32)), server) for server in ('here', 'there')]
    plain = knock.encode_plain(knockd.Request('open', 1700000000123, None, 0, (), None, None,
                                               None))
    frames = [ip4(udp(knock.seal(key, bytes(16), plain, 56666666))) for key in keys]
    tags = {int.from_bytes(knockd.tag_at(keys[0], step)[:4], 'big')
            for step in range(56666664, 56666669)}
    program = knockd.datagram_filter(BOTH, None, tags)
    assert kernel(program, frames) == interpreted(program, frames) == [True, False]


# --- the interpreter itself: the kernel is right ------------------------------------------------
def random_program(chance):
    """Anything made of what the filter is made of, valid or not."""
    loads = [(code, 0, 0, chance.randrange(12)) for code in
             (0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x61, 0x01, 0x02, 0x03, 0xb1, 0x00)]
    plain = [(0x80, 0, 0, 0), (0x81, 0, 0, 0), (0x87, 0, 0, 0), (0x07, 0, 0, 0),
             (0x1c, 0, 0, 0), (0x30, 0, 0, bpf.PKTTYPE), (0x28, 0, 0, bpf.VLAN_TAG),
             (0x30, 0, 0, bpf.VLAN_TAG_PRESENT)]
    sums = [(code, 0, 0, chance.getrandbits(5)) for code in (0x04, 0x14, 0x54, 0x44, 0x64, 0x34)]
    jumps = [(code, chance.randrange(4), chance.randrange(4), chance.randrange(20))
             for code in (0x15, 0x25, 0x35, 0x45, 0x1d, 0x2d)] + [(0x05, 0, 0,
                                                                   chance.randrange(3))]
    start = [(0x02, 0, 0, cell) for cell in range(12)] if chance.random() < 0.7 else []
    length = chance.randrange(1, 14)
    program = start + [chance.choice(chance.choice((loads, loads, plain, sums, jumps)))
                       for _ in range(length)]
    return program + chance.choice(([(0x06, 0, 0, 0), (0x06, 0, 0, 9999)], [(0x16, 0, 0, 0)],
                                    [(0x06, 0, 0, 9999)] * 3, []))


def test_the_interpreter_judges_programs_and_frames_as_the_kernel_does(kernel):
    chance, taken = random.Random(7), [0, 0, 0]
    frames = [bytes(chance.randrange(12) for _ in range(length)) for length in range(1, 24, 2)]
    for _ in range(900):
        program = random_program(chance)
        try:
            expected = interpreted(program, frames)
        except bpf.Refused:
            with pytest.raises(OSError) as caught:
                kernel(program, [])
            assert caught.value.errno == errno.EINVAL, program
            taken[0] += 1
            continue
        assert kernel(program, frames) == expected, program
        taken[1 if any(expected) else 2] += 1
    assert min(taken) > 60, taken


@pytest.mark.parametrize('program', [
    [], [(0x20, 0, 0, 0)], [(0x05, 0, 0, 1), (0x06, 0, 0, 0)],
    [(0x15, 1, 0, 0), (0x06, 0, 0, 0)], [(0x15, 0, 1, 0), (0x06, 0, 0, 0)],
    [(0x60, 0, 0, 0), (0x06, 0, 0, 0)], [(0x02, 0, 0, 16), (0x06, 0, 0, 0)],
    [(0x34, 0, 0, 0), (0x06, 0, 0, 0)], [(0xff, 0, 0, 0), (0x06, 0, 0, 0)],
    [(0x06, 0, 0, 0)] * 4097, [(0x15, 0, 1, 0), (0x02, 0, 0, 3), (0x60, 0, 0, 3), (0x06, 0, 0, 0)],
], ids=['empty', 'no return', 'jump out', 'yes out', 'no out', 'unwritten cell', 'cell 16',
        'division by zero', 'unknown code', '4097', 'cell written on one path only'])
def test_the_interpreter_refuses_what_the_kernel_refuses(kernel, program):
    with pytest.raises(bpf.Refused):
        bpf.check(program)
    with pytest.raises(OSError):
        kernel(program, [])


# --- many words: shares and fallback -----------------------------------------------------------
def test_every_word_is_in_exactly_one_share():
    for count in (0, 1, 1999, 2000, 2001, 4000, 9000, 16000):
        words = {number * 268435 % (1 << 32) for number in range(count)}
        shares = knockd.word_shares(words, 2000)
        assert sorted(word for share in shares for word in share) == sorted(words)
        assert len(shares) == max(1, -(-count // 2000)) <= 8


def test_more_than_eight_sockets_hold_is_left_to_the_coarse_filter():
    assert knockd.word_shares(set(range(16001)), 2000) == [None]
    assert knockd.word_shares({1, 2}, 0) == [None]


def test_a_word_stays_where_it_is_when_others_come_and_go():
    chance = random.Random(3)
    first = {chance.getrandbits(32) for _ in range(3500)}
    second = set(sorted(first)[100:]) | {chance.getrandbits(32) for _ in range(33)}
    before, after = knockd.word_shares(first, 2000), knockd.word_shares(second, 2000)
    assert len(before) == len(after) == 2
    for old, new in zip(before, after):
        assert set(old) & second == set(new) & first


class FakeKernel:
    """Stands in for attach_filter(): a kernel whose memory ends at `limit` instructions."""

    def __init__(self, monkeypatch, limit):
        self.limit, self.programs, self.lines = limit, {}, []
        monkeypatch.setattr(knockd, 'attach_filter', self.attach)
        monkeypatch.setattr(knockd, 'packet_socket', lambda protocol: socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM))
        monkeypatch.setattr(knockd, 'log', lambda text, level=6: self.lines.append(text))

    def attach(self, sock, program):
        if len(program) > self.limit:
            raise OSError(errno.ENOMEM, 'Cannot allocate memory')
        self.programs[sock] = program

    def passes(self, capture, frames):
        """For each frame, how many of the sockets in use pass it."""
        each = len(capture.protocols)
        answers = [interpreted(self.programs[sock], frames) for sock in capture.taps[::each]]
        return [sum(column) for column in zip(*answers)]


@pytest.fixture(params=[[knockd.ETH_P_ALL], [knockd.ETH_P_IP, knockd.ETH_P_IPV6]],
                ids=['one socket a share', 'two'])
def capture(request, monkeypatch):
    monkeypatch.setattr(knockd, 'packet_protocols', lambda: request.param)
    made = knockd.Capture(8)
    yield made
    for sock in made.taps:
        sock.close()


def datagrams(words, is_first=True):
    return knockd.datagram_filter(BOTH, None, words)


def tags_of(count):
    return {struct.pack('>I', word) + b'tail' for word in some_words(count)}


def shares_of(capture):
    return len(capture.taps) / len(capture.protocols)


def frames_of(tags):
    return [ip4(udp(tag + PAYLOAD[8:SHORTEST])) for tag in sorted(tags)[::37]]


def test_a_kernel_with_room_gets_one_share_and_no_line(monkeypatch, capture):
    fake = FakeKernel(monkeypatch, 4096)
    capture.load(tags_of(2000), datagrams)
    assert shares_of(capture) == 1 and fake.lines == []
    assert set(fake.passes(capture, frames_of(tags_of(2000)))) == {1}


def test_a_kernel_without_the_memory_gets_the_tags_in_parts(monkeypatch, capture):
    fake = FakeKernel(monkeypatch, 1100)
    capture.load(tags_of(2000), datagrams)
    assert shares_of(capture) == 3         # 2,000 and 1,000 a socket do not fit, 667 do
    assert set(fake.passes(capture, frames_of(tags_of(2000)))) == {1}
    assert len(fake.lines) <= 1, 'nothing is lost, so little is to be said'


def test_a_kernel_with_hardly_any_memory_gets_the_coarse_filter(monkeypatch, capture):
    fake = FakeKernel(monkeypatch, 120)
    capture.load(tags_of(2000), datagrams)
    assert shares_of(capture) == 1
    assert fake.passes(capture, [ip4(udp(payload(word=1))), ip4(udp(SHORT))]) == [1, 0]
    assert len(fake.lines) == 1 and 'optmem_max' in fake.lines[0]
    capture.load(tags_of(2000), datagrams)
    assert len(fake.lines) == 1, 'said once'


def test_a_kernel_without_memory_for_one_tag_gets_the_coarse_filter_or_is_an_error(
        monkeypatch, capture):
    fake = FakeKernel(monkeypatch, len(datagrams(None)))
    capture.load(tags_of(5), datagrams)
    assert shares_of(capture) == 1 and fake.passes(capture, [ip4(udp(payload(word=1)))]) == [1]
    fake.limit = 10
    with pytest.raises(OSError):
        capture.load(tags_of(5), datagrams)


def test_fewer_tags_later_free_the_sockets_they_needed(monkeypatch, capture):
    fake = FakeKernel(monkeypatch, 4096)
    capture.load(tags_of(3401), datagrams)
    spare = capture.taps[-1]
    capture.load(tags_of(100), datagrams)
    assert shares_of(capture) == 1 and spare.fileno() == -1
    assert set(fake.passes(capture, frames_of(tags_of(100)))) == {1}


def test_another_error_of_the_kernel_is_not_taken_for_lack_of_memory(monkeypatch, capture):
    FakeKernel(monkeypatch, 4096)
    tries = []

    def refuse(sock, program):
        tries.append(program)
        raise OSError(errno.EINVAL, 'Invalid argument')
    monkeypatch.setattr(knockd, 'attach_filter', refuse)
    with pytest.raises(OSError):
        capture.load(tags_of(10), datagrams)
    assert len(tries) == 1
