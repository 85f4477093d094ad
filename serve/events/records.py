"""What `POST /v1/events` takes and answers, as types, and an event as it is written down.

The body is one JSON object with a list, as of the other routes that take many; Algolia Insights and Amazon Personalize
take events so, too. Lines of JSON would be shorter by a few brackets, and refuse a request in its middle.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hotplate.serve.api.parameters import JSON, Id, Operation
from hotplate.serve.api.problems import bad_parameter
from hotplate.serve.metrics import CLICK, IMPRESSION, Role
from hotplate.stores.errors import StoreMisused
from hotplate.stores.keys import MAX_ID_BYTES, check_id

# One request: its body has no more than 1 MiB either, as all have.
MAX_EVENTS = 1000
# One event: as many as a list has at most.
MAX_ITEMS = 1000

EventType = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,31}$(?!\n)",
        description="`impression`: the items were shown; `click`: they were chosen; or a name of your own, as `buy`.",
    ),
]
Position = Annotated[int, Meta(ge=1, le=100_000, description="The place of the first item in the list, from 1.")]
Time = Annotated[float, Meta(ge=0, lt=1e11, description="When it happened, as Unix time in seconds; by default now.")]
OptionalId = Annotated[str, Meta(max_length=MAX_ID_BYTES)]


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that a user did, or was shown."""

    type: EventType
    user: Id
    items: Annotated[
        tuple[Id, ...], Meta(min_length=1, max_length=MAX_ITEMS, description="The items, in the order of the list.")
    ]
    id: Annotated[
        OptionalId,
        Meta(description="A name for this event alone; of several with the same only one counts, as after a repeat."),
    ] = ""
    release: Annotated[OptionalId, Meta(description="The release that the answer named.")] = ""
    request_id: Annotated[OptionalId, Meta(description="The `X-Request-Id` of the answer.")] = ""
    position: Position | None = None
    time: Time | None = None


class EventsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/events`."""

    events: Annotated[tuple[Event, ...], Meta(min_length=1, max_length=MAX_EVENTS, description="All, or none of them.")]


class EventsAnswer(Struct, frozen=True):
    """How many events are durable: all of the request."""

    durable: int


class WrittenEvent(Struct, frozen=True, omit_defaults=True):
    """An event as its line has it."""

    id: str
    time: float
    type: str
    user: str
    items: tuple[str, ...]
    role: Role
    """The role of its release in the service that took it: live, canary or other."""

    release: str = ""
    request_id: str = ""
    position: int | None = None


EXAMPLE = {
    "events": [
        {"type": IMPRESSION, "user": "42", "items": ["7", "8", "9"], "release": "20261120T064200Z-7f3a"},
        {"type": CLICK, "user": "42", "items": ["8"], "position": 2, "release": "20261120T064200Z-7f3a"},
    ]
}
OPERATIONS = (
    Operation(
        "POST", "/v1/events", "Report what was shown and chosen; answered once it is durable",
        EventsAnswer, (200, 400, 413, 415, 503), (JSON,), body=EventsBody,
    ),
)  # fmt: skip

_decode = msgspec.json.Decoder(EventsBody).decode


def parse_events(body: bytes) -> tuple[Event, ...]:
    """Read the body of a request; a Problem says which event is wrong, and why."""
    try:
        try:
            events = _decode(body).events
        except msgspec.ValidationError as error:
            given = msgspec.json.decode(body)
            if not _has_whole_floats(given):
                raise bad_parameter(_refusal(error)) from None
            events = msgspec.convert(given, EventsBody).events
    except msgspec.ValidationError as error:
        raise bad_parameter(_refusal(error)) from None
    except (ValueError, RecursionError) as error:
        raise bad_parameter(f"the body is not JSON: {error}") from None
    for index, event in enumerate(events):
        _check_ids(event, index)
    return events


def position_of(event: Event) -> int | None:
    """Return the place of an event's first item; what is shown begins with the first place by default."""
    return 1 if event.position is None and event.type == IMPRESSION else event.position


def _has_whole_floats(given: Any) -> bool:  # noqa: ANN401 -- JSON is whatever it is
    """Make positions such as 2.0, in JSON a whole number, too, whole ones; return whether there was any."""
    events = given.get("events") if isinstance(given, dict) else None
    found = False
    for event in events if isinstance(events, list) else ():
        position = event.get("position") if isinstance(event, dict) else None
        if isinstance(position, float) and position.is_integer():
            event["position"] = int(position)
            found = True
    return found


def _refusal(error: msgspec.ValidationError) -> str:
    what, _, place = str(error).partition(" - at `$")
    where = place.rstrip("`").removeprefix(".")
    what = what.replace("Object missing", "it is missing").replace("Object", "it")
    return f"{where or 'the body'} cannot be used: {what[:1].lower()}{what[1:]}"


def _check_ids(event: Event, index: int) -> None:
    """Refuse ids that have too many bytes, as the types count characters."""
    ids = (event.user, event.id, event.release, event.request_id, *event.items)
    if max(map(len, ids)) * 4 <= MAX_ID_BYTES:
        return
    for identifier in filter(None, ids):
        try:
            check_id(identifier)
        except StoreMisused as error:
            raise bad_parameter(f"an id of events[{index}] cannot be used: {error}") from None
