"""The way to one endpoint of an account: requests go out signed, and what comes back is counted and understood."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from stores.cosmos.answers import Malformed, charge_ru, refusal_of
from stores.cosmos.driver import DEADLINE_S
from stores.cosmos.errors import UNANSWERED, CosmosThrottled, CosmosUnavailable, translated
from stores.cosmos.rest.requests import Requests
from stores.cosmos.signing import Signer
from stores.errors import StoreError
from stores.http1 import RequestFailed, Response, Transport
from stores.store import Observer

T = TypeVar("T")


class Judge:
    """Turns what comes back into our errors, and tells the meter; lives as long as its driver."""

    def __init__(self, shown: str, meter: Observer, signer: Signer, clock: Callable[[], float]) -> None:
        self.shown = shown
        self._meter = meter
        self._signer = signer
        self._clock = clock

    def charge(self, answer: Response) -> float:
        """Tell the meter of an answer's charge, and return it. Raises Malformed."""
        ru = charge_ru(answer)
        self._meter.charged(ru)
        return ru

    def count(self, error: CosmosUnavailable) -> None:
        """Tell the meter of an attempt that failed before anything could be asked."""
        self._meter.failed(error.kind)

    def unanswered(self, failure: RequestFailed) -> CosmosUnavailable:
        """Count and translate an attempt without an answer."""
        self._meter.failed(failure.kind)
        return CosmosUnavailable(f"{self.shown} {UNANSWERED[failure.kind]}{_why(failure.__cause__)}", failure.kind)

    def nonsense(self, error: Malformed) -> CosmosUnavailable:
        """Count and translate an answer that makes no sense."""
        self._meter.failed("malformed")
        return CosmosUnavailable(f"{self.shown} sent {error}", "malformed")

    def understood(self, read: Callable[[], T]) -> T:
        """Return what *read* makes of an answer; raises CosmosUnavailable, and counts it, where that is Malformed."""
        try:
            return read()
        except Malformed as error:
            raise self.nonsense(error) from error

    def refused(self, answer: Response) -> StoreError:
        """Count and translate an answer that is no success."""
        try:
            self.charge(answer)
            error = translated(refusal_of(answer, self._clock()), self.shown, self._signer.advice)
        except Malformed as nonsense:
            return self.nonsense(nonsense)
        if isinstance(error, CosmosUnavailable | CosmosThrottled):
            self._meter.failed(error.kind)
        return error


class Endpoint:
    """One server of the account; lives as long as the account names it."""

    def __init__(self, url: str, requests: Requests, transport: Transport, signer: Signer, judge: Judge) -> None:
        self.url = url
        self.requests = requests
        self.transport = transport
        self._signer = signer
        self._judge = judge

    async def ask(
        self,
        verb: str,
        kind: str,
        link: str,
        path: str,
        *,
        headers: bytes = b"",
        body: bytes = b"",
        timeout_s: float = DEADLINE_S,
    ) -> Response:
        """Return the answer to one request, whatever its status; raises CosmosUnavailable where there is none.

        A token that is refused is renewed, and the request sent again, once.
        """
        due_s = asyncio.get_running_loop().time() + timeout_s
        await self.ready(timeout_s)
        make = partial(self.requests.ask, verb, kind, link, path, headers=headers, body=body)
        answer = await self.send(make, due_s, again=verb == "GET")
        if answer.status == 401 and await self.renewed(answer, due_s):
            answer = await self.send(make, due_s)
        return answer

    async def send(self, make: Callable[[], bytes], due_s: float, *, again: bool = False) -> Response:
        """Send what *make* makes; *again*, once, where it met a connection that had ended before it was needed."""
        loop = asyncio.get_running_loop()
        try:
            return await self.transport.request(make(), due_s - loop.time())
        except RequestFailed as failure:
            error = self._judge.unanswered(failure)
            if not failure.stale or not again:
                raise error from failure
        return await self.send(make, due_s)

    async def ready(self, timeout_s: float) -> None:
        """Get what requests are signed with, where that is not at hand; raises CosmosUnavailable."""
        if self._signer.lacks():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._signer.obtain()
            except TimeoutError:
                late = CosmosUnavailable(f"{self._judge.shown}: Entra ID gave no token in time", "timeout")
                self._judge.count(late)
                raise late from None
            except CosmosUnavailable as error:
                self._judge.count(error)
                raise

    async def renewed(self, refused: Response, due_s: float) -> bool:
        """Get another token in the place of one that was refused; False where there is none, or none in time."""
        try:
            async with asyncio.timeout_at(due_s):
                renewed = await self._signer.renew()
        except TimeoutError:
            return False
        if renewed:
            self._judge.refused(refused)  # counted, as it is not the answer that the caller sees
            self.requests.forget()
        return renewed


def _why(cause: BaseException | None) -> str:
    """Return what the system says of a connection that could not be made, as the end of a sentence."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f": its certificate is not trusted ({cause.verify_message}); name who vouches for it with ca="
    return f": {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else ""
