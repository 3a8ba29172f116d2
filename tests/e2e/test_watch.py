"""Why did it not open? `knockd.py watch` hears real packets and says each reason in words."""

import array
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

import knock
import network
import pytest
from carriers import keys_of, tool, touch_all
from floods import BLAST, begin, blast
from network import HIDDEN, KNOCK, KNOCKD, environment, forged, ip_packet, until

CLIENTS = dict.fromkeys(('good', 'skewed', 'torn', 'split', 'damaged', 'ported', 'pinger', 'nat',
                         'again', 'renewed', 'part', 'moved', 'ahead', 'foreign'), '')
CLIENTS.update(greedy='allow = tcp/2229', gone='expires = 2001-01-01', deaf='allow = tcp/2231',
               dropped='allow = tcp/2222', six='allow = tcp/2231')
OLD = os.urandom(32)
FLOOD = os.path.join(os.path.dirname(BLAST), 'flood.py')


class Watch:
    def __init__(self, daemon, *arguments):
        self.path = os.path.join(daemon.folder, 'watch-%s' % time.monotonic())
        with open(self.path, 'wb') as out:
            self.process = subprocess.Popen(
                daemon.namespace.command(*daemon.argv('watch', *arguments)),
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment())
        self.says('knock now')

    def text(self):
        with open(self.path) as lines:
            return lines.read()

    def says(self, *words):
        def found():
            return [line for line in self.text().splitlines() if all(w in line for w in words)]
        assert until(found, 8), '%r is not said:\n%s' % (words, self.text())
        return found()[0]

    def end(self):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(10) == 0, self.text()
        return self.text()


@contextlib.contextmanager
def watching(daemon, *arguments):
    watch = Watch(daemon, *arguments)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


@pytest.fixture(scope='module')
def knockd(module_daemon):
    CLIENTS['renewed'] = 'old_secret = %s\nold_until = 2099-01-01' % knock.encode_secret(OLD)
    return module_daemon('port = 40000\ncarriers = udp, ports\n'
                         'hide = tcp/2222, tcp/2229, tcp/2231, udp/5182', **CLIENTS)


@pytest.fixture(scope='module')
def watch(knockd):
    with watching(knockd) as made:
        yield made


@pytest.fixture
def server(wire):
    return wire.server.addresses[0]


def test_a_stranger(wire, watch, server):
    wire.client.send(os.urandom(100), server)
    watch.says('datagram from 10.9.0.2 by eth0 to port 40000', 'no client of this server', 'rekey')


def test_clocks_hours_apart(wire, knockd, watch, server):
    made = int(time.time() * 1000) - (2 * 60 + 3) * 60000 - 5000
    wire.client.send(knockd.datagram('skewed', time=made), server)
    watch.says('skewed', 'made at ' + time.strftime('%H:%M:%S', time.gmtime(made // 1000)),
               'clocks differ by 2 h 3 min')


def test_cut_fragmented_and_changed(wire, knockd, watch, server):
    wire.client.send(knockd.datagram('torn')[:60], server)
    watch.says('torn', 'was cut')
    body = struct.pack('!HHHH', 40001, 40000, 400, 0) + knockd.datagram('split')
    wire.client.inject(ip_packet('10.9.0.2', server, 17, body[:80], fragment=0x2000))
    watch.says('split', 'fragments')
    sent = knockd.datagram('damaged')
    packet = bytearray(forged('10.9.0.2', server, sent))
    packet[-1] ^= 1
    wire.client.inject(bytes(packet))
    watch.says('damaged', 'changed or cut', 'checksum is wrong')


def test_another_port_and_a_carrier_that_is_off(wire, knockd, watch, server):
    wire.client.send(knockd.datagram('ported'), server, 40007)
    watch.says('ported', 'port 40007', 'port = 40000')
    echo = b'\x08\0\0\0\0\1\0\1' + knockd.datagram('pinger')
    wire.client.inject(ip_packet('10.9.0.2', server, 1, echo))
    watch.says('pinger', 'carrier icmp is off')


def test_source_replay_scope_expiry_and_an_old_secret(wire, knockd, watch, server):
    wire.client.send(knockd.datagram('nat', source='203.0.113.9'), server)
    watch.says('nat', 'names the source 203.0.113.9', 'came from 10.9.0.2', '--source none')
    wire.client.send(knockd.datagram('greedy', open='tcp/2222'), server)
    watch.says('greedy', 'not allowed tcp/2222', 'see its section')
    wire.client.send(knockd.datagram('gone'), server)
    watch.says('gone', 'expired')
    sent = knockd.datagram('again')
    wire.client.send(sent, server)
    watch.says('again', 'is good')
    wire.stranger.send(sent, server)
    watch.says('again', '10.9.0.3', 'replay')
    wire.client.send(knockd.datagram('renewed'), server)
    watch.says('renewed', 'is good')
    assert until(lambda: knockd.count('open renewed'))
    wire.client.send(knockd.datagram('renewed', secret=OLD), server)
    watch.says('renewed', 'secret from before `rekey`')


def test_knock_behind_a_real_nat(wire, knockd, watch, server):
    inside, outside = '10.9.0.2', '10.9.0.77'
    wire.client.must('ip', 'addr', 'add', outside + '/24', 'dev', 'eth0')
    wire.client.nft('table ip nat {\n chain out {\n type nat hook postrouting priority 100;\n'
                    ' udp dport 40000 snat to %s\n }\n}' % outside)
    try:
        done = wire.client.knock('--wait', '0', '--port', '40000', '--source', inside,
                                 knockd.uri('moved', server))
        assert done.code == 0, done.err
        watch.says('moved', 'names the source %s, and came from %s:' % (inside, outside),
                   '--source none')
    finally:
        wire.client.nft('delete table ip nat')
        wire.client.must('ip', 'addr', 'del', outside + '/24', 'dev', 'eth0')


def test_knock_of_a_clock_two_hours_ahead(wire, knockd, watch, server):
    ahead = 2 * 3600
    earliest = int(time.time()) + ahead
    done = wire.client.run(tool('faketime'), '-f', '+2h', sys.executable, KNOCK, '--wait', '0',
                           '--port', '40000', knockd.uri('ahead', server))
    assert done.code == 0, done.err
    line = watch.says('ahead', 'set both')
    latest = int(time.time()) + ahead
    # A moment passes until it is heard: a little less than two hours is left.
    assert re.search('your clocks differ by (2 h 0|1 h 59) min', line), line
    assert re.search(r'made at (\S+) UTC', line).group(1) in [
        time.strftime('%H:%M:%S', time.gmtime(second)) for second in range(earliest, latest + 1)]


def test_the_right_secret_and_another_servers_id(wire, knockd, watch, server):
    done = wire.stranger.knock('--wait', '0', '--port', '40000',
                               knockd.uri('foreign', server, server_id='box-elsewhere'))
    assert done.code == 0, done.err
    line = watch.says('datagram from 10.9.0.3 by eth0 to port 40000',
                      'no client of this server made it', 'another line or server id')
    assert 'foreign' not in line


def test_ipv6_honoured_and_refused(wire, knockd, watch):
    uri = knockd.uri('six', wire.server.addresses[1])
    for arguments in ((), ('--open', 'tcp/2222')):
        done = wire.client.knock('--wait', '0', '--port', '40000', *arguments, uri)
        assert done.code == 0, done.err
    watch.says('six: its knock from fd00:9::2 by eth0 to port 40000 is good')
    watch.says('six', 'honoured, open for')
    watch.says('six', 'nothing listens on tcp/2231')
    watch.says('six: its knock from fd00:9::2', 'not allowed tcp/2222', 'see its section')


def test_honoured_and_nobody_listens(wire, knockd, watch, server):
    wire.client.send(knockd.datagram('deaf'), server)
    watch.says('deaf', 'honoured, open for')
    watch.says('deaf', 'nothing listens on tcp/2231')


def test_another_rule_drops_it_and_nothing_of_the_trace_is_left(wire, knockd, server):
    wire.server.nft('table inet box {\n chain late {\n type filter hook input priority 100;\n'
                    ' tcp dport 2222 drop\n }\n}')
    try:
        with watching(knockd, 'dropped') as watch:
            wire.client.send(knockd.datagram('dropped'), server)
            watch.says('dropped', 'is good')
            until(lambda: wire.client.connects(server, HIDDEN) or 'chain' in watch.text(), 5)
            watch.says('chain inet box late drops', 'tcp dport 2222 drop')
            watch.end()
    finally:
        wire.server.nft('delete table inet box')
    assert 'knockd-watch' not in wire.server.must('nft', 'list', 'tables')


def test_four_of_six_ports(wire, knockd, watch, server):
    ports = knock.step_ports(keys_of(knockd, 'part'), knock.step_of(int(time.time() * 1000)))
    touch_all(wire.client, server, ports[:2] + ports[3:5])
    line = watch.says('part', '4 of six ports', 'number 3 and 6')
    assert str(ports[2]) not in line and str(ports[5]) not in line


def test_the_summary_of_silence_and_without_a_daemon(wire, knockd, server):
    with watching(knockd, 'good') as watch:
        said = watch.end()
    assert 'UDP is blocked' in said and '--via ports' in said and 'port = ' in said
    knockd.kill()
    with watching(knockd, 'good') as watch:
        wire.client.send(knockd.datagram('good'), server)
        watch.says('good', 'is good')
        watch.says('good', 'no daemon runs')
        said = watch.end()
    assert not [name for name, secret in knockd.secrets.items()
                if knock.encode_secret(secret) in said]


def seconds_of(process):
    """Processor time of the watch: its nsenter has become it."""
    with open('/proc/%d/stat' % process.pid) as stat:
        fields = stat.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def segmented(wire, address, seconds):
    """Junk cut apart by the kernel (UDP_SEGMENT), by a sender a core: 330,000/s and more if the
    machine is quiet and complains of closed ports at Linux' own rate. (Frames of a packet ring
    come to a third of that here.)"""
    wire.server.set(ipv4__icmp_ratelimit=1000, ipv4__icmp_ratemask=6168)
    control = array.array('I', [network.ETHTOOL_STXCSUM, 1])
    with wire.stranger.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        network.fcntl.ioctl(card, network.SIOCETHTOOL, struct.pack(
            '16sP16x', b'eth0', control.buffer_info()[0]))
    wire.stranger.must('ip', 'link', 'set', 'eth0', 'gso_max_segs', '1')
    with wire.stranger.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return [subprocess.Popen(
            [sys.executable, FLOOD, str(sender.fileno()), address, '200000', str(seconds)],
            pass_fds=[sender.fileno()], stdout=subprocess.PIPE) for _ in range(2)]


def came(wire):
    """How many packets the server's card has counted."""
    with open('/proc/%d/net/dev' % wire.server.pid) as lines:
        return int(lines.read().partition('eth0:')[2].split()[1])


@pytest.mark.parametrize('kind', ('one', 'udp', 'syn', 'segmented'))
def test_a_flood_costs_little_and_is_counted(wire, knockd, server, kind):
    source = '198.18.*' if kind == 'syn' else '10.9.0.3'
    with watching(knockd) as watch:
        began, used, before = time.monotonic(), seconds_of(watch.process), came(wire)
        if kind == 'segmented':
            floods = segmented(wire, server, 4)
        else:
            floods = [begin(blast(wire, kind, server, '4s', source=source))]
        for process in floods:
            process.communicate()
        seconds, sent = time.monotonic() - began, came(wire) - before
        share = (seconds_of(watch.process) - used) / seconds
        said = watch.end()
    wire.server.set(ipv4__icmp_ratemask=0)
    print(kind, '%d a second came: %.0f %% of a core' % (sent / seconds, share * 100))
    assert share < 0.2
    assert int(re.search(r'(\d+) packets came too fast', said).group(1)) > sent / 2
    assert len(said.splitlines()) < 60


def test_the_last_good_config_rules_and_nobody_else_may_look(wire, knockd, server):
    if knockd.process.poll() is not None:
        knockd.start()
    with open(knockd.config, 'a') as out:
        out.write('\nnonsense = 1\n')
    try:
        with watching(knockd, 'good') as watch:
            watch.says('config is broken', 'last good')
            wire.client.send(knockd.datagram('good'), server)
            watch.says('good', 'honoured, open for')
    finally:
        knockd.write_config()
    with open(KNOCKD) as script:
        denied = subprocess.run(
            ['setpriv', '--reuid', '65534', '--clear-groups', '/usr/bin/python3', '-', 'watch'],
            stdin=script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if os.geteuid() == 0:
        assert denied.returncode == 1 and b'root' in denied.stderr


def test_ended_by_a_signal_it_takes_its_table_along(wire, knockd, server):
    before = wire.server.must('nft', '-s', 'list', 'ruleset')
    wire.server.nft('table inet knockd-watch\ndelete table inet knockd-watch')   # of a killed one
    with watching(knockd) as watch:
        wire.client.send(knockd.datagram('deaf'), server)
        watch.says('deaf', 'is good')
        assert until(lambda: 'knockd-watch' in wire.server.must('nft', 'list', 'tables'))
        watch.process.send_signal(signal.SIGTERM)
        watch.process.wait(10)
    assert 'knockd-watch' not in wire.server.must('nft', 'list', 'tables')
    assert before.count('\n') > 10


def test_what_a_killed_one_left_is_taken_along_without_a_knock(wire, knockd):
    wire.server.nft('add table inet knockd-watch')
    with watching(knockd) as watch:
        watch.end()
    assert 'knockd-watch' not in wire.server.must('nft', 'list', 'tables')


def test_sequences_codes_and_syns_that_are_off(wire, daemon, server):
    off = daemon('carriers = udp', six='', typed='code = yes', badge='')
    with watching(off) as watch:
        for via, name in (('ports', 'six'), ('syn', 'badge')):
            done = wire.client.knock('--wait', '0', '--via', via, off.uri(name, server))
            assert done.code == 0, done.err
        step = knock.step_of(int(time.time() * 1000))
        touch_all(wire.stranger, server,
                  knock.code_ports(knock.code_at(keys_of(off, 'typed'), step)))
        watch.says('six: its knock from 10.9.0.2', 'carrier ports is off', 'see `carriers`')
        watch.says('badge: its knock from 10.9.0.2', 'carrier syn is off')
        watch.says('typed: its knock from 10.9.0.3', 'carrier code is off')
    assert off.count('open ') == 0
