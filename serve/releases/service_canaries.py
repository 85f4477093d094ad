"""Judges the canaries of a service in its admin process, once for all workers."""

from collections.abc import Mapping, Sequence

from hotplate.serve.releases.canary_judge import CanaryJudge, CanaryVerdict, SharedVerdicts
from hotplate.serve.states import SharedStates, TierState
from hotplate.serve.tasks import repeat

# Interval of judging.
JUDGE_S = 1.0


class ServiceCanaries:
    """Judges the canaries of all tiers that workers report, once for the whole service."""

    def __init__(self, judges: Mapping[str, CanaryJudge], verdicts: SharedVerdicts, states: SharedStates) -> None:
        """*judges* are by tier; *verdicts* may have those of an earlier process."""
        self._judges = judges
        self._verdicts = verdicts
        self._states = states
        for verdict in verdicts.all():
            judges[verdict.tier].resume(verdict.canary, verdict.reason)

    async def run(self) -> None:
        """Judge until cancelled."""
        await repeat(self.look, JUDGE_S, "judging the canaries")

    async def look(self) -> None:
        """Judge once."""
        for tier, judge in self._judges.items():
            # Workers without a live release have not followed a catalogue yet.
            reported = [own for own in self._states.of_tier(tier) if own.release is not None]
            if reported:
                _judge_reported(judge, reported)

        self._verdicts.keep(
            [
                CanaryVerdict(tier, judge.canary, judge.finding)
                for tier, judge in self._judges.items()
                if judge.canary is not None and judge.finding is not None
            ]
        )


def _judge_reported(judge: CanaryJudge, reported: Sequence[TierState]) -> None:
    """Judge the canary that workers follow in a tier: the last one until none of them does, then another."""
    followed = [own.followed_canary for own in reported if own.followed_canary is not None]
    canary = next(iter(followed), None)
    if judge.canary in followed:
        canary = judge.canary
    began_with = [own.canary_began_with for own in reported if own.followed_canary == canary]
    starts = [counts for counts in began_with if counts is not None]
    judge.judge(canary, min(starts, key=lambda counts: counts.canary.lookups, default=None))
