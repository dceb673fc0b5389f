"""The console device (virtio 1.4, 5.3)."""

from enum import IntEnum, IntFlag

import numpy as np


class ConsoleFeature(IntFlag):
    """VIRTIO_CONSOLE_F_* (5.3.3)."""

    #: 0: ``cols`` and ``rows`` are valid.
    SIZE = 1 << 0
    #: 1: several ports and two control queues.
    MULTIPORT = 1 << 1
    #: 2: a character written to ``emerg_wr`` is printed at any time.
    EMERG_WRITE = 1 << 2


class ConsoleQueue(IntEnum):
    """Queues (5.3.2). Port n > 0 has 2n + 2 to receive and 2n + 3 to transmit."""

    RECEIVEQ = 0
    TRANSMITQ = 1
    CONTROL_RECEIVEQ = 2
    CONTROL_TRANSMITQ = 3


#: ``struct virtio_console_config``, 12 bytes (5.3.4).
CONSOLE_CONFIG = np.dtype(
    [("cols", "<u2"), ("rows", "<u2"), ("max_nr_ports", "<u4"), ("emerg_wr", "<u4")]
)

#: ``struct virtio_console_control``, 8 bytes (5.3.6.2).
CONSOLE_CONTROL = np.dtype([("id", "<u4"), ("event", "<u2"), ("value", "<u2")])

#: ``struct virtio_console_resize``, 4 bytes: follows a RESIZE event (5.3.6.2).
CONSOLE_RESIZE = np.dtype([("cols", "<u2"), ("rows", "<u2")])

#: ``id`` of a control message that is about no port: VIRTIO_CONSOLE_BAD_ID in Linux.
CONSOLE_BAD_ID = 0xFFFFFFFF


class ConsoleEvent(IntEnum):
    """``event`` of a control message (5.3.6.2)."""

    #: Driver: initialised (``value`` 1) or failed (0).
    DEVICE_READY = 0
    #: Device: a new port. Linux: VIRTIO_CONSOLE_PORT_ADD.
    DEVICE_ADD = 1
    #: Device: a port is gone. Linux: VIRTIO_CONSOLE_PORT_REMOVE.
    DEVICE_REMOVE = 2
    #: Driver: answers DEVICE_ADD, ``value`` 1 for success.
    PORT_READY = 3
    #: Device: the port is a console.
    CONSOLE_PORT = 4
    #: Device: the console has a new size.
    RESIZE = 5
    #: Both: the port is open (``value`` 1) or closed (0).
    PORT_OPEN = 6
    #: Device: a name for the port follows.
    PORT_NAME = 7
