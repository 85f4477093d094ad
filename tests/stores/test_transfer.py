"""Resuming and copying: acknowledged rows are not written again, and copies equal their source."""

import asyncio
from collections.abc import Sequence

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import DraftRef, ReleaseId, State
from hotplate.stores.errors import (
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    ReleaseWithdrawn,
    StoreUnavailable,
)
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import (
    OpenStore,
    batches,
    lapse,
    on_every_store,
    published_rows,
    published_values,
    record_of,
    ref_of,
)
from tests.support.stores import publish as publish_rows

ROWS = [
    *(Row(f"item:{n:04}", a_list("x", "y")) for n in range(30)),
    Row("popular:", a_list("p")),
    *(Row(f"user:{n:05}", a_list(str(n), str(n % 7))) for n in range(270)),
]
TOTAL = len(ROWS)


async def publish(store: Store, rows: Sequence[Row] = ROWS, *, live: bool = True, encoding: str = "json") -> ReleaseId:
    return await publish_rows(store, rows, 30, about={"k": 1}, live=live, encoding=encoding)


class Watched(MemoryStore):
    """Records puts, and becomes unavailable after this many calls."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.puts = list[str]()
        self.calls_left = 1_000_000

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if self.calls_left == 0:
            raise StoreUnavailable("the store went away")
        self.calls_left -= 1
        await super().put(draft, rows, part)
        self.puts += [row.key for row in rows]


async def draft_in(store: Store) -> ReleaseId:
    (draft,) = [entry.id for entry in (await store.catalogue()).releases if entry.state is State.DRAFT]
    return draft


async def interrupted(clock: FakeClock, calls: int, encoding: str = "json") -> Watched:
    """Return a store that failed after this many calls of a publish with a lapsed lease, and works again."""
    store = Watched(clock)
    store.calls_left = calls
    with pytest.raises(StoreUnavailable):
        await publish(store, encoding=encoding)
    store.calls_left = 1_000_000
    await lapse(store)
    return store


async def resume(
    store: Store, draft: ReleaseId, rows: Sequence[Row] = ROWS, encoding: str = "json"
) -> publication.WrittenRelease:
    plan = Plan(len(rows), 1000)
    return await publication.publish_release(
        store,
        batches(rows, 30),
        plan=plan,
        about=record_of({"k": 1}),
        encoding=encoding,
        draft=await publication.take_over(store, draft),
    )


@pytest.mark.parametrize("encoding", ["json", "zstd"])
@pytest.mark.parametrize("calls", [0, 1, 2, 5, 11])
async def test_interrupted_publish_resumes_without_rewriting(clock: FakeClock, calls: int, encoding: str) -> None:
    store = await interrupted(clock, calls, encoding)
    draft = await draft_in(store)
    acknowledged = set(store.puts)
    store.puts.clear()
    written = await resume(store, draft, encoding=encoding)
    rewritten = acknowledged & set(store.puts)
    assert rewritten <= {"meta:dictionary"}
    assert written.rows == len([key for key in store.puts if key != "meta:manifest"])
    assert written.rows + written.skipped == TOTAL + (encoding == "zstd")
    assert written.skipped == len(acknowledged) - len(rewritten)
    assert (await store.catalogue()).live == draft
    await verify(store, await ref_of(store, draft))


@on_every_store
@pytest.mark.parametrize("step", ["hotplate.stores.publication.verify", "hotplate.stores.transitions.commit"])
async def test_publish_killed_after_its_last_row_resumes_without_rows(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store went away")

    dying = open_store()
    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(StoreUnavailable):
            await publish(dying)
    await dying.close()
    store = open_store()
    draft = await draft_in(store)
    other = [Row(key, a_list("z")) for key, _ in ROWS]
    for wrong in (other, ROWS[:-1], [*ROWS, Row("user:new", a_list("z"))]):
        with pytest.raises(ReleaseConflict, match="other lists"):
            await resume(store, draft, wrong)
    written = await resume(store, draft)
    assert (written.rows, written.skipped) == (0, TOTAL)
    assert (await store.catalogue()).live == draft
    assert await published_rows(store, draft) == ROWS


async def test_resuming_with_other_rows_commits_nothing(clock: FakeClock) -> None:
    store = await interrupted(clock, 5)
    other = [Row(key, a_list("z")) for key, _ in ROWS]
    with pytest.raises(ReleaseConflict, match=r"was begun with other lists than these.*publish them as a new release"):
        await resume(store, await draft_in(store), other)
    assert (await store.catalogue()).releases == ()


async def test_resuming_after_an_erasure_names_it_and_commits_nothing(clock: FakeClock) -> None:
    store = await interrupted(clock, 5)
    await erase_users(store, ["00000"])
    with pytest.raises(ReleaseConflict, match=r"before a user was erased.*publish them as a new release"):
        await resume(store, await draft_in(store))


async def test_only_a_draft_can_be_resumed(clock: FakeClock) -> None:
    store = Watched(clock)
    live = await publish(store)
    with pytest.raises(ReleaseConflict, match="not a draft any more"):
        await resume(store, live)
    with pytest.raises(ReleaseNotFound):
        await resume(store, ReleaseId("nothing"))
    assert (await store.catalogue()).live == live


@on_every_store
@pytest.mark.parametrize("outward", [True, False])
async def test_a_copy_is_the_same_release_row_for_row(
    open_store: OpenStore, clock: FakeClock, *, outward: bool
) -> None:
    stores = [Watched(clock), open_store()]
    source, target = stores if outward else reversed(stores)
    release = await publish(source, encoding="zstd")
    progress = list[tuple[int, int]]()
    written = await copy(source, target, release, on_progress=lambda done, total: progress.append((done, total)))
    total = sum(written.manifest.counts.values())
    assert (written.rows, written.skipped, progress[-1]) == (total, 0, (total, total))
    assert await published_values(target, release) == await published_values(source, release)
    assert (await target.catalogue()).live == release
    there = await ref_of(target, release)
    here = await ref_of(source, release)
    assert there.incarnation != here.incarnation
    assert await verify(target, there) == await verify(source, here)
    again = await copy(source, target, release)
    assert (again.rows, again.skipped) == (0, total)


async def test_impossible_copy_is_refused_with_a_message(clock: FakeClock) -> None:
    source = MemoryStore(clock)
    target = MemoryStore(clock)
    with pytest.raises(ReleaseNotFound):
        await copy(source, target, ReleaseId("nothing"))
    await publication.begin(source, ReleaseId("draft"))
    with pytest.raises(ReleaseConflict, match="still being written"):
        await copy(source, target, ReleaseId("draft"))
    damaged = await publish(source)
    source.find(await ref_of(source, damaged)).rows["user:00001"] = b"damaged"
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await copy(source, target, damaged)
    assert (await target.catalogue()).releases == ()


async def test_interrupted_copy_cannot_resume_with_other_lists(clock: FakeClock) -> None:
    source = MemoryStore(clock)
    target = Watched(clock)
    live = await publish(source)
    target.calls_left = 0
    with pytest.raises(StoreUnavailable, match="give the same command again"):
        await copy(source, target, live)
    target.calls_left = 1_000_000
    with pytest.raises(ReleaseConflict, match="is a copy that was cut off"):
        await resume(target, live, ROWS[:3])
    assert (await copy(source, target, live)).rows == TOTAL


async def test_copy_continued_after_an_erasure_asks_to_begin_again(clock: FakeClock) -> None:
    source = MemoryStore(clock)
    target = Watched(clock)
    live = await publish(source)
    target.calls_left = 1
    with pytest.raises(StoreUnavailable, match="give the same command again"):
        await copy(source, target, live)
    target.calls_left = 1_000_000
    await erase_users(source, ["00000"])
    with pytest.raises(ReleaseConflict, match=r"before a user was erased.*give the same command again"):
        await copy(source, target, live)
    assert (await copy(source, target, live)).rows == TOTAL - 1
    await verify(target, await ref_of(target, live))


@on_every_store
async def test_one_of_concurrent_copies_into_an_empty_store_writes_and_others_wait(
    open_store: OpenStore, clock: FakeClock
) -> None:
    source = MemoryStore(clock)
    release = await publish(source)
    ends = await asyncio.gather(*(copy(source, open_store(), release) for _ in range(3)))
    assert sorted(end.rows for end in ends) == [0, 0, TOTAL]
    catalogue = await open_store().catalogue()
    assert [(entry.id, entry.state) for entry in catalogue.releases] == [(release, State.LIVE)]
    assert await open_store().incarnations() == [catalogue.releases[0].incarnation]
    assert await published_rows(open_store(), release) == ROWS


@pytest.mark.parametrize("is_pruned", [False, True])
@on_every_store
async def test_copy_does_not_undo_a_rollback_in_the_target(
    open_store: OpenStore, clock: FakeClock, *, is_pruned: bool
) -> None:
    """A scheduled copy made the release live again, which its operator had rolled back."""
    source = MemoryStore(clock)
    target = open_store()
    good = await publish(source)
    await copy(source, target, good)
    bad = await publish(source)
    await copy(source, target, bad)
    assert await life.rollback(target, reason="probation: lists are missing" if is_pruned else "") == good
    if is_pruned:
        await life.prune(target, keep=0, grace_s=0)
        assert (await target.catalogue()).get(bad) is None
    for _ in range(2):
        copied = await copy(source, target, bad)
        assert isinstance(copied.held_back, ReleaseWithdrawn)
        assert copied.rows == 0
        assert (await target.catalogue()).live == good
    await copy(source, target, bad, live=False)
    assert isinstance((await copy(source, target, bad)).held_back, ReleaseWithdrawn)

    await life.activate(target, bad, override=life.Override.REFUSAL)
    assert (await copy(source, target, bad)).held_back is None
    newer = await publish(source)
    await copy(source, target, newer)
    await life.rollback(source)
    await copy(source, target, bad)  # it was superseded in the target, not withdrawn
    assert (await target.catalogue()).live == bad


async def test_copy_of_a_live_release_is_not_held_back_by_an_older_entry_of_the_log(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that is made by a second swap, after one that failed, has no entry."""
    source = MemoryStore(clock)
    target = MemoryStore(clock)
    for _ in range(2):
        release = await publish(source)
        await copy(source, target, release)
    await life.rollback(target)

    async def fail(*_: object) -> None:
        monkeypatch.undo()
        raise StoreUnavailable("the connection was reset")

    monkeypatch.setattr(target, "swap", fail)
    await life.activate(target, release)
    assert (await copy(source, target, release)).held_back is None
    assert (await target.catalogue()).live == release
