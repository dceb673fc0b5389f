"""What :func:`~virtring.queue.describe.describe` gives: plain data, and its printed form."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wish:
    """Whether one side wants to be told of what the other one does.

    after: how many more buffers (in a packed ring with an event index: descriptors) it takes, 1 for
    the very next; None when nothing that can happen now is to be told. text: the same in words.
    """

    after: int | None
    text: str


@dataclass(frozen=True)
class DescriptorRow:
    """One descriptor, as it stands in the ring or in an indirect table.

    index: place in the table or ring. head: split: the head of its chain; packed: None. id: packed:
    the buffer id that stands there; split: None. addr, len: guest address and bytes. flags: the
    16 bits, names: the same decoded. next: split: the next descriptor when NEXT is set. state:
    ``in flight`` (driver), ``available`` or ``held`` (device), ``used``, or ``table`` inside an
    indirect table. table: what an INDIRECT descriptor refers to. notes: what is wrong with it.
    """

    index: int
    head: int | None
    id: int | None
    addr: int
    len: int
    flags: int
    names: list[str]
    next: int | None
    state: str
    table: list["DescriptorRow"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BufferRow:
    """One buffer that is out: added and not taken back (driver), popped and not used (device).

    id: split: the head descriptor. state: driver: ``in flight`` or ``used``; device: ``held``, or
    ``done`` when IN_ORDER makes a completed one wait. descriptors: how many of the ring's it takes.
    writable: bytes the device may write. token: driver: its number, or its object's ``repr``.
    """

    id: int
    state: str
    descriptors: int
    writable: int
    token: int | str | None = None


@dataclass(frozen=True)
class UsedRow:
    """One used buffer that the driver has not taken yet.

    position: split: the used index; packed: place in the ring. written: bytes, or None inside a
    group that IN_ORDER completed by one entry. notes: what is wrong with it.
    """

    position: int
    id: int
    written: int | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RingDescription:
    """What is in a ring right now, seen from one side of it; ``print()`` gives a table.

    role: ``driver`` or ``device``. layout: ``split`` or ``packed``. size: entries. broken: whether
    the queue is marked so; error: why, while that waits to be raised. positions: indices of this
    side and, as ``ring_*``, what stands in shared memory; packed ones with their wrap counters.
    num_free: free descriptors (None on the device side). in_flight: buffers out. ready: buffers
    that wait to be taken (driver) or popped (device). events: the notification fields of the ring.
    interrupt, kick: who waits for whom. problems: what cannot be right. omitted: descriptors that
    were left out because there were too many.
    """

    role: str
    layout: str
    name: str
    index: int
    size: int
    features: list[str]
    broken: bool
    error: str
    positions: dict[str, int]
    num_free: int | None
    in_flight: int
    ready: int
    events: dict[str, int]
    interrupt: Wish
    kick: Wish
    buffers: list[BufferRow]
    used: list[UsedRow]
    descriptors: list[DescriptorRow]
    problems: list[str]
    omitted: int

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return asdict(self)

    def __str__(self) -> str:
        label = f"{self.name or 'queue'} {self.index}"
        state = "BROKEN" if self.broken else "running"
        lines = [f"{label}: {self.layout} ring of {self.size}, {self.role} side, {state}"]
        free = f"{self.num_free} of {self.size} descriptors free, " if self.role == "driver" else ""
        ready = "used, not taken" if self.role == "driver" else "available, not popped"
        facts = [
            ("error", self.error),
            ("features", " ".join(self.features)),
            ("positions", _pairs(self.positions)),
            ("buffers", f"{free}{self.in_flight} in flight, {self.ready} {ready}"),
            ("events", _pairs(self.events)),
            ("interrupt", self.interrupt.text),
            ("kick", self.kick.text),
            *(("PROBLEM", problem) for problem in self.problems),
        ]
        lines += [f"{name:<10} {text}" for name, text in facts if text]
        for title, heads, rows in (
            ("in flight", ("id", "state", "descs", "writable", "token"), self._buffer_cells()),
            ("used", ("position", "id", "written", "notes"), self._used_cells()),
            (
                "descriptors",
                (
                    *("index", "id" if self.layout == "packed" else "head", "state"),
                    *("addr", "len", "next", "flags", "notes"),
                ),
                _descriptor_cells(self.descriptors, self.layout == "packed", ""),
            ),
        ):
            cells = list(rows)
            if cells:
                lines += ["", title, *_table(heads, cells)]
        if self.omitted:
            lines.append(f"... and {self.omitted} more")
        return "\n".join(lines)

    def _buffer_cells(self) -> Iterable[list[str]]:
        for row in self.buffers:
            yield _cells(row.id, row.state, row.descriptors, row.writable, row.token)

    def _used_cells(self) -> Iterable[list[str]]:
        for row in self.used:
            yield _cells(row.position, row.id, row.written, ", ".join(row.notes))


def _descriptor_cells(
    rows: Sequence[DescriptorRow], packed: bool, indent: str
) -> Iterable[list[str]]:
    for row in rows:
        yield [
            f"{indent}{row.index}",
            *_cells(row.id if packed else row.head, row.state, f"{row.addr:#x}", row.len, row.next),
            " ".join(row.names),
            ", ".join(row.notes),
        ]
        yield from _descriptor_cells(row.table, packed, indent + "  ")


def _cells(*values: int | str | None) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _pairs(values: dict[str, int]) -> str:
    return "  ".join(f"{name}={value}" for name, value in values.items())


def _table(heads: Sequence[str], rows: list[list[str]]) -> list[str]:
    """Aligned columns; those that are empty all the way down are left out."""
    keep = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    widths = [max(len(heads[i]), *(len(row[i]) for row in rows)) for i in keep]
    return [
        ("  " + "  ".join(line[i].ljust(w) for i, w in zip(keep, widths, strict=True))).rstrip()
        for line in [list(heads), *rows]
    ]
