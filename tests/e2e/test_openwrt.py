"""A router of OpenWrt's, from the installation to its end: what procd, fw4 and sysupgrade do."""

import os
import re

import pytest
from network import HIDDEN, Namespace, until
from router import Router, make_tree

pytestmark = pytest.mark.kernel
ADDRESS = '10.9.0.1'


@pytest.fixture(scope='module')
def delivered(tmp_path_factory):
    tree = str(tmp_path_factory.mktemp('openwrt') / 'tree')
    make_tree(tree)
    return tree


@pytest.fixture(scope='module')
def lan(wire):
    """A host in the router's LAN, behind the bridge br-lan; the wire is the router's WAN."""
    server = wire.server
    host = Namespace('lan', ['nsenter', '--preserve-credentials'] + wire.hub.user + [
        '-m', '-t', str(wire.hub.pid), 'unshare', '-n'])
    server.must('ip', '-b', '-', stdin="""
        link add br-lan type bridge
        link set br-lan up
        addr add 192.168.1.1/24 dev br-lan
        link add lan1 type veth peer name eth0 netns %d
        link set lan1 master br-lan up\n""" % host.pid)
    host.must('ip', '-b', '-', stdin="""
        link set lo up
        link set eth0 up
        addr add 192.168.1.2/24 dev eth0\n""")
    yield host
    server.must('ip', 'link', 'del', 'br-lan')
    host.close()


@pytest.fixture
def routers(wire, services, lan, delivered, tmp_path):
    """A function that boots one as it is delivered, in place of the one before; archive: what
    sysupgrade has kept of that; python: is it there, which no sysupgrade keeps?"""
    wire.clear()
    there = []

    def boot(archive=None, python=True, run=True):
        for old in there:
            old.close()
        del there[:]
        router = Router(wire.server, delivered, str(tmp_path))
        there.append(router)
        router.must('ln', '-s', '../init.d/firewall', '/etc/rc.d/S19firewall')
        if archive:
            wire.server.must('cp', archive, router.tree + '/root/kept.tgz')
            router.must('sysupgrade', '-r', '/root/kept.tgz')
        if not python:
            router.must('rm', '/usr/bin/python3')
        router.boot(run)
        return router
    yield boot
    for old in there:
        old.close()


def install(router, *more):
    """What README says; returns the client's line, and all that was said."""
    said = router.must('python3', '/root/knockd.py', 'install', '--hide', 'tcp/%d' % HIDDEN,
                       '--client', 'me', '--host', ADDRESS, *more)
    return re.search(r'^knock://me:\S+$', said, re.M).group(), said


def log(router):
    return router.must('logread', '-e', 'knockd')


def says(router, text, times=1):
    assert until(lambda: log(router).count(text) >= times), '%r: %s' % (text, log(router))


def ready(router):
    assert until(lambda: router.knockd('status').code == 0), log(router)


def opens(wire, line):
    """A knock opens the port, for who has knocked alone."""
    done = wire.client.knock(line)
    return done.code == 0 and wire.client.connects(ADDRESS) and not wire.stranger.connects(ADDRESS)


def closes(wire, line):
    def closed():
        wire.client.knock('--close', line)
        return not wire.client.connects(ADDRESS)
    return until(closed)


def rules(router):
    """All that the firewall holds, without what it has counted."""
    return router.must('nft', '-s', 'list', 'ruleset')


@pytest.mark.parametrize('run', [True, False], ids=['25.12', '22.03, which has no /run'])
def test_a_day_from_install_to_uninstall(wire, lan, routers, run):
    router = routers(run=run)
    files, before = router.files(), rules(router)
    line, said = install(router, '--trust', 'br-lan')
    assert 'runs as a service of procd and hides tcp/2222.' in said and 'LAN' not in said
    says(router, 'daemon.info knockd: ready: 1 client; hiding tcp/2222')
    assert opens(wire, line) and lan.connects('192.168.1.1'), log(router)
    assert router.must('knockd.py', 'status').startswith('hidden: tcp/2222; knockd ')
    assert router.must('knockd.py', 'check') == 'configuration OK\n'
    tried = router.must('knockd.py', 'selftest')
    assert 'namespaces                   ok, but no knock is tried: unshare is not' in tried
    assert router.run('/etc/init.d/knockd', 'enabled').code == 0
    assert (router.run('test', '-e', '/run').code == 0) is run, 'none is made on flash'

    # A command tells the daemon, and so does procd.
    other = router.must('knockd.py', 'add', 'bert', '--allow', 'tcp/2222').strip()
    assert closes(wire, line) and opens(wire, other)
    router.must('knockd.py', 'remove', 'bert')
    assert until(lambda: not wire.client.connects(ADDRESS)), 'he is out at once'
    told = log(router).count('config reloaded')
    router.must('/etc/init.d/knockd', 'reload')
    says(router, 'config reloaded', told + 1)

    # A second start changes nothing; a stop leaves all hidden, and what is open as it is.
    assert opens(wire, line)
    router.must('/etc/init.d/knockd', 'start')
    assert log(router).count('ready: ') == 1 and wire.client.reaches(ADDRESS)
    router.must('/etc/init.d/knockd', 'stop')
    says(router, 'stopped; what is hidden stays hidden')
    assert not wire.stranger.connects(ADDRESS) and lan.connects('192.168.1.1')
    assert router.knockd('status').code == 1
    router.must('/etc/init.d/knockd', 'restart')
    ready(router)
    assert opens(wire, line)

    router.must('knockd.py', 'uninstall', '--yes')
    assert router.files() == files and rules(router) == before
    assert router.run('ls', '/var/run/knockd').code
    assert not wire.client.connects(ADDRESS), 'fw4 rejects it'


def test_without_trust_the_lan_is_told(wire, lan, routers):
    router = routers()
    line, said = install(router)
    assert 'These ports are hidden from the LAN, too.' in said
    assert not lan.connects('192.168.1.1')
    assert opens(wire, line)
    router.must('knockd.py', 'set', 'server', 'trust=br-lan')
    assert until(lambda: lan.connects('192.168.1.1')) and not wire.stranger.connects(ADDRESS)


@pytest.mark.parametrize('action', ['reload', 'restart', 'stop', 'start'])
def test_what_fw4_does_opens_nothing_and_closes_nothing(wire, lan, routers, action):
    """After `stop` the router rejects nothing, after the others it does."""
    router = routers()
    line, _ = install(router, '--trust', 'br-lan')
    assert opens(wire, line)
    if action == 'start':
        router.must('/etc/init.d/firewall', 'stop')
    router.must('/etc/init.d/firewall', action)
    assert until(lambda: not wire.stranger.connects(ADDRESS))
    assert wire.client.reaches(ADDRESS) and lan.connects('192.168.1.1')
    ready(router)
    assert closes(wire, line) and opens(wire, line)
    assert ' failed ' not in log(router)
    router.must('knockd.py', 'uninstall', '--yes')
    assert 'knockd' not in rules(router) and '0x40000000' not in rules(router)


def kept(wire, router, path):
    """What sysupgrade keeps goes into a file outside the router."""
    router.must('sysupgrade', '-b', '/root/new.tgz')
    wire.server.must('cp', router.tree + '/root/new.tgz', path)
    assert os.path.getsize(path) < 150000
    return path


def test_two_upgrades_one_without_python_keep_keys_ledger_and_service(wire, lan, routers, tmp_path,
                                                                      tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('kept'))
    router = routers()
    line, _ = install(router, '--trust', 'br-lan')
    with wire.capture(wire.client) as capture:
        assert wire.client.knock('--port', '40000', line).code == 0
        spent = capture.datagrams(40000)[0]

    router = routers(kept(wire, router, folder + '/first'), python=False)
    assert not wire.client.connects(ADDRESS) and lan.connects('192.168.1.1')
    says(router, 'user.notice knockd: no /usr/bin/python3: what is hidden stays hidden')

    router = routers(kept(wire, router, folder + '/second'))
    ready(router)
    wire.client.send(spent, ADDRESS)
    says(router, 'refused me 10.9.0.2 replay')
    assert opens(wire, line) and lan.connects('192.168.1.1')
    assert 'quarantine' not in log(router) and 'probation' not in log(router)


def test_what_is_hidden_is_so_before_the_boxs_own_firewall_is_there(wire, lan, routers):
    """At a boot knockd's link comes first, and its guard needs no fw4."""
    router = routers()
    install(router, '--trust', 'br-lan', '--probation', '0')
    links = router.must('ls', '/etc/rc.d').split()
    assert links == ['S18knockd', 'S19firewall']
    router.halt()
    router.must('rm', '/etc/rc.d/S19firewall')
    router.boot()
    ready(router)
    assert not wire.stranger.connects(ADDRESS) and lan.connects('192.168.1.1')


def test_a_kernel_module_that_is_missing_is_named_and_nothing_is_written(wire, lan, routers):
    """An nft that knows no fib stands for a kernel without kmod-nft-fib."""
    router = routers()
    router.must('mv', '/usr/sbin/nft', '/usr/sbin/nft.real')
    router.must('sh', '-c', 'cat >/usr/sbin/nft; chmod 755 /usr/sbin/nft', stdin='''#!/bin/sh
        case "$*" in *"-f -") ;; *) exec nft.real "$@" ;; esac
        text=$(cat)
        case $text in *'fib daddr'*) echo 'Error: No such file or directory' >&2; exit 1 ;; esac
        printf '%s\\n' "$text" | exec nft.real "$@"
        ''')
    files = router.files()
    done = router.run('python3', '/root/knockd.py', 'install', '--hide', 'tcp/2222', '--client',
                      'me')
    assert done.code == 2
    assert 'nft: fib, which needs nft_fib_inet (OpenWrt: kmod-nft-fib)' in done.err
    assert router.files() == files
