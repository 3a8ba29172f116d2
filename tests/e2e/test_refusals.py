"""Who is refused, what the log says of it, and that nothing opens."""

import os
import re
import time

import knock
import pytest
from network import HIDDEN, HIDDEN_TOO, until

CLIENTS = {
    'early': '', 'late': '', 'mixed': '', 'greedy': '', 'greedy_too': '', 'nobody': '',
    'expired': 'expires = 2001-01-01', 'elsewhere': '', 'named': '', 'hasty': '', 'odd': '',
    'strict': 'require_source = yes', 'precise': 'require_source = yes',
    'agent': 'any_source = yes', 'quiet': ''}


@pytest.fixture(scope='module')
def knockd(module_daemon):
    """One daemon; every test has its own client, since a refusal is logged once a minute."""
    return module_daemon('window = 20s', **CLIENTS)


@pytest.fixture
def refused(wire, knockd):
    """Sends a datagram and returns the reason for which it was refused; nothing may open."""
    address = wire.server.addresses[0]

    def reason(name, **fields):
        wire.client.send(knockd.datagram(name, **fields), address)
        line = knockd.says('refused %s 10.9.0.2 ' % name)
        assert knockd.count('open %s ' % name) == 0
        assert not wire.client.connects(address, HIDDEN)
        return line.split('10.9.0.2 ', 1)[1]
    return reason


def silent(wire, knockd, *payloads):
    """True when datagrams open nothing and leave no line."""
    before = knockd.text().splitlines()
    for payload in payloads:
        wire.client.send(payload, wire.server.addresses[0])
    knockd.settle(wire.client)
    new = knockd.text().splitlines()[len(before):]
    assert not wire.client.connects(wire.server.addresses[0], HIDDEN)
    return all(' fence ' in line for line in new)


def outside(sign, window=20000):
    """A time just out of the window in a step whose tag still counts, and how far it is off.

    There is none while the window's end is about the end of a step; a second later there is."""
    def found():
        now = int(time.time() * 1000)
        end = now + sign * window
        room = 30000 - end % 30000 if sign > 0 else end % 30000
        return 1500 < room < 28500 and (end + sign * min(3000, room - 1), now)
    stamp, now = until(found)
    return stamp, stamp - now


@pytest.mark.parametrize('name, sign', (('early', 1), ('late', -1)))
def test_a_stamp_outside_the_window_is_refused(refused, name, sign):
    stamp, skew = outside(sign)
    found = re.match(r'clock ([+-]\d+)s$', refused(name, time=stamp))
    assert found
    assert abs(int(found.group(1)) - skew / 1000) < 1.1


def test_a_stamp_far_outside_the_window_is_noise(wire, knockd):
    for hours in (-1, 1):
        stamp = int(time.time() * 1000) + hours * 3600 * 1000
        assert silent(wire, knockd, knockd.datagram('quiet', time=stamp))


def test_a_tag_of_another_step_than_the_stamp_is_refused(refused):
    now = int(time.time() * 1000)
    own, earlier, later = [knock.step_of(now + shift) for shift in (0, -19000, 19000)]
    other = later if later != own else earlier
    assert other != own, 'a step within the window of 20 s, whose tag counts'
    refused('mixed', time=now, step=other)


def test_a_port_that_is_not_allowed_is_refused(refused):
    assert refused('greedy', open='tcp/25') == 'not allowed tcp/25'


def test_a_port_that_is_not_allowed_spoils_the_whole_knock(refused):
    assert refused('greedy_too', open='tcp/2222,udp/25').startswith('not allowed')


def test_an_expired_client_is_refused(refused):
    assert refused('expired') == 'expired'


def test_a_knock_that_names_another_source_is_refused(refused):
    assert refused('named', source='192.0.2.1') == 'source 192.0.2.1'


def test_a_knock_that_names_its_source_is_refused_from_elsewhere(wire, knockd):
    address = wire.server.addresses[0]
    wire.stranger.send(knockd.datagram('elsewhere', source='10.9.0.2'), address)
    knockd.says('refused elsewhere 10.9.0.3 source 10.9.0.2')
    assert not wire.stranger.connects(address)
    assert not wire.client.connects(address)


def test_require_source_refuses_a_knock_that_names_none(refused):
    assert 'source' in refused('strict')


@pytest.mark.parametrize('plain', (
    b'\2\1' + bytes(26), b'\1\7' + bytes(26), b'\1\1' + bytes(26) + b'\1\0\6\6'),
    ids=('version', 'operation', 'item'))
def test_a_malformed_knock_is_refused(wire, knockd, plain):
    before = knockd.count('open odd ')
    wire.client.send(knockd.datagram('odd', plain=plain), wire.server.addresses[0])
    assert knockd.says('refused odd 10.9.0.2 malformed: ')
    knockd.settle(wire.client)
    assert knockd.count('open odd ') == before
    assert not wire.client.connects(wire.server.addresses[0])


def test_more_than_five_knocks_a_second_are_too_fast(wire, knockd):
    address = wire.server.addresses[0]
    for payload in [knockd.datagram('hasty', op='close') for _ in range(12)]:
        wire.client.send(payload, address)
    assert knockd.says('refused hasty 10.9.0.2 too fast')
    knockd.settle(wire.client)
    assert 5 <= knockd.count('close hasty ') < 12


def test_a_wrong_key_is_silence(wire, knockd):
    assert silent(wire, knockd, knockd.datagram('quiet', secret=os.urandom(32)))


def test_another_servers_id_is_silence(wire, knockd):
    assert silent(wire, knockd, knockd.datagram('quiet', server_id='another'))


def test_one_flipped_bit_is_silence(wire, knockd):
    payload = knockd.datagram('quiet')
    flipped = [bytes(byte ^ (at == place) << at % 8 for place, byte in enumerate(payload))
               for at in range(len(payload))]
    assert silent(wire, knockd, *flipped)
    wire.client.send(payload, wire.server.addresses[0])
    assert wire.client.reaches(wire.server.addresses[0]), 'as it was it would have opened'
    wire.client.send(knockd.datagram('quiet', op='close'), wire.server.addresses[0])
    knockd.says('close quiet')
    assert until(lambda: not wire.client.connects(wire.server.addresses[0]), 5)


def test_a_cut_or_lengthened_knock_is_silence(wire, knockd):
    payload = knockd.datagram('quiet')
    assert silent(wire, knockd, payload[:-1], payload[:24], payload[:8], payload[:3], b'',
                  payload + b'\0', payload + bytes(1300))


def test_knock_with_a_wrong_key_waits_in_vain_and_says_so(wire, knockd):
    address = wire.server.addresses[0]
    wrong = knockd.uri('quiet', address, secret=os.urandom(32))
    done = wire.client.knock('--open', 'tcp/2222', '--wait', '1', wrong)
    assert done.code == 1
    assert re.match(r'knock: [^\n]+\n$', done.err)


def test_a_knock_that_names_its_own_source_opens(wire, knockd):
    address = wire.server.addresses[0]
    done = wire.client.knock('--open', 'tcp/2222', '--source', '10.9.0.2',
                             knockd.uri('precise', address))
    assert done.code == 0, done.err + knockd.text()
    assert wire.client.connects(address)
    wire.client.send(knockd.datagram('precise', op='close', source='10.9.0.2'), address)
    assert until(lambda: not wire.client.connects(address), 5)


def test_any_source_opens_for_the_address_that_is_named(wire, knockd):
    address = wire.server.addresses[0]
    done = wire.client.knock('--source', '10.9.0.3', '--for', '2', '--wait', '0',
                             knockd.uri('agent', address))
    assert done.code == 0, done.err
    assert wire.stranger.reaches(address), knockd.text()
    assert not wire.client.connects(address)
    assert until(lambda: not wire.stranger.connects(address), 5)


def test_the_same_refusal_is_logged_once(wire, knockd):
    address = wire.server.addresses[0]
    for _ in range(5):
        wire.client.send(knockd.datagram('nobody', open='tcp/25'), address)
    knockd.settle(wire.client)
    assert knockd.count('refused nobody') == 1


def test_after_all_this_the_daemon_still_opens(wire, knockd):
    address = wire.server.addresses[0]
    with wire.capture(wire.client) as capture:
        done = wire.client.knock('--open', 'tcp/2229', '--for', '3', knockd.uri('fence', address))
        assert done.code == 0, done.err
        assert capture.packets('10.9.0.2')
    assert wire.client.connects(address, HIDDEN_TOO)
