"""Endpoints: a local address, and what happens to the messages that come for it."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtring.errors import InvalidArgument, QueueClosed, WaitTimeout
from virtring.queue.eventfd import check_timeout
from virtring.rpmsg.buffers import RxBuffer, TxBuffer
from virtring.rpmsg.endpoint_core import EndpointCore
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


class Endpoint(EndpointCore):
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
        super().__init__(bus, addr, dst, callback, batch_callback, backlog, channel)
        self.priv: Any = None

    # -- sending -------------------------------------------------------------------------------

    def _from(self) -> int:
        if self.destroyed:
            raise QueueClosed(f"the endpoint {self.addr:#x} was destroyed")
        return self.addr

    def send_offchannel(self, src: int, dst: int, data: ReadableBuffer) -> None:
        """Send from one address to another. (Linux ``rpmsg_send_offchannel``)"""
        self._from()
        src, dst = check_address(src, "src"), check_address(dst, "dst")
        self.bus.send_offchannel(src, dst, data)

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

    def _own(self) -> None:
        if self.callback is not None or self.batch_callback is not None:
            raise InvalidArgument("the endpoint's messages go to its callback")

    async def arecv(self, timeout: float | None = None) -> tuple[bytes, int]:
        """:meth:`recv` for a task; other tasks run meanwhile."""
        self._own()
        found = await self.bus.rx.wait_async(self.take_one, check_timeout(timeout))
        if found is None:
            raise WaitTimeout(f"no message came within {timeout} s")
        return found[:2]

    async def arecv_batch(self, messages: Messages, timeout: float | None = None) -> int:
        """:meth:`recv_batch` for a task, waiting for ever by default."""
        self._own()
        messages.count = 0
        return await self.bus.rx.wait_async(lambda: self.fill(messages), check_timeout(timeout))

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

    def destroy(self) -> None:
        """No message reaches it any more. (Linux ``rpmsg_destroy_ept``)"""
        self.bus.destroy_ept(self)

    def __repr__(self) -> str:
        return f"<Endpoint {self.addr:#x} to {self.dst:#x}>"
