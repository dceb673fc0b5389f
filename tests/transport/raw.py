"""A driver of a PCI function that writes registers one by one."""

from typing import Any

from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.pci import COMMON_CFG, CommonReg
from virtring.transport import PciBus, VirtioPci


class Raw:
    """A driver that writes registers one by one."""

    def __init__(self, device: Any, **given: Any) -> None:
        self.memory = GuestMemory.create(1 << 20)
        self.device = device
        self.function = VirtioPci(device, self.memory, **given)
        self.function.write_config(4, 2, 6)

    def read(self, reg: CommonReg, size: int = 0) -> int:
        return self.function.read_bar(0, reg, size or COMMON_CFG[reg.name.lower()].itemsize)

    def write(self, reg: CommonReg, value: int, size: int = 0) -> None:
        self.function.write_bar(0, reg, size or COMMON_CFG[reg.name.lower()].itemsize, value)

    def status(self, *values: int) -> int:
        for value in values:
            self.write(CommonReg.DEVICE_STATUS, value)
        return self.read(CommonReg.DEVICE_STATUS)

    def features(self, bits: int) -> None:
        for word in (0, 1):
            self.write(CommonReg.DRIVER_FEATURE_SELECT, word)
            self.write(CommonReg.DRIVER_FEATURE, bits >> 32 * word & 0xFFFFFFFF)

    def negotiate(self, bits: int = Feature.VERSION_1 | Feature.RING_RESET) -> None:
        self.status(0, 1, 3)
        self.features(bits)
        assert self.status(11) == 11

    def queue(self, index: int, size: int = 8, addr: int = 0x20000) -> int:
        self.write(CommonReg.QUEUE_SELECT, index)
        self.write(CommonReg.QUEUE_SIZE, size)
        for place, reg in enumerate(
            (CommonReg.QUEUE_DESC, CommonReg.QUEUE_DRIVER, CommonReg.QUEUE_DEVICE)
        ):
            self.write(reg, addr + 0x1000 * place)
        self.write(CommonReg.QUEUE_ENABLE, 1)
        return self.read(CommonReg.QUEUE_ENABLE)


def plugged(raw: Raw) -> PciBus:
    bus = PciBus()
    bus.add(raw.function)
    return bus
