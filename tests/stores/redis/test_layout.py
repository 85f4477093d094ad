"""How the keys in Redis are named: the layout is a promise to the servers that hold it, and to a cluster."""

import ast
import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from hotplate.stores import redis as package
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.redis.layout import BUCKETS, Keys
from tests.support.stores import FIRST

INCARNATION = "0123456789ab"
RELEASE = ReleaseRef(FIRST, INCARNATION)
KEYS = ["user:1", "user:2", "item:a/b", "popular:", "user:é", "user:{x}", "meta:manifest"]


def test_a_row_lies_in_the_bucket_of_its_key_whose_braces_name_one_slot() -> None:
    names = Keys("shop").release(RELEASE).rows(KEYS)
    assert names == [f"shop:{{{INCARNATION}.{xxh3_64_intdigest(key.encode()) % BUCKETS}}}:{key}" for key in KEYS]
    assert [name.encode() for name in names] == Keys("shop").release(RELEASE).located(KEYS)[0]
    assert names[0] == "shop:{0123456789ab.1}:user:1"  # of releases that are stored, for as long as they are


def test_each_bucket_has_a_state_and_bucket_0_has_release_wide_keys() -> None:
    keys = Keys("shop").release(RELEASE)
    states = tuple(f"shop:{{0123456789ab.{bucket}}}:@state" for bucket in range(BUCKETS))
    assert keys.steps == (states,)
    assert Keys("shop", clustered=True).release(RELEASE).steps == tuple((state,) for state in states)
    assert keys.state == states[0]
    of_release = (*keys.lists, keys.points)
    assert of_release == tuple(f"shop:{{0123456789ab.0}}:@{what}" for what in ("keys", "meta", "points"))


def test_a_key_that_cannot_be_encoded_has_a_name_that_no_row_has() -> None:
    release, keys = Keys("shop").release(RELEASE), [*KEYS, "user:\ud800"]
    names, buckets = release.located(keys)
    assert [name.decode() for name in names[:-1]] == release.rows(KEYS)
    assert [release.raw_heads[bucket] for bucket in buckets] == [name[: name.index(b"}:") + 2] for name in names]
    with pytest.raises(UnicodeDecodeError):
        names[-1].decode()
    with pytest.raises(UnicodeEncodeError):
        release.rows(keys)


def test_all_that_is_taken_from_redis_py_is_public_and_still_there() -> None:
    taken = set[tuple[str, str]]()
    for path in Path(package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("redis", "hiredis"):
                taken |= {(node.module, alias.name) for alias in node.names}
    assert taken
    for module, name in taken:
        assert not any(part.startswith("_") for part in (*module.split("."), name)), f"{module}.{name} is private"
        found = hasattr(importlib.import_module(module), name)
        assert found, f"redis-py {version('redis')} has no {module}.{name}, which hotplate.stores.redis uses"


def test_no_private_attribute_of_another_object_is_used() -> None:
    for path in Path(package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "_replace":
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                assert own or node.attr == "__init__", f"{path.name}:{node.lineno} uses .{node.attr}"


def test_redis_py_computes_slots_and_reads_layouts_as_servers_state_them() -> None:
    assert (key_slot(b"shop:{0123456789ab.1}:user:1"), key_slot(b"{0123456789ab.1}")) == (
        key_slot(b"0123456789ab.1"),
    ) * 2
    assert key_slot(b"123456789") == 0x31C3  # as the cluster's specification has it
    reply = [[0, 16383, [b"127.0.0.1", 7000, b"id", []], [b"", 7001, b"id", []]]]
    (found,) = parse_cluster_slots(reply, current_host="asked").items()
    assert found == ((0, 16383), {"primary": ("127.0.0.1", 7000), "replicas": [("asked", 7001)]})
