"""Makes a Python look like OpenWrt's python3-light: what that leaves out cannot be imported.

With this folder on PYTHONPATH every Python imports this file when it starts (`site` does that),
and so do the ones it starts in turn. Modules that python3-light has but that need one of these
(pathlib before 3.13, ssl, http.client, ...) then fail by themselves, as they do on the router.
"""

import sys

# openwrt/packages, lang/python/python3: what each package other than python3-light takes away.
ABSENT = frozenset("""
    asyncio _asyncio
    cgi cgitb
    _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw unicodedata
    ctypes _ctypes _ctypes_test
    dbm _dbm _gdbm
    decimal _decimal _pydecimal
    distutils
    email
    lib2to3
    logging
    lzma _lzma
    multiprocessing _multiprocessing _posixshmem
    curses _curses _curses_panel
    _hashlib _ssl
    doctest pydoc pydoc_data
    readline
    sqlite3 _sqlite3
    unittest
    urllib
    uuid _uuid
    ensurepip venv
    xml xmlrpc _elementtree pyexpat
    idlelib tkinter _tkinter turtledemo webbrowser _osx_support test
    pip setuptools pkg_resources
""".split())


class Absent:
    """First on sys.meta_path: answers for the absent modules, built-in and frozen ones included."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split('.')[0] in ABSENT:
            raise ModuleNotFoundError('No module named %r (python3-light)' % name, name=name)


def forget(absent):
    """Takes away what `site` has imported already (.pth files of a virtual environment do)."""
    for name in list(sys.modules):
        if name.split('.')[0] in absent:
            del sys.modules[name]


sys.meta_path.insert(0, Absent)
forget(ABSENT)
