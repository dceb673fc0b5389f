"""The block device (virtio 1.4, 5.2). A sector is 512 bytes, whatever ``blk_size`` says."""

from enum import IntEnum, IntFlag

import numpy as np

#: Bytes of a sector, the unit of ``capacity`` and ``sector`` (5.2.4).
BLK_SECTOR_SIZE = 512
#: Bytes of the answer to GET_ID; a shorter id ends with a zero (5.2.6).
BLK_ID_BYTES = 20


class BlkFeature(IntFlag):
    """VIRTIO_BLK_F_* (5.2.3)."""

    #: 0, legacy only: request barriers.
    BARRIER = 1 << 0
    #: 1: ``size_max`` is valid.
    SIZE_MAX = 1 << 1
    #: 2: ``seg_max`` is valid.
    SEG_MAX = 1 << 2
    #: 4: ``geometry`` is valid.
    GEOMETRY = 1 << 4
    #: 5: the device is read-only.
    RO = 1 << 5
    #: 6: ``blk_size`` is valid.
    BLK_SIZE = 1 << 6
    #: 7, legacy only: SCSI requests.
    SCSI = 1 << 7
    #: 9: FLUSH requests.
    FLUSH = 1 << 9
    #: 10: ``topology`` is valid.
    TOPOLOGY = 1 << 10
    #: 11: ``writeback`` switches the cache.
    CONFIG_WCE = 1 << 11
    #: 12: several queues, ``num_queues``.
    MQ = 1 << 12
    #: 13: DISCARD requests.
    DISCARD = 1 << 13
    #: 14: WRITE_ZEROES requests.
    WRITE_ZEROES = 1 << 14
    #: 15: GET_LIFETIME requests.
    LIFETIME = 1 << 15
    #: 16: SECURE_ERASE requests.
    SECURE_ERASE = 1 << 16
    #: 17: a zoned device.
    ZONED = 1 << 17


#: ``struct virtio_blk_config``, 96 bytes, with its three inner structures (5.2.4).
BLK_CONFIG = np.dtype(
    [
        ("capacity", "<u8"),
        ("size_max", "<u4"),
        ("seg_max", "<u4"),
        ("geometry", [("cylinders", "<u2"), ("heads", "u1"), ("sectors", "u1")]),
        ("blk_size", "<u4"),
        (
            "topology",
            [
                ("physical_block_exp", "u1"),
                ("alignment_offset", "u1"),
                ("min_io_size", "<u2"),
                ("opt_io_size", "<u4"),
            ],
        ),
        ("writeback", "u1"),
        ("unused0", "u1"),
        ("num_queues", "<u2"),
        ("max_discard_sectors", "<u4"),
        ("max_discard_seg", "<u4"),
        ("discard_sector_alignment", "<u4"),
        ("max_write_zeroes_sectors", "<u4"),
        ("max_write_zeroes_seg", "<u4"),
        ("write_zeroes_may_unmap", "u1"),
        ("unused1", "u1", (3,)),
        ("max_secure_erase_sectors", "<u4"),
        ("max_secure_erase_seg", "<u4"),
        ("secure_erase_sector_alignment", "<u4"),
        (
            "zoned",
            [
                ("zone_sectors", "<u4"),
                ("max_open_zones", "<u4"),
                ("max_active_zones", "<u4"),
                ("max_append_sectors", "<u4"),
                ("write_granularity", "<u4"),
                ("model", "u1"),
                ("unused2", "u1", (3,)),
            ],
        ),
    ]
)

#: Head of ``struct virtio_blk_req``, 16 bytes; data and a status byte follow (5.2.6).
BLK_REQ = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("sector", "<u8")])


class BlkType(IntEnum):
    """``type`` of a request: VIRTIO_BLK_T_* (5.2.6)."""

    IN = 0
    OUT = 1
    #: Legacy only, as the next one.
    SCSI_CMD = 2
    SCSI_CMD_OUT = 3
    FLUSH = 4
    #: Legacy only: means FLUSH.
    FLUSH_OUT = 5
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


#: Legacy only: bit of ``type`` that makes a request a barrier (5.2.6).
BLK_T_BARRIER = 0x80000000


class BlkStatus(IntEnum):
    """The status byte: VIRTIO_BLK_S_* (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


#: ``struct virtio_blk_discard_write_zeroes``, 16 bytes: a segment of DISCARD, WRITE_ZEROES or
#: SECURE_ERASE (5.2.6).
BLK_DISCARD_WRITE_ZEROES = np.dtype([("sector", "<u8"), ("num_sectors", "<u4"), ("flags", "<u4")])


class BlkWriteZeroesFlag(IntFlag):
    """``flags`` of such a segment; the other bits are reserved (5.2.6)."""

    UNMAP = 1


#: ``struct virtio_blk_lifetime``, 6 bytes: the answer to GET_LIFETIME (5.2.6).
BLK_LIFETIME = np.dtype(
    [
        ("pre_eol_info", "<u2"),
        ("device_lifetime_est_typ_a", "<u2"),
        ("device_lifetime_est_typ_b", "<u2"),
    ]
)


class BlkPreEol(IntEnum):
    """``pre_eol_info``: VIRTIO_BLK_PRE_EOL_INFO_* (5.2.6)."""

    UNDEFINED = 0
    NORMAL = 1
    WARNING = 2
    URGENT = 3


class BlkZoneModel(IntEnum):
    """``zoned.model``: VIRTIO_BLK_Z_* (5.2.4)."""

    NONE = 0
    HM = 1
    HA = 2


#: Head of ``struct virtio_blk_zone_report``, 64 bytes; zone descriptors follow (5.2.6).
BLK_ZONE_REPORT = np.dtype([("nr_zones", "<u8"), ("reserved", "u1", (56,))])

#: ``struct virtio_blk_zone_descriptor``, 64 bytes (5.2.6).
BLK_ZONE_DESCRIPTOR = np.dtype(
    [
        ("z_cap", "<u8"),
        ("z_start", "<u8"),
        ("z_wp", "<u8"),
        ("z_type", "u1"),
        ("z_state", "u1"),
        ("reserved", "u1", (38,)),
    ]
)


class BlkZoneType(IntEnum):
    """``z_type``: VIRTIO_BLK_ZT_* (5.2.6)."""

    CONV = 1
    SWR = 2
    SWP = 3


class BlkZoneState(IntEnum):
    """``z_state``: VIRTIO_BLK_ZS_* (5.2.6)."""

    NOT_WP = 0
    EMPTY = 1
    IOPEN = 2
    EOPEN = 3
    CLOSED = 4
    RDONLY = 13
    FULL = 14
    OFFLINE = 15
