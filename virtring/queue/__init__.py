"""Queues: driver side, device side, batches, and how they are made."""

from virtring.queue.batch import Batch
from virtring.queue.chain import Chain, Descriptor
from virtring.queue.config import QueueConfig, transport_features, vring_size
from virtring.queue.create import (
    RingDevice,
    create_pair,
    virtio_break_device,
    virtio_unbreak_device,
    virtqueue_resize,
    vring_create_virtqueue,
    vring_del_virtqueue,
    vring_new_virtqueue,
)
from virtring.queue.describe import RingDescription, describe
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.queue.notify import (
    EventFd,
    Spin,
    async_wait_available,
    async_wait_used,
    wait_available,
    wait_used,
)
from virtring.queue.spin import spin_any_available, spin_available, spin_used

__all__ = [
    "Batch",
    "Chain",
    "Descriptor",
    "DeviceQueue",
    "EventFd",
    "QueueConfig",
    "RingDescription",
    "RingDevice",
    "Spin",
    "Virtqueue",
    "async_wait_available",
    "async_wait_used",
    "create_pair",
    "describe",
    "spin_any_available",
    "spin_available",
    "spin_used",
    "transport_features",
    "virtio_break_device",
    "virtio_unbreak_device",
    "virtqueue_resize",
    "vring_create_virtqueue",
    "vring_del_virtqueue",
    "vring_new_virtqueue",
    "vring_size",
    "wait_available",
    "wait_used",
]
