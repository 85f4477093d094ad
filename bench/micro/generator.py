"""The load generator: what a request costs it beside wrk and h2load, and whether a stall is charged as it should be.

Run as a command this module is the server for that: it costs next to nothing, and can stall.
"""

import argparse
import asyncio
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import uvloop

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.micro.http_peer import SERVED
from bench.micro.publishing import publish_to
from bench.micro.rounds import (
    Effort,
    Figure,
    Outcome,
    Sample,
    Unmeasured,
    at_least,
    at_most,
    figures,
    hotplate_serving,
    interleave,
    path_of,
    ratios,
)
from bench.process import Server, free_port, on_core, serving

PATH = path_of(0)
CONNECTIONS = 64
RATE = 40_000
STALL_S, STALL_RATE = 0.1, 2_000
# Rounds of the usual length, put together: a stall comes only once a second.
STALL_ROUNDS = 5
# By arithmetic: a tenth of all requests wait evenly between nothing and 100 ms.
STALL_US = {"p99": 90_000.0, "p999": 99_000.0}
OURS, CHEAP, SERVICE = "hotplate bench", "cheap server", "the service"
# The tool whose rate of the service ours is held to, and how far the two may be apart.
WRK, APART = "wrk", 0.1

BODY = b'{"user":"1","release":"r","source":"personal","tier":"none","items":[]}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@dataclass(frozen=True, slots=True)
class Tool:
    """Another closed-loop generator: its command but for the URL, and where it prints how many requests it made."""

    name: str
    command: Sequence[str]
    requests: re.Pattern[str]


def tools(round_s: float) -> list[Tool]:
    """Return those that are installed; they count time in whole seconds."""
    connections, duration_s = f"-c{CONNECTIONS}", str(max(1, round(round_s)))
    known = [
        Tool(WRK, [WRK, "-t1", connections, "-d", duration_s], re.compile(r"(\d+) requests in ")),
        Tool("h2load", ["h2load", "--h1", "-t1", connections, "-D", duration_s], re.compile(r"requests: (\d+) total")),
    ]
    return [tool for tool in known if shutil.which(tool.command[0])]


def measure(effort: Effort) -> list[Outcome]:
    """Measure the generator on a core of its own, the servers on another."""
    with responding(0) as server:
        result = [*beside_tools(CHEAP, server.url + PATH, effort), open_loop(server.url, effort)]
    with responding(STALL_S) as server:
        result += stalls(server.url, effort)
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        publish_to(store, SERVED, SERVED.values())
        with hotplate_serving(store) as service, on_core(1):
            result += beside_tools(SERVICE, service.url + PATH, effort)
    if WRK not in {tool.name for tool in tools(effort.round_s)}:
        result.append(Unmeasured(f"closed loop, {SERVICE}, {OURS} / {WRK}", f"no {WRK} on the PATH"))
    return result


@contextmanager
def responding(stall_s: float) -> Iterator[Server]:
    """Run this module's server on the first core, and what the block does on the second."""
    port = free_port()
    command = [sys.executable, "-m", "bench.micro.generator", "--port", str(port), "--stall", str(stall_s)]
    with serving(command, port, "/") as server, on_core(1):
        yield server


def beside_tools(what: str, address: str, effort: Effort) -> list[Outcome]:
    """Saturate a server by each generator in turn, and compare the rates and the CPU of a request.

    Goals beside wrk: where the server is cheap, 1.3 times its CPU; where the server is the limit, its rate to 10 %.
    """
    samples = each_saturates(address, effort)
    result = list[Outcome]()
    for name, taken in samples.items():
        result += figures(f"closed loop, {what}, {name}", taken, each="request")
        if name != OURS:
            rate, cpu = ratios(f"closed loop, {what}, {OURS} / {name}", samples[OURS], taken)
            cpu_goal = at_most(1.3) if what == CHEAP and name == WRK else None
            result += [rate, replace(cpu, goal=cpu_goal)]
            if what == SERVICE and name == WRK:
                apart = [abs(rate.median - 1)]
                result.append(Figure(f"closed loop, {what}, {OURS} and {name}: apart", "share", apart, at_most(APART)))
    return result


def each_saturates(address: str, effort: Effort) -> dict[str, list[Sample]]:
    """Let each generator saturate *address*, round by round."""
    base, _, path = address.partition("//")[2].partition("/")
    load = Load(url=f"http://{base}", paths=[f"/{path}"], duration_s=effort.round_s, connections=CONNECTIONS)

    def ours() -> Sample:
        result = run(load)
        return Sample(result.ok_rate, result.cpu_us_per_request)

    variants: dict[str, Callable[[], Sample]] = {OURS: ours}
    variants |= {tool.name: partial(run_tool, tool, address) for tool in tools(effort.round_s)}
    return interleave(variants, effort.rounds)


def run_tool(tool: Tool, address: str) -> Sample:
    """Run another tool once; RuntimeError where it does not print how many requests it made."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([*tool.command, address], capture_output=True, text=True, check=True)  # noqa: S603 -- known tools
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = tool.requests.search(ended.stdout)
    if made is None:
        raise RuntimeError(f"{tool.name} printed {ended.stdout[-500:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(int(made[1]) / float(tool.command[-1]), cpu_s * 1e6 / int(made[1]))


def open_loop(url: str, effort: Effort) -> Figure:
    """Hold a rate in the open loop, and count the rounds that were valid."""
    load = Load(url=url, paths=[PATH], rate=RATE, duration_s=effort.round_s, connections=CONNECTIONS, spin=True)
    valid = [float(run(load).valid) for _ in range(effort.rounds)]
    return Figure(f"open loop at {RATE:,}/s on one core: valid", "share", valid, at_least(1))


def stalls(url: str, effort: Effort) -> list[Figure]:
    """Measure a server that really stalls for 100 ms in each second, beside what arithmetic expects."""
    load = Load(url=url, paths=[PATH], rate=STALL_RATE, duration_s=STALL_ROUNDS * effort.round_s, connections=512)
    open_runs = [run(load) for _ in range(effort.rounds)]
    closed = Load(url=url, paths=[PATH], duration_s=effort.round_s, connections=1)
    closed_runs = [run(closed) for _ in range(effort.rounds)]

    def beside_arithmetic(results: Sequence[Result], name: str) -> list[float]:
        return [getattr(one.latency, name) / STALL_US[name] for one in results]

    return [
        Figure("server that stalls, open loop: p99 / arithmetic", "ratio", beside_arithmetic(open_runs, "p99")),
        Figure("server that stalls, open loop: p99.9 / arithmetic", "ratio", beside_arithmetic(open_runs, "p999")),
        Figure("server that stalls, closed loop: p99 / arithmetic", "ratio", beside_arithmetic(closed_runs, "p99")),
    ]


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
    """Take the port, and for how much of each second there is no response."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.generator", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stall", type=float, default=0.0, help="seconds at the beginning of each second")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.stall))


if __name__ == "__main__":
    main()
