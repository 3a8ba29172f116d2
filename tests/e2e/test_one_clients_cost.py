"""One client who may knock does his worst: what another client, and the box, notice of it."""

import itertools
import os
import random
import statistics
import threading
import time

import pytest
from network import HIDDEN, until

pytestmark = pytest.mark.kernel
SECONDS = 60 if os.environ.get('KNOCK_CHAOS') else 8
EVERY = 0.2                     # 5 a second
PACE = 0.6                      # what bert, who knocks twice a time, is never too fast with
NAMES = ['tcp/2222', 'tcp/3000-3399', 'tcp/3200-3599', 'tcp/3500-3899', 'udp/3000-3999',
         'udp/3300-4300', 'tcp/3901', 'tcp/3903', 'udp/5182']


def memory(knockd):
    """KiB of the daemon that nobody else shares. Its process is what setpriv became."""
    with open('/proc/%d/smaps_rollup' % knockd.process.pid) as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith('Private_'))


def time_to_open(wire, knockd, address):
    """Seconds from a knock of bert to its line in the log, with what he opened closed again."""
    before, closed = knockd.count('open bert '), knockd.count('close bert ')
    time.sleep(PACE)
    begin = time.monotonic()
    wire.stranger.send(knockd.datagram('bert', open='tcp/2229'), address)
    assert until(lambda: knockd.count('open bert ') > before, 10), knockd.text()
    took = time.monotonic() - begin
    wire.stranger.send(knockd.datagram('bert', op='close'), address)
    assert until(lambda: knockd.count('close bert ') > closed, 10), knockd.text()
    return took


def knock_meanly(wire, knockd, over):
    """Opens ranges that overlap, named in every order, and closes some, 5 times a second."""
    orders = itertools.permutations(NAMES)
    dice = random.Random(5)
    while not over.is_set():
        names = next(orders)
        asked = dice.sample(names, dice.randrange(1, len(names) + 1))
        op = 'close' if dice.random() < 0.2 else 'open'
        wire.client.send(knockd.datagram('anna', op=op, open=', '.join(asked)),
                         wire.server.addresses[dice.randrange(2)])
        over.wait(EVERY)


def test_the_meanest_client_costs_another_little(wire, daemon, tmp_path):
    """Twice the quiet time at most, 2 MB, and status and the other's actions as ever."""
    mark = tmp_path / 'marks'
    action = tmp_path / 'action'
    action.write_text('#!/bin/sh\ntest "$KNOCK_CLIENT" = bert || exec sleep 300\n'
                      'echo $1 >> %s\n' % mark)
    action.chmod(0o755)
    knockd = daemon('hide = tcp/2222, tcp/2229, udp/5182, tcp/3000-3903, udp/3000-4300\n'
                    'on_open = %s opened\non_close = %s closed' % (action, action),
                    anna='allow = ' + ', '.join(NAMES), bert='allow = tcp/2229')
    address = wire.server.addresses[0]
    quiet = [time_to_open(wire, knockd, address) for _ in range(10)]
    mark.write_text('')
    size, over = memory(knockd), threading.Event()
    mean = threading.Thread(target=knock_meanly, args=(wire, knockd, over))
    mean.start()
    busy, deadline = [], time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            busy.append(time_to_open(wire, knockd, address))
            assert knockd.do('status').code == 0
    finally:
        over.set()
        mean.join()
    grown = memory(knockd) - size
    for own in wire.server.addresses:       # half of the quiet is behind it: the box may have
        wire.client.send(knockd.datagram('anna', op='close'), own)      # become busier meanwhile
    time.sleep(1)                           # the second in which anna used up her five is over
    quiet += [time_to_open(wire, knockd, address) for _ in range(10)]
    figures = 'quiet %.1f ms, beside it %.1f ms (medians of %d and %d); memory grew by %d KiB' % (
        statistics.median(quiet) * 1e3, statistics.median(busy) * 1e3, len(quiet), len(busy), grown)
    print(figures)
    assert knockd.count('open anna ') > SECONDS, knockd.text()
    assert statistics.median(busy) <= 2 * statistics.median(quiet), figures
    assert grown <= 2048, figures
    assert until(lambda: mark.read_text().count('closed') >= 3, 10), knockd.text()
    assert mark.read_text().count('opened') >= 3
    assert not wire.stranger.connects(address, HIDDEN)
