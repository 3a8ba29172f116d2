"""Records a first visit in namespaces of its own: transcript.py > tests/transcript.txt

What is printed is what the programs printed; only this folder's path and the key are shortened."""

import os
import re
import sys
import tempfile

import network

SERVER = '10.9.0.1'


def show(name, shown, result):
    text = re.sub(r'(knock://\w+:.{4})[A-Z2-7]{48}', r'\1...', result.out + result.err)
    print('%s# %s\n%s' % (name, shown, re.sub(r'(?m)^(Starting|Nmap done|Host is).*\n', '', text)))


def main():
    wire = network.Wire()
    with tempfile.TemporaryDirectory() as folder, wire.server.listen(network.HIDDEN), \
            wire.server.listen(8080):
        daemon = network.Daemon(wire.server, folder)
        scan = ('nmap', '-n', '-Pn', '-p', '2222,2233,8080', SERVER)
        show('stranger', 'nmap -p 2222,2233,8080 gate', wire.stranger.run(*scan))
        os.unlink(daemon.config)
        os.unlink(daemon.ledger)
        daemon.start('--hide', 'tcp/2222', '--client', 'laptop', '--host', SERVER)
        line = daemon.printed().strip()
        show('gate', 'python3 knockd.py run --hide tcp/2222 --client laptop',
             network.Result(0, daemon.printed(), daemon.text()))
        show('stranger', 'nmap -p 2222,2233,8080 gate', wire.stranger.run(*scan))
        show('laptop', 'python3 knock.py -v knock://laptop:...',
             wire.client.knock('-v', line))
        connect = ('nc', '-zvn', '-w', '2', SERVER, '2222')
        show('laptop', 'nc -zv gate 2222', wire.client.run(*connect))
        show('stranger', 'nc -zv gate 2222', wire.stranger.run(*connect))
        show('gate', 'python3 knockd.py status', daemon.do('status'))
        wire.clear()
        daemon.kill()
    wire.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
