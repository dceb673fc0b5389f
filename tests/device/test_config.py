"""The configuration space: reading, writing, changes and who hears of them."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest

from tests.device.parts import CONFIG, Bench, Parrot, Tamer, running
from virtring.device import VirtioDevice
from virtring.errors import InvalidArgument, WrongState
from virtring.spec.status import Status
from virtring.transport.loopback import LoopbackOps


def test_fields_by_name() -> None:
    bench = running()
    vdev = bench.vdev
    vdev.cwrite(CONFIG, "speed", 0x11223344)
    vdev.cwrite(CONFIG, "mac", [1, 2, 3, 4, 5, 6])
    vdev.cwrite(CONFIG, "mode", 0xFFFF)
    # An array is written element by element: a register takes no more at once.
    mac = [(4 + i, bytes([i + 1])) for i in range(6)]
    assert bench.calls == ["ready", (0, b"\x44\x33\x22\x11"), *mac, (10, b"\xff\xff")]
    assert vdev.cread(CONFIG, "speed") == 0x11223344
    assert vdev.cread(CONFIG, "mac").tolist() == [1, 2, 3, 4, 5, 6]
    record = vdev.cread(CONFIG)
    assert (record["speed"], record["mode"]) == (0x11223344, 0xFFFF)


@pytest.mark.parametrize(
    ("field", "value"),
    [("speed", -1), ("speed", 1 << 32), ("speed", "fast"), ("mac", [1, 2]), ("mode", None)],
)
def test_values_that_do_not_fit(field: str, value: object) -> None:
    bench = running()
    with pytest.raises(InvalidArgument, match=field):
        bench.vdev.cwrite(CONFIG, field, value)
    assert bench.calls == ["ready"]


def test_what_is_not_there() -> None:
    bench = running()
    with pytest.raises(InvalidArgument, match="no field 'colour'"):
        bench.vdev.cread(CONFIG, "colour")
    with pytest.raises(InvalidArgument, match="no field 'colour'"):
        bench.vdev.cwrite(CONFIG, "colour", 1)
    for offset, length in ((0, 13), (12, 1), (-1, 1), (0, -1), (1 << 40, 1)):
        with pytest.raises(InvalidArgument, match="there are 12"):
            bench.ops.get(bench.vdev, offset, length)
    with pytest.raises(InvalidArgument, match="there are 12"):
        bench.ops.set(bench.vdev, 10, b"abc")
    with pytest.raises(InvalidArgument, match="there are 12"):
        bench.device.update_config(11, b"ab")
    assert bench.ops.get(bench.vdev, 12, 0) == b""


def test_the_generation_goes_up_with_each_change_of_the_device() -> None:
    bench = running()
    before = bench.ops.generation(bench.vdev)
    bench.vdev.cwrite(CONFIG, "speed", 1)
    assert bench.ops.generation(bench.vdev) == before
    bench.device.update_config(0, b"x")
    assert bench.ops.generation(bench.vdev) == before + 1
    bench.core.generation = 0xFFFF_FFFF
    bench.device.update_config(0, b"x")
    assert bench.ops.generation(bench.vdev) == 0


class Shaky(LoopbackOps):
    """The device changes its configuration between two reads of the driver, a few times."""

    left = 3

    def get(self, vdev: VirtioDevice, offset: int, length: int) -> bytes:
        data = super().get(vdev, offset, length)
        if self.left:
            self.left -= 1
            old = int.from_bytes(self.core.config[:4], "little")
            new = np.zeros((), CONFIG)
            new["speed"] = new["mode"] = old + 1
            self.device.update_config(0, new.tobytes())
        return data


def test_no_half_of_a_change_is_seen() -> None:
    bench = Bench()
    ops = Shaky(bench.device)
    vdev = VirtioDevice(ops, bench.memory, bench.vdev.id)
    record = vdev.cread(CONFIG)
    assert (record["speed"], record["mode"]) == (3, 3)


# Who hears of a change.


def test_the_driver_hears_of_each_change() -> None:
    bench = running()
    for count in (1, 2, 3):
        bench.device.update_config(0, bytes([count]))
        assert bench.driver.changes == count


def test_changes_before_driver_ok_are_not_said() -> None:
    bench = Bench(None, Tamer)
    bench.device.update_config(0, b"\1")
    bench.register()
    assert bench.driver.changes == 0
    assert bench.vdev.cread(CONFIG, "speed") == 1


def test_a_change_during_probe_is_delivered_once_after_it() -> None:
    class Busy(Tamer):
        def probe(self) -> None:
            super().probe()
            self.vdev.ready()
            assert isinstance(self.vdev.config, LoopbackOps)
            for value in (b"\1", b"\2", b"\3"):
                self.vdev.config.device.update_config(0, value)
            assert self.changes == 0
            assert self.vdev.config_change_pending

    bench = running(None, Busy)
    assert bench.driver.changes == 1
    assert not bench.vdev.config_change_pending


def test_disabled_changes_wait_and_are_delivered_once() -> None:
    bench = running()
    vdev, driver = bench.vdev, bench.driver
    vdev.config_disable()
    bench.device.update_config(0, b"\1")
    bench.device.update_config(0, b"\2")
    assert (driver.changes, vdev.config_change_pending) == (0, True)
    vdev.config_enable()
    assert (driver.changes, vdev.config_change_pending) == (1, False)
    vdev.config_enable()
    assert driver.changes == 1


def test_a_driver_that_wants_none_for_now() -> None:
    bench = running()
    vdev, driver = bench.vdev, bench.driver
    vdev.config_driver_disable()
    bench.device.update_config(0, b"\1")
    assert driver.changes == 0
    # Both switches have to be on.
    vdev.config_disable()
    vdev.config_driver_enable()
    assert driver.changes == 0
    vdev.config_driver_disable()
    vdev.config_enable()
    assert driver.changes == 0
    vdev.config_driver_enable()
    assert driver.changes == 1
    bench.device.update_config(0, b"\2")
    assert driver.changes == 2


def test_no_change_reaches_a_driver_that_is_gone() -> None:
    bench = running()
    driver = bench.driver
    bench.bus.unbind(bench.vdev)
    bench.device.update_config(0, b"\1")
    assert driver.changes == 0


def test_a_change_that_waited_is_a_callback_like_any_other() -> None:
    """It must not reset the device, though it comes from config_enable."""
    heard: list[str] = []

    class Rash(Tamer):
        def config_changed(self) -> None:
            super().config_changed()
            with pytest.raises(WrongState, match="must not reset"):
                self.vdev.reset()
            heard.append("refused")

    bench = running(None, Rash)
    bench.vdev.config_disable()
    bench.device.update_config(0, b"\1")
    bench.vdev.config_enable()
    bench.device.update_config(0, b"\2")
    assert heard == ["refused"] * 2
    assert Status.DRIVER_OK in bench.core.status


def test_a_change_inside_a_hook_comes_after_it() -> None:
    """The device's lock is free again when the driver is called."""
    free: list[bool] = []

    class Nosy(Tamer):
        def config_changed(self) -> None:
            super().config_changed()

            def attempt() -> None:
                free.append(bench.core.mutex.acquire(timeout=5))
                bench.core.mutex.release()

            thread = Thread(target=attempt)
            thread.start()
            thread.join()

    class Shy(Parrot):
        def config_written(self, offset: int, data: bytes) -> None:
            self.update_config(offset, data)

    bench = running(Shy(), Nosy)
    bench.vdev.cwrite(CONFIG, "speed", 5)
    with bench.device.locked():
        bench.device.update_config(0, b"\7")
        assert free == [True]
    assert free == [True, True]
    assert bench.driver.changes == 2
