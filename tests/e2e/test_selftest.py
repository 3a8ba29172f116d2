"""selftest: all that the daemon needs, tried in namespaces that are thrown away."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from network import HIDDEN, KNOCKD, environment, until
from test_firewall import wherever

pytestmark = pytest.mark.kernel

BARE = ['namespaces', 'kernel filter']
BOX = BARE + ['config', 'ledger', 'clock']
NFT = ['nft: ' + feature for feature in (
    'sets with timeouts', 'concatenated intervals', 'connections', 'payload rewriting',
    'limits of elements', 'fib', 'NAT', 'reject')]
KNOCK = 'a real knock'
REFUSING = '''#!/bin/sh
case "$*" in *"-f -") ;; *) exec %(nft)s "$@";; esac
text=$(cat)
case $text in *'%(words)s'*) echo 'Error: Not supported' >&2; exit 1;; esac
printf '%%s\\n' "$text" | exec %(nft)s "$@"
'''


def selftest(wire, config, mounts='', before=()):
    """({what: ok or what to do}, what is not ok), in a tree of mounts with these changes."""
    done = wire.server.run('unshare', '-m', 'sh', '-ec', mounts + '\nexec "$@"', 'sh', *before,
                           sys.executable, KNOCKD, '--config', config, 'selftest', timeout=30)
    lines = dict(re.split('  +', line, maxsplit=1) for line in done.out.splitlines())
    assert len(lines) == len(done.out.splitlines()) and 'Traceback' not in done.out + done.err
    flaws = [what for what, said in lines.items() if said.split(',')[0] != 'ok']
    assert done.err == ('knockd: %d of these must be mended\n' % len(flaws) if flaws else '')
    assert done.code == bool(flaws)
    return lines, flaws


@pytest.fixture
def config(daemon):
    """That of a daemon which is at work beside it."""
    return daemon(anna='').config


def in_place_of(program, path):
    return ''.join('mount --bind %s %s\n' % (path, place) for place in wherever(program))


def refusing(folder, words):
    """Mounts after which nft refuses what has these words in it."""
    shutil.copy(os.path.realpath(wherever('nft')[0]), str(folder / 'real'))
    fake = folder / 'fake'
    fake.write_text(REFUSING % {'nft': folder / 'real', 'words': words})
    fake.chmod(0o755)
    return in_place_of('nft', fake)


def test_on_this_box_all_is_well_with_a_config_and_without(wire, config, tmp_path):
    for path, box in ((config, BOX), (str(tmp_path / 'none' / 'knockd.ini'), BARE)):
        lines, flaws = selftest(wire, path)
        assert flaws == [] and list(lines) == box + NFT + [KNOCK]


def test_it_touches_neither_rules_nor_interfaces_nor_files_nor_the_daemon(wire, daemon):
    made = daemon(anna='')

    def state():
        found = wire.server.run('find', made.folder, '/run', '/etc', '-xdev', '-printf',
                                r'%p %T@ %s %m\n').out
        assert made.ledger in found
        return [line for line in found.splitlines() if made.log not in line], [
            # a connection of an earlier test is in `living`, and has less time left each time
            re.sub(r' tentative| expires \w+', '', wire.server.must(*command)) for command in (
                ('nft', 'list', 'ruleset'), ('ip', '-o', 'addr'), ('cat', '/proc/mounts'))]
    assert until(lambda: 'tentative' not in wire.server.must('ip', '-o', 'addr'))
    before = state()
    done = made.do('selftest')
    assert done.code == 0, done.out
    assert state() == before
    assert made.process.poll() is None and made.do('status').code == 0
    assert not wire.client.connects(wire.server.addresses[0], HIDDEN)


def test_each_nft_feature_that_is_refused_is_named_with_what_it_needs(wire, config, tmp_path):
    lines, flaws = selftest(wire, config, refusing(tmp_path, 'table inet a '))
    assert flaws == NFT
    assert lines['nft: concatenated intervals'] == (
        'nft -c -f - failed (1): Error: Not supported; it needs Linux 5.6')


def test_one_feature_that_is_refused_is_named_and_the_knock_opens_nothing(wire, config, tmp_path):
    lines, flaws = selftest(wire, config, refusing(tmp_path, 'fib daddr'))
    assert flaws == ['nft: fib', KNOCK]
    assert 'kmod-nft-fib' in lines['nft: fib'] and 'Not supported' in lines[KNOCK]


def test_a_knock_that_opens_nothing_is_told_with_the_log_of_the_daemon(wire, config, tmp_path):
    lines, flaws = selftest(wire, config, refusing(tmp_path, '127.0.0.1'))
    assert flaws == [KNOCK]
    assert re.match('opened nothing; the daemon says: ready: .*; open me 127.0.0.1 .*failed: nft',
                    lines[KNOCK])


def test_without_nft_iptables_is_tried(wire, config):
    if not wherever('iptables'):
        pytest.skip('no iptables here')
    lines, flaws = selftest(wire, config, in_place_of('nft', '/dev/null'))
    tried = ['iptables: ' + feature for feature in ('ipset', 'mark', 'NAT')]
    assert list(lines) == BOX + tried + [KNOCK] and flaws == []
    assert '[server] firewall: by iptables, for nft is not installed; type: ' in lines['config']


def test_without_the_right_to_unshare_it_says_so_and_tries_the_rest(wire, config):
    """Which is no flaw of the box: `run` needs no namespaces."""
    lines, flaws = selftest(wire, config, before=(
        'setpriv', '--bounding-set=-sys_admin', '--inh-caps=-sys_admin'))
    assert list(lines) == BOX + NFT and flaws == [], 'the kernel is asked all the same'
    assert re.match('ok, but no knock is tried: .*not permitted', lines['namespaces'])


def test_without_unshare_it_says_which_package_brings_it(wire, config):
    lines, flaws = selftest(wire, config, in_place_of('unshare', '/dev/null'))
    assert list(lines) == BOX + NFT and flaws == []
    assert re.match('ok, but no knock is tried: unshare is not installed; type: .*util-linux$',
                    lines['namespaces'])


def test_a_ledger_in_memory_or_where_nothing_can_be_written_is_named(wire, config):
    state = os.path.join(os.path.dirname(config), 'state')
    for mount, flaw in (
            ('mount -t tmpfs -o mode=700 tmpfs %s', 'in memory'),
            ('mount --bind %s %s; mount -o remount,bind,ro %s', 'read-only')):
        lines, flaws = selftest(wire, config, mount.replace('%s', state))
        assert flaws == ['ledger']
        assert lines['ledger'].startswith('%s is %s; write for example: ' % (state, flaw))


def test_a_clock_before_the_last_knock_of_the_ledger_is_named(wire, daemon):
    made = daemon()
    made.stop()
    tomorrow = int(time.time() * 1000) + 86400000
    with open(made.ledger, 'w') as file:
        json.dump({'knockd': 1, 'id': made.server_id, 'floor': 0, 'keys': {'0' * 16: {
            'floor': 0, 'spent': {'00' * 16: tomorrow}, 'paper': [0, 0]}}}, file)
    lines, flaws = selftest(wire, made.config)
    assert flaws == ['clock'] and ' UTC is before ' in lines['clock']


def test_an_ssh_keygen_that_cannot_sign_is_named_if_a_client_needs_it(wire, daemon):
    key = 'ssh_key = ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI' + 'A' * 43
    made = daemon(anna=key)
    lines, flaws = selftest(wire, made.config, in_place_of('ssh-keygen', '/dev/null'))
    assert flaws == ['config'] and 'ssh-keygen' in lines[flaws[0]]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_ends_all_that_it_started(wire, config, tmp_path, number):
    """In the middle of it, when nft has just been started: nobody is left in its network."""
    marker = str(tmp_path / 'started')
    fake = tmp_path / 'fake'
    fake.write_text('#!/bin/sh\n: >%s\nexec cat\n' % marker)
    fake.chmod(0o755)
    process = subprocess.Popen(wire.server.command(
        'unshare', '-m', 'sh', '-ec', in_place_of('nft', fake) + 'exec "$@"', 'sh',
        sys.executable, KNOCKD, '--config', config, 'selftest'), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    try:
        assert until(lambda: os.path.exists(marker))
        own = os.readlink('/proc/%d/ns/net' % process.pid)
        process.send_signal(number)
        assert b'Traceback' not in process.communicate(timeout=10)[1]
    finally:
        process.kill()
        process.wait()

    def left():
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.readlink('/proc/%s/ns/net' % pid) == own:
                    return True
            except OSError:
                continue                # it has ended, or is another user's
        return False
    assert until(lambda: not left(), 5)
