"""What virtio 1.4 demands of a split ring (2.7), read from the bytes of the ring."""

from __future__ import annotations

import numpy as np
import pytest

from virtring import Batch, Feature

from ._rings import NEXT, Ring

IND = Feature.INDIRECT_DESC
IN_ORDER = Feature.IN_ORDER
EVENT = Feature.EVENT_IDX
events = pytest.mark.parametrize("event", [Feature(0), EVENT], ids=["flags", "event"])


@events
@pytest.mark.parametrize("features", [Feature(0), IND, IN_ORDER, IND | IN_ORDER])
def test_the_device_writes_no_descriptor(event: Feature, features: Feature) -> None:
    ring = Ring("split", 8, event | features, callback=lambda vq: None)
    bufs = [ring.buf() for _ in range(3)]
    for i in range(40):
        ring.vq.add_sgs(bufs[:1], bufs[1:], i)
        ring.vq.add_inbuf(bufs[0], ("in", i))
        parts = [ring.raw.desc, ring.raw.avail]
        if features & IND:
            table = ring.raw.desc[int(ring.raw.avail["ring"][2 * i % 8])]
            parts.append(np.frombuffer(ring.memory.view(int(table["addr"]), 48), "u1"))
        before = [part.tobytes() for part in parts]
        ring.dq.disable_notify()
        chains = [ring.dq.next_chain(), ring.dq.next_chain()]
        for chain in chains if features & IN_ORDER else chains[::-1]:
            chain.return_(16)
        ring.dq.signal()
        ring.dq.enable_notify()
        assert [part.tobytes() for part in parts] == before
        assert {ring.vq.get_buf(), ring.vq.get_buf()} == {(i, 16), (("in", i), 16)}


def test_in_order_descriptors_are_linked_in_ring_order() -> None:
    ring = Ring("split", 8, IN_ORDER)
    buf = ring.buf()
    first = 0
    for i in range(50):
        parts = i % 8 + 1
        ring.vq.add_outbuf([buf] * parts, i)
        assert ring.raw.avail["ring"][i % 8] == first
        for k in range(parts - 1):
            descriptor = ring.raw.desc[(first + k) % 8]
            assert descriptor["flags"] & NEXT
            assert descriptor["next"] == (0 if (first + k) % 8 == 7 else (first + k) % 8 + 1)
        assert not ring.raw.desc[(first + parts - 1) % 8]["flags"] & NEXT
        first = (first + parts) % 8
        assert ring.serve() == 1
        assert ring.vq.get_buf() == (i, 0)


@events
def test_the_available_index_never_goes_back(event: Feature) -> None:
    """While the queue is live: detach_unused_buf(), when it is not, takes buffers back."""
    ring = Ring("split", 64, event, callback=lambda vq: None)
    batch = Batch(64)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16
    idx = 0
    for i in range(2100):
        count = i % 63 + 1
        for step in (
            lambda n=count: ring.vq.add_inbuf_batch(batch, 0, n),  # type: ignore[misc]
            ring.vq.kick,
            lambda n=count: ring.serve(16, n // 2),  # type: ignore[misc]
            lambda: ring.vq.get_buf_batch(Batch(64)),
            ring.vq.disable_cb,
            ring.vq.enable_cb,
            ring.serve,
            ring.vq.vring_interrupt,
            lambda: ring.vq.get_buf_batch(Batch(64)),
        ):
            step()
            gone = int(ring.raw.avail["idx"]) - idx & 0xFFFF
            assert gone == count
        idx = idx + count & 0xFFFF
        assert ring.raw.avail["idx"] == idx
    assert ring.vq.num_free == 64


@events
@pytest.mark.parametrize("callback", [False, True])
def test_flags_of_both_rings(event: Feature, callback: bool) -> None:
    """0 or 1 without EVENT_IDX, 0 with it, whatever either side asks for."""
    ring = Ring("split", 4, event, callback=(lambda vq: None) if callback else None)
    buf = ring.buf()
    seen: set[tuple[int, int]] = set()

    def look() -> None:
        seen.add((int(ring.raw.avail["flags"]), int(ring.raw.used["flags"])))

    for i in range(6):
        for step in (
            ring.vq.disable_cb,
            ring.dq.disable_notify,
            ring.vq.enable_cb,
            ring.dq.enable_notify,
            lambda i=i: ring.vq.add_outbuf(buf, i),  # type: ignore[misc]
            ring.vq.disable_cb,
            ring.vq.enable_cb_delayed,
            ring.vq.enable_cb_prepare,
            ring.serve,
            ring.dq.signal,
            ring.vq.vring_interrupt,
            ring.vq.get_buf,
        ):
            step()
            look()
    assert seen == ({(0, 0)} if event else {(0, 0), (1, 0), (0, 1), (1, 1)})


def test_without_event_idx_the_event_words_are_ignored() -> None:
    ring = Ring("split", 8, callback=lambda vq: None)
    buf = ring.buf()
    for i, garbage in enumerate((0, 1, 5, 0x7FFF, 0x8000, 0xFFFF)):
        for flags in (0, 1):
            ring.raw.used["avail_event"], ring.raw.used["flags"] = garbage, flags
            ring.vq.add_outbuf(buf, (i, flags))
            assert ring.vq.kick_prepare() is (flags == 0)
            ring.raw.avail["used_event"], ring.raw.avail["flags"] = garbage, flags
            ring.serve()
            assert ring.dq.need_notify() is (flags == 0)
            assert ring.vq.get_buf() == ((i, flags), 0)


@pytest.mark.parametrize("flags", [0, 1])
def test_with_event_idx_the_flags_are_ignored(flags: int) -> None:
    """And the word decides: told exactly when the entry that it names is written."""
    ring = Ring("split", 8, EVENT, callback=lambda vq: None)
    buf = ring.buf()
    for i in range(40):
        wanted = i % 3 == 0
        ring.raw.used["flags"] = flags
        ring.raw.used["avail_event"] = i if wanted else i + 100
        ring.vq.add_outbuf(buf, i)
        assert ring.vq.kick_prepare() is wanted
        ring.dq.disable_notify()
        chain = ring.dq.next_chain()
        ring.raw.avail["flags"] = flags
        ring.raw.avail["used_event"] = i if wanted else i + 100
        chain.return_()
        assert ring.dq.need_notify() is wanted
        assert ring.vq.get_buf() == (i, 0)
