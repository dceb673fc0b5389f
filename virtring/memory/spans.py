"""A row of the guest memory map, and the names of access rights."""

import operator
from typing import TYPE_CHECKING, NamedTuple

from virtring.errors import AddressError, InvalidArgument

if TYPE_CHECKING:
    from virtring.memory.region import Region

#: Access rights by name; the numbers are ``PERM_READ`` and ``PERM_WRITE`` of ``table.pxd``.
PERMS = {"r": 1, "w": 2, "rw": 3}
PERM_NAMES = {number: name for name, number in PERMS.items()}

ADDRESS_END = 1 << 64


class MemoryRegion(NamedTuple):
    """``size`` bytes at ``guest_addr`` stand at ``offset`` of ``region``.

    ``perm`` (``"r"``, ``"w"`` or ``"rw"``) is what the device side may do there.
    """

    guest_addr: int
    size: int
    region: "Region"
    offset: int
    perm: str


def perm_bits(perm: str) -> int:
    """``PERM_*`` bits of ``"r"``, ``"w"`` or ``"rw"``; anything else raises InvalidArgument."""
    try:
        return PERMS[perm]
    except (KeyError, TypeError):
        raise InvalidArgument(f"perm is {perm!r}; it takes 'r', 'w' or 'rw'") from None


def checked_span(addr: object, length: object) -> tuple[int, int]:
    """The two as ints if [addr, addr + length) is not empty and ends at or below 2**64.

    Raises AddressError otherwise.
    """
    try:
        start, size = operator.index(addr), operator.index(length)  # type: ignore[arg-type]
    except TypeError:
        raise AddressError(f"address {addr!r} and length {length!r} must be integers") from None
    if not 0 <= start < ADDRESS_END:
        raise AddressError(f"address {start:#x} is not from 0 to 2**64 - 1")
    if size < 1:
        raise AddressError(f"the range at {start:#x} has length {size}; it takes at least 1")
    if size > ADDRESS_END - start:
        raise AddressError(f"{size} bytes at {start:#x} reach beyond 2**64")
    return start, size
