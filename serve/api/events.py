"""`POST /v1/events`: events are answered once they are durable.

The body resembles those of Algolia Insights and Amazon Personalize.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from hotplate.serve.access.auth import credential_of, is_loopback
from hotplate.serve.api.handlers import NO_STORE
from hotplate.serve.api.parameters import checked_id, parse_body
from hotplate.serve.api.router import DeferredResponse
from hotplate.serve.api.routes import DISK_FAILED, DURABLE, EVENT_COUNTS, JSON, LATE, QUEUE_FULL
from hotplate.serve.api.schemas import CLICK, CUSTOM, IMPRESSION, Event, EventsAnswer, EventsBody, NoQuery
from hotplate.serve.consumed.sender import ConsumedSender
from hotplate.serve.consumed.table import Consumed, ConsumedPairs
from hotplate.serve.events.writer import DiskFailed, EventWriter, QueueFull, WrittenEvent
from hotplate.serve.metrics import CONSUMED_PAIRS, DROPPED, Metrics, ReleaseRole
from hotplate.serve.problems import Problem, overloaded
from hotplate.stores.encoding import MAX_ID_BYTES
from hotplate.stores.event_log import line_of

# Maximum wait for a commit.
COMMIT_S = 5.0
HEADERS = {"Content-Type": JSON, "Cache-Control": NO_STORE}
# Retry-After for a full disk, in seconds.
RETRY_DISK_S = "10"

_encode = msgspec.json.Encoder().encode


class EventsHandler:
    """The events handler of one worker."""

    def __init__(
        self,
        writer: EventWriter,
        role_of: Callable[[str], ReleaseRole],
        metrics: Metrics,
        origins: Sequence[str] = (),
        consumed: Consumed | None = None,
        *,
        sender: ConsumedSender | None = None,
        with_keys: bool = False,
    ) -> None:
        """*role_of* returns the role of a release id; pages of *origins* may report without a key.

        Events hide items in *consumed*, which *sender* shares with other services.

        Without *with_keys*, keys are unchecked and admit no other pages.
        """
        self._origins = origins
        self._with_keys = with_keys
        self.writer = writer
        self._role_of = role_of
        self._metrics = metrics
        self._consumed = consumed
        self._sender = sender
        self._prefix = secrets.token_hex(6)
        self._count = count(1)
        self._hiding = set[asyncio.Task[None]]()

    async def report(self, request: web.BaseRequest, _raw_id: str, _query: NoQuery, body: bytes) -> DeferredResponse:
        """`POST /v1/events`: queue impressions and clicks, and answer when they are on disk.

        Returns a deferred response: the router awaits it outside of the limit of running POSTs, so that waiting for
        the disk delays no other request. Raises a Problem (503) if the queue is full.
        """
        if not self._with_keys or credential_of(request.headers) is None:
            _refuse_unasked(request, self._origins)  # a page of another site, unless that is allowed
        events = parse_events(body)

        # The role of each release now: it may have changed when the events are read.
        roles = {release: self._role_of(release) for release in {event.release for event in events}}
        lines = b"".join(self._encode_lines(events, roles))

        try:
            durable = self.writer.append(lines)  # a future, done when they are on disk
        except QueueFull:
            self._count_events(events, QUEUE_FULL)
            raise overloaded("the event queue is full; these events were not written") from None
        return DeferredResponse(lambda: self._answer_when_durable(durable, events, roles))

    async def _answer_when_durable(
        self, durable: asyncio.Future[None], events: Sequence[Event], roles: dict[str, ReleaseRole]
    ) -> web.Response:
        """Wait until events are on disk and consumed items are hidden; count the events, and answer with their number.

        *durable* is done when they are on disk. *roles* has the role of each release that events name. Raises a Problem
        (503) if the disk fails, or takes longer than COMMIT_S. Events that are on disk later, or after the client has
        left, still hide items.
        """
        hiding = asyncio.create_task(self._hide_when_durable(durable, events))
        self._hiding.add(hiding)
        hiding.add_done_callback(self._hiding.discard)
        try:
            async with asyncio.timeout(COMMIT_S):
                await asyncio.shield(hiding)
        except DiskFailed:
            self._count_events(events, DISK_FAILED)
            raise Problem(
                503, "events-not-written", "the disk does not take these events", {"Retry-After": RETRY_DISK_S}
            ) from None
        except TimeoutError:
            self._count_events(events, LATE)
            raise overloaded(
                "writing these events takes too long; they may still be written: retry with the same ids"
            ) from None

        self._count_events(events, DURABLE)
        for event in events:
            if event.type in (IMPRESSION, CLICK):
                self._metrics.count_listed(event.type, roles[event.release], position_of(event), len(event.items))
        return web.Response(body=_encode(EventsAnswer(len(events))), headers=HEADERS)

    async def _hide_when_durable(self, durable: asyncio.Future[None], events: Sequence[Event]) -> None:
        """Hide items that users have consumed, such as bought, once *durable* is done, and tell other services.

        Hides nothing unless the service is configured to. Events of other types hide nothing. Raises DiskFailed.
        """
        await durable
        if self._consumed is None:
            return

        all_pairs = list[ConsumedPairs]()  # of users and consumed items
        for pairs in self._consumed.hidden_by(events):
            forgotten = self._consumed.hide(pairs)
            self._metrics.count_in(CONSUMED_PAIRS, DROPPED, number=forgotten)
            all_pairs.append(pairs)
            await asyncio.sleep(0)  # other requests run: 1000 items take 6 ms

        if self._sender is not None:
            await self._sender.send(all_pairs)

    def _encode_lines(self, events: Sequence[Event], roles: dict[str, ReleaseRole]) -> Iterator[bytes]:
        """Yield a line of the log for each event, in JSON, with an id and a time if the client sent none.

        A time in the future becomes the present. *roles* has the role of each release that events name.
        """
        now = round(time.time(), 3)
        for event in events:
            fields = msgspec.structs.asdict(event) | {
                "id": event.id or f"{self._prefix}{next(self._count):x}",
                "time": now if event.time is None else min(event.time, now),
                "role": roles[event.release],
                "position": position_of(event),
            }
            yield line_of(_encode(WrittenEvent(**fields)))

    def _count_events(self, events: Sequence[Event], outcome: str) -> None:
        for kind, number in Counter(event.type for event in events).items():
            known = kind if kind in (IMPRESSION, CLICK) else CUSTOM
            self._metrics.count_in(EVENT_COUNTS, known, outcome, number=number)


def _refuse_unasked(request: web.BaseRequest, origins: Sequence[str]) -> None:
    """Refuse requests that any web page could make, also by DNS rebinding. JSON makes browsers send a preflight."""
    if request.content_type != JSON:
        raise Problem(415, "not-json", "events without a key take the header Content-Type: application/json")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in origins and not _is_local(origin):
        detail = f"events of pages of {origin[:100]} take a key, or --cors-origin with that origin"
        raise Problem(403, "wrong-origin", detail)


def _is_local(origin: str) -> bool:
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def parse_events(body: bytes) -> tuple[Event, ...]:
    """Parse a body in JSON, and check the ids of its events; raises a Problem (400) that names the event."""
    events = parse_body(body, EventsBody).events
    for index, event in enumerate(events):
        ids = (event.user, event.id, event.release, event.request_id, *event.items)
        # The types above limit characters, of up to 4 bytes, so only long ids are checked.
        if max(map(len, ids)) * 4 > MAX_ID_BYTES:
            for identifier in filter(None, ids):
                checked_id(identifier, f"an id of events[{index}]")
    return events


def position_of(event: Event) -> int | None:
    """Return the position of the first item, by default 1 for an impression."""
    if event.position is None:
        return 1 if event.type == IMPRESSION else None
    return int(event.position)
