"""The first screen of the README, word by word: its commands, its output, a mistake in each."""

import os
import re
import subprocess

import pytest
from network import TOP, environment, until

pytestmark = pytest.mark.kernel
with open(os.path.join(TOP, 'README.md'), encoding='utf-8') as file:
    FIRST_SCREEN = file.read().split('\n## ')[0]
RUN = re.search(r'^apt-get .* && (python3 knockd\.py run .*)$', FIRST_SCREEN, re.M).group(1)
SAVE, OPEN = re.findall(r'^\$ (python3 knock\.py .*)$', FIRST_SCREEN, re.M)


@pytest.fixture
def gate(wire, services, tmp_path):
    """The daemon as the README starts it, its config elsewhere; yields its output so far."""
    wire.clear()
    log = str(tmp_path / 'log')
    with open(log, 'wb') as out, wire.server.listen(22):
        process = subprocess.Popen(
            wire.server.command('sh', '-c', 'cd %s && exec %s' % (TOP, RUN)),
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            env=dict(environment(), KNOCKD_CONFIG=str(tmp_path / 'etc' / 'knockd.ini')))

        def said():
            with open(log) as lines:
                return lines.read()
        assert until(lambda: 'ready: ' in said() or process.poll() is not None), said()
        yield said
        process.kill()
        process.wait()
    wire.clear()


def client(wire, home, command, stdin=''):
    """Runs a command of the README in the client's namespace."""
    return wire.client.run('sh', '-c', 'cd %s && %s' % (TOP, command), stdin=stdin,
                           env=dict(environment(), HOME=str(home)))


def test_the_first_screen_does_what_it_says(wire, gate, tmp_path):
    line, ready = gate().splitlines()[:2]
    shown = [text for text in FIRST_SCREEN.splitlines() if text.startswith(('knock://', 'ready:'))]
    own = r'(?<=laptop:)[A-Z2-7]{52}@[^?]+|(?<=id=)[0-9a-f]{16}'        # another on each box
    assert re.sub(own, '', line) == re.sub(own, '', shown[0])
    assert ready == shown[1]
    address = wire.server.addresses[0]
    line = re.sub('@[^?]+', '@' + address, line)
    assert not wire.client.connects(address, 22)
    assert client(wire, tmp_path, SAVE, line + '\n').code == 0
    done = client(wire, tmp_path, OPEN + ' -v')
    assert done.code == 0 and re.search(r'^knock: open in \d+ ms$', done.err, re.M), done.err
    assert wire.client.connects(address, 22)
    assert not wire.stranger.connects(address, 22)


def test_a_mistake_in_each_is_one_line_that_says_what_to_do(wire, gate, tmp_path):
    for command, stdin, says in (
            (SAVE, 'knock://laptop@gate\n', 'this is not a knock:// line; it looks like'),
            (OPEN + 'x', '', 'knock.py save laptopx'),
            (OPEN.replace('laptop', 'knock://laptop:AAAA@10.9.0.1?id=x'), '', '52 characters')):
        done = client(wire, tmp_path, command, stdin)
        assert done.code == 2 and says in done.err and done.err.count('\n') == 1, done.err
    for wrong in (RUN.replace('tcp/22', 'tcp/ssh'), RUN.replace('laptop', "'lap top'")):
        done = wire.server.run('sh', '-c', 'cd %s && %s' % (TOP, wrong), env=dict(
            environment(), KNOCKD_CONFIG=str(tmp_path / 'new' / 'knockd.ini')))
        assert done.code == 2 and 'Traceback' not in done.err and done.err, done.err
