"""``virtring serve pci``, with our drivers as the machine's at the other end."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.transport.vfio_client import MSIX, Client, Machine
from tests.unit import _cli
from virtring.drivers.blk import BlkDriver
from virtring.drivers.rng import RngDriver


@contextmanager
def serving(paths: list[Path], *args: object) -> Iterator[subprocess.Popen[str]]:
    """The command, once it listens at all these; killed at the end if it still runs."""
    with _cli.start("serve", "pci", *args) as process:
        try:
            for path in paths:
                assert process.stderr.readline() == f"serving at {path}\n"
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """What it has said, after a signal that ends it cleanly."""
    process.send_signal(number)
    err = process.stderr.read()
    assert (process.wait(30), process.stdout.read()) == (0, ""), err
    return err


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_one_device(tmp_path: Path, end: int) -> None:
    path = tmp_path / "socket"
    with serving([path], "rng", "--socket", path) as process:
        with Machine(path) as machine:
            assert len(set(machine.plug(RngDriver).read(64))) > 8
        # Another client, which is there when the end comes.
        with Client(path) as client:
            client.hello()
            assert client.irq_info(MSIX)[1] == 2
            assert ended(process, end) == ""
    assert list(tmp_path.iterdir()) == []


def test_several_devices_at_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\x42" * (1 << 20))
    path, wire = tmp_path / "socket", tmp_path / "wire"
    specs = (f"blk:{image}", "rng", "net", f"console:{wire}", "balloon:1M", "rpmsg:parrot")
    paths = [Path(f"{path}.{number}") for number in range(len(specs))]
    with serving(paths, *specs, "--socket", path, "-v") as process:
        with Machine(paths[0]) as disk, Machine(paths[1]) as entropy:
            block = disk.plug(BlkDriver)
            random = entropy.plug(RngDriver)
            for number in range(20):
                assert block.read(number, 1) == b"\x42" * 512
                assert len(random.read(16)) == 16
        ids = []
        for path in paths:
            with Client(path) as client:
                client.hello()
                ids.append(int.from_bytes(client.read(7, 2, 2), "little") - 0x1040)
        assert ids == [2, 4, 1, 3, 5, 7]
        err = ended(process)
    assert [file.name for file in tmp_path.iterdir()] == ["image"]
    for said in (
        "for QEMU: -device '{\"driver\": \"vfio-user-pci\", \"socket\": {\"type\": \"unix\", ",
        "blk.0: <- REGION_WRITE: device_status = 0xf\n",
        "blk.0: <- REGION_WRITE: notification of queue 0 = 0x0\n",
        "blk.0: blk: the driver took SEG_MAX BLK_SIZE FLUSH ",
        "blk.0: queue 0 (req.0): packed, 256 entries\n",
        "rng.1: queue 0 (input): packed, 64 entries\n",
        "rng.1: <- DMA_MAP: 0x800000 bytes at ",
        "parrot: 0 messages, 0 bytes echoed\n",
    ):
        assert said in err, said


def test_pins_only(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving([path], "rng", "--socket", path, "--intx") as process:
        with Client(path) as client:
            client.hello()
            assert client.irq_info(MSIX)[1] == 0
        ended(process)


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    """Then none of the devices is served, and the sockets that were made are gone."""
    path = tmp_path / "socket"
    (tmp_path / "socket.1").write_bytes(b"")
    done = _cli.run("serve", "pci", "rng", "rng", "--socket", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "socket.1 is there already and is no socket" in _cli.one_line(done.stderr)
    assert [file.name for file in tmp_path.iterdir()] == ["socket.1"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rng"], "Missing option '--socket'"),
        (["--socket", "s"], "Missing argument 'DEVICE...'"),
        (["toaster", "--socket", "s"], "DEVICE 'toaster': there are blk, rng, net, console,"),
        (["blk", "--socket", "s"], "DEVICE 'blk': it takes an image: blk:disk.img"),
        (["blk:missing", "--socket", "s"], "missing cannot be opened"),
        (["rng:5", "--socket", "s"], "DEVICE 'rng:5'"),
        (["net:no/name", "--socket", "s"], "DEVICE 'net:no/name'"),
        (["balloon:big", "--socket", "s"], "'big' is no number of pages"),
        (["console:missing/s", "--socket", "s"], "cannot listen at missing/s"),
        (["console", "rng", "console", "--socket", "s"], "this terminal is one console"),
        ([f"rpmsg:{'n' * 40}", "--socket", "s"], "DEVICE 'rpmsg:nnnn"),
        (["rng", "--socket", "missing/s"], "--socket: cannot listen at missing/s"),
    ],
)
def test_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _cli.run("serve", "pci", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in _cli.one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []
