"""vfio-user messages in words, also those that are cut off or senseless."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.transport.common import Echo
from virtring.memory import GuestMemory
from virtring.transport.vfio_user.message import Command, Message
from virtring.transport.vfio_user.words import in_words
from virtring.transport.virtio_pci import VirtioPci
from virtring.transport.words import features_in_words


@pytest.fixture(scope="module")
def pci() -> Iterator[VirtioPci]:
    memory = GuestMemory()
    made = VirtioPci(Echo(), memory)
    yield made
    made.close()
    memory.close()


def access(offset: int, region: int, data: bytes = b"", count: int = 4) -> bytes:
    return struct.pack("<QII", offset, region, len(data) or count) + data


@pytest.mark.parametrize(
    ("command", "payload", "said"),
    [
        (Command.VERSION, b"\0\0\1\0{}", "VERSION"),
        (
            Command.DMA_MAP,
            struct.pack("<IIQQQ", 32, 3, 4096, 1 << 20, 8192),
            "DMA_MAP: 0x2000 bytes at 0x100000, rw, 0x1000 of a file",
        ),
        (
            Command.DMA_UNMAP,
            struct.pack("<IIQQ", 24, 0, 1 << 20, 8192),
            "DMA_UNMAP: 0x2000 bytes at 0x100000",
        ),
        (Command.DMA_READ, struct.pack("<QQ", 256, 16), "DMA_READ: 16 bytes at 0x100"),
        (Command.REGION_READ, access(20, 0, count=1), "REGION_READ: device_status, 1 bytes"),
        (Command.REGION_WRITE, access(36, 0, b"\1\0\0\0"), "REGION_WRITE: queue_desc+4 = 0x1"),
        (Command.REGION_WRITE, access(8, 1, b"\2"), "REGION_WRITE: notification of queue 2 = 0x2"),
        (Command.REGION_READ, access(0x100, 0), "REGION_READ: device configuration 0, 4 bytes"),
        (Command.REGION_READ, access(64, 0, count=1), "REGION_READ: ISR status, 1 bytes"),
        (Command.REGION_READ, access(16, 2), "REGION_READ: BAR 2 at 0x10 (MSI-X), 4 bytes"),
        (
            Command.REGION_WRITE,
            access(4, 7, b"\6\0"),
            "REGION_WRITE: configuration space 0x4 (COMMAND) = 0x6",
        ),
        (
            Command.REGION_WRITE,
            access(0, 5, bytes(100)),
            "REGION_WRITE: BAR 5 at 0x0 = 100 bytes",
        ),
        (
            Command.DEVICE_GET_IRQ_INFO,
            struct.pack("<IIII", 16, 0, 2, 0),
            "DEVICE_GET_IRQ_INFO: MSIX",
        ),
        (
            Command.DEVICE_SET_IRQS,
            struct.pack("<IIIII", 20, 4 | 32, 2, 0, 3),
            "DEVICE_SET_IRQS: MSIX 0 to 2: data_eventfd trigger",
        ),
        (
            Command.DEVICE_SET_IRQS,
            struct.pack("<IIIII", 20, 0xFFFFFFFF, 77, 0, 0),
            "DEVICE_SET_IRQS: index 77: data_none data_bool data_eventfd mask unmask trigger",
        ),
        (Command.REGION_WRITE_MULTI, struct.pack("<Q", 5), "REGION_WRITE_MULTI: 5 writes"),
        (99, b"\1\2", "command 99"),
    ],
)
def test_words(pci: VirtioPci, command: int, payload: bytes, said: str) -> None:
    assert in_words(Message(1, command, 0, 0, payload), pci) == said
    assert in_words(Message(1, command, 0, 0, payload, [3, 4]), pci) == f"{said} (2 fd)"


def test_any_length(pci: VirtioPci) -> None:
    for command in Command:
        for size in range(64):
            assert in_words(Message(1, command, 0, 0, b"\xff" * size), pci)


def test_features() -> None:
    assert features_in_words(1 << 34 | 1 << 5 | 1 << 58, 1) == "MAC RING_PACKED bit 58"
    assert features_in_words(1 << 5, 99) == "bit 5"
    assert features_in_words(1, 7) == "NS"
    assert features_in_words(0, 1) == "none"
