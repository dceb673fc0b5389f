"""The thread that serves a bus behind a virtio transport."""

import logging
import threading
from collections.abc import Callable

from virtring.rpmsg.bus import RpmsgBus

log = logging.getLogger(__name__)


class Pump:
    """Hands out a bus's messages as they come, where Linux does so from the interrupt.

    A thread of its own: kicks and interrupts arrive in threads that hold locks of the device, and
    an endpoint's callback may send, wait and take locks of its user. What a callback raises is
    logged. ``begin()`` is the first thing it does; ``broken(reason)`` is called when the other side
    broke a queue. It ends when the bus is shut, and closes it.
    """

    def __init__(
        self, bus: RpmsgBus, begin: Callable[[], object], broken: Callable[[str], object]
    ) -> None:
        self.bus = bus
        self._begin = begin
        self._broken = broken
        self._thread = threading.Thread(target=self._run, name="rpmsg", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, but not in one of the callbacks that it runs."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        step = self._begin
        while not self.bus.closed:
            try:
                step()
            except Exception as error:
                if not self.bus.closed and not self._go_on(error):
                    break
            step = self._serve
        try:
            self.bus.close()
        except Exception:
            log.exception("a driver's remove() failed")

    def _serve(self) -> None:
        self.bus.wait_rx(self.bus.process, None)

    def _go_on(self, error: Exception) -> bool:
        """Whether it was a callback that failed, and not a queue."""
        port = self.bus.port
        if port.rvq.is_broken or port.svq.is_broken:
            self._broken(str(error))
            return False
        log.error("a callback failed", exc_info=error)
        return not (port.rvq.is_closed or port.svq.is_closed)
