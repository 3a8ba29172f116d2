"""A hidden port and a closed port of the same box cannot be told apart: promise 1.

Every probe is sent twice, once to a hidden port with a service behind it and once to a closed
neighbour, and what the box sends is compared as captured outside of it. Only what differs by
nature is made equal: the port itself, the IP identification, and checksums, of which the rest is
that they are right.
"""

import re
import struct
import time

import pytest
from network import (CLOSED, HIDDEN, HIDDEN_TOO, HIDDEN_UDP, be16, checksum, header_size,
                     ip_packet, protocol_of, pseudo_header, source_of, target_of, until)

pytestmark = pytest.mark.kernel

CLOSED_UDP = 5183
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = [1 << bit for bit in range(8)]
NAMES = ('FIN', 'SYN', 'RST', 'PSH', 'ACK', 'URG', 'ECE', 'CWR')
OPTIONS = bytes.fromhex('020405b40402080a000000ff0000000001030307')   # MSS, SACK, time, scale
INPUT = '''table inet filter {
    chain input {
        type filter hook input priority 0; policy %s;
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        %s
    }
}
'''
SYN_LIMIT = '''table inet speed {
    chain input {
        type filter hook input priority -10;
        tcp flags & (fin | syn | rst | ack) == syn limit rate over 10/hour burst 25 packets drop
    }
}
'''
CHAIN = '''table %s more {
    chain more {
        type filter hook %s;
        %s
    }
}
'''
LAYOUTS = {
    'accepting': None,
    'dropping': INPUT % ('drop', ''),
    'dropping at the end': INPUT % ('accept', 'drop'),
    'resetting': INPUT % ('accept', 'meta l4proto tcp reject with tcp reset\nreject'),
    'prohibiting': INPUT % ('accept', 'reject with icmpx type admin-prohibited'),
    'dropping invalid': INPUT % ('accept', 'ct state invalid drop'),
    'rejecting some strangers late': INPUT % ('accept', '') + CHAIN % (
        'inet', 'input priority 50', 'ip saddr 10.9.0.0/24 tcp dport != 80 reject'),
    'dropping before all hooks': INPUT % ('accept', '') + CHAIN % (
        'netdev', 'ingress device "eth0" priority 0',
        'tcp dport != 2222 drop\nudp dport != 5182 drop'),
    'dropping by arptables': INPUT % ('accept', '') + CHAIN % (
        'arp', 'input priority 0', 'arp operation { request, reply } accept\ndrop')}


def tcp(source, target, ports, flags, **fields):
    """A TCP packet. Fields: seq, ack, window, urgent, options, offset, payload, wrong, and those
    of ip_packet."""
    options = fields.pop('tcp_options', b'')
    payload = fields.pop('payload', b'')
    offset = fields.pop('offset', 5 + len(options) // 4)
    head = struct.pack('!HHLLBBH', ports[0], ports[1], fields.pop('seq', 0x01020304),
                       fields.pop('ack', 0x05060708), offset << 4 | fields.pop('reserved', 0),
                       flags, fields.pop('window', 1024))
    tail = be16(fields.pop('urgent', 0)) + options + payload
    length = len(head) + 2 + len(tail)
    right = checksum(pseudo_header(source, target, 6, length) + head + b'\0\0' + tail)
    return ip_packet(source, target, 6, head + be16(right ^ fields.pop('wrong', 0)) + tail,
                     **fields)


def udp(source, target, ports, payload, **fields):
    """A UDP packet. Fields: wrong, none (no checksum), and those of ip_packet."""
    head = struct.pack('!HHH', ports[0], ports[1], 8 + len(payload))
    right = checksum(pseudo_header(source, target, 17, 8 + len(payload)) + head + b'\0\0'
                     + payload) or 0xffff
    value = 0 if fields.pop('none', False) else right ^ fields.pop('wrong', 0)
    return ip_packet(source, target, 17, head + be16(value) + payload, **fields)


def tcp_probes(six):
    """Yields (name, flags, fields)."""
    for flags in range(256):
        name = '+'.join(name for bit, name in enumerate(NAMES) if flags >> bit & 1) or 'NULL'
        yield name, flags, {}
    shapes = {
        'options': {'tcp_options': OPTIONS}, 'data': {'payload': b'hello'},
        'long data': {'payload': bytes(1300)}, 'window 0': {'window': 0},
        'zeros': {'seq': 0, 'ack': 0}, 'urgent': {'urgent': 7}, 'reserved': {'reserved': 14},
        'tos': {'tos': 0x48}, 'ect': {'tos': 2}, 'one hop': {'hops': 1},
        'wrong checksum': {'wrong': 0x55}, 'offset 0': {'offset': 0}, 'offset 4': {'offset': 4},
        'offset 15': {'offset': 15}, 'bad option': {'tcp_options': b'\2\0\0\0'}}
    shapes.update({'flow label': {'label': 0x12345}} if six else {
        'no fragments': {'fragment': 0}, 'IP options': {'options': b'\1\1\1\0'},
        'record route': {'options': b'\7\7\4\0\0\0\0\0'}})
    for shape, fields in sorted(shapes.items()):
        for name, flags in (('SYN', SYN), ('ACK', ACK), ('FIN', FIN), ('NULL', 0), ('RST', RST),
                            ('SYN+ACK', SYN | ACK), ('XMAS', FIN | PSH | URG)):
            yield name + ' with ' + shape, flags, fields


def udp_probes(six):
    """Yields (name, payload, fields)."""
    shapes = {'plain': {}, 'tos': {'tos': 0x48}, 'one hop': {'hops': 1}, 'wrong': {'wrong': 1},
              'no checksum': {'none': True}}
    shapes.update({'label': {'label': 0x12345}} if six else {'no fragments': {'fragment': 0}})
    for shape, fields in sorted(shapes.items()):
        for size in (0, 1, 86, 1300):
            yield '%d bytes, %s' % (size, shape), bytes(size), fields


def probes(source, target, hidden):
    """Yields (name, function that makes the packet for a destination port)."""
    number = 20000
    if hidden == HIDDEN_UDP:
        for number, (name, payload, fields) in enumerate(udp_probes(':' in target), 20000):
            yield name, number, lambda port, number=number, payload=payload, fields=fields: udp(
                source, target, (number, port), payload, **fields)
        return
    for number, (name, flags, fields) in enumerate(tcp_probes(':' in target), 20000):
        yield name, number, lambda port, number=number, flags=flags, fields=fields: tcp(
            source, target, (number, port), flags, **fields)


def is_right(packet):
    """True when the checksums of IP header and payload are right; None for a cut payload."""
    size, protocol = header_size(packet), protocol_of(packet)
    payload = packet[size:]
    length = struct.unpack('!H', packet[2:4] if size < 40 or packet[0] >> 4 == 4
                           else packet[4:6])[0]
    length -= size if packet[0] >> 4 == 4 else 0
    if len(payload) < length:
        return None
    cover = payload[:length]
    if protocol != 1:
        cover = pseudo_header(source_of(packet), target_of(packet), protocol, length) + cover
    return checksum(cover) == 0 and (packet[0] >> 4 == 6 or checksum(packet[:size]) == 0)


def plain(packet, port, client_port, quoted=False):
    """Returns the packet with what differs by nature made equal, and its checksum's verdict."""
    size, protocol = header_size(packet), protocol_of(packet)
    head, body = bytearray(packet[:size]), bytearray(packet[size:])
    verdict = is_right(packet)
    if packet[0] >> 4 == 4:
        head[4:6] = head[10:12] = b'\0\0'                      # identification, header checksum
    elif head[1] & 15 or head[2] or head[3]:
        head[1] = head[1] & 0xf0 | 15                          # a flow label, any but none
        head[2:4] = b'\xff\xff'
    if protocol in (6, 17):
        ours = slice(2, 4) if quoted else slice(0, 2)
        if body[ours] == be16(port):
            body[ours] = b'\0\0'
        place = 16 if protocol == 6 else 6
        body[place:place + 2] = b'\0\0' if any(body[place:place + 2]) else b'no'
        return bytes(head), bytes(body), verdict
    body[2:4] = b'\0\0'
    return bytes(head), bytes(body[:8]), verdict, plain(bytes(body[8:]), port, client_port, True)


def client_port_of(packet):
    """The client's port in an answer, or in what an ICMP error quotes; None for anything else."""
    size, protocol = header_size(packet), protocol_of(packet)
    if protocol in (6, 17):
        return struct.unpack('!H', packet[size + 2:size + 4])[0]
    if (protocol, packet[size]) in ((1, 3), (58, 1), (1, 12), (58, 4)):
        quoted = packet[size + 8:]
        return struct.unpack('!H', quoted[header_size(quoted):][:2])[0]
    return None


def answers(wire, target, hidden, port, only=None):
    """Sends every probe to a port; returns {name: list of answers, made plain}."""
    six = ':' in target
    source = wire.client.addresses[six]
    names = {}
    with wire.capture(wire.server) as capture, wire.client.raw_sender(target) as send:
        for name, number, packet in probes(source, target, hidden):
            if only is None or name in only:
                names[number] = name
                send(packet(port))
                capture.read()                                      # before its queue is full
        settle(wire, capture, source, target, send)
        seen = {name: [] for name in names.values()}
        for packet in capture.packets(target):
            number = client_port_of(packet)
            if number in names:
                seen[names[number]].append(plain(packet, port, number))
    return seen


def settle(wire, capture, source, target, send):
    """Waits until the box has dealt with all that was sent: it echoes in order."""
    kind, protocol = ((128, 58) if ':' in target else (8, 1))
    mark = struct.pack('!Hd', 7, time.monotonic())
    head = bytes([kind, 0])
    whole = head + b'\0\0' + mark
    if protocol == 58:
        whole = pseudo_header(source, target, 58, len(whole)) + whole
    send(ip_packet(source, target, protocol, head + be16(checksum(whole)) + mark))
    assert until(lambda: any(packet[header_size(packet) + 4:] == mark
                             for packet in capture.packets(target))), 'the box is there'


def differences(wire, target, hidden, closed):
    """Returns the names of the probes whose answers differ, with both answers."""
    one = answers(wire, target, hidden, hidden)
    other = answers(wire, target, hidden, closed)
    assert one.keys() == other.keys()
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


@pytest.fixture(scope='module', params=sorted(LAYOUTS))
def box(request, wire, module_daemon):
    """Boxes with different filters of their own, each with the daemon running; gives its name."""
    wire.clear()
    settings = ''
    if LAYOUTS[request.param]:
        wire.server.nft(LAYOUTS[request.param])
        settings = 'accept_in = inet filter input'
    module_daemon(settings)
    return request.param


def test_a_hidden_tcp_port_answers_like_a_closed_one(wire, box, address):
    assert differences(wire, address, HIDDEN, CLOSED) == {}


def test_a_hidden_udp_port_answers_like_a_closed_one(wire, box, address):
    assert differences(wire, address, HIDDEN_UDP, CLOSED_UDP) == {}


def test_this_comparison_does_see_an_open_port(wire, services, address):
    wire.clear()
    seen = differences(wire, address, HIDDEN, CLOSED)
    assert {'SYN', 'FIN', 'NULL', 'SYN with options'} <= set(seen)
    assert len(differences(wire, address, HIDDEN_UDP, CLOSED_UDP)) > 10


def test_closed_ports_answer_at_all(wire, address):
    wire.clear()
    seen = answers(wire, address, HIDDEN, CLOSED)
    assert len(seen['SYN']) == len(seen['ACK']) == len(seen['FIN+PSH+URG']) == 1
    assert seen['RST'] == []
    head, body, right = seen['SYN'][0]
    assert right and body[13] == RST | ACK and body[8:12] == b'\1\2\3\5', 'RFC 9293, 3.10.7.1'


def test_a_port_looks_closed_again_after_an_opening(wire, knockd, visitor, address):
    wire.client.send(knockd.datagram(visitor, seconds=2), address)
    assert wire.client.reaches(address)
    assert until(lambda: not wire.client.connects(address), 5)
    assert differences(wire, address, HIDDEN, CLOSED) == {}


def test_a_port_looks_closed_to_a_stranger_while_it_is_open(wire, knockd, visitor, address):
    wire.stranger.send(knockd.datagram(visitor), address)
    assert wire.stranger.reaches(address)
    assert differences(wire, address, HIDDEN, CLOSED) == {}


def test_a_port_looks_closed_without_its_service(wire, knockd, services, address):
    services.pop(HIDDEN_TOO).close()
    assert differences(wire, address, HIDDEN_TOO, CLOSED) == {}
    services[HIDDEN_TOO] = wire.server.listen(HIDDEN_TOO)


def test_a_port_looks_closed_when_the_daemon_is_dead(wire, knockd, address):
    knockd.kill()
    assert differences(wire, address, HIDDEN, CLOSED) == {}
    knockd.start()


def decoy_of(knockd):
    return int(re.search(r'decoy (\d+)', knockd.text()).group(1))


def test_the_decoy_is_a_closed_port_like_any_other(wire, knockd, address):
    assert differences(wire, address, decoy_of(knockd), CLOSED) == {}


def resets(wire, target, packets):
    """Sends packets at once; returns (client's port, answering port) of the resets they get."""
    source = wire.client.addresses[':' in target]
    with wire.capture(wire.server) as capture, wire.client.raw_sender(target) as send:
        for client_port, port, fields in packets:
            send(tcp(source, target, (client_port, port), SYN, **fields))
            capture.read()
        settle(wire, capture, source, target, send)
        return [(client_port_of(packet), struct.unpack_from('!H', packet, header_size(packet))[0])
                for packet in capture.packets(target) if protocol_of(packet) == 6]


def test_a_probe_without_answer_does_not_change_the_answer_of_the_next(wire, knockd, address):
    """Nothing answers a wrong checksum; what the box remembers of it must not come out."""
    second = (decoy_of(knockd), HIDDEN_TOO, HIDDEN, CLOSED)
    packets = [(client_port, port, fields) for client_port, then in enumerate(second, 20000)
               for port, fields in ((HIDDEN, {'wrong': 1}), (then, {}))]
    assert resets(wire, address, packets) == list(enumerate(second, 20000))


def test_probes_in_quick_succession_are_all_answered(wire, knockd, address):
    """One client port, now and then a wrong checksum: closed ports answer all the others."""
    for port in (CLOSED, HIDDEN, decoy_of(knockd)):
        packets = [(20000, port, {'wrong': number % 20 == 0}) for number in range(1200)]
        assert resets(wire, address, packets) == [(20000, port)] * 1140


def test_ports_probed_in_turn_answer_each_for_itself(wire, knockd, address):
    ports = (HIDDEN, CLOSED, HIDDEN_TOO, decoy_of(knockd))
    packets = [(20000, port, {}) for port in ports * 3]
    assert resets(wire, address, packets) == [(20000, port) for port in ports * 3]


def test_no_packet_slips_through_while_the_rules_are_replaced(wire, knockd, tmp_path):
    """As at every start and reload; SYNs come all the time, and none may reach the service."""
    target, source = wire.server.addresses[0], wire.client.addresses[0]
    rules = tmp_path / 'rules'
    rules.write_text(knockd.do('rules').out)
    with wire.capture(wire.server) as capture, wire.client.raw_sender(target) as send:
        with wire.server.start('sh', '-c', 'for i in $(seq 40); do nft -f "$0" || exit 1; done',
                               str(rules)) as replacing:
            number = 0
            while replacing.poll() is None:
                number += 1
                send(tcp(source, target, (1024 + number % 60000, HIDDEN), SYN))
                capture.read()
        settle(wire, capture, source, target, send)
        answered = [packet for packet in capture.packets(target) if protocol_of(packet) == 6
                    and packet[header_size(packet) + 13] & SYN]
    assert replacing.returncode == 0 and number > 500
    assert len(answered) == 0, 'of %d' % number


def flow_labels(wire, ports):
    """The flow labels of the resets that (client's port, port) get."""
    target, source = wire.server.addresses[1], wire.client.addresses[1]
    with wire.capture(wire.server) as capture, wire.client.raw_sender(target) as send:
        for pair in ports:
            send(tcp(source, target, pair, SYN))
            capture.read()
        settle(wire, capture, source, target, send)
        return [struct.unpack('!L', packet[:4])[0] & 0xfffff
                for packet in capture.packets(target) if protocol_of(packet) == 6]


def test_hidden_ports_have_flow_labels_as_different_as_closed_ones(wire, knockd):
    """The kernel makes the label from both ports: one label for two ports is one decoy's."""
    closed = [(20000, CLOSED), (20000, CLOSED + 1), (20000, CLOSED + 2)]
    assert len(set(flow_labels(wire, closed))) == 3
    hidden = [(20000, port) for port in (HIDDEN, HIDDEN_TOO, decoy_of(knockd))]
    labels = flow_labels(wire, hidden)
    assert len(set(labels)) == 3
    assert flow_labels(wire, hidden) == labels, 'the same connection, the same label'


@pytest.mark.parametrize('port', (HIDDEN, CLOSED))
def test_every_bit_of_the_flow_label_of_a_hidden_port_varies(wire, knockd, port):
    labels = flow_labels(wire, [(client_port, port) for client_port in range(20000, 20200)])
    assert len(labels) == 200 and len(set(labels)) > 190
    for bit in range(20):
        assert 50 < sum(label >> bit & 1 for label in labels) < 150, 'bit %d' % bit


@pytest.mark.parametrize('other', ('decoy', 'hidden', 'closed'))
def test_the_flow_labels_of_two_ports_have_nothing_in_common(wire, knockd, other):
    second = {'decoy': decoy_of(knockd), 'hidden': HIDDEN_TOO, 'closed': CLOSED}[other]
    one, two = [flow_labels(wire, [(client_port, port) for client_port in range(20000, 20200)])
                for port in (HIDDEN, second)]
    for bit in range(20):
        same = sum((left ^ right) >> bit & 1 for left, right in zip(one, two))
        assert 50 < same < 150, 'bit %d' % bit


def test_a_box_without_flow_labels_has_none_for_hidden_ports_either(wire, knockd):
    wire.server.set(ipv6__auto_flowlabels=0)
    try:
        assert flow_labels(wire, [(20000, CLOSED), (20000, HIDDEN)]) == [0, 0]
    finally:
        wire.server.set(ipv6__auto_flowlabels=1)


def test_a_box_that_reflects_flow_labels_does_so_for_hidden_ports(wire, daemon):
    wire.server.set(ipv6__flowlabel_reflect=2)         # in resets of closed ports (ip-sysctl)
    try:
        daemon()
        target, source = wire.server.addresses[1], wire.client.addresses[1]
        with wire.capture(wire.server) as capture, wire.client.raw_sender(target) as send:
            for port in (CLOSED, HIDDEN):
                send(tcp(source, target, (20000, port), SYN, label=0x12345))
            settle(wire, capture, source, target, send)
            labels = [packet[1:4] for packet in capture.packets(target) if packet[6] == 6]
        assert labels == [b'\x01\x23\x45'] * 2
    finally:
        wire.server.set(ipv6__flowlabel_reflect=0)


def test_a_syn_limit_of_the_box_counts_for_a_hidden_port_as_well(wire, daemon):
    wire.clear()
    wire.server.nft(SYN_LIMIT)
    daemon()
    counts = []
    for address in wire.server.addresses:
        for port in (HIDDEN, CLOSED):
            counts.append(len(resets(wire, address, [(number, port, {})
                                                     for number in range(20000, 20060)])))
            wire.server.nft('flush chain inet speed input\n' + SYN_LIMIT)     # and full again
    assert counts == [25] * 4


def test_the_kernels_limit_of_icmp_errors_holds_for_a_hidden_port_as_well(wire, knockd):
    address = wire.server.addresses[0]
    counts = []
    wire.server.set(ipv4__icmp_ratemask=6168)
    try:
        for port, source in ((HIDDEN_UDP, '10.9.0.50'), (CLOSED_UDP, '10.9.0.51')):
            wire.client.must('ip', 'address', 'add', source + '/24', 'dev', 'eth0')
            with wire.capture(wire.server) as capture, wire.client.raw_sender(address) as send:
                settle(wire, capture, source, address, send)
                for number in range(20000, 20040):
                    send(udp(source, address, (number, port), b'x'))
                settle(wire, capture, source, address, send)
                counts.append(sum(client_port_of(packet) in range(20000, 20040)
                                  for packet in capture.packets(address)))
            wire.client.must('ip', 'address', 'delete', source + '/24', 'dev', 'eth0')
    finally:
        wire.server.set(ipv4__icmp_ratemask=0)
    assert counts[0] == counts[1] and 0 < counts[1] < 40


def receives(service):
    try:
        service.recv(100)
        return True
    except BlockingIOError:
        return False


def test_broadcast_and_multicast_to_a_hidden_port_are_not_answered_nor_served(wire, knockd,
                                                                              services):
    services['udp'].setblocking(False)
    while receives(services['udp']):
        pass                                                       # what earlier tests have sent
    source = wire.client.addresses[0]
    with wire.capture(wire.server) as capture:
        with wire.client.make_socket(2, 2) as sender:
            sender.setsockopt(1, 6, 1)                                    # SO_BROADCAST
            sender.sendto(b'hello', ('10.9.0.255', HIDDEN_UDP))
        with wire.client.make_socket(10, 2) as sender:
            sender.sendto(b'hello', ('ff02::1', HIDDEN_UDP, 0, 2))
        with wire.client.raw_sender(wire.server.addresses[0]) as send:
            settle(wire, capture, source, wire.server.addresses[0], send)
        assert not receives(services['udp'])
        assert not [packet for packet in capture.packets() if client_port_of(packet) == HIDDEN_UDP
                    and source_of(packet) in wire.server.addresses]


# --- nmap's own eyes ------------------------------------------------------------------------------
def nmap(wire, target, *arguments):
    options = ['-6'] if ':' in target else []
    result = wire.client.run('nmap', *(tuple(options) + ('-n', '-Pn', '-T5', '--reason', '-oX', '-')
                                       + arguments + (target,)))
    assert result.code == 0, result.err
    return result.out


@pytest.mark.parametrize('scan', ('-sS', '-sT', '-sA', '-sF', '-sN', '-sX', '-sW', '-sM'))
def test_nmap_finds_a_hidden_port_as_closed_as_its_neighbour(wire, knockd, address, scan):
    found = dict(re.findall(r'portid="(\d+)"><state ([^>]*)/>',
                            nmap(wire, address, scan, '-p', '2222,2233')))
    assert found['2222'] == found['2233']
    assert re.search('state="(closed|unfiltered)" reason="(reset|conn-refused)"', found['2222'])


def test_nmap_finds_a_hidden_udp_port_as_closed_as_its_neighbour(wire, knockd, address):
    found = dict(re.findall(r'portid="(\d+)"><state ([^>]*)/>',
                            nmap(wire, address, '-sU', '-p', '5182,5183')))
    assert found['5182'] == found['5183']
    assert 'state="closed" reason="port-unreach"' in found['5182']


def test_nmap_takes_the_fingerprint_of_a_hidden_port_for_that_of_a_closed_one(wire, knockd):
    address = wire.server.addresses[0]
    prints = []
    with wire.server.listen(8080):
        for port in (HIDDEN, CLOSED):
            found = nmap(wire, address, '-O', '-d', '--max-os-tries', '1', '-p', '8080,%d' % port)
            finger = re.search('<osfingerprint fingerprint="([^"]*)"', found).group(1)
            assert 'CT=%d%%' % port in finger, 'this is the closed port it has used'
            prints.append(re.findall(r'(?:T5|T6|T7)\([^)]*\)', finger.replace('&#xa;', '')))
    assert prints[0] == prints[1] and len(prints[0]) == 3
