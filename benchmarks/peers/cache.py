"""The folder outside the repository where peers are fetched to and built in."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LONGEST = 1800.0  # seconds


class PeerMissing(Exception):
    """A peer cannot be built or run here; the message is the reason that the table shows."""


@dataclass(frozen=True)
class Cache:
    """A folder of fetched sources and built programs, safe to delete at any time."""

    root: Path

    @classmethod
    def default(cls) -> "Cache":
        """``$VIRTRING_PEERS_CACHE``, or ``virtring-peers`` in the XDG cache folder."""
        chosen = os.environ.get("VIRTRING_PEERS_CACHE")
        if chosen:
            return cls(Path(chosen).expanduser().absolute())
        xdg = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(xdg) if xdg else Path.home() / ".cache") / "virtring-peers")

    def folder(self, name: str) -> Path:
        """The folder of that name, made if it is not there."""
        path = self.root / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PeerMissing(f"no cache folder: {error}") from error
        return path

    def scratch(self) -> Path:
        """A new empty folder; what is finished in it is renamed into place."""
        return Path(tempfile.mkdtemp(dir=self.folder("scratch")))


def settle(made: Path, place: Path) -> None:
    """Rename a finished folder to its place; another process may have been first."""
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(made, ignore_errors=True)


def need(*programs: str) -> None:
    """Raise :exc:`PeerMissing` unless every one of the programs is installed."""
    absent = [name for name in programs if shutil.which(name) is None]
    if absent:
        raise PeerMissing(f"not installed: {', '.join(absent)}")


def command(
    words: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return what it prints; :exc:`PeerMissing` with the reason if it fails.

    ``environment`` is added to the one of this process. No command may take half an hour.
    """
    env = {**os.environ, **(environment or {})}
    name = Path(words[0]).name
    try:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{name}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        telling = [line.strip() for line in said if "error" in line.lower()][:3] or said[-3:]
        raise PeerMissing(f"{name} ended with {done.returncode}: {' | '.join(telling)}")
    return done.stdout


def fingerprint(words: Iterable[str | Path], files: Iterable[Path]) -> str:
    """A digest of a command and of the files it reads; equal means nothing has to be built."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{word}\0".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
