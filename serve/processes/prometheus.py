"""The console's curves of an hour for all pods: read from a Prometheus that scrapes each of them."""

import asyncio
import logging
import math
import re
import time
from typing import Literal

import msgspec
from aiohttp import ClientError, ClientSession
from msgspec import Struct

from hotplate.serve.access.auth import SCOPES_BY_ROUTE
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.processes.figures import LONG_HISTORY_S, JsonObject
from hotplate.stores.urls import parameters, redacted, split

log = logging.getLogger(__name__)

# How long an answer may take and be, and how long it is good for: one is for all pages.
DEADLINE_S = 2.0
MAX_BYTES = 1 << 18
FRESH_S = 10.0
# The monitors in k8s/monitoring scrape as often; the window is what Grafana's $__rate_interval is for them.
EVERY_S = 30
WINDOW = "2m"
# The requests that the figures of one service count.
OF_LISTS = f'route!~"{"|".join(route for route, scope in SCOPES_BY_ROUTE.items() if scope is None)}"'
_MATCHER = r'[a-zA-Z_]\w*(?:=~|!~|!=|=)"(?:[^"\\]|\\.)*"'
MATCHERS = re.compile(f"{_MATCHER}(?:,{_MATCHER})*")

ALL_PODS = "All pods, from Prometheus; the figures above the curves are of this pod."
NOT_NAMED: JsonObject = {"says": "This pod only; name a Prometheus with --prometheus to see all.", "points": None}


class _Series(Struct, frozen=True):
    metric: dict[str, str]
    values: list[tuple[float, str]]
    """Of each step with a value: the Unix time, and the value as text."""


class _RangeData(Struct, frozen=True):
    resultType: Literal["matrix"]  # noqa: N815 -- the name in the HTTP API
    result: list[_Series]


class _RangeAnswer(Struct, frozen=True):
    """The answer to a range query, as Prometheus documents it."""

    status: Literal["success"]
    data: _RangeData


_decode = msgspec.json.Decoder(_RangeAnswer).decode


class _NoHour(Exception):
    """Prometheus gave no curves; the text says why, without its URL."""


class Prometheus:
    """Reads the curves of all pods; lives as long as the admin process."""

    def __init__(self, url: str) -> None:
        """Take the URL, with a user and a password if it needs them; raises ServiceMisused or StoreMisused."""
        self._shown = redacted(url)
        parts = split(url)
        given = parameters(parts, ("match",), self._shown)
        try:
            is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of the port
            is_server = False
        if not is_server:
            raise ServiceMisused(f"--prometheus {self._shown} is not the URL of a server, as http://prometheus:9090 is")
        if "match" in given and not MATCHERS.fullmatch(given["match"]):
            raise ServiceMisused(f'the parameter match of {self._shown} takes matchers, as match=namespace="shop"')
        self._url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/api/v1/query_range"
        self._curves = expressions(given.get("match"))
        self._reading = asyncio.Lock()
        self._hour, self._fresh_until = NOT_NAMED, -math.inf
        self._failure: str | None = None

    async def hour(self) -> JsonObject:
        """Return the curves, and whose they are in a sentence; without points if Prometheus gives none."""
        async with self._reading:
            if time.monotonic() >= self._fresh_until:
                self._hour = await self._read()
                self._fresh_until = time.monotonic() + FRESH_S
            return self._hour

    async def _read(self) -> JsonObject:
        failure, points = None, None
        try:
            now = int(time.time())
            points = await self._points(now - now % EVERY_S)  # as servers that cache align their points
        except _NoHour as error:
            failure = str(error)
        if failure != self._failure:
            log.warning("%s: %s", self._shown, failure or "Prometheus answers again")
            self._failure = failure
        says = ALL_PODS if failure is None else f"{failure}: this pod only."
        return {"says": says, "seconds": LONG_HISTORY_S, "every_s": EVERY_S, "points": points}

    async def _points(self, now: int) -> list[JsonObject]:
        """Return a point of each curve for each step of the hour; None where Prometheus has no value."""
        steps = range(now - LONG_HISTORY_S + EVERY_S, now + 1, EVERY_S)
        try:
            answer = _decode(await self._fetch(steps))
            curves = {
                each.metric.get("curve"): {at: _number(value) for at, value in each.values}
                for each in answer.data.result
            }
        except TimeoutError:
            raise _NoHour(f"Prometheus does not answer (not in {DEADLINE_S:g} s)") from None
        except ClientError:
            raise _NoHour("Prometheus does not answer (no connection)") from None
        except (ValueError, RecursionError, msgspec.DecodeError):
            raise _NoHour("Prometheus does not answer (not as to a range query)") from None
        if not curves:
            raise _NoHour("Prometheus has no requests of hotplate in this hour")
        return [{name: curves.get(name, {}).get(at) for name in self._curves} for at in steps]

    async def _fetch(self, steps: range) -> bytes:
        named = (f'label_replace({found}, "curve", "{name}", "", "")' for name, found in self._curves.items())
        query = {"query": " or ".join(named), "timeout": f"{DEADLINE_S:g}s"}
        query |= {"start": str(steps[0]), "end": str(steps[-1]), "step": str(steps.step)}
        plain = {"Accept-Encoding": "identity"}  # what is compressed can be of any size once it is not
        async with (
            asyncio.timeout(DEADLINE_S),
            ClientSession(auto_decompress=False, headers=plain) as session,
            session.get(self._url, params=query, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise _NoHour(f"Prometheus does not answer (status {response.status})")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise _NoHour(f"Prometheus does not answer (more than {MAX_BYTES} bytes)")
        return bytes(body)


def expressions(match: str | None) -> dict[str, str]:
    """Return the PromQL expression of each curve, over all series or those that *match* selects."""
    chosen = OF_LISTS if match is None else f"{OF_LISTS},{match}"
    requests = f"rate(hotplate_http_request_duration_seconds_count{{{chosen}}}[{WINDOW}])"
    failed = f'rate(hotplate_http_request_duration_seconds_count{{{chosen},code=~"5.."}}[{WINDOW}])'
    buckets = f"rate(hotplate_http_request_duration_seconds_bucket{{{chosen}}}[{WINDOW}])"
    return {
        "rate": f"sum({requests})",
        "failed": f"sum({failed}) or 0 * sum({requests})",  # a status that has not occurred has no series
        "p99": f"1000 * histogram_quantile(0.99, sum by (le) ({buckets}))",
    }


def _number(text: str) -> float | None:
    """Return a value; None for the quantile of nothing, which is NaN."""
    value = float(text)
    return round(value, 3) if math.isfinite(value) else None
