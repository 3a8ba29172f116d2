"""The shared block against the RFCs and against a second implementation of knock/1.

tests/vectors/rfc*.json are typed from the RFCs. The other tables come from tests/vectors/make.py,
which shares no code with knockd.py; here they are also compared with openssl, oathtool and
ssh-keygen, so that the two cannot be wrong together.
"""
import ast
import base64
import ipaddress
import json
import os
import runpy
import shutil
import subprocess

import pytest

import knock
import knockd
from test_uri import written

VECTORS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'vectors')
MADE = ('datagrams', 'keys', 'lines', 'tokens', 'fleet')
TYPED = ('rfc4226', 'rfc4231', 'rfc5869', 'rfc6238')


def text_of(name):
    with open(os.path.join(VECTORS, name)) as source:
        return source.read()


def load(name):
    return json.loads(text_of(name + '.json'))


def unhex(text):
    return bytes.fromhex(text)


RFC4226, RFC4231, RFC5869, RFC6238 = [load(name) for name in TYPED]
DATAGRAMS, CLIENTS, LINES, TOKENS, FLEET = [load(name) for name in MADE]
LAPTOP = knockd.derive_keys(unhex(TOKENS['secret']), TOKENS['server_id'])


def label(case):
    return case.get('name') or case.get('why') or case.get('line')


def services_of(case):
    return tuple(knockd.Service(*service) for service in case['services'])


def request_of(case):
    """The Request that a datagram of the table stands for, put together from its plain fields."""
    source = ipaddress.ip_address(case['source']) if case['source'] else None
    plain = unhex(case['plain'])
    signature = unhex(case['signature']) if case['signature'] else None
    signed = plain[:-3 - len(signature) - case['padding']] if signature else plain
    return knockd.Request(case['op'], case['time'], source, case['seconds'], services_of(case),
                          case['action'], signature, signed)


def address_of(case):
    return knockd.Address(case['name'], unhex(case['secret']), case['host'], case['port'],
                          case['server_id'], case['via'], services_of(case), case['once'])


# --- the RFCs -----------------------------------------------------------------------------------
@pytest.mark.parametrize('case', RFC4231['cases'], ids=lambda case: str(case['case']))
def test_hmac_sha256_is_rfc_4231(case):
    expected = unhex(case['hmac'])
    mac = knockd.hmac_sha256(unhex(case['key']), unhex(case['data']))
    assert len(mac) == 32
    assert mac[:len(expected)] == expected


@pytest.mark.parametrize('case', RFC5869['cases'], ids=lambda case: str(case['case']))
def test_hkdf_is_rfc_5869(case):
    root = knockd.hmac_sha256(unhex(case['salt']), unhex(case['ikm']))
    assert root.hex() == case['prk']
    first = knockd.hmac_sha256(root, unhex(case['info']) + b'\x01')     # all that a key needs
    assert first.hex() == case['okm'][:64]


@pytest.mark.parametrize('case', RFC4226['cases'], ids=lambda case: str(case['count']))
def test_hotp_is_rfc_4226(case):
    key = unhex(RFC4226['secret'])
    assert knockd.hotp(key, case['count'], 6) == case['hotp']
    assert int(knockd.hotp(key, case['count'], 10)) == case['decimal']
    assert int(case['hexadecimal'], 16) == case['decimal']      # the RFC's own two columns


@pytest.mark.parametrize('case', RFC6238['cases'], ids=lambda case: str(case['time']))
def test_totp_is_rfc_6238(case):
    step = knockd.step_of(case['time'] * 1000)
    assert step == int(case['step'], 16)
    assert knockd.hotp(unhex(RFC6238['secret']), step, 8) == case['totp']


# --- keys and tokens ----------------------------------------------------------------------------
@pytest.mark.parametrize('case', CLIENTS['clients'], ids=label)
def test_keys_are_those_of_the_vectors(case):
    secret = unhex(case['secret'])
    keys = knockd.derive_keys(secret, case['server_id'])
    assert knockd.hmac_sha256(b'knock/1', secret).hex() == case['prk']
    assert {name: key.hex() for name, key in keys.items()} == case['keys']
    assert knockd.fingerprint(keys) == case['fingerprint']
    assert keys['code'][:20].hex() == case['code_key']
    assert knockd.encode_secret(keys['code'][:20]) == case['code_key_text']
    assert knockd.encode_secret(secret) == case['secret_text']
    assert knockd.decode_secret(case['secret_text']) == secret


@pytest.mark.parametrize('case', FLEET['servers'], ids=lambda case: case['server_id'][:9])
def test_the_secrets_of_a_fleet_are_those_of_the_vectors(case):
    secret = knock.fleet_secret(unhex(case['master']), case['server_id'])
    assert secret.hex() == case['secret']
    assert knock.encode_secret(secret) == case['secret_text']
    keys = knockd.derive_keys(secret, case['server_id'])
    assert keys['tag'].hex() == case['tag_key']
    assert knockd.fingerprint(keys) == case['fingerprint']


def test_no_two_servers_of_a_fleet_hold_one_secret():
    assert len({case['secret'] for case in FLEET['servers']}) == len(FLEET['servers'])
    address = knock.parse_uri(FLEET['line'])
    assert (address.host, address.server_id) == ('*', '*')
    assert knock.member(address, 'web1', None).secret.hex() == FLEET['servers'][0]['secret']


@pytest.mark.parametrize('case', TOKENS['steps'], ids=lambda case: str(case['step']))
def test_tags_and_syn_tokens_are_those_of_the_vectors(case):
    step = case['step']
    assert knockd.step_of(case['first_ms']) == knockd.step_of(case['last_ms']) == step
    assert knockd.tag_at(LAPTOP, step).hex() == case['tag']
    badge = knockd.syn_badge(LAPTOP, step)
    assert badge.hex() == case['syn']
    numbers = [int.from_bytes(badge[i:j], 'big') for i, j in ((0, 4), (4, 8), (8, 10))]
    assert numbers == [case['syn_seq'], case['syn_ack'], case['syn_window']]


@pytest.mark.parametrize('case', TOKENS['ports'], ids=label)
def test_port_sequences_are_those_of_the_vectors(case):
    assert knockd.step_ports(LAPTOP, case['step']) == tuple(case['ports'])
    assert knockd.port_sequence(LAPTOP['ports'], unhex(case['prefix'])) == tuple(case['ports'])


@pytest.mark.parametrize('case', TOKENS['paper'], ids=label)
def test_paper_sequences_are_those_of_the_vectors(case):
    assert knockd.paper_ports(LAPTOP, case['sheet'], case['number']) == tuple(case['ports'])


def test_the_sequences_of_the_vectors_meet_every_reason_to_skip():
    """The steps were searched for; a change of key would silently empty these cases."""
    cases = {case['name']: case for case in TOKENS['ports'] + TOKENS['paper']}
    reasons = {name: [why for _, why in case['skipped']] for name, case in cases.items()}
    assert reasons['nothing is skipped'] == []
    assert reasons['a value above 64512 is skipped'] == ['not below 64512']
    assert reasons['three values are skipped'] == ['not below 64512'] * 3
    assert reasons['a port that is already taken is skipped'] == ['taken']
    assert sorted(reasons['both reasons to skip']) == ['not below 64512', 'taken']
    assert cases['the value 64512 itself is skipped']['skipped'] == [[64512, 'not below 64512']]
    assert 65535 in cases['the value 64511 is the port 65535']['ports']
    assert 1024 in cases['the value 0 is the port 1024']['ports']


@pytest.mark.parametrize('case', TOKENS['codes'], ids=label)
def test_codes_and_their_ports_are_those_of_the_vectors(case):
    assert knockd.code_at(LAPTOP, case['step']) == case['code']
    assert knock.code_ports(case['code']) == tuple(case['ports'])


# --- datagrams ----------------------------------------------------------------------------------
@pytest.mark.parametrize('case', DATAGRAMS['accepted'], ids=label)
def test_a_request_becomes_the_datagram_of_the_vectors(case):
    plain = knock.encode_plain(request_of(case), bytes(case['padding']))
    assert plain.hex() == case['plain']
    nonce, datagram = unhex(case['nonce']), unhex(case['datagram'])
    assert knockd.keystream(LAPTOP['enc'], nonce, len(plain)).hex() == case['keystream']
    mac = knockd.hmac_sha256(LAPTOP['mac'], datagram[:-16])[:16]
    assert datagram[-16:].hex() == case['mac'] == mac.hex()
    assert knock.seal(LAPTOP, nonce, plain, case['step']).hex() == case['datagram']


@pytest.mark.parametrize('case', DATAGRAMS['accepted'], ids=label)
def test_a_datagram_of_the_vectors_becomes_its_request(case):
    plain = knockd.unseal(LAPTOP, unhex(case['datagram']))
    assert plain.hex() == case['plain']
    assert knockd.decode_plain(plain) == request_of(case)


@pytest.mark.parametrize('case', DATAGRAMS['refused'], ids=label)
def test_a_malformed_plain_of_the_vectors_is_refused(case):
    with pytest.raises(knockd.KnockError, match='^malformed'):
        knockd.decode_plain(unhex(case['plain']))


SIGNED = [case for case in DATAGRAMS['accepted'] if case['signature']]


@pytest.mark.parametrize('case', SIGNED, ids=label)
def test_the_signature_covers_server_tag_nonce_and_what_stands_before_it(case):
    signed = knockd.decode_plain(unhex(case['plain'])).signed
    server = DATAGRAMS['server_id'].encode('ascii')
    message = b'knock/1 ' + server + b'\0' + unhex(case['tag']) + unhex(case['nonce']) + signed
    assert message.hex() == case['signed_message']


# --- lines --------------------------------------------------------------------------------------
@pytest.mark.parametrize('case', LINES['canonical'] + LINES['forgiven'], ids=label)
def test_a_line_of_the_vectors_is_read(case):
    assert knock.parse_uri(case['line']) == address_of(case)


@pytest.mark.parametrize('case', LINES['canonical'], ids=label)
def test_a_line_of_the_vectors_is_written(case):
    assert written(address_of(case)) == case['line']


# --- where the vectors come from ----------------------------------------------------------------
def test_the_vectors_are_what_their_maker_makes():
    made = runpy.run_path(os.path.join(VECTORS, 'make.py'))['make']()
    assert made == {name + '.json': text_of(name + '.json') for name in MADE}


def test_no_table_is_left_over():
    tables = {name for name in os.listdir(VECTORS) if name.endswith('.json')}
    assert tables == {name + '.json' for name in MADE + TYPED}


def test_the_maker_of_the_vectors_knows_nothing_of_the_scripts():
    imported = set()
    for node in ast.walk(ast.parse(text_of('make.py'))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        assert not isinstance(node, ast.ImportFrom)
        assert not (isinstance(node, ast.Name) and node.id in ('__import__', 'exec', 'eval'))
    assert imported == {'hashlib', 'json', 'os', 're'}


# --- the same again from other people's programs ------------------------------------------------
def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason='no %s here' % program)


def output_of(*argv, **options):
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=20, **options).stdout


def openssl_hkdf(mode, *parameters):
    options = ('digest:SHA256', 'mode:' + mode) + parameters
    argv = [word for option in options for word in ('-kdfopt', option)]
    printed = output_of('openssl', 'kdf', '-keylen', '32', *(argv + ['HKDF']))
    return printed.decode('ascii').strip().replace(':', '').lower()


def openssl_hmac(key, message):
    return output_of('openssl', 'dgst', '-sha256', '-mac', 'HMAC', '-macopt', 'hexkey:' + key,
                     '-binary', input=message)


def has_openssl_kdf():
    """`openssl kdf` came with 3.0."""
    return (shutil.which('openssl')
            and output_of('openssl', 'version').split()[1].split(b'.')[0] >= b'3')


@pytest.mark.skipif(not has_openssl_kdf(), reason='no openssl 3 here')
@pytest.mark.parametrize('case', CLIENTS['clients'], ids=label)
def test_openssl_derives_the_same_keys(case):
    root = openssl_hkdf('EXTRACT_ONLY', 'hexsalt:' + b'knock/1'.hex(), 'hexkey:' + case['secret'])
    assert root == case['prk']
    for name in ('tag', 'ledger'):
        info = ('knock/1 %s\0%s' % (name, case['server_id'])).encode('ascii')
        derived = openssl_hkdf('EXPAND_ONLY', 'hexkey:' + root, 'hexinfo:' + info.hex())
        assert derived == case['keys'][name]


@needs('openssl')
def test_openssl_computes_the_same_tag_stream_mac_and_ports():
    keys = CLIENTS['clients'][0]['keys']
    case = DATAGRAMS['accepted'][0]
    step = case['step'].to_bytes(8, 'big')
    assert openssl_hmac(keys['tag'], step)[:8].hex() == case['tag']
    stream = openssl_hmac(keys['enc'], unhex(case['nonce']) + bytes(4)).hex()
    assert stream.startswith(case['keystream'])
    body = unhex(case['tag'] + case['nonce'] + case['sealed'])
    assert openssl_hmac(keys['mac'], body)[:16].hex() == case['mac']
    assert openssl_hmac(keys['syn'], step)[:10].hex() == TOKENS['steps'][1]['syn']
    values = openssl_hmac(keys['ports'], step + bytes(4))[:12]
    assert TOKENS['ports'][0]['values'] == [int.from_bytes(values[i:i + 2], 'big')
                                            for i in range(0, 12, 2)]


@needs('oathtool')
@pytest.mark.parametrize('case', TOKENS['codes'], ids=label)
def test_oathtool_shows_the_same_code(case):
    key = CLIENTS['clients'][0]['code_key_text']
    now = '@%d' % (case['step'] * 30 + 29)
    printed = output_of('oathtool', '--totp', '--base32', '--digits=8', '--now=' + now, key)
    assert printed.decode('ascii').strip() == case['code']


@needs('ssh-keygen')
@pytest.mark.parametrize('case', SIGNED, ids=label)
def test_ssh_keygen_accepts_the_signatures_of_the_vectors(case, tmp_path):
    armour = base64.b64encode(unhex(case['signature'])).decode('ascii')
    (tmp_path / 'signature').write_text(
        '-----BEGIN SSH SIGNATURE-----\n%s\n-----END SSH SIGNATURE-----\n' % armour)
    (tmp_path / 'signers').write_text('laptop %s\n' % DATAGRAMS['signing_key'])
    argv = ['ssh-keygen', '-Y', 'verify', '-f', str(tmp_path / 'signers'), '-I', 'laptop',
            '-n', 'knock', '-s', str(tmp_path / 'signature')]
    output_of(*argv, input=unhex(case['signed_message']))
    with pytest.raises(subprocess.CalledProcessError):
        output_of(*argv, input=unhex(case['signed_message'])[:-1], stderr=subprocess.DEVNULL)
