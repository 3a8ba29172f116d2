"""Fixtures: the wire, and daemons that are gone after the module or the test that asked."""

import itertools

import pytest

import network

HIDDEN_PORTS = (network.HIDDEN, network.HIDDEN_TOO)
VISITORS = ['visitor%d' % number for number in range(60)]


@pytest.fixture(scope='session')
def wire():
    """Server, client and stranger on one bridge."""
    try:
        made = network.Wire()
    except network.Forbidden as problem:
        pytest.skip('no namespaces here: %s' % problem)
    yield made
    made.close()


@pytest.fixture(scope='session')
def services(wire):
    """What the hidden ports hide: listeners of the server, TCP by port, and one UDP socket."""
    listeners = {port: wire.server.listen(port) for port in HIDDEN_PORTS}
    listeners['udp'] = wire.server.listen(network.HIDDEN_UDP, network.socket.SOCK_DGRAM)
    yield listeners
    for listener in listeners.values():
        listener.close()


def maker(wire, tmp_path_factory):
    """Yields a function that starts a daemon in place of any other, and removes it."""
    def start(settings='', **clients):
        if wire.daemons:
            wire.clear()
        folder = tmp_path_factory.mktemp('knockd')
        wire.daemons.append(network.Daemon(wire.server, folder, settings, **clients))
        return wire.daemons[-1].start()
    yield start
    wire.clear()


@pytest.fixture(scope='module')
def module_daemon(wire, services, tmp_path_factory):
    """A function that starts a daemon for all tests of the module."""
    yield from maker(wire, tmp_path_factory)


@pytest.fixture
def daemon(wire, services, tmp_path_factory):
    """A function that starts a daemon for one test."""
    yield from maker(wire, tmp_path_factory)


@pytest.fixture(scope='module')
def shared_knockd(module_daemon):
    """One plain daemon for all tests of the module that need no other."""
    allow = 'allow = tcp/2222, tcp/2229, udp/5182\ndefault = tcp/2222'
    return module_daemon(**dict.fromkeys(VISITORS, allow))


@pytest.fixture
def knockd(wire, shared_knockd):
    """That daemon, alive; another test may have put its own in its place."""
    if shared_knockd not in wire.daemons:
        wire.clear()
        wire.daemons.append(shared_knockd.start())
    return shared_knockd


@pytest.fixture
def visitor(wire, knockd):
    """A client of that daemon who has not knocked yet; what he opens is closed after the test."""
    knockd.visits += 1
    name = VISITORS[knockd.visits]
    yield name
    for namespace, address in itertools.product((wire.client, wire.stranger),
                                                wire.server.addresses):
        def shut(namespace=namespace, address=address):
            return not any(namespace.connects(address, port) for port in HIDDEN_PORTS)
        if not shut():
            namespace.send(knockd.datagram(name, op='close'), address)
            assert network.until(shut, 5)


@pytest.fixture(params=(0, 1), ids=('IPv4', 'IPv6'))
def address(request, wire):
    """The server's address, first one family, then the other."""
    return wire.server.addresses[request.param]
