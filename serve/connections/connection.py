"""One connection: counts and times what comes, and has it answered by the fast lane or by aiohttp."""

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Protocol, cast

from hotplate.serve.api.parameters import unreadable
from hotplate.serve.connections.adapter import AiohttpHandler
from hotplate.serve.connections.lane import END, PENDING, Lane
from hotplate.serve.connections.limits import ConnectionRegistry, CountedConnection
from hotplate.serve.connections.refusals import AnswerWriter
from hotplate.serve.metrics import Metrics
from hotplate.serve.problems import CLOSE, Problem, overloaded

# What is not counted if it comes at once.
SMALL = 4096
# How much is read behind a request while the fast lane waits for a store.
BEHIND_BYTES = 65_536
# What a slow reader must take in `Limits.write_s`, and how long it has for it if answers fill half of their room.
WRITE_STEP_BYTES = 65_536
CROWDED_WRITE_S = 1.0


class Front(Protocol):
    """What a server shares with its connections."""

    registry: ConnectionRegistry
    writer: AnswerWriter
    metrics: Metrics
    lane: Lane | None

    def handler_for(self, connection: asyncio.Protocol, linger: Callable[[], None]) -> AiohttpHandler:
        """Bring in aiohttp for a connection, which *linger* closes a little later."""


class Connection(CountedConnection):
    """A protocol of asyncio that costs no timer and, until aiohttp is needed, nothing of aiohttp."""

    __slots__ = (
        "_awaits", "_behind", "_header_bytes", "_is_behind", "_is_ended", "_is_over", "_is_quiet", "_lane",
        "_opened_at", "_queued", "_server", "_stalled", "accepting", "handler", "since",
    )  # fmt: skip

    def __init__(self, server: Front, refusal: str = "") -> None:
        super().__init__(server.registry, refusal)
        self.handler: AiohttpHandler | None = None
        self.accepting: asyncio.Task[object] | None = None
        """What brings it about: with TLS until the handshake is done."""
        self.since = self._opened_at = monotonic()
        """When the newest request began, or the turn of one that came behind another."""
        self._server = server
        self._lane = server.lane
        self._is_quiet = not refusal
        """Whether aiohttp surely waits for the beginning of a request once it has answered: it was fed nothing yet, or
        what it was fed last was the end of one header and no more, and of a request without a body."""
        self._is_behind = False
        """Whether something came while a request was being answered."""
        self._is_ended = False
        """Whether the client sends no more."""
        self._is_over = False
        """Whether nothing more is looked at."""
        self._awaits = False
        self._behind = list[bytes]()
        self._header_bytes = 0
        self._queued = 0
        self._stalled = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._registry.bytes_in_flight -= self._queued
        self._queued = 0
        self.hold(-self._held)
        self.is_open = False
        self._registry.remove(self)
        if self.handler is not None:
            self.handler.connection_lost(exc)

    def eof_received(self) -> bool:
        """Answer what a client that sends no more has requested, and close; a POST's client is taken to have gone."""
        self._is_ended = True
        if not self.transport.can_write_eof():  # TLS ends in both directions at once
            return False
        return self._awaits or (self.handler is not None and self.handler.answer_last())

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        handler = self.handler
        if self._awaits:  # the next request begins when this one is answered
            self._behind.append(data)
            self._keep(len(data))
            if self._held > BEHIND_BYTES:
                self.transport.pause_reading()
        elif handler is None or handler.waits:
            if not self._header_bytes:
                self.since = now = monotonic()
                self._is_behind = False
                if self._held:
                    self.hold(-self._held)
                if self._is_quiet and self._is_answered(data, now):
                    return
            self._feed_header(data)
        else:
            self._is_quiet, self._is_behind = False, True
            if handler.keeps:
                self._keep(len(data))
            if (error := handler.feed(data)) is not None:
                handler.end_body(unreadable(400, error))

    def _is_answered(self, data: bytes, now: float) -> bool:
        if self._lane is None or self._queued:
            return False
        answer = self._lane.answer(data, now, self, self._deliver)
        if answer is None:
            return False
        if answer is PENDING:
            self._awaits = True
        else:
            self.transport.write(answer)
        return True

    def _deliver(self, answer: bytes) -> None:
        """Send the answer of the fast lane to a request, and look at what has come since."""
        self._awaits = False
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        if self._behind:
            behind, self._behind = self._behind, []
            self.transport.resume_reading()
            for data in behind:
                self.data_received(data)
        if self._is_ended and not self._awaits and not (self.handler is not None and self.handler.answer_last()):
            self.transport.close()

    def _feed_header(self, data: bytes) -> None:
        """Feed aiohttp what begins a request, or goes on with its header."""
        if self.refusal:
            self._refuse(overloaded("there are more connections than can be served"), data=data)
        if self._is_over or self.transport.is_closing():
            return
        if self.handler is None:
            self.handler = self._server.handler_for(self, self.linger)
            self.handler.connection_made(self.transport)
        if len(data) > SMALL and self._is_too_large(data):
            return
        self.handler.feed(data)
        is_header = data.endswith(END) and data.find(END) == len(data) - len(END)
        self._is_quiet = is_header and self.handler.has_one_bodyless
        self._header_bytes = self._header_bytes + len(data) if self.handler.waits else 0
        if self._header_bytes:
            self._is_too_large(b"")

    def begin_turn(self) -> None:
        """Note that the turn of the next request has come."""
        if self._is_behind:
            self.since = monotonic()

    def _is_too_large(self, data: bytes) -> bool:
        """Refuse a header that is too large with what comes now; count what comes with a header."""
        self._keep(len(data))
        limit = self._registry.limits.header_bytes
        if self._header_bytes <= limit and (len(data) <= limit or END in data[: limit + len(END)]):
            return False
        problem = Problem(431, "large-header", "the header of the request is too large")
        self._refuse(problem, "large_header", data)
        return True

    def _keep(self, count: int) -> None:
        """Count bytes that came; refuse or cut what there is no room for."""
        self.hold(count)
        if self._registry.is_full:
            if self.handler is not None and self.handler.awaits_body:
                self.handler.end_body(self._server.writer.no_room())
            elif self._queued or self._awaits:  # what comes behind an answer that is not read, or not there
                self._server.metrics.count_shed("slow_reader")
                self.transport.abort()

    def _refuse(self, problem: Problem, reason: str = "", data: bytes = b"") -> None:
        """Say why this connection is closed, and close it once its client has had the time to read that."""
        if self._is_over:
            return
        self._is_over, self._is_quiet = True, False
        self.transport.write(self._server.writer.refuse(problem, reason, monotonic() - self.since, data))
        if self.handler is not None:
            self.handler.close()  # what comes from now on is not looked at
        self.linger()

    def linger(self) -> None:
        """Say that nothing more comes, and close once the client has had the time to read what came."""
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self._registry.linger(self)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Note that the client does not take its answers as fast as they come; aiohttp waits before the next."""
        self._queued = self.transport.get_write_buffer_size()
        self._stalled = monotonic()
        self._registry.bytes_in_flight += self._queued
        if self.handler is not None:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has taken its answers."""
        self._registry.bytes_in_flight -= self._queued
        self._queued = 0
        if self.handler is not None:
            self.handler.resume_writing()

    def close_if_idle(self) -> None:
        """Close if aiohttp has seen nothing of it."""
        if self.handler is None and self.is_open:
            self.transport.close()

    def check(self, now: float) -> None:
        """Close the connection if it has taken too long for what it is at."""
        handler, age_s, limits = self.handler, now - self.since, self._registry.limits
        if self._queued:
            self._check_reader(now)
        elif self.idle_since() < inf:
            if self._header_bytes and age_s > limits.header_s:
                detail = "the header of the request did not come in time"
                self._refuse(Problem(408, "slow-header", detail), "slow_header")
            elif age_s > limits.idle_s or (self.since == self._opened_at and age_s > limits.silent_s):
                self.transport.close()
            else:
                self.hold(-self._held)
        elif handler is not None and handler.awaits_body and age_s > limits.body_s:
            self._server.metrics.count_shed("slow_body")
            handler.end_body(Problem(408, "slow-body", "the body of the request did not come in time", CLOSE))

    def idle_since(self) -> float:
        """Return since when it has waited for a whole request; inf while there is one to answer."""
        waits = self.handler is None or self.handler.waits
        return self.since if waits and not self._awaits and not self._queued else inf

    def give_way(self) -> None:
        """Close the connection at once, also in its handshake."""
        if self.is_open:
            self.transport.abort()
        elif self.accepting is not None:
            self.accepting.cancel()

    def _check_reader(self, now: float) -> None:
        """Cut a client that takes nothing of its answers; soon, if such answers fill half of their room."""
        limits = self._registry.limits
        is_crowded = self._registry.bytes_in_flight > limits.bytes_in_flight // 2
        queued = self.transport.get_write_buffer_size()
        if queued <= self._queued - WRITE_STEP_BYTES:
            self._registry.bytes_in_flight += queued - self._queued
            self._queued, self._stalled = queued, now
        elif now - self._stalled > min(limits.write_s, CROWDED_WRITE_S if is_crowded else inf):
            self._server.metrics.count_shed("slow_reader")
            self.transport.abort()
