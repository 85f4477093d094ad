"""Tiers: stores of a service, each with a live release and a circuit breaker.

A store in this process is a `LocalTier`, and one behind a network a `RemoteTier`. The result of reading a key is bytes
(decoded: the opened list), None if the store has no row, or a StoreError.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TypeVar

import msgspec

from hotplate.serve.breaker import Breaker
from hotplate.serve.errors import ReleaseMoved, ServiceFinding, StoreDefect
from hotplate.serve.fold_in import FoldIn
from hotplate.serve.metrics import CANARY_LOOKUPS, CORRUPT, LOOKUP_OUTCOMES, Metrics
from hotplate.serve.releases.comparison import SharedComparisons, TierComparisons
from hotplate.serve.releases.counts import canary_counts
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef
from hotplate.stores.encoding import USER
from hotplate.stores.errors import HEAL, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.store import LocalRows, Reader, ReadResult
from hotplate.stores.urls import require_url, scheme_of

log = logging.getLogger(__name__)

T = TypeVar("T")


def loop_time() -> float:
    """Return the time of the running loop."""
    return asyncio.get_running_loop().time()


def tier_names(urls: Sequence[str]) -> list[str]:
    """Return each store's scheme, numbered from its second use on."""
    uses = Counter[str]()
    names = list[str]()
    for url in urls:
        require_url(url)
        scheme = scheme_of(url)
        uses[scheme] += 1
        names.append(scheme if uses[scheme] == 1 else f"{scheme}-{uses[scheme]}")
    return names


class Tier(ABC):
    """One named store of a service, in one worker, on one loop. Its keys are texts, as those of stores."""

    needs_io = False
    """Whether no row can be read at once."""

    damage_raises_anything = False
    """Whether an exception of a call of the store other than StoreError is due to a damaged value, and not a defect."""

    def __init__(
        self,
        name: str,
        reader: Reader,
        metrics: Metrics,
        *,
        fold_in: FoldIn | None = None,
        comparisons: SharedComparisons | None = None,
    ) -> None:
        """*reader* reads the store; *fold_in* loads the item factors of each release.

        *comparisons* stop canaries; without them, each is judged here.
        """
        self.name = name
        self.metrics = metrics
        """Metrics of the worker, in which the tier counts under its name."""

        self.read_cell = metrics.store[name, "get", "ok"]
        """The histogram of reads of a local store."""

        verdict = partial(_judge, TierComparisons(name), metrics)
        if comparisons is not None:
            verdict = partial(comparisons.finding, name)
        self.follower = Follower(reader, verdict=verdict, fold_in=fold_in)
        self.breaker = Breaker(name, loop_time)
        self.reader = reader
        self.keys_a_call = reader.coalesce
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

    async def close(self) -> None:
        """Cancel a read of the catalogue, if one is in progress, and close the store."""
        await self.follower.close()
        await self.reader.close()

    @property
    def cache_bytes(self) -> int | None:
        """Size of the cache; None without one."""
        return None

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

    async def _read_or_follow(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* in *release* from the store.

        If the release is gone, read the catalogue, the record of the store's releases, and follow the release that is
        live now. Then raise ReleaseMoved: the caller can read the keys in that one. Raises ReleaseNotFound if *release*
        is still followed, as the live one or the canary.
        """
        try:
            return await self._read_all(release, keys, deadline)
        except ReleaseNotFound:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self.follower.refresh()

            self.follower.drop(release)

            if any(followed is release for followed in self.follower.releases):
                raise
            raise ReleaseMoved(f"release {release.id} is gone") from None

    @abstractmethod
    async def _read_all(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* in calls of the store's size."""

    async def _read_part(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read one of several batches; its failure becomes the result of each of its keys.

        ReleaseNotFound is raised at once, to leave time for the next release.
        """
        try:
            return await self._read_batch(release, keys, deadline)
        except ReleaseNotFound:
            raise
        except StoreError as error:
            return [error] * len(keys)

    async def _read_batch(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read *keys* by one call of the store, which is counted and timed; return a decoded result per key.

        Raises ReleaseNotFound, and another StoreError if the call fails. Errors of single keys are results.
        """
        started = perf_counter()
        outcome = "error"
        try:
            results = await self._call(release, keys, deadline)
            self._check_number(results, keys)
            outcome = "ok"
        except ReleaseNotFound:
            outcome = "gone"
            raise
        except Exception as error:
            if not self.damage_raises_anything and not isinstance(error, StoreError):
                raise StoreDefect(f"{self.name} failed with {type(error).__name__}; the log says where") from error
            raise self._result_of_error(release, error) from error.__cause__
        finally:
            self._observe_call(outcome, perf_counter() - started, release)

        return self._decode_results(release, keys, results)

    def _check_number(self, results: Sequence[ReadResult], keys: Sequence[str]) -> None:
        """Raise StoreDefect unless the store has returned a result per key."""
        if len(results) != len(keys):
            raise StoreDefect(f"{self.name} returned {len(results)} results for {len(keys)} keys")

    @abstractmethod
    def _call(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> Awaitable[list[ReadResult]]:
        """Return the call of the store for *keys*, to be awaited."""

    def _observe_call(self, outcome: str, took_s: float, release: ServedRelease) -> None:
        """Count a call of the store for several keys; *outcome* is one of OUTCOMES."""
        self._observe_read(self.metrics.store[self.name, "get_many", outcome], took_s, release)

    def _observe_read(self, cell: int, took_s: float, release: ServedRelease) -> None:
        """Count a read in the histogram that begins at *cell*; during a canary also by role, for its judgement."""
        self.metrics.observe(cell, took_s)
        role = self.follower.role_of(release)
        if role is not None:
            self.metrics.observe(self.metrics.canary_reads[self.name, role], took_s)

    def _decode_results(
        self, release: ServedRelease, keys: Sequence[str], results: Sequence[ReadResult]
    ) -> list[ReadResult]:
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
        release.tally.damaged += 1  # for the probation of the release

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
        outcome_name = LOOKUP_OUTCOMES[outcome]
        self.metrics.count_lookup(source, outcome_name, lists)
        role = self.follower.role_of(release) if kind == USER else None
        if role is not None:
            self.metrics.count_in(CANARY_LOOKUPS, self.name, role, outcome_name, number=lists)


def _judge(comparisons: TierComparisons, metrics: Metrics, canary: Release | None) -> str | None:
    """Return how a canary is worse than the live release, by the counts in this process; None if it is not."""
    return comparisons.judge_canary(canary, canary_counts(comparisons.tier, metrics), loop_time())


class Origin(msgspec.Struct, frozen=True, eq=False):
    """The tier and the release that a row was read from."""

    tier: Tier
    release: ServedRelease


def batches_of(keys: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield *keys* in parts of a size."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def unless_all_failed(results: list[ReadResult]) -> list[ReadResult]:
    """Return *results*; raises the first error if each is one."""
    if isinstance(results[0], StoreError) and all(isinstance(result, StoreError) for result in results):
        raise results[0]
    return results


def _damage_of(release: ReleaseId) -> str:
    """Return a sentence without the error, whose key may identify a user."""
    return f"release {release} is damaged in this store; `hotplate releases verify` names rows; {HEAL}"
