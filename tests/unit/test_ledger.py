"""The ledger: what is refused, what is forgotten, what a damaged one may cost.

Each mistake that DESIGN 4 says was made by others, or found by its model, is a test of its own.
The random lives of the whole daemon are in test_ledger_model.py.
"""
import json
import os
import random
import re

import pytest

import knockd

KEY, OTHER = '00112233445566aa', 'ffeeddccbbaa9988'
MINUTE, WINDOW = 60000, 60000
NOW = 1700000000000


def empty(server_id='home'):
    return knockd.parse_ledger('{"knockd": 1, "id": "%s", "floor": 0, "keys": {}}' % server_id,
                               server_id)


def quarantined(now, window):
    """What a lost ledger becomes."""
    ledger = empty()
    ledger.quarantine(now, window)
    return ledger


def spent(*knocks, **settings):
    """A ledger that has honoured these (id, time) of KEY."""
    ledger = knockd.Ledger('home')
    for knock_id, time in knocks:
        ledger.record(KEY, knock_id, time, settings.get('window', WINDOW))
    return ledger


def full():
    """A ledger with a thousand ids of KEY, NOW and the 999 ms after it, written by hand."""
    ids = ', '.join('"%032x": %d' % (number, NOW + number) for number in range(1000))
    return knockd.parse_ledger(
        '{"knockd": 1, "id": "home", "floor": 0, "keys": {"%s": {"floor": %d, "spent": {%s}, '
        '"paper": [0, 0]}}}' % (KEY, NOW - 180000, ids), 'home')


def reread(ledger):
    """What another process finds on disk."""
    return knockd.parse_ledger(ledger.state_line(), 'home')


# --- what is refused ----------------------------------------------------------------------------
def test_an_empty_ledger_refuses_nothing():
    ledger = knockd.Ledger('home')
    for time in (1, NOW, 1 << 41):
        assert ledger.refusal(KEY, 'aa', time) is None


def test_a_spent_knock_is_a_replay_and_another_is_not():
    ledger = spent(('aa', NOW))
    for known in (ledger, reread(ledger), reread(reread(ledger))):
        assert known.refusal(KEY, 'aa', NOW) == 'replay'
        assert known.refusal(KEY, 'bb', NOW) is None
        assert known.refusal(OTHER, 'aa', NOW) is None


def test_asking_spends_nothing():
    ledger = spent(('aa', NOW))
    before = ledger.state_line()
    for knock_id in ('aa', 'bb'):
        ledger.refusal(KEY, knock_id, NOW)
        ledger.refusal(OTHER, knock_id, NOW)
    assert ledger.state_line() == before


def test_what_is_before_the_floor_of_its_key_is_refused_to_the_millisecond():
    ledger = spent(('aa', NOW))
    floor = NOW - 180000                    # 2 x 60 s + 60 s
    for known in (ledger, reread(ledger)):
        assert known.refusal(KEY, 'bb', floor - 1) == 'replay'
        assert known.refusal(KEY, 'bb', floor) is None
        assert known.refusal(OTHER, 'bb', floor - 1) is None


def test_what_is_up_to_the_floor_of_the_file_is_refused_to_the_millisecond():
    ledger = quarantined(NOW, WINDOW)
    floor = NOW + 62000                     # w + 2 s
    for known in (ledger, reread(ledger)):
        for time in (1, NOW, floor):
            assert known.refusal(KEY, 'aa', time) is not None
        assert known.refusal(KEY, 'aa', floor + 1) is None


def test_a_second_quarantine_never_ends_before_the_first():
    ledger = quarantined(NOW, 600000)
    ledger.quarantine(NOW - 1000000, WINDOW)
    assert ledger.refusal(KEY, 'aa', NOW + 602000) is not None
    ledger.quarantine(NOW + 1000000, WINDOW)
    assert ledger.refusal(KEY, 'aa', NOW + 1062000) is not None
    assert reread(ledger).refusal(KEY, 'aa', NOW + 1062001) is None


def test_a_quarantine_keeps_what_was_honoured_since_the_first():
    ledger = quarantined(NOW, WINDOW)
    ledger.record(KEY, 'aa', NOW + 70000, WINDOW)
    ledger.quarantine(NOW, WINDOW)
    assert reread(ledger).refusal(KEY, 'aa', NOW + 70000) == 'replay'


# --- what is forgotten --------------------------------------------------------------------------
@pytest.mark.parametrize('window', [1000, 60000, 600000])
def test_ids_are_forgotten_below_the_floor_only(window):
    reach = 2 * window + 60000
    ledger = spent(('old', NOW - reach - 1), ('edge', NOW - reach), ('new', NOW), window=window)
    known = json.loads(ledger.state_line())['keys'][KEY]
    assert known['floor'] == NOW - reach
    assert known['spent'] == {'edge': NOW - reach, 'new': NOW}
    assert ledger.refusal(KEY, 'old', NOW - reach - 1) == 'replay'


def test_more_than_a_thousand_ids_raise_the_floor_to_the_oldest():
    ledger = full()
    assert len(json.loads(ledger.state_line())['keys'][KEY]['spent']) == 1000
    ledger.record(KEY, 'more', NOW + 1000, WINDOW)
    known = json.loads(ledger.state_line())['keys'][KEY]
    assert len(known['spent']) == 1000 and known['floor'] > NOW
    for number in range(1000):
        assert ledger.refusal(KEY, '%032x' % number, NOW + number) == 'replay'
    assert ledger.refusal(KEY, 'fresh', NOW + 1001) is None


def test_a_thousand_ids_of_one_millisecond_are_refused_when_forgotten():
    text = re.sub('": %d[0-9]{3}' % (NOW // 1000), '": %d' % NOW, full().state_line())
    ledger = knockd.parse_ledger(text, 'home')
    ledger.record(KEY, 'more', NOW, WINDOW)
    assert len(ledger.keys[KEY]['spent']) <= 1000
    for number in range(1000):
        assert ledger.refusal(KEY, '%032x' % number, NOW) == 'replay'
    assert ledger.refusal(KEY, 'more', NOW) == 'replay'


def test_the_file_stays_small():
    """At most 1,000 ids of 32 digits a key, whatever the times: 1,000 x (32 + 17 + ...) bytes."""
    chance, ledger = random.Random(1), full()
    for number in range(2000, 2300):
        ledger.record(KEY, '%032x' % number, NOW + chance.randint(-600000, 600000), 600000)
        assert len(ledger.keys[KEY]['spent']) <= 1000
    assert len(ledger.state_line()) < 60000


def test_an_idle_ledger_does_not_grow():
    ledger = knockd.Ledger('home')
    for number in range(3000):
        ledger.record(KEY, '%032x' % number, NOW + number * 5000, WINDOW)
    assert len(ledger.keys[KEY]['spent']) == 37         # 180 s at one in 5 s, both ends
    assert len(ledger.state_line()) < 3000


def test_whatever_is_recorded_is_refused_ever_after():
    """Any times, any windows, any order, read back from disk at any moment."""
    for seed in range(150):
        chance, ledger, known = random.Random(seed), knockd.Ledger('home'), {}
        for number in range(40):
            mark = chance.choice((KEY, OTHER))
            time = NOW + chance.choice((0, chance.randint(-10 ** 6, 10 ** 6),
                                        chance.randint(-10 ** 4, 10 ** 4)))
            knock_id = chance.choice(('%x' % number, 'syn:%d' % (time // 30000)))
            if ledger.refusal(mark, knock_id, time) is None:
                assert (mark, knock_id, time) not in known
                ledger.record(mark, knock_id, time, chance.choice((1000, 60000, 600000)))
                known[mark, knock_id, time] = True
            if chance.random() < 0.1:
                ledger = reread(ledger)
            for mark, knock_id, time in known:
                assert ledger.refusal(mark, knock_id, time) is not None


# --- paper --------------------------------------------------------------------------------------
SHEET = 1700000000


def test_a_used_number_voids_all_up_to_it():
    ledger = knockd.Ledger('home')
    assert ledger.refusal(KEY, 'paper', 0, (SHEET, 3)) is None
    ledger.record(KEY, 'paper', 0, WINDOW, (SHEET, 3))
    for known in (ledger, reread(ledger)):
        assert [known.refusal(KEY, 'paper', 0, (SHEET, number)) is None
                for number in (1, 2, 3, 4, 99)] == [False, False, False, True, True]
        assert known.refusal(OTHER, 'paper', 0, (SHEET, 1)) is None


def test_a_used_sheet_voids_those_before_it():
    ledger = knockd.Ledger('home')
    ledger.record(KEY, 'paper', 0, WINDOW, (SHEET, 3))
    assert ledger.refusal(KEY, 'paper', 0, (SHEET - 1, 99)) is not None
    assert ledger.refusal(KEY, 'paper', 0, (SHEET + 1, 1)) is None


def test_paper_knocks_and_the_others_leave_each_other_alone():
    ledger = spent(('aa', NOW))
    ledger.record(KEY, 'paper', 0, WINDOW, (SHEET, 3))
    ledger.record(KEY, 'bb', NOW, WINDOW)
    known = reread(ledger)
    assert known.refusal(KEY, 'aa', NOW) == known.refusal(KEY, 'bb', NOW) == 'replay'
    assert known.refusal(KEY, 'paper', 0, (SHEET, 3)) is not None


def test_a_lost_ledger_voids_the_sheet():
    ledger = quarantined(SHEET * 1000 + 5000, WINDOW)
    for known in (ledger, reread(ledger)):
        assert known.refusal(KEY, 'paper', 0, (SHEET, 99)) is not None


# --- the mistakes that DESIGN 4 names -----------------------------------------------------------
CONFIG = '[server]\nid = home\nhide = tcp/22\nledger = %s\n'
CLIENT = '[client %s]\nsecret = %s\n'
SECRET = knockd.encode_secret(bytes(range(32)))


def write_config(folder, *clients):
    path = str(folder / 'knockd.ini')
    text = CONFIG % (folder / 'ledger.json') + ''.join(CLIENT % each for each in clients)
    with open(path, 'w') as file:
        file.write(text)
    os.chmod(path, 0o600)
    return path


def mark_of(path, name):
    return knockd.read_config(path).clients[name].fingerprint


def test_entries_belong_to_a_key_and_not_to_a_name(tmp_path):
    """A client that is renamed, or removed and added again, keeps what it has spent."""
    path = write_config(tmp_path, ('anna', SECRET))
    ledger = knockd.Ledger('home')
    ledger.record(mark_of(path, 'anna'), 'aa', NOW, WINDOW)
    write_config(tmp_path, ('zoe', SECRET.lower()))
    assert reread(ledger).refusal(mark_of(path, 'zoe'), 'aa', NOW) == 'replay'
    write_config(tmp_path)
    ledger = reread(ledger)
    ledger.record(OTHER, 'bb', NOW + 10 ** 9, WINDOW)      # life goes on without it
    write_config(tmp_path, ('anna', SECRET))
    assert reread(ledger).refusal(mark_of(path, 'anna'), 'aa', NOW) == 'replay'


def test_a_key_has_another_entry_on_another_server(tmp_path):
    keys = [knockd.derive_keys(bytes(range(32)), server) for server in ('home', 'office')]
    assert knockd.fingerprint(keys[0]) != knockd.fingerprint(keys[1])


def test_the_floor_is_not_computed_from_the_window_of_now():
    """Spent under a short window and forgotten; a longer window must not bring it back."""
    ledger = spent(('aa', NOW), window=1000)
    ledger.record(KEY, 'bb', NOW + 63000, 1000)             # its floor: NOW + 1000
    assert 'aa' not in ledger.keys[KEY]['spent']
    ledger = reread(ledger)
    ledger.record(KEY, 'cc', NOW + 63000, 600000)
    assert reread(ledger).refusal(KEY, 'aa', NOW) == 'replay'


def test_a_clock_that_is_set_back_does_not_lower_the_floor():
    ledger = spent(('aa', NOW))
    ledger.record(KEY, 'bb', NOW + 10 ** 6, WINDOW)
    ledger.record(KEY, 'cc', NOW + 10 ** 6 - 180000, WINDOW)
    assert ledger.keys[KEY]['floor'] == NOW + 10 ** 6 - 180000
    assert ledger.refusal(KEY, 'aa', NOW) == 'replay'


@pytest.fixture
def ledger_file(tmp_path):
    made = knockd.LedgerFile(str(tmp_path / 'ledger.json'))
    made.take()
    yield made
    os.close(made.lock)


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    told = []
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: told.append(text))
    return told


@pytest.mark.parametrize('damage', [None, b'', b'{', b'[]', b'\xff\xfe', b'\0' * 500,
                                    knockd.Ledger('office').state_line().encode()],
                         ids=['missing', 'empty', 'cut', 'list', 'not ASCII', 'zeros', 'foreign'])
def test_a_quarantine_is_on_disk_at_once_and_outlives_the_process(
        tmp_path, ledger_file, lines, damage):
    """Kept in memory alone it ended with the first knock after a restart."""
    config = knockd.read_config(write_config(tmp_path, ('anna', SECRET)))
    if damage is not None:
        with open(ledger_file.path, 'wb') as file:
            file.write(damage)
    ledger = knockd.open_ledger(ledger_file, config, knockd.Moment(NOW, 0))[0]
    assert ledger.refusal(KEY, 'aa', NOW + 62000) is not None
    assert ledger.refusal(KEY, 'aa', NOW + 62001) is None
    assert ledger_file.load('home').refusal(KEY, 'aa', NOW + 62000) is not None
    ledger.record(KEY, 'bb', NOW + 62001, WINDOW)
    ledger_file.rewrite(ledger)
    assert ledger_file.load('home').refusal(OTHER, 'aa', NOW + 62000) is not None
    assert len(lines) == 1 and lines[0].startswith('quarantine: ledger ')
    assert '2023-11-14 22:14:2' in lines[0], 'NOW is 22:13:20, plus 62 s'


def test_a_sound_ledger_is_no_reason_for_a_quarantine(tmp_path, ledger_file, lines):
    config = knockd.read_config(write_config(tmp_path, ('anna', SECRET)))
    ledger_file.rewrite(spent(('aa', NOW)))
    ledger = knockd.open_ledger(ledger_file, config, knockd.Moment(NOW, 0))[0]
    assert ledger.refusal(KEY, 'aa', NOW) == 'replay'
    assert ledger.refusal(KEY, 'bb', NOW) is None and lines == []
    assert ledger.refusal(OTHER, 'aa', NOW) is None, 'a key it does not name has never knocked'


def test_a_ledger_that_cannot_be_written_is_no_reason_to_stop(
        tmp_path, ledger_file, lines, monkeypatch):
    def refuse(source, target):
        raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(os, 'rename', refuse)
    config = knockd.read_config(write_config(tmp_path, ('anna', SECRET)))
    ledger = knockd.open_ledger(ledger_file, config, knockd.Moment(NOW, 0))[0]
    assert ledger.refusal(KEY, 'aa', NOW) is not None
    assert any('Read-only file system' in line for line in lines)


@pytest.mark.parametrize('damage', [None, '', '{"knockd": 1', 'junk'])
@pytest.mark.parametrize('arguments', [('add', 'bert'), ('remove', 'anna'), ('list',),
                                       ('show', 'anna'), ('check',)])
def test_administration_does_not_make_a_lost_ledger_again(tmp_path, capsys, arguments, damage):
    """`add` recreating it would have made every old knock fresh."""
    path, ledger = write_config(tmp_path, ('anna', SECRET)), str(tmp_path / 'ledger.json')
    if damage is not None:
        with open(ledger, 'w') as file:
            file.write(damage)
    assert knockd.main(['--config', path] + list(arguments)) == 0
    capsys.readouterr()
    if damage is None:
        assert not os.path.exists(ledger)
    else:
        with open(ledger) as file:
            assert file.read() == damage


def test_the_very_first_add_makes_an_empty_ledger_for_a_new_id(tmp_path, capsys):
    path = str(tmp_path / 'knockd.ini')
    assert knockd.main(['--config', path, 'add', 'anna', '--allow', 'tcp/22',
                        '--host', 'example.org']) == 0
    config = knockd.read_config(path)
    assert 'id=' + config.id in capsys.readouterr().out
    ledger = knockd.LedgerFile(config.ledger).load(config.id)
    assert ledger.refusal(KEY, 'aa', 1) is None
    assert len(config.id) == 16 and config.id != 'home'


# --- lines behind the state ---------------------------------------------------------------------
def journal(count):
    """(The text of a journal with so many knocks of KEY, where its last line begins.)"""
    ledger = knockd.Ledger('home')
    lines = [ledger.state_line()]
    lines += [ledger.record(KEY, '%032x' % number, NOW + number, WINDOW)
              for number in range(count)]
    return ''.join(lines), len(''.join(lines[:-1]))


def test_lines_are_what_was_honoured():
    text, _ = journal(3)
    assert text.splitlines()[1] == '{"key": "00112233445566aa", ' \
        '"spent": "00000000000000000000000000000000", "time": 1700000000000}'
    for room in ('', '\0', '\0' * 65536):
        ledger = knockd.parse_ledger(text + room, 'home')
        assert [ledger.refusal(KEY, '%032x' % number, NOW + number) for number in range(4)] == [
            'replay', 'replay', 'replay', None]


def test_a_last_line_cut_off_at_any_byte_was_never_honoured_and_costs_nothing_else():
    """Its end is missing, or, as blocks reach the disk in any order, its beginning."""
    text, start = journal(3)
    for size in range(len(text) - start):
        beginning = text[:start + size]
        end = text[:start] + '\0' * (len(text) - start - size) + text[len(text) - size:]
        both = text[:start + size // 2] + '\0' * (len(text) - start - size // 2)
        for torn in (beginning, end, both, beginning + '\0' * 99, end + '\0' * 99):
            ledger = knockd.parse_ledger(torn, 'home')
            assert ledger.keys[KEY]['spent'] == {'%032x' % 0: NOW, '%032x' % 1: NOW + 1}
            assert knockd.journal_end(torn) == start


def test_a_broken_line_before_the_last_is_a_lost_ledger():
    text, _ = journal(4)
    lines = text.splitlines(True)
    for number, line in enumerate(lines[:-1]):
        for broken in (line[1:], line[:-2] + '\n', '\n', '\0' * len(line), line[:-1] + '\0\n',
                       '\0' + line, '\0' * 40 + line[40:], line[:40] + '\0' * (len(line) - 40),
                       '\xff' + line, line + line[:9] + '\n'):
            whole = lines[:number] + [broken] + lines[number + 1:]
            with pytest.raises(knockd.KnockError):
                knockd.parse_ledger(''.join(whole), 'home')


def test_any_flipped_bit_of_a_journal_is_taken_or_refused_and_nothing_else():
    text, _ = journal(2)
    data = text.encode()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            survives(flipped.decode('latin-1'))


def test_whatever_is_recorded_is_refused_by_the_journal_that_was_written():
    """Any times, any windows, any order; written anew at any moment, and read back."""
    for seed in range(40):
        chance, ledger, known = random.Random(seed), knockd.Ledger('home'), {}
        text = ledger.state_line()
        for number in range(40):
            mark = chance.choice((KEY, OTHER))
            time = NOW + chance.choice((0, chance.randint(-10 ** 6, 10 ** 6),
                                        chance.randint(-10 ** 4, 10 ** 4)))
            knock_id = chance.choice(('%x' % number, 'syn:%d' % (time // 30000)))
            if ledger.refusal(mark, knock_id, time) is None:
                assert (mark, knock_id, time) not in known
                text += ledger.record(mark, knock_id, time, chance.choice((1000, 60000, 600000)))
                known[mark, knock_id, time] = True
            if chance.random() < 0.1:
                ledger = knockd.parse_ledger(text, 'home')
            if chance.random() < 0.1:
                text = ledger.state_line()
            for mark, knock_id, time in known:
                assert knockd.parse_ledger(text, 'home').refusal(mark, knock_id, time) is not None


def test_more_than_a_thousand_lines_of_a_key_are_refused_when_forgotten():
    text, _ = journal(1200)
    ledger = knockd.parse_ledger(text, 'home')
    assert len(ledger.keys[KEY]['spent']) == 1000
    for number in range(1200):
        assert ledger.refusal(KEY, '%032x' % number, NOW + number) == 'replay'


# --- the format ---------------------------------------------------------------------------------
def test_the_format_is_the_one_of_the_design():
    ledger = spent(('aa', NOW), ('syn:56666666', 56666666 * 30000))
    ledger.record(OTHER, 'paper', 0, WINDOW, (SHEET, 7))
    ledger.quarantine(5, 10)
    assert json.loads(ledger.state_line()) == {
        'knockd': 2, 'id': 'home', 'floor': 2015, 'keys': {
            KEY: {'floor': NOW - 180000, 'spent': {'aa': NOW, 'syn:56666666': 1699999980000},
                  'paper': [0, 0]},
            OTHER: {'floor': 0, 'spent': {}, 'paper': [SHEET, 7]}}}


def sample():
    ledger = spent(('0123456789abcdef' * 2, NOW), ('syn:56666666', 56666666 * 30000))
    ledger.record(OTHER, 'paper', 0, WINDOW, (SHEET, 7))
    return ledger


def survives(text):
    """False if it is refused; whatever is taken can be written and read again, and is the same."""
    try:
        ledger = knockd.parse_ledger(text, 'home')
    except knockd.KnockError as error:
        assert len(str(error).splitlines()) == 1
        return False
    again = reread(ledger)
    assert (again.keys, again.floor) == (ledger.keys, ledger.floor)
    ledger.refusal(KEY, 'aa', NOW)
    ledger.record(KEY, 'aa', NOW, WINDOW)
    assert reread(ledger).refusal(KEY, 'aa', NOW) == 'replay'
    return True


def test_a_ledger_cut_anywhere_is_unreadable():
    text = sample().state_line()
    assert survives(text)
    for end in range(len(text.rstrip())):
        assert not survives(text[:end])


def test_any_flipped_bit_is_taken_or_refused_and_nothing_else():
    data = sample().state_line().encode()
    taken = 0
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            taken += survives(flipped.decode('latin-1'))
    assert 0 < taken < len(data) * 8


def test_random_bytes_put_anywhere_are_taken_or_refused():
    chance, text = random.Random(4), sample().state_line()
    pieces = ['"', '{', '}', '[', ']', ',', ':', '-', '1e999', 'null', 'true', '\\u0000', '\n', '9',
              'NaN', '"floor"', '\x85']
    for _ in range(3000):
        place = chance.randrange(len(text))
        survives(text[:place] + chance.choice(pieces) + text[place + chance.randrange(9):])


def with_part(**parts):
    """The text of a ledger with one entry and some of its parts replaced."""
    entry = {'floor': 5, 'spent': {'aa': 7}, 'paper': [1, 2]}
    whole = {'knockd': 1, 'id': 'home', 'floor': 3, 'keys': {KEY: entry}}
    entry.update((key[1:], parts.pop(key)) for key in list(parts) if key.startswith('_'))
    whole.update(parts)
    return json.dumps(whole)


WRONG = [None, True, 1.5, '7', [], {}, [1], -1, 1 << 62, 10 ** 400, float('inf'), float('nan')]


@pytest.mark.parametrize('part', ['knockd', 'id', 'floor', 'keys', '_floor', '_spent', '_paper'])
def test_a_part_of_a_wrong_type_makes_it_unreadable(part):
    fitting = {'knockd': [True], 'keys': [{}], '_spent': [{}]}.get(part, [])
    for wrong in WRONG:
        if not any(type(wrong) is type(fine) and wrong == fine for fine in fitting):
            assert not survives(with_part(**{part: wrong})), wrong
    assert survives(with_part())


@pytest.mark.parametrize('entry', WRONG)
def test_a_time_or_a_paper_number_of_a_wrong_type_makes_it_unreadable(entry):
    assert not survives(with_part(_spent={'aa': entry}))
    assert not survives(with_part(_paper=[1, entry]))
    assert not survives(with_part(_paper=[entry, 1]))
    assert not survives(with_part(keys={KEY: entry}))


@pytest.mark.parametrize('mark', ['', 'x', KEY[1:], KEY + '0', KEY.upper(), KEY + '\n', 'g' * 16])
def test_a_key_that_is_no_fingerprint_makes_it_unreadable(mark):
    assert not survives(with_part(keys={mark: {'floor': 5, 'spent': {}, 'paper': [0, 0]}}))


@pytest.mark.parametrize('part', ['knockd', 'id', 'floor', 'keys'])
def test_a_missing_part_makes_it_unreadable(part):
    whole = json.loads(with_part())
    del whole[part]
    assert not survives(json.dumps(whole))


@pytest.mark.parametrize('part', ['floor', 'spent', 'paper'])
def test_a_missing_part_of_an_entry_makes_it_unreadable(part):
    whole = json.loads(with_part())
    del whole['keys'][KEY][part]
    assert not survives(json.dumps(whole))


def test_huge_and_deep_texts_are_refused():
    assert not survives('[' * 200000)
    assert not survives('{"a":' * 100000)
    assert not survives('9' * 5000)
    assert not survives(with_part().replace('"floor": 3', '"floor": ' + '3' * 5000))


def test_the_ledger_of_another_server_is_not_ours():
    text = sample().state_line()
    with pytest.raises(knockd.KnockError):
        knockd.parse_ledger(text, 'office')
    with pytest.raises(knockd.KnockError):
        knockd.parse_ledger(text, 'Home')


@pytest.mark.parametrize('line,words', [
    ({'key': KEY, 'spent': 5, 'time': 7}, 'id 5'),
    ({'key': KEY, 'spent': None, 'time': 7}, 'id None'),
    ({'key': KEY, 'spent': 'aa', 'time': True}, 'number True'),
    ({'key': KEY, 'spent': 'aa', 'time': -1}, 'number -1'),
    ({'key': KEY, 'spent': 'aa', 'time': knockd.NEVER}, 'number %d' % knockd.NEVER),
    ({'key': KEY, 'paper': [1, '2']}, "number '2'"),
    ({'key': 'x', 'paper': [1, 2]}, "key 'x'"),
    ({'key': 'x' * 99, 'paper': [1, 2]}, "key '" + 'x' * 39),
    ({'key': KEY, 'spent': 'aa'}, "entry {'key': '%s', 'spent'" % KEY),
    ({'key': KEY, 'paper': [1, 2], 'time': 7}, "entry {'key': '%s', 'paper'" % KEY)],
    ids=range(10))
def test_a_later_line_that_is_wrong_is_a_lost_ledger_and_its_fault_is_told(line, words):
    text = sample().state_line() + json.dumps(line) + '\n'
    with pytest.raises(knockd.KnockError) as told:
        knockd.parse_ledger(text, 'home')
    start = 'the ledger cannot be read: ' + words
    assert str(told.value)[:len(start)] == start and len(str(told.value)) < 90


def test_a_state_line_without_its_end_is_version_1_or_a_lost_ledger():
    text = with_part()
    assert survives(text) and survives(text + '\n')
    with pytest.raises(knockd.KnockError, match='its first line has no end'):
        knockd.parse_ledger(with_part(knockd=2), 'home')
    assert survives(with_part(knockd=2) + '\n')


def test_a_sheet_is_void_from_the_second_on_in_which_the_ledger_was_lost():
    """Its number is the second in which it was printed."""
    for floor, refusal in ((0, None), (1700000000, None), (1700000001001, None),
                           (1700000001999, None), (1700000002000, 'void'), (NOW * 9, 'void')):
        ledger = knockd.Ledger('home', floor)
        told = ledger.refusal(KEY, 'paper', 0, (1700000002, 1))
        assert (told and told.partition(':')[0]) == refusal


def test_what_was_cut_off_is_the_last_line_and_no_other():
    """An empty line behind it was written later, so it was synced."""
    text, start = journal(3)
    torn = text[:start] + '\0' * 9 + text[start + 9:]
    assert knockd.journal_end(torn) == start
    with pytest.raises(knockd.KnockError):
        knockd.parse_ledger(torn + '\n', 'home')
