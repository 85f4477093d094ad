"""Damaged stores behind readers and services: who reads what is damaged gets another list, and nobody else does."""

import asyncio
import re
import secrets
from pathlib import Path

import pytest

from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.cosmos.items import container_of, name_of
from stores.cosmos.rest import RestClient
from stores.file.store import LmdbStore
from stores.keys import MANIFEST
from stores.lifecycle import activate
from tests.support.cosmos_account import Account
from tests.support.readers import USERS, lists, reading, until
from tests.support.redis_server import RedisServer
from tests.support.service import a_list, publish_lists, publish_to, serving
from tests.support.stores import ref_of

PAGE = 4096
# LMDB's mark of a page that holds rows.
LEAF = b"\x02\x00"
MANY = {f"user:{n:04}": a_list(*(f"item-{m}-{n}" for m in range(20))) for n in range(1000)}


async def file_of(store: Path, release: str) -> Path:
    opened = LmdbStore(store)
    incarnation = (await ref_of(opened, ReleaseId(release))).incarnation
    await opened.close()
    return store / "releases" / f"{incarnation}.mdb"


def spoil_page_of(path: Path, key: str) -> None:
    """Make the leaf page that holds *key*, and older versions of it that nobody reads, ones of no known kind."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        for found in re.finditer(key.encode(), content):
            flags = found.start() // PAGE * PAGE + 10
            if content[flags : flags + 2] == LEAF:
                file.seek(flags)
                file.write(bytes(byte ^ 0xFF for byte in LEAF))


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another tier"])
async def test_a_page_that_cannot_be_read_costs_its_own_lists_only(tmp_path: Path, others: int) -> None:
    release = await publish_lists(tmp_path / "store", MANY)
    await publish_lists(tmp_path / "other", MANY)
    path = await file_of(tmp_path / "store", release)
    urls = [f"file://{tmp_path}/{name}" for name in ("store", "other")][: 1 + others]
    named = [part for url in urls for part in ("--store", url)]
    with serving(tmp_path, *named) as service:
        before = service.workers()
        spoil_page_of(path, "user:0500")
        answers = {key: service.get(f"/v1/recommendations/{key.removeprefix('user:')}") for key in MANY}
        assert {answer.status for answer in answers.values()} == {200}
        origins = {key: (answer.json["tier"], answer.json["source"]) for key, answer in answers.items()}
        lost = [key for key, origin in origins.items() if origin != ("file", "personal")]
        assert "user:0500" in lost
        assert len(lost) < 50
        assert {origins[key] for key in lost} == {("file-2", "personal") if others else ("file", "popular")}
        ready = service.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "degraded")

        async def is_told() -> bool:
            (state,) = await asyncio.to_thread(service.states)
            return "is damaged in this store" in str(state["tiers"][0]["detail"])

        await until(is_told, "operators do not read of the damage")
        assert f'hotplate_store_corrupt_total{{store="file"}} {len(lost)}.0' in service.admin("/metrics").body.decode()
        assert service.log.read_text().count('"level":"error"') == 1
        assert service.workers() == before
        second = await publish_lists(tmp_path / "store", MANY)

        async def is_whole() -> bool:
            (state,) = await asyncio.to_thread(service.states)
            return (state["status"], state["release"]) == ("ready", second)

        await until(is_whole, "the next release is not followed")


async def test_a_page_that_cannot_be_read_under_the_manifest_ends_no_worker(tmp_path: Path) -> None:
    store, other = tmp_path / "store", tmp_path / "other"
    await publish_lists(store, MANY)
    release = await publish_lists(store, MANY, live=False)
    await publish_lists(other, MANY)
    with serving(tmp_path, "--store", f"file://{store}", "--store", f"file://{other}", "--workers", "2") as service:
        before = service.workers()
        spoil_page_of(await file_of(store, release), MANIFEST)
        opened = LmdbStore(store)
        await activate(opened, ReleaseId(release), force=True)
        await opened.close()

        async def is_said() -> bool:
            states = [(await asyncio.to_thread(service.get, "/readyz")).json for _ in range(20)]
            return all(state["status"] == "degraded" for state in states)

        await until(is_said, "not every worker says that it cannot follow")
        assert service.get("/v1/recommendations/0001").json["source"] == "personal"
        assert service.workers() == before


async def swap_in_file(folder: Path, release: str) -> None:
    path, store = await file_of(folder, release), LmdbStore(folder)
    values = await store.get_many(await ref_of(store, ReleaseId(release)), ["user:1", "user:2"])
    await store.close()
    content = path.read_bytes()
    with path.open("r+b") as file:
        for old, new in zip(values, reversed(values), strict=True):
            assert isinstance(old, bytes)
            assert isinstance(new, bytes)
            for found in re.finditer(re.escape(old), content):
                file.seek(found.start())
                file.write(new)


def swap_in_redis(server: RedisServer, prefix: str) -> None:
    (one,), (two,) = (server.execute_command("KEYS", f"*{prefix}*:user:{n}") for n in (1, 2))
    values = server.execute_command("MGET", one, two)
    server.execute_command("MSET", one, values[1], two, values[0])


async def swap_in_cosmos(account: Account, database: str, release: str) -> None:
    store, client = connect(account.url(database)), RestClient(account.address(database))
    container = container_of(await ref_of(store, ReleaseId(release)))
    names = [name_of(f"user:{n}") for n in (1, 2)]
    items = [await client.read(container, name, 5.0) for name in names]
    for item, name in zip(items, reversed(names), strict=True):
        assert item is not None
        await client.upsert(container, {field: item[field] for field in item if field[0] != "_"} | {"id": name})
    await client.close()
    await store.close()


@pytest.mark.parametrize("kind", ["file", "redis", "cosmos"])
async def test_a_list_that_lies_under_another_key_is_nobodys_list(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    name = f"t{secrets.token_hex(4)}"
    if kind == "file":
        url = f"file://{tmp_path}/store"
        release = await publish_to(url, lists("r"))
        await swap_in_file(tmp_path / "store", release)
    elif kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url(prefix=name)
        await publish_to(url, lists("r"))
        swap_in_redis(server, name)
    else:
        account: Account = request.getfixturevalue("cosmos_http")
        url = account.url(name, ru="30000")
        await swap_in_cosmos(account, name, await publish_to(url, lists("r")))
    async with reading(url, budget_s=5.0) as reader:
        answers = await reader.personal_many([str(n) for n in range(USERS)])
        assert [n for n, answer in enumerate(answers) if answer.source == "popular"] == [1, 2]
        assert {(await reader.personal(user)).source for user in ("1", "2")} == {"popular"}
        assert "another key" in str(reader.tiers[0].error)
        assert not reader.tiers[0].breaker.is_open
