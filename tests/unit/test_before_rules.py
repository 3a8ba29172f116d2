"""What is decided before the keeper loads the first rule."""

import json
import os

import pytest

import knockd


@pytest.mark.parametrize('text,flaw', [
    ('nftables v1.0.2 (Lester Gooch)', None), ('nftables v1.0.6', None), ('nftables v1.1', None),
    ('nftables v1.0.1', 'nft 1.0.1 is older than 1.0.2'),
    ('nftables v0.9.8', 'nft 0.9.8 is older than 1.0.2'), ('', 'nft ? is older than 1.0.2')])
def test_which_nft_is_too_old(text, flaw):
    assert knockd.version_flaw(text) == flaw


def test_what_the_kernel_was_told_before_is_kept_once(tmp_path, monkeypatch):
    values, kept = {'a': '0', 'b': '1'}, tmp_path / 'sysctls'
    real, there = knockd.read_file, os.path.exists
    monkeypatch.setattr(knockd, 'read_file', lambda path: values[path[10:]] + '\n'
                        if path.startswith('/proc/sys/') else real(path))
    monkeypatch.setattr(os.path, 'exists', lambda path: str(path)[10:] in values
                        if str(path).startswith('/proc/sys/') else there(path))
    monkeypatch.setattr(knockd, 'write_variable', values.__setitem__)
    assert knockd.reflect_marks(('a', 'b', 'absent'), str(kept)) is True
    assert values == {'a': '1', 'b': '1'}
    values['b'] = '0'
    assert knockd.reflect_marks(('a', 'b'), str(kept)) is True
    assert json.loads(kept.read_text()) == {'a': '0', 'b': '1'} and values['b'] == '1'


def test_a_folder_in_the_ledgers_place_is_a_lost_ledger(tmp_path):
    path = str(tmp_path / 'ledger')
    config = knockd.parse_config('[server]\nid = a\nhide = tcp/22\nledger = %s\n' % path, '/a')
    knockd.check_programs(config)
    os.mkdir(path)
    knockd.check_programs(config)       # no reason to end


@pytest.mark.parametrize('said,flawed', [
    ('ssh-keygen: Too few arguments for sign', False), ('unknown option -- Y', True),
    ('ssh-keygen is not installed', True)])
def test_a_client_with_an_ssh_key_needs_a_program_that_checks_signatures(
        tmp_path, monkeypatch, said, flawed):
    config = knockd.parse_config(
        '[server]\nid = a\nhide = tcp/22\nledger = %s/ledger\n[client anna]\nsecret = %s\n'
        % (tmp_path, knockd.encode_secret(bytes(range(32)))), '/a')
    ran = []

    def run(argv, text='', seconds=0):
        ran.append(argv)
        raise knockd.KnockError(said)
    monkeypatch.setattr(knockd, 'run', run)
    knockd.check_programs(config)
    assert ran == []
    anna = config.clients['anna']._replace(ssh_key='ssh-ed25519 AAAA')
    config = config._replace(clients={'bert': config.clients['anna'], 'anna': anna})
    if not flawed:
        knockd.check_programs(config)
    else:
        with pytest.raises(knockd.KnockError) as told:
            knockd.check_programs(config)
        assert str(told.value) == (
            '/a: ssh_key needs ssh-keygen -Y (OpenSSH 8.1 or later): ' + said)
        assert told.value.status == 2
    assert ran == [['ssh-keygen', '-Y', 'sign']]


def test_a_folder_that_others_may_change_is_no_place_for_a_ledger(tmp_path):
    config = knockd.parse_config('[server]\nid = a\nhide = tcp/22\nledger = %s/ledger\n'
                                 % tmp_path, '/a')
    for mode, fine in ((0o755, True), (0o754, True), (0o775, False), (0o757, False)):
        tmp_path.chmod(mode)
        if fine:
            knockd.check_programs(config)
            continue
        with pytest.raises(knockd.KnockError, match=str(tmp_path)):
            knockd.check_programs(config)


def test_a_folder_is_no_program(tmp_path):
    config = knockd.parse_config('[server]\nid = a\nhide = tcp/22\non_open = %s\n' % tmp_path, '/a')
    assert knockd.box_facts(config).programs == []


def test_rules_of_routing_that_ask_for_our_bits_are_found():
    text = '''0:\tfrom all lookup local
100:\tfrom all fwmark 0x1 lookup 100
101:\tfrom all fwmark 0x2/0xff lookup 101
102:\tnot from all fwmark 0xca6c lookup 51820
103:\tfrom all fwmark 0x40000000/0x40000000 lookup 103
'''
    assert list(knockd.exact_marks(text, 0x60000000)) == [
        '100: from all fwmark 0x1 lookup 100',
        '103: from all fwmark 0x40000000/0x40000000 lookup 103']
    assert len(list(knockd.exact_marks(text, 0x18))) == 2
