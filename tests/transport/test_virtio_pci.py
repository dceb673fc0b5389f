"""The registers of a virtio PCI device, and what a driver cannot do with them."""

import struct
from collections.abc import Callable

import pytest

from tests.transport.common import CONFIG, Echo, config_record
from tests.transport.raw import Raw, plugged
from virtring.device import RING_OFFER
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.pci import (
    COMMON_CFG,
    MSI_NO_VECTOR,
    CfgType,
    CommonReg,
    IsrStatus,
    PciReg,
)
from virtring.spec.status import Status
from virtring.transport import PciBus, VirtioPci, pci_device
from virtring.transport.pci_function import BusFunction
from virtring.transport.virtio_pci import DEVICE_OFFSET, ISR_OFFSET
from virtring.transport.virtio_pci_modern import virtio_structures

Refused = Callable[[str], None]


@pytest.fixture
def raw() -> Raw:
    return Raw(Echo(shm=True))


@pytest.fixture
def refused(raw: Raw) -> Refused:
    def check(reason: str) -> None:
        """Exactly one thing was refused since the last time, for this reason."""
        (only,) = raw.device.core.refusals
        assert reason in only
        raw.device.core.refusals.clear()

    return check


def test_identity() -> None:
    raw = Raw(Rng())
    read = raw.function.read_config
    assert read(PciReg.VENDOR_ID, 2) == read(PciReg.SUBSYSTEM_VENDOR_ID, 2) == 0x1AF4
    assert read(PciReg.DEVICE_ID, 2) == 0x1044
    assert read(PciReg.SUBSYSTEM_ID, 2) >= 0x40
    assert read(PciReg.REVISION_ID, 1) == 1
    assert read(PciReg.CLASS_CODE + 2, 1) == 0xFF


def test_capabilities_point_into_their_bars(raw: Raw) -> None:
    bus = PciBus()
    bus.add(raw.function)
    function = BusFunction(bus, 0)
    function.enable()
    found = virtio_structures(function)
    kinds = [kind for kind, _ in found]
    assert kinds == [
        CfgType.COMMON,
        CfgType.NOTIFY,
        CfgType.ISR,
        CfgType.DEVICE,
        CfgType.PCI,
        CfgType.SHARED_MEMORY,
        CfgType.SHARED_MEMORY,
    ]
    by_kind = dict(found)
    assert by_kind[CfgType.COMMON].length == COMMON_CFG.itemsize
    assert by_kind[CfgType.DEVICE].length == CONFIG.itemsize
    assert by_kind[CfgType.NOTIFY].length == 12
    assert [(s.id, s.offset, s.length) for k, s in found if k == CfgType.SHARED_MEMORY] == [
        (5, 0, 0x5000),
        (9, 0x5000, 0x1000),
    ]
    assert all(s.offset % 4 == 0 for _, s in found)
    assert all(
        cap.data[0] == len(cap.data) + 2
        for cap in raw.function.capabilities.values()
        if cap.id == 9
    )
    assert all(raw.function.bars[bar].size >= 4096 for bar in raw.function.bars)


def test_a_device_without_configuration_has_no_such_structure() -> None:
    raw = Raw(Rng())
    kinds = {cap.data[1] for cap in raw.function.capabilities.values() if cap.id == 9}
    assert CfgType.DEVICE not in kinds
    vdev = pci_device(BusFunction(plugged(raw), 0), raw.memory)
    with pytest.raises(InvalidArgument, match="there are 0"):
        vdev.config.get(vdev, 0, 1)


def test_features_by_words(raw: Raw) -> None:
    offer = int(raw.device.core.device_features)
    for word, expected in ((0, offer & 0xFFFFFFFF), (1, offer >> 32), (2, 0), (0xFFFFFFFF, 0)):
        raw.write(CommonReg.DEVICE_FEATURE_SELECT, word)
        assert raw.read(CommonReg.DEVICE_FEATURE_SELECT) == word
        assert raw.read(CommonReg.DEVICE_FEATURE) == expected
    raw.features(0x1234_5678_9ABC_DEF0)
    for word, expected in ((0, 0x9ABC_DEF0), (1, 0x1234_5678), (7, 0)):
        raw.write(CommonReg.DRIVER_FEATURE_SELECT, word)
        assert raw.read(CommonReg.DRIVER_FEATURE) == expected


@pytest.mark.parametrize("reg", CommonReg)
def test_every_field_takes_its_own_width_only(raw: Raw, reg: CommonReg) -> None:
    own = COMMON_CFG[reg.name.lower()].itemsize
    before = raw.function.read_bar(0, reg, own)
    for size in (1, 2, 4, 8):
        if size == own or (own == 8 and size == 4):
            assert raw.function.read_bar(0, reg, size) == before & (1 << 8 * size) - 1
            continue
        assert raw.function.read_bar(0, reg, size) == (1 << 8 * size) - 1
        raw.function.write_bar(0, reg, size, 1)
        assert len(raw.device.core.refusals) == 2
        raw.device.core.refusals.clear()
    assert raw.function.read_bar(0, reg, own) == before
    # Not in the middle of a field either.
    assert raw.function.read_bar(0, reg + 1, 1) == 0xFF or (reg + 1) in set(CommonReg)


def test_read_only_fields(raw: Raw, refused: Refused) -> None:
    raw.write(CommonReg.QUEUE_SELECT, 2)
    for reg, value in (
        (CommonReg.DEVICE_FEATURE, int(raw.device.core.device_features) & 0xFFFFFFFF),
        (CommonReg.NUM_QUEUES, 3),
        (CommonReg.CONFIG_GENERATION, 0),
        (CommonReg.QUEUE_NOTIFY_OFF, 2),
        (CommonReg.QUEUE_NOTIF_CONFIG_DATA, 2),
        (CommonReg.ADMIN_QUEUE_INDEX, 0),
        (CommonReg.ADMIN_QUEUE_NUM, 0),
    ):
        raw.write(reg, 0)
        refused("read-only")
        assert raw.read(reg) == value


def test_addresses_whole_and_by_halves(raw: Raw) -> None:
    for reg in (CommonReg.QUEUE_DESC, CommonReg.QUEUE_DRIVER, CommonReg.QUEUE_DEVICE):
        raw.write(reg, 0x1122_3344_5566_7788)
        assert raw.read(reg) == 0x1122_3344_5566_7788
        raw.function.write_bar(0, reg + 4, 4, 0xAABB_CCDD)
        assert raw.read(reg, 4) == 0x5566_7788
        assert raw.function.read_bar(0, reg + 4, 4) == 0xAABB_CCDD
        assert raw.read(reg) == 0xAABB_CCDD_5566_7788


def test_a_queue_that_is_not_there(raw: Raw, refused: Refused) -> None:
    raw.write(CommonReg.QUEUE_SELECT, 3)
    for reg in (CommonReg.QUEUE_SIZE, CommonReg.QUEUE_ENABLE, CommonReg.QUEUE_DESC):
        assert raw.read(reg) == 0
    assert raw.read(CommonReg.QUEUE_MSIX_VECTOR) == MSI_NO_VECTOR
    for reg in (
        CommonReg.QUEUE_SIZE,
        CommonReg.QUEUE_MSIX_VECTOR,
        CommonReg.QUEUE_ENABLE,
        CommonReg.QUEUE_DESC,
        CommonReg.QUEUE_RESET,
    ):
        raw.write(reg, 1)
        refused("queue 3")


def test_wrong_orders_of_the_status(raw: Raw, refused: Refused) -> None:
    assert raw.status(8) == 0
    refused("FEATURES_OK before")
    assert raw.status(1, 3, 7) == 3
    refused("DRIVER_OK before FEATURES_OK")
    raw.features(Feature.VERSION_1 | 1 << 20)
    assert raw.status(11) == 3
    refused("not offered")
    raw.features(1 << 3)
    assert raw.status(11) == 3
    refused("VERSION_1")
    raw.features(Feature.VERSION_1)
    assert raw.status(11) == 11
    raw.write(CommonReg.DRIVER_FEATURE, 0)
    refused("after FEATURES_OK")
    assert raw.status(1) == 11
    refused("clears bits")
    assert raw.status(15, 0x8F) == 0x8F
    assert raw.status(0) == 0


def test_wrong_queues_are_not_enabled(raw: Raw, refused: Refused) -> None:
    assert raw.queue(0) == 0
    refused("before FEATURES_OK")
    raw.negotiate()
    raw.write(CommonReg.QUEUE_SELECT, 0)
    for size in (0, 3, 100, 129, 256, 0xFFFF):
        raw.write(CommonReg.QUEUE_SIZE, size)
        refused(f"size {size}")
    raw.write(CommonReg.QUEUE_DESC, 0)
    raw.write(CommonReg.QUEUE_ENABLE, 1)
    refused("addresses are not set")
    for addr in (0x20004, 0x7000_0000_0000, 0xFFFF_FFFF_FFFF_F000, 0x10000 + (1 << 20) - 8):
        assert raw.queue(0, 8, addr) == 0
        refused("queue 0 not enabled")
    raw.write(CommonReg.QUEUE_ENABLE, 0)
    refused("1 only")
    assert raw.queue(0) == 1
    for reg in (CommonReg.QUEUE_SIZE, CommonReg.QUEUE_DESC, CommonReg.QUEUE_ENABLE):
        raw.write(reg, 1)
        refused("while it is enabled")
    raw.write(CommonReg.QUEUE_ENABLE, 0)
    refused("1 only")
    assert raw.read(CommonReg.QUEUE_ENABLE) == 1
    raw.write(CommonReg.QUEUE_RESET, 2)
    refused("1 only")
    raw.write(CommonReg.QUEUE_RESET, 1)
    assert raw.read(CommonReg.QUEUE_RESET) == raw.read(CommonReg.QUEUE_ENABLE) == 0
    assert raw.read(CommonReg.QUEUE_SIZE) == 128
    assert raw.queue(0, 16) == 1


def test_a_reset_takes_every_queue_back(raw: Raw) -> None:
    raw.negotiate()
    for index in range(3):
        assert raw.queue(index) == 1
        assert raw.read(CommonReg.QUEUE_RESET) == 0
    raw.negotiate()
    for index in range(3):
        raw.write(CommonReg.QUEUE_SELECT, index)
        for reg in (CommonReg.QUEUE_ENABLE, CommonReg.QUEUE_RESET, CommonReg.QUEUE_DESC):
            assert raw.read(reg) == 0
        assert raw.read(CommonReg.QUEUE_SIZE) == 128
    assert raw.device.queues == [None] * 3


def test_vectors(raw: Raw) -> None:
    assert raw.read(CommonReg.CONFIG_MSIX_VECTOR) == MSI_NO_VECTOR
    for reg in (CommonReg.CONFIG_MSIX_VECTOR, CommonReg.QUEUE_MSIX_VECTOR):
        for vector, expected in ((3, 3), (4, MSI_NO_VECTOR), (0, 0), (0xFFFF, MSI_NO_VECTOR)):
            raw.write(reg, vector)
            assert raw.read(reg) == expected
        raw.write(reg, 1)
    raw.negotiate()
    assert raw.read(CommonReg.CONFIG_MSIX_VECTOR) == MSI_NO_VECTOR
    assert raw.read(CommonReg.QUEUE_MSIX_VECTOR) == MSI_NO_VECTOR
    # A queue reset leaves it.
    raw.queue(0)
    raw.write(CommonReg.QUEUE_MSIX_VECTOR, 2)
    raw.write(CommonReg.QUEUE_RESET, 1)
    assert raw.read(CommonReg.QUEUE_MSIX_VECTOR) == 2


def test_an_event_without_vector_sends_nothing(raw: Raw) -> None:
    sent: list[int] = []
    function = raw.function
    function.send_msix = sent.append
    function.write_config(function.find_capability(17) + 2, 2, 0x8000)
    for vector in range(4):
        function.write_bar(2, 16 * vector + 12, 4, 0)
    raw.negotiate()
    raw.queue(1)
    raw.status(15)
    raw.device.update_config(0, b"\x01")
    raw.device.core.interrupt_queue(1)
    assert sent == []
    assert not function.intx_level
    # Any event goes to any vector, also to the same, and can be taken off again.
    for config, queue in ((0, 3), (3, 0), (2, 2), (MSI_NO_VECTOR, 1), (1, MSI_NO_VECTOR)):
        raw.write(CommonReg.CONFIG_MSIX_VECTOR, config)
        raw.write(CommonReg.QUEUE_MSIX_VECTOR, queue)
        raw.device.update_config(0, b"\x01")
        raw.device.core.interrupt_queue(1)
        assert sent == [vector for vector in (config, queue) if vector != MSI_NO_VECTOR]
        sent.clear()


def test_isr_is_cleared_by_reading(raw: Raw) -> None:
    raw.negotiate()
    raw.status(15)
    raw.device.update_config(0, b"\x09")
    assert raw.function.intx_level
    assert raw.function.read_bar(0, ISR_OFFSET, 4) == 0xFFFF_FFFF
    assert raw.function.read_bar(0, ISR_OFFSET, 1) == IsrStatus.CONFIG
    assert raw.function.read_bar(0, ISR_OFFSET, 1) == 0
    assert not raw.function.intx_level
    raw.function.add_isr_flags(IsrStatus.QUEUE)
    raw.status(0)
    assert raw.function.read_bar(0, ISR_OFFSET, 1) == 0


@pytest.mark.parametrize("multiplier", [0, 4, 4096])
@pytest.mark.parametrize("data", [False, True])
def test_notifications(multiplier: int, data: bool) -> None:
    offer = RING_OFFER | Feature.NOTIFICATION_DATA
    raw = Raw(Echo(offer), notify_multiplier=multiplier)
    kicked: list[int] = []
    raw.device.core.notify = kicked.append
    raw.negotiate(Feature.VERSION_1 | (Feature.NOTIFICATION_DATA if data else 0))
    size, other = (4, 2) if data else (2, 4)
    write = raw.function.write_bar
    write(1, 2 * multiplier, size, 2 | (0x8005 << 16 if data else 0))
    write(1, 0, size, 0)
    assert kicked == [2, 0]
    # Of another width, for another queue, beside a register, or outside.
    for offset, width, value in (
        (0, other, 0),
        (0, 1, 0),
        (4096 * 8, size, 0),
        (multiplier or 4, size, 2),
        (2, size, 0),
    ):
        write(1, offset, width, value)
    assert kicked == [2, 0]
    assert len(raw.device.core.refusals) == 5
    assert raw.function.read_bar(1, 0, size) == 0


@pytest.mark.parametrize("multiplier", [0, 4, 64, 65536])
def test_the_notification_area_has_room_for_every_queue(multiplier: int) -> None:
    raw = Raw(Echo(RING_OFFER | Feature.NOTIFICATION_DATA), notify_multiplier=multiplier)
    bus = plugged(raw)
    function = BusFunction(bus, 0)
    function.enable()
    area = dict(virtio_structures(function))[CfgType.NOTIFY]
    assert area.offset % 4 == 0
    assert area.offset + area.length <= function.bar_size(area.bar)
    assert function.read_config(area.at + 16, 4) == multiplier
    for index in range(raw.read(CommonReg.NUM_QUEUES)):
        raw.write(CommonReg.QUEUE_SELECT, index)
        place = raw.read(CommonReg.QUEUE_NOTIFY_OFF) * multiplier
        assert area.length >= place + 4


def test_multipliers_that_cannot_be() -> None:
    for multiplier in (1, 2, 3, 6, 8, -4, 1 << 17):
        with pytest.raises(InvalidArgument, match="notify_multiplier"):
            VirtioPci(Echo(), GuestMemory.create(1 << 20), notify_multiplier=multiplier)


def test_the_window_in_configuration_space(raw: Raw, refused: Refused) -> None:
    function = raw.function
    at = next(at for at in function.capabilities if function.config[at + 3] == CfgType.PCI)

    def aim(bar: int, offset: int, length: int) -> None:
        function.write_config(at + 4, 1, bar)
        function.write_config(at + 8, 4, offset)
        function.write_config(at + 12, 4, length)

    aim(0, CommonReg.NUM_QUEUES, 2)
    assert function.read_config(at + 16, 2) == 3
    aim(0, CommonReg.DEVICE_STATUS, 1)
    function.write_config(at + 16, 1, 1)
    assert raw.status() == Status.ACKNOWLEDGE
    aim(0, DEVICE_OFFSET + 8, 4)
    assert struct.pack("<I", function.read_config(at + 16, 4)) == config_record()[8:12]
    aim(4, 0, 4)
    function.write_config(at + 16, 4, 0xDEADBEEF)
    assert bytes(memoryview(raw.device.region)[4096:4100]) == b"\xef\xbe\xad\xde"
    assert not raw.device.core.refusals
    for place in ((0, 1, 2), (0, 0, 3), (0, 0, 0), (2, 0, 4), (7, 0, 4), (0, 0xFFFFFFFC, 4)):
        aim(*place)
        function.write_config(at + 16, 4, 1)
        refused("outside the virtio structures")
        assert function.read_config(at + 16, 4) == 1
    # The capability says what it is, whatever is written.
    function.write_config(at, 4, 0)
    assert function.config[at + 3] == CfgType.PCI
