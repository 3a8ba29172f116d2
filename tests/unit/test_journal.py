"""The journal on disk: what is appended where, what a crash or a full disk leaves, whose it is.

Real files, a real full disk in a namespace; faults are put in by hand."""
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

import knockd
from bytes_of import read, write
from compiled import folder_of

CONFIG = '[server]\nid = home\nhide = tcp/22\nledger = %s/ledger.json\n'
KEY, NOW = '00112233445566aa', 1700000000000
VERSION_1 = b'{"knockd": 1, "id": "home", "floor": 7, "keys": {"%s": {"floor": 5, "spent": ' \
    b'{"aa": %d}, "paper": [3, 4]}}}' % (KEY.encode(), NOW)


class Journal:
    """A ledger, its file, and who knocks."""

    def __init__(self, path):
        self.path, self.knocks = path, 0
        self.file = knockd.LedgerFile(path)
        self.file.take()
        self.ledger = knockd.Ledger('home')

    def knock(self):
        """The next knock of KEY, appended; the floor stays below all of them."""
        self.knocks += 1
        line = self.ledger.record(KEY, '%032x' % self.knocks, NOW + self.knocks, 60000)
        self.file.append(line)
        return line

    def known(self):
        """How many knocks another process finds on disk."""
        ledger = knockd.LedgerFile(self.path).load('home')
        return len(ledger.keys.get(KEY, {'spent': ()})['spent'])

    def close(self):
        self.file.abandon()
        if self.file.lock is not None:
            os.close(self.file.lock)
        self.file.lock = None

    def again(self):
        """The process ended, and another begins."""
        self.close()
        made = Journal(self.path)
        made.knocks = self.knocks
        config = knockd.parse_config(CONFIG % os.path.dirname(self.path), '/x')
        made.ledger, made.lost = knockd.open_ledger(made.file, config, knockd.Moment(NOW, 0))
        return made


@pytest.fixture
def journal(tmp_path):
    made = Journal(str(tmp_path / 'state' / 'ledger.json'))
    made.file.rewrite(made.ledger)
    yield made
    made.close()


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    told = []
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: told.append(text))
    return told


def refuse(number):
    def call(*_):
        raise OSError(number, os.strerror(number))
    return call


# --- what is on disk ----------------------------------------------------------------------------
def test_a_knock_is_one_write_and_one_sync_of_one_line(journal, monkeypatch):
    made = []
    for name in ('pwrite', 'write', 'fdatasync', 'fsync', 'rename', 'open', 'posix_fallocate'):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (
            made.append(name), real(*a))[1])
    line = journal.knock()
    assert made == ['pwrite', 'fdatasync']
    assert json.loads(line) == {'key': KEY, 'spent': '%032x' % 1, 'time': NOW + 1}
    assert read(journal.path).rstrip(b'\0').endswith(b'\n' + line.encode())


def test_lines_follow_each_other_and_zero_bytes_of_room_follow_them(journal):
    told = ['{"knockd": 2, "id": "home", "floor": 0, "keys": {}}\n']
    told += [journal.knock() for _ in range(5)]
    data = read(journal.path)
    assert data.rstrip(b'\0') == ''.join(told).encode()
    assert len(data) >= 65536 and set(data[len(''.join(told)):]) == {0}
    assert journal.known() == 5


def test_an_append_changes_no_metadata(journal):
    before = os.stat(journal.path)
    for _ in range(20):
        journal.knock()
    after = os.stat(journal.path)
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


def test_room_is_kept_however_many_knocks_there_are(journal):
    for _ in range(400):
        journal.knock()
        assert os.path.getsize(journal.path) - journal.file.end >= 32768 - 200
    assert journal.known() == 400


@pytest.mark.parametrize('number', [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.ENOSYS])
def test_a_file_system_that_reserves_nothing_is_no_obstacle(journal, monkeypatch, number):
    monkeypatch.setattr(os, 'posix_fallocate', refuse(number))
    again = journal.again()
    told = [again.knock() for _ in range(3)]
    assert read(journal.path).endswith(''.join(told).encode()), 'nothing lies behind the last'
    assert again.known() == 3


def test_a_paper_knock_is_a_line_of_its_own(journal):
    journal.file.append(journal.ledger.record(KEY, '', 0, 60000, (1700000000, 7)))
    assert read(journal.path).rstrip(b'\0').endswith(
        b'\n{"key": "%s", "paper": [1700000000, 7]}\n' % KEY.encode())
    known = knockd.LedgerFile(journal.path).load('home')
    assert known.refusal(KEY, '', 0, (1700000000, 7)) == 'replay'
    assert known.refusal(KEY, '', 0, (1700000000, 8)) is None


def test_a_start_writes_it_anew_as_one_line_that_knows_the_same(journal):
    for _ in range(3):
        journal.knock()
    before = journal.ledger.state_line()
    again = journal.again()
    assert read(journal.path).rstrip(b'\0').count(b'\n') == 1
    assert again.known() == 3 and not again.lost
    assert json.loads(again.ledger.state_line())['keys'][KEY]['spent'] == \
        json.loads(before)['keys'][KEY]['spent']
    again.knock()
    assert again.known() == 4


def test_beyond_ten_thousand_lines_it_is_due_to_be_written_anew(journal, monkeypatch):
    monkeypatch.setattr(os, 'fdatasync', lambda descriptor: None)
    line = journal.knock()
    while journal.file.lines < 10000:
        journal.file.append(line)
    assert not journal.file.rewrite_due
    journal.file.append(line)
    assert journal.file.rewrite_due
    with monkeypatch.context() as full:
        full.setattr(os, 'rename', refuse(errno.ENOSPC))
        with pytest.raises(OSError):
            journal.file.rewrite(journal.ledger)
    assert not journal.file.rewrite_due, 'not at every wake-up of a full disk'
    journal.knock()
    assert knockd.LedgerFile(journal.path).load('home').refusal(KEY, '%032x' % 2, NOW + 2)
    for _ in range(1000):
        journal.file.append(line)
    assert journal.file.rewrite_due
    journal.file.rewrite(journal.ledger)
    assert not journal.file.rewrite_due and journal.file.lines == 1


# --- version 1 ----------------------------------------------------------------------------------
@pytest.mark.parametrize('end', [b'', b'\n'])
def test_version_1_is_read_and_written_anew_as_2(tmp_path, lines, end):
    path = write(str(tmp_path / 'ledger.json'), VERSION_1 + end)
    for name in ('.new', '.ballast'):
        write(path + name, b'')
    first = Journal(path)
    made = first.again()
    assert not made.lost and lines == []
    assert made.ledger.refusal(KEY, 'aa', NOW) == 'replay'
    assert made.ledger.refusal(KEY, 'bb', 4) == 'replay'
    assert made.ledger.refusal(KEY, 'bb', 7) == 'quarantine'
    assert made.ledger.refusal(KEY, '', 0, (3, 4)) == 'replay'
    assert read(path).startswith(b'{"knockd": 2, "id": "home", "floor": 7, ')
    assert sorted(os.listdir(str(tmp_path))) == ['ledger.json', 'ledger.json.lock']
    made.close()


def test_version_1_on_a_full_disk_is_appended_to(tmp_path, lines, monkeypatch):
    path = write(str(tmp_path / 'ledger.json'), VERSION_1 + b'\n')
    first = Journal(path)
    with monkeypatch.context() as full:
        full.setattr(os, 'rename', refuse(errno.ENOSPC))
        made = first.again()
    made.knock()
    assert made.known() == 2
    made.close()


# --- crashes ------------------------------------------------------------------------------------
def cut_off(journal, data):
    """The journal with three knocks and the line of a fourth as a power cut left it."""
    for _ in range(3):
        journal.knock()
    with open(journal.path, 'r+b') as file:
        file.seek(journal.file.end)
        file.write(data)
    return journal


LINE = b'{"key": "%s", "spent": "%032x", "time": %d}\n' % (KEY.encode(), 4, NOW + 4)


@pytest.mark.parametrize('size', [0, 1, len(LINE) // 2, len(LINE) - 1])
@pytest.mark.parametrize('lost', ['end', 'beginning'])
@pytest.mark.parametrize('behind', [b'', b'\0'], ids=['nothing', 'zeros'])
def test_a_line_that_was_cut_off_is_no_obstacle_to_the_next(journal, lines, size, lost, behind):
    """Its end is missing, or, as blocks go to disk in any order, its beginning."""
    data = LINE[:size] if lost == 'end' else bytes(len(LINE) - size) + LINE[len(LINE) - size:]
    cut_off(journal, data)
    if not behind:
        os.truncate(journal.path, journal.file.end + len(data))
    assert journal.known() == 3
    again = journal.again()
    assert not again.lost and lines == []
    assert again.ledger.refusal(KEY, '%032x' % 4, NOW + 4) is None
    again.knock()
    assert again.known() == 4
    again.close()


@pytest.mark.parametrize('data', [LINE[:50], bytes(50) + LINE[50:], LINE[:-1]],
                         ids=['end', 'beginning', 'newline'])
def test_on_a_full_disk_a_shorter_line_takes_the_place_of_the_one_cut_off(
        journal, lines, monkeypatch, data):
    """Nothing of the longer one may stay behind it."""
    cut_off(journal, data)
    monkeypatch.setattr(os, 'rename', refuse(errno.ENOSPC))
    again = journal.again()
    again.file.append(again.ledger.record(KEY, 'ff', NOW + 9, 60000))
    assert again.known() == 4
    assert read(journal.path).rstrip(b'\0').endswith(b'"spent": "ff", "time": 1700000000009}\n')
    again.knock()
    assert again.known() == 5 and not again.lost
    again.close()


def test_a_line_that_was_written_to_its_end_counts(journal):
    """Synced or not: it only refuses more."""
    cut_off(journal, LINE)
    assert journal.known() == 4


@pytest.mark.parametrize('broken', [
    b'', b'{}', b'[]', b'null', b'7', b'"x"', b'{"key": "%s"}' % KEY.encode(), LINE[1:-1],
    LINE[:-2], LINE[:-1] + b' x', b'\0' * (len(LINE) - 1), LINE.replace(KEY.encode(), b'x' * 16),
    LINE.replace(b'%d' % (NOW + 4), b'-1'), LINE.replace(b'%d' % (NOW + 4), b'1.5'),
    LINE.replace(b'%d' % (NOW + 4), b'true'), LINE.replace(b'%d' % (NOW + 4), b'9' * 30),
    LINE.replace(b'"%032x"' % 4, b'["aa"]'), LINE.replace(b'"time"', b'"more"'),
    LINE.replace(b'}', b', "floor": 0}'), b'{"key": "%s", "paper": [1]}' % KEY.encode(),
    b'{"key": "%s", "paper": [1, -1]}' % KEY.encode(),
    b'{"key": "%s", "paper": "12"}' % KEY.encode(),
    b'{"knockd": 2, "id": "home", "floor": 0, "keys": {}}', b'\xff\xfe', b'[' * 100000],
    ids=lambda text: repr(text)[:40])
@pytest.mark.parametrize('last', [False, True])
def test_a_broken_line_with_its_end_is_a_lost_ledger(journal, lines, broken, last):
    for _ in range(3):
        journal.knock()
    with open(journal.path, 'r+b') as file:
        file.seek(journal.file.end)
        file.write(broken.rstrip(b'\n') + b'\n' + (b'' if last else LINE))
    if last and broken.strip(b'\0') == b'':
        return                      # that is a line of which nothing but the end is on disk
    with pytest.raises(knockd.KnockError):
        journal.known()
    again = journal.again()
    assert again.lost and len(lines) == 1 and lines[0].startswith('quarantine: ledger ')
    assert again.ledger.refusal(KEY, 'zz', NOW + 62000) == 'quarantine'
    assert knockd.LedgerFile(journal.path).load('home').floor == NOW + 62000
    again.close()


def test_zero_bytes_in_the_place_of_a_whole_line_are_a_lost_ledger(journal):
    for _ in range(3):
        journal.knock()
    data = read(journal.path)
    at = data.index(b'%032x' % 2) - 40
    write(journal.path, data[:at] + bytes(len(LINE) - 10) + data[at + len(LINE) - 10:])
    with pytest.raises(knockd.KnockError):
        journal.known()
    whole = data.split(b'\n')
    for gone in (1, 2):             # one that another follows, to the byte
        lost = b'\n'.join(whole[:gone]) + b'\n' + bytes(len(whole[gone]) + 1) + \
            b'\n'.join(whole[gone + 1:])
        write(journal.path, lost)
        with pytest.raises(knockd.KnockError):
            journal.known()


def test_a_state_line_without_its_end_is_a_lost_ledger(journal):
    """Lines may have followed it."""
    write(journal.path, journal.ledger.state_line().encode().rstrip(b'\n'))
    with pytest.raises(knockd.KnockError):
        journal.known()


# --- faults of the disk -------------------------------------------------------------------------
def test_after_a_sync_that_failed_nothing_is_appended_until_it_is_written_anew(
        journal, monkeypatch):
    journal.knock()
    with monkeypatch.context() as broken:
        broken.setattr(os, 'fdatasync', refuse(errno.EIO))
        with pytest.raises(OSError):
            journal.knock()
    with pytest.raises(OSError):
        journal.knock()
    assert journal.known() == 2, 'the line that met the error is there or not'
    journal.file.rewrite(journal.ledger)
    journal.knock()
    assert journal.known() == 4


def test_a_knock_whose_line_cannot_be_appended_is_in_a_journal_written_anew(
        journal, lines, monkeypatch):
    inode = os.stat(journal.path).st_ino
    with monkeypatch.context() as broken:
        broken.setattr(os, 'fdatasync', refuse(errno.EIO))
        line = journal.ledger.record(KEY, 'aa', NOW, 60000)
        assert knockd.saved(journal.file, journal.ledger, line, 'refused anna')
    assert lines == [] and os.stat(journal.path).st_ino != inode
    assert journal.known() == 1
    with monkeypatch.context() as broken:
        broken.setattr(os, 'fdatasync', refuse(errno.EIO))
        broken.setattr(os, 'fsync', refuse(errno.EIO))
        line = journal.ledger.record(KEY, 'bb', NOW, 60000)
        assert not knockd.saved(journal.file, journal.ledger, line, 'refused anna')
    assert lines == ['refused anna: the ledger cannot be written: %s: Input/output error'
                     % journal.path]
    line = journal.ledger.record(KEY, 'cc', NOW, 60000)
    assert knockd.saved(journal.file, journal.ledger, line, '') and journal.known() == 3


def test_a_write_that_is_cut_short_is_no_line(journal, monkeypatch):
    pwrite = os.pwrite
    with monkeypatch.context() as full:
        full.setattr(os, 'pwrite', lambda to, data, at: pwrite(to, data[:20], at))
        with pytest.raises(OSError, match='No space left'):
            journal.knock()
    assert journal.known() == 0
    journal.file.rewrite(journal.ledger)
    assert journal.known() == 1, 'what memory knows of it, it keeps'


def test_a_rename_that_is_not_on_disk_carries_no_line(journal, monkeypatch):
    """A power cut would bring the journal of before back, without the line."""
    fsync = os.fsync

    def broken_folder(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, 'Input/output error')
        fsync(descriptor)
    with monkeypatch.context() as broken:
        broken.setattr(os, 'fsync', broken_folder)
        with pytest.raises(OSError):
            journal.file.rewrite(journal.ledger)
        with pytest.raises(OSError):
            journal.knock()
        again = journal.again()
        with pytest.raises(OSError):
            again.knock()
    again.file.rewrite(again.ledger)
    again.knock()
    assert again.known() == 2 or again.known() == 1
    again.close()


@pytest.mark.parametrize('what', ['deleted', 'replaced', 'moved'])
def test_no_line_goes_into_a_journal_that_has_lost_its_name(journal, lines, what):
    journal.knock()
    if what != 'moved':
        os.unlink(journal.path)
    else:
        os.rename(journal.path, journal.path + '.old')
    if what == 'replaced':
        write(journal.path, b'{}\n')
    line = journal.ledger.record(KEY, 'aa', NOW, 60000)
    assert knockd.saved(journal.file, journal.ledger, line, '') and lines == []
    assert journal.known() == 2


def test_no_descriptor_stays_open(journal, monkeypatch):
    count = []
    for _ in range(10):
        journal.file.rewrite(journal.ledger)
        journal.knock()
        journal.file.resume()
        journal.file.abandon()
        with monkeypatch.context() as broken, pytest.raises(OSError):
            broken.setattr(os, 'fsync', refuse(errno.EIO))
            journal.file.rewrite(journal.ledger)
        count.append(len(os.listdir('/proc/self/fd')))
    assert len(set(count)) == 1


# --- lock and place -----------------------------------------------------------------------------
HOLD = '''
import sys
sys.path.insert(0, %r)
import knockd
file = knockd.LedgerFile(%r)
file.take()
print('held', flush=True)
sys.stdin.read()
'''


def holder(path):
    """Another process that holds the lock until it is killed."""
    code = HOLD % (folder_of(knockd.__file__), path)
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE,
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


def test_the_lock_is_held_for_the_life_of_the_process(journal):
    journal.file.rewrite(journal.ledger)
    with pytest.raises(knockd.KnockError):
        knockd.LedgerFile(journal.path).take()


def test_a_program_that_we_start_inherits_neither_lock_nor_journal(journal):
    assert not os.get_inheritable(journal.file.lock)
    assert not os.get_inheritable(journal.file.journal)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    victim, path = write(str(tmp_path / 'victim'), b'dear'), str(tmp_path / 'ledger.json')
    os.symlink(victim, path + '.lock')
    with pytest.raises(OSError):            # which main() says in a sentence
        knockd.LedgerFile(path).take()
    assert read(victim) == b'dear'


def test_files_of_another_user_in_a_sticky_folder_stop_nothing(tmp_path, lines):
    if os.geteuid():
        pytest.skip('only root gives files away')
    folder = tmp_path / 'sticky'
    folder.mkdir()
    path = str(folder / 'ledger.json')
    for name in ('.new', '.lock', '.ballast', '.1-%s.new' % ('5a' * 8)):
        os.chown(write(path + name, b'his', 0o666), 12345, 12345)
    os.chmod(str(folder), 0o1777)
    made = Journal(path)
    made.file.rewrite(made.ledger)
    made.knock()
    again = made.again()
    again.knock()
    assert again.known() == 2 and not again.lost and lines == []
    again.close()


def test_a_folder_of_another_user_in_the_place_of_the_lock_stops_nothing(tmp_path):
    if os.geteuid():
        pytest.skip('only root gives files away')
    folder = tmp_path / 'sticky'
    path = str(folder / 'ledger.json')
    os.makedirs(path + '.lock')
    write(path + '.lock/his', b'')
    os.chown(path + '.lock', 12345, 12345)
    os.chmod(str(folder), 0o1777)
    made = knockd.LedgerFile(path)
    made.take()
    assert read(path + '.lock').strip() == b'%d' % os.getpid()
    os.close(made.lock)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    write(str(tmp_path / 'file'), b'')
    with pytest.raises(OSError) as raised:
        knockd.LedgerFile(str(tmp_path / 'file' / 'ledger.json')).take()
    assert raised.value.filename == str(tmp_path / 'file')


def test_ledger_lock_and_folder_are_closed_to_others(journal):
    folder = os.path.dirname(journal.path)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    names = sorted(os.listdir(folder))
    assert names == ['ledger.json', 'ledger.json.lock']
    for name in names:
        assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


@pytest.mark.parametrize('make', [
    None, os.mkdir, os.mkfifo,
    lambda path: os.symlink(path, path), lambda path: write(path, b'\xff\xfe'),
    lambda path: write(path, b'x' * 300000), lambda path: write(path, b'\0' * 70000)],
    ids=['missing', 'folder', 'pipe', 'loop', 'bytes', 'junk', 'zeros'])
def test_whatever_lies_there_the_daemon_starts_and_refuses(tmp_path, lines, make):
    config = knockd.parse_config(CONFIG % tmp_path, '/x')
    if make:
        make(config.ledger)
    file = knockd.LedgerFile(config.ledger)
    ledger = knockd.open_ledger(file, config, knockd.Moment(1700000000000, 0))[0]
    assert ledger.refusal('0' * 16, 'aa', 1700000062000) is not None
    assert lines and lines[0].startswith('quarantine: ledger ')
    file.abandon()


# --- what it costs ------------------------------------------------------------------------------
def test_a_knock_costs_the_same_however_many_clients_are_known(tmp_path, monkeypatch):
    """Medians of the time for a line, without the disk; a whole file costs a thousand times."""
    monkeypatch.setattr(os, 'fdatasync', lambda descriptor: None)
    costs = []
    for clients in (10, 10000):
        made = Journal(str(tmp_path / str(clients) / 'ledger.json'))
        for number in range(clients):
            made.ledger.record('%016x' % number, '%032x' % number, NOW, 60000)
        made.file.rewrite(made.ledger)
        samples = []
        for _ in range(200):
            began = time.perf_counter()
            made.knock()
            samples.append(time.perf_counter() - began)
        costs.append(sorted(samples)[100])
        made.close()
    print('%.0f and %.0f us' % (costs[0] * 1e6, costs[1] * 1e6))
    assert costs[1] < 5 * costs[0]


# --- a full disk --------------------------------------------------------------------------------
FILL = '''
import os, sys
sys.path.insert(0, %r)
import knockd

def fill():
    with open('filler', 'ab', buffering=0) as file:
        try:
            while True:
                file.write(b'x' * 4096)
        except OSError:
            pass

def honoured(count):
    """How many of so many knocks are on disk; what is said of the first that is not."""
    for number in range(count):
        knocks.append('%%032x' %% len(knocks))
        line = ledger.record('0' * 16, knocks[-1], 1700000000000 + len(knocks), 60000)
        if not knockd.saved(file, ledger, line, ''):
            return number
    known = knockd.LedgerFile(file.path).load('home')
    assert all(known.refusal('0' * 16, knock, 0) for knock in knocks)
    return count

config = knockd.parse_config('[server]\\nid = home\\nhide = tcp/22\\nledger = %%s/ledger.json'
                             %% os.getcwd(), '/x')
knocks = []
file = knockd.LedgerFile(config.ledger)
file.take()
ledger = knockd.Ledger('home')
file.rewrite(ledger)
print(honoured(10))
fill()
print(honoured(250))
os.close(file.lock)
file.abandon()
file = knockd.LedgerFile(config.ledger)
file.take()
ledger, lost = knockd.open_ledger(file, config, knockd.Moment(1700000000000, 0))
print(lost, honoured(100))
print(honoured(1000) < 600)
os.unlink('filler')
print(honoured(50))
'''


@pytest.mark.parametrize('kind', ['tmpfs', 'ext4'])
def test_on_a_disk_that_is_really_full(tmp_path, kind):
    """A small file system in a namespace of its own: the room serves 300 knocks at least, over a
    restart too; then nothing opens, and when there is space again all goes on."""
    if not shutil.which('unshare') or (kind == 'ext4' and (
            os.geteuid() or not shutil.which('mkfs.ext4'))):
        pytest.skip('unshare or mkfs.ext4 is not there')
    script = write(str(tmp_path / 'fill.py'), (FILL % folder_of(knockd.__file__)).encode())
    disk = str(tmp_path / 'disk')
    os.mkdir(disk)
    mount = 'mount -t tmpfs -o size=512k none "$0"'
    if kind == 'ext4':
        image = write(str(tmp_path / 'image'), bytes(2 << 20))
        subprocess.check_call(['mkfs.ext4', '-q', '-m0', image])
        mount = 'mount -o loop %s "$0"' % image
    process = subprocess.Popen(
        ['unshare', '-m' if kind == 'ext4' else '-Urm', 'sh', '-e', '-c',
         mount + '; cd "$0"; "$1" -B "$2"; cd /; umount "$0"', disk, sys.executable, script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate()
    if b'unshare' in errors or b'mount:' in errors:
        pytest.skip(errors.decode().strip())
    assert said.decode().splitlines() == ['10', '250', 'False 100', 'True', '50'], errors
    assert errors.count(b': No space left on device') == 1, errors
