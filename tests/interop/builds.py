"""The peers that are built here: libblkio's benchmark and Linux's RPMsg modules."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.interop.apt import Apt, run

RPMSG = ("rpmsg_core", "rpmsg_ns", "rpmsg_char", "rpmsg_ctrl", "virtio_rpmsg_bus")
RPMSG_SAMPLE = "rpmsg_client_sample"
#: Debian's kernels are configured without them; the sources ask whether these are set.
RPMSG_OPTIONS = ("RPMSG", "RPMSG_NS", "RPMSG_CHAR", "RPMSG_CTRL", "RPMSG_VIRTIO")


def build_blkio_bench(trixie: Path, where: Path) -> None:
    """libblkio's example program, with the headers and libraries in `trixie`."""
    where.mkdir(parents=True)
    source = trixie / "usr/share/doc/libblkio-dev/examples/blkio-bench.c"
    program = str(where / "blkio-bench")
    run(["cc", "-O2", f"--sysroot={trixie}", "-o", program, str(source), "-lblkio", "-lpthread"])


def build_rpmsg(apt: Apt, kernel: str, where: Path) -> None:
    """Linux's RPMsg modules for the Debian 12 kernel release `kernel` into `where`."""
    tree = where.with_name("rpmsg-build")
    shutil.rmtree(tree, ignore_errors=True)
    headers = f"linux-headers-{kernel}"
    common = apt.depends(headers, "-common")
    apt.unpack_alone([headers, common, "linux-kbuild-6.1", "linux-source-6.1"], tree)
    sources = tree / "usr/src"
    # The one absolute path in it; everything else is relative.
    makefile = sources / headers / "Makefile"
    makefile.write_text(f"include {sources / common}/Makefile\n")

    archive = "linux-source-6.1"
    folders = [f"{archive}/drivers/rpmsg", f"{archive}/samples/rpmsg"]
    run(["tar", "-C", str(tree), "-xf", str(sources / f"{archive}.tar.xz"), *folders])
    module = tree / "module"
    module.mkdir()
    for file in (tree / folders[0]).glob("*rpmsg_*.[ch]"):
        shutil.copy(file, module)
    shutil.copy(tree / folders[1] / f"{RPMSG_SAMPLE}.c", module)
    flags = " ".join(f"-DCONFIG_{option}_MODULE=1" for option in RPMSG_OPTIONS)
    objects = " ".join(f"{name}.o" for name in (*RPMSG, RPMSG_SAMPLE))
    (module / "Kbuild").write_text(f"ccflags-y += {flags}\nobj-m := {objects}\n")
    # CC: the headers name the compiler of Debian 12, which a newer one does not have.
    run(["make", "-C", str(sources / headers), f"M={module}", "CC=cc", "-j2", "modules"])

    where.mkdir(parents=True)
    for name in (*RPMSG, RPMSG_SAMPLE):
        run(["strip", "--strip-debug", "-o", str(where / f"{name}.ko"), str(module / f"{name}.ko")])
    shutil.rmtree(tree)
