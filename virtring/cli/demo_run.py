"""What each device of ``virtring demo`` does. Every line shown was looked at first."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtring.cli.failure import Failed
from virtring.device import Device, VirtioBus, VirtioDevice, VirtioDriver
from virtring.device.packets import Packets
from virtring.devices.balloon import Balloon
from virtring.devices.blk import Blk
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.devices.rng import Rng
from virtring.drivers.balloon import BalloonDriver
from virtring.drivers.blk import BlkDriver
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.net import NetDriver
from virtring.drivers.rng import RngDriver
from virtring.memory import GuestMemory
from virtring.rpmsg import Endpoint, RpmsgDevice, RpmsgDriver, VirtioRpmsg
from virtring.spec.balloon import BalloonStat
from virtring.spec.features import Feature
from virtring.transport import connect

MIB = 1 << 20
MEMORY = 64 * MIB
#: Pages of 4096 bytes in a MiB.
PAGES = MIB // 4096
DISK = 1 * MIB
#: Packets.
BURST = 256


@dataclass
class Bench:
    """A device with its driver. title: both of them in one line."""

    memory: GuestMemory
    device: Any
    driver: Any
    title: str

    @property
    def held(self) -> int:
        """Bytes of the guest memory that take up memory of the system."""
        return os.fstat(self.memory.regions[0].region.fd).st_blocks * 512


@dataclass
class Demo:
    make: Callable[[Path], Device]
    driver: type[VirtioDriver]
    run: Callable[[Bench, str], Iterator[str]]


@contextmanager
def plug(name: str, kind: str, packed: bool) -> Iterator[Bench]:
    """The device called ``name`` behind a transport, with its driver."""
    demo = DEMOS[name]
    with tempfile.TemporaryDirectory(prefix="virtring-") as folder:
        device = demo.make(Path(folder))
        if not packed:
            device.core.device_features &= ~Feature.RING_PACKED
        memory = GuestMemory.create(MEMORY)
        # A guest that has used all of its memory once.
        memory.view(memory.regions[0].guest_addr, MEMORY)[:] = b"\x01" * MEMORY
        vdev = connect(device, kind, memory)
        bus = VirtioBus()
        bus.register_driver(demo.driver)
        bus.register_device(vdev)
        try:
            yield Bench(memory, device, vdev.driver, title(vdev, kind))
        finally:
            bus.unregister_device(vdev)
            if isinstance(device, Blk):
                device.close()


def title(vdev: VirtioDevice, kind: str) -> str:
    layout = "packed" if vdev.vqs[0].packed else "split"
    where = vdev.config.bus_name(vdev)
    queues = ", ".join(vq.name for vq in vdev.vqs)
    return f"{vdev.id} at {where} ({kind}), {layout} rings, queues: {queues}"


def check(true: bool, what: str) -> None:
    if not true:
        raise Failed(f"demo: {what}")


def balloon(bench: Bench, text: str) -> Iterator[str]:
    yield f"the guest has used all its memory: {bench.held / MIB:.1f} MiB are taken from the system"
    for target in (32, 48, 8, 0):
        before = bench.held
        bench.device.set_target(target * PAGES)
        pages = bench.driver.settle()
        check(pages == bench.device.actual == target * PAGES, f"{pages} pages, not {target} MiB")
        gone = before - bench.held
        yield (
            f"balloon of {target:2} MiB: {bench.held / MIB:.1f} MiB taken from the system,"
            f" {bench.memory.available / MIB:.1f} MiB free in the guest"
        )
        if pages * 4096 > MEMORY - before:
            check(gone > 0, "no memory went back to the system")
    bench.device.request_stats()
    stats = bench.device.stats
    free, total = stats[BalloonStat.MEMFREE], stats[BalloonStat.MEMTOT]
    yield f"the guest's own figures: {free / MIB:.1f} MiB of {total / MIB:.1f} MiB free"
    reported = bench.driver.report_free_pages()
    check(bench.held <= MEMORY - reported, "free pages did not go back to the system")
    yield (
        f"{reported / MIB:.1f} MiB reported free:"
        f" {bench.held / MIB:.1f} MiB are taken from the system"
    )


def rng(bench: Bench, text: str) -> Iterator[str]:
    data = bench.driver.read(64)
    for start in range(0, 64, 16):
        yield data[start : start + 16].hex(" ")
    check(data != bench.driver.read(64), "the same bytes twice")


def console(bench: Bench, text: str) -> Iterator[str]:
    port = bench.driver.port(0)
    cols, rows = bench.driver.size
    yield f"a terminal of {cols} columns and {rows} rows"
    data = text.encode()
    port.write(data)
    yield f"to the device:   {text}"
    answer = b""
    while len(answer) < len(data):
        answer += port.read(len(data) - len(answer))
    check(answer == data, f"{answer!r} came back")
    yield f"from the device: {answer.decode()}"


def echoing(folder: Path) -> Console:
    port = Port("echo", console=True)
    port.output = port.send
    return Console([port], size=(80, 25), max_ports=2)


def block(bench: Bench, text: str) -> Iterator[str]:
    yield f"a disk of {bench.driver.capacity} sectors, id {bench.driver.get_id().decode()}"
    data = text.encode()[:512].ljust(512)
    bench.driver.write(8, data)
    bench.driver.flush()
    check(bench.driver.read(8, 1) == data, "sector 8 has changed")
    yield f"sector 8 written, flushed and read: {data.decode(errors='replace').rstrip()}"


def net(bench: Bench, text: str) -> Iterator[str]:
    # To itself, by an EtherType for experiments, no shorter than Ethernet allows.
    mac = bench.driver.mac
    frame = (mac + mac + b"\x88\xb5" + text.encode()[:1000]).ljust(60, b"\0")
    yield f"link {'up' if bench.driver.link_up else 'down'}, MAC {mac.hex(':')}"
    bench.driver.send(frame)
    back = bench.driver.receive()
    check(back == frame, f"{back!r} came back")
    said = back[14:].rstrip(b"\0").decode(errors="replace")
    yield f"a packet of {len(frame)} bytes sent, and received: {said}"
    burst, got, sent, came = Packets.of([frame] * BURST), Packets(BURST), 0, 0
    for _ in range(BURST):
        sent += bench.driver.send_batch(burst, sent)
        came += bench.driver.receive_batch(got)
    check(came == BURST, f"{came} of {BURST} packets came back")
    check(all(packet.tobytes() == frame for packet in got), "a packet of the burst has changed")
    yield f"{BURST} packets by batches: {sent} sent, {came} received, all equal"


def rpmsg(bench: Bench, text: str) -> Iterator[str]:
    bus = bench.driver.bus
    channel = bus.wait_rx(lambda: bus.find_channel("upper"), timeout=10)
    yield f"the device has announced channel {channel.name!r} at address {channel.dst}"
    ept = bus.wait_rx(lambda: channel.ept, timeout=10)
    ept.send(text.encode()[: bus.mtu])
    data, src = ept.recv(timeout=10)
    check(data == text.encode()[: bus.mtu].upper(), f"{data!r} came back")
    yield f"from {ept.addr} to {src}: {text}"
    yield f"and back: {data.decode(errors='replace')}"


def shouting(folder: Path) -> RpmsgDevice:
    def upper(ept: Endpoint, data: bytes, src: int) -> None:
        ept.sendto(data.upper(), src)

    return RpmsgDevice([RpmsgDriver("upper", upper)])


class Messenger(VirtioRpmsg):
    services = (RpmsgDriver("upper"),)


def disk(folder: Path) -> Blk:
    path = folder / "disk.img"
    path.write_bytes(bytes(DISK))
    return Blk(path)


DEMOS = {
    "balloon": Demo(lambda _: Balloon(), BalloonDriver, balloon),
    "block": Demo(disk, BlkDriver, block),
    "console": Demo(echoing, ConsoleDriver, console),
    "net": Demo(lambda _: Net(Echo()), NetDriver, net),
    "rng": Demo(lambda _: Rng(), RngDriver, rng),
    "rpmsg": Demo(shouting, Messenger, rpmsg),
}
