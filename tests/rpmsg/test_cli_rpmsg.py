"""``virtring rpmsg``: results, errors, and a peer that dies."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.unit import _cli
from virtring.cli.rpmsg_run import percentiles

KEYS = {
    "ring", "count", "size", "batch", "median_us", "p99_us", "p999_us", "messages_per_second",
    "bytes_per_second", "seconds", "waits",
}


@pytest.mark.parametrize(
    ("ring", "count", "size", "batch"),
    [("both", 200, 64, 32), ("packed", 333, 1, 7), ("split", 50, 65519, 1), ("split", 9, 5, 300)],
)
def test_results(ring: str, count: int, size: int, batch: int) -> None:
    done = _cli.run(
        "rpmsg", "--ring", ring, "--count", count, "--size", size, "--batch", batch, "--json", "-"
    )
    assert (done.returncode, done.stderr) == (0, "")
    records = json.loads(done.stdout)
    assert [r["ring"] for r in records] == (["split", "packed"] if ring == "both" else [ring])
    for record in records:
        assert set(record) == KEYS
        assert (record["count"], record["size"], record["batch"]) == (count, size, batch)
        assert 0 < record["median_us"] <= record["p99_us"] <= record["p999_us"]
        assert record["messages_per_second"] == pytest.approx(count / record["seconds"])


def test_table_and_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = _cli.run("rpmsg", "--count", 20, "--ring", "split", "--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "messages/s" in done.stdout
    assert json.loads(path.read_text())[0]["ring"] == "split"


@pytest.mark.parametrize(
    "args",
    [
        ("--count", 0), ("--size", 0), ("--size", 65536), ("--batch", 0), ("--batch", 99999),
        ("--ring", "round"), ("--size", 65000, "--batch", 8000), ("--json", "/no/such/dir/x"),
        ("extra",),
    ],
)
def test_wrong_usage(args: tuple[object, ...]) -> None:
    done = _cli.run("rpmsg", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "rpmsg" in _cli.one_line(done.stderr)


def test_a_peer_that_dies() -> None:
    process = _cli.start("rpmsg", "--count", 10_000_000, "--ring", "packed")
    peer = _cli.wait_child(process, "vr-echo")
    os.kill(peer, signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "SIGKILL" in _cli.one_line(err)


def test_interrupted() -> None:
    process = _cli.start("rpmsg", "--count", 10_000_000)
    peer = _cli.wait_child(process, "vr-echo")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert _cli.one_line(err) == "virtring: interrupted\n"
    assert _cli.gone(peer)


def test_percentiles() -> None:
    assert percentiles([1000 * n for n in range(1, 1001)]) == {
        "median_us": 501.0, "p99_us": 991.0, "p999_us": 1000.0
    }
