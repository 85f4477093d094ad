"""Shipment: closed segments are moved to another place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from hotplate.serve.consumed.stored_events import remove_segments
from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.serve.events.segment_folder import SegmentFolder
from hotplate.stores.event_log import recover, segments

# Segments that are removed together, after they were copied.
SHIPPED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Shipped:
    """Result of a shipment."""

    segments: int
    bytes: int
    recovered: int
    """Segments of killed writers."""


def ship(folder: Path, url: str, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> Shipped:
    """Move the closed segments in *folder*, log files of events, to *url*: another folder or a URL of fsspec.

    Events that may still hide items (`serve --hide-consumed`) are kept in the folder, too. A killed shipment is
    resumed: a segment with the same name and size counts as copied. *on_progress* is called with the number of segments
    that were copied, and of all. Raises ServiceMisused, EventsFailed, and WrittenByNewer for segments of a newer
    hotplate.
    """
    if not folder.is_dir():
        raise ServiceMisused(f"there is no folder {folder}; name that of hotplate serve --events")

    destination = SegmentFolder(url)
    copied_bytes = 0
    try:
        _check_is_elsewhere(destination, folder)
        recovered = len(recover(folder))  # closes segments of writers that were killed
        paths = segments(folder)

        for start in range(0, len(paths), SHIPPED_AT_ONCE):
            batch = paths[start : start + SHIPPED_AT_ONCE]
            for number, path in enumerate(batch, start + 1):
                if path.exists():  # not shipped by another run since
                    copied_bytes += destination.take(path)
                on_progress(number, len(paths))
            remove_segments(batch, folder)  # keeps what may still hide items
    except OSError as error:
        raise EventsFailed(f"{folder} cannot be read: {error.strerror or error}; see who may write to it") from error
    return Shipped(len(paths), copied_bytes, recovered)


def _check_is_elsewhere(place: SegmentFolder, folder: Path) -> None:
    """Raise ServiceMisused if a place is *folder* by another name: then the segments would be deleted.

    It is if it has a new file of that folder.
    """
    with NamedTemporaryFile(dir=folder, prefix=".ship-") as probe:
        if place.holds(Path(probe.name).name):
            raise ServiceMisused(f"{place.shown} is {folder} itself; name another place with --to")
