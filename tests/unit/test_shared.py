"""Keys, steps, sequences, codes and the lists that people type: the shared block but datagrams."""
import hashlib
import hmac
import importlib.util
import os
import random
import subprocess
import sys

import pytest

import knock
import knockd

SECRET = bytes(range(32))
TEXT = 'AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ'     # by coreutils: base32
BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'
BOUNDARY = 1700000010000                # step 56666667 begins
KEYS = knockd.derive_keys(SECRET, 'server')


def refusal(function, *arguments):
    """Calls what must be refused as a usage error, in one line; returns the message."""
    with pytest.raises(knockd.KnockError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert caught.value.status == 2
    assert message and len(message.splitlines()) == 1
    return message


HAS_OPENSSL = importlib.util.find_spec('_hashlib') is not None


# --- hashes -------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, new', [('sha1', knockd.sha1), ('sha256', knockd.sha256)])
def test_hmac_is_that_of_python_for_keys_of_every_length(name, new):
    for length in range(150):
        key, message = bytes(range(100, 100 + length)), bytes(length)
        assert knockd.hmac_of(new, key, message) == hmac.new(key, message, name).digest()


@pytest.mark.parametrize('script', ['knockd', 'knock'])
@pytest.mark.parametrize('absent', [''] + ['_sha1', '_sha2 _sha256'] * HAS_OPENSSL)
def test_the_hashes_are_pythons_own_or_where_one_is_missing_hashlibs(script, absent):
    """Own ones come without OpenSSL, or the daemon would have twice the memory."""
    code = """
import sys
sys.path.insert(0, %r)
for name in %r:
    sys.modules[name] = None            # importing it is an ImportError
import %s as script
print(script.hmac_sha256(bytes([11] * 20), b'Hi There').hex()[:16])
print(script.compare_digest(b'a', b'a'), 'hashlib' in sys.modules)
"""
    top = os.path.dirname(os.path.abspath(knockd.__file__))
    said = subprocess.check_output(
        [sys.executable, '-I', '-S', '-c', code % (top, absent.split(), script)]).decode()
    # RFC 4231 test case 1
    assert said.split() == ['b0344c61d8db3853', 'True', str(bool(absent))]


# --- secrets ------------------------------------------------------------------------------------
@pytest.mark.parametrize('secret, text', [
    (bytes(32), 'A' * 52),
    (b'\xff' * 32, '7' * 51 + 'Q'),     # 256 bits: 51 characters of five, then a one and zeros
    (SECRET, TEXT),
])
def test_a_secret_is_52_characters_of_base32(secret, text):
    assert knockd.encode_secret(secret) == text
    assert knockd.decode_secret(text) == secret


@pytest.mark.parametrize('text', [
    TEXT.lower(),
    TEXT[:26] + TEXT[26:].lower(),
    ' '.join(TEXT[i:i + 4] for i in range(0, 52, 4)),
    '-'.join(TEXT[i:i + 4] for i in range(0, 52, 4)),
    '  ' + '- -'.join(TEXT.lower()) + ' - ',
])
def test_a_secret_is_read_in_lower_case_with_spaces_and_hyphens(text):
    assert knockd.decode_secret(text) == SECRET


def test_a_secret_with_spare_bits_is_refused():
    """52 characters hold 260 bits; a second spelling of a key would hide a doubled section."""
    for last in BASE32:
        text = TEXT[:-1] + last
        if last in 'AQ':                # 00000 and 10000
            assert knockd.encode_secret(knockd.decode_secret(text)) == text
        else:
            assert TEXT[:-1] not in refusal(knockd.decode_secret, text)


@pytest.mark.parametrize('text', [
    '', ' ', TEXT[:-1], TEXT[1:], TEXT + 'A', TEXT * 2, TEXT + '====', TEXT[:48],
    TEXT[:-2] + '0Q', TEXT[:-2] + '1Q', TEXT[:-2] + '8Q', TEXT[:-2] + '9Q', TEXT[:-2] + '=Q',
    TEXT[:-1] + '\u00e9', TEXT + '\n', '\n' + TEXT, TEXT + '\0', TEXT[:20] + '\t' + TEXT[20:],
    TEXT[:20] + '_' + TEXT[20:], TEXT[:20] + '\u2010' + TEXT[20:], TEXT[:20] + '\xa0' + TEXT[20:],
    SECRET.hex(), '\u0660' * 52, '\udc80' * 52,
    TEXT.replace('I', '\u0131'),        # dotless i: its upper case is an ASCII I
    '\u017f' * 51 + 'A',                # long s: likewise an S
    '\u00df' * 25 + 'SA',               # sharp s: two letters in upper case
])
def test_what_is_not_a_secret_is_refused_and_not_repeated(text):
    message = refusal(knockd.decode_secret, text)
    assert not text.strip() or text.strip() not in message
    assert TEXT[:16] not in message


# --- keys ---------------------------------------------------------------------------------------
def test_every_label_has_a_key_of_its_own():
    assert list(KEYS) == ['tag', 'enc', 'mac', 'syn', 'ports', 'code', 'ledger']
    assert len(set(KEYS.values())) == 7
    assert {len(key) for key in KEYS.values()} == {32}


def test_no_key_is_the_same_on_another_server_or_for_another_secret():
    other_server = knockd.derive_keys(SECRET, 'server2')
    other_secret = knockd.derive_keys(SECRET[:-1] + b'\x1e', 'server')
    everything = [key for keys in (KEYS, other_server, other_secret) for key in keys.values()]
    assert len(set(everything)) == 21


def test_the_fingerprint_and_the_phones_key_are_the_beginnings_of_two_keys():
    assert knockd.fingerprint(KEYS) == KEYS['ledger'].hex()[:16]
    assert knockd.code_at(KEYS, 7) == knockd.hotp(KEYS['code'][:20], 7, 8)


# --- steps --------------------------------------------------------------------------------------
@pytest.mark.parametrize('time, step', [
    (0, 0), (29999, 0), (30000, 1), (59000, 1), (BOUNDARY - 1, 56666666), (BOUNDARY, 56666667),
    (1234567890000, 41152263), ((1 << 42) - 1, 146601550), (-1, -1),
])
def test_a_step_is_thirty_seconds(time, step):
    assert knockd.step_of(time) == step


@pytest.mark.parametrize('now, window, first, last', [
    (BOUNDARY, 60000, 56666665, 56666669),              # both ends are steps of their own
    (BOUNDARY - 1, 60000, 56666664, 56666668),
    (BOUNDARY + 15000, 60000, 56666665, 56666669),
    (BOUNDARY, 1000, 56666666, 56666667),
    (BOUNDARY + 1000, 1000, 56666667, 56666667),
    (BOUNDARY + 29000, 1000, 56666667, 56666668),
    (BOUNDARY + 28999, 1000, 56666667, 56666667),
    (BOUNDARY, 600000, 56666647, 56666687),
    (0, 60000, 0, 2),                                   # no step is before 1970
])
def test_the_window_reaches_from_floor_to_floor(now, window, first, last):
    steps = knockd.window_steps(now, window)
    assert (steps[0], steps[-1], len(steps)) == (first, last, last - first + 1)


# --- streams and sequences ----------------------------------------------------------------------
@pytest.mark.parametrize('length', [0, 1, 31, 32, 33, 64, 65, 1192])
def test_the_keystream_counts_its_blocks_from_zero(length):
    key, nonce = b'k' * 32, b'n' * 16
    blocks = [hmac.new(key, nonce + bytes([0, 0, 0, i]), hashlib.sha256).digest()
              for i in range(40)]
    assert knockd.keystream(key, nonce, length) == b''.join(blocks)[:length]


class Stream:
    """Stands in for HMAC-SHA-256, so that the rare cases of a sequence need no luck."""

    def __init__(self, *blocks):
        self.blocks = [b''.join(value.to_bytes(2, 'big') for value in block) for block in blocks]
        self.messages = []

    def __call__(self, key, message):
        self.messages.append(message)
        return self.blocks[len(self.messages) - 1]


def test_a_sequence_goes_on_with_the_next_block(monkeypatch):
    stream = Stream([64512 + i for i in range(15)] + [7], [7] * 16, list(range(16)))
    monkeypatch.setattr(knockd, 'hmac_sha256', stream)
    assert knockd.port_sequence(b'', b'prefix') == (1031, 1024, 1025, 1026, 1027, 1028)
    assert stream.messages == [b'prefix\0\0\0\0', b'prefix\0\0\0\1', b'prefix\0\0\0\2']


def test_a_sequence_takes_the_last_value_of_a_block(monkeypatch):
    stream = Stream([65535] * 10 + [64511, 0, 64511, 3, 4, 5], [0] * 15 + [9])
    monkeypatch.setattr(knockd, 'hmac_sha256', stream)
    assert knockd.port_sequence(b'', b'') == (65535, 1024, 1027, 1028, 1029, 1033)


def test_every_sequence_is_six_different_ports_from_1024_up():
    for number in range(300):
        ports = knockd.step_ports(KEYS, 56666666 + number)
        assert len(ports) == len(set(ports)) == 6
        assert 1024 <= min(ports) and max(ports) <= 65535


def test_no_sequence_of_paper_is_one_of_a_step_or_of_another_sheet():
    paper = {knockd.paper_ports(KEYS, sheet, number) for sheet in (1, 2) for number in (1, 2)}
    steps = {knockd.step_ports(KEYS, step) for step in (1, 2)}
    assert len(paper | steps) == 6


@pytest.mark.parametrize('code, ports', [
    ('94287082', (19428, 27082)), ('00000000', (10000, 20000)), ('99999999', (19999, 29999)),
    ('00010020', (10001, 20020)),
])
def test_a_code_is_typed_as_two_ports(code, ports):
    assert knock.code_ports(code) == ports


# --- services -----------------------------------------------------------------------------------
@pytest.mark.parametrize('text, service', [
    ('tcp/22', (6, 22, 22)), ('udp/51820', (17, 51820, 51820)), ('tcp/8000-8010', (6, 8000, 8010)),
    ('tcp/1', (6, 1, 1)), ('udp/65535', (17, 65535, 65535)), ('tcp/1-65535', (6, 1, 65535)),
])
def test_a_service_is_read_and_written(text, service):
    assert knockd.parse_service(text) == knockd.Service(*service)
    assert knockd.format_service(knockd.Service(*service)) == text


@pytest.mark.parametrize('text', [' tcp/22', 'tcp/22 ', 'tcp/022', 'tcp/22-22'])
def test_other_spellings_of_a_service_mean_the_same(text):
    assert knockd.format_service(knockd.parse_service(text)) == 'tcp/22'


@pytest.mark.parametrize('text', [
    '', 'tcp', 'tcp/', '/22', '22', 'ssh', 'tcp/ssh', 'TCP/22', 'icmp/1', 'sctp/22', 'tcp:22',
    'tcp/0', 'tcp/0-22', 'tcp/65536', 'tcp/99999', 'tcp/122222', 'tcp/1-65536', 'tcp/23-22',
    'tcp/22-', 'tcp/-22', 'tcp/+22', 'tcp/2_2', 'tcp/22-23-24', 'tcp/22,udp/53', 'tcp/22 23',
    'tcp/2 2', 'tcp/22\nudp/53', 'tcp/\u0662\u0662', 'tcp/0x16', 'tcp/22\0', 'tcp/22;udp/53',
    'tcp/22\x1b[2J', 'tcp/22\u2028udp/53',
])
def test_what_is_not_a_service_is_refused(text):
    assert '\x1b' not in refusal(knockd.parse_service, text)


@pytest.mark.parametrize('text', ['tcp22', 'tcp/22;udp/53', 'tcp/70000'])
def test_a_slip_in_a_service_is_shown(text):
    assert text in refusal(knockd.parse_service, text)


@pytest.mark.parametrize('text, services', [
    ('', ()), ('  ', ()),
    ('tcp/22', [(6, 22, 22)]),
    ('tcp/22,udp/51820', [(6, 22, 22), (17, 51820, 51820)]),
    (' udp/53 , tcp/8000-8010\n', [(17, 53, 53), (6, 8000, 8010)]),
    (',', ()), ('tcp/22,', [(6, 22, 22)]), (' ,tcp/22', [(6, 22, 22)]),
    ('tcp/22, ,udp/53', [(6, 22, 22), (17, 53, 53)]),
])
def test_a_list_of_services_is_read_in_its_order(text, services):
    assert knockd.parse_services(text) == tuple(knockd.Service(*one) for one in services)


@pytest.mark.parametrize('text', ['tcp/22 udp/53', 'tcp/22;udp/53', 'tcp/22,x'])
def test_a_list_with_a_stranger_is_refused(text):
    refusal(knockd.parse_services, text)


def test_a_service_named_twice_does_not_make_a_knock_that_the_server_refuses():
    services = knockd.parse_services('tcp/22,udp/53,tcp/22')
    assert len(services) == len(set(services))


def test_services_survive_writing_and_reading():
    chance = random.Random(1)
    for _ in range(200):
        ranges = [sorted(chance.randint(1, 65535) for _ in 'ab') for _ in range(6)]
        services = tuple(knockd.Service(chance.choice((6, 17)), *ports) for ports in ranges)
        services = services[:chance.randint(0, 6)]
        assert knockd.parse_services(knockd.format_services(services)) == services


# --- seconds ------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, seconds', [
    ('30', 30), ('30s', 30), ('5m', 300), ('2h', 7200), ('1d', 86400), ('0', 0), (' 90 s ', 90),
    ('007', 7), ('999999999', 999999999),
])
def test_times_are_read_in_seconds_unless_a_unit_says_otherwise(text, seconds):
    assert knockd.parse_seconds(text) == seconds


@pytest.mark.parametrize('text', [
    '', 's', '-1', '+1', '1.5', '1e3', '5M', '5min', '5 m 3 s', '1h30m', '0x10', '1_0', 'forever',
    '9' * 10, '\u0663', '5\u00b5', '5\nx', '5;', '30s\0',
])
def test_what_is_not_a_time_is_refused(text):
    refusal(knockd.parse_seconds, text)
