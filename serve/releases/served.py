"""Served releases, and a canary beside the live one.

A hash of id and salt selects a canary's users: all processes agree, and the first 5 % stay when the share grows. The
canary is judged by errors, fallbacks and slow reads of the last minute.
"""

from dataclasses import dataclass, field
from itertools import accumulate, count
from operator import sub
from typing import TYPE_CHECKING, NamedTuple

from hotplate.serve.filters import NO_FILTERS, ReleaseFilters
from hotplate.serve.fold_in import FoldIn
from hotplate.serve.metrics import BUCKETS_S
from hotplate.stores.catalogue import Canary, Release, ReleaseId, ReleaseRef, UserShare
from hotplate.stores.encoding import USER, Decode, RowKey
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader
from hotplate.stores.verification import read_servable

if TYPE_CHECKING:
    from hotplate.serve.item_factors import ItemFactors

# Minimum of lookups or reads for a judgement.
MIN_LOOKUPS = 100
# Allowed differences to the live release, on top of chance, as shares.
MORE_FALLBACKS = 0.05
MORE_ERRORS = 0.01
MORE_SLOW = 0.05
# Standard deviations of chance; exceeded once in 30,000 times.
DEVIATIONS = 4
# Slow reads take over SLOW_S and twice this quantile of the live release.
USUAL = 0.95
SLOW_S = 0.01
# Counts restart after this time, so a good hour hides no bad minute.
WINDOW_S = 60.0
# Standard deviations of a 95 % interval.
INTERVAL = 1.96

_NO_READS = (0.0,) * (len(BUCKETS_S) + 1)


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """An immutable release, so a request never mixes two."""

    ref: ReleaseRef
    writer: str
    """Token of its writer: after a restore, a release may be finished again with other lists."""

    manifest: Manifest
    popular: dict[str, bytes]
    """Opened bodies by key; each list has one for everybody, and none is empty."""

    decode: Decode
    damaged: tuple[str, ...] = ()
    """Keys found damaged when it was loaded."""

    factors: "ItemFactors | None" = None
    filters: ReleaseFilters = NO_FILTERS
    is_canary: bool = False
    number: int = field(default_factory=count().__next__, compare=False)
    """Differs for each load, which may have other lists."""

    lookups: list[int] = field(default_factory=lambda: [0, 0, 0], compare=False)
    by_list: dict[str, list[int]] = field(default_factory=dict, compare=False)
    """The lookups of lists that were requested by name."""

    @property
    def id(self) -> ReleaseId:
        """The release id."""
        return self.ref.id


async def load(reader: Reader, live: Release, fold_in: FoldIn | None) -> ServedRelease:
    """Load a release, and its item factors with *fold_in*; raises StoreError."""
    servable = await read_servable(reader, live.ref)
    factors = None if fold_in is None else await fold_in.load(reader, live.ref, servable.manifest)
    filters = NO_FILTERS if servable.attributes is None else ReleaseFilters(servable.attributes)
    return ServedRelease(
        ref=live.ref,
        writer=live.writer,
        manifest=servable.manifest,
        popular=servable.popular,
        decode=servable.decode,
        damaged=servable.damaged,
        factors=factors,
        filters=filters,
    )


class ReleaseCounts(NamedTuple):
    """Lookups by outcome, reads by bucket, lists shown, and clicks."""

    hit: float = 0
    miss: float = 0
    error: float = 0
    reads: tuple[float, ...] = _NO_READS
    shown: float = 0
    clicks: float = 0

    @property
    def lookups(self) -> float:
        """All lookups."""
        return self.hit + self.miss + self.error

    def since(self, before: "ReleaseCounts") -> "ReleaseCounts":
        """Return the difference to *before*."""
        hit, miss, error = map(sub, self[:3], before[:3])
        reads = tuple(map(sub, self.reads, before.reads))
        return ReleaseCounts(hit, miss, error, reads, self.shown - before.shown, self.clicks - before.clicks)


class BothCounts(NamedTuple):
    """Counts of the live release and the canary in all workers."""

    live: ReleaseCounts = ReleaseCounts()
    canary: ReleaseCounts = ReleaseCounts()

    def since(self, before: "BothCounts") -> "BothCounts":
        """Return the difference to *before*."""
        return BothCounts(self.live.since(before.live), self.canary.since(before.canary))


def click_interval(shown: float, clicks: float) -> tuple[float, float] | None:
    """Return the 95 % interval of clicks per shown list; None without data."""
    if not (shown and clicks):
        return None
    half = INTERVAL * clicks**0.5
    return max(0.0, clicks - half) / shown, (clicks + half) / shown


def find_regression(live: ReleaseCounts, canary: ReleaseCounts) -> str | None:
    """Return how the canary is worse, beyond bound and chance, or None."""
    n, m, slow_from = canary.lookups, live.lookups, _slow_from(live.reads)
    for what, of_canary, of_live, out_of, more in (
        ("lookups could not be read", canary.error, live.error, (n, m), MORE_ERRORS),
        ("lookups got the popular list", canary.miss + canary.error, live.miss + live.error, (n, m), MORE_FALLBACKS),
        (
            f"reads took more than {BUCKETS_S[slow_from - 1] * 1000:g} ms",
            sum(canary.reads[slow_from:]),
            sum(live.reads[slow_from:]),
            (sum(canary.reads), sum(live.reads)),
            MORE_SLOW,
        ),
    ):
        if _is_more(of_canary, of_live, *out_of, more):
            shares = of_canary / out_of[0], of_live / out_of[1]
            return f"{shares[0]:.1%} of its {out_of[0]:,.0f} {what}, and {shares[1]:.1%} of the live release's"
    return None


def _is_more(of_canary: float, of_live: float, n: float, m: float, more: float) -> bool:
    if n < MIN_LOOKUPS or not m:
        return False
    pooled = (of_canary + of_live) / (n + m)
    deviation: float = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
    return of_canary / n - of_live / m > more + DEVIATIONS * deviation


def _slow_from(reads: tuple[float, ...]) -> int:
    total = sum(reads)
    usual = next((n for n, below in enumerate(accumulate(reads)) if below >= USUAL * total), 0)
    usual_s = BUCKETS_S[min(usual, len(BUCKETS_S) - 1)]
    bound_s = max(SLOW_S, 2 * usual_s)
    return next((n + 1 for n, bound in enumerate(BUCKETS_S) if bound >= bound_s), len(BUCKETS_S))


class ServedCanary:
    """The canary of one tier at one share."""

    __slots__ = ("_before", "_share", "_window_ends", "began_with", "record", "served")

    def __init__(
        self,
        record: Canary,
        served: ServedRelease,
        now: float,
        counts: BothCounts = BothCounts(),  # noqa: B008 -- immutable
        began_with: BothCounts | None = None,
    ) -> None:
        """*counts* are of *now* (seconds), *began_with* of the canary's start if its share has changed."""
        self.record = record
        self.served = served
        self.began_with = began_with or counts
        self._share = UserShare.of(record.percent, record.salt)
        self._window_ends, self._before = now + WINDOW_S, counts

    def includes(self, row: RowKey) -> bool:
        """Return whether a row is of a canary's user."""
        return row.kind == USER and self._share.includes(row.id)

    def judge(self, now: float, counts: BothCounts) -> str | None:
        """Return how the canary was worse in this window, or None."""
        finding = find_regression(*counts.since(self._before))
        if now >= self._window_ends:
            self._window_ends, self._before = now + WINDOW_S, counts
        return finding
