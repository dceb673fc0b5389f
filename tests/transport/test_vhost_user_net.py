"""What is peculiar to net devices over vhost-user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transport.raw_front import ALL, RawFront
from tests.transport.vhost_user import served
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.spec.features import Feature
from virtring.spec.net import NetFeature
from virtring.spec.status import Status
from virtring.transport.vhost_user import Request
from virtring.transport.vhost_user.message import F_PROTOCOL_FEATURES, U64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_control_queue_kept_by_the_front_end(path: Path) -> None:
    """QEMU and DPDK do not pass it on, but the features that it is for."""
    kept = NetFeature.MQ | NetFeature.CTRL_RX | NetFeature.CTRL_VLAN | NetFeature.GUEST_ANNOUNCE
    with served(Net(Echo(), pairs=2), path), RawFront(path, ALL) as front:
        bits = int(Feature.VERSION_1) | int(kept) | F_PROTOCOL_FEATURES
        front.tell(Request.SET_FEATURES, U64.pack(bits))
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        front.tell(Request.SET_STATUS, U64.pack(int(status)))
        assert front.ask(Request.GET_STATUS) == U64.pack(int(status))
