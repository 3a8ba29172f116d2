"""Records a first visit on a fresh Debian, a mistake in each command: what README says, word by
word, and what the programs answered.

    mmdebstrap --variant=apt --include=openssh-server,iproute2,procps bookworm fresh.tar
    PYTHONPATH=. python3 tests/e2e/transcript.py fresh.tar tests/e2e/visit.txt >tests/transcript.txt

Server and client are that Debian in two trees, in network namespaces of their own; apt-get and
sshd are real, curl reads a folder, systemctl does what the unit says. Secrets are shortened."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import network
from test_install import SYSTEMCTL

ADDRESSES = {'server': '10.9.0.1', 'laptop': '10.9.0.2', 'stranger': '10.9.0.3'}
CURL = '''#!/bin/sh
for url; do :; done
name=${url##*/}
case "$*" in *-*O*) exec >"$name" ;; esac
cat "/srv/$name"
'''
ENVIRONMENT = ['env', '-i', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
               'HOME=/root', 'LC_ALL=C.UTF-8', 'DEBIAN_FRONTEND=noninteractive', 'TERM=dumb']


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


class Host:
    """One of the two, in a tree of its own."""

    def __init__(self, name, namespace, tree, fresh):
        self.name, self.namespace, self.tree, self.jobs = name, namespace, tree, []
        os.mkdir(tree)
        subprocess.check_call(['tar', '-xf', fresh, '-C', tree, '--exclude=./dev/*'])
        os.mkdir(tree + '/shop')
        for source in (network.KNOCKD, network.KNOCK):
            shutil.copy(source, tree + '/srv/')
        self.write('/etc/resolv.conf', read('/etc/resolv.conf'))
        self.write('/usr/sbin/policy-rc.d', '#!/bin/sh\nexit 101\n', 0o755)
        self.write('/usr/local/bin/curl', CURL, 0o755)
        self.write('/usr/local/bin/sudo', '#!/bin/sh\nexec "$@"\n', 0o755)
        self.write('/usr/local/bin/systemctl', SYSTEMCTL, 0o755)
        self.write('/usr/local/bin/journalctl', '#!/bin/sh\ntail -n 5 /run/log\n', 0o755)
        for kind, place in (('--rbind', 'dev'), ('--rbind', 'proc')):
            namespace.must('mount', kind, '/' + place, tree + '/' + place)
        namespace.must('mount', '-t', 'tmpfs', 'tmpfs', tree + '/run')
        namespace.must('mkdir', '-p', tree + '/run/systemd/system', tree + '/run/sshd')

    def write(self, path, text, mode=0o644):
        with open(self.tree + path, 'w') as out:
            out.write(text)
        os.chmod(self.tree + path, mode)

    def argv(self, command):
        argv = ENVIRONMENT + ['chroot', self.tree, 'sh', '-c', 'cd /root; ' + command]
        if 'apt-get' not in command:
            return self.namespace.command(*argv)
        # Packages are reached from this machine's own network alone.
        mounts = ''.join('mount --rbind /%s %s/%s; ' % (place, self.tree, place)
                         for place in ('dev', 'proc'))
        return ['unshare', '-m', 'sh', '-c', mounts + 'exec "$@"', 'sh'] + argv

    def types(self, command, stdin=''):
        done = subprocess.Popen(self.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return done.communicate(stdin.encode(), 100)[0].decode()
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, 9)
            return done.communicate()[0].decode() + '[does not end]\n'

    def begins(self, command, said):
        """A command that goes on; what it says goes to a file of the tree."""
        with open(self.tree + said, 'wb') as out:
            self.jobs.append(subprocess.Popen(
                self.argv('exec ' + command), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT))
        time.sleep(3)
        return read(self.tree + said)


def plain(text):
    """What differs from time to time, or would be a secret."""
    text = re.sub(r'(knock://[^:\s]+:.{4})[A-Z2-7]{46,48}', r'\1...', text)
    text = re.sub(r'(secret=.{4})[A-Z2-7]+', r'\1...', text)
    return '\n'.join(line.rstrip() for line in text.splitlines())


def few(command, text):
    """A package manager's many lines are of no use here."""
    lines = text.splitlines()
    return '\n'.join(lines[-2:]) if 'apt-get' in command and len(lines) > 8 else text


def visit(hosts, script):
    """Each line is `host# command`; `&` at its end: it goes on; `^C`: that ends. `<< TEXT` is
    typed into it, where LINE stands for the client's line. A line of words is a heading."""
    line = ''
    for entry in read(script).splitlines():
        match = re.match(r'(server|laptop|stranger)[#$] (.*)$', entry)
        if not match:
            print(entry)
            continue
        host, command = hosts[match.group(1)], match.group(2)
        command, _, typed = command.partition(' << ')
        typed = typed.replace('LINE', line).encode().decode('unicode_escape') if typed else ''
        if command == '^C':
            host.jobs[-1].terminate()
            host.jobs.pop().wait()
            said = '\n'.join(read(host.tree + '/shop/said').splitlines()[-1:])
        elif command.endswith(' &'):
            said = host.begins(command[:-2], '/shop/said')
        else:
            said = host.types(command.replace('LINE', line), typed)
        line = (re.findall(r'^knock://laptop:\S+', said, re.M) or [line])[-1]
        print(entry + '\n' + plain(few(command, said)))
        sys.stdout.flush()


class Stranger:
    """Has this machine's programs."""

    def __init__(self, namespace):
        self.namespace = namespace

    def types(self, command, stdin=''):
        text = ''.join(self.namespace.run('sh', '-c', command, stdin=stdin)[1:])
        return re.sub(r'(?m)^(Starting|Nmap done|Host is|MAC|\s*$).*\n?', '', text)


def make_account(server, laptop):
    """The visitor's own server: he has a key for it, and its sshd runs."""
    laptop.types('mkdir -m 700 .ssh; ssh-keygen -q -t ed25519 -N "" -f .ssh/id_ed25519')
    key = laptop.types('cat .ssh/id_ed25519.pub')
    server.types('useradd -m admin; mkdir -m 700 ~admin/.ssh; cat >~admin/.ssh/authorized_keys; '
                 'chown -R admin ~admin/.ssh; /usr/sbin/sshd -E /run/sshd.log', key)
    laptop.types('ssh-keyscan -t ed25519 %s >.ssh/known_hosts 2>/dev/null' % ADDRESSES['server'])


def main(fresh, script):
    # Not as a user's root, who could not start sshd.
    wire, folder = network.Wire('-nm'), tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    hosts = {'stranger': Stranger(wire.stranger)}
    try:
        for name, namespace in (('server', wire.server), ('laptop', wire.client)):
            hosts[name] = Host(name, namespace, '%s/%s' % (folder, name), fresh)
        make_account(hosts['server'], hosts['laptop'])
        visit(hosts, script)
    finally:
        end(hosts, folder)
        wire.close()
    return 0


def end(hosts, folder):
    """All that runs in the trees, and the trees, which are mounted only in the namespaces."""
    trees = [os.stat('%s/%s' % (folder, name)) for name in os.listdir(folder)]
    inodes = [(tree.st_dev, tree.st_ino) for tree in trees]
    for pid in [int(name) for name in os.listdir('/proc') if name.isdigit()]:
        try:
            root = os.stat('/proc/%d/root' % pid)
        except OSError:
            continue
        if (root.st_dev, root.st_ino) in inodes:
            os.kill(pid, 9)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
