"""The reference's load test: what is inferred of it, whose limit is told, what is never shown, and a run of it all."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from bench.loadgen.capacity import parse_objective
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.process import Server
from bench.reference.lines import COLUMN
from bench.reference.published import RATE, THINK_S, USERS, needs
from bench.reference.reproduce import Asked, Reproduced, provisioned, report
from bench.reference.runs import Metered, Reach, Run, Shown
from bench.report.page import page
from bench.stores.setup import Contestant, Field, Unknown
from stores.catalogue import ReleaseId
from stores.cosmos.charges import load
from stores.manifest import Manifest
from stores.prices import load as load_prices
from tests.support.cosmos_server import emulator
from tests.support.service import a_list, publish_lists
from tests.support.virtual import simulate

OBJECTIVE = parse_objective("p99=60ms,errors=0.1%")


def test_two_hundred_users_send_the_published_rate_by_littles_law() -> None:
    sent_rate = USERS / (THINK_S + 0.060)
    assert sent_rate == pytest.approx(RATE, rel=0.002)


def test_pauses_differ_from_user_to_user_and_add_up_to_the_rate() -> None:
    load_ = Load(url="http://h", paths=["/"], duration_s=60, connections=USERS, think_s=THINK_S, think_spread=0.5)
    found = simulate(load_, lambda arrival_s: arrival_s + 0.060)
    assert found.ok_rate == pytest.approx(RATE, rel=0.02)
    most = max(second.due for second in found.seconds)
    assert most < 1.5 * RATE  # all at once they would come in bursts of 200


def test_what_the_rate_needs_is_a_small_part_of_what_was_provisioned() -> None:
    found = needs(load(), 1024, load_prices())
    assert (found.read_ru, found.used_ru, found.needed_ru) == (1.0, 180.0, 400)
    assert found.provisioned_month_usd == pytest.approx(11_000 / 100 * 0.008 * 730)
    assert found.needed_month_usd == pytest.approx(4 * 0.008 * 730)
    assert needs(load(), 64 * 1024, load_prices()).needed_ru == 1_300  # 180 x 4.76 / 0.7, in steps of 100


def test_what_is_provisioned_stands_in_the_url() -> None:
    found = provisioned("cosmos+http://127.0.0.1:1/d?ru=11000")
    assert found is not None
    assert found.ru == 11_000
    assert provisioned("redis://h:1/0") is None


def a_result(latency_s: float = 0.002, **changed: object) -> Result:
    made = simulate(Load(url="http://h", paths=["/"], rate=200, duration_s=1), lambda arrival_s: arrival_s + latency_s)
    return replace(made, seen={"source": {"personal": made.ok}}, **changed)  # type: ignore[arg-type]  # fields by name


def a_run(result: Result, share: float = 0.2, throttled: float | None = None) -> Run:
    metered = None if throttled is None else Metered(ru=200.0, throttled=throttled)
    return Run(result, share, share * 1e6 / 200, 0.1, metered)


def reach(rate: float, run: Run, *, invalid_reasons: tuple[str, ...] = ()) -> Reach:
    return Reach(rate, run, invalid_reasons, tuple(OBJECTIVE.broken(run.result)))


def a_store(name: str, url: str, *reached: Reach, throttled: float | None = None) -> Shown:
    contestant = Contestant(name, url, Server("http://127.0.0.1:1", 0), Unknown())
    run = a_run(a_result(0.0034), throttled=throttled)
    return Shown(contestant, run, run, reached)


def test_it_is_told_what_ended_the_climb() -> None:
    inside, slow = a_run(a_result()), a_result(0.1)
    good = reach(200, inside)
    full = a_store("a", "file:///a", good, reach(400, a_run(slow, 0.97)))
    assert full.limit == "the service's core"
    assert full.ending.startswith(
        "a: outside at 400 requests/s by p99 100 ms, bound 60 ms; the service used 97% of its"
    )
    throttled = a_store("b", "cosmos+http://a:1/b", good, reach(400, a_run(slow, 0.3, throttled=9)))
    assert throttled.limit == "the container's RU/s"
    assert "100 ms" not in throttled.ending  # the time of an emulator
    assert throttled.ending.endswith("9 reads refused with 429")
    late = a_store("a", "file:///a", good, reach(400, inside, invalid_reasons=("the generator was late",)))
    assert late.limit == "the load generator"
    nobodys = reach(400, inside, invalid_reasons=("no core was full, and yet p99 100 ms, bound 60 ms",))
    assert a_store("a", "file:///a", good, nobodys).limit == "no core was full"
    assert "100 ms" not in a_store("b", "cosmos+http://a:1/b", good, nobodys).ending
    assert a_store("a", "file:///a", good).limit == "it was stopped"
    assert late.best is not None
    assert late.best.rate == 200


def a_report(*shown: Shown, interrupted: bool = False) -> Reproduced:
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 10}, 5_000, "", (), (), {})
    field = Field(tuple(one.contestant for one in shown), manifest, ("1",), made=True)
    return Reproduced(report(Asked(), field, shown, str(OBJECTIVE), interrupted=interrupted))


def test_an_emulators_latencies_are_not_shown_and_its_request_units_are() -> None:
    reached = reach(200, a_run(a_result(0.0034))), reach(400, a_run(a_result(0.1)))
    made = a_report(
        a_store("file://", "file:///a", *reached),
        a_store("cosmos+http://", "cosmos+http://127.0.0.1:1/d?ru=11000", *reached, throttled=0.0),
    )
    found = made.report.extra["reference"]
    assert found["stores"] == [COLUMN, "file://", "cosmos+http://"]
    by_name = {(line["group"][:10], line["name"]): line["cells"] for line in found["lines"]}
    assert by_name["The refere", "median"] == ("≈ 60 ms", "3.4 ms", "local emulator, not Azure")
    assert by_name["The same r", "p99"][2] == "local emulator, not Azure"
    assert by_name["On in an o", "p99 there"][2] == "local emulator, not Azure"
    assert by_name["Request un", "used by 200 users"] == ("180 RU/s, inferred", "none", "200 RU/s")
    assert by_name["Request un", "of what was provisioned"] == ("1.6%, inferred", "none", "1.8%")
    assert by_name["Request un", "what 180 requests/s need"] == ("400 RU/s, inferred", "none", "400 RU/s")
    assert [each.name for each in made.report.series] == ["file://, closed loop", "file://, open loop"]
    text = page(made.report)
    assert "Not shown: local emulator, not Azure." in text
    assert "learn.microsoft.com/azure/architecture" in text
    assert made.valid
    assert not a_report(a_store("file://", "file:///a", *reached), interrupted=True).valid


@pytest.mark.timeout(300)
def test_it_runs_against_stores_that_are_given(tmp_path: Path) -> None:
    lists = {f"user:{n}": a_list(*(f"i{n}-{place}" for place in range(20))) for n in range(40)}
    asyncio.run(publish_lists(tmp_path / "store", lists))
    with emulator() as cosmos:
        url = f"cosmos+{cosmos.endpoint}hotplate?ru=11000"
        command = [sys.executable, "-m", "hotplate", "bench", "reference", f"file://{tmp_path}/store", url]
        options = ["--duration", "1s", "--slo", "p99=1us", "--out", str(tmp_path / "found"), "--json"]
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env=os.environ | {"TERM": "dumb"},
        )
        assert done.returncode == 1, done.stderr  # nothing is answered within a microsecond
        with urllib.request.urlopen(cosmos.endpoint + "__emulation/metrics") as answer:
            assert b'operation="read item",status="200"' in answer.read()
    facts = json.loads(done.stdout)
    assert [each["name"] for each in facts["reference"]["knees"]] == ["file://", "cosmos+http://"]
    assert all(each["points"] for each in facts["reference"]["knees"])
    used = next(line["cells"] for line in facts["reference"]["lines"] if line["name"] == "a read")
    assert used[:2] == ["not published", "none"]
    assert float(used[2].removesuffix(" RU")) == pytest.approx(1, abs=0.1)  # with the looks for a newer release
    assert (tmp_path / "found.html").exists()
