"""The receiving process: the device. Writes to the file straight from the guest memory."""

import contextlib
import os
from multiprocessing.connection import Connection

from virtring.cli.failure import Failed
from virtring.cli.wire import (
    DATA,
    DESCRIPTORS,
    HEADER,
    NAP,
    TRAILER,
    Link,
    Report,
    new_checksum,
)
from virtring.queue import Chain, DeviceQueue, wait_available


class Receiver:
    """Takes blocks in the order of the file and writes them to ``fd``."""

    def __init__(self, connection: Connection, link: Link, fd: int) -> None:
        self.connection = connection
        self.kick = link.kick
        self.queue = DeviceQueue(link.memory, link.config, call=link.call)
        self.queue.disable_notify()
        self.fd = fd
        self.counter = link.counter(1)
        self.checksum = new_checksum()
        self.size = 0

    def chain(self) -> Chain:
        """The next one; sleeps until there is one. EOFError when the parent is gone."""
        # Nothing is ever sent to us while we work: what can be read is the end.
        if self.connection.poll(0):
            raise EOFError
        while (chain := self.queue.next_chain()) is None:
            if not wait_available(self.queue, self.kick, NAP) and self.connection.poll(0):
                raise EOFError
        return chain

    def take(self) -> bool:
        """Do one chain; False when it was the trailer."""
        chain = self.chain()
        parts = chain.readable
        if len(parts) != DESCRIPTORS or len(parts[0]) != HEADER.size:
            raise Failed(f"{chain!r} is not a header and a block")
        header, data = parts
        # Copied once, then checked: the sender could still write there.
        fields: tuple[int, int, int] = HEADER.unpack(bytes(header))
        kind, length, offset = fields
        if kind not in (DATA, TRAILER) or length != len(data) or offset != self.size:
            raise Failed(
                f"a block of {len(data)} bytes came where byte {self.size} of the file was expected"
            )
        if kind == DATA:
            self.checksum.update(data)
            self.write(data)
        elif bytes(data) != self.checksum.digest():
            raise Failed("the checksums of the two ends differ")
        self.queue.return_(chain, 0)
        self.queue.signal()
        return kind == DATA

    def write(self, data: memoryview) -> None:
        """All of it, though the kernel may take it in pieces."""
        while len(data):
            done = os.pwritev(self.fd, [data], self.size)
            self.size += done
            data = data[done:]
        self.counter[0] = self.size


def receive_file(connection: Connection, link: Link, path: str, mode: int) -> None:
    """Make the new file ``path``, write to it what comes, and put it on disk; then a Report.

    The file is removed again when that fails.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        receiver = Receiver(connection, link, fd)
        connection.send("ready")
        connection.recv()
        while receiver.take():
            pass
        os.fsync(fd)
        connection.send(Report(receiver.size, receiver.checksum.hexdigest()))
        # The parent gives the file its name and says so; if it dies before, nobody will.
        connection.recv()
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)
