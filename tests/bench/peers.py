"""The peers beside us: fwknopd and knockd of this machine's packages, started in our namespaces.

Each hides the same port by the same two iptables rules, and has the same three methods as our own
daemon: argv(), what a user types; send(), the same packets from a socket of ours, for the time of
the server alone; junk, what may come from strangers. None needs more than its package; none is
ever started outside a namespace.
"""

import base64
import collections
import os
import shutil
import socket
import subprocess
import tempfile
import time

import network

SPA_PORT, SPA_SIZE = 62201, 226         # fwknopd.conf, UDPSERV_PORT; what its own client sends
DOORS = (7000, 8000, 9000)              # /etc/knockd.conf as shipped
# What fwknopd's manual offers; the last keeps the sweep of its rules at every two seconds, which
# RULES_CHECK_THRESHOLD counts in loops. A dispatch of 0 is what the config's comment says and the
# program refuses.
TUNED = 'PCAP_LOOP_SLEEP 1000;\nPCAP_DISPATCH_COUNT 1000;\nRULES_CHECK_THRESHOLD 2000;\n'
FWKNOPD = collections.OrderedDict((
    ('fwknopd as shipped', ''), ('fwknopd tuned', TUNED),
    ('fwknopd UDP server', 'ENABLE_UDP_SERVER Y;\n')))
KNOCKD = '''
[options]
    logfile = %s
[open]
    sequence = 7000,8000,9000
    seq_timeout = 5
    command = /sbin/iptables -I INPUT -s %%IP%% -p tcp --dport %d -j ACCEPT
    tcpflags = syn
'''


class Peer:
    """A daemon in a namespace and its folder; __init__ has said name, namespace and clients."""

    def __init__(self, name, namespace, clients=1):
        self.name, self.namespace, self.clients = name, namespace, clients
        self.folder = tempfile.mkdtemp(prefix='bench')
        self.log = os.path.join(self.folder, 'log')
        self.prepare()

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, 'w') as out:
            out.write(text)
        os.chmod(path, 0o600)
        return path

    def start(self):
        for rule in ('-m conntrack --ctstate ESTABLISHED -j ACCEPT',
                     '-p tcp --dport %d -j REJECT --reject-with tcp-reset' % network.HIDDEN):
            self.namespace.must('iptables', '-A', 'INPUT', *rule.split())
        with open(self.log + '.out', 'wb') as out:
            self.process = subprocess.Popen(
                self.namespace.command(*self.command), stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, env=network.environment())
        if not network.until(lambda: self.process.poll() is not None or self.ready(), 60) or \
                self.process.poll() is not None:
            self.remove()
            raise AssertionError('%s does not start: %s' % (self.name, self.text()))
        return self

    @property
    def pid(self):
        return self.process.pid

    def text(self):
        parts = []
        for path in (self.log, self.log + '.out'):
            if os.path.exists(path):
                with open(path, errors='replace') as file:
                    parts.append(file.read())
        return ''.join(parts)

    def remove(self):
        self.process.kill()
        self.process.wait()
        self.namespace.nft('flush ruleset')
        shutil.rmtree(self.folder, ignore_errors=True)


class Fwknopd(Peer):
    """Every stanza with a key and an HMAC key of its own; the client knows those of the last."""

    def prepare(self):
        keys = [[base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
                for _ in range(self.clients)]
        self.command = [
            'fwknopd', '-f', '-a', self.write('access.conf', ''.join(
                'SOURCE ANY\nKEY_BASE64 %s\nHMAC_KEY_BASE64 %s\n' % tuple(pair) for pair in keys)),
            '-c', self.write('fwknopd.conf', 'PCAP_INTF eth0;\nFWKNOP_RUN_DIR %s/run;\n%s' % (
                self.folder, FWKNOPD[self.name]))]
        self.rc = self.write('fwknoprc', '''
            [server]
            SPA_SERVER %s
            ACCESS tcp/%d
            KEY_BASE64 %s
            HMAC_KEY_BASE64 %s
            USE_HMAC Y
            FW_TIMEOUT 2\n'''.replace(' ' * 12, '') % (
                (self.namespace.addresses[0], network.HIDDEN) + tuple(keys[-1])))

    def ready(self):
        return 'main event loop' in self.text() or 'UDP server' in self.text()

    def argv(self, source, _):
        return ['fwknop', '--no-home-dir', '--rc-file', self.rc, '-E', '/dev/null', '-n', 'server',
                '-a', source]

    def packet(self, source):
        """What the client would send, saved instead."""
        path = os.path.join(self.folder, 'packet')
        subprocess.check_output(self.argv(source, 0) + ['-T', '-B', path])
        with open(path, 'rb') as file:
            return file.read().strip()

    def send(self, client, source, _):
        data = self.packet(source)
        with client.make_socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            began = time.monotonic()
            sender.sendto(data, (self.namespace.addresses[0], SPA_PORT))
        return began

    @property
    def junk(self):
        """Words for flood.py: random bytes, and what has to be tried against every key."""
        port = ['--port', str(SPA_PORT), '--size', str(SPA_SIZE)]
        return [('random bytes', port), ('well-formed', port + ['--alphabet', 'base64'])]

    def fill(self, count, seconds):
        """As many of its own rules as that, as if so many had knocked."""
        rules = ['-A FWKNOP_INPUT -s 10.8.%d.%d/32 -p tcp -m tcp --dport %d -m comment '
                 '--comment _exp_%d -j ACCEPT\n' % (
                     number // 250, number % 250 + 1, network.HIDDEN, time.time() + seconds)
                 for number in range(count)]
        for first in range(0, count, 200):      # more do not fit a message to the kernel
            self.namespace.must('iptables-restore', '--noflush', stdin='*filter\n%sCOMMIT\n'
                                % ''.join(rules[first:first + 200]))

    def ledger(self):
        return os.path.join(self.folder, 'run', 'digest.cache')


class Knockd(Peer):
    """One door, the ports and time of the config it is shipped with; -I, or nothing would open."""

    def prepare(self):
        self.command = ['knockd', '-i', 'eth0', '-c', self.write(
            'knockd.conf', KNOCKD % (self.log, network.HIDDEN))]

    def ready(self):
        with open('/proc/%d/net/packet' % self.namespace.pid) as lines:
            return len(lines.readlines()) > 1

    def argv(self, _, __):
        return ['knock', self.namespace.addresses[0]] + [str(port) for port in DOORS]

    def send(self, client, source, _):
        """Returns when the last of the three left."""
        for port in DOORS:
            with client.make_socket(socket.AF_INET, socket.SOCK_STREAM) as sender:
                sender.setblocking(False)
                sender.bind((source, 0))
                began = time.monotonic()
                sender.connect_ex((self.namespace.addresses[0], port))
        return began

    @property
    def junk(self):
        return [('random bytes', []), ('well-formed', ['--syn', '--port', str(DOORS[0])])]


def installed():
    """The names of those that are there, each with what starts it."""
    kinds = [(name, Fwknopd) for name in FWKNOPD if shutil.which('fwknopd', path=PATH) and
             shutil.which('fwknop', path=PATH) and shutil.which('iptables', path=PATH)]
    if shutil.which('knockd', path=PATH) and shutil.which('knock', path=PATH):
        kinds.append(('knockd', Knockd))
    return collections.OrderedDict(kinds)


PATH = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'


def versions():
    """What is there and what is not, for the head of the table."""
    said = {}
    for program, option in (('fwknopd', '-V'), ('knockd', '-V')):
        path = shutil.which(program, path=PATH)
        text = subprocess.run([path, option], stdout=subprocess.PIPE).stdout.decode() \
            if path else 'not installed, left out'
        said[program] = text.strip().splitlines()[0].partition(',')[0]
    return said
