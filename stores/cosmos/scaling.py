"""What a release's container may spend: much while it is written, enough while live, the least while only kept."""

import asyncio
from collections.abc import Callable
from functools import partial
from math import ceil

from stores.cosmos.driver import Containers
from stores.cosmos.patience import Patience
from stores.cosmos.throughput import AUTOSCALE_STEP, MANUAL_STEP, Throughput
from stores.cosmos.url import Address
from stores.errors import StoreFull, StoreMisused, StoreUnavailable
from stores.store import Plan

POLL_S = 1.0
"""Also how long new throughput settles: what was spent in a second counts against what the second has at its end."""

SPLIT_S = 600.0
"""How long a change of throughput is waited for. Most take seconds; where partitions are split it can be hours."""

SCANNING = 0.5
"""The share of a live release's throughput that may be spent on reading all of it."""

SERVERLESS_RU, SERVERLESS_BYTES = 5_000, 10**12
"""What a serverless container spends in a second and holds, by https://learn.microsoft.com/azure/cosmos-db/serverless-performance."""


def for_writing(address: Address) -> Throughput | None:
    """Return what a release's container is born with: what it serves with, or what writing may spend, if more."""
    serving = address.throughput
    if serving is None:
        return None
    return Throughput(max(serving.ru, _stepped(address.max_ru or 0, autoscale=serving.autoscale)), serving.autoscale)


def for_scanning(address: Address) -> float:
    """Return what may be spent in a second on reading all of a live release: lookups need the rest."""
    serving = address.throughput
    most = [ru for ru in (address.max_ru, None if serving is None else serving.ru) if ru is not None]
    return min(most) * SCANNING if most else SERVERLESS_RU * SCANNING


def check_room(address: Address, plan: Plan) -> None:
    """Refuse what cannot fit; a container with throughput of its own grows as it needs."""
    if address.throughput is None and plan.payload_bytes > SERVERLESS_BYTES:
        raise StoreFull(
            f"the release has {plan.payload_bytes / 1e9:,.0f} GB, and a serverless container of {address.shown} holds "
            f"{SERVERLESS_BYTES / 1e9:,.0f} GB; use an account with provisioned throughput"
        )


class Scaling:
    """Changes what containers may spend; lives as long as its store."""

    def __init__(
        self, address: Address, containers: Containers, patience: Patience, clock: Callable[[], float]
    ) -> None:
        self._address = address
        self._containers = containers
        self._patience = patience
        self._clock = clock

    async def serve(self, container: str) -> None:
        """Give a container what serving needs, and wait until it has it; one that has it already is left alone."""
        wanted = self._address.throughput
        give_up_at = self._clock() + SPLIT_S
        while wanted is not None:
            offer = await self._patience.insist(partial(self._containers.offer, container))
            if offer is None:
                return
            if not offer.pending:
                kind = offer.throughput.autoscale  # manual and autoscale do not change into each other here
                reachable = Throughput(_stepped(max(wanted.ru, offer.minimum_ru), autoscale=kind), kind)
                if offer.throughput == reachable:
                    return
                await self._patience.insist(partial(self._containers.scale, container, reachable))
                await asyncio.sleep(POLL_S)
            elif self._clock() > give_up_at:
                raise StoreUnavailable(
                    f"{container} of {self._address.shown} is still being scaled to {wanted.ru:,} RU/s, which can take "
                    f"hours where partitions are split; activate its release later, or ask for less with ru="
                )
            else:
                await asyncio.sleep(POLL_S)

    async def rest(self, container: str) -> None:
        """Let a container spend the least that it can be set to; does not wait for it."""
        offer = await self._patience.insist(partial(self._containers.offer, container))
        if offer is not None and not offer.pending and offer.throughput.ru > offer.minimum_ru:
            least = Throughput(offer.minimum_ru, offer.throughput.autoscale)
            await self._patience.insist(partial(self._containers.scale, container, least))

    async def warnings(self, live: str | None) -> list[str]:
        """Tell what readers of the container *live* could run into, in sentences."""
        wanted, born = self._address.throughput, for_writing(self._address)
        if wanted is None or born is None:
            return []
        found = list[str]()
        parts = born.partitions_at_birth
        if parts > wanted.partitions_at_birth:
            found.append(
                f"max_ru={self._address.max_ru} gives each release of {self._address.shown} {parts} partitions for "
                f"good, so that one key can be read at {wanted.ru / parts:,.0f} RU/s at most; "
                f"lower max_ru, or keep it where {wanted.partitions_at_birth} partition(s) suffice"
            )
        try:
            offer = None if live is None else await self._containers.offer(live)
        except StoreMisused:
            offer = None  # who only reads needs no way to be told
        if offer is not None and offer.throughput.ru < wanted.ru:
            found.append(
                f"{live}, which is live, has {offer.throughput.ru:,} RU/s, and ru= of {self._address.shown} asks for "
                f"{wanted.ru:,}; activate the release again to scale it"
            )
        return found


def _stepped(ru: int, *, autoscale: bool) -> int:
    step = AUTOSCALE_STEP if autoscale else MANUAL_STEP
    return ceil(ru / step) * step
