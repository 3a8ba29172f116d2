"""Sends junk datagrams: flood.py DESCRIPTOR ADDRESS PACKETS_A_SECOND SECONDS [HEX_PREFIX]

One sendto() hands the kernel 64 datagrams (UDP_SEGMENT, Linux 4.18): it cuts them apart before the
wire, so that Python is not what limits the rate. The socket comes from whoever started us, made
in the sender's network namespace. Prints how many were sent.
"""

import os
import random
import socket
import sys
import time

UDP_SEGMENT = 103               # linux/udp.h
SIZE, SEGMENTS = 100, 64        # a plausible knock has 68 to 131 bytes
BATCHES, PORTS = 64, 16


def junk(prefix):
    """64 datagrams in a row: random bytes behind the prefix."""
    return b''.join(prefix + os.urandom(SIZE - len(prefix)) for _ in range(SEGMENTS))


def flood(sender, address, rate, seconds, prefix):
    """Keeps to the rate: whoever fell behind catches up by at most a tenth of a second's worth."""
    batches = [junk(prefix) for _ in range(BATCHES)]
    ports = [random.randrange(1024, 65536) for _ in range(PORTS)]
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
    count, sent, began = 0, 0, time.monotonic()
    while time.monotonic() - began < seconds:
        due = (time.monotonic() - began) * rate / SEGMENTS
        if sent >= due:
            time.sleep(SEGMENTS / rate)
            continue
        sent = max(sent, int(due - rate / SEGMENTS / 10))
        sender.sendto(batches[sent % BATCHES], (address, ports[sent % PORTS]))
        sent += 1
        count += 1
    return count * SEGMENTS


def main():
    descriptor, address, rate, seconds = sys.argv[1:5]
    prefix = bytes.fromhex(sys.argv[5] if len(sys.argv) > 5 else '')
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM, fileno=int(descriptor)) as sender:
        print(flood(sender, address, float(rate), float(seconds), prefix))


if __name__ == '__main__':
    main()
