"""One ring of the front end: its descriptors, and where a back end begins with it."""

from dataclasses import dataclass, field

from virtring.memory import GuestMemory
from virtring.queue import EventFd, QueueConfig


@dataclass
class Ring:
    """What the front end keeps of one queue beside the Virtqueue."""

    kick: EventFd = field(default_factory=EventFd)
    call: EventFd = field(default_factory=EventFd)
    err: EventFd = field(default_factory=EventFd)
    #: The driver has handed it over (it waits for DRIVER_OK, or runs).
    ready: bool = False
    started: bool = False

    def close(self) -> None:
        for event in (self.kick, self.call, self.err):
            event.close()


def start_position(memory: GuestMemory, config: QueueConfig) -> int:
    """Where a back end begins with a ring: for a new one, 0 or its packed form.

    For one that was in use, split: the next used index. Buffers beyond it are either in the
    tracking area or not taken yet, so the back end knows better; packed: only it knows.
    """
    if config.packed:
        return 1 << 15 | 1 << 31
    return int.from_bytes(memory.read(config.used + 2, 2), "big" if config.big_endian else "little")
