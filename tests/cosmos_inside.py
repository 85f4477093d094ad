"""The emulation without a network, in the place of the connections of the driver that speaks over the wire."""

import asyncio
from urllib.parse import urlsplit

from bench.cosmos_emulator.messages import Request
from bench.cosmos_emulator.service import Service
from bench.cosmos_emulator.wire import rendered
from stores.wire import Answer, WireFailed


class Inside:
    """The way to one region of a service in this process; time passes only as the event loop has it."""

    def __init__(self, service: Service, url: str) -> None:
        parts = urlsplit(url)
        self.service = service
        self.scheme = parts.scheme
        self.region = [port for _, port in service.account.regions].index(parts.port or 0)
        self.heard = list[bytes]()

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        self.heard.append(request)
        head, _, body = request.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        method, path, _ = line.decode().split(" ")
        named = dict(one.split(b": ", 1) for one in lines)
        answer = self.service.answer(Request(method, path, named, body, self.region, self.scheme))
        await asyncio.sleep(min(answer.delay_s, timeout_s))
        if answer.reset or answer.delay_s > timeout_s:
            raise WireFailed("reset" if answer.reset else "timeout", "inside")
        raw = rendered(answer)
        return Answer(answer.status, raw, raw.partition(b"\r\n\r\n")[2])

    async def close(self) -> None:
        pass
