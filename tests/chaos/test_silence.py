"""tcpdump on the server's side, over floods of every kind, knocks, kills and reloads: on a box that
drops, so that nothing but the daemon could send, not one packet leaves."""

import os
import signal
import subprocess

import carriers
import floods
import pytest
from network import until

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(
    os.geteuid() != 0, reason='tcpdump gives its privileges up, which no user namespace lets it')]
SECONDS, SEED = 4, int(os.environ.get('KNOCK_SEED', '88'))
DROPPING = '''table inet filter {
    chain input {
        type filter hook input priority 0; policy drop;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
}
'''
NEIGHBOURS = 'not arp and not (ip6 and (ip6[6] == 0 or (ip6[6] == 58 and ip6[40] >= 130)))'


def test_not_one_packet_is_the_daemons(wire, tmp_path_factory, tmp_path):
    clients = dict.fromkeys(floods.CLIENTS + ('owner',), 'code = yes')
    log = tmp_path / 'sent'
    with carriers.housing(wire, tmp_path_factory, floods.SETTINGS, kind=floods.Counting,
                          **clients) as house, open(str(log), 'wb') as out:
        wire.server.nft(DROPPING)
        house.says('firewall: something of ours was gone or the box has changed')
        tcpdump = subprocess.Popen(
            ['nsenter', '-n', '-t', str(wire.server.pid), 'tcpdump', '-Z', 'root', '-n', '-l',
             '-Q', 'out', '-i', 'eth0', NEIGHBOURS], stdout=out, stderr=subprocess.PIPE)
        assert any(b'listening' in line for line in iter(tcpdump.stderr.readline, b''))
        honoured = 0
        for number, kind in enumerate(floods.KINDS):
            address = wire.server.addresses[number % 2]
            cost = floods.endured(wire, house, kind, address, SECONDS, 20000, SEED)
            honoured += cost.honoured
            house.start()
            house.reload()
            wire.client.knock('--via', 'ports', '--wait', '1', house.uri('owner', address))
            house.kill()
            house.start()
        # That tcpdump does see what leaves: the box itself, asked by nobody.
        before = log.read_text()
        wire.server.run('ping', '-c', '1', '-W', '1', wire.client.addresses[0])
        assert until(lambda: 'ICMP echo request' in log.read_text())
        tcpdump.send_signal(signal.SIGINT)
        told = tcpdump.communicate()[1].decode()
    print('%d knocks honoured; tcpdump: %s' % (honoured, ' '.join(told.split())))
    assert honoured >= 18 * len(floods.KINDS)
    assert [line for line in before.splitlines() if 'Flags [S.]' not in line] == []
