"""A host at the far end of a network device: answers ARP, pings and TFTP (RFC 826, 792, 1350)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from virtring.device.packets import Packets
from virtring.devices.net_backend import NetBackend

MAC = bytes.fromhex("020000000001")
HERE, GUEST = "10.9.8.1", "10.9.8.2"
ARP, IP, ICMP, UDP = 0x0806, 0x0800, 1, 17
RRQ, WRQ, DATA, ACK, ERROR, OACK = 1, 2, 3, 4, 5, 6
TFTP, PORT = 69, 7000


def checksum(data: bytes) -> int:
    """Of the Internet protocols (RFC 1071)."""
    words: tuple[int, ...] = struct.unpack(
        f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)
    )
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class NetHost(NetBackend):
    """``files``: what a guest may get by TFTP, and what it has put. Counts ``pings``."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.pings = 0
        self._name = ""
        self._block = 512

    def transmit(self, pair: int, packets: Packets) -> None:
        assert self.net is not None
        answers = [answer for packet in packets for answer in self._answer(bytes(packet))]
        if answers:
            self.net.receive(Packets.of(answers), pair)

    def _answer(self, frame: bytes) -> Iterator[bytes]:
        (kind,) = struct.unpack_from(">H", frame, 12)
        if kind == ARP and frame[38:42] == socket.inet_aton(HERE) and frame[20:22] == b"\0\1":
            sender = frame[22:32]
            here = MAC + socket.inet_aton(HERE)
            yield frame[6:12] + MAC + frame[12:20] + b"\0\2" + here + sender
        elif kind == IP and frame[30:34] == socket.inet_aton(HERE):
            length = 14 + int.from_bytes(frame[16:18], "big")
            start = 14 + 4 * (frame[14] & 15)
            yield from self._packet(frame, frame[start:length])

    def _packet(self, frame: bytes, data: bytes) -> Iterator[bytes]:
        if frame[23] == ICMP and data[0] == 8:
            self.pings += 1
            total = checksum(bytes(4) + data[4:])
            yield self._to(frame, ICMP, struct.pack(">HH", 0, total) + data[4:])
        elif frame[23] == UDP:
            source, to, _, _ = struct.unpack_from(">HHHH", data)
            answer = self._tftp(to, data[8:])
            if answer is not None:
                # Without a checksum, which UDP allows.
                head = struct.pack(">HHHH", PORT, source, 8 + len(answer), 0)
                yield self._to(frame, UDP, head + answer)

    @staticmethod
    def _to(frame: bytes, protocol: int, data: bytes) -> bytes:
        """An IP packet back to where ``frame`` came from."""
        length = 20 + len(data)
        ends = frame[30:34] + frame[26:30]
        head = struct.pack(">BBHHHBB", 0x45, 0, length, 0, 0, 64, protocol)
        total = checksum(head + b"\0\0" + ends)
        ip = head + struct.pack(">H", total) + ends
        return frame[6:12] + MAC + struct.pack(">H", IP) + ip + data

    def _tftp(self, to: int, data: bytes) -> bytes | None:
        (code,) = struct.unpack_from(">H", data)
        if to == TFTP and code in (RRQ, WRQ):
            name, _, *options = data[2:].rstrip(b"\0").split(b"\0")
            self._name = name.decode()
            named = dict(zip(options[0::2], options[1::2], strict=True))
            size = named.get(b"blksize", b"512")
            self._block = int(size)
            if code == WRQ:
                self.files[self._name] = b""
            return struct.pack(">H", OACK) + b"blksize\0" + size + b"\0"
        if to == PORT and code == ACK:
            return self._piece(int.from_bytes(data[2:4], "big"))
        if to == PORT and code == DATA:
            return self._take(int.from_bytes(data[2:4], "big"), data[4:])
        return None

    def _piece(self, acked: int) -> bytes | None:
        """The block behind the one that is acknowledged, if there is one."""
        file = self.files[self._name]
        if acked * self._block > len(file):
            return None
        part = file[acked * self._block : (acked + 1) * self._block]
        return struct.pack(">HH", DATA, acked + 1) + part

    def _take(self, number: int, part: bytes) -> bytes:
        have = self.files[self._name]
        # One that is sent again is there already.
        if len(have) == (number - 1) * self._block:
            self.files[self._name] = have + part
        return struct.pack(">HH", ACK, number)
