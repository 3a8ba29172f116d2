"""The daemon opens no listening socket and sends nothing: promise 1."""

import pytest
from network import accept, alive, header_size, protocol_of, until

HIDDEN = 2222


def sent_while(wire, stimuli):
    """What the server sends for some datagrams, without what differs by nature."""
    sent = []
    with wire.capture(wire.server) as capture:
        for number, (payload, address) in enumerate(stimuli, 42000):
            wire.client.send(payload, address, 40000 + number % 7, number)
        for packet in capture.packets():
            if packet[12:16] == b'\x0a\x09\x00\x01' or packet[8:24].endswith(b'\1'):
                sent.append(without_numbers(packet))
    return sorted(sent)


def without_numbers(packet):
    """Without the IP identification and checksums, of the quoted packet too; no neighbours."""
    size = header_size(packet)
    if size == 40:
        return packet[:1] + packet[4:40] + packet[40:42] + packet[88:92]
    return packet[:4] + packet[6:10] + packet[12:size + 2] + packet[size + 28:size + 32]


def is_neighbour_talk(packet):
    """IPv6 neighbour solicitation and advertisement."""
    return protocol_of(packet) == 58 and packet[header_size(packet)] in (135, 136)


def test_the_daemon_has_no_socket_that_anybody_could_reach(wire, daemon):
    before = wire.server.sockets()
    knockd = daemon(anna='')
    assert wire.server.sockets() == before
    wire.client.send(knockd.datagram('anna'), wire.server.addresses[0])
    knockd.says('open anna')
    assert wire.server.sockets() == before


def test_the_daemon_sends_nothing(wire, daemon):
    """The same datagrams get the same from the box, with the daemon and without it."""
    knockd = daemon(anna='', bert='', odd='')
    stimuli = []
    for address in wire.server.addresses:
        stimuli += [(knockd.datagram('anna'), address), (knockd.datagram('bert'), address),
                    (knockd.datagram('anna', open='tcp/25'), address),
                    (knockd.datagram('odd', plain=bytes(28)), address), (b'hello', address)]
    with_daemon = sent_while(wire, stimuli)
    assert until(lambda: (knockd.count('open '), knockd.count('refused ')) == (4, 2)), knockd.text()
    wire.clear()
    assert with_daemon == sent_while(wire, stimuli)
    assert len(with_daemon) == len(stimuli), 'a port unreachable from the kernel for each'


def test_the_daemon_is_as_silent_on_a_box_that_drops(wire, daemon):
    wire.server.nft('''table inet filter {
        chain input {
            type filter hook input priority 0; policy drop;
            ct state established,related accept
            meta l4proto ipv6-icmp accept
        }
    }
    ''')
    knockd = daemon('accept_in = inet filter input', anna='', bert='')
    with wire.capture(wire.server) as capture:
        for address in wire.server.addresses:
            wire.client.send(knockd.datagram('anna'), address)
            wire.client.send(knockd.datagram('bert', open='tcp/25'), address)
        knockd.settle(wire.client)
        from_server = [packet for address in wire.server.addresses
                       for packet in capture.packets(address) if not is_neighbour_talk(packet)]
    assert from_server == []


@pytest.fixture
def connections(wire, services):
    """One connection to the hidden port over each family: (client's end, server's end)."""
    ends = []
    for address in wire.server.addresses:
        ends.append(wire.client.connection(address, HIDDEN))
        ends.append(accept(services[HIDDEN], ends[-1]))
    yield list(zip(ends[::2], ends[1::2]))
    for end in ends:
        end.close()


def test_connections_from_before_the_daemon_live_on(wire, connections, daemon):
    knockd = daemon(anna='')
    assert not any(wire.client.connects(address) for address in wire.server.addresses)
    assert all(alive(*ends) for ends in connections)
    knockd.kill()
    assert all(alive(*ends) for ends in connections)


def test_connections_from_before_the_daemon_end_in_order(connections, daemon):
    daemon(anna='')
    for connection, end in connections:
        end.shutdown(1)
        assert connection.recv(10) == b'', 'the end, not a reset'
        connection.sendall(b'last words')
        connection.shutdown(1)
        assert end.recv(100) == b'last words'
        assert end.recv(100) == b''
