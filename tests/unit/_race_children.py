"""Somebody who scribbles over a ring while it is in use; importable for a spawned process."""

from __future__ import annotations

import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtring import GuestMemory, QueueConfig
from virtring.spec.dtypes import (
    VRING_DESC,
    VRING_PACKED_DESC,
    VRING_PACKED_DESC_EVENT,
    vring_avail,
    vring_used,
)

#: A column of numbers in the ring, and the senseless ones to put there.
Target = tuple[NDArray[Any], list[int]]


def columns(memory: GuestMemory, config: QueueConfig, tables: tuple[int, int]) -> list[Target]:
    """Every number that either side reads; ``tables``: address and bytes of the indirect tables."""
    base, size = memory.regions[0][:2]
    num = config.size

    def at(addr: int, dtype: np.dtype[np.void], n: int = 1) -> NDArray[np.void]:
        return np.frombuffer(memory.view(addr, dtype.itemsize * n), dtype)

    addrs = [0, base - 1, base, base + size - 1, base + size, 1 << 63, (1 << 64) - 1]
    lengths = [0, 1, 8, 16, 15, 16 * num + 16, size, size + 1, 0xFFFF_FFFF]
    flags = [0, 1, 2, 3, 4, 5, 6, 7, 1 << 7, 1 << 15, 1 << 7 | 1 << 15, 0xFFFF]
    # Neighbours as well, so that a wrong number may be a likely one.
    indices = [0, 1, 2, 3, num - 2, num - 1, num, 0x7FFF, 0x8000, 0xFFFF]
    if config.packed:
        desc = at(config.desc, VRING_PACKED_DESC, num)
        found: list[Target] = [(desc["id"], indices)]
        for area in (config.avail, config.used):
            event = at(area, VRING_PACKED_DESC_EVENT)
            found += [(event["off_wrap"], indices), (event["flags"], [0, 1, 2, 3, 0xFFFF])]
    else:
        desc = at(config.desc, VRING_DESC, num)
        avail, used = at(config.avail, vring_avail(num)), at(config.used, vring_used(num))
        found = [(desc["next"], indices), (avail["idx"], indices), (used["idx"], indices)]
        found += [(avail["ring"][0], indices), (avail["used_event"], indices)]
        found += [(used["ring"][0]["id"], [*indices, 1 << 31]), (used["ring"][0]["len"], lengths)]
        found += [(used["avail_event"], indices), (avail["flags"], [1]), (used["flags"], [1])]
    found += [(desc["addr"], addrs), (desc["len"], lengths), (desc["flags"], flags)]
    if tables[1]:
        table = at(tables[0], VRING_DESC, tables[1] // 16)
        found += [(table["addr"], addrs), (table["len"], lengths), (table["flags"], flags)]
        found += [(table["next"], indices)]
    return found


def scribble(
    memory: GuestMemory,
    config: QueueConfig,
    tables: tuple[int, int],
    go_on: Callable[[], bool],
) -> None:
    """Now senseless numbers, now what stood there, which may be old by then.

    One at a time or some neighbours, each for a while and half of the time: both sides are to meet
    sound chains, too, and numbers that change between two looks.
    """
    rng = random.Random(config.size)
    targets = columns(memory, config, tables)
    while go_on():
        column, senseless = rng.choice(targets)
        first = rng.randrange(len(column))
        part = column[first : first + rng.choice((1, 1, 2, 8))]
        before, wrong = part.copy(), rng.choice(senseless)
        for _ in range(rng.choice((1, 20, 400))):
            part[:] = wrong
            part[:] = before


def scribble_for_ever(
    memory: GuestMemory, config: QueueConfig, tables: tuple[int, int], begun: Connection
) -> None:
    """Until the process is killed."""
    begun.send(True)
    scribble(memory, config, tables, lambda: True)
