"""Administration: edits of the config, and what list and status print. No kernel is needed."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

import knockd
from answered import answered, answered_by_a_process

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECRETS = [knockd.encode_secret(bytes(range(first, first + 32))) for first in range(1, 9)]
TEXT = '''# The gate of the house.
[server]
id = gate
hide = tcp/22, tcp/443
host = gate.example

# Anna's laptop
[client anna]
secret = %s
allow = tcp/22

[client bert]
secret = %s
''' % (SECRETS[0], SECRETS[1])


@pytest.fixture
def path(tmp_path):
    made = tmp_path / 'knockd.ini'
    made.write_text(TEXT)
    made.chmod(0o600)
    return str(made)


def read(path):
    with open(path) as file:
        return file.read()


def command(path, *arguments, **options):
    """(exit code, standard output, standard error)"""
    return answered(knockd, '--config', path, *arguments, **options)


def must(path, *arguments, **options):
    """What it said, if it did what it was told."""
    code, out, err = command(path, *arguments, **options)
    assert code == 0, out + err
    return out


# --- edits --------------------------------------------------------------------------------------
def test_of_twenty_edits_at_once_each_that_says_it_is_done_is_in_the_file(path):
    for number in range(5):
        must(path, 'add', 'old%d' % number)
    edits = [('add', 'new%d' % number) for number in range(10)]
    edits += [('remove', 'old%d' % number) for number in range(5)]
    edits += [('set', 'anna', 'open_for=%ds' % number) for number in range(20, 23)]
    edits += [('hide', 'udp/%d' % number) for number in (51820, 51821)]
    codes = {}

    def edit(arguments):
        codes[arguments] = answered_by_a_process(knockd, '--config', path, *arguments)[0]
    threads = [threading.Thread(target=edit, args=(each,)) for each in edits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [arguments for arguments in edits if codes[arguments] == 0]
    config = knockd.read_config(path)
    for arguments in done:
        if arguments[0] == 'add':
            assert arguments[1] in config.clients
        elif arguments[0] == 'remove':
            assert arguments[1] not in config.clients
        elif arguments[0] == 'hide':
            assert knockd.parse_service(arguments[1]) in config.hide
    assert config.clients['anna'].open_for in (20000, 21000, 22000)
    assert len(done) == 20, 'nobody waits too long for the lock'
    assert os.listdir(os.path.dirname(path)) == ['knockd.ini'], 'and nothing is left behind'


def test_set_changes_one_key_and_an_empty_value_takes_it_out(path):
    must(path, 'set', 'anna', 'open_for=5m', 'once=yes')
    assert read(path) == TEXT.replace(
        'allow = tcp/22\n\n', 'allow = tcp/22\nopen_for = 5m\nonce = yes\n\n')
    must(path, 'set', 'anna', 'open_for=', 'once=')
    assert read(path) == TEXT
    must(path, 'set', 'server', 'port=40000')
    assert knockd.read_config(path).port == 40000


@pytest.mark.parametrize('arguments,status,words', [
    (('set', 'anna', 'once'), 2, 'is not KEY=VALUE'),
    (('set', 'anna', 'secret=' + SECRETS[3]), 2, 'knockd.py rekey'),
    (('set', 'anna', 'colour=red'), 2, 'unknown key'),
    (('set', 'nobody', 'once=yes'), 1, "no client 'nobody'; there are: anna, bert"),
    (('rename', 'anna', 'bert'), 1, 'there is a client bert already'),
    (('rename', 'anna', 'a b'), 2, 'no name'),
    (('rekey', 'nobody'), 1, 'there are: anna, bert'),
    (('unhide', 'tcp/80'), 1, 'tcp/80 is not one of hide'),
    (('hide', 'tcp/ssh'), 2, "'tcp/ssh' is not a service"),
    (('add', 'carl', '--secret', SECRETS[3]), 2, 'standard input'),
    (('run', '--trust', 'lan'), 2, '--trust has no effect'),
    (('add', 'carl', '--host', 'b.example'), 2, '--host has no effect'),
    (('show', 'anna', '--via', 'code'), 2, 'anna cannot knock by code, but by: udp, icmp, ports'),
    (('show', 'anna', '--via', 'paper'), 2, 'anna cannot knock by paper, but by: udp'),
    (('status', '--json', '--metrics'), 2, '--json goes without --metrics'),
    (('run', '--host', 'b.example'), 2, '--host has no effect'),
    (('nonsense',), 2, 'invalid choice'), ((), 2, 'required'), (('add',), 2, 'NAME')])
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(path, arguments, status, words):
    code, out, err = command(path, *arguments)
    assert (code, out, read(path)) == (status, '', TEXT)
    assert words in err and err.startswith('knockd: ') and err.count('\n') == 1
    assert 'Traceback' not in err and SECRETS[3] not in err


@pytest.mark.parametrize('arguments', [
    ('add', 'carl', '--allow', ''), ('add', 'carl', '--expires='), ('add', ''), ('hide', ''),
    ('add', 'carl', '--ssh-key', '/dev/null'), ('run', '--hide', 'tcp/22', '--client', ''),
    ('--config', '', 'list')])
def test_an_empty_text_is_not_taken_for_none(path, arguments):
    """As of a variable of the shell that is not set."""
    code, out, err = command(path, *arguments)
    assert (code, out, read(path)) == (2, '', TEXT)
    assert err.endswith(' is empty; give a value, or leave it out\n') and err.count('\n') == 1


def test_rename_keeps_key_place_and_comments(path):
    must(path, 'rename', 'anna', 'annika')
    assert read(path) == TEXT.replace('[client anna]', '[client annika]')


def test_rekey_makes_a_new_secret_and_keeps_the_old_one_for_a_week(path):
    must(path, 'set', 'anna', 'paper=1:9')
    before = knockd.read_config(path).clients['anna']
    line = must(path, 'rekey', 'anna').splitlines()[0]
    client = knockd.read_config(path).clients['anna']
    assert client.fingerprint != before.fingerprint and client.paper is None
    assert knockd.encode_secret(client.secret) in line
    assert (client.old.fingerprint, client.old.secret) == (before.fingerprint, before.secret)
    week = time.time() * 1000 + 7 * 86400000
    assert abs(client.old.expires - week) < 120000 and client.expires == knockd.NEVER
    assert must(path, 'rekey', 'anna').splitlines()[0] != line


def test_rekey_typed_twice_leaves_the_secret_that_the_client_has(path):
    """Nobody has the first new line: what works must stay. What was used is the old one."""
    first = knockd.read_config(path).clients['anna']
    must(path, 'rekey', 'anna')
    second = knockd.read_config(path).clients['anna']
    must(path, 'rekey', 'anna')
    third = knockd.read_config(path).clients['anna']
    assert third.old.secret == first.secret and third.secret != second.secret
    config = knockd.read_config(path)
    ledger = knockd.Ledger(config.id)
    ledger.record(third.fingerprint, 'ab' * 16, int(time.time() * 1000), config.window)
    with open(config.ledger, 'w', opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(ledger.state_line())
    must(path, 'rekey', 'anna')
    assert knockd.read_config(path).clients['anna'].old.secret == third.secret


def test_a_new_secret_by_standard_input_is_taken_once(path):
    """As `derive` of a fleet's new master gives it; said again, the old one keeps its week."""
    before = knockd.read_config(path).clients['anna']
    line = must(path, 'rekey', 'anna', '--secret', '-', stdin=SECRETS[2].lower() + '\n')
    assert SECRETS[2] in line.splitlines()[0]
    assert knockd.read_config(path).clients['anna'].old.secret == before.secret
    day = time.strftime('%Y-%m-%d', time.gmtime(time.time() + 2 * 86400))
    text = re.sub('old_until = .*', 'old_until = ' + day, read(path))
    with open(path, 'w') as file:           # five days later
        file.write(text)
    again = command(path, 'rekey', 'anna', '--secret', '-', stdin=SECRETS[2])
    assert again == (0, 'unchanged\n', '') and read(path) == text


@pytest.mark.parametrize('source, secret, words', (
    ('-', 'A' * 51, 'secret'), ('-', SECRETS[1], 'the same as that of'), ('-', '', 'secret'),
    (SECRETS[2], '', 'standard input')))
def test_a_new_secret_that_cannot_be_is_refused(path, source, secret, words):
    code, out, err = command(path, 'rekey', 'anna', '--secret', source, stdin=secret)
    assert code and out == '' and read(path) == TEXT and words in err
    assert SECRETS[2] not in err


def test_an_old_secret_that_somebody_has_is_refused(path):
    with open(path, 'a') as file:
        file.write('old_secret = %s\nold_until = 2030-01-01\n' % SECRETS[0])
    code, _, err = command(path, 'list')
    assert code == 2 and '[client bert] old_secret: the same as that of anna' in err


def test_hide_says_whom_it_is_open_to(path):
    said = must(path, 'hide', 'udp/51820,tcp/22')
    assert said.splitlines() == ['hidden: tcp/22,tcp/443,udp/51820',
                                 'clients without a list of their own may open all of it: bert']
    assert knockd.format_services(knockd.read_config(path).clients['anna'].allow) == 'tcp/22'


def test_unhide_takes_it_out_of_the_clients_lists_too(path):
    assert must(path, 'unhide', 'tcp/22') == 'hidden: tcp/443\n'
    config = knockd.read_config(path)
    assert config.clients['anna'].allow == () and config.clients['bert'].allow == config.hide


def test_without_a_daemon_an_edit_says_that_what_is_hidden_stays_so(path):
    """Whoever is locked out would take `hidden: nothing` for done."""
    assert 'no daemon' not in command(path, 'unhide', 'tcp/443')[2], 'none has run so far'
    knockd.ConfigFile(path).keep(knockd.read_config(path))
    code, out, err = command(path, 'unhide', 'tcp/22')
    assert (code, out) == (0, 'hidden: nothing\n')
    assert 'no daemon answers' in err and 'knockd.py uninstall' in err


def test_a_secret_by_standard_input_is_added_once(path):
    line = must(path, 'add', 'carl', '--allow', 'tcp/443', '--secret', '-',
                stdin=SECRETS[2].lower() + '\n')
    assert SECRETS[2] in line
    before = read(path)
    again = command(path, 'add', 'carl', '--allow', 'tcp/443', '--secret', '-', stdin=SECRETS[2])
    assert again == (0, 'unchanged\n', '') and read(path) == before
    for name, allow, secret in (('carl', 'tcp/443', SECRETS[3]), ('carl', 'tcp/22', SECRETS[2]),
                                ('dora', 'tcp/443', SECRETS[2])):
        code, out, _ = command(path, 'add', name, '--allow', allow, '--secret', '-', stdin=secret)
        assert code and out == '' and read(path) == before
    assert command(path, 'add', 'dora', '--secret', '-', stdin='A' * 52)[0] == 2


def test_a_client_for_a_page_knocks_by_ports_alone(path):
    line = must(path, 'add', 'phone', '--page')
    client = knockd.read_config(path).clients['phone']
    assert client.carriers == ('ports',) and client.open_for == 30000
    must(path, 'add', 'pad', '--page', '--for', '5m')
    assert knockd.read_config(path).clients['pad'].open_for == 300000, 'what is told counts'
    assert '&via=ports&' in line


def test_a_page_is_too_large_for_a_picture_and_says_so_and_a_line_is_not(path):
    before = read(path)
    code, out, err = command(path, 'add', 'phone', '--page', '--qr')
    assert (code, out) == (2, '') and err.count('\n') == 1 and read(path) == before
    assert 'no page fits into a QR code' in err and 'knockd.py show phone --qr' in err
    if shutil.which('qrencode') is None:
        pytest.skip('qrencode is not installed')
    said = must(path, 'add', 'pocket', '--qr')
    assert said.startswith('knock://pocket:') and said.count('\u2588') > 100
    assert must(path, 'show', 'pocket', '--qr') == said


def test_where_no_picture_can_be_made_all_else_is_told(path, monkeypatch, capsys):
    def absent(*_, **__):
        raise knockd.KnockError('qrencode is not installed')
    monkeypatch.setattr(knockd, 'run', absent)
    assert knockd.main(['--config', path, 'add', 'pocket', '--code', '--qr']) == 1
    said = capsys.readouterr()
    assert 'knock://pocket:' in said.out and 'otpauth://' in said.out
    assert said.err.endswith('knockd: qrencode is not installed\n') and 'is off' in said.err


@pytest.mark.parametrize('option,carrier', [('--code', 'code'), ('--page', 'ports')])
def test_a_carrier_that_is_off_is_told_with_how_to_turn_it_on(path, option, carrier):
    must(path, 'set', 'server', 'carriers=udp')
    code, out, err = command(path, 'add', 'phone', option)
    assert code == 0 and out.startswith('knock://phone:')
    assert '[client phone] carriers: carrier %s is off' % carrier in err
    advice = re.search(r'type: knockd.py (set server carriers=udp,%s)\n' % carrier, err).group(1)
    must(path, *advice.split())
    assert 'is off' not in command(path, 'show', 'phone')[2]


@pytest.mark.parametrize('words', [
    ('add', 'carl', '--expires', '2020-01-31'), ('set', 'anna', 'expires=2020-01-31')])
def test_a_client_that_cannot_get_in_is_told_at_once(path, words):
    code, _, err = command(path, *words)
    assert code == 0 and 'expires: over since 2020-02-01 00:00 UTC; write a later date' in err


def test_a_file_that_is_no_public_key_is_refused_and_none_of_it_comes_into_the_config(path):
    before = read(path)
    code, out, err = command(path, 'add', 'carl', '--ssh-key', '/etc/passwd')
    assert (code, out) == (2, '') and read(path) == before
    assert re.match(r"knockd: --ssh-key: 'root:\S+'\.\.\. has \d+ lines; one is wanted\n$", err)


@pytest.mark.parametrize('words, told', [
    (('paper', 'anna', '-n', '0'), "'0' is not a number from 1 to 999"),
    (('paper', 'anna', '-n', '1000'), "'1000' is not a number from 1 to 999"),
    (('set', 'anna', 'open_for'), "'open_for' is not KEY=VALUE, as open_for=5m"),
    (('set', 'anna', '=5m'), "'=5m' is not KEY=VALUE, as open_for=5m"),
    (('paper', 'anna', '-n', 'x'), "'x' is not a number from 1 to 999"),
    (('set', 'anna', 'secret=x'), 'a new secret is made by: knockd.py rekey NAME')])
def test_what_was_typed_wrong_is_told_with_what_is_right(path, words, told):
    assert command(path, *words) == (2, '', 'knockd: %s\n' % told)


@pytest.mark.parametrize('words', [
    ('check',), ('rules',), ('list',), ('show', 'anna'), ('set', 'server', 'host=x'),
    ('remove', 'anna'), ('hide', 'tcp/22'), ('add', 'anna'), ('paper', 'anna'), ('rekey', 'anna'),
    ('run', '--hide', 'tcp/22')], ids=' '.join)
def test_without_a_config_each_command_says_how_to_make_one(tmp_path, words):
    config = str(tmp_path / 'none' / 'knockd.ini')
    assert command(config, *words) == (
        2, '', 'knockd: %s is not there; to make one: knockd.py run (or install) --hide tcp/22 '
        '--client NAME\n' % config)


def test_who_may_not_read_the_config_is_told_to_be_root(path, monkeypatch, capsys):
    def forbidden(path):
        raise PermissionError(13, 'Permission denied', path)
    monkeypatch.setattr(knockd, 'read_file', forbidden)
    monkeypatch.setattr(knockd.os, 'geteuid', lambda: 1000)
    for words in (('list',), ('show', 'anna'), ('set', 'anna', 'open_for=5m')):
        assert knockd.main(['--config', path] + list(words)) == 2
        assert capsys.readouterr().err == (
            'knockd: %s: Permission denied\nnote: try it as root, with sudo\n' % path)


def test_a_root_that_is_not_there_is_not_taken_for_an_empty_one(path, tmp_path):
    code, out, err = command(path, 'uninstall', '--yes', '--root', str(tmp_path / 'mnt'))
    assert (code, out) == (1, '')
    assert err == 'knockd: %s: No such file or directory\n' % (tmp_path / 'mnt')


@pytest.mark.parametrize('words', [('uninstall', '--yes'), ('install',)])
def test_who_is_not_root_is_told_before_anything_is_begun(path, words, capsys, monkeypatch):
    monkeypatch.setattr(knockd.os, 'geteuid', lambda: 1000)
    monkeypatch.setattr(knockd, 'init_system', lambda root: pytest.fail('it begins'))
    assert knockd.main(['--config', path] + list(words)) == 1
    assert capsys.readouterr().err == (
        'knockd: only root can %s; type: sudo python3 knockd.py %s\n' % (words[0], words[0]))


@pytest.mark.parametrize('host,doubt', [
    ('gate.example', None), ('1.1.1.1', None), ('2606:4700::1111', None),
    ('10.0.0.5', 'not known outside'), ('fd00::1', 'not known outside'),
    ('100.64.0.1', 'not known outside'), ('169.254.1.1', 'not known outside'),
    ('localhost', 'not known outside'), ('box', 'not known outside'),
    ('nas.local', 'not known outside'), ('local.example', None)])
def test_a_host_that_the_world_cannot_reach_is_told(path, host, doubt):
    must(path, 'set', 'server', 'host=' + host)
    _, out, err = command(path, 'show', 'anna')
    assert host in out
    assert (doubt is None and err == '') or (doubt in err and 'set server host=HOST' in err)


def test_the_first_client_of_a_config_written_by_hand_gets_an_empty_ledger(tmp_path):
    path = tmp_path / 'k.ini'
    path.write_text('[server]\nid = x\nhide = tcp/22\nhost = gate.example\n')
    path.chmod(0o600)
    assert must(str(path), 'add', 'anna').startswith('knock://anna:')
    with open(str(tmp_path / 'ledger.json')) as file:
        assert json.loads(file.readline()) == {'knockd': 2, 'id': 'x', 'floor': 0, 'keys': {}}
    os.unlink(str(tmp_path / 'ledger.json'))
    must(str(path), 'add', 'bert')
    assert not os.path.exists(str(tmp_path / 'ledger.json')), 'lost is not new'


# --- check --------------------------------------------------------------------------------------
def test_check_ends_with_0_and_warnings_and_strict_makes_them_errors(path):
    must(path, 'set', 'anna', 'expires=2020-01-01')
    code, out, err = command(path, 'check')
    assert code == 0, err
    assert re.search(r'warning: .*\[client anna\] expires: over since .*\n', out)
    assert out.endswith('configuration OK\n')
    code, out, err = command(path, 'check', '--strict')
    assert code == 2 and 'configuration OK' not in out and 'warnings' in err
    must(path, 'set', 'anna', 'expires=')


# --- list and status ----------------------------------------------------------------------------
def test_a_date_behind_2038_is_no_traceback(path):
    must(path, 'set', 'anna', 'expires=2039-02-01')
    assert '2039-02-02 00:00' in must(path, 'list')
    assert json.loads(must(path, 'list', '--json'))['anna']['expires'] == 2180217600000


def test_list_says_what_each_may_and_what_is_left(path):
    must(path, 'set', 'anna', 'paper=1700000000:9', 'code=yes')
    fingerprint = knockd.read_config(path).clients['anna'].fingerprint
    ledger = knockd.Ledger('gate')
    ledger.record(fingerprint, '', 0, 60000, (1700000000, 3))
    ledger.record(fingerprint, '00' * 16, 1700000000000, 60000)
    with open(os.path.join(os.path.dirname(path), 'ledger.json'), 'w') as file:
        file.write(ledger.state_line())
    os.chmod(file.name, 0o600)
    told = json.loads(must(path, 'list', '--json'))
    assert list(told) == ['anna', 'bert']
    assert told['anna'] == {
        'allow': 'tcp/22', 'default': 'tcp/22', 'only': [], 'code': True, 'paper_left': 6,
        'key': fingerprint, 'expires': None, 'last': 1700000000000, 'source': None,
        'old_key_until': None}
    head, anna, bert = must(path, 'list').splitlines()
    assert head.split() == ['CLIENT', 'ALLOW', 'CODE', 'PAPER', 'KEY', 'EXPIRES', 'LAST', 'KNOCK']
    assert re.match(r'anna +tcp/22 +yes +6 +%s +never +\d+ d ago$' % fingerprint, anna)
    assert re.match(r'bert +tcp/22,tcp/443 +no +0 +\w{16} +never +never$', bert)


REPORT = {
    'version': '0.2.0', 'since': 1700000000000, 'hidden': ['tcp/22', 'tcp/443'], 'behind': [],
    'problem': None,
    'quarantine_until': None, 'probation_left': None, 'clock': None,
    'config': {'path': '', 'problem': None, 'last_good': False},
    'clients': {'anna': {'last': 1700000001000, 'source': '203.0.113.5'}},
    'openings': [{'client': 'anna', 'source': '203.0.113.5/32', 'services': ['tcp/22'],
                  'only': [], 'seconds_left': 17}],
    'refusals': [{'client': 'bert', 'source': '203.0.113.9', 'reason': 'not allowed "tcp/25"',
                  'count': 3, 'last': 1700000002000}],
    'counts': {'junk': 5, 'open': 1}, 'mended': 2}


@pytest.fixture
def answering(path, tmp_path, monkeypatch):
    """A function that puts a daemon's report where status asks for it."""
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(tmp_path))
    monkeypatch.setattr(knockd, 'preflight', lambda config: [])
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(str(tmp_path / 'gate.sock'))

        def answer(**changes):
            report = dict(REPORT, **changes)
            report['config'] = dict(report['config'], path=path)

            def serve():
                _, asker = sock.recvfrom(16)
                sock.sendto(json.dumps(report).encode('ascii'), asker)
            threading.Thread(target=serve, daemon=True).start()
        yield answer


def status(path, capsys, *options):
    code = knockd.main(['--config', path, 'status'] + list(options))
    return code, capsys.readouterr().out


def test_the_first_line_of_status_says_that_all_is_hidden_by_whom_and_since_when(
        path, capsys, answering):
    answering()
    code, out = status(path, capsys)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == 'hidden: tcp/22, tcp/443; knockd 0.2.0, since 2023-11-14 22:13 UTC'
    assert re.search(r'(?m)^anna .* d ago from 203\.0\.113\.5$', out)
    assert re.search(r'(?m)^anna +203\.0\.113\.5 +tcp/22 +17 s$', out)
    assert re.search(r'(?m)^bert +203\.0\.113\.9 +3 +\d+ d ago +not allowed "tcp/25"$', out)
    assert lines[-1] == 'counted: 5 junk, 1 open'


@pytest.mark.parametrize('changes,line', [
    ({'problem': 'the probation lapsed'}, 'NOT HIDDEN: the probation lapsed'),
    ({'problem': 'nft: \x1b[31m'}, 'NOT HIDDEN: nft: ?[31m')])
def test_status_ends_with_1_if_what_should_be_hidden_is_not(
        path, capsys, answering, changes, line):
    answering(**changes)
    code, out = status(path, capsys)
    assert code == 1 and out.splitlines()[0] == line


@pytest.mark.parametrize('changes,words', [
    ({'quarantine_until': 4102444800000}, 'quarantine: the ledger was lost; .* 2100-01-01 00:00'),
    ({'probation_left': 240}, 'probation: 4 min left for a first knock from outside'),
    ({'clock': 'is before'}, 'clock: is before'),
    ({'config': {'problem': 'x', 'last_good': True}}, 'config: the last good one is in force')])
def test_status_says_what_keeps_knocks_from_opening(path, capsys, answering, changes, words):
    answering(**changes)
    code, out = status(path, capsys)
    assert code == 0 and re.match('  ' + words, out.splitlines()[1])


def test_status_and_check_say_that_the_last_good_config_rules_and_status_shows_it(
        path, capsys, answering):
    knockd.ConfigFile(path).keep(knockd.read_config(path))
    with open(path, 'a') as file:
        file.write('[client carl]\nnonsense = 1\n')
    answering()                                         # it has not read the file so far
    code, out = status(path, capsys)
    assert code == 0 and knockd.LAST_GOOD + '\n' in out
    assert 'nonsense: unknown key' in out and re.search('(?m)^anna +tcp/22 ', out)
    answering(config={'problem': 'x', 'last_good': True})
    assert status(path, capsys)[1].count(knockd.LAST_GOOD) == 1
    assert knockd.main(['--config', path, 'check']) == 2
    err = capsys.readouterr().err
    assert 'note: ' + knockd.LAST_GOOD in err and 'nonsense: unknown key' in err


def test_who_may_not_ask_the_daemon_is_not_told_that_there_is_none(
        path, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(tmp_path))
    monkeypatch.setattr(knockd.os, 'access', lambda *_: False)
    code, out = status(path, capsys)
    assert code == 1
    assert out.startswith('only root may ask the daemon; type: sudo knockd.py status\n')


def test_in_a_chroot_no_mount_is_above_the_ledger(path, tmp_path, monkeypatch):
    monkeypatch.setattr(knockd, 'read_file', lambda path: 'proc /proc proc rw 0 0\n')
    assert knockd.ledger_remarks(str(tmp_path / 'ledger.json')) is None


def test_status_without_a_daemon_ends_with_1(path, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(tmp_path))
    monkeypatch.setattr(knockd, 'preflight', lambda config: [])
    code, out = status(path, capsys)
    assert code == 1 and out.startswith('no daemon answers in ' + str(tmp_path))
    code, out = status(path, capsys, '--json')
    assert code == 1 and json.loads(out)['alive'] is False
    code, out = status(path, capsys, '--metrics')
    assert code == 1 and '\nknockd_up 0\n' in out and '\nknockd_hidden 0\n' in out


def test_status_finds_the_daemon_of_a_config_that_broke(path, capsys, answering):
    with open(path, 'a') as file:
        file.write('nonsense\n')
    answering()
    code, out = status(path, capsys)
    assert code == 0 and out.startswith('hidden: tcp/22, tcp/443')
    assert 'write [SECTION], KEY = VALUE' in out and 'nonsense' not in out


def test_status_for_programs_names_its_fields(path, capsys, answering):
    answering()
    code, out = status(path, capsys, '--json')
    told = json.loads(out)
    assert code == 0 and told['alive'] is True and told['warnings'] == []
    assert told['clients']['anna']['source'] == '203.0.113.5'
    assert told['openings'] == REPORT['openings'] and told['refusals'] == REPORT['refusals']


def test_metrics_are_what_prometheus_reads(path, capsys, answering):
    answering()
    code, out = status(path, capsys, '--metrics')
    assert code == 0
    for line in out.splitlines():
        assert re.match(r'# (HELP knockd_\w+ .*|TYPE knockd_\w+ (gauge|counter))$|'
                        r'knockd_\w+(\{\w+="([^"\\]|\\["\\n])*"(,\w+="([^"\\]|\\["\\n])*")*\})? '
                        r'\d+$', line), line
    found = dict(line.rsplit(' ', 1) for line in out.splitlines() if line[0] != '#')
    assert found['knockd_up'] == '1' and found['knockd_openings'] == '1'
    assert found['knockd_packets_total{verdict="junk"}'] == '5'
    assert found['knockd_last_knock_seconds{client="anna"}'] == '1700000001'
    assert [value for name, value in found.items() if name.startswith('knockd_refused_total')
            and r'reason="not allowed \"tcp/25\""' in name] == ['3']


# --- watch --------------------------------------------------------------------------------------
def test_of_several_refusals_of_a_client_watch_tells_the_newest():
    knock = types.SimpleNamespace(client=types.SimpleNamespace(name='anna'), source=None)
    rows = [{'client': client, 'reason': reason, 'last': last} for client, reason, last in (
        ('anna', 'an hour ago', 1000), ('anna', 'now', 3601000), ('bert', 'of another', 3602000))]
    for refusals in (rows, rows[::-1]):
        report = {'openings': [], 'refusals': refusals, 'problem': None}
        assert knockd.outcome(knock, report) == 'the daemon refused it: now'


# --- where it runs from -------------------------------------------------------------------------
def test_the_compiled_copy_is_named_by_its_content_and_trusted_only_where_others_cannot_write(
        tmp_path, monkeypatch):
    folder = tmp_path / 'knockd'
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(folder))
    first = knockd.compiled_path(b'a = 1\n')
    assert first == knockd.compiled_path(b'a = 1\n') != knockd.compiled_path(b'a = 2\n')
    for source, path in ((b'print(1, __debug__)', None), (b'print(2)', None)):
        path = knockd.compiled_path(source)
        said = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE).communicate()[0]
        assert said[:1] == source[6:7]
    folder.chmod(0o777)
    assert knockd.compiled_path(b'a = 1\n') is None
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: '/proc/nowhere')
    assert knockd.compiled_path(b'a = 1\n') is None


def test_a_file_called_stdin_is_not_this_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '<stdin>').write_text('trap')
    monkeypatch.setattr(knockd, '__file__', '<stdin>')
    assert knockd.own_path() is None
