"""What a guest starts from: a kernel, the modules it needs in their order, and files."""

from __future__ import annotations

import functools
import lzma
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.interop.apt import run
from tests.interop.cache import Program
from tests.interop.peers import part

_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


def _module_name(file: str) -> str:
    # As modprobe has it: '-' and '_' are the same.
    return file.partition(".")[0].replace("-", "_")


class Kernel:
    """A kernel image, and modules below `folders`; the first is the kernel's own."""

    def __init__(self, image: Path, folders: list[Path]) -> None:
        self.image = image
        self.release = folders[0].name
        self._files = {
            _module_name(file.name): file for folder in folders for file in folder.rglob("*.ko*")
        }
        builtin = (folders[0] / "modules.builtin").read_text().split()
        self._builtin = {_module_name(Path(line).name) for line in builtin}

    def modules(self, names: Iterable[str]) -> dict[str, bytes]:
        """The modules `names` and those they depend on, in the order in which to load them.

        Those built into the kernel are left out. KeyError for one that the kernel does not have.
        """
        ordered: dict[str, bytes] = {}
        for name in map(_module_name, names):
            if name in ordered or name in self._builtin:
                continue
            if name not in self._files:
                raise KeyError(f"kernel {self.release} has no module {name}")
            data = self._files[name].read_bytes()
            if self._files[name].suffix == ".xz":
                data = lzma.decompress(data)
            depends = _DEPENDS.search(data)
            assert depends, f"{self._files[name]} does not say what it depends on"
            ordered |= self.modules(filter(None, depends[1].decode().split(",")))
            ordered[name] = data
        return ordered


@functools.cache
def linux61(*, rpmsg: bool = False) -> Kernel:
    """Debian 12's cloud kernel: packed rings but not in-order; `rpmsg` adds the RPMsg modules."""
    root = part("guest61")
    (modules,) = (root / "lib/modules").iterdir()
    folders = [modules, part("rpmsg")] if rpmsg else [modules]
    return Kernel(root / f"boot/vmlinuz-{modules.name}", folders)


@functools.cache
def linux7() -> Kernel:
    """The cloud kernel of Debian 13's backports: packed rings and in-order."""
    (modules,) = (part("guest7") / "usr/lib/modules").iterdir()
    return Kernel(modules / "vmlinuz", [modules])


def program_files(program: Program, where: str) -> dict[str, bytes]:
    """The program at `where` in the guest, with its loader and libraries where that finds them."""
    files = {where: program.path.read_bytes()}
    if program.loader is not None:
        files["lib64/ld-linux-x86-64.so.2"] = program.loader.read_bytes()
        listed = run([*program.command[:-1], "--list", program.command[-1]])
        for line in listed.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow:
                library = Path(rest.rpartition(" (")[0])
                files[f"lib/x86_64-linux-gnu/{name}"] = library.read_bytes()
    return files


def cpio(files: Mapping[str, bytes]) -> bytes:
    """An initramfs of executable `files`, path -> contents, their folders, and /dev/console.

    The format is "newc" of Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    parts: list[bytes] = []

    def entry(number: int, name: str, mode: int, data: bytes = b"", device: int = 0) -> None:
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, device >> 8, device & 255, len(path))
        head = b"070701" + b"".join(b"%08X" % value for value in (*fields, 0)) + path
        parts.extend((head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)))

    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    names = sorted(folders | {"dev"}, key=lambda name: (name.count("/"), name))
    for number, name in enumerate(names):
        entry(number, name, stat.S_IFDIR | 0o755)
    entry(len(names), "dev/console", stat.S_IFCHR | 0o600, device=5 << 8 | 1)
    for number, (name, data) in enumerate(files.items(), len(names) + 1):
        entry(number, name, stat.S_IFREG | 0o755, data)
    entry(0, "TRAILER!!!", 0)
    return b"".join(parts)
