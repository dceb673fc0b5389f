"""What does an RPMsg message cost, both sides together, by the size of a batch and of a message?"""

import pytest

from benchmarks.loops import Measure
from virtring.rpmsg import Messages, create_link


@pytest.mark.parametrize("size", [64, 496])
@pytest.mark.parametrize("batch", [1, 32, 128])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_batches(measure: Measure, ring: str, batch: int, size: int) -> None:
    bus, link = create_link(packed=ring == "packed")
    target = link.device().create_ept(addr=2000)
    ept = bus.create_ept(dst=2000)
    rows, got = Messages(batch, size), Messages(batch, bus.rx_mtu)
    rows.count = batch
    rows.len[:] = size

    def there() -> None:
        ept.send_many(rows)
        assert target.recv_batch(got) == batch

    measure(there, batch)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_single_messages(measure: Measure, ring: str) -> None:
    bus, link = create_link(packed=ring == "packed")
    target = link.device().create_ept(addr=2000)
    ept = bus.create_ept(dst=2000)
    payload = bytes(64)

    def there() -> None:
        ept.send(payload)
        target.recv()

    measure(there, 1)
