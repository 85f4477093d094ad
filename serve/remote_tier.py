"""Tiers whose store is behind a network: with a cache, time limits, and hedged reads."""

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import chain

from hotplate.base.timing import TaskDeadlines
from hotplate.serve.cache import NOT_CACHED, Cache
from hotplate.serve.errors import ReleaseMoved
from hotplate.serve.fold_in import FoldIn
from hotplate.serve.hedging import Hedge
from hotplate.serve.metrics import CACHE, CACHE_HIT, CACHE_MISS, Metrics
from hotplate.serve.releases.comparison import SharedComparisons
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.telemetry.spans import sampled_requests, traced
from hotplate.serve.tiers import Tier, batches_of, loop_time, unless_all_failed
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.store import Reader, ReadResult

# A store that reads key by key returns after this share of its time.
STORE_SHARE = 0.9


class RemoteTier(Tier):
    """A store behind a network."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        metrics: Metrics,
        *,
        cache_bytes: int = 0,
        fold_in: FoldIn | None = None,
        comparisons: SharedComparisons | None = None,
    ) -> None:
        """*cache_bytes* is the size of the cache; without one, it is 0."""
        super().__init__(name, reader, metrics, fold_in=fold_in, comparisons=comparisons)
        self._cache = Cache(cache_bytes, loop_time) if cache_bytes else None
        self.needs_io = self._cache is None
        self._hedge = Hedge(reader, name, metrics)
        self._deadlines = TaskDeadlines()

    @property
    def cache_bytes(self) -> int | None:
        """Size of the cache; None without one."""
        return None if self._cache is None else self._cache.bytes

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
        """Read *keys* from the store within a time limit, if the circuit breaker allows it.

        The breaker is told the outcome. Raises StoreUnavailable if the breaker is open or the time is over, and as
        `_read_or_follow`.
        """
        if not self.breaker.allows():
            raise StoreUnavailable(f"the circuit of {self.name} is open")

        is_probe = self.breaker.is_open  # the one read that an open breaker allows, after a pause
        deadline = loop_time() + timeout_s
        try:
            results = await self._deadlines.until(deadline, self._read_or_follow(release, keys, deadline))
        except TimeoutError:
            raise self.breaker.timed_out(timeout_s) from None
        except ReleaseMoved:  # the store has answered
            self.breaker.succeeded()
            raise
        except StoreError as error:
            self.breaker.failed(error)
            raise
        except BaseException:  # a cancellation or a defect says nothing about the store
            if is_probe:
                self.breaker.probe_cancelled()
            raise

        self.breaker.succeeded()
        return results

    async def _read_all(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read batches at once."""
        if len(keys) <= self.reader.batch:
            return await self._read_batch(release, keys, deadline)
        parts = [self._read_part(release, batch, deadline) for batch in batches_of(keys, self.reader.batch)]
        return unless_all_failed(list(chain.from_iterable(await asyncio.gather(*parts))))

    def _call(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> Awaitable[list[ReadResult]]:
        """Return the call of the store for *keys*, to be awaited; *deadline* is by `loop_time`.

        It is hedged if the store has a replica: a late read is sent to it, too. If requests are traced, the call is
        recorded as a span.
        """
        # Less than the time that is left: a store that reads key by key then returns the keys that it has.
        timeout_s = max(0.0, deadline - loop_time()) * STORE_SHARE
        hedge = self._hedge
        if hedge.is_possible and len(keys) <= self.keys_a_call:
            call = hedge.get_many(release.ref, keys, release.decode, timeout_s=timeout_s)
        else:
            call = self.reader.get_many(release.ref, keys, timeout_s=timeout_s)

        spans = sampled_requests.get()
        return traced(call, spans, self.name, len(keys)) if spans else call

    def _decode_results(
        self, release: ServedRelease, keys: Sequence[str], results: Sequence[ReadResult]
    ) -> list[ReadResult]:
        """Decode the values of *keys*, and cache them."""
        decoded = super()._decode_results(release, keys, results)
        if self._cache is not None:
            self._cache.put(release, keys, decoded)
            self.metrics.count_in(CACHE, self.name, CACHE_MISS, number=len(keys))
        return decoded
