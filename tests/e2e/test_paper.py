"""Paper knocks: one-time sequences that need no clock."""

import os
import re
import sys
import time

import carriers
import pytest
from network import KNOCK, until


def sheet_of(house, count=10):
    """Prints a new sheet and waits until the daemon knows it; {number: line}."""
    before = house.count('config reloaded')
    printed = house.do('paper', 'anna', '-n', str(count))
    assert printed.code == 0, printed.err
    lines = dict(re.findall(r'^ *(\d+) ((?: +\d+){6})$', printed.out, re.M))
    assert sorted(map(int, lines)) == list(range(1, count + 1))
    house.says('config reloaded', before + 1)
    return {int(number): line.split() for number, line in lines.items()}


def type_line(namespace, address, line):
    """Somebody types a line of the sheet into knock.py; he has no knock:// line."""
    done = namespace.run(sys.executable, KNOCK, '--via', 'paper', address,
                         stdin=' '.join(line) + '\n')
    assert done.code == 0, done.err


def opens_by(house, namespace, address, line):
    """Does this line open?"""
    before = house.count('open anna ')
    carriers.touch_all(namespace, address, line)
    return bool(until(lambda: house.count('open anna ') > before, 2))


def opens_nothing(house, namespace, address, *lines):
    before = house.count('open anna ')
    for line in lines:
        carriers.touch_all(namespace, address, line)
    house.settle_slowly()
    return house.count('open anna ') == before


@pytest.fixture
def house(wire, tmp_path_factory):
    with carriers.housing(wire, tmp_path_factory, anna='') as made:
        yield made


def test_ten_are_printed_and_each_opens_once(wire, house, address):
    sheet = sheet_of(house)
    type_line(wire.client, address, sheet[1])
    assert house.opens(wire.client, 'anna', address), house.text()
    assert ' paper ' in house.says('open anna ')
    for number in range(2, 11):
        time.sleep(0.2)                                 # five a second are honoured
        assert opens_by(house, wire.client, address, sheet[number]), house.text()
    assert house.count('open anna ') == 10
    assert opens_nothing(house, wire.client, address, sheet[1], sheet[10])
    assert opens_nothing(house, wire.stranger, address, *sheet.values())


@pytest.mark.kernel
def test_a_number_voids_those_above_it_and_a_restart_forgets_nothing(wire, house, address):
    sheet = sheet_of(house)
    assert opens_by(house, wire.client, address, sheet[3])
    assert opens_nothing(house, wire.stranger, address, sheet[1], sheet[2], sheet[3])
    house.says('refused anna %s replay' % wire.stranger.addresses[':' in address])
    house.kill()
    house.start()
    assert opens_nothing(house, wire.stranger, address, sheet[1], sheet[2], sheet[3])
    assert opens_by(house, wire.client, address, sheet[4])


@pytest.mark.kernel
def test_a_captured_line_opens_nothing_from_another_address_while_it_is_typed(
        wire, house, address):
    sheet = sheet_of(house)
    line = sheet[1]
    carriers.touch_all(wire.stranger, address, line[:5])
    carriers.touch_all(wire.client, address, line)
    house.says('open anna %s ' % wire.client.addresses[':' in address])
    carriers.touch(wire.stranger, address, int(line[5]))
    house.settle_slowly()
    assert house.count('open anna ') == 1
    assert not house.opened(wire.stranger, 'anna', address)


def test_a_new_sheet_voids_the_old_one(wire, house, address):
    old = sheet_of(house)
    new = sheet_of(house)
    assert old != new
    assert opens_nothing(house, wire.client, address, *old.values())
    assert opens_by(house, wire.client, address, new[1])


@pytest.mark.kernel
def test_an_old_sheet_put_back_into_the_config_opens_nothing_again(wire, house, address):
    sheet_of(house)
    with open(house.config) as config:
        text = config.read()
    old = re.search('paper = .*', text).group()
    new = sheet_of(house)
    assert opens_by(house, wire.client, address, new[1])
    with open(house.config) as config:
        text = config.read()
    with open(house.config, 'w') as config:
        config.write(re.sub('paper = .*', old, text))
    house.reload()
    keys = carriers.keys_of(house, 'anna')
    sheet = int(old.split()[2].partition(':')[0])
    lines = [carriers.knock.paper_ports(keys, sheet, number) for number in (1, 2, 10)]
    assert opens_nothing(house, wire.client, address, *lines)
    assert 'replay' in house.says('refused anna ')


@pytest.mark.kernel
def test_a_lost_ledger_voids_the_sheet(wire, house, address):
    sheet = sheet_of(house)
    assert opens_by(house, wire.client, address, sheet[1])
    house.kill()
    os.unlink(house.ledger)
    house.start()
    assert opens_nothing(house, wire.stranger, address, *sheet.values())
    assert 'void' in house.says('refused anna ')
    assert opens_by(house, wire.client, address, sheet_of(house)[1])


@pytest.mark.kernel
@pytest.mark.parametrize('clock', ('@1999-12-31 23:59:59', '@2035-05-05 05:05:05'))
def test_the_sheet_opens_whatever_the_clock_of_the_server_says(wire, tmp_path_factory, clock):
    address = wire.server.addresses[0]
    with carriers.housing(wire, tmp_path_factory, kind=carriers.FakedTime, anna='') as house:
        sheet = sheet_of(house)
        assert opens_by(house, wire.client, address, sheet[1])
        house.kill()
        house.clock = clock
        house.start()
        assert opens_nothing(house, wire.stranger, address, sheet[1])
        assert opens_by(house, wire.client, address, sheet[2]), house.text()
        house.set_clock('@2001-09-09 01:46:40')
        assert opens_by(house, wire.client, address, sheet[3]), house.text()
        assert opens_nothing(house, wire.stranger, address, *[sheet[n] for n in (1, 2, 3)])


@pytest.mark.kernel
def test_a_ledger_lost_while_the_clock_is_wrong_voids_the_sheet_too(wire, tmp_path_factory):
    address = wire.server.addresses[0]
    with carriers.housing(wire, tmp_path_factory, kind=carriers.FakedTime, anna='') as house:
        sheet = sheet_of(house)
        assert opens_by(house, wire.client, address, sheet[1])
        house.kill()
        os.unlink(house.ledger)
        house.clock = '@2001-01-01 00:00:00'
        house.start()
        assert opens_nothing(house, wire.stranger, address, *sheet.values())
