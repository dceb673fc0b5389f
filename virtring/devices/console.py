"""The console device (virtio 1.4, 5.3): ports that carry bytes both ways."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from virtring.device import RING_OFFER, Device
from virtring.devices.console_port import Port
from virtring.errors import InvalidArgument
from virtring.queue import DeviceQueue
from virtring.spec.console import (
    CONSOLE_CONFIG,
    CONSOLE_CONTROL,
    CONSOLE_RESIZE,
    ConsoleEvent,
    ConsoleFeature,
    ConsoleQueue,
)
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID

log = logging.getLogger(__name__)

#: Where ``emerg_wr`` is in the configuration.
EMERG_WR = 8
MAX_PORTS = 255


class Console(Device):
    """A console of one port, or of several (MULTIPORT) that can come and go.

    ports: at least one, if ``max_ports`` is 1; the first one is port 0. max_ports: above 1, or with
    ``multiport``, the control queues are on offer. size: columns and rows (SIZE). emergency(byte):
    takes what is written to ``emerg_wr``, at any time; by default port 0's output.
    """

    device_id = DeviceID.CONSOLE

    def __init__(
        self,
        ports: Sequence[Port],
        *,
        max_ports: int | None = None,
        multiport: bool | None = None,
        size: tuple[int, int] | None = None,
        emergency: Callable[[bytes], object] | None = None,
        ring_features: int = RING_OFFER,
        queue_size: int = 64,
    ) -> None:
        most = max(1, len(ports)) if max_ports is None else max_ports
        self.multiport = most > 1 if multiport is None else multiport
        if not max(1, len(ports)) <= most <= (MAX_PORTS if self.multiport else 1):
            raise InvalidArgument(f"{len(ports)} ports, at most {most}; it takes 1 to {MAX_PORTS}")
        if not ports and not self.multiport:
            raise InvalidArgument("a console without MULTIPORT has one port")
        features = ConsoleFeature.EMERG_WRITE
        config = np.zeros((), CONSOLE_CONFIG)
        config["max_nr_ports"] = most
        if size is not None:
            features |= ConsoleFeature.SIZE
            config["cols"], config["rows"] = check_size(*size)
        names = ["receive 0", "transmit 0"]
        if self.multiport:
            features |= ConsoleFeature.MULTIPORT
            names += ["control receive", "control transmit"]
            for id in range(1, most):
                names += [f"receive {id}", f"transmit {id}"]
        super().__init__(
            features=features,
            ring_features=ring_features,
            queues=names,
            queue_size=queue_size,
            config=config,
        )
        self.size = size
        self.max_ports = most
        self.ports: dict[int, Port] = {}
        self._emergency = emergency
        self._listening = False
        # Messages that wait for a buffer. One of each kind a port, so that a driver that asks again
        # and again without giving buffers does not fill our memory.
        self._control: dict[tuple[int, ConsoleEvent], bytes] = {}
        for port in ports:
            self.add_port(port)

    # For the host, from any thread.

    def add_port(self, port: Port) -> int:
        """Plug a port in; its number, the lowest that is free. InvalidArgument if none is."""
        with self.locked():
            if port.owner is not None:
                raise InvalidArgument(f"port {port.name!r} is plugged in already")
            free = [id for id in range(self.max_ports) if id not in self.ports]
            if not free:
                raise InvalidArgument(f"all {self.max_ports} ports are taken")
            port.id, port.owner = free[0], self
            self.ports[port.id] = port
            self._announce(port)
            return port.id

    def remove_port(self, id: int) -> None:
        """Unplug a port. InvalidArgument if there is none of that number."""
        with self.locked():
            port = self.ports.pop(id, None)
            if port is None:
                raise InvalidArgument(f"there is no port {id}")
            told = port.announced and (id, ConsoleEvent.DEVICE_ADD) not in self._control
            for key in [key for key in self._control if key[0] == id]:
                del self._control[key]
            if told:
                self._tell(port, ConsoleEvent.DEVICE_REMOVE)
            port.drop_chain()
            port.forget_driver()
            port.owner = None
            self.wake(receive_queue(id) + 1)

    def resize(self, cols: int, rows: int) -> None:
        """The terminal has a new size; InvalidArgument when no size was given at first."""
        if self.size is None:
            raise InvalidArgument("this console has no size (SIZE is not on offer)")
        self.size = check_size(cols, rows)
        with self.locked():
            record = np.array((cols, rows), CONSOLE_RESIZE).tobytes()
            self.update_config(0, record)
            for port in self.ports.values():
                if port.console and port.guest_ready:
                    self._tell(port, ConsoleEvent.RESIZE, 0, record)

    def port_sent(self, port: Port) -> None:
        self.wake(receive_queue(port.id))

    def port_released(self, port: Port) -> None:
        self.wake(receive_queue(port.id) + 1)

    def port_opened(self, port: Port) -> None:
        with self.locked():
            if port.guest_ready:
                self._tell(port, ConsoleEvent.PORT_OPEN, int(port.opened))

    # What the driver does.

    def ready(self, features: Feature) -> None:
        if not self.has(ConsoleFeature.MULTIPORT) and 0 in self.ports:
            self.ports[0].set_guest_open(True)

    def config_written(self, offset: int, data: bytes) -> None:
        # Some transports bring the whole configuration.
        byte = data[EMERG_WR - offset :][:1] if offset <= EMERG_WR else b""
        if not byte:
            return
        if self._emergency is not None:
            self._emergency(byte)
        elif 0 in self.ports:
            self.ports[0].output(byte)

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        if index == ConsoleQueue.CONTROL_RECEIVEQ:
            self._flush(queue)
        elif index == ConsoleQueue.CONTROL_TRANSMITQ:
            for chain in self.chains(queue):
                self._message(chain.read(CONSOLE_CONTROL.itemsize))
                chain.return_(0)
        elif (port := self.ports.get(port_of(index))) is None:
            # Buffers for a port that is not there stay where they are, output goes nowhere.
            if index % 2:
                for chain in self.chains(queue):
                    chain.return_(0)
        elif index % 2:
            port.drain(queue)
        else:
            port.fill(queue)

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        port = self.ports.get(port_of(index))
        if index % 2 and port is not None and index != ConsoleQueue.CONTROL_TRANSMITQ:
            port.forget_chain()

    def reset(self) -> None:
        self._control.clear()
        self._listening = False
        for port in self.ports.values():
            port.forget_driver()

    # Control messages.

    def _message(self, data: bytes) -> None:
        if len(data) < CONSOLE_CONTROL.itemsize:
            return
        id, event, value = np.frombuffer(data, CONSOLE_CONTROL)[0].tolist()
        if event == ConsoleEvent.DEVICE_READY:
            self._listening = value == 1
            for port in self.ports.values():
                self._announce(port)
            return
        found = self.ports.get(id)
        if found is None or not found.announced:
            log.debug("console: message %d for port %d, which is not there", event, id)
        elif event == ConsoleEvent.PORT_READY and value == 1:
            self._describe(found)
        elif event == ConsoleEvent.PORT_OPEN:
            found.set_guest_open(value == 1)
            self.wake(receive_queue(id))
        else:
            log.debug("console: message %d with value %d for port %d", event, value, id)

    def _announce(self, port: Port) -> None:
        if self._listening and not port.announced:
            port.announced = True
            self._tell(port, ConsoleEvent.DEVICE_ADD)

    def _describe(self, port: Port) -> None:
        port.guest_ready = True
        if port.console:
            self._tell(port, ConsoleEvent.CONSOLE_PORT, 1)
            if self.size is not None:
                record = np.array(self.size, CONSOLE_RESIZE).tobytes()
                self._tell(port, ConsoleEvent.RESIZE, 0, record)
        if port.name:
            self._tell(port, ConsoleEvent.PORT_NAME, 1, port.name.encode())
        if port.opened:
            self._tell(port, ConsoleEvent.PORT_OPEN, 1)

    def _tell(self, port: Port, event: ConsoleEvent, value: int = 0, extra: bytes = b"") -> None:
        message = np.array((port.id, event, value), CONSOLE_CONTROL).tobytes() + extra
        # The newest of its kind, behind what was said since.
        self._control.pop((port.id, event), None)
        self._control[port.id, event] = message
        self.wake(ConsoleQueue.CONTROL_RECEIVEQ)

    def _flush(self, queue: DeviceQueue) -> None:
        while self._control:
            queue.disable_notify()
            chain = queue.next_chain()
            if chain is None:
                if queue.enable_notify():
                    return
                continue
            if chain.writable_bytes < CONSOLE_CONTROL.itemsize:
                chain.return_(0)
                continue
            key = next(iter(self._control))
            message = self._control.pop(key)
            chain.return_(chain.write(message[: chain.writable_bytes]))


def check_size(cols: int, rows: int) -> tuple[int, int]:
    """The two, each from 0 to 65535."""
    if not (0 <= cols < 1 << 16 and 0 <= rows < 1 << 16):
        raise InvalidArgument(f"{cols} columns and {rows} rows; each takes 0 to 65535")
    return cols, rows


def receive_queue(id: int) -> int:
    """The queue in which port ``id`` receives; it transmits in the next one."""
    return 2 * id + 2 if id else 0


def port_of(index: int) -> int:
    """The port of a queue that is not a control queue."""
    return index // 2 - 1 if index > 1 else 0
