"""Registers under a hostile driver: nothing raises, nothing hangs, and a reset cures everything."""

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.common import Echo, EchoDriver
from virtring.device import RING_OFFER, VirtioBus, VirtioDevice
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.mmio import MmioReg
from virtring.spec.pci import CommonReg
from virtring.spec.status import Status
from virtring.transport import (
    PciBus,
    VirtioMmio,
    VirtioPci,
    connect,
    mmio_device,
    pci_device,
)
from virtring.transport.pci_function import BusFunction
from virtring.transport.virtio_pci import DEVICE_OFFSET

BASE = 0x10000
RINGS = (0x20000, 0x30000, 0x40000)
OFFER = RING_OFFER | Feature.SUSPEND | Feature.NOTIFICATION_DATA

sizes = st.sampled_from([1, 2, 4, 4, 4, 8, 3, 0, 16])
values = st.one_of(
    st.integers(0, 4),
    st.sampled_from([0xF, 0x1F, 0x80, 0x40, 0xFFFF, 0xFFFF_FFFF, 8, 16, *RINGS]),
    st.integers(0, 2**64 - 1),
)
#: Bytes that a guest writes where its rings are.
pokes = st.tuples(
    st.just("poke"),
    st.sampled_from(RINGS),
    # Descriptors; flags and index of the available ring, or a packed ring's event structure.
    st.sampled_from([0, 16, 8, 0x1000, 0x1002, 0x1004, 0x2000]),
    st.one_of(
        st.binary(min_size=1, max_size=32),
        st.builds(
            lambda *fields: struct.pack("<QIHH", *fields),
            st.sampled_from([0x50000, 0x20010, 0, 2**63]),
            st.sampled_from([16, 64, 0, 2**32 - 1]),
            st.integers(0, 7),
            st.sampled_from([0, 1, 2, 0x80, 0x82, 0x8080, 0xFFFF]),
        ),
    ),
)
STEPS = ("init", "queues", "ready", "kick", "reset")
steps = st.tuples(st.just("step"), st.sampled_from([*["kick"] * 6, *STEPS]))
#: How far the driver is before it goes astray, and whether its rings are packed.
stages = st.tuples(st.integers(0, 3), st.booleans())


def offsets(*interesting: int, end: int) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from(interesting), st.integers(-8, end))


common_offsets = [int(reg) for reg in CommonReg]
bars = st.one_of(
    st.tuples(st.just(0), offsets(*common_offsets, 64, DEVICE_OFFSET, end=5000)),
    st.tuples(st.just(0), st.sampled_from(common_offsets)),
    st.tuples(st.just(1), offsets(0, 4, 8, 12, end=5000)),
    st.tuples(st.just(2), offsets(0, 4, 8, 12, 16, 2048, 2056, end=5000)),
    st.tuples(st.just(4), offsets(0, 0x5000, end=0x9000)),
    st.tuples(st.integers(-1, 7), offsets(0, end=100)),
)
bar_ops = st.tuples(st.sampled_from(["read_bar", "write_bar"]), bars, sizes, values)
config_ops = st.tuples(
    st.sampled_from(["read_config", "write_config"]),
    offsets(4, 0x10, 0x14, 0x18, 0x20, 0x24, *range(0x40, 0x100, 2), end=4200),
    sizes,
    values,
)
mmio_ops = st.tuples(
    st.sampled_from(["read", "write"]),
    st.one_of(offsets(*map(int, MmioReg), end=0x240), st.sampled_from(list(map(int, MmioReg)))),
    sizes,
    values,
)


def poke(memory: GuestMemory, op: Any) -> None:
    _, base, offset, data = op
    memory.write(base + offset, data)


def valid_step(core: Any, step: str, write_status: Any, notify: Any, packed: bool = True) -> None:
    """A step of a driver that does it right, through the rules that all transports share."""
    if step == "init":
        for status in (0, 1, 3):
            write_status(status)
        core.set_features(int(OFFER if packed else OFFER & ~Feature.RING_PACKED))
        write_status(11)
    elif step == "queues":
        for index, base in enumerate(RINGS):
            core.set_queue_size(index, 8)
            for area, offset in (("desc", 0), ("avail", 0x1000), ("used", 0x2000)):
                core.set_queue_area(index, area, base + offset)
            core.enable_queue(index)
    elif step == "ready":
        write_status(15)
    elif step == "kick":
        for index in range(3):
            notify(index)
    else:
        write_status(0)


def works(vdev: VirtioDevice) -> None:
    """A well-behaved driver comes after the hostile one."""
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    bus.register_device(vdev)
    driver: Any = vdev.driver
    for vq in vdev.vqs:
        assert driver.echo(vq, b"still here") == b"still here"
    assert vdev.config.get_status(vdev) & Status.DRIVER_OK


@settings(max_examples=60, deadline=None)
@given(
    stage=stages,
    ops=st.lists(
        st.one_of(bar_ops, bar_ops, config_ops, pokes, pokes, steps), min_size=20, max_size=80
    ),
    irq=st.sampled_from(["msix", "intx"]),
    multiplier=st.sampled_from([0, 4]),
)
def test_pci(stage: tuple[int, bool], ops: list[Any], irq: str, multiplier: int) -> None:
    memory = GuestMemory.create(1 << 20, base=BASE)
    device = Echo(OFFER, shm=True, queue_size=8)
    function = VirtioPci(device, memory, notify_multiplier=multiplier)
    bus = PciBus()
    bus.add(function)

    def notify(index: int) -> None:
        data = Feature.NOTIFICATION_DATA in device.core.driver_features
        function.write_bar(1, index * multiplier, 4 if data else 2, index)

    for op in [*(("step", step) for step in STEPS[: stage[0]]), *ops, ("step", "kick")]:
        match op:
            case ("read_bar", (bar, offset), size, _):
                value = function.read_bar(bar, offset, size)
                assert 0 <= value < 1 << 8 * max(size, 1)
                if bar in function.bars and offset >= 0:
                    bus.read(function.bar_addr(bar) + offset, size)
            case ("write_bar", (bar, offset), size, value):
                function.write_bar(bar, offset, size, value)
                if bar in function.bars and offset >= 0:
                    bus.write(function.bar_addr(bar) + offset, size, value)
            case ("read_config", offset, size, _):
                assert 0 <= function.read_config(offset, size) < 1 << 8 * max(size, 1)
                bus.read(bus.ecam + offset, size)
            case ("write_config", offset, size, value):
                function.write_config(offset, size, value)
                bus.write(bus.ecam + offset, size, value)
            case ("poke", *_):
                poke(memory, op)
            case ("step", step):
                function.write_config(4, 2, 6)
                valid_step(device.core, step, function.set_status, notify, stage[1])
    # Firmware puts the windows back; the rest the driver does.
    bus.assign_addresses(function)
    works(pci_device(BusFunction(bus, 0), memory, irq))


@settings(max_examples=60, deadline=None)
@given(
    stage=stages,
    ops=st.lists(st.one_of(mmio_ops, mmio_ops, pokes, pokes, steps), min_size=20, max_size=80),
)
def test_mmio(stage: tuple[int, bool], ops: list[Any]) -> None:
    memory = GuestMemory.create(1 << 20, base=BASE)
    device = Echo(OFFER, shm=True, queue_size=8)
    window = VirtioMmio(device, memory)
    for op in [*(("step", step) for step in STEPS[: stage[0]]), *ops, ("step", "kick")]:
        match op:
            case ("read", offset, size, _):
                assert 0 <= window.read(offset, size) < 1 << 8 * max(size, 1)
            case ("write", offset, size, value):
                window.write(offset, size, value)
            case ("poke", *_):
                poke(memory, op)
            case ("step", step):
                valid_step(
                    device.core,
                    step,
                    lambda value: window.write(MmioReg.STATUS, 4, value),
                    lambda index: window.write(MmioReg.QUEUE_NOTIFY, 4, index),
                    stage[1],
                )
    works(mmio_device(window, memory, window.irq))


def test_connect_gives_a_fresh_device_to_the_same_check() -> None:
    for kind in ("loopback", "pci", "pci-intx", "mmio"):
        works(connect(Echo(OFFER), kind))
