"""The config: a line for everything that is wrong, all at once; edits that keep the rest."""
import base64
import contextlib
import os
import random
import subprocess

import pytest

import knock
import knockd
from compiled import started

SECRET = knockd.encode_secret(bytes(range(32)))
OTHER = knockd.encode_secret(bytes(range(1, 33)))
SERVER = '[server]\nid = home\nhide = tcp/22, udp/51820, tcp/8000-8010\n'
CLIENT = '[client anna]\nsecret = %s\n' % SECRET
PATH = '/etc/knockd/knockd.ini'


def parse(text):
    return knockd.parse_config(text, PATH)


def problems(text):
    """The lines of the error, without the file's name, which each must begin with."""
    with pytest.raises(knockd.KnockError) as caught:
        parse(text)
    assert caught.value.status == 2
    lines = str(caught.value).split('\n')
    assert all(line.startswith(PATH + ': ') for line in lines), lines
    return [line[len(PATH) + 2:] for line in lines]


def places(text):
    """Where the problems are: '[section] key' each."""
    return [line.partition(': ')[0] for line in problems(text)]


def ports(services):
    return [knockd.format_service(service) for service in services]


# --- values -------------------------------------------------------------------------------------
def test_what_is_not_said_is_as_the_design_says():
    config = parse(SERVER + CLIENT)
    assert (config.path, config.id, config.answer, config.window) == (PATH, 'home', 'box', 60000)
    assert (config.open_for, config.max_open_for) == (30000, 3600000)
    assert (config.port, config.accept_in, config.trust, config.mark) == (
        None, (('auto',),), (), 1 << 30)
    assert ports(config.hide) == ['tcp/22', 'udp/51820', 'tcp/8000-8010']
    anna = config.clients['anna']
    assert anna.allow == anna.default == config.hide
    assert (anna.open_for, anna.require_source, anna.any_source) == (None, False, False)
    assert anna.expires is None or anna.expires >= 1 << 42, 'the time of no knock is that late'
    assert anna.keys == knockd.derive_keys(bytes(range(32)), 'home')
    assert anna.fingerprint == anna.keys['ledger'].hex()[:16]


def test_every_port_can_be_hidden_as_the_box_answers():
    """Above MOST_DECOYS the firewall resets, so no number of ports is an error."""
    assert ports(parse('[server]\nid = home\nhide = tcp/1-65535\n').hide) == ['tcp/1-65535']


def test_every_key_is_read():
    config = parse('''# comment
[server]
id = Office-1.a_b
hide = tcp/22,udp/53
answer = drop
window = 2m
open_for = 1h
max_open_for = 1d
carriers = icmp
port = 62201
firewall = nft
accept_in = inet filter input, ip filter INPUT
trust = lan0, wg-home
mark = 0x00010000
ledger = /var/lib/knockd/ledger.json
host = example.org
; another
[client a.B-c_9]
secret = %s
allow = tcp/22
default =
open_for = 90
require_source = YES
any_source = off
expires = 2027-01-31
''' % SECRET.lower())
    assert config[1:2] + config[3:7] == ('Office-1.a_b', 'drop', 120000, 3600000, 86400000)
    assert (config.carriers, config.port, config.firewall) == (('icmp',), 62201, 'nft')
    assert config.accept_in == (('inet', 'filter', 'input'), ('ip', 'filter', 'INPUT'))
    assert (config.trust, config.mark) == (('lan0', 'wg-home'), 65536)
    assert (config.ledger, config.host) == ('/var/lib/knockd/ledger.json', 'example.org')
    client = config.clients['a.B-c_9']
    assert (ports(client.allow), client.default, client.open_for) == (['tcp/22'], (), 90000)
    assert (client.require_source, client.any_source) == (True, False)
    assert client.secret == bytes(range(32))


@pytest.mark.parametrize('text,expected', [
    ('1', 1000), ('59', 59000), ('30s', 30000), ('5m', 300000), ('0600', 600000), ('10 m', 600000)])
def test_times_take_a_unit_and_a_bare_number_is_seconds(text, expected):
    assert parse(SERVER + 'window = %s\n' % text).window == expected


@pytest.mark.parametrize('text', ['', '0', '601', '11m', '1h', '-5', '1.5', '30 sec', '5M', 's',
                                  '1 0', '0x10', '\u0663', '9' * 20])
def test_other_times_are_problems(text):
    assert places(SERVER + 'window = %s\n' % text) == ['[server] window']


@pytest.mark.parametrize('text,expected', [
    # date -u -d '2027-02-01' +%s and so on: the end of a day is the begin of the next
    ('2027-01-31', 1801440000000), ('2027-12-31', 1830297600000), ('2028-02-29', 1835481600000),
    ('2027-01-31 18:00', 1801418400000), ('2027-01-31 00:00', 1801353600000)])
def test_expiry_dates_are_utc_and_last_to_the_end_of_the_day(text, expected):
    assert parse(SERVER + CLIENT + 'expires = %s\n' % text).clients['anna'].expires == expected


@pytest.mark.parametrize('zone', ['America/New_York', 'Pacific/Kiritimati', 'UTC'])
def test_expiry_does_not_depend_on_the_time_zone(zone, monkeypatch):
    import time
    monkeypatch.setenv('TZ', zone)
    time.tzset()
    try:
        assert parse(SERVER + CLIENT + 'expires = 2027-01-31\n').clients['anna'].expires == \
            1801440000000
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize('text', ['', 'never', '2027-02-30', '2027-13-01', '27-01-31', '2027/01/31',
                                  '2027-01-31 24:00', '2027-01-31T18:00', '0000-01-01',
                                  '2027-01-31 18:00:00', '2027-1-31'])
def test_other_dates_are_problems(text):
    assert places(SERVER + CLIENT + 'expires = %s\n' % text) == ['[client anna] expires']


@pytest.mark.parametrize('bit', range(32))
def test_a_mark_is_any_one_bit(bit):
    assert parse(SERVER + 'mark = 0x%x\n' % (1 << bit)).mark == 1 << bit
    assert parse(SERVER + 'mark = 0x%08X\n' % (1 << bit)).mark == 1 << bit


# --- problems -----------------------------------------------------------------------------------
@pytest.mark.parametrize('line', [
    'answer = maybe', 'answer = box, drop', 'mark = 0', 'mark = 0x0', 'mark = 0x3', 'mark = 7',
    'mark = 0x100000000', 'port = 0', 'port = 65536', 'port = http', 'port = 1-2',
    'port = 2_2', 'port = +22', 'carriers = tcp', 'firewall = pf', 'trust = a b',
    'trust = "eth0"', 'trust = eth0 }', 'trust = +',
    'trust = aaaaaaaaaaaaaaaa', 'accept_in = filter input', 'accept_in = inet filter',
    'accept_in = inet filter input; flush', 'accept_in = bridge filter input',
    'accept_in = inet  filter input', 'ledger = ledger.json', 'host = a b',
    'ledger = /var/lib/knockd/', 'ledger = /dev/null', 'host = a@b',
    'host = a/b', 'open_for = 2h', 'max_open_for = 32d', 'unknown = 1', 'on = 1'])
def test_a_wrong_value_is_one_problem_at_its_key(line):
    assert places(SERVER + line + '\n') == ['[server] ' + line.partition(' ')[0]]


@pytest.mark.parametrize('line', [
    'allow = tcp/23', 'allow = tcp/22-23', 'allow = tcp/22,tcp/0', 'allow = icmp/1',
    'allow = tcp/22,x', 'default = tcp/23', 'open_for = 0', 'require_source = perhaps',
    'any_source =', 'expires = soon', 'hide = tcp/22', 'window = 5'])
def test_a_wrong_value_of_a_client_is_one_problem_at_its_key(line):
    assert set(places(SERVER + CLIENT + line + '\n')) == {'[client anna] ' + line.partition(' ')[0]}


@pytest.mark.parametrize('secret', [
    '', SECRET[:-1], SECRET + 'A', SECRET[:-1] + '1', SECRET[:-1] + '=', SECRET[:-1] + 'B',
    SECRET[:20] + '\u0130' + SECRET[21:]], ids=range(7))
def test_a_secret_with_a_slip_is_a_problem(secret):
    text = SERVER + '[client anna]\nsecret = %s\n' % secret
    assert places(text) == ['[client anna] secret']
    if secret:
        assert secret[:20] not in problems(text)[0], 'an error message is no place for a secret'


@pytest.mark.parametrize('secret', ['A' * 52, 'a' * 26 + '-' + 'A' * 26, 'ABCD' * 13, 'xxxx',
                                    'X' * 51 + 'A'])
def test_a_placeholder_is_no_secret(secret):
    line, = problems(SERVER + '[client anna]\nsecret = %s\n' % secret)
    assert line == '[client anna] secret: a placeholder, not a secret; make one with: ' \
        'knockd.py add NAME'


def test_everything_that_is_wrong_is_told_at_once():
    assert places('''
[server]
hide = tcp/22
window = 1h
answer = maybe
[client anna]
secret = short
allow = tcp/23
[client bert]
nonsense = 1
[network]
a = 1
''') == ['[server] window', '[server] answer', '[server] id', '[client anna] secret',
         '[client anna] allow', '[client bert] nonsense', '[client bert] secret', '[network]']


def test_an_unknown_key_is_told_with_those_that_are_known():
    line, = problems(SERVER + 'hidden = tcp/22\n')
    assert line.startswith('[server] hidden: unknown key') and 'hide' in line


@pytest.mark.parametrize('name', ['', ' ', 'a b', 'a/b', 'x' * 65, 'ann\u00e4', 'a"b', 'a]b'])
def test_a_client_needs_a_name_that_is_safe_everywhere(name):
    try:
        config = parse(SERVER + CLIENT.replace('anna', name))
    except knockd.KnockError:
        return
    assert list(config.clients) == ['a'], 'what configparser makes of a bracket'


@pytest.mark.parametrize('server_id', ['', 'a b', 'a/b', 'x' * 65, '\u00e4', 'a"b'])
def test_an_id_is_safe_everywhere(server_id):
    assert places('[server]\nid = %s\nhide = tcp/22\n' % server_id) == ['[server] id']


@pytest.mark.parametrize('secret', [SECRET, SECRET.lower(), '-'.join((SECRET[:26], SECRET[26:]))])
def test_two_clients_with_one_secret_are_a_problem_however_it_is_written(secret):
    line, = problems(SERVER + CLIENT + '[client bert]\nsecret = %s\n' % secret)
    assert line.startswith('[client bert] secret: ') and 'anna' in line and SECRET not in line


@pytest.mark.parametrize('text', [
    'id = home\n', '[server\nid = home\n', SERVER + 'nonsense\n', SERVER + SERVER,
    SERVER + 'id = again\n', SERVER + CLIENT + CLIENT, SERVER + 'window: 5\n'])
def test_what_is_no_ini_file_is_one_problem_in_one_line(text):
    with pytest.raises(knockd.KnockError) as caught:
        parse(text)
    assert caught.value.status == 2
    assert PATH in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_line_that_is_none_is_told_by_its_number_for_it_may_be_a_secret():
    for text, numbers in ((SERVER + CLIENT.replace(' =', ':'), '5'), (SECRET + '\n', '1'),
                          (SERVER + SECRET + '\n# note\n' + SECRET + '\n', '4, 6')):
        with pytest.raises(knockd.KnockError) as caught:
            parse(text)
        assert str(caught.value) == (
            '%s: line %s: write [SECTION], KEY = VALUE or # COMMENT, in UTF-8 without a byte '
            'order mark' % (PATH, numbers))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16-le', 'utf-16-be'])
def test_a_byte_order_mark_is_called_so(encoding):
    data = ('' if encoding == 'utf-8-sig' else '\ufeff').encode(encoding)
    text = (data + SERVER.encode(encoding)).decode('utf-8', 'surrogateescape')
    with pytest.raises(knockd.KnockError) as caught:
        parse(text)
    assert str(caught.value).endswith(' without a byte order mark')


def test_an_ssh_key_that_was_cut_is_a_problem_wherever_it_was_cut():
    key = b''.join(len(part).to_bytes(4, 'big') + part for part in (b'ssh-ed25519', bytes(32)))
    text = base64.b64encode(key).decode()
    parse(SERVER + CLIENT + 'ssh_key = ssh-ed25519 %s anna@home\n' % text)
    for end in range(1, len(text)):
        assert places(SERVER + CLIENT + 'ssh_key = ssh-ed25519 %s anna\n' % text[:end]) == [
            '[client anna] ssh_key'], end
    for kind, blob in (('ssh-rsa', key), ('ssh-ed25519', key[:15]), ('ssh-ed25519', key + b'x')):
        text = base64.b64encode(blob).decode()
        assert places(SERVER + CLIENT + 'ssh_key = %s %s\n' % (kind, text)) == [
            '[client anna] ssh_key']


@pytest.mark.parametrize('line, limit', [
    ('window = 11m', '10m'), ('window = 0', '10m'), ('max_open_for = 32d', '31d')])
def test_a_time_out_of_range_is_told_with_the_range(line, limit):
    text, = problems(SERVER + line + '\n')
    assert text.endswith('%r is not from 1s to %s' % (line.partition('= ')[2], limit))


@pytest.mark.parametrize('text', ['', '[server]\n', '[client anna]\n', '[other]\n', '[]\n'])
def test_an_empty_config_is_a_problem_and_no_traceback(text):
    with pytest.raises(knockd.KnockError):
        parse(text)


def test_what_must_be_there_is_missed_by_name():
    assert places('[server]\nid = home\n') == ['[server] hide']
    assert places('[server]\nhide = tcp/22\n') == ['[server] id']
    assert places(SERVER + '[client anna]\n') == ['[client anna] secret']


def test_values_over_several_lines_stay_in_one_line_of_a_problem():
    assert len(problems(SERVER + 'host = a\n b\n c\n')) == 1
    assert ports(parse('[server]\nid = a\nhide = tcp/22,\n  udp/53\n').hide) == ['tcp/22',
                                                                                'udp/53']


def test_a_percent_sign_is_only_a_percent_sign():
    assert places(SERVER + 'host = %(id)s\n') == ['[server] host']


def test_no_text_makes_the_parser_raise_anything_else():
    chance = random.Random(5)
    pieces = SERVER.split('\n') + CLIENT.split('\n') + [
        '[', ']', '=', ' = ', '\n', '\n ', '\0', '\ud800', '%', '#', ';', '[server]', '[client a]',
        'window = 5', 'expires = 2027-01-31', 'tcp/', '\x85', '\u2028', '[client b]', 'mark = 0x1']
    for _ in range(2000):
        text = ''.join(chance.choice(pieces) + chance.choice(('\n', '\n', '', ' '))
                       for _ in range(chance.randrange(12)))
        try:
            parse(text)
        except knockd.KnockError as error:
            assert str(error)


# --- edits --------------------------------------------------------------------------------------
COMMENTED = '''# The gate of the house.
[server]
id = home
hide = tcp/22, udp/51820,
    tcp/8000-8010
; hide more one day

# My own laptop
[client anna]
secret = %s
# holidays are over
allow = tcp/22

# Anna's old phone
[client anna-2]
secret = %s
''' % (SECRET, OTHER)


def test_a_section_is_appended_and_the_rest_kept():
    changed = knockd.edited(COMMENTED, 'client bert', [('secret', 'x'), ('allow', 'tcp/22')])
    assert changed == COMMENTED + '\n[client bert]\nsecret = x\nallow = tcp/22\n'


@pytest.mark.parametrize('text', ['', '\n', '\n\n \n'])
def test_the_first_section_begins_the_file(text):
    assert knockd.edited(text, 'server', [('id', 'a')]) == '[server]\nid = a\n'


def test_a_section_is_appended_to_a_file_without_a_last_line_end():
    assert knockd.edited('[a]\nb = 1', 'c', [('d', '2')]) == '[a]\nb = 1\n\n[c]\nd = 2\n'


def test_a_section_is_taken_out_and_its_namesakes_and_comments_are_kept():
    changed = knockd.edited(COMMENTED, 'client anna', [])
    assert '[client anna]' not in changed and SECRET not in changed
    for kept in ('# The gate', '; hide more', '    tcp/8000-8010', '[client anna-2]', OTHER):
        assert kept in changed
    assert "# Anna's old phone\n[client anna-2]\n" in changed, \
        'what stands above the next section belongs to that'
    assert list(parse(changed).clients) == ['anna-2']


def test_the_last_section_is_taken_out():
    changed = knockd.edited(COMMENTED, 'client anna-2', [])
    assert changed.endswith("# Anna's old phone\n") or changed.endswith('allow = tcp/22\n')
    assert list(parse(changed).clients) == ['anna']


@pytest.mark.parametrize('section', ['client', 'client ann', 'client Anna', 'anna', 'client anna '])
def test_a_section_that_is_not_there_takes_nothing_out(section):
    assert knockd.edited(COMMENTED, section, []) == COMMENTED


def test_adding_and_removing_again_restores_the_file():
    changed = knockd.edited(COMMENTED, 'client bert', [('secret', 'x')])
    assert knockd.edited(changed, 'client bert', []) == COMMENTED


def test_edits_change_what_they_say_and_nothing_else():
    """Random files: what configparser reads afterwards is what it read before, less or plus one."""
    chance, compared = random.Random(6), 0
    lines = ['[server]', '[client a]', '[client ab]', '[client a]x', 'id = 1', 'hide = tcp/22,',
             '  tcp/23', '# [client a]', '; x', '', ' # y', 'k = [client a]',
             'l = 1\n\t[client a]', 'a = \u2028[client ab]']
    for _ in range(1500):
        chosen = [chance.choice(lines) for _ in range(chance.randrange(2, 12))]
        text = '\n'.join(chosen) + chance.choice(('\n', ''))
        try:
            before = knockd.ini_sections(text, PATH)
        except knockd.KnockError:
            continue
        compared += 1
        after = knockd.ini_sections(knockd.edited(text, 'client a', []), PATH)
        before.pop('client a', None)
        assert after == before, text
        added = knockd.ini_sections(knockd.edited(text, 'client z', [('b', 'c')]), PATH)
        assert added.pop('client z') == {'b': 'c'}
        assert added == knockd.ini_sections(text, PATH), text
    assert compared > 150


# --- lists, networks, hosts -----------------------------------------------------------------------
def test_all_wrong_items_of_a_list_are_told_at_once():
    text = '[server]\nid = home\nhide = tcp/0, tcp/22, udp/x, tcp/0, tcp/9-8\n'
    lines = problems(text + 'carriers = udp, tcp, pigeon\ntrust = lan0, a b, "c"\n')
    assert [line.split(' is not ')[0] for line in lines] == [
        "[server] hide: 'tcp/0'", "[server] hide: 'udp/x'", "[server] hide: 'tcp/9-8'",
        "[server] carriers: 'tcp'", "[server] carriers: 'pigeon'",
        "[server] trust: 'a b'", "[server] trust: '\"c\"'"]


def test_networks_behind_and_the_addresses_of_a_client_are_read():
    config = parse(SERVER + 'behind = 2001:db8:1::/64, 203.0.113.8/29, 198.51.100.7\n' + CLIENT
                   + 'only = 2001:db8:1::7, 203.0.113.9\n')
    assert [str(network) for network in config.behind] == [
        '2001:db8:1::/64', '203.0.113.8/29', '198.51.100.7/32']
    assert [str(address) for address in config.clients['anna'].only] == [
        '2001:db8:1::7', '203.0.113.9']
    config = parse(SERVER + CLIENT)
    assert (config.behind, config.clients['anna'].only) == ((), ())


@pytest.mark.parametrize('network', [
    '203.0.113.9/29', '2001:db8::1/64',             # host bits
    '127.0.0.1', '126.0.0.0/7', '::1', '::/0', '0.0.0.0/0', '0.0.0.0',      # loopback, all
    '224.0.0.1', 'ff02::1', '192.0.0.0/2', '::ffff:203.0.113.8',            # multicast, mapped
    '203.0.113.8/33', '203.0.113.8/', '203.0.113', 'x', 'lan0', '2001:db8::/64%eth0', '1',
    '203.0.113.8/255.255.255.248'])
def test_what_is_no_network_behind_a_box_is_a_problem(network):
    assert places(SERVER + 'behind = 198.51.100.0/24, %s\n' % network) == ['[server] behind']


@pytest.mark.parametrize('address,wrong', [
    ('203.0.113.9', 0), ('203.0.113.16', 1), ('203.0.113.16, 2001:db8::1', 2),
    ('203.0.113.8/29', 1)])
def test_a_client_gets_only_addresses_that_are_behind(address, wrong):
    text = SERVER + 'behind = 203.0.113.8/29\n' + CLIENT + 'only = %s\n' % address
    if wrong:
        assert places(text) == ['[client anna] only'] * wrong
    else:
        parse(text)


@pytest.mark.parametrize('host', ['-e', '-oProxyCommand', '--', '-', '999.1.1.1', '10.0.0', '7',
                                  'box.example:2222', '10.0.0.1:22', '2001:db8::g', '...'])
def test_a_host_that_would_be_an_option_to_ssh_or_is_none_is_a_problem(host):
    assert places(SERVER + 'host = %s\n' % host) == ['[server] host']


def test_dates_beyond_2038_are_dates():
    config = parse(SERVER + CLIENT + 'expires = 2039-01-31\n')
    assert config.clients['anna'].expires == 2180131200000     # date -u -d 2039-02-01 +%s
    assert knockd.format_time(2180131200000) == '2039-02-01 00:00'
    assert knockd.format_time(1801418400000) == '2027-01-31 18:00'
    assert knockd.format_time(knockd.NEVER) == 'never'


# --- warnings: what is accepted and cannot work --------------------------------------------------
NOW = 1800000000000             # 2027-01-15 08:00 UTC
SSH_KEY = 'ssh_key = ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI' + 'A' * 43
FACTS = knockd.Facts(NOW, {'lo', 'lan0', 'wg-home'}, {'/bin/echo'},
                     {('inet', 'filter', 'input')}, True)


def warned(text, **changes):
    """'[section] key: text' for each thing that cannot work."""
    facts = FACTS._replace(**changes)
    return [knockd.complaint_line(PATH, one)[len(PATH) + 2:]
            for one in knockd.warnings(parse(text), facts)]


def test_a_config_that_works_is_warned_of_nothing():
    assert warned(SERVER + CLIENT) == []
    assert warned(SERVER + '''carriers = udp, icmp, syn, ports, code
port = 62201
trust = lan0, wg+
accept_in = auto, inet filter input
on_open = /bin/echo
[client anna]
secret = %s
code = yes
paper = 7:10
expires = 2027-01-16
may_run = say
[client bert]
secret = %s
require_source = yes
allow =
may_run = say
[action say]
run = /bin/echo hello
''' % (SECRET, OTHER)) == []


@pytest.mark.parametrize('server,client,expected', [
    ('', 'code = yes', '[client anna] carriers: carrier code is off; type: '
     'knockd.py set server carriers=udp,icmp,ports,code'),
    ('carriers = udp, code', '',
     '[server] carriers: no client has a code; write code = yes in its section'),
    ('', 'allow =', '[client anna] allow: empty, so it may open nothing; write for example: '
     'allow = tcp/22'),
    ('', 'expires = 2027-01-14', '[client anna] expires: over since 2027-01-15 00:00 UTC; write a '
     'later date or remove it'),
    ('', 'expires = 2027-01-15 08:00', '[client anna] expires: over since 2027-01-15 08:00 UTC; '
     'write a later date or remove it'),
    ('on_open = /no/such "a b"', '',
     '[server] on_open: /no/such cannot be run; install it or name another'),
    ('on_close = /no/such', '',
     '[server] on_close: /no/such cannot be run; install it or name another'),
    ('trust = eth77', '', '[server] trust: there is no interface eth77 now; see: ip link'),
    ('trust = eth+, lan0', '', '[server] trust: there is no interface eth+ now; see: ip link'),
    ('accept_in = ip filter INPUT, auto', '',
     '[server] accept_in: there is no chain ip filter INPUT; see: nft list ruleset'),
    ('port = 62201\ncarriers = icmp', '',
     '[server] port: only carrier udp has a port; add udp to carriers'),
    ('carriers = code, udp', 'code = yes\nrequire_source = yes',
     '[client anna] code: has no room for what require_source asks for; take one out'),
    ('', 'paper = 1:9\nrequire_source = yes',
     '[client anna] paper: has no room for what require_source asks for; take one out'),
    ('', 'paper = 1:9\n' + SSH_KEY,
     '[client anna] paper: has no room for what ssh_key asks for; take one out'),
    ('', 'paper = 1:9\ndefault =', '[client anna] paper: opens the default, which is empty; '
     'write for example: default = tcp/22'),
    ('carriers = ports', 'require_source = yes',
     '[client anna]: no carrier is left to it; add udp to carriers in [server]'),
    ('carriers = syn', SSH_KEY,
     '[client anna]: no carrier is left to it; add udp to carriers in [server]'),
    ('', 'once = yes\nopen_for = 8d',
     '[client anna] once: ends an opening after 7d, whatever open_for says'),
    ('carriers =', '', '[client anna]: no carrier is left to it; add udp to carriers in [server]'),
    ('', 'may_run = b\n[action b]\nrun = /no/such',
     '[action b] run: /no/such cannot be run; install it or name another'),
    ('', '[action b]\nrun = /bin/echo',
     '[action b]: no client may run it; write may_run = b in its section'),
])
def test_what_cannot_work_is_one_warning_with_its_cure(server, client, expected):
    assert warned(SERVER + server + '\n' + CLIENT + client + '\n') == [expected]


@pytest.mark.parametrize('hide,carriers,told', [
    ('tcp/22, tcp/60000-65535, udp/1-65535', 'ports', None),
    ('tcp/22, tcp/59000-65535', 'ports', 'ports cannot knock at a hidden port, and hide has 6536 '
     'of its 64512; take it out, or hide fewer'),
    ('tcp/1-65535', 'ports, udp', 'ports cannot knock at a hidden port, and hide has 64512 of its '
     '64512; take it out, or hide fewer'),
    ('tcp/20000-30000', 'code', 'code cannot knock at a hidden port, and hide has 10000 of its '
     '20000; take it out, or hide fewer')])
def test_a_carrier_that_knocks_at_what_is_hidden_is_warned_of(hide, carriers, told):
    text = '[server]\nid = home\nanswer = drop\nhide = %s\ncarriers = %s\n' % (hide, carriers)
    expected = ['[server] carriers: ' + told] if told else []
    code = 'yes' if carriers == 'code' else 'no'
    assert warned(text + CLIENT + 'code = %s\n' % code) == expected


def test_a_ledger_never_takes_the_place_of_its_config():
    with pytest.raises(knockd.KnockError, match='ledger: is the config itself'):
        parse(SERVER + 'ledger = %s\n' % PATH)


def test_a_box_without_clients_or_without_anything_hidden_is_warned():
    assert warned(SERVER) == [
        '[server]: no client, so nobody can knock; make one with: knockd.py add NAME']
    assert warned('[server]\nid = home\nhide =\n' + CLIENT) == [
        '[server] hide: nothing is hidden; write for example: hide = tcp/22']


def test_a_ledger_without_its_folder_is_warned():
    line, = warned(SERVER + CLIENT, ledger_folder=False)
    assert line == '[server] ledger: there is no folder /etc/knockd; type: mkdir -m 700 /etc/knockd'


def test_where_no_tool_lists_chains_none_is_missed():
    assert warned(SERVER + 'accept_in = ip filter INPUT\n' + CLIENT, chains=None) == []


def test_the_programs_to_look_for_are_named_once_each():
    config = parse(SERVER + 'on_open = /a/b c\non_close = /a/b\n' + CLIENT
                   + 'may_run = d\n[action d]\nrun = /e\\ f g\n')
    assert knockd.named_programs(config) == {'/a/b', '/e f'}


# --- edits of odd texts ---------------------------------------------------------------------------
ODD = [
    # text, section, entries, what it is afterwards
    ('[client a]\nk = 1\n[client ab]\nk = 2\n', 'client a', [], '[client ab]\nk = 2\n'),
    ('[client ab]\nk = 2\n[client a]\nk = 1', 'client a', [], '[client ab]\nk = 2\n'),
    ('# one\n[a]\nk = 1\n# two\n\n# three\n[b]\n', 'a', [], '# three\n[b]\n'),
    ('# one\n\n[a]\nk = 1\n', 'a', [], '# one\n'),
    ('[a]\nk = 1,\n  2\n\n  3\nl = 4\n[b]\n', 'a', [('k', '9')], '[a]\nk = 9\n\nl = 4\n[b]\n'),
    ('[a]\nk = 1,\n# why\n  2\nl = 4\n', 'a', [('k', '9')], '[a]\nk = 9\n# why\nl = 4\n'),
    ('[a]\n# before\nk = 1\n# after\n\n# of b\n[b]\n', 'a', [('l', '2')],
     '[a]\n# before\nk = 1\nl = 2\n# after\n\n# of b\n[b]\n'),
    ('[a]\nk = 1\n\n\n[b]\n', 'a', [('l', '2')], '[a]\nk = 1\nl = 2\n\n\n[b]\n'),
    ('[a]\r\nk = 1\r\n\r\n[b]\r\n', 'a', [('k', '2'), ('l', '3')],
     '[a]\r\nk = 2\r\nl = 3\r\n\r\n[b]\r\n'),
    ('[a]\r\nk = 1\r\n', 'b', [('l', '3')], '[a]\r\nk = 1\r\n\r\n[b]\r\nl = 3\r\n'),
    ('[a]\nK = 1\nkk = 2\n', 'a', [('k', '3')], '[a]\nk = 3\nkk = 2\n'),
    ('[a]\n  k = 1\n  l = 2\n', 'a', [('k', '3'), ('m', '4')],
     '[a]\n  k = 3\n  l = 2\nm = 4\n'),
    ('  [a]\n  k = 1\n[b]\n', 'a', [], '[b]\n'),
    ('[b]\nk = 1\n  [a]\n', 'a', [], '[b]\nk = 1\n  [a]\n'),        # a value that goes on
    ('[b]\nk = 1\n  [a]\n', 'a', [('l', '2')], '[b]\nk = 1\n  [a]\n\n[a]\nl = 2\n'),
    ('[b]\n# [a]\nk = [a]\n', 'a', [], '[b]\n# [a]\nk = [a]\n'),
    ('[a]', 'a', [('k', '1')], '[a]\nk = 1\n'),
    ('[a] ; x\nk = 1\n', 'a', [('k', '2')], '[a] ; x\nk = 2\n'),
]


@pytest.mark.parametrize('text,section,entries,after', ODD, ids=range(len(ODD)))
def test_an_odd_text_is_edited_as_by_hand(text, section, entries, after):
    assert knockd.edited(text, section, entries) == after
    read_again = knockd.ini_sections(after, PATH)
    known = knockd.ini_sections(text, PATH)
    if entries:
        known.setdefault(section, {}).update(entries)
    else:
        known.pop(section, None)
    assert read_again == known


def test_a_section_that_is_there_twice_is_not_edited():
    with pytest.raises(knockd.KnockError, match='two sections'):
        knockd.edited('[a]\nk = 1\n[b]\n[a]\nk = 2\n', 'a', [('k', '3')])


def test_entries_change_what_they_say_and_nothing_else():
    """Random files again: a key of a section, old or new."""
    chance, compared = random.Random(8), 0
    lines = ['[server]', '[client a]', '[client ab]', 'id = 1', 'hide = tcp/22,', '  tcp/23',
             '# [client a]', '; x', '', ' # y', ' k = [client a]', '\tl = 1', 'K = 2', '\r',
             'm = 1\r', '[client a]\r']
    for _ in range(4000):
        chosen = [chance.choice(lines) for _ in range(chance.randrange(2, 12))]
        text = '\n'.join(chosen) + chance.choice(('\n', ''))
        section = chance.choice(('client a', 'client ab', 'server', 'client z'))
        entries = [(chance.choice(('id', 'hide', 'k', 'l', 'new')), '7')]
        try:
            known = knockd.ini_sections(text, PATH)
        except knockd.KnockError:
            continue
        compared += 1
        known.setdefault(section, {}).update(entries)
        assert knockd.ini_sections(knockd.edited(text, section, entries), PATH) == known, text
    assert compared > 500


# --- the commands that edit ---------------------------------------------------------------------
@pytest.fixture
def path(tmp_path):
    made = str(tmp_path / 'knockd.ini')
    with open(made, 'w') as file:
        file.write(COMMENTED.replace('[server]\n', '[server]\nledger = %s/ledger.json\n'
                                     'host = gate\n' % tmp_path))
    os.chmod(made, 0o600)
    return made


def read(path):
    with open(path) as file:
        return file.read()


def test_add_appends_and_remove_takes_out(path, capsys):
    before = read(path)
    assert knockd.main(['--config', path, 'add', 'bert', '--allow', 'tcp/22', '--for', '5m',
                        '--expires', '2027-01-31']) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith('knock://bert:') and '@gate?id=home&open=tcp/22' in line
    bert = knockd.read_config(path).clients['bert']
    assert (bert.open_for, ports(bert.allow), bert.expires) == (300000, ['tcp/22'], 1801440000000)
    assert knock.parse_uri(line).secret == bert.secret
    assert read(path).startswith(before) and os.stat(path).st_mode & 0o777 == 0o600
    assert knockd.main(['--config', path, 'remove', 'bert']) == 0
    assert read(path) == before


def test_remove_never_says_it_did_what_it_did_not(path, capsys):
    """configparser takes an indented header for one where no key came before it."""
    with open(path, 'w') as file:
        file.write('# all\n  [client anna]\n  secret = %s\n%s' % (SECRET, SERVER))
    status = knockd.main(['--config', path, 'remove', 'anna'])
    gone = 'anna' not in knockd.read_config(path).clients
    assert (status == 0) == gone == ('removed' in capsys.readouterr().out)


@pytest.mark.parametrize('arguments,status', [
    (['add', 'anna'], 1), (['add', 'bert', '--allow', 'tcp/23'], 2), (['add', 'b b'], 2),
    (['paper', 'anna', '-n', '0'], 2), (['paper', 'anna', '-n', '1000'], 2),
    (['add', 'bert', '--expires', 'soon'], 2), (['add', 'bert', '--for', '9'], 0),
    (['remove', 'bert'], 1), (['show', 'bert'], 1),
    (['add', 'bert', '--allow', 'tcp/22\n[client carl]\nallow = tcp/22'], 2)])
def test_an_edit_that_would_break_the_config_changes_nothing(path, capsys, arguments, status):
    before = read(path)
    assert knockd.main(['--config', path] + arguments) == status
    said = capsys.readouterr()
    assert (read(path) != before) == (status == 0)
    if status:
        assert said.out == '' and all(line.startswith('knockd: ')
                                      for line in said.err.splitlines())


def add_at_a_terminal(path, answer, *arguments):
    """(exit code, the line on standard output, what the terminal showed) of knockd.py add."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        started(knockd.__file__) + ['--config', path, 'add', 'bert'] + list(arguments),
        stdin=slave, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    os.write(master, answer)
    out = process.communicate()[0].decode()
    shown = b''
    with contextlib.suppress(OSError):      # EIO: all is read, and nobody has the other end
        while True:
            shown += os.read(master, 4096)
    os.close(master)
    return process.returncode, out, shown.decode('utf-8', 'replace')


def test_add_at_a_terminal_asks_whether_to_hide_what_is_not_hidden(path):
    before = knockd.read_config(path)
    code, out, shown = add_at_a_terminal(path, b'y\n', '--allow', 'tcp/22,tcp/8080,udp/53')
    assert code == 0 and shown.count('tcp/8080,udp/53: not hidden. Hide it too?') == 1
    assert out.startswith('knock://bert:') and out.count('\n') == 1
    config = knockd.read_config(path)
    assert ports(config.hide) == ports(before.hide) + ['tcp/8080', 'udp/53']
    assert ports(config.clients['bert'].allow) == ['tcp/22', 'tcp/8080', 'udp/53']
    for kept in ('# The gate of the house.', '; hide more one day', "# Anna's old phone"):
        assert kept in read(path)


@pytest.mark.parametrize('answer', [b'\n', b'n\n', b'\xff\n', b'\x04'],
                         ids=['enter', 'no', 'junk', 'end'])
def test_without_a_yes_nothing_is_added_and_the_line_says_what_to_do(answer, path):
    before = read(path)
    code, out, shown = add_at_a_terminal(path, answer, '--allow', 'tcp/8080')
    assert (code, out, read(path)) == (2, '', before)
    assert '[client bert] allow: tcp/8080 is not in hide; add it there' in shown


def test_ctrl_c_at_the_question_is_no_traceback(path):
    before = read(path)
    master, slave = os.openpty()
    process = subprocess.Popen(
        started(knockd.__file__) + ['--config', path, 'add', 'bert', '--allow', 'tcp/8080'],
        stdin=slave, stderr=subprocess.PIPE)
    while process.stderr.read(1) != b'?':
        pass
    process.send_signal(2)
    assert process.communicate()[1].strip() == b'[y/N]' and process.returncode == -2
    assert read(path) == before
    os.close(master)
    os.close(slave)


def test_add_asks_nothing_where_all_is_hidden(path):
    code, out, shown = add_at_a_terminal(path, b'y\n', '--allow', 'tcp/22,tcp/8001')
    assert code == 0 and out.startswith('knock://bert:') and 'hidden' not in shown


def test_an_edit_of_two_sections_is_one_write(path, monkeypatch):
    """The client and what he may open: never one without the other, whenever the power fails."""
    written = []
    monkeypatch.setattr(knockd, 'replace_file', lambda to, data: written.append((to, data)))
    changes = {'server': [('hide', 'tcp/22,tcp/8080,udp/51820')],
               'client bert': [('secret', knockd.encode_secret(bytes(range(2, 34)))),
                               ('allow', 'tcp/8080')]}
    knockd.edit_config(path, lambda config: changes)
    (_, data), = written
    assert b'hide = tcp/22,tcp/8080' in data and b'[client bert]' in data


@pytest.mark.parametrize('key', ['ledger', 'on_open'])
def test_no_path_holds_a_zero_byte(key):
    """The kernel knows none, and Python would end in a traceback."""
    assert places(SERVER + '%s = /var/a\0b\n' % key + CLIENT) == ['[server] ' + key]
