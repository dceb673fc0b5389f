"""The sending process: the driver. Reads the file straight into buffers of the guest memory."""

import os
from multiprocessing.connection import Connection

from virtring.cli.wire import DATA, HEADER, HEADER_STRIDE, NAP, TRAILER, Link, Report, new_checksum
from virtring.queue import RingDevice, Virtqueue, vring_new_virtqueue, wait_used


class Slot:
    """A header and a block of the guest memory."""

    def __init__(self, link: Link, index: int) -> None:
        self.header_addr = link.headers + index * HEADER_STRIDE
        self.block_addr = link.blocks + index * link.stride
        self.header = link.memory.view(self.header_addr, HEADER.size)
        self.block = link.memory.view(self.block_addr, link.stride)
        self.read = self.block[: link.block]


class Sender:
    """Keeps as many blocks on their way as there are slots."""

    def __init__(self, connection: Connection, link: Link) -> None:
        self.connection = connection
        self.call = link.call
        self.queue: Virtqueue = vring_new_virtqueue(
            0, link.config.size, 64, RingDevice(link.memory, link.config.features), True, False,
            link.config, notify=link.kick, name="transfer",
        )
        self.free = [Slot(link, index) for index in range(link.count)]

    def slot(self) -> Slot:
        """One that the receiver is done with. EOFError when the parent is gone."""
        # Nothing is ever sent to us while we work: what can be read is the end.
        if self.connection.poll(0):
            raise EOFError
        while not self.free:
            self.wait()
        return self.free.pop()

    def wait(self) -> None:
        """Take back what was used; sleep until something is. EOFError when the parent is gone."""
        while (taken := self.queue.get_buf()) is None:
            if not wait_used(self.queue, self.call, NAP) and self.connection.poll(0):
                raise EOFError
        self.free.append(taken[0])

    def send(self, slot: Slot, kind: int, length: int, offset: int) -> None:
        """Hand a filled slot over."""
        HEADER.pack_into(slot.header, 0, kind, length, offset)
        self.queue.add_outbuf_premapped(
            [(slot.header_addr, HEADER.size), (slot.block_addr, length)], slot
        )
        self.queue.kick()

    def finish(self) -> None:
        """Until the receiver has everything."""
        while self.queue.in_flight:
            self.wait()


def send_file(connection: Connection, link: Link, path: str) -> None:
    """Send the file; the answer is a :class:`Report`."""
    with open(path, "rb", buffering=0) as source:
        sender = Sender(connection, link)
        counter = link.counter(0)
        checksum = new_checksum()
        offset = 0
        connection.send("ready")
        connection.recv()
        while True:
            slot = sender.slot()
            length = os.readv(source.fileno(), [slot.read])
            if length == 0:
                break
            checksum.update(slot.block[:length])
            sender.send(slot, DATA, length, offset)
            offset += length
            counter[0] = offset
        digest = checksum.digest()
        slot.block[: len(digest)] = digest
        sender.send(slot, TRAILER, len(digest), offset)
        sender.finish()
    connection.send(Report(offset, checksum.hexdigest()))
