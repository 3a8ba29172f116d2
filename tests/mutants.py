"""`tox -e mutants`: does a test of tests/unit fail for every small change of the logic?

Changes one operator, number, word, condition or statement at a time in the sections of knockd.py
named below (or given) and runs that section's test files, in copies of the tree, two at a time.
-n: so many mutants of each section, drawn with a fixed seed; without it all. What survives and is
harmless stands with its reason in tests/mutants.txt and counts as killed. What was killed is kept
in .tox/mutants.json until knockd.py or the tests change. Exit 1 below 95 % in a section.
mutmut runs whole files and knows no lines, so the mutations are made here, from the syntax tree.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
CACHE = TOP / '.tox' / 'mutants.json'
HARMLESS = TOP / 'tests' / 'mutants.txt'
TARGET, SEED, SECONDS, JOBS, NULL = 0.95, 7, 60, 2, subprocess.DEVNULL
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
    'keeper': 'test_keeper_parts test_before_rules test_keeper_thread test_edges',
}
COMPARISONS = {'<': '<=', '<=': '<', '>': '>=', '>=': '>', '==': '!=', '!=': '==', 'is not': 'is',
               'is': 'is not', 'not in': 'in', 'in': 'not in'}
OPERATORS = {'+': '-', '-': '+', '*': '+', '//': '*', '%': '*', '<<': '>>', '>>': '<<', '|': '&',
             '&': '|', '^': '|'}
CALLS = {'min': 'max', 'max': 'min', 'any': 'all', 'all': 'any'}


class Source:
    """The text of knockd.py, and a place in it by line and column, in bytes as ast has it."""

    def __init__(self, text):
        self.data = text.encode()
        lengths = map(len, self.data.splitlines(True))
        self.starts = [0] + list(itertools.accumulate(lengths))

    def span(self, node):
        return (self.starts[node.lineno - 1] + node.col_offset,
                self.starts[node.end_lineno - 1] + node.end_col_offset)

    def text(self, node):
        return self.data[slice(*self.span(node))].decode()


def between(source, left, right, table):
    """The change of the operator between two nodes."""
    begin, end = source.span(left)[1], source.span(right)[0]
    words = '|'.join(map(re.escape, sorted(table, key=len, reverse=True)))
    found = re.search(words, source.data[begin:end].decode())
    if found:
        yield begin + found.start(), begin + found.end(), table[found.group()]


def changes_of(source, node):
    """(begin, end, new text) of all that can be changed at a node itself."""
    begin, end = source.span(node)
    if isinstance(node, ast.Compare):
        operands = [node.left] + node.comparators
        for left, right in zip(operands, operands[1:]):
            yield from between(source, left, right, COMPARISONS)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        parts = list(ast.iter_child_nodes(node))
        yield from between(source, parts[0], parts[-1], OPERATORS)
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            yield from between(source, left, right, {'and': 'or', 'or': 'and'})
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield begin, source.span(node.operand)[0], ''
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int):
        new = not node.value if isinstance(node.value, bool) else node.value + 1
        yield begin, end, repr(new)
    elif isinstance(node, ast.Call) and source.text(node.func) in CALLS:
        yield source.span(node.func) + (CALLS[source.text(node.func)],)
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield source.span(node.test) + ('not (%s)' % source.text(node.test),)
    elif isinstance(node, ast.Return) and source.text(node)[7:] not in ('', 'None', 'False'):
        yield begin, end, 'return None'
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield begin, end, 'pass' if isinstance(node, ast.Break) else 'break'
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)) or isinstance(
            node, ast.Expr) and isinstance(node.value, ast.Call):
        yield begin, end, 'pass'


def mutants_of(text, section):
    """[(name, begin, end, new)] of a section: the name says function, line and change, without the
    number of the line, so that it stays when lines move."""
    source, lines = Source(text), text.splitlines()
    banners = [number for number, line in enumerate(lines, 1) if line.startswith('# --- ')]
    first = next(number for number in banners
                 if re.match('# --- %s\\b' % re.escape(section), lines[number - 1]))
    last = min(number for number in banners if number > first)
    found, names = [], {}
    for top in ast.parse(text).body:
        if not first < top.lineno < last or not isinstance(top, (ast.FunctionDef, ast.ClassDef)):
            continue
        for node in ast.walk(top):
            for begin, end, new in changes_of(source, node) if hasattr(node, 'lineno') else ():
                line = lines[node.lineno - 1].strip()
                old = source.data[begin:end].decode()
                name = ' '.join(('%s: %s: %s -> %s' % (top.name, line, old, new)).split())
                names[name] = names.get(name, 0) + 1
                name += ' (%d)' % names[name] if names[name] > 1 else ''
                found.append((name, begin, end, new))
    return found


def is_killed(tree, data, files):
    """Do the tests fail with this knockd.py in this copy?"""
    pathlib.Path(tree, 'knockd.py').write_bytes(data)
    argv = [sys.executable, '-B', '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider'] + files
    process = subprocess.Popen(argv, cwd=tree, stdout=NULL, stderr=NULL, start_new_session=True)
    try:
        return process.wait(SECONDS) != 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return True


def tried(section, text, folder, trees, pool, count, cache):
    """Runs a section's mutants. (how many, [survivor])"""
    files = ['tests/unit/%s.py' % name for name in SECTIONS[section].split()]
    state = hashlib.sha256(text.encode())
    for name in files:
        state.update((TOP / name).read_bytes())
    killed = cache.setdefault(section, {}).setdefault(state.hexdigest(), [])
    mutants = mutants_of(text, section)
    if count and count < len(mutants):
        mutants = random.Random(SEED).sample(mutants, count)
    listed = [line[2:] for line in HARMLESS.read_text().splitlines() if line[:2] == '  ']
    known, data = set(killed + listed), text.encode()
    if is_killed(os.path.join(folder, '0'), data, files):
        raise SystemExit('%s: its tests fail with nothing changed' % section)

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
    parser.add_argument('sections', nargs='*', default=list(SECTIONS))
    args = parser.parse_args()
    text, low = (TOP / 'knockd.py').read_text(), False
    cache = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        trees = queue.Queue()
        for number in range(JOBS):
            trees.put(shutil.copytree(TOP, os.path.join(folder, str(number)),
                                      ignore=shutil.ignore_patterns('.git', '.tox')))
        for section in args.sections:
            count, survivors = tried(section, text, folder, trees, pool, args.n, cache)
            share = 1 - len(survivors) / count
            low = low or share < TARGET
            print('%-22s %4d mutants, %4d killed, %3d survived: %.1f %%' % (
                section, count, count - len(survivors), len(survivors), 100 * share), flush=True)
            for name, begin, _, _ in survivors:
                number = text.encode()[:begin].count(b'\n') + 1
                print('    knockd.py:%d  %s' % (number, name), flush=True)
            CACHE.write_text(json.dumps(cache))
    return int(low)


if __name__ == '__main__':
    sys.exit(main())
