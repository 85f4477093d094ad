"""CORS: pages of other origins that may call the service. Keys are in headers, never in cookies."""

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from hotplate.serve.errors import ServiceMisused

# Headers that a page may send and read.
REQUEST_HEADERS = (
    "Authorization, Content-Type, If-None-Match, X-API-Key, X-Request-Id, X-Request-Timeout-Ms, "
    # Added by OpenTelemetry, Sentry and Datadog.
    "baggage, sentry-trace, traceparent, tracestate, "
    "x-datadog-origin, x-datadog-parent-id, x-datadog-sampling-priority, x-datadog-trace-id"
)
EXPOSED_HEADERS = "ETag, Retry-After, Server-Timing, X-Hotplate-Canary, X-Hotplate-Release, X-Request-Id"
# How long browsers cache a preflight.
MAX_AGE_S = 600


class Cors:
    """The allowed origins."""

    def __init__(self, origins: Sequence[str]) -> None:
        """Take origins such as `https://shop.example`; raises ServiceMisused for anything else."""
        for origin in origins:
            if not _is_origin(origin):
                raise ServiceMisused(
                    f"{origin!r} is not an origin; give scheme, host and port, as https://shop.example"
                )
        self._origins = frozenset(origins)

    def preflight(self, request: web.BaseRequest, methods: Iterable[str]) -> web.Response | None:
        """Answer a preflight request, by which a browser asks what a page of another site may send.

        *methods* are those of the route. Returns None for any other request, and for pages of sites that are not
        allowed.
        """
        if (
            request.method != hdrs.METH_OPTIONS
            or request.headers.get(hdrs.ORIGIN) not in self._origins
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers
        ):
            return None

        headers = {
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(MAX_AGE_S),
            # Beacons always have credentials; the service reads no cookies.
            "Access-Control-Allow-Credentials": "true",
        }
        return web.Response(status=204, headers=headers)

    def admit(self, request: web.BaseRequest, response: web.Response) -> None:
        """Add the headers by which a browser shows the response to a page of another site, if that is allowed."""
        # For every response, so that no cache gives that to one site to another.
        vary = response.headers.get(hdrs.VARY)
        response.headers[hdrs.VARY] = "Origin" if vary is None else f"{vary}, Origin"

        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin in self._origins:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 -- raises if it is not a number
    except ValueError:
        return False
    is_plain = parts.hostname is not None and text == f"{parts.scheme}://{parts.netloc}".lower()
    return is_plain and parts.scheme in {"http", "https"} and "@" not in parts.netloc and text.isascii()
