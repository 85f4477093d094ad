"""What clients use beyond hotplate: the change feed, unique keys, query metrics, ARRAY_CONTAINS, and bulk requests."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from azure.cosmos import ContainerProxy, CosmosClient, DatabaseProxy, PartitionKey
from azure.cosmos import aio as cosmos
from azure.cosmos.exceptions import CosmosBatchOperationError, CosmosHttpResponseError

from hotplate.bench.cosmos_emulator.http import HttpResponse
from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct, Emulator, emulator_thread

ACROSS: dict[str, Any] = {"enable_cross_partition_query": True}
BULK = {
    "x-ms-cosmos-is-batch-request": "True",
    "x-ms-cosmos-batch-atomic": "False",
    "x-ms-cosmos-batch-continue-on-error": "True",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    with emulator_thread(EmulatorSettings(port=0)) as (made, _):
        yield made


@pytest.fixture(scope="module")
def database(server: Emulator) -> DatabaseProxy:
    return CosmosClient(server.endpoint, server.key).create_database("foreign")


def ids(feed: Any) -> list[str]:  # noqa: ANN401 -- the SDK's own iterable
    return [one["id"] for one in feed]


def etag_of(container: ContainerProxy) -> str:
    return str(container.client_connection.last_response_headers["etag"])


def test_the_change_feed_from_the_beginning_from_now_and_by_partition(database: DatabaseProxy) -> None:
    container = database.create_container("feed", PartitionKey("/pk"), offer_throughput=11_000)
    for n in range(12):
        container.create_item({"id": f"u{n}", "pk": f"p{n % 3}"})
    container.upsert_item({"id": "u0", "pk": "p0", "again": True})
    container.delete_item("u1", "p1")
    changed = list(container.query_items_change_feed(start_time="Beginning", max_item_count=4))
    assert sorted(ids(changed)) == sorted(f"u{n}" for n in range(12) if n != 1)  # each once, none that was deleted
    assert next(one for one in changed if one["id"] == "u0")["again"] is True
    continuation = etag_of(container)
    assert ids(container.query_items_change_feed(start_time="Now")) == []
    container.upsert_item({"id": "u5", "pk": "p2", "n": 1})
    assert ids(container.query_items_change_feed(continuation=continuation)) == ["u5"]
    of_key = container.query_items_change_feed(start_time="Beginning", partition_key="p0")
    assert ids(of_key) == ["u3", "u6", "u9", "u0"]  # in the order of their last writes
    ranges = list(container.read_feed_ranges())
    parts = [ids(container.query_items_change_feed(start_time="Beginning", feed_range=one)) for one in ranges]
    assert len(parts) == 2
    assert sorted(each for part in parts for each in part) == sorted(ids(changed))


def test_the_change_feed_from_a_time_and_not_of_all_versions(database: DatabaseProxy) -> None:
    container = database.create_container("since", PartitionKey("/id"))
    container.create_item({"id": "a"})
    hour = timedelta(hours=1)
    assert ids(container.query_items_change_feed(start_time=datetime.now(UTC) - hour)) == ["a"]
    assert ids(container.query_items_change_feed(start_time=datetime.now(UTC) + hour)) == []
    with pytest.raises(CosmosHttpResponseError, match="latest versions"):
        list(container.query_items_change_feed(mode="AllVersionsAndDeletes"))


async def test_the_async_sdk_reads_the_change_feed_across_a_split(server: Emulator) -> None:
    async with cosmos.CosmosClient(server.endpoint, server.key) as client:
        database = await client.create_database_if_not_exists("foreign-async")
        container = await database.create_container("feed", PartitionKey("/id"), offer_throughput=6_000)
        for n in range(8):
            await container.create_item({"id": f"u{n}"})
        assert len([one async for one in container.query_items_change_feed(start_time="Beginning")]) == 8
        continuation = container.client_connection.last_response_headers["etag"]
        await container.replace_throughput(25_000)
        for n in range(8, 12):
            await container.create_item({"id": f"u{n}"})
        feed = container.query_items_change_feed(continuation=continuation)
        assert sorted([one["id"] async for one in feed]) == ["u10", "u11", "u8", "u9"]


def test_unique_keys_hold_within_a_partition_key(database: DatabaseProxy) -> None:
    policy = {"uniqueKeys": [{"paths": ["/mail"]}, {"paths": ["/name/first", "/name/last"]}]}
    container = database.create_container("unique", PartitionKey("/pk"), unique_key_policy=policy)
    assert container.read()["uniqueKeyPolicy"] == policy
    ann = {"id": "1", "pk": "x", "mail": "a@x", "name": {"first": "Ann", "last": "X"}}
    container.create_item(ann)
    container.create_item({**ann, "pk": "y"})
    container.upsert_item(ann)
    for other in ({**ann, "id": "2", "mail": "b@x"}, {**ann, "id": "2", "name": {}}):
        with pytest.raises(CosmosHttpResponseError, match="Unique index constraint") as error:
            container.create_item(other)
        assert error.value.status_code == 409
    bob = {"id": "2", "pk": "x", "mail": "b@x", "name": {"first": "Bob", "last": "X"}}
    container.create_item(bob)
    with pytest.raises(CosmosHttpResponseError, match="Unique index constraint"):
        container.patch_item("2", "x", [{"op": "set", "path": "/mail", "value": "a@x"}])
    with pytest.raises(CosmosBatchOperationError):  # what was undone holds its values again
        container.execute_item_batch(
            [("delete", ("1",)), ("upsert", ({**bob, "mail": "a@x"},)), ("read", ("none",))], "x"
        )
    with pytest.raises(CosmosHttpResponseError, match="Unique index constraint"):
        container.replace_item("2", {**bob, "mail": "a@x"})
    container.delete_item("1", "x")
    container.replace_item("2", {**bob, "mail": "a@x"})
    with pytest.raises(CosmosHttpResponseError, match="at most 10"):
        database.create_container("many", PartitionKey("/pk"), unique_key_policy={
            "uniqueKeys": [{"paths": [f"/p{n}"]} for n in range(11)]
        })  # fmt: skip


def test_array_contains_with_and_and_or_and_the_metrics_of_a_query(database: DatabaseProxy) -> None:
    container = database.create_container("arrays", PartitionKey("/id"))
    for n in range(6):
        tags = ["even" if n % 2 == 0 else "odd", *(["last"] if n == 5 else [])]
        container.create_item({"id": str(n), "n": n, "tags": tags, "items": [{"id": n, "score": 1.5}]})
    container.create_item({"id": "none"})

    def found(condition: str, **parameters: object) -> list[str]:
        named = [{"name": f"@{name}", "value": value} for name, value in parameters.items()]
        return sorted(ids(container.query_items(f"SELECT * FROM c WHERE {condition}", parameters=named, **ACROSS)))

    assert found("ARRAY_CONTAINS(c.tags, 'odd')") == ["1", "3", "5"]
    assert found("ARRAY_CONTAINS(c.tags, @tag) AND c.n > 1", tag="odd") == ["3", "5"]
    assert found("ARRAY_CONTAINS(c.tags, 'last') OR (ARRAY_CONTAINS(c.tags, 'even') AND c.n < 2)") == ["0", "5"]
    assert found("NOT ARRAY_CONTAINS(c.tags, 'odd')") == ["0", "2", "4"]  # undefined where there is no array
    assert found("ARRAY_CONTAINS(c.items, {'id': 3}, true)") == ["3"]
    assert found("ARRAY_CONTAINS(c.items, {'id': 3})") == []
    assert found("ARRAY_CONTAINS(@wanted, c.id)", wanted=["2", "none"]) == ["2", "none"]
    list(
        container.query_items(
            "SELECT * FROM c WHERE ARRAY_CONTAINS(c.tags, 'odd')", populate_query_metrics=True, **ACROSS
        )
    )
    headers = container.client_connection.last_response_headers
    metrics = dict(one.split("=") for one in headers["x-ms-documentdb-query-metrics"].split(";"))
    assert (metrics["retrievedDocumentCount"], metrics["outputDocumentCount"]) == ("7", "3")
    assert metrics["indexUtilizationRatio"] == "0.43"


def bulk(direct: Direct, *operations: dict[str, Any], **headers: str) -> HttpResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return direct.request("POST", "/dbs/d/colls/c/docs/", list(operations), BULK | named)


def operation(kind: str, name: str, body: object = None) -> dict[str, Any]:
    return {"operationType": kind, "partitionKey": orjson.dumps([name]).decode(), "id": name} | (
        {} if body is None else {"resourceBody": body}
    )


def test_operations_of_a_bulk_request_have_a_key_and_a_result_each(clock: FakeClock) -> None:
    direct = Direct(clock)
    done = bulk(
        direct,
        operation("Create", "a", {"id": "a", "n": 1}),
        operation("Create", "a", {"id": "a"}),
        operation("Upsert", "b", {"id": "b"}),
        operation("Patch", "a", {"operations": [{"op": "incr", "path": "/n", "value": 2}]}),
        operation("Read", "a"),
        operation("Delete", "none"),
        {"operationType": "Read", "id": "a"},
    )
    results = orjson.loads(done.body)
    assert done.status == 207
    assert [one["statusCode"] for one in results] == [201, 409, 201, 200, 200, 404, 400]
    assert results[4]["resourceBody"]["n"] == 3
    assert done.charge_ru == pytest.approx(sum(one["requestCharge"] for one in results))
    assert len(direct.container.documents) == 2
    assert bulk(direct, operation("Read", "a"), operation("Read", "b")).status == 200


def test_a_bulk_request_that_stops_at_an_error_leaves_the_rest_alone(clock: FakeClock) -> None:
    done = bulk(
        Direct(clock), operation("Read", "a"), operation("Create", "b", {"id": "b"}),
        x_ms_cosmos_batch_continue_on_error="False",
    )  # fmt: skip
    assert [one["statusCode"] for one in orjson.loads(done.body)] == [404, 424]


def test_operations_of_a_bulk_request_are_throttled_one_by_one(clock: FakeClock) -> None:
    direct = Direct(clock, ru=400)
    operations = [operation("Create", str(n), {"id": str(n)}) for n in range(100)]
    results = orjson.loads(bulk(direct, *operations).body)
    admitted = sum(one["statusCode"] == 201 for one in results)
    assert admitted == len(direct.container.documents)
    assert 0 < admitted < 100
    assert {one["statusCode"] for one in results} == {201, 429}
    assert results[-1]["retryAfterMilliseconds"] > 0


def test_an_operation_of_another_partition_is_sent_to_the_wrong_one(clock: FakeClock) -> None:
    direct = Direct(clock, ru=11_000)
    names = [str(n) for n in range(20)]
    operations = [operation("Create", name, {"id": name}) for name in names]
    done = bulk(direct, *operations, x_ms_documentdb_partitionkeyrangeid="0")
    statuses = [one["statusCode"] for one in orjson.loads(done.body)]
    assert set(statuses) == {201, 410}
    assert all(one.partition.id == "0" for one in direct.container.documents.after())
