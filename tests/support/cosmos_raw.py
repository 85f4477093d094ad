"""A server that says byte by byte what a test wants, where the emulation would never say it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import orjson

DATE = f"date: {formatdate(usegmt=True)}\r\n".encode()


def answer(status: int, body: bytes, headers: bytes = b"") -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\n%b%bx-ms-request-charge: 1.00\r\n%b\r\n%b" % (status, DATE, length, headers, body)


def refusal(status: int, substatus: int, message: str = "no", headers: bytes = b"") -> bytes:
    body = orjson.dumps({"code": "X", "message": message})
    return answer(status, body, b"x-ms-substatus: %d\r\n%b" % (substatus, headers))


@dataclass
class Raw:
    """A server that answers the account's question as an account does, and everything else as it is told."""

    port: int = 0
    says: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    told: dict[str, object] = field(default_factory=dict)

    def account(self) -> bytes:
        place = [{"name": "Here", "databaseAccountEndpoint": f"http://127.0.0.1:{self.port}/"}]
        policy = {"defaultConsistencyLevel": "Session"}
        told = {"writableLocations": place, "readableLocations": place, "userConsistencyPolicy": policy} | self.told
        return answer(200, orjson.dumps(told))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.bodies.append(await reader.readexactly(length))
                self.heard.append(head)
                if head.startswith(b"GET / "):
                    writer.write(self.account())
                    continue
                said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
                writer.write(said.removesuffix(CUT))
                if said.endswith(CUT):
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


CUT = b"<the connection ends here>"


@asynccontextmanager
async def saying(*says: bytes) -> AsyncIterator[Raw]:
    """Give the n-th request over all connections the n-th of *says*, and further ones the last."""
    made = Raw(says=list(says))
    tasks = set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await made.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await asyncio.gather(*(task for task in tasks if task))
