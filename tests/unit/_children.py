"""What runs in other processes; importable, so that a spawned child finds it."""

import os
from multiprocessing.connection import Connection

from virtring.errors import VirtioError
from virtring.memory import GuestMemory, Region


def write_region(region: Region, text: bytes, answer: Connection) -> None:
    with memoryview(region) as view:
        seen = bytes(view[: len(text)])
        view[: len(text)] = text
    answer.send((seen, region.kind, region.size, region.offset))
    answer.close()


def receive_and_write(asker: Connection) -> None:
    region = asker.recv()
    memoryview(region)[:5] = b"piped"
    asker.send(os.getpid())
    asker.close()


def use_memory(memory: GuestMemory, addr: int, answer: Connection) -> None:
    seen = memory.read(addr, 4)
    memory.write(addr, b"pong")
    refused = ""
    try:
        memory.alloc(16)
    except VirtioError as error:
        refused = type(error).__name__
    answer.send((seen, refused, [row[:2] + row[3:] for row in memory.regions]))
    answer.close()
