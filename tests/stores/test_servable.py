"""No verb makes an unreadable release live, or, unless forced, one that gates refused."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from hotplate.serve.releases.follower import Follower
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId, ReleaseRef, State
from hotplate.stores.errors import RefusedByGates, ReleaseCorrupt, StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import ReadResult, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.verification import load_manifest
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list, refused_by
from tests.support.stores import OpenStore, on_every_store, publish, ref_of
from tests.support.virtual import virtual

ROWS = [
    Row("popular:", a_list("p")),
    Row("popular:s", a_list("s")),
    *(Row(f"user:{n:04}", a_list(str(n))) for n in range(300)),
]

Verb = Callable[..., Awaitable[object]]


verbs = pytest.mark.parametrize(
    "verb",
    [
        pytest.param(life.activate, id="activate"),
        pytest.param(lambda store, _, **options: life.rollback(store, **options), id="roll back"),
        pytest.param(partial(life.start_canary, percent=5), id="show"),
    ],
)


async def two_releases(store: Store) -> tuple[ReleaseId, ReleaseId]:
    """Publish one release and make another live after it; return the former and the live one."""
    return await publish(store, ROWS), await publish(store, ROWS)


def flip_the_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[24] ^= 0xFF
    path.write_bytes(content)


@verbs
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), id="cut"),
        pytest.param(flip_the_head, id="damaged head"),
        pytest.param(Path.unlink, id="removed"),
    ],
)
async def test_unreadable_file_is_not_made_live_and_later_workers_still_serve(
    tmp_path: Path, verb: Verb, spoil: Callable[[Path], None]
) -> None:
    store = LmdbStore(tmp_path)
    target, live = await two_releases(store)
    path = tmp_path / "releases" / f"{(await ref_of(store, target)).incarnation}.mdb"
    await store.close()
    spoil(path)
    store = LmdbStore(tmp_path)
    before = await store.catalogue()
    with pytest.raises(ReleaseCorrupt, match=r"cannot be served, and nothing was changed: .*--force would serve it"):
        await verb(store, target)
    assert await store.catalogue() == before
    await store.close()
    later = LmdbStore(tmp_path)
    follower = Follower(later)
    await follower.refresh()
    assert follower.live is not None
    assert follower.live.id == live
    await later.close()


@verbs
@pytest.mark.parametrize("lost", ["meta:manifest", "popular:", "user:"])
async def test_release_without_manifest_popular_list_or_most_rows_must_be_forced(verb: Verb, lost: str) -> None:
    store = MemoryStore()
    target, live = await two_releases(store)
    rows = store.find(await ref_of(store, target)).rows
    for key in list(rows):
        if key == lost or (key.startswith(lost) and not key.endswith(("1", "2", "3"))):
            del rows[key]
    with pytest.raises(ReleaseCorrupt, match="cannot be served"):
        await verb(store, target)
    assert ((await store.catalogue()).live, (await store.catalogue()).canary) == (live, None)
    await verb(store, target, override=life.Override.DAMAGE)
    catalogue = await store.catalogue()
    assert target in (catalogue.live, catalogue.canary and catalogue.canary.release)


@verbs
@pytest.mark.parametrize("is_lost", [False, True])
async def test_one_bad_sample_row_is_reported_and_release_goes_live(
    caplog: pytest.LogCaptureFixture, verb: Verb, *, is_lost: bool
) -> None:
    store = MemoryStore()
    target, _ = await two_releases(store)
    ref = await ref_of(store, target)
    key = (await load_manifest(store, ref)).sample[0]
    rows = store.find(ref).rows
    rows[key] = rows[key][:-1] + b"~"
    if is_lost:
        del rows[key]
    with caplog.at_level(logging.WARNING):
        await verb(store, target)
    assert f"release {target} can be served, but is damaged: 1 of" in caplog.text
    catalogue = await store.catalogue()
    assert target in (catalogue.live, catalogue.canary and catalogue.canary.release)


@virtual
async def test_unresponsive_store_is_awaited_30_seconds_without_changes() -> None:
    class Slow(MemoryStore):
        async def get_many(
            self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
        ) -> list[ReadResult]:
            await asyncio.sleep(1e6)
            return await super().get_many(release, keys, timeout_s=timeout_s)

    store = MemoryStore()
    target, live = await two_releases(store)
    store.__class__ = Slow
    with pytest.raises(StoreUnavailable, match="could not be read within 30 s"):
        await life.activate(store, target)
    assert (await store.catalogue()).live == live


GATES = ("ndcg", "overlap@10")


async def publish_refused(store: Store) -> ReleaseId:
    return await publish(store, about=refused_by(*GATES), live=False)


@on_every_store
async def test_refused_release_is_marked_and_each_verb_needs_force(open_store: OpenStore) -> None:
    store = open_store()
    good = await publish(store)
    bad = await publish_refused(store)
    catalogue = await open_store().catalogue()
    assert (catalogue.find(bad).state, catalogue.find(bad).refused_by, catalogue.find(good).refused_by) == (
        State.READY,
        GATES,
        (),
    )
    for verb in (life.activate(store, bad), life.start_canary(store, bad, 5)):
        with pytest.raises(RefusedByGates, match=r"refused by ndcg, overlap@10 when it was published.*--force"):
            await verb
    assert await store.catalogue() == catalogue
    await life.start_canary(store, bad, 5, override=life.Override.REFUSAL)
    with pytest.raises(RefusedByGates):
        await life.promote(store)
    assert await life.promote(store, override=life.Override.REFUSAL) == bad
    assert (await open_store().catalogue()).find(bad).refused_by == ()


@on_every_store
async def test_withdrawn_release_keeps_the_reason_and_goes_live_only_if_forced(
    open_store: OpenStore, clock: FakeClock
) -> None:
    store = open_store()
    good = await publish(store)
    bad = await publish(store)
    assert await life.rollback(store, bad, reason="probation: lists are missing") == good
    entry = (await open_store().catalogue()).find(bad)
    assert (entry.state, entry.refused_by) == (State.WITHDRAWN, ("probation: lists are missing",))
    source = MemoryStore(clock)
    await copy(store, source, bad)
    assert (await source.catalogue()).live == bad
    copied = await copy(source, store, bad)
    assert isinstance(copied.held_back, RefusedByGates)
    with pytest.raises(RefusedByGates, match="refused by probation: lists are missing, so it stays withdrawn"):
        await life.activate(store, bad)
    assert (await store.catalogue()).live == good
    await life.activate(store, bad, override=life.Override.DAMAGE)
    assert (await open_store().catalogue()).find(bad).refused_by == ()


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize(
    ("verb", "has_experiment"),
    [
        pytest.param(life.activate, False, id="activate"),
        pytest.param(partial(life.activate, arm="B"), True, id="activate arm B"),
        pytest.param(partial(life.start_canary, percent=5), False, id="start canary"),
    ],
)
async def test_release_withdrawn_while_it_is_prepared_is_not_served_again(
    monkeypatch: pytest.MonkeyPatch, verb: Verb, *, has_experiment: bool, is_forced: bool
) -> None:
    store = MemoryStore()
    good = await publish(store)
    if has_experiment:
        await life.start_canary(store, await publish(store, live=False), percent=50, days=14)
    bad = await publish(store, live=False)
    prepare = store.prepare

    async def withdraw_and_prepare(release: ReleaseRef) -> None:
        monkeypatch.setattr(store, "prepare", prepare)
        await life.activate(store, release.id)
        await life.rollback(store, release.id, reason="probation: lists are missing")
        await prepare(release)

    monkeypatch.setattr(store, "prepare", withdraw_and_prepare)
    with pytest.raises(RefusedByGates, match="refused by probation: lists are missing, so it stays withdrawn"):
        await verb(store, bad, override=life.Override.REFUSAL if is_forced else life.Override.NOTHING)
    catalogue = await store.catalogue()
    assert (catalogue.live, catalogue.find(bad).state) == (good, State.WITHDRAWN)
    assert bad not in [release.id for release in catalogue.served]
    await verb(store, bad, override=life.Override.REFUSAL)  # the refusal is known now
    assert bad in [release.id for release in (await store.catalogue()).served]


async def test_rollback_to_a_forced_release_is_not_refused(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    await publish(store)
    bad = await publish_refused(store)
    assert await life.activate(store, bad, override=life.Override.REFUSAL)
    await publish(store)
    assert await life.rollback(store) == bad


@on_every_store
async def test_copy_of_a_refused_release_stays_ready_until_forced_in_the_source(
    open_store: OpenStore, clock: FakeClock
) -> None:
    source = MemoryStore(clock)
    target = open_store()
    good = await publish(source)
    bad = await publish_refused(source)
    await copy(source, target, good)
    held = await copy(source, target, bad)
    assert isinstance(held.held_back, RefusedByGates)
    assert "--force of activate, canary and promote" in str(held.held_back)
    catalogue = await open_store().catalogue()
    assert (catalogue.live, catalogue.find(bad).refused_by) == (good, GATES)
    await life.activate(source, bad, override=life.Override.REFUSAL)
    assert (await copy(source, target, bad)).held_back is None
    assert (await open_store().catalogue()).live == bad
