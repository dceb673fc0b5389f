"""Sending at the level of addresses, with locks and waits; the same in both roles."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from virtring.errors import InvalidArgument, NoSpace, QueueClosed, WaitTimeout
from virtring.queue.eventfd import check_timeout
from virtring.queue.notify import EventFd, Spin
from virtring.rpmsg.buffers import RxBuffer, TxBuffer
from virtring.rpmsg.device_port import DevicePort
from virtring.rpmsg.driver_port import DriverPort
from virtring.rpmsg.messages import Messages
from virtring.rpmsg.sleepers import Sleepers
from virtring.rpmsg.wire import ADDR_ANY, HEADER_SIZE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

T = TypeVar("T")


@dataclass(frozen=True)
class Counters:
    """What happened so far. ``dropped``: received messages that reached nobody, by reason:

    - ``short``: less than a header was there
    - ``length``: the header tells of more bytes than were there, or than a buffer holds
    - ``address``: the memory it lay in is gone (device role)
    - ``no_endpoint``: nobody has the destination address
    - ``backlog``: the endpoint's backlog is full
    - ``name_service``: an announcement that is malformed, a duplicate, unknown or one too many

    ``bad_buffers``: receive buffers of the driver that no message fits into, or that the device may
    not write (device role). ``excess``: used lengths that claimed more than a buffer has, and were
    clamped (driver role). ``tx_waits``, ``tx_timeouts``: senders that slept for a buffer, or in
    vain. ``tx_refused``: sends that were not to wait and found no buffer.
    """

    tx_messages: int
    tx_bytes: int
    rx_messages: int
    rx_bytes: int
    tx_waits: int
    tx_timeouts: int
    tx_refused: int
    bad_buffers: int
    excess: int
    dropped: dict[str, int] = field(default_factory=dict)


class Transport(ABC):
    """Base of :class:`RpmsgBus`: the port of a role, and who waits for it.

    Any thread may send and any may receive; locks keep them apart. ``timeout`` is how long a sender
    waits for a buffer, in seconds (Linux: 15), None for ever.
    """

    port: DriverPort | DevicePort

    def __init__(
        self,
        rx_event: EventFd | None,
        tx_event: EventFd | None,
        timeout: float | None,
        spin: Spin | None,
    ) -> None:
        for event in (rx_event, tx_event):
            if event is not None and not isinstance(event, EventFd):
                raise InvalidArgument(f"a {type(event).__name__} to sleep on; it takes an EventFd")
        self.timeout = check_timeout(timeout)
        self.spin = spin
        self.tx_lock = threading.RLock()
        self.rx_lock = threading.RLock()
        self.tx = Sleepers(tx_event, self.tx_lock, self._arm_tx, self._disarm_tx)
        # Without an event somebody else gets the notification, and calls recv_done(): it stays on.
        disarm_rx = self._disarm_rx if rx_event is not None else lambda: None
        self.rx = Sleepers(rx_event, self.rx_lock, self._arm_rx, disarm_rx)
        self._tx_refused = 0

    # -- what a role does in its own way -------------------------------------------------------

    @abstractmethod
    def _arm_tx(self) -> bool: ...
    @abstractmethod
    def _disarm_tx(self) -> None: ...
    @abstractmethod
    def _arm_rx(self) -> bool: ...
    @abstractmethod
    def _disarm_rx(self) -> None: ...
    @abstractmethod
    def _excess(self) -> int: ...
    @property
    @abstractmethod
    def _ring_size(self) -> int: ...
    @abstractmethod
    def _tx_ready(self) -> bool: ...
    @abstractmethod
    def _spin_rx(self, microseconds: float) -> bool: ...
    @abstractmethod
    def _take_tx(self) -> TxBuffer | None: ...
    @abstractmethod
    def _commit_tx(self, buffer: TxBuffer, used: int) -> bool: ...
    @abstractmethod
    def _give_tx(self, buffer: TxBuffer) -> None: ...
    @abstractmethod
    def _take_rx(self) -> RxBuffer | None: ...
    @abstractmethod
    def _give_rx(self, buffer: RxBuffer) -> None: ...

    # -- notifications -------------------------------------------------------------------------

    def xmit_done(self) -> None:
        """The send queue was notified: wake those who wait for a buffer (Linux rpmsg_xmit_done).

        Only needed without a ``tx_event``.
        """
        self.tx.wake()

    @property
    def closed(self) -> bool:
        """Whether it is shut, or closed."""
        return self.port.closed

    def _check_open(self) -> None:
        if self.port.closed:
            raise QueueClosed("the bus was closed")

    # -- sending -------------------------------------------------------------------------------

    def _locked(self, call: Callable[[], T]) -> Callable[[], T]:
        def attempt() -> T:
            self._check_open()
            with self.tx_lock:
                return call()

        return attempt

    def _or_timeout(self, result: T) -> T:
        if not result:
            raise WaitTimeout(f"no transmit buffer came free within {self.timeout} s")
        return result

    def _or_refuse(self, result: T) -> T:
        if not result:
            self.refuse(1)
        return result

    def count_refused(self, count: int) -> None:
        """So many messages found no buffer, and were not to wait."""
        self._tx_refused += count

    def refuse(self, count: int) -> None:
        """:meth:`count_refused`, and NoSpace."""
        self.count_refused(count)
        raise NoSpace("no transmit buffer is free")

    def send_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """Send ``data`` from ``src`` to ``dst``, neither of which need exist here.

        Waits up to :attr:`timeout` seconds for a buffer. Raises InvalidArgument for an address that
        is ANY (broadcasting is not allowed), MessageTooLong beyond :attr:`mtu`, WaitTimeout, and
        what the queue raises. (Linux ``rpmsg_send_offchannel_raw`` with ``wait``)
        """
        send = self._locked(lambda: self.port.send_one(src, dst, data))
        if not send():
            self._or_timeout(self.tx.wait(send, self.timeout))

    def trysend_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """:meth:`send_offchannel` that raises NoSpace instead of waiting."""
        self._or_refuse(self._locked(lambda: self.port.send_one(src, dst, data))())

    async def asend_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """:meth:`send_offchannel` for an asyncio task."""
        send = self._locked(lambda: self.port.send_one(src, dst, data))
        self._or_timeout(await self.tx.wait_async(send, self.timeout))

    def _rows(
        self, messages: Messages, start: int, count: int | None, src: int, dst: int
    ) -> tuple[Callable[[], bool], list[int], int]:
        """An attempt that is true when all rows were sent; how many were; how many there are."""
        total = messages.count - start if count is None else count
        sent = [0]

        def more() -> bool:
            if sent[0] < total or total <= 0:
                sent[0] += self.port.send_rows(
                    messages, start + sent[0], total - sent[0], src, dst
                )
            return sent[0] >= total

        return self._locked(more), sent, total

    def trysend_offchannel_many(
        self,
        messages: Messages,
        start: int = 0,
        count: int | None = None,
        src: int = ADDR_ANY,
        dst: int = ADDR_ANY,
    ) -> int:
        """Send rows ``start`` to ``start + count`` (default: to the end); how many had buffers.

        With ANY, ``src`` and ``dst`` of each row are its columns. All rows are checked first, and
        nothing is sent if one cannot be: InvalidArgument or MessageTooLong.
        """
        attempt, sent, total = self._rows(messages, start, count, src, dst)
        if not attempt():
            self.count_refused(total - sent[0])
        return sent[0]

    def send_offchannel_many(
        self,
        messages: Messages,
        start: int = 0,
        count: int | None = None,
        src: int = ADDR_ANY,
        dst: int = ADDR_ANY,
    ) -> int:
        """:meth:`trysend_offchannel_many` that waits up to :attr:`timeout` seconds for buffers.

        How many were sent: all, or some when the time ran out. WaitTimeout when none was.
        """
        self._check_open()
        with self.tx_lock:
            sent = self.port.send_rows(messages, start, count, src, dst)
        total = messages.count - start if count is None else count
        return sent if sent == total else self.send_rest(messages, start, total, sent, src, dst)

    def send_rest(
        self, messages: Messages, start: int, total: int, at_once: int, src: int, dst: int
    ) -> int:
        """``at_once`` of ``total`` rows found buffers: wait for the rest; how many were sent."""
        attempt, sent, _ = self._rows(messages, start + at_once, total - at_once, src, dst)
        done = self.tx.wait(attempt, self.timeout)
        self._or_timeout(done or at_once + sent[0])
        return at_once + sent[0]

    async def asend_offchannel_many(
        self,
        messages: Messages,
        start: int = 0,
        count: int | None = None,
        src: int = ADDR_ANY,
        dst: int = ADDR_ANY,
    ) -> int:
        """:meth:`send_offchannel_many` for an asyncio task."""
        attempt, sent, _ = self._rows(messages, start, count, src, dst)
        done = await self.tx.wait_async(attempt, self.timeout)
        self._or_timeout(done or sent[0])
        return sent[0]

    # -- zero-copy -----------------------------------------------------------------------------

    def get_tx_buffer(self, wait: bool = True) -> TxBuffer:
        """A buffer to fill in place. Waits as :meth:`send_offchannel`, or raises NoSpace."""
        take = self._locked(self._take_tx)
        buffer = (
            self._or_timeout(self.tx.wait(take, self.timeout)) if wait else self._or_refuse(take())
        )
        assert buffer is not None
        return buffer

    def send_nocopy(self, buffer: TxBuffer, length: int, src: int, dst: int) -> None:
        """Send the first ``length`` bytes of a buffer's view. It belongs to the other side then.

        Raises as :meth:`trysend_offchannel`; the buffer is still held then.
        """
        self._check_open()
        if buffer.owner is not self or buffer.whole is None:
            raise InvalidArgument("the buffer is not one of this bus, or was sent or released")
        if length < 0:
            raise InvalidArgument(f"length {length}: it takes 0 or more")
        with self.tx_lock:
            self.port.check(src, dst, length)
            self.port.build_header(buffer.whole, src, dst, length)
            self._or_refuse(self._commit_tx(buffer, HEADER_SIZE + length))
            buffer.taken()

    def release_tx_buffer(self, buffer: TxBuffer) -> None:
        """Give a buffer back unsent; somebody who waits gets it."""
        if buffer.owner is not self or not buffer.held:
            raise InvalidArgument("the buffer is not one of this bus, or was sent or released")
        with self.tx_lock:
            # The queue of a closed bus may be gone, and the buffer with it.
            if not self.closed:
                self._give_tx(buffer)
            buffer.taken()
        self.tx.wake()

    def release_rx_buffer(self, buffer: RxBuffer) -> None:
        """Give a message's buffer back to the other side. See :meth:`RxBuffer.release`."""
        if buffer.owner is not self or not buffer.held:
            raise InvalidArgument("the message is not one of this bus, or was released before")
        if buffer.key is not None:
            with self.rx_lock:
                if not self.closed:
                    self._give_rx(buffer)

    # -- state ---------------------------------------------------------------------------------

    @property
    def mtu(self) -> int:
        """Most payload bytes that can be sent (Linux ``rpmsg_get_mtu``)."""
        return self.port.tx_mtu

    @property
    def rx_mtu(self) -> int:
        """Most payload bytes that can come: the size that :class:`Messages` need."""
        return self.port.rx_mtu

    @property
    def big_endian(self) -> bool:
        """Byte order of the headers: the legacy interface of a big-endian guest."""
        return self.port.big_endian

    @property
    def sleepers(self) -> int:
        """Senders that wait for a buffer now (Linux ``sleepers``)."""
        return self.tx.count
