"""Endpoints: a local address, and what happens to the messages that come for it."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtring.errors import InvalidArgument, QueueClosed, WaitTimeout
from virtring.queue.eventfd import check_timeout
from virtring.rpmsg.buffers import RxBuffer, TxBuffer
from virtring.rpmsg.messages import Messages
from virtring.rpmsg.wire import ADDR_ANY, check_address

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from virtring.rpmsg.bus import RpmsgBus
    from virtring.rpmsg.channel import Channel

#: ``callback(endpoint, payload, src)`` (Linux ``rpmsg_rx_cb_t``).
Callback = Callable[["Endpoint", bytes, int], object]
#: ``callback(endpoint, messages, start, stop)``: rows start to stop - 1, valid during the call.
BatchCallback = Callable[["Endpoint", Messages, int, int], object]

#: Messages that wait in an endpoint until somebody receives them.
BACKLOG = 4096


class Endpoint:
    """A local address (Linux ``struct rpmsg_endpoint``); made by :meth:`RpmsgBus.create_ept`.

    With a callback, messages go to it when the bus is processed. Without one they wait for
    :meth:`recv` and its kin, up to ``backlog`` of them; further ones are dropped and counted.
    ``priv`` is the user's.

    The senders are Linux's: ``send`` to the endpoint's ``dst``, ``sendto`` to any address,
    ``send_offchannel`` also from any; ``try...`` raises NoSpace where those wait for a buffer, up
    to the bus's ``timeout``, and then raise WaitTimeout; ``a...`` is for asyncio. ``..._many``
    sends rows of :class:`Messages` and gives their number. All raise InvalidArgument for an address
    that is ANY, MessageTooLong beyond :meth:`get_mtu`, QueueClosed when the endpoint was
    destroyed.
    """

    def __init__(
        self,
        bus: RpmsgBus,
        addr: int,
        dst: int,
        callback: Callback | None,
        batch_callback: BatchCallback | None,
        backlog: int,
        channel: Channel | None = None,
    ) -> None:
        self.bus = bus
        self.addr = addr
        self.dst = dst
        self.callback = callback
        self.batch_callback = batch_callback
        self.backlog = backlog
        self.channel = channel
        self.priv: Any = None
        self.destroyed = False
        self.waiting: deque[tuple[bytes, int, int]] = deque()

    # -- sending -------------------------------------------------------------------------------

    def _from(self) -> int:
        if self.destroyed:
            raise QueueClosed(f"the endpoint {self.addr:#x} was destroyed")
        return self.addr

    def send(self, data: ReadableBuffer) -> None:
        """Send to :attr:`dst`. (Linux ``rpmsg_send``)"""
        self.bus.send_offchannel(self._from(), self.dst, data)

    def sendto(self, data: ReadableBuffer, dst: int) -> None:
        """Send to an address. (Linux ``rpmsg_sendto``)"""
        self.bus.send_offchannel(self._from(), check_address(dst, "dst"), data)

    def send_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """Send from one address to another. (Linux ``rpmsg_send_offchannel``)"""
        self._from()
        src, dst = check_address(src, "src"), check_address(dst, "dst")
        self.bus.send_offchannel(src, dst, data)

    def trysend(self, data: ReadableBuffer) -> None:
        """:meth:`send` without waiting. (Linux ``rpmsg_trysend``)"""
        self.bus.trysend_offchannel(self._from(), self.dst, data)

    def trysendto(self, data: ReadableBuffer, dst: int) -> None:
        """:meth:`sendto` without waiting. (Linux ``rpmsg_trysendto``)"""
        self.bus.trysend_offchannel(self._from(), check_address(dst, "dst"), data)

    def trysend_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """:meth:`send_offchannel` without waiting. (Linux ``rpmsg_trysend_offchannel``)"""
        self._from()
        src, dst = check_address(src, "src"), check_address(dst, "dst")
        self.bus.trysend_offchannel(src, dst, data)

    async def asend(self, data: ReadableBuffer) -> None:
        """:meth:`send` for a task."""
        await self.bus.asend_offchannel(self._from(), self.dst, data)

    async def asendto(self, data: ReadableBuffer, dst: int) -> None:
        """:meth:`sendto` for a task."""
        await self.bus.asend_offchannel(self._from(), check_address(dst, "dst"), data)

    def _known_dst(self) -> int:
        if self.dst == ADDR_ANY:
            raise InvalidArgument("the endpoint's dst is not known; use the ..._to forms")
        return self.dst

    def send_many(self, messages: Messages, start: int = 0, count: int | None = None) -> int:
        """Send rows to :attr:`dst`; fewer than asked only when the time ran out behind some."""
        return self.bus.send_offchannel_many(
            messages, start, count, self._from(), self._known_dst()
        )

    def sendto_many(self, messages: Messages, start: int = 0, count: int | None = None) -> int:
        """:meth:`send_many`, each row to its ``dst`` column."""
        return self.bus.send_offchannel_many(messages, start, count, self._from())

    def trysend_many(self, messages: Messages, start: int = 0, count: int | None = None) -> int:
        """:meth:`send_many` without waiting; how many there were buffers for."""
        return self.bus.trysend_offchannel_many(
            messages, start, count, self._from(), self._known_dst()
        )

    def trysendto_many(self, messages: Messages, start: int = 0, count: int | None = None) -> int:
        """:meth:`sendto_many` without waiting; how many there were buffers for."""
        return self.bus.trysend_offchannel_many(messages, start, count, self._from())

    async def asend_many(
        self, messages: Messages, start: int = 0, count: int | None = None
    ) -> int:
        """:meth:`send_many` for a task."""
        return await self.bus.asend_offchannel_many(
            messages, start, count, self._from(), self._known_dst()
        )

    def get_tx_buffer(self, wait: bool = True) -> TxBuffer:
        """A buffer to fill in place and send with :meth:`send_nocopy`."""
        self._from()
        return self.bus.get_tx_buffer(wait)

    def send_nocopy(self, buffer: TxBuffer, length: int, dst: int | None = None) -> None:
        """Send the first ``length`` bytes of a buffer's view, by default to :attr:`dst`."""
        to = self.dst if dst is None else check_address(dst, "dst")
        self.bus.send_nocopy(buffer, length, self._from(), to)

    def get_mtu(self) -> int:
        """Most payload bytes of a message. (Linux ``rpmsg_get_mtu``)"""
        return self.bus.mtu

    # -- receiving -----------------------------------------------------------------------------

    def _next(self) -> tuple[bytes, int, int] | None:
        """The oldest waiting message, after the ring was looked at."""
        self._from()
        if not self.waiting:
            self.bus.process_some()
        return self.waiting.popleft() if self.waiting else None

    def _own(self) -> None:
        if self.callback is not None or self.batch_callback is not None:
            raise InvalidArgument("the endpoint's messages go to its callback")

    def recv(self, timeout: float | None = None) -> tuple[bytes, int]:
        """The next message as ``(payload, src)``; WaitTimeout after ``timeout`` seconds.

        None waits for ever. Messages of other endpoints are processed meanwhile.
        """
        self._own()
        timeout = check_timeout(timeout)
        found = self._next() or self.bus.wait_rx(self._next, timeout)
        if found is None:
            raise WaitTimeout(f"no message came within {timeout} s")
        return found[:2]

    async def arecv(self, timeout: float | None = None) -> tuple[bytes, int]:
        """:meth:`recv` for a task; other tasks run meanwhile."""
        self._own()
        found = await self.bus.rx.wait_async(self._next, check_timeout(timeout))
        if found is None:
            raise WaitTimeout(f"no message came within {timeout} s")
        return found[:2]

    def _fill(self, messages: Messages) -> int:
        """Rows for what waits here, then straight from the ring."""
        if self.destroyed:
            self._from()
        if not self.waiting:
            self.bus.receive_into(messages, self.addr)
        while self.waiting and messages.count < messages.capacity:
            payload, src, flags = self.waiting.popleft()
            row = messages.append(payload, src, self.addr)
            messages.flags[row] = flags
        count = messages.count
        if count and self.dst == ADDR_ANY:
            self.learn(int(messages.src[0]))
        return count

    def recv_batch(self, messages: Messages, timeout: float | None = 0) -> int:
        """Receive into ``messages`` from row 0, as many as are there; how many there were.

        ``timeout`` seconds are waited for the first one; 0, the default, only looks. The rows need
        :attr:`RpmsgBus.rx_mtu` bytes. Messages of other endpoints are processed meanwhile.
        """
        self._own()
        timeout = check_timeout(timeout)
        messages.count = 0
        found = self._fill(messages)
        if found or timeout == 0:
            return found
        return self.bus.wait_rx(lambda: self._fill(messages), timeout)

    async def arecv_batch(self, messages: Messages, timeout: float | None = None) -> int:
        """:meth:`recv_batch` for a task, waiting for ever by default."""
        self._own()
        messages.count = 0
        return await self.bus.rx.wait_async(lambda: self._fill(messages), check_timeout(timeout))

    def _hold(self) -> RxBuffer | None:
        self._from()
        buffer = None if self.waiting else self.bus.take_rx(self.addr)
        if buffer is None and self.waiting:
            payload, src, flags = self.waiting.popleft()
            return RxBuffer(self.bus, memoryview(payload), src, self.addr, flags, None)
        if buffer is not None:
            self.learn(buffer.src)
        return buffer

    def recv_hold(self, timeout: float | None = None) -> RxBuffer:
        """The next message in place; the other side lacks the buffer until it is released.

        Otherwise as :meth:`recv`. A message that was processed before somebody asked is a copy.
        """
        self._own()
        found = self.bus.wait_rx(self._hold, check_timeout(timeout))
        if found is None:
            raise WaitTimeout(f"no message came within {timeout} s")
        return found

    def poll(self) -> int:
        """``select.EPOLLIN`` if a message waits here, ``EPOLLOUT`` if a buffer is free to send.

        Looks at the ring first. (Linux ``rpmsg_poll``)
        """
        self._from()
        if not self.waiting:
            self.bus.process_some()
        mask = select.EPOLLIN if self.waiting else 0
        return mask | (select.EPOLLOUT if self.bus.tx_ready else 0)

    # -- for the bus ---------------------------------------------------------------------------

    def learn(self, src: int) -> None:
        """An announced endpoint talks to whoever talks to it first."""
        if self.dst == ADDR_ANY and self.channel is not None and self.channel.announce:
            self.dst = self.channel.dst = src

    def destroy(self) -> None:
        """No message reaches it any more. (Linux ``rpmsg_destroy_ept``)"""
        self.bus.destroy_ept(self)

    def __repr__(self) -> str:
        return f"<Endpoint {self.addr:#x} to {self.dst:#x}>"
