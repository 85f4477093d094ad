"""The account's regions, and which of them lookups skip.

An account has copies of its data in one or more Azure regions, each with a server, and one of them takes writes. After
MAX_FAILURES in a row, or one failed connect, lookups skip a region for SKIP_S; then a single read tries it. Times are
of the loop's clock.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import DEADLINE_S, TRANSIENT, CosmosUnavailable, ErrorKind, object_in, store_closed
from hotplate.stores.cosmos.requests import RequestBuilder
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError
from hotplate.stores.http1 import Response, Transport
from hotplate.stores.timing import SharedCall

log = logging.getLogger(__name__)

MAX_FAILURES = 3
SKIP_S = 5.0
# Shorter waits say nothing about a region.
MIN_WAIT_S = 0.02
# Regular and minimum intervals between reads of the account.
REFRESH_INTERVAL_S = 300.0
MIN_REFRESH_INTERVAL_S = 5.0
# Account consistency levels with session tokens.
SESSION_CONSISTENCIES = ("Strong", "BoundedStaleness", "Session")


@dataclass(slots=True, eq=False)
class Region:
    """One server of the account."""

    requests: RequestBuilder
    transport: Transport
    name: str = ""
    """As the account lists it; empty before the account was read."""

    failures: int = 0
    """Number of consecutive ones."""

    failed_at: float = float("-inf")
    """Time of the last one that was counted."""

    skip_until: float = 0.0


class AccountRegions:
    """Regions and properties of an account, read every five minutes, or sooner after an unexpected response."""

    def __init__(
        self, address: Address, open_region: Callable[[str], Region], read_in: Callable[[Region], Awaitable[None]]
    ) -> None:
        """*open_region* takes a URL; *read_in* reads the account in a region, and calls `update` with the response."""
        self._where = address.shown
        self._preferred = address.region
        self._single_region = address.single_region
        self._scheme = urlsplit(address.endpoint).scheme
        self._open_region = open_region
        self._read_in = read_in
        self._reading = SharedCall(self._read, store_closed)
        self.server = open_region(address.endpoint)
        """The account's own server."""

        self.write = self.server
        """The region that takes writes."""

        self.readable = list[Region]()
        """In the order of lookups; empty before the first read."""

        self._opened = {address.endpoint: self.server}
        """All regions ever listed, by URL."""

        self.multiple_write_regions = False
        """Whether several regions take writes, so that there is no compare-and-set."""

        self.has_sessions = False
        """Whether the account's consistency level allows session tokens."""

        self.refresh_at = float("-inf")
        """Time of the next read."""

    @property
    def regions(self) -> list[str]:
        """Names of readable regions in the order of lookups."""
        return [region.name for region in self.readable]

    async def read(self) -> "AccountRegions":
        """Read the account; callers share one request. Raises StoreError."""
        return await self._reading.result()

    async def ensure_known(self, deadline_s: float | None = None) -> float:
        """Read the account if its regions are unknown; start a refresh in the background if it is time for that.

        Returns *deadline_s* (loop time), or DEADLINE_S from now. Raises StoreError.
        """
        now = asyncio.get_running_loop().time()
        deadline_s = deadline_s or now + DEADLINE_S
        if not self.readable:
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self.read()
            except TimeoutError:
                raise CosmosUnavailable(f"{self._where} did not list its regions in time", "timeout") from None
        elif now >= self.refresh_at:
            self.refresh_at = now + MIN_REFRESH_INTERVAL_S
            self._reading.start()
        return deadline_s

    async def close(self) -> None:
        """Close all connections."""
        await self._reading.close()
        for region in self._opened.values():
            await region.transport.close()

    async def _read(self) -> "AccountRegions":
        """Read the account from its own server, or else from a region; raises the error of the first one."""
        loop = asyncio.get_running_loop()
        failures = list[StoreError]()
        for region in dict.fromkeys([self.server, *self.readable]):
            try:
                await self._read_in(region)
            except StoreError as error:
                failures.append(error)
                self.refresh_at = loop.time() + MIN_REFRESH_INTERVAL_S
            else:
                self.refresh_at = loop.time() + REFRESH_INTERVAL_S * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers
                return self
        raise failures[0]

    def nearest(self, now: float) -> Region:
        """Return the region for the next lookup: the first that is not skipped, or else the first."""
        for region in self.readable:
            if now >= region.skip_until:
                if region.failures >= MAX_FAILURES:
                    region.skip_until = now + SKIP_S  # for all reads but this one, which tries it
                return region
        return self.readable[0] if self.readable else self.server

    def second(self, now: float) -> Region | None:
        """Return the region after the nearest one, for a second read at the same time, if any."""
        usable = [region for region in self.readable if now >= region.skip_until]
        return usable[1] if len(usable) > 1 else None

    def succeeded(self, region: Region) -> None:
        """Record a success after a failure."""
        if region.failures >= MAX_FAILURES and len(self.readable) > 1:
            log.warning("%s: %s can be read again", self._where, region.name)
        region.failures = 0
        region.skip_until = 0.0

    def failed(self, region: Region, kind: ErrorKind, began_at: float) -> Region | None:
        """Record a failed read in a region; return the region for a second attempt, None if that would fail, too.

        *kind* says how the read failed, *began_at* when it began (loop time). Only transient failures and long timeouts
        count. After MAX_FAILURES, or at once if no connection was possible, lookups skip the region for SKIP_S, if
        there is another one.

        The second attempt goes to another region, the one that is skipped for the shortest time from now, or to the
        same one if there is no other.
        """
        now = asyncio.get_running_loop().time()
        is_long_timeout = kind == "timeout" and now - began_at >= MIN_WAIT_S
        if kind not in TRANSIENT and not is_long_timeout:
            return None

        others = [candidate for candidate in self.readable if candidate is not region]
        is_counted = began_at >= region.failed_at  # of reads at the same time, one counts: this process may have paused
        if is_counted:
            was_failing = region.failures >= MAX_FAILURES
            region.failed_at = now
            region.failures += 1
            if kind == "connect":
                region.failures = max(region.failures, MAX_FAILURES)
            if others and not was_failing and region.failures >= MAX_FAILURES:
                region.skip_until = now + SKIP_S
                log.warning("%s: %s cannot be read (%s)", self._where, region.name, kind)
                self.refresh_early()

        return min(others, key=lambda candidate: candidate.skip_until, default=region)

    def refresh_early(self) -> None:
        """Refresh soon, after a response that contradicts the known regions."""
        self.refresh_at = min(self.refresh_at, asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL_S)

    def update(self, response: Response, _: str) -> None:
        """Parse a response about the account, and store its regions and properties in this object.

        These are the region that takes writes, the readable regions in the order of lookups (the preferred one first),
        whether session tokens are allowed, and whether several regions take writes. Raises ValueError if the response
        is malformed or lists no region.
        """
        account = object_in(response)
        former_names = self.regions  # before `_regions` names its regions, which may be the same objects
        writable = self._regions(account.get("writableLocations"))
        readable = self._regions(account.get("readableLocations"))
        readable.sort(key=lambda region: region.name != self._preferred)  # stable: the preferred region first
        if self._single_region:
            del readable[1:]

        self.write = writable[0]
        self.readable = readable
        if former_names and former_names != self.regions:
            log.warning("%s: its regions are now %s", self._where, ", ".join(self.regions))

        policy = account.get("userConsistencyPolicy")
        self.has_sessions = isinstance(policy, dict) and policy.get("defaultConsistencyLevel") in SESSION_CONSISTENCIES
        self.multiple_write_regions = account.get("enableMultipleWriteLocations") is True or len(writable) > 1

    def _regions(self, locations: Any) -> list[Region]:  # noqa: ANN401 -- any JSON value
        """Return the regions in a list of names and URLs, opening new ones.

        ValueError if it is empty or malformed, or if a URL has another scheme than the account's: with https, no region
        is read in the clear.
        """
        try:
            urls = {str(location["name"]): urlsplit(location["databaseAccountEndpoint"]) for location in locations}
        except (LookupError, TypeError, AttributeError):
            urls = {}
        if not urls or not all(url.scheme == self._scheme and url.hostname for url in urls.values()):
            raise ValueError("an account without valid regions")
        regions = list[Region]()
        for name, url in urls.items():
            server = f"{url.scheme}://{url.netloc}"
            region = self._opened.get(server)
            if region is None:
                region = self._open_region(server)
                self._opened[server] = region
            region.name = name
            regions.append(region)
        return regions
