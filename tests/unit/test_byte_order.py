"""The wire is big-endian on every machine; what the kernel reads is in the machine's own order."""

import struct

import knock
import knockd
import pytest

NATIVE = {      # how a machine of 32 or 64 bits packs each native format of knockd.py
    '@HBBI': {32: 'HBBI', 64: 'HBBI'}, '@HL': {32: 'HxxI', 64: 'HxxxxxxQ'},
    '@II': {32: 'II', 64: 'II'}}
PROGRAM = [(0x15, 1, 2, 0xdeadbeef)]
SOCK_FILTER = {'<': '1500 01 02 efbeadde', '>': '0015 01 02 deadbeef'}
SOCK_FPROG = {      # one instruction at 0x12345678
    ('<', 32): '0100 0000 78563412', ('>', 32): '0001 0000 12345678',
    ('<', 64): '0100 000000000000 7856341200000000',
    ('>', 64): '0001 000000000000 0000000012345678'}


class Machine:
    """Stands for the module struct, on a machine of another byte order and size."""

    def __init__(self, order, bits):
        self.order, self.bits = order, bits

    def form(self, form):
        if form in NATIVE:
            return self.order + NATIVE[form][self.bits]
        assert form[0] == '>', '%r depends on the machine' % form
        return form

    def pack(self, form, *values):
        return struct.pack(self.form(form), *values)

    def unpack(self, form, data):
        return struct.unpack(self.form(form), data)

    def unpack_from(self, form, data, offset=0):
        return struct.unpack_from(self.form(form), data, offset)


@pytest.fixture(params=sorted(SOCK_FPROG), ids=lambda param: '%s%d' % param)
def machine(request, monkeypatch):
    made = Machine(*request.param)
    monkeypatch.setattr(knockd, 'struct', made)
    return made


class Array:
    """Stands for the module array: keeps the bytes, at an address of our own."""

    def array(self, kind, data):
        assert kind == 'B'
        self.data = data
        return self

    def buffer_info(self):
        return 0x12345678, len(self.data)


class Socket:
    def setsockopt(self, level, option, value):
        self.set = level, option, value


def test_the_filter_is_what_this_machines_kernel_reads(machine, monkeypatch):
    memory, sock = Array(), Socket()
    monkeypatch.setattr(knockd, 'array', memory)
    knockd.attach_filter(sock, PROGRAM)
    assert memory.data == bytes.fromhex(SOCK_FILTER[machine.order].replace(' ', ''))
    assert sock.set == (1, 26, bytes.fromhex(
        SOCK_FPROG[machine.order, machine.bits].replace(' ', '')))


def test_the_wire_is_the_same_on_every_machine(machine):
    """Version 1, open, 2026-11-22 00:00 UTC, no source, 30 s, tcp/22-23."""
    request = knockd.Request('open', 1795305600000, None, 30, (knockd.Service(6, 22, 23),), None,
                             None, None)
    plain = bytes.fromhex('01 01 000001a2008d7400'.replace(' ', '') + '00' * 16
                          + '001e 01 0005 06 0016 0017'.replace(' ', ''))
    assert knock.encode_plain(request) == plain
    assert knockd.decode_plain(plain)._replace(signed=None) == request
    keys = knockd.derive_keys(bytes(range(32)), 'home')
    datagram = knock.seal(keys, bytes(16), plain, 59843520)
    assert knockd.unseal(keys, datagram) == plain
    assert knockd.step_ports(keys, 1) == knockd.step_ports(dict(keys), 1)
