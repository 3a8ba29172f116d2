"""The commands of the README, as a reader types them, with a mistake in each of the first ones.

What would come from elsewhere is played: `curl` reads a folder, `sudo` is nothing, `ssh` and
`scp` reach the server's namespace, and https://example.org is a release made by tests/release.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from network import KNOCK, KNOCKD, TOP, environment, until
from test_install import box, furnished                 # noqa: F401  box: a fixture

pytestmark = pytest.mark.kernel
with open(os.path.join(TOP, 'README.md'), encoding='utf-8') as file:
    README = file.read()
BIN = '/usr/local/bin/'                                 # where the README puts knock.py
LINE = r'^knock://.*$'
CURL = '''#!/bin/sh
# -o FILE, -O, or to standard output
out=/dev/stdout
while [ $# -gt 1 ]; do
    case $1 in -o) out=$2; shift ;; -*O) out=${2##*/} ;; esac
    shift
done
cat "$SHOP/${1##*/}" >"$out"
'''


def section(title):
    return re.search(r'^## %s\n(.*?)(?=^## |\Z)' % re.escape(title), README, re.M | re.S).group(1)


def blocks(title):
    return re.findall(r'^```\w*\n(.*?)^```', section(title), re.M | re.S)


def spans(text):
    """What stands between backquotes, a table's \\| as it is meant."""
    return [span.replace('\\|', '|') for span in re.findall(r'`([^`\n]+)`', text)]


SERVER, SHOWN, CLIENT, CHECKS = blocks('First try')
TYPED = re.findall(r'^\$ (.*)$', CLIENT, re.M)
RUN = SERVER.splitlines()[-1]


def program(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    """A release, made from a checkout of its own; the maintainer's key beside it."""
    top = tmp_path_factory.mktemp('shop')
    checkout, folder = top / 'checkout', top / 'release'
    (checkout / 'tests').mkdir(parents=True)
    for name in ('knockd.py', 'knock.py', 'tests/release'):
        shutil.copy(os.path.join(TOP, name), str(checkout / name))
    git = 'git -C %s -c user.name=me -c user.email=me@example.org ' % checkout
    for command in (git + 'init -q', git + 'add .', git + 'commit -qm all',
                    'ssh-keygen -q -t ed25519 -N "" -f %s/key' % top,
                    'sh %s/tests/release %s/key %s' % (checkout, top, folder)):
        subprocess.check_call(['sh', '-c', command])
    return folder


class Reader:
    """Somebody who types what the README says, on the server or on the client."""

    def __init__(self, wire, shop, home):
        self.wire, self.home, self.bin = wire, home, home / 'bin'
        self.bin.mkdir()
        program(self.bin, 'curl', CURL)
        program(self.bin, 'sudo', '#!/bin/sh\nexec "$@"\n')
        for name in ('apt-get', 'opkg', 'firefox'):
            program(self.bin, name, '#!/bin/sh\nexit 0\n')
        shutil.copy(KNOCKD, str(self.bin / 'knockd.py'))
        (self.bin / 'knockd.py').chmod(0o755)
        values = environment()
        self.environment = dict(
            values, HOME=str(home), SHOP=str(shop), PATH='%s:%s' % (self.bin, values['PATH']),
            KNOCKD_CONFIG=str(home / 'etc' / 'knockd.ini'))

    def types(self, place, command, stdin=''):
        """Runs it in that namespace, in the reader's folder."""
        command = command.replace(BIN, '%s/' % self.bin)
        return place.run('sh', '-c', 'cd %s && %s' % (self.home, command), stdin=stdin,
                         env=self.environment)

    def on_server(self, command, stdin=''):
        return self.types(self.wire.server, command, stdin)

    def on_client(self, command, stdin=''):
        return self.types(self.wire.client, command, stdin)

    def saves(self, line, name='laptop'):
        """The line with the server's address in the wire, kept on the client."""
        line = re.sub('@[^?]+', '@' + self.wire.server.addresses[0], line)
        done = self.on_client('knock.py save ' + name, line + '\n')
        assert done.code == 0, done.err


@pytest.fixture
def reader(wire, services, shop, tmp_path):
    wire.clear()
    with wire.server.listen(22):
        yield Reader(wire, shop, tmp_path)
    wire.clear()


@pytest.fixture
def gate(wire, reader, tmp_path):
    """The daemon as the README starts it, its config elsewhere; yields what it said so far."""
    log = str(tmp_path / 'log')
    with open(log, 'wb') as out:
        process = subprocess.Popen(
            wire.server.command('sh', '-ec', 'cd %s\n%s' % (
                tmp_path, SERVER.replace(RUN, 'exec ' + RUN))),
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=reader.environment)

    def said():
        with open(log) as lines:
            return lines.read()
    assert until(lambda: 'ready: ' in said() or process.poll() is not None), said()
    yield said
    process.kill()
    process.wait()


@pytest.fixture
def friend(reader, gate):
    """A reader whose client has knock.py and the line."""
    assert reader.on_client(TYPED[0]).code == 0
    reader.saves(re.search(LINE, gate(), re.M).group())
    return reader


def test_the_first_try_does_what_it_says(wire, gate, reader):
    said = [line for line in gate().splitlines() if line.startswith(('knock://', 'ready:'))]
    own = r'(?<=laptop:)[A-Z2-7]{52}@[^?]+|(?<=id=)[0-9a-f]{16}|(?<=decoy )\d+'   # of each box
    assert [re.sub(own, '', line) for line in said] == \
        [re.sub(own, '', line) for line in SHOWN.splitlines()]
    address = wire.server.addresses[0]
    assert not wire.client.connects(address, 22)
    fetch, save, knock, _ = TYPED
    assert reader.on_client(fetch).code == 0
    done = reader.on_client(save, re.sub('@[^?]+', '@' + address, said[0]) + '\n')
    assert done.code == 0, done.err
    done = reader.on_client(knock + ' -v')
    assert done.code == 0 and re.search(r'^knock: open in \d+ ms$', done.err, re.M), done.err
    assert wire.client.connects(address, 22)
    assert not wire.stranger.connects(address, 22)


def test_a_mistake_in_each_is_one_line_that_says_what_to_do(wire, gate, friend):
    save, knock = TYPED[1:3]
    for command, stdin, says in (
            (save, 'knock://laptop@gate\n', 'the line is cut'),
            (save, 'laptop at gate\n', 'this is not a knock:// line; it looks like'),
            (knock + 'x', '', 'knock.py save laptopx'),
            (knock.replace('laptop', 'knock://laptop:AAAA@10.9.0.1?id=x'), '', '52 characters')):
        done = friend.on_client(command, stdin)
        assert done.code == 2 and says in done.err and done.err.count('\n') == 1, done.err
    for wrong in (RUN.replace('tcp/22', 'tcp/ssh'), RUN.replace('laptop', "'lap top'")):
        friend.environment['KNOCKD_CONFIG'] = str(friend.home / 'new' / 'knockd.ini')
        done = friend.on_server(wrong)
        assert done.code == 2 and 'Traceback' not in done.err and done.err, done.err


def test_a_release_is_checked_as_it_says(shop, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(str(shop), str(folder))
    with open(str(shop.parent / 'key.pub')) as key:
        (folder / 'signers').write_text('knockd ' + key.read())

    def check():
        return [subprocess.call(
            ['sh', '-c', line], cwd=str(folder), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL) for line in CHECKS.splitlines()]
    assert check() == [0, 0]
    sums = (folder / 'SHA256SUMS').read_text().splitlines()
    for name in ('knockd.py', 'knock.py'):
        said = subprocess.check_output([sys.executable, name, '--version'], cwd=str(folder))
        digest, path = said.decode().splitlines()[1].split()
        assert '%s  %s' % (digest, os.path.basename(path)) in sums
    with open(str(folder / 'knock.py'), 'a') as file:
        file.write('# something more\n')
    assert check()[0] != 0
    with open(str(folder / 'SHA256SUMS'), 'a') as file:
        file.write('# something more\n')
    assert check()[1] != 0


def test_a_release_of_one_commit_is_the_same_wherever_it_is_made(shop, tmp_path):
    top, here = shop.parent, tmp_path
    for command in ('git clone -q %s/checkout %s/clone' % (top, here),
                    'sh %s/clone/tests/release %s/key %s/again' % (here, top, here)):
        subprocess.check_call(['sh', '-c', command])
    names = sorted(os.listdir(str(shop)))
    assert names == ['SHA256SUMS', 'SHA256SUMS.sig', 'knock.py', 'knockd.py']
    for name in names:
        assert (shop / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()


def test_without_the_key_no_release_is_begun(shop, tmp_path):
    release = shop.parent / 'checkout' / 'tests' / 'release'
    made = subprocess.call(['sh', str(release), str(tmp_path / 'key'), str(tmp_path / 'made')],
                           stderr=subprocess.DEVNULL)
    assert made == 1 and not (tmp_path / 'made').exists()


def test_daily_life(wire, gate, friend):
    config = friend.home / 'ssh_config'
    config.write_text(blocks('Daily life')[0])
    told = friend.on_client('ssh -F %s -G box' % config).out
    assert 'proxycommand knock.py --fdpass --proxy %p laptop\n' in told
    assert 'proxyusefdpass yes\n' in told
    typed = [span for span in spans(section('Daily life')) if span.startswith('knock')]
    done = 0
    for span in typed:
        if span.endswith('COMMAND'):
            span = span.replace('COMMAND', 'echo ran')
        if span.startswith('knock.py ') and ' laptop' in span:
            result = friend.on_client(span)
        elif span in ('knockd.py status', 'knockd.py paper laptop -n 10'):
            result = friend.on_server(span)
        else:
            continue                            # test_ssh_key.py signs
        assert result.code == 0, (span, result)
        done += 1
    assert done == 6, typed


def test_change_it_switch_it_off(gate, friend):
    """Each row, in their order; the last ones belong to an installation."""
    done = []
    for row in re.findall(r'^\| .* \| (.*) \|$', section('Change it, switch it off'), re.M):
        for span in spans(row):
            if span.startswith('knockd.py ') and span != 'knockd.py uninstall':
                result = friend.on_server(span)
                assert result.code == 0, (span, result)
                done.append(span.split()[1])
    assert done == ['hide', 'unhide', 'rekey', 'add', 'remove', 'set', 'set', 'set', 'unhide']
    assert until(lambda: 'hiding nothing' in gate())


def test_a_phone(gate, friend):
    page, code = section('A phone').split('**An authenticator app')
    line = friend.on_server('knockd.py add phone --page')
    save, make = blocks('A phone')[0].splitlines()
    assert spans(page)[0] == 'knockd.py add phone --page' and save == 'knock.py save phone'
    friend.saves(re.search(LINE, line.out, re.M).group(), 'phone')
    assert friend.on_client(make).code == 0
    assert 'ssh://admin@server.example' in (friend.home / 'knock.html').read_text()
    for span in spans(page)[::-1]:
        if span.startswith('knockd.py remove'):
            assert friend.on_server(span).code == 0
    typed = [span for span in spans(code) if span.startswith('knockd.py')]
    assert len(typed) == 2
    told = [friend.on_server(span) for span in typed]
    assert [result.code for result in told] == [0, 0] and 'otpauth://' in told[1].out


def test_it_does_not_open(gate, friend):
    told = friend.on_server('knockd.py status')
    assert told.code == 0 and told.out.startswith('hidden: tcp/22;')
    for command in ('selftest', 'check', 'rules', 'list'):
        assert 'knockd.py ' + command in README or '`%s' % command in README
        result = friend.on_server('knockd.py ' + command)
        assert result.code == 0, result


@contextlib.contextmanager
def reaching(reader, wire, **servers):
    """ssh, scp and knock.py as on a machine from which the servers are reached by their names;
    where none are told, any name is the server's."""
    client = ' '.join(map(shlex.quote, wire.client.command()))
    for name in ('scp', 'ssh', 'knock.py'):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(reader.bin / name))
    places = ''.join('*@%s) place="%s" ;;\n' % (name, ' '.join(place.command()))
                     for name, place in (servers or {'*': wire.server}).items())
    program(reader.bin, 'ssh', '#!/bin/sh\ncase $1 in\n%sesac\nshift\n'
            'exec $place sh -c "$*"\n' % places)
    program(reader.bin, 'scp', '#!/bin/sh\n[ $1 = -O ] && shift\ncase ${2%%%%:*} in\n%sesac\n'
            'exec $place sh -c "cat >${2#*:}knockd.py" <"$1"\n' % places)
    program(reader.bin, 'knock.py', '#!/bin/sh\nexec %s python3 %s "$@"\n' % (client, KNOCK))
    environ = {name: value for name, value in reader.environment.items()
               if name != 'KNOCKD_CONFIG'}

    def types(text, stdin=''):
        process = subprocess.Popen(
            ['sh', '-ec', text], cwd=TOP, env=environ, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = process.communicate(stdin.encode())[0].decode()
        assert process.returncode == 0, said
        return said
    yield types


@pytest.fixture
def boxes(wire, reader, tmp_path_factory):
    """web1, web2 and web3, each with a systemd and something at port 22; the client knows them
    by these names."""
    names = ('web1', 'web2', 'web3')
    made, hosts = {}, reader.home / 'hosts'
    with contextlib.ExitStack() as running:
        for number, name in enumerate(names, 4):
            made[name] = member = wire.join(name, number, '-nm')
            running.callback(member.close)
            running.callback(wire.members.remove, member)
            for folder in ('/run', '/var/lib'):
                member.must('mount', '-t', 'tmpfs', 'tmpfs', folder)
            running.enter_context(furnished(member, str(tmp_path_factory.mktemp(name))))
            running.enter_context(member.listen(22))
        hosts.write_text(''.join('%s %s\n' % (member.addresses[0], name)
                                 for name, member in made.items()))
        wire.client.must('mount', '--bind', str(hosts), '/etc/hosts')
        running.callback(wire.client.must, 'umount', '/etc/hosts')
        yield made


def test_three_servers_by_the_loop_and_one_once_more(wire, boxes, reader):
    loop = blocks('I have many servers')[0]
    with reaching(reader, wire, **boxes) as types:
        types(loop)
        for name, member in boxes.items():
            assert wire.client.connects(member.addresses[0], 22), name
            assert not wire.stranger.connects(member.addresses[0], 22), name
            assert 'id = %s\n' % name in member.must('cat', '/etc/knockd/knockd.ini')
            assert member.must('stat', '-c', '%a', '/etc/knockd/knockd.ini') == '600\n'
        again = types(loop.partition('\n')[2].replace('web1 web2 web3', 'web2'))
        assert again.count('unchanged') == 1, 'each step may be repeated'
        with pytest.raises(AssertionError, match='fleet is there already'):
            types(loop.partition('\n')[0])     # a new line would open none of them


def test_on_a_server_that_runs_three_commands_lead_to_the_first_knock(wire, boxes, reader):
    """Those with knock.py; the others are what installs a server."""
    save, start, *steps, end = blocks('I have many servers')[0].replace(
        '&&\n', '&& ').replace('] ||\n', '] || ').splitlines()
    assert start.startswith('for host in web1 ') and end == 'done'
    ours = [save] + [step for step in steps if 'knock.py ' in step]
    assert len(ours) == 3
    address = boxes['web1'].addresses[0]
    with reaching(reader, wire, **boxes) as types:
        for step in steps:
            if step not in ours:
                types('host=web1\n' + step)
        assert not wire.client.connects(address, 22)
        for command in ours:
            types('host=web1\n' + command)
        assert wire.client.connects(address, 22) and not wire.stranger.connects(address, 22)


def test_the_other_ways_to_provision_type_what_the_loop_types(wire, box, reader):   # noqa: F811
    """`sh tests/run -e provision` plays them with Ansible and cloud-init themselves."""
    loop, ansible, cloud = blocks('I have many servers')
    for task in re.findall(r'command: (.*)', ansible):
        assert task in loop
    address = wire.server.addresses[0]
    with reaching(reader, wire) as types:
        types(loop.partition('\n')[0])
        secret = types('knock.py derive fleet web1 --secret').strip()
    name, content = re.search(r'path: (\S+),.*content: "(.*)"}', cloud).groups()
    box.must('sh', '-c', 'mkdir -p /etc/knockd; umask 077; printf "$0" >' + name, content)
    box.must('cp', KNOCKD, '/usr/local/sbin/knockd.py')
    for command in re.findall(r'^  - ((?:echo|python3) .*)$', cloud, re.M):
        box.must('sh', '-c', command.replace('SECRET', secret))
    knocked = wire.client.run('python3', KNOCK, 'fleet@%s/web1' % address, env=reader.environment)
    assert knocked.code == 0, knocked.err
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')


def test_a_router(wire, box, reader):                   # noqa: F811
    """`/tmp` is a folder of the test, for the server's namespace shares this machine's."""
    folder = '%s/' % reader.home
    copy, get_python, install = [line.replace('/tmp/', folder)
                                 for line in blocks('I run a router')[0].splitlines()]
    keep = blocks('Keep it')[0].strip()
    assert install.startswith(keep.replace('knockd.py', folder + 'knockd.py'))
    with reaching(reader, wire) as types:
        types(copy)
        types(get_python)
    assert 'on probation' in box.must('sh', '-c', install)
    assert 'trust = br-lan' in box.must('cat', '/etc/knockd/knockd.ini')
    again = 'python3 knockd.py install'
    assert '`%s`' % again in section('Change it, switch it off')
    assert 'knock://' not in box.must('sh', '-c', 'cd %s && %s' % (folder, again))
    box.must('/usr/local/sbin/knockd.py', 'uninstall', '--yes')
    assert box.run('ls', '/etc/knockd').code != 0
