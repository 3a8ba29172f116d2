"""`tox -e mutants`: does a test of tests/unit fail for every small change of the logic?

Changes one operator, number, word, condition or statement at a time in the sections of knockd.py
named below (or given) and runs that section's test files. -n: so many mutants of each section,
drawn with --seed; without it all. What survives and is harmless stands with its reason in
tests/mutants.txt and counts as killed. Exit 1 below 95 % in a section.

Two processes, each in a copy of the tree, import the tests once and fork for each mutant; the
child gives the functions that the tests hold the changed code. What survives that is run again by
a fresh interpreter. mutmut runs whole files and knows no lines, so the mutations are made here.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types

TOP = pathlib.Path(__file__).resolve().parent.parent
HARMLESS = TOP / 'tests' / 'mutants.txt'
TARGET, SEED, PATIENCE, JOBS, NULL = 0.95, 7, 6, 2, subprocess.DEVNULL
UNCHANGED = 9                   # how a child ends whose functions could not be given the code
OPTIONS = ['-x', '-q', '-p', 'no:cacheprovider']
SEQUENCES = 'test_sequences test_judge test_openings test_honour'
SECTIONS = {        # how the banner begins: the test files, the quickest first
    'ledger rules': 'test_ledger test_journal',
    'filter compiler': 'test_filter',
    'packet parser': 'test_parser test_datagram',
    'sequences': SEQUENCES,
    'codes': 'test_sequences test_code_memory test_judge',
    'credentials of a step': SEQUENCES,
    'openings': 'test_openings test_judge test_honour',
    'judge': 'test_judge test_sequences test_openings test_honour test_code_memory',
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


def banners_of(lines, section):
    """The numbers of the lines between which a section stands."""
    banners = [number for number, line in enumerate(lines, 1) if line.startswith('# --- ')]
    first = next(number for number in banners
                 if re.match('# --- %s\\b' % re.escape(section), lines[number - 1]))
    return first, min(number for number in banners if number > first)


def mutants_of(text, section):
    """[(name, begin, end, new, first byte of the function or class, its last)] of a section: the
    name says function, line and change, without the number of the line, so that it stays when
    lines move."""
    source, lines = Source(text), text.splitlines()
    first, last = banners_of(lines, section)
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
                found.append((name, begin, end, new) + source.span(top))
    return found


# --- the process that forks ---------------------------------------------------------------------
def transplant(old, new):
    """Gives a function, or each of a class, the code of its changed twin."""
    if isinstance(old, type):
        for name, value in vars(new).items():
            if isinstance(value, (types.FunctionType, staticmethod, classmethod, property)):
                transplant(vars(old)[name], value)
            elif not name.startswith('__'):
                setattr(old, name, value)
    elif isinstance(old, property):
        transplant(old.fget, new.fget)
    elif hasattr(old, '__func__') or hasattr(old, '__wrapped__'):
        inner = '__func__' if hasattr(old, '__func__') else '__wrapped__'
        transplant(getattr(old, inner), getattr(new, inner))
    else:
        old.__code__, old.__defaults__ = new.__code__, new.__defaults__


def change(data, mutant):
    """Knows the changed code from here on, as whatever starts knockd.py does."""
    import knockd
    _, begin, end, new, first, last = mutant
    pathlib.Path('knockd.py').write_bytes(data[:begin] + new.encode() + data[end:])
    namespace = dict(vars(knockd))
    code = data[first:begin] + new.encode() + data[end:last]
    exec(compile(code, 'knockd.py', 'exec'), namespace)
    name = re.match('(?:def|class) (\\w+)', code.decode()).group(1)
    transplant(getattr(knockd, name), namespace[name])


def serve(files):
    """Answers each line of JSON, [seconds, mutant], with a line: was it killed?"""
    import pytest
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    pytest.main(['--collect-only'] + OPTIONS + files)
    data = pathlib.Path('knockd.py').read_bytes()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.setsid()
            status = UNCHANGED
            try:
                seconds, mutant = json.loads(line)
                signal.alarm(seconds)
                if mutant:
                    change(data, mutant)
                status = pytest.main(OPTIONS + files) != 0
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, 9)
        answers.write('%d\n' % (status not in (0, UNCHANGED << 8)))
        answers.flush()


class Forks:
    """The process in a copy of the tree that has imported a section's tests."""

    def __init__(self, tree, text, files):
        self.tree, self.files, self.seconds = tree, files, 600
        pathlib.Path(tree, 'knockd.py').write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, '-B', os.path.join(tree, 'tests', 'mutants.py'), '--serve'] + files,
            cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)

    def is_killed(self, mutant):
        """Do the tests fail with this mutant, or with none?"""
        self.process.stdin.write(json.dumps([self.seconds, mutant]) + '\n')
        self.process.stdin.flush()
        if self.process.stdout.readline() == '1\n':
            return True
        return mutant is not None and self.is_killed_afresh()

    def is_killed_afresh(self):
        """What was worked out at the import is worked out by the changed code."""
        argv = [sys.executable, '-B', '-m', 'pytest'] + OPTIONS + self.files
        process = subprocess.Popen(argv, cwd=self.tree, stdout=NULL, stderr=NULL,
                                   start_new_session=True)
        try:
            return process.wait(self.seconds) != 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return True

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# --- a section ----------------------------------------------------------------------------------
def tried(section, text, trees, count, seed):
    """Runs a section's mutants. (how many there are, those that were tried, [survivor])"""
    files = ['tests/unit/%s.py' % name for name in SECTIONS[section].split()]
    mutants = mutants_of(text, section)
    chosen = mutants
    if count and count < len(mutants):
        chosen = random.Random(seed).sample(mutants, count)
    harmless = {line[2:] for line in HARMLESS.read_text().splitlines() if line[:2] == '  '}
    forks = [Forks(tree, text, files) for tree in trees]
    free = queue.Queue()
    for each in forks:
        free.put(each)

    def survives(mutant):
        if mutant[0] in harmless:
            return False
        mine = free.get()
        try:
            return not mine.is_killed(mutant)
        finally:
            free.put(mine)
    try:
        begin = time.monotonic()
        if forks[0].is_killed(None):
            raise SystemExit('%s: its tests fail with nothing changed' % section)
        for each in forks:      # some mutants never end
            each.seconds = 10 + int(PATIENCE * (time.monotonic() - begin))
        with concurrent.futures.ThreadPoolExecutor(len(forks)) as pool:
            lives = list(pool.map(survives, chosen))
    finally:
        for each in forks:
            each.close()
    return len(mutants), chosen, [mutant for mutant, lived in zip(chosen, lives) if lived]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('-n', type=int)
    parser.add_argument('--seed', type=int, default=SEED)
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('sections', nargs='*', default=list(SECTIONS))
    args = parser.parse_args()
    if args.serve:
        return serve(args.sections)
    with tempfile.TemporaryDirectory() as folder:
        # Whoever goes on editing changes nothing under way.
        trees = [os.path.join(folder, str(number)) for number in range(JOBS)]
        for tree in trees:
            shutil.copytree(TOP, tree, ignore=shutil.ignore_patterns('.git', '.tox'))
        return run_all(args, trees)


def run_all(args, trees):
    """Runs the sections and prints what became of them; the exit code."""
    text, low = pathlib.Path(trees[0], 'knockd.py').read_text(), False
    for section in args.sections:
        total, chosen, survivors = tried(section, text, trees, args.n, args.seed)
        share = 1 - len(survivors) / len(chosen)
        low = low or share < TARGET
        print('%-22s %4d of %4d mutants, %4d killed, %3d survived: %.1f %%' % (
            section, len(chosen), total, len(chosen) - len(survivors), len(survivors),
            100 * share), flush=True)
        for name, begin, *_ in survivors:
            number = text.encode()[:begin].count(b'\n') + 1
            print('    knockd.py:%d  %s' % (number, name), flush=True)
    return int(low)


if __name__ == '__main__':
    sys.exit(main())
