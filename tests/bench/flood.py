"""Sends junk: flood.py [OPTIONS] DESCRIPTOR ADDRESS PACKETS_A_SECOND SECONDS [HEX_PREFIX]

One sendto() hands the kernel up to 64 datagrams (UDP_SEGMENT, Linux 4.18): it cuts them apart
before the wire, so that Python is not what limits the rate. With --syn the socket is a raw one and
they are TCP SYNs from anywhere. The socket comes from whoever started us, made in the sender's
network namespace. Prints how many were sent.
"""

import argparse
import os
import random
import socket
import struct
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
UDP_SEGMENT = 103               # linux/udp.h
SEGMENTS, BATCHES, PORTS = 64, 64, 16
BASE64 = b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'


def datagram(args):
    """Random bytes behind the prefix, all of the alphabet if there is one."""
    junk = os.urandom(args.size - len(args.prefix))
    return args.prefix + (bytes(BASE64[byte & 63] for byte in junk) if args.alphabet else junk)


def syn(address, port):
    """A SYN from an address that nobody routes back to (RFC 2544)."""
    tests = os.path.join(TOP, 'tests')
    sys.path[:0] = [TOP, tests, os.path.join(tests, 'e2e')]
    import network
    source = '198.18.%d.%d' % (random.randrange(256), random.randrange(256))
    badge = struct.pack('!IIH', random.getrandbits(32), 0, 64240)
    return network.syn_packet(source, address, port, random.randrange(1024, 65536), badge)


def batches(args):
    """What sendto() gets, and how many packets each is; few at a time where the rate is low."""
    if args.syn:
        return [syn(args.address, args.port) for _ in range(BATCHES * PORTS)], 1
    segments = max(1, min(SEGMENTS, int(args.rate / 100)))
    return [b''.join(datagram(args) for _ in range(segments)) for _ in range(BATCHES)], segments


def flood(sender, args):
    """Keeps to the rate: whoever fell behind catches up by at most a tenth of a second's worth."""
    ready, segments = batches(args)
    ports = [args.port or random.randrange(1024, 65536) for _ in range(PORTS)]
    if not args.syn:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, args.size)
    count, sent, began = 0, 0, time.monotonic()
    while time.monotonic() - began < args.seconds:
        due = (time.monotonic() - began) * args.rate / segments
        if sent >= due:
            time.sleep(segments / args.rate)
            continue
        sent = max(sent, int(due - args.rate / segments / 10))
        sender.sendto(ready[sent % len(ready)], (args.address, 0 if args.syn else
                                                 ports[sent % PORTS]))
        sent += 1
        count += 1
    return count * segments


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', type=int, default=100)        # a plausible knock: 68 to 131
    parser.add_argument('--alphabet', choices=['base64'])
    parser.add_argument('--port', type=int, help='by default random ones')
    parser.add_argument('--syn', action='store_true')
    parser.add_argument('descriptor', type=int)
    parser.add_argument('address')
    parser.add_argument('rate', type=float)
    parser.add_argument('seconds', type=float)
    parser.add_argument('prefix', type=bytes.fromhex, nargs='?', default=b'', metavar='HEX')
    args = parser.parse_args()
    family = socket.AF_INET6 if ':' in args.address else socket.AF_INET
    kind = socket.SOCK_RAW if args.syn else socket.SOCK_DGRAM
    with socket.socket(family, kind, fileno=args.descriptor) as sender:
        print(flood(sender, args))


if __name__ == '__main__':
    main()
