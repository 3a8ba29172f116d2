"""What knock.py is for people: saved lines, commands, what it says, and shell without Python."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import termios
import threading
import time

import knock
import network
import pytest
from network import HIDDEN, KNOCK, environment, until


@pytest.fixture
def home(tmp_path):
    """An environment with a home of its own."""
    return dict(environment(), HOME=str(tmp_path))


def run(wire, home, *arguments, **options):
    return wire.client.run(sys.executable, KNOCK, *arguments, env=home, **options)


def at_a_terminal(wire, home, *argv, **options):
    """(exit code, what the terminal showed). Options: typed, as soon as `when` is shown; stdin."""
    master, slave = os.openpty()

    def take_terminal():
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    process = subprocess.Popen(
        wire.client.command(*argv), stdin=options.get('stdin', slave), stdout=slave, stderr=slave,
        env=home, start_new_session=True, preexec_fn=take_terminal)
    os.close(slave)
    shown, typed = b'', options.get('typed', '').encode()
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError as error:
            assert error.errno == errno.EIO            # nobody has it open any more
            break
        if typed and options['when'].encode() in shown:
            os.write(master, typed)
            typed = b''
    os.close(master)
    return process.wait(), shown.decode()


# --- saved lines ---------------------------------------------------------------------------------
def test_a_saved_line_opens_by_its_name_and_is_closed_to_others(wire, knockd, visitor, home,
                                                                tmp_path):
    uri = knockd.uri(visitor, '10.9.0.1') + '&open=tcp/2222'
    assert run(wire, home, 'save', stdin=uri + '\n') == (0, '', '')
    folder = tmp_path / '.config' / 'knock'
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / visitor).stat().st_mode) == 0o600
    assert os.listdir(str(folder)) == [visitor]
    assert (folder / visitor).read_text() == uri + '\n'
    assert run(wire, home, visitor) == (0, '', '')
    assert wire.client.connects('10.9.0.1')


@pytest.mark.parametrize('path, mode, cure', (('', 0o755, '700'), ('box', 0o640, '600'),
                                              ('box', 0o604, '600')))
def test_what_others_may_read_is_refused_with_the_chmod_to_type(wire, knockd, visitor, home,
                                                                tmp_path, path, mode, cure):
    run(wire, home, 'save', 'box', stdin=knockd.uri(visitor, '10.9.0.1') + '&open=tcp/2222')
    place = os.path.join(str(tmp_path), '.config', 'knock', path).rstrip('/')
    os.chmod(place, mode)
    done = run(wire, home, '--wait', '0', 'box')
    assert done == (2, '', 'knock: %s is open to others; type: chmod %s %s\n' % (
        place, cure, place))
    subprocess.check_call(done.err.rpartition('type: ')[2].split())
    assert run(wire, home, '--wait', '0', 'box').code == 0
    knockd.says('open %s ' % visitor)


def test_a_saved_line_is_replaced_only_by_its_name(wire, knockd, home, tmp_path):
    first, second = [knockd.uri('fence', address) + '&open=tcp/2229'
                     for address in ('10.9.0.1', 'fd00:9::1')]
    assert run(wire, home, 'save', stdin=first).code == 0
    done = run(wire, home, 'save', stdin=second)
    assert done.code == 1 and 'knock.py save fence' in done.err
    kept = tmp_path / '.config' / 'knock' / 'fence'
    assert kept.read_text() == first + '\n'
    assert run(wire, home, 'save', 'fence', stdin=second).code == 0
    assert kept.read_text() == second + '\n'


@pytest.mark.parametrize('name', ('../x', '.x', '-x', 'a b', 'save', ''))
def test_a_name_that_is_none_is_refused(wire, knockd, home, name):
    done = run(wire, home, 'save', name, stdin=knockd.uri('fence', '10.9.0.1'))
    assert done.code == 2 and re.match(r'knock: [^\n]+\n$', done.err)


def test_an_unknown_name_is_said_with_what_to_type(wire, home):
    done = run(wire, home, 'nobody')
    assert done.code == 2 and re.match(r'knock: [^\n]*knock\.py save nobody[^\n]*\n$', done.err)
    assert 'there are: none' in done.err
    for name in ('box', 'other'):
        text = 'knock://me:%s@192.0.2.1?id=box&open=tcp/22' % knock.encode_secret(bytes(32))
        assert run(wire, home, 'save', name, stdin=text).code == 0
    assert 'there are: box, other' in run(wire, home, 'nobody').err
    assert 'there are: box, other' in run(wire, home, 'forget', 'nobody').err


def test_saved_lines_are_listed_without_their_secrets_and_forgotten(wire, home, tmp_path):
    secret = knock.encode_secret(bytes(32))
    text = 'knock://me:%s@192.0.2.1?id=box&via=icmp&open=tcp/22,udp/5' % secret
    assert run(wire, home, 'save', 'box', stdin=text) == (0, '', '')
    broken = tmp_path / '.config' / 'knock' / 'broken'
    broken.write_text('knock://me')
    broken.chmod(0o600)
    done = run(wire, home, 'list')
    assert (done.code, done.err) == (0, '') and secret not in done.out
    first, second = done.out.splitlines()
    assert first.split() == ['box', '192.0.2.1', 'as', 'me', 'by', 'icmp', 'tcp/22,udp/5']
    assert second.startswith('broken ') and 'the line is cut' in second
    assert run(wire, home, 'forget', 'box') == (0, '', '')
    assert os.listdir(str(broken.parent)) == ['broken']
    assert run(wire, home, 'forget').code == run(wire, home, 'list', 'box').code == 2


@pytest.mark.parametrize('cut, told', (
    (lambda text: text.partition('&')[0], 'cut at an &'), (lambda text: text[:40], 'cut'),
    (lambda text: '"%s"' % text, 'quotation marks'), (lambda text: '\ufeff' + text, 'byte order'),
    (lambda text: text.replace('&', '&amp;'), 'HTML'), (lambda text: text[8:], 'knock://')),
    ids=('at &', 'early', 'quoted', 'BOM', 'HTML', 'scheme'))
def test_a_line_that_was_pasted_badly_is_not_saved(wire, home, tmp_path, cut, told):
    text = 'knock://me:%s@192.0.2.1?id=box&open=tcp/22' % knock.encode_secret(bytes(32))
    done = run(wire, home, 'save', stdin=cut(text))
    assert done.code == 2 and told in done.err and done.err.count('\n') == 1
    assert not (tmp_path / '.config').exists()


def test_the_environment_may_hold_the_line(wire, knockd, visitor, home):
    home['KNOCK_URI'] = knockd.uri(visitor, '10.9.0.1')
    assert run(wire, home, '--open', 'tcp/2222') == (0, '', '')
    assert wire.client.connects('10.9.0.1')


@pytest.mark.parametrize('piped', (False, True), ids=('file', 'script from a pipe'))
def test_a_dash_asks_at_the_terminal_and_shows_nothing(wire, knockd, visitor, home, piped):
    uri = knockd.uri(visitor, '10.9.0.1')
    with open(KNOCK) as script:
        options = {'stdin': script} if piped else {}
        code, shown = at_a_terminal(
            wire, home, sys.executable, '-' if piped else KNOCK, '--open', 'tcp/2222', '-',
            typed=uri + '\n', when='unseen', **options)
    assert code == 0, shown
    assert 'open in' in shown and uri[:20] not in shown and 'others' not in shown
    assert wire.client.connects('10.9.0.1')


def test_a_script_from_a_pipe_runs_a_command(wire, knockd, visitor, home):
    """curl ... | python3 - - : its input is at an end, the line comes from the terminal."""
    with open(KNOCK) as script:
        code, shown = at_a_terminal(wire, home, sys.executable, '-', '--open', 'tcp/2222',
                                    '-', '--', 'echo', 'it ran', when='unseen', stdin=script,
                                    typed=knockd.uri(visitor, '10.9.0.1') + '\n')
    assert code == 0 and 'it ran' in shown, shown
    knockd.says('open %s ' % visitor)


def test_save_asks_at_the_terminal_even_when_the_script_comes_from_a_pipe(wire, knockd, home):
    uri = knockd.uri('fence', '10.9.0.1') + '&open=tcp/2229'
    with open(KNOCK) as script:
        code, shown = at_a_terminal(wire, home, sys.executable, '-', 'save', 'box', stdin=script,
                                    typed=uri + '\n', when='unseen')
    assert code == 0 and uri[:20] not in shown and 'knock.py box' in shown
    assert run(wire, home, '--print', 'box').code == 0


# --- what it says --------------------------------------------------------------------------------
def test_on_a_terminal_one_line_is_updated(wire, knockd, visitor, home):
    run(wire, home, 'save', 'box', stdin=knockd.uri(visitor, '10.9.0.1') + '&open=tcp/2222')
    code, shown = at_a_terminal(wire, home, sys.executable, KNOCK, 'box')
    assert code == 0 and shown.count('\n') == 1
    assert re.search(r'\rknock: knock 1 at 10\.9\.0\.1 +\rknock: open in \d+ ms +\r\n$', shown)


def test_a_secret_on_the_command_line_is_warned_of_once(wire, knockd, visitor, home):
    uri = knockd.uri(visitor, '10.9.0.1') + '&open=tcp/2222'
    code, shown = at_a_terminal(wire, home, sys.executable, KNOCK, uri)
    assert code == 0 and shown.count('others on this machine can see') == 1
    assert shown.count('\n') == 2
    assert run(wire, home, uri) == (0, '', ''), 'in a pipe nothing but errors'


def test_verbose_names_the_address_and_port_of_each_datagram(wire, knockd, visitor, home):
    done = run(wire, home, '-v', '--port', '40001', '--open', 'tcp/2222',
               knockd.uri(visitor, 'fd00:9::1'))
    assert done.code == 0
    assert re.search(r'^knock: \d+ bytes to fd00:9::1 port 40001 by udp$', done.err, re.M)
    assert re.search(r'^knock: open in \d+ ms$', done.err, re.M)


@pytest.mark.parametrize('query', ('&open=udp/5182', ''), ids=('UDP', 'unknown'))
def test_what_cannot_be_checked_is_said(wire, knockd, visitor, home, query):
    code, shown = at_a_terminal(wire, home, sys.executable, KNOCK,
                                knockd.uri(visitor, '10.9.0.1') + query)
    assert code == 0 and 'cannot be seen from here' in shown and 'open in' not in shown
    knockd.says('open %s ' % visitor)


def test_a_service_that_answered_before_the_knock_is_no_success(wire, knockd, visitor, home,
                                                                address):
    uri = knockd.uri(visitor, address)
    with wire.server.listen(2233):
        done = run(wire, home, '-v', '--open', 'tcp/2233', uri)
    assert done.code == 0 and 'answered even before the knock' in done.err
    assert 'open in' not in done.err
    assert 'open in' in run(wire, home, '-v', '--open', 'tcp/2222', uri).err
    assert 'answered even before' in run(wire, home, '-v', '--open', 'tcp/2222', uri).err


def wrong_uri(knockd, host, services='tcp/2222'):
    return knockd.uri('x', host, secret=bytes(32)) + '&open=' + services


@pytest.mark.kernel
def test_refused_and_silent_are_told_apart(wire, knockd, home, address):
    done = run(wire, home, '--wait', '1', wrong_uri(knockd, address))
    assert done.code == 1 and re.match(r'knock: tcp/2222 at \S+ did not open within 1 s; '
                                       r'it refuses [^\n]+\n$', done.err)
    wire.server.nft('table inet quiet {\nchain c {\ntype filter hook input priority -5\n'
                    ' tcp dport 2234 drop\n}\n}\n')
    try:
        done = run(wire, home, '--wait', '1', wrong_uri(knockd, address, 'tcp/2234'))
    finally:
        wire.server.nft('delete table inet quiet')
    assert done.code == 1 and re.match(r'knock: [^\n]+; it is silent[^\n]+\n$', done.err)


def test_a_name_that_is_not_found_and_a_network_that_is_not_there(wire, knockd, home):
    done = run(wire, home, wrong_uri(knockd, 'no-such-host.invalid'))
    assert done.code == 1
    assert re.match(r'knock: no-such-host\.invalid: no address found [^\n]+\n$', done.err)
    done = run(wire, home, wrong_uri(knockd, '203.0.113.1'))
    assert done == (1, '', 'knock: 203.0.113.1: Network is unreachable\n')


@pytest.fixture
def named_box(wire, tmp_path):
    """A name whose first address (RFC 6724, rule 9) is somebody else's, who refuses."""
    hosts = tmp_path / 'hosts'
    hosts.write_text('10.9.0.3 box.example\n10.9.0.1 box.example\n')
    wire.client.must('mount', '--bind', str(hosts), '/etc/hosts')
    yield 'box.example'
    wire.client.must('umount', '/etc/hosts')


def test_the_first_address_that_answers_is_the_one_that_is_used(wire, services, knockd, visitor,
                                                                home, named_box):
    home['KNOCK_URI'] = knockd.uri(visitor, named_box)
    answers = threading.Thread(target=greet, args=(services[HIDDEN],))
    answers.start()
    done = run(wire, home, '--proxy', str(HIDDEN), stdin='hello')
    answers.join()
    assert done == (0, 'hello to you', '')


def greet(listener):
    """Answers the first connection that brings anything; probes bring nothing."""
    listener.settimeout(10)
    said = b''
    while not said:
        end, _ = listener.accept()
        with end:
            said = end.recv(100)
            end.sendall(said + b' to you')


# --- servers that tell something -----------------------------------------------------------------
@contextlib.contextmanager
def answering(namespace, port, answer, kind=network.socket.SOCK_DGRAM):
    """A server: answer(question, peer) is what it says."""
    listener, over = namespace.listen(port, kind), []
    listener.settimeout(0.2)

    def serve():
        while not over:
            try:
                if kind == network.socket.SOCK_DGRAM:
                    question, peer = listener.recvfrom(2048)
                    listener.sendto(answer(question, peer[0]), peer)
                else:
                    end, peer = listener.accept()
                    with end:
                        end.sendall(answer(end.recv(2048), peer[0]))
            except network.socket.timeout:
                pass                            # nobody asked
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.append(True)
        thread.join()
        listener.close()


def stun_answer(question, peer):
    """As RFC 5389 says it, an unknown attribute before, for a client behind NAT."""
    mapped = network.ipaddress.ip_address(peer).ipv4_mapped
    seen = (network.ipaddress.ip_address('10.9.0.2') if mapped else
            network.ipaddress.ip_address('fd00:9::2')).packed
    masked = bytes(a ^ b for a, b in zip(seen, question[4:]))
    value = bytes([0, 1 if mapped else 2]) + b'\0\0' + masked
    attributes = b'\x80\x22\0\3abc\0' + network.be16(0x20) + network.be16(len(value)) + value
    return b'\1\1' + network.be16(len(attributes)) + question[4:20] + attributes


def test_a_stun_server_tells_the_source_to_name(wire, daemon, home, address):
    house = daemon(anna='require_source = yes')
    uri = house.uri('anna', address) + '&open=tcp/2222'
    done = run(wire, home, '--wait', '1', uri)
    assert done.code == 1 and 'no source is named' in done.err
    house.says('refused anna ')
    host = '[fd00:9::3]' if ':' in address else '10.9.0.3'
    with answering(wire.stranger, 3478, stun_answer):
        assert run(wire, home, '--source', 'stun:' + host, uri) == (0, '', '')
    assert wire.client.connects(address)


def test_a_stun_server_that_is_silent_is_a_sentence(wire, knockd, home):
    done = run(wire, home, '--source', 'stun:10.9.0.3:3479', wrong_uri(knockd, '10.9.0.1'))
    assert done == (1, '', 'knock: 10.9.0.3 does not say which address it sees; ask another STUN '
                    'server, or give --source ADDRESS\n')


def sntp_answer(question, peer):
    stamp = knock.struct.pack('>II', int(time.time()) + 87 + 2208988800, 0)
    return b'\x24\2' + bytes(22) + question[40:48] + stamp + stamp


def http_answer(question, peer):
    date = time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(time.time() - 600))
    return ('HTTP/1.0 200 OK\r\nServer: x\r\nDate: %s\r\n\r\n' % date).encode()


@pytest.mark.parametrize('port, kind, answer, words', (
    (123, network.socket.SOCK_DGRAM, sntp_answer, '8[67] s behind that'),
    (80, network.socket.SOCK_STREAM, http_answer, '600 s ahead of that|601 s ahead of that')),
    ids=('SNTP', 'HTTP'))
def test_a_clock_that_is_off_is_said(wire, knockd, home, port, kind, answer, words):
    with answering(wire.stranger, port, answer, kind):
        done = run(wire, home, '--wait', '1', '--time-check', '10.9.0.3',
                   wrong_uri(knockd, '10.9.0.1'))
    assert done.code == 1
    assert re.search(r'; this clock is (%s) of 10\.9\.0\.3;|; this clock is (%s)' % (words, words),
                     done.err), done.err


# --- COMMAND -------------------------------------------------------------------------------------
@pytest.fixture
def box(wire, knockd, visitor, home):
    """The visitor's line, saved as box."""
    run(wire, home, 'save', 'box', stdin=knockd.uri(visitor, '10.9.0.1') + '&open=tcp/2222')
    return 'box'


CONNECT = 'import socket, sys; socket.create_connection(("10.9.0.1", int(sys.argv[1])))'


def test_a_command_runs_when_the_door_is_open_and_its_exit_code_is_ours(wire, home, box):
    done = run(wire, home, box, '--', 'sh', '-c', '"$0" -Ic "$1" 2222 && cat && exit 9',
               sys.executable, CONNECT, stdin='words')
    assert done == (9, 'words', '')


@pytest.mark.parametrize('number', (signal.SIGKILL, signal.SIGTERM))
def test_a_command_that_a_signal_ended_is_128_and_its_number(wire, home, box, number):
    done = run(wire, home, box, '--', 'sh', '-c', 'kill -%d $$' % number)
    assert done == (128 + number, '', '')


@pytest.mark.parametrize('number', (signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
def test_a_signal_reaches_the_command(wire, home, box, number):
    script = ('trap "echo got it; exit 3" %d; echo ready; '
              'for _ in $(seq 50); do sleep 0.1; done' % number)
    process = subprocess.Popen(
        wire.client.command(sys.executable, KNOCK, box, '--', 'sh', '-c', script), env=home,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))       # not as nohup left it
    with process.stdout:
        assert process.stdout.readline() == b'ready\n'
        process.send_signal(number)
        assert process.stdout.read() == b'got it\n'
    assert process.wait() == 3


def test_nohup_holds_for_the_command_too(wire, home, box):
    done = wire.client.run('sh', '-c', 'trap "" HUP; exec "$@"', 'sh', sys.executable, KNOCK, box,
                           '--', 'sh', '-c', 'kill -HUP $PPID; kill -HUP $$; echo alive', env=home)
    assert done == (0, 'alive\n', '')


def test_a_command_that_is_not_there_is_a_sentence(wire, home, box):
    done = run(wire, home, box, '--', 'no-such-program')
    assert done.code == 1
    assert re.match(r'knock: no-such-program: No such file or directory[^\n]*\n$', done.err)


def test_a_command_does_not_run_when_nothing_opened(wire, knockd, home, tmp_path):
    done = run(wire, home, '--wait', '1', wrong_uri(knockd, '10.9.0.1'), '--', 'touch',
               str(tmp_path / 'ran'))
    assert done.code == 1 and not (tmp_path / 'ran').exists()


def test_a_command_after_a_knock_that_cannot_be_checked_waits_a_moment(wire, knockd, visitor,
                                                                       home):
    home['KNOCK_URI'] = knockd.uri(visitor, '10.9.0.1')
    script = 'import time; print(time.time()); ' + CONNECT
    done = run(wire, home, '--', sys.executable, '-Ic', script, '2222')
    assert (done.code, done.err) == (0, '')
    waited = float(done.out) - os.stat(knockd.log).st_mtime
    assert 0.3 < waited < 5, 'since the daemon wrote that it is open'


SESSION = """
import socket, sys, time
lost, end = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try:
        with socket.create_connection(('10.9.0.1', 2222), 1) as connection:
            connection.sendall(b'GET / HTTP/1.0')
            lost += connection.recv(100) != b'HTTP/1.0 204 No Content'
    except OSError:
        lost += 1
    time.sleep(0.1)
print(lost)
"""


@pytest.fixture
def web(services):
    """The hidden port answers requests."""
    over = []
    services[HIDDEN].settimeout(0.2)

    def serve():
        while not over:
            try:
                end, _ = services[HIDDEN].accept()
            except OSError:
                continue                        # nobody came
            with end:
                end.settimeout(5)
                if end.recv(100):               # a probe asks for nothing
                    end.sendall(b'HTTP/1.0 204 No Content')
    thread = threading.Thread(target=serve)
    thread.start()
    yield
    over.append(True)
    thread.join()


@pytest.mark.kernel
def test_keep_holds_a_10_second_opening_open_for_a_session(wire, daemon, web, home):
    house = daemon('open_for = 10s', anna='')
    home['KNOCK_URI'] = house.uri('anna', '10.9.0.1') + '&open=tcp/2222'
    done = run(wire, home, '--keep', '--', sys.executable, '-Ic', SESSION, '60', timeout=90)
    assert done == (0, '0\n', '')
    assert until(lambda: not wire.client.connects('10.9.0.1'), 12), 'and no longer'


def test_keep_knocks_again_before_the_time_is_up(wire, daemon, web, home):
    house = daemon(anna='')
    home['KNOCK_URI'] = house.uri('anna', '10.9.0.1') + '&open=tcp/2222'
    done = run(wire, home, '--for', '2', '--keep', '--', sys.executable, '-Ic', SESSION, '2.5')
    assert done == (0, '0\n', '')
    assert 2 <= house.count('open anna 10.9.0.2 tcp/2222 2s') <= 4


def test_less_time_than_was_asked_for_is_told_on_both_sides(wire, daemon, web, home):
    house = daemon(anna='')
    home['KNOCK_URI'] = house.uri('anna', '10.9.0.1') + '&open=tcp/2222'
    done = run(wire, home, '-v', '--for', '2h')
    assert done.code == 0 and 'no more than its max_open_for, by default 1h' in done.err
    assert house.says('open anna 10.9.0.2 tcp/2222 3600s (7200s asked) udp')
    assert 'max_open_for' not in run(wire, home, '-v', '--for', '1h').err


# --- shell without Python ------------------------------------------------------------------------
@pytest.fixture(params=('bash', 'nc'))
def bare_path(request, tmp_path):
    """A PATH with a plain shell, and one of the two that can send."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('sh', 'tail', 'sleep', request.param):
        (folder / name).symlink_to(shutil.which(name))
    return dict(environment(), PATH=str(folder))


def by_shell(wire, home, path, *arguments):
    """Prints the line here, runs it on the client; the exit code and words of the shell."""
    line = run(wire, home, '--print=sh', *arguments)
    assert line.code == 0 and line.out.count('\n') == 1, line
    assert 'python' not in line.out
    nsenter = wire.client.command('env', '-i', 'PATH=' + path['PATH'], path['PATH'] + '/sh', '-c',
                                  line.out)
    process = subprocess.Popen(nsenter, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=30)
    assert (out, err) == (b'', b'')


@pytest.mark.kernel
def test_a_line_of_shell_performs_the_knock(wire, knockd, visitor, home, bare_path, address):
    by_shell(wire, home, bare_path, '--open', 'tcp/2222', knockd.uri(visitor, address))
    assert wire.client.reaches(address)
    knockd.says('open %s ' % visitor)


@pytest.mark.kernel
def test_every_byte_survives_the_shell(wire, home, bare_path, address):
    """A line feed and a zero byte make no second datagram."""
    datagram = bytes(range(256)) * 4
    with wire.capture(wire.client) as capture:
        wire.client.must('env', '-i', 'PATH=' + bare_path['PATH'], bare_path['PATH'] + '/sh', '-c',
                         knock.shell_datagram(address, 40007, datagram))
        assert until(lambda: capture.datagrams(40007)) == [datagram]


@pytest.mark.kernel
def test_a_line_of_shell_touches_the_ports(wire, knockd, visitor, home, bare_path):
    by_shell(wire, home, bare_path, '--via', 'ports', knockd.uri(visitor, '10.9.0.1'))
    knockd.says('open %s 10.9.0.2 tcp/2222' % visitor)
    assert wire.client.connects('10.9.0.1', HIDDEN)


@pytest.mark.parametrize('via', ('syn', 'icmp'))
def test_what_no_shell_can_send_is_usage(wire, knockd, home, via):
    done = run(wire, home, '--print=sh', '--via', via, knockd.uri('fence', '10.9.0.1'))
    assert done.code == 2 and re.match(r'knock: [^\n]+\n$', done.err)


# --- usage ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('arguments', (
    ('--keep', 'box'), ('--proxy', '22', 'box', '--', 'true'),
    ('--proxy', '22', '--wait', '0', 'box'), ('--proxy', '22', '--close', 'box'),
    ('--via', 'ports', '--keep', 'box', '--', 'true'), ('--for', '5x', 'box'),
    ('--open', 'tcp', 'box'), ('--source', 'stun:x:65536', 'box'), ('--port', '0', 'box'), ()))
def test_options_that_do_not_go_together_are_usage(wire, knockd, home, box, arguments):
    done = run(wire, home, *arguments)
    assert done.code == 2 and re.match(r'knock: [^\n]+\n$', done.err), done


def test_closed_streams_keep_nobody_out(wire, home, box):
    done = wire.client.run('sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh', sys.executable, KNOCK, box,
                           env=home)
    assert done.code == 0
    assert wire.client.connects('10.9.0.1')


def test_help_is_grouped_and_has_examples(wire, home):
    done = run(wire, home, '--help')
    assert done.code == 0 and 'ProxyCommand' in done.out and '--print=sh' in done.out
