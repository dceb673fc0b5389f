"""The bus: who has which address, what comes for whom, and the name service. Either role."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from virtring.errors import InvalidArgument, VirtioError
from virtring.queue.notify import EventFd, Spin
from virtring.rpmsg.buffers import RxBuffer
from virtring.rpmsg.channel import Channel, RpmsgDriver
from virtring.rpmsg.endpoint import BACKLOG, BatchCallback, Callback, Endpoint
from virtring.rpmsg.transport import Counters, Transport
from virtring.rpmsg.wire import (
    ADDR_ANY,
    NS_ADDR,
    RESERVED_ADDRESSES,
    NsFlag,
    NsMessage,
    RpmsgFeature,
    check_address,
    encode_name,
)

T = TypeVar("T")

#: Channels that the other side can make us keep by announcing them.
MAX_CHANNELS = 1024


class RpmsgBus(Transport):
    """RPMsg over two queues (Linux ``virtio_rpmsg_bus.c``): :class:`DriverBus`, :class:`DeviceBus`.

    Messages move when somebody receives, or calls :meth:`process`. With eventfds, receivers and
    senders sleep on them; without, whoever gets the notifications calls :meth:`recv_done` and
    :meth:`xmit_done`.
    """

    def __init__(
        self,
        features: int,
        rx_event: EventFd | None,
        tx_event: EventFd | None,
        timeout: float | None,
        spin: Spin | None,
    ) -> None:
        super().__init__(rx_event, tx_event, timeout, spin)
        self.features = int(features)
        self.endpoints: dict[int, Endpoint] = {}
        self.channels: list[Channel] = []
        self.drivers: list[RpmsgDriver] = []
        self.max_channels = MAX_CHANNELS
        self._lowest = RESERVED_ADDRESSES
        self._drops: Counter[str] = Counter()
        self._thread = 0
        self._inbox = self.port.inbox
        self._at = 0
        if self.has_ns:
            self.create_ept(self._ns_cb, NS_ADDR)

    @property
    def has_ns(self) -> bool:
        """Whether VIRTIO_RPMSG_F_NS was negotiated."""
        return bool(self.features & RpmsgFeature.NS)

    # -- endpoints -----------------------------------------------------------------------------

    def create_ept(
        self,
        callback: Callback | None = None,
        addr: int = ADDR_ANY,
        *,
        dst: int = ADDR_ANY,
        batch_callback: BatchCallback | None = None,
        backlog: int = BACKLOG,
    ) -> Endpoint:
        """Bind an address, by default the lowest free one from 1024 on (``rpmsg_create_ept``).

        ``dst`` is where :meth:`Endpoint.send` sends. See :class:`Endpoint` for the rest. Raises
        InvalidArgument when the address is taken.
        """
        return self._bind(callback, addr, dst, batch_callback, backlog, None)

    def _bind(
        self,
        callback: Callback | None,
        addr: int,
        dst: int,
        batch_callback: BatchCallback | None,
        backlog: int,
        channel: Channel | None,
    ) -> Endpoint:
        self._check_open()
        if callback is not None and batch_callback is not None:
            raise InvalidArgument("an endpoint has a callback or a batch_callback, not both")
        if not isinstance(backlog, int) or backlog < 1:
            raise InvalidArgument(f"backlog {backlog!r}: it takes 1 or more messages")
        addr, dst = check_address(addr, "addr"), check_address(dst, "dst")
        with self.rx_lock:
            if addr == ADDR_ANY:
                addr = self._lowest
                while addr in self.endpoints:
                    addr += 1
                self._lowest = addr + 1
            elif addr in self.endpoints:
                raise InvalidArgument(f"address {addr:#x} is taken")
            ept = Endpoint(self, addr, dst, callback, batch_callback, backlog, channel)
            self.endpoints[addr] = ept
        return ept

    def destroy_ept(self, ept: Endpoint) -> None:
        """Unbind an endpoint; messages for its address are dropped from now on. Again is fine."""
        with self.rx_lock:
            if self.endpoints.get(ept.addr) is ept:
                del self.endpoints[ept.addr]
                if ept.addr >= RESERVED_ADDRESSES:
                    self._lowest = min(self._lowest, ept.addr)
            ept.destroyed = True
            ept.waiting.clear()
        self.rx.wake()

    # -- receiving -----------------------------------------------------------------------------

    def process(self, budget: int | None = None) -> int:
        """Receive and hand out what is there; how many buffers came back from the ring.

        Stops behind ``budget`` buffers, by default a ring's worth, so that a flooding peer cannot
        keep it; 0 means that the ring was empty. An exception of a callback or of the queue is
        raised; messages behind it are kept for the next call. Does nothing inside a callback.
        """
        done = 0
        most = self._ring_size if budget is None else budget
        with self.rx_lock:
            self._check_open()
            if self.port.busy:
                return 0
            self.hand_out()
            while done < most:
                try:
                    taken = self.port.recv_rows(self._inbox, self._inbox, ADDR_ANY, most - done)
                except VirtioError as error:
                    if done == 0:
                        raise
                    # Somebody got something: that first.
                    self.port.keep_error(error)
                    break
                if taken == 0:
                    break
                done += taken
                self.hand_out()
        return done

    def recv_done(self) -> None:
        """The receive queue was notified: process until it is empty (Linux ``rpmsg_recv_done``).

        Only needed without an ``rx_event``.
        """
        while self.process():
            pass
        self.rx.wake()

    def process_some(self) -> None:
        """One round of :meth:`process`, for those who look again anyway."""
        self.process(self._inbox.capacity)

    def wait_rx(self, attempt: Callable[[], T], timeout: float | None) -> T:
        """``attempt()`` until it gives something true, or ``timeout`` seconds are over."""
        if timeout != 0 and self.port.busy and self._thread == threading.get_ident():
            raise InvalidArgument("a callback cannot wait for messages: they come after it")
        return self.rx.wait(attempt, timeout, self.spin, self._poll_rx)

    def _poll_rx(self, microseconds: float) -> bool:
        with self.rx_lock:
            return self._spin_rx(microseconds)

    def take_rx(self, addr: int) -> RxBuffer | None:
        """The next message for ``addr`` in place; those of others are handed out."""
        with self.rx_lock:
            while self.clear_for(addr) and (buffer := self._take_rx()) is not None:
                if buffer.dst == addr:
                    return buffer
                row = self._inbox.append(buffer.data, buffer.src, buffer.dst)
                self._inbox.flags[row] = buffer.flags
                buffer.release()
                self.hand_out()
        return None

    def clear_for(self, addr: int) -> bool:
        """Whether what is in the ring may go straight to ``addr``: nothing older is on its way.

        For endpoints, under the lock.
        """
        self._check_open()
        self.port.check_later()
        if self.port.busy:
            return False
        self.hand_out()
        ept = self.endpoints.get(addr)
        return ept is not None and not ept.waiting

    def hand_out(self) -> None:
        """Give each row of the inbox to its endpoint; under the lock.

        An exception of a callback leaves the rows behind it for the next call.
        """
        m = self._inbox
        n = m.count
        if n == 0:
            return
        src, dst, flags = (column[:n].tolist() for column in (m.src, m.dst, m.flags))
        self.port.busy, self._thread = True, threading.get_ident()
        try:
            while self._at < n:
                at = self._at
                stop = at + 1
                ept = self.endpoints.get(dst[at])
                if ept is not None:
                    ept.learn(src[at])
                    if ept.callback is not None:
                        self._at = stop
                        ept.callback(ept, m.payload(at), src[at])
                        continue
                while stop < n and dst[stop] == dst[at]:
                    stop += 1
                self._at = stop
                if ept is None:
                    self._drops["no_endpoint"] += stop - at
                elif ept.batch_callback is not None:
                    ept.batch_callback(ept, m, at, stop)
                else:
                    keep = min(stop, at + ept.backlog - len(ept.waiting))
                    ept.waiting.extend((m.payload(i), src[i], flags[i]) for i in range(at, keep))
                    self._drops["backlog"] += stop - max(at, keep)
                    # It may be another receiver's.
                    self.rx.wake()
        finally:
            self.port.busy = False
            if self._at >= n:
                self._at = m.count = 0

    # -- channels ------------------------------------------------------------------------------

    def find_channel(self, name: str, src: int = ADDR_ANY, dst: int = ADDR_ANY) -> Channel | None:
        """The first such channel; ANY stands for every address (Linux ``rpmsg_find_device``)."""
        return next((c for c in self.channels if c.similar(name, src, dst)), None)

    def create_channel(
        self,
        name: str,
        src: int = ADDR_ANY,
        dst: int = ADDR_ANY,
        *,
        announce: bool | None = None,
        driver: RpmsgDriver | None = None,
    ) -> Channel:
        """A channel, bound to ``driver``, or the first registered one that serves its name.

        ``src`` ANY gets a dynamic address. ``announce`` tells the other side, if the name service
        was negotiated, when the channel gets its driver and when it goes; by default when ``src``
        is given, as in Linux. An announced channel whose ``dst`` is ANY learns it from the first
        message.

        Raises InvalidArgument when a similar channel exists; what the driver's probe raises, then
        the channel is there without a driver. (Linux ``rpmsg_create_channel``)
        """
        encode_name(name)
        src, dst = check_address(src, "src"), check_address(dst, "dst")
        if announce is None:
            announce = src != ADDR_ANY
        with self.rx_lock:
            self._check_open()
            if self.find_channel(name, src, dst) is not None:
                raise InvalidArgument(f"a channel {name!r} {src:#x} to {dst:#x} exists already")
            channel = Channel(self, name, src, dst, announce)
            self.channels.append(channel)
        if driver is None:
            driver = next((d for d in self.drivers if d.matches(name)), None)
        if driver is not None:
            self._attach(channel, driver)
        return channel

    def release_channel(self, channel: Channel) -> None:
        """Take a channel away, announced if its coming was. (Linux ``rpmsg_release_channel``)

        Raises InvalidArgument when it is not, or no longer, one of this bus.
        """
        with self.rx_lock:
            if channel not in self.channels:
                raise InvalidArgument(f"{channel!r} is not a channel of this bus")
            self.channels.remove(channel)
        self._detach(channel)

    def register_driver(self, driver: RpmsgDriver) -> None:
        """Serve channels of the driver's names, those that wait for one already too.

        (Linux ``register_rpmsg_driver``)
        """
        self.drivers.append(driver)
        for channel in list(self.channels):
            if channel.driver is None and driver.matches(channel.name):
                self._attach(channel, driver)

    def unregister_driver(self, driver: RpmsgDriver) -> None:
        """Its channels lose their endpoints and wait for another driver."""
        self.drivers.remove(driver)
        for channel in list(self.channels):
            if channel.driver is driver:
                self._detach(channel)

    def _attach(self, channel: Channel, driver: RpmsgDriver) -> None:
        """Give a channel its driver and endpoint (Linux ``rpmsg_dev_probe``)."""
        ept = self._bind(
            driver.callback, channel.src, channel.dst, driver.batch_callback, driver.backlog,
            channel,
        )
        probed = False
        channel.driver, channel.ept, channel.src = driver, ept, ept.addr
        try:
            if driver.probe is not None:
                driver.probe(channel)
            probed = True
            self._announce(channel, NsFlag.CREATE)
        except BaseException:
            channel.driver = channel.ept = None
            try:
                if probed and driver.remove is not None:
                    driver.remove(channel)
            finally:
                self.destroy_ept(ept)
            raise

    def _detach(self, channel: Channel, quiet: bool = False) -> None:
        """Take driver and endpoint from a channel (Linux ``rpmsg_dev_remove``)."""
        driver, ept = channel.driver, channel.ept
        if driver is None or ept is None:
            return
        try:
            if not quiet:
                self._announce(channel, NsFlag.DESTROY)
        finally:
            channel.driver = channel.ept = None
            try:
                if driver.remove is not None:
                    driver.remove(channel)
            finally:
                self.destroy_ept(ept)

    # -- the name service ----------------------------------------------------------------------

    def _announce(self, channel: Channel, flags: NsFlag) -> None:
        if channel.announce and channel.ept is not None and self.has_ns:
            message = NsMessage(channel.name, channel.ept.addr, flags)
            self.send_offchannel(channel.ept.addr, NS_ADDR, message.pack(self.big_endian))

    def _ns_cb(self, _ept: Endpoint, data: bytes, _src: int) -> None:
        """The other side tells of a service (Linux ``rpmsg_ns_cb``)."""
        message = NsMessage.unpack(data, self.big_endian)
        if message is None:
            self._drops["name_service"] += 1
            return
        channel = self.find_channel(message.name, dst=message.addr)
        if message.flags & NsFlag.DESTROY:
            if channel is None:
                self._drops["name_service"] += 1
            elif channel.announce:
                # Ours to keep: it waits for the next one who talks to it.
                channel.dst = ADDR_ANY
                if channel.ept is not None:
                    channel.ept.dst = ADDR_ANY
            else:
                self.release_channel(channel)
        elif channel is not None or len(self.channels) >= self.max_channels:
            self._drops["name_service"] += 1
        else:
            self.create_channel(message.name, dst=message.addr)

    # -- state ---------------------------------------------------------------------------------

    @property
    def tx_ready(self) -> bool:
        """Whether a buffer is free to send, or looks so."""
        with self.tx_lock:
            return self._tx_ready()

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        port = self.port
        reasons = ("no_endpoint", "backlog", "name_service")
        return Counters(
            tx_messages=port.tx_messages,
            tx_bytes=port.tx_bytes,
            rx_messages=port.rx_messages,
            rx_bytes=port.rx_bytes,
            tx_waits=self.tx.waits,
            tx_timeouts=self.tx.timeouts,
            tx_refused=self._tx_refused,
            bad_buffers=port.bad_buffers,
            excess=self._excess(),
            dropped={**port.dropped, **{reason: self._drops[reason] for reason in reasons}},
        )

    def shut(self) -> None:
        """Every call raises QueueClosed from now on, those that wait too; nothing is sent.

        Takes no lock and waits for nobody: it may come from a thread that owns the device.
        """
        self.port.closed = True
        self.tx.wake()
        self.rx.wake()

    def close(self) -> None:
        """:meth:`shut`, then drivers lose their channels. The queues stay the caller's.

        What ``remove`` of a driver raises is raised at the end. Again is fine.
        """
        self.shut()
        failure: Exception | None = None
        while self.channels:
            try:
                self._detach(self.channels.pop(0), quiet=True)
            except Exception as error:
                failure = failure or error
        for ept in list(self.endpoints.values()):
            self.destroy_ept(ept)
        if failure is not None:
            raise failure
