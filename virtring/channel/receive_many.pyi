import numpy as np
from numpy.typing import NDArray

from virtring.channel.receive import ChannelReceive

class ReceiveMany(ChannelReceive):
    def try_recv_batch(self, limit: int | None = None) -> list[bytes]: ...
    def recv_batch(
        self, limit: int | None = None, timeout: float | None = None
    ) -> list[bytes]: ...
    async def arecv_batch(
        self, limit: int | None = None, timeout: float | None = None
    ) -> list[bytes]: ...
    def try_recv_array(
        self, out: NDArray[np.uint8] | bytearray | memoryview, lengths: NDArray[np.uint32]
    ) -> int: ...
    def recv_array(
        self,
        out: NDArray[np.uint8] | bytearray | memoryview,
        lengths: NDArray[np.uint32],
        timeout: float | None = None,
    ) -> int: ...
