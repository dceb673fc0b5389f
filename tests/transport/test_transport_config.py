"""Configuration space and shared memory over every transport."""

import numpy as np
import pytest

from tests.transport.common import CONFIG, SHM_ADDR, Rig, config_record
from virtring.device import VirtioDevice
from virtring.errors import InvalidArgument


def test_configuration_by_record_and_field(rig: Rig) -> None:
    record = rig.vdev.cread(CONFIG)
    assert record.tobytes() == config_record()
    assert rig.vdev.cread(CONFIG, "capacity") == 0x1122_3344_5566_7788
    assert rig.vdev.cread(CONFIG, "mac").tolist() == [1, 2, 3, 4, 5, 6]
    rig.vdev.cwrite(CONFIG, "capacity", 0x8877_6655_4433_2211)
    rig.vdev.cwrite(CONFIG, "mac", np.arange(6, 0, -1))
    rig.vdev.cwrite(CONFIG, "status", 7)
    expected = config_record(capacity=0x8877_6655_4433_2211, mac=range(6, 0, -1), status=7)
    assert bytes(rig.device.core.config) == expected
    assert rig.ops.get(rig.vdev, 0, CONFIG.itemsize) == expected
    assert rig.ops.get(rig.vdev, 0, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 5000), (5000, 1), (-1, 1), (0, -1)])
def test_configuration_outside_is_refused(rig: Rig, offset: int, length: int) -> None:
    with pytest.raises(InvalidArgument, match="configuration bytes"):
        rig.ops.get(rig.vdev, offset, length)
    if length > 0:
        with pytest.raises(InvalidArgument, match="configuration bytes"):
            rig.ops.set(rig.vdev, offset, bytes(length))
    assert bytes(rig.device.core.config) == config_record()


def test_the_generation_shows_a_change_between_two_reads(rig: Rig) -> None:
    rig.ops.get(rig.vdev, 0, 4)
    for turn in range(600):
        before = rig.ops.generation(rig.vdev)
        rig.ops.get(rig.vdev, 8, 4)
        rig.device.update_config(8, turn.to_bytes(4, "little"))
        rig.ops.get(rig.vdev, 12, 4)
        assert rig.ops.generation(rig.vdev) != before
    rig.ops.get(rig.vdev, 0, 4)
    still = rig.ops.generation(rig.vdev)
    rig.ops.get(rig.vdev, 0, 4)
    assert rig.ops.generation(rig.vdev) == still


def test_a_read_during_a_change_is_repeated(rig: Rig) -> None:
    get, changes = rig.ops.get, iter([b"\x01\x02\x03\x04", b"\xff\xee\xdd\xcc"])

    def slow(vdev: VirtioDevice, offset: int, length: int) -> bytes:
        data: bytes = get(vdev, offset, length)
        if offset == 8 and (new := next(changes, None)):
            rig.device.update_config(8, new)
        return data

    rig.ops.get = slow
    assert rig.vdev.cread(CONFIG)["mtu"] == 0xCCDDEEFF


def test_configuration_changes_reach_the_driver(rig: Rig) -> None:
    rig.device.update_config(8, b"\x10\x27\x00\x00")
    assert rig.driver.changes == 1
    assert rig.vdev.cread(CONFIG, "mtu") == 10000
    rig.vdev.config_disable()
    rig.device.update_config(8, bytes(4))
    rig.device.update_config(8, bytes(4))
    assert rig.driver.changes == 1
    rig.vdev.config_enable()
    assert rig.driver.changes == 2


def test_shared_memory(rig: Rig) -> None:
    for id, offset, size in ((5, 4096, 0x5000), (9, 0, 4096)):
        shared = rig.vdev.get_shm_region(id)
        assert shared is not None
        assert (shared.id, shared.len) == (id, size)
        shared.view()[10:14] = b"shm%d" % id
        assert bytes(memoryview(rig.device.region)[offset + 10 : offset + 14]) == b"shm%d" % id
    assert rig.vdev.get_shm_region(5).addr != rig.vdev.get_shm_region(9).addr
    assert rig.vdev.get_shm_region(0) is None
    if "0000:" not in rig.ops.bus_name(rig.vdev):
        # On PCI the bus says where it is.
        assert rig.vdev.get_shm_region(5).addr == SHM_ADDR
