"""What commands change takes effect in the living daemon."""

import os

from network import until


def line_of(done):
    assert done.code == 0, done.err
    return done.out.splitlines()[0]


def test_the_old_secret_is_good_until_the_new_one_is_first_used(wire, daemon):
    knockd = daemon('host = 10.9.0.1', anna='')
    old = knockd.uri('anna', '10.9.0.1')
    new = line_of(knockd.do('rekey', 'anna'))
    assert wire.client.knock(old).code == 0
    knockd.says('open anna 10.9.0.2')
    assert wire.client.knock('--close', old).code == 0
    assert wire.client.knock(new).code == 0
    assert wire.client.knock('--close', new).code == 0
    assert until(lambda: not wire.client.connects('10.9.0.1'))
    wire.client.knock('--wait', '0', old)
    knockd.says('refused anna 10.9.0.2 expired: a newer secret')
    assert not wire.client.connects('10.9.0.1')


def test_a_removed_client_is_out_at_once(wire, daemon):
    knockd = daemon('host = 10.9.0.1', anna='', bert='')
    line = knockd.uri('anna', '10.9.0.1')
    assert wire.client.knock(line).code == 0
    assert knockd.do('remove', 'anna').code == 0
    assert until(lambda: not wire.client.connects('10.9.0.1'))
    assert wire.client.knock('--open', 'tcp/2222', '--wait', '2', line).code == 1


def test_what_is_hidden_anew_is_hidden_at_once_and_left_open_again_at_once(wire, daemon):
    port = 2240
    knockd = daemon('hide = tcp/2222, tcp/2229', anna='')
    with wire.server.listen(port):
        assert wire.stranger.connects('10.9.0.1', port)
        assert knockd.do('hide', 'tcp/%d' % port).code == 0
        assert until(lambda: not wire.stranger.connects('10.9.0.1', port))
        assert knockd.do('unhide', 'tcp/%d' % port).code == 0
        assert wire.stranger.reaches('10.9.0.1', port)


def test_a_client_for_a_page_is_heard_by_ports_and_by_nothing_else(wire, daemon):
    knockd = daemon('host = 10.9.0.1', anna='')
    line = line_of(knockd.do('add', 'phone', '--page', '--allow', 'tcp/2222'))
    wire.client.knock('--wait', '0', '--via', 'udp', line)
    knockd.says('refused phone 10.9.0.2 not allowed carrier udp')
    assert not wire.client.connects('10.9.0.1')
    done = wire.client.knock(line)
    assert done.code == 0, done.err + knockd.text()
    knockd.says('open phone 10.9.0.2 tcp/2222 30s ports')
    assert os.path.exists(knockd.config)
