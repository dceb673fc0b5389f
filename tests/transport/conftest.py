"""Every transport of this process, with a split and a packed ring."""

import gc
from collections.abc import Iterator

import pytest

from tests.transport.common import LAYOUTS, Echo, Rig, bound
from virtring.spec.features import Feature
from virtring.transport.connect import KINDS


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> Iterator[None]:
    """Descriptors are counted after a collection each time: it need not look at all of pytest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(kind: str, layout: str) -> Iterator[Rig]:
    device = Echo(LAYOUTS[layout], shm=True, queue_size=8)
    rig = Rig(device, *bound(device, kind))
    assert (Feature.RING_PACKED in rig.vdev.features) == (layout == "packed")
    yield rig
    assert list(device.core.refusals) == []
