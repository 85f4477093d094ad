"""Foreseeing a publish, written once over any store: the same rows, the same manifest, and nothing is written."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence

from stores.catalogue import ReleaseId
from stores.forecast import Forecast
from stores.manifest import Manifest, Tally
from stores.store import Foreseen, Plan, Row, Store


async def foresee_rows(
    store: Store,
    release: ReleaseId,
    batches: AsyncIterable[Sequence[Row]],
    finish: Callable[[Tally], Manifest],
    *,
    live: bool,
    keep: int | None,
) -> Forecast:
    """Say what it takes to write *batches* as *release*, in batches as they would be put; *finish* makes the manifest.

    A store that cannot tell is answered for with rows and bytes. Parameters and errors are those of `Foreseen.foresee`.
    """
    tally = Tally()

    async def all_rows() -> AsyncIterator[Sequence[Row]]:
        async for batch in batches:
            if batch:
                tally.add(batch)
                yield batch
        yield [finish(tally).key_row]

    if isinstance(store, Foreseen):
        return await store.foresee(release, all_rows(), live=live, keep=keep)
    plan = await count(all_rows())
    return Forecast(plan.rows, plan.payload_bytes)


async def count(batches: AsyncIterable[Sequence[Row]]) -> Plan:
    """Return how many rows there are, and the bytes of their keys and values."""
    rows = payload_bytes = 0
    async for batch in batches:
        rows += len(batch)
        payload_bytes += sum(len(key.encode()) + len(value) for key, value in batch)
    return Plan(rows, payload_bytes)
