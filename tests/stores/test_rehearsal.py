"""Rehearsals of a publish, which write nothing."""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hotplate.stores import publication
from hotplate.stores.encoding import HEADER_BYTES
from hotplate.stores.errors import ReleaseCorrupt, StoreFull
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.manifest import Manifest
from hotplate.stores.rehearsal import plan_of, stand_in_for
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.users import erase_users
from tests.support.memory_store import MemoryStore
from tests.support.stores import batches

ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{n:04}", b"%d" % n) for n in range(500))]
PLAN = Plan(len(ROWS), sum(len(key) + len(value) for key, value in ROWS))


async def publish(store: Store, *, plan: Plan = PLAN, rows: list[Row] = ROWS) -> Manifest:
    return (await publication.publish_release(store, batches(rows, 100), plan=plan)).manifest


async def rehearse(store: Store, publish: Callable[[Store], Awaitable[Manifest]]) -> Plan:
    async with stand_in_for(store) as stand_in:
        return plan_of(await publish(stand_in))


async def test_rehearsal_counts_rows_and_bytes_and_writes_nothing(tmp_path: Path) -> None:
    for store in (LmdbStore(tmp_path / "new", lambda: 1.5), MemoryStore(lambda: 1.5)):
        rehearsal = await rehearse(store, publish)
        manifest = await publish(MemoryStore(lambda: 1.5))
        key, value = manifest.key_row
        assert rehearsal.rows == len(ROWS) + 1
        payload_bytes = PLAN.payload_bytes + HEADER_BYTES * PLAN.rows + len(key) + len(value)
        assert rehearsal.payload_bytes == pytest.approx(
            payload_bytes, abs=20
        )  # the time in the manifest has more digits
        assert (await store.catalogue()).releases == ()
    assert not (tmp_path / "new").exists()


async def test_users_who_were_erased_are_not_in_a_rehearsal(tmp_path: Path) -> None:
    for store in (LmdbStore(tmp_path / "files"), MemoryStore()):
        await publish(store)
        await erase_users(store, ["0007", "0008"])
        assert (await rehearse(store, publish)).rows == len(ROWS) + 1 - 2


async def test_rehearsal_refuses_what_a_publish_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_much(store: Store) -> Manifest:
        return await publish(store, plan=Plan(10**9, 10**18))

    async def unservable(store: Store) -> Manifest:
        return await publish(store, rows=ROWS[1:])

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with pytest.raises(StoreFull, match=r"needs about .* in .*target"):
        await rehearse(LmdbStore(tmp_path / "target"), too_much)
    with pytest.raises(ReleaseCorrupt, match="no popular list"):
        await rehearse(MemoryStore(), unservable)
    assert not list((tmp_path / "scratch").iterdir())
