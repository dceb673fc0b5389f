"""The environment itself: the stock peers work with each other here."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from tests.interop.builds import RPMSG, RPMSG_SAMPLE
from tests.interop.daemons import (
    filesystem_daemon,
    pmd_counts,
    pmd_device,
    pmd_driver,
    pmd_forward,
    storage_daemon,
)
from tests.interop.guest import Guest
from tests.interop.initramfs import Kernel, linux7, linux61
from tests.interop.peers import require
from tests.interop.process import Process

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

NULL_DISK = "driver=null-co,size=536870912,read-zeroes=on"


def a_kernel(version: str) -> Kernel:
    return linux61() if version == "6.1" else linux7()


def vhost_user(socket: Path, device: str) -> list[str]:
    return ["-chardev", f"socket,id=c0,path={socket}", "-device", f"{device},chardev=c0"]


@pytest.mark.parametrize(
    ("version", "qemu"), [("6.1", "qemu11"), ("6.1", "qemu72"), ("7", "qemu11")]
)
def test_guest_boots(tmp_path: Path, version: str, qemu: str) -> None:
    kernel = a_kernel(version)
    assert kernel.release.startswith(f"{version}.")
    with Guest(kernel, "section release uname -r", workdir=tmp_path, qemu=qemu) as guest:
        assert guest.section("release") == f"{kernel.release}\n"
        guest.finish()


def test_failing_script_fails_the_test(tmp_path: Path) -> None:
    with Guest(linux61(), "section bad ls /nowhere", workdir=tmp_path) as guest:
        failed = r"bad failed with exit code 1(.|\n)*nowhere"
        with pytest.raises(pytest.fail.Exception, match=failed):
            guest.section("bad")
        with pytest.raises(pytest.fail.Exception, match="the script failed before"):
            guest.finish()
    assert not guest.running


def test_guest_reads_a_file_through_the_storage_daemon(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(8 << 20)
    image = tmp_path / "image"
    image.write_bytes(data)
    socket = tmp_path / "socket"
    with (
        storage_daemon(socket, f"driver=file,filename={image}"),
        Guest(
            linux61(),
            "section sum sha256sum /dev/vda\n"
            "section write dd if=/modules/virtio_blk.ko of=/dev/vda seek=1 bs=4096 conv=fsync",
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=vhost_user(socket, "vhost-user-blk-pci,num-queues=1"),
        ) as guest,
    ):
        assert guest.section("sum").split() == [hashlib.sha256(data).hexdigest(), "/dev/vda"]
        guest.finish()
    module = linux61().modules(["virtio_blk"])["virtio_blk"]
    assert image.read_bytes() == data[:4096] + module + data[4096 + len(module) :]


def test_fio_in_the_guest(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    with (
        storage_daemon(socket, NULL_DISK),
        Guest(
            linux7(),
            "section fio fio --name=read --filename=/dev/vda --direct=1 --thread --ioengine=libaio"
            " --rw=randread --bs=4k --iodepth=8 --number_ios=2000 --output-format=json",
            workdir=tmp_path,
            modules=["virtio_blk"],
            files={"bin/fio": require("fio")},
            devices=vhost_user(socket, "vhost-user-blk-pci,num-queues=1"),
            memory=512,
        ) as guest,
    ):
        (job,) = json.loads(guest.section("fio"))["jobs"]
        guest.finish()
    assert (job["error"], job["read"]["total_ios"]) == (0, 2000)


def test_guest_reads_a_folder_through_virtiofsd(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "question").write_text("hello\n")
    socket = tmp_path / "socket"
    with (
        filesystem_daemon(socket, shared),
        Guest(
            linux7(),
            "mount -t virtiofs tag /mnt\nsection read cat /mnt/question\necho well >/mnt/answer",
            workdir=tmp_path,
            modules=["virtiofs"],
            devices=vhost_user(socket, "vhost-user-fs-pci,tag=tag"),
        ) as guest,
    ):
        assert guest.section("read") == "hello\n"
        guest.finish()
    assert (shared / "answer").read_text() == "well\n"


@pytest.mark.parametrize("poll", [False, True], ids=["interrupts", "poll"])
def test_libblkio_drives_the_storage_daemon(tmp_path: Path, poll: bool) -> None:
    socket = tmp_path / "socket"
    workload = ["--readwrite=randread", "--blocksize=4096", "--iodepth=64", "--runtime=1"]
    if poll:
        workload.append("--poll")
    with (
        storage_daemon(socket, NULL_DISK),
        Process(
            require("blkio-bench"), [*workload, "virtio-blk-vhost-user", f"path={socket}"]
        ) as bench,
    ):
        measured = json.loads(bench.finish())["aggregate"]
    assert measured["kiops"] > 0
    assert measured["calls"] > 0


@pytest.mark.parametrize("options", ["", "packed_vq=1", "packed_vq=1,in_order=1,mrg_rxbuf=0"])
def test_testpmd_drives_testpmd(tmp_path: Path, options: str) -> None:
    socket = tmp_path / "socket"
    with pmd_device(socket) as device, pmd_driver(socket, options=options) as driver:
        pmd_forward(device, driver, bursts=8)
        counts = pmd_counts(driver) + pmd_counts(device)
    assert min(counts) >= 32 * 8


def test_rpmsg_modules_load(tmp_path: Path) -> None:
    modules = [*RPMSG, RPMSG_SAMPLE]
    with Guest(
        linux61(rpmsg=True), "section loaded lsmod", workdir=tmp_path, modules=modules
    ) as guest:
        loaded = {line.split()[0] for line in guest.section("loaded").splitlines()}
        guest.finish()
    assert set(modules) <= loaded
