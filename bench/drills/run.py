"""Drills from end to end: an instance under steady load, the fault, what is seen of it, and the verdict."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, Self

from hotplate.bench.answers import CheckResult, check_answers
from hotplate.bench.drills.drills import Drill, Metric
from hotplate.bench.drills.instance import BUDGET_S, USERS, Instance, key_of, started
from hotplate.bench.errors import BenchFailed
from hotplate.bench.loadgen.keys import InTurn, RequestKeys
from hotplate.bench.loadgen.load import KEY, Gets, Load
from hotplate.bench.loadgen.result import Result, merged, spread
from hotplate.bench.loadgen.workers import WorkerPool
from hotplate.bench.options import require_positive
from hotplate.bench.process import read_samples
from hotplate.bench.report.text import format_bounds
from hotplate.bench.stores.setup import EMULATED_SCHEMES, EMULATOR
from hotplate.stores.keys import USER

# What a drill goes through.
BEFORE, FAULT, AFTER = PHASES = "before", "fault", "after"

PATH = f"/v1/recommendations/{KEY}"
RATE = 300.0
CONNECTIONS = 16

# When a request is given up, and counts as not answered.
ANSWER_TIMEOUT_S = 10.0

# The load is made in windows, so it can go on for as long as a fault does; the first is for warming up.
WINDOW_S = 0.5
WINDOWS = 2
WARM_UP = "warm-up"

# How often metrics and readiness are looked at, and how long one look may take.
LOOK_S = 0.2
LOOK_TIMEOUT_S = 10.0

# So many answers in a row, of different users, show that the first tier answers again.
IN_A_ROW = 10


@dataclass(frozen=True, slots=True)
class Phase:
    """The answers of one part of a drill. Its p99 lies between two: from when requests were sent, and were due."""

    due: int
    ok: int
    errors: Mapping[str, int]
    sources: Mapping[str, int]
    tiers: Mapping[str, int]
    p99_us: tuple[float, float]
    late: str = ""
    """What kept the load generator from its pace, if something did."""


def phase_of(results: Sequence[Result]) -> Phase:
    """Add up windows of load that followed each other."""
    whole = merged(results)
    least, most = (
        found.p99 if (found := spread(each)) else 0.0 for each in (whole.sent_latencies_s, whole.latencies_s)
    )
    sources, tiers = whole.seen["source"], whole.seen["tier"]
    return Phase(whole.due, whole.ok, whole.errors, sources, tiers, (least, most), whole.disturbance)


@dataclass(frozen=True, slots=True)
class Movement:
    """A metric while a fault lasted: its value before, the highest that was seen, and when it was first higher."""

    says: str
    metric: str
    before: float
    highest: float
    after_s: float | None


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen of one drill: `unready` of `probes` requests of `/readyz` during the fault were not ready."""

    phases: dict[str, Phase]
    compared: CheckResult
    probes: int
    unready: int
    movements: tuple[Movement, ...]
    recovered_s: float | None
    """From the end of the fault until all was as before; None if it was not in time."""


@dataclass(frozen=True, slots=True)
class PromiseCheck:
    """One promise, whether it was kept, and what was found."""

    promise: str
    kept: bool
    found: str


@dataclass(frozen=True, slots=True)
class DrillVerdict:
    """Whether a drill's promises were kept, each by itself and all of them."""

    name: str
    what: str
    tiers: tuple[str, ...]
    checks: tuple[PromiseCheck, ...]
    observed: Observation

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(check.kept for check in self.checks)

    @property
    def sentence(self) -> str:
        """Say in a line how it went."""
        found = "; ".join(check.found for check in self.checks)
        on = ", ".join(f"{tier}: {EMULATOR}" if tier in EMULATED_SCHEMES else tier for tier in self.tiers)
        return f"{self.name} ({on}): {'kept' if self.kept else 'broken'}: {found}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self) | {"kept": self.kept}


def judge(observed: Observation, options: "DrillOptions", own_share: float) -> tuple[PromiseCheck, ...]:
    """Compare what was observed with what is promised; *own_share* of the answers during a fault are users' own."""
    phases, fault, compared = observed.phases.values(), observed.phases[FAULT], observed.compared
    due, ok = sum(each.due for each in phases), sum(each.ok for each in phases)
    errors = sum((Counter(each.errors) for each in phases), Counter[str]())
    failed = "".join(f", {count:,} {kind}" for kind, count in errors.items())
    example = f" ({compared.examples[0]})" if compared.examples else ""
    ready = f"/readyz 200 {observed.probes - observed.unready} of {observed.probes} times"
    moved = [
        PromiseCheck(
            f"{each.metric} rises",
            each.after_s is not None,
            f"{each.says} {'never' if each.after_s is None else f'after {each.after_s:.1f} s'}",
        )
        for each in observed.movements
    ]
    within, after_s = f"within {options.recover_s:g} s", observed.recovered_s
    recovered = f"not as before {within}" if after_s is None else f"as before after {after_s:.1f} s"
    return (
        PromiseCheck("every request is answered", 0 < due == ok, f"{ok:,} of {due:,} answered{failed}"),
        PromiseCheck(
            "no answer is another list",
            compared.compared > 0 == compared.wrong,
            f"{compared.wrong:,} of {compared.compared:,} lists wrong{example}",
        ),
        _own_lists(fault, own_share),
        _in_time(fault, options.p99_s),
        PromiseCheck("the service stays ready", observed.unready == 0 < observed.probes, ready),
        *moved,
        PromiseCheck(f"all is as before {within}", after_s is not None, recovered),
    )


def _own_lists(phase: Phase, least: float) -> PromiseCheck:
    answers = max(1, sum(phase.sources.values()))
    own = phase.sources.get("personal", 0) / answers
    tiers = ", ".join(f"{count / answers:.0%} {tier}" for tier, count in phase.tiers.items())
    promise = f"{least:.0%} or more get their own list" if least else "what cannot be read is the popular list"
    return PromiseCheck(promise, own >= least, f"{own:.1%} own lists from {tiers}")


def _in_time(phase: Phase, p99_s: float) -> PromiseCheck:
    found = f"p99 {format_bounds(*phase.p99_us)}"
    if phase.p99_us[1] > p99_s * 1e6 and phase.late:
        found += f" ({phase.late})"
    return PromiseCheck(f"p99 within {p99_s * 1000:g} ms", phase.p99_us[0] <= p99_s * 1e6, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions:
    """How drills are made; the same for all of them. Times are in seconds."""

    tiers: tuple[str, ...] = ()
    """The kinds of stores, the one that is disturbed first; empty for those of each drill."""

    duration_s: float = 3.0
    p99_s: float = BUDGET_S + 0.2
    """What a p99 may take: more than the budget of all reads of a request."""

    recover_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is not a quantity."""
        require_positive({"--duration": self.duration_s, "--p99": self.p99_s, "--recover": self.recover_s})


async def run_drills(
    drills: Sequence[Drill],
    options: DrillOptions,
    on_stage: Callable[[str], None],
    on_verdict: Callable[[DrillVerdict], None],
) -> list[DrillVerdict]:
    """Make drills one after the other, each on an instance of its own; BenchFailed if one does not come up.

    *on_stage* is called with a sentence on what is done next.
    """
    verdicts = list[DrillVerdict]()
    with WorkerPool() as pool:
        for drill in drills:
            kinds = drill.tiers(options.tiers)
            on_stage(f"starting {', '.join(kinds)} and a service")
            async with started(kinds) as instance:
                if await _settled(instance, options.recover_s) is None:
                    raise BenchFailed(f"the test instance did not come up within {options.recover_s:g} s")
                load = SteadyLoad(instance, pool)
                observed = await _observe(drill, options, instance, load, lambda now: on_stage(f"{drill.name}: {now}"))  # noqa: B023 -- called within this turn
            tiers = tuple(tier.name for tier in instance.tiers)
            checks = judge(observed, options, drill.own_share(tiers))
            verdicts.append(DrillVerdict(drill.name, drill.what, tiers, checks, observed))
            on_verdict(verdicts[-1])
    return verdicts


async def _observe(
    drill: Drill, options: DrillOptions, instance: Instance, load: "SteadyLoad", on_stage: Callable[[str], None]
) -> Observation:
    metrics = drill.metrics_in(instance)
    async with load:
        on_stage("load without a fault")
        await load.windows(BEFORE)
        on_stage(drill.what)
        taken = [await _sample(instance, metrics)]
        if metrics and not taken[0].values:  # a rise could not be seen
            raise BenchFailed("the service's metrics could not be read before the fault; is the machine too busy?")
        load.phase = FAULT
        async with drill.fault(instance):
            await _watch(instance, metrics, taken, options)
        on_stage("until all is as before")
        recovered_s = await _settled(instance, options.recover_s)
        await load.windows(AFTER)
    samples = [sample for results in load.results.values() for each in results for sample in each.samples]
    return Observation(
        phases={phase: phase_of(load.results[phase]) for phase in PHASES},
        compared=await check_answers(instance.published, samples),
        probes=len(taken) - 1,
        unready=sum(not each.ready for each in taken[1:]),
        movements=_movements(metrics, taken),
        recovered_s=recovered_s,
    )


class SteadyLoad:
    """An open loop that goes on, window after window, until its block ends; lives for one drill."""

    def __init__(self, instance: Instance, pool: WorkerPool) -> None:
        self.phase = WARM_UP
        """To which windows belong that begin now; all that touch a fault are the fault's."""
        self.results = defaultdict[str, list[Result]](list)
        users = RequestKeys(tuple(key_of(number).removeprefix(USER) for number in range(USERS)), InTurn())
        self._load = Load(
            url=instance.service.url,
            requests=Gets(PATH, users),
            rate=RATE,
            duration_s=WINDOW_S,
            connections=CONNECTIONS,
            timeout_s=ANSWER_TIMEOUT_S,
            observe=("source", "tier"),
            sample_every=1,
        )
        self._pool = pool
        self._over = False

    async def __aenter__(self) -> Self:
        """Begin."""
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let the window that has begun be the last."""
        self._over = True
        await self._running

    async def _run(self) -> None:
        while not self._over:
            began = self.phase
            result = await asyncio.to_thread(self._pool.run, self._load)
            self.results[FAULT if self.phase == FAULT else began].append(result)

    async def windows(self, phase: str) -> None:
        """Wait for some whole windows of a phase that begins now."""
        self.phase = phase
        while len(self.results[phase]) < WINDOWS:
            if self._running.done():
                self._running.result()  # raises what ended it
            await asyncio.sleep(WINDOW_S / 10)


class ServiceSample(NamedTuple):
    """What operators see of a service: whether it is ready, and some metrics; none if it is gone."""

    at_s: float
    ready: bool
    values: Sequence[float] = ()


async def _sample(instance: Instance, metrics: Sequence[Metric]) -> ServiceSample:
    ready = (await asyncio.to_thread(_get, f"{instance.service.url}/readyz"))[0] == HTTPStatus.OK
    try:
        samples = await asyncio.to_thread(read_samples, f"{instance.service.admin_url}/metrics")
    except OSError:
        return ServiceSample(time.monotonic(), ready)
    values = [
        sum(each.value for each in samples if each.name == metric.name and metric.labels.items() <= each.labels.items())
        for metric in metrics
    ]
    return ServiceSample(time.monotonic(), ready, values)


async def _watch(
    instance: Instance, metrics: Sequence[Metric], taken: list[ServiceSample], options: DrillOptions
) -> None:
    """Look for as long as a fault lasts, and on until every metric has risen, but not longer than a recovery takes."""
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < options.duration_s or (
        passed_s < options.recover_s and any(each.after_s is None for each in _movements(metrics, taken))
    ):
        taken.append(await _sample(instance, metrics))
        await asyncio.sleep(LOOK_S)


def _movements(metrics: Sequence[Metric], taken: Sequence[ServiceSample]) -> tuple[Movement, ...]:
    """Return how each metric has moved since the first look."""
    found = list[Movement]()
    for place, metric in enumerate(metrics):
        (began_s, before), *later = ((each.at_s, each.values[place]) for each in taken if each.values)
        after_s = next((at_s - began_s for at_s, value in later if value > before + metric.by), None)
        written = ",".join(f'{label}="{value}"' for label, value in metric.labels.items())
        name = f"{metric.name}{{{written}}}" if written else metric.name
        found.append(Movement(metric.says, name, before, max([before, *(value for _, value in later)]), after_s))
    return tuple(found)


async def _settled(instance: Instance, within_s: float) -> float | None:
    """Wait until the first tier answers everybody out of the newer release, and the service says that it is well.

    Return how long that took, in seconds, or None if it took longer than *within_s*.
    """
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < within_s:
        if await asyncio.to_thread(_is_well, instance):
            return passed_s
        await asyncio.sleep(LOOK_S)
    return None


def _is_well(instance: Instance) -> bool:
    expected = ("personal", instance.first.name, instance.newer)
    for number in range(IN_A_ROW):
        path = PATH.replace(KEY, key_of(number).removeprefix(USER))
        _, answer = _get(instance.service.url + path)
        if tuple(answer.get(name) for name in ("source", "tier", "release")) != expected:
            return False
    return bool(_get(f"{instance.service.admin_url}/readyz")[1].get("status") == "ready")


def _get(url: str) -> tuple[int, dict[str, Any]]:
    """Request a page of JSON of the instance; a status of 0 if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=LOOK_TIMEOUT_S) as response:  # noqa: S310 -- on loopback
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}
