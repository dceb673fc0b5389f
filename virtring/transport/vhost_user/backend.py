"""The vhost-user back end: one front end's session with one device (QEMU vhost-user.rst)."""

import logging
import os
import socket
import struct
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import runtime_checkable

from virtring.device import Device
from virtring.errors import InvalidArgument, VirtioError
from virtring.spec.features import Feature
from virtring.spec.status import Status
from virtring.transport.unix import ProtocolError, close_fds
from virtring.transport.vhost_user.connection import Connection
from virtring.transport.vhost_user.memory import MAX_SLOTS, Slot
from virtring.transport.vhost_user.message import (
    CONFIG,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    INFLIGHT,
    LOG,
    MEM_REG,
    MEM_TABLE,
    NO_FD,
    REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    BackendRequest,
    InflightArea,
    Message,
    Protocol,
    Request,
    check_request,
)
from virtring.transport.vhost_user.ring_life import RingLife
from virtring.transport.vhost_user.vring import Vring
from virtring.transport.vhost_user.words import in_words

log = logging.getLogger(__name__)

#: Protocol features that every device of ours can have.
PROTOCOL = (
    Protocol.MQ
    | Protocol.REPLY_ACK
    | Protocol.BACKEND_REQ
    | Protocol.CONFIG
    | Protocol.RESET_DEVICE
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.STATUS
    | Protocol.INFLIGHT_SHMFD
    | Protocol.LOG_SHMFD
)


@runtime_checkable
class Announces(typing.Protocol):
    """A net device that can tell its network where a guest is now (SEND_RARP)."""

    def send_rarp(self, mac: bytes) -> None:
        """Broadcast a reverse ARP packet from ``mac``, 6 bytes."""


@runtime_checkable
class TakesMtu(typing.Protocol):
    """A net device that takes the front end's MTU (NET_SET_MTU)."""

    def set_mtu(self, mtu: int) -> None:
        """Use packets of up to ``mtu`` bytes; InvalidArgument when it cannot."""


#: A handler takes the message and gives the answer's payload, None for no answer of its own.
Handler = Callable[[Message], bytes | None]


class BackEnd(RingLife):
    """Answers one front end. ``watch(vring)`` is called when a ring's kicks are to be heard,
    ``unwatch(vring)`` before its kick descriptor is closed. ``quiet()`` is around each message's
    handling: no other thread uses the rings or the memory inside.

    The device is attached to the front end's memory as long as this lives; :meth:`close` resets it.
    """

    def __init__(
        self,
        device: Device,
        connection: Connection,
        watch: Callable[[Vring], object],
        unwatch: Callable[[Vring], object],
        quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__(device, watch, unwatch)
        self.quiet = quiet
        self.connection = connection
        self.protocol = Protocol(0)
        self.status = Status(0)
        #: Descriptors that go with the answer, and are closed then.
        self.reply_fds: list[int] = []
        self.channel: Connection | None = None
        self.handlers: dict[int, Handler] = {
            request: getattr(self, "_" + request.name.lower())
            for request in Request
            if hasattr(self, "_" + request.name.lower())
        }
        device.attach(self.memory.memory, self.interrupt, self._config_changed)

    def close(self) -> None:
        """End of the session: the device is reset, everything of the front end is given back."""
        self.stop_all()
        self.device.detach()
        for vring in self.vrings:
            self.unwatch(vring)
            vring.forget()
        self.accounts.clear()
        self.memory.clear()
        if self.channel is not None:
            self.channel.close()
        self.connection.close()
        self.memory.memory.close()

    def handle(self) -> bool:
        """Take one message; False when the front end has closed.

        ProtocolError ends the session: close it.
        """
        message = self.connection.recv()
        if message is None:
            return False
        try:
            shape = check_request(message)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("<- %s", in_words(message, self.device.core.device_id))
            # In this order: a thread that ends may need the mutex.
            with self.quiet(), self.device.core.mutex:
                self._answer(message, shape.reply)
        finally:
            close_fds(message.fds)
        return True

    def _answer(self, message: Message, wants_reply: bool) -> None:
        handler = self.handlers.get(message.request)
        ack = message.need_reply and Protocol.REPLY_ACK in self.protocol and not wants_reply
        try:
            if handler is None:
                raise ProtocolError(f"{message} was not negotiated")
            payload = handler(message)
        except VirtioError as error:
            if not ack:
                raise ProtocolError(f"{message}: {error}") from error
            log.warning("%s: %s", message, error)
            self.connection.send(message.request, U64.pack(1), reply=True)
            return
        if wants_reply:
            assert payload is not None
            fds, self.reply_fds = self.reply_fds, []
            if log.isEnabledFor(logging.DEBUG):
                answer = Message(message.request, 0, payload, fds)
                log.debug("-> %s", in_words(answer, self.device.core.device_id))
            try:
                self.connection.send(message.request, payload, fds, reply=True)
            finally:
                close_fds(fds)
        elif ack:
            self.connection.send(message.request, U64.pack(0), reply=True)

    # Notifications.

    def _config_changed(self) -> None:
        if self.device.core.status & Status.NEEDS_RESET:
            for vring in self.vrings:
                vring.report_error()
        if self.channel is None or Protocol.CONFIG not in self.protocol:
            return
        try:
            self.channel.send(BackendRequest.CONFIG_CHANGE)
        except OSError as error:
            # What the driver's side closed, or does not read, must not stop the device.
            log.warning("the front end does not take requests: %s", error)
            self.channel.close()
            self.channel = None

    # Features.

    def _get_features(self, message: Message) -> bytes:
        return U64.pack(int(self.device.core.device_features) | F_PROTOCOL_FEATURES | F_LOG_ALL)

    def _set_features(self, message: Message) -> None:
        (bits,) = U64.unpack(message.payload)
        wanted = Feature(bits & ~(F_PROTOCOL_FEATURES | F_LOG_ALL))
        core = self.device.core
        extra = int(wanted) & ~int(core.device_features)
        if extra:
            raise ProtocolError(f"features {extra:#x} were not offered")
        if any(vring.started for vring in self.vrings):
            # Said again with rings running, to turn logging on or off.
            if wanted != self.features:
                raise ProtocolError("other features while rings are running")
        else:
            core.set_features(int(wanted))
            self.features = wanted
            if not bits & F_PROTOCOL_FEATURES:
                # Rings of such a front end are on from the start.
                for vring in self.vrings:
                    vring.enabled = True
        self.accounts.log_buffers = bool(bits & F_LOG_ALL)
        self.update_log()

    @property
    def protocol_offer(self) -> Protocol:
        """What every device can have, and what this one can beside it."""
        offer = PROTOCOL
        if isinstance(self.device, Announces):
            offer |= Protocol.RARP
        if isinstance(self.device, TakesMtu):
            offer |= Protocol.MTU
        return offer

    def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(int(self.protocol_offer))

    def _set_protocol_features(self, message: Message) -> None:
        (bits,) = U64.unpack(message.payload)
        extra = bits & ~int(self.protocol_offer)
        if extra:
            raise ProtocolError(f"protocol features {extra:#x} were not offered")
        self.protocol = Protocol(bits)
        self.accounts.logging = Protocol.LOG_SHMFD in self.protocol

    def _send_rarp(self, message: Message) -> None:
        self._negotiated(Protocol.RARP, message)
        assert isinstance(self.device, Announces)
        self.device.send_rarp(message.payload[:6])

    def _net_set_mtu(self, message: Message) -> None:
        self._negotiated(Protocol.MTU, message)
        assert isinstance(self.device, TakesMtu)
        (mtu,) = U64.unpack(message.payload)
        self.device.set_mtu(mtu)

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(len(self.vrings))

    def _set_owner(self, message: Message) -> None:
        return None

    def _reset_owner(self, message: Message) -> None:
        self._reset_device(message)

    def _reset_device(self, message: Message) -> None:
        self.stop_all()
        self.device.core.reset()
        self.accounts.forget_inflight()
        self.begun = False
        self.status = Status(0)

    def _set_status(self, message: Message) -> None:
        (value,) = U64.unpack(message.payload)
        if value > 0xFF:
            raise ProtocolError(f"status {value:#x}")
        if value == 0:
            self._reset_device(message)
            return
        self.status = Status(value)
        # What the front end does itself is not among the features, such as the control queue of a
        # net device.
        if Status.FEATURES_OK in self.status and not self.device.core.features_fit(whole=False):
            self.status &= ~Status.FEATURES_OK

    def _get_status(self, message: Message) -> bytes:
        return U64.pack(int(self.status | (self.device.core.status & Status.NEEDS_RESET)))

    # Memory.

    def _set_mem_table(self, message: Message) -> None:
        count, _ = MEM_TABLE.unpack_from(message.payload)
        expected = MEM_TABLE.size + count * REGION.size
        if len(message.payload) != expected or len(message.fds) != count:
            raise ProtocolError(
                f"{count} regions in {len(message.payload)} bytes with {len(message.fds)} fds"
            )
        slots = [
            Slot(guest, size, user, offset)
            for guest, size, user, offset in struct.iter_unpack(
                REGION.format, message.payload[MEM_TABLE.size :]
            )
        ]
        if len(set(slots)) != len(slots):
            raise ProtocolError("a memory region is there twice")
        self.memory.replace(list(zip(slots, message.fds, strict=True)))
        self.unmap()

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(MAX_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise ProtocolError("ADD_MEM_REG without a descriptor")
        self.memory.add(Slot(*REGION.unpack_from(message.payload, MEM_REG.size)), message.fds[0])

    def _rem_mem_reg(self, message: Message) -> None:
        guest, size, user, _ = REGION.unpack_from(message.payload, MEM_REG.size)
        self.memory.remove(self.memory.find(guest, size, user))
        self.unmap()

    # Rings.

    def _set_vring_num(self, message: Message) -> None:
        index, num = VRING_STATE.unpack(message.payload)
        self.stopped_vring(index, "size").num = num

    def _set_vring_base(self, message: Message) -> None:
        index, base = VRING_STATE.unpack(message.payload)
        self.stopped_vring(index, "base").base = base

    def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, log_addr = VRING_ADDR.unpack(message.payload)
        vring = self.vring(index)
        # Of a running ring the same addresses are said again, to turn logging on and off.
        if vring.started and (desc, used, avail) != (vring.desc, vring.used, vring.avail):
            raise ProtocolError(f"addresses of ring {index}, which is running")
        vring.desc, vring.used, vring.avail = desc, used, avail
        vring.log = log_addr if flags & 1 else None
        vring.has_addresses = True
        self.accounts.update(self.device.queues[index], vring.log)

    def _set_vring_enable(self, message: Message) -> None:
        index, on = VRING_STATE.unpack(message.payload)
        if on > 1:
            raise ProtocolError(f"enable {on}; it takes 0 or 1")
        vring = self.vring(index)
        vring.enabled = bool(on)
        self.show(vring)
        if not vring.started:
            return
        if vring.enabled:
            self.watch(vring)
            self.device.kick(index)
        else:
            self.unwatch(vring)

    def _fd(self, message: Message, name: str) -> Vring:
        (value,) = U64.unpack(message.payload)
        if value & ~(NO_FD | 0xFF) or bool(value & NO_FD) == bool(message.fds):
            raise ProtocolError(f"{message}: {value:#x} with {len(message.fds)} descriptors")
        vring = self.vring(value & 0xFF)
        if name == "kick":
            self.unwatch(vring)
        fd = message.fds.pop() if message.fds else -1
        if fd >= 0:
            os.set_blocking(fd, False)
        vring.set_fd(name, fd)
        return vring

    def _set_vring_kick(self, message: Message) -> None:
        vring = self._fd(message, "kick")
        if not vring.started:
            self.start(vring)
        self.show(vring)
        if vring.enabled:
            self.watch(vring)
            self.device.kick(vring.index)

    def _set_vring_call(self, message: Message) -> None:
        vring = self._fd(message, "call")
        if vring.started:
            # What was used before this descriptor came must not wait for ever.
            vring.interrupt()

    def _set_vring_err(self, message: Message) -> None:
        self._fd(message, "err")

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = VRING_STATE.unpack(message.payload)
        vring = self.vring(index)
        self.stop(vring)
        self.unwatch(vring)
        vring.set_fd("kick", -1)
        return VRING_STATE.pack(index, vring.base)

    # In-flight tracking and the dirty log.

    def _negotiated(self, feature: Protocol, message: Message) -> None:
        if feature not in self.protocol:
            raise ProtocolError(f"{message}: {feature.name} was not negotiated")

    def _get_inflight_fd(self, message: Message) -> bytes:
        self._negotiated(Protocol.INFLIGHT_SHMFD, message)
        _, _, queues, size = INFLIGHT.unpack(message.payload)
        area = self.accounts.new_inflight(queues, size)
        self.reply_fds.append(area.fd)
        return INFLIGHT.pack(area.length, area.offset, queues, size)

    def _set_inflight_fd(self, message: Message) -> None:
        self._negotiated(Protocol.INFLIGHT_SHMFD, message)
        if len(message.fds) != 1:
            raise ProtocolError("SET_INFLIGHT_FD without a descriptor")
        if any(vring.started for vring in self.vrings):
            raise ProtocolError("SET_INFLIGHT_FD while rings are running")
        self.accounts.set_inflight(InflightArea(message.fds[0], *INFLIGHT.unpack(message.payload)))

    def _set_log_base(self, message: Message) -> bytes:
        self._negotiated(Protocol.LOG_SHMFD, message)
        if len(message.fds) != 1:
            raise ProtocolError("SET_LOG_BASE without a descriptor")
        size, offset = LOG.unpack(message.payload)
        self.accounts.set_log(message.fds[0], size, offset)
        self.update_log()
        return U64.pack(0)

    def _set_log_fd(self, message: Message) -> None:
        # It would be signalled as a courtesy: whoever migrates looks at the log all the time.
        self._negotiated(Protocol.LOG_SHMFD, message)

    # Configuration.

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = CONFIG.unpack_from(message.payload)
        if size != len(message.payload) - CONFIG.size:
            raise ProtocolError(f"{size} bytes of configuration in a message of another size")
        config = bytes(self.device.core.config)
        # A front end asks for the longest configuration that it knows: what is beyond ours is zero.
        data = config[offset : offset + size].ljust(size, b"\0")
        return CONFIG.pack(offset, size, flags) + data

    def _set_config(self, message: Message) -> None:
        offset, size, _ = CONFIG.unpack_from(message.payload)
        data = message.payload[CONFIG.size :]
        if size != len(data):
            raise ProtocolError(f"{size} bytes of configuration in a message of another size")
        try:
            self.device.core.write_config(offset, data)
        except InvalidArgument as error:
            raise ProtocolError(str(error)) from error

    def _set_backend_req_fd(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise ProtocolError("SET_BACKEND_REQ_FD without a descriptor")
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        try:
            sock = socket.socket(fileno=message.fds[0])
        except OSError as error:
            raise ProtocolError(f"SET_BACKEND_REQ_FD: no socket: {error}") from error
        message.fds.clear()
        self.channel = Connection(sock)
