from virtring.queue.side import QueueSide

class DriverRing(QueueSide):
    @property
    def weak_barriers(self) -> bool: ...
    @property
    def context(self) -> bool: ...
