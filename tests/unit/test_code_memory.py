"""Wrong codes are remembered over a restart: whoever makes the daemon start again gains no try."""
import ipaddress
import os

import knockd
import played
import pytest

STEP, HOUR, DAY = 30000, 3600000, 86400000
WALL, MONO = 1700000010000, 5000000
CONFIG = knockd.parse_config('''[server]
id = box
hide = tcp/22
carriers = udp, code
[client anna]
secret = %s
code = yes
''' % knockd.encode_secret(b'a' * 32), '/nowhere/knockd.ini')
STRANGER = ipaddress.ip_address('203.0.113.9')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(knockd, 'Capture', played.Deaf)
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(tmp_path))
    return tmp_path


class Looked(dict):
    """The table of valid codes, and how often somebody looked into it."""
    looks = 0

    def get(self, digits):
        self.looks += 1
        return None


def hearing(mono):
    """Of a daemon that has just begun."""
    made = knockd.Hearing(knockd.State(CONFIG, knockd.Ledger('box')),
                          knockd.Moment(WALL - MONO + mono, mono))
    made.state.codes = Looked(some=1)
    return made


def typed(heard, mono, number=0):
    """A wrong code. Was it looked at?"""
    before = heard.state.codes.looks
    for port in (10000 + number % 10000, 20000 + number // 10000):
        heard.packets_of(knockd.Syn(STRANGER, STRANGER, port, bytes(10)),
                         knockd.Moment(WALL - MONO + mono, mono))
    return heard.state.codes.looks > before


def test_a_restart_after_each_try_or_each_minute_gains_a_guesser_nothing(folder):
    """The whole chain, down to the file: a day of it, three tries an hour and 21 more."""
    for every in (1000, 60000):
        for name in os.listdir(str(folder)):
            os.unlink(str(folder / name))
        looks, mono = 0, MONO
        while mono < MONO + DAY:
            looks += typed(hearing(mono), mono, looks)
            # He sees when it sleeps, which no stranger can.
            mono = max(mono + every, hearing(mono).keys.codes.asleep_until)
        assert 24 <= looks <= 3 * 24 + 21 + 3


def test_it_sleeps_on_and_for_as_long_as_without_a_restart(folder):
    heard = hearing(MONO)
    assert [typed(heard, MONO, number) for number in range(4)] == [True, True, True, False]
    ends = heard.keys.codes.asleep_until
    again = hearing(MONO + 1000)
    assert not typed(again, ends - 1)
    assert typed(again, ends)
    assert again.keys.codes.memory() == [1, ends, heard.keys.codes.forgiven_at]


def test_two_wrong_ones_before_a_restart_and_one_after_it_are_three(folder):
    heard = hearing(MONO)
    assert typed(heard, MONO, 1) and typed(heard, MONO, 2)
    heard = hearing(MONO)
    assert typed(heard, MONO, 3) and not typed(heard, MONO, 4)


def test_a_clock_in_doubt_gives_no_tries(folder, monkeypatch):
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(WALL, MONO))
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: None)
    state = knockd.State(CONFIG, knockd.Ledger('box'))
    daemon = played.furnished(monkeypatch, CONFIG, state, knockd.Moment(WALL, MONO))
    for number in range(3):
        state.codes = Looked(some=1)
        typed(daemon.hearing, MONO, number)
    asleep = daemon.hearing.keys.codes.asleep_until
    assert asleep > MONO
    for wall in (1000, WALL + HOUR):
        daemon.turn(knockd.Moment(wall, MONO + 1))
    assert daemon.hearing.keys.codes.asleep_until == asleep


def test_what_is_typed_while_the_clock_is_wrong_is_no_try(folder):
    """The owner's right code is wrong by that clock, and so may be other ports that he touches."""
    heard = hearing(MONO)
    heard.turn('it is wrong', knockd.Moment(1000, MONO))
    assert heard.state.codes == {}
    for number in range(9):
        for port in (10000 + number, 20000):
            heard.packets_of(knockd.Syn(STRANGER, STRANGER, port, bytes(10)),
                             knockd.Moment(1000, MONO))
    assert heard.keys.codes.memory() == [0, 0, 0]
    heard.turn(None, knockd.Moment(WALL, MONO))
    heard.state.codes = Looked(some=1)
    assert typed(heard, MONO, 1)


@pytest.mark.parametrize('text', ['', '5', '[]', '[1, 2]', '[0, 0, "x"]', '[0, -1, 0]', '[' * 9000],
                         ids=range(7))
def test_a_memory_that_cannot_be_read_is_the_worst_that_there_can_be(folder, text):
    (folder / 'box.codes').write_text(text)
    heard = hearing(MONO)
    assert [typed(heard, MONO, number) for number in range(4)] == [True, True, True, False]
    assert heard.keys.codes.asleep_until - MONO >= HOUR


def test_the_memory_of_another_boot_is_not_slept_for_ever(folder):
    (folder / 'box.codes').write_text('[2, %d, %d]' % (400 * DAY, 400 * DAY))
    assert not typed(hearing(MONO), MONO + HOUR)
    assert typed(hearing(MONO), MONO + HOUR + STEP)
    assert hearing(MONO).keys.codes.forgiven_at == MONO + 8 * HOUR


def test_a_memory_that_cannot_be_written_is_told_and_the_try_counts(folder, monkeypatch):
    lines, heard = [], hearing(MONO)
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: lines.append(text))
    heard.codes_path = str(folder / 'gone' / 'box.codes')
    assert typed(heard, MONO)
    assert heard.keys.codes.wrong == 1
    assert lines == [heard.codes_path + ': No such file or directory']
