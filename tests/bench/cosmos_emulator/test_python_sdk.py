"""The unmodified Python SDK against the emulation; its own pages, options, faults, regions and TLS."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from azure.core import MatchConditions
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosHttpResponseError
from azure.cosmos.partition_key import NonePartitionKeyValue

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.cosmos_server import Emulator, emulator, emulator_thread

pytestmark = pytest.mark.filterwarnings(
    "ignore:Unverified HTTPS request"  # the SDK checks no certificate on loopback, and then warns of it
)
UNCHANGED = MatchConditions.IfNotModified
ACROSS: dict[str, Any] = {"enable_cross_partition_query": True}


@pytest.fixture
def server() -> Iterator[Emulator]:
    with emulator_thread(EmulatorSettings(port=0)) as (emulator, _):
        yield emulator


def charge(result: object) -> float:
    return float(result.get_response_headers()["x-ms-request-charge"])  # type: ignore[attr-defined]  # the SDK's results all have it


@contextmanager
def refused(status: int, match: str | None = None) -> Iterator[None]:
    """Assert that a request is refused with this status."""
    with pytest.raises(CosmosHttpResponseError, match=match) as error:
        yield
    assert (error.value.status_code, error.value.sub_status) == (status, 0)


def test_the_sync_sdk(server: Emulator) -> None:
    client = CosmosClient(server.endpoint, server.key)
    database = client.create_database_if_not_exists("sync")
    assert client.create_database_if_not_exists("sync").id == "sync"
    assert [database["id"] for database in client.list_databases()] == ["sync"]
    with refused(409):
        client.create_database("sync")
    container = database.create_container("lists", PartitionKey("/id"), offer_throughput=11_000)
    _check_items(container)
    _check_queries(container)
    assert container.get_throughput().offer_throughput == 11_000
    assert container.replace_throughput(25_000).offer_throughput == 25_000
    assert len(list(container.read_feed_ranges(force_refresh=True))) == 4
    assert len(container.read_items([(f"u{n}", f"u{n}") for n in range(20)])) == 20
    for wrong in (450, 300, 2_000_000):
        with refused(400):
            container.replace_throughput(wrong)
    with refused(400, match="defaultTtl is not emulated"):
        database.create_container("bad", PartitionKey("/id"), default_ttl=60)
    database.delete_container("lists")
    with refused(404):
        database.get_container_client("lists").read()
    client.delete_database("sync")
    assert list(client.list_databases()) == []


def _check_items(container: ContainerProxy) -> None:
    item = container.create_item({"id": "u0", "n": 0, "name": "ü€ 'quoted\""})
    assert charge(item) == 5.6
    assert charge(container.read_item("u0", "u0")) == 1.0
    assert container.read_item("u0", "u0")["name"] == "ü€ 'quoted\""
    with refused(409):
        container.create_item({"id": "u0"})
    again = container.upsert_item({"id": "u0", "n": 1})
    assert again["_rid"] == item["_rid"]
    with refused(412):
        container.replace_item("u0", {"id": "u0"}, etag=item["_etag"], match_condition=UNCHANGED)
    container.replace_item("u0", {"id": "u0", "n": 2}, etag=again["_etag"], match_condition=UNCHANGED)
    container.delete_item("u0", "u0")
    with refused(404):
        container.read_item("u0", "u0")


def _check_queries(container: ContainerProxy) -> None:
    for n in range(20):
        container.create_item({"id": f"u{n}", "n": n, "odd": n % 2 == 1}, no_response=True)
    odd = container.query_items(
        "SELECT * FROM c WHERE c.odd = @odd", parameters=[{"name": "@odd", "value": True}], **ACROSS
    )
    assert len(list(odd)) == 10
    pages = container.query_items("SELECT * FROM c", max_item_count=3, **ACROSS).by_page()
    sizes = [len(list(page)) for page in pages]
    assert (sum(sizes), max(sizes)) == (20, 3)
    assert len(list(container.read_all_items(max_item_count=7))) == 20
    with refused(400, match="supports only"):
        list(container.query_items("SELECT udf.f(c) FROM c", **ACROSS))


def test_item_without_its_partition_key_is_stored_as_by_the_service(server: Emulator) -> None:
    database = CosmosClient(server.endpoint, server.key).create_database("undefined")
    container = database.create_container("lists", PartitionKey("/shop"), offer_throughput=30_000)
    container.create_item({"id": "a"})
    container.create_item({"id": "a", "shop": None})
    container.upsert_item({"id": "a", "n": 1})
    assert container.read_item("a", NonePartitionKeyValue)["n"] == 1
    in_partition = container.query_items("SELECT * FROM c", partition_key=NonePartitionKeyValue)
    assert [item.get("n") for item in in_partition] == [1]
    container.delete_item("a", NonePartitionKeyValue)
    assert [item["shop"] for item in container.read_all_items()] == [None]


def test_emulator_pages_and_options() -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with emulator("--tls", "--second-region", "0") as server:

        def page(method: str, path: str, body: object = None) -> bytes:
            data = None if body is None else orjson.dumps(body)
            request = urllib.request.Request(f"{server.endpoint}__emulation/{path}", data=data, method=method)
            with urllib.request.urlopen(request, timeout=60, context=trusting) as response:
                assert "not Azure" in response.headers["x-ms-emulation"]
                return bytes(response.read())

        CosmosClient(server.endpoint, server.key).create_database("d").create_container("c", PartitionKey("/id"))
        regions = ["Emulated East", "Emulated West"]
        client = CosmosClient(server.endpoint, server.key, preferred_locations=regions, retry_backoff_factor=0.0)
        container = client.get_database_client("d").get_container_client("c")
        container.create_item({"id": "a"})
        assert container.read_item("a", "a")["id"] == "a"
        metrics = page("GET", "metrics").decode()
        assert 'hotplate_cosmos_emulator_requests_total{operation="read item",status="200"} 1.0' in metrics
        page("PUT", "faults", [{"kind": "unavailable", "operation": "create item"}])
        with pytest.raises(CosmosHttpResponseError) as error:
            container.create_item({"id": "b"})
        assert error.value.status_code == 503
        with pytest.raises(urllib.error.HTTPError, match="400") as wrong:
            page("PUT", "faults", [{"kind": "earthquake"}])
        wrong.value.close()
        page("PUT", "faults", [{"kind": "region-gone", "region": 1}])
        assert container.read_item("a", "a")["id"] == "a"
        page("PUT", "faults", [])
        container.create_item({"id": "b"})
