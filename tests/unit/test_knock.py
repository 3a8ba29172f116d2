"""What knock.py decides without touching the world: NAT64, fleets, words for what went wrong, and
options that would have no effect."""
import ipaddress
import os

import pytest

import knock
import knockd

MASTER = bytes(range(32))
FLEET = 'knock://ops:%s@*?id=*&open=tcp/22' % knock.encode_secret(MASTER)


# --- NAT64: RFC 6052, 2.4, the text's own table --------------------------------------------------
RFC6052 = (
    ('2001:db8::/32', '2001:db8:c000:221::'), ('2001:db8:100::/40', '2001:db8:1c0:2:21::'),
    ('2001:db8:122::/48', '2001:db8:122:c000:2:2100::'),
    ('2001:db8:122:300::/56', '2001:db8:122:3c0:0:221::'),
    ('2001:db8:122:344::/64', '2001:db8:122:344:c0:2:2100::'),
    ('2001:db8:122:344::/96', '2001:db8:122:344::192.0.2.33'))


@pytest.mark.parametrize('prefix, address', RFC6052)
def test_an_ipv4_address_is_found_in_an_ipv6_address_of_every_prefix(prefix, address):
    address = ipaddress.IPv6Address(address)
    places = dict(knock.EMBEDDED)[ipaddress.ip_network(prefix).prefixlen]
    assert knock.embedded(address, places) == ipaddress.IPv4Address('192.0.2.33')
    assert knock.translation(address, [ipaddress.IPv4Address('192.0.2.33')]) == 'sure'
    assert knock.translation(address, [ipaddress.IPv4Address('192.0.2.34')]) == 'none'


@pytest.mark.parametrize('prefix, address', RFC6052)
def test_the_prefix_of_a_network_is_read_out_of_ipv4only_arpa(prefix, address):
    packed = bytearray(ipaddress.IPv6Address(address).packed)
    length = ipaddress.ip_network(prefix).prefixlen
    for place, byte in zip(dict(knock.EMBEDDED)[length], (192, 0, 0, 170)):
        packed[place] = byte
    assert knock.nat64_prefixes(ipaddress.IPv6Address(bytes(packed))) == [
        ipaddress.ip_network(prefix)]
    assert knock.nat64_prefixes(ipaddress.IPv6Address(address)) == []


@pytest.mark.parametrize('address, siblings, answer', (
    ('64:ff9b::203.0.113.9', [], 'sure'), ('64:ff9b:1:2::5', [], 'sure'),
    ('2001:db8::1', [], 'none'), ('2a01:4f8:c17:abc::1', [], 'none'),
    ('2a01:4f8:c17:abc:1234:56ff:fe78:9abc', [], 'none'),
    ('2a00:1450::8.8.8.8', [], 'perhaps'), ('2a00:1450::10.0.0.1', [], 'none'),
    ('2a00:1450::8.8.8.8', ['9.9.9.9'], 'none'), ('2a00:1450::8.8.8.8', ['8.8.8.8'], 'sure')))
def test_only_what_can_be_a_nat64s_is_asked_for(address, siblings, answer):
    siblings = [ipaddress.IPv4Address(text) for text in siblings]
    assert knock.translation(ipaddress.IPv6Address(address), siblings) == answer


# --- a fleet -------------------------------------------------------------------------------------
def test_a_fleets_line_names_no_host():
    address = knock.parse_uri(FLEET)
    assert (address.host, address.server_id, address.secret) == ('*', '*', MASTER)
    for half in (FLEET.replace('@*', '@h'), FLEET.replace('id=*', 'id=x')):
        with pytest.raises(knock.KnockError):
            knock.parse_uri(half)


def test_a_member_has_its_own_secret_and_its_hosts_name_as_id():
    address = knock.parse_uri(FLEET)
    first, second = knock.member(address, 'web1', None), knock.member(address, 'web2', None)
    assert (first.host, first.server_id) == ('web1', 'web1')
    assert len({first.secret, second.secret, MASTER}) == 3
    other = knock.member(address, '192.0.2.1', 'web1')
    assert (other.host, other.secret) == ('192.0.2.1', first.secret)
    assert knock.member(address, '[2001:db8::1]', 'web1').host == '2001:db8::1'


@pytest.mark.parametrize('host, server_id', (('-e', None), ('a b', None), ('2001:db8::1', None),
                                             ('web1', 'a/b'), ('web1', 'n' * 65)))
def test_a_member_that_cannot_be_is_refused(host, server_id):
    with pytest.raises(knock.KnockError):
        knock.member(knock.parse_uri(FLEET), host, server_id)


def test_a_line_for_one_server_is_for_no_other():
    address = knock.parse_uri(FLEET.replace('@*', '@h').replace('id=*', 'id=x'))
    with pytest.raises(knock.KnockError):
        knock.member(address, 'web1', None)


def saved(tmp_path, monkeypatch, name, text):
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = tmp_path / '.config' / 'knock'
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / name).write_text(text + '\n')
    (folder / name).chmod(0o600)


def test_derive_prints_what_a_config_takes(tmp_path, monkeypatch, capsys):
    saved(tmp_path, monkeypatch, 'fleet', FLEET)
    assert knock.main(['derive', 'fleet', 'web1']) == 0
    section = capsys.readouterr().out
    assert knock.main(['derive', 'fleet', 'web1', '--secret']) == 0
    secret = knock.fleet_secret(MASTER, 'web1')
    assert capsys.readouterr().out == knock.encode_secret(secret) + '\n'
    assert section == '[client ops]\nsecret = %s\nallow = tcp/22\n' % knock.encode_secret(secret)
    config = '[server]\nid = web1\nhide = tcp/22\nledger = %s\n' % (tmp_path / 'ledger')
    assert knockd.parse_config(config + section, 'x').clients['ops'].secret == secret


@pytest.mark.parametrize('words, told', (
    (['derive', 'fleet'], 'takes the name'), (['derive', 'fleet', 'a b'], 'is not a host'),
    (['derive', 'one', 'web1'], 'not for a fleet'),
    (['derive', 'none', 'web1'], 'there are: fleet, one'), (['fleet'], 'write NAME@HOST'),
    (['one@web1'], 'for h alone'), (['none@web1'], 'there are: fleet, one'),
    (['fleet@-e'], 'is not a host')))
def test_what_is_wrong_with_a_fleets_command_is_said(words, told, tmp_path, monkeypatch, capsys):
    saved(tmp_path, monkeypatch, 'fleet', FLEET)
    saved(tmp_path, monkeypatch, 'one', FLEET.replace('@*', '@h').replace('id=*', 'id=x'))
    assert knock.main(words) == 2
    said = capsys.readouterr()
    assert told in said.err and said.err.count('\n') == 1 and not said.out


def test_a_saved_line_that_is_broken_is_told_with_its_file(tmp_path, monkeypatch, capsys):
    saved(tmp_path, monkeypatch, 'bad', 'garbage')
    assert knock.main(['bad']) == 2
    assert '/bad: this is not a knock:// line' in capsys.readouterr().err
    assert knock.main(['list']) == 0
    assert 'cannot be used: ' in capsys.readouterr().out


def test_a_clock_that_cannot_be_asked_does_not_hide_why_the_port_did_not_open():
    told = knock.clock_against('no.invalid')
    assert told.startswith('no.invalid: no address found'), told


# --- words ---------------------------------------------------------------------------------------
FACTS = knock.Facts('box.example', 22, 5, 'refused', 'udp', 'unknown', None, False, '')


@pytest.mark.parametrize('changes, told, untold', (
    ({}, ['tcp/22 at box.example did not open within 5 s', 'it refuses',
          'nothing listens on tcp/22', 'whether UDP gets there cannot be seen', '--via ports',
          'no source is named'], ['clock']),
    ({'seen': 'silent'}, ['it is silent', 'firewall'], ['refuses']),
    ({'seen': 'mute'}, ['without a byte', 'proxy'], ['refuses']),
    ({'udp': 'arrived'}, ['UDP reaches that address'], ['--via ports']),
    ({'udp': 'blocked'}, ['UDP may not pass', '--via ports'], []),
    ({'via': 'ports'}, ['it refuses'], ['UDP', 'source']),
    ({'via': 'icmp'}, ['no source is named'], ['UDP']),
    ({'named': '203.0.113.5'}, ['203.0.113.5 is named as the source', '--source none'],
     ['no source']),
    ({'named': '203.0.113.5', 'chosen': True}, ['the source named is 203.0.113.5'],
     ['--source none']),
    ({'clock': 'this clock says 1970-01-01: set it'}, ['; this clock says 1970-01-01'], [])))
def test_a_port_that_did_not_open_is_one_line_with_all_that_is_known(changes, told, untold):
    said = knock.diagnosis(FACTS._replace(**changes))
    assert [words for words in told if words not in said] == []
    assert [words for words in untold if words in said] == []
    assert said.endswith('; on the server: knockd.py watch') and '\n' not in said


def test_a_clock_before_this_program_is_wrong(monkeypatch):
    monkeypatch.setattr(knock, 'now_ms', lambda: 86400000)
    assert knock.clock_doubts() == 'this clock says 1970-01-02: set it'


@pytest.mark.parametrize('tool, printed, doubt', (
    ('timedatectl', 'no', True), ('timedatectl', 'yes', False),
    ('chronyc', '7F7F0101,,0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,Not synchronised', True),
    ('chronyc', 'C0000201,192.0.2.1,2,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,64.2,Normal', False)))
def test_what_the_system_knows_of_its_clock_is_said(tool, printed, doubt, tmp_path, monkeypatch):
    program = tmp_path / tool
    program.write_text('#!/bin/sh\necho "%s"\n' % printed)
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path) + ':/bin')
    assert knock.clock_doubts().startswith(tool + ' says that nobody sets') == doubt


def test_a_clock_tool_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    (tmp_path / 'timedatectl').write_text('#!/bin/sh\nexec sleep 60\n')
    (tmp_path / 'timedatectl').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path) + ':/bin:/usr/bin')
    began = knock.time.monotonic()
    assert knock.output_of(('timedatectl',)) == ''
    assert knock.time.monotonic() - began < 5


# --- options without effect ----------------------------------------------------------------------
LINE = FLEET.replace('@*', '@127.0.0.1').replace('id=*', 'id=x')


@pytest.mark.parametrize('words, told', (
    (['--proxy', '22', '--run', 'x'], '--proxy goes without --run'),
    (['--proxy', '22', '--close'], '--proxy goes without --close'),
    (['--proxy', '22', '--print'], '--proxy goes without --print'),
    (['--proxy', '22', '--', 'true'], '--proxy goes without COMMAND'),
    (['--proxy', '22', '--wait', '0'], 'wait for a TCP port'),
    (['--time-check', 'h', '--wait', '0'], 'wait for a TCP port'),
    (['--print', '--wait', '3'], '--print goes without --wait'),
    (['--print', '-v'], '--print goes without -v'),
    (['--print=sh', '-q'], '--print goes without -q'),
    (['--print', '--time-check', 'h'], '--print goes without --time-check'),
    (['--print', '--', 'true'], '--print goes without COMMAND'),
    (['--print', '--port', '9'], '--port goes with --print=sh'),
    (['--close', '--for', '5m'], '--close goes without --for'),
    (['--time-check', 'h', '--open', 'udp/9'], 'wait for a TCP port'),
    (['--close', '--run', 'x'], '--close goes without --run'),
    (['--close', '--keep', '--', 'true'], '--close goes without --keep'),
    (['--close', '--wait', '3'], '--close goes without --wait'),
    (['--run', 'x', '--open', 'tcp/22'], '--run goes without --open'),
    (['--run', 'x', '--for', '5m'], '--run goes without --for'),
    (['-q', '-v'], '-q goes without -v'),
    (['--keep'], '--keep goes with COMMAND'),
    (['--via', 'ports', '--for', '5m'], '--via ports has no room for --for'),
    (['--via', 'ports', '--source', 'none'], '--via ports has no room for --source'),
    (['--via', 'syn', '--close'], '--via syn has no room for --close'),
    (['--via', 'code', '--port', '9'], '--via code chooses its ports'),
    (['-6', '--source', '192.0.2.1'], 'is of the other family'),
    (['-4', '--source', '::1'], 'is of the other family'),
    (['--'], 'no COMMAND stands behind --')))
def test_an_option_that_would_have_no_effect_is_an_error(words, told, capsys):
    at = words.index('--') if '--' in words else len(words)
    assert knock.main(words[:at] + [LINE] + words[at:]) == 2
    said = capsys.readouterr().err.splitlines()
    assert told in said[-1] and len(said) == 1 + (words[-1] == '-v' and '-q' not in words)


def test_fdpass_is_for_ssh(capsys):
    assert knock.main(['--fdpass', '--proxy', '22', LINE]) == 2
    assert 'ProxyUseFdpass' in capsys.readouterr().err


def test_the_line_is_not_in_the_environment_of_what_is_started(monkeypatch):
    monkeypatch.setenv('KNOCK_URI', LINE)
    printed = knock.output_of(('env',))
    assert 'PATH=' in printed and 'KNOCK_URI' not in printed
    assert os.environ['KNOCK_URI'] == LINE
