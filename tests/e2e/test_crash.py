"""The daemon ends in the middle: openings end on time, what is hidden stays hidden."""

import time

from network import CLOSED, HIDDEN, accept, alive, until


def test_the_port_closes_on_time_without_the_daemon(wire, daemon, address):
    knockd = daemon(anna='')
    assert wire.client.knock('--open', 'tcp/2222', '--for', '2',
                             knockd.uri('anna', address)).code == 0
    opened = time.monotonic()
    knockd.kill()
    assert wire.client.connects(address), 'a dead daemon takes nothing away either'
    assert until(lambda: not wire.client.connects(address), 10)
    assert 1 < time.monotonic() - opened < 2.5


def test_hidden_stays_hidden_without_the_daemon(wire, daemon, address):
    knockd = daemon(anna='')
    knockd.kill()
    assert not wire.client.connects(address)
    assert wire.client.socket_error(address, HIDDEN) == wire.client.socket_error(address, CLOSED)


def test_hidden_stays_hidden_after_an_orderly_stop(wire, daemon, address):
    knockd = daemon(anna='')
    assert knockd.stop() == 0
    knockd.says('stopped')
    assert not wire.client.connects(address)


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


def test_a_restarted_daemon_opens_again(wire, daemon, address):
    knockd = daemon(anna='')
    knockd.kill()
    knockd.start()
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0
    assert wire.client.connects(address)


def test_established_connections_live_on_when_the_daemon_is_killed(wire, services, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '1',
                             knockd.uri('anna', address)).code == 0
    with wire.client.connection(address, HIDDEN) as connection, \
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
