"""Interrupts inside one process: level-triggered lines and messages, and who listens to them."""

from collections.abc import Callable
from threading import Lock

from virtring.device.work import Work
from virtring.errors import InvalidArgument

#: Where messages are written to: the address an x86 guest uses; any other would do.
MSI_ADDRESS = 0xFEE0_0000


class IrqLine:
    """A level-triggered line that devices share. It is high while any source says so.

    Handlers run on every :meth:`raised` that finds it high, one run at a time: what a source
    raises while they run is seen by another run. A source that stays high and that nobody handles
    disturbs nobody.
    """

    def __init__(self) -> None:
        self.sources: list[Callable[[], bool]] = []
        self.handlers: list[Callable[[], object]] = []
        self._work = Work()

    @property
    def level(self) -> bool:
        return any(source() for source in tuple(self.sources))

    def raised(self) -> None:
        """A source went up, or is up still though somebody dealt with it."""
        self._work.post("line", self._run)

    def _run(self) -> None:
        for handler in tuple(self.handlers):
            if self.level:
                handler()

    def request(self, handler: Callable[[], object]) -> None:
        """Call ``handler`` while the line is high; now, if it is (Linux ``request_irq``)."""
        self.handlers.append(handler)
        self.raised()

    def free(self, handler: Callable[[], object]) -> None:
        """Take a handler away (Linux ``free_irq``). InvalidArgument if it is not there."""
        if handler not in self.handlers:
            raise InvalidArgument(f"{handler!r} does not handle this line")
        self.handlers.remove(handler)


class InterruptController:
    """Lines by number, and messages: an address and 32 bits of data that stand for a handler."""

    def __init__(self) -> None:
        self._lines: dict[int, IrqLine] = {}
        self._messages: dict[int, Callable[[], object]] = {}
        self._next = 1
        self._lock = Lock()

    def line(self, number: int) -> IrqLine:
        """The line of that number."""
        with self._lock:
            return self._lines.setdefault(number, IrqLine())

    def alloc_msi(self, handler: Callable[[], object]) -> tuple[int, int]:
        """Address and data of a message that calls ``handler``."""
        with self._lock:
            data, self._next = self._next, (self._next + 1) & 0xFFFF_FFFF or 1
            self._messages[data] = handler
            return MSI_ADDRESS, data

    def free_msi(self, data: int) -> None:
        """A message that comes all the same goes nowhere."""
        with self._lock:
            self._messages.pop(data, None)

    def send_msi(self, addr: int, data: int) -> None:
        """A device wrote ``data`` to ``addr``. What nobody asked for is dropped."""
        handler = self._messages.get(data) if addr == MSI_ADDRESS else None
        if handler is not None:
            handler()
