"""Item factors in pieces: they round-trip on every store; damage is named and affects nothing else."""

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.stores import publication
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.encoding import HEADER_BYTES
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound
from hotplate.stores.factors import (
    Description,
    ItemEntry,
    description_row,
    pieces,
    read_description,
    read_piece,
)
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.verification import verify
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import OpenStore, allow_erasure, as_bodies, on_every_store, published_values, ref_of

FACTOR_BYTES = 4 * 256
ITEMS = [(ItemEntry(f"i{n}", f"Title {n}" if n % 2 else None), bytes([n % 251]) * FACTOR_BYTES) for n in range(200)]
ENTRIES = st.builds(
    ItemEntry, st.text(min_size=1, max_size=60), st.none() | st.text(), st.booleans(), st.none() | st.integers(0, 9)
)


def rows_of_factors() -> list[Row]:
    rows = list(pieces(ITEMS))
    return [*rows, description_row(Description("als", len(ITEMS), 256, len(rows), 30.0, 4.0, 1.0))]


async def publish(store: Store, encoding: str, draft: DraftRef | None = None) -> publication.WrittenRelease:
    rows = [Row("popular:", a_list("p1")), *(Row(f"user:{n:03}", a_list("1", "2")) for n in range(50))]

    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield as_bodies(rows)
        for row in rows_of_factors():
            yield [row]

    plan = Plan(len(rows) + len(rows_of_factors()), 300_000)
    return await publication.publish_release(store, batches(), plan=plan, encoding=encoding, draft=draft)


@settings(max_examples=25)
@given(st.lists(st.tuples(ENTRIES, st.binary(min_size=8, max_size=8)), max_size=40))
def test_any_items_round_trip(items: list[tuple[ItemEntry, bytes]]) -> None:
    read = [read_piece(row.value, 2) for row in pieces(items)]
    assert [entry for entries, _ in read for entry in entries] == [entry for entry, _ in items]
    assert b"".join(rows for _, rows in read) == b"".join(row for _, row in items)


@pytest.mark.parametrize("cut", [0, 3, 20, -1])
def test_a_piece_that_is_cut_is_corrupt(cut: int) -> None:
    with pytest.raises(ReleaseCorrupt):
        read_piece(next(pieces(ITEMS)).value[:cut], 256)
    with pytest.raises(ReleaseCorrupt):
        read_description(description_row(Description("als", 1, 1, 1, 0.1, 1.0, 1.0)).value[: max(cut, 0)])


@on_every_store
async def test_factors_are_stored_copied_verified_and_erased_like_rows(open_store: OpenStore) -> None:
    store = open_store()
    target = MemoryStore()
    written = await publish(store, "zstd")
    release = written.manifest.release
    ref = await ref_of(store, release)
    expected = dict(rows_of_factors())
    read = await store.get_many(ref, list(expected))
    assert [value[HEADER_BYTES:] for value in read if isinstance(value, bytes)] == list(expected.values())
    await copy(store, target, release)
    assert await published_values(target, release) == await published_values(store, release)
    assert (await verify(target, await ref_of(target, release))).digest == written.manifest.digest
    await store.erase(ref, allow_erasure)
    with pytest.raises(ReleaseNotFound):
        await store.get_many(ref, list(expected))
