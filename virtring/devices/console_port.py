"""A port of the console device, as its host sees it."""

from collections.abc import Callable
from typing import Protocol

from virtring.errors import WrongState
from virtring.queue import Chain, DeviceQueue

#: Bytes taken from a chain at once; a driver can make chains as long as it likes.
PIECE = 1 << 16


def ignore(*_: object) -> None:
    """An output that nobody reads, an event that nobody wants."""


class PortOwner(Protocol):
    """What a port needs of its console."""

    def port_sent(self, port: "Port") -> None: ...
    def port_released(self, port: "Port") -> None: ...
    def port_opened(self, port: "Port") -> None: ...


class Port:
    """One port: bytes from the driver go to ``output(data)``, :meth:`send` gives it bytes.

    name: told to the driver of a console with several ports. console: for a terminal. opened: is
    the host's end open? on_open(port): the driver opened or closed its end (``guest_open``).
    on_room(port): the driver took bytes from ``pending``. ``output`` and these are called while
    queues are being looked at: they must not wait. An output that has enough calls :meth:`hold`.
    """

    def __init__(
        self,
        name: str = "",
        *,
        output: Callable[[bytes], object] = ignore,
        console: bool = False,
        opened: bool = True,
        on_open: Callable[["Port"], object] = ignore,
        on_room: Callable[["Port"], object] = ignore,
    ) -> None:
        self.id = -1
        self.name = name
        self.output = output
        self.console = console
        self.opened = opened
        self.on_open = on_open
        self.on_room = on_room
        self.guest_open = False
        self.held = False
        #: The driver was told of the port; and it has answered.
        self.announced = self.guest_ready = False
        self.owner: PortOwner | None = None
        self._input = bytearray()
        self._chain: Chain | None = None
        self._offset = 0

    def _owner(self) -> PortOwner:
        if self.owner is None:
            raise WrongState(f"port {self.name!r} belongs to no console")
        return self.owner

    # For the host, from any thread.

    @property
    def pending(self) -> int:
        """Bytes that the driver has not taken yet."""
        return len(self._input)

    def send(self, data: bytes) -> None:
        """Give bytes to the driver; they wait until it has its end open and buffers for them."""
        owner = self._owner()
        self._input += data
        owner.port_sent(self)

    def hold(self) -> None:
        """Call ``output`` no more for now: the driver's buffers wait."""
        self.held = True

    def release(self) -> None:
        """Go on with ``output``."""
        self.held = False
        self._owner().port_released(self)

    def open(self) -> None:
        """The host's end is open; the driver is told."""
        self.opened = True
        self._owner().port_opened(self)

    def close(self) -> None:
        """The host's end is closed; the driver is told."""
        self.opened = False
        self._owner().port_opened(self)

    # For the console.

    def fill(self, queue: DeviceQueue) -> None:
        """Put what is pending into the driver's buffers, as far as they go."""
        taken = False
        while self._input and self.guest_open:
            queue.disable_notify()
            chain = queue.next_chain()
            if chain is None:
                if queue.enable_notify():
                    break
                continue
            count = chain.write(self._input[: chain.writable_bytes])
            del self._input[:count]
            chain.return_(count)
            taken = True
        if taken:
            self.on_room(self)

    def drain(self, queue: DeviceQueue) -> None:
        """Hand what the driver wrote to ``output``, until nothing is left or it has enough."""
        while not self.held:
            if self._chain is None:
                queue.disable_notify()
                self._chain, self._offset = queue.next_chain(), 0
                if self._chain is None:
                    if queue.enable_notify():
                        return
                    continue
            if self._offset < self._chain.readable_bytes:
                data = self._chain.read(PIECE, self._offset)
                self._offset += len(data)
                self.output(data)
            else:
                chain, self._chain = self._chain, None
                chain.return_(0)

    def set_guest_open(self, value: bool) -> None:
        """The driver opened or closed its end."""
        if value != self.guest_open:
            self.guest_open = value
            self.on_open(self)

    def forget_chain(self) -> None:
        """The queue of the chain in hand is taken away."""
        self._chain = None

    def drop_chain(self) -> None:
        """The port goes: nobody wants the rest of what the driver wrote."""
        if self._chain is not None:
            self._chain.return_(0)
            self._chain = None

    def forget_driver(self) -> None:
        """The driver is gone; what it has not taken waits for the next one."""
        self.announced = self.guest_ready = False
        self._chain = None
        self.set_guest_open(False)
