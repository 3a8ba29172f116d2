"""What a command of a script says, without a process of its own for each."""

import contextlib
import io
import os
import subprocess
from unittest import mock

from compiled import started


def answered(script, *arguments, stdin=''):
    """(exit code, standard output, standard error). script: the module, imported."""
    if os.environ.get('KNOCK_LIGHT') == '1':    # only children are restricted
        return answered_by_a_process(script, *arguments, stdin=stdin)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
            mock.patch('sys.stdin', io.StringIO(stdin)), \
            mock.patch('os.isatty', lambda descriptor: False):
        try:
            code = script.main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()


def answered_by_a_process(script, *arguments, stdin=''):
    """The same of one that starts, answers and ends."""
    process = subprocess.Popen(
        started(script.__file__) + list(arguments), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(stdin.encode())
    return process.returncode, out.decode(), err.decode()
