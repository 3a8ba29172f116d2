"""A port that the box forwards to a machine behind it is hidden and opened like one of its own."""

import pytest
from network import CLOSED, HIDDEN, Namespace, accept, alive, finish_checksums, until

pytestmark = pytest.mark.kernel
INSIDE = 2022
NFT_DNAT = '''
table inet nat {
    chain prerouting { type nat hook prerouting priority dstnat;
        iifname "eth0" tcp dport 2222 dnat ip to 10.8.0.2:2022
        iifname "eth0" tcp dport 2222 dnat ip6 to [fd00:8::2]:2022
    }
}
'''
# Docker's published port, in short: DNAT, a FORWARD that drops, a hole for what was forwarded.
IPTABLES = '''
{0} -t nat -A PREROUTING -i eth0 -p tcp --dport 2222 -j DNAT --to-destination {1}
{0} -P FORWARD DROP
{0} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{0} -A FORWARD -i lan -j ACCEPT
'''
DROPPING = '''
table inet filter {
    chain forward { type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" accept
    }
}
'''


@pytest.fixture(scope='module')
def inside(wire):
    """A machine behind the server; the server is its router."""
    member = Namespace('inside', ['nsenter', '--preserve-credentials'] + wire.hub.user + [
        '-m', '-t', str(wire.hub.pid), 'unshare', '-n'], ('10.8.0.2', 'fd00:8::2'))
    wire.hub.must('ip', 'link', 'add', 'lan', 'netns', str(wire.server.pid), 'type', 'veth',
                  'peer', 'name', 'eth0', 'netns', str(member.pid))
    for namespace, device, number in ((wire.server, 'lan', 1), (member, 'eth0', 2)):
        namespace.must('ip', '-b', '-', stdin='''
            link set lo up
            link set {0} up
            addr add 10.8.0.{1}/24 dev {0}
            addr add fd00:8::{1}/64 dev {0} nodad\n'''.format(device, number))
    finish_checksums(member, 'eth0')
    for namespace, route in ((member, 'default via 10.8.0.1'), (member, 'default via fd00:8::1'),
                             (wire.client, '10.8.0.0/24 via 10.9.0.1'),
                             (wire.client, 'fd00:8::/64 via fd00:9::1')):
        namespace.must('ip', '-6' if '::' in route else '-4', 'route', 'add', *route.split())
    wire.server.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    yield member
    wire.server.set(ipv4__ip_forward=0, ipv6__conf__all__forwarding=0)
    wire.server.must('ip', 'link', 'del', 'lan')
    wire.client.must('ip', 'route', 'del', '10.8.0.0/24')
    wire.client.must('ip', '-6', 'route', 'del', 'fd00:8::/64')
    member.close()


@pytest.fixture(params=['nft', 'nft with a forward that drops', 'iptables', 'iptables-legacy'])
def forwarded(request, wire, inside):
    """The port is forwarded; yields the service behind it."""
    legacy = '-legacy' if 'legacy' in request.param else ''
    tools = {'10.8.0.2:2022': 'iptables' + legacy, '[fd00:8::2]:2022': 'ip6tables' + legacy}
    if request.param.startswith('nft'):
        wire.server.nft(NFT_DNAT + (DROPPING if 'drops' in request.param else ''))
    else:
        for target, tool in tools.items():
            for line in IPTABLES.format(tool, target).strip().splitlines():
                wire.server.must(*line.split())
    with inside.listen(INSIDE) as listener:
        yield listener
    if legacy:
        for tool in tools.values():
            wire.server.must(tool, '-t', 'nat', '-F')
            wire.server.must(tool, '-F')
            wire.server.must(tool, '-P', 'FORWARD', 'ACCEPT')


def test_a_forwarded_port_is_hidden_and_opens(wire, forwarded, daemon):
    knockd = daemon(anna='')
    for address in wire.server.addresses:
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        assert wire.client.socket_error(address, CLOSED) is ConnectionRefusedError
        done = wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address))
        assert done.code == 0, done.err + knockd.text()
        with wire.client.connection(address, HIDDEN) as connection:
            with accept(forwarded, connection) as end:
                assert alive(connection, end)
        assert not wire.stranger.connects(address)
        wire.client.send(knockd.datagram('anna', op='close'), address)
        assert until(lambda at=address: not wire.client.connects(at), 5)


def test_the_same_port_number_elsewhere_is_left_alone(wire, inside, forwarded, daemon):
    daemon(anna='')
    with wire.client.listen(HIDDEN):
        for address in wire.client.addresses:
            assert inside.connects(address), 'from the LAN to a port 2222 of the Internet'
