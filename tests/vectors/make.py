#!/usr/bin/env python3
"""Makes the vectors of protocol knock/1: a second implementation, from its description alone.

Shares no line with knockd.py and imports nothing of it, so that an error in one of the two
shows. HMAC is spelled out from RFC 2104, HKDF from RFC 5869, base32 from RFC 4648, Ed25519 from
RFC 8032. The rfc*.json files beside it are typed from those RFCs and not made here.

    python3 tests/vectors/make.py       writes keys, tokens, datagrams, lines and fleet (.json)

Bytes are hexadecimal in the JSON, times are milliseconds since 1970.
"""
import hashlib
import json
import os
import re

TIME = 1700000000123                    # 2023-11-14 22:13:20.123 UTC, in step 56666666
LAST_TIME = (1 << 42) - 1               # the last millisecond that a knock can carry: 2109-05-15
LABELS = ('tag', 'enc', 'mac', 'syn', 'ports', 'code', 'ledger')
UP = bytes(range(32))
DOWN = bytes(range(255, 223, -1))
CLIENTS = (                             # name, secret, server id
    ('laptop', UP, 'a1b2c3d4e5f60718'),
    ('same secret, another server', UP, 'vps-2.example.org'),
    ('shortest server id', DOWN, 'x'),
    ('longest server id', DOWN, 'A-Server_Whose.Name-Is-64-Characters-Long.' + '0123456789' * 2
     + '.Z'),
)
SIGNING_SEED = b'\x2a' * 32             # an Ed25519 private key for the signature vectors only


# --- primitives ---------------------------------------------------------------------------------
def be(size, number):
    return number.to_bytes(size, 'big')


def hmac(function, key, message):
    """RFC 2104: H(K XOR opad, H(K XOR ipad, text)); both hashes here have blocks of 64 bytes."""
    key = (function(key).digest() if len(key) > 64 else key).ljust(64, b'\0')
    inner = function(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return function(bytes(byte ^ 0x5c for byte in key) + inner).digest()


def mac256(key, message):
    return hmac(hashlib.sha256, key, message)


def expand(prk, info, length):
    """RFC 5869, 2.3: T(n) = HMAC(PRK, T(n-1) | info | n), n from 1."""
    blocks = [b'']
    while sum(map(len, blocks)) < length:
        blocks.append(mac256(prk, blocks[-1] + info + be(1, len(blocks))))
    return b''.join(blocks)[:length]


def base32(data):
    """RFC 4648, section 6, without the padding: five bits a character, zero bits at the end."""
    spare = -len(data) * 8 % 5
    number, text = int.from_bytes(data, 'big') << spare, ''
    for _ in range((len(data) * 8 + spare) // 5):
        number, value = divmod(number, 32)
        text = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'[value] + text
    return text


# --- keys and tokens (3.1, 3.3, 3.4, 3.5, 3.6) --------------------------------------------------
def derive(secret, server_id):
    prk = mac256(b'knock/1', secret)
    server = server_id.encode('ascii')
    keys = {label: expand(prk, b'knock/1 ' + label.encode('ascii') + b'\0' + server, 32)
            for label in LABELS}
    return prk, keys


def key_case(name, secret, server_id):
    prk, keys = derive(secret, server_id)
    return {'name': name, 'secret': secret.hex(), 'secret_text': base32(secret),
            'server_id': server_id, 'prk': prk.hex(),
            'keys': {label: keys[label].hex() for label in LABELS},
            'fingerprint': keys['ledger'][:8].hex(),
            'code_key': keys['code'][:20].hex(), 'code_key_text': base32(keys['code'][:20])}


def totp(key, step):
    """RFC 4226, 5.3 and RFC 6238, eight digits."""
    digest = hmac(hashlib.sha1, key, be(8, step))
    offset = digest[19] & 0xf
    number = int.from_bytes(digest[offset:offset + 4], 'big') & 0x7fffffff
    return str(number % 100000000).zfill(8)


def sequence(key, prefix):
    """The six ports, and every value read on the way: (ports, values, what was skipped)."""
    ports, values, skipped, block = [], [], [], b''
    while len(ports) < 6:
        if not block:
            block = mac256(key, prefix + be(4, len(values) // 16))
        value, block = int.from_bytes(block[:2], 'big'), block[2:]
        values.append(value)
        port = 1024 + value % 64512
        if value >= 64512:
            skipped.append([value, 'not below 64512'])
        elif port in ports:
            skipped.append([value, 'taken'])
        else:
            ports.append(port)
    return ports, values, skipped


def sequence_case(name, key, prefix, **extra):
    ports, values, skipped = sequence(key, prefix)
    case = {'name': name}
    case.update(extra)
    case.update(prefix=prefix.hex(), values=values, skipped=skipped, ports=ports)
    return case


STEPS = (                               # found by searching; a test looks whether each shows it
    (56666666, 'nothing is skipped'),
    (56666685, 'a value above 64512 is skipped'),
    (56674158, 'three values are skipped'),
    (56677891, 'the value 64512 itself is skipped'),
    (56674299, 'the value 64511 is the port 65535'),
    (56667480, 'the value 0 is the port 1024'),
    (56670430, 'a port that is already taken is skipped'),
    (56680033, 'both reasons to skip'),
    (146601550, 'the last step that a knock can carry'),
)
PAPER = (                               # sheet, number
    (1, 1, 'the first number of the first sheet'),
    (1, 2, 'the next number'),
    (2, 1, 'the next sheet'),
    (4294967295, 80, 'the last sheet; a port that is already taken is skipped'),
)
CODES = (
    (56666666, 'any step'),
    (56666704, 'one zero leads'),
    (56688891, 'zeros lead both halves'),
    (146601550, 'the last step that a knock can carry'),
)


def step_case(step, secret=UP, server_id='a1b2c3d4e5f60718'):
    """What a datagram and a SYN of this step carry."""
    keys = derive(secret, server_id)[1]
    syn = mac256(keys['syn'], be(8, step))[:10]
    return {'step': step, 'first_ms': step * 30000, 'last_ms': step * 30000 + 29999,
            'tag': mac256(keys['tag'], be(8, step))[:8].hex(), 'syn': syn.hex(),
            'syn_seq': int.from_bytes(syn[:4], 'big'), 'syn_ack': int.from_bytes(syn[4:8], 'big'),
            'syn_window': int.from_bytes(syn[8:], 'big')}


def code_case(step, name):
    code = totp(derive(UP, 'a1b2c3d4e5f60718')[1]['code'][:20], step)
    return {'name': name, 'step': step, 'code': code,
            'ports': [10000 + int(code[:4]), 20000 + int(code[4:])]}


def tokens():
    keys = derive(UP, 'a1b2c3d4e5f60718')[1]
    ports = [sequence_case(name, keys['ports'], be(8, step), step=step) for step, name in STEPS]
    paper = [sequence_case(name, keys['ports'], b'paper' + be(4, sheet) + be(4, number),
                           sheet=sheet, number=number) for sheet, number, name in PAPER]
    return {'about': 'Tokens of the client "laptop" of keys.json: tag and SYN (3.2, 3.3), port '
                     'sequences (3.4), codes typed by hand (3.5), paper knocks (3.6). values: '
                     'every be16 that was read, skipped: those that gave no port, and why.',
            'secret': UP.hex(), 'server_id': 'a1b2c3d4e5f60718',
            'steps': [step_case(step) for step in (0, 56666666, 56666667, 146601550)],
            'ports': ports, 'paper': paper,
            'codes': [code_case(step, name) for step, name in CODES]}


# --- datagrams (3.2, 3.7) -----------------------------------------------------------------------
def packed(source):
    """IPv4 as ::ffff:a.b.c.d, nothing as zeros, IPv6 written out in eight groups."""
    if source is None:
        return bytes(16)
    if '.' in source:
        return bytes(10) + b'\xff\xff' + bytes(int(part) for part in source.split('.'))
    return b''.join(be(2, int(group, 16)) for group in source.split(':'))


def item(kind, value):
    return be(1, kind) + be(2, len(value)) + value


def range_item(proto, low, high):
    return item(1, be(1, proto) + be(2, low) + be(2, high))


def head(op=1, time=TIME, source=None, seconds=0, version=1):
    return be(1, version) + be(1, op) + be(8, time) + packed(source) + be(2, seconds)


def datagram_case(name, op='open', time=TIME, source=None, seconds=0, services=(), action=None,
                  signed=False, padding=0):
    keys = derive(UP, 'a1b2c3d4e5f60718')[1]
    tag, nonce = mac256(keys['tag'], be(8, time // 30000))[:8], sha256(name)[:16]
    plain = head({'open': 1, 'close': 2, 'run': 3}[op], time, source, seconds)
    plain += b''.join(range_item(*service) for service in services)
    plain += item(2, action.encode('ascii')) if action else b''
    message = b'knock/1 a1b2c3d4e5f60718\0' + tag + nonce + plain
    signature = sshsig(message) if signed else None
    plain += item(3, signature) if signed else b''
    plain += bytes(padding)
    stream = b''.join(mac256(keys['enc'], nonce + be(4, i)) for i in range(len(plain) // 32 + 1))
    sealed = bytes(a ^ b for a, b in zip(plain, stream))
    mac = mac256(keys['mac'], tag + nonce + sealed)[:16]
    return {'name': name, 'op': op, 'time': time, 'step': time // 30000, 'source': source,
            'seconds': seconds, 'services': [list(service) for service in services],
            'action': action, 'signature': signature.hex() if signed else None,
            'signed_message': message.hex() if signed else None, 'padding': padding,
            'plain': plain.hex(), 'tag': tag.hex(), 'nonce': nonce.hex(),
            'keystream': stream[:len(plain)].hex(), 'sealed': sealed.hex(), 'mac': mac.hex(),
            'datagram': (tag + nonce + sealed + mac).hex()}


def sha256(text):
    return hashlib.sha256(text.encode('ascii')).digest()


def accepted():
    ssh, vpn = (6, 22, 22), (17, 51820, 51820)
    many = [(6, port, port) for port in range(1001, 1146)]
    return [
        datagram_case('the shortest: open the default for where this comes from'),
        datagram_case('open two ports for an IPv4 source', source='192.0.2.7', seconds=30,
                      services=[ssh, vpn], padding=5),
        datagram_case('open a range for an IPv6 source, most padding', seconds=3600, padding=63,
                      source='2001:0db8:0000:0000:0000:0000:0000:0007',
                      services=[(6, 8000, 8010)]),
        datagram_case('every number at its limit', time=LAST_TIME, seconds=65535,
                      source='255.255.255.255', services=[(6, 1, 65535), (17, 65535, 65535)]),
        datagram_case('close all', op='close'),
        datagram_case('close one port', op='close', source='192.0.2.7', services=[ssh], padding=1),
        datagram_case('run an action', op='run', action='wake-nas_2', padding=17),
        datagram_case('run an action, longest name', op='run', source='198.51.100.200',
                      action='abcdefghijklmnopqrstuvwxyz-_0123'),
        datagram_case('open with a signature', source='192.0.2.7', services=[ssh], signed=True),
        datagram_case('run with a signature and padding', op='run', action='reboot', signed=True,
                      padding=9),
        datagram_case('the longest: 1,232 bytes', services=many, padding=4),
    ]


def refused():
    """Plain bytes that a server must refuse although their MAC holds."""
    ssh, action = range_item(6, 22, 22), item(2, b'reboot')
    return [
        ['no bytes', b''],
        ['one byte short of the fixed part', head()[:-1]],
        ['version 0', head(version=0)],
        ['version 2', head(version=2)],
        ['op 0', head(op=0)],
        ['op 4', head(op=4)],
        ['time 2^42', head(time=1 << 42)],
        ['time 2^64 - 1', head(time=(1 << 64) - 1)],
        ['64 bytes of padding', head() + bytes(64)],
        ['64 bytes of padding after an item', head() + ssh + bytes(64)],
        ['padding that ends in 1', head() + bytes(9) + b'\1'],
        ['an item after the padding began', head() + bytes(1) + ssh],
        ['an item of type 4', head() + item(4, b'')],
        ['an item of type 255', head() + item(255, b'x')],
        ['an unknown type before a known one', head() + item(9, b'') + ssh],
        ['a type alone', head() + b'\1'],
        ['half a length', head() + b'\1\0'],
        ['a length that overruns by one', head() + b'\1\0\5\6\0\x16\0'],
        ['a length that overruns by 65,530', head() + b'\1\xff\xff\6\0\x16\0\x16'],
        ['a port range of 4 bytes', head() + item(1, b'\6\0\x16\0')],
        ['a port range of 6 bytes', head() + item(1, b'\6\0\x16\0\x16\0')],
        ['an empty port range', head() + item(1, b'')],
        ['protocol 0', head() + range_item(0, 22, 22)],
        ['protocol 1', head() + range_item(1, 22, 22)],
        ['protocol 132', head() + range_item(132, 22, 22)],
        ['port 0', head() + range_item(6, 0, 0)],
        ['a range from port 0', head() + range_item(6, 0, 22)],
        ['low above high', head() + range_item(6, 23, 22)],
        ['the same range twice', head() + ssh + ssh],
        ['the same range twice, another between', head() + ssh + range_item(17, 22, 22) + ssh],
        ['an empty action', head(op=3) + item(2, b'')],
        ['an action of 33 characters', head(op=3) + item(2, b'a' * 33)],
        ['an action in upper case', head(op=3) + item(2, b'Reboot')],
        ['an action with a dot', head(op=3) + item(2, b'a.b')],
        ['an action with a slash', head(op=3) + item(2, b'a/b')],
        ['an action with a space', head(op=3) + item(2, b'a b')],
        ['an action that ends a line', head(op=3) + item(2, b'reboot\n')],
        ['an action with a zero byte', head(op=3) + item(2, b'reboot\0')],
        ['an action that is not ASCII', head(op=3) + item(2, b'r\xe9boot')],
        ['two actions', head(op=3) + action + item(2, b'halt')],
        ['the same action twice', head(op=3) + action + action],
        ['run without an action', head(op=3)],
        ['run without an action, signed', head(op=3) + item(3, b'signature')],
        ['run with a port range', head(op=3) + ssh],
        ['run with an action and a port range', head(op=3) + ssh + action],
        ['open with an action', head() + action],
        ['close with an action', head(op=2) + action],
        ['a port range after the signature', head() + item(3, b'signature') + ssh],
        ['an action after the signature', head(op=3) + item(3, b'signature') + action],
        ['a port range before and after the signature',
         head() + ssh + item(3, b'signature') + range_item(17, 53, 53)],
        ['two signatures', head() + item(3, b'signature') + item(3, b'signature')],
    ]


def datagrams():
    return {'about': 'Datagrams of the client "laptop" of keys.json, byte for byte (3.2). '
                     'services: [protocol, low, high]; padding: how many zeros; signed_message: '
                     'what the SSHSIG of the item covers (3.7), made with signing_key and '
                     'namespace knock. refused: plain bytes to refuse although the MAC holds.',
            'secret': UP.hex(), 'server_id': 'a1b2c3d4e5f60718', 'signing_key': public_line(),
            'accepted': accepted(),
            'refused': [{'why': why, 'plain': plain.hex()} for why, plain in refused()]}


# --- a signature without ssh-keygen (RFC 8032, PROTOCOL.sshsig of OpenSSH) ----------------------
FIELD = (1 << 255) - 19
ORDER = (1 << 252) + 27742317777372353535851937790883648493
CURVE = -121665 * pow(121666, FIELD - 2, FIELD) % FIELD
BASE = (15112221349535400772501151409588531511454012693041857206046113283949847762202,
        46316835694926478169428394003475163141307993866256225615783033603165251855960)


def add(left, right):
    """RFC 8032, 5.1.4: points as (X, Y, Z, T) with x = X/Z, y = Y/Z, x * y = T/Z."""
    a = (left[1] - left[0]) * (right[1] - right[0]) % FIELD
    b = (left[1] + left[0]) * (right[1] + right[0]) % FIELD
    c = 2 * left[3] * right[3] * CURVE % FIELD
    d = 2 * left[2] * right[2] % FIELD
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % FIELD, g * h % FIELD, f * g % FIELD, e * h % FIELD


def base_times(scalar):
    """scalar * B, as the 32 bytes of RFC 8032, 5.1.2."""
    point, power = (0, 1, 1, 0), BASE + (1, BASE[0] * BASE[1] % FIELD)
    while scalar:
        point, power = (add(point, power) if scalar & 1 else point), add(power, power)
        scalar >>= 1
    inverse = pow(point[2], FIELD - 2, FIELD)
    x, y = point[0] * inverse % FIELD, point[1] * inverse % FIELD
    return (y | (x & 1) << 255).to_bytes(32, 'little')


def sha512_number(data):
    return int.from_bytes(hashlib.sha512(data).digest(), 'little')


def signing_scalar():
    """RFC 8032, 5.1.5: three low bits cleared, bit 254 set, bit 255 cleared."""
    number = int.from_bytes(hashlib.sha512(SIGNING_SEED).digest()[:32], 'little')
    return (number & ~7 & ((1 << 255) - 1)) | (1 << 254)


def ed25519(message):
    """RFC 8032, 5.1.6."""
    scalar = signing_scalar()
    nonce = sha512_number(hashlib.sha512(SIGNING_SEED).digest()[32:] + message) % ORDER
    point = base_times(nonce)
    challenge = sha512_number(point + base_times(scalar) + message)
    return point + ((nonce + challenge * scalar) % ORDER).to_bytes(32, 'little')


def string(data):
    """RFC 4251, section 5."""
    return be(4, len(data)) + data


def public_blob():
    return string(b'ssh-ed25519') + string(base_times(signing_scalar()))


def public_line():
    return 'ssh-ed25519 ' + base64(public_blob())


def base64(data):
    """RFC 4648, section 4; the key is 51 bytes, so that there is nothing to pad."""
    letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
    number = int.from_bytes(data, 'big')
    return ''.join(letters[number >> shift & 63] for shift in range(len(data) * 8 - 6, -1, -6))


def sshsig(message):
    """What ssh-keygen -Y sign -n knock writes, without its armour."""
    name = string(b'knock') + string(b'') + string(b'sha512')
    signature = ed25519(b'SSHSIG' + name + string(hashlib.sha512(message).digest()))
    return (b'SSHSIG' + be(4, 1) + string(public_blob()) + name
            + string(string(b'ssh-ed25519') + string(signature)))


# --- the client's line (3.1, section 6) ---------------------------------------------------------
SECRET = base32(UP)


def line_case(line, name='laptop', host='vpn.example.org', port=None, via='udp', services=(),
              once=False, server_id='a1b2c3d4e5f60718', secret=UP):
    return {'line': line, 'name': name, 'secret': secret.hex(), 'host': host, 'port': port,
            'server_id': server_id, 'via': via,
            'services': [list(service) for service in services], 'once': once}


def canonical_lines():
    """Lines as knockd.py writes them."""
    start, query = 'knock://laptop:' + SECRET + '@', '?id=a1b2c3d4e5f60718'
    return [
        line_case(start + 'vpn.example.org' + query),
        line_case(start + '192.0.2.1:62201' + query, host='192.0.2.1', port=62201),
        line_case(start + '[2001:db8::1]' + query, host='2001:db8::1'),
        line_case(start + '[2001:db8::1]:1' + query, host='2001:db8::1', port=1),
        line_case(start + '[fe80::1%25eth0]:65535' + query, host='fe80::1%eth0', port=65535),
        line_case(start + 'vpn.example.org' + query + '&via=icmp', via='icmp'),
        line_case(start + 'vpn.example.org' + query + '&open=tcp/22', services=[(6, 22, 22)]),
        line_case(start + 'h:9' + query + '&via=ports&open=udp/1-65535,tcp/443&once=1', host='h',
                  port=9, via='ports', once=True, services=[(17, 1, 65535), (6, 443, 443)]),
        line_case('knock://A.b_c-9:' + base32(DOWN) + '@x?id=A-Z.a_z', name='A.b_c-9', host='x',
                  server_id='A-Z.a_z', secret=DOWN),
    ]


def forgiven_lines():
    """Lines that a hand or another program may write, and that mean the same."""
    rest = '@vpn.example.org?id=a1b2c3d4e5f60718'
    grouped = '-'.join(SECRET[i:i + 4] for i in range(0, 52, 4))
    return [
        line_case('  knock://laptop:' + SECRET + rest + '\n'),
        line_case('knock://laptop:' + SECRET.lower() + rest),
        line_case('knock://laptop:' + grouped + rest),
        line_case('knock://laptop:' + grouped.replace('-', '%20') + rest),
        line_case('knock://l%61ptop:' + SECRET + rest),
        line_case('knock://laptop:' + SECRET + '@vpn%2Eexample%2eorg?id=a1b2c3d4e5f6071%38'),
        line_case('knock://laptop:' + SECRET + rest + '&once=0&via=udp'),
        line_case('knock://laptop:' + SECRET + '@vpn.example.org?via=udp&id=a1b2c3d4e5f60718'),
        line_case('knock://laptop:' + SECRET + rest + '&open=tcp%2F22%2Ctcp/80',
                  services=[(6, 22, 22), (6, 80, 80)]),
    ]


def lines():
    return {'about': 'knock:// lines (section 6). canonical: written and read so; forgiven: read '
                     'so. services: [protocol, low, high].',
            'canonical': canonical_lines(), 'forgiven': forgiven_lines()}


# --- a fleet (section 10) -----------------------------------------------------------------------
def fleet_case(master, server_id):
    info = b'knock/1 fleet' + b'\0' + server_id.encode('ascii')
    secret = expand(mac256(b'knock/1 fleet', master), info, 32)
    prk, derived = derive(secret, server_id)
    return {'master': master.hex(), 'server_id': server_id, 'secret': secret.hex(),
            'secret_text': base32(secret), 'tag_key': derived['tag'].hex(),
            'fingerprint': derived['ledger'][:8].hex()}


def fleet():
    return {'about': 'What each server of a fleet holds (section 10): its secret, and two of the '
                     'keys that it yields with its id.',
            'line': 'knock://ops:' + base32(UP) + '@*?id=*&open=tcp/22',
            'servers': [fleet_case(UP, name) for name in ('web1', 'web2', 'x', '192.0.2.7',
                                                          CLIENTS[3][2])]
            + [fleet_case(DOWN, 'web1')]}


def keys():
    return {'about': 'Keys (3.1), the fingerprint of the ledger (section 4) and what a phone gets '
                     '(3.5), base32 as in a config or an authenticator.',
            'clients': [key_case(*client) for client in CLIENTS]}


def make():
    """Returns the text of every file that is made here."""
    tables = {'keys': keys(), 'tokens': tokens(), 'datagrams': datagrams(), 'lines': lines(),
              'fleet': fleet()}
    return {name + '.json': readable(table) for name, table in tables.items()}


def readable(table):
    """JSON in which a list of numbers takes one line."""
    return re.sub(r'\[[\d,\s]+\]', lambda match: ' '.join(match.group().split())
                  .replace('[ ', '[').replace(' ]', ']'), json.dumps(table, indent=1)) + '\n'


if __name__ == '__main__':
    folder = os.path.dirname(os.path.abspath(__file__))
    for name, text in make().items():
        with open(os.path.join(folder, name), 'w') as out:
            out.write(text)
