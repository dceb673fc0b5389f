"""What virtring is measured against: other people's queues, built and run on this machine.

``python -m benchmarks.peers`` fetches and builds them in a cache outside the repository (see
:mod:`benchmarks.peers.cache`) and prints what each costs. One module is one peer; all follow
:class:`benchmarks.peers.peer.Peer`.
"""

from collections.abc import Sequence

from benchmarks.peers.linux_ring import LinuxRing
from benchmarks.peers.linux_vringh import LinuxVringh
from benchmarks.peers.peer import Peer
from benchmarks.peers.ringtest import PROGRAMS, Ringtest
from benchmarks.peers.rust_vmm import RELEASES, RustVmm


def ring_engines() -> dict[str, Sequence[Peer]]:
    """Every peer of the ring engine by what it can be compared on; none of them is built yet.

    Peers of one group are run in turns, close together in time: on a shared machine only figures
    of the same moment can be compared.
    """
    return {
        "driver side, one thread": (LinuxRing(),),
        "device side, one thread": (
            LinuxVringh(),
            *(RustVmm(release) for release in RELEASES),
        ),
        "both sides, two cores": tuple(Ringtest(program) for program in PROGRAMS),
    }
