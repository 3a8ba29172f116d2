"""status and list, on_open and on_close, and what the daemon tells systemd."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time

import pytest
from network import KNOCKD, environment, until

HOOKS = '\n'.join('on_%s = /bin/sh -c \'echo %s $KNOCK_CLIENT $KNOCK_SOURCE $KNOCK_PORTS '
                  '$KNOCK_SECONDS\'' % (name, name) for name in ('open', 'close'))


def open_for(wire, knockd, name, seconds, services='tcp/2222'):
    done = wire.client.knock('--for', str(seconds), '--open', services,
                             knockd.uri(name, wire.server.addresses[0]))
    assert done.code == 0, done.err + knockd.text()


# --- on_open, on_close --------------------------------------------------------------------------
def test_on_open_and_on_close_learn_who_and_what(wire, daemon):
    knockd = daemon(HOOKS, anna='allow = tcp/2222, tcp/2229')
    open_for(wire, knockd, 'anna', 60, 'tcp/2222,tcp/2229')
    knockd.says('action on_open: open anna 10.9.0.2 tcp/2222,tcp/2229 60')
    wire.client.send(knockd.datagram('anna', op='close'), wire.server.addresses[0])
    knockd.says('action on_close: close anna 10.9.0.2 tcp/2222,tcp/2229 0')
    knockd.settle(wire.client)
    assert knockd.count('on_open: ') == knockd.count('on_close: ') == 1


def test_on_close_comes_when_the_kernel_closes(wire, daemon):
    knockd = daemon(HOOKS, anna='')
    open_for(wire, knockd, 'anna', 2)
    assert not knockd.count('on_close: ')
    assert until(lambda: knockd.count('on_close: close anna 10.9.0.2 tcp/2222 0'), 4)
    assert not wire.client.connects(wire.server.addresses[0])


def test_on_close_comes_once_for_an_opening_that_was_extended(wire, daemon):
    knockd = daemon(HOOKS, anna='')
    for seconds in (2, 3):
        wire.client.send(knockd.datagram('anna', seconds=seconds), wire.server.addresses[0])
    knockd.says('on_open: open anna', 2)
    knockd.says('on_close: close anna')
    assert not wire.client.connects(wire.server.addresses[0])
    knockd.settle(wire.client)
    assert knockd.count('on_close: ') == 1


def test_on_close_comes_when_the_client_is_revoked(wire, daemon):
    knockd = daemon(HOOKS, anna='', bert='')
    open_for(wire, knockd, 'bert', 60)
    assert knockd.do('remove', 'bert').code == 0
    knockd.says('on_close: close bert 10.9.0.2 tcp/2222 0')


def test_a_hook_that_fails_or_hangs_delays_no_opening(wire, daemon):
    knockd = daemon('on_open = /bin/sh -c "sleep 20"\non_close = /nonexistent', anna='')
    open_for(wire, knockd, 'anna', 60)
    assert wire.client.connects(wire.server.addresses[0])
    wire.client.send(knockd.datagram('anna', op='close'), wire.server.addresses[0])
    knockd.says('action on_close: /nonexistent: No such file')


# --- status -------------------------------------------------------------------------------------
def test_status_tells_what_is_open_who_knocked_and_what_was_refused(wire, daemon):
    knockd = daemon(anna='', bert='')
    open_for(wire, knockd, 'anna', 60)
    wire.client.send(knockd.datagram('bert', open='tcp/25'), wire.server.addresses[0])
    knockd.says('refused bert')
    said = knockd.do('status')
    assert said.code == 0, said.err
    assert re.match(r'hidden: tcp/2222, tcp/2229, udp/5182; knockd \S+, since 20\d\d-\d\d-\d\d '
                    r'\d\d:\d\d UTC\n', said.out)
    assert re.search(r'^anna +10\.9\.0\.2 +tcp/2222 +(60|5\d) s$', said.out, re.M)
    assert re.search(r'^anna +tcp/2222 .* \d s ago from 10\.9\.0\.2$', said.out, re.M)
    assert re.search(r'^bert +tcp/2222 .* never$', said.out, re.M)
    assert re.search(r'^bert +10\.9\.0\.2 +1 +\d s ago +not allowed tcp/25$', said.out, re.M)
    listed = knockd.do('list').out.splitlines()
    assert re.match('CLIENT +ALLOW +CODE +PAPER +KEY +EXPIRES +LAST KNOCK$', listed[0])
    assert len({line.index('tcp/') for line in listed[1:]}) == 1, 'the columns line up'


def test_it_is_found_from_another_network_namespace_and_another_daemon_holds_nobody_up(
        wire, daemon, tmp_path):
    """As with `ip netns exec`, where /run is the same and the names of sockets are not."""
    knockd = daemon(anna='')
    argv = ('unshare', '-n', sys.executable, KNOCKD, '--config')
    done = wire.server.run(*argv, knockd.config, 'status')
    assert done.code == 0 and done.out.startswith('hidden: tcp/2222'), done
    assert '.sock.' not in wire.server.must('ls', '/run/knockd'), 'nothing is left behind'
    other = tmp_path / 'other.ini'
    other.write_text('[server]\nid = other\nhide = tcp/22\n')
    other.chmod(0o600)
    began = time.monotonic()
    done = wire.server.run(*argv, str(other), 'status')
    assert done.code == 1 and done.out.startswith('no daemon answers')
    assert time.monotonic() - began < 8, 'ten seconds is what a dead one may take'


def test_status_for_programs_is_json(wire, daemon):
    knockd = daemon(anna='')
    open_for(wire, knockd, 'anna', 60)
    told = json.loads(knockd.do('status', '--json').out)
    assert told['alive'] is True and told['clock'] is None and 'anna' in told['clients']
    opening, = told['openings']
    assert 50 < opening.pop('seconds_left') <= 60
    assert opening == {'client': 'anna', 'source': '10.9.0.2/32', 'services': ['tcp/2222'],
                       'only': []}
    assert told['clients']['anna']['source'] == '10.9.0.2' and told['counts']['open'] == 1
    assert told['problem'] is None and told['warnings'] == []


def test_status_counts_junk(wire, daemon):
    knockd = daemon(anna='')
    payload = bytearray(knockd.datagram('anna'))
    payload[-1] ^= 1
    wire.client.send(bytes(payload), wire.server.addresses[0])
    assert until(lambda: json.loads(knockd.do('status', '--json').out)['counts'].get('junk'))


def test_the_last_knock_outlives_the_daemon(wire, daemon):
    knockd = daemon(anna='')
    open_for(wire, knockd, 'anna', 60)
    knockd.kill()
    said = knockd.do('status')
    assert said.code == 1 and said.out.startswith('no daemon answers in /run/knockd: ')
    told = json.loads(knockd.do('status', '--json').out)
    assert told['alive'] is False and list(told['clients']) == ['fence', 'anna']
    assert re.search(r'^anna .* \d+ s ago$', knockd.do('list').out, re.M)
    knockd.start()
    assert knockd.do('status').code == 0, 'the socket that the dead daemon left is replaced'


def test_an_edit_of_a_config_that_the_daemon_does_not_take_is_told(wire, daemon):
    knockd = daemon(anna='')
    with open(knockd.config) as file:
        text = file.read()
    with open(knockd.config, 'w') as file:
        file.write(text.replace('id = ' + knockd.server_id, 'id = other'))
    done = knockd.do('add', 'bert')
    assert done.code == 0 and 'note: the daemon goes on with the config of before' in done.err


def test_status_agrees_with_check_selftest_and_run(wire, daemon):
    knockd = daemon(anna='expires = 2020-01-01')
    warning = '%s: [client anna] expires: over since 2020-01-02 00:00 UTC' % knockd.config
    knockd.says('check: ' + warning)
    assert warning in knockd.do('check').out and warning in knockd.do('status').out
    assert [line for line in json.loads(knockd.do('status', '--json').out)['warnings']
            if warning in line]
    assert 'ok, but: ' + warning in knockd.do('selftest').out
    assert knockd.do('check', '--strict').code == 2


def test_ps_calls_the_daemon_by_its_name(wire, daemon):
    knockd = daemon(anna='')
    with open('/proc/%d/comm' % knockd.process.pid) as name:
        assert name.read() == 'knockd\n'
    with open('/proc/%d/cmdline' % knockd.process.pid) as line:
        words = line.read().split('\0')
    assert re.match(r'/run/knockd/knockd-\w+\.pyc$', words[-5])
    assert words[-4:] == ['--config', knockd.config, 'run', '']


def test_the_socket_is_closed_to_others(wire, daemon):
    knockd = daemon(anna='')
    path = '/proc/%d/root/run/knockd/%s.sock' % (knockd.process.pid, knockd.server_id)
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_without_run_the_daemon_guards_all_the_same(wire, daemon):
    wire.server.must('sh', '-c', 'rm -rf /run/knockd; touch /run/knockd')
    try:
        knockd = daemon(anna='')
        knockd.says('status: /run/knockd/')
        open_for(wire, knockd, 'anna', 60)
        assert knockd.do('add', 'bert').code == 0
    finally:
        wire.server.must('rm', '-rf', '/run/knockd')


# --- systemd ------------------------------------------------------------------------------------
@pytest.fixture
def notified(wire, tmp_path):
    """The socket on which systemd would listen; an abstract one lives in the server's namespace."""
    with wire.server.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        yield listener


@pytest.mark.parametrize('abstract', (False, True), ids=('path', 'abstract'))
def test_systemd_is_told_of_readiness_openings_and_life(wire, daemon, notified, tmp_path, abstract):
    name = '@knockd-%s' % os.urandom(4).hex() if abstract else str(tmp_path / 'notify')
    notified.bind(name.replace('@', '\0'))
    knockd = daemon(anna='')
    knockd.kill()
    with open(knockd.log, 'ab') as log:
        knockd.process = subprocess.Popen(wire.server.command(
            'env', 'NOTIFY_SOCKET=' + name, 'WATCHDOG_USEC=1000000', sys.executable, KNOCKD,
            '--config', knockd.config, 'run'), stderr=log, env=environment())
    assert notified.recv(100) == b'READY=1'
    knockd.says('ready: ', 2)
    notified.settimeout(0.9)
    for _ in range(3):
        assert notified.recv(100) == b'WATCHDOG=1\nSTATUS=0 openings', 'twice as often as it must'
    open_for(wire, knockd, 'anna', 60)
    assert until(lambda: notified.recv(100) == b'WATCHDOG=1\nSTATUS=1 openings')


def test_two_capabilities_are_all_it_needs(wire, daemon):
    """As the unit has it: root without any other."""
    knockd = daemon(HOOKS, anna='')
    knockd.kill()
    with open(knockd.log, 'ab') as log:
        knockd.process = subprocess.Popen(wire.server.command(
            'setpriv', '--no-new-privs', '--bounding-set=-all,+net_admin,+net_raw',
            '--inh-caps=-all', sys.executable, KNOCKD, '--config', knockd.config, 'run'),
            stderr=log, env=environment())
    knockd.says('ready: ', 2)
    with open('/proc/%d/status' % knockd.process.pid) as status:
        held = int(re.search(r'CapEff:\s+(\w+)', status.read()).group(1), 16)
    assert held == 1 << 12 | 1 << 13        # linux/capability.h: CAP_NET_ADMIN, CAP_NET_RAW
    open_for(wire, knockd, 'anna', 60)
    assert wire.client.connects(wire.server.addresses[0])
    knockd.says('on_open: open anna')
    assert knockd.do('status').code == 0
