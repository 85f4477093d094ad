"""What a user did before, out of the events that this service wrote: shown next to the user's list.

There is no index of events by user, so the segments are read, the newest first, for a moment: what is found in that is
shown, and how far back it goes is said.
"""

import asyncio
import time
from pathlib import Path

import msgspec
import orjson

from hotplate.serve.events.records import WrittenEvent
from hotplate.serve.metrics import IMPRESSION
from hotplate.stores.event_log import SUFFIX, SegmentReader

# How many events of a user are shown, and how long is looked for them.
EVENTS, READ_S = 20, 1.0

_decode = msgspec.json.Decoder(WrittenEvent).decode


class UserEvent(msgspec.Struct, frozen=True):
    """One event of a user that is more than being shown a list."""

    type: str
    items: tuple[str, ...]
    at: float
    """As Unix time."""


class History(msgspec.Struct, frozen=True):
    """The latest events of one user, the newest first."""

    events: list[UserEvent]
    complete: bool
    """Whether all events in the folder were looked at, or as many were found as are shown."""


async def history_of(user: str, folder: Path) -> History:
    """Read the latest events of a user in a folder of segments; raises OSError."""
    return await asyncio.to_thread(_read, user, folder)


def _read(user: str, folder: Path) -> History:
    deadline, events, named = time.monotonic() + READ_S, list[UserEvent](), orjson.dumps(user)
    # A segment that is being written has a dot before its name; what is torn at its end is left out.
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(SUFFIX)), key=_age, reverse=True)
    for path in paths:
        if time.monotonic() > deadline:
            return History(events[:EVENTS], complete=False)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # it was closed, or shipped, in between
        events += _of(user, named, data)
        if len(events) >= EVENTS:
            break
    return History(sorted(events, key=lambda event: -event.at)[:EVENTS], complete=True)


def _age(path: Path) -> str:
    return path.name.lstrip(".")


def _of(user: str, named: bytes, data: bytes) -> list[UserEvent]:
    """Return the events of a user in one segment, impressions left out."""
    written = (_decode(event) for event in SegmentReader(data) if named in event)
    own = (each for each in written if each.user == user and each.type != IMPRESSION)
    return [UserEvent(each.type, each.items, each.time) for each in own]
