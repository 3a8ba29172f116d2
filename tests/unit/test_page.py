"""`knock.py page`: what the file holds, and that its own JavaScript computes the sequences."""
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import zlib

import pytest

import knock
import knockd
from test_vectors import LAPTOP, TOKENS

SECRET = bytes(range(32))
ADDRESS = knock.Address('phone', SECRET, 'box.example', None, 'a1b2c3d4e5f60718', 'ports',
                        (knock.Service(6, 8443, 8443),), False)

# What a browser gives the script, and the parts of the script that are looked at.
STUBS = """
const place = {addEventListener() {}, getAttribute() { return 'false' }, setAttribute() {}};
globalThis.document = {getElementById: () => place};
globalThis.location = {protocol: 'file:'};
"""


def page(**changes):
    link = changes.pop('link', None)
    return knock.page_text(ADDRESS._replace(**changes), LAPTOP, link)


def script_of(text):
    return re.search('<script>(.*)</script>', text, re.DOTALL).group(1)


def by_node(text, expression):
    """What the page's script gives for an expression."""
    node = shutil.which('node')
    if node is None:
        pytest.skip('node is not installed')
    code = STUBS + script_of(text) + '\nconsole.log(JSON.stringify(%s));\n' % expression
    return json.loads(subprocess.check_output([node, '-e', code]).decode())


def test_it_is_small_and_holds_one_key_and_not_the_secret():
    text = page()
    assert len(text.encode()) <= 12000
    assert LAPTOP['ports'].hex() in text
    assert knock.encode_secret(SECRET) not in text and SECRET.hex() not in text
    for label, key in LAPTOP.items():
        assert label == 'ports' or key.hex() not in text
    assert not re.search('@[A-Z_]+@', text)
    assert text.isascii() if hasattr(text, 'isascii') else True


def test_its_policy_allows_its_own_script_and_style_and_the_knock_alone():
    text = page()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text).group(1)
    rules = dict(rule.split(None, 1) for rule in policy.split('; '))
    assert rules.pop('default-src') == rules.pop('base-uri') == rules.pop('form-action') == "'none'"
    assert rules.pop('connect-src') == 'http://box.example:* https://box.example:*'
    for rule, tag in (('script-src', 'script'), ('style-src', 'style')):
        inner = re.search('<%s>(.*)</%s>' % (tag, tag), text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert rules.pop(rule) == "'sha256-%s'" % digest
    assert rules == {}
    assert not re.search('(src|onclick|style|action)=', text)


@pytest.mark.parametrize('host, shown, may_reach', (
    ('192.0.2.1', '192.0.2.1', 'http: https:'), ('2001:db8::1', '[2001:db8::1]', 'http: https:')))
def test_a_policy_knows_no_addresses(host, shown, may_reach):
    text = page(host=host)
    assert 'connect-src %s;' % may_reach in text and "HOST = '%s'" % shown in text


@pytest.mark.parametrize('services, once, link, look', (
    ('tcp/22', False, 'ssh://box.example', 0), ('tcp/443', False, 'https://box.example/', 443),
    ('tcp/8443', False, 'http://box.example:8443/', 8443), ('tcp/6667', False, None, 0),
    ('udp/51820', False, 'https://box.example/', 0), ('tcp/443', True, 'https://box.example/', 0)))
def test_it_looks_only_where_a_browser_may_and_a_look_does_no_harm(services, once, link, look):
    text = page(services=knock.parse_services(services), once=once)
    assert 'LOOK = %d,' % look in text
    assert link is None or 'href="%s"' % link in text


def test_the_link_may_be_chosen():
    assert 'href="ssh://me@box.example:2222"' in page(link='ssh://me@box.example:2222')


@pytest.mark.parametrize('link', ('', 'javascript:alert(1)', 'x', 'ssh://a"b', 'ssh://<b>',
                                  'data:x', "ssh://a'b", 'ssh://a b', 'vbscript:x', 'ssh://a&b'))
def test_a_link_that_is_none_is_refused(link, capsys):
    line = 'knock://x:%s@h?id=x&open=tcp/22' % knock.encode_secret(SECRET)
    assert knock.main(['page', line, link]) == 2
    said = capsys.readouterr()
    assert 'is no link' in said.err and not said.out


@pytest.mark.parametrize('words', (['--qr'], ['phone', '--qr'], ['--qr', 'phone', 'ssh://h']))
def test_no_page_fits_into_a_qr_code_and_it_says_what_to_do(words, capsys):
    most = 2953                 # bytes: ISO/IEC 18004, version 40, level L
    assert len(zlib.compress(page().encode(), 9)) > most
    assert knock.main(['page'] + words) == 2
    said = capsys.readouterr()
    assert 'no page fits into a QR code' in said.err and 'knockd.py show NAME --qr' in said.err
    assert not said.out


def test_its_javascript_computes_the_sequences_of_the_vectors():
    steps = [case['step'] for case in TOKENS['ports']]
    shown = by_node(page(), '%s.map(sequence)' % json.dumps(steps))
    assert shown == [case['ports'] for case in TOKENS['ports']]


@pytest.mark.kernel
@pytest.mark.parametrize('length', (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000))
def test_its_sha256_is_the_real_one(length):
    data = bytes(i * 7 % 256 for i in range(length))
    shown = by_node(page(), 'sha256(%s)' % list(data))
    assert bytes(shown) == hashlib.sha256(data).digest()


def test_no_step_is_used_twice_and_none_with_a_port_that_browsers_refuse():
    step = 56666666
    shown = by_node(page(), '[0, 1, 2, 3, 4, 5].map(() => { const step = chooseStep(%d); '
                            'used.push(step); return step; })' % (step * 30000 + 5))
    assert shown == [step, step + 1, step - 1, step + 2, step - 2, None]
    blocked = next(step for step in range(step, step + 10000)
                   if set(knockd.step_ports(LAPTOP, step)) & set(knock.REFUSED_PORTS))
    assert by_node(page(), 'chooseStep(%d)' % (blocked * 30000)) == blocked + 1


def test_browsers_refuse_the_ports_that_the_standard_lists():
    """fetch.spec.whatwg.org, "port blocking", from 1024 up."""
    high = [port for port in knock.REFUSED_PORTS if port > 1023]
    assert high == [1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566] + list(
        range(6665, 6670)) + [6679, 6697, 10080]


def test_page_reads_a_saved_line_and_a_fleets(tmp_path, monkeypatch, capsys):
    line = 'knock://x:%s@*?id=*&open=tcp/22' % knock.encode_secret(SECRET)
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = tmp_path / '.config' / 'knock'
    folder.mkdir(mode=0o700, parents=True)
    (folder / 'fleet').write_text(line)
    os.chmod(str(folder / 'fleet'), 0o600)
    assert knock.main(['page', 'fleet@web1']) == 0
    keys = knock.derive_keys(knock.fleet_secret(SECRET, 'web1'), 'web1')
    assert keys['ports'].hex() in capsys.readouterr().out
    assert knock.main(['page', 'fleet']) == knock.main(['page']) == 2
