"""`hotplate bench ru`: reads/s at each level of throughput, without a cache."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from hotplate.base.report import Report
from hotplate.base.timing import HOUR_S
from hotplate.bench import process
from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import Gets, InTurn, Load, RequestKeys
from hotplate.bench.measure.experiment import Runs, until_stopped
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.options import USER_PATH, SweepOptions, parse_rate, parse_seconds
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.ru.levels import COMPUTED_FOR, LEAD_S, TAIL_S, Level, LevelTrial, from_store, measure_level, trial
from hotplate.bench.ru.sandbox import Sandbox, SizedLists, keyed_address, sandbox
from hotplate.bench.ru.sweep import Sweep, report
from hotplate.bench.stores.rounds import own_cosmos
from hotplate.stores.cosmos.url import (
    AUTOSCALE_MIN,
    AUTOSCALE_STEP,
    MANUAL_MIN,
    MANUAL_STEP,
    MAX_RU,
    Throughput,
    minimum_ru,
)

MANUAL_LEVELS = "400,1k,4k,10k,11k"
AUTOSCALE_LEVELS = "2k,4k,10k,11k"
LISTS = 1_000
MAX_ITEM_KB = 1024
CONNECTIONS = 128
# Trials of a level, unless one is unclear, and seconds between them.
TRIALS = 2
BETWEEN_S = 1.5
SETUP_S = 20.0


def plan(options: SweepOptions) -> Sweep:
    """Validate the options of a sweep over levels (settings of RU/s) and sizes of lists, and fill in defaults.

    Raises BenchMisused for invalid options, and StoreMisused for an account without a key.
    """
    listed = options.levels or (AUTOSCALE_LEVELS if options.autoscale else MANUAL_LEVELS)
    levels = tuple(sorted({_parse_level(level, autoscale=options.autoscale) for level in listed.split(",")}))

    # Azure limits how far a container can be scaled down, by the highest RU/s that it ever had.
    least = minimum_ru(levels[-1], 0, autoscale=options.autoscale)
    if levels[0] < least:
        raise BenchMisused(f"a container that had {levels[-1]:,} RU/s cannot be scaled below {least:,}; see --levels")

    duration_s = parse_seconds(options.duration)
    if duration_s < 2 or duration_s % 1:
        raise BenchMisused(f"--duration must be 2s or more in whole seconds, not {options.duration!r}")

    parse_latency(options.latency)  # only validated here
    if options.account is not None:
        keyed_address(options.account)
    return Sweep(options, levels, parse_sizes(options.item_kb, "--item-kb"), int(duration_s))


def parse_sizes(text: str, flag: str) -> tuple[int, ...]:
    """Parse sizes in KB, returned ascending. Raises BenchMisused."""
    words = {word.strip() for word in text.split(",")}
    sizes_kb = sorted(int(word) if word.isdecimal() else 0 for word in words)
    if not 1 <= sizes_kb[0] <= sizes_kb[-1] <= MAX_ITEM_KB:
        raise BenchMisused(f"{flag} must be whole KB from 1 to {MAX_ITEM_KB}, such as 1,4,16, not {text!r}")
    return tuple(sizes_kb)


def _parse_level(text: str, *, autoscale: bool) -> int:
    ru = parse_rate(text)
    least, step = (AUTOSCALE_MIN, AUTOSCALE_STEP) if autoscale else (MANUAL_MIN, MANUAL_STEP)
    if ru % step or not least <= ru <= MAX_RU:
        raise BenchMisused(f"a level is {least:,} to {MAX_RU:,} RU/s in steps of {step:,}, not {text!r}")
    return int(ru)


def account_regions(url: str) -> int:
    """Return an account's number of regions. Raises BenchMisused and BenchFailed."""
    with sandbox(url, MANUAL_MIN) as unused:  # so that no database is created
        return len(unused.regions())


def cost(planned: Sweep, regions: int, prices: Prices, now: float) -> list[str]:
    """Describe the database of a sweep and its cost, as lines of text. *now* is in seconds since 1970.

    For each size of lists, there is a container of lists at the highest level (a setting of RU/s), and a container of
    the catalogue at the minimum.
    """
    trial_s = planned.duration_s + LEAD_S + TAIL_S + BETWEEN_S
    duration_s = len(planned.sizes_kb) * (SETUP_S + len(planned.levels) * TRIALS * trial_s)
    ru = len(planned.sizes_kb) * (planned.levels[-1] + MANUAL_MIN)
    return database_cost(ru, regions, prices, now, duration_s, autoscale=planned.options.autoscale)


def database_cost(
    ru: int, regions: int, prices: Prices, now: float, took_s: float, *, autoscale: bool = False
) -> list[str]:
    """Describe the cost of *ru* RU/s from *now* on (seconds since 1970), for *took_s*."""
    hours = int((now + took_s) // HOUR_S - now // HOUR_S) + 1
    usd = prices.ru_hours(ru * hours, autoscale=autoscale, regions=regions)
    database = f"a temporary database with {ru:,} RU/s in {regions} region(s), for some {ceil(took_s / 60)} minutes"
    return [
        f"{database}, then dropped; the rest of the account is left alone",
        f"{usd:,.2f} USD: an hour of the clock is billed at its highest RU/s, and this touches {hours}",
        f"price: {prices['ru_hour'].provenance}",
    ]


def sweep(planned: Sweep, display: ProgressDisplay) -> Report:
    """Run a sweep. Ctrl-C, or an account that fails after the first level, gives a partial report.

    Raises BenchFailed, StoreError and, before the first level, KeyboardInterrupt.
    """
    ending = until_stopped(_SweepMeasurement(planned, display).run, planned.measured)
    return report(planned, ending, load_prices())


@dataclass(frozen=True, slots=True)
class _SweepMeasurement:
    """Measures the levels of a sweep, and appends them to it."""

    sweep: Sweep
    display: ProgressDisplay

    def run(self) -> None:
        """Measure all levels for each size of lists, each in a new database of the account, or of an emulator.

        A level in which Ctrl-C comes is not kept.
        """
        options = self.sweep.options
        with ExitStack() as stack:
            url = options.account
            environment = None
            if url is None:
                self.display.start("starting an emulator of Cosmos DB")
                url = stack.enter_context(own_cosmos(options.latency, self.sweep.levels[-1]))
                environment = dict[str, str]()  # no keys of real accounts
            runs = Runs(stack.enter_context(LoadWorker(process.GENERATOR_CORE)), self.display)

            for size_kb in self.sweep.sizes_kb:
                with sandbox(url, self.sweep.levels[-1], environment, autoscale=options.autoscale) as database:
                    self._measure_size(database, size_kb, runs)

    def _measure_size(self, database: Sandbox, size_kb: int, runs: Runs) -> None:
        """Publish lists of a size to a temporary database, and measure all levels (settings of RU/s) with a service."""
        self.display.start(f"publishing {LISTS:,} lists of {size_kb} KB")
        highest_throughput = self._throughput(self.sweep.levels[-1])
        lists = SizedLists(size_kb, LISTS, highest_throughput.initial_partitions)
        users = lists.users
        self.sweep.regions = database.regions()
        published = database.publish(lists)
        levels_of_size = [
            Level(ru=ru, size_kb=size_kb, charge_ru=published.read_ru, publish_ru=published.list_ru)
            for ru in self.sweep.levels
        ]

        self.display.start("starting a service")
        # It gets a higher priority, or other processes make it miss its deadline of 50 ms.
        with (
            process.service_serving(
                database.url, USER_PATH.format(key=users[0]), variables=database.environment
            ) as service,
            process.before_others(service),
        ):
            self._measure_levels(
                levels_of_size,
                scale=partial(database.scale, published.release),
                attempt=partial(self._attempt, service, users, runs),
            )

    def _measure_levels(
        self,
        planned: Sequence[Level],
        *,
        scale: Callable[[Throughput], None],
        attempt: Callable[[Level, float], LevelTrial],
    ) -> None:
        """Measure *planned*, settings of RU/s in ascending order, and append them to `self.sweep.measured`.

        Once this machine does not drive a level, all higher ones are computed, without trials.

        scale    changes the container's RU/s
        attempt  runs a trial of a level at a share of its capacity
        """
        for number, level in enumerate(planned, 1):
            scale(self._throughput(level.ru))
            measured = measure_level(level, partial(attempt, level), emulated=self.sweep.emulated)
            self.sweep.measured.append(measured)
            if measured.is_computed and measured.outcome.is_limited:
                computed = COMPUTED_FOR(f"this machine does not drive {level.ru:,} RU/s")
                self.sweep.measured += [replace(higher, outcome=computed) for higher in planned[number:]]
                return

    def _attempt(
        self, service: process.Server, users: Sequence[str], runs: Runs, level: Level, share: float
    ) -> LevelTrial:
        """Request the lists of *users* in turn, at a share of a level's capacity in reads/s, and return the trial.

        The service's metrics, before and after, count the 429s and the timeouts of its reads. Raises BenchFailed if the
        service or the store ended.
        """
        rate = share * level.capacity_per_s
        load = Load(
            url=service.url,
            requests=Gets(USER_PATH, RequestKeys(users, InTurn())),
            rate=rate,
            duration_s=float(self.sweep.duration_s + LEAD_S + TAIL_S),
            connections=CONNECTIONS,
            check=from_store,
        )
        counts_before = process.store_counts(service)
        result = runs.run(load, shown=f"{level.ru:,} RU/s at {share:.0%}: {rate:,.0f} reads/s")
        counts = process.store_counts(service) - counts_before
        if not (result.ok or counts["throttled"] or counts["timeout"]):
            raise BenchFailed(f"none of {result.due:,} lists came from the store, which may have ended")
        return trial(share, result, counts["throttled"], counts["timeout"])

    def _throughput(self, ru: int) -> Throughput:
        return Throughput(ru, self.sweep.options.autoscale)
