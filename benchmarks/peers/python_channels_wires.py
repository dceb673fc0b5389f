"""How each kind of channel is opened and used, one class a kind; run by python_channels_harness.

A wire carries messages one way. ``sender()`` and ``receiver()`` are called once, each in its own
process, after the fork. Imports stand where they are needed: the harness runs in an environment
that has only one of these packages. A wire without back-pressure gets it from :class:`Credit`.
"""

import contextlib
import ctypes
import functools
import mmap
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

BATCH = 32
#: Polled by hand, a peer is gone when it has not come in so many looks.
SPIN_US = 50.0


def depth(size: int) -> int:
    """Messages under way at most, for a message size in bytes."""
    return 256 if size <= 4096 else 64 if size <= 65536 else 16


class Credit:
    """Messages received so far, told every few messages in a page that both processes map."""

    def __init__(self, window: int) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        self.window = window
        self.step = window // 4
        self.count = self.seen = 0

    def take(self) -> None:
        """Sender: wait until one more message fits."""
        while self.count - self.seen >= self.window:
            (self.seen,) = struct.unpack_from("q", self.page)
        self.count += 1

    def give(self) -> None:
        """Receiver: one more was taken."""
        self.count += 1
        if self.count % self.step == 0:
            struct.pack_into("q", self.page, 0, self.count)


class End:
    """What the harness calls. The calls a kind has not got stay None."""

    send: Callable[[Any], Any] | None = None
    recv: Callable[[], Any] | None = None
    send_batch: Callable[[list[bytes]], Any] | None = None
    recv_batch: Callable[[], list[bytes]] | None = None
    send_array: Callable[[Any], Any] | None = None
    recv_array: Callable[[Any, Any], int] | None = None
    #: Without a copy: write the number into the first 8 bytes of a message of this size and send.
    send_passed: Callable[[int, int], Any] | None = None
    #: Receive, and give the number in the first 8 bytes and the size.
    recv_passed: Callable[[], tuple[int, int]] | None = None
    keep: Any = None


class Queue:
    """multiprocessing.Queue."""

    cases = ("send",)

    def __init__(self, name: str, size: int) -> None:
        self.queue: Any = multiprocessing.get_context("fork").Queue(depth(size))

    def sender(self) -> End:
        end = End()
        end.send = self.queue.put
        return end

    def receiver(self) -> End:
        end = End()
        end.recv = self.queue.get
        return end


class Pipe:
    """multiprocessing.Pipe: send_bytes, recv_bytes."""

    cases = ("send",)

    def __init__(self, name: str, size: int) -> None:
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)

    def sender(self) -> End:
        end = End()
        end.send = self.writer.send_bytes
        return end

    def receiver(self) -> End:
        end = End()
        end.recv = self.reader.recv_bytes
        return end


class Seqpacket:
    """A SEQPACKET pair of Unix sockets: send, recv."""

    cases = ("send",)

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.one, self.two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Root may go beyond the system's limit, which a message of 1 MiB needs.
        for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            for sock in (self.one, self.two):
                with contextlib.suppress(PermissionError):
                    sock.setsockopt(socket.SOL_SOCKET, option, 4 * (size + 4096))

    def sender(self) -> End:
        end = End()
        end.send = self.one.send
        return end

    def receiver(self) -> End:
        end, size, recv = End(), self.size, self.two.recv
        end.recv = lambda: recv(size)
        return end


class Cloudtoid:
    """cloudtoid-interprocess: try_send and try_receive, polled."""

    cases = ("send", "batch")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.capacity = 1 << (depth(size) * (size + 64) - 1).bit_length()
        self.keep = self._open("Subscriber")

    def _open(self, kind: str) -> Any:
        import cloudtoid_interprocess  # type: ignore[import-not-found]

        return getattr(cloudtoid_interprocess, kind)(self.name, self.capacity)

    def sender(self) -> End:
        end = End()
        end.keep = publisher = self._open("Publisher")
        try_send, try_batch = publisher.try_send, publisher.try_send_batch

        def send(data: bytes) -> None:
            while not try_send(data):
                pass

        def send_batch(messages: list[bytes]) -> None:
            sent = try_batch(messages)
            while sent < len(messages):
                sent += try_batch(messages[sent:])

        end.send, end.send_batch = send, send_batch
        return end

    def receiver(self) -> End:
        end = End()
        end.keep = subscriber = self.keep
        try_receive = subscriber.try_receive

        def recv() -> bytes:
            while (data := try_receive()) is None:
                pass
            return data  # type: ignore[no-any-return]

        end.recv = recv
        return end


class Kickmsg:
    """kickmsg: publisher and subscriber of one topic, which loses messages unless held back."""

    cases = ("send", "passed")

    def __init__(self, name: str, size: int) -> None:
        import kickmsg  # type: ignore[import-not-found]

        config = kickmsg.Config()
        config.max_subscribers = 1
        config.sub_ring_capacity = 2 * depth(size)
        config.pool_size = 4 * depth(size)
        config.max_payload_size = size
        self.size = size
        self.name = f"/{name}"
        kickmsg.unlink_shm(self.name)
        self.region = kickmsg.SharedRegion.create(
            self.name, kickmsg.ChannelType.PubSub, config
        )
        self.subscriber = kickmsg.Subscriber(self.region)
        self.credit = Credit(depth(size))

    def sender(self) -> End:
        import kickmsg

        end = End()
        end.keep = region = kickmsg.SharedRegion.open(self.name)
        publisher = kickmsg.Publisher(region)
        publish, allocate, take = publisher.send, publisher.allocate, self.credit.take

        def send(data: bytes) -> None:
            take()
            publish(data)

        def send_passed(number: int, size: int) -> None:
            take()
            slot = allocate()
            struct.pack_into("q", memoryview(slot), 0, number)
            slot.publish(size)

        end.send, end.send_passed = send, send_passed
        return end

    def receiver(self) -> End:
        end = End()
        try_receive, give = self.subscriber.try_receive, self.credit.give
        try_view = self.subscriber.try_receive_view

        def recv() -> bytes:
            while (data := try_receive()) is None:
                pass
            give()
            return data  # type: ignore[no-any-return]

        def recv_passed() -> tuple[int, int]:
            while (view := try_view()) is None:
                pass
            with memoryview(view) as seen:
                (number,) = struct.unpack_from("q", seen)
                size = len(seen)
            view.release()
            give()
            return number, size

        end.recv, end.recv_passed = recv, recv_passed
        return end


class Iceoryx2:
    """iceoryx2: publish-subscribe of bytes, loan and memmove; delivery is retried until it fits."""

    cases = ("send", "passed")

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def _service(self) -> tuple[Any, Any]:
        import iceoryx2 as iox  # type: ignore[import-not-found]

        iox.set_log_level(iox.LogLevel.Error)
        node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        builder = node.service_builder(iox.ServiceName.new(self.name))
        service = (
            builder.publish_subscribe(iox.Slice[ctypes.c_uint8])
            .subscriber_max_buffer_size(depth(self.size))
            .enable_safe_overflow(False)
            .open_or_create()
        )
        return node, service

    def sender(self) -> End:
        import iceoryx2 as iox

        end = End()
        node, service = self._service()
        publisher = (
            service.publisher_builder()
            .initial_max_slice_len(self.size)
            .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        end.keep = node, service, publisher
        loan, memmove = publisher.loan_slice_uninit, ctypes.memmove
        word = ctypes.c_int64

        def send(data: bytes) -> None:
            sample = loan(len(data))
            memmove(sample.payload_ptr, data, len(data))
            sample.assume_init().send()

        def send_passed(number: int, size: int) -> None:
            sample = loan(size)
            word.from_address(sample.payload_ptr).value = number
            sample.assume_init().send()

        end.send, end.send_passed = send, send_passed
        return end

    def receiver(self) -> End:
        end = End()
        node, service = self._service()
        subscriber = service.subscriber_builder().create()
        end.keep = node, service, subscriber
        receive, string_at, word = subscriber.receive, ctypes.string_at, ctypes.c_int64

        def recv() -> bytes:
            while (sample := receive()) is None:
                pass
            data = string_at(sample.payload_ptr, sample.payload().number_of_elements)
            sample.delete()
            return data

        def recv_passed() -> tuple[int, int]:
            while (sample := receive()) is None:
                pass
            number = word.from_address(sample.payload_ptr).value
            size = sample.payload().number_of_elements
            sample.delete()
            return number, size

        end.recv, end.recv_passed = recv, recv_passed
        return end


class Virtring:
    """Our own channel."""

    cases = ("send", "batch", "array", "passed")

    def __init__(self, name: str, size: int) -> None:
        from virtring import channel

        self.one, self.two = channel.create(depth(size), size, spin_us=SPIN_US)

    def sender(self) -> End:
        end = End()
        one = self.one
        loan, commit = one.loan, one.commit

        def send_passed(number: int, size: int) -> None:
            slot = loan()
            struct.pack_into("q", slot, 0, number)
            commit(slot)

        end.send, end.send_batch, end.send_array = one.send, one.send_batch, one.send_array
        end.send_passed = send_passed
        return end

    def receiver(self) -> End:
        end = End()
        two = self.two
        borrow, release = two.borrow, two.release

        def recv_passed() -> tuple[int, int]:
            message = borrow()
            (number,) = struct.unpack_from("q", message)
            size = len(message)
            release(message)
            return number, size

        end.recv, end.recv_array = two.recv, two.recv_array
        end.recv_batch = functools.partial(two.recv_batch, BATCH)
        end.recv_passed = recv_passed
        return end


WIRES: dict[str, Any] = {
    "virtring": Virtring,
    "multiprocessing-queue": Queue,
    "multiprocessing-pipe": Pipe,
    "seqpacket": Seqpacket,
    "cloudtoid-interprocess": Cloudtoid,
    "kickmsg": Kickmsg,
    "iceoryx2": Iceoryx2,
}


def wire(kind: str, size: int, which: int) -> Any:
    """A new wire of that kind; ``which`` tells several of one process apart."""
    return WIRES[kind](f"virtring-bench-{os.getpid()}-{which}", size)
