"""Many buffers through one queue, to take indices and wrap counters round and round."""

from __future__ import annotations

from virtring.spec.features import Feature

from .ends import (
    BatchDeviceEnd,
    BatchDriverEnd,
    DeviceFactory,
    DriverFactory,
    LayoutKind,
    RingAddrs,
)


def run_many_buffers(
    make_driver: DriverFactory,
    make_device: DeviceFactory,
    kind: LayoutKind,
    num: int,
    features: Feature,
    *,
    total: int,
    batch: int,
    start: int = 0,
) -> None:
    """Send at least ``total`` buffers of two elements, ``batch`` at a time (2 * batch <= num).

    Both sides sleep before each batch, so each batch must be notified, in both directions.
    """
    base = 0x1000
    driver_area = base + 16 * num
    device_area = driver_area + -(-(6 + 2 * num) // 4) * 4
    tables = -(-(device_area + 6 + 8 * num) // 16) * 16
    data = tables + 16 * num * num
    memory = bytearray(data + 16 - base)
    addrs = RingAddrs(base, driver_area, device_area, tables, start)
    driver = make_driver(memory, base, kind, num, addrs, features)
    device = make_device(memory, base, kind, num, addrs, features)
    for first in range(0, total, batch):
        tokens = range(first, first + batch)
        assert device.enable_notify()
        requests = [([(data, 8)], [(data + 8, 8)], token) for token in tokens]
        if isinstance(driver, BatchDriverEnd):
            driver.add_many(requests)
        else:
            for out, in_, token in requests:
                driver.add(out, in_, token)
        assert driver.kick()
        done = []
        while (chain := device.pop()) is not None:
            assert list(chain.segments) == [(data, 8, False), (data + 8, 8, True)]
            done.append((chain.id, 8))
        assert driver.enable_cb()
        if isinstance(device, BatchDeviceEnd):
            device.push_many(done)
        else:
            for ident, written in done:
                device.push(ident, written)
        assert device.need_notify()
        assert [driver.get() for _ in tokens] == [(token, 8) for token in tokens]
        assert driver.get() is None
        assert driver.num_free == num
