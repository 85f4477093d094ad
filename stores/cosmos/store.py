"""Store in Cosmos DB: a container per release with an item per row, and a container with the catalogue.

Items are read and written by signed requests (`SignedClient`), containers by the SDK or Azure Resource Manager
(`Containers`). The *throughput* of a container limits its requests, in request units (RU) a second, and is paid by the
hour: it is raised while a release is written, and lowered once the release is not served any more.

An operation is a sequence of steps. A step is a few requests of one attempt each, and is repeated by `Retrier.call`
until it succeeds or its time is over: only here and by `ReleaseRows`, and never within another step.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from math import inf

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.concurrency import all_done
from hotplate.stores.cosmos import charges, examination
from hotplate.stores.cosmos.containers import (
    Containers,
    create_container,
    open_containers,
    scale_to_minimum,
    scale_to_serve,
)
from hotplate.stores.cosmos.control import ControlContainer
from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.items import CONTAINER, CONTROL, container_of, name_of, value_of
from hotplate.stores.cosmos.paced_items import ContainerRates, NewContainers, PacedItems
from hotplate.stores.cosmos.rows import ReleaseRows
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import MANUAL_MIN, Address, Throughput, parse
from hotplate.stores.errors import (
    CatalogueUnreadable,
    NotSent,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
    tracked_swap,
)
from hotplate.stores.store import (
    CheckCatalogue,
    Finding,
    Observer,
    Plan,
    ReadResult,
    RecordChange,
    Row,
    Store,
    taken_over,
    traced_call,
)
from hotplate.stores.timing import Retrier

# Time limits of a step that is repeated while the service is unavailable, or answers 429.
UNAVAILABLE_S = 20.0
THROTTLED_S = 120.0
# Generated incarnations.
DRAWN = re.compile(r"[0-9a-f]{12}")
# Polling interval and time limit of a change of throughput.
SCALING_POLL_S = 1.0
SCALING_S = 600.0


class CosmosStore(Store):
    """One database of one account, on one event loop."""

    is_provisioned = True
    erases_rows = True

    batch = 64
    """Half of a client's connections."""

    coalesce = 1

    poll_s = 2.0
    """Polling takes 0.5 RU/s."""

    def __init__(
        self,
        address: Address,
        client: SignedClient,
        open_containers: Callable[[], Containers],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*open_containers* is called at the first use of the control plane."""
        self._address = address
        self._client = client
        self._open_containers = open_containers
        self._opened_containers: Containers | None = None
        self._clock = clock
        self._charges = charges.load()
        self._new_containers = NewContainers(clock)
        self._control_retrier = self._retrier()
        self._swap_retrier = Retrier(clock, for_s=UNAVAILABLE_S, throttled_for_s=THROTTLED_S, unavailable=NotSent)
        self._containers_retrier = self._retrier()
        self._rows_retrier = self._retrier()
        self._control = ControlContainer(address.shown, client, self._paced(lambda _: inf), clock)
        self._rates = ContainerRates(writing_ru=address.writing_ru or inf, shared_ru=address.shared_ru)
        self._items = self._paced(self._rates.rate_ru)
        """The items of releases, for everything but lookups."""

        self._rows = ReleaseRows(self._items, self._rows_retrier)
        self._states = self._rows.states

    def _retrier(self) -> Retrier:
        """Return a Retrier for the control container, the control plane or rows, which are throttled separately.

        A lease that is renewed meanwhile must not prolong the time for which throttled rows are repeated.
        """
        return Retrier(self._clock, for_s=UNAVAILABLE_S, throttled_for_s=THROTTLED_S)

    def _paced(self, rate_ru: Callable[[str], float]) -> PacedItems:
        """Return access to items within *rate_ru*, a function of their container."""
        return PacedItems(
            self._client,
            self._charges,
            self._new_containers,
            clock=self._clock,
            rate_ru=rate_ru,
            loading_ru=self._address.loading_ru,
        )

    @property
    def _containers(self) -> Containers:
        """The control plane, opened at the first use; StoreClosed after `close`."""
        if self._opened_containers is None:
            self._client.check_open()
            self._opened_containers = self._open_containers()
        return self._opened_containers

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """Read rows by one point read each, all at the same time; see `Reader.get_many`.

        Without a timeout, they are paced and repeated like writes. A row that cannot be read has an error as its
        result. If no row can be read, raises the first error; ReleaseNotFound if the release's container is missing.
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
                raise error
        if errors and len(errors) == len(results):
            raise errors[0]
        return results

    async def _read_one(self, container: str, name: str, timeout_s: float | None) -> ReadResult:
        try:
            if timeout_s is None:
                item = await self._rows_retrier.call(self._items.look_up, container, name)
            else:
                item = await self._client.read(container, name, timeout_s)
            return None if item is None else value_of(item)
        except StoreError as error:
            return error

    @property
    def has_replicas(self) -> bool:
        return self._client.has_second_region

    async def get_many_elsewhere(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float
    ) -> list[ReadResult]:
        container = container_of(release)
        reads = (self._client.read_elsewhere(container, name_of(key), timeout_s) for key in keys)
        return [None if item is None else value_of(item) for item in await all_done(*reads)]

    async def catalogue(self) -> Catalogue:
        try:
            catalogue = await self._control_retrier.call(self._control.catalogue)
        except CatalogueUnreadable:
            self._rates.follow(Catalogue())  # services keep their release
            raise
        self._rates.follow(catalogue)
        return catalogue

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        """Read items beside the catalogue; None for absent ones."""
        reads = (self._control_retrier.call(self._control.record, name) for name in names)
        return await all_done(*reads)

    async def poll(self) -> Catalogue:
        """Read the catalogue in the nearest region, by one attempt."""
        await self._control.check_single_write_region()
        return await self._control.nearest_catalogue()

    async def close(self) -> None:
        async with AsyncExitStack() as stack:  # closes the others even if one fails
            stack.push_async_callback(self._client.close)
            if self._opened_containers is not None:
                stack.push_async_callback(self._opened_containers.close)

    async def warnings(self) -> list[str]:
        return [self._address.partition_warning] if self._address.partition_warning else []

    async def examine(self) -> list[Finding]:
        return await examination.examine(self._address, self._client, self._charges)

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Do nothing, as containers grow."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        del plan  # containers grow
        await self._control_retrier.call(self._control.check_single_write_region)
        await self._create_container(container_of(draft), self._address.writing)

        async def confirm() -> None:
            entry = (await self._control.catalogue()).entry(draft.incarnation)
            if entry is not None and entry.writer != draft.writer:
                raise taken_over(draft)

        await self._rows.claim(draft, confirm)

    async def _create_container(self, container: str, throughput: Throughput | None) -> None:
        await self._containers_retrier.call(create_container, self._containers, container, throughput)
        self._new_containers.add(container)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await self._rows.put(draft, rows, part)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return await self._rows.resume_point(draft, part)

    async def seal(self, draft: DraftRef) -> None:
        await self._rows.seal(draft)

    async def is_sealed(self, release: ReleaseRef) -> bool:
        try:
            state = await self._rows_retrier.call(self._states.read, release)
        except ReleaseNotFound:
            return False
        except ReleaseCorrupt:  # a state that cannot be decoded: the rows may be whole
            return True
        return state.is_sealed

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        with suppress(CatalogueUnreadable):
            await self.catalogue()  # for the rate
        async for row in self._rows.scan(release):
            yield row

    async def prepare(self, release: ReleaseRef) -> None:
        """Scale the container of a release to the throughput to serve with, and wait for it; see `Store.prepare`.

        Serverless accounts, and URLs without a throughput, need nothing.
        """
        container = container_of(release)
        await self._rows_retrier.call(self._states.read, release)  # raises ReleaseNotFound
        if self._address.throughput is not None:
            await self._scale_to_serve(container, self._address.throughput)

    async def _scale_to_serve(self, container: str, wanted: Throughput) -> None:
        """Scale a container to the *wanted* throughput, and wait for it. Raises StoreUnavailable after SCALING_S."""
        give_up_at = self._clock() + SCALING_S
        while True:
            # None once the container has the throughput to serve with; before, its present throughput.
            unfinished = await self._containers_retrier.call(scale_to_serve, self._containers, container, wanted)
            if unfinished is None:
                return
            if self._clock() > give_up_at:
                raise StoreUnavailable(
                    f"{container} of {self._address.shown} has {unfinished.throughput.ru:,} RU/s, and is not scaled to "
                    f"{unfinished.serving(wanted).ru:,}: its partitions are being split, or something else scales it; "
                    f"activate its release later, or set its throughput with ru="
                )
            await asyncio.sleep(SCALING_POLL_S)  # this second's RU count against the new throughput

    async def scale_down(self, release: ReleaseRef) -> None:
        """Lower the throughput to its minimum, unless a change is pending."""
        if self._address.throughput is None:
            return
        await self._containers_retrier.call(scale_to_minimum, self._containers, container_of(release))

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        try:
            await self._replace_catalogue(old, new, records)
        except ContainerMissing:  # before the first publish: create the container of the catalogue
            throughput = None if self._address.throughput is None else Throughput(MANUAL_MIN)
            with tracked_swap():  # until the container exists, the catalogue cannot have been written
                await self._create_container(CONTROL, throughput)
            await self._replace_catalogue(old, new, records)

    async def _replace_catalogue(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange]) -> None:
        """Replace *old*, the catalogue or its bytes, by *new*.

        Repeats all that comes before it, and writes that the service has not processed, as after a 429 or when another
        region takes writes. A write without a response is not repeated: if another process has replaced *new* since,
        the second attempt would be refused as if the first had lost a race.
        """
        with tracked_swap() as progress:
            etag = await self._control_retrier.call(self._control.begin_swap, old, records)
            progress.is_sent = True
            await self._swap_retrier.call(self._control.write, new, etag)
        self._rates.follow(new)

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        """Delete the container of a release, if *check* accepts the catalogue; see `Store.erase`.

        The service deletes a container without a condition, and it may have been restored from a backup since *check*.
        So its state is marked with a token first, which a restored container lacks. Each attempt to delete reads the
        catalogue and the mark again. Raises ReleaseConflict if the mark is gone.
        """
        container = container_of(release)
        token = secrets.token_hex(8)
        self._new_containers.discard(container)
        is_marked = await self._rows_retrier.call(self._states.mark_dropping, release, token)

        async def delete() -> None:
            check(await self._control.catalogue())
            if is_marked:  # otherwise, the container has no rows, or no state by which they can be read
                await self._states.check_dropping(release, token)
            await self._containers.delete_container(container)

        await self._containers_retrier.call(delete)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        check(await self.catalogue())
        return await self._rows.erase_rows(release, keys)

    async def incarnations(self) -> list[str]:
        """See `Store.incarnations`; StoreMisused without a control plane."""
        try:
            names = await self._containers_retrier.call(self._containers.list_containers)
        except ContainerMissing:
            return []

        incarnations = list[str]()
        for container in names:
            if not container.startswith(CONTAINER):
                continue
            incarnation = container.removeprefix(CONTAINER)
            # A generated name shows that the container is ours; with any other name, only the item with the state does.
            is_generated = DRAWN.fullmatch(incarnation) is not None
            if is_generated or await self._rows_retrier.call(self._states.is_in, container):
                incarnations.append(incarnation)
        return incarnations


def open_url(url: str, observer: Observer | None = None) -> CosmosStore:
    """Open `cosmos://ACCOUNT/DATABASE` or `cosmos+http(s)://HOST:PORT/DATABASE`."""
    address = parse(url)
    client = SignedClient(address, observer)
    return CosmosStore(address, client, partial(open_containers, address, observer))
