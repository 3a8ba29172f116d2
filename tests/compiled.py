"""A script compiled once for all commands of a session: compiling takes longer than most do."""

import atexit
import functools
import os
import py_compile
import shutil
import sys
import tempfile

# Goes on as if Python had read the script itself: same names, same arguments.
START = '''
import marshal, sys
with open(sys.argv[1], 'rb') as file:
    code = marshal.loads(file.read()[%d:])
del sys.argv[:2]
__file__ = sys.argv[0]
exec(code)
'''
HEADER = 16 if sys.version_info >= (3, 7) else 12       # PEP 552


@functools.lru_cache(maxsize=None)
def compiled(script):
    """The path of the script's compiled code."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    with open(os.path.join(folder, 'start.py'), 'w') as out:
        out.write(START % HEADER)
    name = os.path.basename(script) + 'c'
    return py_compile.compile(script, os.path.join(folder, name), doraise=True)


def folder_of(script):
    """The folder from which the script's compiled code is imported by its name."""
    return os.path.dirname(compiled(script))


def started(script):
    """The argument list that runs the script, but need not compile it."""
    start = os.path.join(folder_of(script), 'start.py')
    return [sys.executable, start, compiled(script), script]
