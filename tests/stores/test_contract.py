"""The contract that every store keeps; a new backend joins by a parameter of the `open_store` fixture."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace

import pytest

from stores import catalogue as changes
from stores.catalogue import Catalogue, ReleaseId
from stores.errors import ReleaseConflict, ReleaseNotFound, StoreError
from stores.store import LocalReader, Plan, Row, Store
from tests.support.stores import OpenStore, draft_of, ref

FIRST, SECOND = ReleaseId("20261120T064200Z-aaaa"), ReleaseId("20261120T064300Z-bbbb")
ROWS = [
    Row("item:a/b", b'{"id":"x","score":1}'),
    Row("popular:", b'{"id":"p","score":3}'),
    Row("user:", b"never asked for, but a key"),
    Row("user:%FF", b"percent"),
    Row("user:1", b"one"),
    Row("user:2", b""),
    Row("user:é", b"\x00\xff binary \n"),
    Row("user:😀", b"emoji"),
    Row("user:" + "😀" * 64, b"x" * 20_000),
]


async def write(store: Store, release: ReleaseId, rows: Sequence[Row], *, seal: bool = True) -> None:
    await store.create(draft_of(release), Plan(len(rows), 1000))
    await store.put(draft_of(release), rows)
    if seal:
        await store.seal(draft_of(release))


async def step(store: Store, change: changes.Catalogue) -> Catalogue:
    old = await store.catalogue()
    new = changes.succeed(old, change, token=secrets.token_hex(8), store_id="here")
    await store.swap(old, new)
    return new


async def begin(store: Store, release: ReleaseId) -> Catalogue:
    return await step(store, changes.begin(await store.catalogue(), release))


async def scanned(store: Store, release: ReleaseId) -> list[Row]:
    return [row async for row in store.scan(ref(release))]


async def test_a_new_store_has_an_empty_catalogue_and_tells_the_time(store: Store) -> None:
    found = await store.catalogue()
    assert (found.generation, found.live, found.releases) == (0, None, ())
    assert found.now > 0


async def test_what_was_put_is_read_in_order_by_another_process(open_store: OpenStore) -> None:
    await write(open_store(), FIRST, ROWS)
    reader = open_store()
    keys = [row.key for row in reversed(ROWS)]
    assert await reader.get_many(ref(FIRST), [*keys, "user:absent", keys[0]]) == [
        *(row.value for row in reversed(ROWS)),
        None,
        ROWS[-1].value,
    ]
    assert await reader.get_many(ref(FIRST), []) == []


async def test_a_local_reader_gets_one_key_at_once(store: Store) -> None:
    await write(store, FIRST, ROWS)
    if not isinstance(store, LocalReader):
        pytest.skip("this store is not in this process")
    assert [store.get(ref(FIRST), row.key) for row in ROWS] == [row.value for row in ROWS]
    assert store.get(ref(FIRST), "user:absent") is None
    with pytest.raises(ReleaseNotFound):
        store.get(ref(SECOND), "user:1")


async def test_releases_do_not_see_each_other(store: Store) -> None:
    await write(store, FIRST, [Row("user:1", b"old")])
    await write(store, SECOND, [Row("user:1", b"new"), Row("user:2", b"new")])
    assert await store.get_many(ref(FIRST), ["user:1", "user:2"]) == [b"old", None]
    assert await store.get_many(ref(SECOND), ["user:1", "user:2"]) == [b"new", b"new"]


async def test_scan_yields_every_row_in_ascending_order_of_key_bytes(store: Store) -> None:
    meta = Row("meta:manifest", b"{}")
    await store.create(draft_of(FIRST), Plan(len(ROWS), 1000))
    for start in range(0, len(ROWS), 2):
        await store.put(draft_of(FIRST), ROWS[start : start + 2])
    await store.put(draft_of(FIRST), [meta])
    await store.seal(draft_of(FIRST))
    assert await scanned(store, FIRST) == sorted([*ROWS, meta], key=lambda row: row.key.encode())


async def test_put_again_changes_nothing_and_put_out_of_order_loses_nothing(store: Store) -> None:
    await store.create(draft_of(FIRST), Plan(len(ROWS), 1000))
    await store.put(draft_of(FIRST), ROWS[4:])
    await store.put(draft_of(FIRST), ROWS[4:])
    await store.put(draft_of(FIRST), ROWS[:6])
    await store.put(draft_of(FIRST), [Row("user:1", b"later"), Row("user:0", b"unsorted")])
    await store.put(draft_of(FIRST), [])
    await store.seal(draft_of(FIRST))
    expected = {row.key: row.value for row in ROWS} | {"user:1": b"later", "user:0": b"unsorted"}
    assert {row.key: row.value for row in await scanned(store, FIRST)} == expected


async def test_a_killed_writer_can_be_continued_from_the_resume_point(open_store: OpenStore) -> None:
    first = open_store()
    await first.create(draft_of(FIRST), Plan(len(ROWS), 1000))
    assert await first.resume_point(draft_of(FIRST)) is None
    await first.put(draft_of(FIRST), [Row("meta:dictionary", b"early")])
    assert await first.resume_point(draft_of(FIRST)) is None
    await first.put(draft_of(FIRST), ROWS[:5])
    await first.put(draft_of(FIRST), [Row("meta:dictionary", b"again")])
    await first.close()
    second = open_store()
    assert await second.resume_point(draft_of(FIRST)) == ROWS[4].key
    await second.create(draft_of(FIRST), Plan(len(ROWS), 1000))
    await second.put(draft_of(FIRST), ROWS[5:])
    await second.seal(draft_of(FIRST))
    assert len(await scanned(second, FIRST)) == len(ROWS) + 1


async def test_a_sealed_release_takes_no_more_rows(open_store: OpenStore) -> None:
    store = open_store()
    await write(store, FIRST, ROWS)
    await store.seal(draft_of(FIRST))
    for handle in (store, open_store()):
        with pytest.raises(ReleaseConflict):
            await handle.put(draft_of(FIRST), [Row("user:late", b"x")])
    assert await scanned(store, FIRST) == ROWS


async def test_what_was_never_created_is_not_found(store: Store) -> None:
    with pytest.raises(ReleaseNotFound):
        await store.get_many(ref(FIRST), ["user:1"])
    with pytest.raises(ReleaseNotFound):
        await store.put(draft_of(FIRST), ROWS)
    with pytest.raises(ReleaseNotFound):
        await store.seal(draft_of(FIRST))
    with pytest.raises(ReleaseNotFound):
        await scanned(store, FIRST)
    with pytest.raises(ReleaseNotFound):
        await store.prepare(ref(FIRST))


@pytest.mark.parametrize("sealed", [True, False])
async def test_erase_removes_every_row_and_erasing_twice_is_fine(open_store: OpenStore, *, sealed: bool) -> None:
    store = open_store()
    await write(store, FIRST, ROWS, seal=sealed)
    await write(store, SECOND, ROWS[:1])
    await open_store().erase(ref(FIRST))
    await store.erase(ref(FIRST))
    with pytest.raises(ReleaseNotFound):
        await open_store().get_many(ref(FIRST), ["user:1"])
    assert await store.get_many(ref(SECOND), [ROWS[0].key]) == [ROWS[0].value]


async def test_prepare_may_be_called_again(store: Store) -> None:
    await write(store, FIRST, ROWS)
    await store.prepare(ref(FIRST))
    await store.prepare(ref(FIRST))
    assert await store.get_many(ref(FIRST), ["user:1"]) == [b"one"]


async def test_the_catalogue_survives_its_writer(open_store: OpenStore) -> None:
    written = await begin(open_store(), FIRST)
    found = await open_store().catalogue()
    assert found == written
    assert found.store_id == "here"


async def test_of_two_swaps_from_one_catalogue_the_second_loses(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    await begin(one, FIRST)
    seen = await other.catalogue()
    await step(one, changes.renew(await one.catalogue(), FIRST))
    with pytest.raises(ReleaseConflict):
        await other.swap(seen, changes.succeed(seen, changes.commit(seen, FIRST), "loser", "here"))
    assert (await other.catalogue()).find(FIRST).state == "draft"


async def test_a_swap_compares_token_and_store_not_only_the_generation(store: Store) -> None:
    await begin(store, FIRST)
    found = await store.catalogue()
    successor = changes.succeed(found, found, "next", "here")
    for impostor in (replace(found, token="another"), replace(found, store_id="elsewhere"), Catalogue()):
        with pytest.raises(ReleaseConflict):
            await store.swap(impostor, successor)
    assert await store.catalogue() == found


async def test_of_many_swaps_at_once_one_wins_each_generation(open_store: OpenStore) -> None:
    await begin(open_store(), FIRST)
    handles = [open_store() for _ in range(8)]
    seen = await handles[0].catalogue()
    outcomes = await asyncio.gather(
        *(handle.swap(seen, changes.succeed(seen, seen, f"t{n}", "here")) for n, handle in enumerate(handles)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["ReleaseConflict"] * 7


async def test_changes_yields_the_present_and_then_each_change(open_store: OpenStore) -> None:
    writer, reader = open_store(), open_store()
    first = await begin(writer, FIRST)
    watched = reader.changes()
    assert await anext(watched) == first
    upcoming = asyncio.ensure_future(anext(watched))
    await asyncio.sleep(0.01)
    second = await step(writer, changes.commit(await writer.catalogue(), FIRST))
    assert await asyncio.wait_for(upcoming, 5) == second
    await watched.aclose()  # type: ignore[attr-defined]  # every backend writes it as an async generator


async def test_closing_twice_is_fine(store: Store) -> None:
    await write(store, FIRST, ROWS, seal=False)
    await store.close()
    await store.close()


async def test_odd_release_ids_are_not_found_and_reach_no_other_file(store: Store) -> None:
    for odd in ("../../etc/passwd", "", "a/b", "a\x00b"):
        with pytest.raises(StoreError):
            await store.get_many(ref(ReleaseId(odd)), ["user:1"])
