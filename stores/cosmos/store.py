"""The Cosmos DB store, `cosmos://` and, for emulators, `cosmos+http(s)://`: a container a release, an item a row."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from functools import partial

from stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
from stores.cosmos import forecast, scaling
from stores.cosmos.batches import Batches, not_found
from stores.cosmos.charges import load
from stores.cosmos.containers import containers_of
from stores.cosmos.control import Control
from stores.cosmos.driver import Containers, Driver, Items
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import container_of
from stores.cosmos.lookups import Lookups
from stores.cosmos.meter import Relay
from stores.cosmos.pace import Pace
from stores.cosmos.patience import Patience
from stores.cosmos.scaling import Scaling
from stores.cosmos.scan import scan
from stores.cosmos.url import Address, parse
from stores.cosmos.writer import Writer
from stores.errors import StoreMisused
from stores.forecast import Bill, Forecast
from stores.store import Advised, Observer, Plan, Row, Slot

READ_DEADLINE_S = 1.0
"""When a lookup is given up; callers bring shorter ones of their own."""


class CosmosStore(Advised):
    """One database of one account; an instance belongs to one event loop and process."""

    batch = 64
    """Each key is a request of its own, and so many are in flight without waiting for a connection."""

    def __init__(
        self,
        address: Address,
        items: Items,
        containers: Containers,
        relay: Relay,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        born = scaling.for_writing(address)
        pace = Pace(clock, address.max_ru or (None if born is None else born.ru))
        patience = Patience(clock, pace)
        self._address = address
        self._items = items
        self._containers = containers
        self._relay = relay
        self._patience = patience
        self._lookups = Lookups(items, clock)
        self._control = Control(address, items, containers, patience, clock)
        self._charges = load()
        self._batches = Batches(items, patience, self._charges)
        self._writer = Writer(items, patience, self._charges, self._batches)
        self._gentle = Patience(clock, Pace(clock, scaling.for_scanning(address)))
        self._scaling = Scaling(address, containers, patience, clock)

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        return await self._lookups.read(
            ReleaseId(release.incarnation), keys, READ_DEADLINE_S if timeout_s is None else timeout_s
        )

    async def catalogue(self) -> Catalogue:
        return await self._patience.insist(self._control.catalogue)

    def changes(self) -> AsyncIterator[Catalogue]:
        return self._control.changes()

    async def close(self) -> None:
        try:
            await self._items.close()
        finally:
            await self._containers.close()

    async def warnings(self) -> list[str]:
        live = (await self._control.catalogue()).live
        return await self._scaling.warnings(None if live is None else container_of(live))

    def bill(self) -> Bill:
        return forecast.bill_of(self._address)

    def roughly_ru(self, plan: Plan) -> float:
        return forecast.roughly_ru(self._charges, plan)

    async def foresee(
        self, release: ReleaseId, batches: AsyncIterable[Sequence[Row]], *, live: bool, keep: int | None
    ) -> Forecast:
        found, unasked = await self._control.glimpse()
        if not unasked:
            await self._patience.insist(self._control.check_writers)
        publish = forecast.Publish(release, found, live=live, keep=keep)
        return await forecast.foresee(self._address, self._charges, publish, batches, unasked)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        scaling.check_room(self._address, plan)
        await self._patience.insist(self._control.check_writers)
        container, born = container_of(ReleaseId(draft.incarnation)), scaling.for_writing(self._address)
        await self._patience.insist(partial(self._control.make, container, born))
        await self._writer.begin(container)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._writer.put(ReleaseId(draft.incarnation), rows)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._batches.resume_point(ReleaseId(draft.incarnation))

    async def seal(self, draft: DraftRef) -> None:
        await self._writer.seal(ReleaseId(draft.incarnation))

    def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        return scan(self._batches_of, ReleaseId(release.incarnation))

    async def prepare(self, release: ReleaseRef) -> None:
        await self._batches.state(ReleaseId(release.incarnation))
        await self._scaling.serve(container_of(ReleaseId(release.incarnation)))

    async def rest(self, release: ReleaseRef) -> None:
        try:
            await self._scaling.rest(container_of(ReleaseId(release.incarnation)))
        except ContainerMissing as error:
            raise not_found(ReleaseId(release.incarnation)) from error

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        await self._control.swap(old, new)

    async def erase(self, release: ReleaseRef) -> None:
        await self._patience.insist(
            partial(self._containers.delete_container, container_of(ReleaseId(release.incarnation)))
        )

    async def _batches_of(self, release: ReleaseId) -> Batches:
        """Read what is served slowly, so that lookups have something left, and all else as fast as may be."""
        if (await self.catalogue()).live == release:
            return Batches(self._items, self._gentle, self._charges)
        return self._batches


def open_url(url: str, observer: Observer | None = None) -> CosmosStore:
    """Open `cosmos://ACCOUNT/DATABASE` or `cosmos+http(s)://HOST:PORT/DATABASE`; options: `stores.cosmos.url`."""
    address, relay = parse(url), Relay(observer)
    try:
        driver = _driver(address, relay)
        return CosmosStore(address, driver, containers_of(address, driver), relay)
    except ModuleNotFoundError as error:
        raise StoreMisused(f"{error.name} is not installed; install it with: pip install 'hotplate[cosmos]'") from error


def _driver(address: Address, meter: Observer) -> Driver:
    if address.driver == "sdk":
        from stores.cosmos.sdk.driver import SdkDriver  # noqa: PLC0415 -- azure-cosmos is only for who asks for it

        return SdkDriver(address, meter)
    from stores.cosmos.rest.driver import RestDriver  # noqa: PLC0415 -- as above: either driver does without the other's needs

    return RestDriver(address, meter)
