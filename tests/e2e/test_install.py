"""One installation from beginning to end, on a box with a systemctl that does what a test needs."""

import re
import threading

import pytest
from network import HIDDEN, KNOCKD, accept, alive, until

# Reads the unit as systemd does, as far as it matters: guard, daemon, what a restart is.
SYSTEMCTL = r'''#!/bin/sh
echo "$@" >>/run/systemctl
unit=/etc/systemd/system/knockd.service
[ -s /run/pid ] && case "$*" in "restart knockd" | "disable --now knockd")
    kill "$(cat /run/pid)"
    while kill -0 "$(cat /run/pid)" 2>/dev/null; do sleep 0.05; done
    rm /run/pid ;;
esac
case "$*" in "restart knockd")
    sed -n 's/^ExecStartPre=-//p' $unit >/run/before
    sh /run/before
    sleep 0.3                           # a slow box: the guard is there, the daemon is not
    $(sed -n 's/^ExecStart=//p' $unit) >>/run/log 2>&1 </dev/null &
    echo $! >/run/pid ;;
esac
'''
TREES = ('/etc', '/usr/local')
OURS = ('/etc/knockd', '/etc/systemd/system/knockd.service', '/usr/local/sbin/knockd.py',
        '/var/lib/knockd', '/run/knockd')


@pytest.fixture
def box(wire, services, tmp_path):
    """The server with a systemd; what is written to its /etc and /usr/local is gone afterwards."""
    wire.clear()
    server = wire.server
    server.must('mount', '-t', 'tmpfs', 'tmpfs', str(tmp_path))
    for tree in TREES:
        upper, work = [str(tmp_path / (tree.replace('/', '-') + part)) for part in ('up', 'work')]
        server.must('mkdir', upper, work)
        server.must('mount', '-t', 'overlay', 'overlay', '-o',
                    'lowerdir=%s,upperdir=%s,workdir=%s' % (tree, upper, work), tree)
    server.must('rm', '-rf', '/var/lib/knockd', '/run/knockd')
    server.must('mkdir', '-p', '/run/systemd/system')
    server.must('sh', '-c', 'cat >/usr/local/sbin/systemctl; chmod 755 /usr/local/sbin/systemctl',
                stdin=SYSTEMCTL)
    yield server
    server.run('systemctl', 'disable', '--now', 'knockd')
    server.must('rm', '-rf', '/run/systemd', '/run/systemctl', '/run/log', '/run/before')
    server.must('umount', *reversed(TREES))
    server.must('umount', str(tmp_path))
    wire.clear()


def install(box, *more):
    return box.must('/usr/bin/python3', KNOCKD, 'install', '--hide', 'tcp/2222', '--client', 'me',
                    '--host', '10.9.0.1', *more)


def log(box):
    return box.must('cat', '/run/log')


def left(box):
    return [path for path in OURS if box.run('ls', '-d', path).code == 0]


def test_install_knock_connect_install_again_uninstall_and_nothing_is_left(wire, box):
    assert wire.client.connects('10.9.0.1')
    said = install(box)
    line = re.search(r'^knock://me:\S+$', said, re.M).group()
    assert until(lambda: 'ready: 1 client; hiding tcp/2222' in log(box)), log(box)
    assert not wire.client.connects('10.9.0.1')
    done = wire.client.knock(line)
    assert done.code == 0, done.err + log(box)
    assert wire.client.connects('10.9.0.1') and not wire.stranger.connects('10.9.0.1')
    assert 'open me 10.9.0.2 tcp/2222' in log(box)
    assert box.must('/usr/local/sbin/knockd.py', 'status').startswith('alive;')

    assert 'knock://' not in install(box), 'what is there stays'
    assert until(lambda: log(box).count('ready: ') == 2), log(box)
    assert wire.client.knock(line).code == 0
    assert sorted(left(box)) == sorted(OURS)

    box.must('/usr/local/sbin/knockd.py', 'uninstall')
    assert left(box) == []
    assert 'knockd' not in box.must('nft', 'list', 'ruleset')
    assert box.run('test', '-e', '/run/pid').code, 'it was stopped'
    assert wire.client.connects('10.9.0.1')


def test_a_connection_that_was_there_lives_through_the_installation(wire, box, services):
    with wire.client.connection('10.9.0.1', HIDDEN) as connection:
        with accept(services[HIDDEN], connection) as end:
            connection.settimeout(5)
            installing = threading.Thread(target=install, args=(box,))
            installing.start()
            while installing.is_alive():        # also while only the guard is there
                assert alive(connection, end)
            assert until(lambda: 'ready: ' in log(box))
            assert alive(connection, end)


def test_the_guard_is_there_before_python_is(wire, box):
    """As after a boot with a broken Python: no table, and only the unit's first line runs."""
    install(box)
    assert until(lambda: 'ready: ' in log(box))
    box.must('systemctl', 'disable', '--now', 'knockd')
    box.nft('flush ruleset')
    assert wire.client.connects('10.9.0.1')
    box.must('sh', '/run/before')
    assert not wire.client.connects('10.9.0.1')


def test_no_rule_is_left_in_a_chain_of_the_box(box):
    box.nft('table inet filter {\nchain input {\ntype filter hook input priority 0; policy drop;\n'
            'tcp dport 80 accept\n}\n}\n')
    before = box.must('nft', 'list', 'ruleset')
    install(box)
    assert until(lambda: 'meta mark' in box.must('nft', 'list', 'table', 'inet', 'filter'))
    box.must('/usr/local/sbin/knockd.py', 'uninstall')
    assert box.must('nft', 'list', 'ruleset') == before


def test_a_dry_run_touches_nothing(wire, box):
    shown = install(box, '--dry-run')
    assert left(box) == [] and box.run('test', '-e', '/run/systemctl').code
    assert wire.client.connects('10.9.0.1')
    assert 'table inet knockd' in shown and '$ systemctl restart knockd' in shown


def test_what_is_secret_is_closed_to_others(box):
    install(box)
    modes = box.must('stat', '-c', '%a %n', '/etc/knockd', '/var/lib/knockd',
                     '/etc/knockd/knockd.ini', '/var/lib/knockd/ledger.json',
                     '/var/lib/knockd/guard.nft').split()[::2]
    assert modes == ['700', '700', '600', '600', '600']
