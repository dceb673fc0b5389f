"""What virtring is measured against: other people's queues, built and run on this machine.

``python -m benchmarks.peers`` fetches and builds them in a cache outside the repository (see
:mod:`benchmarks.peers.cache`), runs them and virtring in turns, and prints both beside the target.
One module is one peer; all follow :class:`benchmarks.peers.peer.Peer`. DPDK's rings cannot be
driven without its drivers: ``python -m benchmarks.real_peers net`` sets ours beside it.
"""

from collections.abc import Mapping, Sequence

from benchmarks.peers.compare import Comparison, channel_comparisons, ring_comparisons
from benchmarks.peers.linux_ring import LinuxRing
from benchmarks.peers.linux_vringh import LinuxVringh
from benchmarks.peers.ours import Virtring, VirtringCython
from benchmarks.peers.peer import Peer
from benchmarks.peers.python_channels import channel_engines
from benchmarks.peers.ringtest import PROGRAMS, Ringtest
from benchmarks.peers.rust_vmm import RELEASES, RustVmm


def ring_engines() -> list[Peer]:
    """virtring and every peer of the ring engine; none of them is built yet."""
    return [
        Virtring(),
        VirtringCython(),
        LinuxRing(),
        LinuxVringh(),
        *(RustVmm(release) for release in RELEASES),
        *(Ringtest(program) for program in PROGRAMS),
    ]


def channels() -> Mapping[str, Sequence[Peer]]:
    """Groups of peers that all do one and the same, such as carrying messages, by their question.

    The one of a group whose name begins with ``virtring`` is compared with the others.
    """
    return channel_engines()


def engines() -> list[Peer]:
    """All peers."""
    return [*ring_engines(), *(peer for group in channels().values() for peer in group)]


def comparisons() -> dict[str, list[Comparison]]:
    """All comparisons, by the question that they answer."""
    return {**ring_comparisons(), **channel_comparisons(channels())}
