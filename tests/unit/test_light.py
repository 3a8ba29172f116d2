"""The python3-light blocker of tests/light really blocks, in parents and in children."""

import functools
import os
import subprocess
import sys

import pytest

from test_static import IMPORTABLE

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ABSENT = tuple("""
    _hashlib _ssl _ctypes ctypes unicodedata logging urllib urllib.parse uuid decimal _decimal email
    unittest asyncio multiprocessing xml.dom distutils lzma readline sqlite3 pydoc doctest
    venv curses dbm test ensurepip
""".split())


def light(code):
    """Runs code in a restricted Python and returns what it printed, trailing space removed."""
    environment = dict(os.environ, PYTHONPATH=os.path.join(TESTS, 'light'))
    process = subprocess.Popen([sys.executable, '-c', code], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode().strip()


TRY_IMPORT = """
try:
    import {0}
    print('there')
except ImportError:
    print('absent')
"""


@functools.lru_cache(maxsize=None)
def tried(names):
    """{name: 'there' or 'absent'}, all of them by one restricted Python."""
    said = light(''.join(TRY_IMPORT.format(name) for name in names)).split()
    return dict(zip(names, said))


@pytest.mark.parametrize('name', ABSENT)
def test_absent_module_cannot_be_imported(name):
    assert tried(ABSENT)[name] == 'absent'


@pytest.mark.parametrize('name', ['_hashlib', 'urllib', 'logging', '_ctypes'])
def test_absent_module_cannot_be_imported_in_a_child_either(name):
    code = 'import subprocess, sys; subprocess.check_call([sys.executable, "-c", %r])'
    assert light(code % TRY_IMPORT.format(name)) == 'absent'


def test_every_module_the_scripts_may_import_is_there():
    assert light('import %s; print("all there")' % ', '.join(sorted(IMPORTABLE))) == 'all there'


def test_one_of_the_own_sha2_modules_is_there():
    assert 'there' in [light(TRY_IMPORT.format(name)) for name in ('_sha256', '_sha2')]


BROKEN = 'ssl', 'http.client', 'encodings.idna', 'concurrent.futures.process', 'smtplib'
if sys.version_info < (3, 13):
    BROKEN += ('pathlib',)


@pytest.mark.parametrize('name', BROKEN)
def test_module_that_needs_an_absent_one_is_broken_as_on_the_router(name):
    assert tried(BROKEN)[name] == 'absent'


def test_hash_functions_work_without_openssl():
    code = """
import hashlib, hmac
key, message = bytes.fromhex('0b') * 20, b'Hi There'
print(hmac.new(key, message, 'sha256').hexdigest()[:16])
print(hmac.new(key, message, hashlib.sha1).hexdigest()[:16])
print(hmac.compare_digest(b'a', b'a'), hasattr(hashlib, 'scrypt'))
"""
    # RFC 4231 test case 1 and RFC 2202 test case 1
    assert light(code).split() == ['b0344c61d8db3853', 'b617318655057264', 'True', 'False']


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', 'localhost'])
def test_the_idna_trap_is_there_for_text_and_not_for_bytes(host):
    code = """
import socket
try:
    socket.getaddrinfo(%r, 80)
    print('no trap')
except LookupError as error:
    print(error)
print(len(socket.getaddrinfo(b%r, 80)) > 0)
"""
    assert light(code % (host, host)).splitlines() == ['unknown encoding: idna', 'True']


def test_the_blocker_is_what_blocks():
    """Without it this Python has what the tests above found absent."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    subprocess.check_call([sys.executable, '-c', 'import logging, urllib.parse, unittest'],
                          env=environment)


@pytest.mark.skipif(os.environ.get('KNOCK_LIGHT') != '1', reason='only in the light environment')
def test_children_of_this_session_are_restricted_without_being_asked():
    code = TRY_IMPORT.format('urllib')
    assert subprocess.check_output([sys.executable, '-c', code]).strip() == b'absent'
