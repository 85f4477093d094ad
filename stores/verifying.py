"""Verifying a release: what is stored must add up to what its manifest says."""

import asyncio

from stores.catalogue import ReleaseId
from stores.errors import StoreError
from stores.keys import MANIFEST
from stores.manifest import Manifest, Tally, compare, read_manifest
from stores.store import Reader, Row, Store

VERIFY_CHUNK = 1000


async def verify(store: Store, release: ReleaseId) -> Manifest:
    """Read every row of a sealed release and hold the sums against its manifest; ReleaseCorrupt where they differ."""
    manifest = await load_manifest(store, release)
    tally = Tally()
    chunk = list[Row]()
    async for row in store.scan(release):
        chunk.append(row)
        if len(chunk) == VERIFY_CHUNK:
            tally.add(chunk)
            chunk.clear()
            await asyncio.sleep(0)  # leases are renewed meanwhile
    tally.add(chunk)
    compare(manifest, tally)
    return manifest


async def load_manifest(reader: Reader, release: ReleaseId) -> Manifest:
    """Read and check the manifest of a release."""
    (slot,) = await reader.get_many(release, [MANIFEST])
    if isinstance(slot, StoreError):
        raise slot
    return read_manifest(release, slot)
