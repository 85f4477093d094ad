"""Scanning a release: the keys of each acknowledged batch, in ascending order, and a fresh read of each row."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from stores.catalogue import ReleaseId
from stores.cosmos.batches import METAS, ROWS, Batches, not_found
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import container_of, name_of, value_of
from stores.cosmos.patience import for_each
from stores.keys import Span, bounds, overlapping, unpack
from stores.store import Row


async def scan(choose: Callable[[ReleaseId], Awaitable[Batches]], release: ReleaseId) -> AsyncIterator[Row]:
    """Yield every row, in ascending order of key bytes, as `Store.scan` does; *choose* says within which budget."""
    batches, container = await choose(release), container_of(release)
    await batches.state(release)
    try:
        for group in overlapping(await _spans(batches, container)):
            packed = [await batches.packed(container, span.source, span.place) for span in group]
            keys = sorted({key for batch in packed for key in unpack(batch)})
            values = dict[str, bytes]()
            await for_each(keys, partial(_read, batches, container, values))
            for key in keys:
                if key in values:
                    yield Row(key, values[key])
    except ContainerMissing as error:
        raise not_found(release) from error


async def _read(batches: Batches, container: str, values: dict[str, bytes], key: str) -> None:
    name = name_of(key)
    found = await batches.read(container, name) or await batches.read_again(container, name)
    if found is not None:
        values[key] = value_of(found)


async def _spans(batches: Batches, container: str) -> list[Span]:
    """Return which keys each acknowledged batch reaches over: one read a batch."""
    spans = list[Span]()

    async def look(source: str, number: int) -> None:
        spans.append(Span(*bounds(await batches.packed(container, source, number)), source, number))

    for source in (ROWS, METAS):
        last = await batches.find_last(container, source)
        await for_each(range(1, last + 1), partial(look, source))
    return spans
