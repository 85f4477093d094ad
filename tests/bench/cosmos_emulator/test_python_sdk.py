"""The unmodified Python SDK against the emulation: its synchronous client, which `bench charges` uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosHttpResponseError

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.cosmos_server import Emulator, emulator_thread

pytestmark = pytest.mark.filterwarnings(
    "ignore:Unverified HTTPS request"  # the SDK checks no certificate on loopback, and then warns of it
)
UNCHANGED = MatchConditions.IfNotModified
ACROSS: dict[str, Any] = {"enable_cross_partition_query": True}


@pytest.fixture
def server() -> Iterator[Emulator]:
    with emulator_thread(EmulatorSettings(port=0)) as (made, _):
        yield made


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
