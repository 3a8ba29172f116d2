"""Every test that the threat model names is there."""

import glob
import os
import re

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def test_the_threat_model_names_tests_that_exist():
    readme = read(os.path.join(os.path.dirname(TESTS), 'README.md'))
    named = set(re.findall(r'`(test_\w+)`', readme))
    there = {name for path in glob.glob(os.path.join(TESTS, '*', 'test_*.py'))
             for name in re.findall(r'^def (test_\w+)', read(path), re.M)}
    assert len(named) > 30
    assert named - there == set()
