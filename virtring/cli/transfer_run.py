"""Runs a transfer: two processes and a ring between them, watched until the file is in place."""

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from virtring.cli.child import Child
from virtring.cli.failure import Failed
from virtring.cli.transfer_receiver import receive_file
from virtring.cli.transfer_sender import send_file
from virtring.cli.wire import DESCRIPTORS, DIGEST_BYTES, HEADER_STRIDE, Link, Report
from virtring.memory import BufferPool, GuestMemory
from virtring.queue import EventFd, RingDevice, vring_create_virtqueue
from virtring.spec.features import Feature

#: Seconds between two looks at the progress.
TICK = 0.1

#: Called with the bytes that are written.
Watch = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """What to transfer and how. ``block`` bytes, ``num`` ring entries."""

    source: Path
    target: Path
    size: int
    mode: int
    packed: bool
    block: int
    num: int
    force: bool


@dataclass(frozen=True)
class Outcome:
    """A finished transfer: bytes, seconds, and the checksum that both ends found."""

    size: int
    seconds: float
    checksum: str


def transfer_file(task: Task, watch: Watch) -> Outcome:
    """Copy the file through a ring between two new processes.

    The target gets its name when everything is there and both checksums agree; before that there is
    only a file beside it, which is removed when this fails. Raises Failed.
    """
    part = task.target.with_name(f".{task.target.name}.{secrets.token_hex(4)}.part")
    link, _keep = make_link(task)
    mode = stat.S_IMODE(task.mode) & 0o777
    try:
        with (
            Child("sender", send_file, link, str(task.source)) as sender,
            Child("receiver", receive_file, link, str(part), mode) as receiver,
        ):
            sender.receive()
            receiver.receive()
            start = time.monotonic()
            sender.send("go")
            receiver.send("go")
            progress = link.counter(1)
            reports = follow(sender, receiver, lambda: watch(progress[0]))
            seconds = time.monotonic() - start
            outcome = agree(task, reports, seconds)
            publish(part, task)
            receiver.send("named")
            return outcome
    except Failed as error:
        done = link.counter(1)[0]
        raise Failed(
            f"transfer: {error} ({done} of {task.size} bytes had been written);"
            f" {task.target} was not {'replaced' if task.target.exists() else 'made'}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
        link.kick.close()
        link.call.close()


def make_link(task: Task) -> tuple[Link, tuple[object, ...]]:
    """Guest memory with a ring, headers and blocks; and what owns these, to be kept."""
    count = task.num // DESCRIPTORS
    stride = -(-max(task.block, DIGEST_BYTES) // 4096) * 4096
    memory = GuestMemory.create(count * (stride + HEADER_STRIDE) + task.num * 32 + (1 << 16))
    features = Feature.VERSION_1 | Feature.EVENT_IDX
    if task.packed:
        features |= Feature.RING_PACKED
    # Only the process that made the memory allocates in it; the sender runs its driver on this
    # ring, so this queue does nothing but own the place.
    owner = vring_create_virtqueue(0, task.num, 64, RingDevice(memory, features), name="transfer")
    headers = BufferPool(memory, count, HEADER_STRIDE)
    blocks = BufferPool(memory, count, stride, align=4096)
    counters = memory.alloc(2 * HEADER_STRIDE, HEADER_STRIDE)
    link = Link(
        memory, owner.config, EventFd(), EventFd(), int(headers.addrs[0]), int(blocks.addrs[0]),
        count, task.block, blocks.stride, counters,
    )
    return link, (owner, headers, blocks)


def follow(sender: Child, receiver: Child, tick: Callable[[], None]) -> tuple[Report, Report]:
    """Both reports. Failed as soon as either process dies or gives up."""
    reports: dict[str, Report] = {}
    ends = {child.name: child for child in (sender, receiver)}
    while ends:
        handles = [
            handle
            for child in ends.values()
            for handle in (child.connection, child.process.sentinel)
        ]
        ready = wait(handles, TICK)
        for name, child in list(ends.items()):
            if child.connection in ready or child.process.sentinel in ready:
                reports[name] = child.receive()
                del ends[name]
        tick()
    return reports["sender"], reports["receiver"]


def agree(task: Task, reports: tuple[Report, Report], seconds: float) -> Outcome:
    """Both ends saw the same; else Failed."""
    sent, received = reports
    if sent != received:
        raise Failed(
            f"the sender read {sent.size} bytes with checksum {sent.checksum}, the receiver wrote"
            f" {received.size} with {received.checksum}"
        )
    if sent.size != task.size:
        raise Failed(f"{task.source} changed meanwhile: {sent.size} bytes instead of {task.size}")
    return Outcome(sent.size, seconds, sent.checksum)


def publish(part: Path, task: Task) -> None:
    """Give the finished file its name, at once and for good."""
    try:
        if task.force:
            os.replace(part, task.target)
        else:
            # Unlike a rename, a link does not replace what somebody else made meanwhile.
            try:
                os.link(part, task.target)
            except FileExistsError:
                raise
            except OSError:     # a file system without links
                if os.path.lexists(task.target):
                    raise FileExistsError from None
                os.replace(part, task.target)
    except FileExistsError:
        raise Failed(f"{task.target} was made by somebody else meanwhile") from None
    folder = os.open(task.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
