"""Runs in the client's namespace: reach.py SERVER PORT PAUSE SECONDS < [[SOURCE, COMMAND], ...]

Before each COMMAND the source towards the server is set, and all is quiet for PAUSE seconds; then
it is started, and when it has ended, as in `COMMAND; ssh ...`, the port is tried each millisecond
until it accepts. Prints a JSON list: the milliseconds from the start of the command to the
connection, null where none came in time.
"""

import json
import socket
import subprocess
import sys
import time


def connects(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((address, port)) == 0


def reached(address, port, began, seconds):
    while time.monotonic() < began + seconds:
        if connects(address, port):
            return (time.monotonic() - began) * 1000
        time.sleep(0.001)
    return None


def main():
    address, port, pause, seconds = sys.argv[1:]
    laps = []
    for source, command in json.load(sys.stdin):
        subprocess.check_call(['ip', 'route', 'replace', address, 'dev', 'eth0', 'src', source])
        time.sleep(float(pause))
        began = time.monotonic()
        subprocess.call(command, stdout=subprocess.DEVNULL)
        laps.append(reached(address, int(port), began, float(seconds)))
    subprocess.check_call(['ip', 'route', 'del', address, 'dev', 'eth0'])
    print(json.dumps(laps))


if __name__ == '__main__':
    main()
