"""The reference's load test as a preset: what is inferred, whose limit is named, what is never shown, and a run."""

import asyncio
import json
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.bench.answers import CheckResult
from hotplate.bench.loadgen.capacity import PERCENTS, parse_objective
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.options import PUBLISHED_RATE, PUBLISHED_RU, PUBLISHED_USERS, REFERENCE, THINK_S, StoresOptions
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.process import Server
from hotplate.bench.report.page import page
from hotplate.bench.report.report import Report
from hotplate.bench.stores.reference import COLUMN, needs
from hotplate.bench.stores.report import parse_settings, report
from hotplate.bench.stores.results import (
    Capacity,
    ComparisonResult,
    RequestUnits,
    RoundResult,
    ServiceRun,
    StoreMemory,
    StoreResult,
    capacity_point,
)
from hotplate.bench.stores.server import UNKNOWN_SERVER
from hotplate.bench.stores.setup import CandidateStore, Setup
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.charges import load
from hotplate.stores.manifest import Manifest
from tests.support.command import hotplate
from tests.support.cosmos_server import emulator
from tests.support.service import a_list, publish_lists
from tests.support.virtual import simulate

OBJECTIVE = parse_objective("p99=60ms,errors=0.1%")


def test_the_preset_is_the_published_load() -> None:
    settings = parse_settings(REFERENCE)
    assert (REFERENCE.closed_users, settings.rate, REFERENCE.poisson, settings.think_s) == (200, 180, True, THINK_S)
    assert settings.objective == OBJECTIVE


def test_the_preset_is_the_comparisons_verb_with_other_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[StoresOptions]()

    def note(options: StoresOptions, display: object) -> Report:
        del display
        chosen.append(options)
        return Report(kind="stores", configuration={}, series=(), failures=("nothing was measured",))

    monkeypatch.setattr("hotplate.bench.stores.report.compare_stores", note)
    for verb in ("stores", "reference"):
        assert hotplate("bench", verb, "--zipf", "0.9", "--out", tmp_path / "found").returncode == 1
    assert chosen == [StoresOptions(zipf=0.9), replace(REFERENCE, zipf=0.9)]


def test_pauses_differ_from_user_to_user_and_add_up_to_the_rate() -> None:
    thinking = Load(
        url="http://h", requests=Gets("/"), duration_s=60, connections=PUBLISHED_USERS, think_s=THINK_S,
        think_spread=0.5,
    )  # fmt: skip
    found = simulate(thinking, lambda arrival_s: arrival_s + 0.060)
    assert found.ok_rate == pytest.approx(PUBLISHED_RATE, rel=0.02)
    most = max(second.due for second in found.seconds)
    assert most < 1.5 * PUBLISHED_RATE  # all at once they would come in bursts of 200


def test_what_the_rate_needs_is_a_small_part_of_what_was_provisioned() -> None:
    found = needs(load(), load_prices(), 1024, PUBLISHED_RATE, PUBLISHED_RU)
    assert (found.read_ru, found.used_ru, found.needed_ru) == (1.0, 180.0, 400)
    assert found.provisioned_month_usd == pytest.approx(11_000 / 100 * 0.008 * 730)
    assert found.needed_month_usd == pytest.approx(4 * 0.008 * 730)
    larger = needs(load(), load_prices(), 64 * 1024, PUBLISHED_RATE, PUBLISHED_RU)
    assert larger.needed_ru == 1_300  # 180 x 4.76 / 0.7, in steps of 100


def test_a_read_costs_what_a_read_is_charged_where_one_answers_two_responses() -> None:
    assert ServiceRun(a_result(), 0.1, None, RequestUnits(198.0, 198.0, 0.0)).read_ru == 1.0


def a_result(latency_s: float = 0.002, **changed: object) -> Result:
    made = simulate(
        Load(url="http://h", requests=Gets("/"), rate=200, duration_s=1), lambda arrival_s: arrival_s + latency_s
    )
    return replace(made, seen={"source": {"personal": made.ok}}, **changed)  # type: ignore[arg-type]  # fields by name


def a_run(result: Result, share: float = 0.2, throttled: float | None = None) -> ServiceRun:
    units = None if throttled is None else RequestUnits(200.0, 200.0, throttled)
    return ServiceRun(result, share * result.duration_s, 0.1 * result.duration_s, units)


def a_store(name: str, url: str, *attempts: tuple[float, ServiceRun], throttled: float | None = None) -> StoreResult:
    candidate = CandidateStore(name, url, Server("http://127.0.0.1:1", 0), UNKNOWN_SERVER)
    run = a_run(a_result(0.0034), throttled=throttled)
    return StoreResult(
        candidate,
        (RoundResult({}, run, run, None),),
        StoreMemory(1, None),
        CheckResult(5, 0, 0, ()),
        Capacity(tuple((capacity_point(rate, made, OBJECTIVE), made) for rate, made in attempts)),
    )


def capacity_of(store: StoreResult) -> Capacity:
    assert store.capacity is not None
    return store.capacity


def test_it_is_named_what_ended_the_search() -> None:
    inside, slow = a_run(a_result()), a_result(0.1)
    good = (200, inside)
    full = capacity_of(a_store("a", "file:///a", good, (400, a_run(slow, 0.97))))
    assert full.limit == "the service's core"
    assert full.ending(emulated=False).startswith(
        "outside at 400 requests/s by p99 100 ms, bound 60 ms; the service used 97% of its"
    )
    half, ours = a_run(slow, 0.75), (200, inside)
    assert capacity_of(a_store("a", "redis://a", ours, (400, half))).limit == "no core was full"
    shared = replace(half, one_core=True)  # with a tenth of it for the store's server
    assert capacity_of(a_store("a", "redis://a", ours, (400, shared))).limit == "the service's core"
    throttled = capacity_of(a_store("b", "cosmos+http://a:1/b", good, (400, a_run(slow, 0.3, throttled=9))))
    assert throttled.limit == "the container's RU/s"
    assert "100 ms" not in throttled.ending(emulated=True)  # the time of an emulator
    assert throttled.ending(emulated=True).endswith("9 reads refused with 429")
    seconds = tuple(replace(each, latencies_s=each.latencies_s + 0.1) for each in inside.result.seconds)
    due_late = replace(inside.result, seconds=seconds, lags_s=inside.result.lags_s + 0.1)
    late = capacity_of(a_store("a", "file:///a", good, (400, replace(inside, result=due_late))))
    assert late.limit == "the load generator"
    assert "p99 is between 2 ms and 102 ms, bound 60 ms" in late.ending(emulated=False)
    assert "102 ms" not in late.ending(emulated=True)
    idle = capacity_of(a_store("a", "file:///a", good, (400, a_run(slow, 0.3))))
    assert idle.limit == "no core was full"
    assert "100 ms" not in idle.ending(emulated=True)
    assert capacity_of(a_store("a", "file:///a", good)).limit == "it was stopped"
    assert late.best is not None
    assert late.best[0].at == 200


def a_report(*results: StoreResult, interrupted: bool = False) -> Report:
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 10}, 5_000, "", (), (), {})
    setup = Setup(tuple(one.candidate for one in results), manifest, ("1",), started_here=True)
    return report(REFERENCE, setup, ComparisonResult(results, interrupted))


def test_an_emulators_latencies_are_not_shown_and_its_request_units_are() -> None:
    attempts = (200, a_run(a_result(0.0034))), (400, a_run(a_result(0.1), 0.97))
    made = a_report(
        a_store("file://", "file:///a", *attempts),
        a_store("cosmos+http://", "cosmos+http://127.0.0.1:1/d?ru=11000", *attempts, throttled=0.0),
    )
    found = made.extra["comparison"]
    assert found["stores"] == [COLUMN, "file://", "cosmos+http://"]
    by_name = {(line["group"].partition(":")[0], line["name"]): line["cells"] for line in found["lines"]}
    assert by_name["Closed loop", "p50"] == ("≈ 60 ms", "3.4 ms", "—")
    assert by_name["Closed loop", "good answers/s"] == ("180", "200", "200")
    assert by_name["Through the service", "p99"][2] == "—"
    assert by_name["Request units", "used in the closed loop"] == ("180 RU/s, inferred", "none", "200 RU/s")
    assert by_name["Request units", "of what was provisioned"] == ("1.6%, inferred", "none", "1.8%")
    assert by_name["Request units", "what 180 requests/s need"] == ("400 RU/s, inferred", "none", "400 RU/s")
    assert [each.name for each in made.series] == ["file://, closed loop", "file://"]
    text = page(made)
    assert "file://: the highest rate inside p99 ≤ 60 ms, errors ≤ 0.1 % is 200 requests/s (limit: " in text
    emulated = next(note for note in made.summary.notes if note.startswith("cosmos+http://: "))
    assert "is 200 requests/s (limit: the service's core)" in emulated
    assert "ms" not in emulated.partition("is 200 requests/s")[2]
    assert "over requests/s that fell due" in text  # the search of the store whose times are its own
    assert "learn.microsoft.com/azure/architecture" in text
    assert made.valid
    assert not a_report(a_store("file://", "file:///a", *attempts), interrupted=True).valid


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_it_runs_against_stores_that_are_given(tmp_path: Path) -> None:
    lists = {f"user:{n}": a_list(*(f"i{n}-{rank}" for rank in range(20))) for n in range(40)}
    asyncio.run(publish_lists(tmp_path / "store", lists))
    with emulator() as cosmos:
        urls = f"file://{tmp_path}/store", f"cosmos+{cosmos.endpoint}hotplate?ru=11000"
        options: list[str | Path] = [
            "--duration",
            "1s",
            "--warmup",
            "0s",
            "--slo",
            "p99=1us",
            "--out",
            tmp_path / "found",
            "--json",
        ]
        done = hotplate("bench", "reference", *urls, *options)
        assert done.returncode == 3, done.stderr  # nothing is answered within a microsecond
        with urllib.request.urlopen(cosmos.endpoint + "__emulation/metrics") as answer:
            assert b'operation="read item",status="200"' in answer.read()
    facts = json.loads(done.stdout)
    assert facts["kind"] == "reference"
    assert [each["name"] for each in facts["comparison"]["capacity"]] == ["file://", "cosmos+http://"]
    assert all(each["points"] for each in facts["comparison"]["capacity"])
    assert {line["name"] for line in facts["comparison"]["lines"]} > set(PERCENTS)
    used = next(line["cells"] for line in facts["comparison"]["lines"] if line["name"] == "a read")
    assert used[:2] == ["not published", "none"]
    assert float(used[2].removesuffix(" RU")) == pytest.approx(1, abs=0.1)  # with the reads of the catalogue
    assert (tmp_path / "found.html").exists()
