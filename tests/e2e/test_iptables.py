"""A box without nft: both kinds of iptables, openings in an ipset."""

import os
import re
import shlex
import signal
import socket
import sys
import threading
import time

import pytest

import knockd as script
from network import (CLOSED, HIDDEN, HIDDEN_UDP, KNOCKD, Daemon, Namespace, accept, alive, carries,
                     environment, family_of, header_size, many_at_once, protocol_of, until)
from test_firewall import wherever
from test_forward import INSIDE, IPTABLES, inside      # noqa: F401
from test_guard import FLAGS, answered, my, proxying
from test_stealth import ACK, RST, SYN, decoy_of, differences, resets, tcp

pytestmark = pytest.mark.kernel
TOOLS = ('iptables', 'ip6tables')
PATH = '/usr/local/sbin'                                # the first place where knockd.py looks
KINDS = ['nft', 'legacy']
# Rules of the box, some of them with our name in it.
OWN = '''
{0} -t filter -A INPUT -p tcp --dport 8080 -m comment --comment "not knockd" -j ACCEPT
{0} -t filter -A INPUT -p icmp -j ACCEPT
{0} -t filter -N knockd_of_debian
{0} -t filter -A FORWARD -j knockd_of_debian
{0} -t nat -A PREROUTING -p tcp --dport 8081 -j REDIRECT --to-ports 8080
{0} -t mangle -A PREROUTING -p tcp --dport 8082 -j MARK --set-xmark 0x7/0xff
'''
FLUSH = '{0} -t mangle -F\n{0} -t nat -F\n{0} -F\n{0} -t mangle -X\n{0} -t nat -X\n{0} -X'
# A closed port gives no answer at all to a TCP MD5 signature (RFC 2385).
SIGNED = {'tcp_options': bytes([19, 18]) + bytes(16) + bytes([1, 1])}
LOSSES = [FLUSH, '{0} -F', '{0} -t nat -F KNOCKD', '{0} -t mangle -D PREROUTING 1',
          '{0} -t mangle -A PREROUTING -m comment --comment knockd -j KNOCKD']


class Box:
    """The server with one kind of iptables."""

    def __init__(self, wire, kind):
        self.server, self.kind = wire.server, kind

    def set_up(self):
        self.server.must('mount', '-t', 'tmpfs', 'tmpfs', PATH)
        for tool in TOOLS:
            for end in ('', '-save', '-restore'):
                self.server.must('ln', '-s', '/usr/sbin/%s-%s%s' % (tool, self.kind, end),
                                 '%s/%s%s' % (PATH, tool, end))

    def clear(self):
        for tool in TOOLS:
            for table in ('filter', 'nat', 'mangle'):
                for step in ('-F', '-X'):
                    self.server.run('%s-legacy' % tool, '-t', table, step)
            for chain in ('INPUT', 'FORWARD'):
                self.server.run('%s-legacy' % tool, '-P', chain, 'ACCEPT')
        assert until(lambda: self.server.run('ipset', 'destroy').code == 0, 5)
        self.server.run('umount', PATH)

    def do(self, lines, run=Namespace.must):
        """For both families."""
        for tool in TOOLS:
            for line in lines.format(tool + ' -w').strip().splitlines():
                run(self.server, *shlex.split(line), env=self.environment())

    def apply(self, printed):
        """Gives every text to the command above it; returns how many."""
        parts = re.findall(r'^# (\S.*)\n((?:[^#$].*\n)+)', printed, re.M)
        for command, text in parts:
            self.server.must(*command.split(), stdin=text, env=self.environment())
        return len(parts)

    def environment(self):
        return dict(environment(), PATH=PATH + ':/usr/sbin:/usr/bin:/sbin:/bin')

    def saved(self, *options):
        """All rules of both families, and the sets, without what differs from time to time."""
        text = ''.join(self.server.must('%s/%s-save' % (PATH, tool), *options) for tool in TOOLS)
        text += self.server.must('ipset', 'save')
        text = re.sub(r'#.*\n| timeout \d+$| initval \S+|', '', text, flags=re.M)
        text = re.sub(r'(--dport (\d+) .*--to-destination) :(?!\2$)\d+$', r'\1 a decoy', text,
                      flags=re.M)
        text = re.sub(r'--dport \d+( .*--ctstatus CONFIRMED)', r'--dport a decoy\1', text)
        return re.sub(r'(?m)^(:.*) \[\d+:\d+\]' if options else r' ?\[\d+:\d+\]', r'\1' * bool(
            options), text)             # iptables-legacy forgets those of policies


@pytest.fixture(params=KINDS)
def box(request, wire):
    """What kind of box it is, until the test is over."""
    wire.clear()
    made = Box(wire, request.param)
    made.set_up()
    yield made
    wire.clear()
    made.clear()


@pytest.fixture
def started(box, daemon):
    """A function that starts a daemon there."""
    return lambda settings='', **clients: daemon('firewall = iptables\n' + settings, **clients)


def opened(wire, knockd, *options):
    """Opens HIDDEN over both families; returns the addresses."""
    for address in wire.server.addresses:
        done = wire.client.knock('--open', 'tcp/2222', *(options + (knockd.uri('anna', address),)))
        assert done.code == 0, done.err + knockd.text()
    return wire.server.addresses


def test_a_knock_opens_for_the_knocker_alone_and_close_closes(wire, started):
    knockd = started(anna='')
    for address in wire.server.addresses:
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
    for address in opened(wire, knockd, '--for', '60'):
        assert wire.client.connects(address)
        assert not wire.stranger.connects(address)
        assert not wire.client.connects(address, 2229)
    for address in wire.server.addresses:
        wire.client.send(knockd.datagram('anna', op='close'), address)
        assert until(lambda at=address: not wire.client.connects(at), 5)
    assert 'iptables; answer box via decoy' in knockd.text()


def test_what_a_client_sends_is_answered_as_by_a_closed_port(wire, started, address):
    """Of FIN, NULL and IP options the README says that iptables answers them otherwise."""
    started(anna='')
    seen = differences(wire, address, HIDDEN, CLOSED)
    assert not [name for name in seen if re.match('(SYN|ACK)( with (?!offset)|$)', name)]


def test_a_probe_without_answer_does_not_change_the_answer_of_the_next(wire, started, address):
    """Conntrack remembers it for two minutes; its window must not keep NAT from the reset."""
    knockd = started(anna='')
    second = (HIDDEN, CLOSED, decoy_of(knockd), HIDDEN, CLOSED)
    packets = []
    expected = []
    for number, port in enumerate(second):
        for turn, seq in enumerate((1 << 30, 2 << 30, 3 << 30)):
            client_port = 20000 + number * 3 + turn
            packets.append((client_port, HIDDEN, dict(SIGNED, seq=2 << 30)))
            packets += [(client_port, port, {'seq': seq})] * 2
            expected += [(client_port, port)] * 2
    assert resets(wire, address, packets) == expected


def test_the_kernel_closes_on_time_and_a_second_knock_extends(wire, started):
    first, second = wire.server.addresses
    knockd = started(anna='')
    opened(wire, knockd, '--for', '2')
    assert wire.client.knock('--open', 'tcp/2222', '--for', '60', '--wait', '0',
                             knockd.uri('anna', second)).code == 0
    knockd.says('open anna', 3)
    knockd.kill()
    assert wire.client.connects(first)
    assert until(lambda: not wire.client.connects(first), 5)
    assert wire.client.connects(second)
    assert not wire.stranger.connects(second)


def test_whoever_takes_our_rules_away_has_them_put_back_once(wire, box, started):
    knockd = started(anna='')
    opened(wire, knockd, '--for', '600')
    before = box.saved()
    for loss in LOSSES:
        box.do(loss, Namespace.run)                     # it may be back before the last line
        if box.kind == 'legacy':                        # no event tells of it: once a step
            knockd.process.send_signal(signal.SIGHUP)
        assert until(lambda: box.saved() == before, 5), loss
        for address in wire.server.addresses:
            assert wire.client.reaches(address), loss
            assert not wire.stranger.connects(address)


def test_the_boxs_own_rules_and_counters_stay_and_uninstall_leaves_no_trace(wire, box, started):
    box.do(OWN)
    with wire.server.listen(8080):
        for address in wire.server.addresses:
            assert wire.client.connects(address, 8080)
    before = box.saved('-c')
    assert '[0:0] -A INPUT -p tcp -m tcp --dport 8080' not in before
    knockd = started('carriers = udp', anna='')
    now = box.saved('-c')
    assert [line for line in now.splitlines() if 'KNOCKD' not in line and 'knockd4' not in line
            and 'knockd6' not in line] == before.splitlines()
    knockd.stop()
    box.server.must('mkdir', '-p', '/run/systemd/system')
    told = re.sub('(?m)^remove .*\n', '', knockd.do('uninstall', '--dry-run').out)
    box.server.must('rm', '-r', '/run/systemd')
    # ipset, iptables and ip6tables; and nft where it sees what iptables keeps in the kernel.
    assert box.apply(told) >= 3
    assert box.saved('-c') == before


def test_a_daemon_after_kill_finds_its_rules_again_and_doubles_nothing(wire, box, started):
    knockd = started(anna='')
    before = box.saved()
    opened(wire, knockd, '--for', '60')
    knockd.kill()
    for address in wire.server.addresses:
        assert not wire.stranger.connects(address)
    knockd.start()
    assert box.saved() == before
    assert before.count('--comment knockd') == 10       # 5 chains of the kernel, 2 families
    opened(wire, knockd)


def test_a_connection_from_before_lives_on(wire, box, started, services):
    """Nothing tracked connections before: to conntrack its next packet is new."""
    ends = []
    for address in wire.server.addresses:
        connection = wire.client.connection(address, HIDDEN)
        connection.settimeout(5)
        ends.append((connection, accept(services[HIDDEN], connection)))
    knockd = started(anna='')
    for connection, end in ends:
        assert alive(connection, end)
    knockd.reload()
    for connection, end in ends:
        assert alive(connection, end)
        with connection, end:
            source = connection.getsockname()[1]
    assert not wire.client.connection(wire.server.addresses[1], HIDDEN, source_port=source)


def test_a_rule_that_is_inserted_before_ours_lets_no_stranger_in(wire, box, started, services):
    """As scripts of VPNs do it as they start."""
    knockd = started(anna='')
    box.do('{0} -I INPUT -p udp --dport 5182 -j ACCEPT\n'
           '{0} -t nat -I PREROUTING -p tcp --dport 2222 -j REDIRECT --to-ports 8080')
    with wire.server.listen(8080):
        if box.kind == 'legacy':                        # no event tells of it: once a step
            knockd.process.send_signal(signal.SIGHUP)
        for address in wire.server.addresses:
            assert until(lambda to=address: not wire.stranger.connects(to), 5)
            assert until(lambda to=address: not reaches_udp(wire, services, to), 5)
    assert box.saved().count('--to-ports 8080') == 2, 'it is not ours to take away'


def reaches_udp(wire, services, address):
    """Does the hidden service hear a stranger's datagram?"""
    payload = os.urandom(8)
    wire.stranger.send(payload, address, HIDDEN_UDP)
    services['udp'].settimeout(0.3)
    try:
        while services['udp'].recv(100) != payload:
            pass
    except OSError:
        return False
    return True


def told_apart(wire, address, hidden=HIDDEN):
    """The flags by which a hidden port is not as a closed one. (How a reset looks differs.)"""
    differ = []
    for number, flags in enumerate(FLAGS, 27000):
        answers = [answered(wire, address, [tcp(my(wire, address), address, (number, port), flags)])
                   for port in (hidden, CLOSED)]
        if answers[0] != {(kind, hidden): count for (kind, _), count in answers[1].items()}:
            differ.append((flags, answers))
    return differ


def test_no_rule_with_tproxy_hands_a_stranger_to_a_hidden_port(wire, box, started, address):
    # A guard by nft before this one needed it; here the mark of TPROXY leads resets astray.
    wire.server.set(ipv4__fwmark_reflect=0, ipv6__fwmark_reflect=0)
    knockd = started(anna='')
    box.do('{0} -t mangle -A PREROUTING -p tcp --dport 2222 -j TPROXY --on-port 8443 '
           '--tproxy-mark 1/0xff')
    with proxying(wire, address) as proxy:
        assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        assert told_apart(wire, address) == []
        opened(wire, knockd, '--for', '60')
        with wire.client.connection(address, HIDDEN) as connection, \
                accept(proxy, connection) as end:
            wire.client.send(knockd.datagram('anna', op='close'), address)
            assert until(lambda: not wire.client.connects(address), 5)
            assert alive(connection, end)


def flags_of(capture, source):
    return [packet[header_size(packet) + 13] for packet in capture.packets(source)
            if protocol_of(packet) == 6]


def test_a_proxy_that_keeps_its_clients_address_is_a_stranger_over_lo_too(wire, started, address):
    """As sslh does it. What the box sends by an address of its own comes in."""
    started(anna='')
    source = wire.stranger.addresses[':' in address]
    for number, port in enumerate((HIDDEN, CLOSED), 23000):
        with wire.capture(wire.server) as capture, wire.server.raw_sender(address) as send:
            send(tcp(source, address, (number, port), SYN))
            assert until(lambda got=capture: flags_of(got, address)) == [RST | ACK], port
    assert wire.server.connects(address)


def test_a_listener_at_a_single_address_is_as_a_closed_port(wire, started, address):
    started('hide = tcp/2222, tcp/2223, tcp/2229')
    with wire.server.make_socket(family_of(address), socket.SOCK_STREAM) as listener:
        listener.bind((address, 2223))
        listener.listen(5)
        assert told_apart(wire, address, 2223) == []


def test_a_box_that_keeps_the_mark_of_each_connection_opens_and_hides(wire, box, started, services):
    """As one with two ways out: its rules behind ours overwrite the mark."""
    box.do('{0} -t mangle -A PREROUTING -j CONNMARK --restore-mark\n'
           '{0} -t mangle -A PREROUTING -m mark --mark 0 -j MARK --set-mark 7\n'
           '{0} -t mangle -A PREROUTING -j CONNMARK --save-mark')
    knockd = started(anna='')
    for address in opened(wire, knockd, '--for', '60'):
        connection = wire.client.connection(address, HIDDEN)
        with connection, accept(services[HIDDEN], connection) as end:
            assert not wire.stranger.connects(address)
            wire.client.send(knockd.datagram('anna', op='close'), address)
            assert until(lambda at=address: not wire.client.connects(at), 5)
            with many_at_once(wire):
                assert carries(connection, end)
            assert alive(connection, end)


@pytest.mark.parametrize('policy', ['-P INPUT DROP', '-A INPUT -p tcp -j REJECT --reject-with '
                                    'tcp-reset', '-A INPUT -j REJECT'])
def test_a_box_that_lets_nobody_in_opens_and_answers_as_it_does(wire, box, started, policy):
    box.do('{0} -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n'
           '{0} -A INPUT -i lo -j ACCEPT\n{0} -A INPUT -p %s -j ACCEPT\n{0} %s' % (
               'ipv6-icmp', policy))
    knockd = started(anna='')
    for address in wire.server.addresses:
        assert wire.client.socket_error(address, HIDDEN) is \
            wire.client.socket_error(address, CLOSED)
    opened(wire, knockd)
    for address in wire.server.addresses:
        assert not wire.stranger.connects(address)


def test_hidden_udp_is_answered_like_a_closed_port_and_opens(wire, started, services):
    knockd = started(anna='allow = udp/5182')

    def refused(port, address):
        with wire.client.make_socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            sock.connect((address, port))
            sock.send(b'anybody?')
            try:
                sock.recv(10)
            except OSError as error:
                return type(error)
    for address in wire.server.addresses:
        assert refused(HIDDEN_UDP, address) is refused(CLOSED, address) is ConnectionRefusedError
        wire.client.knock(knockd.uri('anna', address))
        knockd.says('open anna', 1 + (':' in address))
        wire.stranger.send(b'out', address, HIDDEN_UDP)
        wire.client.send(b'in', address, HIDDEN_UDP)
        services['udp'].settimeout(5)
        heard = {services['udp'].recv(10)}
        while b'in' not in heard:                       # what other tests sent may wait there
            heard.add(services['udp'].recv(10))
        assert b'out' not in heard


@pytest.mark.parametrize('answer', ['box', 'reset'])
def test_a_forwarded_port_is_hidden_and_opens(wire, box, inside, started, answer):  # noqa: F811
    for tool, target in zip(TOOLS, ('10.8.0.2:2022', '[fd00:8::2]:2022')):
        for line in IPTABLES.format(tool, target).strip().splitlines():
            box.server.must(*line.split(), env=box.environment())
    box.do('{0} -A FORWARD -p tcp --dport 2022 -j ACCEPT')
    with inside.listen(INSIDE):
        assert wire.client.connects(wire.server.addresses[0])
        knockd = started('answer = ' + answer, anna='')
        for address in wire.server.addresses:
            assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
        for address in opened(wire, knockd):
            assert wire.client.connects(address)
            assert not wire.stranger.connects(address)
        with wire.client.listen(HIDDEN):
            for address in wire.client.addresses:
                assert inside.connects(address), 'from the LAN to a port 2222 of the Internet'


def test_rules_prints_what_run_applies(wire, box, started):
    knockd = started()
    applied = box.saved()
    knockd.kill()
    box.do(FLUSH)
    printed = knockd.do('rules', env=box.environment()).out
    assert box.apply(printed) == 3
    assert box.saved() == applied


def test_nobody_slips_in_and_nobody_is_shut_out_while_the_config_is_read_again(wire, started):
    knockd = started(anna='')
    addresses, end = opened(wire, knockd, '--for', '600'), time.monotonic() + 2
    seen = {name: [] for name in ('client', 'stranger')}

    def work(name):
        while time.monotonic() < end:
            seen[name] += [getattr(wire, name).connects(address) for address in addresses]
    workers = [threading.Thread(target=work, args=(name,)) for name in seen]
    for worker in workers:
        worker.start()
    while time.monotonic() < end:
        knockd.reload()
    for worker in workers:
        worker.join()
    assert len(seen['client']) > 20 and all(seen['client'])
    assert len(seen['stranger']) > 20 and not any(seen['stranger'])


@pytest.mark.parametrize('settings,client,flaw', [
    ('', 'once = yes', r'\[client anna\] once'),
    ('accept_in = inet filter input', '', r'\[server\] accept_in'),
    ('trust = ppp+', '', r'\[server\] trust')])
def test_what_iptables_cannot_do_is_refused_by_name(wire, tmp_path, settings, client, flaw):
    knockd = Daemon(wire.server, tmp_path, 'firewall = iptables\n' + settings, anna=client)
    for command in ('check', 'run'):
        done = knockd.do(command)
        assert done.code == 2
        assert re.match(r'knockd: \S+: %s[^\n]*: iptables cannot do that; install nftables\n\Z'
                        % flaw, done.err)


@pytest.mark.parametrize('settings', ['', 'firewall = auto'])
def test_auto_takes_iptables_where_nft_is_not_there(wire, tmp_path, settings):
    knockd = Daemon(wire.server, tmp_path, settings)
    for without, word in ((['nft'], '*mangle'), ([], 'table inet knockd')):
        hide = ''.join('mount --bind /dev/null %s; ' % path for name in without
                       for path in wherever(name))
        done = wire.server.run('unshare', '-m', 'sh', '-c', hide + 'exec "$@"', 'sh',
                               sys.executable, KNOCKD, '--config', knockd.config, 'rules')
        assert done.code == 0 and word in done.out, done.err


def test_the_guard_for_a_boot_without_python_hides_and_doubles_nothing(wire, box, started):
    knockd = started(anna='')
    folder = os.path.dirname(knockd.ledger)
    knockd.kill()
    with open(os.path.join(folder, 'probation'), 'w') as file:
        file.write(script.probation_text(script.PASSED))
    knockd.start()
    before, guard = box.saved(), os.path.join(folder, 'guard')
    knockd.kill()
    box.do(FLUSH)
    assert 'KNOCKD' not in box.saved()
    for _ in range(2):
        box.server.must('sh', guard, env=box.environment())
        assert box.saved() == before
    for address in wire.server.addresses:
        assert not wire.stranger.connects(address)
