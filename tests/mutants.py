"""`tox -e mutants`: does a test of tests/unit fail for every small change of the logic?

    python tests/mutants.py [-n N] [SECTION ...]

Changes one operator, number, word, condition or statement at a time in the sections of knockd.py
named below and runs the test files of that section, in copies of the tree, two at a time. -n: so
many mutants of each section, drawn with a fixed seed; without it all. What survives and is
harmless stands with its reason in tests/mutants.txt and counts as killed. What was killed is kept
in .tox/mutants.json until the section or its tests change. Exit 1 below 95 % in a section.
mutmut runs whole files and knows no lines, so the mutations are made here, from the syntax tree.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(TOP, '.tox', 'mutants.json')
HARMLESS = os.path.join(TOP, 'tests', 'mutants.txt')
TARGET, SEED, SECONDS = 0.95, 7, 180
SEQUENCES = 'test_sequences test_honour test_openings test_judge'
SECTIONS = {        # how the banner begins: the test files, the quickest first
    'ledger rules': 'test_ledger test_journal',
    'filter compiler': 'test_filter',
    'packet parser': 'test_datagram test_parser',
    'sequences': SEQUENCES,
    'codes': SEQUENCES,
    'credentials of a step': SEQUENCES,
    'openings': 'test_openings test_judge test_honour',
    'judge': 'test_judge test_datagram test_openings test_honour',
    'keeper': 'test_keeper_thread test_edges',
}
COMPARISONS = {
    '<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==', 'is not': 'is',
    'is': 'is not', 'not in': 'in', 'in': 'not in'}
OPERATORS = {'+': '-', '-': '+', '*': '+', '//': '*', '%': '*', '<<': '>>', '>>': '<<', '|': '&',
             '&': '|', '^': '|'}
CALLS = {'min': 'max', 'max': 'min', 'any': 'all', 'all': 'any'}


class Source:
    """The text of knockd.py, and a place in it by line and column, in bytes as ast has it."""

    def __init__(self, text):
        self.data, self.starts = text.encode(), [0]
        for line in self.data.splitlines(True):
            self.starts.append(self.starts[-1] + len(line))

    def begin(self, node):
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        return self.data[self.begin(node):self.end(node)].decode()


def between(source, left, right, table):
    """The change of the operator between two nodes."""
    begin, end = source.end(left), source.begin(right)
    gap = source.data[begin:end].decode()
    for word in sorted(table, key=len, reverse=True):
        at = gap.find(word)
        if at >= 0:
            yield begin + at, begin + at + len(word), table[word]
            return


def changes_of(source, node):
    """(begin, end, new text) of all that can be changed at a node itself."""
    begin, end = source.begin(node), source.end(node)
    if isinstance(node, ast.Compare):
        operands = [node.left] + node.comparators
        for left, right in zip(operands, operands[1:]):
            yield from between(source, left, right, COMPARISONS)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        left, right = (node.left, node.right) if isinstance(node, ast.BinOp) else (
            node.target, node.value)
        yield from between(source, left, right, OPERATORS)
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            yield from between(source, left, right, {'and': 'or', 'or': 'and'})
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield begin, source.begin(node.operand), ''
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, bytes):
        new = {bool: lambda value: not value, int: lambda value: value + 1,
               bytes: lambda value: value + b'x'}[type(node.value)](node.value)
        yield begin, end, repr(new)
    elif isinstance(node, ast.Call) and source.text(node.func) in CALLS:
        yield begin, source.end(node.func), CALLS[source.text(node.func)]
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield source.begin(node.test), source.end(node.test), 'not (%s)' % source.text(node.test)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield begin, end, 'return None'
    elif isinstance(node, ast.Break):
        yield begin, end, 'pass'
    elif isinstance(node, ast.Continue):
        yield begin, end, 'break'
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)) or isinstance(
            node, ast.Expr) and isinstance(node.value, ast.Call):
        yield begin, end, 'pass'


def mutants_of(text, section):
    """[(name, begin, end, new)] of a section: the name says function, line and change, without the
    number of the line, so that it stays when lines move."""
    source, lines = Source(text), text.splitlines()
    first = next(number for number, line in enumerate(lines, 1)
                 if re.match('# --- %s\\b' % re.escape(section), line))
    last = next(number for number, line in enumerate(lines, 1)
                if number > first and line.startswith('# --- '))
    found, names = [], {}
    for top in ast.parse(text).body:
        if not first < top.lineno < last or not isinstance(top, (ast.FunctionDef, ast.ClassDef)):
            continue
        for node in ast.walk(top):
            if not hasattr(node, 'col_offset'):
                continue
            for begin, end, new in changes_of(source, node):
                line = lines[node.lineno - 1].strip()
                name = '%s: %s: %s -> %s' % (top.name, line, source.data[begin:end].decode(), new)
                name = ' '.join(name.split())
                names[name] = names.get(name, 0) + 1
                if names[name] > 1:
                    name += ' (%d)' % names[name]
                found.append((name, begin, end, new))
    return found


def harmless():
    """The names in tests/mutants.txt: lines that begin with a blank; a reason stands above."""
    with open(HARMLESS) as file:
        return {line.strip() for line in file if line.startswith('  ')}


def is_killed(tree, data, files):
    """Do the tests fail with this knockd.py in this copy?"""
    with open(os.path.join(tree, 'knockd.py'), 'wb') as file:
        file.write(data)
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE='1')
    argv = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider'] + files
    process = subprocess.Popen(argv, cwd=tree, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(SECONDS) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return True


def copies(folder, count):
    """A queue of copies of the tree."""
    trees = queue.Queue()
    for number in range(count):
        tree = os.path.join(folder, str(number))
        shutil.copytree(TOP, tree, ignore=shutil.ignore_patterns('.git', '.tox', '__pycache__'))
        trees.put(tree)
    return trees


def tried(section, text, trees, pool, count, cache):
    """Runs a section's mutants. (how many, [survivor])"""
    files = ['tests/unit/%s.py' % name for name in SECTIONS[section].split()]
    state = hashlib.sha256(text.encode())
    for name in files:
        with open(os.path.join(TOP, name), 'rb') as file:
            state.update(file.read())
    killed = cache.setdefault(section, {}).setdefault(state.hexdigest(), [])
    mutants = mutants_of(text, section)
    if count and count < len(mutants):
        mutants = random.Random(SEED).sample(mutants, count)
    known, data = harmless() | set(killed), text.encode()

    def survives(mutant):
        name, begin, end, new = mutant
        if name in known:
            return False
        tree = trees.get()
        try:
            dead = is_killed(tree, data[:begin] + new.encode() + data[end:], files)
        finally:
            trees.put(tree)
        killed.extend([name] if dead else [])
        return not dead
    lives = list(pool.map(survives, mutants))
    return len(mutants), [mutant for mutant, alive in zip(mutants, lives) if alive]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('-n', type=int)
    parser.add_argument('-j', type=int, default=2)
    parser.add_argument('sections', nargs='*', default=list(SECTIONS))
    args = parser.parse_args()
    with open(os.path.join(TOP, 'knockd.py')) as file:
        text = file.read()
    cache, low = {}, False
    if os.path.exists(CACHE):
        with open(CACHE) as file:
            cache = json.load(file)
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(args.j) as pool:
        trees = copies(folder, args.j)
        for section in args.sections:
            count, survivors = tried(section, text, trees, pool, args.n, cache)
            share = 1 - len(survivors) / count
            low = low or share < TARGET
            print('%-22s %4d mutants, %4d killed, %3d survived: %.1f %%' % (
                section, count, count - len(survivors), len(survivors), 100 * share), flush=True)
            for name, begin, _, _ in survivors:
                number = text.encode()[:begin].count(b'\n') + 1
                print('    knockd.py:%d  %s' % (number, name), flush=True)
            os.makedirs(os.path.dirname(CACHE), exist_ok=True)
            with open(CACHE, 'w') as file:
                json.dump(cache, file)
    return int(low)


if __name__ == '__main__':
    sys.exit(main())
