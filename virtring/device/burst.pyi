from enum import IntEnum

from virtring.queue.device import DeviceQueue

class Ended(IntEnum):
    STOPPED = 0
    DEAF = 1
    MUTE = 2
    MALFORMED = 3

class BurstWorker:
    @property
    def complaint(self) -> str: ...

class QueueLoop:
    def __init__(
        self, queue: DeviceQueue, worker: BurstWorker, wake: int, *, poll: bool = False
    ) -> None: ...
    @property
    def queue(self) -> DeviceQueue: ...
    @property
    def vain(self) -> int: ...
    def stop(self) -> None: ...
    def run(self, kick: int, call: int) -> Ended: ...
