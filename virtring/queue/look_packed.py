"""What is in a packed ring (virtio 1.4, 2.8)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from virtring.queue.description import DescriptorRow, Wish
from virtring.queue.look import AVAIL, INDIRECT, NEXT, USED, Look, by_event, by_flags
from virtring.queue.state import ring_bytes
from virtring.spec.dtypes import VRING_PACKED_DESC, VRING_PACKED_DESC_EVENT

ENABLE, DISABLE, DESC = 0, 1, 2


class PackedLook(Look):
    """A look at a packed ring from either side.

    A *place* here counts through both rounds of a wrap counter, 0 to 2 * num - 1: its rest by num
    is the position in the ring, and the counter is 1 in the first round.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.heads = np.frombuffer(self.desc_bytes, VRING_PACKED_DESC)
        # A chain's first descriptor is published last, so what it announces is in a later copy.
        self.desc = np.frombuffer(ring_bytes(self.side)[0], VRING_PACKED_DESC)
        self.driver_event = np.frombuffer(self.driver_bytes, VRING_PACKED_DESC_EVENT)[0]
        self.device_event = np.frombuffer(self.device_bytes, VRING_PACKED_DESC_EVENT)[0]
        self.avail_at = self._place(self.state["avail"], self.state["avail_wrap"])
        self.used_at = self._place(self.state["used"], self.state["used_wrap"])
        self.used_end = self.used_at
        if self.driver:
            self._look_as_driver()
        else:
            self._look_as_device()

    def _place(self, idx: int, wrap: int) -> int:
        return idx if wrap else idx + self.num

    def _bits(self, place: int) -> tuple[int, int]:
        """AVAIL and USED of an available and of a used descriptor at ``place``."""
        if place % (2 * self.num) < self.num:
            return AVAIL, AVAIL | USED
        return USED, 0

    def _at(self, entries: Any, place: int) -> Any:
        return entries[place % self.num]

    def _look_as_driver(self) -> None:
        def entry_at(offset: int) -> tuple[int, int] | None:
            entry = self._at(self.heads, self.used_at + offset)
            if int(entry["flags"]) & (AVAIL | USED) != self._bits(self.used_at + offset)[1]:
                return None
            return int(entry["id"]), int(entry["len"])

        done = self.follow_used(entry_at, lambda offset: (self.used_at + offset) % self.num, False)
        for offset in self.used_at_offsets:
            place = self.used_at + offset
            self._add(self.row(self._at(self.heads, place), place % self.num, "used"))
        sizes = {id: count for id, count, _, _ in self.state["buffers"]}
        passed = sum(sizes[id] for id in done)
        self.used_end = self.used_at + passed
        for k in range(passed, self.num - self.state["num_free"]):
            self._known(self.used_at + k, "in flight", done.__contains__, "used already")

    def _look_as_device(self) -> None:
        held = (self.avail_at - self.used_at) % (2 * self.num)
        out = {id for id, *_ in self.state["buffers"]}
        for k in range(min(held, self.num)):
            self._known(self.used_at + k, "held", lambda id: id not in out, "returned already")
        offset = 0
        room = self.num - min(held, self.num)
        while True:
            entry = self._at(self.heads, self.avail_at + offset)
            if int(entry["flags"]) & (AVAIL | USED) != self._bits(self.avail_at + offset)[0]:
                break
            if offset == room:
                self.problems.append(f"more than the ring's {self.num} entries are in flight")
                break
            length, id = self._chain(self.avail_at + offset, room - offset)
            offset += length
            if id is None:
                break
            if id in out:
                self.problems.append(f"an available buffer has id {id}, which is out already")
            out.add(id)
            self.ready += 1
        self.avail_end = self.avail_at + offset

    def _known(self, place: int, state: str, gone: Callable[[int], bool], why: str) -> None:
        """A descriptor of the stretch that is out; it may be a leftover of a buffer that is not."""
        entry = self._at(self.desc, place)
        row = self._add(self.row(entry, place % self.num, state))
        if row is None:
            return
        if row.flags & (AVAIL | USED) != self._bits(place)[0]:
            row.notes.append("neither available nor used")
        # 2.8.6: the id counts in the last descriptor of a list.
        if not row.flags & NEXT and gone(int(entry["id"])):
            row.notes.append(why)

    def _chain(self, place: int, room: int) -> tuple[int, int | None]:
        """Rows of the available chain at ``place``: how many, and its id if it is whole."""
        for k in range(room):
            entry = self._at(self.desc, place + k)
            flags = int(entry["flags"])
            row = self._add(self.row(entry, (place + k) % self.num, "available"))
            if flags & (AVAIL | USED) != self._bits(place + k)[0]:
                self._note(row, f"the chain at {place % self.num} is cut off here")
                return k + 1, None
            if flags & INDIRECT or not flags & NEXT:
                return k + 1, int(entry["id"])
        self._note(row, f"the chain at {place % self.num} is longer than the ring")
        return room, None

    def _add(self, row: DescriptorRow | None) -> DescriptorRow | None:
        if row is not None:
            self.descriptors.append(row)
        return row

    def _note(self, row: DescriptorRow | None, text: str) -> None:
        self.problems.append(text)
        if row is not None:
            row.notes.append(text)

    # -- for the description -------------------------------------------------------------------

    def positions(self) -> dict[str, int]:
        return {
            "next_avail_idx" if self.driver else "last_avail_idx": self.state["avail"],
            "avail_wrap": self.state["avail_wrap"],
            "last_used_idx" if self.driver else "used_idx": self.state["used"],
            "used_wrap": self.state["used_wrap"],
        }

    def events(self) -> dict[str, int]:
        events = {}
        for name, event in (("driver", self.driver_event), ("device", self.device_event)):
            events[f"{name}_flags"] = int(event["flags"])
            events[f"{name}_off"] = int(event["off_wrap"]) & 0x7FFF
            events[f"{name}_wrap"] = int(event["off_wrap"]) >> 15
        return events

    def interrupt(self) -> Wish:
        if self.driver:
            return self._wish(self.driver_event, self.used_end, 0, "driver", "used", "signal()")
        added = self.state["num_added"]
        return self._wish(self.driver_event, self.used_at, added, "driver", "used", "signal()")

    def kick(self) -> Wish:
        if not self.driver:
            return self._wish(self.device_event, self.avail_end, 0, "device", "available", "kick()")
        added = self.state["num_added"]
        return self._wish(self.device_event, self.avail_at, added, "device", "available", "kick()")

    def _wish(self, event: Any, at: int, added: int, who: str, which: str, call: str) -> Wish:
        flags = int(event["flags"]) & 3
        if flags != DESC:
            what = "used buffer" if call == "signal()" else call
            wish = by_flags(flags == DISABLE, added, what, f"{who} event flags say DISABLE")
            if flags > DESC:
                return Wish(wish.after, f"{wish.text} ({who} event flags 3 are reserved)")
            return wish
        off, wrap = int(event["off_wrap"]) & 0x7FFF, int(event["off_wrap"]) >> 15
        if off >= self.num:
            text = f"{who} event offset {off} is beyond the ring's {self.num} entries"
            return Wish(None, f"no: {text}")
        distance = (self._place(off, wrap) - (at - added)) % (2 * self.num)
        return by_event(
            distance,
            added,
            self.num,
            2 * self.num,
            f"{which} descriptor",
            call,
            f"{who} event at {off}, wrap {wrap}",
        )
