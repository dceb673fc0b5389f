"""What a front end has said of one ring, and the descriptors it gave for it."""

import logging
import os
import sys
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: What an eventfd takes.
ONE = (1).to_bytes(8, sys.byteorder)


def drain(fd: int) -> bool:
    """Take the count out of an eventfd that is readable, whoever set it up.

    False when no more can come: a pipe whose other end is closed, or something else altogether.
    """
    try:
        return bool(os.read(fd, 8))
    except BlockingIOError:
        return True
    except OSError as error:
        log.warning("a kick descriptor cannot be read: %s", error)
        return False


@dataclass
class Vring:
    """One ring. Addresses are the front end's; descriptors are ours to close."""

    index: int
    num: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    #: Guest address at which used-ring writes are logged, None for not.
    log: int | None = None
    has_addresses: bool = False
    enabled: bool = False
    started: bool = False
    #: Where it was stopped in this session, as GET_VRING_BASE was told.
    stopped: int | None = None
    kick: int = -1
    call: int = -1
    err: int = -1

    def set_fd(self, name: str, fd: int) -> None:
        """Keep ``fd`` (or -1) as kick, call or err; what was there is closed."""
        old = getattr(self, name)
        setattr(self, name, fd)
        if old >= 0:
            os.close(old)

    def interrupt(self) -> None:
        """Tell the front end that buffers were used."""
        self._signal(self.call)

    def report_error(self) -> None:
        """Tell the front end that the ring is broken."""
        self._signal(self.err)

    def _signal(self, fd: int) -> None:
        if fd < 0:
            return
        try:
            os.write(fd, ONE)
        except BlockingIOError:
            # The count is at its end: the front end has a notification waiting.
            return
        except OSError as error:
            # A pipe that nobody reads, or a descriptor of something else.
            log.warning("ring %d: the front end cannot be told: %s", self.index, error)

    def forget(self) -> None:
        """As before the first message about it."""
        for name in ("kick", "call", "err"):
            self.set_fd(name, -1)
        self.num = self.base = self.desc = self.used = self.avail = 0
        self.log = self.stopped = None
        self.has_addresses = self.enabled = self.started = False
