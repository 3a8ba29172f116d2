"""`knock.py --proxy`: Debian's sshd behind a real knockd.py, reached as a ProxyCommand."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import network
import pytest
from carriers import tool
from network import KNOCK, environment, until

SSHD_PORT = 2022
SETTINGS = 'hide = tcp/2022, tcp/2222, tcp/2229'


@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    """A folder with the server's key, the guest's key, and what each side is to know."""
    folder = tmp_path_factory.mktemp('sshd')
    for name in ('host', 'guest'):
        subprocess.check_call([tool('ssh-keygen'), '-q', '-t', 'ed25519', '-N', '', '-f',
                               str(folder / name)])
    (folder / 'passwd').write_text('root:x:0:0::/root:/bin/sh\n'
                                   'guest:x:1000:1000::%s:/bin/sh\n' % folder)
    (folder / 'sshd_config').write_text('''
        Port %d
        HostKey %s/host
        AuthorizedKeysFile %s/guest.pub
        StrictModes no
        UsePAM no
        PidFile none
        MaxStartups 100
        Subsystem sftp internal-sftp\n''' % (SSHD_PORT, folder, folder))
    return str(folder)


@contextlib.contextmanager
def sshd_of(wire, member, folder):
    """sshd must be no root here: its namespace has no other user to give privileges away to."""
    script = ('mount --bind "$0/passwd" /etc/passwd && '
              'exec unshare -U --map-user=1000 --map-group=1000 "$1" -D -e -f "$0/sshd_config"')
    with member.start('unshare', '-m', 'sh', '-c', script, folder, tool('sshd')) as process:
        assert until(lambda: wire.client.connects(member.addresses[0], SSHD_PORT)), process.poll()
        yield


@pytest.fixture(scope='module')
def sshd(wire, keys):
    with sshd_of(wire, wire.server, keys):
        yield


@pytest.fixture(scope='module')
def house(wire, services, sshd, tmp_path_factory):
    """The daemon that hides it; anna has a name for each address of the server."""
    wire.clear()
    made = network.Daemon(wire.server, tmp_path_factory.mktemp('knockd'), SETTINGS,
                          anna='allow = tcp/2022, tcp/2222')
    wire.daemons.append(made)
    made.home = str(tmp_path_factory.mktemp('home'))
    made.start()
    made.environment = dict(environment(), HOME=made.home)
    for address, name in zip(wire.server.addresses, ('four', 'six')):
        saved = wire.client.run(sys.executable, KNOCK, 'save', name, env=made.environment,
                                stdin=made.uri('anna', address) + '&open=tcp/2222\n')
        assert saved == (0, '', '')
    yield made
    wire.clear()


@pytest.fixture
def shut(wire, house):
    """Before each test nothing is open."""
    for address in wire.server.addresses:
        def closed(address=address):
            return not any(wire.client.connects(address, port) for port in (SSHD_PORT, 2222))

        def closes(address=address):
            wire.client.send(house.datagram('anna', op='close'), address)
            return until(closed, 1)             # or it was too fast, after the test before
        assert closed() or until(closes)


@pytest.fixture(params=('four', 'six'))
def name(request):
    return request.param


def ssh(keys, *words, **options):
    """The argument list of ssh, or scp, with --proxy and the saved line."""
    proxy = '%s %s --proxy %%p %s' % (sys.executable, KNOCK, options['name'])
    return [tool(options.get('program', 'ssh')), '-F', 'none', '-i', keys + '/guest', '-o',
            'ProxyCommand=' + (proxy if options.get('proxy', True) else 'none'),
            '-o', 'Port=%d' % SSHD_PORT, '-o', 'UserKnownHostsFile=/dev/null',
            '-o', 'StrictHostKeyChecking=no', '-o', 'LogLevel=ERROR',
            '-o', 'BatchMode=yes'] + list(words)


def test_ssh_runs_a_command_through_the_proxy_and_has_its_exit_code(wire, house, shut, keys,
                                                                    name):
    done = wire.client.run(*ssh(keys, 'guest@whatever', 'cat; exit 7', name=name),
                           env=house.environment, stdin='through the door')
    assert done == (7, 'through the door', ''), house.text()
    assert 'tcp/2022' in house.says('open anna ')


def fdpassed(keys, *words, **options):
    """ssh that takes over the connection which knock.py made."""
    argv = ssh(keys, *words, **options)
    argv[argv.index('-o') + 1] = 'ProxyCommand=%s %s --fdpass --proxy %%p %s' % (
        sys.executable, KNOCK, options['name'])
    return argv[:1] + ['-o', 'ProxyUseFdpass=yes'] + argv[1:]


def test_ssh_takes_over_the_connection_that_knock_made(wire, house, shut, keys, name):
    done = wire.client.run(*fdpassed(keys, 'guest@whatever', 'cat; exit 7', name=name),
                           env=house.environment, stdin='through the door')
    assert done == (7, 'through the door', ''), house.text()
    assert 'tcp/2022' in house.says('open anna ')


def test_ssh_is_told_why_nothing_could_be_handed_over(wire, house, shut, keys):
    argv = fdpassed(keys, 'guest@whatever', 'true', name='--wait 1 nobody')
    done = wire.client.run(*argv, env=house.environment)
    assert done.code == 255 and "knock: 'nobody' is not here" in done.err


def test_knock_is_gone_while_ssh_uses_its_connection(wire, house, shut, keys):
    process = subprocess.Popen(
        wire.client.command(*fdpassed(keys, 'guest@whatever', 'echo there; cat', name='four')),
        env=house.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b'there\n'
        assert until(lambda: not children(process.pid))
        assert process.communicate(b'and on\n', 10)[0] == b'and on\n'
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def proxied(wire, house, name, port='2222'):
    """knock.py --proxy, its standard input and output in our hands."""
    process = subprocess.Popen(
        wire.client.command(sys.executable, KNOCK, '--proxy', port, name), env=house.environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))   # not as nohup left it
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def served(services, process):
    """The server's end of the connection that the proxy kept; its probes may be there as well."""
    process.stdin.write(b'hello ')
    listener = services[2222]
    listener.settimeout(10)
    while True:
        end, _ = listener.accept()
        end.settimeout(5)
        if end.recv(6) == b'hello ':
            return end
        end.close()


def test_either_side_may_end_its_way_and_the_other_goes_on(wire, services, house, shut, name):
    with proxied(wire, house, name) as process, \
            served(services, process) as end:
        end.sendall(b'first')
        end.shutdown(network.socket.SHUT_WR)
        assert process.stdout.read(100) == b'first'
        assert select.select([process.stdout], [], [], 10)[0], 'the end of one way is passed on'
        assert process.stdout.read(100) == b''
        process.stdin.write(b'and the other way goes on')
        assert end.recv(100) == b'and the other way goes on'
        process.stdin.close()
        assert end.recv(100) == b''
        assert process.wait(10) == 0
        assert process.stderr.read() == b''


def test_the_end_of_the_input_leaves_the_answer_time(wire, services, house, shut):
    with proxied(wire, house, 'four') as process, \
            served(services, process) as end:
        process.stdin.close()
        assert end.recv(100) == b''
        end.sendall(b'a late answer')
        end.close()
        assert process.stdout.read() == b'a late answer'
        assert process.wait(10) == 0


def test_a_connection_that_breaks_is_exit_1_and_a_sentence(wire, services, house, shut):
    with proxied(wire, house, 'four') as process, \
            served(services, process) as end:
        end.setsockopt(network.socket.SOL_SOCKET, network.socket.SO_LINGER,
                       network.struct.pack('ii', 1, 0))
        end.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == b'knock: Connection reset by peer\n'


@pytest.mark.parametrize('number', (signal.SIGTERM, signal.SIGHUP))
def test_a_signal_ends_the_proxy_and_the_connection(wire, services, house, shut, number):
    with proxied(wire, house, 'four') as process, \
            served(services, process) as end:
        process.send_signal(number)
        assert process.wait(10) == -number
        assert end.recv(100) == b''
        assert process.stderr.read() == b''


def test_the_proxy_ends_when_ssh_is_killed(wire, house, shut, keys):
    marker = 'sleep 47.11'
    process = subprocess.Popen(
        wire.client.command(*ssh(keys, 'guest@whatever', 'echo there; ' + marker, name='four')),
        env=house.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b'there\n'
        proxies = children(process.pid)
        assert proxies
    finally:
        process.kill()
        process.communicate()
    assert until(lambda: not any(os.path.exists('/proc/%s' % proxy) for proxy in proxies), 10)


def children(pid):
    with open('/proc/%d/task/%d/children' % (pid, pid)) as words:
        return words.read().split()


def test_what_does_not_open_is_a_sentence_and_exit_1(wire, house, shut):
    done = wire.client.run(sys.executable, KNOCK, '--wait', '1', '--proxy', '2229', 'four',
                           env=house.environment)
    assert done.code == 1 and done.out == ''
    assert done.err.startswith('knock: tcp/2229 at 10.9.0.1 did not open within 1 s; it refuses')


def test_a_line_with_once_is_not_probed_but_by_the_proxy(wire, services, house, shut):
    uri = house.uri('anna', '10.9.0.1') + '&open=tcp/2222&once=1'
    with wire.capture(wire.client) as capture:
        assert wire.client.knock(uri) == (0, '', '')
        assert not [packet for packet in capture.packets('10.9.0.2') if packet[9] == 6]
    with proxied(wire, house, uri) as process:
        served(services, process).close()


@pytest.mark.kernel
@pytest.mark.parametrize('way, least', (('pipe', 0.8), ('fdpass', 0.95)))
def test_a_copy_comes_at_the_plain_speed(wire, house, shut, keys, tmp_path, way, least):
    """Copies each way of going, in turn, until the best of each tell; the machine is not ours."""
    size = 500 if way == 'fdpass' else 100
    with open(keys + '/large', 'wb') as large:
        large.truncate(size << 20)
    seconds = {'plain': [], way: []}
    source = 'guest@10.9.0.1:large'
    for going in ('plain', way) * 8:
        argv = ssh(keys, source, '/dev/null', program='scp', name='four', proxy=way == going)
        if going == 'fdpass':
            argv = fdpassed(keys, source, '/dev/null', program='scp', name='four')
        assert wire.client.run(sys.executable, KNOCK, '--open', 'tcp/2022', '--for', '5m', 'four',
                               env=house.environment).code == 0         # for the plain one
        began = time.monotonic()
        wire.client.must(*argv, env=house.environment, timeout=120)
        seconds[going].append(time.monotonic() - began)
        if seconds[way] and min(seconds['plain']) / min(seconds[way]) >= least:
            break
    os.unlink(keys + '/large')
    print(seconds)
    assert min(seconds['plain']) / min(seconds[way]) >= least, seconds


# --- last, as it takes the daemon of the tests above away --------------------------------------
def test_a_fleets_line_serves_every_host_by_its_name(wire, sshd, keys, tmp_path_factory):
    """The server holds a secret of its own, which its id and the master yield."""
    wire.clear()
    home = str(tmp_path_factory.mktemp('home'))
    environ = dict(environment(), HOME=home)
    master = os.urandom(32)
    line = 'knock://ops:%s@*?id=*&open=tcp/2022\n' % network.knock.encode_secret(master)
    run = wire.client.run
    assert run(sys.executable, KNOCK, 'save', 'fleet', stdin=line, env=environ) == (0, '', '')
    house = network.Daemon(wire.server, tmp_path_factory.mktemp('knockd'), SETTINGS)
    wire.daemons.append(house)
    try:
        house.server_id = '10.9.0.1'
        house.clients['ops'] = 'allow = tcp/2022'
        derived = run(sys.executable, KNOCK, 'derive', 'fleet', '10.9.0.1', '--secret',
                      env=environ)
        house.secrets['ops'] = network.knock.decode_secret(derived.out.strip())
        house.write_config()
        with open(house.ledger, 'w') as out:
            network.json.dump({'knockd': 1, 'id': '10.9.0.1', 'floor': 0, 'keys': {}}, out)
        house.start()
        done = run(*ssh(keys, 'guest@10.9.0.1', 'echo in', name='fleet@%h'), env=environ)
        assert done == (0, 'in\n', ''), house.text()
        house.says('open ops 10.9.0.2 tcp/2022')
        other = run(sys.executable, KNOCK, '--wait', '1', 'fleet@10.9.0.1/other', env=environ)
        assert other.code in (0, 1) and house.count('open ops ') == 1
    finally:
        wire.clear()
