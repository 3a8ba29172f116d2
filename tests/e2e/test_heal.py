"""Whoever takes our rules away: they are back at once, openings included, once and not twice."""

import re
import socket
import time

import pytest
from network import CLOSED, HIDDEN, until

pytestmark = pytest.mark.kernel
RULE = 'mark & 0x40000000 == 0x40000000 accept'
FILTER = '''
table inet filter {
    chain input { type filter hook input priority 0; policy drop;
        ct state established,related accept
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport %d accept
    }
}
''' % CLOSED
LOSSES = {
    'nft flush ruleset': 'flush ruleset',
    'nft delete table inet knockd': 'delete table inet knockd',
    'nft flush table inet knockd': 'flush table inet knockd',
    'one chain of it': 'flush chain inet knockd check',
    'the service nftables restarts': 'flush ruleset\n' + FILTER,
    'fw4 reloads': 'flush table inet filter\n' + FILTER.replace(' }\n}', ' }\n}'),
    'fw4 restarts': 'delete table inet filter\n' + FILTER,
    'our rule in the chain of the box': 'flush chain inet filter input',
}


def listing(wire):
    """Our table and our rules, without what differs from time to time."""
    text = wire.server.must('nft', '-s', '-t', '-a', 'list', 'ruleset')
    own = re.search(r'^table inet knockd .*?^}', text, re.S | re.M)
    return re.sub(r' # handle \d+', '', own.group() if own else '') + str(text.count(RULE))


@pytest.fixture
def healed(wire, daemon):
    """A daemon on a dropping box where a port is open, and what that looks like."""
    wire.server.nft(FILTER)
    knockd = daemon(anna='')
    for address in wire.server.addresses:
        assert wire.client.knock('--open', 'tcp/2222', '--for', '60',
                                 knockd.uri('anna', address)).code == 0
    yield knockd, listing(wire)


@pytest.mark.parametrize('loss', sorted(LOSSES))
def test_what_was_taken_away_is_back_with_what_was_open(wire, healed, loss):
    knockd, before = healed
    wire.server.nft(LOSSES[loss])
    if LOSSES[loss] == 'flush ruleset':
        # Put back at once, with the answers of before; and once more when a look has found
        # that the box drops no more.
        for port in (CLOSED, HIDDEN):
            assert until(lambda at=port: wire.stranger.socket_error(
                wire.server.addresses[0], at) is ConnectionRefusedError, 5), knockd.text()
        before = listing(wire)
    assert until(lambda: listing(wire) == before, 5), listing(wire)
    for address in wire.server.addresses:
        assert wire.client.connects(address)
        assert not wire.stranger.connects(address)
    assert listing(wire) == before, 'nothing of ours is doubled'


def test_our_rule_in_the_chain_of_the_box_is_put_back_however_often_it_goes(wire, healed):
    """Not only the first two times: nobody had looked yet whether it was there again."""
    knockd, before = healed
    for _ in range(6):
        wire.server.nft(LOSSES['our rule in the chain of the box'])
        assert until(lambda: RULE in wire.server.must(
            'nft', 'list', 'chain', 'inet', 'filter', 'input'), 5), knockd.text()
    assert until(lambda: listing(wire) == before, 5)


def test_what_was_put_back_closes_on_time(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '2',
                             knockd.uri('anna', address)).code == 0
    opened = time.monotonic()
    wire.server.nft('flush ruleset')
    knockd.says('loaded again')
    assert wire.client.connects(address)
    assert until(lambda: not wire.client.connects(address), 8)
    assert 1 < time.monotonic() - opened < 2.5


def wakes(process):
    """How often it has gone to sleep so far: each command it runs is several times."""
    with open('/proc/%d/status' % process.pid) as file:
        return int(re.search(r'\nvoluntary_ctxt_switches:\s+(\d+)', file.read()).group(1))


def test_putting_back_wakes_nobody_again(wire, daemon):
    """No loop of putting back and being woken by oneself."""
    knockd = daemon(anna='')
    wire.server.nft('flush ruleset')
    knockd.says('loaded again')

    def quiet():
        before = wakes(knockd.process)
        return not until(lambda: wakes(knockd.process) != before, 0.5)
    assert until(quiet, 5)
    assert 'chain guard' in listing(wire)


def test_a_table_of_that_name_that_is_not_ours_gives_way(wire, daemon):
    daemon(anna='')
    wire.server.nft('delete table inet knockd\ntable inet knockd {\n chain guard {\n'
                    '  type nat hook prerouting priority -100\n }\n}')
    assert until(lambda: 'fib daddr' in listing(wire), 5)
    assert wire.client.socket_error(wire.server.addresses[0], HIDDEN) is ConnectionRefusedError


@pytest.mark.parametrize('family', ['ip', 'inet'])
def test_a_strangers_table_of_that_name_keeps_nothing_from_its_place(wire, daemon, family):
    """Of another family it stays, and what it does is read; its rules are like none of ours."""
    wire.server.nft('''table %s knockd {
        chain restore { type filter hook output priority 0; ip daddr 192.0.2.1 counter drop
        }
        chain input { type filter hook input priority 0; policy drop;
            ct state established,related accept
            ip protocol icmp accept
        }
    }''' % family)
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0
    assert not wire.stranger.connects(address)
    assert ('192.0.2.1' in wire.server.must('nft', 'list', 'ruleset')) == (family == 'ip')


def test_a_chain_that_comes_later_gets_its_rule(wire, daemon):
    """At boot the daemon may be there before the box's firewall."""
    knockd = daemon('accept_in = inet filter input', anna='')
    wire.server.nft(FILTER)
    assert until(lambda: RULE in wire.server.must('nft', 'list', 'ruleset'), 5)
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0


def test_a_box_that_begins_to_drop_is_answered_as_it_does(wire, daemon):
    """answer = box: the policy of the box is looked at again when it changes."""
    daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.socket_error(address, HIDDEN) is ConnectionRefusedError
    wire.server.nft(FILTER)
    for port in (HIDDEN, 2235):
        assert until(lambda at=port: wire.client.socket_error(address, at).__name__ in (
            'timeout', 'TimeoutError'), 5)


def test_a_variable_of_the_kernel_that_is_set_otherwise_is_set_back(wire, daemon, address):
    """Looked at once a step, and when the config is read again. Without it a stranger would see
    from which decoy the answer comes."""
    knockd = daemon(anna='')
    wire.server.set(ipv4__fwmark_reflect=0, ipv6__fwmark_reflect=0)
    assert wire.stranger.socket_error(address, HIDDEN) is socket.timeout, 'from another port'
    knockd.reload()
    assert until(lambda: wire.stranger.socket_error(address, HIDDEN) is ConnectionRefusedError, 5)
    assert 'a variable of the kernel' in knockd.text()
