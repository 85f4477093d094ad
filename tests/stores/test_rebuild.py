"""A catalogue that is lost or damaged is made from the releases that the store holds, on every store that keeps any."""

from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, State, follows
from hotplate.stores.encoding import MANIFEST
from hotplate.stores.errors import (
    CatalogueUnreadable,
    RefusedByGates,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreMisused,
)
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.service import refused_by
from tests.support.stores import OpenStore, allow_erasure, published_rows, ref_of
from tests.support.stores import publish as publish_rows

on_every_rebuildable_store = pytest.mark.parametrize("open_store", ["file", "redis", "cosmos+http"], indirect=True)


async def publish(store: Store, text: str, **about: object) -> ReleaseId:
    return await publish_rows(store, rows(text), about=about)


def rows(text: str) -> list[Row]:
    return [Row("popular:", b'{"id":"p"}'), Row("user:1", text.encode()), Row("user:2", text.encode())]


async def spoil(store: Store) -> Catalogue:
    """Swap the catalogue for one that contradicts itself, as no program of ours would; return the one before."""
    before = await store.catalogue()
    twice = replace(before, releases=before.releases * 2)
    await store.swap(before, changes.succeed(before, twice, "spoilt", ""))
    with pytest.raises(CatalogueUnreadable, match="hotplate store rebuild"):
        await store.catalogue()
    return before


@on_every_rebuildable_store
async def test_releases_are_found_without_a_catalogue_and_one_is_made_live(open_store: OpenStore) -> None:
    store = open_store()
    first = await publish(store, "first")
    second = await publish(store, "second", **refused_by("ndcg"))
    before = await spoil(store)
    surveyed = await survey(open_store())
    assert {release.ref for release in surveyed.releases} == {entry.ref for entry in before.releases}
    assert [release.damage for release in surveyed.releases] == [None] * 2
    written = await rebuild(store, surveyed, first)
    after = await open_store().catalogue()
    assert after == written
    assert (after.live_ref, after.find(second).state) == (before.find(first).ref, State.READY)
    assert after.find(second).refused_by == ("ndcg",)
    assert after.store_id != before.store_id
    assert follows(after, before)
    assert await published_rows(store, second) == rows("second")
    await life.activate(store, second, override=life.Override.REFUSAL)
    assert await life.rollback(store) == first


@on_every_rebuildable_store
async def test_release_that_services_refused_is_not_live_unless_forced(open_store: OpenStore) -> None:
    store = open_store()
    good = await publish(store, "good")
    bad = await publish(store, "bad")
    await life.rollback(store, reason="more errors than before")
    await spoil(store)
    surveyed = await survey(store)
    with pytest.raises(RefusedByGates, match="was refused by more errors than before; name another release"):
        await rebuild(store, surveyed, bad)
    await rebuild(store, surveyed, good)
    with pytest.raises(RefusedByGates, match="more errors than before"):
        await life.activate(store, bad)
    await life.activate(store, bad, override=life.Override.REFUSAL)
    await spoil(store)
    assert (await rebuild(store, await survey(store), bad)).live == bad


@on_every_rebuildable_store
async def test_writer_of_the_old_catalogue_is_fenced_and_its_draft_is_ignored(open_store: OpenStore) -> None:
    store = open_store()
    writer = open_store()
    live = await publish(store, "live")
    draft = await publication.begin(writer, ReleaseId("20991120T064200Z-aaaa"))
    await writer.create(draft, Plan(3, 1000))
    await writer.put(draft, rows("late"))
    before = await spoil(store)
    surveyed = await survey(store)
    assert (surveyed.only(), list(surveyed.others)) == (live, [draft.incarnation])
    written = await rebuild(store, surveyed, live)
    with pytest.raises(ReleaseConflict):
        await writer.swap(before, changes.succeed(before, before, "late", ""))
    with pytest.raises(ReleaseNotFound):
        await life.update_catalogue(writer, lambda seen: changes.renew(seen, draft))
    assert await store.catalogue() == written
    await writer.close()  # a file is not erased while its writer lives
    assert await life.prune(store, grace_s=0) == [f"unknown-{draft.incarnation}"]
    assert await published_rows(store, live) == rows("live")


async def half_lost(store: Store, whole: ReleaseId, incarnation: str, *lost: str) -> None:
    """Write the rows of a release once more, under the same id, as a store has them that lost some."""
    written = (await store.catalogue()).find(whole)
    draft = DraftRef(whole, incarnation, "writer")
    await store.create(draft, Plan(3, 1000))
    await store.put(draft, [row async for row in store.scan(written.ref) if row.key not in lost])
    await store.seal(draft)


@on_every_rebuildable_store
async def test_damaged_releases_are_named(open_store: OpenStore) -> None:
    store = open_store()
    [live, other] = [await publish(store, text) for text in ("live", "other")]
    await half_lost(store, live, "0" * 12, "user:2")  # as a repair leaves it: withdrawn, with its id
    await half_lost(store, live, "f" * 12, MANIFEST)
    await half_lost(store, other, "e" * 12, "popular:")
    before = await spoil(store)
    surveyed = await survey(store)
    assert {release.ref.incarnation: release.damage is None for release in surveyed.releases} == {
        before.find(live).incarnation: True,
        before.find(other).incarnation: True,
        "0" * 12: False,
        "e" * 12: False,
    }
    assert list(surveyed.others) == ["f" * 12]
    with pytest.raises(StoreMisused, match=r"holds 2 releases; say with --live ID "):
        surveyed.only()
    with pytest.raises(ReleaseNotFound, match="it holds "):
        await survey(store, ReleaseId("another"))
    written = await rebuild(store, surveyed, live)
    states = {entry.incarnation: entry.state for entry in written.releases}
    assert states == {
        before.find(live).incarnation: State.LIVE,
        before.find(other).incarnation: State.READY,
        "0" * 12: State.WITHDRAWN,
        "e" * 12: State.WITHDRAWN,
    }
    assert await store.catalogue() == written
    await verify(store, written.find(live).ref)


@on_every_rebuildable_store
async def test_damaged_release_goes_live_only_if_forced(open_store: OpenStore) -> None:
    store = open_store()
    live = await publish(store, "live")
    await half_lost(store, live, "e" * 12, "popular:")
    await store.erase(await ref_of(store, live), allow_erasure)
    await spoil(store)
    surveyed = await survey(store)
    assert surveyed.only() == live
    with pytest.raises(ReleaseCorrupt, match=r"rows are missing.*--force"):
        await rebuild(store, surveyed, live)
    with pytest.raises(CatalogueUnreadable):
        await store.catalogue()
    assert (await rebuild(store, surveyed, live, force=True)).live_ref == (live, "e" * 12)


async def test_lost_or_emptied_catalogue_is_rebuilt_and_a_newer_format_is_left_unchanged(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    with pytest.raises(ReleaseNotFound, match="holds no sealed release"):
        await survey(store)
    live = await publish(store, "live")
    catalogue = tmp_path / "store" / "catalogue.json"
    written = catalogue.read_bytes()
    catalogue.write_bytes(written.replace(b'"format": 2', b'"format": 9'))
    with pytest.raises(CatalogueUnreadable, match="upgrade hotplate"):
        await survey(store)
    catalogue.unlink()
    with pytest.raises(CatalogueUnreadable, match="hotplate store rebuild"):
        await erase_users(store, ["1"])
    assert (await rebuild(store, await survey(store), live)).live == live
    catalogue.write_bytes(b"")
    with pytest.raises(CatalogueUnreadable, match="hotplate store rebuild"):
        await store.catalogue()
    assert (await rebuild(store, await survey(store), live)).live == live
    assert await published_rows(store, live) == rows("live")
    assert (await erase_users(store, ["1"])).erased == ("1",)
    await store.close()


@on_every_rebuildable_store
async def test_unservable_release_goes_live_only_if_forced(open_store: OpenStore) -> None:
    store = open_store()
    empty = await publish_rows(store, [Row("popular:", b""), *rows("whole")[1:]], live=False)
    await spoil(store)
    surveyed = await survey(store)
    with pytest.raises(ReleaseCorrupt, match=r"empty popular list.*--force"):
        await rebuild(store, surveyed, empty)
    assert (await rebuild(store, surveyed, empty, force=True)).live == empty


@on_every_rebuildable_store
async def test_rows_of_erased_users_are_not_damage(open_store: OpenStore) -> None:
    store = open_store()
    live = await publish(store, "whole")
    await erase_users(store, ["1", "2"])
    await spoil(store)
    surveyed = await survey(store)
    assert [release.damage for release in surveyed.releases] == [None]
    assert (await rebuild(store, surveyed, live)).live == live
