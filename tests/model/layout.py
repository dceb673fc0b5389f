"""Where the parts of a ring lie, and the bits that the standard gives a meaning to."""

from __future__ import annotations

from dataclasses import dataclass

# Descriptor flags (2.7.5, 2.8.1, 2.8.3, 2.8.6, 2.8.7).
F_NEXT = 1
F_WRITE = 2
F_INDIRECT = 4
F_AVAIL = 1 << 7
F_USED = 1 << 15

# Ring flags of the split layout (2.7.6, 2.7.8).
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

# Event flags of the packed layout (2.8.10).
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2

#: Bytes of a descriptor, in both layouts and in indirect tables.
DESC_SIZE = 16
MAX_QUEUE_SIZE = 32768


@dataclass(frozen=True)
class Layout:
    """Offsets and sizes in bytes of the three areas; ``size`` is the end of the last one."""

    desc: int
    driver: int
    device: int
    desc_size: int
    driver_size: int
    device_size: int

    @property
    def size(self) -> int:
        """Bytes from offset 0 to the end of the device area."""
        return self.device + self.device_size


def split_layout(num: int, align: int = 4) -> Layout:
    """Areas of a split ring (2.7), one behind the other, the used ring aligned to ``align``.

    ``align=4096`` gives the legacy layout (2.7.2), ``align=4`` the tightest legal one.
    """
    check_split_size(num)
    desc_size = DESC_SIZE * num
    driver_size = 6 + 2 * num
    device = _round_up(desc_size + driver_size, align)
    return Layout(0, desc_size, device, desc_size, driver_size, 6 + 8 * num)


def packed_layout(num: int, align: int = 4) -> Layout:
    """Areas of a packed ring (2.8.10.1): descriptors, driver event, device event."""
    check_packed_size(num)
    desc_size = DESC_SIZE * num
    driver = _round_up(desc_size, align)
    return Layout(0, driver, _round_up(driver + 4, align), desc_size, 4, 4)


def check_split_size(num: int) -> None:
    """Queue Size of a split ring is a power of 2, at most 32768 (2.7)."""
    if num not in {1 << k for k in range(16)}:
        raise ValueError(f"a split ring has 1 to {MAX_QUEUE_SIZE} entries, a power of 2; not {num}")


def check_packed_size(num: int) -> None:
    """Queue Size of a packed ring is anything up to 2^15 (2.8, 2.8.10.1)."""
    if not 1 <= num <= MAX_QUEUE_SIZE:
        raise ValueError(f"a packed ring has 1 to {MAX_QUEUE_SIZE} entries; not {num}")


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align
