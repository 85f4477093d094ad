"""The sweep's parts by arithmetic: items, requests, searches on a simulated limiter, costs and tables."""

from dataclasses import replace
from math import ceil

import pytest

from hotplate.bench.cosmos_emulator.partitions import Budget
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.capacity import STOPPED, Point, parse_objective
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.report.page import page
from hotplate.bench.report.report import Report
from hotplate.bench.ru.run import LevelResult, RateTrial, assess, classify, cost, limit, plan, report
from hotplate.bench.ru.sandbox import CHARGE, SandboxItems
from hotplate.bench.search import search
from hotplate.bench.stores.setup import EMULATOR
from tests.support.cosmos_server import Direct
from tests.support.virtual import simulate

URL = "cosmos+http://127.0.0.1:8081/bench"
OBJECTIVE = parse_objective("p99=50ms,throttled=1%")


def options(**changed: object) -> SweepOptions:
    return replace(SweepOptions(account=URL), **changed)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize("size_kb", [1, 16, 100])
def test_items_are_stored_at_the_size_that_they_name(size_kb: int) -> None:
    direct = Direct(lambda: 1_000_000_000.5)
    for body in SandboxItems(size_kb, 3, 1).bodies():
        assert direct.item("POST", body["id"], body).status == 201
    assert direct.container.documents.stored_bytes == 3 * size_kb * 1024


def limited(rate: float, ru: float, charge_ru: float, delay_s: float = 0.001) -> Result:
    """Offer a rate to one partition's budget, in virtual time."""
    budget = Budget(ru)
    load_ = Load(
        url="http://h", requests=Gets("/"), rate=rate, duration_s=2, connections=500, check=classify, tally=CHARGE
    )

    def respond(now: float, _request: bytes) -> bytes:
        if budget.wait_ms(now):
            return b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\nx-ms-request-charge: 0.00\r\n\r\n"
        budget.charge(now, charge_ru)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-MS-Request-Charge: %.2f\r\n\r\n{}" % charge_ru

    return simulate(load_, lambda arrival_s: arrival_s + delay_s, respond=respond)


def tried(rate: float, ru: float, charge_ru: float, delay_s: float = 0.001) -> RateTrial:
    return assess(rate, limited(rate, ru, charge_ru, delay_s), OBJECTIVE)


def searched(charge_ru: float, start: float) -> tuple[RateTrial, ...]:
    trials = list[RateTrial]()

    def attempt(rate: float) -> Point:
        trials.append(tried(rate, 400, charge_ru))
        return trials[-1].point

    assert list(search(attempt, start, 0.02))
    return tuple(trials)


def test_a_machine_that_cannot_spend_a_level_is_distinguished_from_one_that_has_spent_it() -> None:
    slow = tried(240, 400, 1.0, delay_s=0.06)
    assert not slow.point.inside
    assert limit([slow], OBJECTIVE) == "p99 60 ms, bound 50 ms"
    assert limit([replace(slow, point=replace(slow.point, invalid_reasons=STOPPED))], OBJECTIVE) == "it was stopped"


def test_the_cost_is_that_of_each_hour_that_is_touched() -> None:
    planned = plan(options(levels="400,1k,11k"))
    made, price, _ = cost(planned, 2, load_prices(), now=3600 * 100.0)
    assert f"11,000 RU/s in 2 region(s), for some {ceil(3 * 11 * 8 / 60)} minutes" in made
    assert price.startswith(f"{110 * 0.008 * 2:.2f} USD")
    assert price.endswith("touches 1")
    _, price, _ = cost(planned, 2, load_prices(), now=3600 * 100.0 - 10)
    assert price.startswith(f"{110 * 0.008 * 4:.2f} USD")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"levels": "450"}, "steps of 100"),
        ({"levels": "100"}, "400 RU/s or more"),
        ({"levels": "many"}, "not a rate"),
        ({"slo": "p99=50ms"}, "throttled"),
        ({"duration": "1.5s"}, "whole seconds"),
        ({"connections": 0}, "--connections"),
        ({"account": "cosmos://a/b"}, "needs the key of cosmos://a/b"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(BenchMisused, match=sentence):
        plan(options(**changed))


def found_at_400(*trials: RateTrial) -> LevelResult:
    tried_there = trials or searched(1.0, 240)
    return LevelResult(400, 400.0, tried_there, limit(tried_there, OBJECTIVE))


def swept(*found: LevelResult, interrupted: bool = False) -> Report:
    return report({}, EMULATOR, found, interrupted=interrupted)


def test_a_search_on_an_emulator_is_reported_with_its_label() -> None:
    made = swept(found_at_400())
    assert made.valid
    facts = made.extra["ru"]
    assert facts["label"] == "local emulator, not Azure"
    assert made.summary.rows == (("400 RU/s", ("397.5/s", ""), ("400.0/s", "off by -0.6%"), "1.00 RU"),)
    assert made.summary.sentence == (
        "400 RU/s accept 398 reads/s on a local emulator, not Azure, 0.6% less than predicted."
    )
    text = page(made)
    assert "The knee at 400 RU/s" in text
    assert "nothing of Azure" in text


def test_a_request_that_was_refused_is_not_counted_as_bought() -> None:
    """At 402 requests/s of 1 RU each, 400 RU/s refuse half a percent, which the objective allows."""
    trial = tried(402, 400, 1.0)
    assert trial.point.inside
    assert trial.throttled == pytest.approx(0.005, abs=0.001)
    made = swept(found_at_400(trial, tried(500, 400, 1.0)))
    assert made.summary.rows[0][1:3] == (("400.0/s", ""), ("400.0/s", "off by +0.0%"))


def test_request_units_that_were_not_spent_are_no_success() -> None:
    made = swept(found_at_400(tried(240, 400, 1.0, delay_s=0.06)))
    assert not made.valid
    assert made.summary.rows[0][1:] == ("—¹", "400.0/s", "—¹")
    assert "p99 60 ms, bound 50 ms" in page(made)
    assert not swept(found_at_400(), interrupted=True).valid
