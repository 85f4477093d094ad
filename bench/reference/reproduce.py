"""`hotplate bench reference`: what was asked, the stores, and from their runs to the report."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.errors import BenchMisused
from bench.loadgen.capacity import parse_objective
from bench.loadgen.workers import WorkerPool
from bench.process import free_port, on_core, serving
from bench.progress import ProgressDisplay
from bench.reference.lines import COLUMN, Sheet, lines
from bench.reference.published import DATE, RU, SOURCE, THINK_S, USERS, needs
from bench.reference.runs import Runs, Shown
from bench.report.report import Report, series
from bench.report.text import parse_seconds
from bench.stores.setup import Field, contestants, emulator, own_stores
from stores.cosmos.charges import KB, load
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import parse
from stores.prices import load as load_prices
from stores.urls import redacted

METHOD = f"""
The published figures are of {DATE}: {SOURCE}. They were measured in Azure, by others, with another service; ours are of
one machine. They stand side by side to be read, not to be subtracted.

{USERS} users who wait for each answer and then pause send what their pause lets them send: with {THINK_S:g} s (inferred
from the published rate and median; ours is drawn anew each time, from half to one and a half of it) no service could
answer more than {USERS / THINK_S:.0f} requests/s to them. So 180 requests/s was the load of the test, and the
generator's limit, not what the service could do.

In the open loop requests fall due whether or not answers come. On the way to the knee the rate is doubled until the
objective breaks, then the gap is halved until it is 5 % wide. Popular lists instead of users' own ones break it, too,
from 1 % of the answers on. What the
limit was follows from whose core was full, or from refused reads.

RU are all that Cosmos DB's answers told the service: of lookups, and of its looks for a newer release.
"""
OWN = (
    "The stores were started on this machine: no network, no TLS, no replica. The service had one core; load "
    "generator, Redis and emulator shared the other."
)
EMULATED = (
    "An emulator's own speed says nothing about Azure, so none of its times are shown; what is shown of it are RU, by "
    "documented coefficients, and what the service did."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told, as it was told."""

    urls: Sequence[str] = ()
    slo: str = "p99=60ms,errors=0.1%"
    duration: str = "20s"
    users: int = 10_000
    encoding: str = "zstd"

    @property
    def configuration(self) -> dict[str, Any]:
        """Give what was told as plain values, without passwords."""
        return {name: value for name, value in asdict(self).items() if name != "urls"}


@dataclass(frozen=True, slots=True)
class Reproduced:
    """The report of a reproduction."""

    report: Report

    @property
    def valid(self) -> bool:
        """Whether it came to its end with valid runs."""
        return not (self.report.interrupted or self.report.invalid_reasons or self.report.extra["invalid_reasons"])


def reproduce(asked: Asked, watch: ProgressDisplay) -> Reproduced:
    """Make all runs against all stores. Raises BenchMisused, BenchFailed and StoreError."""
    duration_s, judged = parse_seconds(asked.duration), parse_objective(asked.slo)
    if duration_s <= 0 or asked.users < 1:
        raise BenchMisused("--duration must be above zero, --users 1 or more")
    if len(set(asked.urls)) < len(asked.urls):
        raise BenchMisused("the same store is given twice")
    with ExitStack() as stack:
        urls = list(asked.urls) or stack.enter_context(three_stores())
        watch.start("bringing the release into the stores", 1.0)
        field = stack.enter_context(contestants(urls, asked.users, asked.encoding, made=not asked.urls))
        with on_core(1):
            crew = stack.enter_context(WorkerPool())
        runs = Runs(crew, watch, field.users, duration_s, judged)
        shown, interrupted = list[Shown](), False
        try:
            for one in field.contestants:
                if not runs.interrupted:
                    shown.append(runs.all_of(one))
        except KeyboardInterrupt:  # between two runs; within one the crew hears it, and ends the run
            interrupted = True
        return Reproduced(report(asked, field, shown, str(judged), interrupted=interrupted or runs.interrupted))


@contextmanager
def three_stores() -> Iterator[list[str]]:
    """Start a folder, a Redis and an emulator of Cosmos DB with the published RU/s, gone when the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json"]
    with own_stores() as urls, ExitStack() as stack:
        with on_core(1):
            stack.enter_context(serving(command, port, "/__emulation/metrics"))
        yield [*urls, f"cosmos+http://127.0.0.1:{port}/hotplate?ru={RU}"]


def report(asked: Asked, field: Field, shown: Sequence[Shown], judged: str, *, interrupted: bool) -> Report:
    """Sum the runs up."""
    item_bytes = field.manifest.bytes / max(1, sum(field.manifest.counts.values()))
    needed = needs(load(), max(KB, item_bytes), load_prices())
    sheet = Sheet(tuple(shown), needed, tuple(provisioned(one.contestant.url) for one in shown))
    emulated = any(one.contestant.emulated for one in shown)
    method = [" ".join(each.split()) for each in METHOD.strip().split("\n\n")]
    return Report(
        kind="reference",
        configuration=asked.configuration
        | {
            "stores": [one.contestant.shown for one in shown],
            "objective": judged,
            "release": field.manifest.release,
            "lists": "made up for this" if field.made else "of the live release",
        },
        series=tuple(
            series(f"{one.contestant.name}, {name}", [run.result])
            for one in shown
            if one.contestant.emulated is None
            for name, run in (("closed loop", one.closed), ("open loop", one.steady))
            if run is not None
        ),
        interrupted=interrupted,
        extra={
            "subject": "the reference architecture's load test",
            "invalid_reasons": [
                f"{one.contestant.name}: nothing was inside the objective" for one in shown if one.best is None
            ],
            "method": [*([OWN] if field.made else []), *([EMULATED] if emulated else []), *method],
            "reference": {
                "stores": [COLUMN, *(one.contestant.name for one in shown)],
                "lines": [asdict(line) for line in lines(sheet)],
                "endings": [one.ending for one in shown],
                "needs": asdict(needed),
                "knees": [_knee(one) for one in shown],
            },
        },
    )


def provisioned(url: str) -> Throughput | None:
    """Tell what the container of a store's live release may spend; None of a store that is not metered."""
    return parse(url).throughput if urlsplit(url).scheme.startswith("cosmos") else None


def _knee(one: Shown) -> Mapping[str, Any]:
    return {
        "name": one.contestant.name,
        "url": redacted(one.contestant.url),
        "emulated": emulator(one.contestant.url),
        "highest": one.best and one.best.rate,
        "limit": one.limit,
        "points": [each.to_json() for each in one.reached],
    }
