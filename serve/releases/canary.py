"""A canary beside the live release of a tier, and the judgement of a canary and of a release on probation.

A hash of id and salt selects a canary's users: all processes agree, and the first 5 % stay when the share grows. The
canary is judged by errors, fallbacks and slow reads of the current window of a minute, a release on probation by those
since it went live (`probation`).

Both are judged every second, so the evidence must not grow by looking often. It is a likelihood ratio: how much better
the counts are explained by a share that is worse, by the bound or more, than by the share of the live release, averaged
over the shares that the live counts leave possible (Jeffreys' prior). While both are alike, this ratio is a martingale,
and exceeds N at any of its looks in at most one of N cases (Ville's inequality).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate
from math import exp, log, log1p
from operator import add, sub
from typing import NamedTuple

from hotplate.serve.metrics import BUCKETS_S
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.catalogue import Canary, Release, ReleaseId, UserShare
from hotplate.stores.encoding import USER, RowKey

# Minimum of lookups or reads for a judgement.
MIN_LOOKUPS = 100
# Bounds: shares of what the live release answers well.
MORE_FALLBACKS = 0.05
MORE_ERRORS = 0.01
MORE_SLOW = 0.05
# The share of good releases that each comparison may call worse: together one in 1,000.
ERRS_BY_FALLBACKS = 0.0008
ERRS_BY_ERRORS = 0.0001
ERRS_BY_SLOW = 0.0001
# Alternatives, as multiples of the bound, and their prior probabilities.
ALTERNATIVES = ((1, 0.9), (4, 0.08), (16, 0.02))
# A share this many standard deviations below the bound is within it.
WITHIN = 2.5
# Nodes of the integral over the share of the live release, in standard deviations of its logit.
_NODES = tuple(number / 4 for number in range(-32, 33))
# Slow reads take over SLOW_S and twice this quantile of the live release.
USUAL = 0.95
SLOW_S = 0.01

NO_READS = (0.0,) * (len(BUCKETS_S) + 1)


class ReleaseCounts(NamedTuple):
    """Lookups by outcome, reads by bucket, lists shown, and clicks."""

    hit: float = 0
    miss: float = 0
    error: float = 0
    reads: tuple[float, ...] = NO_READS
    shown: float = 0
    clicks: float = 0

    @property
    def lookups(self) -> float:
        """All lookups."""
        return self.hit + self.miss + self.error

    def plus(self, other: "ReleaseCounts") -> "ReleaseCounts":
        """Return the sum of both."""
        hit, miss, error = map(add, self[:3], other[:3])
        reads = tuple(map(add, self.reads, other.reads))
        return ReleaseCounts(hit, miss, error, reads, self.shown + other.shown, self.clicks + other.clicks)

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


class _Tally(NamedTuple):
    """How many of all lookups or reads of a release had a bad outcome."""

    bad: float
    total: float

    @property
    def share(self) -> float:
        return self.bad / self.total


class _Comparison(NamedTuple):
    """One bad outcome of the judged release and of the reference, and the rule that says when it is worse."""

    outcome: str
    """In the plural and the past, as `lookups could not be read`."""

    judged: _Tally
    reference: _Tally
    bound: float
    """The smallest share to detect of what the reference answers well."""

    errs: float
    """The share of good releases that may be called worse."""

    def is_worse(self, factor: float) -> bool:
        """Return whether the judged release has more bad outcomes than the reference, and not by chance.

        Two conditions must hold. The difference of the shares of bad outcomes is at least the bound, or not more than
        WITHIN standard deviations below it. And the likelihood ratio of `evidence` exceeds *factor* / `self.errs`,
        where `errs` is the share of good releases that may be called worse.
        """
        if self.judged.total < MIN_LOOKUPS or not self.reference.total:
            return False

        loss = self.judged.share - self.reference.share
        bound = self.bound * (1 - self.reference.share)  # a share of what the reference answers well
        deviation: float = (self.bound * (1 - self.bound) / self.judged.total) ** 0.5
        if loss <= 0 or loss < bound - WITHIN * deviation:
            return False

        needed_evidence = log(factor / self.errs)
        return self.evidence > needed_evidence

    @property
    def evidence(self) -> float:
        """The logarithm of the likelihood that the judged release is worse, divided by the one that it is alike.

        If p is the share of bad outcomes of the reference, an alike release has the share p, and a worse one
        p + loss (1 - p). The loss is a multiple of the bound; ALTERNATIVES has the multiples and their probabilities.

        As p is known only by the outcomes of the reference, both likelihoods are averages over p, weighted by how well
        it explains these. The integral over p is a sum over _NODES of its logit, log(p / (1 - p)), at equal distances:
        they are in standard deviations from the estimate. Half an outcome is added to each kind (Jeffreys' prior).
        """
        bad = self.judged.bad
        good = self.judged.total - bad
        reference_bad = self.reference.bad + 0.5
        reference_good = self.reference.total - self.reference.bad + 0.5

        # The estimate of the logit, and its standard deviation.
        center = log(reference_bad / reference_good)
        deviation: float = (1 / reference_bad + 1 / reference_good) ** 0.5

        # Logarithms of the terms of both sums.
        alike = list[float]()
        worse = list[float]()
        for node in _NODES:
            logit = center + node * deviation
            # The logarithms of p and 1 - p: `exp` does not overflow for either sign.
            log_bad = -log1p(exp(-logit)) if logit > 0 else logit - log1p(exp(logit))
            log_good = log_bad - logit

            # How well this p explains the outcomes of the reference; then, times that, those of the judged release.
            log_weight = reference_bad * log_bad + reference_good * log_good
            alike.append(log_weight + bad * log_bad + good * log_good)

            for multiple, probability in ALTERNATIVES:
                loss = multiple * self.bound
                log_worse_bad = log(loss + (1 - loss) * exp(log_bad))
                log_worse_good = log1p(-loss) + log_good
                worse.append(log(probability) + log_weight + bad * log_worse_bad + good * log_worse_good)

        return _log_sum(worse) - _log_sum(alike)

    def sentence(self, baseline: str) -> str:
        """Return the comparison in words; *baseline* says whose share the second one is."""
        judged = f"{_percent(self.judged.share)} of its {self.judged.total:,.0f} {self.outcome}"
        return f"{judged}, compared with {_percent(self.reference.share)} {baseline}"


def _percent(share: float) -> str:
    return "less than 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _log_sum(logarithms: Sequence[float]) -> float:
    largest = max(logarithms)
    return largest + log(sum(exp(logarithm - largest) for logarithm in logarithms))


def find_regression(
    reference: ReleaseCounts, judged: ReleaseCounts, *, factor: float = 1.0, baseline: str = "in the live release"
) -> str | None:
    """Return a sentence on how a release is worse than the reference, by a bound and not by chance; None if it is not.

    *reference* and *judged* are the counts of both releases: of lookups by outcome, and of reads by their time. Called
    any number of times while the counts grow, this calls at most one of 1,000 good releases worse, or one of
    1,000 times *factor*, which multiplies the required evidence. *baseline* names the reference in the sentence.
    """
    slow_from = _slow_from(reference.reads)  # the first bucket of reads that count as slow

    # A bad outcome, how often each release had it, the smallest difference to detect, and the rate of false alarms.
    comparisons = (
        _Comparison(
            "lookups could not be read",
            _Tally(judged.error, judged.lookups),
            _Tally(reference.error, reference.lookups),
            bound=MORE_ERRORS,
            errs=ERRS_BY_ERRORS,
        ),
        _Comparison(
            "lookups got the popular list",
            _Tally(judged.miss + judged.error, judged.lookups),
            _Tally(reference.miss + reference.error, reference.lookups),
            bound=MORE_FALLBACKS,
            errs=ERRS_BY_FALLBACKS,
        ),
        _Comparison(
            f"reads took more than {BUCKETS_S[slow_from - 1] * 1000:g} ms",
            _Tally(sum(judged.reads[slow_from:]), sum(judged.reads)),
            _Tally(sum(reference.reads[slow_from:]), sum(reference.reads)),
            bound=MORE_SLOW,
            errs=ERRS_BY_SLOW,
        ),
    )

    for comparison in comparisons:
        if comparison.is_worse(factor):
            return comparison.sentence(baseline)
    return None


def slow_s(reads: tuple[float, ...]) -> float:
    """Return the time from which on a read is slow, by those of the live release."""
    return BUCKETS_S[_slow_from(reads) - 1]


def _slow_from(reads: tuple[float, ...]) -> int:
    """Return the first bucket with only slow reads: those over SLOW_S seconds, and over twice the 95th percentile.

    *reads* is a histogram: the number of reads in each bucket of their time. BUCKETS_S are the upper bounds of the
    buckets, in seconds, and a last bucket has all slower reads. The result is an index of *reads*.
    """
    total = sum(reads)
    percentile_bucket = next((bucket for bucket, count in enumerate(accumulate(reads)) if count >= USUAL * total), 0)
    percentile_s = BUCKETS_S[min(percentile_bucket, len(BUCKETS_S) - 1)]

    # Reads of the bucket whose upper bound reaches this time are not all slow, so the next one is the first.
    slow_after_s = max(SLOW_S, 2 * percentile_s)
    return next((bucket + 1 for bucket, bound in enumerate(BUCKETS_S) if bound >= slow_after_s), len(BUCKETS_S))


class ServedCanary:
    """The canary of one tier at one share."""

    __slots__ = ("_share", "began_with", "record", "release")

    def __init__(self, record: Canary, release: ServedRelease, began_with: BothCounts) -> None:
        """*began_with* are the counts of all workers at its start."""
        self.record = record
        self.release = release
        self.began_with = began_with
        self._share = UserShare.of(record.percent, record.salt)

    def includes(self, row: RowKey) -> bool:
        """Return whether a row is of a canary's user."""
        return row.kind == USER and self._share.includes(row.id)


class CanaryState(Enum):
    """State of a canary in one process."""

    NONE = "the followed catalogue names no canary"
    UNLOADED = "it is not loaded, as after an error; it is to be loaded again"
    LOADED = "its users get its lists"
    GONE = "the store lacks it; it is to be loaded again"
    STOPPED = "it is worse than the live release; not used until the catalogue names another one"


@dataclass(frozen=True, slots=True)
class FollowedCanary:
    """The canary that the followed catalogue names, in one process: its state, and what is served of it."""

    state: CanaryState
    entry: Release | None = None
    """None only if there is no canary."""

    loaded: ServedCanary | None = None
    """While it is loaded."""

    reason: str = ""
    """Why it was stopped, or cannot be loaded."""

    @property
    def release(self) -> ReleaseId | None:
        """The release id; None without a canary."""
        return None if self.entry is None else self.entry.id

    @property
    def problem(self) -> str | None:
        """A sentence on why its users get the live release; None if it is loaded, or if there is no canary."""
        if self.state is CanaryState.GONE:
            return f"release {self.release} is the canary, and is not in this store any more"
        if self.state is CanaryState.STOPPED:
            return f"release {self.release} is the canary, and is not used any more: {self.reason}"
        if self.state is CanaryState.UNLOADED:
            return f"release {self.release} is the canary, and cannot be loaded: {self.reason}"
        return None

    def is_stopped(self, entry: Release) -> bool:
        """Return whether this process has stopped the release of a catalogue's entry."""
        return self.state is CanaryState.STOPPED and self.entry == entry


NO_CANARY = FollowedCanary(CanaryState.NONE)


def identity(entry: Release | None) -> Release | None:
    """Return what identifies a canary until it is aborted: its entry in the catalogue, without the gates it failed.

    These may be too many for a record of shared memory. Aborting a canary changes its `superseded_at`.
    """
    return None if entry is None else replace(entry, refused_by=())
