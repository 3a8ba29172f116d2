"""The README says what is: options, keys, bytes, names of tests. Nothing here needs a kernel."""

import ast
import functools
import hashlib
import hmac
import os
import re
import shlex
import struct
import subprocess

import pytest

import knock
import knockd
from compiled import started

pytestmark = pytest.mark.kernel         # they say nothing of the interpreter

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
with open(os.path.join(TOP, 'README.md'), encoding='utf-8') as file:
    README = file.read()
COMMANDS = [command[0] for command in knockd.COMMANDS]


def section(title):
    """What stands under a heading, down to the next of its kind."""
    mark = re.search(r'^(#+) %s$' % re.escape(title), README, re.M)
    rest = README[mark.end():]
    end = re.search(r'^#{1,%d} ' % len(mark.group(1)), rest, re.M)
    return rest[:end.start()] if end else rest


@functools.lru_cache(maxsize=None)
def help_of(script, *arguments):
    process = subprocess.Popen(
        started(os.path.join(TOP, script)) + list(arguments) + ['--help'],
        stdout=subprocess.PIPE,
        env=dict(os.environ, COLUMNS='200', NO_COLOR='1', PYTHONUNBUFFERED=''))
    out = process.communicate()[0].decode()
    assert process.returncode == 0
    return out


def options_in(text):
    return set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text))


def test_the_first_success_stands_before_line_40():
    assert re.search(r'^knock: open in \d+ ms$', '\n'.join(README.splitlines()[:39]), re.M)


def test_it_is_no_longer_than_four_hundred_lines():
    assert len(README.splitlines()) <= 400


def options_of_tables():
    """(those of knockd.py's table, those of knock.py's)"""
    server, client = section('Commands').split('| `knock.py [options]')
    return options_in(server), options_in(client)


def test_every_option_of_the_client_is_explained_and_no_other():
    ours = options_in(help_of('knock.py')) - {'--secret'}       # of `derive`
    assert options_of_tables()[1] - {'--secret'} == ours


def test_no_option_is_explained_that_is_not_there():
    known = options_in(help_of('knock.py')) | options_in(help_of('knockd.py'))
    for name in COMMANDS:
        known |= options_in(help_of('knockd.py', name))
    known |= {'--new-instance', '--ip'}         # firefox's, ruroco's
    assert options_in(README) - known == set()


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_of_the_server_and_its_options_are_explained(name):
    table = section('Commands').split('| `knock.py [options]')[0]
    rows = [row for row in table.splitlines() if row.startswith('| `')]
    told = [row for row in rows if re.search(r'`%s\b' % name, row.split(' | ')[0])]
    assert len(told) == 1, 'one row tells of it'
    rare = {'--help', '--root', '--verbose'}
    assert options_in(help_of('knockd.py', name)) - options_in(told[0]) - rare == set()


def unbuilt_keys():
    """Keys that the config takes and no firewall rule heeds: to explain them would be a lie."""
    with open(os.path.join(TOP, 'knockd.py'), encoding='utf-8') as file:
        firewall = file.read().split('# --- nft text')[1].split('# --- edges')[0]
    return set() if '.behind' in firewall else {'behind', 'only'}


@pytest.mark.parametrize('title,keys', [
    ('[server]', knockd.SERVER_KEYS), ('[client NAME]', knockd.CLIENT_KEYS),
    ('[action NAME]', knockd.ACTION_KEYS)])
def test_every_key_of_the_config_is_explained_and_no_other(title, keys):
    table = README.split('| %s | |\n' % title)[1].split('\n\n')[0]
    told = [key for line in table.splitlines()
            for key in re.findall(r'`(\w+)`', line.split('|')[1])]
    assert sorted(told) == sorted(set(keys) - unbuilt_keys())


def test_what_it_says_of_defaults_is_so():
    config = knockd.parse_config('[server]\nid = a\nhide = tcp/22\n', '/x/y.ini')
    table = section('Configuration')
    assert (config.window, config.open_for, config.max_open_for) == (60000, 30000, 3600000)
    assert 'how far clocks may differ, 60s;' in table and 'lasts, 30s, and' in table
    assert 'may ask for, 1h' in table and config.carriers == ('udp', 'icmp', 'ports')
    assert '`udp, icmp, ports`' in table and config.mark == 0x40000000 and '0x40000000' in table


def commands():
    """Every command line of ours in the README: (script, words)."""
    spans = re.findall(r'(?<!`)`([^`\n]+)`(?!`)', README)
    for block in re.findall(r'```\w*\n(.*?)```', README, re.S):
        spans += block.replace('\\\n', ' ').splitlines()
    for span in spans:
        span = span.replace('\\|', '|')
        for line in re.split(r' && | \|\| ?| \| | >|; do|"', span):
            found = re.search(r'(?:^|[ /])(knockd?\.py)((?: [^#]*)?)$', line)
            if found and '[' not in line and '...' not in line:
                yield found.group(1), shlex.split(found.group(2))


def is_mentioned(words):
    """Is it only the name of a script, or of a command?"""
    return not words or words[0].startswith(('root@', '/usr/', 'https:')) or \
        words in (['add'], ['paper'], ['rekey'])


COMMAND_LINES = [(script, [word.replace('%p', '22').replace('%h', 'web1') for word in words])
                 for script, words in commands() if not is_mentioned(words)]


def test_there_are_command_lines():
    assert len(COMMAND_LINES) > 40


@pytest.mark.parametrize('words', [words for script, words in COMMAND_LINES
                                   if script == 'knockd.py'], ids=' '.join)
def test_knockd_takes_the_command_lines_of_the_readme(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'FILE.pub').write_text('ssh-ed25519 AAAA\n')
    knockd.command_line().parse_args(words)


@pytest.mark.parametrize('words', [words for script, words in COMMAND_LINES
                                   if script == 'knock.py'], ids=' '.join)
def test_knock_takes_the_command_lines_of_the_readme(words):
    if words[0] in knock.COMMANDS:
        return                          # tests/e2e runs these
    options = knock.read_options(words[:words.index('--')] if '--' in words else words)
    options.command = words[words.index('--') + 1:] if '--' in words else []
    knock.check_options(options, options.via or 'udp')


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


def first_words(node):
    """The constant text that a call's argument begins with, or ''."""
    if isinstance(node, ast.BinOp):
        node = node.left
    fields = vars(node)                 # .s warns on new Pythons, .value is not on old ones
    text = fields.get('value', fields.get('s', ''))
    return text if isinstance(text, str) else ''


def called(tree, *names):
    """Calls of functions or methods of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'id', getattr(node.func, 'attr', None))
            if name in names:
                yield node


def test_every_kind_of_log_line_is_explained():
    """The first words of each line that knockd.py can log, and of each reason to refuse."""
    with open(os.path.join(TOP, 'knockd.py'), encoding='utf-8') as file:
        tree = ast.parse(file.read())
    begins = {knockd.MENDED, 'more than %d SYNs'}
    for call in called(tree, 'log', 'log_lines', 'saved', 'rewritten'):
        begins.update(first_words(argument) for argument in call.args)
    for call in called(tree, 'tell'):           # client, kind, source, reason, now, line
        begins.update(first_words(argument) for argument in call.args[3:])
    begins.update(first_words(call.args[1]) for call in called(tree, 'Flaw'))
    words = set()
    for text in begins:
        found = re.match(r'[a-z]+(?: [a-z]+)?(?=[ :;]|$)', text)
        if found:
            words.add(found.group())
    assert {'quarantine', 'firewall', 'clock', 'status', 'filter', 'stopped', 'too fast',
            'no source', 'not allowed', 'expired'} <= words
    told = section('The log')
    missing = [word for word in sorted(words)
               if '`' + word.split(' ')[0] not in told and '... ' + word not in told]
    assert missing == []


def test_every_reason_to_refuse_is_explained():
    told = section('The log')
    for kind in (knockd.MALFORMED, knockd.CLOCK, knockd.EXPIRED, knockd.SOURCE,
                 knockd.SIGNATURE, knockd.REPLAY, 'quarantine', 'void'):
        assert kind in told, kind


def test_what_the_client_says_when_it_does_not_open_is_explained_in_its_own_words():
    with open(os.path.join(TOP, 'knock.py'), encoding='utf-8') as file:
        source = re.sub(r"'\s*\n\s*'", '', file.read())
    table = section('It does not open').split('| `knock.py` says |')[1]
    for row in re.findall(r'^\| (`.*?) \|', table, re.M):
        for words in re.findall(r'`([^`]+)`', row):
            if words in ('Network is unreachable',):
                continue                # the system's
            begin = words.split(' 87 s ')[0].replace('tcp/22', 'tcp/%d')
            assert begin in source, words


def test_what_the_server_says_is_explained_in_its_own_words():
    with open(os.path.join(TOP, 'knockd.py'), encoding='utf-8') as file:
        source = re.sub(r"'\s*\n\s*'", '', file.read())
    for words in re.findall(r'^- (`.*?):', section('It does not open'), re.M):
        for word in re.findall(r'`([^`]+)`', words):
            assert word in source, word


def test_the_limits_of_the_readme_are_those_of_the_script():
    assert knockd.ELEMENTS_LIMIT == knockd.MOST_PORTS == 64 and 'more than 64 port ranges' in README
    assert (knockd.KNOCKS_A_SECOND, knockd.SIGNATURES_A_SECOND) == (5, 2)
    assert 'more than 5 knocks a second, 2 if signed' in README
    assert 'more than %d SYNs' % knockd.SYNS_A_SECOND in README
    assert 'Above %d hidden TCP ports' % knockd.MOST_DECOYS in README
    assert 'older than %d.%d.%d' % knockd.OLDEST_NFT in README
    assert knockd.MACS_A_SECOND == 200 and '200 MACs a second' in README


def test_every_chain_of_the_table_has_its_reason():
    rows = re.findall(r'^\| (`.*?) \|', section('The firewall'), re.M)
    told = re.findall(r'`(\w+)`', ' '.join(rows))
    assert sorted(told) == sorted(name for name, *_ in knockd.CHAINS)
