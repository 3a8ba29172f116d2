"""One writer of the firewall: a slow, failing or stopped nft harms none but those it opens for."""

import contextlib
import os
import re
import time

import pytest
from network import HIDDEN, until

pytestmark = pytest.mark.kernel
# It does what the files in its folder say, then what it is called for.
NFT = '''#!/bin/sh
echo "$@" >> {0}/calls
if [ -e {0}/slow ]; then sleep "$(cat {0}/slow)"; fi
if [ -e {0}/lists-slowly ] && [ "$5" = ruleset ]; then sleep "$(cat {0}/lists-slowly)"; fi
if [ -e {0}/stop ]; then kill -STOP $$; fi
if [ -e {0}/fails ]; then echo 'no such thing today' >&2; exit 1; fi
exec {1} "$@"
'''
INTERVALS = 60000


class Nft:
    """An nft that can be made slow, in front of the real one on the daemon's path."""

    def __init__(self, wire, folder):
        self.wire, self.folder = wire, str(folder)
        self.real = wire.server.must('sh', '-c', 'command -v nft').strip()
        with open(os.path.join(self.folder, 'nft'), 'w') as out:
            out.write(NFT.format(self.folder, self.real))
        os.chmod(os.path.join(self.folder, 'nft'), 0o755)

    def set(self, name, text=''):
        with open(os.path.join(self.folder, name), 'w') as out:
            out.write(text)

    def unset(self, name):
        os.unlink(os.path.join(self.folder, name))

    def changes(self):
        """How many changes it was called for."""
        with open(os.path.join(self.folder, 'calls')) as calls:
            return calls.read().count('-f -')

    def is_quiet(self):
        """It is not called for some time, which the call takes."""
        path = os.path.join(self.folder, 'calls')
        before = os.path.getsize(path)
        return not until(lambda: os.path.getsize(path) != before, 0.3)


@pytest.fixture
def nft(wire, tmp_path):
    made = Nft(wire, tmp_path)
    wire.server.must('mount', '--bind', made.folder, '/usr/local/sbin')
    yield made
    wire.clear()
    wire.server.must('umount', '-l', '/usr/local/sbin')      # one that is slow may still run


def ask(wire, knockd, *names):
    for name in names:
        wire.client.send(knockd.datagram(name), wire.server.addresses[0])


def test_while_nft_is_slow_others_are_judged_at_once_and_the_delay_is_told(wire, nft, daemon):
    knockd = daemon(anna='', bert='', carl='')
    nft.set('slow', '3')
    began = time.monotonic()
    ask(wire, knockd, 'anna')
    time.sleep(0.2)                             # nft is under way now
    wire.stranger.send(knockd.datagram('bert', open='tcp/2229'), wire.server.addresses[0])
    knockd.says('refused bert 10.9.0.3 not allowed tcp/2229')
    assert time.monotonic() - began < 1, 'the loop does not wait for nft'
    knockd.says('open anna 10.9.0.2 waits')
    assert 1.9 < time.monotonic() - began < 2.9
    nft.unset('slow')
    line = knockd.says('open anna 10.9.0.2 tcp/2222 30s')
    assert 2500 < int(re.search(r'(\d+)ms$', line).group(1)) < 4500, 'open is said when it is'
    assert wire.client.connects(wire.server.addresses[0])


def test_knocks_that_come_while_nft_runs_are_one_change(wire, nft, daemon):
    clients = dict.fromkeys(['c%d' % number for number in range(12)], '')
    knockd = daemon(**clients)
    until(lambda: nft.changes(), 1)
    nft.set('slow', '1')
    before = nft.changes()
    ask(wire, knockd, *clients)
    for name in clients:
        knockd.says('open %s ' % name)
    assert nft.changes() - before <= 3


def test_what_fails_is_told_and_tried_again(wire, nft, daemon):
    knockd = daemon(anna='')
    nft.set('fails')
    ask(wire, knockd, 'anna')
    assert 'no such thing today' in knockd.says('open anna 10.9.0.2 failed')
    assert not wire.client.connects(wire.server.addresses[0])
    nft.unset('fails')
    knockd.says('open anna 10.9.0.2 tcp/2222 30s')
    assert wire.client.connects(wire.server.addresses[0])
    assert knockd.count('open anna 10.9.0.2 failed') == 1, 'told once'


def test_a_stopped_nft_is_killed_and_others_are_heard_meanwhile(wire, nft, daemon):
    knockd = daemon(anna='', bert='')
    nft.set('stop')
    ask(wire, knockd, 'anna')
    knockd.says('open anna 10.9.0.2 waits')
    ask(wire, knockd, 'bert')
    knockd.says('open bert 10.9.0.2 waits')
    nft.unset('stop')
    assert until(lambda: knockd.count('open bert 10.9.0.2 tcp/2222'), 15), knockd.text()
    assert knockd.count('open anna 10.9.0.2 tcp/2222') == 1
    assert wire.client.connects(wire.server.addresses[0])


def test_rules_that_went_away_are_back_when_nft_works_again(wire, nft, daemon):
    knockd = daemon(anna='')
    nft.set('fails')
    wire.server.must(nft.real, 'flush', 'ruleset')
    knockd.says('firewall: ')
    nft.unset('fails')
    assert until(lambda: not wire.stranger.connects(wire.server.addresses[0]), 3)


def test_openings_alone_load_no_table(wire, nft, daemon):
    """A loaded table is one in which packets under way are judged by two generations."""
    knockd = daemon(anna='', bert='')
    before = wire.server.must(nft.real, '-a', 'list', 'chain', 'inet', 'knockd', 'guard')
    ask(wire, knockd, 'anna', 'bert')
    wire.client.send(knockd.datagram('anna', op='close'), wire.server.addresses[0])
    wire.client.send(knockd.datagram('bert', seconds=1), wire.server.addresses[0])
    knockd.says('close anna')
    time.sleep(1.5)                             # an expiry is one of the changes
    assert wire.server.must(nft.real, '-a', 'list', 'chain', 'inet', 'knockd', 'guard') == before


# --- harm: changes of our table by others ---------------------------------------------------------
GUARD = 'type filter hook prerouting priority %s; policy %s;'
HARMS = {       # {0}: who is open; {1}: a stranger; {2}: a handle of the chain check
    'table emptied': 'flush table inet knockd',
    'table gone': 'delete table inet knockd',
    'table asleep': 'add table inet knockd {{ flags dormant; }}',
    'another table': 'delete table inet knockd\ntable inet knockd {{\n chain guard {{\n'
                     '  type nat hook prerouting priority -100\n }}\n}}',
    'chain emptied': 'flush chain inet knockd guard',
    'chain gone': 'flush chain inet knockd guard\ndelete chain inet knockd guard',
    'chain renamed': 'rename chain inet knockd closed disclosed',
    'chain elsewhere': 'flush chain inet knockd guard\ndelete chain inet knockd guard\n'
                       'add chain inet knockd guard {{ ' + GUARD % (300, 'accept') + ' }}',
    'policy': 'add chain inet knockd guard {{ ' + GUARD % (-149, 'drop') + ' }}',
    'rule gone': 'delete rule inet knockd check handle {2}',
    'rule first': 'insert rule inet knockd guard meta mark set 0x40000000 accept',
    'rule last': 'add rule inet knockd closed accept',
    'set emptied': 'flush set inet knockd open4',
    'set gone': 'flush chain inet knockd check\ndelete set inet knockd open4',
    'opening gone': 'delete element inet knockd open4 {{ {0} . tcp . 2222 }}',
    'stranger let in': 'add element inet knockd open4 {{ {1} . tcp . 2222 }}'}


def parts(wire, nft):
    """Our chains and sets, without handles and times; none while the table is gone."""
    listed = wire.server.run(nft.real, 'list', 'table', 'inet', 'knockd').out
    _, _, text = listed.partition('\n')
    return set(re.split('\n\n|\n}', re.sub(r' (timeout|expires) \w+', '', text)))


@pytest.mark.parametrize('harm', sorted(HARMS))
def test_what_somebody_changes_is_changed_back_without_waiting_for_a_listing(
        wire, nft, daemon, harm):
    """Before, one that took long, or that had to rest, kept the ports open, or an owner out."""
    knockd = daemon('answer = drop', anna='')
    for address in wire.server.addresses:
        wire.client.send(knockd.datagram('anna', seconds=60), address)
        assert wire.client.reaches(address)
    assert until(nft.is_quiet, 5), 'the look that follows the load is over'
    rules = wire.server.must(nft.real, '-a', 'list', 'chain', 'inet', 'knockd', 'check')
    before, handle = parts(wire, nft), re.findall(r' # handle (\d+)', rules)[-1]
    nft.set('lists-slowly', '2')
    began = time.monotonic()
    wire.server.must(nft.real, HARMS[harm].format(
        wire.client.addresses[0], wire.stranger.addresses[0], handle))

    def is_back():
        now = parts(wire, nft)                  # a chain that was renamed is there besides
        return now >= before and 'dormant' not in str(now)
    assert until(is_back, 1.5), (before, parts(wire, nft))
    print('%s: back %d ms after its nft began' % (harm, (time.monotonic() - began) * 1000))
    for address in wire.server.addresses:
        assert wire.client.connects(address)
        assert not wire.stranger.connects(address)


def test_harm_without_end_keeps_no_knock_waiting_and_costs_not_all_the_time(wire, nft, daemon):
    knockd = daemon('answer = drop', anna='', bert='')
    script = 'while :; do %s flush chain inet knockd guard; sleep 0.01; done' % nft.real
    with wire.server.start('sh', '-c', script):
        assert until(lambda: nft.changes() > 3)
        ask(wire, knockd, 'anna')
        knockd.says('open anna 10.9.0.2 tcp/2222 30s')
        began, loads, used = time.monotonic(), nft.changes(), cpu_seconds(knockd)
        time.sleep(2)
        took = time.monotonic() - began
        print('harmed every 10 ms: %d loads a second, %d %% of a CPU' % (
            (nft.changes() - loads) / took, (cpu_seconds(knockd) - used) / took * 100))
        assert cpu_seconds(knockd) - used < 0.6 * took
    assert until(lambda: len(wire.server.must(
        nft.real, 'list', 'chain', 'inet', 'knockd', 'guard').splitlines()) > 5, 3)
    assert wire.client.reaches(wire.server.addresses[0])
    assert not wire.stranger.connects(wire.server.addresses[0])


def cpu_seconds(knockd):
    """Its own, and of the commands that it has run."""
    with open('/proc/%d/stat' % knockd.process.pid) as file:
        fields = file.read().rpartition(')')[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')


# --- huge sets of others --------------------------------------------------------------------------
def block_much(wire):
    """Somebody's blocklist, in parts: a user namespace's netlink takes no more at once."""
    wire.server.nft('table inet blocked {\n set b { type ipv4_addr; flags interval\n }\n'
                    ' chain c { type filter hook input priority -5\n  ip saddr @b drop\n }\n}\n')
    ranges = []
    for number in range(INTERVALS):
        block = '%d.%d.%d.' % (20 + number // 15000, number // 60 % 250, number % 60 * 4)
        ranges.append('%s1-%s2' % (block, block))
    for first in range(0, INTERVALS, 1500):
        wire.server.nft('table inet blocked {\n set b { type ipv4_addr; flags interval; '
                        'elements = { %s }\n }\n}\n' % ', '.join(ranges[first:first + 1500]))


@contextlib.contextmanager
def restless(wire):
    """Somebody changes a rule every 0.2 s."""
    script = 'while :; do nft add rule inet blocked c counter; sleep 0.2; done'
    with wire.server.start('sh', '-c', script):
        yield


def test_beside_a_huge_set_and_changing_rules_a_knock_opens_as_fast_as_nft_can(wire, daemon):
    block_much(wire)
    knockd = daemon(anna='', bert='')
    began = time.monotonic()
    wire.server.nft('add element inet blocked b { 9.9.9.9 }')
    one_call = time.monotonic() - began
    worst = []
    with restless(wire):
        for name in ('anna', 'bert') * 4:
            before = knockd.count('open %s ' % name)
            began = time.monotonic()
            ask(wire, knockd, name)
            assert until(lambda at=(name, before): knockd.count('open %s ' % at[0]) > at[1], 5)
            worst.append(time.monotonic() - began)
            time.sleep(0.7)
    print('60,000 intervals, a rule changed every 0.2 s: one call of nft %d ms, knocks %s ms'
          % (one_call * 1000, ' '.join('%d' % (each * 1000) for each in worst)))
    assert max(worst) < 1.5 * max(one_call, 0.3), worst
    assert wire.client.connects(wire.server.addresses[0], HIDDEN)
