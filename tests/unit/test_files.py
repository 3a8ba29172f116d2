"""Files that are whole or not there, whoever else writes beside them, and the lock of an edit."""
import contextlib
import errno
import os
import stat
import subprocess
import sys

import pytest

import knockd
from bytes_of import read, write
from compiled import folder_of



@pytest.fixture
def calls(monkeypatch):
    """The order of fsync and rename, and what could be read at each moment."""
    made = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        made.append(('fsync', 'folder' if folder else os.fstat(descriptor).st_size))
        fsync(descriptor)

    def watched_rename(source, target):
        made.append(('rename', os.path.basename(target), read(source)))
        rename(source, target)
    monkeypatch.setattr(os, 'fsync', watched_fsync)
    monkeypatch.setattr(os, 'rename', watched_rename)
    return made


# --- replace_file -------------------------------------------------------------------------------
def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(tmp_path, calls):
    path = write(str(tmp_path / 'file'), b'before')
    knockd.replace_file(path, b'after!!')
    assert calls == [('fsync', 7), ('rename', 'file', b'after!!'), ('fsync', 'folder')]
    assert read(path) == b'after!!' and os.listdir(str(tmp_path)) == ['file']


def test_a_new_file_is_closed_to_others(tmp_path):
    old = os.umask(0)
    try:
        knockd.replace_file(str(tmp_path / 'file'), b'secret')
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(str(tmp_path / 'file')).st_mode) == 0o600


def test_no_descriptor_stays_open(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    before = len(os.listdir('/proc/self/fd'))
    knockd.replace_file(str(tmp_path / 'file'), b'data')
    for fails in ('rename', 'fsync', 'pwrite'):
        with monkeypatch.context() as broken, contextlib.suppress(OSError):
            broken.setattr(os, fails, refuse)
            knockd.replace_file(str(tmp_path / 'file'), b'data')
    assert len(os.listdir('/proc/self/fd')) == before


@pytest.mark.parametrize('fails', ['fsync', 'rename', 'pwrite'])
def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch, fails):
    def refuse(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    path = write(str(tmp_path / 'file'), b'before')
    monkeypatch.setattr(os, fails, refuse)
    with pytest.raises(OSError):
        knockd.replace_file(path, b'after')
    assert read(path) == b'before' and os.listdir(str(tmp_path)) == ['file']


def test_a_write_that_is_cut_short_is_a_failure(tmp_path, monkeypatch):
    pwrite = os.pwrite
    path = write(str(tmp_path / 'file'), b'before')
    monkeypatch.setattr(os, 'pwrite', lambda to, data, at: pwrite(to, data[:-1], at))
    with pytest.raises(OSError, match='No space left'):
        knockd.replace_file(path, b'after')
    assert read(path) == b'before'


def test_a_failure_to_sync_the_folder_is_a_failure(tmp_path, monkeypatch):
    """The rename may not be on disk then, so nothing may be opened for it."""
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, 'Input/output error')
        fsync(descriptor)
    monkeypatch.setattr(os, 'fsync', refuse)
    with pytest.raises(OSError):
        knockd.replace_file(str(tmp_path / 'file'), b'after')


@pytest.mark.parametrize('random', [True, False])
def test_what_another_user_lays_beside_it_stops_nothing(tmp_path, monkeypatch, random):
    """In a sticky folder; a name that was guessed is an error, but never followed or written."""
    victim, path = write(str(tmp_path / 'victim'), b'dear'), str(tmp_path / 'file')
    os.symlink(victim, path + '.new')
    if not random:
        monkeypatch.setattr(os, 'urandom', bytes)
        os.symlink(victim, '%s.%d-%s.new' % (path, os.getpid(), '00' * 8))
        with pytest.raises(FileExistsError):
            knockd.replace_file(path, b'after')
        assert read(victim) == b'dear'
        monkeypatch.undo()
    knockd.replace_file(path, b'after')
    assert read(path) == b'after' and read(victim) == b'dear'


def dead_process():
    process = subprocess.Popen(['true'])
    process.wait()
    return process.pid


def test_what_a_crash_left_behind_goes_and_what_is_in_use_stays(tmp_path):
    path = str(tmp_path / 'file')
    stale = '%s.%d-%s.new' % (path, dead_process(), '5a' * 8)
    others = ['%s.%d-%s.new' % (path, os.getpid(), '5a' * 8), path + '.newer', path + '.1-x.new',
              '%s.%d-%s.new' % (path + 'r', dead_process(), '5a' * 8)]
    for name in [stale] + others:
        write(name, b'a longer text than the one that is written now')
    knockd.replace_file(path, b'short')
    assert read(path) == b'short'
    assert sorted(os.listdir(str(tmp_path))) == sorted(
        os.path.basename(name) for name in others + [path])


def test_a_file_without_a_folder_in_its_name_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    knockd.replace_file('file', b'here')
    assert read(str(tmp_path / 'file')) == b'here'


# --- the lock of an edit ------------------------------------------------------------------------
ADD = '''
import sys
sys.path.insert(0, %r)
import knockd
path, line = sys.argv[1:]
with knockd.locked(path):
    text = knockd.read_file(path)
    knockd.replace_file(path, (text + line + '\\n').encode())
'''


def test_twenty_edits_at_once_are_all_in_the_file_and_leave_nothing_beside_it(tmp_path):
    path = write(str(tmp_path / 'file'), b'')
    code = ADD % folder_of(knockd.__file__)
    crowd = [subprocess.Popen([sys.executable, '-c', code, path, str(number)])
             for number in range(20)]
    assert [process.wait() for process in crowd] == [0] * 20
    assert sorted(map(int, read(path).split())) == list(range(20))
    assert os.listdir(str(tmp_path)) == ['file']


def test_two_names_of_a_file_have_one_lock(tmp_path, monkeypatch):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    clock = iter(range(0, 1000, 9))
    monkeypatch.setattr(knockd.time, 'monotonic', lambda: next(clock))
    with knockd.locked(str(tmp_path / 'real' / 'file')):
        with pytest.raises(knockd.KnockError, match='another command is editing'):
            with knockd.locked(str(tmp_path / 'link' / 'file')):
                pass
    with knockd.locked(str(tmp_path / 'link' / 'file')):
        pass


def test_the_lock_ends_with_an_error_and_with_the_process(tmp_path):
    path = str(tmp_path / 'file')
    with pytest.raises(ZeroDivisionError):
        with knockd.locked(path):
            raise ZeroDivisionError
    killed = subprocess.Popen([sys.executable, '-c', (
        'import sys; sys.path.insert(0, %r); import knockd\n'
        'with knockd.locked(%r):\n  print("held", flush=True); sys.stdin.read()') % (
            folder_of(knockd.__file__), path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    killed.stdout.readline()
    killed.kill()
    killed.communicate()
    with knockd.locked(path):
        pass


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path, capsys):
    config = str(tmp_path / 'none' / 'file')
    assert knockd.main(['--config', config, 'rename', 'anna', 'bert']) == 1
    assert capsys.readouterr().err == 'knockd: %s: No such file or directory\n' % (
        tmp_path / 'none')
