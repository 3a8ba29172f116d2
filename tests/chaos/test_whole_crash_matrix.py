"""Every cell of the crash matrix, over both families: see tests/e2e/crashes.py. Five minutes."""

import itertools

import carriers
import crashes
import pytest

pytestmark = pytest.mark.chaos
CROWD = 880


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    clients = {'c%d' % number: '' for number in range(CROWD)}
    clients['nobody'] = ''
    with carriers.housing(wire, tmp_path_factory, crashes.HOOKS, kind=crashes.Shimmed,
                          **clients) as made:
        made.names = ('c%d' % number for number in itertools.count())
        made.cells = crashes.cells(wire, made, wire.server.addresses[0], made.names)
        print('%d cells' % len(made.cells))
        yield made


@pytest.mark.parametrize('operation', crashes.OPERATIONS)
def test_a_call_that_fails_or_a_kill_beside_it_breaks_no_promise(wire, house, address, operation):
    chosen = [cell for cell in house.cells if cell[0] == operation]
    assert chosen
    with crashes.watched(wire, house, 'nobody'):
        for cell in chosen:
            crashes.Cell(wire, house, next(house.names), address).run(*cell)


def test_a_call_that_fails_while_the_table_is_put_back_does_not_keep_it_away(wire, house, address):
    for cell in crashes.cells(wire, house, address, house.names, crashes.HEAL):
        crashes.Cell(wire, house, next(house.names), address).run(*cell)


def test_a_fault_while_a_lost_ledger_is_replaced_makes_no_knock_good_again(wire, house, address):
    for cell in crashes.lost_ledger_cells(house):
        crashes.lost_ledger(wire, house, next(house.names), address, *cell)
