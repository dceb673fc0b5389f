"""The registers of a memory-mapped device, and what a driver cannot do with them."""

from collections.abc import Callable

import pytest

from tests.transport.common import SHM_ADDR, Echo, config_record
from virtring.device import RING_OFFER
from virtring.errors import NotSupported, WrongState
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.mmio import MMIO_MAGIC, MmioInterrupt, MmioReg
from virtring.transport import VirtioMmio, mmio_device

Refused = Callable[[str], None]
READABLE = {
    MmioReg.MAGIC_VALUE,
    MmioReg.VERSION,
    MmioReg.DEVICE_ID,
    MmioReg.VENDOR_ID,
    MmioReg.DEVICE_FEATURES,
    MmioReg.QUEUE_SIZE_MAX,
    MmioReg.QUEUE_READY,
    MmioReg.INTERRUPT_STATUS,
    MmioReg.STATUS,
    MmioReg.SHM_LEN_LOW,
    MmioReg.SHM_LEN_HIGH,
    MmioReg.SHM_BASE_LOW,
    MmioReg.SHM_BASE_HIGH,
    MmioReg.QUEUE_RESET,
    MmioReg.CONFIG_GENERATION,
}
BOTH = {MmioReg.QUEUE_READY, MmioReg.STATUS, MmioReg.QUEUE_RESET}


class Window(VirtioMmio):
    """With shorthands for whole registers."""

    def get(self, reg: int) -> int:
        return self.read(reg, 4)

    def put(self, reg: int, value: int) -> None:
        self.write(reg, 4, value)

    def negotiate(self, bits: int = Feature.VERSION_1 | Feature.RING_RESET) -> None:
        for status in (0, 1, 3):
            self.put(MmioReg.STATUS, status)
        for word in (0, 1):
            self.put(MmioReg.DRIVER_FEATURES_SEL, word)
            self.put(MmioReg.DRIVER_FEATURES, bits >> 32 * word & 0xFFFFFFFF)
        self.put(MmioReg.STATUS, 11)
        assert self.get(MmioReg.STATUS) == 11

    def queue(self, index: int, size: int = 8, addr: int = 0x20000) -> int:
        self.put(MmioReg.QUEUE_SEL, index)
        self.put(MmioReg.QUEUE_SIZE, size)
        for place, low in enumerate(
            (MmioReg.QUEUE_DESC_LOW, MmioReg.QUEUE_DRIVER_LOW, MmioReg.QUEUE_DEVICE_LOW)
        ):
            self.put(low, addr + 0x1000 * place & 0xFFFFFFFF)
            self.put(low + 4, addr >> 32)
        self.put(MmioReg.QUEUE_READY, 1)
        return self.get(MmioReg.QUEUE_READY)


@pytest.fixture
def window() -> Window:
    return Window(Echo(shm=True), GuestMemory.create(1 << 20))


@pytest.fixture
def refused(window: Window) -> Refused:
    def check(reason: str) -> None:
        """Exactly one thing was refused since the last time, for this reason."""
        (only,) = window.core.refusals
        assert reason in only
        window.core.refusals.clear()

    return check


def test_identity(window: Window) -> None:
    assert window.get(MmioReg.MAGIC_VALUE) == MMIO_MAGIC
    assert window.get(MmioReg.VERSION) == 2
    assert window.get(MmioReg.DEVICE_ID) == 25
    assert window.get(MmioReg.VENDOR_ID) == 0x1AF4
    assert window.get(MmioReg.STATUS) == 0


@pytest.mark.parametrize("reg", [reg for reg in MmioReg if reg != MmioReg.CONFIG])
def test_directions_and_widths(window: Window, refused: Refused, reg: MmioReg) -> None:
    for size in (1, 2, 8, 3):
        assert window.read(reg, size) == 0
        refused("read of")
        window.write(reg, size, 1)
        refused("write of")
    window.get(reg)
    if reg not in READABLE:
        refused("read of")
    assert not window.core.refusals
    if reg in READABLE - BOTH:
        window.put(reg, 1)
        refused("write of")
    assert window.read(reg + 2, 4) == 0
    refused("read of")


def test_offsets_that_are_no_register(window: Window) -> None:
    known = {int(reg) for reg in MmioReg}
    for offset in (*range(0, 0x100, 4), -4, 0x200, 0x5000):
        if offset not in known:
            assert window.get(offset) == 0
            window.put(offset, 0xFFFFFFFF)
            assert len(window.core.refusals) == 2
            window.core.refusals.clear()


def test_features_by_words(window: Window) -> None:
    offer = int(window.core.device_features)
    for word, expected in ((0, offer & 0xFFFFFFFF), (1, offer >> 32), (2, 0)):
        window.put(MmioReg.DEVICE_FEATURES_SEL, word)
        assert window.get(MmioReg.DEVICE_FEATURES) == expected


def test_configuration_space(window: Window, refused: Refused) -> None:
    record = config_record()
    for size in (1, 2, 4, 8):
        read = b"".join(
            window.read(MmioReg.CONFIG + at, size).to_bytes(size, "little")
            for at in range(0, 16, size)
        )
        assert read == record[:16]
    window.write(MmioReg.CONFIG + 6, 2, 0xABCD)
    assert window.read(MmioReg.CONFIG + 6, 2) == 0xABCD
    assert window.read(MmioReg.CONFIG + 18, 4) == 0
    refused("read of 4 bytes")
    window.write(MmioReg.CONFIG + 18, 4, 1)
    refused("configuration bytes 18 to 22")
    generation = window.get(MmioReg.CONFIG_GENERATION)
    window.device.update_config(0, b"\x01")
    assert window.get(MmioReg.CONFIG_GENERATION) != generation


def test_queues_that_cannot_be(window: Window, refused: Refused) -> None:
    window.put(MmioReg.QUEUE_SEL, 3)
    assert window.get(MmioReg.QUEUE_SIZE_MAX) == window.get(MmioReg.QUEUE_READY) == 0
    window.put(MmioReg.QUEUE_READY, 1)
    refused("queue 3")
    assert window.queue(0) == 0
    refused("before FEATURES_OK")
    window.negotiate()
    assert window.get(MmioReg.QUEUE_SIZE_MAX) == 128
    for size in (0, 3, 129, 1 << 16 | 8, 0xFFFFFFFF):
        window.put(MmioReg.QUEUE_SIZE, size)
        refused(f"size {size}")
    assert window.queue(0, addr=0x20002) == 0
    refused("not a multiple")
    assert window.queue(0, addr=1 << 40) == 0
    refused("queue 0 not enabled")
    assert window.queue(0) == 1
    window.put(MmioReg.QUEUE_DESC_LOW, 0)
    refused("while it is enabled")
    window.put(MmioReg.QUEUE_READY, 2)
    refused("0 or 1")


def test_a_queue_is_taken_back_by_not_ready_and_by_reset(window: Window, refused: Refused) -> None:
    window.negotiate()
    assert window.queue(1) == 1
    window.put(MmioReg.QUEUE_READY, 0)
    assert window.get(MmioReg.QUEUE_READY) == 0
    assert window.device.queues[1] is None
    window.put(MmioReg.QUEUE_NOTIFY, 1)
    refused("not enabled")
    window.put(MmioReg.QUEUE_READY, 0)
    assert window.queue(1, 16) == 1
    window.put(MmioReg.QUEUE_RESET, 1)
    assert window.get(MmioReg.QUEUE_RESET) == window.get(MmioReg.QUEUE_READY) == 0
    assert window.device.queues[1] is None
    window.put(MmioReg.QUEUE_RESET, 0)
    refused("write of")
    assert window.queue(1, 32) == 1
    window.negotiate(Feature.VERSION_1)
    assert window.queue(1) == 1
    window.put(MmioReg.QUEUE_RESET, 1)
    refused("without RING_RESET")
    assert window.get(MmioReg.QUEUE_READY) == 1


def test_a_reset_takes_every_queue_back(window: Window) -> None:
    window.negotiate()
    for index in range(3):
        assert window.queue(index) == 1
        assert window.get(MmioReg.QUEUE_RESET) == 0
    window.negotiate()
    for index in range(3):
        window.put(MmioReg.QUEUE_SEL, index)
        assert window.get(MmioReg.QUEUE_READY) == window.get(MmioReg.QUEUE_RESET) == 0
    assert window.device.queues == [None] * 3


def test_notifications(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    kicked: list[int] = []
    monkeypatch.setattr(window.core, "notify", kicked.append)
    window.put(MmioReg.QUEUE_NOTIFY, 2)
    window.put(MmioReg.QUEUE_NOTIFY, 0x8005_0002)
    assert kicked == [2, 0x8005_0002]
    window.core.device_features = RING_OFFER | Feature.NOTIFICATION_DATA
    window.negotiate(Feature.VERSION_1 | Feature.NOTIFICATION_DATA)
    window.put(MmioReg.QUEUE_NOTIFY, 0x8005_0002)
    assert kicked[2:] == [2]


def test_interrupts_stay_until_they_are_acknowledged(window: Window) -> None:
    window.negotiate()
    window.put(MmioReg.STATUS, 15)
    levels: list[bool] = []
    window.irq.request(lambda: levels.append(window.irq.level))
    window.device.update_config(0, b"\x05")
    window.core.interrupt_queue(0)
    assert levels == [True, True]
    assert window.get(MmioReg.INTERRUPT_STATUS) == MmioInterrupt.VRING | MmioInterrupt.CONFIG
    window.put(MmioReg.INTERRUPT_ACK, 2)
    assert window.get(MmioReg.INTERRUPT_STATUS) == MmioInterrupt.VRING
    # What is still up interrupts again.
    assert levels == [True] * 3
    window.put(MmioReg.INTERRUPT_ACK, 0xFFFF_FFFD)
    assert not window.irq.level
    window.device.update_config(0, b"\x06")
    window.put(MmioReg.STATUS, 0)
    assert window.get(MmioReg.INTERRUPT_STATUS) == 0
    assert not window.irq.level


def test_shared_memory_registers(window: Window) -> None:
    for id, addr, size in ((5, SHM_ADDR, 0x5000), (9, SHM_ADDR + 0x10000, 4096)):
        window.put(MmioReg.SHM_SEL, id)
        assert window.get(MmioReg.SHM_LEN_LOW) == size
        assert window.get(MmioReg.SHM_LEN_HIGH) == 0
        assert window.get(MmioReg.SHM_BASE_LOW) == addr & 0xFFFFFFFF
        assert window.get(MmioReg.SHM_BASE_HIGH) == addr >> 32
    window.put(MmioReg.SHM_SEL, 6)
    for reg in (MmioReg.SHM_LEN_LOW, MmioReg.SHM_LEN_HIGH, MmioReg.SHM_BASE_LOW):
        assert window.get(reg) == 0xFFFFFFFF
    assert window.memory_at(SHM_ADDR + 0x4FFC, 4) == (
        window.core.shared_memory[5].region,
        4096 + 0x4FFC,
    )
    assert window.memory_at(SHM_ADDR + 0x4FFD, 4) is None


@pytest.mark.parametrize("reg", [MmioReg.MAGIC_VALUE, MmioReg.VERSION, MmioReg.DEVICE_ID])
def test_a_driver_passes_over_other_devices(window: Window, reg: MmioReg) -> None:
    class Other:
        size = 0x200
        read = staticmethod(lambda offset, size: 0 if offset == reg else window.read(offset, size))
        write = window.write
        memory_at = window.memory_at

    with pytest.raises(NotSupported):
        mmio_device(Other(), window.device.memory, window.irq)


def test_a_driver_needs_version_1(window: Window) -> None:
    vdev = mmio_device(window, window.device.memory, window.irq)
    vdev.features = Feature(0)
    with pytest.raises(NotSupported, match="VERSION_1"):
        vdev.config.finalize_features(vdev)


def test_a_closed_window_lets_go_of_device_and_line(window: Window) -> None:
    window.negotiate()
    window.queue(0)
    window.close()
    assert window.irq.sources == []
    with pytest.raises(WrongState):
        _ = window.device.memory
    assert window.device.queues == [None] * 3
