"""aiohttp's protocol behind a connection: the only module that uses names of aiohttp which are not public.

`check_aiohttp` looks for each of them at the start, so another release of aiohttp is an error and not a surprise.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import HttpVersion10, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from hotplate.serve.connections.lane import END
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.problems import CLOSE, Problem

MAX_LINE_BYTES = 8190
# For how long aiohttp reads what still comes of a request that is answered.
LINGER_S = 1.0
# How many headers that come at once are fed one by one.
MAX_PIECES = 64
PRIVATE = (
    "_messages", "_waiter", "_request_count", "_close", "_force_close", "_current_request", "_task_handler",
    "_process_keepalive", "_drain_helper",
)  # fmt: skip

OnError = Callable[[web.BaseRequest, int, BaseException | None, str | None], web.Response]


def check_aiohttp() -> None:
    """Raise ServiceMisused if this release of aiohttp lacks a name that connections need."""
    missing = [name for name in PRIVATE if not hasattr(web.RequestHandler, name)]
    missing += {"_version"} - web.BaseRequest.ATTRS
    if missing:
        raise ServiceMisused(
            f"aiohttp {version('aiohttp')} lacks {', '.join(missing)}, which this release of hotplate needs; "
            "install the release that hotplate's requirements name"
        )


def is_usual(request: web.BaseRequest) -> bool:
    """Return whether a request is of HTTP/1.1, and its client has taken the answers before it."""
    # `request.version`, once read, keeps its value; `wrong_version` may have to change it.
    return request._version is HttpVersion11 and not request.protocol.writing_paused  # noqa: SLF001


def wrong_version(request: web.BaseRequest) -> Problem | None:
    """Return how to refuse another version than ours, and have the request answered in ours."""
    if request._version in (HttpVersion11, HttpVersion10):  # noqa: SLF001 -- as in `is_usual`
        return None
    major, minor = request._version  # noqa: SLF001 -- as in `is_usual`
    answer_in_ours(request)
    status, name = (505, "version-not-supported") if major else (400, "bad-request")
    return Problem(status, name, f"HTTP/1.1 and HTTP/1.0 are spoken here, not HTTP/{major}.{minor}", CLOSE)


def answer_in_ours(request: web.BaseRequest) -> None:
    """Have a request answered in HTTP/1.1, whatever its own version is."""
    request._version = HttpVersion11  # noqa: SLF001 -- aiohttp answers in the version of the request


def until_written(request: web.BaseRequest) -> Awaitable[None]:
    """Wait until the client has taken the answers before a request; raises ConnectionError if it has gone."""
    return request.protocol._drain_helper()  # noqa: SLF001 -- aiohttp has no other way to wait for it


class AiohttpHandler(web.RequestHandler):
    """aiohttp's protocol, fed by a connection; it lives as long as that, from the first byte that is aiohttp's."""

    __slots__ = ("_linger", "_on_error", "owner")

    def __init__(
        self, server: web.Server, owner: asyncio.Protocol, linger: Callable[[], None], on_error: OnError
    ) -> None:
        """Take what answers the requests, what feeds this, and what closes that a little later.

        *on_error* answers what cannot be read, or what failed outside of any handler.
        """
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth, and types it as always there
            keepalive_timeout=0,  # the sweep's
            max_line_size=MAX_LINE_BYTES,
            lingering_time=LINGER_S,
            auto_decompress=False,  # what is small on the wire may be large in memory
        )
        self.owner = owner
        self._linger = linger
        self._on_error = on_error

    def _process_keepalive(self) -> None:
        """Leave idle connections to the sweep."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what cannot be read, or failed outside of any handler."""
        answer_in_ours(request)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun; it cannot become an error any more") from exc
        return self._on_error(request, status, exc, message)

    @property
    def waits(self) -> bool:
        """Whether the next byte begins a request, or goes on with a header: no body is to come, and none is closed."""
        if self._messages or self._close or self._force_close:
            return False
        return self._waiter is not None or self._request_count == 0

    @property
    def has_one_bodyless(self) -> bool:
        """Whether exactly one request waits for its turn, and it is nothing but a header."""
        if len(self._messages) != 1:
            return False
        message, payload = self._messages[0]
        return payload is EMPTY_PAYLOAD and isinstance(message, RawRequestMessage) and not message.upgrade

    @property
    def awaits_body(self) -> bool:
        """Whether a request is being answered whose body is not whole."""
        return self._current_request is not None and not self._current_request.content.is_eof()

    @property
    def keeps(self) -> bool:
        """Whether what comes now is kept until a request is answered, not read to be thrown away."""
        return not self._force_close and (self._current_request is not None or bool(self._messages))

    def feed(self, data: bytes) -> str | None:
        """Take bytes; return what is wrong with the body that is awaited, if they are not a body.

        Such an error would otherwise wait behind the answer to the request that has this body. Each header is fed by
        itself, because aiohttp drops the requests before a malformed one that it reads with them.
        """
        *headers, rest = data.split(END, MAX_PIECES)
        for piece in (*(header + END for header in headers), rest):
            if not piece or not self._feed_piece(piece):
                break
        if self._messages and self.awaits_body:
            error: str | None = getattr(self._messages[-1][0], "message", None)
            return error
        return None

    def _feed_piece(self, piece: bytes) -> bool:
        """Feed at most one header; return whether aiohttp could read it. The connection of an odd request closes."""
        known = len(self._messages)
        self.data_received(piece)
        for place in range(known, len(self._messages)):
            message, payload = self._messages[place]
            if not isinstance(message, RawRequestMessage):
                if place and not self._messages[place - 1][1].is_eof():
                    del self._messages[place - 1]  # it is this request's body that cannot be read
                return False
            if message.upgrade or message.version < HttpVersion11 or hdrs.EXPECT in message.headers:
                self._messages[place] = message._replace(should_close=True), payload
        return True

    def answer_last(self) -> bool:
        """Close once the requests that came are answered; False if none is, or if one is a POST.

        A client that hangs up looks the same, and the work of its batch would be in vain.
        """
        requests = [message.method for message, _ in self._messages if isinstance(message, RawRequestMessage)]
        if self._current_request is not None:
            requests.append(self._current_request.method)
        if not requests or "POST" in requests or self.awaits_body:
            return False
        if not self._messages:
            self.close()
        elif isinstance(last := self._messages[-1][0], RawRequestMessage):
            self._messages[-1] = last._replace(should_close=True), self._messages[-1][1]
        return True

    def end_body(self, problem: Problem) -> None:
        """Give *problem* to what awaits the body of the current request, unless the body is whole."""
        if self._current_request is not None and self.awaits_body:
            self._current_request.content.set_exception(problem)
            self.discard_body()

    def discard_body(self) -> None:
        """Throw away what is left of the current request's body; once it is answered, the connection lingers."""
        if self._current_request is not None:
            self._force_close = True  # `data_received` looks at nothing more, and the end of the task closes nothing
            self._current_request.content.feed_eof()
            if self._task_handler is not None:
                self._task_handler.add_done_callback(lambda _: self._linger())
