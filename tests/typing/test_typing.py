"""The type information: stubs agree with the compiled modules, users' code can be checked."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import virtring

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.timeout(600)


def run(arguments: list[str], cwd: Path, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_users_code_passes_strict_checks(tmp_path: Path) -> None:
    env = dict(os.environ)
    home = str(Path(virtring.__file__).resolve().parent.parent)
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if home not in installed:  # mypy finds an installed package by itself, and only so
        env["MYPYPATH"] = home
    # From elsewhere: the package's own configuration is not the user's.
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    out = run(["mypy", *options, str(HERE / "user_code.py")], tmp_path, env)
    assert out.startswith("Success")


def test_stubs_agree_with_the_modules() -> None:
    allowed = str(HERE / "stubtest_allow.txt")
    options = ["--allowlist", allowed, "--ignore-unused-allowlist", "--ignore-disjoint-bases"]
    out = run(["mypy.stubtest", "virtring", *options], ROOT, dict(os.environ))
    assert out.startswith("Success")
