"""A router as OpenWrt makes it, in a tree of its own: busybox, a Python without what python3-light
leaves out, /run and /var in memory, no unshare, no /etc/protocols. What is a program of OpenWrt's
own there (rc.common, procd, fw4, logread, sysupgrade) is played by scripts in tests/e2e/openwrt.

KNOCK_MUSL names a folder with a Python that tests/musl has built against musl; without it, the
tree has this system's, whose interpreter has some modules more built in."""

import contextlib
import os
import shutil
import signal
import subprocess

from network import KNOCKD, LIGHT, TOP, until

PLAYED = os.path.join(TOP, 'tests', 'e2e', 'openwrt')
BUSYBOX = '/bin/busybox'
# As OpenWrt configures it; not there, among others: timeout stat realpath base64 od nohup setsid
# pkill watch unshare.
APPLETS = '''[ ash awk basename cat chmod chown cmp cp cut date dd df dirname dmesg du echo egrep
    env expr false fgrep find free grep gunzip gzip halt head hexdump id ifconfig ip kill
    killall less ln logger ls lsmod md5sum mkdir mkfifo mknod mktemp mount mv nc netstat
    nslookup passwd pidof ping printf ps pwd readlink reboot rm rmdir route sed seq sh
    sha256sum sleep sort start-stop-daemon strings sync sysctl syslogd tail tar tee test
    time top touch tr true umount uname uniq uptime vi wc which xargs yes zcat'''.split()
FOLDERS = '''bin sbin lib usr/bin usr/sbin usr/lib etc/init.d etc/rc.d etc/config lib/functions
    lib/upgrade/keep.d dev proc tmp root'''.split()
DEVICES = ('null', 'zero', 'urandom')
PLACES = {'rc.common': 'etc/rc.common', 'procd': 'sbin/procd',
          'procd.sh': 'lib/functions/procd.sh', 'logread': 'sbin/logread', 'fw4': 'sbin/fw4',
          'sysupgrade': 'sbin/sysupgrade', 'firewall': 'etc/init.d/firewall'}
ENVIRONMENT = ['env', '-i', 'PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/root']


def absent_modules():
    """What python3-light has not, as tests/light has it."""
    names = {}
    with open(os.path.join(LIGHT, 'sitecustomize.py')) as file:
        text = file.read()
    exec(text[text.index('ABSENT'):text.index('class Absent')], names)
    return names['ABSENT']


def copy_program(tree, program, place):
    """A program and the libraries that it needs, where its loader looks for them."""
    said = subprocess.Popen(['ldd', program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    words = said.communicate()[0].decode().split()
    shutil.copy(program, tree + place)
    for path in sorted({word for word in words if word[0] == '/'}):
        os.makedirs(os.path.dirname(tree + path), exist_ok=True)
        if not os.path.exists(tree + path):
            shutil.copy(path, tree + path)


def copy_python(tree):
    """As /usr/bin/python3; its library as python3-light has it."""
    musl = os.environ.get('KNOCK_MUSL')
    if musl:
        subprocess.check_call(['cp', '-a', musl + '/.', tree])
        return
    library = subprocess.check_output(
        ['/usr/bin/python3', '-ISc', 'import os; print(os.__file__)']).decode().strip()
    library = os.path.dirname(library)
    absent = absent_modules()

    def left_out(_, names):
        return [name for name in names if name.partition('.')[0] in absent or
                name in ('dist-packages', 'site-packages') or name.startswith('config-')]
    copy_program(tree, '/usr/bin/python3', '/usr/bin/python3')
    shutil.copytree(library, tree + library, ignore=left_out)


def make_tree(tree):
    """The router as it is delivered, but for Python, which its owner has installed."""
    for folder in FOLDERS:
        os.makedirs(os.path.join(tree, folder))
    shutil.copy(BUSYBOX, tree + BUSYBOX)
    for applet in APPLETS:
        os.symlink(BUSYBOX, os.path.join(tree, 'usr/bin' if applet == 'env' else 'bin', applet))
    for name, place in PLACES.items():
        shutil.copy(os.path.join(PLAYED, name), os.path.join(tree, place))
        os.chmod(os.path.join(tree, place), 0o755)
    for device in DEVICES:
        open(os.path.join(tree, 'dev', device), 'w').close()
    os.symlink('tmp', os.path.join(tree, 'var'))        # so /var/run is /tmp/run
    with open(tree + '/etc/passwd', 'w') as out:
        out.write('root:x:0:0:root:/root:/bin/ash\n')
    shutil.copy(os.path.join(TOP, 'tests', 'e2e', 'layouts', 'fw4.nft'), tree + '/etc/fw4.nft')
    copy_program(tree, shutil.which('nft', path='/usr/sbin:/sbin'), '/usr/sbin/nft')
    copy_python(tree)


class Router:
    """One router in a network namespace: an overlay over the tree that all of them share."""

    def __init__(self, namespace, delivered, folder):
        self.namespace, self.folder, self.tree = namespace, folder, folder + '/tree'
        namespace.must('mount', '-t', 'tmpfs', 'tmpfs', folder)
        namespace.must('mkdir', self.tree, folder + '/up', folder + '/work')
        namespace.must('mount', '-t', 'overlay', 'overlay', '-o',
                       'lowerdir=%s,upperdir=%s,workdir=%s'
                       % (delivered, folder + '/up', folder + '/work'), self.tree)
        namespace.must('mount', '--rbind', '/proc', self.tree + '/proc')
        for device in DEVICES:
            namespace.must('mount', '--bind', '/dev/' + device, self.tree + '/dev/' + device)
        namespace.must('cp', KNOCKD, self.tree + '/root/knockd.py')

    def boot(self, run=True):
        """What is in memory is empty; 22.03 and older have no /run."""
        self.namespace.must('mount', '-t', 'tmpfs', 'tmpfs', self.tree + '/tmp')
        self.must('mkdir', '/tmp/run', '/tmp/lock')
        if run:
            self.must('ln', '-sf', 'var/run', '/run')
        self.must('syslogd', '-O', '/tmp/log')
        self.must('sh', '-c', 'for script in /etc/rc.d/S*; do $script boot; done')

    def inside(self):
        """The process ids of all that runs in the tree."""
        tree = os.stat('/proc/%d/root%s' % (self.namespace.pid, self.tree))
        for pid in [int(name) for name in os.listdir('/proc') if name.isdigit()]:
            with contextlib.suppress(OSError):
                root = os.stat('/proc/%d/root' % pid)
                if (root.st_dev, root.st_ino) == (tree.st_dev, tree.st_ino):
                    yield pid

    def halt(self):
        """The power fails: all that runs in the tree ends, and its rules go."""
        def ended():
            living = list(self.inside())
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not living
        assert until(ended)
        # What has just been killed may hold it for a moment more.
        assert until(lambda: not self.namespace.run('umount', self.tree + '/tmp').code)
        self.namespace.nft('flush ruleset')

    def close(self):
        self.halt()
        self.namespace.must('umount', '-R', self.tree)
        self.namespace.must('umount', self.folder)

    def command(self, *argv):
        return ENVIRONMENT + ['chroot', self.tree] + list(argv)

    def run(self, *argv, **options):
        return self.namespace.run(*self.command(*argv), **options)

    def must(self, *argv, **options):
        return self.namespace.must(*self.command(*argv), **options)

    def knockd(self, *arguments):
        """Runs the script that is installed."""
        return self.run('knockd.py', *arguments)

    def files(self):
        """Every path of the router, but what is in memory; OpenWrt's Python writes no byte code."""
        return set(self.must('find', '/', '-xdev', '!', '-path', '/dev/*', '!', '-path',
                             '*/__pycache__*').split())
