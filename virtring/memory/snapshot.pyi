from collections.abc import Iterable
from typing import Self, final

from virtring.memory.spans import MemoryRegion

@final
class MemoryTable:
    def __new__(cls, entries: Iterable[MemoryRegion] = ()) -> Self: ...
    @property
    def entries(self) -> tuple[MemoryRegion, ...]: ...
    def __len__(self) -> int: ...
