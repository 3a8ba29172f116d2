"""A first try on a box without config, and what knock.py does by itself."""

import hashlib
import os
import re
import stat
import sys

import knockd as script
import pytest
from network import HIDDEN, KNOCK, KNOCKD, Daemon, environment, until


@pytest.fixture
def newcomer(wire, services, tmp_path):
    """A daemon without any config or ledger."""
    wire.clear()
    knockd = Daemon(wire.server, tmp_path)
    wire.daemons.append(knockd)
    os.unlink(knockd.config)
    os.unlink(knockd.ledger)
    yield knockd
    wire.clear()


FIRST = ('--hide', 'tcp/2222', '--client', 'me', '--host', '10.9.0.1')


def test_one_command_makes_a_config_and_runs(wire, newcomer):
    newcomer.start(*FIRST)
    assert stat.S_IMODE(os.stat(newcomer.config).st_mode) == 0o600
    line = until(lambda: newcomer.printed())
    assert re.match(r'knock://me:[A-Z2-7]{52}@10\.9\.0\.1\?id=[0-9a-f]{16}\S*\n$', line)
    assert not wire.client.connects('10.9.0.1')
    done = wire.client.knock('--open', 'tcp/2222', line.strip())
    assert done.code == 0, done.err + newcomer.text()
    assert wire.client.connects('10.9.0.1')
    assert not wire.stranger.connects('10.9.0.1')
    newcomer.says('open me 10.9.0.2 tcp/2222')


def test_the_line_it_prints_opens_as_it_is(wire, newcomer):
    newcomer.start(*FIRST)
    line = until(lambda: newcomer.printed())
    assert wire.client.knock(line.strip()).code == 0
    assert wire.client.reaches('10.9.0.1')


def test_the_second_run_keeps_the_key(wire, newcomer):
    newcomer.start(*FIRST)
    line = until(lambda: newcomer.printed()).splitlines()[0]
    with open(newcomer.config) as config:
        before = config.read()
    newcomer.kill()
    newcomer.start(*FIRST)
    with open(newcomer.config) as config:
        assert config.read() == before
    assert wire.client.knock('--open', 'tcp/2222', line).code == 0
    newcomer.kill()
    newcomer.start()
    assert wire.client.knock('--close', line).code == 0
    newcomer.says('close me')


def test_without_config_run_says_what_to_type(newcomer):
    done = newcomer.do('run', timeout=10)
    assert done.code == 2
    assert re.match(r'knockd: [^\n]+\n$', done.err)
    assert '--hide' in done.err and not os.path.exists(newcomer.config)


def test_a_config_that_others_may_read_is_refused(newcomer):
    newcomer.write_config()
    os.chmod(newcomer.config, 0o644)
    done = newcomer.do('run', timeout=10)
    assert done.code == 2 and newcomer.config in done.err and done.err.count('\n') == 1


@pytest.mark.parametrize('script, name', ((KNOCKD, 'knockd'), (KNOCK, 'knock')))
def test_wrong_usage_is_one_line_and_exit_2(wire, script, name):
    done = wire.client.run(sys.executable, script, '--no-such-option')
    assert done.code == 2
    assert 'Traceback' not in done.err
    assert done.err.splitlines()[-1].startswith(name + ': ') or name in done.err


@pytest.mark.parametrize('script, name', ((KNOCKD, 'knockd'), (KNOCK, 'knock')))
def test_version(wire, script, name):
    with open(script, 'rb') as file:
        whole = file.read()
    done = wire.client.run(sys.executable, script, '--version')
    assert done.code == 0, done.err
    version, line = done.out.splitlines()
    assert re.match(r'%s\.py \d+\.\d+\.\d+$' % name, version)
    assert line == '%s  %s' % (hashlib.sha256(whole).hexdigest(), script)


@pytest.mark.parametrize('script', (KNOCKD, KNOCK))
def test_the_version_of_a_script_out_of_a_pipe_comes_without_a_sum(wire, script, tmp_path):
    """Also where another file of the current folder has the name that Python gives the pipe."""
    (tmp_path / '<stdin>').write_text('print(1)\n')
    with open(script) as file:
        done = wire.client.run('sh', '-c', 'cd %s; exec %s - --version' % (
            tmp_path, sys.executable), stdin=file.read())
    assert done.code == 0, done.err
    assert done.out.splitlines()[1] == 'no file, so no SHA-256: it came out of a pipe'


@pytest.mark.parametrize('target', ('nonsense', 'knock://me:AAAA@10.9.0.1?id=x',
                                    'knock://me@10.9.0.1?id=x', ''))
def test_a_target_that_is_none_is_one_line_and_exit_2(wire, target):
    done = wire.client.knock(target)
    assert done.code == 2
    assert re.match(r'knock: [^\n]+\n$', done.err)


# --- knock.py ------------------------------------------------------------------------------------
@pytest.fixture
def named_box(wire, tmp_path):
    """A name that has both addresses of the server."""
    hosts = tmp_path / 'hosts'
    hosts.write_text('127.0.0.1 localhost\n10.9.0.1 box.example\nfd00:9::1 box.example\n')
    wire.client.must('mount', '--bind', str(hosts), '/etc/hosts')
    yield 'box.example'
    wire.client.must('umount', '/etc/hosts')


@pytest.mark.parametrize('option, expected', (((), {'10.9.0.2', 'fd00:9::2'}),
                                              (('-4',), {'10.9.0.2'}), (('-6',), {'fd00:9::2'})),
                         ids=('both', '-4', '-6'))
def test_every_address_of_a_name_is_knocked(wire, knockd, visitor, named_box, option, expected):
    done = wire.client.knock('--wait', '0', *(option + (knockd.uri(visitor, named_box),)))
    assert done.code == 0, done.err
    for source in expected:
        knockd.says('open %s %s tcp/2222' % (visitor, source))
    knockd.settle(wire.client)
    assert knockd.count('open %s ' % visitor) == len(expected)


def test_every_datagram_has_ports_of_its_own(wire, knockd, visitor):
    wrong = knockd.uri(visitor, wire.server.addresses[0], secret=bytes(32))
    with wire.capture(wire.client) as capture:
        assert wire.client.knock('--open', 'tcp/2222', '--wait', '2', wrong).code == 1
        packets = [packet for packet in capture.packets('10.9.0.2') if packet[9] == 17]
    assert len(packets) >= 2, 'it knocks again once a second'
    assert len({packet[20:22] for packet in packets}) == len(packets)
    assert len({packet[28:] for packet in packets}) == len(packets)
    assert all(1024 <= packet[22] << 8 | packet[23] for packet in packets)


def test_wait_0_sends_one_datagram_and_ends(wire, knockd, visitor):
    wrong = knockd.uri(visitor, wire.server.addresses[0], secret=bytes(32))
    with wire.capture(wire.client) as capture:
        assert wire.client.knock('--open', 'tcp/2222', '--wait', '0', wrong).code == 0
        assert len([1 for packet in capture.packets('10.9.0.2') if packet[9] == 17]) == 1
        assert not [1 for packet in capture.packets('10.9.0.2') if packet[9] == 6]


@pytest.mark.parametrize('own, others, named', (
    ('11.9.0.2', '11.9.0.1', '11.9.0.2'), ('10.9.0.2', '10.9.0.1', None)), ids=('public', 'NAT'))
def test_a_public_address_is_named_by_itself(wire, knockd, visitor, own, others, named):
    """So that a captured knock is useless from elsewhere; behind NAT it cannot be known."""
    for member, address in ((wire.client, own), (wire.server, others)):
        if named:
            member.must('ip', 'address', 'add', address + '/24', 'dev', 'eth0')
    try:
        with wire.capture(wire.client) as capture:
            done = wire.client.knock('--open', 'tcp/2222', '--port', '40000',
                                     knockd.uri(visitor, others))
            payload = capture.datagrams(40000)[0]
        assert done.code == 0, done.err + knockd.text()
    finally:
        for member, address in ((wire.client, own), (wire.server, others)):
            if named:
                member.must('ip', 'address', 'delete', address + '/24', 'dev', 'eth0')
    keys = script.derive_keys(knockd.secrets[visitor], knockd.server_id)
    source = script.decode_plain(script.unseal(keys, payload)).source
    assert (source and str(source)) == named


def test_a_closed_stdout_is_no_traceback(wire, knockd, visitor):
    done = wire.client.run('sh', '-c', 'exec >&-; exec "$@"', 'sh', sys.executable, KNOCK,
                           knockd.uri(visitor, '10.9.0.1'), env=environment())
    assert 'Traceback' not in done.err
    assert wire.client.reaches('10.9.0.1', HIDDEN)
