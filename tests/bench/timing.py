"""Prints how long a hidden and a closed TCP port take to refuse: medians of ROUNDS round trips.

timing.py [ROUNDS]. A client on the wire of tests/e2e asks both ports in turn, each from a source
port of its own, so that whatever slows the box slows both.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [TOP, os.path.join(TOP, 'tests'), os.path.join(TOP, 'tests', 'e2e')]

import network                                                           # noqa: E402

PORTS = (('hidden', network.HIDDEN), ('closed', network.CLOSED),
         ('closed again', network.CLOSED + 1))


def refused_after(client, address, port):
    """Microseconds from connect() to the reset."""
    with client.make_socket(network.family_of(address), network.socket.SOCK_STREAM) as attempt:
        attempt.settimeout(2)
        begin = time.perf_counter()
        try:
            attempt.connect((address, port))
        except ConnectionRefusedError:
            return (time.perf_counter() - begin) * 1e6
    raise SystemExit('port %d is open' % port)


def print_medians(wire, address, rounds):
    times = {name: [] for name, _ in PORTS}
    for number in range(rounds):
        for name, port in PORTS[number % 3:] + PORTS[:number % 3]:
            times[name].append(refused_after(wire.client, address, port))
    for name, _ in PORTS:
        low, middle, high = statistics.quantiles(times[name], n=4)
        print('IPv%d %-12s %d round trips: median %.1f us, half of them from %.1f to %.1f us'
              % (6 if ':' in address else 4, name, rounds, middle, low, high), flush=True)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    wire = network.Wire()
    try:
        with tempfile.TemporaryDirectory() as folder:
            wire.daemons.append(network.Daemon(wire.server, pathlib.Path(folder)).start())
            for address in wire.server.addresses:
                print_medians(wire, address, rounds)
            wire.clear()
    finally:
        wire.close()


if __name__ == '__main__':
    main()
