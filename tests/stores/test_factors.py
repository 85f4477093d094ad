"""Item factors in pieces: whole again as they were, on every store; damage is named, and costs nothing else."""

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.stores import publication
from hotplate.stores.catalogue import DraftRef, ReleaseId
from hotplate.stores.compression import encode_rows
from hotplate.stores.encoding import HEADER_BYTES, Checksum
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreUnavailable
from hotplate.stores.factors import (
    PIECE_BYTES,
    Description,
    ItemEntry,
    description_row,
    piece_key,
    pieces,
    read_description,
    read_piece,
)
from hotplate.stores.keys import FACTORS
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.verification import verify
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, as_bodies, on_every_store, published_values, ref_of

FACTOR_BYTES = 4 * 256
ITEMS = [(ItemEntry(f"i{n}", f"Title {n}" if n % 2 else None), bytes([n % 251]) * FACTOR_BYTES) for n in range(200)]
ENTRIES = st.builds(
    ItemEntry, st.text(min_size=1, max_size=60), st.none() | st.text(), st.booleans(), st.none() | st.integers(0, 9)
)


def rows_of_factors() -> list[Row]:
    found = list(pieces(ITEMS))
    return [*found, description_row(Description("als", len(ITEMS), 256, len(found), 30.0, 4.0, 1.0))]


async def publish(store: Store, encoding: str, resume: ReleaseId | None = None) -> publication.WriteResult:
    rows = [Row("popular:", a_list("p1")), *(Row(f"user:{n:03}", a_list("1", "2")) for n in range(50))]

    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield as_bodies(rows)
        for row in rows_of_factors():
            yield [row]

    plan = Plan(len(rows) + len(rows_of_factors()), 300_000)
    return await publication.publish(store, batches(), plan=plan, about={}, encoding=encoding, resume=resume)


@settings(max_examples=25)
@given(st.lists(st.tuples(ENTRIES, st.binary(min_size=8, max_size=8)), max_size=40))
def test_any_items_come_back_as_they_were(items: list[tuple[ItemEntry, bytes]]) -> None:
    read = [read_piece(row.value, 2) for row in pieces(items)]
    assert [entry for entries, _ in read for entry in entries] == [entry for entry, _ in items]
    assert b"".join(rows for _, rows in read) == b"".join(row for _, row in items)


def test_pieces_are_filled_up_to_the_limit_except_for_one_oversized_item() -> None:
    sizes = [len(row.value) for row in pieces(ITEMS)]
    assert len(sizes) == 4
    assert all(PIECE_BYTES - 2 * FACTOR_BYTES < size <= PIECE_BYTES + 16 for size in sizes[:-1])
    (large, small) = pieces([(ItemEntry("large"), b"x" * 2 * PIECE_BYTES), (ItemEntry("small"), b"y")])
    assert (len(large.value) > PIECE_BYTES, small.key) == (True, piece_key(1))


@pytest.mark.parametrize("cut", [0, 3, 20, -1])
def test_a_piece_that_is_cut_is_corrupt(cut: int) -> None:
    with pytest.raises(ReleaseCorrupt):
        read_piece(next(pieces(ITEMS)).value[:cut], 256)
    with pytest.raises(ReleaseCorrupt):
        read_description(description_row(Description("als", 1, 1, 1, 0.1, 1.0, 1.0)).value[: max(cut, 0)])


async def test_factors_count_in_full_in_a_plan_whose_lists_are_compressed() -> None:
    rows = [Row(f"user:{n:04}", a_list(*map(str, range(20)))) for n in range(1_000)]
    meta = rows_of_factors()
    meta_bytes = sum(len(row.key) + len(row.value) for row in meta)

    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield as_bodies(rows)
        for row in meta:
            yield [row]

    lists_bytes = sum(len(row.key) + len(row.value) for row in rows)
    plan = Plan(len(rows) + len(meta), lists_bytes + meta_bytes, meta_bytes)
    encoded = await encode_rows(batches(), plan, "zstd", Checksum("r"))
    written = [row async for batch in encoded.batches for row in batch]
    assert len(written) == encoded.plan.rows
    size = sum(len(row.key) + len(row.value) for row in written)
    assert encoded.plan.payload_bytes == pytest.approx(size, rel=0.1)
    assert meta_bytes < size < meta_bytes + lists_bytes / 4
    assert {row.key: row.value[HEADER_BYTES:] for row in written if row.key.startswith(FACTORS)} == dict(meta)


@on_every_store
async def test_factors_are_stored_copied_checked_and_erased_as_all_rows_are(open_store: OpenStore) -> None:
    store, target = open_store(), MemoryStore()
    written = await publish(store, "zstd")
    release = written.manifest.release
    ref = await ref_of(store, release)
    expected = dict(rows_of_factors())
    read = await store.get_many(ref, list(expected))
    assert [value[HEADER_BYTES:] for value in read if isinstance(value, bytes)] == list(expected.values())
    await copy(store, target, release)
    assert await published_values(target, release) == await published_values(store, release)
    assert (await verify(target, await ref_of(target, release))).digest == written.manifest.digest
    await store.erase(ref)
    with pytest.raises(ReleaseNotFound):
        await store.get_many(ref, list(expected))


class Interrupted(MemoryStore):
    """A store that is away when a piece is put for the first time."""

    is_away = True

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        if rows[0].key == piece_key(2) and self.is_away:
            self.is_away = False
            raise StoreUnavailable("away")
        await super().put(draft, rows, part)


async def test_a_publish_that_was_cut_off_among_the_factors_goes_on() -> None:
    store = Interrupted()
    with pytest.raises(StoreUnavailable):
        await publish(store, "zstd")
    (draft,) = (await store.catalogue()).releases
    written = await publish(store, "zstd", resume=draft.id)
    assert (written.manifest.release, written.manifest.counts["meta"]) == (draft.id, len(rows_of_factors()) + 1)
    assert written.skipped == 51 + 1  # the lists, and their dictionary
    assert (await verify(store, draft.ref)) == written.manifest
