"""What a processor can carry through boxes that stand at once and route between two networks.

One thread is sender and receiver of a TCP connection through each box, and nobody waits for
anybody: while it sends, the kernel carries the packet to the other end and the acknowledgement
back, all of it at this thread's cost. So its processor time for a slice of so many bytes tells
what they cost, whatever else runs meanwhile. The slices are of milliseconds, and go round all
boxes there and back, so that what a machine and its host do to a second they do to all boxes.
"""

import contextlib
import random
import statistics
import time

import network

SENT_AT_ONCE = memoryview(bytes(1 << 18))
ROUND = 0.5             # seconds, with connections of its own: where they lie in memory matters


@contextlib.contextmanager
def router(wire, number):
    """One more box on the wire, with an address in two networks: the client's, the stranger's."""
    name = 'through%d' % number
    box = wire.join(name, 10 + number)
    try:
        for which, member in ((1, wire.client), (2, wire.stranger)):
            box.must('ip', 'addr', 'add', address(number, which, 1) + '/24', 'dev', 'eth0')
            member.must('ip', '-b', '-', stdin='addr add %s/24 dev eth0\nroute add %s/24 via %s\n'
                        % (address(number, which, 2), address(number, 3 - which, 0),
                           address(number, which, 1)))
        box.set(ipv4__ip_forward=1, ipv4__conf__all__send_redirects=0,
                ipv4__conf__eth0__send_redirects=0)
        yield box
    finally:
        for member in (wire.client, wire.stranger):
            member.run('ip', 'addr', 'flush', 'to', address(number, 0, 0) + '/16')
        wire.members.remove(box)
        box.close()


def address(number, which, host):
    return '10.%d.%d.%d' % (100 + number, which, host)


class Connection:
    """Through one box. Where the kernel's own choice is BBR, its pacing would hide the cost."""

    def __init__(self, wire, number):
        with wire.stranger.make_socket(network.socket.AF_INET,
                                       network.socket.SOCK_STREAM) as listener:
            listener.bind((address(number, 2, 2), 0))
            listener.listen(1)
            self.sender = wire.client.make_socket(network.socket.AF_INET,
                                                  network.socket.SOCK_STREAM)
            self.sender.setsockopt(network.socket.IPPROTO_TCP, network.socket.TCP_CONGESTION,
                                   b'cubic')
            self.sender.settimeout(5)
            self.sender.connect(listener.getsockname())
            self.receiver, _ = listener.accept()
        self.sender.setblocking(False)
        self.receiver.setblocking(False)
        self.into = bytearray(1 << 20)

    def carry(self, size, clock=time.thread_time_ns):
        """Nanoseconds that so many bytes cost."""
        sent, got, began = 0, 0, clock()
        while got < size:
            if sent < size:
                with contextlib.suppress(BlockingIOError):
                    sent += self.sender.send(SENT_AT_ONCE[:size - sent])
            with contextlib.suppress(BlockingIOError):
                got += self.receiver.recv_into(self.into)
        return clock() - began

    def close(self):
        self.sender.close()
        self.receiver.close()


def connected(stack, wire, count, size):
    """A connection through each box, past its slow start."""
    connections = [stack.enter_context(contextlib.closing(Connection(wire, number)))
                   for number in range(count)]
    for connection in connections:
        for _ in range(5):
            connection.carry(size)
    return connections


def right_clock(wire, size):
    """The thread's processor time; or the time that passes, on a kernel that charges nobody with
    the work on packets (CONFIG_IRQ_TIME_ACCOUNTING)."""
    with contextlib.ExitStack() as stack:
        connection, = connected(stack, wire, 1, size)
        shares = []
        for _ in range(20):
            began = time.perf_counter_ns()
            used = connection.carry(size)
            shares.append(used / (time.perf_counter_ns() - began))
    return time.thread_time_ns if max(shares) > 0.9 else time.perf_counter_ns


def costs(wire, count, size, seconds):
    """Yields rounds: of each of the boxes 0, 1, ... its slices, in nanoseconds; the slices of one
    place in these lists were carried one right after the other."""
    clock, end = right_clock(wire, size), time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.ExitStack() as stack:
            connections = connected(stack, wire, count, size)
            found, began = [[] for _ in connections], time.monotonic()
            while time.monotonic() < began + ROUND or not found[0]:
                there = random.sample(range(count), count)
                used = [0] * count
                for number in there + there[::-1]:
                    used[number] += connections[number].carry(size, clock)
                for slices, nanoseconds in zip(found, used):
                    slices.append(nanoseconds / 2)
        yield found


def ratios(rounds, base, number):
    """Of each round: how much of what gets through the box `base` gets through another one."""
    return [statistics.median(before / used for before, used in zip(found[base], found[number]))
            for found in rounds]
