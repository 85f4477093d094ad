"""Parts of a draft, so several processes can write one: the rows of each part, and the sums over them.

The writer that begins a draft writes part 0, and commits the draft. Other processes, on any machine, may write further
parts, numbered from 1, with the token of the draft's writer. The rows of a part are the same for each writer and each
attempt. A second attempt, even at the same time as the first, continues after the last acknowledged row, and puts the
same bytes. The sums over the parts add up, in any order, to those over the release. So the other processes return only
their sums to the first writer.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass

from hotplate.stores.catalogue import DraftRef
from hotplate.stores.compression import Encoder
from hotplate.stores.encoding import Checksum
from hotplate.stores.erasure import erased_from
from hotplate.stores.keys import META
from hotplate.stores.manifest import Tally
from hotplate.stores.store import Row, Store


@dataclass(frozen=True, slots=True)
class PartContext:
    """What the writers of parts have to know of their draft; it goes to other processes.

    *dictionary* is that of the draft's encoding, None for lists that are not compressed. Where *puts* is false rows
    are only summed up, for all were written before.
    """

    draft: DraftRef
    dictionary: bytes | None
    puts: bool = True


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """The sums over all rows of a part, or of several, and how many of them were put just now."""

    tally: Tally
    rows: int


@dataclass(frozen=True, slots=True)
class ParallelWriters:
    """Who writes most of a draft: *write* has the parts from 1 on written, and returns what they add up to.

    *sample* are rows of bodies like theirs, to learn a dictionary from.
    """

    sample: Sequence[Row]
    write: Callable[[PartContext], Awaitable[WrittenPart]]


async def put_part(
    store: Store,
    draft: DraftRef,
    batches: AsyncIterable[Sequence[Row]],
    part: int = 0,
    check: Callable[[], None] = lambda: None,
    *,
    puts: bool = True,
) -> WrittenPart:
    """Put the rows of a part, those aside that were acknowledged before, or, unless *puts*, only sum them up.

    Rows of erased users are left out. *check* is called before each batch.
    """
    erased = await erased_from(store)
    point = await store.resume_point(draft, part) if puts else None
    tally = Tally()
    put = 0
    async for batch in batches:
        check()
        if erased:
            batch = [row for row in batch if not erased.covers(row.key)]  # noqa: PLW2901 -- the rest of it
        if puts:
            fresh, point = _after(point, batch)
            if fresh:
                await store.put(draft, fresh, part)
            put += len(fresh)
        tally.add(batch)
        await asyncio.sleep(0)  # the lease is renewed even if neither rows nor store ever wait
    return WrittenPart(tally, put)


async def write_part(
    store: Store, context: PartContext, part: int, bodies: AsyncIterable[Sequence[Row]]
) -> WrittenPart:
    """Encode *bodies* as the other parts are, and put them as one; raises StoreError as `Store.put` does."""
    encoder = Encoder(Checksum(context.draft.id), context.dictionary)
    batches = (encoder.rows(rows) async for rows in bodies)
    return await put_part(store, context.draft, batches, part, puts=context.puts)


def _after(point: str | None, rows: Sequence[Row]) -> tuple[Sequence[Row], str | None]:
    """Return the rows that come after the resume point, and the point as long as it lies further on.

    Puts are acknowledged in the order of the rows, so what comes before the point, `meta` rows too, is written.
    """
    if point is None:
        return rows, None
    last = point.encode()
    for index, (key, _) in enumerate(rows):
        if not key.startswith(META) and (raw := key.encode()) >= last:
            return rows[index + (raw == last) :], None
    return (), point
