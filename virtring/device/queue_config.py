"""What the driver tells the device about one queue (Fuchsia's VirtioQueueConfig)."""

from dataclasses import dataclass

#: Ring entries when a device says nothing else (Fuchsia's default).
QUEUE_SIZE = 128
#: No interrupt vector (virtio 1.4, 4.1.5.1.2).
NO_VECTOR = 0xFFFF

AREAS = ("desc", "avail", "used")


@dataclass
class VirtioQueueConfig:
    """One queue as a transport's registers show it. Addresses are guest addresses, 64 bits.

    size_max: entries the device offers, 0 for a queue that does not exist. size: entries the driver
    chose. desc, avail, used: the three areas (descriptor, driver and device area). enabled: the
    driver has handed the queue over. vector: MSI-X entry for its interrupts. resetting: a queue
    reset was asked for and is not read back yet.
    """

    size_max: int = QUEUE_SIZE
    size: int = QUEUE_SIZE
    desc: int = 0
    avail: int = 0
    used: int = 0
    enabled: bool = False
    vector: int = NO_VECTOR
    resetting: bool = False

    def reset(self) -> None:
        """Back to what a driver finds after a reset."""
        self.size = self.size_max
        self.desc = self.avail = self.used = 0
        self.enabled = self.resetting = False
        self.vector = NO_VECTOR

    def word(self, area: str, high: bool) -> int:
        """The low or high 32 bits of an area's address."""
        return (int(getattr(self, area)) >> (32 if high else 0)) & 0xFFFFFFFF

    def set_word(self, area: str, high: bool, value: int) -> None:
        """Replace the low or high 32 bits of an area's address."""
        shift = 32 if high else 0
        kept = int(getattr(self, area)) & ~(0xFFFFFFFF << shift)
        setattr(self, area, kept | (value & 0xFFFFFFFF) << shift)
