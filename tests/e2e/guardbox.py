"""The guard without its daemon: the text that knockd.py makes, loaded into a namespace, and the
sockets that hold its decoys. What the kernel answers is then the text's doing alone."""

import ipaddress
import os
import shutil
import socket
import time

import knockd
from network import HIDDEN, HIDDEN_TOO, HIDDEN_UDP

HIDE = 'hide = tcp/%d, tcp/%d, udp/%d' % (HIDDEN, HIDDEN_TOO, HIDDEN_UDP)


def service(text):
    return knockd.parse_services(text)[0]


class Guard:
    """One namespace's guard. clients: {name: lines of its section}, by default one, anna."""

    def __init__(self, namespace, settings='', tool=knockd.NFT, **clients):
        self.namespace, self.tool = namespace, tool
        lines = [] if 'hide' in settings else [HIDE]
        text = '[server]\nid = box\n%s\n' % '\n'.join(lines + settings.splitlines())
        for name, entries in (clients or {'anna': ''}).items():
            text += '[client %s]\nsecret = %s\n%s\n' % (
                name, knockd.encode_secret(os.urandom(32)), entries)
        self.config = knockd.parse_config(text, '/etc/knockd/knockd.ini')
        self.openings, self.holders, self.decoys, self.seen = [], [], {}, None

    def mono(self):
        return time.monotonic_ns() // 1000000

    def look(self):
        """What is there, as the tool reads it."""
        outputs = {}
        for argv in self.tool.list_commands(self.has):
            result = self.namespace.run(*argv)
            if not result.code:
                outputs[argv[0]] = result.out
        self.seen = self.tool.read(outputs, self.config)
        return self.seen

    def has(self, program):
        if 'legacy' in program:
            names = '/proc/net/ip%s_tables_names' % ('6' if program.startswith('ip6') else '')
            return bool(self.namespace.run('cat', names).out.strip())
        return shutil.which(program) is not None

    def hold(self):
        """Sockets on decoys; chosen in order, which no test minds."""
        wanted, taken = knockd.decoy_ports(self.config, self.seen)
        free = [port for port in range(61022, 62000) if port not in taken]
        for port, decoy in zip(wanted, free):
            if port in self.decoys:
                continue
            holder = self.namespace.make_socket(socket.AF_INET6, socket.SOCK_STREAM)
            holder.bind(('::', decoy))
            self.holders.append(holder)
            self.decoys[port] = decoy

    def load(self):
        """Everything, in one transaction."""
        for setting in self.tool.sysctls:
            self.namespace.must('sysctl', '-qw', setting.replace('/', '.') + '=1')
        self.look()
        self.hold()
        self.run(self.tool.whole(self.config, self.seen, self.decoys, self.openings, self.mono()))
        return self

    def text(self):
        return self.tool.whole(self.config, self.look(), self.decoys, self.openings,
                               self.mono())[0][1]

    def run(self, commands):
        for argv, text in commands:
            self.namespace.must(*argv, stdin=text)

    def turn(self, openings):
        """From the openings there are to these."""
        commands = self.tool.change(self.openings, openings, self.mono())
        self.openings = list(openings)
        self.run(commands)

    def open(self, source, what='tcp/%d' % HIDDEN, seconds=60, client='anna', once=False):
        """One opening more; returns it."""
        opening = knockd.Opening(client * 4, client, ipaddress.ip_network(source), service(what),
                                 once, self.mono() + int(seconds * 1000), ())
        kept = [each for each in self.openings if each[2:4] != opening[2:4]
                or each.client != client]
        self.turn(kept + [opening])
        return opening

    def close(self):
        """Takes everything away."""
        for holder in self.holders:
            holder.close()
        self.holders, self.decoys = [], {}
        self.namespace.nft('flush ruleset')
