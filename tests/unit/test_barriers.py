"""What the compiler makes of barriers.h: fences, and loads and stores that keep an order."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import virtring

SOURCE = """
#include "barriers.h"
void weak_mb(void) { vr_mb(1); }
void strong_mb(void) { vr_mb(0); }
void strong_wmb(void) { vr_wmb(0); }
void relax(void) { vr_relax(); }
uint16_t weak_load(const void *p) { return vr_load_acquire16(p, 1); }
uint16_t strong_load(const void *p) { return vr_load_acquire16(p, 0); }
uint64_t weak_load64(const void *p) { return vr_load_acquire64(p, 1); }
void weak_store(void *p, uint16_t v) { vr_store_release16(p, v, 1); }
void strong_store(void *p, uint16_t v) { vr_store_release16(p, v, 0); }
void weak_store64(void *p, uint64_t v) { vr_store_release64(p, v, 1); }
"""
#: Compiler -> function -> what its instructions have, in this order.
WANTED = {
    "x86_64-linux-gnu-gcc": {
        "weak_mb": r"mfence|lock",
        "strong_mb": r"mfence",
        "strong_wmb": r"sfence",
        "relax": r"pause|rep",
        "weak_load": r"movz?wl|mov",
        "strong_load": r"mov.*lfence",
        "weak_load64": r"movq",
        "weak_store": r"movw",
        "strong_store": r"sfence.*movw",
        "weak_store64": r"movq",
    },
    # A machine that orders neither loads nor stores by itself.
    "aarch64-linux-gnu-gcc": {
        "weak_mb": r"dmb\s+ish\b",
        "strong_mb": r"d[ms]b\s+(ish|sy)\b",
        "strong_wmb": r"d[ms]b\s",
        "relax": r"ret|yield",
        "weak_load": r"lda(p?)rh",
        "strong_load": r"ldrh.*d[ms]b\s",
        "weak_load64": r"lda(p?)r\s",
        "weak_store": r"stlrh",
        "strong_store": r"d[ms]b\s.*strh",
        "weak_store64": r"stlr\s",
    },
}


@pytest.mark.parametrize("compiler", WANTED)
def test_instructions(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed (apt-get install {compiler[:-4]}-gcc)")
    done = subprocess.run(
        [
            *(compiler, "-O2", "-Wall", "-Werror", "-fno-asynchronous-unwind-tables", "-S"),
            *(f"-I{folder}" for folder in virtring.get_include()),
            *("-xc", "-", "-o", "-"),
        ],
        input=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\w+):\n(.*?)\.size\s+\1,", done.stdout, re.DOTALL | re.MULTILINE)
    functions = dict(found)
    for name, pattern in WANTED[compiler].items():
        assert re.search(pattern, functions[name], re.DOTALL), f"{name}:\n{functions[name]}"
    # Nobody pays for more than was asked.
    for name in ("weak_load", "weak_store", "weak_load64", "weak_store64"):
        assert not re.search(r"fence|\block\b|dmb|dsb", functions[name]), functions[name]
