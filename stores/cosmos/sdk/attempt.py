"""One step inside azure-cosmos that every request passes: one attempt, a verified server, and every answer counted.

It stands where the SDK's own retries would. Arguments do not turn those off: 0 counts as unset, and a 503, a 408 and a
lost connection are tried again whatever is set. What is raised here passes all of them.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientConnectorError, ClientResponseError
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncHTTPPolicy
from azure.core.pipeline.transport import AsyncHttpResponse, HttpRequest

from stores.cosmos.answers import Malformed, charge_ru, is_absent, object_of, refusal_of
from stores.cosmos.errors import UNANSWERED, CosmosThrottled, CosmosUnavailable, Kind, shown, translated
from stores.errors import StoreError
from stores.http1 import Response
from stores.store import Observer

ANSWERS = (409, 412)
"""Refusals that the SDK is left to raise: the id is taken, the version has changed."""

STALE = {(400, 1024), (404, 1002)}
"""The container is another one than when the SDK read its properties, or began to keep the session's tokens."""

OURS = ("request_params", "global_endpoint_manager", "timeout")
"""Options meant for the SDK's step in this place; the transport knows none of them."""


class Told(AzureError):
    """Carries one of our errors through the SDK, which does not try again what it cannot name."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error))
        self.error = error


class OneAttempt(AsyncHTTPPolicy[HttpRequest, AsyncHttpResponse]):
    """The step of one client, as long as that lives."""

    def __init__(self, where: str, advice: str, meter: Observer, learnt: Callable[[dict[str, Any]], None]) -> None:
        """Take the store's URL without secrets, what to do where it does not let us in, and who counts.

        *learnt* hears whatever the account says of itself.
        """
        super().__init__()
        self._where = where
        self._advice = advice
        self._meter = meter
        self._learnt = learnt
        self.stale = False
        """Whether what the client remembers is no longer so, and another has to take its place."""

    async def send(self, request: PipelineRequest[HttpRequest]) -> PipelineResponse[HttpRequest, AsyncHttpResponse]:
        """Pass a request on and look at its answer; raises Told for one that it cannot mean."""
        options = request.context.options
        for name in OURS:
            options.pop(name, None)
        options["connection_verify"] = True  # the SDK says False, unasked, for localhost and 127.0.0.1
        asked_at, path = time.time(), urlsplit(request.http_request.url).path.strip("/")
        try:
            response: PipelineResponse[HttpRequest, AsyncHttpResponse] = await self.next.send(request)
            answer = answer_of(response.http_response.status_code, response.http_response.headers, _body(response))
            self._meter.charged(charge_ru(answer))
            self._check(answer, path, asked_at)
        except (AzureError, Malformed, StoreError) as error:
            ours = meaning(error, self._where, self._advice)
            if isinstance(ours, CosmosUnavailable | CosmosThrottled):
                self._meter.failed(ours.kind)
            raise Told(ours) from error
        return response

    def _check(self, answer: Response, path: str, asked_at: float) -> None:
        if answer.status < 400:
            told = object_of(answer) if answer.body else {}
            if not path:
                self._learnt(told)
            return
        if answer.status in ANSWERS or ("/docs" in path and is_absent(answer)):
            return
        refusal = refusal_of(answer, asked_at)
        what = refusal.status, refusal.substatus
        if refusal.status == 400 and path.startswith("offers") and "serverless" in refusal.message.lower():
            return
        if what in STALE:
            self.stale = True
            raise CosmosUnavailable(f"{self._where} has this container anew; it is looked at again", "unavailable")
        raise translated(refusal, self._where, self._advice)


def meaning(error: Exception, where: str, advice: str = "") -> StoreError:
    """Return our error for whatever the SDK raised; *where* and *advice* as for `translated`."""
    match error:
        case Told(error=ours) | (StoreError() as ours):
            return ours
        case Malformed():
            return CosmosUnavailable(f"{where} sent {error}", "malformed")
        case ClientAuthenticationError():
            return CosmosUnavailable(f"{where} does not let us in: {advice} ({shown(str(error))})", "unauthorized")
    kind = _kind(error)
    return CosmosUnavailable(f"{where} {UNANSWERED[kind]}", kind)


def _kind(error: Exception) -> Kind:
    """Say how a request came to have no answer that can be read."""
    match error:
        case TimeoutError() | ServiceRequestTimeoutError() | ServiceResponseTimeoutError():
            return "timeout"
        case AzureError(inner_exception=ClientConnectorError()):
            return "connect"
        case AzureError(inner_exception=ClientResponseError()):
            return "malformed"
        case ServiceRequestError() | ServiceResponseError():
            return "reset"
    return "malformed"


def answer_of(status: int, headers: Mapping[str, str], body: bytes = b"") -> Response:
    """Return an answer of the SDK as one of ours."""
    head = "".join(f"\r\n{name}:{value}" for name, value in headers.items()) + "\r\n\r\n"
    return Response(status, head.encode("latin-1", "replace"), body)


def _body(response: PipelineResponse[HttpRequest, AsyncHttpResponse]) -> bytes:
    body: bytes = response.http_response.body()
    return body
