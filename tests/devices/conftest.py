"""Every device with its driver, over every transport and ring, in one thread and in two."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.devices import binding
from tests.devices.machine import Machine
from virtring.device import RING_OFFER
from virtring.spec.features import Feature

TRANSPORTS = ["loopback", "pci", "pci-intx", "mmio"]
OPTIONS = (Feature.RING_PACKED, Feature.EVENT_IDX, Feature.IN_ORDER)
RINGS = {
    "-".join(
        [
            "packed" if packed else "split",
            *(["event"] if event else []),
            *(["inorder"] if order else []),
        ]
    ): (RING_OFFER & ~(OPTIONS[0] | OPTIONS[1] | OPTIONS[2]))
    | (OPTIONS[0] if packed else Feature(0))
    | (OPTIONS[1] if event else Feature(0))
    | (OPTIONS[2] if order else Feature(0))
    for packed, event, order in itertools.product((False, True), repeat=3)
}
#: The device in the thread of the kick, or in one of its own: then all answers come later.
THREADS = ["straight", "later"]

MakeMachine = Callable[..., Machine]


@pytest.fixture(params=binding.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=binding.RINGS)
def ring(request: pytest.FixtureRequest) -> Feature:
    return binding.RINGS[request.param]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk's, of ``binding.SECTORS`` random sectors."""
    path = tmp_path / "disk"
    path.write_bytes(random.Random(7).randbytes(binding.SECTORS * 512))
    return path


@pytest.fixture
def make_machine() -> Iterator[MakeMachine]:
    """Makes machines; at the end all is unplugged, and nothing may be left allocated."""
    made: list[Machine] = []

    def make(
        kind: str = "loopback", ring: str = "packed-event", thread: str = "straight", **given: int
    ) -> Machine:
        pool = ThreadPoolExecutor(1, "device") if thread == "later" else None
        machine = Machine(kind, RINGS[ring], pool, **given)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.unplug()


@pytest.fixture(params=itertools.product(TRANSPORTS, RINGS, THREADS), ids="-".join)
def machine(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Machine:
    """All that a driver can meet."""
    return make_machine(*request.param)


@pytest.fixture(params=itertools.product(["split-event", "packed-event"], THREADS), ids="-".join)
def simple(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Machine:
    """For what has nothing to do with the transport."""
    return make_machine("loopback", *request.param)
