"""What compiled the virtring that is counted, read from its modules."""

import platform
import re
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import virtring

#: Counts can be compared as long as these are the same.
TELLING = ("compiler", "machine", "cython", "python")


def facts() -> dict[str, str]:
    """Compiler, machine, Cython, Python; and the flags Python adds, which hardly matter."""
    module = Path(virtring.__file__).parent / "queue" / f"batch{EXTENSION_SUFFIXES[0]}"
    data = module.read_bytes()
    # gcc and clang leave their names in the section .comment, Cython in that of its shared types.
    gcc = re.search(rb"GCC: \([^)]*\) (\d+)\.[\d.]+", data)
    clang = re.search(rb"clang version (\d+)\.[\d.]+", data)
    cython = re.search(rb"_cython_(\d+)_(\d+)_", data)
    compiler = f"clang {clang[1].decode()}" if clang else f"gcc {gcc[1].decode()}" if gcc else "?"
    flags = (sysconfig.get_config_var("CFLAGS") or "").split()
    return {
        "compiler": compiler,
        "machine": platform.machine(),
        "cython": f"{cython[1].decode()}.{cython[2].decode()}" if cython else "?",
        "python": ".".join(platform.python_version_tuple()[:2]),
        "flags": " ".join(sorted({f for f in flags if f.startswith(("-O", "-f", "-m"))})),
    }


def differences(baseline: dict[str, str], here: dict[str, str]) -> list[str]:
    """What keeps the counts of two builds from being compared, in words."""
    return [
        f"{name} {here[name]}, not {baseline.get(name, '?')}"
        for name in TELLING
        if "?" in (here[name], baseline.get(name, "?")) or here[name] != baseline[name]
    ]
