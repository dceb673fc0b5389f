"""The driver of the console device (virtio 1.4, 5.3; Linux ``virtio_console.c``)."""

from collections.abc import Callable
from threading import Condition

import numpy as np

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.drivers.console_port import ConsolePort
from virtring.errors import NotSupported, WaitTimeout, WrongState
from virtring.memory import BufferPool
from virtring.queue import Virtqueue
from virtring.spec.console import (
    CONSOLE_BAD_ID,
    CONSOLE_CONFIG,
    CONSOLE_CONTROL,
    CONSOLE_RESIZE,
    ConsoleEvent,
    ConsoleFeature,
)
from virtring.spec.ids import DeviceID

#: The most ports of a device.
MAX_PORTS = 255
#: Buffers of each control queue, and their bytes: room for a message with a long name.
CONTROLS = 8
CONTROL = 512


class ConsoleDriver(VirtioDriver):
    """The ports of a console: :meth:`port`, by number or name. ``size`` is the terminal's."""

    name = "console"
    id_table = (VirtioDeviceId(DeviceID.CONSOLE),)
    feature_table = (
        ConsoleFeature.SIZE,
        ConsoleFeature.MULTIPORT,
        ConsoleFeature.EMERG_WRITE,
    )

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self.lock = Condition()
        self.ports: dict[int, ConsolePort] = {}
        self.size: tuple[int, int] | None = None
        self._slots: list[ConsolePort] = []
        # Ours that wait for a buffer, as a callback cannot; one of each kind a port.
        self._messages: dict[tuple[int, ConsoleEvent], bytes] = {}
        self._pools: tuple[BufferPool, BufferPool] | None = None
        self._control_in: Virtqueue | None = None
        self._control_out: Virtqueue | None = None
        self._removed = False

    def probe(self) -> None:
        many = self.vdev.has_feature(ConsoleFeature.MULTIPORT)
        count = int(self.vdev.cread(CONSOLE_CONFIG, "max_nr_ports")) if many else 1
        if not 1 <= count <= MAX_PORTS:
            raise NotSupported(f"a console of {count} ports; this driver takes 1 to {MAX_PORTS}")
        names = ["receive 0", "transmit 0"]
        callbacks: list[Callable[[Virtqueue], object]] = [self._port_in, self._port_out]
        if many:
            names += ["control receive", "control transmit"]
            callbacks += [self._control_received, self._control_sent]
            for id in range(1, count):
                names += [f"receive {id}", f"transmit {id}"]
                callbacks += [self._port_in, self._port_out]
        vqs = [vq for vq in self.vdev.find_vqs(callbacks, names) if vq is not None]
        self._removed = False
        self._messages.clear()
        if many:
            self._control_in, self._control_out = vqs[2:4]
            del vqs[2:4]
        memory = self.vdev.memory
        self._slots = [
            ConsolePort(self, id, memory, vqs[2 * id], vqs[2 * id + 1]) for id in range(count)
        ]
        self._read_size()
        if self._control_in is None:
            self._plug_only()
            self.vdev.ready()
            return
        self._pools = BufferPool(memory, CONTROLS, CONTROL), BufferPool(memory, CONTROLS, CONTROL)
        for _ in range(min(CONTROLS, self._control_in.vring_size)):
            self._control_in.add_inbuf(self._pools[0].get())
        self.vdev.ready()
        self._send(CONSOLE_BAD_ID, ConsoleEvent.DEVICE_READY, 1)

    def _plug_only(self) -> None:
        with self.lock:
            port = self._slots[0]
            port.plug()
            port.console = port.host_open = port.guest_open = True
            port.size = self.size
            self.ports[0] = port

    # For programs.

    def port(self, which: int | str = 0, timeout: float = 5.0) -> ConsolePort:
        """The port of that number or name, once it is there; WaitTimeout."""

        def found() -> ConsolePort | None:
            if self._removed:
                raise WrongState("the console was removed")
            for port in self.ports.values():
                if which in (port.id, port.name):
                    return port
            return None

        with self.lock:
            port = self.lock.wait_for(found, timeout)
            if port is None:
                raise WaitTimeout(f"no port {which!r} after {timeout} s")
            return port

    def emergency_write(self, text: bytes) -> None:
        """Put bytes out one by one, without any queue; NotSupported without EMERG_WRITE."""
        if not self.vdev.has_feature(ConsoleFeature.EMERG_WRITE):
            raise NotSupported("EMERG_WRITE was not negotiated")
        for byte in text:
            self.vdev.cwrite(CONSOLE_CONFIG, "emerg_wr", byte)

    # What the device does.

    def config_changed(self) -> None:
        self._read_size()

    def _read_size(self) -> None:
        if not self.vdev.has_feature(ConsoleFeature.SIZE):
            return
        # Both at once, and nothing that is there with other features only (virtio 1.4, 2.5.1).
        config = self.vdev.cread(CONSOLE_CONFIG[["cols", "rows"]])
        with self.lock:
            self.size = int(config["cols"]), int(config["rows"])
            if 0 in self.ports:
                self.ports[0].size = self.size
            self.lock.notify_all()

    def _slot(self, vq: Virtqueue) -> ConsolePort:
        return self._slots[vq.index // 2 - 1 if vq.index > 1 else 0]

    def _port_in(self, vq: Virtqueue) -> None:
        with self.lock:
            kick = not self._removed and self._slot(vq).received()
            self.lock.notify_all()
        if kick:
            vq.notify()

    def _port_out(self, vq: Virtqueue) -> None:
        with self.lock:
            if not self._removed:
                self._slot(vq).sent()
            self.lock.notify_all()

    def _control_received(self, vq: Virtqueue) -> None:
        while True:
            with self.lock:
                if self._removed or (got := vq.get_buf()) is None:
                    break
                buffer, length = got
                # A copy: the device may write to the buffer as long as it likes.
                message = bytes(buffer.view[:length])
                vq.add_inbuf(buffer)
            self._handle(message)
        with self.lock:
            kick = not self._removed and vq.kick_prepare()
            self.lock.notify_all()
        if kick:
            vq.notify()

    def _handle(self, message: bytes) -> None:
        """One message of the device. What makes no sense is ignored, as in Linux."""
        head = CONSOLE_CONTROL.itemsize
        if len(message) < head:
            return
        id, event, value = np.frombuffer(message[:head], CONSOLE_CONTROL)[0].tolist()
        if id >= len(self._slots):
            return
        port = self._slots[id]
        if event == ConsoleEvent.DEVICE_ADD:
            self._plug(port)
        elif port.removed:
            return
        elif event == ConsoleEvent.DEVICE_REMOVE:
            self._unplug(port)
        elif event == ConsoleEvent.CONSOLE_PORT:
            port.console = True
            self.open_port(port, True)
        elif event == ConsoleEvent.RESIZE and len(message) >= head + CONSOLE_RESIZE.itemsize:
            record = np.frombuffer(message, CONSOLE_RESIZE, 1, head)[0]
            port.size = int(record["cols"]), int(record["rows"])
        elif event == ConsoleEvent.PORT_OPEN:
            port.host_open, port.hung_up = value != 0, value == 0
        elif event == ConsoleEvent.PORT_NAME:
            port.name = message[head:].decode(errors="replace")

    def _plug(self, port: ConsolePort) -> None:
        with self.lock:
            if not port.removed:
                return
            kick = port.plug()
            self.ports[port.id] = port
        if kick:
            port.receive.notify()
        self._send(port.id, ConsoleEvent.PORT_READY, 1)

    def _unplug(self, port: ConsolePort) -> None:
        with self.lock:
            self.ports.pop(port.id, None)
            port.unplug()
            self.lock.notify_all()

    def open_port(self, port: ConsolePort, value: bool) -> None:
        """Open or close our end of a port."""
        with self.lock:
            if port.guest_open == value:
                return
            port.guest_open = value
            self.lock.notify_all()
        if self._control_out is not None:
            self._send(port.id, ConsoleEvent.PORT_OPEN, int(value))

    def _send(self, id: int, event: ConsoleEvent, value: int) -> None:
        with self.lock:
            self._messages.pop((id, event), None)
            self._messages[id, event] = np.array((id, event, value), CONSOLE_CONTROL).tobytes()
        self._flush()

    def _flush(self) -> None:
        vq = self._control_out
        with self.lock:
            if self._removed or self._pools is None or vq is None:
                return
            pool = self._pools[1]
            while self._messages and pool.free_count and vq.num_free:
                message = self._messages.pop(next(iter(self._messages)))
                buffer = pool.get()
                buffer.len = len(message)
                buffer.view[:] = message
                vq.add_outbuf(buffer)
            kick = vq.kick_prepare()
        if kick:
            vq.notify()

    def _control_sent(self, vq: Virtqueue) -> None:
        with self.lock:
            while not self._removed and (got := vq.get_buf()) is not None:
                assert self._pools is not None
                self._pools[1].put(got[0])
        self._flush()

    # The end.

    def remove(self) -> None:
        with self.lock:
            self._removed = True
            for port in self._slots:
                port.removed = True
            self.ports.clear()
            self.lock.notify_all()
        super().remove()
        for port in self._slots:
            port.release()
        self._slots = []
        self._pools = self._control_in = self._control_out = None
