"""Figures of the load generator: what it can send, what that costs beside wrk and h2load, and whether it is right."""

import asyncio
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.micro.endpoint import fill
from bench.micro.rounds import (
    Effort,
    Figure,
    Outcome,
    Sample,
    Unmeasured,
    at_least,
    at_most,
    figures,
    interleave,
    ratio,
)
from bench.process import free_port, on_core, serving

PATH = "/v1/recommendations/1"
CONNECTIONS = 64
RATE = 40_000
STALL_S, STALL_RATE = 0.1, 2_000
STALL_ROUNDS = 5  # of the usual length, put together: a stall comes only once a second
CHARGED_US = {"p99": 90_000.0, "p999": 99_000.0}
"""By arithmetic: a tenth of all requests wait evenly between nothing and 100 ms."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Another closed-loop generator: its command but for the URL, and where it says how many requests it made."""

    name: str
    command: Sequence[str]
    requests: re.Pattern[str]


def tools(round_s: float) -> list[Tool]:
    """Name those that are installed; they count time in whole seconds."""
    duration_s = str(max(1, round(round_s)))
    known = [
        Tool("wrk", ["wrk", "-t1", f"-c{CONNECTIONS}", "-d", duration_s], re.compile(r"(\d+) requests in ")),
        Tool(
            "h2load",
            ["h2load", "--h1", "-t1", f"-c{CONNECTIONS}", "-D", duration_s],
            re.compile(r"requests: (\d+) total"),
        ),
    ]
    return [tool for tool in known if shutil.which(tool.command[0])]


def measure(effort: Effort) -> list[Outcome]:
    """Measure the generator on a core of its own, the servers on another."""
    found: list[Outcome] = []
    cheap = [sys.executable, "-m", "bench.micro.responder", "--port"]
    port, stalling_port = free_port(), free_port()
    with serving([*cheap, str(port)], port, "/") as server, on_core(1):
        found += costs(server.url, effort)
        found.append(pace(server.url, effort))
    with serving([*cheap, str(stalling_port), "--stall", str(STALL_S)], stalling_port, "/") as server, on_core(1):
        found += charged(server.url, effort)
    return found + throughput(effort)


def costs(url: str, effort: Effort) -> list[Outcome]:
    """Saturate a cheap server in turns, and compare the CPU time per request."""
    samples = in_turns(url, effort)
    ours = samples.pop("hotplate bench")
    found: list[Outcome] = [*figures("closed loop, cheap server, hotplate bench", ours, each="request")]
    for name, other in samples.items():
        found += figures(f"closed loop, cheap server, {name}", other, each="request")
        cpus = [one.cpu_us_per_op for one in ours], [one.cpu_us_per_op for one in other]
        goal = at_most(1.3) if name == "wrk" else None
        found.append(ratio(f"generator's CPU, hotplate bench / {name}", *cpus, goal=goal))
    return found if samples else [*found, Unmeasured("the generator beside wrk and h2load", "neither is installed")]


def throughput(effort: Effort) -> list[Outcome]:
    """Saturate hotplate's own service, which is the limit then, in turns: all must find the same rate."""
    with tempfile.TemporaryDirectory() as folder:
        store, port = f"file://{folder}/store", free_port()
        asyncio.run(fill(store))
        ours = [sys.executable, "-m", "hotplate", "serve", "--store", store, "--port", str(port), "--workers", "1"]
        with serving(ours, port, PATH) as server, on_core(1):
            samples = in_turns(server.url + PATH, effort)
    ours_per_s = [one.rate_per_s for one in samples.pop("hotplate bench")]
    return [
        ratio(
            f"rate of the service, hotplate bench / {name}",
            ours_per_s,
            [one.rate_per_s for one in other],
            goal=at_least(0.85),
        )
        for name, other in samples.items()
    ]


def in_turns(address: str, effort: Effort) -> dict[str, list[Sample]]:
    """Let each generator saturate *address*, round by round."""
    base, _, path = address.partition("//")[2].partition("/")
    load = Load(url=f"http://{base}", paths=[f"/{path}"], duration_s=effort.round_s, connections=CONNECTIONS)
    variants: dict[str, Callable[[], Sample]] = {"hotplate bench": partial(mine, load)}
    variants |= {tool.name: partial(theirs, tool, address) for tool in tools(effort.round_s)}
    return interleave(variants, effort.rounds)


def mine(load: Load) -> Sample:
    """Make one run with the generator."""
    result = run(load)
    return Sample(result.ok_rate, result.cpu_us_per_request)


def theirs(tool: Tool, address: str) -> Sample:
    """Make one run with another tool; RuntimeError where it does not say how many requests it made."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([*tool.command, address], capture_output=True, text=True, check=True)  # noqa: S603 -- known tools
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = tool.requests.search(ended.stdout)
    if made is None:
        raise RuntimeError(f"{tool.name} said {ended.stdout[-500:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(int(made[1]) / float(tool.command[-1]), cpu_s * 1e6 / int(made[1]))


def pace(url: str, effort: Effort) -> Figure:
    """Hold a rate in the open loop, and count the rounds that were valid."""
    load = Load(url=url, paths=[PATH], rate=RATE, duration_s=effort.round_s, connections=CONNECTIONS, spin=True)
    valid = [float(run(load).valid) for _ in range(effort.rounds)]
    return Figure(f"open loop at {RATE:,}/s on one core: valid", "share", valid, at_least(1))


def charged(url: str, effort: Effort) -> list[Figure]:
    """Measure a server that really stalls for 100 ms in each second, beside what arithmetic expects."""
    load = Load(url=url, paths=[PATH], rate=STALL_RATE, duration_s=STALL_ROUNDS * effort.round_s, connections=512)
    results = [run(load) for _ in range(effort.rounds)]
    closed = [run(Load(url=url, paths=[PATH], duration_s=effort.round_s, connections=1)) for _ in range(effort.rounds)]

    def over(made: Sequence[Result], name: str) -> list[float]:
        return [getattr(one.latency, name) / CHARGED_US[name] for one in made]

    return [
        Figure("server that stalls, open loop: p99 / arithmetic", "ratio", over(results, "p99")),
        Figure("server that stalls, open loop: p99.9 / arithmetic", "ratio", over(results, "p999")),
        Figure("server that stalls, closed loop: p99 / arithmetic", "ratio", over(closed, "p99")),
    ]
