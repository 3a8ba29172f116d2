"""What comes from outside, mutated, and what each reader of it promises: nothing but KnockError, no
hang, bounded memory. Each promise is (strategy, function); shake() tries one for some seconds.

Mutations begin with something real and know its structure: a tree of JSON has parts taken out,
doubled, moved and exchanged, a text has lines and words treated so, bytes have bits and lengths.
"""

import contextlib
import copy
import ipaddress
import itertools
import json
import os
import resource
import signal
import socket
import struct
import tempfile
import time

import hypothesis
from hypothesis import strategies as st

import knock
import knockd

HERE = os.path.dirname(os.path.abspath(__file__))
LISTINGS = os.path.join(HERE, 'listings')
GOLDEN = os.path.join(os.path.dirname(HERE), 'unit', 'golden')
SECRET = knockd.encode_secret(bytes(range(32)))
HANG, GROWTH = 10, 64 << 10             # seconds for one input; kilobytes in one run
NOW = 1800000012345

CONFIG = '''# the box
[server]
id = box
hide = tcp/22, udp/51820, tcp/8000-8010
  , tcp/443
trust = lan, br-lan
carriers = udp, icmp, syn, ports, code
accept_in = auto
open_for = 30s
max_open_for = 2h

; two clients
[client anna]
secret = %s
allow = tcp/22
code = yes
paper = 1700000000:9
expires = 2027-01-31
[client bert]
secret = %s
any_source = yes
prefix4 = 24
may_run = reboot
[action reboot]
run = /sbin/reboot
''' % (SECRET, knockd.encode_secret(bytes(range(1, 33))))
CONFIG_WORDS = sorted(itertools.chain(
    knockd.SERVER_KEYS, knockd.CLIENT_KEYS, '= : # ; [ ] [server] [client [client\tanna] yes no , '
    'tcp/0 tcp/65536 0 -1 9999999999d 1.2.3.4/33 ::/0 % %% \r \x00 \ufeff \x0b \x1c \x85 \u2028'
    ' \xa0 \u0131 \u0661 auto none * ../.. @ \'" \ud800'.split(' ')))
LINE = 'knock://anna:%s@box.example.org:50000?id=box&via=udp&open=tcp/22,udp/51820&once=1' % SECRET
LINE_WORDS = ('knock:// : @ ? & = % %00 %ff %25 [ ] [::1] * id=* ; \ufeff 0 65536 via=ports once=2 '
              'tcp/22-21 " \u201c \ud800 \x85 \u0661 &amp; # /').split(' ')
JSON_LEAVES = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.5, 1e999, 1 << 70, '', '@', 'accept', 'knockd', '\0', '\ud800',
     [], {}, [[]], [None, 1], {'set': [1]}, {'set': [[1, {'drop': None}]]}, {'range': [1, 2]},
     {'range': 5}, {'&': [1, 2]}, {'elem': {'val': 1}}, {'prefix': {'addr': 'x', 'len': 1}}])


class Hang(AssertionError):
    """It took longer than HANG."""


# --- strategies -----------------------------------------------------------------------------------
def places(tree, path=()):
    """The path of every part of a tree."""
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], path + (key,))


def part_of(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def trees(draw, sources):
    """One of these JSON trees with a few of its parts changed."""
    tree = copy.deepcopy(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 4))):
        known = list(places(tree))[1:]
        if not known:
            break
        path = draw(st.sampled_from(known))
        holder, key = part_of(tree, path[:-1]), path[-1]
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = draw(JSON_LEAVES)
        elif kind == 2:
            holder[key] = copy.deepcopy(part_of(tree, draw(st.sampled_from(known))))
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder, dict):
            holder[draw(st.sampled_from(['set', 'accept', 'match', 'x', '']))] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))
    return tree


def pieces(text):
    """Lines, and words with what divides them."""
    found = []
    for line in text.splitlines(True):
        for number, word in enumerate(line.split(' ')):
            found.append(' ' * (number > 0) + word)
    return found


@st.composite
def texts(draw, sources, words):
    """One of these texts with words or characters taken out, doubled, moved, exchanged."""
    found = pieces(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        end = at + draw(st.integers(0, 3))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del found[at:end]
        elif kind == 1:
            found[at:end] = [draw(st.sampled_from(words))]
        elif kind == 2:
            found.insert(draw(st.integers(0, len(found))), ''.join(found[at:end]))
        elif kind == 3:
            found.insert(at, draw(st.text(max_size=6)))
        else:
            text = ''.join(found[at:end])
            cut = draw(st.integers(0, len(text)))
            found[at:end] = [text[:cut], draw(st.sampled_from(words)), text[cut + 1:]]
    return ''.join(found)


@st.composite
def strings(draw, sources):
    """One of these bytes strings with bytes changed, cut, added, and numbers that lie."""
    data = bytearray(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[at:at + 1] = draw(st.binary(max_size=3))
        elif kind == 1:
            number = draw(st.sampled_from([0, 1, 3, 4, 15, 16, 0x7fff, 0xffff, len(data)]))
            data[at:at + 2] = struct.pack(draw(st.sampled_from(['>H', '=H', '=I'])), number)
        elif kind == 2:
            del data[at:at + draw(st.integers(1, 20))]
        elif kind == 3:
            data[at:at] = data[:draw(st.integers(0, 40))]
        elif data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def content(name):
    with open(os.path.join(LISTINGS, name)) as file:
        return file.read()


def listings():
    """What nft -j listed of four boxes that this daemon guards."""
    return [json.loads(content(name)) for name in sorted(os.listdir(LISTINGS))
            if name.endswith('.json')]


def saved_listings():
    """What iptables-save printed of a box, and our own rules."""
    with open(os.path.join(GOLDEN, 'iptables')) as file:
        return [content('ufw.saved'), file.read()]


# --- promises -------------------------------------------------------------------------------------
def allow_errors(function):
    """The one error class is no failure."""
    def promise(value):
        with contextlib.suppress(knockd.KnockError, knock.KnockError):
            function(value)
    return promise


@allow_errors
def config_text(text):
    config = knockd.parse_config(text, '/etc/knockd/knockd.ini')
    known = knockd.Facts(NOW, ('lan',), (), None, True)
    knockd.warnings(config, known)
    knockd.NFT.whole(config, knockd.NFT.read({'nft': '{"nftables": []}'}, config), {}, (), 0)


def section_edit(drawn):
    """What was not named keeps its bytes, and what was named says what it shall."""
    text, section, key, value = drawn
    try:
        before = knockd.ini_sections(text, 'x')
    except knockd.KnockError:
        return
    if section not in before:
        return
    after_text = knockd.edited(text, section, [(key, value)])
    after = knockd.ini_sections(after_text, 'x')
    for name in before:
        others = {known: said for known, said in before[name].items()
                  if (name, known) != (section, key)}
        now = {known: said for known, said in after[name].items()
               if (name, known) != (section, key)}
        assert others == now, 'another key changed'
    assert after[section].get(key) == value
    taken = [line for line in text.split('\n') if line.strip() and '=' not in line]
    if value is not None and key not in before[section]:
        assert all(line.rstrip('\r') in after_text for line in taken), 'a line is lost'


@allow_errors
def line(text):
    address = knock.parse_uri(text)
    assert 0 < (address.port or 1) < 65536 and len(address.secret) == 32


@allow_errors
def journal(data):
    text = data.decode('latin-1')
    assert 0 <= knockd.journal_end(text) <= len(text)
    ledger = knockd.parse_ledger(text, 'box')
    again = knockd.parse_ledger(ledger.state_line(), 'box')
    assert again.state_line() == ledger.state_line(), 'it does not survive its own state line'


def real_journal():
    ledger = knockd.Ledger('box')
    lines = [ledger.state_line()]
    for number in range(4):
        lines.append(ledger.record('%016x' % (number % 2), '%032x' % number, NOW + number, 60000))
    lines.append(ledger.record('0' * 16, '', 0, 60000, (1700000000, 3)))
    return [''.join(lines).encode(), ledger.state_line().encode(),
            ''.join(lines).encode() + bytes(64), b'']


class Folder:
    """One folder for every input that must be a file."""
    path = None

    @classmethod
    def write(cls, data):
        with open(cls.path, 'wb') as file:
            file.write(data)
        return cls.path


def probation(data):
    now = 5000000
    made = knockd.Probation(Folder.write(data), now)
    assert made.state in (knockd.ON_TRIAL, knockd.PASSED, knockd.LAPSED)
    left = made.left(now)
    assert left is None or 0 <= left <= knockd.MONTH * 1000, 'it ends late'
    made.look(now + 1)
    made.due(now)


def probation_notes():
    text = knockd.probation_text
    return [text(knockd.ON_TRIAL, 600000, 4900000, knockd.boot_id()).encode(),
            text(knockd.ON_TRIAL, 600000, 0, '').encode(), text(knockd.PASSED).encode(),
            b'{"state": "on trial", "left": 1e999, "mono": 1, "boot": ""}', b'[' * 9000]


def netlink(data):
    assert all(isinstance(change, int) for change in knockd.changes_told(data))


def netlink_messages():
    """A new element (kind 12), a generation (15), a new rule (6) of nf_tables (10)."""
    def message(kind, body):
        return struct.pack('=IHHII', 16 + len(body), 10 << 8 | kind, 0, 0, 0) + body
    element, end = message(12, bytes(60)), message(15, bytes(20))
    gone = message(2, b'\1\0\0\7\x0b\0\1\0knockd\0\0')
    return [element, element + end, message(6, bytes(100)) + end, element * 20 + end, gone + end]


def attributes(data):
    """Of an interface, as rtnetlink answers."""
    found = knockd.netlink_attributes(data)
    assert all(value in data and kind < 1 << 14 for kind, value in found.items())


def interface_attributes():
    def attribute(kind, value):
        return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)
    about = attribute(1, b'veth\0') + attribute(4, b'bridge\0')
    return [about, attribute(3, b'eth0\0') + attribute(0x8012, about), b'']


def codes_memory(data):
    """Whatever it says, nobody has more tries by it, or sleeps for ever."""
    now = 5000000
    codes = knockd.recalled_codes(Folder.write(data), now)
    wrong, asleep_until, forgiven_at = codes.memory()
    assert all(isinstance(number, int) and number >= 0 for number in codes.memory())
    assert asleep_until <= now + 2 * 3600000 and forgiven_at <= now + 8 * 3600000
    codes.fail(now)
    assert codes.wrong == (wrong + 1 if wrong < 2 else 0)


NFT_CONFIG = knockd.parse_config(CONFIG, '/etc/knockd/knockd.ini')


def seen_by(tool, outputs):
    """As see_box() has it."""
    try:
        return tool.read(outputs, NFT_CONFIG)
    except knockd.MISREAD as error:
        raise knockd.KnockError(repr(error))


@allow_errors
def nft_listing(tree):
    seen = seen_by(knockd.NFT, {'nft': json.dumps(tree)})
    knockd.decoy_ports(NFT_CONFIG, seen)
    knockd.NFT.whole(NFT_CONFIG, seen, {22: 61022}, (), 0)


@allow_errors
def nft_text(data):
    seen_by(knockd.NFT, {'nft': data.decode('utf-8', 'replace')})


@allow_errors
def saved_listing(text):
    outputs = {'iptables-save': text, 'ip6tables-save': text}
    seen = seen_by(knockd.IPTABLES, outputs)
    knockd.decoy_ports(NFT_CONFIG, seen)
    knockd.IPTABLES.whole(NFT_CONFIG, seen, {22: 61022}, (), 0)
    seen_by(knockd.NFT, dict(outputs, nft='{"nftables": []}'))


class Answering:
    """A Unix socket that answers one question with this."""

    def __init__(self, data):
        self.data = data

    def bind(self, path):
        open(path, 'w').close()

    def settimeout(self, *_):
        pass

    connect = send = close = settimeout

    def recv(self, size):
        return self.data


def status_answer(data):
    real = socket.socket
    socket.socket = lambda *_: Answering(data)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = knockd.asked(folder + '/played', b'status')
    finally:
        socket.socket = real
    assert isinstance(report, dict)
    if data == STATUS:
        assert report, 'the answer was read'


STATUS = json.dumps({
    'version': '0.2', 'since': NOW, 'hidden': ['tcp/22'], 'problem': None, 'openings': [],
    'config': {'path': '/etc/knockd/knockd.ini', 'last_good': False}, 'clients': {}}).encode()

REQUEST = struct.pack('>HHI12s', 1, 0, 0x2112a442, bytes(range(12)))
STUN4 = struct.pack('>HHI12s', 0x101, 24, 0x2112a442, bytes(range(12))) + \
    struct.pack('>HH', 0x8022, 5) + b'abcde' + bytes(3) + \
    struct.pack('>HHBBHI', 0x20, 8, 0, 1, 1, 0xe112a643)
STUN6 = struct.pack('>HHI12s', 0x101, 24, 0x2112a442, bytes(range(12))) + \
    struct.pack('>HHBBH', 0x20, 20, 0, 2, 1) + bytes(16)


def stun(data):
    address = knock.stun_address(data, REQUEST)
    assert address is None or ipaddress.ip_address(str(address)) == address


SNTP_REQUEST = b'\x23' + bytes(39) + b'12345678'
SNTP = b'\x24\1' + bytes(22) + b'12345678' + bytes(8) + struct.pack('>II', 3900000000, 0)
HTTP = (b'HTTP/1.1 200 OK\r\nServer: x\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n',
        b'HTTP/1.1 200 OK\r\ndate:Tue, 29 Feb 9999 23:59:60 GMT\r\n\r\n')


def sntp(data):
    found = knock.sntp_time(data, SNTP_REQUEST)
    assert found is None or 0 <= found < 1 << 32


def http(data):
    found = knock.http_time(data)
    assert found is None or isinstance(found, float)


KEYS = knockd.derive_keys(bytes(range(32)), 'box')


@allow_errors
def plain(data):
    """What the key's owner sealed; he may be the attacker of others."""
    request = knockd.decode_plain(data)
    assert request is None or knockd.OPS and request.op in knockd.OPS.values()


def plains():
    service = knockd.Service(6, 8000, 8010)
    found = []
    for op, services, action in (('open', (service,), None), ('run', (), 'reboot'),
                                 ('close', (), None)):
        request = knockd.Request(op, NOW, ipaddress.ip_address('192.0.2.1'), 30, services, action,
                                 None, None)
        found.append(knock.encode_plain(request, bytes(20)))
    return found


EDITS = st.tuples(
    texts([CONFIG, CONFIG.replace('\n', '\r\n')], CONFIG_WORDS),
    st.sampled_from(['server', 'client anna', 'client bert', 'action reboot']),
    st.sampled_from(['hide', 'secret', 'code', 'allow', 'id', 'expires']),
    st.sampled_from([None, 'x', 'tcp/22, tcp/25', SECRET]))

PROMISES = {
    'config': (texts([CONFIG], CONFIG_WORDS), config_text),
    'edit': (EDITS, section_edit),
    'line': (texts([LINE, LINE.replace('&', ' &').replace('?', ' ?')], LINE_WORDS), line),
    'journal': (strings(real_journal()), journal),
    'probation': (strings(probation_notes()), probation),
    'netlink': (strings(netlink_messages()), netlink),
    'attributes': (strings(interface_attributes()), attributes),
    'codes': (strings([b'[2, 5060000, 8600000]', b'[0, 0, 0]', b'[' * 9000]), codes_memory),
    'nft': (trees(listings()), nft_listing),
    'nft-text': (strings([json.dumps(listings()[0])[:3000].encode(), b'[' * 9000]), nft_text),
    'saved': (texts(saved_listings(), '-j -g ! -m --dport --reject-with -A : * " \\ ACCEPT 1:2:3 '
                                      'ssh \u0661 -p tcp KNOCKD + ,'.split()), saved_listing),
    'status': (strings([STATUS, b'[]', b'[' * 9000]), status_answer),
    'stun': (strings([STUN4, STUN6]), stun),
    'sntp': (strings([SNTP]), sntp),
    'http': (strings(list(HTTP)), http),
    'plain': (strings(plains()), plain),
}


# --- who tries them -------------------------------------------------------------------------------
def resident():
    """Kilobytes of this process."""
    with open('/proc/self/statm') as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


def cry(*_):
    raise Hang('more than %d s for one input' % HANG)


def in_time(promise, value):
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        promise(value)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def shake(name, seconds, seed, path):
    """Tries one promise for so long; how many inputs. path: a file that may be written."""
    strategy, promise = PROMISES[name]
    Folder.path = path
    tried, memory = 0, None
    end = time.monotonic() + seconds
    old = signal.signal(signal.SIGALRM, cry)
    try:
        while time.monotonic() < end:
            @hypothesis.seed(seed + tried)
            @hypothesis.settings(max_examples=200, deadline=None, database=None,
                                 suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(strategy)
            def some(value):
                nonlocal tried
                tried += 1
                if time.monotonic() < end:
                    in_time(promise, value)
            some()
            memory = memory or resident()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert resident() - memory < GROWTH, '%s grows' % name
    return tried
