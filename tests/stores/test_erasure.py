"""Erasures that are cut off anywhere, and records of them that are lost, damaged or of an earlier version."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import orjson
import pytest

from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.doctor import examine
from hotplate.stores.encoding import NO_OFFSET, Checksum
from hotplate.stores.erasure import MAX_ROWS, ErasedUsers
from hotplate.stores.erasure_log import (
    ID,
    NAMES,
    SNAPSHOT,
    ErasureLog,
    erased_from,
    read_log,
)
from hotplate.stores.errors import ReleaseCorrupt, StoreMisused
from hotplate.stores.store import RecordChange, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.users import accept_loss, erase_users, find_users
from hotplate.stores.verification import read_servable, verify
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, allow_erasure, on_every_store, publish, ref_of

ROWS = [Row("popular:", a_list("p1")), *(Row(f"user:{number}", a_list("a", "b")) for number in range(12))]

Primitive = Callable[..., Awaitable[object]]


class CutOffError(Exception):
    """The process was killed."""


class Killed:
    """Ends a process before or after its call number *at* to the store, counting those that change it."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.calls = 0
        self._at = at
        self._after = after
        for name in ("swap", "erase_rows"):
            if hasattr(store, name):
                monkeypatch.setattr(store, name, self._counted(getattr(store, name)))

    def _counted(self, primitive: Primitive) -> Primitive:
        async def call(*arguments: object) -> object:
            self.calls += 1
            is_last = self.calls == self._at
            if is_last and not self._after:
                raise CutOffError
            result = await primitive(*arguments)
            if is_last:
                raise CutOffError
            return result

        return call


async def erased_of(store: Store) -> list[str]:
    erased = await erased_from(store)
    return [str(number) for number in range(12) if erased.covers(f"user:{number}")]


@on_every_store
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_erasure_cut_off_at_any_call_is_finished_by_the_next(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    store = open_store()
    releases = [await ref_of(store, await publish(store, ROWS)) for _ in range(2)]
    at = 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            killed = Killed(store, patch, at, after=after)
            user = str(at)
            with suppress(CutOffError):
                await erase_users(store, [user])
        for release in releases:
            await verify(store, release)
        if killed.calls < at:
            break
        await erase_users(store, [user])
        assert user in await erased_of(store)
        assert not [held for held in (await find_users(store, [user])).holding.values() if store_deletes(store)]
    assert await erased_of(store) == [str(number) for number in range(1, at + 1)]
    if store_deletes(store):
        await store.erase_rows(releases[0], ["user:0", "user:10", "user:11"], allow_erasure)
        with pytest.raises(ReleaseCorrupt, match="3 of 14 rows are missing"):
            await verify(store, releases[0])
        await verify(store, releases[1])


def store_deletes(store: Store) -> bool:
    return store.erases_rows


async def test_returning_rows_do_not_hide_a_loss() -> None:
    """As from the node of a cluster that restarted with older data, while the record stayed."""
    store = MemoryStore()
    release = await ref_of(store, await publish(store, ROWS))
    older = dict(store.find(release).rows)
    await erase_users(store, ["1", "2"])
    for returned in (["user:1"], ["user:1", "user:2"]):
        store.find(release).rows.update({key: older[key] for key in returned})
        await verify(store, release)
        assert (await erase_users(store, ["1", "2"])).deleted == len(returned)
        await verify(store, release)
    store.find(release).rows.update({"user:1": older["user:1"]})
    await store.erase_rows(release, ["user:9"], allow_erasure)
    with pytest.raises(ReleaseCorrupt, match="1 of 14 rows are missing"):
        await verify(store, release)


@on_every_store
async def test_many_erasures_are_kept_in_one_record(open_store: OpenStore) -> None:
    store = open_store()
    release = await ref_of(store, await publish(store, ROWS))
    users = [f"absent-{number}" for number in range(6)]
    for user in users:
        await erase_users(store, [user])
    await erase_users(store, ["1"])
    erased = await erased_from(open_store())
    assert all(erased.covers(f"user:{user}") for user in [*users, "1"])
    assert (erased.count, erased.lost) == (len(users) + 1, 0)
    assert [name for name, value in zip(NAMES, await store.records(NAMES), strict=True) if value] == [SNAPSHOT]
    await verify(store, release)


async def without_records(store: Store, names: Sequence[str] = NAMES) -> None:
    """Damage records, as a server that lost them: no store of ours deletes one."""
    values = await store.records(names)
    damaged = [
        RecordChange(name, value, b"lost") for name, value in zip(names, values, strict=True) if value is not None
    ]
    catalogue = await store.catalogue()
    await store.swap(catalogue, replace(catalogue, generation=catalogue.generation + 1, token="lost"), damaged)


@on_every_store
async def test_lost_record_blocks_nothing_and_lists_users_to_erase_again(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    target = MemoryStore()
    release = await ref_of(store, await publish(store, ROWS))
    await erase_users(store, ["1", "2", "3"])
    await without_records(store)
    assert (await erased_from(store)).lost == 3
    await read_servable(store, release)
    await verify(store, release)
    with caplog.at_level(logging.WARNING):
        second = await publish(store, ROWS)
    assert "the record of erased users has lost 3 of them" in caplog.text
    await verify(store, await ref_of(store, second))
    for copied in (release.id, second):
        await copy(store, target, copied)
    assert {finding.subject: finding.sentence for finding in await examine(store)}["erased users"].startswith(
        "the record of erased users has lost 3"
    )
    locations = await find_users(store, ["1"])
    assert (locations.erased, locations.lost) == ((), 3)
    assert (await erase_users(store, ["1", "4"])).lost == 1
    assert (await erase_users(store, ["2"])).lost == 0
    assert await erased_of(store) == ["1", "2", "4"]
    assert (await read_log(store)).damage is None


@on_every_store
async def test_an_accepted_loss_is_not_reported_again(open_store: OpenStore) -> None:
    store = open_store()
    await publish(store, ROWS)
    await erase_users(store, ["1", "2"])
    await without_records(store)
    await erase_users(store, ["3"])
    for unexpected in (0, 2):
        with pytest.raises(StoreMisused, match=r"has lost the record of 1 erased user, .* give --lost 1"):
            await accept_loss(store, unexpected)
    assert (await erased_from(store)).lost == 1
    await accept_loss(store, 1)
    await accept_loss(store, 0)
    with pytest.raises(StoreMisused, match="has lost no erased user, instead of 1"):
        await accept_loss(store, 1)
    erased = await erased_from(store)
    assert (erased.lost, erased.count, erased.covers("user:3")) == (0, 1, True)


def part_of(number: int, users: Sequence[str]) -> bytes:
    """Return what earlier versions wrote beside the first record for a change of a number."""
    (salt, hashes), *_ = ErasedUsers().with_users(users).hashes_by_salt.items()
    group = {"salt": salt.hex(), "hashes": b64encode(b"".join(hashes)).decode()}
    part = orjson.dumps({"number": number, "groups": [group], "rows": {}, "format": 2})
    return Checksum(ID).seal(f"{SNAPSHOT}-{number % 32:02}", NO_OFFSET + part)


async def test_parts_that_earlier_versions_added_are_read_and_joined_by_the_next_change() -> None:
    store = MemoryStore()
    await publish(store, ROWS)
    await erase_users(store, ["1"])
    store.beside["erased-02"] = part_of(2, ["2"])
    store.beside["erased-03"] = b"damaged"
    assert set(await erased_of(store)) == {"1", "2"}
    assert (await read_log(store)).damage is not None
    await erase_users(store, ["3"])
    assert (await read_log(store)).damage is None
    del store.beside["erased-02"], store.beside["erased-03"]
    assert await erased_of(store) == ["1", "2", "3"]


async def test_part_of_a_record_that_is_lost_is_read_and_is_damage() -> None:
    store = MemoryStore()
    await publish(store, ROWS)
    await erase_users(store, ["1"])
    store.beside["erased-02"] = part_of(2, ["2"])
    del store.beside[SNAPSHOT]
    assert await erased_of(store) == ["2"]
    assert (await read_log(store)).damage == "a record of erased users is missing"


async def test_an_erasure_whose_catalogue_was_not_written_counts_with_the_next() -> None:
    """As on Cosmos DB, where records come first."""
    store = MemoryStore()
    await publish(store, ROWS)
    await erase_users(store, ["1"])
    log = await read_log(store)
    _, records = log.changes_for(log.users.with_users(["2"]))
    store.beside |= {change.name: change.after for change in records}
    await erase_users(store, ["2"])
    catalogue = await store.catalogue()
    assert catalogue.erased is not None
    assert catalogue.erased.last == (await read_log(store)).last
    assert (catalogue.erased.count, await erased_of(store)) == (2, ["1", "2"])


def test_rows_beyond_the_stored_limit_are_a_bound() -> None:
    release = ReleaseRef(ReleaseId("r"), "i")
    seal = Checksum(release.id).seal
    rows = [Row(f"user:{number}", seal(f"user:{number}", NO_OFFSET)) for number in range(MAX_ROWS + 3)]
    erased = ErasedUsers().with_users(["1"]).counting_as_missing(release, rows)
    missing = erased.missing_from(release)
    assert (missing.sums.rows, len(missing.key_hashes), missing.unsummed_rows) == (MAX_ROWS, MAX_ROWS, 3)
    assert erased.counting_as_missing(release, rows[:9]) == erased
    _, records = ErasureLog(ErasedUsers()).changes_for(erased)
    assert max(len(change.after) for change in records) < 1_000_000


async def test_unsummed_row_does_not_hide_a_row_too_many() -> None:
    store = MemoryStore()
    release = await ref_of(store, await publish(store, ROWS))
    rows = store.releases[release.incarnation].rows
    rows["user:1"] = b"damaged"
    await erase_users(store, ["1"])
    await verify(store, release)
    rows["item:x"] = Checksum(release.id).seal("item:x", NO_OFFSET)
    with pytest.raises(ReleaseCorrupt, match="does not add up"):
        await verify(store, release)


@on_every_store
async def test_concurrent_erasures_and_publish_count_each_row_once(open_store: OpenStore) -> None:
    store = open_store()
    release = await ref_of(store, await publish(store, ROWS))
    users = [[str(number), str(number + 1)] for number in range(6)]  # also the same users at once
    await asyncio.gather(*(erase_users(open_store(), pair) for pair in users), publish(open_store(), ROWS))
    await erase_users(store, ["0", "6"])  # rows written by the publish
    assert await erased_of(store) == [str(number) for number in range(7)]
    for entry in (await store.catalogue()).releases:
        await verify(store, entry.ref)
    if store_deletes(store):
        assert (await erased_from(store)).missing_from(release).sums.rows == 7
