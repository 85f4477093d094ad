"""The regions of an account: where to read and where to write, and failover to another region and back."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import (
    TRANSIENT,
    CosmosUnavailable,
    ErrorKind,
    MalformedResponse,
    ResponseTranslator,
    object_in,
)
from hotplate.stores.cosmos.items import Account
from hotplate.stores.cosmos.requests import DEADLINE_S, AccountEndpoint
from hotplate.stores.errors import StoreError
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

# Default consistencies of accounts that let requests ask for what their own session has written.
SESSION_CONSISTENCIES = ("Strong", "BoundedStaleness", "Session")


# So many failures in a row make a region unhealthy; a single connection that cannot be made is enough.
MAX_FAILURES = 3

# A read that waited for less says nothing of its region: it had no time to begin with.
MIN_WAIT_S = 0.02


class Location(NamedTuple):
    """A region and its URL, without a slash at its end."""

    name: str
    url: str


class AccountProperties(NamedTuple):
    """The account, as it answers `GET /`."""

    write_location: Location
    readable: tuple[Location, ...]
    multiple_write_regions: bool
    has_sessions: bool


def account_properties(reported: dict[str, Any], account: str) -> AccountProperties:
    """Parse what the account says of itself at the URL *account*. Raises MalformedResponse."""
    secure = account.startswith("https:")
    writable = _locations(reported.get("writableLocations"), secure=secure)
    readable = _locations(reported.get("readableLocations"), secure=secure)
    policy = reported.get("userConsistencyPolicy")
    level = policy.get("defaultConsistencyLevel") if isinstance(policy, dict) else None
    multiple = reported.get("enableMultipleWriteLocations") is True or len(writable) > 1
    return AccountProperties(writable[0], readable, multiple, level in SESSION_CONSISTENCIES)


def _locations(reported: object, *, secure: bool) -> tuple[Location, ...]:
    if not isinstance(reported, list) or not reported:
        raise MalformedResponse("an account without regions")
    return tuple(_location(one, secure=secure) for one in reported)


def _location(reported: object, *, secure: bool) -> Location:
    """Parse one region; what is sent to an account by https never goes on in the clear."""
    match reported:
        case {"name": str(name), "databaseAccountEndpoint": str(url)}:
            pass
        case _:
            raise MalformedResponse("a region without name or endpoint")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MalformedResponse("a region whose endpoint is not a URL") from None
    if not host or parts.scheme not in ("http", "https") or (secure and parts.scheme != "https"):
        raise MalformedResponse("a region whose endpoint cannot be trusted")
    bracketed = f"[{host}]" if ":" in host else host
    return Location(name, f"{parts.scheme}://{bracketed}:{port or (443 if parts.scheme == 'https' else 80)}")


# How often the account is read again; the SDKs do the same.
REFRESH_INTERVAL_S = 300.0

# How soon after the last time it is read again when something is wrong.
MIN_REFRESH_INTERVAL_S = 5.0

# The first and the longest pause before an unhealthy region is probed again.
PROBE_PAUSE_S = (1.0, 60.0)


@dataclass(slots=True, eq=False)
class Region:
    """One region that can be read; lives as long as the account lists it."""

    name: str
    endpoint: AccountEndpoint
    failures: int = 0
    """Failures since the last response."""

    late_at: float = float("-inf")
    """When a read timed out that was counted, by the event loop's clock: of those under way by then, none other is."""

    responds_within_s: float = DEADLINE_S
    """What it must do to be healthy again: what reads that timed out had waited for."""

    unhealthy: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(*PROBE_PAUSE_S))
    """Of probes; begins again only where the region had been healthy for long."""

    healthy_since: float = field(default=float("-inf"))
    """When it was last marked healthy again, by the event loop's clock."""

    probation_until: float = 0.0
    """Before then a successful read does not mark it healthy: some do get through to a sick region."""


class AccountTopology:
    """Knows which regions there are, and which are healthy; lives as long as its client.

    It sends nothing before `nearest_region`.
    """

    def __init__(
        self,
        account: AccountEndpoint,
        preferred: str | None,
        connect: Callable[[str], AccountEndpoint],
        translator: ResponseTranslator,
    ) -> None:
        """Take the account's own endpoint, the region to be read first, and what makes an endpoint of a URL."""
        self._account = account
        self._preferred = preferred
        self._connect = connect
        self._translator = translator
        self._endpoints = {account.url: account}
        self._readable = list[Region]()
        self._refreshing: asyncio.Task[AccountProperties] | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._timer: asyncio.TimerHandle | None = None
        self._refreshed_at = float("-inf")
        self.nearest: Region | None = None
        """Where lookups go; None until the account was read."""

        self.write_endpoint = account
        """Where writes go, and reads that must see them."""

        self.has_sessions = False
        """Whether the account is consistent enough for sessions."""

    async def nearest_region(self, timeout_s: float) -> Region:
        """Return where lookups go, once the account has said so; raises StoreError."""
        if self.nearest is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.refresh()
            except TimeoutError:
                raise CosmosUnavailable(
                    f"{self._translator.where} did not list its regions in time", "timeout"
                ) from None
        if self.nearest is None:
            raise CosmosUnavailable(f"{self._translator.where} named no region that can be read", "malformed")
        return self.nearest

    async def refresh(self) -> Account:
        """Read the account again; callers at the same time share the response. Raises StoreError."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        properties = await asyncio.shield(self._refreshing)
        return Account(properties.multiple_write_regions, tuple(region.name for region in self._readable))

    def record_success(self, region: Region) -> None:
        """Note that a region responded; an unhealthy one must do so after its pause to be marked healthy."""
        region.failures = 0
        if not region.unhealthy:
            region.responds_within_s = DEADLINE_S
        elif asyncio.get_running_loop().time() >= region.probation_until:
            self._mark_healthy(region)

    def fail_over(self, region: Region, kind: ErrorKind, began_at: float) -> Region | None:
        """Note that a read, begun at *began_at*, failed in *region*; return another region if it may do better.

        If overlapping reads time out, one counts: a pause, even our own, is not a slow region.
        """
        if kind == "timeout":
            now = asyncio.get_running_loop().time()
            if now - began_at < MIN_WAIT_S or began_at < region.late_at:
                return None
            region.late_at, region.responds_within_s = now, now - began_at
        elif kind not in TRANSIENT:
            return None
        region.failures += 1
        others = [one for one in self._readable if one is not region]
        healthy = next((one for one in others if not one.unhealthy), None)
        if healthy is not None and not region.unhealthy and (region.failures >= MAX_FAILURES or kind == "connect"):
            self._mark_unhealthy(region, kind)
        return healthy or next(iter(others), None)

    def schedule_refresh(self) -> None:
        """Read the account again soon: something is not where it said."""
        age_s = asyncio.get_running_loop().time() - self._refreshed_at
        if self._refreshing is None and age_s >= MIN_REFRESH_INTERVAL_S:
            self._start(self._refresh_quietly())

    async def close(self) -> None:
        """Stop all tasks, and close the connections to all endpoints."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *([self._refreshing] if self._refreshing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.transport.close()

    def _mark_unhealthy(self, region: Region, kind: ErrorKind) -> None:
        """Read elsewhere for a while; longer each time for a region that does not stay healthy."""
        now = asyncio.get_running_loop().time()
        if now - region.healthy_since > PROBE_PAUSE_S[1]:
            region.backoff.reset()
        pause_s = region.backoff.next_s()
        region.unhealthy, region.probation_until = True, now + pause_s
        self.nearest = next(one for one in self._readable if not one.unhealthy)
        log.warning(
            "%s: %s cannot be read (%s); reading from %s", self._translator.where, region.name, kind, self.nearest.name
        )
        self._start(self._probe_until_healthy(region, pause_s))
        self.schedule_refresh()

    async def _probe_until_healthy(self, region: Region, pause_s: float) -> None:
        """Probe an unhealthy region now and then, until it responds or the account lists it no more."""
        while region.unhealthy and region in self._readable:
            await asyncio.sleep(pause_s)
            pause_s = region.backoff.next_s()
            try:  # a connection may have to be made for the first
                responses = [
                    await region.endpoint.request("GET", "", "", "", timeout_s=timeout_s)
                    for timeout_s in (DEADLINE_S, region.responds_within_s)
                ]
            except StoreError:
                continue
            if all(response.status == 200 for response in responses):
                self._mark_healthy(region)

    def _mark_healthy(self, region: Region) -> None:
        if region.unhealthy and region in self._readable:
            region.unhealthy, region.failures, region.responds_within_s = False, 0, DEADLINE_S
            region.healthy_since = asyncio.get_running_loop().time()
            self.nearest = next(one for one in self._readable if not one.unhealthy)
            log.warning(
                "%s: %s can be read again; reading from %s", self._translator.where, region.name, self.nearest.name
            )

    async def _refresh(self) -> AccountProperties:
        """Read the account from its own endpoint, and if that fails from those of its regions."""
        failed: StoreError | None = None
        for endpoint in list(dict.fromkeys([self._account, *(region.endpoint for region in self._readable)])):
            try:
                response = await endpoint.request("GET", "", "", "", timeout_s=DEADLINE_S)
                if response.status != 200:
                    raise self._translator.error(response)
                properties = account_properties(object_in(response), self._account.url)
            except MalformedResponse as error:
                failed = failed or self._translator.malformed(error)
            except StoreError as error:
                failed = failed or error
            else:
                await self._apply(properties)
                return properties
        raise failed or CosmosUnavailable(f"{self._translator.where} cannot be reached", "connect")

    async def _apply(self, properties: AccountProperties) -> None:
        """Take over what the account says; regions that stay keep what is known of their health."""
        known = {Location(region.name, region.endpoint.url): region for region in self._readable}
        wanted = sorted(dict.fromkeys(properties.readable), key=lambda location: location.name != self._preferred)
        before = [region.name for region in self._readable]
        self._readable = [known.get(one) or Region(one.name, self._endpoint(one.url)) for one in wanted]
        self.nearest = next((one for one in self._readable if not one.unhealthy), self._readable[0])
        self.write_endpoint = self._endpoint(properties.write_location.url)
        self.has_sessions = properties.has_sessions
        names = [region.name for region in self._readable]
        if before and before != names:
            log.warning("%s: its regions are now %s", self._translator.where, ", ".join(names))
        needed = {self._account.url, properties.write_location.url, *(one.url for one in wanted)}
        for url in set(self._endpoints) - needed:
            await self._endpoints.pop(url).transport.close()

    def _endpoint(self, url: str) -> AccountEndpoint:
        if url not in self._endpoints:
            self._endpoints[url] = self._connect(url)
        return self._endpoints[url]

    def _refreshed(self, refreshing: asyncio.Task[AccountProperties]) -> None:
        self._refreshing = None
        if refreshing.cancelled():
            return
        refreshing.exception()  # seen, even where every caller has gone
        loop = asyncio.get_running_loop()
        self._refreshed_at = loop.time()
        if self._timer is not None:
            self._timer.cancel()
        after_s = REFRESH_INTERVAL_S * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers, guards nothing
        self._timer = loop.call_later(after_s, lambda: self._start(self._refresh_quietly()))

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except StoreError:
            return  # what is known goes on being used, and each read or write meets the failure itself

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
