"""The layers of the package: a module imports lower ones or its own folder, siblings nothing.

Python files are parsed; in Cython files the import and cimport statements are found by their words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "virtring"

#: Folder or top-level module -> its floor. A module may import floors below its own.
FLOORS = {
    "_version": 0,
    "_include": 0,
    "errors": 0,
    "spec": 0,
    "memory": 1,
    "ring": 2,
    "queue": 3,
    "device": 4,
    "transport": 5,
    "drivers": 6,
    "devices": 6,
    "rpmsg": 6,
    "channel": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}

#: Modules of one folder that do the same work for another layout or side: none knows another.
SIBLINGS = {
    "ring": [
        {"split_driver", "packed_driver", "split_device", "packed_device"},
        {"split_driver", "packed_common"},
        {"split_device", "packed_common"},
        {"driver", "device"},
    ],
    "queue": [{"driver", "driver_add", "driver_ring", "device", "chain"}],
    "transport": [
        {"loopback", "virtio_pci", "virtio_mmio", "vhost_user", "vfio_user"},
        {"loopback", "virtio_pci_modern", "virtio_mmio_ops", "vhost_user", "vfio_user"},
        {"virtio_pci", "virtio_pci_modern"},
        {"virtio_mmio", "virtio_mmio_ops"},
        {"pci_function", "pci_bus"},
        {"pci_function", "pci_device"},
    ],
}

#: Within a set of siblings: who stands on whom all the same.
BUILT_ON = {
    ("queue", "driver"): {"driver_add", "driver_ring"},
    ("queue", "driver_add"): {"driver_ring"},
    ("queue", "device"): {"chain"},
}

CYTHON = re.compile(
    r"""^[ \t]* (?:
        from [ \t]+ (?P<origin> virtring[\w.]*) [ \t]+ c?import [ \t]+
            (?P<names> \([^)]*\) | [^\n(]*)
        | c?import [ \t]+ (?P<plain> [\w., \t]+)
    )""",
    re.MULTILINE | re.VERBOSE,
)


def cython_imports(text: str) -> Iterator[tuple[str, list[str]]]:
    for match in CYTHON.finditer(text):
        if match["plain"] is not None:
            for name in match["plain"].split(","):
                if name.split()[0].split(".")[0] == "virtring":
                    yield name.split()[0], []
        else:
            listed = re.sub(r"[()]|#[^\n]*", " ", match["names"])
            yield match["origin"], [name.split()[0] for name in listed.split(",") if name.strip()]


def python_imports(text: str) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "virtring":
                    yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            if (node.module or "").split(".")[0] == "virtring":
                yield node.module or "", [alias.name for alias in node.names]


def imported_modules(path: Path, package: Path) -> set[str]:
    """Dotted names, without the leading ``virtring.``, of the modules that a file imports."""
    text = path.read_text()
    found = python_imports(text) if path.suffix == ".py" else cython_imports(text)
    modules: set[str] = set()
    for origin, names in found:
        parts = origin.split(".")[1:]
        folder = package.joinpath(*parts)
        if not folder.is_dir():
            modules.add(".".join(parts))
            continue
        # `from virtring.memory import guest` names a module, `import Region` the folder's __init__.
        for name in names or ["__init__"]:
            is_module = any((folder / f"{name}{end}").exists() for end in (".py", ".pyx", ".pxd"))
            is_module = is_module or (folder / name).is_dir()
            modules.add(".".join([*parts, name if is_module else "__init__"]))
    return modules


def violations(package: Path) -> list[str]:
    """One sentence for each import that breaks a rule."""
    found: list[str] = []
    for path in sorted(package.rglob("*")):
        if path.suffix not in (".py", ".pyx", ".pxd"):
            continue
        where = path.relative_to(package)
        top, name = where.parts[0].split(".")[0], path.stem
        if top not in FLOORS:
            found.append(f"{where}: no floor is given for {top}")
            continue
        for module in sorted(imported_modules(path, package)):
            target, _, rest = module.partition(".")
            leaf = rest or target
            if target not in FLOORS:
                found.append(f"{where} imports {module}: no floor is given for {target}")
            elif target != top and FLOORS[target] >= FLOORS[top]:
                found.append(f"{where} (floor {FLOORS[top]}) imports {module} ({FLOORS[target]})")
            elif target == top and leaf != name and name != "__init__":
                found += [
                    f"{where} imports its sibling {module}"
                    for group in SIBLINGS.get(top, [])
                    if name in group
                    and leaf in group
                    and leaf not in BUILT_ON.get((top, name), set())
                ]
    return found


def test_no_module_reaches_up_or_sideways() -> None:
    assert violations(PACKAGE) == []


def test_every_known_folder_is_seen() -> None:
    imports = imported_modules(PACKAGE / "queue" / "driver_add.pyx", PACKAGE)
    assert {"memory.table", "ring.driver", "spec.ring", "errors"} <= imports
    assert "ring.packed_common" in imported_modules(PACKAGE / "ring" / "packed_device.pxd", PACKAGE)
    assert "queue.driver" in imported_modules(PACKAGE / "queue" / "create.py", PACKAGE)


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("memory/bad.py", "from virtring.queue import Batch\n", "memory/bad.py (floor 1) imports"),
        ("memory/bad.py", "import virtring.ring.driver as d\n", "imports ring.driver (2)"),
        (
            "memory/bad.py",
            "def late() -> None:\n    from virtring.ring import driver\n",
            "imports ring.driver (2)",
        ),
        ("spec/bad.pxd", "from virtring.errors cimport x\n", "(floor 0) imports errors (0)"),
        (
            "memory/bad.pyx",
            "from virtring.ring.common cimport (\n    VR_OK,  # fine\n    fail,\n)\n",
            "imports ring.common (2)",
        ),
        ("memory/bad.pyx", "cimport virtring.ring.common as c\n", "imports ring.common (2)"),
        ("memory/bad.pyx", "    import os, virtring.queue.batch\n", "imports queue.batch (3)"),
        (
            "ring/packed_device.pxd",
            "from virtring.ring.packed_driver cimport AVAIL_USED\n",
            "ring/packed_device.pxd imports its sibling ring.packed_driver",
        ),
        (
            "ring/split_device.pxd",
            "from virtring.ring cimport packed_device\n",
            "imports its sibling ring.packed_device",
        ),
        ("queue/device.pyx", "from virtring.queue.driver cimport Virtqueue\n", "its sibling"),
        ("queue/bad.py", "import virtring\n", "imports __init__ (8)"),
        ("odd/bad.py", "", "no floor is given for odd"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, text: str, sentence: str) -> None:
    package = tmp_path / "virtring"
    for name in ("errors.py", "ring/packed_device.pxd", "ring/driver.pxd", "ring/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    (package / "queue").mkdir()
    (package / "queue" / "__init__.py").write_text("")
    assert violations(package) == []
    (package / path).parent.mkdir(parents=True, exist_ok=True)
    (package / path).write_text(text)
    (found,) = violations(package)
    assert sentence in found
