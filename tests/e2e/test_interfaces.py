"""Interfaces come and go; the daemon stays and is never restarted."""

import pytest
from network import finish_checksums

pytestmark = pytest.mark.kernel
LATE = ('10.9.0.21', 'fd00:9::21')


def plug(wire):
    """A second interface of the server on the same bridge, as a PPPoE that dials again."""
    wire.hub.must('ip', 'link', 'add', 'late', 'master', 'bridge', 'up', 'type', 'veth', 'peer',
                  'name', 'late', 'netns', str(wire.server.pid))
    wire.server.must('ip', '-b', '-', stdin='link set late up\n' + ''.join(
        'addr add %s dev late nodad\n' % address for address in (
            LATE[0] + '/32', LATE[1] + '/128')))
    finish_checksums(wire.server, 'late')


def unplug(wire):
    wire.server.must('ip', 'link', 'del', 'late')
    wire.client.must('ip', 'neigh', 'flush', 'all')         # it comes back with another MAC


def opens_at(wire, knockd, addresses):
    for address in addresses:
        done = wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address))
        assert done.code == 0, done.err + knockd.text()
        assert not wire.stranger.connects(address)


def test_an_interface_that_comes_later_goes_and_comes_again(wire, daemon):
    knockd = daemon(anna='')
    pid = knockd.process.pid
    for _ in range(2):
        plug(wire)
        opens_at(wire, knockd, LATE)
        unplug(wire)
    opens_at(wire, knockd, wire.server.addresses)
    assert knockd.process.poll() is None and knockd.process.pid == pid


def test_a_daemon_that_starts_before_any_interface_is_up(wire, daemon):
    wire.server.must('ip', 'link', 'set', 'eth0', 'down')
    try:
        knockd = daemon(anna='')
    finally:
        wire.server.must('ip', 'link', 'set', 'eth0', 'up')
        wire.server.must('ip', 'addr', 'replace', wire.server.addresses[1] + '/64', 'dev', 'eth0',
                         'nodad')
    opens_at(wire, knockd, wire.server.addresses)


def test_an_interface_that_goes_down_and_up(wire, daemon):
    knockd = daemon(anna='')
    wire.server.must('ip', 'link', 'set', 'eth0', 'down')
    wire.server.must('ip', 'link', 'set', 'eth0', 'up')
    wire.server.must('ip', 'addr', 'replace', wire.server.addresses[1] + '/64', 'dev', 'eth0',
                     'nodad')
    opens_at(wire, knockd, wire.server.addresses)


def test_an_address_that_is_added_is_guarded_at_once(wire, daemon):
    knockd = daemon(anna='')
    wire.server.must('ip', 'addr', 'add', '10.9.0.22/24', 'dev', 'eth0')
    try:
        assert not wire.client.connects('10.9.0.22')
        opens_at(wire, knockd, ['10.9.0.22'])
    finally:
        wire.server.must('ip', 'addr', 'del', '10.9.0.22/24', 'dev', 'eth0')
    opens_at(wire, knockd, wire.server.addresses)
