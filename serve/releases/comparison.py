"""The comparisons of a tier: of a canary with the live release, and of the live release with the one before.

The admin process judges them for all workers, and keeps them in shared memory: workers stop canaries and count by them,
metrics and the console show them, and its successor continues them.
"""

from collections.abc import Sequence

import msgspec

from hotplate.base.timing import HOUR_S, loop_time
from hotplate.serve.metrics import Metrics
from hotplate.serve.processes.shared_table import Records
from hotplate.serve.releases.counts import BothCounts, ReleaseCounts, canary_counts
from hotplate.serve.releases.judgement import find_regression
from hotplate.stores.catalogue import Catalogue, Release, ReleaseRef, State
from hotplate.stores.transitions import rollback_target

# The counts of a canary restart after this time, so a good hour hides no bad minute.
WINDOW_S = 60.0
# The release before is judged by its last hour, sampled each minute.
SAMPLE_S = 60.0
# The share of the lists that a good release may lose: those of users whose last event has become too old.
NATURAL_LOSS = 0.0005
# Withdrawn releases that are remembered: activated again by an operator, they are not on probation.
REMEMBERED = 8

# Of the comparisons of a tier.
COMPARISONS_BYTES = 40_960


class CanaryTrial(msgspec.Struct):
    """The comparison of a canary with the live release, by counts of both over all workers."""

    canary: Release
    """Its `identity`."""

    began_with: BothCounts
    window_began_with: BothCounts
    window_ends_at: float
    window: int = 1
    counts: BothCounts = BothCounts()
    """Since the start."""

    finding: str | None = None
    """How it was worse than the live release."""

    def judge(self, counts: BothCounts, now: float) -> None:
        """Set the finding if the canary is worse.

        Window n needs n (n + 1) times the evidence, so that all windows together err in one of 1,000 canaries.
        """
        self.counts = counts.since(self.began_with)
        if self.finding is not None:
            return
        live, canary = counts.since(self.window_began_with)
        self.finding = find_regression(live, canary, factor=self.window * (self.window + 1))
        if now >= self.window_ends_at:
            self.window += 1
            self.window_began_with = counts
            self.window_ends_at = now + WINDOW_S


class Sample(msgspec.Struct, frozen=True):
    """Counts of live releases over all workers at a time of the monotonic clock."""

    at: float
    counts: ReleaseCounts


class TierComparisons(msgspec.Struct):
    """The comparisons of one tier."""

    tier: str
    trial: CanaryTrial | None = None
    """Of the canary, if there is one."""

    live: ReleaseRef | None = None
    before: ReleaseRef | None = None
    """The release that *live* is compared with, and to return to; None if that is not on probation, or no longer."""

    failure: str = ""
    """Why the live release, which is worse, was not withdrawn; empty if it is not worse."""

    began_at: float = 0.0
    began_with: ReleaseCounts = ReleaseCounts()
    counted: ReleaseCounts = ReleaseCounts()
    """Counts of live releases when this was last judged."""

    retry_at: float = 0.0
    """When a withdrawal that failed is tried again."""

    expected: ReleaseCounts = ReleaseCounts()
    """Counts of the release before, in its last hour."""

    history: list[Sample] = msgspec.field(default_factory=list[Sample])
    """In the last hour, the oldest first; not empty once a release is live."""

    withdrawn_incarnations: list[str] = msgspec.field(default_factory=list[str])
    """Of releases that were withdrawn or rolled back, also before this service started; the newest last."""

    withdrawn: int = 0
    """Releases that this service has withdrawn."""

    @property
    def canary(self) -> Release | None:
        """The `identity` of the canary."""
        return None if self.trial is None else self.trial.canary

    def judge_canary(self, canary: Release | None, counts: BothCounts, now: float) -> str | None:
        """Return how a canary is or was worse than the live release; None if it is not, and without a canary."""
        if canary is None:
            self.trial = None
            return None
        trial = self.trial
        if trial is None or trial.canary != canary:
            trial = CanaryTrial(
                canary,
                began_with=counts,
                window_began_with=counts,
                window_ends_at=now + WINDOW_S,
            )
            self.trial = trial
        trial.judge(counts, now)
        return trial.finding

    def before_of(self, release: ReleaseRef) -> ReleaseRef | None:
        """Return the release to compare *release* with; None if that is not on probation."""
        return self.before if self.live == release else None

    def begin_release(self, live: ReleaseRef, catalogue: Catalogue, counts: ReleaseCounts, now: float) -> None:
        """Begin with *live*, a release that a worker has begun to serve since this was last judged.

        *counts* are those of live releases so far.
        It is on probation if a rollback would return to the release that was live before it here, whose counts of the
        last hour it is compared with. A release that was withdrawn earlier, and then activated again by an operator, is
        not.
        """
        # An incarnation is the unique name of one write of a release: another one is drawn if it is published again.
        withdrawn = [entry.incarnation for entry in catalogue.releases if entry.state is State.WITHDRAWN]
        others = [incarnation for incarnation in self.withdrawn_incarnations if incarnation not in withdrawn]
        self.withdrawn_incarnations = [*others, *withdrawn][-REMEMBERED:]

        self.counted = counts
        previous = self.live
        target = rollback_target(catalogue)
        self.before = None
        was_withdrawn = live.incarnation in self.withdrawn_incarnations
        if target is not None and target.ref == previous and not was_withdrawn:
            self.before = previous
            counts_an_hour_ago = self.history[0].counts  # the oldest sample
            self.expected = expected_of(self.counted.since(counts_an_hour_ago))
        self.live = live
        self.failure = ""
        self.began_at = now
        self.began_with = self.counted
        self.retry_at = 0.0
        self.history = [Sample(now, self.counted)]

    def add_counts(self, counts: ReleaseCounts, now: float) -> None:
        """Note the counts of live releases; the history has a sample of them per SAMPLE_S seconds of the last hour."""
        self.counted = counts
        if now >= self.history[-1].at + SAMPLE_S:
            recent = [sample for sample in self.history if sample.at >= now - HOUR_S]
            self.history = [*recent, Sample(now, counts)]


def expected_of(before: ReleaseCounts) -> ReleaseCounts:
    """Return what is expected of a release by the counts of the one before: that loses no list but naturally."""
    lost = before.hit * NATURAL_LOSS
    return before._replace(hit=before.hit - lost, miss=lost)


class SharedComparisons:
    """The comparisons of all tiers in shared memory: one record, which the admin process writes."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def all(self) -> list[TierComparisons]:
        """Return the comparisons of all tiers; none before the first were written."""
        payload = self._records.read(0)
        if payload is None:
            return []
        return msgspec.msgpack.decode(payload, type=list[TierComparisons])

    def keep(self, comparisons: Sequence[TierComparisons]) -> None:
        """Write the comparisons of all tiers."""
        self._records.write(0, msgspec.msgpack.encode(comparisons))

    def trials(self) -> dict[str, CanaryTrial]:
        """Return the trials of canaries, by tier."""
        return {comparisons.tier: comparisons.trial for comparisons in self.all() if comparisons.trial is not None}

    def finding(self, tier: str, canary: Release | None) -> str | None:
        """Return why the canary of a tier is not to be used any more, if so; *canary* is its `identity`."""
        trial = self.trials().get(tier)
        if trial is None or trial.canary != canary:
            return None
        return trial.finding


class OwnComparisons:
    """The comparisons of a process that judges alone, by what it counts itself."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tiers = dict[str, TierComparisons]()

    def finding(self, tier: str, canary: Release | None) -> str | None:
        """Judge the canary of a tier; returns as `SharedComparisons.finding`."""
        comparisons = self._tiers.setdefault(tier, TierComparisons(tier))
        now = loop_time()
        return comparisons.judge_canary(canary, canary_counts(tier, self._metrics), now)
