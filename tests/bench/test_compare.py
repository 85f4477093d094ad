"""Two reports side by side: differences that are real as often as said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.bench.compare import compare, read
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.statistics import mean
from hotplate.report import Report, Row, to_json

BASE = [10.0, 12.0, 9.0, 11.0, 10.5, 10.0, 11.0, 10.8, 9.7, 10.2]


def a_report(p99_ms: list[float], *, errors: float = 0.0) -> Report:
    """Make a report of rounds with these percentiles, of which the pooled one is the mean."""
    rows = (
        mean([1000 * each for each in p99_ms]).row("http://h", "p99", "us"),
        mean([100.0] * len(p99_ms)).row("http://h", "rate", "/s"),
        Row("http://h", "errors and drops", "share", errors),
    )
    return Report(kind="http", sentence="p99 is …", rows=rows)


def change(report: Report, figure: str = "p99, ms") -> Row:
    found = report.row(figure, "B / A")
    assert found is not None
    return found


def test_a_real_difference_is_a_regression_only_for_the_worse() -> None:
    base = a_report(BASE)
    worse = a_report([1.5 * each for each in BASE])
    found = compare(base, worse)
    assert found.exit_code == 3
    assert change(found).value == pytest.approx(1.5)
    assert found.sentence.startswith("A regression: p99 changed by +50.0 %")
    better = compare(worse, base)
    assert better.exit_code == 0
    assert better.sentence.startswith("An improvement")
    wild = a_report([each * (2.0 if number in {0, 3, 4, 7, 9} else 0.6) for number, each in enumerate(BASE)])
    assert compare(base, wild).exit_code == 0
    assert "No difference is proven" in compare(base, wild).sentence
    assert "No difference that matters" in compare(base, base).sentence


def test_a_stall_in_few_rounds_is_never_called_no_difference() -> None:
    found = compare(a_report(BASE), a_report([*BASE[:-1], 2_000.0]))
    assert change(found).value == pytest.approx(209.4 / 10.42, rel=0.01)
    high = change(found).high
    assert high is not None
    assert high >= 20
    assert "No difference that matters" not in found.sentence


def test_few_or_unequal_rounds_cannot_be_compared() -> None:
    with pytest.raises(BenchMisused, match="fewer than 5 rounds"):
        compare(a_report([1, 2]), a_report([1, 2]))
    with pytest.raises(BenchMisused, match="no pairs"):
        compare(a_report(BASE), a_report(BASE[1:]))
    assert compare(a_report([1, 2]), a_report([1, 2], errors=0.01)).exit_code == 3
    with pytest.raises(BenchMisused, match="p42 is not in both"):
        compare(a_report(BASE), a_report(BASE), "p42")


def test_a_report_is_read_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    made = a_report(BASE)
    path.write_text(json.dumps(to_json(made)))
    assert read(path).rows == made.rows
    for unusable in (
        replace(made, interrupted=True), replace(made, failures=("late",)), replace(made, broken=("popular",)),
        replace(made, rows=()), replace(made, kind="stores"),
    ):  # fmt: skip
        path.write_text(json.dumps(to_json(unusable)))
        with pytest.raises(BenchMisused, match=r"report\.json"):
            read(path)
    for text in ("{}", "[]", "nonsense", '{"format": 9}'):
        path.write_text(text)
        with pytest.raises(BenchMisused, match=r"report\.json"):
            read(path)
    with pytest.raises(BenchFailed, match="does not exist"):
        read(tmp_path / "none.json")
