"""Builds the Cython modules; everything else about the package is in pyproject.toml.

Two profiles, chosen by the environment:

- release (default): the directives below;
- ``VIRTRING_DEBUG=1``: Cython's own bounds checks on, and the address and undefined-behaviour
  sanitizers compiled in (run the tests with the sanitizer runtime preloaded, see CONTRIBUTING.md).
"""

import multiprocessing
import os
import platform
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("VIRTRING_DEBUG", "0") not in ("", "0")

# Speed settings, not the safety policy: what the peer wrote is checked by explicit code.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": False,
    "cdivision": True,
    "embedsignature": True,
    "binding": True,
    "freethreading_compatible": False,
}

COMPILE = ["-std=gnu11", "-Wall", "-Wno-unused-function", "-Wno-unreachable-code"]
LINK: list[str] = []
if DEBUG:
    COMPILE += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    LINK += ["-fsanitize=address,undefined"]
else:
    # -g0: debug information doubles the wheel.
    COMPILE += ["-g0"]
    # The engine's one-step primitives (inline) are meant to melt into the loops that call them; the
    # hot loops themselves are not, or they would have to share their registers.
    COMPILE += [
        "-O3",
        "-fno-plt",
        "-fno-inline-functions",
        "-fno-inline-small-functions",
        "-fno-inline-functions-called-once",
        "--param=max-inline-insns-single=1000",
    ]
    if platform.machine() in ("x86_64", "i686"):
        # Intel's Skylake family decodes a branch that touches a 32-byte boundary anew each time;
        # without this a loop's speed is a matter of luck (erratum SKX102).
        COMPILE += ["-Wa,-mbranches-within-32B-boundaries"]


#: The module of Cython's own code that the others share.
SHARED = "virtring._cyutility"


def extensions() -> list[Extension]:
    """One extension a .pyx file, named by its place in the package."""
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            include_dirs=["virtring/memory", "virtring/spec"],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
            define_macros=[("CYTHON_CLINE_IN_TRACEBACK", "0")],
        )
        for path in sorted(Path("virtring").rglob("*.pyx"))
    ]


def modules() -> list[Extension]:
    """As C, unless nothing will be compiled: a source distribution is asked for three times."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command in ("egg_info", "dist_info", "sdist"):
        return extensions()
    # What typed memoryviews need is compiled once and not into each module, of which it is most.
    shared = Extension(SHARED, [], extra_compile_args=COMPILE, extra_link_args=LINK)
    made: list[Extension] = cythonize(
        [*extensions(), shared],
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED,
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        # By fork only: another way would run the installer's program again.
        nthreads=(os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0,
        annotate=os.environ.get("VIRTRING_ANNOTATE", "0") not in ("", "0"),
    )
    return made


setup(
    # The modules compile side by side; it takes minutes otherwise.
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=modules(),
)
