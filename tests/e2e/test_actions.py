"""[action NAME]: what `knock.py --run NAME` starts on the server."""

import os
import sys
import time

import carriers
import knockd
import pytest
from network import until

ENVIRONMENT = 'sort /proc/self/environ -z | tr "\\0" " "; echo; echo second line'


def sections(house, actions):
    """Appends [action NAME] sections and starts the daemon again."""
    write = house.write_config

    def with_actions():
        write()
        with open(house.config, 'a') as config:
            for name, argv in actions.items():
                config.write('[action %s]\nrun = %s\n' % (name, argv))
    house.write_config = with_actions
    house.write_config()
    house.kill()
    house.start()


@pytest.fixture(scope='module')
def house(wire, tmp_path_factory):
    with carriers.housing(wire, tmp_path_factory, anna='', nobody='') as made:
        made.clients['anna'] += '\nmay_run = facts, words, fails, missing, writes'
        written = os.path.join(made.folder, 'written')
        sections(made, {
            'facts': "/bin/sh -c '%s'" % ENVIRONMENT,
            'words': "/bin/echo a;b $HOME `id` 'one word' \"* ?\" > %s" % written,
            'fails': "/bin/sh -c 'echo its output | tr a-z A-Z; echo its errors | tr a-z A-Z >&2; "
                     "exit 3'",
            'missing': '/nonexistent/program', 'forbidden': '/bin/echo forbidden fruit',
            'writes': '/usr/bin/touch ' + written})
        yield made


def run(wire, house, name, client='anna', address=None):
    time.sleep(0.2)                                     # five knocks a second are honoured
    done = wire.client.knock('--run', name, house.uri(client, address or
                                                      wire.server.addresses[0]))
    assert done.code == 0, done.err
    return done


def test_an_action_runs_with_the_facts_in_its_environment_and_no_others(wire, house, address):
    source = wire.client.addresses[':' in address]
    before = house.count('action facts: second line')
    run(wire, house, 'facts', address=address)
    house.says('action facts: second line', before + 1)
    words = [line for line in house.text().splitlines() if 'KNOCK_SOURCE' in line][-1].split()
    assert [word for word in words if word.startswith('KNOCK_')] == [
        'KNOCK_CLIENT=anna', 'KNOCK_PORTS=', 'KNOCK_SECONDS=30', 'KNOCK_SOURCE=' + source]
    assert {word.partition('=')[0] for word in words[2:]} - {'PWD', 'SHLVL', '_', 'OLDPWD'} == {
        'KNOCK_CLIENT', 'KNOCK_PORTS', 'KNOCK_SECONDS', 'KNOCK_SOURCE', 'LC_ALL', 'PATH'}
    assert house.says('run anna %s facts' % source)


def test_an_action_is_an_argument_list_and_no_shell_sees_it(wire, house):
    run(wire, house, 'words')
    written = os.path.join(house.folder, 'written')
    house.says('action words: a;b $HOME `id` one word * ? > ' + written)
    assert not os.path.exists(written)


def test_a_failing_action_is_told_and_the_daemon_lives(wire, house):
    run(wire, house, 'fails')
    assert 'failed (3)' in house.says('action fails: /bin/sh')
    run(wire, house, 'missing')
    house.says('action missing: /nonexistent/program: No such file')
    run(wire, house, 'writes')
    assert until(lambda: os.path.exists(os.path.join(house.folder, 'written')))


def test_what_a_failing_action_printed_reaches_the_log(wire, house):
    run(wire, house, 'fails')
    house.says('ITS OUTPUT')
    house.says('ITS ERRORS')


@pytest.mark.parametrize('name', ('forbidden', 'unknown'))
def test_an_action_that_is_forbidden_or_unknown_is_refused(wire, house, name, address):
    source = wire.client.addresses[':' in address]
    for client in ('anna', 'nobody'):
        run(wire, house, name, client, address)
        assert 'not allowed action' in house.says('refused %s %s not allowed action'
                                                  % (client, source) if name == 'forbidden'
                                                  and ':' not in address else 'refused ' + client)
    house.settle(wire.client, address)
    assert house.count('forbidden fruit') == 0 and house.count('run nobody') == 0


def test_a_name_that_is_no_name_is_refused_by_both(wire, house):
    uri = house.uri('anna', wire.server.addresses[0])
    done = wire.client.knock('--run', 'facts;reboot', uri)
    assert (done.code, done.err.count('\n')) == (2, 1)


def test_a_replayed_run_runs_nothing(wire, house, address):
    with wire.capture(wire.client) as capture:
        wire.client.knock('--port', '40000', '--run', 'facts', house.uri('anna', address))
        payload = capture.datagrams(40000)[0]
    runs = house.count('action facts: second line')
    until(lambda: house.count('action facts: second line') > runs, 1)
    runs = house.count('run anna ')
    wire.client.send(payload, address)
    wire.stranger.send(payload, address)
    house.settle(wire.client, address)
    house.settle(wire.stranger, address)
    assert house.count('run anna ') == runs


@pytest.fixture
def told(monkeypatch):
    """What Hooks log, with a limit of half a second."""
    lines = []
    monkeypatch.setattr(knockd, 'ACTION_SECONDS', 0.5)
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: lines.append(text))
    return lines


def test_an_action_ends_at_its_limit_with_all_it_started(told, tmp_path):
    late = str(tmp_path / 'late')
    knockd.Hooks().run('slow', ['/bin/sh', '-c', 'sleep 1; touch %s & sleep 60' % late],
                       'anna', '192.0.2.1', (), 0, True)
    assert until(lambda: told, 5) and 'took longer than' in told[0]
    assert not until(lambda: os.path.exists(late), 1)


def test_an_action_that_leaves_a_service_behind_does_not_hold_its_place(told):
    """`run = /etc/init.d/x start`: the service keeps the output open, the action is over."""
    left = "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(4)\n os._exit(0)\n" \
        "print('started')"
    hooks = knockd.Hooks()
    hooks.run('service', [sys.executable, '-c', left], 'anna', '192.0.2.1', (), 0,
              True)
    assert until(lambda: told, 3), 'what it says comes after its place is free'


def test_the_limit_is_thirty_seconds():
    assert knockd.ACTION_SECONDS == 30


def test_each_client_has_slots_of_his_own_and_others_for_what_he_opens(told, tmp_path):
    hooks = knockd.Hooks()
    for client, action, number in (('bert', True, 20), ('bert', False, 20), ('anna', False, 3)):
        for count in range(number):
            name = '%s-%s-%d' % (client, action, count)
            hooks.run('many', ['/bin/sh', '-c', 'touch %s; sleep 0.3' % (tmp_path / name)],
                      client, '192.0.2.1', (), 0, action)
    not_run = told.count('action many: not run, for 8 others of bert do')
    assert until(lambda: len(os.listdir(str(tmp_path))) == 43 - not_run, 5)
    ran = [name.rpartition('-')[0] for name in os.listdir(str(tmp_path))]
    assert ran.count('anna-False') == 3
    for kind in ('bert-True', 'bert-False'):
        assert 6 <= ran.count(kind) <= 8
