"""Registers of a memory-mapped device, version 2 (virtio 1.4, 4.2.2).

All registers are 32 bits wide and little-endian, and are accessed whole and aligned.
"""

from enum import IntEnum, IntFlag

#: What MmioReg.MAGIC_VALUE reads: "virt".
MMIO_MAGIC = 0x74726976
#: What MmioReg.VERSION reads; 1 is a legacy device.
MMIO_VERSION = 2


class MmioReg(IntEnum):
    """Byte offsets from the base. R: the driver reads only; W: it writes only."""

    #: R
    MAGIC_VALUE = 0x000
    #: R
    VERSION = 0x004
    #: R; 0 is a placeholder that a driver passes over.
    DEVICE_ID = 0x008
    #: R
    VENDOR_ID = 0x00C
    #: R; the word that DEVICE_FEATURES_SEL selects.
    DEVICE_FEATURES = 0x010
    #: W
    DEVICE_FEATURES_SEL = 0x014
    #: W; the word that DRIVER_FEATURES_SEL selects.
    DRIVER_FEATURES = 0x020
    #: W
    DRIVER_FEATURES_SEL = 0x024
    #: W
    QUEUE_SEL = 0x030
    #: R; Linux: QUEUE_NUM_MAX. 0: there is no such queue.
    QUEUE_SIZE_MAX = 0x034
    #: W; Linux: QUEUE_NUM.
    QUEUE_SIZE = 0x038
    #: R and W
    QUEUE_READY = 0x044
    #: W
    QUEUE_NOTIFY = 0x050
    #: R; bits of MmioInterrupt.
    INTERRUPT_STATUS = 0x060
    #: W; bits of MmioInterrupt.
    INTERRUPT_ACK = 0x064
    #: R and W; writing 0 resets.
    STATUS = 0x070
    #: W
    QUEUE_DESC_LOW = 0x080
    #: W
    QUEUE_DESC_HIGH = 0x084
    #: W; Linux: QUEUE_AVAIL_LOW.
    QUEUE_DRIVER_LOW = 0x090
    #: W; Linux: QUEUE_AVAIL_HIGH.
    QUEUE_DRIVER_HIGH = 0x094
    #: W; Linux: QUEUE_USED_LOW.
    QUEUE_DEVICE_LOW = 0x0A0
    #: W; Linux: QUEUE_USED_HIGH.
    QUEUE_DEVICE_HIGH = 0x0A4
    #: W
    SHM_SEL = 0x0AC
    #: R; all ones when there is no such region.
    SHM_LEN_LOW = 0x0B0
    #: R
    SHM_LEN_HIGH = 0x0B4
    #: R; all ones when there is no such region.
    SHM_BASE_LOW = 0x0B8
    #: R
    SHM_BASE_HIGH = 0x0BC
    #: R and W; with Feature.RING_RESET.
    QUEUE_RESET = 0x0C0
    #: R
    CONFIG_GENERATION = 0x0FC
    #: R and W; the device's configuration space begins here and is accessed by its fields' sizes.
    CONFIG = 0x100


class MmioInterrupt(IntFlag):
    """Bits of MmioReg.INTERRUPT_STATUS and INTERRUPT_ACK."""

    VRING = 1
    CONFIG = 2
