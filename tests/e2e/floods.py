"""Floods of one kind or all, with real knocks between them, and what they cost the daemon."""

import collections
import json
import os
import subprocess
import sys
import time

import carriers
from network import TOP, environment, until

BLAST = os.path.join(TOP, 'tests', 'bench', 'blast.py')
CLIENTS = ('anna', 'bert', 'carl', 'dora', 'emil')      # each may knock five times a second
KNOCKS = 20
SETTINGS = 'carriers = udp, icmp, syn, ports, code'
SPOOFED = {False: '198.18.*', True: '2001:db8::*'}
KINDS = ('udp', 'one', 'prefix', 'replay', 'syn', 'icmp', 'mix')
COUNTING = '''
import sys, time
sys.path.insert(0, %r)
import knockd
heard, macs = {}, {}
def counting(name, counts):
    call = getattr(knockd, name)
    def counted(*arguments):
        second = int(time.monotonic())
        counts[second] = counts.get(second, 0) + 1
        return call(*arguments)
    setattr(knockd, name, counted)
counting('unseal', macs)
counting('parse_packet', heard)
counting('parse_syn', heard)
status = knockd.main(sys.argv[1:])
print('counted', sum(heard.values()), sum(macs.values()), max(macs.values()))
sys.exit(status)
''' % TOP

# heard: packets that reached Python; macs: HMACs over datagrams, and the most of them in a second
Cost = collections.namedtuple('Cost', 'sent seconds honoured grown cpu heard macs macs_a_second')


class Counting(carriers.House):
    """The daemon as it is, but it counts what reaches it."""

    def launch(self, *arguments):
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(sys.executable, '-c', COUNTING, '--config', self.config,
                                       'run'),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment())

    def counted(self):
        """Ends the daemon; [packets that reached it, HMACs, the most of them in a second]"""
        assert self.stop() == 0
        return [int(word) for word in self.printed().split()[-3:]]

    def spent(self):
        """How many knocks the ledger's file knows: those of its first line, a line each after."""
        with open(self.ledger) as file:
            state, *knocks = file.read().strip('\0\n').split('\n')
        known = sum(len(key['spent']) for key in json.loads(state)['keys'].values())
        return known + len(knocks)


def blast(wire, kind, address, length, rate=0, seed=1, **more):
    """The argument list of a flood; length is a count of frames or, as '10s', a time."""
    six = ':' in address
    source = more.get('source') or wire.stranger.addresses[six]
    return wire.stranger.command(
        sys.executable, BLAST, 'eth0', wire.server.hardware_address(), kind, source, address,
        str(more.get('port', 40000)), str(length), str(rate), str(seed), more.get('data', ''))


def begin(argv):
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def ended(process):
    """(frames sent, seconds)"""
    out = process.communicate()[0].decode().split()
    assert process.returncode == 0, 'the flood did not start'
    return int(out[0]), float(out[1])


def of_kind(wire, house, kind, address, seconds, rate, seed):
    """The argument lists that make such a flood."""
    length = '%ds' % seconds
    if kind == 'mix':
        kinds = KINDS[:-1]
        return [argv for number, each in enumerate(kinds) for argv in of_kind(
            wire, house, each, address, seconds, (rate or 60000) / len(kinds), seed + number)]
    datagram = house.datagram('owner')
    more = {}
    if kind == 'prefix':
        more['data'] = datagram[:8].hex()
    elif kind == 'replay':
        wire.client.send(datagram, address)
        house.says('open owner ')
        more['data'] = datagram.hex()
    elif kind == 'syn':
        more['source'] = SPOOFED[':' in address]
    return [blast(wire, kind, address, length, rate, seed, **more)]


def endured(wire, house, kind, address, seconds, rate=0, seed=1):
    """A flood of so many seconds and KNOCKS real knocks, evenly spread; what it cost."""
    lists = of_kind(wire, house, kind, address, seconds, rate, seed)
    house.settle(wire.client, address)
    memory, used = carriers.resident(house), carriers.processor_time(house)
    before = [house.count('open %s ' % name) for name in CLIENTS]
    floods = [begin(argv) for argv in lists]
    time.sleep(0.3)                         # they are under way
    for number in range(KNOCKS):
        name = CLIENTS[number % len(CLIENTS)]
        wire.client.send(house.datagram(name), address)
        time.sleep(seconds * 0.8 / KNOCKS)
    told = [ended(flood) for flood in floods]

    def honoured():
        return sum(house.count('open %s ' % name) for name in CLIENTS) - sum(before)
    until(lambda: honoured() == KNOCKS, 2)
    number, used = honoured(), carriers.processor_time(house) - used
    house.settle(wire.client, address)
    grown = carriers.resident(house) - memory
    cost = Cost(sum(sent for sent, _ in told), max(took for _, took in told), number, grown, used,
                *house.counted())
    print('%-7s %8d frames in %4.1f s, %d of %d knocks, %d kB more, %.2f s of processor; %d '
          'packets reached the process, %d HMACs, %d in one second' % (
              (kind, cost.sent, cost.seconds, number, KNOCKS) + cost[3:]))
    return cost


def judge(house, kind, cost, fences):
    """Every promise about a flood."""
    attacked = {'prefix': 1, 'replay': 1, 'mix': 2}.get(kind, 0)        # tags
    assert cost.honoured >= (KNOCKS - 2 if kind in ('prefix', 'replay', 'mix') else KNOCKS), \
        house.text()
    assert cost.grown < 1500, 'kB'
    assert cost.macs_a_second <= 200 * attacked + 30, 'a budget of 200 a tag and second'
    spent = cost.honoured + (kind in ('replay', 'mix')) + fences
    assert house.spent() == spent, 'nobody but who knocked is in the ledger'
