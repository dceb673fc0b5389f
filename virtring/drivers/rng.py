"""The driver of the entropy device (virtio 1.4, 5.4; Linux ``virtio-rng.c``)."""

from threading import Condition
from time import monotonic

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.errors import InvalidArgument, WaitTimeout, WrongState
from virtring.memory import Buffer, BufferPool
from virtring.queue import Virtqueue
from virtring.spec.ids import DeviceID


class RngDriver(VirtioDriver):
    """Random bytes from the device: :meth:`read`, from any thread.

    One buffer goes back and forth; bytes that one reader does not want are the next one's.
    """

    name = "rng"
    id_table = (VirtioDeviceId(DeviceID.RNG),)

    #: Bytes asked for at once.
    BUFFER = 4096

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self._done = Condition()
        self._ready = bytearray()
        self._in_flight = False
        self._buffer: Buffer | None = None

    def probe(self) -> None:
        self.vq = self.vdev.find_single_vq(self._input_done, "input")
        self._buffer = BufferPool(self.vdev.memory, 1, self.BUFFER).get()
        self._in_flight = False

    def _input_done(self, vq: Virtqueue) -> None:
        with self._done:
            if self._buffer is not None and (got := vq.get_buf()) is not None:
                self._ready += memoryview(self._buffer)[: got[1]]
                self._in_flight = False
                self._done.notify_all()

    def read(self, size: int, timeout: float = 5.0) -> bytes:
        """``size`` random bytes. WaitTimeout when the device did not give them within ``timeout``
        seconds, WrongState when it is removed."""
        if size < 0:
            raise InvalidArgument(f"{size} bytes")
        end = monotonic() + timeout
        out = bytearray()
        while len(out) < size:
            kick = False
            with self._done:
                if self._buffer is None:
                    raise WrongState("the entropy device was removed")
                if self._ready:
                    part = self._ready[: size - len(out)]
                    del self._ready[: len(part)]
                    out += part
                    continue
                if (left := end - monotonic()) <= 0:
                    raise WaitTimeout(f"{len(out)} of {size} random bytes after {timeout} s")
                if self._in_flight:
                    self._done.wait(left)
                    continue
                self.vq.add_inbuf(self._buffer)
                self._in_flight = True
                kick = self.vq.kick_prepare()
            if kick:
                self.vq.notify()
        return bytes(out)

    def remove(self) -> None:
        with self._done:
            # Readers wake up with WrongState; the device may still write until it is reset.
            buffer, self._buffer = self._buffer, None
            self._ready.clear()
            self._done.notify_all()
        super().remove()
        del buffer
