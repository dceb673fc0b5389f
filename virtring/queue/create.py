"""Making and deleting queues by Linux's names, and both ends of a ring in one process."""

from collections.abc import Callable
from typing import Any, Protocol

from virtring.errors import InvalidArgument, OutOfMemory
from virtring.memory.guest import GuestMemory
from virtring.memory.pool import Block
from virtring.queue.config import (
    CACHE_LINE,
    QueueConfig,
    avail_bytes,
    check_align,
    check_features,
    check_size,
    desc_bytes,
    round_up,
    transport_features,
    used_bytes,
    vring_size,
)
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.spec.features import Feature

Notify = Callable[[Virtqueue], bool | None]
Callback = Callable[[Virtqueue], object]
Recycle = Callable[[Virtqueue, Any], object]


class RingOwner(Protocol):
    """What a queue needs of its device (``vdev``): negotiated features and the guest's memory.

    ``config`` carries the transport's operations; :meth:`Virtqueue.reset` and
    :func:`virtqueue_resize` use its ``disable_vq_and_reset`` and ``enable_vq_after_reset``.
    A ``big_endian`` attribute that is true makes a legacy ring that of a big-endian guest.
    """

    @property
    def features(self) -> int: ...
    @property
    def memory(self) -> GuestMemory: ...
    @property
    def config(self) -> Any: ...


class RingDevice:
    """The least that can be a ``vdev``: features, memory, and optionally transport operations."""

    def __init__(
        self,
        memory: GuestMemory,
        features: int = Feature.VERSION_1,
        config: Any = None,
        *,
        big_endian: bool = False,
    ) -> None:
        self.memory = memory
        self.features = check_features(features)
        self.config = config
        self.big_endian = big_endian


def ring_features(vdev: RingOwner) -> Feature:
    """The device's features as far as a ring is concerned; InvalidArgument when it has none."""
    try:
        features, memory = int(vdev.features), vdev.memory
    except (AttributeError, TypeError, ValueError):
        raise InvalidArgument(
            f"vdev {vdev!r} needs `features` (an int) and `memory` (a GuestMemory)"
        ) from None
    if not isinstance(memory, GuestMemory):
        raise InvalidArgument(f"vdev.memory is a {type(memory).__name__}, not a GuestMemory")
    return transport_features(Feature(features))


def place_ring(
    memory: GuestMemory, num: int, align: int, features: Feature, index: int, name: str, big: bool
) -> tuple[QueueConfig, list[Block]]:
    """Allocate a ring of ``num`` entries; OutOfMemory when it does not fit.

    Without VERSION_1 the areas are in one piece, as the legacy interface wants them. Otherwise what
    each side writes lies on cache lines of its own, and the two rings' entries begin a line: a used
    entry then never straddles two lines, and polling an index does not disturb the entries.
    """
    packed = Feature.RING_PACKED in features
    if Feature.VERSION_1 not in features:
        block = Block(memory, vring_size(num, align), max(align, 16))
        config = QueueConfig.contiguous(block.addr, num, align, features, index, name, big)
        return config, [block]
    line = max(align, CACHE_LINE) if align <= 4096 else align
    lead = 0 if packed or line != CACHE_LINE else CACHE_LINE - 4
    avail = round_up(desc_bytes(num), line) + lead
    used = round_up(avail + avail_bytes(num, packed), line) + lead
    block = Block(memory, used + used_bytes(num, packed), line)
    config = QueueConfig(
        num, block.addr, block.addr + avail, block.addr + used, features, index, name
    )
    return config, [block]


def vring_create_virtqueue(
    index: int,
    num: int,
    vring_align: int,
    vdev: RingOwner,
    weak_barriers: bool = True,
    may_reduce_num: bool = False,
    context: bool = False,
    notify: Notify | None = None,
    callback: Callback | None = None,
    name: str = "",
) -> Virtqueue:
    """A new queue on a ring of its own, in ``vdev.memory`` (Linux ``vring_create_virtqueue``).

    Packed when ``vdev.features`` has RING_PACKED, else split. ``num`` is the number of entries
    (split: a power of two up to 32768; packed: 1 to 32768); with ``may_reduce_num`` it is halved
    as long as the memory has no room. ``vring_align`` (bytes, a power of two, 4 or more) is where
    the device area is aligned. ``weak_barriers=False`` orders as for real hardware, as does
    ORDER_PLATFORM. ``context`` allows :meth:`Virtqueue.add_inbuf_ctx` and keeps the queue direct.
    ``notify(vq)`` tells the device, False from it breaks the queue; ``callback(vq)`` is what
    :meth:`Virtqueue.vring_interrupt` calls. The ring is freed by :func:`vring_del_virtqueue`.

    Raises InvalidArgument for a size, alignment or vdev that cannot be; OutOfMemory when the memory
    has no room (for even the smallest ring, with ``may_reduce_num``).
    """
    features = ring_features(vdev)
    packed = Feature.RING_PACKED in features
    size = check_size(num, packed)
    check_align(vring_align)
    big = bool(getattr(vdev, "big_endian", False))
    while True:
        try:
            config, blocks = place_ring(
                vdev.memory, size, vring_align, features, index, name, big
            )
            break
        except OutOfMemory:
            if not may_reduce_num or size == 1:
                raise OutOfMemory(
                    f"{name or 'queue'} {index}: the guest memory has no room for a ring of {size}"
                ) from None
            size //= 2
    return Virtqueue(
        vdev.memory,
        config,
        vdev=vdev,
        weak_barriers=weak_barriers and Feature.ORDER_PLATFORM not in features,
        context=context,
        notify=notify,
        callback=callback,
        num_max=num,
        vring_align=vring_align,
        blocks=blocks,
    )


def vring_new_virtqueue(
    index: int,
    num: int,
    vring_align: int,
    vdev: RingOwner,
    weak_barriers: bool,
    context: bool,
    pages: int | QueueConfig,
    notify: Notify | None = None,
    callback: Callback | None = None,
    name: str = "",
) -> Virtqueue:
    """A queue on memory given by the caller (Linux ``vring_new_virtqueue``).

    ``pages`` is the guest address of a split ring in one piece (see :func:`vring_size`), or a
    :class:`QueueConfig` with the addresses of the three areas, of either layout. The memory is
    cleared; it stays the caller's. Otherwise as :func:`vring_create_virtqueue`.
    """
    features = ring_features(vdev)
    packed = Feature.RING_PACKED in features
    check_size(num, packed)
    big = bool(getattr(vdev, "big_endian", False))
    if isinstance(pages, QueueConfig):
        if pages.size != num:
            raise InvalidArgument(f"num is {num}, but pages describes a ring of {pages.size}")
        config = QueueConfig(
            num, pages.desc, pages.avail, pages.used, features, index, name, big
        )
    elif packed:
        raise InvalidArgument("a packed ring on given memory takes a QueueConfig as pages")
    else:
        config = QueueConfig.contiguous(pages, num, vring_align, features, index, name, big)
    return Virtqueue(
        vdev.memory,
        config,
        vdev=vdev,
        weak_barriers=weak_barriers and Feature.ORDER_PLATFORM not in features,
        context=context,
        notify=notify,
        callback=callback,
    )


def vring_del_virtqueue(vq: Virtqueue) -> None:
    """Delete a queue and free its ring if it owns it (Linux ``vring_del_virtqueue``)."""
    vq.close()


def virtqueue_resize(
    vq: Virtqueue,
    num: int,
    recycle: Recycle | None = None,
    recycle_done: Callback | None = None,
) -> None:
    """Give a queue a ring of another size (Linux ``virtqueue_resize``).

    Buffers in flight go to ``recycle(vq, token)``, then ``recycle_done(vq)`` is called. ``num`` is
    at most the ``num`` that the queue was made with. If the memory has no room, the queue goes on
    with the ring it had and OutOfMemory is raised.

    Raises InvalidArgument for a wrong size or a queue that does not own its ring, NotSupported
    when the transport cannot reset a single queue; nothing is changed then.
    """
    check_size(num, vq.packed)
    if num > vq.num_max:
        raise InvalidArgument(
            f"{vq.config.label}: size {num}; it was made for at most {vq.num_max}"
        )
    if not vq.we_own_ring:
        raise InvalidArgument(f"{vq.config.label}: its ring memory is not its own")
    if num == vq.vring_size:
        return
    ops = vq.reset_ops()
    ops.disable_vq_and_reset(vq)
    vq.recycle_all(recycle)
    if recycle_done is not None:
        recycle_done(vq)
    old = vq.config
    align = vq.vring_align or CACHE_LINE
    try:
        config, blocks = place_ring(
            vq.memory, num, align, old.features, old.index, old.name, old.big_endian
        )
    except OutOfMemory:
        vq.restart()
        ops.enable_vq_after_reset(vq)
        raise
    vq.replace_ring(config, blocks)
    ops.enable_vq_after_reset(vq)


def virtio_break_device(vqs: list[Virtqueue | None]) -> None:
    """Break every queue of a device that is gone (Linux ``virtio_break_device``)."""
    for vq in vqs:
        if vq is not None:
            vq.break_()


def virtio_unbreak_device(vqs: list[Virtqueue | None]) -> None:
    """Take the marks back (Linux ``__virtio_unbreak_device``)."""
    for vq in vqs:
        if vq is not None:
            vq.unbreak()


def create_pair(
    num: int = 256,
    *,
    packed: bool = False,
    features: int = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX,
    memory: GuestMemory | None = None,
    notify: Notify | None = None,
    callback: Callback | None = None,
    call: Callable[[DeviceQueue], object] | None = None,
    name: str = "pair",
) -> tuple[Virtqueue, DeviceQueue]:
    """Both ends of one new ring: ``(driver side, device side)``.

    ``memory`` defaults to a new one of 16 MiB that other processes can map; ``driver.memory`` is
    it. ``packed`` adds RING_PACKED to ``features``. For two processes make the pair's driver with
    :func:`vring_create_virtqueue` and hand ``vq.memory`` and ``vq.config`` to the other one.
    """
    if memory is None:
        memory = GuestMemory.create(16 << 20)
    bits = check_features(features)
    if packed:
        bits |= Feature.RING_PACKED
    vdev = RingDevice(memory, bits)
    vq = vring_create_virtqueue(
        0, num, CACHE_LINE, vdev, notify=notify, callback=callback, name=name
    )
    return vq, DeviceQueue(memory, vq.config, call=call)
