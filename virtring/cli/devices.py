"""``virtring devices``: which devices there are, found by looking."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import IntFlag
from types import ModuleType

import click
from rich.console import Console
from rich.table import Table

import virtring.devices
import virtring.drivers
from virtring.device import Device, VirtioDriver
from virtring.rpmsg import RpmsgDevice, VirtioRpmsg
from virtring.spec.ids import DeviceID


@dataclass
class Entry:
    """One kind of device. features: the bits of its own that a driver of ours can use."""

    id: int
    name: str
    driver: str | None = None
    device: str | None = None
    features: list[str] = field(default_factory=list)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of a package, imported."""
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


def own_classes(package: ModuleType) -> Iterator[type]:
    """The classes that its modules define."""
    for module in modules(package):
        for thing in vars(module).values():
            if isinstance(thing, type) and thing.__module__ == module.__name__:
                yield thing


def entries() -> list[Entry]:
    """Every kind of device of which there is a half, sorted by id."""
    found: dict[int, Entry] = {}

    def entry(id: int) -> Entry:
        return found.setdefault(id, Entry(id, DeviceID(id).name.lower()))

    for cls in (*own_classes(virtring.devices), RpmsgDevice):
        if issubclass(cls, Device) and hasattr(cls, "device_id"):
            entry(int(cls.device_id)).device = cls.__name__
    for cls in (*own_classes(virtring.drivers), VirtioRpmsg):
        if issubclass(cls, VirtioDriver):
            for id in cls.id_table:
                row = entry(id.device)
                row.driver = cls.__name__
                row.features = [name_of(bit) for bit in cls.feature_table]
    return sorted(found.values(), key=lambda row: row.id)


def name_of(bit: int) -> str:
    """A feature bit by name, or as a number."""
    return (isinstance(bit, IntFlag) and bit.name) or f"{int(bit):#x}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list of records instead of a table.")
def devices(as_json: bool) -> None:
    """List the devices that virtring can be, and drive.

    The driver half finds its device on a bus; the device half goes behind any transport.
    'virtring demo' shows some of them at work.
    """
    rows = entries()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table()
    table.add_column("id", justify="right")
    for name in ("device", "driver half", "device half", "features of its own"):
        table.add_column(name)
    for row in rows:
        features = " ".join(row.features)
        table.add_row(str(row.id), row.name, row.driver or "-", row.device or "-", features)
    Console().print(table)
