"""Scanning a release: the keys of each acknowledged batch, in ascending order, and a fresh read of each row."""

from collections.abc import AsyncIterator
from functools import partial

from stores.catalogue import ReleaseId
from stores.cosmos_errors import ContainerMissing
from stores.cosmos_items import container_of, name_of, value_of
from stores.cosmos_patience import for_each
from stores.cosmos_writer import METAS, ROWS, Writer, not_found
from stores.keylist import Span, bounds, overlapping, unpack
from stores.store import Row


class Scan:
    """Yields rows of releases within the budget of *writer*; lives as long as its store."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def rows(self, release: ReleaseId) -> AsyncIterator[Row]:
        """Yield every row, in ascending order of key bytes; raises as `Store.scan` does."""
        await self._writer.state(release)
        container = container_of(release)
        try:
            for group in overlapping(await self._spans(container)):
                packed = [await self._writer.packed(container, span.source, span.place) for span in group]
                keys = sorted({key for batch in packed for key in unpack(batch)})
                values = dict[str, bytes]()
                await for_each(keys, partial(self._read, container, values))
                for key in keys:
                    if key in values:
                        yield Row(key, values[key])
        except ContainerMissing as error:
            raise not_found(release) from error

    async def _read(self, container: str, values: dict[str, bytes], key: str) -> None:
        name = name_of(key)
        found = await self._writer.read(container, name) or await self._writer.read_again(container, name)
        if found is not None:
            values[key] = value_of(found)

    async def _spans(self, container: str) -> list[Span]:
        """Return which keys each acknowledged batch reaches over: one read a batch."""
        spans = list[Span]()

        async def look(source: str, number: int) -> None:
            spans.append(Span(*bounds(await self._writer.packed(container, source, number)), source, number))

        for source in (ROWS, METAS):
            last = await self._writer.last_number(container, source)
            await for_each(range(1, last + 1), partial(look, source))
        return spans
