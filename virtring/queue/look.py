"""One look at a ring: copies of its memory, and what the descriptors in them say.

Every number from the ring may be garbage. Nothing raises on it: it is noted beside the row, or as a
problem of the whole ring.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from virtring.queue.description import BufferRow, DescriptorRow, UsedRow, Wish
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.queue.state import peek, reachable, ring_bytes, side_state
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC
from virtring.spec.features import Feature

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
_SPLIT_NAMES = {NEXT: "NEXT", WRITE: "WRITE", INDIRECT: "INDIRECT"}
_PACKED_NAMES = {**_SPLIT_NAMES, AVAIL: "AVAIL", USED: "USED"}


class Look:
    """The side's private state, copies of the three areas, and the findings so far."""

    def __init__(self, side: Virtqueue | DeviceQueue, limit: int) -> None:
        self.side = side
        self.state: dict[str, Any] = side_state(side)
        self.config = side.config
        self.num: int = self.config.size
        self.driver = isinstance(side, Virtqueue)
        self.packed: bool = self.config.packed
        self.event_idx = Feature.EVENT_IDX in self.config.features
        self.desc_bytes, self.driver_bytes, self.device_bytes = ring_bytes(side)
        self.room = limit
        self.omitted = 0
        self.problems: list[str] = []
        self.descriptors: list[DescriptorRow] = []
        self.used: list[UsedRow] = []
        self.used_at_offsets: list[int] = []
        self.ready = 0

    def dtype(self, little: np.dtype[Any]) -> np.dtype[Any]:
        """The structure in the byte order of this ring."""
        return little.newbyteorder(">") if self.config.big_endian else little

    # -- descriptors ---------------------------------------------------------------------------

    def row(
        self, entry: Any, index: int, state: str, head: int | None = None
    ) -> DescriptorRow | None:
        """One descriptor decoded and checked, or None when there is no room for it any more."""
        if self.room <= 0:
            self.omitted += 1
            return None
        self.room -= 1
        addr, length, flags = int(entry["addr"]), int(entry["len"]), int(entry["flags"])
        row = DescriptorRow(
            index=index,
            head=head,
            id=int(entry["id"]) if self.packed else None,
            addr=addr,
            len=length,
            flags=flags,
            names=flag_names(flags, self.packed),
            next=int(entry["next"]) if not self.packed and flags & NEXT else None,
            state=state,
        )
        if self.packed and state == "used":
            # The device wrote it: only id, len and the two bits mean anything.
            return row
        if flags & INDIRECT and state == "table":
            row.notes.append("INDIRECT inside a table")
        elif flags & INDIRECT:
            self.expand(row)
        elif length == 0:
            row.notes.append("length 0")
        elif not reachable(self.side, addr, length, bool(flags & WRITE)):
            row.notes.append("not in the memory")
        return row

    def expand(self, row: DescriptorRow) -> None:
        """Read the indirect table that ``row`` refers to."""
        if Feature.INDIRECT_DESC not in self.config.features:
            row.notes.append("INDIRECT was not negotiated")
        if row.flags & NEXT:
            row.notes.append("INDIRECT together with NEXT")
        if row.len == 0 or row.len % 16 or row.len > 16 * self.num:
            row.notes.append(f"{row.len} bytes are no table for this ring")
        total = min(row.len // 16, self.num)
        if total == 0:
            return
        data = peek(self.side, row.addr, 16 * total)
        if data is None:
            row.notes.append("table not in the memory")
            return
        entries = np.frombuffer(data, self.dtype(VRING_PACKED_DESC if self.packed else VRING_DESC))
        i = 0
        seen = set()
        while True:
            inner = self.row(entries[i], i, "table")
            if inner is None:
                return
            row.table.append(inner)
            seen.add(i)
            if self.packed:
                i += 1
                if i == total:
                    return
                continue
            if inner.next is None:
                return
            i = inner.next
            if i >= total:
                inner.notes.append("next is outside the table")
                return
            if i in seen:
                inner.notes.append("loops")
                return

    # -- what the driver side can take ---------------------------------------------------------

    def follow_used(
        self,
        entry_at: Callable[[int], tuple[int, int] | None],
        place: Callable[[int], int],
        step_by_buffer: bool,
    ) -> set[int]:
        """Note what was used and not taken; the ids of it.

        entry_at(offset) is ``(id, written)`` or None where nothing is used; place(offset) the
        position to show. An offset counts buffers (split) or descriptors (packed). With IN_ORDER
        one entry may stand for a group of buffers, the oldest first.
        """
        sizes = {id: 1 if step_by_buffer else count for id, count, _, _ in self.state["buffers"]}
        order = iter(self.state["order"])
        group: tuple[int, int] | None = self.state["group"]
        good: set[int] = set()
        offset = 0
        while True:  # ends: each round takes a buffer out of sizes, or a group comes to its end
            if group is None:
                entry = entry_at(offset)
                if entry is None:
                    break
                if entry[0] not in sizes:
                    text = f"no buffer in flight has id {entry[0]}"
                    self.used.append(UsedRow(place(offset), *entry, [text]))
                    self.problems.append(f"used entry at {place(offset)}: {text}")
                    break
                self.used_at_offsets.append(offset)
                group = entry
            id = next(order, group[0]) if self.state["in_order"] else group[0]
            written = group[1] if id == group[0] else None
            self.used.append(UsedRow(place(offset), id, written))
            good.add(id)
            offset += sizes.pop(id, 1)
            if id == group[0]:
                group = None
        self.ready = len(good)
        return good

    # -- buffers -------------------------------------------------------------------------------

    def buffers(self) -> list[BufferRow]:
        """What is out, by the side's own books."""
        if self.driver:
            taken = {row.id for row in self.used if not row.notes}
            return [
                BufferRow(id, "used" if id in taken else "in flight", count, size, plain(token))
                for id, count, size, token in self.state["buffers"]
            ]
        return [
            BufferRow(id, "done" if done else "held", count, size)
            for id, count, size, done in self.state["buffers"]
        ]


def flag_names(flags: int, packed: bool) -> list[str]:
    """Names of the bits of a descriptor's flags; what has no name as one hexadecimal number."""
    table = _PACKED_NAMES if packed else _SPLIT_NAMES
    names = [name for bit, name in table.items() if flags & bit]
    rest = flags & ~sum(table)
    return [*names, f"{rest:#x}"] if rest else names


def plain(token: Any) -> int | str:
    """A token as plain data: a number, or what the object's ``repr`` says, shortened."""
    if type(token) is int:
        return token
    try:
        text = repr(token)
    except Exception:
        text = object.__repr__(token)
    return text if len(text) <= 60 else f"{text[:57]}..."


def by_flags(off: bool, added: int, what: str, why: str) -> Wish:
    """A wish that flags tell, without an index."""
    if off:
        return Wish(None, f"no: {why}")
    return Wish(0 if added else 1, f"yes, every {what}")


def by_event(
    distance: int, added: int, num: int, modulus: int, unit: str, call: str, event: str
) -> Wish:
    """A wish that an event index tells.

    ``distance`` (modulo ``modulus``) is where the event lies from the last decision, ``added`` how
    far this side has gone since.
    """
    after = distance + 1 - added
    if after <= 0:
        return Wish(0, f"due at the next {call} ({event})")
    if after == 1:
        return Wish(1, f"yes, at the next {unit} ({event})")
    if after <= num:
        return Wish(after, f"yes, after {after} more {unit}s ({event})")
    where = "lies behind" if modulus - distance <= num else "is far ahead"
    return Wish(None, f"no: {event} {where}")
