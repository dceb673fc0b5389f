"""Making, resetting and resizing rings as Linux does; the legacy layout; notification data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from virtring import (
    Batch,
    DeviceQueue,
    Feature,
    GuestMemory,
    InvalidArgument,
    NotSupported,
    QueueConfig,
    RingDevice,
    Virtqueue,
    create_pair,
    transport_features,
    virtqueue_resize,
    vring_create_virtqueue,
    vring_new_virtqueue,
    vring_size,
)
from virtring.errors import OutOfMemory

from ._rings import BASE, KINDS, SIZE, Raw, Ring

both = pytest.mark.parametrize("kind", KINDS)


class Transport:
    """What a device with RING_RESET does: it stops the queue, and starts it where it is told."""

    def __init__(self) -> None:
        self.dq: DeviceQueue | None = None
        self.log: list[str] = []

    def disable_vq_and_reset(self, vq: Virtqueue) -> None:
        assert self.dq is not None
        self.log.append("disable")
        self.dq.reset()

    def enable_vq_after_reset(self, vq: Virtqueue) -> None:
        assert self.dq is not None
        self.log.append("enable")
        self.dq.configure(vq.config)


def resettable(kind: str, num: int = 8, **options: Any) -> tuple[Ring, Transport]:
    transport = Transport()
    ring = Ring(
        kind, num, Feature.RING_RESET | Feature.INDIRECT_DESC, transport=transport, **options
    )
    transport.dq = ring.dq
    return ring, transport


def works(ring: Ring) -> None:
    buf = ring.buf()
    for i in range(3 * ring.vq.vring_size + 1):
        ring.vq.add_sgs([buf] if ring.vq.vring_size > 1 else [], [buf], i)
        assert ring.serve(16) == 1
        assert ring.vq.get_buf() == (i, 16)


# -- reset and resize ----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("broken", [False, True])
def test_reset(kind: str, broken: bool) -> None:
    ring, transport = resettable(kind)
    buf = ring.buf()
    for i in range(4):
        ring.vq.add_sgs([buf], [buf], i)
    ring.serve(most=1)
    chain = ring.dq.next_chain()
    if broken:
        ring.vq.break_()
    recycled: list[Any] = []

    def recycle(vq: Virtqueue, token: Any) -> None:
        assert transport.log == ["disable"]
        recycled.append(token)

    def done(vq: Virtqueue) -> None:
        assert len(recycled) == 4
        transport.log.append("done")

    ring.vq.reset(recycle, done)
    assert sorted(recycled) == [0, 1, 2, 3]
    assert transport.log == ["disable", "done", "enable"]
    assert not ring.vq.is_broken
    assert ring.vq.num_free == 8
    with pytest.raises(InvalidArgument):
        chain.return_()
    works(ring)


@both
def test_reset_needs_the_transport(kind: str) -> None:
    class Half:
        def disable_vq_and_reset(self, vq: Virtqueue) -> None:
            raise AssertionError("must not be called")

    for transport in (None, object(), Half()):
        ring = Ring(kind, 8, transport=transport)
        ring.vq.add_outbuf(ring.buf(), "kept")
        with pytest.raises(NotSupported, match="a single queue cannot be reset"):
            ring.vq.reset()
        with pytest.raises(NotSupported):
            virtqueue_resize(ring.vq, 4)
        assert ring.vq.in_flight == 1
        assert ring.serve() == 1


@both
@pytest.mark.parametrize("num", [1, 4, 7, 8, 16])
def test_resize(kind: str, num: int) -> None:
    if kind == "split" and num == 7:
        pytest.skip("no power of two")
    ring, transport = resettable(kind, 16)
    buf = ring.buf()
    for i in range(3):
        ring.vq.add_sgs([buf], [buf], i)
    recycled: list[Any] = []
    virtqueue_resize(ring.vq, num, lambda vq, token: recycled.append(token), lambda vq: None)
    if num == 16:
        assert (recycled, transport.log) == ([], [])
        return
    assert recycled == [0, 1, 2]
    assert ring.vq.vring_size == ring.vq.num_free == ring.dq.size == num
    works(ring)
    virtqueue_resize(ring.vq, 16)
    assert ring.vq.num_free == 16
    works(ring)


@both
@pytest.mark.parametrize("align", [256, 4096])
def test_resize_keeps_the_alignment(kind: str, align: int) -> None:
    ring, _ = resettable(kind, 16, align=align)
    assert ring.vq.vring_align == align
    for num in (4, 8, 16):
        virtqueue_resize(ring.vq, num)
        assert ring.vq.used_addr % align == 0
        works(ring)


@both
def test_resize_refuses(kind: str) -> None:
    ring, transport = resettable(kind)
    for num in (0, 9, 16, 40000, -1):
        with pytest.raises(InvalidArgument):
            virtqueue_resize(ring.vq, num)
    config = ring.vq.config
    other = vring_new_virtqueue(
        0, 8, 64, RingDevice(ring.memory, config.features, transport), True, False, config
    )
    with pytest.raises(InvalidArgument, match="not its own"):
        virtqueue_resize(other, 4)
    assert transport.log == []


@both
def test_resize_without_memory_goes_on_with_the_old_ring(kind: str) -> None:
    ring, _ = resettable(kind, 4096)
    virtqueue_resize(ring.vq, 8)
    works(ring)
    rest = 1 << 16
    while rest >= 1 << 10:
        try:
            ring.memory.alloc(rest)
        except OutOfMemory:
            rest //= 2
    ring.vq.add_outbuf_premapped([(BASE + SIZE - 8, 8)], "recycled")
    recycled: list[Any] = []
    with pytest.raises(OutOfMemory):
        virtqueue_resize(ring.vq, 4096, lambda vq, token: recycled.append(token))
    assert recycled == ["recycled"]
    assert ring.vq.vring_size == 8
    works(ring)


# -- creation ------------------------------------------------------------------------------------


@both
def test_may_reduce_num(kind: str) -> None:
    memory = GuestMemory.create(0x4000, base=BASE)
    features = Feature.VERSION_1 | (Feature.RING_PACKED if kind == "packed" else Feature(0))
    vdev = RingDevice(memory, features)
    with pytest.raises(OutOfMemory, match="no room for a ring of 4096"):
        vring_create_virtqueue(0, 4096, 64, vdev)
    vq = vring_create_virtqueue(0, 4096, 64, vdev, may_reduce_num=True)
    assert vq.vring_size == 512
    assert vq.we_own_ring
    assert vq.num_max == 4096
    rest = vring_create_virtqueue(0, 4096, 64, vdev, may_reduce_num=True)
    assert 1 <= rest.vring_size < 512
    vq.close()
    vring_create_virtqueue(0, 256, 64, vdev)


def test_packed_reduces_to_any_number() -> None:
    memory = GuestMemory.create(0x1000, base=BASE)
    vdev = RingDevice(memory, Feature.VERSION_1 | Feature.RING_PACKED)
    assert vring_create_virtqueue(0, 999, 64, vdev, may_reduce_num=True).vring_size == 124


@both
@pytest.mark.parametrize("dirty", [0, 0xFF])
def test_a_ring_on_memory_of_the_caller(kind: str, dirty: int) -> None:
    memory = GuestMemory.create(SIZE, base=BASE)
    memory.write(BASE, bytes([dirty]) * 0x4000)
    features = Feature.VERSION_1 | (Feature.RING_PACKED if kind == "packed" else Feature(0))
    vdev = RingDevice(memory, features)
    config = QueueConfig(8, BASE + 0x100, BASE + 0x1000, BASE + 0x2000, features)
    vq = vring_new_virtqueue(3, 8, 64, vdev, True, False, config, name="mine")
    assert not vq.we_own_ring
    assert (vq.index, vq.name, vq.desc_addr) == (3, "mine", BASE + 0x100)
    assert (vq.avail_addr, vq.used_addr) == (BASE + 0x1000, BASE + 0x2000)
    dq = DeviceQueue(memory, vq.config)
    for i in range(20):
        vq.add_outbuf_premapped([(BASE + 0x3000, 4)], i)
        dq.next_chain().return_()
        assert vq.get_buf() == (i, 0)
    with pytest.raises(InvalidArgument, match="num is 16"):
        vring_new_virtqueue(0, 16, 64, vdev, True, False, config)
    if kind == "packed":
        with pytest.raises(InvalidArgument, match="takes a QueueConfig"):
            vring_new_virtqueue(0, 8, 64, vdev, True, False, BASE)


def test_features() -> None:
    want = Feature.RING_PACKED | Feature.VERSION_1 | Feature.SR_IOV | Feature.ADMIN_VQ
    assert transport_features(want) == Feature.RING_PACKED | Feature.VERSION_1
    assert transport_features(Feature(0xFFFFFF | 1 << 50 | 1 << 30)) == Feature(0xFFFFFF | 1 << 50)
    vdev = RingDevice(GuestMemory.create(SIZE), Feature.RING_PACKED)
    with pytest.raises(InvalidArgument, match="RING_PACKED needs VERSION_1"):
        vring_create_virtqueue(0, 8, 64, vdev)


def test_create_pair() -> None:
    for packed in (False, True):
        vq, dq = create_pair(8, packed=packed)
        assert vq.packed is dq.packed is packed
        assert Feature.EVENT_IDX in vq.features
        vq.add_outbuf(vq.memory.view(vq.memory.alloc(4), 4), 1)
        dq.next_chain().return_()
        assert vq.get_buf() == (1, 0)


# -- legacy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [4, 64, 4096])
def test_the_legacy_layout_is_one_piece(align: int) -> None:
    memory = GuestMemory.create(SIZE, base=BASE)
    vdev = RingDevice(memory, Feature(0))
    vq = vring_create_virtqueue(0, 8, align, vdev)
    assert vq.desc_addr % align == 0
    assert vq.avail_addr == vq.desc_addr + 16 * 8
    end = vq.avail_addr + 6 + 2 * 8
    assert vq.used_addr == -(-end // align) * align
    assert memory.allocated == vring_size(8, align) == vq.used_addr + 6 + 8 * 8 - vq.desc_addr
    again = vring_new_virtqueue(0, 8, align, vdev, True, False, vq.desc_addr)
    assert again.config.used == vq.config.used


@pytest.mark.parametrize("features", [Feature(0), Feature.EVENT_IDX | Feature.INDIRECT_DESC])
def test_a_big_endian_ring(features: Feature) -> None:
    ring = Ring("split", 4, features, big_endian=True, callback=lambda vq: None)
    config = ring.vq.config
    assert config.big_endian
    out, in_ = ring.buf(5), ring.buf(7)
    ring.vq.add_sgs([out], [in_], "x")
    read = ring.memory.read
    assert read(config.avail, 6) == bytes.fromhex("0000 0001 0000")
    addrs = [ring.addr(view).to_bytes(8, "big") for view in (out, in_)]
    chain_bytes = (
        addrs[0]
        + bytes.fromhex("00000005 0001 0001")
        + addrs[1]
        + bytes.fromhex("00000007 0002 0000")
    )
    if features:
        entry = read(config.desc, 16)
        assert entry[8:] == bytes.fromhex("00000020 0004 0000")
        assert read(int.from_bytes(entry[:8], "big"), 32) == chain_bytes
    else:
        assert read(config.desc, 32) == chain_bytes
    chain = ring.dq.next_chain()
    assert [(d.addr, d.len, d.writable) for d in chain] == [
        (ring.addr(out), 5, False), (ring.addr(in_), 7, True),
    ]  # fmt: skip
    chain.return_(6)
    assert read(config.used, 12) == bytes.fromhex("0000 0001 00000000 00000006")
    if features:
        assert read(config.used + 4 + 8 * 4, 2) == b"\0\1"  # avail_event: the next one
    assert ring.vq.get_buf() == ("x", 6)
    if features:
        assert read(config.avail + 4 + 2 * 4, 2) == b"\0\1"  # used_event
    ring.vq.disable_cb()
    if not features:
        assert read(config.avail, 2) == b"\0\1"
        ring.dq.disable_notify()
        assert read(config.used, 2) == b"\0\1"


def test_a_big_endian_ring_in_batches() -> None:
    ring = Ring("split", 8, Feature.EVENT_IDX, big_endian=True, callback=lambda vq: None)
    batch = Batch(5, 10)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), np.arange(1, 11)
    for lap in range(30):
        batch.token[:] = range(lap, lap + 5)
        assert ring.dq.enable_notify()
        assert ring.vq.enable_cb()
        batch.offsets[:] = [0, 1, 2, 3, 4, 5]
        add = ring.vq.add_inbuf_batch if lap % 2 else ring.vq.add_sgs_batch
        assert add(batch, 0, 5) == 5
        assert ring.vq.kick_prepare()
        popped = Batch(5)
        assert ring.dq.pop(popped) == 5
        assert popped.len.tolist() == [1, 2, 3, 4, 5]
        popped.written[:] = popped.len if lap % 2 else 0
        ring.dq.push(popped)
        assert ring.dq.need_notify()
        assert ring.vq.get_buf_batch(popped) == 5
        assert popped.token.tolist() == list(range(lap, lap + 5))
        assert popped.written.tolist() == ([1, 2, 3, 4, 5] if lap % 2 else 5 * [0])
        assert Raw(ring.memory, ring.vq.config).used["idx"] == 5 * (lap + 1)
    dq = DeviceQueue(ring.memory, ring.vq.config)
    dq.restore(ring.dq.position)
    ring.vq.add_outbuf(ring.buf(), "restored")
    dq.next_chain().return_()
    assert ring.vq.get_buf() == ("restored", 0)


def test_big_endian_is_legacy_only() -> None:
    for features in (Feature.VERSION_1, Feature.VERSION_1 | Feature.RING_PACKED):
        vdev = RingDevice(GuestMemory.create(SIZE), features, big_endian=True)
        with pytest.raises(InvalidArgument, match="every ring is little-endian"):
            vring_new_virtqueue(
                0, 8, 64, vdev, True, False, QueueConfig(8, 0x10000, 0x20000, 0x30000, features)
            )


# -- notification data ---------------------------------------------------------------------------


def test_notification_data() -> None:
    seen: list[int] = []
    memory = GuestMemory.create(SIZE, base=BASE)
    addr = memory.alloc(16)
    for packed in (False, True):
        features = Feature.VERSION_1 | Feature.NOTIFICATION_DATA
        features |= Feature.RING_PACKED if packed else Feature(0)
        vq = vring_create_virtqueue(
            5, 4, 64, RingDevice(memory, features),
            notify=lambda vq: seen.append(vq.notification_data),
        )  # fmt: skip
        dq = DeviceQueue(memory, vq.config)
        assert vq.notification_data == (0x8000_0005 if packed else 5)
        for i in range(5):
            vq.add_outbuf_premapped([(addr, 8)], i)
            vq.kick()
            dq.next_chain().return_()
            vq.get_buf()
    assert seen == [
        0x1_0005, 0x2_0005, 0x3_0005, 0x4_0005, 0x5_0005,
        0x8001_0005, 0x8002_0005, 0x8003_0005, 0x0000_0005, 0x0001_0005,
    ]  # fmt: skip
