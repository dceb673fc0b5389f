"""Debian packages of any release into a folder, by an apt of its own that touches nothing else.

The mirror and the ways to reach it are those of this machine's apt. The packages are unpacked, not
installed: no maintainer script runs, and no privilege is needed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

CONFIG = """\
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}";
Dir::State::status "{dir}/status";
Dir::State::lists "{dir}/lists";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Debug::NoLocking "1";
pkgCacheGen::Essential "none";
APT::Install-Recommends "0";
APT::Sandbox::User "root";
Acquire::Retries "3";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
"""


class SetupError(Exception):
    """What is missing or went wrong, in words for the user."""


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output of `command`; SetupError with the end of what it said when it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise SetupError(f"{' '.join(command)[:300]}: exit code {done.returncode}\n{said}")
    return done.stdout


def mirror() -> str:
    """The archive that this machine's apt uses for Debian itself."""
    listed = run(["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"])
    for uri in listed.splitlines():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise SetupError("apt's sources name no Debian archive (an address that ends in /debian)")


class Apt:
    """One Debian release: look up, download and unpack."""

    def __init__(self, where: Path, suite: str, *, backports: bool = False) -> None:
        if not KEYRING.exists():
            raise SetupError("no keys of Debian: apt-get install debian-archive-keyring")
        self.suite = suite
        self._where = where
        self._archives = where / "archives"
        (where / "lists/partial").mkdir(parents=True, exist_ok=True)
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        (where / "status").write_text("")
        suites = [suite, f"{suite}-backports"] if backports else [suite]
        lines = [f"deb [signed-by={KEYRING}] {mirror()} {name} main\n" for name in suites]
        (where / "sources.list").write_text("".join(lines))
        self._config = where / "apt.conf"
        self._config.write_text(CONFIG.format(dir=where))
        self._run("apt-get", "-qq", "update")

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        # Named by an option, it is read after this machine's own configuration, which stays valid.
        return run([command[0], "-c", str(self._config), *command[1:]], cwd=cwd)

    def depends(self, package: str, pattern: str) -> str:
        """The package that the newest `package` depends on and whose name has `pattern` in it."""
        for line in self._run("apt-cache", "depends", package).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and pattern in name:
                return name
        raise SetupError(f"{self.suite}: {package} depends on no {pattern}")

    def unpack(self, packages: list[str], root: Path, *, release: str | None = None) -> int:
        """`packages` and all they depend on into `root`. Returns how many packages that was."""
        target = ["-t", release] if release else []
        self._run("apt-get", "-qq", "-y", "--download-only", *target, "install", *packages)
        return self._unpack_archives(root)

    def unpack_alone(self, packages: list[str], root: Path) -> int:
        """Only `packages`, without what they depend on."""
        self._run("apt-get", "-qq", "download", *packages, cwd=self._archives)
        return self._unpack_archives(root)

    def _unpack_archives(self, root: Path) -> int:
        root.mkdir(parents=True, exist_ok=True)
        archives = sorted(self._archives.glob("*.deb"))
        for archive in archives:
            run(["dpkg-deb", "-x", str(archive), str(root)])
            archive.unlink()
        return len(archives)
