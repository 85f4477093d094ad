"""The comparison of stores: from end to end at a small size, and what it refuses, leaves out and never shows."""

import asyncio
import html
import io
import json
import shutil
import subprocess
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from rich.console import Console

from hotplate.bench.answers import CheckResult
from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.measured import MIN_PAIRS
from hotplate.bench.options import StoresOptions
from hotplate.bench.process import Server
from hotplate.bench.progress import ProgressDisplay, progress_display
from hotplate.bench.report.page import page
from hotplate.bench.report.report import Report, read
from hotplate.bench.stores.publication import TrialResult, write_trial
from hotplate.bench.stores.report import compare_stores, parse_settings, report
from hotplate.bench.stores.results import (
    ComparisonResult,
    LookupResult,
    PublishRun,
    RoundResult,
    ServiceRun,
    StoreMemory,
    StoreResult,
)
from hotplate.bench.stores.rounds import BATCHES, StoreComparison
from hotplate.bench.stores.server import UNKNOWN_SERVER, store_server
from hotplate.bench.stores.setup import CandidateStore, MadeUpLists, Setup, copy_progress, store_names
from hotplate.stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.manifest import Manifest
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import load_manifest
from tests.support.command import hotplate
from tests.support.service import a_list, publish_lists
from tests.support.virtual import simulate

SMALL = ("--duration", "0.2s", "--warmup", "0s", "--repeat", "1", "--rate", "200")
EMULATED = "cosmos+http://127.0.0.1:8081/hotplate"
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")


def run_stores(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return hotplate("bench", "stores", *arguments)


def fill(folder: Path, users: int = 40) -> str:
    asyncio.run(
        publish_lists(folder, {f"user:{n}": a_list(*(f"i{n}-{place}" for place in range(20))) for n in range(users)})
    )
    return f"file://{folder}"


def releases(url: str) -> list[tuple[str, str]]:
    async def look() -> list[tuple[str, str]]:
        store = connect(url)
        try:
            return [(str(entry.id), str(entry.state)) for entry in (await store.catalogue()).releases]
        finally:
            await store.close()

    return asyncio.run(look())


@pytest.mark.soak
@needs_redis
def test_without_urls_it_starts_what_it_needs_and_leaves_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    done = run_stores(*SMALL, "--users", "500", "--cpu-hour", "0.04", "--out", tmp_path / "found")
    assert done.returncode in {0, 1}, done.stderr  # 1 where the machine was too busy for a valid round
    for word in ("file://", "redis://", "CPU a request", "cost of a billion"):
        assert word in done.stdout
    for word in ("Without a service, 64 keys a call", "p99.99", "p99 of reads meanwhile"):
        assert word in (tmp_path / "found.html").read_text()
    assert list(scratch.iterdir()) == []
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["comparison"]["stores"] == ["file://", "redis://"]
    assert facts["checked"]["compared"] > 0
    assert facts["checked"]["wrong"] == 0
    for each in facts["stores"]:
        assert each["rounds"]  # one, or more where the machine was busy: rounds that do not count are kept, too
        for one in each["rounds"]:
            assert set(one["direct"]) == {str(size) for size in BATCHES}
            assert one["service_cpu_us"] > 0
            assert 0 < one["trial"]["lists"] <= 500
            assert one["trial"]["stored_bytes"] > 0
        assert each["memory_bytes"]["service"] > 1_000_000
    assert facts["stores"][1]["rounds"][0]["server_cpu_us"] > 0
    text = (tmp_path / "found.html").read_text()
    assert f"<h1>{html.escape(facts['summary']['sentence'])}</h1>" in text
    assert "no network, no TLS" in text
    assert read(tmp_path / "found.json").kind == "stores"


def test_two_stores_are_compared_by_the_same_release_users_and_schedule(tmp_path: Path) -> None:
    filled, empty = fill(tmp_path / "filled"), f"file://{tmp_path}/empty"
    done = run_stores(filled, empty, *SMALL, "--no-direct", "--json", "--out", tmp_path / "found")
    assert done.returncode in {0, 1}, done.stderr  # 1 where the machine was too busy for a valid round
    facts = json.loads(done.stdout)
    assert releases(empty) == releases(filled)
    assert len(releases(filled)) == 1
    assert facts["comparison"]["stores"] == [f"file://{tmp_path}/filled", empty]
    assert {line["group"] for line in facts["comparison"]["lines"]} == {
        "Through the service", "CPU a request", "Memory, and room in the store",
    }  # fmt: skip
    assert facts["checked"]["compared"] > 0
    assert facts["checked"]["wrong"] == 0
    assert all(one["ok"] == one["due"] == 40 for each in facts["series"] for one in each["rounds"])


def test_rounds_are_short_and_twenty_fit_into_the_budget_or_they_are_shorter() -> None:
    for options in (StoresOptions(), StoresOptions(emulator_ru=400), StoresOptions(urls=("file:///a", "file:///b"))):
        stores = len(options.urls) or 2 + (options.emulator_ru is not None)
        duration_s = parse_settings(options).duration_s
        assert 0.5 <= duration_s <= 1
        assert stores * 20 * duration_s < 180
        assert 0.5 <= parse_settings(replace(options, budget="1m")).duration_s < 1
        assert parse_settings(replace(options, budget="1h")).duration_s == 1
        assert parse_settings(replace(options, budget="1h", repeat=1_800)).duration_s < 1


class SimulatedPool:
    """Stands for the generator's processes: runs are made in virtual time."""

    pids: tuple[int, ...] = ()
    placement = "The generator ran in virtual time."

    def __init__(self, requested: list[str]) -> None:
        self._requested = requested

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to end."""

    def run(self, load: Load, _on_progress: object) -> Result:
        self._requested.append(load.url)
        made = simulate(load, lambda arrival_s: arrival_s + 0.002)
        return replace(made, seen={"source": {"personal": made.ok}}, samples=())


def test_stores_take_turns_in_alternating_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requested = list[str]()
    monkeypatch.setattr("hotplate.bench.stores.rounds.WorkerPool", lambda **_: SimulatedPool(requested))
    monkeypatch.setattr(Server, "cpu_s", lambda _: 0.0)
    candidates = tuple(
        CandidateStore(name, f"file://{tmp_path}/{name}", Server(f"http://simulated:{number}", -1), UNKNOWN_SERVER)
        for number, name in enumerate("AB", start=1)
    )
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 9, "popular": 1}, 1_000, "", (), (), {})
    urls = tuple(one.url for one in candidates)
    options = StoresOptions(urls=urls, repeat=4, rate="100", direct=False, warmup="0s")
    comparison = StoreComparison(
        Setup(candidates, manifest, ("1", "2"), started_here=False), parse_settings(options), ProgressDisplay(None)
    )
    comparison.run(publishing=False)
    assert "".join(url[-1] for url in requested).startswith("21122112")


class PacedStore(MemoryStore):
    """Takes ten seconds to make a draft's place and then so many rows a second, by a clock of its own."""

    def __init__(self, clock: types.SimpleNamespace, rows_s: float) -> None:
        super().__init__()
        self._paced = clock
        self._rows_s = rows_s

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        self._paced.now_s += 10
        await super().create(draft, plan)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        self._paced.now_s += len(rows) / self._rows_s
        await super().put(draft, rows, part)


async def test_so_many_lists_are_made_up_as_the_slowest_store_takes_in_a_share_of_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = types.SimpleNamespace(now_s=0.0, process_time=lambda: 0.0)
    clock.perf_counter = lambda: clock.now_s
    monkeypatch.setattr("hotplate.bench.stores.publication.time", clock)
    stores = [PacedStore(clock, 100_000), PacedStore(clock, 500)]
    options, urls = StoresOptions(users=20_000), {"quick": "memory://quick", "slow": "memory://slow"}
    made_up = MadeUpLists(options, ProgressDisplay(None))
    found = await made_up.plan(urls, stores)
    assert found == (
        "made up for 8,955 users instead of 20,000, because slow takes 500 lists a second, and the budget is 3m"
    )
    await made_up.publish("quick", stores[0])
    manifest = await load_manifest(stores[0], (await stores[0].catalogue()).releases[-1].ref)
    assert manifest.counts["user"] == 8_955
    enough = MadeUpLists(replace(options, users=300), ProgressDisplay(None))
    assert await enough.plan(urls, stores) == "made up for 300 users"


def test_a_copy_that_would_take_most_of_the_budget_ends_with_the_one_that_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = types.SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr("hotplate.bench.stores.setup.time", clock)
    on_progress = copy_progress("cosmos+http://", StoresOptions(), ProgressDisplay(None))
    clock.now_s = 4.0
    on_progress(1_000, 100_000)  # too early to tell
    clock.now_s = 8.0
    on_progress(50_000, 100_000)
    with pytest.raises(BenchFailed, match=r"takes about 6\.7 minutes of the budget of 3m: --budget 15m would do"):
        on_progress(2_000, 100_000)


def test_a_budget_that_is_used_up_ends_it_and_says_what_would_do(tmp_path: Path) -> None:
    filled, empty = fill(tmp_path / "filled"), f"file://{tmp_path}/empty"
    small = ("--duration", "0.2s", "--warmup", "0s", "--rate", "200", "--no-direct", "--budget", "0.5s")
    done = run_stores(filled, empty, *small, "--out", tmp_path / "found")
    assert done.returncode == 1, done.stderr
    assert "only 1 of 5 rounds were made in the budget of 0.5s: --budget 1m would do" in done.stdout
    facts = json.loads((tmp_path / "found.json").read_text())
    assert [len(each["rounds"]) for each in facts["stores"]] == [1, 1]


def test_ctrl_c_while_stores_are_filled_ends_with_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hotplate.bench.stores.report.prepared_stores", interrupted)
    found = compare_stores(StoresOptions(urls=("file:///a", "file:///b")), ProgressDisplay(None))
    assert found.interrupted
    assert "nothing was measured yet" in page(found)


def test_each_phase_is_shown_at_once() -> None:
    screen = io.StringIO()
    with progress_display(Console(file=screen, force_terminal=True, highlight=False, width=100)) as display:
        display.say("10 rounds: at most 3m in all")
        display.start("writing the release into redis://", 1.0)
        assert "writing the release into redis://   Ctrl-C ends it with a report" in screen.getvalue()
        display.step(300, 1_000)
    assert "10 rounds: at most 3m in all" in screen.getvalue()
    assert "300 of 1,000" in screen.getvalue()


def test_stores_with_different_releases_are_not_compared(tmp_path: Path) -> None:
    urls = fill(tmp_path / "a"), fill(tmp_path / "b")
    before = [releases(url) for url in urls]
    done = run_stores(*urls, *SMALL, "--publish", "--out", tmp_path / "found")
    assert done.returncode == 2
    assert "hotplate releases copy" in done.stderr
    assert done.stderr.count("hotplate: ") == 1
    assert [releases(url) for url in urls] == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["file:///a"], "takes two stores or more"),
        (["file:///a", "file:///a"], "given twice"),
        (["file:///a", "ftp://b"], "is not the URL of a store"),
        (["--encoding", "xml"], "json or zstd"),
        (["--rate", "fast"], "'fast' is not a rate"),
        (["--duration", "0s"], "--duration must be above zero, and is 0"),
        (["--repeat", "10", "--users", "0", "--emulator-ru", "400"], "--users must be above zero, and is 0"),
        (["--cpu-hour", "-1"], "--cpu-hour must be above zero, and is -1"),
        (["--out", "/nowhere/at/all"], "no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_stores(*(["--out", str(tmp_path / "found")] if "--out" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("hotplate: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_redis_server_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = run_stores("--out", tmp_path / "found")
    assert done.returncode == 1
    assert "apt-get install redis-server" in done.stderr
    assert done.stderr.count("hotplate: ") == 1


async def test_a_trial_release_is_measured_and_leaves_no_trace() -> None:
    store = MemoryStore()
    rows = [Row(f"user:{number:05d}", b"x" * 100) for number in range(2_500)]
    found = await write_trial(store, UNKNOWN_SERVER, rows)
    assert found.lists == 2_500
    assert found.wall_s > 0
    assert (found.server_cpu_s, found.stored_bytes) == (None, None)
    catalogue = await store.catalogue()
    assert not catalogue.releases
    with pytest.raises(ReleaseNotFound):
        await store.get_many(ReleaseRef(ReleaseId("20260101T000000Z-0000"), "gone"), ["user:00000"])


def test_stores_are_named_as_briefly_as_distinguishes_them() -> None:
    assert store_names(["file:///a", "redis://h"]) == ["file://", "redis://"]
    assert store_names(["redis://:secret@a:1", "redis://b:2"]) == ["redis://a:1", "redis://b:2"]
    assert store_names(["redis://a?prefix=x", "redis://a?prefix=y"]) == ["redis://a (1)", "redis://a (2)"]


def a_run(answer_s: float, *, late: bool = False) -> Result:
    load = Load(url="http://simulated", requests=Gets("/"), rate=200, duration_s=1, connections=64)
    jammed = replace(load, connections=1, backlog=1)
    made = simulate(jammed if late else load, lambda arrival_s: arrival_s + (0.5 if late else answer_s))
    return replace(made, seen={"source": {"personal": made.ok}})


def store_result(name: str, url: str, runs: list[Result]) -> StoreResult:
    def one_round(result: Result) -> RoundResult:
        server_s = None if "cosmos" in url else 10e-6 * result.ok
        reads = ServiceRun(result, 50e-6 * result.ok, server_s)
        publishing = PublishRun(TrialResult(1_000, 0.01, 0.005, 0.002, 200_000), reads, 90_000.0)
        return RoundResult(
            {size: LookupResult(100.0, 12_345.0, 20.0, 5.0) for size in BATCHES}, None, reads, publishing
        )

    candidate = CandidateStore(name, url, Server("http://simulated", 0), store_server(url))
    memory = StoreMemory(40_000_000, None)
    return StoreResult(candidate, tuple(map(one_round, runs)), memory, CheckResult(5, 0, 0, ()))


def summary(
    *results: StoreResult, cpu_hour: float | None = None, slo: str = StoresOptions().slo, repeat: int = 2
) -> Report:
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 9, "popular": 1}, 1_000, "", (), (), {})
    setup = Setup(tuple(each.candidate for each in results), manifest, ("1",), started_here=True)
    return report(
        StoresOptions(cpu_hour=cpu_hour, repeat=repeat, slo=slo), setup, ComparisonResult(results, interrupted=False)
    )


def cells(made: Report) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(line["group"], line["name"]): line["cells"] for line in made.extra["comparison"]["lines"]}


def test_an_emulators_times_are_nowhere_in_the_report() -> None:
    runs = [a_run(0.002), a_run(0.003), a_run(0.0025)]
    made = summary(store_result("file://", "file:///a", runs), store_result("cosmos+http://", EMULATED, runs))
    found = cells(made)
    timed = {key for key, row in found.items() if row[1] == "—"}
    assert {("Through the service", "p99"), ("Without a service, 1 key a call", "a call, median")} <= timed
    assert {("Publishing", "lists/s"), ("Publishing", "p99 of reads meanwhile")} <= timed
    assert found["CPU a request", "service"][1] == "50 µs"
    assert not any(
        "µs" in row[1] or "ms" in row[1] for key, row in found.items() if key != ("CPU a request", "service")
    )
    assert {line["verdict"] for line in made.extra["comparison"]["lines"]} == {""}  # one store is shown
    assert [each.name for each in made.series] == ["file://", "file://, while lists are written"]
    head, latency, cpu, cost = made.summary.rows[1]
    assert (head, latency, cpu) == (
        ("cosmos+http://", "local emulator, not Azure"), "—", ("50 µs", "of the service alone"),
    )  # fmt: skip
    assert cost[1] == "1.00 RU a read"
    text = page(made)
    assert "none of its times are shown" in text
    assert text.count("local emulator, not Azure") == 2  # at the head of its row, and of its column


def test_reads_are_priced_by_the_price_that_was_given_or_else_by_the_list() -> None:
    one = store_result("file://", "file:///a", [a_run(0.002)])
    assert summary(one).summary.rows[0][2:] == (("60 µs", "50 + 10 µs of its server"), "0.80 USD")  # 0.048 an hour
    assert summary(one, cpu_hour=0.06).summary.rows[0][3] == "1.0 USD"
    unknown = store_result("x://", "x://a", [a_run(0.002)])
    rounds = tuple(replace(one, reads=replace(one.reads, server_cpu_s=None)) for one in unknown.rounds)
    made = summary(replace(unknown, rounds=rounds))
    assert made.summary.rows[0][2:] == (("50 µs", "of the service alone"), "—¹")
    assert made.summary.notes[0].startswith("¹ x://: the store's server is elsewhere")
    assert cells(made)["CPU a request", "both"] == ("—¹",)


def test_a_round_that_is_invalid_for_one_store_counts_for_none() -> None:
    good, late = a_run(0.002), a_run(0.0, late=True)
    made = summary(
        store_result("file://", "file:///a", [good, good, good]),
        store_result("redis://", "redis://a", [good, late, good]),
    )
    (sentence,) = made.extra["comparison"]["left_out"]
    assert sentence.startswith("round 2 is left out: redis://")
    assert [len(each.rounds) for each in made.series[:2]] == [2, 2]
    assert not made.invalid_reasons
    assert sentence in html.unescape(page(made))
    bad = summary(store_result("a", "file:///a", [good, good]), store_result("b", "redis://b", [late, late]))
    assert bad.invalid_reasons
    assert bad.summary.sentence.startswith("It is not known which store is faster, because ")
    assert {line["verdict"] for line in bad.extra["comparison"]["lines"]} == {""}
    assert bad.extra["comparison"]["left_out"] == []


@pytest.mark.soak
def test_the_report_says_how_many_rounds_count_and_why_the_others_do_not() -> None:
    good, late = a_run(0.002), a_run(0.0, late=True)
    whole = store_result("a", "file:///a", [good] * 12)
    made = summary(whole, store_result("b", "redis://b", [good] * 8 + [late] * 4), repeat=10)
    note = made.summary.notes[0]
    assert note.startswith("8 of 12 rounds count, fewer than --repeat 10, because round 9 is left out: b, ")
    assert note.endswith(" (and 3 more like it).")
    assert note in html.unescape(page(made))
    assert made.to_json()["summary"]["notes"][0] == note
    enough = summary(whole, store_result("b", "redis://b", [good] * 10 + [late] * 2), repeat=10)
    assert not any("rounds count" in each for each in enough.summary.notes)
    none = summary(whole, store_result("b", "redis://b", [good] * 4 + [late] * 8), repeat=10)
    assert "because the run is invalid, with 4 valid rounds of 12: b, " in none.summary.sentence


def judged(first: list[Result], second: list[Result]) -> dict[tuple[str, str], str]:
    made = summary(store_result("a", "file:///a", first), store_result("b", "redis://b", second))
    return {(line["group"], line["name"]): line["verdict"] for line in made.extra["comparison"]["lines"]}


def test_the_answer_is_one_sentence() -> None:
    def answer(*runs: list[Result], slo: str = "p50=60ms") -> str:
        stores = [store_result(name, f"file:///{name}", each) for name, each in zip("abc", runs, strict=False)]
        return summary(*stores, slo=slo).summary.sentence

    fast, slow = ([a_run(us * each) for each in (1.0, 1.01, 1.0, 1.02, 1.0)] for us in (0.002, 0.004))
    assert answer(fast, slow).startswith("a is faster at p50: b takes 2 times as long; in CPU there is no difference")
    assert answer(slow, fast).startswith("b is faster at p50: a takes 2 times as long")
    assert answer(fast, fast, slo="p99.9=60ms").startswith(
        "At p99.9 it is not known whether a or b is faster, because fewer than 10 answers lie beyond it; in CPU "
    )
    assert answer(fast).startswith("There is one store")


def test_too_few_rounds_are_complained_of_once() -> None:
    one = store_result("a", "file:///a", [a_run(0.002)])
    made = summary(one, store_result("b", "redis://b", [a_run(0.004)]))
    assert {line["verdict"] for line in made.extra["comparison"]["lines"]} == {""}
    few = (
        f"It is not known which store is faster, because {MIN_PAIRS} rounds or more show what is chance, and 1 counts."
    )
    assert made.summary.sentence == few


@pytest.mark.soak
def test_a_budget_that_ends_it_after_a_verdict_but_before_all_rounds_is_a_note() -> None:
    stores = [store_result(name, f"file:///{name}", [a_run(0.002)] * 6) for name in "ab"]
    made = summary(*stores, repeat=10)
    sentence = "Only 6 of 10 rounds were made in the budget of 3m: --budget 6m would do."
    assert made.summary.notes[0] == sentence
    assert not made.failures
    assert sentence in page(made)
    assert made.to_json()["summary"]["notes"][0] == sentence
    assert not any("rounds were made" in note for note in summary(*stores, repeat=6).summary.notes)
    assert summary(*(replace(each, rounds=each.rounds[:4]) for each in stores), repeat=10).failures == (
        "only 4 of 10 rounds were made in the budget of 3m: --budget 9m would do",
    )


def test_each_figure_that_was_measured_in_each_round_has_a_verdict() -> None:
    quick, slow = ([a_run(each) for each in (one, 1.05 * one, one, one, one)] for one in (0.002, 0.004))
    found = judged(quick, slow)
    unjudged = {name for (_, name), verdict in found.items() if not verdict}
    assert unjudged == {"the store's server", "service, files aside"}
    assert found["Through the service", "p99.99"] == "— (fewer than 10 answers lie beyond it)"
    assert found["Through the service", "good answers/s"].startswith("no difference that matters")
    assert found["Through the service", "errors and drops"] == "no difference that matters"
    assert found["CPU a request", "service"].startswith("no difference that matters")
    assert found["Publishing", "lists/s"].startswith("no difference that matters")
