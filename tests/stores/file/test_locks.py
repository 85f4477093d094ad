"""A lock with a removed file: its holder changes nothing, as another process may hold the new file."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hotplate.offline.errors import DataError
from hotplate.offline.run_folder import Run, locked_folder
from hotplate.serve.access import keys as client_keys
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.folders import LOCK
from hotplate.stores.store import Plan, Row
from tests.support.stores import (
    FIRST,
    SECOND,
    allow_erasure,
    begin_draft,
    draft_of,
    release_ref,
    scan_rows,
    write_release,
)

ROWS = [Row(f"user:{number:03}", b"list") for number in range(20)]
REMOVED = "lock file was removed while it was held"


@pytest.fixture
def at_first_flush(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Return a function that has another called at the first flush to the disk."""
    flush = os.fsync

    def arm(act: Callable[[], None]) -> None:
        left = [act]

        def flush_after(descriptor: int) -> None:
            if left:
                left.pop()()
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", flush_after)

    return arm


async def test_swap_under_a_removed_lock_keeps_the_other_catalogue(
    tmp_path: Path, at_first_flush: Callable[[Callable[[], None]], None]
) -> None:
    store = LmdbStore(tmp_path)
    other = LmdbStore(tmp_path)
    catalogue = await begin_draft(store, FIRST)
    first = changes.succeed(catalogue, changes.begin(catalogue, draft_of(SECOND)), "first", "here")
    second = changes.succeed(catalogue, catalogue, "second", "here")

    def replace_lock() -> None:
        (tmp_path / "catalogue.lock").unlink()
        asyncio.run(other.swap(catalogue, second))

    at_first_flush(replace_lock)
    with pytest.raises(StoreUnavailable, match=REMOVED):
        await store.swap(catalogue, first)
    assert (await store.catalogue()).token == "second"
    await store.swap(second, changes.succeed(second, second, "third", "here"))


async def test_erase_under_a_removed_lock_deletes_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await write_release(store, FIRST, ROWS)

    def remove_lock(_: Catalogue) -> None:
        (tmp_path / "catalogue.lock").unlink()

    with pytest.raises(StoreUnavailable, match=REMOVED):
        await store.erase(release_ref(FIRST), remove_lock)
    assert await scan_rows(store, FIRST) == ROWS
    await store.erase(release_ref(FIRST), allow_erasure)
    assert await store.incarnations() == []


@pytest.mark.parametrize("then", ["put", "seal"])
async def test_writer_whose_lock_was_removed_leaves_the_draft_to_the_next(tmp_path: Path, then: str) -> None:
    store = LmdbStore(tmp_path)
    other = LmdbStore(tmp_path)
    await write_release(store, FIRST, ROWS[:10], seal=False)
    (tmp_path / "releases" / f"{release_ref(FIRST).incarnation}.lock").unlink()
    rows = [ROWS[10:]] if then == "put" else []
    with pytest.raises(StoreUnavailable, match=REMOVED):
        await getattr(store, then)(draft_of(FIRST), *rows)
    await store.close()
    await other.create(draft_of(FIRST), Plan(len(ROWS), 1000))
    await other.put(draft_of(FIRST), ROWS[10:])
    await other.seal(draft_of(FIRST))
    assert await scan_rows(other, FIRST) == ROWS
    await other.close()


def test_key_change_under_a_removed_lock_keeps_the_other_keys(
    tmp_path: Path, at_first_flush: Callable[[Callable[[], None]], None]
) -> None:
    path = tmp_path / "keys.json"
    client_keys.create(path, "web", scopes=("read",))

    def replace_lock() -> None:
        path.with_name("keys.json.lock").unlink()
        client_keys.create(path, "other", scopes=("read",))

    at_first_flush(replace_lock)
    with pytest.raises(OSError, match=REMOVED):
        client_keys.create(path, "first", scopes=("read",))
    assert [client.name for client in client_keys.load(path)] == ["web", "other"]


def test_run_whose_lock_was_removed_records_nothing(tmp_path: Path) -> None:
    run = Run(id="1", options="", inputs="", release=FIRST)
    with locked_folder(tmp_path) as folder:
        (tmp_path / LOCK).unlink()
        with locked_folder(tmp_path) as other:
            other.record(run)
        before = (tmp_path / "state.json").read_bytes()
        with pytest.raises(DataError, match="another run may have begun"):
            folder.record(run)
    assert (tmp_path / "state.json").read_bytes() == before
