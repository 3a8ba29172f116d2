"""KNOCK_NO_SKIP=1, which .ci/run sets, fails a session that skipped an end-to-end test."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel         # they say nothing of the interpreter

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PASSES = 'def test_it():\n    pass\n'
SKIPS = 'import pytest\n\ndef test_it():\n    pytest.skip("no namespaces")\n'
SKIPS_AS_MODULE = 'import pytest\n\npytest.skip("no namespaces", allow_module_level=True)\n'


def session(folder, environment, **files):
    """Runs pytest over tests/unit and tests/e2e with the given texts; returns code and output."""
    folder = str(folder)
    shutil.copy(os.path.join(TESTS, 'conftest.py'), folder)
    for kind, text in files.items():
        os.mkdir(os.path.join(folder, kind))
        with open(os.path.join(folder, kind, 'test_%s_sample.py' % kind), 'w') as out:
            out.write(text)
    clean = {name: value for name, value in os.environ.items()
             if name != 'PYTHONPATH' and not name.startswith(('KNOCK_', 'PYTEST_'))}
    clean.update(environment)
    process = subprocess.Popen(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', folder], cwd=folder,
        env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode()
    return process.returncode, out


@pytest.mark.parametrize('sample, complaint', [
    (SKIPS, '1 end-to-end tests were skipped'),
    (SKIPS_AS_MODULE, '1 end-to-end tests were skipped'),
    ('', 'no end-to-end test ran'),
])
def test_skipped_or_absent_end_to_end_tests_fail_the_session(tmpdir, sample, complaint):
    code, out = session(tmpdir, {'KNOCK_NO_SKIP': '1'}, unit=PASSES, e2e=sample)
    assert code == 1
    assert 'FAILED by KNOCK_NO_SKIP=1: ' + complaint in out


def test_end_to_end_tests_that_ran_pass_the_session(tmpdir):
    code, out = session(tmpdir, {'KNOCK_NO_SKIP': '1'}, unit=SKIPS, e2e=PASSES)
    assert (code, 'KNOCK_NO_SKIP' in out) == (0, False)


def test_without_the_variable_a_skip_is_no_failure(tmpdir):
    assert session(tmpdir, {}, unit=PASSES, e2e=SKIPS)[0] == 0


def test_the_tally_gets_one_line_a_session(tmpdir):
    tally = str(tmpdir.join('tally'))
    session(tmpdir, {'KNOCK_TALLY': tally, 'TOX_ENV_NAME': 'py'}, unit=PASSES, e2e=SKIPS)
    with open(tally) as lines:
        assert lines.read() == 'py 1 0 1 Skipped: no namespaces\n'
