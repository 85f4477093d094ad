"""A store of files whose throughput cannot be changed, and which cannot be pruned, after a change of what is served."""

from collections.abc import Sequence
from pathlib import Path

import hotplate.stores.file.store as file_store
from hotplate.stores.catalogue import Catalogue, ReleaseRef
from hotplate.stores.errors import StoreThrottled
from hotplate.stores.store import RecordChange

# Source for a process whose `file://` stores are to be such stores.
INSTALL = """
import hotplate.stores.file.store as file_store
from tests.support.throttled_store import open_url
file_store.open_url = open_url
"""


class ThrottledStore(file_store.LmdbStore):
    """Raises StoreThrottled in each step that follows a swap by which other releases are served."""

    is_provisioned = True
    is_throttled = False

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        await super().swap(old, new, records)
        if isinstance(old, Catalogue) and new.served != old.served:
            self.is_throttled = True

    async def prepare(self, release: ReleaseRef) -> None:
        await super().prepare(release)
        self._check()

    async def scale_down(self, release: ReleaseRef) -> None:
        del release
        self._check()

    async def incarnations(self) -> list[str]:
        self._check()  # pruning begins with them
        return await super().incarnations()

    def _check(self) -> None:
        if self.is_throttled:
            raise StoreThrottled("it was changed too often", retry_after_s=30.0)


def open_url(url: str) -> ThrottledStore:
    """Open `file:///FOLDER`."""
    return ThrottledStore(Path(url.removeprefix("file://")))
