"""The vfio-user server: a PCI function of ours in the machine of another process, such as QEMU."""

import selectors
import socket

from virtring.device import Device
from virtring.transport.unix import SocketServer
from virtring.transport.vfio_user.message import Connection
from virtring.transport.vfio_user.session import Session, Stopped


class VfioUserServer(SocketServer):
    """``device`` as a PCI function behind a socket; :meth:`run` serves until :meth:`stop`.

    Every client finds the device anew. Its queues are looked at in the thread of :meth:`run`
    alone, whoever else has work for it. Memory that the client shares is used where it is; the
    rest is read and written by messages, which is slow.

    path: of the socket, made here and removed by close(). vectors: MSI-X messages, by default one a
    queue and one for configuration changes; 0 for a function that has INTx only.
    """

    def __init__(self, device: Device, path: str, *, vectors: int | None = None) -> None:
        super().__init__(path)
        self.device = device
        self.vectors = vectors

    def serve(self, sock: socket.socket) -> bool:
        session = Session(self.device, Connection(sock), self.stopping, self.vectors)
        try:
            with selectors.DefaultSelector() as selector:
                for what in (session.connection, session.work, self.stopping):
                    selector.register(what, selectors.EVENT_READ)
                while True:
                    ready = {key.fileobj for key, _ in selector.select()}
                    if self.stopping in ready:
                        return False
                    if session.work in ready:
                        session.run_work()
                    if session.connection in ready and not session.handle():
                        return True
        except Stopped:
            return False
        finally:
            session.close()
