"""Nothing is imported from a folder that others can write, whichever way a script is started.

A trap lies under the name of every module that the scripts import, and of every one that those
import in turn. It writes down that it ran, and with which name.
"""
import ast
import functools
import os
import shutil
import subprocess
import sys

import pytest

import knockd

TOP = os.path.dirname(os.path.abspath(knockd.__file__))
SECRET = knockd.encode_secret(bytes(range(32)))
CONFIG = '''[server]
id = home
hide = tcp/22
on_open = /bin/echo "a b"
[client anna]
secret = %s
expires = 2039-01-31
''' % SECRET
LINE = 'knock://anna:%s@192.0.2.1?id=home' % SECRET
TRAP = '''import sys
with open(%r, 'a') as file:
    file.write('%s ' + __name__ + '\\n')
'''
SCRIPTS = ['knockd.py', 'knock.py']


@functools.lru_cache()
def named_in(script):
    """The modules that a script imports, early or late."""
    with open(os.path.join(TOP, script)) as file:
        tree = ast.parse(file.read())
    return frozenset(alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                     for alias in node.names)


@functools.lru_cache()
def loaded_by(modules):
    """All modules that a Python holds which has imported these, less what it holds anyway."""
    code = 'import sys; held = set(sys.modules); import %s; print(*set(sys.modules) - held)'
    command = [sys.executable, '-I', '-c', code % ', '.join(sorted(modules))]
    return set(subprocess.check_output(command).decode().split())


def lay_traps(folder, modules):
    """A module or a package of each name; returns the file that tells which ran."""
    told = str(folder / 'sprung')
    for name in sorted({name.partition('.')[0] for name in modules}):
        (folder / (name + '.py')).write_text(TRAP % (told, name))
        package = folder / name
        package.mkdir()
        (package / '__init__.py').write_text(TRAP % (told, name + '/'))
        (package / 'abc.py').write_text(TRAP % (told, name + '.abc'))
    return told


@pytest.fixture(params=SCRIPTS)
def place(request, tmp_path):
    """(script elsewhere, folder with traps and a copy of the script, arguments, what told)"""
    script = request.param
    config = tmp_path / 'knockd.ini'
    config.write_text(CONFIG)
    config.chmod(0o600)
    elsewhere, folder = tmp_path / 'elsewhere', tmp_path / 'stranger'
    elsewhere.mkdir()
    folder.mkdir()
    for where in (elsewhere, folder):
        shutil.copy(os.path.join(TOP, script), str(where / script))
    modules = named_in(script)
    told = lay_traps(folder, modules | loaded_by(modules) | {
        're', 'enum', 'keyword', 'heapq', 'collections', 'abc', 'gettext', 'copyreg'})
    folder.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(str(folder), 12345, 12345)
    arguments = ['--config', str(config), 'check']
    if script == 'knock.py':
        arguments = ['--print=sh', LINE]
    return str(elsewhere / script), folder, arguments, told


def start(command, folder, **settings):
    """Runs it in the folder with the traps; the script must have done its work."""
    process = subprocess.Popen(command, cwd=str(folder), stdin=settings.pop('stdin', None),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict({'PATH': os.environ['PATH']}, **settings))
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)


def sprung(told):
    if not os.path.exists(told):
        return []
    with open(told) as file:
        return file.read().split('\n')[:-1]


def take_out_early(folder, *options):
    """What Python imports before any script begins, no script can guard: no traps there."""
    empty = folder / 'empty'
    empty.mkdir()
    name = 'innocent' if options else 'innocent.py'
    (empty / 'innocent.py').write_text('import sys; print(*sys.modules)')
    command = [sys.executable] + list(options) + [name]
    early = subprocess.check_output(command, cwd=str(empty)).decode().split()
    for name in {name.partition('.')[0] for name in early}:
        if (folder / name).is_dir():
            shutil.rmtree(str(folder / name))
            (folder / (name + '.py')).unlink()


def by_path(script, folder, arguments):
    start([sys.executable, script] + arguments, folder)


def by_its_own_folder(script, folder, arguments):
    start([sys.executable, os.path.basename(script)] + arguments, folder)


def by_a_link(script, folder, arguments):
    link = str(folder / 'link')
    os.symlink(script, link)
    start([sys.executable, link] + arguments, folder)


def by_a_link_to_the_strangers_copy(script, folder, arguments):
    link = os.path.join(os.path.dirname(script), 'link')
    os.symlink(str(folder / os.path.basename(script)), link)
    start([sys.executable, link] + arguments, os.path.dirname(script))


def from_a_file_on_standard_input(script, folder, arguments):
    with open(script) as file:
        start([sys.executable, '-'] + arguments, folder, stdin=file)


def from_a_pipe(script, folder, arguments):
    command = 'cat "$0" | "$@"'
    start(['sh', '-c', command, script, sys.executable, '-'] + arguments, folder)


def as_a_module(script, folder, arguments):
    take_out_early(folder, '-m')
    module = os.path.basename(script)[:-3]
    start([sys.executable, '-m', module] + arguments, folder)


def with_the_folder_in_pythonpath(script, folder, arguments):
    take_out_early(folder)
    start([sys.executable, script] + arguments, os.path.dirname(script), PYTHONPATH=str(folder))


def with_an_empty_part_in_pythonpath(script, folder, arguments):
    take_out_early(folder)
    start([sys.executable, script] + arguments, folder, PYTHONPATH=':/nowhere')


def from_byte_code(script, folder, arguments):
    compiled = str(folder / 'compiled.pyc')
    code = 'import py_compile, sys; py_compile.compile(*sys.argv[1:], doraise=True)'
    subprocess.check_call([sys.executable, '-I', '-c', code, script, compiled])
    start([sys.executable, compiled] + arguments, folder)


def without_site(script, folder, arguments):
    start([sys.executable, '-S', script] + arguments, folder)


WAYS = [by_path, by_its_own_folder, by_a_link, by_a_link_to_the_strangers_copy,
        from_a_file_on_standard_input, from_a_pipe, as_a_module, from_byte_code, without_site,
        with_the_folder_in_pythonpath, with_an_empty_part_in_pythonpath]


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
def test_no_trap_is_sprung(place, way):
    script, folder, arguments, told = place
    way(script, folder, arguments)
    assert sprung(told) == []


def test_the_traps_work(tmp_path):
    """A script that does not look after itself springs them."""
    told = lay_traps(tmp_path, {'shlex', 'collections.abc'})
    (tmp_path / 'careless.py').write_text('import shlex\n')
    start([sys.executable, 'careless.py'], tmp_path)
    assert sprung(told) == ['shlex/ shlex']
