"""A whole sweep in virtual time, against an emulator in this process: level by level."""

import math
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import orjson
import pytest

from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result
from hotplate.bench.loadgen.workers import OnLoadProgress
from hotplate.bench.options import SweepOptions
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.report.report import Report
from hotplate.bench.ru.run import RU, Sweep, plan
from hotplate.bench.ru.sandbox import AccountSandbox, SandboxItems
from hotplate.stores.cosmos.url import Throughput, parse
from hotplate.stores.http1 import Response
from tests.support.cosmos_server import Direct, signed
from tests.support.virtual import VirtualLoop, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "cosmos+http://127.0.0.1:8081/bench"
LATENCY_S = 0.001


class Account(AccountSandbox):
    """An emulator in this process, on a clock that passes only while a trial runs."""

    def __init__(self) -> None:
        super().__init__(replace(parse(URL, {}), database="d"))
        self.began_s = float(math.floor(time.time()))
        self.elapsed: Callable[[], float] = lambda: 0.0
        self.direct = Direct(lambda: self.began_s + self.elapsed())
        self.names = (f"c{number}" for number in count())

    def send(self, request: bytes) -> Response:
        made = self.direct.send(request)
        self.began_s += 1  # the next trial begins with a whole second
        return Response(made.status, b"", made.body)

    def create(self, throughput: Throughput) -> str:
        name = next(self.names)
        header = {"x-ms-offer-throughput": str(throughput.ru)}
        body = {"id": name, "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2}}
        assert self.direct.request("POST", "/dbs/d/colls/", body, header).status == 201
        return name

    def scale(self, container: str, throughput: Throughput) -> None:
        link = orjson.loads(self.direct.request("GET", f"/dbs/d/colls/{container}/").body)["_self"]
        offers = orjson.loads(self.direct.request("GET", "/offers/").body)["Offers"]
        offer = next(each for each in offers if each["resource"].strip("/") == link.strip("/"))
        changed = offer | {"content": throughput.content()}
        own = signed(
            "PUT", "offers", offer["id"].lower(), now=self.direct.clock()
        )  # of an offer its id alone is signed
        assert self.direct.request("PUT", f"/offers/{offer['id']}/", changed, own).status == 200
        self.began_s += 60

    def fill(self, container: str, items: SandboxItems) -> None:
        for body in items.bodies():
            named = {
                "x-ms-documentdb-partitionkey": orjson.dumps([body["id"]]).decode(),
                "x-ms-documentdb-is-upsert": "True",
            }
            while self.direct.request("POST", f"/dbs/d/colls/{container}/docs/", body, named).status == 429:
                self.began_s += 1
        self.began_s += 1


class Simulation:
    """Makes runs of the generator as it is against an account, each in a virtual loop of its own."""

    def __init__(self, account: Account) -> None:
        self.account = account

    def run(self, load: Load, on_progress: OnLoadProgress | None = None, *, on_the_second: bool = False) -> Result:
        del on_progress
        assert on_the_second
        account = self.account

        def respond(_now: float, request: bytes) -> bytes:
            made = account.direct.send(request)
            head = f"HTTP/1.1 {made.status} -\r\nContent-Length: 0\r\nx-ms-request-charge: {made.charge_ru:.2f}\r\n\r\n"
            return head.encode()

        def start_clock(loop: VirtualLoop) -> None:
            began_s = loop.time()
            account.elapsed = lambda: loop.time() - began_s

        result = simulate(load, lambda arrival_s: arrival_s + LATENCY_S, respond=respond, at_start=start_clock)
        account.elapsed = lambda: 0.0
        account.began_s += math.ceil(load.duration_s) + 1
        return result


def swept(options: SweepOptions) -> Report:
    account = Account()
    sweep = Sweep(plan(options), Simulation(account), ProgressDisplay(None))
    sweep.measure(account)
    return sweep.report


@pytest.mark.soak
def test_each_level_sustains_what_its_request_units_pay_for() -> None:
    made = swept(SweepOptions(account=URL, levels="400,500", duration="1s"))
    assert made.valid
    found = made.extra["ru"]["found"]
    assert [each["ru"] for each in found] == [400, 500]
    for each in found:
        assert each["best"]["per_s"] == pytest.approx(each["ru"], rel=0.05)
        assert each["best"]["charge_ru"] == pytest.approx(1.0)
        assert each["limit"] == RU


@pytest.mark.soak
def test_a_level_of_two_partitions_sustains_what_the_planner_predicts() -> None:
    made = swept(SweepOptions(account=URL, levels="1k,7k", duration="1s"))
    assert made.valid
    found = made.extra["ru"]["found"]
    assert len(found) == 2
    for each in found:
        assert each["best"]["per_s"] == pytest.approx(each["predicted"], rel=0.05)
