"""A canary: who sees it in a process, and when it is worse than the live release.

A user sees the canary if the hash of the id and the canary's salt is below the canary's share of all hashes. So all
processes and tiers with the same canary choose the same users, and users among the first 5 % stay among 50 %.

Lookups are compared by the counts of the last minute. Clicks per list shown are compared from SETTLE_S on, by a
sequential test. With the stated probability its interval holds the true difference at all moments, so it may be looked
at every second (the mixture sequential probability ratio test of R. Johari, P. Koomen, L. Pekelis and D. Walsh, Always
Valid Inference, Operations Research 70 (3), 2022). The test takes clicks for independent of one another.
"""

from math import log
from operator import add
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from hotplate.serve.releases.release import ServedRelease
from hotplate.stores.catalogue import Canary, Release, ReleaseId
from hotplate.stores.keys import USER

# How many lists of the canary are looked up before it is judged.
MIN_LOOKUPS = 100
# By how much more of its lists than of the live release's may be missing, or not be readable, on top of chance.
MORE_FALLBACKS = 0.05
MORE_ERRORS = 0.01
# How far a share is off by chance at most, in standard deviations: four are so once in 30,000 times.
DEVIATIONS = 4
# Which part of its clicks per list the canary must have lost, beyond chance, and how rarely chance may look so.
LOST_CLICKS = 0.05
CLICKS_BY_CHANCE = 0.001
# A click comes later than its list: for so long after a canary began, or its share changed, it may be of an older list.
SETTLE_S = 600.0
# With so many clicks in all, and so many expected of the canary, their difference is about normal.
MIN_CLICKS = 100
MIN_EXPECTED_CLICKS = 10
# The relative difference that the sequential test finds soonest; it finds others, too.
TYPICAL_CHANGE = 0.1
# Over how long lookups are counted before the counts begin again, so a good hour hides no bad minute.
WINDOW_S = 60.0

_AFTER_KIND = len(USER)


class ReleaseCounts(NamedTuple):
    """How many lists of users were a hit, a miss and an error, how many were shown, and how many items were clicked."""

    hit: float = 0
    miss: float = 0
    error: float = 0
    shown: float = 0
    clicks: float = 0

    @property
    def lookups(self) -> float:
        """How many lists were looked up."""
        return self.hit + self.miss + self.error

    def plus(self, more: "ReleaseCounts") -> "ReleaseCounts":
        """Return both together."""
        return ReleaseCounts(*map(add, self, more))

    def since(self, before: "ReleaseCounts") -> "ReleaseCounts":
        """Return what was counted after *before*."""
        return ReleaseCounts(*(now - then for now, then in zip(self, before, strict=True)))


class BothCounts(NamedTuple):
    """What was counted of users who saw the live release, and of those who saw the canary: in all workers together."""

    live: ReleaseCounts = ReleaseCounts()
    canary: ReleaseCounts = ReleaseCounts()

    def since(self, before: "BothCounts") -> "BothCounts":
        """Return what was counted after *before*."""
        return BothCounts(self.live.since(before.live), self.canary.since(before.canary))


NOTHING = BothCounts()


class ClickRates(NamedTuple):
    """Lists shown and clicks since a canary settled, and by which part of the live one's its clicks per list differ.

    `low` and `high` are the bounds of a 95 % confidence sequence, as -0.1 for a tenth less; None while clicks are few.
    """

    live_shown: int
    live_clicks: int
    canary_shown: int
    canary_clicks: int
    low: float | None = None
    high: float | None = None


def click_change(counts: BothCounts, by_chance: float) -> tuple[float, float] | None:
    """Return by which part of the live release's the canary's clicks per list differ, at least and at most.

    The bounds hold at all times together, but with the probability *by_chance*. None while there are too few clicks.
    """
    live, canary = counts
    clicks, shown = live.clicks + canary.clicks, live.shown + canary.shown
    if not (live.shown and live.clicks) or clicks < MIN_CLICKS or clicks * canary.shown / shown < MIN_EXPECTED_CLICKS:
        return None
    rate, rate_live = clicks / shown, live.clicks / live.shown
    variance, mixing = rate * (1 / canary.shown + 1 / live.shown), (TYPICAL_CHANGE * rate) ** 2
    both = variance + mixing
    half = (variance * both / mixing * (2 * log(1 / by_chance) + log(both / variance))) ** 0.5
    change = canary.clicks / canary.shown - rate_live
    return max(-1.0, (change - half) / rate_live), (change + half) / rate_live


def fewer_clicks(counts: BothCounts) -> str | None:
    """Say by how much less is clicked in the canary's lists, beyond bound and chance; None if that is not so."""
    change = click_change(counts, CLICKS_BY_CHANCE)
    if change is None or change[1] >= -LOST_CLICKS:
        return None
    rates = (f"{one.clicks:,.0f} clicks in {one.shown:,.0f} lists" for one in (counts.canary, counts.live))
    return f"its lists have {-change[1]:.0%} to {-change[0]:.0%} fewer clicks: {', and the live release '.join(rates)}"


def find_regression(live: ReleaseCounts, canary: ReleaseCounts) -> str | None:
    """Say in which lookups the canary is worse than the live release, beyond bound and chance; None if in none."""
    n, m = canary.lookups, live.lookups
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

    __slots__ = ("_before", "_began", "_below", "_has_settled", "_salt", "_settles", "_window_ends", "record", "served")

    def __init__(self, record: Canary, served: ServedRelease, now: float, counts: BothCounts = NOTHING) -> None:
        """Take what the catalogue says of the canary, its release, the time in seconds, and what is counted by then."""
        self.record = record
        self.served = served
        self._salt = record.salt
        self._below = round(record.percent / 100 * 2**64)
        self._window_ends, self._before = now + WINDOW_S, counts
        self._settles, self._began = now + SETTLE_S, counts
        self._has_settled = now >= self._settles

    def includes(self, key: str) -> bool:
        """Return whether a row is for somebody who sees the canary; rows of items and popular lists are for all."""
        return key.startswith(USER) and xxh3_64_intdigest((key[_AFTER_KIND:] + self._salt).encode()) < self._below

    def judge(self, now: float, counts: BothCounts) -> str | None:
        """Say what is worse in this window, or that there are `fewer_clicks` since it settled; None if neither."""
        self._has_settled = now >= self._settles
        if not self._has_settled:
            self._began = counts
        finding = find_regression(*counts.since(self._before)) or fewer_clicks(counts.since(self._began))
        if now >= self._window_ends:
            self._window_ends, self._before = now + WINDOW_S, counts
        return finding

    def click_rates(self, counts: BothCounts) -> ClickRates:
        """Return how often the lists of both releases were shown and clicked since the canary settled."""
        if not self._has_settled:
            return ClickRates(0, 0, 0, 0)
        since = counts.since(self._began)
        bounds = click_change(since, by_chance=0.05) or (None, None)
        return ClickRates(*(int(count) for one in since for count in (one.shown, one.clicks)), *bounds)


class StoppedCanary(NamedTuple):
    """A canary that is not used any more, because it was worse than the live release."""

    release: ReleaseId
    incarnation: str
    writer: str
    superseded_at: float | None
    """When the release left service before: it tells a canary from an earlier one of the same release."""
    finding: str

    @classmethod
    def of(cls, entry: Release, finding: str) -> "StoppedCanary":
        """Stop the canary of a catalogue's entry."""
        return cls(*entry.ref, entry.writer, entry.superseded_at, finding)

    def is_of(self, entry: Release) -> bool:
        """Return whether this is the canary of a catalogue's entry."""
        return self == StoppedCanary.of(entry, self.finding)

    def __str__(self) -> str:
        return f"release {self.release} is the canary, and this service does not use it any more: {self.finding}"
