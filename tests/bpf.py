"""Classic BPF as the kernel has it: check() refuses what it refuses, run() does what it does.

Written from Documentation/networking/filter.rst, linux/bpf_common.h and linux/filter.h. An
instruction is (code, jt, jf, k). Only what a socket filter needs: the ancillary loads are
PKTTYPE, VLAN_TAG and VLAN_TAG_PRESENT, every other one is refused.
"""

MAXIMUM = 4096                  # BPF_MAXINSNS
CELLS = 16                      # BPF_MEMWORDS
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)                # BPF_CLASS: the low three bits
IMM, ABS, IND, MEM, LEN, MSH = (number << 5 for number in range(6))     # BPF_MODE
SIZES = {0x00: 4, 0x08: 2, 0x10: 1}                             # BPF_SIZE
ANCILLARY = 0xfffff000          # SKF_AD_OFF, as the unsigned number it is in an instruction
PKTTYPE = ANCILLARY + 4         # SKF_AD_PKTTYPE
VLAN_TAG = ANCILLARY + 44       # SKF_AD_VLAN_TAG
VLAN_TAG_PRESENT = ANCILLARY + 48       # SKF_AD_VLAN_TAG_PRESENT
KNOWN = {PKTTYPE: 'pkttype', VLAN_TAG: 'tag', VLAN_TAG_PRESENT: 'tagged'}
WORD = 0xffffffff

ALU_WORDS = {0x00: 'add', 0x10: 'sub', 0x20: 'mul', 0x30: 'div', 0x40: 'or', 0x50: 'and',
             0x60: 'lsh', 0x70: 'rsh', 0x80: 'neg', 0x90: 'mod', 0xa0: 'xor'}
JUMP_WORDS = {0x00: 'ja', 0x10: 'jeq', 0x20: 'jgt', 0x30: 'jge', 0x40: 'jset'}
ARITHMETIC = {
    'add': lambda a, b: a + b, 'sub': lambda a, b: a - b, 'mul': lambda a, b: a * b,
    'or': lambda a, b: a | b, 'and': lambda a, b: a & b, 'xor': lambda a, b: a ^ b,
    'lsh': lambda a, b: a << b, 'rsh': lambda a, b: a >> b, 'div': lambda a, b: a // b,
    'mod': lambda a, b: a % b, 'neg': lambda a, b: -a}
TESTS = {
    'jeq': lambda a, b: a == b, 'jgt': lambda a, b: a > b, 'jge': lambda a, b: a >= b,
    'jset': lambda a, b: bool(a & b)}


class Refused(Exception):
    """The kernel would answer EINVAL."""


class OutOfBounds(Exception):
    """A load beyond the packet: the kernel drops it."""


def decode(instruction):
    """Returns (what it does, detail) of a valid instruction; Refused for any other."""
    code, _, _, k = instruction
    kind, size, mode = code & 7, code & 0x18, code & 0xe0
    if code > 0xff:
        raise Refused('code 0x%x' % code)
    if kind in (LD, LDX):
        return decode_load(kind, size, mode, k, code)
    if kind in (ST, STX) and code == kind:
        return ('store', 'ax'[kind == STX])
    if kind == ALU and code & 0xf0 in ALU_WORDS:
        word = ALU_WORDS[code & 0xf0]
        if word in ('div', 'mod') and not code & 8 and k == 0:
            raise Refused('division by zero')
        if word in ('lsh', 'rsh') and not code & 8 and k >= 32:
            raise Refused('shift by %d' % k)
        return (word, 'x' if code & 8 else 'k')
    if kind == JMP and code & 0xf0 in JUMP_WORDS and code != 0x0d:
        return (JUMP_WORDS[code & 0xf0], 'x' if code & 8 else 'k')
    if code in (0x06, 0x16):
        return ('ret', 'a' if code == 0x16 else 'k')
    if code in (0x07, 0x87):
        return ('tax' if code == 0x07 else 'txa', None)
    raise Refused('code 0x%02x' % code)


def decode_load(kind, size, mode, k, code):
    """BPF_LD and BPF_LDX."""
    if size == 0 and mode in (IMM, MEM, LEN):
        return ({IMM: 'imm', MEM: 'mem', LEN: 'len'}[mode], 'ax'[kind == LDX])
    if kind == LDX and code == 0xb1:
        return ('msh', 1)
    if kind == LD and mode in (ABS, IND) and size in SIZES:
        if mode == ABS and k >= ANCILLARY:
            if k not in KNOWN:
                raise Refused('ancillary load 0x%x' % k)
            return ('ask', KNOWN[k])
        return ('abs' if mode == ABS else 'ind', SIZES[size])
    raise Refused('code 0x%02x' % code)


def check(program):
    """Raises Refused unless the kernel would take this program (bpf_check_classic)."""
    if not 0 < len(program) <= MAXIMUM:
        raise Refused('%d instructions' % len(program))
    for place, instruction in enumerate(program):
        code, yes, no, k = instruction
        if not (0 <= yes < 256 and 0 <= no < 256 and 0 <= k <= WORD):
            raise Refused('%d: a field does not fit: %r' % (place, instruction))
        word, _ = decode(instruction)
        far = k if word == 'ja' else max(yes, no) if word in TESTS else 0
        if place + 1 + far >= len(program) and word != 'ret':
            raise Refused('%d: leads out of the program' % place)
        if word in ('mem', 'store') and k >= CELLS:
            raise Refused('%d: cell %d' % (place, k))
    if decode(program[-1])[0] != 'ret':
        raise Refused('the last instruction is no RET')
    check_cells(program)


def check_cells(program):
    """No path may read a cell of memory that it has not written (check_load_and_stores)."""
    known = [WORD] * len(program)
    cells = 0
    for place, instruction in enumerate(program):
        _, yes, no, k = instruction
        cells &= known[place]
        word, _ = decode(instruction)
        if word == 'store':
            cells |= 1 << k
        elif word == 'mem' and not cells & 1 << k:
            raise Refused('%d: cell %d was not written' % (place, k))
        elif word == 'ja' or word in TESTS:
            for far in ([k] if word == 'ja' else [yes, no]):
                known[place + 1 + far] &= cells
            cells = WORD


def compile_program(program):
    """Returns the program with every instruction decoded, for run()."""
    return [decode(instruction) + instruction[1:] for instruction in program]


def load(frame, place, size):
    if place + size > len(frame):
        raise OutOfBounds()
    return int.from_bytes(frame[place:place + size], 'big')


class Machine:
    """The two registers and the memory of one run over one frame."""

    def __init__(self, frame, told):
        self.frame, self.told = frame, told
        self.registers, self.cells = {'a': 0, 'x': 0}, [0] * CELLS

    def move(self, word, detail, k):
        """Everything that neither jumps nor returns."""
        registers = self.registers
        if word == 'abs':
            registers['a'] = load(self.frame, k, detail)
        elif word == 'ind':
            registers['a'] = load(self.frame, registers['x'] + k, detail)
        elif word == 'msh':
            registers['x'] = 4 * (load(self.frame, k, 1) & 15)
        elif word == 'ask':
            registers['a'] = self.told[detail]
        elif word == 'store':
            self.cells[k] = registers[detail]
        elif word in ('imm', 'mem', 'len'):
            registers[detail] = {'imm': k, 'mem': self.cells[k % CELLS],
                                 'len': len(self.frame)}[word]
        elif word in ('tax', 'txa'):
            registers[word[2]] = registers[word[1]]
        else:
            other = registers['x'] if detail == 'x' else k
            if word in ('div', 'mod') and other == 0:
                raise OutOfBounds()
            registers['a'] = ARITHMETIC[word](registers['a'], other) & WORD


def run(compiled, frame, pkttype=0, tag=0, tagged=0):
    """Returns how many bytes of the frame the filter passes, 0 for a drop."""
    told = {'pkttype': pkttype, 'tag': tag, 'tagged': tagged}
    machine, place = Machine(frame, told), 0
    while True:
        word, detail, yes, no, k = compiled[place]
        place += 1
        if word == 'ret':
            return machine.registers['a'] if detail == 'a' else k
        if word == 'ja':
            place += k
        elif word in TESTS:
            other = machine.registers['x'] if detail == 'x' else k
            place += yes if TESTS[word](machine.registers['a'], other) else no
        else:
            try:
                machine.move(word, detail, k)
            except OutOfBounds:
                return 0
