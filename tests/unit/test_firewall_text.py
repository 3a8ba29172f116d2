"""The text for nft, against a ruleset written by hand from the one that passed every probe, and
what is read from nft and /proc. That the kernel takes it is tried where namespaces are allowed."""
import ipaddress
import json
import random
import re
import shutil
import subprocess
import sys

import pytest

import knockd

SECRET = knockd.encode_secret(bytes(range(32)))
BASE = '''[server]
id = home
hide = tcp/22, udp/51820, tcp/8000-8010
trust = lan
%s
[client anna]
secret = ''' + SECRET
NOW = knockd.Moment(1700000000000, 5000000)


def opening(client, source, *rest, once=False, left=30000):
    return knockd.PortOpening(client, ipaddress.ip_network(source), *rest, once=once,
                          expires=NOW.mono + left)


ANNA4 = opening('anna', '203.0.113.5', 6, 22)
BERT6 = opening('b.e-r_T', '2001:db8::5', 17, 51820, left=7999)
LIVING = [(ipaddress.ip_address('198.51.100.7'), 50000, 22),
          (ipaddress.ip_address('2001:db8::7'), 50001, 8000)]

# Written from the ruleset that passed every probe (research/firewall.md); sets filled as above.
STABLE = '''
 set hidden { type inet_proto . inet_service; flags interval; auto-merge;
  elements = { tcp . 22, tcp . 8000-8010, udp . 51820 } }
 set open4 { type ipv4_addr . inet_proto . inet_service; flags timeout;
  elements = { 203.0.113.5 . tcp . 22 timeout 30000ms comment "anna" } }
 set open6 { type ipv6_addr . inet_proto . inet_service; flags timeout;
  elements = { 2001:db8::5 . udp . 51820 timeout 7999ms comment "b.e-r_T" } }
 set living4 { type ipv4_addr . inet_service . inet_service; flags timeout; timeout 12h;
  elements = { 198.51.100.7 . 50000 . 22 } }
 set living6 { type ipv6_addr . inet_service . inet_service; flags timeout; timeout 12h;
  elements = { 2001:db8::7 . 50001 . 8000 } }
'''
GUARD = [
    'type filter hook prerouting priority -149', 'policy accept',
    'tcp flags & (syn | ack) != syn ct state established,related return',
    'meta l4proto != tcp ct state established,related return', 'iifname { "lo", "lan" } return',
    'fib daddr type { broadcast, multicast } meta l4proto . th dport @hidden drop',
    'fib daddr type { local, anycast } meta l4proto . th dport @hidden jump check']
CHECK = [
    'ip saddr . meta l4proto . th dport @open4 meta mark set meta mark | 0x40000000 accept',
    'ip6 saddr . meta l4proto . th dport @open6 meta mark set meta mark | 0x40000000 accept',
    'tcp flags & (syn | ack) != syn ip saddr . tcp sport . tcp dport @living4 return',
    'tcp flags & (syn | ack) != syn ip6 saddr . tcp sport . tcp dport @living6 return']
ALIVE = 'ct state invalid tcp flags & (ack | rst) != 0 return'
# What a packet gets that is neither open nor living: answer, what the box does itself, the end of
# the check; `decoy` stands for the lines that send TCP to a closed port.
ENDS = [
    ('drop', 'accept', ['meta l4proto tcp drop', 'drop']),
    ('drop', 'drop', ['meta l4proto tcp drop', 'drop']),
    ('reset', 'accept', ['meta l4proto tcp reject with tcp reset', 'reject']),
    ('prohibited', 'accept', ['meta l4proto tcp reject with icmpx type admin-prohibited',
                              'reject with icmpx type admin-prohibited']),
    ('box', 'accept', [ALIVE, 'decoy', 'meta l4proto tcp drop',
                       'meta nfproto ipv6 udp checksum 0 drop', 'reject']),
    ('box', 'drop', ['decoy', 'meta l4proto tcp drop', 'drop']),
    ('box', 'reject', ['decoy', 'meta l4proto tcp drop', 'reject']),
    ('box', 'prohibit', ['meta l4proto tcp reject with icmpx type admin-prohibited',
                         'reject with icmpx type admin-prohibited']),
]


# What the box does with packets to closed ports: nothing of its own, or what a firewall says.
DECOYS = dict(zip([22] + list(range(8000, 8011)), range(61022, 61034)))
NOTHING = knockd.Box({}, None, None, False)
BOXES = {'accept': knockd.Box(DECOYS, None, None, True),
         'drop': knockd.Box(DECOYS, 'drop', 'drop', False),
         'reject': knockd.Box(DECOYS, 'reject with tcp reset', 'reject', True),
         'prohibit': knockd.Box(DECOYS, *['reject with icmpx type admin-prohibited'] * 2,
                                labels=False)}


def make_config(lines='', text=BASE):
    return knockd.parse_config(text % lines, '/etc/knockd/knockd.ini')


def ruleset(lines='', policy='accept', openings=(ANNA4, BERT6), living=LIVING, text=BASE):
    config, box = make_config(lines, text), BOXES[policy]
    box = box if config.answer == 'box' else box._replace(decoys={})
    return knockd.nft_ruleset(config, box, list(openings), list(living), NOW)


def blocks(text):
    """{'chain guard': [lines]}: sets, maps and chains of a table, whatever their order."""
    found, name, depth = {}, None, 0
    for token in re.findall(r'"[^"]*"|[{}\n;]|[^\s{};]+', text):
        depth += {'{': 1, '}': -1}.get(token, 0)
        if name is None:
            words = found.setdefault('', [])
            words.append(token)
            if token == '{' and words[-3] in ('set', 'map', 'chain'):
                name, depth = ' '.join(words[-3:-1]), 1
                found[name] = ''
                del words[-3:]
        elif depth == 0:
            name = None
        else:
            found[name] += '\n' if token == ';' else token if token == '\n' else ' %s ' % token
    found.pop('', None)
    return {name: [' '.join(line.split()).replace(' ,', ',') for line in body.split('\n')
                   if line.strip()] for name, body in found.items()}


def unordered(lines):
    """Lines of a set or map, whose order means nothing."""
    return sorted(sorted(line.replace('{', ',').replace('}', ',').split(', ')) for line in lines)


# --- the whole table ----------------------------------------------------------------------------
@pytest.mark.parametrize('answer,policy,end', ENDS, ids=['%s, %s' % each[:2] for each in ENDS])
def test_the_ruleset_is_the_one_that_passed_every_probe(answer, policy, end):
    found, wanted = blocks(ruleset('answer = ' + answer, policy)), blocks(STABLE)
    for name in wanted:
        assert unordered(found.pop(name)) == unordered(wanted[name]), name
    guard, check = found.pop('chain guard'), found.pop('chain check')
    assert guard[:len(GUARD)] == GUARD
    assert [line for line in check if line in CHECK] == CHECK
    left = [line for line in check if line not in CHECK]
    assert [line for line in left if '@decoy' not in line] == [
        line for line in end if line != 'decoy']
    decoys = [number for number, line in enumerate(left) if '@decoy' in line]
    assert bool(decoys) == ('decoy' in end)
    if decoys:
        assert decoys == list(range(end.index('decoy'), end.index('decoy') + len(decoys)))
    for name, lines in found.items():       # what serves the decoys touches nothing else
        if name.startswith('chain') and lines[0].startswith('type '):
            assert lines[:2] == ['type filter hook output priority -301', 'policy accept']
            assert all(line.startswith('tcp sport @decoys tcp flags & rst == rst ')
                       for line in lines[2:])


def test_what_has_no_decoy_is_never_accepted():
    """In one rule: where the map has no answer for a port, what follows in it is not done."""
    check = blocks(ruleset('answer = box'))['chain check']
    accepting = [line for line in check if 'accept' in line.split() and line not in CHECK]
    assert len(accepting) == 2
    assert all('tcp dport set tcp dport map @decoy ' in line for line in accepting)
    assert check.index('meta l4proto tcp drop') > max(map(check.index, accepting))


def test_each_hidden_port_has_its_decoy_there_and_back():
    found = blocks(ruleset('answer = box'))
    pairs = sorted(DECOYS.items())
    for name, wanted in (('map decoy', ['%d : %d' % pair for pair in pairs]),
                         ('map real', ['%d : %d' % pair[::-1] for pair in pairs]),
                         ('set decoys', ['%d' % pair[1] for pair in pairs])):
        line, = [line for line in found[name] if line.startswith('elements')]
        assert line == 'elements = { %s }' % ', '.join(wanted)


def test_the_table_is_filled_anew_in_one_transaction_and_never_deleted():
    """Between a deletion and the next table packets would pass."""
    text = ruleset('answer = box')
    assert 'delete table' not in text and text.count('flush table inet knockd\n') == 1
    before, after = text.split('flush table inet knockd\n')
    assert 'elements' not in before and 'chain' not in before
    assert set(blocks(before)) == {name for name in blocks(after) if not name.startswith('chain')}
    flushed = re.findall(r'^flush (set|map) inet knockd (\w+)$', after, re.M)
    assert sorted(map(' '.join, flushed)) == sorted(blocks(before))
    assert text.endswith('}\n') and text.count('{') == text.count('}')


def test_nothing_open_and_nothing_living_leave_the_sets_empty():
    found = blocks(ruleset('answer = drop', openings=(), living=()))
    for name in ('open4', 'open6', 'living4', 'living6'):
        assert not [line for line in found['set ' + name] if line.startswith('elements')]


def test_the_mark_of_the_config_is_set():
    assert 'meta mark set meta mark | 0x00010000 accept' in ruleset('mark = 0x10000')


def test_ports_that_are_hidden_twice_are_one_element_each():
    text = BASE.replace('tcp/22, udp', 'tcp/22, tcp/22, tcp/20-30, tcp/25-40, tcp/41, tcp/43, udp')
    text = ruleset('answer = drop', text=text)
    elements = re.search(r'elements = \{ (tcp \. .*) \}', text).group(1).split(', ')
    covered = sorted((protocol, port) for protocol, _, ports in map(str.split, elements)
                     for port in range(int(ports.split('-')[0]), int(ports.split('-')[-1]) + 1))
    assert covered == sorted([('tcp', port) for port in range(20, 42)] +
                             [('tcp', 43)] + [('tcp', port) for port in range(8000, 8011)] +
                             [('udp', 51820)]), 'nft refuses elements that overlap'


VARIANTS = [
    ('answer = box', 'accept', BASE), ('answer = box', 'drop', BASE),
    ('answer = box', 'reject', BASE), ('answer = box', 'prohibit', BASE),
    ('answer = drop', 'accept', BASE), ('answer = reset', 'accept', BASE),
    ('answer = prohibited', 'accept', BASE),
    ('answer = drop', 'accept', BASE.replace('trust = lan', 'trust = a.b@c:d+e-f_g')),
    ('answer = drop', 'accept', BASE.replace('tcp/22, ', 'tcp/22, tcp/22-23, tcp/1-65535, ')),
]


def test_a_config_that_hides_nothing_leaves_no_table():
    """So does a probation that nobody passed. Adding first, for it may not be there."""
    text = ruleset('answer = drop', text=BASE.replace('tcp/22, udp/51820, tcp/8000-8010', ''))
    assert text == 'table inet knockd\ndelete table inet knockd\n'


def in_namespace(script):
    """What a shell says that has a network and an nft of its own; skips where that is forbidden."""
    if not shutil.which('unshare') or not shutil.which('nft'):
        pytest.skip('unshare or nft is not there')
    process = subprocess.Popen(['unshare', '-Urn', 'sh', '-e', '-c', script],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.communicate()[0].decode()
    if 'unshare' in said:
        pytest.skip(said.strip())
    assert process.returncode == 0, said
    return said


def loaded(text):
    return 'nft -f - <<"END"\n%s\nEND\n' % text


@pytest.mark.parametrize('lines,policy,text', VARIANTS, ids=range(len(VARIANTS)))
def test_the_kernel_takes_it_and_every_change(lines, policy, text):
    table, openings = ruleset(lines, policy, text=text), [ANNA4, BERT6]
    known = {opening[1:5]: opening for opening in openings}
    in_namespace(''.join(map(loaded, [
        table, table, knockd.nft_open(openings, {}, NOW), knockd.nft_open(openings, known, NOW),
        knockd.nft_close(openings), knockd.nft_close(openings)])))


def test_the_kernel_knows_what_is_open_and_forgets_what_is_not():
    listing = 'nft list set inet knockd open4; echo ---\n'
    longer = ANNA4._replace(expires=NOW.mono + 900000)
    first, empty = ruleset('answer = box'), ruleset('answer = drop', openings=(), living=())
    said = in_namespace(loaded(first) + listing +
                        loaded(knockd.nft_open([longer], {ANNA4[1:5]: ANNA4}, NOW)) + listing +
                        loaded(knockd.nft_close([longer])) + listing +
                        loaded(knockd.nft_open([ANNA4], {}, NOW)) + listing +
                        loaded(empty) + listing).split('---')
    assert '203.0.113.5 . tcp . 22 timeout 30s expires' in said[0] and 'comment "anna"' in said[0]
    assert '203.0.113.5 . tcp . 22 timeout 15m expires 1' in said[1], 'not the old time'
    assert 'elements' not in said[2]
    assert '203.0.113.5 . tcp . 22 timeout 30s' in said[3]
    assert 'elements' not in said[4], 'another table keeps nothing of the one before'


# --- changes ------------------------------------------------------------------------------------
OPEN4 = 'add element inet knockd open4 { 203.0.113.5 . tcp . 22 timeout 30000ms comment "anna" }\n'
OPEN6 = ('add element inet knockd open6 '
         '{ 2001:db8::5 . udp . 51820 timeout 7999ms comment "b.e-r_T" }\n')
ADD4 = 'add element inet knockd open4 { 203.0.113.5 . tcp . 22 }\n'


def test_an_opening_is_added_with_its_time_and_its_client():
    assert knockd.nft_open([ANNA4], {}, NOW) == OPEN4
    assert knockd.nft_open([ANNA4, BERT6], {}, NOW) == OPEN4 + OPEN6


def test_the_kernel_never_gets_more_time_than_is_left():
    for left in (30999, 30000, 29999, 1):
        text = knockd.nft_open([ANNA4._replace(expires=NOW.mono + left)], {}, NOW)
        assert ' timeout %dms ' % left in text


def test_what_is_open_is_extended_by_add_delete_add():
    assert knockd.nft_open([ANNA4], {ANNA4[1:5]: ANNA4}, NOW) == \
        ADD4 + ADD4.replace('add', 'delete') + OPEN4
    other = ANNA4._replace(port=8000)
    assert knockd.nft_open([ANNA4], {other[1:5]: other}, NOW) == OPEN4


def test_an_opening_is_closed_by_add_delete_so_that_an_expired_one_is_no_error():
    assert knockd.nft_close([ANNA4]) == ADD4 + ADD4.replace('add', 'delete')
    assert knockd.nft_close([]) == knockd.nft_open([], {}, NOW) == ''


def test_several_ports_are_a_command_each():
    more = ANNA4._replace(port=8000)
    assert knockd.nft_open([ANNA4, more], {}, NOW) == OPEN4 + OPEN4.replace('22', '8000')


# --- nothing of the config is more than a value -------------------------------------------------
HOSTILE = ['; flush ruleset', '}', '{', '" }', '\n flush ruleset', '\\', "'", '$x', '@hidden', '#',
           '22 }; delete table inet filter; add element inet knockd open4 { 1.2.3.4', '\u2028', '*',
           '0.0.0.0/0', '!= 22', ' ', '\t', '..', '-f', '/etc/passwd', '%s', '\x00', '\u0660']
KEYS = ['id', 'hide', 'trust', 'mark', 'accept_in', 'answer', 'window', 'port', 'host', 'ledger']
GOODS = {'id': 'home', 'hide': 'tcp/22', 'trust': 'lan', 'mark': '0x1', 'answer': 'drop',
         'accept_in': 'inet filter input', 'window': '60', 'port': '22', 'host': 'gate',
         'ledger': '/l'}


def skeleton(text):
    """The text without what is quoted and without numbers and set elements."""
    return re.sub(r'elements = \{[^{}]*\}\n|"[A-Za-z0-9._@:+-]+"|\b(0x)?[0-9a-f]+\b', '', text)


@pytest.mark.parametrize('key', KEYS)
def test_no_value_of_the_config_reaches_nft_as_anything_but_a_value(key):
    chance, taken = random.Random(key), 0
    plain = skeleton(knockd.nft_ruleset(make_config('answer = drop'), NOTHING, [], [], NOW))
    for number in range(300):
        value = GOODS[key]
        if number:
            for _ in range(chance.choice((1, 1, 2))):
                place = chance.randrange(len(value) + 1)
                value = value[:place] + chance.choice(HOSTILE) + value[place:]
        values = dict({'id': 'home', 'hide': 'tcp/22', 'trust': 'lan', 'answer': 'drop'},
                      **{key: value})
        try:
            config = knockd.parse_config('[server]\n' + ''.join(
                '%s = %s\n' % pair for pair in sorted(values.items())), '/x/knockd.ini')
        except knockd.KnockError:
            continue
        taken += 1
        text = knockd.nft_ruleset(config, NOTHING, [], [], NOW)
        if config.answer == 'drop':
            assert skeleton(text).replace(', ', '') == plain.replace(', ', '')
        for chain in set(config.accept_in) - {('auto',)}:
            there = dict(zip(('family', 'table', 'name'), chain))
            assert re.match(r'insert rule (inet|ip|ip6) [A-Za-z0-9_.-]+ [A-Za-z0-9_.-]+ meta mark '
                            r'& 0x[0-9a-f]{8} == 0x[0-9a-f]{8} accept\n\Z',
                            knockd.accept_changes(config, [{'chain': there}]))
    assert taken


def test_the_name_of_a_client_is_only_a_comment():
    for hostile in HOSTILE:
        try:
            config = make_config(text=BASE.replace('client anna', 'client a%sb' % hostile.replace(
                '%', '%%')))
        except knockd.KnockError:
            continue
        assert all(re.match(r'[A-Za-z0-9._-]{1,64}\Z', name) for name in config.clients)


# --- what is read -------------------------------------------------------------------------------
# Written from Documentation/networking/proc_net_tcp.rst, on a little-endian machine: words of 32
# bits as the machine has them, so 203.0.113.5 = cb 00 71 05 is written 057100CB.
TCP = '''  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 057100CB:0016 076433C6:C350 01 00000000:00000000 02:000A7A4D 00000000     0        0 2 2 0
   2: 0100007F:0016 0100007F:D431 06 00000000:00000000 03:00000DA2 00000000     0        0 0 3 0
   3: 057100CB:1F4A 076433C6:C351 08 00000000:00000000 00:00000000 00000000     0        0 4 1 0
   4: 057100CB:0050 076433C6:C352 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0
'''
TCP6 = '''  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0
   1: B80D0120000000000000000002000000:0016 B80D0120000000000000000007000000:C350 01 0:0 0:0 0 0
   2: 0000000000000000FFFF0000057100CB:0016 0000000000000000FFFF0000076433C6:C350 01 0:0 0:0 0 0
   3: 0000000000000000FFFF0000057100CB:0016 0000000000000000FFFF0000086433C6:C350 03 0:0 0:0 0 0
'''
little = pytest.mark.skipif(sys.byteorder != 'little', reason='the samples are little-endian')


@little
def test_connections_are_read_from_proc():
    seven = ipaddress.ip_address('198.51.100.7')
    assert knockd.parse_connections(TCP) == [
        (ipaddress.ip_address('0.0.0.0'), 0, 22, 10), (seven, 50000, 22, 1),
        (ipaddress.ip_address('127.0.0.1'), 54321, 22, 6), (seven, 50001, 8010, 8),
        (seven, 50002, 80, 1)]
    assert knockd.parse_connections(TCP6) == [
        (ipaddress.ip_address('::'), 0, 22, 10),
        (ipaddress.ip_address('2001:db8::7'), 50000, 22, 1), (seven, 50000, 22, 1),
        (ipaddress.ip_address('198.51.100.8'), 50000, 22, 3)]
    assert knockd.parse_connections(TCP.splitlines(True)[0]) == []


def test_ports_that_are_listened_at_are_told_from_those_of_connections(monkeypatch):
    other = TCP6.replace(':0016 0000', ':1F90 0000')
    monkeypatch.setattr(knockd, 'tcp_tables', lambda: [TCP, other])
    assert knockd.listening_ports() == {22, 8080}


@little
def test_living_are_those_to_hidden_ports_that_are_not_over_each_once():
    connections = knockd.parse_connections(TCP) + knockd.parse_connections(TCP6)
    living = knockd.living_connections(connections, make_config().hide)
    assert [(str(source), remote, local) for source, remote, local in living] == [
        ('198.51.100.7', 50000, 22), ('198.51.100.7', 50001, 8010), ('198.51.100.8', 50000, 22),
        ('2001:db8::7', 50000, 22)]


def rule(*expressions, **where):
    """A rule as `nft -j` lists it."""
    place = dict({'family': 'inet', 'table': 'filter', 'chain': 'input', 'handle': 7}, **where)
    return {'rule': dict(place, expr=list(expressions))}


def chain(policy='accept', **where):
    return {'chain': dict({'family': 'inet', 'table': 'filter', 'name': 'input', 'handle': 1,
                           'type': 'filter', 'hook': 'input', 'prio': 0, 'policy': policy},
                          **where)}


# As nft 1.0.6 lists `meta mark & 0x40000000 == 0x40000000 accept`.
ACCEPT = [{'match': {'op': '==', 'left': {'&': [{'meta': {'key': 'mark'}}, 1073741824]},
                     'right': 1073741824}}, {'accept': None}]
META = {'metainfo': {'version': '1.0.6', 'release_name': 'Lester Gooch #5',
                     'json_schema_version': 1}}
DPORT = {'payload': {'protocol': 'tcp', 'field': 'dport'}}


def port_rule(right, **where):
    return rule({'match': {'op': '==', 'left': DPORT, 'right': right}}, {'accept': None}, **where)


def is_accept(*expressions, mark=1 << 30):
    """Is this rule taken for ours? Then it goes from where it is not wanted."""
    gone = knockd.accept_changes(make_config('accept_in =\nmark = %#x' % mark),
                                 [chain(), rule(*expressions)])
    assert gone in ('', 'delete rule inet filter input handle 7\n')
    return bool(gone)


def test_our_accept_is_known_again_and_nothing_else_is():
    assert is_accept(*ACCEPT)
    assert not is_accept(*ACCEPT, mark=1 << 29)
    assert not is_accept(ACCEPT[0], {'drop': None})
    assert not is_accept({'accept': None})
    assert not is_accept(ACCEPT[0], ACCEPT[0], ACCEPT[1])
    assert not is_accept(*port_rule(22)['rule']['expr'])
    assert not is_accept(*json.loads(json.dumps(ACCEPT).replace('==', '!=')))
    assert not is_accept()


def test_only_the_chains_that_lack_our_rule_get_it():
    config = make_config('accept_in = inet filter input, ip filter INPUT, inet filter forward')
    listing = [META, chain(), chain(family='ip', name='INPUT'), chain(name='forward'),
               rule(*ACCEPT), rule(ACCEPT[0], {'drop': None}, chain='forward')]
    end = ' meta mark & 0x40000000 == 0x40000000 accept\n'
    assert knockd.accept_changes(config, listing) == (
        'insert rule ip filter INPUT' + end + 'insert rule inet filter forward' + end)
    assert knockd.accept_changes(config, listing[:2]) == 'insert rule inet filter input' + end, \
        'a chain that is not there gets it when it comes'


def test_our_rule_goes_from_where_it_is_twice_or_no_more_wanted():
    config = make_config('accept_in = inet filter input')
    listing = [chain(), rule(*ACCEPT, handle=7), rule(*ACCEPT, handle=8),
               rule(*ACCEPT, handle=9, family='ip6', chain='INPUT'), rule(*ACCEPT, table='knockd')]
    assert knockd.accept_changes(config, listing) == (
        'delete rule inet filter input handle 8\ndelete rule ip6 filter INPUT handle 9\n')


@pytest.mark.parametrize('listing,chains', [
    ([META, chain('accept')], []),
    ([chain('drop')], ['inet filter input']),
    ([chain('drop', hook='forward', name='forward')], ['inet filter forward']),
    ([chain('drop', hook='output')], []),
    ([chain('drop', hook='prerouting')], []),
    ([chain('drop', family='bridge')], []),
    ([chain('drop', table='knockd')], []),
    ([chain('accept'), rule({'reject': {'type': 'icmpx', 'expr': 'admin-prohibited'}})],
     ['inet filter input']),
    ([chain('drop'), rule({'accept': None})], []),
    ([chain('drop'), {'table': {'family': 'inet', 'name': 'filter', 'flags': ['owner']}}], []),
    ([chain('drop', family='ip', name='INPUT'), chain('drop', family='ip6', name='INPUT')],
     ['ip filter INPUT', 'ip6 filter INPUT']),
], ids=range(11))
def test_auto_finds_the_chains_that_drop_what_the_guard_lets_by(listing, chains):
    end = ' meta mark & 0x40000000 == 0x40000000 accept\n'
    assert knockd.accept_changes(make_config(), listing) == ''.join(
        'insert rule %s%s' % (name, end) for name in chains)
    assert knockd.accept_changes(make_config('accept_in ='), listing) == ''


ONCE = BASE + '''
once = yes
prefix4 = 24
[client bert]
prefix6 = 64
secret = ''' + knockd.encode_secret(bytes(range(1, 33)))


def test_once_and_networks_have_sets_of_their_own_only_where_a_client_asks():
    text = knockd.nft_ruleset(make_config(text=ONCE), NOTHING, [
        opening('anna', '203.0.113.0/24', 6, 22, once=True),
        opening('bert', '2001:db8::/64', 6, 22)], [], NOW)
    assert re.findall(r'set ((?:open|once|begun)\w+) \{', text.split('flush table')[1]) == [
        'once4_24', 'begun4_24', 'open4', 'open6_64', 'open6', 'once6', 'begun6']
    assert 'elements = { 203.0.113.0 . tcp . 22 timeout 30000ms comment "anna" }' in text
    assert ('ct state new ip saddr & 255.255.255.0 . meta l4proto . th dport @once4_24 '
            'add @begun4_24 { ip saddr . th sport . meta l4proto . th dport } '
            'meta mark set meta mark | 0x40000000 accept\n') in text
    assert 'ip6 saddr & ffff:ffff:ffff:ffff:: . meta l4proto . th dport @open6_64 meta' in text
    assert 'once' not in knockd.nft_ruleset(make_config(), NOTHING, [], [], NOW)


def test_the_kernel_takes_once_and_networks():
    openings = [opening('anna', '203.0.113.0/24', 6, 22, once=True),
                opening('bert', '2001:db8::/64', 6, 22), ANNA4._replace(once=True), ANNA4]
    table = knockd.nft_ruleset(make_config(text=ONCE.replace('prefix4 = 24', '')), NOTHING,
                               openings[1:], [], NOW)
    wide = knockd.nft_ruleset(make_config(text=ONCE), NOTHING, openings[:2], [], NOW)
    in_namespace(''.join(map(loaded, [table, table, wide, wide, knockd.nft_open(
        openings[:2], {openings[0][1:5]: openings[0]}, NOW), knockd.nft_close(openings[:2])])))


DROP, COUNTER = {'drop': None}, {'counter': {'packets': 0, 'bytes': 0}}
RESET = {'reject': {'type': 'tcp reset'}}
PROHIBIT = {'reject': {'type': 'icmpx', 'expr': 'admin-prohibited'}}


def of_protocol(protocol):
    return {'match': {'op': '==', 'left': {'meta': {'key': 'l4proto'}}, 'right': protocol}}


@pytest.mark.parametrize('listing,tcp,udp', [
    ([], None, None),
    ([META, chain('accept')], None, None),
    ([META, chain('drop')], 'drop', 'drop'),
    ([chain('drop', hook='forward')], None, None),
    ([chain('drop', hook='output')], None, None),
    ([chain('drop', table='knockd')], None, None),
    ([chain(), rule(DROP, table='knockd')], None, None),
    ([chain(), chain('drop', family='ip', name='INPUT')], 'drop', 'drop'),
    ([chain(), port_rule(22), rule(DROP)], 'drop', 'drop'),
    ([chain(), rule(COUNTER, DROP)], 'drop', 'drop'),
    ([chain(), rule(DROP, chain='other')], None, None),
    ([chain(), rule({'match': {'op': '==', 'left': DPORT, 'right': 22}}, DROP)], None, None),
    ([chain('drop'), rule(of_protocol('tcp'), RESET), rule(PROHIBIT)],
     'reject with tcp reset', 'reject with icmpx type admin-prohibited'),
    ([chain(), rule({'jump': {'target': 'last'}}), rule(DROP, chain='last')], 'drop', 'drop'),
    ([chain('drop'), rule({'accept': None})], None, None),
], ids=range(15))
def test_what_the_box_does_with_closed_ports(listing, tcp, udp):
    assert knockd.box_policy(listing, 'tcp') == tcp
    assert knockd.box_policy(listing, 'udp') == udp


def decoys(listing=(), listening=(), ephemeral=(32768, 60999), text=BASE):
    return knockd.pick_decoys(make_config(text=text), list(listing), set(listening),
                              list(ephemeral))


def decoy(*arguments, **keywords):
    """The decoy of the lowest hidden port."""
    found = decoys(*arguments, **keywords)
    return found[min(found)]


def test_every_hidden_tcp_port_has_a_decoy_of_its_own():
    found = decoys()
    assert sorted(found) == [22] + list(range(8000, 8011))
    assert len(set(found.values())) == 12
    assert not set(found.values()) & (set(found) | set(range(32768, 61000)))
    assert decoys(text=BASE.replace('%s', 'answer = drop%s')) == {}


def test_a_decoy_is_a_port_that_nothing_knows():
    assert decoy([META]) == 61022
    assert decoy(listening=[61022, 61023]) == 61024
    assert decoy(ephemeral=(32768, 65000)) == 65001
    assert decoy([port_rule(61022)]) == 61023
    assert decoy([port_rule({'set': [61022, 61023]})]) == 61024
    assert decoy([rule({'dnat': {'addr': '10.0.0.1', 'port': 61022}}, chain='pre')]) == 61023
    assert decoy(text=BASE.replace('tcp/22', 'tcp/61000-61030')) == 61031


def test_a_decoy_lies_in_no_range_of_a_rule():
    assert decoy([port_rule({'range': [60000, 62000]})]) == 62001
    assert decoy([port_rule({'set': [22, {'range': [61000, 61100]}]})]) == 61101


def test_a_range_over_all_ports_leaves_decoys():
    assert 1024 <= decoy([port_rule({'range': [1, 65535]})]) <= 65535


def test_our_own_table_does_not_drive_the_decoys_away():
    own = [{'table': {'family': 'inet', 'name': 'knockd', 'handle': 2}},
           chain(table='knockd', name='answer'), port_rule(61022, table='knockd', chain='answer')]
    assert decoy(own) == 61022


def test_below_the_ephemeral_ports_there_is_room_too():
    assert 1024 < decoy(ephemeral=(30000, 65535)) < 30000


@pytest.mark.parametrize('ephemeral', [(1, 65535), (1024, 65530)])
def test_a_port_without_a_decoy_is_said_with_the_way_out(ephemeral):
    with pytest.raises(knockd.KnockError, match='answer = drop'):
        decoys(ephemeral=ephemeral)
    with pytest.raises(knockd.KnockError, match='answer = drop'):
        decoys(listening=range(65530))
