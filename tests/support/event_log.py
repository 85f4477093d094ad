"""What the tests of events share: bodies to send, and all that a folder of segments holds."""

import json
from pathlib import Path
from typing import Any

from hotplate.stores.event_log import SUFFIX, SegmentReader


def body(*ids: str, kind: str = "click", **more: object) -> bytes:
    """Return a request with one event for each id, of the user and the item of that name."""
    events = [
        {"type": kind, "id": event_id, "user": f"u{event_id}", "items": [f"i{event_id}"], **more} for event_id in ids
    ]
    return json.dumps({"events": events}).encode()


def written(folder: Path) -> list[dict[str, Any]]:
    """Return all events in *folder*, those of segments that are not closed, too."""
    events = list[dict[str, Any]]()
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.name.removeprefix(".")):
        events += map(json.loads, SegmentReader(path.read_bytes()))
    return events


def ids(folder: Path) -> set[str]:
    return {event["id"] for event in written(folder)}
