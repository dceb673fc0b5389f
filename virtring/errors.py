"""The one exception tree, and the meaning of the engine's result codes.

The layers below the queues return codes and never raise; :func:`engine_error` turns a code into
the exception that a caller sees. The numbers are those of ``virtring/ring/common.pxd``.
"""


class VirtioError(Exception):
    """Base of everything that virtring raises on purpose."""


class InvalidArgument(VirtioError, ValueError):
    """An argument is wrong; the message says what would be right. Nothing was changed."""


class AddressError(InvalidArgument):
    """A buffer or address range does not lie inside the guest memory, or not with these rights."""


class MessageTooLong(InvalidArgument):
    """A message has more bytes than a buffer of the other side takes (Linux: ``-EMSGSIZE``)."""


class NotSupported(VirtioError):
    """The operation needs a feature or a transport operation that is not there."""


class NoSpace(VirtioError):
    """Fewer descriptors are free than the buffer needs (Linux: ``-ENOSPC``). Nothing was added."""


class OutOfMemory(VirtioError, MemoryError):
    """The guest memory has no free stretch of the size that was asked for."""


class MemoryInUse(VirtioError, BufferError):
    """Memory cannot be closed or removed while something still points into it."""


class QueueClosed(VirtioError):
    """The queue or the region was closed; no call on it can work any more."""


class QueueBusy(VirtioError):
    """Another thread is inside a call on this side of the queue; a side belongs to one thread."""


class QueueBroken(VirtioError):
    """The queue was marked broken (Linux: ``-EIO``); reset it, or detach what it holds."""


class BadRing(QueueBroken):
    """The peer wrote something into the ring that cannot be right; the queue is now broken.

    ``index`` is the queue's index, ``position`` the ring position, ``value`` what stood there.
    """

    def __init__(self, message: str, *, position: int = -1, value: int = -1) -> None:
        super().__init__(message)
        self.position = position
        self.value = value


class BadUsedRing(BadRing):
    """What the device wrote is wrong: an id out of range or not in flight, an index that jumps."""


class BadChain(BadRing):
    """What the driver made available is wrong: a loop, a bad index, flag, length or address."""


class WrongState(VirtioError):
    """The call does not fit what the device or its driver is doing; nothing was changed."""


class FeaturesRejected(VirtioError):
    """The device did not accept the features that the driver chose (Linux: ``-ENODEV``)."""


class RequestFailed(VirtioError, OSError):
    """The device carried a request out and answered that it failed; ``status`` is its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WaitTimeout(VirtioError, TimeoutError):
    """The time given to a wait ran out."""


class PeerDied(VirtioError, ConnectionError):
    """The process on the other end of the ring is gone."""


class PeerClosed(VirtioError, EOFError):
    """The other end said that it is done, and everything it had sent was taken."""


#: Engine result code -> (exception, sentence). ``{pos}`` is a ring position or a row of a batch,
#: ``{val}`` the offending value, ``{aux}`` a second one; the queue puts its own name in front.
ENGINE_CODES: dict[int, tuple[type[VirtioError], str]] = {
    1: (NoSpace, "the buffer needs {val} descriptors and {aux} are free"),
    2: (QueueBroken, "the queue is broken: reset it, or detach_unused_buf() what it holds"),
    10: (BadUsedRing, "used entry {pos} names id {val}; a ring of {aux} has ids 0 to {aux} - 1"),
    11: (
        BadUsedRing,
        "used entry {pos} names id {val}, which is not the head of a buffer in flight",
    ),
    12: (BadUsedRing, "used.idx went from {pos} to {val}, but only {aux} buffers are in flight"),
    13: (
        BadUsedRing,
        "used entry {pos} names id {val} out of order, though IN_ORDER was negotiated",
    ),
    20: (BadChain, "avail.idx went from {pos} to {val}, more than the ring's {aux} entries"),
    21: (
        BadChain,
        "available entry {pos} names head {val}; a ring of {aux} has heads 0 to {aux} - 1",
    ),
    22: (BadChain, "available entry {pos} names head {val}, which the device still holds"),
    23: (
        BadChain,
        "a descriptor of the chain at {pos} has next {val}; the table has {aux} entries",
    ),
    24: (BadChain, "the chain at {pos} has more than {aux} descriptors: it loops or is too long"),
    25: (
        BadChain,
        "a descriptor of the chain at {pos} has address {val:#x} and length {aux},"
        " not inside the memory with the rights it needs",
    ),
    26: (BadChain, "a descriptor of the chain at {pos} has length 0 (address {val:#x})"),
    27: (BadChain, "the chain at {pos} has a readable descriptor behind a writable one"),
    28: (BadChain, "the chain at {pos} uses INDIRECT, which was not negotiated"),
    29: (BadChain, "the chain at {pos} has an INDIRECT descriptor inside an indirect table"),
    30: (
        BadChain,
        "the chain at {pos} has an indirect table of {val} bytes; it takes a multiple"
        " of 16, from 16 to 16 * {aux}",
    ),
    31: (BadChain, "the chain at {pos} sets INDIRECT together with NEXT"),
    32: (
        InvalidArgument,
        "id {val} (row {pos}) is not one the device holds: it was never popped or"
        " was returned before",
    ),
    33: (BadChain, "the chain at {pos} is cut off: descriptor {val} of it is not available"),
    34: (BadChain, "with the chain at {pos}, {val} descriptors are in flight in a ring of {aux}"),
    40: (AddressError, "row {pos} is a buffer at {val:#x} of {aux} bytes, not inside the memory"),
    41: (InvalidArgument, "row {pos} has {val} descriptors; a buffer of this queue has 1 to {aux}"),
    42: (
        InvalidArgument,
        "row {pos} has a readable descriptor behind a writable one (descriptor {val})",
    ),
    43: (InvalidArgument, "the chain at {pos} has {val} descriptors; the batch has room for {aux}"),
    44: (InvalidArgument, "row {pos} has length 0 (address {val:#x})"),
    45: (InvalidArgument, "row {pos} says {val} bytes were written; the chain has room for {aux}"),
    46: (
        InvalidArgument,
        "row {pos} has a descriptor with flags {val:#x}; it takes 2 (WRITE) or 0",
    ),
    47: (InvalidArgument, "row {pos} has {val} bytes in all; a buffer takes {aux} at most"),
}


def engine_error(code: int, name: str, pos: int = -1, val: int = -1, aux: int = -1) -> VirtioError:
    """The exception for an engine result code; ``name`` names the queue in the message."""
    cls, text = ENGINE_CODES[code]
    message = f"{name}: {text.format(pos=pos, val=val, aux=aux)}"
    if issubclass(cls, BadRing):
        return cls(message, position=pos, value=val)
    return cls(message)
