"""`make bench` at its smallest: every case from end to end, what is compared, and the command."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import polars as pl
import pytest

from hotplate.bench.micro import __main__ as command
from hotplate.bench.micro import c_peers, commands, servers, spent
from hotplate.bench.micro.harness import Candidates, Case, Effort, Figure, Skipped, Unmeasured, at_most
from hotplate.bench.process import free_port, serving
from hotplate.stores.encoding import HEADER_BYTES

SMALL = Effort(rounds=1, users=2_000, round_s=0.1)
# What is also measured by the fast tests; the others take longer.
QUICK = {"files", "import"}
RESPONSE_HEADERS = {"Content-Type": "application/json", "ETag": '"abc"', "X-Request-Id": "1"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in command.BENCHMARKS]
)
def test_a_case_measures_what_it_publishes_and_leaves_nothing_behind(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(commands, "RETAIL", invoices(tmp_path_factory.mktemp("data")))
    outcomes = command.BENCHMARKS[name](SMALL)
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
def two(_effort: Effort) -> Iterator[Candidates]:
    ours, theirs = iter([1.0, 10.0, 30.0]), iter([1.0, 20.0, 20.0])
    yield {"a": lambda: {"CPU": next(ours)}, "b": lambda: {"CPU": next(theirs)}, "c": "no c is installed"}


@contextmanager
def nobody(effort: Effort) -> Iterator[Candidates]:
    if effort.rounds:
        raise Skipped("there is no server")
    yield {}


COMPARED = Case("two", two, {"a / b: CPU": at_most(1), "a - b: CPU": at_most(-10), "a / c: CPU": at_most(1)}, {})


def test_candidates_are_compared_round_by_round_and_the_first_round_is_thrown_away() -> None:
    found = {one.name: one for one in COMPARED.measure(Effort(rounds=2))}
    values = {name: one.values for name, one in found.items() if isinstance(one, Figure)}
    assert values == {
        "two: a: CPU": [10, 30],
        "two: b: CPU": [20, 20],
        "two: a / b: CPU": [0.5, 1.5],
        "two: a - b: CPU": [-10, 10],
    }
    ratio, difference = found["two: a / b: CPU"], found["two: a - b: CPU"]
    assert isinstance(ratio, Figure)
    assert isinstance(difference, Figure)
    assert (ratio.met, ratio.unit, difference.met, difference.unit) == (True, "ratio", False, "µs")
    assert found["two: a / c: CPU"] == Unmeasured("two: a / c: CPU", "no c is installed")


@pytest.mark.parametrize(("lag_ms", "known"), [(0.1, True), (15.0, False)])
def test_latencies_of_a_generator_that_was_late_compare_no_servers(lag_ms: float, *, known: bool) -> None:
    @contextmanager
    def late(_effort: Effort) -> Iterator[Candidates]:
        yield {name: lambda: {"p99": 20.0, "rate": 9.0, "lag p99": lag_ms} for name in ("a", "b")}

    case = Case("late", late, {"a / b: p99": at_most(0.5), "a / b: rate": at_most(2)}, {})
    found = {one.name: one for one in case.measure(Effort(rounds=3))}
    p99, rate = found["late: a / b: p99"], found["late: a / b: rate"]
    assert isinstance(rate, Figure)
    assert isinstance(p99, Figure) is known
    if isinstance(p99, Unmeasured):
        assert p99.reason == "the generator was late by 15 ms at p99, and p99 is 20 ms: use a quiet machine"


def test_a_case_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(effort: Effort) -> list[Figure | Unmeasured]:
        raise RuntimeError(f"no [server] in {effort.rounds} rounds")

    cases = {"http_peer": fail, "files": COMPARED.measure, "webdis": Case("webdis", nobody, {}, {}).measure}
    monkeypatch.setattr(command, "BENCHMARKS", cases)
    results, history = tmp_path / "results.json", tmp_path / "history.jsonl"
    assert command.main(["--rounds", "2", "--out", str(results), "--history", str(history)]) == 1
    failed, *_, skipped = json.loads(results.read_text())["figures"]
    assert failed == {"name": "http_peer", "failed": "no [server] in 2 rounds"}
    assert skipped == {"name": "webdis", "skipped": "there is no server"}
    printed = capsys.readouterr().out
    assert "http_peer: FAILED, no [server] in 2 rounds" in printed
    assert "NO" in printed
    assert not history.exists(), "it was not a run of the usual form"


def test_a_run_of_the_usual_form_is_added_to_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(_effort: Effort) -> list[Figure | Unmeasured]:
        return [Figure("x: CPU", "µs", [3.0, 1.0, 2.00001])]

    monkeypatch.setattr(command, "BENCHMARKS", {"x": give})
    history = tmp_path / "history.jsonl"
    history.write_text("{}\n")
    assert command.main(["--out", str(tmp_path / "out"), "--history", str(history)]) == 0
    kept, added = map(json.loads, history.read_text().splitlines())
    assert kept == {}
    assert added["figures"] == {"x: CPU": [2.0, 1.0, 3.0]}
    assert added.keys() == {"date", "machine", "commit", "figures"}


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--users", "0"], ["--seconds", "0"], ["--only", "nothing"]])
def test_a_misuse_of_the_command_exits_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(wrong)
    assert stopped.value.code == 2


def test_an_import_and_bare_calls_write_the_same_lists(tmp_path: Path) -> None:
    lists, store, bare = tmp_path / "lists.csv", tmp_path / "store", tmp_path / "bare.mdb"
    commands.write_lists(lists, users=50)
    commands.import_lists(lists, store)
    commands.import_bare(lists, bare)
    (sealed,) = (store / "releases").glob("*.mdb")
    assert len(rows_of(bare, 0)) == 50
    assert rows_of(sealed, HEADER_BYTES) == rows_of(bare, 0)


def rows_of(file: Path, cut: int) -> dict[bytes, bytes]:
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment, environment.begin() as txn:
        return {bytes(key): bytes(value)[cut:] for key, value in txn.cursor() if key.startswith(b"user:")}


def test_a_command_is_charged_what_it_spent_and_not_what_its_starter_has() -> None:
    mine = bytearray(os.urandom(1)) * 300_000_000
    small = spent.run([sys.executable, "-c", "print('hello')"])
    large = spent.run([sys.executable, "-c", "bytearray(b'x') * 100_000_000"])
    assert len(mine) > 250e6
    assert small["peak memory"] < 60
    assert 100 < large["peak memory"] < 160
    assert small["CPU time"] > 0
    assert small["time"] > 0


def test_a_command_that_fails_is_an_error_with_its_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3[^$]*no such model"):
        spent.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])


@pytest.mark.skipif(c_peers.missing("nginx") is not None, reason="no nginx on this machine")
def test_nginx_gives_the_response_that_it_was_given() -> None:
    body = b'{"user":"1","items":[]}'
    with c_peers.nginx_serving(body, RESPONSE_HEADERS) as nginx:
        given, headers = servers.fetch(nginx.url)
        assert given == body
        assert {name: headers[name] for name in RESPONSE_HEADERS} == RESPONSE_HEADERS
    with pytest.raises(ValueError, match="more than text"), c_peers.nginx_serving(b"$uri", RESPONSE_HEADERS):
        pass


@pytest.mark.skipif(c_peers.missing("wrk") is not None, reason="no wrk on this machine")
def test_wrk_sends_the_requests_that_it_is_given_and_its_errors_are_ours() -> None:
    port, request = free_port(), b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving([sys.executable, "-m", "hotplate.bench.micro.generator", "--port", str(port)], port, "/") as one:
        count, duration_s = c_peers.run_wrk(one.url, [request], 0.1)
        assert duration_s == 1
        assert count > 1
    with pytest.raises(RuntimeError, match="unable to connect"):
        c_peers.run_wrk(one.url, [request], 0.1)
