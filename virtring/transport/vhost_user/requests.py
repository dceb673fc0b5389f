"""The front end's half of the messages: what a driver's process asks of a back end."""

import os
import socket
from collections.abc import Sequence
from threading import RLock

from virtring.errors import InvalidArgument, NotSupported, PeerDied
from virtring.queue import QueueConfig
from virtring.transport.unix import ProtocolError, close_fds
from virtring.transport.vhost_user.connection import Connection
from virtring.transport.vhost_user.memory import Slot
from virtring.transport.vhost_user.message import (
    CONFIG,
    F_PROTOCOL_FEATURES,
    INFLIGHT,
    MAX_CONFIG,
    MAX_FDS,
    MEM_REG,
    MEM_TABLE,
    NO_FD,
    REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    InflightArea,
    Protocol,
    Request,
)

#: Protocol features that a front end of ours can use.
WANTED = (
    Protocol.MQ
    | Protocol.REPLY_ACK
    | Protocol.BACKEND_REQ
    | Protocol.CONFIG
    | Protocol.INFLIGHT_SHMFD
    | Protocol.RESET_DEVICE
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.STATUS
)


def connect(path: str) -> Connection:
    """A connection to the back end that listens at ``path``; PeerDied when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise PeerDied(f"no back end at {path}: {error}") from error
    return Connection(sock)


class FrontEnd:
    """One connection to a back end, negotiated. Every call may wait for the back end.

    features: the bits on offer, without those of the protocol. protocol: what both ends know.
    queues: how many the back end has, None if it does not say. slots: the most memory regions.

    Raises PeerDied when the back end is gone, ProtocolError for an answer that is none,
    NotSupported when it refuses.
    """

    def __init__(self, connection: Connection, wanted: Protocol = WANTED) -> None:
        self.connection = connection
        self.lock = RLock()
        self.protocol = Protocol(0)
        self.queues: int | None = None
        self.slots = MAX_FDS
        offered = self._number(Request.GET_FEATURES)
        self.has_protocol = bool(offered & F_PROTOCOL_FEATURES)
        self.features = offered & ~F_PROTOCOL_FEATURES
        if self.has_protocol:
            protocol = Protocol(self._number(Request.GET_PROTOCOL_FEATURES) & int(wanted))
            self.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(int(protocol)))
            self.protocol = protocol
        self.tell(Request.SET_OWNER)
        if Protocol.MQ in self.protocol:
            self.queues = self._number(Request.GET_QUEUE_NUM)
        if Protocol.CONFIGURE_MEM_SLOTS in self.protocol:
            self.slots = self._number(Request.GET_MAX_MEM_SLOTS)

    def close(self) -> None:
        self.connection.close()

    # Messages.

    def ask(
        self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> tuple[bytes, list[int]]:
        """Send a request that has an answer: its payload and descriptors (yours to close)."""
        with self.lock:
            self._send(request, payload, fds, False)
            return self._answer(request)

    def tell(
        self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Send a request that has none of its own; NotSupported when the back end refuses it."""
        ack = Protocol.REPLY_ACK in self.protocol
        with self.lock:
            self._send(request, payload, fds, ack)
            if not ack:
                return
            answer, got = self._answer(request)
        close_fds(got)
        if len(answer) != U64.size:
            raise ProtocolError(f"{request.name}: an acknowledgement of {len(answer)} bytes")
        if answer != U64.pack(0):
            raise NotSupported(f"the back end refuses {request.name}")

    def _send(self, request: Request, payload: bytes, fds: Sequence[int], ack: bool) -> None:
        try:
            self.connection.send(request, payload, fds, need_reply=ack)
        except OSError as error:
            raise PeerDied(f"{request.name}: the back end is gone: {error}") from error

    def _answer(self, request: Request) -> tuple[bytes, list[int]]:
        try:
            message = self.connection.recv()
        except OSError as error:
            raise PeerDied(f"{request.name}: the back end is gone: {error}") from error
        if message is None:
            raise PeerDied(f"{request.name}: the back end closed the connection")
        if message.request != request or not message.is_reply:
            close_fds(message.fds)
            raise ProtocolError(f"{message} is no answer to {request.name}")
        return message.payload, message.fds

    def _number(self, request: Request) -> int:
        payload, fds = self.ask(request)
        close_fds(fds)
        if len(payload) != U64.size:
            raise ProtocolError(f"{request.name}: an answer of {len(payload)} bytes")
        return int(U64.unpack(payload)[0])

    # Features and status.

    def set_features(self, features: int) -> None:
        extra = F_PROTOCOL_FEATURES if self.has_protocol else 0
        self.tell(Request.SET_FEATURES, U64.pack(features | extra))

    def get_status(self) -> int:
        return self._number(Request.GET_STATUS)

    def set_status(self, status: int) -> None:
        self.tell(Request.SET_STATUS, U64.pack(status))

    def reset_device(self) -> None:
        self.tell(Request.RESET_DEVICE)

    def set_channel(self, fd: int) -> None:
        """Where the back end sends requests of its own."""
        self.tell(Request.SET_BACKEND_REQ_FD, fds=[fd])

    # Memory.

    def set_mem_table(self, slots: Sequence[tuple[Slot, int]]) -> None:
        """The whole memory, at once: regions and their descriptors."""
        regions = b"".join(pack_slot(slot) for slot, _ in slots)
        payload = MEM_TABLE.pack(len(slots), 0) + regions
        self.tell(Request.SET_MEM_TABLE, payload, [fd for _, fd in slots])

    def add_mem_reg(self, slot: Slot, fd: int) -> None:
        self.tell(Request.ADD_MEM_REG, MEM_REG.pack(0) + pack_slot(slot), [fd])

    def rem_mem_reg(self, slot: Slot) -> None:
        self.tell(Request.REM_MEM_REG, MEM_REG.pack(0) + pack_slot(slot))

    # Rings.

    def start_ring(self, config: QueueConfig, base: int, kick: int, call: int, err: int) -> None:
        """Give a ring over, without enabling it. Descriptors are -1 for none: then it is polled.

        The addresses are guest addresses: that is what our slots say, for both kinds.
        """
        index = config.index
        self.tell(Request.SET_VRING_NUM, VRING_STATE.pack(index, config.size))
        self.tell(Request.SET_VRING_BASE, VRING_STATE.pack(index, base))
        addresses = VRING_ADDR.pack(index, 0, config.desc, config.used, config.avail, 0)
        self.tell(Request.SET_VRING_ADDR, addresses)
        # The kick starts the ring: what it wakes can signal already.
        self._ring_fd(Request.SET_VRING_CALL, index, call)
        self._ring_fd(Request.SET_VRING_ERR, index, err)
        self._ring_fd(Request.SET_VRING_KICK, index, kick)

    def _ring_fd(self, request: Request, index: int, fd: int) -> None:
        payload = U64.pack(index if fd >= 0 else index | NO_FD)
        self.tell(request, payload, [fd] if fd >= 0 else [])

    def enable_ring(self, index: int, on: bool) -> None:
        """Let the back end use a ring, or not. Without protocol features it does from the start."""
        if self.has_protocol:
            self.tell(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, on))

    def stop_ring(self, index: int) -> int:
        """Take a ring back: where the back end stopped, as SET_VRING_BASE wants it again."""
        payload, fds = self.ask(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        close_fds(fds)
        if len(payload) != VRING_STATE.size:
            raise ProtocolError(f"GET_VRING_BASE: an answer of {len(payload)} bytes")
        got, base = VRING_STATE.unpack(payload)
        if got != index:
            raise ProtocolError(f"GET_VRING_BASE: ring {got} instead of {index}")
        return int(base)

    # Configuration.

    def get_config(self, offset: int, size: int) -> bytes:
        """Bytes of the configuration space; InvalidArgument when the back end has fewer."""
        if not self.has(Protocol.CONFIG):
            raise NotSupported("the back end has no configuration space (CONFIG)")
        end = offset + size
        if offset < 0 or size < 0 or end > MAX_CONFIG:
            raise InvalidArgument(
                f"configuration bytes {offset} to {end}; a message has {MAX_CONFIG}"
            )
        # From 0 on: QEMU's library answers with the beginning, whatever offset is asked for.
        payload, fds = self.ask(Request.GET_CONFIG, CONFIG.pack(0, end, 0) + bytes(end))
        close_fds(fds)
        if len(payload) < CONFIG.size + end:
            raise InvalidArgument(f"configuration bytes {offset} to {end}: the back end has fewer")
        return payload[CONFIG.size + offset : CONFIG.size + end]

    def set_config(self, offset: int, data: bytes) -> None:
        if not self.has(Protocol.CONFIG):
            raise NotSupported("the back end has no configuration space (CONFIG)")
        if offset < 0 or offset + len(data) > MAX_CONFIG:
            raise InvalidArgument(f"{len(data)} bytes of configuration at {offset}")
        self.tell(Request.SET_CONFIG, CONFIG.pack(offset, len(data), 0) + data)

    def has(self, feature: Protocol) -> bool:
        """Was this protocol feature negotiated?"""
        return feature in self.protocol

    # In-flight tracking.

    def get_inflight(self, queues: int, size: int) -> InflightArea:
        """A new area in which the back end writes down what it works on. Yours to close."""
        payload, fds = self.ask(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, queues, size))
        if len(payload) < INFLIGHT.size or len(fds) != 1:
            close_fds(fds)
            raise ProtocolError(
                f"GET_INFLIGHT_FD: an answer of {len(payload)} bytes with {len(fds)} descriptors"
            )
        length, offset, _, _ = INFLIGHT.unpack_from(payload)
        os.set_inheritable(fds[0], False)
        return InflightArea(fds[0], length, offset, queues, size)

    def set_inflight(self, area: InflightArea) -> None:
        """Give the area back to the back end, which may be another one by now."""
        payload = INFLIGHT.pack(area.length, area.offset, area.queues, area.size)
        self.tell(Request.SET_INFLIGHT_FD, payload, [area.fd])


def pack_slot(slot: Slot) -> bytes:
    return REGION.pack(slot.guest_addr, slot.size, slot.user_addr, slot.mmap_offset)
