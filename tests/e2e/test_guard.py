"""The guard against strangers who know how it is made: the text alone, loaded with nft, no daemon.

Each test is a way that once led through, or by which a hidden port could be told from a closed
one. Figures are printed: pytest -rP.
"""

import collections
import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import sys
import time

import pytest

import knockd
from guardbox import Guard
from network import (CLOSED, HIDDEN, HIDDEN_UDP, TOP, accept, alive, be16, carries, checksum,
                     drain, environment, family_of, header_size, ip_packet, many_at_once,
                     protocol_of, source_of, until)
from test_forward import DROPPING, NFT_DNAT, inside      # noqa: F401
from test_stealth import (ACK, FIN, INPUT, PSH, RST, SYN, URG, client_port_of, plain, settle,
                          tcp, udp)

pytestmark = pytest.mark.kernel
NOTRACK = '''table inet raw {
    chain p { type filter hook prerouting priority -300; tcp dport 2222 notrack
    }
    chain o { type filter hook output priority -300; tcp sport 2222 notrack
    }
}
'''
DMZ = '''table inet nat {
    chain p { type nat hook prerouting priority dstnat;
        iifname "eth0" meta l4proto { tcp, udp } dnat ip to 10.8.0.2
        iifname "eth0" meta l4proto { tcp, udp } dnat ip6 to fd00:8::2
    }
}
'''
SYNPROXY = '''table inet proxy {
    chain p { type filter hook prerouting priority raw; tcp dport 2222 tcp flags syn notrack
    }
    chain i { type filter hook input priority 0
        tcp dport 2222 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
    }
}
'''
TPROXY = '''table inet proxy {
    chain p { type filter hook prerouting priority mangle
        tcp dport 2222 meta mark set 1 tproxy ip to :8443 accept
        tcp dport 2222 meta mark set 1 tproxy ip6 to :8443 accept
    }
}
'''
ZONES = '''table inet filter {
    chain input { type filter hook input priority 0;
        ct state established,related accept
        tcp dport 2222 accept
        udp dport 5182 accept
        iifname "eth0" jump wan
        reject
    }
    chain wan {
        meta l4proto { icmp, ipv6-icmp } accept
        drop
    }
}
'''


FLOOD = '''tcp flags & (fin | syn | rst | ack) == syn jump syn_flood
        tcp dport 2222 accept
        meta l4proto tcp reject with tcp reset
    }
    chain syn_flood {
        limit rate 250/second burst 500 packets return
        drop
'''
FLAGS = (SYN, ACK, FIN, 0, SYN | ACK, FIN | ACK, PSH | ACK, RST, RST | ACK, FIN | PSH | URG)


@pytest.fixture
def guard(wire, services):
    """A function that loads a guard on a box with these rules of its own."""
    made = []

    def load(settings='', rules='', tool=knockd.NFT, **clients):
        wire.clear()
        wire.server.run('conntrack', '-F')
        if rules:
            wire.server.nft(rules)
        made.append(Guard(wire.server, settings, tool, **clients))
        return made[-1].load()
    yield load
    for each in made:
        each.close()
    wire.clear()


def my(wire, address):
    return wire.client.addresses[':' in address]


def connected(wire, services, address, **options):
    """(the client's end, the server's end) of a connection to HIDDEN."""
    connection = wire.client.connection(address, HIDDEN, **options)
    return connection, connection and accept(services[HIDDEN], connection)


def answered(wire, address, packets):
    """{(flags, port) that answered: how often} of TCP packets sent at once by the client."""
    with wire.capture(wire.server) as capture, wire.client.raw_sender(address) as send:
        for packet in packets:
            send(packet)
            capture.read()
        settle(wire, capture, my(wire, address), address, send)
        return collections.Counter(
            (packet[size + 13], struct.unpack_from('!H', packet, size)[0])
            for packet in capture.packets(address) if protocol_of(packet) == 6
            for size in [header_size(packet)])


def statistic(wire, name):
    lines = wire.server.must('cat', '/proc/net/netstat').splitlines()
    return int(dict(zip(lines[0].split(), lines[1].split()))[name])


def test_no_synproxy_makes_a_strangers_connection_over_lo(wire, services, guard):
    """Such a proxy answers the SYN, and repeats it over lo in the name of who sent it."""
    address = wire.server.addresses[0]
    wire.server.set(netfilter__nf_conntrack_tcp_loose=0)
    made = guard(rules=SYNPROXY)

    def comes_in():
        connection = wire.client.connection(address, HIDDEN)
        if connection is None:
            return False
        services[HIDDEN].settimeout(0.5)
        with connection, contextlib.suppress(OSError):
            connection.sendall(b'hello')
            with services[HIDDEN].accept()[0]:
                return True
    assert not comes_in()
    made.open(my(wire, address))
    assert until(comes_in)
    wire.server.set(netfilter__nf_conntrack_tcp_loose=1)


@contextlib.contextmanager
def proxying(wire, address):
    """The box as one whose rules with tproxy lead here; yields the proxy's listener."""
    family = ['-6'] if ':' in address else []
    wire.server.must('ip', *family, 'rule', 'add', 'fwmark', '1/0xff', 'lookup', '100')
    wire.server.must('ip', *family, 'route', 'add', 'local', 'default', 'dev', 'lo', 'table', '100')
    try:
        with wire.server.make_socket(socket.AF_INET6, socket.SOCK_STREAM) as proxy:
            proxy.setsockopt(socket.IPPROTO_IP, 19, 1)          # IP_TRANSPARENT, <linux/in.h>
            proxy.setsockopt(socket.IPPROTO_IPV6, 75, 1)        # IPV6_TRANSPARENT, <linux/in6.h>
            proxy.bind(('::', 8443))
            proxy.listen(5)
            yield proxy
    finally:
        wire.server.must('ip', *family, 'route', 'flush', 'table', '100')
        wire.server.must('ip', *family, 'rule', 'del', 'fwmark', '1/0xff', 'lookup', '100')


def test_no_rule_with_tproxy_hands_a_stranger_to_a_hidden_port(wire, guard, address):
    elsewhere = '2001:db8::7' if ':' in address else '192.0.2.7'
    made = guard(rules=TPROXY)
    wire.server.must('ip', 'route', 'add', elsewhere, 'via', my(wire, address))
    wire.client.must('ip', 'route', 'add', elsewhere, 'via', address)
    with proxying(wire, address):
        try:
            assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
            assert wire.client.connects(elsewhere, HIDDEN), 'the same port of another host'
            made.open(my(wire, address))
            assert wire.client.connects(address, HIDDEN)
        finally:
            wire.client.must('ip', 'route', 'del', elsewhere)
            wire.server.must('ip', 'route', 'del', elsewhere)


def told_apart(wire, address, hidden=HIDDEN):
    """[(flags, answers)] of segments to a hidden port that CLOSED answers otherwise."""
    differ = []
    for number, flags in enumerate(FLAGS, 26000):
        pair = [[each[1] for each in seen(wire, address, tcp(
                    my(wire, address), address, (number, port), flags, payload=b'hello' * data),
                    port, number)] for port in (hidden, CLOSED) for data in (False, True)]
        if pair[:2] != pair[2:]:
            differ.append((flags, pair))
    return differ


def test_a_listener_at_a_single_address_is_as_a_closed_port(wire, guard, address):
    guard('hide = tcp/2223')
    with wire.server.make_socket(family_of(address), socket.SOCK_STREAM) as listener:
        listener.bind((address, 2223))
        listener.listen(5)
        assert told_apart(wire, address, 2223) == []


@pytest.mark.parametrize('rule', [
    'tcp flags syn / fin,syn,rst,ack reject with icmpx type admin-prohibited',
    'tcp flags & (fin | syn | rst | ack) vmap { syn : drop, ack : drop }',
    'tcp flags & (syn | ack) == syn drop',
    'ct state new tcp flags != syn / fin,syn,rst,ack drop',
    'tcp flags != syn drop',
    'ct state invalid,new tcp flags { syn, syn | psh } reject with tcp reset\ndrop',
    'tcp flags syn / syn,ack limit rate 99/second accept\ntcp flags syn / syn,ack drop',
    'tcp flags rst drop'])
def test_a_box_that_tells_closed_ports_by_tcp_flags(wire, services, guard, address, rule):
    """Behind its rule for the hidden port, as one writes them."""
    guard(rules=INPUT % ('accept', 'tcp flags 0 drop\ntcp dport 2222 accept\n' + rule))
    assert told_apart(wire, address) == []


def test_a_box_that_lets_so_many_syns_by_as_openwrt(wire, services, guard, address):
    made = guard(rules=INPUT % ('drop', FLOOD))
    assert told_apart(wire, address) == []
    made.open(my(wire, address))
    assert wire.client.connects(address)


@pytest.mark.parametrize('rule', ['--syn -j DROP', '! --syn -m conntrack --ctstate NEW -j DROP'])
def test_a_box_whose_iptables_tells_closed_ports_by_tcp_flags(
        wire, services, guard, address, rule):
    tool = 'ip6tables-nft' if ':' in address else 'iptables-nft'
    wire.clear()
    made = guard()
    for line in '--dport 2222 -j ACCEPT', rule:
        wire.server.must(tool, '-A', 'INPUT', '-p', 'tcp', *line.split())
    made.load()
    assert told_apart(wire, address) == []
    made.open(my(wire, address))
    assert wire.client.connects(address)


def test_a_session_at_a_single_address_outlives_all_that_knows_it_but_its_socket(
        wire, guard, address):
    made = guard('hide = tcp/2223')
    made.open(my(wire, address), 'tcp/2223')
    with wire.server.make_socket(family_of(address), socket.SOCK_STREAM) as listener:
        listener.bind((address, 2223))
        listener.listen(5)
        with wire.client.connection(address, 2223) as connection, \
                accept(listener, connection) as end, many_at_once(wire):
            made.turn([])
            wire.server.must('conntrack', '-F')
            assert carries(connection, end)
            wire.server.nft(NOTRACK.replace('2222', '2223'))
            assert carries(connection, end)
            assert alive(connection, end)


@pytest.mark.parametrize('tool', [knockd.NFT, knockd.NFT_WITHOUT_SOCKETS], ids=['sockets', 'none'])
def test_a_connection_outlives_its_opening_however_many_packets_come_together(
        wire, services, guard, address, tool):
    """Of those the stack itself looks for the socket of the first alone."""
    made = guard(tool=tool)
    made.open(my(wire, address))
    connection, end = connected(wire, services, address)
    made.turn([])
    with connection, end, many_at_once(wire):
        assert carries(connection, end)
        assert alive(connection, end)


@pytest.mark.parametrize('priority', ['mangle', 'filter'])
@pytest.mark.parametrize('rules', ['', INPUT % ('drop', 'tcp dport 2222 accept'), INPUT % (
    'accept', 'tcp dport 2222 accept\nreject with tcp reset')], ids=['accepts', 'drops', 'rejects'])
def test_with_tproxy_too_a_hidden_port_is_as_a_closed_one_to_every_flag(
        wire, guard, address, rules, priority):
    """A bare ACK, FIN or nothing at all would come to the proxy's listener."""
    made = guard(rules=TPROXY.replace('mangle', priority) + rules)
    with proxying(wire, address) as proxy:
        assert told_apart(wire, address) == []
        if priority == 'filter':        # the mark is set behind ours: `check` says so
            return
        made.open(my(wire, address))
        with wire.client.connection(address, HIDDEN) as connection, \
                accept(proxy, connection) as end:
            made.turn([])
            assert alive(connection, end)


@pytest.mark.parametrize('hook', ['prerouting', 'input'])
@pytest.mark.parametrize('once', [False, True])
def test_a_rule_that_takes_our_mark_off_shuts_nobody_out(wire, services, guard, address, hook,
                                                         once):
    """As of a box with two ways out, which keeps the mark of each connection."""
    made = guard('', 'table inet lines { chain marks { type filter hook %s priority filter\n'
                 'meta mark set ct mark\n}\n}' % hook,
                 anna='once = yes' if once else '')
    made.open(my(wire, address), once=once)
    connection, end = connected(wire, services, address)
    assert wire.client.connects(address) != once
    assert not wire.stranger.connects(address)
    made.turn([])
    with connection, end:
        assert alive(connection, end)
    assert not wire.client.connects(address)


@pytest.mark.parametrize('rules', [
    '', INPUT % ('drop', 'tcp dport 2222 accept'),
    INPUT % ('accept', 'tcp dport 2222 accept\nreject')], ids=['accepts', 'drops', 'rejects'])
@pytest.mark.parametrize('answer', ['box', 'drop', 'reset'])
def test_a_session_outlives_its_opening_and_what_conntrack_knows_of_it(
        wire, services, guard, address, rules, answer):
    made = guard('answer = ' + answer, rules)

    def lives(happen):
        made.open(my(wire, address))
        connection, end = connected(wire, services, address)
        made.turn([])
        happen()
        with connection, end:
            return alive(connection, end)
    assert lives(lambda: None)
    assert lives(lambda: wire.server.must('conntrack', '-F'))
    assert lives(lambda: wire.server.nft(NOTRACK))
    wire.server.nft('delete table inet raw')
    wire.server.set(netfilter__nf_conntrack_tcp_timeout_established=1)
    try:
        assert lives(lambda: until(lambda: 'tcp' not in wire.server.run(
            'conntrack', '-L', '-p', 'tcp', '--dport', '2222').out, 5))
    finally:
        wire.server.set(netfilter__nf_conntrack_tcp_timeout_established=432000)
    assert not wire.stranger.connects(address)


@contextlib.contextmanager
def cookies(wire, mode):
    """Every SYN is answered by a cookie; the client's own kernel does not speak."""
    wire.server.set(ipv4__tcp_syncookies=mode)
    wire.client.nft('table inet quiet { chain o { type filter hook output priority 0;\n'
                    'tcp flags & rst != 0 drop\n}\n}')
    try:
        yield
    finally:
        wire.client.nft('delete table inet quiet')
        wire.server.set(ipv4__tcp_syncookies=1)


@pytest.mark.parametrize('where', ['everywhere', 'at a single address'])
def test_a_cookie_from_while_it_was_open_opens_nothing_later(wire, services, guard, address, where):
    port = HIDDEN if where == 'everywhere' else CLOSED
    made, mine, collected = guard('hide = tcp/%d' % port), my(wire, address), {}
    made.open(mine, 'tcp/%d' % port)
    with cookies(wire, 2), contextlib.ExitStack() as held:
        if port != HIDDEN:
            listener = wire.server.make_socket(family_of(address), socket.SOCK_STREAM)
            held.enter_context(listener).bind((address, port))
            listener.listen(1000)
        made.load()
        with wire.capture(wire.server) as capture, wire.client.raw_sender(address) as send:
            for source in range(30000, 30200):
                send(tcp(mine, address, (source, port), SYN))
            settle(wire, capture, mine, address, send)
            for packet in capture.packets(address):
                size = header_size(packet)
                if protocol_of(packet) == 6 and packet[size + 13] == SYN | ACK:
                    _, source, cookie = struct.unpack_from('!HHI', packet, size)
                    collected[source] = cookie
        made.turn([])
        wire.server.must('conntrack', '-F')
        before = [statistic(wire, name) for name in ('SyncookiesRecv', 'SyncookiesFailed')]
        packets = []
        for source, cookie in collected.items():
            packets += [tcp(mine, address, (source, port), flags, seq=0x01020305, ack=cookie + 1)
                        for flags in (ACK, ACK | PSH, FIN | ACK)]
            packets += [tcp(mine, address, (source + 1000, port), flags)
                        for flags in (ACK, FIN | ACK, FIN, 0)]
        answers = answered(wire, address, packets)
    print('%d cookies; answers to %d packets: %s' % (len(collected), len(packets), dict(answers)))
    assert len(collected) == 200
    assert dict(answers) == {(RST, port): 1000, (RST | ACK, port): 400}
    assert before == [statistic(wire, name) for name in ('SyncookiesRecv', 'SyncookiesFailed')]


@pytest.mark.parametrize('once', [False, True])
def test_a_box_that_always_sends_cookies_opens_as_any_other(wire, services, guard, address, once):
    made = guard(anna='once = yes' if once else '')
    wire.server.set(ipv4__tcp_syncookies=2)
    try:
        made.open(my(wire, address), once=once)
        connection, end = connected(wire, services, address)
        with connection, end:
            assert alive(connection, end)
        assert wire.client.connects(address) != once
    finally:
        wire.server.set(ipv4__tcp_syncookies=1)


def flood(wire, member, address, packets, seconds):
    """A child that sends these round and round."""
    child = os.fork()
    if child:
        return child
    try:
        end, number = time.monotonic() + seconds, 0
        with member.raw_sender(address) as send:
            while time.monotonic() < end:
                send(packets[number % len(packets)])
                number += 1
        print('%d packets a second' % (number // seconds))
    finally:
        os._exit(0)


def test_syns_to_a_hidden_port_and_its_decoy_are_answered_each_by_its_own(wire, guard, address):
    """From the same ports, by two processes: nothing remembers who asked what."""
    made, mine = guard(), my(wire, address)
    ports = (HIDDEN, made.decoys[HIDDEN])
    floods = [[tcp(mine, address, (20000 + number, port), SYN, seq=port) for number in range(5000)]
              for port in ports]
    wrong, count = collections.Counter(), 0
    with wire.capture(wire.server) as capture:
        children = [flood(wire, wire.client, address, packets, 5) for packets in floods]
        end = time.monotonic() + 5.3
        while time.monotonic() < end:
            capture.read()
            for packet in capture.packets(address):
                size = header_size(packet)
                if protocol_of(packet) == 6:
                    port, _, _, ack = struct.unpack_from('!HHII', packet, size)
                    count += 1
                    wrong[port, ack - 1] += port != ack - 1
            capture.seen.clear()
        for child in children:
            os.waitpid(child, 0)
    wrong = {pair: times for pair, times in wrong.items() if times and set(pair) <= set(ports)}
    print('%d answers, from another port: %s' % (count, wrong))
    assert count > 10000 and not wrong


NULL_FLOOD = """
import os, sys, time
sys.path[:0] = %r
import blast
from test_stealth import tcp
mac, source, target, port, seconds = sys.argv[1:]
head = bytes.fromhex(mac.replace(':', '')) + bytes([2, 0, 0, 0, 0, 9])
head += b'\\x86\\xdd' if ':' in target else b'\\x08\\0'
frames = []
for number in range(256):
    packet = bytearray(tcp(source, target, (20000 + number, int(port)), 0))
    if ':' not in target:
        packet[10:12] = blast.checksum(bytes(packet[:20])).to_bytes(2, 'big')
    frames.append(head + bytes(packet))
ring, sent, end = blast.Ring('eth0', frames), 0, time.monotonic() + float(seconds)
while time.monotonic() < end:
    ring.send()
    sent += blast.FRAMES
print(sent)
"""


def test_a_flood_of_null_packets_shows_no_difference(wire, guard, address):
    guard()
    paths = [os.path.join(TOP, 'tests', 'bench'), os.path.dirname(os.path.abspath(__file__)), TOP]
    argv = wire.stranger.command(
        sys.executable, '-c', NULL_FLOOD % paths, wire.server.hardware_address(),
        wire.stranger.addresses[':' in address], address, str(HIDDEN), '6')
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment()) as sender:
        seen = {port: collections.Counter() for port in (HIDDEN, CLOSED)}
        while sender.poll() is None:
            for port in seen:
                seen[port][wire.client.socket_error(address, port)] += 1
        sent = int(sender.stdout.read())
    print('%d packets a second; connects: %s' % (
        sent // 6, {port: dict(found) for port, found in seen.items()}))
    assert sent > 60000
    assert set(seen[HIDDEN]) == set(seen[CLOSED]) == {ConnectionRefusedError}


def test_no_stranger_comes_in_while_the_whole_is_loaded_again_and_again(wire, guard, tmp_path,
                                                                        address):
    made, mine = guard(), my(wire, address)
    rules = tmp_path / 'rules'
    rules.write_text(made.text())
    with wire.capture(wire.server) as capture, wire.client.raw_sender(address) as send:
        with wire.server.start('sh', '-c', 'for i in $(seq 40); do nft -f "$0" || exit 1; done',
                               str(rules)) as loading:
            count = 0
            while loading.poll() is None:
                count += 1
                send(tcp(mine, address, (1024 + count % 30000, HIDDEN), SYN))
                capture.read()
        settle(wire, capture, mine, address, send)
        flags = collections.Counter(packet[header_size(packet) + 13]
                                    for packet in capture.packets(address)
                                    if protocol_of(packet) == 6)
    print('40 loads, %d SYNs: %s' % (count, dict(flags)))
    assert loading.returncode == 0 and count > 500
    assert set(flags) == {RST | ACK}


@pytest.mark.parametrize('rules', [
    DMZ, DMZ.replace('meta l4proto { tcp, udp }', 'tcp dport 2000-3000'),
    NFT_DNAT, NFT_DNAT + DROPPING],
                         ids=['DMZ host', 'range', 'port', 'port, forward drops'])
def test_a_hidden_port_leaves_by_no_forward_until_it_is_open(wire, services, guard, inside,  # noqa: F811
                                                             address, rules):
    made = guard('', rules)
    listeners = [inside.listen(port) for port in (HIDDEN, 2022)]
    try:
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        made.open(my(wire, address))
        connection = until(lambda: wire.client.connection(address, HIDDEN), 5)
        assert connection
        connection.close()
        reached = [listener for listener in listeners if heard(listener)]
        assert len(reached) == 1, 'the host behind has it, as before'
        assert not wire.stranger.connects(address)
    finally:
        for listener in listeners:
            listener.close()


def heard(listener):
    listener.settimeout(0.1)
    try:
        listener.accept()[0].close()
    except OSError:
        return False
    return True


def udp_answers(wire, services, target, port, number, **fields):
    """(answers, datagrams that the service got) of one datagram from the client."""
    source = fields.pop('source', wire.client.addresses[':' in target])
    packet = bytearray(udp(source, target, (number, port), b'hello', **fields))
    if ':' not in target:
        size = header_size(packet)
        packet[10:12] = be16(checksum(packet[:10] + b'\0\0' + packet[12:size]))
    hardware = bytes.fromhex(wire.server.hardware_address().replace(':', ''))
    hardware = {'10.9.0.255': b'\xff' * 6, '255.255.255.255': b'\xff' * 6,
                'ff02::1': b'\x33\x33\0\0\0\1'}.get(target, hardware)
    mine = bytes.fromhex(wire.client.hardware_address().replace(':', ''))
    kind = b'\x86\xdd' if ':' in target else b'\x08\0'
    local = wire.server.addresses[':' in target]
    waiting_in(services['udp'])         # of tests before, for which it was open
    with wire.capture(wire.server) as capture, \
            wire.client.make_socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(('eth0', 0))
        sender.send(hardware + mine + kind + bytes(packet))
        with wire.client.raw_sender(local) as send:
            settle(wire, capture, wire.client.addresses[':' in target], local, send)
        answers = [each for each in capture.packets()
                   if source_of(each) in wire.server.addresses + (target,)
                   and client_port_of(each) == number]
    return len(answers), waiting_in(services['udp'])


def waiting_in(sock):
    """How many datagrams a socket has got; they are taken out."""
    count = 0
    sock.settimeout(0)
    with contextlib.suppress(OSError):
        while sock.recv(100):
            count += 1
    return count


ODD_DATAGRAMS = [
    ('10.9.0.255', {}), ('255.255.255.255', {}), ('224.0.0.1', {}), ('ff02::1', {}),
    ('fd00:9::', {}), ('127.0.0.1', {}), ('10.9.0.1', {'source': '192.0.2.7'}),
    ('10.9.0.1', {'source': '127.0.0.1'}), ('10.9.0.1', {'source': '10.9.0.1'}),
    ('10.9.0.1', {'options': b'\x83\7\4\x0a\x09\0\x01\0'}),
    ('10.9.0.1', {'options': b'\x83\7\x08\x0a\x09\0\x01\0'}),
    ('10.9.0.1', {'options': b'\7\7\3\0\0\0\0\0'}), ('fd00:9::1', {'source': 'fd00:dead::1'}),
    ('10.9.0.1', {'wrong': 1}), ('fd00:9::1', {'none': True}), ('10.9.0.1', {'none': True})]


@pytest.mark.parametrize('strict', (0, 1))
def test_odd_datagrams_get_what_a_closed_port_gives(wire, services, guard, strict):
    guard()
    wire.server.set(ipv4__conf__all__rp_filter=strict, ipv4__conf__eth0__rp_filter=strict)
    differ = []
    for number, (target, fields) in enumerate(ODD_DATAGRAMS):
        pair = [udp_answers(wire, services, target, port, 21000 + number, **dict(fields))
                for port in (HIDDEN_UDP, HIDDEN_UDP + 1)]
        if pair[0] != pair[1] or pair[0][1]:
            differ.append((target, fields, pair))
    wire.server.set(ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=0)
    print('%d datagrams, differ: %s' % (len(ODD_DATAGRAMS), differ))
    assert differ == []


def test_each_zone_of_the_box_has_its_own_answer(wire, services, guard, address):
    """The wire's side drops, every other side rejects; both ports are allowed before."""
    made = guard('', ZONES)
    assert made.seen.box.closed[4, 6, 'new'] == {
        'eth0': 'drop', None: 'reject with icmpx type port-unreachable'}
    assert wire.client.socket_error(address, HIDDEN) is socket.timeout
    assert wire.client.socket_error(address, CLOSED) is socket.timeout
    assert udp_answers(wire, services, address, HIDDEN_UDP, 20000)[0] == 0
    made.open(my(wire, address))
    assert wire.client.connects(address)


def test_an_inner_packet_does_not_inherit_what_its_tunnel_may(wire, guard):
    """Who may reach VXLAN's port by a knock may not, inside of it, reach what the box drops."""
    rules = INPUT % ('drop', '')
    made = guard('hide = tcp/2222, udp/4789', rules, anna='allow = udp/4789')
    setup = '''ip link add vx0 type vxlan id 7 remote 10.9.0.%d dstport 4789
        ip addr add 10.77.0.%d/24 dev vx0
        ip link set vx0 up'''
    members = ((wire.server, 2, 1), (wire.client, 1, 2))
    try:
        for member, remote, number in members:
            for line in (setup % (remote, number)).splitlines():
                member.must(*line.split())
        made.open('10.9.0.2', 'udp/4789')
        assert until(lambda: wire.client.run('ping', '-c1', '-W1', '10.77.0.1').code == 0, 5)
        assert wire.client.socket_error('10.77.0.1', CLOSED) is socket.timeout
        assert wire.client.socket_error('10.77.0.1', HIDDEN) is socket.timeout
    finally:
        for member, _, _ in members:
            member.run('ip', 'link', 'del', 'vx0')


def test_a_socket_does_not_take_our_mark_from_its_connection(wire, services, guard, address):
    """tcp_fwmark_accept and an exact `ip rule fwmark`: the answer must find its way."""
    made = guard()
    wire.server.set(ipv4__tcp_fwmark_accept=1)
    try:
        made.open(my(wire, address))
        connection, end = connected(wire, services, address)
        with connection, end:
            assert end.getsockopt(socket.SOL_SOCKET, 36) == 0           # SO_MARK
    finally:
        wire.server.set(ipv4__tcp_fwmark_accept=0)


def test_openings_change_and_nothing_else_does(wire, services, guard, address):
    """Several clients at one address, ranges and ports, longer and shorter, closed and expired."""
    made = guard('hide = tcp/2200-2240', anna='', bert='')
    mine = my(wire, address)
    one = made.open(mine, 'tcp/2222', client='anna')
    made.open(mine, 'tcp/2210-2230', client='bert')
    assert wire.client.connects(address, 2222)
    made.turn([opening for opening in made.openings if opening != one])
    assert wire.client.connects(address, 2222), 'bert has it still'
    assert not wire.stranger.connects(address, 2222)
    made.turn([])
    assert not wire.client.connects(address, 2222)
    made.open(mine, 'tcp/2222', seconds=1)
    made.open(mine, 'tcp/2222', seconds=2)
    assert wire.client.connects(address, 2222)
    assert until(lambda: not wire.client.connects(address, 2222), 5), 'the kernel closes'
    made.open(mine, 'tcp/2222')
    made.load()
    assert wire.client.connects(address, 2222), 'openings outlive a load'


@pytest.mark.parametrize('what', ['tcp/2222', 'tcp/2220-2230'])
@pytest.mark.parametrize('wide', [False, True], ids=['host', 'network'])
@pytest.mark.parametrize('rules', ['', NOTRACK], ids=['tracked', 'notrack'])
def test_once_is_one_connection_until_it_is_over_and_never_after(wire, services, guard, address,
                                                                 what, wide, rules):
    """By the same port again and again: at once, after its end, after the opening was closed."""
    made = guard('hide = tcp/2200-2240', rules, anna='once = yes\nallow = tcp/2200-2240\n'
                 + 'prefix4 = 24\nprefix6 = 64' * wide)
    length = '/64' if ':' in address else '/24'
    source = ipaddress.ip_network(my(wire, address) + length * wide, strict=False)
    made.open(source, what, once=True)
    connection, end = connected(wire, services, address)
    port = connection.getsockname()[1]
    assert alive(connection, end)
    assert not wire.client.connects(address)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    connection.close()
    end.close()
    for _ in range(5):
        assert not wire.client.connection(address, HIDDEN, source_port=port)
    made.turn([])
    for _ in range(3):
        assert not wire.client.connection(address, HIDDEN, source_port=port)
    made.open(source, what, once=True)
    assert wire.client.connects(address), 'another knock, another connection'
    assert not wire.client.connects(address)


def test_a_syn_of_once_that_comes_again_is_no_second_connection_and_none_after_the_end(
        wire, guard, address):
    made, mine = guard(anna='once = yes'), my(wire, address)
    made.open(mine, once=True)
    packets = [tcp(mine, address, (50001, HIDDEN), SYN)] * 3 + [
        tcp(mine, address, (50002, HIDDEN), SYN)]
    answers = answered(wire, address, packets)
    assert answers[SYN | ACK, HIDDEN] >= 1 and answers[RST | ACK, HIDDEN] == 1
    made.turn([])
    answers = answered(wire, address, packets[:1])
    assert SYN | ACK not in {flags for flags, _ in answers}


def test_of_once_by_udp_one_flow_gets_in(wire, services, guard):
    made = guard(anna='once = yes\nallow = udp/5182')
    made.open('10.9.0.2', 'udp/5182', once=True)
    for source_port, wanted in ((40001, True), (40001, True), (40002, False)):
        wire.client.send(b'hello', '10.9.0.1', HIDDEN_UDP, source_port)
        services['udp'].settimeout(0.3)
        try:
            heard_it = services['udp'].recv(100) == b'hello'
        except OSError:
            heard_it = False
        assert heard_it is wanted


def test_a_mark_is_cleared_whoever_has_set_it(wire, guard, address):
    guard('', 'table inet early { chain p { type filter hook prerouting priority -150;\n'
              'meta mark set 0x60000000\n}\n}')
    assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError


def test_a_second_load_of_the_same_is_seen_as_the_same(guard):
    made = guard('', INPUT % ('drop', ''))
    first = made.look()
    assert first.ours and first.accepts == ([], [])
    made.load()
    assert made.look() == first
    assert made.seen.decoys == made.decoys
    made.config = made.config._replace(hide=())
    made.run(made.tool.whole(made.config, made.look(), {}, (), 0))
    last = made.look()
    assert last.ours is None and last.accepts == ([], [])
    listing = made.namespace.must('nft', 'list', 'ruleset')
    assert 'mark' not in listing and 'knockd' not in listing


def test_packets_with_ip_options_and_extension_headers(wire, guard, address):
    """Good and malformed: a closed port's answer; IPv6 extension headers get silence."""
    guard()
    mine, number, differ, silent, count = my(wire, address), 22000, [], 0, 0
    for name, make in odd_packets(mine, address):
        for flags in (SYN, ACK, FIN, 0, SYN | ACK, RST):
            number += 1
            pair = [seen(wire, address, make(number, port, flags), port, number)
                    for port in (HIDDEN, CLOSED)]
            count += 1
            if pair[0] != pair[1]:
                silent += ':' in address and pair[0] == []
                differ += [(name, flags, pair)] * (pair[0] != [] or ':' not in address)
    print('%d packets; differ: %s; silent behind extension headers: %d' % (count, differ, silent))
    assert differ == []


OPTIONS = {
    'none': b'\1\1\1\0', 'record route': b'\7\7\4\0\0\0\0\0', 'its pointer 3': b'\7\7\3\0\0\0\0\0',
    'too short': b'\7\2\4\0', 'time stamp, pointer 3': b'\x44\x08\x03\0\0\0\0\0',
    'router alert': b'\x94\4\0\0', 'of 3 bytes': b'\x94\3\0\0',
    'loose source route': b'\x83\7\4\x0a\x09\0\x01\0', 'strict': b'\x89\7\4\x0a\x09\0\x01\0',
    'security': b'\x82\x0b' + bytes(10), 'CIPSO': b'\x86\6\0\0\0\1\0\0', 'unknown': b'\x5e\4\0\0',
    'of length 0': b'\x5e\0\0\0', 'of 16 in 4': b'\x5e\x10\0\0', 'end': bytes(4)}
EXTENSIONS = {
    'destination': (60, b'\0\1\4\0\0\0\0'), 'unknown, skip': (60, b'\0\x1e\4\0\0\0\0'),
    'unknown, 0x80': (60, b'\0\x80\4\0\0\0\0'), 'hop by hop': (0, b'\0\1\4\0\0\0\0'),
    'its 0x80': (0, b'\0\x80\4\0\0\0\0'), 'routing 0': (43, bytes(7)),
    'routing 4': (43, b'\0\4\0\0\0\0\0'), 'whole fragment': (44, b'\0\0\0\0\0\0\1')}


def odd_packets(source, target):
    """(name, function of client's port, port and flags)"""
    if ':' not in target:
        for name, options in OPTIONS.items():
            yield name, lambda number, port, flags, options=options: tcp(
                source, target, (number, port), flags, options=options)
        return
    for name, (kind, rest) in EXTENSIONS.items():
        yield name, lambda number, port, flags, kind=kind, rest=rest: ip_packet(
            source, target, kind, b'\6' + rest + tcp(source, target, (number, port), flags)[40:])


def seen(wire, address, packet, port, number):
    """What the box answers, made plain."""
    with wire.capture(wire.server) as capture, wire.client.raw_sender(address) as send:
        send(packet)
        settle(wire, capture, my(wire, address), address, send)
        found = []
        for each in capture.packets(address):
            size = header_size(each)
            if client_port_of(each) == number:
                found.append(plain(each, port, number))
            elif protocol_of(each) == 58 and each[size] == 4:       # what it quotes, but the port
                found.append(each[size + 48:-4].replace(be16(port), b'..'))
        return found


def test_drained(services):
    """What the tests above have left in the listeners' queues is no later test's."""
    for listener in list(services.values()):
        if listener.type == socket.SOCK_STREAM:
            drain(listener)
