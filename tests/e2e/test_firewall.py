"""Boxes with a firewall of their own, the other answers, trusted interfaces, no nft."""

import os
import re
import socket
import subprocess
import sys

import pytest
from network import CLOSED, HIDDEN, HIDDEN_UDP, KNOCKD, environment, until

pytestmark = pytest.mark.kernel
DEBIAN = '''
table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 8080 accept
    }
    chain forward { type filter hook forward priority 0; policy drop; }
    chain output { type filter hook output priority 0; policy accept; }
}
'''


@pytest.fixture
def dropping_box(wire):
    """Debian's example: what is not allowed is dropped."""
    wire.server.nft(DEBIAN)
    with wire.server.listen(8080):
        yield


def open_both(wire, knockd, *options):
    """Opens HIDDEN over both families; returns the addresses."""
    for address in wire.server.addresses:
        done = wire.client.knock('--open', 'tcp/2222', *(options + (knockd.uri('anna', address),)))
        assert done.code == 0, done.err + knockd.text()
    return wire.server.addresses


def test_a_dropping_box_opens_and_closes(wire, dropping_box, daemon):
    knockd = daemon('accept_in = inet filter input', anna='')
    assert not any(wire.client.connects(address) for address in wire.server.addresses)
    for address in open_both(wire, knockd, '--for', '2'):
        assert wire.client.connects(address)
        assert not wire.stranger.connects(address)
        assert wire.client.connects(address, 8080), 'the box still does what it did'
    for address in wire.server.addresses:
        assert until(lambda at=address: not wire.client.connects(at), 5)


def test_a_dropping_box_closes_on_time_without_the_daemon(wire, dropping_box, daemon):
    knockd = daemon('accept_in = inet filter input', anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '2',
                             knockd.uri('anna', address)).code == 0
    knockd.kill()
    assert wire.client.connects(address)
    assert until(lambda: not wire.client.connects(address), 5)


def test_a_dropping_box_that_names_no_chain_stays_closed(wire, dropping_box, daemon):
    """An accept in our table cannot override its drop: so the line in its own chain is needed."""
    knockd = daemon('accept_in =', anna='')
    address = wire.server.addresses[0]
    wire.client.knock('--open', 'tcp/2222', '--wait', '0', knockd.uri('anna', address))
    knockd.says('open anna')
    # (The bare line would be taken for one of ours that is not wanted any more, and go.)
    line = 'ip protocol tcp meta mark & 0x40000000 == 0x40000000 accept'
    assert not wire.client.connects(address)
    wire.server.nft('insert rule inet filter input ' + line)
    assert wire.client.reaches(address)


def test_one_rule_stands_in_the_boxs_chain_however_often_the_daemon_starts(wire, dropping_box,
                                                                           daemon):
    knockd = daemon('accept_in = inet filter input', anna='')
    knockd.kill()
    knockd.start()
    knockd.stop()
    knockd.start()
    chain = wire.server.must('nft', 'list', 'chain', 'inet', 'filter', 'input')
    assert len(re.findall('mark & 0x40000000 == 0x40000000 accept', chain)) == 1
    assert '0x40000000' in chain.split('ct state')[0], 'at the head'


def test_a_mark_of_ones_own_choice(wire, dropping_box, daemon):
    knockd = daemon('accept_in = inet filter input\nmark = 0x00200000', anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0
    assert wire.client.connects(address)
    assert '0x00200000' in wire.server.must('nft', 'list', 'chain', 'inet', 'filter', 'input')


def test_answer_drop_answers_nothing(wire, daemon, address):
    daemon('answer = drop')
    with wire.capture(wire.server) as capture:
        assert wire.client.socket_error(address, HIDDEN).__name__ in ('timeout', 'TimeoutError')
        wire.client.send(b'anybody?', address, HIDDEN_UDP)
        assert wire.client.socket_error(address, CLOSED) is ConnectionRefusedError
        assert len([packet for packet in capture.packets(address) if packet[0] >> 4 == 4
                    or packet[6] == 6]) == 1, 'the reset of the closed port, nothing else'


def test_answer_drop_opens_and_closes(wire, daemon):
    knockd = daemon('answer = drop', anna='')
    for address in open_both(wire, knockd, '--for', '2'):
        assert wire.client.connects(address)
        assert not wire.stranger.connects(address)
    for address in wire.server.addresses:
        assert until(lambda at=address: not wire.client.connects(at), 5)


@pytest.mark.parametrize('name', ['eth0', 'et+'])
def test_a_trusted_interface_needs_no_knock(wire, daemon, name):
    daemon('trust = ' + name)
    for address in wire.server.addresses:
        assert wire.stranger.connects(address)


def test_routing_by_an_exact_mark_is_told(wire, daemon):
    knockd = daemon()
    assert 'fwmark' not in knockd.do('check').out
    for family in ('-4', '-6'):
        wire.server.must('ip', family, 'rule', 'add', 'fwmark', '1', 'lookup', '100')
    try:
        assert knockd.do('check').out.count('asks for our bits, too; write it with a mask') == 2
    finally:
        for family in ('-4', '-6'):
            wire.server.must('ip', family, 'rule', 'del', 'fwmark', '1', 'lookup', '100')


@pytest.mark.parametrize('priority,rule,told', [
    ('filter', 'ct mark != 0 meta mark set ct mark', True),
    ('-140', 'meta mark set 0x1', True), ('mangle', 'meta mark set ct mark', False),
    ('filter', 'meta mark set meta mark & 0xffffff00 | 0x1', False),
    ('filter', 'ct mark set meta mark & 0xff', False)])
def test_a_chain_that_sets_the_whole_mark_behind_ours_is_told(wire, daemon, priority, rule, told):
    knockd = daemon()
    wire.server.nft('table inet lines { chain marks {\n'
                    'type filter hook prerouting priority %s; %s\n}\n}' % (priority, rule))
    said = knockd.do('check').out
    assert ('chain inet lines marks sets the whole mark after us' in said) == told, said


@pytest.mark.parametrize('statement,told', [
    ('synproxy mss 1460 wscale 7 timestamp sack-perm', True), ('accept comment "no proxy"', False)])
def test_a_proxy_that_answers_before_us_is_told(wire, daemon, statement, told):
    knockd = daemon()
    wire.server.nft('table inet lines { chain proxy {\ntype filter hook input priority filter\n'
                    'tcp dport 2222 ct state invalid,untracked %s\n}\n}' % statement)
    said = knockd.do('check').out
    assert ('a rule with synproxy may answer before us' in said) == told, said


# Of iptables-legacy beside nft: the rules, and does a knock get by them?
LEGACY = {
    'a policy': ([['-P', 'INPUT', 'DROP']], True),
    'a last rule': ([['-A', 'INPUT', '-j', 'DROP']], True),
    'a reject in a chain of its own': ([['-N', 'ALL'], ['-A', 'ALL', '-j', 'REJECT'],
                                        ['-A', 'INPUT', '-j', 'ALL']], True),
    'an early table': ([['-t', 'raw', '-A', 'PREROUTING', '-p', 'tcp', '-j', 'DROP']], False),
    'an early table but for the port': ([
        ['-t', 'raw', '-A', 'PREROUTING', '-p', 'tcp', '-m', 'multiport', '--dports',
         '80,2222,2229', '-j', 'ACCEPT'],
        ['-t', 'raw', '-A', 'PREROUTING', '-p', 'tcp', '-j', 'DROP']], True),
    'the port is allowed': ([['-A', 'INPUT', '-p', 'tcp', '--dport', '2222', '-j', 'ACCEPT'],
                             ['-P', 'INPUT', 'DROP']], True),
    'another port is dropped': ([['-A', 'INPUT', '-p', 'tcp', '--dport', '25', '-j', 'DROP']],
                                True),
    'what is open is accepted': ([['-A', 'INPUT', '-m', 'mark', '--mark', '0x40000000/0x40000000',
                                   '-j', 'ACCEPT'], ['-P', 'INPUT', 'DROP']], True)}


@pytest.fixture(params=sorted(LEGACY))
def legacy(request, wire):
    """Rules that nft does not see; do they let by what a knock opens?"""
    rules, passes = LEGACY[request.param]
    tracked = ['-A', 'INPUT', '-m', 'conntrack', '--ctstate', 'ESTABLISHED', '-j', 'ACCEPT']
    for rule in [tracked] + rules:
        wire.server.must('iptables-legacy', *rule)
    yield passes
    wire.server.must('iptables-legacy', '-P', 'INPUT', 'ACCEPT')
    for table in ('filter', 'raw'):
        wire.server.must('iptables-legacy', '-t', table, '-F')
        wire.server.must('iptables-legacy', '-t', table, '-X')


def test_beside_iptables_legacy_what_was_opened_is_open_or_check_says_why_not(wire, daemon,
                                                                               legacy):
    """Our rule stands in its chains while we run, and leaves with us."""
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    wire.client.send(knockd.datagram('anna', open='tcp/2222'), address)
    knockd.says('open anna')
    assert wire.client.connects(address) == legacy, knockd.text()
    assert not wire.stranger.connects(address)
    said = knockd.do('check').out
    assert ('drops what a knock opens, and takes no rule of ours' in said) != legacy, said
    knockd.settings = 'accept_in ='
    knockd.write_config()
    knockd.reload()
    assert until(lambda: '0x40000000' not in wire.server.must('iptables-legacy-save'))


@pytest.mark.parametrize('settings', [
    {'ip_local_port_range': '1024\t65535'}, {'ip_local_reserved_ports': '1024-65535'},
    {'ip_unprivileged_port_start': '0', 'ip_nonlocal_bind': '1'}], ids=' '.join)
def test_however_ports_are_given_out_check_and_run_agree_and_a_decoy_is_found(wire, daemon,
                                                                              settings):
    def put(values):
        for name, value in values.items():
            wire.server.must('sysctl', '-qw', 'net.ipv4.%s=%s' % (name, value))
    before = {name: wire.server.must('sysctl', '-n', 'net.ipv4.' + name).strip()
              for name in settings}
    put(settings)
    try:
        knockd = daemon(anna='')
        assert knockd.do('check', '--strict') == (0, 'configuration OK\n', '')
        address = wire.server.addresses[0]
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0
    finally:
        put(before)


def test_other_tables_are_left_alone(wire, daemon):
    wire.server.nft(DEBIAN)
    before = wire.server.must('nft', 'list', 'table', 'inet', 'filter')
    knockd = daemon()
    knockd.stop()
    after = wire.server.must('nft', 'list', 'table', 'inet', 'filter')
    assert [line for line in after.splitlines() if 'meta mark' not in line] == before.splitlines()


def test_a_forwarded_port_is_hidden_too(wire, daemon):
    """DNAT as Docker does it: what stands behind is reached only after a knock."""
    address = wire.server.addresses[0]
    wire.server.nft('''table ip nat {
        chain prerouting {
            type nat hook prerouting priority -100;
            tcp dport 8088 dnat to 10.9.0.1:8080
        }
    }
    ''')
    with wire.server.listen(8080):
        assert wire.client.connects(address, 8088)
        knockd = daemon('hide = tcp/8088', anna='allow = tcp/8088', fence='allow = tcp/8088')
        assert not wire.client.connects(address, 8088)
        assert wire.client.knock('--open', 'tcp/8088', knockd.uri('anna', address)).code == 0
        assert wire.client.connects(address, 8088)
        assert not wire.stranger.connects(address, 8088)


def wherever(program):
    """Every place where this system keeps a program."""
    folders = environment()['PATH'].split(':')
    return sorted({path for path in (os.path.join(folder, program) for folder in folders)
                   if os.path.exists(path)})


def test_without_nft_and_iptables_one_line_names_the_command_that_installs_it(wire, daemon):
    knockd = daemon()
    knockd.kill()
    hide = ''.join('mount --bind /dev/null %s; ' % path for path in
                   wherever('nft') + [os.path.realpath(path) for path in wherever('iptables')])
    done = wire.server.run('unshare', '-m', 'sh', '-c', hide + 'exec "$@"', 'sh', sys.executable,
                           KNOCKD, '--config', knockd.config, 'run', timeout=10)
    assert done.code == 2
    how = 'apt-get install -y nftables' if wherever('apt-get') else 'nftables'
    assert re.match(r'knockd: [^\n]*: nft [^\n]*%s[^\n]*\n$' % how, done.err), done.err


# --- an ssh session ------------------------------------------------------------------------------
@pytest.fixture
def ssh_session(wire, tmp_path):
    """A function that opens an ssh session to the hidden port and gives its two ends."""
    for program in ('sshd', 'ssh', 'ssh-keygen'):
        if not wherever(program):
            pytest.skip('no %s here' % program)
    server = SecureShell(wire, tmp_path)
    yield server
    server.close()


class SecureShell:
    """sshd on port 2223 as an ordinary user (root of a namespace cannot separate privileges)."""

    def __init__(self, wire, folder):
        self.wire, self.folder, self.processes = wire, str(folder), []
        for key in ('host', 'user'):
            wire.server.must('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', self.path(key))
        with open(self.path('passwd'), 'w') as out:
            out.write('root:x:0:0::/:/bin/sh\nsomebody:x:1000:1000::%s:/bin/sh\n' % self.folder)
        with open(self.path('config'), 'w') as out:
            out.write('Port 2223\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\n'
                      'PidFile none\nPasswordAuthentication no\n'
                      'ClientAliveInterval 2\nClientAliveCountMax 2\n'      # nobody stays behind
                      % (self.path('host'), self.path('user.pub')))
        self.server = self.start(wire.server, wherever('sshd')[0], '-D', '-e', '-f',
                                 self.path('config'))

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, namespace, *argv):
        """Starts a program as user 1000 with a passwd file that knows him."""
        script = ('mount --bind %s /etc/passwd && exec unshare -U --map-user=1000 '
                  '--map-group=1000 "$@"' % self.path('passwd'))
        with open(self.path('log-' + namespace.name), 'ab') as log:
            process = subprocess.Popen(
                namespace.command('unshare', '-m', 'sh', '-c', script, 'sh', *argv),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment())
        self.processes.append(process)
        return process

    def connect(self, address):
        return self.start(self.wire.client, 'ssh', '-F', 'none', '-i', self.path('user'), '-p',
                          '2223', '-o', 'StrictHostKeyChecking=no', '-o',
                          'UserKnownHostsFile=/dev/null', 'somebody@' + address, 'cat')

    def close(self):
        for process in reversed(self.processes):
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()


def echoes(session, word):
    session.stdin.write(word + b'\n')
    session.stdin.flush()
    return session.stdout.readline() == word + b'\n'


def test_an_ssh_session_from_before_the_daemon_lives_on(wire, daemon, ssh_session):
    address = wire.server.addresses[0]
    assert wire.client.reaches(address, 2223)
    session = ssh_session.connect(address)
    assert echoes(session, b'before')
    knockd = daemon('hide = tcp/2223, tcp/2229', anna='allow = tcp/2223')
    assert not wire.client.connects(address, 2223)
    assert echoes(session, b'after')
    assert wire.client.knock('--open', 'tcp/2223', '--for', '3',
                             knockd.uri('anna', address)).code == 0
    second = ssh_session.connect(address)
    assert echoes(second, b'opened')
    assert until(lambda: not wire.client.connects(address, 2223), 5)
    assert echoes(second, b'closed') and echoes(session, b'still')


def test_a_udp_flow_from_before_stands_still_until_the_service_says_something(wire, daemon):
    """No socket knows whose it is, and where nothing has tracked connections nobody does."""
    place = wire.server.addresses[0], HIDDEN_UDP + 1
    with wire.server.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as service, \
            wire.client.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        service.bind(place)
        service.settimeout(5)
        sender.sendto(b'before', place)
        data, peer = service.recvfrom(100)
        assert data == b'before'
        daemon('hide = tcp/2222, tcp/2229, udp/%d' % place[1], anna='')
        sender.sendto(b'lost', place)
        service.settimeout(0.5)
        with pytest.raises(socket.timeout):
            service.recv(100)
        service.settimeout(5)
        service.sendto(b'are you there?', peer)
        sender.sendto(b'after', place)
        assert service.recv(100) == b'after'
