"""Which region azure-cosmos asks: it is told by us, as its own changes of region wait, log, and count nothing."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from azure.core.exceptions import AzureError

from stores.cosmos.driver import Account
from stores.cosmos.errors import PASSING, CosmosUnavailable, Kind
from stores.cosmos.places import STRIKES, Place, Places, places_of
from stores.cosmos.sdk.client import Clients, Way

log = logging.getLogger(__name__)

AWAY_S = 10.0
"""How long a region that failed is left alone, before one read tries it again."""

HURRY_S = 5.0
"""How soon the account is asked again where something is wrong; else the SDK does so every five minutes."""


class Ways:
    """The clients of one driver, one for each region and consistency that is asked for; lives as long as it."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._ways = dict[tuple[str, str | None], Way]()
        self._places: Places | None = None
        self._doubted = False
        self._asked_at = float("-inf")
        self._strikes = dict[Place, int]()
        self._away_until = dict[Place, float]()

    async def account(self) -> Account:
        """Ask the account about itself."""
        way = self._way(self._clients.address.endpoint, None)
        await (await way.client()).client_connection.GetDatabaseAccount()
        places = await self._known(None)
        return Account(places.many_writers, tuple(place.name for place in self._ordered(places)))

    async def written(self) -> Way:
        """Return the way to the region that takes writes, whose reads see them."""
        places = await self._known(None)
        now = asyncio.get_running_loop().time()
        if self._doubted and now >= self._asked_at + HURRY_S:
            self._doubted, self._asked_at = False, now
            with suppress(AzureError):  # what is known goes on being used, and the caller meets the failure
                await self.account()
        return self._way((self._places or places).written.url, None)

    def doubt(self) -> None:
        """Ask the account again before the next write: something is not where it said."""
        self._doubted = True

    async def nearest(self) -> Place:
        """Return the region in which lookups are best made now."""
        consistency = self._clients.address.consistency
        now = asyncio.get_running_loop().time()
        ordered = self._ordered(await self._known(consistency))
        return next((place for place in ordered if self._away_until.get(place, 0.0) <= now), ordered[0])

    def lookups(self, place: Place) -> Way:
        """Return the way of lookups to a region."""
        return self._way(place.url, self._clients.address.consistency)

    def answered(self, place: Place) -> None:
        """Take note that a region answers."""
        if self._strikes.pop(place, 0) and self._away_until.pop(place, None) is not None:
            log.warning("%s: %s can be read again", self._clients.address.shown, place.name)

    def instead(self, place: Place, kind: Kind) -> Place | None:
        """Take note that a read failed; return another region for it, where there is one that may do better."""
        if kind not in PASSING or self._places is None:
            return None
        now = asyncio.get_running_loop().time()
        others = [one for one in self._ordered(self._places) if one != place]
        other = next((one for one in others if self._away_until.get(one, 0.0) <= now), None)
        if other is None:
            return None
        strikes = self._strikes[place] = self._strikes.get(place, 0) + 1
        if strikes >= STRIKES or kind == "connect":
            if place not in self._away_until:
                shown = self._clients.address.shown
                log.warning("%s: %s cannot be read (%s); reading from %s", shown, place.name, kind, other.name)
            self._away_until[place] = now + AWAY_S
        return other

    async def close(self) -> None:
        """Close all clients."""
        ways = list(self._ways.values())
        self._ways.clear()
        for way in ways:
            await way.close()

    async def _known(self, consistency: str | None) -> Places:
        if self._places is None:
            await self._way(self._clients.address.endpoint, consistency).client()
        if self._places is None:
            raise CosmosUnavailable(f"{self._clients.address.shown} did not say where its regions are", "malformed")
        return self._places

    def _ordered(self, places: Places) -> list[Place]:
        return sorted(places.readable, key=lambda place: place.name != self._clients.address.region)

    def _way(self, url: str, consistency: str | None) -> Way:
        found = self._ways.get((url, consistency))
        if found is None:
            found = self._ways[url, consistency] = Way(self._clients, url, consistency, self._learn)
        return found

    def _learn(self, told: dict[str, Any]) -> None:
        """Take what the account says, which the SDK asks at the opening and every five minutes."""
        self._places = places_of(told, self._clients.address.endpoint)
