"""Promises about the source text of the two scripts, kept by reading it.

Every checker takes source text and returns the violations as a list of sentences, so that each
is seen to find something in a small sample before it is believed about the scripts.
"""

import ast
import io
import os
import re
import symtable
import sys

import pytest

pytestmark = pytest.mark.kernel        # how they read, on whatever interpreter
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPTS = ('knock.py', 'knockd.py')

# What python3-light has, on every OpenWrt from 21.02 on, and what Python 3.6 has: test_light.py
# imports all of them in a restricted interpreter.
IMPORTABLE = frozenset("""
    argparse array base64 binascii bisect collections configparser contextlib copy datetime
    errno fcntl functools gc getpass glob grp hashlib heapq hmac importlib.util io ipaddress
    itertools json
    marshal math operator os platform pwd queue random re resource secrets select selectors
    shlex shutil signal socket stat string struct subprocess sys syslog tempfile termios
    textwrap threading time traceback tty types
""".split())
# CPython's own hashes; the scripts do without where one is missing.
OPTIONAL = frozenset(['_operator', '_sha1', '_sha2', '_sha256'])

# Names through which a pure section would touch sockets, files, clocks, processes or chance.
IMPURE = frozenset("""
    os socket subprocess select time open print sys fcntl signal
    selectors threading tempfile shutil glob pwd grp getpass termios tty resource syslog
    random secrets input exec eval __import__
""".split())
IMPURE_METHODS = frozenset(['now', 'utcnow', 'today'])  # the clocks of datetime

PROCESS_CALLS = frozenset(['run', 'call', 'check_call', 'check_output', 'Popen',
                           'getoutput', 'getstatusoutput'])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read(name):
    with io.open(os.path.join(TOP, name), encoding='utf-8') as source:
        return source.read()


def found(node, words):
    return 'line %d: %s' % (node.lineno, words)


def calls(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def dotted(node):
    """Returns 'a.b.c' for such an expression, '' for any other."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and owner + '.' + node.attr
    return node.id if isinstance(node, ast.Name) else ''


def text_of(node):
    """Returns the value of a string or bytes literal as text, None for anything else."""
    value = getattr(node, 's', None) if sys.version_info < (3, 8) else getattr(node, 'value', None)
    if isinstance(value, bytes):
        value = value.decode('latin-1')
    return value if isinstance(value, str) else None


# --- the rules

def foreign_imports(source):
    """Imports, at the top or late, of what python3-light does not have."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or '.'] if not node.level else ['.']
        elif isinstance(node, ast.Call) and dotted(node.func).split('.')[0] in (
                '__import__', 'importlib'):
            names = [dotted(node.func)]
        problems += [found(node, 'imports ' + name) for name in names
                     if name not in IMPORTABLE | OPTIONAL and name != 'collections.abc']
    return problems


def asserts(source):
    """`assert` vanishes under -O, so it is no check."""
    return [found(node, 'assert') for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Assert)]


def bare_excepts(source):
    return [found(node, 'bare except') for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ExceptHandler) and node.type is None]


def globals_declared(source):
    return [found(node, 'global') for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Global)]


def process_starters(source):
    """Returns the names of the functions that start processes ('' is the top level)."""
    starters = set()

    def visit(node, function):
        if isinstance(node, FUNCTIONS):
            function = node.name
        if isinstance(node, ast.Call) and starts_process(dotted(node.func)):
            starters.add(function)
        if isinstance(node, ast.ImportFrom) and node.module == 'subprocess':
            starters.add('from subprocess import')
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), '')
    return starters


def starts_process(name):
    module, _, function = name.rpartition('.')
    if module == 'subprocess':
        return function in PROCESS_CALLS
    return name in ('os.system', 'os.popen', 'pty.spawn') or bool(
        re.match(r'os\.(spawn|posix_spawn)', name))


def shells(source):
    """A shell would read what an attacker wrote."""
    return [found(node, 'shell=') for node in calls(source)
            for keyword in node.keywords if keyword.arg == 'shell']


def silent_orders(source):
    """struct formats without '>', '!', '<', '=' or '@': nobody sees if the wire is meant."""
    problems = []
    for node in calls(source):
        if not re.match(r'(struct\.)?(pack|pack_into|unpack|unpack_from|iter_unpack|calcsize|'
                        r'Struct)$', dotted(node.func)) or not node.args:
            continue
        shape = node.args[0]
        if isinstance(shape, ast.BinOp):
            shape = shape.left
        if isinstance(shape, ast.JoinedStr):
            shape = shape.values[0]
        if text_of(shape) is not None and text_of(shape)[:1] not in tuple('>!<=@'):
            problems.append(found(node, 'struct format %r' % text_of(shape)))
    return problems


def pure_part(source):
    """Returns what stands between the imports and the banner `# --- edges`."""
    before, banner, _ = source.partition('\n# --- edges')
    if not banner:
        raise ValueError('no banner "# --- edges"')
    return before[max(0, before.find('# --- shared with')):] + '\n'


def impurities(source):
    """Uses of the outer world in the pure sections; a local variable called `time` is none."""
    pure = pure_part(source)
    problems = []
    tables = [symtable.symtable(pure, 'sample', 'exec')]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            outer = table.get_type() == 'module' or symbol.is_global()
            if symbol.get_name() in IMPURE and outer and symbol.is_referenced():
                problems.append('%s, line %d: uses %s' % (table.get_name(), table.get_lineno(),
                                                          symbol.get_name()))
    for node in ast.walk(ast.parse(pure)):
        if isinstance(node, ast.Attribute) and node.attr in IMPURE_METHODS:
            problems.append(found(node, 'reads a clock with .%s' % node.attr))
        if isinstance(node, ast.ImportFrom) and node.module in IMPURE:
            problems.append(found(node, 'imports from ' + node.module))
        if isinstance(node, ast.Import):
            problems += [found(node, 'hides the import of ' + alias.name) for alias in node.names
                         if alias.name in IMPURE and (alias.asname or node.col_offset)]
    return problems


def shared_block(source):
    """Returns the text from below `# --- shared with ...` to `# --- end`, both banners one line."""
    blocks = re.findall(r'^# --- shared with [^\n]*\n(.*?^# --- end)[^\n]*$', source,
                        re.DOTALL | re.MULTILINE)
    if len(blocks) != 1:
        raise ValueError('%d shared blocks' % len(blocks))
    return blocks[0]


def top_imports(source):
    """Returns the lines of the imports at the top level, nothing else."""
    lines = source.split('\n')
    nodes = [node for node in ast.parse(source).body
             if isinstance(node, (ast.Import, ast.ImportFrom))]
    return '\n'.join(lines[node.lineno - 1] for node in nodes) + '\n'


def version_of(source):
    return re.search(r"^__version__ = '([^']+)'$", source, re.MULTILINE).group(1)


# --- each rule finds its violation

VIOLATIONS = [
    (foreign_imports, 'import logging\n'),
    (foreign_imports, 'def late():\n    from urllib.parse import quote\n'),
    (foreign_imports, 'import os, ctypes\n'),
    (foreign_imports, 'from . import knock\n'),
    (foreign_imports, 'import knock\n'),
    (foreign_imports, '__import__("uuid")\n'),
    (foreign_imports, 'importlib.import_module("uuid")\n'),
    (asserts, 'assert a\n'),
    (bare_excepts, 'try:\n    a()\nexcept:\n    pass\n'),
    (globals_declared, 'def f():\n    global a\n    a = 1\n'),
    (shells, 'run(a, shell=True)\n'),
    (silent_orders, 'struct.pack("HL", 1, 2)\n'),
    (silent_orders, 'struct.Struct("%dH" % n)\n'),
    (silent_orders, 'struct.unpack(f"H{n}s", a)\n'),
    (impurities, 'def f():\n    return os.getpid()\n# --- edges\n'),
    (impurities, 'import time\nSTART = time.time()\n# --- edges\n'),
    (impurities, 'def f(a=time.time()):\n    pass\n# --- edges\n'),
    (impurities, 'class A:\n    def f(self):\n        return [open(a) for a in b]\n# --- edges\n'),
    (impurities, 'f = lambda: print(1)\n# --- edges\n'),
    (impurities, 'def f():\n    import socket\n    socket.socket()\n# --- edges\n'),
    (impurities, 'import sys\nA = sys.argv\n# --- edges\n'),
    (impurities, 'import socket as s\n# --- edges\n'),
    (impurities, 'from time import monotonic\n# --- edges\n'),
    (impurities, 'def f():\n    return datetime.datetime.now()\n# --- edges\n'),
]


@pytest.mark.parametrize('rule, sample', VIOLATIONS)
def test_the_rule_finds_its_violation(rule, sample):
    assert rule(sample)


INNOCENT = '''"""Nothing here breaks a rule."""
import struct
import time

LIMIT = 5


def judge(request, time, now_ms):
    """`time` is an argument here, not the module."""
    words = f"{time} {request['text']}"
    try:
        later = [time + 1 for time in request]
    except (ValueError, KeyError):
        later = struct.pack('>H', now_ms)
    return words, later, request.time


# --- edges: the world
def clock():
    return time.time()
'''


@pytest.mark.parametrize('rule', sorted({rule for rule, _ in VIOLATIONS},
                                        key=lambda rule: rule.__name__))
def test_the_rule_finds_nothing_where_nothing_is(rule):
    assert rule(INNOCENT) == []


def test_two_process_starters_are_told_apart():
    sample = 'def a():\n    subprocess.Popen(x)\nclass B:\n    def b(self):\n        os.popen(x)\n'
    assert process_starters(sample) == {'a', 'b'}
    assert process_starters('from subprocess import run\n') == {'from subprocess import'}
    assert process_starters('raise subprocess.TimeoutExpired()\n') == set()


def test_missing_banners_are_noticed():
    with pytest.raises(ValueError):
        pure_part('a = 1\n')
    with pytest.raises(ValueError):
        shared_block('# --- shared with knock.py\na = 1\n')


# --- the scripts keep the rules

@pytest.mark.parametrize('rule', sorted({rule for rule, _ in VIOLATIONS},
                                        key=lambda rule: rule.__name__))
@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_the_script_keeps_the_rule(name, rule):
    assert rule(read(name)) == []


@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_one_function_alone_starts_processes(name):
    assert len(process_starters(read(name))) <= 1


def test_the_shared_block_is_the_same_in_both_files():
    assert shared_block(read('knockd.py')) == shared_block(read('knock.py'))


def test_both_scripts_have_one_version():
    assert version_of(read('knockd.py')) == version_of(read('knock.py'))


# RFC 4226, appendix D: HOTP values of counters 0 to 9, key '12345678901234567890'
HOTP = '755224 287082 359152 969429 338314 254676 287922 162583 399871 520489'.split()
# RFC 6238, appendix B, SHA1: time and TOTP of 8 digits, the same key
TOTP = [(59, '94287082'), (1111111109, '07081804'), (1111111111, '14050471'),
        (1234567890, '89005924'), (2000000000, '69279037'), (20000000000, '65353130')]


@pytest.mark.parametrize('name', sorted(SCRIPTS))
def test_the_shared_block_runs_alone_and_gives_the_numbers_of_the_rfcs(name):
    """Alone: nothing of the script but the imports at its top."""
    source = read(name)
    space = {'__name__': 'alone'}
    exec(compile(top_imports(source), name, 'exec'), space)
    exec(compile(shared_block(source), name, 'exec'), space)
    key = b'12345678901234567890'
    assert [space['hotp'](key, counter, 6) for counter in range(10)] == HOTP
    assert [space['hotp'](key, when // 30, 8) for when, _ in TOTP] == [code for _, code in TOTP]
