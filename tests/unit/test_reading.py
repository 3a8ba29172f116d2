"""What reading the two scripts costs, measured; and that each is read once, from top to bottom.

A statement is counted by its nodes in the syntax tree, without those of its body: `if`, `for` and
`with` are counted by their heads alone. Tables are not counted, nor imports nor docstrings.
`python3 tests/unit/test_reading.py [FILE ...]` prints the figures.
"""

import ast
import collections
import io
import os
import re
import symtable
import sys
import tokenize

import pytest

pytestmark = pytest.mark.kernel         # the text is the same whoever reads it
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# So much, and no more, has to be read by whoever wants to be sure of it: what comes in must be
# worth what it costs him, or pay for itself by what goes out.
TOKENS = {'knockd.py': 54580, 'knock.py': 12000}
# The house, from top to bottom: the pure sections, then the edges, then what is made of both.
TITLES = {
    'knockd.py': """
        shared with knock.py, end of the part shared with knock.py, values, config, ledger rules,
        filter compiler, packet parser, sequences, codes, credentials of a step, openings, judge,
        the box and its decoys, nft text, iptables text, edges: the clock, edges: the log,
        edges: files, edges: commands, edges: the file of the ledger, edges: sockets and events,
        keeper, probation, daemon, daemon, checks, status and lists, administration, watch,
        selftest,
        installer, command line""",
    'knock.py': """
        shared with knock.py, end of the part shared with knock.py, knock: what is sent,
        knock: the line, knock: a fleet, knock: what others answer, knock: a line of shell,
        knock: why it did not open, knock: a page for a phone, edges: what people see,
        edges: names and sockets, edges: the clock, edges: connections, edges: the knock,
        edges: the service, edges: saved lines, command line"""}
COLUMNS = 90
FUNCTION_LINES = 60
STATEMENT = {'median': 6, 'p90': 12, 'p99': 24, 'most': 35}         # nodes
OWN_COMMENTS = 4.0              # lines that are a comment, in a hundred lines of code
CLASS_ATTRIBUTES = 12
PLAIN_PATTERN = 60              # characters of a regular expression that needs no words

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BODIES = ('body', 'orelse', 'finalbody', 'handlers')
# They say how a node is used; a reader does not read them.
SILENT = (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENCODING, tokenize.ENDMARKER)
CONSTANTS = (ast.Constant,) if sys.version_info >= (3, 8) else (
    ast.Str, ast.Bytes, ast.Num, ast.NameConstant)
VALUE = 'value' if sys.version_info >= (3, 8) else 's'         # of a text in the tree
TABLES = (ast.Dict, ast.Tuple, ast.List, ast.BinOp) + CONSTANTS


def read(name):
    with io.open(os.path.join(TOP, name), encoding='utf-8') as source:
        return source.read()


def is_table(node):
    return isinstance(node, ast.Assign) and isinstance(node.value, TABLES)


def counted_statements(tree):
    """All statements of a module but its tables, its imports and its docstrings."""
    tables = [node for node in tree.body if is_table(node)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or node in tables:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, CONSTANTS):
            continue
        yield node


def own_nodes(statement):
    """How many nodes a statement has without the statements in its body."""
    body = [child for name in BODIES for child in getattr(statement, name, None) or ()]
    count, waiting = 0, [statement]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, SILENT):
            count += 1
        waiting += [child for child in ast.iter_child_nodes(node) if child not in body]
    return count


def statement_sizes(source):
    """[(nodes, line)], the smallest first."""
    return sorted((own_nodes(node), node.lineno) for node in counted_statements(ast.parse(source)))


def token_count(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type not in NO_CODE for token in tokens)


def own_comments(source):
    """Lines that are a comment, in a hundred lines of code."""
    lines = [line.strip() for line in source.splitlines()]
    comments = [line for line in lines if line.startswith('#')]
    code = [line for line in lines if line and not line.startswith('#')]
    return 100.0 * len(comments) / len(code)


def last_line(node):
    return max(getattr(inner, 'end_lineno', None) or getattr(inner, 'lineno', 0)
               for inner in ast.walk(node))


def function_lengths(source):
    """[(lines, name)], the longest last."""
    return sorted((last_line(node) - node.lineno + 1, node.name)
                  for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS))


def class_attributes(source):
    """{class: how many attributes its methods set}"""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found[node.name] = len({
                inner.attr for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
                and isinstance(inner.value, ast.Name) and inner.value.id == 'self'})
    return found


# --- the limits, each a list of what is beyond it

def costly_statements(source):
    sizes = statement_sizes(source)
    counts = [count for count, _ in sizes]
    figures = {'median': counts[len(counts) // 2], 'p90': counts[int(len(counts) * .9)],
               'p99': counts[int(len(counts) * .99)], 'most': counts[-1]}
    problems = ['%s is %d nodes' % (name, figures[name]) for name in sorted(figures)
                if figures[name] > STATEMENT[name]]
    return problems + ['line %d has a statement of %d nodes' % (line, count)
                       for count, line in sizes if count > STATEMENT['most']]


def wide_lines(source):
    return ['line %d has %d columns' % (number, len(line))
            for number, line in enumerate(source.splitlines(), 1) if len(line) > COLUMNS]


def long_functions(source):
    return ['%s has %d lines' % (name, lines) for lines, name in function_lengths(source)
            if lines > FUNCTION_LINES]


def large_classes(source):
    return ['%s sets %d attributes' % (name, count)
            for name, count in sorted(class_attributes(source).items())
            if count > CLASS_ATTRIBUTES]


def choices_in_choices(source):
    """A conditional expression inside another."""
    return ['line %d' % node.lineno for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.IfExp)
            and any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)]


def few_comments(source):
    share = own_comments(source)
    return [] if share >= OWN_COMMENTS else ['%.1f in a hundred' % share]


def silent_patterns(source):
    """Long regular expressions with no comment on their line or the line above."""
    lines = source.splitlines()
    problems = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
                and function.value.id == 're'):
            continue
        for text in ast.walk(node):
            value = getattr(text, VALUE, None)
            if not isinstance(value, (str, bytes)) or len(value) <= PLAIN_PATTERN:
                continue
            around = lines[max(0, node.lineno - 2):last_line(node)]
            if not any('#' in line for line in around):
                problems.append('line %d: a pattern of %d characters' % (node.lineno, len(value)))
    return problems


# --- the house: sections in order

def sections(source):
    """[(title, first line)] of the banners `# --- title ---...`."""
    return [(match.group(1), source[:match.start()].count('\n') + 1)
            for match in re.finditer(r'(?m)^# --- ([^:\n-]+)', source)]


def top_names(node):
    """What a statement at the top level defines."""
    if isinstance(node, FUNCTIONS + (ast.ClassDef,)):
        return [node.name]
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    return [inner.id for target in targets if target is not None
            for inner in ast.walk(target) if isinstance(inner, ast.Name)]


def titles(source):
    """The sections' names; of an edge and a part of knock.py both words."""
    found = re.findall(r'(?m)^# --- ((?:edges: |knock: )?[^:\n-]+)', source)
    return [title.strip() for title in found]


def upward_uses(source):
    """Uses of a name, also inside a function, which a later section defines."""
    starts = [line for _, line in sections(source)]

    def section_of(line):
        return sum(start <= line for start in starts)
    defined = {}
    for node in ast.parse(source).body:
        for name in top_names(node):
            defined.setdefault(name, section_of(node.lineno))
    problems, tables = [], [symtable.symtable(source, 'script', 'exec')]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        here = section_of(table.get_lineno())
        for symbol in table.get_symbols():
            if table.get_type() == 'function' and symbol.is_global() \
                    and defined.get(symbol.get_name(), 0) > here:
                problems.append('line %d, %s uses %s' % (
                    table.get_lineno(), table.get_name(), symbol.get_name()))
    return sorted(problems)


LIMITS = [costly_statements, wide_lines, long_functions, large_classes, choices_in_choices,
          few_comments, silent_patterns, upward_uses]
BEYOND = [
    (costly_statements, 'a = f(%s)\n' % ', '.join('b%d' % number for number in range(40))),
    (wide_lines, 'a' * 91 + '\n'),
    (long_functions, 'def f():\n' + '    a()\n' * 60),
    (large_classes, 'class A:\n    def f(self):\n' + ''.join(
        '        self.a%d = 1\n' % number for number in range(13))),
    (choices_in_choices, 'a = 1 if b else 2 if c else 3\n'),
    (few_comments, 'a = 1\n' * 50 + '# one\n'),
    (silent_patterns, 'm = re.match(%r, t)\n' % ('a' * 61)),
    (upward_uses, '# --- one\ndef f():\n    return g()\n# --- two\ndef g():\n    pass\n'),
]
READABLE = '''
# --- one
# What this is for.
TABLE = {'a': 1, 'b': 2, 'c': 3, 'd': 4, 'e': 5, 'f': 6, 'g': 7, 'h': 8, 'i': 9, 'j': 10}
# --- two
def f(b):
    """Says so."""
    # prevents that
    if b in TABLE:
        return TABLE[b]
    return g(b)
def g(f):
    return f
'''


@pytest.mark.parametrize('limit,sample', BEYOND)
def test_the_limit_is_seen(limit, sample):
    assert limit(sample)


@pytest.mark.parametrize('limit', LIMITS)
def test_the_limit_lets_readable_text_be(limit):
    assert limit(READABLE) == []


def test_a_body_does_not_count_for_its_head():
    """if (1), the comparison (1) of two (2) names: 4; the call has 3 in a statement of 1."""
    sizes = statement_sizes('if a == b:\n    f(c)\n')
    assert sizes == [(4, 1), (4, 2)]


@pytest.mark.parametrize('limit', LIMITS)
@pytest.mark.parametrize('name', sorted(TOKENS))
def test_the_script_can_be_read(name, limit):
    assert limit(read(name)) == []


@pytest.mark.parametrize('name', sorted(TOKENS))
def test_the_sections_stand_in_their_order(name):
    assert titles(read(name)) == [' '.join(title.split()) for title in TITLES[name].split(',')]


@pytest.mark.parametrize('name', sorted(TOKENS))
def test_the_script_is_no_longer_than_one_can_read(name):
    assert token_count(read(name)) <= TOKENS[name]


def figures(source):
    sizes = [count for count, _ in statement_sizes(source)]
    lengths = function_lengths(source)
    attributes = class_attributes(source)
    largest = max(attributes, key=attributes.get) if attributes else '-'
    return collections.OrderedDict([
        ('tokens', token_count(source)), ('median', sizes[len(sizes) // 2]),
        ('p90', sizes[int(len(sizes) * .9)]), ('p99', sizes[int(len(sizes) * .99)]),
        ('most', sizes[-1]), ('comments', round(own_comments(source), 1)),
        ('wide', len(wide_lines(source))), ('longest function', lengths[-1]),
        ('median function', lengths[len(lengths) // 2][0]),
        ('class', (largest, attributes.get(largest, 0)))])


if __name__ == '__main__':
    for path in sys.argv[1:] or [os.path.join(TOP, name) for name in sorted(TOKENS)]:
        print(os.path.basename(path), ' '.join(
            '%s=%s' % (name, value) for name, value in figures(read(path)).items()))
