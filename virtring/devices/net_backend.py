"""What is behind a network device: nothing but an echo, Python code, or a TAP device."""

import contextlib
import errno
import fcntl
import os
import select
import struct
from threading import Thread
from typing import TYPE_CHECKING

from virtring.device.packets import Packets
from virtring.errors import InvalidArgument, NoSpace, WrongState
from virtring.queue import EventFd

if TYPE_CHECKING:
    from virtring.devices.net import Net

TUN = "/dev/net/tun"
#: ioctl that makes the descriptor an interface, and the flags of ``struct ifreq`` for it
#: (Linux TUNSETIFF, IFF_TAP, IFF_NO_PI).
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFREQ = struct.Struct("16sH22x")

#: The longest frame and how many are read before they go to the driver.
FRAME = 65536
BURST = 64


class NetBackend:
    """The other side of the wire. A subclass overrides :meth:`transmit`.

    What comes in goes to :meth:`Net.receive`, from any thread.
    """

    net: "Net | None" = None

    def attach(self, net: "Net") -> None:
        """The device that this is behind. WrongState if there is another one already."""
        if self.net is not None:
            raise WrongState(f"{type(self).__name__} is behind another device already")
        self.net = net

    def transmit(self, pair: int, packets: Packets) -> None:
        """The driver sent these on a pair of queues; ``packets`` is valid until this returns.

        Must not wait. It may call :meth:`Net.receive`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything. Again is fine."""


class Echo(NetBackend):
    """Every packet goes back on the pair of queues it came from, in C, from buffer to buffer.

    While the driver has given no receive buffer, packets wait; those longer than all it has given
    are dropped.
    """

    def transmit(self, pair: int, packets: Packets) -> None:
        raise NotImplementedError("the device echoes itself, without calling its back end")


class Tap(NetBackend):
    """A TAP interface of this network namespace: what the host sends there is received.

    name: of the interface, made if it does not exist; by default the kernel chooses. Takes the
    rights to do so. Raises InvalidArgument when it cannot be had.
    """

    def __init__(self, name: str = "") -> None:
        self._stop = EventFd()
        self._thread: Thread | None = None
        try:
            self.fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"{TUN} cannot be opened: {error.strerror}") from error
        try:
            request = IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI)
            answer = fcntl.ioctl(self.fd, TUNSETIFF, request)
        except OSError as error:
            os.close(self.fd)
            raise InvalidArgument(f"no TAP interface {name!r}: {error.strerror}") from error
        self.name = IFREQ.unpack(answer)[0].rstrip(b"\0").decode()
        #: Packets that the interface did not take.
        self.refused = 0

    def attach(self, net: "Net") -> None:
        super().attach(net)
        self._thread = Thread(target=self._read, name=f"tap {self.name}", daemon=True)
        self._thread.start()

    def transmit(self, pair: int, packets: Packets) -> None:
        for packet in packets:
            try:
                os.write(self.fd, packet.data)
            except OSError:
                # An interface that is down, or full.
                self.refused += 1

    def _read(self) -> None:
        net = self.net
        assert net is not None
        packets = Packets(BURST, FRAME * 2)
        frame = memoryview(bytearray(FRAME))
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(self._stop.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop.fileno() in ready:
                return
            packets.clear()
            while len(packets) < BURST:
                try:
                    size = os.readv(self.fd, [frame])
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EINTR):
                        return
                    break
                try:
                    packets.append(frame[:size])
                except NoSpace:
                    net.receive(packets)
                    packets.clear()
                    packets.append(frame[:size])
            if len(packets):
                net.receive(packets)

    def close(self) -> None:
        if self.fd >= 0:
            self._stop.signal()
            if self._thread is not None:
                self._thread.join()
            fd, self.fd = self.fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)
            self._stop.close()
