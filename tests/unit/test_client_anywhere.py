"""What knock.py reads from STUN, NTP and web servers, and that it needs no Linux to be run."""

import ipaddress
import os
import random
import socket
import struct
import subprocess
import sys
import time

import pytest

import knock
import knockd

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# RFC 5769, 2.2 and 2.3: attributes before and after, padding that is no zero
COOKIE = '2112a442b7e7a701bc34d686fa87dfae'
BEFORE = '8022000b7465737420766563746f7220'
IPV4 = '0101003c' + COOKIE + BEFORE + ('002000080001a147e112a6430008001'
                                       '42b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96')
IPV6 = '01010048' + COOKIE + BEFORE + ('002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014'
                                       'a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c')
ASKED = bytes.fromhex('00010000' + COOKIE)


@pytest.mark.parametrize('answer, address', (
    (IPV4, '192.0.2.1'), (IPV6, '2001:db8:1234:5678:11:2233:4455:6677')), ids=('IPv4', 'IPv6'))
def test_the_samples_of_rfc_5769(answer, address):
    assert knock.stun_address(bytes.fromhex(answer), ASKED) == ipaddress.ip_address(address)


def test_a_stun_answer_to_another_or_cut_off_is_none():
    answer = bytes.fromhex(IPV4)
    assert knock.stun_address(answer, ASKED[:-1] + b'x') is None
    assert knock.stun_address(b'\x01\x11' + answer[2:], ASKED) is None
    for length in range(48):
        assert knock.stun_address(answer[:length], ASKED) is None


NTP_ASKED = b'\x23' + bytes(39) + b'whatever'


def ntp_answer(first=b'\x24\2', originate=b'whatever', seconds=2208988800 + 1700000000):
    return first + bytes(22) + originate + bytes(8) + struct.pack('>II', seconds % (1 << 32), 0)


def test_the_time_of_an_ntp_server():
    assert knock.sntp_time(ntp_answer(), NTP_ASKED) == 1700000000
    after_2036 = 2208988800 + 2200000000
    assert knock.sntp_time(ntp_answer(seconds=after_2036), NTP_ASKED) == 2200000000


@pytest.mark.parametrize('answer', (
    b'', ntp_answer()[:47], ntp_answer(originate=b'whoever.'), ntp_answer(b'\x24\0'),
    ntp_answer(b'\x23\2')), ids=('nothing', 'short', 'not ours', 'kiss of death', 'a client'))
def test_what_is_no_answer_of_an_ntp_server_tells_no_time(answer):
    assert knock.sntp_time(answer, NTP_ASKED) is None


@pytest.mark.parametrize('answer, seconds', (
    (b'HTTP/1.0 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n', 784111777),
    (b'HTTP/1.1 301 x\r\ndate:Sun, 06 Nov 1994 08:49:37 GMT\r\n', 784111777),
    (b'HTTP/1.0 200 OK\r\nDate: Xxx, 99 Nov 1994 08:49:37 GMT\r\n\r\n', None),
    (b'HTTP/1.0 200 OK\r\n\r\n', None), (b'', None)))
def test_the_date_of_a_web_server(answer, seconds):
    assert knock.http_time(answer) == seconds


# --- without Linux -------------------------------------------------------------------------------
ELSEWHERE = """
import os, select, signal, socket, subprocess, sys, tempfile
for name in dir(socket):
    if name.isupper() and name not in %r and not name.startswith(('AI_', 'NI_', 'EAI_')):
        delattr(socket, name)
for module, names in ((os, 'fork geteuid getuid getgid setsid getpgrp kill uname chown fchmod '
                           'mkfifo pipe2 sched_getaffinity getloadavg'),
                      (select, 'poll epoll'), (signal, 'SIGHUP SIGKILL SIGUSR1 SIGCHLD SIGALRM')):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ('fcntl', 'termios', 'tty', 'pwd', 'grp', 'resource', 'syslog', 'curses'):
    sys.modules[name] = None
os.name = %r
sys.path.insert(0, %r)
import knock
sys.exit(knock.main(sys.argv[1:]))
"""
EVERYWHERE = ('AF_INET', 'AF_INET6', 'AF_UNSPEC', 'SOCK_STREAM', 'SOCK_DGRAM', 'SOCK_RAW',
              'SOL_SOCKET', 'SO_ERROR', 'SO_LINGER', 'MSG_PEEK', 'IPPROTO_TCP', 'IPPROTO_UDP',
              'TCP_NODELAY', 'SHUT_RD', 'SHUT_WR', 'SHUT_RDWR', 'EBADF', 'EAGAIN', 'EWOULDBLOCK')
SECRET = bytes(range(32))


def elsewhere(*arguments, **options):
    """Runs knock.py where nothing of Linux is; returns exit code, output and complaints."""
    code = ELSEWHERE % (EVERYWHERE, options.get('system', 'posix'), TOP)
    process = subprocess.Popen(
        [sys.executable, '-c', code] + list(arguments), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, **options.get('variables', {})))
    out, err = process.communicate(options.get('stdin', '').encode(), 20)
    return process.returncode, out.decode(), err.decode()


def line(query=''):
    return 'knock://me:%s@127.0.0.1?id=box%s' % (knock.encode_secret(SECRET), query)


@pytest.mark.parametrize('system', ('posix', 'nt'))
def test_udp_needs_no_linux(system):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(('127.0.0.1', 0))
        server.settimeout(10)
        port = str(server.getsockname()[1])
        assert elsewhere('--port', port, line(), system=system) == (0, '', '')
        datagram = server.recv(2048)
    keys = knockd.derive_keys(SECRET, 'box')
    assert knockd.decode_plain(knockd.unseal(keys, datagram)).op == 'open'


@pytest.mark.parametrize('via, stdin', (('ports', ''), ('code', ''),
                                        ('paper', '2001 2002 2003 2004 2005 2006\n')))
@pytest.mark.parametrize('system', ('posix', 'nt'))
def test_the_sequences_need_no_linux(via, stdin, system):
    code, out, err = elsewhere('-v', '--via', via, line(), stdin=stdin, system=system)
    assert (code, out) == (0, ''), err
    assert 'knock: touched ' in err and ' by ' + via in err


@pytest.mark.parametrize('proxy', (False, True), ids=('probe', 'proxy'))
def test_the_probe_and_the_proxy_need_no_linux(proxy):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(('127.0.0.1', 0))
        server.listen(100)
        server.settimeout(10)
        port = server.getsockname()[1]
        arguments = ['--proxy', str(port), line()] if proxy else [line('&open=tcp/%d' % port)]
        process = subprocess.Popen([sys.executable, '-c', ELSEWHERE % (EVERYWHERE, 'nt', TOP)] +
                                   arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        with server.accept()[0] as end:
            if proxy:               # a probe is gone already
                end.sendall(b'words')
        assert process.communicate(timeout=20) == (b'words' if proxy else b'', None)
        assert process.returncode == 0


def test_windows_keeps_lines_in_appdata(tmp_path):
    variables = {'APPDATA': str(tmp_path)}
    text = line('&open=tcp/22')
    assert elsewhere('save', 'box', stdin=text, system='nt', variables=variables) == (0, '', '')
    assert (tmp_path / 'knock' / 'box').read_text() == text + '\n'
    os.chmod(str(tmp_path / 'knock' / 'box'), 0o666)        # as everything looks there
    code, out, err = elsewhere('--print', 'box', system='nt', variables=variables)
    assert code == 0 and len(bytes.fromhex(out.strip())) >= 68, err


def test_print_is_for_people():
    assert len(elsewhere('--print', '--via', 'ports', line())[1].split()) == 6
    code, out, err = elsewhere('--print', '--via', 'code', line())
    left = 30 - time.time() % 30
    shown, seconds = out.rstrip(')\n').split('  (')
    assert len(shown) == 8 and shown.isdigit() and seconds.endswith(' s left')
    assert abs(int(seconds.split()[0]) - left) < 5 or left > 25
    assert len(bytes.fromhex(elsewhere('--print', line())[1].strip())) >= 68


def test_nothing_rare_is_imported_before_the_knock():
    """Start-up time is what a knock costs its owner."""
    code = ('import sys; sys.path.insert(0, %r); import knock; knock.read_options(["box"]); '
            'print(*sys.modules)' % TOP)
    imported = subprocess.check_output([sys.executable, '-ISc', code]).decode().split()
    rare = {'argparse', 'base64', 'subprocess', 'getpass', 'tempfile', 'datetime', 'threading',
            'shutil'}
    if sys.version_info[:2] == (3, 8):
        rare -= {'threading'}           # its functools loads it
    assert not rare & set(imported)


# --- the command line ----------------------------------------------------------------------------
def test_options_stand_before_and_behind_the_target_and_take_an_equals_sign():
    args = knock.read_options(['--open=tcp/22', '-4', 'box', '--wait', '0', '--print=sh', '-v'])
    assert (args.target, args.wait, args.show, args.verbose) == ('box', 0, 'sh', True)
    assert (args.open, args.family) == (((6, 22, 22),), socket.AF_INET)
    assert (args.seconds, args.close, args.via) == (0, None, None)


def test_what_is_not_said_is_the_default():
    args = knock.read_options([])
    assert (args.target, args.wait, args.seconds) == (None, 5, 0)
    assert knock.read_options(['-']).target == '-'


def test_the_name_of_an_option_may_be_its_argument():
    assert knock.read_options(['--run', '--close']).run == '--close'


@pytest.mark.parametrize('words, told', (
    (['--bogus=knock://x', 'box'], '--bogus is not an option here'),
    (['-x'], '-x is not an option here'),
    (['--open'], '--open needs what --help calls SERVICES'),
    (['--open', ''], '--open needs what --help calls SERVICES'),
    (['--sign=', 'box'], '--sign needs what --help calls KEYFILE'),
    (['--open', ' , ', 'box'], "' , ' names no service"),
    (['--print=zsh', 'box'], '--print takes no such argument'),
    (['--for', '0', 'box'], "'0' is too short for an opening"),
    (['--close=1', 'box'], '--close takes no such argument'),
    (['box', 'knock://secret'], 'one TARGET'),
    (['--via', 'pigeon'], "'pigeon'"),
    (['--source', 'here'], "'here' is neither"),
    (['--port', '0'], "'0' is not a port"),
    (['--proxy', 'ssh', 'box'], "'ssh' is not a port: write its number"),
    (['-4', '-6'], '-4 and -6 exclude each other'),
    (['--time-check', '-e', 'box'], "'-e' is not a host"),
    (['--source', 'stun:-e', 'box'], "'-e' is not a host"),
    (['--wait=soon'], "'soon' is not a time"),
    (['--for', '65536'], "'65536' is longer")), ids=lambda value: value[0] if value[1:] else '')
def test_a_mistake_on_the_command_line_is_told_without_what_may_be_secret(words, told, capsys):
    assert knock.main(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count('\n') == 1
    assert 'knock://' not in said


def test_help_tells_of_every_option(capsys):
    assert knock.main(['box', '--help']) == 0
    told = capsys.readouterr().out
    for option in knock.OPTIONS:
        assert option[0] in told and option[-1] in told


@pytest.mark.parametrize('command', knock.COMMANDS)
def test_help_for_a_command_asks_for_no_line(command, capsys):
    for words in ([command, '-h'], [command, 'NAME', 'web1', '--help']):
        assert knock.main(words) == 0
        assert 'knock.py %s' % command in capsys.readouterr().out


# --- garbage -------------------------------------------------------------------------------------
SCRAPS = ('%00', '%ff', '%', '@', ':', '?', '&', '=', '[', ']', '\0', '\n', '\udc80', '\u0131',
          '\u0663', '\U0001f600', '9' * 400, '//', 'tcp/99999')


def mutated(text, chance):
    """The text with a few scraps put in, or pieces taken out or doubled."""
    for _ in range(chance.randrange(1, 6)):
        at, length = chance.randrange(len(text) + 1), chance.randrange(9)
        text = chance.choice((text[:at] + chance.choice(SCRAPS) + text[at:],
                              text[:at] + text[at + length:],
                              text[:at] + text[max(0, at - length):]))
    return text


def test_a_line_of_garbage_is_one_clear_error():
    chance, good, refused = random.Random(7), line('&via=udp&open=tcp/22,udp/5-9&once=0'), 0
    for _ in range(5000):
        text = mutated(good, chance)
        try:
            knock.parse_uri(text)
        except knock.KnockError as error:
            refused += 1
            assert error.status == 2 and '\n' not in str(error) and len(str(error)) < 200, text
    assert refused > 4000


@pytest.mark.parametrize('arguments', (
    (b'\xff\xfe',), (b'knock://\xff',), (b'--open', b'\xff'), (b'--run', b'\xff', b'-'),
    (b'--source', b'stun:\xff', b'-'), (b'--for', '\u0663'.encode(), b'-'), (b'x' * 70000,),
    (b'--port', b'9' * 5000, b'-'), (b'',)),
    ids=lambda words: ascii(words)[:24])
def test_a_command_line_of_garbage_is_one_clear_error(arguments):
    process = subprocess.Popen([sys.executable, os.path.join(TOP, 'knock.py')] + list(arguments),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True,
                               env=dict(os.environ, LC_ALL='C.UTF-8'))
    out, err = process.communicate(line().encode(), 20)
    assert process.returncode == 2 and out == b'' and b'Traceback' not in err, err
    assert b'knock' in err.splitlines()[-1]
