"""Which kinds of guest a test is for, and one guest of each kind for a whole module."""

import os
import shutil
import time

import pytest

import guest
import images

NEEDED = ('qemu-system-x86_64', 'qemu-img', 'mmdebstrap', 'mke2fs', 'unshare', 'nsenter',
          'ssh')


def pytest_collection_modifyitems(config, items):
    others = []
    for item in items:
        if os.path.dirname(str(item.fspath)) == images.HERE:
            item.add_marker(pytest.mark.vm)
            if not is_for_its_kind(item):
                others.append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def is_for_its_kind(item):
    """A test is for every kind of guest, or for those that its marks `kinds` let pass."""
    if not hasattr(item, 'callspec') or 'host' not in item.callspec.params:
        return True
    kind = item.callspec.params['host']
    return all(mark.args[0](kind) for mark in item.iter_markers('kinds'))


def pytest_generate_tests(metafunc):
    """All kinds for every test: pytest sorts by the number of a parameter, and a story with
    other numbers in some of its tests would be told out of order."""
    if 'host' in metafunc.fixturenames:
        names = [kind.name for kind in images.KINDS]
        metafunc.parametrize('host', images.KINDS, ids=names, indirect=True, scope='module')


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
    host.forget()
    return host
