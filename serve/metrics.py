"""The table of metrics, and their counters.

Each worker, and the admin process, counts in one slot of shared memory; its successor continues there.
"""

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from typing import Final, Literal, Self

from hotplate.serve.api.routes import OPERATIONS as ROUTE_TABLE
from hotplate.serve.api.routes import TEMPLATES
from hotplate.serve.api.schemas import CLICK, IMPRESSION
from hotplate.serve.metric import TIERS, TIERS_AND_CONSUMED, Labels, Metric
from hotplate.serve.shared_memory import shared_floats

# One number per series, or the buckets and sum of a histogram.
CountsByLabels = dict[Labels, list[float]]

BUCKETS_S = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
OTHER = "other"
ROUTES = (*TEMPLATES, OTHER)
METHODS = ("GET", "POST", "HEAD", "OPTIONS", OTHER)
CODES = (
    "200", "204", "304", "400", "401", "403", "404", "405", "406", "408", "411", "413", "414", "415", "417", "429",
    "431", "499", "500", "503", "504", "505", OTHER,
)  # fmt: skip
# Reasons to refuse or cut requests.
SHED = (
    "connections", "bytes", "slow_header", "large_header", "slow_body", "chunks",
    "slow_reader", "batch_delay", "deadline", "gone", "fold_in",
)  # fmt: skip
OPERATIONS = ("get", "get_many")
OUTCOMES = ("ok", "gone", "error")
CACHED = (CACHE_HIT, CACHE_SHARED, CACHE_MISS) = "hit", "shared", "miss"
HEDGE_OUTCOMES = (HEDGE_WON, HEDGE_LOST) = "won", "lost"
SOURCES = ("personal", "similar", "popular", "fold-in")
LOOKUP_OUTCOMES = ("hit", "miss", "error")
HIT, MISS, ERROR = range(len(LOOKUP_OUTCOMES))
# Events may also name another release.
ReleaseRole = Literal["live", "canary", "other"]
LIVE: Final = "live"
CANARY: Final = "canary"
OTHER_RELEASE: Final = "other"
ROLES: tuple[ReleaseRole, ...] = (LIVE, CANARY)
EVENT_ROLES: tuple[ReleaseRole, ...] = (*ROLES, OTHER_RELEASE)
THROTTLED = "throttled"
# A read of a list costs 1 to 3 RU.
BUCKETS_RU = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0)
FAILURES = (
    "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused", OTHER,
)  # fmt: skip
CONSUMED_OUTCOMES = (SENT, RECEIVED, DROPPED) = "sent", "received", "dropped"
COUNTED_POSITIONS = 10
POSITIONS = (*map(str, range(1, COUNTED_POSITIONS + 1)), "more", "unknown")

# fmt: off
_STORE, _PLACE = {"store": TIERS}, {"role": EVENT_ROLES, "position": POSITIONS}
LOOKUP_COUNTS = Metric("hotplate_lookups", "Lists looked up.", {"source": SOURCES, "outcome": LOOKUP_OUTCOMES})
REQUEST_TIMES = Metric("hotplate_http_request_duration_seconds", "Time to answer a request.",
                       {"route": ROUTES, "method": METHODS, "code": CODES}, buckets=BUCKETS_S,
                       otel="http.server.request.duration s")
STORE_TIMES = Metric("hotplate_store_operation_duration_seconds", "Time of one call of a store.",
                     {"store": TIERS, "op": OPERATIONS, "outcome": OUTCOMES}, buckets=BUCKETS_S,
                     otel="db.client.operation.duration s")
CORRUPT = Metric("hotplate_store_corrupt", "Damaged values that were read.", _STORE)
CACHE = Metric("hotplate_cache_requests",
               "Lookups in a store's cache: hit, shared with a read in progress, or miss.",
               {"store": TIERS, "outcome": CACHED}, shown="cache")
ROLE_LOOKUPS = Metric("hotplate_canary_lookups", "Users' lists looked up during a canary.",
                        {"store": TIERS, "role": ROLES, "outcome": LOOKUP_OUTCOMES}, shown="canary")
ROLE_TIMES = Metric("hotplate_canary_read_duration_seconds", "Time of one read during a canary.",
                      {"store": TIERS, "role": ROLES}, buckets=BUCKETS_S)
PROBATION_LOOKUPS = Metric("hotplate_probation_lookups", "Lookups by which a new release is judged.",
                           {"store": TIERS, "outcome": LOOKUP_OUTCOMES}, shown="none")
SHED_COUNTS = Metric("hotplate_shed", "Requests and connections refused or cut under load.",
                     {"reason": SHED})
CHARGES = Metric("hotplate_store_request_charge", "RU charged per response.", _STORE,
                 buckets=BUCKETS_RU, shown="none",
                 otel="azure.cosmosdb.client.operation.request_charge {request_unit}")
CHARGED_RU = Metric("hotplate_store_request_units", "RU charged by a store.", _STORE, shown="attempts")
CHARGED = Metric("hotplate_store_charged_responses", "Responses of a store with a charge.", _STORE, shown="attempts")
THROTTLES = Metric("hotplate_store_throttled", "Attempts that a store throttled.",
                   _STORE, shown="attempts")
HEDGES = Metric("hotplate_store_hedged_reads", "Late reads that were sent once more, to a replica or another region.",
                {"store": TIERS, "outcome": HEDGE_OUTCOMES}, shown="counted")
FAILED = Metric("hotplate_store_failures", "Attempts that failed otherwise, including retried ones.",
                {"store": TIERS, "kind": FAILURES}, shown="attempts")
TOKEN_FAILURES = Metric("hotplate_store_token_failures",
                        "Tokens of Entra ID that could not be got or renewed, or that the store refused.",
                        {"store": TIERS_AND_CONSUMED})
IMPRESSIONS = Metric("hotplate_impressions", "Items shown, by position in the list.", _PLACE, shown="counted")
CLICKS = Metric("hotplate_clicks", "Items clicked, by position in the list.", _PLACE, shown="counted")
DROPPED_LINES = Metric("hotplate_log_lines_dropped",
                       "Log lines of workers that were dropped because they were not read in time.", {})
CONSUMED_PAIRS = Metric("hotplate_consumed_pairs",
                        "Pairs of user and item that services share: sent, received, or dropped because there "
                        "was no room or they could not be read.", {"outcome": CONSUMED_OUTCOMES}, shown="counted")
_OF_ROUTES = [operation.counts for operation in ROUTE_TABLE if operation.counts is not None]
# The first two must not depend on the tiers, see LOOKUPS and REQUESTS.
TABLE = (
    LOOKUP_COUNTS, REQUEST_TIMES, STORE_TIMES, CORRUPT, CACHE, ROLE_LOOKUPS, ROLE_TIMES, SHED_COUNTS,
    CHARGES, CHARGED_RU, CHARGED, THROTTLES, HEDGES, FAILED, TOKEN_FAILURES, *_OF_ROUTES, IMPRESSIONS, CLICKS,
    DROPPED_LINES, CONSUMED_PAIRS, PROBATION_LOOKUPS,
)
# fmt: on

HISTOGRAM_CELLS = REQUEST_TIMES.cells
LOOKUPS = {labels: n for n, labels in enumerate(LOOKUP_COUNTS.series(()))}
REQUESTS = {labels: len(LOOKUPS) + n * HISTOGRAM_CELLS for n, labels in enumerate(REQUEST_TIMES.series(()))}


def request_cell(route: str, method: str, status: int) -> int:
    """Return the first cell of a request histogram."""
    code = str(status)
    cell = REQUESTS.get((route, method, code))
    if cell is None:
        known = method if method in METHODS else OTHER, code if code in CODES else OTHER
        cell = REQUESTS[(route, *known)]
    return cell


def position_labels(position: int | None, items: int) -> list[str]:
    """Return the label of each of *items* consecutive items of a list, the first at *position*, from 1.

    It is one of POSITIONS: those after COUNTED_POSITIONS are counted together, and so are unknown ones.
    """
    if position is None:
        return [POSITIONS[-1]] * items
    return [POSITIONS[min(place, COUNTED_POSITIONS + 1) - 1] for place in range(position, position + items)]


class Metrics:
    """The counters of several processes, in shared memory: each process has a slot of cells."""

    def __init__(self, slots: int, tiers: Sequence[str]) -> None:
        """Created before the processes; this one has the first slot."""
        self.cells = dict[Metric, dict[Labels, int]]()
        """First cell of each series in a slot."""
        self._slot_cells = 0
        for row in TABLE:
            starts = self.cells[row] = dict[Labels, int]()
            for labels in row.series(tiers):
                starts[labels] = self._slot_cells
                self._slot_cells += row.cells
        self.store = self.cells[STORE_TIMES]
        self.role_reads = self.cells[ROLE_TIMES]
        self._listed = {IMPRESSION: self.cells[IMPRESSIONS], CLICK: self.cells[CLICKS]}
        self._cells = shared_floats(slots * self._slot_cells)
        self.own_cells = self._cells[: self._slot_cells]
        """The slot of this process, also for the fast lane."""

    def in_slot(self, number: int) -> Self:
        """Return the same counters for another process, which counts in the slot of this number, from 0."""
        metrics = copy(self)
        metrics.own_cells = self._cells[number * self._slot_cells : (number + 1) * self._slot_cells]
        return metrics

    def observe(self, cell: int, seconds: float) -> None:
        """Count a time in the histogram that begins at *cell*."""
        own = self.own_cells
        own[cell + bisect_left(BUCKETS_S, seconds)] += 1
        own[cell + HISTOGRAM_CELLS - 1] += seconds

    def count(self, cell: int, number: float = 1) -> None:
        """Add to the counter at *cell*."""
        self.own_cells[cell] += number

    def count_lookup(self, source: str, outcome: str, lists: int = 1) -> None:
        """Count lists by source and outcome."""
        self.own_cells[LOOKUPS[source, outcome]] += lists

    def count_in(self, row: Metric, *labels: str, number: float = 1) -> None:
        """Add to a series of a row."""
        self.own_cells[self.cells[row][labels]] += number

    def count_shed(self, reason: str) -> None:
        """Count a refused or cut request by a reason in SHED."""
        self.count_in(SHED_COUNTS, reason)

    def count_listed(self, kind: str, role: ReleaseRole, position: int | None, items: int) -> None:
        """Count *items* consecutive items of a list that were shown or clicked, the first at *position*, from 1.

        *kind* is IMPRESSION or CLICK, and *role* that of the release: live, canary or other. *position* is None if
        unknown.
        """
        cells = self._listed[kind]  # the index of each counter in `own_cells`, by its labels
        for label in position_labels(position, items):
            self.own_cells[cells[role, label]] += 1

    def counted(self, row: Metric) -> CountsByLabels:
        """Return the totals of the metric *row*, a row of the table of metrics, over all workers.

        They are by the values of its labels, a series each. A series of a counter has one number. One of a histogram
        has the number of observations in each bucket, then the sum of the values; empty ones are left out.
        """
        series = self.cells[row]  # the index of the first cell of each series
        if not row.buckets:
            return {labels: self.total(cell) for labels, cell in series.items()}

        totals = CountsByLabels()
        for labels, cell in series.items():
            sum_cell = cell + row.cells - 1
            # A value of 0 is in the first bucket only, any other one in the sum.
            if any(self.total(cell)) or any(self.total(sum_cell)):
                totals[labels] = self.total(cell, row.cells)
        return totals

    def total(self, cell: int, cells: int = 1) -> list[float]:
        """Add up *cells* numbers from *cell* on over all workers."""
        return [sum(self._cells[cell + number :: self._slot_cells]) for number in range(cells)]
