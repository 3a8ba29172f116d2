"""The daemon ends in the middle: openings end on time, what is hidden stays hidden."""

import time

import pytest
from network import CLOSED, HIDDEN, accept, alive, until

pytestmark = pytest.mark.kernel


def open_both(wire, knockd, *options):
    """Opens HIDDEN over both families."""
    for address in wire.server.addresses:
        done = wire.client.knock('--open', 'tcp/2222', *(options + (knockd.uri('anna', address),)))
        assert done.code == 0, done.err + knockd.text()


def open_to(wire, member):
    """The server's addresses at which a member of the wire can reach HIDDEN."""
    return [address for address in wire.server.addresses if member.connects(address)]


def test_the_port_closes_on_time_without_the_daemon(wire, daemon):
    knockd = daemon(anna='')
    open_both(wire, knockd, '--for', '2')
    opened = time.monotonic()
    knockd.kill()
    assert len(open_to(wire, wire.client)) == 2, 'a dead daemon takes nothing away either'
    assert until(lambda: not open_to(wire, wire.client), 10)
    assert 1 < time.monotonic() - opened < 2.5


def test_hidden_stays_hidden_without_the_daemon(wire, daemon):
    knockd = daemon(anna='')
    knockd.kill()
    for address in wire.server.addresses:
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        assert wire.client.socket_error(address, CLOSED) is ConnectionRefusedError


def test_hidden_stays_hidden_after_an_orderly_stop(wire, daemon):
    knockd = daemon(anna='')
    assert knockd.stop() == 0
    knockd.says('stopped')
    assert open_to(wire, wire.client) == []


def test_an_opening_outlives_kill_and_restart_but_not_its_time(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '3',
                             knockd.uri('anna', address)).code == 0
    opened = time.monotonic()
    knockd.kill()
    knockd.start()
    assert not wire.stranger.connects(address)
    assert until(lambda: not wire.client.connects(address), 10)
    assert time.monotonic() - opened < 3.5


def test_hidden_while_the_daemon_restarts(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    before = knockd.count('ready: ')
    knockd.kill()
    knockd.launch()
    tried = 0
    while knockd.count('ready: ') == before:
        assert not wire.client.connects(address)
        tried += 1
    assert tried > 10


def test_a_restarted_daemon_opens_again(wire, daemon):
    knockd = daemon(anna='')
    knockd.kill()
    knockd.start()
    open_both(wire, knockd)
    assert len(open_to(wire, wire.client)) == 2


def test_established_connections_live_on_when_the_daemon_is_killed(wire, services, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    wire.client.send(knockd.datagram('anna', seconds=1), address)
    with until(lambda: wire.client.connection(address, HIDDEN), 5) as connection, \
            accept(services[HIDDEN], connection) as end:
        knockd.kill()
        assert until(lambda: not wire.client.connects(address), 5)
        assert alive(connection, end)
        knockd.start()
        assert alive(connection, end)


def test_a_second_daemon_beside_the_first_ends(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    second = knockd.do('run', timeout=10)
    assert second.code == 1
    assert second.err.count('\n') == 1 and second.err.startswith('knockd: ')
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0
