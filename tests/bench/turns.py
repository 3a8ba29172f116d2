"""Runs in the server's namespace: turns.py CONFIG COUNT OPENINGS

Times what the daemon does when a step begins, COUNT times in a row with its clock set forward, so
that nobody waits half a minute for each: new tokens and the kernel's filters with them, and
forgetting as many openings as that, expired. Prints a JSON list of milliseconds of processor time
for each of the two, and, for each step, of every slice of its tokens that is derived before.
"""

import ipaddress
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import knockd       # noqa: E402  the path above


def lap(work, *arguments):
    began = time.process_time()
    work(*arguments)
    return (time.process_time() - began) * 1000


def expired(count, now):
    """Openings of that many addresses."""
    sources = [ipaddress.ip_network('10.8.%d.%d' % divmod(number, 256)) for number in range(count)]
    openings = [knockd.PortOpening('m0', source, 6, 22, False, now.mono - 1000) for source in sources]
    return {opening[1:5]: opening for opening in openings}


def main():
    config = knockd.read_config(sys.argv[1])
    count, openings = int(sys.argv[2]), int(sys.argv[3])
    daemon, now = knockd.Daemon(config), knockd.moment()
    daemon.state = knockd.State(config, knockd.Ledger(config.id))
    daemon.turn(now)
    turns, forgets, slices = [], [], []
    for _ in range(count):
        slices.append([])
        while daemon.tokens[-1].waiting:
            slices[-1].append(lap(daemon.tokens[-1].derive, knockd.SLICE))
        now = now._replace(wall=now.wall + knockd.STEP, mono=now.mono + knockd.STEP)
        turns.append(lap(daemon.turn, now))
        daemon.firewall.openings, daemon.next_end = expired(openings, now), 0
        forgets.append(lap(daemon.look_for_ends, now))
    print(json.dumps([turns, forgets, slices]))


if __name__ == '__main__':
    main()
