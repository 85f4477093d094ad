"""A running emulator: its own pages, its options, faults and regions as SDKs meet them, and TLS."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import orjson
import pytest
from azure.cosmos import CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosHttpResponseError

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.errors import BenchMisused
from tests.support.cosmos_server import emulator, emulator_thread


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # as in the tests of the SDK
def test_the_emulators_own_pages_and_options() -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
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
        assert 'hotplate_cosmos_emulator_partition_throughput{container="d/c",partition="0"} 400.0' in metrics
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EmulatorSettings(port=0, certificate=Path("never.pem")), "--certificate needs --tls"),
        (
            EmulatorSettings(port=0, consistency="Total"),
            "no such consistency: Total; there are Strong, BoundedStaleness",
        ),
        (EmulatorSettings(port=0, key="???"), "not base64"),
        (EmulatorSettings(port=0, key=""), "empty"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_it_listens(settings: EmulatorSettings, message: str) -> None:
    with pytest.raises(BenchMisused, match=message), emulator_thread(settings):
        pass
