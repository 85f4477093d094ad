"""A server that responds byte by byte as a test wants, where the emulation never would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import orjson

from tests.support.streams import listening

DATE = f"date: {formatdate(usegmt=True)}\r\n".encode()


def answer(status: int, body: bytes, headers: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\n%b%bx-ms-request-charge: 1.00\r\n%b\r\n%b" % (status, DATE, length, headers, body)


def refusal(status: int, substatus: int, message: str = "no", headers: bytes = b"") -> bytes:
    body = orjson.dumps({"code": "X", "message": message})
    return answer(status, body, b"x-ms-substatus: %d\r\n%b" % (substatus, headers))


@dataclass
class ScriptedServer:
    """A server that responds to reads of the account as an account does, and to everything else by a script."""

    port: int = 0
    responses: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    properties: dict[str, object] = field(default_factory=dict)

    def account(self) -> bytes:
        place = [{"name": "Here", "databaseAccountEndpoint": f"http://127.0.0.1:{self.port}/"}]
        policy = {"defaultConsistencyLevel": "Session"}
        account = {
            "writableLocations": place,
            "readableLocations": place,
            "userConsistencyPolicy": policy,
        } | self.properties
        return answer(200, orjson.dumps(account))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            self.bodies.append(await reader.readexactly(length))
            self.heard.append(head)
            if head.startswith(b"GET / "):
                writer.write(self.account())
                continue
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            writer.write(response.removesuffix(CUT))
            if response.endswith(CUT):
                break


CUT = b"<the connection ends here>"


@asynccontextmanager
async def scripted(*responses: bytes) -> AsyncIterator[ScriptedServer]:
    """Give the n-th request over all connections the n-th of *responses*, and further ones the last."""
    server = ScriptedServer(responses=list(responses))
    async with listening(server.serve) as server.port:
        yield server
