"""Where the parts of a channel lie in its shared memory: the same sum in both processes."""

import operator
from dataclasses import dataclass

from virtring.errors import InvalidArgument
from virtring.queue.config import CACHE_LINE, MAX_SIZE, QueueConfig, round_up
from virtring.spec.features import Feature

#: Guest address of the memory's first byte; not 0, so that address 0 is never valid.
BASE = 0x10000
#: Packed: both sides' work on a message is in one cache line. EVENT_IDX: one wake-up a sleep.
FEATURES = Feature.VERSION_1 | Feature.RING_PACKED | Feature.EVENT_IDX
PAGE = 4096
#: A message takes one byte more, see :class:`Layout`.
MAX_MESSAGE = (1 << 32) - 2


def _whole(value: object, what: str, most: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{what} is {value!r}; it takes an integer") from None
    if not 1 <= number <= most:
        raise InvalidArgument(f"{what} is {number}; it takes 1 to {most}")
    return number


@dataclass(frozen=True)
class Layout:
    """A channel of ``slots`` messages of up to ``slot_size`` bytes in either direction.

    First a page of control words, one cache line an end; then for each direction a ring and its
    slots. Everything follows from the two numbers, so no address is ever taken from the peer.

    A virtio descriptor cannot be empty, a message can: its descriptor is one byte longer, and so is
    a slot. The receiver gives slots back ``give_back`` at a time; those that may wait for it come
    on top of ``slots``, so that they are never missed.

    Raises InvalidArgument for numbers that cannot be.
    """

    slots: int
    slot_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", _whole(self.slots, "slots", MAX_SIZE - 64))
        object.__setattr__(self, "slot_size", _whole(self.slot_size, "slot_size", MAX_MESSAGE))

    @property
    def give_back(self) -> int:
        """Slots that the receiver gives back at once."""
        return max(1, min(32, self.slots // 4))

    @property
    def num(self) -> int:
        """Entries of a ring, each with a slot of its own."""
        return self.slots + self.give_back - 1

    @property
    def stride(self) -> int:
        """Bytes from one slot to the next."""
        return round_up(self.slot_size + 1, CACHE_LINE)

    @property
    def _ring_bytes(self) -> int:
        return round_up(16 * self.num, CACHE_LINE) + 2 * CACHE_LINE

    @property
    def _direction_bytes(self) -> int:
        return round_up(self._ring_bytes + self.num * self.stride, PAGE)

    @property
    def size(self) -> int:
        """Bytes of the whole memory, full pages."""
        return PAGE + 2 * self._direction_bytes

    def control(self, side: int) -> int:
        """Guest address of the word that end ``side`` (0 or 1) writes."""
        return BASE + CACHE_LINE * side

    def ring(self, side: int) -> QueueConfig:
        """The ring that end ``side`` sends on: it is the driver, the other end the device."""
        start = BASE + PAGE + side * self._direction_bytes
        events = start + round_up(16 * self.num, CACHE_LINE)
        return QueueConfig(
            self.num, start, events, events + CACHE_LINE, FEATURES, side, "channel"
        )

    def first_slot(self, side: int) -> int:
        """Guest address of the slots that end ``side`` fills."""
        return BASE + PAGE + side * self._direction_bytes + self._ring_bytes
