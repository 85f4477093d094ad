"""The unmodified Python SDK against the emulation: sync and async, over plain HTTP and TLS."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey, ThroughputProperties
from azure.cosmos import aio as cosmos
from azure.cosmos.exceptions import CosmosBatchOperationError, CosmosHttpResponseError

from hotplate.bench.cosmos_emulator.server import Settings
from hotplate.bench.cosmos_emulator.service import Service
from tests.support.cosmos_server import Emulator, emulator_thread
from tests.support.soak import scaled

pytestmark = pytest.mark.filterwarnings(
    "ignore:Unverified HTTPS request"  # the SDK checks no certificate on loopback, and then warns of it
)
UNCHANGED = MatchConditions.IfNotModified
ACROSS: dict[str, Any] = {"enable_cross_partition_query": True}
# An item that takes 15.4 RU to read: of 400 RU/s a busy machine, too, uses more; and 24 at once still have room.
OVERLOADING = 200_000


@pytest.fixture(scope="module", params=["plain", "tls"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Emulator, Service]]:
    with emulator_thread(Settings(port=0, tls=request.param == "tls")) as running_one:
        yield running_one


@pytest.fixture
def server(running: tuple[Emulator, Service]) -> Emulator:
    return running[0]


def charge(result: object) -> float:
    return float(result.get_response_headers()["x-ms-request-charge"])  # type: ignore[attr-defined]  # the SDK's results all have it


def error_of(error: pytest.ExceptionInfo[CosmosHttpResponseError]) -> tuple[int | None, int]:
    return error.value.status_code, error.value.sub_status


def test_the_sync_sdk(server: Emulator) -> None:
    client = CosmosClient(server.endpoint, server.key)
    database = client.create_database_if_not_exists("sync")
    assert client.create_database_if_not_exists("sync").id == "sync"
    assert [one["id"] for one in client.list_databases()] == ["sync"]
    with pytest.raises(CosmosHttpResponseError) as error:
        client.create_database("sync")
    assert error_of(error) == (409, 0)
    container = database.create_container("lists", PartitionKey("/id"), offer_throughput=11_000)
    _check_items(container)
    _check_queries(container)
    _check_throughput(container)
    keyed = database.create_container("keyed", PartitionKey("/pk", version=1))
    _check_batch(keyed)
    with pytest.raises(CosmosHttpResponseError) as error:
        database.create_container("bad", PartitionKey("/id"), default_ttl=60, indexing_policy={"indexingMode": "none"})
    assert error_of(error) == (400, 0)
    assert sorted(one["id"] for one in database.list_containers()) == ["keyed", "lists"]
    changed = database.replace_container("keyed", PartitionKey("/pk", version=1), default_ttl=60)
    assert changed.read()["defaultTtl"] == 60
    database.delete_container("keyed")
    with pytest.raises(CosmosHttpResponseError) as error:
        database.get_container_client("keyed").read()
    assert error_of(error) == (404, 0)
    client.delete_database("sync")
    assert list(client.list_databases()) == []


def _check_items(container: ContainerProxy) -> None:
    made = container.create_item({"id": "u0", "n": 0, "name": "ü€ 'quoted\""})
    assert charge(made) == 5.6
    assert charge(container.read_item("u0", "u0")) == 1.0
    assert container.read_item("u0", "u0")["name"] == "ü€ 'quoted\""
    with pytest.raises(CosmosHttpResponseError) as error:
        container.create_item({"id": "u0"})
    assert error_of(error) == (409, 0)
    again = container.upsert_item({"id": "u0", "n": 1})
    assert again["_rid"] == made["_rid"]
    with pytest.raises(CosmosHttpResponseError) as error:
        container.replace_item("u0", {"id": "u0"}, etag=made["_etag"], match_condition=UNCHANGED)
    assert error_of(error) == (412, 0)
    container.replace_item("u0", {"id": "u0", "n": 2}, etag=again["_etag"], match_condition=UNCHANGED)
    operations: list[dict[str, Any]] = [
        {"op": "incr", "path": "/n", "value": 3},
        {"op": "set", "path": "/made", "value": {"at": [1]}},
        {"op": "add", "path": "/made/at/-", "value": 2},
        {"op": "remove", "path": "/made/at/0"},
    ]
    patched = container.patch_item("u0", "u0", operations, filter_predicate="from c where c.n = 2")
    assert (patched["n"], patched["made"]) == (5, {"at": [2]})
    with pytest.raises(CosmosHttpResponseError) as error:
        container.patch_item("u0", "u0", operations, filter_predicate="from c where c.n = 2")
    assert error_of(error) == (412, 0)
    container.delete_item("u0", "u0")
    for key in ("u0", "other"):
        with pytest.raises(CosmosHttpResponseError) as error:
            container.read_item("u0", key)
        assert error_of(error) == (404, 0)
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
    counted: Any = container.query_items("SELECT VALUE COUNT(1) FROM c WHERE c.odd", **ACROSS)
    assert list(counted) == [10]
    top = container.query_items("SELECT TOP 3 c.id, c.n AS m FROM c WHERE c.n != 18 ORDER BY c.n DESC", **ACROSS)
    assert list(top) == [{"id": "u19", "m": 19}, {"id": "u17", "m": 17}, {"id": "u16", "m": 16}]
    window: Any = container.query_items("SELECT VALUE c.n FROM c ORDER BY c.n OFFSET 3 LIMIT 4", **ACROSS)
    assert list(window) == [3, 4, 5, 6]
    pages = container.query_items("SELECT * FROM c", max_item_count=3, **ACROSS).by_page()
    sizes = [len(list(page)) for page in pages]
    assert sum(sizes) == 20
    assert max(sizes) == 3
    assert len(list(container.read_all_items(max_item_count=7))) == 20
    with pytest.raises(CosmosHttpResponseError, match="simple queries") as error:
        list(container.query_items("SELECT udf.f(c) FROM c", **ACROSS))
    assert error_of(error) == (400, 0)


def _check_throughput(container: ContainerProxy) -> None:
    assert container.get_throughput().offer_throughput == 11_000
    assert container.replace_throughput(25_000).offer_throughput == 25_000
    assert len(list(container.read_feed_ranges(force_refresh=True))) == 4
    assert len(container.read_items([(f"u{n}", f"u{n}") for n in range(20)])) == 20
    for wrong in (450, 300, 2_000_000):
        with pytest.raises(CosmosHttpResponseError) as error:
            container.replace_throughput(wrong)
        assert error_of(error) == (400, 0)


def _check_batch(container: ContainerProxy) -> None:
    done = container.execute_item_batch(
        [
            ("create", ({"id": "a", "pk": "x"},)),
            ("upsert", ({"id": "b", "pk": "x"},)),
            ("read", ("a",)),
            ("patch", ("a", [{"op": "add", "path": "/z", "value": 1}])),
            ("replace", ("b", {"id": "b", "pk": "x", "n": 1})),
            ("delete", ("b",)),
        ],
        partition_key="x",
    )
    assert [one["statusCode"] for one in done] == [201, 201, 200, 200, 200, 204]
    before = container.read_item("a", "x")
    with pytest.raises(CosmosBatchOperationError) as error:
        container.execute_item_batch(
            [
                ("upsert", ({"id": "new", "pk": "x"},)),
                ("upsert", ({"id": "a", "pk": "x", "w": 1},)),
                ("delete", ("a",)),
                ("create", ({"id": "new", "pk": "x"},)),
            ],
            partition_key="x",
        )
    assert [one["statusCode"] for one in error.value.operation_responses] == [424, 424, 424, 409]
    assert list(container.query_items("SELECT * FROM c", partition_key="x")) == [before]
    assert [one["id"] for one in container.read_items([("a", "x"), ("b", "x"), ("a", "y")])] == ["a"]


def test_the_sdk_follows_partitions_that_another_client_split(server: Emulator) -> None:
    container = (
        CosmosClient(server.endpoint, server.key)
        .create_database("split")
        .create_container("c", PartitionKey("/pk"), offer_throughput=10_000)
    )
    for n in range(30):
        container.create_item({"id": f"u{n}", "pk": f"p{n}", "n": n})
    items = [(f"u{n}", f"p{n}") for n in range(30)]
    assert len(container.read_items(items)) == 30
    other = CosmosClient(server.endpoint, server.key).get_database_client("split").get_container_client("c")
    other.replace_throughput(25_000)
    assert container.read_item("u1", "p1")["n"] == 1
    assert len(container.read_items(items)) == 30
    pages = container.query_items("SELECT c.n FROM c ORDER BY c.n", max_item_count=7, **ACROSS).by_page()
    assert [one["n"] for page in pages for one in page] == list(range(30))
    ranges = list(container.read_feed_ranges())
    assert len(ranges) == 4
    assert sum(len(list(container.query_items("SELECT * FROM c", feed_range=one))) for one in ranges) == 30


async def test_the_async_sdk(server: Emulator) -> None:
    async with cosmos.CosmosClient(server.endpoint, server.key) as client:
        database = await client.create_database_if_not_exists("async")
        scaling = ThroughputProperties(auto_scale_max_throughput=4000)
        container = await database.create_container_if_not_exists(
            "lists", PartitionKey("/id"), offer_throughput=scaling, default_ttl=-1
        )
        assert (await container.get_throughput()).auto_scale_max_throughput == 4000
        scaling = ThroughputProperties(auto_scale_max_throughput=6000)
        await container.replace_throughput(scaling)
        assert (await container.get_throughput()).auto_scale_max_throughput == 6000
        made = await container.create_item({"id": "u1", "n": 1, "ttl": 1000})
        assert charge(made) == 5.6
        assert (await container.read_item("u1", "u1"))["n"] == 1
        assert (await container.upsert_item({"id": "u1", "n": 2}))["n"] == 2
        with pytest.raises(CosmosHttpResponseError) as error:
            await container.replace_item("u1", {"id": "u1"}, etag=made["_etag"], match_condition=UNCHANGED)
        assert error_of(error) == (412, 0)
        await container.replace_item("u1", {"id": "u1", "n": 3})
        assert (await container.patch_item("u1", "u1", [{"op": "incr", "path": "/n", "value": 1}]))["n"] == 4
        await container.upsert_item({"id": "u2", "n": 2})
        found = await container.read_items([("u1", "u1"), ("u2", "u2"), ("u3", "u3")])
        assert [one["n"] for one in found] == [4, 2]
        values: Any = container.query_items("SELECT VALUE c.n FROM c WHERE c.id IN ('u1', 'u2') ORDER BY c.n")
        assert [value async for value in values] == [2, 4]
        assert [one["id"] async for one in container.read_all_items()] == ["u1", "u2"]
        done = await container.execute_item_batch([("read", ("u1",)), ("delete", ("u1",))], partition_key="u1")
        assert [one["statusCode"] for one in done] == [200, 204]
        await container.delete_item("u2", "u2")
        with pytest.raises(CosmosHttpResponseError) as error:
            await container.read_item("u2", "u2")
        assert error_of(error) == (404, 0)
        await database.delete_container("lists")
        await client.delete_database("async")


async def read_in_parallel(server: Emulator, name: str, flights: int, reads: int, size: int = 0) -> None:
    """Read one item of *size* so often over so many tasks; none of the reads may fail."""
    async with cosmos.CosmosClient(server.endpoint, server.key) as client:
        database = await client.create_database_if_not_exists("throttled")
        container = await database.create_container_if_not_exists(name, PartitionKey("/id"))
        await container.upsert_item({"id": "a", "padding": "x" * size})

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


@pytest.mark.soak
@pytest.mark.parametrize("flights", [8, 24])
async def test_the_sdks_own_retries_outlast_a_container_that_is_overloaded(
    running: tuple[Emulator, Service], flights: int
) -> None:
    server, service = running
    throttled = service.counts.requests.get(("read item", 429), 0)
    await read_in_parallel(server, f"overloaded-by-{flights}", flights, scaled(168, least=72), OVERLOADING)
    assert service.counts.requests["read item", 429] > throttled


@pytest.mark.soak
async def test_a_wrong_key_is_refused(server: Emulator) -> None:
    client = cosmos.CosmosClient(server.endpoint, "d3Jvbmc=")
    with pytest.raises(HttpResponseError) as error:
        await client.__aenter__()
    await client.close()
    assert error.value.status_code == 401
    assert server.key not in str(error.value)
