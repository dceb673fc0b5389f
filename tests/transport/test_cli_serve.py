"""``virtring serve`` as its user sees it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.transport.vhost_user import IN, Requests, bound, driver_class, front, ops
from tests.unit._cli import run, start
from virtring.memory import GuestMemory


def started(path: Path, *args: object) -> subprocess.Popen[str]:
    process = start("serve", *args, "--vhost-user", path)
    while not path.is_socket():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("connected", [True, False])
def test_disk_until_a_signal(tmp_path: Path, end: int, connected: bool) -> None:
    image, path = tmp_path / "image", tmp_path / "socket"
    image.write_bytes(b"\x42" * 4096)
    process = started(path, "blk", image, "--num-queues", 2, "-v")
    memory = GuestMemory.create(1 << 20)
    vdev = front(path, memory)
    driver = bound(vdev, driver_class(2, "packed"))
    assert Requests(driver, memory, 1).run(IN, 1, size=512) == (0, b"\x42" * 512)
    if not connected:
        driver.remove()
        ops(vdev).close()
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert not path.exists()
    assert err.startswith(f"serving at {path}\n")
    for said in (
        "<- SET_FEATURES: INDIRECT_DESC EVENT_IDX VERSION_1 RING_PACKED RING_RESET PROTOCOL_",
        "-> GET_QUEUE_NUM: 2",
        "<- SET_VRING_KICK: ring 1 (1 fd)",
        "ring 1 (req.1): packed, 128 entries",
    ):
        assert said in err
    if connected:
        ops(vdev).close()


def test_polling(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = started(path, "rng", "--poll")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ("", f"serving at {path}\n")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["blk", "missing", "--vhost-user", "s"], "Path 'missing' does not exist"),
        (["blk", "image"], "Missing option '--vhost-user'"),
        (["blk", "image", "--vhost-user", "missing/s"], "cannot listen at missing/s"),
        (["blk", "image", "--vhost-user", "s", "--num-queues", "0"], "'--num-queues'"),
        (["blk", "image", "--vhost-user", "s", "--serial", "s" * 21], "20 fit"),
        (["rng", "--vhost-user", "image"], "is no socket"),
        (["rng", "--vhost-user", "s" * 200], "too long"),
        ([], "name a command: balloon or blk or console or net or pci or rng"),
    ],
)
def test_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(bytes(512))
    done = run("serve", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]
