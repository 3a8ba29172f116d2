"""Makes one system call of a Python fail, or kills it before or after: for the crash matrix.

With this folder on PYTHONPATH every Python imports this file when it starts. $KNOCK_FAULTS names
a folder: in its file `trace` every call that changes something leaves its name; its file `plan`,
"TOKEN NAME NUMBER FAULT", is heeded by the call of that name and number since the plan was made,
which first renames it to `fired` (a NUMBER 0 is every call, and stays; NAME may be two, a|b). FAULT
is an errno's name, kill-before, kill-after, and for a command refused (it ends with 1 and has done
nothing), told (it has done its work, and ends with 1), stuck (it never ends) or late (done, but
never ends).
What concerns the note of who knocked last has names of its own, with -note at the end: that is
written at the end of a step, beside any operation or none.
"""

import errno
import os
import re
import signal
import socket
import stat
import subprocess

FOLDER = os.environ.get('KNOCK_FAULTS', '')
HANG = 3.5                      # seconds; the daemon itself would wait for ten
NOTE = re.compile(r'\.last(\.|$)|/run/knockd$')        # the note, its new file, their folder
real = {name: getattr(os, name) for name in (
    'open', 'pwrite', 'fsync', 'fdatasync', 'posix_fallocate', 'rename', 'unlink')}
real_popen = subprocess.Popen
real_socket = socket.socket.__base__        # written in C, so it cannot be changed itself
counted = {}                    # (token, name): calls so far


def plan():
    """[token, name, number, fault] or None."""
    try:
        with open(FOLDER + '/plan') as file:
            words = file.read().split()
    except OSError:
        return None
    return words if len(words) == 4 else None


def leave(name):
    descriptor = real['open'](FOLDER + '/trace', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, name.encode() + b'\n')
    os.close(descriptor)


def due(name):
    """The fault that this call shall have, or None. Raises or kills if that is the fault."""
    if name != 'recvfrom':
        leave(name)
    words = plan()
    if words is None or name not in words[1].split('|'):
        return None
    place = words[0], name
    counted[place] = counted.get(place, 0) + 1
    if words[2] not in ('0', str(counted[place])):
        return None
    if words[2] != '0':
        try:
            real['rename'](FOLDER + '/plan', FOLDER + '/fired')
        except FileNotFoundError:
            return None         # it was withdrawn just now
    fault = words[3]
    if fault == 'kill-before':
        die()
    if fault.startswith('E'):
        number = getattr(errno, fault)
        raise OSError(number, os.strerror(number))
    return fault


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def with_fault(name, call):
    """What call() returns or raises."""
    fault = due(name)
    try:
        return call()
    finally:
        if fault == 'kill-after':
            die()


def with_file(name, file, call):
    """The same for a call about a file, a path or a descriptor."""
    path = os.readlink('/proc/self/fd/%d' % file) if isinstance(file, int) else file
    return with_fault(name + '-note' * bool(NOTE.search(path)), call)


class Popen(real_popen):
    """nft, and whatever else is run."""

    def __init__(self, argv, **options):
        name = os.path.basename(argv[0]) + ('-list' if 'list' in argv else '')
        self.fault = due(name)
        argv = {'refused': ['/bin/false'], 'stuck': ['/bin/sleep', '60'],
                'late': ['/bin/sh', '-c', '"$@"; exec sleep 60', 'sh'] + argv}.get(self.fault, argv)
        super().__init__(argv, **options)

    def communicate(self, input=None, timeout=None):
        hasty = self.fault in ('stuck', 'late')
        result = super().communicate(input, HANG if hasty else timeout)
        if self.fault == 'kill-after':
            die()
        if self.fault == 'told':
            self.returncode = 1
        return result


def fsync(descriptor):
    folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    name = 'fsync-folder' if folder else 'fsync'
    return with_file(name, descriptor, lambda: real['fsync'](descriptor))


def opened(path, flags, *arguments, **keywords):
    if not flags & os.O_CREAT:
        return real['open'](path, flags, *arguments, **keywords)
    return with_file('create', path, lambda: real['open'](path, flags, *arguments, **keywords))


def written(descriptor, data, offset):
    return with_file('write', descriptor, lambda: real['pwrite'](descriptor, data, offset))


def datasynced(descriptor):
    return with_fault('fdatasync', lambda: real['fdatasync'](descriptor))


def reserved(descriptor, offset, size):
    return with_fault('reserve', lambda: real['posix_fallocate'](descriptor, offset, size))


def renamed(source, target):
    return with_file('rename', target, lambda: real['rename'](source, target))


def received(sock, size):
    return with_fault('recvfrom', lambda: real_socket.recvfrom(sock, size))


def received_unnamed(sock, size):
    if sock.family != socket.AF_PACKET:     # the kernel's word of a changed ruleset
        return real_socket.recv(sock, size)
    return with_fault('recvfrom', lambda: real_socket.recv(sock, size))


def unlinked(path):
    return with_file('unlink', path, lambda: real['unlink'](path))


if FOLDER:
    os.open, os.fsync, os.rename, os.unlink = opened, fsync, renamed, unlinked
    os.pwrite, os.fdatasync, os.posix_fallocate = written, datasynced, reserved
    subprocess.Popen = Popen
    socket.socket.recvfrom, socket.socket.recv = received, received_unnamed
