"""What others write is not always as it should be: each of these once ended in an error that was
none of ours (found by tests/fuzz)."""

import json
import socket
import threading

import pytest

import knockd

CONFIG = knockd.parse_config('[server]\nid = box\nhide = tcp/22\n[client a]\nsecret = '
                             + knockd.encode_secret(bytes(range(32))), '/etc/knockd/knockd.ini')
INPUT = {'family': 'inet', 'table': 'filter', 'name': 'input', 'handle': 1, 'type': 'filter',
         'hook': 'input', 'prio': 0, 'policy': 'accept'}
TCP, UDP = (4, 6, 'new'), (4, 17, 'new')


def rule(*statements):
    return {'rule': {'family': 'inet', 'table': 'filter', 'chain': 'input', 'handle': 2,
                     'expr': list(statements)}}


def nft_seen(*rules):
    listing = {'nftables': [{'chain': INPUT}] + list(rules)}
    return knockd.NFT.read({'nft': json.dumps(listing)}, CONFIG)


def saved_seen(*lines):
    text = '*filter\n:INPUT ACCEPT [0:0]\n%s\nCOMMIT\n' % '\n'.join(lines)
    return knockd.IPTABLES.read({'iptables-save': text}, CONFIG)


DROP_UDP = rule({'match': {'op': '==', 'left': {'meta': {'key': 'l4proto'}}, 'right': 'udp'}},
                {'drop': None})


@pytest.mark.parametrize('strange', [
    rule('notrack of another time', {'accept': None}), rule({}, {'drop': None}),
    rule({'match': {'op': '==', 'left': 5}}, {'drop': None}), rule({'jump': None}),
    rule({'vmap': {'key': 5, 'data': {'set': [[1]]}}}), rule([]), rule(5)])
def test_a_rule_of_nft_that_cannot_be_read_hides_no_other_rule(strange):
    plain, beside = nft_seen(DROP_UDP), nft_seen(strange, DROP_UDP)
    assert plain.box.closed[UDP] == beside.box.closed[UDP] != nft_seen().box.closed[UDP]
    assert beside.box.closed[TCP] == plain.box.closed[TCP]


@pytest.mark.parametrize('strange', [
    '-A INPUT -p tcp --dport ssh -j DROP', '-A INPUT -j', '-A INPUT -p tcp -j REJECT --reject-with',
    '-A INPUT --dport 1:2:3 -j DROP', '-A INPUT -g'])
def test_a_rule_of_iptables_that_cannot_be_read_hides_no_other_rule(strange):
    drop = '-A INPUT -p udp -j DROP'
    plain, beside = saved_seen(drop), saved_seen(strange, drop)
    assert plain.box.closed[UDP] == beside.box.closed[UDP] != saved_seen().box.closed[UDP]
    assert beside.box.closed[TCP] == plain.box.closed[TCP]


def see(monkeypatch, tool, outputs):
    """The Seen of a box where the programs print these."""
    monkeypatch.setattr(knockd, 'has_lister', lambda program: program in outputs)
    monkeypatch.setattr(knockd, 'start', lambda argv: None)
    monkeypatch.setattr(knockd, 'finish', lambda process, argv, text: outputs.get(argv[0], ''))
    return knockd.see_box(tool, CONFIG)


@pytest.mark.parametrize('listing', [
    '', '{', '[]', '5', '{}', '{"nftables": 5}', '{"nftables": [5]}', '{"nftables": [{}]}',
    '[' * 9000, '{"nftables": [{"chain": {"prio": "x"}}, {"chain": {"name": 5}}]}'])
def test_what_is_no_listing_of_nft_is_one_sentence(listing, monkeypatch):
    with pytest.raises(knockd.KnockError, match='what nft lists cannot be read'):
        see(monkeypatch, knockd.NFT, {'nft': listing})


def test_what_is_no_listing_of_iptables_is_one_sentence(monkeypatch):
    with pytest.raises(knockd.KnockError, match='what iptables lists cannot be read'):
        see(monkeypatch, knockd.IPTABLES, {'iptables-save': '*filter\n:INPUT\n'})


@pytest.mark.parametrize('note', [
    '', '5', '[' * 9000, '{"state": "on trial", "left": 1e999, "mono": 1, "boot": ""}',
    '{"state": "on trial", "left": "600", "mono": 1, "boot": ""}', '{"state": []}'])
def test_a_note_of_the_probation_that_cannot_be_read_is_one_that_lapsed(tmp_path, note):
    path = tmp_path / 'probation'
    path.write_text(note)
    assert knockd.Probation(str(path), 5000000).state == knockd.LAPSED


def test_a_probation_whose_clock_went_back_does_not_grow(tmp_path):
    path = tmp_path / 'probation'
    path.write_text(knockd.probation_text(knockd.ON_TRIAL, 60000, 9000000, knockd.boot_id()))
    assert knockd.Probation(str(path), 5000000).left(5000000) == 60000


@pytest.mark.parametrize('answer', [
    b'', b'5', b'[]', b'{}', b'{"config": 5}', b'{"config": {"path": 5}}', b'[' * 9000, b'\xff'])
def test_an_answer_of_who_is_no_daemon_is_none(tmp_path, answer):
    path = str(tmp_path / 'box.sock')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)

        def reply():
            _, address = sock.recvfrom(16)
            sock.sendto(answer, address)
        thread = threading.Thread(target=reply)
        thread.start()
        assert knockd.asked(path, b'status') == {}
        thread.join()


@pytest.mark.parametrize('text', ['5', '[]', '[1]', '[' * 9000])
def test_a_note_of_the_last_knocks_that_cannot_be_read_is_none(tmp_path, monkeypatch, text):
    monkeypatch.setattr(knockd, 'runtime_folder', lambda: str(tmp_path))
    monkeypatch.setattr(knockd, 'status_socket', lambda config: None)
    (tmp_path / 'box.last').write_text(text)
    assert knockd.Desk(CONFIG, knockd.Moment(0, 0)).last == {}


@pytest.mark.parametrize('floor', ['-1', 'true', '1.5', '4611686018427387904'])
def test_a_number_of_the_ledger_that_is_none_is_named(floor):
    text = '{"knockd": 2, "id": "box", "floor": %s, "keys": {}}\n' % floor
    said = 'cannot be read: number ' + floor.replace('true', 'True')
    with pytest.raises(knockd.KnockError, match=said):
        knockd.parse_ledger(text, 'box')


def test_a_port_range_twice_is_malformed():
    item = bytes([1, 0, 5, 6, 0, 22, 0, 22])
    head = knockd.PLAIN.pack(1, 1, 1700000000000, bytes(16), 30)
    assert knockd.decode_plain(head + item).services == (knockd.Service(6, 22, 22),)
    with pytest.raises(knockd.KnockError, match='a port range twice'):
        knockd.decode_plain(head + item * 2)
