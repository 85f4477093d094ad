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

import numpy as np
import pytest
from rich.console import Console

from hotplate.bench.answers import CheckResult
from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.loadgen.schedule import constant
from hotplate.bench.measured import MIN_PAIRS
from hotplate.bench.options import StoresOptions
from hotplate.bench.process import Server, redis_serving
from hotplate.bench.progress import ProgressDisplay, progress_display
from hotplate.bench.report import text
from hotplate.bench.report.page import page
from hotplate.bench.report.report import Report, counted, read
from hotplate.bench.stores.publication import TrialResult, write_trial
from hotplate.bench.stores.report import compare_stores, parse_settings, report
from hotplate.bench.stores.results import (
    ComparisonResult,
    LookupResult,
    Memory,
    PublishRun,
    RoundResult,
    ServiceRun,
    StoreResult,
)
from hotplate.bench.stores.rounds import BATCHES, StoreComparison
from hotplate.bench.stores.server import UNKNOWN_SERVER, store_server
from hotplate.bench.stores.setup import Candidate, MadeUpLists, Setup, copy_progress, emulator_label, store_names
from hotplate.stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.manifest import Manifest
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Row
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
    assert not (tmp_path / "found.hdr").exists()
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


@pytest.mark.soak
@needs_redis
def test_an_empty_store_is_filled_and_nothing_else_is_written_unless_requested(tmp_path: Path) -> None:
    filled = fill(tmp_path / "filled")
    with redis_serving() as redis:
        done = run_stores(filled, redis.url(), *SMALL, "--json", "--out", tmp_path / "found")
        facts = json.loads(done.stdout)
        assert releases(redis.url()) == releases(filled)
        assert len(releases(filled)) == 1
    assert facts["configuration"]["lists"] == "of the live release"
    assert all(each["rounds"][0]["trial"] is None for each in facts["stores"])
    assert not any(line["group"] == "Publishing" for line in facts["comparison"]["lines"])


def test_rounds_are_short_and_a_dozen_fit_into_the_budget_or_they_are_shorter() -> None:
    for options in (StoresOptions(), StoresOptions(emulator_ru=400), StoresOptions(urls=("file:///a", "file:///b"))):
        stores = len(options.urls) or 2 + (options.emulator_ru is not None)
        duration_s = parse_settings(options).duration_s
        assert 0.5 <= duration_s <= 1
        assert stores * 12 * duration_s < 180
        assert 0.5 <= parse_settings(replace(options, budget="1m")).duration_s < 1
        assert parse_settings(replace(options, budget="1h")).duration_s == 1
        assert parse_settings(replace(options, budget="1h", repeat=1_800)).duration_s < 1


class VirtualPool:
    """Stands for the generator's processes: runs are made in virtual time, on a machine that is busy now and then."""

    pids: tuple[int, ...] = ()
    placement = "The generator ran in virtual time."

    def __init__(self, clock: types.SimpleNamespace, answer_s: dict[str, float], seed: int = 1) -> None:
        self._clock = clock
        self._answer_s = answer_s
        self._chance = np.random.default_rng(seed)
        self.urls = list[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to end."""

    def run(self, load: Load, on_progress: object) -> Result:
        del on_progress
        self.urls.append(load.url)
        self._clock.now_s += load.duration_s + 0.5
        slow = self._chance.lognormal(0, 0.1) * (4 if self._chance.random() < 0.15 else 1)
        made = simulate(load, lambda arrival_s: arrival_s + self._answer_s[load.url] * slow)
        return replace(made, seen={"source": {"personal": made.ok}}, samples=())


def compared_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answers_s: Sequence[float], budget: str = "1m", seed: int = 1
) -> tuple[VirtualPool, Report]:
    clock = types.SimpleNamespace(now_s=0.0)
    clock.monotonic = lambda: clock.now_s
    urls = tuple(f"file://{folder}/{number}" for number in range(len(answers_s)))
    services = [f"http://simulated:{number + 1}" for number in range(len(answers_s))]
    pool = VirtualPool(clock, dict(zip(services, answers_s, strict=True)), seed)
    monkeypatch.setattr("hotplate.bench.stores.rounds.time", clock)
    monkeypatch.setattr("hotplate.bench.stores.report.time", clock)
    monkeypatch.setattr("hotplate.bench.stores.rounds.WorkerPool", lambda **_: pool)
    options = StoresOptions(urls=urls, budget=budget, rate="100", direct=False, warmup="0s")
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 9, "popular": 1}, 1_000, "", (), (), {})
    candidates = tuple(
        Candidate(name, url, Server(service, -1), UNKNOWN_SERVER)
        for name, url, service in zip("ABC", urls, services, strict=False)
    )
    setup = Setup(candidates, manifest, ("1", "2"), started_here=False)
    comparison = StoreComparison(setup, parse_settings(options), ProgressDisplay(None))
    return pool, report(options, setup, comparison.run(publishing=False))


def test_stores_take_turns_in_alternating_order_until_the_budget_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool, made = compared_in_virtual_time(monkeypatch, tmp_path, [0.002, 0.002])
    order = "".join(url[-1] for url in pool.urls)
    assert order.startswith("21122112")
    rounds = len(made.series[0].rounds)
    assert rounds == len(order) // 2 == 13  # of 3 s each in a minute less 20 s
    assert "The generator ran in virtual time." in made.extra["comparison"]["notes"]


def test_rounds_that_would_tell_are_turned_into_a_budget() -> None:
    found = ComparisonResult((), interrupted=False, round_s=6.2)
    assert found.more_time(60) == "60 rounds take about 8 minutes: --budget 8m"


def test_on_a_busy_machine_a_store_that_is_half_as_fast_again_is_found_and_an_equal_one_is_not_called_different(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def verdict(second_s: float, seed: int) -> str:
        _, made = compared_in_virtual_time(monkeypatch, tmp_path, [0.002, second_s], seed=seed)
        lines = made.extra["comparison"]["lines"]
        return next(str(line["verdict"]) for line in lines if line["name"] == "p50")

    slower = [verdict(0.003, seed) for seed in range(5)]
    assert sum(each.startswith("A is faster: B takes ") for each in slower) >= 4, slower
    equal = [verdict(0.002, seed) for seed in range(5)]
    assert not any("faster" in each for each in equal), equal


class PacedStore(MemoryStore):
    """Takes so many rows a second, by a clock of its own."""

    def __init__(self, clock: types.SimpleNamespace, rows_s: float) -> None:
        super().__init__()
        self._paced = clock
        self._rows_s = rows_s

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
    assert done.stderr.count("\n") == 1
    assert [releases(url) for url in urls] == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["file:///a"], "takes two stores or more"),
        (["file:///a", "file:///a"], "given twice"),
        (["file:///a", "ftp://b"], "is not the URL of a store"),
        (["--encoding", "xml"], "json or zstd"),
        (["--rate", "fast"], "'fast' is not a rate"),
        (["--duration", "0s"], "above zero"),
        (["--cpu-hour", "-1"], "above zero"),
        (["--out", "/nowhere/at/all"], "no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_stores(*(["--out", str(tmp_path / "found")] if "--out" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_redis_server_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    done = run_stores("--out", tmp_path / "found")
    assert done.returncode == 1
    assert "apt-get install redis-server" in done.stderr
    assert done.stderr.count("\n") == 1


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


def test_the_url_says_which_server_holds_a_store(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 10_000)
    folder = store_server(f"file://{tmp_path}")
    assert (folder.stored_bytes() or 0) >= 10_000
    assert (folder.cpu_s(), folder.memory_bytes()) == (0, 0)
    assert store_server("cosmos://account/db") is UNKNOWN_SERVER


@needs_redis
def test_a_redis_server_reports_what_it_uses_and_holds() -> None:
    with redis_serving() as redis:
        server = store_server(redis.url("any"))
        used, held = server.cpu_s(), server.stored_bytes()
        redis.execute("SET", "key", "x" * 1_000_000)
        assert used is not None
        assert held is not None
        assert (server.cpu_s() or 0) > used
        assert (server.stored_bytes() or 0) - held >= 1_000_000
        assert (server.memory_bytes() or 0) > 1_000_000


def test_an_emulator_is_known_by_its_scheme() -> None:
    assert emulator_label(EMULATED) == emulator_label("cosmos+https://localhost/db") == "local emulator, not Azure"
    assert emulator_label("cosmos://account/db") is None
    assert emulator_label("redis://localhost") is None


def test_stores_are_named_as_briefly_as_distinguishes_them() -> None:
    assert store_names(["file:///a", "redis://h"]) == ["file://", "redis://"]
    assert store_names(["redis://:secret@a:1", "redis://b:2"]) == ["redis://a:1", "redis://b:2"]
    assert store_names(["redis://a?prefix=x", "redis://a?prefix=y"]) == ["redis://a (1)", "redis://a (2)"]


def a_run(answer_s: float, *, late: bool = False) -> Result:
    load = Load(url="http://simulated", paths=["/"], arrivals=constant(200, 1), duration_s=1, connections=64)
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

    candidate = Candidate(name, url, Server("http://simulated", 0), store_server(url))
    memory = Memory(20_000_000, 40_000_000, None)
    return StoreResult(candidate, tuple(map(one_round, runs)), memory, CheckResult(5, 0, 0, ()))


def summary(*results: StoreResult, cpu_hour: float | None = None, slo: str = StoresOptions().slo) -> Report:
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 9, "popular": 1}, 1_000, "", (), (), {})
    setup = Setup(tuple(each.candidate for each in results), manifest, ("1",), started_here=True)
    return report(
        StoresOptions(cpu_hour=cpu_hour, repeat=2, slo=slo), setup, ComparisonResult(results, interrupted=False)
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


def verdict_on_p50(first: list[float], second: list[float]) -> str:
    return judged(list(map(a_run, first)), list(map(a_run, second)))["Through the service", "p50"]


def test_only_a_difference_beyond_chance_is_called_one() -> None:
    quick, slow = [0.002, 0.0021, 0.002, 0.002, 0.0021], [0.004, 0.0042, 0.004, 0.004, 0.0042]
    assert verdict_on_p50(quick, slow) == "a is faster: b takes 2 times as long"
    assert verdict_on_p50(slow, quick) == "b is faster: a takes 2 times as long"
    alike = [0.00202, 0.00209, 0.00203, 0.00201, 0.00208]
    assert verdict_on_p50(quick, alike).startswith("no difference that matters (")
    assert verdict_on_p50([0.002, 0.004, 0.003, 0.002, 0.004], [0.004, 0.002, 0.0031, 0.004, 0.002]).startswith(
        "cannot tell, because rounds differ by more ("
    )


def test_too_few_rounds_are_complained_of_once() -> None:
    one = store_result("a", "file:///a", [a_run(0.002)])
    made = summary(one, store_result("b", "redis://b", [a_run(0.004)]))
    assert {line["verdict"] for line in made.extra["comparison"]["lines"]} == {""}
    few = (
        f"It is not known which store is faster, because {MIN_PAIRS} rounds or more show what is chance, and 1 counts."
    )
    assert made.summary.sentence == few


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


def test_twenty_like_complaints_are_one_with_a_count() -> None:
    late = [f"{name}, round {number}: sent {number} of 9" for name in ("a", "b") for number in range(10)]
    assert counted(late) == ["a, round 0: sent 0 of 9 (and 19 more like it)"]
    assert counted(["round 1: late", "round 2: dropped"]) == ["round 1: late", "round 2: dropped"]


def test_cells_are_short() -> None:
    assert text.format_interval(71.23, 69.0, 73.9) == "71.2 µs (69 … 73.9)"
    assert text.format_interval(1_234, 900, 2_000) == "1.23 ms (0.9 … 2)"
    assert text.format_interval(1_030, 4e-6, 258_217) == "1.03 ms (rounds differ too much for an interval)"
    assert text.format_both_us(41.23, 24.5) == "41.2 + 24.5 µs"
    assert text.format_both_us(0.9, 0.0) == "0.9 µs"
    assert text.format_count(1_134_567) == "1,130,000"
    assert text.format_bytes(0) == "none"
    assert text.format_bytes(None) == "—"
