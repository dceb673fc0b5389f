"""The messages of the vhost-user protocol, both directions (QEMU docs/interop/vhost-user.rst).

Everything here comes from another process: sizes, counts and descriptors are checked against what
the request allows before anything is done with them.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from virtring.transport.unix import ProtocolError

#: Protocol version in the low bits of ``flags``.
VERSION = 1
VERSION_MASK = 3
REPLY = 1 << 2
NEED_REPLY = 1 << 3
#: Bit of a vring's u64 that says: no descriptor comes with this.
NO_FD = 1 << 8
#: Most payload bytes that any message of ours has.
MAX_PAYLOAD = 4096
#: Most descriptors that any message has: one a memory region.
MAX_FDS = 8
#: Most bytes of configuration space in a message.
MAX_CONFIG = 256

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
#: index, num
VRING_STATE = struct.Struct("<II")
#: index, flags, desc, used, avail, log (front-end addresses)
VRING_ADDR = struct.Struct("<IIQQQQ")
#: nregions, padding
MEM_TABLE = struct.Struct("<II")
#: padding before the region of ADD_MEM_REG and REM_MEM_REG
MEM_REG = struct.Struct("<Q")
#: guest address, size, front-end address, offset in the file
REGION = struct.Struct("<QQQQ")
#: offset, size, flags, then the bytes
CONFIG = struct.Struct("<III")
#: mmap size, mmap offset, queues, queue size; with the padding of a C structure
INFLIGHT = struct.Struct("<QQHH4x")
#: size, offset
LOG = struct.Struct("<QQ")


class Request(IntEnum):
    """What a front end asks of a back end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """What a back end asks of a front end, on the channel of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE = 2
    VRING_HOST_NOTIFIER = 3


class Protocol(IntFlag):
    """Protocol features (VHOST_USER_PROTOCOL_F_*)."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


#: Virtio feature bits with a meaning of their own between the two ends.
F_LOG_ALL = 1 << 26
F_PROTOCOL_FEATURES = 1 << 30


@dataclass(frozen=True)
class InflightArea:
    """Shared memory for in-flight tracking: ``length`` bytes of ``fd`` from ``offset`` on, for
    ``queues`` rings of up to ``size`` entries."""

    fd: int
    length: int
    offset: int
    queues: int
    size: int


@dataclass(frozen=True)
class Shape:
    """What a request looks like: payload bytes, least and most; descriptors; has it an answer?"""

    least: int = 0
    most: int = 0
    fds: int = 0
    reply: bool = False


_STATE = Shape(VRING_STATE.size, VRING_STATE.size)
_U64 = Shape(U64.size, U64.size)
_FD = Shape(U64.size, U64.size, 1)
_ASK = Shape(reply=True)

#: Requests of a front end. One that is missing is not known.
SHAPES: dict[Request, Shape] = {
    Request.GET_FEATURES: _ASK,
    Request.SET_FEATURES: _U64,
    Request.SET_OWNER: Shape(),
    Request.RESET_OWNER: Shape(),
    Request.SET_MEM_TABLE: Shape(MEM_TABLE.size, MEM_TABLE.size + MAX_FDS * REGION.size, MAX_FDS),
    Request.SET_LOG_BASE: Shape(LOG.size, LOG.size, 1, reply=True),
    Request.SET_LOG_FD: Shape(0, U64.size, 1),
    Request.SET_VRING_NUM: _STATE,
    Request.SET_VRING_ADDR: Shape(VRING_ADDR.size, VRING_ADDR.size),
    Request.SET_VRING_BASE: _STATE,
    Request.GET_VRING_BASE: Shape(VRING_STATE.size, VRING_STATE.size, reply=True),
    Request.SET_VRING_KICK: _FD,
    Request.SET_VRING_CALL: _FD,
    Request.SET_VRING_ERR: _FD,
    Request.GET_PROTOCOL_FEATURES: _ASK,
    Request.SET_PROTOCOL_FEATURES: _U64,
    Request.GET_QUEUE_NUM: _ASK,
    Request.SET_VRING_ENABLE: _STATE,
    Request.SEND_RARP: _U64,
    Request.NET_SET_MTU: _U64,
    Request.SET_BACKEND_REQ_FD: Shape(0, U64.size, 1),
    Request.GET_CONFIG: Shape(CONFIG.size, CONFIG.size + MAX_CONFIG, reply=True),
    Request.SET_CONFIG: Shape(CONFIG.size, CONFIG.size + MAX_CONFIG),
    Request.GET_INFLIGHT_FD: Shape(INFLIGHT.size, INFLIGHT.size, reply=True),
    Request.SET_INFLIGHT_FD: Shape(INFLIGHT.size, INFLIGHT.size, 1),
    Request.RESET_DEVICE: Shape(),
    Request.GET_MAX_MEM_SLOTS: _ASK,
    Request.ADD_MEM_REG: Shape(MEM_REG.size + REGION.size, MEM_REG.size + REGION.size, 1),
    Request.REM_MEM_REG: Shape(MEM_REG.size + REGION.size, MEM_REG.size + REGION.size, 1),
    Request.SET_STATUS: _U64,
    Request.GET_STATUS: _ASK,
}


@dataclass
class Message:
    """One message as it came: ``fds`` belong to whoever has it, and are closed by ``close``."""

    request: int
    flags: int
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & REPLY)

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & NEED_REPLY)

    def __str__(self) -> str:
        try:
            name = Request(self.request).name
        except ValueError:
            name = f"request {self.request}"
        fds = f", {len(self.fds)} fd" if self.fds else ""
        return f"{name} ({len(self.payload)} bytes{fds})"


def check_request(message: Message) -> Shape:
    """The shape of a front end's request; ProtocolError when it does not have it."""
    try:
        request = Request(message.request)
    except ValueError:
        raise ProtocolError(f"request {message.request} is not known here") from None
    shape = SHAPES[request]
    size = len(message.payload)
    if not shape.least <= size <= shape.most:
        raise ProtocolError(f"{request.name}: {size} bytes, not {shape.least} to {shape.most}")
    if len(message.fds) > shape.fds:
        raise ProtocolError(f"{request.name}: {len(message.fds)} descriptors, not {shape.fds}")
    if message.is_reply:
        raise ProtocolError(f"{request.name}: a reply where a request was due")
    return shape
