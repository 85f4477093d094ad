"""`hotplate bench ru`: what was asked, the walk over levels and effects, and from these to the report."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.errors import BenchFailed, BenchMisused
from bench.loadgen.capacity import TOO_MANY_REQUESTS, parse_objective
from bench.loadgen.keys import InTurn, Keys
from bench.loadgen.load import Requests
from bench.loadgen.workers import WorkerPool
from bench.process import on_core
from bench.progress import ProgressDisplay
from bench.report.report import Report
from bench.report.text import parse_rate, parse_seconds
from bench.ru.burst import burst
from bench.ru.effects import Effect, effect, unmeasured
from bench.ru.ground import Ground, grounded, own_emulator
from bench.ru.items import Items
from bench.ru.levels import COUNTS, SIZES_KB, Level
from bench.ru.requests import Drawn, Maker
from bench.ru.scenarios import EVENTUAL, Field, Scenario, all_of
from bench.ru.trials import RU, Extent, Offered, Trial, Trials, hopeless, limit
from bench.stores.setup import emulator_label
from stores.cosmos.charges import load
from stores.cosmos.driver import DEADLINE_S
from stores.cosmos.throughput import MANUAL_MIN, MANUAL_STEP, MAX_RU, Throughput
from stores.cosmos.url import Address, parse
from stores.http1 import ConnectionPool, RequestFailed, Response
from stores.urls import redacted

LEVELS = "400,1k,2k,4k,8k,11k"
OWN_TRIAL, ACCOUNTS_TRIAL = "2s", "10s"
EFFECTS_FROM_RU = 1_000
LABEL = "model's self-check: local emulator, not Azure"

METHOD = """
Open loop, evenly spaced, one attempt a request: a 429 is counted, never tried again. Retries would hide throttling in
the latencies' tail and leave the throughput as it is.

Each trial begins with a second of the clock and lasts whole ones, as budgets are kept by the second. The best rate is
the highest one inside the objective, to 2 %.

Items are read by id, in turn, and lie evenly over the partitions of a container that was born with the highest level,
so that nothing splits on the way. Charges are those that the answers told.
"""
EMULATED = (
    "All of this is the model's self-check: requests went to an emulator on this machine, which charges by documented "
    "coefficients. It shows that planner, sweep and emulator agree on those. It shows nothing of Azure, its latencies "
    "least of all: they are of loopback."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told, as it was told."""

    levels: str = LEVELS
    slo: str = "p99=50ms,throttled=1%"
    duration: str | None = None
    connections: int = 128
    effects: bool = True
    account: str | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """Give what was told as plain values, without what may be secret."""
        told = asdict(self) | {"account": self.account and redacted(self.account)}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Course:
    """What was asked, understood: levels in ascending order, and where."""

    levels: tuple[int, ...]
    extent: Extent
    effects: bool
    address: Address | None
    """The account; None for an emulator that the sweep starts itself."""

    @property
    def effects_ru(self) -> int:
        """The level at which effects are measured."""
        return next((ru for ru in self.levels if ru >= EFFECTS_FROM_RU), self.levels[-1])


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep's report."""

    report: Report

    @property
    def believable(self) -> bool:
        """Whether it came to its end and truly spent every level."""
        levels = self.report.extra["ru"]["levels"]
        return not self.report.interrupted and bool(levels) and all(each["spent"] for each in levels)


def course(asked: Asked) -> Course:
    """Understand what was asked. Raises BenchMisused or StoreMisused for what makes no sense."""
    levels = tuple(sorted({_level(each) for each in asked.levels.split(",")}))
    judged = parse_objective(asked.slo)
    if judged.throttled is None:
        raise BenchMisused("the objective of a sweep bounds 429s, too: --slo p99=50ms,throttled=1%")
    duration_s = parse_seconds(asked.duration or (ACCOUNTS_TRIAL if asked.account else OWN_TRIAL))
    if duration_s < 1 or duration_s % 1:
        raise BenchMisused("--duration is whole seconds, as budgets are: 1s or more")
    if asked.connections < 1:
        raise BenchMisused("--connections must be 1 or more")
    address = None if asked.account is None else parse(asked.account)
    made = Course(levels, Extent(duration_s, asked.connections, judged), asked.effects, address)
    if address is not None:
        Maker(address).must_have_a_key()
    return made


def sweep(asked: Asked, way: Course, watch: ProgressDisplay) -> Swept:
    """Make the sweep; Ctrl-C ends it with what there is. Raises BenchFailed and StoreError where it fails."""
    with ExitStack() as stack:
        with on_core(1):
            crew = stack.enter_context(WorkerPool())
        trials = Trials(crew, way.extent, watch)
        made = _Sweep(way, trials, watch)
        interrupted = False
        try:
            with own_emulator("--consistency", "Strong") if way.address is None else grounded(way.address) as ground:
                made.walk(ground)
            if way.effects and not trials.interrupted:
                made.rest()
        except KeyboardInterrupt:  # between two trials; within one the crew hears it, and ends the trial
            interrupted = True
    return Swept(report(asked, way, made.levels, made.effects, interrupted=interrupted or trials.interrupted))


class _Sweep:
    """A sweep while it is made."""

    def __init__(self, way: Course, trials: Trials, watch: ProgressDisplay) -> None:
        self._way = way
        self._trials = trials
        self._watch = watch
        self._charges = load()
        self.levels = list[Level]()
        self.effects = list[Effect]()

    def walk(self, ground: Ground) -> None:
        """Measure all levels, then the effects that one account can show."""
        way = self._way
        highest = Throughput(way.levels[-1])
        self._watch.start("making a container, and filling it", 1.0)
        container = ground.make(highest)
        items = {size: Items(size, COUNTS[size], highest.partitions_at_birth) for size in SIZES_KB}
        ground.fill(container, items[SIZES_KB[0]])
        for ru in way.levels:
            if self._trials.interrupted:
                return
            ground.scale(container, Throughput(ru))
            self.levels.append(self._level(ground, container, ru, items))
        if way.effects and not self._trials.interrupted:
            ground.scale(container, Throughput(way.effects_ru))
            base = items[SIZES_KB[0]]
            field = Field(ground, Maker(ground.address), self._charges, container, base, way.effects_ru)
            for set_up in all_of(field):
                if not self._trials.interrupted:
                    self.effects.append(self._effect(ground, set_up()))

    def rest(self) -> None:
        """Measure what is banked in idle time; on an emulator that banks, as it is a setting of the whole account."""
        if self._way.address is not None:
            self.effects.append(unmeasured("burst", "a setting of the account, which is left as it is"))
            return
        with own_emulator("--burst") as ground:
            self.effects.append(burst(ground, self._charges, self._trials))

    def _level(self, ground: Ground, container: str, ru: int, items: Mapping[int, Items]) -> Level:
        """Measure a level by the smallest items with which the machine can spend it."""
        skipped, judged = list[str](), self._way.extent.objective
        for size in SIZES_KB:
            if size > SIZES_KB[0]:
                ground.fill(container, items[size])
            reads = Maker(ground.address).reads(container, items[size], EVENTUAL)
            offer = _whole(Drawn(reads, Keys(items[size].ids, InTurn())))
            must_be_read(ground, offer(1.0).requests)
            read_ru = self._charges.read(items[size].size)
            found = list[Trial]()
            for trial in self._trials.best(f"{ru:,} RU/s", ground, offer, ru / read_ru):
                found.append(trial)
                if size != SIZES_KB[-1] and hopeless(found, ru / read_ru, judged):
                    break
            made = Level(ru, items[size], read_ru, tuple(found), limit(found, judged), tuple(skipped))
            if made.limit == RU or made.stopped:
                break
            skipped.append(f"reads of {size} KB: {made.limit}")
        return made

    def _effect(self, ground: Ground, scenario: Scenario) -> Effect:
        try:
            must_be_read(ground, scenario.offer(scenario.expected).requests)
        except BenchFailed as refused:
            return unmeasured(scenario.name, str(refused))
        half_s = max(1.0, self._way.extent.duration_s // 2)
        found = list(self._trials.best(scenario.name, ground, scenario.offer, scenario.expected, half_s))
        return effect(scenario, found, limit(found, self._way.extent.objective))


def must_be_read(ground: Ground, requests: Requests) -> None:
    """Ask once; BenchFailed, with what was answered, where that is a refusal and no 429."""
    parts = urlsplit(ground.url)

    async def ask() -> Response:
        pool = ConnectionPool(parts.hostname or "", parts.port or 443, size=1, tls=ground.tls())
        try:
            return await pool.request(next(requests.rendered("", {})), DEADLINE_S)
        finally:
            await pool.close()

    try:
        answer = asyncio.run(ask())
    except RequestFailed as error:
        raise BenchFailed(f"nothing answers at {ground.url} ({error.kind})") from error
    if answer.status >= 400 and answer.status != TOO_MANY_REQUESTS:
        raise BenchFailed(f"refused with {answer.status}: {said_in(answer.body)}")


def said_in(body: bytes) -> str:
    """Give the first sentence of a refusal."""
    return body.decode(errors="replace")[:300].partition("\n")[0]


def report(
    asked: Asked, way: Course, levels: Sequence[Level], effects: Sequence[Effect], *, interrupted: bool
) -> Report:
    """Sum a sweep up."""
    emulated = way.address is None or emulator_label(asked.account or "") is not None
    short = [each for each in levels if not each.spent]
    return Report(
        kind="ru",
        configuration=asked.configuration | {"objective": str(way.extent.objective)},
        series=(),
        interrupted=interrupted,
        failures=tuple(f"{each.ru:,} RU/s was not spent, what ended the search was: {each.limit}" for each in short),
        extra={
            "subject": LABEL if emulated else redacted(asked.account or ""),
            "holds": "Every level was truly spent: at the best rate 95 % or more of its RU, and then came 429s.",
            "method": [
                *([EMULATED] if emulated else []),
                *(" ".join(each.split()) for each in METHOD.strip().split("\n\n")),
            ],
            "ru": {
                "label": LABEL if emulated else None,
                "levels": [each.to_json() for each in levels],
                "effects": [each.to_json() for each in effects],
            },
        },
    )


def _whole(requests: Requests) -> Callable[[float], Offered]:
    return lambda rate: Offered(requests, rate)


def _level(text: str) -> int:
    ru = parse_rate(text)
    if ru % MANUAL_STEP or not MANUAL_MIN <= ru <= MAX_RU:
        raise BenchMisused(
            f"a level is {MANUAL_MIN} RU/s or more in steps of {MANUAL_STEP}, as 400,1k,11k, not {text!r}"
        )
    return int(ru)
