"""Interfaces come and go, and are of every kind; the daemon stays and is never restarted.

Each test is done twice: with the packet sockets that this kernel wants, and with those of kernels
before 6.15, one for IPv4 and one for IPv6 (the same two where this kernel is so old)."""

import contextlib
import json
import struct
import sys

import carriers
import network
import pytest
from network import finish_checksums, forged, until
from test_probation import state

import knockd as script

pytestmark = pytest.mark.kernel
LATE = ('10.9.0.21', 'fd00:9::21')
OLD_EARS = '''
import sys
sys.path.insert(0, %r)
import knockd
knockd.packet_protocols = lambda: [knockd.ETH_P_IP, knockd.ETH_P_IPV6]
sys.exit(knockd.main(sys.argv[1:]))
''' % network.TOP


@pytest.fixture(autouse=True, params=['ears', 'old ears'])
def ears(request, monkeypatch, tmp_path):
    if request.param == 'old ears':
        path = tmp_path / 'knockd.py'
        path.write_text(OLD_EARS)
        monkeypatch.setattr(network, 'KNOCKD', str(path))


def plug(wire):
    """A second interface of the server on the same bridge, as a PPPoE that dials again."""
    wire.hub.must('ip', 'link', 'add', 'late', 'master', 'bridge', 'up', 'type', 'veth', 'peer',
                  'name', 'late', 'netns', str(wire.server.pid))
    wire.server.must('ip', '-b', '-', stdin='link set late up\n' + ''.join(
        'addr add %s dev late nodad\n' % address for address in (
            LATE[0] + '/32', LATE[1] + '/128')))
    finish_checksums(wire.server, 'late')


def unplug(wire):
    wire.server.must('ip', 'link', 'del', 'late')
    wire.client.must('ip', 'neigh', 'flush', 'all')         # it comes back with another MAC


def opens_at(wire, knockd, addresses):
    for address in addresses:
        done = wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address))
        assert done.code == 0, done.err + knockd.text()
        assert not wire.stranger.connects(address)


def test_an_interface_that_comes_later_goes_and_comes_again(wire, daemon):
    knockd = daemon(anna='')
    pid = knockd.process.pid
    for _ in range(2):
        plug(wire)
        opens_at(wire, knockd, LATE)
        unplug(wire)
    opens_at(wire, knockd, wire.server.addresses)
    assert knockd.process.poll() is None and knockd.process.pid == pid


def test_a_daemon_that_starts_before_any_interface_is_up(wire, daemon):
    wire.server.must('ip', 'link', 'set', 'eth0', 'down')
    try:
        knockd = daemon(anna='')
    finally:
        wire.server.must('ip', 'link', 'set', 'eth0', 'up')
        wire.server.must('ip', 'addr', 'replace', wire.server.addresses[1] + '/64', 'dev', 'eth0',
                         'nodad')
    opens_at(wire, knockd, wire.server.addresses)


def test_an_interface_that_goes_down_and_up(wire, daemon):
    knockd = daemon(anna='')
    wire.server.must('ip', 'link', 'set', 'eth0', 'down')
    wire.server.must('ip', 'link', 'set', 'eth0', 'up')
    wire.server.must('ip', 'addr', 'replace', wire.server.addresses[1] + '/64', 'dev', 'eth0',
                     'nodad')
    opens_at(wire, knockd, wire.server.addresses)


def test_an_address_that_is_added_is_guarded_at_once(wire, daemon):
    knockd = daemon(anna='')
    wire.server.must('ip', 'addr', 'add', '10.9.0.22/24', 'dev', 'eth0')
    try:
        assert not wire.client.connects('10.9.0.22')
        opens_at(wire, knockd, ['10.9.0.22'])
    finally:
        wire.server.must('ip', 'addr', 'del', '10.9.0.22/24', 'dev', 'eth0')
    opens_at(wire, knockd, wire.server.addresses)


# --- bridges -------------------------------------------------------------------------------------
@contextlib.contextmanager
def bridged(wire):
    """The second interface as the only port of a bridge, whose hardware address is its own: each
    frame to the bridge is for the port as well."""
    plug(wire)
    same = wire.server.hardware_address('late')
    try:
        wire.server.must('ip', '-b', '-', stdin='''
            link add br-lan type bridge mcast_snooping 0
            addr flush dev late
            link set br-lan address %s
            link set late master br-lan
            link set br-lan up
            addr add %s/32 dev br-lan
            addr add %s/128 dev br-lan nodad\n''' % ((same,) + LATE))
        wire.client.must('ip', 'neigh', 'flush', 'all')
        assert until(lambda: all(
            wire.client.socket_error(address, network.CLOSED) is ConnectionRefusedError
            for address in LATE))
        yield
    finally:
        wire.server.run('ip', 'link', 'del', 'br-lan')
        unplug(wire)


def counts(knockd):
    return json.loads(knockd.do('status', '--json').out)['counts']


def test_what_comes_by_a_port_of_a_bridge_is_heard_once_at_the_bridge(wire, daemon):
    knockd = daemon(anna='')
    with bridged(wire):
        for number, address in enumerate(LATE, 1):
            wire.client.send(knockd.datagram('anna'), address)
            knockd.says('open anna', number)
            assert wire.client.reaches(address)
        knockd.settle(wire.client)
        assert not [kind for kind, count in counts(knockd).items() if kind == 'copy' and count]
        opens_at(wire, knockd, wire.server.addresses)


def test_a_bridge_that_is_made_later_and_taken_away_again(wire, daemon):
    knockd = daemon(anna='')
    plug(wire)
    opens_at(wire, knockd, LATE)
    unplug(wire)
    with bridged(wire):
        opens_at(wire, knockd, LATE)
    plug(wire)
    opens_at(wire, knockd, LATE)
    unplug(wire)


@pytest.mark.parametrize('trusted,passes', [('br-lan', False), ('late', True), ('br+', False)])
def test_trust_is_about_the_bridge_and_not_about_its_port(wire, daemon, trusted, passes):
    """What is trusted ends no probation, and no SYN of it counts."""
    knockd = daemon('trust = ' + trusted, anna='', bert='')
    knockd.probation = knockd.ledger.replace('ledger.json', 'probation')
    knockd.kill()
    with open(knockd.probation, 'w') as out:
        out.write(script.probation_text(script.ON_TRIAL, 600000))
    knockd.start()
    with bridged(wire):
        carriers.fresh_step()
        step = script.step_of(script.moment().wall)
        ports = script.step_ports(carriers.keys_of(knockd, 'bert'), step)
        carriers.touch_all(wire.client, LATE[0], ports)
        if passes:
            knockd.says('open bert ')
        wire.client.send(knockd.datagram('anna'), LATE[1])
        knockd.says('open anna ')
        for _ in range(2):              # SYNs are read after datagrams
            knockd.settle(wire.client)
        assert knockd.count('open bert ') == passes
        assert state(knockd) == ('passed' if passes else 'on trial')


# --- VLANs ---------------------------------------------------------------------------------------
PRIORITY, NUMBER = 0xa000, 0x0005       # IEEE 802.1Q: a tag is priority, then the VLAN's number


def tagged(wire, tag, packet):
    """An Ethernet frame to the server. IEEE 802.1Q: 0x8100 and the tag stand before its type."""
    kind = 0x86dd if packet[0] >> 4 == 6 else 0x0800
    places = [bytes.fromhex(member.hardware_address().replace(':', ''))
              for member in (wire.server, wire.client)]
    return b''.join(places) + struct.pack('>HHH', 0x8100, tag, kind) + packet


def test_a_tag_with_a_number_is_another_network_and_one_without_is_none(wire, daemon):
    """Of a VLAN whose interface is not here, IP sees nothing."""
    knockd = daemon(anna='')
    with wire.client.make_socket(network.socket.AF_PACKET, network.socket.SOCK_RAW) as sender:
        sender.bind(('eth0', 0))
        for tag, opens in ((NUMBER, 0), (PRIORITY | NUMBER, 0), (PRIORITY, 1), (0, 2)):
            for source, target in zip(wire.client.addresses, wire.server.addresses):
                packet = forged(source, target, knockd.datagram('anna'))
                sender.send(tagged(wire, tag, packet))
            knockd.settle(wire.client)
            # Another socket than the one that is settled may hear the last of them.
            assert until(lambda least=opens * 2: knockd.count('open anna ') >= least), tag
            assert knockd.count('open anna ') == opens * 2, tag


# --- without Ethernet ----------------------------------------------------------------------------
TUN = '''
import fcntl, struct, subprocess, sys, time
tun = open('/dev/net/tun', 'r+b', buffering=0)
# linux/if_tun.h: TUNSETIFF, IFF_TUN, IFF_NO_PI
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'ppp0', 0x0001 | 0x1000))
subprocess.check_call(['ip', 'link', 'set', 'ppp0', 'up'])
for packet in sys.argv[1:]:
    tun.write(bytes.fromhex(packet))
time.sleep(60)
'''


def test_a_knock_by_an_interface_without_ethernet_opens(wire, daemon):
    """As PPPoE and WireGuard are: a frame begins with its IP header."""
    knockd = daemon(anna='')
    packets = [forged(source, target, knockd.datagram('anna')).hex()
               for source, target in zip(('203.0.113.7', '2001:db8::7'), wire.server.addresses)]
    with wire.server.start(sys.executable, '-c', TUN, *packets):
        knockd.says('open anna 203.0.113.7 ')
        knockd.says('open anna 2001:db8::7 ')


# --- many clients --------------------------------------------------------------------------------
def test_more_clients_than_one_filter_holds_are_all_heard_in_both_families(wire, daemon):
    names = ['c%d' % number for number in range(800)]
    knockd = daemon(**dict.fromkeys(names, ''))
    assert len(names) * 5 > script.FILTER_TAGS, 'so many steps are good at a time'
    for name in names[::200] + names[-1:]:
        for address in wire.server.addresses:
            wire.client.send(knockd.datagram(name), address)
        knockd.says('open %s ' % name, 2)
    for _ in range(50):
        wire.client.send(knockd.datagram('c1', secret=bytes(32)), wire.server.addresses[0])
    knockd.settle(wire.client)
    assert 'junk' not in counts(knockd), 'what no client made stays in the kernel'
