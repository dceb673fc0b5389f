"""Commands of the network driver to its device (virtio 1.4, 5.1.6.5)."""

import struct
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Lock

from virtring.errors import InvalidArgument, WaitTimeout, WrongState
from virtring.memory import BufferPool
from virtring.queue import Virtqueue
from virtring.spec.net import NetAck, NetCtrl


class Command(Future[bool]):
    """One command on its way: did the device acknowledge it with OK?"""

    def __init__(self, pool: BufferPool) -> None:
        super().__init__()
        self.pool = pool
        self.set_running_or_notify_cancel()


class NetControlQueue:
    """The control queue, driver side. Any number of commands, from any thread."""

    def __init__(self, vq: Virtqueue) -> None:
        self.vq = vq
        self._lock = Lock()
        self._sent: set[Command] = set()

    def start(self, group: NetCtrl, command: int, data: bytes = b"") -> Command:
        """Send a command without waiting. NoSpace when the queue is full."""
        out = bytes([group, command]) + data
        pool = BufferPool(self.vq.memory, 2, len(out), align=16)
        question, answer = pool.get(), pool.get()
        question.view[:] = out
        answer.len = 1
        answer.view[0] = 0xFF
        sent = Command(pool)
        with self._lock:
            self.vq.add_sgs([question], [answer], data=sent)
            self._sent.add(sent)
            kick = self.vq.kick_prepare()
        if kick:
            self.vq.notify()
        return sent

    def send(
        self, group: NetCtrl, command: int, data: bytes = b"", timeout: float | None = 5.0
    ) -> None:
        """Send a command and wait for the answer, ``timeout`` seconds (WaitTimeout).

        WrongState when the device does not acknowledge it.
        """
        try:
            done = self.start(group, command, data).result(timeout)
        except FutureTimeout:
            raise WaitTimeout(f"{group.name} {int(command)}: no answer in {timeout} s") from None
        if not done:
            raise WrongState(f"{group.name} {int(command)}: the device refused it")

    def used(self, vq: Virtqueue) -> None:
        """The queue's callback."""
        done: list[Command] = []
        with self._lock:
            while True:
                vq.disable_cb()
                while (got := vq.get_buf()) is not None:
                    done.append(got[0])
                if vq.enable_cb():
                    break
            self._sent.difference_update(done)
        for command in done:
            command.set_result(command.pool[1].view[0] == NetAck.OK)

    def fail(self, error: Exception) -> None:
        """The device is gone; nothing will be answered."""
        with self._lock:
            lost, self._sent = self._sent, set()
        for command in lost:
            command.set_exception(error)


def mac_tables(unicast: Sequence[bytes], multicast: Sequence[bytes]) -> bytes:
    """``struct virtio_net_ctrl_mac`` twice; InvalidArgument for an address of another length."""
    out = b""
    for table in (unicast, multicast):
        if any(len(mac) != 6 for mac in table):
            raise InvalidArgument("a MAC address has 6 bytes")
        out += struct.pack("<I", len(table)) + b"".join(table)
    return out
