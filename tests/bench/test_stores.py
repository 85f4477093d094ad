"""The comparison of stores: from end to end at a small size, and what it refuses, leaves out and never shows."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import comparison_lines as table
from bench.backing import CosmosEmulator, Folder, Unknown, backing, emulator
from bench.comparison import Asked, report
from bench.contest import BATCHES, Memory, Outcome, Served, Standing, Turn, Written
from bench.contestants import Contestant, Field, names
from bench.expected import Checked
from bench.launch import Server
from bench.loadgen.result import Result
from bench.loadgen.schedule import constant
from bench.loadgen.traffic import Load
from bench.lookups import Lookups
from bench.redis_server import redis_serving
from bench.report.page import page
from bench.report.report import Report, read
from bench.trial import Trial, trial
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.errors import ReleaseNotFound
from stores.manifest import Manifest
from stores.memory import MemoryStore
from stores.store import Row
from tests.support.service import a_list, publish_lists
from tests.support.stores import ref
from tests.support.virtual import simulate

SMALL = ("--duration", "0.4s", "--warmup", "0s", "--repeat", "1", "--rate", "200")
EMULATED = "cosmos+http://127.0.0.1:8081/hotplate"
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")


def bench_stores(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hotplate", "bench", "stores", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb"} | settings,
    )


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


@needs_redis
def test_without_urls_it_starts_what_it_needs_and_leaves_a_report(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = bench_stores(
        *SMALL, "--users", "500", "--cpu-hour", "0.04", "--out", tmp_path / "found", TMPDIR=str(scratch)
    )
    assert done.returncode in {0, 1}, done.stderr  # 1 where the machine was too busy for a valid round
    for told in ("file://", "redis://", "Alone, 64 keys a call", "p99.99", "a million reads", "p99 of reads meanwhile"):
        assert told in done.stdout
    assert list(scratch.iterdir()) == []
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["comparison"]["stores"] == ["file://", "redis://"]
    assert facts["checked"]["compared"] > 0
    assert facts["checked"]["wrong"] == 0
    for each in facts["stores"]:
        assert each["rounds"]  # one, or more where the machine was busy: rounds that do not count are kept, too
        for turn in each["rounds"]:
            assert set(turn["alone"]) == {str(size) for size in BATCHES}
            assert turn["service_cpu_us"] > 0
            assert turn["trial"]["lists"] == 500
            assert turn["trial"]["stored_bytes"] > 0
        assert each["memory_bytes"]["service"] > 1_000_000
    assert facts["stores"][1]["rounds"][0]["server_cpu_us"] > 0
    text = (tmp_path / "found.html").read_text()
    assert "Which differences are real" in text
    assert "no network, no TLS" in text
    assert not (tmp_path / "found.hdr").exists()
    assert read(tmp_path / "found.json").kind == "stores"


@needs_redis
def test_an_empty_store_is_filled_and_nothing_else_is_written_unless_told(tmp_path: Path) -> None:
    filled = fill(tmp_path / "filled")
    with redis_serving() as redis:
        done = bench_stores(filled, redis.url(), *SMALL, "--json", "--out", tmp_path / "found")
        facts = json.loads(done.stdout)
        assert releases(redis.url()) == releases(filled)
        assert len(releases(filled)) == 1
    assert facts["configuration"]["lists"] == "of the live release"
    assert all(each["rounds"][0]["trial"] is None for each in facts["stores"])
    assert not any(line["group"] == "Publishing" for line in facts["comparison"]["lines"])


def test_stores_with_different_releases_are_not_compared(tmp_path: Path) -> None:
    urls = fill(tmp_path / "a"), fill(tmp_path / "b")
    before = [releases(url) for url in urls]
    done = bench_stores(*urls, *SMALL, "--publish", "--out", tmp_path / "found")
    assert done.returncode == 2
    assert "hotplate releases copy" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [releases(url) for url in urls] == before


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = bench_stores(*(["--out", str(tmp_path / "found")] if "--out" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_redis_server_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = bench_stores("--out", tmp_path / "found", PATH="")
    assert done.returncode == 1
    assert "apt-get install redis-server" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_a_trial_release_is_measured_and_leaves_no_trace() -> None:
    store = MemoryStore()
    rows = [Row(f"user:{number:05d}", b"x" * 100) for number in range(2_500)]
    found = await trial(store, Unknown(), rows)
    assert found.lists == 2_500
    assert found.wall_s > 0
    assert (found.server_cpu_s, found.stored_bytes) == (None, None)
    catalogue = await store.catalogue()
    assert not catalogue.releases
    with pytest.raises(ReleaseNotFound):
        await store.get_many(ref(ReleaseId("20260101T000000Z-0000")), ["user:00000"])


def test_what_stands_behind_a_store_is_told_by_its_url(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 10_000)
    folder = backing(f"file://{tmp_path}")
    assert isinstance(folder, Folder)
    assert folder.stored_bytes() >= 10_000
    assert isinstance(backing(EMULATED), CosmosEmulator)
    assert isinstance(backing("cosmos://account/db"), Unknown)


@needs_redis
def test_a_redis_server_tells_what_it_spends_and_holds() -> None:
    with redis_serving() as redis:
        behind = backing(redis.url("any"))
        spent, held = behind.cpu_s(), behind.stored_bytes()
        redis._ask("SET", "key", "x" * 1_000_000)
        assert spent is not None
        assert held is not None
        assert (behind.cpu_s() or 0) > spent
        assert (behind.stored_bytes() or 0) - held >= 1_000_000
        assert (behind.memory_bytes() or 0) > 1_000_000


def test_an_emulator_is_told_by_its_scheme() -> None:
    assert emulator(EMULATED) == emulator("cosmos+https://localhost/db") == "local emulator, not Azure"
    assert emulator("cosmos://account/db") is None
    assert emulator("redis://localhost") is None


def test_stores_are_named_as_briefly_as_tells_them_apart() -> None:
    assert names(["file:///a", "redis://h"]) == ["file://", "redis://"]
    assert names(["redis://:secret@a:1", "redis://b:2"]) == ["redis://a:1", "redis://b:2"]
    assert names(["redis://a?prefix=x", "redis://a?prefix=y"]) == ["redis://a (1)", "redis://a (2)"]


def a_run(answer_s: float, *, late: bool = False) -> Result:
    load = Load(url="http://simulated", paths=["/"], arrivals=constant(200, 1), duration_s=1, connections=64)
    jammed = replace(load, connections=1, backlog=1)
    made = simulate(jammed if late else load, lambda arrival_s: arrival_s + (0.5 if late else answer_s))
    return replace(made, seen={"source": {"personal": made.ok}})


def standing(name: str, url: str, runs: list[Result]) -> Standing:
    def turn(result: Result) -> Turn:
        served = Served(0.0, result, 50.0, None if "cosmos" in url else 10.0)
        written = Written(Trial(1_000, 0.01, 0.005, 0.002, 200_000), served, 90_000.0)
        return Turn({size: Lookups(100.0, 12_345.0, 20.0, 5.0) for size in BATCHES}, served, written)

    contestant = Contestant(name, url, Server("http://simulated", 0), backing(url))
    return Standing(contestant, tuple(map(turn, runs)), Memory(20_000_000, 40_000_000, None), Checked(5, 0, 0, ()))


def summary(*standings: Standing, cpu_hour: float | None = None) -> Report:
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 9, "popular": 1}, 1_000, "", (), (), {})
    field = Field(tuple(each.contestant for each in standings), manifest, ("1",), made=True)
    return report(Asked(cpu_hour=cpu_hour, repeat=2), field, Outcome(standings, interrupted=False))


def cells(made: Report) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(line["group"], line["name"]): line["cells"] for line in made.extra["comparison"]["lines"]}


def test_an_emulators_times_are_nowhere_in_the_report() -> None:
    runs = [a_run(0.002), a_run(0.003), a_run(0.0025)]
    made = summary(standing("file://", "file:///a", runs), standing("cosmos+http://", EMULATED, runs))
    found = cells(made)
    timed = {key for key, told in found.items() if told[1] == "local emulator, not Azure"}
    assert {("Through the service", "p99"), ("Alone, 1 key a call", "a call, median")} <= timed
    assert {("Publishing", "lists/s"), ("Publishing", "p99 of reads meanwhile")} <= timed
    assert found["CPU a request", "service"][1] == "50 µs"
    assert not any("µs" in told[1] or "ms" in told[1] for key, told in found.items() if key[0] != "CPU a request")
    assert [each.name for each in made.series] == ["file://", "file://, while lists are written"]
    assert "none of its times are shown" in page(made)


def test_a_million_reads_are_priced_only_by_a_price_that_was_given() -> None:
    one = standing("file://", "file:///a", [a_run(0.002)])
    key = ("CPU a request", "a million reads, + server's")
    assert cells(summary(one))[key] == ("60 CPU-s",)
    assert cells(summary(one, cpu_hour=0.06))[key] == ("60 CPU-s, price 0.001",)
    unknown = standing("x://", "x://a", [a_run(0.002)])
    turns = tuple(replace(turn, served=replace(turn.served, server_cpu_us=None)) for turn in unknown.turns)
    assert cells(summary(replace(unknown, turns=turns)))[key] == ("not known",)


def test_a_round_that_is_invalid_for_one_store_counts_for_none() -> None:
    good, late = a_run(0.002), a_run(0.0, late=True)
    made = summary(
        standing("file://", "file:///a", [good, good, good]), standing("redis://", "redis://a", [good, late, good])
    )
    (told,) = made.extra["comparison"]["left_out"]
    assert told.startswith("round 2 is left out: redis://")
    assert [len(each.rounds) for each in made.series[:2]] == [2, 2]
    assert not made.doubts
    assert "every round that counts; left out, as it did not: 1." in page(made)
    bad = summary(standing("a", "file:///a", [good, good]), standing("b", "redis://b", [late, late]))
    assert bad.doubts
    assert bad.extra["comparison"]["left_out"] == []


def test_only_a_difference_beyond_chance_is_called_real() -> None:
    def verdict(first: list[float], second: list[float]) -> str:
        made = summary(
            standing("a", "file:///a", list(map(a_run, first))), standing("b", "redis://b", list(map(a_run, second)))
        )
        (said,) = made.extra["comparison"]["verdicts"]
        return str(said)

    assert "100% longer through b than a" in (said := verdict([0.002, 0.0021, 0.002], [0.004, 0.0042, 0.004]))
    assert said.endswith("a real difference")
    assert "no real difference" in verdict([0.002, 0.004, 0.003], [0.004, 0.002, 0.0031])
    assert "3 valid rounds or more" in verdict([0.002], [0.004])


def test_cells_are_short() -> None:
    assert table.between(71.23, 69.0, 73.9) == "71.2 µs (69 … 73.9)"
    assert table.between(1_234, 900, 2_000) == "1.23 ms (0.9 … 2)"
    assert table.both(41.23, 24.5) == "41.2 + 24.5 µs"
    assert table.both(0.9, 0.0) == "0.9 µs"
    assert table.count(1_134_567) == "1,130,000"
    assert table.size(0) == "none"
    assert table.size(None) == "not known"
