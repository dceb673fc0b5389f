"""The driver side of a split ring (2.7)."""

from __future__ import annotations

from collections import deque

from .common import ModelError, need_event
from .driver_base import DriverBase, Plan
from .layout import AVAIL_F_NO_INTERRUPT, F_NEXT, USED_F_NO_NOTIFY
from .memory import ModelMemory
from .split_ring import SplitDescriptor, SplitRing


class SplitDriver(DriverBase):
    """Makes buffers available and gets them back. Zeroes the ring when it is created.

    ``start`` is the value both indices begin with, for tests near 65536; the device must be told.
    """

    def __init__(
        self,
        mem: ModelMemory,
        num: int,
        desc: int,
        driver: int,
        device: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        legacy_endian: str = "<",
        start: int = 0,
    ) -> None:
        super().__init__(num, event_idx, indirect, in_order)
        self._ring = SplitRing(mem, num, desc, driver, device, legacy_endian)
        self._ring.clear()
        self._ring.set_avail_idx(start)
        self._ring.set_used_idx(start)
        # All counts go on beyond 65535; only what is stored wraps.
        self._avail = start
        self._last_used = start
        self._kicked = start
        # First freed, first taken again. With IN_ORDER buffers come back in ring order, so this
        # queue always stays in ring order too, as 2.7.5 asks for.
        self._free = deque(range(num))
        self._descriptors: dict[int, list[int]] = {}
        self._callbacks = True
        self.enable_cb()

    def kick_prepare(self) -> bool:
        """Whether the device must be notified of what was added since the last call (2.7.10.1)."""
        old, self._kicked = self._kicked, self._avail
        if self._event_idx:
            return need_event(self._ring.avail_event(), self._avail, old)
        return not self._ring.used_flags() & USED_F_NO_NOTIFY

    def enable_cb(self) -> bool:
        """Ask for a notification of the next used buffer; True if none is used already."""
        self._callbacks = True
        if self._event_idx:
            self._ring.set_used_event(self._last_used)
        else:
            self._ring.set_avail_flags(0)
        return not self._batch and self._pending() == 0

    def enable_cb_delayed(self) -> bool:
        """Ask for a notification when three quarters of what is in flight are used.

        False if more than that is used already (Linux's virtqueue_enable_cb_delayed).
        """
        self._callbacks = True
        delay = (self._avail - self._last_used) * 3 // 4
        if self._event_idx:
            self._ring.set_used_event(self._last_used + delay)
        else:
            self._ring.set_avail_flags(0)
        return not self._batch and self._pending() <= delay

    def disable_cb(self) -> None:
        """Ask for no notifications: only a hint (2.7.7.1)."""
        self._callbacks = False
        if self._event_idx:
            # Flags stay 0 with EVENT_IDX. The entry just passed comes up last of all.
            self._ring.set_used_event(self._last_used - 1)
        else:
            self._ring.set_avail_flags(AVAIL_F_NO_INTERRUPT)

    def _place(self, plan: Plan) -> int:
        """2.7.13.1. With IN_ORDER, next is the following entry, 0 behind the last (2.7.5.2)."""
        if plan.table:
            address = plan.ring[-1][0]
            for k, (addr, length, flags) in enumerate(plan.table):
                more = k + 1 < len(plan.table)
                entry = SplitDescriptor(
                    addr, length, flags | (F_NEXT if more else 0), k + 1 if more else 0
                )
                self._ring.set_descriptor(address, k, entry)
        indices = [self._free.popleft() for _ in plan.ring]
        for k, (addr, length, flags) in enumerate(plan.ring):
            more = k + 1 < len(plan.ring)
            entry = SplitDescriptor(
                addr, length, flags | (F_NEXT if more else 0), indices[k + 1] if more else 0
            )
            self._ring.set_descriptor(self._ring.desc, indices[k], entry)
        self._descriptors[indices[0]] = indices
        return indices[0]

    def _publish(self, idents: list[int]) -> None:
        """2.7.13.2: ring entries first. 2.7.13.3: then the index, once."""
        for k, head in enumerate(idents):
            self._ring.set_avail_head(self._avail + k, head)
        self._avail += len(idents)
        self._ring.set_avail_idx(self._avail)

    def _pending(self) -> int:
        """Used buffers not yet stepped over."""
        return (self._ring.used_idx() - self._last_used) % 65536

    def _peek_used(self) -> tuple[int, int] | None:
        pending = self._pending()
        if pending == 0:
            return None
        if pending > len(self._in_flight):
            raise ModelError(f"used.idx is {pending} ahead, {len(self._in_flight)} are in flight")
        return self._ring.used_element(self._last_used)

    def _skip_used(self, idents: list[int]) -> None:
        """2.7.9: the index went forward by the size of the batch, so at least by that much."""
        if len(idents) > self._pending():
            raise ModelError(f"used.idx covers {self._pending()} of a batch of {len(idents)}")
        self._last_used += len(idents)

    def _release(self, ident: int) -> None:
        self._free.extend(self._descriptors.pop(ident))

    def _update_event(self) -> None:
        if self._event_idx and self._callbacks:
            self._ring.set_used_event(self._last_used)
