"""A device's queue whose ring or buffers the client moves by messages (DMA_READ, DMA_WRITE)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtring.errors import QueueClosed
from virtring.queue import Batch, Chain, DeviceQueue, QueueConfig
from virtring.queue.config import desc_bytes, used_bytes
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC
from virtring.transport.vfio_user.dma import Dma

F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4
#: Flags of a packed descriptor (virtio 1.4, 2.8.1).
F_AVAIL, F_USED = 1 << 7, 1 << 15


class RemoteQueue(DeviceQueue):
    """A DeviceQueue over shadows: fetches before it looks, stores what it has written.

    Where all memory is shared it does what a DeviceQueue does. Every transfer may have the driver
    take the queue away meanwhile: QueueClosed then. QueueBroken when the client refuses one.
    """

    dma: Dma

    def configure(self, config: QueueConfig) -> None:
        super().configure(config)
        #: Chains that wait and are fetched as far as the ring goes.
        self._ready = 0
        #: Used index of a split ring, as the client has it.
        self._used = 0
        #: Where popped chains may be written: addresses and lengths, by id.
        self._into: dict[int, list[tuple[int, int]]] = {}
        #: What the client was told of when to kick.
        self._told: bytes | None = None
        self.ring = config

    def restore(self, position: int) -> None:
        self._fetch(self.ring.used, 4)
        super().restore(position)
        self._ready = 0
        self._used = self._used_idx()

    # Popping.

    def next_chain(self) -> Chain | None:
        if not self.dma.active:
            return super().next_chain()
        if not self._waiting():
            return None
        self._ready -= 1
        chain = super().next_chain()
        if chain is not None:
            rows = [(part.addr, part.len, part.writable) for part in chain]
            self._fetch_buffers(chain.id, rows)
            self._tell()
        return chain

    def pop(self, batch: Batch, room: int | None = None) -> int:
        if not self.dma.active:
            return super().pop(batch, room)
        count = super().pop(batch, min(self._waiting(), batch.capacity if room is None else room))
        self._ready -= count
        # By value: whoever is called during a transfer may use the batch.
        rows = list(
            zip(
                batch.addr.tolist(),
                batch.len.tolist(),
                (batch.flags & F_WRITE).tolist(),
                strict=True,
            )
        )
        ends = batch.offsets[: count + 1].tolist()
        for row, id in enumerate(batch.id[:count].tolist()):
            self._fetch_buffers(id, rows[ends[row] : ends[row + 1]])
        self._tell()
        return count

    def _fetch_buffers(self, id: int, rows: list[tuple[int, int, Any]]) -> None:
        self._into[id] = [(addr, length) for addr, length, writable in rows if writable]
        for addr, length, writable in rows:
            if not writable:
                self._fetch(addr, length)

    @property
    def more_available(self) -> bool:
        # A look at the ring as it is, which also follows a change of the memory map.
        found = super().more_available
        return bool(self._waiting()) if self.dma.active else found

    def enable_notify(self) -> bool:
        quiet = super().enable_notify()
        if not self.dma.active:
            return quiet
        self._tell()
        return not self._waiting()

    def _waiting(self) -> int:
        """Chains that may be popped; their part of the ring is fetched."""
        if not self._ready:
            # Raises what there is to raise.
            _ = super().more_available
            self._ready = self._look_packed() if self.ring.packed else self._look_split()
        return self._ready

    def _look_split(self) -> int:
        ring = self.ring
        self._fetch(ring.avail, 4)
        last = self.position
        index = int.from_bytes(self.memory.read(ring.avail + 2, 2), "little")
        count = (index - last) & 0xFFFF
        if not 0 < count <= ring.size:
            # Too many: popping says so.
            return count
        # Only now: what the index covers was written before it.
        self._fetch(ring.avail + 4, 2 * ring.size)
        self._fetch(ring.desc, desc_bytes(ring.size))
        entries = np.frombuffer(self.memory.read(ring.avail + 4, 2 * ring.size), "<u2").tolist()
        table = self._table(VRING_DESC)
        for step in range(count):
            at = entries[(last + step) % ring.size]
            for _ in range(ring.size):
                if at >= ring.size:
                    break
                row = table[at]
                self._fetch_indirect(row)
                if not int(row["flags"]) & F_NEXT:
                    break
                at = int(row["next"])
        return count

    def _look_packed(self) -> int:
        ring = self.ring
        at, wrap = self.position & 0x7FFF, bool(self.position & 0x8000)
        self._fetch(ring.desc + 16 * at, 16)
        if not next(self._available(at, wrap), None):
            return 0
        self._fetch(ring.desc, desc_bytes(ring.size))
        count = sum(1 for _ in self._available(at, wrap))
        # Again: a chain's first descriptor is written last, but was perhaps read first.
        self._fetch(ring.desc, desc_bytes(ring.size))
        table = self._table(VRING_PACKED_DESC)
        for number, members in enumerate(self._available(at, wrap), 1):
            for place in members:
                self._fetch_indirect(table[place])
            if number == count:
                break
        return count

    def _available(self, at: int, wrap: bool) -> Iterator[list[int]]:
        """The descriptors of every chain that is available from position ``at`` on."""
        flags = self._table(VRING_PACKED_DESC)["flags"].tolist()
        left = len(flags)
        while left and bool(flags[at] & F_AVAIL) == wrap != bool(flags[at] & F_USED):
            members = []
            more = True
            while more and left:
                members.append(at)
                more = bool(flags[at] & F_NEXT)
                left -= 1
                at += 1
                if at == len(flags):
                    at, wrap = 0, not wrap
            yield members

    def _table(self, dtype: "np.dtype[Any]") -> NDArray[Any]:
        return np.frombuffer(self.memory.read(self.ring.desc, desc_bytes(self.ring.size)), dtype)

    def _fetch_indirect(self, row: Any) -> None:
        length = int(row["len"])
        # A longer table is refused.
        if int(row["flags"]) & F_INDIRECT and length <= 16 * self.ring.size:
            self._fetch(int(row["addr"]), length)

    # Returning.

    def return_(self, chain: Chain, written: int | None = None) -> None:
        self._store_buffers(chain.id, chain.wrote if written is None else written)
        before = self.position
        super().return_(chain, written)
        self._store_used(before)

    def push(self, batch: Batch, start: int = 0, count: int | None = None) -> int:
        end = batch.count if count is None else start + count
        if self.dma.active:
            ids, written = batch.id[start:end].tolist(), batch.written[start:end].tolist()
            for id, length in zip(ids, written, strict=True):
                self._store_buffers(id, length)
        before = self.position
        published = super().push(batch, start, count)
        self._store_used(before)
        return published

    def _store_buffers(self, id: int, written: int) -> None:
        for addr, length in self._into.pop(id, ()):
            part = min(length, written)
            self._store(addr, part)
            written -= part

    def _store_used(self, before: int) -> None:
        """Show the client what was used since position ``before``; what makes it count, last."""
        if not self.dma.active:
            return
        ring = self.ring
        if ring.packed:
            # With the wrap counters: a whole ring may have been used at once.
            if before >> 16 != self.position >> 16:
                self._store_used_packed(before >> 16 & 0x7FFF, self.position >> 16 & 0x7FFF)
            return
        now = self._used_idx()
        count = min((now - self._used) & 0xFFFF, ring.size)
        for start, length in stretches(self._used % ring.size, count, ring.size):
            self._store(ring.used + 4 + 8 * start, 8 * length)
        if count:
            self._used = now
            self._store(ring.used + 2, 2)

    def _store_used_packed(self, first: int, end: int) -> None:
        size, desc = self.ring.size, self.ring.desc
        count = (end - first) % size or size
        for start, length in stretches((first + 1) % size, count - 1, size):
            self._store(desc + 16 * start, 16 * length)
        self._store(desc + 16 * first + 8, 6)
        self._store(desc + 16 * first + 14, 2)

    def _used_idx(self) -> int:
        return int.from_bytes(self.memory.read(self.ring.used + 2, 2), "little")

    # Notifications.

    def need_notify(self) -> bool:
        if self.dma.active:
            ring = self.ring
            self._fetch(ring.avail, 4)
            if not ring.packed:
                self._fetch(ring.avail + 4 + 2 * ring.size, 2)
        return super().need_notify()

    def _tell(self) -> None:
        """Tell the client when to kick, if that has changed.

        Only when kicks are wanted: one too many does no harm.
        """
        ring = self.ring
        end = ring.used + used_bytes(ring.size, ring.packed)
        places = [(ring.used, 4)] if ring.packed else [(ring.used, 2), (end - 2, 2)]
        now = b"".join(self.memory.read(*place) for place in places)
        if now != self._told:
            for place in places:
                self._store(*place)
            self._told = now

    # Transfers.

    def _fetch(self, addr: int, size: int) -> None:
        self.dma.fetch(addr, size)
        self._check_open()

    def _store(self, addr: int, size: int) -> None:
        self.dma.store(addr, size)
        self._check_open()

    def _check_open(self) -> None:
        if self.is_closed:
            raise QueueClosed(f"{self.ring.label} was taken away during a transfer")


def stretches(start: int, count: int, size: int) -> list[tuple[int, int]]:
    """``count`` places of a ring of ``size`` from ``start`` on: (first, number) without a break."""
    head = min(count, size - start)
    return [(first, number) for first, number in ((start, head), (0, count - head)) if number]
