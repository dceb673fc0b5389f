"""Which virtring the tests test, and the wheel that the packaging tests share.

``pytest`` tests the virtring that is installed; where none is, and with ``python -m pytest``, the
source folder, which must have been built in place then.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Behind the installed packages, so that a source folder without compiled modules is not taken for
# the package: it is here for `tests.model` and the like.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

_SPEC = importlib.util.find_spec("virtring")
assert _SPEC is not None, "run `pip install .` or `python setup.py build_ext --inplace` first"
assert _SPEC.origin is not None

# Processes that tests start take the same virtring, wherever they are started.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(_SPEC.origin).parent.parent), str(ROOT)])


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """An environment in which neither the source folder nor this venv can be seen."""
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV", "VIRTRING_DEBUG")
    return {name: value for name, value in os.environ.items() if name not in hidden}


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Path:
    """The package's wheel: ``$VIRTRING_WHEEL``, or built now from a copy of the source."""
    given = os.environ.get("VIRTRING_WHEEL")
    if given:
        path = Path(given).resolve()
        assert path.is_file(), f"VIRTRING_WHEEL is {given}, and there is no such file"
        return path
    where = tmp_path_factory.mktemp("wheel")
    source = where / "source"
    # A copy: what an earlier build left in build/ must not get into the wheel.
    shutil.copytree(ROOT / "virtring", source / "virtring", ignore=_GENERATED)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    out = where / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(source)], env=clean_env, cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (wheel,) = out.glob("virtring-*.whl")
    return wheel


_GENERATED = shutil.ignore_patterns("*.so", "__pycache__")
