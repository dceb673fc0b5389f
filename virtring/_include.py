"""Where the C headers are that a Cython module needs when it cimports virtring."""

from pathlib import Path


def get_include() -> list[str]:
    """Directories for ``include_dirs`` of an extension that cimports virtring, as strings.

    They hold ``barriers.h`` and ``layout_check.h``. The ``.pxd`` files are found by Cython itself,
    in the installed package.
    """
    package = Path(__file__).resolve().parent
    return [str(package / "memory"), str(package / "spec")]
