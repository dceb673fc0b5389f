"""What drivers of register-mapped transports share: widths of accesses, and waiting for a zero."""

import time
from collections.abc import Callable

from virtring.errors import WaitTimeout

#: Seconds that a device may take for a reset.
RESET_TIMEOUT = 10.0


def all_ones(size: int) -> int:
    """What nobody answers reads as."""
    return (1 << 8 * max(size, 0)) - 1


def accesses(length: int) -> list[tuple[int, int]]:
    """Offset and width of the accesses that make up a field: whole, by halves, or byte by byte.

    A field of 1, 2 or 4 bytes goes by its own width, one of 8 by halves (virtio 1.4, 4.1.3.1).
    """
    if length in (1, 2, 4):
        return [(0, length)]
    width = 4 if length == 8 else 1
    return [(at, width) for at in range(0, length, width)]


def wait_zero(read: Callable[[], int], what: str, timeout: float = RESET_TIMEOUT) -> None:
    """Wait until ``read()`` gives 0; WaitTimeout after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while read():
        if time.monotonic() > deadline:
            raise WaitTimeout(f"{what} has not ended after {timeout} s")
        time.sleep(0.001)
