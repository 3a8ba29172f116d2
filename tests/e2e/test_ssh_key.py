"""A second key that is not on the server: ssh-keygen signs, ssh-keygen verifies."""

import base64
import os
import re
import subprocess
import sys
import time

import carriers
import knock
import pytest
from network import KNOCK, KNOCKD


@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    """Paths of fresh private keys."""
    folder = str(tmp_path_factory.mktemp('keys'))
    for kind in ('ed25519', 'ecdsa'):
        for name in (kind, 'other_' + kind):
            subprocess.check_call([carriers.tool('ssh-keygen'), '-q', '-t', kind, '-N', '', '-C',
                                   'somebody@somewhere', '-f', os.path.join(folder, name)])
    return folder


def public(keys, name):
    with open(os.path.join(keys, name + '.pub')) as file:
        return file.read().strip()


@pytest.fixture(scope='module')
def house(wire, keys, tmp_path_factory):
    clients = {}
    for family in '46':
        for name, kind in (('anna', 'ed25519'), ('emil', 'ecdsa'), ('agent', 'ed25519'),
                           ('seq', 'ed25519'), ('other', 'ed25519'), ('moved', 'ed25519'),
                           ('bare', 'ecdsa')):
            clients[name + family] = 'ssh_key = ' + public(keys, kind)
    with carriers.housing(wire, tmp_path_factory, 'carriers = udp, icmp, syn, ports',
                          **clients) as made:
        yield made


def name_for(name, address):
    return name + ('6' if ':' in address else '4')


def knocked(wire, house, client, address, *arguments, **options):
    return wire.client.run(sys.executable, KNOCK, '--open', 'tcp/%d' % house.doors[client],
                           *arguments + (house.uri(client, address),), **options)


@pytest.mark.parametrize('name, kind', (('anna', 'ed25519'), ('emil', 'ecdsa')))
@pytest.mark.parametrize('via', ('udp', 'icmp'))
def test_a_knock_signed_with_the_key_opens(wire, house, keys, address, name, kind, via):
    client = name_for(name, address)
    done = knocked(wire, house, client, address, '--sign', os.path.join(keys, kind), '--via', via)
    assert done.code == 0, done.err + house.text()
    assert house.opened(wire.client, client, address)


def test_a_key_that_only_the_agent_has_signs(wire, house, keys, address):
    client = name_for('agent', address)
    folder = os.path.join(keys, 'agent' + client[-1])
    os.mkdir(folder)
    started = subprocess.check_output([carriers.tool('ssh-agent'), '-s', '-a',
                                       os.path.join(folder, 'socket')]).decode()
    agent = int(re.search(r'SSH_AGENT_PID=(\d+)', started).group(1))
    try:
        environment = dict(carriers.network.environment(),
                           SSH_AUTH_SOCK=os.path.join(folder, 'socket'))
        subprocess.check_call([carriers.tool('ssh-add'), '-q', os.path.join(keys, 'ed25519')],
                              env=environment, stderr=subprocess.DEVNULL)
        alone = os.path.join(folder, 'only.pub')
        with open(alone, 'w') as file:
            file.write(public(keys, 'ed25519') + '\n')
        done = knocked(wire, house, client, address, '--sign', alone, env=environment)
        assert done.code == 0, done.err + house.text()
        assert house.opened(wire.client, client, address)
    finally:
        os.kill(agent, 15)


@pytest.mark.parametrize('kind', ('ed25519', 'ecdsa'))
def test_a_signature_by_another_key_is_refused(wire, house, keys, address, kind):
    client = name_for('other', address)
    done = knocked(wire, house, client, address, '--wait', '0', '--sign',
                   os.path.join(keys, 'other_' + kind))
    assert done.code == 0, done.err
    house.says('refused %s %s signature' % (client, wire.client.addresses[':' in address]))
    assert house.settled_shut(wire.client, client, address)


def signed_datagram(house, client, keys, message_of):
    """A knock whose signature is over message_of(what should be signed)."""
    derived = carriers.keys_of(house, client)
    now = int(time.time() * 1000)
    step, nonce = knock.step_of(now), os.urandom(16)
    request = knock.Request('open', now, None, 0, (), None, None, None)
    right = b'knock/1 ' + house.server_id.encode() + b'\0' + knock.tag_at(
        derived, step) + nonce + knock.encode_plain(request)
    process = subprocess.Popen(
        ['ssh-keygen', '-Y', 'sign', '-f', os.path.join(keys, 'ed25519'), '-n',
         message_of(right)[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL)
    armored = process.communicate(message_of(right)[1])[0].decode()
    signature = base64.b64decode(''.join(armored.splitlines()[1:-1]))
    plain = knock.encode_plain(request._replace(signature=signature))
    return knock.seal(derived, nonce, plain, step)


def test_a_signature_over_other_bytes_is_refused(wire, house, keys, address):
    """Over another nonce (that is: another datagram), and for another namespace."""
    client = name_for('moved', address)
    source = wire.client.addresses[':' in address]
    wrong = signed_datagram(house, client, keys, lambda right: (
        'knock', right[:-29] + bytes([right[-29] ^ 1]) + right[-28:]))
    wire.client.send(wrong, address)
    house.says('refused %s %s signature' % (client, source))
    wire.client.send(signed_datagram(house, client, keys, lambda right: ('file', right)), address)
    assert house.settled_shut(wire.client, client, address)
    time.sleep(1)                              # two checks a second
    wire.client.send(signed_datagram(house, client, keys, lambda right: ('knock', right)), address)
    assert house.opens(wire.client, client, address), house.text()


def test_a_knock_without_a_signature_is_refused_on_every_carrier(wire, house, address):
    client = name_for('bare', address)
    source = wire.client.addresses[':' in address]
    wire.client.send(house.datagram(client), address)
    house.says('refused %s %s no signature' % (client, source))
    for via in ('ports', 'syn', 'icmp'):
        assert wire.client.knock('--wait', '0', '--via', via, house.uri(client, address)).code == 0
    assert house.settled_shut(wire.client, client, address)


def test_signing_does_not_go_with_a_carrier_without_room(wire, house, keys):
    client = name_for('seq', '')
    done = wire.client.knock('--via', 'ports', '--sign', os.path.join(keys, 'ed25519'),
                             house.uri(client, wire.server.addresses[0]))
    assert (done.code, done.err.count('\n')) == (2, 1)
    assert '--via ports' in done.err


OLD = '''#!/bin/sh
echo "unknown option -- Y" >&2
exit 1
'''


def test_check_refuses_an_ssh_key_where_ssh_keygen_cannot_verify(wire, house, tmp_path):
    assert house.do('check').code == 0
    stub = tmp_path / 'ssh-keygen'
    stub.write_text(OLD)
    stub.chmod(0o755)
    path = carriers.tool('ssh-keygen')
    done = wire.server.run('unshare', '-m', 'sh', '-c', 'mount --bind "$0" "$1" && shift && '
                           'exec "$@"', str(stub), path, sys.executable, KNOCKD, '--config',
                           house.config, 'check')
    assert done.code == 2, done
    assert house.config in done.err and 'ssh_key needs ssh-keygen -Y' in done.err
