"""The driver side over vhost-user: a back end in another process as a VirtioDevice."""

import logging
import os
import socket
from collections.abc import Callable
from threading import Lock

from virtring.device import TransportOps, VirtioDevice, VirtioDeviceId, usable_features
from virtring.device.config_ops import SharedMemory, VqCallback
from virtring.errors import (
    FeaturesRejected,
    InvalidArgument,
    NotSupported,
    PeerDied,
    VirtioError,
    WrongState,
)
from virtring.memory import GuestMemory
from virtring.queue import EventFd, Virtqueue, vring_create_virtqueue
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status
from virtring.transport.unix import close_fds
from virtring.transport.vhost_user.connection import Connection
from virtring.transport.vhost_user.front_ring import Ring, start_position
from virtring.transport.vhost_user.listener import Listener
from virtring.transport.vhost_user.memory import Slot
from virtring.transport.vhost_user.message import (
    U64,
    BackendRequest,
    InflightArea,
    Message,
    Protocol,
)
from virtring.transport.vhost_user.net import net_features, net_queues
from virtring.transport.vhost_user.requests import WANTED, FrontEnd, connect

log = logging.getLogger(__name__)


class VhostUserOps(TransportOps):
    """The operations of a device that a back end at ``path`` serves.

    memory: shared with the back end, so every region needs a descriptor (a memfd). queue_size: the
    most ring entries, which the protocol cannot ask for; a power of two. interrupts: False for a
    driver that polls its queues or waits for :meth:`call_event`: callbacks never run. wanted:
    protocol features to use where the back end has them. gone: called when the back end closes or
    dies; by default all queues are broken then. It may call :meth:`reconnect` (later, in another
    thread).

    Raises PeerDied when nobody listens there, ProtocolError when the answers make no sense.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        memory: GuestMemory,
        *,
        queue_size: int = 128,
        interrupts: bool = True,
        wanted: Protocol = WANTED,
        gone: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.memory = memory
        self.queue_size = queue_size
        self.interrupts = interrupts
        self.wanted = wanted
        self.gone = gone
        self.lost = False
        self.config_changes = 0
        self._vdev: VirtioDevice | None = None
        self._status = Status(0)
        self._rings: dict[int, Ring] = {}
        self._slots: set[Slot] = set()
        self._inflight: InflightArea | None = None
        self._channel: Connection | None = None
        self._closing = Lock()
        self.front = self._connect()
        try:
            self.listener = Listener(f"vhost-user {self.path}")
        except BaseException:
            self.front.close()
            raise
        self._listen()

    # The connection.

    def _connect(self) -> FrontEnd:
        connection = connect(self.path)
        try:
            front = FrontEnd(connection, self.wanted)
            if front.has(Protocol.BACKEND_REQ):
                ours, theirs = socket.socketpair()
                with theirs:
                    self._channel = Connection(ours)
                    front.set_channel(theirs.fileno())
        except BaseException:
            connection.close()
            self._close_channel()
            raise
        return front

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _listen(self) -> None:
        self.listener.add(self.front.connection.fileno(), self._lost, hangup=True)
        if self._channel is not None:
            self.listener.add(self._channel.fileno(), self._channel_message)

    def _disconnect(self) -> None:
        with self._closing:
            if self.front.connection.fileno() >= 0:
                self.listener.remove(self.front.connection.fileno())
                self.front.close()
            if self._channel is not None:
                self.listener.remove(self._channel.fileno())
                self._close_channel()
            self._slots.clear()

    def close(self) -> None:
        """Close the connection, which ends the back end's use of the memory. Again is fine."""
        self._disconnect()
        self.listener.close()
        self._drop_inflight()
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()

    def _lost(self) -> None:
        log.warning("%s: the back end is gone", self.path)
        self.lost = True
        self._disconnect()
        for ring in self._rings.values():
            ring.started = False
        if self.gone is not None:
            self.gone()
        elif self._vdev is not None:
            self._vdev.break_()

    def reconnect(self) -> None:
        """Go on with a back end that has come (again) to ``path``, where the old one was killed.

        What was in flight is finished by the new one, which finds it in the tracking area.

        Raises WrongState while the old one is there, NotSupported when in-flight tracking was not
        negotiated, FeaturesRejected when the new one lacks features that are in use.
        """
        vdev = self._vdev
        if not self.lost or vdev is None:
            raise WrongState(f"{self.path}: the back end is there")
        if self._inflight is None:
            raise NotSupported(f"{self.path}: the back end did not track what was in flight")
        front = self._connect()
        missing = int(vdev.features) & ~front.features
        if missing or not front.has(Protocol.INFLIGHT_SHMFD):
            front.close()
            self._close_channel()
            raise FeaturesRejected(f"{self.path}: the new back end lacks features {missing:#x}")
        self.front = front
        self.lost = False
        self._listen()
        front.set_features(int(vdev.features))
        if front.has(Protocol.STATUS):
            front.set_status(int(self._status))
        self._start_all()
        for index, ring in self._rings.items():
            if ring.started:
                # Whoever was to be told may have died before.
                ring.kick.signal()
                self.vq_interrupt(index)

    # What the back end says.

    def _channel_message(self) -> None:
        channel = self._channel
        if channel is None:
            return
        failure = None
        try:
            message = channel.recv()
        except (VirtioError, OSError) as error:
            message, failure = None, error
        if message is None:
            with self._closing:
                # Else closed by us while it was read.
                if self._channel is channel:
                    if failure is not None:
                        log.warning("%s: the back end's channel: %s", self.path, failure)
                    self.listener.remove(channel.fileno())
                    self._close_channel()
            return
        close_fds(message.fds)
        known = self._back_end_asks(message)
        if message.need_reply:
            channel.send(message.request, U64.pack(not known), reply=True)

    def _back_end_asks(self, message: Message) -> bool:
        if message.request != BackendRequest.CONFIG_CHANGE:
            log.warning("%s: request %d of the back end ignored", self.path, message.request)
            return False
        self.config_changes += 1
        if self._vdev is not None:
            self.config_interrupt(self._vdev)
        return True

    def _called(self, index: int, call: EventFd) -> None:
        call.clear()
        self.vq_interrupt(index)

    def _failed(self, index: int, err: EventFd) -> None:
        err.clear()
        log.warning("%s: the back end finds queue %d broken", self.path, index)
        self._status |= Status.NEEDS_RESET
        if self._vdev is not None:
            self.config_interrupt(self._vdev)

    # Configuration, status, features.

    def get(self, vdev: VirtioDevice, offset: int, length: int) -> bytes:
        return self.front.get_config(offset, length)

    def set(self, vdev: VirtioDevice, offset: int, data: bytes) -> None:
        self.front.set_config(offset, data)

    def generation(self, vdev: VirtioDevice) -> int:
        return self.config_changes

    def get_status(self, vdev: VirtioDevice) -> Status:
        if self.front.has(Protocol.STATUS) and not self.lost:
            theirs = Status(self.front.get_status() & 0xFF)
            self._status = theirs | (self._status & Status.NEEDS_RESET)
        return self._status

    def set_status(self, vdev: VirtioDevice, status: Status) -> None:
        if not status:
            raise InvalidArgument("status 0 is a reset: use reset()")
        self._vdev = vdev
        begins = Status.DRIVER_OK in status and Status.DRIVER_OK not in self._status
        self._status = status
        if self.lost:
            return
        if begins:
            try:
                self._start_all()
            except BaseException:
                self._status &= ~Status.DRIVER_OK
                raise
        if self.front.has(Protocol.STATUS):
            self.front.set_status(int(status))

    def reset_device(self, vdev: VirtioDevice) -> None:
        self._vdev = vdev
        if not self.lost:
            for index, ring in self._rings.items():
                self._stop(index, ring)
            if self.front.has(Protocol.STATUS):
                self.front.set_status(0)
            elif self.front.has(Protocol.RESET_DEVICE):
                self.front.reset_device()
        for ring in self._rings.values():
            ring.ready = False
        self._status = Status(0)
        self._drop_inflight()

    def get_features(self, vdev: VirtioDevice) -> int:
        return net_features(self.front) if vdev.id.device == DeviceID.NET else self.front.features

    def finalize_features(self, vdev: VirtioDevice) -> None:
        vdev.features = usable_features(vdev.features)
        self.front.set_features(int(vdev.features))

    def bus_name(self, vdev: VirtioDevice) -> str:
        return f"vhost-user-{os.path.basename(self.path)}"

    def get_shm_region(self, vdev: VirtioDevice, id: int) -> SharedMemory | None:
        return None

    # Memory.

    def share_memory(self) -> None:
        """Tell the back end of regions that were added to the memory, or taken away.

        Done whenever queues start; call it after a change while they run. InvalidArgument for a
        region without a descriptor or more regions than the back end takes.
        """
        wanted = {}
        for guest_addr, size, region, offset, _ in self.memory.regions:
            if region.fd < 0:
                raise InvalidArgument(f"the memory at {guest_addr:#x} has no descriptor to share")
            slot = Slot(guest_addr, size, guest_addr, region.offset + offset)
            wanted[slot] = region.fd
        if wanted.keys() == self._slots:
            return
        if len(wanted) > self.front.slots:
            raise InvalidArgument(
                f"{len(wanted)} memory regions; the back end takes {self.front.slots}"
            )
        if self.front.has(Protocol.CONFIGURE_MEM_SLOTS):
            for slot in self._slots - wanted.keys():
                self.front.rem_mem_reg(slot)
                self._slots.discard(slot)
            for slot, fd in wanted.items():
                if slot not in self._slots:
                    self.front.add_mem_reg(slot, fd)
                    self._slots.add(slot)
        else:
            self.front.set_mem_table(list(wanted.items()))
            self._slots = set(wanted)

    # Queues.

    def setup_vq(
        self, vdev: VirtioDevice, index: int, callback: VqCallback | None, name: str, ctx: bool
    ) -> Virtqueue:
        most = self.front.queues
        if most is not None and vdev.id.device == DeviceID.NET:
            most = net_queues(most)
        if most is not None and index >= most:
            raise NotSupported(f"{vdev!r} has no queue {index} ({name})")
        ring = Ring()
        vq = vring_create_virtqueue(
            index,
            self.queue_size,
            64,
            vdev,
            may_reduce_num=True,
            context=ctx,
            notify=ring.kick,
            callback=callback,
            name=name,
        )
        self._rings[index] = ring
        self.listener.add(ring.err.fileno(), lambda: self._failed(index, ring.err))
        # QEMU's library takes a ring without a call eventfd for an error once it would signal, so a
        # driver that polls has one too, which nobody listens to.
        if self.interrupts:
            self.listener.add(ring.call.fileno(), lambda: self._called(index, ring.call))
        else:
            vq.disable_cb()
        return vq

    def call_event(self, index: int) -> EventFd:
        """What the back end signals for a queue that is set up, for ``wait_used``; WrongState with
        ``interrupts``, which listen to it."""
        if self.interrupts or index not in self._rings:
            raise WrongState(f"{self.path}: callbacks listen to queue {index}, or there is none")
        return self._rings[index].call

    def enable_vq(self, vq: Virtqueue) -> None:
        self._rings[vq.index].ready = True
        # Before DRIVER_OK the back end must not use buffers, and it knows of no DRIVER_OK.
        if Status.DRIVER_OK in self._status:
            self._start_all()

    def _start_all(self) -> None:
        self.share_memory()
        running = any(ring.started for ring in self._rings.values())
        if self.front.has(Protocol.INFLIGHT_SHMFD) and self._rings and not running:
            if self._inflight is None:
                size = max(self._vqs[index].vring_size for index in self._rings)
                self._inflight = self.front.get_inflight(max(self._rings) + 1, size)
            self.front.set_inflight(self._inflight)
        waiting = [
            (index, ring) for index, ring in self._rings.items() if ring.ready and not ring.started
        ]
        for index, ring in waiting:
            call = ring.call.fileno()
            config = self._vqs[index].config
            base = start_position(self.memory, config)
            self.front.start_ring(config, base, ring.kick.fileno(), call, ring.err.fileno())
            ring.started = True
        for index, _ in waiting:
            self.front.enable_ring(index, True)

    def _stop(self, index: int, ring: Ring) -> None:
        if ring.started:
            self.front.enable_ring(index, False)
            self.front.stop_ring(index)
            ring.started = False

    def reset_vq(self, vq: Virtqueue) -> None:
        ring = self._rings[vq.index]
        self._stop(vq.index, ring)
        ring.ready = False

    def del_vqs(self, vdev: VirtioDevice) -> None:
        for index, ring in self._rings.items():
            if not self.lost:
                try:
                    self._stop(index, ring)
                except PeerDied as error:
                    log.warning("%s", error)
            for event in (ring.call, ring.err):
                self.listener.remove(event.fileno())
        super().del_vqs(vdev)
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        self._drop_inflight()

    def _drop_inflight(self) -> None:
        area, self._inflight = self._inflight, None
        if area is not None:
            os.close(area.fd)


def vhost_user_device(
    path: str | os.PathLike[str],
    memory: GuestMemory,
    device_id: int,
    *,
    queue_size: int = 128,
    interrupts: bool = True,
    wanted: Protocol = WANTED,
    gone: Callable[[], object] | None = None,
) -> VirtioDevice:
    """A driver's view of the device that is served at ``path``; register it with a VirtioBus.

    device_id: which kind it is, which the protocol does not tell. The rest: see
    :class:`VhostUserOps`, which is ``vdev.config``; its ``close`` ends the connection.
    """
    ops = VhostUserOps(
        path, memory, queue_size=queue_size, interrupts=interrupts, wanted=wanted, gone=gone
    )
    return VirtioDevice(ops, memory, VirtioDeviceId(device_id))
