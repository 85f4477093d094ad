"""What a user did before: read out of the segments of events, open and closed ones, the newest first."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from hotplate.serve.console.history import EVENTS, history_of
from hotplate.serve.events.records import WrittenEvent
from hotplate.serve.metrics import CLICK, IMPRESSION, Role
from hotplate.stores.event_log import Segment, line_of

ROLE: Role = get_args(Role)[0]


def event(user: str, item: str, at: float, kind: str = CLICK) -> bytes:
    written = WrittenEvent(id=f"{user}-{at}", time=at, type=kind, user=user, items=(item,), role=ROLE)
    return line_of(msgspec.json.encode(written))


def written(folder: Path, events: Sequence[bytes]) -> Segment:
    segment = Segment(folder)
    segment.append(events)
    return segment


async def test_the_latest_events_of_a_user_are_found_and_what_was_shown_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, [event("42", "a", 1), event("7", "b", 2), event("42", "c", 3, IMPRESSION)]).close()
    still_open = written(tmp_path, [event("42", "d", 4, "buy"), event('"42', "e", 5)])
    found = await history_of("42", tmp_path)
    assert [(event.type, event.items, event.at) for event in found.events] == [("buy", ("d",), 4), (CLICK, ("a",), 1)]
    assert found.complete
    assert [event.items for event in (await history_of('"42', tmp_path)).events] == [("e",)]
    still_open.close()


async def test_no_more_is_read_than_is_shown(tmp_path: Path) -> None:
    now = time.time()
    written(tmp_path, [event("42", str(number), now + number) for number in range(2 * EVENTS)]).close()
    found = await history_of("42", tmp_path)
    assert [event.items[0] for event in found.events] == [str(number) for number in range(EVENTS, 2 * EVENTS)][::-1]
