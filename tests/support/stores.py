"""Which backends the tests run over; the fixture `open_store` opens them."""

from collections.abc import AsyncIterator, Sequence

import pytest

from hotplate.testing import FIRST, SECOND, OpenStore, begin, draft_of, ref, scanned, step, write
from stores.store import Row

__all__ = (
    "COSMOS", "FIRST", "SECOND", "OpenStore", "batches", "begin", "draft_of", "on_every_store", "ref", "scanned",
    "step", "write",
)  # fmt: skip

COSMOS = ("cosmos+http", "cosmos+https")

# For tests of thousands of rows, which differ in nothing over TLS to Cosmos DB.
on_every_store = pytest.mark.parametrize(
    "open_store", ["memory", "file", "redis", "rediss", "unix", "cosmos+http"], indirect=True
)


async def batches(rows: Sequence[Row], size: int = 1) -> AsyncIterator[Sequence[Row]]:
    """Yield rows as a publish takes them."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
