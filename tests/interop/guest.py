"""A Linux guest in QEMU: its script runs as the only process, then it powers off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.interop.cache import Program
from tests.interop.initramfs import Kernel, cpio, program_files
from tests.interop.peers import require
from tests.interop.process import Process

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp /run /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
stty -echo
echo "@@up $(uname -r)"
if sh -e /main; then
    echo "@@finished"
else
    echo "@@failed; the kernel's log ends with"
    dmesg | tail -n 25
    echo "@@end of log"
fi
poweroff -f
"""

MAIN = """\
section() {
    section_name=$1
    shift
    echo "@@begin $section_name"
    if "$@"; then section_status=0; else section_status=$?; fi
    echo "@@end $section_name $section_status"
    return $section_status
}
for module in @MODULES@; do
    insmod /modules/$module.ko
done
. /script
"""

# Under emulation these save about a quarter of the boot.
LESS_WORK = "nokaslr mitigations=off no_timer_check rodata=off cryptomgr.notests"


class Guest(Process):
    """Boots `kernel` and runs `script`, a text for busybox's shell, after loading `modules`.

    - `script` ends at the first command that fails. ``section NAME COMMAND...`` runs a command
      whose output `section` returns; what it reads is what `send` sends.
    - `modules` bring those they depend on; virtio_pci is always loaded.
    - `files` are put into the guest: path without the first slash -> contents, a file, or a program
      with its libraries.
    - `devices` are QEMU's further arguments. The memory, `memory` MiB, is a shared memfd, or with
      ``shared=False`` QEMU's own. `append` goes to the kernel's command line.
    - `reboots`: the script may reboot, and is run again then; otherwise that is the end.
    - `workdir` gets the initramfs.
    """

    def __init__(
        self,
        kernel: Kernel,
        script: str,
        *,
        workdir: Path,
        modules: Iterable[str] = (),
        files: Mapping[str, bytes | Path | Program] | None = None,
        devices: Sequence[str] = (),
        qemu: str = "qemu11",
        memory: int = 256,
        processors: int = 1,
        shared: bool = True,
        reboots: bool = False,
        append: str = "",
    ) -> None:
        program = require(qemu)
        ordered = kernel.modules(["virtio_pci", *modules])
        contents = {"bin/busybox": require("busybox").path.read_bytes()}
        contents |= {f"modules/{name}.ko": data for name, data in ordered.items()}
        for path, source in (files or {}).items():
            if isinstance(source, Program):
                contents |= program_files(source, path)
            else:
                contents[path] = source if isinstance(source, bytes) else source.read_bytes()
        contents["script"] = script.encode()
        contents["main"] = MAIN.replace("@MODULES@", " ".join(ordered)).encode()
        contents["init"] = INIT.encode()
        workdir.mkdir(parents=True, exist_ok=True)
        initramfs = workdir / "initramfs"
        initramfs.write_bytes(cpio(contents))
        kind = "memory-backend-memfd,share=on" if shared else "memory-backend-ram,share=off"
        backend = f"{kind},id=memory,size={memory}M"
        command_line = f"console=ttyS0 quiet panic=-1 {LESS_WORK} {append}".rstrip()
        super().__init__(
            program,
            [
                *("-no-user-config", "-nodefaults", "-display", "none"),
                *(() if reboots else ("-no-reboot",)),
                *("-accel", "tcg", "-m", f"{memory}M", "-smp", str(processors)),
                *("-object", backend, "-machine", "q35,memory-backend=memory"),
                *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
                *("-append", command_line, "-serial", "stdio"),
                *devices,
            ],
        )

    def wait_for(self, pattern: str, timeout: float = 180, *, start: int = 0) -> re.Match[str]:
        """As of a process; fails at once, too, when the script has failed."""
        found = super().wait_for(f"(?:{pattern})|^@@end of log$", timeout, start=start)
        if found[0] == "@@end of log":
            self.fail(f"the script failed before {pattern!r}")
        return found

    def section(self, name: str, timeout: float = 180) -> str:
        """What the command of ``section NAME COMMAND`` printed, when it has ended.

        Fails the test when the command failed.
        """
        end = self.wait_for(f"^@@end {re.escape(name)} (?P<status>\\d+)$", timeout)
        text = end.string[: end.start()].rpartition(f"@@begin {name}\n")[2]
        if end["status"] != "0":
            self.fail(f"{name} failed with exit code {end['status']}")
        return text

    def finish(self, timeout: float = 180) -> str:
        """Wait for the end of the script and of QEMU. Returns all that the guest printed."""
        self.wait_for("^@@finished$", timeout)
        return super().finish(timeout)
