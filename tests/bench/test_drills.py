"""Drills: what is promised and judged, what is refused, and the real ones on a real instance, kept and broken."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.bench.answers import CheckResult
from hotplate.bench.drills.drills import DRILLS, Drill, choose
from hotplate.bench.drills.instance import Instance
from hotplate.bench.drills.run import (
    AFTER,
    BEFORE,
    FAULT,
    DrillOptions,
    DrillVerdict,
    Movement,
    Observation,
    Phase,
    judge,
    run_drills,
)
from hotplate.bench.errors import BenchFailed
from hotplate.bench.process import redis_installed
from tests.support.command import failed, hotplate

NAMES = ("latency", "errors", "disconnects", "lost-tier", "corruption", "old-snapshot", "throttling")
WELL = Phase(due=100, ok=100, errors={}, sources={"personal": 100}, tiers={"file": 100}, p99_us=(900.0, 1000.0))
SEEN = Observation(
    phases={BEFORE: WELL, FAULT: WELL, AFTER: WELL},
    compared=CheckResult(300, 0, 0, ()),
    probes=10,
    unready=0,
    movements=(Movement("degraded", "hotplate_degraded", 0.0, 1.0, 0.5),),
    recovered_s=1.0,
)


def during(**changes: object) -> Observation:
    """Return what is well but for the answers during the fault."""
    return replace(SEEN, phases=SEEN.phases | {FAULT: replace(WELL, **changes)})  # type: ignore[arg-type]  # fields of a phase


def test_a_drill_in_which_all_is_well_is_kept() -> None:
    verdict = DrillVerdict("errors", "", ("redis", "file"), judge(SEEN, DrillOptions(), 0.99), SEEN)
    assert verdict.kept
    assert verdict.sentence == (
        "errors (redis, file): kept: 300 of 300 answered; 0 of 300 lists wrong; 100.0% own lists from 100% file; "
        "p99 900 µs to 1 ms; /readyz 200 10 of 10 times; degraded after 0.5 s; as before after 1.0 s"
    )


@pytest.mark.parametrize(
    ("seen", "broken"),
    [
        (during(ok=99, errors={"status": 1}), "every request is answered"),
        (replace(SEEN, compared=CheckResult(300, 1, 0, ("user 7: …",))), "no answer is another list"),
        (replace(SEEN, compared=CheckResult(0, 0, 0, ())), "no answer is another list"),
        (during(sources={"personal": 98, "popular": 2}), "99% or more get their own list"),
        (during(p99_us=(250_001.0, 250_002.0)), "p99 within 250 ms"),
        (replace(SEEN, unready=1), "the service stays ready"),
        (replace(SEEN, movements=(Movement("x", "hotplate_x", 0.0, 0.0, None),)), "hotplate_x rises"),
        (replace(SEEN, recovered_s=None), "all is as before within 30 s"),
    ],
)
def test_each_promise_can_be_broken_by_itself(seen: Observation, broken: str) -> None:
    assert [check.promise for check in judge(seen, DrillOptions(), 0.99) if not check.kept] == [broken]


@given(least=st.floats(0, 1e6), more=st.floats(0, 1e6), bound_s=st.floats(1e-6, 1.0))
def test_a_p99_is_broken_only_where_it_is_so_by_its_lower_bound(least: float, more: float, bound_s: float) -> None:
    (check,) = (
        each
        for each in judge(during(p99_us=(least, least + more)), DrillOptions(p99_s=bound_s), 0.99)
        if each.promise.startswith("p99")
    )
    assert check.kept == (least <= bound_s * 1e6)


def test_users_keep_their_own_lists_only_where_another_tier_has_them() -> None:
    (lost,), (damaged,) = choose(["lost-tier"], ()), choose(["corruption"], ())
    assert lost.own_share(("redis", "file")) == 0.99
    assert lost.own_share(("redis",)) == 0
    assert damaged.own_share(("file",)) == 0.8


def test_a_drill_of_redis_without_a_server_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.bench.drills.drills.redis_installed", lambda: False)
    failed(hotplate("drill", "lost-tier", "--tiers", "redis,file"), "no redis-server is on the PATH", code=2)


def test_drills_are_chosen_by_name_or_by_the_tiers_that_they_fit() -> None:
    assert tuple(drill.name for drill in DRILLS) == NAMES
    assert choose((), ()) == list(DRILLS)
    assert [drill.name for drill in choose(["errors", "latency", "errors"], ())] == ["errors", "latency"]
    assert [drill.name for drill in choose((), ("file",))] == ["corruption", "old-snapshot"]
    assert {drill.name for drill in choose((), ("cosmos", "file"))} == set(NAMES) - {"corruption", "old-snapshot"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("flood",), "There is no drill 'flood'; there are latency,"),
        (("throttling", "--tiers", "redis,file"), "throttling cannot be done to redis; put cosmos first in --tiers"),
        (("--tiers", "redis,tape"), "--tiers takes redis, cosmos, file, separated by commas, and not 'tape'"),
        (("--tiers", "file,file"), "names a kind of store twice"),
        (("--duration", "0s"), "--duration must be above zero"),
        (("--recover", "soon"), "'soon' is not a time"),
    ],
)
def test_what_makes_no_sense_is_a_misuse(arguments: tuple[str, ...], part: str) -> None:
    failed(hotplate("drill", *arguments), part, code=2)


def test_the_help_names_every_drill_and_has_an_example() -> None:
    shown = " ".join(hotplate("drill", "--help").stdout.replace("│", " ").split())
    assert "Example: hotplate drill" in shown
    assert all(name in shown for name in NAMES)


def test_a_promise_that_cannot_be_kept_is_reported_as_broken_and_the_others_as_kept() -> None:
    done = hotplate("drill", "corruption", "--tiers", "file", "--duration", "0.1s", "--p99", "0.001ms", "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    (drill,) = found["drills"]
    assert (found["kept"], drill["kept"], drill["tiers"]) == (False, False, ["file"])
    assert [check["promise"] for check in drill["checks"] if not check["kept"]] == ["p99 within 0.001 ms"]
    assert drill["observed"]["phases"][FAULT]["sources"]["popular"] > 0
    moved = {each["metric"]: each["highest"] - each["before"] for each in drill["observed"]["movements"]}
    assert moved['hotplate_store_corrupt_total{store="file"}'] > 0
    assert moved["hotplate_degraded"] == 1


@pytest.mark.soak
@pytest.mark.skipif(not redis_installed(), reason="no redis-server on the PATH")
def test_every_drill_is_kept() -> None:
    done = hotplate("drill", "--duration", "1s", "--p99", "5s", "--json")
    found = json.loads(done.stdout)
    broken = [check for drill in found["drills"] for check in drill["checks"] if not check["kept"]]
    assert (done.returncode, broken) == (0, [])
    assert tuple(drill["name"] for drill in found["drills"]) == NAMES
    for drill in found["drills"]:
        assert drill["tiers"][1] == "file"
        assert drill["observed"]["compared"]["fallback"] == 0
        assert set(drill["observed"]["phases"][FAULT]["tiers"]) == set(drill["tiers"])
        assert drill["tiers"][0] in drill["observed"]["phases"][AFTER]["tiers"]


@pytest.mark.soak
def test_without_another_tier_popular_lists_stand_in_and_the_drill_is_kept() -> None:
    done = hotplate("drill", "lost-tier", "--tiers", "cosmos", "--duration", "1s", "--p99", "5s", "--json")
    (drill,) = json.loads(done.stdout)["drills"]
    assert (done.returncode, [check for check in drill["checks"] if not check["kept"]]) == (0, [])
    assert drill["observed"]["compared"]["fallback"] > 0
    assert any("hotplate_lookups_total" in each["metric"] for each in drill["observed"]["movements"])


@asynccontextmanager
async def ended(instance: Instance) -> AsyncIterator[None]:
    os.killpg(instance.service.group, signal.SIGKILL)
    yield


@pytest.mark.soak
def test_a_service_that_dies_breaks_its_promises_and_the_next_drill_has_another() -> None:
    dying = Drill("dying", "the service is killed", ("file",), ended, (DRILLS[0].metrics[-1],))
    options = DrillOptions(tiers=("file",), duration_s=0.1, recover_s=1, p99_s=5)
    said = list[str]()
    verdicts = asyncio.run(
        run_drills([dying, dying], options, said.append, lambda verdict: said.append(verdict.sentence))
    )
    for verdict in verdicts:
        broken = {check.promise for check in verdict.checks if not check.kept}
        assert {"every request is answered", "the service stays ready", "hotplate_degraded rises"} <= broken
        assert "all is as before within 1 s" in broken
    assert sum(text.startswith("starting") for text in said) == 2


def test_a_drill_is_not_judged_by_metrics_that_could_not_be_read_before_the_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_busy(_url: str) -> list[object]:
        raise TimeoutError

    monkeypatch.setattr("hotplate.bench.drills.run.read_samples", too_busy)
    drills = [drill for drill in DRILLS if drill.name == "corruption"]
    options = DrillOptions(tiers=("file",), duration_s=0.1, recover_s=30)
    with pytest.raises(BenchFailed, match="before the fault"):
        asyncio.run(run_drills(drills, options, lambda _: None, lambda _: None))
