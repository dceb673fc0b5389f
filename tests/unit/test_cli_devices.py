"""``virtring devices`` and ``virtring demo``, in processes of their own."""

from __future__ import annotations

import json

import pytest

from tests.unit import _cli
from virtring.cli.devices import entries
from virtring.cli.failure import Failed

KINDS = ("loopback", "pci", "pci-intx", "mmio")


def test_the_list() -> None:
    done = _cli.run("devices", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["balloon"] == {
        "id": 5,
        "name": "balloon",
        "driver": "BalloonDriver",
        "device": "Balloon",
        "features": ["MUST_TELL_HOST", "STATS_VQ", "DEFLATE_ON_OOM", "PAGE_REPORTING"],
    }
    assert rows["rpmsg"] == {
        "id": 7,
        "name": "rpmsg",
        "driver": "VirtioRpmsg",
        "device": "RpmsgDevice",
        "features": ["NS"],
    }
    assert {"console", "rng", "block", "net"} <= set(rows)
    assert [row["id"] for row in rows.values()] == sorted(row["id"] for row in rows.values())
    for row in rows.values():
        assert set(row) == {"id", "name", "driver", "device", "features"}
        assert row["driver"] or row["device"]


def test_the_table_has_them_all() -> None:
    done = _cli.run("devices")
    assert (done.returncode, done.stderr) == (0, "")
    for row in entries():
        assert row.name in done.stdout
        for half in (row.driver, row.device):
            assert half is None or half in done.stdout


@pytest.mark.parametrize(
    ("device", "kind", "ring"),
    [
        ("balloon", "pci", "packed"),
        ("console", "loopback", "split"),
        ("rng", "mmio", "packed"),
        ("block", "pci-intx", "split"),
        ("net", "pci", "packed"),
        ("rpmsg", "mmio", "split"),
    ],
)
def test_a_demo(device: str, kind: str, ring: str) -> None:
    done = _cli.run("demo", device, "--transport", kind, "--ring", ring, "--text", "Grüße")
    assert (done.returncode, done.stderr) == (0, "")
    title, *lines = done.stdout.splitlines()
    assert title.startswith(f"{device} at ")
    assert f"({kind}), {ring} rings" in title
    if device == "balloon":
        assert lines[0].endswith("64.0 MiB are taken from the system")
        assert "balloon of 48 MiB: 16.0 MiB taken" in lines[2]
    elif device == "console":
        assert lines[1].endswith("Grüße")
        assert lines[2] == "  from the device: Grüße"
    elif device == "block":
        assert lines[1].endswith("Grüße")
    elif device == "net":
        assert lines[1].endswith("received: Grüße")
        assert lines[2] == "  256 packets by batches: 256 sent, 256 received, all equal"
    elif device == "rpmsg":
        assert lines[2:] == ["  and back: GRüßE"]
    else:
        assert len({*map(str.strip, lines)}) == 4
        assert all(len(bytes.fromhex(line)) == 16 for line in lines)


def test_what_is_checked_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console that answers something else is not called an echo."""
    from virtring.cli import demo_run

    with demo_run.plug("console", "loopback", packed=True) as bench:
        port = bench.device.ports[0]
        monkeypatch.setattr(port, "output", lambda data: port.send(data.upper()))
        with pytest.raises(Failed, match="came back"):
            list(demo_run.console(bench, "echo"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["demo"], "DEVICE"),
        (["demo", "toaster"], "toaster"),
        (["demo", "rng", "--transport", "usb"], "usb"),
        (["demo", "rng", "--ring", "round"], "round"),
        (["devices", "more"], "more"),
    ],
)
def test_wrong_usage(args: list[str], says: str) -> None:
    done = _cli.run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in _cli.one_line(done.stderr)
