"""Damaged stores behind readers and services: users of damaged lists get another list, others are unaffected."""

import re
from pathlib import Path

import pytest

from hotplate.serve.lists.reader import TieredReader
from hotplate.stores.encoding import USER
from tests.support.memory_store import MemoryStore
from tests.support.remote import publish
from tests.support.service import a_list, publish_lists, serving, until
from tests.support.stores import ref_of

PAGE = 4096
# LMDB's mark of a page that holds rows.
LEAF = b"\x02\x00"
MANY = {f"user:{n:04}": a_list(*(f"item-{m}-{n}" for m in range(20))) for n in range(300)}


def files(store: Path) -> set[Path]:
    return set(store.glob("releases/*.mdb"))


def spoil_page_of(path: Path, key: str) -> None:
    """Give the leaf page of *key*, and unused older versions of it, an unknown page kind."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        for match in re.finditer(key.encode(), content):
            flags = match.start() // PAGE * PAGE + 10
            if content[flags : flags + 2] == LEAF:
                file.seek(flags)
                file.write(bytes(byte ^ 0xFF for byte in LEAF))


@pytest.mark.parametrize("other_tiers", [0, 1], ids=["alone", "with another tier"])
async def test_unreadable_page_fails_only_its_own_lists(tmp_path: Path, other_tiers: int) -> None:
    await publish_lists(tmp_path / "store", MANY)
    await publish_lists(tmp_path / "other", MANY)
    (path,) = files(tmp_path / "store")
    urls = [f"file://{tmp_path}/{name}" for name in ("store", "other")][: 1 + other_tiers]
    named = [part for url in urls for part in ("--store", url)]
    with serving(tmp_path, *named) as service:
        before = service.workers()
        spoil_page_of(path, "user:0100")
        answers = {key: service.get(f"/v1/recommendations/{key.removeprefix('user:')}") for key in MANY}
        assert {answer.status for answer in answers.values()} == {200}
        origins = {key: (answer.json["tier"], answer.json["source"]) for key, answer in answers.items()}
        lost = [key for key, origin in origins.items() if origin != ("file", "personal")]
        assert "user:0100" in lost
        assert len(lost) < 50
        assert {origins[key] for key in lost} == {("file-2", "personal") if other_tiers else ("file", "popular")}
        ready = service.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        until(lambda: "is damaged in this store" in str(service.states()[0]["tiers"][0]["detail"]), "nobody is told")
        assert f'hotplate_store_corrupt_total{{store="file"}} {len(lost)}.0' in service.admin("/metrics").body.decode()
        assert service.log.read_text().count('"level":"error"') == 1
        assert service.workers() == before
        second = await publish_lists(tmp_path / "store", MANY)
        until(lambda: [(state["status"], state["release"]) for state in service.states()] == [("ready", second)])


async def test_list_stored_under_another_key_is_served_to_nobody(memory: MemoryStore) -> None:
    release = await publish(memory, "live")
    rows = memory.find(await ref_of(memory, release)).rows
    rows["user:1"], rows["user:2"] = rows["user:2"], rows["user:1"]
    reader = TieredReader({"tier": memory})
    await reader.tiers[0].follower.refresh()
    answers = await reader.personal_many([str(n) for n in range(5)])
    assert [answer.source for answer in answers] == ["personal", "popular", "popular", "personal", "personal"]
    assert {(await reader.read(USER, user)).source for user in ("1", "2")} == {"popular"}
    assert str(reader.tiers[0].error).startswith(f"release {release} is damaged in this store")
    assert not reader.tiers[0].breaker.is_open
