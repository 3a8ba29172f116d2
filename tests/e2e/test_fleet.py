"""A fleet from one line: three servers, a daemon each, and one master at the client."""

import contextlib
import json
import os
import sys

import network
import pytest
from network import KNOCK, environment, knock, until
from test_client_ssh import SSHD_PORT, keys, ssh, sshd_of    # noqa: F401  keys: a fixture

pytestmark = pytest.mark.kernel


class Fleet:
    """Who owns it: a home with saved lines, and the servers, each called by its address."""

    def __init__(self, wire, home):
        self.client, self.servers = wire.client, []
        self.environment = dict(environment(), HOME=home)
        self.save('fleet')

    def save(self, name):
        """A new master under this name."""
        line = 'knock://ops:%s@*?id=*&open=tcp/%d\n' % (knock.encode_secret(os.urandom(32)),
                                                        SSHD_PORT)
        assert self.types('save', name, stdin=line) == (0, '', '')

    def types(self, *words, **options):
        return self.client.run(sys.executable, KNOCK, *words, env=self.environment, **options)

    def share(self, name, server_id):
        """What that server is to hold of a master, as `--secret -` reads it."""
        done = self.types('derive', name, server_id, '--secret')
        assert done.code == 0, done.err
        return done.out

    def provide(self, member, folder):
        """A server with a daemon that hides its sshd."""
        house = network.Daemon(member, folder, 'hide = tcp/%d, tcp/2229\nhost = %s' % (
            SSHD_PORT, member.addresses[0]))
        house.server_id = member.addresses[0]
        house.write_config()
        with open(house.ledger, 'w') as out:
            json.dump({'knockd': 1, 'id': house.server_id, 'floor': 0, 'keys': {}}, out)
        self.servers.append(house)
        for said in ('knock://ops:', 'unchanged'):
            done = house.do('add', 'ops', '--allow', 'tcp/%d' % SSHD_PORT, '--secret', '-',
                            stdin=self.share('fleet', house.server_id))
            assert done.code == 0 and said in done.out, done.err
        house.secrets['ops'] = knock.decode_secret(
            self.share('fleet', house.server_id).strip())
        house.start()

    def opens(self, name, house):
        """True when a knock with this line lets us in; it is shut again after."""
        target = '%s@%s' % (name, house.server_id)
        done = self.types('--wait', '1', target)
        if done.code == 0:
            assert self.types('--close', target).code == 0
            assert until(lambda: not self.client.connects(house.server_id, SSHD_PORT))
        return done.code == 0


@pytest.fixture(scope='module')
def boxes(wire, keys):                                  # noqa: F811
    """Three servers with an sshd each; they stay, since their addresses are known to others."""
    wire.clear()
    members = [wire.join('web%d' % number, number, '-nm') for number in (4, 5, 6)]
    with contextlib.ExitStack() as running:
        for member in members:
            running.callback(member.close)
            # Where a command finds its daemon; that of another box would not know its config.
            member.must('mount', '-t', 'tmpfs', 'tmpfs', '/run')
            running.callback(wire.members.remove, member)
            running.enter_context(sshd_of(wire, member, keys))
        yield members


@pytest.fixture
def fleet(wire, boxes, tmp_path_factory):
    made = Fleet(wire, str(tmp_path_factory.mktemp('home')))
    try:
        for member in boxes:
            made.provide(member, tmp_path_factory.mktemp('knockd'))
        yield made
    finally:
        for house in made.servers:
            house.remove()


def test_ssh_reaches_three_servers_by_one_line(wire, fleet, keys):     # noqa: F811
    for house in fleet.servers:
        argv = ssh(keys, 'guest@' + house.server_id, 'echo in', name='fleet@%h')
        assert not wire.client.connects(house.server_id, SSHD_PORT)
        assert wire.client.run(*argv, env=fleet.environment) == (0, 'in\n', ''), house.text()
        assert not wire.stranger.connects(house.server_id, SSHD_PORT)
    assert [house.count('open ops 10.9.0.2') for house in fleet.servers] == [1, 1, 1]


def test_what_one_server_holds_opens_nothing_at_another(wire, fleet):
    """Neither its knock as it is, nor one that its secret makes for the other's id."""
    first, second, _ = fleet.servers
    for payload in (first.datagram('ops'), first.datagram('ops', server_id=second.server_id)):
        wire.client.send(payload, second.server_id)
    second.settle(wire.client)
    line = first.uri('ops', second.server_id, server_id=second.server_id)
    line += '&open=tcp/%d' % SSHD_PORT
    assert wire.client.knock('--wait', '1', line).code == 1
    assert 'ops' not in second.text().partition('ready: ')[2]
    assert not wire.client.connects(second.server_id, SSHD_PORT)
    assert fleet.opens('fleet', first) and fleet.opens('fleet', second)


def test_a_new_master_takes_over_server_by_server(fleet):
    """`fleet` opens each until `fleet2` first did; whoever provisions may say it again."""
    fleet.save('fleet2')
    for house in fleet.servers:
        for said in ('knock://ops:', 'unchanged'):
            done = house.do('rekey', 'ops', '--secret', '-',
                            stdin=fleet.share('fleet2', house.server_id))
            assert done.code == 0 and said in done.out, done.err
    first, second, third = fleet.servers
    assert fleet.opens('fleet', first) and fleet.opens('fleet2', first)
    assert not fleet.opens('fleet', first)
    first.says('refused ops 10.9.0.2 expired: a newer secret')
    assert fleet.opens('fleet', second) and fleet.opens('fleet2', third)
    assert fleet.types('forget', 'fleet').code == 0
    assert all(fleet.opens('fleet2', house) for house in fleet.servers)
