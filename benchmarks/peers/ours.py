"""virtring itself, timed as the peers are: ``virtring`` from Python, ``virtring-cython`` without.

Cases are called as those of the peer they are compared with (see :mod:`benchmarks.peers.compare`):

``round``
    As ``linux-ring``: add, one kick, device, get; but the device is ours, and it checks every
    address. Batches go by ``add_outbuf_batch`` (several descriptors: ``add_sgs_batch``),
    ``kick``, ``pop``, ``push``, ``get_buf_batch``. With a batch of 1 the driver makes single calls
    with an object as token: ``add_outbuf``, ``kick``, ``get_buf``.
``call``
    As ``linux-ring``: ``add_outbuf`` with an object as token and ``kick_prepare``, until the ring
    is full; then ``get_buf`` for every buffer. The device step in between is not timed.
``device``
    As ``linux-vringh`` and ``rust-vmm``: the ring was filled by a few numpy writes, untimed;
    timed are ``pop`` and ``push`` of all there is.
``window``, ``free``
    As ``ringtest``: two processes on two cores, both polling, 64 buffers under way in batches of
    32, or as many as the ring holds in batches of half of that.

``virtring-cython`` makes ``round`` and ``device`` from a Cython module that cimports the engine and
loops without the GIL: what remains when Python's calls are taken away. Its ``part-*`` cases split a
``round`` into the four steps. It is built in the cache by the Cython of this environment.
"""

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import virtring
from benchmarks import ROOT
from benchmarks.peers.cache import Cache, PeerMissing, command, fingerprint, need, settle
from benchmarks.peers.peer import Case, Record, Work, read_report

PYTHON = "virtring"
CYTHON = "virtring-cython"
PARTS = ("part-add", "part-pop", "part-push", "part-get")
TWO_CORES = ("window", "free")
RINGS = ("split", "packed")
CHAINS = (1, 2, 4, 8)
#: A batch that fits every ring, for the question what the size of the ring costs.
FLAT_BATCH = 64
FLAT_SIZES = (64, 32768)
# Single calls take ten times as long: with less of them, a round is as short as the peer's.
_LESS = 8
_LOOP = Path(__file__).parent / "engine_loop.pyx"


class Virtring:
    """The engine from Python."""

    name = PYTHON

    def __init__(self) -> None:
        self.version = ""

    def build(self, cache: Cache) -> None:
        """Nothing to build: it is the virtring that this Python imports."""
        self.version = f"{virtring.__version__}, Python {platform.python_version()}"

    def cases(self) -> Sequence[Case]:
        """The cases of all peers, where virtring does the same."""
        shapes = ((1, False), (4, False), (4, True))
        return [
            *(
                Case(PYTHON, ring, 1024, name, descriptors, batch, indirect)
                for ring in RINGS
                for descriptors, indirect in shapes
                for name, batch in (*(("round", n) for n in (1, 16, 256)), ("call", 1))
            ),
            *(
                Case(PYTHON, ring, size, "round", batch=FLAT_BATCH)
                for ring in RINGS
                for size in FLAT_SIZES
            ),
            *(Case(PYTHON, "split", 256, "device", n, 256 // n) for n in CHAINS),
            *(
                Case(PYTHON, ring, 256, name, batch=batch)
                for ring in RINGS
                for name, batch in zip(TWO_CORES, (32, 1), strict=True)
            ),
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case in a process of its own; with one core, nothing that takes two."""
        alone = len(set(work.cpus)) < 2
        return [
            _run(case, work, [])
            for case in self.cases()
            if work.wants(case) and not (alone and case.name in TWO_CORES)
        ]


class VirtringCython:
    """The engine from Cython, no Python in the loop."""

    name = CYTHON

    def __init__(self) -> None:
        self.version = ""
        self._place: Path | None = None

    def build(self, cache: Cache) -> None:
        """Compile ``engine_loop.pyx`` against the C API of the imported virtring."""
        need("cc")
        try:
            cython = version("Cython")
        except PackageNotFoundError as error:
            raise PeerMissing("not installed: Cython") from error
        package = Path(virtring.__file__).parent
        mark = fingerprint(
            [sys.version, cython, str(package)],
            [_LOOP, *sorted(package.rglob("*.pxd")), *sorted(package.rglob("*.h"))],
        )
        place = cache.folder("programs") / f"engine_loop-{mark[:16]}"
        if not place.is_dir():
            work = cache.scratch()
            try:
                shutil.copyfile(_LOOP, work / _LOOP.name)
                (work / "setup.py").write_text(_SETUP.format(include=virtring.get_include()))
                found = {"PYTHONPATH": str(package.parent)}
                command([sys.executable, "setup.py", "build_ext", "--inplace"], work, found)
                made = work / "made"
                made.mkdir()
                for module in work.glob("engine_loop*.so"):
                    module.rename(made / module.name)
                settle(made, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._place = place
        self.version = f"{virtring.__version__}, Cython {cython}"

    def cases(self) -> Sequence[Case]:
        """One descriptor round the ring, the steps of that, and the device side."""
        return [
            *(
                Case(CYTHON, ring, 1024, name, batch=batch)
                for ring in RINGS
                for name, batch in (
                    *(("round", n) for n in (1, 16, 256)),
                    *((part, 256) for part in PARTS),
                )
            ),
            *(Case(CYTHON, "split", 256, "device", n, 256 // n) for n in CHAINS),
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case in a process of its own."""
        words = [f"--module={self._place}"]
        return [_run(case, work, words) for case in self.cases() if work.wants(case)]


_SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

module = Extension(
    "engine_loop", ["engine_loop.pyx"], include_dirs={include!r},
    extra_compile_args=["-O3", "-fno-plt"],
)
setup(name="engine_loop", ext_modules=cythonize([module]))
"""


def _run(case: Case, work: Work, more: Sequence[str]) -> Record:
    """One process of :mod:`benchmarks.peers.ours_work` for one case."""
    asked = {
        "peer": case.peer,
        "ring": case.ring,
        "ring_size": case.ring_size,
        "case": case.name,
        "descriptors": case.descriptors,
        "batch": case.batch,
        "indirect": case.indirect,
    }
    if case.peer == PYTHON and case.batch == 1 and case.name in ("round", "call"):
        work = replace(work, buffers=max(1, work.buffers // _LESS))
    words = [
        *(sys.executable, "-m", "benchmarks.peers.ours_work", json.dumps(asked)),
        *work.arguments(case),
        f"--other-cpu={work.cpus[0]}",
        *more,
    ]
    return read_report(case, command(words, ROOT))
