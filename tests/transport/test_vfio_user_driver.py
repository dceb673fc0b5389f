"""Our own drivers over vfio-user: shared memory and messages, MSI-X and INTx, both rings."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.binding import RINGS
from tests.transport.vfio_client import DMA_READ, DMA_WRITE, Machine, open_fds, served
from virtring.devices.blk import Blk
from virtring.devices.rng import Rng
from virtring.drivers.blk import BlkDriver
from virtring.drivers.rng import RngDriver
from virtring.spec.features import Feature

IMAGE = 1 << 20


@pytest.fixture(params=RINGS)
def ring(request: pytest.FixtureRequest) -> Feature:
    return RINGS[str(request.param)]


@pytest.fixture(params=["shared", "by-message"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "shared")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(7).randbytes(IMAGE))
    return path


def numbers(ring: Feature) -> tuple[bytearray, Rng]:
    """A device whose bytes count up, and all that it gave."""
    given = bytearray()

    def source(size: int) -> bytes:
        data = bytes((len(given) + i) & 0xFF for i in range(size))
        given.extend(data)
        return data

    return given, Rng(source, ring_features=ring)


@pytest.mark.parametrize("irq", ["msix", "intx"])
def test_rng(tmp_path: Path, ring: Feature, shared: bool, irq: str) -> None:
    given, device = numbers(ring)
    path = tmp_path / "socket"
    with served(device, path), Machine(path, irq, shared=shared) as machine:
        driver = machine.plug(RngDriver)
        assert machine.vdev.features == ring
        got = b"".join(driver.read(size) for size in (1, 4096, 4097, 10000, 3))
        assert got == given[: len(got)]
        assert bool(machine.client.transfers) != shared
    assert not list(device.core.refusals)


def test_disk(tmp_path: Path, ring: Feature, shared: bool, image: Path) -> None:
    path = tmp_path / "socket"
    data = bytearray(image.read_bytes())
    device = Blk(image, ring_features=ring, queue_size=16)
    with served(device, path), Machine(path, shared=shared) as machine:
        driver = machine.plug(BlkDriver)
        assert driver.read(0, IMAGE // 512) == data
        new = random.Random(8).randbytes(300 * 512)
        driver.write(17, new)
        data[17 * 512 : 317 * 512] = new
        driver.flush()
        assert driver.read(0, IMAGE // 512) == data
        assert driver.get_id() == b"image"
    device.close()
    assert image.read_bytes() == data


def test_transfers_are_as_small_as_the_client_wants(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "socket"
    device = Blk(image)
    with (
        served(device, path),
        Machine(path, shared=False, max_transfer=1000) as machine,
    ):
        driver = machine.plug(BlkDriver)
        assert driver.read(0, 128) == image.read_bytes()[: 1 << 16]
        assert max(count for _, _, count in machine.client.transfers) == 1000
        assert {command for command, _, _ in machine.client.transfers} == {DMA_READ, DMA_WRITE}
    device.close()


def test_only_what_was_used_is_written(tmp_path: Path) -> None:
    device = Rng(lambda size: b"\xa5" * min(size, 10), ring_features=RINGS["split"])
    path = tmp_path / "socket"
    with served(device, path), Machine(path, shared=False) as machine:
        driver = machine.plug(RngDriver)
        assert driver.read(10) == b"\xa5" * 10
        writes = [count for command, _, count in machine.client.transfers if command == DMA_WRITE]
        # Data, one used entry, the index; when to kick.
        assert sorted(set(writes)) == [2, 8, 10]


def test_memory_goes_and_comes_back_under_load(
    tmp_path: Path, ring: Feature, shared: bool, image: Path
) -> None:
    path = tmp_path / "socket"
    data = image.read_bytes()
    chosen = random.Random(9)
    device = Blk(image, ring_features=ring, queue_size=16)
    errors: list[str] = []
    done = threading.Event()
    now = threading.Event()

    def load(driver: BlkDriver) -> None:
        try:
            for _ in range(150):
                sector, count = chosen.randrange(IMAGE // 512 - 64), chosen.randrange(1, 64)
                if driver.read(sector, count) != data[sector * 512 : (sector + count) * 512]:
                    errors.append(f"sector {sector}")
        except Exception as error:
            errors.append(str(error))
        done.set()

    with served(device, path), Machine(path, shared=shared) as machine:
        driver = machine.plug(BlkDriver)
        transfer = machine.client.transfer
        left = 20

        def serve(number: int, command: int, payload: bytes) -> bytes | None:
            # Now and then in the middle of transfers; not so often that none comes to its end.
            nonlocal left
            left -= 1
            if not left:
                left = chosen.randrange(20, 60)
                now.set()
            return transfer(number, command, payload)

        machine.client.serve = serve
        thread = threading.Thread(target=load, args=[driver])
        thread.start()
        remaps = 0
        while not done.is_set():
            if now.wait(0.005) or shared:
                now.clear()
                machine.remap()
                remaps += 1
        thread.join()
        assert remaps > 2
        assert not list(device.core.refusals)
    assert not errors
    device.close()


def test_two_machines_one_after_another(tmp_path: Path, shared: bool) -> None:
    given, device = numbers(RINGS["packed-event"])
    path = tmp_path / "socket"
    with served(device, path) as server:
        for _ in range(2):
            with Machine(path, shared=shared) as machine:
                del given[:]
                assert machine.plug(RngDriver).read(5) == bytes(range(5))
        assert server.sessions == 2


def test_a_client_dies_with_buffers_in_flight(tmp_path: Path, shared: bool) -> None:
    given, device = numbers(RINGS["split"])
    path = tmp_path / "socket"
    with served(device, path):
        machine = Machine(path, shared=shared)
        machine.plug(RngDriver)
        machine.die()
        with Machine(path, shared=shared) as machine:
            del given[:]
            assert machine.plug(RngDriver).read(5) == bytes(range(5))
