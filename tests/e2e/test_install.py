"""One installation from beginning to end, on a box with a systemctl that does what a test needs."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import knock
import knockd
import pytest
from network import HIDDEN, KNOCK, KNOCKD, TOP, accept, alive, until

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
    sed -n 's/^ExecStartPre=-+*//p' $unit >/run/before
    sh /run/before
    sleep 0.3                           # a slow box: the guard is there, the daemon is not
    $(sed -n 's/^ExecStart=//p' $unit) >>/run/log 2>&1 </dev/null &
    echo $! >/run/pid ;;
esac
'''
TREES = ('/etc', '/usr/local')
OURS = ('/etc/knockd', '/etc/systemd/system/knockd.service', '/usr/local/sbin/knockd.py',
        '/var/lib/knockd', '/run/knockd')


@contextlib.contextmanager
def furnished(server, folder):
    """Gives it a systemd; what is written to its /etc and /usr/local is gone afterwards."""
    server.must('mount', '-t', 'tmpfs', 'tmpfs', folder)
    for tree in TREES:
        upper, work = [folder + '/' + tree.replace('/', '-') + part for part in ('up', 'work')]
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
    server.must('umount', folder)


@pytest.fixture
def box(wire, services, tmp_path):
    """The server as such a box."""
    wire.clear()
    with furnished(wire.server, str(tmp_path)) as server:
        yield server
    wire.clear()


def install(box, *more):
    return box.must('/usr/bin/python3', KNOCKD, 'install', '--hide', 'tcp/2222', '--client', 'me',
                    '--host', '10.9.0.1', *more)


def log(box):
    return box.must('cat', '/run/log')


def says(box, text, times=1):
    assert until(lambda: log(box).count(text) >= times), '%r: %s' % (text, log(box))


def line_of(said):
    return re.search(r'^knock://me:\S+$', said, re.M).group()


def left(box):
    return [path for path in OURS if box.run('ls', '-d', path).code == 0]


def test_install_knock_connect_install_again_uninstall_and_nothing_is_left(wire, box):
    assert wire.client.connects('10.9.0.1')
    said = install(box)
    line = line_of(said)
    assert re.search(r'runs as a service of systemd and hides tcp/2222\.\nIt is on probation: '
                     r'without a knock from outside within \d+ (min|s) ', said)
    assert "knock.py 'LINE' -- ssh root@10.9.0.1\n" in said and 'knockd.py uninstall' in said
    assert until(lambda: 'ready: 1 client; hiding tcp/2222' in log(box)), log(box)
    assert not wire.client.connects('10.9.0.1')
    done = wire.client.knock(line)
    assert done.code == 0, done.err + log(box)
    assert wire.client.connects('10.9.0.1') and not wire.stranger.connects('10.9.0.1')
    assert 'open me 10.9.0.2 tcp/2222' in log(box)
    assert box.must('/usr/local/sbin/knockd.py', 'status').startswith('hidden: tcp/2222; knockd ')

    assert 'knock://' not in install(box), 'what is there stays'
    assert until(lambda: log(box).count('ready: ') == 2), log(box)
    assert wire.client.knock(line).code == 0
    assert sorted(left(box)) == sorted(OURS)

    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
    assert left(box) == []
    assert 'knockd' not in box.must('nft', 'list', 'ruleset')
    assert box.run('test', '-e', '/run/pid').code, 'it was stopped'
    assert wire.client.connects('10.9.0.1')


def test_under_sysv_a_killed_daemon_is_started_again_and_a_stop_ends_all_of_it(wire, box):
    """With Debian's own update-rc.d; a logger that writes where the test can read."""
    box.must('rm', '-r', '/run/systemd')
    box.must('sh', '-c', 'rm -f /etc/rc?.d/*knockd /etc/init.d/knockd; touch /etc/inittab; '
             'cat >/usr/local/sbin/logger; chmod 755 /usr/local/sbin/logger',
             stdin='#!/bin/sh\ncat >>/run/log\n')
    try:
        line = line_of(install(box))
        says(box, 'ready: ')
        assert wire.client.knock(line).code == 0
        links = box.must('sh', '-c', 'cd /etc; ls rc?.d/*knockd').split()
        assert links and all(link.startswith('rcS.d/S') for link in links)

        group = box.must('cat', '/run/knockd.pid').strip()
        box.must('sh', '-c', 'kill -9 "$(pgrep -g %s -f "[ ]run$" | tail -1)"' % group)
        says(box, 'ready: ', 2)
        assert wire.client.knock(line).code == 0, 'it opens as before'
        install(box)
        says(box, 'ready: ', 3)
        assert box.run('pgrep', '-g', group).code, 'nothing of the first is left'

        group = box.must('cat', '/run/knockd.pid').strip()
        assert box.run('/etc/init.d/knockd', 'stop').code == 0
        assert box.run('pgrep', '-g', group).code and not wire.stranger.connects('10.9.0.1')
        assert log(box).count('stopped; ') == 2
        assert box.run('/etc/init.d/knockd', 'stop').code == 0, 'a second time, too'
        assert box.run('/etc/init.d/knockd', 'reload').code == 3
        box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
        assert left(box) == [] and wire.client.connects('10.9.0.1')
        assert box.run('sh', '-c', 'ls /etc/init.d/knockd /etc/rc?.d/*knockd').code
    finally:
        box.run('/etc/init.d/knockd', 'stop')


def test_a_dry_run_of_uninstall_shows_all_and_takes_nothing_away(wire, box):
    install(box)
    says(box, 'ready: ')
    shown = box.must('/usr/local/sbin/knockd.py', 'uninstall', '--dry-run')
    assert '$ systemctl disable --now knockd\n' in shown
    assert 'remove /etc/systemd/system/knockd.service\n' in shown
    assert sorted(left(box)) == sorted(OURS) and not wire.client.connects('10.9.0.1')


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


REFLECT = ['/proc/sys/net/%s/fwmark_reflect' % family for family in ('ipv4', 'ipv6')]


def test_the_guard_is_there_before_python_is(wire, box):
    """As after a boot with a broken Python: no table, and only the unit's first lines run."""
    line = line_of(install(box))
    says(box, 'ready: ')
    assert wire.client.knock(line).code == 0, 'no guard before a first knock'
    says(box, 'probation: passed')
    assert until(lambda: 'table inet knockd' in box.must('cat', '/var/lib/knockd/guard'))
    box.must('systemctl', 'disable', '--now', 'knockd')
    box.nft('flush ruleset')
    for path in REFLECT:
        box.must('sh', '-c', 'echo 0 >' + path)
    assert wire.client.connects('10.9.0.1')
    box.must('sh', '/run/before')
    assert not wire.client.connects('10.9.0.1')
    # Without these a reset leaves from the decoy's port.
    assert box.must('cat', *REFLECT) == '1\n1\n'


def test_no_rule_is_left_in_a_chain_of_the_box(box):
    box.nft('table inet filter {\nchain input {\ntype filter hook input priority 0; policy drop;\n'
            'tcp dport 80 accept\n}\n}\n')
    before = box.must('nft', 'list', 'ruleset')
    install(box)
    assert until(lambda: 'meta mark' in box.must('nft', 'list', 'table', 'inet', 'filter'))
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
    assert box.must('nft', 'list', 'ruleset') == before


def test_a_dry_run_touches_nothing(wire, box):
    shown = install(box, '--dry-run')
    assert left(box) == [] and box.run('test', '-e', '/run/systemctl').code
    assert wire.client.connects('10.9.0.1')
    assert 'write /etc/knockd/knockd.ini (mode 600)\n' in shown
    assert '$ systemctl restart knockd\n' in shown


def test_what_is_secret_is_closed_to_others(box):
    install(box)
    modes = box.must('stat', '-c', '%a %n', '/etc/knockd', '/var/lib/knockd',
                     '/etc/knockd/knockd.ini', '/var/lib/knockd/ledger.json',
                     '/var/lib/knockd/guard').split()[::2]
    assert modes == ['700', '700', '600', '600', '600']


def test_nobody_knocks_so_nothing_is_hidden_and_a_later_knock_hides_for_good(wire, box):
    before = box.must('nft', 'list', 'ruleset')
    line = line_of(install(box, '--probation', '2s'))
    says(box, 'ready: 1 client; hiding tcp/2222')
    assert not wire.client.connects('10.9.0.1')
    says(box, 'probation: no authentic knock came from outside')
    assert wire.client.reaches('10.9.0.1') and box.must('nft', 'list', 'ruleset') == before

    box.must('systemctl', 'restart', 'knockd')
    says(box, 'ready: ', 2)
    assert wire.client.connects('10.9.0.1') and box.must('nft', 'list', 'ruleset') == before
    told = box.run('/usr/local/sbin/knockd.py', 'status')
    assert told.code == 1 and told.out.startswith('NOT HIDDEN: the probation lapsed')

    wire.client.knock(line, '--wait', '0')
    says(box, 'probation: passed')
    assert until(lambda: not wire.stranger.connects('10.9.0.1'))
    assert wire.client.reaches('10.9.0.1'), 'and his knock was honoured'
    box.must('systemctl', 'restart', 'knockd')
    says(box, 'ready: 1 client; hiding tcp/2222', 2)
    assert not wire.stranger.connects('10.9.0.1')


def test_the_first_knock_from_outside_ends_the_probation_and_one_of_the_box_itself_does_not(
        wire, box):
    line = line_of(install(box, '--probation', '12s'))
    end = time.monotonic() + 12.2
    says(box, 'on probation: ')
    assert box.knock(line).code == 0
    says(box, 'open me 10.9.0.1 ')
    assert 'passed' not in log(box)
    assert 'probation: ' in box.must('/usr/local/sbin/knockd.py', 'status')
    assert wire.client.knock(line).code == 0
    says(box, 'probation: passed')
    assert 'probation' not in box.must('/usr/local/sbin/knockd.py', 'status')
    assert until(lambda: time.monotonic() > end, 20)
    assert not wire.stranger.connects('10.9.0.1') and 'no authentic knock' not in log(box)
    assert 'probation' not in box.must('cat', '/var/lib/knockd/guard')


def test_a_restart_does_not_prolong_the_probation(wire, box):
    install(box, '--probation', '8s')
    begun = time.monotonic()
    says(box, 'on probation: ')
    assert until(lambda: time.monotonic() > begun + 2)
    box.must('systemctl', 'restart', 'knockd')
    says(box, 'ready: 1 client; hiding tcp/2222', 2)
    says(box, 'probation: no authentic knock came from outside')
    assert 6 < time.monotonic() - begun < 9.9, 'not 8 s after the restart'


def test_uninstall_leaves_the_files_and_the_rules_of_before(wire, box):
    def state():
        found = box.run('find', '/etc', '/usr/local', '/var/lib', '/run', '-newer', '/run/mark',
                         '!', '-path', '/run/systemctl', '!', '-path', '/run/log', '!', '-path',
                         '/run/before', '!', '-type', 'd').out
        rules = [box.run(name).out for name in ('iptables-save', 'ip6tables-save')]
        return found, box.must('nft', 'list', 'ruleset'), rules
    box.must('touch', '/run/mark')
    before = state()
    line = line_of(install(box))
    says(box, 'ready: ')
    assert wire.client.knock(line).code == 0
    assert state() != before
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
    box.must('rm', '-f', '/run/xtables.lock')       # iptables-save makes it, and so does the unit
    assert state() == before
    assert left(box) == []


def test_without_a_firewall_tool_the_package_manager_brings_one(wire, box):
    """nft and iptables are covered up; an apt-get that uncovers nft stands for the real one."""
    nft, iptables = ['/usr/sbin/' + name for name in ('nft', 'iptables')]
    box.must('sh', '-c', 'cat >/usr/local/sbin/apt-get; chmod 755 /usr/local/sbin/apt-get; '
             ': >/run/cover',
             stdin='#!/bin/sh\necho "$@" >>/run/apt\n[ "$1" = update ] || umount ' + nft)
    box.must('mount', '--bind', '/run/cover', nft)
    box.must('mount', '--bind', '/run/cover', os.path.realpath(iptables))
    try:
        shown = install(box, '--dry-run')
        assert '$ apt-get update && apt-get install -y nftables\n' in shown
        assert box.run('cat', '/run/apt').code
        assert '$ apt-get update && apt-get install -y nftables\n' in install(box)
        assert box.must('cat', '/run/apt') == 'update\ninstall -y nftables\n'
        says(box, 'ready: ')
        assert not wire.client.connects('10.9.0.1')
    finally:
        box.run('umount', nft)
        box.must('umount', os.path.realpath(iptables))
        box.must('rm', '-f', '/run/apt', '/run/cover')


def test_where_iptables_is_there_no_package_is_brought(box):
    nft = '/usr/sbin/nft'
    box.must('sh', '-c', ': >/run/cover')
    box.must('mount', '--bind', '/run/cover', nft)
    try:
        assert not re.search(r'(?m)^\$ .*nftables$', install(box, '--dry-run'))
    finally:
        box.must('umount', nft)
        box.must('rm', '-f', '/run/cover')


def test_the_file_that_iptables_locks_is_there_before_the_sandbox_is(box):
    """systemd makes writable what is there: the unit's first line, outside of it, makes it."""
    box.must('rm', '-f', '/run/xtables.lock')
    install(box)
    says(box, 'ready: ')
    assert box.run('test', '-f', '/run/xtables.lock').code == 0


def test_a_hung_loop_tells_the_watchdog_nothing(wire, daemon, tmp_path):
    """systemd kills and restarts what has said nothing for WatchdogSec; this is the silence."""
    knockd = daemon()
    knockd.kill()
    with wire.server.make_socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / 'notify'))
        notified.settimeout(2)
        with wire.server.start('env', 'NOTIFY_SOCKET=%s' % (tmp_path / 'notify'),
                               'WATCHDOG_USEC=400000', sys.executable, KNOCKD, '--config',
                               knockd.config, 'run') as process:
            assert notified.recv(100) == b'READY=1'
            assert notified.recv(100).startswith(b'WATCHDOG=1')
            process.send_signal(signal.SIGSTOP)
            notified.settimeout(0.8)
            with pytest.raises(socket.timeout):
                for _ in range(20):             # what was on its way, then nothing
                    notified.recv(100)
            process.send_signal(signal.SIGCONT)
            notified.settimeout(2)
            assert notified.recv(100).startswith(b'WATCHDOG=1')


# --- a first try, a failure, an upgrade ---------------------------------------------------------
def test_install_takes_over_from_a_first_try(wire, box):
    """Nobody gets in between the end of the one and the start of the other."""
    line = 'knock://me:'
    with box.start('/usr/bin/python3', KNOCKD, 'run', '--hide', 'tcp/2222', '--client', 'me',
                   '--host', '10.9.0.1') as trial:
        assert until(lambda: not wire.stranger.connects('10.9.0.1')), 'it hides'
        done = box.run('/usr/bin/python3', KNOCKD, 'install')
        assert done.code == 0, done.err
        assert 'the first try (process %d) ends' % trial.pid in done.err
        assert trial.wait(5) == 0
    says(box, 'ready: 1 client; hiding tcp/2222')
    line = box.must('/usr/local/sbin/knockd.py', 'show', 'me').strip()
    assert not wire.stranger.connects('10.9.0.1') and wire.client.knock(line).code == 0


def test_a_config_with_clients_and_no_ledger_is_a_lost_one_and_install_says_so(wire, box):
    """Nobody knows what was honoured with it: an empty one would make old knocks good again."""
    config = ('[server]\nid = x\nhide = tcp/2222\nhost = 10.9.0.1\nwindow = 1s\n[client me]\n'
              'secret = %s\n' % knockd.encode_secret(bytes(range(32))))
    box.must('sh', '-c', 'umask 077; mkdir /etc/knockd; cat >/etc/knockd/knockd.ini', stdin=config)
    done = box.run('/usr/bin/python3', KNOCKD, 'install')
    assert done.code == 0 and 'note: the ledger was lost; no knock counts before ' in done.err
    line = box.must('/usr/local/sbin/knockd.py', 'show', 'me').strip()
    assert wire.client.knock(line, '--wait', '9').code == 0, 'its end comes soon'
    done = box.run('/usr/bin/python3', KNOCKD, 'install')
    assert done.code == 0 and 'ledger' not in done.err


def test_a_service_that_does_not_get_ready_is_told_with_its_log_and_all_is_taken_back(box):
    box.must('sh', '-c', 'cat >/usr/local/sbin/systemctl', stdin="""#!/bin/sh
        [ "$*" = 'restart knockd' ] && { echo 'Job for knockd.service failed.' >&2; exit 1; }
        exit 0""")
    box.must('sh', '-c', 'cat >/usr/local/sbin/journalctl; chmod 755 /usr/local/sbin/journalctl',
             stdin='#!/bin/sh\necho the reason')
    done = box.run('/usr/bin/python3', KNOCKD, 'install', '--hide', 'tcp/2222', '--client', 'me',
                   '--host', '10.9.0.1')
    assert done.code == 1 and left(box) == [], done.out
    lines = done.err.splitlines()
    assert 'knockd: sh -c systemctl restart knockd failed (1): Job for knockd.service failed.' \
        in lines and lines[-2:] == ['knockd: its log ends:', 'knockd: the reason']


def test_rules_that_the_kernel_refuses_are_told_before_anything_is_written(box):
    """An nft that knows no fib stands for a kernel without it."""
    nft = os.path.realpath('/usr/sbin/nft')
    put = 'cp %s /run/nft; cat >/run/fake; chmod 755 /run/fake' % nft
    box.must('sh', '-c', put, stdin="""#!/bin/sh
        case "$*" in *"-f -") ;; *) exec /run/nft "$@";; esac
        text=$(cat)
        case $text in *'fib daddr'*) echo 'Error: No such file or directory' >&2; exit 1;; esac
        printf '%s\\n' "$text" | exec /run/nft "$@"
        """)
    box.must('mount', '--bind', '/run/fake', nft)
    try:
        done = box.run('/usr/bin/python3', KNOCKD, 'install', '--hide', 'tcp/2222', '--client',
                       'me', '--host', '10.9.0.1')
    finally:
        box.must('umount', nft)
        box.must('rm', '-f', '/run/nft', '/run/fake')
    assert done.code == 2, done.out
    assert 'nft: fib, which needs nft_fib_inet (OpenWrt: kmod-nft-fib)' in done.err
    assert left(box) in ([], ['/run/knockd'])


def old_files(box, guard):
    """What version 0.1 left: config, ledger of a knock, guard; a secret and its key."""
    secret = os.urandom(32)
    fingerprint = knockd.fingerprint(knockd.derive_keys(secret, 'old'))
    box.must('mkdir', '-p', '-m', '700', '/etc/knockd', '/var/lib/knockd')
    spent = {'00' * 16: int(time.time() * 1000)}
    ledger = {'knockd': 1, 'id': 'old', 'floor': 0, 'keys': {fingerprint: {
        'floor': 0, 'spent': spent, 'paper': [0, 0]}}}
    for path, text in (
            ('/etc/knockd/knockd.ini', '[server]\nid = old\nhide = tcp/2222\nhost = 10.9.0.1\n'
             'ledger = /var/lib/knockd/ledger.json\n[client me]\nsecret = %s\n'
             % knockd.encode_secret(secret)),
            ('/var/lib/knockd/ledger.json', json.dumps(ledger)),
            ('/var/lib/knockd/ledger.json.ballast', 'x' * 65536),
            ('/var/lib/knockd/guard', guard)):
        box.must('sh', '-c', 'umask 077; cat >' + path, stdin=text)
    return 'knock://me:%s@10.9.0.1?id=old' % knockd.encode_secret(secret), fingerprint


@pytest.mark.parametrize('guard,probation', [
    ('# For a boot without Python or a config.\nnft list table inet knockd\n', False),
    ('# not yet made\n', False), ('# on probation: 300000 ms left, 5 ms after the boot\n', True)],
    ids=['passed', 'not yet made', 'on probation'])
def test_an_upgrade_from_0_1_locks_nobody_out_and_forgets_no_knock(wire, box, guard, probation):
    line, fingerprint = old_files(box, guard)
    said = box.must('/usr/bin/python3', KNOCKD, 'install')
    assert ('on probation' in said) == probation
    says(box, 'ready: 1 client; hiding tcp/2222')
    assert 'quarantine' not in log(box)
    assert not wire.client.connects('10.9.0.1') and wire.client.knock(line).code == 0
    first = json.loads(box.must('head', '-n', '1', '/var/lib/knockd/ledger.json'))
    assert first['knockd'] == 2 and '00' * 16 in first['keys'][fingerprint]['spent']
    assert box.run('ls', '/var/lib/knockd/ledger.json.ballast').code, 'it is no longer needed'


# --- the real 0.1 ---------------------------------------------------------------------------------
OLD = '442555f'         # the commit that was 0.1
DROPPING = '''
    table inet filter {
        chain input {
            type filter hook input priority 0; policy drop;
            ct state established,related accept
            meta l4proto ipv6-icmp accept
        }
    }
'''


@pytest.fixture
def old(tmp_path_factory):
    """The folder of 0.1's two scripts, out of this repository's history."""
    folder = tmp_path_factory.mktemp('old')
    for name in ('knockd.py', 'knock.py'):
        (folder / name).write_bytes(subprocess.check_output(
            ['git', '-C', TOP, 'show', '%s:%s' % (OLD, name)]))
    return folder


def chains(text):
    return set(re.findall(r'^\s*chain (\S+) \{', text, re.M))


@pytest.mark.kernel
@pytest.mark.parametrize('rules', ['', DROPPING], ids=['accepting', 'dropping'])
def test_0_1_that_runs_and_was_knocked_at_is_upgraded_without_a_hole(
        wire, box, old, services, rules):
    """Nobody is locked out, no knock counts twice, no stranger gets in meanwhile."""
    box.nft(rules or 'flush ruleset')
    said = box.must('/usr/bin/python3', str(old / 'knockd.py'), 'install', '--hide', 'tcp/2222',
                    '--client', 'me', '--host', '10.9.0.1')
    says(box, 'ready: ')
    line = line_of(said)
    secret, server_id = re.match('knock://me:(.*)@10.9.0.1[?]id=([^&]*)', line).groups()
    keys = knock.derive_keys(knock.decode_secret(secret), server_id)
    now = int(time.time() * 1000)
    request = knock.Request('open', now, None, 0, (), None, None, b'')
    datagram = knock.seal(keys, os.urandom(16), knock.encode_plain(request), knock.step_of(now))
    wire.client.send(datagram, '10.9.0.1')
    says(box, 'open me ')
    assert wire.client.reaches('10.9.0.1')
    assert until(lambda: 'table inet knockd' in box.must('cat', '/var/lib/knockd/guard'))
    ended, got_in = threading.Event(), []

    def try_the_port():
        while not ended.is_set():
            for address in wire.server.addresses:
                got_in.append(wire.stranger.connection(address, HIDDEN, 0.1))
    with wire.client.connection('10.9.0.1', HIDDEN) as connection:
        with accept(services[HIDDEN], connection) as end:
            stranger = threading.Thread(target=try_the_port)
            stranger.start()
            try:
                said = box.must('/usr/bin/python3', KNOCKD, 'install')
                says(box, 'ready: ', 2)
            finally:
                ended.set()
                stranger.join()
            assert alive(connection, end)
    assert 'on probation' not in said and 'quarantine' not in log(box)
    assert len(got_in) > 5 and not any(got_in)
    assert knockd.__version__ in box.must('/usr/local/sbin/knockd.py', 'status')
    ours = box.must('nft', 'list', 'table', 'inet', 'knockd')
    assert chains(ours) == chains(box.must('/usr/local/sbin/knockd.py', 'rules'))
    accepts = box.must('nft', 'list', 'ruleset').count(' == 0x40000000 accept')
    assert accepts == bool(rules), 'one, as before, where the box drops'

    wire.client.send(datagram, '10.9.0.1')
    says(box, 'replay')
    for script in (KNOCK, str(old / 'knock.py')):
        done = wire.client.run(sys.executable, script, line)
        assert done.code == 0, done.err + log(box)
    assert not wire.stranger.connects('10.9.0.1')
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
    rest = box.must('nft', 'list', 'ruleset')
    assert left(box) == [] and 'knockd' not in rest and 'mark' not in rest


if subprocess.call(['git', '-C', TOP, 'cat-file', '-e', OLD], stderr=subprocess.DEVNULL):
    # A release or a shallow clone has no 0.1 to upgrade from.
    del test_0_1_that_runs_and_was_knocked_at_is_upgraded_without_a_hole
