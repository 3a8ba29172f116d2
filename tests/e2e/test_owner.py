"""One daemon for one network namespace, and one client's openings, hooks and time for himself."""

import json
import os
import re
import sys

import pytest
from network import Daemon, until

pytestmark = pytest.mark.kernel


def test_a_second_daemon_refuses_and_names_the_first(wire, daemon, tmp_path):
    first = daemon(anna='')
    second = Daemon(wire.server, tmp_path, anna='')
    done = second.do('run')
    assert done.code == 1
    assert re.search(r'another knockd .*: process \d+ \(.*%s' % re.escape(first.config), done.err)
    assert first.process.poll() is None
    first.kill()
    second.start()
    second.kill()


def test_no_name_that_anybody_can_take_keeps_the_daemon_from_starting(wire, daemon, tmp_path):
    """The abstract names of sockets are anybody's who is first."""
    takes = ("import socket, time; sock = socket.socket(socket.AF_UNIX);"
             " sock.bind('\\0knockd'); time.sleep(60)")
    with wire.server.start(sys.executable, '-c', takes):
        assert until(lambda: '@knockd' in wire.server.must('cat', '/proc/net/unix'), 5)
        knockd = daemon(anna='')
        second = Daemon(wire.server, tmp_path, anna='')
        for _ in range(4):
            done = second.do('run')
            assert 'process %d ' % knockd.process.pid in done.err and done.code == 1


def test_a_daemon_in_another_network_namespace_is_no_other(wire, daemon, tmp_path):
    daemon(anna='')
    elsewhere = Daemon(wire.client, tmp_path, anna='')
    try:
        elsewhere.start()
    finally:
        elsewhere.remove()


def both_open(wire, knockd, address):
    for name in ('anna', 'bert'):
        wire.client.send(knockd.datagram(name, seconds=60), address)
        knockd.says('open %s ' % name)


def test_nobody_closes_what_another_has_open(wire, daemon, address):
    knockd = daemon(anna='', bert='')
    both_open(wire, knockd, address)
    wire.client.send(knockd.datagram('bert', op='close'), address)
    knockd.says('close bert')
    assert wire.client.connects(address), 'anna, at the same address, has her hour'
    wire.client.send(knockd.datagram('anna', op='close'), address)
    knockd.says('close anna')
    assert until(lambda: not wire.client.connects(address), 1)


def test_the_longer_of_two_openings_counts(wire, daemon):
    address, knockd = wire.server.addresses[0], daemon(anna='', bert='')
    for name, seconds in (('anna', 60), ('bert', 1)):
        wire.client.send(knockd.datagram(name, seconds=seconds), address)
        knockd.says('open %s ' % name)
    assert not until(lambda: not wire.client.connects(address), 2.5)


@pytest.mark.parametrize('lines, stays', (
    ('allow = tcp/2229', False), ('expires = 2001-01-01', False), ('open_for = 5s', True)))
def test_a_reload_ends_what_a_client_may_no_longer_have(wire, daemon, lines, stays):
    address, knockd = wire.server.addresses[0], daemon(anna='', bert='')
    both_open(wire, knockd, address)
    wire.client.send(knockd.datagram('bert', op='close'), address)
    knockd.says('close bert')
    knockd.clients['anna'] = lines
    knockd.write_config()
    knockd.reload()
    assert bool(until(lambda: not wire.client.connects(address), 1)) != stays


def test_a_new_secret_ends_what_the_old_one_has_opened(wire, daemon):
    address, knockd = wire.server.addresses[0], daemon(anna='')
    wire.client.send(knockd.datagram('anna', seconds=60), address)
    assert wire.client.reaches(address)
    knockd.secrets['anna'] = os.urandom(32)
    knockd.write_config()
    knockd.reload()
    assert until(lambda: not wire.client.connects(address), 1)


def test_slow_actions_of_one_client_keep_no_command_of_another(wire, daemon, tmp_path):
    """The on_close of anna runs though bert has done all he can to keep it."""
    closed = str(tmp_path / 'closed')
    script = '/bin/sh -c "touch %s-$KNOCK_CLIENT; [ $KNOCK_CLIENT = bert ] && sleep 20"' % closed
    names = ['a%d' % number for number in range(24)]
    knockd = daemon('on_close = ' + script, anna='', bert='')
    knockd.clients['bert'] = 'may_run = ' + ', '.join(names)
    knockd.write_config()
    with open(knockd.config, 'a') as config:
        for name in names:
            config.write('[action %s]\nrun = /bin/sleep 20\n' % name)
    knockd.reload()
    address = wire.server.addresses[0]
    for name in names:
        wire.client.knock('--run', name, '--wait', '0', knockd.uri('bert', address))
    wire.client.send(knockd.datagram('anna', seconds=1), address)
    knockd.says('open anna')
    assert until(lambda: os.path.exists(closed + '-anna'), 5), knockd.text()
    assert knockd.count('not run') > 0, 'his own are limited'


def start_with_a_broken_config(knockd):
    with open(knockd.config, 'a') as config:
        config.write('[server\nnonsense\n')
    knockd.kill()
    knockd.start()
    knockd.says('the last good copy rules')


def test_a_broken_config_does_not_rule_at_a_restart(wire, daemon):
    knockd = daemon(anna='')
    start_with_a_broken_config(knockd)
    address = wire.server.addresses[0]
    assert not wire.stranger.connects(address)
    wire.client.send(knockd.datagram('anna'), address)
    assert wire.client.reaches(address)
    copy = os.path.join(os.path.dirname(knockd.ledger), 'knockd.ini.good')
    assert os.stat(copy).st_mode & 0o777 == 0o600
    knockd.write_config()
    knockd.reload()
    with open(copy) as lines:
        assert 'nonsense' not in lines.read()


def test_who_is_removed_while_no_daemon_is_there_does_not_come_back_by_the_good_copy(wire, daemon):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    removed = knockd.datagram('anna')
    knockd.kill()
    assert knockd.do('remove', 'anna').code == 0
    with open(knockd.config, 'a') as config:
        config.write('[server\nnonsense\n')
    knockd.start()
    knockd.says('the last good copy rules')
    wire.client.send(removed, address)
    wire.stranger.send(knockd.datagram('bert'), address)
    knockd.says('open bert')
    assert not knockd.count('open anna') and not wire.client.connects(address)


def test_a_client_that_was_removed_does_not_come_back_by_the_good_copy(wire, daemon):
    """To remove a client changes no rules, so nothing is loaded then."""
    knockd = daemon(anna='', bert='')
    del knockd.clients['bert']
    knockd.write_config()
    knockd.reload()
    start_with_a_broken_config(knockd)
    address = wire.server.addresses[0]
    wire.client.send(knockd.datagram('bert'), address)
    wire.client.send(knockd.datagram('fence'), address)
    knockd.says('open fence')
    assert not wire.client.connects(address) and knockd.count('open bert') == 0


def test_the_answer_to_a_reload_tells_of_the_file_as_it_is_now(wire, daemon):
    knockd = daemon(anna='')
    with open(knockd.config, 'a') as config:
        config.write('[server\nnonsense\n')
    knockd.reload('config refused')
    assert 'line' in json.loads(knockd.do('status', '--json').out)['config']['problem']
    knockd.write_config()
    knockd.reload()
    assert json.loads(knockd.do('status', '--json').out)['config']['problem'] is None


def test_without_a_good_copy_a_broken_config_is_an_error(wire, tmp_path):
    knockd = Daemon(wire.server, tmp_path, anna='')
    with open(knockd.config, 'a') as config:
        config.write('[server\nnonsense\n')
    assert knockd.do('run').code == 2
