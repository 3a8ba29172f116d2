"""The README says what is: options, keys, bytes, names of tests. Nothing here needs a kernel."""

import ast
import hashlib
import hmac
import os
import re
import struct
import subprocess
import sys

import pytest

import knock
import knockd

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(TOP, 'README.md'), encoding='utf-8') as file:
    README = file.read()
VALUE = 'value' if sys.version_info >= (3, 8) else 's'         # of a text in a syntax tree
COMMANDS = [command[0] for command in knockd.COMMANDS]


def section(title):
    """What stands under a heading, down to the next of its kind."""
    mark = re.search(r'^(#+) %s$' % re.escape(title), README, re.M)
    rest = README[mark.end():]
    end = re.search(r'^#{1,%d} ' % len(mark.group(1)), rest, re.M)
    return rest[:end.start()] if end else rest


def help_of(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, os.path.join(TOP, script)] + list(arguments) + ['--help'],
        stdout=subprocess.PIPE,
        env=dict(os.environ, COLUMNS='200', NO_COLOR='1', PYTHONUNBUFFERED=''))
    out = process.communicate()[0].decode()
    assert process.returncode == 0
    return out


def options_in(text):
    return set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text))


def test_the_first_success_stands_before_line_40():
    assert re.search(r'^knock: open in \d+ ms$', '\n'.join(README.splitlines()[:39]), re.M)


def test_every_option_of_the_client_is_explained_and_no_other():
    """`save` is a word of its own; -h is argparse's."""
    told = section('Commands').split('### Every way')[0]
    told = '\n'.join(line for line in told.splitlines() if not line.startswith('| `knockd.py'))
    server = told.split('| `knock.py [options]')[0]
    ours = options_in(help_of('knock.py')) - {'--help'}
    assert ours - options_in(told.replace(server, '')) == set()
    known = ours | set().union(*(options_in(help_of('knockd.py', name)) for name in COMMANDS))
    assert options_in(told) - known - {'--config', '--new-instance'} == set()


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_of_the_server_and_its_options_are_explained(name):
    told = section('Commands') + section('Installing')
    assert re.search(r'`%s\b' % name, told)
    rare = {'--help', '--root', '--verbose'}
    assert options_in(help_of('knockd.py', name)) - options_in(told) - rare == set()


@pytest.mark.parametrize('title,keys', [
    ('[server]', knockd.SERVER_KEYS), ('[client NAME]', knockd.CLIENT_KEYS),
    ('[action NAME]', knockd.ACTION_KEYS)])
def test_every_key_of_the_config_is_explained_and_no_other(title, keys):
    table = README.split('| %s | |\n' % title)[1].split('\n\n')[0]
    told = [key for line in table.splitlines()
            for key in re.findall(r'`(\w+)`', line.split('|')[1])]
    assert sorted(told) == sorted(keys)


def test_the_config_of_the_readme_is_good():
    config = knockd.parse_config(re.search(r'```ini\n(.*?)```', README, re.S).group(1), '/x/y.ini')
    assert list(config.clients) == ['laptop']


@pytest.mark.parametrize('line', re.findall(r'knock://laptop:[A-Z2-7]{52}@\S+', README))
def test_the_lines_of_the_readme_are_good(line):
    assert knock.parse_uri(line).name == 'laptop'


def rows():
    """{what: bytes} of the example, in which the plain's parts stand one by one."""
    return dict(re.findall(r'^\| ([^|`]+?) \| `?([0-9a-f]+)`? \|$',
                           section('One example, byte by byte'), re.M))


def test_the_example_can_be_recomputed_from_the_rules_above_it():
    """By hmac alone: none of our code takes part."""
    def mac(key, message):
        return hmac.new(key, message, hashlib.sha256).digest()

    def expanded(label):
        return mac(prk, b'knock/1 ' + label + b'\0a1b2c3d4e5f60718' + b'\1')
    told, text = rows(), section('One example, byte by byte')
    prk, step = mac(b'knock/1', bytes(range(32))), 1700000000123 // 30000
    plain = bytes.fromhex(''.join(told[part] for part in (
        'plain: version, open', 'time', 'source', 'seconds', 'item: tcp/22', 'item: udp/51820',
        'padding, five zeros')))
    assert plain[2:10] == struct.pack('>Q', 1700000000123)
    assert plain[10:26] == bytes(10) + b'\xff\xff' + bytes([192, 0, 2, 7])
    tag, nonce = mac(expanded(b'tag'), struct.pack('>Q', step))[:8], bytes.fromhex(
        told['nonce, drawn'])
    stream = b''.join(mac(expanded(b'enc'), nonce + struct.pack('>I', i)) for i in range(2))
    sealed = bytes(left ^ right for left, right in zip(plain, stream))
    for what, value in (('PRK', prk), ('K(tag)', expanded(b'tag')), ('K(enc)', expanded(b'enc')),
                        ('K(mac)', expanded(b'mac')), ('tag', tag), ('sealed', sealed),
                        ('mac', mac(expanded(b'mac'), tag + nonce + sealed)[:16])):
        assert told[what] == value.hex(), what
    assert told['T = 1700000000123 / 30000'] == str(step)
    assert '%d bytes.' % (len(tag + nonce + sealed) + 16) in text


def test_the_scripts_that_are_linked_are_there():
    for path in re.findall(r'\]\((?!http)([^)#]+)\)', README):
        assert os.path.exists(os.path.join(TOP, path)), path


def test_the_version_is_the_same_in_both_scripts():
    assert knock.__version__ == knockd.__version__


def log_words():
    """The first word of each line that knockd.py can log, as far as it is a constant of it."""
    with open(os.path.join(TOP, 'knockd.py'), encoding='utf-8') as file:
        tree = ast.parse(file.read())
    words = set()
    for call in ast.walk(tree):
        name = getattr(call, 'func', None)
        if getattr(name, 'id', getattr(name, 'attr', None)) not in ('log', 'log_lines', 'tell'):
            continue
        for node in ast.walk(call):
            match = re.match('([a-z]+)(?: [a-z]+)*[:;]', str(getattr(node, VALUE, '')))
            if match:
                words.add(match.group(1))
    return words


def test_every_kind_of_log_line_is_explained():
    """The first word of each line that knockd.py can log stands in the README's table."""
    words, told = log_words(), section('The log')
    assert {'quarantine', 'firewall', 'clock', 'status', 'filter', 'stopped'} <= words
    assert [word for word in sorted(words) if not re.search(r'`(\w+ )*%s\b' % word, told)] == []
