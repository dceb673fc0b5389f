"""The harness of virtring's own cases: times one, prints the line that the C harnesses print.

``python -m benchmarks.peers.ours_work CASE --rounds=N --buffers=N --cpu=N --other-cpu=N``, CASE as
JSON. Samples are taken as in ``timing.h``: after some rounds to warm up, and a round in which the
kernel gave the core to somebody else is run again.
"""

import argparse
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from types import ModuleType

from benchmarks.peers.ours import CYTHON, PARTS, TWO_CORES
from benchmarks.peers.ours_device import Refilled
from benchmarks.peers.ours_driver import Pair, time_batches, time_calls, time_single
from benchmarks.peers.ours_pair import Polled
from benchmarks.peers.peer import Case

#: One round: nanoseconds a buffer.
Round = Callable[[], float]

MAX_TRIES = 20
#: A core that was idle is slow at first.
WARM_SECONDS = 0.02
# Of two cores, as in ringtest.
TWO_CORES_TRIES = 5
# A round of two cores has to be long against the moment in which the device wakes up.
_TWO_CORES = 200_000


def main() -> int:
    options = _parser().parse_args()
    asked = json.loads(options.case)
    case = Case(
        asked["peer"],
        asked["ring"],
        asked["ring_size"],
        asked["case"],
        asked["descriptors"],
        asked["batch"],
        asked["indirect"],
    )
    cpu: int = options.cpu
    os.sched_setaffinity(0, {cpu})
    if case.name in TWO_CORES:
        with Polled(case, options.other_cpu) as polled:
            buffers = max(options.buffers, _TWO_CORES)
            samples, preempted = take_samples(
                partial(polled.round, buffers), options.rounds, polled.preemptions, TWO_CORES_TRIES
            )
    else:
        one = round_of(case, options.buffers, options.module)
        samples, preempted = take_samples(one, options.rounds, preemptions)
    print(
        json.dumps({**asked, "rounds": len(samples), "preempted": preempted, "samples": samples})
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--buffers", type=int, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--other-cpu", type=int, required=True)
    parser.add_argument("--module", help="folder of the compiled engine_loop")
    return parser


def preemptions() -> int:
    """How often this thread lost its core."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def take_samples(
    one: Round, rounds: int, lost: Callable[[], int], tries: int = MAX_TRIES
) -> tuple[list[float], int]:
    """The figures of so many rounds, and how many of them never had their core to themselves."""
    start = perf_counter()
    while perf_counter() - start < WARM_SECONDS:
        one()
    samples, preempted = [], 0
    for _ in range(rounds):
        for _ in range(tries):
            before = lost()
            figure = one()
            alone = lost() == before
            if alone:
                break
        samples.append(round(figure, 3))
        preempted += not alone
    return samples, preempted


def round_of(case: Case, buffers: int, folder: str | None) -> Round:
    """What to time for a case of one thread."""
    if case.peer == CYTHON:
        return _cython_round(case, buffers, _engine_loop(folder))
    if case.name == "device":
        return partial(Refilled(case).round, buffers)
    pair = Pair(case)
    timed = {"round": time_batches if case.batch > 1 else time_single, "call": time_calls}
    return partial(timed[case.name], pair, buffers)


def _engine_loop(folder: str | None) -> ModuleType:
    if folder is None:
        raise SystemExit("--module: where is engine_loop?")
    sys.path.append(folder)
    return importlib.import_module("engine_loop")


def _cython_round(case: Case, buffers: int, loop: ModuleType) -> Round:
    if case.name == "device":
        ring = Refilled(case)
        return partial(ring.round, buffers, partial(loop.serve, ring.device, ring.popped))
    pair = Pair(case)
    batch = case.batch
    times = -(-buffers // batch)
    words = (pair.driver, pair.device, pair.rows, pair.popped, pair.used, batch, times)
    if case.name in PARTS:
        step = PARTS.index(case.name)
        return lambda: float(loop.parts(*words)[step]) / (times * batch)
    return lambda: float(loop.rounds(*words)) / (times * batch)


if __name__ == "__main__":
    raise SystemExit(main())
