"""The devices and drivers that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from virtring.device import Device, VirtioDriver
from virtring.devices.balloon import Balloon
from virtring.devices.blk import Blk
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.devices.rng import Rng
from virtring.drivers.balloon import BalloonDriver
from virtring.drivers.blk import BlkDriver
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.net import NetDriver
from virtring.drivers.rng import RngDriver

#: Makes a device from the path of an image; its driver; bytes of the configuration that a driver
#: reads when no feature was agreed on.
BUNDLED: dict[str, tuple[Callable[[Path], Device], type[VirtioDriver], int]] = {
    "rng": (lambda _: Rng(), RngDriver, 0),
    "blk": (lambda path: Blk(path, num_queues=2), BlkDriver, 8),
    "net": (lambda _: Net(Echo(), pairs=2, mtu=1500), NetDriver, 0),
    "console": (lambda _: Console([Port(), Port()], size=(80, 25)), ConsoleDriver, 0),
    "balloon": (lambda _: Balloon(), BalloonDriver, 4),
}
