"""Items, read and written within a number of request units (RU) a second."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TypeVar

from hotplate.base.timing import RateLimiter
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing
from hotplate.stores.cosmos.items import CONTAINER, CosmosItem, item_bytes
from hotplate.stores.cosmos.signed import NearestItem, SignedClient, VersionedItem, WriteResult
from hotplate.stores.errors import StoreThrottled

R = TypeVar("R", NearestItem, VersionedItem, WriteResult)

# Some replicas answer 404 for a new container; pause before it is tried again.
CONTAINER_VISIBLE_S = 60.0
PENDING_PAUSE_S = 0.25
# Delays before a missing item is read again, in case a replica lags.
REPLICA_LAGS_S = (0.02, 0.1)


class NewContainers:
    """Containers that were just created by this process, so that some replicas may not know them yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._new_until = dict[str, float]()

    def add(self, container: str) -> None:
        """Record that a container was just created."""
        self._new_until[container] = self._clock() + CONTAINER_VISIBLE_S

    def discard(self, container: str) -> None:
        """Record that a container is being deleted."""
        self._new_until.pop(container, None)

    def includes(self, container: str) -> bool:
        """Return whether a replica may not know a container yet."""
        return self._clock() <= self._new_until.get(container, -inf)


class ContainerRates:
    """Rates in RU/s for the containers of releases: *shared_ru* where lookups may need the rest, else *writing_ru*."""

    def __init__(self, *, writing_ru: float, shared_ru: float) -> None:
        self._writing_ru = writing_ru
        self._shared_ru = shared_ru
        self._unserved = set[str]()
        """Containers that no lookup reads, as far as this process knows."""

    def follow(self, catalogue: Catalogue) -> None:
        """Record which containers are served; each may be after an empty catalogue."""
        served = {release.incarnation for release in catalogue.served}
        self._unserved = {CONTAINER + incarnation for incarnation in catalogue.incarnations - served}

    def rate_ru(self, container: str) -> float:
        """Return the rate for requests to a container."""
        return self._writing_ru if container in self._unserved else self._shared_ru


class PacedItems:
    """Reads and writes items by one attempt each, which waits until its request units (RU) fit into the rate.

    Containers share one budget of time, of which a request takes its RU by the rate of its container. So all requests
    together keep within the highest rate, and within a container's rate while no other is used.

    Each attempt is charged in advance by our table, corrected by the charge in the response. A 429 costs nothing, and
    pauses all attempts as long as it says. Raises errors as `SignedClient`.
    """

    def __init__(
        self,
        client: SignedClient,
        charges: Charges,
        new_containers: NewContainers,
        *,
        clock: Callable[[], float],
        rate_ru: Callable[[str], float],
        loading_ru: float = 0.0,
    ) -> None:
        """*rate_ru* returns the rate of a container in RU/s, infinite for no limit.

        `look_up` reads at *loading_ru* if that is higher: services wait for it before they serve a release.
        """
        self._client = client
        self._charges = charges
        self._new_containers = new_containers
        self._rate_ru = rate_ru
        self._loading_ru = loading_ru
        self._limiter = RateLimiter(clock)
        self._admission = asyncio.Lock()

    async def look_up(self, container: str, name: str) -> CosmosItem | None:
        """Read an item like a lookup, in the nearest region; None if it is absent.

        That region may lag, so the write region is read if this process has written to the container.
        """
        if self._client.has_written(container):
            return (await self.read(container, name, min_rate_ru=self._loading_ru)).item
        read = partial(self._client.read_nearest, container, name, DEADLINE_S)
        expected_ru = self._charges.read(0)
        return (await self._send(container, read, expected_ru=expected_ru, min_rate_ru=self._loading_ru)).item

    async def read(self, container: str, name: str, *, min_rate_ru: float = 0.0) -> VersionedItem:
        """Read an item, or its absence, as the replica has it that answers."""
        read = partial(self._client.read_fresh, container, name)
        return await self._send(container, read, expected_ru=self._charges.read(0), min_rate_ru=min_rate_ru)

    async def read_surely(self, container: str, name: str) -> CosmosItem | None:
        """Read an item; None if it is absent in three reads, because replicas may lag."""
        item = (await self.read(container, name)).item
        for pause_s in REPLICA_LAGS_S:
            if item is not None:
                break
            await asyncio.sleep(pause_s)
            item = (await self.read(container, name)).item
        return item

    async def create(self, container: str, item: CosmosItem) -> bool:
        """Create an item; return False if one exists. Raises StoreFull if it is too large."""
        create = partial(self._client.create, container, item)
        expected_ru = self._charges.create(item_bytes(item), 0)
        return (await self._send(container, create, expected_ru=expected_ru)).applied

    async def replace(self, container: str, item: CosmosItem, etag: str) -> bool:
        """Replace the version *etag* of an item; return False if that is gone. Raises StoreFull if it is too large."""
        replace = partial(self._client.replace, container, item, etag)
        size = item_bytes(item)
        expected_ru = self._charges.replace(size, size, 0, 0)
        return (await self._send(container, replace, expected_ru=expected_ru)).applied

    async def delete(self, container: str, name: str) -> bool:
        """Delete an item; return whether it existed."""
        delete = partial(self._client.delete, container, name)
        return (await self._send(container, delete, expected_ru=self._charges.delete(0, 0))).applied

    async def _send(
        self, container: str, request: Callable[[], Awaitable[R]], *, expected_ru: float, min_rate_ru: float = 0.0
    ) -> R:
        """Send a request about an item once it fits into the rate; return its result.

        *expected_ru* is charged in advance, and corrected by the charge of the response. A ContainerMissing becomes
        StoreThrottled, which is repeated, if the container is so new that a replica may not know it yet.
        """
        rate_ru = max(self._rate_ru(container), min_rate_ru)
        await self._admit(expected_ru, rate_ru)
        try:
            result = await request()
        except StoreThrottled as error:
            self._limiter.correct(-expected_ru, rate_ru)  # a refused request costs nothing
            self._limiter.pause(error.retry_after_s)
            raise
        except ContainerMissing as missing:
            if self._new_containers.includes(container):
                raise StoreThrottled(str(missing), PENDING_PAUSE_S) from missing
            raise
        self._limiter.correct(result.charge_ru - expected_ru, rate_ru)
        return result

    async def _admit(self, expected_ru: float, rate_ru: float) -> None:
        """Wait until a request fits into the rate, after the requests that came before, and charge it."""
        async with self._admission:
            self._client.check_open()
            wait_s = self._limiter.wait_s()
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self._limiter.wait_s()  # a 429 may have come meanwhile, which prolongs the wait
            self._limiter.take(expected_ru, rate_ru)
