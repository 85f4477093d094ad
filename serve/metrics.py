"""Counters that all workers of a service share.

Each worker counts in its own slot of one memory map: eight bytes a number, one writer a slot. To count costs a
fraction of a microsecond, a scrape adds the slots up, and a worker that replaces a dead one counts on where it was.
"""

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Final, Literal, TypeVar

Series = TypeVar("Series", bound=str | tuple[str, ...])

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
    "connections", "address", "client", "bytes", "slow_header", "large_header", "slow_body",
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
# What reading in the background came to: rows in all, and of the last pass the damaged ones and its seconds.
SCRUB = (SCRUBBED_ROWS, SCRUB_DAMAGED, SCRUB_SECONDS) = "rows", "damaged", "seconds"
# Types of events: shown, chosen, and names of callers' own. Their outcomes: durable; refused, because too many wait or
# because the disk does not take them; and not known, because the disk takes too long.
EVENT_TYPES = (IMPRESSION, CLICK, CUSTOM) = "impression", "click", "custom"
EVENT_OUTCOMES = (DURABLE, QUEUE_FULL, DISK_FAILED, LATE) = "durable", "queue_full", "disk_failed", "late"
# Where in a list an item stood: each of the first ten places, and all behind them.
COUNTED_POSITIONS = 10
POSITIONS = (*map(str, range(1, COUNTED_POSITIONS + 1)), "more", "unknown")
# What became of spans: sent, not taken by the collector, or dropped as too many waited for it.
SPANS = (SPANS_EXPORTED, SPANS_FAILED, SPANS_DROPPED) = "exported", "failed", "dropped"

# One over the last bound, and the sum.
HISTOGRAM_CELLS = len(BUCKETS_S) + 2
CHARGE_CELLS = len(BUCKETS_RU) + 2

LOOKUPS = {labels: n for n, labels in enumerate(product(SOURCES, LOOKUP_OUTCOMES))}
REQUESTS = {labels: len(LOOKUPS) + n * HISTOGRAM_CELLS for n, labels in enumerate(product(ROUTES, METHODS, CODES))}
STORE_START = len(LOOKUPS) + len(REQUESTS) * HISTOGRAM_CELLS


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
        self._slot_cells = STORE_START
        self.store = self._lay_out(product(tiers, OPERATIONS, OUTCOMES), HISTOGRAM_CELLS)
        self.attempts = self._lay_out(product(tiers, (THROTTLED, *FAILURES)))
        self.corrupt = self._lay_out(tiers)
        self.scrub = self._lay_out(product(tiers, SCRUB))
        self.shed = self._lay_out(SHED)
        self.cached = self._lay_out(product(tiers, CACHED))
        self.charges = self._lay_out(tiers, CHARGE_CELLS)
        self.spans = self._lay_out(SPANS)
        self.canary = self._lay_out(product(tiers, ROLES, LOOKUP_OUTCOMES))
        self.canary_reads = self._lay_out(product(tiers, ROLES), HISTOGRAM_CELLS)
        self.events = self._lay_out(product(EVENT_TYPES, EVENT_OUTCOMES))
        self.listed = self._lay_out(product((IMPRESSION, CLICK), EVENT_ROLES, POSITIONS))
        self.dropped_lines = self._lay_out(["lines"])["lines"]
        self._cells = memoryview(mmap.mmap(-1, workers * self._slot_cells * 8)).cast("d")
        self._workers = workers
        self.use_slot(0)

    def _lay_out(self, series: Iterable[Series], cells: int = 1) -> dict[Series, int]:
        """Give each of *series*, by its labels, so many cells of a slot; return where they begin."""
        laid_out = dict[Series, int]()
        for labels in series:
            laid_out[labels] = self._slot_cells
            self._slot_cells += cells
        return laid_out

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

    def count_attempt(self, tier: str, what: str) -> None:
        """Count one attempt of a tier's store that failed, or was refused for now."""
        cell = self.attempts.get((tier, what))
        self._own[self.attempts[tier, OTHER] if cell is None else cell] += 1

    def observe_charge(self, tier: str, ru: float) -> None:
        """Count a response of a tier's store, by the request units that it was charged."""
        own, cell = self._own, self.charges[tier]
        own[cell + bisect_left(BUCKETS_RU, ru)] += 1
        own[cell + CHARGE_CELLS - 1] += ru

    def count_spans(self, outcome: str, spans: int = 1) -> None:
        """Count spans by what became of them, one of SPANS; each outcome in one thread of a worker."""
        self._own[self.spans[outcome]] += spans

    def count_shed(self, reason: str) -> None:
        """Count one request or connection that was refused or cut; *reason* is one of SHED."""
        self._own[self.shed[reason]] += 1

    def count_listed(self, kind: str, role: ReleaseRole, position: int | None, items: int) -> None:
        """Count items of a list that were shown or chosen, the first of them at *position* and each behind the last."""
        own = self._own
        if position is None:
            own[self.listed[kind, role, "unknown"]] += items
            return
        first = self.listed[kind, role, "1"] - 1
        behind = max(position, min(position + items, COUNTED_POSITIONS + 1))
        for place in range(position, behind):
            own[first + place] += 1
        if position + items > behind:
            own[first + COUNTED_POSITIONS + 1] += position + items - behind

    def set_scrub(self, tier: str, damaged: int, seconds: float) -> None:
        """Set what the last pass over a tier's release found; one worker does that, so the sum is its value."""
        self._own[self.scrub[tier, SCRUB_DAMAGED]] = damaged
        self._own[self.scrub[tier, SCRUB_SECONDS]] = seconds

    def requests(self) -> Iterator[tuple[tuple[str, str, str], list[float]]]:
        """Yield the histogram of each route, method and code that were counted, added up over all workers."""
        counted = set[int]()
        for start in range(len(LOOKUPS), self._workers * self._slot_cells, self._slot_cells):
            end = start + len(REQUESTS) * HISTOGRAM_CELLS
            for cell in (start, start + HISTOGRAM_CELLS - 1):  # the first bucket, and the seconds of all others
                column = self._cells[cell:end:HISTOGRAM_CELLS].tolist()
                counted.update(number for number, value in enumerate(column) if value)
        for number, labels in enumerate(REQUESTS):
            if number in counted:
                yield labels, self.total(REQUESTS[labels], HISTOGRAM_CELLS)

    def total(self, cell: int, cells: int = 1) -> list[float]:
        """Add up *cells* numbers from *cell* on, over all workers."""
        starts = range(cell, self._workers * self._slot_cells, self._slot_cells)
        return [sum(self._cells[start + n] for start in starts) for n in range(cells)]
