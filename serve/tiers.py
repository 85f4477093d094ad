"""Tiers: stores of a service, each with a live release, a circuit breaker and a cache.

The result of reading a key is bytes (decoded: the opened list), None if the store has no row, or a StoreError.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from time import perf_counter
from typing import Any

import msgspec

from hotplate.serve.breaker import Breaker
from hotplate.serve.cache import NOT_CACHED, Cache
from hotplate.serve.errors import ReleaseMoved, ServiceFinding, StoreDefect
from hotplate.serve.fold_in import FoldIn
from hotplate.serve.hedging import Hedge
from hotplate.serve.metrics import LOOKUP_OUTCOMES, Metrics
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.telemetry.spans import sampled_requests, traced
from hotplate.serve.tier_metrics import TierMetrics
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.encoding import USER
from hotplate.stores.errors import HEAL, ReleaseCorrupt, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.store import LocalReader, LocalRows, Reader, ReadResult, ReplicatedReader, SendingReader
from hotplate.stores.timing import Deadlines, TaskDeadlines
from hotplate.stores.urls import scheme_of

log = logging.getLogger(__name__)

# Keys of a local store read before other requests run: half a millisecond.
KEYS_AT_ONCE = 256
# A store that reads key by key returns after this share of its time.
STORE_SHARE = 0.9

_UNREADABLE = StoreError("the value cannot be read")


def loop_time() -> float:
    """Return the time of the running loop."""
    return asyncio.get_running_loop().time()


def tier_names(urls: Sequence[str]) -> list[str]:
    """Return each store's scheme, numbered from its second use on."""
    uses = Counter[str]()
    names = list[str]()
    for url in urls:
        scheme = scheme_of(url)
        uses[scheme] += 1
        names.append(scheme if uses[scheme] == 1 else f"{scheme}-{uses[scheme]}")
    return names


class SentRead(msgspec.Struct, frozen=True, eq=False):
    """A read that a store has sent."""

    sender: SendingReader
    release: ServedRelease
    keys: Sequence[str]
    replies: asyncio.Future[list[ReadResult]]
    expiring: set[asyncio.Future[list[ReadResult]]]
    """The set of `Deadlines` that contains the replies until they arrive, and otherwise cancels them."""

    sent_at: float
    """By `perf_counter`."""

    timeout_s: float


class Tier:
    """One named store of a service, in one worker, on one loop. Its keys are texts, as those of stores."""

    def __init__(
        self, name: str, reader: Reader, metrics: Metrics, *, cache_bytes: int = 0, fold_in: FoldIn | None = None
    ) -> None:
        """*reader* reads the store, with a cache of *cache_bytes* if it is remote.

        *fold_in* loads the item factors of each release.
        """
        self.name = name
        self.counters = TierMetrics(name, metrics)
        self.follower = Follower(reader, self.counters.canary_counts, fold_in=fold_in)
        self.breaker = Breaker(name, loop_time)
        self.reader = reader
        self._local = reader if isinstance(reader, LocalReader) else None
        self._sender = reader if isinstance(reader, SendingReader) else None
        self.keys_a_call = reader.coalesce
        self._cache = Cache(cache_bytes, loop_time) if cache_bytes and self._local is None else None
        self._hedge = Hedge(reader, self.counters.count_hedge) if isinstance(reader, ReplicatedReader) else None
        self._deadlines = TaskDeadlines()
        self._sent_deadlines = Deadlines[asyncio.Future[list[ReadResult]]](_cancel)
        self._damaged = set[ReleaseRef]()
        """Followed releases of which a damaged value was read."""

    @property
    def findings(self) -> list[ServiceFinding]:
        """All findings, first those because of which lists cannot be read."""
        findings = self.follower.findings
        if self.breaker.is_open:
            findings.append(ServiceFinding("circuit", self.breaker.open_because))
        for release in self.follower.releases:
            if release.ref in self._damaged:
                findings.append(ServiceFinding("damage", _damage_of(release.id)))
        return sorted(findings, key=lambda finding: not finding.is_error)

    @property
    def error(self) -> str | None:
        """Why some or all lists cannot be read; None while all can."""
        return next((finding.sentence for finding in self.findings if finding.is_error), None)

    @property
    def cache_bytes(self) -> int | None:
        """Size of the cache; None without one."""
        return None if self._cache is None else self._cache.bytes

    async def close(self) -> None:
        """Close the store."""
        await self.reader.close()

    @property
    def needs_io(self) -> bool:
        """Whether no row can be read at once."""
        return self._local is None and self._cache is None

    def local_rows(self, release: ServedRelease) -> LocalRows | None:
        """Return the rows of a release for the fast lane; None if they are to be read by `get`."""
        if self._local is None:
            return None
        try:
            return self._local.rows_of(release.ref)
        except StoreError:
            return None

    def get(self, release: ServedRelease, key: str) -> ReadResult:
        """Read one key without I/O; returns a StoreError if that is impossible."""
        if self._local is not None:
            return self._get_local(self._local, release, key)
        if self._cache is None:
            return NOT_CACHED
        result = self._cache.get(release, key)
        if result is not NOT_CACHED:
            self.counters.count_cached()
        return result

    def _get_local(self, reader: LocalReader, release: ServedRelease, key: str) -> ReadResult:
        """Read, time and decode one key of a store in this process; damage is a StoreError."""
        started = perf_counter()
        try:
            value = reader.get(release.ref, key)
            took_s = perf_counter() - started
            self.counters.observe_local_read(took_s, self.follower.role_of(release))
            return None if value is None else release.decode(key, value)
        except StoreError as error:
            return error
        except Exception:  # noqa: BLE001 -- an unreadable page must not become a 500
            return _UNREADABLE

    async def read(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* in *release*, from the cache where it has them: one decoded result per key.

        The time limit is for remote stores, and for reading the catalogue. Raises ReleaseMoved, and StoreError if
        nothing could be read in time or the circuit is open.
        """
        if self._local is not None:
            return await self._read_or_follow(release, keys, loop_time() + timeout_s)
        if self._cache is None:
            return await self._read_in_time(release, keys, timeout_s)
        results = [self.get(release, key) for key in keys]
        uncached = [place for place, result in enumerate(results) if result is NOT_CACHED]
        if uncached:
            uncached_results = await self._read_in_time(release, [keys[place] for place in uncached], timeout_s)
            for place, result in zip(uncached, uncached_results, strict=True):
                results[place] = result
        return results

    def send(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> SentRead | None:
        """Send a read of *keys*, which are not cached, so that no task has to wait for it.

        `SentRead.replies` is done once the store has answered or the time is over; then `received` returns the results.
        None if `read` must be called instead: the store cannot send the keys at once, sending has failed, the circuit
        is open, or there are replicas to read if the store is late.
        """
        if self._sender is None or self.breaker.is_open or len(keys) > self.keys_a_call:
            return None
        if self._hedge is not None and self._hedge.is_possible:
            return None
        sent_at = perf_counter()
        try:
            replies = self._sender.send(release.ref, keys)
        except Exception as error:  # noqa: BLE001 -- `read` is called, which reports it
            self.counters.count_failed_attempt(error)
            return None
        if replies is None:
            return None
        return SentRead(
            sender=self._sender,
            release=release,
            keys=keys,
            replies=replies,
            expiring=self._sent_deadlines.add(replies, loop_time() + timeout_s),
            sent_at=sent_at,
            timeout_s=timeout_s,
        )

    def received(self, read: SentRead) -> list[ReadResult] | None:
        """Return the results of a read that is done; None after an error, and `read` must be called instead.

        Raises StoreUnavailable if the store did not answer in time.
        """
        read.expiring.discard(read.replies)
        if read.replies.cancelled():  # by `_sent_deadlines`
            self._observe_call(read.release, read.sent_at, "error")
            raise self.breaker.timed_out(read.timeout_s)
        try:
            results = read.sender.received(read.release.ref, read.replies.result())
        except ReleaseNotFound:  # no failure of the store
            return None
        except Exception as error:  # noqa: BLE001 -- `read` is called, which reports it if it fails, too
            self.counters.count_failed_attempt(error)
            return None
        self._observe_call(read.release, read.sent_at, "ok")
        self.breaker.succeeded()
        return self._decode_and_cache(read.release, read.keys, results)

    async def _read_in_time(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* of a remote store within a time limit, if the circuit breaker allows it, and tell it the outcome.

        Raises StoreUnavailable if the circuit is open or the time is over, and as `_read_or_follow`.
        """
        if not self.breaker.allows():
            raise StoreUnavailable(f"the circuit of {self.name} is open")
        is_probe = self.breaker.is_open
        deadline = loop_time() + timeout_s
        try:
            results = await self._deadlines.until(deadline, self._read_or_follow(release, keys, deadline))
        except asyncio.CancelledError:  # says nothing about the store
            if is_probe:
                self.breaker.probe_cancelled()
            raise
        except TimeoutError:
            raise self.breaker.timed_out(timeout_s) from None
        except ReleaseMoved:
            self.breaker.succeeded()
            raise
        except StoreError as error:
            self.breaker.failed(error)
            raise
        self.breaker.succeeded()
        return results

    async def _read_or_follow(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* in calls of the store's size.

        If the release is gone, reads the catalogue: raises ReleaseMoved if another release is followed then, in which
        the keys can be read, and ReleaseNotFound if there is none.
        """
        try:
            if self._local is not None:
                return await self._read_local(release, keys)
            if len(keys) > self.reader.batch:
                return await self._read_batches(release, keys, deadline)
            return await self._read_batch(release, keys, deadline)
        except ReleaseNotFound:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):  # that of a local store, too
                    await self.follower.refresh()
            # There is always another one for a canary, the live one, and none is needed for the release before.
            self.follower.canary_follower.drop(release)
            self.follower.drop_previous(release)
            if any(followed is release for followed in self.follower.releases):
                raise
            raise ReleaseMoved(f"release {release.id} is gone") from None

    async def _read_local(self, release: ServedRelease, keys: Sequence[str]) -> list[ReadResult]:
        """Read batches in turn; other requests run between them."""
        results = list[ReadResult]()
        for batch in batches_of(keys, KEYS_AT_ONCE):
            if results:
                await asyncio.sleep(0)
            results += await self._read_part(release, batch, None)
        return _unless_all_failed(results)

    async def _read_batches(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read batches at once."""
        parts = [self._read_part(release, batch, deadline) for batch in batches_of(keys, self.reader.batch)]
        return _unless_all_failed(list(chain.from_iterable(await asyncio.gather(*parts))))

    async def _read_part(self, release: ServedRelease, keys: Sequence[str], deadline: float | None) -> list[ReadResult]:
        """Read one of several batches; its failure becomes the result of each of its keys.

        ReleaseNotFound is raised at once, to leave time for the next release.
        """
        try:
            return await self._read_batch(release, keys, deadline)
        except ReleaseNotFound:
            raise
        except StoreError as error:
            return [error] * len(keys)

    async def _read_batch(
        self, release: ServedRelease, keys: Sequence[str], deadline: float | None
    ) -> list[ReadResult]:
        """Read *keys* by one call of the store, which is counted, timed and traced; without a *deadline* if local."""
        started = perf_counter()
        outcome = "error"
        try:
            results = await self._call(release, keys, deadline)
            outcome = "ok"
        except ReleaseNotFound:
            outcome = "gone"
            raise
        except Exception as error:
            # A local store also raises other exceptions for a damaged value; of a remote one, they are defects.
            if self._local is None and not isinstance(error, StoreError):
                raise StoreDefect(f"{self.name} failed with {type(error).__name__}; the log says where") from error
            raise self._result_of_error(release, error) from error.__cause__
        finally:
            self._observe_call(release, started, outcome)
        return self._decode_and_cache(release, keys, results)

    def _observe_call(self, release: ServedRelease, started: float, outcome: str) -> None:
        """Count a call of the store that began at *started* (`perf_counter`); *outcome* is one of OUTCOMES."""
        self.counters.observe_call(outcome, perf_counter() - started, self.follower.role_of(release))

    def _decode_and_cache(
        self, release: ServedRelease, keys: Sequence[str], values: Sequence[ReadResult]
    ) -> list[ReadResult]:
        """Decode the results of a store, and cache them."""
        results = self._decode_results(release, keys, values)
        if self._cache is not None:
            self._cache.put(release, keys, results)
            self.counters.count_uncached(len(keys))
        return results

    def _call(
        self, release: ServedRelease, keys: Sequence[str], deadline: float | None
    ) -> Coroutine[Any, Any, list[ReadResult]]:
        """Return the call of the store for *keys*, to be awaited.

        It is hedged if the store has a replica, and has a span if the requests are sampled. Without a *deadline*, of
        local stores, it has no time limit.
        """
        if deadline is None:
            return self.reader.get_many(release.ref, keys)
        timeout_s = max(0.0, deadline - loop_time()) * STORE_SHARE
        hedge = self._hedge
        if hedge is not None and hedge.is_possible and len(keys) <= self.keys_a_call:
            call = hedge.get_many(release.ref, keys, release.decode, timeout_s=timeout_s)
        else:
            call = self.reader.get_many(release.ref, keys, timeout_s=timeout_s)
        spans = sampled_requests.get()
        return traced(call, spans, self.name, len(keys)) if spans else call

    def _decode_results(
        self, release: ServedRelease, keys: Sequence[str], results: Sequence[ReadResult]
    ) -> list[ReadResult]:
        """Decode the values of *keys*; a damaged value becomes an error, which is counted.

        The result of a key is its bytes, None if it is absent, or an error. In one loop, because a call per result
        doubles the time.
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
        """Return the error that is the result of a key, whose read or decoding raised *error*.

        A StoreError is returned as it is, but for ReleaseCorrupt. This and any other exception mean that the value is
        damaged: that is counted, logged for the first one of a release, and returned as ReleaseCorrupt.
        """
        if isinstance(error, StoreError) and not isinstance(error, ReleaseCorrupt):
            return error

        self.counters.count_damage()
        release.tally.damaged += 1
        damage = ReleaseCorrupt(_damage_of(release.id))
        if release.ref not in self._damaged:
            followed = {served.ref for served in self.follower.releases}
            self._damaged &= followed
            self._damaged.add(release.ref)
            log.error("%s: %s", self.name, damage, exc_info=None if isinstance(error, ReleaseCorrupt) else error)
        return damage

    def count_lookup(self, release: ServedRelease, source: str, outcome: int, kind: str, lists: int = 1) -> None:
        """Count *lists* from a *source*, one of SOURCES; *outcome* is an index of LOOKUP_OUTCOMES, *kind* of the rows.

        During a canary, lists of users are also counted by role, for its judgement.
        """
        release.tally.lookups[outcome] += lists
        role = self.follower.role_of(release) if kind == USER else None
        self.counters.count_lookups(source, LOOKUP_OUTCOMES[outcome], lists, role)


class Origin(msgspec.Struct, frozen=True, eq=False):
    """The tier and the release that a row was read from."""

    tier: Tier
    release: ServedRelease


def _cancel(replies: asyncio.Future[list[ReadResult]]) -> None:
    replies.cancel()


def batches_of(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield *keys* in parts of a size."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _unless_all_failed(results: list[ReadResult]) -> list[ReadResult]:
    """Return *results*; raises the first error if each is one."""
    if isinstance(results[0], StoreError) and all(isinstance(result, StoreError) for result in results):
        raise results[0]
    return results


def _damage_of(release: ReleaseId) -> str:
    """Return a sentence without the error, whose key may identify a user."""
    return f"release {release} is damaged in this store; `hotplate releases verify` names rows; {HEAL}"
