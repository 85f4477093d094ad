"""The comparisons of a tier: of a canary with the live release, and of the live release with the one before.

The admin process judges them for all workers, and keeps them in shared memory: workers stop canaries and count by them,
metrics and the console show them, and its successor continues them.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

import msgspec

from hotplate.base.timing import HOUR_S, loop_time
from hotplate.serve.metrics import Metrics
from hotplate.serve.releases.counts import BothCounts, ReleaseCounts, counts_by_role
from hotplate.serve.releases.judgement import find_regression
from hotplate.serve.shared_memory import Records
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


def identity(entry: Release | None) -> Release | None:
    """Return what identifies a compared release: its entry in the catalogue, without the gates it failed.

    These may be too many for a record of shared memory. Aborting a canary changes its `superseded_at`.
    """
    return None if entry is None else replace(entry, refused_by=())


class CanaryComparison(msgspec.Struct):
    """The comparison of a canary with the live release, by counts of both over all workers."""

    release: Release
    """The canary, by its `identity`."""

    began_with: BothCounts
    window_began_with: BothCounts
    window_ends_at: float
    window: int = 1
    counts: BothCounts = BothCounts()
    """Since the start."""

    finding: str | None = None
    """How the canary is worse than the live release."""

    def judge(self, counts: BothCounts, now: float) -> None:
        """Judge the canary by the counts of this window; a finding stays.

        Window number n needs n (n + 1) times the evidence, so that all together err in one of 1,000 releases.
        """
        self.counts = counts.since(self.began_with)
        reference, judged = counts.since(self.window_began_with)
        finding = find_regression(reference, judged, factor=self.window * (self.window + 1))
        self.finding = self.finding or finding
        if now >= self.window_ends_at:
            self.window += 1
            self.window_began_with = counts
            self.window_ends_at = now + WINDOW_S


class Stage(Enum):
    """What became of a release on probation.

    JUDGED         it is judged by what it answers
    BLOCKED        it is worse, and could not be withdrawn; that is tried again
    WITHDRAWN      it was worse, and the release before is live again
    PASSED         its probation is over
    NOT_WITHDRAWN  its probation is over, and it was worse to the end
    """

    JUDGED = "judged"
    BLOCKED = "blocked"
    WITHDRAWN = "withdrawn"
    PASSED = "passed"
    NOT_WITHDRAWN = "not withdrawn"


# The stages in which a release is judged, each with the one that follows if the time is over.
LAST_STAGES = {Stage.JUDGED: Stage.PASSED, Stage.BLOCKED: Stage.NOT_WITHDRAWN}


class Probation(msgspec.Struct):
    """The comparison of a live release with the last hour of the one before."""

    release: ReleaseRef
    before: ReleaseRef
    """To return to."""

    expected: ReleaseCounts
    """By the counts of the release before, in its last hour."""

    began_with: ReleaseCounts
    began_at: float
    counts: ReleaseCounts = ReleaseCounts()
    """Since the start."""

    stage: Stage = Stage.JUDGED
    retry_at: float = 0.0
    """When a withdrawal that failed is tried again."""

    def judge(self, counts: ReleaseCounts) -> str | None:
        """Return how the release is worse than expected; None if it is not. *counts* are those of live releases."""
        self.counts = counts.since(self.began_with)
        return find_regression(self.expected, self.counts, baseline="expected from the release before")


class Sample(msgspec.Struct, frozen=True):
    """Counts of live releases over all workers at a time of the monotonic clock."""

    at: float
    counts: ReleaseCounts


class TierComparisons(msgspec.Struct):
    """The comparisons of one tier."""

    tier: str
    canary: CanaryComparison | None = None
    """Of the canary with the live release, if there is one."""

    live: ReleaseRef | None = None
    """The live release, once a worker serves it."""

    probation: Probation | None = None
    """Of the live release, unless no release was live before it, or an operator activated it again."""

    history: list[Sample] = msgspec.field(default_factory=list[Sample])
    """In the last hour, the oldest first; not empty once a release is live."""

    withdrawn_incarnations: list[str] = msgspec.field(default_factory=list[str])
    """Of releases that were withdrawn or rolled back, also before this service started; the newest last."""

    withdrawn: int = 0
    """Releases that this service has withdrawn."""

    @property
    def running(self) -> Probation | None:
        """The probation of the live release, until it is over."""
        return self.probation if self.probation is not None and self.probation.stage in LAST_STAGES else None

    @property
    def is_withdrawal_blocked(self) -> bool:
        """Whether the live release is worse than the one before, and could not be withdrawn."""
        return self.probation is not None and self.probation.stage in (Stage.BLOCKED, Stage.NOT_WITHDRAWN)

    def judge_canary(self, canary: Release | None, counts: BothCounts, now: float) -> None:
        """Judge a canary by its `identity`, None without one; a finding stays until there is another canary."""
        if canary is None:
            self.canary = None
            return
        if self.canary is None or self.canary.release != canary:
            self.canary = CanaryComparison(canary, counts, window_began_with=counts, window_ends_at=now + WINDOW_S)
        self.canary.judge(counts, now)

    def finding(self, canary: Release | None) -> str | None:
        """Return why a canary, by its `identity`, is not to be used any more, if so."""
        comparison = self.canary
        return None if comparison is None or comparison.release != canary else comparison.finding

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

        target = rollback_target(catalogue)
        was_withdrawn = live.incarnation in self.withdrawn_incarnations
        self.probation = None
        if target is not None and target.ref == self.live and not was_withdrawn:
            counts_an_hour_ago = self.history[0].counts  # the oldest sample
            expected = expected_of(counts.since(counts_an_hour_ago))
            self.probation = Probation(live, target.ref, expected, began_with=counts, began_at=now)
        self.live = live
        self.history = [Sample(now, counts)]

    def add_counts(self, counts: ReleaseCounts, now: float) -> None:
        """Note the counts of live releases; the history has a sample of them per SAMPLE_S seconds of the last hour."""
        if now >= self.history[-1].at + SAMPLE_S:
            recent = [sample for sample in self.history if sample.at >= now - HOUR_S]
            self.history = [*recent, Sample(now, counts)]


def expected_of(before: ReleaseCounts) -> ReleaseCounts:
    """Return what is expected of a release by the counts of the one before: that loses no list but naturally."""
    lost = before.hit * NATURAL_LOSS
    return before._replace(hit=before.hit - lost, miss=lost)


class SharedComparisons:
    """The comparisons of all tiers in shared memory: one record, which the admin process writes."""

    def __init__(self, tiers: int) -> None:
        """Created before the processes, for the number of tiers."""
        self._records = Records("comparisons", COMPARISONS_BYTES * tiers)

    def all(self) -> list[TierComparisons]:
        """Return the comparisons of all tiers; none before the first were written."""
        payload = self._records.read(0)
        if payload is None:
            return []
        return msgspec.msgpack.decode(payload, type=list[TierComparisons])

    def of(self, tier: str) -> TierComparisons:
        """Return the comparisons of a tier, new ones before the first were written."""
        return next((comparisons for comparisons in self.all() if comparisons.tier == tier), TierComparisons(tier))

    def keep(self, comparisons: Sequence[TierComparisons]) -> None:
        """Write the comparisons of all tiers."""
        self._records.write(0, msgspec.msgpack.encode(comparisons))

    def finding(self, tier: str, canary: Release | None) -> str | None:
        """Return why the canary of a tier is not to be used any more, if so; *canary* is its `identity`."""
        return self.of(tier).finding(canary)


class OwnComparisons:
    """The comparisons of a process that judges alone, by what it counts itself."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tiers = dict[str, TierComparisons]()

    def finding(self, tier: str, canary: Release | None) -> str | None:
        """Judge the canary of a tier; returns as `SharedComparisons.finding`."""
        comparisons = self._tiers.setdefault(tier, TierComparisons(tier))
        comparisons.judge_canary(canary, counts_by_role(tier, self._metrics), loop_time())
        return comparisons.finding(canary)
