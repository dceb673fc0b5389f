"""What is in a split ring (virtio 1.4, 2.7)."""

from typing import Any

import numpy as np

from virtring.queue.description import DescriptorRow, Wish
from virtring.queue.look import INDIRECT, Look, by_event, by_flags
from virtring.spec.dtypes import VRING_DESC, vring_avail, vring_used

NO_INTERRUPT = NO_NOTIFY = 1


class SplitLook(Look):
    """A look at a split ring from either side."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.desc = np.frombuffer(self.desc_bytes, self.dtype(VRING_DESC))
        self.avail = np.frombuffer(self.driver_bytes, self.dtype(vring_avail(self.num)))[0]
        self.used_ring = np.frombuffer(self.device_bytes, self.dtype(vring_used(self.num)))[0]
        self.avail_idx = int(self.avail["idx"])
        self.used_idx = int(self.used_ring["idx"])
        if self.driver:
            self._look_as_driver()
        else:
            self._look_as_device()

    def _look_as_driver(self) -> None:
        last, flying = self.state["used"], self.state["in_flight"]
        waiting = (self.used_idx - last) & 0xFFFF
        if waiting > flying:
            self.problems.append(
                f"used.idx went from {last} to {self.used_idx}, but only {flying} buffers are in"
                " flight"
            )
            waiting = 0
        elif (self.state["seen"] - last) & 0xFFFF > waiting:
            self.problems.append(f"used.idx went back from {self.state['seen']} to {self.used_idx}")
        self._own("avail.idx", self.avail_idx, self.state["avail"])

        def entry_at(offset: int) -> tuple[int, int] | None:
            if offset >= waiting:
                return None
            entry = self.used_ring["ring"][(last + offset) % self.num]
            return int(entry["id"]), int(entry["len"])

        taken = self.follow_used(entry_at, lambda offset: (last + offset) & 0xFFFF, True)
        for id, count, _, _ in self.state["buffers"]:
            self._chain(id, "used" if id in taken else "in flight", count)

    def _look_as_device(self) -> None:
        last, held = self.state["avail"], self.state["in_flight"]
        waiting = (self.avail_idx - last) & 0xFFFF
        if waiting + held > self.num:
            self.problems.append(
                f"avail.idx went from {last} to {self.avail_idx}, more than the ring's"
                f" {self.num} entries"
            )
            waiting = 0
        elif (self.state["seen"] - last) & 0xFFFF > waiting:
            self.problems.append(
                f"avail.idx went back from {self.state['seen']} to {self.avail_idx}"
            )
        self._own("used.idx", self.used_idx, self.state["used"])
        out = {id for id, *_ in self.state["buffers"]}
        for id, count, _, _ in self.state["buffers"]:
            self._chain(id, "held", count)
        for k in range(waiting):
            head = int(self.avail["ring"][(last + k) % self.num])
            position = (last + k) & 0xFFFF
            if head >= self.num:
                self.problems.append(f"available entry {position} names head {head}")
                continue
            if head in out:
                self.problems.append(
                    f"available entry {position} names head {head}, which is out already"
                )
                continue
            out.add(head)
            self.ready += 1
            self._chain(head, "available", None)

    def _own(self, name: str, stands: int, wrote: int) -> None:
        if stands != wrote:
            self.problems.append(f"{name} in the ring is {stands}, but this side wrote {wrote}")

    def _chain(self, head: int, state: str, count: int | None) -> None:
        """The rows from ``head`` on; ``count``: how many there were when the side knew them."""
        index = head
        chain: dict[int, DescriptorRow] = {}
        while True:
            row = self.row(self.desc[index], index, state, head)
            if row is None:
                return
            self.descriptors.append(row)
            chain[index] = row
            if row.next is None or row.flags & INDIRECT:
                break
            if len(chain) == count:
                row.notes.append("goes on")
                self.problems.append(
                    f"the chain at {head} goes on in the ring; it was made of {count} descriptors"
                )
                return
            if row.next >= self.num:
                row.notes.append("next is outside the ring")
                break
            if row.next in chain:
                row.notes.append("loops")
                break
            index = row.next
        if count is not None and len(chain) != count:
            self.problems.append(
                f"the chain at {head} has {len(chain)} descriptors in the ring; it was made of"
                f" {count}"
            )

    # -- for the description -------------------------------------------------------------------

    def positions(self) -> dict[str, int]:
        mine = ("avail_idx", "last_used_idx") if self.driver else ("last_avail_idx", "used_idx")
        return {
            mine[0]: self.state["avail"],
            mine[1]: self.state["used"],
            "ring_avail_idx": self.avail_idx,
            "ring_used_idx": self.used_idx,
        }

    def events(self) -> dict[str, int]:
        events = {
            "avail_flags": int(self.avail["flags"]),
            "used_flags": int(self.used_ring["flags"]),
        }
        if self.event_idx:
            events["used_event"] = int(self.avail["used_event"])
            events["avail_event"] = int(self.used_ring["avail_event"])
        return events

    def interrupt(self) -> Wish:
        added = 0 if self.driver else self.state["num_added"]
        if not self.event_idx:
            off = bool(int(self.avail["flags"]) & NO_INTERRUPT)
            return by_flags(off, added, "used buffer", "avail.flags has NO_INTERRUPT")
        event = int(self.avail["used_event"])
        base = (self.used_idx if self.driver else self.state["used"]) - added
        return by_event(
            (event - base) & 0xFFFF,
            added,
            self.num,
            1 << 16,
            "used buffer",
            "signal()",
            f"used_event {event}",
        )

    def kick(self) -> Wish:
        added = self.state["num_added"] if self.driver else 0
        if not self.event_idx:
            off = bool(int(self.used_ring["flags"]) & NO_NOTIFY)
            return by_flags(off, added, "kick()", "used.flags has NO_NOTIFY")
        event = int(self.used_ring["avail_event"])
        base = (self.state["avail"] if self.driver else self.avail_idx) - added
        return by_event(
            (event - base) & 0xFFFF,
            added,
            self.num,
            1 << 16,
            "available buffer",
            "kick()",
            f"avail_event {event}",
        )
