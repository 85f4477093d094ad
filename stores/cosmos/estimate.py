"""What a publish into Cosmos DB will take: the real store over a simulated account, which charges by size.

It is exact if nothing disturbs: no response takes time, no request is refused, no replica is behind. What responses
do take is caught up with by the rate limiter, up to a tenth of a second each time that the publish waits for one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from stores import catalogue as catalogue_record
from stores.catalogue import GRACE_S, Catalogue, Release, State
from stores.cosmos.charges import SYSTEM_BYTES, Charges
from stores.cosmos.containers import SERVERLESS_RU, Containers, serving_throughput, writing_throughput
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import (
    CATALOGUE,
    CONTROL,
    STATE,
    Account,
    Item,
    Items,
    ItemWritten,
    VersionedItem,
    container_of,
    item_bytes,
)
from stores.cosmos.url import MANUAL_MIN, Address, Offer, Throughput, minimum_ru
from stores.estimate import Spool
from stores.prices import Bill, Provisioned
from stores.store import Estimate, Plan, Simulation, Store

# Around a value in its item: its id, names and quotes, about.
NAME_BYTES = 40

# What request units are spent on.
WRITING = "writing rows and lists of their keys"
READING = "reading them back"
RELEASE_STATE = "the state of the release"
THE_CATALOGUE = "the catalogue"
CONTAINERS = "making, scaling and dropping containers"

# `CosmosStore`, which this module cannot import.
OpenStore = Callable[[Address, Items, Callable[[], Containers], None, Callable[[], float]], Store]


def bill_of(address: Address, stored_bytes: int = 0) -> Bill:
    """Return what a publish and its release are billed for."""
    written, serving = writing_throughput(address), address.throughput
    if written is None or serving is None:
        return Bill(float(address.max_ru or SERVERLESS_RU))
    control = Provisioned("catalogue", MANUAL_MIN)
    kept = minimum_ru(written.ru, stored_bytes, autoscale=written.autoscale)
    live = serving_throughput(serving, Offer(written, kept, pending=False))
    return Bill(
        float(address.max_ru or written.ru),
        writing=(Provisioned("new release", written.ru, written.autoscale), control),
        afterwards=(
            Provisioned("live release", live.ru, live.autoscale),
            Provisioned("release before it, kept", kept, written.autoscale),
            control,
        ),
    )


def typical_ru(charges: Charges, plan: Plan) -> float:
    """Return what writing a release and reading it back costs if all of its rows were of the same size."""
    value_bytes = plan.payload_bytes / max(plan.rows, 1)
    size = int(value_bytes * 4 / 3) + NAME_BYTES + SYSTEM_BYTES
    return plan.rows * (charges.create(size, 0) + charges.read(size))


@dataclass(slots=True)
class _Container:
    throughput: Throughput | None
    highest_ru: int
    is_new: bool = False


class SimulatedAccount:
    """One database of one account; see `Items` and `Containers`. Lives as long as one estimate.

    Whatever is read or written is charged by size, and nothing is ever refused.
    """

    def __init__(self, address: Address, charges: Charges, found: Catalogue, clock: Callable[[], float]) -> None:
        """Begin with the catalogue that was *found*, and a container for each of its releases."""
        self.request_units = defaultdict[str, float](float)
        self.makes = list[str]()
        self._address = address
        self._charges = charges
        self._clock = clock
        self._ahead_s = found.now - clock()
        self._spool = Spool()
        self._has_database = bool(found.generation)
        self._containers = dict[str, _Container]()
        self._etags = 0
        if found.generation:
            self._containers[CONTROL] = _Container(self._control_throughput, MANUAL_MIN)
            catalogue = orjson.loads(catalogue_record.dump(found))
            self._put(CONTROL, {"id": CATALOGUE, "catalogue": catalogue})
        for release in found.releases:
            self._containers[container_of(release.ref)] = self._existing(found, release)

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> Item | None:
        del timeout_s, fresh
        item = await self._get(container, name)
        if item is None:
            self._spend(container, name, self._charges.not_found(strong=False), RELEASE_STATE)
        else:
            self._spend(container, name, self._charges.read(item_bytes(item)), READING)
        return item

    def start_read(self, container: str, name: str, timeout_s: float) -> None:
        del container, name, timeout_s  # nobody looks anything up here

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[Item | None, bool]:
        return await self.read(container, name, timeout_s), True

    async def read_versioned(self, container: str, name: str) -> VersionedItem:
        item = await self.read(container, name, 0.0)
        now = float(int(self._clock() + self._ahead_s))  # as the header `Date` has it
        return VersionedItem(item, "" if item is None else item["_etag"], now)

    async def create(self, container: str, item: Item) -> ItemWritten:
        before = await self._get(container, item["id"])
        if before is not None:
            return self._written(container, item, self._charges.refused_write(item_bytes(before)), done=False)
        self._put(container, item)
        return self._written(container, item, self._charges.create(item_bytes(item), 0))

    async def replace(self, container: str, item: Item, etag: str) -> ItemWritten:
        before = await self._get(container, item["id"])
        if before is None:
            return self._written(container, item, self._charges.not_found(strong=False), done=False)
        if before["_etag"] != etag:
            return self._written(container, item, self._charges.refused_write(item_bytes(before)), done=False)
        self._put(container, item)
        return self._written(container, item, self._charges.replace(item_bytes(before), item_bytes(item), 0, 0))

    async def account(self) -> Account:
        return Account(multiple_write_regions=False, regions=("simulated",))

    async def create_database(self) -> bool:
        self._spend_on_containers(self._charges.metadata_write)
        self.makes.append(f"the database {self._address.database}, unless it is there")
        self._has_database, was_there = True, self._has_database
        return not was_there

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        if not self._has_database:
            raise ContainerMissing(f"{self._address.shown} has no database yet")
        if container in self._containers:
            return False
        self._spend_on_containers(self._charges.metadata_write)
        self._containers[container] = _Container(throughput, throughput.ru if throughput else 0, is_new=True)
        self.makes.append(self._made(container, throughput))
        return True

    async def list_containers(self) -> list[str]:
        if not self._has_database:
            raise ContainerMissing(f"{self._address.shown} has no database yet")
        self._spend_on_containers(self._charges.metadata_read)
        return list(self._containers)

    async def delete_container(self, container: str) -> None:
        if self._containers.pop(container, None) is not None:
            self._spend_on_containers(self._charges.metadata_write)
            self._spool.drop(container)

    async def offer(self, container: str) -> Offer | None:
        found = self._container(container)
        if found.throughput is None:
            return None
        self._spend_on_containers(3 * self._charges.metadata_read)  # the container, its offer's name, the offer
        least = minimum_ru(found.highest_ru, 0, autoscale=found.throughput.autoscale)
        return Offer(found.throughput, least, pending=False)

    async def scale(self, container: str, throughput: Throughput) -> None:
        found = self._container(container)
        self._spend_on_containers(3 * self._charges.metadata_read)  # as above, but for the offer, which is replaced
        found.throughput, found.highest_ru = throughput, max(found.highest_ru, throughput.ru)
        if found.is_new:
            self.makes.append(f"which is scaled to {_described(throughput)} before it ")

    async def close(self) -> None:
        """See `Items`."""

    @property
    def _control_throughput(self) -> Throughput | None:
        return None if self._address.throughput is None else Throughput(MANUAL_MIN)

    def _existing(self, found: Catalogue, release: Release) -> _Container:
        """Return the container of a release that is there; its throughput is what the last publish left it."""
        written, serving = writing_throughput(self._address), self._address.throughput
        if written is None or serving is None:
            return _Container(None, 0)
        least = minimum_ru(written.ru, 0, autoscale=written.autoscale)
        over_at = (release.superseded_at or 0.0) + GRACE_S
        others = (entry for entry in found.releases if entry.id != release.id)
        pruned_since = any(entry.created_at >= over_at for entry in others)  # for each publish ends with a prune
        served = release.state in (State.SUPERSEDED, State.WITHDRAWN) and not pruned_since
        if served or release.state is State.LIVE:
            return _Container(serving_throughput(serving, Offer(written, least, pending=False)), written.ru)
        return _Container(Throughput(least, written.autoscale), written.ru)

    def _made(self, container: str, throughput: Throughput | None) -> str:
        what = f"the container {CONTROL}, of the catalogue" if container == CONTROL else "the container of the release"
        unindexed = "" if container == CONTROL else ", nothing indexed"
        if throughput is None:
            return f"{what}: serverless{unindexed}"
        partitions = throughput.initial_partitions
        if container == CONTROL:
            return f"{what}: {_described(throughput)}"
        plural = "s" if partitions > 1 else ""
        return f"{what}: {_described(throughput)}, {partitions} physical partition{plural}{unindexed}"

    def _container(self, container: str) -> _Container:
        try:
            return self._containers[container]
        except KeyError:
            raise ContainerMissing(f"{self._address.shown} has no container {container}") from None

    async def _get(self, container: str, name: str) -> Item | None:
        await asyncio.sleep(0)  # as a network would let others go on
        self._container(container)
        stored = self._spool.get(container, name)
        if stored is None:
            return None
        item: Item = orjson.loads(stored)
        return item

    def _put(self, container: str, item: Item) -> None:
        self._etags += 1
        self._spool.put(container, [(item["id"], orjson.dumps(item | {"_etag": str(self._etags), "_rid": ""}))])

    def _written(self, container: str, item: Item, ru: float, *, done: bool = True) -> ItemWritten:
        self._spend(container, item["id"], ru, WRITING)
        return ItemWritten(done, ru)

    def _spend(self, container: str, name: str, ru: float, on: str) -> None:
        purpose = THE_CATALOGUE if container == CONTROL else RELEASE_STATE if name == STATE else on
        self.request_units[purpose] += ru

    def _spend_on_containers(self, ru: float) -> None:
        if self._address.arm is None:  # Azure Resource Manager charges nothing
            self.request_units[CONTAINERS] += ru


class CosmosSimulation(Simulation):
    """See `Simulation`."""

    def __init__(self, address: Address, charges: Charges, found: Catalogue, error: str, open_store: OpenStore) -> None:
        """Take the catalogue that was *found*, or why it could not be read, and what makes a store of an account."""
        self._address = address
        self._charges = charges
        self._found = found
        self._error = error
        self._open_store = open_store
        self._account: SimulatedAccount | None = None

    def open(self, clock: Callable[[], float]) -> Store:
        account = self._account = SimulatedAccount(self._address, self._charges, self._found, clock)
        return self._open_store(self._address, account, lambda: account, None, clock)

    def estimate(self, plan: Plan, seconds: float, *, live: bool) -> Estimate:
        account = self._account
        if account is None:
            raise RuntimeError("nothing was run: open the simulation first")
        bill = bill_of(self._address, plan.payload_bytes)
        then = "goes live" if live else "waits"
        purposes = (WRITING, READING, RELEASE_STATE, THE_CATALOGUE, CONTAINERS)
        return Estimate(
            plan.rows,
            plan.payload_bytes,
            fits=True,
            makes=tuple(f"{one}{then}" if one.endswith("before it ") else one for one in account.makes),
            request_units={purpose: round(account.request_units[purpose], 2) for purpose in purposes},
            seconds=round(seconds, 3),
            bill=bill,
            notes=self._notes(bill),
        )

    def _notes(self, bill: Bill) -> tuple[str, ...]:
        """Say what was assumed, and what could go wrong."""
        notes, address = list[str](), self._address
        if self._error:
            notes.append(f"assumed: nothing was published there before; it could not be read: {self._error}")
        if not bill.writing:
            notes.append(f"assumed: a serverless container gives {bill.rate_ru:,.0f} RU/s, which is not guaranteed")
        if address.key is None and address.arm is None:
            notes.append(
                "publishing will be refused: Entra ID alone cannot make containers; add resource_group= to the URL"
            )
        written, serving = writing_throughput(address), address.throughput
        if written is not None and serving is not None and written.initial_partitions > serving.initial_partitions:
            partitions, live_ru = written.initial_partitions, bill.afterwards[0].ru_s
            notes.append(
                f"a container that is made with {written.ru:,} RU/s has {partitions} physical partitions for good: "
                f"once it serves with {live_ru:,} RU/s, one key can be read at {live_ru / partitions:,.0f} RU/s at most"
            )
        return tuple(notes)


def _described(throughput: Throughput) -> str:
    return f"{throughput.ru:,} RU/s, {'autoscale' if throughput.autoscale else 'manual'}"
