"""Floods of two seconds with twenty real knocks during each; ten seconds are in tests/chaos."""

import os

import carriers
import floods
import pytest
from network import syn_packet, until

pytestmark = pytest.mark.kernel
SECONDS, SEED = 2, int(os.environ.get('KNOCK_SEED', '8'))


@pytest.mark.parametrize('kind', floods.KINDS)
def test_in_a_flood_real_knocks_open_and_nothing_else_costs(wire, tmp_path_factory, kind):
    """Over IPv4 and IPv6 in turn."""
    address = wire.server.addresses[floods.KINDS.index(kind) % 2]
    clients = dict.fromkeys(floods.CLIENTS + ('owner',), 'code = yes')
    with carriers.housing(wire, tmp_path_factory, floods.SETTINGS, kind=floods.Counting,
                          **clients) as house:
        cost = floods.endured(wire, house, kind, address, SECONDS, seed=SEED)
        floods.judge(house, kind, cost, house.count('open fence '))


def test_many_syns_get_sockets_of_their_own_and_push_out_no_datagram(wire, daemon, address):
    """Few share those of the datagrams, for each socket costs what the box forwards."""
    knockd = daemon(anna='', bert='')

    def sockets():
        return len(wire.server.must('cat', '/proc/net/packet').splitlines()) - 1
    few, mine = sockets(), wire.client.addresses[':' in address]
    syns = [syn_packet(mine, address, 40000, port) for port in range(1024, 13024)]
    with wire.client.raw_sender(address) as send:
        for packet in syns[:100]:
            send(packet)
        wire.client.send(knockd.datagram('anna'), address)
        knockd.says('open anna ')
        assert sockets() == few
        for packet in syns:
            send(packet)
        wire.client.send(knockd.datagram('bert'), address)
    knockd.says('open bert ')
    assert until(lambda: sockets() == 2 * few)
