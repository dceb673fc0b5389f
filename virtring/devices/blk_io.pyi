from virtring.device.burst import BurstWorker
from virtring.memory.guest import GuestMemory
from virtring.queue.batch import Batch

class BlkIo(BurstWorker):
    capacity: int
    write_through: bool
    discard: bool
    write_zeroes: bool
    def __init__(
        self,
        fd: int,
        capacity: int,
        *,
        read_only: bool = False,
        serial: bytes = b"",
        max_segments: int = 16,
        max_sectors: int = 1 << 22,
    ) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def malformed(self) -> int: ...
    def run(self, memory: GuestMemory, batch: Batch, start: int, budget: int) -> int: ...
