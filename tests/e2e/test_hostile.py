"""What a bad neighbour on the box itself, or a dead one, must not bring about."""

import fcntl
import os
import socket
import subprocess
import sys

import pytest
from network import HIDDEN, KNOCKD, accept, alive, environment, until

pytestmark = pytest.mark.kernel
F_SETPIPE_SZ = 1031             # linux/fcntl.h
SILENT = '''
table inet quiet {
    chain output {
        type filter hook output priority -400;
        tcp flags & rst == rst drop
    }
}
'''


def test_a_log_reader_that_hangs_stops_nothing(wire, services, daemon):
    """Its pipe is full before the daemon's first line, and nobody ever reads it."""
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    knockd.kill()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    os.write(writer, b'x' * 4096)
    knockd.process = subprocess.Popen(
        wire.server.command(sys.executable, KNOCKD, '--config', knockd.config, 'run'),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer, env=environment())
    os.close(writer)
    try:
        for _ in range(3):
            def opened():
                wire.client.send(knockd.datagram('anna', seconds=1), address)
                return until(lambda: wire.client.connects(address), 0.3)
            assert until(opened, 10), 'it waits for the reader'
            assert until(lambda: not wire.client.connects(address), 5)
        assert knockd.stop() == 0
    finally:
        os.close(reader)


def test_a_daemon_without_streams_guards(wire, services, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    knockd.kill()
    with open(knockd.ledger) as file:
        before = file.read()
    knockd.process = subprocess.Popen(
        wire.server.command('sh', '-c', 'exec "$0" "$@" <&- >&- 2>&-', sys.executable, KNOCKD,
                            '--config', knockd.config, 'run'), env=environment())

    def opened():
        wire.client.send(knockd.datagram('anna', seconds=1), address)
        return until(lambda: wire.client.connects(address), 0.3)
    assert until(opened, 10)
    with open(knockd.ledger) as file:
        assert file.read() != before
    assert os.path.getsize(knockd.ledger + '.lock') < 12, 'no log line went into it'
    assert knockd.process.poll() is None


def test_a_poisoned_environment_changes_nothing(wire, services, daemon, tmp_path):
    """Started as the service starts it, from the environment of somebody who means it badly."""
    for name in ('json', 'hmac', 'argparse', 'nft', 'sitecustomize'):
        evil = tmp_path / (name if name == 'nft' else name + '.py')
        evil.write_text('#!/bin/sh\ntouch %s/harm\n' % tmp_path if name == 'nft' else
                        'open(%r, "w")\nraise SystemExit(9)\n' % str(tmp_path / 'harm'))
        evil.chmod(0o755)
    poison = dict(PATH=str(tmp_path), PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path),
                  PYTHONSTARTUP=str(tmp_path / 'json.py'), PYTHONIOENCODING='utf-16',
                  PYTHONOPTIMIZE='2', LC_ALL='tr_TR.ISO-8859-9', LANG='xx', HOME=str(tmp_path))
    knockd = daemon(anna='')
    knockd.kill()
    with open(knockd.log, 'ab') as log:
        knockd.process = subprocess.Popen(
            wire.server.command('/usr/bin/env', *['%s=%s' % pair for pair in poison.items()] +
                                [sys.executable, '-I', KNOCKD, '--config', knockd.config, 'run']),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environment())
    knockd.says('ready: ', 2)
    wire.client.send(knockd.datagram('anna', seconds=9), wire.server.addresses[0])
    knockd.says('open anna ')
    assert wire.client.connects(wire.server.addresses[0])
    assert not (tmp_path / 'harm').exists()


def test_who_asks_for_the_status_without_an_address_gets_none_and_harms_nobody(wire, daemon):
    knockd = daemon(anna='')
    asking = ('import socket; asker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); '
              'asker.connect("/run/knockd/%s.sock"); asker.send(b"status")' % knockd.server_id)
    wire.server.must(sys.executable, '-c', asking)
    assert knockd.do('status').code == 0, knockd.text()


def test_a_connection_that_is_over_leaves_no_way_in(wire, services, daemon, address):
    """The service's end is gone and conntrack has not seen it: the same ports are not let in,
    neither by what conntrack knows nor as a connection from before the daemon."""
    wire.server.nft(SILENT)
    wire.client.nft(SILENT)
    try:
        with wire.client.connection(address, HIDDEN, source_port=45678) as connection, \
                accept(services[HIDDEN], connection) as end:
            knockd = daemon(anna='')        # takes the rules above away
            wire.server.nft(SILENT)
            assert alive(connection, end)
            for each in (connection, end):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        knockd.says('ready: ')
        wire.server.nft('delete table inet quiet')
        again = wire.client.connection(address, HIDDEN, source_port=45678)
        assert again is None
    finally:
        wire.client.nft('flush ruleset')
