"""Judges canaries, in the admin process of a service or the process of `hotplate.open`, and shares the verdicts."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from hotplate.serve.releases.canary import BothCounts, find_regression
from hotplate.serve.shared_table import Records
from hotplate.stores.catalogue import Release

# Counts restart after this time, so a good hour hides no bad minute.
WINDOW_S = 60.0
# Per tier: a record of a verdict.
VERDICT_BYTES = 2048

# Returns the reason to stop a canary, or None. Called with its `identity`, None without a canary: for each catalogue
# that is followed, and every second while there is a canary.
Verdict = Callable[[Release | None], str | None]


class CanaryJudge:
    """Judges the canary of one tier by the counts of all workers."""

    def __init__(self, counts: Callable[[], BothCounts]) -> None:
        self.canary: Release | None = None
        """The `identity` of the canary that is judged."""

        self.finding: str | None = None
        """How it was worse than the live release."""

        self._counts = counts
        self._before = BothCounts()
        """The counts at the start of the window."""

        self._window = 1
        self._window_ends = 0.0

    def resume(self, canary: Release, finding: str) -> None:
        """Continue with a canary that was found worse."""
        self.canary = canary
        self.finding = finding

    def judge(self, canary: Release | None, began_with: BothCounts | None = None) -> str | None:
        """Return how a canary is or was worse than the live release; None if it is not.

        *began_with* are the counts at its start, by default those at the first call for it. Window n needs n (n + 1)
        times the evidence, so that all windows together err in one of 1,000 canaries.
        """
        now = asyncio.get_running_loop().time()
        counts = self._counts()
        if canary != self.canary:
            self.canary = canary
            self.finding = None
            self._window = 0
            self._begin_window(began_with or counts, now)

        if canary is not None and self.finding is None:
            live, judged = counts.since(self._before)
            self.finding = find_regression(live, judged, factor=self._window * (self._window + 1))
            if now >= self._window_ends:
                self._begin_window(counts, now)
        return self.finding

    def _begin_window(self, counts: BothCounts, now: float) -> None:
        self._before = counts
        self._window += 1
        self._window_ends = now + WINDOW_S


class CanaryVerdict(msgspec.Struct, frozen=True):
    """Why a canary is not to be used any more."""

    tier: str
    canary: Release
    reason: str


class SharedVerdicts:
    """The verdicts on canaries, in shared memory: the admin process writes them, and other processes stop canaries."""

    def __init__(self, records: Records) -> None:
        """*records* has one row."""
        self._records = records

    def all(self) -> list[CanaryVerdict]:
        """Return the verdicts of all tiers."""
        payload = self._records.read(0)
        return [] if payload is None else msgspec.msgpack.decode(payload, type=list[CanaryVerdict])

    def keep(self, verdicts: Sequence[CanaryVerdict]) -> None:
        """Replace the verdicts."""
        self._records.write(0, msgspec.msgpack.encode(verdicts))

    def reason(self, tier: str, canary: Release | None) -> str | None:
        """Return why the canary of a tier is not to be used any more, if so."""
        found = (verdict.reason for verdict in self.all() if (verdict.tier, verdict.canary) == (tier, canary))
        return next(found, None)
