"""The table of metrics, and the counters that all workers of a service share.

A row of TABLE says what is counted, by which labels and under which names; what lays out the counters, the text for
Prometheus and the metrics of OpenTelemetry are loops over it. What is read of each worker's state instead is in the
table of `hotplate.serve.telemetry.exposition`.

Each worker counts in its own slot of one memory map: eight bytes a number, one writer a slot. To count costs a
fraction of a microsecond, a scrape adds the slots up, and a worker that replaces a dead one counts on where it was.
"""

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

Labels = tuple[str, ...]
# One number by labels, or of a histogram its buckets and then the sum.
CountsByLabels = dict[Labels, list[float]]

BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
OTHER = "other"
ROUTES = (
    "/v1/recommendations/{user}", "/v1/recommendations", "/v1/recommendations/fold-in",
    "/v1/similar/{item}", "/v1/popular",
    "/v1/events", "/score", "/swagger.json", "/", "/openapi.json", "/docs",
    "/livez", "/readyz", OTHER,
)  # fmt: skip
METHODS = ("GET", "POST", "HEAD", "OPTIONS", OTHER)
CODES = (
    "200", "204", "304", "400", "401", "403", "404", "405", "406", "408", "411", "413", "414", "415", "429", "431",
    "499", "500", "503", "504", "505", OTHER,
)  # fmt: skip
# Why work or a connection is refused or cut before it is done, so the rest is done in time.
SHED = (
    "connections", "bytes", "slow_header", "large_header", "slow_body",
    "slow_reader", "batch_delay", "deadline", "gone", "fold_in",
)  # fmt: skip
OPERATIONS = ("get", "get_many")
OUTCOMES = ("ok", "gone", "error")
# What a lookup found in the cache of a store: its list, a read of it on its way, or nothing.
CACHED = (CACHE_HIT, CACHE_SHARED, CACHE_MISS) = "hit", "shared", "miss"
SOURCES = ("personal", "similar", "popular", "fold-in")
LOOKUP_OUTCOMES = ("hit", "miss", "error")
HIT, MISS, ERROR = range(len(LOOKUP_OUTCOMES))
# The role of a release while there is a canary; an event may also name another release.
ReleaseRole = Literal["live", "canary", "other"]
LIVE: Final = "live"
CANARY: Final = "canary"
OTHER_RELEASE: Final = "other"
ROLES: tuple[ReleaseRole, ...] = (LIVE, CANARY)
EVENT_ROLES: tuple[ReleaseRole, ...] = (*ROLES, OTHER_RELEASE)
THROTTLED = "throttled"
# Of what a response is charged; a read of a list is 1 to 3.
BUCKETS_RU = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0)
# How an attempt of a store can fail, besides being throttled; any other word counts as the last.
FAILURES = (
    "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused", OTHER,
)  # fmt: skip
# Types of events: shown, chosen, and names of callers' own. Their outcomes: durable; refused, because too many wait or
# because the disk does not take them; and not known, because the disk takes too long.
EVENT_TYPES = (IMPRESSION, CLICK, CUSTOM) = "impression", "click", "custom"
EVENT_OUTCOMES = (DURABLE, QUEUE_FULL, DISK_FAILED, LATE) = "durable", "queue_full", "disk_failed", "late"
# Where in a list an item stood: each of the first ten places, and all behind them.
COUNTED_POSITIONS = 10
POSITIONS = (*map(str, range(1, COUNTED_POSITIONS + 1)), "more", "unknown")
# What became of spans: sent, not taken by the collector, or dropped as too many waited for it.
SPANS = (SPANS_EXPORTED, SPANS_FAILED, SPANS_DROPPED) = "exported", "failed", "dropped"

# In a row, it stands for the names of the service's tiers.
TIERS = ("TIERS",)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A row of the table: one counter, gauge or histogram with its series."""

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]]
    """The values of each label."""

    kind: Literal["counter", "gauge"] = "counter"
    """A row with buckets is a histogram."""

    buckets: tuple[float, ...] = ()
    shown: str = "all"
    """Which series are in the text: all, those that have `counted`, none, or, in a group of rows with the same word
    here, those of the stores of which any series of the group has counted."""

    otel: str = ""
    """The name and the unit in OpenTelemetry's conventions, for those that are sent."""

    @property
    def cells(self) -> int:
        """How many numbers a series takes: of a histogram one over the last bound, and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1

    def series(self, tiers: Sequence[str]) -> Iterator[Labels]:
        """Yield the labels of each series."""
        return product(*(tiers if values is TIERS else values for values in self.labels.values()))


# fmt: off
_STORE, _PLACE = {"store": TIERS}, {"role": EVENT_ROLES, "position": POSITIONS}
LOOKUP_COUNTS = Metric("hotplate_lookups", "Lists looked up.", {"source": SOURCES, "outcome": LOOKUP_OUTCOMES})
REQUEST_TIMES = Metric("hotplate_http_request_duration_seconds", "Time to answer a request.",
                       {"route": ROUTES, "method": METHODS, "code": CODES}, buckets=BUCKETS_S,
                       otel="http.server.request.duration s")
STORE_TIMES = Metric("hotplate_store_operation_duration_seconds", "Time of one call of a store.",
                     {"store": TIERS, "op": OPERATIONS, "outcome": OUTCOMES}, buckets=BUCKETS_S,
                     otel="db.client.operation.duration s")
CORRUPT = Metric("hotplate_store_corrupt", "Values that were read and are damaged.", _STORE)
CACHE = Metric("hotplate_cache_requests",
               "Lookups in a store's cache: found, answered by a read that was on its way, or read.",
               {"store": TIERS, "outcome": CACHED}, shown="cache")
CANARY_LOOKUPS = Metric("hotplate_canary_lookups", "Users' lists looked up while a store has a canary.",
                        {"store": TIERS, "role": ROLES, "outcome": LOOKUP_OUTCOMES}, shown="canary")
CANARY_TIMES = Metric("hotplate_canary_read_duration_seconds", "Time of one read while a store has a canary.",
                      {"store": TIERS, "role": ROLES}, buckets=BUCKETS_S)
SHED_COUNTS = Metric("hotplate_shed", "Requests and connections refused or cut to serve others in time.",
                     {"reason": SHED})
CHARGES = Metric("hotplate_store_request_charge", "RU that a store charged for a response.", _STORE,
                 buckets=BUCKETS_RU, shown="none",
                 otel="azure.cosmosdb.client.operation.request_charge {request_unit}")
CHARGED_RU = Metric("hotplate_store_request_units", "RU that a store charged.", _STORE, shown="attempts")
CHARGED = Metric("hotplate_store_charged_responses", "Responses of a store that cost RU.", _STORE, shown="attempts")
THROTTLES = Metric("hotplate_store_throttled", "Attempts that a store refused for now, each one.",
                   _STORE, shown="attempts")
FAILED = Metric("hotplate_store_failures", "Attempts that failed otherwise, tried again or not.",
                {"store": TIERS, "kind": FAILURES}, shown="attempts")
EVENT_COUNTS = Metric("hotplate_events", "Events reported.", {"type": EVENT_TYPES, "outcome": EVENT_OUTCOMES})
IMPRESSIONS = Metric("hotplate_impressions", "Items shown, by their place in the list.", _PLACE, shown="counted")
CLICKS = Metric("hotplate_clicks", "Items chosen, by their place in the list.", _PLACE, shown="counted")
SPAN_COUNTS = Metric("hotplate_telemetry_spans", "Spans by what became of them.", {"outcome": SPANS})
DROPPED_LINES = Metric("hotplate_log_lines_dropped",
                       "Lines of workers' logs that were dropped, as they were not read in time.", {})
# The first two are laid out alike in every service, so a cell of theirs is known without one.
TABLE = (
    LOOKUP_COUNTS, REQUEST_TIMES, STORE_TIMES, CORRUPT, CACHE, CANARY_LOOKUPS, CANARY_TIMES, SHED_COUNTS,
    CHARGES, CHARGED_RU, CHARGED, THROTTLES, FAILED, EVENT_COUNTS, IMPRESSIONS, CLICKS,
    SPAN_COUNTS, DROPPED_LINES,
)
# fmt: on

HISTOGRAM_CELLS = REQUEST_TIMES.cells
LOOKUPS = {labels: n for n, labels in enumerate(LOOKUP_COUNTS.series(()))}
REQUESTS = {labels: len(LOOKUPS) + n * HISTOGRAM_CELLS for n, labels in enumerate(REQUEST_TIMES.series(()))}


def request_cell(route: str, method: str, status: int) -> int:
    """Return where the histogram of requests with these labels begins."""
    code = str(status)
    cell = REQUESTS.get((route, method, code))
    if cell is None:
        known = method if method in METHODS else OTHER, code if code in CODES else OTHER
        cell = REQUESTS[(route, *known)]
    return cell


class Metrics:
    """The shared counters, and the slot in which one worker counts; made before the workers, as long as the service."""

    def __init__(self, workers: int, tiers: Sequence[str]) -> None:
        self.cells = dict[Metric, dict[Labels, int]]()
        """By row and labels, where the cells of a series begin in a slot."""
        self._slot_cells = 0
        for row in TABLE:
            found = self.cells[row] = {}
            for labels in row.series(tiers):
                found[labels] = self._slot_cells
                self._slot_cells += row.cells
        self.store, self.cached = self.cells[STORE_TIMES], self.cells[CACHE]
        self.canary, self.canary_reads = self.cells[CANARY_LOOKUPS], self.cells[CANARY_TIMES]
        self.events = self.cells[EVENT_COUNTS]
        self._listed = {IMPRESSION: self.cells[IMPRESSIONS], CLICK: self.cells[CLICKS]}
        self._failures = self.cells[FAILED]
        self._cells = memoryview(mmap.mmap(-1, workers * self._slot_cells * 8)).cast("d")
        self._workers = workers
        self.use_slot(0)

    def use_slot(self, worker: int) -> None:
        """Count as worker number *worker* from now on."""
        self._own = self._cells[worker * self._slot_cells : (worker + 1) * self._slot_cells]

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request, whatever its status."""
        self.observe(request_cell(route, method, status), seconds)

    def observe_store(self, tier: str, operation: str, outcome: str, seconds: float) -> None:
        """Count one call of a tier's store."""
        self.observe(self.store[tier, operation, outcome], seconds)

    def observe(self, cell: int, seconds: float) -> None:
        """Count a time in the histogram that begins at *cell*; alone, for callers who look that up once."""
        own = self._own
        own[cell + bisect_left(BUCKETS_S, seconds)] += 1
        own[cell + HISTOGRAM_CELLS - 1] += seconds

    def count(self, cell: int, number: int = 1) -> None:
        """Count so many of what has this cell."""
        self._own[cell] += number

    def count_lookup(self, source: str, outcome: str, lists: int = 1) -> None:
        """Count lists: where they came from, and whether they are what was requested."""
        self._own[LOOKUPS[source, outcome]] += lists

    def count_in(self, row: Metric, *labels: str, number: float = 1) -> None:
        """Count so much in a series of a row."""
        self._own[self.cells[row][labels]] += number

    def count_attempt(self, tier: str, what: str) -> None:
        """Count one attempt of a tier's store that failed, or was refused for now."""
        if what == THROTTLED:
            self.count_in(THROTTLES, tier)
        else:
            self.count(self._failures.get((tier, what), self._failures[tier, OTHER]))

    def observe_charge(self, tier: str, ru: float) -> None:
        """Count a response of a tier's store, by the request units that it was charged."""
        own, cell = self._own, self.cells[CHARGES][tier,]
        own[cell + bisect_left(BUCKETS_RU, ru)] += 1
        own[cell + CHARGES.cells - 1] += ru
        self.count_in(CHARGED_RU, tier, number=ru)
        self.count_in(CHARGED, tier)

    def count_spans(self, outcome: str, spans: int = 1) -> None:
        """Count spans by what became of them, one of SPANS; each outcome in one thread of a worker."""
        self.count_in(SPAN_COUNTS, outcome, number=spans)

    def count_shed(self, reason: str) -> None:
        """Count one request or connection that was refused or cut; *reason* is one of SHED."""
        self.count_in(SHED_COUNTS, reason)

    def count_listed(self, kind: str, role: ReleaseRole, position: int | None, items: int) -> None:
        """Count items of a list that were shown or chosen, the first of them at *position* and each behind the last."""
        own, listed = self._own, self._listed[kind]
        if position is None:
            own[listed[role, "unknown"]] += items
            return
        first = listed[role, "1"] - 1
        behind = max(position, min(position + items, COUNTED_POSITIONS + 1))
        for place in range(position, behind):
            own[first + place] += 1
        if position + items > behind:
            own[first + COUNTED_POSITIONS + 1] += position + items - behind

    def counted(self, row: Metric) -> CountsByLabels:
        """Return the series of a row, added up over all workers: of a histogram those that have counted anything."""
        series = self.cells[row]
        if not row.buckets:
            return {labels: self.total(cell) for labels, cell in series.items()}
        start = next(iter(series.values()), 0)
        some = set[int]()
        for slot in range(0, self._workers * self._slot_cells, self._slot_cells):
            end = slot + start + len(series) * row.cells
            for cell in (slot + start, slot + start + row.cells - 1):  # the first bucket, and the sum of all others
                column = self._cells[cell : end : row.cells].tolist()
                some.update(number for number, value in enumerate(column) if value)
        return {
            labels: self.total(cell, row.cells)
            for number, (labels, cell) in enumerate(series.items())
            if number in some
        }

    def total(self, cell: int, cells: int = 1) -> list[float]:
        """Add up *cells* numbers from *cell* on, over all workers."""
        starts = range(cell, self._workers * self._slot_cells, self._slot_cells)
        return [sum(self._cells[start + n] for start in starts) for n in range(cells)]
