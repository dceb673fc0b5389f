"""What does a buffer cost by single calls, with an object as token?"""

import pytest

from benchmarks.loops import RINGS, Measure
from virtring import Batch, BufferPool, create_pair


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_chain_objects(measure: Measure, ring: str) -> None:
    """add_outbuf, kick_prepare, next_chain, return_, get_buf: all objects."""
    driver, device = create_pair(256, packed=RINGS[ring])
    buffer = BufferPool(driver.memory, 1, 64).get()

    def run() -> None:
        driver.add_outbuf(buffer)
        driver.kick_prepare()
        chain = device.next_chain()
        assert chain is not None
        device.return_(chain, 0)
        used = driver.get_buf()
        assert used is not None
        assert used[0] is buffer

    measure(run, 1)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_device_by_batches_of_one(measure: Measure, ring: str) -> None:
    """add_outbuf, kick_prepare, pop, push, get_buf: the driver by calls, the device in columns."""
    driver, device = create_pair(256, packed=RINGS[ring])
    buffer = BufferPool(driver.memory, 1, 64).get()
    popped = Batch(1)

    def run() -> None:
        driver.add_outbuf(buffer)
        driver.kick_prepare()
        device.pop(popped)
        device.push(popped)
        used = driver.get_buf()
        assert used is not None
        assert used[0] is buffer

    measure(run, 1)
