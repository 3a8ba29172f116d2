"""The real 0.1, out of this repository's history, upgraded in a real box by `install`."""

import os
import socket
import subprocess

import pytest

import guest
import prober
from test_hidden_ports import SYN_ACK

SO_RCVBUFFORCE = 33     # <asm-generic/socket.h>
OLD = '442555f'         # the commit that was 0.1


def old_script(name):
    """Its text. A release or a shallow clone has no 0.1 to upgrade from."""
    shown = subprocess.run(['git', '-C', guest.TOP, 'show', '%s:%s' % (OLD, name)],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if shown.returncode:
        pytest.skip('this clone does not have commit %s' % OLD)
    return shown.stdout.decode()


def knock_and_listen(host, *argv):
    """Runs that client; returns (port, datagram) of what it sent."""
    with host.wire.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as capture:
        # The stranger's questions and their answers come by as well, 1,600 a second.
        capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        capture.bind((guest.WIRE, prober.ETH_P_ALL))
        done = host.client.run(*argv)
        assert done.code == 0, done
        return guest.first_datagram(capture)


def installed(host, *options):
    """Runs install with the script that lies there now, and waits for a new daemon."""
    before = host.daemon()
    said = host.guest.sh('python3 /root/knockd.py install %s 2>&1' % ' '.join(options))
    host.wait_for_daemon(other_than=before)
    return said


@pytest.mark.kinds(lambda kind: kind.name == 'trixie-systemd')
def test_0_1_is_upgraded_and_nobody_is_locked_out_and_no_knock_counts_twice(host):
    old_knock = os.path.join(host.folder, 'old_knock.py')
    with open(old_knock, 'w') as script:
        script.write(old_script('knock.py'))
    host.guest.put('/root/knockd.py', old_script('knockd.py'))
    said = installed(host, '--hide', 'tcp/22', '--client', 'laptop', '--host', '10.77.0.2')
    line = next(word for word in said.split() if word.startswith('knock://'))
    guest.until(lambda: not host.opens_to(guest.CLIENT[4]), guest.SOON, '0.1 hid the port')
    host.guest.sh("sed -i 's/^hide = .*/&\\nwindow = 10m/' /etc/knockd/knockd.ini")
    before = host.wait_for_daemon()
    host.restart_daemon()
    host.wait_for_daemon(other_than=before)
    datagram = knock_and_listen(host, 'python3', old_knock, '--wait', '60', line)

    session = subprocess.Popen(
        host.wire.inside('ssh', '-i', host.client.key, '-o', 'BatchMode=yes',
                         '-o', 'StrictHostKeyChecking=no',
                         '-o', 'UserKnownHostsFile=/dev/null', 'root@10.77.0.2', 'cat'),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    session.stdin.write(b'before\n')
    session.stdin.flush()
    assert session.stdout.readline() == b'before\n'

    with open(guest.KNOCKD) as script:
        host.guest.put('/root/knockd.py', script.read())
    host.forget()
    said = installed(host)
    assert 'on probation' not in said, 'somebody has knocked before'
    found = host.told_apart()
    assert not any(SYN_ACK in one.what for one in found), host.story(found)
    answer, said = session.communicate(b'after\n', timeout=guest.SOON)
    assert answer == b'after\n', 'who was in stays in: ssh ended with %d, %s' % (
        session.returncode, said.decode())
    guest.until(host.is_hidden, guest.SOON, 'the port was hidden')
    rules = host.guest.sh('nft list table inet knockd')
    assert 'socket wildcard 0' in rules, "Debian's kernel has nft_socket"

    for source in ('10.77.0.3', '10.77.0.1'):
        host.replay(datagram, source)
    guest.until(lambda: 'replay' in host.guest.sh('journalctl -u knockd'), guest.SOON,
                'the daemon told of the replay')
    assert not host.opens_to('10.77.0.3'), 'the old knock opened once more'
    for script in (guest.KNOCK, old_knock):
        done = host.client.run('python3', script, '--wait', '60', line)
        assert done.code == 0, done
        assert host.client.ssh('10.77.0.2', 'id -un').out == 'root\n'
