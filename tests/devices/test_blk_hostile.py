"""What a driver can do wrong to the block device, from the requests themselves."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.binding import KINDS, RINGS, Raw, bound, raw_driver
from virtring.devices.blk import MAX_SECTORS, MAX_SEGMENTS, Blk
from virtring.spec.blk import BlkFeature, BlkStatus, BlkType
from virtring.spec.ids import DeviceID

SECTORS = 128
OK, IOERR, UNSUPP = BlkStatus.OK, BlkStatus.IOERR, BlkStatus.UNSUPP
FEATURES = (BlkFeature.FLUSH, BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES, BlkFeature.RO)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(7).randbytes(SECTORS * 512))
    return path


@pytest.fixture(params=["loopback", "pci"])
def kind(request: pytest.FixtureRequest) -> str:
    assert request.param in KINDS
    return str(request.param)


@pytest.fixture
def raw(image: Path, kind: str) -> Iterator[Raw]:
    device = Blk(image, serial=b"seven")
    with bound(device, raw_driver(DeviceID.BLOCK, *FEATURES), kind) as driver:
        yield driver
    device.close()


def header(type: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", type, 0, sector)


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


def request(raw: Raw, type: int, sector: int = 0, data: bytes = b"", room: int = 0) -> int:
    """The status of a well-formed request; a used length that covers all there is to write."""
    out = [header(type, sector)] + ([data] if data else [])
    written, buffers = raw.send(out, [room, 1] if room else [1])
    assert written == room + 1
    assert not raw.needs_reset
    return buffers[-1][0]


def test_reads_and_writes_outside(raw: Raw, image: Path) -> None:
    before = image.read_bytes()
    for sector, size in (
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (2**63, 512),
        (2**64 - 1, 512),
        (2**55, 512),
        (0, 511),
        (0, 513),
        (0, 1),
    ):
        assert request(raw, BlkType.IN, sector, room=size) == IOERR, (sector, size)
        assert request(raw, BlkType.OUT, sector, b"z" * size) == IOERR, (sector, size)
    assert image.read_bytes() == before
    # Nothing at all, at the very end, is inside.
    assert request(raw, BlkType.IN, SECTORS) == OK
    assert request(raw, BlkType.IN, SECTORS + 1) == IOERR


def test_failed_read_leaves_no_byte_undefined(raw: Raw) -> None:
    """The used length covers the status behind the data, so the data is written too: zeros."""
    written, (first, second, status) = raw.send([header(BlkType.IN, SECTORS)], [512, 100, 1])
    assert written == 613
    assert status[0] == IOERR
    assert bytes(first) == bytes(512)
    assert bytes(second) == bytes(100)
    written, (first, status) = raw.send([header(99)], [7, 1])
    assert (written, bytes(first), status[0]) == (8, bytes(7), UNSUPP)


def test_any_framing(raw: Raw, image: Path) -> None:
    """Header, data and status may be cut anywhere (2.7.4.1)."""
    data = bytes(range(256)) * 2
    whole = header(BlkType.OUT, 3) + data
    for cuts in ([1, 15, 16, 20, 527], [5], [16], [300]):
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        _, buffers = raw.send(pieces, [1])
        assert buffers[0][0] == OK
        assert image.read_bytes()[3 * 512 : 4 * 512] == data
    for sizes in ([513], [1, 512], [511, 2], [100, 412, 1], [1] * 100 + [413]):
        written, buffers = raw.send([header(BlkType.IN, 3)], sizes)
        assert written == 513
        assert b"".join(map(bytes, buffers)) == data + b"\0"


def test_get_id(raw: Raw) -> None:
    written, (data, status) = raw.send([header(BlkType.GET_ID)], [20, 1])
    assert (written, bytes(data), status[0]) == (21, b"seven" + bytes(15), OK)
    written, (data, status) = raw.send([header(BlkType.GET_ID)], [30, 1])
    assert (written, bytes(data), status[0]) == (31, b"seven" + bytes(25), OK)
    written, (data, status) = raw.send([header(BlkType.GET_ID)], [19, 1])
    assert (written, bytes(data), status[0]) == (20, bytes(19), IOERR)


@pytest.mark.parametrize("type", [2, 3, 5, 7, 10, 14, 16, 0x80000000, 0xFFFFFFFF])
def test_unknown_type(raw: Raw, type: int) -> None:
    assert request(raw, type) == UNSUPP
    assert request(raw, type, data=bytes(16), room=64) == UNSUPP


def test_clearing(raw: Raw, image: Path) -> None:
    before = bytearray(image.read_bytes())
    for type in (BlkType.DISCARD, BlkType.WRITE_ZEROES):
        for data, status in (
            (b"", IOERR),
            (bytes(15), IOERR),
            (bytes(17), IOERR),
            (segment(0, 1) * (MAX_SEGMENTS + 1), IOERR),
            (segment(SECTORS, 1), IOERR),
            (segment(SECTORS - 1, 2), IOERR),
            (segment(2**64 - 1, 2), IOERR),
            (segment(0, MAX_SECTORS + 1), IOERR),
            (segment(0, 1, 2), UNSUPP),
            (segment(0, 1, 0x80000001), UNSUPP),
            # All are checked before the first is touched.
            (segment(0, 8) + segment(SECTORS, 1), IOERR),
            (segment(0, 8) + segment(0, 1, 4), UNSUPP),
        ):
            assert request(raw, type, data=data) == status, (type, data)
    assert request(raw, BlkType.DISCARD, data=segment(0, 1, 1)) == UNSUPP
    assert image.read_bytes() == before
    many = b"".join(segment(2 * i, 1, i & 1) for i in range(MAX_SEGMENTS))
    assert request(raw, BlkType.WRITE_ZEROES, data=many) == OK
    for i in range(MAX_SEGMENTS):
        before[1024 * i : 1024 * i + 512] = bytes(512)
    assert image.read_bytes() == before
    assert request(raw, BlkType.WRITE_ZEROES, data=segment(5, 0)) == OK
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("out", "into"),
    [
        ([b""], [1]),
        ([header(BlkType.IN)[:15]], [513]),
        ([b"\0" * 8, b"\0" * 7], [513]),
        ([header(BlkType.OUT) + bytes(512)], []),
        ([header(BlkType.FLUSH)], []),
        ([], [529]),
    ],
)
def test_no_room_for_header_or_status(
    raw: Raw, image: Path, out: list[bytes], into: list[int]
) -> None:
    """Nobody can be told: the device needs a reset, and works again after it."""
    before = image.read_bytes()
    vq = raw.vqs[0]
    vq.add_sgs([raw.buffer(d) for d in out if d], [raw.buffer(n) for n in into], object())
    vq.kick()
    assert raw.needs_reset
    assert image.read_bytes() == before
    raw.vdev.reset()
    assert not raw.needs_reset


def test_read_only_disk_is_not_written(image: Path, kind: str) -> None:
    before = image.read_bytes()
    device = Blk(image, read_only=True)
    with bound(device, raw_driver(DeviceID.BLOCK, *FEATURES), kind) as raw:
        assert request(raw, BlkType.OUT, 0, b"z" * 512) == IOERR
        # Not negotiated, for they are not offered.
        assert request(raw, BlkType.DISCARD, data=segment(0, 1)) == UNSUPP
        assert request(raw, BlkType.WRITE_ZEROES, data=segment(0, 1)) == UNSUPP
        assert request(raw, BlkType.FLUSH) == OK
        assert request(raw, BlkType.IN, 0, room=512) == OK
    device.close()
    assert image.read_bytes() == before


@pytest.mark.parametrize("ring", RINGS)
def test_random_requests(image: Path, ring: str) -> None:
    """Whatever the bytes are: an answer or a reset, and nothing beyond the buffers is written."""
    rnd = random.Random(ring)
    device = Blk(image, ring_features=RINGS[ring], queue_size=64)
    types = [*range(12), 13, 0x80000000]
    with bound(device, raw_driver(DeviceID.BLOCK, *FEATURES)) as raw:
        for _ in range(300):
            out = header(rnd.choice(types), rnd.choice([0, 1, SECTORS - 1, SECTORS, 2**60]))
            out += rnd.randbytes(rnd.choice([0, 16, 32, 512, 700]))
            cut = rnd.randrange(1, len(out))
            sizes = [rnd.randrange(1, 600) for _ in range(rnd.randrange(1, 4))]
            written, buffers = raw.send([out[:cut], out[cut:]], sizes)
            assert written == sum(sizes)
            assert buffers[-1][-1] in (OK, IOERR, UNSUPP)
    device.close()
