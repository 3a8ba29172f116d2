"""Sends raw frames as fast as a packet ring can.

    blast.py eth0 MAC KIND SOURCE TARGET PORT COUNT_OR_SECONDS RATE SEED [HEX]

    syn         SYNs to random ports          udp      junk to random ports
    ascending   SYNs to 1, 2, ..., 65535      one      junk to PORT
    descending  SYNs to 65535, ..., 1         prefix   junk behind HEX to random ports
    same        SYNs to PORT                  replay   HEX to random ports
    icmp        echo requests with junk

COUNT_OR_SECONDS is 500000 or 10s; RATE 0 is full speed; of SYNs the SOURCE may end with a `*`, as
198.18.* or 2001:db8::*, and is another one in every frame (with `same` one after the other).
Frames lie in a PACKET_TX_RING (linux/if_packet.h); what differs from round to round is written
over all of them at once, and its complement beside it, so that no checksum changes. Prints how
many were sent and in how many seconds.
"""

import ipaddress
import mmap
import os
import random
import socket
import struct
import sys
import time

SOL_PACKET, PACKET_TX_RING, PACKET_VERSION, PACKET_QDISC_BYPASS = 263, 13, 10, 20
TPACKET_V2, SEND_REQUEST = 1, 1
FRAMES, SIZE, DATA = 2048, 256, 32      # a ring of so many frames; where in one its bytes begin
BLOCK = 1 << 16
COMPLEMENT = bytes(255 - byte for byte in range(256))
JUNK = 92                               # a plausible knock has 68 to 131 bytes


def checksum(data):
    """RFC 1071."""
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total ^ 0xffff


def packet(source, target, protocol, segment, place):
    """An IP packet whose segment has its checksum at place."""
    source, target = ipaddress.ip_address(source).packed, ipaddress.ip_address(target).packed
    pseudo = source + target + struct.pack('!LL', len(segment), protocol)
    pseudo = b'' if protocol == 1 else pseudo
    check = struct.pack('!H', checksum(pseudo + segment) or 0xffff)
    segment = segment[:place] + check + segment[place + 2:]
    if len(source) == 16:
        return struct.pack('!LHBB', 6 << 28, len(segment), protocol, 64) + source + target + segment
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(segment), 0xffff, 0, 64, protocol, 0,
                       source, target)
    return head[:10] + struct.pack('!H', checksum(head)) + head[12:] + segment


def model(kind, source, target, port, data):
    """One frame, from its IP header on. Ports add up to 0xffff, so do source and its balance."""
    six = ':' in target
    if kind in ('syn', 'ascending', 'descending', 'same'):
        segment = struct.pack('!HHHHLBBHHH', 65535 - port, port, 7, 0xffff, 0, 5 << 4, 2, 1024, 0,
                              0)
        return packet(source, target, 6, segment, 16)
    if kind == 'icmp':
        segment = struct.pack('!BBHHH', 128 if six else 8, 0, 0, 1, 0xffff) + data
        return packet(source, target, 58 if six else 1, segment, 2)
    segment = struct.pack('!HHHH', 65535 - port, port, 8 + len(data), 0) + data
    return packet(source, target, 17, segment, 6)


class Ring:
    """The frames, and the socket that sends them all by one call."""

    def __init__(self, interface, frames):
        protocol = 0x86dd if frames[0][14] >> 4 == 6 else 0x0800
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        self.socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack(
            '@IIII', BLOCK, FRAMES * SIZE // BLOCK, SIZE, FRAMES))
        self.memory = mmap.mmap(self.socket.fileno(), FRAMES * SIZE)
        self.view = memoryview(self.memory)
        self.socket.bind((interface, protocol))
        for number in range(FRAMES):
            frame, place = frames[number % len(frames)], number * SIZE
            self.memory[place + 4:place + 8] = struct.pack('@I', len(frame))
            self.memory[place + DATA:place + DATA + len(frame)] = frame
        self.ready = struct.pack('@I', SEND_REQUEST)

    def write(self, place, column):
        """One byte of every frame."""
        self.view[DATA + place::SIZE] = memoryview(column)

    def write_pair(self, place, balances, words):
        """Two bytes of every frame, and their complement wherever that is needed."""
        for half in (0, 1):
            column = words[half::2]
            self.write(place + half, column)
            for balance in balances:
                self.write(balance + half, column.translate(COMPLEMENT))

    def send(self):
        for place in range(4):
            self.view[place::SIZE] = memoryview(self.ready[place:place + 1] * FRAMES)
        self.socket.send(b'')


def in_order(numbers):
    """A function that gives the next FRAMES of these, over and over, as big-endian bytes."""
    text = struct.pack('!%dH' % len(numbers), *numbers)
    text *= 2 + FRAMES * 2 // len(text)
    state = [0]

    def following():
        begin = state[0]
        state[0] = (begin + FRAMES * 2) % (len(numbers) * 2)
        return text[begin:begin + FRAMES * 2]
    return following


def columns(kind, source, six, chance):
    """[(place, places of the balance, function that gives the next 2 * FRAMES bytes)]"""
    head, found = 14 + (40 if six else 20), []

    def anything():
        return chance.getrandbits(FRAMES * 16).to_bytes(FRAMES * 2, 'big')
    if kind in ('syn', 'udp', 'prefix', 'replay'):
        found.append((head + 2, (head,), anything))
    if kind in ('ascending', 'descending'):
        ports = list(range(1, 65536))[::1 if kind == 'ascending' else -1]
        found.append((head + 2, (head,), in_order(ports)))
    if source.endswith('*'):        # of the sum of the IP header its number is the balance
        balance = (head + 6,) if six else (head + 6, 14 + 4)
        found.append((14 + (22 if six else 14), balance, anything if kind != 'same' else in_order(
            range(1, 65536))))
    return found


def main():
    interface, mac, kind, source, target, port, length, rate, seed = sys.argv[1:10]
    data = bytes.fromhex(sys.argv[10]) if len(sys.argv) > 10 else b''
    chance, six = random.Random(int(seed)), ':' in target
    first = source.replace('.*', '.0.0').replace(':*', ':0') if '*' in source else source
    ethernet = bytes.fromhex(mac.replace(':', '')) + bytes([2, 0, 0, 0, 0, 9]) + (
        b'\x86\xdd' if six else b'\x08\x00')
    frames = [ethernet + model(kind, first, target, int(port) if kind in ('one', 'same') else 0,
                               data + (b'' if kind == 'replay' else os.urandom(JUNK - len(data))))
              for _ in range(1 if kind in ('syn', 'replay') else 256)]
    ring, written = Ring(interface, frames), columns(kind, source, six, chance)
    seconds = float(length[:-1]) if length.endswith('s') else 1e9
    count = 1 << 62 if length.endswith('s') else int(length)
    sent, began = 0, time.monotonic()
    while sent < count and time.monotonic() - began < seconds:
        for place, balances, following in written:
            ring.write_pair(place, balances, following())
        ring.send()
        sent += FRAMES
        if float(rate):
            time.sleep(max(0, began + sent / float(rate) - time.monotonic()))
    print(sent, '%.2f' % (time.monotonic() - began))


if __name__ == '__main__':
    main()
