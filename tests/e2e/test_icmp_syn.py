"""Carriers `icmp` and `syn`: what they need at the client, and what they say without it."""

import sys

import carriers
import pytest
from network import KNOCK

SETTINGS = 'carriers = udp, icmp, syn, ports'
NO_CAPABILITIES = ('setpriv', '--bounding-set=-all', '--inh-caps=-all', '--ambient-caps=-all')


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    clients = {name + family: '' for name in ('ping', 'raw', 'syn', 'late', 'other', 'none')
               for family in '46'}
    with carriers.housing(wire, tmp_path_factory, SETTINGS, **clients) as made:
        yield made


@pytest.fixture(scope='module')
def pinger(wire):
    """A fourth member, whose group may send pings; elsewhere nobody may (a kernel's default)."""
    member = wire.join('pinger', 4)
    member.set(ipv4__ping_group_range='0 0')
    return member


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


def knocked(namespace, house, client, address, *arguments, **options):
    """Runs knock.py, without any capability unless privileged."""
    before = () if options.get('privileged') else NO_CAPABILITIES
    arguments += ('--open', 'tcp/%d' % house.doors[client]) if 'icmp' in arguments else ()
    return namespace.run(*before + (sys.executable, KNOCK) + arguments
                           + (house.uri(client, address),))


def test_an_echo_request_opens_without_privilege_where_pings_are_allowed(
        pinger, house, address):
    client = name_for('ping', address)
    done = knocked(pinger, house, client, address, '--via', 'icmp')
    assert done.code == 0, done.err + house.text()
    assert house.opened(pinger, client, address)
    assert ' tcp/%d 30s icmp ' % house.doors[client] in house.says('open %s ' % client)


def test_an_echo_request_opens_by_a_raw_socket_elsewhere(wire, house, address):
    client = name_for('raw', address)
    done = knocked(wire.client, house, client, address, '--via', 'icmp', privileged=True)
    assert done.code == 0, done.err + house.text()
    assert house.opened(wire.client, client, address)


@pytest.mark.parametrize('via', ('icmp', 'syn'))
def test_without_any_privilege_the_error_names_what_is_missing(wire, house, address, via):
    client = name_for('none', address)
    done = knocked(wire.client, house, client, address, '--via', via)
    assert done.code == 1
    assert 'CAP_NET_RAW' in done.err and done.err.count('\n') == 1 and 'Traceback' not in done.err
    assert ('net.ipv4.ping_group_range' in done.err) == (via == 'icmp')
    assert house.settled_shut(wire.client, client, address)


def test_one_syn_opens(wire, house, address):
    client = name_for('syn', address)
    with wire.capture(wire.client) as capture:
        done = knocked(wire.client, house, client, address, '--wait', '0', '--via', 'syn',
                       privileged=True)
        assert done.code == 0, done.err
        assert house.opens(wire.client, client, address), house.text()
        captured = carriers.syns_seen(capture, address)[0]
    assert house.says('open %s ' % client).split()[-2] == 'syn'
    for namespace in (wire.client, wire.stranger):      # the captured SYN: at once, from elsewhere
        source = namespace.addresses[':' in address]
        for port in (captured[1], 4711):
            namespace.inject(carriers.syn_packet(source, address, port, 4000, captured[2]))
    house.says('refused %s %s replay' % (client, wire.stranger.addresses[':' in address]))
    assert house.count('open %s ' % client) == 1
    assert not house.opened(wire.stranger, client, address)


def test_a_syn_with_ack_opens_nothing_by_its_token(wire, house, address):
    client = name_for('late', address)
    badge = bytes.fromhex(house.shown(client, address, 'syn')[0])
    source = wire.client.addresses[':' in address]
    for flags in (carriers.SYN | carriers.ACK, carriers.SYN | carriers.RST, carriers.ACK):
        wire.client.inject(carriers.syn_packet(source, address, 4000, 4000, badge, flags))
    assert house.settled_shut(wire.client, client, address)
    wire.client.inject(carriers.syn_packet(source, address, 4000, 4000, badge))
    assert house.opens(wire.client, client, address), house.text()


def test_carriers_that_are_off_open_nothing(wire, tmp_path_factory, address):
    """`syn` is not among the default carriers; of the datagrams only `udp` is on here."""
    clients = {'echo': '', 'syn': ''}
    with carriers.housing(wire, tmp_path_factory, 'carriers = udp, ports', **clients) as house:
        source = wire.client.addresses[':' in address]
        assert knocked(wire.client, house, 'echo', address, '--wait', '0', '--via', 'icmp',
                       privileged=True).code == 0
        badge = bytes.fromhex(house.shown('syn', address, 'syn')[0])
        wire.client.inject(carriers.syn_packet(source, address, 4000, 4000, badge))
        for client in clients:
            assert house.settled_shut(wire.client, client, address)


def test_the_default_carriers_are_udp_icmp_and_ports(wire, tmp_path_factory):
    address = wire.server.addresses[0]
    with carriers.housing(wire, tmp_path_factory, one='', two='', three='', four='',
                          five='code = yes') as house:
        source = wire.client.addresses[0]
        badge = bytes.fromhex(house.shown('four', address, 'syn')[0])
        wire.client.inject(carriers.syn_packet(source, address, 4000, 4000, badge))
        code = house.shown('five', address, 'code')[0]
        carriers.touch_all(wire.client, address, carriers.knock.code_ports(code))
        for client, via in (('one', 'udp'), ('two', 'icmp'), ('three', 'ports')):
            done = wire.client.knock('--via', via, '--open', 'tcp/%d' % house.doors[client],
                                     house.uri(client, address))
            assert done.code == 0, done.err
        assert house.settled_shut(wire.client, 'four', address)
        assert house.settled_shut(wire.client, 'five', address)
