"""One measurement of a service over HTTP, from its options to the report: rounds, a search, or a sweep of batches."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from hotplate.bench.answers import check_answers
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen import capacity
from hotplate.bench.loadgen.keys import InTurn, KeyDraw, RequestKeys, Uniform, Zipf
from hotplate.bench.loadgen.load import KEY, Gets, Load, Posts, send_one
from hotplate.bench.loadgen.recorder import ResponseSample
from hotplate.bench.loadgen.result import Result, at_least
from hotplate.bench.loadgen.workers import WorkerPool
from hotplate.bench.options import HttpOptions, require_positive
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.quantities import parse_rate, parse_seconds, parse_share
from hotplate.bench.report import text
from hotplate.bench.report.report import ERRORS, RATE, Report, counted, series
from hotplate.bench.stores.server import opened
from hotplate.stores.keys import USER
from hotplate.stores.urls import redacted

DEFAULT_RATE = "1k"

# Requests at a time in a sweep of batches.
PARALLEL = 20

# Responses of a round that are compared with the store.
COMPARED = 500

OBSERVED = ("source", "tier", "release")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlan:
    """What is to be measured, and the options that were read for it.

    With `find_max` the highest rate inside the `objective` is looked for first, from the load's own rate on, and the
    rounds are made at that; otherwise the objective only bounds errors. With `batches`, POSTs for so many of the `keys`
    each are made instead. With a `store` the responses that the load keeps as samples are compared with what it holds.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: capacity.Objective
    batches: Sequence[int]
    keys: RequestKeys | None


def make_plan(options: HttpOptions) -> HttpPlan:
    """Read the options. Raises BenchMisused for what makes no sense, StoreError if no users can be read."""
    _only_one({"--rate": options.rate, "--closed": options.closed or None})
    _only_one({"--keys-file": options.keys_file, "--users": options.users})
    _only_one({"--find-max": options.find_max or None, "--batch": options.batch, "--closed": options.closed or None})
    if options.score and not options.batch:
        raise BenchMisused("--score says where batches go: give their sizes, as --batch 50,200,500,1000,2000")
    require_positive({"--repeat": options.repeat, "--processes": options.processes, "--backlog": options.backlog})
    keys = parse_keys(options) if options.batch or KEY in options.path else None
    load = Load(
        url=options.url,
        requests=Gets(options.path, keys),
        rate=None if options.closed else parse_rate(options.rate or DEFAULT_RATE),
        seed=options.seed if options.poisson else None,
        duration_s=parse_seconds(options.duration),
        think_s=parse_seconds(options.think),
        connections=options.connections,
        headers=_headers(options.headers),
        spin=options.spin,
        timeout_s=parse_seconds(options.timeout),
        backlog=options.backlog,
        observe=OBSERVED,
    )
    if options.store and keys is not None:
        load = replace(load, sample_every=_sample_every(load, batched=options.batch is not None))
    load.share(options.processes - 1, options.processes)  # refuses more processes than connections
    return HttpPlan(
        options=options,
        load=load,
        warmup_s=parse_seconds(options.warmup),
        objective=capacity.parse_objective(options.slo),
        batches=_sizes(options.batch) if options.batch else (),
        keys=keys,
    )


def parse_keys(options: HttpOptions) -> RequestKeys:
    """Find the users whose lists are requested."""
    if options.keys_file is not None:
        ids: Sequence[str] = [line for line in options.keys_file.read_text().splitlines() if line]
    elif options.users is not None:
        ids = [str(number) for number in range(options.users)]
    elif options.store is not None:
        ids = asyncio.run(_users_in(options.store))
    else:
        raise BenchMisused("say whose lists to request: --users N, --keys-file FILE or --store URL")
    in_turn_or_uniform = InTurn() if options.keys_file is not None else Uniform()
    draw: KeyDraw = in_turn_or_uniform if options.zipf is None else Zipf(options.zipf)
    return RequestKeys(tuple(ids), draw, parse_share(options.unknown), options.seed)


async def _users_in(url: str) -> list[str]:
    async with opened(url) as store:
        live = (await store.catalogue()).live_ref
        if live is None:
            raise BenchMisused(f"nothing is live in {redacted(url)}, so it has no users whose lists could be requested")
        return [key.removeprefix(USER) async for key, _ in store.scan(live) if key.startswith(USER)]


def _headers(given: Sequence[str]) -> Mapping[str, str]:
    pairs = [header.partition(":") for header in given]
    if any(not colon for _, colon, _ in pairs):
        raise BenchMisused("a header is written NAME:VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(each) for each in text.split(",")]
    except ValueError:
        raise BenchMisused(f"sizes of batch are whole numbers, as 1,50,200, not {text!r}") from None
    if min(sizes) < 1:
        raise BenchMisused("a batch has one user or more")
    return sizes


def _sample_every(load: Load, *, batched: bool) -> int:
    """Keep about COMPARED responses a round, by a number that no cycle of keys is likely to share."""
    if batched:
        return 41
    expected = load.rate * load.duration_s if load.rate else 100 * COMPARED
    return max(1, int(expected / COMPARED)) | 1


def _only_one(given: Mapping[str, object]) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise BenchMisused(f"{' and '.join(names)} exclude each other")


def measure(plan: HttpPlan, display: ProgressDisplay) -> Report:
    """Measure; Ctrl-C ends it with what there is by then. Raises BenchFailed if nothing answers."""
    load = plan.load
    send_one(load.url, next(load.rendered()), load.timeout_s, load.ca)
    with WorkerPool(plan.options.processes) as pool:
        made = _HttpMeasurement(plan, pool, display)
        try:
            made.run()
        except KeyboardInterrupt:  # between two runs; within one the pool notices it, and ends the run
            made.interrupted = True
    return made.report()


class _HttpMeasurement:
    """A plan while it is carried out."""

    def __init__(self, plan: HttpPlan, pool: WorkerPool, display: ProgressDisplay) -> None:
        self._plan = plan
        self._pool = pool
        self._display = display
        self._swept = list[capacity.Point]()
        self._searched = list[capacity.Point]()
        self._samples = list[ResponseSample]()
        self._kept = list[Result]()
        self.interrupted = False

    def run(self) -> None:
        """Make all runs."""
        plan, load = self._plan, self._plan.load
        if plan.warmup_s:
            self._run("warm-up", replace(load, duration_s=plan.warmup_s, sample_every=0))
        if plan.batches:
            self._sweep_batches()
            return
        if plan.options.find_max:
            self._find_max(load, plan.objective)
            if (found := capacity.highest(self._searched)) is None:
                return
            load = replace(load, rate=found.at)
        for number in range(1, plan.options.repeat + 1):
            if not self.interrupted:
                self._run_and_keep(f"round {number} of {plan.options.repeat}", load)

    def report(self) -> Report:
        """Sum up what was measured until now, with a series of all rounds, or one for each size of batch."""
        plan, best, results = self._plan, capacity.highest(self._searched), self._kept
        failures = [] if results or self._searched else ["nothing was measured"]
        due = sum(each.due for each in results)
        broken = plan.objective.errors_beyond((due - sum(each.ok for each in results)) / max(1, due))
        extra = dict[str, Any]()
        if self._searched:
            points = [each.to_json() for each in self._searched]
            ended = capacity.first_outside(self._searched)
            extra["search"] = {"objective": str(plan.objective), "highest": best and best.at, "points": points}
            extra["search"]["at_least"] = "; ".join(ended.invalid_reasons) if ended and ended.unclear else ""
            broken += [] if best else [f"no rate was inside the objective {plan.objective}"]
        if self._swept:
            most, points = capacity.knee(self._swept), [each.to_json() for each in self._swept]
            extra["sweep"] = {"parallel": PARALLEL, "knee": most and most.at, "points": points}
            bounds = [f"at batch {each.at:g} {each.at_least}" for each in self._swept if each.at_least]
            failures += [f"the knee is not known: {each}" for each in bounds[:1]]
        if store := plan.options.store:
            checked = asyncio.run(check_answers(store, self._samples))
            extra["checked"] = asdict(checked)
            broken += [f"{checked.wrong} of {checked.compared} compared answers were wrong"] if checked.wrong else []
        shown = [series(f"batch {found.at:g}", [one]) for found, one in zip(self._swept, results, strict=False)]
        made = Report(
            kind="http",
            configuration=plan.options.to_json(),
            series=tuple(shown) if plan.batches else (series(plan.load.url, results),),
            interrupted=self.interrupted,
            failures=tuple(failures),
            broken=tuple(broken),
            extra=extra,
        )
        return replace(made, summary=summary(made, plan.objective))

    def _find_max(self, load: Load, objective: capacity.Objective) -> None:
        if load.rate is None:
            raise BenchMisused("a search needs an open loop: a closed one sends no more than is answered")

        def attempt(rate: float) -> Result:
            return self._run(f"{rate:,.0f} requests/s", replace(load, rate=rate))

        self._searched += capacity.find_max(attempt, objective, load.rate)

    def _sweep_batches(self) -> None:
        plan = self._plan
        if plan.keys is None:
            raise BenchMisused("a sweep of batches needs users whose lists to request")
        for size in plan.batches:
            if self.interrupted:
                return
            requests = Posts(plan.keys, size, score=plan.options.score)
            load = replace(plan.load, requests=requests, rate=None, connections=PARALLEL)
            self._swept.append(capacity.batch_point(size, self._run_and_keep(f"batch {size}", load)))

    def _run_and_keep(self, name: str, load: Load) -> Result:
        self._kept.append(self._run(name, load))
        return self._kept[-1]

    def _run(self, name: str, load: Load) -> Result:
        self._display.start(name, load.duration_s)
        result = self._pool.run(load, self._display.update)
        self._samples += result.samples
        self.interrupted = self.interrupted or result.interrupted
        return result


def summary(made: Report, objective: capacity.Objective) -> text.Summary:
    """Say in one sentence what was found, with three figures of the service, or of each size of batch."""
    percentile, footnotes, sweep = objective.percentile, text.Footnotes(), made.extra.get("sweep")
    rounds = [each for each in made.series if each.rounds]
    rows, headings = list[tuple[text.Cell, ...]](), (percentile, "good answers/s", "errors and drops")
    for each in rounds:
        least = "at least " * bool(each.at_least)
        rate = f"{least}{fmean(each.values(RATE)):,.0f}", each.at_least
        rows.append((each.name, each.cell(percentile, footnotes), rate, f"{fmean(each.values(ERRORS)):.3%}"))
    if sweep:
        headings = "users/s", "p99", "got the popular list"
        rows = [
            (
                f"batch of {one['at']:g}",
                (f"{at_least(one)}{one['per_s']:,.0f}", f"errors {one['error_share']:.2%}" * bool(one["error_share"])),
                (text.format_us(one["p99_us"]), f"p50 {text.format_us(one['p50_us'])}"),
                f"{one['popular']:.1%}",
            )
            for one in sweep["points"]
        ]
    if made.invalid_reasons:
        sentence = f"These figures do not measure the service, because {counted(made.invalid_reasons)[0]}."
    elif sweep:
        sentence = f"The smallest batch that gives 90% of the most users/s is {sweep['knee'] or 'not known'}."
    elif found := made.extra.get("search"):
        sentence = f"The highest rate inside {objective} is {capacity.highest_text(found)}."
    elif rounds:
        _, latency, answers, _ = rows[0]
        shown = "not known" if str(latency).startswith(text.UNKNOWN) else text.joined(latency)
        sentence = f"{percentile} is {shown} at {text.joined(answers)} good answers/s."
    else:
        return text.NOTHING
    return text.Summary(sentence, headings, tuple(rows), footnotes.lines, percentile)
