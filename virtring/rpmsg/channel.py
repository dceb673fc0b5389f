"""Channels, and the drivers they are matched with by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtring.errors import InvalidArgument
from virtring.rpmsg.endpoint import BACKLOG, BatchCallback, Callback, Endpoint
from virtring.rpmsg.wire import ADDR_ANY, encode_name

if TYPE_CHECKING:
    from virtring.rpmsg.bus import RpmsgBus


@dataclass(frozen=True)
class RpmsgDriver:
    """What serves channels of certain names (Linux ``struct rpmsg_driver``).

    names: one, or several. callback, batch_callback, backlog: of the endpoint that each channel
    gets, see :class:`Endpoint`. probe(channel): the channel is there and has its endpoint; an
    exception from it leaves the channel without a driver. remove(channel): it goes.
    """

    names: str | tuple[str, ...]
    callback: Callback | None = None
    batch_callback: BatchCallback | None = None
    probe: Callable[[Channel], object] | None = None
    remove: Callable[[Channel], object] | None = None
    backlog: int = BACKLOG

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            object.__setattr__(self, "names", (self.names,))
        if not self.names:
            raise InvalidArgument("a driver without a name matches nothing")
        for name in self.names:
            encode_name(name)
        if self.callback is not None and self.batch_callback is not None:
            raise InvalidArgument("a driver has a callback or a batch_callback, not both")

    def matches(self, name: str) -> bool:
        """Whether it serves channels of that name."""
        return name in self.names


class Channel:
    """A named pair of addresses (Linux ``struct rpmsg_device``); ``ept`` while it has a driver.

    ``src`` is ours, ``dst`` the other side's; ANY while not known. ``announce``: the other side is
    told when it comes and goes. ``priv`` is the driver's.
    """

    def __init__(self, bus: RpmsgBus, name: str, src: int, dst: int, announce: bool) -> None:
        self.bus = bus
        self.name = name
        self.src = src
        self.dst = dst
        self.announce = announce
        self.driver: RpmsgDriver | None = None
        self.ept: Endpoint | None = None
        self.priv: Any = None

    def similar(self, name: str, src: int, dst: int) -> bool:
        """Whether it is such a channel; ANY matches every address (Linux rpmsg_device_match)."""
        return (
            name == self.name
            and (src == ADDR_ANY or src == self.src)
            and (dst == ADDR_ANY or dst == self.dst)
        )

    def destroy(self) -> None:
        """The channel goes, and its endpoint; announced if its coming was."""
        self.bus.release_channel(self)

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} {self.src:#x} to {self.dst:#x}>"
