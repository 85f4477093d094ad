"""The unmodified Python SDK against the emulation: sync and async, over plain HTTP and TLS."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey, ThroughputProperties
from azure.cosmos import aio as cosmos
from azure.cosmos.exceptions import CosmosHttpResponseError

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.cosmos_emulator.service import Service
from tests.support.cosmos_server import Emulator, emulator_thread

pytestmark = pytest.mark.filterwarnings(
    "ignore:Unverified HTTPS request"  # the SDK checks no certificate on loopback, and then warns of it
)
UNCHANGED = MatchConditions.IfNotModified
ACROSS: dict[str, Any] = {"enable_cross_partition_query": True}


@pytest.fixture(scope="module", params=["plain", "tls"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Emulator, Service]]:
    with emulator_thread(EmulatorSettings(port=0, tls=request.param == "tls")) as running_one:
        yield running_one


@pytest.fixture
def server(running: tuple[Emulator, Service]) -> Emulator:
    return running[0]


def charge(result: object) -> float:
    return float(result.get_response_headers()["x-ms-request-charge"])  # type: ignore[attr-defined]  # the SDK's results all have it


@contextmanager
def refused(status: int, match: str | None = None) -> Iterator[None]:
    """Hold that a request is refused with so much."""
    with pytest.raises(CosmosHttpResponseError, match=match) as error:
        yield
    assert (error.value.status_code, error.value.sub_status) == (status, 0)


def test_the_sync_sdk(server: Emulator) -> None:
    client = CosmosClient(server.endpoint, server.key)
    database = client.create_database_if_not_exists("sync")
    assert client.create_database_if_not_exists("sync").id == "sync"
    assert [one["id"] for one in client.list_databases()] == ["sync"]
    with refused(409):
        client.create_database("sync")
    container = database.create_container("lists", PartitionKey("/id"), offer_throughput=11_000)
    _check_items(container)
    _check_queries(container)
    _check_throughput(container)
    keyed = database.create_container("keyed", PartitionKey("/pk"))
    keyed.create_item({"id": "a", "pk": "x"})
    assert [one["id"] for one in keyed.query_items("SELECT * FROM c", partition_key="x")] == ["a"]
    with refused(400, match="defaultTtl is not emulated"):
        database.create_container("bad", PartitionKey("/id"), default_ttl=60)
    assert sorted(one["id"] for one in database.list_containers()) == ["keyed", "lists"]
    database.delete_container("keyed")
    with refused(404):
        database.get_container_client("keyed").read()
    client.delete_database("sync")
    assert list(client.list_databases()) == []


def _check_items(container: ContainerProxy) -> None:
    made = container.create_item({"id": "u0", "n": 0, "name": "ü€ 'quoted\""})
    assert charge(made) == 5.6
    assert charge(container.read_item("u0", "u0")) == 1.0
    assert container.read_item("u0", "u0")["name"] == "ü€ 'quoted\""
    with refused(409):
        container.create_item({"id": "u0"})
    again = container.upsert_item({"id": "u0", "n": 1})
    assert again["_rid"] == made["_rid"]
    with refused(412):
        container.replace_item("u0", {"id": "u0"}, etag=made["_etag"], match_condition=UNCHANGED)
    container.replace_item("u0", {"id": "u0", "n": 2}, etag=again["_etag"], match_condition=UNCHANGED)
    container.delete_item("u0", "u0")
    for key in ("u0", "other"):
        with refused(404):
            container.read_item("u0", key)
    assert container.client_connection.session is not None
    assert container.client_connection.session.session_container.rid_to_session_token


def _check_queries(container: ContainerProxy) -> None:
    for n in range(20):
        container.create_item({"id": f"u{n}", "n": n, "odd": n % 2 == 1}, no_response=True)
    found = container.read_items([(f"u{n}", f"u{n}") for n in range(25)])
    assert [one["n"] for one in found] == list(range(20))
    one = container.query_items(
        "SELECT * FROM c WHERE c.id = @id", parameters=[{"name": "@id", "value": "u3"}], **ACROSS
    )
    assert [each["n"] for each in one] == [3]
    odd = container.query_items(
        "SELECT * FROM c WHERE c.odd = @odd", parameters=[{"name": "@odd", "value": True}], **ACROSS
    )
    assert len(list(odd)) == 10
    pages = container.query_items("SELECT * FROM c", max_item_count=3, **ACROSS).by_page()
    sizes = [len(list(page)) for page in pages]
    assert sum(sizes) == 20
    assert max(sizes) == 3
    assert len(list(container.read_all_items(max_item_count=7))) == 20
    with refused(400, match="supports only"):
        list(container.query_items("SELECT udf.f(c) FROM c", **ACROSS))


def _check_throughput(container: ContainerProxy) -> None:
    assert container.get_throughput().offer_throughput == 11_000
    assert container.replace_throughput(25_000).offer_throughput == 25_000
    assert len(list(container.read_feed_ranges(force_refresh=True))) == 4
    assert len(container.read_items([(f"u{n}", f"u{n}") for n in range(20)])) == 20
    for wrong in (450, 300, 2_000_000):
        with refused(400):
            container.replace_throughput(wrong)


async def test_the_async_sdk(server: Emulator) -> None:
    async with cosmos.CosmosClient(server.endpoint, server.key) as client:
        database = await client.create_database_if_not_exists("async")
        scaling = ThroughputProperties(auto_scale_max_throughput=4000)
        container = await database.create_container_if_not_exists(
            "lists", PartitionKey("/id"), offer_throughput=scaling
        )
        assert (await container.get_throughput()).auto_scale_max_throughput == 4000
        scaling = ThroughputProperties(auto_scale_max_throughput=6000)
        await container.replace_throughput(scaling)
        assert (await container.get_throughput()).auto_scale_max_throughput == 6000
        made = await container.create_item({"id": "u1", "n": 1})
        assert charge(made) == 5.4
        await container.upsert_item({"id": "u2", "n": 2})
        found = await container.read_items([("u1", "u1"), ("u2", "u2"), ("u3", "u3")])
        assert [one["n"] for one in found] == [1, 2]
        await client.delete_database("async")


async def read_in_parallel(server: Emulator, name: str, flights: int, reads: int) -> None:
    """Read one item so often over so many tasks; none of the reads may fail."""
    async with cosmos.CosmosClient(server.endpoint, server.key) as client:
        database = await client.create_database_if_not_exists("throttled")
        container = await database.create_container_if_not_exists(name, PartitionKey("/id"))
        await container.upsert_item({"id": "a"})

        async def lane() -> None:
            for _ in range(reads // flights):
                assert (await container.read_item("a", "a"))["id"] == "a"

        async with asyncio.TaskGroup() as group:
            for _ in range(flights):
                group.create_task(lane())


async def test_the_sdks_own_retries_hide_429s(running: tuple[Emulator, Service]) -> None:
    server, service = running
    throttled = service.counts.requests.get(("read item", 429), 0)
    fault = {"kind": "throttle", "share": 0.2, "operation": "read item", "retry_after_ms": 1}
    service.faults.replace([fault], service.account.clock())
    try:
        await read_in_parallel(server, "faults", 4, 60)
    finally:
        service.faults.replace([], service.account.clock())
    assert service.counts.requests["read item", 429] > throttled
