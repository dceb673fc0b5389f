"""What the benchmark commands conclude from their figures; they measure nothing here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import virtring
from benchmarks.instructions import __main__ as instructions
from benchmarks.instructions import callgrind
from benchmarks.instructions.build import TELLING, differences, facts
from benchmarks.instructions.callgrind import CannotCount, Count
from benchmarks.peers import comparisons, engines
from benchmarks.peers.compare import Comparison, Outcome
from benchmarks.peers.peer import Case, Record, Work, merge
from benchmarks.peers.report import BEGIN, END, Results, replace_between, round_trips

OURS, THEIRS = Case("virtring", "split", 256, "round"), Case("other", "split", 256, "round")


def test_every_compared_case_exists() -> None:
    cases = [case for peer in engines() for case in peer.cases()]
    assert len(cases) == len(set(cases)) > 100
    for group in comparisons().values():
        assert group != []
        for one in group:
            assert one.ours in cases
            assert one.peer in cases
            assert one.ours.descriptors == one.peer.descriptors
            assert one.ours.batch == one.peer.batch


def test_a_ratio_is_of_medians_and_its_range_of_turns() -> None:
    one = Comparison("work", OURS, THEIRS, at_most=0.5)
    ours, theirs = Record(OURS, (4.0, 4.0, 6.0, 6.0)), Record(THEIRS, (10.0, 10.0, 10.0, 10.0))
    outcome = Outcome(one, ours, theirs, turns=2)
    assert (outcome.ratio, outcome.spread, outcome.met) == (0.5, (0.4, 0.6), True)
    slower = Outcome(one, Record(OURS, (6.0,) * 4), theirs, turns=2)
    assert (slower.ratio, slower.met) == (0.6, False)


def test_percentiles_are_of_the_middle_run() -> None:
    case = Case("virtring", "channel", 64, "round-trip")
    one = Record(case, (1000.0,), tails=((2000.0, 9000.0),))
    others = [replace(one, tails=((ns, ns + 1000.0),)) for ns in (3.0, 4000.0)]
    joined = merge([one, *others])
    assert [record.tail for record in joined] == [(2000.0, 5000.0)]
    results = Results([], Work(), 1, records=[*joined, Record(THEIRS, (1.0,))])
    assert round_trips(results)[1:] == [("round-trip, 64 B", "virtring", "1.0", "2.0", "5.0")]


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    replace_between(path, "new")
    assert path.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    for text in ("none", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        path.write_text(text)
        with pytest.raises(ValueError, match="does not have one"):
            replace_between(path, "new")
        assert path.read_text() == text


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A baseline of this build in which one step took 100 instructions."""
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"build": facts(), "steps": {"step": {"own": 100.0, "all": 200.0}}}))
    monkeypatch.setattr(instructions, "count", lambda: {"step": Count(100.0, 900.0)})
    return path


def judge(baseline: Path, *words: str) -> int:
    return instructions.main(["--baseline", str(baseline), *words])


def grown(monkeypatch: pytest.MonkeyPatch, own: float) -> None:
    monkeypatch.setattr(instructions, "count", lambda: {"step": Count(own, 200.0)})


def test_growth_beyond_the_tolerance_fails(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(baseline) == 0
    grown(monkeypatch, 102.9)
    assert judge(baseline) == 0
    grown(monkeypatch, 103.1)
    capsys.readouterr()
    assert judge(baseline) == 1
    assert "step: 103.10 instead of 100.00, +3.1%" in capsys.readouterr().out
    grown(monkeypatch, 50.0)
    assert judge(baseline) == 0


def test_steps_that_come_or_go_fail(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "count", lambda: {"other": Count(1.0, 1.0)})
    assert judge(baseline) == 1
    assert judge(baseline, "--update") == 0
    assert judge(baseline) == 0
    assert json.loads(baseline.read_text())["steps"] == {"other": {"own": 1.0, "all": 1.0}}


@pytest.mark.parametrize("name", TELLING)
def test_another_build_is_judged_only_when_strict(
    baseline: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(monkeypatch, 200.0)
    old = json.loads(baseline.read_text())
    here = old["build"][name]
    old["build"][name] = "other 1"
    baseline.write_text(json.dumps(old))
    assert judge(baseline) == 0
    assert f"NOT JUDGED, as the build is another one: {name} {here}, not other 1" in (
        capsys.readouterr().out
    )
    assert judge(baseline, "--strict") == 1


def test_the_build_is_read_from_the_modules() -> None:
    here = facts()
    assert "?" not in (here["compiler"], here["cython"])
    assert differences(here, here) == []


def test_callgrind_files_are_summed_by_object(tmp_path: Path) -> None:
    package = str(Path(virtring.__file__).resolve().parent)
    path = tmp_path / "out.1"
    text = f"""version: 1
events: Ir

ob=/usr/lib/libpython.so
fn=call
0 30
cob={package}/queue/driver.so
cfn=add
calls=2 0
0 500

ob={package}/queue/driver.so
fn=add
0 70
+1 5

totals: 105
"""
    path.write_text(text)
    assert callgrind._read(path) == Count(75, 105)
    path.write_text(text.replace("totals: 105", "totals: 106"))
    with pytest.raises(CannotCount, match="105 instructions"):
        callgrind._read(path)
