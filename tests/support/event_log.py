"""What the tests of events share: bodies to send, and all that a folder of segments holds."""

import json
from pathlib import Path
from typing import Any

from hotplate.stores.event_log import SUFFIX, SegmentReader


def body(*ids: str, kind: str = "click", **more: object) -> bytes:
    """Return a request with one event for each id, of the user and the item of that name."""
    events = [{"type": kind, "id": each, "user": f"u{each}", "items": [f"i{each}"], **more} for each in ids]
    return json.dumps({"events": events}).encode()


def written(folder: Path) -> list[dict[str, Any]]:
    """Return all events in *folder*, those of segments that are not closed, too."""
    found = list[dict[str, Any]]()
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.name.removeprefix(".")):
        found += map(json.loads, SegmentReader(path.read_bytes()))
    return found


def ids(folder: Path) -> set[str]:
    return {event["id"] for event in written(folder)}
