"""The account's regions, and which of them lookups skip.

After MAX_FAILURES in a row, or one failed connect, lookups skip a region for SKIP_S; then a single read tries it. Times
are of the loop's clock.
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
    failures: int = 0
    """Consecutive ones."""

    failed_at: float = float("-inf")
    skip_until: float = 0.0


class Account:
    """Regions and properties of an account, read every five minutes, or sooner after an unexpected response."""

    def __init__(
        self, address: Address, open_region: Callable[[str], Region], read_in: Callable[[Region], Awaitable[None]]
    ) -> None:
        """*open_region* takes a URL; *read_in* has a region's response passed to `update`."""
        self._where = address.shown
        self._preferred = address.region
        self._single_region = address.single_region
        self._scheme = urlsplit(address.endpoint).scheme
        self._open_region = open_region
        self._read_in = read_in
        self._reading = SharedCall(self._read, store_closed)
        self.server = self.write = open_region(address.endpoint)
        """The account's own server, and the region that takes writes."""

        self.readable = list[Region]()
        """In the order of lookups; empty before the first read."""

        self._opened = {address.endpoint: self.server}
        self.multiple_write_regions = self.has_sessions = False
        self.refresh_at = float("-inf")
        """Time of the next read."""

    @property
    def regions(self) -> list[str]:
        """Names of readable regions in the order of lookups."""
        return [region.name for region in self.readable]

    async def read(self) -> "Account":
        """Read the account; callers share one request. Raises StoreError."""
        return await self._reading.result()

    async def follow(self, due_s: float | None = None) -> float:
        """Know the account, and refresh it in the background if due; return *due_s*, or the usual deadline."""
        now = asyncio.get_running_loop().time()
        due_s = due_s or now + DEADLINE_S
        if not self.readable:
            try:
                async with asyncio.timeout_at(due_s):
                    await self.read()
            except TimeoutError:
                raise CosmosUnavailable(f"{self._where} did not list its regions in time", "timeout") from None
        elif now >= self.refresh_at:
            self.refresh_at = now + MIN_REFRESH_INTERVAL_S
            self._reading.start()
        return due_s

    async def close(self) -> None:
        """Close all connections."""
        await self._reading.close()
        for region in self._opened.values():
            await region.transport.close()

    async def _read(self) -> "Account":
        """Read the account from its server, or else from a region."""
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
        """Return the region for the next lookup."""
        for region in self.readable:
            if now >= region.skip_until:
                if region.failures >= MAX_FAILURES:
                    region.skip_until = now + SKIP_S  # for all but this trial
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
        """Record a failed read; return the region for a second attempt, if any.

        Overlapping failures count once, because this process may have paused.
        """
        now = asyncio.get_running_loop().time()
        if kind not in TRANSIENT and (kind != "timeout" or now - began_at < MIN_WAIT_S):
            return None
        others = [candidate for candidate in self.readable if candidate is not region]
        if began_at >= region.failed_at:
            region.failed_at, before = now, region.failures
            region.failures = max(before + 1, MAX_FAILURES if kind == "connect" else 0)
            if before < MAX_FAILURES <= region.failures and others:
                region.skip_until = now + SKIP_S
                log.warning("%s: %s cannot be read (%s)", self._where, region.name, kind)
                self.refresh_early()
        return min(others, key=lambda candidate: candidate.skip_until, default=region)

    def refresh_early(self) -> None:
        """Refresh soon, after a response that contradicts the known regions."""
        self.refresh_at = min(self.refresh_at, asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL_S)

    def update(self, response: Response, _: str) -> None:
        """Use the regions that the account lists. Raises ValueError."""
        listed = object_in(response)
        before = self.regions
        writable, readable = (self._regions(listed.get(f"{kind}Locations")) for kind in ("writable", "readable"))
        self.write, self.readable = writable[0], sorted(readable, key=lambda region: region.name != self._preferred)
        if self._single_region:
            del self.readable[1:]
        if before and before != self.regions:
            log.warning("%s: its regions are now %s", self._where, ", ".join(self.regions))
        policy = listed.get("userConsistencyPolicy")
        self.has_sessions = isinstance(policy, dict) and policy.get("defaultConsistencyLevel") in SESSION_CONSISTENCIES
        self.multiple_write_regions = listed.get("enableMultipleWriteLocations") is True or len(writable) > 1

    def _regions(self, locations: Any) -> list[Region]:  # noqa: ANN401 -- any JSON value
        """Return listed regions; with https, none is in the clear."""
        try:
            urls = {str(location["name"]): urlsplit(location["databaseAccountEndpoint"]) for location in locations}
        except (LookupError, TypeError, AttributeError):
            urls = {}
        if not urls or not all(url.scheme == self._scheme and url.hostname for url in urls.values()):
            raise ValueError("an account without valid regions")
        regions = list[Region]()
        for name, url in urls.items():
            server = f"{url.scheme}://{url.netloc}"
            regions.append(self._opened.get(server) or self._open_region(server))
            self._opened[server] = regions[-1]
            regions[-1].name = name
        return regions
