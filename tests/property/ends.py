"""What the ring machine asks of the two ends; knows no implementation.

An adapter wraps a driver or a device in one of these protocols. The batch protocols are for ends
that can also do several buffers at one stroke; the machine uses them where they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from virtring.spec.features import Feature

#: Address and length in bytes.
Element = tuple[int, int]
#: Address, length in bytes, device-writable.
Segment = tuple[int, int, bool]
#: out, in_, token: the arguments of ``add``.
AddArgs = tuple[Sequence[Element], Sequence[Element], int]
LayoutKind = Literal["split", "packed"]


class RingFull(Exception):
    """``add`` found too few free descriptors and changed nothing. Adapters raise exactly this."""


@dataclass(frozen=True)
class RingAddrs:
    """Guest addresses of the ring, and of memory the driver end may put indirect tables in.

    ``tables`` has room for ``num`` tables of ``num`` descriptors, 16-byte aligned. ``start`` is
    the value with which both indices of a split ring begin; it is 0 unless ``starts`` of
    ``run_ring_machine`` says otherwise.
    """

    desc: int
    driver: int
    device: int
    tables: int
    start: int = 0


class PoppedChain(Protocol):
    """A buffer in the device's hands. ``segments`` lists readable elements before writable."""

    @property
    def id(self) -> int: ...

    @property
    def segments(self) -> Sequence[Segment]: ...


class DriverEnd(Protocol):
    """The driver. It is created first, on zeroed memory, and initialises the ring."""

    @property
    def num_free(self) -> int:
        """Free descriptors of the ring."""

    def add(self, out: Sequence[Element], in_: Sequence[Element], token: int) -> None:
        """Make a buffer available, visible on return. Raises :class:`RingFull`."""

    def kick(self) -> bool:
        """Whether the device must be notified; sends nothing (virtqueue_kick_prepare)."""

    def get(self) -> tuple[int, int] | None:
        """Token and bytes written of the next used buffer, or None."""

    def enable_cb(self) -> bool:
        """Ask for notifications. True: nothing is used, so it is safe to sleep."""

    def disable_cb(self) -> None:
        """Ask for no notifications."""

    def detach(self) -> list[int]:
        """Tokens of all buffers not got back; the ring is not used any more."""

    def reset(self, how: int, stop: Callable[[], None], start: Callable[[], None]) -> list[int]:
        """``stop`` the device, take back what is out, begin anew at index 0, ``start`` the device.

        The tokens of what was out. ``how`` is one of 0, 1, 2: ends may differ in what they do.
        """


@runtime_checkable
class BatchDriverEnd(DriverEnd, Protocol):
    """A driver that can also publish several buffers at once."""

    def add_many(self, requests: Sequence[AddArgs]) -> None:
        """All or nothing. Raises :class:`RingFull`."""


@runtime_checkable
class AheadDriverEnd(DriverEnd, Protocol):
    """A driver that takes several used buffers from the ring at once and hands them out singly."""

    @property
    def ahead(self) -> int:
        """Buffers taken from the ring, their descriptors free, that ``get`` has yet to give."""


class DeviceEnd(Protocol):
    """The device. It is created after the driver."""

    def pop(self) -> PoppedChain | None:
        """The next available buffer, or None."""

    def push(self, ident: int, written: int) -> None:
        """Give a buffer back, visible on return."""

    def need_notify(self) -> bool:
        """Whether the driver must be notified of what was pushed since the last call."""

    def enable_notify(self) -> bool:
        """Ask for notifications. True: nothing is available, so it is safe to sleep."""

    def disable_notify(self) -> None:
        """Ask for no notifications."""

    def stop(self) -> None:
        """Let go of the ring and of all that was popped."""

    def start(self) -> None:
        """Begin anew at index 0, on a ring that the driver has made anew."""


@runtime_checkable
class VoidDeviceEnd(DeviceEnd, Protocol):
    """A device that still has the chains which :meth:`stop` took from it."""

    @property
    def void(self) -> int:
        """How many there are."""

    def return_void(self) -> bool:
        """Try to give one back; whether the queue took it."""


@runtime_checkable
class BatchDeviceEnd(DeviceEnd, Protocol):
    """A device that can also give back several buffers at once."""

    def push_many(self, done: Sequence[tuple[int, int]]) -> None:
        """Id and bytes written of each, in this order. With IN_ORDER it may skip used entries."""


#: (memory, guest address of its first byte, layout, queue size, addresses, features) -> end.
DriverFactory = Callable[[bytearray, int, LayoutKind, int, RingAddrs, Feature], DriverEnd]
DeviceFactory = Callable[[bytearray, int, LayoutKind, int, RingAddrs, Feature], DeviceEnd]
