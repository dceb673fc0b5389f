"""A slow, plain virtqueue of both layouts and both sides, written from virtio 1.4.

It is the oracle for the engine: it works on the same bytes and shares no code with it.
"""

from .common import Chain, Full, ModelError, Request, need_event
from .layout import Layout, packed_layout, split_layout
from .memory import ModelMemory
from .packed_device import PackedDevice
from .packed_driver import PackedDriver
from .split_device import SplitDevice
from .split_driver import SplitDriver

__all__ = [
    "Chain",
    "Full",
    "Layout",
    "ModelError",
    "ModelMemory",
    "PackedDevice",
    "PackedDriver",
    "Request",
    "SplitDevice",
    "SplitDriver",
    "need_event",
    "packed_layout",
    "split_layout",
]
