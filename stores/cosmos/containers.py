"""The containers of releases: who makes, scales and drops them, what throughput they have when, and what it costs.

A container has much throughput while its release is written, enough while it is live, the least while it is only kept.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from hotplate.stores.cosmos.charges import READING, WRITING, Charges, publish_ru
from hotplate.stores.cosmos.errors import ContainerMissing, Retrier
from hotplate.stores.cosmos.rows import CONTROL
from hotplate.stores.cosmos.url import (
    KEY,
    MANUAL_MIN,
    SERVERLESS_BYTES,
    SERVERLESS_RU,
    Address,
    Offer,
    Throughput,
    minimum_ru,
)
from hotplate.stores.errors import StoreFull, StoreMisused, StoreUnavailable
from hotplate.stores.extras import extra_installed
from hotplate.stores.store import Bill, Estimate, Observer, Plan, Provisioned, PublishCounts

# Also how long new throughput settles: what was spent in a second counts against what the second has at its end.
POLL_S = 1.0

# How long a change of throughput is waited for. Most take seconds; where partitions are split it can be hours.
SPLIT_S = 600.0

# The share of a live release's throughput that may be spent on reading all of it.
SCANNING_SHARE = 0.5

ReadOffer = Callable[[str], Awaitable[Offer | None]]


class Containers(Protocol):
    """One database and its containers: made, scaled and dropped, by one attempt each, which raises StoreError.

    Implemented by the account itself for its key (`hotplate.stores.cosmos.account`) and by Azure Resource Manager
    for Entra ID (`hotplate.stores.cosmos.arm`).
    """

    async def create_database(self) -> bool:
        """Make the database; False if it was there."""
        ...

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """Make a container by DEFINITION; False if it was there. None: the account is serverless."""
        ...

    async def list_containers(self) -> list[str]:
        """Return the names of all containers; ContainerMissing if there is no database."""
        ...

    async def delete_container(self, container: str) -> None:
        """Drop a container with all it holds, for no RU; nothing happens if there is none."""
        ...

    async def offer(self, container: str) -> Offer | None:
        """Return a container's throughput; None if the account is serverless."""
        ...

    async def scale(self, container: str, throughput: Throughput) -> None:
        """Request other throughput; `offer` says when it is there."""
        ...

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        ...


def open_containers(address: Address, observer: Observer | None = None) -> Containers:
    """Open the control plane: ARM where the URL names it, or the account itself for its key.

    Not before something is to be made, scaled or dropped: a process that only serves never loads these libraries.
    Raises StoreMisused if there is neither, or an extra is not installed.
    """
    with extra_installed("cosmos"):
        if address.arm is not None:
            from hotplate.stores.cosmos.arm import ArmContainers  # noqa: PLC0415 -- only who publishes without a key needs it

            return ArmContainers(address, address.arm)
        if address.key is not None:
            from hotplate.stores.cosmos.account import CosmosAccount  # noqa: PLC0415 -- only who publishes needs it

            return CosmosAccount(address, observer)
    raise StoreMisused(
        f"{address.shown} is reached by Entra ID, which cannot make, scale or drop containers at the account "
        f"itself; add subscription= and resource_group= to its URL and give this identity the role Cosmos DB Operator, "
        f"or give the account's key as {KEY}"
    )


async def create_with_database(containers: Containers, container: str, throughput: Throughput | None) -> None:
    """Make a container, in a database that is made if it is missing; nothing happens if there is one."""
    try:
        await containers.create_container(container, throughput)
    except ContainerMissing:
        await containers.create_database()
        await containers.create_container(container, throughput)


def writing_throughput(address: Address) -> Throughput | None:
    """Return what a release's container is made with: what it serves with, or what writing may spend, if more."""
    serving = address.throughput
    return None if serving is None else serving.rounded_up(max(serving.ru, address.max_ru or 0))


def serving_throughput(wanted: Throughput, offer: Offer) -> Throughput:
    """Return what a container that has *offer* serves with: what is *wanted*, or the least that it can have.

    Its kind stays: manual and autoscale do not change into each other here.
    """
    return offer.throughput.rounded_up(max(wanted.ru, offer.minimum_ru))


def scanning_ru(address: Address) -> float:
    """Return what may be spent in a second on reading all of a live release: lookups need the rest."""
    serving = address.throughput
    limits = [ru for ru in (address.max_ru, None if serving is None else serving.ru) if ru is not None]
    return min(limits) * SCANNING_SHARE if limits else SERVERLESS_RU * SCANNING_SHARE


def check_room(address: Address, plan: Plan) -> None:
    """Refuse what cannot fit; a container with throughput of its own grows as it needs."""
    if address.throughput is None and plan.payload_bytes > SERVERLESS_BYTES:
        raise StoreFull(
            f"the release has {plan.payload_bytes / 1e9:,.0f} GB, and a serverless container of {address.shown} holds "
            f"{SERVERLESS_BYTES / 1e9:,.0f} GB; use an account with provisioned throughput"
        )


async def scale_up(
    address: Address, containers: Containers, container: str, retrier: Retrier, clock: Callable[[], float]
) -> None:
    """Give a container what serving needs, and wait until it has it; one that has it already is left alone."""
    wanted = address.throughput
    give_up_at = clock() + SPLIT_S
    while wanted is not None:
        offer = await retrier.call(partial(containers.offer, container))
        if offer is None:
            return
        if not offer.pending:
            reachable = serving_throughput(wanted, offer)
            if offer.throughput == reachable:
                return
            await retrier.call(partial(containers.scale, container, reachable))
        elif clock() > give_up_at:
            raise StoreUnavailable(
                f"{container} of {address.shown} is still being scaled to {wanted.ru:,} RU/s, which can take hours "
                f"where partitions are split; activate its release later, or set less with ru="
            )
        await asyncio.sleep(POLL_S)


async def scale_down(containers: Containers, container: str, retrier: Retrier) -> None:
    """Let a container have the least throughput that it can be set to; does not wait for it."""
    offer = await retrier.call(partial(containers.offer, container))
    if offer is not None and not offer.pending and offer.throughput.ru > offer.minimum_ru:
        least = Throughput(offer.minimum_ru, offer.throughput.autoscale)
        await retrier.call(partial(containers.scale, container, least))


def partition_warnings(address: Address) -> list[str]:
    """Say in sentences what the partitions of new containers could do to readers."""
    wanted, written = address.throughput, writing_throughput(address)
    if wanted is None or written is None or written.initial_partitions <= wanted.initial_partitions:
        return []
    partitions = written.initial_partitions
    sentence = (
        f"max_ru={address.max_ru} gives each release of {address.shown} {partitions} partitions for "
        f"good, so one key can be read at {wanted.ru / partitions:,.0f} RU/s at most; "
        f"lower max_ru, or keep it where {wanted.initial_partitions} partition(s) suffice"
    )
    return [sentence]


async def throughput_warnings(address: Address, live: str | None, read_offer: ReadOffer) -> list[str]:
    """Say in sentences whether the container *live* has less throughput than it should have."""
    if address.throughput is None or live is None:
        return []
    try:
        offer = await read_offer(live)
    except StoreMisused:
        return []  # a reader needs no control plane
    if offer is None or offer.throughput.ru >= address.throughput.ru:
        return []
    sentence = (
        f"{live}, which is live, has {offer.throughput.ru:,} RU/s, and ru= of {address.shown} asks for "
        f"{address.throughput.ru:,}; activate the release again to scale it"
    )
    return [sentence]


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


def estimate_publish(
    address: Address, charges: Charges, plan: Plan, counts: PublishCounts, *, first: bool, live: bool
) -> Estimate:
    """Return what a publish of *plan* takes; see `ProvisionedStore.estimate`. Only rows wait for their share."""
    check_room(address, plan)
    bill = bill_of(address, plan.payload_bytes)
    spent = publish_ru(charges, counts, first=first)
    return Estimate(
        plan.rows,
        plan.payload_bytes,
        fits=True,
        makes=_makes(address, bill, first=first, live=live),
        request_units=spent,
        seconds=round((spent[WRITING] + spent[READING]) / bill.rate_ru, 3),
        bill=bill,
        notes=_notes(address, bill),
    )


def _makes(address: Address, bill: Bill, *, first: bool, live: bool) -> tuple[str, ...]:
    """Say what a publish creates and scales."""
    written = writing_throughput(address)
    made = list[str]()
    if first:
        control = "serverless" if written is None else _described(Throughput(MANUAL_MIN))
        made.append(f"the database {address.database}, unless it is there")
        made.append(f"the container {CONTROL}, of the catalogue: {control}")
    if written is None:
        return *made, "the container of the release: serverless, nothing indexed"
    plural = "s" if written.initial_partitions > 1 else ""
    partitions = f"{written.initial_partitions} physical partition{plural}"
    made.append(f"the container of the release: {_described(written)}, {partitions}, nothing indexed")
    then = bill.afterwards[0 if live else 1].ru_s
    if then != written.ru:
        scaled = _described(Throughput(then, written.autoscale))
        made.append(f"which is scaled to {scaled} before it {'goes live' if live else 'waits'}")
    return tuple(made)


def _notes(address: Address, bill: Bill) -> tuple[str, ...]:
    """Say what was assumed, and what could go wrong."""
    notes = list[str]()
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
