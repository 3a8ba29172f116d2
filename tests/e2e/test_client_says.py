"""What knock.py does where a network is not what it seems, and what it says then: transparent
proxies, several ways out, no name server, UDP that does not pass, fail2ban behind an sshd."""

import contextlib
import re
import select
import shutil
import subprocess
import sys
import threading
import time

import pytest

import knock
import network
from carriers import tool
from network import KNOCK, environment, until

SSHD, PORT = 2240, 2245         # nothing hides them; on PORT nothing listens
SECRET = bytes(range(32))


@pytest.fixture
def home(tmp_path):
    return dict(environment(), HOME=str(tmp_path))


def run(wire, home, *arguments, **options):
    return wire.client.run(sys.executable, KNOCK, *arguments, env=home, **options)


def line(address, port=PORT):
    host = '[%s]' % address if ':' in address else address
    return 'knock://x:%s@%s?id=x&open=tcp/%d' % (knock.encode_secret(SECRET), host, port)


# --- what a probe leaves in a log ----------------------------------------------------------------
@pytest.fixture(scope='module')
def sshd(wire, tmp_path_factory):
    """Debian's sshd, not hidden; yields a function that returns its log."""
    folder = tmp_path_factory.mktemp('sshd')
    subprocess.check_call([tool('ssh-keygen'), '-q', '-t', 'ed25519', '-N', '', '-f',
                           str(folder / 'host')])
    (folder / 'passwd').write_text('root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run:/bin/sh\n'
                                   'guest:x:1000:1000::%s:/bin/sh\n' % folder)
    (folder / 'sshd_config').write_text('Port %d\nHostKey %s/host\nUsePAM no\nPidFile none\n'
                                        'LogLevel VERBOSE\n' % (SSHD, folder))
    script = ('mount --bind "$0/passwd" /etc/passwd && exec unshare -U --map-user=1000 '
              '--map-group=1000 "$1" -D -f "$0/sshd_config" -E "$0/log"')
    with wire.server.start('unshare', '-m', 'sh', '-c', script, str(folder), tool('sshd')):
        log = folder / 'log'
        assert until(lambda: log.exists() and 'listening' in log.read_text())
        yield log.read_text


def test_a_probe_is_nothing_that_sshd_logs_and_fail2ban_counts(wire, home, sshd, address):
    """An ordinary connection, last, shows that what came before would be there."""
    for _ in range(10):
        done = run(wire, home, '-v', line(address, SSHD), '--', 'true')
        assert done.code == 0 and 'answered even before' in done.err
    assert wire.client.connects(address, SSHD)
    peer = wire.client.addresses[':' in address]
    assert until(lambda: 'Connection closed by %s port' % peer in sshd())
    ports = set(re.findall('%s port ([0-9]+)' % peer, sshd()))
    assert len(ports) == 1, sshd()


def counted(lines, mode, tmp_path):
    """How many of sshd's lines fail2ban's own filter counts against somebody."""
    log = tmp_path / 'auth.log'
    log.write_text(''.join('Nov 29 03:00:00 box sshd[7]: %s\n' % line for line in lines))
    said = subprocess.check_output(['fail2ban-regex', str(log), 'sshd[mode=%s]' % mode])
    return int(re.search(r'Lines: %d lines, \d+ ignored, (\d+) matched' % len(lines),
                         said.decode()).group(1))


@pytest.mark.kernel
@pytest.mark.skipif(not shutil.which('fail2ban-regex'), reason='fail2ban is not installed')
def test_fail2ban_bans_nobody_for_his_knocks_whatever_its_mode(wire, home, sshd, tmp_path):
    """What it would count, a connection that ends early, is there to compare with."""
    address = wire.server.addresses[0]
    before = len(sshd().splitlines())
    for options in (('--', 'true'), ('--wait', '2'), ('--open', 'tcp/%d' % SSHD)) * 5:
        at = options.index('--') if '--' in options else len(options)
        words = options[:at] + (line(address, SSHD),) + options[at:]
        assert run(wire, home, *words).code == 0
    assert wire.client.connects(address, SSHD)
    peer = wire.client.addresses[0]
    assert until(lambda: any('Connection closed by %s port' % peer in one
                             for one in sshd().splitlines()[before:]))
    lines = sshd().splitlines()[before:]
    assert [counted(lines, mode, tmp_path) for mode in ('ddos', 'aggressive')] == [1, 1], lines
    assert counted(lines, 'normal', tmp_path) == 0


def test_a_probe_never_reaches_the_listener(wire, home, address):
    """Linux: the handshake is not finished before the connection is given up."""
    with wire.server.listen(PORT + 1) as listener:
        assert run(wire, home, line(address, PORT + 1)).code == 0
        assert not select.select([listener], [], [], 0.3)[0]


# --- a transparent proxy -------------------------------------------------------------------------
@contextlib.contextmanager
def proxied_port(wire, address, works):
    """A listener that accepts first and dials later, and ends a connection that it cannot serve;
    works() says whether it can. The service behind it greets."""
    listener, over = wire.server.listen(PORT + 2), []
    listener.settimeout(0.1)

    def serve():
        while not over:
            try:
                end, _ = listener.accept()
            except OSError:
                continue
            with end:
                if works():
                    end.settimeout(5)
                    end.sendall(b'SSH-2.0-there\r\n')
                    end.recv(100)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.append(True)
        thread.join()
        listener.close()


def test_a_connection_that_ends_without_a_byte_is_tried_again_after_the_knock(wire, home, address):
    began = time.monotonic()
    with proxied_port(wire, address, lambda: time.monotonic() > began + 1.5):
        done = run(wire, home, '--proxy', str(PORT + 2), line(address), stdin='hello')
    assert done == (0, 'SSH-2.0-there\r\n', '')


def test_a_proxy_that_never_gets_through_is_exit_1_and_a_sentence(wire, home, address):
    with proxied_port(wire, address, lambda: False):
        done = run(wire, home, '--wait', '1', '--proxy', str(PORT + 2), line(address),
                   stdin='hello')
    assert done.code == 1 and not done.out
    assert 'ends each connection without a byte' in done.err
    assert done.err.endswith('on the server: knockd.py watch\n')


def test_a_service_that_ends_at_once_is_exit_1_too(wire, home, address):
    """It opens with the knock, so no proxy answered before; but nothing came."""
    opened = []

    def open_late():
        with contextlib.closing(wire.server.listen(PORT + 3)) as listener:
            opened.append(True)
            listener.accept()[0].close()
    timer = threading.Timer(1, open_late)
    timer.start()
    done = run(wire, home, '--proxy', str(PORT + 3), line(address))
    timer.join()
    assert opened and done.code == 1 and not done.out
    assert done.err == 'knock: the connection was accepted, and ended without a byte\n'


def test_all_that_goes_up_and_nothing_down_is_well(wire, home, address):
    got = []

    def sink():
        with contextlib.closing(wire.server.listen(PORT + 4)) as listener:
            with listener.accept()[0] as end:
                while True:
                    data = end.recv(100)
                    if not data:
                        break
                    got.append(data)
    timer = threading.Timer(0.5, sink)
    timer.start()
    done = run(wire, home, '--proxy', str(PORT + 4), line(address), stdin='a report')
    timer.join()
    assert done == (0, '', '') and got == [b'a report']


# --- the source ----------------------------------------------------------------------------------
def source_of(datagram):
    keys = knock.derive_keys(SECRET, 'x')
    plain = knock.unseal(keys, datagram)
    return plain[10:26]


def captured(capture, port):
    """[(source of the packet, source that its knock names)]"""
    found = []
    for packet in capture.packets():
        size = network.header_size(packet)
        if network.protocol_of(packet) == 17 and packet[size + 2:size + 4] == network.be16(port):
            named = source_of(packet[size + 8:])
            found.append((network.source_of(packet), named))
    return found


@pytest.fixture
def public(wire):
    """Public addresses, as documentation has none that Python calls global: two ways out."""
    for member, number in ((wire.server, 1), (wire.client, 2)):
        member.must('ip', '-b', '-', stdin='''
            addr add 11.9.0.%d/24 dev eth0
            addr add 11.9.1.%d/24 dev eth0
            addr add 2a11:9::%d/64 dev eth0 nodad\n''' % (number, number, number))
    wire.server.must('ip', 'addr', 'add', '12.0.0.1/32', 'dev', 'lo')
    yield
    wire.server.must('ip', 'addr', 'del', '12.0.0.1/32', 'dev', 'lo')
    for member, number in ((wire.server, 1), (wire.client, 2)):
        member.must('ip', '-b', '-', stdin='''
            addr del 11.9.0.%d/24 dev eth0
            addr del 11.9.1.%d/24 dev eth0
            addr del 2a11:9::%d/64 dev eth0\n''' % (number, number, number))


@pytest.mark.parametrize('host, own', (('11.9.0.1', '11.9.0.2'), ('2a11:9::1', '2a11:9::2')))
def test_a_public_source_is_named_and_a_line_says_so(wire, home, public, host, own):
    with wire.capture(wire.client) as capture:
        done = run(wire, home, '-v', '--port', '40031', '--wait', '0', line(host))
        assert done.code == 0 and 'naming %s as the source' % own in done.err
        named = network.ipaddress.ip_address(own)
        assert captured(capture, 40031) == [(own, knock.pack_address(named))]
        done = run(wire, home, '-v', '--port', '40032', '--wait', '0', '--source', 'none',
                   line(host))
        assert done.code == 0 and 'as the source' not in done.err
        assert captured(capture, 40032) == [(own, bytes(16))]


@pytest.mark.kernel
def test_with_two_ways_out_each_knock_names_the_address_that_sends_it(wire, home, public):
    for table, way in (('101', '11.9.0'), ('102', '11.9.1')):
        wire.client.must('ip', 'route', 'add', '12.0.0.1', 'via', way + '.1', 'dev', 'eth0',
                         'src', way + '.2', 'table', table)
    rules = [('ipproto', 'udp', 'dport', '1-32767', 'lookup', '101'),
             ('ipproto', 'udp', 'dport', '32768-65534', 'lookup', '102')]
    wire.client.must('ip', 'route', 'add', '12.0.0.1', 'via', '11.9.0.1', 'src', '11.9.0.2')
    for rule in rules:
        wire.client.must('ip', 'rule', 'add', *rule)
    try:
        with wire.capture(wire.client) as capture:
            for port, own in ((20031, '11.9.0.2'), (40033, '11.9.1.2')):
                assert run(wire, home, '--port', str(port), '--wait', '0',
                           line('12.0.0.1')).code == 0
                named = knock.pack_address(network.ipaddress.ip_address(own))
                assert captured(capture, port) == [(own, named)]
    finally:
        for rule in rules:
            wire.client.must('ip', 'rule', 'del', *rule)
        wire.client.must('ip', 'route', 'del', '12.0.0.1')


def test_a_named_source_that_does_not_help_is_said(wire, home, public):
    done = run(wire, home, '--wait', '1', line('11.9.0.1'))
    assert done.code == 1 and '11.9.0.2 is named as the source' in done.err
    assert '--source none' in done.err


# --- no name server ------------------------------------------------------------------------------
@pytest.mark.parametrize('host', ('2a11:9::1', '2a11:9::8.8.8.8'))
def test_no_name_server_holds_up_the_first_packet(wire, home, public, host, tmp_path):
    """Both literals; only the second could be a NAT64's, and is not named before one is known."""
    conf = tmp_path / 'resolv.conf'
    conf.write_text('nameserver 10.9.0.77\noptions timeout:5 attempts:2\n')
    with wire.capture(wire.client) as capture:
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        process = subprocess.Popen(
            wire.client.command('unshare', '-m', 'sh', '-c', script, str(conf), sys.executable,
                                KNOCK, '--port', '40034', '--wait', '1', line(host)), env=home,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        began = time.monotonic()
        if host == '2a11:9::1':
            first = until(lambda: captured(capture, 40034), 3)
            assert first and time.monotonic() - began < 2
            assert first[0][1] != bytes(16)
        _, err = process.communicate()
        assert b'did not open' in err and time.monotonic() - began < 5
        asked = [packet for packet in capture.packets()
                 if network.protocol_of(packet) == 17 and b'ipv4only' in packet]
        assert not asked or host == '2a11:9::8.8.8.8'


# --- UDP that does not pass ----------------------------------------------------------------------
@pytest.mark.kernel
@pytest.mark.parametrize('rule, told', (
    ('', 'UDP reaches that address'), ('udp dport 1-65535 drop', 'cannot be seen: a filter'),
    ('udp dport 1-65535 reject with icmpx type admin-prohibited', 'UDP may not pass')),
    ids=('arrives', 'dropped', 'refused'))
def test_whether_udp_passes_is_said(wire, home, address, rule, told):
    wire.server.nft('table inet way {\nchain c {\ntype filter hook input priority -5\n %s\n}\n}\n'
                    % rule)
    try:
        done = run(wire, home, '--wait', '1', line(address))
    finally:
        wire.server.nft('delete table inet way')
    assert done.code == 1 and 'it refuses' in done.err and told in done.err, done.err


# --- COMMAND and the secret ----------------------------------------------------------------------
def test_the_secret_is_not_in_the_environment_of_command(wire, home, address):
    home['KNOCK_URI'] = line(address)
    done = run(wire, home, '--wait', '0', '--', 'env')
    assert done.code == 0 and 'HOME=' in done.out
    assert knock.encode_secret(SECRET) not in done.out
