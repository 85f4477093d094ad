"""Tiers: stores of a service, each with a live release and a circuit breaker.

A store in this process is a `LocalTier`, and one behind a network a `RemoteTier`: with a cache, time limits, and hedged
reads. The result of reading a key is bytes (decoded: the opened list), None if the store has no row, or a StoreError.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from time import perf_counter

import msgspec

from hotplate.base.timing import loop_time
from hotplate.serve.errors import ReleaseMoved, ServiceFinding, StoreDefect, first_error
from hotplate.serve.metrics import (
    CACHE,
    CACHE_HIT,
    CACHE_MISS,
    CORRUPT,
    LOOKUP_OUTCOMES,
    ROLE_LOOKUPS,
    Metrics,
)
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.telemetry.spans import sampled_requests, traced
from hotplate.serve.tiers.breaker import Breaker
from hotplate.serve.tiers.cache import NOT_CACHED, Cache
from hotplate.serve.tiers.hedging import Hedge
from hotplate.serve.tiers.observer import StoreObserver
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.encoding import USER
from hotplate.stores.errors import HEAL, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.store import LocalRows, Reader, ReadResult, batches_of
from hotplate.stores.urls import require_url, scheme_of

log = logging.getLogger(__name__)

# Keys of a local store read before other requests run: half a millisecond.
KEYS_AT_ONCE = 256
# A store that reads key by key returns after this share of its time.
STORE_SHARE = 0.9

_UNREADABLE = StoreError("the value cannot be read")


def tiers_of(urls: Sequence[str]) -> dict[str, str]:
    """Return the URLs of stores by their names: the scheme, numbered from its second use on."""
    uses = Counter[str]()
    tiers = dict[str, str]()
    for url in urls:
        require_url(url)
        scheme = scheme_of(url)
        uses[scheme] += 1
        tiers[scheme if uses[scheme] == 1 else f"{scheme}-{uses[scheme]}"] = url
    return tiers


class Tier(ABC):
    """One named store of a service, in one worker, on one loop. Its keys are texts, as those of stores."""

    _cache: Cache | None = None

    needs_io = False
    """Whether no row can be read at once."""

    damage_raises_anything = False
    """Whether an exception of a call of the store other than StoreError is due to a damaged value, and not a defect."""

    def __init__(self, name: str, reader: Reader, metrics: Metrics, follower: Follower) -> None:
        """*reader* reads the store, and *follower* follows it."""
        self.name = name
        self.metrics = metrics
        """Metrics of the worker, in which the tier counts under its name."""

        self.read_cell = metrics.store[name, "get", "ok"]
        """The histogram of reads of a local store."""

        self.follower = follower
        self.breaker = Breaker(name, loop_time)
        self.reader = reader
        self.keys_a_call = reader.coalesce

    @property
    def findings(self) -> list[ServiceFinding]:
        """All findings, first those because of which lists cannot be read."""
        findings = self.follower.findings
        if self.breaker.is_open:
            findings.append(ServiceFinding("circuit", self.breaker.open_because))
        for release in self.follower.releases:
            if release.tally.damaged:
                findings.append(ServiceFinding("damage", _damage_of(release.id)))
        return sorted(findings, key=lambda finding: not finding.is_error)

    @property
    def error(self) -> str | None:
        """Why some or all lists cannot be read; None while all can."""
        return first_error(self.findings)

    async def close(self) -> None:
        """Cancel a read of the catalogue, if one is in progress, and close the store."""
        await self.follower.close()
        await self.reader.close()

    @property
    def cache_bytes(self) -> int | None:
        """Size of the cache; None without one."""
        return None if self._cache is None else self._cache.bytes

    def local_rows(self, release: ServedRelease) -> LocalRows | None:  # noqa: ARG002 -- of stores in this process
        """Return the rows of a release for the fast lane; None if they are to be read by `get`."""
        return None

    @abstractmethod
    def get(self, release: ServedRelease, key: str) -> ReadResult:
        """Read one key without I/O; returns a StoreError if that is impossible."""

    @abstractmethod
    async def read(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* in *release*: one decoded result per key.

        Raises ReleaseMoved, and StoreError if nothing could be read in time.
        """

    async def _follow(self, gone: ServedRelease, deadline: float) -> None:
        """Follow the release that is live now, after a read said that *gone* is gone.

        Reads the catalogue, the record of the store's releases, until *deadline* at most. Raises ReleaseMoved unless
        *gone* is still followed: the caller can read the keys in another release.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self.follower.refresh()

        self.follower.drop(gone)
        if all(followed is not gone for followed in self.follower.releases):
            raise ReleaseMoved(f"release {gone.id} is gone")

    async def _results_of(
        self, call: Callable[[], Awaitable[list[ReadResult]]], release: ServedRelease, keys: Sequence[str]
    ) -> list[ReadResult]:
        """Read *keys* by *call*, a call of the store, which is counted and timed; return a decoded result per key.

        Raises ReleaseNotFound, and another StoreError if the call fails. Errors of single keys are results.
        """
        started = perf_counter()
        outcome = "error"
        try:
            results = await call()
            if len(results) != len(keys):
                raise StoreDefect(f"{self.name} returned {len(results)} results for {len(keys)} keys")  # noqa: TRY301 -- counted below
            outcome = "ok"
        except ReleaseNotFound:
            outcome = "gone"
            raise
        except Exception as error:
            if not self.damage_raises_anything and not isinstance(error, StoreError):
                raise StoreDefect(f"{self.name} failed with {type(error).__name__}; the log says where") from error
            raise self._result_of_error(release, error) from error.__cause__
        finally:
            self._observe_read(self.metrics.store[self.name, "get_many", outcome], perf_counter() - started, release)

        return self._decoded(release, keys, results)

    def _observe_read(self, cell: int, took_s: float, release: ServedRelease) -> None:
        """Count a read in the histogram that begins at *cell*; also by role while two releases are compared."""
        self.metrics.observe(cell, took_s)
        role = self.follower.compared_role(release)
        if role is not None:
            self.metrics.observe(self.metrics.role_reads[self.name, role], took_s)

    def _decoded(self, release: ServedRelease, keys: Sequence[str], results: Sequence[ReadResult]) -> list[ReadResult]:
        """Decode the values of *keys* in *results*; a damaged value becomes an error, which is counted.

        The result of a key is the bytes of its value, None if it is absent, or an error. Decoding checks the value, and
        returns its body. All is done in one loop, because a call per result doubles the time.
        """
        decode = release.decode

        decoded: list[ReadResult] = []
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, bytes):
                try:
                    decoded.append(decode(key, result))
                except Exception as error:  # noqa: BLE001 -- damage must not become a 500
                    decoded.append(self._result_of_error(release, error))
            else:
                decoded.append(self._result_of_error(release, result) if isinstance(result, StoreError) else result)
        return decoded

    def _result_of_error(self, release: ServedRelease, error: Exception) -> StoreError:
        """Return the error that becomes the result of a key, if reading or decoding its value raised *error*.

        ReleaseCorrupt, and any exception that is not a StoreError, means that the value is damaged: that is counted,
        logged for the first value of a release, and returned as ReleaseCorrupt. Other StoreErrors are returned as they
        are.
        """
        if isinstance(error, StoreError) and not isinstance(error, ReleaseCorrupt):
            return error

        self.metrics.count_in(CORRUPT, self.name)
        damage = ReleaseCorrupt(_damage_of(release.id))
        if not release.tally.damaged:
            log.error("%s: %s", self.name, damage, exc_info=None if isinstance(error, ReleaseCorrupt) else error)
        release.tally.damaged += 1
        return damage

    def count_lookup(self, release: ServedRelease, source: str, outcome: int, kind: str, lists: int = 1) -> None:
        """Count *lists* from a *source*, one of SOURCES; *outcome* is an index of LOOKUP_OUTCOMES, *kind* of the rows.

        While two releases are compared, lists of users are also counted by role.
        """
        release.tally.lookups[""][outcome] += lists
        outcome_name = LOOKUP_OUTCOMES[outcome]
        self.metrics.count_lookup(source, outcome_name, lists)
        role = self.follower.compared_role(release) if kind == USER else None
        if role is not None:
            self.metrics.count_in(ROLE_LOOKUPS, self.name, role, outcome_name, number=lists)


class LocalTier(Tier):
    """A store in this process, such as files: one key is read at once, and without a time limit."""

    damage_raises_anything = True

    def local_rows(self, release: ServedRelease) -> LocalRows | None:
        """Return the rows of a release for the fast lane; None if they are to be read by `get`."""
        try:
            return self.reader.rows_of(release.ref)
        except StoreError:
            return None

    def get(self, release: ServedRelease, key: str) -> ReadResult:
        """Read, time and decode one key; damage is a StoreError."""
        started = perf_counter()
        try:
            value = self.reader.get(release.ref, key)
            took_s = perf_counter() - started
            self._observe_read(self.read_cell, took_s, release)
            return None if value is None else release.decode(key, value)
        except StoreError as error:
            return error
        except Exception:  # noqa: BLE001 -- an unreadable page must not become a 500
            return _UNREADABLE

    async def read(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* in *release*, in batches, between which other requests run: one decoded result per key.

        The time limit is only for reading the catalogue. Raises ReleaseMoved, and StoreError if nothing could be read.
        """
        deadline = loop_time() + timeout_s
        results = list[ReadResult]()
        try:
            for batch in batches_of(keys, KEYS_AT_ONCE):
                if results:
                    await asyncio.sleep(0)
                call = partial(self.reader.get_many, release.ref, batch)
                results += await or_errors(self._results_of(call, release, batch), batch)
        except ReleaseNotFound:
            await self._follow(release, deadline)
            raise
        return unless_all_failed(results)


class RemoteTier(Tier):
    """A store behind a network."""

    def __init__(self, name: str, reader: Reader, metrics: Metrics, follower: Follower, cache_bytes: int) -> None:
        """*cache_bytes* is the size of the cache; without one, it is 0."""
        super().__init__(name, reader, metrics, follower)
        self._cache = Cache(cache_bytes, loop_time) if cache_bytes else None
        self.needs_io = self._cache is None
        self._hedge = Hedge(reader, name, metrics)

    def get(self, release: ServedRelease, key: str) -> ReadResult:
        """Return one key from the cache; NOT_CACHED, a StoreError, if it lacks it."""
        if self._cache is None:
            return NOT_CACHED
        result = self._cache.get(release, key)
        if result is not NOT_CACHED:
            self.metrics.count_in(CACHE, self.name, CACHE_HIT)
        return result

    async def read(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* in *release*, from the cache where it has them, else from the store; return a result per key.

        A result is the bytes of a list, None if it is absent, or an error. Raises ReleaseMoved if the release is gone
        and another one is followed, and StoreError if nothing could be read in time or the circuit breaker is open.
        """
        if self._cache is None:
            return await self._read_in_time(release, keys, timeout_s)

        results = [self.get(release, key) for key in keys]
        uncached = [index for index, result in enumerate(results) if result is NOT_CACHED]
        if uncached:
            uncached_results = await self._read_in_time(release, [keys[index] for index in uncached], timeout_s)
            for index, result in zip(uncached, uncached_results, strict=True):
                results[index] = result
        return results

    async def _read_in_time(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* from the store within a time limit, if the circuit breaker allows it; raises as `read`.

        The breaker is told the outcome.
        """
        breaker = self.breaker
        openings = breaker.begin()
        deadline = loop_time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                results = await self._read_store(release, keys, deadline)
        except TimeoutError:
            raise breaker.timed_out(openings, timeout_s) from None
        except (ReleaseMoved, ReleaseCorrupt):  # the store has answered
            breaker.succeeded(openings)
            raise
        except StoreError as error:
            breaker.failed(openings, error)
            raise
        except BaseException:  # a cancellation or a defect says nothing about the store
            breaker.cancelled(openings)
            raise

        breaker.succeeded(openings)
        return results

    async def _read_store(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* by calls of the store's size, at once."""
        size = self.reader.batch
        try:
            if len(keys) <= size:
                return await self._read_batch(release, keys, deadline)
            parts = (or_errors(self._read_batch(release, part, deadline), part) for part in batches_of(keys, size))
            return unless_all_failed(list(chain.from_iterable(await asyncio.gather(*parts))))
        except ReleaseNotFound:
            await self._follow(release, deadline)
            raise

    async def _read_batch(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* by one call of the store, and cache their lists."""
        results = await self._results_of(partial(self._call, release, keys, deadline), release, keys)
        if self._cache is not None:
            self._cache.put(release, keys, results)
            self.metrics.count_in(CACHE, self.name, CACHE_MISS, number=len(keys))
        return results

    def _call(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> Awaitable[list[ReadResult]]:
        """Return the call of the store for *keys*, to be awaited; *deadline* is by `loop_time`.

        It is hedged if the store has a replica: a late read is sent to it, too. If requests are traced, the call is
        recorded as a span.
        """
        # Less than the time that is left: a store that reads key by key then returns the keys that it has.
        timeout_s = max(0.0, deadline - loop_time()) * STORE_SHARE
        if self.reader.has_replicas and len(keys) <= self.keys_a_call:
            call = self._hedge.get_many(release.ref, keys, release.decode, timeout_s=timeout_s)
        else:
            call = self.reader.get_many(release.ref, keys, timeout_s=timeout_s)

        spans = sampled_requests.get()
        return traced(call, spans, self.name, len(keys)) if spans else call


def open_tiers(
    stores: Mapping[str, Reader | str],
    metrics: Metrics,
    follower_of: Callable[[str, Reader], Follower],
    cache_bytes: int = 0,
) -> list[Tier]:
    """Open the tiers of a service: *stores*, or their URLs, by tier name, in reading order.

    They count in *metrics*, and remote ones get equal parts of *cache_bytes*. *follower_of* returns the follower of a
    store, by its tier name. Raises StoreMisused for an invalid URL.
    """
    readers = {
        name: connect(store, StoreObserver(name, metrics)) if isinstance(store, str) else store
        for name, store in stores.items()
    }
    remote = sum(not reader.is_local for reader in readers.values())
    tiers = list[Tier]()
    for name, reader in readers.items():
        follower = follower_of(name, reader)
        if reader.is_local:
            tiers.append(LocalTier(name, reader, metrics, follower))
        else:
            tiers.append(RemoteTier(name, reader, metrics, follower, cache_bytes // remote))
    return tiers


class Origin(msgspec.Struct, frozen=True, eq=False):
    """The tier and the release that a row was read from."""

    tier: Tier
    release: ServedRelease


async def or_errors(reading: Awaitable[list[ReadResult]], keys: Sequence[str]) -> list[ReadResult]:
    """Await the results of one of several batches; its failure becomes the result of each of its *keys*.

    ReleaseNotFound is raised at once, to leave time for the next release.
    """
    try:
        return await reading
    except ReleaseNotFound:
        raise
    except StoreError as error:
        return [error] * len(keys)


def unless_all_failed(results: list[ReadResult]) -> list[ReadResult]:
    """Return *results*; raises the first error if each is one."""
    if isinstance(results[0], StoreError) and all(isinstance(result, StoreError) for result in results):
        raise results[0]
    return results


def _damage_of(release: ReleaseId) -> str:
    """Return a sentence without the error, whose key may identify a user."""
    return f"release {release} is damaged in this store; `hotplate releases verify` names rows; {HEAL}"
