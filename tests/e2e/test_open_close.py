"""The main job: one datagram opens a hidden port, for one address, for a while."""

import re
import time

import pytest
from network import HIDDEN, HIDDEN_TOO, HIDDEN_UDP, accept, alive, until


def opens(wire, knockd, visitor, address, *options):
    """Knocks for HIDDEN and waits until it is open."""
    done = wire.client.knock('--open', 'tcp/2222', *(options + (knockd.uri(visitor, address),)))
    assert done.code == 0, done.err + knockd.text()


def test_a_knock_opens_the_port_for_the_knocker_alone(wire, services, daemon, address):
    assert wire.client.connects(address), 'the service is there'
    knockd = daemon(anna='')
    assert not wire.client.connects(address)
    opens(wire, knockd, 'anna', address)
    assert wire.client.connects(address), 'knock.py has waited for it'
    assert not wire.stranger.connects(address)
    assert not wire.client.connects(address, HIDDEN_TOO), 'that was not asked for'


def test_an_opening_is_logged_with_who_what_and_how_long(wire, knockd, visitor, address):
    opens(wire, knockd, visitor, address, '--for', '7', '--wait', '0')
    source = wire.client.addresses[':' in address]
    assert re.match(r'.*open %s %s tcp/2222 7s udp skew [+-][01]\.\ds \d+ms$' % (visitor, source),
                    knockd.says('open %s ' % visitor))


def test_an_ipv4_knock_opens_nothing_for_ipv6(wire, knockd, visitor):
    four, six = wire.server.addresses
    opens(wire, knockd, visitor, four)
    assert wire.client.connects(four)
    assert not wire.client.connects(six)


def test_an_opening_ends_when_its_time_is_over(wire, knockd, visitor):
    start = time.monotonic()
    for address in wire.server.addresses:
        opens(wire, knockd, visitor, address, '--for', '2')
    opened = time.monotonic()
    assert until(lambda: not any(wire.client.connects(address)
                                 for address in wire.server.addresses), 10)
    assert time.monotonic() - start > 1
    assert time.monotonic() - opened < 2.5


def test_close_ends_an_opening_at_once(wire, knockd, visitor, address):
    opens(wire, knockd, visitor, address, '--for', '60')
    assert wire.client.knock('--close', knockd.uri(visitor, address)).code == 0
    line = knockd.says('close ' + visitor)
    assert until(lambda: not wire.client.connects(address), 1)
    assert re.match(r'.*close %s %s (tcp/2222|all) udp skew [+-][01]\.\ds \d+ms$'
                    % (visitor, wire.client.addresses[':' in address]), line)


def test_close_from_another_address_leaves_the_opening_alone(wire, knockd, visitor):
    address = wire.server.addresses[0]
    opens(wire, knockd, visitor, address)
    wire.stranger.knock('--close', '--wait', '0', knockd.uri(visitor, address))
    knockd.settle(wire.stranger)
    assert wire.client.connects(address)


def test_a_second_knock_prolongs_the_opening(wire, knockd, visitor):
    address = wire.server.addresses[0]
    for seconds in (1, 60):
        wire.client.send(knockd.datagram(visitor, seconds=seconds), address)
    knockd.says('open %s 10.9.0.2 tcp/2222 60s' % visitor)
    first_would_end = time.monotonic() + 1.2
    while time.monotonic() < first_would_end:
        assert wire.client.connects(address)
        time.sleep(0.05)


def test_an_established_connection_outlives_the_opening(wire, services, knockd, visitor, address):
    wire.client.send(knockd.datagram(visitor, seconds=1), address)
    with until(lambda: wire.client.connection(address, HIDDEN), 5) as connection, \
            accept(services[HIDDEN], connection) as end:
        assert until(lambda: not wire.client.connects(address), 5)
        assert alive(connection, end)


def test_an_established_connection_outlives_close(wire, services, knockd, visitor):
    address = wire.server.addresses[0]
    opens(wire, knockd, visitor, address)
    with wire.client.connection(address, HIDDEN) as connection, \
            accept(services[HIDDEN], connection) as end:
        assert wire.client.knock('--close', knockd.uri(visitor, address)).code == 0
        assert until(lambda: not wire.client.connects(address), 5)
        assert alive(connection, end)


def answering(wire, service):
    """The server's addresses at which the hidden UDP port's service gets a datagram."""
    for address in wire.server.addresses:
        wire.client.send(address.encode(), address, HIDDEN_UDP)
    service.settimeout(0.1)
    answers = set()
    try:
        while True:
            answers.add(service.recv(100).decode())
    except OSError:
        return answers & set(wire.server.addresses)


def test_a_knock_opens_a_udp_port(wire, services, knockd, visitor):
    assert answering(wire, services['udp']) == set()
    for address in wire.server.addresses:
        assert wire.client.knock('--open', 'udp/5182', '--for', '2', '--wait', '0',
                                 knockd.uri(visitor, address)).code == 0
    knockd.says('open %s ' % visitor, 2)
    assert answering(wire, services['udp']) == set(wire.server.addresses)
    assert until(lambda: not answering(wire, services['udp']), 5)


def test_one_port_of_a_hidden_range_opens_alone(wire, daemon):
    address = wire.server.addresses[0]
    with wire.server.listen(8003), wire.server.listen(8004):
        knockd = daemon('hide = tcp/8000-8010', anna='allow = tcp/8000-8010',
                        fence='allow = tcp/8000')
        assert not wire.client.connects(address, 8003)
        assert wire.client.knock('--open', 'tcp/8003', knockd.uri('anna', address)).code == 0
        assert wire.client.connects(address, 8003)
        assert not wire.client.connects(address, 8004)


def test_two_services_open_with_one_knock(wire, knockd, visitor):
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222,tcp/2229', knockd.uri(visitor, address)).code == 0
    assert wire.client.connects(address, HIDDEN)
    assert wire.client.connects(address, HIDDEN_TOO)


def test_without_open_the_default_opens(wire, knockd, visitor):
    address = wire.server.addresses[0]
    assert wire.client.knock('--wait', '0', knockd.uri(visitor, address)).code == 0
    knockd.says('open %s 10.9.0.2 tcp/2222 30s' % visitor)
    assert wire.client.reaches(address, HIDDEN)
    assert not wire.client.connects(address, HIDDEN_TOO)


@pytest.mark.parametrize('asked, given', (((), '4s'), (('--for', '60'), '5s (60s asked)')),
                         ids=('open_for', 'max_open_for'))
def test_the_server_says_how_long(wire, daemon, asked, given):
    knockd = daemon('open_for = 4s\nmax_open_for = 5s', anna='')
    opens(wire, knockd, 'anna', wire.server.addresses[0], *asked)
    knockd.says('open anna 10.9.0.2 tcp/2222 %s udp' % given)


def test_two_clients_have_their_own_openings(wire, knockd, visitor):
    address = wire.server.addresses[0]
    opens(wire, knockd, visitor, address)
    assert wire.stranger.knock('--open', 'tcp/2222', '--for', '2',
                               knockd.uri('visitor59', address)).code == 0
    assert wire.client.knock('--close', knockd.uri(visitor, address)).code == 0
    assert until(lambda: not wire.client.connects(address), 1)
    assert wire.stranger.connects(address)
    assert until(lambda: not wire.stranger.connects(address), 5)


@pytest.mark.parametrize('port', (1, 53, HIDDEN_UDP, 65535))
def test_a_knock_may_go_to_any_udp_port(wire, knockd, visitor, port):
    with wire.capture(wire.client) as capture:
        opens(wire, knockd, visitor, wire.server.addresses[0], '--port', str(port))
        assert len(capture.datagrams(port)) == 1


def test_a_hidden_port_refuses_at_once_on_an_accepting_box(wire, knockd, address):
    assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError


def test_the_box_itself_needs_no_knock(wire, knockd):
    for address in wire.server.addresses + ('127.0.0.1', '::1'):
        assert wire.server.connects(address)


def test_other_ports_are_left_alone(wire, knockd, address):
    with wire.server.listen(8080):
        assert wire.stranger.connects(address, 8080)
