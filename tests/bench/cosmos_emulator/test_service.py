"""The service in process: errors, regions, throttling, queries, faults and latency."""

import asyncio
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import orjson
import pytest

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.cosmos_emulator.messages import HttpResponse
from hotplate.bench.cosmos_emulator.server import EmulatorSettings, running
from hotplate.stores.cosmos.url import EMULATOR_KEY
from tests.support.clock import FakeClock
from tests.support.command import failed, hotplate
from tests.support.cosmos_server import Direct, signed, substatus

ITEM = "/dbs/d/colls/c/docs/a/"


@pytest.fixture
def direct(clock: FakeClock) -> Direct:
    return Direct(clock)


def body_of(response: HttpResponse) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(response.body)
    return body


def test_a_missing_item_container_or_range_is_told_by_its_substatus(direct: Direct) -> None:
    assert substatus(direct.item("GET", "a")) == (404, 0)
    key = {"x-ms-documentdb-partitionkey": '["a"]'}
    assert substatus(direct.request("GET", "/dbs/d/colls/nope/docs/a/", headers=key)) == (404, 1003)
    assert substatus(direct.request("GET", "/dbs/nope/colls/c/docs/a/", headers=key)) == (404, 1003)
    assert substatus(direct.request("GET", "/dbs/d/colls/nope/")) == (404, 0)
    other_range = key | {"x-ms-documentdb-partitionkeyrangeid": "9"}
    assert substatus(direct.request("GET", ITEM, headers=other_range)) == (410, 1002)


def test_signatures_and_dates_are_checked(direct: Direct, clock: FakeClock) -> None:
    key = {"x-ms-documentdb-partitionkey": '["a"]'}
    link = "dbs/d/colls/c/docs/a"
    for skew_s, status in ((0, 404), (14 * 60, 404), (-14 * 60, 404), (16 * 60, 403), (-16 * 60, 403)):
        headers = signed("GET", "docs", link, now=clock() + skew_s)
        assert direct.request("GET", ITEM, headers=key | headers).status == status
    headers = signed("GET", "docs", link, now=clock())
    headers["authorization"] = re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), headers["authorization"])
    assert direct.request("GET", ITEM, headers=key | headers).status == 404
    wrong = [
        signed("GET", "docs", link, now=clock(), key="d3Jvbmc="),
        signed("PUT", "docs", link, now=clock()),
        signed("GET", "docs", "dbs/d/colls/c/docs/A", now=clock()),
        {"authorization": "type%3Daad%26ver%3D1.0%26sig%3Da.b.c"},
        {"authorization": "Bearer x"},
        {"authorization": ""},
        {"x-ms-date": "yesterday"},
    ]
    for headers in wrong:
        refused = direct.request("GET", ITEM, headers=key | headers)
        assert refused.status == 401
        assert EMULATOR_KEY.encode() not in refused.body


def test_exhausted_second_gives_429_until_the_next(direct: Direct, clock: FakeClock) -> None:
    clock.now += 0.25
    direct.item("POST", "a", {"id": "a"})
    direct.container.partitions.all[0].charge(clock(), 4000)
    response = direct.item("GET", "a")
    assert substatus(response) == (429, 3200)
    assert response.headers["x-ms-retry-after-ms"] in ("750", "751")
    clock.now += 0.76
    assert direct.item("GET", "a").status == 200


@pytest.mark.parametrize(
    ("host", "region", "endpoints"),
    [
        ("somewhere:9000", 1, ["http://somewhere:8081/", "http://somewhere:9000/"]),
        ("[::1]:8081", 0, ["http://[::1]:8081/", "http://[::1]:8082/"]),
        ("", 0, ["http://127.0.0.1:8081/", "http://127.0.0.1:8082/"]),
    ],
)
def test_account_names_reachable_hosts(clock: FakeClock, host: str, region: int, endpoints: list[str]) -> None:
    direct = Direct(clock, regions=2)
    headers = signed("GET", "", "", now=clock()) | {"host": host}
    account = body_of(direct.request("GET", "/", headers=headers, region=region))
    assert [location["databaseAccountEndpoint"] for location in account["readableLocations"]] == endpoints
    assert account["writableLocations"] == account["readableLocations"][:1]


def test_each_region_has_its_own_budget_and_only_one_is_written(clock: FakeClock) -> None:
    direct = Direct(clock, regions=2)
    direct.item("POST", "a", {"id": "a"})
    key = {"x-ms-documentdb-partitionkey": '["a"]'}
    assert direct.request("GET", ITEM, headers=key, region=1).status == 200
    assert substatus(direct.request("DELETE", ITEM, headers=key, region=1)) == (403, 3)
    partition = direct.container.partitions.all[0]
    partition.charge(clock(), 5000, 1)
    assert direct.request("GET", ITEM, headers=key, region=1).status == 429
    assert direct.request("GET", ITEM, headers=key).status == 200
    partition.charge(clock() + 2, 5000)
    clock.now += 2
    assert direct.request("GET", ITEM, headers=key, region=1).status == 429


@pytest.mark.parametrize(
    ("mode", "condition", "scanned"),
    [("none", "c.n = @n", 60), ("none", "c.n = @n AND c.id IN (@id)", 0), ("consistent", "c.n = @n", 0)],
)
def test_unindexed_condition_is_charged_for_loaded_documents(
    clock: FakeClock, mode: str, condition: str, scanned: int
) -> None:
    direct = Direct(clock, indexingPolicy={"indexingMode": mode})
    for n in range(61):
        direct.item("POST", f"u{n}", {"id": f"u{n}", "n": n})
    parameters = [{"name": "@n", "value": 7}, {"name": "@id", "value": "u7"}]
    response = direct.query(f"SELECT * FROM c WHERE {condition}", parameters)
    assert [document["n"] for document in body_of(response)["Documents"]] == [7]
    assert response.charge_ru == pytest.approx(1.8 + 1 + 0.0529 * scanned, abs=0.01)


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("c.kind = @a AND c.kind = @b", []),
        ("c.kind IN (@a, @b) AND c.kind = @a", ["0"]),
        ("c.id IN (@0, @1) AND c.id IN (@1, @2)", ["1"]),
    ],
)
def test_all_conditions_on_one_property_are_met(direct: Direct, where: str, ids: list[str]) -> None:
    """The last condition on a property replaced the others."""
    for n, kind in enumerate("abc"):
        direct.item("POST", str(n), {"id": str(n), "kind": kind})
    parameters = [{"name": f"@{value}", "value": value} for value in "abc012"]
    documents = body_of(direct.query(f"SELECT * FROM c WHERE {where}", parameters))["Documents"]
    assert [document["id"] for document in documents] == ids


@pytest.mark.parametrize(
    ("kind", "status", "sub"),
    [
        ("throttle", 429, 3200),
        ("unavailable", 503, 0),
        ("timeout", 408, 0),
        ("retry-with", 449, 0),
        ("gone", 410, 1002),
        ("unauthorized", 401, 0),
        ("forbidden", 403, 0),
    ],
)
def test_injected_faults_replace_answers(direct: Direct, clock: FakeClock, kind: str, status: int, sub: int) -> None:
    direct.service.faults.replace([{"kind": kind, "operation": "read item", "for_s": 5}], clock())
    assert substatus(direct.item("GET", "a")) == (status, sub)
    assert direct.item("POST", "a", {"id": "a"}).status == 201
    clock.now += 6
    assert direct.item("GET", "a").status == 200


def test_a_slow_fault_can_be_of_one_partition_and_a_reset_of_one_region(clock: FakeClock) -> None:
    direct = Direct(clock, ru=11_000, regions=2)
    faults = [{"kind": "slow", "partition": "0", "delay_ms": 40}, {"kind": "region-gone", "region": 1}]
    direct.service.faults.replace(faults, clock())
    responses = [direct.item("POST", f"u{n}", {"id": f"u{n}"}) for n in range(20)]
    delays = {response.headers["x-ms-documentdb-partitionkeyrangeid"]: response.delay_s for response in responses}
    assert delays == {"0": 0.04, "1": 0.0}
    assert direct.request("GET", "/", region=1).reset
    assert not direct.request("GET", "/", region=0).reset


WANTED = "p50=4ms,p99=10ms"


def test_drawn_delays_have_the_requested_percentiles() -> None:
    delay_s = parse_latency(WANTED)
    drawn = quantiles((delay_s() for _ in range(100_000)), n=100)
    assert drawn[49] == pytest.approx(0.004, rel=0.02)
    assert drawn[98] == pytest.approx(0.010, rel=0.03)


def test_data_plane_answers_and_refusals_are_delayed() -> None:
    direct = Direct(lambda: 1_000_000_000.5)
    direct.service.latency = parse_latency(WANTED)
    assert direct.request("GET", "/dbs/d/colls/c").delay_s == 0
    assert direct.item("GET", "nobody").status == 404
    assert all(direct.item(method, "u", {"id": "u"}).delay_s > 0 for method in ("GET", "POST", "PUT", "DELETE"))
    assert direct.query("SELECT * FROM c").delay_s > 0


def test_failed_start_leaves_no_signal_handlers(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    done = hotplate("cosmos-emulator", "--port", "0", "--certificate", tmp_path / "server.pem")
    failed(done, "--certificate needs --tls", code=2)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("turns", range(5))
async def test_stopped_emulator_closes_a_connection_that_it_has_just_accepted(turns: int) -> None:
    """It had no transport yet, and its client waited for ever."""
    async with running(EmulatorSettings(port=0)) as emulator:
        client = socket.create_connection(("127.0.0.1", emulator.ports[0]))
        for _ in range(turns):
            await asyncio.sleep(0)
    client.setblocking(False)
    async with asyncio.timeout(10):
        with client, suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


def test_tls_without_cryptography_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    failed(hotplate("cosmos-emulator", "--tls", "--port", "0"), "pip install 'hotplate[cosmos]'", code=2)


def test_key_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    done = hotplate("cosmos-emulator", "--key-file", tmp_path / "key", "--port", "0")
    failed(done, "key is empty or not base64", code=2)
