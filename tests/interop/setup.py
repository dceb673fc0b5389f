"""Get the real peers: ``python -m tests.interop.setup [--cache DIR] [PART...]``.

Safe to run again: a part that is there takes no time. Needs a Debian or one of its kin on x86-64,
but no privilege; what is missing is said, with the command that installs it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.interop.apt import Apt, SetupError
from tests.interop.builds import build_blkio_bench, build_rpmsg
from tests.interop.cache import cache_dir

TRIXIE_BACKPORTS = ("qemu-system-x86", "qemu-utils")
TRIXIE = ("virtiofsd", "libblkio-dev", "libc6-dev", "fio", "busybox-static")
BOOKWORM = (
    "qemu-system-x86",
    # The program is in -dev; the drivers it loads are packages of their own.
    "dpdk-dev",
    "librte-net-vhost23",
    "librte-net-virtio23",
    "librte-mempool-ring23",
)

#: Command -> Debian package that has it.
NEEDED = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "cc": "gcc",
    "make": "make",
    "strip": "binutils",
    "xz": "xz-utils",
}


class Cache:
    """The folder, and an apt for each Debian release, made when first needed."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._apts: dict[str, Apt] = {}

    def apt(self, suite: str) -> Apt:
        if suite not in self._apts:
            folder = self.where / "apt" / suite
            shutil.rmtree(folder, ignore_errors=True)
            self._apts[suite] = Apt(folder, suite, backports=suite == "trixie")
        return self._apts[suite]

    def clean(self) -> None:
        shutil.rmtree(self.where / "apt", ignore_errors=True)


def trixie(cache: Cache, target: Path) -> str:
    apt = cache.apt("trixie")
    count = apt.unpack(list(TRIXIE_BACKPORTS), target, release="trixie-backports")
    count += apt.unpack(list(TRIXIE), target)
    # As in an installed system: gcc's --sysroot looks there.
    (target / "lib").symlink_to("usr/lib")
    (target / "lib64").symlink_to("usr/lib64")
    return f"{count} packages: QEMU 11, qemu-storage-daemon, virtiofsd, libblkio, fio, busybox"


def bookworm(cache: Cache, target: Path) -> str:
    count = cache.apt("bookworm").unpack(list(BOOKWORM), target)
    return f"{count} packages: QEMU 7.2, dpdk-testpmd"


def blkio(cache: Cache, target: Path) -> str:
    build_blkio_bench(cache.where / "trixie", target)
    return "blkio-bench built"


def guest61(cache: Cache, target: Path) -> str:
    apt = cache.apt("bookworm")
    image = apt.depends("linux-image-cloud-amd64", "linux-image-6.1.")
    apt.unpack_alone([image], target)
    return image


def guest7(cache: Cache, target: Path) -> str:
    apt = cache.apt("trixie")
    image = apt.depends("linux-image-cloud-amd64/trixie-backports", "linux-image-7.")
    release = image.removeprefix("linux-image-")
    # base has the list of what is built in.
    packages = [f"linux-{kind}-{release}" for kind in ("base", "binary", "modules")]
    apt.unpack_alone(packages, target)
    return image


def rpmsg(cache: Cache, target: Path) -> str:
    (modules,) = (cache.where / "guest61/lib/modules").iterdir()
    build_rpmsg(cache.apt("bookworm"), modules.name, target)
    return f"RPMsg modules built for {modules.name}"


@dataclass(frozen=True)
class Part:
    make: Callable[[Cache, Path], str]
    #: What it is made of. Another one in the cache is thrown away.
    recipe: object
    needs: tuple[str, ...] = ()


PARTS = {
    "trixie": Part(trixie, [1, *TRIXIE_BACKPORTS, *TRIXIE]),
    "bookworm": Part(bookworm, [1, *BOOKWORM]),
    "blkio": Part(blkio, 1, ("trixie",)),
    "guest61": Part(guest61, 1),
    "guest7": Part(guest7, 2),
    "rpmsg": Part(rpmsg, 1, ("guest61",)),
}


def check_machine() -> None:
    if platform.machine() != "x86_64":
        raise SetupError(f"the peers are x86-64 programs, and this is {platform.machine()}")
    missing = [package for command, package in NEEDED.items() if shutil.which(command) is None]
    if missing:
        raise SetupError(f"missing here: apt-get install {' '.join(missing)}")


def set_up(cache: Cache, name: str) -> None:
    """Make the part `name` unless it is there. It appears whole or not at all."""
    part = PARTS[name]
    target = cache.where / name
    stamp = cache.where / f"{name}.json"
    recipe = json.dumps(part.recipe)
    started = time.monotonic()
    if target.is_dir() and stamp.is_file():
        made = json.loads(stamp.read_text())
        if made["recipe"] == recipe:
            print(f"{name:9} there: {made['result']}", flush=True)
            return
    stamp.unlink(missing_ok=True)
    for old in (target, cache.where / f"{name}.new"):
        shutil.rmtree(old, ignore_errors=True)
    new = cache.where / f"{name}.new"
    result = part.make(cache, new)
    new.rename(target)
    stamp.write_text(json.dumps({"recipe": recipe, "result": result}))
    print(f"{name:9} {time.monotonic() - started:4.0f} s: {result}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.interop.setup", description="Get the real peers of the interop tests."
    )
    parser.add_argument("--cache", type=Path, default=cache_dir(), help="default: %(default)s")
    parser.add_argument("part", nargs="*", help=f"of {' '.join(PARTS)}; default: all")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.part if name not in PARTS]
    if unknown:
        parser.error(f"no part is called {unknown[0]}; there are: {' '.join(PARTS)}")
    asked = set(options.part or PARTS)
    asked |= {needed for name in asked for needed in PARTS[name].needs}
    try:
        check_machine()
        where: Path = options.cache.absolute()
        where.mkdir(parents=True, exist_ok=True)
        with (where / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cache = Cache(where)
            try:
                for name in PARTS:
                    if name in asked:
                        set_up(cache, name)
            finally:
                cache.clean()
    except (SetupError, OSError) as error:
        print(f"interop set-up: {error}", file=sys.stderr)
        return 1
    print(f"all in {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
