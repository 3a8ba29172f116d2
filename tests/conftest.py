"""What all tests share: the import path, the light interpreter, the tally and the no-skip rule."""

import os
import sys

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
LIGHT = os.path.join(TESTS, 'light')
sys.path.insert(0, os.path.dirname(TESTS))

if os.environ.get('KNOCK_LIGHT') == '1':
    # pytest itself needs what python3-light lacks, so only children are restricted: every Python
    # started with this environment imports tests/light/sitecustomize.py, and so do its children.
    os.environ['PYTHONPATH'] = LIGHT


def is_end_to_end(report):
    """True for what stands under tests/e2e or tests/vm, a module skipped as a whole included."""
    folders = report.nodeid.replace(os.sep, '/').split('::')[0].split('/')
    return 'e2e' in folders or 'vm' in folders


def counted(session):
    """Returns the outcome of every test: dict of passed, failed and skipped reports."""
    stats = session.config.pluginmanager.get_plugin('terminalreporter').stats
    return {
        'passed': stats.get('passed', []) + stats.get('xfailed', []),
        'failed': stats.get('failed', []) + stats.get('error', []) + stats.get('xpassed', []),
        'skipped': stats.get('skipped', []),
    }


def no_skip_complaint(outcomes):
    """Returns why KNOCK_NO_SKIP=1 fails this session, or None."""
    skipped = sum(is_end_to_end(report) for report in outcomes['skipped'])
    if skipped:
        return '%d end-to-end tests were skipped' % skipped
    if not any(is_end_to_end(report) for report in outcomes['passed'] + outcomes['failed']):
        return 'no end-to-end test ran'
    return None


def tally_line(outcomes):
    """Returns 'environment passed failed skipped', and why an end-to-end test was skipped."""
    line = [os.environ.get('TOX_ENV_NAME', 'pytest')]
    line += [str(len(outcomes[kind])) for kind in ('passed', 'failed', 'skipped')]
    reasons = [str(report.longrepr[2]) for report in outcomes['skipped'] if is_end_to_end(report)]
    return ' '.join(line + reasons[:1])


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """Adds this session to the tally of tests/run; with KNOCK_NO_SKIP=1 a skip is a failure."""
    if session.config.option.collectonly:
        return
    outcomes = counted(session)
    if os.environ.get('KNOCK_TALLY'):
        with open(os.environ['KNOCK_TALLY'], 'a') as out:
            out.write(tally_line(outcomes) + '\n')
    if os.environ.get('KNOCK_NO_SKIP') == '1' and no_skip_complaint(outcomes):
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Says in one line what KNOCK_NO_SKIP=1 does not let pass."""
    if os.environ.get('KNOCK_NO_SKIP') == '1' and not terminalreporter.config.option.collectonly:
        complaint = no_skip_complaint(counted(terminalreporter._session))
        if complaint:
            terminalreporter.write_line('FAILED by KNOCK_NO_SKIP=1: ' + complaint, red=True)
