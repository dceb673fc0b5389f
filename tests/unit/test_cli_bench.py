"""``virtring bench``: its results, its checks of the data, its errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import virtring
from tests.unit import _cli
from virtring.cli.bench_local import ASK, Local
from virtring.cli.bench_pair import Driver
from virtring.cli.child import Child
from virtring.cli.failure import Failed
from virtring.cli.measure import Result, Settings
from virtring.cli.pattern import check_tokens, pattern, same_rows

#: Time for each measurement; what is tested here is not the speed.
SECONDS = 0.02
NUMBERS = (
    "ns_per_buffer", "ns_min", "ns_max", "buffers_per_second", "bytes_per_second", "seconds",
)
FIELDS = {"ring", "mode", "payload", "batch", "size", "windows", "buffers", "verified", *NUMBERS}


def measure(*args: object) -> list[dict[str, object]]:
    done = _cli.run("bench", "--seconds", SECONDS, "--json", "-", *args)
    assert (done.returncode, done.stderr) == (0, "")
    records = json.loads(done.stdout)
    assert isinstance(records, list)
    return records


# -- results ---------------------------------------------------------------------------------------


def test_everything() -> None:
    records = measure()
    keys = [(row["mode"], row["ring"], row["payload"], row["batch"]) for row in records]
    assert keys == [
        ("loop", "split", "passed", 256),
        ("loop", "packed", "passed", 256),
        ("call", "split", "passed", 1),
        ("call", "packed", "passed", 1),
        ("pair", "split", "passed", 32),
        ("pair", "packed", "passed", 32),
        ("pair", "split", "copied", 32),
        ("pair", "packed", "copied", 32),
        ("pair", "pipe", "copied", 1),
        ("pair", "queue", "copied", 1),
    ]
    for row in records:
        assert set(row) == FIELDS
        values = {name: float(str(row[name])) for name in NUMBERS}
        assert 0 < values["ns_min"] <= values["ns_per_buffer"] <= values["ns_max"]
        assert values["buffers_per_second"] == pytest.approx(1e9 / values["ns_per_buffer"])
        assert values["bytes_per_second"] == pytest.approx(64 * values["buffers_per_second"])
        assert int(str(row["buffers"])) > 0
        assert int(str(row["verified"])) >= 8
        assert values["seconds"] >= SECONDS


@pytest.mark.parametrize(
    ("features", "batch", "size"),
    [("none", 1, 1), ("in_order", 7, 100), ("EVENT_IDX,INDIRECT_DESC,ORDER_PLATFORM", 300, 700)],
)
def test_other_shapes(features: str, batch: int, size: int) -> None:
    records = measure(
        "--batch", batch, "--size", size, "--no-compare", "--features", features
    )
    assert len(records) == 8
    assert {row["size"] for row in records} == {size}
    assert {row["batch"] for row in records if row["mode"] != "call"} == {batch}


def test_one_ring_one_mode() -> None:
    (row,) = measure("--ring", "packed", "--mode", "loop", "--no-compare")
    assert (row["ring"], row["mode"]) == ("packed", "loop")


def test_table_and_files(tmp_path: Path) -> None:
    table, picture = tmp_path / "rings.json", tmp_path / "rings.png"
    done = _cli.run(
        "bench", "--seconds", SECONDS, "--mode", "loop", "--json", table, "--plot", picture,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("loop", "split", "packed", "passed", "multiprocessing.Pipe", "vs Pipe", "1.00x"):
        assert word in done.stdout
    assert len(json.loads(table.read_text())) == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


# -- the data is checked ---------------------------------------------------------------------------


def test_pattern_tells_buffers_apart() -> None:
    rows = pattern(1000, 16, 3)
    assert len({row.tobytes() for row in rows}) == 1000
    assert not np.array_equal(rows, pattern(1000, 16, 4))
    # Made in pieces, the same as at once.
    assert np.array_equal(pattern(40, 1 << 17, 1)[-1], pattern(41, 1 << 17, 1)[39])


def test_wrong_contents_are_found() -> None:
    wanted = pattern(8, 16, 1)
    seen = wanted.copy()
    same_rows(seen, wanted, np.arange(8), "x")
    seen[5, 3] ^= 1
    same_rows(seen, wanted, np.arange(5), "x")
    with pytest.raises(Failed, match="buffer 5 differs at byte 3"):
        same_rows(seen, wanted, np.arange(8), "x")


@pytest.mark.parametrize("tokens", [[0, 1, 1], [0, 1], [0, 1, 3], [0, 1, 2, 2], [0, 1, 2, 9]])
def test_tokens_come_exactly_once(tokens: list[int]) -> None:
    check_tokens(np.array([2, 0, 1], np.uint64), 3, "x")
    with pytest.raises(Failed, match="tokens came back for 3 buffers"):
        check_tokens(np.array(tokens, np.uint64), 3, "x")


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_loop_finds_damage(ring: str) -> None:
    local = Local(ring, 8, Settings())

    def round_trip() -> None:
        local.driver.add_outbuf_batch(local.adding)
        local.device.pop(local.popped)
        local.device.push(local.popped)
        local.driver.get_buf_batch(local.got)

    round_trip()
    assert local.check() == 16
    round_trip()
    local.popped.addr[2] += 1
    with pytest.raises(Failed, match="row 2 of a popped batch"):
        local.check()
    round_trip()
    local.popped.addr[2] = local.popped.addr[3]
    with pytest.raises(Failed, match="token 2 came 0 times"):
        local.check()
    round_trip()
    local.payload.array[6, 63] ^= 0x80
    with pytest.raises(Failed, match="buffer 6 differs at byte 63"):
        local.check()


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("copied", [False, True])
def test_pair_finds_damage(ring: str, copied: bool) -> None:
    driver = Driver(ring, Settings(seconds=SECONDS), copied)
    if copied:
        driver.source[40, 7] ^= 1
    else:
        driver.payload.array[40, 7] ^= 1
    result = Result(ring, "pair", "", 32, 64)
    with pytest.raises(Failed, match=r"device: what was .*: buffer 40 differs at byte 7"):
        driver.measure(result, Settings(seconds=SECONDS))
    assert result.verified == 0
    assert driver.seed == ASK


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["bench", "--ring", "round"],
        ["bench", "--batch", "32768", "--size", "100000"],
        ["bench", "--mode", "fast"],
        ["bench", "--batch", "0"],
        ["bench", "--batch", "32769"],
        ["bench", "--size", "none"],
        ["bench", "--seconds", "-1"],
        ["bench", "--seconds", "nan"],
        ["bench", "--features", "EVENT_IDX,WRONG"],
        ["bench", "--json"],
        ["bench", "--json", "/nowhere/at/all.json"],
        ["bench", "--plot", "picture.txt"],
        ["bench", "extra"],
        ["bench", "--size", "1000000000"],
        ["bunch"],
        ["--nothing"],
        [],
    ],
)
def test_usage(args: list[str]) -> None:
    done = _cli.run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--help" in _cli.one_line(done.stderr)


@pytest.mark.parametrize("name", ["click", "rich", "matplotlib"])
def test_missing_extra(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(
        f'raise ModuleNotFoundError("no {name}", name="{name}")\n'
    )
    done = _cli.run("bench", "--plot", tmp_path / "x.png", first=(tmp_path,))
    assert done.returncode == 2
    extra = "plot" if name == "matplotlib" else "cli"
    assert f"pip install virtring[{extra}]" in _cli.one_line(done.stderr)


def test_package_does_not_need_the_extras() -> None:
    code = "import sys, virtring; sys.exit('click' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run(
        [sys.executable, "-c", code], env=_cli.environment(), check=False
    ).returncode == 0


def test_version_and_help() -> None:
    assert _cli.run("--version").stdout == f"virtring, version {virtring.__version__}\n"
    for args in (["--help"], ["bench", "--help"], ["transfer", "-h"]):
        done = _cli.run(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Examples:" in done.stdout
        assert "Exit codes:" in done.stdout


def test_device_killed() -> None:
    process = _cli.start("bench", "--mode", "pair", "--ring", "split", "--seconds", "3")
    os.kill(_cli.wait_child(process, "vr-device"), signal.SIGKILL)
    out, text = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "the device process" in _cli.one_line(text)
    assert "was killed by SIGKILL" in text


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_behind(number: signal.Signals, code: int) -> None:
    process = _cli.start("bench", "--mode", "pair", "--ring", "split", "--seconds", "60")
    device = _cli.wait_child(process, "vr-device")
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert process.returncode == code
    assert _cli.gone(device)
    if number == signal.SIGINT:
        assert _cli.one_line(text) == "virtring: interrupted\n"


def die(connection: object, code: int) -> None:
    os._exit(code)


def test_child_that_ends_early() -> None:
    said = r"the odd process \(pid \d+\) ended with exit code 7"
    with Child("odd", die, 7) as child, pytest.raises(Failed, match=said):
        child.receive()
