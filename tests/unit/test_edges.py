"""What touches the world: whose the config is, commands, the log, sockets that fail. Real files
and processes; faults are put in by hand. Files as such: test_files.py, test_journal.py."""
import errno
import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import time
import types

import pytest

import knockd
import played
from bytes_of import read, write
from ruleset_event import message
from compiled import folder_of
from segments import tcp_segment
CONFIG = '[server]\nid = home\nhide = tcp/22\nledger = %s/ledger.json\n'
SECRET = knockd.encode_secret(bytes(range(32)))


def empty_ledger():
    return knockd.parse_ledger('{"knockd": 1, "id": "home", "floor": 0, "keys": {}}', 'home')


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    told = []
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: told.append(text))
    return told


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


@pytest.fixture
def anothers():
    """Gives a file, folder or link to another user."""
    if os.geteuid():
        pytest.skip('only root gives files away')
    return lambda path: os.chown(str(path), 12345, 12345, follow_symlinks=False)


def test_a_folder_of_another_user_is_refused(tmp_path, anothers):
    (tmp_path / 'folder').mkdir()
    path = config_file(tmp_path / 'folder', 0o600)
    anothers(tmp_path / 'folder')
    assert knockd.path_flaws(path, 0o027) == ['%s belongs to user 12345; type: chown root %s' % (
        (tmp_path / 'folder',) * 2)]


def test_a_link_on_the_way_is_followed_and_what_it_leads_to_is_judged(tmp_path):
    """OpenWrt: /run is a link to /var/run, which is in a link to /tmp."""
    (tmp_path / 'real').mkdir(mode=0o700)
    (tmp_path / 'middle').symlink_to('real')
    (tmp_path / 'link').symlink_to(tmp_path / 'middle')
    config_file(tmp_path / 'real', 0o600)
    path = str(tmp_path / 'link' / 'knockd.ini')
    assert knockd.path_flaws(path, 0o027) == []
    assert knockd.read_config(path).id == 'home'
    os.chmod(str(tmp_path / 'real'), 0o777)
    flaw = '%s is open to others; type: chmod go-w %s' % ((tmp_path / 'real',) * 2)
    assert knockd.path_flaws(path, 0o027) == [flaw]


def test_a_link_that_another_user_can_turn_is_refused(tmp_path, anothers):
    (tmp_path / 'real').mkdir(mode=0o700)
    (tmp_path / 'his').mkdir(mode=0o755)
    (tmp_path / 'his' / 'turning').symlink_to(tmp_path / 'real')
    (tmp_path / 'link').symlink_to(tmp_path / 'his' / 'turning')
    config_file(tmp_path / 'real', 0o600)
    anothers(tmp_path / 'his')
    flaw = '%s belongs to user 12345; type: chown root %s' % ((tmp_path / 'his',) * 2)
    assert knockd.path_flaws(str(tmp_path / 'link' / 'knockd.ini'), 0o027) == [flaw]


def test_a_link_of_another_user_in_a_sticky_folder_is_refused(tmp_path, anothers):
    (tmp_path / 'real').mkdir(mode=0o700)
    (tmp_path / 'sticky').mkdir()
    os.chmod(str(tmp_path / 'sticky'), 0o1777)
    (tmp_path / 'sticky' / 'link').symlink_to(tmp_path / 'real')
    anothers(tmp_path / 'sticky' / 'link')
    assert knockd.path_flaws(str(tmp_path / 'sticky' / 'link' / 'x'), 0o022) == [
        '%s belongs to user 12345; type: chown root %s' % ((tmp_path / 'sticky' / 'link',) * 2)]


@pytest.mark.parametrize('target', ['link', './link/', 'other/../link'])
def test_links_in_a_circle_are_one_flaw(tmp_path, target):
    (tmp_path / 'link').symlink_to(target)
    flaws = knockd.path_flaws(str(tmp_path / 'link' / 'knockd.ini'), 0o027)
    assert flaws == ['%s: Too many levels of symbolic links' % (tmp_path / 'link' / 'knockd.ini')]


def test_a_config_that_is_not_there_or_a_folder_is_one_sentence(tmp_path):
    for path in (str(tmp_path / 'none.ini'), str(tmp_path)):
        with pytest.raises(knockd.KnockError) as caught:
            knockd.read_config(path)
        assert caught.value.status == 2 and str(caught.value).startswith(path)


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
    monkeypatch.setenv('PATH', '')

    def make(name, text):
        write(str(folder / name), ('#!/bin/sh\n%s\n' % text).encode(), 0o755)
    return make


@pytest.mark.parametrize('manager,command', [
    ('apt-get', 'apt-get update && apt-get install -y nftables'),
    ('opkg', 'opkg update && opkg install nftables'), ('apk', 'apk add --update-cache nftables'),
    ('dnf', 'dnf install -y nftables'), ('pacman', 'pacman -Sy --noconfirm nftables'),
    ('zypper', 'zypper install -y nftables')])
def test_a_missing_nft_is_told_with_what_to_type_here(programs, manager, command):
    programs(manager, '')
    with pytest.raises(knockd.KnockError) as caught:
        knockd.run(['nft', '-f', '-'], 'flush ruleset')
    assert str(caught.value) == 'nft is not installed; type: ' + command
    assert caught.value.status == 1


def test_without_a_package_manager_the_package_is_named(programs):
    with pytest.raises(knockd.KnockError, match='^nft is not installed; .*nftables$'):
        knockd.run(['nft', '-f', '-'])


@pytest.mark.parametrize('program,package', [
    ('iptables-save', 'iptables'), ('ip6tables-restore', 'iptables'), ('ipset', 'ipset'),
    ('ssh-keygen', 'openssh-client'), ('unshare', 'util-linux')])
def test_a_package_is_named_as_the_distribution_calls_it(programs, program, package):
    programs('dnf', '')
    with pytest.raises(knockd.KnockError) as caught:
        knockd.run([program])
    assert str(caught.value) == '%s is not installed; type: dnf install -y %s' % (
        program, package)


def test_a_program_elsewhere_in_path_is_found_where_only_root_can_write(
        programs, tmp_path, monkeypatch):
    others, ours = tmp_path / 'others', tmp_path / 'ours'
    for folder in (others, ours):
        folder.mkdir()
        write(str(folder / 'nft'), b'#!/bin/sh\necho %s' % folder.name.encode(), 0o755)
    others.chmod(0o777)
    monkeypatch.setenv('PATH', '%s:%s:.:' % (others, ours))
    knockd.is_roots.cache_clear()
    assert knockd.run(['nft']) == 'ours\n'
    ours.chmod(0o777)
    knockd.is_roots.cache_clear()
    with pytest.raises(knockd.KnockError, match='not installed'):
        knockd.run(['nft'])


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
    assert str(caught.value) == 'nft -f - failed (3): Error: no\nmore'


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


def frames(*answers):
    return [frame for frame, _ in knockd.receive(Scripted(*answers))]


@pytest.mark.parametrize('number', [errno.ENETDOWN, errno.ENOBUFS])
def test_an_interface_that_goes_away_ends_no_daemon(number):
    assert frames(b'a', OSError(number, 'gone'), b'b') == [b'a', b'b']


def test_an_error_that_is_not_understood_is_not_hidden():
    with pytest.raises(OSError):
        frames(b'a', OSError(errno.EINVAL, 'what'))


def test_one_turn_reads_a_bounded_number_of_frames():
    assert frames(*[b'x'] * 1000) == [b'x'] * 256


@pytest.fixture
def daemon(tmp_path, monkeypatch, lines):
    """A Daemon without sockets and firewall."""
    text = CONFIG % tmp_path + '[client anna]\nsecret = %s\n' % SECRET
    config = knockd.parse_config(text, str(tmp_path / 'knockd.ini'))
    state = knockd.State(config, knockd.Ledger('home'))
    made = played.furnished(monkeypatch, config, state, knockd.moment())
    del lines[:]
    return made


def test_a_frame_that_breaks_us_is_told_once_and_the_next_is_read(daemon, lines):
    heard = []

    def hear(frame, interface):
        heard.append(frame)
        raise ZeroDivisionError('a\nb')
    daemon.hearing.datagrams.taps = [Scripted(b'a', b'b')]
    daemon.hear = hear
    daemon.read(daemon.hearing.datagrams, {5})
    assert heard == [b'a', b'b']
    assert len(lines) == 1 and lines[0].startswith('internal error: ZeroDivisionError')


def test_a_flood_of_syns_puts_sequences_to_sleep_and_not_the_daemon(daemon, lines):
    syn = bytes.fromhex('450000280000000040060000' 'c0000201' '7f000001') + tcp_segment(5000)
    daemon.hearing.syns.drops = lambda: 30000           # what the kernel had no room for counts
    for _ in range(3):
        daemon.hear_syn(syn, 'eth0')
    assert set(daemon.hearing.muted) == {'syn'}
    assert len(lines) == 1 and 'SYNs a second' in lines[0]
    assert daemon.hearing.muted['syn'] <= time.monotonic() * 1000 + 2001


def test_a_packet_sockets_filter_lets_by_what_it_shall_and_nothing_else():
    """A real filter on a real socket, which needs no right: a Unix one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        # linux/filter.h: A = the first byte; 7 passes whole, all else is dropped.
        knockd.attach_filter(ours, [(0x30, 0, 0, 0), (0x15, 0, 1, 7), (6, 0, 0, 65535),
                                    (6, 0, 0, 0)])
        for data in (b'\x06', b'\x07good', b'\x08', b'\x07too'):
            theirs.send(data)
        assert [ours.recv(99), ours.recv(99)] == [b'\x07good', b'\x07too']


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
def changes_after(*packets):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        for packet in packets:
            theirs.send(packet)
        return knockd.ruleset_changes(ours)


@pytest.mark.parametrize('kinds,changed', [
    ([12, 15], False), ([14, 12, 15], False), ([15], False), ([], False),
    ([8, 15], True), ([2, 15], True), ([12, 12, 3, 15], True), ([6, 15], True), ([11, 15], True)])
def test_of_others_only_what_is_more_than_set_elements_is_a_change(kinds, changed):
    changes = changes_after(*[message(kind) + message(15) for kind in kinds])
    assert changes == ({knockd.OTHERS} if changed else set())


@pytest.mark.parametrize('kind', [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 18, 20, 22, 26])
def test_of_our_table_every_change_tells_its_sender(kind):
    """Elements too: who is open is in them."""
    told = changes_after(message(kind, 'knockd') + message(15), message(8, 'knockd', 701))
    assert told == {700, 701}


def test_every_message_of_a_packet_and_every_packet_counts():
    told = changes_after(message(12, 'a', 1) + message(12, 'knockd', 2) + message(6, 'ab', 3),
                         message(15), message(6, 'knockd', 4) + message(6, 'knockd', 4))
    assert told == {knockd.OTHERS, 2, 4}


@pytest.mark.parametrize('table,family', [
    ('knockd', 2), ('knock', 1), ('knockd2', 1), ('knockd-watch', 1), ('myknockd', 1)])
def test_a_table_that_is_called_nearly_so_is_another(table, family):
    assert changes_after(message(6, table, family=family)) == {knockd.OTHERS}


def test_changes_that_the_socket_could_not_hold_are_a_change_and_hide_no_other():
    """After the error the kernel still hands out what came before."""
    class Overrun:
        answers = [OSError(errno.ENOBUFS, 'No buffer space available'),
                   message(12, 'knockd'), BlockingIOError()]

        def recv(self, _):
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
    assert knockd.ruleset_changes(Overrun()) == {knockd.OTHERS, 700}


# --- decoys -------------------------------------------------------------------------------------
def listens(port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        try:
            other.bind(('127.0.0.1', port))
            other.listen(1)
            return True
        except OSError:
            return False


def refuses(address, port):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as caller:
        return caller.connect_ex((address, port)) == errno.ECONNREFUSED


def test_nobody_else_can_listen_at_a_decoy_and_it_refuses_as_closed_ports_do():
    decoys = knockd.Decoys()
    ports = decoys.hold([22, 25], {}, ())
    assert sorted(ports) == [22, 25] and len(set(ports.values())) == 2
    for port in ports.values():
        assert not listens(port)
        assert refuses('127.0.0.1', port)
    decoys.keep([25])
    assert listens(ports[22]) and not listens(ports[25])
    decoys.keep([])


def test_the_decoys_that_the_rules_name_are_taken_again():
    first = knockd.Decoys()
    ports = first.hold([22], {}, ())
    first.keep([])
    second = knockd.Decoys()
    assert second.hold([22], ports, ()) == ports
    assert second.hold([22], {}, ()) == ports, 'no port changes'
    assert second.taken({ports[22]}) and not second.taken({1})
    other = second.hold([22], {}, {ports[22]})
    assert other != ports, 'the box names it now'
    second.keep([])


def test_where_no_port_is_free_that_is_one_sentence():
    with pytest.raises(knockd.KnockError, match='no TCP port'):
        knockd.Decoys().hold([22], {}, range(65536))


# --- which firewall -----------------------------------------------------------------------------
def config_of(**settings):
    text = '[server]\nid = home\nhide = tcp/22\n' + ''.join(
        '%s = %s\n' % each for each in settings.items())
    return knockd.parse_config(text, '/etc/knockd/knockd.ini')


@pytest.mark.parametrize('version, old', (
    ('0.9.8', True), ('1.0.1', True), ('1.0.2', False), ('1.0.6', False), ('1.1', False)))
def test_an_nft_that_is_too_old_is_none(programs, version, old):
    programs('nft', 'echo "nftables v%s (Name)"' % version)
    flaw = knockd.nft_flaw()
    assert (flaw is not None) == old
    assert not old or 'is older than 1.0.2' in flaw


def test_without_a_usable_nft_it_is_iptables_and_why_is_told(programs):
    programs('nft', '[ "$1" = --version ] && echo nftables v1.0.6 && exit 0; '
             'echo no such >&2; exit 1')
    for program in ('iptables-save', 'ipset'):
        programs(program, '')
    tool, why = knockd.choose_tool(config_of())
    assert tool is knockd.IPTABLES and 'no such' in why
    with pytest.raises(knockd.KnockError, match=r'\[server\] firewall: .*no such') as caught:
        knockd.choose_tool(config_of(firewall='nft'))
    assert caught.value.status == 2


def test_without_any_both_are_named(programs):
    with pytest.raises(knockd.KnockError, match='nft is not installed.*iptables.* is not'):
        knockd.choose_tool(config_of())


# --- probation ----------------------------------------------------------------------------------
@pytest.fixture
def probation(tmp_path, monkeypatch, lines):
    """A function: the Probation of a file with this text, so many ms after a boot."""
    def made(text=None, mono=5000, boot='b1'):
        monkeypatch.setattr(knockd, 'boot_id', lambda: boot)
        if text is not None:
            write(str(tmp_path / 'probation'), text.encode(), 0o600)
        return knockd.Probation(str(tmp_path / 'probation'), mono)
    return made


def on_trial(left, mono=0, boot=''):
    return knockd.probation_text(knockd.ON_TRIAL, left, mono, boot)


def test_a_probation_begins_with_the_daemon_and_goes_on_through_restarts(probation):
    assert probation(on_trial(600000), 5000).left(5000) == 600000
    assert probation(mono=15000).left(15000) == 590000
    assert probation(mono=604999).left(604999) == 1
    assert probation(mono=700000).left(700000) == 0


def test_after_a_boot_it_may_end_early_and_never_late(probation):
    """Nobody knows how long the boot before went on behind the last note."""
    first = probation(on_trial(600000), 0)
    for now in range(0, 590000, 1000):
        first.look(now)
    assert first.left(590000) == 10000
    again = probation(mono=10, boot='b2')
    assert 0 <= again.left(10) <= 10000
    quick = probation(on_trial(600000, 0, 'b1'), 10, 'b2')
    assert quick.left(10) == 480000


def test_it_lapses_once_and_a_knock_makes_it_pass_for_good(probation, lines):
    made = probation(on_trial(600000), 0)
    assert not made.look(599999)
    assert made.look(600000) and not made.look(600001)
    assert made.state == probation(mono=700000).state == knockd.LAPSED
    assert made.pass_by(800000) and not made.pass_by(800001)
    assert probation(mono=0, boot='b3').state == knockd.PASSED
    assert [line.split()[:2] for line in lines] == [['probation:', 'no'], ['probation:', 'passed,']]


def test_flash_is_not_worn_by_it(probation, monkeypatch):
    writes = []
    made = probation(on_trial(600000), 0)
    monkeypatch.setattr(knockd, 'replace_file', lambda *_: writes.append(1))
    for now in range(0, 600001, 500):
        made.look(now)
    assert len(writes) <= 6


def test_what_was_not_installed_has_no_probation(probation):
    assert probation().state == knockd.PASSED


@pytest.mark.parametrize('text', (
    '', '{', '[]', '{"state": "on trial"}', '{"state": "passe"}', '\x00', 'null',
    '{"state": "on trial", "left": "x", "mono": 1, "boot": "b1"}'))
def test_an_unreadable_probation_locks_nobody_out(probation, text):
    assert probation(text).state == knockd.LAPSED


# --- the last good config -----------------------------------------------------------------------
def good_config(folder):
    text = CONFIG % folder + '[client anna]\nsecret = %s\n' % SECRET
    return write(str(folder / 'knockd.ini'), text.encode(), 0o600)


def test_the_last_good_config_rules_while_the_file_is_broken(tmp_path, lines):
    path = good_config(tmp_path)
    config, problem = knockd.config_to_run(path)
    assert problem is None
    knockd.ConfigFile(path).keep(config)
    write(path, read(path) + b'[client bert]\nnonsense\n')
    again, problem = knockd.config_to_run(path)
    assert again == config and 'knockd.ini' in problem
    source = knockd.ConfigFile(path, problem)
    source.keep(config)                     # a broken file is never kept
    assert knockd.config_to_run(path)[0] == config
    write(path, b'\xff[[[\nledger = %s/ledger.json\n' % str(tmp_path).encode())
    assert knockd.config_to_run(path)[0] == config


@pytest.mark.parametrize('spoil', (
    lambda copy: os.chmod(copy, 0o644), lambda copy: os.unlink(copy),
    lambda copy: write(copy, b'# The last good copy of /another.ini, for a start'),
    lambda copy: write(copy, read(copy) + b'nonsense')))
def test_a_copy_that_is_not_right_does_not_rule(tmp_path, spoil):
    path = good_config(tmp_path)
    knockd.ConfigFile(path).keep(knockd.read_config(path))
    write(path, b'nonsense')
    spoil(str(tmp_path / knockd.GOOD_NAME))
    with pytest.raises(knockd.KnockError) as caught:
        knockd.config_to_run(path)
    assert caught.value.status == 2


# --- the clock ----------------------------------------------------------------------------------
def test_only_a_forward_step_is_a_jump_and_only_after_a_lost_ledger():
    clock = knockd.WallClock()
    assert not clock.jumped(knockd.Moment(10 ** 12, 0))
    clock.watch(knockd.Moment(10 ** 12, 0))
    for wall, mono, jumped in ((10 ** 12 + 2000, 1000, False), (10 ** 12 + 3001, 1000, True),
                               (10 ** 12 + 3001, 1000, False), (10 ** 11, 2000, False),
                               (10 ** 11 + 5000, 2000, True)):
        assert clock.jumped(knockd.Moment(wall, mono)) == jumped, (wall, mono)


# --- the log's limits ---------------------------------------------------------------------------
def test_each_kind_of_each_client_is_told_once_a_minute_and_counted(lines):
    reports = knockd.Reports()
    for second in range(61):
        now = knockd.Moment(second * 1000, second * 1000)
        for client in ('anna', 'bert'):
            knock = types.SimpleNamespace(client=types.SimpleNamespace(name=client),
                                          source='192.0.2.1')
            refused = knockd.Decision('refused', None, None, knock)
            reports.complain(refused, 'clock', 'clock +%ds' % second, now)
            reports.complain(refused, 'scope', 'not allowed', now)
        reports.tell('SYNs', 'too many', now)
    told = ['refused %s 192.0.2.1 %s' % (client, reason) for client in ('anna', 'bert')
            for reason in ('clock +%ds', 'not allowed')] + ['too many']
    assert lines == [line.replace('%d', '0') for line in told] + [
        line.replace('%d', '60') + ' (59 more before)' for line in told]
    assert {'client': 'bert', 'source': '192.0.2.1', 'reason': 'clock +60s', 'count': 61,
            'last': 60000} in reports.refusals()
    assert len(reports.refusals()) == 4


# --- memory --------------------------------------------------------------------------------------
def test_the_daemon_imports_nothing_that_only_the_command_line_needs():
    """argparse costs it 0.4 MB for life, shutil with its compressors 0.7."""
    code = ('import sys; sys.path.insert(0, %r); import knockd; print(*sys.modules)'
            % folder_of(knockd.__file__))
    imported = subprocess.check_output([sys.executable, '-ISc', code]).decode().split()
    assert not {'argparse', 'shutil', 'tempfile', 'zlib'} & set(imported)


# --- which packet sockets, and what they hear twice -----------------------------------------------
HEAD = 'Type Device      Function\n'
IP, IPV6, ARP = '0800          ip_rcv\n', '86dd          ipv6_rcv\n', '0806          arp_rcv\n'
OURS4, OURS6 = '0800          packet_rcv\n', '86dd          packet_rcv\n'


@pytest.mark.parametrize('listed,late', [
    (HEAD + OURS6 + IP + ARP + IPV6, True),                     # 6.18
    (HEAD + 'ALL  eth0     packet_rcv\n' + OURS4 + OURS6 + IP + ARP + IPV6, True),
    (HEAD + OURS6.replace('rcv', 'rcv [af_packet]') + IP + ARP + IPV6, True),
    (HEAD + IP + ARP + OURS6 + IPV6, False),                    # 6.1
    (HEAD + OURS4 + IP + ARP + OURS6 + IPV6, False),            # 6.1, and somebody's dhclient
    (HEAD + '86dd eth0     packet_rcv\n' + IP + OURS6 + IPV6, False),
    (HEAD + IP + ARP + IPV6, False), (HEAD + OURS6, False), (HEAD, False), ('', False),
    (HEAD + '86dd 0xffffffff81234567\n0800 0xffffffff81234567\n', False)])
def test_who_hears_first_is_read_in_the_kernels_list(listed, late):
    assert knockd.hears_late(listed) == late


def test_where_the_list_cannot_be_read_there_are_two_sockets(monkeypatch):
    monkeypatch.setattr(knockd, 'packet_socket', lambda protocol: socket.socket())
    monkeypatch.setattr(knockd, 'read_file', lambda path: (_ for _ in ()).throw(OSError(2, path)))
    assert knockd.packet_protocols() == [knockd.ETH_P_IP, knockd.ETH_P_IPV6]
    monkeypatch.setattr(knockd, 'read_file', lambda path: HEAD + OURS6 + IP)
    assert knockd.packet_protocols() == [knockd.ETH_P_ALL]


@pytest.mark.skipif(os.geteuid() != 0, reason='a packet socket needs root')
def test_a_socket_for_all_is_not_asked_about_what_this_box_sends():
    with knockd.packet_socket(knockd.ETH_P_ALL) as sock:
        assert sock.getsockopt(knockd.SOL_PACKET, knockd.PACKET_IGNORE_OUTGOING) == 1


def attribute(kind, value):
    """linux/netlink.h: struct nlattr, filled up to a multiple of four."""
    return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)


def link_answer(*about, kind=16, master=True):
    """linux/rtnetlink.h: RTM_NEWLINK (16), struct ifinfomsg, then IFLA_IFNAME (3), IFLA_MASTER (10)
    and IFLA_LINKINFO (18), in which IFLA_INFO_KIND is 1 and IFLA_INFO_SLAVE_KIND 4."""
    attributes = attribute(3, b'eth0\0')
    if master:
        attributes += attribute(10, struct.pack('=I', 7))
    if about:
        attributes += attribute(18, b''.join(about))
    return struct.pack('=IHHII', 32 + len(attributes), kind, 0, 0, 0) + bytes(16) + attributes


@pytest.mark.parametrize('about,master,port', [
    ([attribute(4, b'bridge\0')], True, True),
    ([attribute(1, b'veth\0'), attribute(4, b'bond\0')], True, True),
    ([attribute(4, b'team\0')], True, True), ([attribute(4, b'openvswitch\0')], True, True),
    ([], True, True),       # hv_netvsc and net_failover: made by no rtnetlink, so of no kind
    ([attribute(4, b'vrf\0')], True, False),       # a VRF's interface keeps what it hears
    ([attribute(1, b'bridge\0')], False, False), ([], False, False)])
def test_a_port_is_known_by_the_kind_of_its_master(about, master, port, monkeypatch):
    monkeypatch.setattr(knockd, 'ask_kernel', lambda *_: link_answer(*about, master=master))
    assert knockd.is_port.__wrapped__('lo', 1) == port


def test_an_answer_that_is_an_error_or_is_cut_names_no_master(monkeypatch):
    answers = [link_answer(attribute(4, b'bridge\0'), kind=2)]
    monkeypatch.setattr(knockd, 'ask_kernel', lambda *_: answers[0])
    assert knockd.link_kind(7, 4) == b''
    whole = link_answer(attribute(4, b'bridge\0'))
    for end in range(16, len(whole)):
        answers[0] = whole[:end]
        knockd.link_kind(7, 4)
    zero = struct.pack('=HH', 0, 18)            # a length of 0 must not be read for ever
    assert knockd.netlink_attributes(zero * 3) == {18: b''}
    assert not knockd.is_port('no-such', 1)


def test_check_names_flowtables_where_hosts_behind_the_box_are_guarded(monkeypatch):
    """As nft 1.0.6 lists one; the tests' own kernel may have none."""
    table = {'flowtable': {'family': 'inet', 'name': 'ft', 'table': 'fw4', 'handle': 7,
                           'hook': 'ingress', 'prio': 0, 'dev': ['eth0', 'lan']}}
    monkeypatch.setattr(knockd, 'run', lambda argv: json.dumps({'nftables': [
        {'metainfo': {'version': '1.0.6'}}, table]}))
    monkeypatch.setattr(knockd, 'bridges_of_box', lambda: [(7, 'br0')])
    config = knockd.parse_config('[server]\nid = a\nhide = tcp/22\nbehind = 192.0.2.1\n'
                                 'trust = br0\n', '/x/y.ini')
    found = list(knockd.flaws_behind(config))
    assert sum('flowtable inet fw4 ft: ' in flaw for flaw in found) == 1
    assert list(knockd.flaws_behind(config._replace(behind=()))) == []
