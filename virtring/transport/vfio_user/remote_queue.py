"""A device's queue whose ring or buffers the client moves by messages (DMA_READ, DMA_WRITE)."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtring.errors import AddressError, QueueClosed
from virtring.queue import Batch, Chain, DeviceQueue, QueueConfig
from virtring.queue.config import desc_bytes, used_bytes
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC
from virtring.spec.features import Feature
from virtring.transport.vfio_user.dma import Dma

F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4
#: Flags of a packed descriptor (virtio 1.4, 2.8.1).
F_AVAIL, F_USED = 1 << 7, 1 << 15


class RemoteQueue(DeviceQueue):
    """A DeviceQueue over shadows: fetches before it looks, stores what it has written.

    Nothing is lost when a ring is taken away in the middle of transfers and comes back: chains that
    the client was not yet shown as used are popped again (:attr:`position`), and showing them,
    once begun, is finished first (:attr:`owed`).

    Where all memory is shared it does what a DeviceQueue does, but for its :attr:`position`. Every
    transfer may have the driver, or its machine, take the queue away meanwhile: QueueClosed then.
    QueueBroken when the client refuses one.
    """

    dma: Dma

    def configure(self, config: QueueConfig) -> None:
        super().configure(config)
        self.ring = config
        self._forget()

    def restore(self, position: int) -> None:
        removals = self.dma.removals
        self._fetch(self.ring.used, 4)
        if removals != self.dma.removals:
            # Perhaps this ring's: nobody knew of this queue yet.
            raise AddressError(f"{self.ring.label}: memory was taken away meanwhile")
        super().restore(position)
        self._forget()

    def _forget(self) -> None:
        #: Positions of the chains that wait and are fetched as far as the ring goes.
        self._ready: deque[int] = deque()
        #: Used index of a split ring, as the client has it.
        self._used = 0 if self.ring.packed else self._used_idx()
        #: Where popped chains may be written: addresses and lengths, by id.
        self._into: dict[int, list[tuple[int, int]]] = {}
        #: Chains that the client does not see as used yet, by id: count of those popped, position.
        self._out: dict[int, tuple[int, int]] = {}
        self._popped = 0
        #: What is to be written yet to show what was used: addresses and bytes, in this order.
        self.owed: deque[tuple[int, bytes]] = deque()
        #: Where the client sees what is used end; upper half of the position.
        self._shown = super().position >> 16
        #: What the client was told of when to kick.
        self._told: bytes | None = None

    @property
    def position(self) -> int:
        """As of a DeviceQueue, but before the last chains, if nobody saw them used."""
        position = super().position
        if Feature.IN_ORDER not in self.ring.features:
            wanted = self._popped
            for number, at in reversed(self._out.values()):
                if number != wanted:
                    break
                wanted -= 1
                position = position & ~0xFFFF | at
        elif self._out:
            position = position & ~0xFFFF | next(iter(self._out.values()))[1]
        return position & 0xFFFF | self._shown << 16

    # Popping.

    def next_chain(self) -> Chain | None:
        at = super().position & 0xFFFF
        if not self.dma.active:
            chain = super().next_chain()
            if chain is not None:
                self._took(chain.id, at)
            return chain
        if not self._waiting():
            return None
        self._ready.popleft()
        chain = super().next_chain()
        if chain is not None:
            self._took(chain.id, at)
            rows = [(part.addr, part.len, part.writable) for part in chain]
            self._fetch_buffers(chain.id, rows)
            self._tell()
        return chain

    def pop(self, batch: Batch, room: int | None = None) -> int:
        if not self.dma.active:
            at = super().position
            count = super().pop(batch, room)
            if not self.ring.packed:
                for row, id in enumerate(batch.id[:count].tolist()):
                    self._took(id, (at + row) & 0xFFFF)
            return count
        count = super().pop(batch, min(self._waiting(), batch.capacity if room is None else room))
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
        ids = batch.id[:count].tolist()
        for id in ids:
            self._took(id, self._ready.popleft())
        for row, id in enumerate(ids):
            self._fetch_buffers(id, rows[ends[row] : ends[row + 1]])
        self._tell()
        return count

    def _took(self, id: int, at: int) -> None:
        self._popped += 1
        self._out.pop(id, None)
        self._out[id] = (self._popped, at)

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
            self._ready.extend(self._look_packed() if self.ring.packed else self._look_split())
        return len(self._ready)

    def _look_split(self) -> list[int]:
        ring = self.ring
        self._fetch(ring.avail, 4)
        last = super().position
        index = int.from_bytes(self.memory.read(ring.avail + 2, 2), "little")
        count = (index - last) & 0xFFFF
        places = [(last + step) & 0xFFFF for step in range(count)]
        if not 0 < count <= ring.size:
            # Too many: popping says so.
            return places
        # Only now: what the index covers was written before it.
        self._fetch(ring.avail + 4, 2 * ring.size)
        self._fetch(ring.desc, desc_bytes(ring.size))
        entries = np.frombuffer(self.memory.read(ring.avail + 4, 2 * ring.size), "<u2").tolist()
        table = self._table(VRING_DESC)
        for place in places:
            at = entries[place % ring.size]
            for _ in range(ring.size):
                if at >= ring.size:
                    break
                row = table[at]
                self._fetch_indirect(row)
                if not int(row["flags"]) & F_NEXT:
                    break
                at = int(row["next"])
        return places

    def _look_packed(self) -> list[int]:
        ring = self.ring
        first = super().position
        at, wrap = first & 0x7FFF, bool(first & 0x8000)
        self._fetch(ring.desc + 16 * at, 16)
        if not next(self._available(at, wrap), None):
            return []
        self._fetch(ring.desc, desc_bytes(ring.size))
        count = sum(1 for _ in self._available(at, wrap))
        # Again: a chain's first descriptor is written last, but was perhaps read first.
        self._fetch(ring.desc, desc_bytes(ring.size))
        table = self._table(VRING_PACKED_DESC)
        found = []
        for members in islice(self._available(at, wrap), count):
            for place in members:
                self._fetch_indirect(table[place])
            # The counter turns where the ring begins anew.
            found.append(members[0] | (wrap if members[0] >= at else not wrap) << 15)
        return found

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
        before = super().position
        super().return_(chain, written)
        self._store_used(before, [chain.id])

    def push(self, batch: Batch, start: int = 0, count: int | None = None) -> int:
        end = batch.count if count is None else start + count
        ids, written = batch.id[start:end].tolist(), batch.written[start:end].tolist()
        for id, length in zip(ids, written, strict=True):
            self._store_buffers(id, length)
        before = super().position
        published = super().push(batch, start, count)
        self._store_used(before, ids)
        return published

    def _store_buffers(self, id: int, written: int) -> None:
        for addr, length in self._into.pop(id, ()):
            part = min(length, written)
            self._store(addr, part)
            written -= part

    def _store_used(self, before: int, ids: list[int]) -> None:
        """Show the client what was used since position ``before``; what makes it count, last."""
        shown = super().position >> 16
        if self.dma.active:
            places = (
                self._places_packed(before >> 16, shown) if self.ring.packed else self._places()
            )
            self.owed += [(addr, self.memory.read(addr, size)) for addr, size in places]
        # From here on there is no way back: a packed ring's descriptors are overwritten.
        self._shown = shown
        if Feature.IN_ORDER in self.ring.features:
            # A chain may wait for others before it.
            ids = list(self._out)[: max(0, len(self._out) - self.in_flight)]
        for id in ids:
            self._out.pop(id, None)
        while self.owed:
            self.dma.put(*self.owed[0])
            self.owed.popleft()
            self._check_open()

    def _places(self) -> list[tuple[int, int]]:
        ring = self.ring
        now = self._used_idx()
        count = min((now - self._used) & 0xFFFF, ring.size)
        if not count:
            return []
        parts = stretches(self._used % ring.size, count, ring.size)
        self._used = now
        return [(ring.used + 4 + 8 * at, 8 * length) for at, length in parts] + [(ring.used + 2, 2)]

    def _places_packed(self, before: int, shown: int) -> list[tuple[int, int]]:
        # With the wrap counters: a whole ring may have been used at once.
        if before == shown:
            return []
        size, desc = self.ring.size, self.ring.desc
        first = before & 0x7FFF
        count = ((shown & 0x7FFF) - first) % size or size
        parts = stretches((first + 1) % size, count - 1, size)
        head = desc + 16 * first
        return [(desc + 16 * at, 16 * length) for at, length in parts] + [
            (head + 8, 6),
            (head + 14, 2),
        ]

    def _used_idx(self) -> int:
        return int.from_bytes(self.memory.read(self.ring.used + 2, 2), "little")

    # Notifications.

    def need_notify(self) -> bool:
        if self.dma.active:
            ring = self.ring
            if ring.packed or Feature.EVENT_IDX not in ring.features:
                self._fetch(ring.avail, 4)
            else:
                self._fetch(ring.avail + 4 + 2 * ring.size, 2)
        return super().need_notify()

    def _tell(self) -> None:
        """Tell the client when to kick, if that has changed.

        Only when kicks are wanted: one too many does no harm.
        """
        ring = self.ring
        addr, size = ring.used, 4 if ring.packed else 2
        if Feature.EVENT_IDX in ring.features and not ring.packed:
            # Not there without the feature: what follows the ring may be something else.
            addr += used_bytes(ring.size, False) - 2
        now = self.memory.read(addr, size)
        if now != self._told:
            self._store(addr, size)
            self._told = now

    # Transfers.

    def _fetch(self, addr: int, size: int) -> None:
        try:
            self.dma.fetch(addr, size)
        finally:
            self._check_open()

    def _store(self, addr: int, size: int) -> None:
        try:
            self.dma.store(addr, size)
        finally:
            self._check_open()

    def _check_open(self) -> None:
        if self.is_closed:
            raise QueueClosed(f"{self.ring.label} was taken away during a transfer")


def stretches(start: int, count: int, size: int) -> list[tuple[int, int]]:
    """``count`` places of a ring of ``size`` from ``start`` on: (first, number) without a break."""
    head = min(count, size - start)
    return [(first, number) for first, number in ((start, head), (0, count - head)) if number]
