from collections.abc import Iterable
from typing import Any

from _typeshed import ReadableBuffer
from numpy.typing import ArrayLike, NDArray

from virtring.channel.send import ChannelSend

class Channel(ChannelSend):
    def try_send_batch(self, messages: Iterable[ReadableBuffer | NDArray[Any]]) -> int: ...
    def send_batch(
        self, messages: Iterable[ReadableBuffer | NDArray[Any]], timeout: float | None = None
    ) -> int: ...
    async def asend_batch(
        self, messages: Iterable[ReadableBuffer | NDArray[Any]], timeout: float | None = None
    ) -> int: ...
    def send_array(
        self,
        data: ReadableBuffer | NDArray[Any],
        lengths: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> int: ...
