"""rust-vmm's ``virtio-queue`` from crates.io: the device side of a split ring.

Cases (``rust_vmm/src/main.rs`` has the details): the ring is full of chains, and the device empties
it; filling is not timed. ``pop`` takes a chain, walks it and adds it to the used ring, one after
another; ``iter`` takes and walks all chains before it uses them; ``slices`` is ``pop`` that also
looks up each buffer in guest memory. ``batch`` is the number of chains in the ring.

Two releases are timed, because the newest is not the fastest: since vm-memory 0.17 the ring's
indexes are loaded and stored by way of ``get_slices``, which costs more.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.cache import Cache, PeerMissing, command, fingerprint, need
from benchmarks.peers.peer import Case, Record, Work, run_harness

_HARNESS = Path(__file__).parent / "rust_vmm"
_FILES = ("Cargo.toml", "src/main.rs")
RING_SIZE = 256
CHAINS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Release:
    """A release of virtio-queue, and of the vm-memory that it takes."""

    queue: str
    memory: str


# The newest one when this was written comes first.
RELEASES = (Release("0.18.0", "0.18.0"), Release("0.16.0", "0.16.2"))


class RustVmm:
    """The harness ``rust_vmm/``, built by cargo with link-time optimisation."""

    def __init__(self, release: Release = RELEASES[0]) -> None:
        self._release = release
        newest = release == RELEASES[0]
        self.name = "rust-vmm" if newest else f"rust-vmm-{release.queue}"
        self.version = ""
        self._program: Path | None = None

    def build(self, cache: Cache) -> None:
        """Copy the harness into the cache, name the release in its Cargo.toml, and run cargo."""
        need("cargo")
        place = cache.folder(f"rust_vmm-{self._release.queue}")
        program = place / "target/release/rust_vmm"
        stamp = place / "stamp"
        mark = fingerprint(
            [self._release.queue, self._release.memory, command(["cargo", "--version"], place)],
            [_HARNESS / name for name in _FILES],
        )
        if not (program.exists() and stamp.exists() and stamp.read_text() == mark):
            stamp.unlink(missing_ok=True)
            (place / "src").mkdir(exist_ok=True)
            shutil.copyfile(_HARNESS / "src/main.rs", place / "src/main.rs")
            (place / "Cargo.toml").write_text(self._manifest())
            (place / "Cargo.lock").unlink(missing_ok=True)
            command(
                ["cargo", "build", "--release", "--quiet"],
                place,
                {"CARGO_TARGET_DIR": str(place / "target")},
            )
            stamp.write_text(mark)
        self._program = program
        self.version = f"{self._release.queue} (vm-memory {self._release.memory})"

    def _manifest(self) -> str:
        text = (_HARNESS / "Cargo.toml").read_text()
        wanted = {"virtio-queue": self._release.queue, "vm-memory": self._release.memory}
        for crate, version in wanted.items():
            text, count = re.subn(
                rf'^({crate} = (?:{{ version = )?)"[^"]*"', rf'\1"={version}"', text, flags=re.M
            )
            if count != 1:
                raise PeerMissing(
                    f"Cargo.toml of the harness names {crate} {count} times, not once"
                )
        return text

    def cases(self) -> Sequence[Case]:
        """Chains of 1, 2, 4 and 8 readable descriptors."""
        return [
            Case(self.name, "split", RING_SIZE, name, length, RING_SIZE // length)
            for name in ("pop", "iter", "slices")
            for length in CHAINS
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case in a process of its own, on one core."""
        records = []
        for case in self.cases():
            if work.wants(case):
                words = [
                    f"--size={case.ring_size}",
                    f"--descriptors={case.descriptors}",
                    f"--case={case.name}",
                ]
                records.append(run_harness(self._program, case, [*words, *work.arguments(case)]))
        return records
