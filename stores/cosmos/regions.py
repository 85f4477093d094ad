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
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hotplate.base.http1 import Response, Transport
from hotplate.base.timing import loop_time
from hotplate.stores.concurrency import SharedCall
from hotplate.stores.cosmos.errors import TRANSIENT, CosmosUnavailable, ErrorKind, object_in
from hotplate.stores.cosmos.requests import RequestBuilder
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreClosed, StoreError

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


class Location(NamedTuple):
    """Name and server of a region, as the account lists it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class AccountProperties:
    """What a response says about an account."""

    writable: list[Location]
    readable: list[Location]
    has_sessions: bool
    """Whether the account's consistency level allows session tokens."""

    multiple_write_regions: bool
    """Whether several regions take writes, so that there is no compare-and-set."""


class AccountRegions:
    """Regions and properties of an account, read every five minutes, or sooner after an unexpected response."""

    def __init__(
        self,
        address: Address,
        open_region: Callable[[str], Region],
        read_in: Callable[[Region], Awaitable[AccountProperties]],
    ) -> None:
        """*open_region* takes a URL; *read_in* reads the account in a region."""
        self._where = address.shown
        self._preferred = address.region
        self._single_region = address.single_region
        self._open_region = open_region
        self._read_in = read_in
        self._reading = SharedCall(self._read, partial(StoreClosed, address.shown))
        self.server = open_region(address.endpoint)
        """The account's own server."""

        self.write = self.server
        """The region that takes writes."""

        self.readable = list[Region]()
        """In the order of lookups; empty before the first read."""

        self._opened = {address.endpoint: self.server}
        """All regions ever listed, by URL."""

        self.multiple_write_regions = False
        self.has_sessions = False

        self.refresh_at = float("-inf")
        """Time of the next read."""

    @property
    def regions(self) -> list[str]:
        """Names of readable regions in the order of lookups."""
        return [region.name for region in self.readable]

    async def read(self) -> "AccountRegions":
        """Read the account; callers share one request. Raises StoreError."""
        return await self._reading.result()

    async def ensure_known(self, deadline_s: float) -> None:
        """Read the account if its regions are unknown; start a refresh in the background if it is time for that.

        Raises StoreError, at the latest at *deadline_s* (loop time).
        """
        now = loop_time()
        if not self.readable:
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self.read()
            except TimeoutError:
                raise CosmosUnavailable(f"{self._where} did not list its regions in time", "timeout") from None
        elif now >= self.refresh_at:
            self.refresh_at = now + MIN_REFRESH_INTERVAL_S
            self._reading.start()

    async def close(self) -> None:
        """Close all connections."""
        await self._reading.close()
        for region in self._opened.values():
            await region.transport.close()

    async def _read(self) -> "AccountRegions":
        """Read the account from its own server, or from the first region that answers; note when to read it again.

        If none answers, raises the error of the first one that was asked.
        """
        failures = list[StoreError]()
        for region in dict.fromkeys([self.server, *self.readable]):
            try:
                self._update(await self._read_in(region))
            except StoreError as error:
                failures.append(error)
                self.refresh_at = loop_time() + MIN_REFRESH_INTERVAL_S
            else:
                self.refresh_at = loop_time() + REFRESH_INTERVAL_S * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers
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
        count. The second attempt goes to another region, the one that is skipped for the shortest time from now, or to
        the same one if there is no other.
        """
        now = loop_time()

        # A short timeout is the caller's choice, and says nothing about the region.
        is_long_timeout = kind == "timeout" and now - began_at >= MIN_WAIT_S
        if kind not in TRANSIENT and not is_long_timeout:
            return None

        if began_at >= region.failed_at:  # of reads at the same time, one counts: this process may have paused
            self._count_failure(region, kind, now)
        others = [candidate for candidate in self.readable if candidate is not region]
        return min(others, key=lambda candidate: candidate.skip_until, default=region)

    def _count_failure(self, region: Region, kind: ErrorKind, now: float) -> None:
        """Count a failure; after MAX_FAILURES, or at once if no connection was possible, lookups skip the region.

        It is skipped for SKIP_S, if there is another one.
        """
        was_failing = region.failures >= MAX_FAILURES
        region.failed_at = now
        region.failures += 1
        if kind == "connect":
            region.failures = max(region.failures, MAX_FAILURES)

        begins_to_fail = not was_failing and region.failures >= MAX_FAILURES
        has_others = any(other is not region for other in self.readable)
        if begins_to_fail and has_others:
            region.skip_until = now + SKIP_S
            log.warning("%s: %s cannot be read (%s)", self._where, region.name, kind)
            self.refresh_early()

    def refresh_early(self) -> None:
        """Refresh soon, after a response that contradicts the known regions."""
        self.refresh_at = min(self.refresh_at, loop_time() + MIN_REFRESH_INTERVAL_S)

    def _update(self, properties: AccountProperties) -> None:
        """Take over the properties of an account; regions that were listed before keep their connections.

        The region that the URL prefers comes first for lookups; with `single_region`, it is the only one.
        """
        former_names = self.regions  # before `_region` names regions, which may be the same objects
        write = self._region(properties.writable[0])
        readable = [self._region(location) for location in properties.readable]
        readable.sort(key=lambda region: region.name != self._preferred)  # stable: the preferred region first
        if self._single_region:
            del readable[1:]

        self.write = write
        self.readable = readable
        if former_names and former_names != self.regions:
            log.warning("%s: its regions are now %s", self._where, ", ".join(self.regions))

        self.has_sessions = properties.has_sessions
        self.multiple_write_regions = properties.multiple_write_regions

    def _region(self, location: Location) -> Region:
        """Return the region at a location, opened at the first time."""
        region = self._opened.get(location.url)
        if region is None:
            region = self._open_region(location.url)
            self._opened[location.url] = region
        region.name = location.name
        return region


def properties_in(response: Response, scheme: str) -> AccountProperties:
    """Parse a response about the account.

    *scheme* is that of the account's URL. Raises ValueError if the response is malformed or lists no region, or if a
    region has another scheme: with https, no region is read unencrypted.
    """
    account = object_in(response)
    writable = _locations(account.get("writableLocations"), scheme)
    policy = account.get("userConsistencyPolicy")
    return AccountProperties(
        writable=writable,
        readable=_locations(account.get("readableLocations"), scheme),
        has_sessions=isinstance(policy, dict) and policy.get("defaultConsistencyLevel") in SESSION_CONSISTENCIES,
        multiple_write_regions=account.get("enableMultipleWriteLocations") is True or len(writable) > 1,
    )


def _locations(listed: Any, scheme: str) -> list[Location]:  # noqa: ANN401 -- any JSON value
    """Parse the list of regions in a response about the account: objects with a name and a URL.

    Raises ValueError if it is empty or malformed, or if a URL has another scheme than *scheme*.
    """
    locations = list[Location]()
    try:
        for location in listed:
            url = urlsplit(location["databaseAccountEndpoint"])
            if url.scheme != scheme or not url.hostname:
                raise ValueError("an account with an invalid region")
            locations.append(Location(str(location["name"]), f"{url.scheme}://{url.netloc}"))
    except (LookupError, TypeError, AttributeError):
        raise ValueError("an account with an invalid region") from None
    if not locations:
        raise ValueError("an account without regions")
    return locations
