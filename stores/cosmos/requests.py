"""Requests to one endpoint of an account: their bytes, signed and dated, and how they are sent.

The protocol is https://learn.microsoft.com/rest/api/cosmos-db; only headers that a response depends on are sent.
"""

import asyncio
import re
from collections.abc import Callable
from email.utils import formatdate
from functools import partial

from stores.cosmos.auth import Signer
from stores.cosmos.errors import CosmosUnavailable, ResponseTranslator
from stores.errors import StoreMisused
from stores.http1 import RequestFailed, Response, Transport

# When any operation but a lookup is given up; the service itself ends operations then.
DEADLINE_S = 5.0

VERSION = b"2020-07-15"
AGENT = b"hotplate"
# Of items and containers: what needs no escaping in a path, in a header and in JSON.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,1022}")


class RequestBuilder:
    """Builds requests to one endpoint; what was signed is kept for the second that it names."""

    def __init__(self, host: str, database: str, consistency: str, signer: Signer, clock: Callable[[], float]) -> None:
        self._host = host.encode()
        self._database = database
        self._consistency = consistency.encode()
        self._signer = signer
        self._clock = clock
        self._second = -1
        self._date = b""
        self._end = b""
        self._read_templates = dict[str, tuple[bytes, bytes]]()
        self._heads = dict[tuple[str, str, str], bytes]()

    def point_read(self, container: str, name: str) -> bytes:
        """Build the read of one item as lookups do it; StoreMisused for a name that needs escaping."""
        if not NAME.fullmatch(name):
            raise StoreMisused(f"{name[:80]!r} cannot be the id of an item: ids are of A-Z, a-z, 0-9, _, - and .")
        second = int(self._clock())
        if second != self._second:
            self._start_second(second)
        signing, request = self._read_templates.get(container) or self._read_template(container)
        item = name.encode()
        return request % (item, item, self._signer.authorization(signing + item + self._end))

    def _read_template(self, container: str) -> tuple[bytes, bytes]:
        """Return what is signed before the item's id, and the request with room for id, key and signature."""
        link = f"dbs/{self._database}/colls/{_checked(container)}/docs/".encode()
        request = (
            b"GET /%b%%b/ HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b'x-ms-consistency-level: %b\r\nx-ms-documentdb-partitionkey: ["%%b"]\r\nauthorization: %%b\r\n\r\n'
        ) % (link, self._host, AGENT, VERSION, self._date, self._consistency)
        built = self._read_templates[container] = b"get\ndocs\n" + link, request
        return built

    def build(self, verb: str, kind: str, link: str, path: str, *, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Build any request; *headers* are whole lines.

        *link* is what is signed, without a slash at its end; *path* is the target, without the one at its beginning.
        """
        second = int(self._clock())
        if second != self._second:
            self._start_second(second)
        head = self._heads.get((verb, path, link)) or self._head(verb, kind, link, path)
        if verb == "GET":
            return b"%b%b\r\n" % (head, headers)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)

    def _head(self, verb: str, kind: str, link: str, path: str) -> bytes:
        text = f"{verb.lower()}\n{kind}\n{link}".encode() + self._end
        built = (
            b"%b /%b HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b"authorization: %b\r\n"
        ) % (
            verb.encode(),
            path.encode(),
            self._host,
            AGENT,
            VERSION,
            self._date,
            self._signer.authorization(text),
        )
        self._heads[verb, path, link] = built
        return built

    def sign_anew(self) -> None:
        """Sign anew from now on: another token is in the place of the one that was signed with."""
        self._second = -1

    def _start_second(self, second: int) -> None:
        """Begin another second: what was signed in the one before is forgotten."""
        date = formatdate(second, usegmt=True)
        self._second, self._date, self._end = second, date.encode(), f"\n{date.lower()}\n\n".encode()
        self._read_templates.clear()
        self._heads.clear()


def partition_key_header(name: str) -> bytes:
    """Return the header that names the partition key of an item; StoreMisused for a name that needs escaping."""
    return b'x-ms-documentdb-partitionkey: ["%b"]\r\n' % _checked(name).encode()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise StoreMisused(f"{name[:80]!r} cannot be a name: names are of A-Z, a-z, 0-9, _, - and .")
    return name


class Endpoint:
    """One server of the account; lives as long as the account names it."""

    def __init__(
        self, url: str, requests: RequestBuilder, transport: Transport, signer: Signer, translator: ResponseTranslator
    ) -> None:
        self.url = url
        self.requests = requests
        self.transport = transport
        self._signer = signer
        self._translator = translator

    async def request(
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
        """Return the response to one request, whatever its status; raises CosmosUnavailable where there is none.

        A token that is refused is renewed, and the request sent again, once.
        """
        due_s = asyncio.get_running_loop().time() + timeout_s
        await self.ensure_token(timeout_s)
        build = partial(self.requests.build, verb, kind, link, path, headers=headers, body=body)
        response = await self.send(build, due_s, retry_stale=verb == "GET")
        if response.status == 401 and await self.renew_token(response, due_s):
            response = await self.send(build, due_s)
        return response

    async def send(self, build: Callable[[], bytes], due_s: float, *, retry_stale: bool = False) -> Response:
        """Send what *build* makes; with *retry_stale* once more where an idle connection had ended."""
        loop = asyncio.get_running_loop()
        try:
            return await self.transport.request(build(), due_s - loop.time())
        except RequestFailed as failure:
            error = self._translator.no_response(failure)
            if not failure.stale or not retry_stale:
                raise error from failure
        return await self.send(build, due_s)

    async def ensure_token(self, timeout_s: float) -> None:
        """Get what requests are signed with, where that is not at hand; raises CosmosUnavailable."""
        if self._signer.needs_token():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._signer.acquire_token()
            except TimeoutError:
                late = CosmosUnavailable(f"{self._translator.where}: Entra ID gave no token in time", "timeout")
                self._translator.count(late)
                raise late from None
            except CosmosUnavailable as error:
                self._translator.count(error)
                raise

    async def renew_token(self, refused: Response, due_s: float) -> bool:
        """Get another token in the place of one that was refused; False where there is none, or none in time."""
        try:
            async with asyncio.timeout_at(due_s):
                renewed = await self._signer.renew_token()
        except TimeoutError:
            return False
        if renewed:
            self._translator.error(refused)  # counted, as it is not the response that the caller sees
            self.requests.sign_anew()
        return renewed
