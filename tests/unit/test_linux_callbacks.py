"""Callbacks on the driver side as in Linux: when the device is asked for a notification."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from virtring import Batch, Feature, InvalidArgument

from ._rings import KINDS, Ring

EVENT = Feature.EVENT_IDX
both = pytest.mark.parametrize("kind", KINDS)


def used_event(ring: Ring) -> int:
    return int(ring.raw.driver["off_wrap"] if ring.packed else ring.raw.avail["used_event"])


@both
def test_used_event_moves_only_with_callbacks_on(kind: str) -> None:
    ring = Ring(kind, 8, EVENT, callback=lambda vq: None)
    buf = ring.buf()
    wrap = 0x8000 if ring.packed else 0
    # As in Linux, a packed ring notifies always until callbacks were off once.
    ring.vq.disable_cb()
    assert ring.vq.enable_cb()
    assert used_event(ring) == 0 | wrap
    for i in range(2):
        ring.vq.add_outbuf(buf, i)
    ring.serve()
    assert ring.dq.signal()
    ring.vq.get_buf()
    assert used_event(ring) == 1 | wrap
    ring.vq.disable_cb()
    before = used_event(ring)
    ring.vq.get_buf()
    assert used_event(ring) == before
    assert not ring.dq.signal()
    ring.vq.enable_cb()
    assert used_event(ring) == 2 | wrap


@both
def test_without_a_callback_interrupts_are_off_from_the_start(kind: str) -> None:
    for callback, wanted in ((None, False), (lambda vq: None, True)):
        ring = Ring(kind, 8, callback=callback)
        ring.vq.add_outbuf(ring.buf(), 1)
        ring.serve()
        assert ring.dq.signal() is wanted
        assert ring.calls == wanted
        flags = ring.raw.driver["flags"] if ring.packed else ring.raw.avail["flags"]
        assert flags == (not wanted)


@both
@pytest.mark.parametrize("features", [Feature(0), EVENT], ids=["flags", "event"])
def test_enable_cb_tells_of_what_is_there(kind: str, features: Feature) -> None:
    ring = Ring(kind, 8, features, callback=lambda vq: None)
    buf = ring.buf()
    ring.vq.disable_cb()
    ring.vq.add_outbuf(buf, 1)
    assert ring.vq.enable_cb()
    ring.vq.disable_cb()
    last = ring.vq.enable_cb_prepare()
    assert not ring.vq.poll(last)
    ring.serve()
    assert ring.vq.poll(last)
    assert not ring.vq.enable_cb()
    assert ring.vq.get_buf() == (1, 0)
    assert ring.vq.enable_cb()
    ring.vq.add_outbuf(buf, 2)
    ring.serve()
    assert ring.dq.signal()


@both
def test_poll_refuses_what_is_no_position(kind: str) -> None:
    ring = Ring(kind, 8)
    for bad in (1 << 16, 1 << 32, -1) + ((8,) if ring.packed else ()):
        with pytest.raises(InvalidArgument, match="enable_cb_prepare"):
            ring.vq.poll(bad)


@both
def test_enable_cb_delayed_waits_for_three_quarters(kind: str) -> None:
    ring = Ring(kind, 8, EVENT, callback=lambda vq: None)
    buf = ring.buf()
    for i in range(8):
        ring.vq.add_outbuf(buf, i)
    ring.vq.disable_cb()
    assert ring.vq.enable_cb_delayed()
    signals = []
    for _ in range(8):
        ring.serve(most=1)
        signals.append(ring.dq.need_notify())
    assert signals == 6 * [False] + [True, False]
    assert not ring.vq.enable_cb_delayed()
    assert [ring.vq.get_buf()[0] for _ in range(8)] == list(range(8))
    assert ring.vq.enable_cb_delayed()


@both
def test_vring_interrupt(kind: str) -> None:
    called: list[object] = []
    ring = Ring(kind, 8, EVENT, callback=called.append)
    assert ring.vq.vring_interrupt() is False
    ring.vq.add_outbuf(ring.buf(), 1)
    ring.serve()
    assert ring.vq.vring_interrupt() is True
    assert called == [ring.vq]
    # The signal is spent: no need to tell the device that none is wanted.
    before = used_event(ring)
    ring.vq.disable_cb()
    assert used_event(ring) == before
    assert ring.vq.enable_cb() is False
    ring.vq.get_buf()
    assert ring.vq.enable_cb()
    ring.vq.break_()
    assert ring.vq.vring_interrupt() is False


@both
def test_a_group_half_taken_counts_as_pending(kind: str) -> None:
    # One used entry stood for three buffers; the two that are left are not announced again.
    ring = Ring(kind, 8, Feature.IN_ORDER, callback=lambda vq: None)
    buf = ring.buf()
    for i in range(3):
        ring.vq.add_outbuf(buf, i)
    chains = [ring.dq.next_chain() for _ in range(3)]
    for chain in reversed(chains):
        assert chain is not None
        chain.return_()
    assert ring.vq.get_buf() == (0, 0)
    assert not ring.vq.enable_cb()
    assert not ring.vq.enable_cb_delayed()
    assert ring.vq.poll(ring.vq.enable_cb_prepare())
    assert [ring.vq.get_buf(), ring.vq.get_buf()] == [(1, 0), (2, 0)]
    assert ring.vq.enable_cb()


@both
def test_interrupt_while_another_thread_adds(kind: str) -> None:
    """The thread of the interrupt cannot look then: it calls back, and does not raise."""
    called: list[Any] = []
    ring = Ring(kind, 4096, callback=called.append)
    batch = Batch(4096)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16
    stop = threading.Event()

    def add() -> None:
        while not stop.is_set():
            ring.vq.add_inbuf_batch(batch, 0, 4096)
            ring.vq.recycle_all()

    thread = threading.Thread(target=add)
    thread.start()
    try:
        # Nothing is ever used, so only a thread inside is a reason to call back.
        until = time.monotonic() + 20
        while not called and time.monotonic() < until:
            ring.vq.vring_interrupt()
    finally:
        stop.set()
        thread.join()
    assert called
