"""Openings belong to a client's key, a source and a service: nobody changes what another has."""
import ipaddress
import itertools

import knockd
import pytest

TEXT = '''[server]
id = home
hide = tcp/22, tcp/25, tcp/8000-8010, udp/60000-61000
[client anna]
secret = %s
[client bert]
secret = %s
allow = tcp/22
''' % (knockd.encode_secret(b'a' * 32), knockd.encode_secret(b'b' * 32))
CONFIG = knockd.parse_config(TEXT, '/nowhere/knockd.ini')
ANNA, BERT = CONFIG.clients['anna'], CONFIG.clients['bert']
HERE, THERE = ipaddress.ip_address('203.0.113.5'), ipaddress.ip_address('2001:db8::5')
NET = ipaddress.ip_network('203.0.113.5/32')
SSH, MAIL = knockd.Service(6, 22, 22), knockd.Service(6, 25, 25)
WEB, MOSH = knockd.Service(6, 8000, 8010), knockd.Service(17, 60000, 61000)
NOW = knockd.Moment(1700000000000, 5000000)


def knock(client=ANNA, services=(SSH,), seconds=30, source=HERE, elsewhere=False):
    return knockd.Knock(client, 'udp', source, 'id', 0, None, None, tuple(services), seconds,
                        elsewhere)


def opened(*knocks, now=NOW, openings=()):
    openings = dict(openings)
    for each in knocks:
        openings = knockd.after_open(openings, each, now)
    return openings


def listed(openings):
    """[(client, source, service, seconds left)]"""
    return sorted((opening.client, str(opening.source), knockd.format_service(opening.service),
                   (opening.expires - NOW.mono) / 1000) for opening in openings.values())


def with_client(config, client, **changes):
    changed = config.clients[client]._replace(**changes)
    return config._replace(clients=dict(config.clients, **{client: changed}))


def rekeyed(client, secret=b'n' * 32):
    keys = knockd.derive_keys(secret, 'home')
    return client._replace(keys=keys, fingerprint=knockd.fingerprint(keys))


# --- open ---------------------------------------------------------------------------------------
def test_what_is_opened_has_its_owner_its_source_and_its_end():
    openings = opened(knock(services=(SSH, MOSH)))
    expected = [knockd.Opening(ANNA.fingerprint, 'anna', NET, service, False, 5030000, (), False)
                for service in (SSH, MOSH)]
    assert list(openings.values()) == expected
    for key, opening in openings.items():
        assert key == (opening.fingerprint, opening.source, opening.service, opening.only)


def test_a_range_stays_a_range_and_ports_that_touch_become_one():
    services = [knockd.Service(6, 8000, 8004), knockd.Service(6, 8003, 8010), MAIL]
    assert listed(opened(knock(services=services))) == [
        ('anna', '203.0.113.5/32', 'tcp/25', 30), ('anna', '203.0.113.5/32', 'tcp/8000-8010', 30)]


@pytest.mark.parametrize('first,second,left', [(30, 60, 60), (60, 30, 60), (30, 30, 30)])
def test_a_knock_extends_and_never_shortens(first, second, left):
    openings = opened(knock(seconds=first), knock(seconds=second))
    assert listed(openings) == [('anna', '203.0.113.5/32', 'tcp/22', left)]


def test_what_was_over_begins_anew():
    later = NOW._replace(mono=NOW.mono + 100000)
    openings = opened(knock(), now=later, openings=opened(knock()))
    assert listed(openings) == [('anna', '203.0.113.5/32', 'tcp/22', 130)]


def test_the_network_is_as_wide_as_the_section_says():
    client = ANNA._replace(prefix4=24, prefix6=64, once=True)
    openings = opened(knock(client), knock(client, source=THERE))
    assert [str(opening.source) for opening in openings.values()] == [
        '203.0.113.0/24', '2001:db8::/64']
    assert all(opening.once for opening in openings.values())


def test_two_clients_at_one_address_have_one_each():
    openings = opened(knock(), knock(BERT, seconds=3600))
    assert listed(openings) == [('anna', '203.0.113.5/32', 'tcp/22', 30),
                                ('bert', '203.0.113.5/32', 'tcp/22', 3600)]
    assert listed(opened(knock(seconds=5), openings=openings)) == listed(openings)


def test_what_was_given_is_not_changed():
    before = opened(knock())
    kept = dict(before)
    knockd.after_open(before, knock(services=(MAIL,)), NOW)
    knockd.after_close(before, knock(services=()))
    knockd.surviving(before, with_client(CONFIG, 'anna', allow=()), NOW)
    assert before == kept


# --- close --------------------------------------------------------------------------------------
EVERYTHING = opened(knock(services=(SSH, MAIL, WEB)), knock(source=THERE), knock(BERT))
OTHERS = [('anna', '2001:db8::5/128', 'tcp/22', 30), ('bert', '203.0.113.5/32', 'tcp/22', 30)]


def left(*services, client=ANNA, source=HERE):
    openings = knockd.after_close(EVERYTHING, knock(client, services, source=source))
    for key, opening in openings.items():
        assert key == (opening.fingerprint, opening.source, opening.service, opening.only)
    return listed(openings)


def here(*services):
    return [('anna', '203.0.113.5/32', service, 30) for service in services]


def test_closing_closes_ones_own_for_this_address_and_nobody_elses():
    assert left() == OTHERS
    assert left(client=BERT) == [each for each in listed(EVERYTHING) if each[0] == 'anna']
    assert left(client=BERT, source=THERE) == listed(EVERYTHING)
    assert left(client=rekeyed(ANNA)) == listed(EVERYTHING), 'another key is another client'


def test_what_is_named_is_closed():
    assert left(SSH) == sorted(here('tcp/25', 'tcp/8000-8010') + OTHERS)
    assert left(SSH, MAIL) == sorted(here('tcp/8000-8010') + OTHERS)
    assert left(knockd.Service(17, 22, 22)) == listed(EVERYTHING)


@pytest.mark.parametrize('low,high,parts', [
    (8003, 8003, ['tcp/8000-8002', 'tcp/8004-8010']), (8000, 8000, ['tcp/8001-8010']),
    (8010, 8010, ['tcp/8000-8009']), (8000, 8010, []), (7000, 9000, []),
    (7000, 8000, ['tcp/8001-8010']), (8010, 9000, ['tcp/8000-8009']),
    (7999, 7999, ['tcp/8000-8010']), (8011, 8011, ['tcp/8000-8010'])])
def test_a_part_of_a_range_is_cut_out(low, high, parts):
    assert left(knockd.Service(6, low, high)) == sorted(here('tcp/22', 'tcp/25', *parts) + OTHERS)


def test_two_parts_of_a_range_are_cut_out():
    assert left(knockd.Service(6, 8002, 8002), knockd.Service(6, 8005, 8006)) == sorted(
        here('tcp/22', 'tcp/25', 'tcp/8000-8001', 'tcp/8003-8004', 'tcp/8007-8010') + OTHERS)


# --- reload and the end of time -----------------------------------------------------------------
def surviving(openings, config=CONFIG, later=0):
    now = NOW._replace(mono=NOW.mono + later, wall=NOW.wall + later)
    return listed(knockd.surviving(openings, config, now))


def test_the_same_config_ends_nothing_and_time_what_is_over():
    openings = opened(knock(), knock(BERT, seconds=60))
    assert surviving(openings) == listed(openings)
    assert surviving(openings, later=29999) == listed(openings)
    assert surviving(openings, later=30000) == [('bert', '203.0.113.5/32', 'tcp/22', 60)]


ALL_OF_BERT = [('bert', '203.0.113.5/32', 'tcp/22', 30)]


@pytest.mark.parametrize('config,of_anna', [
    (CONFIG._replace(clients={'bert': BERT}), []),
    (CONFIG._replace(clients={'anna': rekeyed(ANNA), 'bert': BERT}), []),
    (with_client(CONFIG, 'anna', allow=(MAIL, knockd.Service(6, 8000, 8009))), [MAIL]),
    (with_client(CONFIG, 'anna', allow=(
        SSH, knockd.Service(6, 8000, 8004), knockd.Service(6, 8005, 8010))), [SSH, WEB]),
    (with_client(CONFIG, 'anna', expires=NOW.wall), []),
    (with_client(CONFIG, 'anna', once=True), [])],
    ids=['removed', 'another secret', 'narrower', 'in pieces', 'expired', 'once'])
def test_what_the_config_no_longer_allows_ends_at_the_reload(config, of_anna):
    openings = opened(knock(services=(SSH, MAIL, WEB)), knock(BERT))
    expected = here(*map(knockd.format_service, of_anna)) + ALL_OF_BERT
    assert surviving(openings, config) == sorted(expected)


def test_an_earlier_end_of_the_client_is_the_end_of_its_openings():
    openings = opened(knock(seconds=3600), knock(BERT))
    config = with_client(CONFIG, 'anna', expires=NOW.wall + 9000)
    assert surviving(openings, config) == [('anna', '203.0.113.5/32', 'tcp/22', 9)] + ALL_OF_BERT
    config = with_client(CONFIG, 'anna', expires=NOW.wall + 1)
    assert len(surviving(openings, config)) == 2
    assert surviving(openings, config, later=1) == ALL_OF_BERT


def test_a_narrower_prefix_ends_wider_openings_and_a_wider_one_none():
    config = with_client(CONFIG, 'anna', prefix4=24, prefix6=64)
    wide = config.clients['anna']
    openings = opened(knock(wide), knock(wide, source=THERE))
    assert surviving(openings) == []
    assert surviving(openings, with_client(config, 'anna', prefix4=25)) == [
        ('anna', '2001:db8::/64', 'tcp/22', 30)]
    assert surviving(opened(knock()), config) == listed(opened(knock()))


def test_any_source_withdrawn_ends_what_was_opened_for_another_address_and_nothing_else():
    trusting = with_client(CONFIG, 'anna', any_source=True)
    openings = opened(knock(elsewhere=True, source=THERE), knock(), knock(BERT))
    assert surviving(openings, trusting) == listed(openings)
    assert surviving(openings) == here('tcp/22') + ALL_OF_BERT


@pytest.mark.parametrize('own,other,stays', [(60, 30, True), (30, 60, False), (30, 30, True)])
def test_of_two_for_one_address_the_one_that_ends_later_says_whose_it_was(own, other, stays):
    openings = opened(knock(seconds=own), knock(seconds=other, elsewhere=True))
    assert bool(surviving(openings)) is stays


def test_another_name_for_the_same_key_keeps_its_openings():
    config = CONFIG._replace(clients={'zoe': ANNA._replace(name='zoe')})
    assert surviving(opened(knock()), config) == [('zoe', '203.0.113.5/32', 'tcp/22', 30)]


def test_the_old_secret_of_a_client_keeps_its_openings():
    new = rekeyed(ANNA)._replace(old=ANNA)
    config = CONFIG._replace(clients={'anna': new})
    assert surviving(opened(knock()), config) == listed(opened(knock()))


def test_what_ends_now_is_over():
    openings = opened(knock(), knock(BERT, seconds=60))
    assert len(knockd.live(openings.values(), NOW.mono + 29999)) == 2
    assert [opening.client for opening in knockd.live(openings.values(), NOW.mono + 30000)] == [
        'bert']


# --- how many elements --------------------------------------------------------------------------
def count(*ranges):
    """Of (low, high) or (low, high, source, proto, once); each ends a second before the next."""
    openings = []
    for end, (low, high, *more) in enumerate(ranges):
        source, proto, once = (tuple(more) + (NET, 6, False)[len(more):])
        openings.append(knockd.Opening('f', 'anna', source, knockd.Service(proto, low, high),
                                       once, end * 1000, (), False))
    return len(knockd.elements(openings))


def test_elements_are_disjoint_ranges_of_a_source_and_a_protocol():
    other = ipaddress.ip_network('203.0.113.6/32')
    assert count() == 0
    assert count((22, 22)) == count((60000, 61000)) == 1
    assert count((22, 22), (24, 24)) == count((22, 22), (23, 23)) == 2
    assert count((10, 30), (20, 20)) == 3, 'below, it, above'
    assert count((10, 30), (10, 20)) == count((10, 30), (20, 30)) == 2
    assert count((10, 30), (20, 40)) == 2, 'where both are open the later end counts'
    assert count((20, 20), (10, 30)) == count((10, 30), (10, 30)) == 1
    assert count((22, 22), (22, 22, other)) == 2
    assert count((22, 22), (22, 22, NET, 17)) == 2
    assert count((22, 22), (22, 22, NET, 6, True)) == 2


def test_they_are_counted_as_a_walk_over_every_port_counts_them():
    bounds = [(low, high) for low in range(1, 6) for high in range(low, 6)]
    for ranges in itertools.permutations(bounds, 3):
        ends = [max((end for end, (low, high) in enumerate(ranges) if low <= port <= high),
                    default=None) for port in range(0, 7)]
        changes = sum(1 for before, after in zip(ends, ends[1:])
                      if after != before and after is not None)
        assert count(*ranges) == changes, ranges


def test_closing_a_part_does_not_shorten_what_is_left_and_open_for_itself():
    """Whichever was opened first."""
    both = knockd.Service(6, 8000, 8001)
    one = knockd.Service(6, 8000, 8000)
    for knocks in ([knock(services=[both]), knock(services=[one], seconds=60)],
                   [knock(services=[one], seconds=60), knock(services=[both])]):
        part = knock(services=[knockd.Service(6, 8001, 8001)])
        openings = knockd.after_close(opened(*knocks), part)
        assert listed(openings) == [('anna', '203.0.113.5/32', 'tcp/8000', 60)]


def test_what_goes_on_is_not_taken_for_changed():
    """To see that 5,000 openings are as before, one by one, took 0.05 s."""
    openings = opened(knock(), knock(BERT, seconds=60), knock(source=THERE))
    after = knockd.surviving(openings, CONFIG, NOW._replace(wall=NOW.wall + 1, mono=NOW.mono + 1))
    assert after == openings
    assert knockd.differing(list(openings.values()), list(after.values())) == ([], [])


def test_only_sources_that_have_something_else_than_before_are_looked_at():
    """And of them all that they have."""
    before = opened(knock(services=(SSH, MAIL)), knock(source=THERE), knock(BERT))
    same = list(before.values())
    assert knockd.differing(same, same[::-1]) == ([], [])
    assert knockd.differing([], []) == ([], [])
    after = list(opened(knock(BERT, seconds=60), openings=before).values())
    here = [opening for opening in same if opening.source == NET]
    assert len(here) == 3 and len(after) == 4
    assert knockd.differing(same, after) == (
        here, [opening for opening in after if opening.source == NET])
    assert knockd.differing(same, same[1:]) == (here, here[1:])
    assert knockd.differing([], same[:1]) == ([], same[:1])


# --- at some addresses alone ---------------------------------------------------------------------
FOUR, SIX = ipaddress.ip_address('192.0.2.8'), ipaddress.ip_address('2001:db8:1::8')
NINE = ipaddress.ip_address('192.0.2.9')


def narrowed(*only):
    return with_client(CONFIG, 'anna', only=only)


def places(openings):
    """{(source, destination): the ports} of the kernel's elements."""
    found = {}
    for element in knockd.elements(openings.values()):
        key = str(element.source), str(element.destination)
        found.setdefault(key, []).append((element.service.low, element.service.high))
    return found


def test_only_is_an_element_for_each_address_of_the_knockers_own_family():
    anna = narrowed(FOUR, NINE, SIX).clients['anna']
    assert places(opened(knock(anna, services=(SSH, WEB)), knock(BERT), knock(
        anna, source=THERE))) == {
        ('203.0.113.5/32', '192.0.2.8'): [(22, 22), (8000, 8010)],
        ('203.0.113.5/32', '192.0.2.9'): [(22, 22), (8000, 8010)],
        ('203.0.113.5/32', 'None'): [(22, 22)],
        ('2001:db8::5/128', '2001:db8:1::8'): [(22, 22)]}


def test_where_alone_it_is_open_is_said_behind_the_services():
    assert knockd.at_places(()) == ''
    assert knockd.at_places((FOUR, SIX)) == ' at 192.0.2.8,2001:db8:1::8'


def test_a_wider_only_opens_at_once_what_a_longer_narrow_opening_does_not_have():
    before = opened(knock(narrowed(FOUR).clients['anna'], seconds=600))
    after = opened(knock(narrowed(FOUR, NINE).clients['anna']), openings=before)
    assert places(after)[('203.0.113.5/32', '192.0.2.9')] == [(22, 22)]


@pytest.mark.parametrize('before,after,stays', [
    ((), (FOUR,), False), ((FOUR, NINE), (FOUR,), False), ((FOUR,), (NINE,), False),
    ((FOUR,), (FOUR, NINE), True), ((FOUR,), (), True), ((FOUR, SIX), (SIX, FOUR), True)])
def test_a_narrower_only_ends_what_is_open_elsewhere(before, after, stays):
    openings = opened(knock(narrowed(*before).clients['anna']))
    assert bool(surviving(openings, narrowed(*after))) is stays


def test_closing_closes_it_at_every_address():
    anna = narrowed(FOUR, NINE).clients['anna']
    openings = opened(knock(anna))
    assert knockd.after_close(openings, knock(anna, services=())) == {}
