#!/usr/bin/env python3
"""knock.py opens a service that knockd.py hides: one UDP packet, then the port answers you alone.

    knock.py 'knock://laptop:SECRET@server.example?id=...'      opens, and waits until it is seen
    ssh me@server.example

The packet is encrypted and authenticated with a key that only you and the server have, names this
moment, and is worth nothing once the server has seen it. See README.md for the bytes.
"""
__version__ = '0.1.0'

import sys

if __name__ == '__main__' and sys.argv[1:] == ['--version']:
    print('knock.py ' + __version__)        # before the imports: scripts ask this often
    sys.exit(0)

import argparse
import errno
import os
import select
import socket
import subprocess
import time

# --- shared with knock.py: the protocol knock/1, the same bytes in both files -------------------
# tests/unit/test_static.py compares them: edit here, copy there. All integers on the wire are
# big-endian, all times integer milliseconds since 1970. Nothing here touches the world.
import base64
import collections
import ipaddress
import operator
import re
import struct
import sys

try:
    import _sha2                    # CPython's own SHA-2, if it was built with it
except ImportError:
    try:
        import _sha256 as _sha2     # before 3.12
    except ImportError:
        _sha2 = None
if '_hashlib' not in sys.modules and _sha2:
    sys.modules['_hashlib'] = None      # OpenSSL would cost every start 4 MB and 6 ms
try:
    import hashlib
    import hmac
except ImportError:                     # a distribution's own hmac.py insists on OpenSSL
    del sys.modules['_hashlib']
    import hashlib
    import hmac
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

encode_secret = encode_base32           # 32 bytes as 52 characters

def decode_secret(text):
    """Reads what encode_secret() writes; lower case, spaces and hyphens are forgiven."""
    text = re.sub('[ -]', '', text)
    if not re.match(r'[A-Za-z2-7]{52}\Z', text):       # before upper(): dotless i becomes I
        raise KnockError('the secret is not 52 characters of base32 (A-Z and 2-7)', 2)
    text = text.upper()
    secret = base64.b32decode(text + '====')
    if encode_base32(secret) != text:
        raise KnockError('the secret does not end as a secret ends: a character is wrong', 2)
    return secret

def derive_keys(secret, server_id):
    """One 32-byte key a label: K(label) = HKDF(secret, "knock/1 " label 0x00 server id)."""
    root = hmac_sha256(b'knock/1', secret)              # HKDF-Extract: RFC 5869, 2.2
    tail = b'\x00' + server_id.encode('ascii')
    return {label: hkdf_expand(root, b'knock/1 ' + label.encode('ascii') + tail, 32)
            for label in LABELS}

def fingerprint(keys):
    """What the ledger calls a key: 16 hex digits that tell nothing about it."""
    return keys['ledger'].hex()[:16]

be64 = struct.Struct('>Q').pack

def step_of(time):
    """T, the number of the step that holds this millisecond."""
    return time // STEP

def window_steps(now, window):
    """The steps whose tokens may be accepted now; both in milliseconds."""
    return range(max(0, step_of(now - window)), step_of(now + window) + 1)

def tag_at(keys, step):
    """The 8 bytes that begin every datagram of this client in this step."""
    return hmac_sha256(keys['tag'], be64(step))[:TAG_SIZE]

def keystream(key, nonce, length):
    """Block i is HMAC(key, nonce || be32(i)), i from 0; plain XOR this is sealed, and back."""
    blocks = range((length + 31) // 32)
    stream = b''.join(hmac_sha256(key, nonce + struct.pack('>I', i)) for i in blocks)
    return stream[:length]

def datagram_mac(keys, body):
    """The MAC over tag || nonce || sealed."""
    return hmac_sha256(keys['mac'], body)[:MAC_SIZE]

def seal(keys, nonce, plain, step):
    """tag(8) || nonce(16) || plain XOR keystream || mac(16): encrypt, then MAC."""
    sealed = bytes(map(operator.xor, plain, keystream(keys['enc'], nonce, len(plain))))
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
    return bytes(map(operator.xor, sealed, keystream(keys['enc'], nonce, len(sealed))))

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
    text = text.strip()
    match = re.match(r'(tcp|udp)/(\d{1,5})(?:-(\d{1,5}))?\Z', text, re.ASCII)
    if match:
        low, high = int(match.group(2)), int(match.group(3) or match.group(2))
        if 0 < low <= high < 65536:
            return Service(PROTOCOLS[match.group(1)], low, high)
    shown = repr(text) if len(text) < 17 else 'this'    # a longer one may hold a secret
    raise KnockError('%s is not a service; write tcp/22, udp/51820 or tcp/8000-8010' % shown, 2)

def format_service(service):
    name = {number: name for name, number in PROTOCOLS.items()}[service.proto]
    high = '-%d' % service.high if service.high > service.low else ''
    return '%s/%d%s' % (name, service.low, high)

def parse_services(text):
    """A list with commas; empty text is an empty list, a repeat counts once."""
    services = [parse_service(part) for part in text.split(',')] if text.strip() else []
    return tuple(collections.OrderedDict.fromkeys(services))

def format_services(services):
    return ','.join(format_service(service) for service in services)

def parse_seconds(text):
    """30, 30s, 5m, 2h, 1d: whole seconds."""
    match = re.match(r'(\d{1,9})\s*([smhd]?)\Z', text.strip(), re.ASCII)
    if not match:
        raise KnockError('%r is not a time; write 30s, 5m or 2h' % text.strip(), 2)
    return int(match.group(1)) * {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400}[match.group(2)]

# --- end of the part shared with knock.py --------------------------------------------------------

# --- knock: what is sent -------------------------------------------------------------------------
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.25   # seconds between two connects that probe the port
KNOCK_PAUSE = 1.0                       # seconds between two knocks
TOUCH_PAUSE = 0.15                      # for the answer of a touched port
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

def knock_request(args, address, now, source):
    """What the command line wants, as a Request of this millisecond."""
    services = parse_services(args.open) if args.open else \
        () if args.close or args.run else address.services
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
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data + b'\0' * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def echo_request(version, data, sequence_number):
    """RFC 792, RFC 4443; the kernel fills in ICMPv6 checksums, and the identifier of a ping."""
    kind = 8 if version == 4 else 128
    header = struct.pack('>BBHHH', kind, 0, 0, sequence_number, 1)
    if version == 4:
        padded = header + data + b'\0' * (len(data) % 2)
        header = struct.pack('>BBHHH', kind, 0, checksum(padded), sequence_number, 1)
    return header + data

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


# --- edges: names, sockets, the clock ------------------------------------------------------------
def resolve(host, family):
    """Every address of a host. The name goes as bytes: a str needs a codec routers lack."""
    try:
        found = socket.getaddrinfo(host.encode('ascii'), 9, family, socket.SOCK_DGRAM)
    except UnicodeEncodeError:
        raise KnockError('%r is not ASCII; write its xn-- form' % host, 2)
    except OSError as error:
        raise KnockError('%s: %s' % (host, error.strerror or error))
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

def translated(target):
    """Does a NAT64 stand between? Its prefix is well known, or this network's own (RFC 7050)."""
    prefixes = [NAT64]
    try:
        for entry in socket.getaddrinfo(b'ipv4only.arpa', 9, socket.AF_INET6, socket.SOCK_DGRAM):
            prefixes.append(ipaddress.IPv6Network((entry[4][0].partition('%')[0], 96), False))
    except OSError:
        pass                    # no such name here: no NAT64
    return any(ipaddress.ip_address(bare(target)) in prefix for prefix in prefixes)

def source_to_name(target):
    """Our own address, if the server will see it too: then a captured knock is worth nothing
    from anywhere else. None behind NAT."""
    try:
        own = own_address(target)
    except OSError:
        return None
    if not own.is_global or own.version == 6 and translated(target):
        return None
    return own

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
    sock = begin_connect(target, port)
    if sock:
        ready_sockets([sock], TOUCH_PAUSE)
        sock.close()

def sign_with(keyfile):
    """A function that signs as ssh-keygen does; the agent and FIDO keys work as with ssh."""
    import base64

    def sign(message):
        try:
            process = subprocess.Popen(
                ['ssh-keygen', '-Y', 'sign', '-f', keyfile, '-n', 'knock'],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise KnockError('ssh-keygen: %s' % error.strerror)
        armored, complaint = [text.decode('ascii', 'replace')
                              for text in process.communicate(message)]
        if process.returncode:
            raise KnockError('ssh-keygen cannot sign with %s: %s' % (keyfile, complaint.strip()))
        return base64.b64decode(''.join(armored.splitlines()[1:-1]))
    return sign

def say(args, text, level=0):
    """For people: on a terminal, or where -v asks for it."""
    if not args.quiet and (args.verbose or level == 0 and sys.stderr.isatty()):
        print('knock: ' + text, file=sys.stderr, flush=True)

def knock_once(args, address, keys, target, attempt):
    """One fresh knock to one target."""
    now, port = int(time.time() * 1000), args.port or address.port or random_port()
    if args.via in ('udp', 'icmp'):
        source = args.source or source_to_name(target)
        datagram = knock_datagram(keys, address.server_id,
                                  knock_request(args, address, now, source), os.urandom,
                                  args.sign and sign_with(args.sign))
        {'udp': send_udp, 'icmp': send_echo}[args.via](target, port, datagram)
        return '%d bytes to %s port %d' % (len(datagram), target.address[0], port)
    if args.via == 'syn':
        send_syn(target, port, syn_token(keys, step_for(now, attempt)))
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
    return connected + failed

def begin_connect(target, port):
    """A socket that is connecting, or None."""
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if sock.connect_ex(with_port(target, port)) in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
        return sock
    sock.close()
    return None

def wait_open(targets, port, seconds, knock_again):
    """The first target whose port accepts, or None when the time is up.

    Earlier connects stay while new ones begin: their answer may be a slow network's."""
    began, pause, pending, attempt = time.monotonic(), FIRST_PAUSE, {}, 0
    probe_at, knock_at = began, began + KNOCK_PAUSE
    try:
        while time.monotonic() < began + seconds:
            if time.monotonic() >= knock_at:
                attempt += 1
                knock_again(attempt)
                knock_at, pause = time.monotonic() + KNOCK_PAUSE, FIRST_PAUSE
            if time.monotonic() >= probe_at:
                pending.update((begin_connect(target, port), target) for target in targets)
                pending.pop(None, None)
                pause = min(1.3 * pause, LAST_PAUSE)
                probe_at = time.monotonic() + pause
            until = min(probe_at, knock_at, began + seconds) - time.monotonic()
            for sock in ready_sockets(list(pending), max(0, until)):
                if sock in pending and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return pending[sock]
                if pending.pop(sock, None):
                    sock.close()
        return None
    finally:
        for sock in pending:
            sock.close()


# --- command line --------------------------------------------------------------------------------
def read_target(args):
    """(Address, its keys) of TARGET; paper knocks need no more than a host."""
    if args.via == 'paper' and not args.target.startswith('knock:'):
        return Address('', b'', args.target, None, '', 'paper', parse_services(args.open or ''),
                       False), {}
    address = parse_uri(args.target)
    return address, derive_keys(address.secret, address.server_id)

def read_paper():
    """The next line of the sheet, typed."""
    print('the six ports of the next line of the sheet: ', end='', file=sys.stderr, flush=True)
    ports = re.findall('[0-9]+', sys.stdin.readline())[-6:]
    if len(ports) != 6 or any(not 1023 < int(port) < 65536 for port in ports):
        raise KnockError('these are not six ports from 1024 to 65535', 2)
    return [int(port) for port in ports]

def show(args, address, keys):
    """What would be sent, for people and other tools."""
    now = int(time.time() * 1000)
    step = step_of(now)
    if args.via in ('udp', 'icmp'):
        request = knock_request(args, address, now, args.source)
        print(knock_datagram(keys, address.server_id, request, os.urandom,
                             args.sign and sign_with(args.sign)).hex())
    elif args.via == 'code':
        print('%s  (%d s left)' % (code_at(keys, step), (STEP - now % STEP) // 1000))
    elif args.via == 'syn':
        print(syn_token(keys, step).hex())
    else:
        print(' '.join(map(str, sequence(args.via, keys, step, args.paper))))

def knock(args, began):
    """Knocks, and sees that it worked where that can be seen."""
    args.via = args.via or (parse_uri(args.target).via if ':' in args.target else 'udp')
    address, keys = read_target(args)
    if (args.run or args.close or args.sign or args.source) and args.via not in ('udp', 'icmp'):
        raise KnockError('--via %s has no room for --run, --close, --sign, --source' % args.via, 2)
    args.paper = read_paper() if args.via == 'paper' else None
    if args.show:
        return show(args, address, keys)
    targets = resolve(address.host, args.family)
    if args.source:
        family = socket.AF_INET if args.source.version == 4 else socket.AF_INET6
        targets = [target for target in targets if target.family == family] or targets
    knock_all(args, address, keys, targets, 0)
    services = parse_services(args.open) if args.open else address.services
    port = None if args.close or args.run or not args.wait else \
        probed_port(services, address.once)
    if port is None:
        return say(args, 'sent to %s' % address.host)
    found = wait_open(targets, port, args.wait, lambda attempt: args.via == 'paper' or knock_all(
        args, address, keys, targets, attempt))
    if found is None:
        raise KnockError('tcp/%d at %s did not open within %d s'
                         % (port, address.host, args.wait))
    return say(args, 'open in %d ms' % ((time.monotonic() - began) * 1000))

def option_value(read):
    """An argparse type out of a function that raises KnockError."""
    def value(text):
        try:
            return read(text)
        except (KnockError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error))
    return value

def duration(text):
    if parse_seconds(text) > 65535:
        raise KnockError('%r is longer than 65535 s' % text)
    return parse_seconds(text)

def port_number(text):
    return parse_service('udp/' + text).low

def command_line():
    parser = argparse.ArgumentParser(
        prog='knock.py', description='Opens what knockd.py hides, for your address alone.',
        epilog="Example: knock.py --open tcp/22 'knock://laptop:...@server.example?id=...'")
    parser.add_argument('target', metavar='TARGET', help='the knock:// line')
    parser.add_argument('--open', metavar='SERVICES', help='what to open, as tcp/22,udp/51820; '
                        'otherwise what the line or the server says')
    parser.add_argument('--run', metavar='ACTION', help='run an action of the server instead')
    parser.add_argument('--via', choices=CARRIERS, help='how the knock travels: udp (as a rule), '
                        'icmp and syn (may need root), ports, code and paper (closed TCP ports)')
    parser.add_argument('--sign', metavar='KEYFILE', help='sign it with an SSH key')
    parser.add_argument('--print', dest='show', action='store_true',
                        help='show the ports, the code or the datagram instead of sending')
    parser.add_argument('--close', action='store_true', help='close what you opened')
    parser.add_argument('--for', dest='seconds', metavar='TIME', type=option_value(duration),
                        default=0, help='how long it stays open: 30s, 5m')
    parser.add_argument('--port', metavar='N', type=option_value(port_number),
                        help='the UDP port to knock at; any port will do, so a random one')
    parser.add_argument('--source', metavar='ADDRESS', type=option_value(ipaddress.ip_address),
                        help='the address that the server will see you come from')
    parser.add_argument('-4', dest='family', action='store_const', const=socket.AF_INET,
                        default=socket.AF_UNSPEC, help='IPv4 only')
    parser.add_argument('-6', dest='family', action='store_const', const=socket.AF_INET6,
                        help='IPv6 only')
    parser.add_argument('--wait', metavar='TIME', type=option_value(duration), default=5,
                        help='how long to try until the TCP port answers; 0: just send')
    parser.add_argument('-q', '--quiet', action='store_true', help='errors only')
    parser.add_argument('-v', '--verbose', action='store_true', help='each datagram, too')
    parser.add_argument('--version', action='version', version='knock.py ' + __version__)
    return parser

def main(argv=None):
    began = time.monotonic()
    args = command_line().parse_args(argv)
    try:
        if args.open:
            parse_services(args.open)
        if args.run and not ACTION.match(args.run):
            raise KnockError('%r is not the name of an action' % args.run, 2)
        knock(args, began)
    except KnockError as error:
        print('knock: %s' % error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 1
    return 0

if __name__ == '__main__':
    sys.exit(main())
