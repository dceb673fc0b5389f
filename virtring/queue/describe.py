"""What is in a ring right now, seen from either side, without disturbing it."""

from virtring.errors import InvalidArgument
from virtring.queue.description import (
    BufferRow,
    DescriptorRow,
    RingDescription,
    UsedRow,
    Wish,
)
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.queue.look_packed import PackedLook
from virtring.queue.look_split import SplitLook
from virtring.spec.features import Feature

__all__ = ["BufferRow", "DescriptorRow", "RingDescription", "UsedRow", "Wish", "describe"]


def describe(side: Virtqueue | DeviceQueue, *, limit: int = 4096) -> RingDescription:
    """The ring and the books of ``side`` as plain data; ``print()`` of it gives a table.

    Reads only: neither ring nor queue changes, and no translation is asked for. What the other side
    wrote may be garbage and is noted, never raised. A broken queue can be described. On a ring that
    is moving meanwhile, a step may be half seen. At most ``limit`` descriptors are listed.

    Raises QueueClosed, QueueBusy while another thread runs a batch on this side, and
    InvalidArgument for anything but a configured queue side or for a negative limit.
    """
    if not isinstance(limit, int) or limit < 0:
        raise InvalidArgument(f"limit {limit!r}: it takes an int, 0 or more")
    if not isinstance(side, Virtqueue | DeviceQueue):
        raise InvalidArgument(
            f"a {type(side).__name__} to describe; it takes a Virtqueue or a DeviceQueue"
        )
    look = PackedLook(side, limit) if side.packed else SplitLook(side, limit)
    config = look.config
    return RingDescription(
        role="driver" if look.driver else "device",
        layout="packed" if look.packed else "split",
        name=config.name,
        index=config.index,
        size=look.num,
        features=feature_names(int(config.features)),
        broken=look.state["broken"],
        error=look.state["error"],
        positions=look.positions(),
        num_free=look.state["num_free"] if look.driver else None,
        in_flight=look.state["in_flight"],
        ready=look.ready,
        events=look.events(),
        interrupt=look.interrupt(),
        kick=look.kick(),
        buffers=look.buffers(),
        used=look.used,
        descriptors=look.descriptors,
        problems=look.problems,
        omitted=look.omitted,
    )


def feature_names(features: int) -> list[str]:
    """Names of the bits that are set, the lowest first; ``bit 5`` for one that has none here."""
    names = []
    for bit in range(features.bit_length()):
        if features >> bit & 1:
            names.append(Feature(1 << bit).name or f"bit {bit}")
    return names
