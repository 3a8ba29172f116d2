"""The config changes while the daemon runs."""

import re

import pytest
from network import HIDDEN, HIDDEN_TOO, until


def set_line(daemon, old, new):
    with open(daemon.config) as lines:
        text = lines.read()
    assert old in text
    with open(daemon.config, 'w') as out:
        out.write(text.replace(old, new))


def test_an_added_client_gets_in_without_restart(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    added = knockd.do('add', 'bert', '--allow', 'tcp/2222')
    assert added.code == 0, added.err
    line = re.search(r'^knock://bert:\S+$', added.out, re.M).group(0)
    knockd.says('config reloaded: 3 clients')
    line = re.sub('@[^?]*', '@' + address, line)        # the config names no host
    done = wire.client.knock('--open', 'tcp/2222', line)
    assert done.code == 0, done.err + knockd.text()
    assert wire.client.connects(address)
    assert knockd.process.poll() is None


def test_a_removed_client_is_revoked_without_restart(wire, daemon):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    assert knockd.do('remove', 'bert').code == 0
    knockd.says('config reloaded: 2 clients')
    wire.client.send(knockd.datagram('bert'), address)
    knockd.settle(wire.client)
    assert not knockd.count('open bert')
    assert not wire.client.connects(address)
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0


def test_what_a_removed_client_has_opened_is_closed(wire, daemon):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    wire.client.send(knockd.datagram('bert'), address)
    wire.stranger.send(knockd.datagram('anna'), address)
    assert wire.client.reaches(address) and wire.stranger.reaches(address)
    assert knockd.do('remove', 'bert').code == 0
    knockd.says('config reloaded: 2 clients')
    assert until(lambda: not wire.client.connects(address), 2)
    assert wire.stranger.connects(address)


def test_a_client_removed_and_added_again_does_not_revive_his_old_knocks(wire, daemon):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    payload = knockd.datagram('bert')
    wire.client.send(payload, address)
    knockd.says('open bert')
    assert knockd.do('remove', 'bert').code == 0
    knockd.says('config reloaded: 2 clients')
    knockd.write_config()
    knockd.reload('config reloaded: 3 clients')
    wire.stranger.send(payload, address)
    knockd.says('refused bert 10.9.0.3 replay')
    assert not wire.stranger.connects(address)


@pytest.mark.parametrize('broken, complaint', (
    ('hide = nothing', r'knockd\.ini: \[server\] hide: '),
    ('hide = tcp/2222, tcp/2229\nhidden = tcp/1', r'knockd\.ini: \[server\] hidden: ')),
    ids=('value', 'key'))
def test_a_bad_config_at_reload_keeps_the_old_one(wire, daemon, broken, complaint):
    knockd = daemon('hide = tcp/2222, tcp/2229', anna='')
    address = wire.server.addresses[0]
    set_line(knockd, 'hide = tcp/2222, tcp/2229', broken)
    line = knockd.reload('config refused, the old one stays: ')
    assert re.search(complaint, line), line
    assert not wire.client.connects(address)
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0


def test_a_config_without_sections_at_reload_keeps_the_old_one(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    with open(knockd.config, 'w') as out:
        out.write('\0 this is no config\n')
    knockd.reload('config refused, the old one stays: ')
    assert wire.client.knock('--open', 'tcp/2222', knockd.uri('anna', address)).code == 0


def test_a_port_hidden_by_a_reload_is_hidden(wire, daemon):
    knockd = daemon('hide = tcp/2229', anna='allow = tcp/2229')
    address = wire.server.addresses[0]
    assert wire.client.connects(address, HIDDEN)
    set_line(knockd, 'hide = tcp/2229', 'hide = tcp/2229, tcp/2222')
    knockd.reload()
    assert not wire.client.connects(address, HIDDEN)
    assert not wire.client.connects(address, HIDDEN_TOO)


def test_an_opening_outlives_a_reload(wire, daemon):
    knockd = daemon(anna='')
    address = wire.server.addresses[0]
    assert wire.client.knock('--open', 'tcp/2222', '--for', '60',
                             knockd.uri('anna', address)).code == 0
    set_line(knockd, 'allow = tcp/2222', 'allow = tcp/2222, tcp/2229')
    knockd.reload()
    assert wire.client.connects(address)
    assert not wire.stranger.connects(address)


def test_check_names_file_section_and_key(wire, daemon):
    knockd = daemon(anna='')
    assert knockd.do('check') == (0, 'configuration OK\n', '')
    set_line(knockd, 'hide = tcp/2222', 'hide = tcp/0')
    wrong = knockd.do('check')
    assert wrong.code == 2
    assert '%s: [server] hide: ' % knockd.config in wrong.out + wrong.err


def test_show_list_and_remove_know_the_clients(wire, daemon):
    knockd = daemon('host = 10.9.0.1', anna='', bert='')
    shown = knockd.do('show', 'anna')
    assert shown.code == 0
    assert wire.client.knock('--open', 'tcp/2222', shown.out.strip()).code == 0
    listed = knockd.do('list').out
    assert 'anna' in listed and 'bert' in listed
    assert knockd.do('remove', 'anna').code == 0
    assert 'anna' not in knockd.do('list').out
    again = knockd.do('remove', 'anna')
    assert again.code in (1, 2) and again.err.startswith('knockd: ')


def test_the_rules_are_what_is_in_force(wire, daemon):
    knockd = daemon(anna='')
    ours = knockd.do('rules')
    assert ours.code == 0 and 'table inet knockd' in ours.out
    in_force = wire.server.must('nft', 'list', 'table', 'inet', 'knockd')
    knockd.kill()
    wire.server.must('nft', 'delete', 'table', 'inet', 'knockd')
    wire.server.nft(ours.out)

    def chains(text):
        return re.findall(r'chain (\w+) \{', text), re.findall(r'set (\w+) \{', text)
    assert chains(wire.server.must('nft', 'list', 'table', 'inet', 'knockd')) == chains(in_force)
    assert until(lambda: not wire.client.connects(wire.server.addresses[0]), 1)
