"""Drivers use devices of ours through both ends of vhost-user."""

from __future__ import annotations

import gc
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.transport.vhost_user import (
    FLUSH,
    GET_ID,
    IN,
    OUT,
    Echo,
    Requests,
    bound,
    driver_class,
    front,
    open_fds,
    ops,
    served,
)
from virtring.device import VirtioBus, VirtioDevice
from virtring.devices.blk import Blk
from virtring.devices.rng import Rng
from virtring.drivers.rng import RngDriver
from virtring.errors import InvalidArgument, NotSupported, PeerDied, QueueBroken
from virtring.memory import GuestMemory, Region
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status
from virtring.transport.vhost_user import Protocol, vhost_user_device
from virtring.transport.vhost_user.requests import WANTED


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.create(8 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_rng(path: Path, memory: GuestMemory) -> None:
    before = open_fds()
    with served(Rng(lambda n: b"\x5a" * n), path):
        vdev = vhost_user_device(path, memory, DeviceID.RNG)
        bus = VirtioBus()
        bus.register_driver(RngDriver)
        bus.register_device(vdev)
        driver = vdev.driver
        assert isinstance(driver, RngDriver)
        assert driver.read(10000) == b"\x5a" * 10000
        bus.unregister_device(vdev)
        ops(vdev).close()
    del driver, vdev, bus
    assert open_fds() == before


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("callbacks", [True, False])
@pytest.mark.parametrize("wanted", [WANTED, Protocol(0), WANTED & ~Protocol.REPLY_ACK])
def test_block(
    path: Path,
    tmp_path: Path,
    memory: GuestMemory,
    ring: str,
    in_order: bool,
    callbacks: bool,
    wanted: Protocol,
) -> None:
    image = tmp_path / "image"
    data = random.Random(1).randbytes(1 << 20)
    image.write_bytes(data)
    disk = Blk(image, serial=b"number")
    with served(disk, path, poll=not callbacks):
        vdev = front(path, memory, interrupts=callbacks, wanted=wanted)
        driver = bound(vdev, driver_class(1, ring, callbacks=callbacks, in_order=in_order))
        requests = Requests(driver, memory)
        assert driver.vqs[0].packed == (ring == "packed")
        assert requests.run(IN, 8, size=4096) == (0, data[4096:8192])
        assert requests.run(OUT, 16, b"\x77" * 1024)[0] == 0
        assert requests.run(FLUSH, 0)[0] == 0
        assert requests.run(GET_ID, 0, size=20) == (0, b"number".ljust(20, b"\0"))
        assert requests.run(IN, 1 << 40, size=512)[0] == 1
        for i in range(300):
            tokens = [requests.submit(IN, i * 3 + j, size=512) for j in range(8)]
            requests.vq.kick()
            for j, token in enumerate(tokens):
                got, status, read = requests.finish()
                assert (got, status) == (token, 0)
                place = (i * 3 + j) * 512
                if not 8192 - 512 < place < 8192 + 1024:
                    assert read == data[place : place + 512]
        driver.remove()
        ops(vdev).close()
    disk.close()
    assert image.read_bytes() == data[:8192] + b"\x77" * 1024 + data[9216:]


def test_several_queues_and_a_reset_of_one(path: Path, memory: GuestMemory) -> None:
    device = Echo()
    with served(device, path):
        vdev = front(path, memory)
        driver = bound(vdev, driver_class(2))
        one, two = driver.vqs
        place = memory.alloc(64)
        for vq in (one, two, one):
            memory.write(place, b"hello")
            vq.virtqueue_add([(place, 5)], [(place + 8, 8)], "x", premapped=True)
            vq.kick()
            assert driver.take(vq) == ("x", 5)
            assert memory.read(place + 8, 5) == b"hello"
        device.hold = True
        two.virtqueue_add([(place, 5)], [], "lost", premapped=True)
        two.kick()
        recycled: list[object] = []
        two.reset(lambda _, token: recycled.append(token))
        assert recycled == ["lost"]
        device.hold = False
        two.virtqueue_add([(place, 5)], [(place + 8, 8)], "again", premapped=True)
        two.kick()
        assert driver.take(two) == ("again", 5)
        with pytest.raises(NotSupported):
            bound(front_again(vdev), driver_class(3))
        ops(vdev).close()


def front_again(vdev: VirtioDevice) -> VirtioDevice:
    """The same device for another bus, its queues deleted."""
    vdev.config.reset(vdev)
    vdev.config.del_vqs(vdev)
    vdev.driver = None
    return vdev


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~Protocol.STATUS])
def test_driver_after_driver(path: Path, memory: GuestMemory, wanted: Protocol) -> None:
    with served(Echo(), path):
        vdev = front(path, memory, wanted=wanted)
        for ring in ("split", "packed", "split"):
            driver = bound(vdev, driver_class(1, ring))
            assert vdev.config.get_status(vdev) == Status(15)
            vq = driver.vqs[0]
            place = memory.alloc(64)
            for i in range(300):
                vq.virtqueue_add([(place, 5)], [(place + 8, 8)], i, premapped=True)
                vq.kick()
                assert driver.take(vq) == (i, 5)
            driver.remove()
            assert vdev.config.get_status(vdev) == Status(0)
            vdev.driver = None
        ops(vdev).close()


def test_configuration(path: Path, memory: GuestMemory) -> None:
    class Changing(Echo):
        def config_written(self, offset: int, data: bytes) -> None:
            self.update_config(offset + 4, data)

    device = Changing(config=bytes(range(16)))
    with served(device, path):
        vdev = front(path, memory)
        driver = bound(vdev, driver_class(1))
        assert vdev.config.get(vdev, 3, 5) == bytes(range(3, 8))
        before = vdev.config.generation(vdev)
        vdev.config.set(vdev, 1, b"\xaa")
        with driver.done:
            assert driver.done.wait_for(lambda: driver.changes, 20)
        assert vdev.config.generation(vdev) != before
        assert vdev.config.get(vdev, 5, 1) == b"\xaa"
        with pytest.raises(InvalidArgument):
            vdev.config.get(vdev, 200, 100)
        with pytest.raises(NotSupported):
            vdev.config.set(vdev, 16, b"\0")
        ops(vdev).close()


def test_configuration_without_the_protocol_feature(path: Path, memory: GuestMemory) -> None:
    with served(Echo(config=b"x"), path):
        vdev = front(path, memory, wanted=WANTED & ~Protocol.CONFIG)
        with pytest.raises(NotSupported, match="CONFIG"):
            vdev.config.get(vdev, 0, 1)
        ops(vdev).close()


def mappings() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:virtring")


@pytest.mark.parametrize("wanted", [WANTED, WANTED & ~Protocol.CONFIGURE_MEM_SLOTS])
def test_memory_that_comes_and_goes(path: Path, memory: GuestMemory, wanted: Protocol) -> None:
    with served(Echo(), path):
        vdev = front(path, memory, wanted=wanted)
        driver = bound(vdev, driver_class(1))
        vq = driver.vqs[0]
        before = mappings()
        for i in range(40):
            region = Region.memfd(1 << 16)
            memory.add_region(1 << 32, region)
            ops(vdev).share_memory()
            memory.write(1 << 32, b"%05d" % i)
            vq.virtqueue_add([(1 << 32, 5)], [((1 << 32) + 64, 5)], i, premapped=True)
            vq.kick()
            assert driver.take(vq) == (i, 5)
            assert memory.read((1 << 32) + 64, 5) == b"%05d" % i
            memory.remove_region(1 << 32)
            ops(vdev).share_memory()
        del region
        # Each side may know the last one until it looks again, but no more.
        assert mappings() <= before + 2
        ops(vdev).close()


def test_memory_that_cannot_be_shared(path: Path) -> None:
    memory = GuestMemory.create(1 << 20, kind="anonymous")
    with served(Echo(), path):
        vdev = front(path, memory)
        with pytest.raises(InvalidArgument, match="no descriptor"):
            bound(vdev, driver_class(1))
        ops(vdev).close()


def test_nobody_listens(path: Path, memory: GuestMemory) -> None:
    before = open_fds()
    with pytest.raises(PeerDied, match="no back end"):
        front(path, memory)
    assert open_fds() == before


def test_back_end_that_goes_away(path: Path, memory: GuestMemory) -> None:
    with served(Echo(), path, stops=True) as server:
        vdev = front(path, memory)
        driver = bound(vdev, driver_class(1))
        server.stop()
        vq = driver.vqs[0]
        with driver.done:
            driver.done.wait_for(lambda: vq.is_broken, 20)
        with pytest.raises(QueueBroken):
            vq.virtqueue_add([(memory.alloc(8), 8)], [], "x", premapped=True)
        driver.remove()
        ops(vdev).close()


def test_channel_that_ends_while_the_front_end_closes(path: Path, memory: GuestMemory) -> None:
    """The listener's thread leaves the channel alone while another one puts everything away."""
    with served(Rng(), path):
        vdev = vhost_user_device(path, memory, DeviceID.RNG)
        channel = ops(vdev)._channel
        assert channel is not None
        with ops(vdev)._closing:
            channel.sock.shutdown(socket.SHUT_RDWR)
            time.sleep(0.2)
            assert channel.fileno() >= 0
        ops(vdev).close()
        assert channel.fileno() < 0


def test_nothing_is_said_of_a_channel_that_was_closed_while_it_was_read(
    path: Path,
    memory: GuestMemory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, closed, ended = threading.Event(), threading.Event(), threading.Event()
    with served(Rng(), path):
        vdev = vhost_user_device(path, memory, DeviceID.RNG)
        channel = ops(vdev)._channel
        assert channel is not None
        receive = channel.recv

        def late() -> object:
            begun.set()
            closed.wait(10)
            try:
                return receive()
            finally:
                ended.set()

        monkeypatch.setattr(channel, "recv", late)
        channel.sock.shutdown(socket.SHUT_RDWR)
        assert begun.wait(10)
        ops(vdev)._disconnect()
        closed.set()
        assert ended.wait(10)
        ops(vdev).close()
    assert "channel" not in caplog.text
