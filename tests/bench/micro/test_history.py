"""The history of figures: which runs count as one, what a figure is published as, and the tables of the docs."""

from hotplate.bench.micro import __main__ as command
from hotplate.bench.micro.history import TIMES, RecordedRun, shown

RATIO, CPU = "x: a / b: rate", "x: a: CPU"


def run(date: str, ratio: float, machine: str = "EPYC, 2 cores") -> RecordedRun:
    return RecordedRun(date, machine, "abc", {RATIO: (ratio, ratio / 2, ratio * 2)})


def test_a_figure_of_three_runs_an_hour_or_a_machine_apart_is_their_median_and_what_they_span() -> None:
    runs = [run("2026-11-22T08:00:00+00:00", 0.31), run("2026-11-22T09:00:00+00:00", 0.5)]
    assert shown(runs[:1], RATIO) == f"0.31 {TIMES} (one run: 0.155 to 0.62)"
    assert shown(runs, RATIO) == f"0.405 {TIMES} (two runs: 0.31 to 0.5)"
    runs.append(run("2026-11-22T09:00:01+00:00", 0.23, "Xeon, 2 cores"))
    assert shown(runs, RATIO) == f"0.31 {TIMES} (0.23 to 0.5)"


def test_runs_within_an_hour_on_one_machine_are_one() -> None:
    runs = [run(f"2026-11-22T08:{minute}:00+00:00", ratio) for minute, ratio in (("00", 1), ("30", 2), ("59", 3))]
    assert shown(runs, RATIO) == f"2 {TIMES} (one run: 0.5 to 6)"
    days = [run("2026-11-21", 1), run("2026-11-21", 3)]
    assert shown(days, RATIO) == f"2 {TIMES} (one run: 0.5 to 6)"


def test_only_the_latest_five_count() -> None:
    assert shown([run(f"2026-11-{day}", day) for day in range(10, 20)], RATIO) == f"17 {TIMES} (15 to 19)"


def test_the_pages_have_the_tables_that_the_history_gives() -> None:
    assert {page.name: text == page.read_text() for page, text in command.pages().items()} == {
        "README.md": True,
        "figures.md": True,
    }, "make figures writes them"
