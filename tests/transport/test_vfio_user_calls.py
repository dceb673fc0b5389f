"""Commands of the server that wait for their answers, and commands of the client meanwhile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.transport.common import Echo
from virtring.queue import EventFd
from virtring.transport.unix import ProtocolError
from virtring.transport.vfio_user.message import Command, Connection, Message
from virtring.transport.vfio_user.session import Session


class Pair:
    """A session, and the client's end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.client = Connection(theirs)
        self.session = Session(Echo(), Connection(ours), EventFd())
        self.session.greeted = True
        self.failures: list[BaseException] = []

    def come(self, command: Command, payload: bytes = b"") -> Message:
        message = self.client.recv()
        assert message is not None
        assert (message.command, message.payload) == (command, payload)
        return message

    def answer(self, message: Message, payload: bytes) -> None:
        self.client.reply(message, payload)

    def beside(self, client: Callable[[], None]) -> threading.Thread:
        """Play the client in another thread."""

        def run() -> None:
            try:
                client()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.session.close()
    pair.client.close()
    assert pair.failures == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "inner first"])
def test_a_command_that_needs_a_call_during_a_call(pair: Pair, order: tuple[int, int]) -> None:
    """As when a driver sets a queue up again while a transfer of its old one is under way."""
    session = pair.session
    found: list[bytes] = []

    def reset(message: Message) -> bytes:
        found.append(session.call(Command.DMA_READ, b"inner"))
        return b""

    session.handlers[Command.DEVICE_RESET] = reset

    def client() -> None:
        asked = [pair.come(Command.DMA_READ, b"outer")]
        pair.client.command(5, Command.DEVICE_RESET, b"")
        asked.append(pair.come(Command.DMA_READ, b"inner"))
        for which in order:
            pair.answer(asked[which], b"first" if which == 0 else b"second")
        pair.come(Command.DEVICE_RESET)

    thread = pair.beside(client)
    assert session.call(Command.DMA_READ, b"outer") == b"first"
    assert found == [b"second"]
    thread.join()
    thread = pair.beside(lambda: pair.answer(pair.come(Command.DMA_WRITE, b"next"), b"third"))
    assert session.call(Command.DMA_WRITE, b"next") == b"third"
    thread.join()


@pytest.mark.parametrize("wrong", ["number", "command", "twice"])
def test_an_answer_to_nothing(pair: Pair, wrong: str) -> None:
    session = pair.session

    def reset(message: Message) -> bytes:
        return session.call(Command.DMA_READ, b"inner")

    session.handlers[Command.DEVICE_RESET] = reset

    def client() -> None:
        asked = pair.come(Command.DMA_READ, b"outer")
        if wrong == "twice":
            pair.client.command(5, Command.DEVICE_RESET, b"")
            pair.come(Command.DMA_READ, b"inner")
            pair.answer(asked, b"")
        elif wrong == "number":
            asked.id += 1
        else:
            asked.command = Command.DMA_WRITE
        pair.answer(asked, b"")

    thread = pair.beside(client)
    with pytest.raises(ProtocolError, match="an answer to nothing"):
        session.call(Command.DMA_READ, b"outer")
    thread.join()
    with pytest.raises(ProtocolError, match="an answer to nothing"):
        session.call(Command.DMA_READ, b"again")
