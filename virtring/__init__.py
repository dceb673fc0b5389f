"""virtring: a high-throughput virtqueue engine for Python."""

from virtring._version import __version__

__all__ = ["__version__"]
