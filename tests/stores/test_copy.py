"""Resuming and copying: nothing that was acknowledged is written again, and what arrives is what was sent."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import pytest

from stores import catalogue as changes
from stores import lifecycle as life
from stores.catalogue import GRACE_S, LEASE_S, DraftRef, ReleaseId, State
from stores.compression import compress
from stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreUnavailable
from stores.lifecycle import change, copy
from stores.lmdb_store import LmdbStore
from stores.manifest import Manifest, Tally, describe
from stores.memory import MemoryStore
from stores.store import Plan, Row, Store
from stores.verification import diff, sample, verify
from tests.support.clock import FakeClock
from tests.support.service import a_list
from tests.support.soak import scaled
from tests.support.stores import OpenStore, batches, draft_of, on_every_store, ref, scanned

ROWS = [
    *(Row(f"item:{n:04}", a_list("x", "y")) for n in range(100)),
    Row("popular:", a_list("p")),
    *(Row(f"user:{n:05}", a_list(str(n), str(n % 7))) for n in range(900)),
]
TOTAL = len(ROWS)


async def publish(store: Store, rows: Sequence[Row] = ROWS, *, live: bool = True) -> ReleaseId:
    return (
        (await life.publish(store, batches(rows, 100), plan=Plan(len(rows), 1000), about={"k": 1}, live=live)).manifest
    ).release


class Watched(MemoryStore):
    """Notes what is put, and becomes unavailable after so many calls."""

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


async def interrupted(clock: FakeClock, calls: int) -> Watched:
    """Return a store that failed after so many calls of a publish, and works again."""
    store = Watched(clock)
    store.calls_left = calls
    with pytest.raises(StoreUnavailable):
        await publish(store)
    store.calls_left = 1_000_000
    return store


@pytest.mark.parametrize("encoding", ["json", "zstd"])
@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4, 5, 10, 11])
async def test_a_publish_that_was_cut_off_resumes_and_rewrites_nothing(
    clock: FakeClock, calls: int, encoding: str
) -> None:
    store = Watched(clock)
    plan, about = Plan(TOTAL, 1000), {"k": 1}

    async def rows() -> AsyncIterator[Sequence[Row]]:
        if encoding == "json":
            return batches(ROWS, 100)
        return (await compress(batches(ROWS, 100), plan)).batches

    store.calls_left = calls
    with pytest.raises(StoreUnavailable):
        await life.publish(store, await rows(), plan=plan, about=about, encoding=encoding)
    store.calls_left = 1_000_000
    draft, acknowledged = await draft_in(store), set(store.puts)
    store.puts.clear()
    written = await life.publish(store, resume=draft, batches=await rows(), plan=plan, about=about, encoding=encoding)
    rewritten = acknowledged & set(store.puts)
    assert not rewritten - ({"meta:dictionary"} if len(acknowledged) == 1 else set())
    assert written.rows == len([key for key in store.puts if key != "meta:manifest"])
    assert written.rows + written.skipped == TOTAL + (encoding == "zstd")
    assert written.skipped == len(acknowledged) - len(rewritten)
    assert (await store.catalogue()).live == draft
    await verify(store, ref(draft))


@on_every_store
@pytest.mark.parametrize("after", [0, 2, 7])
async def test_every_store_resumes_after_what_it_acknowledged(open_store: OpenStore, after: int) -> None:
    async def cut_off() -> AsyncIterator[Sequence[Row]]:
        yield [Row("meta:dictionary", b"early")]
        async for batch in batches(ROWS[: after * 100], 100):
            yield batch
        raise StoreUnavailable("the network went away")

    async def whole() -> AsyncIterator[Sequence[Row]]:
        yield [Row("meta:dictionary", b"early")]
        async for batch in batches(ROWS, 70):
            yield batch

    dying, store = open_store(), open_store()
    with pytest.raises(StoreUnavailable):
        await life.publish(dying, cut_off(), plan=Plan(TOTAL, 1000), about={})
    await dying.close()
    draft = await draft_in(store)
    written = await life.publish(store, resume=draft, batches=whole(), plan=Plan(TOTAL, 1000), about={})
    assert written.skipped == (after * 100 + 1 if after else 0)
    assert written.rows == TOTAL + 1 - written.skipped
    assert (await scanned(store, draft))[-1] == ROWS[-1]
    assert (await store.catalogue()).live == draft


@on_every_store
@pytest.mark.parametrize("step", ["stores.lifecycle.verify", "stores.catalogue.commit"])
async def test_a_publisher_that_died_after_its_last_row_is_finished_without_a_row(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: object) -> None:
        raise StoreUnavailable("the store went away")

    dying = open_store()
    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(StoreUnavailable):
            await publish(dying)
    await dying.close()
    store = open_store()
    draft = await draft_in(store)
    written = await life.publish(store, resume=draft, batches=batches(ROWS, 100), plan=Plan(TOTAL, 1000), about={})
    assert (written.rows, written.skipped) == (0, TOTAL)
    assert (await store.catalogue()).live == draft
    assert len(await scanned(store, draft)) == TOTAL + 1


async def test_resuming_with_other_rows_commits_nothing(clock: FakeClock) -> None:
    store = await interrupted(clock, 5)
    other = [Row(key, a_list("z")) for key, _ in ROWS]
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await life.publish(
            store, resume=await draft_in(store), batches=batches(other, 100), plan=Plan(TOTAL, 1000), about={}
        )
    assert (await store.catalogue()).releases == ()


async def test_only_a_draft_can_be_resumed(clock: FakeClock) -> None:
    store = Watched(clock)
    live = await publish(store)
    with pytest.raises(ReleaseConflict, match="no draft any more"):
        await life.publish(store, resume=live, batches=batches(ROWS, 100), plan=Plan(1, 1), about={})
    with pytest.raises(ReleaseNotFound):
        await life.publish(store, resume=ReleaseId("nothing"), batches=batches(ROWS, 100), plan=Plan(1, 1), about={})
    assert (await store.catalogue()).live == live


async def test_a_draft_is_resumed_after_its_lease_until_it_is_dropped(clock: FakeClock) -> None:
    store = await interrupted(clock, 5)
    clock.now += LEASE_S + 1
    draft = await draft_in(store)
    await life.take_over(store, draft)
    assert await life.prune(store) == []
    clock.now += LEASE_S + 1
    assert await life.prune(store) == [draft]
    with pytest.raises(ReleaseNotFound):
        await life.publish(store, resume=draft, batches=batches(ROWS, 100), plan=Plan(1, 1), about={})


@on_every_store
@pytest.mark.parametrize("encoding", ["json", "zstd"])
@pytest.mark.parametrize("outward", [True, False])
async def test_a_copy_is_the_same_release_row_for_row(
    open_store: OpenStore, clock: FakeClock, *, outward: bool, encoding: str
) -> None:
    here, there = Watched(clock), open_store()
    source, target = (here, there) if outward else (there, here)
    rows = batches(ROWS, 100)
    if encoding == "zstd":
        made = (await compress(rows, Plan(1, 1))).batches
        release = ((await life.publish(source, made, plan=Plan(1, 1), about={}, encoding="zstd")).manifest).release
    else:
        release = await publish(source)
    progress = list[tuple[int, int]]()
    written = await copy(source, target, release, on_progress=lambda done, total: progress.append((done, total)))
    total = sum(written.manifest.counts.values())
    assert (written.rows, written.skipped, progress[-1]) == (total, 0, (total, total))
    assert await scanned(target, release) == await scanned(source, release)
    assert (await target.catalogue()).live == release
    assert await verify(target, ref(release)) == await verify(source, ref(release))
    again = await copy(source, target, release)
    assert (again.rows, again.skipped) == (0, total)


async def test_a_copy_without_activation_is_ready(clock: FakeClock) -> None:
    source, target = MemoryStore(clock), MemoryStore(clock)
    release = await publish(source)
    await copy(source, target, release, live=False)
    assert (await target.catalogue()).find(release).state is State.READY


async def test_what_cannot_be_copied_is_refused_with_a_sentence(clock: FakeClock) -> None:
    source, target = MemoryStore(clock), MemoryStore(clock)
    with pytest.raises(ReleaseNotFound):
        await copy(source, target, ReleaseId("nothing"))
    await life.begin(source, ReleaseId("draft"))
    with pytest.raises(ReleaseConflict, match="still being written"):
        await copy(source, target, ReleaseId("draft"))
    release = await publish(source)
    impostor = ROWS[:-1]
    impostor_draft = await life.begin(target, release)

    async def finish(tally: Tally) -> Manifest:
        return describe(release, tally, created_at=0, encoding="json", about={})

    await life.write(target, impostor_draft, batches(impostor, 100), plan=Plan(1, 1), finish=finish)
    with pytest.raises(ReleaseConflict, match="another release"):
        await copy(source, target, release)
    damaged = await publish(source)
    source._find(ref(damaged)).rows["user:00001"] = b"damaged"
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await copy(source, target, damaged)
    assert [entry.id for entry in (await target.catalogue()).releases] == [release]


async def test_what_is_being_erased_in_the_target_is_not_copied_before_it_is_gone(clock: FakeClock) -> None:
    source, target = MemoryStore(clock), MemoryStore(clock)
    release = await publish(source)
    await copy(source, target, release)
    await publish(target)
    clock.now += 2 * GRACE_S
    await change(target, lambda found: changes.prune(found, 0))
    with pytest.raises(ReleaseConflict, match="being erased"):
        await copy(source, target, release)
    await life.prune(target, keep=0)
    assert (await copy(source, target, release)).skipped == 0


COPIER = """
import asyncio, sys
from pathlib import Path
from stores.catalogue import ReleaseId
from stores.lmdb_store import LmdbStore
from stores.lifecycle import copy

async def main():
    source, target = (LmdbStore(Path(folder)) for folder in sys.argv[1:3])
    await copy(source, target, ReleaseId(sys.argv[3]), on_progress=lambda done, total: print(done, flush=True))

asyncio.run(main())
"""


async def test_a_copy_that_is_killed_half_way_resumes_and_rewrites_nothing(tmp_path: Path) -> None:
    await kill_copiers(tmp_path, users=20_000, kills=(3_000,))


@pytest.mark.soak
async def test_a_copy_that_is_killed_again_and_again_resumes_and_rewrites_nothing(tmp_path: Path) -> None:
    kills = scaled(12, least=3)
    await kill_copiers(tmp_path, users=20_000 * kills, kills=[3_000 + 20_000 * n for n in range(kills)])


async def kill_copiers(tmp_path: Path, users: int, kills: Sequence[int]) -> None:
    """Kill a copier after so many rows each time, and copy the rest."""
    rows = [Row("popular:", a_list("p")), *(Row(f"user:{n:06}", a_list(str(n), "b")) for n in range(users))]
    source = LmdbStore(tmp_path / "source")
    release = await publish(source, rows)
    target = CountingStore(tmp_path / "target")
    for done in kills:
        copier = subprocess.Popen(  # noqa: ASYNC220 -- nothing else waits while a test starts a process
            [sys.executable, "-c", COPIER, str(source.folder), str(target.folder), release],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert copier.stdout is not None
        reported = 0
        for line in copier.stdout:
            reported = int(line)
            if reported >= done:
                break
        copier.send_signal(signal.SIGKILL)
        copier.communicate()
        assert (await target.catalogue()).find(release).state is State.DRAFT
    point = await target.resume_point(draft_of(release))
    assert point is not None
    written = await copy(source, target, release)
    assert [key for key in target.put_keys if key <= point] == ["meta:manifest"]
    assert reported <= written.skipped < written.skipped + written.rows == len(rows)
    assert await verify(target, ref(release)) == await verify(source, ref(release))
    await source.close()
    await target.close()


class CountingStore(LmdbStore):
    """Notes the keys that are put."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.put_keys = list[str]()

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await super().put(draft, rows, part)
        self.put_keys += [row.key for row in rows]


def users(lists: dict[str, Iterable[str]]) -> list[Row]:
    return [Row("popular:", a_list("p")), *(Row(f"user:{user}", a_list(*lists[user])) for user in sorted(lists))]


async def test_a_difference_is_counted_user_by_user(store: Store) -> None:
    first = await publish(store, users({"a": "123", "b": "12", "c": "1", "d": "12"}))
    second = await publish(store, users({"b": "12", "c": "2", "d": "21", "e": "9", "é": "8"}))
    found = await diff(store, ref(first), ref(second))
    assert (found.compared, found.only_first, found.only_second, found.unchanged) == (3, 1, 2, 1)
    assert found.overlap == pytest.approx((1 + 0 + 1) / 3)
    assert found.popular_share == ({10: 1.0, 100: 1.0}, {10: 1.0, 100: 1.0})
    same = await diff(store, ref(second), ref(second))
    assert (same.overlap, same.unchanged, same.only_first, same.only_second) == (1.0, 5, 0, 0)


async def test_only_what_is_served_is_compared_and_few_items_for_many_are_seen(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    wide = [[str(n) for n in range(start, start + 10)] + ["tail"] for start in range(0, 200, 10)]
    first = await publish(store, users({f"{n:02}": ids for n, ids in enumerate(wide)}))
    second = await publish(store, users({f"{n:02}": [*wide[0][:10], "other"] for n in range(20)}))
    found = await diff(store, ref(first), ref(second))
    assert found.overlap == pytest.approx(1 / 20)
    assert found.popular_share == ({10: 0.05, 100: 0.5}, {10: 1.0, 100: 1.0})


async def test_no_users_in_common_is_no_overlap_and_encodings_may_differ(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    first = await publish(store, users({"a": "1"}))
    made = (await compress(batches(users({"b": "1"}), 100), Plan(1, 1))).batches
    second = ((await life.publish(store, made, plan=Plan(1, 1), about={}, encoding="zstd")).manifest).release
    found = await diff(store, ref(first), ref(second))
    assert (found.overlap, found.compared, found.only_first, found.only_second) == (None, 0, 1, 1)


async def test_a_sample_reads_random_users_and_finds_what_is_no_list(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    release = await publish(store)
    found = await sample(store, ref(release), 50, seed=1)
    assert (found.users, found.popular) == (50, 1)
    assert (await sample(store, ref(release), 10_000)).users == 900
    stored = store._find(ref(release)).rows
    for damaged in (b"{", b'{"no":"id"}', b"7"):
        stored["user:00007"] = damaged
        with pytest.raises(ReleaseCorrupt, match="'user:00007' is no list"):
            await sample(store, ref(release), 10_000)
