"""The Cosmos DB store: a container a release, an item a row, the catalogue one item that is swapped by its etag."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from urllib.parse import urlsplit

import orjson

from hotplate.stores import catalogue as catalogue_record
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.cosmos import containers
from hotplate.stores.cosmos.charges import load, typical_ru
from hotplate.stores.cosmos.containers import Containers, create_with_database, open_containers
from hotplate.stores.cosmos.errors import (
    DEADLINE_S,
    TRANSIENT,
    ContainerMissing,
    CosmosThrottled,
    CosmosUnavailable,
    RateLimiter,
    Retrier,
)
from hotplate.stores.cosmos.rows import (
    CATALOGUE,
    CONTAINER,
    CONTROL,
    DRAWN,
    ReleaseRows,
    container_of,
    item_bytes,
    name_of,
    to_item,
    value_of,
)
from hotplate.stores.cosmos.signed import CosmosItem, ItemWritten, SignedClient
from hotplate.stores.cosmos.url import KEY, MANUAL_MIN, Address, Offer, Throughput, parse
from hotplate.stores.errors import CatalogueUnreadable, ReleaseConflict, StoreError, StoreMisused
from hotplate.stores.store import (
    Bill,
    Diagnosed,
    Estimate,
    Finding,
    Level,
    Observer,
    Plan,
    ProvisionedStore,
    PublishCounts,
    Row,
    RowEraser,
    Slot,
    not_found,
    taken_over,
    traced_call,
)
from hotplate.stores.urls import LOOPBACK

# With less time left, a lookup is not tried again.
MIN_RETRY_S = 0.001

# How often a reader polls the catalogue: 0.5 RU/s for each process.
POLL_S = 2.0

# No version of an item has this etag, so a replacement by it never takes place.
NO_VERSION = '"00000000-0000-0000-0000-000000000000"'

CatalogueVersion = tuple[str, int, str]


class CosmosStore(Diagnosed, ProvisionedStore, RowEraser):
    """One database of one account; an instance belongs to one event loop and process."""

    batch = 64
    """So many point reads are in flight without waiting for a connection."""

    coalesce = 1

    def __init__(
        self,
        address: Address,
        items: SignedClient,
        open_containers: Callable[[], Containers],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the account's items and what opens its control plane."""
        written = containers.writing_throughput(address)
        limiter = RateLimiter(clock, address.max_ru or (None if written is None else written.ru))
        self._address = address
        self._items = items
        self._open_containers = open_containers
        self._clock = clock
        self._retrier = Retrier(clock, limiter)
        self._charges = load()
        self._rows = ReleaseRows(items, self._retrier, self._charges)
        gentle = Retrier(clock, RateLimiter(clock, containers.scanning_ru(address)))
        self._rows_while_live = ReleaseRows(items, gentle, self._charges)
        self._catalogue = _CatalogueItem(address, items, clock)

    @cached_property
    def _containers(self) -> Containers:
        return self._open_containers()

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        container = container_of(release)
        if (call := traced_call.get()) is not None:
            self._address.describe(call, container, len(keys))
        if timeout_s is None:
            read_slot = partial(self._read_patiently, container)
        else:
            read_slot = partial(self._read_in_time, container, timeout_s, self._clock() + timeout_s)
        names = [name_of(key) for key in keys]  # which may raise, and a read that was made would never be awaited
        reads = [read_slot(name) for name in names]  # alone, one needs no task
        slots = [await reads[0]] if len(reads) == 1 else list(await asyncio.gather(*reads))
        failed = 0
        for slot in slots:
            if isinstance(slot, StoreError):
                if isinstance(slot, ContainerMissing):
                    raise not_found(release) from slot
                failed += 1
        if failed and failed == len(slots) and isinstance(slots[0], StoreError):
            raise slots[0]
        return slots

    async def _read_in_time(self, container: str, attempt_s: float, give_up_at: float, name: str) -> Slot:
        """Point-read one key as lookups do, so it holds up or fails no other.

        A failure that may pass is tried once more, and one that was sent to nobody, as connections are not opened for a
        moment after one has failed, again and again while there is time.
        """
        retried = False
        while True:
            try:
                return _slot_of(await self._items.read(container, name, attempt_s))
            except (CosmosThrottled, CosmosUnavailable) as error:
                pause_s = _retry_pause_s(error)
                if retried or pause_s is None or self._clock() + pause_s + MIN_RETRY_S > give_up_at:
                    return error
                retried = not (error.kind == "connect" and pause_s)
            except StoreError as error:
                return error
            await asyncio.sleep(pause_s)
            attempt_s = min(attempt_s, give_up_at - self._clock())

    async def _read_patiently(self, container: str, name: str) -> Slot:
        """Point-read one key as publishers and operators do: as often, and for as long, as a write is tried."""
        try:
            return _slot_of(await self._retrier.call(partial(self._items.read, container, name, DEADLINE_S)))
        except StoreError as error:
            return error

    async def catalogue(self) -> Catalogue:
        return await self._retrier.call(self._catalogue.read)

    async def changes(self) -> AsyncIterator[Catalogue]:
        await self._catalogue.check_single_writer()
        seen: CatalogueVersion | None = None
        while True:
            found = await self._retrier.call(self._catalogue.read_nearest, at_most_s=POLL_S)
            self.polled_at = time.monotonic()
            if found.version != seen:
                seen = found.version
                yield found
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        try:
            await self._items.close()
        finally:
            if "_containers" in vars(self):  # opened
                await self._containers.close()

    async def warnings(self) -> list[str]:
        return containers.partition_warnings(self._address)

    async def examine(self) -> list[Finding]:
        address, account = self._address, await self._items.account()
        live = (await self.catalogue()).live_ref
        container = None if live is None else container_of(live)
        warnings = [
            *containers.partition_warnings(address),
            *await containers.throughput_warnings(address, container, self._offer),
        ]
        regions = f"Cosmos DB, read in {', '.join(account.regions)}"
        server = Finding(Level.OK, "server", regions)
        if account.multiple_write_regions:
            sentence = (
                f"{regions}, written in several, so nothing can be compared and set; turn multi-region writes off"
            )
            server = Finding(Level.ERROR, "server", sentence)
        throughput = [Finding(Level.WARNING, "throughput", sentence) for sentence in warnings]
        if not throughput:
            wanted = "serverless" if address.throughput is None else f"{address.throughput.ru:,} RU/s for what is live"
            throughput = [Finding(Level.OK, "throughput", wanted)]
        writing = await _examine_writing(address, self._items)
        return [server, writing, _examine_control(address), *throughput, _examine_transport(address)]

    async def _offer(self, container: str) -> Offer | None:
        return await self._retrier.call(partial(self._containers.offer, container))

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        del draft
        containers.check_room(self._address, plan)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await self.check_room(draft, plan)
        await self._retrier.call(self._catalogue.check_single_writer)
        throughput = containers.writing_throughput(self._address)
        await self._retrier.call(partial(create_with_database, self._containers, container_of(draft), throughput))
        await self._rows.claim(draft, partial(self._confirm_writer, draft))

    async def _confirm_writer(self, draft: DraftRef) -> None:
        """Raise ReleaseConflict if the catalogue has given the draft to another writer."""
        entry = (await self.catalogue()).entry(draft.incarnation)
        if entry is not None and entry.writer != draft.writer:
            raise taken_over(draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._rows.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._rows.resume_point(draft, part)

    async def seal(self, draft: DraftRef) -> None:
        await self._rows.seal(draft)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        async for row in (self._rows_while_live if await self._may_be_served(release) else self._rows).scan(release):
            yield row

    async def _may_be_served(self, release: ReleaseRef) -> bool:
        """Return whether lookups need their share of a release's throughput."""
        try:
            return release in (await self.catalogue()).served
        except CatalogueUnreadable:
            return True  # services go on with what they have

    async def prepare(self, release: ReleaseRef) -> None:
        await self._rows.check(release)
        if self._address.throughput is not None:
            await containers.scale_up(
                self._address, self._containers, container_of(release), self._retrier, self._clock
            )

    async def scale_down(self, release: ReleaseRef) -> None:
        if self._address.throughput is None:
            return
        try:
            await containers.scale_down(self._containers, container_of(release), self._retrier)
        except ContainerMissing as error:
            raise not_found(release) from error

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        await self._retrier.call(self._catalogue.check_single_writer)
        if old.version == Catalogue().version:
            write = partial(self._create_catalogue, new)
        else:
            if self._catalogue.etag(old.version) is None:
                await self.catalogue()
            etag = self._catalogue.etag(old.version)
            if etag is None:
                raise _conflict()
            write = partial(self._items.replace, CONTROL, _record(new), etag)
        if not (await self._retrier.call(write)).done:
            raise _conflict()  # perhaps with an attempt of our own whose response was lost

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        await self._retrier.call(self._catalogue.check_single_writer)
        item, etag, _ = await self._retrier.call(partial(self._items.read_fresh, CONTROL, CATALOGUE))
        if item is None or _record_in(item) != record:
            raise _conflict()
        if not (await self._retrier.call(partial(self._items.replace, CONTROL, _record(new), etag))).done:
            raise _conflict()

    async def _create_catalogue(self, new: Catalogue) -> ItemWritten:
        create = partial(self._items.create, CONTROL, _record(new))
        try:
            return await create()
        except ContainerMissing:
            throughput = None if self._address.throughput is None else Throughput(MANUAL_MIN)
            await create_with_database(self._containers, CONTROL, throughput)
            return await self._retrier.until_visible(create)

    async def erase(self, release: ReleaseRef) -> None:
        await self._retrier.call(partial(self._containers.delete_container, container_of(release)))
        self._items.forget_session(container_of(release))

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        return await self._rows.erase(release, keys)

    async def incarnations(self) -> list[str]:
        """See the contract; StoreMisused if Entra ID does not allow to list, as nothing can be erased then, either."""
        try:
            names = await self._retrier.call(self._containers.list_containers)
        except ContainerMissing:
            return []
        return [name.removeprefix(CONTAINER) for name in names if await self._is_release(name)]

    async def _is_release(self, container: str) -> bool:
        """Return whether a container is a release's: other programs may use similar names."""
        if not container.startswith(CONTAINER):
            return False
        return bool(DRAWN.fullmatch(container.removeprefix(CONTAINER))) or await self._rows.has_state(container)

    def bill(self) -> Bill:
        return containers.bill_of(self._address)

    def typical_ru(self, plan: Plan) -> float:
        return typical_ru(self._charges, plan)

    async def try_catalogue(self) -> tuple[Catalogue, str]:
        try:
            found = await self._catalogue.read()
        except StoreError as error:
            return self._catalogue.empty(), str(error)
        await self._retrier.call(self._catalogue.check_single_writer)
        return found, ""

    def row_bytes(self, row: Row) -> int:
        return item_bytes(to_item(name_of(row.key), row.value))

    def estimate(self, plan: Plan, counts: PublishCounts, *, first: bool, live: bool) -> Estimate:
        return containers.estimate_publish(self._address, self._charges, plan, counts, first=first, live=live)


class _CatalogueItem:
    """The catalogue as one item of a small container of its own; lives as long as its store."""

    def __init__(self, address: Address, items: SignedClient, clock: Callable[[], float]) -> None:
        self._address = address
        self._items = items
        self._clock = clock
        self._etags = dict[CatalogueVersion, str]()
        """Of the catalogue that was read last."""

        self._ahead_s = time.time() - clock()
        """How far the service's clock is ahead of ours, as of its last response; before any, by our own clock."""

        self._single_writer = False

    async def check_single_writer(self) -> None:
        """Refuse an account if nothing can be compared and set; reads the account once."""
        if not self._single_writer:
            if (await self._items.account()).multiple_write_regions:
                raise StoreMisused(
                    f"the account of {self._address.shown} takes writes in several regions, where two publishers could "
                    f"both change what is live; turn multi-region writes off, or use another account"
                )
            self._single_writer = True

    async def read(self) -> Catalogue:
        """Read the catalogue as publishers do; of generation 0 if there is none yet."""
        try:
            item, etag, now = await self._items.read_fresh(CONTROL, CATALOGUE)
        except ContainerMissing:
            return self.empty()
        self._ahead_s = now - self._clock()
        found = self._parse(item, now)
        self._etags = {found.version: etag}
        return found

    async def read_nearest(self) -> Catalogue:
        """Read the catalogue as readers do, from the nearest region, which may be behind the one that takes writes."""
        try:
            item, primary = await self._items.read_nearest(CONTROL, CATALOGUE, DEADLINE_S)
        except ContainerMissing:
            item, primary = None, False
        return replace(self._parse(item, self._now()), primary=primary)

    def empty(self) -> Catalogue:
        """Return the catalogue of a store that nothing was published to."""
        return Catalogue(now=self._now())

    def etag(self, version: CatalogueVersion) -> str | None:
        """Return the etag of a version, if that was read last."""
        return self._etags.get(version)

    def _parse(self, item: CosmosItem | None, now: float) -> Catalogue:
        if item is None:
            return Catalogue(now=now)
        return catalogue_record.parse(_record_in(item), now=now, where=self._address.shown)

    def _now(self) -> float:
        return self._clock() + self._ahead_s


def open_url(url: str, observer: Observer | None = None) -> CosmosStore:
    """Open `cosmos://ACCOUNT/DATABASE` or `cosmos+http(s)://HOST:PORT/DATABASE`; options: `stores/cosmos/url.py`."""
    address = parse(url)
    client = _open_client(address, observer)
    return CosmosStore(address, client, partial(open_containers, address, observer))


def _open_client(address: Address, observer: Observer | None) -> SignedClient:
    if not address.through_sdk:
        return SignedClient(address, observer)
    from hotplate.stores.cosmos.account import SdkClient  # noqa: PLC0415 -- half a second that others need not wait for

    return SdkClient(address, observer)


def _slot_of(item: CosmosItem | None) -> Slot:
    try:
        return None if item is None else value_of(item)
    except StoreError as error:
        return error


def _retry_pause_s(error: CosmosThrottled | CosmosUnavailable) -> float | None:
    """Return how long to wait before a lookup is tried again; None if that does not help."""
    if isinstance(error, CosmosThrottled) or error.kind in TRANSIENT or error.kind == "timeout":
        return error.retry_after_s
    return None


def _record(catalogue: Catalogue) -> CosmosItem:
    return {"id": CATALOGUE, "catalogue": orjson.loads(catalogue_record.dump(catalogue))}


def _record_in(item: CosmosItem) -> bytes:
    return orjson.dumps(item.get("catalogue"))


def _conflict() -> ReleaseConflict:
    return ReleaseConflict("the catalogue was changed by somebody else first")


async def _examine_writing(address: Address, items: SignedClient) -> Finding:
    """Try to replace a version of the catalogue that never was: refused by its version, or for want of the right."""
    try:
        await items.replace(CONTROL, {"id": CATALOGUE}, NO_VERSION)
    except ContainerMissing:
        return Finding(Level.OK, "may publish", f"{address.shown} is empty, so this shows at the first publish")
    except CosmosUnavailable as error:
        if error.kind not in ("forbidden", "unauthorized"):
            raise
        return Finding(Level.WARNING, "may publish", f"no, which is right for a service; to publish: {error}")
    except StoreError as error:
        return Finding(Level.WARNING, "may publish", f"no: {error}")
    return Finding(Level.OK, "may publish", "yes")


def _examine_control(address: Address) -> Finding:
    if address.arm is not None:
        return Finding(Level.OK, "containers", "are made and dropped by Azure Resource Manager")
    if address.key is not None:
        return Finding(Level.OK, "containers", "are made and dropped with the account's key")
    sentence = (
        f"cannot be made, which is right for a service; to publish, add subscription= and resource_group= or {KEY}"
    )
    return Finding(Level.WARNING, "containers", sentence)


def _examine_transport(address: Address) -> Finding:
    parts = urlsplit(address.endpoint)
    if parts.scheme == "https":
        return Finding(Level.OK, "transport", "TLS, with a certificate that is verified")
    if parts.hostname in LOOPBACK:
        return Finding(Level.OK, "transport", "not encrypted, within this machine")
    return Finding(Level.WARNING, "transport", "lists and tokens cross the network unencrypted; use https")
