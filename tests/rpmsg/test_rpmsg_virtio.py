"""RPMsg as a virtio device and its driver, over every transport of this process."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit._rings import Raw
from virtring.device import VirtioBus, VirtioDevice
from virtring.errors import InvalidArgument, NoSpace, QueueBroken, QueueClosed, WaitTimeout
from virtring.rpmsg import (
    Channel,
    DeviceBus,
    DriverBus,
    Endpoint,
    Messages,
    RpmsgDevice,
    RpmsgDriver,
    RpmsgFeature,
    VirtioRpmsg,
)
from virtring.rpmsg.virtio_device import OFFER
from virtring.spec.features import Feature
from virtring.spec.status import Status
from virtring.transport.connect import KINDS, connect

LAYOUTS = {"split": OFFER & ~Feature.RING_PACKED, "packed": OFFER}
SIZE = 8
PATIENCE = 20.0


def until(condition: Callable[[], Any]) -> Any:
    """What ``condition`` gives, once that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)
    return found


def upper(ept: Endpoint, data: bytes, src: int) -> None:
    ept.sendto(data.upper(), src)


class Rig:
    """A device behind a transport, and its bound driver."""

    def __init__(
        self,
        kind: str,
        layout: str,
        *,
        services: tuple[RpmsgDriver, ...] = (),
        drivers: tuple[RpmsgDriver, ...] = (),
        here: tuple[RpmsgDriver, ...] = (),
        **options: Any,
    ) -> None:
        options.setdefault("timeout", 5.0)
        options.setdefault("ring_features", LAYOUTS[layout])
        self.device = RpmsgDevice(
            services, drivers, queue_size=SIZE, **options
        )

        class Driver(VirtioRpmsg):
            services = here
            timeout = options["timeout"]

        self.kind = Driver
        self.bus = VirtioBus()
        self.bus.register_driver(Driver)
        self.vdev: VirtioDevice = connect(self.device, kind)
        self.bus.register_device(self.vdev)

    @property
    def driver(self) -> VirtioRpmsg:
        assert isinstance(self.vdev.driver, VirtioRpmsg)
        return self.vdev.driver

    @property
    def near(self) -> DriverBus:
        return self.driver.bus

    @property
    def far(self) -> DeviceBus:
        assert self.device.bus is not None
        return self.device.bus

    def channel(self, bus: DriverBus | DeviceBus, name: str) -> tuple[Channel, Endpoint]:
        """The channel of that name, once it is there and has its driver."""
        found: Channel = until(
            lambda: (one := bus.find_channel(name)) is not None and one.ept is not None and one
        )
        assert found.ept is not None
        return found, found.ept


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(kind: str, layout: str) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(kind, layout, **options))
        assert (Feature.RING_PACKED in made[-1].vdev.features) == (layout == "packed")
        return made[-1]

    before = threading.active_count()
    yield make
    for one in made:
        if one.vdev in one.bus.devices:
            one.bus.unregister_device(one.vdev)
        one.device.detach()
        assert list(one.device.core.refusals) == []
    until(lambda: threading.active_count() == before)


def test_services_of_the_device_and_of_the_driver(rig: Callable[..., Rig]) -> None:
    here = rig(
        services=(RpmsgDriver("upper", upper),),
        drivers=(RpmsgDriver("lower", lambda ept, data, src: ept.sendto(data.lower(), src)),),
        here=(RpmsgDriver("upper"),),
    )
    assert here.near.has_ns
    assert here.far.has_ns
    _, ept = here.channel(here.near, "upper")
    for size in (0, 1, 496):
        ept.send(b"x" * size)
        assert ept.recv(PATIENCE)[0] == b"X" * size

    own = here.near.create_channel("lower", announce=True, driver=RpmsgDriver("lower"))
    assert own.ept is not None
    far, _ = here.channel(here.far, "lower")
    assert far.dst == own.src
    own.ept.sendto(b"SHOUT", far.src)
    assert own.ept.recv(PATIENCE) == (b"shout", far.src)

    own.destroy()
    until(lambda: here.far.find_channel("lower") is None)
    for channel in list(here.far.channels):
        channel.destroy()
    until(lambda: not here.near.channels)


def test_without_name_service_nothing_is_announced(rig: Callable[..., Rig]) -> None:
    here = rig(services=(RpmsgDriver("upper", upper),), features=0)
    assert not here.near.has_ns
    assert not here.vdev.has_feature(RpmsgFeature.NS)
    far, _ = here.channel(here.far, "upper")
    ept = here.near.create_ept()
    ept.sendto(b"still there", far.src)
    assert ept.recv(PATIENCE)[0] == b"STILL THERE"
    assert not here.near.channels


@pytest.mark.parametrize("extra", [Feature(0), Feature.IN_ORDER], ids=["any-order", "in-order"])
def test_echo_in_batches_arrives_in_order(
    rig: Callable[..., Rig], layout: str, extra: Feature
) -> None:
    def echo(ept: Endpoint, rows: Messages, start: int, stop: int) -> None:
        rows.dst[start:stop] = rows.src[start:stop]
        assert ept.sendto_many(rows, start, stop - start) == stop - start

    here = rig(
        services=(RpmsgDriver("echo", batch_callback=echo),),
        here=(RpmsgDriver("echo"),),
        ring_features=LAYOUTS[layout] | extra,
    )
    assert (Feature.IN_ORDER in here.vdev.features) == bool(extra)
    _, ept = here.channel(here.near, "echo")
    rows, got = Messages(5, 64), Messages(16)
    came: list[bytes] = []
    sent: list[bytes] = []
    for number in range(100):
        rows.count = 0
        for row in range(5):
            sent.append(b"%d of batch %d" % (row, number))
            rows.append(sent[-1])
        assert ept.send_many(rows) == 5
        while len(came) < len(sent):
            assert ept.recv_batch(got, PATIENCE)
            came += map(got.payload, range(len(got)))
    assert came == sent
    assert sum(here.near.counters.dropped.values()) == 0
    assert sum(here.far.counters.dropped.values()) == 0


@pytest.mark.parametrize("side", ["driver", "device"])
def test_a_full_ring_refuses_or_waits(rig: Callable[..., Rig], side: str) -> None:
    here = rig(timeout=0.05)
    sender, receiver = (here.near, here.far) if side == "driver" else (here.far, here.near)
    target = receiver.create_ept(addr=2000)
    ept = sender.create_ept(dst=2000)
    # Whoever holds the lock keeps the other side's thread from taking messages.
    with receiver.rx_lock:
        for number in range(SIZE):
            ept.trysend(b"%d" % number)
        with pytest.raises(NoSpace):
            ept.trysend(b"more")
        with pytest.raises(WaitTimeout):
            ept.send(b"more")
    sender.timeout = PATIENCE
    for number in range(SIZE, 3 * SIZE):
        ept.send(b"%d" % number)
    for number in range(3 * SIZE):
        assert target.recv(PATIENCE)[0] == b"%d" % number


@pytest.mark.parametrize("how", ["remove", "reset"])
def test_the_end_while_endpoints_are_in_use(rig: Callable[..., Rig], how: str) -> None:
    gone: list[str] = []

    def near_gone(channel: Channel) -> None:
        gone.append("near")

    def far_gone(channel: Channel) -> None:
        gone.append("far")

    here = rig(
        services=(RpmsgDriver("upper", upper, remove=far_gone),),
        here=(RpmsgDriver("upper", remove=near_gone),),
    )
    _, ept = here.channel(here.near, "upper")
    near, far = here.near, here.far
    # Held over the end: a message on each side, a transmit buffer on each side.
    quiet, deaf = near.create_ept(addr=3000), far.create_ept(addr=3000)
    with near.rx_lock:
        deaf.sendto(b"held here", 3000)
        held = [quiet.recv_hold(PATIENCE)]
    with far.rx_lock:
        quiet.sendto(b"held there", 3000)
        held.append(deaf.recv_hold(PATIENCE))
    lent = [quiet.get_tx_buffer(), deaf.get_tx_buffer()]
    ended: list[str] = []

    def exchange() -> None:
        ept.send(b"x" * 100)
        ept.recv()

    def flood(bus: DriverBus | DeviceBus) -> Callable[[], None]:
        one = bus.create_ept()
        return lambda: one.sendto(b"nobody", 99)

    def run(name: str, step: Callable[[], object]) -> None:
        try:
            while True:
                step()
        except QueueClosed:
            ended.append(name)

    jobs: list[tuple[str, Callable[[], object]]] = [
        ("exchange", exchange),
        ("near recv", quiet.recv),
        ("far recv", deaf.recv),
        ("near flood", flood(near)),
        ("far flood", flood(far)),
    ]
    threads = [threading.Thread(target=run, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    until(lambda: far.counters.dropped["no_endpoint"] > 100)
    until(lambda: near.counters.dropped["no_endpoint"] > 100)
    if how == "remove":
        here.bus.unregister_device(here.vdev)
    else:
        # As another transport would, while the driver knows nothing of it.
        here.device.core.reset()
        until(lambda: far.closed and "far" in gone)
        here.bus.unregister_device(here.vdev)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    until(lambda: len(gone) == 2)
    assert sorted(ended) == sorted(name for name, _ in jobs)
    assert here.device.bus is None
    assert [bytes(one.data) for one in held] == [b"held here", b"held there"]
    for message in held:
        message.release()
    for buffer in lent:
        buffer.release()
    with pytest.raises(QueueClosed):
        ept.send(b"late")
    here.device.core.refusals.clear()


def test_unbound_and_bound_again(rig: Callable[..., Rig]) -> None:
    here = rig(services=(RpmsgDriver("upper", upper),), here=(RpmsgDriver("upper"),))
    for number in range(4):
        _, ept = here.channel(here.near, "upper")
        ept.send(b"round %d" % number)
        assert ept.recv(PATIENCE)[0] == b"ROUND %d" % number
        before = here.near
        if number % 2:
            here.bus.unregister_driver(here.kind)
            assert here.device.bus is None
            here.bus.register_driver(here.kind)
        else:
            here.bus.freeze(here.vdev)
            assert here.vdev.config.get_status(here.vdev) == Status(0)
            here.bus.restore(here.vdev)
        assert here.near is not before
        assert before.closed


def test_drivers_registered_later_survive_sleep(rig: Callable[..., Rig]) -> None:
    here = rig(services=(RpmsgDriver("upper", upper),))
    here.near.register_driver(RpmsgDriver("upper"))
    here.bus.freeze(here.vdev)
    here.bus.restore(here.vdev)
    _, ept = here.channel(here.near, "upper")
    ept.send(b"awake")
    assert ept.recv(PATIENCE)[0] == b"AWAKE"


def test_removal_in_a_callback(rig: Callable[..., Rig]) -> None:
    done = threading.Event()

    def leave(ept: Endpoint, data: bytes, src: int) -> None:
        here.bus.unregister_device(here.vdev)
        done.set()

    here = rig(services=(RpmsgDriver("upper", upper),), here=(RpmsgDriver("upper", leave),))
    _, ept = here.channel(here.near, "upper")
    ept.send(b"now")
    assert done.wait(PATIENCE)
    until(lambda: not ept.bus.channels)
    assert here.device.bus is None


def test_a_callback_that_fails_stops_nothing(
    rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    def picky(ept: Endpoint, data: bytes, src: int) -> None:
        if data == b"bad":
            raise ValueError("not this one")
        ept.sendto(data.upper(), src)

    here = rig(services=(RpmsgDriver("picky", picky),), here=(RpmsgDriver("picky"),))
    _, ept = here.channel(here.near, "picky")
    with caplog.at_level(logging.ERROR):
        for data in (b"bad", b"good", b"bad", b"better"):
            ept.send(data)
        assert ept.recv(PATIENCE)[0] == b"GOOD"
        assert ept.recv(PATIENCE)[0] == b"BETTER"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "not this one", "not this one",
    ]


def test_garbage_from_the_driver_needs_a_reset(rig: Callable[..., Rig], layout: str) -> None:
    here = rig(services=(RpmsgDriver("upper", upper),), here=(RpmsgDriver("upper"),))
    _, ept = here.channel(here.near, "upper")
    far = here.far
    svq = here.near.port.svq
    with far.rx_lock:
        ept.send(b"never read")
        ring = Raw(here.vdev.memory, svq.config)
        ring.desc["addr"][:] = 1 << 60
    until(lambda: Status.NEEDS_RESET in here.vdev.config.get_status(here.vdev))
    until(lambda: far.closed)
    with pytest.raises((QueueClosed, QueueBroken)):
        far.create_ept(dst=1).send(b"closed")
    here.bus.unregister_device(here.vdev)
    here.device.core.refusals.clear()
    here.bus.register_device(here.vdev)
    _, ept = here.channel(here.near, "upper")
    ept.send(b"well again")
    assert ept.recv(PATIENCE)[0] == b"WELL AGAIN"


def test_garbage_from_the_device_wakes_who_waits(rig: Callable[..., Rig], layout: str) -> None:
    here = rig()
    ept = here.near.create_ept(addr=3000)
    failed: list[str] = []

    def wait() -> None:
        try:
            ept.recv()
        except (QueueBroken, QueueClosed) as error:
            failed.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    rvq = here.near.port.rvq
    ring = Raw(here.vdev.memory, rvq.config)
    with here.near.rx_lock:
        here.far.send_offchannel(1, 3000, b"never read")
        if layout == "packed":
            ring.desc["id"][:] = 777
        else:
            ring.used["ring"]["id"][:] = 777
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failed
    here.bus.unregister_device(here.vdev)


def test_a_single_queue_can_begin_again(rig: Callable[..., Rig]) -> None:
    here = rig(services=(RpmsgDriver("upper", upper),), here=(RpmsgDriver("upper"),))
    here.channel(here.near, "upper")
    before = here.far
    near = here.near
    with near.tx_lock:
        near.port.svq.reset(near.recycle_tx)
    assert before.closed
    until(lambda: here.device.bus is not None)
    far, _ = here.channel(here.far, "upper")
    ept = near.create_ept()
    ept.sendto(b"anew", far.src)
    assert ept.recv(PATIENCE)[0] == b"ANEW"


@pytest.mark.parametrize("option", [{"rx_buf_size": 16}, {"tx_buf_size": 0}])
def test_sizes_that_cannot_be(option: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match="it takes 17 to"):
        RpmsgDevice(**option)
