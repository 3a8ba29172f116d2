"""What touches the world: files that are whole or not there, the lock, a full disk, commands,
sockets that fail. Real files, processes and a real full disk; faults are put in by hand."""
import errno
import ipaddress
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

import pytest

import knockd

TOP = os.path.dirname(os.path.abspath(knockd.__file__))
CONFIG = '[server]\nid = home\nhide = tcp/22\nledger = %s/ledger.json\n'
SECRET = knockd.encode_secret(bytes(range(32)))


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def write(path, data, mode=0o600):
    with open(path, 'wb') as file:
        file.write(data)
    os.chmod(path, mode)
    return path


def empty_ledger():
    return knockd.parse_ledger('{"knockd": 1, "id": "home", "floor": 0, "keys": {}}', 'home')


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    told = []
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: told.append(text))
    return told


# --- replace_file -------------------------------------------------------------------------------
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


@pytest.mark.parametrize('fails', ['fsync', 'rename'])
def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch, fails):
    def refuse(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    path = write(str(tmp_path / 'file'), b'before')
    monkeypatch.setattr(os, fails, refuse)
    with pytest.raises(OSError):
        knockd.replace_file(path, b'after')
    assert read(path) == b'before' and os.listdir(str(tmp_path)) == ['file']


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


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    victim, path = write(str(tmp_path / 'victim'), b'dear'), str(tmp_path / 'file')
    os.symlink(victim, path + '.new')
    with pytest.raises(OSError):
        knockd.replace_file(path, b'after')
    assert read(victim) == b'dear'
    knockd.replace_file(path, b'after')
    assert read(path) == b'after' and read(victim) == b'dear'


def test_what_a_crash_left_behind_is_no_obstacle(tmp_path):
    path = str(tmp_path / 'file')
    write(path + '.new', b'a longer text than the one that is written now')
    knockd.replace_file(path, b'short')
    assert read(path) == b'short'


# --- the ledger's file --------------------------------------------------------------------------
@pytest.fixture
def ledger_file(tmp_path):
    made = knockd.LedgerFile(str(tmp_path / 'state' / 'ledger.json'))
    made.take()
    yield made
    os.close(made.lock)


HOLD = '''
import sys
sys.path.insert(0, %r)
import knockd
knockd.LedgerFile(%r).take()
print('held', flush=True)
sys.stdin.read()
'''


def holder(path):
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen([sys.executable, '-c', HOLD % (TOP, path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'held\n'
    return process


def end(process):
    process.kill()
    process.communicate()


def test_two_daemons_do_not_share_a_ledger(tmp_path):
    path = str(tmp_path / 'ledger.json')
    process = holder(path)
    try:
        assert read(path + '.lock').strip() == b'%d' % process.pid
        with pytest.raises(knockd.KnockError, match='another knockd.py') as caught:
            knockd.LedgerFile(path).take()
        assert caught.value.status == 1
        assert read(path + '.lock').strip() == b'%d' % process.pid, 'who failed wrote nothing'
    finally:
        end(process)
    after = knockd.LedgerFile(path)
    after.take()                            # kill -9 leaves no lock behind
    assert read(path + '.lock').strip() == b'%d' % os.getpid()
    os.close(after.lock)


def test_the_lock_is_held_for_the_life_of_the_process(ledger_file):
    ledger_file.save(knockd.Ledger('home'))
    with pytest.raises(knockd.KnockError):
        knockd.LedgerFile(ledger_file.path).take()


def test_a_program_that_we_start_does_not_inherit_the_lock(ledger_file):
    assert not os.get_inheritable(ledger_file.lock)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    victim, path = write(str(tmp_path / 'victim'), b'dear'), str(tmp_path / 'ledger.json')
    os.symlink(victim, path + '.lock')
    with pytest.raises(OSError):            # which main() says in a sentence
        knockd.LedgerFile(path).take()
    assert read(victim) == b'dear'


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    write(str(tmp_path / 'file'), b'')
    with pytest.raises(OSError) as raised:
        knockd.LedgerFile(str(tmp_path / 'file' / 'ledger.json')).take()
    assert raised.value.filename == str(tmp_path / 'file')


def test_ledger_lock_and_folder_are_closed_to_others(ledger_file):
    ledger_file.save(knockd.Ledger('home'))
    ledger_file.keep_ballast()
    folder = os.path.dirname(ledger_file.path)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    names = sorted(os.listdir(folder))
    assert names == ['ledger.json', 'ledger.json.ballast', 'ledger.json.lock']
    for name in names:
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


def make_fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize('make', [
    None, os.mkdir, make_fifo,
    lambda path: os.symlink(path, path), lambda path: write(path, b'\xff\xfe'),
    lambda path: write(path, b'x' * 300000)],
    ids=['missing', 'folder', 'pipe', 'loop', 'bytes', 'junk'])
def test_whatever_lies_there_the_daemon_starts_and_refuses(tmp_path, lines, make):
    config = knockd.parse_config(CONFIG % tmp_path, '/x')
    if make:
        make(config.ledger)
    file = knockd.LedgerFile(config.ledger)
    ledger = knockd.open_ledger(file, config, knockd.Moment(1700000000000, 0))[0]
    assert ledger.refusal('0' * 16, 'aa', 1700000062000) is not None
    assert lines and lines[0].startswith('quarantine: ledger ')


# --- the spare ----------------------------------------------------------------------------------
def spent_ledger(number):
    """A ledger with that many knocks in it."""
    ledger = knockd.Ledger('home')
    for knock in range(number):
        ledger.record('0' * 16, '%032x' % knock, 1700000000000, 60000)
    return ledger


def refuse(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def knocks_in(ledger):
    return len(ledger.keys['0' * 16]['spent'])


@pytest.fixture
def spared(ledger_file):
    """A ledger's file with one knock in it, and its spare."""
    ledger_file.save(spent_ledger(1))
    ledger_file.keep_spare()
    return ledger_file


def test_a_knock_waits_for_one_fsync_and_the_rest_is_done_in_safe_order(spared, calls):
    text = spent_ledger(2).text().encode()
    spared.save(spent_ledger(2))
    assert calls == [('fsync', len(text)), ('rename', 'ledger.json', text)]
    assert knocks_in(spared.read(spared.path, 'home')) == 2
    spared.keep_spare()
    assert calls[2:] == [('fsync', 'folder'), ('fsync', 0), ('fsync', 'folder')]
    spared.keep_spare()
    assert len(calls) == 5, 'it is there already'


def test_two_knocks_in_haste_are_both_on_disk(spared, calls):
    spared.save(spent_ledger(2))
    del calls[:]
    spared.save(spent_ledger(3))
    assert [call[:2] for call in calls] == [
        ('fsync', 'folder'), ('fsync', len(spent_ledger(3).text())), ('rename', 'ledger.json'),
        ('fsync', 'folder')], 'nothing is written beside a name that is not yet on disk'
    assert knocks_in(spared.load('home')) == 3


def power_cut(path):
    """The disk as it may be when a rename was not yet on it."""
    os.rename(path, path + '.new')
    write(path, spent_ledger(1).text().encode())


def test_a_rename_that_a_power_cut_undid_is_done_again(spared, calls):
    spared.save(spent_ledger(2))
    power_cut(spared.path)
    after = knockd.LedgerFile(spared.path)
    assert knocks_in(after.load('home')) == 2
    del calls[:]
    after.save(spent_ledger(3))
    assert calls[:2] == [('rename', 'ledger.json', spent_ledger(2).text().encode()),
                         ('fsync', 'folder')], 'before anything is written over it'
    assert knocks_in(after.load('home')) == 3


def test_the_spare_does_not_take_the_place_of_a_ledger(spared):
    spared.save(spent_ledger(2))
    spared.keep_spare()
    spared.save(spent_ledger(3))
    spared.keep_spare()
    spared.settle()
    assert knocks_in(spared.read(spared.path, 'home')) == 3 and read(spared.new) == b''


def test_spares_leave_no_descriptor_behind(spared):
    count = []
    for number in range(2, 12):
        spared.save(spent_ledger(number))
        spared.keep_spare()
        count.append(len(os.listdir('/proc/self/fd')))
    assert len(set(count)) == 1


@pytest.mark.parametrize('name', ['ledger.json', 'ledger.json.new'])
def test_a_fifo_in_a_ledgers_place_keeps_nobody_waiting(spared, name):
    spared.save(spent_ledger(2))
    path = os.path.join(os.path.dirname(spared.path), name)
    if os.path.exists(path):
        os.unlink(path)
    os.mkfifo(path)
    thread = threading.Thread(target=knockd.LedgerFile(spared.path).keep_spare,
                              daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize('size', range(0, len(spent_ledger(2).text()) - 1, 7))
def test_a_spare_that_was_not_written_to_its_end_is_nothing(spared, size):
    write(spared.new, spent_ledger(2).text().encode()[:size])
    assert knocks_in(knockd.LedgerFile(spared.path).load('home')) == 1


def test_a_spare_of_another_server_or_behind_a_link_is_nothing(spared, tmp_path):
    text = spent_ledger(2).text()
    write(spared.new, text.replace('home', 'away').encode())
    assert knocks_in(knockd.LedgerFile(spared.path).load('home')) == 1
    os.unlink(spared.new)
    os.symlink(write(str(tmp_path / 'elsewhere'), text.encode()), spared.new)
    assert knocks_in(knockd.LedgerFile(spared.path).load('home')) == 1


def test_the_new_one_does_not_stand_in_for_a_lost_ledger(spared):
    spared.save(spent_ledger(2))
    power_cut(spared.path)
    os.unlink(spared.path)
    with pytest.raises(FileNotFoundError):
        spared.load('home')


@pytest.mark.parametrize('call', ('open', 'fsync', 'rename'))
def test_without_a_spare_a_knock_is_written_as_ever(ledger_file, monkeypatch, call):
    ledger_file.save(spent_ledger(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, call, refuse)
        ledger_file.keep_spare()
    ledger_file.save(spent_ledger(2))
    assert knocks_in(ledger_file.load('home')) == 2


def test_a_failure_to_write_the_spare_is_a_failure_and_the_next_knock_counts(spared, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(os, 'fsync', refuse)
        with pytest.raises(OSError):
            spared.save(spent_ledger(2))
    spared.save(spent_ledger(3))
    assert knocks_in(spared.load('home')) == 3


# --- a full disk --------------------------------------------------------------------------------
class FullDisk:
    """Stands in for replace_file(): full until the ballast is gone, or for ever."""

    def __init__(self, monkeypatch, file, number=errno.ENOSPC, for_ever=False):
        self.ballast, self.number, self.for_ever = file.path + '.ballast', number, for_ever
        self.tries, self.replace = 0, knockd.replace_file
        file.keep_ballast()
        assert os.path.getsize(self.ballast) == 65536
        monkeypatch.setattr(knockd, 'replace_file', self.write)

    def write(self, path, data):
        self.tries += 1
        if self.for_ever or os.path.exists(self.ballast):
            raise OSError(self.number, os.strerror(self.number))
        self.replace(path, data)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_the_ballast_and_the_knock_is_written(ledger_file, monkeypatch, number):
    disk = FullDisk(monkeypatch, ledger_file, number)
    ledger_file.save(knockd.Ledger('home'))
    assert disk.tries == 2 and not os.path.exists(disk.ballast)
    assert ledger_file.load('home').floor == 0


def test_a_disk_that_stays_full_is_an_error_after_one_more_try(ledger_file, monkeypatch):
    disk = FullDisk(monkeypatch, ledger_file, for_ever=True)
    with pytest.raises(OSError):
        ledger_file.save(knockd.Ledger('home'))
    assert disk.tries == 2
    with pytest.raises(OSError):
        ledger_file.save(knockd.Ledger('home'))
    assert disk.tries == 3, 'the ballast is gone: nothing to try'


def test_another_error_costs_no_ballast(ledger_file, monkeypatch):
    disk = FullDisk(monkeypatch, ledger_file, errno.EROFS)
    with pytest.raises(OSError):
        ledger_file.save(knockd.Ledger('home'))
    assert disk.tries == 1 and os.path.exists(disk.ballast)


def test_ballast_is_made_once_and_made_again(ledger_file):
    path = ledger_file.path + '.ballast'
    ledger_file.keep_ballast()
    first = read(path)
    ledger_file.keep_ballast()
    assert read(path) == first and len(first) == 65536
    assert len(set(first)) > 200, 'zeros may be stored as nothing'
    os.unlink(path)
    ledger_file.keep_ballast()
    assert len(read(path)) == 65536


def test_no_room_for_the_ballast_is_no_error(ledger_file, monkeypatch):
    FullDisk(monkeypatch, ledger_file, for_ever=True)
    os.unlink(ledger_file.path + '.ballast')
    ledger_file.keep_ballast()
    assert not os.path.exists(ledger_file.path + '.ballast')


FILL = '''
import os, sys
sys.path.insert(0, %r)
import knockd

EMPTY = '{"knockd": 1, "id": "home", "floor": 0, "keys": {}}'

def fill():
    with open('filler', 'ab', buffering=0) as file:
        try:
            while True:
                file.write(b'x' * 4096)
        except OSError:
            pass

def ledger_with(count):
    ledger = knockd.Ledger('home')
    for number in range(count):
        ledger.record('0' * 16, '%%032x' %% number, 1700000000000, 60000)
    return ledger

def saved(count):
    try:
        file.save(ledger_with(count))
    except OSError as error:
        return error.strerror
    return len(file.load('home').keys['0' * 16]['spent'])

file = knockd.LedgerFile(os.getcwd() + '/ledger.json')
file.take()
file.keep_ballast()
print(saved(10))
if %r:
    file.keep_spare()
fill()
print(saved(500), os.path.exists('ledger.json.ballast'))
fill()
print(saved(900), len(file.load('home').keys['0' * 16]['spent']))
os.unlink('filler')
file.keep_ballast()
print(saved(900), os.path.exists('ledger.json.ballast'))
'''


@pytest.mark.parametrize('spare', (False, True), ids=('no spare', 'spare'))
def test_on_a_disk_that_is_really_full(tmp_path, spare):
    """A file system of 256 KiB in a namespace of its own."""
    if not shutil.which('unshare'):
        pytest.skip('unshare is not there')
    script = write(str(tmp_path / 'fill.py'), (FILL % (TOP, spare)).encode())
    disk = str(tmp_path / 'disk')
    os.mkdir(disk)
    process = subprocess.Popen(
        ['unshare', '-Urm', 'sh', '-e', '-c', 'mount -t tmpfs -o size=256k none "$0"; cd "$0"; '
         'exec "$1" -B "$2"', disk, sys.executable, script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate()
    if b'unshare' in errors or b'mount' in errors:
        pytest.skip(errors.decode().strip())
    assert said.decode().splitlines() == [
        '10', '500 False', 'No space left on device 500', '900 True'], errors


# --- the config's file --------------------------------------------------------------------------
def config_file(folder, mode):
    return write(str(folder / 'knockd.ini'), (CONFIG % folder).encode(), mode)


@pytest.mark.parametrize('mode', [0o600, 0o400, 0o640, 0o700])
def test_a_config_that_is_closed_to_others_is_read(tmp_path, mode):
    assert knockd.read_config(config_file(tmp_path, mode)).id == 'home'


@pytest.mark.parametrize('mode', [0o644, 0o604, 0o602, 0o601, 0o660, 0o620, 0o666, 0o777])
def test_a_config_that_is_open_to_others_is_refused_with_the_cure(tmp_path, mode):
    path = config_file(tmp_path, mode)
    with pytest.raises(knockd.KnockError, match='chmod 600 ' + path) as caught:
        knockd.read_config(path)
    assert caught.value.status == 2


def test_a_config_of_somebody_else_is_refused(tmp_path, monkeypatch):
    path = config_file(tmp_path, 0o600)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
    with pytest.raises(knockd.KnockError, match='belongs to user') as caught:
        knockd.read_config(path)
    assert caught.value.status == 2


@pytest.mark.parametrize('mode,cure', [
    (0o777, True), (0o775, True), (0o755, False), (0o1777, False)])
def test_what_another_user_could_change_is_refused(tmp_path, mode, cure):
    """Whoever may write to a folder may put another file there; not so where it is sticky."""
    folder = tmp_path / 'open' / 'closed'
    folder.mkdir(0o700, parents=True)
    os.chmod(str(tmp_path / 'open'), mode)
    path = config_file(folder, 0o600)
    flaws = ['%s is open to others; type: chmod go-w %s' % ((tmp_path / 'open',) * 2)]
    assert knockd.path_flaws(path, 0o027) == flaws * cure
    assert knockd.path_flaws(str(folder / 'ledger.json'), 0o022) == flaws * cure


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    path, uid = config_file(tmp_path, 0o600), os.stat(str(tmp_path)).st_uid
    real = os.stat
    monkeypatch.setattr(os, 'stat', lambda name: os.stat_result(
        [number if place != 4 or name != str(tmp_path) else uid + 7
         for place, number in enumerate(real(name))]))
    assert knockd.path_flaws(path, 0o027) == ['%s belongs to user %d; type: chown root %s' % (
        tmp_path, uid + 7, tmp_path)]


def test_a_link_on_the_way_is_refused(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    config_file(tmp_path / 'real', 0o600)
    path = str(tmp_path / 'link' / 'knockd.ini')
    assert knockd.path_flaws(path, 0o027) == ['%s goes through a link; write %s' % (
        path, tmp_path / 'real' / 'knockd.ini')]


def test_a_config_that_is_not_there_or_a_folder_is_one_sentence(tmp_path):
    for path in (str(tmp_path / 'none.ini'), str(tmp_path)):
        with pytest.raises(knockd.KnockError) as caught:
            knockd.read_config(path)
        assert caught.value.status == 2 and str(caught.value).startswith(path + ': ')


def test_a_changed_config_is_noticed_however_it_was_changed(tmp_path):
    path, stamps = config_file(tmp_path, 0o600), []

    def note(time):
        os.utime(path, ns=(time, time))
        stamps.append(knockd.config_stamp(path))
    note(1)
    with open(path, 'a') as file:
        file.write('#')
    note(1)
    knockd.replace_file(path, read(path))
    note(1)
    note(2)
    os.unlink(path)
    stamps.append(knockd.config_stamp(path))
    assert len(set(stamps)) == 5 and stamps[4] is None


# --- commands -----------------------------------------------------------------------------------
@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A function that makes a program; no others are found."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    monkeypatch.setattr(knockd, 'SEARCH_PATH', str(folder))
    monkeypatch.setattr(knockd, 'spares', [])

    def make(name, text):
        write(str(folder / name), ('#!/bin/sh\n%s\n' % text).encode(), 0o755)
    return make


@pytest.mark.parametrize('manager,command', [
    ('apt-get', 'apt-get install -y nftables'), ('opkg', 'opkg install nftables'),
    ('apk', 'apk add nftables'), ('dnf', 'dnf install -y nftables'),
    ('pacman', 'pacman -S --noconfirm nftables'), ('zypper', 'zypper install -y nftables')])
def test_a_missing_nft_is_told_with_what_to_type_here(programs, manager, command):
    programs(manager, '')
    with pytest.raises(knockd.KnockError) as caught:
        knockd.run(['nft', '-f', '-'], 'flush ruleset')
    assert str(caught.value) == 'nft is not installed; type: ' + command
    assert caught.value.status == 1


def test_without_a_package_manager_the_package_is_named(programs):
    with pytest.raises(knockd.KnockError, match='^nft is not installed; .*nftables$'):
        knockd.run(['nft', '-f', '-'])


def test_a_program_that_may_not_be_run_is_not_found(programs, tmp_path):
    programs('nft', 'echo never')
    os.chmod(str(tmp_path / 'bin' / 'nft'), 0o644)
    with pytest.raises(knockd.KnockError, match='not installed'):
        knockd.run(['nft'])


def test_a_command_gets_its_text_and_a_clean_environment(programs, monkeypatch):
    monkeypatch.setenv('LD_PRELOAD', '')
    monkeypatch.setenv('NFT_SURPRISE', '1')
    programs('nft', 'pwd; echo "$# $1 $2"; /bin/cat; /usr/bin/env')
    said = knockd.run(['nft', '-f', 'a b; $HOME'], 'add\n').splitlines()
    assert said[:3] == ['/', '2 -f a b; $HOME', 'add']
    names = {line.partition('=')[0] for line in said[3:]}
    assert names <= {'PATH', 'LC_ALL', 'PWD', 'SHLVL', 'OLDPWD', '_'}


def test_a_failure_says_command_status_and_complaint(programs):
    programs('nft', 'echo "Error: no" >&2; echo "more" >&2; exit 3')
    with pytest.raises(knockd.KnockError) as caught:
        knockd.run(['nft', '-f', '-'])
    assert str(caught.value) == 'nft -f - failed (3): Error: no'


def test_a_failure_without_words_is_one_line_too(programs):
    programs('nft', 'exit 1')
    with pytest.raises(knockd.KnockError, match=r'^nft failed \(1\): .+$'):
        knockd.run(['nft'])


def test_a_command_that_hangs_is_ended_with_all_it_started(programs, tmp_path):
    programs('nft', '/bin/sleep 60 & echo $! > %s/pid; wait' % tmp_path)
    began = time.monotonic()
    with pytest.raises(knockd.KnockError, match='took longer than'):
        knockd.run(['nft'], seconds=0.5)
    assert time.monotonic() - began < 20
    pid = int(read(str(tmp_path / 'pid')))
    for _ in range(1000):
        if not is_alive(pid):
            break
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid):
    """Neither gone nor a zombie that nobody has asked for yet."""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_the_spare_gets_the_text_and_is_used_once(programs, monkeypatch):
    monkeypatch.setattr(knockd, 'spares', [])
    programs('nft', 'echo $$; /bin/cat')
    knockd.keep_spare(knockd.NFT)
    pid = knockd.spares[0][1].pid
    knockd.keep_spare(knockd.NFT)
    assert [spare.pid for _, spare in knockd.spares] == [pid], 'one is enough'
    assert knockd.run(['nft', '-j', 'list']) != '%d\n' % pid, 'another command is not its'
    assert knockd.run(['nft', '-f', '-'], 'add\n') == '%d\nadd\n' % pid
    assert knockd.spares == [] and knockd.run(['nft', '-f', '-'], 'b\n').endswith('b\n')


def test_a_spare_that_has_died_is_not_used_and_is_replaced(programs, monkeypatch):
    monkeypatch.setattr(knockd, 'spares', [])
    programs('nft', 'echo $$; /bin/cat')
    for use in (False, True):
        knockd.keep_spare(knockd.NFT)
        spare = knockd.spares[0][1]
        spare.kill()
        for pipe in (spare.stdin, spare.stdout, spare.stderr):
            pipe.close()
        while is_alive(spare.pid):
            time.sleep(0.001)
        if use:
            assert knockd.run(['nft', '-f', '-'], 'a\n').endswith('a\n')
        else:
            knockd.keep_spare(knockd.NFT)
            assert knockd.spares[0][1].poll() is None and spare.returncode == -9
            assert knockd.run(['nft', '-f', '-'], 'a\n').startswith('%d\n' % spare.pid) is False


def test_where_no_spare_can_be_started_the_next_change_says_why(programs, monkeypatch):
    monkeypatch.setattr(knockd, 'spares', [])
    knockd.keep_spare(knockd.NFT)
    assert knockd.spares == [(knockd.NFT, None)]
    with pytest.raises(knockd.KnockError, match='not installed'):
        knockd.run(['nft', '-f', '-'], 'a')
    programs('nft', '/bin/cat')
    knockd.spares[:] = [(knockd.NFT, None)]
    knockd.keep_spare(knockd.NFT)
    assert knockd.run(['nft', '-f', '-'], 'a') == 'a'


def test_output_that_is_no_utf8_is_no_traceback(programs):
    programs('nft', "printf 'a\\377b'")
    assert knockd.run(['nft']) == 'a\ufffdb'
    programs('nft', "printf 'a\\377b' >&2; exit 1")
    with pytest.raises(knockd.KnockError):
        knockd.run(['nft'])


def test_a_program_that_cannot_be_started_is_one_sentence(programs, tmp_path):
    write(str(tmp_path / 'bin' / 'nft'), b'\x7fELFnonsense', 0o755)
    with pytest.raises(knockd.KnockError):
        knockd.run(['nft'])


# --- the log ------------------------------------------------------------------------------------
def test_no_byte_of_a_stranger_reaches_a_terminal(capsys, monkeypatch):
    monkeypatch.delenv('JOURNAL_STREAM', raising=False)
    knockd.log('a\x1b[31m\nb\x00\x7f\x85\u2028\ud800z')
    assert capsys.readouterr().err == 'a?[31m?b?????z\n'


def test_the_journal_learns_the_level(capsys, monkeypatch):
    monkeypatch.setenv('JOURNAL_STREAM', '9:1')
    knockd.log('full', 3)
    assert capsys.readouterr().err == '<3>full\n'


def test_a_log_that_nobody_reads_stops_nothing(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, 'Broken pipe')
    monkeypatch.setattr(sys, 'stderr', Broken())
    knockd.log('anything')


# --- sockets ------------------------------------------------------------------------------------
class Scripted:
    """A socket that answers recvfrom() and recv() with these, one after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def fileno(self):
        return 5

    def recvfrom(self, size):
        answer = self.answers.pop(0) if self.answers else BlockingIOError(11, 'again')
        if isinstance(answer, Exception):
            raise answer
        return answer, ('eth0', 2048, 0, 1, b'')

    def recv(self, size):
        return self.recvfrom(size)[0]


def frames(*answers, **limits):
    return [frame for frame, _ in knockd.receive(Scripted(*answers), **limits)]


@pytest.mark.parametrize('number', [errno.ENETDOWN, errno.ENOBUFS])
def test_an_interface_that_goes_away_ends_no_daemon(number):
    assert frames(b'a', OSError(number, 'gone'), b'b') == [b'a', b'b']


def test_an_error_that_is_not_understood_is_not_hidden():
    with pytest.raises(OSError):
        frames(b'a', OSError(errno.EINVAL, 'what'))


def test_one_turn_reads_a_bounded_number_of_frames():
    assert frames(*[b'x'] * 1000) == [b'x'] * 256
    assert frames(*[b'x'] * 1000, limit=3) == [b'x'] * 3


@pytest.fixture
def daemon(tmp_path, monkeypatch, lines):
    """A Daemon whose packet sockets are local; senders holds the other ends, named."""
    text = CONFIG % tmp_path + '[client anna]\nsecret = %s\n' % SECRET
    senders = []

    def local_socket(protocol):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.bind('\0knock-%d-%d' % (os.getpid(), len(senders)))
        ours.setblocking(False)
        senders.append(theirs)
        return ours
    monkeypatch.setattr(knockd, 'packet_socket', local_socket)
    monkeypatch.setattr(knockd.Capture, 'drops', lambda capture: 0)
    config = knockd.parse_config(text, str(tmp_path / 'knockd.ini'))
    made = knockd.Daemon(config)
    made.state = knockd.State(config, knockd.Ledger('home'))
    made.turn(knockd.moment())
    made.senders = senders
    yield made
    for capture in (made.datagrams, made.syns):
        for _, sock in capture.sockets().values():
            sock.close()
    for sock in senders:
        sock.close()


def test_a_frame_that_breaks_us_is_told_and_the_next_is_read(daemon, lines):
    heard = []

    def hear(version, frame, interface):
        heard.append(frame)
        raise ZeroDivisionError('a\nb')
    daemon.read(4, Scripted(b'a', b'b'), hear)
    assert heard == [b'a', b'b']
    assert len(lines) == 2 and all(line.startswith('internal error') for line in lines)


def test_a_flood_of_syns_puts_sequences_to_sleep_and_not_the_daemon(daemon, lines):
    """The sockets that are being read are closed then."""
    daemon.pace = knockd.Budget(10)
    syn = struct.pack('>BBHHHBBH4s4sHHIIBBHHH', 0x45, 0, 40, 0, 0, 64, 6, 0, bytes([192, 0, 2, 1]),
                      bytes([127, 0, 0, 1]), 40000, 5000, 0, 0, 0x50, 2, 0, 0, 0)
    descriptor, (version, sock) = min(daemon.syns.sockets().items())
    sender = [each for each in daemon.senders if each.getsockname() == sock.getpeername()][0]
    sender.setblocking(False)
    try:
        for _ in range(30):
            sender.send(syn)
    except BlockingIOError:
        pass                                # net.unix.max_dgram_qlen is 10 on many systems
    daemon.pace.used, daemon.pace.second = {'syn': 5}, int(time.monotonic())
    daemon.read(version, sock, daemon.hear_syn)
    if 'syn' not in daemon.muted:           # the second has changed under way
        daemon.pace.used, daemon.pace.second = {'syn': 50}, int(time.monotonic())
        daemon.hear_syn(version, syn, 'lo')
    assert daemon.muted == {'syn'} and len(lines) == 1 and 'SYNs a second' in lines[0]
    daemon.read(version, sock, daemon.hear_syn)         # poll() named it before it was closed


def test_own_addresses_are_told_from_others():
    assert knockd.is_own(ipaddress.ip_address('127.0.0.1'), 'lo')
    assert not knockd.is_own(ipaddress.ip_address('203.0.113.9'), 'lo')
    assert not knockd.is_own(ipaddress.ip_address('2001:db8::9'), 'lo')


def test_the_clock_is_read_in_milliseconds():
    wall, mono = time.time() * 1000, time.monotonic() * 1000
    now = knockd.moment()
    assert isinstance(now.wall, int) and isinstance(now.mono, int)
    assert abs(now.wall - wall) < 5000 and abs(now.mono - mono) < 5000


# --- what the kernel tells of the ruleset -------------------------------------------------------
def message(kind, size=20):
    """linux/netlink.h: struct nlmsghdr; the subsystem nf_tables is 10 in the upper byte."""
    return struct.pack('=IHHII', size, 10 << 8 | kind, 0, 1, 2).ljust(size + 3 & ~3, b'\0')


@pytest.mark.parametrize('kinds,changed', [
    ([12, 15], False), ([14, 12, 15], False), ([15], False), ([], False),
    ([8, 15], True), ([2, 15], True), ([12, 12, 3, 15], True), ([6, 15], True), ([11, 15], True)])
def test_only_what_is_more_than_set_elements_is_a_change(kinds, changed):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        for kind in kinds:
            theirs.send(message(kind) + message(15, 37))
        assert knockd.ruleset_changed(ours) is changed


def test_changes_that_the_socket_could_not_hold_are_a_change():
    class Overrun:
        def recv(self, _):
            raise OSError(errno.ENOBUFS, 'No buffer space available')
    assert knockd.ruleset_changed(Overrun())


def test_a_listener_at_a_decoy_is_noticed(tmp_path):
    """No netlink event tells of it."""
    config = knockd.parse_config(CONFIG % tmp_path, str(tmp_path / 'knockd.ini'))
    firewall = knockd.Firewall(config)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as service:
        service.bind(('127.0.0.1', 0))
        firewall.box = knockd.Box({22: service.getsockname()[1]}, None, None, False)
        assert not firewall.outdated()
        service.listen(1)
        assert firewall.outdated()


def test_a_table_that_is_taken_away_while_it_is_loaded_is_missed(tmp_path, monkeypatch):
    """What load() sees afterwards is no more what it has loaded."""
    config = knockd.parse_config(CONFIG % tmp_path, str(tmp_path / 'knockd.ini'))
    there = []
    monkeypatch.setattr(knockd, 'run', lambda argv, text='': json.dumps({'nftables': there}))
    firewall = knockd.Firewall(config)
    firewall.load()
    assert firewall.mend()
    there += [{'chain': {'family': 'inet', 'table': 'knockd', 'name': 'guard'}}]
    firewall.load()
    assert not firewall.mend()


@pytest.fixture
def probation(tmp_path, monkeypatch):
    """A function: the time left after some ms of this boot, by a file that was written at 5 s."""
    def left(text, mono=5000, wall=0):
        monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(wall, mono))
        if text is not None:
            write(str(tmp_path / 'guard'), text.encode(), 0o600)
        return knockd.probation_left(str(tmp_path / 'guard'))
    return left


def test_a_probation_counts_on_through_restarts_and_no_wall_clock_moves_it(probation):
    text = knockd.PROBATION % (600000, 5000)
    assert probation(text) == 600000
    assert probation(text, 5250, 10 ** 13) == 599750
    assert probation(text, 604999, -10 ** 13) == 1
    assert probation(text, 605000) == probation(text, 9000000) == 0


def test_a_probation_goes_on_after_a_boot_with_what_was_left(probation):
    assert probation(knockd.PROBATION % (90000, 700000), 10) == 90000


@pytest.mark.parametrize('text', (None, knockd.PASSED, '# For a boot without Python\nnft -f 1 2'))
def test_a_probation_that_was_passed_or_never_was_is_over(probation, text):
    assert probation(text) is None


@pytest.mark.parametrize('text', ('', '# on probation: 600000 ms left', '# on probation: \n',
                                  '# on probation: 1 ms left, 2 ms after the boot 3'))
def test_an_unreadable_probation_locks_nobody_out(probation, text):
    assert probation(text) == 0


# --- memory --------------------------------------------------------------------------------------
def test_the_daemon_imports_nothing_that_only_the_command_line_needs():
    """argparse costs it 0.4 MB for life, shutil with its compressors 0.7."""
    code = 'import sys; sys.path.insert(0, %r); import knockd; print(*sys.modules)' % TOP
    imported = subprocess.check_output([sys.executable, '-ISc', code]).decode().split()
    assert not {'argparse', 'shutil', 'tempfile', 'zlib'} & set(imported)
