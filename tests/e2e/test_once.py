"""`once`: an opening lets one new connection in, and the kernel counts. And prefix4, prefix6."""

import ipaddress
import os
import struct
import time

import carriers
import pytest
from network import HIDDEN, until

pytestmark = pytest.mark.kernel
PAIRS = 5000
COUNTER = '''table inet count {
    chain input { type filter hook input priority 95; policy accept;
        tcp dport 2222 tcp flags & (syn | ack) == syn counter
    }
}
'''


def counted(wire):
    """How many SYNs came through to the service."""
    chain = wire.server.must('nft', 'list', 'chain', 'inet', 'count', 'input')
    return int(chain.split('packets ')[1].split()[0])


def syn(source, target, port, sequence=1):
    badge = struct.pack('!IIH', sequence, 0, 64240)
    return carriers.syn_packet(source, target, HIDDEN, port, badge)


def open_once(wire, knockd, address):
    """Knocks without a probe, which would be the one connection."""
    before = knockd.count('open anna ')
    assert wire.client.knock('--open', 'tcp/2222', '--wait', '0',
                             knockd.uri('anna', address)).code == 0
    knockd.says('open anna ', before + 1)


def test_one_connection_gets_in_and_lives_and_the_next_needs_a_knock(wire, daemon, address):
    knockd = daemon(anna='once = yes')
    for _ in range(2):
        open_once(wire, knockd, address)
        with wire.client.connection(address, HIDDEN) as connection:
            assert not wire.client.connects(address)
            connection.sendall(b'still there')
    assert knockd.do('show', 'anna').out.strip().endswith('once=1')


def test_the_one_connection_may_send_its_syn_again(wire, daemon, address):
    knockd = daemon(anna='once = yes')
    wire.server.nft(COUNTER)
    open_once(wire, knockd, address)
    source = wire.client.addresses[':' in address]
    for _ in range(3):
        wire.client.inject(syn(source, address, 50001))
    wire.client.inject(syn(source, address, 50002))
    knockd.settle(wire.client)
    assert counted(wire) == 3
    wire.server.nft('delete table inet count')


def test_a_second_knock_arms_it_again_even_when_it_was_used(wire, daemon):
    knockd = daemon(anna='once = yes')
    address = wire.server.addresses[0]
    for _ in range(3):
        open_once(wire, knockd, address)
        assert wire.client.connects(address)
        assert not wire.client.connects(address)


def test_what_is_spent_stays_spent_when_the_rules_are_loaded_anew(wire, daemon):
    knockd = daemon(anna='once = yes')
    address = wire.server.addresses[0]
    open_once(wire, knockd, address)
    assert wire.client.connects(address)
    wire.server.nft('flush ruleset')
    knockd.says('loaded again')
    assert not wire.client.connects(address)
    open_once(wire, knockd, address)
    assert wire.client.connects(address)
    assert not wire.client.connects(address)


def spray(wire, target, sources, port, start):
    """A child that sends a SYN from every source at the agreed time; its process id."""
    packets = [syn(source, target, port) for source in sources]
    child = os.fork()
    if not child:
        status = 1
        try:
            with wire.client.raw_sender(target) as send:
                while time.monotonic() < start:
                    pass
                for packet in packets:
                    send(packet)
            status = 0
        finally:
            os._exit(status)
    return child


def test_of_two_syns_at_the_same_moment_one_gets_in(wire, daemon, address):
    """Two processes, a pair of SYNs from each of so many sources: not one more than sources."""
    knockd = daemon('answer = drop', anna='once = yes')
    family = '6' if ':' in address else '4'
    knockd.stop()                               # or it would take these openings out again
    first = int(ipaddress.ip_address({'4': '10.10.0.1', '6': 'fd00:9::1:0'}[family]))
    sources = [str(ipaddress.ip_address(first + number)) for number in range(PAIRS)]
    wire.server.must('ip', 'route', 'replace', '10.10.0.0/16', 'dev', 'eth0')
    wire.server.nft(COUNTER)
    for begin in range(0, PAIRS, 500):
        elements = ', '.join('%s . tcp . 2222 timeout 60s' % source
                             for source in sources[begin:begin + 500])
        for name in ('once', 'held'):
            wire.server.nft('add element inet knockd %s%s { %s }\n' % (name, family, elements))
    start = time.monotonic() + 0.5
    children = [spray(wire, address, sources, port, start) for port in (50001, 50002)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert until(lambda: counted(wire) >= PAIRS, 5), counted(wire)
    assert not until(lambda: counted(wire) > PAIRS, 0.5), counted(wire)
    wire.server.nft('delete table inet count')


def test_a_network_opens_for_all_of_it_and_for_nobody_else(wire, daemon):
    """10.9.0.2 knocks with prefix4 = 31: 10.9.0.3, the stranger, shares it; not so with 32."""
    knockd = daemon(anna='prefix4 = 31\nprefix6 = 127', bert='')
    for address in wire.server.addresses:
        assert not wire.stranger.connects(address)
        done = wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address))
        assert done.code == 0, knockd.text()
        assert wire.stranger.reaches(address)
        wire.client.send(knockd.datagram('anna', op='close'), address)
        assert until(lambda at=address: not wire.stranger.connects(at), 5)
        assert wire.client.knock('--open', 'tcp/2222', knockd.uri('bert', address)).code == 0
        assert not wire.stranger.connects(address)
    assert wire.server.must('nft', 'list', 'set', 'inet', 'knockd', 'open4_31')
