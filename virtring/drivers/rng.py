"""The driver of the entropy device (virtio 1.4, 5.4; Linux ``virtio-rng.c``)."""

from threading import Condition

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.errors import InvalidArgument, WaitTimeout, WrongState
from virtring.memory import Buffer, BufferPool
from virtring.queue import Virtqueue
from virtring.spec.ids import DeviceID


class RngDriver(VirtioDriver):
    """Random bytes from the device: :meth:`read`. One request is in flight at a time."""

    name = "rng"
    id_table = (VirtioDeviceId(DeviceID.RNG),)

    #: Bytes asked for at once.
    BUFFER = 4096

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self._done = Condition()
        self._used: int | None = None
        self._removed = False

    def probe(self) -> None:
        self.vq = self.vdev.find_single_vq(self._input_done, "input")
        self.pool = BufferPool(self.vdev.memory, 1, self.BUFFER)
        self.buffer: Buffer = self.pool.get()

    def _input_done(self, vq: Virtqueue) -> None:
        with self._done:
            if (got := vq.get_buf()) is not None:
                self._used = got[1]
                self._done.notify_all()

    def read(self, size: int, timeout: float = 5.0) -> bytes:
        """``size`` random bytes. WaitTimeout (seconds) when the device gives none."""
        if size < 0:
            raise InvalidArgument(f"{size} bytes")
        out = bytearray()
        while len(out) < size:
            out += self._fill(min(size - len(out), self.BUFFER), timeout)
        return bytes(out)

    def _fill(self, size: int, timeout: float) -> bytes:
        with self._done:
            if self._removed:
                raise WrongState("the entropy device was removed")
            self._used = None
            self.buffer.len = size
            self.vq.add_inbuf(self.buffer)
        self.vq.kick()
        with self._done:
            if not self._done.wait_for(lambda: self._used is not None or self._removed, timeout):
                raise WaitTimeout(f"no random bytes after {timeout} s")
            if self._used is None:
                raise WrongState("the entropy device was removed")
            return bytes(self.buffer.view[: self._used])

    def remove(self) -> None:
        with self._done:
            self._removed = True
            self._done.notify_all()
        super().remove()
