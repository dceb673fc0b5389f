"""Device ids (virtio 1.4, chapter 5 "Device Types") and transitional PCI ids (4.1.2)."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class DeviceID(IntEnum):
    """The kind of a virtio device. 0 is invalid; 14 and 15 are given to nothing.

    Names are Linux's (``virtio_ids.h``, VIRTIO_ID_*) where Linux has one, else the standard's.
    The standard gives many ids without saying what such a device does.
    """

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    #: The "traditional" memory balloon, the one that is in use (5.5).
    BALLOON = 5
    IOMEM = 6
    RPMSG = 7
    SCSI = 8
    #: VIRTIO_ID_9P; a Python name cannot begin with a digit.
    P9 = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    #: A second memory balloon that was never specified.
    MEMORY_BALLOON = 13
    GPU = 16
    #: The RTC device of virtio 1.4.
    CLOCK = 17
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    SIGNAL_DIST = 21
    PSTORE = 22
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SEC_MOD = 33
    I2C_ADAPTER = 34
    WATCHDOG = 35
    CAN = 36
    #: In Linux only; the standard's table leaves 37 out.
    DMABUF = 37
    PARAM_SERV = 38
    AUDIO_POLICY = 39
    BT = 40
    GPIO = 41
    RDMA = 42
    CAMERA = 43
    ISM = 44
    SPI = 45
    TEE = 46
    CPU_BALLOON = 47
    MEDIA = 48
    USB = 49


#: PCI device id of a transitional device (4.1.2.1); its other id is PCI_DEVICE_ID_BASE + DeviceID.
TRANSITIONAL_PCI_ID: Mapping[DeviceID, int] = MappingProxyType(
    {
        DeviceID.NET: 0x1000,
        DeviceID.BLOCK: 0x1001,
        DeviceID.BALLOON: 0x1002,
        DeviceID.CONSOLE: 0x1003,
        DeviceID.SCSI: 0x1004,
        DeviceID.RNG: 0x1005,
        DeviceID.P9: 0x1009,
    }
)
