"""How the service behaves when more is offered than it can answer: goodput over offered rate, of batches.

Open loop, as independent callers are; goodput counts what was answered well within GOOD_S of when it was due. What is
offered is a multiple of what the same service gave, a moment ago, to as few callers as keep it busy.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.lists import Shape, key_of
from bench.loadgen.generator import run
from bench.loadgen.keys import Keys, Uniform
from bench.loadgen.load import Load, Posts
from bench.loadgen.result import Result
from bench.micro.publishing import publish_to
from bench.micro.rounds import HEADERS, Effort, Figure, Goal, Outcome, at_least, at_most, hotplate_serving
from bench.process import Server, on_core
from bench.report import text
from bench.report.plots import LINES, Frames, count_scale, plot, rate_axis
from stores.keys import USER

SERVED = Shape(100_000, items=20, title_chars=17)
BATCH = 1_000
GOOD_S = 1.0
# A measurement under overload takes so many rounds' time: a minute at the usual effort.
ROUNDS_LONG = 30
# After an overload everything must be as before within so long.
RECOVERED_S = 1.0
# Small enough that nobody waits for another.
LIGHT = 0.2
PAGE = Path("bench-overload.html")
MB = 1e6


@dataclass(frozen=True, slots=True)
class Kind:
    """What is requested, how many callers keep a worker busy, what is offered, and what must be left at the end."""

    name: str
    load: Load
    saturated_by: int
    factors: Sequence[float]
    goodput: Goal


@dataclass(frozen=True, slots=True)
class Point:
    """What came of one rate: requests/s that were due, and that were answered well and in time; the memory's growth."""

    offered: float
    goodput: float
    p99_s: float
    refused: float
    memory_mb: float


def measure(effort: Effort) -> list[Outcome]:
    """Overload a service on one core from another with batches, and draw that into PAGE."""
    keys = Keys([key_of(user).removeprefix(USER) for user in range(SERVED.users)], Uniform())
    empty = Load(url="http://127.0.0.1", paths=("/",), duration_s=1, headers=HEADERS, timeout_s=5.0, backlog=1_000_000)
    kinds = [
        Kind("batches of 1,000", replace(empty, requests=Posts(keys, BATCH), connections=256), 2, (0.5, 0.8, 1, 2, 3),
             at_least(0.85)),
    ]  # fmt: skip
    outcomes, sections = list[Outcome](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        publish_to(store, SERVED, SERVED.values())
        with hotplate_serving(store) as server, on_core(1):
            for kind in kinds:
                found, points = overloaded(server, kind, effort)
                outcomes += found
                sections.append(text.section(kind.name, goodput_plot(points), "Requests/s that were due, and goodput."))
    PAGE.write_text(text.whole_page("Goodput under overload", "one worker on one core", sections))
    return outcomes


def overloaded(server: Server, kind: Kind, effort: Effort) -> tuple[list[Outcome], list[Point]]:
    """Offer one kind of request at growing rates, the last for long, and see whether all is well afterwards."""
    load = replace(kind.load, url=server.url, duration_s=effort.round_s)
    # The most of some rounds: what others of the machine take from one is no capacity that the service lacks.
    capacity = max(run(replace(load, connections=kind.saturated_by)).ok_rate for _ in range(effort.rounds))
    unloaded = offer(server, load, capacity * LIGHT)
    points = [unloaded, *(offer(server, load, capacity * factor) for factor in kind.factors[:-1])]
    long = replace(load, duration_s=effort.round_s * ROUNDS_LONG)
    worst = offer(server, long, capacity * kind.factors[-1])
    threading.Event().wait(RECOVERED_S)
    after = offer(server, load, capacity * LIGHT)
    points.append(worst)
    peak = max(point.goodput for point in points)
    name = f"overload, {kind.name} at {kind.factors[-1]:g} × capacity"  # noqa: RUF001 -- a factor
    return [
        Figure(f"overload, {kind.name}: capacity", "requests/s", [capacity]),
        Figure(f"{name}: goodput / peak", "ratio", [worst.goodput / peak], kind.goodput),
        Figure(f"{name}: p99 of accepted / unloaded", "ratio", [worst.p99_s / unloaded.p99_s], at_most(5)),
        Figure(f"{name}: p99 of accepted", "ms", [worst.p99_s * 1000]),
        Figure(f"{name}: memory gained", "MB", [worst.memory_mb], at_most(100)),
        Figure(f"{name}: refused", "share", [worst.refused]),
        Figure(f"{name}: answered in time {RECOVERED_S:g} s later", "share", [after.goodput / after.offered],
               at_least(0.99)),
    ], points  # fmt: skip


def offer(server: Server, load: Load, rate: float) -> Point:
    """Offer one rate, in requests/s."""
    with peak_memory(server) as peak_mb:
        before_mb = server.memory_bytes() / MB
        result = run(replace(load, rate=rate))
    latencies_s = np.asarray(result.latencies_s)
    p99_s = float(np.percentile(latencies_s, 99)) if len(latencies_s) else float("inf")
    good = int((latencies_s <= GOOD_S).sum())
    return Point(rate, good / load.duration_s, p99_s, refused_share(result), peak_mb() - before_mb)


def refused_share(result: Result) -> float:
    """Return the part of what was due that was answered with 503."""
    return result.statuses.get(503, 0) / max(1, result.due)


@contextmanager
def peak_memory(server: Server) -> Iterator[Callable[[], float]]:
    """Watch the memory of a service meanwhile; gives what returns the most of it that was seen, in MB."""
    seen, over = [server.memory_bytes() / MB], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            seen.append(server.memory_bytes() / MB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(seen)
    finally:
        over.set()
        watcher.join()


@plot()
def goodput_plot(frames: Frames, points: Sequence[Point]) -> None:
    """Draw goodput over the rate that was offered, beside the goodput of a service without bounds."""
    (axes,) = frames
    offered = [point.offered for point in points]
    axes.plot(offered, offered, color=LINES[2], linestyle="--", label="all that was offered")
    axes.plot(offered, [point.goodput for point in points], color=LINES[0], marker="o", label="goodput")
    rate_axis(axes, "requests/s offered")
    count_scale(axes)
