"""Hidden ports of hosts behind the box: routed, bridged, forwarded; by nft and by iptables.

        client, stranger ── the wire ── server, which is the router ── lan ── inside
"""

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time

import pytest

import knockd as knockd_script
import network
from network import CLOSED, HIDDEN, TOP, Capture, accept, alive, until
from segments import tcp_segment
from test_forward import inside      # noqa: F401
from test_guard import TPROXY, proxying, waiting_in
from test_iptables import Box
from test_layouts import LAYOUTS
from test_stealth import ACK, RST

pytestmark = pytest.mark.kernel
WHERE = '10.8.0.2', 'fd00:8::2'
ELSEWHERE = '10.8.0.3', 'fd00:8::3'                     # of the same host
BEHIND = 'behind = 10.8.0.0/24, fd00:8::/64\n'
OTHER = 8080                                            # a port that nobody hides


@pytest.fixture(scope='module')
def router(wire, inside):      # noqa: F811
    """The host behind it, which the stranger can reach, too; it has two addresses a family."""
    routes = (('-4', '10.8.0.0/24 via 10.9.0.1'), ('-6', 'fd00:8::/64 via fd00:9::1'))
    for family, route in routes:
        wire.stranger.must('ip', family, 'route', 'add', *route.split())
    inside.must('ip', 'addr', 'add', '10.8.0.3/24', 'dev', 'eth0')
    inside.must('ip', 'addr', 'add', 'fd00:8::3/64', 'dev', 'eth0', 'nodad')
    yield inside
    for family, route in routes:
        wire.stranger.must('ip', family, 'route', 'del', *route.split())


@pytest.fixture
def host(router):
    """It listens at the hidden port and at another one: {port: listener}."""
    listeners = {port: router.listen(port) for port in (HIDDEN, OTHER)}
    yield listeners
    for listener in listeners.values():
        listener.close()


@pytest.fixture(params=['nft', 'iptables-nft', 'iptables-legacy'])
def started(request, wire, host, daemon):
    """A function that starts a daemon, by each tool."""
    box, settings = None, BEHIND
    if request.param != 'nft':
        wire.clear()
        box = Box(wire, request.param[len('iptables-'):])
        box.set_up()
        settings += 'firewall = iptables\n'
    def start(more='', **clients):
        return daemon(settings + more, **clients)
    start.box = box
    yield start
    wire.clear()
    if box:
        box.clear()


@pytest.fixture
def guarding(host, daemon):
    """A function that starts a daemon, by nft."""
    def start(more='', **clients):
        return daemon(more if 'behind' in more else BEHIND + more, **clients)
    return start


def knock(wire, knockd, address, *options, **named):
    name = named.get('name', 'anna')
    return wire.client.knock(*(('--open', 'tcp/2222') + options + (knockd.uri(name, address),)))


def opened(wire, knockd, address, *options, **named):
    done = knock(wire, knockd, address, *options, **named)
    assert done.code == 0, done.err + knockd.text()


def closed(wire, knockd, address, name='anna'):
    def shut():
        wire.client.send(knockd.datagram(name, op='close'), address)
        return until(lambda: not wire.client.connects(address), 0.5)
    assert until(shut, 5), knockd.text()


def asked_for_hidden(capture, source):
    """Packets of this source that have come to the hidden port."""
    found = []
    for packet in capture.packets(source):
        size = network.header_size(packet)
        if network.protocol_of(packet) == 6 and packet[size + 2:size + 4] == network.be16(HIDDEN):
            found.append(packet)
    return found


@pytest.mark.parametrize('number', (0, 1), ids=('IPv4', 'IPv6'))
def test_a_hidden_port_behind_is_silent_and_opens_for_the_knocker_alone(
        wire, router, host, started, number):
    knockd = started(anna='')
    address = WHERE[number]
    with Capture(router, 'eth0') as capture:
        for member in (wire.stranger, wire.client):
            assert member.socket_error(address, HIDDEN) not in (None, ConnectionRefusedError)
        opened(wire, knockd, address, '--for', '60')
        connection = wire.client.connection(address, HIDDEN)
        with connection, accept(host[HIDDEN], connection) as end:
            assert wire.client.reaches(ELSEWHERE[number]), 'at every address behind'
            assert not wire.stranger.connects(address)
            closed(wire, knockd, address)
            assert not wire.client.connects(ELSEWHERE[number])
            assert alive(connection, end), 'what is established lives on'
        assert asked_for_hidden(capture, wire.stranger.addresses[number]) == []
    assert wire.stranger.reaches(address, OTHER), 'no other port is touched'
    assert wire.stranger.socket_error(address, CLOSED) is ConnectionRefusedError


def test_a_knock_to_the_box_opens_behind_it_and_one_to_the_host_opens_at_the_box(
        wire, services, started):
    knockd = started(anna='')
    for own, address in zip(wire.server.addresses, WHERE):
        assert not wire.client.connects(address)
        opened(wire, knockd, own)
        assert wire.client.reaches(address) and wire.client.reaches(own)
        assert not wire.stranger.connects(own)
        closed(wire, knockd, own)
        assert not wire.client.connects(address)
        opened(wire, knockd, address)
        assert wire.client.reaches(own)


# --- a bridge: the guest is on the same link as the strangers ------------------------------------
GUEST = '10.9.0.20', 'fd00:9::20'


class Hypervisor:
    """Its one bridge joins the wire and a guest, who has addresses of the wire's network."""

    def __init__(self, wire):
        self.box, self.guest = [network.Namespace(
            name, ['nsenter', '--preserve-credentials'] + wire.hub.user + [
                '-m', '-t', str(wire.hub.pid), 'unshare', '-n'], addresses)
            for name, addresses in (('hyper', ('10.9.0.9', 'fd00:9::9')), ('guest', GUEST))]
        wire.hub.must('ip', '-b', '-', stdin='''
            link add hyper type veth peer name eth0 netns {box}
            link set hyper master bridge up
            link add tap0 netns {box} type veth peer name eth0 netns {guest}
            '''.format(box=self.box.pid, guest=self.guest.pid))
        self.box.must('ip', '-b', '-', stdin='''
            link add br0 type bridge mcast_snooping 0
            link set eth0 master br0
            link set tap0 master br0
            link set lo up
            link set eth0 up
            link set tap0 up
            link set br0 up
            addr add 10.9.0.9/24 dev br0
            addr add fd00:9::9/64 dev br0 nodad\n''')
        self.guest.must('ip', '-b', '-', stdin='''
            link set lo up
            link set eth0 up
            addr add 10.9.0.20/24 dev eth0
            addr add fd00:9::20/64 dev eth0 nodad\n''')
        network.finish_checksums(self.guest, 'eth0')

    def close(self, wire):
        wire.hub.must('ip', 'link', 'del', 'hyper')
        self.guest.close()
        self.box.close()


@pytest.fixture(scope='module')
def hypervisor(wire):
    made = Hypervisor(wire)
    for member in (wire.client, wire.stranger):
        for address in GUEST:
            assert until(lambda to=address, member=member: member.socket_error(
                to, CLOSED) is ConnectionRefusedError), address
    yield made
    made.close(wire)


@pytest.fixture(params=['nft', 'iptables'])
def hosting(request, wire, hypervisor, tmp_path):
    """A function that starts a daemon on the hypervisor."""
    box, daemons = hypervisor.box, []

    def start(more='', **clients):
        daemons.append(network.Daemon(box, tmp_path, 'behind = 10.9.0.20, fd00:9::20\n'
                                      'firewall = %s\n%s' % (request.param, more), **clients))
        return daemons[-1].start()
    yield start
    for each in daemons:
        each.kill()
    box.nft('flush ruleset')
    box.run('ipset', 'destroy')


def test_a_guest_of_a_bridge_is_hidden_and_a_knock_on_its_way_to_him_opens(
        wire, hypervisor, hosting):
    knockd = hosting(anna='', bert='')          # a sequence serves once in a step
    guest = hypervisor.guest
    with guest.listen(HIDDEN) as listener, guest.listen(OTHER), Capture(guest, 'eth0') as capture:
        for own, address, name in zip(hypervisor.box.addresses, GUEST, ('anna', 'bert')):
            for member in (wire.stranger, wire.client):
                assert member.socket_error(address, HIDDEN) not in (None, ConnectionRefusedError)
            for target, via in ((own, 'udp'), (address, 'udp'), (address, 'icmp'),
                                (address, 'ports')):
                done = wire.client.knock('--via', via, knockd.uri(name, target))
                assert done.code == 0, via + done.err + knockd.text()
                assert wire.client.reaches(address), via + knockd.text()
                connection = wire.client.connection(address, HIDDEN)
                with connection, accept(listener, connection) as end:
                    assert not wire.stranger.connects(address)
                    closed(wire, knockd, address, name)
                    assert alive(connection, end)
            assert wire.stranger.reaches(address, OTHER)
            assert wire.stranger.socket_error(address, CLOSED) is ConnectionRefusedError
            assert asked_for_hidden(capture, wire.stranger.addresses[':' in address]) == []


def test_a_guest_of_a_bridge_hears_no_stranger_who_asks_everybody(wire, hypervisor, hosting):
    hosting(anna='')
    guest = hypervisor.guest
    with guest.listen(network.HIDDEN_UDP, socket.SOCK_DGRAM) as hidden, \
            guest.listen(OTHER, socket.SOCK_DGRAM) as other:
        with wire.stranger.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b'stranger', ('10.9.0.255', network.HIDDEN_UDP))
            sender.sendto(b'stranger', ('10.9.0.255', OTHER))
            assert other.recv(100) == b'stranger'
        with wire.stranger.make_socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            scope = int(wire.stranger.must('ip', '-o', 'link', 'show', 'eth0').split(':')[0])
            sender.sendto(b'stranger', ('ff02::1', network.HIDDEN_UDP, 0, scope))
            sender.sendto(b'stranger', ('ff02::1', OTHER, 0, scope))
            assert other.recv(100) == b'stranger'
        hidden.settimeout(0.2)
        with pytest.raises(OSError):
            hidden.recv(100)


def test_a_guest_of_a_bridge_answers_as_the_config_says(wire, hypervisor, hosting):
    hosting('answer = reset\n', anna='')
    with hypervisor.guest.listen(HIDDEN):
        for address in GUEST:
            assert wire.stranger.socket_error(address, HIDDEN) is ConnectionRefusedError


# --- what opens, and where -----------------------------------------------------------------------
@pytest.mark.parametrize('number', (0, 1), ids=('IPv4', 'IPv6'))
@pytest.mark.parametrize('via', ['icmp', 'syn', 'ports', 'code'])
def test_every_carrier_is_heard_on_its_way_to_the_host(wire, guarding, via, number):
    knockd = guarding('carriers = udp, icmp, syn, ports, code\n', anna='code = yes')
    done = wire.client.knock('--via', via, knockd.uri('anna', WHERE[number]))
    assert done.code == 0, done.err
    assert wire.client.reaches(WHERE[number]), knockd.text()
    assert not wire.stranger.connects(WHERE[number])


def test_a_sequence_past_the_box_to_somebody_else_opens_nothing(wire, guarding):
    """Neither this box nor behind it: a route leads through it all the same."""
    knockd = guarding(anna='')
    wire.server.must('ip', 'route', 'add', '10.7.0.0/24', 'via', '10.8.0.2')
    wire.client.must('ip', 'route', 'add', '10.7.0.0/24', 'via', '10.9.0.1')
    try:
        wire.client.knock('--via', 'ports', knockd.uri('anna', '10.7.0.1'))
        knockd.settle(wire.client)
        assert not wire.client.connects(WHERE[0]), knockd.text()
    finally:
        wire.client.must('ip', 'route', 'del', '10.7.0.0/24')
        wire.server.must('ip', 'route', 'del', '10.7.0.0/24')


def test_only_narrows_a_client_to_the_addresses_that_it_names(wire, services, started):
    knockd = started(anna='only = %s, %s' % WHERE)
    for own, address, other in zip(wire.server.addresses, WHERE, ELSEWHERE):
        for target in (own, address):
            done = wire.client.knock('--wait', '0', knockd.uri('anna', target))
            assert done.code == 0
            assert wire.client.reaches(address), knockd.text()
            assert not wire.client.connects(other) and not wire.client.connects(own)
            assert not wire.stranger.connects(address)
            closed(wire, knockd, address)
    line = knockd.says('open anna')
    assert 'tcp/2222 at fd00:8::2 30s' in line


def test_a_narrower_only_ends_what_was_open_elsewhere(wire, started):
    knockd = started(anna='')
    for address, other in zip(WHERE, ELSEWHERE):
        opened(wire, knockd, address, '--for', '60')
        assert wire.client.reaches(other)
    knockd.clients['anna'] = 'only = %s, %s' % WHERE
    knockd.write_config()
    knockd.reload()
    for address, other in zip(WHERE, ELSEWHERE):
        assert until(lambda to=other: not wire.client.connects(to), 5)
        opened(wire, knockd, address)
        assert wire.client.connects(address) and not wire.client.connects(other)


def test_a_knock_over_a_family_in_which_only_names_nothing_is_refused(wire, guarding):
    knockd = guarding(anna='only = fd00:8::2')
    wire.client.send(knockd.datagram('anna'), '10.9.0.1')
    assert 'not allowed over IPv4' in knockd.says('refused anna')
    opened(wire, knockd, 'fd00:8::2')


def test_an_opening_behind_ends_by_the_kernels_clock_and_is_prolonged(wire, started):
    knockd = started(anna='')
    for address in WHERE:
        opened(wire, knockd, address, '--for', '2')
        opened(wire, knockd, address, '--for', '5')
    began = time.monotonic()
    knockd.kill()
    for address in WHERE:
        assert wire.client.reaches(address)
    assert time.monotonic() - began < 3
    for address in WHERE:
        assert until(lambda to=address: not wire.client.connects(to, timeout=0.1), 7)
    assert time.monotonic() - began < 7


def test_a_removed_client_is_out_behind_the_box_too(wire, started):
    knockd = started(anna='')
    for address in WHERE:
        opened(wire, knockd, address, '--for', '60')
    assert knockd.do('remove', 'anna').code == 0
    for address in WHERE:
        assert until(lambda to=address: not wire.client.connects(to), 5)


def test_a_connection_older_than_all_tracking_goes_on_when_the_host_speaks(wire, host, guarding):
    """A stranger's packet that belongs to no known connection must not come through."""
    wire.clear()                                # nothing tracks connections
    for address in WHERE:
        connection = wire.client.connection(address, HIDDEN)
        end = accept(host[HIDDEN], connection)
        with connection, end:
            guarding(anna='')
            connection.sendall(b'typed')
            end.settimeout(0.5)
            with pytest.raises(OSError):
                end.recv(100)
            end.settimeout(10)
            end.sendall(b'host')
            assert connection.recv(100) == b'host' and end.recv(100) == b'typed'
            assert alive(connection, end)
        wire.clear()


@pytest.mark.parametrize('only', ['', 'only = %s, %s' % WHERE], ids=['everywhere', 'only'])
def test_once_lets_one_connection_in_behind_the_box(wire, host, guarding, only):
    knockd = guarding(anna='once = yes\n' + only)
    for address, other in zip(WHERE, ELSEWHERE):
        assert wire.client.knock('--open', 'tcp/2222', '--for', '60', '--wait', '0',
                                 knockd.uri('anna', address)).code == 0
        connection = until(lambda to=address: wire.client.connection(to, HIDDEN), 5)
        with connection, accept(host[HIDDEN], connection) as end:
            assert alive(connection, end)
            port = connection.getsockname()[1]
            for place in (address, other):
                assert not wire.client.connects(place)
        assert not wire.client.connection(other, HIDDEN, source_port=port), 'the same port again'
        assert not wire.client.connection(address, HIDDEN, source_port=port)


def test_a_syn_of_once_comes_again_to_the_same_address_alone(wire, guarding):
    knockd = guarding(anna='once = yes')
    nobody = '10.8.0.99', 'fd00:8::99'
    for address, silent in zip(WHERE, nobody):
        assert wire.client.knock('--open', 'tcp/2222', '--for', '60', '--wait', '0',
                                 knockd.uri('anna', address)).code == 0
        knockd.says('open anna %s' % wire.client.addresses[':' in address])
        with wire.client.make_socket(network.family_of(address), socket.SOCK_STREAM) as first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            first.bind(('', 0))
            first.setblocking(False)
            first.connect_ex((silent, HIDDEN))
            begun = 'begun6' if ':' in address else 'begun4'
            assert until(lambda name=begun: ' . 2222 . ' in wire.server.must(
                'nft', 'list', 'set', 'inet', 'knockd', name))
            port = first.getsockname()[1]
            assert not wire.client.connection(address, HIDDEN, source_port=port)


@pytest.mark.parametrize('answer,beginnings', [
    # RFC 9293: the flags of a segment; RFC 1812: 3, 13; RFC 4443: 1, 1.
    ('drop', ()), ('reset', (RST | ACK,)), ('prohibited', (b'\x03\x0d', b'\x01\x01'))])
def test_a_stranger_gets_what_answer_says(wire, started, answer, beginnings):
    started('answer = %s\n' % answer, anna='')
    for address in WHERE:
        with wire.capture(wire.stranger) as capture:
            def replies(address=address, capture=capture):
                """What came back on one more try."""
                wire.stranger.socket_error(address, HIDDEN)
                return [beginning_of(packet) for packet in capture.packets()
                        if network.source_of(packet) in WHERE + wire.server.addresses
                        and not is_neighbour_discovery(packet)]
            found = until(replies, 5) if beginnings else replies()
            assert set(found) <= set(beginnings) and bool(found) is bool(beginnings)


def beginning_of(packet):
    """A segment's flags, or type and code of an ICMP message."""
    size = network.header_size(packet)
    return packet[size + 13] if network.protocol_of(packet) == 6 else packet[size:size + 2]


def is_neighbour_discovery(packet):
    return network.protocol_of(packet) == 58 and 133 <= packet[40] <= 137


def test_who_comes_from_an_interface_of_trust_needs_no_knock(wire, router, guarding):
    """And what does not pass the box is none of its business."""
    with wire.client.listen(HIDDEN), wire.server.listen(OTHER):
        guarding('behind = 10.8.0.0/24, fd00:8::/64, 10.9.0.2, fd00:9::2\n', anna='')
        for address in wire.client.addresses:
            assert not router.connects(address), 'from the LAN, which is not trusted'
            assert wire.stranger.reaches(address), 'beside the box'
            assert wire.server.reaches(address), 'from the box itself'
        guarding('behind = 10.8.0.0/24, fd00:8::/64, 10.9.0.2, fd00:9::2\ntrust = lan\n', anna='')
        for address in wire.client.addresses:
            assert router.reaches(address)
        for address in WHERE:
            assert not wire.client.connects(address)


def test_an_address_that_a_host_takes_later_is_hidden_at_once_and_openings_hold_for_it(
        wire, router, guarding):
    knockd = guarding(anna='')
    opened(wire, knockd, 'fd00:8::2', '--for', '60')
    temporary = 'fd00:8::5c1:22ff:fe33:4455'
    router.must('ip', 'addr', 'add', temporary + '/64', 'dev', 'eth0', 'nodad')
    try:
        assert wire.client.reaches(temporary)
        assert not wire.stranger.connects(temporary)
        assert wire.stranger.reaches(temporary, OTHER)
    finally:
        router.must('ip', 'addr', 'del', temporary + '/64', 'dev', 'eth0')


def test_hidden_udp_behind_is_silent_and_opens(wire, router, started):
    knockd = started(anna='allow = udp/5182')
    for own, address in zip(wire.client.addresses, WHERE):
        family, place = network.family_of(address), (address, network.HIDDEN_UDP)
        with router.make_socket(family, socket.SOCK_DGRAM) as service, \
                wire.client.make_socket(family, socket.SOCK_DGRAM) as sender:
            service.bind(place)
            service.settimeout(5)
            sender.settimeout(5)
            for member in (wire.stranger, wire.client):
                member.send(b'stranger', *place)
            wire.client.send(knockd.datagram('anna'), address)
            knockd.says('open anna %s' % own)
            sender.sendto(b'client', place)
            data, source = service.recvfrom(100)
            assert data == b'client'
            wire.client.send(knockd.datagram('anna', op='close'), address)
            knockd.says('close anna %s' % own)
            service.sendto(b'answer', source)
            assert sender.recv(100) == b'answer'
            wire.client.send(b'new', *place)
            sender.sendto(b'more', place)
            assert service.recv(100) == b'more', 'what is established lives on'


def test_no_rule_with_tproxy_leads_a_stranger_to_a_host_behind(wire, router, host, started):
    """The box's proxy would connect on in his place."""
    knockd = started(anna='')
    wire.server.nft(TPROXY)
    for address in WHERE:
        with proxying(wire, address) as proxy:
            assert not wire.stranger.connects(address)
            assert not wire.client.connects(address)
            opened(wire, knockd, address, '--for', '60')
            with wire.client.connection(address, HIDDEN) as connection, \
                    accept(proxy, connection) as end:
                closed(wire, knockd, address)
                assert alive(connection, end)


SIP_HELPER = '''table inet helper {
    ct helper sip { type "sip" protocol udp;
    }
    chain p { type filter hook prerouting priority 0; udp dport 5060 ct helper set "sip"
        udp dport 5182 ct state related counter
    }
    chain o { type filter hook output priority 0; udp dport 5060 ct helper set "sip"
    }
}
'''
CALL = '''INVITE sip:b@{1} SIP/2.0
Via: SIP/2.0/UDP {0}:5060;branch=z9hG4bK1
From: <sip:a@{0}>;tag=1
To: <sip:b@{1}>
Call-ID: 1@{0}
CSeq: 1 INVITE
Contact: <sip:a@{0}>
Content-Type: application/sdp
Content-Length: {3}

'''
MEDIA = 'v=0\no=- 1 1 IN {2} {0}\ns=-\nc=IN {2} {0}\nt=0 0\nm=audio 5182 RTP/AVP 0\n'    # RFC 4566


def call(caller, own, callee):
    """The caller tells a stranger to send his voice to the hidden port; RFC 3261."""
    words = '[%s]' % own if ':' in own else own, callee, 'IP6' if ':' in own else 'IP4'
    media = MEDIA.replace('{0}', own).format(*words).replace('\n', '\r\n')
    text = CALL.format(*words + (len(media),)).replace('\n', '\r\n') + media
    with caller.make_socket(network.family_of(own), socket.SOCK_DGRAM) as sender:
        sender.bind((own, 5060))
        sender.sendto(text.encode(), (callee, 5060))


def test_no_helper_of_conntrack_leads_a_stranger_to_hidden_udp(wire, services, router, started):
    """Whom a host behind, or the box, was made to call may send to a port that it named."""
    started('answer = box\n', anna='allow = udp/5182')
    wire.server.nft(SIP_HELPER)
    with router.listen(network.HIDDEN_UDP, socket.SOCK_DGRAM) as service, \
            wire.client.listen(5060, socket.SOCK_DGRAM) as phone:
        for caller, places, heard in ((router, WHERE, service),
                                      (wire.server, wire.server.addresses, services['udp'])):
            for own, callee in zip(places, wire.client.addresses):
                call(caller, own, callee)
                assert phone.recv(2000).startswith(b'INVITE')
                waiting_in(heard)               # what other tests sent
                wire.client.send(b'voice', own, network.HIDDEN_UDP)
                heard.settimeout(0.3)
                with pytest.raises(OSError):
                    assert not heard.recv(100), own
    listed = wire.server.must('nft', 'list', 'chain', 'inet', 'helper', 'p')
    assert 'packets 4 ' in listed, 'all were related'


@pytest.mark.parametrize('number', (0, 1), ids=('IPv4', 'IPv6'))
def test_no_packet_of_a_strangers_making_comes_through(wire, router, host, started, number):
    """Every combination of flags, behind options and extension headers, in fragments."""
    started(anna='')
    source, target = wire.stranger.addresses[number], WHERE[number]
    segments = [tcp_segment(HIDDEN, flags=flags, options=bytes(8)) for flags in range(64)]
    if number:
        options = bytes([6, 0, 1, 4, 0, 0, 0, 0])       # PadN; TCP follows
        packets = [network.ip_packet(source, target, 60, options + segment)
                   for segment in segments]
        for segment in segments[:4]:
            for offset, piece, more in ((0, segment[:8], 1), (8, segment[8:], 0)):
                head = struct.pack('!BBHL', 6, 0, offset | more, 7 + segments.index(segment))
                packets.append(network.ip_packet(source, target, 44, head + piece))
    else:
        packets = [network.ip_packet(source, target, 6, segment, options=bytes([7, 7, 4] + [0] * 5))
                   for segment in segments]
        packets.append(network.ip_packet(source, target, 6, segments[2][:8], fragment=0x2000))
        packets.append(network.ip_packet(source, target, 6, segments[2][8:], fragment=1))
        # RFC 791: a loose route by the box to the host, where the box allows that.
        wire.server.set(ipv4__conf__all__accept_source_route=1)
        route = bytes([131, 7, 4]) + network.socket_address(target) + b'\0'
        packets += [network.ip_packet(source, '10.9.0.1', 6, segment, options=route)
                    for segment in segments]
    packets += [network.ip_packet(source, target, 6, segment) for segment in segments]
    with Capture(router, 'eth0') as capture:
        for packet in packets:
            wire.stranger.inject(packet)
        assert wire.stranger.reaches(target, OTHER), 'all those before have been looked at'
        found = [packet for packet in capture.packets(source)
                 if network.be16(HIDDEN) in packet[22:80]]
        assert found == []
    wire.server.set(ipv4__conf__all__accept_source_route=0)


# --- addresses that are rewritten ----------------------------------------------------------------
DNAT = '''
table inet nat {
    chain prerouting { type nat hook prerouting priority dstnat;
        ip daddr 10.8.0.77 dnat ip to 10.8.0.2
        ip6 daddr fd00:8::77 dnat ip6 to fd00:8::2
        iifname "eth0" tcp dport 2022 dnat ip to 10.8.0.2:2222
        iifname "eth0" tcp dport 2022 dnat ip6 to [fd00:8::2]:2222
        iifname "eth0" tcp dport 2222 dnat ip to 10.8.0.2:2222
        iifname "eth0" tcp dport 2222 dnat ip6 to [fd00:8::2]:2222
    }
}
'''
IPTABLES_DNAT = '''
{0} -t nat -A PREROUTING -d {1} -j DNAT --to-destination {2}
{0} -t nat -A PREROUTING -i eth0 -p tcp --dport 2022 -j DNAT --to-destination {3}:2222
{0} -t nat -A PREROUTING -i eth0 -p tcp --dport 2222 -j DNAT --to-destination {3}:2222
'''
REWRITTEN = '10.8.0.77', 'fd00:8::77'
FORWARDED = '''
table inet nat {
    chain prerouting { type nat hook prerouting priority dstnat
        %s    }
}
'''


def test_a_forwarded_address_is_guarded_by_what_the_world_sees(wire, host, started):
    """Whether it is the box's own or one behind it; a port that is not hidden stays open."""
    # Or what it knows of connections of before would give the client's another port.
    wire.server.must('conntrack', '-F')
    if started.box is None:
        wire.server.nft(DNAT)
    else:
        for words in (('iptables', '10.8.0.77', '10.8.0.2', '10.8.0.2'),
                      ('ip6tables', 'fd00:8::77', 'fd00:8::2', '[fd00:8::2]')):
            for line in IPTABLES_DNAT.format(*words).strip().splitlines():
                wire.server.must(*line.split(), env=started.box.environment())
    knockd = started(anna='')
    for own, address in zip(wire.server.addresses, REWRITTEN):
        assert wire.stranger.reaches(own, 2022), 'a port that nobody hides'
        for place in (own, address):
            assert not wire.stranger.connects(place)
            assert not wire.client.connects(place)
        opened(wire, knockd, address)
        connection = wire.client.connection(address, HIDDEN)
        with connection, accept(host[HIDDEN], connection) as end:
            assert wire.client.reaches(own)
            assert not wire.stranger.connects(own) and not wire.stranger.connects(address)
            closed(wire, knockd, own)
            assert not wire.client.connects(address)
            assert alive(connection, end)


def test_no_forward_of_a_whole_address_leads_a_stranger_to_a_host_behind(wire, host, started):
    """It is neither the box's own nor one of `behind`, so the rule is nobody's port forward."""
    addresses = '10.7.0.77', 'fd00:7::77'
    for program, address, place in zip(('iptables', 'ip6tables'), addresses, WHERE):
        rule = 'ip daddr %s dnat ip to %s\n' % (address, place)
        if started.box is None:
            wire.server.nft(FORWARDED % (rule if program == 'iptables' else rule.replace(
                'ip ', 'ip6 ')))
        else:
            words = [program] + '-t nat -A PREROUTING -j DNAT'.split()
            wire.server.must(*words + ['-d', address, '--to-destination', place],
                             env=started.box.environment())
    with contextlib.ExitStack() as stack:
        for address, own in zip(addresses, wire.server.addresses):
            for member, way in ((wire.server, ('dev', 'lan')), (wire.client, ('via', own)),
                                (wire.stranger, ('via', own))):
                member.must('ip', 'route', 'add', address, *way)
                stack.callback(member.must, 'ip', 'route', 'del', address, *way)
        knockd = started('hide = tcp/2222, tcp/2229, udp/7-9\n', anna='')
        for address, place in zip(addresses, WHERE):
            assert wire.stranger.reaches(address, OTHER), 'a port that nobody hides'
            assert not wire.stranger.connects(address)
            opened(wire, knockd, place)
            assert wire.client.reaches(address)
            assert not wire.stranger.connects(address)
            closed(wire, knockd, place)
            assert not wire.client.connects(address)


# --- a router as OpenWrt makes it ----------------------------------------------------------------
FW4 = '''
insert rule inet fw4 forward ct status dnat accept comment "!fw4: Accept port forwards"
insert rule inet fw4 forward iifname "eth0" ip6 daddr fd00:8::2 tcp dport { 2222, 8080 } accept
add chain inet fw4 dstnat { type nat hook prerouting priority dstnat; policy accept; }
flush chain inet fw4 dstnat
add rule inet fw4 dstnat meta nfproto ipv4 tcp dport { 2222, 8080 } dnat ip to 10.8.0.2
'''


def load_fw4(wire):
    with open(os.path.join(LAYOUTS, 'fw4.nft')) as file:
        wire.server.nft(file.read().replace('br-lan', 'lan') + FW4)


def test_beside_fw4_a_forward_and_an_ipv6_rule_are_hidden_and_open(wire, host, guarding):
    load_fw4(wire)
    knockd = guarding(anna='')
    places = (wire.server.addresses[0], wire.server.addresses[0]), (WHERE[1], WHERE[1])
    for target, address in places:
        for member in (wire.stranger, wire.client):
            assert not member.connects(address)
            assert member.reaches(address, OTHER), 'a forward of a port that is not hidden'
        opened(wire, knockd, target)
        assert wire.client.reaches(address)
        assert not wire.stranger.connects(address)
    assert not wire.stranger.connects(ELSEWHERE[1])
    assert wire.client.reaches(ELSEWHERE[1]), 'no rule of fw4 allows it, the knock does'
    load_fw4(wire)                              # its own reload
    for _, address in places:
        assert wire.client.reaches(address)
        assert not wire.stranger.connects(address)


# --- while rules come and go ---------------------------------------------------------------------
def test_no_packet_of_a_stranger_comes_to_the_hidden_port_through_forty_loads(
        wire, router, host, guarding):
    knockd = guarding(anna='')
    stopped = threading.Event()

    def probe():
        """A SYN to each address every few ms, whatever the answer."""
        while not stopped.is_set():
            for address in WHERE + ELSEWHERE:
                with wire.stranger.make_socket(
                        network.family_of(address), socket.SOCK_STREAM) as attempt:
                    attempt.setblocking(False)
                    attempt.connect_ex((address, HIDDEN))
            time.sleep(0.002)
    with Capture(router, 'eth0') as capture:
        prober = threading.Thread(target=probe)
        prober.start()
        try:
            for number in range(40):
                knockd.clients['anna'] = 'prefix6 = %d' % (64 + number)
                knockd.write_config()
                knockd.reload()
                capture.read()
            knockd.stop()
            knockd.start()
            assert wire.stranger.reaches(WHERE[0], OTHER)
        finally:
            stopped.set()
            prober.join()
        for source in wire.stranger.addresses:
            assert asked_for_hidden(capture, source) == []
        assert capture.packets(wire.stranger.addresses[0]), 'it captures'


# --- what people are told ------------------------------------------------------------------------
def test_status_list_and_the_log_say_where(wire, guarding):
    knockd = guarding(anna='only = 10.8.0.2')
    assert 'also at 10.8.0.0/24, fd00:8::/64' in knockd.says('ready: ')
    opened(wire, knockd, '10.8.0.2', '--for', '60')
    assert 'tcp/2222 at 10.8.0.2 60s' in knockd.says('open anna')
    told = knockd.do('status').out
    assert 'also at 10.8.0.0/24, fd00:8::/64' in told.splitlines()[0]
    assert re.search(r'^anna +10.9.0.2 +tcp/2222 at 10.8.0.2 ', told, re.M), told
    assert re.search(r'^anna +tcp/2222 at 10.8.0.2 ', knockd.do('list').out, re.M)
    assert json.loads(knockd.do('list', '--json').out)['anna']['only'] == ['10.8.0.2']
    report = json.loads(knockd.do('status', '--json').out)
    assert report['behind'] == ['10.8.0.0/24', 'fd00:8::/64']
    assert report['openings'][0]['only'] == ['10.8.0.2']
    assert knockd.do('set', 'anna', 'only=10.8.0.9').code == 0
    assert knockd.do('set', 'anna', 'only=10.7.0.9').code == 2
    assert 'ip daddr 10.8.0.0/24' in knockd.do('rules').out


def test_watch_hears_a_knock_on_its_way_to_a_host_behind(wire, guarding):
    knockd = guarding(anna='')
    argv = knockd.namespace.command(network.sys.executable, network.KNOCKD, '--config',
                                    knockd.config, 'watch', 'anna')
    watch = network.subprocess.Popen(argv, stdout=network.subprocess.PIPE,
                                     env=network.environment())
    assert b'Watching' in watch.stdout.readline()
    for via in ('udp', 'ports'):
        assert wire.client.knock('--via', via, knockd.uri('anna', WHERE[1])).code == 0
        assert b'is good' in watch.stdout.readline()
        assert b'honoured' in watch.stdout.readline()
    watch.send_signal(network.signal.SIGINT)
    assert watch.communicate()[0] == b'', 'it may listen on another host'


def flaws(knockd):
    return [line.partition('behind: ')[2] for line in knockd.do('check').out.splitlines()
            if '[server] behind: ' in line]


def test_check_says_what_is_not_reached_through_this_box(wire, guarding):
    knockd = guarding(anna='')
    assert flaws(knockd) == []
    for family, route in (('-4', 'default via 10.9.0.3'), ('-6', 'default via fd00:9::3')):
        wire.server.must('ip', family, 'route', 'add', *route.split())
    try:
        for place in ('198.51.100.0/24', '10.9.0.77', '2001:db8::/32', 'fd00:9::/64'):
            knockd.settings = 'behind = 10.8.0.0/16, fd00:8::7, %s' % place
            knockd.write_config()
            network_there = str(knockd_script.ipaddress.ip_network(place))
            assert flaws(knockd) == [network_there + ' is not reached through this box; see: '
                                     'ip route']
    finally:
        wire.server.must('ip', '-4', 'route', 'del', 'default')
        wire.server.must('ip', '-6', 'route', 'del', 'default')


def test_check_names_bridges_whose_frames_meet_no_rule(hypervisor, hosting):
    knockd, box = hosting(anna=''), hypervisor.box
    names = ('call-iptables', 'call-ip6tables', 'filter-vlan-tagged')
    settings = {'bridge__bridge-nf-' + name: 1 for name in names}
    box.set(**settings)
    try:
        assert flaws(knockd) == []
        box.set(**dict(settings, **{'bridge__bridge-nf-call-ip6tables': 0}))
        assert flaws(knockd) == [
            'not all that bridge br0 passes on meets our rules; type: modprobe br_netfilter; '
            'sysctl -w net.bridge.bridge-nf-call-ip6tables=1']
        knockd.settings += '\ntrust = br0'
        knockd.write_config()
        assert flaws(knockd) == []
    finally:
        box.set(**dict(settings, **{'bridge__bridge-nf-filter-vlan-tagged': 0}))


# --- the examples of the README ------------------------------------------------------------------
def example(beginning):
    """What the README says to type, in the row of its table that begins so."""
    with open(os.path.join(TOP, 'README.md'), encoding='utf-8') as file:
        row = re.search(r'^\| %s.*$' % beginning, file.read(), re.M).group()
    return re.findall(r'`([^`]+)`', row)


def type_in(knockd, commands, **ours):
    """Types them, with our own addresses and interfaces in the place of the example's."""
    for command in commands:
        for theirs, own in ours.items():
            command = command.replace(THEIRS[theirs], own)
        script, _, words = command.partition(' ')
        if script == 'knockd.py':
            done = knockd.do(*words.split())
            assert done.code == 0, done.err
        elif script != 'modprobe':      # the tests' kernel has it
            knockd.namespace.must(script, *words.split())
    knockd.says('config reloaded', commands[-1].count('only') + 1)


THEIRS = {'lan': '2001:db8:1::/64', 'interface': 'br-lan', 'guests': '203.0.113.8/29',
          'containers': '172.18.0.0/16,2001:db8:2::/64', 'docker': 'docker0',
          'name': 'set laptop', 'container': '2001:db8:2::7'}


def test_the_readmes_router_hides_its_lan(wire, router, daemon, host):
    knockd = daemon(anna='')
    type_in(knockd, example('a router'), lan='fd00:8::/64', interface='lan')
    assert not wire.stranger.connects(WHERE[1]) and not wire.client.connects(WHERE[1])
    opened(wire, knockd, WHERE[1])
    assert wire.client.connects(WHERE[1]) and not wire.stranger.connects(WHERE[1])
    with wire.stranger.listen(HIDDEN):
        assert router.reaches(wire.stranger.addresses[1]), 'the LAN needs no knock'


def test_the_readmes_hypervisor_hides_its_guests(wire, hypervisor, tmp_path):
    knockd = network.Daemon(hypervisor.box, tmp_path, anna='').start()
    try:
        with hypervisor.guest.listen(HIDDEN):
            assert wire.stranger.reaches(GUEST[0])
            type_in(knockd, example('a hypervisor'), guests='10.9.0.16/29')
            assert not wire.stranger.connects(GUEST[0])
            opened(wire, knockd, GUEST[0])
            assert not wire.stranger.connects(GUEST[0])
        assert flaws(knockd) == []
    finally:
        knockd.remove()


def test_the_readmes_container_host_opens_one_container_for_one_client(wire, daemon, host):
    knockd = daemon(anna='', bert='')
    type_in(knockd, example('a container host'), containers='10.8.0.0/24,fd00:8::/64',
            docker='lan', name='set anna', container='fd00:8::3')
    for address in (WHERE[0], WHERE[1], ELSEWHERE[1]):
        assert not wire.client.connects(address)
    wire.client.send(knockd.datagram('anna'), 'fd00:8::3')
    assert wire.client.reaches('fd00:8::3')
    assert not wire.client.connects(WHERE[1]) and not wire.client.connects('fd00:9::1')
    wire.client.send(knockd.datagram('bert'), 'fd00:8::3')
    assert wire.client.reaches(WHERE[1])
