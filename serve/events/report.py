"""The report on events: impressions and clicks by release, role and position in the list."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from hotplate.base.intervals import Interval, share_interval
from hotplate.serve.api.schemas import CLICK, IMPRESSION
from hotplate.serve.events.experiments import ArmEvents
from hotplate.serve.events.segment_folder import SegmentFolder
from hotplate.serve.events.writer import WrittenEvent
from hotplate.serve.metrics import POSITIONS, position_labels
from hotplate.stores.event_log import SegmentReader, decode_event, is_open_segment, segment_names

# All positions together.
ALL = "all"

_DECODER = msgspec.json.Decoder(WrittenEvent)


class PositionCounts(NamedTuple):
    """Impressions and clicks of a release in a role, at one position or `all`."""

    release: str
    role: str
    position: str
    impressions: int
    clicks: int

    @property
    def ctr(self) -> float | None:
        """The click-through rate; None without impressions, or with more clicks than those."""
        return self.clicks / self.impressions if 0 < self.impressions >= self.clicks else None

    @property
    def interval(self) -> Interval | None:
        """The bounds of the 95 % interval of `ctr`, by Wilson's score, as if items were independent.

        None without it.
        """
        return None if self.ctr is None else share_interval(self.ctr, self.impressions)


@dataclass(frozen=True, slots=True)
class EventReport:
    """Counts of all closed segments at a URL."""

    segments: int
    open_segments: int
    """Not counted: being written, or left by a killed service."""
    events: int
    """Without duplicates."""
    duplicates: int
    damaged: int
    types: dict[str, int]
    rows: list[PositionCounts]


class _EventCounter:
    """Counts events by type, and impressions and clicks by place."""

    def __init__(self) -> None:
        self.types = Counter[str]()
        self.duplicates = 0
        self._ids = set[int]()
        """Hashes of the ids of events."""

        self._items = Counter[tuple[str, str, str, str]]()
        """Shown and clicked items, by release, role, position and the type of the event."""

    def add(self, event: WrittenEvent) -> bool:
        """Count an event; return False for a duplicate, which has the id of an earlier one and is not counted."""
        id_hash = xxh3_64_intdigest(event.id.encode())  # smaller than the id
        if id_hash in self._ids:
            self.duplicates += 1
            return False

        self._ids.add(id_hash)
        self.types[event.type] += 1
        if event.type in (IMPRESSION, CLICK):
            for position in position_labels(event.position, len(event.items)):
                self._items[event.release, event.role, position, event.type] += 1
            self._items[event.release, event.role, ALL, event.type] += len(event.items)
        return True

    @property
    def events(self) -> int:
        """Number of events, without duplicates."""
        return len(self._ids)

    def rows(self) -> list[PositionCounts]:
        """Return a row with impressions and clicks per release, role of the release, and position in the list.

        They are in this order; of the positions, ALL is the first.
        """
        order = (ALL, *POSITIONS)
        places = {(release, role, order.index(position)) for release, role, position, _ in self._items}
        return [
            PositionCounts(
                release,
                role,
                order[index],
                impressions=self._items[release, role, order[index], IMPRESSION],
                clicks=self._items[release, role, order[index], CLICK],
            )
            for release, role, index in sorted(places)
        ]


def report(
    url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None, *, arms: ArmEvents | None = None
) -> EventReport:
    """Count the events in the closed segments, log files of events, at *url*: a folder or a URL of fsspec.

    Events with the same id count once. *arms* counts them for the variants of an experiment, too. *on_progress* is
    called with the number of segments that were read, and of all. Takes about 100 bytes of memory per event. Raises
    ServiceMisused, EventsFailed, and WrittenByNewer for segments or events of a newer hotplate.
    """
    folder = SegmentFolder(url)
    files = folder.names()
    names = segment_names(files)

    counter = _EventCounter()
    damaged = 0
    for number, name in enumerate(names, start=1):
        reader = SegmentReader(folder.read(name))
        for line in reader:
            event = decode_event(_DECODER, line)
            is_counted = counter.add(event)
            if is_counted and arms is not None:
                arms.add(event.type, event.user, event.time, event.value)
        damaged += reader.damaged
        on_progress(number, len(names))

    return EventReport(
        segments=len(names),
        open_segments=sum(map(is_open_segment, files)),
        events=counter.events,
        duplicates=counter.duplicates,
        damaged=damaged,
        types=dict(counter.types),
        rows=counter.rows(),
    )
