"""One block request of the Python-friendly kind: a future with its data in guest memory."""

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from virtring.errors import RequestFailed, WaitTimeout
from virtring.memory import GuestMemory
from virtring.spec.blk import BlkStatus, BlkType

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Guest memory for data is taken in pieces that begin here: what file systems and disks like.
ALIGN = 512


class BlkRequest(Future[bytes]):
    """A request in flight: ``result(timeout)`` waits in a thread, ``await request`` in asyncio.

    The result is what was read; ``b""`` for what reads nothing. A request that is on its way
    cannot be cancelled. Raises RequestFailed when the device says so.
    """

    def __init__(
        self,
        memory: GuestMemory,
        type: BlkType,
        sector: int,
        size: int,
        data: "ReadableBuffer | None" = None,
    ) -> None:
        super().__init__()
        self.type = type
        self.sector = sector
        self.size = size
        self.addr = 0
        self._memory = memory
        if size:
            self.addr = memory.alloc(size, ALIGN)
        if data is not None:
            memory.write(self.addr, data)
        self.set_running_or_notify_cancel()

    def finish(self, status: int) -> None:
        """The device is done with it."""
        data = b""
        if status == BlkStatus.OK and self.type in (BlkType.IN, BlkType.GET_ID):
            data = self._memory.read(self.addr, self.size)
        self.release()
        if status == BlkStatus.OK:
            self.set_result(data)
            return
        try:
            name = BlkStatus(status).name
        except ValueError:
            name = str(status)
        self.set_exception(
            RequestFailed(f"{self.type.name} at sector {self.sector} ended with {name}", status)
        )

    def fail(self, error: Exception) -> None:
        """It will never be carried out; the device has let go of it."""
        self.release()
        self.set_exception(error)

    def release(self) -> None:
        if self.addr and not self._memory.closed:
            self._memory.free(self.addr)
        self.addr = 0

    def wait(self, timeout: float | None) -> bytes:
        """:meth:`result`, but WaitTimeout when ``timeout`` seconds were not enough."""
        try:
            return self.result(timeout)
        except FutureTimeout:
            if self.done():
                raise
            raise WaitTimeout(f"{self.type.name}: no answer after {timeout} s") from None

    def __await__(self) -> Generator[Any, None, bytes]:
        return asyncio.wrap_future(self).__await__()
