"""Store in Cosmos DB: a container per release with an item per row, and a container with the catalogue.

Items are read and written by signed requests (`SignedClient`), containers by the SDK or Azure Resource Manager
(`Containers`). What a container may do a second is its *throughput*, in request units (RU), which is paid by the hour:
it is raised while a release is written, and lowered once the release is not served any more.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from math import inf

import orjson

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.cosmos import charges, examination
from hotplate.stores.cosmos.budget import Budget
from hotplate.stores.cosmos.containers import Containers, open_containers
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing
from hotplate.stores.cosmos.items import (
    CATALOGUE,
    CONTAINER,
    CONTROL,
    CosmosItem,
    container_of,
    item_bytes,
    name_of,
    to_item,
    value_of,
)
from hotplate.stores.cosmos.rows import ReleaseRows
from hotplate.stores.cosmos.signed import LookupClient, NearestItem, SignedClient, VersionedItem, WriteResult
from hotplate.stores.cosmos.url import MANUAL_MIN, Address, Offer, Throughput, parse
from hotplate.stores.errors import (
    CatalogueUnreadable,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.store import (
    CheckCatalogue,
    Diagnosed,
    Finding,
    Observer,
    Plan,
    ProvisionedStore,
    ReadResult,
    RecordChange,
    ReplicatedReader,
    Row,
    RowEraser,
    catalogue_changed,
    not_found,
    taken_over,
    traced_call,
)

# Generated incarnations.
DRAWN = re.compile(r"[0-9a-f]{12}")
# Polling interval of a reader: 0.5 RU/s.
POLL_S = 2.0
# Polling interval and time limit of a change of throughput.
SCALING_POLL_S = 1.0
SCALING_S = 600.0


class CosmosStore(Diagnosed, ProvisionedStore, RowEraser, ReplicatedReader):
    """One database of one account, on one event loop."""

    batch = 64
    """Half of a client's connections."""

    coalesce = 1

    def __init__(
        self,
        address: Address,
        items: SignedClient,
        open_containers: Callable[[], Containers],
        clock: Callable[[], float] = time.monotonic,
        *,
        lookups: LookupClient | None = None,
    ) -> None:
        """*open_containers* is called at the first use of the control plane; *lookups* default to *items*."""
        writing = address.writing
        self._address = address
        self._items = items
        self._lookups = lookups or items
        self._open_containers = open_containers
        self._opened_containers: Containers | None = None
        self._clock = clock
        self._budget = Budget(clock, address.max_ru or (None if writing is None else writing.ru))
        self._charges = charges.load()
        self._rows = ReleaseRows(items, self._budget, self._charges)
        self._rows_while_live = ReleaseRows(items, Budget(clock, address.scanning_ru), self._charges)
        """The same within a share of the throughput, to spare lookups."""

        self._has_single_write_region = False
        """Whether the account was found to have one write region."""

        self._ahead_s = time.time() - clock()
        """The service's clock minus *clock*."""

    @property
    def _containers(self) -> Containers:
        """The control plane, opened at the first use."""
        if self._opened_containers is None:
            self._opened_containers = self._open_containers()
        return self._opened_containers

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """Read rows by a point read each, at the same time; see `Reader.get_many`.

        The result of a row that cannot be read is an error. If all are, raises the first.
        """
        container = container_of(release)
        if (call := traced_call.get()) is not None:
            self._address.describe(call, container, len(keys))
        names = [name_of(key) for key in keys]  # first, because it may raise
        reads = [self._read_one(container, name, timeout_s) for name in names]
        results = [await reads[0]] if len(reads) == 1 else list(await asyncio.gather(*reads))  # one needs no task
        errors = [result for result in results if isinstance(result, StoreError)]
        for error in errors:
            if isinstance(error, ContainerMissing):
                raise not_found(release) from error
        if errors and len(errors) == len(results):
            raise errors[0]
        return results

    async def _read_one(self, container: str, name: str, timeout_s: float | None) -> ReadResult:
        """Read one key; without a timeout, retry like a write."""
        try:
            if timeout_s is None:
                read = partial(self._lookups.read, container, name, DEADLINE_S)
                item = await self._budget.call_until_visible(container, read)
            else:
                item = await self._lookups.read(container, name, timeout_s)
            return None if item is None else value_of(item)
        except StoreError as error:
            return error

    @property
    def has_replicas(self) -> bool:
        return self._lookups is self._items and self._items.has_second_region

    async def get_many_elsewhere(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float
    ) -> list[ReadResult]:
        container = container_of(release)
        reads = (self._items.read_elsewhere(container, name_of(key), timeout_s) for key in keys)
        return [None if item is None else value_of(item) for item in await asyncio.gather(*reads)]

    async def catalogue(self) -> Catalogue:
        stored = await self._read_catalogue()
        return self._parsed(stored.item, stored.now)

    async def _read_catalogue(self) -> VersionedItem:
        """Read the item of the catalogue in the write region, and the service's clock."""
        try:
            stored = await self._budget.call_until_visible(CONTROL, partial(self._items.read_fresh, CONTROL, CATALOGUE))
        except ContainerMissing:
            return VersionedItem(None, "", self._clock() + self._ahead_s)
        self._ahead_s = stored.now - self._clock()
        return stored

    def _parsed(self, item: CosmosItem | None, now: float) -> Catalogue:
        """Decode the item of the catalogue, read at *now*; CatalogueUnreadable if it is invalid."""
        if item is None:
            return Catalogue(now=now)
        return catalogue_record.parse(_record_in(item), now=now, where=self._address.shown)

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        """Read items beside the catalogue; None for absent ones."""

        async def read(name: str) -> bytes | None:
            stored = await self._budget.call_until_visible(CONTROL, partial(self._items.read_fresh, CONTROL, name))
            return None if stored.item is None else value_of(stored.item)

        try:
            return list(await asyncio.gather(*map(read, names)))
        except ContainerMissing:
            return [None] * len(names)

    async def changes(self) -> AsyncIterator[Catalogue]:
        """Yield the catalogue now and after changes, read in the nearest region every POLL_S."""
        await self._check_single_write_region(POLL_S)
        seen_version = None
        while True:
            catalogue = await self._budget.call(self._read_nearest_catalogue, at_most_s=POLL_S)
            self.polled_at = time.monotonic()
            if catalogue.version != seen_version:
                seen_version = catalogue.version
                yield catalogue
            await asyncio.sleep(POLL_S)

    async def _read_nearest_catalogue(self) -> Catalogue:
        """Read the catalogue like a lookup; it may lag."""
        try:
            nearest = await self._lookups.read_nearest(CONTROL, CATALOGUE, DEADLINE_S)
        except ContainerMissing:
            nearest = NearestItem(None, from_write_region=False)
        catalogue = self._parsed(nearest.item, self._clock() + self._ahead_s)
        return replace(catalogue, primary=nearest.from_write_region)

    async def _check_single_write_region(self, at_most_s: float = inf) -> None:
        """Raise StoreMisused for several write regions, which have no compare-and-set; asks once, for *at_most_s*."""
        if self._has_single_write_region:
            return
        account = await self._budget.call(self._items.account, at_most_s=at_most_s)
        if account.multiple_write_regions:
            raise StoreMisused(
                f"the account of {self._address.shown} takes writes in several regions, where two publishers could "
                f"both change the live release; turn multi-region writes off, or use another account"
            )
        self._has_single_write_region = True

    async def close(self) -> None:
        async with AsyncExitStack() as stack:  # closes the others even if one fails
            stack.push_async_callback(self._items.close)
            if self._lookups is not self._items:
                stack.push_async_callback(self._lookups.close)
            if self._opened_containers is not None:
                stack.push_async_callback(self._opened_containers.close)

    async def warnings(self) -> list[str]:
        return [self._address.partition_warning] if self._address.partition_warning else []

    async def examine(self) -> list[Finding]:
        return await examination.examine(self._address, self._items, self._lookups, self._charges)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Do nothing, as containers grow."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        del plan  # containers grow
        await self._check_single_write_region()
        await self._create_container(container_of(draft), self._address.writing)
        await self._rows.claim(draft, partial(self._confirm_writer, draft))

    async def _confirm_writer(self, draft: DraftRef) -> None:
        """Raise ReleaseConflict if the catalogue names another writer of a draft."""
        entry = (await self.catalogue()).entry(draft.incarnation)
        if entry is not None and entry.writer != draft.writer:
            raise taken_over(draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._rows.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._rows.resume_point(draft, part)

    async def seal(self, draft: DraftRef) -> None:
        await self._rows.seal(draft)

    async def is_sealed(self, release: ReleaseRef) -> bool:
        try:
            return (await self._rows.state(release)).is_sealed
        except ReleaseNotFound:
            return False
        except ReleaseCorrupt:  # a state that cannot be decoded: the rows may be whole
            return True

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        rows = self._rows_while_live if await self._may_be_served(release) else self._rows
        async for row in rows.scan(release):
            yield row

    async def _may_be_served(self, release: ReleaseRef) -> bool:
        """Return whether lookups may need the release's throughput."""
        try:
            return release in (await self.catalogue()).served
        except CatalogueUnreadable:
            return True  # services keep their release

    async def _create_container(self, container: str, throughput: Throughput | None) -> None:
        """Create a container, and first the database if there is none."""
        create = partial(self._containers.create_container, container, throughput)
        try:
            await self._budget.call(create)
        except ContainerMissing:
            await self._budget.call(self._containers.create_database)
            await self._budget.call(create)
        self._budget.add_new_container(container)

    async def prepare(self, release: ReleaseRef) -> None:
        """Scale the container of a release to the throughput to serve with, and wait for it; see `Store.prepare`.

        Serverless accounts, and URLs without a throughput, need nothing. Raises StoreUnavailable after SCALING_S.
        """
        await self._rows.state(release)  # raises ReleaseNotFound
        if self._address.throughput is None:
            return
        container = container_of(release)
        give_up_at = self._clock() + SCALING_S
        while True:
            offer = await self._budget.call(partial(self._containers.offer, container))
            serving = None if offer is None else self._address.serving(offer)
            if offer is None or serving is None:
                return  # serverless
            if offer.throughput == serving and not offer.pending:
                return
            if self._clock() > give_up_at:
                raise self._not_scaled(container, offer, serving)
            if not offer.pending:
                await self._budget.call(partial(self._containers.scale, container, serving))
            await asyncio.sleep(SCALING_POLL_S)  # this second's RU count against the new throughput

    def _not_scaled(self, container: str, offer: Offer, serving: Throughput) -> StoreUnavailable:
        """Return the error of a container that did not get the throughput to serve with in SCALING_S."""
        if offer.pending:
            return StoreUnavailable(
                f"{container} of {self._address.shown} is still being scaled to {serving.ru:,} RU/s, which can take "
                f"hours if partitions are split; activate its release later, or set less with ru="
            )
        return StoreUnavailable(
            f"{container} of {self._address.shown} has {offer.throughput.ru:,} RU/s again whenever it is scaled to "
            f"{serving.ru:,}; stop what else scales it, or set its throughput with ru="
        )

    async def scale_down(self, release: ReleaseRef) -> None:
        """Lower the throughput to its minimum, unless a change is pending."""
        if self._address.throughput is None:
            return
        container = container_of(release)
        try:
            offer = await self._budget.call(partial(self._containers.offer, container))
            if offer is not None and not offer.pending and offer.throughput.ru > offer.minimum_ru:
                minimum = Throughput(offer.minimum_ru, offer.throughput.autoscale)
                await self._budget.call(partial(self._containers.scale, container, minimum))
        except ContainerMissing as error:
            raise not_found(release) from error

    async def swap(self, old: Catalogue, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """Replace the catalogue if its version is that of *old*, after *records*, which are written one by one.

        An *old* catalogue that was never stored is created. Raises ReleaseConflict if another version is stored.
        """
        was_never_stored = old.version == Catalogue().version
        if was_never_stored:
            await self._swap(partial(self._create_catalogue, new, records))
            return
        stored = await self._read_catalogue()
        if self._parsed(stored.item, stored.now).version != old.version:
            raise catalogue_changed()
        await self._write_records(records)
        await self._swap(partial(self._items.replace, CONTROL, _item_of(new), stored.etag))

    async def replace_unreadable(self, record: bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """Replace a damaged catalogue if it is still *record*, or raise ReleaseConflict."""
        stored = await self._read_catalogue()
        if stored.item is None or _record_in(stored.item) != record:
            raise catalogue_changed()
        await self._write_records(records)
        await self._swap(partial(self._items.replace, CONTROL, _item_of(new), stored.etag))

    async def _swap(self, write: Callable[[], Awaitable[WriteResult]]) -> None:
        """Write the catalogue by *write*; ReleaseConflict if the version that it replaces is gone."""
        await self._check_single_write_region()
        if not (await self._budget.call(write)).applied:
            raise catalogue_changed()  # perhaps with our own attempt, after a lost response

    async def _write_records(self, records: Sequence[RecordChange]) -> None:
        """Compare and set records one by one; ReleaseConflict if one is neither as before nor written already."""
        await self._check_single_write_region()
        for change in records:
            read = partial(self._items.read_fresh, CONTROL, change.name)
            stored = await self._budget.call_until_visible(CONTROL, read)
            value = None if stored.item is None else value_of(stored.item)
            if value == change.after:  # by an attempt whose response was lost
                continue
            if value != change.before:
                raise catalogue_changed()
            item = to_item(change.name, change.after)
            item_bytes(item)  # raises StoreFull
            if stored.item is None:
                write = partial(self._items.create, CONTROL, item)
            else:
                write = partial(self._items.replace, CONTROL, item, stored.etag)
            if not (await self._budget.call(write)).applied:
                raise catalogue_changed()

    async def _create_catalogue(self, new: Catalogue, records: Sequence[RecordChange]) -> WriteResult:
        """Create records and the catalogue, and before them their container if there is none."""
        create = partial(self._items.create, CONTROL, _item_of(new))
        try:
            await self._write_records(records)
            return await create()
        except ContainerMissing:
            throughput = None if self._address.throughput is None else Throughput(MANUAL_MIN)
            await self._create_container(CONTROL, throughput)
            await self._write_records(records)
            return await self._budget.call_until_visible(CONTROL, create)

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        """Delete the container of a release, if *check* accepts the catalogue; see `Store.erase`.

        The service deletes a container without a condition, and it may have been restored from a backup since *check*.
        So its state is marked with a token first, which a restored container lacks. Each attempt to delete reads the
        catalogue and the mark again. Raises ReleaseConflict if the mark is gone.
        """
        container = container_of(release)
        token = secrets.token_hex(8)
        self._budget.forget_container(container)
        is_marked = await self._rows.mark_dropping(release, token)

        async def delete() -> None:
            check(await self.catalogue())
            if is_marked:  # a container without a state never had rows
                await self._rows.check_dropping(release, token)
            await self._containers.delete_container(container)

        await self._budget.call(delete)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        check(await self.catalogue())
        return await self._rows.erase_rows(release, keys)

    async def incarnations(self) -> list[str]:
        """See `Store.incarnations`; StoreMisused without a control plane."""
        try:
            names = await self._budget.call(self._containers.list_containers)
        except ContainerMissing:
            return []
        return [name.removeprefix(CONTAINER) for name in names if await self._is_release(name)]

    async def _is_release(self, container: str) -> bool:
        """Return whether a container holds a release; one by its name alone if hotplate drew that name."""
        if not container.startswith(CONTAINER):
            return False
        return bool(DRAWN.fullmatch(container.removeprefix(CONTAINER))) or await self._rows.has_state(container)


def open_url(url: str, observer: Observer | None = None) -> CosmosStore:
    """Open `cosmos://ACCOUNT/DATABASE` or `cosmos+http(s)://HOST:PORT/DATABASE`."""
    address = parse(url)
    lookups = None
    if address.through_sdk:
        from hotplate.stores.cosmos.account import CosmosAccount  # noqa: PLC0415 -- half a second to import

        lookups = CosmosAccount(address, observer)
    items = SignedClient(address, observer)
    return CosmosStore(address, items, partial(open_containers, address, observer), lookups=lookups)


def _item_of(catalogue: Catalogue) -> CosmosItem:
    """Encode a catalogue as an item."""
    return {"id": CATALOGUE, "catalogue": orjson.loads(catalogue_record.dump(catalogue))}


def _record_in(item: CosmosItem) -> bytes:
    """Return the record in the item of a catalogue."""
    return orjson.dumps(item.get("catalogue"))
