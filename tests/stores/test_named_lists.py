"""Named lists of one release: each is whole, or the release is not live."""

import pytest

from hotplate.stores.encoding import MAX_LISTS, RowKey, check_kind, check_list, prefix_of
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from hotplate.stores.lifecycle import prune
from hotplate.stores.manifest import read_manifest
from hotplate.stores.store import Row
from hotplate.stores.transfer import copy
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import load_manifest, read_servable, verify
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, allow_erasure, on_every_store, publish, ref_of

NAMES = ("", "basket", "email")
ROWS = sorted(
    Row(prefix_of(kind, name) + row_id, a_list(f"{name} {row_id}"))
    for name in NAMES
    for kind, ids in (("item:", "ab"), ("popular:", ["", "France"]), ("user:", map(str, range(40))))
    for row_id in ids
)


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


@on_every_store
async def test_a_release_of_three_lists_is_served_copied_and_pruned_as_one(
    open_store: OpenStore, memory: MemoryStore
) -> None:
    store = open_store()
    release = await publish(store, ROWS, about={"list": "home", "lists": {"basket": {}, "email": {}}})
    servable = await read_servable(store, await ref_of(store, release))
    manifest = servable.manifest
    assert manifest.named == {"basket": ("France",), "email": ("France",)}
    assert [manifest.stored_name(name) for name in ("", "home", "basket", "nothing")] == ["", "", "basket", None]
    assert (manifest.count("user"), manifest.counts["user@email"]) == (120, 40)
    assert sorted(servable.popular) == sorted(row.key for row in ROWS if row.key.startswith("popular"))
    assert read_manifest(release, manifest.key_row.value) == manifest
    assert manifest.key_row.value[12:].startswith(b'{"format":3,'), "an earlier version would refuse it"
    await copy(store, memory, release)
    assert (await verify(memory, await ref_of(memory, release))).digest == manifest.digest
    await publish(store, ROWS)
    assert await prune(store, keep=0, grace_s=0.0) == [release]


@pytest.mark.parametrize("missing", ["popular@basket:", "popular:"])
async def test_a_list_without_a_popular_list_is_not_published(memory: MemoryStore, missing: str) -> None:
    with pytest.raises(ReleaseCorrupt, match=f"add a row '{missing}'"):
        await publish(memory, [row for row in ROWS if row.key != missing])
    assert (await memory.catalogue()).live is None


async def test_planned_but_unwritten_list_is_not_published(memory: MemoryStore) -> None:
    with pytest.raises(ReleaseCorrupt, match="the list 'search' of release"):
        await publish(memory, ROWS, about={"lists": {"search": {}}})
    with pytest.raises(ReleaseCorrupt, match="two of one name"):
        await publish(memory, ROWS, about={"list": "basket"})
    with pytest.raises(ReleaseCorrupt, match=f"more than {MAX_LISTS} lists"):
        await publish(
            memory, [Row("popular:", b'{"id":"p"}'), *(Row(f"popular@l{n:02}:", b'{"id":"p"}') for n in range(20))]
        )


async def test_lost_rows_of_one_list_are_found(memory: MemoryStore) -> None:
    assert memory.erases_rows
    ref = await ref_of(memory, await publish(memory, ROWS))
    await memory.erase_rows(ref, [row.key for row in ROWS if row.key.startswith("user@email:")], allow_erasure)
    with pytest.raises(ReleaseCorrupt, match="40 of 133 rows are missing"):
        await verify(memory, ref)
    with pytest.raises(ReleaseCorrupt, match="its sample of the list 'email'"):
        await read_servable(memory, ref)


@on_every_store
async def test_erased_users_are_erased_from_each_list(open_store: OpenStore) -> None:
    store = open_store()
    release = await publish(store, ROWS)
    assert (await find_users(store, ["7", "8"])).lists == {release: ("basket", "email")}
    done = await erase_users(store, ["7"])
    assert done.deleted in {0, 3}
    assert done.holding == ({} if done.deleted else {release: ("7",)})
    await verify(store, await ref_of(store, release))
    later = await publish(store, ROWS)
    assert (await load_manifest(store, await ref_of(store, later))).count("user") == 117


def test_kinds_of_named_lists_have_a_valid_name() -> None:
    assert [check_kind(kind) for kind in ("user@a", "item@B-1_c", "popular@x")]
    for wrong in ("meta@a", "user@", "user@a b", "user@-a", "user@a@b", "user@é", f"user@{'a' * 33}", "basket"):
        with pytest.raises(StoreMisused):
            check_kind(wrong)
    with pytest.raises(StoreMisused, match="letters, digits"):
        check_list("a/b")
    parse = RowKey.parse
    assert (parse("user@a:b@c:d").list, parse("user:b@c").list, parse("user@a:b@c:d").user) == ("a", "", "b@c:d")
    assert (parse("user:user@a:1").user, parse("item@a:1").user) == ("user@a:1", None)
    for text in ("user:1", "user@a:b@c:d", "popular:", "popular@a:", "popular@a:France", "meta:manifest"):
        assert parse(text).text == text
