"""The wire layouts byte for byte: numpy dtypes and C structures against offsets of the standard."""

import struct
from pathlib import Path

import numpy as np
import pytest

from virtring.memory import GuestMemory
from virtring.spec import dtypes

HEADER = Path(dtypes.__file__).with_name("layout_check.h")


@pytest.mark.parametrize(
    ("dtype", "size", "offsets"),
    [
        (dtypes.VRING_DESC, 16, {"addr": 0, "len": 8, "flags": 12, "next": 14}),
        (dtypes.VRING_USED_ELEM, 8, {"id": 0, "len": 4}),
        (dtypes.VRING_PACKED_DESC, 16, {"addr": 0, "len": 8, "id": 12, "flags": 14}),
        (dtypes.VRING_PACKED_DESC_EVENT, 4, {"off_wrap": 0, "flags": 2}),
        # 2.7.6 and 2.7.8: 6 + 2 * num and 6 + 8 * num bytes
        (dtypes.vring_avail(8), 22, {"flags": 0, "idx": 2, "ring": 4, "used_event": 20}),
        (dtypes.vring_used(8), 70, {"flags": 0, "idx": 2, "ring": 4, "avail_event": 68}),
    ],
)
def test_offsets(dtype: np.dtype[np.void], size: int, offsets: dict[str, int]) -> None:
    assert dtype.itemsize == size
    assert dtype.fields is not None
    assert {name: field[1] for name, field in dtype.fields.items()} == offsets


@pytest.mark.parametrize(
    ("dtype", "c_name"),
    [
        (dtypes.VRING_DESC, "vring_desc"),
        (dtypes.VRING_USED_ELEM, "vring_used_elem"),
        (dtypes.VRING_PACKED_DESC, "vring_packed_desc"),
        (dtypes.VRING_PACKED_DESC_EVENT, "vring_packed_desc_event"),
    ],
)
def test_dtypes_are_the_c_structures(dtype: np.dtype[np.void], c_name: str) -> None:
    text = HEADER.read_text()
    body = text.split(f"typedef struct {c_name} {{")[1].split("}")[0]
    members = [line.strip(" ;").split() for line in body.strip().splitlines()]
    codes = {"uint64_t": "<u8", "uint32_t": "<u4", "uint16_t": "<u2"}
    expected = np.dtype([(name, codes[kind]) for kind, name in members], align=True)
    assert expected == dtype
    assert f"_Static_assert(sizeof({c_name}) == {dtype.itemsize}," in text


def test_bytes_in_guest_memory() -> None:
    with GuestMemory.create(4096) as memory:
        addr = memory.alloc(32, 16)
        table = np.frombuffer(memory.view(addr, 32), dtypes.VRING_DESC)
        table[1] = (0x1122334455667788, 0x99AABBCC, 0xDDEE, 0xF001)
        assert memory.read(addr + 16, 16) == struct.pack(
            "<QIHH", 0x1122334455667788, 0x99AABBCC, 0xDDEE, 0xF001
        )
        packed = np.frombuffer(memory.view(addr, 32), dtypes.VRING_PACKED_DESC)
        assert (packed[1]["id"], packed[1]["flags"]) == (0xDDEE, 0xF001)
