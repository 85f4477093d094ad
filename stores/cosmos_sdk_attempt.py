"""One step inside azure-cosmos that every request passes: one attempt, a verified server, and every answer counted.

It stands where the SDK's own retries would. Arguments do not turn those off: 0 counts as unset, and a 503, a 408 and a
lost connection are tried again whatever is set. What is raised here passes all of them.
"""

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from aiohttp import ClientConnectorError
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

from stores.cosmos_answers import Malformed, charge_ru, object_of, refusal_of
from stores.cosmos_errors import CosmosThrottled, CosmosUnavailable, Kind, translated
from stores.cosmos_places import Places, places_of
from stores.cosmos_url import Address
from stores.errors import StoreError
from stores.store import Meter
from stores.wire import Answer

WORDS: dict[Kind, str] = {
    "connect": "cannot be reached",
    "reset": "ended the connection before it answered",
    "malformed": "sent what is no answer",
    "timeout": "did not answer in time",
}
ANSWERS = {(404, 0), (409, 0), (412, 0)}
"""Refusals that the SDK is left to raise: there is no such item, the id is taken, the version has changed."""

MADE_ANEW = 1024
"""Substatus of a 400: the container is another one than when the SDK read its properties."""

OURS = ("request_params", "global_endpoint_manager", "timeout")
"""Options meant for the SDK's step in this place; the transport knows none of them."""


class Told(AzureError):
    """Carries one of our errors through the SDK, which does not try again what it cannot name."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error))
        self.error = error


class OneAttempt(AsyncHTTPPolicy[HttpRequest, AsyncHttpResponse]):
    """The step of one client, as long as that lives."""

    def __init__(self, address: Address, advice: str, meter: Meter) -> None:
        """Take the account, what to do where it does not let us in, and who counts."""
        super().__init__()
        self._shown = address.shown
        self._account = address.endpoint
        self._advice = advice
        self._meter = meter
        self.places: Places | None = None
        """What the account last said of itself; None before the first time."""

        self.outdated = set[str]()
        """Containers that were made anew since the SDK read their properties."""

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
            ours = self.translated(error)
            if isinstance(ours, CosmosUnavailable | CosmosThrottled):
                self._meter.failed(ours.kind)
            if path and isinstance(error, ServiceRequestError):
                raise  # no answer, so the SDK leaves this region, and takes a read to another where there is one
            raise Told(ours) from error
        return response

    def _check(self, answer: Answer, path: str, asked_at: float) -> None:
        if answer.status < 400:
            told = object_of(answer) if answer.body else {}
            if not path:
                self.places = places_of(told, self._account)
            return
        refusal = refusal_of(answer, asked_at)
        what = refusal.status, refusal.substatus
        container, docs, _ = path.partition("/docs")
        serverless = refusal.status == 400 and path.startswith("offers") and "serverless" in refusal.message.lower()
        if serverless or (what in ANSWERS and (docs or refusal.status == 409)):
            return
        if what == (400, MADE_ANEW):
            self.outdated.add(container.rpartition("/")[2])
            raise CosmosUnavailable(f"{self._shown} has this container anew; it is looked at again", "unavailable")
        raise translated(refusal, self._shown, self._advice)

    def translated(self, error: Exception) -> StoreError:
        """Return our error for whatever a call of the SDK raised."""
        match error:
            case Told(error=ours) | (StoreError() as ours):
                return ours
            case Malformed():
                return CosmosUnavailable(f"{self._shown} sent {error}", "malformed")
            case ClientAuthenticationError():
                return CosmosUnavailable(f"{self._shown} does not let us in: {self._advice}", "unauthorized")
        kind = _kind(error)
        return CosmosUnavailable(f"{self._shown} {WORDS[kind]}", kind)


def _kind(error: Exception) -> Kind:
    """Say how a request came to have no answer that can be read."""
    match error:
        case TimeoutError() | ServiceRequestTimeoutError() | ServiceResponseTimeoutError():
            return "timeout"
        case AzureError(inner_exception=ClientConnectorError()):
            return "connect"
        case ServiceRequestError() | ServiceResponseError():
            return "reset"
    return "malformed"


def answer_of(status: int, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """Return an answer of the SDK as one of ours."""
    return Answer(
        status, {name.lower().encode(): value.encode("latin-1", "replace") for name, value in headers.items()}, body
    )


def _body(response: PipelineResponse[HttpRequest, AsyncHttpResponse]) -> bytes:
    body: bytes = response.http_response.body()
    return body
