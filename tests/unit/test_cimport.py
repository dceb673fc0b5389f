"""The wheel: what is in it, that it needs no compiler, and that other Cython code can use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIRDPARTY = ROOT / "tests" / "thirdparty"

# Building the wheel takes a minute or more, which counts for the first test here.
pytestmark = pytest.mark.timeout(1200)


def run(command: list[str], env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def no_compiler(clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with nothing in it."""
    return tmp_path_factory.mktemp("empty-path")


@pytest.fixture(scope="module")
def other_python(
    built_wheel: Path,
    clean_env: dict[str, str],
    no_compiler: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Python of a new venv with the wheel installed, without a compiler and without an index.

    numpy, Cython and setuptools are those of the venv that runs the tests, behind its own packages.
    """
    where = tmp_path_factory.mktemp("venv")
    venv.create(where, with_pip=True, symlinks=True)
    python = where / "bin" / "python"
    (site,) = where.glob("lib/python*/site-packages")
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in ours))
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    run(
        [str(python), "-m", "pip", "install", *options, str(built_wheel)],
        {**clean_env, "PATH": str(no_compiler)},
        where,
    )
    return python


def test_the_wheel_has_all_that_users_and_cython_need(built_wheel: Path) -> None:
    with zipfile.ZipFile(built_wheel) as wheel:
        inside = set(wheel.namelist())
    package = ROOT / "virtring"
    for end in ("py", "pyi", "pxd", "h"):
        want = {str(path.relative_to(ROOT)) for path in package.rglob(f"*.{end}")}
        assert want
        assert want - inside == set()
    assert "virtring/py.typed" in inside
    compiled = {name.split(".")[0] for name in inside if name.endswith(".so")}
    sources = {str(path.relative_to(ROOT).with_suffix("")) for path in package.rglob("*.pyx")}
    # And Cython's own code that they share.
    assert compiled == sources | {"virtring/_cyutility"}
    # Nothing beside the package: no tests, no generated C.
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"virtring"}
    assert [name for name in inside if name.endswith((".c", ".pyc"))] == []


def test_it_installs_and_works_without_a_compiler(
    other_python: Path, no_compiler: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    env = {**clean_env, "PATH": str(no_compiler)}
    command = [str(other_python), str(THIRDPARTY / "smoke.py"), "--no-compiler"]
    assert run(command, env, tmp_path) == "ok\n"


def test_another_cython_module_drives_a_ring_without_the_gil(
    other_python: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("ringloop.pyx", "setup.py", "drive.py"):
        shutil.copy(THIRDPARTY / name, tmp_path)
    assert shutil.which(os.environ.get("CC", "gcc").split()[0]), "this test needs a C compiler"
    run([str(other_python), "setup.py", "-q", "build_ext", "--inplace"], clean_env, tmp_path)
    assert run([str(other_python), "drive.py"], clean_env, tmp_path) == "ok\n"


def test_the_include_directories_have_the_headers() -> None:
    code = "import virtring; print(*virtring.get_include(), sep='\\n')"
    listed = run([sys.executable, "-c", code], dict(os.environ), ROOT / "tests").split()
    headers = {header.name for path in listed for header in Path(path).glob("*.h")}
    assert {"barriers.h", "layout_check.h"} <= headers
