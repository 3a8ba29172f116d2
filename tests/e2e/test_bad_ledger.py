"""Whatever becomes of the ledger's place: nothing opens that was not written, and it goes on by
itself when the disk does."""

import os
import shutil

import pytest
from network import until

pytestmark = pytest.mark.kernel


def folder(wire, path):
    os.mkdir(path)


def link(wire, path):
    os.symlink(path + '.elsewhere', path)


def loop(wire, path):
    os.symlink(path, path)


def pipe(wire, path):
    os.mkfifo(path)


def other(wire, path):
    with open(path, 'w') as file:
        file.write('{"knockd": 1, "id": "somebody-else", "floor": 0, "keys": {}}')


def cut(wire, path):
    with open(path, 'w') as file:
        file.write('{"knockd": 1, "id": "')


KINDS = (folder, link, loop, pipe, other, cut)


def mend(path):
    shutil.rmtree(path) if os.path.isdir(path) else os.path.lexists(path) and os.unlink(path)


@pytest.mark.parametrize('kind', KINDS)
def test_a_daemon_that_finds_this_refuses_and_then_goes_on(wire, daemon, kind):
    """At the start: quarantine, two seconds long with this window; then one knock, one opening."""
    knockd = daemon('window = 1s', anna='')
    address = wire.server.addresses[0]
    used = knockd.datagram('anna', seconds=1)
    wire.client.send(used, address)
    knockd.says('open anna ')
    knockd.kill()
    os.unlink(knockd.ledger)
    kind(wire, knockd.ledger)
    knockd.start()
    knockd.says('quarantine: ledger ')
    wire.stranger.send(used, address)
    wire.client.send(knockd.datagram('anna'), address)
    knockd.says('refused anna 10.9.0.3 ')       # quarantine, or too old on a slow machine
    assert knockd.count('open anna ') == 1
    if kind is folder:
        mend(knockd.ledger)             # nothing can be written over a folder

    def opened():
        wire.client.send(knockd.datagram('anna'), address)
        return until(lambda: knockd.count('open anna ') > 1, 0.3)
    assert until(opened, 8), knockd.text()
    assert not os.path.exists(knockd.ledger + '.elsewhere')
    assert 'Traceback' not in knockd.text()


@pytest.mark.parametrize('kind', KINDS)
def test_a_ledger_that_becomes_this_while_it_runs_forgets_nothing(wire, daemon, kind):
    knockd = daemon(anna='', bert='')
    address = wire.server.addresses[0]
    used = knockd.datagram('anna')
    wire.client.send(used, address)
    knockd.says('open anna ')
    os.unlink(knockd.ledger)
    kind(wire, knockd.ledger)
    wire.client.send(knockd.datagram('bert'), address)
    if kind is folder:
        knockd.says('refused bert 10.9.0.2: the ledger cannot be written')
        assert knockd.count('open bert ') == 0
        mend(knockd.ledger)
        wire.client.send(knockd.datagram('bert'), address)
    knockd.says('open bert ')
    knockd.kill()
    knockd.start()
    wire.stranger.send(used, address)
    knockd.says('refused anna 10.9.0.3 replay')
    assert knockd.count('open anna ') == 1


def nothing_opens(wire, knockd):
    before = knockd.count('open anna ')
    wire.client.send(knockd.datagram('anna'), wire.server.addresses[0])
    knockd.says('refused anna 10.9.0.2: the ledger cannot be written')
    assert knockd.count('open anna ') == before


def it_opens(wire, knockd):
    before = knockd.count('open anna ')
    wire.client.send(knockd.datagram('anna'), wire.server.addresses[0])
    knockd.says('open anna ', before + 1)


def test_on_a_read_only_disk_nothing_opens_and_no_restart_is_needed(wire, daemon):
    knockd = daemon(anna='')
    state = os.path.dirname(knockd.ledger)
    shutil.copy(knockd.ledger, knockd.ledger + '.copy')     # the file that the daemon has open
    os.rename(knockd.ledger + '.copy', knockd.ledger)       # would still be writable
    wire.server.must('mount', '--bind', state, state)
    try:
        wire.server.must('mount', '-o', 'remount,bind,ro', state)
        nothing_opens(wire, knockd)
    finally:
        wire.server.must('umount', '-l', state)
    it_opens(wire, knockd)


def test_a_daemon_that_starts_on_a_read_only_disk_hides_and_waits_for_it(wire, daemon):
    knockd = daemon(anna='')
    state = os.path.dirname(knockd.ledger)
    knockd.kill()
    wire.server.must('mount', '--bind', state, state)
    try:
        wire.server.must('mount', '-o', 'remount,bind,ro', state)
        knockd.start()
        nothing_opens(wire, knockd)
        assert not wire.stranger.connects(wire.server.addresses[0])
        wire.server.must('mount', '-o', 'remount,bind,rw', state)
        it_opens(wire, knockd)
        assert 'another knockd' in knockd.do('run').err, 'the lock is held'
    finally:
        wire.server.must('umount', '-l', state)


def test_on_a_full_disk_there_is_room_for_knocks_over_a_restart_too(wire, daemon):
    knockd = daemon('window = 1s', anna='')
    state = os.path.dirname(knockd.ledger)
    knockd.stop()
    wire.server.must('mount', '-t', 'tmpfs', '-o', 'size=128k,mode=700', 'none', state)

    def fill(name):
        wire.server.run('dd', 'if=/dev/zero', 'of=%s/%s' % (state, name), 'bs=1k')
    try:
        wire.server.must('sh', '-c', 'echo "$0" >"$1"', '{"knockd": 1, "id": "%s", "floor": 0, '
                         '"keys": {}}' % knockd.server_id, knockd.ledger)
        knockd.start()
        fill('filler')
        for _ in range(3):
            it_opens(wire, knockd)
        knockd.kill()
        knockd.start()
        for _ in range(3):
            it_opens(wire, knockd)
        assert 'ledger' not in knockd.text(), 'nothing to complain of'
        knockd.kill()
        wire.server.must('rm', knockd.ledger)
        fill('more')
        knockd.start()
        knockd.says('quarantine: the ledger cannot be written')
        before = knockd.count('open anna ')

        def told():
            wire.client.send(knockd.datagram('anna'), wire.server.addresses[0])
            return until(lambda: knockd.count('anna 10.9.0.2: the ledger cannot be written'), 0.3)
        assert until(told, 8), knockd.text()
        assert knockd.count('open anna ') == before
        wire.server.must('rm', state + '/filler', state + '/more')
        it_opens(wire, knockd)
    finally:
        knockd.kill()
        wire.server.must('umount', '-l', state)
