"""Rates and percentiles of all workers, second by second, for the console.

The counters are those of `/metrics`. A sample of them is kept each second, also if no page is open. A page shows the
difference between the newest sample and one that is WINDOW_S older.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from operator import add
from typing import NamedTuple

from hotplate.serve.access.auth import scope_of
from hotplate.serve.metrics import (
    BUCKETS_S,
    CACHED,
    CLICK,
    ERROR,
    HIT,
    IMPRESSION,
    LOOKUP_OUTCOMES,
    MISS,
    OUTCOMES,
    POSITIONS,
    ROLES,
    Metrics,
)
from hotplate.serve.releases.canary import click_interval
from hotplate.serve.states import WorkerState, service_status, status_now
from hotplate.serve.telemetry.exposition import CountsByLabels, Labels, Snapshot, States, growth, take_snapshot

# Over how many seconds a rate and a percentile are taken, and for how many there is a curve: a point a second, and a
# point a window.
WINDOW_S = 10
HISTORY_S = 300
LONG_HISTORY_S = 3600
CURVES = ("rate", "failed", "p50", "p99")
PERCENTILES = (0.5, 0.9, 0.99)
# Of how many releases the counts are kept after they were served.
KEPT = 10

JsonObject = dict[str, object]


def percentile_ms(buckets: Sequence[float], share: float) -> float | None:
    """Return within how many ms *share* of what a histogram counted was done; None if it counted nothing.

    Inside a bucket it is interpolated. In the first bucket it is that bucket's bound, and beyond the last one the last
    bound, because finer figures are not known there.
    """
    total = sum(buckets)
    if total <= 0:
        return None
    rank, below = share * total, 0.0
    for number, count in enumerate(buckets):
        if count and below + count >= rank:
            if number == 0 or number >= len(BUCKETS_S):
                return BUCKETS_S[min(number, len(BUCKETS_S) - 1)] * 1000
            lower, upper = BUCKETS_S[number - 1], BUCKETS_S[number]
            return round((lower + (upper - lower) * (rank - below) / count) * 1000, 3)
        below += count
    return BUCKETS_S[-1] * 1000


class _CounterSample(NamedTuple):
    """The counters at one moment, or what they counted between two."""

    seconds: float
    """When that was, by the monotonic clock; or how long it took."""

    counted: Snapshot
    releases: CountsByLabels
    """The lists looked up, by process and release: of a worker that was replaced they begin again."""

    def since(self, before: "_CounterSample") -> "_CounterSample":
        """Return what was counted since an earlier sample."""
        return _CounterSample(
            max(0.001, self.seconds - before.seconds),
            self.counted.since(before.counted),
            growth(self.releases, before.releases),
        )

    def rates(self, counts: CountsByLabels) -> dict[Labels, float]:
        """Return how much there was a second, by labels."""
        return {labels: round(count / self.seconds, 2) for labels, (count,) in counts.items()}

    def latency(self, histograms: Iterable[Sequence[float]]) -> JsonObject:
        """Return rate and percentiles of some histograms together."""
        buckets = [0.0] * (len(BUCKETS_S) + 1)
        for histogram in histograms:
            for number, count in enumerate(histogram[:-1]):  # the last is their sum in seconds
                buckets[number] += count
        p50, p90, p99 = (percentile_ms(buckets, share) for share in PERCENTILES)
        return {"rate": round(sum(buckets) / self.seconds, 2), "p50": p50, "p90": p90, "p99": p99}

    def answers(self, requests: CountsByLabels) -> JsonObject:
        """Return rate, percentiles, and what was refused (4xx) and failed (5xx) a second, of requests."""
        by_class = {"4": 0.0, "5": 0.0}
        for (*_, code), histogram in requests.items():
            if code[0] in by_class:
                by_class[code[0]] += sum(histogram[:-1]) / self.seconds
        return self.latency(requests.values()) | {
            "refused": round(by_class["4"], 2),
            "failed": round(by_class["5"], 2),
        }


class _Served(NamedTuple):
    hit: float = 0
    miss: float = 0
    error: float = 0
    shown: float = 0
    clicks: float = 0

    def plus(self, more: "_Served") -> "_Served":
        return _Served(*map(add, self, more))


class ServedReleases:
    """What was counted of the last KEPT releases that were served; lives as long as the admin process."""

    def __init__(self) -> None:
        self._since = time.time()
        self._counts = dict[str, tuple[float, _Served]]()
        """By release, when it was first seen and what was counted; those that are served now are the last."""

    def add(self, second: _CounterSample, states: States) -> None:
        """Add what was counted in a second; events, which are counted by role, to the releases of most workers."""
        counts = defaultdict[str, _Served](_Served)
        for role, release in zip(ROLES, _served_by_most(states), strict=False):
            if release is not None:
                listed = second.counted.listed
                shown = listed[IMPRESSION, role, POSITIONS[0]][0]
                clicks = sum(listed[CLICK, role, position][0] for position in POSITIONS)
                counts[release] = counts[release].plus(_Served(shown=shown, clicks=clicks))
        for (_, release), lookups in second.releases.items():
            if any(lookups):
                counts[release] = counts[release].plus(_Served(*lookups))
        for release, more in counts.items():
            first_seen, before = self._counts.pop(release, (time.time(), _Served()))
            self._counts[release] = first_seen, before.plus(more)
        for oldest in list(self._counts)[:-KEPT]:
            del self._counts[oldest]

    def to_json(self) -> JsonObject:
        """Return since when releases are counted, and the counts of each; the release that came last is the first."""
        latest_first = sorted(self._counts.items(), key=lambda one: -one[1][0])
        releases = [{"release": name, "since": seen} | counts._asdict() for name, (seen, counts) in latest_first]
        return {"since": self._since, "kept": KEPT, "releases": releases}


def _served_by_most(states: States) -> tuple[str | None, ...]:
    """Return the live release and the canary that most workers serve, each of the first tier that has one."""
    served = Counter(
        (
            next((tier.release for tier in state.tiers if tier.release), None),
            next((tier.canary for tier in state.tiers if tier.canary), None),
        )
        for state in states
        if state is not None
    )
    return max(served, key=served.__getitem__, default=())


class Sampler:
    """Samples the counters of all workers; lives as long as the admin process."""

    def __init__(self, metrics: Metrics, states: Callable[[], States], tiers: Sequence[str]) -> None:
        self._metrics = metrics
        self._states = states
        self._tiers = tiers
        self._samples = deque[_CounterSample](maxlen=WINDOW_S + 1)
        self.history = deque[JsonObject](maxlen=HISTORY_S)
        """Of each second the rate of requests and of failures, and percentiles."""
        self.long_history = deque[JsonObject](maxlen=LONG_HISTORY_S // WINDOW_S)
        """The same of each window."""
        self._served = ServedReleases()
        self._long_point: JsonObject | None = None
        """The point of the long history that the newest sample made, if it ended a window."""
        self._until_long = WINDOW_S

    def sample(self) -> None:
        """Take a sample, and add a point to the history."""
        states = self._states()
        releases: CountsByLabels = {
            (str(state.pid), release): [float(count) for count in counts]
            for state in states
            if state is not None
            for release, counts in state.lookups.items()
        }
        if None in states and self._samples:  # a worker whose state cannot be read for once has not begun again
            releases = self._samples[-1].releases | releases
        self._samples.append(_CounterSample(time.monotonic(), take_snapshot(self._metrics), releases))
        if len(self._samples) > 1:
            second = self._samples[-1].since(self._samples[-2])
            self.history.append(_point(second))
            self._served.add(second, states)
            self._until_long -= 1
        self._long_point = None
        if not self._until_long:
            self._until_long = WINDOW_S
            self._long_point = _point(self._samples[-1].since(self._samples[0]))
            self.long_history.append(self._long_point)

    @property
    def before(self) -> tuple[list[JsonObject], list[JsonObject]]:
        """Return the points of both histories but those that `figures` brings now."""
        long = [*self.long_history]
        return [*self.history][:-1], long if self._long_point is None else long[:-1]

    def figures(self) -> JsonObject:
        """Return all that is shown, of the last WINDOW_S or as long as there are samples."""
        states = self._states()
        recent = self._samples[-1].since(self._samples[0])
        requests = _of_lists(recent.counted.requests)
        routes = [
            {"route": route, "method": method, **recent.answers(_starting_with(requests, route, method))}
            for route, method in dict.fromkeys((route, method) for route, method, _ in requests)
        ]
        return {
            "at": time.time(),
            "window_s": round(min(WINDOW_S, recent.seconds), 1),
            "status": service_status(states),
            "point": self.history[-1] if self.history else None,
            "long_point": self._long_point,
            "total": recent.answers(requests),
            "routes": [route for route in routes if route["rate"]],
            "sources": _sources(recent),
            "shed": {reason: rate for (reason,), rate in recent.rates(recent.counted.shed).items() if rate},
            "releases": _releases(recent, states),
            "served": self._served.to_json(),
            "tiers": [_tier(recent, tier, states) for tier in self._tiers],
            "workers": [_worker(number, state) for number, state in enumerate(states)],
        }


def _point(counted: _CounterSample) -> JsonObject:
    """Return a point of each curve."""
    answers = counted.answers(_of_lists(counted.counted.requests))
    return {name: answers[name] for name in CURVES}


def _of_lists(requests: CountsByLabels) -> CountsByLabels:
    """Return the requests for lists; probes and descriptions are left out."""
    return {labels: histogram for labels, histogram in requests.items() if scope_of(labels[0]) is not None}


def _starting_with(counts: CountsByLabels, *labels: str) -> CountsByLabels:
    return {each: count for each, count in counts.items() if each[: len(labels)] == labels}


def _tier(recent: _CounterSample, tier: str, states: States) -> JsonObject:
    """Describe a tier: what it answers, and what the workers say of it."""
    calls = _starting_with(recent.counted.calls, tier)
    failed = sum(sum(histogram[:-1]) for labels, histogram in calls.items() if labels[-1] == OUTCOMES[-1])
    rates = recent.rates(recent.counted.cached)
    cached = {what: rates[tier, what] for what in CACHED}
    reports = [each for state in states if state is not None for each in state.tiers if each.tier == tier]
    lookups = sum(cached.values())
    users = recent.rates(recent.counted.canary)
    canaries = [(each.canary, each.canary_clicks) for each in reports if each.canary and each.canary_clicks]
    canary, clicks = max(canaries, key=lambda one: one[1].canary_shown, default=(None, None))
    return {
        "tier": tier,
        **recent.latency(calls.values()),
        "failed": round(failed / recent.seconds, 2),
        "cached_share": round(1 - cached["miss"] / lookups, 4) if lookups else None,
        "workers": len(reports),
        "open": sum(each.breaker_open for each in reports),
        "releases": sorted({each.release for each in reports if each.release}),
        "canary": canary,
        "clicks": clicks
        and clicks._asdict()
        | {
            "live_interval": click_interval(clicks.live_shown, clicks.live),
            "canary_interval": click_interval(clicks.canary_shown, clicks.canary),
        },
        "users": {role: {what: users[tier, role, what] for what in LOOKUP_OUTCOMES} for role in ROLES},
        "catalogue_age_s": round(max((each.catalogue_age_s for each in reports), default=0.0), 1),
        "details": sorted({each.detail for each in reports if each.detail}),
        "warnings": sorted({warning for each in reports for warning in each.warnings}),
    }


def _sources(recent: _CounterSample) -> JsonObject:
    """Return how many lists a second came from where; the last two are popular lists in place of another."""
    rates = recent.rates(recent.counted.lookups)
    return {
        "personal": rates["personal", "hit"],
        "similar": rates["similar", "hit"],
        "popular": rates["popular", "hit"],
        "unknown": rates["popular", "miss"],
        "unreadable": rates["popular", "error"],
    }


def _releases(recent: _CounterSample, states: States) -> list[JsonObject]:
    """Return of each release the lists looked up a second, and on how many workers and tiers it is served."""
    totals = dict[str, list[float]]()
    for (_, release), counts in recent.releases.items():
        total = totals.setdefault(release, [0.0] * len(LOOKUP_OUTCOMES))
        for outcome, count in enumerate(counts):
            total[outcome] += count
    served = [tier for state in states if state is not None for tier in state.tiers]
    now = time.time()
    found = list[JsonObject]()
    for release in sorted(totals, reverse=True):
        total = totals[release]
        ages = [now - tier.written_at for tier in served if tier.release == release and tier.written_at is not None]
        found.append(
            {
                "release": release,
                "rate": round(sum(total) / recent.seconds, 2),
                "hit": round(total[HIT] / recent.seconds, 2),
                "miss": round(total[MISS] / recent.seconds, 2),
                "error": round(total[ERROR] / recent.seconds, 2),
                "workers": len(ages),
                "age_s": round(max(ages), 1) if ages else None,
            }
        )
    return [each for each in found if each["workers"] or each["rate"]]


def _worker(number: int, state: WorkerState | None) -> JsonObject:
    if state is None:
        return {"worker": number, "status": status_now(None)}
    return {
        "worker": number,
        "status": status_now(state),
        "pid": state.pid,
        "started_at": state.started_at,
        "reported_s_ago": round(state.silent_s, 1),
        "lag_ms": round(state.lag_s * 1000, 1),
        "connections": state.connections,
        "releases": [{"tier": tier.tier, "release": tier.release} for tier in state.tiers],
        "warnings": state.warnings,
    }
