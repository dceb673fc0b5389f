"""A file descriptor with its size and offset over a Unix socket; nothing received is trusted."""

import array
import os
import socket
import struct

from virtring.errors import InvalidArgument, PeerDied

#: magic, flags, reserved, size, offset; little-endian, 32 bytes.
HEADER = struct.Struct("<8sIIQQ")
MAGIC = b"VRregion"
FLAG_WRITABLE = 1

#: More than the one that is expected, so that extra ones are seen (and closed).
_FD_SPACE = socket.CMSG_SPACE(4 * array.array("i").itemsize)


def send(sock: socket.socket, fd: int, size: int, offset: int, writable: bool) -> None:
    """Send one descriptor and its header on a blocking AF_UNIX socket."""
    header = HEADER.pack(MAGIC, FLAG_WRITABLE if writable else 0, 0, size, offset)
    sent = socket.send_fds(sock, [header], [fd])
    if sent < len(header):
        sock.sendall(header[sent:])


def receive(sock: socket.socket) -> tuple[int, int, int, bool]:
    """(fd, size, offset, writable) from the other end; the caller owns ``fd``.

    Raises PeerDied when the socket ends, InvalidArgument when the message is not what
    :func:`send` sends. Descriptors that came along are closed then.
    """
    fds = array.array("i")
    try:
        data = _receive_message(sock, fds)
        while len(data) < HEADER.size:
            more = _receive_message(sock, fds, HEADER.size - len(data))
            data += more
        size, offset, writable = _parse(data, len(fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds[0], size, offset, writable


def _receive_message(
    sock: socket.socket, fds: "array.array[int]", want: int = HEADER.size
) -> bytes:
    # socket.recv_fds drops its flags in Python 3.11, and the descriptors must not be inherited.
    data, ancillary, flags, _ = sock.recvmsg(want, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise InvalidArgument("the message is longer, or has more descriptors, than a region's")
    if not data:
        raise PeerDied("the socket was closed before a region came")
    return data


def _parse(data: bytes, count: int) -> tuple[int, int, bool]:
    magic, flags, reserved, size, offset = HEADER.unpack(data)
    if magic != MAGIC or reserved or flags & ~FLAG_WRITABLE:
        raise InvalidArgument("the message does not begin with a region's header")
    if count != 1:
        raise InvalidArgument(f"{count} descriptors came with the region; it has 1")
    return size, offset, bool(flags & FLAG_WRITABLE)
