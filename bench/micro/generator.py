"""A server that costs next to nothing, and can stall: load generators are measured on it."""

import argparse
import asyncio
import time
from typing import cast

import uvloop

BODY = b'{"user":"1","release":"r","source":"personal","tier":"none","items":[]}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Responder(asyncio.Protocol):
    """One connection; gives every request the same response, at once or when the stall is over."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own, which has what is needed

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`; a request comes whole, as its sender waits for the response to each."""
        del data
        left_s = self._stall_s - time.monotonic() % 1.0
        if left_s > 0:
            asyncio.get_running_loop().call_later(left_s, self._respond)
        else:
            self._respond()

    def _respond(self) -> None:
        if self._transport is not None:
            self._transport.write(RESPONSE)


async def serve(port: int, stall_s: float) -> None:
    """Respond until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(lambda: Responder(stall_s), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Take the port, and how long it does not respond in each second."""
    parser = argparse.ArgumentParser(prog="python -m hotplate.bench.micro.generator", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stall", type=float, default=0.0, help="seconds at the beginning of each second")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.stall))


if __name__ == "__main__":
    main()
