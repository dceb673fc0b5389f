"""A pair of ends that starts as busy sides do, and the other side's actions in a while."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from virtring import DeviceQueue, EventFd, Feature, Virtqueue, create_pair

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])

Ends = tuple[Virtqueue, DeviceQueue, EventFd, EventFd]


def make_ends(packed: bool, event_idx: bool = True, num: int = 8) -> Ends:
    """A pair that starts as busy sides do: nobody wants to be told."""
    features = Feature.VERSION_1 | (Feature.EVENT_IDX if event_idx else Feature(0))
    kick, call = EventFd(), EventFd()
    vq, dq = create_pair(num, packed=packed, features=features, notify=kick, call=call)
    dq.disable_notify()
    return vq, dq, kick, call


def add(vq: Virtqueue, token: object = 7) -> None:
    vq.add_outbuf_premapped([(vq.memory.regions[0].guest_addr + 0x8000, 16)], token)


def use(dq: DeviceQueue) -> None:
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain)


def later(seconds: float, action: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer
