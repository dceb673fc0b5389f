"""The engine's Virtqueue and DeviceQueue as ends of the machine, by calls and in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from virtring import (
    Batch,
    DeviceQueue,
    Feature,
    GuestMemory,
    InvalidArgument,
    NoSpace,
    QueueClosed,
    QueueConfig,
    Region,
    RingDevice,
    Virtqueue,
    vring_new_virtqueue,
)
from virtring.queue.state import side_state

from .ends import AddArgs, Element, LayoutKind, RingAddrs, RingFull, Segment

WRITE = 2


def engine_config(
    kind: LayoutKind, num: int, addrs: RingAddrs, features: Feature
) -> QueueConfig:
    """The ring at ``addrs`` as the engine describes it."""
    features |= Feature.VERSION_1
    if kind == "packed":
        features |= Feature.RING_PACKED
    return QueueConfig(num, addrs.desc, addrs.driver, addrs.device, features, 0, kind)


def guest_memory(buffer: bytearray, base: int) -> GuestMemory:
    memory = GuestMemory()
    memory.add_region(base, Region.from_buffer(buffer))
    return memory


class EngineDriverEnd:
    """One call a buffer, with an object as token: views and premapped addresses in turn.

    Indirect tables come from ``addrs.tables`` only; where that has no room left, the engine has to
    go direct, so both happen.
    """

    def __init__(
        self,
        buffer: bytearray,
        base: int,
        kind: LayoutKind,
        num: int,
        addrs: RingAddrs,
        features: Feature,
    ) -> None:
        self.memory = memory = guest_memory(buffer, base)
        assert memory.alloc(addrs.tables - base, 1) == base
        assert memory.alloc(16 * num * num, 16) == addrs.tables
        memory.alloc(memory.available, 1)
        memory.free(addrs.tables)
        config = engine_config(kind, num, addrs, features)
        vdev = RingDevice(memory, config.features)
        self.vq = vring_new_virtqueue(0, num, 4, vdev, True, False, config, callback=print)
        if addrs.start:
            self._run_to(addrs.start, config)

    def _run_to(self, start: int, config: QueueConfig) -> None:
        """Send buffers through a device of our own, until both indices are ``start``."""
        dq = DeviceQueue(self.memory, config)
        batch = Batch(self.vq.vring_size)
        addr, length = self.memory.regions[0][:2]
        batch.addr[:], batch.len[:] = addr + length - 1, 1
        done = 0
        while done < start:
            batch.count = min(batch.capacity, start - done)
            done += self.vq.add_outbuf_batch(batch)
            dq.pop(batch)
            batch.written[:] = 0
            dq.push(batch)
            self.vq.get_buf_batch(batch)
        self.vq.kick_prepare()
        dq.close()

    @property
    def num_free(self) -> int:
        return self.vq.num_free

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: int) -> None:
        try:
            if token % 2:
                self.vq.add_sgs(self._views(out), self._views(in_), token)
            else:
                self.vq.virtqueue_add(out, in_, token, premapped=True)
        except NoSpace as error:
            raise RingFull from error

    def _views(self, elements: Sequence[Element]) -> list[memoryview]:
        return [self.memory.view(addr, length) for addr, length in elements]

    def kick(self) -> bool:
        return self.vq.kick_prepare()

    def get(self) -> tuple[int, int] | None:
        got: tuple[int, int] | None = self.vq.get_buf()
        assert self.vq.excess == 0
        return got

    def enable_cb(self) -> bool:
        return self.vq.enable_cb()

    def disable_cb(self) -> None:
        self.vq.disable_cb()

    def detach(self) -> list[int]:
        tokens = []
        while (token := self.vq.detach_unused_buf()) is not None:
            tokens.append(int(token))
        return tokens

    def reset(
        self, how: int, stop: Callable[[], None], start: Callable[[], None]
    ) -> list[int]:
        """By the transport's two operations, or by hand: by recycle_all or one by one."""
        tokens: list[int] = []

        def recycle(vq: Virtqueue, token: int) -> None:
            tokens.append(token)

        def disable(vq: Virtqueue) -> None:
            vq.break_()
            stop()

        def enable(vq: Virtqueue) -> None:
            self._check_new()
            start()

        if how == 0:
            self.vq.vdev.config = SimpleNamespace(
                disable_vq_and_reset=disable, enable_vq_after_reset=enable
            )
            self.vq.reset(recycle)
            return tokens
        stop()
        if how == 1:
            self.vq.recycle_all(recycle)
        else:
            tokens = EngineDriverEnd.detach(self)
        self.vq.restart()
        enable(self.vq)
        return tokens

    def _check_new(self) -> None:
        state = side_state(self.vq)
        assert (state["avail"], state["used"], state["in_flight"]) == (0, 0, 0)
        assert state.get("avail_wrap", 1) == state.get("used_wrap", 1) == 1
        assert (state["buffers"], state["order"], state["group"]) == ([], [], None)


class EngineBatchDriverEnd(EngineDriverEnd):
    """Adds rows of a batch, gets several at once; every fifth buffer still goes call by call."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._got: deque[tuple[int, int]] = deque()
        num = self.vq.vring_size
        self._many = Batch(max(16, num), 16 * 8 + 2 * num)
        self._taken = Batch(3)

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: int) -> None:
        if token % 5 == 0:
            super().add(out, in_, token)
        elif len(out) + len(in_) == 1:
            batch = self._many
            [(batch.addr[1], batch.len[1])] = [*out, *in_]
            batch.token[1] = token
            add = self.vq.add_outbuf_batch if out else self.vq.add_inbuf_batch
            if add(batch, 1, 1) == 0:
                raise RingFull
        else:
            self.add_many([(out, in_, token)])

    def add_many(self, requests: Sequence[AddArgs]) -> None:
        batch = self._many
        end = 0
        for row, (out, in_, token) in enumerate(requests):
            batch.offsets[row] = end
            batch.token[row] = token
            for elements, flags in ((out, 0), (in_, WRITE)):
                for batch.addr[end], batch.len[end] in elements:
                    batch.flags[end] = flags
                    end += 1
        batch.offsets[len(requests)] = end
        batch.count = len(requests)
        # The engine adds as many as fit; the machine wants all or none.
        if end > self.vq.num_free and (len(requests) > 1 or self.vq.num_free == 0):
            raise RingFull
        added = self.vq.add_sgs_batch(batch)
        if added < len(requests):
            assert added == 0
            raise RingFull

    def get(self) -> tuple[int, int] | None:
        if not self._got:
            taken = self._taken
            n = self.vq.get_buf_batch(taken)
            assert n == len(taken)
            for row in range(n):
                token = taken.objects.get(row, int(taken.token[row]))
                self._got.append((token, int(taken.written[row])))
            assert self.vq.excess == 0
        return self._got.popleft() if self._got else None

    @property
    def ahead(self) -> int:
        return len(self._got)

    def enable_cb(self) -> bool:
        return self.vq.enable_cb() and not self._got

    def detach(self) -> list[int]:
        return self._take_ahead() + super().detach()

    def reset(
        self, how: int, stop: Callable[[], None], start: Callable[[], None]
    ) -> list[int]:
        return self._take_ahead() + super().reset(how, stop, start)

    def _take_ahead(self) -> list[int]:
        got = [token for token, _ in self._got]
        self._got.clear()
        return got


@dataclass(frozen=True)
class Popped:
    id: int
    segments: Sequence[Segment]


class EngineDeviceEnd:
    """One call a chain."""

    def __init__(
        self,
        buffer: bytearray,
        base: int,
        kind: LayoutKind,
        num: int,
        addrs: RingAddrs,
        features: Feature,
    ) -> None:
        self.memory = guest_memory(buffer, base)
        self.config = engine_config(kind, num, addrs, features)
        self.dq = DeviceQueue(self.memory, self.config)
        if addrs.start:
            self.dq.restore(addrs.start)
        assert self.dq.enable_notify()
        self._chains: dict[int, Any] = {}
        self._void: list[Any] = []
        self._resets = 0

    def stop(self) -> None:
        """Reset the queue or close it, in turn."""
        self._void += self._chains.values()
        self._chains.clear()
        self._resets += 1
        if self._resets % 2:
            self.dq.reset()
        else:
            self.dq.close()

    def start(self) -> None:
        if self.dq.is_closed:
            self.dq = DeviceQueue(self.memory, self.config)
        else:
            self.dq.configure(self.config)
        assert self.dq.position == (0x8000_8000 if self.dq.packed else 0)
        assert self.dq.in_flight == 0

    @property
    def void(self) -> int:
        return len(self._void)

    def return_void(self) -> bool:
        chain = self._void.pop()
        assert not chain.returned
        try:
            chain.return_(0)
        except (InvalidArgument, QueueClosed):
            return False
        return True

    def pop(self) -> Popped | None:
        chain = self.dq.next_chain()
        if chain is None:
            return None
        self._chains[chain.id] = chain
        return Popped(chain.id, [(part.addr, part.len, part.writable) for part in chain])

    def push(self, ident: int, written: int) -> None:
        self._chains.pop(ident).return_(written)

    def need_notify(self) -> bool:
        return self.dq.need_notify()

    def enable_notify(self) -> bool:
        return self.dq.enable_notify()

    def disable_notify(self) -> None:
        self.dq.disable_notify()


class EngineBatchDeviceEnd(EngineDeviceEnd):
    """Pops several chains at once and hands them out one by one; pushes rows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._waiting: deque[Popped] = deque()
        num = self.dq.size
        self._in = Batch(3, max(4, num))
        self._out = Batch(max(num, 1))
        self._ids: set[int] = set()

    def stop(self) -> None:
        self._waiting.clear()
        super().stop()

    def start(self) -> None:
        """What was held before is not held any more: nothing can be pushed."""
        super().start()
        for ident in self._ids:
            with pytest.raises(InvalidArgument, match="not one the device holds"):
                self.push(ident, 0)
        self._ids.clear()

    def pop(self) -> Popped | None:
        if not self._waiting:
            batch = self._in
            for row in range(self.dq.pop(batch)):
                parts = range(int(batch.offsets[row]), int(batch.offsets[row + 1]))
                segments = [
                    (int(batch.addr[k]), int(batch.len[k]), bool(batch.flags[k])) for k in parts
                ]
                self._waiting.append(Popped(int(batch.id[row]), segments))
                self._ids.add(int(batch.id[row]))
        return self._waiting.popleft() if self._waiting else None

    def push(self, ident: int, written: int) -> None:
        self.push_many([(ident, written)])

    def push_many(self, done: Sequence[tuple[int, int]]) -> None:
        batch = self._out
        for row, (ident, written) in enumerate(done):
            batch.id[row], batch.written[row] = ident, written
        assert self.dq.push(batch, 0, len(done)) == len(done)
        self._ids.difference_update(ident for ident, _ in done)

    def enable_notify(self) -> bool:
        return self.dq.enable_notify() and not self._waiting
