"""What the kernel tells of a changed ruleset, as bytes."""

import struct


def message(kind, table='filter', sender=700, family=1):
    """An event of nf_tables, which is 10 in the upper byte: linux/netlink.h, struct nlmsghdr;
    linux/netfilter/nfnetlink.h, struct nfgenmsg; the name of a table; its handle. Generations
    (15) have a number in place of the name."""
    name = table.encode() + b'\0'
    if kind == 15:
        name = bytes(4)
    body = struct.pack('=BBHHH', family, 0, 7, 4 + len(name), 1) + name
    body += bytes(-len(body) % 4) + struct.pack('=HH8s', 12, 4, b'handle')
    return struct.pack('=IHHII', 16 + len(body), 10 << 8 | kind, 0, 1, sender) + body
