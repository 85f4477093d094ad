"""Two reports side by side: differences that are real as often as said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotplate.base.report import Report, Row, to_json
from hotplate.bench.compare import compare, read
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import LATENESS
from hotplate.bench.http import HttpRuns, make_plan
from hotplate.bench.http_report import report
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.measure.statistics import mean
from hotplate.bench.options import HttpOptions
from tests.support.virtual import simulate

BASE = [10.0, 12.0, 9.0, 11.0, 10.5, 10.0, 11.0, 10.8, 9.7, 10.2]


def a_report(
    p99_ms: list[float],
    *,
    failed: list[int] | None = None,
    rate: float = 100.0,
    connections: int = 64,
    path: str = "/livez",
) -> Report:
    """Make a report of rounds of 1,000 requests with these percentiles, of which the pooled one is the mean."""
    rows = (
        replace(mean([1000 * latency_ms for latency_ms in p99_ms]), subject="http://h", figure="p99", unit="us"),
        replace(mean([100.0] * len(p99_ms)), subject="http://h", figure="rate", unit="/s"),
    )
    rounds = [
        {"requested_rate": rate, "connections": connections, "due": 1_000, "ok": 1_000 - count}
        for count in failed or [0] * len(p99_ms)
    ]
    return Report(kind="http", sentence="p99 is …", rows=rows, configuration={"path": path}, extra={"rounds": rounds})


def change(report: Report, figure: str = "p99") -> Row:
    row = report.row("B / A", figure)
    assert row is not None
    return row


def test_real_difference_is_a_regression_only_if_worse() -> None:
    base = a_report(BASE)
    worse = a_report([1.5 * latency_ms for latency_ms in BASE])
    comparison = compare(base, worse)
    assert comparison.exit_code == 3
    assert change(comparison).value == pytest.approx(1.5)
    assert comparison.sentence == (
        "A regression: p99 changed by +50.0 % (+50.0 % to +50.0 %, 95 % interval over 10 rounds)."
    )
    better = compare(worse, base)
    assert better.exit_code == 0
    assert better.sentence.startswith("An improvement")
    wild = a_report(
        [latency_ms * (2.0 if number in {0, 3, 4, 7, 9} else 0.6) for number, latency_ms in enumerate(BASE)]
    )
    assert compare(base, wild).exit_code == 0
    assert "No difference is proven" in compare(base, wild).sentence
    assert "No difference that matters" in compare(base, base).sentence


def test_a_change_that_may_be_the_generators_delay_is_not_proven() -> None:
    """A load generator that was 6 ms late made a regression of 5 ms."""
    base = a_report(BASE)
    worse = a_report([1.5 * latency_ms for latency_ms in BASE])
    for late_ms, code in ((6.0, 0), (4.0, 3)):
        late = replace(worse, rows=(*worse.rows, Row("http://h", LATENESS, "us", 1000 * late_ms)))
        comparison = compare(base, late)
        assert comparison.exit_code == code
        assert ("the generator itself was up to 6 ms late" in comparison.sentence) is (code == 0)


def test_a_change_of_the_median_is_judged_whatever_the_p99_of_delays() -> None:
    base, worse = (
        replace(report, rows=(*(replace(row, figure="p50") for row in report.rows[:1]), *report.rows))
        for report in (a_report(BASE), a_report([1.5 * latency_ms for latency_ms in BASE]))
    )
    late = replace(worse, rows=(*worse.rows, Row("http://h", LATENESS, "us", 6_000.0)))
    assert compare(base, late, "p50").exit_code == 3


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ([0] * 5, [6, 0, 2, 1, 1], 0),  # 0.2 %, most in one round
        ([0] * 10, [60, *[0] * 9], 0),
        ([5, 0, 3, 8, 1], [9, 1, 2, 9, 6], 0),
        ([0] * 5, [4, 6, 5, 7, 5], 3),
        ([5, 0, 3, 8, 1], [25, 21, 22, 29, 20], 3),
    ],
)
def test_more_errors_are_a_regression_only_if_significant(before: list[int], after: list[int], code: int) -> None:
    comparison = compare(a_report(BASE[: len(before)], failed=before), a_report(BASE[: len(after)], failed=after))
    assert comparison.exit_code == code
    assert comparison.sentence.startswith("A regression: errors went from ") is (code == 3)
    assert any("which may be chance" in note for note in comparison.notes) is (code == 0)


def test_errors_of_few_rounds_are_a_regression_only_beyond_chance() -> None:
    base = a_report(BASE[:1])
    with pytest.raises(BenchMisused, match="fewer than 5 rounds"):
        compare(base, a_report(BASE[:1], failed=[2]))
    assert compare(base, a_report(BASE[:1], failed=[6])).exit_code == 3


def test_reports_of_different_machines_are_compared_with_a_note() -> None:
    first = replace(a_report(BASE), machine={"cpu": "Xeon", "cores": 2})
    second = replace(first, machine={"cpu": "EPYC", "cores": 8})
    assert not compare(first, first).notes
    assert compare(first, second).notes == (
        "Measured on different machines, which may be the difference: A on 2 cores of Xeon, B on 8 cores of EPYC.",
    )


def test_a_stall_in_few_rounds_is_never_called_no_difference() -> None:
    comparison = compare(a_report(BASE), a_report([*BASE[:-1], 2_000.0]))
    assert change(comparison).value == pytest.approx(209.4 / 10.42, rel=0.01)
    high = change(comparison).high
    assert high is not None
    assert high >= 20
    assert "No difference that matters" not in comparison.sentence


def test_few_or_unequal_rounds_cannot_be_compared() -> None:
    with pytest.raises(BenchMisused, match="fewer than 5 rounds"):
        compare(a_report([1, 2]), a_report([1, 2]))
    with pytest.raises(BenchMisused, match="no pairs"):
        compare(a_report(BASE), a_report(BASE[1:]))
    assert compare(a_report([1, 2]), a_report([1, 2], failed=[10, 10])).exit_code == 3
    with pytest.raises(BenchMisused, match="p42 is not in both"):
        compare(a_report(BASE), a_report(BASE), "p42")


def test_seconds_of_a_single_round_are_no_rounds() -> None:
    """Two runs of one service were called different by their seconds, which do not show how runs differ."""
    plan = make_plan(HttpOptions(url="http://h", users=9))
    load = Load(url="http://h", requests=Gets("/"), rate=200, duration_s=10)
    before, after = (
        report(HttpRuns(plan, (), (simulate(load, answer_after(answer_s)),), None, interrupted=False))
        for answer_s in (0.001, 0.0012)
    )
    assert before.row("http://h", "p99").low is not None  # type: ignore[union-attr]  # it has one
    with pytest.raises(BenchMisused, match="fewer than 5 rounds; give both the same --repeat, 5 or more"):
        compare(before, after)


def answer_after(answer_s: float) -> Callable[[float], float]:
    return lambda arrival_s: arrival_s + answer_s


def test_reports_of_different_loads_are_not_compared() -> None:
    """A higher rate that --find-max found was called a regression, because p99 was higher there."""
    faster = a_report([1.5 * latency_ms for latency_ms in BASE], rate=120.0)
    with pytest.raises(BenchMisused, match="--rate 100 and B with --rate 120"):
        compare(a_report(BASE), faster)
    with pytest.raises(BenchMisused, match="--connections 64 and B with --connections 8"):
        compare(a_report(BASE), a_report(BASE, connections=8))
    with pytest.raises(BenchMisused, match="--path"):
        compare(a_report(BASE), a_report(BASE, path="/readyz"))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"users": 1_000}, "--users 1000"),
        ({"keys_file": Path("users.txt")}, "--keys-file users.txt"),
        ({"zipf": 0.99}, "--zipf 0.99"),
        ({"unknown": "5%"}, "--unknown 0.05"),
        ({"headers": ("X-API-Key: secret", "Accept: text/csv")}, "--header X-API-Key, Accept"),
        ({"poisson": True}, "--poisson"),
    ],
)
def test_reports_of_different_requests_are_not_compared(options: dict[str, Any], flag: str) -> None:
    usual = replace(a_report(BASE), configuration=HttpOptions(url="http://h").to_json())
    other = replace(usual, configuration=HttpOptions(url="http://h", **options).to_json())
    with pytest.raises(BenchMisused, match=rf"^A was measured with {flag} and B without {flag.partition(' ')[0]}; "):
        compare(other, usual)
    assert compare(other, other).exit_code == 0


def test_reports_of_different_timeouts_are_not_compared() -> None:
    patient = replace(a_report(BASE), configuration=HttpOptions(url="http://h").to_json())
    impatient = replace(patient, configuration=HttpOptions(url="http://h", timeout="50ms").to_json())
    with pytest.raises(BenchMisused, match=r"^A was measured with --timeout 5.0 and B with --timeout 0.05; "):
        compare(patient, impatient)


def test_reports_of_the_same_requests_are_compared() -> None:
    before = replace(a_report(BASE), configuration=HttpOptions(url="http://a", unknown="5%", repeat=10).to_json())
    after = replace(before, configuration=HttpOptions(url="http://b", unknown="0.05", slo="p99=5ms").to_json())
    assert compare(before, after).exit_code == 0


def test_a_report_is_read_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report = a_report(BASE)
    path.write_text(json.dumps(to_json(report)))
    assert read(path).rows == report.rows
    for unusable in (
        replace(report, interrupted=True), replace(report, failures=("late",)), replace(report, broken=("popular",)),
        replace(report, kind="stores"), replace(report, extra={"rounds": []}),
        replace(report, extra={"rounds": [{}]}), replace(report, extra={"rounds": [1]}), replace(report, extra={}),
    ):  # fmt: skip
        path.write_text(json.dumps(to_json(unusable)))
        with pytest.raises(BenchMisused, match=r"report\.json"):
            read(path)
    path.write_text(json.dumps(to_json(replace(report, kind="stores"))))
    with pytest.raises(BenchMisused, match=r"is a report of kind stores, and compare takes those of bench http"):
        read(path)
    path.write_text(json.dumps(to_json(replace(report, extra={"rounds": []}))))
    with pytest.raises(BenchMisused, match=r"no rounds at one rate, such as a sweep of --batch; measure by"):
        read(path)
    for text in ("{}", "[]", "nonsense", '{"format": 9}'):
        path.write_text(text)
        with pytest.raises(BenchMisused, match=r"report\.json"):
            read(path)
    with pytest.raises(BenchMisused, match=r"No such file or directory; give the NAME\.json that"):
        read(tmp_path / "none.json")
    with pytest.raises(BenchMisused, match="Is a directory"):
        read(tmp_path)
