"""`POST /v1/events`: events are read, written, and counted once they are durable, which is when they are answered."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count

import msgspec
from aiohttp import web

from hotplate.serve.access.auth import credential_of
from hotplate.serve.api.bodies import read_body
from hotplate.serve.api.handlers import NO_STORE
from hotplate.serve.api.parameters import JSON, NoQuery, QueryParser
from hotplate.serve.api.problems import Problem, overloaded
from hotplate.serve.events.records import Event, EventsAnswer, WrittenEvent, parse_events, position_of
from hotplate.serve.events.writer import DiskFailed, EventWriter, QueueFull
from hotplate.serve.metrics import CLICK, CUSTOM, DISK_FAILED, DURABLE, IMPRESSION, LATE, QUEUE_FULL, Metrics, Role
from hotplate.stores.event_log import line_of

# How long a request waits for its commit: a disk that takes longer will be as slow for the next.
COMMIT_S = 5.0
QUERY = QueryParser(NoQuery, "POST /v1/events")
HEADERS = {"Content-Type": JSON, "Cache-Control": NO_STORE}
# How long callers wait before they try again what a full disk refused, in seconds.
RETRY_DISK_S = "10"

_encode = msgspec.json.Encoder().encode


class UnsettledResponse(web.Response):
    """The answer to work that others do: known once `settle` returns it, and awaited if it takes no one's turn."""

    def __init__(self, settle: Callable[[], Awaitable[web.Response]]) -> None:
        super().__init__()
        self.settle = settle


async def settled(work: Awaitable[web.Response]) -> web.Response:
    """Do work, and wait for the answer if that is not known yet."""
    response = await work
    return await response.settle() if isinstance(response, UnsettledResponse) else response


class EventsHandler:
    """The handler of one worker."""

    def __init__(self, writer: EventWriter, role_of: Callable[[str], Role], metrics: Metrics) -> None:
        """Take the writer, and what says what a release is for this service."""
        self._writer = writer
        self._role_of = role_of
        self._metrics = metrics
        self._prefix = secrets.token_hex(6)
        self._count = count(1)

    async def report(self, request: web.BaseRequest, _: str, raw_query: str) -> web.Response:
        """`POST /v1/events` with `{"events": [{"type": "click", "user": "42", "items": ["7"], …}]}`."""
        QUERY.parse(raw_query)
        _refuse_unasked(request)
        events = parse_events(await read_body(request))
        roles = {release: self._role_of(release) for release in {event.release for event in events}}
        lines = b"".join(self._lines(events, roles))
        try:
            durable = self._writer.append(lines)
        except QueueFull:
            self._count_events(events, QUEUE_FULL)
            raise overloaded("more events come than can be written; these were not") from None
        return UnsettledResponse(lambda: self._settle(durable, events, roles))

    async def _settle(
        self, durable: asyncio.Future[None], events: Sequence[Event], roles: dict[str, Role]
    ) -> web.Response:
        """Wait until events are durable, and count them; a Problem if they may not be."""
        try:
            async with asyncio.timeout(COMMIT_S):
                await durable
        except DiskFailed:
            self._count_events(events, DISK_FAILED)
            raise Problem(
                503, "events-not-written", "the disk does not take these events", {"Retry-After": RETRY_DISK_S}
            ) from None
        except TimeoutError:
            self._count_events(events, LATE)
            raise overloaded("it takes too long to write these events; they may be: keep their ids") from None
        self._count_events(events, DURABLE)
        for event in events:
            if event.type in (IMPRESSION, CLICK):
                self._metrics.count_listed(event.type, roles[event.release], position_of(event), len(event.items))
        return web.Response(body=_encode(EventsAnswer(len(events))), headers=HEADERS)

    def _lines(self, events: Sequence[Event], roles: dict[str, Role]) -> Iterator[bytes]:
        """Yield the line of each event; one without an id gets one, and one without a time this one."""
        now = round(time.time(), 3)
        for event in events:
            yield line_of(
                _encode(
                    WrittenEvent(
                        event.id or f"{self._prefix}{next(self._count):x}",
                        now if event.time is None else event.time,
                        event.type,
                        event.user,
                        event.items,
                        roles[event.release],
                        event.release,
                        event.request_id,
                        position_of(event),
                    )
                )
            )

    def _count_events(self, events: Sequence[Event], outcome: str) -> None:
        for kind, number in Counter(event.type for event in events).items():
            self._metrics.count_event(kind if kind in (IMPRESSION, CLICK) else CUSTOM, outcome, number)


def _refuse_unasked(request: web.BaseRequest) -> None:
    """Refuse what a web page of any site can have a browser send: before JSON, or a key, the browser asks us."""
    if request.content_type != JSON and credential_of(request.headers) is None:
        raise Problem(415, "not-json", "events without a key take the header Content-Type: application/json")
