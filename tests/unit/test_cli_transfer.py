"""``virtring transfer``: what arrives, what is refused, and what a death on the way leaves."""

import filecmp
import hashlib
import os
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unit import _cli

BIG = 105_000_001


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than 100 MB: random data, holes, and an end inside a block."""
    path = tmp_path_factory.mktemp("transfer") / "big.bin"
    random = np.random.default_rng(7)
    with path.open("wb") as file:
        for start in range(0, BIG, 10_000_000):
            file.seek(start)
            file.write(random.bytes(4_000_000))
        file.truncate(BIG)
    return path


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_big_file(ring: str, big: Path, tmp_path: Path) -> None:
    done = _cli.run("transfer", big, tmp_path / "copy", "--ring", ring)
    assert (done.returncode, done.stderr) == (0, "")
    assert filecmp.cmp(big, tmp_path / "copy", shallow=False)
    checksum = hashlib.blake2b(big.read_bytes(), digest_size=32).hexdigest()
    assert checksum in done.stdout
    assert f"{BIG} bytes" in done.stdout
    assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize(
    ("size", "block", "num"),
    [(0, "256KiB", 64), (1, "1", 2), (31, "16", 4), (4096, "4K", 2), (100_001, "1000", 8)],
)
def test_small_files(ring: str, size: int, block: str, num: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(size).bytes(size))
    source.chmod(0o640)
    done = _cli.run(
        "transfer", source, tmp_path / "copy", "--ring", ring, "--block", block, "--num", num
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["copy", "source"]


def test_packed_ring_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    done = _cli.run(
        "transfer", tmp_path / "a", tmp_path / "b", "--ring", "packed", "--num", 7, "--block", 999
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert filecmp.cmp(tmp_path / "a", tmp_path / "b", shallow=False)


def test_force(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    done = _cli.run("transfer", source, target)
    assert done.returncode == 2
    assert "--force" in _cli.one_line(done.stderr)
    assert target.read_bytes() == b"old"
    assert _cli.run("transfer", source, target, "--force").returncode == 0
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["missing", "new"], "No such file"),
        ([".", "new"], "is a directory"),
        (["pipe", "new"], "not a regular file"),
        (["file", "file"], "the same file"),
        (["file", "hard"], "the same file"),
        (["file", "soft", "--force"], "the same file"),
        (["file", "no/such/place"], "does not exist"),
        (["file", "folder"], "is a directory"),
        (["file", "pipe", "--force"], "not a regular file"),
        (["file", "dangling"], "--force"),
        (["file", "new", "--block", "0"], "is not a size"),
        (["file", "new", "--block", "65MiB"], "is not a size"),
        (["file", "new", "--block", "12 apples"], "is not a size"),
        (["file", "new", "--num", "1"], "--num"),
        (["file", "new", "--num", "48"], "power of two"),
        (["file", "new", "--num", "32768", "--block", "64M"], "memory"),
        (["file", "new", "--ring", "round"], "--ring"),
        (["file"], "DST"),
        (["file", "new", "more"], "extra argument"),
    ],
)
def test_refused(
    args: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"contents")
    os.link("file", "hard")
    os.symlink("file", "soft")
    os.symlink("nothing", "dangling")
    os.mkfifo("pipe")
    os.mkdir("folder")
    before = sorted(os.listdir())
    done = _cli.run("transfer", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in _cli.one_line(done.stderr)
    assert sorted(os.listdir()) == before
    assert Path("file").read_bytes() == b"contents"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    source, closed = tmp_path / "a", tmp_path / "closed"
    source.write_bytes(b"x")
    closed.mkdir(0o555)
    done = _cli.run("transfer", source, closed / "b")
    assert done.returncode == 2
    assert "no permission" in _cli.one_line(done.stderr)
    source.chmod(0)
    done = _cli.run("transfer", source, tmp_path / "b")
    assert done.returncode == 2
    assert "Permission denied" in _cli.one_line(done.stderr)


def test_source_whose_size_is_wrong(tmp_path: Path) -> None:
    # The kernel says 0 bytes of it, and then gives some.
    done = _cli.run("transfer", "/proc/version", tmp_path / "b")
    assert done.returncode == 1
    assert "changed meanwhile" in _cli.one_line(done.stderr)
    assert os.listdir(tmp_path) == []


def test_no_room(tmp_path: Path) -> None:
    # The limit on file sizes stands in for a full disk.
    (tmp_path / "a").write_bytes(bytes(3_000_000))
    done = _cli.run("transfer", tmp_path / "a", tmp_path / "b", "--block", 4096, "--num", 8,
                    limit=1_000_000)
    assert done.returncode == 1
    assert "receiver: File too large" in _cli.one_line(done.stderr)
    assert os.listdir(tmp_path) == ["a"]


# -- deaths ----------------------------------------------------------------------------------------


def wait_for_data(folder: Path, seconds: float = 20.0) -> None:
    """Until the transfer has written something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(path.stat().st_size > 100_000 for path in folder.glob(".b.*.part")):
            return
        time.sleep(0.005)
    raise AssertionError("nothing was written")


@pytest.fixture
def slow(tmp_path: Path) -> list[object]:
    """Arguments of a transfer that takes minutes: many tiny blocks."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(4 << 30)
    (tmp_path / "out").mkdir()
    return ["transfer", tmp_path / "a", tmp_path / "out" / "b", "--block", 1024, "--num", 8]


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_end_killed(end: str, ring: str, slow: list[object], tmp_path: Path) -> None:
    process = _cli.start(*slow, "--ring", ring)
    pids = [_cli.wait_child(process, f"vr-{name}") for name in ("sender", "receiver")]
    wait_for_data(tmp_path / "out")
    os.kill(pids[end == "receiver"], signal.SIGKILL)
    out, text = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert f"the {end} process" in _cli.one_line(text)
    assert "was killed by SIGKILL" in text
    assert "was not made" in text
    assert all(_cli.gone(pid) for pid in pids)
    assert os.listdir(tmp_path / "out") == []


def test_killed_transfer_keeps_the_old_file(slow: list[object], tmp_path: Path) -> None:
    (tmp_path / "out" / "b").write_bytes(b"old")
    process = _cli.start(*slow, "--force")
    pid = _cli.wait_child(process, "vr-sender")
    wait_for_data(tmp_path / "out")
    os.kill(pid, signal.SIGKILL)
    _, text = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "was not replaced" in _cli.one_line(text)
    assert (tmp_path / "out" / "b").read_bytes() == b"old"
    assert os.listdir(tmp_path / "out") == ["b"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_parent_ended(
    number: signal.Signals, code: int, slow: list[object], tmp_path: Path
) -> None:
    process = _cli.start(*slow)
    pids = [_cli.wait_child(process, f"vr-{name}") for name in ("sender", "receiver")]
    wait_for_data(tmp_path / "out")
    process.send_signal(number)
    _, text = process.communicate(timeout=10)
    assert process.returncode == code
    assert text == ("virtring: interrupted\n" if number == signal.SIGINT else "")
    assert all(_cli.gone(pid) for pid in pids)
    # Even when nobody is left but the ends themselves.
    assert os.listdir(tmp_path / "out") == []
