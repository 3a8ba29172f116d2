"""The crash matrix: every call that changes something fails, or the daemon dies before or after.

Which calls those are is not written here: the shim of tests/crash leaves a trace, so a hook or a
file that knockd.py learns to write tomorrow is in the matrix by itself.
"""

import contextlib
import glob
import ipaddress
import json
import os
import subprocess
import sys
import time

import carriers
from network import TOP, environment, until

SHIM = os.path.join(TOP, 'tests', 'crash')
KILLS = ('kill-before', 'kill-after')
DISK_FAULTS = ('EIO', 'EROFS', 'EINTR', 'ENOSPC')
FILE_CALLS = ('create', 'write', 'reserve', 'fsync', 'fdatasync', 'rename', 'fsync-folder',
              'unlink')
FILE_FAULTS = DISK_FAULTS + KILLS
NOTE_CALLS = tuple(name + '-note' for name in FILE_CALLS)
SOCKET_FAULTS = ('ENETDOWN', 'ENOBUFS', 'EINTR') + KILLS
COMMAND_FAULTS = ('ENOMEM', 'EINTR', 'refused', 'told', 'stuck', 'late') + KILLS
SHORT, LONG = 20, 40            # seconds of an opening, and of its extension
LOOKS = ('cat', 'sysctl', 'nft-list', 'iptables-nft-save', 'ip6tables-nft-save')
CLOCKED = LOOKS + NOTE_CALLS    # come when a step ends as well: beside an operation or not
OPERATIONS = ('open', 'extend', 'close', 'reload', 'start', 'stop')
HOOKS = 'on_open = /bin/true\non_close = /bin/true'
HEAL = ('heal',)                # apart: until the table is back, nothing is hidden
WATCH = '''
import select, socket, sys
tried = through = 0
print('begun', flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for address in sys.argv[2:]:
        with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as attempt:
            attempt.settimeout(0.2)
            through += attempt.connect_ex((address, int(sys.argv[1]))) == 0
            tried += 1
print(tried, through)
'''


class Shimmed(carriers.House):
    """A daemon whose system calls fail when they are told to."""

    def __init__(self, namespace, folder, settings='', **clients):
        carriers.House.__init__(self, namespace, folder, settings, **clients)
        self.faults = os.path.join(self.folder, 'faults')
        os.mkdir(self.faults)
        self.plans = 0

    def launch(self, *arguments):
        with open(self.log, 'ab') as log, open(self.log + '.out', 'ab') as out:
            self.process = subprocess.Popen(
                self.namespace.command(*self.argv('run')),
                stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                env=dict(environment(), PYTHONPATH=SHIM, KNOCK_FAULTS=self.faults))

    def place(self, name):
        return os.path.join(self.faults, name)

    def plan(self, call, number, fault):
        """Atomically, for the daemon may look at any time."""
        self.plans += 1
        with open(self.place('new'), 'w') as out:
            out.write('%d %s %d %s\n' % (self.plans, call, number, fault))
        os.rename(self.place('new'), self.place('plan'))

    def forget(self):
        for name in ('trace', 'plan', 'fired'):
            if os.path.exists(self.place(name)):
                os.unlink(self.place(name))

    def fired(self):
        return os.path.exists(self.place('fired'))

    def fires(self, call, told):
        """Waits for the fault; if it did not come it never will, and that may be so with the calls
        that a clock makes alone."""
        if until(self.fired, 3 if call in CLOCKED else 10):
            return True
        try:
            os.rename(self.place('plan'), self.place('new'))
        except FileNotFoundError:
            return True                     # just now
        assert call in CLOCKED, (told, 'the call was not made', self.trace())
        return False

    def rest(self):
        """Waits until the daemon has looked at what was changed last, its own changes included."""
        def quiet():
            before = self.trace()
            return not until(lambda: self.trace() != before, 0.2)
        assert until(quiet)

    def trace(self):
        if not os.path.exists(self.place('trace')):
            return []
        with open(self.place('trace')) as lines:
            return lines.read().split()

    def dead(self):
        return self.process.poll() is not None

    def openings(self):
        """{(source, port): seconds left} as the kernel has them; None for one without an end."""
        found = {}
        for version in '46':
            told = json.loads(self.namespace.must('nft', '-j', 'list', 'set', 'inet', 'knockd',
                                                  'open' + version))
            for entry in told['nftables']:
                for element in entry.get('set', {}).get('elem', ()):
                    source, _, port = element['elem']['val']['concat']
                    found[str(ipaddress.ip_address(source)), port] = element['elem'].get('expires')
        return found


@contextlib.contextmanager
def watched(wire, house, name):
    """All the while a stranger tries the door of a client who never knocks."""
    watcher = subprocess.Popen(
        wire.stranger.command(sys.executable, '-c', WATCH, str(house.doors[name]),
                              *wire.server.addresses),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        watcher.stdout.readline()
        yield
    finally:
        tried, through = [int(word) for word in watcher.communicate()[0].split()]
    print('a stranger tried %d times' % tried)
    assert tried > 40 and not through, '%d of %d connections came through' % (through, tried)


class Cell:
    """One operation of one client with one fault in it."""

    def __init__(self, wire, house, name, address):
        self.wire, self.house, self.name, self.address = wire, house, name, address
        self.door = wire.client.addresses[':' in address], house.doors[name]

    def knock(self, op='open', seconds=SHORT):
        return self.house.datagram(self.name, op=op, seconds=seconds)

    def send(self, payload):
        self.wire.client.send(payload, self.address)

    def left(self):
        """Seconds that the client's door stays open; None if it is shut."""
        return self.house.openings().get(self.door)

    def count(self, op='open'):
        return self.house.count('%s %s ' % (op, self.name))

    def prepare(self, operation):
        """What is there before the fault; returns the datagram that the operation is."""
        if operation in ('extend', 'close', 'reload', 'stop'):
            self.send(self.knock())
            self.house.says('open %s ' % self.name)
        op = 'close' if operation == 'close' else 'open'
        return self.knock(op, LONG if operation == 'extend' else SHORT)

    def act(self, operation, knock):
        house = self.house
        if operation in ('open', 'extend', 'close'):
            self.send(knock)
        elif operation == 'reload':
            house.hang_up()
        elif operation == 'stop':
            house.process.terminate()
        elif operation == 'heal':
            house.namespace.nft('delete table inet knockd')
        else:
            house.launch()

    def accepted(self, operation):
        """Was the knock honoured, by what the kernel has?"""
        left = self.left()
        return {'open': left is not None, 'extend': (left or 0) > SHORT, 'close': left is None
                }.get(operation, False)

    def run(self, operation, call, number, fault):
        """The whole cell; AssertionError says which promise was broken."""
        house, told = self.house, (operation, call, number, fault)
        knock = self.prepare(operation)
        asked = LONG if operation == 'extend' else SHORT
        house.rest()
        if operation == 'start':
            house.kill()
        before = [house.count(word) for word in ('Traceback', 'internal error')]
        house.forget()
        house.plan(call, number, fault)
        readies, began = house.count('ready: '), time.monotonic()
        self.act(operation, knock)
        if not house.fires(call, told):
            fault = None
        self.wait(operation, fault, readies)
        if operation == 'heal' and house.dead():
            house.start()                   # the table was gone, and nobody was there to mend it
            house.rest()
        accepted = self.accepted(operation)
        assert not accepted or self.on_disk(knock, call, number, fault), (
            told, 'honoured, but not on disk', house.trace(), house.text())
        past = time.monotonic() - began + (self.left() or 0) - asked
        assert past < 1, (told, 'open for %.1f s too long' % past)
        self.check_hidden(told, operation)
        assert operation == 'heal' or (fault in KILLS) <= house.dead(), (told, 'lives on')
        if house.dead():
            assert fault in KILLS or operation in ('start', 'stop'), (told, house.text())
            assert operation == 'stop' or house.process.returncode != 0, told
            house.start()
        self.check_use(told, operation, knock, accepted)
        assert before == [house.count(word) for word in ('Traceback', 'internal error')], \
            (told, house.text())

    def on_disk(self, knock, call, number, fault):
        """Is the knock in the journal, and was that synced before the firewall was told?"""
        calls, failed = self.house.trace(), None
        if call in FILE_CALLS and fault in DISK_FAULTS:         # no recvfrom is in the trace
            failed = [place for place, name in enumerate(calls) if name == call][number - 1]
        told = calls.index('nft')
        synced = [place for place, name in enumerate(calls[:told])
                  if name in ('fdatasync', 'fsync-folder') and place != failed]
        with open(self.house.ledger) as file:
            return bool(synced) and '"%s"' % knock[8:24].hex() in file.read()

    def wait(self, operation, fault, readies):
        """Until what the operation does is done, or the daemon is dead."""
        house = self.house
        if fault in KILLS or operation == 'stop':
            assert until(house.dead)
        elif operation == 'start':
            assert until(lambda: house.dead() or house.count('ready: ') > readies)
        elif operation == 'heal':
            assert until(lambda: 'chain guard' in house.namespace.run(
                'nft', 'list', 'table', 'inet', 'knockd').out), 'the table is not put back'
        else:
            house.settle(self.wire.client, self.address)

    def check_hidden(self, told, operation):
        """From elsewhere nothing is reached; nothing is open without an end, or too long."""
        for address in self.wire.server.addresses:
            assert not self.wire.stranger.connects(address, self.door[1]), (told, 'not hidden')
        for place, left in self.house.openings().items():
            assert left is not None and left <= LONG, (told, place, left)
        if operation == 'extend':
            assert self.left() is not None, (told, 'an extension has closed the door')

    def check_use(self, told, operation, knock, accepted):
        """The next good knock works; the one that met the fault is worth one opening at most."""
        house, op = self.house, 'close' if operation == 'close' else 'open'
        before = self.count()
        self.send(self.knock())
        assert until(lambda: self.count() > before, 5), (told, 'locked out', house.text())
        # One that waits for a command which hangs is told and comes later.
        assert until(lambda: self.wire.client.connects(self.address, self.door[1]), 15), (
            told, house.text())
        if operation in ('open', 'extend', 'close'):
            honoured = self.count(op)
            for _ in range(2):
                self.send(knock)
            house.settle(self.wire.client, self.address)
            again = self.count(op) - honoured
            assert accepted + again <= 1, (told, 'honoured twice', house.text())
        before = self.count('close')
        self.send(self.knock('close'))
        assert until(lambda: self.count('close') > before, 5), (told, house.text())


def cells(wire, house, address, names, operations=OPERATIONS):
    """Every cell there is: (operation, call, number of that call in the operation, fault)."""
    found = []
    for operation in operations:
        cell = Cell(wire, house, next(names), address)
        knock = cell.prepare(operation)
        if operation == 'start':
            house.kill()
        line = {'start': 'ready: ', 'stop': 'stopped', 'reload': 'config reloaded',
                'close': 'close %s ' % cell.name}.get(operation, 'open %s ' % cell.name)
        before = house.count(line)
        house.rest()
        house.forget()
        cell.act(operation, knock)
        if operation != 'heal':
            house.says(line, before + 1)
        else:
            # It loads at once, and looks afterwards.
            assert until(lambda: {'nft', 'nft-list'} <= set(house.trace()), 10), house.text()
        house.rest()            # what it prepares for the next one comes after it
        calls = house.trace()
        if operation == 'stop':
            assert until(house.dead)
        elif operation in ('open', 'extend', 'reload'):
            cell.send(cell.knock('close'))          # its end is not in the trace of another
            house.says('close %s ' % cell.name)
        for place, call in enumerate(calls):
            number = calls[:place + 1].count(call)
            faults = FILE_FAULTS if call in FILE_CALLS + NOTE_CALLS else COMMAND_FAULTS
            # A look gives way to a knock. But what loads all the rules looks first, and if that
            # hangs it takes longer than a cell waits.
            found += [(operation, call, number, fault) for fault in faults
                      if not (call in LOOKS and fault in ('stuck', 'late')
                              and operation not in ('open', 'extend', 'close'))]
        if operation in ('open', 'extend', 'close'):
            found += [(operation, 'recvfrom', 1, fault) for fault in SOCKET_FAULTS]
        if house.dead():
            house.start()
    return found


def forget_ledger(house):
    """The file, and what was written to take its place."""
    for path in glob.glob(house.ledger) + glob.glob(house.ledger + '.*.new'):
        os.unlink(path)


def lost_ledger(wire, house, name, address, call, number, fault):
    """The ledger is gone, and something fails or dies while the daemon starts and writes the
    quarantine: what was honoured before is not honoured again, then or after another restart."""
    cell, told = Cell(wire, house, name, address), ('lost ledger', call, number, fault)
    house.kill()
    forget_ledger(house)
    with open(house.ledger, 'w') as out:
        out.write('{"knockd": 1, "id": "%s", "floor": 0, "keys": {}}' % house.server_id)
    os.chmod(house.ledger, 0o600)
    house.forget()
    house.start()
    knock = cell.knock()
    cell.send(knock)
    house.says('open %s ' % name)
    house.kill()
    forget_ledger(house)
    house.plan(call, number, fault)
    readies = house.count('ready: ')
    house.launch()
    assert until(lambda: house.dead() or house.count('ready: ') > readies), (told, house.text())
    if house.fires(call, told):
        assert fault not in KILLS or until(house.dead), told
    for _ in range(2):
        if house.dead():
            house.start()
        for sender in (wire.client, wire.stranger):
            sender.send(knock, address)
        house.settle_slowly()
        assert house.count('open %s ' % name) == 1, (told, 'honoured twice', house.text())
        assert not wire.stranger.connects(address, cell.door[1]), told
        house.kill()
    house.forget()


def lost_ledger_cells(house):
    """As cells(), for a daemon that starts without its ledger."""
    house.kill()
    forget_ledger(house)
    house.forget()
    house.start()
    house.rest()
    calls = house.trace()
    return [(call, calls[:place + 1].count(call), fault) for place, call in enumerate(calls)
            for fault in (FILE_FAULTS if call in FILE_CALLS + NOTE_CALLS else COMMAND_FAULTS)]
