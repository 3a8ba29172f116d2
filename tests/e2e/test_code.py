"""Carrier `code`: eight digits from a phone, typed as two ports."""

import ipaddress
import json
import os
import re
import socket
import time

import carriers
import guesser
import knockd
import pytest
from network import until

SETTINGS = 'carriers = udp, icmp, syn, ports, code'


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    clients = {name + family: 'code = yes' for name in ('phone', 'again', 'wrong', 'old')
               for family in '46'}
    with carriers.housing(wire, tmp_path_factory, SETTINGS, nocode4='', nocode6='',
                          **clients) as made:
        yield made


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


def phone_secret(house, client):
    """The base32 secret out of the otpauth:// line of `show`."""
    shown = house.do('show', client)
    assert shown.code == 0, shown.err
    line = [line for line in shown.out.splitlines() if line.startswith('otpauth://totp/')][0]
    assert 'algorithm=SHA1' in line and 'digits=8' in line and 'period=30' in line
    return re.search(r'[?&]secret=([A-Z2-7]+)(?:&|\Z)', line).group(1)


def oath_code(house, wire, client, when='now'):
    """What a phone shows."""
    return wire.client.must(carriers.tool('oathtool'), '--totp=sha1', '-d', '8', '-b', '-N', when,
                            phone_secret(house, client)).strip()


def type_code(namespace, address, code):
    """Two calls of nc, as somebody would do by hand."""
    for port in (10000 + int(code[:4]), 20000 + int(code[4:])):
        namespace.run(carriers.tool('nc'), '-z', '-w', '1', address, str(port))


def test_oathtool_computes_the_code_that_knock_prints(wire, house, address):
    client = name_for('phone', address)
    carriers.fresh_step(2)
    assert house.shown(client, address, 'code')[0] == oath_code(house, wire, client)


def test_two_calls_of_nc_with_the_code_of_oathtool_open_the_door(wire, house, address):
    client = name_for('phone', address)
    assert not house.opened(wire.client, client, address)
    type_code(wire.client, address, oath_code(house, wire, client))
    assert house.opens(wire.client, client, address), house.text()
    assert not house.opened(wire.stranger, client, address)
    assert ' tcp/%d 30s code ' % house.doors[client] in house.says('open %s ' % client)


def test_a_code_that_was_seen_opens_nothing(wire, house, address):
    """At once, and from another address; a replay is no wrong try either."""
    client = name_for('again', address)
    code = oath_code(house, wire, client)
    type_code(wire.client, address, code)
    house.says('open %s ' % client)
    for _ in range(4):
        type_code(wire.stranger, address, code)
    house.says('refused %s %s replay' % (client, wire.stranger.addresses[':' in address]))
    assert not house.opened(wire.stranger, client, address)
    assert house.count('open %s ' % client) == 1


def test_the_code_of_two_steps_ago_opens_nothing(wire, house, address):
    client = name_for('old', address)
    carriers.fresh_step()
    type_code(wire.client, address, oath_code(house, wire, client, '60 seconds ago'))
    assert house.settled_shut(wire.client, client, address)
    type_code(wire.client, address, oath_code(house, wire, client, '30 seconds ago'))
    assert house.opens(wire.client, client, address), house.text()


def test_who_may_not_use_codes_opens_nothing(wire, house, address):
    client = name_for('nocode', address)
    assert 'otpauth' not in house.do('show', client).out
    type_code(wire.client, address, house.shown(client, address, 'code')[0])
    assert house.settled_shut(wire.client, client, address)


def test_after_three_wrong_tries_codes_sleep_and_udp_works_all_the_while(
        wire, tmp_path_factory, address):
    clients = {'first': 'code = yes', 'last': 'code = yes', 'other': '', 'ports': ''}
    with carriers.housing(wire, tmp_path_factory, SETTINGS, **clients) as house:
        carriers.fresh_step(4)
        codes = {name: oath_code(house, wire, name) for name in ('first', 'last')}
        for number in range(2):
            type_code(wire.stranger, address, '%04d%04d' % (9000 + number, 1))
        type_code(wire.client, address, codes['first'])
        assert house.opens(wire.client, 'first', address), 'two wrong tries do no harm'
        for number in range(3):
            type_code(wire.stranger, address, '%04d%04d' % (9000 + number, 2))
        type_code(wire.client, address, codes['last'])
        assert house.settled_shut(wire.client, 'last', address)
        assert wire.client.knock('--open', 'tcp/%d' % house.doors['other'],
                                 house.uri('other', address)).code == 0
        carriers.touch_all(wire.client, address, house.shown('ports', address, 'ports'))
        assert house.opens(wire.client, 'ports', address), 'the ports do not sleep with it'


def right_code_opens(wire, house, address, now):
    """Does a phone whose clock agrees with the server's open the door?"""
    before = house.count('open phone ')
    type_code(wire.client, address, oath_code(house, wire, 'phone', '@%d' % now))
    house.settle_slowly()
    return house.count('open phone ') > before


class LeapingTime(carriers.FakedTime):
    """Both clocks leap, for sleep is counted in steps of the monotonic one."""

    def faked(self):
        return [word.replace('DONT_FAKE_MONOTONIC=1', 'DONT_FAKE_MONOTONIC=0')
                for word in carriers.FakedTime.faked(self)]


@pytest.mark.kernel
def test_codes_wake_after_a_step_and_then_after_two(wire, tmp_path_factory, address):
    """Debian's libfaketime is the server's clocks: they leap to the beginning of the next steps."""
    with carriers.housing(wire, tmp_path_factory, SETTINGS, kind=LeapingTime,
                          phone='code = yes') as house:
        offset = 31 - int(time.monotonic()) % 30

        def begin(step):
            house.set_clock('+%d' % (offset + 30 * step))
            house.reload()
            return right_code_opens(wire, house, address, time.time() + offset + 30 * step)

        def try_in_vain():
            for number in range(3):
                type_code(wire.stranger, address, '%04d%04d' % (9000 + number, 2))
            house.settle_slowly()
        assert begin(0)
        try_in_vain()
        assert not begin(1), 'it sleeps a step'
        house.set_clock('+%d' % (offset + 60))
        house.reload()
        try_in_vain()                   # it is awake, or these would not count
        assert [begin(step) for step in (3, 4)] == [False, False], 'and then two'
        assert begin(5), house.text()


class FrozenTime(LeapingTime):
    """Both clocks stand at one millisecond, and the test says at which."""

    def __init__(self, *arguments, **clients):
        self.begin = (int(time.time()) // 3600 + 2) * 3600000
        self.clock = self.frozen_at(self.begin)
        LeapingTime.__init__(self, *arguments, **clients)

    @staticmethod
    def frozen_at(wall):
        seconds = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(wall // 1000))
        # The half keeps it from becoming the millisecond before, as a fraction.
        return '%s.%03d5' % (seconds, wall % 1000)


class Guessed:
    """A daemon whose clocks stand, and what a guesser's SYNs have made it remember."""

    def __init__(self, wire, house, seen):
        self.wire, self.house, self.seen = wire, house, seen
        self.addresses, self.target = {}, wire.server.addresses[1]
        self.path = '/proc/%d/root/run/knockd/%s.codes' % (wire.server.pid, house.server_id)

    def memory(self):
        """[wrong tries since the last sleep, asleep until, the last doubling is forgiven at]"""
        if not os.path.exists(self.path):
            return [0, 0, 0]
        with open(self.path) as file:
            return json.load(file)

    def idle(self):
        """Nothing waits in the packet sockets, and the loop sleeps."""
        with open('/proc/%d/net/packet' % self.wire.server.pid) as table:
            queued = [int(line.split()[6]) for line in table.readlines()[1:]]
        with open('/proc/%d/stat' % self.house.process.pid) as stat:
            return not any(queued) and stat.read().rpartition(')')[2].split()[0] == 'S'

    def type_at(self, wall, syns):
        """SYNs that arrive at a millisecond; returns when they have been judged."""
        self.house.set_clock(self.house.frozen_at(wall))
        with self.wire.stranger.raw_sender(self.target) as send:
            for source, port in syns:
                number = self.addresses.setdefault(source, len(self.addresses) + 1)
                address = str(ipaddress.ip_address('2001:db8::') + number)
                send(carriers.syn_packet(address, self.target, port))
        for _ in syns:
            self.seen.recv(100)
        for _ in range(2):              # or to the daemon a moment later, on young kernels
            time.sleep(0.001)
            assert until(self.idle)


GUESSERS = [        # and how many days
    ('flat out', guesser.flat_out, 7),
    ('a fresh address for each', guesser.a_fresh_address_for_each, 3),
    ('8 sleeps and 2, then quiet', guesser.sleeps_then_quiet(8, 2), 7),
    ('the same from 40 sources', guesser.the_same_in_each_step(40, 29999), 1),
    ('at the end of steps', guesser.at_the_end_of_steps, 3),
    ('copies over the edge', guesser.copies_over_the_edge, 1),
    ('first ports ahead', guesser.typed_ahead, 1)]


@pytest.mark.kernel
@pytest.mark.parametrize('name,strategy,days', GUESSERS, ids=[each[0] for each in GUESSERS])
def test_a_guesser_has_as_many_tries_of_a_real_daemon_as_of_the_simulation(
        wire, tmp_path_factory, name, strategy, days):
    """tests/unit/test_code_odds.py plays a year of each: at most 0.1 %. KNOCK_CHAOS=1: here too."""
    days = 365 if os.environ.get('KNOCK_CHAOS') else days
    codes, valid, tries = knockd.Codes(), guesser.Valid(), 0
    with carriers.housing(wire, tmp_path_factory, SETTINGS, kind=FrozenTime,
                          phone='code = yes') as house, \
            wire.server.make_socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP) as seen:
        seen.settimeout(5)
        guessed, before = Guessed(wire, house, seen), [0, 0, 0]
        shift = house.begin - guesser.BEGIN
        for now, syns in strategy(codes, []):
            if now >= guesser.BEGIN + days * guesser.DAY:
                break
            guesser.heard(codes, valid, now, syns)
            guessed.type_at(now + shift, syns)
            expected = codes.memory()
            expected[1:] = [number and number + shift for number in expected[1:]]
            assert until(lambda: guessed.memory() == expected), (now, house.text())  # noqa: B023
            after = guessed.memory()
            tries += after[0] - before[0] + (3 if after[1] != before[1] else 0)
            before = after
        print('%s: %d days, %d tries were evaluated, %d in the simulation' % (
            name, days, tries, valid.looks))
        assert tries == valid.looks > 20
        later = max(now, codes.asleep_until) + shift + 90000
        house.set_clock(house.frozen_at(later))
        house.reload()
        assert house.count('open ') == 0
        type_code(wire.client, guessed.target, oath_code(house, wire, 'phone', '@%d' % (
            later // 1000)))
        house.says('open phone ')


def test_codes_that_are_off_open_nothing(wire, tmp_path_factory, address):
    """The default carriers have no `code`, whatever the client's section says."""
    with carriers.housing(wire, tmp_path_factory, anna='code = yes') as house:
        type_code(wire.client, address, house.shown('anna', address, 'code')[0])
        assert house.settled_shut(wire.client, 'anna', address)
