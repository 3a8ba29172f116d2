"""The knock:// line: what knockd.py prints, what people paste, and what must not be believed."""
import random
import types

import pytest

import knock
import knockd

SECRET = bytes(range(32))
TEXT = 'AAAQEAYEAUDAOCAJBIFQYDIOB4IBCEQTCQKRMFYYDENBWHA5DYPQ'
SHORTEST = knock.Address('laptop', SECRET, 'h', None, 'id', 'udp', (), False)
LINE = 'knock://laptop:%s@h?id=id' % TEXT


def line(name='laptop', secret=TEXT, host='h', query='id=id'):
    return 'knock://%s:%s@%s?%s' % (name, secret, host, query)


def written(address):
    """The line that knockd.py prints for such a client of such a server."""
    config = types.SimpleNamespace(host=address.host, port=address.port, id=address.server_id)
    client = types.SimpleNamespace(name=address.name, secret=address.secret, code=False,
                                   default=address.services, once=address.once)
    return knockd.client_line(config, client, address.via)


def refusal(text):
    """What parse_uri() says against a line: a sentence that gives nothing of the secret away."""
    with pytest.raises(knock.KnockError) as caught:
        knock.parse_uri(text)
    message = str(caught.value)
    assert caught.value.status == 2
    assert message and len(message.splitlines()) == 1 and message.isprintable()
    assert not tells_the_secret(message), message
    return message


def tells_the_secret(message):
    """True if more than a third of the secret, 17 characters, stands there in one piece."""
    message = message.upper()
    return any(TEXT[i:i + 17] in message for i in range(len(TEXT) - 16))


# --- reading ------------------------------------------------------------------------------------
def test_the_shortest_line_has_the_defaults():
    assert knock.parse_uri(LINE) == SHORTEST


@pytest.mark.parametrize('text, changes', [
    (line(host='h:62201'), dict(port=62201)),
    (line(host='h:1'), dict(port=1)),
    (line(host='h:65535'), dict(port=65535)),
    (line(host='[2001:db8::1]'), dict(host='2001:db8::1')),
    (line(host='[2001:db8::1]:9'), dict(host='2001:db8::1', port=9)),
    (line(host='[fe80::1%25eth0]'), dict(host='fe80::1%eth0')),
    (line(host='192.0.2.1'), dict(host='192.0.2.1')),
    (line(host='h/'), dict()),
    (line(name='A.b_c-9'), dict(name='A.b_c-9')),
    (line(name='n' * 64), dict(name='n' * 64)),
    (line(query='id=' + 'i' * 64), dict(server_id='i' * 64)),
    (line(query='id=id&via=udp'), dict()),
    (line(query='id=id&via=icmp'), dict(via='icmp')),
    (line(query='id=id&via=syn'), dict(via='syn')),
    (line(query='id=id&via=ports'), dict(via='ports')),
    (line(query='id=id&via=code'), dict(via='code')),
    (line(query='id=id&via=paper'), dict(via='paper')),
    (line(query='id=id&once=1'), dict(once=True)),
    (line(query='id=id&once=0'), dict()),
    (line(query='once=1&id=id'), dict(once=True)),
    (line(query='id=id&open=tcp/22'), dict(services=((6, 22, 22),))),
    (line(query='id=id&open=udp/1-9,tcp/22'), dict(services=((17, 1, 9), (6, 22, 22)))),
    (line(query='id=id&open=tcp%2f22'), dict(services=((6, 22, 22),))),
    (line(query='id=%69d'), dict()),
    (line(secret=TEXT.lower()), dict()),
    (line(secret=TEXT[:26] + '%20' + TEXT[26:]), dict()),
    (line(secret=TEXT[:26] + '-' + TEXT[26:]), dict()),
    (' \t' + LINE + '\r\n', dict()),
])
def test_what_a_line_means(text, changes):
    assert knock.parse_uri(text) == SHORTEST._replace(**changes)


# --- refusing -----------------------------------------------------------------------------------
@pytest.mark.parametrize('text', [
    '', ' ', 'knock', 'knock://', 'laptop', TEXT, 'laptop:' + TEXT, 'http://' + LINE[8:],
    'KNOCK://' + LINE[8:], 'knock:/' + LINE[8:], 'xknock://' + LINE[8:], LINE + '#fragment',
    LINE + '\n' + LINE, LINE.replace('?', ''), LINE.split('?')[0], LINE.split('@')[0],
    line(host='u@h'), line(host=''), line(host=':22'), line(host='h:port'), line(host='h/path'),
    line(host='2001:db8::1'), line(host='[2001:db8::1'), line(host='2001:db8::1]'),
    line(host='[]'), line(host='h:22:22'), line(host='h:-1'), line(host='h:123456'),
    line(name=''), line(name='a:b'),
], ids=repr)
def test_what_is_no_line_at_all_is_refused(text):
    refusal(text)


@pytest.mark.parametrize('text, part', [
    (line(name='a%2Fb'), 'name'), (line(name='a b'), 'name'), (line(name='\u00e9'), 'name'),
    (line(name='n' * 65), 'name'), (line(name='a%0A'), 'name'), (line(name='a\n'), 'name'),
    (line(name='%FF'), 'name'), (line(name='a%'), 'name'), (line(name='%zz'), 'name'),
    (line(name='[n]'), 'name'), (line(name='lap%FFtop'), 'name'), (line(name='%256E'), 'name'),
    (line(query='id='), 'id'), (line(query='id'), 'id'), (line(query='id=' + 'i' * 65), 'id'),
    (line(query='id=a/b'), 'id'), (line(query='id=a%20b'), 'id'), (line(query='id=\u0131d'), 'id'),
    (line(query='id=a%0A'), 'id'), (line(query='via=udp'), 'id'), (line(query='id=a=b'), 'id'),
    (line(query='id=%2569d'), 'id'),
    (line(host='h:0'), 'port'), (line(host='h:65536'), 'port'), (line(host='h:99999'), 'port'),
    (line(query='id=id&via='), 'via'), (line(query='id=id&via=tcp'), 'via'),
    (line(query='id=id&via=UDP'), 'via'), (line(query='id=id&via=udp,icmp'), 'via'),
    (line(query='id=id&once='), 'once'), (line(query='id=id&once=2'), 'once'),
    (line(query='id=id&once=yes'), 'once'),
    (line(host='h%20h'), 'host'), (line(host='h h'), 'host'), (line(host='h\u00e9'), 'host'),
    (line(host='h%00'), 'host'), (line(host='h%0Ah'), 'host'), (line(host='%5B%5D'), 'host'),
    (line(host='h%2Fh'), 'host'), (line(host='h' * 256), 'host'), (line(host='%5Bh'), 'host'),
    (line(host='a%5D%5Bb'), 'host'), (line(host='-e'), 'host'), (line(host='%2De'), 'host'),
    (line(host='*'), 'host'), (line(query='id=*'), 'id'),
], ids=repr)
def test_a_line_with_a_wrong_part_is_refused_by_the_name_of_the_part(text, part):
    assert part in refusal(text).split()


@pytest.mark.parametrize('text', [
    line(query=''), line(query='&id=id'), line(query='id=id&'), line(query='id=id&id=id'),
    line(query='id=id&open=tcp/22&open=tcp/80'), line(query='id=id&port=22'),
    line(query='ID=id'), line(query='id=id&=x'), line(query='id=id;once=1'),
    line(query='%69d=id'), line(query='id=id&once=1&once=1'), line(query='id=id&open=tcp'),
    line(query='id=id&open=tcp/0'), line(query='id=id&open=tcp/22+udp/53'),
    line(query='id=id&open=tcp/22,'), line(query='id=id?once=1'),
], ids=repr)
def test_a_query_with_strangers_repeats_or_nonsense_is_refused(text):
    refusal(text)


@pytest.mark.parametrize('secret', [
    TEXT[:-1], TEXT + 'A', TEXT[:-1] + 'R', TEXT[:-1] + '1', TEXT + '%0A', TEXT + '%3D%3D%3D%3D',
    TEXT[:-1] + '%C3%A9', TEXT[:-1] + '%FF', TEXT[:20] + '%09' + TEXT[20:], 'secret',
    '[' + TEXT + ']', TEXT.replace('I', '\u0131'), '%', TEXT[:-1] + '\ud800', TEXT[:-1] + '\udc80',
], ids=ascii)
def test_a_secret_that_is_wrong_is_refused_and_not_repeated(secret):
    assert 'secret' in refusal(line(secret=secret))


@pytest.mark.parametrize('text', [
    'knock://laptop@h?' + TEXT, 'knock://laptop:x@h?' + TEXT, 'knock://laptop:x@h?%s=1' % TEXT,
    'knock://laptop:x@h?id=id&' + TEXT.lower(), 'knock://laptop:x@h?id=id&via=' + TEXT,
    'knock://laptop:x@h?id=' + TEXT * 2, 'knock://%s:x@h?id=id' % (TEXT * 2),
    'knock://laptop:%s@h?id=id&open=%s' % (TEXT, TEXT), 'knock://laptop:x@%s:0?id=id' % TEXT,
], ids=repr)
def test_a_secret_in_the_wrong_place_is_not_repeated_either(text):
    refusal(text)


WHOLE = line(query='id=id&open=tcp/22')


@pytest.mark.parametrize('text, told', [
    ('\ufeff' + WHOLE, 'byte order mark'), (WHOLE.encode().decode('utf-16', 'replace'), 'knock://'),
    (WHOLE.encode('utf-16').decode('utf-8', 'replace'), 'byte order mark'),
    ('"%s"' % WHOLE, 'quotation marks'), ("'" + WHOLE, 'quotation marks'),
    (WHOLE + '"', 'quotation marks'), ('\u201c%s\u201d' % WHOLE, 'quotation marks'),
    ('<%s>' % WHOLE, 'quotation marks'), ('`%s`' % WHOLE, 'quotation marks'),
    (WHOLE.replace('&', '&amp;'), 'HTML'), (WHOLE.replace('&', '&#38;'), 'HTML'),
    ('the line: ' + WHOLE, 'stands before'), (WHOLE + '\n' + WHOLE, 'second line'),
    (WHOLE[:30], 'cut'), (WHOLE.partition('@')[0], 'cut'), (WHOLE.partition('?')[0], 'cut'),
    (WHOLE + ',', 'cut'), (WHOLE[:WHOLE.index('&') + 1], 'cut'),
    (WHOLE[:WHOLE.index('?') + 1], 'cut'),
    (line(secret=TEXT[:-2]), '52 characters'), ('', 'not a knock:// line')], ids=ascii)
def test_a_line_that_was_pasted_badly_is_told_apart(text, told):
    assert told in refusal(text)


# --- writing ------------------------------------------------------------------------------------
def test_what_is_written_is_read_back():
    chance = random.Random(1)
    for _ in range(400):
        address = random_address(chance)
        text = written(address)
        assert knock.parse_uri(text) == address
        assert written(knock.parse_uri(text)) == text
        assert text.isprintable() and ' ' not in text and text.startswith('knock://')


def random_address(chance):
    def word(letters, longest):
        return ''.join(chance.choice(letters) for _ in range(chance.randint(1, longest)))

    letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-'
    host = chance.choice([word(letters, 255).lstrip('-') or 'h',
                          '192.0.2.%d' % chance.randrange(256),
                          '2001:db8::%x' % chance.getrandbits(16),
                          'fe80::%x%%%s' % (chance.getrandbits(16), word(letters, 15))])
    ports = [sorted(chance.randint(1, 65535) for _ in 'ab') for _ in range(chance.randint(0, 4))]
    services = tuple(knockd.Service(chance.choice((6, 17)), low, high) for low, high in ports)
    return knock.Address(
        word(letters, 64), bytes(chance.getrandbits(8) for _ in range(32)), host,
        chance.choice([None, chance.randint(1, 65535)]), word(letters, 64),
        chance.choice(knockd.CARRIERS), services, chance.choice([True, False]))


# --- noise --------------------------------------------------------------------------------------
NOISE = list('@?:/&=#%[],- \n\r\t\0\x1b\x85\xa0\u0131\u2028\ud800\udcff\U0001f511') + [
    '%00', '%0A', '%FF', '%5B', '%5D', '%25', '%2F', '%3A', '%40', '%', '%4', 'knock://', TEXT,
    '&id=', '&open=', 'tcp/22', '&via=', '&once=', ':', ':0', ':99999', '\u0663', 'A', '9' * 20]


def test_noise_is_a_knock_error_or_a_line_that_can_be_written_again():
    chance = random.Random(2)
    full = line(host='[2001:db8::1]:62201', query='id=server&via=icmp&open=tcp/22,udp/53&once=1')
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        text = mutated(chance, chance.choice([LINE, full]))
        try:
            address = knock.parse_uri(text)
        except knock.KnockError:
            refusal(text)
            outcomes[False] += 1
        else:
            assert knock.parse_uri(written(address)) == address
            outcomes[True] += 1
    assert outcomes[True] > 20 and outcomes[False] > 2000       # both were really seen


def mutated(chance, text):
    """A line with one to four changes: something put in, cut out, doubled or moved."""
    for _ in range(chance.randint(1, 4)):
        here, there = sorted(chance.randint(0, len(text)) for _ in 'ab')
        kind = chance.randrange(5)
        if kind < 2:
            text = text[:here] + chance.choice(NOISE) + text[here:]
        elif kind == 2:
            text = text[:here] + text[here + chance.randint(1, 3):]
        elif kind == 3:
            text = text[:there] + text[here:]
        else:
            text = text[:here] + chance.choice(NOISE) + text[there:]
    return text
