"""What was acknowledged: the keys of each batch, packed into an item of its own, numbered without gaps.

Those items are created, never put in the place of another: so the last is found by reading a few, and two writers, one
after the other or at once, lose nothing of each other.
"""

import asyncio

from stores.catalogue import ReleaseId
from stores.cosmos.charges import Charges
from stores.cosmos.driver import DEADLINE_S, Item, Items
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import STATE, container_of, item_bytes, keys_name, value_of
from stores.cosmos.patience import Patience
from stores.errors import ReleaseNotFound
from stores.keys import bounds

ROWS, METAS = "rows", "metas"
"""The two series of batches: only the first tells where to resume."""

LAGS_S = (0.02, 0.1)
"""How long a replica that is behind is given to catch up, before what it does not have counts as absent."""


class Batches:
    """Reads as publishers do, within a budget, and finds what was acknowledged; lives at most as long as its store."""

    def __init__(self, items: Items, patience: Patience, charges: Charges) -> None:
        self._items = items
        self._patience = patience
        self._charges = charges
        self._last = dict[tuple[str, str], int]()

    async def state(self, release: ReleaseId) -> str:
        """Return `draft` or `sealed`; ReleaseNotFound where the release is not there, or not yet."""
        try:
            container = container_of(release)
            found = await self.read(container, STATE) or await self.read_again(container, STATE)
        except ContainerMissing as error:
            raise not_found(release) from error
        if found is None:
            raise not_found(release)
        return str(found["state"])

    async def resume_point(self, release: ReleaseId) -> str | None:
        """Return the last key of the last batch of rows."""
        await self.state(release)
        container = container_of(release)
        last = await self.find_last(container, ROWS)
        return bounds(await self.packed(container, ROWS, last))[1] if last else None

    async def last(self, container: str, series: str) -> int:
        """Return the number of the last batch that we know of; 0 for none."""
        known = self._last.get((container, series))
        return await self.find_last(container, series) if known is None else known

    def learn(self, container: str, series: str, number: int) -> None:
        """Take note that there is a batch of that number."""
        self._last[container, series] = max(number, self._last.get((container, series), 0))

    def forget(self, container: str) -> None:
        """Forget what was known of a container."""
        for series in (ROWS, METAS):
            self._last.pop((container, series), None)

    async def find_last(self, container: str, series: str) -> int:
        """Find the number of the last batch by some reads: twice the logarithm of how many are news."""
        known = low = self._last.get((container, series), 0)
        step, high = 1, None
        while high is None or high - low > 1:
            middle = low + step if high is None else (low + high) // 2
            if await self.read(container, keys_name(series, middle)) is None:
                high = middle
            else:
                low, step = middle, step * 2
            if high == low + 1 and not known and await self.read_again(container, keys_name(series, high)):
                low, step, high = high, 1, None
        self._last[container, series] = low
        return low

    async def packed(self, container: str, series: str, number: int) -> bytes:
        """Return the packed keys of one batch; ReleaseCorrupt where they were lost."""
        name = keys_name(series, number)
        found = await self.read(container, name) or await self.read_again(container, name)
        return value_of(found or {"id": name})

    async def read(self, container: str, name: str) -> Item | None:
        """Read an item as a publisher does, out of the budget."""
        return await self._patience.spend(
            self._charges.read(0), lambda: self._items.read(container, name, DEADLINE_S, fresh=True), self._charge_ru
        )

    async def read_again(self, container: str, name: str) -> Item | None:
        """Look once more, and once more, for what should be there: the replica that answered may be behind others."""
        for pause_s in LAGS_S:
            await asyncio.sleep(pause_s)
            if (found := await self.read(container, name)) is not None:
                return found
        return None

    def _charge_ru(self, found: Item | None) -> float:
        if found is None:
            return self._charges.not_found(strong=False)
        return self._charges.read(item_bytes(found))


def not_found(release: ReleaseId) -> ReleaseNotFound:
    """Say that a release has no container, or one without a word of what it is."""
    return ReleaseNotFound(f"release {release} is not in this store")
