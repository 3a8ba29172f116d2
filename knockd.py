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
import itertools
import json
import os
import select
import signal
import socket
import stat
import subprocess
import threading
import time

__version__ = '0.2.0'

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

# --- values: what the sections below hand to each other ---------------------------------
# wall: ms since 1970; mono: ms since boot.
Moment = collections.namedtuple('Moment', 'wall mono')

# An IP packet. version: 4 or 6; source, destination: 4 or 16 bytes; protocol: the IANA
# number; body: the bytes behind the header, up to where it says that the packet ends.
IpPacket = collections.namedtuple('IpPacket', 'version source destination protocol body')
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
# None; request: a Request; services: (Service, ...); seconds: how long it shall be open;
# elsewhere: is it for another address than its own?
Knock = collections.namedtuple(
    'Knock',
    'client carrier source knock_id step paper request services seconds elsewhere')
# What judge() says. verdict: junk, mute, copy, refused, open, close or run; kind: of a
# refusal, a word; reason: its sentence, or None; knock: a Knock or None.
Decision = collections.namedtuple('Decision', 'verdict kind reason knock')
JUNK = Decision('junk', None, None, None)
MUTE = Decision('mute', None, None, None)

# Fingerprint, source, service and only are an opening's key: two clients at one address
# have one each. fingerprint: 16 hex digits of the client's key; client: its name; source:
# an ip_network; service: a Service, a range stays one; once: for one connection alone, a
# bool; expires: ms since boot; only: the addresses at which it is open, () for all;
# elsewhere: did the knock come from another address?
Opening = collections.namedtuple(
    'Opening', 'fingerprint client source service once expires only elsewhere')
# A piece of one or several openings, as the kernel's sets hold it. destination: an
# address, or None for all.
Element = collections.namedtuple('Element', 'source service once destination')
# Something in the config that is wrong or cannot work. key: None for the section as a
# whole.
Complaint = collections.namedtuple('Complaint', 'section key text')
# What warnings() must know of the box. wall: ms since 1970; interfaces: names; programs:
# those of named_programs() that can be run; chains: (family, table, chain) each, or None
# if no tool lists them; ledger_folder: is it there?
Facts = collections.namedtuple('Facts', 'wall interfaces programs chains ledger_folder')

# What reading a tree of JSON raises where it is not as it should be. int() of 1e999 is an
# OverflowError, a thousand brackets are a RecursionError.
MISREAD = (ValueError, KeyError, IndexError, TypeError, AttributeError, StopIteration,
           RecursionError, OverflowError)

# --- config: text in, a Config or all that is wrong with it out -------------------------
MONTH = 31 * 86400              # seconds
# ms. nft counts no limit by a longer time, so no opening of `once` is longer.
WEEK = 604800000
NEVER = 1 << 62                 # ms, later than any clock says

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

def raise_all(problems):
    """KnockError with all of them, if there are any."""
    if problems:
        raise KnockError('\n'.join(problems), 2)

def listing(read):
    """A reader of such texts with commas between them: a repeat is left out, a comma too
    many forgiven. KnockError with a line for each that is wrong, so that nobody mends
    them one by one."""
    def read_list(text):
        values, problems = {}, {}
        for part in filter(None, map(str.strip, text.split(','))):
            try:
                values[read(part)] = True
            except KnockError as error:
                problems[str(error)] = True
        raise_all(problems)
        return tuple(values)
    return read_list

def choice(*names):
    """A reader of one of these names."""
    return matching('|'.join(names), 'one of: ' + ', '.join(names))

def number(low, high):
    """A reader of whole numbers between two."""
    def convert(text):
        if not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)
    form = 'a number from %d to %d' % (low, high)
    return matching('[1-9][0-9]{0,4}', form, convert)

def milliseconds(low, high):
    """A reader of times between two, which are texts like those that it reads."""
    def read(text):
        seconds = parse_seconds(text)
        if not parse_seconds(low) <= seconds <= parse_seconds(high):
            raise KnockError('%r is not from %s to %s' % (text, low, high), 2)
        return seconds * 1000
    return read

# The arithmetic of datetime does not end in 2038, where the time of the C library may.
# It is imported late: most configs name no date.
def read_expiry(text):
    """2027-01-31 (to the end of that day) or 2027-01-31 18:00, both UTC, as
    milliseconds."""
    from datetime import datetime
    numbers = [int(part) for part in re.findall(r'\d+', text)]
    seconds = (datetime(*numbers) - datetime(1970, 1, 1)).total_seconds()
    if ':' not in text:
        seconds += 86400
    return int(seconds) * 1000

def format_time(time):
    """2027-01-31 18:00, UTC, of milliseconds since 1970; a year beyond 9999 is
    'never'."""
    from datetime import datetime, timedelta
    try:
        when = datetime(1970, 1, 1) + timedelta(milliseconds=time)
    except OverflowError:
        return 'never'
    return when.isoformat(' ')[:16]

def read_words(text):
    """An argument list in the quoting of a shell; no shell ever sees it."""
    import shlex                # late: few configs have one
    return shlex.split(text)

def read_sheet(text):
    """(number of the sheet, how many knocks are on it)"""
    sheet, count = text.split(':')
    return int(sheet), int(count)

def read_ssh_key(text):
    """Type and key, without the comment. RFC 4253, 6.6: the key is its type and what
    belongs to it, each behind its length."""
    kind, key = text.split()[:2]
    rest = binascii.a2b_base64(key)
    parts = []
    while rest:
        end = 4 + int.from_bytes(rest[:4], 'big')
        # Or one that was cut would be found out by the first knock that it must open.
        if end > len(rest):
            raise ValueError(text)
        parts.append(rest[4:end])
        rest = rest[end:]
    if len(parts) < 2 or parts[0] != kind.encode('ascii'):
        raise ValueError(text)
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
    # An address with a slip, or a port behind the name, would be a name of nobody's.
    if ':' in text or not re.search('[A-Za-z]', text):
        ipaddress.ip_address(text)
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

service_list = listing(parse_service)
carrier_list = listing(choice('udp', 'icmp', 'syn', 'ports', 'code'))
opening_time = milliseconds('1s', '31d')
YES_NO = configparser.RawConfigParser.BOOLEAN_STATES
yes_or_no = matching('(?i:%s)' % '|'.join(YES_NO), 'yes or no',
                     lambda text: YES_NO[text.lower()])
name_of_server = matching(NAME.pattern, '1 to 64 of A-Z a-z 0-9 . _ -')
name_of_action = matching(ACTION.pattern, '1 to 32 of a-z 0-9 _ -')
# A save replaces the file: /dev/null would be gone for all programs.
absolute_path = matching(r'/(?!dev/[^/]+$)([^\0]*[^/\0])', 'the absolute path of a file')
absolute_command = matching(r'/[^\0]+', 'a command that begins with an absolute path',
                            read_words)
# Of 32: a digit with one bit, with up to seven zeros behind it.
one_bit = matching('0[xX]0*[1248]0{0,7}', 'one bit; write for example 0x40000000',
                   lambda text: int(text, 16))
host_name = matching('[A-Za-z0-9.:_-]{1,255}', 'a host name or an address', read_host)
# + alone would be every interface.
interface_name = matching(r'(?!\+)[A-Za-z0-9._@:+-]{1,15}', 'the name of an interface')
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
                      'an OpenSSH public key, all of it', read_ssh_key)

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
    'window': optional(milliseconds('1s', '10m'), 60000),
    'open_for': optional(opening_time, 30000),
    'max_open_for': optional(opening_time, 3600000),
    'carriers': optional(carrier_list, ('udp', 'icmp', 'ports')),
    'port': optional(number(1, 65535)),
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
    'open_for': optional(opening_time),
    'once': optional(yes_or_no, False),
    'require_source': optional(yes_or_no, False),
    'any_source': optional(yes_or_no, False),
    'expires': optional(expiry_date, NEVER),
    'carriers': optional(carrier_list),
    'old_secret': optional(read_secret),
    'old_until': optional(expiry_date),
    'code': optional(yes_or_no, False),
    'paper': optional(paper_sheet),
    'ssh_key': optional(public_key),
    'may_run': optional(listing(name_of_action), ()),
    'prefix4': optional(number(8, 32), 32),
    'prefix6': optional(number(32, 128), 128),
}
ACTION_KEYS = {'run': Key(absolute_command, (), 'write for example: run = /sbin/reboot')}

# actions: {name: argument list}; clients: {name: Client}; the rest as the tables above
# say, times in milliseconds. old: None, or this Client as it was before `rekey`.
Config = collections.namedtuple('Config', ['path', *SERVER_KEYS, 'clients', 'actions'])
Client = collections.namedtuple(
    'Client', ['name', 'keys', 'fingerprint', 'old', *CLIENT_KEYS])

def ini_sections(text, path):
    """{section: {key: text}} of an INI file; KnockError where it is not one."""
    ini = configparser.RawConfigParser(
        delimiters=('=',), comment_prefixes=('#', ';'), default_section='\0')
    try:
        ini.read_string(text, path)
    except configparser.ParsingError as error:
        numbers = [error.lineno] if hasattr(error, 'lineno') else dict(error.errors)
        # Not what stands there: it may be a secret.
        raise KnockError('%s: line %s: write [SECTION], KEY = VALUE or # COMMENT, in '
                         'UTF-8 without a byte order mark'
                         % (path, ', '.join(map(str, numbers))), 2)
    except configparser.Error as error:
        raise KnockError(' '.join(str(error).split()), 2)
    return {name: dict(ini.items(name)) for name in ini.sections()}

def read_section(section, keys, entries, complaints):
    """{key: value} of one section by its table of keys; appends what is wrong."""
    values = {name: key.default for name, key in keys.items()}
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

def complain_beyond(section, key, services, outer, outer_key):
    """A Complaint of each service that is in none of the outer ones."""
    # Where those are wrong or missing that is told already.
    if not outer:
        return
    for service in services:
        if not covered(service, outer):
            text = '%s is not in %s; add it there' % (format_service(service), outer_key)
            yield Complaint(section, key, text)

def read_client(section, name, entries, server, complaints):
    """A Client from its section; allow is all that is hidden, default all that is
    allowed."""
    values = read_section(section, CLIENT_KEYS, entries, complaints)
    hide, allow, default = server['hide'], values['allow'], values['default']
    if allow is None:
        allow = values['allow'] = hide
    if default is None:
        default = values['default'] = allow
    complaints += complain_beyond(section, 'allow', allow, hide, 'hide')
    complaints += complain_beyond(section, 'default', default, allow, 'allow')
    for address in values['only']:
        if not any(address in network for network in server['behind']):
            text = '%s is not in behind; add its network there' % address
            complaints.append(Complaint(section, 'only', text))
    if values['carriers'] is None:
        values['carriers'] = server['carriers']
    if (values['old_secret'] is None) != (values['old_until'] is None):
        text = 'goes with old_until; write both or neither'
        complaints.append(Complaint(section, 'old_secret', text))
    # Without a secret or an id, which was complained of, they are nobody's keys.
    keys = derive_keys(values['secret'] or b'', server['id'] or '')
    client = Client(
        name=name, keys=keys, fingerprint=fingerprint(keys), old=None, **values)
    return client._replace(old=old_client(client, server))

def old_client(client, server):
    """The client with its key of before `rekey`, or None. A sheet is printed from the new
    key."""
    if client.old_secret is None or client.old_until is None:
        return None
    keys = derive_keys(client.old_secret, server['id'] or '')
    return client._replace(
        secret=client.old_secret, keys=keys, fingerprint=fingerprint(keys), paper=None,
        expires=min(client.expires, client.old_until))

def key_owners(config):
    """Every client, and once more, with the old secret, whose secret is being changed."""
    owners = []
    for client in config.clients.values():
        owners.append(client)
        if client.old is not None:
            owners.append(client.old)
    return owners

def read_server(entries, path, complaints):
    """{key: value} of [server]. path: of the config."""
    server = read_section('server', SERVER_KEYS, entries, complaints)
    if server['open_for'] > server['max_open_for']:
        text = 'longer than max_open_for; change one of them'
        complaints.append(Complaint('server', 'open_for', text))
    if server['ledger'] == path:
        # The first save would be the end of the config.
        text = 'is the config itself; name another file'
        complaints.append(Complaint('server', 'ledger', text))
    server['ledger'] = server['ledger'] or path.rpartition('/')[0] + '/ledger.json'
    return server

def complain_shared(clients):
    """A Complaint of each client whose secret another one has: the server could not tell
    them apart."""
    owners = {}
    for client in clients.values():
        for key in ('secret', 'old_secret'):
            secret = getattr(client, key)
            owner = owners.setdefault(secret, (client.name, key))
            if secret and owner != (client.name, key):
                text = 'the same as that of %s' % owner[0]
                yield Complaint('client ' + client.name, key, text)

def complain_unknown_actions(clients, actions):
    """The same of each action that a client may run and that is not there."""
    for client in clients.values():
        for name in client.may_run:
            if name not in actions:
                text = 'there is no [action %s]' % name
                yield Complaint('client ' + client.name, 'may_run', text)

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
    server = read_server(sections.pop('server', {}), path, complaints)
    clients, actions = {}, {}
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
    complaints += complain_shared(clients)
    complaints += complain_unknown_actions(clients, actions)
    raise_all([complaint_line(path, complaint) for complaint in complaints])
    return Config(path=path, clients=clients, actions=actions, **server)

# What is accepted and cannot work: said by `check` and by `run`, each with its cure.
CANNOT_RUN = '%s cannot be run; install it or name another'

def named_programs(config):
    """The paths of all programs that the config starts, whose presence warnings()
    wants."""
    commands = [config.on_open, config.on_close, *config.actions.values()]
    return {argv[0] for argv in commands if argv}

def usable_carriers(config, client):
    """The carriers by which this client can knock at all."""
    carriers = [name for name in client.carriers if name in config.carriers]
    if client.paper:
        carriers.append('paper')
    if 'code' in carriers and not client.code:
        carriers.remove('code')
    # Only a datagram has room for a source or a signature.
    if client.require_source or client.ssh_key:
        carriers = [name for name in carriers if name in ('udp', 'icmp')]
    return carriers

# Where the SYNs of a sequence and of a code go. One to a hidden port is no knock.
KNOCKED_PORTS = {'ports': (1024, 65535), 'code': (10000, 29999)}

def ports_of(services, proto):
    """The set of ports of a protocol in these services."""
    ports = set()
    for service in services:
        if service.proto == proto:
            ports.update(range(service.low, service.high + 1))
    return ports

def server_warnings(config, facts):
    """(key, text) of each about [server]."""
    if not config.hide:
        yield 'hide', 'nothing is hidden; write for example: hide = tcp/22'
    if not config.clients:
        yield None, 'no client, so nobody can knock; make one with: knockd.py add NAME'
    if config.port and 'udp' not in config.carriers:
        yield 'port', 'only carrier udp has a port; add udp to carriers'
    has_codes = any(client.code for client in config.clients.values())
    if 'code' in config.carriers and not has_codes:
        yield 'carriers', 'no client has a code; write code = yes in its section'
    for name in config.trust:
        if not is_interface(name, facts.interfaces):
            yield 'trust', 'there is no interface %s now; see: ip link' % name
    for place in config.accept_in:
        if facts.chains is None or place == ('auto',) or place in facts.chains:
            continue
        text = 'there is no chain %s; see: nft list ruleset'
        yield 'accept_in', text % ' '.join(place)
    if not facts.ledger_folder:
        folder = config.ledger.rpartition('/')[0]
        yield 'ledger', 'there is no folder {0}; type: mkdir -m 700 {0}'.format(folder)
    for key in ('on_open', 'on_close'):
        argv = getattr(config, key)
        if argv and argv[0] not in facts.programs:
            yield key, CANNOT_RUN % argv[0]
    tcp = ports_of(config.hide, PROTOCOLS['tcp'])
    for name, (low, high) in KNOCKED_PORTS.items():
        ports = range(low, high + 1)
        hidden = tcp.intersection(ports)
        if name in config.carriers and 10 * len(hidden) >= len(ports):
            text = ('%s cannot knock at a hidden port, and hide has %d of its %d; take '
                    'it out, or hide fewer')
            yield 'carriers', text % (name, len(hidden), len(ports))

def is_interface(name, interfaces):
    """Is there one of this name? lan+ is any that begins with lan."""
    if name.endswith('+'):
        return any(other.startswith(name[:-1]) for other in interfaces)
    return name in interfaces

def is_inside(interface, trust):
    """Is it this box itself, or an interface of `trust`?"""
    return any(is_interface(name, (interface,)) for name in ('lo',) + trust)

def client_warnings(config, client, now):
    """The same about one [client NAME]. now: ms since 1970."""
    if client.expires <= now:
        day = format_time(client.expires)
        yield 'expires', 'over since %s UTC; write a later date or remove it' % day
    if config.hide and not (client.allow or client.may_run):
        text = 'empty, so it may open nothing; write for example: allow = %s'
        yield 'allow', text % format_service(config.hide[0])
    for name in client.carriers + ('code',) * client.code:
        if name not in config.carriers:
            all_carriers = ','.join(config.carriers + (name,))
            text = 'carrier %s is off; type: knockd.py set server carriers=%s'
            yield 'carriers', text % (name, all_carriers)
    if client.once and (client.open_for or config.open_for) > WEEK:
        yield 'once', 'ends an opening after 7d, whatever open_for says'
    for key in ('code', 'paper'):
        if not getattr(client, key):
            continue
        for other in ('require_source', 'ssh_key'):
            if getattr(client, other):
                yield key, 'has no room for what %s asks for; take one out' % other
        if client.allow and not client.default:
            text = 'opens the default, which is empty; write for example: default = %s'
            yield key, text % format_service(client.allow[0])
    if not usable_carriers(config, client):
        yield None, 'no carrier is left to it; add udp to carriers in [server]'

def action_warnings(config, name, facts):
    """The same about one [action NAME]."""
    program = config.actions[name][0]
    if program not in facts.programs:
        yield 'run', CANNOT_RUN % program
    if not any(name in client.may_run for client in config.clients.values()):
        yield None, 'no client may run it; write may_run = %s in its section' % name

def warnings(config, facts):
    """[Complaint] for each thing that is accepted and cannot work on this box, now."""
    found = [('server', server_warnings(config, facts))]
    for client in config.clients.values():
        told = client_warnings(config, client, facts.wall)
        found.append(('client ' + client.name, told))
    for name in config.actions:
        found.append(('action ' + name, action_warnings(config, name, facts)))
    return [Complaint(section, *warning) for section, told in found for warning in told]

# Editing a section: a walk over the lines, so that comments and order are kept.

# header: of the section that begins here, or None; key: of the entry that the line is of,
# or None.
IniLine = collections.namedtuple('IniLine', 'header key text')

def ini_lines(text):
    """[IniLine] as configparser takes them; texts without their line feeds."""
    lines = []
    key, depth = None, 0        # of the entry that may go on
    for line in text.split('\n'):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        found = configparser.RawConfigParser.SECTCRE.match(bare)
        header = own_key = None
        if not bare or bare[0] in '#;':
            pass
        elif key is not None and indent > depth:
            own_key = key
        elif found:
            header = found.group('header')
            key = None
        else:
            own_key = key = bare.partition('=')[0].strip().lower()
            depth = indent
        lines.append(IniLine(header, own_key, line))
    return lines

def section_range(lines, section):
    """(first line, line behind the last) of a section with the comments right above it,
    or None; KnockError if it is there twice."""
    headers = [at for at, line in enumerate(lines) if line.header is not None]
    starts = [at for at in headers if lines[at].header == section]
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
    while at > 0 and lines[at - 1].text.strip().startswith(('#', ';')):
        at -= 1
    return at

def with_entry(lines, key, value):
    """The lines of a section with this entry in its old place, or else as the last; None
    takes the key's lines out."""
    kept = [line for line in lines if line.key != key]
    places = [at for at, line in enumerate(lines) if line.key == key]
    if value is None:
        return kept
    indent = ''
    if places:
        at = places[0]
        # Or the keys below would be read as its value.
        indent = re.match(r'\s*', lines[at].text).group()
    else:
        at = 1 + max(at for at, line in enumerate(lines) if line.key or line.header)
    kept.insert(at, IniLine(None, key, '%s%s = %s' % (indent, key, value)))
    return kept

def edited(text, section, entries):
    """The text with these (key, value) in a section, appended if it is not there; a value
    None takes the key out; without any entry the section goes, with the comments right
    above it. All else is kept."""
    if '\r\n' in text:
        by_line_feeds = edited(text.replace('\r\n', '\n'), section, entries)
        return by_line_feeds.replace('\n', '\r\n')
    if section_range(ini_lines(text), section) is None:
        if not entries:
            return text
        text = text.rstrip()
        if text:
            text += '\n\n'
        text += '[%s]' % section
    lines = ini_lines(text)
    first, end = section_range(lines, section)
    part = lines[first:end]
    for key, value in entries:
        part = with_entry(part, key, value)
    if not entries:
        part = []
    lines[first:end] = part
    whole = '\n'.join(line.text for line in lines)
    return whole.rstrip('\n') + '\n'

# --- ledger rules: which knock was honoured already -------------------------------------
SPENT_LIMIT = 1000              # ids that are remembered of a key
VOID = 1 << 32                  # above every number of a paper sheet
LONGEST_WINDOW = 600000         # ms; a config can ask for no more
SPENT_ENTRY = {'key', 'spent', 'time'}
PAPER_ENTRY = {'key', 'paper'}

class Ledger:
    """What was honoured, by the fingerprints of keys:
    {fingerprint: {'floor': ms, 'spent': {knock id: ms}, 'paper': [sheet, number]}}

    Floors never fall, and an id is forgotten only when its time has fallen below the
    floor of its key: so nothing is accepted twice, whatever clock and window become."""

    def __init__(self, server_id, floor=0):
        self.server_id = server_id
        self.floor = floor              # ms; for every key
        self.keys = {}

    def quarantine(self, now, window):
        """For a lost ledger: refuses all that may have been accepted before it was lost.
        Both in ms."""
        self.floor = max(self.floor, now + window + 2000)

    def state_line(self):
        """The first line of a journal: all that is known."""
        state = {'knockd': 2, 'id': self.server_id, 'floor': self.floor}
        state['keys'] = self.keys
        return json.dumps(state) + '\n'

    def refusal(self, fingerprint, knock_id, time, paper=None):
        """None, or why a knock with this id and time in ms may not be honoured."""
        key = self.keys.get(fingerprint) or unused_key()
        if paper is not None:
            return self.paper_refusal(key, paper)
        if knock_id in key['spent'] or time < key['floor']:
            return 'replay'
        if time <= self.floor:
            return 'quarantine'
        return None

    def paper_refusal(self, key, paper):
        """The same for (sheet, number) of a paper knock."""
        sheet, _ = paper
        # A sheet's number is the second in which it was made.
        if sheet * 1000 <= self.floor:
            return 'void: the ledger was lost since; print a new sheet'
        if list(paper) <= key['paper']:
            return 'replay'
        return None

    def record(self, fingerprint, knock_id, time, window, paper=None):
        """Spends a knock. Returns the line for the journal, which must be on disk before
        anything opens."""
        key = self.keys.setdefault(fingerprint, unused_key())
        if paper is not None:
            key['paper'] = list(paper)
            entry = {'key': fingerprint, 'paper': list(paper)}
        else:
            spend(key, knock_id, time, window)
            entry = {'key': fingerprint, 'spent': knock_id, 'time': time}
        return json.dumps(entry) + '\n'

def unused_key():
    """What the ledger knows of a key that has never knocked."""
    return {'floor': 0, 'spent': {}, 'paper': [0, 0]}

def spend(key, knock_id, time, window):
    """Remembers an id, raises the floor, and forgets the ids below it."""
    spent = key['spent']
    spent[knock_id] = time
    floor = max(key['floor'], time - (2 * window + 60000))
    surplus = len(spent) - SPENT_LIMIT
    if surplus > 0:
        oldest = sorted(spent.values())[:surplus]
        floor = max(floor, oldest[-1] + 1)
    key['floor'] = floor
    forgotten = [known for known, when in spent.items() if when < floor]
    for known in forgotten:
        del spent[known]

def journal_end(text):
    """Where the next line belongs: behind the last line that was written to its end.

    Behind it lie zero bytes, nothing, or a line whose writing was cut off by a crash.
    Blocks reach the disk in any order, so such a line may lack its end, or its beginning,
    for which zero bytes stand: it was not yet synced, and nothing was opened for it."""
    end = text.rfind('\n') + 1
    start = text.rfind('\n', 0, max(0, end - 1)) + 1
    last = text[start:end]
    # Zero bytes before a line that has its beginning are damage: another line is lost.
    if last.startswith('\0') and not last.lstrip('\0').startswith('{'):
        return start
    return end

def parse_ledger(text, server_id):
    """The Ledger in a journal's text; KnockError if it is damaged or another server's.

    Version 1 was the state alone; who wrote it by hand may have left out the end."""
    whole = text[:journal_end(text)]
    # Lines are divided here by the line feed alone, where splitlines() knows eight more.
    first, *entries = (whole or text + '\n').split('\n')[:-1]
    try:
        state = json.loads(first)
        # A journal that was cut short before its first line's end has lost the others.
        if not whole and state['knockd'] != 1:
            raise ValueError('its first line has no end')
        ledger = read_state(state, server_id)
        for entry in entries:
            read_entry(ledger, json.loads(entry))
    except MISREAD as error:
        raise KnockError('the ledger cannot be read: %s' % error)
    return ledger

def read_state(state, server_id):
    """The Ledger in a journal's first line. ValueError and others if it is damaged."""
    if state['knockd'] not in (1, 2) or state['id'] != server_id:
        raise KnockError('the ledger belongs to another server')
    ledger = Ledger(server_id, whole_number(state['floor']))
    for fingerprint, key in state['keys'].items():
        spent = {known: whole_number(when) for known, when in key['spent'].items()}
        ledger.keys[check_fingerprint(fingerprint)] = {
            'floor': whole_number(key['floor']),
            'spent': spent,
            'paper': read_paper(key['paper'])}
    return ledger

def read_entry(ledger, entry):
    """Spends what a later line says. ValueError and others if it is damaged.

    The line does not say which window was in force. With the longest there can be, the
    floor rises least: more ids are kept, and the floor refuses those that are not."""
    if entry.keys() not in (SPENT_ENTRY, PAPER_ENTRY):
        raise ValueError('entry %.40r' % entry)
    fingerprint = check_fingerprint(entry['key'])
    if 'paper' in entry:
        ledger.record(fingerprint, '', 0, 0, read_paper(entry['paper']))
        return
    if not isinstance(entry['spent'], str):
        raise ValueError('id %.40r' % (entry['spent'],))
    time = whole_number(entry['time'])
    ledger.record(fingerprint, entry['spent'], time, LONGEST_WINDOW)

def check_fingerprint(text):
    if not re.match(r'[0-9a-f]{16}\Z', text, re.ASCII):
        raise ValueError('key %.40r' % text)
    return text

def whole_number(value):
    """A time in ms or a number of a sheet; true and 1.0 are none."""
    if type(value) is not int or not 0 <= value < NEVER:
        raise ValueError('number %.40r' % (value,))
    return value

def read_paper(pair):
    sheet, number = pair
    return [whole_number(sheet), whole_number(number)]

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
# linux/filter.h: a load at SKF_AD_OFF (-0x1000) or above reads no packet but asks the
# kernel: what kind it is; its VLAN tag, which the kernel took off; whether it had one.
PACKET_TYPE, VLAN_TAG, VLAN_TAG_PRESENT = 0xfffff004, 0xfffff02c, 0xfffff030
# linux/if_packet.h: it is for this box, or a bridge passes it on. linux/if_vlan.h: a
# tag's bits for the VLAN's number.
PACKET_HOST, PACKET_OTHERHOST, VLAN_NUMBER = 0, 3, 0x0fff
BPF_DROP = (RETURN, 0, 0, 0)
BPF_PASS = (RETURN, 0, 0, 0x40000)
# So many words fit BPF_MAXINSNS, 4,096, in leaves of at most 32.
FILTER_TAGS = 3400
LEAF = 32
# What no protocol is, for a carrier that is off.
NO_PROTOCOL = 256

def word_tree(words):
    """Linked lines that look for A among these sorted 32-bit words. None passes all, no
    words pass nothing. Each leaf returns by itself. JUMP leads over the left half, which
    may be longer than the 8-bit offset of a test can reach."""
    if words is None:
        return [BPF_PASS]
    if len(words) <= LEAF:
        return word_leaf(words)
    half = len(words) // 2
    left = word_tree(words[:half])
    right = word_tree(words[half:])
    return [(JGE, 0, 1, words[half]), (JUMP, 0, 0, len(left))] + left + right

def word_leaf(words):
    """Compares A with each; a match leads over all other tests and BPF_DROP to
    BPF_PASS."""
    lines = [(JEQ, len(words) - number, 0, word) for number, word in enumerate(words)]
    return lines + [BPF_DROP, BPF_PASS]

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
OR_PASSED_ON = [                        # a knock on its way to a host behind this box
    (LD_BYTE, PACKET_TYPE),
    (JEQ, 'ours', 0, PACKET_HOST),
    (JEQ, 0, 'drop', PACKET_OTHERHOST),
    'ours',
]
UNTAGGED = [
    (LD_BYTE, VLAN_TAG_PRESENT),
    (JEQ, 'untagged', 0, 0),
    (LD_HALF, VLAN_TAG),                # with number 0 it tells of priority alone
    (JSET, 'drop', 0, VLAN_NUMBER),     # it comes again by the interface of its VLAN
    'untagged',
]
WHICH_VERSION = [
    (LD_BYTE, 0),                       # version and header length, or traffic class
    (AND, 0xf0),
    (JEQ, 'version 4', 0, 0x40),
    (JEQ, 'version 6', 'drop', 0x60),
]
# Both heads leave X = M[1] = the length of the IP header, M[2] = the bytes behind it and
# A = the protocol. They refuse what the parser below refuses.
HEAD4 = [                               # RFC 791, 3.1
    'version 4',
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
    'version 6',
    (LD_HALF, 4),                       # A = payload length
    (STORE, 2),
    (ADD, 40),
    (LDX_LENGTH, 0),                    # X = bytes that are there
    (JGT_X, 'drop', 0, 0),              # cut short
    (LDX_NUMBER, 40),
    (STORE_X, 1),
    (LD_BYTE, 6),                       # A = next header: extension headers are no knock
]

def with_heads(begin, branch4, branch6):
    """A listing that goes on in one of these branches, by the packet's version. Each must
    end in a jump."""
    return begin + UNTAGGED + WHICH_VERSION + HEAD4 + branch4 + HEAD6 + branch6

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
    BPF_DROP,
    'tag',
    (LD_WORD_X, TRANSPORT),             # A = the tag's first 32 bits
]

def packets_for(config):
    """How a filter begins: is it a packet for us?"""
    return OR_PASSED_ON if config.behind else FOR_THIS_BOX

def datagram_filter(carriers, port, words, begin=FOR_THIS_BOX):
    """The program for one socket: knock/1 datagrams, over IPv4 or IPv6, whose first 32
    bits are among the words. words None passes every datagram of a possible length."""
    udp = UDP if 'udp' in carriers else NO_PROTOCOL
    branches = []
    for version in (4, 6):
        icmp = ECHO_PROTOCOL[version] if 'icmp' in carriers else NO_PROTOCOL
        request = int.from_bytes(ECHO_REQUEST[version], 'big')
        branches.append([
            (JEQ, 'udp', 0, udp),
            (JEQ, 0, 'drop', icmp),
            (LD_HALF_X, 0),             # A = type and code
            (JEQ, 'echo', 'drop', request),
        ])
    listing = with_heads(begin, *branches) + ['udp']
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

# RFC 9293, 3.1: of FIN, SYN, RST and ACK nothing but SYN; the bytes of a header without
# options.
SYN_FLAGS, SYN = 0x17, 0x02
TCP_HEADER = 20

IS_TCP = [(JEQ, 'tcp', 'drop', TCP)]
IS_SYN = [
    'tcp',
    (LD_MEMORY, 2),                     # A = bytes behind the IP header
    (JGE, 0, 'drop', TCP_HEADER),
    (LDX_MEMORY, 1),
    (LD_BYTE_X, 13),                    # A = flags
    (AND, SYN_FLAGS),
    (JEQ, 0, 'drop', SYN),
]

def syn_filter(ports, words, begin=FOR_THIS_BOX):
    """The program for SYNs to a port from ports[0] to ports[1] (None: to no port), or
    with a badge whose first 32 bits are among the words. words None passes every SYN."""
    low, high = ports or (65536, 65536)
    listing = with_heads(begin, IS_TCP, IS_TCP) + IS_SYN + [
        (LD_HALF_X, 2),                 # A = destination port
        (JGE, 0, 'badge', low),
        (JGT, 'badge', 0, high),
        BPF_PASS,
        'drop',
        BPF_DROP,
        'badge',
        (LD_WORD_X, 4),                 # A = the badge's first 32 bits, the SYN's seq
    ]
    return link(listing) + word_tree(words and sorted(words))

# What most packets are, TCP but no SYN, is dropped as early as can be.
SYN_OR_OTHERS = [
    (LD_BYTE, 0),
    (AND, 0xf0),
    (JEQ, 'version 6', 0, 0x60),
    (LD_BYTE, 9),                       # A = protocol
    (JEQ, 0, 'others', TCP),
    (LDX_HEADER, 0),
    (LD_BYTE_X, 13),                    # A = flags
    (AND, SYN_FLAGS),
    (JEQ, 'syn', 0, SYN),
    BPF_DROP,
    'version 6',
    (LD_BYTE, 6),                       # A = next header
    (JEQ, 0, 'others', TCP),
    (LD_BYTE, 53),                      # A = flags
    (AND, SYN_FLAGS),
    (JEQ, 'syn', 0, SYN),
    BPF_DROP,
    'syn',
]

def by_protocol(syns, others):
    """One program of two: one for SYNs, and one for what is not TCP."""
    return link(SYN_OR_OTHERS + [(JUMP, len(others)), 'others']) + others + syns

# --- packet parser: from the IP header on; trusts neither the filter nor any length ----
def parse_ip4(frame):
    """An IpPacket or None. RFC 791, 3.1."""
    if len(frame) < 20:
        return None
    # A fragment: MF or an offset.
    if int.from_bytes(frame[6:8], 'big') & 0x3fff:
        return None
    header = (frame[0] & 15) * 4
    total = int.from_bytes(frame[2:4], 'big')
    if not 20 <= header <= total <= len(frame):
        return None
    return IpPacket(4, frame[12:16], frame[16:20], frame[9], frame[header:total])

def parse_ip6(frame):
    """As parse_ip4(), RFC 8200, 3; a packet with extension headers is none of ours."""
    if len(frame) < 40:
        return None
    total = 40 + int.from_bytes(frame[4:6], 'big')
    if len(frame) < total:
        return None
    return IpPacket(6, frame[8:24], frame[24:40], frame[6], frame[40:total])

PARSERS = {4: parse_ip4, 6: parse_ip6}

def parse_ip(frame):
    """An IpPacket of the version that the first four bits say, or None."""
    if not frame:
        return None
    parse = PARSERS.get(frame[0] >> 4)
    return parse and parse(frame)

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

def parse_packet(frame, carriers, port):
    """A Packet if these bytes may be a knock/1 datagram, else None. Never raises."""
    packet = parse_ip(frame)
    if packet is None:
        return None
    body, version = packet.body, packet.version
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

def parse_syn(frame):
    """A Syn, or None if these bytes are anything else. RFC 9293, 3.1."""
    packet = parse_ip(frame)
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
    if source == bytes(16):
        return None
    address = ipaddress.IPv6Address(source)
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

# --- sequences: touched ports in, finished sequences out; nobody is authenticated yet ---
SEQUENCE_TIME = 20000           # ms from the first port to the last
SOURCES_LIMIT = 4096            # sources that are followed at a time
STRIKES = 10                    # ports that fit nothing of a source; one more ends all

# What a port is to an attempt.
STRANGE, FITS, LAST = 'strange', 'fits', 'last'

# finished: Credentials. goes_on: the port belongs to a sequence whose second port came.
Progress = collections.namedtuple('Progress', 'finished goes_on')

class Attempt:
    """One sequence that a source has begun. It stays for a while when it is finished:
    late copies of its ports must not be strikes against others."""

    def __init__(self, credential, now):
        self.credential = credential
        self.taken = 1          # how many of its ports came
        self.strikes = 0
        self.since = now        # ms of its first port; once it is finished, of its last

    def alive(self, now):
        return now - self.since <= SEQUENCE_TIME and self.strikes <= STRIKES

    def touch(self, port, now):
        """STRANGE, FITS or LAST."""
        ports = self.credential.ports
        # Networks repeat packets and browsers send two: what came once changes nothing.
        if port in ports[:self.taken]:
            return FITS
        if self.taken == len(ports) or port != ports[self.taken]:
            return STRANGE
        self.taken += 1
        if self.taken < len(ports):
            return FITS
        self.since = now
        return LAST

class Sequences:
    """Which sources have touched which ports, in order."""

    def __init__(self, paper):
        self.tables = [paper]   # {first port: [Credential]}; those of the steps are added
        # {source: [Attempt]}, the longest untouched first. A flood of first ports pushes
        # out its own kind: whoever has come further is in the second table.
        self.beginners = collections.OrderedDict()
        self.advanced = collections.OrderedDict()

    def touch(self, source, port, now):
        """The Progress that a SYN of this source to this port makes."""
        attempts = self.take_attempts(source, now)
        finished = []
        explained = goes_on = False
        for attempt in attempts:
            found = attempt.touch(port, now)
            if found == STRANGE:
                continue
            explained = True
            if attempt.taken > 1:
                goes_on = True
            if found == LAST:
                finished.append(attempt.credential)
        begun = self.begin(attempts, port, now)
        if not explained and not begun:
            for attempt in attempts:
                attempt.strikes += 1
        self.remember(source, attempts + begun, now)
        return Progress(finished, goes_on)

    def take_attempts(self, source, now):
        """Takes out what this source has under way; remember() puts it back."""
        known = self.beginners.pop(source, []) + self.advanced.pop(source, [])
        return [attempt for attempt in known if attempt.alive(now)]

    def begin(self, attempts, port, now):
        """New Attempts at the sequences that begin with this port and are not under
        way."""
        under_way = {attempt.credential.ports for attempt in attempts}
        begun = []
        for table in self.tables:
            for credential in table.get(port, ()):
                if credential.ports not in under_way:
                    begun.append(Attempt(credential, now))
        return begun

    def remember(self, source, attempts, now):
        if not attempts:
            return
        further = max(attempt.taken for attempt in attempts) > 1
        table = self.advanced if further else self.beginners
        table[source] = attempts
        if len(self.beginners) + len(self.advanced) > SOURCES_LIMIT:
            self.forget_one(now)

    def forget_one(self, now):
        """The longest untouched with one port. But first of all one that came further and
        stopped: such would pile up, and then nobody could begin."""
        table = self.beginners or self.advanced
        first = next(iter(self.advanced.values()), ())
        if first and not any(attempt.alive(now) for attempt in first):
            table = self.advanced
        table.popitem(last=False)

def paper_sequences(config):
    """{first port: [Credential]} of every sheet."""
    table = {}
    for client in config.clients.values():
        if client.paper is None:
            continue
        sheet, count = client.paper
        for number in range(1, count + 1):
            ports = paper_ports(client.keys, sheet, number)
            credential = Credential(client, 'paper', 0, (sheet, number), ports)
            table.setdefault(ports[0], []).append(credential)
    return table

# --- codes: eight digits typed as two ports, and the sleep after wrong ones -------------
FIRST_PORTS = range(10000, 20000)       # 10000 + the first four digits
SECOND_PORTS = range(20000, 30000)      # 20000 + the last four
# ms from the first port to the second.
CODE_TIME = 60000
# ms in which a SYN is sent again by TCP: after 1, 3 and 7 s.
REPEAT_TIME = 10000
# Wrong tries, of all sources together, until the carrier sleeps.
CODE_TRIES = 3
# ms until one doubling of the sleep is taken back.
DOUBLING_TIME = 3600000
# Steps of the longest sleep: no shorter than that, or a guesser had more tries an hour.
CODE_SLEEP = 120
# There are never more: behind seven (2 ** 7 > 120) the sleep takes back what it adds.
DOUBLINGS = 8

class Typing:
    """What one source has typed: its first port, and the pair that was looked at last."""

    def __init__(self):
        # The first port, and ms of the monotonic clock when it came.
        self.first = None
        self.since = 0
        # The last pair that was looked at, and the Moment of that.
        self.tried = self.tried_at = None

    def repeats(self, pair, now):
        """Is this the network's copy of the last pair? In the same step it tells nothing
        new. Early in the next one it would be a wrong try of somebody who typed once."""
        if pair != self.tried:
            return False
        same_step = step_of(now.wall) == step_of(self.tried_at.wall)
        return same_step or now.mono - self.tried_at.mono < REPEAT_TIME

class Codes:
    """The carrier `code`. Eight digits can be guessed, so wrong tries are limited over
    all sources: the third puts the carrier to sleep, for 1, 2, 4 ... 120 steps, and every
    hour takes one doubling back. Whatever a guesser does, he has 3 tries an hour and 21
    more: 0.081 % a year for each client. A restart gives none; a boot gives 24 again,
    which is below 0.1 % up to 250 boots a year."""

    # A success takes nothing back. If it did, whoever guesses had 21 more tries for every
    # knock of every client: 0.19 % a year with five a day, and a client could help him.
    def __init__(self):
        self.typing = collections.OrderedDict()     # {source: Typing}, the eldest first
        self.wrong = 0          # tries since the last sleep
        self.asleep_until = 0   # ms of the monotonic clock
        self.forgiven_at = 0    # ms: then the last doubling is taken back

    def memory(self):
        """What the next process must know, or each restart would give more tries."""
        return [self.wrong, self.asleep_until, self.forgiven_at]

    def recall(self, memory, now):
        """Goes on where the process before stopped. now: ms since boot. Times further
        ahead than any can be are of another boot: nothing sleeps until then."""
        self.wrong, asleep_until, forgiven_at = memory
        self.asleep_until = min(asleep_until, now + (CODE_SLEEP + 1) * STEP)
        self.forgiven_at = min(forgiven_at, now + DOUBLINGS * DOUBLING_TIME)

    def touch(self, source, port, now, codes):
        """The Credential of the code that this port completes, if it is one. codes:
        {digits: Credential}, those that are valid now."""
        # Where none is valid nothing can be guessed, so nothing is a try.
        if not codes or now.mono < self.asleep_until:
            return None
        if port in FIRST_PORTS:
            self.begin(source, port, now)
        if port not in SECOND_PORTS or source not in self.typing:
            return None
        typing = self.typing[source]
        if now.mono - typing.since > CODE_TIME:
            return None
        pair = typing.first, port
        # A copy is no try, and it is not looked at: or it would be a free guess.
        if typing.repeats(pair, now):
            return None
        typing.tried = pair
        typing.tried_at = now
        digits = '%04d%04d' % (pair[0] - FIRST_PORTS.start, pair[1] - SECOND_PORTS.start)
        credential = codes.get(digits)
        if credential is None:
            self.fail(now.mono)
        return credential

    def begin(self, source, port, now):
        """A source holds one first port; a new one replaces it."""
        typing = self.typing.pop(source, Typing())
        typing.first = port
        typing.since = now.mono
        self.typing[source] = typing
        if len(self.typing) > SOURCES_LIMIT:
            self.typing.popitem(last=False)

    def fail(self, now):
        """Counts a wrong try, in whatever step and by whomever."""
        self.wrong += 1
        if self.wrong < CODE_TRIES:
            return
        unforgiven = max(0, self.forgiven_at - now)
        doublings = (unforgiven + DOUBLING_TIME - 1) // DOUBLING_TIME
        steps = min(2 ** doublings, CODE_SLEEP)
        # Whole steps of the monotonic clock, not of the codes. The rest of this one comes
        # on top, so that no sleep is shorter than it says.
        self.asleep_until = (step_of(now) + 1 + steps) * STEP
        self.forgiven_at = max(self.forgiven_at, now) + DOUBLING_TIME
        self.wrong = 0
        self.typing.clear()

def valid_codes(config, now):
    """{eight digits: Credential} of this step and its two neighbours, whatever the
    window, and of one more, as it is called only once a step. now: ms since 1970."""
    codes = {}
    if 'code' not in config.carriers:
        return codes
    this = step_of(now)
    for client in key_owners(config):
        if not client.code:
            continue
        for step in range(max(0, this - 1), this + 3):
            credential = Credential(client, 'code', step, None, ())
            codes[code_at(client.keys, step)] = credential
    return codes

# --- credentials of a step: all that authenticates in these 30 seconds ------------------
class StepCredentials:
    """What authenticates in one step. It takes 16 us a client, so the loop makes it
    ahead, when nobody waits: 16 ms with 1,000 clients, 0.2 s with 10,000."""

    def __init__(self, config, step):
        self.step = step
        self.tags = {}          # {8 bytes: (client, step)}
        self.badges = {}        # {10 bytes of a SYN: Credential}
        self.sequences = {}     # {first port: [Credential]}
        for client in key_owners(config):
            self.tags[tag_at(client.keys, step)] = client, step
            if 'syn' in config.carriers:
                badge = syn_badge(client.keys, step)
                self.badges[badge] = Credential(client, 'syn', step, None, ())
            if 'ports' in config.carriers:
                ports = step_ports(client.keys, step)
                credential = Credential(client, 'ports', step, None, ports)
                self.sequences.setdefault(ports[0], []).append(credential)

def valid_steps(config, now, known=()):
    """The StepCredentials of all steps that can be valid now, and of the one after, so
    that a tick leaves no gap. now: ms since 1970. known: those that were made already for
    this config; a step is not made twice."""
    steps = window_steps(now, config.window)
    made = {credentials.step: credentials for credentials in known}
    # A range ends before its stop, so the stop is the one after.
    return [made.get(step) or StepCredentials(config, step)
            for step in range(steps.start, steps.stop + 1)]

# --- openings: what each client has open, as values -------------------------------------
# Openings are {(fingerprint, source, service, only): Opening} down to surviving(), and a
# collection of Openings from live() on.

# Disjoint port ranges that a client may have open at a time: each is an element in the
# kernel, and one client's must not cost others their time.
ELEMENTS_LIMIT = 64

def network_of(knock):
    """The network that a knock is for: its address alone, unless the client's section
    says more."""
    client = knock.client
    prefix = client.prefix4 if knock.source.version == 4 else client.prefix6
    return ipaddress.ip_network((knock.source, prefix), strict=False)

def only_of(knock):
    """The addresses of `only` that are of the knock's family; () opens everywhere. Where
    `only` has none of that family, scope_flaw() refuses, or it would be everywhere."""
    return tuple(address for address in knock.client.only
                 if address.version == knock.source.version)

def at_places(only):
    """Text to put behind a list of services: ' at ADDRESS,...', '' if everywhere."""
    return ' at ' + ','.join(map(str, only)) if only else ''

def after_open(openings, knock, now):
    """The openings with those of this knock: it extends what this client has, never
    shortens it, and touches nobody else's. openings: {(fingerprint, source, service,
    only): Opening}."""
    client = knock.client
    source = network_of(knock)
    expires = now.mono + knock.seconds * 1000
    after = dict(openings)
    # Ranges that overlap or touch are one, or they would be counted twice.
    for service in merged(knock.services):
        opening = Opening(client.fingerprint, client.name, source, service, client.once,
                          expires, only_of(knock), knock.elsewhere)
        put_longest(after, opening)
    return after

def put_longest(openings, opening):
    """Adds an opening; where the same is open already, the later end counts."""
    key = opening.fingerprint, opening.source, opening.service, opening.only
    if key not in openings or openings[key].expires < opening.expires:
        openings[key] = opening

def after_close(openings, knock):
    """The openings without those that this knock closes: its own client's, for the
    network that it is for, and of these the services that it names, or all. What is left
    of a range that is closed in part stays open."""
    own = knock.client.fingerprint, network_of(knock)
    after = {}
    for opening in openings.values():
        parts = [opening.service]
        if (opening.fingerprint, opening.source) == own:
            parts = left_open(opening.service, knock.services)
        for service in parts:
            # What is left of a range may equal another opening, with a later end.
            put_longest(after, opening._replace(service=service))
    return after

def left_open(service, closed):
    """The parts of a service that none of the closed ones covers; if none is named, all
    is closed."""
    if not closed:
        return []
    parts = []
    low = service.low           # of what is left behind the holes that were looked at
    for hole in merged(closed):
        apart = hole.high < low or service.high < hole.low
        if service.proto != hole.proto or apart:
            continue
        if low < hole.low:
            parts.append(service._replace(low=low, high=hole.low - 1))
        low = hole.high + 1
    if low <= service.high:
        parts.append(service._replace(low=low))
    return parts

def surviving(openings, config, now):
    """The openings that go on under this config. One ends if its key is gone, if it is
    too_wide() for its client now, or if the client's time or its own is over."""
    owners = {client.fingerprint: client for client in key_owners(config)}
    after = {}
    for key, opening in openings.items():
        owner = owners.get(opening.fingerprint)
        if owner is None or too_wide(opening, owner):
            continue
        expires = min(opening.expires, now.mono + owner.expires - now.wall)
        # What goes on as it was is the same object, or differing() would find it changed.
        if (owner.name, expires) != (opening.client, opening.expires):
            opening = opening._replace(client=owner.name, expires=expires)
        if expires > now.mono:
            after[key] = opening
    return after

def too_wide(opening, client):
    """Is this more than a knock of the client could open now?"""
    prefix = client.prefix4 if opening.source.version == 4 else client.prefix6
    if opening.source.prefixlen < prefix or (client.once and not opening.once):
        return True
    if client.only and not (opening.only and set(opening.only) <= set(client.only)):
        return True
    if opening.elsewhere and not client.any_source:
        return True
    return not covered(opening.service, merged(client.allow))

def live(openings, now):
    """Those that are not over. now: ms of the monotonic clock."""
    return [opening for opening in openings if opening.expires > now]

def elements(openings):
    """What the kernel holds of these openings: {Element: when it ends}. For each source,
    protocol, kind of once and destination: ranges that do not overlap, since the kernel's
    sets refuse that, each with the latest end that an opening which covers it has."""
    groups = {}
    for opening in openings:
        for destination in opening.only or (None,):
            key = opening.source, opening.service.proto, opening.once, destination
            groups.setdefault(key, []).append(opening)
    found = {}
    for (source, proto, once, destination), members in groups.items():
        for low, high, expires in pieces(members):
            service = Service(proto, low, high)
            found[Element(source, service, once, destination)] = expires
    return found

def differing(before, after):
    """Both collections, less the sources whose openings are the same objects in both. No
    two sources share an element, so nothing differs in theirs."""
    common = set(map(id, before)) & set(map(id, after))
    sources = {opening.source for opening in itertools.chain(before, after)
               if id(opening) not in common}
    return ([opening for opening in before if opening.source in sources],
            [opening for opening in after if opening.source in sources])

def pieces(openings):
    """[(low, high, latest end)] in order: cut wherever an opening begins or ends, joined
    again where neighbours end at the same time."""
    edges = set()
    for opening in openings:
        edges.update((opening.service.low, opening.service.high + 1))
    cuts = sorted(edges)
    places = {port: place for place, port in enumerate(cuts)}
    # The latest end of the ports from each cut to the next: it is written last. (To look
    # at each opening at each cut took 2 s with 1,000 openings.)
    ends = [None] * len(cuts)
    for opening in sorted(openings, key=lambda opening: opening.expires):
        first = places[opening.service.low]
        behind = places[opening.service.high + 1]
        ends[first:behind] = [opening.expires] * (behind - first)
    found = []
    for low, behind, expires in zip(cuts, cuts[1:], ends):
        if expires is None:
            continue
        if found and found[-1][1:] == (low - 1, expires):
            low, _, _ = found.pop()
        found.append((low, behind - 1, expires))
    return found

# --- judge: a packet, a moment and what is known in, a Decision out ---------------------
# For each tag. Whoever has sniffed one can make us compute so many MACs, and no more.
MACS_A_SECOND = 200
# For each key; only what is honoured counts.
KNOCKS_A_SECOND = 5
# For each key: every one starts a process.
SIGNATURES_A_SECOND = 2
SYNS_A_SECOND = 20000
SYNS_APART = 256                # a second; so many fit a tap's buffer many times
# ms within which the network may deliver a knock twice.
COPY_TIME = 2000
COPIES_LIMIT = 4096             # honoured knocks whose copies are known
# The carriers whose packets say what they ask for.
DATAGRAMS = 'udp', 'icmp'

# Why a knock was refused. The log says each once a minute for each client.
MALFORMED, CLOCK, EXPIRED, SOURCE = 'malformed', 'clock', 'expired', 'source'
SCOPE, SIZE, SIGNATURE, PACE = 'scope', 'size', 'signature', 'pace'
REPLAY = 'replay'               # the ledger has two kinds more: quarantine, void

Flaw = collections.namedtuple('Flaw', 'kind reason')    # reason: the sentence for the log

class Budget:
    """At most so many of a thing a second, each thing for itself."""

    def __init__(self, limit):
        self.limit = limit
        self.second = None
        self.used = {}          # {thing: how often in this second}

    def spend(self, thing, second, besides=0):
        """Counts one, and `besides` that were lost on the way; False if these are more
        than the limit in this second."""
        if second != self.second:
            self.second = second
            self.used = {}
        used = self.used.get(thing, 0) + 1 + besides
        self.used[thing] = used
        return used <= self.limit

class Copies:
    """The knocks that were honoured a moment ago, while the network may still deliver
    copies."""

    def __init__(self):
        # {(fingerprint, knock id): (sender, ms)}, the eldest first.
        self.honoured = collections.OrderedDict()

    def remember(self, knock, sender, now):
        """now: ms of the monotonic clock."""
        self.honoured[knock.client.fingerprint, knock.knock_id] = sender, now
        if len(self.honoured) > COPIES_LIMIT:
            self.honoured.popitem(last=False)

    def holds(self, knock, sender, now):
        key = knock.client.fingerprint, knock.knock_id
        source, when = self.honoured.get(key, (None, 0))
        return source == sender and now - when <= COPY_TIME

class State:
    """What the judge knows besides the packet."""

    def __init__(self, config, ledger):
        self.config = config
        self.ledger = ledger
        self.openings = {}      # {(fingerprint, source, service, only): Opening}
        self.tags = {}          # {8 bytes: (client, step)}
        self.badges = {}        # {10 bytes of a SYN: Credential}
        self.codes = {}         # {eight digits: Credential}
        self.macs = Budget(MACS_A_SECOND)
        self.knocks = Budget(KNOCKS_A_SECOND)
        self.signatures = Budget(SIGNATURES_A_SECOND)
        self.copies = Copies()

    def adopt(self, config):
        """Judges by this config from now on."""
        self.config = config

    def learn(self, tags, badges, codes):
        """What authenticates now."""
        self.tags = tags
        self.badges = badges
        self.codes = codes

    def hold(self, openings):
        """Sets what is open, or shall be."""
        self.openings = openings

def judge(packet, now, state):
    """What becomes of a packet, and the order in which that is found out: nothing is
    decrypted before the MAC holds, nothing is read before that, and the first flaw ends
    it. It spends nothing but budgets. Whoever honours the Decision goes on, in this
    order: signature, ledger recorded, on disk, firewall, hooks, log."""
    if packet.carrier in DATAGRAMS:
        tag = packet.payload[:TAG_SIZE]
        if tag not in state.tags:
            return JUNK
        affordable = state.macs.spend(tag, now.mono // 1000)
        if not affordable:
            return MUTE
        client, step = state.tags[tag]
        plain = unseal(client.keys, packet.payload)
        if plain is None:
            return JUNK
        knock = datagram_knock(packet, client, step)
        try:
            request = decode_plain(plain)
        except KnockError as error:
            return Decision('refused', MALFORMED, str(error), knock)
        knock = knock._replace(request=with_signed(request, packet, state.config))
    else:
        knock = credential_knock(packet)
    knock = with_defaults(knock, now, state.config)
    for find_flaw in (clock_flaw, expiry_flaw, source_flaw, scope_flaw, size_flaw,
                      unsigned_flaw, ledger_flaw, pace_flaw):
        flaw = find_flaw(knock, now, state)
        if flaw is None:
            continue
        if flaw.kind == REPLAY and state.copies.holds(knock, packet.source, now.mono):
            return Decision('copy', None, None, knock)
        return Decision('refused', flaw.kind, flaw.reason, knock)
    return Decision(knock.request.op, None, None, knock)

def datagram_knock(packet, client, step):
    """A Knock whose request is still to be read. Its id is the nonce."""
    nonce = packet.payload[TAG_SIZE:TAG_SIZE + NONCE_SIZE].hex()
    return Knock(client, packet.carrier, packet.source, nonce, step, paper=None,
                 request=None, services=(), seconds=0, elsewhere=False)

def with_signed(request, packet, config):
    """The Request with all that its signature must sign: "knock/1 ", server id, 0x00,
    tag, nonce, and what of the plain bytes comes before the signature."""
    server = b'knock/1 ' + config.id.encode('ascii') + b'\0'
    head = packet.payload[:TAG_SIZE + NONCE_SIZE]
    return request._replace(signed=server + head + request.signed)

def credential_knock(packet):
    """The Knock of a Credential, which has no room for a request: it asks for the
    default. Its id is its carrier and its step, or the sheet and number of paper."""
    credential = packet.payload
    time = credential.step * STEP
    request = Request('open', time, source=None, seconds=0, services=(), action=None,
                      signature=None, signed=None)
    knock_id = '%s:%s' % (credential.carrier, credential.paper or credential.step)
    return Knock(credential.client, credential.carrier, packet.source, knock_id,
                 credential.step, credential.paper, request, (), 0, False)

def with_defaults(knock, now, config):
    """The Knock with its services, its seconds, and the address that it is for."""
    client = knock.client
    request = knock.request
    services = request.services
    if request.op == 'open' and not services:
        services = client.default
    source = knock.source
    if client.any_source and request.source is not None:
        source = request.source
    elsewhere = source != knock.source
    # Both in ms. A client's own open_for may be longer than max_open_for.
    usual = client.open_for or config.open_for
    longest = max(config.max_open_for, client.open_for or 0)
    if client.once:
        longest = min(longest, WEEK)
    # Nothing may outlast the client. Its end is a time of the wall clock.
    longest = min(longest, max(0, client.expires - now.wall))
    seconds = min(request.seconds or usual // 1000, longest // 1000)
    return knock._replace(services=services, seconds=seconds, source=source,
                          elsewhere=elsewhere)

def clock_flaw(knock, now, state):
    """A datagram names its millisecond, other carriers their step, a paper knock needs no
    clock."""
    time = knock.request.time
    step = knock.step
    window = state.config.window
    if knock.paper is not None:
        fits = True
    elif knock.carrier == 'code':
        fits = abs(step - step_of(now.wall)) <= 1
    elif knock.carrier in DATAGRAMS:
        fits = abs(now.wall - time) <= window and step_of(time) == step
    else:
        fits = step in window_steps(now.wall, window)
    if fits:
        return None
    return Flaw(CLOCK, 'clock %+ds' % round((time - now.wall) / 1000))

def expiry_flaw(knock, now, state):
    """A client ends at `expires`. An old secret also ends when the newer one is used."""
    client = knock.client
    if now.wall >= client.expires:
        return Flaw(EXPIRED, 'expired')
    current = state.config.clients[client.name].fingerprint
    if client.fingerprint != current and current in state.ledger.keys:
        return Flaw(EXPIRED, 'expired: a newer secret of this client is in use')
    return None

def source_flaw(knock, now, state):
    """Whoever names a source must come from it, unless the config trusts him with any."""
    named = knock.request.source
    if named is None:
        if knock.client.require_source:
            return Flaw(SOURCE, 'no source named')
        return None
    nobody = named.is_multicast or named.is_loopback or named.is_unspecified
    # With any_source, with_defaults() has made the named one the knock's source.
    if named != knock.source or nobody:
        return Flaw(SOURCE, 'source %s' % named)
    return None

def scope_flaw(knock, now, state):
    """The carrier, and every service, or the action, must be the client's; one that is
    not refuses all."""
    request = knock.request
    if knock.carrier not in knock.client.carriers + ('paper',):
        return Flaw(SCOPE, 'not allowed carrier ' + knock.carrier)
    if request.op == 'run':
        if request.action not in knock.client.may_run:
            return Flaw(SCOPE, 'not allowed action ' + request.action)
        return None
    if request.op == 'open' and not knock.services:
        return Flaw(SCOPE, 'not allowed anything')
    if request.op == 'open' and knock.client.only and not only_of(knock):
        return Flaw(SCOPE, 'not allowed over IPv%d: only names no such address'
                    % knock.source.version)
    allowed = merged(knock.client.allow)
    for service in knock.services:
        if not covered(service, allowed):
            return Flaw(SCOPE, 'not allowed ' + format_service(service))
    return None

def size_flaw(knock, now, state):
    """What one client may have open at a time is bounded, or it could take the firewall's
    time and memory from all others."""
    own = {}
    for key, opening in state.openings.items():
        if opening.fingerprint == knock.client.fingerprint and opening.expires > now.mono:
            own[key] = opening
    if knock.request.op == 'open':
        own = after_open(own, knock, now)
    elif knock.request.op == 'close':
        own = after_close(own, knock)
    # Openings that overlap may make fewer elements than they are; with `only`, more.
    if len(own) > ELEMENTS_LIMIT or len(elements(own.values())) > ELEMENTS_LIMIT:
        return Flaw(SIZE, 'too much at a time: more than %d port ranges' % ELEMENTS_LIMIT)
    return None

def unsigned_flaw(knock, now, state):
    """A client with an ssh key must sign. Whether the signature holds is asked later."""
    if knock.client.ssh_key and knock.request.signature is None:
        return Flaw(SIGNATURE, 'no signature')
    return None

def ledger_flaw(knock, now, state):
    """Was it honoured before, or may it have been?"""
    fingerprint = knock.client.fingerprint
    time = knock.request.time
    reason = state.ledger.refusal(fingerprint, knock.knock_id, time, knock.paper)
    if reason is None:
        return None
    # replay, quarantine or void; the latter says what to do.
    kind, _, _ = reason.partition(':')
    return Flaw(kind, reason)

def pace_flaw(knock, now, state):
    """Comes last, as it counts what it lets by: a knock refused for another reason costs
    none."""
    affordable = state.knocks.spend(knock.client.fingerprint, now.mono // 1000)
    if affordable:
        return None
    return Flaw(PACE, 'too fast')

class Keyring:
    """All that authenticates now, and how far each source has come with what takes
    several SYNs. The daemon and `watch` have one each."""

    def __init__(self, state, codes):
        self.state = state
        self.credentials = []   # StepCredentials
        self.steps = None       # range of those that are valid
        self.sequences = Sequences({})
        self.codes = codes      # Codes: what was typed; the valid ones are in the state

    def adopt(self, now):
        """Takes up the state's config; what was made for another one is dropped."""
        self.sequences = Sequences(paper_sequences(self.state.config))
        self.credentials = []
        self.turn(now)

    def turned(self, now):
        """Are other steps valid than at the last turn()? Also if the clock was set."""
        return window_steps(now.wall, self.state.config.window) != self.steps

    def turn(self, now, doubt=None):
        """Gives what is valid from now on to the judge and to the sequences. doubt: why
        the clock is wrong, or None."""
        config = self.state.config
        self.steps = window_steps(now.wall, config.window)
        self.credentials = valid_steps(config, now.wall, self.credentials)
        tags, badges = {}, {}
        for credentials in self.credentials:
            tags.update(credentials.tags)
            badges.update(credentials.badges)
        codes = {}
        # By a wrong clock the owner's right codes would be wrong tries.
        if doubt is None:
            codes = valid_codes(config, now.wall)
        self.state.learn(tags, badges, codes)
        # Behind the table of paper.
        self.sequences.tables[1:] = [each.sequences for each in self.credentials]

    def lacks_next(self):
        """Must the step that the next turn() adds still be derived? turn() itself went up
        to steps.stop. With 10,000 clients it takes longer than a knock may wait, so it is
        done when none does."""
        return self.credentials[-1].step <= self.steps.stop

    def prepare(self):
        """Derives it."""
        if self.lacks_next():
            newest = self.credentials[-1].step
            self.credentials.append(StepCredentials(self.state.config, newest + 1))

    def packets_of(self, syn, now, badges_alone=False):
        """The Packets that this SYN completes: it may be a badge itself, the last port of
        a sequence, or the second half of a code. badges_alone: whatever its port is."""
        found = []
        badge = self.state.badges.get(syn.badge)
        if badge is not None:
            found.append(badge)
        service = Service(TCP, syn.port, syn.port)
        hidden = covered(service, self.state.config.hide)
        if not (hidden or syn.port < 1024 or badges_alone):
            found += self.touch(syn, now)
        return [Packet(one.carrier, syn.source, one) for one in found]

    def touch(self, syn, now):
        """The credentials of the sequences and the code that this port completes."""
        progress = self.sequences.touch(syn.source, syn.port, now.mono)
        found = progress.finished
        if progress.goes_on:            # then it is half of no code
            return found
        code = self.codes.touch(syn.source, syn.port, now, self.state.codes)
        if code is not None:
            found.append(code)
        return found

# --- the box and its decoys: what others' rules do --------------------------------------
# A hidden port must look like a closed one of the same box, so we read what the box does
# with those. Our chain comes after the box's own: what they drop or reject by themselves
# needs nobody's help. The question is what would become of a packet if no rule let it by
# for its port.
STACK, DROP, ACCEPT = 'stack', 'drop', 'accept'
TCP_RESET = 'reject with tcp reset'
UNREACHABLE = 'reject with icmpx type port-unreachable'
PROHIBITED = 'reject with icmpx type admin-prohibited'
FAMILIES = {4: 'ip', 6: 'ip6'}
# family: inet, ip, ip6, or what else nft says. hook: None for a chain that others call.
Chain = collections.namedtuple('Chain', 'family table name hook kind priority policy')
# conditions: [Condition] that must all hold. verdict: accept, drop, return, 'jump NAME',
# 'goto NAME', 'reject with ...' in nft's words, or None for a rule that goes on.
# handle: nft's number for it. ours: is it the rule that lets through what we let by?
Rule = collections.namedtuple('Rule', 'conditions verdict handle ours')
# key: version, proto, state, flags, interface, port or source; 'other' is not understood.
Condition = collections.namedtuple('Condition', 'key values negated')
# A stranger's packet to a closed port. version: 4 or 6; proto: TCP or UDP; state: a key
# of FLAGS_OF; interface: its name, None for one that no rule names; so with the port.
Probe = collections.namedtuple('Probe', 'version proto state interface port')
# closed: {(version, proto, state): {interface, or None for all others: verdict}}
# sockets: can a rule ask for a packet's socket (nft_socket)?
# labels: does it make the flow labels of its resets? Else it repeats those it was asked
# with. cookies: does it answer every SYN with a cookie (tcp_syncookies=2)?
# proxies: has it a rule with tproxy? marks: has it one that sets a mark?
Box = collections.namedtuple('Box', 'closed sockets labels cookies proxies marks')
# Our rule in somebody's chain. tool: nft, or the iptables program that keeps the chain.
Accept = collections.namedtuple('Accept', 'tool family table chain handle')
Accepts = collections.namedtuple('Accepts', 'missing surplus')      # two lists
# ours: our rules as listed, to compare; None without them. taken_ports: those that the
# box's rules name. decoys: {hidden port: decoy} that our rules name. unreachable: [Chain]
# that may drop what we let by, and take no rule of ours. tools: programs that answered.
Seen = collections.namedtuple(
    'Seen', 'ours box accepts taken_ports decoys unreachable tools')
GUARD_PRIORITY = -149
# Above it a hidden port's reset is made by us, not by the stack.
MOST_DECOYS = 200
# What a packet is to conntrack, and its TCP flags: FIN and ACK, SYN, ACK. (No closed port
# answers RST.) A pickup is new as well, but no SYN: conntrack takes it for a part of some
# connection. For flags that no client sends, boxes have rules of their own.
FLAGS_OF = {'invalid': 0x11, 'new': 0x02, 'pickup': 0x10}
# A rule for so many ports is about closed ones, too.
WIDE = 10000
# The kernel follows no longer chain of jumps (NFT_JUMP_STACK_SIZE).
DEEP = 16

def holds(condition, probe):
    """Does a stranger's packet meet this condition?"""
    if condition.key in ('version', 'proto'):
        found = getattr(probe, condition.key) in condition.values
    elif condition.key == 'state':
        found = probe.state.replace('pickup', 'new') in condition.values
    elif condition.key == 'flags':
        found = any(FLAGS_OF[probe.state] & mask == flags
                    for mask, flags in condition.values)
    elif condition.key == 'interface':
        found = any(is_interface(name, (probe.interface or '',))
                    for name in condition.values)
    elif condition.key == 'port' and probe.port is None:
        found = any(high - low >= WIDE for low, high in condition.values)
    elif condition.key == 'port':
        found = any(low <= probe.port <= high for low, high in condition.values)
    elif condition.key == 'source':     # a stranger is nobody whom a rule names
        found = False
    else:                           # not understood: as if the rule were not there
        return False
    return found != condition.negated

def verdict_of(rules, name, probe, depth=0):
    """What a chain says of a probe; None where it goes back to its caller. name: (family,
    table, chain)."""
    for rule in rules.get(name, ()):
        if rule.ours or rule.verdict is None:
            continue
        if not all(holds(condition, probe) for condition in rule.conditions):
            continue
        word, _, target = rule.verdict.partition(' ')
        if word == 'return':
            return None
        if word not in ('jump', 'goto'):
            return rule.verdict
        if depth == DEEP:
            continue
        found = verdict_of(rules, name[:2] + (target,), probe, depth + 1)
        # What another chain does not decide goes on here, but for a goto.
        if found or word == 'goto':
            return found
    return None

def chain_verdict(chain, rules, probe):
    """What a chain of a hook says of a probe, at its end by its policy."""
    if chain.family in ('arp', 'ip', 'ip6') and chain.family != FAMILIES[probe.version]:
        return ACCEPT
    return verdict_of(rules, chain[:3], probe) or chain.policy

def closed_verdict(chains, rules, probe):
    """What the box does with a probe before its stack answers; STACK if nothing."""
    for hook in ('ingress', 'prerouting', 'input'):
        for chain in chains:
            if chain.hook == hook and chain.kind != 'nat':
                verdict = chain_verdict(chain, rules, probe)
                if verdict != ACCEPT:
                    return verdict
    return STACK

def all_probes(rules):
    """One for each kind of packet, and for each interface that some rule names."""
    interfaces = set()
    for rule in itertools.chain(*rules.values()):
        for condition in rule.conditions:
            if condition.key == 'interface':
                interfaces.update(condition.values)
    interfaces = [None] + sorted(interfaces - {'lo'})
    return [Probe(*kind, port=None) for kind in itertools.product(
        (4, 6), (TCP, UDP), FLAGS_OF, interfaces)]

def read_closed(chains, rules):
    """Box.closed; of interfaces only those are named with which it does something
    else."""
    closed = {}
    for probe in all_probes(rules):
        verdict = closed_verdict(chains, rules, probe)
        verdicts = closed.setdefault(probe[:3], {})
        # all_probes() has None before every interface.
        if verdict != verdicts.get(None):
            verdicts[probe.interface] = verdict
    return closed

def may_drop(chain, rules, services=None):
    """Does it stop, from some interface, new packets that no rule of its own allows? With
    services: those to the first port of one of them, which a rule may allow."""
    for probe in all_probes(rules):
        ports = [None]
        if services is not None:
            ports = [each.low for each in services if each.proto == probe.proto]
        for port in ports:
            verdict = chain_verdict(chain, rules, probe._replace(port=port))
            if probe.state == 'new' and verdict != ACCEPT:
                return True
    return False

def named_ports(text):
    """Every number in others' rules that may be a port."""
    return {int(number) for number in re.findall(r'\b\d{1,5}\b', text)}

def decoy_ports(config, seen):
    """(hidden TCP ports that need a decoy, ports that must not be one). The daemon draws
    a decoy from all other ports, and binds it, so that nobody else can hold it."""
    hidden = ports_of(config.hide, TCP)
    if len(hidden) > MOST_DECOYS:
        return [], hidden
    return sorted(hidden), hidden | seen.taken_ports

# What iptables-save prints; nft reads it too, of chains that iptables keeps beside it.
SAVED_PRIORITIES = {'raw': -300, 'mangle': -150, 'nat': -100, 'filter': 0, 'security': 50}
SAVED_HOOKS = 'PREROUTING', 'INPUT', 'FORWARD', 'OUTPUT', 'POSTROUTING'
SAVED_KEYS = {'-p': 'proto', '-i': 'interface', '-s': 'source', '--ctstate': 'state',
              '--state': 'state', '--dport': 'port', '--dports': 'port',
              '--tcp-flags': 'flags'}
TCP_FLAGS = 'fin', 'syn', 'rst', 'psh', 'ack', 'urg'        # RFC 9293, 3.1
# A limit counts as not reached: what is above it, such a rule stops before we see it.
NO_CONDITION = '-m$|--comment$|--(hash)?limit(?!-above)'
SAVED_REJECTS = {
    'tcp-reset': TCP_RESET,
    'icmp-admin-prohibited': PROHIBITED, 'icmp6-adm-prohibited': PROHIBITED,
    'icmp-host-unreachable': 'reject with icmp type host-unreachable',
    'icmp-net-unreachable': 'reject with icmp type net-unreachable',
    'icmp-proto-unreachable': 'reject with icmp type prot-unreachable',
    'icmp-net-prohibited': 'reject with icmp type net-prohibited',
    'icmp-host-prohibited': 'reject with icmp type host-prohibited',
    'icmp6-no-route': 'reject with icmpv6 type no-route',
    'icmp6-addr-unreachable': 'reject with icmpv6 type addr-unreachable',
    'icmp6-policy-fail': 'reject with icmpv6 type policy-fail',
    'icmp6-reject-route': 'reject with icmpv6 type reject-route'}

def saved_options(line):
    """[(option, its words, negated)] of a rule."""
    options, negated = [], False
    # Words are quoted, or without blanks.
    for word in re.findall(r'"(?:[^"\\]|\\.)*"|\S+', line):
        if word == '!':
            negated = True
        elif word.startswith('-') or not options:
            options.append((word, [], negated))
            negated = False
        else:
            options[-1][1].append(word)
    return options

def flag_bits(names):
    """The bits of the TCP flags that are named there, however it is put."""
    text = str(names).lower()
    return sum(1 << bit for bit, name in enumerate(TCP_FLAGS) if name in text)

def saved_condition(option, words, negated):
    """The Condition that an option and its words are."""
    key = SAVED_KEYS.get(option, 'other')
    values = ' '.join(words).split(',')
    if key == 'proto':
        values = [PROTOCOLS.get(value) for value in values]
    elif key == 'state':
        values = [value.lower() for value in values]
    elif key == 'port':
        ranges = [value.partition(':') for value in values]
        values = [(int(low), int(high or low)) for low, _, high in ranges]
    elif key == 'flags':
        return Condition(key, [tuple(map(flag_bits, words))], negated)
    return Condition(key, values, negated)

def saved_rule(line, mark):
    """The Rule that a line is. A target like LOG becomes a jump to a chain that does not
    exist, so the packet goes on."""
    conditions, verdict = [], None
    for option, words, negated in saved_options(line):
        if option == '--reject-with':
            verdict = SAVED_REJECTS.get(words[0], UNREACHABLE)
        elif option == '-g':
            verdict = 'goto ' + words[0]
        elif option == '-j' and words[0] in ('ACCEPT', 'DROP', 'RETURN'):
            verdict = words[0].lower()
        elif option == '-j':
            verdict = UNREACHABLE if words[0] == 'REJECT' else 'jump ' + words[0]
        elif not re.match(NO_CONDITION, option):
            conditions.append(saved_condition(option, words, negated))
    marked = Condition('other', ['0x%x/0x%x' % (mark, mark)], False)
    ours = conditions == [marked] and verdict == ACCEPT
    return Rule(conditions, verdict, None, ours)

def saved_lines(text):
    """[(table, line)] of chains and of rules, these without their counters."""
    found, table = [], None
    for line in text.splitlines():
        # Old versions put every comment in quotes.
        line = re.sub(r'^\[\d+:\d+\] ', '', line).replace('"knockd"', 'knockd')
        if line.startswith('*'):
            table = line[1:]
        elif line.startswith((':', '-A ')):
            found.append((table, line))
    return found

def read_saved(text, family, prefix, mark):
    """([Chain], {chain: [Rule]}) but ours. prefix: what tells these tables from others
    of the same name."""
    chains, rules = [], {}
    for table, line in saved_lines(text):
        if 'KNOCKD' in line:
            continue
        kind = 'nat' if table == 'nat' else 'filter'
        if line.startswith(':'):
            name, policy = line[1:].split()[:2]
            hook = name.lower() if name in SAVED_HOOKS else None
            priority = SAVED_PRIORITIES.get(table, 0)
            policy = DROP if policy == 'DROP' else ACCEPT
            chains.append(
                Chain(family, prefix + table, name, hook, kind, priority, policy))
            continue
        _, name, options = (line + ' ').split(' ', 2)       # perhaps no options
        # A rule that is written in a way unknown here decides nothing.
        with contextlib.suppress(*MISREAD):
            rule = saved_rule(options, mark)
            rules.setdefault((family, prefix + table, name), []).append(rule)
    return chains, rules

# --- nft text: our table, and what nft -j lists -----------------------------------------
# guard decides, before any address is rewritten, who may pass: his packet gets the bit
# OPEN (config.mark). stay keeps the ports of everybody else from being forwarded. answer
# comes after the box's own input chains and after the stack has checked the packet, and
# gives a stranger what a closed port would give. The stack's reset comes from a decoy
# port and has the bit ASKED (asked_bit()) of its question (fwmark_reflect); restore puts
# the hidden port back. clear and leave take OPEN off again, so that no socket inherits it
# and no rule of the box keeps it. What is forwarded to a hidden port behind this box
# without OPEN ends in beyond.
#
# What hides is a constant in a rule. While rules are replaced, a packet under way sees
# the old ones but asks the sets with the new generation, and finds nothing there (seen
# on Linux 6.1): a set of hidden ports would let it by; a set of openings may miss for an
# instant, which is safe. The table is never deleted to load it again: a hook that goes
# lets packets by.
# A SYN without ACK belongs to no connection, whatever is still known of an old one.
SYN_ALONE = 'tcp flags & (syn | ack) == syn'
STATE_MATCHES = {'invalid': 'ct state invalid ', 'new': SYN_ALONE + ' ', 'pickup': ''}
NOT_SYN_ALONE = 'tcp flags & (syn | ack) != syn'
# synproxy, and a proxy that keeps its client's address, send over lo as a stranger.
FROM_US = 'iifname "lo" fib saddr type local'
# Not what is related: helpers of conntrack expect it at a port that a stranger may have
# chosen.
KNOWN_RETURNS = ['meta l4proto != 6 ct state established return',
                 NOT_SYN_ALONE + ' ct state established return']
# Constants that are compared faster than conntrack is asked.
FEW_SERVICES = 4
# The end of a handshake, and what its sender sends from then on.
ACK_ALONE = 'tcp flags & (syn | ack) == ack'
RST_ALONE = 'tcp flags & (syn | rst) == rst'
# A SYN that is not answered comes again after 1, 3 and 7 s.
SYN_RETRIES = '10s'
# In forward: many hosts of a bridge; and this box, where a packet is on a route of its
# sender's and names the next host in an option.
NOT_ONE_HOST = 'multicast', 'broadcast', 'local'
ANSWERS = {
    'drop': {TCP: DROP, UDP: DROP}, 'reset': {TCP: TCP_RESET, UDP: UNREACHABLE},
    'prohibited': {TCP: PROHIBITED, UDP: PROHIBITED}}
NFT_COMMAND = ['nft', '-f', '-']
NFT_LIST = ['nft', '-j', '-s', '-t', 'list', 'ruleset']
NFT_TRY = ['nft', '-c', '-f', '-']      # to the kernel and back: it changes nothing
NFT_TRIAL = 'table inet a { %s\n}\n'
NFT_NOTHING = 'table inet knockd\ndelete table inet knockd\n'
# Under /proc/sys; both must be 1 before the rules are loaded, so that an answer of the
# stack carries the mark of its question.
SYSCTLS = 'net/ipv4/fwmark_reflect', 'net/ipv6/fwmark_reflect'
MADE_BY = ('net/ipv6/flowlabel_reflect',)
# A listener at all addresses has a wildcard, a connection has none.
HAS_CONNECTION = 'socket wildcard 0'
# Both for Box. The second bit of the first: resets repeat the label of what they answer.
SETTINGS = ['sysctl', '-e', 'net.ipv6.flowlabel_reflect', 'net.ipv4.tcp_syncookies']

def asked_bit(config):
    """The bit below config.mark; if that is the lowest, the one above it."""
    return config.mark >> 1 or 2

def if_marked(bits, then):
    return 'meta mark & 0x%08x != 0 %s' % (bits, then)

def put_mark(bits):
    return 'meta mark set meta mark | 0x%08x' % bits

def take_mark(bits):
    return 'meta mark set meta mark & 0x%08x' % (bits ^ 0xffffffff)

def sets_of(element):
    """[(name, type)] of the sets that hold such an element. open4 has hosts and single
    ports, open4_24 networks of that length, open4_only what is open at one address alone,
    open4_ranges ranges of ports. once... lets one first packet in, whose flow goes into
    the set begun4; while held... has the opening, packets of that flow pass again."""
    network, service = element.source, element.service
    suffix, flags = str(network.version), 'timeout'
    if network.prefixlen < network.max_prefixlen:
        suffix += '_%d' % network.prefixlen
    kind = 'ipv%d_addr . inet_proto . inet_service' % network.version
    if element.destination:
        suffix += '_only'
        kind += ' . ipv%d_addr' % network.version
    if service.low < service.high:
        suffix += '_ranges'
        flags = 'interval,timeout'
    kind += '; flags ' + flags
    if not element.once:
        return [('open' + suffix, kind)]
    limit = '; limit rate 1/week burst 1 packets'
    return [('once' + suffix, kind + limit), ('held' + suffix, kind)]

def possible_elements(config, openings):
    """One of each kind that the config allows, or that is open."""
    port, ports = Service(TCP, 1, 1), Service(TCP, 1, 2)
    found = [Element(ipaddress.ip_network('0.0.0.0'), port, False, None),
             Element(ipaddress.ip_network('::'), port, False, None)]
    for client in config.clients.values():
        ranged = any(service.low < service.high for service in client.allow)
        for address, length in (('0.0.0.0', client.prefix4), ('::', client.prefix6)):
            network = ipaddress.ip_network((address, length))
            # Any address of the version does, for the set's type.
            place = network.network_address if client.only else None
            found.append(Element(network, port, client.once, place))
            if ranged:
                found.append(Element(network, ports, client.once, place))
    return found + list(elements(openings))

def all_sets(config, openings):
    """Our sets of openings: {name: (type, Element that it may hold)}, by name."""
    found = {}
    for element in possible_elements(config, openings):
        for name, kind in sets_of(element):
            found[name] = kind, element
    return collections.OrderedDict(sorted(found.items()))

def element_text(element, expires, now):
    """An element in nft's words; expires None: as it is deleted."""
    low, high = element.service.low, element.service.high
    ports = '%d-%d' % (low, high) if low < high else str(low)
    source = element.source.network_address
    text = '%s . %d . %s' % (source, element.service.proto, ports)
    if element.destination:
        text += ' . %s' % element.destination
    if expires is None:
        return text
    left = expires - now
    return '%s timeout %dms' % (text, left)

def by_set(wanted, now):
    """[((name, type), [element in nft's words])] of {Element: when it ends, or None}."""
    members = {}
    for element, expires in sorted(wanted.items(), key=str):
        for each in sets_of(element):
            text = element_text(element, expires, now)
            members.setdefault(each, []).append(text)
    return sorted(members.items())

def set_block(name, kind, members=()):
    """A set, declared or added to: of all ways to add, nft does this one without first
    reading every set of the box, which takes 0.3 s beside a large one."""
    text = ' set %s { type %s\n' % (name, kind)
    if members:
        text += '  elements = { %s }\n' % ', '.join(members)
    return text + ' }\n'

def additions(wanted, now):
    """Adds {Element: when it ends}."""
    text = ''
    for (name, kind), members in by_set(wanted, now):
        text += set_block(name, kind, members)
    return in_table(text)

def in_table(text):
    return 'table inet knockd {\n%s}\n' % text if text else ''

def once_versions(sets):
    """The IP versions that have a set of `once`."""
    return sorted({element.source.version for _, element in sets.values()
                   if element.once})

def flow(version):
    return '{0} saddr . meta l4proto . th sport . th dport . {0} daddr'.format(
        FAMILIES[version])

def delete_begun(version):
    """The SYN of this flow may not come again."""
    return 'delete @begun%d { %s }' % (version, flow(version))

def declarations(sets, chains):
    """Every set, and these chains, without elements and rules."""
    text = ''
    for name, (kind, _) in sets.items():
        text += set_block(name, kind)
    # The flows that `once` has let in and that have not finished their handshake.
    for version in once_versions(sets):
        kind = ('ipv{0}_addr . inet_proto . inet_service . inet_service . ipv{0}_addr; '
                'flags dynamic,timeout; timeout {1}; size 65535')
        text += set_block('begun%d' % version, kind.format(version, SYN_RETRIES))
    for name, hook, _ in chains:
        text += ' chain %s {%s\n }\n' % (name, hook)
    return in_table(text)

def ports_match(service):
    """tcp dport 8000-8010"""
    return format_service(service).replace('/', ' dport ')

def ports_text(service):
    """8000-8010"""
    return format_service(service).partition('/')[2]

def guard_lines(config, box, decoys, sets):
    """prerouting: who may pass?"""
    both = config.mark | asked_bit(config)
    lines = [if_marked(both, take_mark(both))]
    services = merged(config.hide)
    if len(services) > FEW_SERVICES:
        lines += KNOWN_RETURNS
    for service in services:
        lines.append(ports_match(service) + ' jump hidden')
    return lines

def hidden_lines(config, box, decoys, sets):
    """A packet to a hidden port: is it of a connection that is there?"""
    return KNOWN_RETURNS + ['goto check']

def check_lines(config, box, decoys, sets):
    """Does it come from where it may?"""
    passes = put_mark(config.mark) + ' return'
    lines = [FROM_US + ' ' + passes]
    for name in config.trust:
        lines.append(from_interface(name) + passes)
    for name, (_, element) in sets.items():
        network = element.source
        source = FAMILIES[network.version] + ' saddr'
        if network.prefixlen < network.max_prefixlen:
            source += ' & %s' % network.netmask
        place = ''
        if element.destination:
            place = ' . %s daddr' % FAMILIES[network.version]
        match = '%s . meta l4proto . th dport%s @%s ' % (source, place, name)
        begun, this_flow = '@begun%d' % network.version, flow(network.version)
        if name.startswith('once'):     # the first packet uses nft's limit up
            match += 'add %s { %s } ' % (begun, this_flow)
            # Where a box tracks nothing (notrack), no packet is new.
            lines.append('%s ct state untracked %s%s' % (SYN_ALONE, match, passes))
            match = 'ct state new ' + match
        elif name.startswith('held'):   # its flow goes on until it is established
            match += '%s %s ' % (this_flow, begun)
        lines.append(match + passes)
    # held comes last: while the limit is unspent, each new packet must spend it.
    return sorted(lines, key=lambda line: '@held' in line)

def stay_lines(config, box, decoys, sets):
    """A stranger's packet is rewritten to the port that it has already, so that no later
    rule of nat forwards it. (`redirect` would change the address, too, and drop where an
    interface has none.)"""
    stranger = 'meta mark & 0x%08x == 0 ' % config.mark
    places = ['fib daddr type != unicast']      # this box, by whatever address
    places += [to_network(network) for network in config.behind]
    lines = []
    for service in merged(config.hide):
        for place in places:
            lines.append('%s%s %s dnat to :%s' % (
                stranger, place, ports_match(service), ports_text(service)))
    return lines

def proxied_lines(config, box, decoys, sets):
    """prerouting, at its end: so early only a rule with tproxy finds a socket. If that
    is no connection's it listens: ASKED says so to `closed`."""
    return ['meta skuid >= 0 ct state != established fib daddr type != unicast '
            + put_mark(asked_bit(config))]

def to_network(network):
    return '%s daddr %s' % (FAMILIES[network.version], network)

def answer_lines(config, box, decoys, sets):
    """input: who has OPEN, or comes over lo, is let by; for the others see `closed`."""
    # Over lo the stack looks for no socket before input, so `closed` could not tell which
    # packets belong to a connection.
    lines = [FROM_US + ' return', 'iifname "lo" %s return' % NOT_SYN_ALONE]
    for version in once_versions(sets):
        # Where nothing is tracked (notrack) the end of a handshake comes by here.
        lines.append(ACK_ALONE + ' ' + if_marked(config.mark, delete_begun(version)))
    lines.append(if_marked(config.mark, 'return'))
    for service in merged(config.hide):
        lines.append(ports_match(service) + ' goto closed')
    return lines

def closed_lines(config, box, decoys, sets):
    """input: what does a closed port give?"""
    has_decoys = ports_of(config.hide, TCP) <= set(decoys)
    # A connection outlives its opening. What has no socket, and only conntrack knows,
    # goes to the decoy: as the end of a handshake it could still make the listener open
    # a connection (tcp_syncookies).
    without_socket = 'goto decoy' if has_decoys and box.sockets else 'accept'
    not_proxied = 'meta mark & 0x%08x == 0' % asked_bit(config)
    # Rules with tproxy may lead here what is for a host behind this box.
    lines = ['fib daddr type unicast %s meta mark set 0 goto beyond' % to_network(network)
             for network in config.behind]
    ended = []
    for version in once_versions(sets):
        # A handshake ends: from here on the SYN of `once` may not come again.
        lines.append(ACK_ALONE + ' meta skuid >= 0 ' + delete_begun(version))
        ended.append(if_marked(config.mark, delete_begun(version)))
    lines.append('%s %s meta skuid >= 0 accept' % (NOT_SYN_ALONE, not_proxied))
    if box.sockets:
        # Of packets that a network card hands over together, the stack has looked for
        # the socket of the first alone (ip_list_rcv). No other flags: to them a listener
        # at a single address, which is found as well, would be silent. With cookies it
        # would try each ACK: a stranger may guess one in 16 million. (Where nothing is
        # tracked it does: sessions go on.)
        known = 'ct state established,untracked ' if box.cookies else ''
        for flags in ACK_ALONE, RST_ALONE:
            lines.append('%s %s %s %saccept' % (
                flags, not_proxied, HAS_CONNECTION, known))
    # A SYN has a socket only by a rule with tproxy; that may be for others.
    lines += ['fib daddr type unicast meta skuid >= 0 accept',
              # By the mark of such a rule our answer would go astray.
              'meta skuid >= 0 meta mark set 0',
              'meta l4proto 17 ct state established accept']
    # Once more: a later rule may have taken OPEN off, and where SYNs are answered by
    # cookies the end of a handshake has no socket yet.
    lines += ['jump check'] + ended + [if_marked(config.mark, 'accept')]
    # The stack reads extension headers after us; its error would quote the decoy's port.
    for proto in (TCP, UDP):
        lines.append('ip6 nexthdr != %d meta l4proto %d drop' % (proto, proto))
    lines.append(NOT_SYN_ALONE + ' ct state established ' + without_socket)
    answers = box_answers(config, box)
    if answers[6, UDP, 'new'][None] == STACK:
        # IPv6 has no UDP without a checksum (RFC 8200, 8.1), and reject would not look.
        lines.append('meta nfproto ipv6 udp checksum 0 drop')
    # 'pickup' comes last: it is all that is left.
    for (version, proto, state), verdicts in sorted(answers.items()):
        if state != 'pickup' and verdicts == answers[version, proto, 'pickup']:
            continue
        match = 'meta nfproto ipv%d meta l4proto %d %s' % (
            version, proto, STATE_MATCHES[state])
        for interface in by_length(verdicts):
            where = from_interface(interface) if interface else ''
            lines.append(match + where + final(verdicts[interface], proto, has_decoys))
    return lines + ['drop']

def from_interface(name):
    """nft writes * where iptables and `trust` write +."""
    return 'iifname "%s" ' % re.sub(r'\+$', '*', name)

def by_length(interfaces):
    """The longer of two comes first: eth+ may stand beside eth1; None is last."""
    return sorted(interfaces, key=lambda name: (-len(name or ''), name or ''))

def box_answers(config, box):
    """Box.closed, or what the config says in its place."""
    if config.answer == 'box':
        return box.closed
    return {(version, proto, state): {None: verdict} for version in FAMILIES
            for state in FLAGS_OF for proto, verdict in ANSWERS[config.answer].items()}

def final(verdict, proto, has_decoys):
    """A verdict of the box as a statement of ours."""
    if verdict != STACK:
        return verdict
    if proto == UDP:
        return UNREACHABLE
    return 'goto decoy' if has_decoys else TCP_RESET

def clear_lines(config, box, decoys, sets):
    """input, at its end: OPEN goes."""
    return [if_marked(config.mark, take_mark(config.mark))]

def leave_lines(config, box, decoys, sets):
    """forward, at its end: OPEN goes; without it, beyond looks at every hidden port."""
    lines = [if_marked(config.mark, take_mark(config.mark) + ' return')]
    for service in merged(config.hide) if config.behind else ():
        lines.append(ports_match(service) + ' jump beyond')
    return lines

def beyond_lines(config, box, decoys, sets):
    """forward: a hidden port of any host. Is it behind this box?"""
    lines = []
    for version in once_versions(sets):
        # As in `closed`: a handshake ends.
        lines.append(ACK_ALONE + ' ' + delete_begun(version))
    lines += KNOWN_RETURNS
    # An address that is not of this box may be forwarded whole: stay lets it be.
    came = 'ct status dnat meta l4proto %d ct original proto-dst %s %s %s'
    for service in merged(config.hide):
        for network in config.behind:
            lines.append(came % (service.proto, ports_text(service), to_network(network),
                                 answers_behind(config)[service.proto]))
    # It came to another port, which is not hidden. (The dnat of stay changes nothing, so
    # it does not set this status.)
    lines.append('ct state new ct status dnat return')
    for kind in NOT_ONE_HOST:
        lines.append('fib daddr type %s drop' % kind)
    for network in config.behind:
        for proto, verdict in answers_behind(config).items():
            lines.append('%s meta l4proto %d %s' % (to_network(network), proto, verdict))
    return lines

def answers_behind(config):
    """For TCP and for UDP: what strangers get instead of a host behind this box. What it
    would answer itself we do not know: `box` is drop."""
    return ANSWERS.get(config.answer, ANSWERS['drop'])

def decoy_lines(config, box, decoys, sets):
    """A hidden port becomes its decoy's, whose reset will have the bit ASKED."""
    # The socket that tproxy chose would take it.
    lines = ['meta skuid >= 0 ' + TCP_RESET]
    for port, decoy in sorted(decoys.items()):
        lines.append('tcp dport %d %s tcp dport set %d accept' % (
            port, put_mark(asked_bit(config)), decoy))
    return lines + ['drop']

def restore_lines(config, box, decoys, sets):
    """output: the hidden port comes back into a reset that has the bit ASKED."""
    bit = asked_bit(config)
    lines = ['meta mark & 0x%08x == 0 return' % bit]
    if box.labels:
        lines.append('ip6 flowlabel != 0 jump label')
    for port, decoy in sorted(decoys.items()):
        lines.append('tcp sport %d tcp sport set %d %s' % (decoy, port, take_mark(bit)))
    return lines

def label_lines(config, box, decoys, sets):
    """The stack makes a flow label out of both ports (RFC 6437). A hidden port's reset
    would have the label of its decoy's, and whoever asks both would see it. So it gets
    another one, which is as constant for its flow and as random."""
    seeds = hmac_sha256(b'flow label', config.id.encode('ascii'))
    seed, other_seed = struct.unpack_from('>II', seeds)
    label = 'jhash ip6 daddr . tcp dport . tcp sport mod %d seed %d'
    # The label is the bits 12 to 31 of the header. nft writes a hash into whole bytes
    # only, so its upper four bits take a rule for each value.
    lines = ['@nh,16,16 set ' + label % (0xffffffff, seed)]
    for value in range(16):
        match = label % (16, other_seed)
        lines.append('%s == %d @nh,12,4 set %d' % (match, value, value))
    return lines

# Each chain of ours, its hook, and what makes its rules.
CHAINS = (
    ('guard', ' type filter hook prerouting priority -149; policy accept;', guard_lines),
    ('hidden', '', hidden_lines),
    ('check', '', check_lines),
    ('stay', ' type nat hook prerouting priority -199; policy accept;', stay_lines),
    ('proxied', ' type filter hook prerouting priority 1000; policy accept;',
     proxied_lines),
    ('answer', ' type filter hook input priority 90; policy accept;', answer_lines),
    ('closed', '', closed_lines),
    ('decoy', '', decoy_lines),
    ('label', '', label_lines),
    ('clear', ' type filter hook input priority 1000; policy accept;', clear_lines),
    ('leave', ' type filter hook forward priority 1000; policy accept;', leave_lines),
    ('beyond', '', beyond_lines),
    ('restore', ' type route hook output priority -301; policy accept;', restore_lines))

def chains_of(config, box):
    """Those of CHAINS that there is need of: each hook costs forwarded packets 1 %."""
    needless = set()
    if not config.behind:
        needless.add('beyond')
    # Somebody may look at a mark behind forward, or keep it for the connection.
    if not config.behind and not box.marks:
        needless.add('leave')
    if not box.proxies:
        needless.add('proxied')
    return [chain for chain in CHAINS if chain[0] not in needless]

def nft_table(config, box, decoys, openings, now):
    """The whole table, in place of the one that may be there, in one transaction."""
    sets = all_sets(config, openings)
    wanted = chains_of(config, box)
    text = declarations(sets, wanted) + 'flush table inet knockd\n'
    for name in sets:
        text += 'flush set inet knockd %s\n' % name
    chains = ''
    for name, _, rules in wanted:
        lines = ['  %s\n' % line for line in rules(config, box, decoys, sets)]
        chains += ' chain %s {\n%s }\n' % (name, ''.join(lines))
    return text + in_table(chains) + additions(elements(openings), now)

def accept_commands(config, accepts):
    """(nft's text, [(argv, text)]): our rule once at the head of each chain that drops,
    and nowhere else."""
    bit = '0x%x' % config.mark
    rule = 'meta mark & {0} == {0} accept'.format(bit)
    match = ['-m', 'mark', '--mark', bit + '/' + bit, '-j', 'ACCEPT']
    delete = 'delete rule {0.family} {0.table} {0.chain} handle {0.handle}\n'
    insert = 'insert rule {0.family} {0.table} {0.chain} {1}\n'
    text, commands = '', []
    for option, places in (('-D', accepts.surplus), ('-I', accepts.missing)):
        for place in places:
            if place.tool == 'nft':
                line = delete if option == '-D' else insert
                text += line.format(place, rule)
            else:
                # What it calls the table itself: ours says which of two it is.
                table = place.table.rpartition(' ')[2]
                argv = [place.tool, '-w', '-t', table, option, place.chain]
                commands.append((argv + match, ''))
    return text, commands

NO_PORTS = 1, 0                 # a range that no port is in
# What a match of nft -j looks at, by the words of its JSON, and the Condition's key.
NFT_KEYS = {
    'payload protocol ip field protocol': 'proto',
    'payload protocol ip6 field nexthdr': 'proto', 'meta key l4proto': 'proto',
    'payload protocol ip field saddr': 'source',
    'payload protocol ip6 field saddr': 'source',
    'payload protocol ether field saddr': 'source',
    'payload protocol tcp field dport': 'port',
    'payload protocol udp field dport': 'port',
    'payload protocol th field dport': 'port', 'meta key nfproto': 'version',
    'meta key protocol': 'version', 'meta key iifname': 'interface',
    'meta key iif': 'interface', 'ct key state': 'state'}
# Statements behind which a rule goes on, whatever the packet is.
GOES_ON = 'counter', 'log', 'mangle', 'notrack', 'set', 'dup', 'ct helper', 'limit'
# But not behind these: a set whose elements count, `limit over`, a limit with a name.
SOME_PASS = "'stmt'|'inv'|'limit': '"
# A box without /etc/protocols lists numbers where others have these words.
NFT_NUMBERS = {'tcp': TCP, 'udp': UDP, 'ipv4': 4, 'ip': 4, 'ipv6': 6, 'ip6': 6}
# Programs that list what stands beside nft's own: (family, prefix of the tables' names).
# Chains of the first two are in nf_tables and belong to iptables.
SAVERS = collections.OrderedDict((
    ('iptables-nft-save', ('ip', '')), ('ip6tables-nft-save', ('ip6', '')),
    ('iptables-legacy-save', ('ip', 'legacy ')),
    ('ip6tables-legacy-save', ('ip6', 'legacy '))))

def nft_conditions(left, right, operator):
    """[Condition] of a match: what it says, and the protocol that goes without saying."""
    words = re.findall(r'\w+', json.dumps(left))
    key = NFT_KEYS.get(' '.join(words), 'other')
    values = nft_values(key, right)
    if operator not in ('==', 'in', '!=') or None in values and key != 'source':
        key = 'other'
    conditions = [Condition(key, values, operator == '!=')]
    if words[2:5] == ['tcp', 'field', 'flags'] and '@' not in str(right):
        conditions = [nft_flags(left, right, operator)]
    if words[2:3] in (['tcp'], ['udp']):
        conditions.append(Condition('proto', [PROTOCOLS[words[2]]], False))
    return conditions

def nft_flags(left, right, operator):
    """The Condition of a match of TCP flags; `in` is any of them, `!` is none."""
    if operator in ('in', '!'):
        return Condition('flags', [(flag_bits(right), 0)], operator == 'in')
    if "'set'" not in str(right):
        right = {'set': [right]}
    mask = flag_bits(left) or 0x3f      # or all of them
    return Condition(
        'flags', [(mask, flag_bits(flags)) for flags in right['set']], operator == '!=')

def nft_values(key, right):
    """What it is compared with, as a list; None is what only the kernel knows."""
    if isinstance(right, dict) and 'set' in right:
        right = right['set']
    values = []
    for value in right if isinstance(right, list) else [right]:
        if isinstance(value, dict) and 'range' in value:
            value = tuple(value['range'])
        if isinstance(value, dict) or isinstance(value, str) and value.startswith('@'):
            # No closed port is in a named set of ports.
            value = NO_PORTS if key == 'port' else None
        if key == 'port' and isinstance(value, int):
            value = value, value
        if key in ('proto', 'version'):
            value = NFT_NUMBERS.get(value, value)
        if key == 'interface' and value:        # as iptables and `trust` write it
            value = re.sub(r'\*$', '+', value)
        values.append(value)
    return values

def nft_verdict(statement):
    """The verdict of a statement, None if it is none."""
    for kind, detail in statement.items():
        if kind in ('accept', 'drop', 'return'):
            return kind
        if kind in ('jump', 'goto'):
            return '%s %s' % (kind, detail['target'])
        if kind == 'reject':
            return nft_reject(detail or {})
    return None

def nft_reject(detail):
    kind = detail.get('type', 'icmpx')
    if kind == 'tcp reset':
        return TCP_RESET
    return 'reject with %s type %s' % (kind, detail.get('expr', 'port-unreachable'))

def nft_rule(entry, mark):
    """A listed rule as [Rule]: one for its verdict, one for each entry of a verdict map,
    none if it has no verdict."""
    ours = is_accept(entry, mark)
    conditions, rules = [], []
    for statement in entry['expr']:
        if isinstance(statement, str):
            # nft writes so what it has no JSON for, a match or not.
            statement = {'xt': statement}
        kind, detail = next(iter(statement.items()))
        if kind == 'match':
            conditions += nft_conditions(detail['left'], detail['right'], detail['op'])
        elif kind == 'vmap' and isinstance(detail['data'], dict):
            for value, verdict in detail['data']['set']:
                more = nft_conditions(detail['key'], value, '==')
                verdict = nft_verdict(verdict)
                rules.append(Rule(conditions + more, verdict, entry['handle'], ours))
        elif nft_verdict(statement):
            rules.append(Rule(conditions, nft_verdict(statement), entry['handle'], ours))
        elif kind not in GOES_ON or re.search(SOME_PASS, str(statement)):
            conditions.append(Condition('other', [], False))
    return rules

def is_accept(entry, mark):
    """Is it accept_commands()' rule, whatever counter or comment stands beside it?"""
    found = [statement for statement in entry['expr'] if 'counter' not in statement]
    masked = {'&': [{'meta': {'key': 'mark'}}, mark]}
    match = {'match': {'op': '==', 'left': masked, 'right': mark}}
    return found == [match, {'accept': None}]

def split_listing(listing):
    """(what is ours, what is not) of nft -j: [(kind, entry)]."""
    ours, others = [], []
    for item in json.loads(listing)['nftables']:
        kind, entry = next(iter(item.items()))
        table = entry.get('name') if kind == 'table' else entry.get('table')
        # Another family's table of that name is somebody else's.
        if (entry.get('family'), table) == ('inet', 'knockd'):
            ours.append((kind, entry))
        else:
            others.append((kind, entry))
    return ours, others

# A packet's or a connection's mark is set, by nft or by iptables (MARK, CONNMARK).
ANY_MARK = r'"mangle": {"key": {"(meta|ct)": {"key": "mark"|-j (CONN)?MARK'
# A rule of restore_lines(): the decoy that is compared, and the hidden port in its place.
RESTORED = (r'"right": (\d+)}}, {"mangle": {"key": {"payload": {"protocol": "tcp", '
            r'"field": "sport"}}, "value": (\d+)')

def read_nft(outputs, config, sockets):
    """Seen, from the listings of nft and of the iptables that may stand beside it."""
    ours, others = split_listing(outputs['nft'])
    chains, rules, locked = {}, {}, set()
    for kind, entry in others:
        name = entry.get('family'), entry.get('table'), entry.get('name')
        if kind == 'table' and 'owner' in entry.get('flags', ()):
            locked.add((entry['family'], entry['name']))
        elif kind == 'chain':
            chains[name] = Chain(*name, hook=entry.get('hook'), kind=entry.get('type'),
                                 priority=entry.get('prio', 0),
                                 policy=entry.get('policy', ACCEPT))
            if 'dev' in entry:          # of ingress: what comes elsewhere passes it
                devices = nft_values('interface', entry['dev'])
                elsewhere = Condition('interface', devices, True)
                rules[name] = [Rule([elsewhere], ACCEPT, None, False)]
        elif kind == 'rule':
            chain = name[:2] + (entry['chain'],)
            # As in read_saved(): one that is not understood decides nothing.
            with contextlib.suppress(*MISREAD):
                rules.setdefault(chain, []).extend(nft_rule(entry, config.mark))
    keepers = {}
    named = [entry.get('expr') for _, entry in others]
    for program, (family, prefix) in SAVERS.items():
        text = outputs.get(program, '')
        # Dates and counters name no port, and are new with each listing.
        named += [line for _, line in saved_lines(text) if line.startswith('-A ')]
        found, found_rules = read_saved(text, family, prefix, config.mark)
        rules.update(found_rules)
        for chain in found:
            chains[chain[:3]] = chain
            keepers[chain[:3]] = program[:-len('-save')]
    chains = sorted(chains.values(), key=lambda chain: chain.priority)
    accepts, unreachable = find_accepts(config, chains, rules, locked, keepers)
    settings = outputs.get('sysctl', '')
    labels = not re.search('reflect = [2367]', settings)
    # Handles are new after each load.
    listed = json.dumps([dict(entry, handle=0) for _, entry in ours])
    decoys = {int(port): int(decoy) for decoy, port in re.findall(RESTORED, listed)}
    others_rules = json.dumps(named)
    box = Box(read_closed(chains, rules), sockets, labels, 'cookies = 2' in settings,
              'tproxy' in others_rules.lower(),
              re.search(ANY_MARK, others_rules) is not None)
    return Seen(listed if ours else None, box,
                accepts, named_ports(others_rules), decoys, unreachable, ('nft',))

# A mark is set, and what it was is not the first thing in its new value.
SETS_MARK = (r'"mangle": {"key": {"meta": {"key": "mark"}}, '
             r'"value": (?![^a-z]*meta": {"key": "mark")')

def late_marks(listing):
    """[(family, table, chain)] that overwrite the whole mark behind our guard. There a
    packet loses our bit, or gets it back from its connection's mark when its opening is
    over."""
    late, found = set(), set()
    for kind, entry in split_listing(listing)[1]:
        name = entry.get('chain') or entry.get('name')
        chain = entry.get('family'), entry.get('table'), name
        if entry.get('hook') == 'prerouting' and entry.get('prio', 0) > GUARD_PRIORITY:
            late.add(chain)
        if kind == 'rule' and chain in late and re.search(SETS_MARK, json.dumps(entry)):
            found.add(chain)
    return sorted(found)

# The hooks that a packet to an open port passes.
ON_THE_WAY = 'ingress', 'prerouting', 'input', 'forward'

def find_accepts(config, chains, rules, locked, keepers):
    """(Accepts, [Chain] out of reach). locked: tables that nobody but their owner may
    change (firewalld's). keepers: {chain: the iptables program that keeps it}."""
    wanted, unreachable, surplus = set(), [], []
    for chain in chains if config.hide else ():
        name = chain[:3]
        if name in config.accept_in:
            wanted.add(name)
        if ('auto',) not in config.accept_in:
            continue
        on_the_way = chain.kind != 'nat' and chain.hook in ON_THE_WAY
        if not on_the_way or not may_drop(chain, rules):
            continue
        if can_hold_accept(chain) and name[:2] not in locked:
            wanted.add(name)
        elif may_drop(chain, rules, config.hide):
            unreachable.append(chain)
    for name, listed in rules.items():
        for rule in listed:
            if rule.ours and name in wanted:
                wanted.remove(name)     # the first of them stays
            elif rule.ours:
                tool = keepers.get(name, 'nft')
                surplus.append(Accept(tool, *name, handle=rule.handle))
    missing = [Accept(keepers.get(name, 'nft'), *name, handle=None)
               for name in sorted(wanted)]
    return Accepts(missing, surplus), unreachable

def can_hold_accept(chain):
    """Can we put a rule into it, and would that rule see our mark?"""
    if chain.hook == 'prerouting' and chain.priority <= GUARD_PRIORITY:
        return False
    return chain.hook != 'ingress' and chain.family in ('inet', 'ip', 'ip6')

class NftTool:
    """The tool nft: commands and listings as text, nothing else. sockets: as in Box."""
    name, sysctls = 'nft', SYSCTLS

    def __init__(self, sockets):
        self.sockets = sockets

    def list_commands(self, has):
        """[argv] whose outputs read() wants; has(program): is it there? Listed without
        elements, which change with every knock and may be very many."""
        commands = [NFT_LIST]
        if has('sysctl'):
            commands.append(SETTINGS)
        return commands + [[program] for program in SAVERS if has(program)]

    def read(self, outputs, config):
        """outputs: {program: what it printed}"""
        return read_nft(outputs, config, self.sockets)

    def whole(self, config, seen, decoys, openings, now):
        """[(argv, standard input)] that put everything in force, or take all of ours away
        if nothing is hidden. decoys: {hidden port: decoy}, empty where no answer can
        carry its question's mark."""
        text, commands = accept_commands(config, seen.accepts)
        table = NFT_NOTHING
        if config.hide:
            table = nft_table(config, seen.box, decoys, live(openings, now), now)
        return [(NFT_COMMAND, table + text)] + commands

    def change(self, before, after, now):
        """From one collection of openings to another. A set that loses or changes an
        element is emptied and filled again: to delete one element, nft would first read
        every set of the box, and start over when rules change meanwhile. From a set of
        `once` single elements are deleted: filled again, it would not know what is
        spent."""
        after = live(after, now)
        old, new = map(elements, differing(before, after))
        gone, emptied = {}, set()
        for element, _ in old.items() - new.items():
            if element.once:
                gone[element] = None
            else:
                emptied.update(name for name, _ in sets_of(element))
        if emptied:             # openings of other sources must come back into these sets
            old, new = elements(before), elements(after)
        added = {}
        for element, expires in new.items():
            name, _ = sets_of(element)[0]
            if old.get(element) != expires or name in emptied:
                added[element] = expires
        # nft refuses to delete what has just expired, so each is added first.
        text = additions(gone, now)
        for (name, _), members in by_set(gone, now):
            text += 'delete element inet knockd %s { %s }\n' % (name, ', '.join(members))
        for name in sorted(emptied):
            text += 'flush set inet knockd %s\n' % name
        text += additions(added, now)
        return [(NFT_COMMAND, text)] if text else []

    def nothing(self):
        """Our table goes; rules of ours in others' chains stay."""
        return [(NFT_COMMAND, NFT_NOTHING)]

    def flaws(self, config):
        """What the config asks for and this tool cannot do."""
        return []

NFT = NftTool(sockets=True)
NFT_WITHOUT_SOCKETS = NftTool(sockets=False)

# --- iptables text: where there is no nft; a chain of ours in each of three tables ------
# mangle marks who may pass, nat sends the TCP of everybody else to the decoys and keeps
# hidden ports from forwards, filter lets the marked in and answers what nat does not see.
# A table is a transaction; in this order none is asked for a mark that is not set yet.
# Rules of the box behind ours may overwrite the mark (CONNMARK), so it is set again in
# nat, and before filter.
# Openings are in an ipset, whose elements the kernel takes out when they are over.
HOOKS = {'mangle': ('PREROUTING', 'INPUT'), 'nat': ('PREROUTING',),
         'filter': ('INPUT', 'FORWARD')}
OUR_JUMP = '-m comment --comment knockd -j KNOCKD'
# In a table of iptables-save: only rules of other chains stand before our jump. What
# stands before it in its own chain would decide first.
HEADED = r'\*{0}\n(:.*\n)*(-A (?!{1} ).*\n)*-A {1} .*KNOCKD\n'
SAVED_TOOLS = collections.OrderedDict(((4, 'iptables'), (6, 'ip6tables')))
IPSET_COMMAND = ['ipset', '-exist', 'restore']
# Source and service; or destination, service and source.
IPSETS = (
    ('knockd4', 'hash:net,port family inet timeout 30'),
    ('knockd6', 'hash:net,port family inet6 timeout 30'),
    ('knockd4_only', 'hash:ip,port,net family inet timeout 30'),
    ('knockd6_only', 'hash:ip,port,net family inet6 timeout 30'))
LONGEST = 2147483               # seconds that an ipset can count
MOST_PORTS = 64                 # an ipset has an element for each port of a range
# Not RELATED: see guard_lines().
KNOWN_RETURN = '-m conntrack --ctstate ESTABLISHED -j RETURN'
# For a SYN after one that stayed without an answer (a TCP MD5 option, RFC 2385, or no
# route back at a boot). conntrack may find the stack's reset out of the first one's
# window; then NAT would not put the hidden port back. It lets this reset through unasked.
AGAIN_RESET = ('-m addrtype --dst-type LOCAL -m conntrack --ctstate NEW '
               '--ctstatus CONFIRMED -j REJECT --reject-with tcp-reset')
# To this box, by whatever address. To ip6tables our own addresses are unicast as well,
# and a list with MULTICAST in it means nothing else.
TO_US = {4: '-m addrtype ! --dst-type UNICAST ',
         6: '-m addrtype --dst-type LOCAL,ANYCAST '}
TO_ALL = '-m addrtype --dst-type MULTICAST '
# A connection outlives its opening, if the stack finds its socket. What only conntrack
# knows does not: as the end of a handshake it could still make the listener open a
# connection (tcp_syncookies). Nor do flags that no connection has: to them a listener at
# a single address would be silent.
OUTLIVES = '--tcp-flags SYN,ACK ACK -m socket ', '--tcp-flags SYN,RST RST -m socket '

def ipset_members(openings):
    """{(set, member): when it ends} of these openings, port by port."""
    members = {}
    for element, expires in elements(openings).items():
        name, form = 'knockd%d' % element.source.version, '{0},{1}'
        if element.destination:
            name, form = name + '_only', '{2},{1},{0}'
        proto, low, high = element.service
        for port in range(low, high + 1):
            text = format_service(Service(proto, port, port)).replace('/', ':')
            member = form.format(element.source, text, element.destination)
            members[name, member] = expires
    return members

def ipset_additions(members, now, suffix=''):
    """Commands that add these, or change their time. In whole seconds, rounded down; 0
    would be for ever, and is over."""
    text = ''
    for (name, member), expires in sorted(members.items()):
        seconds = min((expires - now) // 1000, LONGEST)
        if seconds > 0:
            text += 'add %s%s %s timeout %d\n' % (name, suffix, member, seconds)
    return text

def ipset_text(openings, now):
    """All sets, from one moment to the next with these openings and no others."""
    create = ''
    swap = ''
    for name, kind in IPSETS:
        create += 'create {0} {1}\ncreate {0}-new {1}\nflush {0}-new\n'.format(name, kind)
        swap += 'swap {0} {0}-new\ndestroy {0}-new\n'.format(name)
    return create + ipset_additions(ipset_members(openings), now, '-new') + swap

def saved_match(service):
    """-p tcp -m tcp --dport 8000:8010, as iptables-save prints it, and a blank."""
    proto, _, ports = format_service(service).partition('/')
    return '-p {0} -m {0} --dport {1} '.format(proto, ports.replace('-', ':'))

def saved_target(verdict, version):
    """A verdict in iptables' words."""
    if verdict == DROP:
        return '-j DROP'
    for word, known in SAVED_REJECTS.items():
        other_family = word.startswith('icmp6' if version == 4 else 'icmp-')
        if known == verdict and not other_family:
            return '-j REJECT --reject-with ' + word
    return '-j REJECT'

def mark_lines(config, version):
    """Who may pass gets the mark. What is not TCP and known has passed already."""
    both = config.mark | asked_bit(config)
    passes = '-j MARK --set-xmark 0x%x/0x%x' % (config.mark, config.mark)
    # A bit that came with the packet, out of a tunnel, allows nothing.
    lines = ['-m mark ! --mark 0x0/0x%x -j MARK --set-xmark 0x0/0x%x' % (both, both),
             '! -p tcp ' + KNOWN_RETURN]
    for service in merged(config.hide):
        match = saved_match(service)
        if service.proto == TCP:
            lines += [match + outlives + passes for outlives in OUTLIVES]
        # A proxy that keeps its client's address sends over lo as a stranger.
        for name in ('lo -m addrtype --src-type LOCAL',) + config.trust:
            lines.append('-i %s %s%s' % (name, match, passes))
        opened = '-m set --match-set knockd%d' % version
        lines.append('%s%s src,dst %s' % (match, opened, passes))
        if any(client.only for client in config.clients.values()):
            lines.append('%s%s_only dst,dst,src %s' % (match, opened, passes))
    return lines

def nat_lines(config, decoys, version):
    """A stranger's TCP goes to the decoy; other hidden ports stay what they are, so that
    no later rule forwards them. Of two rules for a port the first counts."""
    lines = mark_lines(config, version)
    lines.append('-m mark --mark 0x%x/0x%x -j RETURN' % (config.mark, config.mark))
    target = TO_US[version] + '-j DNAT --to-destination :'
    for port, decoy in sorted(decoys.items()):
        match = saved_match(Service(TCP, port, port))
        # The socket that TPROXY chose would take it at whatever port: filter answers.
        lines.insert(0, match + '-m socket --transparent --nowildcard -j ACCEPT')
        lines.append('%s%s%d' % (match, target, decoy))
    for service in merged(config.hide):
        ports = ports_text(service)
        lines.append(saved_match(service) + target + ports)
        for network in networks_behind(config, version):
            target_behind = '-d %s -j DNAT --to-destination :%s' % (network, ports)
            lines.append(saved_match(service) + target_behind)
    return lines

def networks_behind(config, version):
    return [network for network in config.behind if network.version == version]

def filter_lines(config, box, decoys, version):
    """The marked pass, and what is not TCP and known. The rest gets its answer."""
    # Without accept_in the box's own rules decide about the marked.
    passes = 'ACCEPT' if config.accept_in else 'RETURN'
    lines = ['-m mark --mark 0x%x/0x%x -j %s' % (config.mark, config.mark, passes),
             '! -p tcp ' + KNOWN_RETURN]
    for decoy in sorted(decoys.values()):
        lines.append('-p tcp -m tcp --dport %d %s' % (decoy, AGAIN_RESET))
    answers = box_answers(config, box)
    for service in merged(config.hide):
        match = saved_match(service)
        if version == 6:
            lines.append(match + TO_ALL + '-j DROP')
        # nat has sent to a decoy what the stack may answer; this is the rest.
        state = 'invalid' if decoys and service.proto == TCP else 'new'
        verdicts = answers[version, service.proto, state]
        for interface in by_length(verdicts):
            verdict = final(verdicts[interface], service.proto, False)
            target = match + TO_US[version] + saved_target(verdict, version)
            if interface:
                target = '-i %s %s' % (interface, target)
            lines.append(target)
    return lines + forward_lines(config, version)

def forward_lines(config, version):
    """What does a stranger get of a host behind this box? As `beyond` of nft."""
    forwarded, lines = [], []
    if networks_behind(config, version):
        forwarded = ['-p tcp -m tcp ! --tcp-flags SYN,ACK SYN ' + KNOWN_RETURN]
        lines = ['-m conntrack --ctstate NEW -m conntrack --ctstate DNAT -j RETURN']
    for service in merged(config.hide):
        match, verdict = saved_match(service), answers_behind(config)[service.proto]
        # By the port that it came to: DNAT is done by now.
        came = re.sub('-m .*dport', '-m conntrack --ctstate DNAT --ctorigdstport', match)
        for network in networks_behind(config, version):
            target = '-d %s %s' % (network, saved_target(verdict, version))
            forwarded.append(came + target)
            lines.append(match + target)
    return forwarded + lines

def restore_command(tool, rules, jumps):
    """(argv, text) that put these rules, {table: lines}, in place of ours; a table
    without lines loses our chain. jumps: [(table, rule that leads to us)] of now."""
    text = ''
    for table, lines in rules.items():
        text += '*%s\n:KNOCKD - [0:0]\n' % table
        for line in lines:
            text += '-A KNOCKD %s\n' % line
        # In the same transaction each copy goes, and one comes in at the head.
        for where, jump in jumps:
            if where == table:
                text += '-D %s\n' % jump
        for hook in HOOKS[table] if lines else ():
            text += '-I %s %s\n' % (hook, OUR_JUMP)
        text += 'COMMIT\n' if lines else '-X KNOCKD\nCOMMIT\n'
    return [tool + '-restore', '--noflush', '-w'], text

def saved_decoys(rules):
    """Seen.decoys, from nat_lines() as listed."""
    decoys = {}
    for _, rule in rules:
        found = re.search(r'--dport (\d+) .*DNAT --to-destination :(\d+)$', rule)
        if found and found.group(1) != found.group(2):
            decoys[int(found.group(1))] = int(found.group(2))
    return decoys

class IptablesTool:
    """The tool iptables, with ip6tables and ipset: commands and listings as text."""
    name, sysctls = 'iptables', ()

    def list_commands(self, has):
        commands = [[tool + '-save'] for tool in SAVED_TOOLS.values()]
        return [argv for argv in commands if has(argv[0])]

    def read(self, outputs, config):
        """outputs: {program: what it printed}; a family without one is not guarded."""
        chains, rules, ours, missing = [], {}, collections.OrderedDict(), []
        for version, tool in SAVED_TOOLS.items():
            if tool + '-save' in outputs:
                text = outputs[tool + '-save']
                ours[tool] = [(table, line[3:]) for table, line in saved_lines(text)
                              if 'KNOCKD' in line and line.startswith('-A ')]
                for table, hooks in HOOKS.items():
                    missing += [hook for hook in hooks
                                if not re.search(HEADED.format(table, hook), text)]
                found = read_saved(text, FAMILIES[version], '', config.mark)
                chains += found[0]
                rules.update(found[1])
        chains.sort(key=lambda chain: chain.priority)
        all_ours = list(itertools.chain(*ours.values()))
        decoys = saved_decoys(all_ours)
        # Numbers in our own rules are no others' ports.
        taken = named_ports(repr(rules))
        return Seen(json.dumps(ours) if all_ours else None,
                    # What is not in the listing is not asked for here.
                    Box(read_closed(chains, rules), True, True, False, False, False),
                    Accepts(missing, []), taken, decoys, [], tuple(ours))

    def whole(self, config, seen, decoys, openings, now):
        """[(argv, standard input)]"""
        ours = json.loads(seen.ours or '{}')
        commands = []
        for version, tool in SAVED_TOOLS.items():
            jumps = [(table, rule) for table, rule in ours.get(tool, ())
                     if not rule.startswith('KNOCKD ')]
            rules = collections.OrderedDict.fromkeys(HOOKS, ())
            if config.hide:
                rules['mangle'] = mark_lines(config, version)
                rules['nat'] = nat_lines(config, decoys, version)
                rules['filter'] = filter_lines(config, seen.box, decoys, version)
            if tool in seen.tools:
                commands.append(restore_command(tool, rules, jumps))
        sets = ipset_text(openings, now)
        if config.hide:         # the sets first: rules name them
            return [(IPSET_COMMAND, sets)] + commands
        sets += ''.join('destroy %s\n' % name for name, _ in IPSETS)
        return commands + [(IPSET_COMMAND, sets)]

    def change(self, before, after, now):
        """From one collection of openings to another."""
        # What ends within a second goes: ipset_additions() could not shorten its time.
        old, new = ipset_members(before), ipset_members(live(after, now + 999))
        text = ''
        for name_and_member in sorted(set(old) - set(new)):
            text += 'del %s %s\n' % name_and_member
        text += ipset_additions(dict(new.items() - old.items()), now)
        return [(IPSET_COMMAND, text)] if text else []

    def nothing(self):
        """Empties our chains; whole() of a config that hides nothing takes them away."""
        text = ''.join('*%s\n:KNOCKD - [0:0]\nCOMMIT\n' % table for table in HOOKS)
        return [([tool + '-restore', '--noflush', '-w'], text)
                for tool in SAVED_TOOLS.values()]

    def flaws(self, config):
        """What the config asks for and this tool cannot do."""
        found = []
        for name in config.trust:
            if name.endswith('+'):
                found.append('[server] trust = ' + name)
        if set(config.accept_in) - {('auto',)}:
            found.append('[server] accept_in, but for auto')
        for client in config.clients.values():
            if client.once:
                found.append('[client %s] once' % client.name)
            for service in client.allow:
                if service.high - service.low >= MOST_PORTS:
                    found.append('[client %s] allow = %s, more than %d ports in one' % (
                        client.name, format_service(service), MOST_PORTS))
        return [what + ': iptables cannot do that; install nftables' for what in found]

IPTABLES = IptablesTool()

# --- edges: the clock -------------------------------------------------------------------
def moment():
    """The Moment that is now."""
    wall = int(time.time() * 1000)
    mono = int(time.monotonic() * 1000)
    return Moment(wall, mono)

def patient(condition, seconds=5):
    """Asks until the condition holds or the time is over; what it was last."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.05)

# --- edges: the log ---------------------------------------------------------------------
ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7     # syslog(3)
LINE_LIMIT = 4000               # characters; what poll(2) calls writable takes 4,096

def log(text, level=INFO):
    """One line on standard error; journald takes a syslog level in front. It never waits:
    where the reader of a pipe hangs, the line is lost."""
    prefix = ''
    if 'JOURNAL_STREAM' in os.environ:
        prefix = '<%d>' % level
    line = prefix + printable(text)[:LINE_LIMIT] + '\n'
    # Nobody reads the log: that is no reason to stop guarding.
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None and select.select((), (2,), (), 0)[1]:
            sys.stderr.write(line)
            sys.stderr.flush()

def log_lines(text, level):
    """A line of the log for each line of the text."""
    for line in text.splitlines():
        log(line, level)

def printable(text):
    """No byte of a stranger's reaches a terminal or a log as anything but plain text."""
    return re.sub(r'[^\x20-\x7e]', '?', text)

def note(text):
    print('note: ' + printable(text), file=sys.stderr, flush=True)

QUIET_TIME = 60000              # ms in which a kind of line is written once

class Kind:
    """What befalls one client again and again: counted each time, logged now and then."""

    def __init__(self):
        self.source = self.reason = ''          # of the last time
        self.count = 0          # how often in all
        self.silent = 0         # how often since the last line
        self.last = 0           # ms since 1970
        self.told = None        # monotonic ms of the last line

    def happen(self, source, reason, now, line):
        """Once more: logs the line unless it is too early for another one."""
        self.source = source
        self.reason = reason
        self.count += 1
        self.last = now.wall
        if self.told is not None and now.mono - self.told < QUIET_TIME:
            self.silent += 1
            return
        if self.silent:
            line += ' (%d more before)' % self.silent
        self.told = now.mono
        self.silent = 0
        log(line, NOTICE)

    def row(self, client):
        """For status."""
        return {'client': client, 'source': self.source, 'reason': self.reason,
                'count': self.count, 'last': self.last}

class Reports:
    """The lines that others can cause: each kind once a minute, for each client by
    himself."""

    def __init__(self, verbose=False):
        self.verbose = verbose
        self.counts = collections.Counter()     # verdict: how often
        self.junk = 0           # how much of it was told
        # {(client's name, name of a kind): Kind}. The names of kinds are constants of
        # ours: no client finds new ones.
        self.kinds = collections.defaultdict(Kind)

    def count(self, verdict, packet):
        """Counts what the judge said; what nobody else logs is logged with -v."""
        self.counts[verdict] += 1
        if self.verbose and verdict in ('junk', 'copy'):
            log('%s %s' % (verdict, packet.source), DEBUG)

    def tell(self, name, line, now):
        """Counts what befell nobody alone, of a kind with this name, and logs it unless
        that was logged within the minute."""
        self.kinds['', name].happen('', line, now, line)

    def complain(self, decision, kind, reason, now):
        """The same of what befell a client's knock."""
        client, source = decision.knock.client.name, str(decision.knock.source)
        line = '%s %s %s %s' % (decision.verdict, client, source, reason)
        self.kinds[client, kind].happen(source, reason, now, line)

    def tell_junk(self):
        """One line for all that was not authentic since the last one."""
        junk = self.counts['junk'] - self.junk
        if junk:
            log('junk: %d packets were not authentic' % junk, NOTICE)
        self.junk += junk

    def refusals(self):
        """For status: a dict for each kind of refusal of each client."""
        return [kind.row(client) for (client, _), kind in self.kinds.items() if client]

# --- edges: files ----------------------------------------------------------------------
def read_file(path):
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        return file.read()

def read_if_there(path):
    """'' if it cannot be read."""
    with contextlib.suppress(OSError):
        return read_file(path)
    return ''

def sync_folder(path):
    """The names in the folder of this file are on disk when this returns. OSError."""
    folder = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

def replace_file(path, data):
    """The file is either as it was or as it shall be, and then it is on disk. OSError."""
    os.close(replaced_file(path, data))

def replace_text(path, text):
    """The same with text, as read_file() reads it. OSError."""
    replace_file(path, text.encode('utf-8', 'surrogateescape'))

def replaced_file(path, data, room=0):
    """As replace_file(); returns a descriptor of the new file, which has so many zero
    bytes of room behind the data where the file system can reserve them."""
    remove_stale(path)
    # Another user may have laid a file or a link under any name that he can guess.
    name = '%s.%d-%s.new' % (path, os.getpid(), os.urandom(8).hex())
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(name, flags, 0o600)
    try:
        write_whole(descriptor, data, 0)
        if room:
            reserve(descriptor, len(data), room)
        os.fsync(descriptor)
        os.rename(name, path)
        sync_folder(path)
    except OSError:
        os.close(descriptor)
        # The first error is the one to tell.
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return descriptor

def write_whole(descriptor, data, offset):
    """All of the data with one write, or OSError."""
    written = os.pwrite(descriptor, data, offset)
    if written < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def reserve(descriptor, offset, size):
    """Room on the disk, if it has any and the file system can; True if it is there."""
    try:
        os.posix_fallocate(descriptor, offset, size)
    except OSError:
        return False
    return True

def remove_stale(path):
    """Takes away what a crash of ours left beside this file: new ones of a dead process.
    What we may not take away is another user's and harms nobody."""
    folder, name = os.path.split(path)
    # The name, the process's id, 16 hex digits.
    pattern = re.escape(name) + r'\.(\d+)-[0-9a-f]{16}\.new\Z'
    for found in os.listdir(folder or '.'):
        match = re.match(pattern, found)
        if match and not os.path.exists('/proc/' + match.group(1)):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, found))

def locked_by_us(path):
    """A descriptor of this file, which holds our process id: locked for as long as we
    live. BlockingIOError if another process has it."""
    flags = os.O_CREAT | os.O_NOFOLLOW
    # On a disk that is read-only a daemon can still hide, and wait.
    if os.access(os.path.dirname(path), os.W_OK):
        flags |= os.O_RDWR
    lock = os.open(path, flags, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(OSError):
        # Always as long: on a full disk there is no room again for what was cut off.
        os.pwrite(lock, b'%-10d\n' % os.getpid(), 0)
    return lock

@contextlib.contextmanager
def locked(path):
    """Whoever edits this file waits until nobody else does; KnockError after 10 s,
    OSError if there is no folder.

    The lock is on the file's folder: it outlives the rename that replaces the file, it
    is there before the file is, and it leaves nothing behind."""
    place = os.path.dirname(os.path.realpath(path))
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Not for ever: every user who may read the folder can hold this lock.
        if not patient(lambda: takes_lock(folder), 10):
            raise KnockError('%s: another command is editing there' % place)
        yield
    finally:
        os.close(folder)

def takes_lock(file):
    """False if another process has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False

def way_to(path):
    """Every folder, link and file that is passed on the way to this path, / first.
    OSError if links lead in a circle."""
    passed, place = ['/'], '/'
    left = os.path.join(os.getcwd(), path).split('/')
    while left:
        name = left.pop(0)
        if name == '..':
            place = os.path.dirname(place)
        if name in ('', '.', '..'):
            continue
        place = os.path.join(place, name)
        passed.append(place)
        if len(passed) > 400:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not os.path.islink(place):
            continue
        target = os.readlink(place)
        # The kernel reads a link from the folder in which it lies.
        left = target.split('/') + left
        place = os.path.dirname(place)
        if target.startswith('/'):
            place = '/'
    return passed

def path_flaws(path, forbidden):
    """A line for each user but root and us who could change this file, by a folder or a
    link on the way to it too; forbidden: bits of its mode. What is not there yet has no
    flaw."""
    try:
        passed = way_to(path)
    except OSError as error:
        return ['%s: %s' % (path, error.strerror)]
    flaws = place_flaws(passed.pop(), forbidden)
    for place in sorted(set(passed), reverse=True):
        flaws += place_flaws(place, 0o022)
    return flaws

def place_flaws(place, forbidden):
    """The same for this file, folder or link alone."""
    try:
        status = os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return []
    flaws = []
    # In a namespace root may go by another number: / is his.
    if status.st_uid not in (0, os.geteuid(), os.stat('/').st_uid):
        flaws.append('%s belongs to user %d; type: chown root %s'
                     % (place, status.st_uid, place))
    # In a sticky folder, as /tmp, nobody can replace what is another's.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    open_to_others = status.st_mode & forbidden and not sticky
    if open_to_others and not stat.S_ISLNK(status.st_mode):
        cure = 'chmod 600' if forbidden == 0o027 else 'chmod go-w'
        flaws.append('%s is open to others; type: %s %s' % (place, cure, place))
    return flaws

def read_config(path):
    """The Config in a file that belongs to root or us and is closed to others; KnockError
    with a line for everything that is wrong."""
    try:
        text, problems = read_file(path), path_flaws(path, 0o027)
        config = parse_config(text, os.path.abspath(path))
    except FileNotFoundError:
        raise KnockError('%s is not there; to make one: knockd.py run (or install) '
                         '--hide tcp/22 --client NAME' % path, 2)
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror), 2)
    except KnockError as error:
        problems.append(str(error))
    raise_all(problems)
    return config

def beside(config, name):
    """The path of what is kept in the ledger's folder."""
    return os.path.join(os.path.dirname(config.ledger), name)

def renew(path, text):
    """Writes a file of ours if that changes it, for flash wears. If it cannot be written,
    the log says so and all goes on."""
    try:
        if read_if_there(path) != text:
            replace_text(path, text)
    except OSError as error:
        log('%s: %s' % (path, error.strerror), ERROR)

# --- edges: commands --------------------------------------------------------------------
SEARCH_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
PACKAGES = (    # a package manager, and what it is told
    ('apt-get', 'apt-get update && apt-get install -y'),
    ('opkg', 'opkg update && opkg install'), ('apk', 'apk add --update-cache'),
    ('dnf', 'dnf install -y'), ('zypper', 'zypper install -y'),
    ('pacman', 'pacman -Sy --noconfirm'))
PACKAGE_OF = {'nft': 'nftables', 'ssh-keygen': 'openssh-client', 'unshare': 'util-linux'}
SMALL_PACKAGE_OF = {'ssh-keygen': 'openssh-keygen', 'unshare': 'unshare'}   # opkg, apk
COMMAND_SECONDS = 10            # what a command may take before it is killed
ACTION_SECONDS, ACTION_LINES = 30, 50
SLOTS = 8                       # commands of one client that may run at once
F_SETPIPE_SZ = 1031             # linux/fcntl.h

def find_program(name):
    """The path of a program, or None. As shutil.which() says, whose import costs 0.7 MB.
    PATH counts where only root can have put something."""
    usual = SEARCH_PATH.split(':')
    for folder in usual + os.environ.get('PATH', '').split(':'):
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or not os.access(path, os.X_OK):
            continue
        if folder in usual or is_roots(folder):
            return path
    return None

@functools.lru_cache(64)
def is_roots(folder):
    """Can only root, or we, put a program there? Kept, for it looks at many folders."""
    try:
        return folder.startswith('/') and not path_flaws(folder, 0o022)
    except OSError:
        return False

def package_command(program):
    """What brings a program that is not there, on this system."""
    package = re.sub('^ip6?tables.*', 'iptables', PACKAGE_OF.get(program, program))
    for manager, command in PACKAGES:
        if find_program(manager):
            if manager in ('opkg', 'apk'):
                package = SMALL_PACKAGE_OF.get(program, package)
            return '%s %s' % (command, package)
    return 'install ' + package

def missing(program):
    """The KnockError that says how to get a program."""
    command = package_command(program)
    return KnockError('%s is not installed; type: %s' % (program, command))

def start(argv, facts=None, descriptors=()):
    """A process whose three streams are pipes, in a clean environment and a session of
    its own.

    facts: variables for its environment, for a command of the config, whose errors then
    come with its output. descriptors: what it inherits. KnockError if it cannot be
    started."""
    path = argv[0]
    if '/' not in path:
        path = find_program(path)
    if path is None:
        raise missing(argv[0])
    errors = subprocess.PIPE
    if facts is not None:
        errors = subprocess.STDOUT
    environment = dict(facts or {}, PATH=SEARCH_PATH, LC_ALL='C')
    try:
        return subprocess.Popen(
            [path] + argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, cwd='/', env=environment, close_fds=True,
            pass_fds=descriptors, start_new_session=True)
    except OSError as error:
        raise KnockError('%s: %s' % (path, error.strerror))

def finish(process, argv, text, seconds=COMMAND_SECONDS):
    """Gives a process its input and waits for its end; its output, or a KnockError with
    all that it complained of."""
    data = text
    if isinstance(text, str):
        data = text.encode('ascii')
    # The with statement closes our ends of the pipes: what left the session may hold the
    # others.
    with process:
        try:
            output, errors = process.communicate(data, timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise KnockError('%s took longer than %d s' % (' '.join(argv), seconds))
    if process.returncode:
        said = (errors or output).decode('utf-8', 'replace').strip()
        raise KnockError('%s failed (%d): %s' % (
            ' '.join(argv), process.returncode, said or 'no reason given'))
    return output.decode('utf-8', 'replace')

def run(argv, text='', seconds=COMMAND_SECONDS, facts=None, descriptors=()):
    """The output of a command, or a KnockError. text is its standard input; the rest is
    as in start() and finish()."""
    return finish(start(argv, facts, descriptors), argv, text, seconds)

class Hooks:
    """Runs the commands of the config, each in a thread: nobody waits for them. Each
    client has slots of his own, and those for actions are not those for on_open and
    on_close."""

    def __init__(self):
        # By client, and by whether it is an action.
        self.slots = collections.defaultdict(lambda: threading.Semaphore(SLOTS))

    def run(self, name, argv, client, source, services, seconds, action=False):
        """Starts a command, if there is one. client: a name; source: an address."""
        if not argv:
            return
        facts = {'KNOCK_CLIENT': client, 'KNOCK_SOURCE': str(source),
                 'KNOCK_PORTS': format_services(services), 'KNOCK_SECONDS': str(seconds)}
        slots = self.slots[client, action]
        if not slots.acquire(blocking=False):
            log('action %s: not run, for %d others of %s do' % (name, SLOTS, client),
                ERROR)
            return
        arguments = name, argv, facts, slots
        work = threading.Thread(target=self.work, args=arguments, daemon=True)
        try:
            work.start()
        except RuntimeError as error:           # no thread more for this process
            slots.release()
            log('action %s: %s' % (name, error), ERROR)

    def work(self, name, argv, facts, slots):
        """The command's output goes to the log."""
        try:
            said = run(argv, seconds=ACTION_SECONDS, facts=facts)
        except KnockError as error:
            said = str(error)
        finally:
            slots.release()
        for line in said.splitlines()[:ACTION_LINES]:
            log('action %s: %s' % (name, line))

def notify(text):
    """sd_notify(3): to whoever started us and wants to know."""
    address = os.environ.get('NOTIFY_SOCKET', '')
    if not address:
        return
    if address.startswith('@'):         # an abstract socket
        address = '\0' + address[1:]
    # If it cannot be told now, the next wake-up tells it again.
    with contextlib.suppress(OSError):
        with unix_socket() as sock:
            sock.sendto(text.encode('ascii'), address)

def unix_socket(kind=socket.SOCK_DGRAM):
    """A Unix socket that never keeps anybody waiting."""
    return socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)

def pipe_with(data):
    """A descriptor from which a child reads these bytes; no file is made."""
    reader, writer = os.pipe()
    # The pipe must hold all of them before anybody reads.
    fcntl.fcntl(writer, F_SETPIPE_SZ, max(4096, len(data)))
    os.write(writer, data)
    os.close(writer)
    return reader

SIGNATURE_FRAME = b"""-----BEGIN SSH SIGNATURE-----
%s-----END SSH SIGNATURE-----
"""

def verify_signature(client, request):
    """KnockError unless this client's ssh_key made the signature (PROTOCOL.sshsig)."""
    armored = SIGNATURE_FRAME % binascii.b2a_base64(request.signature)
    signers = '%s namespaces="knock" %s\n' % (client.name, client.ssh_key)
    pipes = pipe_with(signers.encode('ascii')), pipe_with(armored)
    signer_file, signature_file = ['/dev/fd/%d' % pipe for pipe in pipes]
    argv = ['ssh-keygen', '-Y', 'verify', '-n', 'knock', '-I', client.name]
    argv += ['-f', signer_file, '-s', signature_file]
    try:
        run(argv, request.signed, seconds=2, descriptors=pipes)
    finally:
        for descriptor in pipes:
            os.close(descriptor)

# --- edges: the file of the ledger ------------------------------------------------------
# Bytes behind the last line, so that knocks fit on a full disk.
JOURNAL_ROOM = 65536
JOURNAL_LINES = 10000           # of a journal; a longer one is written anew

class LedgerFile:
    """The journal on disk, its lock for this process's life, the next line's place."""

    def __init__(self, path):
        folder, name = os.path.split(path)
        self.path = os.path.join(os.path.realpath(folder), name)
        self.lock = None
        self.journal = None     # a descriptor; None: nothing may be appended
        self.end = 0            # the offset at which the next line begins
        self.room = 0           # the offset up to which there is room on a full disk
        self.lines = 0
        self.limit = JOURNAL_LINES

    def take(self):
        """Locks it; KnockError if another daemon lives. The lock file holds our pid."""
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        path = self.path + '.lock'
        if place_flaws(path, 0):
            # In a sticky folder another user may have made it, and hold it for ever. It
            # may be a folder, with files in it.
            os.rename(path, path + os.urandom(8).hex())
        try:
            self.lock = locked_by_us(path)
        except BlockingIOError:
            raise KnockError('another knockd.py runs with %s; see: knockd.py status'
                             % self.path)

    def load(self, server_id):
        """The Ledger; KnockError or OSError if it is missing, unreadable or not ours.
        Needs no lock: a line that is being written is not there yet."""
        for flaw in path_flaws(self.path, 0o022):
            raise KnockError(flaw)
        descriptor = self.opened(os.O_RDONLY)
        try:
            return parse_ledger(self.text(descriptor), server_id)
        finally:
            os.close(descriptor)

    def opened(self, flags):
        """A fifo keeps nobody waiting, and a link is not followed."""
        return os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    def text(self, descriptor):
        """A character is a byte, so that a place in the text is an offset in the file."""
        with open(descriptor, encoding='latin-1', newline='\n', closefd=False) as file:
            return file.read()

    def rewrite(self, ledger):
        """One state line takes the place of the journal and is on disk when this returns.
        OSError: the old journal goes on, unless its name is the new one's already."""
        # If this fails because the disk is full, it is not tried again at each wake-up.
        self.limit = self.lines + JOURNAL_LINES // 10
        data = ledger.state_line().encode('ascii')
        journal = replaced_file(self.path, data, JOURNAL_ROOM)
        self.abandon()
        self.journal = journal
        self.end = len(data)
        self.room = os.fstat(journal).st_size
        self.lines, self.limit = 1, JOURNAL_LINES

    @property
    def rewrite_due(self):
        """Is it so long that it should be written anew when nobody waits?"""
        return self.lines > self.limit

    def resume(self):
        """Goes on in the journal that is there, where a full disk has no room for a new
        one. OSError. What a crash cut off becomes zero bytes again: a shorter line over
        it would be followed by its rest."""
        # A journal whose name is not on disk would be gone after a power cut.
        sync_folder(self.path)
        journal = self.opened(os.O_RDWR)
        try:
            text = self.text(journal)
            end = journal_end(text)
            if end == 0:
                raise OSError(errno.EINVAL, 'its only line has no end')
            torn = len(text.rstrip('\0')) - end
            write_whole(journal, bytes(max(0, torn)), end)
            os.fdatasync(journal)
        except OSError:
            os.close(journal)
            raise
        self.abandon()
        self.journal = journal
        self.end = end
        self.room = len(text)
        self.lines = text.count('\n', 0, end)

    def append(self, line):
        """The line of an honoured knock; it is on disk when this returns. After an
        OSError nobody knows what of it is: nothing is appended before rewrite()."""
        data = line.encode('ascii')
        try:
            self.check_in_place()
            self.keep_room()
            # posix_fallocate() makes the file longer: zero bytes lie behind the last
            # line, and O_APPEND would write behind them. So this names the offset.
            write_whole(self.journal, data, self.end)
            os.fdatasync(self.journal)
        except OSError:
            self.abandon()
            raise
        self.end += len(data)
        self.lines += 1

    def check_in_place(self):
        """A line in a journal that was deleted or replaced would be lost. OSError."""
        there = os.lstat(self.path)
        if self.journal is None or not os.path.samestat(there, os.fstat(self.journal)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def keep_room(self):
        """On a full disk half of the room, some 300 knocks, is left when more is asked
        for in vain."""
        if self.room - self.end > JOURNAL_ROOM // 2:
            return
        if reserve(self.journal, self.end, JOURNAL_ROOM):
            self.room = self.end + JOURNAL_ROOM

    def abandon(self):
        """Nothing is appended to this journal any more."""
        if self.journal is not None:
            os.close(self.journal)
        self.journal = None

def saved(file, ledger, line, what):
    """The line of a knock to disk; False, and one line in the log, if it cannot be. Where
    it cannot be appended, a new journal may still be written, which has it too."""
    try:
        file.append(line)
        return True
    except OSError:
        return rewritten(file, ledger, what)

def rewritten(file, ledger, what):
    """The ledger to disk as it is; False, and one line in the log, if it cannot be."""
    try:
        file.rewrite(ledger)
        return True
    except OSError as error:
        # A line behind the state of before would let a knock in whose quarantine is not
        # on disk.
        file.abandon()
        log('%s: the ledger cannot be written: %s: %s' % (
            what, file.path, error.strerror), ERROR)
        return False

def open_ledger(file, config, now):
    """(the Ledger, was it lost and is under quarantine); never a reason to stop."""
    try:
        ledger = file.load(config.id)
    except (OSError, KnockError) as error:
        return lost_ledger(file, config, now, error), True
    remove_version_1(file.path)
    try:
        file.rewrite(ledger)
    except OSError:
        # In the old journal, if that is possible; if not, the next knock tries again.
        try:
            file.resume()
        except OSError:
            rewritten(file, ledger, 'start')
    return ledger, False

def lost_ledger(file, config, now, error):
    """A new one under quarantine, on disk if possible."""
    ledger = Ledger(config.id)
    ledger.quarantine(now.wall, config.window)
    for client in config.clients.values():
        if client.paper:
            # By a wrong clock of ours a sheet may be younger than the quarantine.
            sheet, _ = client.paper
            ledger.record(client.fingerprint, '', 0, 0, (sheet, VOID))
    end = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(ledger.floor // 1000 + 1))
    reason = getattr(error, 'strerror', error)
    if isinstance(error, FileNotFoundError):
        reason = 'missing'
    log('quarantine: ledger %s, knocks count again at %s UTC; %s' % (
        reason, end, file.path), WARNING)
    rewritten(file, ledger, 'quarantine')
    return ledger

def remove_version_1(path):
    """What version 0.1 kept beside the ledger, 64 KiB of it."""
    for name in ('.new', '.ballast'):
        with contextlib.suppress(OSError):
            os.unlink(path + name)

# --- edges: sockets and events ----------------------------------------------------------
SO_ATTACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 26, 32, 33       # asm-generic/socket.h
# linux/socket.h, linux/if_packet.h, linux/if_ether.h
SOL_PACKET, PACKET_STATISTICS, PACKET_IGNORE_OUTGOING = 263, 6, 23
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 1, 1
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86dd
BRIDGE_SETTINGS = 'call-iptables', 'call-ip6tables', 'filter-vlan-tagged'
RECEIVE_BUFFER, SOCKET_SHARES = 4 << 20, 8
FRAMES_AT_ONCE = 256            # of one socket, before the others have their turn
NETLINK_NETFILTER = 12          # linux/netlink.h
# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
NETLINK_ROUTE, NLM_F_REQUEST = 0, 1
RTM_NEWLINK, RTM_GETLINK, IFLA_LINKINFO = 16, 18, 18
IFLA_MASTER, IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 10, 1, 4
RTM_NEWROUTE, RTM_GETROUTE, RTN_LOCAL, RTA_DST, RTA_OIF = 24, 26, 2, 1, 4
NFNLGRP_NFTABLES = 7            # linux/netfilter/nfnetlink.h
OTHERS = -1                     # in place of a netlink port, which is never that
# linux/netfilter/nf_tables.h: NEWSETELEM, DELSETELEM, NEWGEN.
ELEMENT_EVENTS = (12, 14, 15)
# What each event of our table has behind its header: family inet (linux/netfilter.h),
# and the attribute of the table's name, as long as this.
OUR_TABLE = 1, struct.pack('=HH', 11, 1) + b'knockd\0'
STATUS_BUFFER = 8 << 20         # bytes of an answer to status, at most

class Bell:
    """A pipe that a thread rings to wake another one from its poll."""

    def __init__(self):
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self):
        return self.reader

    def ring(self):
        with contextlib.suppress(BlockingIOError):      # full: it rings loud enough
            os.write(self.writer, b'.')

    def silence(self):
        with contextlib.suppress(BlockingIOError):      # nobody rang
            os.read(self.reader, 65536)

def ruleset_events():
    """A socket that becomes readable when anybody changes the ruleset."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        sock.bind((0, 1 << NFNLGRP_NFTABLES - 1))
    except OSError:
        # An old kernel with iptables alone gets a socket that is never readable.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock

def ruleset_changes(events):
    """Reads all that waits; returns all that changes_told() finds in it."""
    changes = set()
    while True:
        try:
            changes |= changes_told(events.recv(65536))
        except BlockingIOError:
            return changes
        except OSError:         # ENOBUFS: there were more changes than it could hold
            changes.add(OTHERS)

def changes_told(data):
    """What these netlink messages tell: of our table the sender, a netlink port, else
    OTHERS. Set elements of others do not count: somebody's blocklist changes often."""
    changes, offset = set(), 0
    while offset + 31 <= len(data):
        # linux/netlink.h: struct nlmsghdr, nfgenmsg; no event is shorter.
        length, kind, _, _, sender, family, name = struct.unpack_from(
            '=IHHIIB3x11s', data, offset)
        if (family, name) == OUR_TABLE:
            changes.add(sender)
        elif kind & 0xff not in ELEMENT_EVENTS:
            changes.add(OTHERS)
        offset += max(16, length + 3 & ~3)
    return changes

def attach_filter(sock, program):
    """SO_ATTACH_FILTER with a struct sock_fprog { u16 len; struct sock_filter *filter;
    }."""
    lines = [struct.pack('@HBBI', *line) for line in program]
    code = array.array('B', b''.join(lines))
    address = code.buffer_info()[0]
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                    struct.pack('@HL', len(program), address))

def packet_protocols():
    """The protocols to make packet sockets for: IPv4 and IPv6, or all in one. Since Linux
    6.15 a socket for one protocol hears after IP, which makes the kernel copy the head of
    each packet that it forwards; a socket for all hears before IP."""
    with packet_socket(ETH_P_IPV6):
        if hears_late(read_if_there('/proc/net/ptype')):
            return [ETH_P_ALL]
    return [ETH_P_IP, ETH_P_IPV6]

def hears_late(listed):
    """Does a socket for IPv6 hear a packet after IP does? From 6.15 on it does, and the
    list names it before ip_rcv. Older kernels list by the protocol's last digit, where
    IP's 0 comes before IPv6's d."""
    order = [line.split()[:2] for line in listed.splitlines()]
    ours, ip = ['86dd', 'packet_rcv'], ['0800', 'ip_rcv']
    return ours in order and ip in order and order.index(ours) < order.index(ip)

def packet_socket(protocol):
    """Every interface, from the IP header on, nothing of what this box sends."""
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    try:
        sock = socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
    except PermissionError:
        raise KnockError('raw sockets are not permitted; run it as root (CAP_NET_RAW)')
    if protocol == ETH_P_ALL:
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    # In a container it may be forbidden; net.core.rmem_max limits it then.
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    return sock

class Capture:
    """Taps: packet sockets, one for each protocol and each share of the words. A word is
    a tag's or a badge's first four bytes."""

    def __init__(self, limit):
        self.limit = limit      # shares at most
        self.protocols = packet_protocols()
        self.taps = []
        self.capacity = FILTER_TAGS
        self.coarse = False     # is the filter one on length alone?

    def load(self, tags, program):
        """Attaches program(words, is it the first share's?); a coarser one where the
        kernel lacks the memory."""
        words = {int.from_bytes(tag[:4], 'big') for tag in tags}
        shares = word_shares(words, self.capacity, self.limit)
        coarse = shares == [None]
        try:
            self.attach(shares, program)
        except OSError as error:
            if error.errno != errno.ENOMEM or coarse:
                raise
            self.capacity = self.capacity * 3 // 4
            self.load(tags, program)
            return
        if coarse and not self.coarse:
            log('filter: the kernel cannot hold %d tags (net.core.optmem_max), Python '
                'does its work' % len(words), WARNING)
        self.coarse = coarse

    def attach(self, shares, program):
        """The sockets for each share; None is the share of all words."""
        wanted = list(itertools.product(shares, self.protocols))
        for _, protocol in wanted[len(self.taps):]:
            self.taps.append(packet_socket(protocol))
        # What is no share's any more goes last, or a knock could pass unheard.
        surplus = self.taps[len(wanted):]
        del self.taps[len(wanted):]
        for sock, (share, _) in zip(self.taps, wanted):
            attach_filter(sock, program(share, share is shares[0]))
        for sock in surplus:
            sock.close()

    def frames(self, sock):
        """What waits in one of the taps, each frame with the name of its interface."""
        for frame, interface in receive(sock):
            # It comes again by the bridge, as IP sees it; `trust` names the bridge.
            if ETH_P_ALL in self.protocols and is_port(interface, int(time.monotonic())):
                continue
            yield frame, interface

    def drops(self):
        """How many packets the kernel had no room for since the last time."""
        dropped = 0
        for sock in self.taps:
            statistics = sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
            dropped += struct.unpack('@II', statistics)[1]
        return dropped

def word_shares(words, capacity, limit=SOCKET_SHARES):
    """The words of each share; [None] if they are more than all sockets hold. By
    remainder: as long as the count of shares stays, each word keeps its socket, and no
    packet is missed when filters change."""
    if not capacity:
        return [None]
    count = max(1, -(-len(words) // capacity))
    if count > limit:
        return [None]
    shares = [[] for _ in range(count)]
    for word in words:
        shares[word % count].append(word)
    return shares

def receive(sock):
    """The frames that wait in a packet socket, up to a limit, each with the name of its
    interface."""
    for _ in range(FRAMES_AT_ONCE):
        try:
            frame, address = sock.recvfrom(65536)
            yield frame, address[0]
        except OSError as error:
            # EBADF: closed since, as a smaller filter needs fewer sockets.
            if error.errno in (errno.EAGAIN, errno.EBADF):
                return
            # ENETDOWN: an interface went away, the others did not.
            if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.EINTR):
                raise

def ask_kernel(kind, question):
    """What rtnetlink answers to a request for one thing: a message from its head on.
    OSError."""
    # struct nlmsghdr
    head = struct.pack('=IHHII', 16 + len(question), kind, NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        sock.settimeout(1)
        sock.send(head + question)
        return sock.recv(65536)

# Whatever comes by one of their ports, they take and hand on as their own. Without a kind
# (b'?') is the network card of a virtual machine that has a faster one below it: netvsc.
TAKERS = b'bridge', b'bond', b'team', b'openvswitch', b'?'

@functools.lru_cache(SOURCES_LIMIT)
def is_port(interface, second):
    """Is it a port of a bridge or the like? Asked once a second: it may become one."""
    try:
        return link_kind(socket.if_nametoindex(interface), IFLA_INFO_SLAVE_KIND) in TAKERS
    except OSError:             # it is gone
        return False

def link_kind(index, which):
    """Of an interface, or (IFLA_INFO_SLAVE_KIND) of the one that it is a port of; b'' if
    there is none, b'?' if that has no kind. OSError."""
    # struct ifinfomsg
    answer = ask_kernel(RTM_GETLINK, struct.pack('=4xiII', index, 0, 0))
    if struct.unpack_from('=H', answer, 4)[0] != RTM_NEWLINK:
        return b''
    found = netlink_attributes(answer[32:])
    about = netlink_attributes(found.get(IFLA_LINKINFO, b''))
    return about.get(which, b'?' if IFLA_MASTER in found else b'').rstrip(b'\0')

def netlink_attributes(data):
    """{type: value}. linux/netlink.h: struct nlattr begins at a multiple of four."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from('=HH', data)
        found[kind & 0x3fff] = data[4:length]
        data = data[max(4, length + 3 & ~3):]
    return found

@functools.lru_cache(SOURCES_LIMIT)     # forgotten at each step
def is_own(address, interface):
    """Is this an address of this box, be it in the VRF of that interface?"""
    try:
        index = socket.if_nametoindex(interface)
        return RTN_LOCAL in (route_kind(address, 0), route_kind(address, index))
    except OSError:
        return False

def route_kind(address, index):
    """The kind of route that the kernel has to an address; nothing is sent. (To bind a
    socket to it tells nothing where net.ipv4.ip_nonlocal_bind is 1.) index: of the
    interface by which it must go, 0 for any. OSError."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    packed = address.packed
    # struct rtmsg, then attributes: length u16, type u16, value.
    question = struct.pack('=BB10x', family, 8 * len(packed))
    question += struct.pack('=HH', 4 + len(packed), RTA_DST) + packed
    question += struct.pack('=HHI', 8, RTA_OIF, index)
    answer = ask_kernel(RTM_GETROUTE, question)
    kind, = struct.unpack_from('=H', answer, 4)
    # rtm_type, behind the head of 16 bytes and seven others.
    return answer[23] if kind == RTM_NEWROUTE else None

def is_guarded(address, interface, behind):
    """Is this an address of this box, or one behind it?"""
    return any(address in network for network in behind) or is_own(address, interface)

def bridges_of_box():
    """[(index, name)] of the interfaces that are bridges."""
    found = []
    for index, name in socket.if_nameindex():
        with contextlib.suppress(OSError):      # it is gone
            if link_kind(index, IFLA_INFO_KIND) == b'bridge':
                found.append((index, name))
    return found

def missing_for_bridges():
    """The kernel's variables that must be 1, or some of what a bridge passes on from port
    to port meets no rule: those that are not."""
    lacking = []
    for setting in BRIDGE_SETTINGS:
        name = 'net/bridge/bridge-nf-' + setting
        # Not there: the module br_netfilter is not loaded.
        if read_if_there('/proc/sys/' + name).strip() != '1':
            lacking.append(name.replace('/', '.'))
    return lacking

def overhear_bridges(trust):
    """A socket that receives nothing. While it is open, each bridge that is not in trust
    hands up what it passes on from port to port, so that the taps hear a knock to a host
    behind it."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    for index, name in bridges_of_box():
        if is_inside(name, trust):
            continue
        # struct packet_mreq { int index; u16 type, length; u8 address[8]; }
        request = struct.pack('@iHH8x', index, PACKET_MR_PROMISC, 0)
        with contextlib.suppress(OSError):      # it is gone
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    return sock

def routes_of_box():
    """[(ip_network, interface)] of its main tables."""
    found = []
    for line in read_if_there('/proc/net/route').splitlines()[1:]:
        name, target, _, _, _, _, _, mask = line.split()[:8]
        # In the byte order of this machine.
        words = [struct.pack('=I', int(word, 16)) for word in (target, mask)]
        text = '%s/%s' % tuple(map(ipaddress.IPv4Address, words))
        found.append((ipaddress.ip_network(text), name))
    for line in read_if_there('/proc/net/ipv6_route').splitlines():
        fields = line.split()
        target = bytes.fromhex(fields[0]), int(fields[1], 16)
        found.append((ipaddress.ip_network(target), fields[-1]))
    return [(network, name) for network, name in found if name != 'lo']

def runtime_folder():
    """Where the status socket is. OpenWrt has links on the way, or no /run at all:
    resolved first, so that owner and mode are judged of what is really there."""
    place = '/run'
    if not os.path.isdir(place):
        place = '/var/run'
    return os.path.realpath(place) + '/knockd'

def make_runtime_folder():
    """OSError if it cannot be, or if others can write it."""
    folder = runtime_folder()
    os.makedirs(folder, 0o700, exist_ok=True)
    for flaw in path_flaws(folder, 0o022):
        raise PermissionError(errno.EPERM, flaw)

def status_path(config):
    """The path of the daemon's status socket."""
    return '%s/%s.sock' % (runtime_folder(), config.id)

def status_socket(config):
    """A socket that only root (or our user) can ask. If it cannot be bound: one that
    nobody can ask."""
    sock = unix_socket()
    path = status_path(config)
    try:
        make_runtime_folder()
        if os.path.lexists(path):
            os.unlink(path)     # nobody's: we hold the ledger's lock
        os.fchmod(sock.fileno(), 0o600)     # bind() makes the file with this mode
        sock.bind(path)
    except OSError as error:
        log('status: %s: %s' % (path, error.strerror), WARNING)
    # In a container it may be forbidden; what is too long for it is not answered then.
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, STATUS_BUFFER)
    return sock

def own_namespace():
    """Locks this network namespace for as long as we live: two daemons with two configs
    would put back each their own rules for ever. KnockError if there is another. (By a
    file, for the name of a socket is anybody's who is first.)"""
    try:
        number = os.stat('/proc/self/ns/net').st_ino
        path = '%s/network-%d.lock' % (runtime_folder(), number)
        make_runtime_folder()
        locked_by_us(path)
    except BlockingIOError:
        pid = read_file(path).strip()
        raise KnockError('another knockd runs in this network namespace: process %s%s'
                         % (pid, command_of(pid)))
    except OSError as error:
        log('owner: %s: a second knockd would not be noticed' % error.strerror, WARNING)

def command_of(pid):
    """Its command line in brackets, which names its config."""
    try:
        words = read_file('/proc/%s/cmdline' % pid).split('\0')
    except OSError:
        return ''
    return ' (%s)' % ' '.join(words).strip()

# --- keeper: the one writer of the firewall ---------------------------------------------
# What somebody asks for. config: the Config to hide by; openings: a tuple of Opening.
Wanted = collections.namedtuple('Wanted', 'number config openings')
# What became of it. error: None (it is in force) or a KnockError (the state before stays,
# and it is tried again). mended: somebody had changed what is ours. loaded: a Loaded, or
# None: only elements.
Done = collections.namedtuple('Done', 'number error mended loaded')
# decoys: {hidden port: decoy}. guard: the script for the next boot.
Loaded = collections.namedtuple('Loaded', 'decoys guard')
OLDEST_NFT = (1, 0, 2)          # which lists and reads what our text is made of
COALESCE = 10                   # ms: one reload of a firewall is many changes
# Looks in a row that give way to knocks; then one is made whole: whoever knocks all the
# time must not keep what is gone from being put back.
BROKEN_LOOKS = 3
CHANGE_SECONDS = 4              # for elements alone; then the whole is loaded
FIRST_SECONDS = 40              # it loads the kernel's modules: 12 s on a slow box
NFT_TRIES = 5
RETRY_TIME = 1000               # ms until what failed is tried again
DECOY_TRIES = 1000              # random ports, before none is free
LEGACY_TABLES = {'iptables-legacy-save': '/proc/net/ip_tables_names',
                 'ip6tables-legacy-save': '/proc/net/ip6_tables_names'}
GUARD_HEAD = '# Hides what is hidden from the boot on, even without Python or a config.\n'
GUARD = '''%s >/dev/null 2>&1 || %s <<'END'
%sEND
'''
THERE = {'nft': 'nft list table inet knockd', 'ipset': 'ipset -n list knockd4',
         'iptables-restore': 'iptables -w -t nat -S KNOCKD',
         'ip6tables-restore': 'ip6tables -w -t nat -S KNOCKD'}

def check_programs(config):
    """What this box must have for this config; KnockError with all that it has not."""
    problems = path_flaws(os.path.dirname(config.ledger), 0o022)
    if any(client.ssh_key for client in config.clients.values()):
        try:
            run(['ssh-keygen', '-Y', 'sign'])
        except KnockError as error:
            said = str(error)
            # It always fails here, but "unknown option" means that it is too old.
            if 'option' in said or 'installed' in said:
                problems.append('%s: ssh_key needs ssh-keygen -Y (OpenSSH 8.1 or later): '
                                '%s' % (config.path, said))
    raise_all(problems)

def nft_flaw():
    """Why nft cannot be used on this box, or None."""
    if find_program('nft') is None:
        return str(missing('nft'))
    # One failure says nothing. To take iptables for it would leave our nft table of
    # before in force, closed to all.
    for _ in range(NFT_TRIES):
        try:
            version = run(['nft', '--version'])
            run(NFT_LIST)
            return version_flaw(version)
        except KnockError as error:
            flaw = str(error)
        time.sleep(0.2)
    return flaw

def version_flaw(version):
    """Why the nft that says this version cannot be used, or None."""
    # nftables v1.0.6 (Lester Gooch #5)
    numbers = re.findall(r'\d+', version.partition('(')[0])
    if tuple(map(int, numbers)) < OLDEST_NFT:
        return 'nft %s is older than 1.0.2' % ('.'.join(numbers) or '?')
    return None

def nft_tool():
    """NFT where the kernel has nft_socket: OpenWrt's is a package of its own."""
    chain = 'chain a { type filter hook input priority 0; %s; }' % HAS_CONNECTION
    try:
        run(NFT_TRY, NFT_TRIAL % chain, FIRST_SECONDS)
    except KnockError:
        return NFT_WITHOUT_SOCKETS
    return NFT

def choose_tool(config):
    """(an NftTool or IPTABLES, why it is not nft: a text or None). run, check and
    selftest ask here. KnockError, status 2, if neither can do what the config asks.
    """
    flaw = None
    if config.firewall in ('auto', 'nft'):
        flaw = nft_flaw()
        if flaw is None:
            return suitable(nft_tool(), config), None
    if config.firewall == 'nft':
        raise KnockError('%s: [server] firewall: %s' % (config.path, flaw), 2)
    for program in ('iptables-save', 'ipset'):
        if find_program(program) is None:
            reason = str(missing(program))
            if flaw is not None:
                reason = '%s; and instead of nft: %s' % (flaw, reason)
            raise KnockError('%s: [server] firewall: %s' % (config.path, reason), 2)
    return suitable(IPTABLES, config), flaw

def suitable(tool, config):
    """The tool, if it can do all that the config asks for."""
    raise_all(['%s: %s' % (config.path, flaw) for flaw in tool.flaws(config)])
    return tool

def has_lister(program):
    """Is it a program that lists rules here? To ask iptables-legacy where it has no
    tables would load its modules into the kernel."""
    names = LEGACY_TABLES.get(program)
    if names is not None and not legacy_tables(names):
        return False
    return find_program(program) is not None

def legacy_tables(path):
    """Does the kernel have tables of iptables-legacy, by this list of them?"""
    return read_if_there(path).strip() != ''

def changes_silently(tool):
    """Are there rules here whose changes no event tells?"""
    if tool is IPTABLES:
        return True
    return any(legacy_tables(path) for path in LEGACY_TABLES.values())

def see_box(tool, config, looks=None):
    """The Seen of this box. looks: the Looks that may break it off. KnockError."""
    outputs = {}
    for argv in tool.list_commands(has_lister):
        process = start(argv)
        if looks:
            looks.begin(process)
        try:
            outputs[argv[0]] = finish(process, argv, '')
        except KnockError:
            # What is not of our own tool tells only what the box does besides. But what
            # was broken off tells nothing, and must not look like another box.
            if looks and looks.broken_off or argv[0].startswith(tool.name):
                raise
    try:
        return tool.read(outputs, config)
    except MISREAD as error:
        raise KnockError('what %s lists cannot be read: %r' % (tool.name, error))

def reflect_marks(names, path):
    """Sets to 1 the kernel's variables that a tool's rules need: a reset then carries the
    mark of the packet that it answers. The old values are kept in a file, for uninstall.
    False if they cannot be written."""
    before = {}
    try:
        for name in names:
            if os.path.exists('/proc/sys/' + name):
                before[name] = read_file('/proc/sys/' + name).strip()
        if set(before.values()) <= {'1'}:
            return True
        if not os.path.exists(path):
            replace_text(path, json.dumps(before))
        for name in before:
            write_variable(name, '1')
    except OSError as error:
        log('%s: %s' % (error.filename, error.strerror), WARNING)
        return False
    return True

def kernel_variables():
    """What our rules need, and what they were made by: [text]."""
    return [read_if_there('/proc/sys/' + name) for name in SYSCTLS + MADE_BY]

def restore_marks(path):
    """Puts back what reflect_marks() has kept; for uninstall."""
    with contextlib.suppress(OSError, ValueError):
        for name, value in json.loads(read_file(path)).items():
            if name in SYSCTLS:
                write_variable(name, value)

def write_variable(name, value):
    """Sets a variable of the kernel. OSError."""
    with open('/proc/sys/' + name, 'w') as file:
        file.write(value)

class Decoys:
    """Ports of this box that answer in the place of hidden ones. Each is held by a socket
    that is bound and never listens: so nobody else can listen there, and the kernel
    refuses as ever."""

    def __init__(self):
        self.held = {}          # hidden port: (decoy, socket)

    def hold(self, hidden, preferred, taken):
        """{hidden port: decoy}. preferred: decoys that the loaded rules name, so that a
        restart changes no port. taken: ports that must be none. KnockError if no port is
        free."""
        for port in hidden:
            decoy, _ = self.held.get(port, (None, None))
            if decoy is None or decoy in taken:
                self.let_go(port)
                self.held[port] = self.bound(preferred.get(port, 0), taken)
        return {port: self.held[port][0] for port in hidden}

    def ports(self):
        """{hidden port: decoy} of all that are held."""
        return {port: decoy for port, (decoy, _) in self.held.items()}

    def taken(self, ports):
        """Is one of these ports a decoy of ours?"""
        return any(decoy in ports for decoy, _ in self.held.values())

    def bound(self, preferred, taken):
        """(port, socket): the preferred one, or one by chance: whoever seeks the decoy
        would try the first free one first."""
        tries = [preferred]
        tries += struct.unpack('=%dH' % DECOY_TRIES, os.urandom(2 * DECOY_TRIES))
        for port in tries:
            if port < 1024 or port in taken:
                continue
            sock = bound_socket(port)
            if sock is not None:
                return port, sock
        raise KnockError('no TCP port of this box is free for a decoy, or too many files '
                         'are open: ulimit -n')

    def let_go(self, port):
        """Of one hidden port."""
        if port in self.held:
            _, sock = self.held.pop(port)
            sock.close()

    def keep(self, hidden):
        """Lets go of the decoys of all others; after the rules that named them are
        gone."""
        for port in set(self.held).difference(hidden):
            self.let_go(port)

def bound_socket(port):
    """A TCP socket of both families that is bound and does not listen; None if the port
    is in use."""
    for family, address in ((socket.AF_INET6, '::'), (socket.AF_INET, '0.0.0.0')):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:         # no IPv6 here
            continue
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((address, port))
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                return None
    return None

class Looks:
    """When to look at the ruleset: soon after somebody has changed it, but not all the
    time. A look rests for twice as long as it took, and gives way to a knock."""

    def __init__(self):
        self.due = None         # monotonic ms, or None
        self.rested = 0         # monotonic ms from which on it may begin again
        self.reading = False    # is a look under way?
        self.process = None     # the command of it that lists the rules
        self.broken_off = False
        self.in_a_row = 0       # looks that were broken off
        self.variables = kernel_variables()     # by which the rules were made
        self.lock = threading.Lock()

    def ask(self, now, rest=True):
        """Somebody has changed something. (The daemon's thread asks as well.) rest: not
        before the last look has had its rest."""
        due = now + COALESCE
        if rest:
            due = max(due, self.rested)
        with self.lock:
            if self.due is None or due < self.due:
                self.due = due

    def variables_changed(self):
        """Since the last time?"""
        before, self.variables = self.variables, kernel_variables()
        return before != self.variables

    def start(self):
        """What is asked for from now on, this look may miss."""
        with self.lock:
            self.due = None
            self.reading = True

    def begin(self, process):
        """One of its commands runs now."""
        with self.lock:
            self.process = process
            # What came before it ran, or between two of them, could kill nothing.
            if self.broken_off:
                process.kill()

    def end(self, began, now):
        """Was it broken off? Then it is still due."""
        with self.lock:
            broken_off = self.broken_off
            self.reading = False
            self.broken_off = False
        self.rested = now + 2 * (now - began)
        if not broken_off:
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        self.ask(now)
        return True

    def give_way(self):
        """For what cannot wait. To list is to read: nothing is lost when it ends
        early."""
        with self.lock:
            if self.reading and self.in_a_row < BROKEN_LOOKS:
                self.broken_off = True
                # Before 3.9 what the keeper's thread has just seen end is killed by its
                # number, and a knock in the ledger would open nothing.
                with contextlib.suppress(ProcessLookupError):
                    if self.process:
                        self.process.kill()

class Standing:
    """What the kernel holds, as far as the keeper's thread knows."""

    def __init__(self):
        self.wanted = Wanted(0, None, ())
        self.known = False      # is that what the kernel holds?
        self.harmed = False     # has somebody changed our table since?
        self.before = None      # the Seen by which it was loaded
        # Did it load the same accept rules as the time before, when no look found them?
        self.repeated = False
        self.seen = None        # the Seen right after; None until somebody has looked

    def doubt(self, seen):
        """A load begins, made for the box as it is seen; it may fail half way."""
        self.known = False
        self.harmed = False
        unseen = self.before is not None and self.seen is None
        self.repeated = unseen and self.before.accepts == seen.accepts
        self.before = seen
        self.seen = None

    def harm(self):
        """Before the first load no table is ours."""
        self.harmed = self.before is not None

    def put(self, wanted):
        """That is what the kernel holds now."""
        self.wanted = wanted
        self.known = True

    def note(self, seen):
        """So it is listed."""
        self.seen = seen

class Keeper:
    """Brings the newest wanted state into force, in a thread of its own: nobody waits for
    nft, and no two of them run at once. A knock, a close, an expiry, a reload, a heal and
    the end of a probation all come through want()."""

    def __init__(self, tool, reflecting):
        self.tool = tool
        self.reflecting = reflecting    # do resets carry marks? Else no decoy can answer
        self.decoys = Decoys()
        self.wanted = Wanted(0, None, ())       # written by want() alone
        self.standing = Standing()              # the thread's
        self.looks = Looks()
        self.retry = 0          # monotonic ms before which nothing is tried
        self.events = ruleset_events()
        self.called, self.answered = Bell(), Bell()
        self.answers = collections.deque()      # Done; the thread puts them in
        self.in_trouble = False                 # was the last of them an error?
        threading.Thread(target=self.work, daemon=True).start()

    def want(self, config, openings):
        """Asks for a state; returns its number at once. What becomes of it is in
        results()."""
        number = self.wanted.number + 1
        self.wanted = Wanted(number, config, tuple(openings))
        # A knock waits for its own nft, not for one that only reads.
        self.looks.give_way()
        self.called.ring()
        return number

    def look(self, now):
        """To be looked at although no event tells: iptables-legacy sends none."""
        self.looks.ask(now.mono)
        self.called.ring()

    def turn(self, now, path):
        """Once a step: looks at what changes without an event. path: where
        reflect_marks() keeps the old values."""
        changed = self.looks.variables_changed()
        # With 0 there, a stranger's reset would leave from the decoy's port.
        if changed and self.reflecting:
            log('firewall: a variable of the kernel that it needs was changed', WARNING)
            reflect_marks(self.tool.sysctls, path)
            self.looks.variables_changed()      # our own change is none
        if changed or changes_silently(self.tool):
            self.look(now)

    def fileno(self):
        """Readable when there are results."""
        return self.answered.fileno()

    def results(self):
        """What was done since the last call: a list of Done, in order."""
        self.answered.silence()
        found = []
        while self.answers:
            found.append(self.answers.popleft())
        return found

    def answer(self, number, error=None, mended=False, loaded=None):
        self.in_trouble = error is not None
        self.answers.append(Done(number, error, mended, loaded))
        self.answered.ring()

    def work(self):
        """The thread."""
        while True:
            wanted = self.wanted
            try:
                self.wait()
                wanted = self.wanted
                self.step(wanted, moment().mono)
            except Exception as error:  # a defect must not end what opens and closes
                reason = 'internal error: %s: %s' % (type(error).__name__, error)
                self.answer(wanted.number, KnockError(reason))
                time.sleep(RETRY_TIME / 1000)

    def wait(self):
        """Until there is something to do."""
        poll = select.poll()
        poll.register(self.called, select.POLLIN)
        poll.register(self.events, select.POLLIN)
        poll.poll(self.patience(moment().mono))
        self.called.silence()
        self.heed(0)

    def heed(self, ours):
        """Reads what the kernel tells. ours: how many of the senders we are."""
        senders = ruleset_changes(self.events)
        if OTHERS in senders:
            self.looks.ask(moment().mono)
            if not ours:
                # Perhaps it took our rules out: then they are not put in in vain.
                self.standing.repeated = False
        # Beside iptables a table of our name is somebody else's.
        if len(senders - {OTHERS}) > ours and self.tool is not IPTABLES:
            self.standing.harm()

    def patience(self, now):
        """Milliseconds until something is due; None: only a call or an event ends the
        wait."""
        due = []
        if self.standing.harmed or self.wanted.number != self.standing.wanted.number:
            due.append(now)
        if self.looks.due is not None:
            due.append(self.looks.due)
        if not due:
            return None
        return max(now, min(due), self.retry) - now

    def step(self, wanted, now):
        """One thing that is due; what is wanted comes before a look."""
        if now < self.retry:
            return
        try:
            if self.standing.harmed:
                self.put_back(wanted, now)
            elif wanted.number != self.standing.wanted.number:
                self.bring(wanted, now)
            elif self.looks.due is not None and now >= self.looks.due:
                self.inspect(wanted, now)
        except KnockError as error:
            self.retry = moment().mono + RETRY_TIME
            self.looks.ask(self.retry)
            self.answer(wanted.number, error)

    def bring(self, wanted, now):
        """Into force: by elements if only openings differ, else all of it."""
        if self.same_rules(wanted.config):
            self.change(wanted, now)
        else:
            self.load(wanted)

    def put_back(self, wanted, now):
        """At once, as if nothing else had changed: to look first would double the time
        that the ports are open."""
        # ours: something is there; if the load fails, it is in the way.
        seen = self.standing.before._replace(ours='', accepts=Accepts([], []))
        self.load(wanted, seen, mended=True)
        if now < self.looks.rested or self.standing.repeated:
            # What harms us all the time must not cost all the time.
            ended = moment().mono
            self.retry = ended + 2 * (ended - now)

    def same_rules(self, config):
        """Are these the rules that stand? A client more or less changes none, and to load
        them all again would forget which openings of `once` are spent."""
        standing = self.standing
        if not standing.known:
            return False
        if config is standing.wanted.config:
            return True
        if standing.seen is None:
            return False
        decoys = self.decoys.ports()
        hidden, _ = decoy_ports(config, standing.seen)
        if self.reflecting and set(hidden) != set(decoys):
            return False
        new = self.tool.whole(config, standing.seen, decoys, (), 0)
        old = self.tool.whole(standing.wanted.config, standing.seen, decoys, (), 0)
        return new == old

    def change(self, wanted, now):
        """Openings alone. If that fails somebody has perhaps taken our rules away."""
        # The kernel has closed by itself what is over.
        before = live(self.standing.wanted.openings, now)
        try:
            commands = self.tool.change(before, wanted.openings, now)
            self.apply(commands, CHANGE_SECONDS)
        except KnockError:
            self.load(wanted)
            return
        self.put(wanted, len(commands))
        self.answer(wanted.number)

    def load(self, wanted, seen=None, mended=False):
        """All of it, in one transaction. seen: the box, if somebody has just looked.
        KnockError: the state before stays."""
        if seen is None:
            seen = self.see(wanted.config)
        for tries_left in reversed(range(NFT_TRIES)):
            self.standing.doubt(seen)
            try:
                loaded = self.load_whole(wanted, seen)
                break
            except KnockError:
                # Amid a reload of the box's own rules, chains that ours name may be gone.
                before, seen = seen, self.see(wanted.config)
                if seen == before or not tries_left:
                    raise
        self.put(wanted, 1)
        self.answer(wanted.number, None, mended, loaded)
        self.looks.ask(moment().mono, rest=self.standing.repeated)

    def put(self, wanted, ours):
        """In force, by so many commands of ours that change our table. Before they ended
        the kernel has told of them; whoever else has changed it meanwhile did harm."""
        self.standing.put(wanted)
        self.heed(ours)

    def load_whole(self, wanted, seen):
        """Returns a Loaded. seen: the box as it is."""
        config, tool = wanted.config, self.tool
        hidden, taken = decoy_ports(config, seen)
        if not self.reflecting:
            hidden = []
        decoys = self.decoys.hold(hidden, seen.decoys, taken)
        now = moment().mono
        commands = tool.whole(config, seen, decoys, self.unspent(wanted), now)
        seconds = COMMAND_SECONDS
        if self.standing.wanted.config is None:
            seconds = FIRST_SECONDS
        try:
            self.apply(commands, seconds)
        except KnockError:
            if seen.ours is None:
                raise
            self.apply(cleared(tool, commands))
        self.decoys.keep(hidden)
        bare = tool.whole(config, seen._replace(ours=None), decoys, (), now)
        variables = tool.sysctls if self.reflecting else ()
        return Loaded(decoys, guard_script(bare, variables))

    def unspent(self, wanted):
        """The openings without those of `once` that stood before: they may be spent, and
        a set that is filled anew forgets that. Whoever has not used his must knock
        again."""
        stood = set(self.standing.wanted.openings)
        return [opening for opening in wanted.openings
                if not (opening.once and opening in stood)]

    def inspect(self, wanted, now):
        """Looks whether all is as it was left, and puts it back."""
        self.looks.start()
        try:
            seen = self.see(wanted.config, self.looks)
        except KnockError as error:
            if not self.looks.end(now, moment().mono):
                # Knocks do not wait for that.
                self.looks.ask(moment().mono + RETRY_TIME)
                self.answer(self.standing.wanted.number, error)
            return
        self.looks.end(now, moment().mono)
        if self.in_order(seen):
            if self.in_trouble:
                self.answer(wanted.number)
            return
        self.load(wanted, seen, mended=True)

    def in_order(self, seen):
        """Is everything as it was right after it was loaded?"""
        if self.decoys.taken(seen.taken_ports):
            return False
        left = self.standing.seen
        if left is None:
            return self.came_well(seen)
        return (seen.ours, seen.box, seen.accepts) == (left.ours, left.box, left.accepts)

    def came_well(self, seen):
        """The first look after a load: this listing is the reference for later looks.
        False if the box changed during the load: then all is loaded once more, unless
        that would be in vain."""
        before, config = self.standing.before, self.standing.wanted.config
        if not self.standing.known or seen.ours is None and config.hide:
            return False
        if seen.box != before.box:
            return False
        # Once as before: somebody has taken our rules out again. Twice, though nobody has
        # changed anything: it is in vain.
        in_vain = seen.accepts == before.accepts and self.standing.repeated
        if any(seen.accepts) and not in_vain:
            return False
        self.standing.note(seen)
        return True

    def see(self, config, looks=None):
        """The Seen of this box. looks: whoever may break it off."""
        return see_box(self.tool, config, looks)

    def apply(self, commands, seconds=COMMAND_SECONDS):
        """Runs [(argument list, its standard input)]."""
        for argv, text in commands:
            run(argv, text, seconds)

def cleared(tool, commands):
    """The same commands, but in one transaction with the end of what is there: another
    version's table may be in the way. The last resort: packets pass while the hook is
    gone."""
    (argv, nothing), *_ = tool.nothing()
    if argv != commands[0][0]:
        return commands
    return [(argv, nothing + commands[0][1])] + commands[1:]

def guard_script(commands, variables=()):
    """A shell script that hides from the boot on; where rules are, it leaves them.
    variables: what the script sets to 1 in the kernel, or a reset would leave from the
    decoy's port until the daemon runs."""
    text = GUARD_HEAD
    for name in variables:
        text += '[ ! -w /proc/sys/%s ] || echo 1 >/proc/sys/%s\n' % (name, name)
    for argv, lines in commands:
        # At a boot the chains of others, where we have a rule besides, are not yet there.
        if argv[0] not in THERE:
            continue
        text += GUARD % (THERE[argv[0]], ' '.join(argv), lines)
    return text

# --- probation: a new installation hides for good once somebody has come in from outside
ON_TRIAL, PASSED, LAPSED = 'on trial', 'passed', 'lapsed'
TRIAL_SAVED = 120000            # ms between two notes of the time that is left
PROBATION = 600000              # ms of it, if nobody says otherwise
TRIAL_GUARD = '# Hides nothing: on probation.\n'
BOOT_ID = '/proc/sys/kernel/random/boot_id'

def probation_text(state, left=0, now=0, boot=''):
    """What the file says. left: ms that it still has; now: the monotonic clock in the
    boot of that id. boot '': not begun yet, the daemon's start begins it."""
    return json.dumps({'state': state, 'left': left, 'mono': now, 'boot': boot}) + '\n'

class GuardFile:
    """The script that the service runs at a boot. As long as the installation is on trial
    it hides nothing: who is locked out then needs but to boot."""

    def __init__(self, path, probation):
        self.path = path
        self.probation = probation
        self.script = None      # what hides, as far as we know

    def keep(self, script=None):
        """Renews it if it was installed."""
        self.script = script or self.script
        text = self.script
        if self.probation.state != PASSED:
            text = TRIAL_GUARD
        if text and os.path.exists(self.probation.path):
            renew(self.path, text)

def boot_id():
    """Another one after each boot, when the monotonic clock begins anew."""
    return read_if_there(BOOT_ID).strip() or 'unknown'

class Probation:
    """Nobody is locked out: who installs it and cannot knock has his ports back when the
    time is over. What was not installed (a first try) has no such file, and has
    passed."""

    def __init__(self, path, now):
        self.path = path
        self.state = PASSED
        self.ends = NEVER       # monotonic ms
        self.noted = now        # monotonic ms of the last note
        if os.path.lexists(path):
            self.read(now)

    def read(self, now):
        """It may end early, never late: an unreadable file is one that has lapsed."""
        self.state = LAPSED
        with contextlib.suppress(OSError, *MISREAD):
            note = json.loads(read_file(self.path))
            if note['state'] == PASSED:
                self.state = PASSED
            elif note['state'] == ON_TRIAL:
                # Noted at once: each boot costs it some time, so it comes to an end.
                self.ends = now + self.time_left(note, now)
                self.state = ON_TRIAL
                self.note(now)

    def time_left(self, note, now):
        """Milliseconds. After a boot nobody knows how long the one before went on behind
        its last note, so as much as there can have been is over."""
        left = min(whole_number(note['left']), MONTH * 1000)
        if note['boot'] == boot_id():
            # A clock that went back gives no time.
            return max(0, left - max(0, now - whole_number(note['mono'])))
        if note['boot']:
            left -= TRIAL_SAVED
        return max(0, left)

    def note(self, now):
        """A few times in a probation, since flash wears."""
        self.noted = now
        left = self.left(now) or 0
        renew(self.path, probation_text(self.state, left, now, boot_id()))

    def left(self, now):
        """Milliseconds that are left, or None: it is not on trial."""
        if self.state != ON_TRIAL:
            return None
        return max(0, self.ends - now)

    def due(self, now):
        """Milliseconds until it must be looked at."""
        if self.state != ON_TRIAL:
            return NEVER
        return max(0, min(self.ends, self.noted + TRIAL_SAVED) - now)

    def look(self, now):
        """True if it has lapsed just now."""
        if self.state != ON_TRIAL:
            return False
        if now >= self.ends:
            self.state = LAPSED
            self.note(now)
            log('probation: no authentic knock came from outside: nothing is hidden '
                'until one does; type elsewhere: knock.py and what knockd.py show prints',
                WARNING)
            return True
        if now >= self.noted + TRIAL_SAVED:
            self.note(now)
        return False

    def pass_by(self, now):
        """An authentic knock has come from outside. True if that was news."""
        if self.state == PASSED:
            return False
        self.state = PASSED
        self.note(now)
        log('probation: passed, it hides for good', WARNING)
        return True

# --- daemon: what hangs on the loop -----------------------------------------------------
LEISURE = 10                    # ms without a packet, before what can wait is done
CLOSING_TIME = 250              # ms by which the kernel may close later than we say
SLOW_TIME = 2000                # ms after which a knock that still waits is told
VISITS_LIMIT = 64               # of one client
MENDED = 'firewall: something of ours was gone or the box has changed; loaded again'
GOOD_NAME = 'knockd.ini.good'
GOOD_HEAD = '# The last good copy of %s, for a start while that one is broken.\n'
# One knock that opened something. source: a text; network: an ip_network; services:
# merged.
Visit = collections.namedtuple('Visit', 'fingerprint client source network services')
# A knock that is honoured once the keeper's number is in force. began: the Moment it was
# heard.
Order = collections.namedtuple('Order', 'number decision began')
# A config that is being brought into force, and the one to go back to if that fails.
Reload = collections.namedtuple('Reload', 'number before')

def config_stamp(path):
    """Changes when the file does; None while it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size

class ConfigFile:
    """The config's file, and the copy of it that was good last."""

    def __init__(self, path, problem=None):
        self.path = path
        self.stamp = config_stamp(path)
        self.problem = problem  # why the file as it is now does not rule; None: it does

    def changed(self):
        return config_stamp(self.path) != self.stamp

    def read(self):
        """The Config in the file. KnockError."""
        self.stamp = config_stamp(self.path)
        self.problem = None
        return read_config(self.path)

    def row(self):
        """For status. last_good: does the copy rule in place of the file?"""
        return {'path': self.path, 'problem': self.problem,
                'last_good': self.problem is not None}

    def refuse(self, problem):
        """It cannot be read, or cannot rule."""
        self.problem = problem

    def keep(self, config):
        """It rules: a copy of it is put beside the ledger."""
        if self.problem is not None:
            return
        with contextlib.suppress(OSError):      # it is gone, so it has changed
            text = GOOD_HEAD % self.path + read_file(self.path)
            if not self.changed():
                renew(beside(config, GOOD_NAME), text)

def config_to_run(path):
    """(Config, problem): the one in the file and None; or, if that is broken, the last
    good copy of it and why the file itself does not rule. KnockError if there is
    neither."""
    try:
        return read_config(path), None
    except KnockError as error:
        config = last_good(os.path.abspath(path))
        if config is None:
            raise
        return config, str(error)

def last_good(path):
    """The Config in the copy of a broken file, or None. A broken one may not say where
    its ledger is, beside which the copy lies, so the usual places are looked at as
    well."""
    folders = re.findall(r'(?m)^ledger\s*=\s*(/.*)/', read_if_there(path))
    for folder in folders + [os.path.dirname(path), '/var/lib/knockd', '/etc/knockd']:
        copy = os.path.join(folder, GOOD_NAME)
        try:
            text = read_file(copy)
            if text.startswith(GOOD_HEAD % path) and not path_flaws(copy, 0o027):
                return parse_config(text, path)
        except (OSError, KnockError):
            continue            # not there, or of another version
    return None

class WallClock:
    """Watches for jumps of the wall clock, by the monotonic one."""

    def __init__(self):
        self.offset = None      # ms between the two; None: the ledger was not lost
        self.doubt = None       # why the clock cannot be right, or None

    def watch(self, now):
        """After a lost ledger, a forward step could make old knocks good again."""
        self.offset = now.wall - now.mono

    def jumped(self, now):
        """True if it was set forward by more than a second, while that matters."""
        if self.offset is None:
            return False
        # Up to a second is NTP's slewing. A step back is no jump: count on from there.
        ahead = now.wall - now.mono - self.offset
        if 0 <= ahead <= 1000:
            return False
        self.offset += ahead
        return ahead > 1000

    def doubt_changed(self, config, ledger, now):
        """Asks again whether it can be right. True if a doubt came or went."""
        before, self.doubt = self.doubt, clock_doubt(config, ledger, now.wall)
        return (before is None) != (self.doubt is None)

def clock_doubt(config, ledger, now):
    """Why the clock cannot be right, or None: something of ours is from a later time."""
    times = [0]
    for path in (config.path, config.ledger):
        stamp = config_stamp(path)
        if stamp is not None:
            times.append(stamp[0] // 1000000)
    for key in ledger.keys.values():
        for time_of_knock in key['spent'].values():
            times.append(time_of_knock - config.window)
    latest = max(times)
    if now >= latest - 1000:
        return None
    return ('%s UTC is before %s, the time of a file or a knock of ours: if it is wrong, '
            'only paper knocks count; type: date -s, or let NTP set it'
            % (format_time(now), format_time(latest)))

def recalled_codes(path, now):
    """The Codes as the daemon before left them. If the file cannot be read, the worst is
    assumed. After a boot there is no file: no wrong tries."""
    codes = Codes()
    try:
        memory = json.loads(read_file(path))
        codes.recall(list(map(whole_number, memory)), now)
    except FileNotFoundError:
        pass
    except (OSError,) + MISREAD:
        codes.recall([0, 0, NEVER], now)
    return codes

class Hearing:
    """The packet sockets, and what their filters let by."""

    def __init__(self, state, now):
        self.state = state
        self.datagrams = Capture(SOCKET_SHARES)
        # Many SYNs have taps of their own, or a flood of them would push out datagrams.
        # Few share the others': each tap costs whatever this box forwards 2 to 3 %.
        self.syns = Capture(1)
        self.crowd = Budget(SYNS_APART)
        # {what is over its budget: until when, monotonic ms}: a tag, or 'syn' for
        # sequences and codes, stay in the kernel; 'crowd' gives SYNs their own taps.
        self.muted = {}
        self.pace = Budget(SYNS_A_SECOND)
        # In /run: it outlives a restart, not a boot, and wears no flash.
        self.codes_path = '%s/%s.codes' % (runtime_folder(), state.config.id)
        self.keys = Keyring(state, recalled_codes(self.codes_path, now.mono))
        self.bridges = None     # overhear_bridges()'s socket, if there is need of it

    def turn(self, doubt, now):
        """Another step, or another config: other credentials, and perhaps other addresses
        and bridges of this box. doubt: why the clock is wrong, or None."""
        config = self.state.config
        self.keys.turn(now, doubt)
        is_own.cache_clear()
        # New bridges come with new guests. The socket of before is closed last, or a
        # knock could pass unheard.
        before, self.bridges = self.bridges, None
        if config.behind:
            self.bridges = overhear_bridges(config.trust)
        if before is not None:
            before.close()
        self.listen()

    def listen(self):
        """Gives the kernel its filters."""
        config = self.state.config
        begin = packets_for(config)
        ports = None
        if 'syn' in self.muted:
            pass
        elif any(self.keys.sequences.tables):
            ports = KNOCKED_PORTS['ports']
        elif self.state.codes:
            ports = KNOCKED_PORTS['code']
        badges = self.state.badges
        apart = badges or ports and 'crowd' in self.muted

        def for_syns(words, _):
            return syn_filter(ports, words, begin)

        def for_datagrams(words, is_first):
            program = datagram_filter(config.carriers, config.port, words, begin)
            if is_first and ports and not apart:
                return by_protocol(for_syns((), True), program)
            return program
        if apart:
            self.syns.load(badges, for_syns)
        self.datagrams.load(self.state.tags.keys() - self.muted.keys(), for_datagrams)
        if not apart:
            self.syns.attach([], None)

    def mute(self, thing, seconds, now):
        """Until the start of the second that is so many after this one. True if new."""
        if thing in self.muted:
            return False
        self.muted[thing] = (now.mono // 1000 + seconds) * 1000
        self.listen()
        return True

    def unmute(self, now):
        over = [thing for thing, end in self.muted.items() if end <= now.mono]
        for thing in over:
            del self.muted[thing]
        if over:
            self.listen()

    def affords_syn(self, now):
        """False if more SYNs came in this second than may cost us anything."""
        if not self.crowd.spend('syn', now.mono // 1000):
            self.mute('crowd', 60, now)
        return self.pace.spend('syn', now.mono // 1000, self.syns.drops())

    def packets_of(self, syn, now):
        """The Packets that a SYN completes; only badges while 'syn' is muted."""
        before = self.keys.codes.memory()
        found = self.keys.packets_of(syn, now, 'syn' in self.muted)
        after = self.keys.codes.memory()
        # At each change, or whoever makes us crash has free tries.
        if after != before:
            renew(self.codes_path, json.dumps(after))
        return found

def outside_syn(frame, interface, config):
    """A Syn from outside to this box, or to one behind it; else None."""
    syn = parse_syn(frame)
    if syn is None or is_inside(interface, config.trust):
        return None
    # On a router, SYNs through the box come by here too.
    if not is_guarded(syn.destination, interface, config.behind):
        return None
    return syn

def honour_line(decision, began, ended):
    """open laptop 203.0.113.5 tcp/22 30s udp skew +0.3s 3ms"""
    knock = decision.knock
    what = knock.request.action or format_services(knock.services) or 'all'
    words = [decision.verdict, knock.client.name, str(knock.source), what]
    if decision.verdict == 'open':
        words[-1] += at_places(only_of(knock))
        words.append('%ds' % knock.seconds)
        if knock.request.seconds > knock.seconds:
            words.append('(%ds asked)' % knock.request.seconds)
    words.append(knock.carrier)
    if knock.carrier in DATAGRAMS:      # the others tell no time
        words.append('skew %+.1fs' % ((knock.request.time - began.wall) / 1000))
    words.append('%dms' % (ended.mono - began.mono))
    return ' '.join(words)

class Doors:
    """What is open, the knocks that wait until it is, and the commands that are told of
    it."""

    def __init__(self, keeper, state, reports):
        self.keeper = keeper
        self.state = state
        self.reports = reports
        self.hooks = Hooks()
        self.config = state.config      # the one to hide by
        self.orders = []
        self.visits = collections.OrderedDict()     # {Visit: ms when it ends}
        self.next_end = NEVER   # monotonic ms at which something may be over
        self.trouble = None     # what the keeper complained of last, or None

    def want(self):
        """Asks the keeper for what is wanted now; its number."""
        return self.keeper.want(self.config, self.state.openings.values())

    def hide(self, hides):
        """By the config that judges; or nothing at all. Returns the number of that."""
        self.config = self.state.config
        if not hides:
            self.config = self.config._replace(hide=())
        self.next_end = 0       # who may come in has changed perhaps
        return self.want()

    def enter(self, decision, now):
        """A knock that is in the ledger."""
        knock = decision.knock
        if decision.verdict == 'run':
            name = knock.request.action
            argv = self.state.config.actions[name]
            self.hooks.run(name, argv, knock.client.name, knock.source, (), knock.seconds,
                           action=True)
            log(honour_line(decision, now, moment()))
            return
        if decision.verdict == 'open':
            openings = after_open(self.state.openings, knock, now)
        else:
            openings = after_close(self.state.openings, knock)
        self.state.hold(openings)
        # It is said to be open when the kernel has it, not when it was asked for.
        self.orders.append(Order(self.want(), decision, now))

    def in_force(self, number, now):
        """All that was wanted up to this number is what the kernel holds."""
        self.trouble = None
        while self.orders and self.orders[0].number <= number:
            order = self.orders.pop(0)
            log(honour_line(order.decision, order.began, now))
            if order.decision.verdict == 'open':
                self.visit(order)
            else:
                self.next_end = now.mono

    def visit(self, order):
        """A knock has opened something."""
        knock = order.decision.knock
        services = tuple(merged(knock.services))
        visit = Visit(knock.client.fingerprint, knock.client.name, str(knock.source),
                      network_of(knock), services)
        ends = order.began.mono + knock.seconds * 1000
        before = self.visits.pop(visit, 0)      # it becomes the youngest
        self.visits[visit] = max(ends, before)
        self.next_end = min(self.next_end, ends + CLOSING_TIME)
        self.hooks.run('on_open', self.state.config.on_open, visit.client, visit.source,
                       services, knock.seconds)
        own = [each for each in self.visits if each.fingerprint == visit.fingerprint]
        if len(own) > VISITS_LIMIT:     # one client's ever new requests fill no memory
            self.leave(own[0])

    def leave(self, visit):
        """It is over, or one too many of its client."""
        del self.visits[visit]
        self.hooks.run('on_close', self.state.config.on_close, visit.client, visit.source,
                       visit.services, 0)

    def failed(self, done, now):
        """The keeper could not do it, and tries again in a second."""
        self.trouble = str(done.error)
        self.reports.tell('firewall', 'firewall: %s' % self.trouble, now)
        waiting = []
        for order in self.orders:
            reason = 'failed: %s' % self.trouble
            self.reports.complain(order.decision, 'failed', reason, now)
            if now.mono < order.began.mono + order.decision.knock.seconds * 1000:
                waiting.append(order)
        self.orders = waiting

    def look_for_slow(self, now):
        """Nobody waits for long without a word."""
        for order in self.orders:
            if now.mono - order.began.mono >= SLOW_TIME:
                reason = 'waits: %s is not done after %d s' % (
                    self.keeper.tool.name, SLOW_TIME // 1000)
                self.reports.complain(order.decision, 'slow', reason, now)

    def look_for_ends(self, now):
        """What is over, and its hook; at most once a second, for it looks at every
        opening. The kernel has closed it by its own clock."""
        if now.mono < self.next_end:
            return
        earlier = Moment(now.wall - CLOSING_TIME, now.mono - CLOSING_TIME)
        openings = surviving(self.state.openings, self.state.config, earlier)
        if openings != self.state.openings:
            self.state.hold(openings)
            self.want()
        first = NEVER
        owned = collections.defaultdict(list)
        for opening in openings.values():
            first = min(first, opening.expires)
            owned[opening.fingerprint, opening.source].append(opening.service)
        for visit, ends in list(self.visits.items()):
            own = merged(owned[visit.fingerprint, visit.network])
            # Is everything that this visit opened still open?
            stays = all(covered(service, own) for service in visit.services)
            if ends <= earlier.mono or not stays:
                self.leave(visit)
        first = min([first, *self.visits.values()])
        self.next_end = max(first + CLOSING_TIME, now.mono + 1000)

    def due(self, now):
        """Milliseconds until it must be looked at."""
        times = [self.next_end]
        for order in self.orders[:1]:
            times.append(max(now.mono + 1000, order.began.mono + SLOW_TIME))
        return max(0, min(times) - now.mono)

class Desk:
    """Answers `status`, by a Unix socket."""

    def __init__(self, config, now):
        self.socket = status_socket(config)
        self.path = '%s/%s.last' % (runtime_folder(), config.id)
        self.since = now.wall
        self.last = {}          # client's name: {'last': ms since 1970, 'source': text}
        self.noted = True       # is that in the file?
        self.mended = 0
        # Over a restart, not over a boot: flash is not worn by it.
        with contextlib.suppress(OSError, *MISREAD):
            self.last = dict(json.loads(read_file(self.path)))

    def honoured(self, knock, now):
        self.last[knock.client.name] = {'last': now.wall, 'source': str(knock.source)}
        self.noted = False

    def note(self):
        """For the next daemon."""
        if not self.noted:
            self.noted = True
            renew(self.path, json.dumps(self.last))

    def count_mended(self):
        self.mended += 1

    def ask(self):
        """(what somebody asks, his address); (None, None) if he has gone."""
        with contextlib.suppress(OSError):
            return self.socket.recvfrom(16)
        return None, None

    def answer(self, report, address):
        with contextlib.suppress(OSError):
            self.socket.sendto(json.dumps(report).encode('ascii'), address or b'')

# --- daemon: waits, reads, asks the judge, honours what he decides ----------------------
class Daemon:
    """One loop that never waits for the firewall; it holds the ledger's lock and the
    sockets."""

    def __init__(self, config, problem=None, verbose=False):
        self.config = config
        self.source = ConfigFile(config.path, problem)
        self.file = LedgerFile(config.ledger)
        self.reports = Reports(verbose)
        self.clock = WallClock()
        # start() adds state, hearing, doors, desk, probation and guard.
        self.reloading = None   # Reload, until it is in force

    def start(self):
        """Everything in force, or a KnockError."""
        self.file.take()
        own_namespace()
        now = moment()
        tool, _ = choose_tool(self.config)
        ledger, lost = open_ledger(self.file, self.config, now)
        if lost:
            self.clock.watch(now)
        reflecting = reflect_marks(tool.sysctls, beside(self.config, 'sysctls'))
        keeper = Keeper(tool, reflecting)
        self.furnish(State(self.config, ledger), keeper, now)
        self.tell_ready(self.first_result(keeper))
        notify('READY=1')

    def furnish(self, state, keeper, now):
        """All that hangs on the loop; the keeper begins to load the rules."""
        self.state = state
        self.probation = Probation(beside(self.config, 'probation'), now.mono)
        self.guard = GuardFile(beside(self.config, 'guard'), self.probation)
        self.desk = Desk(self.config, now)
        self.hearing = Hearing(state, now)
        self.doors = Doors(keeper, state, self.reports)
        self.adopt(self.config, now)

    def first_result(self, keeper):
        """Waits for the firewall, once: nobody is let in before. KnockError if it
        fails."""
        select.select([keeper], (), ())
        results = keeper.results()
        for done in results:
            if done.error is not None:
                raise done.error
            self.settle(done, moment())
        return results[0]

    def tell_ready(self, done):
        """The first line of a daemon that guards."""
        line = 'ready: %s' % state_line(self.config, self.doors.keeper, done)
        left = self.probation.left(moment().mono)
        if left is not None:
            line += '; on probation: %d s for a first knock from outside' % (left // 1000)
        log(line)
        if not self.doors.keeper.reflecting:
            log('ready: net.ipv4.fwmark_reflect cannot be set: hidden TCP ports answer '
                'with a reset of the firewall, not of the stack', WARNING)
        if self.source.problem is not None:
            log_lines('config: the last good copy rules, for the file is broken: %s'
                      % self.source.problem, ERROR)

    def loop(self, signals):
        """Until told to stop. signals: a descriptor on which the numbers of signals
        arrive."""
        self.start()
        stopping = False
        while not stopping:
            ready = self.wait(signals)
            stopping = signals in ready and self.heed(os.read(signals, 64))
            now = moment()
            self.settle_all(now)
            if self.desk.socket.fileno() in ready:
                self.answer(now)
            # SYNs come last: a flood of them delays no datagram.
            self.read(self.hearing.datagrams, ready)
            self.read(self.hearing.syns, ready)
            self.watch(moment())
            if not ready:
                self.use_leisure()
        self.desk.note()
        log('stopped; what is hidden stays hidden, until you type: knockd.py uninstall')

    def wait(self, signals):
        """The descriptors that have something, when they have, or when something is
        due."""
        poll = select.poll()
        taps = self.hearing.datagrams.taps + self.hearing.syns.taps
        for waker in [signals, self.doors.keeper, self.desk.socket] + taps:
            poll.register(waker, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(self.patience(moment()))}

    def patience(self, now):
        """Milliseconds until anything is due."""
        due = [self.doors.due(now), STEP - (now.wall + self.config.window) % STEP,
               self.probation.due(now.mono)]
        due += [end - now.mono for end in self.hearing.muted.values()]
        # Half of systemd's time, from us to ms.
        watchdog = int(os.environ.get('WATCHDOG_USEC', '0')) // 2000
        if watchdog:
            due.append(watchdog)
        if self.hearing.keys.lacks_next():
            due.append(LEISURE)
        return max(0, min(due)) + 1

    def heed(self, numbers):
        """Signals. True if one of them ends us."""
        if signal.SIGHUP in numbers:
            self.reload(moment())
        return any(number != signal.SIGHUP for number in numbers)

    def use_leisure(self):
        """What no knock shall wait for."""
        self.hearing.keys.prepare()
        if self.file.rewrite_due:
            with contextlib.suppress(OSError):          # the old journal goes on
                self.file.rewrite(self.state.ledger)

    def watch(self, now):
        """What every wake-up looks at; a jump of the clock is a new step."""
        self.look_for_jump(now)
        self.doors.look_for_ends(now)
        self.doors.look_for_slow(now)
        notify('WATCHDOG=1\nSTATUS=%d openings' % len(self.state.openings))
        self.hearing.unmute(now)
        if self.hearing.keys.turned(now):
            # Our own commands ask for the reload; an editor is noticed here, once a step.
            if self.source.changed():
                self.reload(now)
            self.turn(now)
        if self.probation.look(now.mono):
            self.doors.hide(False)

    def turn(self, now):
        """What is looked at once a step."""
        self.desk.note()
        if self.hearing.keys.steps.stop % 120 == 0:      # an hour
            self.reports.tell_junk()
        self.doors.keeper.turn(now, beside(self.config, 'sysctls'))
        if self.clock.doubt_changed(self.config, self.state.ledger, now):
            log('clock: %s' % (self.clock.doubt or 'plausible again'), WARNING)
        self.hearing.turn(self.clock.doubt, now)

    def look_for_jump(self, now):
        """What was refused because its time had passed must not be good again."""
        if self.clock.jumped(now):
            self.state.ledger.quarantine(now.wall, self.config.window)
            rewritten(self.file, self.state.ledger, 'the clock went forward')

    def settle_all(self, now):
        for done in self.doors.keeper.results():
            self.settle(done, now)

    def settle(self, done, now):
        """What the keeper has done, or could not do."""
        reloading = self.reloading
        due = reloading is not None and done.number >= reloading.number
        if done.error is not None:
            if due:
                self.go_back(done.error, now)
            else:
                self.doors.failed(done, now)
            return
        self.doors.in_force(done.number, now)
        if due:
            self.reloading = None
        # A new client, or one that was removed, changes no rules.
        if self.reloading is None and (due or done.loaded is not None):
            self.source.keep(self.config)
        # Once that is said, a start while the file is broken goes on with this one.
        if due:
            log('config reloaded: ' + state_line(self.config, self.doors.keeper, done))
        if done.mended:
            self.desk.count_mended()
            self.reports.tell('mended', MENDED, now)
        if done.loaded is not None:
            self.guard.keep(done.loaded.guard)

    def reload(self, now):
        """A bad config is reported and the old one stays in force."""
        before = self.config
        if self.reloading is not None:
            before = self.reloading.before
        try:
            config = self.source.read()
            self.check_same(config)
            check_programs(config)
        except KnockError as error:
            self.refuse(error)
            return
        self.reloading = Reload(self.adopt(config, now), before)
        # Whoever asks for a reload may have changed what no event tells of.
        self.doors.keeper.look(now)

    def check_same(self, config):
        """KnockError if the config changes what only a restart can change."""
        for name in ('id', 'ledger', 'firewall'):
            if getattr(config, name) != getattr(self.config, name):
                raise KnockError('%s: %s changes only with a restart'
                                 % (config.path, name))
        suitable(self.doors.keeper.tool, config)

    def refuse(self, error):
        self.source.refuse(str(error))
        log_lines('config refused, the old one stays: %s' % error, WARNING)

    def adopt(self, config, now):
        """From now on this config judges, and the keeper is asked to hide by it."""
        self.config = config
        self.state.adopt(config)
        # Before anything else: who was removed has nothing open any more.
        self.state.hold(surviving(self.state.openings, config, now))
        number = self.doors.hide(self.probation.state != LAPSED)
        self.hearing.keys.adopt(now)
        self.turn(now)
        return number

    def go_back(self, error, now):
        """The firewall could not do what the config asks for."""
        before, self.reloading = self.reloading.before, None
        # The keeper would try the new config for ever, and no knock would open meanwhile.
        self.refuse(error)
        self.adopt(before, now)

    def read(self, capture, ready):
        """Every waiting frame; one that breaks us is told of and does not stop us."""
        for sock in list(capture.taps):
            if sock.fileno() not in ready:
                continue
            for frame, interface in capture.frames(sock):
                try:
                    self.hear(frame, interface)
                except Exception as error:
                    # A defect of ours must not be a way to stop us.
                    name = type(error).__name__
                    line = 'internal error: %s: %s' % (name, error)
                    self.reports.tell(name, line, moment())

    def hear(self, frame, interface):
        packet = parse_packet(frame, self.config.carriers, self.config.port)
        if packet is not None:
            self.handle(packet, interface, moment())
        else:
            self.hear_syn(frame, interface)

    def hear_syn(self, frame, interface):
        """A SYN from outside to this box, if there are not too many of them."""
        now = moment()
        if not self.hearing.affords_syn(now):
            if self.hearing.mute('syn', 2, now):
                line = ('more than %d SYNs a second: ports, code and paper sleep'
                        % SYNS_A_SECOND)
                self.reports.tell('SYNs', line, now)
            return
        syn = outside_syn(frame, interface, self.config)
        if syn is not None:
            for packet in self.hearing.packets_of(syn, now):
                self.handle(packet, interface, now)

    def handle(self, packet, interface, now):
        """One packet that may be a knock."""
        self.look_for_jump(now)
        decision = self.with_signature(judge(packet, now, self.state), now)
        self.reports.count(decision.verdict, packet)
        if decision.verdict == 'mute':
            self.hearing.mute(packet.payload[:TAG_SIZE], 1, now)
        elif decision.verdict in OPS.values():
            inside = is_inside(interface, self.config.trust)
            self.honour(decision, packet.source, inside, now)
        elif decision.verdict == 'refused':
            self.reports.complain(decision, decision.kind, decision.reason, now)

    def with_signature(self, decision, now):
        """The decision, or a refusal where the signature is wrong."""
        if decision.verdict not in OPS.values() or not decision.knock.client.ssh_key:
            return decision
        client = decision.knock.client
        try:
            if not self.state.signatures.spend(client.fingerprint, now.mono // 1000):
                raise KnockError('too fast')
            # The last check, for it starts a process.
            verify_signature(client, decision.knock.request)
            return decision
        except KnockError as error:
            reason = 'signature: %s' % error
            return decision._replace(verdict='refused', kind=SIGNATURE, reason=reason)

    def honour(self, decision, sender, inside, now):
        """Ledger recorded, on disk, firewall, hooks, log: in this order, or not at all.
        inside: it came from this box or from a `trust` interface."""
        knock, state = decision.knock, self.state
        line = state.ledger.record(
            knock.client.fingerprint, knock.knock_id, knock.request.time,
            self.config.window, knock.paper)
        what = 'refused %s %s' % (knock.client.name, knock.source)
        if not saved(self.file, state.ledger, line, what):
            return
        state.copies.remember(knock, sender, now.mono)
        # From inside it proves nothing: that way in may be closed to its owner elsewhere.
        if not inside and self.probation.pass_by(now.mono):
            self.doors.hide(True)
            self.guard.keep()
        self.desk.honoured(knock, now)
        self.doors.enter(decision, now)

    def answer(self, now):
        """`status`, or `reload`, which says that the config has changed."""
        word, address = self.desk.ask()
        if word == b'reload':
            self.reload(now)
        self.desk.answer(self.report(now), address)

    def report(self, now):
        """What `status` shows; every list is bounded for each client."""
        floor, left = self.state.ledger.floor, self.probation.left(now.mono)
        report = {'version': __version__, 'since': self.desk.since}
        report['hidden'] = list(map(format_service, self.doors.config.hide))
        report['behind'] = list(map(str, self.config.behind))
        report['problem'] = self.problem()
        report['quarantine_until'] = floor if floor > now.wall else None
        report['probation_left'] = left and left // 1000
        report['clock'] = self.clock.doubt
        report['config'] = self.source.row()
        report['clients'] = self.desk.last
        report['openings'] = opening_rows(self.state.openings, now)
        report['refusals'] = self.reports.refusals()
        report['counts'] = self.reports.counts
        report['mended'] = self.desk.mended
        return report

    def problem(self):
        """Why what should be hidden is not, or None."""
        if self.probation.state == LAPSED:
            return 'the probation lapsed: nobody knocked from outside'
        return self.doors.trouble

def opening_rows(openings, now):
    """For status: a dict for all that closes at the same moment."""
    rows = {}
    for opening in openings.values():
        left = max(0, opening.expires - now.mono) // 1000
        key = opening.client, opening.source, opening.only, opening.expires
        row = rows.setdefault(key, {
            'client': opening.client, 'source': str(opening.source), 'services': [],
            'only': list(map(str, opening.only)), 'seconds_left': left})
        row['services'].append(format_service(opening.service))
    return list(rows.values())

def and_behind(networks):
    """Behind what is hidden: where else."""
    return ', also at ' + ', '.join(map(str, networks)) if networks else ''

def state_line(config, keeper, done):
    """What the log says at the start, and of a new config."""
    hiding = (format_services(config.hide) or 'nothing') + and_behind(config.behind)
    clients = '%d clients' % len(config.clients)
    if len(config.clients) == 1:
        clients = '1 client'
    line = '%s; hiding %s; %s; answer %s' % (
        clients, hiding, keeper.tool.name, config.answer)
    decoys = []
    if done.loaded is not None:
        decoys = sorted(done.loaded.decoys.values())
    if 0 < len(decoys) < 5:
        line += ' via decoy ' + ', '.join(map(str, decoys))
    return line

# --- checks: what check, selftest, status and run find wrong, and agree about ----------
NFT_FEATURES = (        # what it is, what tries it in a table, what it needs
    ('nft: sets with timeouts', 'set a { type mark; flags timeout; timeout 9s; }',
     'nf_tables (OpenWrt: kmod-nft-core)'),
    ('nft: concatenated intervals', 'set a { type mark . mark; flags interval; }',
     'Linux 5.6'),
    ('nft: connections', 'chain a { ct state established return; }',
     'nft_ct (OpenWrt: kmod-nft-core)'),
    ('nft: payload rewriting', 'chain a { tcp dport set 61022; }', 'a newer nft'),
    ('nft: limits of elements', 'set a { type mark; limit rate 1/week; }',
     'Linux 5.7, for once = yes'),
    ('nft: fib', 'chain a { type nat hook prerouting priority -199; '
     'fib daddr type != unicast return; }', 'nft_fib_inet (OpenWrt: kmod-nft-fib)'),
    ('nft: NAT', 'chain a { type nat hook prerouting priority -199; '
     'tcp dport 22 dnat to :22; }', 'nft_nat and Linux 5.2 (OpenWrt: kmod-nft-nat)'),
    ('nft: reject', 'chain a { type filter hook input priority 40; '
     'reject with icmpx type port-unreachable; }',
     'nft_reject_inet (OpenWrt: kmod-nft-core)'))
IPTABLES_FEATURES = (   # the same, tried by a command
    ('iptables: ipset', 'ipset create a hash:ip,port,net timeout 9',
     'ip_set (OpenWrt: kmod-ipt-ipset)'),
    ('iptables: mark', 'iptables -w -t mangle -A INPUT -j MARK --set-xmark 1/1',
     'xt_mark (OpenWrt: kmod-ipt-core)'),
    ('iptables: NAT', 'iptables -w -t nat -A PREROUTING -p tcp -j DNAT --to-destination '
     ':1024', 'xt_nat (OpenWrt: kmod-ipt-nat)'))
# The first nft after a boot loads modules of the kernel: 12 s on an emulated processor.
TRY_SECONDS = 60

def preflight(config):
    """Warnings, a line each; KnockError with all that would keep the daemon from running.
    check, selftest, status and run ask this, so they agree."""
    check_programs(config)
    found = warnings(config, box_facts(config))
    found += [Complaint('server', 'behind', flaw) for flaw in flaws_behind(config)]
    # Nobody else may list the rules.
    if os.geteuid() == 0:
        found += [Complaint('server', *flaw) for flaw in firewall_flaws(config)]
    return [complaint_line(config.path, complaint) for complaint in found]

def firewall_flaws(config):
    """(key of [server], text) for the tool, and for what other rules do to ours."""
    tool, flaw = choose_tool(config)
    if flaw:
        yield 'firewall', 'by iptables, for ' + flaw
    if tool is NFT_WITHOUT_SOCKETS:
        yield 'firewall', ('the kernel has no nft_socket (OpenWrt: kmod-nft-socket): a '
                           'handshake that began in an opening can be completed when it '
                           'is over')
    if not config.hide:
        return
    for rule in exact_marks(rules_of_routing(), config.mark | asked_bit(config)):
        yield 'mark', ('the rule "%s" asks for our bits, too; write it with a mask, as '
                       'fwmark 0x1/0xff' % rule)
    if tool is not IPTABLES:
        listing = run(NFT_LIST)
        if '"synproxy"' in listing.lower():
            yield 'hide', ('a rule with synproxy may answer before us; leave hidden '
                           'ports out of it')
        for chain in late_marks(listing):
            yield 'mark', ('chain %s %s %s sets the whole mark after us; give it '
                           'priority mangle, or write a mask' % chain)
    for chain in see_box(tool, config).unreachable:
        yield 'accept_in', ('chain %s %s %s drops what a knock opens, and takes no rule '
                            'of ours' % chain[:3])

def flaws_behind(config):
    """What of `behind` the guard does not see on this box."""
    if not config.behind:
        return
    bridges = [name for _, name in bridges_of_box() if not is_inside(name, config.trust)]
    lacking = missing_for_bridges()
    for name in bridges:
        if lacking:
            cure = ' '.join(setting + '=1' for setting in lacking)
            yield ('not all that bridge %s passes on meets our rules; type: modprobe '
                   'br_netfilter; sysctl -w %s' % (name, cure))
    for place in sorted(listed_by_nft('flowtable') or ()):
        yield ('flowtable %s %s %s: a knock or a SYN in a flow that it took over passes '
               'unseen; from a new port both are seen' % place)
    routes = routes_of_box()
    for network in config.behind:
        # A guest of a bridge may be on the same link as the way out, and without a route.
        if not (bridges or is_routed(network, routes)):
            yield '%s is not reached through this box; see: ip route' % network

def is_routed(network, routes):
    """Does a part of it lie elsewhere than the rest of the world?"""
    ways, ways_out = set(), set()
    for target, interface in routes:
        if target.prefixlen == 0:
            ways_out.add(interface)
        elif target.version == network.version and target.overlaps(network):
            ways.add(interface)
    return bool(ways - ways_out)

def exact_marks(text, bits):
    """The lines of `ip rule` that ask for the mark as a whole, or for one of these bits:
    what a knock opens, and a hidden port's reset, carries one and goes another way."""
    for line in text.splitlines():
        match = re.search(r'fwmark 0x[0-9a-f]+(?:/(0x[0-9a-f]+))?', line)
        # wg-quick's "not from all fwmark 0xca6c" is as true with our bits as without.
        if not match or 'not from' in line:
            continue
        mask = int(match.group(1) or '0xffffffff', 16)
        if mask & bits:
            yield ' '.join(line.split())

def rules_of_routing():
    """What `ip rule` lists."""
    rules = ''
    for family in ('-4', '-6'):
        with contextlib.suppress(KnockError):       # no such program, or no IPv6
            rules += run(['ip', family, 'rule'])
    return rules

def box_facts(config):
    """What warnings() must know of this box."""
    programs = [path for path in named_programs(config)
                if os.path.isfile(path) and os.access(path, os.X_OK)]
    interfaces = [name for _, name in socket.if_nameindex()]
    there = os.path.isdir(os.path.dirname(config.ledger))
    return Facts(moment().wall, interfaces, programs, listed_by_nft('chain'), there)

def listed_by_nft(kind):
    """{(family, table, name)} of every chain, or flowtable; None if nft lists none."""
    try:
        listing = json.loads(run(['nft', '-j', 'list', kind + 's']))
    except (KnockError, ValueError):
        return None
    place = operator.itemgetter('family', 'table', 'name')
    return {place(entry[kind]) for entry in listing['nftables'] if kind in entry}

def rules_of(config):
    """[(argument list, its input)]: what would be applied now. The daemon takes other
    decoys, by chance, unless its rules are loaded."""
    tool, _ = choose_tool(config)
    seen = see_box(tool, config)
    hidden, taken = decoy_ports(config, seen)
    trial = Decoys()
    decoys = trial.hold(hidden, {}, taken)
    trial.keep(())
    # A daemon that runs holds those of the rules that are loaded.
    for port in hidden:
        decoys[port] = seen.decoys.get(port, decoys[port])
    return tool.whole(config, seen, decoys, (), moment().mono)

def try_rules(config):
    """KnockError if this kernel refuses the rules, with what it lacks."""
    if os.geteuid():
        note('without root the rules are not tried on this kernel')
        return
    for argv, text in rules_of(config):
        if argv != NFT_COMMAND:
            continue
        try:
            # In place of what is there, as the keeper does: chains of 0.1 have the names
            # of ours and other hooks.
            run(NFT_TRY, NFT_NOTHING + text, TRY_SECONDS)
        except KnockError as error:
            raise KnockError('%s%s' % (error, missing_feature()), 2)

def missing_feature():
    """What a kernel lacks that refuses our rules, as the end of a sentence."""
    for what, how, needs in NFT_FEATURES:
        try:
            run(NFT_TRY, NFT_TRIAL % how)
        except KnockError:
            return '; this is missing: %s, which needs %s' % (what, needs)
    return ''

# --- status and lists: what people, programs and Prometheus are told --------------------
METRICS = {     # of `status --metrics`: kind, what it is
    'up': ('gauge', 'Does a daemon answer?'),
    'hidden': ('gauge', 'Is all hidden that should be?'),
    'openings': ('gauge', 'Openings there are now.'),
    'probation_seconds': ('gauge', 'What is left for a first knock; 0: no probation.'),
    'quarantine_end_seconds': ('gauge', 'Until when no knock counts; 0: they count.'),
    'mended_total': ('counter', 'How often rules of ours were gone and put back.'),
    'packets_total': ('counter', 'Packets and knocks by what came of them.'),
    'refused_total': ('counter', 'Authentic knocks that were refused.'),
    'last_knock_seconds': ('gauge', 'When this client was last honoured.'),
}

def duration(seconds):
    """12 s, 5 min, 3 h, 4 d: as much as a person wants to know."""
    for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return '%d %s' % ((seconds + size // 2) // size, unit)
    return '%d s' % max(0, seconds)

def print_table(rows):
    """Rows of texts, their columns in line."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print(printable('  '.join(cells)).rstrip())

def ask_daemon(config_path, word):
    """The report of the daemon that runs with this config; {} if there is none. As a rule
    the file says which socket is his; a file that broke since he read it does not."""
    wanted, folder = os.path.realpath(config_path), runtime_folder()
    sockets = []
    with contextlib.suppress(OSError, KnockError, KeyError):
        server = ini_sections(read_file(config_path), config_path)['server']
        sockets.append(server['id'] + '.sock')
    with contextlib.suppress(OSError):
        sockets += sorted(os.listdir(folder))
    for name in sockets:
        report = {}
        if name.endswith('.sock'):
            report = asked(os.path.join(folder, name), word)
        if report and os.path.realpath(report['config']['path']) == wanted:
            return report
    return {}

def asked(path, word):
    """What the daemon at this socket answers; {} if nobody does within 10 s."""
    # For the answer. A name without a file would be another's in the network namespace
    # of a daemon that does not live in ours.
    own = '%s.%s' % (path, os.urandom(4).hex())
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.settimeout(10)
        sock.bind(own)
        # He may be another user than we are; the folder keeps all others out.
        os.chmod(own, 0o666)
        sock.connect(path)
        sock.send(word)
        # Whoever is no daemon of ours has no items() or no such path.
        report = dict(json.loads(sock.recv(8 << 20).decode('ascii')).items())
        os.fspath(report['config']['path'])
        return report
    except (OSError,) + MISREAD:
        return {}
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(own)

def known_ledger(config):
    """The ledger as it is on disk, an empty one if it cannot be read; without the
    lock."""
    try:
        return LedgerFile(config.ledger).load(config.id)
    except (OSError, KnockError):
        return Ledger(config.id)

def client_facts(config, report):
    """{name: what `list` and `status` tell of it}, by config, ledger and daemon."""
    ledger = known_ledger(config)
    facts = {}
    for client in config.clients.values():
        entry = ledger.keys.get(client.fingerprint) or unused_key()
        told = report.get('clients', {}).get(client.name, {})
        last = max([told.get('last') or 0] + list(entry['spent'].values()))
        fact = facts[client.name] = {}
        fact['allow'] = format_services(client.allow)
        fact['default'] = format_services(client.default)
        fact['only'] = list(map(str, client.only))
        fact['code'] = client.code
        fact['paper_left'] = paper_left(client, entry['paper'])
        fact['key'] = client.fingerprint
        fact['expires'] = None if client.expires >= NEVER else client.expires
        fact['last'] = last or None
        fact['source'] = told.get('source')
        fact['old_key_until'] = client.old_until
    return facts

def paper_left(client, paper):
    """How many lines of its sheet are not used up; paper is what the ledger knows: sheet
    and the number that was used last."""
    sheet, count = client.paper or (0, 0)
    used_sheet, used = paper
    if used_sheet > sheet:
        return 0
    if used_sheet < sheet:
        return count
    return max(0, count - used)

def client_rows(facts, now):
    """A table of clients for people."""
    rows = [('CLIENT', 'ALLOW', 'CODE', 'PAPER', 'KEY', 'EXPIRES', 'LAST KNOCK')]
    for name, fact in facts.items():
        last = 'never'
        if fact['last']:
            last = duration((now - fact['last']) // 1000) + ' ago'
        if fact['source']:
            last += ' from ' + fact['source']
        expires = format_time(fact['expires'] or NEVER)
        code = 'yes' if fact['code'] else 'no'
        paper = str(fact['paper_left'])
        allow = (fact['allow'] or 'nothing') + at_places(fact['only'])
        rows.append((name, allow, code, paper, fact['key'], expires, last))
    return rows

LAST_GOOD = 'config: the last good one is in force, for the file is refused'

def is_hidden(report):
    """Does a daemon say that what should be hidden is?"""
    return bool(report) and not report['problem']

def headline(report):
    """The first line of `status`: is what should be hidden hidden?"""
    place = runtime_folder()
    if not report and os.path.isdir(place) and not os.access(place, os.X_OK):
        return 'only root may ask the daemon; type: sudo knockd.py status'
    if not report:
        return 'no daemon answers in %s: nobody gets in; start its service' % place
    if report['problem']:
        return 'NOT HIDDEN: ' + report['problem']
    hidden = ', '.join(report['hidden']) or 'nothing, as [server] hide says'
    return 'hidden: %s%s; knockd %s, since %s UTC' % (
        hidden, and_behind(report['behind']), report['version'],
        format_time(report['since']))

def remarks(report, now):
    """What `status` says besides, a line each: what keeps knocks from opening."""
    if not report:
        return []
    lines = []
    end, left = report['quarantine_until'], report['probation_left']
    if end:
        lines.append('quarantine: the ledger was lost; no knock counts before %s UTC, in '
                     '%s' % (format_time(end), duration((end - now) // 1000)))
    if left is not None:
        lines.append('probation: %s left for a first knock from outside' % duration(left))
    if report['clock']:
        lines.append('clock: ' + report['clock'])
    if report['config']['last_good']:
        lines.append(LAST_GOOD)
    return lines

def print_section(rows):
    """A table with a line of space above it, if there is more than its head."""
    if rows[1:]:
        print()
        print_table(rows)

def print_report(report, now):
    """What is open, what was refused, what was counted."""
    opened = [('OPEN', 'FROM', 'SERVICES', 'CLOSES IN')]
    for each in report['openings']:
        # Of one address, unless the client's section opens a network.
        source = re.sub('/(32|128)$', '', each['source'])
        services = ','.join(each['services']) + at_places(each['only'])
        opened.append((each['client'], source, services, duration(each['seconds_left'])))
    print_section(opened)
    refused = [('REFUSED', 'FROM', 'TIMES', 'LAST', 'WHY')]
    for each in report['refusals']:
        ago = duration((now - each['last']) // 1000) + ' ago'
        refused.append(
            (each['client'], each['source'], str(each['count']), ago, each['reason']))
    print_section(refused)
    told = ['%d %s' % (count, verdict)
            for verdict, count in sorted(report['counts'].items())]
    if told:
        print('\ncounted: ' + ', '.join(told))

def print_metrics(report):
    """The text form that Prometheus reads (exposition format 0.0.4)."""
    begun = set()

    def tell(metric, value, **labels):
        name = 'knockd_' + metric
        if metric not in begun:
            begun.add(metric)
            kind, meaning = METRICS[metric]
            print('# HELP %s %s\n# TYPE %s %s' % (name, meaning, name, kind))
        # JSON quotes as Prometheus does, since nothing here is beyond ASCII.
        told = ','.join('%s=%s' % (label, json.dumps(printable(text)))
                        for label, text in labels.items())
        if told:
            told = '{%s}' % told
        print('%s%s %d' % (name, told, value))
    tell('up', bool(report))
    tell('hidden', is_hidden(report))
    if not report:
        return
    tell('openings', len(report['openings']))
    tell('probation_seconds', report['probation_left'] or 0)
    tell('quarantine_end_seconds', (report['quarantine_until'] or 0) // 1000)
    tell('mended_total', report['mended'])
    for verdict, count in sorted(report['counts'].items()):
        tell('packets_total', count, verdict=verdict)
    for each in report['refusals']:
        tell('refused_total', each['count'], client=each['client'],
             source=each['source'], reason=each['reason'])
    for name, told in sorted(report['clients'].items()):
        tell('last_knock_seconds', told['last'] // 1000, client=name)

def command_list(args):
    config = read_config(args.config)
    facts = client_facts(config, ask_daemon(args.config, b'status'))
    if args.json:
        print(json.dumps(facts))
    else:
        print_table(client_rows(facts, moment().wall))

def command_status(args):
    """Exit 1 if what should be hidden is not, or nobody watches over it."""
    if args.json and args.metrics:
        raise KnockError('--json goes without --metrics', 2)
    report, now = ask_daemon(args.config, b'status'), moment().wall
    facts = {}
    try:
        config, problem = config_to_run(args.config)
        facts = client_facts(config, report)
        if problem:
            warned = problem.splitlines() + [LAST_GOOD]
        else:
            warned = preflight(config)
    except KnockError as error:
        warned = str(error).splitlines()
    if args.metrics:
        print_metrics(report)
    elif args.json:
        told = dict(report, alive=bool(report), clients=facts, warnings=warned)
        print(json.dumps(told))
    else:
        print(printable(headline(report)))
        # The last good config may be told by both.
        for line in dict.fromkeys(remarks(report, now) + warned):
            print('  ' + printable(line))
        print()
        print_table(client_rows(facts, now))
        if report:
            print_report(report, now)
    return 0 if is_hidden(report) else 1

# --- administration: one function a command ---------------------------------------------
# How long an old secret may be good beside the new one, in ms.
REKEY_TIME = 7 * 86400000
PAGE = (('carriers', 'ports'), ('open_for', '30s'))     # of a client for a web page

def signal_pipe():
    """A descriptor on which the numbers of caught signals arrive."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader

def own_path():
    """Where this script lies; None if Python read it from a pipe, whatever file of the
    current folder is called <stdin>."""
    path = globals().get('__file__', '<stdin>')
    if path.startswith('<') or not os.path.isfile(path):
        return None
    return os.path.abspath(path)

def version_text():
    """Which version this is, and the sum of its file as SHA256SUMS of a release has
    it."""
    path = own_path()
    if path is None:
        return 'knockd.py %s\nno file, so no SHA-256: it came out of a pipe' % __version__
    with open(path, 'rb') as file:
        digest = sha256(file.read()).hexdigest()
    return 'knockd.py %s\n%s  %s' % (__version__, digest, path)

def compiled_path(source):
    """The path of this script's compiled code in the runtime folder, made if it is not
    there; None where that cannot be. Its name is made of its content, so that one that is
    there is right, and no other version's daemon that starts at this moment gets ours."""
    import importlib.util
    import marshal
    magic = importlib.util.MAGIC_NUMBER
    digest = sha256(magic + source).hexdigest()
    path = os.path.join(runtime_folder(), 'knockd-%s.pyc' % digest[:16])
    try:
        os.makedirs(runtime_folder(), 0o700, exist_ok=True)
        if path_flaws(path, 0o022):
            return None
        if not os.path.exists(path):
            code = compile(source, own_path(), 'exec', optimize=2)
            # PEP 552: flags and a time or a hash, which whoever starts a file does not
            # read.
            rest = bytes(12 if sys.version_info >= (3, 7) else 8)
            replace_file(path, magic + rest + marshal.dumps(code))
    except OSError:
        return None
    return path

def go_small(args):
    """Goes on in a fresh interpreter, same process, from this script's compiled code.
    Compiling leaves 5 MB of garbage that CPython never gives back, argparse half of one.
    Where the code cannot be kept, the daemon runs as it is."""
    script = own_path()
    if __name__ != '__main__' or script is None or script.endswith('.pyc'):
        return
    with open(script, 'rb') as file:
        path = compiled_path(file.read())
    if path and sys.executable:
        # Who isolates it, as the service does, has no use for site.py either.
        flags = ['-I', '-S'] if sys.flags.isolated else []
        verbose = ['-v'] if args.verbose else []
        os.execv(sys.executable, [sys.executable] + flags + [
            path, '--config', args.config, 'run'] + verbose)

class Placing:
    """What a command writes and starts: shown only, put below another root, or taken
    back."""

    def __init__(self, args):
        self.root, self.dry_run = args.root, args.dry_run
        self.here = not (args.root or args.dry_run)     # on this very box
        # (path, bytes or None, mode) of each file that was written
        self.before = []

    def put(self, path, text, mode=0o600):
        """Writes a file and its folder. OSError."""
        if self.dry_run:
            print('write %s (mode %o)' % (path, mode))
            return
        path = self.root + path
        self.before.append((path,) + content_of(path))
        folder = os.path.dirname(path)
        os.makedirs(folder, 0o755 if mode & 4 else 0o700, exist_ok=True)
        replace_text(path, text)
        os.chmod(path, mode)

    def carry_out(self, line):
        """A command line for the shell, each of them a constant of ours. KnockError."""
        print('$ ' + line, flush=True)
        if self.here:
            run(['sh', '-c', line], seconds=600)

    def take_back(self):
        """Every file as it was before. OSError."""
        for path, data, mode in reversed(self.before):
            if data is not None:
                replace_file(path, data)
                os.chmod(path, mode)
            elif os.path.exists(path):
                os.unlink(path)
                with contextlib.suppress(OSError):      # not empty: it was there before
                    os.rmdir(os.path.dirname(path))

def content_of(path):
    """(bytes, mode) of a file; (None, 0) if it is not there."""
    try:
        with open(path, 'rb') as file:
            return file.read(), os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        return None, 0

def told_entries(args, names):
    """Those options of a command that are a config's keys, as entries of a section."""
    told = vars(args)
    entries = [(name, told[name].strip()) for name in names if told.get(name)]
    for name, text in entries:
        # As an option's text, and more so as a whole file, it could hold another section.
        if '\n' in text:
            raise KnockError('--%s: %r... has %d lines; one is wanted' % (
                name.replace('_', '-'), text[:20], len(text.splitlines())), 2)
    return entries

def client_entries(args):
    """A client's section out of the options of a command."""
    entries = [('secret', given_secret(None))]
    if args.page:
        entries += PAGE
    # What is told counts more.
    return entries + told_entries(args, CLIENT_KEYS)

def given_secret(source):
    """A new secret, or with `--secret -` the one on standard input: an argument list is
    for all to see. As a config has it."""
    if source is None:
        return encode_secret(os.urandom(32))
    if source != '-':
        raise KnockError('a secret comes by standard input only: --secret -', 2)
    return encode_secret(read_secret(sys.stdin.readline().strip()))

def first_config(args, name, hide, place, more=()):
    """The config; if there is none yet, the first one and an empty ledger: nothing is
    spent. A config that somebody began by hand gets its first client. more: entries of
    [server]."""
    path = os.path.abspath(args.config)
    if os.path.exists(place.root + path):
        config = read_config(place.root + path)
        refuse_idle(args, config)
        if config.clients or place.dry_run or not name:
            return config
        config = edit_config(place.root + path,
                             lambda known: new_client(args, name, known, place))
    elif not (name and hide):
        return read_config(path)        # says what is to be typed
    else:
        server = [('id', os.urandom(8).hex()), ('hide', hide)]
        server += told_entries(args, ('host', 'trust')) + list(more)
        text = edited('', 'server', server)
        text = edited(text, 'client ' + name, client_entries(args))
        config = parse_config(text, path)
        if place.here:
            # Nothing is half done where it could not run.
            try_rules(config)
        place_ledger(config, place)
        place.put(path, text)
    if not place.dry_run:
        print_line(config, config.clients[name], args)
    return config

def new_client(args, name, config, place):
    """The changes that make a client, the first one's ledger included: nothing is spent
    yet."""
    if not config.clients:
        place_ledger(config, place)
    changes = {'client ' + name: client_entries(args)}
    bare = [service for service in parse_services(args.allow or '')
            if not covered(service, config.hide)]
    if bare and agreed('%s: not hidden. Hide it too?' % format_services(bare)):
        changes['server'] = [('hide', format_services(config.hide + tuple(bare)))]
    return changes

def place_ledger(config, place):
    """An empty one, if there is none."""
    if not os.path.exists(place.root + config.ledger):
        place.put(config.ledger, Ledger(config.id).state_line())

# An option for a first config, and what changes the same in one that is there.
INSTEAD = (('hide', 'hide SERVICES'), ('host', 'set server host=HOST'),
           ('trust', 'set server trust=INTERFACES'), ('client', 'add NAME'))

def refuse_idle(args, config):
    """KnockError if an option for a first config says other than the one there."""
    told = vars(args)
    for option, advice in INSTEAD:
        text = told.get(option)
        if option == 'client':
            idle = text and config.clients and text not in config.clients
        else:
            idle = text and SERVER_KEYS[option].read(text) != getattr(config, option)
        if idle:
            raise KnockError('--%s has no effect, for %s is there already; type: '
                             'knockd.py %s' % (option, config.path, advice), 2)

def own_address():
    """The address that this box uses towards the world, or its name where there is no way
    to it. Connecting UDP sends nothing; the addresses are RFC 5737's and RFC 3849's."""
    found = socket.gethostname()
    # Of both, IPv4 counts: more clients have it.
    for family, far in ((socket.AF_INET6, '2001:db8::1'), (socket.AF_INET, '192.0.2.1')):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError), sock:
            sock.connect((far, 9))
            found = sock.getsockname()[0]
    return found

def address_of(text):
    """An ip_address; None if it is a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

def host_of(config):
    """(what clients call this box, a doubt or None)"""
    host = config.host or own_address()
    address, doubt = address_of(host), None
    if address is None:
        private = re.fullmatch(r'[^.]+|.*\.(local|lan|home|internal|arpa)', host)
    else:
        private = not address.is_global
        if address.version == 6 and not config.host:
            doubt = 'an IPv6 address, which clients that have only IPv4 cannot reach'
    if private:
        doubt = 'not known outside this network'
    elif address is None and not config.host:
        doubt = 'only a name, for this box has no way to the world yet'
    return host, doubt

def client_line(config, client, via):
    """knock://NAME:SECRET@HOST[:PORT]?id=SERVERID[&via=udp][&open=tcp/22,...][&once=1]"""
    host = host_of(config)[0].replace('%', '%25')
    if ':' in host:
        host = '[%s]' % host
    if config.port:
        host += ':%d' % config.port
    query = ['id=' + config.id]
    if via != 'udp':
        query.append('via=' + via)
    if client.default:
        query.append('open=' + format_services(client.default))
    if client.once:
        query.append('once=1')
    secret = encode_secret(client.secret)
    return 'knock://%s:%s@%s?%s' % (client.name, secret, host, '&'.join(query))

def phone_line(config, client):
    """What the phone of a client with codes gets (Google Authenticator's Key Uri)."""
    secret = encode_secret(client.keys['code'][:20])
    return ('otpauth://totp/knock:%s@%s?secret=%s&issuer=knock&algorithm=SHA1&digits=8'
            '&period=30' % (client.name, config.host or config.id, secret))

def print_line(config, client, args):
    """A client's lines, on standard output; what is doubtful about them, beside it."""
    lines = [client_line(config, client, args.via or client.carriers[0])]
    if client.code:
        lines.append(phone_line(config, client))
    for line in lines:
        print(line, flush=True)
    host, doubt = host_of(config)
    if doubt:
        note('%s is %s; clients elsewhere need another: knockd.py set server host=HOST'
             % (host, doubt))
    tell_flaws(config, client)
    # Last: where there is no qrencode, all else is told.
    if args.qr:
        for line in lines:
            # By its input: every user can read an argument list.
            print(run(['qrencode', '-t', 'ANSIUTF8'], line))

def tell_flaws(config, client):
    """What keeps it from opening anything."""
    for warning in client_warnings(config, client, moment().wall):
        complaint = Complaint('client ' + client.name, *warning)
        note(complaint_line(config.path, complaint))

def agreed(question):
    """Asks whoever sits at the terminal; no if nobody does."""
    if not os.isatty(0):
        return False
    print(question + ' [y/N] ', end='', file=sys.stderr, flush=True)
    return os.read(0, 100).strip().lower() in (b'y', b'yes')

def edit_config(path, plan):
    """Writes the config as plan(config) says: {section: its new entries, or None: it
    goes}. Only what it says changes. Under a lock, and from a file read there, so that of
    two edits side by side none is lost. Returns the new Config; KnockError."""
    read_config(path)                   # or it is told that the lock's folder is missing
    with locked(path):
        # Read here: of before the lock it would bring back what another edit took out.
        config, text = read_config(path), read_file(path)
        for section, entries in plan(config).items():
            if entries != []:
                text = edited(text, section, entries or ())
        write_config(path, text)
    return taken(path)

def write_config(path, text):
    """Puts the text in the config's place if it is good."""
    parse_config(text, path)
    replace_text(os.path.realpath(path), text)

def taken(path):
    """The new Config; says so if the daemon did not take it."""
    report = ask_daemon(path, b'reload')
    problem = (report.get('config') or {}).get('problem')
    if problem:
        note('the daemon goes on with the config of before: ' + problem)
    tell_quarantine(report)
    config = read_config(path)
    # As the daemon would do.
    if not report and os.path.exists(beside(config, GOOD_NAME)):
        note('no daemon answers, so nothing changes until one is started: what was '
             'hidden stays hidden; to end that: knockd.py uninstall')
        ConfigFile(path).keep(config)
    return config

def tell_quarantine(report):
    """Or whoever knocks now would look for another reason."""
    if report.get('quarantine_until'):
        note('the ledger was lost; no knock counts before %s UTC'
             % format_time(report['quarantine_until']))

def find_client(config, name):
    if name not in config.clients:
        raise KnockError('there is no client %r; there are: %s' % (
            name, ', '.join(config.clients) or 'none'))
    return config.clients[name]

def command_run(args):
    # One that is there and broken is no reason to stop: the last good one rules then.
    told = [vars(args)[option] for option, _ in INSTEAD]
    if any(told) or not os.path.exists(args.config):
        first_config(args, args.client, args.hide, Placing(args))
    go_small(args)
    run_daemon(args.config, args.verbose)

def run_daemon(path, verbose):
    """Until it is told to stop. KnockError if it cannot begin."""
    # `ps`, `pgrep` and the journal shall say knockd, not python3.
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w') as file:
        file.write('knockd')
    config, problem = config_to_run(path)
    for warning in preflight(config):
        log('check: ' + warning, WARNING)
    Daemon(config, problem, verbose).loop(signal_pipe())

def command_check(args):
    """Exit 2 with errors; --strict makes an error of every warning."""
    config, problem = config_to_run(args.config)
    if problem:
        note(LAST_GOOD)
        raise KnockError(problem, 2)
    warned = preflight(config)
    for warning in warned:
        print('warning: ' + printable(warning))
    try_rules(config)
    if warned and args.strict:
        raise KnockError('%d warnings' % len(warned), 2)
    print('configuration OK')

def show_rules(argv, text):
    """What would be given to a command on its standard input."""
    print('# %s\n%s' % (' '.join(argv), text), end='')

def command_rules(args):
    for argv, text in rules_of(read_config(args.config)):
        if argv == NFT_COMMAND:
            print(text, end='')
        else:
            show_rules(argv, text)

def command_add(args):
    """A client that is there already, with the secret that is told, is no error."""
    known = []
    if args.page and args.qr:
        raise KnockError('no page fits into a QR code; copy the file to the phone. For '
                         'the line alone type later: knockd.py show %s --qr' % args.name,
                         2)
    args.secret = given_secret(args.secret)
    if not os.path.exists(args.config):
        first_config(args, args.name, args.allow, Placing(args))
        return

    def plan(config):
        refuse_idle(args, config)
        known.extend(config.clients)
        if args.name not in known:
            return new_client(args, args.name, config, Placing(args))
        there = section_of(config, args.name)
        there['secret'] = encode_secret(config.clients[args.name].secret)
        if dict(client_entries(args)).items() <= there.items():
            return {}
        raise KnockError('there is a client %s already; change it with: knockd.py set, '
                         'rekey or remove' % args.name)
    config = edit_config(args.config, plan)
    if args.name in known:
        print('unchanged')
    if args.qr or args.name not in known:
        print_line(config, config.clients[args.name], args)

def section_of(config, name):
    """The texts of a client's section: {key: text}."""
    return ini_sections(read_file(config.path), config.path)['client ' + name]

def command_set(args):
    """NAME is a client, or `server` where no client is called so; an empty value takes a
    key out."""
    entries = []
    for pair in args.pairs:
        key, equals, value = pair.partition('=')
        if 'secret' in key:
            raise KnockError('a new secret is made by: knockd.py rekey NAME', 2)
        if not (key.strip() and equals):
            raise KnockError('%r is not KEY=VALUE, as open_for=5m' % pair, 2)
        entries.append((key.strip(), value.strip() or None))

    def plan(config):
        if args.name == 'server' and args.name not in config.clients:
            return {'server': entries}
        find_client(config, args.name)
        return {'client ' + args.name: entries}
    config = edit_config(args.config, plan)
    print('set %s: %s' % (args.name, ', '.join(args.pairs)))
    if args.name in config.clients:
        tell_flaws(config, config.clients[args.name])

def command_rename(args):
    """Key, ledger and line stay: a name is a word for people."""
    path = args.config
    with locked(path):
        config, text = read_config(path), read_file(path)
        find_client(config, args.name)
        if args.new in config.clients:
            raise KnockError('there is a client %s already' % args.new)
        header = re.compile(r'(?m)^(\s*)\[client %s\]' % re.escape(args.name))
        write_config(path, header.sub(r'\1[client %s]' % args.new, text))
    taken(path)
    print('renamed; the line of before still works')

def secret_in_use(config, client):
    """The one with which the client knocks: as long as a new one was not used, the one
    before. Who types rekey twice must not lose that."""
    used = client.fingerprint in known_ledger(config).keys
    if client.old is None or used or moment().wall >= client.old_until:
        return client.secret
    return client.old_secret

def command_rekey(args):
    """The old secret is good until the new one is first used, a week at most."""
    secret, until = given_secret(args.secret), moment().wall + REKEY_TIME
    before = find_client(read_config(args.config), args.name)
    if secret == encode_secret(before.secret):
        # Whoever provisions a fleet says it again: the old one keeps its week.
        print('unchanged')
        return

    def plan(config):
        used = secret_in_use(config, find_client(config, args.name))
        # A sheet is printed from a key: the new one needs another.
        return {'client ' + args.name: [
            ('secret', secret), ('old_secret', encode_secret(used)),
            ('old_until', format_time(until)), ('paper', None)]}
    config = edit_config(args.config, plan)
    print_line(config, config.clients[args.name], args)
    note('the old line is good until this one is first used, or until %s UTC'
         % format_time(until))

def command_hide(args):
    def plan(config):
        # Each once, in this order.
        services = parse_services('%s,%s' % (format_services(config.hide), args.services))
        return {'server': [('hide', format_services(services))]}
    config = edit_config(args.config, plan)
    print('hidden: ' + format_services(config.hide))
    open_to = [name for name, client in config.clients.items()
               if client.allow == config.hide]
    if open_to:
        print('clients without a list of their own may open all of it: %s'
              % ', '.join(open_to))

def command_unhide(args):
    """Takes services out of [server] hide, and out of the clients' lists."""
    services = parse_services(args.services)

    def plan(config):
        for service in services:
            if service not in config.hide:
                raise KnockError('%s is not one of hide: %s' % (
                    format_service(service), format_services(config.hide)))
        left = [service for service in config.hide if service not in services]
        changes = {'server': [('hide', format_services(left))]}
        for name in config.clients:
            changes['client ' + name] = narrowed(section_of(config, name), left)
        return changes
    config = edit_config(args.config, plan)
    print('hidden: ' + (format_services(config.hide) or 'nothing'))

def narrowed(section, left):
    """A client's lists, without what is no longer hidden, as entries."""
    entries = []
    for key in ('allow', 'default'):
        if key in section:
            kept = [service for service in parse_services(section[key])
                    if covered(service, left)]
            entries.append((key, format_services(kept)))
    return entries

def command_remove(args):
    def plan(config):
        find_client(config, args.name)
        return {'client ' + args.name: None}
    edit_config(args.config, plan)
    print('removed %s' % args.name)

def command_show(args):
    config = read_config(args.config)
    client = find_client(config, args.name)
    carriers = usable_carriers(config, client)
    if args.via and args.via not in carriers:
        raise KnockError('%s cannot knock by %s, but by: %s' % (
            client.name, args.via, ', '.join(carriers)), 2)
    print_line(config, client, args)

def command_paper(args):
    """A new sheet; its number is this second, so a ledger that was lost since makes it
    void."""
    def plan(config):
        sheet = next_sheet(config, find_client(config, args.name))
        return {'client ' + args.name: [('paper', '%d:%d' % (sheet, args.number))]}
    config = edit_config(args.config, plan)
    client = config.clients[args.name]
    sheet, count = client.paper
    print('Paper knocks of %s for %s, sheet %d. Touch the six TCP ports of a line in '
          'this order,\nwithin 20 s, each line once, from the top; a line voids those '
          'above it.' % (client.name, host_of(config)[0], sheet))
    hidden = ports_of(config.hide, TCP)
    for number in range(1, count + 1):
        ports = paper_ports(client.keys, sheet, number)
        # A hidden port counts for no sequence.
        if hidden.isdisjoint(ports):
            print('%3d  %s' % (number, ' '.join('%5d' % port for port in ports)))

def next_sheet(config, client):
    """A number above every one of before, and above the floor of the ledger."""
    before = client.paper[0] if client.paper else 0
    floor = known_ledger(config).floor // 1000
    return max(int(time.time()), floor + 1, before + 1)

# --- watch: why a knock opens nothing -------------------------------------------------
# It hears for itself what the daemon hears and what the daemon's filter drops, and judges
# it by the same rules, with a copy of the ledger. Only the daemon can open.
WATCH_TIME = 60                 # seconds
# So often a second it looks, at so many packets of each socket; the kernel counts the
# rest.
LOOKS, LOOK_AT_ONCE = 10, 20
LOOK_BUFFER = 65536             # bytes: what waits is never old

STRANGERS_TOLD = 40
# Tags a day back and ahead; a shorter time where more than 50 clients share them.
DAY_STEPS, FAR_TAGS = 2880, 288000
FOLLOWED, PORTS_KEPT = 1024, 64
PAUSE = 5000                    # ms of silence after which a sequence has stopped
FRAGMENT = 44                   # IANA: IPv6's next header
WATCH_TABLE = 'table inet knockd-watch\ndelete table inet knockd-watch\n'
TRACE_CHAIN = '''table inet knockd-watch {
    chain trace { type filter hook prerouting priority -400; }
}
'''
TRACE_RULE = ('add rule inet knockd-watch trace %s saddr %s %s dport %d-%d %s '
              'limit rate 5/second meta nftrace set 1\n')
BEGINS = {TCP: 'tcp flags & (syn | ack) == syn', UDP: ''}
LD_LENGTH = 0x80

# kind: a word; client: its name, '' for nobody; text: the sentence; knock: a good one, or
# None.
Finding = collections.namedtuple('Finding', 'kind client text knock')
# What a packet shows even if it was cut. port: None of a ping.
Glimpse = collections.namedtuple('Glimpse', 'source port tag')

# What of a knock is told, by kind of a Finding; %s or %d: what was found.
SENTENCES = {
    'stranger': 'no client of this server made it: other traffic, another line or server '
                'id, a secret from before `rekey`, or a clock off by more than a day',
    'cut': 'came in fragments, or was cut on its way: knock with less, or --via ports',
    'damaged': 'was changed or cut on its way, or somebody repeats its tag%s',
    CLOCK: 'made at %s, your clocks differ by %s: set both',
    'port': 'came to port %d, the config says port = %d',
    'carrier': 'carrier %s is off: see `carriers` in [server]',
    'disorder': 'all six ports came, in another order or too slowly',
    'part': '%d of six ports of its sequence came, not number %s: a filter on the way? '
            'knock again',
    'source': 'it names the source %s, and came from %s: NAT in between? --source none',
    'silence': '''No knock came. Most likely UDP is blocked on the way:
try knock.py --via ports. Behind a NAT or a provider's filter, forward a UDP port to
this box and write it in the config as: port = 40000''',
}
# What to do about a refusal.
ADVICE = {
    CLOCK: 'set both clocks',
    EXPIRED: 'see `expires` in its section',
    SOURCE: 'it must name where it comes from: knock.py --source ADDRESS',
    SCOPE: 'see its section of the config',
    SIGNATURE: 'its section names an ssh_key: knock.py --sign KEYFILE',
    REPLAY: 'a knock is good once; somebody repeats it',
    'void': 'take the next line of the newest sheet',
    PACE: 'it knocks too often'}

# By protocol and length alone: fragments and what was cut pass.
SHORTEST = 20 + TRANSPORT + TAG_SIZE + NONCE_SIZE
ANY_LENGTH = [
    'version 4',
    (LD_BYTE, 9),                       # A = protocol
    (JGE, 'protocol', 0, 0),            # always
    'version 6',
    (LD_BYTE, 6),                       # A = next header
    'protocol',
    (JEQ, 'length', 0, UDP),
    (JEQ, 'length', 0, ECHO_PROTOCOL[4]),
    (JEQ, 'length', 0, ECHO_PROTOCOL[6]),
    (JEQ, 0, 'drop', FRAGMENT),
    'length',
    (LD_LENGTH, 0),
    (JGE, 0, 'drop', SHORTEST),
    (JGT, 'drop', 0, 60 + TRANSPORT + DATAGRAM_LIMIT),
    BPF_PASS,
    'drop',
    BPF_DROP,
]

def finding(kind, client, *found):
    """A Finding by its sentence."""
    return Finding(kind, client, SENTENCES[kind] % found, None)

def glimpse(frame):
    """A Glimpse, or None where no tag can be seen."""
    # Frames that came before the filter was attached may be anything.
    if len(frame) < SHORTEST or frame[0] >> 4 not in PARSERS:
        return None
    version = frame[0] >> 4
    protocol, start, source = frame[9], (frame[0] & 15) * 4, frame[12:16]
    if version == 6:
        protocol, start, source = frame[6], 40, frame[8:24]
        if protocol == FRAGMENT:
            protocol, start = frame[40], 48
    body = frame[start:]
    tag = body[TRANSPORT:TRANSPORT + TAG_SIZE]
    port = None
    if protocol == UDP:
        port = int.from_bytes(body[2:4], 'big')
    elif body[:2] != ECHO_REQUEST[version]:
        return None
    return Glimpse(ipaddress.ip_address(source), port, tag)

def checksum_holds(packet):
    """RFC 768: the sum over pseudo header and body. 0: none was made."""
    body = packet.body
    if body[6:8] == b'\0\0':
        return True
    head = packet.source + packet.destination + struct.pack('>II', len(body), UDP)
    data = head + body + b'\0' * (len(body) % 2)
    return sum(struct.unpack('>%dH' % (len(data) // 2), data)) % 0xffff == 0

def far_tags(clients, now):
    """{tag: (Client, step)} of a day back and ahead."""
    reach = min(DAY_STEPS, FAR_TAGS // 2 // max(1, len(clients)))
    tags = {}
    for step in range(max(0, step_of(now) - reach), step_of(now) + reach + 1):
        for client in clients:
            tags[tag_at(client.keys, step)] = client, step
    return tags

def spelled(time):
    """2 h 3 min: a distance in ms, to the minute where it is long."""
    seconds = abs(time) // 1000
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return '%d h %d min' % (hours, minutes)
    return duration(seconds)

def time_of_day(when):
    # Of the day alone: on a box of 32 bits no time goes beyond 2038.
    return time.strftime('%H:%M:%S UTC', time.gmtime(when // 1000 % 86400))

class Watcher:
    """Packets in, Findings out; it touches nothing of the world."""

    def __init__(self, config, ledger, far):
        self.config = config
        # With every carrier, also those that are off: whoever uses one shall be told.
        self.state = State(config._replace(carriers=CARRIERS), ledger)
        self.keys = Keyring(self.state, Codes())
        self.far = far
        self.touched = collections.OrderedDict()    # {source: (ports, ms)}

    def hear_datagram(self, frame, seen, now):
        """A Finding or None. seen: the frame's Glimpse."""
        tag = seen.tag
        client, step = self.state.tags.get(tag) or self.far.get(tag) or (None, None)
        packet = parse_packet(frame, DATAGRAMS, None)
        if client is None:
            # Or each ping and each fragment of other traffic would be told as a knock.
            if packet is None or seen.port is None:
                return None
            return finding('stranger', '')
        name = client.name
        if packet is None:
            return finding('cut', name)
        plain = unseal(client.keys, packet.payload)
        if plain is None:
            remark = ''
            if seen.port is not None and not checksum_holds(parse_ip(frame)):
                remark = '; its checksum is wrong'
            return finding('damaged', name, remark)
        if tag not in self.state.tags:
            # Of a request that cannot be read, its step still tells the time.
            time = step * STEP
            with contextlib.suppress(KnockError):
                time = decode_plain(plain).time
            return finding(CLOCK, name, time_of_day(time), spelled(now.wall - time))
        port = self.config.port
        if seen.port is not None and port not in (None, seen.port):
            return finding('port', name, seen.port, port)
        return self.judged(name, packet, now)

    def judged(self, name, packet, now):
        """Of what is authentic, or a whole sequence."""
        carrier = packet.carrier
        if carrier not in self.config.carriers + ('paper',):
            return finding('carrier', name, carrier)
        decision = judge(packet, now, self.state)
        knock = decision.knock
        if knock is None or decision.verdict == 'copy':
            return None
        if decision.verdict == 'refused':
            return Finding(decision.kind, name, refusal_text(decision), None)
        # In our copy alone: without it a replay would be called good.
        self.state.ledger.record(knock.client.fingerprint, knock.knock_id,
                                 knock.request.time, self.config.window, knock.paper)
        self.state.copies.remember(knock, packet.source, now.mono)
        return Finding(decision.verdict, name, 'is good', knock)

    def hear_syn(self, syn, now):
        """Findings of what this SYN completes."""
        packets = self.keys.packets_of(syn, now)
        ports, _ = self.touched.pop(syn.source, ((), 0))
        # Or five seconds later a sequence that finished would be told as a part of one.
        if not packets:
            if syn.port not in ports:
                ports += (syn.port,)
            self.touched[syn.source] = ports[-PORTS_KEPT:], now.mono
        if len(self.touched) > FOLLOWED:
            self.touched.popitem(last=False)
        return [self.judged(packet.payload.client.name, packet, now)
                for packet in packets]

    def stopped(self, now):
        """(source, Finding) of the source that has been silent for longest, or None."""
        if not self.touched:
            return None
        source = next(iter(self.touched))
        ports, last = self.touched[source]
        if now.mono - last < PAUSE:
            return None
        del self.touched[source]
        for table in self.keys.sequences.tables:
            for row in table.values():
                for credential in row:
                    found = part_of(credential, ports)
                    if found:
                        return source, found
        return None

def part_of(credential, ports):
    """A Finding where three or more ports of a sequence came and it did not finish."""
    wanted = credential.ports
    missing = [place for place, port in enumerate(wanted, 1) if port not in ports]
    if len(missing) > 3:
        return None
    name = credential.client.name
    if not missing:
        return finding('disorder', name)
    # By number alone: with the ports, whoever reads along could finish the sequence.
    places = ' and '.join(map(str, missing))
    return finding('part', name, len(wanted) - len(missing), places)

def refusal_text(decision):
    """The judge's reason, and what to do."""
    knock = decision.knock
    named = knock.request and knock.request.source
    if decision.kind == SOURCE and named is not None:
        return SENTENCES['source'] % (named, knock.source)
    if 'newer secret' in decision.reason:
        return 'made with the secret from before `rekey`: give it the new line'
    return 'refused: %s; %s' % (decision.reason, ADVICE.get(decision.kind, 'see the log'))

def is_deaf(service):
    """Does nothing of this box listen there? As /proc/net/tcp and udp say."""
    word = PROTOCOL_NAMES[service.proto]
    listens = {TCP: '0A', UDP: '07'}[service.proto]
    for name in (word, word + '6'):
        for line in read_if_there('/proc/net/' + name).splitlines():
            _, local, _, state, *_ = line.split()
            port = local.rpartition(':')[2]
            if state == listens and service.low <= int(port, 16) <= service.high:
                return False
    return True

# trace id, a number, family table chain; then either "rule", its text and (verdict drop),
# or "policy drop".
TRACED_DROP = re.compile(
    r'trace id \S+ (\S+ \S+ \S+) (?:rule (.*) \(verdict drop\)|policy drop)')

def dropped_by(line):
    """What nft's trace says of a packet that ends in a drop: chain and rule, or None."""
    found = TRACED_DROP.match(line)
    if not found or found.group(1).startswith('inet knockd '):
        return None
    chain, rule = found.groups()
    return 'chain %s drops its connection: %s' % (chain, rule or 'policy')

class Trace:
    """nft's trace of what was let in, by a table of its own which does nothing else and
    goes with us."""

    def __init__(self):
        self.process = None
        self.rules = set()

    def follow(self, knock):
        family = {4: 'ip', 6: 'ip6'}[knock.source.version]
        for service in knock.services:
            self.rules.add(TRACE_RULE % (
                family, knock.source, PROTOCOL_NAMES[service.proto], service.low,
                service.high, BEGINS[service.proto]))
        # Where there is no nft, or the kernel cannot trace, all else is told.
        with contextlib.suppress(KnockError):
            if self.process is None:
                self.process = start(['nft', 'monitor', 'trace'])
                # Else each look would wait until nft has something to say.
                os.set_blocking(self.process.stdout.fileno(), False)
            run(NFT_COMMAND, WATCH_TABLE + TRACE_CHAIN + ''.join(self.rules))

    def drops(self):
        """What it said since the last time."""
        if self.process is None:
            return []
        text = self.process.stdout.read(65536) or b''
        return filter(None, map(dropped_by, text.decode('ascii', 'replace').splitlines()))

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        # Also where none was traced: one that was killed has left its table, and its
        # rules would trace on.
        with contextlib.suppress(KnockError):
            run(NFT_COMMAND, WATCH_TABLE)

class Watch:
    """What `watch` hears and prints."""

    def __init__(self, watcher, name):
        self.watcher = watcher
        self.name = name        # of the client alone that counts, or None
        self.datagrams = Capture(1)
        self.syns = Capture(1)
        self.trace = Trace()
        self.kinds = collections.Counter()
        self.told = set()       # keys of the lines that were printed
        self.waiting = []       # (ms, Knock): when to ask the daemon what came of it
        self.unseen = 0         # packets that nobody looked at

    def listen(self):
        config = self.watcher.config
        if config.behind:
            self.bridges = overhear_bridges(config.trust)
        self.watcher.keys.adopt(moment())
        begin = packets_for(config)
        for_datagrams = link(begin + UNTAGGED + WHICH_VERSION + ANY_LENGTH)
        for_syns = syn_filter(KNOCKED_PORTS['ports'], None, begin)
        self.datagrams.load([], lambda *_: for_datagrams)
        self.syns.load([], lambda *_: for_syns)
        for sock in self.datagrams.taps + self.syns.taps:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOOK_BUFFER)

    def look(self):
        """Once: what waits in the sockets, what the daemon did, what nft says."""
        now = moment()
        if self.watcher.keys.turned(now):
            self.watcher.keys.turn(now)
        for frame, interface in self.some_frames(self.datagrams):
            seen = glimpse(frame)
            if seen is not None:
                found = self.watcher.hear_datagram(frame, seen, now)
                self.explain(found, seen.source, seen.port, interface, now)
        for frame, interface in self.some_frames(self.syns):
            syn = outside_syn(frame, interface, self.watcher.config)
            if syn is not None:
                for found in self.watcher.hear_syn(syn, now):
                    self.explain(found, syn.source, syn.port, interface, now)
        stopped = self.watcher.stopped(now)
        if stopped:
            self.explain(stopped[1], stopped[0], None, 'ports', now)
        for drop in self.trace.drops():
            self.say('firewall ' + drop, drop)
        self.ask_daemon(now)
        self.unseen += self.datagrams.drops() + self.syns.drops()

    def some_frames(self, capture):
        """No more than what a look can afford."""
        for sock in capture.taps:
            yield from itertools.islice(capture.frames(sock), LOOK_AT_ONCE)

    def explain(self, found, source, port, way, now):
        """One line for each client, reason and source; the rest is counted."""
        if found is None:
            return
        kind, name, text, knock = found
        # A stranger may be who is looked for, with an old line.
        if name and self.name not in (None, name):
            return
        self.kinds[kind] += 1
        if kind == 'stranger' and self.kinds[kind] > STRANGERS_TOLD:
            return
        words = [name + ': its knock' if name else 'a datagram']
        words.append('from %s by %s' % (source, way))
        if port is not None:
            words.append('to port %d' % port)
        key = kind, name, source, knock and knock.knock_id
        self.say(key, ' '.join(words + [text]))
        if knock and knock.request.op == 'open':
            self.trace.follow(knock)
            # Asked at once, a daemon that is still opening would seem to have refused.
            self.waiting.append((now.mono + 700, knock))

    def say(self, key, line):
        if key not in self.told:
            self.told.add(key)
            print('%s %s' % (time_of_day(moment().wall), printable(line)), flush=True)

    def ask_daemon(self, now):
        """Did it open what is good, and does anybody listen there?"""
        while self.waiting and self.waiting[0][0] <= now.mono:
            _, knock = self.waiting.pop(0)
            name = knock.client.name
            report = asked(status_path(self.watcher.config), b'status')
            self.say(knock.knock_id, '%s: %s' % (name, outcome(knock, report)))
            if self.watcher.config.behind:
                continue        # it may listen on another host
            for service in filter(is_deaf, knock.services):
                self.say((name, service), '%s: nothing listens on %s of this box' % (
                    name, format_service(service)))

    def end(self):
        """What most likely is wrong."""
        if not self.kinds:
            print(SENTENCES['silence'])
        elif list(self.kinds) == ['stranger']:
            print('%d datagrams, but no client of this server knocked.'
                  % self.kinds['stranger'])
        if self.unseen:
            print('%d packets came too fast to be looked at' % self.unseen)

def outcome(knock, report):
    """What the daemon made of a good knock. report: its status, {} if none is alive."""
    if not report:
        return 'no daemon runs, so nothing opens: start knockd'
    for row in report['openings']:
        if row['client'] == knock.client.name and \
                knock.source in ipaddress.ip_network(row['source']):
            return 'honoured, open for %s s' % row['seconds_left']
    rows = [row for row in report['refusals'] if row['client'] == knock.client.name]
    if rows:
        newest = max(rows, key=operator.itemgetter('last'))
        return 'the daemon refused it: %s' % newest['reason']
    return 'the daemon did not open: %s' % (report['problem'] or 'see its log')

def command_watch(args):
    """Hears for a minute, or until Ctrl-C, and says why nothing opens."""
    if os.geteuid():
        raise KnockError('watch needs root')
    config, problem = config_to_run(args.config)
    if problem:
        print(printable('The config is broken; the last good one rules: ' + problem))
    owners = key_owners(config)
    if args.client:
        find_client(config, args.client)
        owners = [owner for owner in owners if owner.name == args.client]
    now = moment()
    if len(owners) > FAR_TAGS // 2 // DAY_STEPS:
        print('%d clients: a clock is looked for less than a day off; name one client '
              'for a whole day' % len(owners))
    watch = Watch(Watcher(config, known_ledger(config), far_tags(owners, now.wall)),
                  args.client)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        watch.listen()
        print('Watching for %d s; knock now. Ctrl-C ends it.' % WATCH_TIME, flush=True)
        end = moment().mono + WATCH_TIME * 1000
        while moment().mono < end:
            watch.look()
            time.sleep(1 / LOOKS)
    except KeyboardInterrupt:
        pass
    finally:
        watch.trace.end()
    watch.end()

# --- selftest: what the daemon needs, tried in namespaces that are thrown away ----------
# In the environment: the network namespace that selftest came from.
LEFT = 'KNOCKD_LEFT'

def command_selftest(args):
    """What it does in namespaces of its own ends with it, and it starts nothing that
    lives on."""
    config = parse_config('[server]\nid = none\nhide = tcp/22', '/etc/knockd/knockd.ini')
    if os.path.exists(args.config):
        config = read_config(args.config)
    flaws = 0
    for what, needs, attempt, *arguments in attempts(args, config):
        try:
            said = attempt(*arguments) or 'ok'
        except (KnockError, OSError, ValueError, LookupError) as error:
            said = str(error)
            if needs:
                said += '; it needs ' + needs
            flaws += 1
        said = '; '.join(said.splitlines())
        print('%-28s %s' % (what, printable(said)), flush=True)
    if flaws:
        raise KnockError('%d of these must be mended' % flaws)

def attempts(args, config):
    """(what, its needs, a function that raises or returns a remark, its arguments)"""
    came_from = os.environ.get(LEFT)
    # It began in another one: here nobody else is.
    alone = came_from not in (None, os.readlink('/proc/self/ns/net'))
    yield ('namespaces', '', isolate, alone)
    yield ('kernel filter', '', try_filter)
    if os.path.exists(args.config):
        yield ('config', '', config_remarks, config)
        yield ('ledger', '', ledger_remarks, os.path.realpath(config.ledger))
        yield ('clock', '', clock_remarks, config)
    if config.firewall != 'iptables' and find_program('nft'):
        for what, how, needs in NFT_FEATURES:
            yield (what, needs, run, NFT_TRY, NFT_TRIAL % how)
    elif alone:
        for what, how, needs in IPTABLES_FEATURES:
            yield (what, needs, run, how.split())
    if alone:
        yield ('a real knock', '', try_knock, config)

def try_filter():
    program = datagram_filter(CARRIERS, None, [1])
    Capture(1).load([b'12345678'], lambda *_: program)

def config_remarks(config):
    warned = preflight(config)
    return 'ok, but: ' + '; '.join(warned) if warned else ''

def clock_remarks(config):
    doubt = clock_doubt(config, known_ledger(config), moment().wall)
    if doubt:
        raise KnockError(doubt)

def isolate(alone):
    """Begins again, in this process, with a network and mounts of its own; there it
    covers the runtime folder. Returns why it cannot: the daemon needs none of that."""
    mount = ['mount', '-t', 'tmpfs', 'tmpfs', os.path.dirname(runtime_folder())]
    if alone:
        run(mount)
        return None
    unshare = ['unshare', '-nm' if os.geteuid() == 0 else '-Urnm']
    try:
        # Tried before: a refusal can be told of now, and not after execv().
        run(unshare + mount)
        if own_path() is None:
            raise KnockError('a script out of a pipe cannot begin again; save it first')
    except KnockError as error:
        return 'ok, but no knock is tried: %s' % error
    # The copy that begins again must know that it is alone.
    os.environ[LEFT] = os.readlink('/proc/self/ns/net')
    return os.execv(find_program('unshare'),
                    unshare + [sys.executable, own_path()] + sys.argv[1:])

def ledger_remarks(path):
    """Looks at its file system, of those mounted above it the last, and touches
    nothing."""
    # In a chroot no line may be above it.
    place, kind = '/', ''
    for line in read_file('/proc/mounts').splitlines():
        words = line.split()
        if path.startswith(words[1].rstrip('/') + '/'):
            _, place, kind, *_ = words
    status, flaw = os.statvfs(place), None
    if kind in ('tmpfs', 'ramfs'):
        flaw = 'in memory'
    elif status.f_flag & os.ST_RDONLY:
        flaw = 'read-only'
    elif status.f_bavail < 33:
        flaw = 'full'
    if flaw:
        raise KnockError('%s is %s; write for example: ledger = /etc/knockd/ledger.json'
                         % (place, flaw))

def try_knock(config):
    """A daemon in a thread of this process, and a datagram to it over lo."""
    text = ('[server]\nid = me\nhide = tcp/22\nfirewall = %s\nanswer = %s\n[client me]\n'
            'secret = %s\n' % (config.firewall, config.answer, given_secret(None)))
    # A file of that name is not there: nothing reads it again.
    trial = parse_config(text, os.path.dirname(runtime_folder()) + '/selftest.ini')
    replace_text(trial.ledger, Ledger(trial.id).state_line())
    reader, writer = os.pipe()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        thread = threading.Thread(target=run_trial, args=(trial, reader), daemon=True)
        thread.start()
        path = status_path(trial)
        if patient(lambda: asked(path, b'status') or not thread.is_alive()):
            send_trial_knock(trial.clients['me'].keys)
            patient(lambda: 'open me ' in said.getvalue() or not thread.is_alive())
        os.write(writer, bytes([signal.SIGTERM]))
        thread.join(5)
    opened = re.search('open me .*ms', said.getvalue())
    if not opened:
        raise KnockError('opened nothing; the daemon says: ' + said.getvalue())

def run_trial(config, signals):
    try:
        Daemon(config).loop(signals)
    except (KnockError, OSError) as error:
        log(str(error))

def send_trial_knock(keys):
    """A datagram as knock.py makes it, for the client's default."""
    now, nonce = moment().wall, os.urandom(NONCE_SIZE)
    plain = PLAIN.pack(PLAIN_VERSION, 1, now, bytes(16), 0)
    sealed = bytes(map(operator.xor, plain, keystream(keys['enc'], nonce, PLAIN.size)))
    body = tag_at(keys, step_of(now)) + nonce + sealed
    mac = hmac_sha256(keys['mac'], body)[:MAC_SIZE]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # SIOCSIFFLAGS of linux/sockios.h; IFF_UP.
        fcntl.ioctl(sock, 0x8914, struct.pack('@16sh14x', b'lo', 1))
        sock.sendto(body + mac, ('127.0.0.1', 40000))

# --- installer: the same on each init system, and out again -----------------------------
SCRIPT = '/usr/local/sbin/knockd.py'
OPENWRT_SCRIPT = '/usr/sbin/knockd.py'      # where PATH looks there
PYTHON = find_program('python3') or sys.executable
# Seconds until a service must be ready; slow boxes need 30.
READY_TIME = 60
# STATE stands for the ledger's folder. Each runs the guard first, and the daemon again
# for ever, with -I: whatever PYTHON* says.
SYSTEMD = '''[Unit]
Description=Hides services until an authentic knock arrives
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target
Wants=network-pre.target
StartLimitIntervalSec=0
[Service]
# iptables locks a file that it could not make in a read-only /run
ExecStartPre=-+/bin/sh -c 'command -v iptables >/dev/null || exit 0; >>/run/xtables.lock'
ExecStartPre=-/bin/sh STATE/guard
ExecStart=PYTHON -I SCRIPT run
ExecReload=/bin/sh -c 'kill -HUP $MAINPID'
SyslogIdentifier=knockd
Type=notify
WatchdogSec=90
Restart=always
RestartSec=1
RuntimeDirectory=knockd
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
UMask=0077
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
ProtectSystem=strict
ReadWritePaths=STATE -/run/xtables.lock
ProtectKernelTunables=yes
# A reset carries the mark of its question only if these say so
ReadWritePaths=-/proc/sys/net/ipv4/fwmark_reflect -/proc/sys/net/ipv6/fwmark_reflect
NoNewPrivileges=yes
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
LockPersonality=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
[Install]
WantedBy=multi-user.target
'''
PROCD = '''#!/bin/sh /etc/rc.common
# Hides services until an authentic knock arrives.

START=18
USE_PROCD=1

start_service() {
	# The rules need no Python: after an upgrade that took it the ports are hidden, too.
	sh STATE/guard
	[ -x PYTHON ] || logger -t knockd "no PYTHON: what is hidden stays hidden," \\
		"nobody can knock; install python3-light"
	# procd calls the log's lines as it calls the program.
	mkdir -p /var/run/knockd
	chmod 700 /var/run/knockd
	ln -sf PYTHON /var/run/knockd/knockd
	procd_open_instance
	procd_set_param command /var/run/knockd/knockd -I SCRIPT run
	procd_set_param respawn 3600 5 0
	procd_set_param stdout 1
	procd_set_param stderr 1
	procd_close_instance
}

reload_service() {
	procd_send_signal knockd
}
'''
# What sysupgrade keeps; this list itself, too, or the next upgrade would keep nothing.
KEEP = '''/etc/knockd/
/etc/init.d/knockd
/etc/rc.d/S18knockd
/lib/upgrade/keep.d/knockd
SCRIPT
'''
OPENRC = '''#!/sbin/openrc-run
supervisor=supervise-daemon respawn_max=0 respawn_delay=1
command=PYTHON command_args="-I SCRIPT run"
error_logger="logger -t knockd"
depend() { after localmount mountall; before net networking; }
start_pre() { sh STATE/guard || true; }
'''
# Debian's nftables flushes all rules as the box shuts down, when services still answer.
# So it stops no more under OpenRC, and under SysV once they have ended.
OPENRC_NFTABLES = 'rc_nftables_keyword="-shutdown"     # or what knockd hides is open\n'
SYSV_ORDER = '/etc/insserv/overrides/nftables'
SYSV_NFTABLES = '''### BEGIN INIT INFO
# Provides: nftables
# Required-Start: $local_fs $network
# Required-Stop: $local_fs
# X-Stop-After: sendsigs
# Default-Start: S
# Default-Stop: 0 1 6
### END INIT INFO
# Until sendsigs has ended the services, the rules must hide what knockd hides.
'''
# Runit's second stage starts all services side by side: hidden before that, in the first.
RUNIT_GUARD = '''#!/bin/sh
### BEGIN INIT INFO
# Provides: knockd-guard
# Required-Start: $local_fs
# Required-Stop:
# X-Start-Before: $network
# Default-Start: S
# Default-Stop:
### END INIT INFO
[ "$1" = start ] && sh STATE/guard
exit 0
'''
# Others' firewalls flush all as they load: hidden once more, before services start and
# the daemon is ready.
AGAIN = '''#!/bin/sh
### BEGIN INIT INFO
# Provides: knockd-again
# Required-Start: $local_fs
# Should-Start: nftables netfilter-persistent ufw
# Required-Stop:
# Default-Start: S
# Default-Stop:
### END INIT INFO
[ "$1" = start ] && sh STATE/guard
exit 0
'''
# svlogd is part of runit; a syslog may not be there.
RUNIT = {'/etc/sv/knockd/run':
         '#!/bin/sh\nexec 2>&1\nsh STATE/guard\nexec PYTHON -I SCRIPT run\n',
         '/etc/sv/knockd/log/run': '#!/bin/sh\numask 077\nmkdir -p /var/log/knockd\n'
         'exec svlogd -tt /var/log/knockd\n'}
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
setsid sh -c 'echo $$ >/run/knockd.pid
	while :; do PYTHON -I SCRIPT run; sleep 1; done 2>&1 |
	{ trap "" TERM; logger -t knockd; }' </dev/null >/dev/null 2>&1 &
'''
# For Debian's SysV and runit. Whatever is enabled or not, all scripts are put in order.
AGAIN_PATH = '/etc/init.d/knockd-again'
INSSERV = {AGAIN_PATH: AGAIN, SYSV_ORDER: SYSV_NFTABLES}
ENABLE, DISABLE = ('update-rc.d knockd-again defaults',
                   'update-rc.d -f knockd-again remove')
# evidence: paths that tell it; script, state: where those go; files: {path: text};
# starts, ends, forgets: commands, the last once the files are gone; log: what shows the
# daemon's last lines.
InitSystem = collections.namedtuple(
    'InitSystem', 'name evidence script state files starts ends forgets log')

def runit_in(folder, early, enable, forgets):
    """Runit, whose services are links in this folder. early: {path: text} of what its
    first stage runs; enable, forgets: commands for that."""
    link = folder + '/knockd'
    # The first time, runsvdir starts it.
    starts = ['ln -sfn /etc/sv/knockd ' + link, 'sv restart /etc/sv/knockd || true']
    ends = ['rm ' + link, 'sv shutdown /etc/sv/knockd',
            'rm -rf /etc/sv/knockd /var/log/knockd']
    return InitSystem('runit', [folder, '/usr/bin/runsvdir'], SCRIPT, '/var/lib',
                      dict(RUNIT, **early), enable + starts, ends, forgets,
                      'tail -n 5 /var/log/knockd/current')

SYSLOG = ('tail -n 20 /var/log/messages /var/log/syslog 2>/dev/null | grep knockd | '
          'tail -n 5')

def openrc_in(level, evidence, more, enable, forgets):
    """OpenRC, whose disks come up in this level. more: {path: text}; enable, forgets:
    commands for that."""
    return InitSystem('OpenRC', ['/run/openrc'] + evidence, SCRIPT, '/var/lib',
                      dict({'/etc/init.d/knockd': OPENRC}, **more),
                      ['rc-update add knockd ' + level] + enable +
                      ['rc-service knockd restart'],
                      ['rc-service knockd stop', 'rc-update -a delete knockd'],
                      forgets, SYSLOG)

INIT_SYSTEMS = [
    InitSystem('systemd', ['/run/systemd/system'], SCRIPT, '/var/lib',
               {'/etc/systemd/system/knockd.service': SYSTEMD},
               ['systemctl daemon-reload', 'systemctl enable knockd',
                'systemctl restart knockd'],
               ['systemctl disable --now knockd'], ['systemctl daemon-reload'],
               'journalctl -q -u knockd -n 5 -o cat --no-pager'),
    # OpenWrt's /var is in memory.
    InitSystem('procd', ['/sbin/procd'], OPENWRT_SCRIPT, '/etc',
               {'/etc/init.d/knockd': PROCD, '/lib/upgrade/keep.d/knockd': KEEP},
               ['/etc/init.d/knockd enable', '/etc/init.d/knockd restart'],
               ['/etc/init.d/knockd stop', '/etc/init.d/knockd disable'], [],
               'logread -e knockd | tail -n 5'),
    # Of Debian, which never enters the level boot; of all others.
    openrc_in('sysinit', ['/etc/runlevels/sysinit/networking'],
              {'/etc/rc.conf.d/knockd.conf': OPENRC_NFTABLES, AGAIN_PATH: AGAIN},
              [ENABLE],
              # OpenRC counts a script of SysV as started for ever.
              ['rm -f /run/openrc/started/knockd-again',
               'rmdir /etc/rc.conf.d 2>/dev/null || true', DISABLE]),
    openrc_in('boot', [], {}, [], []),
    # Of Void, of Debian.
    runit_in('/var/service',
             {'/etc/runit/core-services/10-knockd.sh': 'sh STATE/guard\n'}, [], []),
    runit_in('/etc/service', dict(INSSERV, **{'/etc/init.d/knockd-guard': RUNIT_GUARD}),
             ['update-rc.d knockd-guard defaults', ENABLE],
             ['update-rc.d -f knockd-guard remove', DISABLE]),
    InitSystem('SysV', ['/etc/inittab', '/usr/sbin/update-rc.d'], SCRIPT, '/var/lib',
               dict(INSSERV, **{'/etc/init.d/knockd': SYSV}),
               ['update-rc.d knockd defaults', ENABLE, '/etc/init.d/knockd restart'],
               ['/etc/init.d/knockd stop'], ['update-rc.d -f knockd remove', DISABLE],
               SYSLOG)]
# Where keys and ledger are, unless told elsewhere.
KEYS = '/etc/knockd', '/var/lib/knockd'
# Beside the ledger, and worth nothing without us.
CACHES = 'guard', 'probation', 'sysctls', GOOD_NAME, 'ledger.json.lock'

def init_system(root):
    """The InitSystem of this box; None if it is not known here."""
    for system in INIT_SYSTEMS:
        if all(os.path.exists(root + path) for path in system.evidence):
            return system
    return None

def own_files(root, system):
    """{path: text} of its files that are ours to write and to take away. Somebody may
    have ordered nftables in his own way; ours say knockd."""
    ours = {}
    for path, text in system.files.items():
        data, _ = content_of(root + path)
        if 'knockd' in path or data is None or b'knockd' in data:
            ours[path] = text
    return ours

def is_this_script(text):
    """Does this text compile to the very code that runs?"""
    import traceback
    ours = list(traceback.walk_stack(None))[-1][0].f_code       # of the module
    if not text.startswith('#!/usr/bin/env python3\n'):
        return False
    try:
        return compile(text, ours.co_filename, 'exec') == ours
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False

def own_text(url):
    """This script. Out of a pipe, which Python has read to its end before it begins, it
    is fetched once more. KnockError."""
    path = own_path()
    # With --url the file, too, must be what lies there.
    if path and not url:
        return read_file(path)
    if os.path.isfile('/dev/stdin') and is_this_script(read_file('/dev/stdin')):
        return read_file('/dev/stdin')
    if not url:
        raise KnockError('a script out of a pipe cannot copy itself; add --url URL, or '
                         'type: curl -fsSO URL && python3 knockd.py install')
    text = run(['curl', '-fsSL', url], seconds=60)
    if not is_this_script(text):
        raise KnockError('%s is not the script that runs here; save it first' % url)
    return text

def placing_as_root(args):
    """A Placing. KnockError: what is half done must not be taken for done."""
    place = Placing(args)
    os.listdir(args.root or '/')        # Where --root is wrong, nothing would be removed.
    if os.geteuid() and place.here:
        raise KnockError('only root can %s; type: sudo python3 knockd.py %s'
                         % (args.command, args.command))
    return place

def command_install(args):
    """What is there stays: a second time renews script and service."""
    place, system = placing_as_root(args), init_system(args.root)
    if system is None:
        raise KnockError('no init system that is known here; let yours run: %s -I %s run'
                         % (PYTHON, SCRIPT))
    # Before anything is written: a script out of a pipe may have no text.
    text = own_text(args.url)
    # Ctrl-C takes back what was begun, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = own_files(args.root, system)
    upgrade = any(os.path.exists(args.root + path) for path in files)
    for path in set(system.files).difference(files):
        note('%s is not ours and stays as it is: unless nftables stops after sendsigs, '
             'nothing is hidden while the box shuts down' % path)
    try:
        config = place_all(args, system._replace(files=files), place, text)
        if place.here and not upgrade:
            end_first_try(config)
        report = started(args, system, place)
    except (KnockError, OSError, KeyboardInterrupt):
        take_all_back(system, place, upgrade)
        raise
    if report:
        tell_what_runs(system, config, report)

def place_all(args, system, place, text):
    """Writes what `install` writes. KnockError, OSError."""
    if not (args.root or find_program('nft') or find_program('iptables')):
        place.carry_out(package_command('nft'))
    entries = [('ledger', system.state + '/knockd/ledger.json')]
    config = first_config(args, args.client, args.hide, place, entries)
    if not (config.clients or args.root):
        # Or the daemon takes it for lost, and the first client waits out a quarantine.
        place_ledger(config, place)
    if place.here:
        for warning in preflight(config):
            note(warning)
        try_rules(config)
    place.put(system.script, text, 0o755)
    if system.script != SCRIPT:
        # Version 0.1 put it there.
        remove(args, SCRIPT)
    begin_probation(config, place, args.probation)
    words = {'STATE': os.path.dirname(config.ledger), 'PYTHON': PYTHON,
             'SCRIPT': system.script}
    for path, content in system.files.items():
        for word, meant in words.items():
            content = content.replace(word, meant)
        place.put(path, content, 0o755 if content.startswith('#!') else 0o644)
    return config

def begin_probation(config, place, told):
    """A new installation hides for so long, unless somebody knocks; one that passed
    stays. Version 0.1 noted it in the guard."""
    path, guard = beside(config, 'probation'), beside(config, 'guard')
    with contextlib.suppress(FileNotFoundError, *MISREAD):
        if json.loads(read_file(place.root + path))['state'] == PASSED:
            if told:
                note('--probation has no effect: it is over, for a knock came')
            return
    old = content_of(place.root + guard)[0]
    passed = old is not None and b'on probation' not in old.partition(b'\n')[0]
    time = PROBATION if told is None else told
    if passed or not time:
        place.put(path, probation_text(PASSED))
        return
    place.put(path, probation_text(ON_TRIAL, time))
    place.put(guard, TRIAL_GUARD)

def holder(path):
    """The process id of the daemon that holds this ledger; None if there is none."""
    with contextlib.suppress(FileNotFoundError), open(path + '.lock') as file:
        if not takes_lock(file):
            return int(file.read())
    return None

def end_first_try(config):
    """A `run` at a terminal holds the ledger that the service needs. What it hid stays
    hidden until the service takes over."""
    path = os.path.realpath(config.ledger)
    # Two daemons cannot spend from one ledger.
    pid = holder(path)
    if pid is None:
        return
    note('the first try (process %d) ends, the service takes over' % pid)
    os.kill(pid, signal.SIGTERM)
    if not patient(lambda: holder(path) is None, 10):
        raise KnockError('process %d does not end; end it and type this again' % pid)

def started(args, system, place):
    """The report of the service, which is ready; KnockError with its log if it is not;
    None where none is to start."""
    # The daemon of before may still answer.
    began = moment().wall
    try:
        for line in system.starts:
            place.carry_out(line)
        if not place.here:
            return None
        report = patient(lambda: fresh_report(args.config, began), READY_TIME)
        if not report:
            raise KnockError('the service is not ready after %d s' % READY_TIME)
    except KnockError as error:
        said = ''
        with contextlib.suppress(KnockError):
            said = run(['sh', '-c', system.log])
        raise KnockError('%s\nits log ends:\n%s' % (error, said))
    return report

def fresh_report(path, began):
    """The report of a daemon that did not run before; None so far."""
    report = ask_daemon(path, b'status')
    if not report or report['since'] < began:
        return None
    return report

def take_all_back(system, place, upgrade):
    """After a failure: as it was before."""
    # What was refused before anything was written needs no word.
    if not place.before:
        return
    note('taken back: what was written is as it was before')
    carry_out_all(() if upgrade else system.ends, place)
    with contextlib.suppress(OSError):
        place.take_back()
    carry_out_all(system.starts if upgrade else system.forgets, place)

def carry_out_all(lines, place):
    """All of these commands, whatever one of them says."""
    for line in lines:
        try:
            place.carry_out(line)
        except KnockError as error:
            note(str(error))

ON_PROBATION = """It is on probation: without a knock from outside within %s it lets go
again, so that nobody is locked out. Keep this session, and knock from another computer
that has knock.py:"""
WHAT_NOW = """    python3 knock.py 'LINE' -- ssh root@%s
LINE is what `knockd.py show %s` prints. `knockd.py status` tells what happens,
`knockd.py watch` why a knock does not open, `knockd.py uninstall` takes all away."""
LAN_TOO = """These ports are hidden from the LAN, too. To leave them open there:
    knockd.py set server trust=br-lan"""

def tell_what_runs(system, config, report):
    """The end of `install`: what runs, what the probation is, what to type now."""
    left = report['probation_left']
    print('\nknockd %s runs as a service of %s and hides %s.'
          % (__version__, system.name, format_services(config.hide) or 'nothing'))
    if left is None:
        print('Another computer that has knock.py gets in with:')
    else:
        print(ON_PROBATION % duration(left))
    print(WHAT_NOW % (host_of(config)[0], next(iter(config.clients), 'NAME')))
    if system.name == 'procd' and not config.trust:
        print(LAN_TOO)
    tell_quarantine(report)

def command_uninstall(args):
    """Leaves nothing of ours, neither files nor rules; keys only if they shall stay.
    Works whatever the config says."""
    place, system = placing_as_root(args), init_system(args.root)
    folders, keys = list(KEYS), list(KEYS)
    with contextlib.suppress(KnockError):
        config = read_config(args.root + os.path.abspath(args.config))
        folders.append(os.path.dirname(config.ledger))
        # Not all of another folder: it is /root, or anybody's.
        keys += [path for path in (config.ledger, os.path.abspath(args.config))
                 if os.path.dirname(path) not in KEYS]
    keys = [path for path in keys if os.path.exists(args.root + path)]
    named = ' and '.join(keys)
    with_keys = args.yes or keys and agreed('Delete the keys in %s too?' % named)
    if system:
        carry_out_all(system.ends, place)
    if args.dry_run:
        take_rules_away((), show_rules)
    elif place.here:
        take_rules_away(folders, run)
    paths = [SCRIPT, OPENWRT_SCRIPT, runtime_folder()]
    for each in INIT_SYSTEMS:
        paths += own_files(args.root, each)
    for folder in folders:
        paths += [os.path.join(folder, name) for name in CACHES]
    if with_keys:
        paths += keys
    for path in dict.fromkeys(paths):
        remove(args, path)
    if system:
        carry_out_all(system.forgets, place)
    if args.dry_run:
        return
    kept = ''
    if keys and not with_keys:
        kept = '; the keys stay in ' + named
    print('knockd is uninstalled' + kept)

def remove(args, path):
    """A file or a folder, if it is there."""
    import shutil
    path = args.root + path
    if not os.path.lexists(path):
        return
    if args.dry_run:
        print('remove ' + path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)

def take_rules_away(folders, give):
    """The rules of every firewall tool that is there, and what the kernel was told.
    give(argv, text) runs a command, or shows it."""
    # Its whole ruleset is none, accept rules included.
    nobody = parse_config('[server]\nid = none\nhide =\n', '/etc/knockd/knockd.ini')
    for tool in (NFT, IPTABLES):
        if not find_program(tool.name):
            continue
        try:
            seen = see_box(tool, nobody)
            # iptables would make its empty tables.
            if seen.ours or seen.accepts.surplus:
                for argv, text in tool.whole(nobody, seen, {}, (), 0):
                    give(argv, text)
        except KnockError as error:
            note(str(error))
    for folder in folders:
        restore_marks(folder + '/sysctls')

# --- command line -----------------------------------------------------------------------
# Options: names; what stands for the value, None if it takes none; help; more for
# argparse.
FIRST = [
    ('--hide', 'SERVICES', 'for a first config: what to hide, as tcp/22'),
    ('--client', 'NAME', 'for a first config: the first client'),
    ('--host', 'HOST', 'for a first config: what clients call this box'),
    ('--trust', 'INTERFACES', 'for a first config: where nothing is hidden, as br-lan')]
PLACE = [
    ('--dry-run', None, 'only list every file and command'),
    ('--root', 'FOLDER', 'in the tree that lies there; start nothing', {'default': ''})]
CLIENT_NAME = ('name', 'NAME', None)
SECRET = ('--secret', '-', 'its secret comes by standard input')
PICTURE = ('--qr', None, 'as a picture, too, if qrencode is there')
SERVICES = ('services', 'SERVICES', 'as tcp/22,udp/51820')
JSON = ('--json', None, 'for programs')
COMMANDS = (    # name, function, what it does, its options
    ('install', command_install, 'copy the script, make config and service, start',
     FIRST + PLACE + [
         ('--probation', 'TIME', 'how long it hides if nobody knocks: 10m; 0: for good',
          {'type': milliseconds('0s', '31d')}),
         ('--url', 'URL', 'where a script out of a pipe comes from')]),
    ('uninstall', command_uninstall, 'stop, and take all away', PLACE + [
        ('--yes', None, 'delete the keys without asking')]),
    ('run', command_run, 'guard the ports, in the foreground', FIRST + [
        ('-v --verbose', None, 'say more')]),
    ('check', command_check, 'read the config and say all that is wrong with it', [
        ('--strict', None, 'a warning is an error')]),
    ('rules', command_rules, 'print what would be given to nft or iptables', []),
    ('selftest', command_selftest, 'try what the daemon needs, down to a knock', []),
    ('add', command_add, 'make a client and print its knock:// line', [
        CLIENT_NAME, FIRST[2],
        ('--allow', 'SERVICES', 'what it may open; without it, all'),
        ('--default', 'SERVICES', 'what a knock opens that names nothing'),
        ('--expires', 'DATE', '2027-01-31, to the end of that day (UTC)'),
        ('--code', None, 'may knock by hand, with a phone',
         {'action': 'store_const', 'const': 'yes'}),
        ('--page', None, 'for a web page: by ports alone, 30 s'),
        ('--ssh-key', 'FILE', 'public key that must sign it', {'type': read_file}),
        ('--may-run', 'ACTIONS', 'the actions that it may run'),
        ('--for', 'TIME', 'how long its openings last: 30s', {'dest': 'open_for'}),
        SECRET, PICTURE]),
    ('set', command_set, "change a client's section, or [server]", [
        ('name', 'NAME', 'a client, or server'),
        ('pairs', 'KEY=VALUE', 'KEY= takes the key out', {'nargs': '+'})]),
    ('rename', command_rename, 'give a client another name', [
        CLIENT_NAME, ('new', 'NEW', None)]),
    ('rekey', command_rekey,
     'make a new secret; the old one works until the new one is used', [
         CLIENT_NAME, SECRET]),
    ('hide', command_hide, 'hide more services', [SERVICES]),
    ('unhide', command_unhide, 'leave services open again', [SERVICES]),
    ('show', command_show, "print a client's knock:// line again", [
        CLIENT_NAME, ('--via', 'CARRIER', 'how it shall knock', {'choices': CARRIERS}),
        PICTURE]),
    ('paper', command_paper, 'print one-time sequences; voids the sheet before', [
        CLIENT_NAME,
        ('-n', 'N', 'how many lines; by default 10',
         {'dest': 'number', 'type': number(1, 999), 'default': 10})]),
    ('list', command_list, 'all clients, what each may open, when it knocked', [JSON]),
    ('status', command_status, 'is all hidden, what is open, who knocked, who not', [
        JSON, ('--metrics', None, 'for Prometheus')]),
    ('watch', command_watch, 'why does it not open? hears knocks for a minute', [
        ('client', 'CLIENT', 'hear the knocks of this one alone', {'nargs': '?'})]),
    ('remove', command_remove, 'revoke a client, at once', [CLIENT_NAME]),
)

def command_line():
    """The parser of argparse, whose errors are ours: one sentence."""
    import argparse                     # the daemon does without: go_small()

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise KnockError('%s; see: %s --help' % (message, self.prog), 2)

    parser = Parser(
        prog='knockd.py', description=(__doc__ or '').partition('\nRead')[0],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--config', metavar='FILE', help='default: %(default)s',
        default=os.environ.get('KNOCKD_CONFIG', '/etc/knockd/knockd.ini'))
    parser.add_argument('--version', action='version', version=version_text(),
                        help='which one this is, and the SHA-256 of its file')
    # What some commands do not ask for.
    parser.set_defaults(
        root='', dry_run=False, page=False, allow=None, via=None, qr=False)
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    # An argument of add_subparsers() only since 3.7.
    commands.required = True
    for name, function, description, options in COMMANDS:
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(function=function)
        for names, value, text, *more in options:
            settings = dict(*more, help=text)
            if value is None:
                settings.setdefault('action', 'store_true')
            else:
                settings['metavar'] = value
            command.add_argument(*names.split(), **settings)
    return parser

def refused(text, status):
    for line in text.splitlines():
        print('knockd: ' + printable(line), file=sys.stderr)
    if os.geteuid() and 'Permission denied' in text:
        note('try it as root, with sudo')
    return status

def main(argv=None):
    try:
        script, *typed = sys.argv
        # What go_small() typed is known without argparse.
        if os.path.dirname(script) == runtime_folder() and typed[2:3] == ['run']:
            run_daemon(typed[1], typed[-1] == '-v')
            return 0
        args = command_line().parse_args(argv)
        for name, value in vars(args).items():
            # Of a variable of the shell that is not set: `--allow ""` would allow all.
            if value == '' and name != 'root':
                raise KnockError('%s is empty; give a value, or leave it out' % name, 2)
        return args.function(args) or 0
    except KnockError as error:
        return refused(str(error), error.status)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return refused('%s: %s' % (error.filename, error.strerror), 1)
    except KeyboardInterrupt:
        return 1

if __name__ == '__main__':
    # Ctrl-C ends all without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
