"""`hotplate bench ru`: what each level of RU/s carries, through a service whose cache is off."""

import itertools
import math
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.load import Gets, InTurn, Load, RequestKeys
from hotplate.bench.loadgen.result import Result
from hotplate.bench.loadgen.workers import WorkerPool
from hotplate.bench.options import SweepOptions, parse_rate, parse_seconds
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.process import (
    GENERATOR_CORE,
    Server,
    before_others,
    check_latency,
    emulator_serving,
    is_emulated,
    service_serving,
    store_counts,
)
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.ru.level import (
    CALM,
    CURVE,
    LEAD_S,
    OVERLOAD,
    TAIL_S,
    Level,
    Trial,
    from_store,
    measure_level,
    trial,
)
from hotplate.bench.ru.sandbox import Sandbox, SizedLists, builder, sandbox
from hotplate.bench.ru.table import Sweep, report
from hotplate.report import Report
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP, MAX_RU, Throughput, parse

LISTS = 1_000
MAX_ITEM_KB = 1024
CONNECTIONS = 128
# Reads one after the other that show the charge of one, and how often that is tried until no poll is among them.
CHARGED_READS = 20
CHARGE_TRIES = 20
# How long the machine's own limit is looked for, and the share of it that a level may take.
PROBE_S = 2.0
PROBE_CONNECTIONS = 64
DRIVEN_SHARE = 0.8
# From this share of what the highest level accepts on, the machine is not what limits it.
UNLIMITED_SHARE = 0.9
# After so long without an account no trial begins, so that all ends within three minutes.
WITHIN_S = 160.0
BETWEEN_S = 1.5
SETUP_S = 20.0
HOUR_S = 3600
PATH = "/v1/recommendations/{key}"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The options of a sweep, checked; levels and sizes in ascending order."""

    options: SweepOptions
    levels: tuple[int, ...]
    sizes_kb: tuple[int, ...]
    duration_s: int

    def seconds(self, share: float) -> int:
        """Return how many seconds of a trial count; those beside the two that make the table are shorter."""
        return self.duration_s if share in (OVERLOAD, CALM) else max(2, self.duration_s // 2)

    def takes_s(self, *shares: float) -> float:
        """Return how long trials take."""
        return sum(self.seconds(share) + LEAD_S + TAIL_S + BETWEEN_S for share in shares)


def plan(options: SweepOptions) -> SweepPlan:
    """Check the options of a sweep. Raises BenchMisused or StoreMisused for what makes no sense."""
    levels = tuple(sorted({_parse_level(each) for each in options.levels.split(",")}))
    duration_s = parse_seconds(options.duration)
    if duration_s < 2 or duration_s % 1:
        raise BenchMisused(f"--duration is whole seconds, as budgets are: 2s or more, not {options.duration!r}")
    check_latency(options.latency)
    if options.account is not None:
        builder(parse(options.account))  # refuses an account without a key
    return SweepPlan(options, levels, parse_sizes(options.item_kb, "--item-kb"), int(duration_s))


def parse_sizes(text: str, flag: str) -> tuple[int, ...]:
    """Read sizes of items in KB, ascending."""
    found = sorted({int(each) if each.strip().isdecimal() else 0 for each in text.split(",")})
    if not 1 <= found[0] <= found[-1] <= MAX_ITEM_KB:
        raise BenchMisused(f"{flag} are whole KB from 1 to {MAX_ITEM_KB}, as 1,4,16, not {text!r}")
    return tuple(found)


def _parse_level(text: str) -> int:
    ru = parse_rate(text)
    if ru % MANUAL_STEP or not MANUAL_MIN <= ru <= MAX_RU:
        raise BenchMisused(
            f"a level is {MANUAL_MIN} RU/s or more in steps of {MANUAL_STEP}, as 400,1k,11k, not {text!r}"
        )
    return int(ru)


def account_regions(url: str) -> int:
    """Read in how many regions of an account a container costs. Raises BenchMisused and StoreError."""
    with sandbox(url, MANUAL_MIN) as made:  # which makes nothing here
        account = made.account
    if account.multiple_write_regions:
        raise BenchMisused("the account has several regions that are written; the figures would not be those of one")
    return len(account.regions)


def cost(planned: SweepPlan, regions: int, prices: Prices, now: float) -> list[str]:
    """Say what a sweep makes in an account, and what that costs if it begins *now*, in seconds since 1970."""
    took_s = len(planned.sizes_kb) * (SETUP_S + len(planned.levels) * planned.takes_s(OVERLOAD, CALM, *CURVE))
    ru = len(planned.sizes_kb) * (planned.levels[-1] + MANUAL_MIN)
    return database_cost(ru, regions, prices, now, took_s)


def database_cost(ru: int, regions: int, prices: Prices, now: float, took_s: float) -> list[str]:
    """Say what *ru* cost that are there from *now* on, in seconds since 1970, for *took_s*."""
    hours = int((now + took_s) // HOUR_S - now // HOUR_S) + 1
    usd = prices.ru_hours(ru * hours, regions=regions)
    made = f"a database of its own with {ru:,} RU/s in {regions} region(s), for some {ceil(took_s / 60)} minutes"
    return [
        f"{made}, then dropped; the rest of the account is left alone",
        f"{usd:,.2f} USD: an hour of the clock is billed at its highest RU/s, and this touches {hours}",
        f"price: {prices.ru_hour.provenance}",
    ]


def read_charge(service: Server, users: Sequence[str]) -> float:
    """Return what the store charges for a list, by the service's metrics, of reads without a poll among them."""
    drawn = itertools.cycle(users)
    for _ in range(CHARGE_TRIES):
        before = store_counts(service)
        for user in itertools.islice(drawn, CHARGED_READS):
            with urllib.request.urlopen(service.url + PATH.format(key=user), timeout=5) as answer:  # noqa: S310 -- on loopback
                answer.read()
        after = store_counts(service)
        if after.charged - before.charged == CHARGED_READS:
            return (after.ru - before.ru) / CHARGED_READS
        time.sleep(0.1)
    raise BenchFailed("the service's metrics do not show what a read is charged; does the store answer?")


def sweep(planned: SweepPlan, display: ProgressDisplay) -> Report:
    """Make the sweep; Ctrl-C ends it with a report of what there is. Raises BenchFailed and StoreError if it fails."""
    running = _Running(planned, display)
    try:
        with ExitStack() as stack:
            url, environment, servers = planned.options.account, None, list[Server]()
            if url is None:
                display.start("starting an emulator of Cosmos DB", 1.0)
                servers.append(stack.enter_context(emulator_serving(latency=planned.options.latency)))
                url, environment = f"cosmos+{servers[0].url}/bench", dict[str, str]()
            generator = stack.enter_context(WorkerPool(core=GENERATOR_CORE))
            for size_kb in planned.sizes_kb:
                with sandbox(url, planned.levels[-1], environment) as made:
                    running.measure_size(made, size_kb, servers, generator)
    except KeyboardInterrupt:  # between two trials; within one the generator handles it, and ends the trial
        running.interrupted = True
    return running.report


class _Running:
    """A sweep while it is made."""

    def __init__(self, planned: SweepPlan, display: ProgressDisplay) -> None:
        self._planned = planned
        self._display = display
        self._began_s = time.monotonic()
        self._found = list[Level]()
        self._publish_ru = dict[int, float]()
        self._regions = 1
        self.interrupted = False

    @property
    def report(self) -> Report:
        """What was measured until now."""
        made = Sweep(self._planned.options, tuple(self._found), self._publish_ru, self._regions, self.interrupted)
        return report(made, load_prices())

    @property
    def _own(self) -> bool:
        return self._planned.options.account is None

    @property
    def _emulated(self) -> bool:
        return self._own or is_emulated(self._planned.options.account or "")

    def _time_left(self, takes_s: float) -> bool:
        within_s = WITHIN_S * len(self._planned.sizes_kb)
        return not self._own or time.monotonic() + takes_s < self._began_s + within_s

    def measure_size(self, made: Sandbox, size_kb: int, servers: Sequence[Server], generator: WorkerPool) -> None:
        """Measure all levels with lists of one size, in a database of their own."""
        if self.interrupted:
            return
        lists = SizedLists(size_kb, LISTS, Throughput(self._planned.levels[-1]).initial_partitions)
        self._regions = len(made.account.regions)
        self._display.start(f"publishing {LISTS:,} lists of {size_kb} KB", 1.0)
        published = made.publish(lists)
        self._publish_ru[size_kb] = published.list_ru
        self._display.start("starting a service", 1.0)
        users = lists.users
        command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0"]  # or the store would not be read
        # Both servers come before others, or the service's deadline of 50 ms would measure what else the machine does.
        with (
            service_serving(command, PATH.format(key=users[0]), made.settings) as service,
            before_others(service, *servers),
        ):
            charge_ru = read_charge(service, users)
            runs = _Runs(service, users, generator, self._display)
            levels = [Level(ru=ru, size_kb=size_kb, charge_ru=charge_ru) for ru in self._planned.levels]
            most_s = runs.probe(levels[-1].capacity_s) if self._own else math.inf
            self._measure(levels, most_s, runs, partial(made.scale, published.container))

    def _measure(self, levels: Sequence[Level], most_s: float, runs: "_Runs", scale: Callable[[int], None]) -> None:
        """Measure levels of up to *most_s* reads a second, and compute the others."""
        planned, too_much = self._planned, f"this machine drives {most_s:,.0f} reads/s at most"
        essential_s = planned.takes_s(OVERLOAD, CALM)
        for number, level in enumerate(levels):
            unproven = too_much if OVERLOAD * level.capacity_s > most_s else ""
            if not unproven and not self._time_left(essential_s):
                unproven = "there was no time left for it"
            measured = replace(level, unproven=unproven)
            if not unproven:
                scale(level.ru)
                later = sum(OVERLOAD * each.capacity_s <= most_s for each in levels[number + 1 :])
                left = partial(self._time_left, planned.takes_s(OVERLOAD) + later * essential_s)
                attempt = partial(runs.attempt, level, planned.seconds)
                measured = measure_level(level, attempt, emulated=self._emulated, time_left=left)
            if measured.unproven and not unproven:  # nor are higher ones tried
                most_s, too_much = 0.0, f"this machine does not drive {level.ru:,} RU/s"
            self._found.append(measured)
            if any(each.result.interrupted for each in measured.trials):
                self.interrupted = True
                return


class _Runs:
    """Runs of the load generator against one service, and what its metrics say of each."""

    def __init__(self, service: Server, users: Sequence[str], generator: WorkerPool, display: ProgressDisplay) -> None:
        self._service = service
        self._requests = Gets(PATH, RequestKeys(users, InTurn()))
        self._generator = generator
        self._display = display

    def _run(self, name: str, rate: float | None, lasts_s: float, connections: int) -> Result:
        load = Load(
            url=self._service.url,
            requests=self._requests,
            rate=rate,
            duration_s=lasts_s,
            connections=connections,
            check=from_store,
        )
        self._display.start(name, lasts_s)
        return self._generator.run(load, self._display.update, on_the_second=True)

    def probe(self, accepts_s: float) -> float:
        """Return how many reads a second this machine may be asked for, if the store accepts *accepts_s*."""
        result = self._run("looking for what this machine drives", None, PROBE_S, PROBE_CONNECTIONS)
        return math.inf if result.ok_rate > UNLIMITED_SHARE * accepts_s else DRIVEN_SHARE * result.ok_rate

    def attempt(self, level: Level, seconds: Callable[[float], int], share: float) -> Trial:
        """Offer a share of what a level should accept."""
        rate, lasts_s = share * level.capacity_s, seconds(share) + LEAD_S + TAIL_S
        before = store_counts(self._service)
        result = self._run(f"{level.ru:,} RU/s at {share:.0%}: {rate:,.0f} reads/s", rate, lasts_s, CONNECTIONS)
        return trial(share, rate, result, store_counts(self._service).throttled - before.throttled)
