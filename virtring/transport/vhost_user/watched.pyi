from virtring.device.burst import BurstWorker, QueueLoop
from virtring.queue.device import DeviceQueue
from virtring.transport.vhost_user.dirty_log import DirtyLog
from virtring.transport.vhost_user.inflight import Inflight

class WatchedQueue(DeviceQueue):
    @property
    def inflight(self) -> Inflight | None: ...
    @property
    def log(self) -> DirtyLog | None: ...
    def begin(
        self, inflight: Inflight | None, log: DirtyLog | None, position: int | None = None
    ) -> None: ...

class WatchedLoop(QueueLoop):
    def __init__(
        self, queue: WatchedQueue, worker: BurstWorker, wake: int, *, poll: bool = False
    ) -> None: ...
