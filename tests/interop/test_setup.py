"""Finding the peers, and the set-up itself, without any peer."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest

from tests.interop import setup
from tests.interop.apt import SetupError
from tests.interop.peers import PEERS, require


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIRTRING_INTEROP_CACHE", str(tmp_path))
    monkeypatch.delenv("VIRTRING_INTEROP_REQUIRED", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", PEERS)
def test_missing_peer_skips(empty_cache: Path, name: str) -> None:
    command = rf"python -m tests\.interop\.setup --cache {empty_cache} {PEERS[name][0]}$"
    with pytest.raises(pytest.skip.Exception, match=command):
        require(name)


def test_missing_peer_fails_where_it_is_required(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTRING_INTEROP_REQUIRED", "1")
    with pytest.raises(pytest.fail.Exception, match="python -m tests"):
        require("qemu11")


def test_each_peer_has_its_part() -> None:
    assert {brought_by for brought_by, _ in PEERS.values()} <= set(setup.PARTS)


def test_part_is_made_once_and_whole(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []

    def make(cache: setup.Cache, target: Path) -> str:
        made.append(target)
        target.mkdir()
        if len(made) == 2:
            raise SetupError("the mirror is away")
        (target / "file").write_text(str(len(made)))
        return "a file"

    monkeypatch.setattr(setup, "check_machine", lambda: None)

    def run(recipe: int) -> int:
        monkeypatch.setattr(setup, "PARTS", {"one": setup.Part(make, recipe)})
        return setup.main(["--cache", str(empty_cache)])

    assert (run(1), run(1), len(made)) == (0, 0, 1)
    assert (empty_cache / "one/file").read_text() == "1"
    # Another recipe, which fails: the old part is gone, and there is no half of a new one.
    assert (run(2), len(made)) == (1, 2)
    assert "the mirror is away" in capsys.readouterr().err
    assert not (empty_cache / "one").exists()
    assert (run(2), len(made)) == (0, 3)
    assert (empty_cache / "one/file").read_text() == "3"
    assert json.loads((empty_cache / "one.json").read_text())["result"] == "a file"


def test_missing_tools_are_named(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "cc" else name)
    assert setup.main(["--cache", str(empty_cache)]) == 1
    assert "apt-get install gcc\n" in capsys.readouterr().err
