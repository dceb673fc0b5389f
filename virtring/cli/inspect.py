"""``virtring inspect``: what is in a ring of another process, without disturbing it."""

import json
import mmap
from dataclasses import asdict

import click

from virtring.cli.failure import Failed
from virtring.errors import InvalidArgument, VirtioError
from virtring.memory import GuestMemory, Region
from virtring.queue import DeviceQueue, QueueConfig, describe
from virtring.spec.features import Feature


class Number(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number in decimal or, after 0x, in hexadecimal."""

    name = "number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            number = value if isinstance(value, int) else int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is no number like 256 or 0x1000", param, ctx)
        if number < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return number


NUMBER = Number()


def opened(memory: str, offset: int) -> mmap.mmap:
    """The file from ``offset`` on, mapped so that nothing here can change it."""
    try:
        with open(memory, "rb") as file:
            file.seek(0, 2)
            size = file.tell() - offset
            if size <= 0:
                raise Failed(f"{memory} has no bytes from {offset:#x} on")
            return mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=offset,
            )
    except ValueError as error:
        raise Failed(f"{memory} cannot be mapped from {offset:#x} on: {error}") from None
    except OSError as error:
        raise Failed(f"{memory} cannot be opened: {error.strerror}") from None


@click.command()
@click.argument("memory", type=click.Path())
@click.option("--size", type=NUMBER, required=True, help="Entries of the ring.")
@click.option("--desc", type=NUMBER, required=True, help="Guest address of the descriptors.")
@click.option("--avail", type=NUMBER, required=True, help="... of the avail ring (driver area).")
@click.option("--used", type=NUMBER, required=True, help="... of the used ring (device area).")
@click.option("--base", type=NUMBER, default=0, help="Guest address of the file's first byte.")
@click.option("--offset", type=NUMBER, default=0, help="Where in the file the memory begins.")
@click.option("--packed", is_flag=True, help="A packed ring; needs --position.")
@click.option(
    "--position", type=NUMBER, default=None,
    help="How far the device has come, as GET_VRING_BASE tells it. Split: by default used.idx.",
)
@click.option("--no-event-idx", is_flag=True, help="EVENT_IDX was not negotiated.")
@click.option("--limit", type=NUMBER, default=64, show_default=True, help="Descriptors to list.")
@click.option("--json", "as_json", is_flag=True, help="Print plain data instead of tables.")
def inspect(
    memory: str, size: int, desc: int, avail: int, used: int, base: int, offset: int, packed: bool,
    position: int | None, no_event_idx: bool, limit: int, as_json: bool,
) -> None:
    """Show a live ring: descriptors, indices, and who waits for whom.

    MEMORY is the file that holds the guest's memory: a dump, or a memfd that a process shares, such
    as /proc/PID/fd/N. It is only read. 'virtring serve -v' tells size and addresses of each ring.
    Exit codes: 0 shown, 1 MEMORY cannot be read or holds no such ring, 2 wrong usage.

    \b
    Example:
      virtring inspect /proc/4711/fd/9 --size 256 --desc 0x7a000 --avail 0x7b000 --used 0x7c000
    """
    if packed and position is None:
        raise click.UsageError("a packed ring does not tell how far it is: give --position")
    features = Feature.VERSION_1 | Feature.INDIRECT_DESC
    if packed:
        features |= Feature.RING_PACKED
    if not no_event_idx:
        features |= Feature.EVENT_IDX
    if offset % mmap.ALLOCATIONGRANULARITY:
        raise click.UsageError(
            f"--offset {offset:#x} is no multiple of {mmap.ALLOCATIONGRANULARITY:#x}, as it must be"
        )
    try:
        config = QueueConfig(size, desc, avail, used, features, 0, "ring")
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from None
    mapped = opened(memory, offset)
    region = Region.from_buffer(mapped)
    guest = GuestMemory()
    try:
        guest.add_region(base, region)
        queue = DeviceQueue(guest, config)
        if position is None:
            position = int.from_bytes(guest.read(used + 2, 2), "little")
        queue.restore(position)
    except VirtioError as error:
        raise Failed(str(error)) from error
    found = describe(queue, limit=limit)
    click.echo(json.dumps(asdict(found), indent=2, default=str) if as_json else str(found))
    queue.close()
