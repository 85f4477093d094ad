"""A canary as a process serves it: who sees it, how it does compared with the live release, and when it is worse.

A user sees the canary where the hash of the id, with the canary's salt, is below its share of all hashes: the same one
in every process and in every tier that has the same canary. Users who are among 5 % are among 50 %, too.
"""

from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from hotplate.serve.releases.release import ServedRelease
from hotplate.stores.catalogue import Canary, ReleaseId
from hotplate.stores.keys import USER

# How many lists of the canary are looked up before it is judged.
MIN_LOOKUPS = 100
# By how much more of its lists than of the live release's may be missing, or not be readable, on top of chance.
MORE_FALLBACKS, MORE_ERRORS = 0.05, 0.01
# How far a share is off by chance at most, in standard deviations: four are so once in 30,000 times.
DEVIATIONS = 4
# Over how long lookups are counted before the counts begin again, so a good hour hides no bad minute.
WINDOW_S = 60.0

_AFTER_KIND = len(USER)


class Counts(NamedTuple):
    """How many lists of users were a hit, a miss and an error."""

    hit: float = 0
    miss: float = 0
    error: float = 0


class BothCounts(NamedTuple):
    """How the lookups of users ended that saw the live release, and the canary: in all workers together."""

    live: Counts = Counts()
    canary: Counts = Counts()


NOTHING = BothCounts()


def worse(live: Counts, canary: Counts) -> str | None:
    """Say in what the canary is worse than the live release, beyond bound and chance; None if it is not."""
    n, m = sum(canary), sum(live)
    if n < MIN_LOOKUPS or not m:
        return None
    for what, of_canary, of_live, more in (
        ("could not be read", canary.error, live.error, MORE_ERRORS),
        ("got the popular list", canary.miss + canary.error, live.miss + live.error, MORE_FALLBACKS),
    ):
        pooled = (of_canary + of_live) / (n + m)
        deviation: float = (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
        if of_canary / n - of_live / m > more + DEVIATIONS * deviation:
            return f"{of_canary / n:.1%} of its {n:,.0f} lookups {what}, and {of_live / m:.1%} of the live release's"
    return None


class ServedCanary:
    """The canary of one tier at one share, loaded; lives as long as the tier serves it so."""

    __slots__ = ("_before", "_below", "_salt", "_window_ends", "record", "served")

    def __init__(self, record: Canary, served: ServedRelease, now: float, counts: BothCounts = NOTHING) -> None:
        """Take what the catalogue says of the canary, its release, the time in seconds, and what is counted by then."""
        self.record = record
        self.served = served
        self._salt = record.salt
        self._below = round(record.percent / 100 * 2**64)
        self._window_ends, self._before = now + WINDOW_S, counts

    def takes(self, key: str) -> bool:
        """Return whether a row is for somebody who sees the canary; rows of items and popular lists are for all."""
        return key.startswith(USER) and xxh3_64_intdigest((key[_AFTER_KIND:] + self._salt).encode()) < self._below

    def judge(self, now: float, counts: BothCounts) -> str | None:
        """Say in what the canary is `worse`, by what was counted in this window; None if it is not."""
        finding = worse(*(_difference(*pair) for pair in zip(counts, self._before, strict=True)))
        if now >= self._window_ends:
            self._window_ends, self._before = now + WINDOW_S, counts
        return finding


class StoppedCanary(NamedTuple):
    """A canary that a process does not use any more, because it was worse than the live release."""

    release: ReleaseId
    incarnation: str
    writer: str
    finding: str

    def __str__(self) -> str:
        return f"release {self.release} is the canary, and not used here any more: {self.finding}"


def _difference(counts: Counts, before: Counts) -> Counts:
    return Counts(*(now - then for now, then in zip(counts, before, strict=True)))
