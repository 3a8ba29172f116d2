"""No knock is honoured twice: promise 2, with bytes captured on the wire."""

import os

from network import forged, until


def spent(knockd, payloads):
    """Of the datagrams of one client, the one that is on disk. It need not be the first: knock.py
    sends another each second, and a machine under a flood may lose one behind our capture."""
    with open(knockd.ledger) as file:
        known = file.read()
    honoured = [payload for payload in payloads if '"%s"' % payload[8:24].hex() in known]
    assert honoured, 'it was open, and nothing is on disk'
    return honoured[0]


def used_knock(wire, knockd, name, address):
    """Knocks, closes again, and returns the captured datagram that had opened."""
    with wire.capture(wire.client) as capture:
        done = wire.client.knock('--port', '40000', '--open', 'tcp/2222', knockd.uri(name, address))
        assert done.code == 0, done.err + knockd.text()
        payload = spent(knockd, capture.datagrams(40000))
    wire.client.send(knockd.datagram(name, op='close'), address)
    assert until(lambda: not wire.client.connects(address), 5)
    return payload


def replayed_until_refused(wire, knockd, name, address, payload, source='10.9.0.2',
                           sender=None, reason='replay'):
    """Sends the datagram again and again until the daemon has refused it; nothing may open."""
    def refused():
        (sender or wire.client).send(payload, address)
        return until(lambda: knockd.count('refused %s %s %s' % (name, source, reason)), 0.1)
    assert until(refused), knockd.text()
    assert knockd.count('open %s ' % name) == 1
    for namespace in (wire.client, wire.stranger):
        assert not namespace.connects(address)


def test_replay_from_the_same_address_opens_nothing(wire, knockd, visitor, address):
    payload = used_knock(wire, knockd, visitor, address)
    replayed_until_refused(wire, knockd, visitor, address, payload,
                           wire.client.addresses[':' in address])


def test_replay_from_another_address_opens_nothing(wire, knockd, visitor, address):
    payload = used_knock(wire, knockd, visitor, address)
    replayed_until_refused(wire, knockd, visitor, address, payload,
                           wire.stranger.addresses[':' in address], wire.stranger)


def test_replay_from_another_address_while_it_is_open_opens_nothing_there(wire, knockd, visitor):
    address = wire.server.addresses[0]
    with wire.capture(wire.client) as capture:
        assert wire.client.knock('--port', '40000', '--open', 'tcp/2222',
                                 knockd.uri(visitor, address)).code == 0
        wire.stranger.send(spent(knockd, capture.datagrams(40000)), address)
    knockd.says('refused %s 10.9.0.3 replay' % visitor)
    assert not wire.stranger.connects(address)


def test_replay_over_the_other_family_opens_nothing(wire, knockd, visitor):
    four, six = wire.server.addresses
    wire.client.send(used_knock(wire, knockd, visitor, four), six)
    knockd.says('refused %s fd00:9::2 replay' % visitor)
    assert not wire.client.connects(six)


def test_replay_with_a_forged_source_opens_nothing(wire, knockd, visitor):
    address = wire.server.addresses[0]
    payload = used_knock(wire, knockd, visitor, address)
    wire.stranger.inject(forged('10.9.0.77', address, payload))
    knockd.says('refused %s 10.9.0.77 replay' % visitor)
    assert knockd.count('open %s ' % visitor) == 1


def test_a_copy_within_two_seconds_is_not_worth_a_line(wire, knockd, visitor):
    address = wire.server.addresses[0]
    payload = knockd.datagram(visitor)
    for _ in range(4):
        wire.client.send(payload, address)
    knockd.settle(wire.client)
    assert knockd.count('open %s ' % visitor) == 1
    assert knockd.count('refused %s ' % visitor) == 0


def test_replay_after_kill_and_restart_opens_nothing(wire, daemon):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    payloads = [used_knock(wire, knockd, name, address) for name in ('anna', 'bert')]
    knockd.kill()
    knockd.start()
    replayed_until_refused(wire, knockd, 'anna', address, payloads[0])
    replayed_until_refused(wire, knockd, 'bert', address, payloads[1], '10.9.0.3', wire.stranger)


def test_replay_right_after_kill_and_restart_opens_nothing_elsewhere(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    with wire.capture(wire.client) as capture:
        assert wire.client.knock('--port', '40000', '--open', 'tcp/2222',       # and sees it open
                                 knockd.uri('anna', address)).code == 0
        knockd.kill()
        payload = spent(knockd, capture.datagrams(40000))
    knockd.start()
    wire.stranger.send(payload, address)
    knockd.says('refused anna 10.9.0.3 replay')
    assert not wire.stranger.connects(address)


def test_replay_after_the_ledger_was_lost_opens_nothing(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    payload = used_knock(wire, knockd, 'anna', address)
    knockd.kill()
    os.unlink(knockd.ledger)
    knockd.start()
    knockd.says('quarantine: ledger missing, knocks count again at ')
    replayed_until_refused(wire, knockd, 'anna', address, payload, reason='quarantine')


def test_knocks_count_again_when_the_quarantine_is_over(wire, daemon):
    knockd = daemon('window = 1s', anna='')
    address = wire.server.addresses[0]
    knockd.kill()
    os.unlink(knockd.ledger)
    knockd.start()
    wire.client.send(knockd.datagram('anna'), address)
    knockd.says('refused anna 10.9.0.2 ')
    assert knockd.count('open anna ') == 0

    def opened():
        wire.client.send(knockd.datagram('anna'), address)
        return until(lambda: knockd.count('open anna '), 0.3)
    assert until(opened, 8)


def test_nothing_opens_while_the_ledger_cannot_be_written(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    state = os.path.dirname(knockd.ledger)
    os.rename(state, state + '.away')
    with open(state, 'w'):                                   # a file where the folder was
        before = knockd.text()
    wire.client.send(knockd.datagram('anna'), address)
    assert until(lambda: knockd.text() != before), 'one line says that it cannot be written'
    assert knockd.count('open anna ') == 0
    assert not wire.client.connects(address)
    os.unlink(state)
    os.rename(state + '.away', state)
    wire.client.send(knockd.datagram('anna'), address)
    assert wire.client.reaches(address), knockd.text()
