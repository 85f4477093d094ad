"""What repetitions allow to be said: percentiles, intervals, and differences that are real as often as said."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.capacity import Objective, Point, find_max, first_outside, highest, highest_text, knee
from hotplate.bench.loadgen.histogram import HIGHEST_US, Histogram
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.loadgen.stalls import ProcessUsage
from hotplate.bench.measured import CHEAPER, Measured, MeasuredChange, geometric, interval, middle
from hotplate.bench.report.comparison import compare, sole_series
from hotplate.bench.report.report import Report, Round, Series, read
from tests.support.virtual import simulate


def test_histograms_add_up_and_survive_being_written() -> None:
    one, two = Histogram.of([0.001] * 10), Histogram.of([0.002] * 30)
    both = Histogram.decoded(Histogram.merged([one, two]).encoded)
    assert both.count == 40
    assert both.percentiles_us([25, 30]) == pytest.approx([1000, 2000], rel=0.001)
    assert [round(percent) for percent, _ in both.spectrum()] == [25, 100]


def test_what_lies_outside_the_scale_counts_at_its_end_and_nothing_is_nothing() -> None:
    assert Histogram.of([100.0]).max_us == pytest.approx(HIGHEST_US, rel=0.001)
    assert Histogram.of([0.0]).count == 1
    empty = Histogram.of([])
    assert (empty.count, empty.max_us, empty.mean_us, empty.percentiles_us([50])) == (0, 0, 0, [0])


def test_a_percentile_needs_ten_samples_beyond_it() -> None:
    thousand = Histogram.of([0.001] * 1000)
    assert thousand.has_enough_samples(99)
    assert not thousand.has_enough_samples(99.9)


def half_width(values: list[float]) -> float:
    found = interval(values)
    assert found is not None
    return (found.high - found.low) / 2


def test_intervals_are_students_t_of_the_middle_three_fifths() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.high - found.mean) == pytest.approx((2.0, 4.848732 / math.sqrt(3)))
    trimmed = interval([900.0, 2.0, 1.0, 3.0, -900.0])  # winsorized: 1, 1, 2, 3, 3
    assert trimmed is not None
    assert (trimmed.mean, trimmed.high - trimmed.mean) == pytest.approx((2.0, 4.848732 * math.sqrt(4 / 6)))
    assert middle([900.0, 2.0, 1.0, 3.0, -900.0]) == 2.0
    assert interval([1.0]) is None
    skewed = geometric([1.0, 100.0, 1.0])
    assert skewed is not None
    assert skewed.low > 0
    assert geometric([1.0, 0.0]) is None


def walk(chance: np.random.Generator, count: int) -> np.ndarray:
    return np.asarray(np.cumsum(chance.normal(0, 1, 2 * count)))


def bursts(chance: np.random.Generator, count: int) -> np.ndarray:
    """A neighbour that comes and goes: for some rounds all is slower, by far for a few."""
    busy = np.repeat(chance.random(count) < 0.3, 2) * (chance.random(2 * count) < 0.8)
    return np.asarray(busy * chance.exponential(10, 2 * count) + chance.normal(0, 1, 2 * count))


# What the logarithms of two equal stores' figures are, measured one after the other, A B B A A B …
NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda chance, count: chance.normal(0, 1, 2 * count),
    "heavy-tailed": lambda chance, count: chance.standard_t(1.5, 2 * count),
    "bursts": bursts,
    "a trend": lambda chance, count: np.arange(2 * count) + chance.normal(0, 1, 2 * count),
    "a random walk": walk,
}


@pytest.mark.parametrize("rounds", [5, 9, 25])
@pytest.mark.parametrize("name", NOISES)
def test_an_interval_of_a_difference_holds_the_truth_in_95_of_100_measurements(name: str, rounds: int) -> None:
    chance, made, holding = np.random.default_rng(2), 1_500, 0
    in_turn = np.where(np.arange(rounds) % 2, -1, 1)
    for _ in range(made):
        first, second = NOISES[name](chance, rounds).reshape(rounds, 2).T
        found = interval(((second - first) * in_turn).tolist())
        holding += found is not None and found.low <= 0 <= found.high
    assert holding / made >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / made)


def test_a_fifth_of_disturbed_rounds_hardly_widens_an_interval() -> None:
    chance = np.random.default_rng(2)
    calm = chance.normal(0, 0.1, 25).tolist()
    assert half_width([3.0] * 3 + calm[3:]) < 1.6 * half_width(calm)


def a_series(p99_ms: list[float], errors: float = 0.0) -> Series:
    def a_round(ms: float) -> Round:
        histogram = Histogram.of([ms / 2000] * 90 + [ms / 1000] * 10)
        facts = {"ok_rate": 100.0, "error_share": errors, "invalid_reasons": [], "histogram": histogram.encoded}
        return Round(facts, histogram)

    return Series("x", tuple(a_round(ms) for ms in p99_ms))


def test_a_real_difference_is_a_regression_only_for_the_worse() -> None:
    base, worse = [10.0, 12.0, 9.0, 11.0, 10.5], [12.1, 14.3, 10.9, 13.0, 12.6]
    found = compare(a_series(base), a_series(worse))
    assert found.regression
    assert found.deciding.interval.mean == pytest.approx(0.2, abs=0.02)
    assert "a regression: p99 changed by +20.0%" in found.sentence
    better = compare(a_series(worse), a_series(base))
    assert not better.regression
    assert "an improvement" in better.sentence
    same = compare(a_series(base), a_series([12.0, 9.5, 11.0, 10.0, 10.5]))
    assert same.sentence.startswith("cannot tell, because rounds differ by more (-")
    assert same.to_json()["regression"] is False


def bounded(due_ms: list[float], sent_ms: list[float], stolen: float = 0.0) -> Series:
    """Make rounds whose p99 lies between two bounds, as the generator was late."""
    late = {
        "disturbance": "the generator was late, 9 ms at p99: by neighbours",
        "lag_us": {"p99": 9e3},
        "stolen": stolen,
    }
    pairs = zip(a_series(due_ms).rounds, a_series(sent_ms).rounds, strict=True)
    return Series("x", tuple(Round({**due.facts, **late}, due.histogram, sent.histogram) for due, sent in pairs))


def test_only_what_holds_by_both_bounds_is_a_difference() -> None:
    base = a_series([10, 11, 12, 10.5, 11])
    late = compare(base, bounded([20, 23, 24, 20, 22], [10.1, 11, 12.1, 10.4, 11]))
    assert not late.regression
    assert late.sentence.startswith("cannot tell, because the generator was late, 9 ms at p99: by neighbours (")
    assert late.sentence.endswith("); a machine with a core to spare would do")
    assert late.deciding.interval.low > 0.5  # from when they were due it would be one
    held = compare(base, bounded([20, 23, 24, 20, 22], [15, 17, 18, 15, 16]))
    assert held.regression
    assert held.deciding.verdict.startswith("A is faster: B takes 39% to ")
    assert held.to_json()["changes"][0]["sent"]["low"] > 0.3


def of(*values: float, shares: bool = False) -> Measured:
    return Measured(values, values, shares=shares)


NONE, SOME = of(*[0.0] * 5, shares=True), of(0.02, 0.021, 0.02, 0.02, 0.021, shares=True)
FIVE, FOUR = of(1, 2, 3, 4, 5), of(1, 2, 3, 4)
WILD = of(1, 900, 0.001, 90, 0.01)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (NONE, NONE, "no difference that matters"),
        (NONE, SOME, "A has fewer, by 1."),
        (SOME, NONE, "B has fewer, by 1."),
        (NONE, of(0, 0.1, 0, 0, 0, shares=True), "cannot tell, because rounds differ by more (-"),
        (NONE, of(0, 0, shares=True), "— (only 2 of 5 rounds count for both)"),
        (of(1, 1.01, 1, 1.01, 1), of(1.03, 1.04, 1.03, 1.04, 1.03), "no difference that matters (+3%)"),
        (of(*[1] * 5), of(*[1.6] * 5), "A is cheaper: B takes 60% more"),
        (of(*[5] * 5), of(*[1] * 5), "B is cheaper: A takes 5 times as much"),
        (of(*[1] * 5), WILD, "cannot tell, because rounds differ by more (more than ten times); a machine with a core"),
        (FIVE, Measured((), (), "it was not measured"), "— (it was not measured)"),
        (FIVE, of(0, 2, 3, 4, 5), "— (it was zero in some rounds)"),
        (FOUR, FOUR, "— (fewer than five rounds)"),
        (FIVE, FIVE, "no difference that matters (+0%)"),
    ],
)
def test_a_verdict_says_which_is_cheaper_or_why_that_is_not_known(
    first: Measured, second: Measured, sentence: str
) -> None:
    assert first.compared_with(second).sentence("A", "B", CHEAPER).startswith(sentence)


def test_where_rounds_differ_it_is_said_how_many_would_do() -> None:
    """The noise is drawn once; of so many rounds as are proposed of a few of it the verdict is then given."""
    chance = np.random.default_rng(3)
    first, second = chance.lognormal(0, 0.3, 400).tolist(), chance.lognormal(0.2, 0.3, 400).tolist()

    def found(rounds: int) -> MeasuredChange:
        return Measured(first[:rounds], first[:rounds]).compared_with(Measured(second[:rounds], second[:rounds]))

    few = found(6)
    assert few.because.endswith(f"; about {few.rounds} rounds would do")
    assert 6 < few.rounds < 100
    enough = found(few.rounds)
    assert enough.real
    assert (enough.because, enough.rounds) == ("", 0)


def test_more_errors_are_a_regression_however_fast_the_others_were() -> None:
    found = compare(a_series([10, 11, 12, 10, 11]), a_series([5, 5.5, 6, 5, 5.5], errors=0.05))
    assert found.regression
    assert "errors went from 0.00% to 5.00%" in found.sentence


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BenchMisused, match="2 valid pairs"):
        compare(a_series([1, 2]), a_series([1, 2]))
    with pytest.raises(BenchMisused, match="3 and 4"):
        compare(a_series([1, 2, 3]), a_series([1, 2, 3, 4]))
    with pytest.raises(BenchMisused, match="not one of"):
        compare(a_series([1, 2, 3]), a_series([1, 2, 3]), "p42")
    good = Report(kind="http", configuration={}, series=(a_series([1, 2, 3]),))
    assert sole_series("A", good) is good.series[0]
    for wrong in (replace(good, series=()), replace(good, series=good.series * 2), replace(good, interrupted=True)):
        with pytest.raises(BenchMisused, match="A cannot be compared"):
            sole_series("A", wrong)


def test_pairs_with_an_invalid_round_are_left_out() -> None:
    before, after = a_series([10, 11, 12, 13, 12, 11]), a_series([10, 11, 12, 13, 12, 900])
    *kept, last = after.rounds
    late = Series("x", (*kept, Round({**last.facts, "invalid_reasons": ["late"]}, last.histogram)))
    found = compare(before, late)
    assert (found.pairs, found.left_out, found.regression) == (5, 1, False)
    with pytest.raises(BenchMisused, match="1 were left out: round 5: late"):
        compare(Series("x", before.rounds[1:]), Series("x", late.rounds[1:]))


def _with_bounds(one: Round) -> Round:
    return replace(one, facts={**one.facts, "sent_histogram": one.lower.encoded})


def test_a_report_is_read_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    made = Report(kind="http", configuration={"url": "u"}, series=(a_series([1, 2, 3]),))
    path.write_text(json.dumps(made.to_json()))
    again = read(path)
    assert again.series[0].values("p99") == a_series([1, 2, 3]).values("p99")
    assert again.configuration == {"url": "u"}
    assert again.series[0].values("p99", sent=True) == again.series[0].values("p99")  # older ones have one bound
    late = Series("x", tuple(_with_bounds(each) for each in bounded([3], [2]).rounds))
    path.write_text(json.dumps(Report(kind="http", configuration={}, series=(late,)).to_json()))
    assert read(path).series[0].values("p99", sent=True) == late.values("p99", sent=True) != late.values("p99")
    for text in ("{}", "[]", "nonsense", '{"format": 9}'):
        path.write_text(text)
        with pytest.raises(BenchMisused, match=r"report\.json"):
            read(path)


def serve_at(rate: float, capacity: float) -> Result:
    free_s = 0.0

    def one_by_one(arrival_s: float) -> float:
        nonlocal free_s
        free_s = max(free_s, arrival_s) + 1 / capacity
        return free_s

    return simulate(Load(url="http://h", requests=Gets("/"), rate=rate, duration_s=4, connections=500), one_by_one)


def test_the_search_finds_the_highest_rate_inside_the_objective() -> None:
    tried = list(find_max(lambda rate: serve_at(rate, 1000), Objective({"p99": 20_000.0}), start=100))
    best = highest(tried)
    assert best is not None
    assert 950 <= best.at <= 1060
    assert len(tried) < 15
    assert all(each.inside is (each.at <= best.at) for each in tried)
    assert "p99" in next(each for each in tried if not each.inside).broken[0]


@pytest.mark.soak
def test_what_the_generator_could_not_do_is_no_limit_of_the_server() -> None:
    def on_a_busy_machine(rate: float) -> Result:
        waited_s = 0.5 if rate > 500 else 0.1
        return replace(serve_at(rate, 1000), usage=(ProcessUsage(cpu_s=1.0, waited_s=waited_s, wall_s=4.0),))

    tried = list(find_max(on_a_busy_machine, Objective({"p99": 20_000.0}), start=100))
    best, ended = highest(tried), first_outside(tried)
    assert best is not None
    assert ended is not None
    assert ended.unclear
    (reason,) = ended.invalid_reasons
    assert reason.endswith("but the generator waited for a core 12.5% of the time")
    found = highest_text({"highest": best.at, "at_least": reason})
    assert found.startswith(f"at least {best.at:,.0f} requests/s, as it is not known whose limit that is: p99 ")
    spinning = replace(serve_at(100, 1000), usage=(ProcessUsage(cpu_s=4.0, waited_s=0.0, wall_s=4.0),), spin=True)
    assert spinning.limit == ""
    assert replace(spinning, spin=False).limit == "the generator used 100% of a core"


def test_the_knee_is_the_smallest_batch_that_gives_nearly_all() -> None:
    shape = {
        "p50_us": 1.0,
        "p99_us": 1.0,
        "error_share": 0.0,
        "popular": 0.0,
        "invalid_reasons": (),
    }
    points = [Point(at, per_s, **shape) for at, per_s in ((1, 10), (50, 200), (200, 290), (500, 300), (1000, 310))]  # type: ignore[arg-type]  # plain values
    found = knee(points)
    assert found is not None
    assert found.at == 200
    assert knee([]) is None
