"""A canary beside the live release of a tier.

A hash of id and salt selects a canary's users: all processes agree, and the first 5 % stay when the share grows. The
canary is judged by errors, fallbacks and slow reads of the last minute.
"""

from itertools import accumulate
from operator import sub
from typing import NamedTuple

from hotplate.serve.metrics import BUCKETS_S
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.catalogue import Canary, UserShare
from hotplate.stores.encoding import USER, RowKey

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


class _Comparison(NamedTuple):
    """A bad outcome of the canary and of the live release."""

    outcome: str
    of_canary: float
    of_live: float
    canary_total: float
    live_total: float
    allowed: float
    """Difference of the shares, on top of chance."""

    @property
    def is_worse(self) -> bool:
        if self.canary_total < MIN_LOOKUPS or not self.live_total:
            return False
        pooled = (self.of_canary + self.of_live) / (self.canary_total + self.live_total)
        deviation: float = (pooled * (1 - pooled) * (1 / self.canary_total + 1 / self.live_total)) ** 0.5
        difference = self.of_canary / self.canary_total - self.of_live / self.live_total
        return difference > self.allowed + DEVIATIONS * deviation

    @property
    def sentence(self) -> str:
        return (
            f"{self.of_canary / self.canary_total:.1%} of its {self.canary_total:,.0f} {self.outcome}, and "
            f"{self.of_live / self.live_total:.1%} of the live release's"
        )


def find_regression(live: ReleaseCounts, canary: ReleaseCounts) -> str | None:
    """Return how the canary is worse, beyond bound and chance, or None."""
    slow_from = _slow_from(live.reads)
    comparisons = (
        _Comparison(
            "lookups could not be read", canary.error, live.error, canary.lookups, live.lookups, allowed=MORE_ERRORS
        ),
        _Comparison(
            "lookups got the popular list",
            canary.miss + canary.error,
            live.miss + live.error,
            canary.lookups,
            live.lookups,
            allowed=MORE_FALLBACKS,
        ),
        _Comparison(
            f"reads took more than {BUCKETS_S[slow_from - 1] * 1000:g} ms",
            sum(canary.reads[slow_from:]),
            sum(live.reads[slow_from:]),
            sum(canary.reads),
            sum(live.reads),
            allowed=MORE_SLOW,
        ),
    )
    return next((comparison.sentence for comparison in comparisons if comparison.is_worse), None)


def _slow_from(reads: tuple[float, ...]) -> int:
    total = sum(reads)
    usual_bucket = next((n for n, below in enumerate(accumulate(reads)) if below >= USUAL * total), 0)
    usual_s = BUCKETS_S[min(usual_bucket, len(BUCKETS_S) - 1)]
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
        self._window_ends = now + WINDOW_S
        self._before = counts

    def includes(self, row: RowKey) -> bool:
        """Return whether a row is of a canary's user."""
        return row.kind == USER and self._share.includes(row.id)

    def judge(self, now: float, counts: BothCounts) -> str | None:
        """Return how the canary was worse in this window, or None."""
        finding = find_regression(*counts.since(self._before))
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_S
            self._before = counts
        return finding
