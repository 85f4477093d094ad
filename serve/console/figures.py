"""Rates and percentiles of all workers, from one second to the next: what the console shows as it happens.

The counters are those of `/metrics`. A sample of them is kept each second, and what is shown is the difference between
the newest and one WINDOW_S older, so nobody has to have looked at the page for its figures to be there.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hotplate.serve.access.auth import SCOPES_BY_ROUTE
from hotplate.serve.metrics import (
    BUCKETS_S,
    CACHED,
    ERROR,
    HISTOGRAM_CELLS,
    HIT,
    LOOKUP_OUTCOMES,
    LOOKUPS,
    MISS,
    OUTCOMES,
    Metrics,
)
from hotplate.serve.processes.states import WorkerState, service_status, status_now

# Over how many seconds a rate and a percentile are taken, and for how many there is a curve.
WINDOW_S, HISTORY_S = 10, 300
PERCENTILES = (0.5, 0.9, 0.99)

Counts = Sequence[float]
Key = tuple[object, ...]
Fields = dict[str, object]


def percentile_ms(buckets: Counts, share: float) -> float | None:
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


@dataclass(frozen=True, slots=True)
class _Sample:
    """The counters at one moment; they only grow, but for those of workers that were replaced."""

    at: float
    """By the monotonic clock."""

    counts: Mapping[Key, Counts]
    """By what is counted: `("request", route, method, code)` and so on."""

    def since(self, before: "_Sample") -> "Counted":
        """Return what was counted since an earlier sample."""
        nothing = [0.0]
        grown = {
            key: [max(0.0, a - b) for a, b in zip(now, before.counts.get(key, nothing * len(now)), strict=True)]
            for key, now in self.counts.items()
        }
        return Counted(max(0.001, self.at - before.at), grown)


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted in a span of time."""

    seconds: float
    counts: Mapping[Key, Counts]

    def rate(self, *key: object) -> float:
        """Return how much of something there was a second."""
        found = self.counts.get(key)
        return 0.0 if found is None else round(found[0] / self.seconds, 2)

    def latency(self, keys: Iterable[Key]) -> Fields:
        """Return rate and percentiles of the histograms of *keys* together."""
        buckets = [0.0] * (len(BUCKETS_S) + 1)
        for key in keys:
            for number, count in enumerate(self.counts[key][:-1]):  # the last is their sum in seconds
                buckets[number] += count
        p50, p90, p99 = (percentile_ms(buckets, share) for share in PERCENTILES)
        return {"rate": round(sum(buckets) / self.seconds, 2), "p50": p50, "p90": p90, "p99": p99}

    def requests(self) -> dict[tuple[str, str], list[Key]]:
        """Return the keys of the requests for lists, by route and method; probes and descriptions are left out."""
        found = dict[tuple[str, str], list[Key]]()
        for key in self.counts:
            match key:
                case ("request", str(route), str(method), str()) if SCOPES_BY_ROUTE.get(route, route) is not None:
                    found.setdefault((route, method), []).append(key)
        return found

    def answers(self, keys: Sequence[Key]) -> Fields:
        """Return rate, percentiles, and what was refused (4xx) and failed (5xx) a second, of requests."""
        by_class = {"4": 0.0, "5": 0.0}
        for key in keys:
            code = str(key[-1])[:1]
            if code in by_class:
                by_class[code] += sum(self.counts[key][:-1]) / self.seconds
        return self.latency(keys) | {"refused": round(by_class["4"], 2), "failed": round(by_class["5"], 2)}


class Sampler:
    """Samples the counters of all workers; lives as long as the admin process."""

    def __init__(
        self, metrics: Metrics, states: Callable[[], Sequence[WorkerState | None]], tiers: Sequence[str]
    ) -> None:
        self._metrics, self._states, self._tiers = metrics, states, tiers
        self._samples = deque[_Sample](maxlen=WINDOW_S + 1)
        self.history = deque[Fields](maxlen=HISTORY_S)
        """Of each second the rate of requests and of failures, and percentiles."""

    def sample(self) -> None:
        """Take a sample, and add a point to the history."""
        self._samples.append(_Sample(time.monotonic(), self._counts()))
        if len(self._samples) > 1:
            newest = self._samples[-1].since(self._samples[-2])
            answers = newest.answers([key for keys in newest.requests().values() for key in keys])
            self.history.append({name: answers[name] for name in ("rate", "failed", "p50", "p99")})

    def figures(self) -> Fields:
        """Return all that is shown, of the last WINDOW_S or as long as there are samples."""
        states = self._states()
        counted = self._samples[-1].since(self._samples[0])
        requests = counted.requests()
        routes = [
            {"route": route, "method": method, **counted.answers(keys)} for (route, method), keys in requests.items()
        ]
        return {
            "at": time.time(),
            "window_s": round(min(WINDOW_S, counted.seconds), 1),
            "status": service_status(states),
            "point": self.history[-1] if self.history else None,
            "total": counted.answers([key for keys in requests.values() for key in keys]),
            "routes": [route for route in routes if route["rate"]],
            "sources": _sources(counted),
            "shed": {reason: rate for reason in self._metrics.shed if (rate := counted.rate("shed", reason))},
            "releases": _releases(counted, states),
            "tiers": [self._tier(counted, tier, states) for tier in self._tiers],
            "workers": [_worker(number, state) for number, state in enumerate(states)],
        }

    def _counts(self) -> dict[Key, Counts]:
        metrics = self._metrics
        counts: dict[Key, Counts] = {("request", *labels): cells for labels, cells in metrics.requests()}
        counts |= {("lookup", *labels): metrics.total(cell) for labels, cell in LOOKUPS.items()}
        counts |= {("shed", reason): metrics.total(cell) for reason, cell in metrics.shed.items()}
        counts |= {("cached", *labels): metrics.total(cell) for labels, cell in metrics.cached.items()}
        counts |= {("store", *labels): metrics.total(cell, HISTOGRAM_CELLS) for labels, cell in metrics.store.items()}
        for state in self._states():
            if state is not None:
                for release, numbers in state.lookups.items():
                    counts["release", state.pid, release] = numbers
        return counts

    def _tier(self, counted: Counted, tier: str, states: Sequence[WorkerState | None]) -> Fields:
        """Describe a tier: what it answers, and what the workers say of it."""
        calls = [key for key in counted.counts if key[:2] == ("store", tier)]
        failed = sum(sum(counted.counts[key][:-1]) for key in calls if key[-1] == OUTCOMES[-1])
        cached = {what: counted.rate("cached", tier, what) for what in CACHED}
        reports = [each for state in states if state is not None for each in state.tiers if each.tier == tier]
        lookups = sum(cached.values())
        return {
            "tier": tier,
            **counted.latency(calls),
            "failed": round(failed / counted.seconds, 2),
            "cached_share": round(1 - cached["miss"] / lookups, 4) if lookups else None,
            "workers": len(reports),
            "open": sum(each.breaker_open for each in reports),
            "releases": sorted({each.release for each in reports if each.release}),
            "catalogue_age_s": round(max((each.catalogue_age_s for each in reports), default=0.0), 1),
            "details": sorted({each.detail for each in reports if each.detail}),
            "warnings": sorted({warning for each in reports for warning in each.warnings}),
        }


def _sources(counted: Counted) -> Fields:
    """Return how many lists a second came from where; the last two are popular lists in place of another."""
    return {
        "personal": counted.rate("lookup", "personal", "hit"),
        "similar": counted.rate("lookup", "similar", "hit"),
        "popular": counted.rate("lookup", "popular", "hit"),
        "unknown": counted.rate("lookup", "popular", "miss"),
        "unreadable": counted.rate("lookup", "popular", "error"),
    }


def _releases(counted: Counted, states: Sequence[WorkerState | None]) -> list[Fields]:
    """Return of each release the lists looked up a second, and on how many workers and tiers it is served."""
    totals = dict[str, list[float]]()
    for key, counts in counted.counts.items():
        match key:
            case ("release", int(), str(release)):
                total = totals.setdefault(release, [0.0] * len(LOOKUP_OUTCOMES))
                for outcome, count in enumerate(counts):
                    total[outcome] += count
    served = [tier for state in states if state is not None for tier in state.tiers]
    now = time.time()
    found = list[Fields]()
    for release in sorted(totals, reverse=True):
        total = totals[release]
        ages = [now - tier.written_at for tier in served if tier.release == release and tier.written_at is not None]
        found.append(
            {
                "release": release,
                "rate": round(sum(total) / counted.seconds, 2),
                "hit": round(total[HIT] / counted.seconds, 2),
                "miss": round(total[MISS] / counted.seconds, 2),
                "error": round(total[ERROR] / counted.seconds, 2),
                "workers": len(ages),
                "age_s": round(max(ages), 1) if ages else None,
            }
        )
    return [each for each in found if each["workers"] or each["rate"]]


def _worker(number: int, state: WorkerState | None) -> Fields:
    """Describe a worker."""
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
