"""The parts of Linux's source that run in user space, from the distribution's source package.

Nothing of Linux is in this repository: its code is read from ``linux-source-6.*`` of Debian and its
relatives, and compiled in the cache with the stand-in headers of the kernel's own ``tools/virtio``.
"""

import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmarks.peers.cache import Cache, PeerMissing, command, fingerprint, need, settle

_HERE = Path(__file__).parent
_INSTALLED = Path("/usr/src")
_PACKAGE = re.compile(r"linux-source-6\.(\d+)")
_ARCHIVE = re.compile(r"linux-source-6\.(\d+)\.tar\.(?:xz|gz|bz2)")
# Folders end with a slash.
_PARTS = (
    "Makefile",
    "drivers/vhost/vringh.c",
    "drivers/virtio/virtio_ring.c",
    "include/linux/",
    "include/uapi/linux/",
    "tools/arch/",
    "tools/include/",
    "tools/virtio/",
)
# Those of tools/virtio/Makefile, and what its headers lack: data_race (6.1), MODULE_DESCRIPTION and
# an empty header (6.12). The width of a physical address is the kernel's on every 64-bit machine;
# the headers would cut ring addresses to 32 bits.
_FLAGS = (
    "-O2",
    "-fno-strict-overflow",
    "-fno-strict-aliasing",
    "-fno-common",
    "-U_FORTIFY_SOURCE",
    "-pthread",
    "-Ddata_race(x)=(x)",
    "-DMODULE_DESCRIPTION(x)=",
    "-DCONFIG_PHYS_ADDR_T_64BIT=1",
)
_EMPTY_HEADERS = ("linux/compiler-context-analysis.h",)


@dataclass(frozen=True)
class LinuxSource:
    """An unpacked part of a kernel source."""

    path: Path
    version: str

    def compile(self, cache: Cache, harness: str, source: str, link: Sequence[str] = ()) -> Path:
        """Build ``harness`` (a C file beside this module) with one C file of Linux.

        The two are compiled apart, as a driver and its core are in the kernel: nothing of one is
        inlined into the other. Returns the program; :exc:`PeerMissing` if it cannot be built.
        """
        need("gcc")
        own = _HERE / harness
        out = cache.folder("programs")
        program = out / f"{own.stem}-{self.version}"
        stamp = program.with_suffix(program.suffix + ".stamp")
        kconfig = self.path / "include/linux/kconfig.h"
        flags = [*_FLAGS, "-include", str(kconfig), "-idirafter", "empty"]
        headers = [self.path / "tools/virtio", self.path / "tools/include"]
        mark = fingerprint(
            [*flags, *link, command(["gcc", "--version"], out)],
            [own, _HERE / "timing.h", self.path / source],
        )
        if program.exists() and stamp.exists() and stamp.read_text() == mark:
            return program
        work = cache.scratch()
        try:
            for header in _EMPTY_HEADERS:
                (work / "empty" / header).parent.mkdir(parents=True, exist_ok=True)
                (work / "empty" / header).touch()
            # Linux's warnings are not ours; neither are those of its headers.
            theirs = [f"-I{folder}" for folder in headers]
            command(["gcc", *flags, "-w", *theirs, "-c", self.path / source, "-o", "linux.o"], work)
            system = [word for folder in headers for word in ("-isystem", str(folder))]
            ours = ["-Wall", "-Wextra", "-Werror", *system]
            command(["gcc", *flags, *ours, own, "linux.o", *link, "-o", "program"], work)
            (work / "program").replace(program)
            stamp.write_text(mark)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return program


def linux_source(cache: Cache) -> LinuxSource:
    """The newest 6.x source in ``/usr/src`` and the cache, or else in the package archive.

    An archive named ``linux-source-6.N.tar.xz`` may also be put into the cache's ``linux`` folder
    by hand. Built so far: 6.1 and 6.12. Raises :exc:`PeerMissing` if there is none.
    """
    folder = cache.folder("linux")
    archive = _newest_archive([_INSTALLED, folder]) or _download(cache, folder)
    place = folder / archive.name.split(".tar.")[0]
    if not place.is_dir():
        _unpack(cache, archive, place)
    return LinuxSource(place, _version(place))


def _newest_archive(folders: Sequence[Path]) -> Path | None:
    found: dict[int, Path] = {}
    for folder in folders:
        for path in folder.glob("linux-source-6.*"):
            match = _ARCHIVE.fullmatch(path.name)
            if match:
                found.setdefault(int(match[1]), path)
    return found[max(found)] if found else None


def _download(cache: Cache, folder: Path) -> Path:
    """Fetch the package without installing it, so that this needs no rights."""
    need("apt-cache", "apt-get", "dpkg")
    work = cache.scratch()
    try:
        listed = command(["apt-cache", "search", "--names-only", r"^linux-source-6\.[0-9]+$"], work)
        minors = [int(match[1]) for match in _PACKAGE.finditer(listed)]
        if not minors:
            raise PeerMissing("the package archive has no linux-source-6.*")
        command(["apt-get", "download", f"linux-source-6.{max(minors)}"], work)
        (package,) = work.glob("*.deb")
        command(["dpkg", "-x", package.name, "."], work)
        archive = _newest_archive([work / "usr/src"])
        if archive is None:
            raise PeerMissing(f"{package.name} holds no source archive")
        return archive.replace(folder / archive.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(cache: Cache, archive: Path, place: Path) -> None:
    """Read the archive once and write the regular files of the parts that are needed."""
    work = cache.scratch()
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or ".." in inside.parts or not _is_needed(str(inside)):
                    continue
                data = tar.extractfile(member)
                if data is None:
                    continue
                path = work / "source" / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.read())
        settle(work / "source", place)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise PeerMissing(f"cannot unpack {archive.name}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_needed(name: str) -> bool:
    return any(name == part or (part[-1] == "/" and name.startswith(part)) for part in _PARTS)


def _version(source: Path) -> str:
    text = (source / "Makefile").read_text()
    numbers = []
    for word in ("VERSION", "PATCHLEVEL", "SUBLEVEL"):
        match = re.search(rf"^{word} = (\d+)$", text, re.MULTILINE)
        if match is None:
            raise PeerMissing(f"the Makefile of {source.name} names no {word}")
        numbers.append(match[1])
    return ".".join(numbers)
