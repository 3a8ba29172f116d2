"""Floods of two seconds with twenty real knocks during each; ten seconds are in tests/chaos."""

import os

import carriers
import floods
import pytest

pytestmark = pytest.mark.kernel
SECONDS, SEED = 2, int(os.environ.get('KNOCK_SEED', '8'))


@pytest.mark.parametrize('kind', floods.KINDS)
def test_in_a_flood_real_knocks_open_and_nothing_else_costs(wire, tmp_path_factory, kind):
    """Over IPv4 and IPv6 in turn."""
    address = wire.server.addresses[floods.KINDS.index(kind) % 2]
    clients = dict.fromkeys(floods.CLIENTS + ('owner',), 'code = yes')
    with carriers.housing(wire, tmp_path_factory, floods.SETTINGS, kind=floods.Counting,
                          **clients) as house:
        cost = floods.endured(wire, house, kind, address, SECONDS, seed=SEED)
        floods.judge(house, kind, cost, house.count('open fence '))
