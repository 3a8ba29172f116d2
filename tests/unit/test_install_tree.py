"""install: what it would do on each init system, as a tree and as golden files."""
import atexit
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading

import pytest

import knockd as script
from answered import answered

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KNOCKD = os.path.join(TOP, 'knockd.py')
GOLDEN = os.path.join(TOP, 'tests', 'unit', 'golden')
FIRST = ('--hide', 'tcp/22', '--client', 'laptop', '--host', 'gate.example')
EVIDENCE = {'systemd': ['run/systemd/system'], 'procd': ['sbin/procd', 'etc/inittab'],
            'openrc': ['run/openrc', 'etc/inittab'],
            'openrc-debian': ['run/openrc', 'etc/inittab', 'usr/sbin/update-rc.d',
                              'etc/runlevels/sysinit/networking'],
            'runit': ['etc/service', 'usr/bin/runsvdir', 'etc/inittab', 'usr/sbin/update-rc.d'],
            'void': ['var/service', 'usr/bin/runsvdir'],
            # Debian's openssh-server makes /etc/service, runit or not
            'sysv': ['etc/inittab', 'usr/sbin/update-rc.d', 'etc/service']}
SERVICE = {'systemd': ['etc/systemd/system/knockd.service'], 'procd': ['etc/init.d/knockd'],
           'openrc': ['etc/init.d/knockd'], 'sysv': ['etc/init.d/knockd'],
           'runit': ['etc/sv/knockd/run', 'etc/sv/knockd/log/run']}
# What hides before any service starts, for runit starts them all side by side.
SERVICE['void'] = SERVICE['runit'] + ['etc/runit/core-services/10-knockd.sh']
SERVICE['runit'] = SERVICE['runit'] + ['etc/init.d/knockd-guard']
SERVICE['openrc-debian'] = SERVICE['openrc']
# Others' firewalls flush all as they load in Debian's boot.
for debian in ('runit', 'openrc-debian', 'sysv'):
    SERVICE[debian] = SERVICE[debian] + ['etc/init.d/knockd-again']
START = {'systemd': 'systemctl restart knockd', 'procd': '/etc/init.d/knockd restart',
         'openrc': 'rc-service knockd restart', 'sysv': '/etc/init.d/knockd restart',
         'runit': 'sv restart /etc/sv/knockd || true'}
START['void'] = START['runit']
START['openrc-debian'] = START['openrc']
SCRIPT = dict.fromkeys(EVIDENCE, '/usr/local/sbin/knockd.py')
SCRIPT['procd'] = '/usr/sbin/knockd.py'         # /usr/local/sbin is not in OpenWrt's PATH
STATE = dict.fromkeys(EVIDENCE, 'var/lib')      # where the ledger is kept
STATE['procd'] = 'etc'                          # OpenWrt's /var is in memory
ENDS = {    # in this order, before the files go
    'systemd': ['systemctl disable --now knockd'],
    'procd': ['/etc/init.d/knockd stop', '/etc/init.d/knockd disable'],
    'openrc': ['rc-service knockd stop', 'rc-update -a delete knockd'],
    'runit': ['rm /etc/service/knockd', 'sv shutdown /etc/sv/knockd',
              'rm -rf /etc/sv/knockd /var/log/knockd'],
    'void': ['rm /var/service/knockd', 'sv shutdown /etc/sv/knockd',
             'rm -rf /etc/sv/knockd /var/log/knockd'],
    'sysv': ['/etc/init.d/knockd stop']}
ENDS['openrc-debian'] = ENDS['openrc']
FORGETS = {     # once the files are gone
    'systemd': ['systemctl daemon-reload'],
    'sysv': ['update-rc.d -f knockd remove', 'update-rc.d -f knockd-again remove'],
    'runit': ['update-rc.d -f knockd-guard remove', 'update-rc.d -f knockd-again remove'],
    'openrc-debian': ['rm -f /run/openrc/started/knockd-again',
                      'rmdir /etc/rc.conf.d 2>/dev/null || true',
                      'update-rc.d -f knockd-again remove']}


def knockd(*arguments):
    """What a command says: (exit code, standard output, standard error)."""
    return answered(script, *arguments)


def piped(path, stdin, *arguments, **options):
    """The same of a script that is read from a descriptor."""
    process = subprocess.Popen((sys.executable, path) + arguments, stdin=stdin,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd='/', **options)
    out, err = process.communicate()
    return process.returncode, out.decode(), err.decode()


def tree_of(folder, system):
    """An empty box with that init system."""
    for path in EVIDENCE[system]:
        os.makedirs(os.path.join(str(folder), path))
    return str(folder)


@functools.lru_cache()
def first_installation(system):
    """A box that it was installed on, for all tests that go on from there."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    tree = tree_of(folder, system)
    code, _, err = knockd('install', '--root', tree, *FIRST)
    assert (code, err) == (0, '')
    return tree


def installed(folder, system):
    """A copy of it."""
    return shutil.copytree(first_installation(system), str(folder / 'installed'), symlinks=True)


def plain(text):
    """What chance and this box made is replaced by a word."""
    for pattern, word in (('[A-Z2-7]{52}', 'SECRET'), (r'\b[0-9a-f]{16}\b', 'ID'),
                          (r'\d+ ms after the boot', 'UPTIME'),
                          (r'/[\w./-]*/python3[\w.]*', 'PYTHON')):
        text = re.sub(pattern, word, text)
    return text


def files_of(tree):
    """What was installed, each file with its mode; the script, which is long, only by its mode."""
    found = {}
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with open(path) as file:
                found[path[len(tree):]] = oct(os.stat(path).st_mode & 0o777), plain(file.read())
    script, = [path for path in found if path.endswith('sbin/knockd.py')]
    assert found.pop(script)[0] == '0o755'
    return ''.join('--- %s %s\n%s' % (path, mode, text) for path, (mode, text) in found.items())


@pytest.mark.parametrize('system', sorted(EVIDENCE))
def test_a_tree_is_as_its_golden_file_says(system, tmp_path):
    tree = tree_of(tmp_path, system)
    code, out, err = knockd('install', '--root', tree, *FIRST)
    assert (code, err) == (0, '')
    assert re.match('knock://laptop:[A-Z2-7]{52}@gate.example[?]id=', out)
    golden = os.path.join(GOLDEN, system)
    if os.environ.get('WRITE_GOLDEN'):
        with open(golden, 'w') as file:
            file.write(files_of(tree))
    with open(golden) as file:
        assert files_of(tree) == file.read()
    with open(tree + SCRIPT[system]) as copy, open(KNOCKD) as script:
        assert copy.read() == script.read()


@pytest.mark.parametrize('system', sorted(EVIDENCE))
def test_a_second_installation_keeps_config_and_ledger(system, tmp_path):
    tree = installed(tmp_path, system)
    with open(tree + '/etc/knockd/knockd.ini') as file:
        before = file.read()
    code, out, err = knockd('install', '--root', tree, *FIRST)
    assert (code, err) == (0, '') and 'knock://' not in out
    with open(tree + '/etc/knockd/knockd.ini') as file:
        assert file.read() == before


@pytest.mark.parametrize('told,advice', [
    (('--hide', 'tcp/80'), 'knockd.py hide SERVICES'),
    (('--host', 'other.example'), 'knockd.py set server host=HOST'),
    (('--trust', 'br-lan'), 'knockd.py set server trust=INTERFACES'),
    (('--client', 'other'), 'knockd.py add NAME')], ids=lambda told: told[0])
def test_an_option_that_would_have_no_effect_is_an_error_that_says_what_to_type(
        told, advice, tmp_path):
    tree = installed(tmp_path, 'systemd')
    before = files_of(tree)
    code, out, err = knockd('install', '--root', tree, *told)
    assert (code, out) == (2, '') and re.match(
        'knockd: %s has no effect, for [^\n]*knockd.ini is there already; type: %s\n$'
        % (told[0], re.escape(advice)), err)
    assert files_of(tree) == before


@pytest.mark.parametrize('system', sorted(EVIDENCE))
def test_a_dry_run_lists_files_and_commands_and_writes_none(system, tmp_path):
    dry, wet = tree_of(tmp_path / 'dry', system), installed(tmp_path, system)
    code, out, err = knockd('install', '--root', dry, '--dry-run', *FIRST)
    assert (code, err) == (0, '')
    assert [name for _, _, names in os.walk(dry) for name in names] == []
    listed = dict(re.findall(r'^write (\S+) \(mode (\d+)\)$', out, re.M))
    found = dict(re.findall(r'^--- (\S+) 0o(\d+)$', files_of(wet), re.M))
    assert listed == dict(found, **{SCRIPT[system]: '755'})
    assert re.findall(r'^\$ (.*)', out, re.M)[-1] == START[system]
    assert len(out.splitlines()) < 20 and not re.search('[A-Z2-7]{52}', out)


@pytest.mark.parametrize('system', sorted(EVIDENCE))
def test_uninstall_stops_the_service_before_it_takes_its_files(system, tmp_path):
    tree = installed(tmp_path, system)
    code, out, err = knockd('--config', '/etc/knockd/knockd.ini', 'uninstall', '--root', tree,
                            '--dry-run')
    assert (code, err) == (0, '')
    assert 'is uninstalled' not in out
    first, last = out.index('\nremove '), out.rindex('\nremove ')
    ends = re.findall(r'^\$ (.*)', out[:first], re.M)
    assert ends[:len(ENDS[system])] == ENDS[system]     # then come the rules of this very box
    assert re.findall(r'^\$ (.*)', out[last:], re.M) == FORGETS.get(system, [])
    code, out, err = knockd('--config', '/etc/knockd/knockd.ini', 'uninstall', '--root', tree)
    assert (code, err) == (0, '')
    assert out.splitlines()[-1].startswith('knockd is uninstalled; the keys stay in ')
    keys = ['etc/knockd/knockd.ini', STATE[system] + '/knockd/ledger.json']
    assert sorted(left_in(tree)) == sorted(keys)
    code, out, err = knockd('--config', '/etc/knockd/knockd.ini', 'uninstall', '--root', tree,
                            '--yes')
    assert (code, err, left_in(tree)) == (0, '', [])


def test_how_somebody_has_ordered_nftables_himself_is_respected_and_told(tmp_path):
    tree = tree_of(tmp_path, 'sysv')
    order = tree + '/etc/insserv/overrides/nftables'
    os.makedirs(os.path.dirname(order))
    with open(order, 'w') as file:
        file.write('# Mine.\n')
    for verb in (('install',) + FIRST, ('uninstall', '--yes')):
        code, _, err = knockd(*verb + ('--root', tree))
        assert code == 0 and ('sendsigs' in err) == (verb[0] == 'install')
        with open(order) as file:
            assert file.read() == '# Mine.\n'
    assert left_in(tree) == ['etc/insserv/overrides/nftables']


def left_in(tree):
    """Every file, by its path in the tree."""
    return [os.path.relpath(os.path.join(folder, name), tree)
            for folder, _, names in os.walk(tree) for name in names]


@pytest.mark.parametrize('text', [None, '', 'nonsense', '[server]\nhide = tcp/0\n'],
                         ids=['missing', 'empty', 'no INI', 'wrong'])
def test_uninstall_works_whatever_the_config_says(text, tmp_path):
    tree = installed(tmp_path, 'systemd')
    config = tree + '/etc/knockd/knockd.ini'
    os.unlink(config)
    if text is not None:
        with open(config, 'w') as file:
            file.write(text)
    code, out, err = knockd('--config', '/etc/knockd/knockd.ini', 'uninstall', '--root', tree,
                            '--yes')
    assert (code, err, left_in(tree)) == (0, '', [])
    assert len(out.splitlines()) < 5


def test_what_else_is_in_the_folder_of_a_config_elsewhere_stays(tmp_path):
    """`knockd.py --config /root/knockd.ini uninstall` took all of /root away."""
    tree = tree_of(tmp_path, 'systemd')
    home = tmp_path / 'home'
    home.mkdir()
    (home / 'thesis').write_text('years')
    config = home / 'knockd.ini'
    config.write_text('[server]\nid = x\nhide = tcp/22\nledger = %s/ledger.json\n' % home)
    config.chmod(0o600)
    (home / 'guard').write_text('')
    (home / 'ledger.json').write_text('')
    shown = knockd('--config', str(config), 'uninstall', '--yes', '--dry-run')[1]
    assert 'remove %s\n' % home not in shown
    for name in ('knockd.ini', 'ledger.json', 'guard'):
        assert 'remove %s/%s\n' % (home, name) in shown
    assert 'thesis' not in shown and tree


def test_a_dry_run_of_uninstall_lists_and_takes_nothing(tmp_path):
    tree = installed(tmp_path, 'systemd')
    before = files_of(tree)
    code, out, _ = knockd('uninstall', '--root', tree, '--dry-run', '--yes')
    assert code == 0 and files_of(tree) == before
    assert 'remove %s/etc/systemd/system/knockd.service\n' % tree in out
    assert 'remove %s/etc/knockd\n' % tree in out


def test_a_link_of_runits_folder_is_never_taken_for_the_service(tmp_path):
    """/var/service of Void is a link itself; `ln -sfn X /var/service` would replace it."""
    tree = tree_of(tmp_path / 'tree', 'void')
    _, out, _ = knockd('install', '--root', tree, *FIRST)
    line, = re.findall(r'^\$ ln (.*)', out, re.M)
    folder = tmp_path / 'current'
    folder.mkdir()
    (tmp_path / 'service').symlink_to(folder)
    target = line.split()[-1].replace('/var/service', str(tmp_path / 'service'))
    for _ in range(2):
        subprocess.check_call(['ln', line.split()[0], '/etc/sv/knockd', target])
    assert [path.name for path in folder.iterdir()] == ['knockd']
    assert os.readlink(str(tmp_path / 'service')) == str(folder)


def test_on_openwrt_the_ledger_is_not_in_memory_and_outlives_an_upgrade(tmp_path):
    tree = installed(tmp_path, 'procd')
    assert os.path.exists(tree + '/etc/knockd/ledger.json')
    assert not os.path.exists(tree + '/var')
    with open(tree + '/lib/upgrade/keep.d/knockd') as file:
        kept = file.read().split()
    # Itself, too, or the second upgrade would lose keys and ledger; and that it is enabled.
    assert kept == ['/etc/knockd/', '/etc/init.d/knockd', '/etc/rc.d/S18knockd',
                    '/lib/upgrade/keep.d/knockd', '/usr/sbin/knockd.py']


def test_on_openwrt_the_script_says_what_rc_common_and_luci_read_in_lines(tmp_path):
    tree = installed(tmp_path, 'procd')
    with open(tree + '/etc/init.d/knockd') as file:
        lines = file.read().splitlines()
    assert lines[0] == '#!/bin/sh /etc/rc.common'
    assert {'USE_PROCD=1', 'START=18'} <= set(lines)
    command, = [line for line in lines if 'procd_set_param command' in line]
    assert os.path.basename(command.split()[2]) == 'knockd', 'so procd calls the log lines'
    guard = lines.index('\tsh /etc/knockd/guard')
    assert guard < lines.index(command), 'before anything that needs Python'


def test_after_an_upgrade_on_openwrt_the_script_of_0_1_is_gone(tmp_path):
    tree = tree_of(tmp_path, 'procd')
    os.makedirs(tree + '/usr/local/sbin')
    with open(tree + '/usr/local/sbin/knockd.py', 'w') as file:
        file.write('# version 0.1')
    knockd('install', '--root', tree, *FIRST)
    assert not os.path.exists(tree + '/usr/local/sbin/knockd.py')
    assert os.path.exists(tree + '/usr/sbin/knockd.py')


def test_an_unknown_init_system_is_told_what_to_run(tmp_path):
    os.makedirs(str(tmp_path / 'etc' / 'service'))      # Debian's openssh-server makes it
    (tmp_path / 'etc' / 'inittab').write_text('::sysinit:/etc/init.d/rcS\n')    # of busybox
    code, _, err = knockd('install', '--root', str(tmp_path), *FIRST)
    assert code == 1 and '-I /usr/local/sbin/knockd.py run' in err and err.count('\n') == 1
    assert not os.path.exists(str(tmp_path / 'usr'))


def test_a_script_on_standard_input_installs_itself(tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    with open(KNOCKD) as source:
        code, _, err = piped('-', source, 'install', '--root', tree, *FIRST)
    assert (code, err) == (0, '')
    with open(tree + '/usr/local/sbin/knockd.py') as copy, open(KNOCKD) as script:
        assert copy.read() == script.read()


@pytest.mark.parametrize('how', ['pipe', 'file', 'fd'])
def test_a_file_called_stdin_in_the_current_folder_is_nothing_to_us(how, tmp_path):
    tree, trap = tree_of(tmp_path / 'tree', 'systemd'), tmp_path / 'trap'
    trap.mkdir()
    for name in ('<stdin>', '<string>', 'knockd.py'):
        (trap / name).write_text('#!/usr/bin/env python3\nprint("trapped")\n')
    command = {'pipe': 'cat %s | %s - "$@"', 'file': '<%s %s - "$@"',
               'fd': '%s %s /dev/fd/3 "$@"'}[how]
    command = command % ((KNOCKD, sys.executable) if how != 'fd' else ('', sys.executable))
    if how == 'fd':
        command = 'exec 3<%s; %s' % (KNOCKD, command)
    process = subprocess.Popen(
        ['sh', '-c', command, 'sh', 'install', '--root', tree] + list(FIRST),
        cwd=str(trap), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    assert b'trapped' not in out + err
    installed = tree + '/usr/local/sbin/knockd.py'
    if process.returncode:
        assert b'pipe' in err and not os.path.exists(installed)
    else:
        with open(installed, 'rb') as copy:
            assert copy.read() == script_bytes()


def test_another_file_on_standard_input_is_not_taken_for_the_script(tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    with subprocess.Popen(['cat', KNOCKD], stdout=subprocess.PIPE) as source, \
            open(__file__) as other:
        fd = source.stdout.fileno()
        code, _, err = piped('/dev/fd/%d' % fd, other, 'install', '--root', tree, *FIRST,
                             pass_fds=[fd])
    assert code == 1 and ' pipe ' in err and not os.path.exists(tree + '/usr')


def test_a_script_out_of_a_pipe_says_that_it_must_be_saved_first(tmp_path):
    """Python has read the pipe to its end before the first line runs."""
    tree = tree_of(tmp_path, 'systemd')
    with subprocess.Popen(['cat', KNOCKD], stdout=subprocess.PIPE) as source:
        code, _, err = piped('-', source.stdout, 'install', '--root', tree, *FIRST)
    assert code == 1
    assert re.match(r'knockd: [^\n]* pipe [^\n]*--url[^\n]*curl -fsSO[^\n]*\n$', err)
    assert not os.path.exists(tree + '/usr') and not os.path.exists(tree + '/etc')


@pytest.fixture
def serve():
    """A function: the URL at which a web server answers with these texts in turn."""
    servers = []

    def start(*texts):
        answers = list(texts)

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answers.pop(0))

            def log_message(self, *_):
                pass
        servers.append(http.server.HTTPServer(('127.0.0.1', 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return 'http://127.0.0.1:%d/knockd.py' % servers[-1].server_address[1]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def script_bytes():
    with open(KNOCKD, 'rb') as file:
        return file.read()


def curled(tree, url):
    """curl URL | python3 - install --url URL"""
    if not shutil.which('curl'):
        pytest.skip('no curl here')
    with subprocess.Popen(['curl', '-fsS', url], stdout=subprocess.PIPE) as source:
        return piped('-', source.stdout, 'install', '--root', tree, '--url', url, *FIRST)


def test_a_script_out_of_a_pipe_is_fetched_again(serve, tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    code, out, err = curled(tree, serve(script_bytes(), script_bytes()))
    assert (code, err) == (0, '') and out.startswith('knock://laptop:')
    with open(tree + '/usr/local/sbin/knockd.py', 'rb') as copy:
        assert copy.read() == script_bytes()


@pytest.mark.parametrize('change', [
    lambda text: text.replace(b'STEP = 30000', b'STEP = 30001'), lambda text: b'<html>no</html>',
    lambda text: b'', lambda text: text + b'import evil\n', lambda text: text[:len(text) // 2],
    lambda text: b'#!/bin/evil' + text[text.index(b'\n'):], lambda text: b'(' * 5000,
    lambda text: text.replace(b'\n"""', b'\n# coding: utf-7\n"""', 1),
    lambda text: text.replace(b'\n', b'\r\n'), lambda text: text + b'\0'],
    ids=['a number', 'HTML', 'nothing', 'a line more', 'half', 'interpreter', 'deep', 'coding',
         'CRLF', 'NUL'])
def test_another_script_at_that_address_is_not_installed(change, serve, tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    code, _, err = curled(tree, serve(script_bytes(), change(script_bytes())))
    # A deep text makes the parser of Python 3.8 and before say a line of its own.
    assert code == 1 and re.match(r'(s_push: .*\n)?knockd: http://\S+ is not the script that runs '
                                  r'here[^\n]*\n$', err)
    assert not os.path.exists(tree + '/usr') and not os.path.exists(tree + '/etc')


def test_an_address_that_no_longer_answers_is_told(serve, tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    with subprocess.Popen(['cat', KNOCKD], stdout=subprocess.PIPE) as source:
        code, _, err = piped('-', source.stdout, 'install', '--root', tree,
                             '--url', 'http://127.0.0.1:9/knockd.py', *FIRST)
    assert code == 1 and re.match(r'knockd: \w+ [^\n]*http://127[^\n]* failed [^\n]*\n$', err)


def test_an_address_counts_for_a_script_in_a_file_too(serve, tmp_path):
    """What --url names is not ignored where nothing would have to be fetched."""
    tree = tree_of(tmp_path, 'systemd')
    if not shutil.which('curl'):
        pytest.skip('no curl here')
    other = serve(b'<html>no</html>')
    code, _, err = piped(KNOCKD, None, 'install', '--root', tree, '--url', other, *FIRST)
    assert code == 1 and 'is not the script that runs here' in err, err
    code, _, err = piped(KNOCKD, None, 'install', '--root', tree, '--url',
                         serve(script_bytes()), *FIRST)
    assert (code, err) == (0, '')


def tool(*argv):
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError:
        pytest.skip('no %s here' % argv[0])
    return process.communicate()[0].decode(), process.returncode


def test_systemd_knows_every_line_of_the_unit(tmp_path):
    tree = installed(tmp_path, 'systemd')
    unit = os.path.join(tree, SERVICE['systemd'][0])
    with open(unit) as file:        # systemd-analyze wants to find what it starts
        text = re.sub(r'(?m)^ExecStart=.*', 'ExecStart=/bin/true', file.read())
    with open(unit, 'w') as file:
        file.write(text)
    assert tool('systemd-analyze', 'verify', unit) == ('', 0)


def test_the_unit_is_exposed_no_more_than_three_of_ten(tmp_path):
    tree = installed(tmp_path, 'systemd')
    out, code = tool('systemd-analyze', 'security', '--offline=yes', '--threshold=30',
                     '--root=' + tree, 'knockd.service')
    assert code == 0, out
    assert float(re.search(r'exposure level for knockd.service: (\d\.\d)', out).group(1)) <= 3.0


@pytest.mark.kernel
@pytest.mark.parametrize('system', sorted(set(EVIDENCE) - {'systemd'}))
def test_the_script_of_the_service_is_a_sound_shell_script(system, tmp_path):
    """SC2034: variables that rc.common or openrc-run reads."""
    tree = installed(tmp_path, system)
    for path in SERVICE[system]:
        script = os.path.join(tree, path)
        assert tool('sh', '-n', script) == ('', 0)
        assert tool('shellcheck', '-s', 'dash', '-e', 'SC2034', script) == ('', 0)


def test_the_ledger_of_a_first_try_stays_where_the_sandbox_may_write(tmp_path):
    """`run --hide --client` puts it beside the config; the unit must let the daemon in there."""
    tree = tree_of(tmp_path, 'systemd')
    os.makedirs(tree + '/etc/knockd', 0o700)
    with open(tree + '/etc/knockd/knockd.ini', 'w') as file:
        file.write('[server]\nid = x\nhide = tcp/22\nledger = /etc/knockd/ledger.json\n')
    os.chmod(tree + '/etc/knockd/knockd.ini', 0o600)
    code, _, err = knockd('install', '--root', tree)
    assert (code, err) == (0, '')
    with open(os.path.join(tree, SERVICE['systemd'][0])) as file:
        text = file.read()
    assert 'ReadWritePaths=/etc/knockd -/run/xtables.lock\n' in text
    assert 'SyslogIdentifier=knockd\n' in text
    assert 'ExecStartPre=-/bin/sh /etc/knockd/guard\n' in text


@pytest.mark.parametrize('more,left', [((), 600000), (('--probation', '90'), 90000)])
def test_a_new_installation_is_on_probation(more, left, tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    assert knockd('install', '--root', tree, *FIRST + more)[0] == 0
    path = tree + '/var/lib/knockd/probation'
    assert told_in(path) == {'state': 'on trial', 'left': left, 'mono': 0, 'boot': ''}
    with open(tree + '/var/lib/knockd/guard') as file:
        assert file.read() == '# Hides nothing: on probation.\n', 'who is locked out boots'
    assert knockd('install', '--root', tree, '--probation', '70')[0] == 0
    assert told_in(path)['left'] == 70000, 'it begins again'
    passed = '{"state": "passed", "left": 0, "mono": 0, "boot": ""}\n'
    with open(path, 'w') as file:
        file.write(passed)
    for more, said in (((), False), (('--probation', '0'), False), (('--probation', '5m'), True)):
        code, _, err = knockd('install', '--root', tree, *more)
        assert code == 0 and ('note: --probation has no effect: it is over' in err) == said
        with open(path) as file:
            assert file.read() == passed, 'once passed, it is over'


def told_in(path):
    with open(path) as file:
        return json.load(file)


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"state":', 'nonsense'])
def test_a_probation_that_cannot_be_read_is_begun_again(text, tmp_path):
    tree = installed(tmp_path, 'systemd')
    path = tree + '/var/lib/knockd/probation'
    with open(path, 'w') as file:
        file.write(text)
    assert knockd('install', '--root', tree)[0] == 0
    assert told_in(path)['state'] == 'on trial'


def test_without_a_probation_it_hides_for_good(tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    assert knockd('install', '--root', tree, '--probation', '0', *FIRST)[0] == 0
    assert told_in(tree + '/var/lib/knockd/probation')['state'] == 'passed'


@pytest.mark.parametrize('guard,state', [
    ('# on probation: 1 ms left, 2 ms after the boot\n', 'on trial'),
    ('# not yet made\n', 'passed'), ('# For a boot\nnft list ruleset\n', 'passed')])
def test_the_probation_that_0_1_noted_in_its_guard_is_respected(guard, state, tmp_path):
    tree = tree_of(tmp_path, 'systemd')
    os.makedirs(tree + '/var/lib/knockd', 0o700)
    with open(tree + '/var/lib/knockd/guard', 'w') as file:
        file.write(guard)
    assert knockd('install', '--root', tree, *FIRST)[0] == 0
    assert told_in(tree + '/var/lib/knockd/probation')['state'] == state
