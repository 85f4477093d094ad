"""The regions of an account: where to read and where to write, and failover to another region and back.

The rules are those of the SDKs: the account lists its regions and is read again every five minutes, or soon where
something is not where it said; a region that fails is left for a while, then one read tries it again.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import TRANSIENT, CosmosUnavailable, ErrorKind, MalformedResponse
from hotplate.stores.cosmos.requests import RequestBuilder
from hotplate.stores.errors import StoreError
from hotplate.stores.http1 import Transport
from hotplate.stores.throttle import Backoff

log = logging.getLogger(__name__)

# Default consistencies of accounts that let requests ask for what their own session has written.
SESSION_CONSISTENCIES = ("Strong", "BoundedStaleness", "Session")

# So many failures in a row make a region unhealthy; a single connection that cannot be made is enough.
MAX_FAILURES = 3

# A read that waited for less says nothing of its region: it had no time to begin with.
MIN_WAIT_S = 0.02

# How often the account is read again, and how soon after the last time when something is wrong.
REFRESH_INTERVAL_S = 300.0
MIN_REFRESH_INTERVAL_S = 5.0

# The first and the longest pause before an unhealthy region is tried again.
TRIAL_PAUSE_S = (1.0, 60.0)


class Account(NamedTuple):
    """What the account says of itself."""

    multiple_write_regions: bool
    """Whether several regions take writes: then nothing can be compared and set."""

    regions: tuple[str, ...]
    """Those that can be read, in the order in which lookups try them."""


@dataclass(slots=True, eq=False)
class Region:
    """One server of the account; lives as long as the account lists it."""

    url: str
    requests: RequestBuilder
    transport: Transport
    name: str = ""
    failures: int = 0
    """Failures since the last read that succeeded."""

    late_at: float = float("-inf")
    """When a read timed out that was counted, by the event loop's clock: of those under way by then, none other is."""

    unhealthy: bool = False
    pauses: Backoff = field(default_factory=lambda: Backoff(*TRIAL_PAUSE_S))
    trial: asyncio.TimerHandle | None = None


class Regions:
    """Knows which regions there are, and which are healthy; lives as long as its client, and sends nothing itself."""

    def __init__(
        self,
        where: str,
        account: Region,
        preferred: str | None,
        connect: Callable[[str], Region],
        read_account: Callable[[Region], Awaitable[dict[str, Any]]],
    ) -> None:
        """Take the account's own server, the region to be read first, and how to connect to one and read the account.

        *where* is the store's URL without secrets, for sentences.
        """
        self._where = where
        self._account = account
        self._preferred = preferred
        self._connect = connect
        self._read_account = read_account
        self._known = {account.url: account}
        self._readable = list[Region]()
        self._refreshing: asyncio.Task[Account] | None = None
        self._refreshed_at = float("-inf")
        self._tried: Region | None = None
        """An unhealthy region that the next read is to try."""

        self._nearest: Region | None = None
        """None until the account was read."""

        self.write = account
        """Where writes go, and reads that must see them."""

        self.has_sessions = False
        """Whether the account is consistent enough for sessions."""

        self.refresh_at = float("-inf")
        """When the account is to be read again, by the event loop's clock."""

    @property
    def is_known(self) -> bool:
        """Whether the account was read."""
        return self._nearest is not None

    def nearest(self) -> Region:
        """Return where the next lookup goes; the account must be known."""
        if self._tried is not None:
            region, self._tried = self._tried, None
            self._try_later(region)  # again, unless it succeeds
            return region
        return self._nearest or self._account

    async def refresh(self, timeout_s: float | None = None) -> Account:
        """Read the account again; callers at the same time share the response. Raises StoreError."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._refreshing)
        except TimeoutError:
            raise CosmosUnavailable(f"{self._where} did not list its regions in time", "timeout") from None

    def refresh_soon(self) -> None:
        """Read the account in the background, unless it is being read; what is known is used until then."""
        self.refresh_at = asyncio.get_running_loop().time() + MIN_REFRESH_INTERVAL_S
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)

    def doubt(self) -> None:
        """Note that something is not where the account said."""
        self.refresh_at = min(self.refresh_at, self._refreshed_at + MIN_REFRESH_INTERVAL_S)

    def succeeded(self, region: Region) -> None:
        """Note that a region that had failed responded."""
        region.failures = 0
        if region.unhealthy and region in self._readable:
            region.unhealthy = False
            _stop_trials(region)
            self._nearest = self._choose()
            log.warning("%s: %s can be read again; reading from %s", self._where, region.name, self._nearest.name)

    def failed(self, region: Region, kind: ErrorKind, began_at: float) -> Region | None:
        """Note that a read, begun at *began_at*, failed in *region*; return another region if it may do better.

        If overlapping reads time out, one counts: a pause, even our own, is not a slow region.
        """
        now = asyncio.get_running_loop().time()
        if kind == "timeout":
            if now - began_at < MIN_WAIT_S or began_at < region.late_at:
                return None
            region.late_at = now
        elif kind not in TRANSIENT:
            return None
        region.failures += 1
        others = [one for one in self._readable if one is not region]
        healthy = next((one for one in others if not one.unhealthy), None)
        if not region.unhealthy and healthy is not None and (region.failures >= MAX_FAILURES or kind == "connect"):
            region.unhealthy = True
            self._nearest = self._choose()
            log.warning("%s: %s cannot be read (%s); reading from %s", self._where, region.name, kind, healthy.name)
            region.pauses.reset()
            self._try_later(region)
            self.doubt()
        return healthy or next(iter(others), None)

    async def close(self) -> None:
        """Stop reading the account, and close the connections to all regions."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for region in self._known.values():
            await _leave(region)

    def _try_later(self, region: Region) -> None:
        def try_it() -> None:
            region.trial = None
            if region.unhealthy:
                self._tried = region

        if region.trial is None and region in self._readable:
            region.trial = asyncio.get_running_loop().call_later(region.pauses.next_s(), try_it)

    def _choose(self) -> Region:
        return next((one for one in self._readable if not one.unhealthy), self._readable[0])

    async def _refresh(self) -> Account:
        """Read the account from its own server, and if that fails from those of its regions."""
        failed: StoreError | None = None
        for region in dict.fromkeys([self._account, *self._readable]):
            try:
                reported = await self._read_account(region)
                writable, readable = (_locations(reported.get(each), self._account.url) for each in LISTS)
            except MalformedResponse as error:
                failed = failed or CosmosUnavailable(f"{self._where} sent {error}", "malformed")
            except StoreError as error:
                failed = failed or error
            else:
                policy = reported.get("userConsistencyPolicy")
                level = policy.get("defaultConsistencyLevel") if isinstance(policy, dict) else None
                self.has_sessions = level in SESSION_CONSISTENCIES
                await self._apply(next(iter(writable.values())), readable)
                multiple = reported.get("enableMultipleWriteLocations") is True or len(writable) > 1
                return Account(multiple, tuple(each.name for each in self._readable))
        raise failed or CosmosUnavailable(f"{self._where} cannot be reached", "connect")

    async def _apply(self, write: str, readable: dict[str, str]) -> None:
        """Take over what the account lists: URLs by name; regions that stay keep what is known of their health."""
        before = [region.name for region in self._readable]
        names = sorted(readable, key=lambda name: name != self._preferred)
        for url in (write, *readable.values()):
            if url not in self._known:
                self._known[url] = self._connect(url)
        self._readable = [self._known[readable[name]] for name in names]
        for name, region in zip(names, self._readable, strict=True):
            region.name = name
            if region.unhealthy:
                self._try_later(region)  # it may have been left out of the list for a while
        if self._tried not in self._readable:
            self._tried = None
        self.write = self._known[write]
        self._nearest = self._choose()
        if before and before != names:
            log.warning("%s: its regions are now %s", self._where, ", ".join(names))
        for url in self._known.keys() - {self._account.url, write, *readable.values()}:
            await _leave(self._known.pop(url))

    def _refreshed(self, refreshing: asyncio.Task[Account]) -> None:
        self._refreshing = None
        if refreshing.cancelled():
            return
        failed = refreshing.exception() is not None  # seen, even where every caller has gone
        self._refreshed_at = asyncio.get_running_loop().time()
        spread = random.uniform(0.9, 1.1)  # noqa: S311 -- spreads workers, guards nothing
        self.refresh_at = self._refreshed_at + (MIN_REFRESH_INTERVAL_S if failed else REFRESH_INTERVAL_S * spread)


LISTS = ("writableLocations", "readableLocations")


async def _leave(region: Region) -> None:
    _stop_trials(region)
    await region.transport.close()


def _stop_trials(region: Region) -> None:
    if region.trial is not None:
        region.trial.cancel()
        region.trial = None


def _locations(reported: object, account: str) -> dict[str, str]:
    """Return the regions' URLs by their names; what is sent to an account by https never goes on in the clear."""
    if not isinstance(reported, list) or not reported:
        raise MalformedResponse("an account without regions")
    found = dict[str, str]()
    for one in reported:
        match one:
            case {"name": str(name), "databaseAccountEndpoint": str(url)}:
                found[name] = _server(url, secure=account.startswith("https:"))
            case _:
                raise MalformedResponse("a region without name or endpoint")
    return found


def _server(url: str, *, secure: bool) -> str:
    """Return a URL without a slash at its end and with a port. Raises MalformedResponse."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MalformedResponse("a region whose endpoint is not a URL") from None
    if not host or parts.scheme not in ("http", "https") or (secure and parts.scheme != "https"):
        raise MalformedResponse("a region whose endpoint cannot be trusted")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{bracketed}:{port or (443 if parts.scheme == 'https' else 80)}"
