#!/usr/bin/env python3
"""knock.py opens a service that knockd.py hides: one UDP packet, then the port answers you alone.

    knock.py save                   asks for the server's knock:// line; keeps it by the name in it
    knock.py laptop                 opens, and waits until it is seen
    knock.py --keep laptop -- ssh me@server.example
    ssh -o ProxyCommand='knock.py --proxy %p laptop' me@server.example
    knock.py --print=sh laptop      a line of shell for a machine without Python

The packet is encrypted and authenticated with a key that only you and the server have, names this
moment, and is worth nothing once the server has seen it. See README.md for the bytes.
"""
__version__ = '0.1.0'

import gc
import sys

if __name__ == '__main__':
    # Only Python's own library is imported from. In the current folder, in this file's
    # folder and where PYTHONPATH points, others may have put a module of any name that is
    # used below.
    library = sys.base_prefix + ('' if sys.platform == 'win32' else '/lib')
    sys.path = [folder for folder in sys.path if folder.startswith(library)]
    gc.disable()                            # until a knock is out there is no garbage
    if sys.argv[1:] == ['--version']:
        print('knock.py ' + __version__)    # before the imports: scripts ask this often
        sys.exit(0)

import binascii
import errno
import functools
import io
import os
import select
import socket
import time
import types

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

# --- knock: what is sent -------------------------------------------------------------------------
FIRST_PAUSE, LAST_PAUSE = 0.003, 0.25   # seconds between two connects that probe the port
KNOCK_PAUSE = 1.0                       # seconds between two knocks
TOUCH_PAUSE = 0.15                      # for the answer of a touched port
FIRST_SYN = 0.9                         # kernels send a SYN again after a second (RFC 6298)
BLIND_PAUSE = 0.5                       # before COMMAND, where nothing shows that it is open
KEEP_PAUSE = 5                          # between two knocks of --keep, unless --for says more
CHUNK = 1 << 18                         # bytes that --proxy carries at once
SAVED = re.compile(r'(?!save\Z)[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z', re.ASCII)
HOST = re.compile(r'[A-Za-z0-9._:%-]{1,255}\Z', re.ASCII)      # as in a knock:// line
CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)
SEEN = {'refused': 'it refuses as a closed port does; the log of knockd.py there may say why',
        'silent': 'it is silent: the host is down, or a firewall drops what comes'}
NAT64 = ipaddress.IPv6Network('64:ff9b::/96')           # RFC 6052
Target = collections.namedtuple('Target', 'family address')     # address as sockets take it

def pack_address(address):
    """16 bytes: IPv6, or IPv4 as ::ffff:a.b.c.d; all zero for None."""
    if address is None:
        return bytes(16)
    prefix = bytes(10) + b'\xff\xff' if address.version == 4 else b''
    return prefix + address.packed

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

URI = re.compile(r'knock://([^:@/?]+):([^:@/?]+)@(\[[^][/?@]+\]|[^][:/?@]+)(?::([0-9]{1,5}))?'
                 r'/?\?([^#]*)\Z', re.ASCII)

def unquote(text):
    """RFC 3986, 2.1: %XX is a byte."""
    raw = re.sub(rb'%([0-9A-Fa-f]{2})', lambda match: bytes([int(match.group(1), 16)]),
                 text.encode('utf-8', 'surrogatepass'))
    return raw.decode('utf-8', 'replace')

def parse_query(text):
    """The part behind the question mark, each key once, none unknown."""
    query = {}
    for pair in text.split('&'):
        key, _, value = pair.partition('=')
        if key in query or key not in ('id', 'via', 'open', 'once'):    # which may be the secret
            raise KnockError('behind its ? a knock:// line has id, via, open and once, '
                             'each once at most, and nothing else', 2)
        query[key] = unquote(value)
    return query

def parse_uri(text):
    """knock://NAME:SECRET@HOST[:PORT]?id=SERVERID[&via=udp][&open=tcp/22,...][&once=1]"""
    match = URI.match(text.strip())
    if not match:
        raise KnockError('this is not a knock:// line; it looks like '
                         'knock://NAME:SECRET@HOST?id=SERVERID', 2)
    name, secret, host = [unquote(part) for part in
                          (match.group(1), match.group(2), match.group(3).strip('[]'))]
    port, query = match.group(4), parse_query(match.group(5))
    via, once = query.get('via', 'udp'), query.get('once', '0')
    problems = [(not NAME.match(name), 'name'), (not NAME.match(query.get('id', '')), 'id'),
                (port and not 0 < int(port) < 65536, 'port'), (via not in CARRIERS, 'via'),
                (once not in ('0', '1'), 'once'),
                (not re.match(r'[A-Za-z0-9._:%-]{1,255}\Z', host, re.ASCII), 'host')]
    for wrong, part in problems:
        if wrong:
            raise KnockError('the knock:// line has no valid %s' % part, 2)
    return Address(name, decode_secret(secret), host, int(port) if port else None,
                   query['id'], via, parse_services(query.get('open', '')), once == '1')

def seal(keys, nonce, plain, step):
    """tag(8) || nonce(16) || plain XOR keystream || mac(16): encrypt, then MAC."""
    sealed = bytes(map(operator.xor, plain, keystream(keys['enc'], nonce, len(plain))))
    body = tag_at(keys, step) + nonce + sealed
    if len(body) + MAC_SIZE > DATAGRAM_LIMIT:
        raise KnockError('the knock is longer than %d bytes: ask for less' % DATAGRAM_LIMIT)
    return body + hmac_sha256(keys['mac'], body)[:MAC_SIZE]

def code_ports(code):
    """The two ports that carry a code of eight digits."""
    return 10000 + int(code[:4]), 20000 + int(code[4:])

def knock_request(args, address, now, source):
    """What the command line wants, as a Request of this millisecond."""
    services = args.open or (() if args.close or args.run else address.services)
    op = 'run' if args.run else 'close' if args.close else 'open'
    return Request(op, now, source, args.seconds, services, args.run, None, None)

def knock_datagram(keys, server_id, request, random, sign):
    """A fresh datagram of random length; sign(message) makes its signature, or is None."""
    nonce, step = random(NONCE_SIZE), step_of(request.time)
    if sign:
        message = b'knock/1 %s\x00' % server_id.encode('ascii') + tag_at(keys, step) + nonce
        request = request._replace(signature=sign(message + encode_plain(request)))
    plain = encode_plain(request)
    room = DATAGRAM_LIMIT - TAG_SIZE - NONCE_SIZE - MAC_SIZE - len(plain)
    padding = bytes(random(1)[0] % (PADDING_LIMIT + 1))[:max(0, room)]
    return seal(keys, nonce, plain + padding, step)

def step_for(now, attempt):
    """A step serves once: this one, then the next, then the one before."""
    return step_of(now) + (0, 1, -1)[attempt % 3]

def sequence(via, keys, step, paper):
    """The ports to touch, in order."""
    return {'ports': lambda: step_ports(keys, step), 'paper': lambda: paper,
            'code': lambda: code_ports(code_at(keys, step))}[via]()

def checksum(data):
    """RFC 1071."""
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def echo_request(version, data, sequence_number):
    """RFC 792, RFC 4443; the kernel fills in ICMPv6 checksums, and the identifier of a ping."""
    def header(check):
        return struct.pack('>BBHHH', 8 if version == 4 else 128, 0, check, sequence_number, 1)
    return header(checksum(header(0) + data)) + data

def tcp_syn(source, destination, ports, token):
    """RFC 9293: a SYN whose sequence, acknowledgement and window are the token."""
    def header(check):
        return struct.pack('>HH8sBB2sHH', ports[0], ports[1], token[:8], 5 << 4, 2, token[8:],
                           check, 0)
    pseudo = source.packed + destination.packed + struct.pack('>HH', 6, 20)
    return header(checksum(pseudo + header(0)))

def probed_port(services, once):
    """The TCP port that shows whether it worked; None where nothing can, or a probe would harm."""
    ports = [service.low for service in services if service.proto == PROTOCOLS['tcp']]
    return ports[0] if ports and not once else None

def stun_address(answer, request):
    """XOR-MAPPED-ADDRESS (RFC 5389, 15.2) of the answer to this request, or None."""
    if answer[:2] != b'\x01\x01' or answer[4:20] != request[4:20]:
        return None
    offset = 20
    while offset + 4 <= len(answer):
        kind, length = struct.unpack_from('>HH', answer, offset)
        value = answer[offset + 8:offset + 4 + length]      # behind a zero, family and port
        if kind == 0x20 and len(value) in (4, 16):
            return ipaddress.ip_address(bytes(map(operator.xor, value, request[4:20])))
        offset += 4 + length + -length % 4
    return None

def sntp_time(answer, request):
    """The seconds since 1970 in a server's answer (RFC 4330, 4 and 5), or None."""
    if len(answer) < 48 or answer[0] & 7 != 4 or not answer[1] or answer[24:32] != request[40:]:
        return None                 # no server, not synchronised (stratum 0), or not for us
    return (int.from_bytes(answer[40:44], 'big') - 2208988800) % (1 << 32)     # since 1900

def http_time(answer):
    """The seconds since 1970 in the Date of an answer (RFC 9110, 5.6.7), or None."""
    import datetime
    match = re.search(rb'\ndate: *(\w+, \d+ \w+ \d+ \d+:\d+:\d+) GMT', answer, re.IGNORECASE)
    try:
        date = datetime.datetime.strptime(match.group(1).decode('ascii'), '%a, %d %b %Y %H:%M:%S')
        return (date - datetime.datetime(1970, 1, 1)).total_seconds()
    except (AttributeError, ValueError):
        return None

def shell_datagram(host, port, datagram):
    """A line of shell that sends it; tail writes once, and one write is one datagram."""
    text, size = ''.join('\\%03o' % byte for byte in datagram), DATAGRAM_LIMIT
    return ("k='%s'; bash -c \"printf '$k' | tail -c %d >/dev/udp/%s/%d\" 2>/dev/null || "
            'printf "$k" | tail -c %d | nc -u -w1 %s %d' % (text, size, host, port,
                                                           size, host, port))

def shell_touches(host, ports):
    """A line of shell that touches ports, one a second: a silent one must not hold up the next."""
    return ('(for p in %s; do if command -v nc; then nc -w1 %s $p; else bash -c ": '
            '>/dev/tcp/%s/$p"; fi & sleep 1; done) </dev/null >/dev/null 2>&1'
            % (' '.join(map(str, ports)), host, host))


# --- edges: names, sockets, the clock ------------------------------------------------------------
def resolve(host, family):
    """Every address of a host. The name goes as bytes: a str needs a codec routers lack."""
    try:
        found = socket.getaddrinfo(host.encode('ascii'), 9, family, socket.SOCK_DGRAM)
    except UnicodeEncodeError:
        raise KnockError('%r is not ASCII; write its xn-- form' % host, 2)
    except OSError as error:
        raise KnockError('%s: name not found (%s)' % (host, error.strerror or error))
    return [Target(entry[0], entry[4]) for entry in found]

def with_port(target, port):
    return (target.address[0], port) + tuple(target.address[2:])

def bare(target):
    """The address without its zone."""
    return target.address[0].partition('%')[0]

def own_address(target):
    """The address this machine sends from towards a target; connecting UDP sends nothing."""
    with socket.socket(target.family, socket.SOCK_DGRAM) as sock:
        sock.connect(with_port(target, 9))
        return ipaddress.ip_address(sock.getsockname()[0].partition('%')[0])

@functools.lru_cache()           # the name is looked up once, however often we knock
def translated(address):
    """Does a NAT64 stand between? Its prefix is well known, or this network's own (RFC 7050)."""
    prefixes = [NAT64]
    try:
        for entry in socket.getaddrinfo(b'ipv4only.arpa', 9, socket.AF_INET6, socket.SOCK_DGRAM):
            prefixes.append(ipaddress.IPv6Network((entry[4][0].partition('%')[0], 96), False))
    except OSError:
        pass                    # no such name here: no NAT64
    return any(ipaddress.ip_address(address) in prefix for prefix in prefixes)

def source_to_name(target):
    """Our own address, if the server sees it too: a captured knock is worth nothing elsewhere."""
    try:
        own = own_address(target)
    except OSError:
        return None
    if not own.is_global or own.version == 6 and translated(bare(target)):
        return None
    return own

def ask(target, kind, port, question):
    """What a server answers to a few bytes; none if it does not, twice."""
    for seconds in (0.5, 1):
        with socket.socket(target.family, kind) as sock:
            sock.settimeout(seconds)
            try:
                sock.connect(with_port(target, port))
                sock.sendall(question)
                return sock.recv(4096)
            except OSError:
                pass
    return b''

def find_sources(source, families):
    """{family: the address to name}; a STUN server says which it sees (RFC 5389)."""
    if not isinstance(source, tuple):
        return dict.fromkeys(families, source)
    (host, port), found = source, {}
    request = b'\0\1\0\0\x21\x12\xa4\x42' + os.urandom(12)     # Binding, length, cookie (6)
    for target in resolve(host, socket.AF_UNSPEC):
        if target.family in families and not found.get(target.family):
            answer = ask(target, socket.SOCK_DGRAM, port, request)
            found[target.family] = stun_address(answer, request)
    if not any(found.values()):
        raise KnockError('%s does not say which address it sees' % host)
    return found

def clock_words(host):
    """How far this clock is from a host's, asked by SNTP and then of its web server."""
    question = b'\x23' + bytes(39) + os.urandom(8)          # version 4, client
    for target in resolve(host, socket.AF_UNSPEC):
        theirs = sntp_time(ask(target, socket.SOCK_DGRAM, 123, question), question) or \
            http_time(ask(target, socket.SOCK_STREAM, 80, b'HEAD / HTTP/1.0\r\n\r\n'))
        if theirs:
            ahead = round(time.time() - theirs)
            return 'this clock is %d s %s that of %s' % (
                abs(ahead), 'behind' if ahead < 0 else 'ahead of', host)
    return '%s does not tell the time' % host

def random_port():
    """A high port that nobody can expect."""
    return 1024 + int.from_bytes(os.urandom(4), 'big') % (65536 - 1024)

def send_udp(target, port, datagram):
    """From a new source port each time: a kernel may hand over two of one flow as one."""
    with socket.socket(target.family, socket.SOCK_DGRAM) as sock:
        sock.sendto(datagram, with_port(target, port))

def raw_socket(target, protocol, why):
    try:
        return socket.socket(target.family, socket.SOCK_RAW, protocol)
    except PermissionError:
        raise KnockError('%s; run it as root (CAP_NET_RAW), or use --via udp' % why)

def send_echo(target, port, datagram):
    """As a ping: without privilege where net.ipv4.ping_group_range lets this group."""
    version = 4 if target.family == socket.AF_INET else 6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    try:
        sock = socket.socket(target.family, socket.SOCK_DGRAM, protocol)
    except OSError:
        sock = raw_socket(target, protocol, 'this system lets your group send no pings '
                          '(net.ipv4.ping_group_range)')
    with sock:
        sock.sendto(echo_request(version, datagram, port), with_port(target, 0))

def send_syn(target, port, token):
    """One bare SYN; the kernel will answer for us if the server should reply."""
    with raw_socket(target, socket.IPPROTO_TCP, 'a SYN of our own needs a raw socket') as sock:
        source, destination = own_address(target), ipaddress.ip_address(bare(target))
        sock.sendto(tcp_syn(source, destination, (random_port(), port), token),
                    with_port(target, 0))

def touch(target, port):
    """One SYN to a closed port, and time for its answer, so that the next comes later."""
    begun = begin_connects([target], port)
    ready_sockets(begun, TOUCH_PAUSE)
    for sock in begun:
        sock.close()

def start_process(argv, **options):
    """The one place where a program starts; it gets the descriptors we were given."""
    import subprocess
    return subprocess.Popen(argv, close_fds=False, **options)

def ssh_sign(keyfile, message):
    """Signs as ssh-keygen does; the agent and FIDO keys work as with ssh."""
    process = start_process(['ssh-keygen', '-Y', 'sign', '-f', keyfile, '-n', 'knock'],
                            stdin=-1, stdout=-1, stderr=-1)             # subprocess.PIPE
    armored, complaint = [text.decode('ascii', 'replace') for text in process.communicate(message)]
    if process.returncode:
        raise KnockError('ssh-keygen cannot sign with %s: %s' % (keyfile, complaint.strip()))
    return binascii.a2b_base64(''.join(armored.splitlines()[1:-1]))

def fresh_datagram(args, address, keys, now, source):
    sign = args.sign and (lambda message: ssh_sign(args.sign, message))
    return knock_datagram(keys, address.server_id, knock_request(args, address, now, source),
                          os.urandom, sign)

def tell(text, end='\n'):
    """A line for people; on a terminal it covers one that had no end."""
    line = '\r%-78s' if sys.stderr.isatty() else '%s'
    print(line % ('knock: ' + text), end=end, file=sys.stderr, flush=True)

def say(args, text, level=0, end='\n'):
    """For people: on a terminal, or where -v asks for it."""
    if not args.quiet and (args.verbose or level == 0 and sys.stderr.isatty()):
        tell(text, end)

def knock_once(args, address, keys, target, attempt):
    """One fresh knock to one target."""
    now, port = int(time.time() * 1000), args.port or address.port or random_port()
    if args.via in ('udp', 'icmp'):
        source = args.sources.get(target.family) or source_to_name(target)
        datagram = fresh_datagram(args, address, keys, now, source)
        {'udp': send_udp, 'icmp': send_echo}[args.via](target, port, datagram)
        return '%d bytes to %s port %d' % (len(datagram), target.address[0], port)
    if args.via == 'syn':
        send_syn(target, port, syn_badge(keys, step_for(now, attempt)))
        return 'a SYN to %s port %d' % (target.address[0], port)
    ports = sequence(args.via, keys, step_for(now, attempt), args.paper)
    for port in ports:
        touch(target, port)
    return 'touched %s at %s' % (' '.join(map(str, ports)), target.address[0])

def knock_all(args, address, keys, targets, attempt):
    """Every target, but sequences only where a connect would go first; KnockError if none."""
    failures, chosen = [], targets if args.via in ('udp', 'icmp', 'syn') else targets[:1]
    for target in chosen:
        try:
            say(args, knock_once(args, address, keys, target, attempt) + ' by ' + args.via, 1)
        except OSError as error:
            failures.append(KnockError('%s: %s' % (target.address[0], error.strerror)))
    if len(failures) == len(chosen):
        raise failures[0]

def ready_sockets(pending, seconds):
    """Those that have connected or failed; select() of nothing is an error on Windows."""
    if not pending:
        time.sleep(seconds)
        return []
    _, connected, failed = select.select([], pending, pending, seconds)
    return [sock for sock in pending if sock in connected or sock in failed]

def begin_connects(targets, port):
    """The sockets that are connecting."""
    begun = []
    for target in targets:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        begun.append(sock)
        if sock.connect_ex(with_port(target, port)) not in CONNECTING:
            begun.pop().close()
    return begun

def open_port(targets, port, seconds, knock_again):
    """Knocks until the port accepts: (that connection or None, what was seen). A connect goes out
    before the first knock: if that one is accepted, there was nothing to open. All of them stay
    while new ones begin: their answer may be a slow network's."""
    start, attempt, pause, seen = time.monotonic(), 0, FIRST_PAUSE, 'silent'
    pending = begin_connects(targets, port)
    early = set(pending)
    try:
        knock_again(attempt)
        probe_at = began = time.monotonic()
        knock_at = began + KNOCK_PAUSE
        while time.monotonic() < began + seconds:
            if time.monotonic() >= knock_at:
                attempt += 1
                knock_again(attempt)
                knock_at, pause = time.monotonic() + KNOCK_PAUSE, FIRST_PAUSE
            if time.monotonic() >= probe_at:
                pending += begin_connects(targets, port)
                pause = min(1.5 * pause, LAST_PAUSE)
                probe_at = time.monotonic() + pause
            until = min(probe_at, knock_at, began + seconds) - time.monotonic()
            for sock in ready_sockets(pending, max(0, until)):
                pending.remove(sock)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error == 0:
                    before = sock in early and time.monotonic() < start + FIRST_SYN
                    return sock, 'open already' if before else 'open'
                sock.close()
                seen = 'refused' if error == errno.ECONNREFUSED else seen
        return None, seen
    finally:
        for sock in pending:
            sock.close()

def pipe(sock):
    """Standard input to the service, what it says to standard output; each way ends by itself."""
    import threading
    gc.enable()                         # this may last for days
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # ssh asks for it, as we do

    def upload():
        try:
            for data in iter(lambda: os.read(0, CHUNK), b''):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass                    # the service is gone, which the other way will see
    thread = threading.Thread(target=upload, daemon=True)
    thread.start()
    try:
        for data in iter(lambda: sock.recv(CHUNK), b''):
            while data:
                data = data[os.write(1, data):]
        os.close(1)
        thread.join()
    except BrokenPipeError:
        pass                        # nobody listens any more

def run_command(args, knock_again):
    """The exit code of COMMAND, or 128 + n when signal n ended it, as in a shell."""
    import signal
    import subprocess
    gc.enable()
    process, early = None, []           # signals that come before we know COMMAND

    def pass_on(number, _):
        if number != signal.SIGINT or not os.isatty(0):     # a terminal tells the whole group
            process.send_signal(number) if process else early.append(number)
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:      # as nohup leaves it
            signal.signal(number, pass_on)
    process = start_process(args.command)
    for number in early:
        process.send_signal(number)
    while True:
        try:
            status = process.wait((args.seconds / 2 or KEEP_PAUSE) if args.keep else None)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            try:
                knock_again()
            except KnockError as error:         # the network may come back
                say(args, str(error), 1)


# --- edges: saved lines --------------------------------------------------------------------------
def config_folder():
    home = os.environ.get('APPDATA') if os.name == 'nt' else None
    return os.path.join(home or os.path.expanduser('~/.config'), 'knock')

def refuse_open(path, mode):
    """Windows keeps others out of %APPDATA% by itself, and has no such modes."""
    if os.name != 'nt' and os.stat(path).st_mode & 0o077:
        raise KnockError('%s is open to others; type: chmod %o %s' % (path, mode, path), 2)

def saved_line(name):
    path = os.path.join(config_folder(), name)
    try:
        refuse_open(config_folder(), 0o700)
        refuse_open(path, 0o600)
        with open(path, encoding='ascii', errors='replace') as lines:
            return lines.read()
    except OSError as error:
        raise KnockError('%s: %s; knock.py save %s keeps a line by that name'
                         % (path, error.strerror, name), 2)

def standard_line():
    with open(0, 'rb', closefd=False) as lines:
        return lines.readline().decode('ascii', 'replace')

def ask_line():
    """Typed unseen at the terminal, as standard input may be this script: curl ... | python3."""
    import getpass
    try:
        if os.name != 'nt':
            open('/dev/tty').close()
        return getpass.getpass('the knock:// line (it stays unseen): ')
    except OSError:
        return standard_line()                  # no terminal: from another program, then

def save(argv):
    """knock.py save [NAME]: keeps the line that standard input gives, or somebody types."""
    line = not os.isatty(0) and standard_line() or ask_line()
    address = parse_uri(line)
    name, folder = argv[0] if argv else address.name, config_folder()
    if len(argv) > 1 or not SAVED.match(name):
        raise KnockError('knock.py save [NAME] takes one name of letters, digits and ._-', 2)
    os.makedirs(folder, 0o700, exist_ok=True)
    refuse_open(folder, 0o700)
    path = os.path.join(folder, name)
    if not argv and os.path.exists(path):
        raise KnockError('%s is there already; to replace it: knock.py save %s' % (path, name))
    import tempfile
    descriptor, new = tempfile.mkstemp(dir=folder, prefix='.')          # 0600
    with open(descriptor, 'w') as out:
        out.write(line.strip() + '\n')
    os.replace(new, path)
    if sys.stderr.isatty():
        tell('saved; it opens with: knock.py ' + name)


# --- command line --------------------------------------------------------------------------------
def read_target(args):
    """(Address, its keys) of TARGET; paper knocks need no more than a host."""
    text = os.environ.get('KNOCK_URI') if args.target is None else args.target
    if text is None:
        raise KnockError('where to? Give a saved name, a knock:// line or -, or set $KNOCK_URI', 2)
    if args.target == '-':
        text = ask_line()
    elif SAVED.match(text) and (
            args.via != 'paper' or os.path.exists(os.path.join(config_folder(), text))):
        text = saved_line(text)
    elif text == args.target and text.startswith('knock:'):
        say(args, 'others on this machine can see a secret on the command line; '
            'knock.py save keeps it')
    if args.via == 'paper' and HOST.match(text):
        return Address('', b'', text, None, '', 'paper', (), False), {}
    address = parse_uri(text)
    return address, derive_keys(address.secret, address.server_id)

def read_paper():
    """The next line of the sheet, typed."""
    print('the six ports of the next line of the sheet: ', end='', file=sys.stderr, flush=True)
    ports = re.findall('[0-9]+', standard_line())[-6:]
    if len(ports) != 6 or any(not 1023 < int(port) < 65536 for port in ports):
        raise KnockError('these are not six ports from 1024 to 65535', 2)
    return [int(port) for port in ports]

def show(args, address, keys):
    """What would be sent: for people and other tools, or as a line of shell that sends it."""
    now = int(time.time() * 1000)
    step, ports = step_of(now), args.paper
    if args.via in ('udp', 'icmp'):
        families = [args.family] if args.family else [socket.AF_INET, socket.AF_INET6]
        sources = list(filter(None, find_sources(args.source, families).values()))
        datagram = fresh_datagram(args, address, keys, now, sources[0] if sources else None)
        shown, port = datagram.hex(), args.port or address.port or random_port()
    elif args.via == 'syn':
        shown = syn_badge(keys, step).hex()
    else:
        ports = sequence(args.via, keys, step, args.paper)
        shown = ' '.join(map(str, ports))
        if args.via == 'code':
            shown = '%s  (%d s left)' % (code_at(keys, step), (STEP - now % STEP) // 1000)
    if args.show == 'sh':
        if args.via in ('icmp', 'syn'):
            raise KnockError('no shell can send --via %s' % args.via, 2)
        shown = shell_touches(address.host, ports) if ports else \
            shell_datagram(address.host, port, datagram)
    print(shown, flush=True)

def check_options(args):
    """What argparse cannot know."""
    if args.run and not ACTION.match(args.run):
        raise KnockError('%r is not the name of an action' % args.run, 2)
    if args.via not in ('udp', 'icmp') and (
            args.run or args.close or args.sign or args.source or args.keep):
        raise KnockError('--via %s has no room for --run, --close, --sign, --source, --keep'
                         % args.via, 2)
    if args.proxy and (args.command or args.run or args.close or not args.wait):
        raise KnockError('--proxy goes without COMMAND, --run, --close and --wait 0', 2)
    if args.keep and not args.command:
        raise KnockError('--keep goes with a COMMAND: knock.py --keep NAME -- COMMAND ...', 2)

def diagnosis(args, address, targets, port, seen):
    """What can be known from here about a port that did not open."""
    words = ['tcp/%d at %s did not open within %d s' % (port, address.host, args.wait), SEEN[seen]]
    if args.time_check:
        words.append(clock_words(args.time_check))
    named = [args.sources.get(target.family) or source_to_name(target) for target in targets]
    if args.via in ('udp', 'icmp') and not any(named):
        words.append('no source is named, which a server may demand: see --source')
    return '; '.join(words)

def knock(args, began):
    """Knocks, sees that it worked where that can be seen, and does what is to follow."""
    address, keys = read_target(args)
    args.via = args.via or address.via
    check_options(args)
    args.paper = read_paper() if args.via == 'paper' else None
    if args.proxy:
        args.open = args.open or (Service(PROTOCOLS['tcp'], args.proxy, args.proxy),)
    if args.show:
        return show(args, address, keys) or 0
    targets = resolve(address.host, args.family or socket.AF_UNSPEC)
    if args.source and not isinstance(args.source, tuple):
        targets = [target for target in targets
                   if (target.family == socket.AF_INET) == (args.source.version == 4)] or targets
    args.sources = find_sources(args.source, {target.family for target in targets})

    def knock_again(attempt=0):
        if not args.proxy and not args.verbose:
            say(args, 'knock %d at %s' % (attempt + 1, address.host), end='')
        if not attempt or args.via != 'paper':          # a line of the sheet is spent
            knock_all(args, address, keys, targets, attempt)
    port = None if args.close or args.run or not args.wait else \
        args.proxy or probed_port(args.open or address.services, address.once)
    if port is None:
        knock_again()
        say(args, 'sent to %s; whether it worked cannot be seen from here' % address.host)
        time.sleep(BLIND_PAUSE if args.command and args.wait else 0)
    else:
        sock, seen = open_port(targets, port, args.wait, knock_again)
        if sock is None:
            raise KnockError(diagnosis(args, address, targets, port, seen))
        say(args, 'open in %d ms' % ((time.monotonic() - began) * 1000) if seen == 'open' else
            'tcp/%d answered even before the knock: it was open already, or is not hidden' % port,
            1 if args.proxy else 0)
        with sock:
            if args.proxy:
                pipe(sock)
    return run_command(args, knock_again) if args.command else 0

def duration(text):
    if parse_seconds(text) > 65535:
        raise KnockError('%r is longer than 65535 s' % text, 2)
    return parse_seconds(text)

def port_number(text):
    return parse_service('udp/' + text).low

def source_address(text):
    """An address, or host and port of a STUN server."""
    match = re.match(r'stun:(\[.+\]|[^:]+)(?::(\d{1,5}))?\Z', text, re.ASCII)
    if match:
        return match.group(1).strip('[]'), port_number(match.group(2) or '3478')
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise KnockError('%r is neither an address nor stun:HOST' % text, 2)

def carrier(text):
    if text not in CARRIERS:
        raise KnockError('%r is no way to knock; write one of %s' % (text, ' '.join(CARRIERS)), 2)
    return text

OPTIONS = (     # as typed, where it goes, what reads its argument or is meant without one, help
    ('what to ask for:',),
    ('--open SERVICES', 'open', parse_services, 'as tcp/22,udp/51820'),
    ('--for TIME', 'seconds', duration, 'how long: 30s, 5m'),
    ('--close', 'close', True, 'close what you opened'),
    ('--run ACTION', 'run', str, 'run an action of the server instead'),
    ('--sign KEYFILE', 'sign', str, 'sign it with an SSH key'),
    ('--source ADDRESS', 'source', source_address,
     'the address that the server will see; stun:HOST asks a STUN server for it'),
    ('how to knock:',),
    ('--via CARRIER', 'via', carrier,
     'udp (as a rule), icmp, syn (these may need root), ports, code, paper'),
    ('--port N', 'port', port_number, 'the UDP port; any will do'),
    ('-4', 'family', socket.AF_INET, 'IPv4 only'),
    ('-6', 'family', socket.AF_INET6, 'IPv6 only'),
    ('--wait TIME', 'wait', duration, 'how long to try, as a rule 5 s; 0: just send'),
    ('--time-check HOST', 'time_check', str, 'compare clocks if it does not open (SNTP, HTTP)'),
    ('what then:',),
    ('--proxy PORT', 'proxy', port_number, 'connect there and pipe, for ssh'),
    ('--keep', 'keep', True, 'knock again and again while COMMAND runs'),
    ('--print', 'show', True, 'show it instead of sending'),
    ('--print=sh', 'show', 'sh', 'as a line of shell'),
    ('-q, --quiet', 'quiet', True, 'errors only'),
    ('-v, --verbose', 'verbose', True, 'each datagram, too'),
    ('-h, --help', 'help', True, 'this'),
    ('--version', 'version', True, 'which one this is'))

def help_text():
    lines = ['usage: knock.py [options] TARGET [-- COMMAND ...]',
             '       knock.py save [NAME] < FILE', '', __doc__ or '',
             'TARGET is the name of a saved line, a knock:// line, or - to be asked for one;',
             'without any, $KNOCK_URI is read.']
    for typed, *told in OPTIONS:
        lines.append('  %-20s%s' % (typed, told[2]) if told else '\n' + typed)
    return '\n'.join(lines)

def read_options(words):
    """The command line as a namespace. argparse would take 2 ms of the 25 that a knock takes."""
    known = {name.strip(','): option for option in OPTIONS
             for name in option[0].split() if name.startswith('-')}
    args = types.SimpleNamespace(target=None, **{option[1]: None for option in known.values()})
    args.seconds, args.wait = 0, 5
    words = iter(words)
    for word in words:
        name, equals, value = (word, '', '') if word in known else word.partition('=')
        place, meaning = known[name][1:3] if name in known else ('target', word)
        if name not in known and word.startswith('-') and word != '-':
            raise KnockError('%s is not an option here; see knock.py --help' % name, 2)
        if place == 'target' and args.target is not None:
            raise KnockError('give one TARGET; a COMMAND stands behind --', 2)
        if equals and meaning is True:
            raise KnockError('%s takes no argument' % name, 2)
        if callable(meaning):
            value = value if equals else next(words, None)
            if value is None:
                raise KnockError('%s needs what --help calls %s' % tuple(known[name][0].split()), 2)
            meaning = meaning(value)
        setattr(args, place, meaning)
    return args

def main(argv=None):
    began, argv = time.monotonic(), list(sys.argv[1:] if argv is None else argv)
    sys.stderr = sys.stderr or io.StringIO()        # it may have been closed
    end = argv.index('--') if '--' in argv else len(argv)
    try:
        if argv[:1] == ['save']:
            return save(argv[1:]) or 0
        args = read_options(argv[:end])
        if args.help or args.version:
            print(help_text() if args.help else 'knock.py ' + __version__, flush=True)
            return 0
        args.command = argv[end + 1:]
        return knock(args, began)
    except KnockError as error:
        tell(str(error))
        return error.status
    except OSError as error:                    # a file, a COMMAND or a connection that fails
        tell(': '.join(filter(None, [error.filename, error.strerror or str(error)])))
        return 1
    except (KeyboardInterrupt, EOFError):
        return 1

if __name__ == '__main__':
    os._exit(main())        # all is flushed, and taking the modules apart costs 3 ms
