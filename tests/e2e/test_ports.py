"""Carrier `ports`: anything that opens TCP connections knocks, no root, no tool of ours."""

import sys

import carriers
import pytest
from network import KNOCK, until

WAYS = {        # how to touch the ports: {host} and {ports} are filled in
    'knock': '{knock} {family} -d 5 {host} {ports}',
    'bash': 'for p in {ports}; do (: < /dev/tcp/{host}/$p) 2>/dev/null; done; true',
    'nc': 'for p in {ports}; do nc -z -w 1 {host} $p; done; true'}
DROPPING = '''
    flush ruleset
    table inet filter {
        chain input {
            type filter hook input priority 0; policy drop;
            ct state established,related accept
            meta l4proto ipv6-icmp accept
        }
    }
'''


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    """One daemon with default carriers; every test has clients of its own, since a step of a
    client serves once."""
    names = list(WAYS) + ['ours', 'line', 'late', 'swap', 'two']
    clients = {name + family: '' for name in names for family in '46'}
    with carriers.housing(wire, tmp_path_factory, **clients) as made:
        yield made


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


@pytest.mark.parametrize('way', sorted(WAYS))
def test_the_ports_that_knock_prints_open_the_door_with(way, wire, house, address):
    client = name_for(way, address)
    assert not house.opened(wire.client, client, address)
    ports = house.shown(client, address, 'ports')
    line = WAYS[way].format(knock=carriers.tool('knock'), family='-6' if ':' in address else '-4',
                            host=address, ports=' '.join(ports))
    carriers.tool('nc')
    wire.client.must('bash', '-c', line)
    assert house.opens(wire.client, client, address), house.text()
    source = wire.client.addresses[':' in address]
    house.says('open %s %s tcp/%d 30s ports ' % (client, source, house.doors[client]))
    assert not house.opened(wire.stranger, client, address)


def test_knock_py_knocks_by_ports(wire, house, address):
    client = name_for('ours', address)
    done = wire.client.knock('--via', 'ports', '--open', 'tcp/%d' % house.doors[client],
                             house.uri(client, address))
    assert done.code == 0, done.err
    assert house.opened(wire.client, client, address)


def test_the_line_can_carry_the_preferred_way(wire, house, address):
    client = name_for('line', address)
    uri = house.uri(client, address) + '&via=ports&open=tcp/%d' % house.doors[client]
    assert wire.client.knock(uri).code == 0
    assert ' ports ' in house.says('open %s ' % client)


def test_a_second_knock_in_one_step_takes_the_next_step(wire, house, address):
    """knock.py retries with T+1 after a second; the opening of the first is closed before."""
    client = name_for('late', address)
    uri = house.uri(client, address) + '&open=tcp/%d' % house.doors[client]
    carriers.fresh_step(4)
    assert wire.client.knock('--via', 'ports', uri).code == 0
    assert wire.client.knock('--close', uri).code == 0
    assert until(lambda: not house.opened(wire.client, client, address))
    done = wire.client.knock('--via', 'ports', uri)
    assert done.code == 0, done.err + house.text()
    assert until(lambda: house.count('open %s ' % client) == 2)


def test_the_ports_in_another_order_open_nothing(wire, house, address):
    client = name_for('swap', address)
    ports = house.shown(client, address, 'ports')
    carriers.touch_all(wire.client, address, ports[:2] + [ports[3], ports[2]] + ports[4:])
    assert house.settled_shut(wire.client, client, address)
    carriers.touch_all(wire.client, address, ports[3:])
    assert house.opens(wire.client, client, address), 'the attempt lives on: four strikes at most'


def test_the_ports_from_two_addresses_open_nothing(wire, house, address):
    client = name_for('two', address)
    ports = house.shown(client, address, 'ports')
    carriers.touch_all(wire.client, address, ports[:3])
    carriers.touch_all(wire.stranger, address, ports[3:])
    assert house.settled_shut(wire.client, client, address)
    assert not house.opened(wire.stranger, client, address)


def test_the_ports_open_on_a_box_that_drops(wire, tmp_path_factory, address):
    """No reset comes back there: knock.py goes on by itself."""
    with carriers.housing(wire, tmp_path_factory, anna='') as house:
        house.kill()
        wire.server.nft(DROPPING)
        house.settings += '\naccept_in = inet filter input'
        house.write_config()
        house.start()
        done = wire.client.run(sys.executable, KNOCK, '--via', 'ports', '--open',
                               'tcp/%d' % house.doors['anna'], house.uri('anna', address))
        assert done.code == 0, done.err + house.text()
        assert ' ports ' in house.says('open anna ')


def test_ports_that_are_off_open_nothing(wire, tmp_path_factory, address):
    with carriers.housing(wire, tmp_path_factory, 'carriers = udp', anna='') as house:
        carriers.touch_all(wire.client, address, house.shown('anna', address, 'ports'))
        assert house.settled_shut(wire.client, 'anna', address)
