"""The fixtures of tests/e2e, for the README's playbook and user-data: `tox -e provision`."""

import importlib.util
import os
import sys

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
E2E = os.path.join(TESTS, 'e2e')
sys.path[:0] = [TESTS, E2E, os.path.join(TESTS, 'unit')]

spec = importlib.util.spec_from_file_location('e2e_fixtures', os.path.join(E2E, 'conftest.py'))
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
wire, address = fixtures.wire, fixtures.address
services, daemon = fixtures.services, fixtures.daemon
