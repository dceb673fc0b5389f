"""Buffers in the hands of a user: filled before they are sent, read before they go back."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from virtring.errors import InvalidArgument
from virtring.rpmsg.wire import HEADER_SIZE

if TYPE_CHECKING:
    from virtring.rpmsg.transport import Transport


class TxBuffer:
    """A transmit buffer to be filled in place: ``view`` is a writable memoryview of the payload.

    Its length is the MTU. Send it with ``send_nocopy``, or give it back with :meth:`release`; the
    view is not to be used afterwards. As a context manager it is released unless it was sent.
    """

    def __init__(self, owner: "Transport", whole: memoryview, key: Any, aside: bool) -> None:
        self.owner = owner
        self.whole: memoryview | None = whole
        self.key = key
        #: The peer's buffer is in several pieces: what is in ``whole`` has to be copied there.
        self.aside = aside
        self.view = whole[HEADER_SIZE:]

    @property
    def held(self) -> bool:
        """Whether it is still the user's."""
        return self.whole is not None

    def taken(self) -> None:
        """It was sent or given back."""
        self.whole = None
        self.view = memoryview(b"")

    def release(self) -> None:
        """Give it back unsent. Raises InvalidArgument when it was sent or released before."""
        if not self.held:
            raise InvalidArgument("the buffer was sent or released before")
        self.owner.release_tx_buffer(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.held:
            self.release()


class RxBuffer:
    """A received message in place: ``data`` is a memoryview of the payload, ``src`` its sender.

    The other side could still write there: copy what must not change. :meth:`release` gives the
    buffer back to the other side, and the view is not to be used afterwards; a context manager
    does that at its end. ``key`` None: a copy, which holds no buffer.
    """

    def __init__(
        self, owner: "Transport", data: memoryview, src: int, dst: int, flags: int, key: Any
    ) -> None:
        self.owner = owner
        self.data = data
        self.src = src
        self.dst = dst
        self.flags = flags
        self.key = key
        self.held = True

    def release(self) -> None:
        """Give the buffer back. Raises InvalidArgument when it was released before."""
        if not self.held:
            raise InvalidArgument("the message was released before")
        self.owner.release_rx_buffer(self)
        self.held = False
        self.data = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.held:
            self.release()
