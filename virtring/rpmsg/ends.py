"""The two roles: the driver, who owns the buffers, and the device, who works in them."""

from __future__ import annotations

import operator

from virtring.errors import InvalidArgument
from virtring.memory.guest import GuestMemory
from virtring.queue.chain import Chain
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.queue.notify import EventFd, Spin
from virtring.queue.spin import spin_available, spin_used
from virtring.rpmsg.buffers import RxBuffer, TxBuffer
from virtring.rpmsg.bus import RpmsgBus
from virtring.rpmsg.device_port import DevicePort
from virtring.rpmsg.driver_port import DriverPort
from virtring.rpmsg.wire import (
    BUF_SIZE,
    HEADER_SIZE,
    MAX_NUM_BUFS,
    SEND_TIMEOUT,
    check_buf_size,
)


def _check(rvq: object, svq: object, kind: type, memory: GuestMemory | None) -> None:
    for what, queue in (("rvq", rvq), ("svq", svq)):
        if not isinstance(queue, kind):
            raise InvalidArgument(f"{what} is a {type(queue).__name__}; it takes a {kind.__name__}")
        if memory is not None and queue.memory is not memory:  # type: ignore[attr-defined]
            raise InvalidArgument(f"{what} is not a queue over that memory")
    if rvq is svq:
        raise InvalidArgument("rvq and svq are the same queue")


class DriverBus(RpmsgBus):
    """The driver role ("rpmsg host"): owns the buffers of both directions.

    rvq, svq: queues 0 and 1, both empty. memory: where the buffers come from; that of the queues.
    features: what was negotiated of :class:`RpmsgFeature`. rx_buf_size, tx_buf_size: bytes of a
    buffer, header included (512). num_bufs: buffers of both directions together, half of them each;
    by default twice the ring, at most 512. rx_event, tx_event: the eventfds that the device's calls
    signal, if this bus is to sleep on them. timeout: see :class:`RpmsgBus`. spin: how receivers
    poll before they sleep. The byte order is that of the ring: little-endian but for the legacy
    interface of a big-endian guest.

    The receive buffers are posted at once, and tx-complete notifications turned off. With ``kick``
    False the device is not told of the buffers: for one that is not ready yet; kick rvq later.
    """

    port: DriverPort

    def __init__(
        self,
        rvq: Virtqueue,
        svq: Virtqueue,
        memory: GuestMemory | None = None,
        features: int = 0,
        *,
        rx_buf_size: int = BUF_SIZE,
        tx_buf_size: int = BUF_SIZE,
        num_bufs: int | None = None,
        rx_event: EventFd | None = None,
        tx_event: EventFd | None = None,
        timeout: float | None = SEND_TIMEOUT,
        spin: Spin | None = None,
        kick: bool = True,
    ) -> None:
        _check(rvq, svq, Virtqueue, memory)
        check_buf_size(rx_buf_size, "rx_buf_size")
        check_buf_size(tx_buf_size, "tx_buf_size")
        small = min(rvq.vring_size, svq.vring_size)
        half = min(small, MAX_NUM_BUFS // 2)
        if num_bufs is not None:
            half = operator.index(num_bufs) // 2
            if not 1 <= half <= small or num_bufs % 2:
                raise InvalidArgument(
                    f"num_bufs {num_bufs}: it takes an even number from 2 to {2 * small}"
                )
        self.port = DriverPort(
            rvq, svq, rx_buf_size, tx_buf_size, half, half, rvq.config.big_endian
        )
        svq.disable_cb()
        if rx_event is not None:
            rvq.disable_cb()
        super().__init__(features, rx_event, tx_event, timeout, spin)
        if kick:
            rvq.kick()

    def _arm_tx(self) -> bool:
        return self.port.svq.enable_cb()

    def _disarm_tx(self) -> None:
        self.port.svq.disable_cb()

    def _arm_rx(self) -> bool:
        return self.port.rvq.enable_cb()

    def _disarm_rx(self) -> None:
        self.port.rvq.disable_cb()

    def _tx_ready(self) -> bool:
        return self.port.tx_free > 0 or self.port.svq.more_used

    def _spin_rx(self, microseconds: float) -> bool:
        return spin_used(self.port.rvq, microseconds)

    @property
    def _ring_size(self) -> int:
        return self.port.rvq.vring_size

    def _excess(self) -> int:
        return self.port.rvq.excess

    def _take_tx(self) -> TxBuffer | None:
        index = self.port.take_tx()
        if index < 0:
            return None
        return TxBuffer(self, self.port.tx_view(index), index, False)

    def _commit_tx(self, buffer: TxBuffer, used: int) -> bool:
        return self.port.commit_tx(buffer.key, used)

    def _give_tx(self, buffer: TxBuffer) -> None:
        self.port.give_tx(buffer.key)

    def _take_rx(self) -> RxBuffer | None:
        while (taken := self.port.take_rx()) is not None:
            index, used = taken
            view = self.port.rx_view(index)
            header = self.port.parse_header(view, used)
            if header is not None:
                src, dst, length, flags = header
                self.port.count_received(length)
                data = view[HEADER_SIZE : HEADER_SIZE + length]
                return RxBuffer(self, data, src, dst, flags, index)
            self.port.give_rx(index)
        return None

    def _give_rx(self, buffer: RxBuffer) -> None:
        self.port.give_rx(buffer.key)

    # -- after a reset of a queue --------------------------------------------------------------

    def recycle_tx(self, _vq: Virtqueue, token: object) -> None:
        """``svq.reset(bus.recycle_tx)``: what was in flight can be used again."""
        with self.tx_lock:
            self.port.recycle_tx(token)
        self.tx.wake()

    def recycle_rx(self, _vq: Virtqueue, token: object) -> None:
        """``rvq.reset(bus.recycle_rx)``, and then :meth:`post_rx`."""
        with self.rx_lock:
            self.port.recycle_rx(token)

    def post_rx(self) -> int:
        """Post the receive buffers that are not in the ring; how many it took."""
        with self.rx_lock:
            return self.port.post_rx()


class DeviceBus(RpmsgBus):
    """The device role, over queues whose driver may be in another process.

    rvq: what this side receives from, the driver's queue 1. svq: what this side sends in, the
    driver's queue 0. tx_buf_size: what the driver's receive buffers have at least; smaller ones are
    given back unused and counted. rx_buf_size: the most that a message of the driver has; longer
    ones are dropped. rx_event, tx_event: the eventfds that the driver's kicks of rvq and svq
    signal. The rest is as for :class:`DriverBus`.
    """

    port: DevicePort

    def __init__(
        self,
        rvq: DeviceQueue,
        svq: DeviceQueue,
        memory: GuestMemory | None = None,
        features: int = 0,
        *,
        rx_buf_size: int = BUF_SIZE,
        tx_buf_size: int = BUF_SIZE,
        rx_event: EventFd | None = None,
        tx_event: EventFd | None = None,
        timeout: float | None = SEND_TIMEOUT,
        spin: Spin | None = None,
    ) -> None:
        _check(rvq, svq, DeviceQueue, memory)
        for queue in (rvq, svq):
            if queue.config is None:
                raise InvalidArgument("the queue is not configured; call configure() first")
        self.port = DevicePort(rvq, svq, rx_buf_size, tx_buf_size, rvq.config.big_endian)
        svq.disable_notify()
        if rx_event is not None:
            rvq.disable_notify()
        super().__init__(features, rx_event, tx_event, timeout, spin)

    def _arm_tx(self) -> bool:
        return self.port.svq.enable_notify()

    def _disarm_tx(self) -> None:
        self.port.svq.disable_notify()

    def _arm_rx(self) -> bool:
        return self.port.rvq.enable_notify()

    def _disarm_rx(self) -> None:
        self.port.rvq.disable_notify()

    def _tx_ready(self) -> bool:
        return bool(self.port.spare) or self.port.svq.more_available

    def _spin_rx(self, microseconds: float) -> bool:
        return spin_available(self.port.rvq, microseconds)

    @property
    def _ring_size(self) -> int:
        return self.port.rvq.size

    def _excess(self) -> int:
        return 0

    def _take_tx(self) -> TxBuffer | None:
        chain = self.port.take_tx()
        if chain is None:
            return None
        size = self.port.tx_mtu + HEADER_SIZE
        if len(chain) == 1:
            return TxBuffer(self, chain.writable[0][:size], chain, False)
        return TxBuffer(self, memoryview(bytearray(size)), chain, True)

    def _commit_tx(self, buffer: TxBuffer, used: int) -> bool:
        chain: Chain = buffer.key
        if buffer.aside:
            assert buffer.whole is not None
            chain.write(buffer.whole[:used], 0)
        chain.return_(used)
        self.port.count_sent(used - HEADER_SIZE)
        self.port.svq.signal()
        return True

    def _give_tx(self, buffer: TxBuffer) -> None:
        self.port.spare.append(buffer.key)

    def _take_rx(self) -> RxBuffer | None:
        while (chain := self.port.rvq.next_chain()) is not None:
            # In several pieces it is gathered; in one it stays where it is.
            used = chain.readable_bytes
            most = self.port.rx_mtu + HEADER_SIZE
            pieces = chain.readable
            whole = pieces[0] if len(pieces) == 1 else memoryview(chain.read(most))
            header = self.port.parse_header(whole, used)
            if header is not None:
                src, dst, length, flags = header
                self.port.count_received(length)
                data = whole[HEADER_SIZE : HEADER_SIZE + length]
                return RxBuffer(self, data, src, dst, flags, chain)
            self._give_back(chain)
        return None

    def _give_rx(self, buffer: RxBuffer) -> None:
        self._give_back(buffer.key)

    def _give_back(self, chain: Chain) -> None:
        chain.return_(0)
        self.port.rvq.signal()
