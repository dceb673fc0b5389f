"""Resets that come at a bad time: on a closed queue, from a callback, beside another thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from virtring import Batch, Chain, InvalidArgument, QueueBusy, QueueClosed, Virtqueue

from ._rings import KINDS, Ring

#: Entries of a large ring, so that a batch takes a while.
NUM = 16384
both = pytest.mark.parametrize("kind", KINDS)

CALLS: dict[str, Callable[[Virtqueue], object]] = {
    "restart": Virtqueue.restart,
    "recycle_all": Virtqueue.recycle_all,
    "detach_unused_buf": Virtqueue.detach_unused_buf,
    "replace_ring": lambda vq: vq.replace_ring(vq.config, []),
    "reset": Virtqueue.reset,
}


@both
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_closed_queue_is_not_reset(kind: str, call: Callable[[Virtqueue], object]) -> None:
    ring = Ring(kind)
    for i in range(3):
        ring.vq.add_inbuf(ring.buf(), ("token", i))
    del ring.raw
    ring.dq.close()
    ring.vq.close()
    # Nothing may be written where the ring was.
    ring.memory.close()
    with pytest.raises(QueueClosed):
        call(ring.vq)


@both
@pytest.mark.parametrize("where", ["recycle", "recycle_done"])
def test_a_queue_that_is_closed_while_it_is_reset(kind: str, where: str) -> None:
    recycled: list[Any] = []

    def close(vq: Virtqueue, *token: object) -> None:
        recycled.extend(token)
        vq.close()

    ring = Ring(kind)
    ring.vq.vdev.config = SimpleNamespace(
        disable_vq_and_reset=lambda vq: ring.dq.close(), enable_vq_after_reset=recycled.append
    )
    for i in range(3):
        ring.vq.add_inbuf(ring.buf(), ("token", i))
    with pytest.raises(QueueClosed):
        ring.vq.reset(**{where: close})
    # The device does not get a queue back that is no more.
    assert recycled == ([("token", 0)] if where == "recycle" else [])


@both
@pytest.mark.parametrize("how", ["reset", "close", "configured again"])
def test_a_reset_takes_the_buffers_of_chains_away(kind: str, how: str) -> None:
    """The driver has them again: nothing may be written there, though the chain is still known."""
    ring = Ring(kind)
    buf = ring.buf()
    ring.vq.add_sgs([ring.buf()], [buf], "token")
    chain = ring.dq.next_chain()
    chain.write(b"before")
    ring.dq.close() if how == "close" else ring.dq.reset()
    assert ring.tokens() == ["token"]
    if how == "configured again":
        ring.vq.restart()
        ring.dq.configure(ring.vq.config)
        ring.vq.add_sgs([ring.buf()], [ring.buf()], "another")
        assert ring.dq.next_chain().id == chain.id
    looks: list[Callable[[], object]] = [
        chain.read, lambda: chain.readinto(bytearray(4)), lambda: chain.write(b"after"),
        lambda: chain[0], chain.next_descriptor, lambda: chain.writable, lambda: list(chain),
    ]  # fmt: skip
    for look in looks:
        with pytest.raises(InvalidArgument, match="belong to the driver again"):
            look()
    with pytest.raises((InvalidArgument, QueueClosed)):
        chain.return_()
    assert bytes(buf[:8]) == b"before\0\0"


def test_a_chain_of_no_queue() -> None:
    with pytest.raises(InvalidArgument, match="belong to the driver"):
        Chain().read()


@both
def test_a_reset_beside_another_thread_is_refused_or_waits(kind: str) -> None:
    """It comes before or after a batch that runs without the GIL; no buffer is lost or doubled."""
    ring = Ring(kind, NUM)
    vq = ring.vq
    addr = ring.addr(ring.buf())
    added: list[int] = []
    recycled: list[int] = []
    refused = 0

    def add() -> None:
        batch = Batch(NUM // 2)
        batch.addr[:], batch.len[:] = addr, 16
        batch.count = NUM // 2
        for turn in range(3000):
            if turn >= 30 and refused:
                return
            batch.token[:] = range(turn * NUM, turn * NUM + NUM // 2)
            added.extend(range(turn * NUM, turn * NUM + vq.add_inbuf_batch(batch)))

    def recycle() -> None:
        nonlocal refused
        while thread.is_alive() or vq.in_flight:
            try:
                vq.recycle_all(lambda vq, token: recycled.append(token))
            except QueueBusy:
                refused += 1

    thread = threading.Thread(target=add)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        recycle()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert sorted(recycled) == added
    assert refused
    assert (vq.num_free, vq.in_flight) == (NUM, 0)
