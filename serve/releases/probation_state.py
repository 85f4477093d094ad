"""The probation of a tier's live release: its states, and the events that change them.

The admin process keeps it in shared memory, for its successor and for workers, which count what is compared.
"""

from enum import Enum

import msgspec

from hotplate.serve.releases.canary import ReleaseCounts
from hotplate.stores.catalogue import ReleaseRef

# A record of a tier with its history.
PROBATION_BYTES = 32_768


class Sample(msgspec.Struct, frozen=True):
    """Counts of a release over all workers at a time of the monotonic clock."""

    at: float
    counts: ReleaseCounts


class ProbationState(Enum):
    """State of the live release of a tier."""

    UNKNOWN = "no live release was seen yet"
    ON_PROBATION = "it is compared with the release before, and withdrawn if it is worse"
    BLOCKED = "it is worse, and could not be withdrawn; that is tried again"
    KEPT = "it was worse at the end of its probation, and could not be withdrawn"
    SETTLED = "it is not on probation, or no longer"


class ProbationEvent(Enum):
    """Events that change the state."""

    BEGAN = "another release went live, and is compared with the one before"
    EXEMPTED = "another release went live that is not to be compared"
    FINE = "the release is not worse now"
    FAILED = "the release is worse, and its withdrawal failed"
    WITHDRAWN = "the release is worse, and was withdrawn"
    ENDED = "the time of the probation is over"


# The next state, by event and current state.
TRANSITIONS = {
    ProbationEvent.BEGAN: dict.fromkeys(ProbationState, ProbationState.ON_PROBATION),
    ProbationEvent.EXEMPTED: dict.fromkeys(ProbationState, ProbationState.SETTLED),
    ProbationEvent.FINE: {
        ProbationState.ON_PROBATION: ProbationState.ON_PROBATION,
        ProbationState.BLOCKED: ProbationState.ON_PROBATION,
    },
    ProbationEvent.FAILED: {
        ProbationState.ON_PROBATION: ProbationState.BLOCKED,
        ProbationState.BLOCKED: ProbationState.BLOCKED,
    },
    ProbationEvent.WITHDRAWN: {
        ProbationState.ON_PROBATION: ProbationState.SETTLED,
        ProbationState.BLOCKED: ProbationState.SETTLED,
    },
    ProbationEvent.ENDED: {
        ProbationState.ON_PROBATION: ProbationState.SETTLED,
        ProbationState.BLOCKED: ProbationState.KEPT,
        ProbationState.SETTLED: ProbationState.SETTLED,
    },
}
# In these states the live release is compared with the one before.
JUDGED = {ProbationState.ON_PROBATION, ProbationState.BLOCKED}
# In these it is worse, and was not withdrawn.
WORSE = {ProbationState.BLOCKED, ProbationState.KEPT}


class TierProbation(msgspec.Struct):
    """The live release of a tier, on probation or not."""

    tier: str
    state: ProbationState = ProbationState.UNKNOWN
    live: ReleaseRef | None = None
    compared_with: ReleaseRef | None = None
    """The release that was live before *live*, if that is or was on probation."""

    began: float = 0.0
    expected: ReleaseCounts = ReleaseCounts()
    """Counts of the release before, in its last hour."""

    history: list[Sample] = msgspec.field(default_factory=list[Sample])
    """Of the live release, in the last hour, the oldest first; not empty once a release is live."""

    withdrawn_incarnations: list[str] = msgspec.field(default_factory=list[str])
    """Of releases that were withdrawn or rolled back, also before this service started; the newest last."""

    withdrawn: int = 0
    """Releases that this service has withdrawn."""

    failure: str = ""
    """Why the last withdrawal of the live release failed."""

    def record(self, event: ProbationEvent) -> None:
        """Move to the state that *event* leads to."""
        self.state = TRANSITIONS[event][self.state]

    @property
    def before(self) -> ReleaseRef | None:
        """The release to return to; None if the live one is not on probation."""
        return self.compared_with if self.state in JUDGED else None

    @property
    def blocked(self) -> str:
        """Why the live release, which is worse, is not withdrawn; empty otherwise."""
        return self.failure if self.state in WORSE else ""

    def before_of(self, release: ReleaseRef) -> ReleaseRef | None:
        """Return the release to compare *release* with; None if that is not on probation."""
        return self.before if self.live == release else None
