"""First-fit allocation of addresses. Knows numbers only, never touches the memory."""

from bisect import bisect_left, insort
from operator import index
from threading import RLock

from virtring.errors import InvalidArgument, MemoryInUse, OutOfMemory


class _Arena:
    """One range [start, end); blocks never reach over into a neighbouring one."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.free = [(start, end)]  # sorted, disjoint, never adjacent, never empty

    def take(self, size: int, align: int) -> int | None:
        for position, (start, end) in enumerate(self.free):
            addr = -(-start // align) * align
            if addr + size <= end:
                rest = ((start, addr), (addr + size, end))
                self.free[position : position + 1] = [(a, b) for a, b in rest if a < b]
                return addr
        return None

    def give(self, start: int, end: int) -> None:
        position = bisect_left(self.free, (start, end))
        if position < len(self.free) and self.free[position][0] == end:
            end = self.free.pop(position)[1]
        if position > 0 and self.free[position - 1][1] == start:
            position -= 1
            start = self.free.pop(position)[0]
        self.free.insert(position, (start, end))


class RangeAllocator:
    """Hands out aligned blocks of the ranges it was given; the first gap that fits, lowest first.

    Any thread may call. Cold path: a call takes time proportional to the number of gaps.
    """

    def __init__(self) -> None:
        self._arenas: list[_Arena] = []
        self._blocks: dict[int, tuple[int, _Arena]] = {}
        # One thread may come twice: what is collected in mid-call can free a block.
        self._lock = RLock()

    def add_range(self, start: int, size: int) -> None:
        """Add [start, start + size). Raises InvalidArgument if it is empty or overlaps another."""
        if start < 0 or size < 1:
            raise InvalidArgument(f"a range of {size} bytes at {start}; it takes at least 1 byte")
        end = start + size
        for arena in self._arenas:
            if start < arena.end and arena.start < end:
                raise InvalidArgument(
                    f"[{start:#x}, {end:#x}) overlaps [{arena.start:#x}, {arena.end:#x})"
                )
        insort(self._arenas, _Arena(start, end), key=lambda arena: arena.start)

    def remove_range(self, start: int) -> None:
        """Take back the range that begins at ``start``.

        Raises InvalidArgument if none does, MemoryInUse while a block in it is allocated.
        """
        arena = next((arena for arena in self._arenas if arena.start == start), None)
        if arena is None:
            raise InvalidArgument(f"no range begins at {start:#x}")
        blocks = sum(1 for _, home in self._blocks.values() if home is arena)
        if blocks:
            raise MemoryInUse(f"{blocks} blocks of the range at {start:#x} are allocated")
        self._arenas.remove(arena)

    def alloc(self, size: int, align: int = 16) -> int:
        """Address of ``size`` free bytes, a multiple of ``align`` (a power of two).

        Raises InvalidArgument for a wrong size or alignment, OutOfMemory if no gap is large enough.
        """
        try:
            size, align = index(size), index(align)
        except TypeError:
            raise InvalidArgument(f"size {size!r} and align {align!r} must be integers") from None
        if size < 1:
            raise InvalidArgument(f"size is {size}; it takes at least 1")
        if align < 1 or align & (align - 1):
            raise InvalidArgument(f"align is {align}; it takes a power of two")
        with self._lock:
            for arena in self._arenas:
                addr = arena.take(size, align)
                if addr is not None:
                    self._blocks[addr] = (size, arena)
                    return addr
        raise OutOfMemory(
            f"no {size} bytes aligned to {align} are free in one piece"
            f" ({self.available} bytes are free in all)"
        )

    def free(self, addr: int) -> int:
        """Give back the block at ``addr``; its size. Raises InvalidArgument if there is none."""
        with self._lock:
            try:
                size, arena = self._blocks.pop(addr)
            except (KeyError, TypeError):
                shown = f"{addr:#x}" if isinstance(addr, int) else repr(addr)
                raise InvalidArgument(
                    f"no block is allocated at {shown}: it was freed before, or never allocated"
                ) from None
            arena.give(addr, addr + size)
        return size

    @property
    def allocated(self) -> int:
        """Bytes in allocated blocks."""
        return sum(size for size, _ in self._blocks.values())

    @property
    def available(self) -> int:
        """Free bytes, in however many pieces."""
        return sum(end - start for arena in self._arenas for start, end in arena.free)
