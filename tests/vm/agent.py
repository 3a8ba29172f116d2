"""Runs in the guest: takes commands from a virtio-serial port, so it needs neither
network nor ssh.

A line of JSON in, `{"id": 7, "argv": [...], "input": "...", "seconds": 30}`; a line of
JSON out, `{"id": 7, "code": 0, "out": "...", "err": "..."}`. Commands run side by side.
"""

import glob
import json
import os
import select
import subprocess
import threading
import time

LOCK = threading.Lock()


def find_port():
    for name in glob.glob('/sys/class/virtio-ports/*/name'):
        with open(name) as text:
            if text.read().strip() == 'agent':
                return '/dev/' + name.split('/')[-2]
    return None


def perform(port, request):
    try:
        done = subprocess.run(
            request['argv'], input=request['input'].encode(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=request['seconds'], cwd='/root',
            env={'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
                 'HOME': '/root', 'LC_ALL': 'C.UTF-8'})
        reply = {'code': done.returncode, 'out': done.stdout.decode(errors='replace'),
                 'err': done.stderr.decode(errors='replace')}
    except subprocess.TimeoutExpired:
        reply = {'code': -1, 'out': '', 'err': 'not done after %s s' % request['seconds']}
    except OSError as error:
        reply = {'code': 127, 'out': '', 'err': str(error)}
    reply['id'] = request['id']
    data = json.dumps(reply).encode() + b'\n'
    with LOCK:
        while data:
            data = data[os.write(port, data):]


def serve(port):
    pending = b''
    poller = select.poll()
    poller.register(port, select.POLLIN)
    while True:
        poller.poll()
        data = os.read(port, 65536)
        if not data:
            time.sleep(0.1)         # nobody at the other end; poll() does not wait then
            continue
        *lines, pending = (pending + data).split(b'\n')
        for line in lines:
            try:
                request = json.loads(line.decode())
            except ValueError:
                continue            # cut short by a reboot
            threading.Thread(target=perform, args=(port, request), daemon=True).start()


def main():
    name = find_port()
    while name is None or not os.path.exists(name):
        time.sleep(0.1)             # its driver is not loaded yet
        name = find_port()
    serve(os.open(name, os.O_RDWR))


if __name__ == '__main__':
    main()
