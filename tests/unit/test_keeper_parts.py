"""The keeper's parts, each by itself: what it needs, what it remembers, what it says for the boot.
Its thread: test_keeper_thread.py; the real firewall: tests/e2e/test_keeper.py."""
import collections
import errno
import json
import select
import socket
import struct
import threading
import types
from unittest import mock

import knockd
import pytest
from ruleset_event import message

Seen = collections.namedtuple('Seen', 'ours box accepts taken_ports decoys')
FINE = Seen('ours', 'accepts all', ([], []), set(), {})
CONFIG = knockd.parse_config('[server]\nid = home\nhide = tcp/22\n', '/nowhere/knockd.ini')
NOTHING_HIDDEN = CONFIG._replace(hide=())
WANTED = knockd.Wanted(1, CONFIG, ())


# --- which tool ---------------------------------------------------------------------------------
def test_a_listing_of_nft_that_fails_once_is_tried_again_and_not_given_up(monkeypatch):
    ran, waits = [], []

    def run(argv, text='', seconds=0):
        ran.append(argv)
        if len(ran) < 6:
            raise knockd.KnockError('busy')
        return 'nftables v1.0.6'
    monkeypatch.setattr(knockd, 'find_program', lambda name: '/sbin/' + name)
    monkeypatch.setattr(knockd, 'run', run)
    monkeypatch.setattr(knockd.time, 'sleep', waits.append)
    assert knockd.nft_flaw() == 'busy' and len(ran) == knockd.NFT_TRIES == 5
    assert waits == 5 * [0.2]
    assert knockd.nft_flaw() is None, 'as soon as it answers'
    assert ran[-2:] == [['nft', '--version'], ['nft', '-j', '-s', '-t', 'list', 'ruleset']]


def test_a_version_of_two_numbers_ends_in_0():
    assert knockd.version_flaw('nftables v1.0 (old)') == 'nft 1.0 is older than 1.0.2'
    assert knockd.version_flaw('nftables v1.1') is None


def test_where_the_kernel_has_no_nft_socket_no_rule_asks_for_sockets(monkeypatch):
    def run(argv, text='', seconds=0):
        if 'socket' in text:
            raise knockd.KnockError('Error: Could not process rule: No such file or directory')
        return 'nftables v1.0.6'
    monkeypatch.setattr(knockd, 'find_program', lambda name: name)
    monkeypatch.setattr(knockd, 'run', run)
    assert knockd.choose_tool(CONFIG) == (knockd.NFT_WITHOUT_SOCKETS, None)
    told = knockd.firewall_flaws(CONFIG._replace(hide=()))
    assert [key for key, flaw in told if 'kmod-nft-socket' in flaw] == ['firewall']
    assert not knockd.NFT_WITHOUT_SOCKETS.read({'nft': '{"nftables": []}'}, CONFIG).box.sockets
    assert knockd.NFT.read({'nft': '{"nftables": []}'}, CONFIG).box.sockets


@pytest.mark.parametrize('firewall,there,tool,said', [
    ('auto', {'nft'}, 'nft', None), ('nft', {'nft'}, 'nft', None),
    ('auto', {'iptables-save', 'ipset'}, 'iptables', 'nft is not installed'),
    ('iptables', {'nft', 'iptables-save', 'ipset'}, 'iptables', None)])
def test_the_tool_is_the_one_that_is_asked_for_or_that_is_there(
        monkeypatch, firewall, there, tool, said):
    monkeypatch.setattr(knockd, 'find_program', lambda name: name if name in there else None)
    monkeypatch.setattr(knockd, 'run', lambda argv, text='', seconds=0: 'nftables v1.0.6')
    found, why = knockd.choose_tool(CONFIG._replace(firewall=firewall))
    assert found is (knockd.NFT if tool == 'nft' else knockd.IPTABLES)
    assert why is None if said is None else said in why


@pytest.mark.parametrize('firewall,there,named', [
    ('nft', (), ['nft']), ('auto', (), ['iptables', 'instead of nft', 'nft is not']),
    ('iptables', (), ['iptables']), ('iptables', ('iptables-save',), ['ipset'])])
def test_what_is_missing_is_named_and_the_status_is_2(monkeypatch, firewall, there, named):
    monkeypatch.setattr(knockd, 'find_program', lambda name: name if name in there else None)
    with pytest.raises(knockd.KnockError) as caught:
        knockd.choose_tool(CONFIG._replace(firewall=firewall))
    assert caught.value.status == 2
    text = str(caught.value)
    assert text.startswith('/nowhere/knockd.ini: [server] firewall: ')
    assert all(each in text for each in named)
    assert ('instead of nft' in text) == (firewall == 'auto')


def test_what_the_tool_cannot_do_is_refused_by_name():
    class Tool:
        @staticmethod
        def flaws(config):
            return config
    assert knockd.suitable(knockd.NFT, CONFIG) is knockd.NFT
    once = CONFIG._replace(clients={'anna': None})
    Tool.flaws = staticmethod(lambda config: ['this', 'and that'] if config is once else [])
    assert knockd.suitable(Tool, CONFIG) is Tool
    with pytest.raises(knockd.KnockError) as caught:
        knockd.suitable(Tool, once)
    assert str(caught.value) == '/nowhere/knockd.ini: this\n/nowhere/knockd.ini: and that'
    assert caught.value.status == 2


def test_iptables_legacy_is_asked_only_where_the_kernel_has_its_tables(monkeypatch, tmp_path):
    names = tmp_path / 'names'
    monkeypatch.setattr(knockd, 'LEGACY_TABLES', {'iptables-legacy-save': str(names)})
    monkeypatch.setattr(knockd, 'find_program', lambda name: '/sbin/' + name)
    seen = []
    for text in (None, '\n', 'filter\n'):
        if text:
            names.write_text(text)
        seen.append((knockd.has_lister('iptables-legacy-save'), knockd.has_lister('nft'),
                     knockd.changes_silently(knockd.NFT)))
    assert seen == [(False, True, False), (False, True, False), (True, True, True)]
    names.write_text('')
    assert knockd.changes_silently(knockd.IPTABLES)
    monkeypatch.setattr(knockd, 'find_program', lambda name: None)
    names.write_text('filter\n')
    assert not knockd.has_lister('iptables-legacy-save')


def asked(fails, looks=None):
    """What see_box() hands on of nft and of iptables-save, when some of them fail."""
    def finish(process, argv, text):
        if argv[0] in fails:
            raise knockd.KnockError(argv[0] + ' failed')
        return 'listed by ' + argv[0]
    tool = types.SimpleNamespace(name='nft', read=lambda outputs, config: outputs)
    tool.list_commands = lambda has: [['nft', '-j'], ['iptables-save', '-c']]
    with mock.patch.multiple(knockd, start=lambda argv: argv, finish=finish):
        return knockd.see_box(tool, CONFIG, looks)


@pytest.mark.parametrize('looking', [False, True])
def test_a_listing_that_is_not_of_our_own_tool_may_fail(looking):
    whole = {'nft': 'listed by nft', 'iptables-save': 'listed by iptables-save'}
    looks = knockd.Looks() if looking else None
    assert asked((), looks) == whole
    assert asked(('iptables-save',), looks) == {'nft': 'listed by nft'}
    with pytest.raises(knockd.KnockError, match='nft failed'):
        asked(('nft',), looks)
    assert not looking or looks.process == ['iptables-save', '-c'] or looks.process == ['nft', '-j']


# --- what the kernel is told --------------------------------------------------------------------
@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """Plays /proc/sys."""
    values = dict.fromkeys(knockd.SYSCTLS, '0\n')
    monkeypatch.setattr(knockd, 'write_variable', values.__setitem__)
    read = knockd.read_file

    def played(path):
        if not path.startswith('/proc/sys/'):
            return read(path)
        if path[10:] not in values:
            raise FileNotFoundError(path)
        return values[path[10:]]
    monkeypatch.setattr(knockd, 'read_file', played)
    monkeypatch.setattr(knockd.os.path, 'exists', lambda path, old=knockd.os.path.exists:
                        str(path)[10:] in values
                        if str(path).startswith('/proc/sys/') else old(path))
    return values


def test_uninstall_puts_back_what_the_kernel_had_and_nothing_else(kernel, tmp_path):
    path = str(tmp_path / 'sysctls')
    assert knockd.reflect_marks(knockd.SYSCTLS, path)
    assert set(kernel.values()) == {'1'}
    note = json.loads(knockd.read_file(path))
    assert note == dict.fromkeys(knockd.SYSCTLS, '0')
    note['kernel/panic'] = '1'
    (tmp_path / 'sysctls').write_text(json.dumps(note))
    knockd.restore_marks(path)
    assert kernel == dict.fromkeys(knockd.SYSCTLS, '0')


def test_what_is_1_already_is_neither_written_nor_noted(kernel, tmp_path, monkeypatch):
    kernel.update(dict.fromkeys(knockd.SYSCTLS, '1\n'))
    monkeypatch.setattr(knockd, 'write_variable', None)
    assert knockd.reflect_marks(knockd.SYSCTLS, str(tmp_path / 'sysctls'))
    assert not (tmp_path / 'sysctls').exists()
    assert knockd.reflect_marks(('net/none',), str(tmp_path / 'x')), 'or is not there'


def test_a_kernel_that_cannot_be_told_is_told_of(kernel, tmp_path, monkeypatch):
    lines = []

    def refuse(name, value):
        raise OSError(errno.EROFS, 'Read-only file system', '/proc/sys/' + name)
    monkeypatch.setattr(knockd, 'write_variable', refuse)
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: lines.append(text))
    assert not knockd.reflect_marks(knockd.SYSCTLS, str(tmp_path / 'sysctls'))
    assert lines == ['/proc/sys/net/ipv4/fwmark_reflect: Read-only file system']
    knockd.restore_marks(str(tmp_path / 'gone'))
    (tmp_path / 'sysctls').write_text('no json')
    knockd.restore_marks(str(tmp_path / 'sysctls'))


def test_a_variable_of_the_kernel_is_written_as_it_is_named(tmp_path):
    path = tmp_path / 'value'
    path.write_text('0')
    knockd.write_variable('../..' + str(path), '1')
    assert path.read_text() == '1'


def test_a_variable_that_changes_is_told_once(kernel):
    kernel.update(dict.fromkeys(knockd.MADE_BY, '1\n'))
    looks = knockd.Looks()
    assert len(looks.variables) == len(knockd.SYSCTLS + knockd.MADE_BY)
    assert not looks.variables_changed()
    for name in knockd.SYSCTLS + knockd.MADE_BY:
        kernel[name] = '2\n'
        assert looks.variables_changed() and not looks.variables_changed()
    del kernel[knockd.MADE_BY[0]]
    assert looks.variables_changed()


# --- decoys -------------------------------------------------------------------------------------
class Socket:
    def __init__(self, port):
        self.port, self.open = port, True

    def close(self):
        self.open = False


@pytest.fixture
def bound(monkeypatch):
    """Plays the box's ports: [(port, Socket)] that were bound."""
    made = []

    def bind(port):
        if port in (2000, 3000):
            return None
        made.append(Socket(port))
        return made[-1]
    monkeypatch.setattr(knockd, 'bound_socket', bind)
    return made


def test_a_decoy_is_kept_while_it_is_wanted_and_nothing_forbids_it(bound):
    decoys = knockd.Decoys()
    assert decoys.hold([22, 25], {22: 40000, 25: 40001}, set()) == {22: 40000, 25: 40001}
    assert decoys.hold([22], {22: 50000}, {22}) == {22: 40000}, 'not bound again'
    assert decoys.hold([22], {22: 50000}, {40000}) == {22: 50000}, 'it is forbidden'
    assert decoys.ports() == {22: 50000, 25: 40001}, 'the rules that stand still name it'
    assert [each.open for each in bound] == [False, True, True]
    decoys.keep({22})
    assert decoys.ports() == {22: 50000} and not bound[1].open
    decoys.let_go(99)
    assert decoys.taken({50000, 7}) and not decoys.taken({40000}) and not decoys.taken(())


@pytest.mark.parametrize('preferred,taken', [
    (0, set()), (1023, set()), (40000, {40000}), (2000, set())])
def test_a_preferred_port_that_cannot_be_is_replaced_by_one_by_chance(
        bound, monkeypatch, preferred, taken):
    numbers = struct.pack('=4H', 80, 3000, 40000, 41000)
    monkeypatch.setattr(knockd.os, 'urandom', lambda size: (numbers * size)[:size])
    expected = 40000 if 40000 not in taken else 41000
    assert knockd.Decoys().hold([22], {22: preferred}, taken) == {22: expected}


def test_the_lowest_port_that_may_be_a_decoy_is_1024(bound):
    assert knockd.Decoys().hold([22], {22: 1024}, set()) == {22: 1024}


def test_a_bound_socket_is_of_both_families_and_does_not_listen():
    holder = knockd.bound_socket(0)
    port = holder.getsockname()[1]
    assert knockd.bound_socket(port) is None, 'somebody has it'
    with socket.socket() as four, pytest.raises(OSError):
        four.bind(('0.0.0.0', port))
    with socket.socket() as caller:
        assert caller.connect_ex(('127.0.0.1', port)) == errno.ECONNREFUSED
    holder.close()


@pytest.mark.parametrize('number', [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_a_decoy_is_of_ipv4_alone(monkeypatch, number):
    real = socket.socket

    class NoIpv6(real):
        def __init__(self, family=socket.AF_INET, *more, **named):
            if family == socket.AF_INET6 and number == errno.EAFNOSUPPORT:
                raise OSError(number, 'not supported')
            super().__init__(family, *more, **named)

        def bind(self, address):
            if self.family == socket.AF_INET6:
                raise OSError(number, 'not available')
            super().bind(address)
    monkeypatch.setattr(knockd.socket, 'socket', NoIpv6)
    holder = knockd.bound_socket(0)
    assert holder.family == socket.AF_INET and holder.getsockname()[0] == '0.0.0.0'
    assert knockd.bound_socket(holder.getsockname()[1]) is None
    holder.close()


def test_a_port_that_somebody_has_over_ipv6_alone_is_no_decoy():
    with socket.socket(socket.AF_INET6) as holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(('::', 0))
        assert knockd.bound_socket(holder.getsockname()[1]) is None


# --- looks --------------------------------------------------------------------------------------
class Process:
    killed = 0

    def kill(self):
        self.killed += 1


def test_a_look_is_asked_for_once():
    looks = knockd.Looks()
    assert looks.due is None
    looks.ask(1000)
    looks.ask(5000)
    assert looks.due == 1010, 'the first change counts'
    looks.ask(390)
    assert looks.due == 400
    looks.start()
    assert not looks.end(400, 500)
    looks.ask(600)
    assert looks.due == 700, 'it rests for twice as long as it took'
    looks.start()
    looks.end(900, 900)
    looks.ask(950)
    assert looks.due == 960


def test_what_is_asked_for_while_a_look_runs_is_looked_at_again():
    """The daemon's own thread asks, too: a change behind what was read already."""
    looks = knockd.Looks()
    looks.ask(1000)
    looks.start()
    looks.ask(1020)
    assert not looks.end(1010, 1050)
    assert looks.due == 1030


def test_three_looks_give_way_and_the_fourth_is_whole_and_then_three_again():
    looks, broken = knockd.Looks(), []
    for _ in range(8):
        process = Process()
        looks.start()
        looks.begin(process)
        looks.give_way()
        assert looks.end(0, 0) == bool(process.killed)
        looks.give_way()
        broken.append(process.killed)
    assert broken == [1, 1, 1, 0, 1, 1, 1, 0]


# --- what stands --------------------------------------------------------------------------------
@pytest.fixture
def keeper(monkeypatch):
    """Without its thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(threading.Thread, 'start', lambda self: None)
    monkeypatch.setattr(knockd, 'ruleset_events', lambda: ours)
    made = knockd.Keeper(knockd.NFT, True)
    made.standing.put(WANTED)
    made.wanted, made.theirs = WANTED, theirs
    yield made
    ours.close()
    theirs.close()


@pytest.mark.parametrize('now,fine', [
    (FINE, True), (FINE._replace(taken_ports={5}), True), (FINE._replace(decoys={1: 2}), True),
    (FINE._replace(ours='less'), False), (FINE._replace(ours=None), False),
    (FINE._replace(box='drops'), False), (FINE._replace(accepts=(['input'], [])), False)])
def test_what_is_ours_or_the_boxs_and_is_another_is_not_in_order(keeper, now, fine):
    keeper.standing.doubt(FINE)
    keeper.standing.put(WANTED)
    keeper.standing.note(FINE)
    assert keeper.in_order(now) is fine


def test_a_decoy_that_a_rule_of_the_box_names_is_not_in_order(keeper):
    keeper.standing.note(FINE)
    keeper.decoys.held[22] = (40000, Socket(40000))
    assert keeper.in_order(FINE)
    assert not keeper.in_order(FINE._replace(taken_ports={40000}))


@pytest.mark.parametrize('seen,config,well', [
    (FINE, CONFIG, True), (FINE._replace(ours='as listed'), CONFIG, True),
    (FINE._replace(ours=None), CONFIG, False), (FINE._replace(ours=None), NOTHING_HIDDEN, True),
    (FINE._replace(box='drops'), CONFIG, False),
    (FINE._replace(accepts=([], ['surplus'])), CONFIG, False),
    (FINE._replace(accepts=(['input'], [])), CONFIG, False)])
def test_the_first_look_after_a_load_is_what_is_compared_with(keeper, seen, config, well):
    keeper.standing.doubt(FINE)
    keeper.standing.put(knockd.Wanted(1, config, ()))
    assert keeper.came_well(seen) is well
    assert keeper.standing.seen == (seen if well else None)


def test_accept_rules_that_are_in_place_now_are_what_was_loaded(keeper):
    missing = FINE._replace(accepts=(['input'], []))
    keeper.standing.doubt(missing)
    keeper.standing.put(WANTED)
    assert keeper.came_well(FINE)
    # Taken out again before a look, as it was before the last one: that is not in vain.
    for in_vain in (False, True):
        keeper.standing.doubt(missing)
        keeper.standing.put(WANTED)
        assert keeper.came_well(missing) is in_vain, 'not for ever'


def test_what_failed_half_way_did_not_come_well(keeper):
    keeper.standing.doubt(FINE)
    assert not keeper.came_well(FINE) and keeper.standing.seen is None
    assert not keeper.same_rules(CONFIG), 'nor are its rules known'


def test_the_same_config_or_one_with_the_same_rules_is_no_load(keeper):
    assert keeper.same_rules(CONFIG)
    other = CONFIG._replace(window=1)
    assert not keeper.same_rules(other), 'nobody has looked'


class Played:
    """A tool whose rules are the ports that are hidden."""
    name, sysctls = 'played', ('net/x',)

    def __init__(self):
        self.asked = []

    def whole(self, config, seen, decoys, openings, now):
        self.asked.append((seen, decoys, list(openings)))
        return [(['played'], '%s %s\n' % (knockd.format_services(config.hide), seen.ours))]

    def nothing(self):
        return [(['played'], 'delete\n')]


@pytest.fixture
def loading(keeper, monkeypatch):
    """A keeper without its thread whose commands are written down, with their seconds; as many of
    them fail as `fails` says."""
    keeper.tool, keeper.ran, keeper.fails = Played(), [], 0
    keeper.boxes = [FINE]               # as they are seen one after the other

    def run(argv, text='', seconds=0):
        keeper.ran.append((text, seconds))
        if keeper.fails:
            keeper.fails -= 1
            raise knockd.KnockError('failed')

    def see(config, looks=None):
        return keeper.boxes.pop(0) if len(keeper.boxes) > 1 else keeper.boxes[0]
    monkeypatch.setattr(knockd, 'run', run)
    keeper.see = see
    hidden = {CONFIG.hide: [22], NOTHING_HIDDEN.hide: []}
    monkeypatch.setattr(knockd, 'decoy_ports', lambda config, seen: (hidden[config.hide], {7}))
    monkeypatch.setattr(knockd.Decoys, 'bound', lambda self, preferred, taken: (
        (40000, Socket(40000)) if taken == {7} else None))
    return keeper


def test_the_first_load_has_the_time_to_load_modules_and_later_ones_have_less(loading):
    loading.standing.wanted = knockd.Wanted(0, None, ())
    loading.load(WANTED)
    loading.load(WANTED)
    assert loading.ran == [('tcp/22 ours\n', 40), ('tcp/22 ours\n', 10)]
    done = loading.results()
    assert [(each.number, each.error, each.mended) for each in done] == [(1, None, False)] * 2
    assert done[0].loaded.decoys == {22: 40000}
    assert done[0].loaded.guard == knockd.GUARD_HEAD + (
        '[ ! -w /proc/sys/net/x ] || echo 1 >/proc/sys/net/x\n')
    assert [seen.ours for seen, _, _ in loading.tool.asked] == ['ours', None] * 2
    assert loading.standing.known and loading.standing.wanted is WANTED


def test_where_resets_carry_no_marks_there_are_no_decoys_and_the_boot_sets_nothing(loading):
    loading.reflecting = False
    loading.load(WANTED)
    done, = loading.results()
    assert done.loaded == knockd.Loaded({}, knockd.GUARD_HEAD)


def test_decoys_of_what_is_no_longer_hidden_are_let_go_after_the_load(loading):
    loading.load(WANTED)
    held = loading.decoys.held[22][1]
    loading.fails = 9
    with pytest.raises(knockd.KnockError):
        loading.load(WANTED._replace(config=NOTHING_HIDDEN))
    assert held.open, 'the rules that name it are still there'
    loading.fails = 0
    loading.load(WANTED._replace(config=NOTHING_HIDDEN))
    assert not held.open and loading.decoys.ports() == {}


def test_a_table_of_ours_that_is_in_the_way_is_loaded_over_in_one_transaction(loading):
    loading.fails = 1
    loading.load(WANTED)
    assert [text for text, _ in loading.ran] == ['tcp/22 ours\n', 'delete\ntcp/22 ours\n']


def test_whatever_is_in_the_way_of_what_is_put_back_is_loaded_over_without_a_look(loading):
    """Somebody has put a table of another make in place of ours."""
    loading.load(WANTED, FINE._replace(ours=None))
    del loading.ran[:]
    loading.fails = 1
    loading.see = None
    loading.standing.harm()
    loading.step(WANTED, 1000)
    assert [text for text, _ in loading.ran] == ['tcp/22 \n', 'delete\ntcp/22 \n']


def test_a_box_that_changes_all_the_time_is_tried_five_times(loading):
    loading.fails = 99
    loading.boxes = [FINE._replace(ours=None, box=number) for number in range(9)]
    with pytest.raises(knockd.KnockError, match='failed'):
        loading.load(WANTED)
    assert len(loading.ran) == 5 and loading.results() == [] and not loading.standing.known
    del loading.ran[:]
    loading.boxes = [FINE._replace(ours=None)]
    with pytest.raises(knockd.KnockError, match='failed'):
        loading.load(WANTED)
    assert len(loading.ran) == 1, 'a box that stays as it is'


@pytest.mark.parametrize('rested,looked,retry,due', [
    (950, True, 0, 1010), (951, True, 1100, 1010), (5000, True, 1100, 1010),
    (0, False, 1100, 1010), (5000, False, 1100, 5000)])
def test_what_is_put_back_right_after_a_look_or_again_before_one_makes_all_rest(
        loading, monkeypatch, rested, looked, retry, due):
    """Twice the time that it took; and the look waits where it would be the second."""
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(0, 1000))
    loading.load(WANTED)
    if looked:
        loading.standing.note(FINE)
    loading.looks.rested, loading.looks.due = rested, None
    loading.standing.harm()
    loading.step(WANTED, 950)
    assert (loading.retry, loading.looks.due) == (retry, due)
    assert not loading.standing.harmed
    assert [each.mended for each in loading.results()] == [False, True]


def test_after_a_load_it_looks_at_once_and_after_another_when_it_has_rested(loading, monkeypatch):
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(0, 1000))
    loading.looks.rested = 70000
    for due in (1010, 70000):
        loading.looks.due = None
        loading.load(WANTED)
        assert loading.looks.due == due


def test_to_put_back_is_to_load_by_what_is_known_without_the_rules_in_others_chains(loading):
    loading.load(WANTED, FINE._replace(accepts=knockd.Accepts(['input'], [])))
    del loading.tool.asked[:]
    loading.boxes = []                  # whoever looks now fails
    loading.standing.harm()
    loading.step(WANTED, 1000)
    (seen, decoys, _), _ = loading.tool.asked
    assert seen == FINE._replace(ours='', accepts=knockd.Accepts([], [])) and decoys == {22: 40000}


# --- who has changed our table -------------------------------------------------------------------
@pytest.mark.parametrize('told,harmed', [
    ([(6, 1)], False), ([(6, 1), (12, 1)], False), ([(6, 1), (12, 2)], True), ([], False)])
@pytest.mark.parametrize('known', [True, False])
def test_whoever_else_changes_our_table_while_we_load_it_or_change_openings_harms_it(
        loading, monkeypatch, told, harmed, known):
    loading.tool.change = lambda before, after, now: [(['played'], 'elements\n')]
    loading.load(WANTED)
    loading.standing.known = known
    run = knockd.run

    def run_and_tell(argv, text='', seconds=0):
        for kind, sender in told:
            loading.theirs.send(message(kind, 'knockd', sender) + message(15))
        run(argv, text, seconds)
    monkeypatch.setattr(knockd, 'run', run_and_tell)
    loading.bring(WANTED._replace(number=2), 1000)
    assert (loading.ran[-1][0] == 'elements\n') is known
    assert loading.standing.harmed is harmed


def test_a_change_that_needs_no_command_has_no_events_of_its_own(loading):
    loading.tool.change = lambda before, after, now: []
    loading.load(WANTED)
    loading.theirs.send(message(14, 'knockd', 2))
    loading.bring(WANTED._replace(number=2), 1000)
    assert loading.standing.harmed


def test_accept_rules_that_a_change_of_others_took_are_put_in_again_however_often(keeper):
    missing = FINE._replace(accepts=(['input'], []))
    for ours, well in ((0, False), (0, False), (0, False), (1, True)):
        keeper.standing.doubt(missing)
        keeper.standing.put(WANTED)
        keeper.theirs.send(message(8) + message(15))
        keeper.heed(ours)
        assert keeper.came_well(missing) is well, 'what we change ourselves is no such change'


@pytest.mark.parametrize('tool,loaded,harmed', [
    (knockd.NFT, True, True), (knockd.NFT, False, False), (knockd.IPTABLES, True, False)])
def test_a_table_of_our_name_is_ours_once_we_have_loaded_it_with_nft(
        keeper, tool, loaded, harmed):
    keeper.tool = tool
    if loaded:
        keeper.standing.doubt(FINE)
    keeper.theirs.send(message(8, 'knockd'))
    keeper.heed(0)
    assert keeper.standing.harmed is harmed and keeper.looks.due is None


def test_what_cannot_be_brought_is_told_and_tried_again_after_a_second(loading, monkeypatch):
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(0, 5000))
    loading.standing.known = False
    loading.fails = 9
    loading.step(WANTED._replace(number=4), 5000)
    done, = loading.results()
    assert (done.number, str(done.error)) == (4, 'failed') and loading.retry == 6000
    loading.step(WANTED._replace(number=4), 5999)
    assert loading.results() == []


def test_a_look_that_harm_follows_and_that_fails_is_told_and_made_again(loading, monkeypatch):
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(0, 5000))
    loading.boxes = [FINE._replace(ours=None)]
    loading.fails, loading.looks.due = 9, 5000
    loading.step(WANTED, 5000)
    done, = loading.results()
    assert (done.number, str(done.error)) == (1, 'failed')
    assert (loading.retry, loading.looks.due) == (6000, 6010)
    loading.see = mock.Mock(side_effect=knockd.KnockError('no listing'))
    loading.retry = 0
    loading.inspect(WANTED, 5000)
    done, = loading.results()
    assert (done.number, str(done.error)) == (1, 'no listing')
    assert (loading.retry, loading.looks.due) == (0, 6010), 'knocks do not wait for that'
    loading.looks.broken_off = True
    loading.inspect(WANTED, 5000)
    assert loading.results() == [] and loading.looks.due == 5010, 'to be broken off is no failure'


def test_the_same_rules_are_those_of_the_same_decoys(loading):
    loading.load(WANTED)
    loading.standing.note(FINE)
    other = CONFIG._replace(window=1)
    assert loading.same_rules(other)
    assert not loading.same_rules(NOTHING_HIDDEN)
    loading.decoys.held[25] = (40001, Socket(40001))
    assert not loading.same_rules(other), 'another port needs one'
    loading.reflecting = False
    assert loading.same_rules(other), 'there are none'


@pytest.mark.parametrize('changed,silent,reflecting,looked,said', [
    (False, False, True, False, 0), (False, True, True, True, 0), (True, False, True, True, 1),
    (True, True, False, True, 0)])
def test_once_a_step_it_looks_where_no_event_tells(
        keeper, monkeypatch, changed, silent, reflecting, looked, said):
    lines, marks = [], []
    keeper.reflecting = reflecting
    asked = [changed]
    monkeypatch.setattr(keeper.looks, 'variables_changed', lambda: bool(asked and asked.pop()))
    monkeypatch.setattr(knockd, 'changes_silently', lambda tool: silent)
    monkeypatch.setattr(knockd, 'log', lambda text, level=6: lines.append(text))
    monkeypatch.setattr(knockd, 'reflect_marks', lambda *named: marks.append(named))
    keeper.turn(knockd.Moment(0, 1000), '/nowhere/sysctls')
    assert keeper.looks.due == (1010 if looked else None)
    assert len(lines) == said and marks == [(knockd.SYSCTLS, '/nowhere/sysctls')] * said
    poll = select.poll()
    poll.register(keeper.called, select.POLLIN)
    assert bool(poll.poll(0)) is looked


def test_what_it_answers_is_readable_until_it_is_read(keeper):
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    assert keeper.results() == [] and not poll.poll(0)
    for number in (1, 2):
        keeper.answer(number)
    assert poll.poll(0)
    assert [each.number for each in keeper.results()] == [1, 2] and not poll.poll(0)
    assert keeper.results() == []


def test_a_new_keeper_wants_nothing_and_knows_nothing(monkeypatch):
    monkeypatch.setattr(threading.Thread, 'start', lambda self: None)
    keeper = knockd.Keeper(knockd.NFT, False)
    keeper.events.close()
    assert (keeper.reflecting, keeper.retry) == (False, 0)
    assert keeper.wanted == keeper.standing.wanted == knockd.Wanted(0, None, ())
    assert not keeper.standing.known and keeper.patience(0) is None


@pytest.mark.parametrize('rung,event,due,harmed', [
    (False, b'', None, False), (True, b'', None, False), (False, message(12), None, False),
    (False, message(6), 70000, False), (False, message(12, 'knockd'), None, True),
    (True, message(6) + message(2, 'knockd'), 70000, True)])
def test_it_waits_for_calls_and_events_and_then_hears_none_of_them_again(
        keeper, monkeypatch, rung, event, due, harmed):
    keeper.standing.doubt(FINE)
    keeper.looks.rested = 70000
    monkeypatch.setattr(knockd, 'moment', lambda: knockd.Moment(0, 1000))
    monkeypatch.setattr(keeper, 'patience', lambda now: 0)
    if rung:
        keeper.called.ring()
    if event:
        keeper.theirs.send(event)
    for _ in range(2):
        keeper.wait()
        assert (keeper.looks.due, keeper.standing.harmed) == (due, harmed)
    poll = select.poll()
    poll.register(keeper.called, select.POLLIN)
    poll.register(keeper.events, select.POLLIN)
    assert poll.poll(0) == []


# --- patience -----------------------------------------------------------------------------------
@pytest.mark.parametrize('wanted,due,retry,patience', [
    (1, None, 0, None), (1, 1500, 0, 500), (1, 500, 0, 0), (1, 1500, 1800, 800),
    (2, None, 0, 0), (2, None, 1700, 700), (2, 1200, 0, 0), (2, 1900, 1700, 700)])
def test_it_waits_for_what_is_due_first_and_never_before_the_retry(
        keeper, wanted, due, retry, patience):
    keeper.wanted = WANTED._replace(number=wanted)
    keeper.looks.due, keeper.retry = due, retry
    assert keeper.patience(1000) == patience
    keeper.standing.harmed = True
    assert keeper.patience(1000) == max(0, retry - 1000), 'what is harmed is due at once'


@pytest.mark.parametrize('number,due,retry,harmed,does', [
    (1, None, 0, False, None), (1, 1000, 0, False, 'inspect'), (1, 1001, 0, False, None),
    (2, None, 0, False, 'bring'), (2, 1000, 0, False, 'bring'), (2, 1000, 1001, False, None),
    (2, None, 1000, False, 'bring'), (2, 1000, 0, True, 'put back'), (1, None, 0, True, 'put back'),
    (1, None, 1001, True, None)])
def test_a_step_is_what_is_harmed_or_wanted_before_a_look(
        keeper, monkeypatch, number, due, retry, harmed, does):
    did = []
    keeper.standing.harmed = harmed
    monkeypatch.setattr(keeper, 'put_back', lambda wanted, now: did.append('put back'),
                        raising=False)
    monkeypatch.setattr(keeper, 'bring', lambda wanted, now: did.append('bring'), raising=False)
    monkeypatch.setattr(keeper, 'inspect', lambda wanted, now: did.append('inspect'),
                        raising=False)
    keeper.looks.due, keeper.retry = due, retry
    keeper.step(WANTED._replace(number=number), 1000)
    assert did == ([does] if does else [])


# --- the last resort, and the boot --------------------------------------------------------------
class Tool:
    @staticmethod
    def nothing():
        return [(['nft', '-f', '-'], 'delete\n')]


def test_the_last_resort_is_one_transaction_with_the_end_of_what_is_there():
    load = [(['nft', '-f', '-'], 'table\n'), (['iptables'], 'x')]
    assert knockd.cleared(Tool, load) == [(['nft', '-f', '-'], 'delete\ntable\n')] + load[1:]
    other = [(['ip6tables-restore'], 'x')]
    assert knockd.cleared(Tool, other) == other


def test_the_guard_of_a_boot_loads_only_what_is_not_there_and_sets_what_a_reset_needs():
    text = knockd.guard_script([(['nft', '-f', '-'], 'table\n'), (['iptables', '-I'], '')],
                               ['net/x'])
    assert text == (
        '# Hides what is hidden from the boot on, even without Python or a config.\n'
        '[ ! -w /proc/sys/net/x ] || echo 1 >/proc/sys/net/x\n'
        'nft list table inet knockd >/dev/null 2>&1 || nft -f - <<\'END\'\ntable\nEND\n')
