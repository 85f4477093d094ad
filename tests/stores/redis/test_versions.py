"""What the Redis store takes of redis-py that its documentation does not promise; checked at each new version."""

import ast
import asyncio
import inspect
import tomllib
from pathlib import Path

import pytest
import redis
from packaging.requirements import Requirement
from redis.asyncio import Connection

from hotplate.stores.connect import connect
from hotplate.stores.redis.client import ServerConnection
from hotplate.testing import OpenStore, StoreContract
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer

# Commands that redis-py itself sends.
COMMANDS_OF_REDIS_PY = {
    "AUTH",
    "SELECT",
    "READWRITE",
    "CLUSTER SHARDS",
    "CLUSTER NODES",
    "MOVED",
    "ASK",
}

# Allowed: HELLO without AUTH (redis-py discards the server's role), ASKING (redis-py sends it over a pool), and what
# its `RedisCluster` sends, which is not used (`stores/redis/cluster.py` says why).
OWN_COMMANDS = {"HELLO", "ASKING", "CLUSTER SLOTS", "READONLY"}
# Sent over our connections, as those to servers, with the timeouts of these; redis-py parses the replies.
COMMANDS_TO_SENTINELS = {
    "SENTINEL CKQUORUM",
    "SENTINEL GET-MASTER-ADDR-BY-NAME",
    "SENTINEL MASTER",
    "SENTINEL SLAVES",
}

MODULES = sorted((ROOT / "stores" / "redis").glob("*.py"))


def literals_in(module: Path) -> set[str]:
    """Return the strings and bytes of a module, without docstrings."""
    tree = ast.parse(module.read_text())
    documented = (node for node in ast.walk(tree) if isinstance(node, ast.Expr))
    docstrings = {id(node.value) for node in documented}
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return {value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values}


def private_names_in(module: Path) -> set[str]:
    """Return the private attributes that a module reads or writes of other objects than its own classes' instances."""
    attributes = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in attributes
        if node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_store_sends_no_command_that_redis_py_sends_by_itself() -> None:
    for module in MODULES:
        if module.name == "url.py":
            continue  # it has a parameter named "auth", and sends nothing
        literals = {literal.upper() for literal in literals_in(module)}
        own = literals & COMMANDS_OF_REDIS_PY
        assert not own, f"{module.name} sends {own}, which redis-py does"
        sentinel = {command for command in literals if command.startswith("SENTINEL ")}
        assert sentinel <= COMMANDS_TO_SENTINELS, "redis-py parses the replies to these; is it so for others?"
    assert set().union(*map(literals_in, MODULES)) >= OWN_COMMANDS, "update the note of what is allowed"


def test_store_uses_these_private_names_of_redis_py() -> None:
    private = {(module.name, name) for module in MODULES for name in private_names_in(module)}
    assert private == {("examination.py", "_replace"), ("deployment.py", "_replace")}  # of named tuples
    inherited = {name for name in dir(Connection()) if name.startswith("_") and not name.startswith("__")}
    tree = ast.parse(inspect.getsource(ServerConnection))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}
    assert names & inherited == {"_connect", "_reader", "_writer"}


def test_store_imports_these_modules_of_redis_py() -> None:
    imported = set[str]()
    for module in MODULES:
        nodes = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom)]
        imported |= {str(node.module) for node in nodes if str(node.module).partition(".")[0] == "redis"}
    assert imported == {
        "redis",
        "redis.asyncio",
        "redis.asyncio.connection",
        "redis.asyncio.retry",
        "redis.backoff",
        "redis.crc",
        "redis.credentials",
        "redis.exceptions",
    }


async def test_a_connection_keeps_its_streams_in_two_attributes(redis_server: RedisServer) -> None:
    connection = Connection(port=redis_server.port)
    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py types the rest
    streams = [getattr(connection, name, None) for name in ("_reader", "_writer")]
    assert list(map(type, streams)) == [asyncio.StreamReader, asyncio.StreamWriter], (
        f"redis-py {redis.__version__} keeps the streams elsewhere than `ServerConnection` sets them; change that"
    )
    await connection.disconnect()


def test_the_extra_takes_only_versions_of_redis_py_that_were_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = (Requirement(text) for text in extras["redis"] if text.startswith("redis["))
    assert redis.__version__ in requirement.specifier
    assert "8.2.0" not in requirement.specifier, "run tests/stores/redis with it first"


class TestRESP3(StoreContract):
    @pytest.fixture(params=["redis", "redis+cluster"])
    def open_store(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, prefix: str) -> OpenStore:
        """Open handles with RESP 3; the store's default is 2."""
        monkeypatch.setattr("hotplate.stores.redis.client.PROTOCOL", 3)
        place = request.getfixturevalue("redis_server" if request.param == "redis" else "redis_cluster")
        url = place.url(prefix=prefix)
        return lambda: connect(url)
