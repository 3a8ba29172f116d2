"""`knock.py page`: the file in real headless browsers, one tap, a real knockd.py."""

import json
import os
import re
import select
import subprocess
import sys
import threading
import time

import pytest

import knock
from carriers import tool
from network import HIDDEN, KNOCK, environment, until

pytestmark = pytest.mark.browser


class Browser:
    """What a person does with either: go() and run(), as the browser knows them."""

    def visit(self, url):
        self.go(url)
        assert until(lambda: self.run('document.readyState + !!document.getElementById("go")')
                     == 'completetrue')

    def tap(self):
        """Taps the button; returns what the page says in the end."""
        self.run('document.getElementById("go").click()')
        idle = 'document.getElementById("go").getAttribute("aria-disabled") === "false"'
        assert until(lambda: self.run(idle), 40), self.said()
        return self.said()

    def said(self):
        return self.run('document.getElementById("said").textContent')


class Chromium(Browser):
    """A browser in a namespace, led through --remote-debugging-pipe (Chrome DevTools Protocol)."""

    def __init__(self, namespace, folder):
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()
        argv = namespace.command(
            'bash', '-c', 'exec 3<&%d 4>&%d; exec "$@"' % (to_read, from_write), 'bash',
            tool('chromium'), '--headless=new', '--no-sandbox', '--disable-gpu',
            '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
            '--user-data-dir=%s/profile' % folder, '--remote-debugging-pipe', 'about:blank')
        self.process = subprocess.Popen(
            argv, env=dict(environment(), HOME=str(folder)), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[to_read, from_write])
        os.close(to_read)
        os.close(from_write)
        self.number, self.buffer, self.session = 0, b'', None
        targets = until(lambda: [target for target in self.ask('Target.getTargets')['targetInfos']
                                 if target['type'] == 'page'])
        self.session = self.ask('Target.attachToTarget', targetId=targets[0]['targetId'],
                                flatten=True)['sessionId']

    def ask(self, method, **params):
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b'\0')
        while True:
            answer = self.message()
            if answer.get('id') == self.number:
                assert 'result' in answer, answer
                return answer['result']

    def message(self):
        while b'\0' not in self.buffer:
            assert select.select([self.from_read], [], [], 30)[0], 'the browser is silent'
            data = os.read(self.from_read, 1 << 16)
            assert data, 'the browser has ended'
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(text.decode())

    def run(self, script):
        """The value of an expression in the page."""
        result = self.ask('Runtime.evaluate', expression=script, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def go(self, url):
        self.ask('Page.navigate', url=url)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.to_write)
        os.close(self.from_read)


class Firefox(Browser):
    """The same for Firefox, through Marionette: LENGTH:[type, number, command, parameters]."""

    def __init__(self, namespace, folder):
        (folder / 'profile').mkdir()
        self.process = subprocess.Popen(
            namespace.command(tool('firefox-esr'), '--headless', '--marionette', '--no-remote',
                              '--profile', '%s/profile' % folder, 'about:blank'),
            env=dict(environment(), HOME=str(folder)), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket = until(lambda: namespace.connection('127.0.0.1', 2828), 60)
        self.socket.settimeout(60)
        self.number, self.buffer = 0, b''
        self.message()                                      # what it is
        self.ask('WebDriver:NewSession', capabilities={})

    def ask(self, command, **parameters):
        self.number += 1
        text = json.dumps([0, self.number, command, parameters])
        self.socket.sendall(('%d:%s' % (len(text), text)).encode())
        _, _, error, result = self.message()
        assert error is None, error
        return result

    def message(self):
        while b':' not in self.buffer:
            self.more()
        length, _, self.buffer = self.buffer.partition(b':')
        while len(self.buffer) < int(length):
            self.more()
        text, self.buffer = self.buffer[:int(length)], self.buffer[int(length):]
        return json.loads(text.decode())

    def more(self):
        data = self.socket.recv(1 << 16)
        assert data, 'the browser has ended'
        self.buffer += data

    def run(self, script):
        return self.ask('WebDriver:ExecuteScript', script='return ' + script, args=[])['value']

    def go(self, url):
        self.ask('WebDriver:Navigate', url=url)

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def browser(wire, tmp_path_factory):
    """A new one each time: a browser keeps connections, which live on when a port is hidden."""
    made = Chromium(wire.client, tmp_path_factory.mktemp('chromium'))
    yield made
    made.close()


@pytest.fixture(params=(Chromium, Firefox), ids=('Chromium', 'Firefox'))
def either(request, wire, tmp_path_factory):
    """One browser, then the other."""
    made = request.param(wire.client, tmp_path_factory.mktemp('browser'))
    yield made
    made.close()


@pytest.fixture(scope='module')
def web(services):
    """What is hidden answers HTTP."""
    over = []
    services[HIDDEN].settimeout(0.2)

    def serve():
        while not over:
            try:
                end, _ = services[HIDDEN].accept()
            except OSError:
                continue
            with end:
                try:
                    end.settimeout(2)
                    end.recv(1000)
                    end.sendall(b'HTTP/1.0 204 No Content\r\n\r\n')
                except OSError:
                    continue                # a probe that is gone
    thread = threading.Thread(target=serve)
    thread.start()
    yield
    over.append(True)
    thread.join()


@pytest.fixture
def house(wire, daemon, web):
    return lambda: daemon('open_for = 3s', phone='')


def write_page(house, address, path, name='phone'):
    """The page of a client, as a file; its address as a URL."""
    line = house.uri(name, address) + '&open=tcp/%d' % HIDDEN
    made = house.namespace.run(sys.executable, KNOCK, 'page', line)
    assert made.code == 0, made.err
    path.write_text(made.out)
    return 'file://%s' % path


def spent_step(house):
    """The step of the sequence that was honoured, as the server's ledger has it."""
    with open(house.ledger) as ledger:
        return int(re.findall('"ports:([0-9]+)"', ledger.read())[-1])


def is_refused(house, step):
    """Has the phone's sequence of this step a port that browsers refuse?"""
    keys = knock.derive_keys(house.secrets['phone'], house.server_id)
    return bool(set(knock.step_ports(keys, step)) & set(knock.REFUSED_PORTS))


@pytest.mark.kernel
def test_one_tap_opens(wire, house, either, address, tmp_path):
    made = house()
    either.visit(write_page(made, address, tmp_path / 'knock.html'))
    assert either.run('document.getElementById("link").hidden') is True
    assert either.tap() == 'Open: port %d answers.' % HIDDEN
    made.says('open phone ')
    assert either.run('document.getElementById("link").hidden') is False
    assert not wire.stranger.connects(address)


@pytest.mark.kernel
def test_from_a_web_server_too(wire, house, either, address, tmp_path):
    made = house()
    write_page(made, address, tmp_path / 'knock.html')
    server = wire.client.start(sys.executable, '-m', 'http.server', '8099', '--bind', '127.0.0.1',
                               '--directory', str(tmp_path))
    with server:
        assert until(lambda: wire.client.connects('127.0.0.1', 8099))
        either.visit('http://127.0.0.1:8099/knock.html')
        assert either.tap() == 'Open: port %d answers.' % HIDDEN


@pytest.mark.kernel
@pytest.mark.parametrize('verdict', ('drop', 'reject with icmpx type admin-prohibited'),
                         ids=('drops', 'rejects'))
def test_on_boxes_that_drop_and_that_reject(wire, house, either, address, tmp_path, verdict):
    made = house()
    wire.server.nft('''table inet box {
        chain input {
            type filter hook input priority 0
            ct state established,related accept
            meta l4proto ipv6-icmp accept
            tcp dport 2222 meta mark & 0xff000000 != 0 accept
            tcp dport 1024-65535 tcp dport != 2222 %s
        }
    }''' % verdict)
    either.visit(write_page(made, address, tmp_path / 'knock.html'))
    assert either.tap() == 'Open: port %d answers.' % HIDDEN, made.text()


@pytest.mark.kernel
def test_twice_in_one_step_takes_the_next(wire, house, either, address, tmp_path):
    made = house()
    either.visit(write_page(made, address, tmp_path / 'knock.html'))
    for number in (1, 2):
        assert either.tap() == 'Open: port %d answers.' % HIDDEN
        made.says('open phone ', number)
        assert until(lambda: not wire.client.connects(address), 10)


@pytest.mark.kernel
@pytest.mark.parametrize('seconds', (40, -40))
def test_a_clock_that_is_40_seconds_off(wire, house, either, address, tmp_path, seconds):
    made = house()
    either.visit(write_page(made, address, tmp_path / 'knock.html'))
    either.run('(window.Date.now = (real => () => real() + %d)(window.Date.now)), 0' % (
        seconds * 1000))

    def now():
        return int((time.time() + seconds) * 1000)
    assert until(lambda: now() % 30000 < 27000)
    step = knock.step_of(now())
    assert either.tap() == 'Open: port %d answers.' % HIDDEN
    assert spent_step(made) == step + is_refused(made, step), 'it went by that clock'


@pytest.mark.kernel
def test_a_port_that_browsers_refuse_is_steered_around(wire, daemon, web, either, tmp_path):
    made = daemon('open_for = 3s', phone='')
    now = int(time.time() * 1000)
    step = knock.step_of(now + 3000)
    while True:
        made.secrets['phone'] = os.urandom(32)
        if is_refused(made, step):
            break
    made.write_config()
    made.reload()
    either.visit(write_page(made, '10.9.0.1', tmp_path / 'knock.html'))
    assert until(lambda: knock.step_of(int(time.time() * 1000)) >= step)
    assert either.tap() == 'Open: port %d answers.' % HIDDEN
    assert spent_step(made) != step


@pytest.mark.kernel
def test_what_did_not_open_is_not_said_to_be_open(wire, house, either, tmp_path):
    made = house()
    url = write_page(made, '10.9.0.1', tmp_path / 'knock.html')
    made.kill()
    either.visit(url)
    said = either.tap()
    assert said.startswith('No answer on port %d.' % HIDDEN) and 'clock' in said
    assert 'watch' in said


def test_a_screen_reader_is_told_what_there_is_and_what_changes(wire, house, browser, tmp_path):
    """As the browser hands it to one: a title, a heading, a button, and a live region."""
    browser.visit(write_page(house(), '10.9.0.1', tmp_path / 'knock.html'))

    def tree():
        return {node['role']['value']: node for node in
                browser.ask('Accessibility.getFullAXTree')['nodes'] if not node['ignored']}
    nodes = tree()
    names = {role: node.get('name', {}).get('value') for role, node in nodes.items()}
    assert names['RootWebArea'] == 'Open 10.9.0.1' and names['heading'] == '10.9.0.1'
    assert names['button'] == 'Open' and 'link' not in names, 'no link before it is open'
    live = {each['name']: each['value'].get('value') for each in nodes['status']['properties']}
    assert live['live'] == 'polite'
    assert browser.tap().startswith('Open: ')
    assert 'link' in tree()


def test_the_page_breaks_no_rule_of_its_policy(wire, house, browser, tmp_path):
    made = house()
    browser.visit(write_page(made, '10.9.0.1', tmp_path / 'knock.html'))
    style = 'getComputedStyle(document.querySelector("button")).fontWeight'
    assert browser.run(style) == '700', 'the style is applied'
    browser.ask('Emulation.setEmulatedMedia', features=[
        {'name': 'prefers-color-scheme', 'value': 'dark'}])
    dark = 'getComputedStyle(document.body).backgroundColor'
    assert browser.run(dark) == 'rgb(17, 17, 17)'
    browser.ask('Emulation.setEmulatedMedia', features=[])
