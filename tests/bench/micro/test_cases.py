"""`make bench` at its smallest: every case from end to end, what is compared, and the command."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from hotplate.bench.micro import __main__ as command
from hotplate.bench.micro import commands, history
from hotplate.bench.micro.harness import (
    BenchmarkSize,
    Candidates,
    Case,
    Line,
    MeasuredFigure,
    Skipped,
    Unmeasured,
    at_least,
    at_most,
)

SMALL = BenchmarkSize(rounds=1, users=2_000, round_s=0.1)
# What is also measured by the fast tests; the others take longer.
QUICK = {"files", "in_process"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in command.CASES]
)
def test_a_case_measures_what_it_publishes_and_leaves_nothing_behind(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(commands, "RETAIL", invoices(tmp_path_factory.mktemp("data")))
    outcomes = command.CASES[name].measure(SMALL)
    skipped = {one.name for one in outcomes if isinstance(one, Unmeasured)}
    published = {figure for figure in command.ROWS if figure.startswith(f"{name}: ")}
    assert skipped == {name} or published <= {one.name for one in outcomes}
    assert list(tmp_path.iterdir()) == []


def invoices(folder: Path) -> Path:
    """Write a file of invoices as Online Retail has them."""
    rows = [
        {"customer_id": user, "stock_code": f"{10_000 + item}", "quantity": 1, "unit_price": 1.0, "invoice_no": "a"}
        for user in range(40)
        for item in range(30)
        if (user + item) % 2
    ]
    pl.DataFrame(rows).write_parquet(folder / "lines.parquet")
    return folder / "lines.parquet"


@contextmanager
def two(_effort: BenchmarkSize) -> Iterator[Candidates]:
    ours, theirs = iter([1.0, 10.0, 30.0]), iter([1.0, 20.0, 20.0])
    yield {"a": lambda: {"CPU": next(ours)}, "b": lambda: {"CPU": next(theirs)}}


@contextmanager
def nobody(effort: BenchmarkSize) -> Iterator[Candidates]:
    if effort.rounds:
        raise Skipped("there is no server")
    yield {}


COMPARED = Case("two", two, {"a / b: CPU": Line("", at_most(1)), "b: CPU": Line("", at_least(21))})


def test_candidates_are_compared_round_by_round_and_the_first_round_is_thrown_away() -> None:
    found = {one.name: one for one in COMPARED.measure(BenchmarkSize(rounds=2))}
    values = {name: one.values for name, one in found.items() if isinstance(one, MeasuredFigure)}
    assert values == {
        "two: a: CPU": [10, 30],
        "two: b: CPU": [20, 20],
        "two: a / b: CPU": [0.5, 1.5],
    }
    ratio, plain = found["two: a / b: CPU"], found["two: b: CPU"]
    assert isinstance(ratio, MeasuredFigure)
    assert isinstance(plain, MeasuredFigure)
    assert (ratio.met, ratio.unit, plain.met, plain.unit) == (True, "ratio", False, "µs")


@pytest.mark.parametrize(("lag_ms", "known"), [(0.1, True), (15.0, False)])
def test_latencies_of_a_generator_that_was_late_compare_no_servers(lag_ms: float, *, known: bool) -> None:
    @contextmanager
    def late(_effort: BenchmarkSize) -> Iterator[Candidates]:
        yield {name: lambda: {"p99": 20.0, "rate": 9.0, "lag p99": lag_ms} for name in ("a", "b")}

    case = Case("late", late, {"a / b: p99": Line(""), "a / b: rate": Line("")})
    found = {one.name: one for one in case.measure(BenchmarkSize(rounds=3))}
    p99, rate = found["late: a / b: p99"], found["late: a / b: rate"]
    assert isinstance(rate, MeasuredFigure)
    assert isinstance(p99, MeasuredFigure) is known
    if isinstance(p99, Unmeasured):
        assert p99.reason == "the generator was late by 15 ms at p99, and p99 is 20 ms: use a quiet machine"


@contextmanager
def failing(effort: BenchmarkSize) -> Iterator[Candidates]:
    if effort.rounds:
        raise RuntimeError(f"no [server] in {effort.rounds} rounds")
    yield {}


@pytest.mark.parametrize("options", [[], ["--short"]])
def test_a_case_that_fails_leaves_the_others_their_figures_and_only_the_usual_form_is_kept(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def one(_effort: BenchmarkSize) -> Iterator[Candidates]:
        yield {"a": lambda: {"CPU": 2.00001}}

    cases = {
        "http_peer": Case("http_peer", failing, {}),
        "files": Case("files", one, {"a: CPU": Line("", at_most(1))}),
        "webdis": Case("webdis", nobody, {}),
    }
    results, kept = tmp_path / "results.json", tmp_path / "history.jsonl"
    monkeypatch.setattr(command, "CASES", cases)
    monkeypatch.setattr(history, "HISTORY", kept)
    kept.write_text("{}\n")
    assert command.main([*options, "--out", str(results)]) == 1
    failed, _, skipped = json.loads(results.read_text())["figures"]
    rounds = 1 if options else 5
    assert failed == {"name": "http_peer", "failed": f"no [server] in {rounds} rounds"}
    assert skipped == {"name": "webdis", "skipped": "there is no server"}
    printed = capsys.readouterr().out
    assert f"http_peer: FAILED, no [server] in {rounds} rounds" in printed
    assert "NO" in printed
    before, *added = map(json.loads, kept.read_text().splitlines())
    assert before == {}
    assert [run["figures"] for run in added] == ([] if options else [{"files: a: CPU": [2.0, 2.0, 2.0]}])
    assert all(run.keys() == {"date", "machine", "commit", "figures"} for run in added)


def test_a_case_that_does_not_exist_exits_with_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only", "nothing"])
    assert stopped.value.code == 2


def test_a_command_is_charged_what_it_spent_and_not_what_its_starter_has() -> None:
    mine = bytearray(os.urandom(1)) * 300_000_000
    small = commands.run([sys.executable, "-c", "print('hello')"])
    large = commands.run([sys.executable, "-c", "bytearray(b'x') * 100_000_000"])
    assert len(mine) > 250e6
    assert small["peak memory"] < 60
    assert 100 < large["peak memory"] < 160
    assert small["CPU time"] > 0
    assert small["time"] > 0
