"""PCI: configuration space, capabilities and registers of a virtio device (virtio 1.4, 4.1).

Everything is little-endian. Enumerations named ...Reg hold byte offsets.
"""

from enum import IntEnum, IntFlag

import numpy as np

#: PCI vendor id of every virtio device (4.1.2).
PCI_VENDOR_ID = 0x1AF4
#: PCI device id = this + DeviceID (4.1.2).
PCI_DEVICE_ID_BASE = 0x1040
#: PCI device ids of virtio end here, this one included (4.1.2).
PCI_DEVICE_ID_LAST = 0x107F


class PciReg(IntEnum):
    """Offsets in the type 0 header of PCI configuration space (PCI 3.0, 6.1)."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION_ID = 0x08
    #: Three bytes: programming interface, subclass, base class.
    CLASS_CODE = 0x09
    CACHE_LINE_SIZE = 0x0C
    LATENCY_TIMER = 0x0D
    HEADER_TYPE = 0x0E
    BIST = 0x0F
    BAR0 = 0x10
    BAR1 = 0x14
    BAR2 = 0x18
    BAR3 = 0x1C
    BAR4 = 0x20
    BAR5 = 0x24
    CARDBUS_CIS = 0x28
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    ROM_ADDRESS = 0x30
    #: Offset of the first capability.
    CAPABILITY_LIST = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D
    MIN_GNT = 0x3E
    MAX_LAT = 0x3F


#: Bytes of the standard header; capabilities come behind it.
PCI_HEADER_SIZE = 0x40
#: Bytes of a conventional configuration space.
PCI_CONFIG_SIZE = 0x100


class PciCommand(IntFlag):
    """Bits of PciReg.COMMAND (PCI 3.0, 6.2.2)."""

    IO = 0x1
    MEMORY = 0x2
    #: The device may access memory.
    MASTER = 0x4
    INTX_DISABLE = 0x400


class PciStatus(IntFlag):
    """Bits of PciReg.STATUS (PCI 3.0, 6.2.3)."""

    #: An INTx interrupt is pending.
    INTERRUPT = 0x8
    CAP_LIST = 0x10


class PciBar(IntFlag):
    """Low bits of a base address register (PCI 3.0, 6.2.5.1)."""

    SPACE_IO = 0x1
    #: A 64-bit address; its high half is in the next register.
    MEM_TYPE_64 = 0x4
    MEM_PREFETCH = 0x8


class PciCapID(IntEnum):
    """Capability ids that a virtio device has (PCI 3.0, appendix H)."""

    VNDR = 0x09
    EXP = 0x10
    MSIX = 0x11


class CfgType(IntEnum):
    """What a virtio capability points at: VIRTIO_PCI_CAP_* (4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5
    SHARED_MEMORY = 8
    VENDOR = 9


#: ``struct virtio_pci_cap``, 16 bytes (4.1.4).
PCI_CAP = np.dtype(
    [
        ("cap_vndr", "u1"),
        ("cap_next", "u1"),
        ("cap_len", "u1"),
        ("cfg_type", "u1"),
        ("bar", "u1"),
        ("id", "u1"),
        ("padding", "u1", (2,)),
        ("offset", "<u4"),
        ("length", "<u4"),
    ]
)

#: ``struct virtio_pci_cap64``, 24 bytes: offset and length of 64 bits (4.1.4).
PCI_CAP64 = np.dtype([("cap", PCI_CAP), ("offset_hi", "<u4"), ("length_hi", "<u4")])

#: ``struct virtio_pci_notify_cap``, 20 bytes (4.1.4.4).
PCI_NOTIFY_CAP = np.dtype([("cap", PCI_CAP), ("notify_off_multiplier", "<u4")])

#: ``struct virtio_pci_cfg_cap``, 20 bytes: a window on a BAR (4.1.4.9).
PCI_CFG_CAP = np.dtype([("cap", PCI_CAP), ("pci_cfg_data", "u1", (4,))])

#: Head of ``struct virtio_pci_vndr_data``, 6 bytes; the vendor's own data follow (4.1.4.8).
PCI_VNDR_DATA = np.dtype(
    [
        ("cap_vndr", "u1"),
        ("cap_next", "u1"),
        ("cap_len", "u1"),
        ("cfg_type", "u1"),
        ("vendor_id", "<u2"),
    ]
)

#: Highest ``bar`` of a virtio capability; more is reserved (4.1.4).
PCI_CAP_BAR_MAX = 5


class CommonReg(IntEnum):
    """Offsets in the common configuration structure (4.1.4.3), as COMMON_CFG has them."""

    DEVICE_FEATURE_SELECT = 0
    DEVICE_FEATURE = 4
    DRIVER_FEATURE_SELECT = 8
    DRIVER_FEATURE = 12
    CONFIG_MSIX_VECTOR = 16
    NUM_QUEUES = 18
    DEVICE_STATUS = 20
    CONFIG_GENERATION = 21
    QUEUE_SELECT = 22
    QUEUE_SIZE = 24
    QUEUE_MSIX_VECTOR = 26
    QUEUE_ENABLE = 28
    QUEUE_NOTIFY_OFF = 30
    QUEUE_DESC = 32
    QUEUE_DRIVER = 40
    QUEUE_DEVICE = 48
    #: With Feature.NOTIF_CONFIG_DATA.
    QUEUE_NOTIF_CONFIG_DATA = 56
    #: With Feature.RING_RESET.
    QUEUE_RESET = 58
    #: With Feature.ADMIN_VQ, as the next one.
    ADMIN_QUEUE_INDEX = 60
    ADMIN_QUEUE_NUM = 62


#: ``struct virtio_pci_common_cfg``, 64 bytes (4.1.4.3).
COMMON_CFG = np.dtype(
    [
        ("device_feature_select", "<u4"),
        ("device_feature", "<u4"),
        ("driver_feature_select", "<u4"),
        ("driver_feature", "<u4"),
        ("config_msix_vector", "<u2"),
        ("num_queues", "<u2"),
        ("device_status", "u1"),
        ("config_generation", "u1"),
        ("queue_select", "<u2"),
        ("queue_size", "<u2"),
        ("queue_msix_vector", "<u2"),
        ("queue_enable", "<u2"),
        ("queue_notify_off", "<u2"),
        ("queue_desc", "<u8"),
        ("queue_driver", "<u8"),
        ("queue_device", "<u8"),
        ("queue_notif_config_data", "<u2"),
        ("queue_reset", "<u2"),
        ("admin_queue_index", "<u2"),
        ("admin_queue_num", "<u2"),
    ]
)


class IsrStatus(IntFlag):
    """Bits of the ISR status byte; reading it clears it (4.1.4.5)."""

    QUEUE = 1
    CONFIG = 2


#: Vector that maps an event to no MSI-X message: VIRTIO_MSI_NO_VECTOR (4.1.5.1.2).
MSI_NO_VECTOR = 0xFFFF


class MsixReg(IntEnum):
    """Offsets in the MSI-X capability, 12 bytes in all (PCI 3.0, 6.8.2)."""

    CONTROL = 2
    TABLE = 4
    PBA = 8


class MsixControl(IntFlag):
    """MsixReg.CONTROL; the TABLE_SIZE field holds the number of vectors less one."""

    TABLE_SIZE = 0x07FF
    FUNCTION_MASK = 0x4000
    ENABLE = 0x8000


#: Low bits of MsixReg.TABLE and MsixReg.PBA: the number of the BAR; the rest is the offset.
MSIX_BIR_MASK = 0x7
#: Bit of ``vector_ctrl``: this vector sends no message.
MSIX_VECTOR_MASKED = 0x1

#: Entry of the MSI-X table, 16 bytes (PCI 3.0, 6.8.2).
MSIX_ENTRY = np.dtype(
    [("addr_lo", "<u4"), ("addr_hi", "<u4"), ("data", "<u4"), ("vector_ctrl", "<u4")]
)
