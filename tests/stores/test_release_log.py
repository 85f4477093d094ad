"""The log of releases: each change of what is served, with its caller and reason, in every store."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hotplate.stores import lifecycle, release_log, transitions
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.connect import connect
from hotplate.stores.errors import CatalogueUnreadable, ReleaseNotFound
from hotplate.stores.release_log import MAX_CHANGES, MAX_REASON, log_of, signed
from hotplate.stores.store import RecordChange, Store
from tests.support.memory_store import MemoryStore
from tests.support.stores import publish

OpenStore = Callable[[], Store]


async def test_each_change_of_what_is_served_is_logged_with_caller_and_reason(store: Store) -> None:
    with signed("the first"):
        first = await publish(store)
    candidate = await publish(store, live=False)  # serves nobody, so it is no change
    with signed("a try", "alice"):
        await lifecycle.start_canary(store, candidate, 5.0)
    with signed("all\nis well", "bob"):
        await lifecycle.promote(store)
    await lifecycle.activate(store, candidate)  # live already
    with signed("it was worse", "carol"):
        await lifecycle.rollback(store)
    changes = await log_of(store)
    assert [(change.live, change.canary, change.percent, change.reason) for change in changes] == [
        (first, None, None, "the first"),
        (first, candidate, 5.0, "a try"),
        (candidate, None, None, "all is well"),
        (first, None, None, "it was worse"),
    ]
    assert [change.by for change in changes][1:] == ["alice", "bob", "carol"]
    assert "@" in changes[0].by
    assert [change.at for change in changes] == sorted(change.at for change in changes)


async def test_callers_of_one_printable_line_are_logged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of the environment may have any bytes."""
    monkeypatch.setenv("LOGNAME", "e\x1b[31mve\udcff")
    await publish(store)
    second = await publish(store, live=False)
    with signed("", "a\nname"):
        await lifecycle.activate(store, second)
    first, last = [change.by for change in await log_of(store)]
    assert first.startswith("e [31mve @")
    assert last == "a name"


async def test_changes_that_an_earlier_version_has_undone_stay_logged(store: Store) -> None:
    first = await publish(store)
    with signed("a new model"):
        second = await publish(store)
    seen = await store.catalogue()
    undone = transitions.rollback(seen, expected=second, reason="")
    await store.swap(seen, transitions.succeed(seen, undone, token="earlier", store_id=""))
    with signed("it was not the model"):
        await lifecycle.activate(store, second)
    assert [(change.live, change.reason) for change in await log_of(store)] == [
        (first, ""),
        (second, "a new model"),
        (second, "it was not the model"),
    ]


async def test_log_keeps_the_last_100_changes_over_prunes() -> None:
    """Those of pruned releases, too."""
    store = MemoryStore()
    first = await publish(store)
    second = await publish(store)
    for number in range(MAX_CHANGES // 2):
        with signed(f"{number} " + "x" * MAX_REASON):
            await lifecycle.activate(store, first)
        await lifecycle.activate(store, second)
    before = await log_of(store)
    assert len(before) == MAX_CHANGES
    assert len(before[0].reason) == MAX_REASON
    assert await lifecycle.prune(store, keep=0, grace_s=0.0) == [first]
    with pytest.raises(ReleaseNotFound):
        (await store.catalogue()).find(first)
    assert await log_of(store) == before


async def test_concurrent_changes_are_all_logged_in_their_order(open_store: OpenStore) -> None:
    """A swap that lost against another logs nothing, or is followed by the same change."""
    store = open_store()
    releases = [await publish(store, live=False) for _ in range(4)]
    await asyncio.gather(*(lifecycle.activate(open_store(), release) for release in releases))
    changes = await log_of(store)
    assert {change.live for change in changes} == set(releases)
    assert changes[-1].live == (await store.catalogue()).live


class LosesFirst:
    """Makes the first swap that writes records fail after it wrote them, as in Cosmos DB."""

    def __init__(self, store: Store) -> None:
        self._swap = store.swap
        self.lost = 0

    async def __call__(self, old: Catalogue, new: Catalogue, records: list[RecordChange] = ()) -> None:  # type: ignore[assignment]
        if records and not self.lost:
            self.lost += 1
            other = transitions.succeed(old, old, token="another", store_id="other")
            await self._swap(old, other, records)  # another process has renewed a lease
        await self._swap(old, new, records)


async def test_a_change_that_lost_a_race_after_its_record_was_written_is_logged_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(store)
    second = await publish(store, live=False)
    loses = LosesFirst(store)
    monkeypatch.setattr(store, "swap", loses)
    await lifecycle.activate(store, second)
    assert loses.lost == 1
    assert [change.live for change in await log_of(store)][1:] == [second]


async def test_a_damaged_log_begins_anew(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    await publish(store)
    stored = await store.catalogue()
    (record,) = await store.records(["log"])
    damaged = [RecordChange("log", record, b'[{"at": "noon"')]
    await store.swap(stored, transitions.succeed(stored, stored, token="t", store_id=""), damaged)
    second = await publish(store)
    assert [change.live for change in await log_of(store)] == [second]
    assert "the record 'log' beside the catalogue cannot be read" in caplog.text


async def test_log_is_read_beside_a_catalogue_that_cannot_be_read(tmp_path: Path) -> None:
    store = connect(f"file://{tmp_path}")
    releases = [await publish(store) for _ in range(2)]
    (tmp_path / "catalogue.json").write_text("{")
    with pytest.raises(CatalogueUnreadable):
        await store.catalogue()
    assert [change.live for change in await log_of(store)] == releases
    await store.close()


async def test_a_change_that_a_killed_process_has_logged_and_not_made_is_not_shown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in files and Cosmos DB, where the record is written first."""
    first = await publish(store)
    second, third = [await publish(store, live=False) for _ in range(2)]
    swap = store.swap

    async def killed(old: Catalogue, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        del new
        await swap(old, transitions.succeed(old, old, token="another", store_id=""), records)
        raise ReleaseNotFound("killed")

    monkeypatch.setattr(store, "swap", killed)
    with pytest.raises(ReleaseNotFound):
        await lifecycle.activate(store, second)
    monkeypatch.undo()
    assert [change.live for change in await log_of(store)] == [first]
    monkeypatch.setattr(release_log, "SWAP_S", 0.0)  # it was killed long ago
    await lifecycle.activate(store, third)
    assert [change.live for change in await log_of(store)] == [first, third]
