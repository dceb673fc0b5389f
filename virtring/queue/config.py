"""Where a ring's parts lie: the layouts of both rings, and the description both sides share."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from virtring.errors import InvalidArgument
from virtring.spec.features import RING_FEATURES, Feature

MAX_SIZE = 32768
CACHE_LINE = 64


def check_size(size: int, packed: bool) -> int:
    """``size`` as a ring size; raises InvalidArgument (virtio 1.4, 2.7 and 2.8).

    Split: a power of two up to 32768. Packed: anything from 1 to 32768.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise InvalidArgument(f"a ring size is an int, not {type(size).__name__}")
    if not 1 <= size <= MAX_SIZE:
        raise InvalidArgument(f"ring size {size}: it takes 1 to {MAX_SIZE}")
    if not packed and size & (size - 1):
        raise InvalidArgument(f"ring size {size}: a split ring takes a power of two")
    return size


def check_align(align: int) -> int:
    """``align`` as a vring_align; raises InvalidArgument. 4 or more, a power of two."""
    if not isinstance(align, int) or align < 4 or align & (align - 1):
        raise InvalidArgument(f"vring_align {align!r}: it takes a power of two, 4 or more")
    return align


def desc_bytes(size: int) -> int:
    """Bytes of the descriptor table (split) or ring (packed)."""
    return 16 * size


def avail_bytes(size: int, packed: bool) -> int:
    """Bytes of the driver area: the avail ring with ``used_event``, or an event structure."""
    return 4 if packed else 6 + 2 * size


def used_bytes(size: int, packed: bool) -> int:
    """Bytes of the device area: the used ring with ``avail_event``, or an event structure."""
    return 4 if packed else 6 + 8 * size


def round_up(value: int, align: int) -> int:
    return (value + align - 1) & -align


def vring_size(num: int, align: int) -> int:
    """Bytes of a split ring in one piece, as the legacy interface has it (Linux vring_size)."""
    check_size(num, packed=False)
    check_align(align)
    return round_up(16 * num + 6 + 2 * num, align) + used_bytes(num, False)


@dataclass(frozen=True)
class QueueConfig:
    """Everything a side needs to know of a queue; picklable, the same on both ends.

    size: entries. desc, avail, used: guest addresses of the three areas; in a packed ring avail is
    the driver's event structure and used the device's (the spec's driver area and device area).
    features: the negotiated bits. index: the queue's number in its device. name: for messages.
    big_endian: a legacy ring (no VERSION_1) of a big-endian guest; otherwise it is little-endian.

    Raises InvalidArgument for a size, an alignment or a set of features that cannot be.
    """

    size: int
    desc: int
    avail: int
    used: int
    features: Feature = Feature.VERSION_1
    index: int = 0
    name: str = ""
    big_endian: bool = False

    def __post_init__(self) -> None:
        features = check_features(self.features)
        object.__setattr__(self, "features", features)
        check_size(self.size, self.packed)
        if not isinstance(self.index, int) or not 0 <= self.index <= 0xFFFF:
            raise InvalidArgument(f"index {self.index!r} of a queue; there are 0 to 65535")
        if not isinstance(self.name, str):
            raise InvalidArgument(f"name {self.name!r} is not a str")
        if self.packed and Feature.VERSION_1 not in features:
            raise InvalidArgument("RING_PACKED needs VERSION_1: legacy devices have no packed ring")
        if self.big_endian and Feature.VERSION_1 in features:
            raise InvalidArgument("big_endian: with VERSION_1 every ring is little-endian")
        aligns = (("desc", 16), ("avail", 4 if self.packed else 2), ("used", 4))
        for area, align in aligns:
            addr = getattr(self, area)
            if not isinstance(addr, int) or addr < 0:
                raise InvalidArgument(f"{area} address {addr!r} is not a guest address")
            if addr % align:
                raise InvalidArgument(f"{area} address {addr:#x} is not a multiple of {align}")
        self._check_apart()

    def _check_apart(self) -> None:
        """Areas that overlap would let one side's writes change what the other side owns."""
        lengths = {
            "desc": desc_bytes(self.size),
            "avail": avail_bytes(self.size, self.packed),
            "used": used_bytes(self.size, self.packed),
        }
        areas = sorted((getattr(self, area), area) for area in lengths)
        for (addr, area), (following, other) in pairwise(areas):
            if addr + lengths[area] > following:
                raise InvalidArgument(
                    f"the {area} area ({lengths[area]} bytes at {addr:#x}) overlaps the {other}"
                    f" area at {following:#x}"
                )

    @property
    def packed(self) -> bool:
        return Feature.RING_PACKED in self.features

    @property
    def label(self) -> str:
        """How messages name the queue."""
        return f"{self.name or 'queue'} {self.index}"

    @classmethod
    def contiguous(
        cls,
        start: int,
        size: int,
        align: int,
        features: Feature,
        index: int = 0,
        name: str = "",
        big_endian: bool = False,
    ) -> Self:
        """Split areas in one piece from ``start``, as Linux's ``vring_init`` places them."""
        check_align(align)
        avail = start + 16 * size
        used = round_up(avail + avail_bytes(size, False), align)
        return cls(size, start, avail, used, features, index, name, big_endian)


def check_features(features: int) -> Feature:
    """``features`` as a :class:`Feature`; InvalidArgument when that is no set of bits."""
    if not isinstance(features, int) or features < 0:
        raise InvalidArgument(f"features {features!r} are no set of bits: Feature.VERSION_1")
    return Feature(features)


def transport_features(features: Feature) -> Feature:
    """What of ``features`` this engine can run (Linux ``vring_transport_features``).

    Bits of the device type (0 to 23, 50 to 63) pass; unknown ring and transport bits do not.
    """
    device_bits = ((1 << 24) - 1) | (((1 << 14) - 1) << 50)
    return Feature(int(features) & (device_bits | int(RING_FEATURES)))
