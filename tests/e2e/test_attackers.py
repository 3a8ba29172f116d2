"""Attackers with every carrier on: scans, forged SYNs, captured knocks, a neighbour's traffic.

2,000,000 raw SYNs and 100,000 spoofed sources are in tests/chaos.
"""

import contextlib
import random
import socket
import subprocess
import threading

import carriers
import pytest
from network import environment, ip_packet, until

pytestmark = pytest.mark.kernel

SETTINGS = 'carriers = udp, icmp, syn, ports, code'
RAW_SYNS = 200000
PAIRS = ('left1', 'right1', 'left2', 'right2', 'left3', 'right3')
BELOW_BUDGET = 13000                            # SYNs a second; from 20,000 on sequences sleep
FIRST, LAST = 1, 65535


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    """Every test has clients of its own; all of them may use every carrier."""
    names = [name + family for family in '46' for name in (
        'anna', 'two', 'bert', 'spoof', 'raw', 'scan', 'desc', 'far', 'farther', 'seq',
        'code') + PAIRS]
    clients = dict.fromkeys(names, 'code = yes')
    with carriers.housing(wire, tmp_path_factory, SETTINGS, **clients) as made:
        for client in ('scan4', 'scan6'):
            assert made.do('paper', client, '-n', '99').code == 0
        yield made


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


def stays_shut(wire, house, address, before):
    """Nothing was opened since, and the daemon is all there: a real sequence opens at once."""
    for _ in range(2):
        house.settle(wire.client, address)
    return house.count('open ') - house.count('open fence ') == before


def openings(house):
    return house.count('open ') - house.count('open fence ')


def sequence_opens(wire, house, client, address):
    done = wire.client.knock('--via', 'ports', '--open', 'tcp/%d' % house.doors[client],
                             house.uri(client, address))
    return done.code == 0


# --- what was captured ---------------------------------------------------------------------------
@pytest.mark.parametrize('via', ('ports', 'code'))
def test_a_captured_knock_opens_nothing_again(wire, house, address, via):
    """SYN for SYN as it went over the wire: at once and later, from there and from elsewhere.

    Before the scans, which put codes to sleep."""
    client = name_for('code' if via == 'code' else 'anna', address)
    shown = house.shown(client, address, via)
    ports = shown if via == 'ports' else carriers.knock.code_ports(shown[0])
    before = openings(house)
    with wire.capture(wire.client) as capture:
        carriers.touch_all(wire.client, address, ports)
        assert house.opens(wire.client, client, address), house.text()
        sent = [syn for syn in carriers.syns_seen(capture, address)
                if syn[1] != house.doors[client]]
    assert [syn[1] for syn in sent] == [int(port) for port in ports]
    for namespace in (wire.client, wire.stranger):
        source = namespace.addresses[':' in address]
        for source_port, port, badge in sent:
            namespace.inject(carriers.syn_packet(source, address, port, source_port, badge))
    house.says('refused %s %s replay' % (client, wire.stranger.addresses[':' in address]))
    for source in forged_sources(address, 3):
        for source_port, port, badge in sent:
            wire.stranger.inject(carriers.syn_packet(source, address, port, source_port, badge))
    assert stays_shut(wire, house, address, before + 1)
    assert not house.opened(wire.stranger, client, address)


# --- scans ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('order', ('ascending', 'random'))
def test_a_scan_of_nmap_opens_nothing(wire, house, order):
    """All ports; ascending over IPv4, in random order over IPv6."""
    address = wire.server.addresses[order == 'random']
    before = openings(house)
    arguments = ['-sS', '-n', '-Pn', '-p', '%d-%d' % (FIRST, LAST), '--max-retries', '0',
                 '--min-rate', str(BELOW_BUDGET), '--max-rate', str(BELOW_BUDGET)]
    arguments += ['-r'] if order == 'ascending' else ['-6']
    told = wire.stranger.must(carriers.tool('nmap'), *arguments + [address])
    assert '1 host up' in told
    assert stays_shut(wire, house, address, before), house.text()
    assert until(lambda: sequence_opens(wire, house, name_for('scan', address), address), 10)


def test_a_descending_scan_opens_nothing(wire, house):
    """From the knocking client's own address, and he still gets in while it runs."""
    address = wire.server.addresses[0]
    before = openings(house)
    ports = range(LAST, FIRST, -1)
    carriers.scan(wire.client, address, ports, rate=BELOW_BUDGET)
    assert stays_shut(wire, house, address, before), house.text()
    assert sequence_opens(wire, house, 'desc4', address), house.text()


def test_raw_syns_at_full_speed_open_nothing(wire, house, address):
    """Random ports, random sources and tokens; the datagram carriers never sleep."""
    before, sent = openings(house), 0
    client = name_for('raw', address)
    sources = [wire.stranger.addresses[':' in address]] + forged_sources(address, 15)
    done = threading.Event()

    def attack():
        numbers = random.Random(1)
        for _ in range(RAW_SYNS // 2 // 20000):
            ports = [numbers.randrange(FIRST, LAST) for _ in range(20000 // len(sources))]
            carriers.scan(wire.stranger, address, ports, sources)
        done.set()
    attacker = threading.Thread(target=attack)
    attacker.start()
    while not done.is_set():
        wire.client.send(house.datagram(client), address)
        assert house.opens(wire.client, client, address)
        sent += 1
        done.wait(0.3)
    attacker.join()
    assert until(lambda: openings(house) - before == sent, 5), house.text()
    assert 'ports, code and paper sleep' in house.says('SYNs a second')
    assert house.opened(wire.client, client, address)
    assert not house.opened(wire.stranger, client, address)
    assert until(lambda: sequence_opens(wire, house, name_for('seq', address), address), 10)


def forged_sources(address, number):
    """Addresses of nobody, all of one network, in 198.18.0.0/15 or 2001:db8::/32."""
    if ':' in address:
        return ['2001:db8::%x:%x' % (1 + count // 60000, 1 + count % 60000)
                for count in range(number)]
    return ['198.18.%d.%d' % (count // 250, 1 + count % 250) for count in range(number)]


def test_many_spoofed_sources_that_each_start_a_sequence_leave_memory_flat(wire, house, address):
    """Each touches a first port, which a blind sender cannot know; 100,000 of them are in
    tests/unit/test_sequences.py. Everybody's sequences go on meanwhile."""
    client = name_for('spoof', address)
    first = int(house.shown(client, address, 'ports')[0])
    before = openings(house)
    sources = forged_sources(address, 10000)
    carriers.scan(wire.stranger, address, [first], sources[:5000], BELOW_BUDGET)
    house.settle(wire.client, address)
    memory = carriers.resident(house)
    carriers.scan(wire.stranger, address, [first], sources[5000:], BELOW_BUDGET)
    house.settle(wire.client, address)
    grown = carriers.resident(house) - memory
    print('%d kB more after another 5,000 sources' % grown)
    assert grown < 500
    assert stays_shut(wire, house, address, before)
    assert sequence_opens(wire, house, client, address), house.text()


# --- two at once, neighbours, a router -----------------------------------------------------------
def test_two_clients_behind_one_address_knock_at_once_with_a_neighbours_ssh_between(
        wire, house, address):
    """The neighbour's ssh tries a hidden and a closed port again and again."""
    names = [name_for('two', address), name_for('bert', address)]
    left, right = [house.shown(name, address, 'ports') for name in names]
    for one, two in zip(left, right):
        carriers.touch(wire.client, address, int(one))
        carriers.touch(wire.client, address, 22)
        carriers.touch(wire.client, address, house.doors[names[1]])
        carriers.touch(wire.client, address, int(two))
        carriers.touch(wire.client, address, 8022)
    assert house.opens(wire.client, names[1], address), house.text()
    assert house.opens(wire.client, names[0], address), house.text()


@pytest.fixture
def router(wire):
    """The server forwards; behind it is a network 10.99.0.0/16, fd99::/32 in another namespace."""
    wire.server.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    wire.server.must('ip', '-b', '-', stdin='''
        link add behind type bridge
        link set behind up
        addr add 10.99.0.1/16 dev behind
        addr add fd99::1/32 dev behind nodad\n''')
    for number, network in ((0, '10.99.0.0/16'), (1, 'fd99::/32')):
        wire.stranger.must('ip', 'route', 'add', network, 'via', wire.server.addresses[number])
        wire.client.must('ip', 'route', 'add', network, 'via', wire.server.addresses[number])
    yield wire.server
    for network in ('10.99.0.0/16', 'fd99::/32'):
        wire.stranger.must('ip', 'route', 'del', network)
        wire.client.must('ip', 'route', 'del', network)
    wire.server.must('ip', 'link', 'del', 'behind')
    wire.server.set(ipv4__ip_forward=0, ipv6__conf__all__forwarding=0,
                    ipv4__ip_nonlocal_bind=0, ipv6__ip_nonlocal_bind=0)


def elsewhere(address, number=2):
    return 'fd99::%x:%x' % (number >> 16, number & 0xffff) if ':' in address else \
        '10.99.%d.%d' % (number >> 8 & 255, number & 255)


@pytest.mark.parametrize('nonlocal_bind', [0, 1])
def test_syns_through_the_router_neither_knock_nor_strike(wire, house, router, address,
                                                          nonlocal_bind):
    """Twelve strikes would end an attempt. Beside keepalived a socket binds to any address."""
    router.set(ipv4__ip_nonlocal_bind=nonlocal_bind, ipv6__ip_nonlocal_bind=nonlocal_bind)
    client = name_for(('far', 'farther')[nonlocal_bind], address)
    ports = [int(port) for port in house.shown(client, address, 'ports')]
    source, target = wire.client.addresses[':' in address], elsewhere(
        address, 2 + nonlocal_bind)
    before = openings(house)
    for port in ports:
        wire.client.inject(carriers.syn_packet(source, target, port))
    assert stays_shut(wire, house, address, before), house.text()
    carriers.touch_all(wire.client, address, ports[:3])
    for port in range(3000, 3012):
        if port not in ports:
            wire.client.inject(carriers.syn_packet(source, target, port))
    carriers.touch_all(wire.client, address, ports[3:])
    assert house.opens(wire.client, client, address), house.text()


@contextlib.contextmanager
def neighbours(wire, address, port):
    """Somebody's ssh tries a port again and again, each second."""
    loop = 'while :; do %s -o BatchMode=yes -o ConnectTimeout=1 -o StrictHostKeyChecking=no ' \
        '-p %d nobody@%s; sleep 1; done' % (carriers.tool('ssh'), port, address)
    process = subprocess.Popen(wire.client.command('sh', '-c', loop), stdin=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env=environment())
    told = []
    reader = threading.Thread(target=lambda: told.extend(process.stderr))
    reader.start()
    try:
        yield told
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@contextlib.contextmanager
def traffic_to_elsewhere(wire, address):
    """SYNs from the client's own address through this box to another, 200 a second."""
    source, target, over = wire.client.addresses[':' in address], elsewhere(address), []

    def send_all(send):
        numbers = random.Random(5)
        while not over:
            send(carriers.syn_packet(source, target, numbers.randrange(1024, 65536)))
            threading.Event().wait(0.005)
    with wire.client.raw_sender(target) as send:
        thread = threading.Thread(target=send_all, args=[send])
        thread.start()
        try:
            yield
        finally:
            over.append(True)
            thread.join()


def test_two_clients_at_once_get_in_while_a_neighbours_ssh_and_the_routers_traffic_go_on(
        wire, house, router, address):
    """All of one address: Debian's ssh against a hidden port and two closed ones; three pairs of
    Debian's knock, each pair at the same moment and slow enough to be struck out."""
    with traffic_to_elsewhere(wire, address), neighbours(wire, address, 100) as hidden, \
            neighbours(wire, address, 8022) as closed, neighbours(wire, address, 9022) as other:
        assert until(lambda: hidden and closed and other)
        for pair in zip(PAIRS[::2], PAIRS[1::2]):
            names = [name_for(name, address) for name in pair]
            both = [subprocess.Popen(wire.client.command(
                carriers.tool('knock'), '-6' if ':' in address else '-4', '-d', '300', address,
                *house.shown(name, address, 'ports'))) for name in names]
            assert [process.wait(30) for process in both] == [0, 0]
            for name in names:
                assert house.opens(wire.client, name, address), (name, house.text())
    assert all(b'onnection' in b''.join(told) for told in (hidden, closed, other))
    print('ssh tried %d times' % sum(map(len, (hidden, closed, other))))


def test_destinations_without_end_behind_the_router_leave_memory_flat(
        wire, house, router, address):
    """Somebody in the network scans the Internet through this box."""
    source = wire.stranger.addresses[':' in address]

    def scan(first, last):
        with wire.stranger.make_socket(socket.AF_INET6 if ':' in address else socket.AF_INET,
                                       socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            segment = carriers.syn_packet(source, elsewhere(address), 4000)
            segment = segment[40 if ':' in address else 20:]
            for number in range(first, last):
                target = elsewhere(address, number)
                sender.sendto(ip_packet(source, target, 6, segment), (target, 0))
                if number % 150 == 0:
                    threading.Event().wait(150 / BELOW_BUDGET)
    scan(300, 8000)
    house.settle(wire.client, address)
    memory = carriers.resident(house)
    scan(8000, 24000)
    house.settle(wire.client, address)
    grown = carriers.resident(house) - memory
    print('%d kB more after another 16,000 destinations' % grown)
    assert grown < 800
