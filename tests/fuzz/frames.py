"""Frames that were knocks, mutated, thrown at the filter in the kernel, the parser and the daemon.

The corpus is real: every carrier, both families, options, extension headers, fragments, lengths
that lie. Every knock in it has been spent, so nothing made of it may open: what is left whole is a
replay, what is not is junk. The kernel's answer to every frame, and that of tests/bpf.py to every
eighth, must be the parser's.
"""

import functools
import random
import resource
import socket
import struct

import bpf
import knock
import knockd
import played
from segments import tcp_segment

NOW, MONO = 1800000012345, 10 ** 9
SOURCES = {4: bytes([192, 0, 2, 1]), 6: bytes([0x20, 1, 0xd, 0xb8]) + bytes(11) + b'\1'}
CONFIG = '''[server]
id = box
hide = tcp/22, udp/51820
carriers = udp, icmp, syn, ports, code
[client anna]
secret = %s
code = yes
paper = 1700000000:9
[client bert]
secret = %s
allow = tcp/22
'''
INTERESTING = (0, 1, 2, 4, 5, 6, 8, 15, 17, 20, 40, 44, 58, 59, 60, 0x40, 0x45, 0x46, 0x4f, 0x60,
               0x7f, 0x80, 0xff)
BATCH, EVERY = 8, 8             # frames a socket pair holds; the interpreter sees every eighth


class Broken(AssertionError):
    """A promise was broken by this frame."""


# --- the corpus -----------------------------------------------------------------------------------
def ip4(body, protocol, options=b'', fragment=0x4000, total=None):
    total = 20 + len(options) + len(body) if total is None else total
    return struct.pack('>BBHHHBBH4s4s', 0x45 + len(options) // 4, 0, total, 7, fragment, 64,
                       protocol, 0, SOURCES[4], bytes([198, 51, 100, 1])) + options + body


def ip6(body, following, length=None):
    length = len(body) if length is None else length
    return struct.pack('>IHBB', 6 << 28, length, following, 64) + SOURCES[6] * 2 + body


def udp(data):
    return struct.pack('>HHHH', 40001, 50000, 8 + len(data), 0) + data


def echo(kind, data):
    return struct.pack('>BBHHH', kind, 0, 0, 1, 2) + data


def datagrams(client):
    """Knocks of one client: the shortest, one that asks for much, a close, the longest."""
    step = NOW // knockd.STEP

    def made(op, services, padding):
        request = knockd.Request(op, NOW - 500, None, 30, services, None, None, None)
        number = '%s%s%d%d' % (client.name, op, len(services), len(padding))
        nonce = knockd.hmac_sha256(b'nonce', number.encode())[:16]
        return knock.seal(client.keys, nonce, knock.encode_plain(request, padding), step)
    many = tuple(knockd.Service(6, port, port) for port in range(1, 146))
    return [made('open', (), b''), made('open', (knockd.Service(6, 22, 22),), bytes(63)),
            made('close', (), bytes(17)), made('open', many, bytes(4))]


def segments(client):
    """SYNs of one client: the badge, the six ports of its sequence, of a paper, of its code."""
    step = NOW // knockd.STEP
    ports = knockd.step_ports(client.keys, step) + knock.code_ports(
        knockd.code_at(client.keys, step)) + knockd.paper_ports(client.keys, 1700000000, 1)
    options = struct.pack('>BBHBB', 2, 4, 1460, 4, 2) + b'\1\1'
    return [tcp_segment(22, knockd.syn_badge(client.keys, step))] + \
        [tcp_segment(port, options=options * (port & 1)) for port in ports]


EXTENSIONS = (      # RFC 8200, 4: next header, and what such a header looks like before UDP
    (0, bytes([17, 0, 1, 4, 0, 0, 0, 0])), (60, bytes([17, 0, 1, 4, 0, 0, 0, 0])),
    (43, bytes([17, 2, 0, 0, 0, 0, 0, 0]) + bytes(16)), (44, bytes([17, 0, 0, 0, 0, 0, 0, 9])),
    (44, bytes([17, 0, 0, 1, 0, 0, 0, 9])), (51, bytes([17, 4]) + bytes(22)), (59, b''))
JUMBO = bytes([17, 0, 0xc2, 4, 0, 1, 0, 0])             # RFC 2675
OPTIONS = (b'\x94\4\0\0', b'\1' * 4, b'\7\x27\4' + bytes(37), b'\x83\7\4\xc6\x33\x64\1\0')


def corpus(config):
    """Frames of both versions."""
    frames = []
    for client in config.clients.values():
        for data in datagrams(client):
            frames += [ip4(udp(data), 17), ip6(udp(data), 17),
                       ip4(echo(8, data), 1), ip6(echo(128, data), 58),
                       ip4(udp(data), 17) + bytes(18), ip6(udp(data), 17) + bytes(6)]
            frames += [ip4(udp(data), 17, options) for options in OPTIONS]
            frames += [ip6(header + udp(data), kind) for kind, header in EXTENSIONS]
            frames += [ip4(udp(data), 17, fragment=part) for part in (0x2000, 1, 0x2001)]
            frames += [ip6(JUMBO + udp(data), 0, 0), ip6(udp(data), 17, 0),
                       ip4(udp(data), 17, total=0), ip4(udp(data), 17, total=0xffff)]
        for segment in segments(client):
            frames += [ip4(segment, 6), ip6(segment, 6), ip4(segment, 6, OPTIONS[0]),
                       ip6(EXTENSIONS[0][1] + segment, 0)]
    return frames


def mutated(chance, frames):
    """One of the corpus with bytes changed, cut, added, moved or spliced."""
    frame, kind = bytearray(chance.choice(frames)), chance.random()
    near = min(len(frame), 80)
    for _ in range(chance.choice((0, 1, 1, 2, 3, 6))):
        place = int(chance.random() * near)
        if chance.random() < 0.5:
            frame[place] ^= 1 << int(chance.random() * 8)
        else:
            frame[place] = chance.choice(INTERESTING)
    if kind < 0.1:
        del frame[int(chance.random() * len(frame)):]
    elif kind < 0.15:
        frame += bytes(int(chance.random() * 60))
    elif kind < 0.2:
        frame[2:6] = struct.pack('>HH', *[chance.choice((0, 1, 7, 8, 20, 75, 76, 0x7fff, 0x8000,
                                                        0xffff, len(frame))) for _ in range(2)])
    elif kind < 0.25:
        other = chance.choice(frames)
        place = int(chance.random() * near)
        frame[place:] = other[place:]
    elif kind < 0.28:
        place = int(chance.random() * near)
        frame[place:place] = frame[:int(chance.random() * 40)]
    elif kind < 0.3:
        frame[0] ^= 0x20                # the other version
    elif kind < 0.33:
        frame[int(chance.random() * len(frame))] ^= 1 + int(chance.random() * 255)
    return bytes(frame)


# --- who is asked ---------------------------------------------------------------------------------
class Untouchable(played.Keeper):
    """Plays ledger file and firewall: nothing may ever be written or opened."""

    def touched(self, *arguments):
        raise Broken('it was honoured')

    append = rewrite = touched

    def want(self, config, openings):
        if openings:
            self.touched()
        return super().want(config, openings)


class Kernel:
    """One program on a pair of AF_UNIX sockets, whose packets begin with the first byte sent."""

    def __init__(self, program):
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.setblocking(False)
        self.compiled = bpf.compile_program(program)
        bpf.check(program)
        knockd.attach_filter(self.receiver, program)
        self.waiting = []       # frames that the parser took

    def ask(self, frame, taken, interpret):
        """Sends it; those that the parser took, and no others, must come out."""
        self.sender.send(frame)
        if taken:
            self.waiting.append(frame)
        if interpret and taken != (bpf.run(self.compiled, frame) > 0):
            raise Broken('tests/bpf.py and the parser (%s) disagree' % taken)
        if len(self.waiting) == BATCH or not taken and interpret:
            self.compare()

    def compare(self):
        """What has come out, in order."""
        came = []
        while True:
            try:
                came.append(self.receiver.recv(70000))
            except BlockingIOError:
                break
        if came != self.waiting:
            raise Broken('the kernel passes %s, the parser %s' % (
                [frame.hex() for frame in came if frame not in self.waiting],
                [frame.hex() for frame in self.waiting if frame not in came]))
        self.waiting = []

    def close(self):
        self.sender.close()
        self.receiver.close()


class Target:
    """The daemon with every carrier on, to whom all of the corpus is old."""

    def __init__(self, patch):
        self.lines, self.mono = [], MONO
        patch.setattr(knockd, 'log', lambda text, level=6: self.lines.append(text))
        patch.setattr(knockd, 'is_own', functools.lru_cache()(lambda address, interface: True))
        patch.setattr(knockd, 'moment', lambda: knockd.Moment(NOW, self.mono))
        secrets = [knockd.encode_secret(bytes([number]) * 32) for number in (1, 2)]
        self.config = knockd.parse_config(CONFIG % tuple(secrets), '/played/knockd.ini')
        state = knockd.State(self.config, self.spent())
        keeper = Untouchable()
        self.daemon = played.furnished(patch, self.config, state, knockd.Moment(NOW, MONO), keeper)
        self.daemon.file = keeper
        self.tags = {int.from_bytes(tag[:4], 'big') for tag in state.tags}
        self.syns = {int.from_bytes(badge[:4], 'big') for badge in state.badges}
        self.kernels = (
            Kernel(knockd.datagram_filter(self.config.carriers, None, self.tags)),
            Kernel(knockd.syn_filter(knockd.KNOCKED_PORTS['ports'], self.syns)))
        self.taken = 0

    def spent(self):
        """A ledger that knows every knock of these steps."""
        ledger = knockd.Ledger('box')
        for client in self.config.clients.values():
            for data in datagrams(client):
                ledger.record(client.fingerprint, data[8:24].hex(), NOW - 500, 60000)
            for step in [made.step for made in knockd.valid_steps(self.config, NOW)]:
                for carrier in ('syn', 'ports', 'code'):
                    ledger.record(client.fingerprint, '%s:%d' % (carrier, step),
                                  step * knockd.STEP, 60000)
            ledger.record(client.fingerprint, '', 0, 60000, (1700000000, 9))
        return ledger

    def hear(self, frame, interpret):
        """One frame, to all who are asked; Broken, or any error of the daemon, if one is wrong."""
        self.mono += 5
        packet = knockd.parse_packet(frame, self.config.carriers, None)
        known = packet is not None and int.from_bytes(packet.payload[:4], 'big') in self.tags
        segment = knockd.parse_syn(frame)
        follows = segment is not None and (
            segment.port >= 1024 or int.from_bytes(segment.badge[:4], 'big') in self.syns)
        datagram_kernel, syn_kernel = self.kernels
        datagram_kernel.ask(frame, known, interpret)
        syn_kernel.ask(frame, follows, interpret)
        self.daemon.hear(frame, 'eth0')
        self.daemon.hear_syn(frame, 'eth0')
        self.taken += known or follows

    def close(self):
        for kernel in self.kernels:
            kernel.compare()
            kernel.close()


def resident():
    """Kilobytes of this process."""
    with open('/proc/self/statm') as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


def shake(patch, seed, count):
    """So many frames. (how many were candidates, kilobytes grown after the first quarter)"""
    print('seed %d' % seed)
    chance, target = random.Random(seed), Target(patch)
    real = corpus(target.config)
    number, memory = 0, None
    for frame in real:                                      # cut at every byte
        for end in range(len(frame) + 1):
            target.hear(frame[:end], number % EVERY == 0)
            number += 1
    try:
        while number < count:
            frame = mutated(chance, real)
            target.hear(frame, number % EVERY == 0)
            number += 1
            if number * 4 > count and memory is None:
                memory = resident()
    except Exception as error:
        raise Broken('frame %d of seed %d, %s: %r' % (number, seed, frame.hex(), error))
    target.close()
    internal = [line for line in target.lines if line.startswith('internal')]
    if internal:
        raise Broken(internal[0])
    return target.taken, resident() - memory
