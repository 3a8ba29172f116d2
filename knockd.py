#!/usr/bin/env python3
"""knockd.py hides services behind the firewall until an authentic knock arrives.

Every client has a key. For each 30-second step it yields an 8-byte tag that only its owner and
this server can compute. The tags that are valid right now are compiled into a filter inside the
kernel, so a stranger's packet never reaches this program; a client's single UDP packet does, is
checked, written to the ledger so that it can never be used again, and opens the asked ports for
the client's address alone. The kernel closes them by its own clock.

    knockd.py run --hide tcp/22 --client laptop     first try: makes a config, prints the client's
                                                    knock:// line, hides the port
    knock.py 'knock://laptop:...' -- ssh me@host    on the client

This file is read from top to bottom: protocol, types, config, ledger, filter, parser, judge and
firewall text take values and return values; only what follows "edges" touches the world. Whoever
reviews it for security starts with judge().

It authenticates the opening, not the connection that follows: whoever shares the client's public
address can use the opening while it lasts. Keys are symmetric: this server's copy can knock.
"""
__version__ = '0.1.0'

import argparse
import array
import configparser
import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

# --- shared with knock.py: the protocol knock/1, the same bytes in both files -------------------
# tests/unit/test_static.py compares them: edit here, copy there. All integers on the wire are
# big-endian, all times integer milliseconds since 1970. Nothing here touches the world.
import base64
import collections
import ipaddress
import re
import struct
import sys


def own_sha2():
    """CPython's own SHA-2, if it was built with it: _sha256, since 3.12 _sha2."""
    for name in ('_sha2', '_sha256'):
        try:
            return __import__(name)
        except ImportError:
            continue
    return None


if '_hashlib' not in sys.modules and own_sha2():
    sys.modules['_hashlib'] = None      # OpenSSL would cost every start 4 MB and 6 ms
import hashlib      # noqa: E402
import hmac         # noqa: E402
if sys.modules.get('_hashlib', 0) is None:
    del sys.modules['_hashlib']         # whoever imports us may want it

STEP = 30000                    # RFC 6238: the time step X, in milliseconds
PLAIN = struct.Struct('>BBQ16sH')       # version, op, time, source, seconds
PLAIN_VERSION = 1
OPS = {1: 'open', 2: 'close', 3: 'run'}
PROTOCOLS = {'tcp': 6, 'udp': 17}       # IANA protocol numbers
CARRIERS = ('udp', 'icmp', 'syn', 'ports', 'code', 'paper')
PORTS_ITEM, ACTION_ITEM, SIGNATURE_ITEM = 1, 2, 3
TAG_SIZE, NONCE_SIZE, MAC_SIZE = 8, 16, 16
PADDING_LIMIT = 63
DATAGRAM_LIMIT = 1232           # RFC 8200: 1,280 less the IPv6 and UDP headers
DATAGRAM_MINIMUM = TAG_SIZE + NONCE_SIZE + PLAIN.size + MAC_SIZE
LABELS = ('tag', 'enc', 'mac', 'syn', 'ports', 'code', 'ledger')
NAME = re.compile(r'[A-Za-z0-9._-]{1,64}\Z', re.ASCII)
ACTION = re.compile(r'[a-z0-9_-]{1,32}\Z', re.ASCII)

Request = collections.namedtuple(
    'Request', 'op time source seconds services action signature signed')
Service = collections.namedtuple('Service', 'proto low high')
Address = collections.namedtuple('Address', 'name secret host port server_id via services once')


class KnockError(Exception):
    """What a user can cause, said in a sentence. status: 1 could not, 2 usage or config."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def hmac_sha256(key, message):
    """RFC 4231."""
    return hmac.new(key, message, hashlib.sha256).digest()


def hkdf_extract(salt, secret):
    """RFC 5869, 2.2."""
    return hmac_sha256(salt, secret)


def hkdf_expand(key, info, length):
    """RFC 5869, 2.3."""
    output = block = b''
    while len(output) < length:
        block = hmac_sha256(key, block + info + bytes([len(output) // 32 + 1]))
        output += block
    return output[:length]


def encode_base32(data):
    """RFC 4648, upper case, without padding."""
    return base64.b32encode(data).decode('ascii').rstrip('=')


def encode_secret(secret):
    """32 bytes as 52 characters of base32."""
    return encode_base32(secret)


def decode_secret(text):
    """Reads what encode_secret() writes; lower case, spaces and hyphens are forgiven."""
    text = re.sub('[ -]', '', text).upper()
    if not re.match('[A-Z2-7]{52}$', text, re.ASCII):
        raise KnockError('the secret is not 52 characters of base32 (A-Z and 2-7)', 2)
    secret = base64.b32decode(text + '====')
    if encode_base32(secret) != text:
        raise KnockError('the secret does not end as a secret ends: a character is wrong', 2)
    return secret


def derive_keys(secret, server_id):
    """One 32-byte key a label: K(label) = HKDF(secret, "knock/1 " label 0x00 server id)."""
    root = hkdf_extract(b'knock/1', secret)
    info = b'knock/1 %s\x00' + server_id.encode('ascii')
    return {label: hkdf_expand(root, info % label.encode('ascii'), 32) for label in LABELS}


def fingerprint(keys):
    """What the ledger calls a key: 16 hex digits that tell nothing about it."""
    return keys['ledger'].hex()[:16]


def step_of(time):
    """T, the number of the step that holds this millisecond."""
    return time // STEP


def window_steps(now, window):
    """The steps whose tokens may be accepted now; both in milliseconds."""
    return range(step_of(now - window), step_of(now + window) + 1)


def be64(number):
    return struct.pack('>Q', number)


def tag_at(keys, step):
    """The 8 bytes that begin every datagram of this client in this step."""
    return hmac_sha256(keys['tag'], be64(step))[:TAG_SIZE]


def keystream(key, nonce, length):
    """Block i is HMAC(key, nonce || be32(i)), i from 0."""
    blocks = range((length + 31) // 32)
    stream = b''.join(hmac_sha256(key, nonce + struct.pack('>I', i)) for i in blocks)
    return stream[:length]


def exclusive_or(left, right):
    return bytes(a ^ b for a, b in zip(left, right))


def datagram_mac(keys, body):
    """The MAC over tag || nonce || sealed."""
    return hmac_sha256(keys['mac'], body)[:MAC_SIZE]


def seal(keys, nonce, plain, step):
    """tag(8) || nonce(16) || plain XOR keystream || mac(16): encrypt, then MAC."""
    sealed = exclusive_or(plain, keystream(keys['enc'], nonce, len(plain)))
    body = tag_at(keys, step) + nonce + sealed
    if len(body) + MAC_SIZE > DATAGRAM_LIMIT:
        raise KnockError('the knock is longer than %d bytes: ask for less' % DATAGRAM_LIMIT)
    return body + datagram_mac(keys, body)


def unseal(keys, datagram):
    """The plain bytes of a datagram, or None if its MAC does not hold."""
    body, mac = datagram[:-MAC_SIZE], datagram[-MAC_SIZE:]
    if not hmac.compare_digest(mac, datagram_mac(keys, body)):
        return None
    nonce, sealed = body[TAG_SIZE:TAG_SIZE + NONCE_SIZE], body[TAG_SIZE + NONCE_SIZE:]
    return exclusive_or(sealed, keystream(keys['enc'], nonce, len(sealed)))


def pack_address(address):
    """16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d; all zero for None."""
    if address is None:
        return bytes(16)
    prefix = bytes(10) + b'\xff\xff' if address.version == 4 else b''
    return prefix + address.packed


def unpack_address(packed):
    """The reverse of pack_address(); an IPv4 address comes back as one."""
    if packed == bytes(16):
        return None
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address


def item(kind, value):
    return struct.pack('>BH', kind, len(value)) + value


def encode_plain(request, padding=b''):
    """version u8 || op u8 || time u64 || source 16 || seconds u16 || items || zero padding."""
    op = {name: number for number, name in OPS.items()}[request.op]
    parts = [PLAIN.pack(PLAIN_VERSION, op, request.time, pack_address(request.source),
                        request.seconds)]
    parts += [item(PORTS_ITEM, struct.pack('>BHH', *service)) for service in request.services]
    if request.action is not None:
        parts.append(item(ACTION_ITEM, request.action.encode('ascii')))
    if request.signature is not None:
        parts.append(item(SIGNATURE_ITEM, request.signature))
    return b''.join(parts) + padding


def decode_items(plain):
    """The items as (type, value, where the item begins); raises KnockError on any flaw."""
    items, offset = [], PLAIN.size
    while offset < len(plain) and plain[offset]:
        kind, length = plain[offset], int.from_bytes(plain[offset + 1:offset + 3], 'big')
        value = plain[offset + 3:offset + 3 + length]
        if len(plain) < offset + 3 or len(value) < length:
            raise KnockError('malformed: an item overruns the knock')
        if items and items[-1][0] == SIGNATURE_ITEM:
            raise KnockError('malformed: an item follows the signature')
        items.append((kind, value, offset))
        offset += 3 + length
    if any(plain[offset:]) or len(plain) - offset > PADDING_LIMIT:
        raise KnockError('malformed: the padding is not up to %d zeros' % PADDING_LIMIT)
    return items


def decode_service(value):
    """The value of an item of type 1: proto u8 || low u16 || high u16."""
    if len(value) != 5:
        raise KnockError('malformed: a port range of %d bytes' % len(value))
    service = Service(*struct.unpack('>BHH', value))
    if service.proto not in PROTOCOLS.values() or not 0 < service.low <= service.high:
        raise KnockError('malformed: port range %d/%d-%d' % service)
    return service


def only_one(values, what):
    """None or the single value: these items may not be repeated."""
    if len(values) > 1:
        raise KnockError('malformed: %d %ss' % (len(values), what))
    return values[0] if values else None


def decode_plain(plain):
    """A Request from the bytes of encode_plain(), read strictly; KnockError if anything is off."""
    if len(plain) < PLAIN.size:
        raise KnockError('malformed: %d bytes' % len(plain))
    version, op, time, source, seconds = PLAIN.unpack_from(plain)
    if version != PLAIN_VERSION or op not in OPS or time >= 1 << 42:
        raise KnockError('malformed: version %d, op %d, time %d' % (version, op, time))
    items = decode_items(plain)
    if any(kind > SIGNATURE_ITEM for kind, _, _ in items):
        raise KnockError('malformed: an item of unknown type')
    services = tuple(decode_service(value) for kind, value, _ in items if kind == PORTS_ITEM)
    action = only_one([value for kind, value, _ in items if kind == ACTION_ITEM], 'action')
    signed = only_one([entry for entry in items if entry[0] == SIGNATURE_ITEM], 'signature')
    if len(set(services)) < len(services):
        raise KnockError('malformed: a port range twice')
    if (OPS[op] == 'run') != (action is not None) or (services and action is not None):
        raise KnockError('malformed: an action belongs to run, and nothing else does')
    action = None if action is None else action.decode('latin-1')
    if action is not None and not ACTION.match(action):
        raise KnockError('malformed: the name of the action')
    return Request(OPS[op], time, unpack_address(source), seconds, services, action,
                   signed and signed[1], plain[:signed[2]] if signed else plain)


def syn_token(keys, step):
    """seq(4) || ack(4) || window(2) of the SYN that asks for the client's default."""
    return hmac_sha256(keys['syn'], be64(step))[:10]


def port_sequence(key, prefix):
    """Six different ports from 1024 up, out of HMAC(key, prefix || be32(i)), i = 0, 1, ..."""
    ports, block = [], 0
    while True:
        stream = hmac_sha256(key, prefix + struct.pack('>I', block))
        for value in struct.unpack('>16H', stream):
            port = 1024 + value % 64512
            if value < 64512 and port not in ports:     # above it, the modulus would be uneven
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
    """RFC 4226, 5.3: HMAC-SHA-1, dynamic truncation."""
    mac = hmac.new(key, be64(counter), hashlib.sha1).digest()
    number = struct.unpack_from('>I', mac, mac[19] & 15)[0] & 0x7fffffff
    return '%0*d' % (digits, number % 10 ** digits)


def code_key(keys):
    """What the phone gets: 20 bytes from which nothing else can be derived."""
    return keys['code'][:20]


def code_at(keys, step):
    """RFC 6238, eight digits: what the phone shows in this step."""
    return hotp(code_key(keys), step, 8)


def code_ports(code):
    """The two ports that carry a code of eight digits."""
    return 10000 + int(code[:4]), 20000 + int(code[4:])


def parse_service(text):
    """tcp/22, udp/51820, tcp/8000-8010"""
    match = re.match(r'(tcp|udp)/(\d{1,5})(?:-(\d{1,5}))?\Z', text.strip(), re.ASCII)
    if match:
        low, high = int(match.group(2)), int(match.group(3) or match.group(2))
        if 0 < low <= high < 65536:
            return Service(PROTOCOLS[match.group(1)], low, high)
    raise KnockError('%r is not a service; write tcp/22, udp/51820 or tcp/8000-8010'
                     % text.strip(), 2)


def format_service(service):
    name = {number: name for name, number in PROTOCOLS.items()}[service.proto]
    high = '-%d' % service.high if service.high > service.low else ''
    return '%s/%d%s' % (name, service.low, high)


def parse_services(text):
    """A list with commas; empty text is an empty list."""
    return tuple(parse_service(part) for part in text.split(',')) if text.strip() else ()


def format_services(services):
    return ','.join(format_service(service) for service in services)


def parse_seconds(text):
    """30, 30s, 5m, 2h, 1d: whole seconds."""
    match = re.match(r'(\d{1,9})\s*([smhd]?)\Z', text.strip(), re.ASCII)
    if not match:
        raise KnockError('%r is not a time; write 30s, 5m or 2h' % text.strip(), 2)
    return int(match.group(1)) * {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400}[match.group(2)]


def quote(text):
    """RFC 3986, 2.1: everything but unreserved characters as %XX."""
    return re.sub(rb'[^A-Za-z0-9._~/,-]', lambda match: b'%%%02X' % ord(match.group()),
                  text.encode('utf-8')).decode('ascii')


def unquote(text):
    raw = re.sub(rb'%([0-9A-Fa-f]{2})', lambda match: bytes([int(match.group(1), 16)]),
                 text.encode('utf-8', 'surrogateescape'))
    return raw.decode('utf-8', 'replace')


URI = re.compile(r'knock://([^:@/?]+):([^:@/?]+)@(\[[^][/?@]+\]|[^][:/?@]+)(?::([0-9]{1,5}))?'
                 r'/?\?([^#]*)\Z', re.ASCII)


def parse_query(text):
    """The part behind the question mark, each key once, none unknown."""
    query = {}
    for pair in text.split('&'):
        key, _, value = pair.partition('=')
        if key in query or key not in ('id', 'via', 'open', 'once'):
            raise KnockError('the knock:// line has %r where it may not' % key, 2)
        query[key] = unquote(value)
    return query


def parse_uri(text):
    """knock://NAME:SECRET@HOST[:PORT]?id=SERVERID[&via=udp][&open=tcp/22,...][&once=1]"""
    match = URI.match(text.strip())
    if not match:
        raise KnockError('this is not a knock:// line; it looks like '
                         'knock://NAME:SECRET@HOST?id=SERVERID', 2)
    name, secret, host, port = [unquote(part or '') for part in match.groups()[:4]]
    query = parse_query(match.group(5))
    via, once = query.get('via', 'udp'), query.get('once', '0')
    problems = [(not NAME.match(name), 'name'), (not NAME.match(query.get('id', '')), 'id'),
                (port and not 0 < int(port) < 65536, 'port'), (via not in CARRIERS, 'via'),
                (once not in ('0', '1'), 'once'),
                (not re.match(r'[][A-Za-z0-9._:%-]{1,255}\Z', host, re.ASCII), 'host')]
    for wrong, part in problems:
        if wrong:
            raise KnockError('the knock:// line has no valid %s' % part, 2)
    return Address(name, decode_secret(secret), host.strip('[]'), int(port) if port else None,
                   query['id'], via, parse_services(query.get('open', '')), once == '1')


def format_uri(address):
    """The reverse of parse_uri()."""
    host = address.host.replace('%', '%25')
    host = '[%s]' % host if ':' in host else host
    port = ':%d' % address.port if address.port else ''
    query = ['id=' + quote(address.server_id)]
    query += ['via=' + address.via] if address.via != 'udp' else []
    query += ['open=' + format_services(address.services)] if address.services else []
    query += ['once=1'] if address.once else []
    return 'knock://%s:%s@%s%s?%s' % (quote(address.name), encode_secret(address.secret), host,
                                      port, '&'.join(query))
# --- end of the part shared with knock.py --------------------------------------------------------

# --- types: values that the sections below hand to each other -----------------------------------
Moment = collections.namedtuple('Moment', 'wall mono')      # milliseconds: since 1970, since boot
Packet = collections.namedtuple('Packet', 'carrier source port payload')
Knock = collections.namedtuple('Knock', 'client carrier source knock_id request services seconds')
Opening = collections.namedtuple('Opening', 'client source proto port expires')     # ms, mono
# What judge() says: verdict is junk, mute, copy, refused, open or close.
Decision = collections.namedtuple('Decision', 'verdict reason knock')
Config = collections.namedtuple(
    'Config', 'path id hide answer window open_for max_open_for carriers port firewall accept_in '
    'trust mark ledger host clients')
Client = collections.namedtuple(
    'Client', 'name secret keys fingerprint allow default open_for require_source any_source '
    'expires')
JUNK, MUTE = Decision('junk', None, None), Decision('mute', None, None)


# --- config: text in, a Config or all that is wrong with it out ---------------------------------
def read_yes(text):
    answers = {'yes': True, 'true': True, 'on': True, '1': True,
               'no': False, 'false': False, 'off': False, '0': False}
    if text.lower() not in answers:
        raise KnockError('%r is neither yes nor no' % text)
    return answers[text.lower()]


def read_name(text):
    if not NAME.match(text):
        raise KnockError('%r is not 1 to 64 of A-Z a-z 0-9 . _ -' % text)
    return text


def read_host(text):
    if not re.match(r'[A-Za-z0-9.:_-]{1,255}\Z', text, re.ASCII):
        raise KnockError('%r is neither a host name nor an address' % text)
    return text


def read_path(text):
    if not text.startswith('/'):
        raise KnockError('%r is not an absolute path' % text)
    return text


def read_port(text):
    if not re.match(r'\d{1,5}\Z', text, re.ASCII) or not 0 < int(text) < 65536:
        raise KnockError('%r is not a port from 1 to 65535' % text)
    return int(text)


def read_mark(text):
    """One bit of the 32 of a packet mark."""
    if re.match(r'0x0*[1248]0*\Z', text.lower(), re.ASCII) and int(text, 16) < 1 << 32:
        return int(text, 16)
    raise KnockError('%r is not one bit; write for example 0x40000000' % text)


def words(text):
    return tuple(part.strip() for part in text.split(',') if part.strip())


def read_interfaces(text):
    for name in words(text):
        if not re.match(r'[A-Za-z0-9._@:+-]{1,15}\Z', name, re.ASCII):
            raise KnockError('%r is not the name of an interface' % name)
    return words(text)


def read_chains(text):
    """inet filter input, ip filter INPUT: family, table and chain of each."""
    for chain in words(text):
        if not re.match(r'(inet|ip|ip6)( [A-Za-z][A-Za-z0-9_.-]{0,127}){2}\Z', chain, re.ASCII):
            raise KnockError('%r is not a chain; write for example inet filter input' % chain)
    return tuple(tuple(chain.split(' ')) for chain in words(text))


def read_expiry(text):
    """2027-01-31 (to the end of that day) or 2027-01-31 18:00, both UTC, as milliseconds."""
    import datetime             # late: nobody else needs it
    match = re.match(r'(\d{4})-(\d\d)-(\d\d)(?: (\d\d):(\d\d))?\Z', text, re.ASCII)
    try:
        year, month, day, hour, minute = [int(part or 0) for part in match.groups()]
        begin = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.timezone.utc)
    except (AttributeError, ValueError):
        raise KnockError('%r is not a date; write 2027-01-31 or 2027-01-31 18:00' % text)
    return int(begin.timestamp() + (0 if match.group(4) else 86400)) * 1000


def choice(*names):
    def read(text):
        if text not in names:
            raise KnockError('%r is not one of: %s' % (text, ', '.join(names)))
        return text
    return read


def choices(*names):
    def read(text):
        return tuple(map(choice(*names), words(text)))
    return read


def milliseconds(low, high):
    """A reader of times from low to high seconds."""
    def read(text):
        if not low <= parse_seconds(text) <= high:
            raise KnockError('%r is not from %d to %d seconds' % (text, low, high))
        return parse_seconds(text) * 1000
    return read


MONTH = 31 * 86400
SERVER_KEYS = {     # key: how it is read, what it is if it is not there
    'id': (read_name, None),
    'hide': (parse_services, ()),
    'answer': (choice('box', 'drop'), 'box'),
    'window': (milliseconds(1, 600), 60000),
    'open_for': (milliseconds(1, MONTH), 30000),
    'max_open_for': (milliseconds(1, MONTH), 3600000),
    'carriers': (choices('udp', 'icmp'), ('udp', 'icmp')),
    'port': (read_port, None),
    'firewall': (choice('auto', 'nft'), 'auto'),
    'accept_in': (read_chains, ()),
    'trust': (read_interfaces, ()),
    'mark': (read_mark, 0x40000000),
    'ledger': (read_path, None),
    'host': (read_host, None),
}
CLIENT_KEYS = {
    'secret': (decode_secret, None),
    'allow': (parse_services, None),
    'default': (parse_services, None),
    'open_for': (milliseconds(1, MONTH), None),
    'require_source': (read_yes, False),
    'any_source': (read_yes, False),
    'expires': (read_expiry, None),
}


def ini_sections(text, path):
    """{section: {key: text}} of an INI file; KnockError where it is not one."""
    ini = configparser.RawConfigParser(delimiters=('=',), comment_prefixes=('#', ';'),
                                       default_section='\0')
    try:
        ini.read_string(text, path)
    except configparser.Error as error:
        raise KnockError(' '.join(str(error).split()), 2)
    return collections.OrderedDict((name, dict(ini.items(name))) for name in ini.sections())


def read_section(keys, entries, complain):
    """The values of one section by its table of keys; what is wrong goes to complain(key, why)."""
    values = {key: default for key, (_, default) in keys.items()}
    for key, text in entries.items():
        try:
            if key not in keys:
                raise KnockError('unknown key; known are %s' % ', '.join(keys))
            values[key] = keys[key][0](text.strip())
        except KnockError as error:
            complain(key, str(error))
    return values


def covered(wanted, allowed):
    """Is this service inside one of those?"""
    return any(wanted.proto == service.proto and
               service.low <= wanted.low and wanted.high <= service.high for service in allowed)


def read_client(name, entries, server, complain):
    """A Client from its section, or None."""
    values = read_section(CLIENT_KEYS, entries, complain)
    if not NAME.match(name):
        complain('client', '%r is not 1 to 64 of A-Z a-z 0-9 . _ -' % name)
    if 'secret' not in entries:
        complain('secret', 'missing; make one with: knockd.py add NAME')
    if values['allow'] is None:
        values['allow'] = server['hide']
    if values['default'] is None:
        values['default'] = values['allow']
    for key, outer, where in (('allow', server['hide'], 'hide'), ('default', values['allow'],
                                                                  'allow')):
        for service in values[key]:
            if not covered(service, outer):
                complain(key, '%s is not in %s' % (format_service(service), where))
    if values['secret'] is None or server['id'] is None:
        return None
    keys = derive_keys(values['secret'], server['id'])
    return Client(name=name, keys=keys, fingerprint=fingerprint(keys), **values)


def read_server(entries, complain):
    """The values of [server]."""
    values = read_section(SERVER_KEYS, entries, complain)
    if values['id'] is None and 'id' not in entries:
        complain('id', 'missing; any name that no other server of yours has')
    if not values['hide'] and 'hide' not in entries:
        complain('hide', 'missing; write for example: hide = tcp/22')
    if values['open_for'] > values['max_open_for']:
        complain('open_for', 'longer than max_open_for')
    return values


def parse_config(text, path):
    """A Config; or KnockError (status 2) with a line for everything that is wrong."""
    problems = []

    def complain_in(section):
        return lambda key, why: problems.append('%s: [%s] %s: %s' % (path, section, key, why))

    sections = ini_sections(text, path)
    server = read_server(sections.pop('server', {}), complain_in('server'))
    clients, secrets = collections.OrderedDict(), {}
    for section, entries in sections.items():
        kind, _, name = section.partition(' ')
        if kind != 'client':
            problems.append('%s: [%s]: unknown section; known are [server] and [client NAME]'
                            % (path, section))
            continue
        client = read_client(name, entries, server, complain_in(section))
        if client and secrets.setdefault(client.secret, name) != name:
            complain_in(section)('secret', 'the same as that of %s' % secrets[client.secret])
        if client:
            clients[name] = client
    if problems:
        raise KnockError('\n'.join(problems), 2)
    if server['ledger'] is None:
        server['ledger'] = path.rpartition('/')[0] + '/ledger.json'
    return Config(path=path, clients=clients, **server)


def with_section(text, section, entries):
    """The text of a config with a section appended."""
    lines = ['[%s]' % section] + ['%s = %s' % entry for entry in entries]
    return (text.rstrip('\n') + '\n\n' if text.strip() else '') + '\n'.join(lines) + '\n'


def without_section(text, section):
    """The text of a config without that section; comments and order of the rest are kept."""
    kept, inside = [], False
    for line in text.splitlines(True):
        header = re.match(r'\[([^]]+)\]', line)
        if header:
            inside = header.group(1) == section
        if not inside:
            kept.append(line)
    return ''.join(kept).rstrip('\n') + '\n'


# --- ledger rules: which knock was honoured already (DESIGN 4) ----------------------------------
SPENT_LIMIT = 1000
NEVER = 1 << 62


class Ledger:
    """{"knockd": 1, "id": server id, "floor": ms, "keys": {FP: {"floor", "spent", "paper"}}}

    Floors never fall, and an id is forgotten only when its time has fallen below its key's floor:
    so nothing is accepted twice, whatever the clock and the window become."""

    def __init__(self, server_id, floor=0):
        self.server_id, self.floor = server_id, floor
        self.keys = {}          # fingerprint: {'floor': ms, 'spent': {id: ms}, 'paper': [s, n]}
        self.lines = {}         # the same as JSON, kept so that a write costs one key's encoding

    @classmethod
    def empty(cls, server_id):
        """For a server that has never run: nothing can have been spent yet."""
        return cls(server_id)

    @classmethod
    def quarantined(cls, server_id, now, window):
        """For a lost ledger: refuses all that may have been accepted before it was lost."""
        return cls(server_id, now + window + 2000)

    def quarantine(self, now, window):
        """Again, after a forward step of the clock."""
        self.floor = max(self.floor, now + window + 2000)

    def put(self, mark, key):
        self.keys[mark] = key
        self.lines[mark] = '"%s": %s' % (mark, json.dumps(key))

    def text(self):
        return '{"knockd": 1, "id": "%s", "floor": %d, "keys": {\n%s\n}}\n' % (
            self.server_id, self.floor, ',\n'.join(self.lines.values()))

    def refusal(self, mark, knock_id, time, paper=None):
        """None, or why a knock with this id and time may not be honoured."""
        key = self.keys.get(mark, {'floor': 0, 'spent': {}, 'paper': [0, 0]})
        if paper is not None:
            sheet, last = key['paper']
            return 'replay' if paper[0] < sheet or paper == (sheet, last) or (
                paper[0] == sheet and paper[1] < last) else None
        if knock_id in key['spent'] or time < key['floor']:
            return 'replay'
        if time <= self.floor:
            return 'quarantine'
        return None

    def record(self, mark, knock_id, time, window, paper=None):
        """Spends a knock. The caller writes text() to disk before anything opens."""
        key = self.keys.get(mark, {'floor': 0, 'spent': {}, 'paper': [0, 0]})
        if paper is not None:
            self.put(mark, dict(key, paper=list(paper)))
            return
        spent = dict(key['spent'])
        spent[knock_id] = time
        floor = max(key['floor'], time - (2 * window + 60000))
        spent = {known: when for known, when in spent.items() if when >= floor}
        while len(spent) > SPENT_LIMIT:
            floor = min(spent.values()) + 1
            spent = {known: when for known, when in spent.items() if when >= floor}
        self.put(mark, {'floor': floor, 'spent': spent, 'paper': key['paper']})


def whole(number, what):
    """A number out of a ledger: an integer that a time can be."""
    if type(number) is not int or not 0 <= number < NEVER:
        raise KnockError('the ledger has %s %.40r' % (what, number))
    return number


def parse_ledger(text, server_id):
    """A Ledger from its text; KnockError if it is damaged or another server's."""
    try:
        data = json.loads(text)
        if data['knockd'] != 1 or data['id'] != server_id:
            raise KnockError('the ledger belongs to another server')
        ledger = Ledger(server_id, whole(data['floor'], 'the floor'))
        for mark, key in data['keys'].items():
            if not re.match('[0-9a-f]{16}$', mark, re.ASCII):
                raise KnockError('the ledger has the key %.40r' % mark)
            spent = {str(known): whole(time, 'the time') for known, time in key['spent'].items()}
            sheet, number = key['paper']
            ledger.put(mark, {'floor': whole(key['floor'], 'the floor'), 'spent': spent, 'paper': [
                whole(sheet, 'the sheet'), whole(number, 'the number')]})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KnockError('the ledger cannot be read: %s' % error)
    return ledger


# --- filter compiler: classic BPF that passes only packets with a token that is valid now -------
# linux/filter.h: struct sock_filter { u16 code; u8 jt, jf; u32 k; }, here (code, jt, jf, k).
# linux/bpf_common.h: the codes.
LD_WORD, LD_HALF, LD_BYTE, LD_LENGTH, LD_MEMORY = 0x20, 0x28, 0x30, 0x80, 0x60
LD_WORD_X, LD_HALF_X, LD_BYTE_X = 0x40, 0x48, 0x50          # at X + k
LDX_NUMBER, LDX_LENGTH, LDX_MEMORY, LDX_HEADER = 0x01, 0x81, 0x61, 0xb1
STORE, STORE_X, TXA, ADD, SUB_X, AND = 0x02, 0x03, 0x87, 0x04, 0x1c, 0x54
JUMP, JEQ, JGT, JGE, JSET, JGT_X, RETURN = 0x05, 0x15, 0x25, 0x35, 0x45, 0x2d, 0x06
PACKET_TYPE = 0xfffff004        # linux/filter.h: SKF_AD_OFF + SKF_AD_PKTTYPE
PACKET_HOST = 0                 # linux/if_packet.h
WHOLE_PACKET = 0x40000
FILTER_LIMIT = 4096             # linux/bpf_common.h: BPF_MAXINSNS
FILTER_TAGS = 2000              # what surely fits: 1.8 instructions a tag at worst, and the head
LEAF = 8


def token_tree(tokens):
    """A balanced tree over sorted 32-bit tokens in the accumulator.

    Every leaf returns by itself and jumps are relative, so only a large left half is out of reach
    of an 8-bit offset; there a long jump takes over."""
    if len(tokens) <= LEAF:
        last = len(tokens)
        tests = [(JEQ, last - number, 0, token) for number, token in enumerate(tokens)]
        return tests + [(RETURN, 0, 0, 0), (RETURN, 0, 0, WHOLE_PACKET)]
    half = len(tokens) // 2
    left, right = token_tree(tokens[:half]), token_tree(tokens[half:])
    if len(left) < 256:
        return [(JGE, len(left), 0, tokens[half])] + left + right
    return [(JGE, 0, 1, tokens[half]), (JUMP, 0, 0, len(left))] + left + right


def link(program):
    """Names of places become offsets; a bare string is a place, None is the next instruction."""
    places, code = {}, []
    for entry in program:
        if isinstance(entry, str):
            places[entry] = len(code)
        else:
            code.append(entry)

    def offset(here, target):
        return target if isinstance(target, int) else 0 if target is None else \
            places[target] - here - 1
    return [(operation, offset(here, yes), offset(here, no), offset(here, number))
            for here, (operation, yes, no, number) in enumerate(code)]


# Both heads leave X = M[1] = the length of the IP header, M[2] = the bytes behind it and
# A = the protocol. What they refuse, and the parser below in the same words: other versions,
# fragments, headers that lie, packets cut short.
HEAD4 = [
    (LD_BYTE, None, None, PACKET_TYPE), (JEQ, None, 'drop', PACKET_HOST),
    (LD_BYTE, None, None, 0), (AND, None, None, 0xf0), (JEQ, None, 'drop', 0x40),
    (LD_HALF, None, None, 6), (JSET, 'drop', None, 0x3fff),     # RFC 791: MF and the offset
    (LDX_HEADER, None, None, 0), (STORE_X, None, None, 1),
    (TXA, None, None, 0), (JGE, None, 'drop', 20),
    (LD_HALF, None, None, 2), (LDX_LENGTH, None, None, 0), (JGT_X, 'drop', None, 0),
    (LDX_MEMORY, None, None, 1), (SUB_X, None, None, 0), (JGT, 'drop', None, 0xffff),
    (STORE, None, None, 2), (LD_BYTE, None, None, 9)]
HEAD6 = [
    (LD_BYTE, None, None, PACKET_TYPE), (JEQ, None, 'drop', PACKET_HOST),
    (LD_BYTE, None, None, 0), (AND, None, None, 0xf0), (JEQ, None, 'drop', 0x60),
    (LD_HALF, None, None, 4), (STORE, None, None, 2), (ADD, None, None, 40),
    (LDX_LENGTH, None, None, 0), (JGT_X, 'drop', None, 0),
    (LDX_NUMBER, None, None, 40), (STORE_X, None, None, 1), (LD_BYTE, None, None, 6)]
HEADS = {4: HEAD4, 6: HEAD6}
ECHO = {4: (1, 8), 6: (58, 128)}        # RFC 792, RFC 4443: protocol and type of an echo request
TRANSPORT = 8                           # bytes of a UDP header, and of an echo request's


def datagram_filter(version, carriers, port, tokens):
    """The program for one socket: knock/1 datagrams whose first 32 bits are among the tokens.

    tokens None passes every datagram of a possible length."""
    protocol, echo = ECHO[version]
    lengths = [(JGE, None, 'drop', TRANSPORT + DATAGRAM_MINIMUM),
               (JGT, 'drop', None, TRANSPORT + DATAGRAM_LIMIT)]
    body = [(JEQ, 'udp', None, 17 if 'udp' in carriers else 256),
            (JEQ, 'echo', 'drop', protocol if 'icmp' in carriers else 256), 'udp',
            (LD_HALF_X, None, None, 4)] + lengths + [
            (LDX_MEMORY, None, None, 2), (JGT_X, 'drop', None, 0), (LDX_MEMORY, None, None, 1)]
    if port:
        body += [(LD_HALF_X, None, None, 2), (JEQ, None, 'drop', port)]
    body += [(JUMP, 0, 0, 'token'), 'echo', (LD_HALF_X, None, None, 0),
             (JEQ, None, 'drop', echo << 8), (LD_MEMORY, None, None, 2)] + lengths + [
             (JUMP, 0, 0, 'token'), 'drop', (RETURN, 0, 0, 0), 'token',
             (LD_WORD_X, None, None, TRANSPORT)]
    tree = [(RETURN, 0, 0, WHOLE_PACKET)] if tokens is None else token_tree(sorted(tokens))
    return link(HEADS[version] + body) + tree


# --- packet parser: bytes from the IP header on; trusts neither the filter nor any length -------
def parse_ip4(frame):
    """(source, protocol, what follows the header) or None. RFC 791."""
    if len(frame) < 20 or frame[0] >> 4 != 4 or int.from_bytes(frame[6:8], 'big') & 0x3fff:
        return None
    header, total = (frame[0] & 15) * 4, int.from_bytes(frame[2:4], 'big')
    if header < 20 or not header <= total <= len(frame):
        return None
    return ipaddress.IPv4Address(frame[12:16]), frame[9], frame[header:total]


def parse_ip6(frame):
    """As parse_ip4(), RFC 8200; a packet with extension headers is none of ours."""
    length = int.from_bytes(frame[4:6], 'big')
    if len(frame) < 40 + length or len(frame) < 40 or frame[0] >> 4 != 6:
        return None
    return ipaddress.IPv6Address(frame[8:24]), frame[6], frame[40:40 + length]


def parse_udp(body):
    """(destination port, payload) or None. RFC 768."""
    length = int.from_bytes(body[4:6], 'big')
    if len(body) < 8 or not 8 <= length <= len(body):
        return None
    return int.from_bytes(body[2:4], 'big'), body[8:length]


def parse_packet(version, frame, carriers, port):
    """A Packet if these bytes may be a knock/1 datagram, else None. Never raises."""
    parsed = (parse_ip4 if version == 4 else parse_ip6)(frame)
    if parsed is None:
        return None
    source, protocol, body = parsed
    if protocol == 17 and 'udp' in carriers:
        carrier, transport = 'udp', parse_udp(body)
        if transport is None or port not in (None, transport[0]):
            return None
    elif (protocol, body[:2]) == (ECHO[version][0], bytes([ECHO[version][1], 0])) \
            and 'icmp' in carriers:
        carrier, transport = 'icmp', (None, body[8:])
    else:
        return None
    if not DATAGRAM_MINIMUM <= len(transport[1]) <= DATAGRAM_LIMIT:
        return None
    return Packet(carrier, source, transport[0], transport[1])


# --- judge: a packet, a moment and what is known in, a Decision out (DESIGN 3.8) ----------------
MACS_A_SECOND, KNOCKS_A_SECOND = 200, 5
COPY_TIME = 2000                # ms within which the network may deliver a knock twice


class Budget:
    """At most so many of a thing a second, each thing for itself."""

    def __init__(self, limit):
        self.limit, self.second, self.used = limit, None, {}

    def spend(self, thing, second):
        """False when there is nothing left for it in this second."""
        if second != self.second:
            self.second, self.used = second, {}
        self.used[thing] = self.used.get(thing, 0) + 1
        return self.used[thing] <= self.limit


class State:
    """What the judge knows besides the packet: the config, the tokens, the ledger, the budgets."""

    def __init__(self, config, ledger):
        self.config, self.ledger = config, ledger
        self.tags = {}          # 8 bytes: (client, step)
        self.macs, self.knocks = Budget(MACS_A_SECOND), Budget(KNOCKS_A_SECOND)
        self.honoured = {}      # knock id: (source, mono), for as long as a copy may follow


def valid_tags(config, now):
    """{tag: (client, step)} for every step that can be valid now or in the step after this."""
    steps = window_steps(now, config.window)
    return {tag_at(client.keys, step): (client, step) for client in config.clients.values()
            for step in range(steps.start, steps.stop + 1)}


def judge(packet, now, state):
    """The order of judgement: tag, MAC, strict parse; stamp, expiry, source, scope, ledger, pace.

    Whoever honours the decision goes on: ledger recorded, on disk, firewall, log."""
    tag = packet.payload[:TAG_SIZE]
    client, step = state.tags.get(tag, (None, None))
    if client is None:
        return JUNK
    if not state.macs.spend(tag, now.mono // 1000):
        return MUTE
    plain = unseal(client.keys, packet.payload)
    if plain is None:
        return JUNK
    nonce = packet.payload[TAG_SIZE:TAG_SIZE + NONCE_SIZE].hex()
    knock = Knock(client, packet.carrier, packet.source, nonce, None, (), 0)
    try:
        request = decode_plain(plain)
    except KnockError as error:
        return Decision('refused', str(error), knock)
    knock = wanted(knock, request, state.config)
    reason = (stamp_flaw(request.time, step, now.wall, state.config.window) or
              expiry_flaw(client, now.wall) or
              source_flaw(knock) or
              scope_flaw(knock) or
              state.ledger.refusal(client.fingerprint, nonce, request.time) or
              pace_flaw(knock, now, state))
    if reason == 'replay' and is_copy(knock, packet.source, now, state):
        return Decision('copy', None, knock)
    return Decision('refused', reason, knock) if reason else Decision(request.op, None, knock)


def wanted(knock, request, config):
    """The knock with what it asks for: services, seconds, and the address it is for."""
    client = knock.client
    longest = max(config.max_open_for, client.open_for or 0) // 1000
    default = (client.open_for or config.open_for) // 1000
    services = request.services or (client.default if request.op == 'open' else ())
    source = request.source if request.source and client.any_source else knock.source
    return knock._replace(request=request, services=services, source=source,
                          seconds=min(request.seconds or default, longest))


def stamp_flaw(time, step, now, window):
    if abs(now - time) > window or step_of(time) != step:
        return 'clock %+ds' % round((time - now) / 1000)
    return None


def expiry_flaw(client, now):
    return 'expired' if client.expires is not None and now >= client.expires else None


def source_flaw(knock):
    """Whoever names a source must come from it, unless the config trusts him with any."""
    named, client = knock.request.source, knock.client
    if named is None:
        return 'no source named' if client.require_source else None
    if named != knock.source or named.is_multicast or named.is_loopback or named.is_unspecified:
        return 'source %s' % named
    return None


def scope_flaw(knock):
    if knock.request.op == 'run':
        return 'not allowed action %s' % knock.request.action
    for service in knock.services:
        if not covered(service, knock.client.allow):
            return 'not allowed %s' % format_service(service)
    if knock.request.op == 'open' and not knock.services:
        return 'not allowed anything'
    return None


def pace_flaw(knock, now, state):
    return None if state.knocks.spend(knock.client.name, now.mono // 1000) else 'too fast'


def is_copy(knock, source, now, state):
    """Is this the network's duplicate of what was honoured a moment ago?"""
    known, when = state.honoured.get(knock.knock_id, (None, 0))
    return known == source and now.mono - when <= COPY_TIME


# --- firewall text: nft commands out of addresses and integers, nothing else --------------------
# Why each line is as it is: README, "The firewall". One table of our own, one transaction a change.
FAMILIES = {4: ('ip', 'ipv4_addr'), 6: ('ip6', 'ipv6_addr')}
LIVING_HOURS = 12               # for connections that were there before the table was
Box = collections.namedtuple('Box', 'decoy policy')     # policy for closed ports: accept or drop
ANSWERS = {
    'drop': ['drop'],
    'reset': ['meta l4proto tcp reject with tcp reset', 'reject'],
    'prohibited': ['reject with icmpx type admin-prohibited'],
}
TABLE = '''table inet knockd
delete table inet knockd
table inet knockd {
%(sets)s
 chain guard {
  type filter hook prerouting priority -149; policy accept;
  iifname { %(trust)s } return
  ct state established,related return
  fib daddr type { broadcast, multicast } meta l4proto . th dport @hidden drop
  fib daddr type { local, anycast } meta l4proto . th dport @hidden jump check
 }
 chain check {
%(check)s
 }
 chain pass {
  meta mark set meta mark | 0x%(mark)08x accept
 }
%(restore)s}
'''
RESTORE = ''' chain answer {
  type filter hook output priority -301; policy accept;
  tcp sport %(decoy)d tcp flags & rst == rst jump restore
 }
 chain restore {
  tcp sport set ip daddr . tcp dport map @asked4 delete @asked4 { ip daddr . tcp dport : 0 }
  tcp sport set ip6 daddr map @asked6 delete @asked6 { ip6 daddr : 0 }
 }
'''
ASKED = ''' map asked4 {
  type ipv4_addr . inet_service : inet_service
  flags dynamic,timeout
  timeout 1s
  size 4096
 }
 map asked6 {
  type ipv6_addr : inet_service
  flags dynamic,timeout
  timeout 1s
  size 4096
 }
'''     # asked6 has the shorter key on purpose: with the port in it, nft 1.0.6 crashes


def nft_service(service):
    return format_service(service).replace('/', ' . ')


def seconds_left(opening, now):
    """Whole seconds, never more than are left."""
    return (opening.expires - now.mono) // 1000


def nft_opening(opening, now=None):
    """The element of an opening; without now, what names it for a deletion."""
    protocol = format_service(Service(opening.proto, 1, 1)).partition('/')[0]
    key = '%s . %s . %d' % (opening.source, protocol, opening.port)
    return key if now is None else '%s timeout %ds comment "%s"' % (
        key, seconds_left(opening, now), opening.client)


def nft_living(connection):
    return '%s . %d . %d' % connection


def nft_set(name, kind, flags, elements, rest=''):
    """A set with its elements, in the words of nft."""
    listed = '  elements = { %s }\n' % ', '.join(elements) if elements else ''
    return ' set %s {\n  type %s\n  flags %s\n%s%s }\n' % (name, kind, flags, rest, listed)


def of_version(version, things, address):
    return [thing for thing in things if address(thing).version == version]


def nft_sets(config, openings, living, now):
    hidden = [nft_service(service) for service in sorted(set(config.hide))]
    text = nft_set('hidden', 'inet_proto . inet_service', 'interval', hidden, '  auto-merge\n')
    for version, (_, kind) in FAMILIES.items():
        opened = of_version(version, openings, lambda opening: opening.source)
        text += nft_set('open%d' % version, kind + ' . inet_proto . inet_service', 'timeout',
                        [nft_opening(opening, now) for opening in opened])
        known = of_version(version, living, lambda connection: connection[0])
        text += nft_set('living%d' % version, kind + ' . inet_service . inet_service', 'timeout',
                        [nft_living(connection) for connection in known],
                        '  timeout %dh\n' % LIVING_HOURS)
    return (text + (ASKED if config.answer == 'box' else '')).rstrip('\n')


def nft_box(box):
    """What makes a hidden port answer like every closed port of this box: its TCP goes to a
    closed decoy port, and the reset that may come back gets the real port again."""
    accepting = box.policy == 'accept'
    lines = ['ct state invalid tcp flags & (ack | rst) != 0 return'] if accepting else []
    lines += [
        'meta l4proto tcp add @asked4 { ip saddr . tcp sport : tcp dport } '
        'tcp dport set %d accept' % box.decoy,
        'meta l4proto tcp add @asked6 { ip6 saddr : tcp dport } '
        'tcp dport set %d accept' % box.decoy,
        'meta l4proto tcp drop']
    return lines + (['meta nfproto ipv6 udp checksum 0 drop', 'reject'] if accepting else ['drop'])


def nft_ruleset(config, box, openings, living, now):
    """The whole table, replacing the one that may be there, in one transaction."""
    check = []
    for version, (family, _) in FAMILIES.items():
        check.append('%s saddr . meta l4proto . th dport @open%d goto pass' % (family, version))
        check.append('%s saddr . tcp sport . tcp dport @living%d return' % (family, version))
    check += nft_box(box) if config.answer == 'box' else ANSWERS[config.answer]
    return TABLE % {
        'sets': nft_sets(config, openings, living, now),
        'trust': ', '.join('"%s"' % name for name in ('lo',) + config.trust),
        'check': '\n'.join('  ' + line for line in check), 'mark': config.mark,
        'restore': RESTORE % {'decoy': box.decoy} if config.answer == 'box' else ''}


def nft_change(verb, openings, now=None):
    """add or delete elements of the open sets."""
    text = ''
    for version in FAMILIES:
        chosen = of_version(version, openings, lambda opening: opening.source)
        if chosen:
            text += '%s element inet knockd open%d { %s }\n' % (
                verb, version, ', '.join(nft_opening(opening, now) for opening in chosen))
    return text


def nft_open(openings, known, now):
    """Opens; what is open already is replaced: adding alone extends only on new kernels."""
    old = [opening for opening in openings if opening[1:4] in known]
    return nft_change('add', old) + nft_change('delete', old) + nft_change('add', openings, now)


def nft_close(openings):
    """Closes; adding first, for deleting what has just expired would be an error."""
    return nft_change('add', openings) + nft_change('delete', openings)


def nft_accept(chain, mark):
    """One rule at the head of a chain that would drop what the guard lets through."""
    return 'insert rule %s meta mark & 0x%08x == 0x%08x accept\n' % (' '.join(chain), mark, mark)


def is_accept(rule, mark):
    """Is this rule, as nft -j lists it, the one of nft_accept()?"""
    return rule.get('expr') == [
        {'match': {'op': '==', 'left': {'&': [{'meta': {'key': 'mark'}}, mark]}, 'right': mark}},
        {'accept': None}]


def chain_of(entry):
    return entry.get('family'), entry.get('table'), entry.get('chain')


def missing_accepts(config, ruleset):
    """The chains of accept_in that lack our rule."""
    ours = {chain_of(entry['rule']) for entry in ruleset
            if 'rule' in entry and is_accept(entry['rule'], config.mark)}
    return [chain for chain in config.accept_in if chain not in ours]


def box_policy(ruleset):
    """drop if some chain on input drops what no rule of it accepts, else accept."""
    last, policies = {}, []
    for entry in ruleset:
        if 'rule' in entry:
            last[chain_of(entry['rule'])] = entry['rule'].get('expr')
    for entry in ruleset:
        chain = entry.get('chain', {})
        if chain.get('hook') == 'input' and chain.get('table') != 'knockd':
            name = chain.get('family'), chain.get('table'), chain.get('name')
            policies += [chain.get('policy'), 'drop' if last.get(name) == [{'drop': None}] else '']
    return 'drop' if 'drop' in policies else 'accept'


def pick_decoy(config, ruleset, listening, ephemeral):
    """A TCP port that nothing on this box knows: no listener, rule, hidden service, outgoing."""
    foreign = [entry for entry in ruleset
               if 'knockd' not in (list(entry.values())[0] or {}).values()]
    named = {int(number) for number in re.findall(r'\b\d{1,5}\b', json.dumps(foreign))}
    for port in list(range(61022, 65536)) + list(range(29999, 1024, -1)):
        if not (port in listening or port in named or ephemeral[0] <= port <= ephemeral[1] or
                covered(Service(6, port, port), config.hide)):
            return port
    raise KnockError('no free TCP port is left for the decoy; write answer = drop')


def parse_connections(text):
    """[(remote address, remote port, local port, state)] of /proc/net/tcp or tcp6.

    Addresses there are 32-bit words in the byte order of the machine (net/ipv4/tcp_ipv4.c)."""
    connections = []
    for line in text.splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        address, port = remote.split(':')
        packed = b''.join(struct.pack('=I', int(address[i:i + 8], 16))
                          for i in range(0, len(address), 8))
        source = ipaddress.ip_address(packed)
        source = getattr(source, 'ipv4_mapped', None) or source
        connections.append((source, int(port, 16), int(local.split(':')[1], 16), int(state, 16)))
    return connections


TCP_TIME_WAIT, TCP_LISTEN = 6, 10       # include/net/tcp_states.h


def living_connections(connections, hide):
    """Those to a hidden port that are there already, once each."""
    return sorted({connection[:3] for connection in connections
                   if connection[3] not in (TCP_TIME_WAIT, TCP_LISTEN)
                   and covered(Service(6, connection[2], connection[2]), hide)},
                  key=lambda connection: (connection[0].version, connection))


# --- edges: clock, log, files, commands, sockets ------------------------------------------------
SEARCH_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
PACKAGES = (('apt-get', 'apt-get install'), ('opkg', 'opkg install'), ('apk', 'apk add'),
            ('dnf', 'dnf install'), ('yum', 'yum install'), ('zypper', 'zypper install'),
            ('pacman', 'pacman -S'), ('emerge', 'emerge'), ('xbps-install', 'xbps-install'))
BALLAST = 65536                 # bytes given up when the disk is full, so that a knock still fits
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33       # asm-generic/socket.h
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86dd           # linux/if_ether.h
RECEIVE_BUFFER = 4 << 20
SOCKET_PAIRS = 8


def moment():
    return Moment(int(time.time() * 1000), int(time.monotonic() * 1000))


def log(text, level=6):
    """One line on standard error; journald takes a syslog level in front."""
    prefix = '<%d>' % level if 'JOURNAL_STREAM' in os.environ else ''
    try:
        sys.stderr.write(prefix + printable(text) + '\n')
        sys.stderr.flush()
    except OSError:
        pass                    # nobody reads the log: no reason to stop guarding


def printable(text):
    """No byte of a stranger's reaches a terminal or a log as anything but plain text."""
    return re.sub(r'[^\x20-\x7e]', '?', text)


def find_program(name):
    for folder in SEARCH_PATH.split(':'):
        path = folder + '/' + name
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def missing(program, package):
    """The error for a program that is not there, with what to type on this system."""
    for manager, command in PACKAGES:
        if find_program(manager):
            return KnockError('%s is not installed; type: %s %s' % (program, command, package))
    return KnockError('%s is not installed; install the package %s' % (program, package))


def run(argv, text='', seconds=10):
    """The one place that executes a command; its output, or a KnockError with its complaint."""
    path = find_program(argv[0])
    if path is None:
        raise missing(argv[0], {'nft': 'nftables'}.get(argv[0], argv[0]))
    process = subprocess.Popen(
        [path] + argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={'PATH': SEARCH_PATH, 'LC_ALL': 'C'}, cwd='/', close_fds=True)
    try:
        output, errors = process.communicate(text.encode('ascii'), timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise KnockError('%s took longer than %d s' % (' '.join(argv), seconds))
    if process.returncode:
        complaint = errors.decode('ascii', 'replace').strip().splitlines() or ['no reason given']
        raise KnockError('%s failed (%d): %s' % (' '.join(argv), process.returncode, complaint[0]))
    return output.decode('utf-8', 'replace')


def read_file(path):
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            return file.read()
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror))


def sync_folder(path):
    folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def replace_file(path, data):
    """The file is either as it was or as it shall be, and on disk when this returns. OSError."""
    temporary = path + '.new'
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW,
                             0o600)
        with open(descriptor, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass                # the first error is the one to tell
        raise
    sync_folder(path)


def read_config(path):
    """The Config in a file that belongs to root or us and is closed to others."""
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror), 2)
    if status.st_uid not in (0, os.geteuid()):
        raise KnockError('%s belongs to user %d; type: chown root %s'
                         % (path, status.st_uid, path), 2)
    if status.st_mode & 0o027:
        raise KnockError('%s is open to others; type: chmod 600 %s' % (path, path), 2)
    return parse_config(text, os.path.abspath(path))


class LedgerFile:
    """The ledger's file, its lock for this process's life, and the ballast beside it."""

    def __init__(self, path):
        self.path, self.lock = path, None

    def take(self):
        """Locks it; KnockError if another daemon lives. The lock file holds our process id."""
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            self.lock = os.open(self.path + '.lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self.lock, 0)
            os.pwrite(self.lock, b'%d\n' % os.getpid(), 0)
        except BlockingIOError:
            raise KnockError('another knockd.py runs with %s' % self.path)
        except OSError as error:
            raise KnockError('%s.lock: %s' % (self.path, error.strerror))

    def load(self, server_id):
        """The Ledger; KnockError if it is missing, unreadable or not ours."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding='ascii') as file:
            return parse_ledger(file.read(), server_id)

    def save(self, ledger):
        """On disk when this returns; OSError if it cannot be."""
        data = ledger.text().encode('ascii')
        try:
            replace_file(self.path, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.drop_ballast():
                raise
            replace_file(self.path, data)

    def drop_ballast(self):
        try:
            os.unlink(self.path + '.ballast')
        except OSError:
            return False
        return True

    def keep_ballast(self):
        """Made again when there is room; random, for a file system may store zeros as nothing."""
        if not os.path.exists(self.path + '.ballast'):
            try:
                replace_file(self.path + '.ballast', os.urandom(BALLAST))
            except OSError:
                pass            # still full: the next step tries again


def open_ledger(file, config, now):
    """(the Ledger, whether it is under quarantine); never a reason to stop."""
    try:
        return file.load(config.id), False
    except (OSError, ValueError, KnockError) as error:
        ledger = Ledger.quarantined(config.id, now.wall, config.window)
        reason = 'missing' if isinstance(error, FileNotFoundError) else str(error)
        log('quarantine: ledger %s, knocks count again at %s UTC; %s' % (
            reason, time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(ledger.floor // 1000 + 1)),
            file.path), 4)
    try:
        file.save(ledger)
    except OSError as error:
        log('the ledger cannot be written: %s: %s' % (file.path, error.strerror), 3)
    return ledger, True


class Firewall:
    """The kernel's table as we want it: applied by one nft command a change."""

    def __init__(self, config):
        self.config, self.box, self.openings = config, None, {}

    def ruleset(self):
        """Everything but the elements of sets, as nft -j tells it."""
        return json.loads(run(['nft', '-j', '-t', 'list', 'ruleset']))['nftables']

    def look(self):
        """Chooses the decoy for the box as it is now."""
        ruleset = self.ruleset()
        ephemeral = [int(port) for port in
                     read_file('/proc/sys/net/ipv4/ip_local_port_range').split()]
        self.box = Box(pick_decoy(self.config, ruleset, listening_ports(), ephemeral),
                       box_policy(ruleset))

    def text(self, now):
        """What load() applies."""
        living = living_connections(all_connections(), self.config.hide)
        openings = [opening for opening in self.openings.values()
                    if seconds_left(opening, now) > 0]
        return nft_ruleset(self.config, self.box, openings, living, now)

    def load(self, now):
        """Puts the whole table in force, openings with the time they have left."""
        self.look()
        run(['nft', '-f', '-'], self.text(now))
        accepts = self.accepts()
        if accepts:
            run(['nft', '-f', '-'], accepts)

    def accepts(self):
        """The rules that accept_in still lacks."""
        return ''.join(nft_accept(chain, self.config.mark)
                       for chain in missing_accepts(self.config, self.ruleset()))

    def replace(self, config, revoked, now):
        """Another config, or the old one as it was and a KnockError."""
        old, openings = self.config, self.openings
        self.config = config
        self.openings = {key: opening for key, opening in openings.items()
                         if opening not in revoked}
        try:
            self.load(now)
        except KnockError:
            self.config, self.openings = old, openings
            raise

    def tend(self, now):
        """Once a step: another decoy if somebody listens on ours now."""
        self.remember((), now)
        if self.config.answer == 'box' and self.box.decoy in listening_ports():
            self.load(now)

    def adopt(self, now):
        """Takes over the openings that an earlier daemon left in the kernel."""
        for version in FAMILIES:
            try:
                listed = run(['nft', '-j', 'list', 'set', 'inet', 'knockd', 'open%d' % version])
            except KnockError:
                continue        # no such table yet
            for element in [element['elem'] for entry in json.loads(listed)['nftables']
                            for element in entry.get('set', {}).get('elem', ())]:
                source, protocol, port = element['val']['concat']
                self.remember([Opening(
                    element.get('comment', ''), ipaddress.ip_address(source), PROTOCOLS[protocol],
                    port, now.mono + element['expires'] * 1000)], now)

    def remember(self, openings, now):
        self.openings = {key: opening for key, opening in self.openings.items()
                         if opening.expires > now.mono}
        self.openings.update((opening[1:4], opening) for opening in openings)

    def open(self, openings, now):
        """A knock extends an opening, it never shortens or doubles it."""
        self.remember((), now)
        longest = [max(opening, self.openings.get(opening[1:4], opening),
                       key=lambda each: each.expires)._replace(client=opening.client)
                   for opening in openings]
        text = nft_open(longest, self.openings, now)
        self.remember(longest, now)
        self.apply(text, now)

    def close(self, openings, now):
        for opening in openings:
            self.openings.pop(opening[1:4], None)
        if openings:
            self.apply(nft_close(openings), now)

    def apply(self, text, now):
        try:
            run(['nft', '-f', '-'], text)
        except KnockError:      # somebody took the table away: put it back, this change included
            self.load(now)

    def chosen(self, knock):
        """The openings that a knock's `close` means: its own, from its own address."""
        return [opening for opening in self.openings.values()
                if (opening.client, opening.source) == (knock.client.name, knock.source) and
                (not knock.services or
                 covered(Service(opening.proto, opening.port, opening.port), knock.services))]


def all_connections():
    """Of both families; a kernel without IPv6 has no tcp6."""
    paths = ['/proc/net/tcp', '/proc/net/tcp6']
    return [connection for path in paths if os.path.exists(path)
            for connection in parse_connections(read_file(path))]


def listening_ports():
    return {entry[2] for entry in all_connections() if entry[3] == TCP_LISTEN}


def attach_filter(sock, program):
    """SO_ATTACH_FILTER with a struct sock_fprog { u16 len; struct sock_filter *filter; }."""
    code = array.array('B', b''.join(struct.pack('HBBI', *line) for line in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                    struct.pack('HL', len(program), code.buffer_info()[0]))


def packet_socket(protocol):
    """Every interface, from the IP header on, nothing of what this box sends."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
    except PermissionError:
        raise KnockError('raw sockets are not permitted; run it as root (CAP_NET_RAW)')
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:     # in a container; net.core.rmem_max is the limit then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return sock


class Capture:
    """Pairs of packet sockets, each with the filter for its share of the tags."""

    def __init__(self):
        self.pairs, self.capacity, self.told = [], FILTER_TAGS, None

    def load(self, tags, carriers, port):
        """Attaches filters for these tags; coarser ones where the kernel lacks the memory."""
        tokens = {int.from_bytes(tag[:4], 'big') for tag in tags}
        while True:
            shares = token_shares(tokens, self.capacity)
            try:
                self.attach(shares, carriers, port)
            except OSError as error:
                if error.errno != errno.ENOMEM or shares == [None]:
                    raise
                self.capacity //= 2
                continue
            return self.tell(shares)

    def tell(self, shares):
        """Says it once when the filter is not what it should be."""
        said = 'coarse: lengths only' if shares == [None] else \
            'smaller: %d tags a socket' % self.capacity if self.capacity < FILTER_TAGS else None
        if said != self.told:
            log('filter %s (%s)' % (said or 'whole again', 'net.core.optmem_max is the limit'), 5)
        self.told = said

    def attach(self, shares, carriers, port):
        while len(self.pairs) < len(shares):
            self.pairs.append([(4, packet_socket(ETH_P_IP)), (6, packet_socket(ETH_P_IPV6))])
        while len(self.pairs) > len(shares):
            for _, sock in self.pairs.pop():
                sock.close()
        for pair, share in zip(self.pairs, shares):
            for version, sock in pair:
                attach_filter(sock, datagram_filter(version, carriers, port, share))

    def sockets(self):
        return {sock.fileno(): (version, sock) for pair in self.pairs for version, sock in pair}


def token_shares(tokens, capacity):
    """The tokens of each socket pair; [None] if they are more than all pairs hold.

    By remainder, so that a token stays where it is when others come and go: no gap at a swap."""
    count = max(1, -(-len(tokens) // max(1, capacity)))
    if count > SOCKET_PAIRS:
        return [None]
    return [[token for token in tokens if token % count == share] for share in range(count)]


def receive(sock, limit=256):
    """The frames that wait in a packet socket, up to a limit."""
    for _ in range(limit):
        try:
            yield sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:        # ENETDOWN: an interface went away, the others did not
            if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.EINTR):
                raise


# --- daemon: waits, reads, asks the judge, honours what he decides ------------------------------
class Daemon:
    """One process, one thread; it holds the ledger's lock, the sockets and what is open."""

    def __init__(self, config, verbose=False):
        self.config, self.verbose = config, verbose
        self.file = LedgerFile(config.ledger)
        self.capture, self.firewall = Capture(), Firewall(config)
        self.muted, self.unmute, self.stopping = set(), None, False
        self.refusals = {}      # (client, kind of reason): [mono of the last line, count since]
        self.stamp = self.offset = self.steps = self.state = self.lost = None

    def start(self):
        self.file.take()
        now = moment()
        self.stamp = config_stamp(self.config.path)
        ledger, self.lost = open_ledger(self.file, self.config, now)
        self.state = State(self.config, ledger)
        self.firewall.adopt(now)
        self.firewall.load(now)
        self.offset = now.wall - now.mono
        self.turn(now)
        self.file.keep_ballast()
        log(ready_line(self.config, self.firewall.box))

    def loop(self, signals):
        """Until told to stop."""
        self.start()
        while not self.stopping:
            poll = select.poll()
            poll.register(signals, select.POLLIN)
            sockets = self.capture.sockets()
            for descriptor in sockets:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(self.patience(moment())):
                if descriptor == signals:
                    self.heed(os.read(signals, 64))
                elif descriptor in sockets:
                    self.read(*sockets[descriptor])
            self.watch(moment())
        log('stopped; what is hidden stays hidden, until you type: nft delete table inet knockd')

    def patience(self, now):
        """Milliseconds until the next step begins, or a muted tag may be heard again."""
        step = STEP - (now.wall + self.config.window) % STEP
        return min(step, max(0, self.unmute - now.mono) if self.unmute else step) + 1

    def heed(self, numbers):
        for number in numbers:
            if number == signal.SIGHUP:
                self.reload(moment())
            else:
                self.stopping = True

    def watch(self, now):
        """What every wake-up looks at: mutes, the step, the clock, the config."""
        jump = now.wall - now.mono - self.offset
        self.offset += jump
        if jump > 1000 and self.lost:
            self.state.ledger.quarantine(now.wall, self.config.window)
            self.save('the clock went forward')
        if self.unmute is not None and now.mono >= self.unmute:
            self.muted, self.unmute = set(), None
            self.listen()
        if window_steps(now.wall, self.config.window) != self.steps:
            if config_stamp(self.config.path) != self.stamp:
                self.reload(now)
            self.turn(now)
            self.firewall.tend(now)
            self.file.keep_ballast()

    def turn(self, now):
        """A new step: other tags."""
        self.steps = window_steps(now.wall, self.config.window)
        self.state.tags = valid_tags(self.config, now.wall)
        self.muted &= set(self.state.tags)
        self.listen()

    def listen(self):
        self.capture.load(set(self.state.tags) - self.muted, self.config.carriers,
                          self.config.port)

    def reload(self, now):
        """A bad config is reported and the old one stays in force."""
        self.stamp = config_stamp(self.config.path)
        try:
            config = read_config(self.config.path)
            if (config.id, config.ledger) != (self.config.id, self.config.ledger):
                raise KnockError('%s: id and ledger change only with a restart' % config.path)
            revoked = [opening for opening in self.firewall.openings.values()
                       if not still_allowed(opening, config)]
            self.firewall.replace(config, revoked, now)
        except KnockError as error:
            for line in str(error).splitlines():
                log('config refused, the old one stays: %s' % line, 4)
            return
        self.config = self.state.config = config
        self.turn(now)
        log('config reloaded: %s' % count(len(config.clients), 'client'))

    def read(self, version, sock):
        """Every waiting frame; one that breaks us is told of and does not stop us."""
        for frame in receive(sock):
            try:
                packet = parse_packet(version, frame, self.config.carriers, self.config.port)
                if packet is not None:
                    self.handle(packet, moment())
            except Exception as error:          # a defect of ours must not be a way to stop us
                log('internal error: %s: %s' % (type(error).__name__, error), 3)

    def handle(self, packet, now):
        decision = judge(packet, now, self.state)
        if decision.verdict == 'mute':
            self.muted.add(packet.payload[:TAG_SIZE])
            self.unmute = (now.mono // 1000 + 1) * 1000
            self.listen()
        elif decision.verdict == 'refused':
            self.refuse(decision.knock, decision.reason, now)
        elif decision.verdict in ('open', 'close'):
            self.honour(decision, now)

    def honour(self, decision, now):
        """Ledger recorded, on disk, firewall, log: in this order, or not at all."""
        knock, state = decision.knock, self.state
        state.honoured = {known: seen for known, seen in state.honoured.items()
                          if now.mono - seen[1] <= COPY_TIME}
        state.ledger.record(knock.client.fingerprint, knock.knock_id, knock.request.time,
                            self.config.window)
        if not self.save('refused %s %s' % (knock.client.name, knock.source)):
            return
        state.honoured[knock.knock_id] = (knock.source, now.mono)
        try:
            if decision.verdict == 'open':
                self.firewall.open(openings_of(knock, now), now)
            else:
                self.firewall.close(self.firewall.chosen(knock), now)
        except KnockError as error:
            log('firewall: %s' % error, 3)
            return
        log(honour_line(decision, now, moment()))

    def save(self, consequence):
        """The ledger to disk; False, and one line, if it cannot be."""
        try:
            self.file.save(self.state.ledger)
        except OSError as error:
            log('%s: the ledger cannot be written: %s: %s'
                % (consequence, self.file.path, error.strerror), 3)
            return False
        return True

    def refuse(self, knock, reason, now):
        """The same client and reason once a minute, the rest counted."""
        kind = (knock.client.name, reason.split()[0])
        last, more = self.refusals.get(kind, (None, 0))
        if last is not None and now.mono - last < 60000:
            self.refusals[kind] = (last, more + 1)
            return
        self.refusals[kind] = (now.mono, 0)
        log('refused %s %s %s%s' % (knock.client.name, knock.source, reason,
                                    ' (%d more before)' % more if more else ''), 5)


def config_stamp(path):
    """Changes when the file does; None while it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def count(number, what):
    return '%d %s%s' % (number, what, '' if number == 1 else 's')


def openings_of(knock, now):
    """One opening a port."""
    expires = now.mono + knock.seconds * 1000
    return [Opening(knock.client.name, knock.source, service.proto, port, expires)
            for service in knock.services for port in range(service.low, service.high + 1)]


def still_allowed(opening, config):
    client = config.clients.get(opening.client)
    return client is not None and covered(
        Service(opening.proto, opening.port, opening.port), client.allow)


def ready_line(config, box):
    answer = ' via decoy %d' % box.decoy if config.answer == 'box' else ''
    return 'ready: hiding %s; %s; nft; answer %s%s' % (
        format_services(config.hide), count(len(config.clients), 'client'), config.answer, answer)


def honour_line(decision, began, ended):
    """open laptop 203.0.113.5 tcp/22 30s udp skew +0.3s 3ms"""
    knock = decision.knock
    length = ' %ds' % knock.seconds if decision.verdict == 'open' else ''
    return '%s %s %s %s%s %s skew %+.1fs %dms' % (
        decision.verdict, knock.client.name, knock.source,
        format_services(knock.services) or 'all', length, knock.carrier,
        (knock.request.time - began.wall) / 1000, ended.mono - began.mono)


# --- administration: one function a command ------------------------------------------------------
def signal_pipe():
    """A descriptor on which the numbers of caught signals arrive."""
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader


def go_lean():
    """Compiling this file leaves 5 MB of garbage that CPython never gives back: the daemon goes on
    in a fresh interpreter, same process, that only loads the compiled code."""
    if __name__ != '__main__' or '__file__' not in globals() or sys.version_info < (3, 8):
        return
    import marshal
    code = marshal.dumps(compile(read_file(__file__), __file__, 'exec'))
    memory = os.memfd_create('knockd.py', 0)
    os.write(memory, code)
    flags = ['-I'] * sys.flags.isolated + ['-S'] * sys.flags.no_site
    os.execv(sys.executable, [sys.executable] + flags + [
        '-c', 'import marshal, os; code = os.pread(%d, %d, 0); os.close(%d); '
        'exec(marshal.loads(code))' % (memory, len(code), memory)
    ] + sys.argv[1:])


def first_config(path, hide, name, host):
    """The first config and an empty ledger: nothing of this server's id can be spent yet."""
    hidden = parse_services(hide)
    server = [('id', os.urandom(8).hex()), ('hide', format_services(hidden))]
    server += [('host', read_host(host))] if host else []
    text = with_section('', 'server', server)
    text = with_section(text, 'client ' + read_name(name), new_client())
    config = parse_config(text, os.path.abspath(path))
    file = LedgerFile(config.ledger)
    file.take()
    try:
        os.makedirs(os.path.dirname(config.path), 0o700, exist_ok=True)
        file.save(Ledger.empty(config.id))
        replace_file(config.path, text.encode('utf-8'))
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror))
    os.close(file.lock)


def new_client():
    return [('secret', encode_secret(os.urandom(32)))]


def guess_host():
    """The address that this box would use towards the world; connecting UDP sends nothing."""
    for family, target in ((socket.AF_INET, '192.0.2.1'), (socket.AF_INET6, '2001:db8::1')):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 9))
                return sock.getsockname()[0]
        except OSError:
            continue
    return socket.gethostname()


def client_line(config, client):
    """The client's knock:// line."""
    return format_uri(Address(client.name, client.secret, config.host or guess_host(), config.port,
                              config.id, 'udp', client.default, False))


def edit_config(path, text):
    """Writes a changed config, if it is a good one, and wakes the daemon."""
    config = parse_config(text, os.path.abspath(path))
    try:
        replace_file(config.path, text.encode('utf-8', 'surrogateescape'))
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror))
    wake_daemon(config)
    return config


def wake_daemon(config):
    """SIGHUP to whoever holds the ledger's lock, if anybody does."""
    try:
        with open(config.ledger + '.lock') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.kill(int(file.read()), signal.SIGHUP)
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            raise KnockError('written, but the daemon could not be told: %s; it looks for itself '
                             'within 30 s' % error)


def find_client(config, name):
    if name not in config.clients:
        raise KnockError('there is no client %r in %s; there are: %s'
                         % (name, config.path, ', '.join(config.clients) or 'none'))
    return config.clients[name]


def command_run(args):
    go_lean()
    if not os.path.exists(args.config):
        if not (args.hide and args.client):
            raise KnockError('%s is not there; for a first try type: knockd.py run --hide tcp/22 '
                             '--client NAME' % args.config, 2)
        if find_program('nft') is None:
            raise missing('nft', 'nftables')
        first_config(args.config, args.hide, args.client, args.host)
        config = read_config(args.config)
        print(client_line(config, config.clients[args.client]), flush=True)
    elif args.hide or args.client:
        log('%s is there already: --hide and --client are not needed' % args.config)
    Daemon(read_config(args.config), args.verbose).loop(signal_pipe())


def command_check(args):
    read_config(args.config)
    print('configuration OK')


def command_rules(args):
    config = read_config(args.config)
    firewall, now = Firewall(config), moment()
    firewall.look()
    print(firewall.text(now) + firewall.accepts(), end='')


def command_add(args):
    if NAME.match(args.name) is None:
        raise KnockError('%r is not a name: 1 to 64 of A-Z a-z 0-9 . _ -' % args.name, 2)
    if not os.path.exists(args.config):
        if not args.allow:
            raise KnockError('%s is not there; --allow tcp/22 would make it' % args.config, 2)
        first_config(args.config, args.allow, args.name, args.host)
        config = read_config(args.config)
    else:
        config = read_config(args.config)
        if args.name in config.clients:
            raise KnockError('there is a client %s already; remove it first' % args.name)
        config = edit_config(args.config, with_section(
            read_file(args.config), 'client ' + args.name, new_client() + client_options(args)))
    print(client_line(config, config.clients[args.name]))


def client_options(args):
    """The entries of a client's section out of the options of `add`."""
    options = [('allow', args.allow), ('default', args.default), ('expires', args.expires),
               ('open_for', args.seconds)]
    return [(key, text) for key, text in options if text]


def command_show(args):
    config = read_config(args.config)
    print(client_line(config, find_client(config, args.name)))


def command_list(args):
    """A line a client: name, what it may open, until when it may, when it last did."""
    config = read_config(args.config)
    try:
        ledger = LedgerFile(config.ledger).load(config.id)
    except (OSError, ValueError, KnockError):
        ledger = Ledger.empty(config.id)
    rows = [('CLIENT', 'ALLOW', 'EXPIRES', 'LAST KNOCK')]
    for client in config.clients.values():
        spent = ledger.keys.get(client.fingerprint, {}).get('spent', {})
        rows.append((client.name, format_services(client.allow), day(client.expires),
                     day(max(spent.values())) if spent else 'never'))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def day(time_ms):
    return 'never' if time_ms is None else \
        time.strftime('%Y-%m-%d %H:%M', time.gmtime(time_ms // 1000))


def command_remove(args):
    config = read_config(args.config)
    find_client(config, args.name)
    edit_config(args.config, without_section(read_file(args.config), 'client ' + args.name))
    print('removed %s' % args.name)


# --- command line --------------------------------------------------------------------------------
def option(*names, **settings):
    return names, settings


CLIENT_NAME = option('name', metavar='NAME')
COMMANDS = (    # name, function, what it does, its arguments
    ('run', command_run, 'guard the ports, in the foreground; without a config, --hide and '
     '--client make one', [
         option('--hide', metavar='SERVICES', help='for a first try: what to hide, as tcp/22'),
         option('--client', metavar='NAME', help='for a first try: the first client'),
         option('--host', metavar='HOST', help='what clients call this server'),
         option('-v', '--verbose', action='store_true', help='say more')]),
    ('check', command_check, 'read the config and say all that is wrong with it', []),
    ('rules', command_rules, 'print exactly what would be given to nft', []),
    ('add', command_add, 'make a client and print its knock:// line', [
        CLIENT_NAME,
        option('--allow', metavar='SERVICES', help='what it may open; otherwise all that is '
               'hidden'),
        option('--default', metavar='SERVICES', help='what a knock opens that names nothing'),
        option('--expires', metavar='DATE', help='2027-01-31, to the end of that day (UTC)'),
        option('--for', dest='seconds', metavar='TIME', help='how long it opens: 30s, 5m'),
        option('--host', metavar='HOST', help='for the very first: what clients call this server')
    ]),
    ('show', command_show, "print a client's knock:// line again", [CLIENT_NAME]),
    ('list', command_list, 'all clients, and when each last knocked', []),
    ('remove', command_remove, 'revoke a client, at once', [CLIENT_NAME]),
)


def command_line():
    parser = argparse.ArgumentParser(
        prog='knockd.py', description='Hides services until an authentic knock arrives.',
        epilog='First try:  knockd.py run --hide tcp/22 --client laptop')
    parser.add_argument('--config', metavar='FILE', help='default: %(default)s',
                        default=os.environ.get('KNOCKD_CONFIG', '/etc/knockd/knockd.ini'))
    parser.add_argument('--version', action='version', version='knockd.py ' + __version__)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name, function, description, options in COMMANDS:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(function=function)
        for names, settings in options:
            command.add_argument(*names, **settings)
    return parser


def main(argv=None):
    parser = command_line()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_usage(sys.stderr)
        return 2
    try:
        args.function(args)
    except KnockError as error:
        for line in str(error).splitlines():
            print('knockd: ' + printable(line), file=sys.stderr)
        return error.status
    return 0


if __name__ == '__main__':
    sys.exit(main())
