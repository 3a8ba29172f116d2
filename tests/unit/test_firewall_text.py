"""What the firewall's text promises, what is read from nft -j, and what openings become.

The golden text was read line by line against the ruleset that passed every probe; that kernels take
it and do with it what is said here is tried in tests/e2e/test_guard.py and tests/vm.
"""

import ipaddress
import json
import os
import random
import re

import pytest

import knockd

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden')
BASE = '''[server]
id = home
hide = tcp/22, udp/51820, tcp/8000-8001
trust = lan
%s
[client anna]
secret = ''' + knockd.encode_secret(bytes(range(32)))
NOW = 5000000
STACK = {(version, proto, state): {None: 'stack'} for version in (4, 6) for proto in (6, 17)
         for state in ('invalid', 'new', 'pickup')}
DECOYS = {22: 61022, 8000: 61023, 8001: 61024}


def make_config(lines='', text=BASE):
    return knockd.parse_config(text % lines, '/etc/knockd/knockd.ini')


def box(**verdicts):
    """A Box whose closed ports answer so: tcp4='drop', or {interface: verdict}."""
    closed = dict(STACK)
    for name, verdict in verdicts.items():
        if name not in ('sockets', 'marks'):
            for state in ('invalid', 'new', 'pickup'):
                key = int(name[3]), knockd.PROTOCOLS[name[:3]], state
                closed[key] = verdict if isinstance(verdict, dict) else {None: verdict}
    return knockd.Box(closed, verdicts.get('sockets', True), True, False, False,
                      verdicts.get('marks', False))


BY_STACK, NO_ACCEPTS = box(), knockd.Accepts([], [])


def seen(there=BY_STACK, accepts=NO_ACCEPTS, **fields):
    values = dict(ours=None, box=there, accepts=accepts, taken_ports=set(), decoys={},
                  unreachable=[], tools=())
    return knockd.Seen(**dict(values, **fields))


def opening(source, services='tcp/22', left=30000, once=False, client='anna'):
    return knockd.Opening(client * 4, client, ipaddress.ip_network(source),
                          knockd.parse_services(services)[0], once, NOW + left, (), False)


def whole(config=None, there=BY_STACK, decoys=DECOYS, openings=(), **fields):
    """The text of the transaction."""
    commands = knockd.NFT.whole(config or make_config(), seen(there, **fields), decoys, openings,
                                NOW)
    assert commands[0][0] == ['nft', '-f', '-'] and len(commands) == 1
    return commands[0][1]


def chains(text):
    """{chain: its lines}, as the text leaves them."""
    found = {}
    for name, body in re.findall(r'(?m)^ chain (\w+) \{\n((?:  .*\n)+) \}', text):
        found[name] = [line.strip() for line in body.splitlines()]
    return found


def test_the_text_is_the_one_that_was_read_line_by_line():
    with open(os.path.join(GOLDEN, 'guard.nft')) as file:
        assert whole(openings=[opening('203.0.113.5'),
                               opening('2001:db8::5', 'udp/51820', 7999)]) == file.read()


# --- hidden by constants, in one transaction ---------------------------------------------------
def test_what_hides_is_a_constant_in_a_rule_and_never_looked_up():
    found = chains(whole())
    for match in ('tcp dport 22', 'tcp dport 8000-8001', 'udp dport 51820'):
        assert match + ' jump hidden' in found['guard']
        assert match + ' goto closed' in found['answer']
        assert any(match + ' dnat to :' in line for line in found['stay'])
    for name in set(found) - {'check', 'label'}:
        assert not any('@' in line or '{' in line for line in found[name]), name
    assert found['closed'][-1] == found['decoy'][-1] == 'drop', 'for what the rules above missed'


def test_the_table_is_filled_in_one_transaction_and_never_deleted():
    text = whole(openings=[opening('203.0.113.5')])
    assert 'delete' not in text
    declared, _, filled = text.partition('flush table inet knockd\n')
    assert 'elements' not in declared and ' dport' not in declared
    for name in re.findall(r'(?m)^ set (\w+)', declared):
        assert 'flush set inet knockd %s\n' % name in filled


def test_marks_are_cleared_before_anything_else():
    lines = chains(whole())['guard']
    assert lines[0] == 'meta mark & 0x60000000 != 0 meta mark set meta mark & 0x9fffffff'


@pytest.mark.parametrize('services, chain', [('tcp/22', 'hidden'), (
    ', '.join('tcp/%d' % port for port in range(1000, 1400, 2)), 'guard')])
def test_established_packets_are_let_go_before_hosts_are_looked_up(services, chain):
    """By a chain of theirs, or before 200 ports are compared with each packet."""
    config = make_config(text=BASE.replace('tcp/22, udp/51820, tcp/8000-8001', services))
    lines = chains(whole(config))[chain]
    known = [number for number, line in enumerate(lines) if 'ct state established return' in line]
    assert known == ([0, 1] if chain == 'hidden' else [1, 2])


def test_a_config_that_hides_nothing_leaves_no_table():
    assert whole(make_config()._replace(hide=())) == 'table inet knockd\ndelete table inet knockd\n'


@pytest.mark.parametrize('mark,other', [
    ('0x40000000', 1 << 29), ('0x1', 2), ('0x80000000', 1 << 30)])
def test_the_marks_are_two_bits_from_the_configs_own(mark, other):
    config = make_config('mark = ' + mark)
    text = whole(config)
    both = config.mark | other
    assert set(re.findall(r'mark & 0x(\w+) != 0', text)) == {
        '%08x' % config.mark, '%08x' % both}
    assert '| 0x%08x tcp dport set 61022' % other in text


# --- what a closed port of this box gives --------------------------------------------------------
def ends(config=None, there=BY_STACK, decoys=DECOYS):
    """The verdicts of `closed`: {(version, proto, interface): verdict}."""
    found = {}
    pattern = (r'meta nfproto ipv(\d) meta l4proto (\d+) (?:iifname "(.*)" )?'
               r'(drop|goto decoy|reject .*)$')
    for line in chains(whole(config, there, decoys))['closed']:
        match = re.match(pattern, line)
        if match:
            version, proto, interface, verdict = match.groups()
            found.setdefault((int(version), int(proto), interface), verdict)
    return found


def test_a_box_that_answers_by_its_stack_does_so_for_hidden_ports():
    assert ends() == {(4, 6, None): 'goto decoy', (6, 6, None): 'goto decoy',
                      (4, 17, None): knockd.UNREACHABLE, (6, 17, None): knockd.UNREACHABLE}


def test_without_decoys_a_reset_is_made():
    found = ends(decoys={})
    assert found[4, 6, None] == found[6, 6, None] == 'reject with tcp reset'


def test_each_family_protocol_and_interface_has_the_answer_of_the_box():
    found = ends(there=box(tcp4={None: 'drop', 'lan*': 'stack', 'lan1': 'reject with tcp reset'},
                           udp6='reject with icmpx type admin-prohibited'))
    assert found[4, 6, None] == 'drop' and found[4, 6, 'lan*'] == 'goto decoy'
    assert found[4, 6, 'lan1'] == 'reject with tcp reset' and found[6, 6, None] == 'goto decoy'
    assert found[6, 17, None] == 'reject with icmpx type admin-prohibited'
    assert list(found).index((4, 6, 'lan1')) < list(found).index((4, 6, None))


@pytest.mark.parametrize('answer,tcp,udp', [
    ('drop', 'drop', 'drop'), ('reset', 'reject with tcp reset', knockd.UNREACHABLE),
    ('prohibited', knockd.PROHIBITED, knockd.PROHIBITED)])
def test_what_the_config_wants_answered_is(answer, tcp, udp):
    found = ends(make_config('answer = ' + answer), box(tcp4='stack'))
    assert {found[4, 6, None], found[6, 6, None]} == {tcp}
    assert {found[4, 17, None], found[6, 17, None]} == {udp}


def test_what_the_box_does_with_invalid_packets_comes_before():
    there = box()
    there.closed[4, 6, 'invalid'] = {None: 'drop'}
    lines = chains(whole(there=there))['closed']
    invalid = 'meta nfproto ipv4 meta l4proto 6 ct state invalid drop'
    assert lines.index(invalid) < lines.index('meta nfproto ipv4 meta l4proto 6 goto decoy')


def test_where_no_rule_finds_sockets_conntrack_says_what_lives_on():
    forgotten = 'tcp flags & (syn | ack) != syn ct state established '
    assert forgotten + 'goto decoy' in chains(whole())['closed']
    without = chains(whole(there=box(sockets=False)))['closed']
    assert forgotten + 'accept' in without and 'socket wildcard' not in str(without)


def test_every_hidden_tcp_port_has_its_decoy_there_and_back():
    found = chains(whole())
    there = dict(re.findall(r'tcp dport (\d+) .* tcp dport set (\d+)', '\n'.join(found['decoy'])))
    back = dict(re.findall(r'tcp sport (\d+) tcp sport set (\d+)', '\n'.join(found['restore'])))
    assert there == {'22': '61022', '8000': '61023', '8001': '61024'}
    assert back == {decoy: port for port, decoy in there.items()}


def test_decoys_are_no_ports_that_the_box_or_the_config_names():
    wanted, taken = knockd.decoy_ports(make_config(), seen(taken_ports={61022, 443}))
    assert wanted == [22, 8000, 8001] and taken == {22, 8000, 8001, 61022, 443}
    many = make_config(text=BASE.replace('tcp/22', 'tcp/1000-1199'))
    assert knockd.decoy_ports(many, seen())[0] == []


# --- what is behind the box ----------------------------------------------------------------------
BEHIND = 'behind = 192.0.2.8/29, 2001:db8:1::/64\n'
NETWORKS = 'ip daddr 192.0.2.8/29', 'ip6 daddr 2001:db8:1::/64'


def test_what_hides_behind_the_box_is_a_constant_in_a_rule_too():
    found = chains(whole(make_config(BEHIND)))
    for match in ('tcp dport 22', 'tcp dport 8000-8001', 'udp dport 51820'):
        assert match + ' jump beyond' in found['leave']
        for network in NETWORKS:
            assert any(network + ' ' + match + ' dnat to :' in line for line in found['stay'])
    for network in NETWORKS:
        assert network + ' meta l4proto 6 drop' in found['beyond']
        assert network + ' meta l4proto 17 drop' in found['beyond']
    for kind in ('multicast', 'broadcast', 'local'):
        assert 'fib daddr type %s drop' % kind in found['beyond']
    assert not any('@' in line or '{' in line for line in found['beyond'] + found['stay'])


def test_what_is_open_or_established_leaves_before_anything_is_dropped():
    found = chains(whole(make_config(BEHIND)))
    assert found['leave'][0].endswith('return')
    drops = [number for number, line in enumerate(found['beyond']) if line.endswith('drop')]
    *known, from_another_port = [number for number, line in enumerate(found['beyond'])
                                 if line.endswith('return')]
    assert max(known) < min(drops) and 'syn' in found['beyond'][1]
    for number in drops:        # before it, only what came to a hidden port
        assert number > from_another_port or 'ct original proto-dst' in found['beyond'][number]


def test_without_anything_behind_no_forwarded_packet_is_looked_at():
    assert 'hook forward' in whole(make_config(BEHIND))
    assert 'hook forward' not in whole()


SET_MARK = {'mangle': {'key': {'meta': {'key': 'mark'}}, 'value': 1}}
KEEP_MARK = {'mangle': {'key': {'ct': {'key': 'mark'}}, 'value': {'meta': {'key': 'mark'}}}}


@pytest.mark.parametrize('statement', [SET_MARK, KEEP_MARK])
def test_where_rules_set_marks_ours_is_off_before_they_see_it_again(statement):
    assert read([chain(), rule(statement)]).box.marks
    assert chains(whole(there=box(marks=True)))['leave'] == [
        'meta mark & 0x40000000 != 0 meta mark set meta mark & 0xbfffffff return']


@pytest.mark.parametrize('target', ['MARK --set-xmark 0x1/0xffffffff', 'CONNMARK --save-mark'])
def test_a_mark_that_iptables_sets_counts_too(target):
    saved = '*mangle\n-A POSTROUTING -j %s\nCOMMIT\n' % target
    assert read([], **{'iptables-nft-save': saved}).box.marks


def test_a_rule_that_only_asks_for_a_mark_sets_none():
    asked = match({'meta': {'key': 'mark'}}, 1)
    assert not read([chain(), rule(asked, ACCEPT)]).box.marks


@pytest.mark.parametrize('answer,tcp,udp', [
    ('box', 'drop', 'drop'), ('drop', 'drop', 'drop'),
    ('reset', 'reject with tcp reset', knockd.UNREACHABLE),
    ('prohibited', knockd.PROHIBITED, knockd.PROHIBITED)])
def test_strangers_get_of_a_host_behind_what_answer_says(answer, tcp, udp):
    lines = chains(whole(make_config(BEHIND + 'answer = ' + answer)))['beyond']
    for network in NETWORKS:
        assert '%s meta l4proto 6 %s' % (network, tcp) in lines
        assert '%s meta l4proto 17 %s' % (network, udp) in lines


def at(*places, **fields):
    return opening('203.0.113.5', **fields)._replace(only=tuple(map(ipaddress.ip_address, places)))


def test_what_is_open_at_one_address_alone_has_a_set_of_its_own():
    config = make_config(text=BASE.replace('trust', BEHIND + 'trust') + '\nonly = 192.0.2.9\n'
                         'once = yes')
    text = change([], [at('192.0.2.9', '192.0.2.10')])
    assert re.findall(r'set (\w+) \{ type (.*)', text) == [
        ('open4_only', 'ipv4_addr . inet_proto . inet_service . ipv4_addr; flags timeout')]
    assert '203.0.113.5 . 6 . 22 . 192.0.2.10 timeout 30000ms' in text
    check = '\n'.join(chains(whole(config, openings=[at('192.0.2.9', once=True)]))['check'])
    for name in ('once4_only', 'held4_only'):
        assert 'ip saddr . meta l4proto . th dport . ip daddr @%s ' % name in check
    declared = whole(config).split('flush table')[0]
    assert 'set open4 ' in declared and 'set once6_only_ranges ' in declared


# --- openings ------------------------------------------------------------------------------------
def spans(openings):
    """{(source, first port, last port, once): ms left} of elements()."""
    return {(str(element.source), element.service.low, element.service.high, element.once):
            expires - NOW for element, expires in knockd.elements(openings).items()}


def test_ranges_that_overlap_are_cut_where_one_begins_or_ends():
    assert spans([opening('203.0.113.5', 'tcp/10-20', 1000),
                  opening('203.0.113.5', 'tcp/15-30', 2000, client='bert')]) == {
        ('203.0.113.5/32', 10, 14, False): 1000, ('203.0.113.5/32', 15, 30, False): 2000}


def test_the_longest_time_that_one_of_them_has_counts():
    assert spans([opening('203.0.113.5', 'tcp/22', 3000),
                  opening('203.0.113.5', 'tcp/22', 1000, client='bert')]) == {
        ('203.0.113.5/32', 22, 22, False): 3000}


def test_neighbours_that_end_together_are_one_and_gaps_stay():
    assert spans([opening('203.0.113.5', each, 1000)
                  for each in ('tcp/10-11', 'tcp/12', 'tcp/14')]) == {
        ('203.0.113.5/32', 10, 12, False): 1000, ('203.0.113.5/32', 14, 14, False): 1000}


def test_sources_protocols_and_once_do_not_mix():
    openings = [opening('203.0.113.5'), opening('203.0.113.5', 'udp/22'),
                opening('203.0.113.0/24'), opening('203.0.113.5', once=True)]
    assert len(knockd.elements(openings)) == 4


def test_each_port_is_open_as_long_as_its_longest_opening_and_no_pieces_overlap():
    chance = random.Random(7)
    for _ in range(200):
        openings = []
        for _ in range(chance.randrange(1, 8)):
            low = chance.randrange(1, 30)
            services = 'tcp/%d-%d' % (low, low + chance.randrange(1, 9))
            openings.append(opening('203.0.113.5', services, chance.randrange(1, 4)))
        found = {}
        for (_, low, high, _), left in spans(openings).items():
            for port in range(low, high + 1):
                assert port not in found
                found[port] = left
        for port in range(1, 50):
            covering = [each.expires - NOW for each in openings
                        if each.service.low <= port <= each.service.high]
            assert found.get(port) == max(covering, default=None)


def change(before, after, now=NOW):
    commands = knockd.NFT.change(before, after, now)
    return commands[0][1] if commands else ''


OPEN4 = ('table inet knockd {\n'
         ' set open4 { type ipv4_addr . inet_proto . inet_service; flags timeout\n')


def test_a_pure_addition_is_one_block_that_reads_no_set():
    assert change([], [opening('203.0.113.5')]) == OPEN4 + (
        '  elements = { 203.0.113.5 . 6 . 22 timeout 30000ms }\n }\n}\n')
    one = opening('203.0.113.5')
    assert '203.0.113.5' not in change([one], [one, opening('203.0.113.6')])
    assert change([one], [one]) == ''


def test_what_ends_or_is_prolonged_empties_its_set_and_the_rest_comes_back_at_once():
    one, two = opening('203.0.113.5'), opening('203.0.113.6')
    text = change([one, two], [two])
    assert text.startswith('flush set inet knockd open4\n') and 'delete' not in text
    assert '203.0.113.6 . 6 . 22 timeout' in text and '203.0.113.5' not in text
    text = change([one], [opening('203.0.113.5', left=60000)])
    assert 'timeout 60000ms' in text and text.startswith('flush set')


def played(text, held):
    """The kernel's sets {name: members} after nft has read that text."""
    for line in text.splitlines():
        words = line.replace(',', '').split()
        if words[0] == 'set':
            name = words[1]
        elif words[0] == 'flush':
            held[words[4]] = set()
        elif words[0] == 'elements':
            members = line.partition('{ ')[2].partition(' }')[0].split(', ')
            held.setdefault(name, set()).update(each.split(' timeout')[0] for each in members)
    return {name: members for name, members in held.items() if members}


def test_after_each_change_the_sets_hold_what_is_open_whoever_else_is_there():
    chance = random.Random(3)
    openings, held = [], {}
    for _ in range(300):
        after = [each for each in openings if chance.random() < 0.8]
        source = '203.0.113.%d' % chance.randrange(1, 5)
        service = chance.choice(('tcp/22', 'tcp/10-30', 'udp/53', 'tcp/20-40'))
        after.append(opening(source, service, chance.randrange(1, 9) * 1000))
        held = played(change(openings, after), held)
        assert held == played(change([], after), {})
        openings = after


def test_once_is_never_filled_anew_for_that_would_forget_what_is_spent():
    one, two = opening('203.0.113.5', once=True), opening('203.0.113.6', once=True)
    text = change([one, two], [two])
    assert 'flush' not in text and '203.0.113.6' not in text
    for name in ('once4', 'held4'):
        assert 'delete element inet knockd %s { 203.0.113.5 . 6 . 22 }\n' % name in text


def test_the_kernel_never_gets_more_time_than_is_left():
    text = change([], [opening('203.0.113.5')], NOW + 29999)
    assert 'timeout 1ms' in text
    assert change([], [opening('203.0.113.5')], NOW + 30000) == '', 'over'


def test_ranges_networks_and_once_have_sets_of_their_own():
    text = change([], [opening('2001:db8::/64', 'udp/60000-60005', once=True)])
    assert re.findall(r'set (\w+) \{ type (.*)', text) == [
        ('held6_64_ranges', 'ipv6_addr . inet_proto . inet_service; flags interval,timeout'),
        ('once6_64_ranges', 'ipv6_addr . inet_proto . inet_service; flags interval,timeout; '
                            'limit rate 1/week burst 1 packets')]
    assert text.count('2001:db8:: . 17 . 60000-60005 timeout 30000ms') == 2


def test_every_set_that_a_change_names_is_declared_alike_by_the_whole():
    config = make_config(text=BASE + '\nprefix4 = 24\nonce = yes\n[client bert]\nsecret = '
                         + knockd.encode_secret(bytes(range(1, 33))))
    declared = set(re.findall(r'set (\w+ \{ type .*)', whole(config).split('flush table')[0]))
    openings = [opening('203.0.113.0/24', once=True), opening('203.0.113.5', 'tcp/8000-8001'),
                opening('2001:db8::5', once=True), opening('2001:db8::5')]
    named = set(re.findall(r'set (\w+ \{ type .*)', change([], openings)))
    assert named and named <= declared
    check = '\n'.join(chains(whole(config))['check'])
    for name in named:
        assert '@%s ' % name.split()[0] in check


# --- values are nothing but values ---------------------------------------------------------------
HOSTILE = ['; flush ruleset', '}', '{', '" }', '\n flush ruleset', '\\', "'", '$x', '@open4', '#',
           '22 }; delete table inet filter; add element inet knockd open4 { 1.2.3.4', '\u2028',
           '*', '0.0.0.0/0', '!= 22', ' ', '\t', '..', '-f', '/etc/passwd', '%s', '\x00', '\u0660']
GOODS = {'id': 'home', 'hide': 'tcp/22', 'trust': 'lan', 'behind': '192.0.2.8/29', 'mark': '0x1',
         'answer': 'drop', 'accept_in': 'inet filter input', 'window': '60', 'port': '22',
         'host': 'gate'}


def skeleton(text):
    """The text without names in quotes and without numbers."""
    return re.sub(r'"[A-Za-z0-9._@:+-]+"|\b(0x)?[0-9a-f]+\b', '', text)


@pytest.mark.parametrize('key', sorted(GOODS))
def test_no_value_of_the_config_reaches_nft_as_anything_but_a_value(key):
    chance, taken = random.Random(key), 0
    lines = set(skeleton(whole(make_config(BEHIND + 'answer = drop'), decoys={})).splitlines())
    for number in range(200):
        value = GOODS[key]
        for _ in range(min(number, chance.choice((1, 1, 2)))):
            place = chance.randrange(len(value) + 1)
            value = value[:place] + chance.choice(HOSTILE) + value[place:]
        values = dict(GOODS, **{key: value})
        try:
            config = knockd.parse_config('[server]\n' + ''.join(
                '%s = %s\n' % pair for pair in sorted(values.items())), '/x/knockd.ini')
        except knockd.KnockError:
            continue
        taken += 1
        if config.hide and config.answer == 'drop':
            for line in skeleton(whole(config, decoys={})).splitlines():
                assert line in lines or re.match(r'  (tcp|udp) dport [-]? ?\w* ?\w*$', line), line
    assert taken


# --- nft -j: what the box does -------------------------------------------------------------------
def rule(*expressions, **where):
    """A rule as `nft -j` lists it."""
    place = dict({'family': 'inet', 'table': 'filter', 'chain': 'input', 'handle': 7}, **where)
    return {'rule': dict(place, expr=list(expressions))}


def chain(policy='accept', **where):
    return {'chain': dict({'family': 'inet', 'table': 'filter', 'name': 'input', 'handle': 1,
                           'type': 'filter', 'hook': 'input', 'prio': 0, 'policy': policy},
                          **where)}


def match(left, right, operator='=='):
    return {'match': {'op': operator, 'left': left, 'right': right}}


def read(listing, lines='', **others):
    """Seen, of a box that nft lists so."""
    outputs = dict({'nft': json.dumps({'nftables': list(listing)})},
                   **{name.replace('_', '-'): text for name, text in others.items()})
    return knockd.NFT.read(outputs, make_config(lines))


def answers(listing, **others):
    """(TCP's, UDP's) verdict for IPv4, and the interfaces that have another one."""
    closed = read(listing, **others).box.closed
    return closed[4, 6, 'new'], closed[4, 17, 'new']


META = {'metainfo': {'version': '1.0.6'}}
DPORT = {'payload': {'protocol': 'tcp', 'field': 'dport'}}
PROTO, IIF = {'meta': {'key': 'l4proto'}}, {'meta': {'key': 'iifname'}}
STATE, SADDR = {'ct': {'key': 'state'}}, {'payload': {'protocol': 'ip', 'field': 'saddr'}}
ACCEPT, DROP, COUNTER = {'accept': None}, {'drop': None}, {'counter': {'packets': 0, 'bytes': 0}}
RESET = {'reject': {'type': 'tcp reset'}}
PROHIBIT = {'reject': {'type': 'icmpx', 'expr': 'admin-prohibited'}}
JUMP = {'jump': {'target': 'last'}}
LIMIT = {'limit': {'rate': 25, 'burst': 50, 'per': 'second'}}


@pytest.mark.parametrize('listing,tcp,udp', [
    ([META, chain()], 'stack', 'stack'),
    ([chain('drop')], 'drop', 'drop'),
    ([chain('drop', hook='output')], 'stack', 'stack'),
    ([chain('drop', hook='forward')], 'stack', 'stack'),
    ([chain('drop', hook='prerouting', prio=-300)], 'drop', 'drop'),
    ([chain('drop', table='knockd')], 'stack', 'stack'),
    ([chain(), chain('drop', family='ip', name='INPUT')], 'drop', 'drop'),
    ([chain(), chain('drop', family='ip6', name='INPUT')], 'stack', 'stack'),
    ([chain(), rule(match(DPORT, 22), ACCEPT), rule(DROP)], 'drop', 'drop'),
    ([chain(), rule(match(DPORT, 22), DROP)], 'stack', 'stack'),
    ([chain(), rule(match(DPORT, {'range': [1, 65535]}), DROP)], 'drop', 'stack'),
    ([chain(), rule(match(DPORT, 22, '!='), DROP)], 'drop', 'stack'),
    ([chain(), rule(match(DPORT, '@mine', '!='), DROP)], 'drop', 'stack'),
    ([chain(), rule(match(DPORT, '@mine'), DROP)], 'stack', 'stack'),
    ([chain(), rule(COUNTER, DROP)], 'drop', 'drop'),
    ([chain(), rule(DROP, chain='other')], 'stack', 'stack'),
    ([chain('drop'), rule(ACCEPT)], 'stack', 'stack'),
    ([chain('drop'), rule(match(PROTO, 'tcp'), RESET), rule(PROHIBIT)],
     'reject with tcp reset', 'reject with icmpx type admin-prohibited'),
    ([chain('drop'), rule(match(PROTO, 6), RESET)], 'reject with tcp reset', 'drop'),
    ([chain('drop'), rule(match(PROTO, {'set': ['udp', 6]}), {'reject': None})],
     knockd.UNREACHABLE, knockd.UNREACHABLE),
    ([chain(), rule(JUMP), rule(DROP, chain='last')], 'drop', 'drop'),
    ([chain(), rule(JUMP), rule({'return': None}, chain='last'), rule(DROP)], 'drop', 'drop'),
    ([chain(), rule({'goto': {'target': 'last'}}), rule(DROP)], 'stack', 'stack'),
    ([chain('drop'), rule(match(STATE, ['established', 'related'], 'in'), ACCEPT)], 'drop', 'drop'),
    ([chain(), rule({'vmap': {'key': STATE, 'data': {'set': [
        ['established', ACCEPT], ['new', DROP]]}}})], 'drop', 'drop'),
    ([chain(), rule({'vmap': {'key': STATE, 'data': '@somewhere'}})], 'stack', 'stack'),
    ([chain('drop'), rule(match(SADDR, '10.0.0.1'), ACCEPT)], 'drop', 'drop'),
    ([chain(), rule(match(SADDR, '10.0.0.1', '!='), DROP)], 'drop', 'drop'),
    ([chain(), rule(match(SADDR, '@blocked'), DROP)], 'stack', 'stack'),
    ([chain(), rule(LIMIT, {'return': None}), rule(match(PROTO, 'tcp'), LIMIT, DROP)],
     'stack', 'stack'),
    ([chain(), rule(match({'meta': {'key': 'nfproto'}}, 'ipv6'), DROP)], 'stack', 'stack'),
    ([chain(), rule({'jump': {'target': 'input'}})], 'stack', 'stack'),
], ids=range(32))
def test_what_the_box_does_with_closed_ports(listing, tcp, udp):
    assert answers(listing) == ({None: tcp}, {None: udp})


# As nft 1.0.6 lists matches of TCP flags: `tcp flags syn`, `tcp flags syn / fin,syn,rst,ack`, ...
FLAGS = {'payload': {'protocol': 'tcp', 'field': 'flags'}}
FIRST = {'&': [FLAGS, ['fin', 'syn', 'rst', 'ack']]}
OF_CHAIN = {'&': [FLAGS, {'|': [{'|': ['syn', 'rst']}, 'ack']}]}


@pytest.mark.parametrize('flags, meet', [
    (match(FLAGS, 'syn', 'in'), 'new'), (match(FLAGS, ['syn', 'ack'], 'in'), 'invalid new pickup'),
    (match(FLAGS, ['fin', 'syn'], '!'), 'pickup'), (match(FIRST, 'syn'), 'new'),
    (match(FIRST, 'syn', '!='), 'invalid pickup'), (match(OF_CHAIN, {'|': ['syn', 'ack']}), ''),
    (match(FLAGS, {'set': [{'|': ['syn', 'ack']}, 'ack']}), 'pickup'),
    (match(FLAGS, {'set': ['syn', 'ack']}, '!='), 'invalid'), (match(FIRST, 0), ''),
    (match(FLAGS, '@syn'), ''), (match(FLAGS, '@ack', '!='), ''), (match(FLAGS, 'rst', 'in'), ''),
    (match(FIRST, {'|': ['fin', 'ack']}), 'invalid'),
    (match({'&': [FLAGS, {'|': ['fin', 'syn', 'rst', 'ack']}]}, 'syn'), 'new')], ids=range(14))
def test_a_rule_by_tcp_flags_is_about_segments_with_those(flags, meet):
    found = read([chain(), rule(flags, DROP)]).box.closed
    for state in ('invalid', 'new', 'pickup'):
        assert found[4, 6, state] == {None: 'drop' if state in meet else 'stack'}
        assert found[4, 17, state] == {None: 'stack'}
    assert bool(missing([chain(), rule(flags, DROP)])) == ('new' in meet)
    by_map = {'key': flags['match']['left'], 'data': {'set': [[flags['match']['right'], DROP]]}}
    if flags['match']['op'] == '==':
        assert found == read([chain(), rule({'vmap': by_map})]).box.closed


def test_a_limit_that_is_not_reached_is_not_the_answer_of_closed_ports():
    flood = [chain(name='flood', hook=None),
             rule(LIMIT, {'return': None}, chain='flood'), rule(DROP, chain='flood')]
    jump = {'jump': {'target': 'flood'}}
    listing = [chain(), *flood, rule(match(FIRST, 'syn'), jump)]
    assert answers(listing) == ({None: 'stack'}, {None: 'stack'})
    assert missing(listing) == []


# As nft 1.0.6 lists `limit`, `ct count`, `quota`, a meter and what a set does with an element.
BY_THE_SECOND = dict(LIMIT['limit'], inv=True)
SOME_PACKETS = [
    {'limit': BY_THE_SECOND}, {'limit': 'named'}, {'ct count': {'val': 20, 'inv': True}},
    {'quota': {'val': 10, 'val_unit': 'mbytes', 'inv': True}}, {'quota': 'named'},
    {'meter': {'key': SADDR, 'stmt': {'limit': BY_THE_SECOND}, 'size': 65535, 'name': 'm'}},
    {'set': {'op': 'add', 'elem': SADDR, 'set': '@s', 'stmt': [{'limit': BY_THE_SECOND}]}},
    {'set': {'op': 'update', 'elem': SADDR, 'set': '@s', 'stmt': [{'ct count': {'val': 3}}]}},
    {'xt': None}, 'something without JSON', {'something': 'of a later nft'}]
EVERY_PACKET = [
    COUNTER, {'counter': 'named'}, {'log': None}, {'log': {'prefix': 'x', 'group': 2}},
    {'mangle': {'key': {'meta': {'key': 'mark'}}, 'value': 3}}, {'notrack': None},
    {'set': {'op': 'add', 'elem': SADDR, 'set': '@s'}}, {'dup': {'addr': '192.0.2.1'}},
    {'ct helper': 'named'}]


@pytest.mark.parametrize('statement', SOME_PACKETS, ids=range(len(SOME_PACKETS)))
def test_what_only_some_packets_meet_is_not_the_answer_of_closed_ports(statement):
    assert answers([chain(), rule(statement, DROP)]) == ({None: 'stack'}, {None: 'stack'})
    assert answers([chain('drop'), rule(statement, ACCEPT)])[0] == {None: 'drop'}
    assert missing([chain(), rule(statement, DROP)]) == []


@pytest.mark.parametrize('statement', EVERY_PACKET, ids=range(len(EVERY_PACKET)))
def test_a_statement_that_every_packet_passes_changes_nothing(statement):
    assert answers([chain(), rule(statement, DROP)]) == ({None: 'drop'}, {None: 'drop'})


def test_interfaces_with_an_answer_of_their_own():
    listing = [chain('drop'), rule(match(IIF, {'set': ['lan', 'br-*']}), ACCEPT),
               rule(match(IIF, 'lo'), ACCEPT), rule(match(IIF, 'wan'), DROP)]
    assert answers(listing)[0] == {None: 'drop', 'lan': 'stack', 'br-+': 'stack'}
    listing = [chain(), rule({'vmap': {'key': IIF, 'data': {'set': [['wan', JUMP]]}}}),
               rule(PROHIBIT, chain='last')]
    assert answers(listing)[1] == {None: 'stack', 'wan': knockd.PROHIBITED}


def test_invalid_packets_may_be_dropped_where_others_are_answered():
    found = read([chain(), rule(match(STATE, 'invalid', 'in'), DROP)]).box.closed
    assert found[6, 6, 'invalid'] == {None: 'drop'} and found[6, 6, 'new'] == {None: 'stack'}


def test_chains_of_iptables_are_read_as_iptables_says():
    listing = [chain(family='ip', name='INPUT', table='filter'),
               rule({'xt': {'type': 'target', 'name': 'REJECT'}}, family='ip', chain='INPUT')]
    saved = ('*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n'
             '-A INPUT -i wan -j REJECT --reject-with icmp-admin-prohibited\nCOMMIT\n')
    assert answers(listing, iptables_nft_save=saved)[0] == {None: 'stack', 'wan': knockd.PROHIBITED}
    assert answers([], iptables_legacy_save=saved.replace('INPUT ACCEPT', 'INPUT DROP'))[1] == {
        None: 'drop', 'wan': knockd.PROHIBITED}


# --- our rule in chains that drop ----------------------------------------------------------------
# As nft 1.0.6 lists `meta mark & 0x40000000 == 0x40000000 accept`.
OURS = [match({'&': [{'meta': {'key': 'mark'}}, 1 << 30]}, 1 << 30), ACCEPT]


def missing(listing, lines='', **others):
    return [' '.join(each[:4]) for each in read(listing, lines, **others).accepts.missing]


@pytest.mark.parametrize('listing,wanted', [
    ([chain('accept')], []),
    ([chain('drop')], ['nft inet filter input']),
    ([chain('drop', hook='forward', name='forward')], ['nft inet filter forward']),
    ([chain('drop', hook='output')], []),
    ([chain('drop', hook='prerouting', prio=-100)], ['nft inet filter input']),
    ([chain('drop', hook='prerouting', prio=-300)], []),
    ([chain('drop', hook='prerouting', type='nat', prio=-100)], []),
    ([chain('drop', family='bridge')], []),
    ([chain('drop', table='knockd')], []),
    ([chain(), rule(PROHIBIT)], ['nft inet filter input']),
    ([chain(), rule(match(IIF, 'wan'), DROP)], ['nft inet filter input']),
    ([chain('drop'), rule(ACCEPT)], []),
    ([chain('drop'), rule(*OURS)], []),
    ([chain('drop'), rule(OURS[0], COUNTER, ACCEPT, comment='mine')], []),
    ([chain('drop'), {'table': {'family': 'inet', 'name': 'filter', 'flags': ['owner']}}], []),
], ids=range(15))
def test_auto_finds_the_chains_that_drop_what_the_guard_lets_by(listing, wanted):
    assert missing(listing) == wanted
    assert missing(listing, 'accept_in =') == []


def test_named_chains_get_it_when_they_are_there_and_nothing_else_does():
    lines = 'accept_in = inet filter input, ip filter INPUT'
    assert missing([chain(), chain('drop', name='other')], lines) == ['nft inet filter input']


@pytest.mark.parametrize('lines', ['', 'accept_in = inet filter input'])
def test_while_nothing_is_hidden_nothing_of_ours_is_in_any_chain(lines):
    listing = [chain('drop'), rule(*OURS)]
    outputs = {'nft': json.dumps({'nftables': listing})}
    accepts = knockd.NFT.read(outputs, make_config(lines)._replace(hide=())).accepts
    assert accepts.missing == [] and [each.handle for each in accepts.surplus] == [7]


def test_what_is_out_of_reach_is_named():
    listing = [{'table': {'family': 'inet', 'name': 'firewalld', 'flags': 'owner'}},
               chain('drop', table='firewalld'),
               chain('drop', name='early', hook='prerouting', prio=-300),
               chain('drop', name='in', family='netdev', hook='ingress')]
    saved = '*filter\n:INPUT DROP [0:0]\nCOMMIT\n*raw\n:PREROUTING DROP [0:0]\nCOMMIT\n'
    found = read(listing, iptables_legacy_save=saved).unreachable
    assert {each[:3] for each in found} == {
        ('inet', 'firewalld', 'input'), ('inet', 'filter', 'early'), ('netdev', 'filter', 'in'),
        ('ip', 'legacy raw', 'PREROUTING')}


def test_out_of_reach_is_only_what_the_chain_itself_does_not_allow():
    """firewalld where the port was opened, as README says: what a knock opens is open."""
    def allow(proto, *ports):
        left = {'payload': {'protocol': proto, 'field': 'dport'}}
        return [rule(match(left, port), ACCEPT, table='firewalld') for port in ports]
    listing = [{'table': {'family': 'inet', 'name': 'firewalld', 'flags': 'owner'}},
               chain('drop', table='firewalld')]
    some = listing + allow('tcp', 22)
    assert [each[:3] for each in read(some).unreachable] == [('inet', 'firewalld', 'input')]
    every = some + allow('tcp', {'range': [8000, 8001]}) + allow('udp', 51820)
    assert read(every).unreachable == []


def test_copies_and_rules_no_more_wanted_go():
    listing = [chain('drop'), rule(*OURS, handle=7), rule(OURS[0], COUNTER, ACCEPT, handle=8),
               chain(name='forward', hook='forward'), rule(*OURS, chain='forward', handle=9)]
    accepts = read(listing).accepts
    text = whole(accepts=accepts)
    assert text.endswith('}\ndelete rule inet filter input handle 8\n'
                         'delete rule inet filter forward handle 9\n')
    nobodys = [rule(*OURS[:1], DROP), rule(ACCEPT), rule(*OURS[:1], *OURS),
               rule(match({'&': [{'meta': {'key': 'mark'}}, 1 << 29]}, 1 << 29), ACCEPT)]
    assert read(nobodys).accepts == ([], [])


def test_it_is_inserted_in_the_same_transaction():
    text = whole(accepts=read([chain('drop')]).accepts)
    assert text.endswith('insert rule inet filter input meta mark & 0x40000000 == 0x40000000 '
                         'accept\n')


def test_chains_of_iptables_get_it_by_iptables():
    listing = [chain('drop', family='ip', name='INPUT')]
    saved = '*filter\n:INPUT DROP [0:0]\n%sCOMMIT\n'
    place = knockd.NFT.whole(make_config(), seen(accepts=read(
        listing, iptables_nft_save=saved % '').accepts), DECOYS, [], NOW)[1:]
    assert place == [(['iptables-nft', '-w', '-t', 'filter', '-I', 'INPUT', '-m', 'mark', '--mark',
                       '0x40000000/0x40000000', '-j', 'ACCEPT'], '')]
    legacy = read([], iptables_legacy_save=saved % '').accepts
    argv = knockd.NFT.whole(make_config(), seen(accepts=legacy), DECOYS, [], NOW)[1][0]
    assert argv[:6] == ['iptables-legacy', '-w', '-t', 'filter', '-I', 'INPUT']
    ours = '-A INPUT -m mark --mark 0x40000000/0x40000000 -j ACCEPT\n'
    there = read(listing, iptables_nft_save=saved % ('[3:180] ' + ours)).accepts
    assert there == ([], []), 'with a counter'
    twice = read(listing, iptables_nft_save=saved % (ours * 3)).accepts
    assert [each[:4] for each in twice.surplus] == [('iptables-nft', 'ip', 'filter', 'INPUT')] * 2
    old = read([], 'accept_in =', iptables_legacy_save=saved % ours).accepts
    argv = knockd.NFT.whole(make_config(), seen(accepts=old), DECOYS, [], NOW)[1][0]
    assert argv[:6] == ['iptables-legacy', '-w', '-t', 'filter', '-D', 'INPUT']


# --- what is listed of ours ----------------------------------------------------------------------
def own(handle=1, right=61022, value=22):
    mangle = {'mangle': {'key': {'payload': {'protocol': 'tcp', 'field': 'sport'}}, 'value': value}}
    port = match({'payload': {'protocol': 'tcp', 'field': 'sport'}}, right)
    clear = {'mangle': {'key': {'meta': {'key': 'mark'}}, 'value': 0}}
    return [{'table': {'family': 'inet', 'name': 'knockd', 'handle': handle}},
            rule(port, mangle, clear, table='knockd', chain='restore', handle=handle)]


def test_our_own_rules_are_the_same_after_another_load_and_not_after_a_change():
    assert read([META]).ours is None
    assert read([META] + own()).ours == read([META] + own(5)).ours
    assert read(own()).ours != read(own(value=23)).ours
    assert read(own()).ours == read(own() + [chain('drop')]).ours


def test_the_decoys_of_the_loaded_rules_and_the_ports_of_others_are_known():
    found = read(own() + [chain(), rule(match(DPORT, {'set': [443, {'range': [8000, 8010]}]}))])
    assert found.decoys == {22: 61022}
    assert {443, 8000, 8010} <= found.taken_ports and 61022 not in found.taken_ports


def test_of_what_iptables_keeps_the_rules_name_ports_and_no_date_and_no_counter():
    saved = ('# Generated by iptables-save v1.8.9 on Sun Nov 29 08:26:2029 2026\n*nat\n'
             ':PREROUTING ACCEPT [4711:30003]\n'
             '[5000:6000] -A PREROUTING -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 3128\n')
    ports = read([], iptables_legacy_save=saved).taken_ports
    assert {8080, 3128} <= ports and not ports & {2026, 2029, 4711, 5000, 6000, 30003}


def test_what_is_listed_is_asked_without_elements_and_only_of_programs_there():
    commands = knockd.NFT.list_commands(lambda program: program == 'iptables-nft-save')
    assert ['nft', '-j', '-s', '-t', 'list', 'ruleset'] in commands
    assert [argv for argv in commands if 'save' in argv[0]] == [['iptables-nft-save']]
