"""Shape of the source: no file grows too long, every compiled module has a stub."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "virtring"

LIMIT = 450

#: File -> lines it may have. Each for a reason: nothing gets in here to pass.
LONGER = {
    # Known answers, mostly tables.
    "tests/unit/test_model_vectors.py": 800,
    "tests/unit/test_region.py": 500,
    # Both layouts from both sides, line by line.
    "tests/unit/test_describe.py": 680,
}

#: Compiled modules without a name for Python; they are cimported only.
NO_STUB = {"virtring/ring/driver.pyx", "virtring/ring/device.pyx"}


def source_files() -> list[Path]:
    return [
        path
        for top in (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
        for path in sorted(top.rglob("*"))
        if path.suffix in (".py", ".pyx", ".pxd", ".h")
    ]


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()
    }
    assert len(lengths) > 40
    too_long = {name: n for name, n in lengths.items() if n > LONGER.get(name, LIMIT)}
    assert too_long == {}
    # An exception that is not needed any more goes.
    assert [name for name in LONGER if lengths.get(name, 0) <= LIMIT] == []


def test_every_compiled_module_has_a_stub() -> None:
    modules = {path.relative_to(ROOT) for path in PACKAGE.rglob("*.pyx")}
    assert len(modules) > 10
    missing = {str(path) for path in modules if not (ROOT / path).with_suffix(".pyi").exists()}
    assert missing == NO_STUB
    for name in NO_STUB:
        # A `def`, `cpdef` or class without an underscore would be a name for Python.
        text = (ROOT / name).read_text()
        assert re.findall(r"^(?:def|cpdef|class|cdef class)\b.*", text, re.MULTILINE) == []


def test_every_stub_belongs_to_a_compiled_module() -> None:
    stubs = list(PACKAGE.rglob("*.pyi"))
    assert [path for path in stubs if not path.with_suffix(".pyx").exists()] == []
