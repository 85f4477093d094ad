"""What the Redis store takes of redis-py that its documentation does not promise; checked at each new version."""

import asyncio
import tomllib

import pytest
import redis
from packaging.requirements import Requirement
from redis.asyncio import Connection

from hotplate.stores.connect import connect
from hotplate.testing import OpenStore, StoreContract
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer


async def test_the_transport_of_a_connection_is_that_of_its_attribute_writer(redis_server: RedisServer) -> None:
    connection = Connection(port=redis_server.port)
    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types the rest
    writer = getattr(connection, "_writer", None)
    assert isinstance(writer, asyncio.StreamWriter), (
        f"redis-py {redis.__version__} keeps the transport elsewhere than in Connection._writer, from which "
        f"`Multiplexer.open` takes it; change that, or read by redis-py (?client=redis-py)"
    )
    assert isinstance(writer.transport, asyncio.Transport)
    await connection.disconnect()


def test_the_extra_takes_only_versions_of_redis_py_that_were_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = (Requirement(text) for text in extras["redis"] if text.startswith("redis["))
    assert redis.__version__ in requirement.specifier
    assert "8.2.0" not in requirement.specifier, "run tests/stores/redis with it first"


class TestRESP3(StoreContract):
    @pytest.fixture(params=["redis", "redis+cluster"])
    def open_store(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, prefix: str) -> OpenStore:
        """Open handles whose connections speak RESP 3; the store's own choice is 2."""
        for module in ("client", "servers"):
            monkeypatch.setattr(f"hotplate.stores.redis.{module}.PROTOCOL", 3)
        place = request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")
        url = place.url(prefix=prefix)
        return lambda: connect(url)
