"""Lines, messages and MSI-X: masks, pending bits, and no interrupt lost between threads."""

from threading import Condition, Thread
from typing import Any

import pytest

from tests.transport.common import Echo, EchoDriver, bound
from virtring.device import Device, VirtioBus
from virtring.errors import InvalidArgument
from virtring.memory import GuestMemory
from virtring.queue import DeviceQueue, Virtqueue
from virtring.spec.ids import DeviceID
from virtring.spec.pci import IsrStatus, MsixControl
from virtring.transport import VirtioMmio, mmio_device
from virtring.transport.irq import InterruptController, IrqLine
from virtring.transport.pci_msix import ENTRY, Msix


class Source:
    up = False

    def __call__(self) -> bool:
        return self.up


def test_a_line_calls_while_a_source_is_up() -> None:
    line, first, second = IrqLine(), Source(), Source()
    line.sources += [first, second]
    calls: list[str] = []

    def handler() -> None:
        calls.append("up")
        first.up = False

    line.request(handler)
    line.raised()
    assert calls == []
    first.up = True
    line.raised()
    assert calls == ["up"]
    assert not line.level
    second.up = True
    line.free(handler)
    line.raised()
    assert calls == ["up"]
    with pytest.raises(InvalidArgument):
        line.free(handler)
    # Whoever comes late finds the line up.
    line.request(handler)
    assert calls == ["up", "up"]


def test_what_comes_up_in_a_handler_is_handled_after_it() -> None:
    line, source = IrqLine(), Source()
    line.sources.append(source)
    depth: list[int] = []
    running = 0

    def handler() -> None:
        nonlocal running
        running += 1
        depth.append(running)
        source.up = len(depth) < 3
        line.raised()
        running -= 1

    line.request(handler)
    source.up = True
    line.raised()
    assert depth == [1, 1, 1]


def test_a_source_that_nobody_handles_hangs_nobody() -> None:
    line, stuck = IrqLine(), Source()
    line.sources.append(stuck)
    stuck.up = True
    first, second = (VirtioMmio(Echo(), GuestMemory.create(1 << 20), line) for _ in range(2))
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    for window in (first, second):
        memory = window.device.memory
        bus.register_device(mmio_device(window, memory, line))
    for vdev in bus.devices:
        driver: Any = vdev.driver
        assert driver.echo(driver.vqs[0], b"shared") == b"shared"


def test_messages_find_their_handler() -> None:
    controller = InterruptController()
    calls: list[str] = []
    first = controller.alloc_msi(lambda: calls.append("first"))
    second = controller.alloc_msi(lambda: calls.append("second"))
    assert first != second
    controller.send_msi(*second)
    controller.send_msi(0, second[1])
    controller.send_msi(first[0], 0)
    controller.free_msi(first[1])
    controller.send_msi(*first)
    assert calls == ["second"]
    assert controller.line(3) is controller.line(3) is not controller.line(4)


@pytest.fixture
def sent() -> list[int]:
    return []


@pytest.fixture
def msix(sent: list[int]) -> Msix:
    msix = Msix(70, sent.append)
    msix.set_control(int(MsixControl.ENABLE), master=True)
    return msix


def unmask(msix: Msix, vector: int, masked: int = 0) -> None:
    assert msix.write_table(ENTRY * vector + 12, 4, masked)


def test_vectors_start_masked_and_are_sent_on_unmask(msix: Msix, sent: list[int]) -> None:
    for vector in (69, 1, 1):
        msix.signal(vector)
    assert sent == []
    assert msix.read_pba(0, 8) == 1 << 1
    assert msix.read_pba(8, 4) == 1 << 5
    unmask(msix, 69)
    assert sent == [69]
    unmask(msix, 1)
    assert sent == [69, 1]
    assert msix.read_pba(0, 8) == msix.read_pba(8, 8) == 0
    msix.signal(1)
    assert sent == [69, 1, 1]
    unmask(msix, 1, 1)
    msix.signal(1)
    assert sent == [69, 1, 1]


def test_the_function_mask_and_bus_mastering_hold_messages_back(
    msix: Msix, sent: list[int]
) -> None:
    unmask(msix, 0)
    msix.set_control(int(MsixControl.ENABLE | MsixControl.FUNCTION_MASK), master=True)
    msix.signal(0)
    assert sent == []
    msix.set_control(int(MsixControl.ENABLE), master=False)
    assert sent == []
    msix.set_control(int(MsixControl.ENABLE), master=True)
    assert sent == [0]


def test_disabled_it_sends_and_keeps_nothing(msix: Msix, sent: list[int]) -> None:
    msix.signal(0)
    msix.set_control(0, master=True)
    msix.signal(0)
    unmask(msix, 0)
    msix.set_control(int(MsixControl.ENABLE), master=True)
    msix.signal(70)
    msix.signal(-1)
    msix.signal(0xFFFF)
    assert sent == []
    msix.set_control(int(MsixControl.ENABLE | MsixControl.FUNCTION_MASK), master=True)
    msix.signal(0)
    msix.clear_pending()
    msix.set_control(int(MsixControl.ENABLE), master=True)
    assert sent == []


def test_an_external_table_has_no_masks_here(msix: Msix, sent: list[int]) -> None:
    msix.external = True
    msix.signal(3)
    assert sent == [3]


def test_the_table_takes_whole_words(msix: Msix) -> None:
    assert msix.write_table(0, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert msix.write_table(8, 4, 0x1234_5678)
    # Addresses are those of double words; the control word has its mask bit only.
    assert msix.message(0) == (0xFFFF_FFFF_FFFF_FFFC, 0x1234_5678)
    assert msix.write_table(8, 8, 0xFFFF_FFFF_0000_0001)
    assert msix.read_table(8, 8) == 1 << 32 | 1
    for offset, size in ((0, 1), (0, 2), (2, 4), (4, 8), (70 * ENTRY, 4), (0, 16)):
        assert msix.read_table(offset, size) is None
        assert not msix.write_table(offset, size, 0)
    for offset, size in ((0, 1), (2, 4), (16, 4), (16, 8)):
        assert msix.read_pba(offset, size) is None


@pytest.mark.parametrize("vectors", [0, -1, 2049])
def test_numbers_of_vectors_that_cannot_be(vectors: int) -> None:
    with pytest.raises(InvalidArgument, match="1 to 2048"):
        Msix(vectors, print)


class Slow(Device):
    """Answers from a thread of its own."""

    device_id = DeviceID.SOUND
    queue_names = ("first",)

    def __init__(self) -> None:
        super().__init__()
        self.work = Condition()
        self.held: list[Any] = []
        self.done: list[Any] = []
        self.stop = False
        self.thread = Thread(target=self.run)
        self.thread.start()

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        with self.work:
            self.held += self.chains(queue)
            done, self.done = self.done, []
            self.work.notify_all()
        for chain in done:
            chain.return_(0)

    def run(self) -> None:
        while True:
            with self.work:
                self.work.wait_for(lambda: self.held or self.stop)
                if self.stop:
                    return
                self.done += self.held
                self.held.clear()
            self.wake(0)


class Waiter(EchoDriver):
    names = ("first",)

    def probe(self) -> None:
        self.got = Condition()
        self.count = 0
        super().probe()

    def _used(self, vq: Virtqueue) -> None:
        with self.got:
            while vq.get_buf() is not None:
                self.count += 1
            self.got.notify_all()


@pytest.mark.parametrize("kind", ["loopback", "pci", "pci-intx", "mmio"])
def test_no_interrupt_is_lost_between_threads(kind: str) -> None:
    device = Slow()
    try:
        vdev, driver, _ = bound(device, kind, Waiter)
        (vq,) = driver.vqs
        buffer = driver.pool.get()
        for turn in range(1, 401):
            with driver.got:
                vq.add_outbuf(buffer, turn)
            vq.kick()
            with driver.got:
                assert driver.got.wait_for(lambda turn=turn: driver.count == turn, 5), turn
        vdev.reset()
    finally:
        with device.work:
            device.stop = True
            device.work.notify_all()
        device.thread.join()


def test_isr_flags_bring_the_pin_up_and_reading_takes_it_down() -> None:
    vdev, driver, _ = bound(Echo(), "pci-intx")
    ops: Any = vdev.config
    (function,) = ops.function.host.devices.values()
    assert function.isr == 0
    assert driver.echo(driver.vqs[0], b"x") == b"x"
    # The handler has read it.
    assert function.isr == 0
    assert not function.intx_level
    function.write_config(4, 2, 0x406)
    function.add_isr_flags(IsrStatus.QUEUE)
    function.add_isr_flags(IsrStatus.CONFIG)
    function.interrupt()
    assert not function.intx_level
    assert function.read_config(6, 2) & 8
    assert driver.changes == 0
    # With the pin enabled again the interrupt that waited is delivered.
    function.write_config(4, 2, 6)
    assert driver.changes == 1
    assert function.isr == 0
    assert not function.read_config(6, 2) & 8
