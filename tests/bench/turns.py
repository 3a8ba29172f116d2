"""Runs in the server's namespace: turns.py CONFIG COUNT OPENINGS

Times what the daemon does when a step begins, COUNT times in a row with its clock set forward, so
that nobody waits half a minute for each: new tokens and the kernel's filters with them, and
forgetting as many openings as that, expired. Prints a JSON list of milliseconds of processor time
for each of the two, and, for each step, of its credentials, which are derived before.
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
    service = knockd.Service(6, 22, 22)
    found = {}
    for number in range(count):
        source = ipaddress.ip_network('10.8.%d.%d' % divmod(number, 256))
        found['f', source, service, ()] = knockd.Opening(
            'f', 'm0', source, service, False, now.mono - 1000, (), False)
    return found


class Nothing:
    """Plays the keeper."""

    def want(self, config, openings):
        return 0


def main():
    config = knockd.read_config(sys.argv[1])
    count, openings = int(sys.argv[2]), int(sys.argv[3])
    now = knockd.moment()
    state = knockd.State(config, knockd.Ledger(config.id))
    hearing = knockd.Hearing(state, now)
    doors = knockd.Doors(Nothing(), state, knockd.Reports())
    hearing.keys.adopt(now)
    hearing.turn(False, now)
    turns, forgets, slices = [], [], []
    for _ in range(count):
        slices.append([lap(hearing.keys.prepare)])
        now = now._replace(wall=now.wall + knockd.STEP, mono=now.mono + knockd.STEP)
        turns.append(lap(hearing.turn, False, now))
        state.hold(expired(openings, now))
        doors.hide(True)
        forgets.append(lap(doors.look_for_ends, now))
    print(json.dumps([turns, forgets, slices]))


if __name__ == '__main__':
    main()
