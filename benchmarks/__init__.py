"""Benchmarks of virtring; run them from the top of the repository.

``python -m`` looks for modules in this folder first. As long as its virtring is not built in place,
an installed one is what is meant, so the folder goes behind everything else then.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT) in sys.path and not any((ROOT / "virtring" / "ring").glob("*.so")):
    sys.path.remove(str(ROOT))
    sys.path.append(str(ROOT))
