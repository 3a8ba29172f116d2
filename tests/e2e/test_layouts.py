"""Boxes that drop by default, as Debian, ufw, firewalld and OpenWrt make them; their reloads."""

import os
import re

import pytest
from network import HIDDEN, until

pytestmark = pytest.mark.kernel
LAYOUTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'layouts')


def nft_file(name, before=''):
    return [('nft', before + 'include "%s"\n' % os.path.join(LAYOUTS, name))]


def restore(*options):
    """ufw keeps its rules with iptables: Debian's is the nft one."""
    rules = []
    for family, name in (('', 'ufw.rules4'), ('6', 'ufw.rules6')):
        with open(os.path.join(LAYOUTS, name)) as file:
            rules.append(('ip%stables-restore %s' % (family, ' '.join(options)), file.read()))
    return rules


FLUSH = [('iptables -F', ''), ('iptables -X', ''), ('ip6tables -F', ''), ('ip6tables -X', '')]
FIREWALLD = 'delete table inet firewalld\n'
FW4 = 'delete table inet fw4\n'
# name: how it comes up, and what its own tool does later
BOXES = {
    'debian': (nft_file('debian.nft'), {'reload': nft_file('debian.nft')}),
    'ufw': (restore(), {'reload': restore(), 'iptables -F': FLUSH + restore('--noflush')}),
    'firewalld': (nft_file('firewalld.nft'), {'reload': nft_file('firewalld.nft', FIREWALLD)}),
    'fw4': (nft_file('fw4.nft'), {'reload': nft_file('fw4.nft'),
                                  'restart': [('nft', FW4)] + nft_file('fw4.nft')})}


def perform(wire, steps):
    for command, text in steps:
        argv = ['nft', '-f', '-'] if command == 'nft' else command.split()
        wire.server.must(*argv, stdin=text)


@pytest.fixture(params=sorted(BOXES))
def box(request, wire):
    """The box's own firewall, up before the daemon; what its tool does later."""
    up, later = BOXES[request.param]
    perform(wire, up)
    yield later
    perform(wire, [('nft', 'flush ruleset')])


def closed_again(wire, knockd, address):
    wire.client.send(knockd.datagram('anna', op='close'), address)
    return until(lambda: not wire.client.connects(address), 0.5)    # or that was too fast


def test_a_knock_opens_and_its_end_closes_before_and_after_the_boxs_own_reload(wire, box, daemon):
    knockd = daemon(anna='')
    for name, steps in [('fresh', [])] + sorted(box.items()):
        perform(wire, steps)
        for address in wire.server.addresses:
            assert not wire.client.connects(address), name
            done = wire.client.knock('--open', 'tcp/2222', '--for', '60',
                                     knockd.uri('anna', address))
            assert done.code == 0, name + done.err + knockd.text()
            assert wire.client.connects(address)
            assert not wire.stranger.connects(address)
            assert until(lambda at=address: closed_again(wire, knockd, at), 5), knockd.text()


def test_what_is_open_lives_through_the_boxs_own_reload(wire, box, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '60',
                             knockd.uri('anna', address)).code == 0
    for name, steps in sorted(box.items()):
        perform(wire, steps)
        assert wire.client.reaches(address), name
        assert not wire.stranger.connects(address)


def test_the_port_stays_closed_while_knockd_does_not_run(wire, box, daemon):
    """The box's own firewall has no hole for it; ours opens one only for who has knocked."""
    for address in wire.server.addresses:
        assert not wire.client.connects(address, HIDDEN)
    knockd = daemon(anna='')
    knockd.stop()
    wire.server.nft('delete table inet knockd\n')
    for address in wire.server.addresses:
        assert not wire.client.connects(address, HIDDEN)


def test_nothing_else_of_the_box_changes(wire, box, daemon):
    def rules():
        """Everything but our table and our rule."""
        listing = wire.server.must('nft', '-s', 'list', 'ruleset').split('table ')
        return [line for table in listing if not table.startswith('inet knockd')
                for line in table.splitlines() if '0x40000000' not in line]
    before = rules()
    daemon(anna='')
    assert re.search('mark & 0x40000000 == 0x40000000 (counter .*)?accept',
                     wire.server.must('nft', 'list', 'ruleset')), 'iptables counts'
    assert rules() == before
