"""An nft waits for the next change: it costs no knock an exec, and nobody ever finds one left."""

import os
import signal

import pytest
from network import until

pytestmark = pytest.mark.kernel


def children(knockd):
    """{process id: the state it is in} of what the daemon has started; Z is a zombie."""
    pid, found = knockd.process.pid, {}
    with open('/proc/%d/task/%d/children' % (pid, pid)) as words:
        for child in words.read().split():
            try:
                with open('/proc/%s/stat' % child) as file:
                    found[int(child)] = file.read().rpartition(')')[2].split()[0]
            except OSError:
                pass                    # ended since
    return found


def waiting(knockd):
    """The process id of the one that waits, and there is nothing else."""
    assert until(lambda: list(children(knockd).values()) == ['S']), children(knockd)
    return list(children(knockd))[0]


def alive(pid):
    return os.path.exists('/proc/%d' % pid)


def opens(wire, knockd):
    address = wire.server.addresses[0]
    done = wire.client.knock('--open', 'tcp/2222', '--for', '1', '--wait', '5',
                             knockd.uri('anna', address))
    assert done.code == 0, done.err + knockd.text()
    assert until(lambda: not wire.client.connects(address))


def test_each_knock_uses_up_the_one_that_waits_and_the_next_is_there(wire, daemon):
    knockd, seen = daemon(anna=''), set()
    for _ in range(3):
        pid = waiting(knockd)
        with open('/proc/%d/environ' % pid) as file:
            assert sorted(word.partition('=')[0] for word in file.read().split('\0')[:-1]) == [
                'LC_ALL', 'PATH']
        opens(wire, knockd)
        assert until(lambda used=pid: not alive(used)), 'it was not used'
        seen.add(pid)
    assert len(seen) == 3
    assert 'failed' not in knockd.text()


def test_one_that_was_killed_is_missed_by_nobody(wire, daemon):
    knockd = daemon(anna='')
    os.kill(waiting(knockd), signal.SIGKILL)
    opens(wire, knockd)
    assert 'failed' not in knockd.text() and waiting(knockd)


def test_one_that_waited_while_the_ruleset_became_another_knows_the_new_one(wire, daemon):
    knockd = daemon(anna='')
    pid = waiting(knockd)
    wire.server.nft('add table inet strange; add chain inet strange a; add table ip other')
    wire.server.nft('delete table inet strange; delete table ip other')
    opens(wire, knockd)
    assert not alive(pid) and 'failed' not in knockd.text()
    pid = waiting(knockd)
    wire.server.nft('delete table inet knockd')
    knockd.says('loaded again')
    assert waiting(knockd) != pid, 'it has put the table back'
    opens(wire, knockd)


@pytest.mark.parametrize('end', ('kill', 'stop'))
def test_none_is_left_and_nothing_is_changed_when_the_daemon_ends(wire, daemon, end):
    knockd = daemon(anna='')
    pid = waiting(knockd)
    before = wire.server.must('nft', '-s', 'list', 'ruleset')
    getattr(knockd, end)()
    assert until(lambda: not alive(pid), 2)
    assert wire.server.must('nft', '-s', 'list', 'ruleset') == before
