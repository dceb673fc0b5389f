"""Every transport of this process, both rings, every device that comes with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.bundled import BUNDLED
from tests.transport.common import LAYOUTS
from virtring.device import Device
from virtring.devices.blk import Blk
from virtring.transport.connect import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=BUNDLED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(name: str, tmp_path: Path) -> Iterator[Device]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 16))
    device = BUNDLED[name][0](path)
    yield device
    if isinstance(device, Blk):
        device.close()
