from typing import final

from virtring.queue.chain import Chain
from virtring.queue.device import DeviceQueue
from virtring.rpmsg.port import Port

@final
class DevicePort(Port):
    def __init__(
        self,
        rvq: DeviceQueue,
        svq: DeviceQueue,
        rx_buf_size: int,
        tx_buf_size: int,
        big_endian: bool,
    ) -> None: ...
    @property
    def rvq(self) -> DeviceQueue: ...
    @property
    def svq(self) -> DeviceQueue: ...
    @property
    def spare(self) -> list[Chain]: ...
    def take_tx(self) -> Chain | None: ...
