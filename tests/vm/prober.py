"""A stranger who asks a hidden and a closed port side by side, and whoever compares the
answers.

    python3 prober.py WIRE LOG [HIDDEN CLOSED [FIRST GAP]]

until SIGTERM, or the end of its input. Every 5 ms, or GAP seconds, over IPv4 and IPv6,
one SYN goes to each of the two ports. Every answer is brought down to its *class*: all
that an observer can see of it, less what differs from packet to packet on any box. The
two ports can be told apart when the hidden one gives a class that the closed one does not
give at that time, or when one of them is silent for long while the other answers.

The frames are built and read here, on a packet socket: the sender's own kernel changes
nothing.
"""

import collections
import json
import random
import select
import signal
import socket
import struct
import sys
import time

GAP = 0.005                     # between two pairs of a family
BIN = 0.1                       # answers of one class within that time share a line
NEAR = 1.0                      # before and after which a class of the closed port counts
PATIENCE = 2.0                  # after which a question counts as unanswered
MEMORY = 30.0                   # how long a late or a second answer is still understood
ROUNDS = 8                      # of our source ports, for as long as a wire holds a packet
LONG_SILENCE = 40               # pairs in a row of which the same one went unanswered
# Few enough for the connection table of a box that drops.
SOURCE_PORTS = 8192
FIRST_SOURCE = 20000            # another stranger at the same time has others

BOX_MAC, OUR_MAC = '52:54:00:77:00:02', '52:54:00:77:00:01'
BOX = {4: '10.77.0.2', 6: 'fd77::2'}
STRANGER = {4: '10.77.0.3', 6: 'fd77::3'}

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86dd        # <linux/if_ether.h>
ICMP, TCP, ICMPV6 = 1, 6, 58
SYN = 0x02
MSS = bytes([2, 4, 5, 180])     # option 2: 1460 octets
ETHERNET = 14                   # octets of its header
FLOW_LABEL = 0x54321            # of all our IPv6 questions
OTHER_LABEL = 0x2bcde           # of one that is asked again
DOUBT = 1.0                     # after which nothing speaks for a label that is doubtful

Question = collections.namedtuple('Question', 'family port source_port seq packet sent')
Line = collections.namedtuple('Line', 'first last family role what count')
Difference = collections.namedtuple('Difference', 'first last family what count')


def packed(family, address):
    return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, address)


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def syn(family, port, source_port, seq, label=FLOW_LABEL):
    """Returns the IP packet of one SYN from the stranger to the box."""
    addresses = packed(family, STRANGER[family]) + packed(family, BOX[family])
    tcp = struct.pack('>HHIIBBHHH', source_port, port, seq, 0, 6 << 4, SYN, 64240, 0, 0)
    tcp += MSS
    pseudo = addresses + struct.pack('>II', len(tcp), TCP)
    tcp = tcp[:16] + struct.pack('>H', checksum(pseudo + tcp)) + tcp[18:]
    if family == 6:
        head = struct.pack('>IHBB', 6 << 28 | label, len(tcp), TCP, 64)
        return head + addresses + tcp
    head = struct.pack('>BBHHHBBH', 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, TCP, 0)
    head += addresses
    return head[:10] + struct.pack('>H', checksum(head)) + head[12:] + tcp


def split(packet):
    """Returns family, protocol, what can be seen of the IP header, payload; None for
    other traffic."""
    if packet[:1] and packet[0] >> 4 == 4 and len(packet) >= 20:
        octets = (packet[0] & 15) * 4
        total, ident, fragment = struct.unpack('>HHH', packet[2:8])
        if packet[12:16] != packed(4, BOX[4]) or packet[16:20] != packed(4, STRANGER[4]):
            return None
        seen = 'ttl %d tos %d id %s df %d' % (
            packet[8], packet[1], 'some' if ident else '0', fragment >> 14 & 1)
        if octets > 20:
            seen += ' ip options ' + packet[20:octets].hex()
        return 4, packet[9], seen, packet[octets:total]
    if packet[:1] and packet[0] >> 4 == 6 and len(packet) >= 40:
        if packet[8:24] != packed(6, BOX[6]) or packet[24:40] != packed(6, STRANGER[6]):
            return None
        word, length = struct.unpack('>IH', packet[:6])
        label = {0: '0', FLOW_LABEL: 'ours'}.get(word & 0xfffff, 'its own')
        seen = 'hops %d class %d label %s' % (packet[7], word >> 20 & 255, label)
        return 6, packet[6], seen, packet[40:40 + length]
    return None


def option_kinds(options):
    """Returns the kinds of TCP options in their order; what is in a timestamp differs
    anyway."""
    kinds = []
    while options:
        kind = options[0]
        kinds.append(str(kind))
        if kind == 0 or (kind != 1 and (len(options) < 2 or options[1] < 2)):
            break
        options = options[1:] if kind == 1 else options[options[1]:]
    return ','.join(kinds) or 'none'


class Unasked(Exception):
    """A packet that answers no question of ours."""


class Asked:
    """The questions of the last while, which of them were answered, and the runs of
    silence.

    A question stays after its answer: a second answer that differs from the first one
    tells the ports apart as well as any."""

    def __init__(self, hidden, closed):
        self.roles = {hidden: 'hidden', closed: 'closed'}
        self.questions = collections.OrderedDict()      # family, port, our port: Question
        self.pair_of = {}           # the same key: its pair
        self.said = {}              # the same key: the classes of the answers so far
        # The same key: the sequence numbers of this round and of those before.
        self.seqs = collections.defaultdict(lambda: collections.deque(maxlen=ROUNDS))
        self.pairs = collections.deque()    # sent, family, {role: True once answered}
        self.silent_in_a_row = collections.Counter()
        self.doubts = {}            # the same key: when, role and class of an answer
        self.again = []             # packets that are to be sent for them
        self.without_label = collections.deque()    # when, port, our port

    def ask(self, family, questions, now):
        answered = dict.fromkeys(self.roles.values(), False)
        self.pairs.append((now, family, answered))
        for question in questions:
            key = family, question.port, question.source_port
            self.questions[key] = question
            self.pair_of[key] = answered
            self.said[key] = set()
            self.seqs[key].append(question.seq)

    def find(self, family, port, source_port):
        key = family, port, source_port
        if key not in self.questions:
            raise Unasked
        self.pair_of[key][self.roles[port]] = True
        return self.questions[key]

    def find_any(self, family, source_port):
        """Returns the question that went out from source_port, hidden first: an answer
        that comes from a port we did not ask (a decoy's) can only be meant for it."""
        for port in self.roles:
            if (family, port, source_port) in self.questions:
                return self.find(family, port, source_port)
        raise Unasked

    def is_new(self, question, what):
        """Is that another answer than before? TCP gives the same one again, for up to a
        minute, where the reset that the stranger's kernel sends was lost on a port that
        is hidden by then."""
        said = self.said[question.family, question.port, question.source_port]
        if what in said:
            return False
        said.add(what)
        return True

    def is_doubtful(self, question, what, now):
        """Does it carry the label of its question, or none? One flow in 2^20 has that for
        its own, for as long as the box is up, so we ask once more with another label."""
        if 'label 0' in what:
            self.without_label.append((now, question.port, question.source_port))
            if self.others_have_no_label(question, now):
                return False
        elif 'label ours' not in what:
            return False
        key = question.family, question.port, question.source_port
        self.doubts[key] = now, self.roles[question.port], what
        self.again.append(syn(*key, question.seq, OTHER_LABEL))
        return True

    def others_have_no_label(self, question, now):
        """Did another flow to that port, just now, get an answer without a label, too?"""
        while self.without_label and now - self.without_label[0][0] > DOUBT:
            self.without_label.popleft()
        return any(port == question.port and source_port != question.source_port
                   for _, port, source_port in self.without_label)

    def settled(self, question, what, now):
        """Returns (sent, family, role, what) of the doubtful answer before this one, or
        None."""
        doubt = self.doubts.pop(
            (question.family, question.port, question.source_port), None)
        if doubt is None:
            return None
        at, role, before = doubt
        if 'label ours' in what:    # to the other one as well
            before = before.replace('label ours', 'label its own')
        elif 'label 0' in what and not self.others_have_no_label(question, now):
            before = before.replace('label 0', 'label its own')
        return at, question.family, role, before

    def forget(self, now):
        while self.questions:
            key, question = next(iter(self.questions.items()))
            if now - question.sent <= MEMORY:
                break
            del self.questions[key]
            del self.pair_of[key]
            del self.said[key]

    def overdue(self, now):
        """Yields (sent, family, role, what) for what has gone unanswered for too long."""
        for key in [key for key in self.doubts if now - self.doubts[key][0] > DOUBT]:
            at, role, what = self.doubts.pop(key)
            yield at, key[0], role, what
        while self.pairs and now - self.pairs[0][0] > PATIENCE:
            sent, family, answered = self.pairs.popleft()
            silent = [role for role in answered if not answered[role]]
            for role in silent:
                yield sent, family, role, 'silence'
            if len(silent) == 2:
                continue            # the network is down, or the box drops
            for role in answered:
                if role not in silent:
                    self.silent_in_a_row[family, role] = 0
            for role in silent:
                self.silent_in_a_row[family, role] += 1
                if self.silent_in_a_row[family, role] >= LONG_SILENCE:
                    yield sent, family, role, 'long silence'


def tcp_answer(family, seen, tcp, asked):
    """Returns the question that this TCP segment answers, and its class."""
    if len(tcp) < 20:
        raise Unasked
    (port, to, seq, ack, offset, flags, window, _,
     urgent) = struct.unpack('>HHIIBBHHH', tcp[:20])
    from_elsewhere = port not in asked.roles
    if from_elsewhere:
        question = asked.find_any(family, to)
    else:
        question = asked.find(family, port, to)
    octets = (offset >> 4) * 4
    acks = 'ours' if ack == question.seq + 1 & 0xffffffff else 'nothing of ours'
    what = 'tcp flags %02x seq %s acks %s window %d urgent %d options %s data %d %s' % (
        flags, 'some' if seq else '0', acks, window, urgent, option_kinds(tcp[20:octets]),
        len(tcp) - octets, seen)
    if from_elsewhere:
        what = 'from port %d, which nobody asked: %s' % (port, what)
    return question, what


def icmp_answer(family, seen, icmp, asked):
    """Returns the question that this ICMP error quotes, and its class."""
    quoted = icmp[8:]
    octets = 20 if family == 4 else 40
    if len(quoted) < octets + 8:
        raise Unasked
    source_port, port = struct.unpack('>HH', quoted[octets:octets + 4])
    if port in asked.roles:
        question = asked.find(family, port, source_port)
    else:
        question = asked.find_any(family, source_port)
    sent = question.packet
    seq, = struct.unpack('>I', quoted[octets + 4:octets + 8])
    if seq != question.seq and seq in asked.seqs[family, question.port, source_port]:
        # A wire holds what is sent while a box boots, for longer than a round.
        sent = syn(family, question.port, source_port, seq)
    as_sent = [at for at in range(min(len(quoted), len(sent))) if quoted[at] != sent[at]]
    what = 'icmp %d/%d quotes %d octets, unlike what was sent at %s, rest %s, %s' % (
        icmp[0], icmp[1], len(quoted), as_sent or 'none', icmp[4:8].hex(), seen)
    return question, what


def answer(packet, asked):
    """Returns the question that a packet answers and the class of the answer, or raises
    Unasked."""
    parts = split(packet)
    if parts is None:
        raise Unasked
    family, protocol, seen, payload = parts
    if protocol == TCP:
        return tcp_answer(family, seen, payload, asked)
    if protocol == (ICMP if family == 4 else ICMPV6):
        return icmp_answer(family, seen, payload, asked)
    raise Unasked


class Log:
    """Counts answers by class, and writes a line for each class when its tenth of a
    second is over. A line `[now]` says that all before `now` has been written."""

    def __init__(self, out):
        self.out = out
        self.bins = {}              # (tenth, family, role, what): [first, last, count]

    def note(self, at, family, role, what):
        counted = self.bins.setdefault((int(at / BIN), family, role, what), [at, at, 0])
        counted[0] = min(counted[0], at)
        counted[1] = max(counted[1], at)
        counted[2] += 1

    def flush(self, now):
        for key in [key for key in self.bins if (key[0] + 1) * BIN <= now]:
            first, last, count = self.bins.pop(key)
            self.out.write(json.dumps([first, last, *key[1:], count]) + '\n')
        # Silence is known late, and is noted at the time of its question.
        self.out.write(json.dumps([now - PATIENCE]) + '\n')
        self.out.flush()


def read_log(path, since=0.0):
    """Returns the Lines that end after `since`, and up to which time the log is
    complete."""
    lines, complete = [], 0.0
    with open(path) as log:
        for text in log:
            if not text.endswith('\n'):
                break               # it is being written
            values = json.loads(text)
            if len(values) == 1:
                complete = values[0]
            elif values[1] >= since:
                lines.append(Line(*values))
    return lines, complete


def are_near(one, other):
    return one.first - NEAR <= other.last and other.first <= one.last + NEAR


def is_chance(line, lines):
    """Is it one packet with an IPv4 id of 0, and no other near it? Every counter comes to 0
    once in 65,536 packets; who writes no ids does so twice."""
    return 'id 0 df 0' in line.what and 1 == sum(
        other.count for other in lines if other[2:5] == line[2:5] and are_near(line, other))


def differences(lines):
    """Returns a Difference for each class by which a stranger could tell the two ports
    apart."""
    by_closed = collections.defaultdict(list)
    for line in lines:
        if line.role == 'closed':
            by_closed[line.family, line.what].append(line)
    found = {}
    for line in lines:
        if line.what == 'silence' or is_chance(line, lines):
            continue                # alone it says nothing; 'long silence' compares
        if line.what == 'long silence':
            what = 'silence of the %s port alone' % line.role
        elif line.role == 'closed' or any(
                are_near(other, line) for other in by_closed[line.family, line.what]):
            continue
        else:
            what = line.what
        known = found.get((line.family, what))
        if known is None:
            known = Difference(line.first, line.last, line.family, what, 0)
        found[line.family, what] = known._replace(
            first=min(known.first, line.first), last=max(known.last, line.last),
            count=known.count + line.count)
    return sorted(found.values())


def listen(wire):
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    capture.bind((wire, ETH_P_ALL))
    capture.setblocking(False)
    return capture


def octets_of(mac):
    return bytes.fromhex(mac.replace(':', ''))


def probe(wire, out, hidden, closed, stop, first_source, gap):
    asked, log, capture = Asked(hidden, closed), Log(out), listen(wire)
    ethernet = octets_of(BOX_MAC) + octets_of(OUR_MAC)
    kinds = {4: struct.pack('>H', ETH_P_IP), 6: struct.pack('>H', ETH_P_IPV6)}
    turns = 0
    due = flush_due = time.time()
    while not stop:
        now = time.time()
        if now >= due:
            due = max(due + gap, now)
            turns += 1
            source_port = first_source + turns % SOURCE_PORTS
            for family in (4, 6):
                questions = []
                for port in random.sample((hidden, closed), 2):
                    seq = random.getrandbits(32)
                    packet = syn(family, port, source_port, seq)
                    question = Question(family, port, source_port, seq, packet, now)
                    questions.append(question)
                asked.ask(family, questions, now)
                packets = [question.packet for question in questions]
                if family == 6:
                    packets += asked.again
                    asked.again = []
                for packet in packets:
                    try:
                        capture.send(ethernet + kinds[family] + packet)
                    except OSError:
                        pass        # no guest at the other end: silence, of both ports
        for late in asked.overdue(now):
            log.note(*late)
        asked.forget(now)
        if now >= flush_due:
            log.flush(now)
            flush_due = now + BIN
        left = max(0, due - time.time())
        readable = select.select([capture, sys.stdin], [], [], left)[0]
        if capture in readable:
            read_answers(capture, asked, log)
        if sys.stdin in readable:
            break                   # its end: whoever started us is gone
    log.flush(time.time() + BIN)


def hear(packet, asked, log, now):
    try:
        question, what = answer(packet, asked)
    except Unasked:
        return
    settled = asked.settled(question, what, now)
    if settled:
        log.note(*settled)
    elif asked.is_new(question, what) and not asked.is_doubtful(question, what, now):
        log.note(now, question.family, asked.roles[question.port], what)


def read_answers(capture, asked, log):
    for _ in range(256):            # then it is time to ask again
        try:
            frame, address = capture.recvfrom(2048)
        except OSError:
            return                  # nothing more, or the wire went down
        if address[2] == socket.PACKET_OUTGOING:
            continue
        hear(frame[ETHERNET:], asked, log, time.time())


def main(wire, path, hidden='22', closed='23', first_source=FIRST_SOURCE, gap=GAP):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    with open(path, 'w') as out:
        probe(wire, out, int(hidden), int(closed), stop, int(first_source), float(gap))


if __name__ == '__main__':
    main(*sys.argv[1:])
