"""A server whose clock is wrong (DESIGN 3.9), with Debian's libfaketime as the clock."""

import time

import carriers
import pytest
import test_paper
from network import until

SETTINGS = 'carriers = udp, icmp, syn, ports, code'
# Second 24 of a step: the next one begins soon (the window is whole steps).
WAKES = '@2001-09-09 01:47:24'


class WokenUp(carriers.FakedTime):
    clock = WAKES


@pytest.fixture
def house(wire, tmp_path_factory):
    clients = dict.fromkeys(('anna', 'udp', 'icmp', 'syn', 'ports', 'code'), 'code = yes')
    with carriers.housing(wire, tmp_path_factory, SETTINGS, kind=WokenUp, **clients) as made:
        yield made


def knock_by(wire, house, via, address):
    """One knock of the client of that name; what it was, to be replayed."""
    if via == 'udp':
        payload = house.datagram('udp')
        wire.client.send(payload, address)
        return lambda namespace: namespace.send(payload, address)
    if via in ('code', 'ports'):
        shown = house.shown(via, address, via)
        ports = carriers.knock.code_ports(shown[0]) if via == 'code' else shown
        carriers.touch_all(wire.client, address, ports)
        return lambda namespace: carriers.touch_all(namespace, address, ports)
    done = wire.client.knock('--wait', '0', '--via', via, house.uri(via, address))
    assert done.code == 0, done.err
    return lambda namespace: None


def test_a_server_that_woke_in_2001_opens_on_paper_and_on_all_else_once_it_is_set_right(
        wire, house):
    four, six = wire.server.addresses
    ways = (('udp', four), ('icmp', six), ('syn', six), ('ports', four), ('code', six))
    house.says('clock: 2001-09-09 01:47 UTC is before ')
    sheet = test_paper.sheet_of(house)
    for via, address in ways:
        knock_by(wire, house, via, address)
    test_paper.type_line(wire.client, four, sheet[1])
    assert house.opens(wire.client, 'anna', four), house.text()
    house.says('open anna ')
    assert house.count('open ') == 1
    house.set_clock('+0')
    began = time.monotonic()
    assert until(lambda: house.count('clock: plausible again'), 31), house.text()
    print('plausible %.1f s after the clock was set' % (time.monotonic() - began))
    replays = [lambda namespace: carriers.touch_all(namespace, four, sheet[1])]
    for via, address in ways:
        replays.append(knock_by(wire, house, via, address))
        assert house.opens(wire.client, via, address), via + house.text()
        house.says('open %s ' % via)
    for replay in replays:
        replay(wire.client)
        replay(wire.stranger)
    house.settle_slowly()
    assert house.count('open ') == 1 + len(ways)


def test_a_clock_set_back_and_right_again_replays_nothing(wire, tmp_path_factory):
    """Neither what was used before, nor what was used while it was wrong."""
    address = wire.server.addresses[0]
    with carriers.housing(wire, tmp_path_factory, kind=carriers.FakedTime, anna='') as house:
        captured = house.datagram('anna')
        wire.client.send(captured, address)
        house.says('open anna ')
        house.set_clock('-3600')
        house.reload()
        house.says('clock: ')
        early = house.datagram('anna', time=int(time.time() * 1000) - 3600000)
        wire.client.send(early, address)
        for payload in (captured, early):
            wire.stranger.send(payload, address)
        house.settle_slowly()
        assert house.count('open anna ') == 1, 'its stamp is below the floor'
        house.set_clock('+0')
        house.reload()
        for payload in (captured, early):
            wire.stranger.send(payload, address)
        house.settle_slowly()
        assert house.count('open anna ') == 1
        wire.client.send(house.datagram('anna'), address)
        house.says('open anna ', 2)
