"""Runs in the client's namespace: laps.py COUNT PAUSE SERVER PORT COMMAND... -- CLOSE...

Times COMMAND from its start to its end; CLOSE and a wait until the port refuses go in between, so
that each run finds the port hidden. Prints a JSON list of milliseconds.
"""

import json
import socket
import subprocess
import sys
import time


def refused(address, port):
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return True
    return False


def main():
    count, pause, address, port = sys.argv[1:5]
    split = sys.argv.index('--')
    command, close = sys.argv[5:split], sys.argv[split + 1:]
    laps = []
    for _ in range(int(count)):
        while not refused(address, int(port)):
            time.sleep(0.01)
        time.sleep(float(pause))
        began = time.monotonic()
        code = subprocess.call(command)
        laps.append((time.monotonic() - began) * 1000 if code == 0 else None)
        subprocess.call(close)
    print(json.dumps(laps))


if __name__ == '__main__':
    main()
