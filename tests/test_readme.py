"""README keeps its word: its examples run, as files of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()

EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README, re.M | re.S)

#: Title -> what its example prints; the others print nothing.
PRINTED = {
    "Two processes": "hello\nworld\npots\n",
    "Messages between processes": "HELLO WORLD\n16384\n",
}


def test_all_examples_are_found() -> None:
    assert len(EXAMPLES) == README.count("```python\n") == 6


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_example(title: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == PRINTED.get(title, "")


def test_the_commands_are_two() -> None:
    """``.ci/run`` runs README's shell blocks as they stand: to try it, and to test it."""
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    assert len(commands) == 2
    assert commands[0].endswith("virtring bench\n")
    assert commands[1].endswith("&& pytest\n")
