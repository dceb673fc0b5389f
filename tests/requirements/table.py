"""What the standard demands, and what shows that virtring does it: the TOML files beside this one.

A file is a chapter. Each of its tables is one MUST or MUST NOT of a normative paragraph, in the
order of the standard; ``"2.7.5.1-2"`` is the second one of 2.7.5.1 in virtio 1.4. A table has
``who`` is bound (driver or device), ``text``, what is demanded in our words, and one of

- ``test``: tests that show it, as ``path::name``;
- ``reason``: why it cannot apply to virtring, or is not virtring's to keep;
- ``todo = true``: nothing shows it yet.

``covers`` is how many of them a table stands for, when a whole paragraph cannot apply. Paragraphs
about the legacy interface are not normative ones and are left out.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS = ("test", "reason", "todo")
TITLES = {"test": "shown by tests", "reason": "cannot apply", "todo": "to do"}


@dataclass(frozen=True)
class Rule:
    """One demand. ``keys`` is its whole table."""

    chapter: str
    id: str
    keys: dict[str, Any]

    @property
    def covers(self) -> int:
        return int(self.keys.get("covers", 1))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if kind in self.keys]


@dataclass(frozen=True)
class Chapter:
    """``musts`` is the number of MUSTs of the chapter, counted in the standard's text."""

    name: str
    title: str
    musts: int
    rules: list[Rule]

    def count(self, kind: str) -> int:
        return sum(rule.covers for rule in self.rules if kind in rule.keys)


def chapters() -> list[Chapter]:
    """All chapters, in the order of the standard."""
    found = []
    for name in ("basic", "split", "packed", "pci", "mmio"):
        data = tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))
        title, musts = data.pop("chapter"), data.pop("musts")
        rules = [Rule(name, number, keys) for number, keys in data.items()]
        found.append(Chapter(name, title, musts, rules))
    return found


def summary() -> list[str]:
    """The counts by chapter, as lines of a table."""
    lines = [f"{'':8}{'MUSTs':>8}" + "".join(f"{TITLES[kind]:>17}" for kind in KINDS)]
    total = [0] * (len(KINDS) + 1)
    for chapter in chapters():
        counts = [chapter.musts, *(chapter.count(kind) for kind in KINDS)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(row(chapter.name, counts))
    return [*lines, row("all", total)]


def row(name: str, counts: list[int]) -> str:
    return f"{name:8}{counts[0]:8}" + "".join(f"{count:17}" for count in counts[1:])
