"""Shared regions, guest addresses, allocation and buffer pools."""

from virtring.memory.allocator import RangeAllocator
from virtring.memory.guest import GuestMemory
from virtring.memory.iotlb import IotlbMemory
from virtring.memory.pool import Buffer, BufferPool
from virtring.memory.region import Region
from virtring.memory.snapshot import MemoryTable
from virtring.memory.spans import MemoryRegion

__all__ = [
    "Buffer",
    "BufferPool",
    "GuestMemory",
    "IotlbMemory",
    "MemoryRegion",
    "MemoryTable",
    "RangeAllocator",
    "Region",
]
