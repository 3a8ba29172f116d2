"""Datagrams: what is written is read back, and nothing else is read at all.

The malformed forms that another implementation must refuse too stand one by one in
tests/vectors/datagrams.json; here are those that are many: truncations, bit flips, noise.
"""
import ipaddress
import random

import pytest

import knock
import knockd

KEYS = knockd.derive_keys(bytes(range(32)), 'server')
TIME, STEP = 1700000000123, 56666666
NONCE = bytes(range(16))
FIXED = 28                              # version 1, op 1, time 8, source 16, seconds 2
SSH, VPN = knockd.Service(6, 22, 22), knockd.Service(17, 51820, 51820)


def make_request(op='open', source=None, seconds=0, services=(), action=None, signature=None,
                 time=TIME):
    """A Request; `signed` is left out, as the client does not know it yet."""
    return knockd.Request(op, time, source, seconds, tuple(services), action, signature, None)


def plain_of(*arguments, **fields):
    return knock.encode_plain(make_request(*arguments, **fields))


def is_refused(plain):
    """True if the bytes are refused as malformed, in one line."""
    try:
        knockd.decode_plain(plain)
    except knockd.KnockError as error:
        message = str(error)
        assert message.startswith('malformed') and len(message.splitlines()) == 1
        assert error.status == 1        # a packet's fault is no usage error
        return True
    return False


def random_request(chance):
    """Any request that can be written, sources of both families and none included."""
    op = chance.choice(['open', 'close', 'run'])
    ranges = {(chance.choice((6, 17)),) + tuple(sorted(chance.randint(1, 65535) for _ in 'ab'))
              for _ in range(chance.randint(0, 5))}
    source = chance.choice([None, ipaddress.IPv4Address(chance.getrandbits(32)),
                            ipaddress.IPv6Address(chance.getrandbits(128) | 1 << 127)])
    letters = 'abcdefghijklmnopqrstuvwxyz0123456789_-'
    action = ''.join(chance.choice(letters) for _ in range(chance.randint(1, 32)))
    signature = bytes(chance.getrandbits(8) for _ in range(chance.randint(0, 300)))
    return make_request(
        op, source, chance.getrandbits(16),
        [knockd.Service(*one) for one in sorted(ranges)] if op != 'run' else (),
        action if op == 'run' else None, chance.choice([None, signature]), chance.getrandbits(42))


# --- what is written is read back ---------------------------------------------------------------
def test_every_request_survives_writing_sealing_opening_and_reading():
    chance = random.Random(1)
    for _ in range(300):
        request = random_request(chance)
        padding = bytes(chance.randint(0, 63))
        nonce = bytes(chance.getrandbits(8) for _ in range(16))
        plain = knock.encode_plain(request, padding)
        datagram = knock.seal(KEYS, nonce, plain, STEP)
        assert len(datagram) == 40 + len(plain)
        assert knockd.unseal(KEYS, datagram) == plain
        read = knockd.decode_plain(plain)
        assert read._replace(signed=None) == request
        assert knock.encode_plain(read, padding) == plain
        before = knock.encode_plain(request._replace(signature=None))
        assert read.signed == (plain if request.signature is None else before)


def test_an_ipv4_source_is_read_as_ipv4_and_zero_as_none():
    mapped = make_request(source=ipaddress.ip_address('::ffff:192.0.2.7'))
    plain = knock.encode_plain(mapped)
    assert knockd.decode_plain(plain).source == ipaddress.ip_address('192.0.2.7')
    assert plain == plain_of(source=ipaddress.ip_address('192.0.2.7'))
    assert knockd.decode_plain(plain_of()).source is None
    assert knock.pack_address(None) == bytes(16) == plain_of()[10:26]


def test_the_limits_of_every_number_are_readable():
    widest = make_request(seconds=65535, time=(1 << 42) - 1,
                          services=[knockd.Service(6, 1, 65535), knockd.Service(17, 65535, 65535)])
    assert knockd.decode_plain(knock.encode_plain(widest))._replace(signed=None) == widest
    assert is_refused(knock.encode_plain(widest._replace(time=1 << 42)))


def test_an_empty_signature_is_not_the_same_as_none():
    assert knockd.decode_plain(plain_of(signature=b'')).signature == b''
    assert knockd.decode_plain(plain_of()).signature is None


@pytest.mark.parametrize('action', ['a', 'abcdefghijklmnopqrstuvwxyz-_0123', '0', '-', '_'])
def test_the_names_that_an_action_may_have(action):
    plain = plain_of('run', action=action)
    assert knockd.decode_plain(plain).action == action


def test_up_to_63_zeros_of_padding_are_readable():
    for services in ((), (SSH,)):
        plain = plain_of(services=services)
        for length in range(64):
            assert knockd.decode_plain(plain + bytes(length)).services == services
        for length in (64, 65, 100, 1000):
            assert is_refused(plain + bytes(length))


# --- nothing else is read -----------------------------------------------------------------------
@pytest.mark.parametrize('fields, whole', [
    (dict(services=[SSH, VPN]), {FIXED, FIXED + 8, FIXED + 16}),
    (dict(op='run', action='reboot'), {FIXED + 9}),
    (dict(services=[SSH], signature=b's' * 83), {FIXED, FIXED + 8, FIXED + 8 + 86}),
    (dict(op='run', action='reboot', signature=b's' * 83), {FIXED + 9, FIXED + 9 + 86}),
], ids=['ports', 'action', 'signed ports', 'signed action'])
def test_a_truncated_knock_is_refused_unless_it_ends_with_an_item(fields, whole):
    """One that ends with an item is another knock: that it was cut is for the MAC to say."""
    plain = plain_of(**fields)
    assert {cut for cut in range(len(plain) + 1) if not is_refused(plain[:cut])} == whole


@pytest.mark.parametrize('tail', [b'\1', b'\xff', b'\0\1', bytes(62) + b'\1', b'\1\0\0', b'\3\0\1'],
                         ids=repr)
@pytest.mark.parametrize('fields', [dict(), dict(services=[SSH]), dict(op='run', action='reboot'),
                                    dict(signature=b's' * 83)], ids=sorted)
def test_trailing_bytes_are_refused(fields, tail):
    assert is_refused(plain_of(**fields) + tail)


def test_every_place_in_the_padding_must_be_zero():
    plain = plain_of(services=[SSH])
    for length in (1, 2, 63):
        for place in range(1, length):
            padding = bytearray(length)
            padding[place] = 0x80
            assert is_refused(plain + bytes(padding))


def test_every_version_but_the_first_and_every_op_beyond_run_is_refused():
    plain = plain_of()
    versions = [one for one in range(256) if not is_refused(bytes([one]) + plain[1:])]
    assert versions == [1]
    ops = [op for op in range(256) if not is_refused(plain[:1] + bytes([op]) + plain[2:])]
    assert ops == [1, 2]                # 3 is run, which wants an action


def test_every_type_of_item_beyond_the_signature_is_refused():
    plain = plain_of()
    for kind in range(4, 256):
        assert is_refused(plain + bytes([kind, 0, 0]))
        assert is_refused(plain + bytes([kind, 0, 5, 6, 0, 22, 0, 22]))


def test_every_protocol_but_tcp_and_udp_is_refused():
    start = plain_of() + b'\1\0\5'
    fine = [proto for proto in range(256) if not is_refused(start + bytes([proto, 0, 22, 0, 22]))]
    assert fine == [6, 17]


def test_every_wrong_length_of_a_port_range_is_refused():
    value = b'\6\0\x16\0\x16' * 3
    fine = [length for length in range(16)
            if not is_refused(plain_of() + bytes([1, 0, length]) + value[:length])]
    assert fine == [5]


def test_every_character_outside_the_alphabet_of_actions_is_refused():
    start = plain_of()[:1] + b'\3' + plain_of()[2:] + b'\2\0\3'
    fine = [code for code in range(256) if not is_refused(start + b'a' + bytes([code]) + b'a')]
    assert bytes(fine) == b'-0123456789_abcdefghijklmnopqrstuvwxyz'


ITEM = b'\1\0\5' + b'\6\0\x16\0\x16'


@pytest.mark.parametrize('plain, words', [
    (plain_of()[:27], '27 bytes'),
    (b'\2' + plain_of()[1:], 'version 2, op 1, time 1700000000123'),
    (plain_of() + b'\4\0\0', 'an item of unknown type 4'),
    (plain_of() + ITEM[:7], 'an item longer than the rest'),
    (plain_of(signature=b's') + ITEM, 'an item behind the signature'),
    (plain_of() + bytes(64), 'the padding is not up to 63 zeros'),
    (plain_of() + b'\0\1', 'the padding is not up to 63 zeros'),
    (plain_of() + b'\1\0\7' + b'\6\0\x16\0\x16\xaa\xbb', 'port range 0600160016'),
    (plain_of() + b'\1\0\5' + b'\6\0\0\0\x16', 'port range 0600000016'),
    (plain_of() + b'\1\0\5' + b'\6\0\x17\0\x16', 'port range 0600170016'),
    (plain_of() + ITEM + ITEM, 'a port range twice'),
    (plain_of() + b'\2\0\1a', 'run has one good name and nothing else, the others have none'),
    (plain_of('run', action='a') + b'\2\0\1b',
     'run has one good name and nothing else, the others have none'),
    (plain_of('run', action='a') + ITEM,
     'run has one good name and nothing else, the others have none')], ids=range(14))
def test_the_log_can_say_what_is_malformed(plain, words):
    with pytest.raises(knockd.KnockError) as error:
        knockd.decode_plain(plain)
    assert str(error.value) == 'malformed: ' + words


def test_a_flipped_bit_of_the_plain_bytes_never_reads_as_the_same_request():
    request = make_request(source=ipaddress.ip_address('2001:db8::7'), services=[SSH, VPN],
                           signature=b's' * 20)
    plain = knock.encode_plain(request, bytes(3))
    whole = knockd.decode_plain(plain)
    for flipped in every_flip(plain):
        if not is_refused(flipped):
            assert knockd.decode_plain(flipped) != whole


def every_flip(data):
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_noise_is_refused_or_is_the_one_spelling_of_what_it_says():
    """Two spellings of one knock would be two knocks to whoever compares bytes."""
    chance = random.Random(2)
    read = 0
    for _ in range(4000):
        plain = mutated(chance, knock.encode_plain(random_request(chance),
                                                    bytes(chance.randint(0, 63))))
        if not is_refused(plain):
            read += 1
            again = knock.encode_plain(knockd.decode_plain(plain))
            assert plain.startswith(again)
            assert plain[len(again):] in [bytes(length) for length in range(64)]
    assert 400 < read < 3600            # both answers were really seen


def mutated(chance, plain):
    """Plain bytes with up to three changes: a byte set, bytes cut out, doubled or put in."""
    plain = bytearray(plain)
    for _ in range(chance.randint(1, 3)):
        place, length = chance.randrange(len(plain) + 1), chance.randint(0, 9)
        kind = chance.randrange(4)
        if kind == 0 and place < len(plain):
            plain[place] = chance.choice([0, 1, 2, 3, 6, 17, 255, chance.getrandbits(8)])
        elif kind == 1:
            del plain[place:place + length]
        elif kind == 2:
            plain[place:place] = plain[place:place + length]
        else:
            plain[place:place] = bytes(chance.choice([0, 0, 1, 2, 3, 5, 6]) for _ in range(length))
    return bytes(plain)


# --- sealing ------------------------------------------------------------------------------------
def test_a_datagram_with_any_bit_flipped_is_not_opened():
    datagram = knock.seal(KEYS, NONCE, plain_of(services=[SSH]) + bytes(2), STEP)
    assert knockd.unseal(KEYS, datagram) is not None
    for flipped in every_flip(datagram):
        assert knockd.unseal(KEYS, flipped) is None


def test_a_datagram_cut_or_continued_is_not_opened():
    datagram = knock.seal(KEYS, NONCE, plain_of(), STEP)
    for cut in range(len(datagram)):
        assert knockd.unseal(KEYS, datagram[:cut]) is None
        assert knockd.unseal(KEYS, datagram[cut + 1:]) is None
    for tail in (b'\0', bytes(16), datagram[-16:], datagram):
        assert knockd.unseal(KEYS, datagram + tail) is None


def test_noise_of_any_length_is_not_opened():
    chance = random.Random(3)
    for length in list(range(100)) + [1232, 1233, 1500, 65507]:
        noise = bytes(chance.getrandbits(8) for _ in range(length))
        assert knockd.unseal(KEYS, noise) is None


def test_a_datagram_is_not_opened_by_another_client_or_server():
    datagram = knock.seal(KEYS, NONCE, plain_of(), STEP)
    assert knockd.unseal(knockd.derive_keys(bytes(range(32)), 'other'), datagram) is None
    assert knockd.unseal(knockd.derive_keys(bytes(32), 'server'), datagram) is None


def test_a_datagram_does_not_take_the_tag_or_the_nonce_of_another():
    plain = plain_of()
    one = knock.seal(KEYS, NONCE, plain, STEP)
    other = knock.seal(KEYS, bytes(16), plain, STEP + 1)
    assert len(one) == len(other)
    assert knockd.unseal(KEYS, other[:8] + one[8:]) is None
    assert knockd.unseal(KEYS, one[:8] + other[8:24] + one[24:]) is None


def test_the_mac_is_the_first_thing_looked_at_and_compared_in_constant_time(monkeypatch):
    """Encrypt-then-MAC: nothing is decrypted before the MAC holds."""
    datagram = knock.seal(KEYS, NONCE, plain_of(), STEP)
    compared, compare = [], knockd.compare_digest

    def spy(left, right):
        compared.append({bytes(left), bytes(right)})
        return compare(left, right)

    def decrypt(*_):
        raise AssertionError('decrypted before the MAC held')

    monkeypatch.setattr(knockd, 'compare_digest', spy)
    monkeypatch.setattr(knockd, 'keystream', decrypt)
    forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert knockd.unseal(KEYS, forged) is None
    assert compared == [{datagram[-16:], forged[-16:]}]


def test_the_same_request_looks_different_under_every_nonce():
    plain = plain_of(services=[SSH])
    one, other = [knock.seal(KEYS, nonce, plain, STEP) for nonce in (NONCE, bytes(16))]
    assert one[:8] == other[:8]
    same = sum(a == b for a, b in zip(one[8:], other[8:]))
    assert same < 6                     # of 68 bytes; chance alone gives one in 256


def test_a_datagram_has_1232_bytes_at_most():
    longest = bytes(1232 - 8 - 16 - 16)
    assert len(knock.seal(KEYS, NONCE, longest, STEP)) == 1232
    with pytest.raises(knock.KnockError):
        knock.seal(KEYS, NONCE, longest + b'\0', STEP)


def test_the_shortest_datagram_has_the_length_that_the_filter_asks_for():
    assert len(knock.seal(KEYS, NONCE, plain_of(), STEP)) == knockd.DATAGRAM_MINIMUM == 68
    assert knockd.DATAGRAM_LIMIT == 1232
