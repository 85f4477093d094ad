"""Reading rows that must be there, over any store."""

from collections.abc import Sequence

from stores.catalogue import ReleaseId
from stores.errors import ReleaseCorrupt, StoreError
from stores.store import Reader


async def read_present(reader: Reader, release: ReleaseId, keys: Sequence[str]) -> list[bytes]:
    """Read *keys* of *release*, a batch at a time, in order; ReleaseCorrupt for one that is absent, else StoreError."""
    values = list[bytes]()
    for start in range(0, len(keys), reader.batch):
        chunk = keys[start : start + reader.batch]
        for key, slot in zip(chunk, await reader.get_many(release, chunk), strict=True):
            if isinstance(slot, StoreError):
                raise slot
            if slot is None:
                raise ReleaseCorrupt(f"release {release} has lost its row {key!r}; publish it again")
            values.append(slot)
    return values
