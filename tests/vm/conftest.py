"""Which kinds of guest a test is for, and one guest of each kind for a whole module."""

import os
import shutil
import time

import pytest

import guest
import images

NEEDED = ('qemu-system-x86_64', 'qemu-img', 'mmdebstrap', 'mke2fs', 'unshare', 'nsenter',
          'ssh')


def pytest_collection_modifyitems(items):
    for item in items:
        if os.path.dirname(str(item.fspath)) == images.HERE:
            item.add_marker(pytest.mark.vm)


def pytest_generate_tests(metafunc):
    """A test runs in a guest of every kind, or of those that its marks `kinds` let
    pass."""
    if 'host' not in metafunc.fixturenames:
        return
    marks = list(metafunc.definition.iter_markers('kinds'))
    kinds = [kind for kind in images.KINDS if all(mark.args[0](kind) for mark in marks)]
    metafunc.parametrize('host', kinds, ids=[kind.name for kind in kinds], indirect=True,
                         scope='module')


@pytest.fixture(scope='module')
def host(request):
    """A guest that has booted, its own firewall set up and ssh not hidden yet."""
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        pytest.skip('needs root and ' + ' '.join(missing or NEEDED))
    began = time.monotonic()
    made = guest.Host(images.image(request.param))
    built = time.monotonic()
    try:
        made.guest.boot()
        print('\n%s: image after %.0f s, up after %.0f s more, %s' % (
            request.param.name, built - began, time.monotonic() - built,
            guest.accelerator(made.guest.image.kernel)[1]))
        made.furnish()
        yield made
    finally:
        made.close()


@pytest.fixture
def ready(host):
    """The same guest with the port hidden, up, and nothing seen before held against this
    test."""
    if not host.installed:
        pytest.fail('install did not get that far')
    host.make_ready()
    host.prober.forget()
    return host
