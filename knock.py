#!/usr/bin/env python3
"""knock.py opens a service that knockd.py hides: one packet, and the port answers you.

    knock.py save           asks for the server's knock:// line; keeps it by its name
    knock.py laptop         opens, and waits until it is seen
    knock.py --keep laptop -- ssh me@server.example
    ssh -o ProxyCommand='knock.py --proxy %p laptop' me@server.example
    knock.py --print=sh laptop      a line of shell for a machine without Python

The packet is encrypted and authenticated with a key that only you and the server have,
names this moment, and is worth nothing once the server has seen it. See README.md for the
bytes.
"""
# Read it from top to bottom: up to "edges" everything takes values and returns values.
__version__ = '0.2.0'

import gc
import sys

if __name__ == '__main__':
    # Only Python's own library is imported from. In the current folder, in this file's
    # folder and where PYTHONPATH points, others may have put a module of any name that is
    # used below.
    library = sys.base_prefix + ('' if sys.platform == 'win32' else '/lib')
    sys.path = [folder for folder in sys.path if folder.startswith(library)]
    # Until a knock is out there is no garbage, and looking for some costs milliseconds.
    gc.disable()

import binascii
import errno
import io
import os
import select
import socket
import stat
import time
import types

# --- shared with knock.py: the protocol knock/1, the same bytes in both files -----------
# tests/unit/test_static.py compares them: edit here, copy there. All integers on the wire
# are big-endian, all times integer milliseconds since 1970. Nothing here touches the
# world.
import collections
import ipaddress
import operator
import re
import struct

try:
    # hashlib and hmac would load OpenSSL's: 3 MB and 6 ms more for the same hashes.
    from _operator import _compare_digest as compare_digest
    from _sha1 import sha1
    try:
        from _sha2 import sha256        # since Python 3.12
    except ImportError:
        from _sha256 import sha256
except ImportError:
    from hashlib import sha1, sha256
    from hmac import compare_digest

# RFC 6238: the time step X, in milliseconds.
STEP = 30000

# A datagram: tag(8) || nonce(16) || sealed || mac(16). The tag tells whose it is in which
# step, the nonce makes it unique, the MAC is over all that stands before it.
TAG_SIZE, NONCE_SIZE, MAC_SIZE = 8, 16, 16

# What is sealed: version u8 || op u8 || time u64 || source 16 || seconds u16, then items,
# each type u8 || length u16 || value, then up to 63 zeros that hide how long it is.
PLAIN = struct.Struct('>BBQ16sH')
PLAIN_VERSION = 1
OPS = {1: 'open', 2: 'close', 3: 'run'}
PORTS_ITEM, ACTION_ITEM, SIGNATURE_ITEM = 1, 2, 3
PADDING_LIMIT = 63
DATAGRAM_MINIMUM = TAG_SIZE + NONCE_SIZE + PLAIN.size + MAC_SIZE
# RFC 8200: every link carries 1,280 bytes; less the IPv6 and UDP headers.
DATAGRAM_LIMIT = 1232

# IANA protocol numbers.
PROTOCOLS = {'tcp': 6, 'udp': 17}
PROTOCOL_NAMES = {6: 'tcp', 17: 'udp'}
CARRIERS = ('udp', 'icmp', 'syn', 'ports', 'code', 'paper')
# What the keys that are derived from a secret are for.
LABELS = ('tag', 'enc', 'mac', 'syn', 'ports', 'code', 'ledger')
# RFC 4648, 6. Python's module for it takes long to import.
BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'
NAME = re.compile(r'[A-Za-z0-9._-]{1,64}\Z', re.ASCII)
ACTION = re.compile(r'[a-z0-9_-]{1,32}\Z', re.ASCII)
SECONDS_OF = {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400}

# What a datagram says. time: ms since 1970; source: an address or None; seconds: 0 for
# the default; services: (Service, ...); action: text or None; signature, signed: bytes or
# None.
Request = collections.namedtuple(
    'Request', 'op time source seconds services action signature signed')
# proto: the IANA number; low, high: the first and the last port.
Service = collections.namedtuple('Service', 'proto low high')
Address = collections.namedtuple(
    'Address', 'name secret host port server_id via services once')

class KnockError(Exception):
    """What a user can cause, said in a sentence. status: 1 could not, 2 usage or
    config."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status

# RFC 2104, 2: the key's bytes with the inner pad, and with the outer one.
INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
OUTER_PAD = bytes(byte ^ 0x5c for byte in range(256))

def hmac_of(new_hash, key, message):
    """RFC 2104 with a hash whose blocks have 64 bytes, as SHA-1's and SHA-256's do."""
    if len(key) > 64:
        key = new_hash(key).digest()
    block = key.ljust(64, b'\0')
    inner = new_hash(block.translate(INNER_PAD) + message).digest()
    return new_hash(block.translate(OUTER_PAD) + inner).digest()

def hmac_sha256(key, message):
    """32 bytes."""
    return hmac_of(sha256, key, message)

def encode_secret(secret):
    """RFC 4648 base32, upper case, without padding: 32 bytes as 52 characters."""
    length = (8 * len(secret) + 4) // 5
    number = int.from_bytes(secret, 'big') << (5 * length - 8 * len(secret))
    letters = []
    for _ in range(length):
        letters.append(BASE32[number & 31])
        number >>= 5
    return ''.join(reversed(letters))

def decode_secret(text):
    """The 32 bytes that encode_secret() wrote; lower case, spaces and hyphens are
    forgiven."""
    text = re.sub('[ -]', '', text)
    # Before upper(), which would make an I of the dotless i.
    if not re.match(r'[A-Za-z2-7]{52}\Z', text):
        raise KnockError('the secret is not 52 characters of base32 (A-Z and 2-7)', 2)
    number = 0
    for letter in text.upper():
        number = number << 5 | BASE32.index(letter)
    # 52 letters hold 260 bits; a last letter with one of the spare four was misread.
    if number & 15:
        raise KnockError('the secret ends as none does: a character is wrong', 2)
    return (number >> 4).to_bytes(32, 'big')

def derive_keys(secret, server_id):
    """{label: 32 bytes}: K(label) = HKDF(secret, "knock/1 " || label || 0x00 || server
    id)."""
    # RFC 5869, 2.2: HKDF-Extract, with the protocol's name as salt.
    root = hmac_sha256(b'knock/1', secret)
    keys = {}
    for label in LABELS:
        info = 'knock/1 %s\0%s' % (label, server_id)
        # RFC 5869, 2.3: the first block of HKDF-Expand.
        keys[label] = hmac_sha256(root, info.encode('ascii') + b'\x01')
    return keys

def fingerprint(keys):
    """What the ledger calls a key: 16 hex digits that tell nothing about it."""
    return keys['ledger'].hex()[:16]

be64 = struct.Struct('>Q').pack

def step_of(time):
    """T, the number of the step that holds this millisecond."""
    return time // STEP

def window_steps(now, window):
    """The steps whose tags may be accepted now; both in milliseconds."""
    first = max(0, step_of(now - window))
    return range(first, step_of(now + window) + 1)

def tag_at(keys, step):
    """The 8 bytes that begin every datagram of this client in this step."""
    return hmac_sha256(keys['tag'], be64(step))[:TAG_SIZE]

def syn_badge(keys, step):
    """seq(4) || ack(4) || window(2) of the SYN that asks for the client's default."""
    return hmac_sha256(keys['syn'], be64(step))[:10]

def keystream(key, nonce, length):
    """So many bytes: block i is HMAC(key, nonce || be32(i)), i from 0."""
    stream = b''
    block = 0
    while len(stream) < length:
        stream += hmac_sha256(key, nonce + struct.pack('>I', block))
        block += 1
    return stream[:length]

def unseal(keys, datagram):
    """The plain bytes of a datagram, or None if its MAC, over all before it, does not
    hold."""
    body = datagram[:-MAC_SIZE]
    mac = hmac_sha256(keys['mac'], body)[:MAC_SIZE]
    if not compare_digest(mac, datagram[-MAC_SIZE:]):
        return None
    nonce = body[TAG_SIZE:TAG_SIZE + NONCE_SIZE]
    sealed = body[TAG_SIZE + NONCE_SIZE:]
    stream = keystream(keys['enc'], nonce, len(sealed))
    return bytes(map(operator.xor, sealed, stream))

def port_sequence(key, context):
    """Six different ports from 1024 up, out of HMAC(key, context || be32(i)), i = 0, 1,
    ..."""
    ports = []
    block = 0
    while True:
        stream = hmac_sha256(key, context + struct.pack('>I', block))
        for value in struct.unpack('>16H', stream):
            port = 1024 + value % 64512
            # From 64,512 up the remainder would favour the lowest ports.
            if value < 64512 and port not in ports:
                ports.append(port)
            if len(ports) == 6:
                return tuple(ports)
        block += 1

def step_ports(keys, step):
    """The knock of carrier `ports`: TCP ports to touch in this order."""
    return port_sequence(keys['ports'], be64(step))

def paper_ports(keys, sheet, number):
    """The one-time sequence `number` (from 1) of a printed sheet."""
    return port_sequence(keys['ports'], b'paper' + struct.pack('>II', sheet, number))

def hotp(key, counter, digits):
    """RFC 4226, 5.3: HMAC-SHA-1, dynamic truncation; so many digits as text."""
    mac = hmac_of(sha1, key, be64(counter))
    offset = mac[19] & 15
    number = int.from_bytes(mac[offset:offset + 4], 'big') & 0x7fffffff
    return '%0*d' % (digits, number % 10 ** digits)

def code_at(keys, step):
    """RFC 6238, eight digits: what the phone shows in this step. It got the first 20
    bytes of a key from which nothing else can be derived."""
    return hotp(keys['code'][:20], step, 8)

def parse_service(text):
    """tcp/22, udp/51820, tcp/8000-8010"""
    text = text.strip()
    # Protocol, slash, port, perhaps a hyphen and the last port.
    match = re.match(r'(tcp|udp)/(\d{1,5})(?:-(\d{1,5}))?\Z', text, re.ASCII)
    if match:
        proto, low, high = match.groups()
        service = Service(PROTOCOLS[proto], int(low), int(high or low))
        if 0 < service.low <= service.high < 65536:
            return service
    # A longer text may be a secret in the wrong place.
    shown = repr(text) if len(text) < 17 else 'this'
    advice = '%s is not a service; write tcp/22, udp/51820 or tcp/8000-8010'
    raise KnockError(advice % shown, 2)

def format_service(service):
    """What parse_service() reads."""
    text = '%s/%d' % (PROTOCOL_NAMES[service.proto], service.low)
    if service.high > service.low:
        text += '-%d' % service.high
    return text

def parse_services(text):
    """A list with commas; one too many is forgiven, a repeat counts once."""
    services = map(parse_service, filter(str.strip, text.split(',')))
    return tuple(collections.OrderedDict.fromkeys(services))

def format_services(services):
    """What parse_services() reads."""
    return ','.join(map(format_service, services))

def parse_seconds(text):
    """30, 30s, 5m, 2h, 1d: whole seconds."""
    match = re.match(r'(\d{1,9})\s*([smhd]?)\Z', text.strip(), re.ASCII)
    if not match:
        raise KnockError('%r is not a time; write 30s, 5m or 2h' % text.strip(), 2)
    number, unit = match.groups()
    return int(number) * SECONDS_OF[unit]

# --- end of the part shared with knock.py -----------------------------------------------

# --- knock: what is sent ----------------------------------------------------------------
FIRST_PAUSE = 0.003         # seconds between two connects that probe the port, at first
LAST_PAUSE = 0.25           # and at last
KNOCK_PAUSE = 1.0           # seconds between two knocks
TOUCH_PAUSE = 0.15          # for the answer of a touched port
FIRST_SYN = 0.9             # kernels send a SYN again after a second (RFC 6298)
FIRST_BYTE = 1.0            # for the first byte of a service that may be a proxy's
BLIND_PAUSE = 0.5           # before COMMAND, where nothing shows that it is open
KEEP_PAUSE = 5              # between two knocks of --keep, unless --for says more
LONGEST_PAUSE = 60          # and then; a server may give less than --for says
USUAL_LIMIT = 3600          # seconds: [server] max_open_for, if nobody changed it
ANSWER_PAUSES = (0.5, 1)    # for the answers to two questions
CHUNK = 1 << 18             # bytes that --proxy carries at once
RELEASED = 1790000000       # no clock that is right shows less: September 2026
DATAGRAM_CARRIERS = ('udp', 'icmp')
COMMANDS = ('save', 'list', 'forget', 'derive', 'page')
CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)

# A name to keep a line by: it is a file's name, and none of ours.
SAVED = re.compile(r'(?!(?:%s)\Z)\w[\w.-]{0,63}\Z' % '|'.join(COMMANDS), re.ASCII)
# As in a line. Other programs would take one that begins with a hyphen for an option.
HOST = re.compile(r'(?!-)[A-Za-z0-9._:%-]{1,255}\Z', re.ASCII)
# NAME@HOST or NAME@HOST/ID, for a line that serves a fleet.
MEMBER = re.compile(r'([^@/:]+)@([^@/]+)(?:/([^@/]+))?\Z', re.ASCII)
# Name, secret, host (an IPv6 address in brackets), perhaps a port, and the query.
LINE = re.compile(
    r'knock://([^:@/?]+):([^:@/?]+)@(\[[^][/?@]+\]|[^][:/?@]+)(?::([0-9]{1,5}))?'
    r'/?\?([^#]*)\Z', re.ASCII)
# Around a line: what people write to mark where it begins and ends.
QUOTES = '"\'`<>\u00ab\u00bb\u2018\u2019\u201c\u201d'
BYTE_ORDER_MARKS = ('\ufeff', '\ufffd', '\u00ef\u00bb\u00bf')

# A socket address as the socket module takes it, and its family.
Target = collections.namedtuple('Target', 'family address')
StunServer = collections.namedtuple('StunServer', 'host port')

def pack_address(address):
    """16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d; all zero for None."""
    if address is None:
        return bytes(16)
    if address.version == 4:
        return bytes(10) + b'\xff\xff' + address.packed
    return address.packed

def item(kind, value):
    return struct.pack('>BH', kind, len(value)) + value

def encode_plain(request, padding=b''):
    """version u8 || op u8 || time u64 || source 16 || seconds u16 || items || zero
    padding."""
    numbers = {name: number for number, name in OPS.items()}
    source = pack_address(request.source)
    plain = PLAIN.pack(PLAIN_VERSION, numbers[request.op], request.time, source,
                       request.seconds)
    for service in request.services:
        plain += item(PORTS_ITEM, struct.pack('>BHH', *service))
    if request.action is not None:
        plain += item(ACTION_ITEM, request.action.encode('ascii'))
    if request.signature is not None:
        plain += item(SIGNATURE_ITEM, request.signature)
    return plain + padding

def seal(keys, nonce, plain, step):
    """tag(8) || nonce(16) || plain XOR keystream || mac(16): encrypt, then MAC."""
    stream = keystream(keys['enc'], nonce, len(plain))
    sealed = bytes(map(operator.xor, plain, stream))
    body = tag_at(keys, step) + nonce + sealed
    if len(body) + MAC_SIZE > DATAGRAM_LIMIT:
        raise KnockError('the knock is longer than %d bytes: ask for less'
                         % DATAGRAM_LIMIT)
    return body + hmac_sha256(keys['mac'], body)[:MAC_SIZE]

def knock_datagram(keys, server_id, request, random, sign):
    """A fresh datagram of random length; sign(message) makes its signature, or is
    None."""
    nonce = random(NONCE_SIZE)
    step = step_of(request.time)
    if sign:
        head = b'knock/1 ' + server_id.encode('ascii') + b'\0'
        tag = tag_at(keys, step)
        signature = sign(head + tag + nonce + encode_plain(request))
        request = request._replace(signature=signature)
    plain = encode_plain(request)
    room = DATAGRAM_LIMIT - TAG_SIZE - NONCE_SIZE - MAC_SIZE - len(plain)
    length = random(1)[0] % (PADDING_LIMIT + 1)
    padding = bytes(max(0, min(length, room)))
    return seal(keys, nonce, plain + padding, step)

def code_ports(code):
    """The two ports that carry a code of eight digits."""
    return 10000 + int(code[:4]), 20000 + int(code[4:])

def step_for(now, attempt):
    """A step serves once: this one, then the next, then the one before."""
    return step_of(now) + (0, 1, -1)[attempt % 3]

def sequence(via, keys, step, paper):
    """The ports to touch, in order."""
    if via == 'ports':
        return step_ports(keys, step)
    if via == 'code':
        return code_ports(code_at(keys, step))
    return paper

def checksum(data):
    """RFC 1071."""
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def echo_request(version, data, number):
    """RFC 792, RFC 4443; the kernel fills in ICMPv6 checksums, and the identifier of a
    ping."""
    kind = 8 if version == 4 else 128
    unsummed = struct.pack('>BBHHH', kind, 0, 0, number, 1) + data
    return struct.pack('>BBHHH', kind, 0, checksum(unsummed), number, 1) + data

def tcp_syn(source, destination, ports, badge):
    """RFC 9293: a SYN whose sequence, acknowledgement and window are the badge."""
    head = struct.pack('>HH8sBB2s', ports[0], ports[1], badge[:8], 5 << 4, 2, badge[8:])
    pseudo = source.packed + destination.packed + struct.pack('>HH', 6, 20)
    return head + struct.pack('>HH', checksum(pseudo + head + bytes(4)), 0)

def probed_port(services, once):
    """The TCP port that shows whether it worked; None where nothing can, or a probe
    would harm."""
    if once:
        return None
    for service in services:
        if service.proto == PROTOCOLS['tcp']:
            return service.low
    return None


# --- knock: the line --------------------------------------------------------------------
def unquote(text):
    """RFC 3986, 2.1: %XX is a byte."""
    raw = text.encode('utf-8', 'surrogatepass')

    def byte(match):
        return binascii.unhexlify(match.group(1))
    raw = re.sub(rb'%([0-9A-Fa-f]{2})', byte, raw)
    return raw.decode('utf-8', 'replace')

def parse_query(text):
    """The part behind the question mark, each key once, none unknown."""
    query = {}
    for pair in text.split('&'):
        key, _, value = pair.partition('=')
        # The message does not repeat a key that is not known: it may be the secret.
        if key in query or key not in ('id', 'via', 'open', 'once'):
            raise KnockError('behind its ? a knock:// line has id, via, open and once, '
                             'each once at most, and nothing else', 2)
        query[key] = unquote(value)
    return query

def pasting_fault(text):
    """What a mail program, an editor or a hasty hand did to a line; None if nothing is
    known."""
    if not text:
        return None
    if text.startswith(BYTE_ORDER_MARKS) or '\0' in text:
        return 'a byte order mark stands before the line: save it as text without one'
    if text[:1] in QUOTES or text[-1:] in QUOTES:
        return 'there are quotation marks around the line: give it without them'
    if re.search('&(?:amp|#38|#x26);', text):
        return 'the line was made HTML: write & for each &amp; in it'
    if 'knock://' in text[1:]:
        return 'something stands before the knock:// line, or a second line behind it'
    if text.startswith('knock://') and (text[-1] in '&%?/:@,' or '?' not in text):
        return 'the line is cut: it goes on behind what is here'
    return None

def line_problem(name, host, port, query):
    """Which part of a line is wrong; None if none is. What stands there is not told: it
    may be the secret, in a wrong place."""
    fleet = host == '*' and query.get('id') == '*'
    if not NAME.match(name):
        return 'name'
    if not fleet and not NAME.match(query.get('id', '')):
        return 'id'
    if port and not 0 < int(port) < 65536:
        return 'port'
    if query.get('via', 'udp') not in CARRIERS:
        return 'via'
    if query.get('once', '0') not in ('0', '1'):
        return 'once'
    if not fleet and not HOST.match(host):
        return 'host'
    return None

def parse_uri(text):
    """knock://NAME:SECRET@HOST[:PORT]?id=SERVERID[&via=udp][&open=tcp/22,...][&once=1]"""
    text = text.strip()
    match = LINE.match(text)
    fault = pasting_fault(text)
    if fault:
        raise KnockError(fault, 2)
    if not match:
        raise KnockError('this is not a knock:// line; it looks like '
                         'knock://NAME:SECRET@HOST?id=SERVERID', 2)
    name = unquote(match.group(1))
    secret = unquote(match.group(2))
    host = unquote(match.group(3).strip('[]'))
    port = match.group(4)
    query = parse_query(match.group(5))
    problem = line_problem(name, host, port, query)
    if problem:
        raise KnockError('the knock:// line has no valid %s' % problem, 2)
    port = int(port) if port else None
    services = parse_services(query.get('open', ''))
    via = query.get('via', 'udp')
    once = query.get('once') == '1'
    secret = decode_secret(secret)
    return Address(name, secret, host, port, query['id'], via, services, once)


# --- knock: a fleet ---------------------------------------------------------------------
def fleet_secret(master, server_id):
    """What one server of a fleet holds: 32 bytes of HKDF (RFC 5869) that open no other
    server."""
    root = hmac_sha256(b'knock/1 fleet', master)
    return hmac_sha256(root, b'knock/1 fleet\0' + server_id.encode('ascii') + b'\x01')

def member(address, host, server_id):
    """A fleet's line as the line of one server, whose id is its host's name unless
    told."""
    if address.host != '*':
        raise KnockError('this line is for %s alone: write its name without @%s'
                         % (address.host, host), 2)
    host = host.strip('[]')
    server_id = server_id or host
    if not HOST.match(host):
        raise KnockError('%r is not a host' % host, 2)
    if not NAME.match(server_id):
        raise KnockError('%r is not the id of a server; write NAME@HOST/ID'
                         % server_id, 2)
    secret = fleet_secret(address.secret, server_id)
    return address._replace(host=host, server_id=server_id, secret=secret)

def fleet_section(address):
    """What stands in the config of a fleet's server."""
    lines = ['[client %s]' % address.name, 'secret = ' + encode_secret(address.secret)]
    if address.services:
        lines.append('allow = ' + format_services(address.services))
    if address.once:
        lines.append('once = yes')
    return '\n'.join(lines)


# --- knock: what others answer ----------------------------------------------------------
# Where a NAT64 puts the IPv4 address into its IPv6 address, by the length of its prefix:
# RFC 6052, 2.2. Byte 8 is zero in all of them, and so is what comes behind.
EMBEDDED = (
    (32, (4, 5, 6, 7)), (40, (5, 6, 7, 9)), (48, (6, 7, 9, 10)), (56, (7, 9, 10, 11)),
    (64, (9, 10, 11, 12)), (96, (12, 13, 14, 15)))
# RFC 6052, 2.1, and RFC 8215
NAT64 = (ipaddress.IPv6Network('64:ff9b::/96'), ipaddress.IPv6Network('64:ff9b:1::/48'))
IPV4ONLY = (ipaddress.IPv4Address('192.0.0.170'), ipaddress.IPv4Address('192.0.0.171'))

def embedded(address, places):
    """The IPv4 address that a NAT64 would read out of an IPv6 address; None if it
    cannot."""
    packed = address.packed
    behind = packed[places[-1] + 1:]
    if packed[8] or any(behind):
        return None
    return ipaddress.IPv4Address(bytes(packed[place] for place in places))

def translation(address, siblings):
    """Does a NAT64 stand before this IPv6 address? 'sure', 'perhaps' or 'none'.

    siblings: the IPv4 addresses of the same name. A name server makes an IPv6 address for
    NAT64 out of one of them, and only for names that have no other (RFC 6147, 5.1.2)."""
    for network in NAT64:
        if address in network:
            return 'sure'
    found = [embedded(address, places) for _, places in EMBEDDED]
    for inner in found:
        if inner in siblings:
            return 'sure'
    if siblings:
        return 'none'
    for inner in found:
        if inner is not None and inner.is_global:
            return 'perhaps'
    return 'none'

def nat64_prefixes(address):
    """The prefixes by which this is an address of ipv4only.arpa (RFC 7050, 3)."""
    prefixes = []
    for length, places in EMBEDDED:
        if embedded(address, places) in IPV4ONLY:
            prefixes.append(ipaddress.IPv6Network((address.packed, length), False))
    return prefixes

def stun_address(answer, request):
    """XOR-MAPPED-ADDRESS (RFC 5389, 15.2) of the answer to this request, or None."""
    if answer[:2] != b'\x01\x01' or answer[4:20] != request[4:20]:
        return None
    offset = 20
    while offset + 4 <= len(answer):
        kind, length = struct.unpack_from('>HH', answer, offset)
        # Before the address stand a zero, its family and the port.
        value = answer[offset + 8:offset + 4 + length]
        if kind == 0x20 and len(value) in (4, 16):
            return ipaddress.ip_address(bytes(map(operator.xor, value, request[4:20])))
        offset += 4 + length + -length % 4
    return None

def sntp_time(answer, request):
    """The seconds since 1970 in a server's answer (RFC 4330, 4 and 5), or None."""
    if len(answer) < 48 or answer[24:32] != request[40:]:
        return None
    mode = answer[0] & 7
    stratum = answer[1]
    if mode != 4 or stratum == 0:       # not a server, or one that has no time itself
        return None
    since_1900 = int.from_bytes(answer[40:44], 'big')
    return (since_1900 - 2208988800) % (1 << 32)

def http_time(answer):
    """The seconds since 1970 in the Date of an answer (RFC 9110, 5.6.7), or None."""
    import datetime
    match = re.search(rb'\ndate: *(\w+, \d+ \w+ \d+ \d+:\d+:\d+) GMT', answer,
                      re.IGNORECASE)
    if not match:
        return None
    text = match.group(1).decode('ascii')
    try:
        date = datetime.datetime.strptime(text, '%a, %d %b %Y %H:%M:%S')
    except ValueError:
        return None
    return (date - datetime.datetime(1970, 1, 1)).total_seconds()


# --- knock: a line of shell -------------------------------------------------------------
def shell_datagram(host, port, datagram):
    """A line of shell that sends it; tail writes once, and one write is one datagram."""
    text = ''.join(map('\\{:03o}'.format, datagram))
    words = {'text': text, 'host': host, 'port': port, 'size': DATAGRAM_LIMIT}
    by_bash = ('bash -c "printf \'$k\' | tail -c {size} >/dev/udp/{host}/{port}" '
               '2>/dev/null')
    by_nc = 'printf "$k" | tail -c {size} | nc -u -w1 {host} {port}'
    return ("k='{text}'; " + by_bash + ' || ' + by_nc).format(**words)

def shell_touches(host, ports):
    """A line of shell that touches ports, one a second: a silent one must not hold up
    the next."""
    words = {'host': host, 'ports': ' '.join(map(str, ports))}
    by_nc = 'nc -w1 {host} $p'
    by_bash = 'bash -c ": >/dev/tcp/{host}/$p"'
    touch = 'if command -v nc; then ' + by_nc + '; else ' + by_bash + '; fi'
    line = ('(for p in {ports}; do ' + touch + ' & sleep 1; done) '
            '</dev/null >/dev/null 2>&1')
    return line.format(**words)


# --- knock: why it did not open ---------------------------------------------------------
# All that one machine can know of a port that did not open. seen: 'refused', 'silent' or
# 'mute'; udp: 'arrived', 'blocked' or 'unknown'; named: the source that the knocks named,
# or None; chosen: somebody chose it with --source; clock: what is wrong with the clock,
# or ''.
Facts = collections.namedtuple('Facts', 'host port wait seen via udp named chosen clock')

SEEN = {
    'refused': 'it refuses as a closed port does, so the host is there: either the knock '
               'did not reach it, or it was refused, or nothing listens on tcp/%d',
    'silent': 'it is silent: the host is down, or a firewall drops what comes to tcp/%d',
    'mute': 'something accepts tcp/%d and ends each connection without a byte: a proxy '
            'on the way that cannot reach it, or a service that is not well'}
UDP_SEEN = {
    'arrived': 'UDP reaches that address, or a router that has it',
    'blocked': 'the network answers that UDP may not pass: try --via ports',
    'unknown': 'whether UDP gets there cannot be seen: a filter may stop it on the way '
               '(try --via ports), or a NAT there must forward it'}

def diagnosis(facts):
    """What can be known from here about a port that did not open, in one sentence."""
    first = 'tcp/%d at %s did not open within %d s'
    words = [first % (facts.port, facts.host, facts.wait)]
    words.append(SEEN[facts.seen] % facts.port)
    if facts.via == 'udp':
        words.append(UDP_SEEN[facts.udp])
    if facts.clock:
        words.append(facts.clock)
    if facts.via in DATAGRAM_CARRIERS:
        words.append(source_words(facts.named, facts.chosen))
    words.append('on the server: knockd.py watch')
    return '; '.join(words)

def source_words(named, chosen):
    """What to know of the source that the knocks named."""
    if named is None:
        return 'no source is named, which a server may demand: see --source'
    if chosen:
        return 'the source named is %s: the server refuses it if it sees another' % named
    return ('%s is named as the source, as it is the address of this machine: if a NAT '
            'makes another of it, use --source none' % named)


# --- knock: a page for a phone ----------------------------------------------------------
# @WORDS@ are replaced by page_text(). The browser runs no other script than this one, as
# its hash stands in the page's policy.
PAGE = '''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; \
form-action 'none'; connect-src @MAY_REACH@; script-src @SCRIPT_HASH@; \
style-src @STYLE_HASH@">
<title>Open @HOST@</title>
<style>@STYLE@</style>
<main>
<h1>@HOST@</h1>
<button id="go" type="button">Open</button>
<p id="said" role="status" aria-live="polite">Knocks as @NAME@.</p>
<p><a id="link" href="@LINK@" hidden>Go to @LINK@</a></p>
<noscript><p>This page needs JavaScript to knock.</p></noscript>
</main>
<script>@SCRIPT@</script>
'''
PAGE_STYLE = '''
:root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
body { margin: 0; background: #fff; color: #111 }
main { max-width: 30rem; margin: 12vh auto; padding: 0 1rem; overflow-wrap: anywhere }
button { width: 100%; padding: 1em; font: inherit; font-weight: bold; border: 0;
  border-radius: .5em; background: #0b57d0; color: #fff }
button:focus-visible, a:focus-visible { outline: 3px solid #e37400; outline-offset: 3px }
button[aria-disabled=true] { background: #555 }
a { color: #0b57d0 }
@media (prefers-color-scheme: dark) {
  body { background: #111; color: #eee }
  button { background: #a8c7fa; color: #111 }
  button[aria-disabled=true] { background: #999 }
  a { color: #a8c7fa }
}
'''
PAGE_SCRIPT = '''
'use strict';
const HOST = '@HOST@', LOOK = @LOOK@, KEY = bytesOf('@KEY@');
// Ports that no browser connects to.
const REFUSED = [@REFUSED@];
// The square and cube roots of the first primes: FIPS 180-4, 4.2.2 and 5.3.3.
const START = wordsOf('6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19');
const ROUND = wordsOf('428a2f9871374491b5c0fbcfe9b5dba53956c25b59f111f1923f82a4ab1c5ed5' +
  'd807aa9812835b01243185be550c7dc372be5d7480deb1fe9bdc06a7c19bf174' +
  'e49b69c1efbe47860fc19dc6240ca1cc2de92c6f4a7484aa5cb0a9dc76f988da' +
  '983e5152a831c66db00327c8bf597fc7c6e00bf3d5a7914706ca635114292967' +
  '27b70a852e1b21384d2c6dfc53380d13650a7354766a0abb81c2c92e92722c85' +
  'a2bfe8a1a81a664bc24b8b70c76c51a3d192e819d6990624f40e3585106aa070' +
  '19a4c1161e376c082748774c34b0bcb5391c0cb34ed8aa4a5b9cca4f682e6ff3' +
  '748f82ee78a5636f84c878148cc7020890befffaa4506cebbef9a3f7c67178f2');

function bytesOf(hex) { return hex.match(/../g).map(two => parseInt(two, 16)); }
function wordsOf(hex) { return hex.match(/.{8}/g).map(eight => parseInt(eight, 16)); }
function turn(word, by) { return word >>> by | word << 32 - by; }

function sha256(bytes) {
  const size = (bytes.length + 8 >> 6) + 1 << 6;
  const data = new DataView(new ArrayBuffer(size));
  bytes.forEach((byte, at) => data.setUint8(at, byte));
  data.setUint8(bytes.length, 128);
  data.setUint32(size - 4, bytes.length * 8);
  const hash = Uint32Array.from(START), w = new Uint32Array(64);
  for (let block = 0; block < size; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = data.getUint32(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15], y = w[i - 2];
      w[i] = w[i - 16] + (turn(x, 7) ^ turn(x, 18) ^ x >>> 3) +
        w[i - 7] + (turn(y, 17) ^ turn(y, 19) ^ y >>> 10);
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (e & f ^ ~e & g) +
        ROUND[i] + w[i];
      const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c);
      [h, g, f, e, d, c, b, a] = [g, f, e, d + one | 0, c, b, a, one + two | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => hash[i] += word);
  }
  const hex = word => word.toString(16).padStart(8, '0');
  return Array.from(hash).flatMap(word => bytesOf(hex(word)));
}

function hmac(key, message) {
  const padded = i => (i < key.length ? key[i] : 0);
  const block = mask => Array.from({length: 64}, (_, i) => padded(i) ^ mask);
  return sha256(block(0x5c).concat(sha256(block(0x36).concat(message))));
}

function be32(number) { return [24, 16, 8, 0].map(by => number >>> by & 255); }

// The six ports of a time step, in order.
function sequence(step) {
  const ports = [];
  for (let i = 0; ports.length < 6; i++) {
    const stream = hmac(KEY, be32(0).concat(be32(step), be32(i)));
    for (let at = 0; at < 32 && ports.length < 6; at += 2) {
      const value = stream[at] * 256 + stream[at + 1], port = 1024 + value % 64512;
      if (value < 64512 && !ports.includes(port)) ports.push(port);
    }
  }
  return ports;
}

// The server takes each step once. The next one, and the one before, are as good.
const used = [];
function chooseStep(now) {
  const ours = Math.floor(now / 30000);
  for (const step of [ours, ours + 1, ours - 1, ours + 2, ours - 2]) {
    const blocked = sequence(step).some(port => REFUSED.includes(port));
    if (!used.includes(step) && !blocked) return step;
  }
  return null;
}

// One connection: 'answered', or else 'not' after so many milliseconds. A page over https
// may reach nothing by http.
async function touch(port, patience) {
  const scheme = location.protocol === 'https:' ? 'https' : 'http';
  const end = new AbortController(), timer = setTimeout(() => end.abort(), patience);
  try {
    await fetch(scheme + '://' + HOST + ':' + port + '/',
      {mode: 'no-cors', cache: 'no-store', credentials: 'omit', signal: end.signal});
    return 'answered';
  } catch (error) {
    return 'not';
  } finally {
    clearTimeout(timer);
  }
}

const go = document.getElementById('go'), link = document.getElementById('link');
function say(words) { document.getElementById('said').textContent = words; }

async function knock() {
  const step = chooseStep(Date.now());
  if (step === null) return 'All sequences of this minute are used. Wait 30 seconds.';
  say('Looking for @HOST@.');
  // Where nothing can be looked at, this still looks up the name: no port shall be late.
  if (await touch(LOOK || 80, 3000) === 'answered' && LOOK) {
    link.hidden = false;
    return 'It answers already: nothing had to be opened.';
  }
  used.push(step);
  let done = 0;
  for (const port of sequence(step)) {
    say('Knocking, ' + ++done + ' of 6.');
    await touch(port, 300);
  }
  link.hidden = false;
  if (!LOOK) return 'Knocked. A page cannot see whether it opened: try the link.';
  say('Knocked. Looking whether it opens.');
  for (const end = Date.now() + 8000; Date.now() < end;) {
    if (await touch(LOOK, 1500) === 'answered') return 'Open: port ' + LOOK + ' answers.';
    await new Promise(resume => setTimeout(resume, 300));
  }
  return 'No answer on port ' + LOOK + '. Tap again: it knocks another sequence. If ' +
    'that does not help: is the clock right (it says ' + new Date().toLocaleTimeString() +
    ')? Does this network let all ports through? On the server: knockd.py watch';
}

go.addEventListener('click', async () => {
  if (go.getAttribute('aria-disabled') === 'true') return;
  go.setAttribute('aria-disabled', 'true');
  say(await knock());
  go.setAttribute('aria-disabled', 'false');
});
'''
# Ports that no browser connects to: fetch.spec.whatwg.org, "port blocking".
REFUSED_PORTS = (
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95,
    101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161,
    179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563,
    587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080)
# A URL without what could end an attribute of HTML, and no script in the place of one.
PAGE_LINK = re.compile(r'(?!javascript|data|vbscript)[a-z][a-z0-9+.-]*:[!#-%(-;=?-~]+\Z',
                       re.ASCII)

def policy_hash(text):
    """What a Content-Security-Policy calls a script or a style."""
    digest = sha256(text.encode('utf-8')).digest()
    return "'sha256-%s'" % binascii.b2a_base64(digest).decode('ascii').strip()

def service_link(host, port):
    """What a phone opens for a service, as far as its port tells."""
    if port == 22:
        return 'ssh://' + host
    if port == 443:
        return 'https://%s/' % host
    return 'http://%s:%d/' % (host, port)

def page_text(address, keys, link):
    """A page that knocks by `ports`, and holds the key of those alone."""
    host = address.host
    # Policies know host names, and no addresses (CSP 3, 6.7.2.8).
    may_reach = 'http: https:'
    if re.search('[A-Za-z]', host) and ':' not in host:
        may_reach = 'http://{0}:* https://{0}:*'.format(host)
    if ':' in host:
        host = '[%s]' % host
    port = probed_port(address.services, address.once) or 0
    look = 0 if port in REFUSED_PORTS else port
    words = {'HOST': host, 'NAME': address.name, 'LOOK': str(look)}
    words['KEY'] = keys['ports'].hex()
    words['REFUSED'] = ','.join(map(str, REFUSED_PORTS))
    words['MAY_REACH'] = may_reach
    words['LINK'] = link or service_link(host, port or 443)
    words['STYLE'] = PAGE_STYLE
    script = filled(PAGE_SCRIPT, words)
    words['SCRIPT'] = script
    words['SCRIPT_HASH'] = policy_hash(script)
    words['STYLE_HASH'] = policy_hash(PAGE_STYLE)
    return filled(PAGE, words)

def filled(text, words):
    """A text with each @WORD@ replaced."""
    def word(match):
        return words[match.group(1)]
    return re.sub('@([A-Z_]+)@', word, text)


# --- edges: what people see -------------------------------------------------------------
def tell(text, end='\n'):
    """A line for people; on a terminal it covers one that had no end."""
    line = 'knock: ' + text
    if sys.stderr.isatty():
        line = '\r%-78s' % line
    print(line, end=end, file=sys.stderr, flush=True)

def version_text():
    """Which version this is, and the sum of its file as SHA256SUMS of a release has
    it."""
    path = globals().get('__file__', '<stdin>')
    # Out of a pipe; another file of the current folder may be called <stdin>.
    if path.startswith('<'):
        return 'knock.py %s\nno file, so no SHA-256: it came out of a pipe' % __version__
    with open(path, 'rb') as file:
        digest = sha256(file.read()).hexdigest()
    return 'knock.py %s\n%s  %s' % (__version__, digest, os.path.abspath(path))

def say(options, text, level=0, end='\n'):
    """For people: on a terminal, or where -v asks for it. level 1 is for -v alone."""
    if options.quiet:
        return
    if options.verbose or (level == 0 and sys.stderr.isatty()):
        tell(text, end)

def start_process(argv, **options):
    """The one place where a program starts; it gets the descriptors we were given."""
    import subprocess
    environment = dict(os.environ)
    # The line is a secret, and COMMAND may show its environment to anybody.
    environment.pop('KNOCK_URI', None)
    return subprocess.Popen(argv, close_fds=False, env=environment, **options)

def output_of(argv):
    """What a program prints within a second; nothing if it is not there or fails."""
    import subprocess
    nowhere = subprocess.DEVNULL
    try:
        process = start_process(argv, stdin=nowhere, stdout=subprocess.PIPE,
                                stderr=nowhere)
    except OSError:
        return ''
    try:
        output, _ = process.communicate(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return ''
    return output.decode('ascii', 'replace')


# --- edges: names and sockets -----------------------------------------------------------
def resolve(host, family):
    """Every address of a host. The name goes as bytes: a str needs a codec routers
    lack."""
    try:
        found = socket.getaddrinfo(host.encode('ascii'), 9, family, socket.SOCK_DGRAM)
    except UnicodeEncodeError:
        raise KnockError('%r is not ASCII; write its xn-- form' % host, 2)
    except OSError as error:
        raise KnockError('%s: no address found (%s)' % (host, error.strerror or error))
    return [Target(entry[0], entry[4]) for entry in found]

def with_port(target, port):
    return (target.address[0], port) + tuple(target.address[2:])

def bare(address):
    """A socket address without its zone."""
    return ipaddress.ip_address(address[0].partition('%')[0])

def connected(target, kind, protocol, port):
    """A socket with its route chosen: what it sends comes from its own address, even
    where a machine has several ways out. Connecting sends nothing but for TCP."""
    sock = socket.socket(target.family, kind, protocol)
    try:
        sock.connect(with_port(target, port))
    except OSError:
        sock.close()
        raise
    return sock

def random_port():
    """A high port that nobody can expect."""
    return 1024 + int.from_bytes(os.urandom(4), 'big') % (65536 - 1024)

def now_ms():
    return int(time.time() * 1000)

class Nat64Question:
    """Asks whether this network has a NAT64 (RFC 7050), while knocks are on their way:
    a name server that is down takes seconds to say nothing."""

    def __init__(self):
        self.state = 'not asked'
        self.prefixes = []

    def ask(self):
        if self.state == 'not asked':
            import threading
            self.state = 'asked'
            threading.Thread(target=self.look_up, daemon=True).start()

    def look_up(self):
        try:
            found = resolve('ipv4only.arpa', socket.AF_INET6)
        except KnockError:
            found = []          # no such name here: no NAT64
        for target in found:
            self.prefixes += nat64_prefixes(bare(target.address))
        self.state = 'answered'

    def excludes(self, address):
        """True when the network has said that no NAT64 stands before an address."""
        if self.state != 'answered':
            return False
        return not any(address in prefix for prefix in self.prefixes)

def ask_server(target, kind, port, question):
    """What a server answers to a few bytes; none if it does not, twice."""
    for seconds in ANSWER_PAUSES:
        with socket.socket(target.family, kind) as sock:
            sock.settimeout(seconds)
            try:
                sock.connect(with_port(target, port))
                sock.sendall(question)
                return sock.recv(4096)
            except OSError:
                continue
    return b''

def ask_stun(server, families):
    """{family: the address that a STUN server sees} (RFC 5389)."""
    # Binding, no attributes, the magic cookie (RFC 5389, 6)
    request = b'\0\1\0\0\x21\x12\xa4\x42' + os.urandom(12)
    found = {}
    for target in resolve(server.host, socket.AF_UNSPEC):
        if target.family not in families or target.family in found:
            continue
        answer = ask_server(target, socket.SOCK_DGRAM, server.port, request)
        address = stun_address(answer, request)
        if address:
            found[target.family] = address
    if not found:
        raise KnockError('%s does not say which address it sees; ask another STUN '
                         'server, or give --source ADDRESS' % server.host)
    return found

def chosen_sources(source, families):
    """{family: the address to name}, as --source says."""
    if source is None or source == 'none':
        return {}
    if isinstance(source, StunServer):
        return ask_stun(source, families)
    if source.version == 4:
        return {socket.AF_INET: source}
    return {socket.AF_INET6: source}


# --- edges: the clock -------------------------------------------------------------------
# What prints, and the word in it that says that nobody sets this clock.
CLOCK_TOOLS = (
    (('timedatectl', 'show', '--property=NTPSynchronized', '--value'), 'no'),
    (('chronyc', '-c', 'tracking'), 'Not synchronised'))

def clock_against(host):
    """How far this clock is from a host's, asked by SNTP and then of its web server."""
    question = b'\x23' + bytes(39) + os.urandom(8)          # version 4, client
    try:
        targets = resolve(host, socket.AF_UNSPEC)
    except KnockError as error:
        # It must not hide why the port did not open.
        return str(error)
    for target in targets:
        answer = ask_server(target, socket.SOCK_DGRAM, 123, question)
        theirs = sntp_time(answer, question)
        if theirs is None:
            head = b'HEAD / HTTP/1.0\r\n\r\n'
            answer = ask_server(target, socket.SOCK_STREAM, 80, head)
            theirs = http_time(answer)
        if theirs is None:
            continue
        ahead = round(time.time() - theirs)
        side = 'behind' if ahead < 0 else 'ahead of'
        return 'this clock is %d s %s that of %s' % (abs(ahead), side, host)
    return '%s does not tell the time' % host

def clock_doubts():
    """What this system itself knows against its clock; nothing if it knows nothing."""
    now = now_ms() // 1000
    if now < RELEASED:
        return 'this clock says %s: set it' % time.strftime('%Y-%m-%d', time.gmtime(now))
    for argv, doubt in CLOCK_TOOLS:
        if doubt in re.split('[,\n]', output_of(argv)):
            return '%s says that nobody sets this clock: see --time-check' % argv[0]
    return ''


# --- edges: connections -----------------------------------------------------------------
def begin_connects(targets, port):
    """Sockets that are connecting. None is a connection for the service before it is
    used: sshd would log one that ends, and fail2ban would count it."""
    begun = []
    for target in targets:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        set_ending(sock, 'reset')
        set_quick_answer(sock, 0)
        if sock.connect_ex(with_port(target, port)) in CONNECTING:
            begun.append(sock)
        else:
            sock.close()
    return begun

def set_ending(sock, ending):
    """How close() ends a connection: with a 'reset' at once, or in 'order'."""
    # struct linger: on or off, seconds. Windows' is half as long, and reads the same of
    # it.
    linger = struct.pack('=ii', int(ending == 'reset'), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

def set_quick_answer(sock, value):
    """With 0, Linux keeps back the last packet of the handshake, for 200 ms at most, as
    if it were to go with data: who is reset before has never been connected. With 1 it
    goes."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, value)
    except (AttributeError, OSError):
        pass                        # other systems cannot, and send it at once

def begin_use(sock):
    """From now on a connection like any other."""
    sock.setblocking(True)
    set_ending(sock, 'order')
    # ssh would ask for it, and a keystroke is not to wait.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_quick_answer(sock, 1)

def speaks(sock):
    """False if a connection ends before its first byte, as one through a transparent
    proxy does that accepted it before it reached the service."""
    begin_use(sock)
    sock.settimeout(FIRST_BYTE)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except socket.timeout:
        return True             # it waits for us to speak first
    except OSError:
        return False

def ready_sockets(pending, seconds):
    """Those that have connected or failed; select() of nothing is an error on Windows."""
    if not pending:
        time.sleep(seconds)
        return []
    _, connects, failures = select.select([], pending, pending, seconds)
    return connects + [sock for sock in failures if sock not in connects]

def touch(target, port):
    """One SYN to a closed port, and time for its answer, so that the next comes later."""
    begun = begin_connects([target], port)
    ready_sockets(begun, TOUCH_PAUSE)
    for sock in begun:
        sock.close()


# --- edges: the knock -------------------------------------------------------------------
def raw_socket(target, protocol, port, why):
    try:
        return connected(target, socket.SOCK_RAW, protocol, port)
    except PermissionError:
        raise KnockError('%s; run it as root (CAP_NET_RAW), or use --via udp' % why)

def echo_socket(target):
    """For pings: without privilege where net.ipv4.ping_group_range lets this group."""
    protocol = socket.IPPROTO_ICMPV6
    if target.family == socket.AF_INET:
        protocol = socket.IPPROTO_ICMP
    try:
        return connected(target, socket.SOCK_DGRAM, protocol, 0)
    except OSError:
        return raw_socket(target, protocol, 0, 'this system lets your group send no '
                          'pings (net.ipv4.ping_group_range)')

def ssh_sign(keyfile, message):
    """Signs as ssh-keygen does; the agent and FIDO keys work as with ssh."""
    argv = ['ssh-keygen', '-Y', 'sign', '-f', keyfile, '-n', 'knock']
    process = start_process(argv, stdin=-1, stdout=-1, stderr=-1)       # subprocess.PIPE
    output, complaint = process.communicate(message)
    if process.returncode:
        complaint = complaint.decode('ascii', 'replace').strip()
        raise KnockError('ssh-keygen cannot sign with %s: %s' % (keyfile, complaint))
    armored = output.decode('ascii', 'replace').splitlines()
    return binascii.a2b_base64(''.join(armored[1:-1]))

class Knocker:
    """Knocks at every address of one server, each time afresh."""

    def __init__(self, options, address, keys):
        self.options, self.address, self.keys = options, address, keys
        self.via = options.via or address.via
        self.paper = None           # the ports of a line of the sheet
        self.targets = []
        self.siblings = []          # the IPv4 addresses among all that the host has
        self.chosen = {}            # family: the source that --source says
        self.named = None           # the source that the last knock named
        self.attempts = 0
        self.sent = []              # UDP sockets: the network's answers come back to them
        self.nat64 = Nat64Question()

    def find_targets(self):
        """Looks up the host, and the source where somebody else must say it."""
        options, host = self.options, self.address.host
        family = options.family
        # For -6 too: the IPv4 addresses tell whether the others are a NAT64's.
        found = resolve(host, family if family == socket.AF_INET else socket.AF_UNSPEC)
        for target in found:
            if target.family == socket.AF_INET:
                self.siblings.append(bare(target.address))
        self.chosen = chosen_sources(options.source, [target.family for target in found])
        if self.chosen and not isinstance(options.source, StunServer):
            family = list(self.chosen)[0]
        self.targets = [target for target in found if family in (None, target.family)]
        if not self.targets:
            raise KnockError('%s has no address of the family that -4, -6 or --source '
                             'asks for' % host)

    def knock(self):
        """A fresh knock at every address; KnockError if none could be sent."""
        attempt = self.attempts
        self.attempts += 1
        if not self.options.proxy and not self.options.verbose:
            say(self.options, 'knock %d at %s' % (attempt + 1, self.address.host), end='')
        if attempt and self.via == 'paper':
            return                          # a line of the sheet is spent
        targets = self.targets
        if self.via in ('ports', 'code', 'paper'):
            targets = targets[:1]           # the one that a connect would try first
        failures = []
        for target in targets:
            try:
                words = self.knock_at(target, attempt)
            except OSError as error:
                failures.append('%s: %s' % (target.address[0], error.strerror or error))
                continue
            say(self.options, words, 1)
        if len(failures) == len(targets):
            raise KnockError(failures[0])

    def knock_at(self, target, attempt):
        """One fresh knock to one target; says in words what was sent."""
        if self.via in DATAGRAM_CARRIERS:
            return self.send_datagram(target)
        step = step_for(now_ms(), attempt)
        if self.via == 'syn':
            self.send_syn(target, syn_badge(self.keys, step))
            return 'a SYN to %s by syn' % target.address[0]
        ports = sequence(self.via, self.keys, step, self.paper)
        for port in ports:
            touch(target, port)
        listed = ' '.join(map(str, ports))
        return 'touched %s at %s by %s' % (listed, target.address[0], self.via)

    def port(self):
        return self.options.port or self.address.port or random_port()

    def send_datagram(self, target):
        """By a socket of its own, whose address is the source that the knock names. A
        new source port each time: a kernel may hand over two datagrams of one flow as
        one."""
        port = self.port()
        if self.via == 'icmp':
            sock = echo_socket(target)
        else:
            sock = connected(target, socket.SOCK_DGRAM, 0, port)
        self.keep_open(sock)
        self.named = self.source_for(target, sock)
        datagram = self.datagram(self.named)
        if self.via == 'icmp':
            version = 4 if target.family == socket.AF_INET else 6
            sock.send(echo_request(version, datagram, port))
        else:
            sock.send(datagram)
        words = '%d bytes to %s port %d by %s' % (
            len(datagram), target.address[0], port, self.via)
        if self.named:
            words += ', naming %s as the source' % self.named
        return words

    def keep_open(self, sock):
        """The last few sockets wait for what the network answers to them."""
        self.sent.append(sock)
        while len(self.sent) > 8:
            self.sent.pop(0).close()

    def datagram(self, source):
        """A fresh datagram for what the command line wants."""
        options = self.options
        request = Request(operation(options), now_ms(), source, options.seconds,
                          asked_services(options, self.address), options.run, None, None)
        sign = None
        if options.sign:
            def sign(message):
                return ssh_sign(options.sign, message)
        return knock_datagram(self.keys, self.address.server_id, request, os.urandom,
                              sign)

    def source_for(self, target, sock):
        """The source to name: a captured knock that names one is worth nothing
        elsewhere. None where the server may see another than we do."""
        if self.options.source is not None:
            return self.chosen.get(target.family)
        own = bare(sock.getsockname())
        if not own.is_global:
            return None
        if own.version == 4:
            return own
        address = bare(target.address)
        stands_before = translation(address, self.siblings)
        if stands_before == 'perhaps':
            self.nat64.ask()
            if self.nat64.excludes(address):
                return own
        return own if stands_before == 'none' else None

    def send_syn(self, target, badge):
        """One bare SYN; the kernel will answer for us if the server should reply."""
        with raw_socket(target, socket.IPPROTO_TCP, 0,
                        'a SYN of our own needs a raw socket') as sock:
            source = bare(sock.getsockname())
            ports = random_port(), self.port()
            sock.send(tcp_syn(source, bare(target.address), ports, badge))

    def udp_seen(self):
        """What came back for the last datagrams: 'arrived', 'blocked' or 'unknown'."""
        seen = 'unknown'
        for sock in self.sent:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error == errno.ECONNREFUSED:
                return 'arrived'
            if error in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES):
                seen = 'blocked'
        return seen

def operation(options):
    if options.run:
        return 'run'
    return 'close' if options.close else 'open'

def asked_services(options, address):
    """The services that the command line asks for, or else the line."""
    if options.open:
        return options.open
    if options.proxy:
        return (Service(PROTOCOLS['tcp'], options.proxy, options.proxy),)
    if options.close or options.run:
        return ()
    return address.services


# --- edges: the service -----------------------------------------------------------------
class Probe:
    """Connects to one TCP port, begun again and again until one is accepted. All stay
    while new ones begin: their answer may be a slow network's."""

    def __init__(self, targets, port):
        self.targets, self.port = targets, port
        self.began = time.monotonic()
        self.pending = begin_connects(targets, port)
        self.early = list(self.pending)     # begun before the first knock
        self.answers_early = False
        self.seen = 'silent'

    def begin(self):
        self.pending += begin_connects(self.targets, self.port)

    def accepted(self, seconds):
        """The first socket that is accepted within this time, or None."""
        for sock in ready_sockets(self.pending, seconds):
            self.pending.remove(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error == 0:
                # A SYN that had no answer is sent again, which may be after the knock.
                before = time.monotonic() < self.began + FIRST_SYN
                if before and sock in self.early:
                    self.answers_early = True
                return sock
            sock.close()
            if error == errno.ECONNREFUSED:
                self.seen = 'refused'
        return None

    def close(self):
        for sock in self.pending:
            sock.close()

def open_port(probe, knocker, wait, used):
    """Knocks until the port accepts: that connection, or None after wait seconds. One
    that is to be used, where something answered even before the knock, must bring a
    byte."""
    knocker.knock()
    now = began = probe_at = time.monotonic()
    knock_at = began + KNOCK_PAUSE
    pause = FIRST_PAUSE
    while now < began + wait:
        if now >= knock_at:
            knocker.knock()
            knock_at = time.monotonic() + KNOCK_PAUSE
            pause = FIRST_PAUSE
        if now >= probe_at:
            probe.begin()
            pause = min(1.5 * pause, LAST_PAUSE)
            probe_at = now + pause
        until = min(probe_at, knock_at, began + wait)
        sock = probe.accepted(max(0, until - time.monotonic()))
        if sock:
            if not used or not probe.answers_early or speaks(sock):
                return sock
            sock.close()
            probe.seen = 'mute'
        now = time.monotonic()
    return None

def download(sock):
    """What the service says, to standard output; returns how many bytes when it ends."""
    total = 0
    while True:
        data = sock.recv(CHUNK)
        if not data:
            return total
        total += len(data)
        while data:
            data = data[os.write(1, data):]

class Upload:
    """Standard input to the service, beside the download."""

    def __init__(self, sock):
        import threading
        self.sock = sock
        self.total = 0
        self.finished = False       # standard input has ended, and all of it is sent
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            while True:
                data = os.read(0, CHUNK)
                if not data:
                    break
                self.sock.sendall(data)
                self.total += len(data)
            self.finished = True
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass                    # the service is gone, which the download sees

def pipe(sock):
    """Standard input to the service, what it says to standard output; each way ends by
    itself."""
    gc.enable()                     # this may last for days
    begin_use(sock)
    upload = Upload(sock)
    upload.thread.start()
    try:
        received = download(sock)
    except BrokenPipeError:
        return                      # nobody listens any more
    if not received and not (upload.finished and upload.total):
        raise KnockError('the connection was accepted, and ended without a byte')
    os.close(1)
    upload.thread.join()

def hand_over(sock):
    """Gives the connection to ssh, whose standard output to us is a Unix socket
    (ProxyUseFdpass): one byte, with the descriptor beside it."""
    begin_use(sock)
    rights = struct.pack('@i', sock.fileno())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(1)) as ssh:
        ssh.sendmsg([b'\0'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

def catch_signals(pass_on):
    """Signals go to pass_on() from now on, but for those that nohup made us ignore."""
    import signal
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)

def run_command(options, knocker):
    """The exit code of COMMAND, or 128 + n when signal n ended it, as in a shell."""
    import signal
    import subprocess
    gc.enable()
    started = []
    early = []                      # signals that come before we know COMMAND

    def pass_on(number, _):
        if number == signal.SIGINT and os.isatty(0):
            return                  # a terminal tells the whole group
        if started:
            started[0].send_signal(number)
        else:
            early.append(number)
    catch_signals(pass_on)
    process = start_process(options.command)
    started.append(process)
    for number in early:
        process.send_signal(number)
    pause = None
    if options.keep:
        pause = min(options.seconds / 2, LONGEST_PAUSE) or KEEP_PAUSE
    while True:
        try:
            status = process.wait(pause)
        except subprocess.TimeoutExpired:
            keep_open(options, knocker)
            continue
        return status if status >= 0 else 128 - status

def keep_open(options, knocker):
    """One more knock of --keep; the network may come back after one that failed."""
    try:
        knocker.knock()
    except KnockError as error:
        say(options, str(error), 1)


# --- edges: saved lines -----------------------------------------------------------------
def config_folder():
    if os.name == 'nt' and os.environ.get('APPDATA'):
        return os.path.join(os.environ['APPDATA'], 'knock')
    return os.path.join(os.path.expanduser('~/.config'), 'knock')

def saved_path(name):
    return os.path.join(config_folder(), name)

def saved_names():
    """The names of all lines that are kept here."""
    try:
        names = os.listdir(config_folder())
    except OSError:
        return []
    return sorted(filter(SAVED.match, names))

def refuse_open(path, mode):
    """Windows keeps others out of %APPDATA% by itself, and has no such modes."""
    if os.name != 'nt' and os.stat(path).st_mode & 0o077:
        cure = 'chmod %o %s' % (mode, path)
        raise KnockError('%s is open to others; type: %s' % (path, cure), 2)

def saved_line(name):
    path = saved_path(name)
    try:
        refuse_open(config_folder(), 0o700)
        refuse_open(path, 0o600)
        with open(path, encoding='utf-8', errors='replace') as lines:
            return lines.read()
    except FileNotFoundError:
        raise KnockError(no_such_name(name), 2)
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror), 2)

def saved_address(name):
    """The Address in a saved line; KnockError says in which file it is broken."""
    text = saved_line(name)
    try:
        return parse_uri(text)
    except KnockError as error:
        raise KnockError('%s: %s' % (saved_path(name), error), 2)

def no_such_name(name):
    """What to say of a name that is not kept here."""
    kept = ', '.join(saved_names()) or 'none'
    return '%r is not here; there are: %s; to keep one by that name: knock.py save %s' % (
        name, kept, name)

def standard_line():
    with open(0, 'rb', closefd=False) as lines:
        return lines.readline().decode('utf-8', 'replace')

def ask_line():
    """Typed unseen at the terminal, as standard input may be this script: curl ... |
    python3."""
    import getpass
    try:
        if os.name != 'nt':
            open('/dev/tty').close()
        return getpass.getpass('the knock:// line (it stays unseen): ')
    except OSError:
        return standard_line()          # no terminal: from another program, then

def read_line(text):
    """The Address of a saved name, a line, or what is typed for -."""
    if SAVED.match(text):
        return saved_address(text)
    if text == '-':
        text = ask_line()
    return parse_uri(text)

def read_server(text):
    """The same for one server: of a fleet, NAME@HOST or NAME@HOST/ID."""
    match = MEMBER.match(text)
    if match:
        name, host, server_id = match.groups()
        return member(read_line(name), host, server_id)
    address = read_line(text)
    if address.host == '*':
        raise KnockError('this line is for a fleet: write NAME@HOST', 2)
    return address

def typed_line():
    """The line from standard input, or somebody types it."""
    line = ''
    if not os.isatty(0):
        line = standard_line()
    return (line or ask_line()).strip()

def save(argv):
    """knock.py save [NAME]: keeps the line that standard input gives, or somebody
    types."""
    line = typed_line()
    address = parse_uri(line)
    name = argv[0] if argv else address.name
    if len(argv) > 1 or not SAVED.match(name):
        raise KnockError('knock.py save [NAME] takes one name of letters, digits and '
                         '._-, which is no command of knock.py', 2)
    if '&' not in line:
        raise KnockError('the line ends behind its id, as one does that a shell has cut '
                         'at an &: give all of it, or add &via=udp if this is all', 2)
    folder, path = config_folder(), saved_path(name)
    os.makedirs(folder, 0o700, exist_ok=True)
    refuse_open(folder, 0o700)
    if not argv and os.path.exists(path):
        raise KnockError('%s is there already; to replace it: knock.py save %s'
                         % (path, name))
    import tempfile
    descriptor, new = tempfile.mkstemp(dir=folder, prefix='.')      # mode 0600
    with open(descriptor, 'w') as out:
        out.write(line + '\n')
    os.replace(new, path)
    if sys.stderr.isatty():
        tell('saved; it opens with: knock.py ' + name)

def list_saved(argv):
    """knock.py list: the saved names, and for which server each is; no secrets."""
    if argv:
        raise KnockError('knock.py list takes no argument', 2)
    for name in saved_names():
        try:
            address = saved_address(name)
            services = format_services(address.services)
            words = '%s as %s by %s %s' % (
                address.host, address.name, address.via, services)
        except KnockError as error:
            words = 'cannot be used: %s' % error
        print(('%-16s %s' % (name, words)).rstrip(), flush=True)

def forget(argv):
    """knock.py forget NAME: the line is gone from here; the server still knows its
    key."""
    if len(argv) != 1 or not SAVED.match(argv[0]):
        raise KnockError('knock.py forget NAME takes the name of a saved line', 2)
    try:
        os.unlink(saved_path(argv[0]))
    except FileNotFoundError:
        raise KnockError(no_such_name(argv[0]), 2)

def derive(argv):
    """knock.py derive NAME ID [--secret]: what one server of a fleet is to hold."""
    bare_secret = '--secret' in argv
    words = [word for word in argv if word != '--secret']
    if len(words) != 2:
        raise KnockError('knock.py derive NAME ID [--secret] takes the name of a saved '
                         'line and the id of a server', 2)
    address = read_line(words[0])
    if address.host != '*':
        raise KnockError('this line is not for a fleet: one has @*?id=*', 2)
    server = member(address, words[1], words[1])
    text = fleet_section(server)
    if bare_secret:
        text = encode_secret(server.secret)
    print(text, flush=True)

def page(argv):
    """knock.py page NAME [LINK]: a page that knocks; LINK is what a phone opens then."""
    if '--qr' in argv:
        raise KnockError('no page fits into a QR code; copy the file to the phone. For '
                         'the line alone type on the server: knockd.py show NAME --qr', 2)
    if len(argv) not in (1, 2):
        raise KnockError('knock.py page NAME [LINK] takes the name of a saved line, and '
                         'perhaps the address that the page then leads to', 2)
    name, link = (argv + [None])[:2]
    if link is not None and not PAGE_LINK.match(link):
        raise KnockError('%r is no link; write for example ssh://me@server.example'
                         % link, 2)
    address = read_server(name)
    keys = derive_keys(address.secret, address.server_id)
    print(page_text(address, keys, link), end='', flush=True)


# --- command line -----------------------------------------------------------------------
def duration(text):
    if parse_seconds(text) > 65535:
        raise KnockError('%r is longer than 65535 s' % text, 2)
    return parse_seconds(text)

def opening_time(text):
    """0 would ask for the server's own time, and so say nothing."""
    if not duration(text):
        raise KnockError('%r is too short for an opening; write 30s, 5m or 2h' % text, 2)
    return duration(text)

def some_services(text):
    """Of none it would be the default that is asked for."""
    services = parse_services(text)
    if not services:
        raise KnockError('%r names no service; write tcp/22' % text, 2)
    return services

def port_number(text):
    if not re.match(r'\d{1,5}\Z', text, re.ASCII) or not 0 < int(text) < 65536:
        raise KnockError('%r is not a port: write its number, 1 to 65535' % text, 2)
    return int(text)

def host_name(text):
    if not HOST.match(text):
        raise KnockError('%r is not a host' % text, 2)
    return text

def source_address(text):
    """An address, none, or host and port of a STUN server."""
    if text == 'none':
        return text
    match = re.match(r'stun:(\[.+\]|[^:]+)(?::(\d+))?\Z', text, re.ASCII)
    if match:
        host = host_name(match.group(1).strip('[]'))
        return StunServer(host, port_number(match.group(2) or '3478'))
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise KnockError('%r is neither an address nor stun:HOST nor none' % text, 2)

def carrier(text):
    if text not in CARRIERS:
        known = ' '.join(CARRIERS)
        raise KnockError('%r is no way to knock; write one of %s' % (text, known), 2)
    return text

def action_name(text):
    if not ACTION.match(text):
        raise KnockError('%r is not the name of an action' % text, 2)
    return text

# As typed; where it goes; what reads its argument, or what it means without one; help
OPTIONS = (
    ('what to ask for:',),
    ('--open SERVICES', 'open', some_services, 'as tcp/22,udp/51820'),
    ('--for TIME', 'seconds', opening_time, 'how long: 30s, 5m'),
    ('--close', 'close', True, 'close what you opened'),
    ('--run ACTION', 'run', action_name, 'run an action of the server instead'),
    ('--sign KEYFILE', 'sign', str, 'sign it with an SSH key'),
    ('--source ADDRESS', 'source', source_address,
     'the address of yours that the server will see; stun:HOST asks a\n'
     '                      STUN server for it; none: do not name it'),
    ('how to knock:',),
    ('--via CARRIER', 'via', carrier,
     'udp (the default), icmp, syn (these two may need root), ports, code,\n'
     '                      paper'),
    ('--port N', 'port', port_number, 'the UDP port; by default a random one'),
    ('-4', 'family', socket.AF_INET, 'IPv4 only'),
    ('-6', 'family', socket.AF_INET6, 'IPv6 only'),
    ('--wait TIME', 'wait', duration, 'how long to try, by default 5 s; 0: only send'),
    ('--time-check HOST', 'time_check', host_name,
     'compare clocks if it does not open (SNTP, HTTP)'),
    ('what then:',),
    ('--proxy PORT', 'proxy', port_number, 'connect there and pipe, for ssh'),
    ('--fdpass', 'fdpass', True, 'with --proxy: hand it to ssh (ProxyUseFdpass=yes)'),
    ('--keep', 'keep', True, 'knock again and again while COMMAND runs'),
    ('--print', 'show', True, 'show it instead of sending'),
    ('--print=sh', 'show', 'sh', 'as a line of shell'),
    ('-q, --quiet', 'quiet', True, 'errors only'),
    ('-v, --verbose', 'verbose', True, 'each datagram, too'),
    ('-h, --help', 'help', True, 'this'),
    ('--version', 'version', True, 'which one this is, and the SHA-256 of its file'))

# An option, and those that would have no effect beside it.
EXCLUDED = (
    ('--proxy', ('--run', '--close', '--print', '--keep', 'COMMAND')),
    ('--print', ('--wait', '--time-check', '--fdpass', '--keep', '-q', '-v', 'COMMAND')),
    ('--close', ('--run', '--for', '--wait', '--time-check', '--keep')),
    ('--run', ('--open', '--for', '--wait', '--time-check')),
    ('-q', ('-v',)))
NEEDED = (('--keep', 'COMMAND'), ('--fdpass', '--proxy'))
# What the carriers other than udp and icmp cannot carry, and those that choose their own
# ports.
NO_ROOM = ('--run', '--close', '--sign', '--source', '--keep', '--for')
OWN_PORTS = ('ports', 'code', 'paper')

def known_options():
    """{name: its entry in OPTIONS}"""
    known = {}
    for option in OPTIONS:
        for name in option[0].split():
            if name.startswith('-'):
                known[name.strip(',')] = option
    return known

def take_target(options, word):
    if word.startswith('-') and word != '-':
        name = word.partition('=')[0]
        raise KnockError('%s is not an option here; see knock.py --help' % name, 2)
    if options.target is not None:
        raise KnockError('give one TARGET; a COMMAND stands behind --', 2)
    options.target = word

def read_options(words):
    """The command line as a namespace. argparse would take 2 ms of the 25 that a knock
    takes."""
    known = known_options()
    options = types.SimpleNamespace(target=None, command=[])
    for option in known.values():
        setattr(options, option[1], None)
    options.given = []
    options.seconds = 0
    options.wait = 5
    words = iter(words)
    for word in words:
        name, equals, value = word, '', ''
        if word not in known:
            name, equals, value = word.partition('=')
        if name not in known:
            take_target(options, word)
            continue
        typed, place, meaning = known[name][:3]
        if equals and not callable(meaning):
            raise KnockError('%s takes no such argument; see knock.py --help' % name, 2)
        if callable(meaning):
            if not equals:
                value = next(words, None)
            if not value:
                words = tuple(typed.split())
                raise KnockError('%s needs what --help calls %s' % words, 2)
            meaning = meaning(value)
        if place == 'family' and options.family not in (None, meaning):
            raise KnockError('-4 and -6 exclude each other', 2)
        options.given.append(place)
        setattr(options, place, meaning)
    return options

def given(options, name):
    """Does the command line say this? --wait 0 asks for nothing."""
    if name == 'COMMAND':
        return bool(options.command)
    place = known_options()[name][1]
    return place in options.given and getattr(options, place) != 0

def check_options(options, via):
    """What is wrong with options that are right one by one: none is ignored without a
    word."""
    for name, others in EXCLUDED:
        for other in others:
            if given(options, name) and given(options, other):
                raise KnockError('%s goes without %s' % (name, other), 2)
    for name, other in NEEDED:
        if given(options, name) and not given(options, other):
            raise KnockError('%s goes with %s, see knock.py --help' % (name, other), 2)
    if via not in DATAGRAM_CARRIERS:
        for name in NO_ROOM:
            if given(options, name):
                raise KnockError('--via %s has no room for %s' % (via, name), 2)
    if via in OWN_PORTS and options.port:
        raise KnockError('--via %s chooses its ports by itself, without --port' % via, 2)
    if options.show is True and options.port:
        raise KnockError('--port goes with --print=sh, where it is seen', 2)
    check_source(options)

def check_source(options):
    """An address of --source is of one family."""
    version = getattr(options.source, 'version', None)
    if version and options.family not in (None, socket.AF_INET if version == 4 else
                                          socket.AF_INET6):
        raise KnockError('--source %s is of the other family' % options.source, 2)

def help_text():
    lines = ['usage: knock.py [options] TARGET [-- COMMAND ...]',
             '       knock.py save [NAME] < FILE',
             '       knock.py list',
             '       knock.py forget NAME',
             '       knock.py derive NAME ID [--secret]',
             '       knock.py page NAME [LINK] > knock.html', '', __doc__ or '',
             'TARGET is the name of a saved line, a knock:// line, or - to be asked for',
             'one; with a line for a fleet NAME@HOST or NAME@HOST/ID; without any,',
             '$KNOCK_URI is read.']
    for typed, *told in OPTIONS:
        lines.append('  %-20s%s' % (typed, told[2]) if told else '\n' + typed)
    return '\n'.join(lines)

def read_target(options):
    """(Address, its keys) of TARGET; paper knocks need no more than a host."""
    text = options.target
    if text is None:
        text = os.environ.get('KNOCK_URI')
    if text is None:
        raise KnockError('where to? Give a saved name, a knock:// line or -, '
                         'or set $KNOCK_URI', 2)
    if options.via == 'paper' and HOST.match(text) and text not in saved_names():
        return Address('', b'', text, None, '', 'paper', (), False), {}
    if text == options.target and text.startswith('knock:'):
        say(options, 'others on this machine can see a secret on the command line; '
            'knock.py save keeps it')
    address = read_server(text)
    return address, derive_keys(address.secret, address.server_id)

def read_paper():
    """The next line of the sheet, typed."""
    question = 'the six ports of the next line of the sheet: '
    print(question, end='', file=sys.stderr, flush=True)
    ports = []
    for word in re.findall('[0-9]+', standard_line())[-6:]:
        if len(word) < 6 and 1023 < int(word) < 65536:
            ports.append(int(word))
    if len(ports) != 6:
        raise KnockError('these are not six ports from 1024 to 65535', 2)
    return ports

def show(knocker):
    """What would be sent: for people and other tools, or as a line of shell that sends
    it."""
    if knocker.options.show == 'sh' and knocker.via in ('icmp', 'syn'):
        raise KnockError('no shell can send --via %s' % knocker.via, 2)
    if knocker.via in DATAGRAM_CARRIERS:
        print(shown_datagram(knocker), flush=True)
        return
    step = step_of(now_ms())
    if knocker.via == 'syn':
        print(syn_badge(knocker.keys, step).hex(), flush=True)
        return
    ports = sequence(knocker.via, knocker.keys, step, knocker.paper)
    shown = ' '.join(map(str, ports))
    if knocker.options.show == 'sh':
        shown = shell_touches(knocker.address.host, ports)
    elif knocker.via == 'code':
        left = STEP - now_ms() % STEP
        shown = '%s  (%d s left)' % (code_at(knocker.keys, step), left // 1000)
    print(shown, flush=True)

def shown_datagram(knocker):
    """A datagram for another machine to send: it names a source only if --source says
    one."""
    options = knocker.options
    families = [options.family] if options.family else [socket.AF_INET, socket.AF_INET6]
    sources = chosen_sources(options.source, families)
    datagram = knocker.datagram(next(iter(sources.values()), None))
    if options.show == 'sh':
        return shell_datagram(knocker.address.host, knocker.port(), datagram)
    return datagram.hex()

def port_to_probe(options, address):
    """The TCP port that shows whether it worked, or None."""
    if options.close or options.run or not options.wait:
        return None
    if options.proxy:
        return options.proxy
    return probed_port(options.open or address.services, address.once)

def complain(knocker, probe):
    """KnockError with all that can be known of a port that did not open."""
    options = knocker.options
    clock = ''
    if options.time_check:
        clock = clock_against(options.time_check)
    elif knocker.via != 'paper':
        clock = clock_doubts()
    chosen = options.source is not None
    raise KnockError(diagnosis(Facts(
        knocker.address.host, probe.port, options.wait, probe.seen, knocker.via,
        knocker.udp_seen(), knocker.named, chosen, clock)))

def connect(knocker, port, began):
    """Knocks, and connects to the port; KnockError if it does not open. The connection is
    closed again unless --proxy is to use it."""
    options = knocker.options
    probe = Probe(knocker.targets, port)
    try:
        sock = open_port(probe, knocker, options.wait, options.proxy)
        # At once, or the service would learn of it.
        if sock and not options.proxy:
            sock.close()
    finally:
        probe.close()
    if sock is None:
        complain(knocker, probe)
    if not probe.answers_early:
        say(options, 'open in %d ms' % ((time.monotonic() - began) * 1000))
    else:
        words = ('tcp/%d answered even before the knock: it was open already, or is not '
                 'hidden, or a proxy on the way answers in its place' % port)
        say(options, words, 1 if options.proxy else 0)
        if options.command:
            time.sleep(BLIND_PAUSE)
    return sock

def knock(options, began):
    """Knocks, sees that it worked where that can be seen, and does what is to follow."""
    if options.fdpass and not stat.S_ISSOCK(os.fstat(1).st_mode):
        raise KnockError('--fdpass is for ssh with ProxyUseFdpass=yes: standard output '
                         'must be a Unix socket', 2)
    address, keys = read_target(options)
    knocker = Knocker(options, address, keys)
    check_options(options, knocker.via)
    if knocker.via == 'paper':
        knocker.paper = read_paper()
    if options.show:
        show(knocker)
        return 0
    if options.seconds > USUAL_LIMIT:
        say(options, 'a server gives no more than its max_open_for, by default 1h',
            1 if options.proxy else 0)
    port = port_to_probe(options, address)
    if port is None and (options.proxy or options.time_check):
        raise KnockError('--proxy and --time-check wait for a TCP port: name one, and '
                         'no --wait 0', 2)
    knocker.find_targets()
    if port is None:
        knocker.knock()
        words = 'sent to %s; whether it worked cannot be seen from here' % address.host
        say(options, words)
        if options.command and options.wait:
            time.sleep(BLIND_PAUSE)
    else:
        with connect(knocker, port, began) as sock:
            if options.fdpass:
                hand_over(sock)
            elif options.proxy:
                pipe(sock)
    if options.command:
        return run_command(options, knocker)
    return 0

def run_words(words, began):
    """The exit code for a command line."""
    commands = {'save': save, 'list': list_saved, 'forget': forget, 'derive': derive,
                'page': page}
    if words and words[0] in commands:
        # `save --help` would ask for a line.
        if words[-1] not in ('-h', '--help'):
            commands[words[0]](words[1:])
            return 0
        words = ['--help']
    end = words.index('--') if '--' in words else len(words)
    options = read_options(words[:end])
    options.command = words[end + 1:]
    if options.help:
        print(help_text(), flush=True)
        return 0
    if options.version:
        print(version_text(), flush=True)
        return 0
    if '--' in words and not options.command:
        raise KnockError('no COMMAND stands behind --', 2)
    return knock(options, began)

def main(argv=None):
    began = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    sys.stderr = sys.stderr or io.StringIO()        # it may have been closed
    try:
        return run_words(words, began)
    except KnockError as error:
        tell(str(error))
        return error.status
    except BrokenPipeError:                 # knock.py --help | head
        return 1
    except OSError as error:                # a file, a COMMAND or a connection that fails
        words = error.strerror or str(error)
        if error.filename:
            words = '%s: %s' % (error.filename, words)
        tell(words)
        return 1
    except (KeyboardInterrupt, EOFError):
        return 1

if __name__ == '__main__':
    os._exit(main())        # all is flushed, and taking the modules apart costs 3 ms
