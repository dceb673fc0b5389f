"""What goes over the wire: addresses, the message header, name service messages.

Facts of Linux's ``virtio_rpmsg_bus.c``, ``rpmsg_ns.c`` and ``include/linux/rpmsg``.
"""

import operator
from dataclasses import dataclass
from enum import IntFlag
from struct import Struct

from virtring.errors import InvalidArgument

#: No address: "choose one", "not known yet" (Linux ``RPMSG_ADDR_ANY``). Never sent.
ADDR_ANY = 0xFFFFFFFF
#: Dynamic addresses begin here; those below are for predefined services.
RESERVED_ADDRESSES = 1024
#: Where name service announcements go (Linux ``RPMSG_NS_ADDR``).
NS_ADDR = 53
#: src, dst, reserved (u32 each), len, flags (u16 each): bytes in front of each payload.
HEADER_SIZE = 16
#: Most payload bytes a header can tell of.
MAX_PAYLOAD = 0xFFFF
#: Bytes of a buffer, header included (Linux ``MAX_RPMSG_BUF_SIZE``).
BUF_SIZE = 512
#: Most buffers, both directions together, unless told otherwise (Linux ``MAX_RPMSG_NUM_BUFS``).
MAX_NUM_BUFS = 512
#: Bytes of a service's name, its terminating zero included (Linux ``RPMSG_NAME_SIZE``).
NAME_SIZE = 32
#: Seconds that a sender waits for a buffer, as in Linux.
SEND_TIMEOUT = 15.0


class RpmsgFeature(IntFlag):
    """Feature bits of device type 7."""

    #: The other side announces its services (``VIRTIO_RPMSG_F_NS``).
    NS = 1 << 0


class NsFlag(IntFlag):
    """What a name service message says (Linux ``enum rpmsg_ns_flags``)."""

    CREATE = 0
    DESTROY = 1


@dataclass(frozen=True)
class NsMessage:
    """A service appears at ``addr`` or goes (``flags`` has DESTROY)."""

    name: str
    addr: int
    flags: int = NsFlag.CREATE

    def pack(self, big_endian: bool) -> bytes:
        """40 bytes: name u8[32], addr u32, flags u32."""
        return _ns(big_endian).pack(encode_name(self.name), self.addr, self.flags)

    @classmethod
    def unpack(cls, data: bytes, big_endian: bool) -> "NsMessage | None":
        """None unless ``data`` is one message, with a name and an address that can be.

        The sender is not trusted to end the name with a zero.
        """
        if len(data) != NS_SIZE:
            return None
        raw, addr, flags = _ns(big_endian).unpack(data)
        name = raw[: NAME_SIZE - 1].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        if not name or addr == ADDR_ANY:
            return None
        return cls(name, addr, flags)


_NS = (Struct(f"<{NAME_SIZE}sII"), Struct(f">{NAME_SIZE}sII"))
NS_SIZE = _NS[0].size


def _ns(big_endian: bool) -> Struct:
    return _NS[1 if big_endian else 0]


def encode_name(name: str) -> bytes:
    """A service's name as on the wire; InvalidArgument unless it has 1 to 31 bytes, none zero."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except (AttributeError, UnicodeEncodeError):
        raise InvalidArgument(f"name {name!r}: it takes a str") from None
    if not 1 <= len(raw) < NAME_SIZE or b"\0" in raw:
        raise InvalidArgument(
            f"name {name!r}: it takes 1 to {NAME_SIZE - 1} bytes of UTF-8 without a zero"
        )
    return raw


def check_address(addr: int, what: str) -> int:
    """``addr`` as an address, ANY among them; InvalidArgument unless it has 32 bits."""
    try:
        number = operator.index(addr)
    except TypeError:
        raise InvalidArgument(f"{what} {addr!r}: an address is an int") from None
    if not 0 <= number <= ADDR_ANY:
        raise InvalidArgument(f"{what} {number:#x}: an address has 32 bits")
    return number


def check_buf_size(size: int, what: str) -> int:
    """``size`` as bytes of a buffer; InvalidArgument unless a header and a payload fit."""
    try:
        number = operator.index(size)
    except TypeError:
        raise InvalidArgument(f"{what} {size!r}: it takes a number of bytes") from None
    if not HEADER_SIZE < number <= HEADER_SIZE + MAX_PAYLOAD:
        raise InvalidArgument(
            f"{what} {number}: it takes {HEADER_SIZE + 1} to {HEADER_SIZE + MAX_PAYLOAD} bytes"
        )
    return number
