"""What nmap and raw probes say of a box with the daemon is what they say of one without it."""

import re

import pytest
import test_stealth as stealth
from network import CLOSED, HIDDEN
from test_forward import forwarded, inside          # noqa: F401 (fixtures)

pytestmark = pytest.mark.kernel
HERE, HERE_UDP, ELSEWHERE = 2300, 2301, 8080
BOXES = {'accepting': '', 'resetting': stealth.LAYOUTS['resetting'],
         'dropping': stealth.LAYOUTS['dropping']}
SCANS = (('-sS',), ('-sT',), ('-sA',), ('-sF',), ('-sU',), ('-sS', '-sV', '--version-light'),
         ('-sS', '-O', '--max-os-tries', '1'))
CHANCE = re.compile(r'^(?:# |Starting Nmap|Nmap done|Host is up|SCAN\(|SEQ\(|OS:|Network Distance)')


def said(wire, address, scan):
    """nmap's words, without those that differ from run to run."""
    ports = '%d,%d' % ((HERE_UDP, 5183) if '-sU' in scan else (HERE, CLOSED))
    options = ['-6'] if ':' in address else []
    told = wire.client.must('nmap', '-n', '-Pn', '-T5', '--reason', '-p', ports,
                            *(options + list(scan) + [address]))
    return [line for line in told.splitlines() if not CHANCE.match(line)]


def compare(wire, daemon, address, box, scans):
    """With it, two services listen behind the hidden ports; without it, nobody does."""
    def scanned():
        return {scan: said(wire, address, scan) for scan in scans}
    wire.clear()
    wire.server.nft(BOXES[box])
    without = scanned()
    wire.clear()
    wire.server.nft(BOXES[box])
    with wire.server.listen(HERE), wire.server.listen(HERE_UDP, 2):
        daemon('hide = tcp/%d, tcp/2222, tcp/2229, udp/%d' % (HERE, HERE_UDP))
        found = scanned()
    assert found == without
    assert any(str(HERE) in line for line in found['-sS',])


@pytest.mark.parametrize('box', sorted(BOXES))
def test_nmap_says_the_same_with_and_without_the_daemon(wire, daemon, address, box):
    """The slow scans of a box that drops are in tests/chaos."""
    compare(wire, daemon, address, box, SCANS[:-2] if box == 'dropping' else SCANS)


def test_nmap_does_see_a_service_that_is_not_hidden(wire, address):
    wire.clear()
    with wire.server.listen(HERE):
        assert any(re.match('%d/tcp +open' % HERE, line) for line in said(wire, address, ('-sS',)))


def test_a_forwarded_port_answers_like_a_closed_one(wire, forwarded, daemon, address):  # noqa: F811
    daemon(anna='')
    assert stealth.differences(wire, address, HIDDEN, CLOSED) == {}
