"""The bus: who is bound to whom, and what happens when that fails."""

from __future__ import annotations

import pytest

from tests.device.parts import ONE, Bench, Parrot, Tamer, running
from virtring.device import ANY_ID, VirtioDeviceId, VirtioDriver
from virtring.errors import InvalidArgument, WrongState
from virtring.queue import Virtqueue
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status
from virtring.transport import loopback

A, D, OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK
VENDOR = 0x1AF4


@pytest.mark.parametrize(
    ("entry", "matches"),
    [
        (VirtioDeviceId(DeviceID.SOUND), True),
        (VirtioDeviceId(DeviceID.SOUND, VENDOR), True),
        (VirtioDeviceId(DeviceID.SOUND, 0x1234), False),
        (VirtioDeviceId(DeviceID.BLOCK), False),
        (VirtioDeviceId(ANY_ID), True),
        (VirtioDeviceId(ANY_ID, 0x1234), False),
    ],
)
def test_which_driver_is_for_which_device(entry: VirtioDeviceId, matches: bool) -> None:
    class Chosen(Tamer):
        id_table = (VirtioDeviceId(DeviceID.NET), entry)

    bench = Bench(None, Chosen).register()
    assert (bench.vdev.driver is not None) == matches
    assert (OK in bench.core.status) == matches


def test_ids_have_names() -> None:
    assert str(VirtioDeviceId(DeviceID.SOUND)) == "sound"
    assert str(VirtioDeviceId(4711)) == "device 4711"
    assert repr(running().vdev) == "<virtio0 sound on loopback-parrot>"


def test_the_first_driver_that_matches_has_it() -> None:
    class Second(Tamer):
        pass

    bench = Bench(None, Tamer, Second).register()
    assert type(bench.vdev.driver) is Tamer


def test_a_driver_that_comes_after_the_device() -> None:
    bench = Bench().register()
    assert bench.core.status == A
    other = loopback(Parrot(), bench.memory)
    bench.bus.register_device(other)
    assert (bench.vdev.index, other.index) == (0, 1)
    bench.bus.register_driver(Tamer)
    assert bench.driver.send() == b"hello"
    assert isinstance(other.driver, Tamer)
    bench.bus.unregister_driver(Tamer)
    assert bench.vdev.driver is other.driver is None
    assert bench.core.status == A
    assert bench.memory.allocated == 0
    # And another one may come.
    bench.bus.register_driver(Tamer)
    assert bench.driver.send() == b"hello"


def test_a_device_that_goes_and_comes() -> None:
    bench = running()
    for _ in range(3):
        assert bench.driver.send() == b"hello"
        bench.bus.unregister_device(bench.vdev)
        assert bench.bus.devices == []
        assert bench.memory.allocated == 0
        bench.register()
    assert bench.vdev.index == 3


def test_what_the_bus_refuses() -> None:
    bench = running()
    with pytest.raises(InvalidArgument, match="registered already"):
        bench.register()
    with pytest.raises(InvalidArgument, match="registered already"):
        bench.bus.register_driver(Tamer)
    with pytest.raises(WrongState, match="has a driver"):
        bench.bus.bind(bench.vdev, Tamer)
    with pytest.raises(InvalidArgument, match="no id_table"):
        bench.bus.register_driver(VirtioDriver)
    other = loopback(Parrot(), bench.memory)
    with pytest.raises(InvalidArgument, match="not on this bus"):
        bench.bus.unregister_device(other)
    bench.bus.unbind(bench.vdev)
    with pytest.raises(WrongState, match="no driver"):
        bench.bus.unbind(bench.vdev)
    bench.bus.unregister_driver(Tamer)
    with pytest.raises(InvalidArgument, match="not registered"):
        bench.bus.unregister_driver(Tamer)


class Unlucky(Tamer):
    """Fails where the test wants it to."""

    fails = ""

    def probe(self) -> None:
        super().probe()
        if self.fails == "late":
            self.vdev.ready()
            # The device has a buffer of ours.
            self.vdev.vqs[0].add_inbuf_premapped([(self.vdev.memory.alloc(64), 64)], self)
        if self.fails:
            raise OSError("no luck")


@pytest.mark.parametrize("where", ["early", "late"])
def test_a_probe_that_fails(where: str) -> None:
    class This(Unlucky):
        fails = where

    bench = Bench(None, This)
    with pytest.raises(OSError, match="no luck"):
        bench.register()
    assert bench.vdev in bench.bus.devices
    assert bench.vdev.driver is None
    assert bench.vdev.vqs == []
    assert bench.core.status == A | D | Status.FAILED
    # The device does not look at rings whose memory is somebody else's now.
    assert bench.device.queues == [None] * 3
    assert bench.memory.allocated == (64 if where == "late" else 0)
    # Another driver, or the same with more luck, begins with a reset.
    This.fails = ""
    bench.bus.bind(bench.vdev, This)
    assert bench.driver.send() == b"hello"


def test_a_scan_that_fails() -> None:
    class Blind(Tamer):
        def scan(self) -> None:
            assert OK in self.vdev.config.get_status(self.vdev)
            raise OSError("nothing to see")

    bench = Bench(None, Blind)
    with pytest.raises(OSError, match="nothing to see"):
        bench.register()
    assert Status.FAILED in bench.core.status
    assert bench.memory.allocated == 0


def test_one_probe_that_fails_does_not_keep_the_others() -> None:
    class Half(Tamer):
        def probe(self) -> None:
            if self.vdev.index == 0:
                raise OSError("not this one")
            super().probe()

    bench = Bench().register()
    other = loopback(Parrot(), bench.memory)
    bench.bus.register_device(other)
    with pytest.raises(OSError, match="not this one"):
        bench.bus.register_driver(Half)
    assert bench.vdev.driver is None
    assert isinstance(other.driver, Half)
    assert other.driver.send() == b"hello"


class Sticky(Tamer):
    """Leaves the device running, or fails, when it is removed."""

    how = "forgets"

    def remove(self) -> None:
        if self.how == "fails":
            raise OSError("will not go")


@pytest.mark.parametrize(("how", "error"), [("forgets", WrongState), ("fails", OSError)])
def test_a_driver_that_does_not_go_properly(how: str, error: type[Exception]) -> None:
    class This(Sticky):
        pass

    This.how = how
    bench = Bench(None, This).register()
    with pytest.raises(error):
        bench.bus.unregister_driver(This)
    # It is gone all the same.
    assert bench.vdev.driver is None
    assert bench.core.status == A
    assert bench.vdev.vqs == []
    assert bench.memory.allocated == 0
    bench.bus.register_driver(Tamer)
    assert bench.driver.send() == b"hello"
    bench.bus.unregister_driver(Tamer)
    bench.bus.bind(bench.vdev, This)
    with pytest.raises(error):
        bench.bus.unregister_device(bench.vdev)
    assert bench.bus.devices == []


def test_probe_may_say_ready_itself() -> None:
    class Eager(Tamer):
        def probe(self) -> None:
            super().probe()
            self.vdev.ready()
            assert self.send() == b"hello"

    bench = running(None, Eager)
    assert bench.calls == ["ready"]


@pytest.mark.parametrize("how", ["unbind", "unregister_device", "unregister_driver", "freeze"])
def test_nothing_of_that_in_a_callback(how: str) -> None:
    refused: list[str] = []

    class Rash(Tamer):
        def done(self, vq: Virtqueue) -> None:
            super().done(vq)
            with pytest.raises(WrongState, match="callback"):
                getattr(bench.bus, how)(Rash if how == "unregister_driver" else bench.vdev)
            refused.append(how)

    bench = running(None, Rash)
    for count in (1, 2):
        assert bench.driver.send() == b"hello"
        assert refused == [how] * count
    bench.device.update_config(0, b"x")
    assert bench.driver.changes == 1
    assert (bench.bus.devices, bench.bus.drivers) == ([bench.vdev], [Rash])


# Sleep.


def test_freeze_and_restore() -> None:
    bench = running()
    before = bench.driver
    bench.bus.freeze(bench.vdev)
    assert bench.core.status == Status(0)
    assert bench.memory.allocated == 0
    bench.bus.restore(bench.vdev)
    assert bench.vdev.driver is before
    assert bench.core.status == A | D | Status.FEATURES_OK | OK
    assert bench.vdev.has_feature(ONE)
    assert before.send() == b"hello"


def test_a_device_without_driver_sleeps_too() -> None:
    bench = Bench().register()
    bench.bus.freeze(bench.vdev)
    bench.bus.restore(bench.vdev)
    assert bench.core.status == A


def test_a_device_that_failed_stays_so_over_sleep() -> None:
    bench = Bench(None, Unlucky).register()
    bench.vdev.add_status(Status.FAILED)
    bench.bus.freeze(bench.vdev)
    assert bench.vdev.failed
    bench.bus.unregister_driver(Unlucky)
    bench.bus.restore(bench.vdev)
    assert bench.core.status == A | Status.FAILED


def test_a_restore_that_fails() -> None:
    class This(Unlucky):
        pass

    bench = Bench(None, This).register()
    bench.bus.freeze(bench.vdev)
    This.fails = "late"
    with pytest.raises(OSError, match="no luck"):
        bench.bus.restore(bench.vdev)
    assert bench.core.status == A | D | Status.FAILED
    assert bench.vdev.vqs == []
    This.fails = ""
    bench.bus.restore(bench.vdev)
    assert bench.driver.send() == b"hello"
