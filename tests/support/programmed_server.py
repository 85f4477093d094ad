"""A server whose answer times are a program, and which logs them: `python -m tests.support.programmed_server MODE LOG`.

It prints its port. On SIGTERM it writes its answer times, in seconds, one a line.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

import uvloop

BODY = b'{"user":"1","release":"r1","source":"personal","items":[]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
STALL_S, EVERY_S = 0.3, 12.0
LIMIT = 3_000.0


class Program:
    """When a request that arrives now is answered."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.count = 0
        self.free_s = 0.0
        self.start_s: float | None = None

    def answered_at(self, now_s: float) -> float:
        self.count += 1
        if self.start_s is None:
            self.start_s = now_s
        if self.mode == "constant":
            return now_s + 0.002
        if self.mode == "bimodal":
            return now_s + (0.040 if self.count % 20 == 0 else 0.004)
        if self.mode == "stalling":
            into_s = (now_s - self.start_s) % EVERY_S
            return now_s + 0.002 + max(0.0, STALL_S - max(0.0, into_s - 2.0)) * (into_s >= 2.0)
        self.free_s = max(self.free_s, now_s) + 1 / LIMIT
        return self.free_s


class Connection(asyncio.Protocol):
    def __init__(self, program: Program, log: list[float]) -> None:
        self.program = program
        self.log = log

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        del data
        now_s = time.monotonic()
        wait_s = self.program.answered_at(now_s) - now_s
        asyncio.get_running_loop().call_later(wait_s, self.answer, now_s)

    def answer(self, arrived_s: float) -> None:
        self.transport.write(ANSWER)
        self.log.append(time.monotonic() - arrived_s)


async def main(mode: str, log: Path) -> None:
    program, times_s, stopped = Program(mode), list[float](), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Connection(program, times_s), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stopped.wait()
    log.write_text("\n".join(map(str, times_s)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2])))
