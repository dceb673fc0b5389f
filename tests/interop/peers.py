"""Find the peers: ``require("qemu11")`` is how to start one, or skips the test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.cache import LIBRARIES, Program, cache_dir, packaged


def _qemu(root: Path) -> Program:
    modules = str(root / LIBRARIES / "qemu")
    program = packaged(root, "usr/bin/qemu-system-x86_64", QEMU_MODULE_DIR=modules)
    firmware = root / "usr/share"
    return program.also("-L", str(firmware / "qemu"), "-L", str(firmware / "seabios"))


def _testpmd(root: Path) -> Program:
    program = packaged(root, "usr/bin/dpdk-testpmd")
    # By name, for the loader to find. DPDK takes no path below a folder all may write: /tmp.
    plugins = ("bus_vdev", "mempool_ring", "net_virtio", "net_vhost")
    return program.also(*(word for name in plugins for word in ("-d", f"librte_{name}.so.23")))


def _busybox(root: Path) -> Program:
    path = root / "usr/bin/busybox"
    return Program((str(path),), path)


#: Name -> part of the set-up that brings it, and how to start it from that part's folder.
PEERS: dict[str, tuple[str, Callable[[Path], Program]]] = {
    "qemu11": ("trixie", _qemu),
    "qemu72": ("bookworm", _qemu),
    "qemu-img": ("trixie", lambda root: packaged(root, "usr/bin/qemu-img")),
    "qemu-storage-daemon": (
        "trixie",
        lambda root: packaged(root, "usr/bin/qemu-storage-daemon"),
    ),
    "virtiofsd": ("trixie", lambda root: packaged(root, "usr/libexec/virtiofsd")),
    "blkio-bench": (
        "blkio",
        lambda root: packaged(root.with_name("trixie"), root / "blkio-bench"),
    ),
    "dpdk-testpmd": ("bookworm", _testpmd),
    "fio": ("trixie", lambda root: packaged(root, "usr/bin/fio")),
    "busybox": ("trixie", _busybox),
}


def part(name: str) -> Path:
    """The folder of the part `name`. Where it is missing the test is skipped.

    With ``VIRTRING_INTEROP_REQUIRED=1`` it fails instead.
    """
    where = cache_dir()
    # The set-up's stamp: the folder alone may be half made.
    if (where / f"{name}.json").is_file():
        return where / name
    reason = f"no {name} in {where}; python -m tests.interop.setup --cache {where} {name}"
    if os.environ.get("VIRTRING_INTEROP_REQUIRED") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require(name: str) -> Program:
    """How to start the peer `name`, of `PEERS`; skips or fails like `part` where it is missing."""
    brought_by, locate = PEERS[name]
    program = locate(part(brought_by))
    assert program.path.is_file(), f"{program.path}: the set-up made no such program"
    return program
