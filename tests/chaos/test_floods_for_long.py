"""Every flood for ten seconds, with twenty real knocks during each, over both families."""

import os

import carriers
import floods
import pytest

pytestmark = pytest.mark.chaos
SECONDS, SEED = 10, int(os.environ.get('KNOCK_SEED', '88'))


@pytest.mark.parametrize('kind', floods.KINDS)
def test_in_a_flood_real_knocks_open_and_nothing_else_costs(
        wire, tmp_path_factory, kind, address):
    clients = dict.fromkeys(floods.CLIENTS + ('owner',), 'code = yes')
    with carriers.housing(wire, tmp_path_factory, floods.SETTINGS, kind=floods.Counting,
                          **clients) as house:
        cost = floods.endured(wire, house, kind, address, SECONDS, seed=SEED)
        floods.judge(house, kind, cost, house.count('open fence '))
