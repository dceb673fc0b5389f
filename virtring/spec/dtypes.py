"""The wire structures of both ring layouts as numpy dtypes (virtio 1.4, 2.7 and 2.8).

Little-endian, as VERSION_1 fixes them; a legacy guest of the other endianness has
``dtype.newbyteorder(">")`` of the same.
"""

import numpy as np

#: Split ring descriptor, 16 bytes (2.7.5 ``virtq_desc``).
VRING_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])

#: Element of the split used ring, 8 bytes (2.7.8 ``virtq_used_elem``).
VRING_USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])

#: Packed ring descriptor, 16 bytes (2.8.13 ``pvirtq_desc``).
VRING_PACKED_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])

#: Event suppression structure of a packed ring, 4 bytes (2.8.14 ``pvirtq_event_suppress``).
VRING_PACKED_DESC_EVENT = np.dtype([("off_wrap", "<u2"), ("flags", "<u2")])


def vring_avail(num: int) -> np.dtype[np.void]:
    """The split available ring of ``num`` entries with ``used_event`` behind it (2.7.6)."""
    return np.dtype(
        [("flags", "<u2"), ("idx", "<u2"), ("ring", "<u2", (num,)), ("used_event", "<u2")]
    )


def vring_used(num: int) -> np.dtype[np.void]:
    """The split used ring of ``num`` entries with ``avail_event`` behind it (2.7.8)."""
    return np.dtype(
        [
            ("flags", "<u2"),
            ("idx", "<u2"),
            ("ring", VRING_USED_ELEM, (num,)),
            ("avail_event", "<u2"),
        ]
    )
