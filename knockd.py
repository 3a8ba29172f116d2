#!/usr/bin/env python3
"""knockd.py hides services behind the firewall until an authentic knock arrives.

Every client has a key. For each 30-second step it yields an 8-byte tag that only its
owner and this server can compute. The tags that are valid right now are compiled into a
filter inside the kernel, so a stranger's packet never reaches this program; a client's
single UDP packet does, is checked, written to the ledger so that it can never be used
again, and opens the asked ports for the client's address alone. The kernel closes them by
its own clock.

    knockd.py run --hide tcp/22 --client laptop       first try: prints the client's line
    knockd.py install --hide tcp/22 --client laptop   for good; --dry-run: all it would do

Read it from top to bottom: up to "edges" everything takes values and returns values.
Whoever reviews it for security starts with judge(). What it does not do: README.md.
"""
import sys

if __name__ == '__main__':
    # Only Python's own library is imported from. In the current folder, in this file's
    # folder and where PYTHONPATH points, others may have put a module of any name that is
    # used below.
    library = sys.base_prefix + ('' if sys.platform == 'win32' else '/lib')
    sys.path = [folder for folder in sys.path if folder.startswith(library)]

import array
import binascii
import configparser
import contextlib
import errno
import fcntl
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
import types

__version__ = '0.1.0'

# --- shared with knock.py: the protocol knock/1, the same bytes in both files -----------
# tests/unit/test_static.py compares them: edit here, copy there. All integers on the wire
# are big-endian, all times integer milliseconds since 1970. Nothing here touches the
# world.
import collections
import hashlib
import hmac
import ipaddress
import operator
import re
import struct

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

def hmac_sha256(key, message):
    """RFC 2104 with SHA-256: 32 bytes."""
    return hmac.new(key, message, hashlib.sha256).digest()

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
    if not hmac.compare_digest(mac, datagram[-MAC_SIZE:]):
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
    mac = hmac.new(key, be64(counter), hashlib.sha1).digest()
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
    """A list with commas; empty text is an empty list, a repeat counts once."""
    if not text.strip():
        return ()
    services = map(parse_service, text.split(','))
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

# --- values: what the sections below hand to each other ---------------------------------
# wall: ms since 1970; mono: ms since boot.
Moment = collections.namedtuple('Moment', 'wall mono')

# An IP packet. source, destination: 4 or 16 bytes; protocol: the IANA number; body: the
# bytes behind the header, up to where the header says that the packet ends.
IpPacket = collections.namedtuple('IpPacket', 'source destination protocol body')
# carrier: one of CARRIERS; source: an address; payload: a datagram's bytes, or a
# Credential.
Packet = collections.namedtuple('Packet', 'carrier source payload')
# source, destination: addresses; port: where to; badge: ten bytes, perhaps of
# syn_badge().
Syn = collections.namedtuple('Syn', 'source destination port badge')
# What authenticates without a datagram: a badge, a finished sequence, a code. step: T of
# the tag, 0 on paper; paper: (sheet, number) or None; ports: the sequence, in its order.
Credential = collections.namedtuple('Credential', 'client carrier step paper ports')

# client: a Client; source: an address; knock_id: text; step: T; paper: (sheet, number) or
# None; request: a Request; services: (Service, ...); seconds: how long it shall be open.
Knock = collections.namedtuple(
    'Knock', 'client carrier source knock_id step paper request services seconds')
# What judge() says. verdict: junk, mute, copy, refused, open, close or run; reason: text
# or None; knock: a Knock or None.
Decision = collections.namedtuple('Decision', 'verdict reason knock')
JUNK = Decision('junk', None, None)
MUTE = Decision('mute', None, None)

# Fingerprint, source and service are an opening's key: two clients at one address have
# one each. fingerprint: 16 hex digits of the client's key; client: its name; source: an
# ip_network; service: a Service, a range stays one; once: for one connection alone, a
# bool; expires: ms since boot.
Opening = collections.namedtuple(
    'Opening', 'fingerprint client source service once expires')
# An opening of 0.1's firewall code, one for each port.
PortOpening = collections.namedtuple(
    'PortOpening', 'client source proto port once expires')

# Something in the config that is wrong or cannot work. key: None for the section as a
# whole.
Complaint = collections.namedtuple('Complaint', 'section key text')
# What warnings() must know of the box. wall: ms since 1970; interfaces: names; programs:
# those of named_programs() that can be run; chains: (family, table, chain) each, or None
# if no tool lists them; ledger_folder: is it there?
Facts = collections.namedtuple('Facts', 'wall interfaces programs chains ledger_folder')

# --- config: text in, a Config or all that is wrong with it out -------------------------
MONTH = 31 * 86400              # seconds
NEVER = 1 << 62                 # ms, later than any clock says
DECOYS = 1000                   # hidden TCP ports that can have one

def matching(pattern, form, convert=str):
    """A reader of texts that match; convert raises ValueError for what the pattern lets
    by."""
    def read(text):
        refusal = KnockError('%.60r is not %s' % (text, form), 2)
        if not re.fullmatch(pattern, text, re.ASCII):
            raise refusal
        try:
            return convert(text)
        except ValueError:
            raise refusal
    return read

def read_all(read, texts):
    """Each text as read() has it, a repeat left out; KnockError with a line for each that
    is wrong, so that nobody mends them one by one."""
    values = collections.OrderedDict()
    problems = collections.OrderedDict()
    for text in texts:
        try:
            values[read(text)] = True
        except KnockError as error:
            problems[str(error)] = True
    if problems:
        raise KnockError('\n'.join(problems), 2)
    return tuple(values)

def listing(read):
    """A reader of such texts with commas between them; a comma too many is forgiven."""
    def read_list(text):
        parts = [part.strip() for part in text.split(',')]
        return read_all(read, filter(None, parts))
    return read_list

def service_list(text):
    """As parse_services(), but all that are wrong at once."""
    if not text.strip():
        return ()
    return read_all(parse_service, text.split(','))

def choice(*names):
    """A reader of one of these names."""
    return matching('|'.join(names), 'one of: ' + ', '.join(names))

def milliseconds(low, high):
    """A reader of times from low to high seconds."""
    def read(text):
        seconds = parse_seconds(text)
        if not low <= seconds <= high:
            raise KnockError('%r is not from %d to %d seconds' % (text, low, high), 2)
        return seconds * 1000
    return read

def calendar():
    """The module datetime, late: most configs name no date. Its arithmetic does not end
    in 2038 where the time of the C library does."""
    import datetime
    return datetime

def read_expiry(text):
    """2027-01-31 (to the end of that day) or 2027-01-31 18:00, both UTC, as
    milliseconds."""
    datetime = calendar().datetime
    numbers = [int(part) for part in re.findall(r'\d+', text)]
    seconds = (datetime(*numbers) - datetime(1970, 1, 1)).total_seconds()
    if ':' not in text:
        seconds += 86400
    return int(seconds) * 1000

def format_time(time):
    """2027-01-31 18:00, UTC, of milliseconds since 1970; a year beyond 9999 is
    'never'."""
    datetime = calendar()
    try:
        when = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=time)
    except OverflowError:
        return 'never'
    return when.isoformat(' ')[:16]

def read_words(text):
    """An argument list in the quoting of a shell; no shell ever sees it."""
    import shlex                # late: few configs have one
    return shlex.split(text)

def read_port(text):
    """1 to 65535."""
    if int(text) > 65535:
        raise ValueError(text)
    return int(text)

def read_bit(text):
    """A mark with one bit of 32 set."""
    mark = int(text, 16)
    if mark == 0 or mark & (mark - 1) or mark >= 1 << 32:
        raise ValueError(text)
    return mark

def read_sheet(text):
    """(number of the sheet, how many knocks are on it)"""
    sheet, count = text.split(':')
    return int(sheet), int(count)

def read_ssh_key(text):
    """Type and key, without the comment."""
    kind, key = text.split()[:2]
    return kind + ' ' + key

def read_secret(text):
    """32 bytes of chance: of the 52 characters of such a text some 26 are different."""
    letters = set(text) - set(' -')
    if 0 < len(letters) < 5:
        raise KnockError('a placeholder, not a secret; '
                         'make one with: knockd.py add NAME', 2)
    return decode_secret(text)

def read_host(text):
    """A name or an address; one that begins with '-' would be an option to ssh or nc."""
    if text.startswith('-'):
        raise ValueError(text)
    return text

# What no router passes on: unspecified, loopback, IPv4 inside IPv6, multicast.
NOT_BEHIND = tuple(map(ipaddress.ip_network, (
    '0.0.0.0/32', '127.0.0.0/8', '224.0.0.0/4',
    '::/127', '::ffff:0.0.0.0/96', 'ff00::/8')))

def read_network(text):
    """An ip_network of addresses that can be behind this box."""
    network = ipaddress.ip_network(text)
    for other in NOT_BEHIND:
        if other.version == network.version and other.overlaps(network):
            raise ValueError(text)
    return network

YES_NO = configparser.RawConfigParser.BOOLEAN_STATES
yes_or_no = matching('(?i:%s)' % '|'.join(YES_NO), 'yes or no',
                     lambda text: YES_NO[text.lower()])
name_of_server = matching(NAME.pattern, '1 to 64 of A-Z a-z 0-9 . _ -')
name_of_action = matching(ACTION.pattern, '1 to 32 of a-z 0-9 _ -')
absolute_path = matching('/.+', 'an absolute path')
absolute_command = matching('/.+', 'a command that begins with an absolute path',
                            read_words)
port_number = matching('[1-9][0-9]{0,4}', 'a port from 1 to 65535', read_port)
one_bit = matching('0[xX][0-9A-Fa-f]{1,8}',
                   'one bit; write for example 0x40000000', read_bit)
host_name = matching('[A-Za-z0-9.:_-]{1,255}', 'a host name or an address', read_host)
interface_name = matching('[A-Za-z0-9._@:+-]{1,15}', 'the name of an interface')
# auto, or a family, a table and a chain with one space between them.
chain_name = matching('auto|(inet|ip|ip6)( [A-Za-z][A-Za-z0-9_.-]{0,127}){2}',
                      'auto or a chain; write for example inet filter input',
                      lambda text: tuple(text.split(' ')))
network_behind = matching('[0-9A-Fa-f.:]+(/[0-9]+)?', 'a network behind this box; '
                          'write for example 2001:db8:1::/64', read_network)
address_behind = matching('[0-9A-Fa-f.:]+', 'an address', ipaddress.ip_address)
expiry_date = matching(r'\d{4}-\d\d-\d\d( \d\d:\d\d)?',
                       'a date; write 2027-01-31 or 2027-01-31 18:00', read_expiry)
# A number below 2^32 that begins with no zero, a colon, and 1 to 999.
paper_sheet = matching('([1-3][0-9]{9}|[1-9][0-9]{0,8}):[1-9][0-9]{0,2}',
                       'SHEET:COUNT of 1 to 999 knocks', read_sheet)
# The key's type, its base64, which begins with the length of a short text, and a comment.
public_key = matching(r'[a-z0-9@.-]+ AAAA[A-Za-z0-9+/]+=*(\s.*)?',
                      'an OpenSSH public key', read_ssh_key)
prefix_length4 = matching('[89]|[12][0-9]|3[0-2]', 'a length from 8 to 32', int)
prefix_length6 = matching('3[2-9]|[4-9][0-9]|1[01][0-9]|12[0-8]',
                          'a length from 32 to 128', int)

# read: text in, value out; default: the value if the key is not there; advice: what to
# write, if it must be there.
Key = collections.namedtuple('Key', 'read default advice')

def optional(read, default=None):
    """A key that may be missing."""
    return Key(read, default, None)

SERVER_KEYS = {
    'id': Key(name_of_server, None, 'any name that no other server of yours has'),
    'hide': Key(service_list, (), 'write for example: hide = tcp/22'),
    'answer': optional(choice('box', 'drop', 'reset', 'prohibited'), 'box'),
    'window': optional(milliseconds(1, 600), 60000),
    'open_for': optional(milliseconds(1, MONTH), 30000),
    'max_open_for': optional(milliseconds(1, MONTH), 3600000),
    'carriers': optional(listing(choice('udp', 'icmp', 'syn', 'ports', 'code')),
                         ('udp', 'icmp', 'ports')),
    'port': optional(port_number),
    'firewall': optional(choice('auto', 'nft', 'iptables'), 'auto'),
    'accept_in': optional(listing(chain_name), (('auto',),)),
    'trust': optional(listing(interface_name), ()),
    'behind': optional(listing(network_behind), ()),
    'mark': optional(one_bit, 0x40000000),
    'ledger': optional(absolute_path),
    'host': optional(host_name),
    'on_open': optional(absolute_command, ()),
    'on_close': optional(absolute_command, ()),
}
CLIENT_KEYS = {
    'secret': Key(read_secret, None, 'make one with: knockd.py add NAME'),
    'allow': optional(service_list),
    'default': optional(service_list),
    'only': optional(listing(address_behind), ()),
    'open_for': optional(milliseconds(1, MONTH)),
    'once': optional(yes_or_no, False),
    'require_source': optional(yes_or_no, False),
    'any_source': optional(yes_or_no, False),
    'expires': optional(expiry_date, NEVER),
    'code': optional(yes_or_no, False),
    'paper': optional(paper_sheet),
    'ssh_key': optional(public_key),
    'may_run': optional(listing(name_of_action), ()),
    'prefix4': optional(prefix_length4, 32),
    'prefix6': optional(prefix_length6, 128),
}
ACTION_KEYS = {'run': Key(absolute_command, (), 'write for example: run = /sbin/reboot')}

# actions: {name: argument list}; clients: {name: Client}; the rest as the tables above
# say, times in milliseconds.
Config = collections.namedtuple('Config', ['path', *SERVER_KEYS, 'clients', 'actions'])
Client = collections.namedtuple('Client', ['name', 'keys', 'fingerprint', *CLIENT_KEYS])

def ini_sections(text, path):
    """{section: {key: text}} of an INI file; KnockError where it is not one."""
    ini = configparser.RawConfigParser(
        delimiters=('=',), comment_prefixes=('#', ';'), default_section='\0')
    try:
        ini.read_string(text, path)
    except configparser.Error as error:
        raise KnockError(' '.join(str(error).split()), 2)
    sections = collections.OrderedDict()
    for name in ini.sections():
        sections[name] = dict(ini.items(name))
    return sections

def read_section(section, keys, entries, complaints):
    """{key: value} of one section by its table of keys; appends what is wrong."""
    values = {}
    for name, key in keys.items():
        values[name] = key.default
    for name, text in entries.items():
        if name not in keys:
            known = 'unknown key; known are ' + ', '.join(keys)
            complaints.append(Complaint(section, name, known))
            continue
        try:
            values[name] = keys[name].read(text.strip())
        except KnockError as error:
            for line in str(error).splitlines():
                complaints.append(Complaint(section, name, line))
    for name, key in keys.items():
        if key.advice and name not in entries:
            complaints.append(Complaint(section, name, 'missing; ' + key.advice))
    return values

def merged(services):
    """The same ports in ranges that neither overlap nor touch: nft refuses an overlap."""
    ranges = []
    for service in sorted(services):
        last = ranges[-1] if ranges else None
        if last and last.proto == service.proto and service.low <= last.high + 1:
            high = max(last.high, service.high)
            ranges[-1] = last._replace(high=high)
        else:
            ranges.append(service)
    return ranges

def covered(wanted, allowed):
    """Is this service inside one of those?"""
    for service in allowed:
        if wanted.proto != service.proto:
            continue
        if service.low <= wanted.low and wanted.high <= service.high:
            return True
    return False

def complain_beyond(section, key, services, outer, outer_key, complaints):
    """Appends each service that is in none of the outer ones."""
    # Where those are wrong or missing that is told already.
    if not outer:
        return
    for service in services:
        if not covered(service, outer):
            text = '%s is not in %s; add it there' % (format_service(service), outer_key)
            complaints.append(Complaint(section, key, text))

def read_client(section, name, entries, server, complaints):
    """A Client from its section; allow is all that is hidden, default all that is
    allowed."""
    values = read_section(section, CLIENT_KEYS, entries, complaints)
    if values['allow'] is None:
        values['allow'] = server['hide']
    if values['default'] is None:
        values['default'] = values['allow']
    complain_beyond(section, 'allow', values['allow'], server['hide'], 'hide', complaints)
    complain_beyond(
        section, 'default', values['default'], values['allow'], 'allow', complaints)
    for address in values['only']:
        if not any(address in network for network in server['behind']):
            text = '%s is not in behind; add its network there' % address
            complaints.append(Complaint(section, 'only', text))
    # Without a secret or an id, which was complained of, they are nobody's keys.
    keys = derive_keys(values['secret'] or b'', server['id'] or '')
    return Client(name=name, keys=keys, fingerprint=fingerprint(keys), **values)

def read_server(entries, complaints):
    """{key: value} of [server]."""
    server = read_section('server', SERVER_KEYS, entries, complaints)
    ports = 0
    for service in merged(server['hide']):
        if service.proto == PROTOCOLS['tcp']:
            ports += service.high - service.low + 1
    if server['answer'] == 'box' and ports > DECOYS:
        text = ('%d TCP ports are more than the %d that answer = box can have; '
                'write answer = drop' % (ports, DECOYS))
        complaints.append(Complaint('server', 'hide', text))
    if server['open_for'] > server['max_open_for']:
        complaints.append(Complaint('server', 'open_for', 'longer than max_open_for'))
    return server

def complain_shared(clients, complaints):
    """Appends each client whose secret another one has: the server could not tell them
    apart."""
    owners = {}
    for client in clients.values():
        owner = owners.setdefault(client.secret, client.name)
        if client.secret and owner != client.name:
            text = 'the same as that of %s' % owner
            complaints.append(Complaint('client ' + client.name, 'secret', text))

def complain_unknown_actions(clients, actions, complaints):
    """Appends each action that a client may run and that is not there."""
    for client in clients.values():
        for name in client.may_run:
            if name not in actions:
                text = 'there is no [action %s]' % name
                complaints.append(Complaint('client ' + client.name, 'may_run', text))

def complaint_line(path, complaint):
    """PATH: [SECTION] KEY: what is wrong"""
    place = '[%s]' % complaint.section
    if complaint.key is not None:
        place += ' ' + complaint.key
    return '%s: %s: %s' % (path, place, complaint.text)

def parse_config(text, path):
    """A Config; or KnockError (status 2) with a line for everything that is wrong."""
    sections = ini_sections(text, path)
    complaints = []
    server = read_server(sections.pop('server', {}), complaints)
    clients = collections.OrderedDict()
    actions = {}
    for section, entries in sections.items():
        kind, _, name = section.partition(' ')
        pattern = {'client': NAME, 'action': ACTION}.get(kind)
        if pattern is None:
            why = 'unknown section; known are [server], [client NAME] and [action NAME]'
            complaints.append(Complaint(section, None, why))
            continue
        if not pattern.match(name):
            why = '%r is no name for it; write a-z 0-9 _ -' % name
            complaints.append(Complaint(section, kind, why))
        if kind == 'client':
            clients[name] = read_client(section, name, entries, server, complaints)
        else:
            actions[name] = read_section(section, ACTION_KEYS, entries, complaints)['run']
    complain_shared(clients, complaints)
    complain_unknown_actions(clients, actions, complaints)
    if complaints:
        lines = [complaint_line(path, complaint) for complaint in complaints]
        raise KnockError('\n'.join(lines), 2)
    folder = path.rpartition('/')[0]
    server['ledger'] = server['ledger'] or folder + '/ledger.json'
    return Config(path=path, clients=clients, actions=actions, **server)

# What is accepted and cannot work: said by `check` and by `run`, each with its cure.

def named_programs(config):
    """The paths of all programs that the config starts, whose presence warnings()
    wants."""
    commands = [config.on_open, config.on_close, *config.actions.values()]
    return {argv[0] for argv in commands if argv}

def usable_carriers(config, client):
    """The carriers by which this client can knock at all."""
    carriers = list(config.carriers)
    if client.paper:
        carriers.append('paper')
    if 'code' in carriers and not client.code:
        carriers.remove('code')
    # Only a datagram has room for a source or a signature.
    if client.require_source or client.ssh_key:
        carriers = [name for name in carriers if name in ('udp', 'icmp')]
    return carriers

def server_warnings(config, facts):
    """Complaints about [server]."""
    found = []
    def warn(key, text):
        found.append(Complaint('server', key, text))
    if not config.hide:
        warn('hide', 'nothing is hidden; write for example: hide = tcp/22')
    if not config.clients:
        warn(None, 'no client, so nobody can knock; make one with: knockd.py add NAME')
    if config.port and 'udp' not in config.carriers:
        warn('port', 'only carrier udp has a port; add udp to carriers')
    codes = [client for client in config.clients.values() if client.code]
    if 'code' in config.carriers and not codes:
        warn('carriers', 'no client has a code; write code = yes in its section')
    for name in config.trust:
        if not is_interface(name, facts.interfaces):
            warn('trust', 'there is no interface %s now; see: ip link' % name)
    for place in config.accept_in:
        if facts.chains is None or place == ('auto',) or place in facts.chains:
            continue
        warn('accept_in', 'there is no chain %s; see: nft list ruleset' % ' '.join(place))
    if not facts.ledger_folder:
        folder = config.ledger.rpartition('/')[0]
        warn('ledger', 'there is no folder {0}; type: mkdir -m 700 {0}'.format(folder))
    for key in ('on_open', 'on_close'):
        argv = getattr(config, key)
        if argv and argv[0] not in facts.programs:
            warn(key, '%s cannot be run; install it or name another' % argv[0])
    return found

def is_interface(name, interfaces):
    """Is there one of this name? lan+ is any that begins with lan."""
    if name.endswith('+'):
        return any(other.startswith(name[:-1]) for other in interfaces)
    return name in interfaces

def client_warnings(config, client, facts):
    """Complaints about one [client NAME]."""
    found = []
    def warn(key, text):
        found.append(Complaint('client ' + client.name, key, text))
    carriers = usable_carriers(config, client)
    if client.expires <= facts.wall:
        day = format_time(client.expires)
        warn('expires', 'over since %s UTC; write a later date or remove it' % day)
    if config.hide and not (client.allow or client.may_run):
        warn('allow', 'empty, so it may open nothing; write for example: allow = %s'
             % format_service(config.hide[0]))
    if client.code and 'code' not in config.carriers:
        warn('code', 'carrier code is off; add code to carriers in [server]')
    for key in ('code', 'paper'):
        if not getattr(client, key):
            continue
        for other in ('require_source', 'ssh_key'):
            if getattr(client, other):
                warn(key, 'has no room for what %s asks for; take one out' % other)
        if client.allow and not client.default:
            warn(key, 'opens the default, which is empty; write for example: default = %s'
                 % format_service(client.allow[0]))
    if not carriers:
        warn(None, 'no carrier is left to it; add udp to carriers in [server]')
    return found

def action_warnings(config, facts):
    """Complaints about every [action NAME]."""
    found = []
    wanted = set()
    for client in config.clients.values():
        wanted.update(client.may_run)
    for name, argv in config.actions.items():
        if argv[0] not in facts.programs:
            text = '%s cannot be run; install it or name another' % argv[0]
            found.append(Complaint('action ' + name, 'run', text))
        if name not in wanted:
            text = 'no client may run it; write may_run = %s in its section' % name
            found.append(Complaint('action ' + name, None, text))
    return found

def warnings(config, facts):
    """[Complaint] for each thing that is accepted and cannot work on this box, now."""
    found = server_warnings(config, facts)
    for client in config.clients.values():
        found += client_warnings(config, client, facts)
    return found + action_warnings(config, facts)

# Editing a section: a walk over the lines, so that comments and order are kept.

# kind: header, key, more (a value goes on), comment or blank; name: of a header or a key.
IniLine = collections.namedtuple('IniLine', 'kind name text')

def ini_lines(text):
    """[IniLine] as configparser takes them; texts without their line feeds."""
    lines = []
    in_value = False
    depth = 0
    for line in text.split('\n'):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        header = configparser.RawConfigParser.SECTCRE.match(bare)
        name = None
        if not bare:
            kind = 'blank'
        elif bare[0] in '#;':
            kind = 'comment'
        elif in_value and indent > depth:
            kind = 'more'
        elif header:
            kind = 'header'
            name = header.group('header')
        else:
            kind = 'key'
            name = bare.partition('=')[0].strip().lower()
        if name is not None:
            in_value = kind == 'key'
            depth = indent
        lines.append(IniLine(kind, name, line))
    return lines

def section_range(lines, section):
    """(first line, line behind the last) of a section with the comments right above it,
    or None; KnockError if it is there twice."""
    headers = [at for at, line in enumerate(lines) if line.kind == 'header']
    starts = [at for at in headers if lines[at].name == section]
    if not starts:
        return None
    if len(starts) > 1:
        raise KnockError('there are two sections [%s]; take one out by hand' % section, 2)
    later = [at for at in headers if at > starts[0]]
    end = len(lines)
    if later:
        end = above_comments(lines, later[0])
    return above_comments(lines, starts[0]), end

def above_comments(lines, at):
    """The first line of the comments right above a header."""
    while at > 0 and lines[at - 1].kind == 'comment':
        at -= 1
    return at

def with_entry(lines, key, entry):
    """The lines of a section with this entry in its old place, or else as the last."""
    places = [at for at, line in enumerate(lines)
              if line.kind == 'key' and line.name == key]
    if not places:
        at = len(lines)
        while lines[at - 1].kind in ('comment', 'blank'):
            at -= 1
        return lines[:at] + [IniLine('key', key, entry)] + lines[at:]
    at = places[0]
    old = lines[at].text
    # Its indentation, or the keys below would be read as its value.
    indent = old[:len(old) - len(old.lstrip())]
    end = at + 1
    while end < len(lines) and lines[end].kind != 'key':
        end += 1
    kept = [line for line in lines[at + 1:end] if line.kind != 'more']
    return lines[:at] + [IniLine('key', key, indent + entry)] + kept + lines[end:]

def edited(text, section, entries):
    """The text with these (key, value) in a section, appended if it is not there; without
    any entry the section goes, with the comments right above it. All else is kept."""
    end_of_line = '\r' if '\r\n' in text else ''
    lines = ini_lines(text)
    found = section_range(lines, section)
    if found is None and not entries:
        return text
    if found is None:
        while lines and lines[-1].kind == 'blank':
            lines.pop()
        if lines:
            lines.append(IniLine('blank', None, end_of_line))
        first = end = len(lines)
        part = [IniLine('header', section, '[%s]%s' % (section, end_of_line))]
    else:
        first, end = found
        part = lines[first:end]
    for key, value in entries:
        part = with_entry(part, key, '%s = %s%s' % (key, value, end_of_line))
    if not entries:
        part = []
    lines[first:end] = part
    whole = '\n'.join(line.text for line in lines)
    return whole.rstrip('\r\n') + end_of_line + '\n'

# --- ledger rules: which knock was honoured already (DESIGN 4) ----------------------------------
SPENT_LIMIT, VOID = 1000, 1 << 32         # ids a key; above every number of a sheet
UNUSED_KEY = {'floor': 0, 'spent': {}, 'paper': [0, 0]}     # ms; {id: ms}; sheet, number

class Ledger:
    """{"knockd": 1, "id": server id, "floor": ms, "keys": {FP: {"floor", "spent", "paper"}}}

    Floors never fall, and an id is forgotten only when its time has fallen below its key's floor:
    so nothing is accepted twice, whatever the clock and the window become."""

    def __init__(self, server_id, floor=0, keys=()):
        self.server_id, self.floor, self.keys = server_id, floor, dict(keys)
        self.texts = {mark: self.key_text(mark) for mark in self.keys}

    def quarantine(self, now, window):
        """For a lost ledger: refuses all that may have been accepted before it was lost."""
        self.floor = max(self.floor, now + window + 2000)

    def key_text(self, mark):
        return '"%s": %s' % (mark, json.dumps(self.keys[mark]))

    def text(self):
        """Put together from texts: a knock changes one key of perhaps 10,000."""
        return '{"knockd": 1, "id": "%s", "floor": %d, "keys": {%s}}\n' % (
            self.server_id, self.floor, ', '.join(self.texts.values()))

    def refusal(self, mark, knock_id, time, paper=None):
        """None, or why a knock with this id and time may not be honoured."""
        key = self.keys.get(mark, UNUSED_KEY)
        if paper is not None:       # a sheet's number is the second in which it was made
            if paper[0] * 1000 <= self.floor:
                return 'void: the ledger was lost since; print a new sheet'
            return 'replay' if list(paper) <= key['paper'] else None
        if knock_id in key['spent'] or time < key['floor']:
            return 'replay'
        if time <= self.floor:
            return 'quarantine'
        return None

    def record(self, mark, knock_id, time, window, paper=None):
        """Spends a knock. The caller writes text() to disk before anything opens."""
        key = self.keys[mark] = dict(self.keys.get(mark, UNUSED_KEY))
        if paper is not None:
            key['paper'] = list(paper)
        else:
            spent = dict(key['spent'], **{knock_id: time})
            too_many = sorted(spent.values())[:-SPENT_LIMIT]
            key['floor'] = max([key['floor'], time - (2 * window + 60000)] +
                               [oldest + 1 for oldest in too_many])
            key['spent'] = {known: when for known, when in spent.items() if when >= key['floor']}
        self.texts[mark] = self.key_text(mark)

def parse_ledger(text, server_id):
    """A Ledger from its text; KnockError if it is damaged or another server's."""
    try:
        data = json.loads(text)
        if data['knockd'] != 1 or data['id'] != server_id:
            raise KnockError('the ledger belongs to another server')
        numbers = [data['floor']]
        for mark, key in data['keys'].items():
            if not re.match(r'[0-9a-f]{16}\Z', mark, re.ASCII):
                raise ValueError('key %.40r' % mark)
            sheet, number = key['paper']
            numbers += [key['floor'], sheet, number] + list(key['spent'].values())
        for number in numbers:
            if type(number) is not int or not 0 <= number < NEVER:
                raise ValueError('number %.40r' % number)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KnockError('the ledger cannot be read: %s' % error)
    return Ledger(server_id, data['floor'], data['keys'])

# --- filter compiler: classic BPF that passes only tags and badges valid now ------------
# linux/filter.h: struct sock_filter { u16 code; u8 jt, jf; u32 k; }. A line of a listing
# is (code, k), or (code, where to if so, where to if not, k) for a test. Where to is the
# name of a place, a text that stands alone before its line; 0 is the next line.
# linux/bpf_common.h: into A from the packet, at k or at X + k; from memory; into X.
LD_HALF, LD_BYTE, LD_MEMORY = 0x28, 0x30, 0x60
LD_WORD_X, LD_HALF_X, LD_BYTE_X = 0x40, 0x48, 0x50
LDX_NUMBER, LDX_LENGTH, LDX_MEMORY, LDX_HEADER = 0x01, 0x81, 0x61, 0xb1
STORE, STORE_X, TXA, ADD, SUB_X, AND = 0x02, 0x03, 0x87, 0x04, 0x1c, 0x54
JUMP, JEQ, JGT, JGE, JSET, JGT_X, RETURN = 0x05, 0x15, 0x25, 0x35, 0x45, 0x2d, 0x06
# linux/filter.h: loads from SKF_AD_OFF, -0x1000, on ask the kernel about the packet: its
# protocol by Ethernet's number, what kind it is, whether a VLAN's tag was taken off it.
PACKET_PROTOCOL, PACKET_TYPE, VLAN_TAG_PRESENT = 0xfffff000, 0xfffff004, 0xfffff030
# linux/if_packet.h: it is for this box. linux/if_ether.h: the protocols.
PACKET_HOST = 0
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86dd
DROP = (RETURN, 0, 0, 0)
PASS = (RETURN, 0, 0, 0x40000)
# So many words fit BPF_MAXINSNS, 4,096, in leaves of at most 32.
FILTER_TAGS = 3400
LEAF = 32
# What no protocol is, for a carrier that is off.
NO_PROTOCOL = 256
# Instead of 4 or 6: the program of a socket that hears both versions, on ETH_P_ALL.
ANY_VERSION = 0

def word_tree(words):
    """Looks for A among these sorted 32-bit words; None passes everything. Every leaf
    returns by itself; JUMP, for a left half may be out of reach of a test's 8-bit
    offset."""
    if words is None:
        return [PASS]
    if len(words) <= LEAF:
        return word_leaf(words)
    half = len(words) // 2
    left = word_tree(words[:half])
    right = word_tree(words[half:])
    return [(JGE, 0, 1, words[half]), (JUMP, 0, 0, len(left))] + left + right

def word_leaf(words):
    """Compares A with each; a match leads over all other tests and DROP to PASS."""
    lines = []
    for number, word in enumerate(words):
        lines.append((JEQ, len(words) - number, 0, word))
    return lines + [DROP, PASS]

def link(listing):
    """[(code, jt, jf, k)]: names of places become distances from the line behind the
    test."""
    places = {}
    lines = []
    for entry in listing:
        if isinstance(entry, str):
            places[entry] = len(lines)
        else:
            lines.append(entry)
    linked = []
    for here, line in enumerate(lines):
        if len(line) == 2:
            linked.append((line[0], 0, 0, line[1]))
            continue
        code, yes, no, k = line
        far_yes = places[yes] - here - 1 if yes else 0
        far_no = places[no] - here - 1 if no else 0
        linked.append((code, far_yes, far_no, k))
    return linked

FOR_THIS_BOX = [
    (LD_BYTE, PACKET_TYPE),             # A = host, broadcast, other host, outgoing, ...
    (JEQ, 0, 'drop', PACKET_HOST),
]
WHICH_VERSION = [
    (LD_BYTE, VLAN_TAG_PRESENT),        # a VLAN's packet comes again by its own interface
    (JEQ, 0, 'drop', 0),
    (LD_HALF, PACKET_PROTOCOL),
    (JEQ, 'version 4', 0, ETH_P_IP),
    (JEQ, 'version 6', 'drop', ETH_P_IPV6),
]
# Both heads leave X = M[1] = the length of the IP header, M[2] = the bytes behind it and
# A = the protocol. They refuse what the parser below refuses, in the same words.
HEAD4 = [                               # RFC 791, 3.1
    (LD_BYTE, 0),                       # version and header length
    (AND, 0xf0),
    (JEQ, 0, 'drop', 0x40),             # another version
    (LD_HALF, 6),
    (JSET, 'drop', 0, 0x3fff),          # a fragment: MF or an offset
    (LDX_HEADER, 0),                    # X = length of the header
    (STORE_X, 1),
    (TXA, 0),
    (JGE, 0, 'drop', 20),               # a header too short
    (LD_HALF, 2),                       # A = total length
    (LDX_LENGTH, 0),                    # X = bytes that are there
    (JGT_X, 'drop', 0, 0),              # cut short
    (LDX_MEMORY, 1),
    (SUB_X, 0),                         # A = total length - header
    (JGT, 'drop', 0, 0xffff),           # below zero: the header is longer than the packet
    (STORE, 2),
    (LD_BYTE, 9),                       # A = protocol
]
HEAD6 = [                               # RFC 8200, 3
    (LD_BYTE, 0),                       # version and traffic class
    (AND, 0xf0),
    (JEQ, 0, 'drop', 0x60),             # another version
    (LD_HALF, 4),                       # A = payload length
    (STORE, 2),
    (ADD, 40),
    (LDX_LENGTH, 0),                    # X = bytes that are there
    (JGT_X, 'drop', 0, 0),              # cut short
    (LDX_NUMBER, 40),
    (STORE_X, 1),
    (LD_BYTE, 6),                       # A = next header: extension headers are no knock
]

def with_heads(version, branches):
    """A listing: the head, or both, each followed by its branch of {4: listing, 6:
    listing}."""
    if version == 4:
        return FOR_THIS_BOX + HEAD4 + branches[4]
    if version == 6:
        return FOR_THIS_BOX + HEAD6 + branches[6]
    four = ['version 4'] + HEAD4 + branches[4]
    six = ['version 6'] + HEAD6 + branches[6]
    return FOR_THIS_BOX + WHICH_VERSION + four + six

# IANA; RFC 792 and RFC 4443: protocol, type and code of an echo request.
TCP, UDP = 6, 17
ECHO_PROTOCOL = {4: 1, 6: 58}
ECHO_REQUEST = {4: b'\x08\x00', 6: b'\x80\x00'}
# Bytes of a UDP header (RFC 768), and of an echo request's.
TRANSPORT = 8

LENGTH_FITS = [
    'length',                           # A = length of the datagram with its header
    (LDX_MEMORY, 1),
    (JGE, 0, 'drop', TRANSPORT + DATAGRAM_MINIMUM),
    (JGT, 'drop', 'tag', TRANSPORT + DATAGRAM_LIMIT),
    'drop',
    DROP,
    'tag',
    (LD_WORD_X, TRANSPORT),             # A = the tag's first 32 bits
]

def datagram_filter(version, carriers, port, words):
    """The program for one socket, of IPv4 (4), IPv6 (6) or both (ANY_VERSION): knock/1
    datagrams whose first 32 bits are among the words. words None passes every datagram of
    a possible length."""
    udp = UDP if 'udp' in carriers else NO_PROTOCOL
    branches = {}
    for each in (4, 6):
        icmp = ECHO_PROTOCOL[each] if 'icmp' in carriers else NO_PROTOCOL
        branches[each] = [
            (JEQ, 'udp', 0, udp),
            (JEQ, 0, 'drop', icmp),
            (LD_HALF_X, 0),             # A = type and code
            (JEQ, 'echo', 'drop', int.from_bytes(ECHO_REQUEST[each], 'big')),
        ]
    listing = with_heads(version, branches)
    listing.append('udp')
    if port:
        listing += [(LD_HALF_X, 2), (JEQ, 0, 'drop', port)]
    listing += [
        (LD_HALF_X, 4),                 # A = UDP length
        (LDX_MEMORY, 2),
        (JGT_X, 'drop', 'length', 0),   # longer than the packet
        'echo',
        (LD_MEMORY, 2),                 # A = bytes behind the IP header
    ]
    return link(listing + LENGTH_FITS) + word_tree(words and sorted(words))

# Where the SYNs of a sequence and of a code go.
SEQUENCE_PORTS = {'ports': (1024, 65535), 'code': (10000, 29999)}
# RFC 9293, 3.1: of FIN, SYN, RST and ACK nothing but SYN; the bytes of a header without
# options.
SYN_FLAGS, SYN = 0x17, 0x02
TCP_HEADER = 20

def syn_filter(version, ports, words):
    """The program for SYNs, version as above: to a port of this range (or None), or with
    a badge whose first 32 bits are among the words. words None passes every SYN."""
    low, high = ports or (65536, 65536)
    branch = [(JEQ, 'tcp', 'drop', TCP)]
    listing = with_heads(version, {4: branch, 6: branch})
    listing += [
        'tcp',
        (LD_MEMORY, 2),                 # A = bytes behind the IP header
        (JGE, 0, 'drop', TCP_HEADER),
        (LDX_MEMORY, 1),
        (LD_BYTE_X, 13),                # A = flags
        (AND, SYN_FLAGS),
        (JEQ, 0, 'drop', SYN),
    ]
    listing += [
        (LD_HALF_X, 2),                 # A = destination port
        (JGE, 0, 'badge', low),
        (JGT, 'badge', 0, high),
        PASS,
        'drop',
        DROP,
        'badge',
        (LD_WORD_X, 4),                 # A = the badge's first 32 bits, the SYN's seq
    ]
    return link(listing) + word_tree(words and sorted(words))

# --- packet parser: from the IP header on; trusts neither the filter nor any length ----
def parse_ip4(frame):
    """An IpPacket or None. RFC 791, 3.1."""
    if len(frame) < 20 or frame[0] >> 4 != 4:
        return None
    # A fragment: MF or an offset.
    if int.from_bytes(frame[6:8], 'big') & 0x3fff:
        return None
    header = (frame[0] & 15) * 4
    total = int.from_bytes(frame[2:4], 'big')
    if not 20 <= header <= total <= len(frame):
        return None
    return IpPacket(frame[12:16], frame[16:20], frame[9], frame[header:total])

def parse_ip6(frame):
    """As parse_ip4(), RFC 8200, 3; a packet with extension headers is none of ours."""
    if len(frame) < 40 or frame[0] >> 4 != 6:
        return None
    total = 40 + int.from_bytes(frame[4:6], 'big')
    if len(frame) < total:
        return None
    return IpPacket(frame[8:24], frame[24:40], frame[6], frame[40:total])

PARSERS = {4: parse_ip4, 6: parse_ip6}

def udp_length(body, port):
    """The length that a UDP header names, its own bytes in it; 0 if it is none of
    ours."""
    if len(body) < TRANSPORT:
        return 0
    target = int.from_bytes(body[2:4], 'big')
    length = int.from_bytes(body[4:6], 'big')
    if length > len(body) or port not in (None, target):
        return 0
    return length

def parse_packet(version, frame, carriers, port):
    """A Packet if these bytes may be a knock/1 datagram, else None. Never raises."""
    packet = PARSERS[version](frame)
    if packet is None:
        return None
    body = packet.body
    if packet.protocol == UDP:
        carrier = 'udp'
        length = udp_length(body, port)
    elif packet.protocol == ECHO_PROTOCOL[version] and body[:2] == ECHO_REQUEST[version]:
        carrier = 'icmp'
        length = len(body)
    else:
        return None
    if carrier not in carriers:
        return None
    if not TRANSPORT + DATAGRAM_MINIMUM <= length <= TRANSPORT + DATAGRAM_LIMIT:
        return None
    source = ipaddress.ip_address(packet.source)
    return Packet(carrier, source, body[TRANSPORT:length])

def parse_syn(version, frame):
    """A Syn, or None if these bytes are anything else. RFC 9293, 3.1."""
    packet = PARSERS[version](frame)
    if packet is None or packet.protocol != TCP:
        return None
    segment = packet.body
    if len(segment) < TCP_HEADER or segment[13] & SYN_FLAGS != SYN:
        return None
    source = ipaddress.ip_address(packet.source)
    destination = ipaddress.ip_address(packet.destination)
    port = int.from_bytes(segment[2:4], 'big')
    # seq and ack, then the window.
    badge = segment[4:12] + segment[14:16]
    return Syn(source, destination, port, badge)

def decode_items(plain):
    """({type: [value]}, where the signature's item begins or None); KnockError on any
    flaw."""
    items = {PORTS_ITEM: [], ACTION_ITEM: [], SIGNATURE_ITEM: []}
    signed = None
    offset = PLAIN.size
    # A type of 0 begins the padding.
    while offset < len(plain) and plain[offset]:
        kind = plain[offset]
        begin = offset + 3
        end = begin + int.from_bytes(plain[offset + 1:begin], 'big')
        if kind not in items:
            raise KnockError('malformed: an item of unknown type %d' % kind)
        if end > len(plain):
            raise KnockError('malformed: an item longer than the rest')
        # What follows a signature would not be signed.
        if items[SIGNATURE_ITEM]:
            raise KnockError('malformed: an item behind the signature')
        if kind == SIGNATURE_ITEM:
            signed = offset
        items[kind].append(plain[begin:end])
        offset = end
    if any(plain[offset:]) or len(plain) - offset > PADDING_LIMIT:
        raise KnockError('malformed: the padding is not up to %d zeros' % PADDING_LIMIT)
    return items, signed

def decode_service(value):
    """The value of an item of type 1: proto u8 || low u16 || high u16."""
    if len(value) == 5:
        service = Service(*struct.unpack('>BHH', value))
        if service.proto in PROTOCOLS.values() and 0 < service.low <= service.high:
            return service
    raise KnockError('malformed: port range %s' % value[:5].hex())

def decode_action(op, services, values):
    """The action's name, which a `run` has alone and nothing else has, or None."""
    if op != 'run' and not values:
        return None
    name = values[0].decode('latin-1') if values else ''
    if op != 'run' or len(values) > 1 or services or not ACTION.match(name):
        raise KnockError('malformed: run has one good name and nothing else, '
                         'the others have none')
    return name

def decode_source(source):
    """An address from 16 bytes, IPv4 as ::ffff:a.b.c.d; None for zero: where it comes
    from."""
    address = ipaddress.IPv6Address(source)
    if address.is_unspecified:
        return None
    return address.ipv4_mapped or address

def decode_plain(plain):
    """A Request from version u8 || op u8 || time u64 || source 16 || seconds u16 || items
    || zeros, read strictly; KnockError if anything is off."""
    if len(plain) < PLAIN.size:
        raise KnockError('malformed: %d bytes' % len(plain))
    version, op, time, source, seconds = PLAIN.unpack_from(plain)
    if version != PLAIN_VERSION or op not in OPS or time >= 1 << 42:
        raise KnockError('malformed: version %d, op %d, time %d' % (version, op, time))
    items, signed = decode_items(plain)
    services = tuple(map(decode_service, items[PORTS_ITEM]))
    if len(set(services)) < len(services):
        raise KnockError('malformed: a port range twice')
    action = decode_action(OPS[op], services, items[ACTION_ITEM])
    signature = items[SIGNATURE_ITEM][0] if items[SIGNATURE_ITEM] else None
    return Request(OPS[op], time, decode_source(source), seconds, services, action,
                   signature, plain[:signed])

# --- sequences: touched ports in, complete tokens out; nobody is authenticated yet (DESIGN 3.4) --
SEQUENCE_TIME = 20000           # ms from the first port to the last, and a finished one's memory
SOURCES_LIMIT, STRIKES = 4096, 10
CODE_TIME, CODE_TRIES, CODE_SLEEP = 60000, 3, 120       # ms, wrong tries, steps
QUIET = 6 * 3600000             # ms; one hour would give a patient guesser 0.3 % a year

class Attempt:
    """One sequence that a source has begun."""

    def __init__(self, token, now):
        self.token, self.taken, self.strikes = token, 1, 0
        self.since = now        # begun; then, with the last port, done

    def touch(self, port, now):
        """Does this attempt explain the port? It advances if it is the next one."""
        ports = self.token.ports
        if port in ports[self.taken:self.taken + 1]:
            self.taken += 1
            self.since = now if self.taken == len(ports) else self.since
        return port in ports[:self.taken]

class Sequences:
    """Who has touched which ports in order; those with one port are forgotten first."""

    def __init__(self, paper):
        self.tables = [paper]               # {first port: [Token]}; those of each step are added
        self.explained = False              # did the last SYN go on?
        self.sources = collections.OrderedDict(), collections.OrderedDict()     # one port, more

    def touch(self, source, port, now):
        """The tokens that this port completes."""
        known = self.sources[0].pop(source, None) or self.sources[1].pop(source, None) or []
        attempts = [attempt for attempt in known
                    if now - attempt.since <= SEQUENCE_TIME and attempt.strikes <= STRIKES]
        explained = [attempt for attempt in attempts if attempt.touch(port, now)]
        for token in [token for table in self.tables for token in table.get(port, ())]:
            if not any(attempt.token is token for attempt in attempts):
                attempts.append(Attempt(token, now))
                explained.append(attempts[-1])
        for attempt in attempts if not explained else ():
            attempt.strikes += 1
        self.explained = any(attempt.taken > 1 for attempt in explained)
        if attempts:
            self.sources[any(attempt.taken > 1 for attempt in attempts)][source] = attempts
        if len(self.sources[0]) + len(self.sources[1]) > SOURCES_LIMIT:
            (self.sources[0] or self.sources[1]).popitem(last=False)
        return [attempt.token for attempt in explained
                if attempt.since == now and attempt.taken == len(attempt.token.ports)]

class Codes:
    """The carrier `code`: pairs of ports, and the sleep after wrong ones (DESIGN 3.5)."""

    def __init__(self):
        self.held = collections.OrderedDict()       # source: [first port, when, last second port]
        self.wrong, self.nap, self.asleep, self.last_wrong = 0, 1, 0, 0

    def touch(self, source, port, now, codes):
        """The token of this code if the port completes it. codes: {code: Token}"""
        if step_of(now) < self.asleep or not 10000 <= port < 30000:
            return None
        first, when, last = self.held.get(source, (None, 0, None))
        if port < 20000:
            self.held.pop(source, None)
            self.held[source] = [port, now, last if port == first else None]
            if len(self.held) > SOURCES_LIMIT:
                self.held.popitem(last=False)
        elif first is not None and now - when <= CODE_TIME:
            self.held[source][2] = port
            token = codes.get('%04d%04d' % (first - 10000, port - 20000))
            return token or (self.fail(now) if port != last else None)      # a copy is no try
        return None

    def fail(self, now):
        """A wrong try; the third, in whatever step, puts the carrier to sleep, ever longer."""
        if now - max(self.last_wrong, self.asleep * STEP) > QUIET:
            self.succeed()
        self.wrong, self.last_wrong = self.wrong + 1, now
        if self.wrong >= CODE_TRIES:
            self.asleep = step_of(now) + 1 + self.nap
            self.wrong, self.nap = 0, min(2 * self.nap, CODE_SLEEP)
            self.held.clear()

    def succeed(self):
        self.wrong, self.nap = 0, 1

# --- judge: a packet, a moment and what is known in, a Decision out (DESIGN 3.8) ----------------
MACS_A_SECOND, KNOCKS_A_SECOND, SIGNATURES_A_SECOND, SYNS_A_SECOND = 200, 5, 2, 20000
SLICE = 100                     # clients whose tokens are derived ahead at once: 2 ms
COPY_TIME = 2000                # ms within which the network may deliver a knock twice

class Budget:
    """At most so many of a thing a second, each thing for itself."""

    def __init__(self, limit):
        self.limit, self.second, self.used = limit, None, {}

    def spend(self, thing, second, besides=0):
        """False when there is nothing left for it in this second."""
        if second != self.second:
            self.second, self.used = second, {}
        self.used[thing] = self.used.get(thing, 0) + 1 + besides
        return self.used[thing] <= self.limit

class State:
    """What the judge knows besides the packet: the config, the tokens, the ledger, the budgets."""

    def __init__(self, config, ledger):
        self.config, self.ledger = config, ledger
        self.tags = {}          # 8 bytes: (client, step)
        self.syns, self.codes = {}, {}          # 10 bytes: Token; 8 digits: Token
        self.macs, self.knocks = Budget(MACS_A_SECOND), Budget(KNOCKS_A_SECOND)
        self.signatures = Budget(SIGNATURES_A_SECOND)
        self.honoured = {}      # (fingerprint, knock id): (source, mono), while copies may follow

class StepTokens:
    """What authenticates in one step. For 10,000 clients it takes longer to derive than a knock may
    wait, so that is done ahead, a slice of them at a time."""

    def __init__(self, config, step):
        self.step, self.carriers, self.waiting = step, config.carriers, [*config.clients.values()]
        self.tags, self.syns, self.sequences = {}, {}, {}   # as State's; {first port: [Token]}

    def derive(self, count=None):
        """Those of so many more clients, or of all."""
        for client in self.waiting[:count]:
            self.tags[tag_at(client.keys, self.step)] = client, self.step
            if 'syn' in self.carriers:
                self.syns[syn_badge(client.keys, self.step)] = Credential(
                    client, 'syn', self.step, None, ())
            if 'ports' in self.carriers:
                token = Credential(client, 'ports', self.step, None,
                                   step_ports(client.keys, self.step))
                self.sequences.setdefault(token.ports[0], []).append(token)
        del self.waiting[:count]

def valid_tokens(config, now, known=()):
    """The StepTokens of all steps that can be valid now, of the one after, so that a tick leaves no
    gap, and of one more, to be derived until then. known holds those of the last time."""
    steps, known = window_steps(now, config.window), {tokens.step: tokens for tokens in known}
    tokens = [known.get(step) or StepTokens(config, step)
              for step in range(steps.start, steps.stop + 2)]
    for loaded in tokens[:-1]:
        loaded.derive()
    return tokens

def paper_sequences(config):
    """{first port: [Token]} of every sheet."""
    table = {}
    for client in config.clients.values():
        sheet, count = client.paper or (0, 0)
        for number in range(1, count + 1):
            ports = paper_ports(client.keys, sheet, number)
            token = Credential(client, 'paper', 0, (sheet, number), ports)
            table.setdefault(ports[0], []).append(token)
    return table

def valid_codes(config, now):
    """{eight digits: Token}: three steps, whatever the window."""
    return {code_at(client.keys, step): Credential(client, 'code', step, None, ())
            for client in config.clients.values() if client.code and 'code' in config.carriers
            for step in range(max(0, step_of(now) - 1), step_of(now) + 3)}

def judge(packet, now, state):
    """The order of judgement: tag, MAC, strict parse; stamp, expiry, source, scope, ledger, pace.
    Whoever honours the decision goes on: signature, ledger recorded, on disk, firewall, log."""
    known = read_datagram(packet, now, state) if packet.carrier in ('udp', 'icmp') else \
        read_token(packet)
    if isinstance(known, Decision):
        return known
    knock = wanted(known, state.config)
    reason = (stamp_flaw(knock, now.wall, state.config.window) or
              ('expired' if now.wall >= knock.client.expires else None) or
              source_flaw(knock) or
              scope_flaw(knock) or
              state.ledger.refusal(knock.client.fingerprint, knock.knock_id, knock.request.time,
                                   knock.paper) or
              (None if state.knocks.spend(knock.client.name, now.mono // 1000) else 'too fast'))
    source, when = state.honoured.get((knock.client.fingerprint, knock.knock_id), (None, 0))
    if reason == 'replay' and source == packet.source and now.mono - when <= COPY_TIME:
        return Decision('copy', None, knock)        # the network's duplicate
    return Decision('refused' if reason else knock.request.op, reason, knock)

def read_datagram(packet, now, state):
    """A Knock out of a datagram whose tag is known and whose MAC holds, or a Decision."""
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
    knock = Knock(client, packet.carrier, packet.source, nonce, step, None, None, (), 0)
    try:
        request = decode_plain(plain)
    except KnockError as error:
        return Decision('refused', str(error), knock)
    signed = b'knock/1 %s\x00' % state.config.id.encode('ascii') \
        + packet.payload[:TAG_SIZE + NONCE_SIZE] + request.signed
    return knock._replace(request=request._replace(signed=signed))

def read_token(packet):
    """A Knock out of a token that had no room for a request: it asks for the default."""
    token = packet.payload
    request = Request('open', token.step * STEP, None, 0, (), None, None, None)
    knock_id = '%s:%s' % (token.carrier, token.paper or token.step)
    return Knock(token.client, token.carrier, packet.source, knock_id, token.step, token.paper,
                 request, (), 0)

def wanted(knock, config):
    """The knock with what it asks for: services, seconds, and the address it is for."""
    client, request = knock.client, knock.request
    longest = max(config.max_open_for, client.open_for or 0) // 1000
    default = (client.open_for or config.open_for) // 1000
    services = request.services or (client.default if request.op == 'open' else ())
    source = request.source if request.source and client.any_source else knock.source
    return knock._replace(services=services, source=source,
                          seconds=min(request.seconds or default, longest))

def stamp_flaw(knock, now, window):
    """A datagram names its millisecond, a token its step, a paper knock needs no clock."""
    time, step = knock.request.time, knock.step
    if knock.carrier in ('udp', 'icmp'):
        fits = abs(now - time) <= window and step_of(time) == step
    elif knock.carrier == 'code':
        fits = abs(step - step_of(now)) <= 1
    else:
        fits = knock.paper is not None or step in window_steps(now, window)
    return None if fits else 'clock %+ds' % round((time - now) / 1000)

def source_flaw(knock):
    """Whoever names a source must come from it, unless the config trusts him with any."""
    named, client = knock.request.source, knock.client
    if named is None:
        return 'no source named' if client.require_source else None
    if named != knock.source or named.is_multicast or named.is_loopback or named.is_unspecified:
        return 'source %s' % named
    return None

def scope_flaw(knock):
    request, client = knock.request, knock.client
    beyond = [format_service(service) for service in knock.services
              if not covered(service, client.allow)]
    if request.op == 'open' and not knock.services:
        beyond = ['anything']
    elif request.op == 'run' and request.action not in client.may_run:
        beyond = ['action ' + request.action]
    if beyond:
        return 'not allowed ' + beyond[0]
    return 'no signature' if client.ssh_key and request.signature is None else None

# --- firewall text: nft commands out of addresses and integers, nothing else --------------------
# Why each line is as it is: README, "The firewall". One table of our own, one transaction a change.
FAMILIES = {4: ('ip', 'ipv4_addr'), 6: ('ip6', 'ipv6_addr')}
TCP_TIME_WAIT, TCP_LISTEN = 6, 10       # include/net/tcp_states.h
# What this box does with a packet to a closed port: None (its stack answers) or an nft verdict.
# decoys: {hidden port: closed port}; labels: does it make flow labels of its own?
Box = collections.namedtuple('Box', 'decoys tcp udp labels')
TCP_RESET = 'reject with tcp reset'
VERDICTS = {    # as nft -j lists them: as we write them
    'accept': None, 'drop': 'drop', 'reject': 'reject', 'port-unreachable': 'reject',
    'tcp reset': TCP_RESET, 'admin-prohibited': 'reject with icmpx type admin-prohibited'}
ANSWERS = {'drop': ('drop', 'drop'), 'reset': (TCP_RESET, 'reject'),    # for TCP, for UDP
           'prohibited': (VERDICTS['admin-prohibited'],) * 2}
# Emptied and filled again in one transaction, never deleted: a hook that goes lets packets by.
# A SYN belongs to no connection, whatever conntrack still knows of an old one between these ports.
TABLE = '''table inet knockd {
%(empty)s}
flush table inet knockd
%(flush)stable inet knockd {
%(sets)s chain guard {
  type filter hook prerouting priority -149; policy accept;
  tcp flags & (syn | ack) != syn ct state established,related return
  meta l4proto != tcp ct state established,related return
  iifname { %(trust)s } return
  fib daddr type { broadcast, multicast } meta l4proto . th dport @hidden drop
  fib daddr type { local, anycast } meta l4proto . th dport @hidden jump check
  tcp dport @decoys delete @asked4 { ip saddr . tcp sport . tcp dport }
  tcp dport @decoys delete @asked6 { ip6 saddr . tcp sport . tcp dport }
 }
 chain check {
  %(check)s
 }
 chain answer {
  type filter hook output priority -301; policy accept;
  tcp sport @decoys tcp flags & rst == rst jump restore
 }
 chain restore {
  ip daddr . tcp dport . tcp sport @asked4 tcp sport set tcp sport map @real
  ip6 daddr . tcp dport . tcp sport @asked6 goto label
 }
 chain label {
  tcp sport set tcp sport map @real
  %(label)s
 }
}
'''
def open_set(network, once):
    """open4 holds hosts, open4_24 networks of that length, once4 what lets one connection in."""
    length = '_%d' % network.prefixlen if network.prefixlen < network.max_prefixlen else ''
    return '%s%d%s' % ('once' if once else 'open', network.version, length)

def open_sets(config):
    """[(any network of a set, once)]: hosts, and what else some client's section asks for."""
    asked = {('0.0.0.0', 32, False), ('::', 128, False)}
    for client in config.clients.values():
        asked |= {('0.0.0.0', client.prefix4, client.once), ('::', client.prefix6, client.once)}
    return [(ipaddress.ip_network(each[:2]), each[2]) for each in sorted(asked)]

def protocol_and_port(opening):
    return tuple(format_service(Service(opening.proto, opening.port, opening.port)).split('/'))

def nft_opening(opening, now=None):
    """The element of an opening; without now, what names it for a deletion."""
    key = '%s . %s . %s' % ((opening.source.network_address,) + protocol_and_port(opening))
    return key if now is None else '%s timeout %dms comment "%s"' % (
        key, opening.expires - now.mono, opening.client)

def nft_set(name, kind, elements=()):
    """A set or a map, in the words of nft; its elements are a line of their own."""
    line = '  elements = { %s }\n' % ', '.join(elements) if elements else ''
    return ' %s {\n  type %s\n%s }\n' % (name, kind, line)

def nft_sets(config, box, living):
    """All sets but those of openings. Nothing deletes from asked when a hidden port is asked, and
    100 ms is a tenth of the kernel's garbage collection: of dead elements, more than 16 with one
    key refuse the next."""
    pairs = sorted(box.decoys.items())
    text = nft_set('set hidden', 'inet_proto . inet_service; flags interval; auto-merge', [
        format_service(service).replace('/', ' . ') for service in merged(config.hide)])
    for name, elements in (('decoy', pairs), ('real', [pair[::-1] for pair in pairs])):
        text += nft_set('map ' + name, 'inet_service : inet_service',
                        ['%d : %d' % element for element in elements])
    text += nft_set('set decoys', 'inet_service', ['%d' % decoy for _, decoy in pairs])
    for version, (_, kind) in FAMILIES.items():
        kind += ' . inet_service . inet_service; flags '
        text += nft_set('set living%d' % version, kind + 'timeout; timeout 12h', [
            '%s . %d . %d' % each for each in living if each[0].version == version])
        text += nft_set('set asked%d' % version,
                        kind + 'dynamic,timeout; timeout 100ms; size 65535')
    return text

def nft_opened(config, openings, now):
    """(the sets of openings, the lines that let by what is in them). Networks are looked up by the
    masked source: interval sets refuse overlaps, and a host inside a network. Those of `once` have
    a limit an element, which the kernel spends on the first new connection; begun knows that one's
    SYN when it comes again."""
    sets, lines, marked = '', [], 'meta mark set meta mark | 0x%08x accept' % config.mark
    for network, once in open_sets(config):
        (family, kind), name = FAMILIES[network.version], open_set(network, once)
        mask = ' & %s' % network.netmask if network.prefixlen < network.max_prefixlen else ''
        opened = '%s saddr%s . meta l4proto . th dport @%s ' % (family, mask, name)
        limit = '; limit rate 1/week burst 1 packets' if once else ''
        sets += nft_set('set ' + name, kind + ' . inet_proto . inet_service; flags timeout' + limit,
                        [nft_opening(opening, now) for opening in openings
                         if open_set(opening.source, opening.once) == name])
        if once:
            begun = name.replace('once', 'begun')
            sets += nft_set('set ' + begun, kind + ' . inet_service . inet_proto . inet_service; '
                            'flags dynamic,timeout; timeout 1m; size 65535')
            syn = family + ' saddr . th sport . meta l4proto . th dport'
            lines.append('%s @%s %s' % (syn, begun, marked))
            opened = 'ct state new %sadd @%s { %s } ' % (opened, begun, syn)
        lines.append(opened + marked)
    return sets, lines

def nft_box(box):
    """What makes a hidden port answer like every closed port of this box: its TCP goes to a
    closed decoy port of its own, and the reset that may come back gets the real port again. An
    ICMP error would quote the decoy, so there the guard gives the box's verdict itself."""
    lines = ['ct state invalid tcp flags & (ack | rst) != 0 return'] if box.tcp is None else []
    if box.decoys and box.tcp in (None, 'drop', TCP_RESET):
        lines += ['meta nfproto ipv%d tcp dport set tcp dport map @decoy update @asked%d '
                  '{ %s saddr . tcp sport . tcp dport } accept' % (version, version, family)
                  for version, (family, _) in FAMILIES.items()]
    lines += ['meta l4proto tcp ' + (box.tcp if box.tcp not in (None, TCP_RESET) else 'drop')]
    return lines + ([box.udp] if box.udp else ['meta nfproto ipv6 udp checksum 0 drop', 'reject'])

def nft_label(config):
    """Linux makes the flow label from both ports: the decoy's own would tell whose it is (RFC
    6437). nft writes whole bytes: 16 bits of a hash as they are, the upper 4 by 16 rules."""
    secret = ' '.join(client.fingerprint for client in config.clients.values()).encode('ascii')
    seeds = struct.unpack_from('>II', hmac_sha256(secret, b'flow label'))
    hashed = 'jhash ip6 daddr . tcp dport . tcp sport mod %d seed %d'
    return ['ip6 flowlabel 0 return', '@nh,16,16 set ' + hashed % (0xffffffff, seeds[0])] + [
        '%s == %d @nh,12,4 set %d' % (hashed % (16, seeds[1]), bits, bits) for bits in range(16)]

NFT_NOTHING = 'table inet knockd\ndelete table inet knockd\n'

def nft_ruleset(config, box, openings, living, now):
    """The whole table, replacing the one that may be there, in one transaction."""
    if not config.hide:         # a probation that nobody passed, or uninstall
        return NFT_NOTHING
    sets, check = nft_opened(config, openings, now)
    sets += nft_sets(config, box, living)
    check += ['tcp flags & (syn | ack) != syn %s saddr . tcp sport . tcp dport @living%d return'
              % (family, version) for version, (family, _) in FAMILIES.items()]
    check += nft_box(box) if config.answer == 'box' else [
        'meta l4proto tcp ' + ANSWERS[config.answer][0], ANSWERS[config.answer][1]]
    return TABLE % {
        'empty': re.sub(r'  elements = .*\n', '', sets), 'sets': sets,
        'flush': re.sub(r'(?ms)^ (\w+) (\w+) {.*?^ }', r'flush \1 inet knockd \2', sets),
        'trust': ', '.join('"%s"' % name for name in ('lo',) + config.trust),
        'check': '\n  '.join(check),
        'label': '\n  '.join(nft_label(config) if box.labels else ())}

def nft_change(verb, openings, now=None):
    """add or delete elements of the open sets, a command each."""
    return ''.join('%s element inet knockd %s { %s }\n' % (
        verb, open_set(opening.source, opening.once), nft_opening(opening, now))
        for opening in openings)

def nft_close(openings):
    """Closes; adding first, for deleting what has just expired would be an error."""
    return nft_change('add', openings) + nft_change('delete', openings)

def nft_open(openings, known, now):
    """Opens; what is open already is replaced: adding alone extends only on new kernels, and
    never lets another connection through `once`."""
    old = [opening for opening in openings if opening[1:5] in known]
    return nft_close(old) + nft_change('add', openings, now)

def chain_of(entry):
    return entry['family'], entry['table'], entry.get('chain', entry.get('name'))

def foreign(ruleset, kind):
    """The tables, chains or rules of others, as nft -j lists them."""
    return [entry[kind] for entry in ruleset
            if kind in entry and entry[kind].get('table') != 'knockd']

def box_verdicts(ruleset, hooks, protocol):
    """{(family, table, chain): what it does with a protocol's closed ports}, on these hooks."""
    rules = {}
    for rule in foreign(ruleset, 'rule'):
        rules.setdefault(chain_of(rule), []).append(rule['expr'])
    return {chain_of(chain): VERDICTS[closing_verdict(rules, chain_of(chain), protocol)
                                      or chain.get('policy', 'accept')]
            for chain in foreign(ruleset, 'chain') if chain.get('hook') in hooks}

def closing_chains(ruleset):
    """Chains that may drop what the guard lets by, but those of a table that its owner has locked
    (NFT_TABLE_F_OWNER, as firewalld's)."""
    locked = [(table['family'], table['name']) for table in foreign(ruleset, 'table')
              if 'owner' in table.get('flags', ())]
    return {name for protocol in PROTOCOLS
            for name, verdict in box_verdicts(ruleset, ('input', 'forward'), protocol).items()
            if verdict and name[:2] not in locked and name[0] in ('inet', 'ip', 'ip6')}

def accept_changes(config, ruleset):
    """Commands that leave our rule once in each chain there is that needs it, and nowhere else: at
    the head of a chain that would drop what the guard lets through."""
    asked, mark = closing_chains(ruleset) if ('auto',) in config.accept_in else set(), config.mark
    wanted = [name for name in map(chain_of, foreign(ruleset, 'chain'))
              if name in asked.union(config.accept_in)]
    accept = [{'match': {'op': '==', 'left': {'&': [{'meta': {'key': 'mark'}}, mark]},
                         'right': mark}}, {'accept': None}]
    text = ''
    for rule in foreign(ruleset, 'rule'):
        if rule.get('expr') == accept and chain_of(rule) in wanted:
            wanted.remove(chain_of(rule))
        elif rule.get('expr') == accept:
            text += 'delete rule %s handle %d\n' % (' '.join(chain_of(rule)), rule['handle'])
    return text + ''.join('insert rule %s meta mark & 0x%08x == 0x%08x accept\n' % (
        ' '.join(chain), mark, mark) for chain in wanted)

def is_ours(entry):
    return any('knockd' in (value.get('table'), value.get('name')) for value in entry.values())

def listed(ruleset, ours):
    """Our table as text, or all but ours, without what differs from listing to listing."""
    return re.sub(r'"handle": \d+', '', json.dumps([
        entry for entry in ruleset if is_ours(entry) == ours]))

def closing_verdict(rules, name, protocol):
    """What a chain does with every packet of a protocol: None or a key of VERDICTS.
    Only rules without a condition count, and those whose condition is the protocol."""
    condition = {'op': '==', 'left': {'meta': {'key': 'l4proto'}}, 'right': protocol}
    for statements in rules.get(name, ()):
        statements = [pair for each in statements for pair in each.items()
                      if pair[0] not in ('counter', 'log') and pair != ('match', condition)]
        kind, detail = statements[0] if len(statements) == 1 else (None, None)
        verdict = kind
        if kind in ('jump', 'goto'):
            verdict = closing_verdict(rules, name[:2] + (detail['target'],), protocol)
        elif kind == 'reject' and detail:
            verdict = detail.get('expr', detail.get('type'))
        if verdict in VERDICTS:
            return verdict
    return None

def box_policy(ruleset, protocol):
    """What this box does with a protocol's closed ports before its own stack answers, if so."""
    return next(filter(None, box_verdicts(ruleset, ('input',), protocol).values()), None)

def pick_decoys(config, ruleset, listening, ephemeral):
    """{hidden TCP port: one that nothing on this box knows: no listener, rule, outgoing}"""
    if config.answer != 'box':
        return {}
    rules = listed(ruleset, False)
    ranges = [tuple(map(int, ends)) for ends in        # of nft, of iptables
              re.findall(r'(?:"range": \[|[ ,])(\d{1,5})(?:, |:)(\d{1,5})\b', rules)]
    hidden = {port for service in config.hide if service.proto == PROTOCOLS['tcp']
              for port in range(service.low, service.high + 1)}
    taken = hidden.union(listening, map(int, re.findall(r'\b\d{1,5}\b', rules)))
    free = (port for ranged in (False, True)    # one by one: all at once would be memory for life
            for ports in (range(61022, 65536), range(29999, 1024, -1)) for port in ports
            if port not in taken and not ephemeral[0] <= port <= ephemeral[1]
            and ranged == any(low <= port <= high for low, high in ranges))
    decoys = dict(zip(sorted(hidden), free))
    if len(decoys) < len(hidden):
        raise KnockError('this box has no %d free TCP ports for decoys; write answer = drop'
                         % len(hidden))
    return decoys

def parse_connections(text):
    """[(remote address, remote port, local port, state)] of /proc/net/tcp or tcp6.
    Addresses there are 32-bit words in the byte order of the machine (net/ipv4/tcp_ipv4.c)."""
    connections = []
    for line in text.splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        address, port = remote.split(':')
        words = [struct.pack('=I', int(word, 16)) for word in re.findall('.{8}', address)]
        source = ipaddress.ip_address(b''.join(words))
        source = getattr(source, 'ipv4_mapped', None) or source
        connections.append((source, int(port, 16), int(local.split(':')[1], 16), int(state, 16)))
    return connections

def living_connections(connections, hide):
    """Those to a hidden port that are there already, once each."""
    return sorted({connection[:3] for connection in connections
                   if connection[3] not in (TCP_TIME_WAIT, TCP_LISTEN)
                   and covered(Service(6, connection[2], connection[2]), hide)}, key=str)

# --- firewall text: iptables, where there is no nft ----------------------------------------------
# A chain of ours in each table: mangle marks who may pass, filter accepts him and answers others,
# nat keeps others from forwards and sends their TCP to the decoys. A table is a transaction; in
# this order nat sees no living connection that is not marked yet, and a failure hides what was.
HOOKS = {'mangle': ['PREROUTING'], 'filter': ['INPUT', 'FORWARD'], 'nat': ['PREROUTING']}
OUR_JUMP = '-m comment --comment knockd -j KNOCKD'
TO_US = '-m addrtype --dst-type LOCAL,ANYCAST -j '
TARGETS = {     # of the verdicts of nft
    'drop': 'DROP', 'reject': 'REJECT', TCP_RESET: 'REJECT --reject-with tcp-reset',
    VERDICTS['admin-prohibited']: 'REJECT --reject-with icmp-admin-prohibited'}
LONGEST = 2147483               # seconds that an ipset can count
IPSET_NOTHING = 'destroy knockd4\ndestroy knockd6\n'

def seconds_left(opening, now):
    return min((opening.expires - now.mono) // 1000, LONGEST)

def ipset_change(verb, openings, now=None):
    """add, which also extends, or del. Whole seconds, rounded down; 0 would be for ever, but is
    not live."""
    return ''.join('%s knockd%d %s,%s:%s%s\n' % (
        (verb, opening.source.version, opening.source) + protocol_and_port(opening) +
        (' timeout %d' % seconds_left(opening, now) if now else '',)) for opening in openings)

def ipset_all(openings, now):
    """Both sets, from one moment to the next with these openings and no others."""
    form, sets = 'hash:net,port family %s timeout 30\n', (('knockd4', 'inet'), ('knockd6', 'inet6'))
    return ''.join('create {0} {1}create {0}-new {1}flush {0}-new\n'.format(name, form % family)
                   for name, family in sets) \
        + re.sub(r'(?m)^(add \w+)', r'\1-new', ipset_change('add', openings, now)) \
        + ''.join('swap {0} {0}-new\ndestroy {0}-new\n'.format(name) for name, _ in sets)

def recent_list(opening):
    """The list in /proc/net/xt_recent that this opening has for itself."""
    return '-'.join(('knockd', str(opening.source).replace('/', '-')) + protocol_and_port(opening))

def recent_match(opening, seconds):
    """The kernel counts the seconds, from when the address was written to the list."""
    return '-p %s --dport %s -m recent --rcheck --seconds %d --name %s --mask %s --rsource' % (
        protocol_and_port(opening) + (seconds, recent_list(opening), opening.source.netmask))

def recent_open(openings):
    """Commands. Their rules are there already, so that nothing is ever open for too long."""
    return [(['tee', '/proc/net/xt_recent/' + recent_list(opening)],
             '+%s\n' % opening.source.network_address) for opening in openings]

def iptables_rules(config, box, version, passing):
    """{table: the rules of our chain}, in the order of HOOKS; passing: matches of what may pass."""
    if not config.hide:         # as in nft_ruleset()
        return {table: [] for table in HOOKS}
    bit = '0x%08x/0x%08x' % (config.mark, config.mark)
    trusted = ['-i %s -j RETURN' % name for name in ('lo',) + config.trust]
    known = trusted + ['%s -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN' % match
                       for match in ('! -p tcp', '-p tcp ! --syn')]     # as in TABLE
    hidden = [tuple(format_service(service).replace('-', ':').split('/'))
              for service in merged(config.hide)]
    tcp, udp = ANSWERS.get(config.answer, (box.tcp, box.udp))
    # An accepting box answers itself what has an ACK or a RST: it may be of a living connection.
    ends = {'tcp': ('--tcp-flags ACK,RST NONE ' if tcp is None else '') + TO_US
                   + TARGETS[tcp or TCP_RESET], 'udp': TO_US + TARGETS[udp or 'reject']}
    if version == 6:
        ends = {protocol: end.replace('icmp-admin', 'icmp6-adm') for protocol, end in ends.items()}
    return {
        'mangle': known + ['-p udp --dport %s -m addrtype --dst-type %s -j DROP' % (
            ports, 'BROADCAST,MULTICAST' if version == 4 else 'MULTICAST')
            for protocol, ports in hidden if protocol == 'udp'] + [
            '%s %sMARK --set-xmark %s' % (match, TO_US, bit) for match in passing],
        'filter': ['-m mark --mark %s -j %s' % (bit, 'ACCEPT' if config.accept_in else 'RETURN')]
        + known + ['-p %s --dport %s %s' % (protocol, ports, ends[protocol])
                   for protocol, ports in hidden],
        'nat': trusted + ['-m mark --mark %s -j RETURN' % bit]
        + ['-p tcp --dport %d %sDNAT --to-destination :%d' % (port, TO_US, decoy)
           for port, decoy in sorted(box.decoys.items())]
        + ['-p %s --dport %s %sACCEPT' % (match + (TO_US,)) for match in hidden]}

def our_jumps(ruleset):
    """[(tool, table, chain)] from where packets come to us."""
    rules = [entry['rule'] for entry in ruleset if 'rule' in entry and is_ours(entry)]
    return sorted((rule['family'], rule['of'], rule['chain']) for rule in rules
                  if rule['chain'] != 'KNOCKD')

def iptables_restore(tool, rules, jumps=None):
    """(argument list, text) that replace the rules of these tables; a table without rules loses our
    chain. jumps: those that are there; with None they stay."""
    text = ''
    for table, lines in rules.items():
        text += '*%s\n:KNOCKD - [0:0]\n' % table
        text += ''.join('-A KNOCKD %s\n' % line for line in lines)
        for hook in () if jumps is None else HOOKS[table]:
            text += '-D %s %s\n' % (hook, OUR_JUMP) * jumps.count((tool, table, hook))
            text += '-I %s %s\n' % (hook, OUR_JUMP) if lines else ''
        text += 'COMMIT\n' if lines else '-X KNOCKD\nCOMMIT\n'
    return [tool + '-restore', '--noflush', '-w'], text

def parse_saved(tool, text):
    """What iptables-save says, as nft -j would; what is ours is in a table named knockd. Not so
    the rules of recent lists, which change with every knock."""
    entries, table = [], None
    for kind, name, rest in re.findall(r'(?m)^(\*|:|-A )(\S+) ?(.*)',
                                       text.replace('"knockd"', 'knockd')):
        table = name if kind == '*' else table
        ours = name == 'KNOCKD' or rest == OUR_JUMP
        entry = {'family': tool, 'table': 'knockd' if ours else table, 'of': table}
        if kind == ':':
            policy = rest.split()[0].lower()        # only the kernel's own chains have one
            entries.append({'chain': dict(entry, name=name, policy=policy,
                                          hook=name.lower() if policy != '-' else None)})
        elif kind == '-A ' and not (ours and ' -m recent ' in rest):
            entries.append({'rule': dict(entry, chain=name, expr=parse_rule(rest))})
    return entries

def parse_rule(text):
    """Its statements as nft -j would list them, if nothing but its protocol is a condition."""
    plain = re.match(r'(?:-p (tcp|udp) )?-[jg] (\S+)(?: --reject-with (?:icmp6?-)?(\S+))?\Z',
                     re.sub(r'-m comment --comment ("[^"]*"|\S+) ', '', text))
    if not plain:
        return [{'xt': text}]
    protocol, target, word = plain.groups()
    word = word and word.replace('tcp-', 'tcp ').replace('adm-', 'admin-')
    match = {'match': {'op': '==', 'left': {'meta': {'key': 'l4proto'}}, 'right': protocol}}
    return [match] * bool(protocol) + [
        {target.lower(): {'type': word}} if target in ('ACCEPT', 'DROP', 'REJECT') else
        {'jump': {'target': target}}]

# --- edges: clock, log, files, commands, sockets ------------------------------------------------
SEARCH_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
PACKAGES = (('apt-get', 'apt-get install -y'), ('opkg', 'opkg install'), ('apk', 'apk add'),
            ('dnf', 'dnf install -y'), ('zypper', 'zypper install -y'),
            ('pacman', 'pacman -S --noconfirm'))
FACTS = 'KNOCK_CLIENT', 'KNOCK_SOURCE', 'KNOCK_PORTS', 'KNOCK_SECONDS'
ACTION_SECONDS, ACTION_LINES, ACTIONS_AT_ONCE = 30, 50, 16
BALLAST = 65536                 # bytes given up when the disk is full, so that a knock still fits
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33       # asm-generic/socket.h
SOL_PACKET, PACKET_STATISTICS = 263, 6          # linux/socket.h, linux/if_packet.h
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86dd           # linux/if_ether.h
RECEIVE_BUFFER, SOCKET_PAIRS = 4 << 20, 8
NFT, IPSET = ['nft', '-f', '-'], ['ipset', '-exist', 'restore']
FLOWLABEL_REFLECT = '/proc/sys/net/ipv6/flowlabel_reflect'     # 2: resets repeat the label
NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7     # linux/netlink.h, linux/netfilter/nfnetlink.h
ELEMENT_EVENTS = (12, 14, 15)   # linux/netfilter/nf_tables.h: NEWSETELEM, DELSETELEM, NEWGEN
COALESCE = 10                   # ms: one reload of a firewall is many changes
F_SETPIPE_SZ = 1031             # linux/fcntl.h
CLOSING_TIME = 250              # ms: nft starts the kernel's clock later than we start ours
STATUS_SOCKET = '/run/knockd/%s.sock'           # by the server's id
PROBATION, PASSED = '# on probation: %d ms left, %d ms after the boot\n', '# not yet made\n'
GUARD = '''%s >/dev/null 2>&1 || %s <<'END'
%sEND
'''
THERE = {'nft': 'nft list table inet knockd', 'ipset': 'ipset -n list knockd4',
         'iptables-restore': 'iptables -w -t nat -S KNOCKD',
         'ip6tables-restore': 'ip6tables -w -t nat -S KNOCKD'}

def moment():
    return Moment(int(time.time() * 1000), int(time.monotonic() * 1000))

def log(text, level=6):
    """One line on standard error; journald takes a syslog level in front. It never waits: what
    poll(2) calls writable takes 4,096 bytes at least (a pipe; where the reader hangs, none)."""
    prefix = '<%d>' % level if 'JOURNAL_STREAM' in os.environ else ''
    with contextlib.suppress(OSError):  # nobody reads the log: no reason to stop guarding
        if sys.stderr and select.select((), (2,), (), 0)[1]:
            print(prefix + printable(text)[:4000], file=sys.stderr, flush=True)

def printable(text):
    """No byte of a stranger's reaches a terminal or a log as anything but plain text."""
    return re.sub(r'[^\x20-\x7e]', '?', text)

def find_program(name):
    """As shutil.which() says, whose import would cost 0.7 MB."""
    paths = (os.path.join(folder, name) for folder in SEARCH_PATH.split(':'))
    return next((path for path in paths if os.access(path, os.X_OK)), None)

def package_command(program):
    """What brings a program that is not there, on this system."""
    package = {'nft': 'nftables', 'ssh-keygen': 'openssh-client'}.get(program, program)
    commands = [command for manager, command in PACKAGES if find_program(manager)]
    return ' '.join(commands[:1] + [package])

def missing(program):
    return KnockError('%s is not installed; type: %s' % (program, package_command(program)))

def start(argv, facts=None, descriptors=()):
    """A process for run(); facts are added to a clean environment."""
    path = argv[0] if '/' in argv[0] else find_program(argv[0])
    if path is None:
        raise missing(argv[0])
    try:
        return subprocess.Popen(
            [path] + argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if facts is None else subprocess.STDOUT, cwd='/',
            env=dict(facts or {}, PATH=SEARCH_PATH, LC_ALL='C'), close_fds=True,
            pass_fds=descriptors, start_new_session=True)
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror))

spares = []     # at most one (argument list, process); None where it does not start

def keep_spare(argv):
    """Starts the command of the next change before there is one: it waits for its standard input,
    which ends when we do, and has not looked at the ruleset before that."""
    if not (spares and spares[0][0] == argv and spares[0][1] and spares[0][1].poll() is None):
        spares[:] = [(argv, None)]
        with contextlib.suppress(KnockError):
            spares[:] = [(argv, start(argv))]

def run(argv, text='', seconds=10, facts=None, descriptors=()):
    """The one place that executes a command; its output, or a KnockError with its complaint.
    text is its standard input."""
    process = spares.pop()[1] if spares and spares[0][0] == argv else None
    if process is None or process.poll() is not None:
        process = start(argv, facts, descriptors)
    with process:               # which closes the pipes: what left the session may hold its ends
        try:
            output, errors = process.communicate(
                text if isinstance(text, bytes) else text.encode('ascii'), timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise KnockError('%s took longer than %d s' % (' '.join(argv), seconds))
    if process.returncode:
        said = (errors or output).decode('utf-8', 'replace').strip() or 'no reason given'
        raise KnockError('%s failed (%d): %s' % (
            ' '.join(argv), process.returncode, said.splitlines()[0] if facts is None else said))
    return output.decode('utf-8', 'replace')

def perform(name, argv, facts):
    """A command of the config, if any, in a thread: nobody waits; its output goes to the log."""
    def work():
        try:
            lines = run(argv, seconds=ACTION_SECONDS,
                        facts=dict(zip(FACTS, map(str, facts)))).splitlines()
        except KnockError as error:
            lines = [str(error)]
        for line in lines[:ACTION_LINES]:
            log('action %s: %s' % (name, line))
    if threading.active_count() > ACTIONS_AT_ONCE:
        log('action %s: not run, for %d others do' % (name, ACTIONS_AT_ONCE), 3)
    elif argv:
        threading.Thread(target=work, daemon=True).start()

def notify(text):
    """sd_notify(3): to whoever started us and wants to know."""
    if 'NOTIFY_SOCKET' in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock, \
                contextlib.suppress(OSError):       # if not now, the next wake-up tells it again
            sock.sendto(text.encode('ascii'), re.sub('^@', '\0', os.environ['NOTIFY_SOCKET']))

def pipe_with(data):
    """A descriptor from which a child reads these bytes; no file is made."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, max(4096, len(data)))     # all of them, before it reads
    os.write(writer, data)
    os.close(writer)
    return reader

def verify_signature(client, request):
    """KnockError unless this client's ssh_key made the signature (PROTOCOL.sshsig)."""
    armored = b'-----BEGIN SSH SIGNATURE-----\n' + binascii.b2a_base64(request.signature) \
        + b'-----END SSH SIGNATURE-----\n'
    signers = '%s namespaces="knock" %s\n' % (client.name, client.ssh_key)
    pipes = pipe_with(signers.encode('ascii')), pipe_with(armored)
    try:
        run(['ssh-keygen', '-Y', 'verify', '-f', '/dev/fd/%d' % pipes[0], '-I', client.name, '-n',
             'knock', '-s', '/dev/fd/%d' % pipes[1]], request.signed, 2, None, pipes)
    finally:
        for descriptor in pipes:
            os.close(descriptor)

def check_programs(config):
    """What this box must have for this config; KnockError with all that it has not."""
    problems = path_flaws(os.path.dirname(config.ledger), 0o022)
    if any(client.ssh_key for client in config.clients.values()):
        try:
            run(['ssh-keygen', '-Y', 'sign'])
        except KnockError as error:
            if 'option' in str(error) or 'installed' in str(error):
                problems.append('%s: ssh_key needs ssh-keygen -Y (OpenSSH 8.1 or later): %s'
                                % (config.path, error))
    if problems:
        raise KnockError('\n'.join(problems), 2)

def read_file(path):
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        return file.read()

def write_file(path, data):
    """What is in it is on disk when this returns, its name perhaps not. OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    with open(descriptor, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)

def sync_folder(path):
    """The names in the folder of this file are on disk when this returns. OSError."""
    folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

def replace_file(path, data):
    """The file is either as it was or as it shall be, and on disk when this returns. OSError."""
    try:
        write_file(path + '.new', data)
        os.rename(path + '.new', path)
    except OSError:
        with contextlib.suppress(OSError):      # the first error is the one to tell
            os.unlink(path + '.new')
        raise
    sync_folder(path)

def path_flaws(path, forbidden):
    """A line for each user but root and us who could change this file, by a folder above it too;
    forbidden: bits of its mode. What is not there yet has no flaw."""
    path, real = os.path.abspath(path), os.path.realpath(path)
    if real != path:
        return ['%s goes through a link; write %s' % (path, real)]
    flaws, trusted = [], {0, os.geteuid(), os.stat('/').st_uid}     # '/': root in a namespace
    while path != '/':
        status = os.stat(path if os.path.exists(path) else '/')
        if status.st_uid not in trusted:
            flaws.append('%s belongs to user %d; type: chown root %s' % (path, status.st_uid, path))
        if status.st_mode & forbidden and status.st_mode & 0o41000 != 0o41000:      # as /tmp
            flaws.append('%s is open to others; type: chmod %s %s' % (
                path, '600' if forbidden == 0o027 else 'go-w', path))
        path, forbidden = os.path.dirname(path), 0o022
    return flaws

def read_config(path):
    """The Config in a file that belongs to root or us and is closed to others; KnockError with a
    line for everything that is wrong."""
    try:
        text, problems = read_file(path), path_flaws(path, 0o027)
        config = parse_config(text, os.path.abspath(path))
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror), 2)
    except KnockError as error:
        problems.append(str(error))
    if problems:
        raise KnockError('\n'.join(problems), 2)
    return config

def beside(config, name):
    """The path of what is kept in the ledger's folder."""
    return os.path.join(os.path.dirname(config.ledger), name)

def probation_left(path):
    """Milliseconds in which a new installation must be knocked at, by its guard, which says
    PROBATION until then; None if it has been. After another boot mono may be less than then."""
    try:
        text = read_file(path)
        if text and not text.startswith(PROBATION[:14]):
            return None
        left, since = map(int, re.findall(r'\d+', text))
        return max(0, left - max(0, moment().mono - since))
    except (OSError, ValueError):       # unreadable: rather no guard than its owner locked out
        return 0 if os.path.lexists(path) else None

class LedgerFile:
    """The ledger's file, its lock for this process's life, and the ballast beside it.

    Between two knocks an empty .new, its name on disk already, waits to be the next ledger: so a
    knock waits for one fsync. The rename is put on disk when nobody waits; if the power fails
    before that, load() finds the ledger under its first name."""

    def __init__(self, path):
        self.path, self.new, self.lock, self.held = path, path + '.new', None, None
        self.spare = self.renamed = False       # is .new that file; is a rename not yet on disk

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

    def load(self, server_id):
        """The Ledger; KnockError if it is missing, unreadable or not ours."""
        ledger = self.read(self.path, server_id)
        with contextlib.suppress(OSError, ValueError, KnockError):      # as a rule .new is empty
            ledger = self.read(self.new, server_id)
            self.renamed = True
        return ledger

    def read(self, path, server_id):
        for flaw in path_flaws(path, 0o022):
            raise KnockError(flaw)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding='ascii') as file:
            return parse_ledger(file.read(), server_id)

    def save(self, ledger):
        """On disk when this returns; OSError if it cannot be."""
        data = ledger.text().encode('ascii')
        try:
            self.write(data)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not os.path.exists(self.path + '.ballast'):
                raise
            os.unlink(self.path + '.ballast')
            self.write(data)

    def write(self, data):
        self.settle()
        if self.spare:
            self.spare = False
            write_file(self.new, data)
            os.rename(self.new, self.path)
            self.renamed = True
        else:
            replace_file(self.path, data)

    def settle(self):
        """The last rename is on disk when this returns. OSError."""
        if self.renamed:
            with contextlib.suppress(FileNotFoundError):    # as a rule it is done already
                os.rename(self.new, self.path)
            sync_folder(self.path)
            self.renamed = False

    def keep_spare(self):
        """For the next knock, which does without if this fails."""
        if self.spare:
            return
        with contextlib.suppress(OSError):
            self.settle()
            write_file(self.new, b'')
            sync_folder(self.path)
            old, self.held = self.held, os.open(self.path, os.O_PATH)   # waits for no fifo
            self.spare = True
            if old is not None:     # as long as a ledger is open, a rename over it frees nothing
                os.close(old)

    def keep_ballast(self):
        """Made again when there is room; random, for a file system may store zeros as nothing."""
        if not os.path.exists(self.path + '.ballast'):
            with contextlib.suppress(OSError):  # still full: the next step tries again
                replace_file(self.path + '.ballast', os.urandom(BALLAST))

def saved(file, ledger, what):
    """The ledger to disk; False, and one line, if it cannot be."""
    try:
        file.save(ledger)
    except OSError as error:
        log('%s: the ledger cannot be written: %s: %s' % (what, file.path, error.strerror), 3)
        return False
    return True

def open_ledger(file, config, now):
    """(the Ledger, whether it is under quarantine); never a reason to stop."""
    try:
        return file.load(config.id), False
    except (OSError, ValueError, KnockError) as error:
        ledger = Ledger(config.id)
        ledger.quarantine(now.wall, config.window)
        for client in config.clients.values():      # a sheet may be younger than a wrong clock
            if client.paper:
                ledger.record(client.fingerprint, '', 0, 0, (client.paper[0], VOID))
        reason = 'missing' if isinstance(error, FileNotFoundError) else str(error)
        log('quarantine: ledger %s, knocks count again at %s UTC; %s' % (
            reason, time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(ledger.floor // 1000 + 1)),
            file.path), 4)
    saved(file, ledger, 'quarantine')
    return ledger, True

class Firewall:
    """The kernel's rules as we want them: applied by one command a change; here by nft."""
    name, spare, clears, silent = 'nft', NFT, ('', '', NFT_NOTHING), False
    undo = 'nft delete table inet knockd'

    def __init__(self, config, openings=()):
        self.config, self.box, self.whole = config, None, None
        self.openings = dict(openings)          # (source, proto, port, once): Opening

    def ruleset(self):
        """Everything but counters and the elements of sets, as nft -j tells it."""
        return json.loads(run(['nft', '-j', '-s', '-t', 'list', 'ruleset']))['nftables']

    def look(self, ruleset):
        """The box as it is now, decoys chosen."""
        ephemeral = list(map(int, read_file('/proc/sys/net/ipv4/ip_local_port_range').split()))
        reflects = os.path.exists(FLOWLABEL_REFLECT) and int(read_file(FLOWLABEL_REFLECT)) & 2
        return Box(pick_decoys(self.config, ruleset, listening_ports(), ephemeral),
                   box_policy(ruleset, 'tcp'), box_policy(ruleset, 'udp'), not reflects)

    def live(self, now):
        return [opening for opening in self.openings.values() if opening.expires > now.mono]

    def commands(self, ruleset, living, now):
        """[(argument list, its standard input)] that put everything in force."""
        self.box = self.look(ruleset)
        return [(NFT, nft_ruleset(self.config, self.box, self.live(now), living, now))]

    def living(self):
        return living_connections([connection for text in tcp_tables()
                                   for connection in parse_connections(text)], self.config.hide)

    def text(self):
        """What load() applies, each part under the command for it, if that is not nft."""
        return ''.join(('' if argv == NFT else '# %s\n' % ' '.join(argv)) + text for argv, text
                       in self.commands(self.ruleset(), self.living(), moment()))

    def guard(self):
        """A shell script that hides what we hide; never over what is there."""
        foreign = [entry for entry in self.ruleset() if not is_ours(entry)]
        commands = type(self)(self.config).commands(foreign, (), moment())
        return '# For a boot without Python or a config.\n' + ''.join(
            GUARD % (THERE[argv[0]], ' '.join(argv), text) for argv, text in commands)

    def load(self, ruleset=None):
        """Puts everything in force, openings with the time they have left."""
        ruleset = ruleset or self.ruleset()
        for clear in self.clears:
            try:
                for argv, text in self.commands(ruleset, self.living(), moment()):
                    run(argv, clear + text)
                break
            except KnockError:      # nft has hung, or another version's table is in the way: to
                if clear == self.clears[-1]:    # delete it comes last, as it lets packets by
                    raise
        accepts = accept_changes(self.config, ruleset)
        if accepts:
            run(NFT, accepts)
        self.whole = listed(self.ruleset(), True), self.box, bool(self.config.hide), ''

    def outdated(self):
        """Must it be looked at, for no event tells: of iptables-legacy's, of a decoy's listener?"""
        return self.silent or listening_ports() & set(self.box.decoys.values())

    def hooked(self, ruleset):
        """Do packets come to us? load() may have looked too late to see that they do not."""
        return '"guard"' in listed(ruleset, True)

    def mend(self):
        """Loads everything again if something of ours is gone, or the box has changed."""
        ruleset = self.ruleset()
        if self.whole == (listed(ruleset, True), self.look(ruleset), self.hooked(ruleset),
                          accept_changes(self.config, ruleset)):
            return False
        self.load(ruleset)
        return True

    def opened(self, openings, known, now):
        return [(NFT, nft_open(openings, known, now))]

    def closed(self, openings):
        return [(NFT, nft_close(openings))]

    def open(self, openings, now):
        """A knock extends an opening, it never shortens or doubles it."""
        longest = [opening._replace(expires=max(opening.expires, self.openings.get(
            opening[1:5], opening).expires)) for opening in openings]
        known = {opening[1:5] for opening in longest}.intersection(self.openings)
        self.openings.update((opening[1:5], opening) for opening in longest)
        self.apply(self.opened(longest, known, now))

    def close(self, openings):
        for opening in openings:
            self.openings.pop(opening[1:5], None)
        if openings:
            self.apply(self.closed(openings))

    def apply(self, commands):
        try:
            for argv, text in commands:
                run(argv, text)
        except KnockError:      # somebody took our rules away: put them back, this change included
            self.load()

    def chosen(self, knock):
        """The openings that a knock's `close` means: its own, from its own address."""
        return [opening for opening in self.openings.values()
                if (opening.client, opening.source) == (knock.client.name, widened(knock)) and
                (not knock.services or
                 covered(Service(opening.proto, opening.port, opening.port), knock.services))]

class Iptables(Firewall):
    """By iptables and ip6tables; openings in an ipset or, without that tool, in recent lists."""
    name, spare, clears, silent = 'iptables', IPSET, ('',), True
    undo = 'for of in mangle filter nat; do iptables -t $of -F KNOCKD; ' \
        'ip6tables -t $of -F KNOCKD; done'

    def __init__(self, config, openings=()):
        super().__init__(config, openings)
        flaws = ['[client %s] once' % client.name for client in config.clients.values()
                 if client.once]
        flaws += ['[server] accept_in'] * any(chain != ('auto',) for chain in config.accept_in)
        flaws += ['[server] trust: ' + name for name in config.trust if name.endswith('+')]
        if flaws:
            raise KnockError('%s: %s: iptables cannot do that; install nftables'
                             % (config.path, flaws[0]), 2)
        self.tools, self.ipset = {4: 'iptables', 6: 'ip6tables'}, find_program('ipset')
        self.seconds = {}       # {opening's key: those in its rule}, without ipset
        if not find_program('ip6tables') or not os.path.exists('/proc/net/if_inet6'):
            del self.tools[6]
            self.name += ' (IPv6 is not guarded: no ip6tables, or no IPv6)'

    def ruleset(self):
        return [entry for tool in self.tools.values()
                for entry in parse_saved(tool, run([tool + '-save']))]

    def rules(self, version, living, now, box):
        passing = ['-s %s -p tcp ! --syn --sport %d --dport %d' % connection
                   for connection in living if connection[0].version == version]
        passing += ['-m set --match-set knockd%d src,dst' % version] if self.ipset else [
            recent_match(opening, self.seconds[opening[1:5]]) for opening in self.live(now)
            if opening.source.version == version]
        return iptables_rules(self.config, box, version, passing)

    def live(self, now):
        """Without what has less than a second left, the unit of both stores; and where nothing is
        hidden, nothing has a rule to be open by."""
        return [opening for opening in self.openings.values() if self.config.hide
                and seconds_left(opening, now) > 0 and opening.source.version in self.tools]

    def commands(self, ruleset, living, now):
        self.box, live, commands = self.look(ruleset), self.live(now), []
        self.seconds = {opening[1:5]: seconds_left(opening, now) for opening in live}
        for version, tool in self.tools.items():
            entries = [entry for entry in ruleset for value in entry.values()
                       if value['family'] == tool]
            box = self.box._replace(tcp=box_policy(entries, 'tcp'), udp=box_policy(entries, 'udp'))
            commands.append(iptables_restore(tool, self.rules(version, living, now, box),
                                             our_jumps(entries)))
        if not self.ipset:
            return commands + recent_open(live)
        sets = ipset_all(live, now)     # made first: destroying none is an error before Linux 5.11
        return [(IPSET, sets)] + commands if self.config.hide else \
            commands + [(IPSET, sets + IPSET_NOTHING)]

    def opened(self, openings, known, now):
        if self.ipset:
            return [(IPSET, ipset_change('add', openings, now))]
        self.seconds.update((opening[1:5], seconds_left(opening, now)) for opening in openings)
        return self.closed(openings) + recent_open(openings)

    def closed(self, openings):
        """Without ipset, what is open is rules of mangle; those of these families are replaced."""
        if self.ipset:
            return [(IPSET, ipset_change('del', openings))]
        return [iptables_restore(tool, {'mangle': self.rules(
            version, self.living(), moment(), self.box)['mangle']})
            for version, tool in self.tools.items()
            if version in {opening.source.version for opening in openings}]

    def hooked(self, ruleset):
        return our_jumps(ruleset) == sorted((tool, table, hook) for tool in self.tools.values()
                                            for table in HOOKS for hook in HOOKS[table])

BACKENDS = collections.OrderedDict((('nft', Firewall), ('iptables', Iptables)))

def make_firewall(config, openings=()):
    """By nft if it is there, by iptables if only that is."""
    names = list(BACKENDS) if config.firewall == 'auto' else [config.firewall]
    return BACKENDS[next(filter(find_program, names), names[0])](config, openings)

def widened(knock):
    """The network that a knock is for: its address alone, unless the client's section says more."""
    length = knock.client.prefix4 if knock.source.version == 4 else knock.client.prefix6
    return ipaddress.ip_network((knock.source, length), strict=False)

def tcp_tables():
    """Of both families; a kernel without IPv6 has no tcp6."""
    return [read_file(path) for path in ('/proc/net/tcp', '/proc/net/tcp6') if os.path.exists(path)]

def listening_ports():
    """Looked at in each step, among what may be 100,000 connections."""
    listening = r':(\w{4}) \w+:\w{4} %02X ' % TCP_LISTEN
    return {int(port, 16) for text in tcp_tables() for port in re.findall(listening, text)}

def ruleset_events():
    """A socket that becomes readable when anybody changes the ruleset."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        sock.bind((0, 1 << NFNLGRP_NFTABLES - 1))
    except OSError:             # an old kernel with iptables alone: nothing ever comes
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock

def ruleset_changed(events):
    """Reads what waits: was there more than set elements, which change with every knock?"""
    changed = False
    while True:
        try:
            data = events.recv(65536)
        except OSError as error:        # no more; or ENOBUFS: more changes than it could hold
            return changed or error.errno != errno.EAGAIN
        while data:
            length, kind = struct.unpack_from('=IH', data)      # linux/netlink.h: struct nlmsghdr
            changed |= kind & 0xff not in ELEMENT_EVENTS
            data = data[length + 3 & ~3:]

def attach_filter(sock, program):
    """SO_ATTACH_FILTER with a struct sock_fprog { u16 len; struct sock_filter *filter; }."""
    code = array.array('B', b''.join(struct.pack('@HBBI', *line) for line in program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                    struct.pack('@HL', len(program), code.buffer_info()[0]))

def packet_socket(protocol):
    """Every interface, from the IP header on, nothing of what this box sends."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
                             socket.htons(protocol))
    except PermissionError:
        raise KnockError('raw sockets are not permitted; run it as root (CAP_NET_RAW)')
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    with contextlib.suppress(PermissionError):      # in a container; net.core.rmem_max limits it
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    return sock

class Capture:
    """Taps: packet sockets in pairs, IPv4 and IPv6, a pair for each share of the tokens."""

    def __init__(self, limit):
        self.limit, self.taps, self.capacity, self.coarse = limit, [], FILTER_TAGS, False

    def load(self, tokens, program):
        """Attaches program(version, tokens); a coarser one where the kernel lacks the memory."""
        words = tokens if len(tokens) > self.limit * FILTER_TAGS else {
            int.from_bytes(token[:4], 'big') for token in tokens}
        shares = token_shares(words, self.capacity, self.limit)
        try:
            self.attach(shares, program)
        except OSError as error:
            if error.errno != errno.ENOMEM or shares == [None]:
                raise
            self.capacity = self.capacity * 3 // 4
            return self.load(tokens, program)
        if self.coarse != (shares == [None]):
            self.coarse = not self.coarse
            log('filter: %s' % ('the kernel cannot hold %d tokens (net.core.optmem_max), Python '
                                'does its work' % len(words) if self.coarse else 'whole again'), 4)

    def attach(self, shares, program):
        while len(self.taps) < 2 * len(shares):
            self.taps += [(4, packet_socket(ETH_P_IP)), (6, packet_socket(ETH_P_IPV6))]
        while len(self.taps) > 2 * len(shares):
            self.taps.pop()[1].close()
        for number, (version, sock) in enumerate(self.taps):
            attach_filter(sock, program(version, shares[number // 2]))

    def sockets(self):
        return {sock.fileno(): (version, sock) for version, sock in self.taps}

    def drops(self):
        """How many packets the kernel had no room for since the last time."""
        return sum(struct.unpack('@II', sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
                   for _, sock in self.taps)

def token_shares(tokens, capacity, limit=SOCKET_PAIRS):
    """The tokens of each socket pair; [None] if they are more than all pairs hold.
    By remainder, so that a token stays where it is when others come and go: no gap at a swap."""
    count = max(1, -(-len(tokens) // capacity)) if capacity else limit + 1
    if count > limit:
        return [None]
    return [[token for token in tokens if token % count == share] for share in range(count)]

def receive(sock, named=True, limit=256):
    """The frames that wait in a packet socket, up to a limit, each with its (interface, ...) if it
    shall be named: for that, Python makes a system call of its own."""
    for _ in range(limit):
        try:
            yield sock.recvfrom(65536) if named else (sock.recv(65536), ('',))
        except OSError as error:        # ENETDOWN: an interface went away, the others did not
            if error.errno in (errno.EAGAIN, errno.EBADF):
                return                  # no more, or closed since a smaller filter needs fewer
            if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.EINTR):
                raise

def is_own(address, interface):
    """Is this an address of this box? Binding a socket to it tells; nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        scope = socket.if_nametoindex(interface) if address.is_link_local else 0
        sock.bind((str(address), 0) if address.version == 4 else (str(address), 0, 0, scope))
        return True
    return False

# --- daemon: waits, reads, asks the judge, honours what he decides ------------------------------
class Daemon:
    """One process, one thread; it holds the ledger's lock, the sockets and what is open."""

    def __init__(self, config, verbose=False):
        self.config, self.verbose = config, verbose
        self.file = LedgerFile(config.ledger)
        self.datagrams, self.syns = Capture(SOCKET_PAIRS), Capture(1)
        self.firewall = make_firewall(config)
        self.sequences, self.codes = Sequences(paper_sequences(config)), Codes()
        self.tokens = []        # StepTokens: those that are loaded, and last the step's to come
        self.pace, self.stopping = Budget(SYNS_A_SECOND), False
        self.is_own = functools.lru_cache(SOURCES_LIMIT)(is_own)    # forgotten at each step
        self.muted, self.unmute = set(), None       # tags, and 'syn' for all SYNs; until when
        self.events, self.mend_at = None, None      # what tells of changes; when to look
        self.told = {}          # kind of line: (mono of the last one, their count then)
        self.stamp = self.steps = self.state = self.lost = self.doubt = self.asked = None
        self.counts, self.last, self.junk = collections.Counter(), {}, 0
        self.open, self.next_end = {}, NEVER    # (client, source, ports): its first Opening
        self.inside = False     # the frame that we look at is from this box, or from a `trust`
        self.trial, self.renew = None, False    # mono when a probation ends, 0: nobody came

    def start(self):
        self.file.take()
        now = moment()
        self.stamp = config_stamp(self.config.path)
        ledger, lost = open_ledger(self.file, self.config, now)
        self.lost = now.wall - now.mono if lost else None
        self.state = State(self.config, ledger)
        self.events = ruleset_events()
        left = probation_left(beside(self.config, 'guard'))
        self.trial = left and now.mono + left
        self.enforce(self.config)
        self.turn(now)
        self.asked = status_socket(self.config)
        log('ready: ' + state_line(self.firewall) + (
            '; on probation: %d s for a first knock from outside' % (left // 1000) if left else ''))
        notify('READY=1')

    def loop(self, signals):
        """Until told to stop."""
        self.start()
        while not self.stopping:
            poll = select.poll()
            datagrams, syns = self.datagrams.sockets(), self.syns.sockets()
            for waker in [signals, self.events, self.asked] + list(datagrams) + list(syns):
                poll.register(waker, select.POLLIN)
            prepared = spares and not self.tokens[-1].waiting
            ready = {descriptor for descriptor, _ in
                     poll.poll(self.patience(moment()) if prepared else 0)}
            for number in os.read(signals, 64) if signals in ready else ():
                self.stopping |= number != signal.SIGHUP
                if number == signal.SIGHUP:
                    self.reload(moment())
            if self.asked.fileno() in ready:
                self.answer(moment())
            for heard, hear in ((datagrams, self.hear_datagram), (syns, self.hear_syn)):
                for descriptor in ready & set(heard):   # SYNs last: a flood delays no datagram
                    self.read(*heard[descriptor], hear=hear)
            if self.events.fileno() in ready and ruleset_changed(self.events):
                self.mend_at = self.mend_at or moment().mono + COALESCE
            self.watch(moment())
            self.tokens[-1].derive(SLICE)
            if not ready:               # so that no knock waits for it
                keep_spare(self.firewall.spare)
                self.file.keep_spare()
        log('stopped; what is hidden stays hidden, until you type: ' + self.firewall.undo)

    def patience(self, now):
        """Milliseconds until anything is due."""
        due = [at - now.mono for at in (self.next_end, self.unmute, self.mend_at, self.trial) if at]
        due += [int(os.environ.get('WATCHDOG_USEC', '0')) // 2000 or STEP,
                STEP - (now.wall + self.config.window) % STEP]
        return max(0, min(due)) + 1

    def watch(self, now):
        """What every wake-up looks at: mutes, the config, the step; a jump of the clock is one."""
        self.look_for_step(now)
        self.look_for_ends(now)
        notify('WATCHDOG=1\nSTATUS=%d openings' % len(self.open))
        if self.unmute is not None and now.mono >= self.unmute:
            self.muted, self.unmute = set(), None
            self.listen()
        if window_steps(now.wall, self.config.window) != self.steps:
            if config_stamp(self.config.path) != self.stamp:
                self.reload(now)
            self.turn(now)
            if self.steps.stop % 120 == 0 and self.counts['junk'] > self.junk:      # once an hour
                log('junk: %d packets were not authentic' % (self.counts['junk'] - self.junk), 5)
                self.junk = self.counts['junk']
            if self.firewall.outdated():
                self.mend_at = now.mono
        if self.trial and now.mono >= self.trial:
            self.settle(0, 'no authentic knock came from outside: nothing is hidden until one '
                        'does; type elsewhere: knock.py and what knockd.py show prints', now)
        if self.mend_at is not None and now.mono >= self.mend_at:
            self.mend(now)

    def mend(self, now):
        """After somebody's change of the ruleset; again in a second if that fails."""
        self.mend_at = None
        try:
            if self.renew:
                self.enforce(self.config)
            elif self.firewall.mend():
                self.tell('firewall mended', 'firewall: something of ours was gone or the box '
                          'has changed; loaded again', now)
        except KnockError as error:
            self.tell('firewall failed', 'firewall: %s' % error, now)
            self.mend_at = now.mono + 1000

    def enforce(self, config):
        """The firewall as config has it; none at all after a probation that nobody passed."""
        allowed = {client.name: client.allow for client in config.clients.values()}
        openings = {key: opening for key, opening in self.firewall.openings.items() if covered(
            Service(opening.proto, opening.port, opening.port), allowed.get(opening.client, ()))}
        firewall = make_firewall(config._replace(hide=(), accept_in=()) if self.trial == 0
                                 else config, openings)
        firewall.load()
        self.firewall, self.renew = firewall, False
        if self.trial is None and os.path.exists(beside(config, 'guard')):      # installed
            self.keep_guard(firewall.guard())

    def settle(self, trial, line, now):
        """A probation ends: by an authentic knock from outside (None), or nobody has come (0)."""
        log('probation: ' + line, 4)
        self.trial, self.renew, self.mend_at = trial, True, now.mono
        self.keep_guard(PASSED if trial is None else PROBATION % (0, now.mono))

    def keep_guard(self, text):
        """Renews it if it has changed, for flash wears."""
        path = beside(self.config, 'guard')
        try:
            if read_file(path) != text:
                replace_file(path, text.encode('ascii'))
        except OSError as error:
            log('%s: %s' % (path, error.strerror), 3)

    def look_for_step(self, now):
        """After a lost ledger, a forward step of the clock could make old knocks good again."""
        ahead = 0 if self.lost is None else now.wall - now.mono - self.lost
        if ahead > 1000:
            self.state.ledger.quarantine(now.wall, self.config.window)
            saved(self.file, self.state.ledger, 'the clock went forward')
        if not 0 <= ahead <= 1000:
            self.lost += ahead

    def turn(self, now):
        """A new step: other tokens."""
        config, state = self.config, self.state
        self.steps = window_steps(now.wall, config.window)
        self.is_own.cache_clear()
        self.file.keep_ballast()
        if self.trial:          # for the next boot
            self.keep_guard(PROBATION % (max(0, self.trial - now.mono), now.mono))
        self.tokens = valid_tokens(config, now.wall, self.tokens)
        loaded = self.tokens[:-1]
        state.tags = {tag: owner for step in loaded for tag, owner in step.tags.items()}
        state.syns = {syn: token for step in loaded for syn, token in step.syns.items()}
        state.codes = valid_codes(config, now.wall)
        self.sequences.tables[1:] = [step.sequences for step in loaded]
        self.listen()
        doubt, self.doubt = self.doubt, clock_doubt(config, state.ledger, now.wall)
        if bool(doubt) != bool(self.doubt):
            log('clock: %s' % (self.doubt or 'plausible again'), 4)
            self.codes = Codes()        # its wrong tries may have been our clock's

    def listen(self):
        config = self.config
        self.datagrams.load(self.state.tags.keys() - self.muted, lambda version, tokens:
                            datagram_filter(version, config.carriers, config.port, tokens))
        ports = SEQUENCE_PORTS['ports'] if any(self.sequences.tables) else \
            SEQUENCE_PORTS['code'] if self.state.codes else None
        if ports or self.state.syns:
            self.syns.load(self.state.syns, lambda version, tokens:
                           syn_filter(version, None if 'syn' in self.muted else ports, tokens))
        else:
            self.syns.attach([], None)

    def reload(self, now):
        """A bad config is reported and the old one stays in force."""
        self.stamp = config_stamp(self.config.path)
        try:
            config = read_config(self.config.path)
            if (config.id, config.ledger) != (self.config.id, self.config.ledger):
                raise KnockError('%s: id and ledger change only with a restart' % config.path)
            check_programs(config)
            self.enforce(config)
        except KnockError as error:
            for line in str(error).splitlines():
                log('config refused, the old one stays: %s' % line, 4)
            return
        self.config = self.state.config = config
        self.sequences, self.tokens = Sequences(paper_sequences(config)), []    # not of before
        self.next_end = now.mono
        self.turn(now)
        log('config reloaded: ' + state_line(self.firewall))

    def read(self, version, sock, hear):
        """Every waiting frame; one that breaks us is told of and does not stop us."""
        for frame, address in receive(sock, hear == self.hear_syn or self.trial is not None):
            try:
                self.inside = address[0] in ('lo',) + self.config.trust
                hear(version, frame, address[0])
            except Exception as error:          # a defect of ours must not be a way to stop us
                log('internal error: %s: %s' % (type(error).__name__, error), 3)

    def hear_datagram(self, version, frame, _):
        tag = 48 if version == 6 else (frame[0] & 15) * 4 + TRANSPORT if frame else 0
        if frame[tag:tag + TAG_SIZE] not in self.state.tags and not self.verbose:
            self.counts['junk'] += 1            # as judge() would say, for half the cost
            return
        packet = parse_packet(version, frame, self.config.carriers, self.config.port)
        if packet is not None:
            self.handle(packet, moment())

    def hear_syn(self, version, frame, interface):
        """A SYN from outside to this box, if there are not too many of them: it may be a token
        itself, or a step of a sequence, or half of a code."""
        now = moment()
        if not self.pace.spend('syn', now.mono // 1000, self.syns.drops()):
            if 'syn' not in self.muted:
                self.mute('syn', 2, now)
                self.tell('too many SYNs', 'more than %d SYNs a second: ports, code and paper sleep'
                          % SYNS_A_SECOND, now)
            return
        syn = parse_syn(version, frame)
        if syn is None or self.inside or not self.is_own(syn.destination, interface):
            return
        token = self.state.syns.get(syn.badge)
        if token:
            self.handle(Packet('syn', syn.source, token), now)
        if syn.port < 1024 or covered(Service(6, syn.port, syn.port), self.config.hide):
            return
        if 'syn' not in self.muted:
            for token in self.sequences.touch(syn.source, syn.port, now.mono):
                self.handle(Packet(token.carrier, syn.source, token), now)
            if self.sequences.explained:
                return                          # half of no code
        token = self.codes.touch(syn.source, syn.port, now.mono, self.state.codes)
        if token and self.handle(Packet('code', syn.source, token), now):
            self.codes.succeed()

    def mute(self, token, seconds, now):
        """What is over its budget stays in the kernel until so many seconds have begun."""
        self.muted.add(token)
        self.unmute = max(self.unmute or 0, (now.mono // 1000 + seconds) * 1000)
        self.listen()

    def handle(self, packet, now):
        """True if the knock was honoured."""
        self.look_for_step(now)
        decision = judge(packet, now, self.state)
        knock, reason = decision.knock, decision.reason
        self.counts[decision.verdict] += 1
        if self.verbose and decision.verdict in ('junk', 'copy'):
            log('%s %s' % (decision.verdict, packet.source), 7)
        if decision.verdict == 'mute' and packet.payload[:TAG_SIZE] not in self.muted:
            self.mute(packet.payload[:TAG_SIZE], 1, now)
        elif decision.verdict in ('open', 'close', 'run'):
            reason = self.signature_flaw(knock, now) if knock.client.ssh_key else None
            if reason is None:
                return self.honour(decision, packet.source, now)
        if reason:
            self.tell('refused %s %s' % (knock.client.name, reason.split()[0]),
                      'refused %s %s %s' % (knock.client.name, knock.source, reason), now)
        return False

    def signature_flaw(self, knock, now):
        """The last check, for it starts a process."""
        if not self.state.signatures.spend(knock.client.name, now.mono // 1000):
            return 'too fast for signatures'
        try:
            return verify_signature(knock.client, knock.request)
        except KnockError as error:
            return 'signature: %s' % error

    def honour(self, decision, sender, now):
        """Ledger recorded, on disk, firewall, log: in this order, or not at all."""
        knock, state = decision.knock, self.state
        state.honoured = {known: seen for known, seen in state.honoured.items()
                          if now.mono - seen[1] <= COPY_TIME}
        state.ledger.record(knock.client.fingerprint, knock.knock_id, knock.request.time,
                            self.config.window, knock.paper)
        if not saved(self.file, state.ledger, 'refused %s %s' % (knock.client.name, knock.source)):
            return False
        state.honoured[knock.client.fingerprint, knock.knock_id] = sender, now.mono
        if self.trial is not None and not self.inside:
            self.settle(None, 'passed, it hides for good', now)
        before = dict(self.firewall.openings)
        try:
            if decision.verdict == 'open':
                client, source = knock.client, widened(knock)
                openings = [PortOpening(client.name, source, proto, port, client.once,
                                    now.mono + knock.seconds * 1000)
                            for proto, low, high in knock.services for port in range(low, high + 1)]
                self.firewall.open(openings, now)
                group = knock.client.name, str(knock.source), format_services(knock.services)
                self.open[group] = openings[0]
                self.next_end = min(self.next_end, openings[0].expires + CLOSING_TIME)
                perform('on_open', self.config.on_open, group + (knock.seconds,))
            elif decision.verdict == 'close':
                self.firewall.close(self.firewall.chosen(knock))
                self.next_end = now.mono
            else:
                perform(knock.request.action, self.config.actions[knock.request.action],
                        (knock.client.name, knock.source, '', knock.seconds))
        except KnockError as error:
            self.firewall.openings = before     # or what failed now would fail with every load
            log('%s %s %s failed: %s' % (decision.verdict, knock.client.name, knock.source, error),
                3)
            return False
        self.last[knock.client.name] = now.wall, str(knock.source)
        log(honour_line(decision, now, moment()))
        return True

    def look_for_ends(self, now):
        """What is over, and its hook; at most once a second, for it looks at every opening."""
        if now.mono < self.next_end:
            return
        live = {key: opening for key, opening in self.firewall.openings.items()
                if opening.expires + CLOSING_TIME > now.mono}
        for group in [group for group, opening in self.open.items() if opening[1:5] not in live]:
            del self.open[group]
            perform('on_close', self.config.on_close, group + (0,))
        self.open = {group: live[opening[1:5]] for group, opening in self.open.items()}
        self.firewall.openings = live
        ends = [opening.expires + CLOSING_TIME for opening in self.open.values()]
        self.next_end = max(min(ends, default=NEVER), now.mono + 1000)

    def answer(self, now):
        """What `status` wants to know; `reload` is told that the config has changed."""
        with contextlib.suppress(OSError):      # whoever asked has gone
            word, asker = self.asked.recvfrom(16)
            if word == b'reload':
                self.reload(now)
            openings = [group + ((opening.expires - now.mono) // 1000,)
                        for group, opening in self.open.items()]
            report = {'clock': self.doubt, 'counts': self.counts, 'knocks': self.last,
                      'openings': openings,
                      'probation': self.trial and max(0, self.trial - now.mono) // 1000}
            self.asked.sendto(json.dumps(report).encode('ascii'), asker or b'')

    def tell(self, kind, line, now):
        """The same kind of line once a minute; every one is counted, for `status` too."""
        last, told = self.told.get(kind, (-60000, 0))
        self.counts[kind] += 1
        if now.mono - last >= 60000:
            more, self.told[kind] = self.counts[kind] - told - 1, (now.mono, self.counts[kind])
            log(line + (' (%d more before)' % more if more else ''), 5)

def status_socket(config):
    """A socket that nobody but root (or our user) can ask; where it cannot be, one nobody asks."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    path = STATUS_SOCKET % config.id
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        for flaw in path_flaws(os.path.dirname(path), 0o022):
            raise PermissionError(errno.EPERM, flaw)
        if os.path.lexists(path):
            os.unlink(path)     # nobody's: we hold the ledger's lock
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
    except OSError as error:
        log('status: %s: %s' % (path, error.strerror), 4)
    return sock

def config_stamp(path):
    """Changes when the file does; None while it is not there."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_mtime_ns, status.st_ino, status.st_size
    return None

def clock_doubt(config, ledger, now):
    """Why the clock cannot be right, or None: something of ours is from a later time."""
    paths = config.path, config.ledger, globals().get('lean', {}).get('script', config.path)
    latest = max([stamp[0] // 1000000 for stamp in map(config_stamp, paths) if stamp] +
                 [time - config.window for key in ledger.keys.values()
                  for time in key['spent'].values()], default=0)
    return '%s UTC is before %s, the time of a file or a knock of ours: only paper knocks count ' \
        'until it is set; type: date -s, or let NTP do it' % (day(now), day(latest)) \
        if now < latest - 1000 else None

def state_line(firewall):
    """What the log says at the start, and of a new config."""
    config, decoys = firewall.config, sorted(firewall.box.decoys.values())
    return '%d client%s; hiding %s; %s; answer %s%s' % (
        len(config.clients), 's'[len(config.clients) == 1:], format_services(config.hide) or
        'nothing', firewall.name, config.answer,
        ' via decoy ' + ', '.join(map(str, decoys)) if 0 < len(decoys) < 5 else '')

def honour_line(decision, began, ended):
    """open laptop 203.0.113.5 tcp/22 30s udp skew +0.3s 3ms"""
    knock, told = decision.knock, decision.knock.carrier in ('udp', 'icmp')
    return ' '.join(filter(None, [
        decision.verdict, knock.client.name, str(knock.source),
        knock.request.action or format_services(knock.services) or 'all',
        '%ds' % knock.seconds if decision.verdict == 'open' else '', knock.carrier,
        'skew %+.1fs' % ((knock.request.time - began.wall) / 1000) if told else '',
        '%dms' % (ended.mono - began.mono)]))

# --- administration: one function a command ------------------------------------------------------
def signal_pipe():
    """A descriptor on which the numbers of caught signals arrive."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader

def go_lean(args):
    """Compiling this file leaves 5 MB of garbage that CPython never gives back, argparse half of
    one: the daemon goes on in a fresh interpreter, same process, that only loads the compiled code
    and has args, as "lean", to begin with."""
    if __name__ != '__main__' or not os.path.exists(globals().get('__file__', '')):
        return                          # lean already, or read from standard input
    import marshal
    code = compile(read_file(__file__), __file__, 'exec', optimize=2)
    lean = dict(vars(args), function=None, script=os.path.abspath(__file__))
    reader = pipe_with(marshal.dumps((code, {'__name__': '__main__', 'lean': lean})))
    os.set_inheritable(reader, True)
    flags = ['-I'] * sys.flags.isolated + ['-S'] * sys.flags.no_site
    os.execv(sys.executable, [sys.executable] + flags + [
        '-c', 'import marshal; exec(*marshal.load(open(%d, "rb")))' % reader] + sys.argv[1:])

def put(args, path, text, mode=0o600):
    """Writes a file and its folder; with --dry-run it is only shown."""
    if args.dry_run:
        return print('--- %s, mode %o\n%s' % (path, mode, text))
    path = args.root + path
    os.makedirs(os.path.dirname(path), 0o755 if mode & 4 else 0o700, exist_ok=True)
    replace_file(path, text.encode('utf-8', 'surrogateescape'))
    return os.chmod(path, mode)

def first_config(args, name, hide, *entries):
    """The config; if there is none yet, the first one and an empty ledger: nothing is spent."""
    path = os.path.abspath(args.config)
    if os.path.exists(args.root + path):
        return read_config(args.root + path)
    if not (name and hide):
        raise KnockError('%s is not there; for a first try type: knockd.py run --hide tcp/22 '
                         '--client NAME' % path, 2)
    if not (any(map(find_program, BACKENDS)) or args.root or args.dry_run):
        raise missing('nft')
    entries = (('id', os.urandom(8).hex()), ('hide', hide), ('host', args.host)) + entries
    text = edited('', 'server', [entry for entry in entries if entry[1]])
    text = edited(text, 'client ' + name, client_entries(args))
    config = parse_config(text, path)
    put(args, config.ledger, Ledger(config.id).text())
    put(args, path, text)
    print(client_line(config, config.clients[name]), flush=True)
    return config

def guess_host():
    """The address that this box would use towards the world; connecting UDP sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return socket.gethostname() if sock.connect_ex(('192.0.2.1', 9)) else sock.getsockname()[0]

def client_line(config, client, via='udp'):
    """knock://NAME:SECRET@HOST[:PORT]?id=SERVERID[&via=udp][&open=tcp/22,...][&once=1]; with codes,
    a line for the phone too (Google Authenticator's Key Uri)."""
    host = (config.host or guess_host()).replace('%', '%25')
    host = '[%s]' % host if ':' in host else host
    port = ':%d' % config.port if config.port else ''
    query = (('id', config.id), ('via', '' if via == 'udp' else via),
             ('open', format_services(client.default)), ('once', '1' * client.once))
    line = 'knock://%s:%s@%s%s?%s' % (client.name, encode_secret(client.secret), host, port,
                                      '&'.join('%s=%s' % part for part in query if part[1]))
    phone = '\notpauth://totp/knock:%s@%s?secret=%s&issuer=knock&algorithm=SHA1&digits=8&period=30'
    return line + (phone % (client.name, config.host or config.id, encode_secret(
        client.keys['code'][:20])) if client.code else '')

def edit_config(path, changes):
    """Writes a good config in which just these {section: entries} are new; a section without any
    goes."""
    text = read_file(path)
    sections = dict(ini_sections(text, path))
    for section, entries in changes.items():
        known = sections.pop(section, {})
        sections.update({section: dict(known, **dict(entries))} if entries else {})
        text = edited(text, section, entries)
    config = parse_config(text, os.path.abspath(path))
    if ini_sections(text, path) != sections:
        raise KnockError('%s: [%s] cannot be changed safely; edit it by hand' % (path, section))
    replace_file(config.path, text.encode('utf-8', 'surrogateescape'))
    ask_daemon(config, b'reload')       # without an answer, it looks for itself within 30 s
    return config

def ask_daemon(config, word):
    """What the daemon answers; nothing if there is none."""
    with contextlib.suppress(OSError), \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind('')                   # any name, for the answer: unix(7), autobind
        sock.connect(STATUS_SOCKET % config.id)
        sock.send(word)
        return json.loads(sock.recv(1 << 20).decode('ascii'))
    return {}

def find_client(config, name):
    if name not in config.clients:
        raise KnockError('there is no client %r; knockd.py list shows who there is' % name)
    return config.clients[name]

def known_ledger(config):
    """The ledger as it is on disk, an empty one if it cannot be read; without the lock."""
    with contextlib.suppress(OSError, ValueError, KnockError):
        return LedgerFile(config.ledger).load(config.id)
    return Ledger(config.id)

def command_run(args, _):
    go_lean(args)
    config = first_config(args, args.client, args.hide)
    check_programs(config)
    Daemon(config, args.verbose).loop(signal_pipe())

def command_check(args, config):
    check_programs(config)
    make_firewall(config)           # refuses what its backend cannot do
    print('configuration OK')

def command_rules(args, config):
    firewall = make_firewall(config)
    print(firewall.text() + accept_changes(config, firewall.ruleset()), end='')

def command_add(args, _):
    if not os.path.exists(args.config):
        return first_config(args, args.name, args.allow)
    config, changes = read_config(args.config), {'client ' + args.name: client_entries(args)}
    if args.name in config.clients:
        raise KnockError('there is a client %s already; remove it first' % args.name)
    bare = tuple(service for service in parse_services(args.allow or '')
                 if not covered(service, config.hide))
    if bare and os.isatty(0) and hide_too(format_services(bare)):
        changes['server'] = [('hide', format_services(config.hide + bare))]
    config = edit_config(args.config, changes)
    return print(client_line(config, config.clients[args.name]))

def hide_too(services):
    """Asks at the terminal; a no lets parse_config() say what is wrong."""
    print('%s: not hidden. Hide it too? [y/N] ' % services, end='', file=sys.stderr, flush=True)
    return os.read(0, 100).strip().lower() in (b'y', b'yes')

def client_entries(args):
    """A client's section out of the options of a command, which are called as its keys."""
    told = dict(vars(args), secret=encode_secret(os.urandom(32)))
    return [(key, told[key].strip()) for key in CLIENT_KEYS if told.get(key)]

def command_show(args, config):
    line = client_line(config, find_client(config, args.name), args.via)
    print(line, flush=True)
    for text in line.splitlines() if args.qr else ():
        print(run(['qrencode', '-t', 'ANSIUTF8'], text))    # by its input: argv is for all to see

def command_paper(args, config):
    """A new sheet; its number is this second, so a ledger that was lost since makes it void."""
    client = find_client(config, args.name)
    sheet = max(int(time.time()), known_ledger(config).floor // 1000 + 1,
                (client.paper or (0, 0))[0] + 1)
    edit_config(args.config, {'client ' + args.name: [('paper', '%d:%d' % (sheet, args.number))]})
    print('Paper knocks of %s for %s, sheet %d. Touch the six TCP ports of a line in this order,\n'
          'within 20 s, each line once, from the top; a line voids those above it.'
          % (args.name, config.host or guess_host(), sheet))
    for number in range(1, args.number + 1):
        ports = paper_ports(client.keys, sheet, number)
        if not any(covered(Service(6, port, port), config.hide) for port in ports):
            print('%3d  %s' % (number, ' '.join('%5d' % port for port in ports)))

def print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())

def client_rows(config, knocks):
    """A line a client: name, what it may open, until when it may, when it last did."""
    ledger, now, rows = known_ledger(config), moment().wall, []
    for client in config.clients.values():
        spent = ledger.keys.get(client.fingerprint, {}).get('spent', {})
        when, source = knocks.get(client.name, (max(spent.values(), default=NEVER), 'unknown'))
        rows.append((client.name, format_services(client.allow), day(client.expires),
                     'never' if when == NEVER else '%s ago from %s'
                     % (duration((now - when) // 1000), source)))
    return [('CLIENT', 'ALLOW', 'EXPIRES', 'LAST KNOCK')] + rows

def command_list(args, config):
    print_table(client_rows(config, ask_daemon(config, b'status').get('knocks', {})))

def command_status(args, config):
    report = ask_daemon(config, b'status')
    if args.json:
        print(json.dumps(dict(report, alive=bool(report), clients=list(config.clients))))
    elif report:
        print('alive; clock: %s\n' % (report['clock'] or 'plausible'))
        if report['probation'] is not None:
            print('probation: %d s left for a knock from outside\n' % report['probation'])
        print_table(client_rows(config, report['knocks']) + [('\nOPEN', '', '', '')] + [
            group[:3] + ['closes in ' + duration(group[3])] for group in report['openings']])
        print_table([('\nCOUNTED', '')] + [
            (what, '%d' % count) for what, count in sorted(report['counts'].items())])
    if not report:
        raise KnockError('no daemon answers at ' + STATUS_SOCKET % config.id)

def duration(seconds):
    """12 s, 5 min, 3 h, 4 d: as much as a person wants to know."""
    for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return '%d %s' % (seconds // size, unit)
    return '%d s' % max(0, seconds)

def day(ms):
    return 'never' if ms == NEVER else time.strftime('%Y-%m-%d %H:%M', time.gmtime(ms // 1000))

def command_remove(args, config):
    find_client(config, args.name)
    edit_config(args.config, {'client ' + args.name: ()})
    print('removed %s' % args.name)

# --- selftest: what the daemon needs, tried in namespaces that are thrown away --------------------
HOOK = 'chain a { type filter hook prerouting priority -149; %s; }'
FEATURES = (    # of a firewall: what it is, what tries it, what it needs
    ('nft: sets with timeouts', 'set a { type mark; flags timeout; timeout 9s; }', 'nf_tables'),
    ('nft: concatenated intervals', 'set a { type mark . mark; flags interval; }', 'Linux 5.6'),
    ('nft: limits of elements', 'set a { type mark; limit rate 1/week; }', 'a newer Linux and nft'),
    ('nft: payload rewriting', HOOK % 'tcp dport set 61022', 'a newer Linux and nft'),
    ('nft: fib', HOOK % 'fib daddr type local accept', 'nft_fib_inet (OpenWrt: kmod-nft-fib)'),
    ('nft: reject in prerouting', HOOK % 'reject', 'Linux 5.9'),
    ('iptables: ipset', 'ipset create a hash:net,port timeout 9', 'ip_set'),
    ('iptables: recent', 'iptables -w -A INPUT -m recent --rcheck --seconds 9', 'xt_recent'),
    ('iptables: mark', 'iptables -w -t mangle -A INPUT -j MARK --set-xmark 1/1', 'xt_mark'),
    ('iptables: redirect', 'iptables -w -t nat -A PREROUTING -p tcp -j REDIRECT', 'xt_REDIRECT'))

def command_selftest(args, _):
    """What it does in namespaces of its own ends with it, and it starts nothing that lives on."""
    alone, flaws = os.environ.get('KNOCKD_LEFT') not in (None, os.readlink('/proc/self/ns/net')), 0
    config = read_config(args.config) if os.path.exists(args.config) else parse_config(
        '[server]\nid = none\nhide = tcp/22', os.path.abspath(args.config))._replace(path=__file__)
    for what, needs, attempt, *arguments in attempts(config, alone):
        try:
            flaw = attempt(*arguments)
        except (KnockError, OSError, ValueError, LookupError) as error:
            flaw = '%s%s' % (error, needs and '; it needs ' + needs)
        flaws += bool(flaw)
        print('%-28s %s' % (what, printable('; '.join((flaw or 'ok').splitlines()))), flush=True)
    if flaws:
        raise KnockError('%d of these must be mended' % flaws)

def attempts(config, alone):
    """(what, its needs, a function that raises or returns what is wrong, its arguments)"""
    yield 'namespaces', 'root; without them no firewall and no knock is tried', isolate, alone
    yield 'kernel filter', '', Capture(1).load, [b'12345678'], lambda version, tokens: (
        datagram_filter(version, CARRIERS, None, tokens))
    yield 'config and ssh-keygen', '', check_programs, config
    yield 'ledger', '', ledger_doubt, os.path.realpath(config.ledger)
    yield 'clock', '', clock_doubt, config, known_ledger(config), moment().wall
    tool = 'iptables' if config.firewall == 'iptables' or not find_program('nft') else 'nft'
    needless = 'iptables: ' + ('recent' if find_program('ipset') else 'ipset')
    for what, how, needs in FEATURES if alone else ():
        if what.startswith(tool) and what != needless:
            yield (what, needs, run) + ((how.split(),) if tool == 'iptables' else (
                ['nft', '-f', '-'], 'table inet a { %s\n}\ndelete table inet a\n' % how))
    yield from [('a real knock', '', knock_doubt, config)] * alone

def isolate(alone):
    """Begins again, in this process, with a network and mounts of its own; there it covers /run."""
    unshare = [] if alone else ['unshare', '-nm' if os.geteuid() == 0 else '-Urnm']
    run(unshare + ['mount', '-t', 'tmpfs', 'tmpfs', '/run'])
    if not alone:
        os.stat(__file__)       # which a script out of a pipe has not
        os.environ['KNOCKD_LEFT'] = os.readlink('/proc/self/ns/net')
        os.execv(find_program('unshare'), unshare + [sys.executable, __file__] + sys.argv[1:])

def ledger_doubt(path):
    """Looks at its file system, of those mounted above it the last, and touches nothing."""
    mounts = [line.split()[1:4] for line in read_file('/proc/mounts').splitlines()]
    place, kind, mode = [each for each in mounts if path.startswith(each[0].rstrip('/') + '/')][-1]
    flaw = 'in memory' if kind in ('tmpfs', 'ramfs') else 'read-only' if mode[:2] == 'ro' else \
        'full' if os.statvfs(place).f_bavail < 33 else None
    return flaw and '%s is %s; write for example: ledger = /etc/knockd/ledger.json' % (place, flaw)

def knock_doubt(config):
    """A daemon in this process, and a datagram to it over lo (DESIGN 3.2)."""
    trial = parse_config(
        '[server]\nid = me\nhide = tcp/22\nfirewall = %s\nanswer = %s\n[client me]\nsecret = %s'
        % (config.firewall, config.answer, encode_secret(os.urandom(32))), '/run/selftest.ini')
    replace_file(trial.ledger, Ledger(trial.id).text().encode('ascii'))
    keys, daemon, nonce = trial.clients['me'].keys, Daemon(trial), os.urandom(NONCE_SIZE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, \
            contextlib.redirect_stderr(io.StringIO()) as said:
        fcntl.ioctl(sock, 0x8914, struct.pack('@16sh14x', b'lo', 1))    # SIOCSIFFLAGS, IFF_UP
        daemon.start()
        now, waiting = moment().wall, daemon.datagrams.taps[0][1]
        body = tag_at(keys, step_of(now)) + nonce + bytes(map(
            operator.xor, PLAIN.pack(PLAIN_VERSION, 1, now, bytes(16), 0),
            keystream(keys['enc'], nonce, PLAIN.size)))
        sock.sendto(body + hmac_sha256(keys['mac'], body)[:MAC_SIZE], ('127.0.0.1', 40000))
        select.select([waiting], (), (), 5)
        daemon.read(4, waiting, daemon.hear_datagram)
    return '' if daemon.open else 'opened nothing; the daemon says: ' + said.getvalue()

# --- installer: the same on each init system, and out again --------------------------------------
SCRIPT, PYTHON = '/usr/local/sbin/knockd.py', find_program('python3') or sys.executable
RUN = '%s -I %s run' % (PYTHON, SCRIPT)       # whatever PYTHON* says
# STATE stands for the ledger's folder. Each runs the guard first, and the daemon again for ever.
SANDBOX = '''
    Type=notify WatchdogSec=90 Restart=always RestartSec=1 RuntimeDirectory=knockd UMask=0077
    ReadWritePaths=STATE+-/run/xtables.lock CapabilityBoundingSet=CAP_NET_ADMIN+CAP_NET_RAW
    RestrictAddressFamilies=AF_UNIX+AF_INET+AF_INET6+AF_NETLINK+AF_PACKET ProtectSystem=strict
    NoNewPrivileges=yes ProtectHome=yes PrivateTmp=yes PrivateDevices=yes ProtectClock=yes
    ProtectKernelLogs=yes ProtectKernelModules=yes ProtectKernelTunables=yes LockPersonality=yes
    ProtectControlGroups=yes RestrictNamespaces=yes RestrictSUIDSGID=yes
    MemoryDenyWriteExecute=yes SystemCallArchitectures=native
    SystemCallFilter=@system-service'''         # a line each, + is a space
SYSTEMD = '''[Unit]
Description=Hides services until an authentic knock arrives
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target
Wants=network-pre.target
StartLimitIntervalSec=0
[Service]
# iptables locks a file that it could not make in a read-only /run
ExecStartPre=-+/bin/sh -c 'command -v iptables >/dev/null && touch /run/xtables.lock'
ExecStartPre=-/bin/sh STATE/guard
ExecStart=%s%s
[Install]
WantedBy=multi-user.target
''' % (RUN, re.sub(r'\s+', '\n', SANDBOX).replace('+', ' '))
PROCD = '''#!/bin/sh /etc/rc.common
USE_PROCD=1 START=18
start_service() {
	sh STATE/guard
	procd_open_instance
	procd_set_param command %s
	procd_set_param respawn 3600 5 0
	procd_set_param stderr 1
	procd_close_instance
}
''' % RUN
OPENRC = '''#!/sbin/openrc-run
supervisor=supervise-daemon respawn_max=0 respawn_delay=1
command=%s command_args="-I %s run"
error_logger="logger -t knockd"
depend() { after localmount; before net; }
start_pre() { sh STATE/guard || true; }
''' % (PYTHON, SCRIPT)
RUNIT = {'/etc/sv/knockd/run': '#!/bin/sh\nexec 2>&1\nsh STATE/guard\nexec %s\n' % RUN,
         '/etc/sv/knockd/log/run': '#!/bin/sh\numask 077\nmkdir -p /var/log/knockd\n'
         'exec svlogd -tt /var/log/knockd\n'}      # part of runit; a syslog may not be there
SYSV = '''#!/bin/sh
### BEGIN INIT INFO
# Provides: knockd
# Required-Start: $local_fs
# Required-Stop:
# X-Start-Before: $network
# Default-Start: S
# Default-Stop:
### END INIT INFO
case "$1" in start | stop | restart | force-reload) ;; *) exit 3 ;; esac
[ -s /run/knockd.pid ] && for signal in TERM 0 0 0 0 0 KILL; do
	kill -s $signal -- "-$(cat /run/knockd.pid)" 2>/dev/null || break
	sleep 1
done
rm -f /run/knockd.pid
[ "$1" = stop ] && exit
sh STATE/guard
setsid sh -c 'echo $$ >/run/knockd.pid; while :; do %s; sleep 1; done 2>&1 |
	{ trap "" TERM; logger -t knockd; }' </dev/null >/dev/null 2>&1 &
''' % RUN
SERVICES = [    # what tells the init system; the service's files; how it starts, how it ends
    ('/run/systemd/system', {'/etc/systemd/system/knockd.service': SYSTEMD},
     ['systemctl daemon-reload', 'systemctl enable knockd', 'systemctl restart knockd'],
     ['systemctl disable --now knockd']),
    ('/sbin/procd', {'/etc/init.d/knockd': PROCD, '/lib/upgrade/keep.d/knockd':
                     '/etc/knockd/\n/etc/init.d/knockd\n%s\n' % SCRIPT},
     ['/etc/init.d/knockd enable', '/etc/init.d/knockd restart'],
     ['/etc/init.d/knockd stop', '/etc/init.d/knockd disable']),
    ('/run/openrc', {'/etc/init.d/knockd': OPENRC},
     ['rc-update add knockd boot', 'rc-service knockd restart'],
     ['rc-service knockd stop', 'rc-update delete knockd boot'])]
SERVICES += [(folder + ' /usr/bin/runsvdir', RUNIT, [
    'ln -sfn /etc/sv/knockd %s/knockd' % folder,
    'sh -c "sv restart /etc/sv/knockd || true"'],       # the first time, runsvdir starts it
    ['rm %s/knockd' % folder, 'sv shutdown /etc/sv/knockd',
     'rm -rf /etc/sv/knockd /var/log/knockd'])
    for folder in ('/var/service', '/etc/service')]     # of Void, of Debian
SERVICES += [('/etc/inittab /usr/sbin/update-rc.d', {'/etc/init.d/knockd': SYSV},
              ['update-rc.d knockd defaults', '/etc/init.d/knockd restart'],
              ['/etc/init.d/knockd stop', 'update-rc.d -f knockd remove'])]

def init_system(args):
    for service in SERVICES:
        if all(os.path.exists(args.root + path) for path in service[0].split()):
            return service
    raise KnockError('no init system that is known here; let yours run: ' + RUN)

def carry_out(args, line):
    print('$ ' + line, flush=True)
    if not (args.dry_run or args.root):
        run(command(line), seconds=600)

def fetched(url):
    """This script out of a pipe, which Python has read to its end before it begins: fetched once
    more, and taken only if its text compiles to the very code that runs."""
    fetch = [argv for argv in (['curl', '-fsSL'], ['wget', '-qO-']) if find_program(argv[0])]
    if not (url and fetch):
        raise KnockError('a script out of a pipe cannot copy itself; say with --url URL where curl '
                         'gets it, or save it first: curl -fsSO URL && python3 knockd.py install')
    import traceback
    text = run(fetch[0] + [url], seconds=60)
    ours = list(traceback.walk_stack(None))[-1][0].f_code       # of the module: the whole script
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        if text.startswith('#!/usr/bin/env python3\n') and compile(text, '-', 'exec') == ours:
            return text
    raise KnockError('%s is not the script that runs here; save it first' % url)

def command_install(args, _):
    """What is there stays: a second time renews script and service."""
    system, files, starts, _ = init_system(args)
    source = read_file(__file__ if os.path.exists(__file__) else '/dev/stdin') or fetched(args.url)
    if not (args.root or find_program('nft') or find_program('iptables')):
        carry_out(args, package_command('nft'))
    put(args, SCRIPT, source, 0o755)
    state = '/etc' if system == '/sbin/procd' else '/var/lib'   # OpenWrt's /var is in memory
    config = first_config(args, args.client, args.hide, ('ledger', state + '/knockd/ledger.json'))
    guard = beside(config, 'guard')
    if not os.path.exists(args.root + guard) or probation_left(args.root + guard) is not None:
        put(args, guard, PROBATION % (args.probation * 1000, moment().mono) if args.probation
            else PASSED)
    for path, text in files.items():
        put(args, path, text.replace('STATE', os.path.dirname(guard)),
            0o755 if text.startswith('#!') else 0o644)
    for line in starts:
        carry_out(args, line)

def command_uninstall(args, config):
    """Leaves nothing of ours, neither files nor rules."""
    _, files, _, ends = init_system(args)
    config = config._replace(hide=(), accept_in=())
    rules = command_rules, args, config
    steps = [(carry_out, args, line) for line in ends + [' '.join(
        ['rm -rf /etc/knockd /run/knockd /var/lib/knockd', SCRIPT] + list(files))]]
    steps.insert(-1, rules if args.dry_run or args.root else (make_firewall(config).load,))
    for step, *arguments in steps:      # what fails does not keep the rest
        try:
            step(*arguments)
        except KnockError as error:
            print(error)

# --- command line --------------------------------------------------------------------------------
FIRST = [('--hide', dict(metavar='SERVICES', help='for a first config: what to hide, as tcp/22')),
         ('--client', dict(metavar='NAME', help='for a first config: the first client')),
         ('--host', dict(metavar='HOST', help='for a first config: what clients call this box'))]
PLACE = [('--dry-run', dict(action='store_true', help='only show every file and command')),
         ('--root', dict(metavar='FOLDER', default='', help='into this tree; start nothing'))]
CLIENT_NAME = ('name', dict(metavar='NAME'))
COMMANDS = (    # name, function, what it does, its arguments
    ('install', command_install, 'copy the script, make config and service, start', FIRST + PLACE +
     [('--probation', dict(metavar='TIME', type=parse_seconds, default='10m',
                           help='how long it hides if nobody knocks: %(default)s; 0: ever')),
      ('--url', dict(metavar='URL', help='where a script out of a pipe comes from'))]),
    ('uninstall', command_uninstall, 'stop, and leave nothing', PLACE),
    ('run', command_run, 'guard the ports, in the foreground', FIRST + [
        ('-v --verbose', dict(action='store_true', help='say more'))]),
    ('check', command_check, 'read the config and say all that is wrong with it', []),
    ('rules', command_rules, 'print exactly what would be given to nft', []),
    ('selftest', command_selftest, 'try on this box what the daemon needs, down to a knock', []),
    ('add', command_add, 'make a client and print its knock:// line', [
        CLIENT_NAME,
        ('--allow', dict(metavar='SERVICES', help='what it may open; without it, all')),
        ('--default', dict(metavar='SERVICES', help='what a knock opens that names nothing')),
        ('--expires', dict(metavar='DATE', help='2027-01-31, to the end of that day (UTC)')),
        ('--code', dict(action='store_const', const='yes', help='may knock by hand, with a phone')),
        ('--ssh-key', dict(metavar='FILE', type=read_file, help='public key that must sign it')),
        ('--may-run', dict(metavar='ACTIONS', help='the actions that it may run')),
        ('--for', dict(dest='open_for', metavar='TIME', help='how long: 30s, 5m'))] + FIRST[2:]),
    ('show', command_show, "print a client's knock:// line again", [
        CLIENT_NAME, ('--via', dict(choices=CARRIERS, default='udp', help='how it shall knock')),
        ('--qr', dict(action='store_true', help='as a picture, too, if qrencode is there'))]),
    ('paper', command_paper, 'print one-time sequences for the wallet; voids the sheet before', [
        CLIENT_NAME, ('-n', dict(dest='number', metavar='N', type=int, default=10, help='10'))]),
    ('list', command_list, 'all clients, and when each last knocked', []),
    ('status', command_status, 'is it alive, what is open, who knocked, what was refused', [
        ('--json', dict(action='store_true', help='for programs'))]),
    ('remove', command_remove, 'revoke a client, at once', [CLIENT_NAME]),
)

def command_line():
    import argparse                     # the daemon does without: go_lean()
    parser = argparse.ArgumentParser(
        prog='knockd.py', description=(__doc__ or '').partition('\nRead')[0],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', metavar='FILE', help='default: %(default)s',
                        default=os.environ.get('KNOCKD_CONFIG', '/etc/knockd/knockd.ini'))
    parser.add_argument('--version', action='version', version='knockd.py ' + __version__)
    parser.set_defaults(root='', dry_run=False)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True        # an argument of add_subparsers() since 3.7
    for name, function, description, options in COMMANDS:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(function=function)
        for names, settings in options:
            command.add_argument(*names.split(), **settings)
    return parser

def main(argv=None):
    try:
        lean = globals().get('lean')    # go_lean() left it to us
        args = types.SimpleNamespace(**dict(lean, function=command_run)) if lean else \
            command_line().parse_args(argv)
        first = args.function in (command_run, command_add, command_install, command_selftest)
        args.function(args, None if first else read_config(args.config))
    except KnockError as error:
        for line in str(error).splitlines():
            print('knockd: ' + printable(line), file=sys.stderr)
        return error.status
    except BrokenPipeError:             # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        print('knockd: %s: %s' % (printable(str(error.filename)), error.strerror), file=sys.stderr)
        return 1
    return 0

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)        # Ctrl-C ends all without a traceback
    sys.exit(main())
