"""A sniffed tag is the best an attacker has: over its budget it is muted in the kernel."""

import os
import subprocess
import sys
import time

import carriers
import pytest
from network import TOP, environment, family_of, until

pytestmark = pytest.mark.kernel

FLOOD = os.path.join(TOP, 'tests', 'bench', 'flood.py')
RATE, SECONDS, CROWD = 100000, 3, 80
OTHERS = ('anna', 'bert', 'carl', 'dora')
COUNTING = '''
import sys
sys.path.insert(0, %r)
import knockd
heard = [0]
hear = knockd.Daemon.hear
def counting(*arguments):
    heard[0] += 1
    return hear(*arguments)
knockd.Daemon.hear = counting
status = knockd.main(sys.argv[1:])
print('heard', heard[0])
sys.exit(status)
''' % TOP


class Counting(carriers.House):
    """The daemon as it is, but it counts the packets that reach it and prints how many."""

    def launch(self, *arguments):
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(sys.executable, '-c', COUNTING, '--config', self.config,
                                       'run'),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment())

    def heard(self):
        """Ends the daemon; how many packets reached it."""
        assert self.stop() == 0
        return int(self.printed().split()[-1])


def knocks_meanwhile(wire, house, address, number):
    """So many knocks of others, five a second each at most; how many opened within a second."""
    before = house.count('open ')
    for count in range(number):
        wire.client.send(house.datagram(OTHERS[count % len(OTHERS)]), address)
        time.sleep(0.1)
    until(lambda: house.count('open ') - before == number, 1)
    return house.count('open ') - before


def test_a_flood_with_one_sniffed_tag_is_muted_and_others_get_in(wire, tmp_path_factory):
    """There are many clients, for a mute recompiles the whole filter."""
    address = wire.server.addresses[0]
    clients = dict.fromkeys(OTHERS + ('owner',), '')
    clients.update({'c%d' % number: 'allow = tcp/999' for number in range(CROWD)})
    with carriers.housing(wire, tmp_path_factory, kind=Counting, **clients) as house:
        tag = house.datagram('owner')[:8].hex()
        used = carriers.processor_time(house)
        with wire.stranger.make_socket(carriers.socket.AF_INET, carriers.socket.SOCK_DGRAM) as out:
            flood = subprocess.Popen(
                [sys.executable, FLOOD, str(out.fileno()), address, str(RATE), str(SECONDS), tag],
                pass_fds=[out.fileno()], stdout=subprocess.PIPE)
            honoured = knocks_meanwhile(wire, house, address, 20)
            sent = int(flood.communicate()[0])
        used = carriers.processor_time(house) - used
        house.settle(wire.client)
        heard = house.heard()
        print('%d junk packets with one sniffed tag in %d s among %d clients: %d packets reached '
              'the process, %.2f s of processor, %d of 20 knocks of others'
              % (sent, SECONDS, len(clients) + 1, heard, used, honoured))
        assert sent > 50000
        assert honoured == 20, house.text()
        assert 200 * SECONDS <= heard < sent / 10
        assert used < SECONDS / 2


def test_a_muted_tag_is_heard_again_a_second_later(wire, tmp_path_factory, address):
    with carriers.housing(wire, tmp_path_factory, kind=Counting, owner='') as house:
        datagram = house.datagram('owner')
        junk = datagram[:-1] + bytes([datagram[-1] ^ 1])
        sent, end = 0, time.monotonic() + 0.5       # many more than wait in a socket's queue
        with wire.stranger.make_socket(family_of(address), carriers.socket.SOCK_DGRAM) as out:
            while time.monotonic() < end:
                out.sendto(junk, (address, 40000))
                sent += 1
        wire.client.send(datagram, address)

        def opened():
            wire.client.send(datagram, address)
            return until(lambda: house.count('open owner '), 0.2)
        assert until(opened, 3), house.text()
        assert house.heard() < sent / 2
