"""Disk images of the guests: built from Debian's packages once, then kept.

    python3 tests/vm/images.py [KIND ...]       builds those that are not there yet

An image is a root file system and the kernel that goes with it, under $KNOCK_VM (by
default ~/.cache/knock-vm). Its name carries a hash of all that it is made of. There is no
initrd: NVMe and ext4 are built into Debian's cloud kernel, and an emulated processor
takes seconds to unpack one.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
FIREWALL = 'nftables'

# reload: the box's own ways to load its firewall anew; the first of them after somebody has
# flushed all, the second as every day. shut, let: how its owner tells it to
# let nobody in to ssh, and to do so again.
Kind = namedtuple('Kind', 'name suite init packages prepare reload shut let')
Kind.__new__.__defaults__ = ((), ())
Image = namedtuple('Image', 'kind disk kernel')

NFT_RELOAD = ['nft -f /etc/nftables.conf']
SYSTEMD_RELOAD = ['systemctl restart nftables']
# A policy that drops, a zone that rejects, and a web server that somebody published.
UFW = ['ufw allow 22/tcp', 'ufw --force enable']
# The kernel sends one rejection a second, for whichever port; the stranger would compare
# chance. The agent answers before firewalld does.
FIREWALLD = [
    'printf "%s=0\\n" net.ipv4.icmp_ratelimit net.ipv6.icmp.ratelimit >/etc/sysctl.d/all.conf',
    'echo net.ipv4.icmp_msgs_per_sec=100000 >>/etc/sysctl.d/all.conf',
    'sysctl -q -p /etc/sysctl.d/all.conf',
    'until firewall-cmd --state; do sleep 1; done']
DOCKER = [
    'mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin/',
    'tar -C /tmp/image -c . | docker import - web',
    # The first process of a container is deaf to what ends others, and a shutdown waits.
    'docker run -d --restart always -p 8080:80 web /bin/busybox sh -c '
    '"trap exit TERM; /bin/busybox httpd -f -p 80 & wait"']

KINDS = [Kind(*values) for values in (
    ('bookworm-systemd', 'bookworm', 'systemd', [FIREWALL], [], SYSTEMD_RELOAD),
    ('bullseye-systemd', 'bullseye', 'systemd', [FIREWALL, 'iptables', 'ipset'], [],
     SYSTEMD_RELOAD),
    ('trixie-systemd', 'trixie', 'systemd', [FIREWALL], [], SYSTEMD_RELOAD),
    ('bookworm-sysvinit', 'bookworm', 'sysvinit', [FIREWALL], [], NFT_RELOAD),
    ('bookworm-openrc', 'bookworm', 'openrc', [FIREWALL], [], NFT_RELOAD),
    ('bookworm-runit', 'bookworm', 'runit', [FIREWALL], [], NFT_RELOAD),
    ('bookworm-iptables', 'bookworm', 'systemd', ['iptables', 'ipset'], [], [
        'iptables-save | iptables-restore', 'ip6tables-save | ip6tables-restore']),
    ('bookworm-ufw', 'bookworm', 'systemd', [FIREWALL, 'ufw'], UFW,
     ['ufw reload', 'ufw reload'], ['ufw delete allow 22/tcp'], ['ufw allow 22/tcp']),
    ('bookworm-firewalld', 'bookworm', 'systemd', [FIREWALL, 'firewalld'], FIREWALLD, [
        'systemctl restart firewalld', 'firewall-cmd --reload'],
     ['firewall-cmd --remove-service=ssh'], ['firewall-cmd --add-service=ssh']),
    ('bookworm-docker', 'bookworm', 'systemd',
     [FIREWALL, 'docker.io', 'iptables', 'busybox-static'], DOCKER,
     ['systemctl restart docker', 'systemctl restart docker']),
)]
BY_NAME = {kind.name: kind for kind in KINDS}

PACKAGES = ['linux-image-cloud-amd64', 'python3', 'openssh-server', 'iproute2',
            'ifupdown', 'kmod', 'procps', 'udev', 'netbase']
INIT_PACKAGES = {
    'systemd': ['systemd', 'systemd-sysv'],
    'sysvinit': ['sysvinit-core', 'orphan-sysvinit-scripts', 'rsyslog'],
    'openrc': ['sysvinit-core', 'openrc', 'orphan-sysvinit-scripts', 'rsyslog'],
    'runit': ['runit', 'runit-init', 'rsyslog'],
}
AGENT = '/usr/local/lib/agent.py'
RUN_AGENT = '/usr/bin/python3 ' + AGENT
FILES = {
    '/etc/hostname': 'box\n',
    '/etc/hosts': '127.0.0.1 localhost\n127.0.1.1 box\n',
    '/etc/fstab': '/dev/nvme0n1 / ext4 defaults 0 0\n',
    # What a first boot would otherwise make, after which it could not be compared with a
    # later one.
    '/etc/machine-id': '0123456789abcdef0123456789abcdef\n',
    '/etc/network/interfaces':
        'auto lo\niface lo inet loopback\n'
        'auto eth0\n'
        'iface eth0 inet static\n  address 10.77.0.2/24\n  gateway 10.77.0.1\n'
        'iface eth0 inet6 static\n  address fd77::2/64\n'
        '  accept_ra 0\n  dad-attempts 0\n',
    '/etc/modprobe.d/few.conf':         # each costs an emulated processor up to a second
        ''.join('blacklist %s\n' % name for name in (
            'kvm', 'kvm_amd', 'kvm_intel', 'ata_piix', 'psmouse', 'pcspkr', 'i2c_piix4')),
    '/etc/ssh/sshd_config.d/box.conf': 'UseDNS no\nPermitRootLogin prohibit-password\n',
}
SLOW_UNITS = (
    'apt-daily.timer', 'apt-daily-upgrade.timer', 'e2scrub_all.timer', 'fstrim.timer',
    'dpkg-db-backup.timer', 'systemd-tmpfiles-clean.timer', 'e2scrub_reap.service',
    'getty-static.service', 'getty@tty1.service', 'systemd-binfmt.service',
    'systemd-timesyncd.service')
AGENT_UNIT = '''[Unit]
Description=Runs the tests' commands, from early on until power is off
DefaultDependencies=no
[Service]
ExecStart=%s
Restart=always
[Install]
WantedBy=sysinit.target
''' % RUN_AGENT


def has_nft(kind):
    """Is there an nft that knockd.py can use? Debian 11's is too old, so it takes iptables."""
    return FIREWALL in kind.packages and kind.suite != 'bullseye'


def init_files(init):
    """Returns {path: text} and {link: target} of what starts the agent, and of a quick
    boot."""
    if init == 'systemd':
        unit = '/etc/systemd/system/agent.service'
        links = {'/etc/systemd/system/sysinit.target.wants/agent.service': unit}
        links.update(('/etc/systemd/system/' + name, '/dev/null') for name in SLOW_UNITS)
        return {unit: AGENT_UNIT}, links
    if init == 'runit':
        links = {'/etc/runit/runsvdir/default/agent': '/etc/sv/agent'}
        return {'/etc/sv/agent/run': '#!/bin/sh\nexec %s\n' % RUN_AGENT}, links
    return {}, {}


def inittab_line(init):
    return '' if init in ('systemd', 'runit') else 'ag:2345:respawn:%s\n' % RUN_AGENT


def cache():
    folder = os.environ.get('KNOCK_VM')
    if not folder:
        home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        folder = os.path.join(home, 'knock-vm')
    os.makedirs(folder, exist_ok=True)
    return folder


def recipe(kind):
    """Returns all that an image is made of, less where its packages come from."""
    with open(os.path.join(HERE, 'agent.py')) as text:
        agent = text.read()
    files, links = init_files(kind.init)
    return {
        'suite': kind.suite,
        'packages': PACKAGES + INIT_PACKAGES[kind.init] + kind.packages,
        'files': dict(FILES, **files, **{AGENT: agent}),
        'links': links,
        'inittab': inittab_line(kind.init),
    }


def mirrors(suite):
    """Returns the sources.list lines for a suite, from the mirrors this machine uses
    itself."""
    def uri(label, otherwise):
        found = subprocess.run(
            ['apt-get', 'indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages',
             'Origin: Debian', 'Label: ' + label], stdout=subprocess.PIPE, text=True)
        return (found.stdout.split() or [otherwise])[0]
    main = uri('Debian', 'http://deb.debian.org/debian')
    security = uri('Debian-Security', 'http://deb.debian.org/debian-security')
    lines = ['deb %s %s main' % (main, suite)]
    # Sid has none; of bullseye, which is over, it lists packages that it no longer holds.
    if suite not in ('sid', 'bullseye'):
        lines.append('deb %s %s-security main' % (security, suite))
    return lines


def bootstrap(made_of, root):
    """Unpacks and configures the packages under `root`."""
    drop = ['/usr/share/man/*', '/usr/share/doc/*', '/usr/share/locale/*']
    subprocess.run(
        ['mmdebstrap', '--quiet', '--mode=root', '--variant=minbase',
         '--include=' + ','.join(made_of['packages']),
         '--aptopt=APT::Install-Recommends "false"',
         # Debian signs a suite that is over no more; its packages are what they were.
         '--aptopt=Acquire::Check-Valid-Until "false"',
         '--dpkgopt=force-unsafe-io']
        + ['--dpkgopt=path-exclude=' + path for path in drop]
        + [made_of['suite'], root] + mirrors(made_of['suite']),
        check=True, stdin=subprocess.DEVNULL, env=dict(os.environ, INITRD='No'))


def furnish(made_of, root):
    """Writes what makes a guest of a Debian: its files, links and passwords."""
    for path, text in made_of['files'].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, 'w') as out:
            out.write(text)
        os.chmod(root + path, 0o755 if text.startswith('#!') else 0o644)
    for path, target in made_of['links'].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + path)
        os.symlink(target, root + path)
    if made_of['inittab']:
        with open(root + '/etc/inittab', 'a') as out:
            out.write(made_of['inittab'])
    os.makedirs(root + '/var/log/journal', exist_ok=True)


def make(made_of, disk, kernel):
    with tempfile.TemporaryDirectory(prefix='building-', dir=cache()) as folder:
        root, new = os.path.join(folder, 'root'), os.path.join(folder, 'disk')
        bootstrap(made_of, root)
        furnish(made_of, root)
        shutil.copy(glob.glob(root + '/boot/vmlinuz-*')[0], kernel)
        subprocess.run(['mke2fs', '-q', '-t', 'ext4', '-d', root, new, '3G'], check=True)
        os.rename(new, disk)


def image(kind):
    """Returns the Image of a Kind, built now if it is not there."""
    made_of = recipe(kind)
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    stem = os.path.join(cache(), kind.name)
    found = Image(kind, '%s-%s.ext4' % (stem, digest), '%s-%s.vmlinuz' % (stem, digest))
    with open(stem + '.lock', 'w') as lock:
        # Two sessions must not build it side by side.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(found.disk):
            for old in glob.glob(stem + '-*.ext4') + glob.glob(stem + '-*.vmlinuz'):
                if len(os.path.basename(old).split('-')) == len(kind.name.split('-')) + 1:
                    os.unlink(old)
            make(made_of, found.disk, found.kernel)
    return found


def main(names):
    for name in names or BY_NAME:
        print(image(BY_NAME[name]).disk, flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
