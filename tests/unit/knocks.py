"""Knocks made by hand, each part of which can be wrong: for the tests of the judge and of what the
daemon does with his decisions."""
import ipaddress

import knockd
from knock import encode_plain, seal

SECRETS = {name: knockd.encode_secret(bytes([number + 1]) * 32)
           for number, name in enumerate(('anna', 'bert', 'careful', 'trusted', 'short'))}
SERVER = '''[server]
id = home
hide = tcp/22, tcp/25, udp/51820
ledger = /nowhere/ledger.json
carriers = udp, icmp, syn, ports, code
'''
CLIENTS = '''
[client anna]
secret = %(anna)s
allow = tcp/22, udp/51820
default = tcp/22
[client bert]
secret = %(bert)s
expires = 2023-11-14 22:13
[client careful]
secret = %(careful)s
require_source = yes
[client trusted]
secret = %(trusted)s
any_source = yes
[client short]
secret = %(short)s
default =
open_for = 2h
''' % SECRETS
WALL = 1700000025000            # 2023-11-14 22:13:45 UTC, the middle of step 56666667
STEP = 56666667
HERE, ELSEWHERE = ipaddress.ip_address('203.0.113.5'), ipaddress.ip_address('203.0.113.6')
SSH, MAIL, VPN = knockd.Service(6, 22, 22), knockd.Service(6, 25, 25), knockd.Service(17, 51820,
                                                                                    51820)


def at(wall=WALL, mono=5000000):
    return knockd.Moment(wall, mono)


def valid_tags(config, wall, known=()):
    """As the daemon has them: {tag: (client, step)} of every loaded step."""
    return {tag: owner for made in knockd.valid_steps(config, wall, known)
            for tag, owner in made.tags.items()}


CONFIG = knockd.parse_config(SERVER + CLIENTS, '/nowhere/knockd.ini')
TAGS = valid_tags(CONFIG, WALL)


def fresh_state():
    made = knockd.State(CONFIG, knockd.Ledger('home'))
    made.tags = dict(TAGS)
    return made


class Nonces:
    """A fresh nonce a call."""
    count = 0


def knock(state, name='anna', op='open', time=WALL, step=None, source=None, seconds=0, services=(),
          action=None, sender=HERE, plain=None, carrier='udp', key=None):
    """The Packet of a knock; every part can be made wrong."""
    Nonces.count += 1
    request = knockd.Request(op, time, source and ipaddress.ip_address(source), seconds,
                             tuple(services), action, None, None)
    plain = encode_plain(request) if plain is None else plain
    keys = state.config.clients[name].keys if key is None else key
    sealed = seal(keys, Nonces.count.to_bytes(16, 'big'), plain,
                         time // 30000 if step is None else step)
    return knockd.Packet(carrier, sender, sealed)


def said(state, packet, now=None):
    """(verdict, reason) of the judge, and the ledger told as the daemon does."""
    decision = knockd.judge(packet, now or at(), state)
    if decision.verdict in ('open', 'close'):
        request = decision.knock.request
        state.ledger.record(decision.knock.client.fingerprint, decision.knock.knock_id,
                            request.time, state.config.window)
    return decision.verdict, decision.reason
