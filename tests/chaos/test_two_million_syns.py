"""Raw SYNs at full size, with every carrier on: nothing opens. Eleven minutes in all."""

import os
import threading

import carriers
import floods
import pytest
from network import until

pytestmark = pytest.mark.chaos
SYNS, SEED = 2000000, int(os.environ.get('KNOCK_SEED', '88'))
BELOW_BUDGET = 13000            # a second; from 20,000 on sequences sleep
SOURCES = 50176                 # twice: so many of one network, one after the other
NAMES = ('udp', 'ports', 'code', 'paper', 'spoof')


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    clients = {name + family: 'code = yes' for name in NAMES for family in '46'}
    with carriers.housing(wire, tmp_path_factory, floods.SETTINGS, **clients) as made:
        for client in ('paper4', 'paper6'):
            assert made.do('paper', client, '-n', '999').code == 0
        yield made


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


def openings(house):
    return house.count('open ') - house.count('open fence ')


def sequence_opens(wire, house, client, address):
    """What is open from before has to close first: knock.py would say so, and be content."""
    if house.opened(wire.client, client, address):
        return False
    return wire.client.knock('--via', 'ports', '--open', 'tcp/%d' % house.doors[client],
                             house.uri(client, address)).code == 0


# What is sent, from whom, at which rate (0: as fast as it goes).
WAYS = [('syn', None, 0), ('syn', 'spoofed', 0), ('ascending', None, 0), ('descending', None, 0),
        ('syn', None, BELOW_BUDGET), ('ascending', None, BELOW_BUDGET),
        ('descending', 'spoofed', BELOW_BUDGET)]


@pytest.mark.parametrize('kind, source, rate', WAYS, ids=['%s-%s-%d' % way for way in WAYS])
def test_raw_syns_open_nothing_and_datagrams_open_all_the_while(
        wire, house, address, kind, source, rate):
    """Slow ones are all judged, of the fast ones only some: the sequence carriers sleep then. All
    ports thirty times over; slow and in order only three times."""
    count = SYNS if not rate or kind == 'syn' and address == wire.server.addresses[0] else 200000
    source = source and floods.SPOOFED[':' in address]
    client, owner = name_for('udp', address), 'open %s ' % name_for('ports', address)

    def opened():
        """By anybody but the owners, whose last sequence of the test before may be judged late."""
        return openings(house) - house.count('open ports')

    def all_opened(number):
        return until(lambda: opened() == number, 5)
    before, sent, memory = opened(), 0, carriers.resident(house)
    attack = floods.begin(floods.blast(wire, kind, address, count, rate, SEED, source=source))
    while attack.poll() is None:
        wire.client.send(house.datagram(client), address)
        sent += 1
        assert all_opened(before + sent), house.text()
        threading.Event().wait(1)
    number, seconds = floods.ended(attack)
    grown = carriers.resident(house) - memory
    print('%d SYNs (%s, %s) in %.1f s, %d a second; %d knocks meanwhile, %d kB more' % (
        number, kind, source or 'one source', seconds, number / seconds, sent, grown))
    assert number >= count and grown < 3000
    for _ in range(2):
        house.settle(wire.client, address)
    assert opened() - before == sent, house.text()
    assert not house.opened(wire.stranger, client, address)
    before = house.count(owner)
    assert until(lambda: sequence_opens(wire, house, name_for('ports', address), address) and
                 house.count(owner) > before, 70), house.text()


def test_a_hundred_thousand_spoofed_sources_each_start_a_sequence(wire, house, address):
    """Memory is flat, and a real sequence works meanwhile and afterwards."""
    client, networks = name_for('spoof', address), ('198.18.*', '198.19.*')
    if ':' in address:
        networks = '2001:db8::*', '2001:db8:1::*'
    first = int(house.shown(client, address, 'ports')[0])
    before, memory, opened = openings(house), [], []
    for network in networks:
        attack = floods.begin(floods.blast(wire, 'same', address, SOURCES, BELOW_BUDGET, SEED,
                                           source=network, port=first))
        while attack.poll() is None:
            if not opened and memory and sequence_opens(wire, house, client, address):
                opened.append(client)
            threading.Event().wait(0.1)
        number, _ = floods.ended(attack)
        house.settle(wire.client, address)
        memory.append(carriers.resident(house))
        assert number >= SOURCES
    print('%d kB more after another %d sources' % (memory[1] - memory[0], SOURCES))
    assert memory[1] - memory[0] < 800
    assert opened, house.text()
    assert openings(house) - before == 1
