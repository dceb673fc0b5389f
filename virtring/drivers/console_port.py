"""A port of the console, as its driver sees it."""

from collections import deque
from threading import Condition
from time import monotonic
from typing import Protocol

from virtring.errors import InvalidArgument, WaitTimeout, WrongState
from virtring.memory import Buffer, BufferPool, GuestMemory
from virtring.queue import Virtqueue

#: Buffers of each direction of a port, and their bytes.
BUFFERS = 8
BUFFER = 4096


class PortDriver(Protocol):
    """What a port needs of its driver: the lock of all its state, and a way to open and close."""

    lock: Condition

    def open_port(self, port: "ConsolePort", value: bool) -> None: ...


class ConsolePort:
    """Bytes to and from one port: :meth:`read`, :meth:`write`, from any thread.

    id; name; console: for a terminal; host_open: is the host's end open?; guest_open: is ours?;
    size: columns and rows, None if not known. ``removed`` once it is unplugged: calls then raise
    WrongState.
    """

    def __init__(
        self,
        driver: PortDriver,
        id: int,
        memory: GuestMemory,
        receive: Virtqueue,
        transmit: Virtqueue,
    ) -> None:
        self.driver = driver
        self.id = id
        self.receive = receive
        self.transmit = transmit
        self._pools: tuple[BufferPool, BufferPool] | None = None
        self._memory = memory
        # Buffers with what came in, and how much of it.
        self._input: deque[tuple[Buffer, int]] = deque()
        self._offset = 0
        self.removed = True
        self.forget()

    def forget(self) -> None:
        """What was known of the port."""
        self.name = ""
        self.console = False
        self.host_open = self.guest_open = False
        # The host closed its end, and not: has not opened it yet.
        self.hung_up = False
        self.size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<port {self.id} {self.name!r}{' removed' if self.removed else ''}>"

    # For programs.

    def read(self, size: int = BUFFER, timeout: float = 5.0) -> bytes:
        """Up to ``size`` bytes, at least one; b"" when the host has closed its end.

        WaitTimeout when nothing came for ``timeout`` seconds.
        """
        if size < 1:
            raise InvalidArgument(f"{size} bytes; it takes at least 1")
        with self.driver.lock:
            if not self.driver.lock.wait_for(self._readable, timeout):
                raise WaitTimeout(f"nothing from {self!r} for {timeout} s")
            out, kick = self._consume(size)
        if kick:
            self.receive.notify()
        return out

    def _readable(self) -> bool:
        self._check()
        return bool(self._input) or self.hung_up

    def _consume(self, size: int) -> tuple[bytes, bool]:
        out = bytearray()
        freed = False
        while self._input and len(out) < size:
            buffer, filled = self._input[0]
            part = buffer.view[self._offset : min(filled, self._offset + size - len(out))]
            out += part
            self._offset += len(part)
            if self._offset == filled:
                self._input.popleft()
                self._offset = 0
                self._post(buffer)
                freed = True
        return bytes(out), freed and self.receive.kick_prepare()

    def write(self, data: bytes | bytearray | memoryview, timeout: float = 5.0) -> int:
        """Write all of ``data``; its length. The device has it once :meth:`flush` returns.

        WaitTimeout when the host's end stays closed, or the device takes nothing, for ``timeout``
        seconds; the part that was written before stays written.
        """
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            with self.driver.lock:
                if not self.driver.lock.wait_for(self._writable, timeout):
                    why = "it takes nothing" if self.host_open else "its host's end is closed"
                    raise WaitTimeout(f"{done} of {len(view)} bytes to {self!r}: {why}")
                buffer = self._out.get()
                part = view[done : done + BUFFER]
                buffer.len = len(part)
                buffer.view[:] = part
                self.transmit.add_outbuf(buffer)
                done += len(part)
                kick = self.transmit.kick_prepare()
            if kick:
                self.transmit.notify()
        return done

    def _writable(self) -> bool:
        self._check()
        return self.host_open and self._out.free_count > 0 and self.transmit.num_free > 0

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the device has taken all that was written; WaitTimeout."""
        with self.driver.lock:
            if not self.driver.lock.wait_for(self._flushed, timeout):
                raise WaitTimeout(f"{self!r} has not taken all after {timeout} s")

    def _flushed(self) -> bool:
        self._check()
        return not self.transmit.in_flight

    def open(self) -> None:
        """Open our end: the device sends from now on. A console is open already."""
        self._check()
        self.driver.open_port(self, True)

    def close(self) -> None:
        """Close our end; what was not read is dropped."""
        self._check()
        self.driver.open_port(self, False)
        self.discard()

    def wait_open(self, timeout: float = 5.0) -> None:
        """Wait until the host's end is open; WaitTimeout."""
        end = monotonic() + timeout
        with self.driver.lock:
            while not self.host_open:
                self._check()
                if not self.driver.lock.wait(end - monotonic()):
                    raise WaitTimeout(f"the host did not open {self!r} within {timeout} s")

    def _check(self) -> None:
        if self.removed:
            raise WrongState(f"port {self.id} was removed")

    # For the driver, its lock held.

    @property
    def _out(self) -> BufferPool:
        assert self._pools is not None
        return self._pools[1]

    def plug(self) -> bool:
        """The port is there: give the device buffers for it. Does it want a kick?"""
        self.forget()
        self.removed = False
        if self._pools is not None:
            # Plugged in for a second time: the device has the buffers already.
            return False
        receive = BufferPool(self._memory, min(BUFFERS, self.receive.vring_size), BUFFER)
        self._pools = receive, BufferPool(self._memory, BUFFERS, BUFFER)
        for _ in range(len(receive)):
            self._post(receive.get())
        return self.receive.kick_prepare()

    def _post(self, buffer: Buffer) -> None:
        buffer.len = buffer.size
        self.receive.add_inbuf(buffer)

    def unplug(self) -> bool:
        """The port is gone; its buffers wait for the next one. Does the device want a kick?"""
        self.removed = True
        return self._drop_input()

    def _drop_input(self) -> bool:
        freed = bool(self._input)
        while self._input:
            self._post(self._input.popleft()[0])
        self._offset = 0
        return freed and self.receive.kick_prepare()

    def discard(self) -> None:
        """Drop what was not read."""
        with self.driver.lock:
            kick = self._drop_input()
        if kick:
            self.receive.notify()

    def received(self) -> bool:
        """The device filled buffers. Does it want a kick for those that are not kept?"""
        posted = False
        while (got := self.receive.get_buf()) is not None:
            buffer, filled = got
            if filled and self.guest_open and not self.removed:
                self._input.append((buffer, filled))
            else:
                self._post(buffer)
                posted = True
        return posted and self.receive.kick_prepare()

    def sent(self) -> None:
        """The device took what was written."""
        while (got := self.transmit.get_buf()) is not None:
            self._out.put(got[0])

    def release(self) -> None:
        """The queues are deleted: let go of all buffers."""
        self.removed = True
        self._input.clear()
        self._pools = None
