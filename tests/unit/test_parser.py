"""The packet parser: what it reads by hand, and that nothing makes it raise or remember."""
import gc
import ipaddress
import random
import struct
import tracemalloc

import pytest

import knockd

BOTH = ('udp', 'icmp')
KNOCK = bytes(range(68))        # the shortest: 8 + 16 + 28 + 16 bytes

# RFC 791: 192.0.2.7 to 198.51.100.2, TTL 64, DF, UDP from 40001 to 62201, 96 bytes in all.
FRAME4 = bytes.fromhex('45000060' '1c464000' '40110000' 'c0000207' 'c6336402'
                       '9c41f2f9' '004c0000') + KNOCK
# RFC 8200: 2001:db8::7 to 2001:db8::2, ICMPv6 echo request, 76 bytes of payload.
FRAME6 = bytes.fromhex('60000000' '004c3a40' '20010db8000000000000000000000007'
                       '20010db8000000000000000000000002' '80000000' '00010002') + KNOCK


def test_an_ipv4_datagram_is_read():
    assert knockd.parse_packet(FRAME4, BOTH, None) == (
        'udp', ipaddress.ip_address('192.0.2.7'), KNOCK)


def test_an_ipv6_echo_request_is_read():
    assert knockd.parse_packet(FRAME6, BOTH, None) == (
        'icmp', ipaddress.ip_address('2001:db8::7'), KNOCK)


def test_what_ethernet_pads_is_not_part_of_the_knock():
    for frame in (FRAME4, FRAME6):
        packet = knockd.parse_packet(frame + b'padding', BOTH, None)
        assert packet.payload == KNOCK


def test_the_payload_ends_where_its_udp_length_says():
    longer = bytearray(FRAME4 + b'more')
    longer[2:4] = struct.pack('>H', 100)
    assert knockd.parse_packet(bytes(longer), BOTH, None).payload == KNOCK


def test_only_the_port_of_the_config_is_heard():
    assert knockd.parse_packet(FRAME4, BOTH, 62201) is not None
    assert knockd.parse_packet(FRAME4, BOTH, 62202) is None
    assert knockd.parse_packet(FRAME6, BOTH, 62202) is not None, 'an echo request has no port'


@pytest.mark.parametrize('carriers,heard', [
    (('udp',), [True, False]), (('icmp',), [False, True]), ((), [False, False])])
def test_only_the_carriers_of_the_config_are_heard(carriers, heard):
    assert [knockd.parse_packet(FRAME4, carriers, None) is not None,
            knockd.parse_packet(FRAME6, carriers, None) is not None] == heard


@pytest.mark.parametrize('frame', [FRAME4, FRAME6], ids=['IPv4', 'IPv6'])
def test_a_frame_cut_anywhere_is_nothing(frame):
    for end in range(len(frame)):
        assert knockd.parse_packet(frame[:end], BOTH, None) is None


@pytest.mark.parametrize('frame', [FRAME4, FRAME6], ids=['IPv4', 'IPv6'])
def test_any_value_in_any_byte_of_the_headers_is_survived(frame):
    for place in range(len(frame) - len(KNOCK)):
        for value in range(256):
            changed = frame[:place] + bytes([value]) + frame[place + 1:]
            packet = knockd.parse_packet(changed, BOTH, None)
            assert packet is None or packet.payload == KNOCK


# RFC 9293: from 192.0.2.7 to 198.51.100.2, port 40001 to 22, SYN, seq 0x01020304,
# ack 0x05060708, window 0x090a.
SYN4 = bytes.fromhex('45000028' '1c464000' '40060000' 'c0000207' 'c6336402'
                     '9c410016' '01020304' '05060708' '5002090a' '00000000')


def test_a_syn_is_read():
    syn = knockd.parse_syn(SYN4)
    assert (syn.source, syn.destination) == (ipaddress.ip_address('192.0.2.7'),
                                             ipaddress.ip_address('198.51.100.2'))
    assert (syn.port, syn.badge) == (22, bytes(range(1, 11)))


def test_a_syn_over_ipv6_is_read():
    syn = knockd.parse_syn(FRAME6[:4] + b'\0\x14\6' + FRAME6[7:40] + SYN4[20:])
    assert (str(syn.source), str(syn.destination)) == ('2001:db8::7', '2001:db8::2')
    assert (syn.port, syn.badge) == (22, bytes(range(1, 11)))


@pytest.mark.parametrize('flags', [flags for flags in range(64) if flags & 0x17 != 2])
def test_a_segment_with_other_flags_is_no_syn(flags):
    assert knockd.parse_syn(SYN4[:33] + bytes([flags]) + SYN4[34:]) is None


def test_a_syn_cut_anywhere_is_nothing():
    for end in range(len(SYN4)):
        assert knockd.parse_syn(SYN4[:end]) is None


def test_a_header_alone_is_a_packet_without_a_body():
    head = FRAME4[:2] + b'\0\x14' + FRAME4[4:20]
    packet = knockd.parse_ip(head)
    assert (packet.version, packet.protocol, packet.body) == (4, 17, b'')
    assert knockd.parse_ip(head[:19]) is None
    head = FRAME6[:4] + b'\0\0' + FRAME6[6:40]
    packet = knockd.parse_ip(head)
    assert (packet.version, packet.protocol, packet.body) == (6, 58, b'')
    assert knockd.parse_ip(head[:39]) is None


def test_the_options_of_an_ipv4_header_are_skipped():
    longer = b'\x46' + FRAME4[1:2] + b'\0\x64' + FRAME4[4:20] + b'\1\1\1\0' + FRAME4[20:]
    assert knockd.parse_packet(longer, BOTH, None).payload == KNOCK
    for short in (0x40, 0x44):
        assert knockd.parse_ip(bytes([short]) + FRAME4[1:]) is None


def test_a_udp_header_names_its_length_and_nothing_longer_than_what_came():
    header = bytes.fromhex('9c41f2f9' '0008' '0000')
    assert knockd.udp_length(header, None) == knockd.udp_length(header, 62201) == 8
    assert knockd.udp_length(header, 62202) == 0
    assert knockd.udp_length(header[:7], None) == 0
    for length, read in ((8, 8), (9, 9), (10, 0), (65535, 0)):
        body = header[:4] + struct.pack('>HH', length, 0) + b'x'
        assert knockd.udp_length(body, None) == read


ECHO4 = FRAME4[:9] + b'\1' + FRAME4[10:20] + b'\x08\0' + FRAME4[22:]


@pytest.mark.parametrize('frame,wrong', [(ECHO4, (0, 3, 11, 129)), (FRAME6, (8, 127, 129, 135))],
                         ids=['IPv4', 'IPv6'])
def test_no_icmp_but_an_echo_request_is_heard_and_nothing_else_that_looks_like_one(frame, wrong):
    head = 20 if frame is ECHO4 else 40
    assert knockd.parse_packet(frame, BOTH, None).carrier == 'icmp'
    for kind in wrong:
        other = frame[:head] + bytes([kind]) + frame[head + 1:]
        assert knockd.parse_packet(other, BOTH, None) is None
    assert knockd.parse_packet(frame[:head + 1] + b'\1' + frame[head + 2:], BOTH, None) is None
    place = 9 if frame is ECHO4 else 6
    for protocol in (0, 6, 41, 132, 58 if frame is ECHO4 else 1):
        other = frame[:place] + bytes([protocol]) + frame[place + 1:]
        assert knockd.parse_packet(other, BOTH, None) is None


def sized(frame, size):
    """The frame with a knock of so many bytes."""
    if frame is FRAME6:
        return frame[:4] + struct.pack('>H', size + 8) + frame[6:48] + bytes(size)
    head = frame[:2] + struct.pack('>H', size + 28) + frame[4:24]
    return head + struct.pack('>H', size + 8) + frame[26:28] + bytes(size)


@pytest.mark.parametrize('frame', [FRAME4, ECHO4, FRAME6], ids=['UDP', 'ICMP', 'ICMPv6'])
def test_a_knock_has_68_to_1232_bytes(frame):
    for size, heard in ((67, False), (68, True), (1232, True), (1233, False)):
        packet = knockd.parse_packet(sized(frame, size), BOTH, None)
        assert (packet is not None) is heard
        assert packet is None or len(packet.payload) == size
        assert knockd.parse_packet(sized(frame, size)[:-1], BOTH, None) is None


def frames(seed, count):
    """Noise, and the two good frames with bytes changed, taken out and put in."""
    chance = random.Random(seed)
    noise = bytes(chance.getrandbits(8) for _ in range(4096))
    for _ in range(count):
        frame = chance.choice((FRAME4, FRAME6, FRAME4, SYN4))
        start = chance.randrange(2048)
        kind = chance.random()
        if kind < 0.2:
            yield noise[start:start + chance.randrange(1500)]
        elif kind < 0.4:
            head = bytes([chance.choice((0x45, 0x4f, 0x40, 0x60))])
            yield head + noise[start:start + chance.randrange(100)]
        else:
            changed = bytearray(frame)
            for _ in range(chance.choice((1, 1, 2, 4))):
                changed[chance.randrange(len(SYN4))] = chance.getrandbits(8)
            end = chance.choice((len(frame), len(frame), chance.randrange(len(frame))))
            yield bytes(changed[:end]) + noise[:chance.choice((0, 0, 18, 1400))]


def test_fifty_thousand_frames_raise_nothing():
    seen = {True: 0, False: 0}
    for frame in frames(1, 50000):
        packet = knockd.parse_packet(frame, BOTH, None)
        knockd.parse_syn(frame)
        seen[packet is None] += 1
        if packet is not None:
            assert 68 <= len(packet.payload) <= 1232 and packet.payload in frame
    assert min(seen.values()) > 5000


def test_parsing_remembers_nothing():
    def parse_all(sample):
        for frame in sample:
            knockd.parse_packet(frame, BOTH, None)
            knockd.parse_syn(frame)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    first, second = list(frames(2, 500)), list(frames(3, 5000))
    tracemalloc.start()
    try:
        before = parse_all(first)
        grown = parse_all(second) - before
    finally:
        tracemalloc.stop()
    assert grown < 2000, 'not half a byte a frame'
