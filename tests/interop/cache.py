"""Where the peers are kept: a folder outside the source, made by ``python -m tests.interop.setup``.

====================  ==============================================================
``trixie/``           unpacked packages of Debian 13 with backports: QEMU 11 and its
                      storage daemon, virtiofsd, libblkio, fio, busybox
``bookworm/``         unpacked packages of Debian 12: QEMU 7.2, DPDK's testpmd
``blkio/``            libblkio's blkio-bench, built here
``guest61/``          kernel 6.1 and its modules; ``guest7/``: kernel 7.x
``rpmsg/``            Linux's RPMsg modules, built here for guest61
====================  ==============================================================

Nothing is installed. A program runs with the loader and the libraries of its own folder, so that no
chroot, no mount and no privilege is needed, and paths and sockets are the same for all sides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
DPDK_PLUGINS = "dpdk/pmds-23.0"


def cache_dir() -> Path:
    """``$VIRTRING_INTEROP_CACHE``, or ``virtring-interop`` in the user's cache folder."""
    given = os.environ.get("VIRTRING_INTEROP_CACHE")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "virtring-interop"


@dataclass(frozen=True)
class Program:
    """How to start a peer: the words before its own arguments, and what its environment needs."""

    command: tuple[str, ...]
    path: Path
    env: dict[str, str] = field(default_factory=dict)
    #: Loader and folders of libraries; none for a static program.
    loader: Path | None = None
    libraries: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    def also(self, *arguments: str) -> Program:
        """The same with `arguments` behind the command."""
        command = (*self.command, *arguments)
        return Program(command, self.path, self.env, self.loader, self.libraries)


def library_folders(root: Path) -> tuple[Path, ...]:
    # Debian 12's packages use both /lib and /usr/lib; fio needs libraries of Ceph.
    own = root / LIBRARIES
    found = (own, root / "lib/x86_64-linux-gnu", own / "ceph", own / DPDK_PLUGINS)
    return tuple(folder for folder in found if folder.is_dir())


def packaged(root: Path, path: Path | str, **env: str) -> Program:
    """A program of the unpacked packages in `root`, or one built with their libraries."""
    libraries = library_folders(root)
    loaders = [folder / "ld-linux-x86-64.so.2" for folder in libraries]
    loader = next((file for file in loaders if file.exists()), loaders[0] if loaders else root)
    search = ":".join(str(folder) for folder in libraries)
    file = root / path
    command = (str(loader), "--library-path", search, str(file))
    return Program(command, file, env, loader, libraries)
