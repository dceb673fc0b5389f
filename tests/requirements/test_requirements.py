"""The tables of the standard's demands are complete, and the tests that they name are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from .table import HERE, KINDS, Chapter, Rule, chapters, summary

ROOT = HERE.parent.parent
CHAPTERS = chapters()
RULES = [rule for chapter in CHAPTERS for rule in chapter.rules]

#: Sections of the standard in each chapter's file; a longer one wins.
SECTIONS = {
    "2.": "basic",
    "2.7.": "split",
    "2.8.": "packed",
    "3.": "basic",
    "4.1.": "pci",
    "4.2.": "mmio",
    "6.": "basic",
}


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of the test functions of a file; those of a class as ``Class::name``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {
            prefix + item.name
            for item in inner
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
            and item.name.startswith("test")
        }
    return frozenset(found)


def test_every_file_is_a_chapter() -> None:
    assert {path.stem for path in HERE.glob("*.toml")} == {chapter.name for chapter in CHAPTERS}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name)
def test_no_must_is_missing(chapter: Chapter) -> None:
    assert sum(rule.covers for rule in chapter.rules) == chapter.musts
    assert sum(chapter.count(kind) for kind in KINDS) == chapter.musts
    # A paragraph binds one side, and its demands are numbered through or counted together.
    paragraphs: dict[str, list[Rule]] = {}
    for rule in chapter.rules:
        paragraphs.setdefault(rule.id.partition("-")[0], []).append(rule)
    for number, rules in paragraphs.items():
        assert len({rule.keys["who"] for rule in rules}) == 1
        ids = [rule.id for rule in rules]
        assert ids in ([number], [f"{number}-{i}" for i in range(1, len(ids) + 1)])


def test_ids_are_unique() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule(rule: Rule) -> None:
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)*(-[0-9]+)?", rule.id)
    prefix = max((p for p in SECTIONS if rule.id.startswith(p)), key=len)
    assert SECTIONS[prefix] == rule.chapter
    assert set(rule.keys) <= {"who", "text", "covers", *KINDS}
    assert rule.keys["who"] in ("driver", "device")
    assert rule.keys["text"].endswith(".")
    assert len(rule.kinds) == 1, "one of test, reason and todo"
    assert rule.covers >= 1
    assert ("covers" in rule.keys) == ("-" not in rule.id)
    if "covers" in rule.keys:
        assert rule.kinds == ["reason"], "only what cannot apply is counted together"
    if "reason" in rule.keys:
        assert len(rule.keys["reason"].split()) > 3
    if "todo" in rule.keys:
        assert rule.keys["todo"] is True
    if "test" in rule.keys:
        names = rule.keys["test"]
        assert isinstance(names, list)
        assert names
        assert len(set(names)) == len(names)
        for name in names:
            path, _, test = name.partition("::")
            assert path.startswith("tests/")
            assert test.partition("[")[0] in names_in(ROOT / path), f"no test {name}"


def test_the_summary_adds_up() -> None:
    lines = summary()
    assert len(lines) == len(CHAPTERS) + 2
    for line in lines[1:]:
        musts, *counts = [int(word) for word in line.split()[1:]]
        assert sum(counts) == musts
