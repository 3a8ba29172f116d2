"""A TCP segment, as every test makes it that sends or parses one."""

import struct

SYN, ACK, RST = 0x02, 0x10, 0x04


def tcp_segment(port, badge=bytes(10), source_port=40000, flags=SYN, options=b'', check=0):
    """RFC 9293, 3.1. badge: seq, ack and window; options: whole words."""
    offset = 5 + len(options) // 4
    return struct.pack('>HH8sBB2sHH', source_port, port, badge[:8], offset << 4, flags, badge[8:],
                       check, 0) + options
