"""A script compiled once for all commands of a session: compiling takes longer than most do."""

import atexit
import functools
import os
import py_compile
import shutil
import tempfile


@functools.lru_cache()
def compiled(script):
    """The path of the script's compiled code."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    name = os.path.basename(script) + 'c'
    return py_compile.compile(script, os.path.join(folder, name), doraise=True)
