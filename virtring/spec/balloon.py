"""The traditional memory balloon (virtio 1.4, 5.5)."""

from enum import IntEnum, IntFlag

import numpy as np


class BalloonFeature(IntFlag):
    """VIRTIO_BALLOON_F_* (5.5.3)."""

    #: 0: the device hears of a page before the driver uses it again.
    MUST_TELL_HOST = 1 << 0
    #: 1: there is a queue for statistics.
    STATS_VQ = 1 << 1
    #: 2: the driver may take pages back when memory runs out.
    DEFLATE_ON_OOM = 1 << 2
    #: 3: the driver hints at free pages.
    FREE_PAGE_HINT = 1 << 3
    #: 4: ``poison_val`` is valid.
    PAGE_POISON = 1 << 4
    #: 5: the driver reports free pages. Linux: VIRTIO_BALLOON_F_REPORTING.
    PAGE_REPORTING = 1 << 5


class BalloonQueue(IntEnum):
    """Queues (5.5.2). Each but the first two exists only with its feature.

    The numbers are the standard's; Linux over PCI closes up to those that exist.
    """

    INFLATEQ = 0
    DEFLATEQ = 1
    STATSQ = 2
    FREE_PAGE_VQ = 3
    REPORTING_VQ = 4


#: ``struct virtio_balloon_config``, 16 bytes (5.5.4).
BALLOON_CONFIG = np.dtype(
    [
        ("num_pages", "<u4"),
        ("actual", "<u4"),
        ("free_page_hint_cmd_id", "<u4"),
        ("poison_val", "<u4"),
    ]
)

#: Page numbers in the queues are of pages of 1 << 12 bytes: VIRTIO_BALLOON_PFN_SHIFT (5.5.6).
BALLOON_PFN_SHIFT = 12

#: Page number as it is in the inflate and deflate queues, 4 bytes (5.5.6).
BALLOON_PFN = np.dtype("<u4")

#: ``struct virtio_balloon_stat``, packed: 10 bytes (5.5.6.3).
BALLOON_STAT = np.dtype([("tag", "<u2"), ("val", "<u8")])


class BalloonStat(IntEnum):
    """``tag`` of a statistic: VIRTIO_BALLOON_S_* (5.5.6.4). Sizes are in bytes.

    Newer Linux gives 10 and up to more statistics of its own.
    """

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9


class BalloonCmdID(IntEnum):
    """Reserved values of ``free_page_hint_cmd_id``: VIRTIO_BALLOON_CMD_ID_* (5.5.6.5)."""

    STOP = 0
    DONE = 1
