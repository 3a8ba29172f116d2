"""A new installation hides for good once somebody has come in from outside; else it lets go."""

import json
import os

import knockd as script
import pytest
from network import HIDDEN, until

pytestmark = pytest.mark.kernel


@pytest.fixture
def installed(wire, daemon):
    """A function: that daemon again, with so many seconds of its probation left."""
    knockd = daemon(anna='')
    knockd.probation = os.path.join(os.path.dirname(knockd.ledger), 'probation')

    def start(seconds):
        knockd.kill()
        with open(knockd.probation, 'w') as out:
            out.write(script.probation_text(script.ON_TRIAL, seconds * 1000))
        return knockd.start()
    return start


def state(knockd):
    with open(knockd.probation) as file:
        return json.load(file)['state']


def guard(knockd):
    with open(os.path.join(os.path.dirname(knockd.probation), 'guard')) as file:
        return file.read()


def test_a_knock_from_outside_makes_it_hide_for_good(wire, installed):
    knockd = installed(600)
    assert '; on probation: 59' in knockd.says('ready: ') or '; on probation: 600' in knockd.text()
    assert 'table' not in guard(knockd), 'a boot lets everybody in'
    wire.server.send(knockd.datagram('anna', open='tcp/2222'), '127.0.0.1')
    knockd.says('open anna 127.0.0.1')
    assert state(knockd) == 'on trial', 'not from outside'
    wire.client.send(knockd.datagram('anna'), wire.server.addresses[0])
    knockd.says('probation: passed')
    assert wire.client.reaches(wire.server.addresses[0])
    assert state(knockd) == 'passed' and 'table inet knockd' in guard(knockd)


def test_without_one_it_lets_go_and_a_late_knock_makes_it_hide_and_opens(wire, installed):
    knockd, address = installed(2), wire.server.addresses[0]
    assert not wire.stranger.connects(address)
    assert until(lambda: wire.stranger.connects(address), 5)
    assert state(knockd) == 'lapsed'
    assert 'knockd' not in wire.server.must('nft', 'list', 'tables')
    knockd.kill()
    knockd.start()
    assert wire.stranger.connects(address), 'nor does a restart hide it'
    wire.client.send(knockd.datagram('anna', seconds=60), address)
    knockd.says('open anna')
    assert until(lambda: not wire.stranger.connects(address), 2)
    assert wire.client.connects(address, HIDDEN)
    assert state(knockd) == 'passed'


def test_the_saved_guard_hides_without_the_daemon(wire, installed):
    knockd, address = installed(600), wire.server.addresses[0]
    wire.client.send(knockd.datagram('anna'), address)
    knockd.says('probation: passed')
    assert until(lambda: 'table inet knockd' in guard(knockd))
    knockd.kill()
    wire.server.nft('flush ruleset')
    assert wire.stranger.connects(address)
    wire.server.must('sh', os.path.join(os.path.dirname(knockd.probation), 'guard'))
    for each in wire.server.addresses:
        assert not wire.stranger.connects(each)
