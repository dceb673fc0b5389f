"""What a device does alike on both layouts: checking chains, completing them in groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice

from .common import Chain, ModelError, Segment
from .layout import DESC_SIZE
from .memory import ModelMemory


class DeviceBase(ABC):
    """The layout-independent half of a device."""

    def __init__(
        self, mem: ModelMemory, num: int, event_idx: bool, indirect: bool, in_order: bool
    ) -> None:
        self.num = num
        self._mem = mem
        self._event_idx = event_idx
        self._indirect = indirect
        self._in_order = in_order
        # Chains popped and not yet pushed, oldest first.
        self._held: dict[int, Chain] = {}
        # After restore() nobody knows which entries the driver was told of.
        self._signal_unknown = False

    def push(self, chain: Chain | int, written: int) -> None:
        """Give a buffer back with ``written`` bytes written. Not yet a notification."""
        self.push_batch_in_order([(chain, written)])

    def push_batch_in_order(self, done: Sequence[tuple[Chain | int, int]]) -> None:
        """Give buffers back in this order.

        With IN_ORDER one used entry stands for as many as possible: a buffer may be skipped only
        if it was written completely, for this is what the driver will assume (2.7.9, 2.8.8).
        """
        buffers = [(c.id if isinstance(c, Chain) else c, written) for c, written in done]
        self._check_push(buffers)
        group: list[int] = []
        for position, (ident, written) in enumerate(buffers):
            group.append(ident)
            last = position + 1 == len(buffers)
            full = written == self._held[ident].writable
            if last or not self._in_order or not full:
                self._write_used(group, written)
                group = []
        self._publish_used()
        for ident, _ in buffers:
            self._forget(ident)
            del self._held[ident]

    def _check_push(self, buffers: list[tuple[int, int]]) -> None:
        idents = [ident for ident, _ in buffers]
        if len(set(idents)) != len(idents):
            raise ValueError("a buffer is given back twice")
        for ident, written in buffers:
            if ident not in self._held:
                raise ValueError(f"the device does not hold a buffer with id {ident}")
            if not 0 <= written <= self._held[ident].writable:
                raise ValueError(f"{written} bytes do not fit into buffer {ident}")
        if self._in_order and idents != list(islice(self._held, len(idents))):
            raise ValueError("with IN_ORDER buffers go back in the order in which they came")

    def _check_none_held(self) -> None:
        if self._held:
            raise ValueError(f"{len(self._held)} buffers are still with the device")

    def _checked(self, ident: int, segments: list[Segment]) -> Chain:
        """The rules for a buffer that both layouts share."""
        if ident in self._held:
            raise ModelError(f"buffer {ident} is available again while the device holds it")
        if len(segments) > self.num:  # 2.7.5.3.1, 2.8.17
            raise ModelError(f"a buffer of {len(segments)} elements in a ring of {self.num}")
        if sum(length for _, length, _ in segments) > 2**32:  # 2.7.5.2
            raise ModelError("a buffer of more than 2^32 bytes")
        directions = [writable for _, _, writable in segments]
        if directions != sorted(directions):  # 2.7.4.2, 2.8.17
            raise ModelError("a readable element behind a writable one")
        for addr, length, _ in segments:
            if not self._mem.contains(addr, length):
                raise ModelError(f"{length} bytes at {addr:#x} are not inside the memory")
        return Chain(ident, tuple(segments))

    def _table_entries(self, addr: int, length: int) -> int:
        """How many descriptors an indirect table of ``length`` bytes has (2.7.5.3, 2.8.7)."""
        if not self._indirect:
            raise ModelError("INDIRECT without the feature INDIRECT_DESC")
        if length == 0 or length % DESC_SIZE:
            raise ModelError(f"an indirect table of {length} bytes, not a multiple of 16")
        if not self._mem.contains(addr, length):
            raise ModelError(f"an indirect table at {addr:#x}, not inside the memory")
        return length // DESC_SIZE

    @abstractmethod
    def _write_used(self, idents: list[int], written: int) -> None:
        """Write one used entry for these buffers, with the id of the last."""

    @abstractmethod
    def _publish_used(self) -> None:
        """Make the used entries visible."""

    @abstractmethod
    def _forget(self, ident: int) -> None:
        """Drop what the layout remembers of a buffer that was given back."""
