"""Rounds of a comparison of stores, which take turns, in a random order and then in the reverse (B A, A B, A B, …)."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import quote

from hotplate.base.report import Row, format_value
from hotplate.bench import process
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import BY_REDIS_PY, BY_SDK, COSMOS_DB, COSMOS_EMULATOR, FILES
from hotplate.bench.figure_names import REDIS as REDIS_NAME
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import KEY, Gets, KeyDraw, Load, RequestKeys
from hotplate.bench.loadgen.result import P99_SAMPLES, Result, lateness
from hotplate.bench.measure.experiment import Runs, until_stopped
from hotplate.bench.measure.lists import (
    CheckResult,
    Shape,
    first_users,
    live_in,
    popular_complaint,
    publish_rows,
    read_charge,
)
from hotplate.bench.measure.objective import Objective
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.measure.statistics import in_time
from hotplate.bench.options import USER_PATH, VENDOR, is_emulated, store_url
from hotplate.bench.verdict import MIN_ROUNDS, Finding, Gravity, findings_of, no_verdict, prefixed
from hotplate.stores.connect import COSMOS, REDIS, opened
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import ChargeCounter
from hotplate.stores.transfer import copy
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import load_manifest

COMPARED = 20  # responses of a round to compare with the store
SDK_RATE = 100.0  # azure-cosmos takes 1 ms of CPU a read
# A mostly idle service takes several times as much CPU for each request. These connections stay
# within EMULATOR_RU.
FULL_S = 0.5
FULL_CONNECTIONS = 32
OBJECTIVE = Objective({})  # of errors only
LIST_LENGTH = 20
EMULATOR_RU = 10_000  # writes the lists in seconds
PATIENCE_S = 1.0  # that services wait for a read: after 50 ms, a slow read would become a fast popular list
BETWEEN_S = 0.25  # from one run to the next
MEASURING_S = 130.0  # of all rounds, unless their number is given


@dataclass(frozen=True, slots=True)
class Candidate:
    """A compared store and its service; `charge_ru` is that of a read of Cosmos DB."""

    name: str
    url: str
    manifest: Manifest
    service: process.Server
    charge_ru: float | None = None

    @property
    def emulated(self) -> bool:
        """Whether its latencies are an emulator's."""
        return is_emulated(self.url)

    @property
    def metered(self) -> bool:
        """Whether reads cost request units."""
        return self.scheme in COSMOS

    @property
    def scheme(self) -> str:
        """The scheme of its store's URL."""
        return scheme_of(store_url(self.url))

    @property
    def client(self) -> str:
        """The vendor's client that reads it, for comparison with ours, as BY_SDK; empty for ours."""
        return client_of(self.url)


def client_of(url: str) -> str:
    """Return the vendor's client that reads the store at *url*, as BY_SDK; empty for ours."""
    if not url.startswith(VENDOR):
        return ""
    return BY_SDK if scheme_of(store_url(url)) in COSMOS else BY_REDIS_PY


@dataclass(frozen=True, slots=True)
class Setup:
    """Stores, users to request, and notes for the report."""

    candidates: tuple[Candidate, ...]
    users: tuple[str, ...]
    notes: tuple[str, ...] = ()


@contextmanager
def own_stores(latency: str) -> Iterator[tuple[list[str], list[str]]]:
    """Start stores for a comparison on this machine; yield their URLs, and notes for the report; stop them at the end.

    They are files in a temporary folder, a Redis, if it is installed, and an emulator of Cosmos DB with an assumed
    *latency* (as `p50=4ms,p99=10ms`). Redis and Cosmos DB have a second URL each, to be read by the vendor's client.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-bench-"))
        urls = [f"file://{folder}/store"]
        notes = list[str]()

        if shutil.which(process.REDIS_SERVER):
            redis = stack.enter_context(process.redis_serving(process.STORE_CORE))
            stack.enter_context(process.before_others(redis.process))
            urls += (redis.url(), VENDOR + redis.url())
        else:
            notes.append(f"Redis is left out: {process.REDIS_MISSING}.")

        cosmos = stack.enter_context(own_cosmos(latency, EMULATOR_RU))
        yield [*urls, cosmos, VENDOR + cosmos], notes


@contextmanager
def own_cosmos(latency: str, ru: int) -> Iterator[str]:
    """Start an emulator with an assumed latency; yield a URL of *ru* RU/s."""
    with process.emulator_serving(latency=latency) as emulator, process.before_others(emulator):
        yield f"cosmos+{emulator.url}/hotplate?ru={ru}"


@contextmanager
def prepared_stores(urls: Sequence[str], users: int, display: ProgressDisplay) -> Iterator[Setup]:
    """Fill those of the stores at *urls* that are empty, and run a service of each store until the block ends.

    *users* is the number of users to request, and to generate lists for if all stores are empty. Raises BenchMisused
    before any write if stores serve different models.
    """
    names = store_names(urls)
    lists = asyncio.run(_share_lists(dict(zip(urls, names, strict=True)), users, display))

    # A service is ready when it answers for the first user.
    path = _path_of(lists.users[0])
    options = ("--budget", f"{PATIENCE_S:g}")
    with ExitStack() as stack:
        display.start(f"starting {format_value(len(urls), 'services')}")
        services = [stack.enter_context(process.service_serving(url, path, options)) for url in urls]
        stack.enter_context(process.before_others(*services))  # with a higher priority
        charges_ru = [asyncio.run(_charge_of(url, lists.users)) for url in urls]
        candidates = map(Candidate, names, urls, lists.manifests, services, charges_ru)
        yield Setup(tuple(candidates), lists.users, lists.notes)


def _path_of(user: str) -> str:
    return USER_PATH.replace(KEY, quote(user, safe=""))


async def _charge_of(url: str, users: Sequence[str]) -> float | None:
    """Return the request units of reading a list; None for stores without them."""
    if scheme_of(store_url(url)) not in COSMOS:
        return None
    charges = ChargeCounter()
    async with opened(store_url(url), charges) as store:
        return await read_charge(store, charges, users)


def store_names(urls: Sequence[str]) -> list[str]:
    """Name each store uniquely: by kind, redacted URL, or URL and number."""
    kinds = [_kind_of_store(url) for url in urls]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind} {redacted(url)}" for kind, url in zip(kinds, urls, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _kind_of_store(url: str) -> str:
    """Return what a report calls a store of this URL: its kind, and the client unless it is ours."""
    scheme = scheme_of(store_url(url))
    kind = f"{scheme}://"
    if scheme == "file":
        kind = FILES
    elif scheme in REDIS:
        kind = REDIS_NAME
    elif scheme in COSMOS:
        kind = COSMOS_EMULATOR if is_emulated(url) else COSMOS_DB
    return kind + client_of(url)


class SharedLists(NamedTuple):
    """The lists that all stores hold: their manifests in the order of the stores, users, and notes for the report."""

    manifests: tuple[Manifest, ...]
    users: tuple[str, ...]
    notes: tuple[str, ...]


async def _share_lists(names: Mapping[str, str], users: int, display: ProgressDisplay) -> SharedLists:
    """Fill the empty stores with the lists of the first store that has some, so that all serve the same.

    names  names of the stores by their URLs
    users  number of users to request, and to generate lists for if all stores are empty

    Raises BenchMisused if stores serve lists of different models, before anything is written.
    """
    notes = tuple[str, ...]()
    async with AsyncExitStack() as stack:
        stores = {url: await stack.enter_async_context(opened(url)) for url in names}
        live = {url: release for url, store in stores.items() if (release := (await store.catalogue()).live_ref)}
        manifests = {url: await load_manifest(stores[url], release) for url, release in live.items()}
        _require_same_lists(manifests)
        if not live:
            notes = (f"Lists of {LIST_LENGTH} items are generated for {users:,} users.",)
            url, name = next(iter(names.items()))
            display.start(f"writing lists for {users:,} users into {name}")
            shape = Shape(users, LIST_LENGTH)
            live[url] = await publish_rows(stores[url], shape.batches(shape.values()), shape.plan, "zstd", display.step)

        source, release = next(iter(live.items()))
        for url, store in stores.items():
            if url not in live:
                display.start(f"writing the lists into {names[url]}")
                await copy(stores[source], store, release.id, on_progress=display.step)
            manifests[url] = await load_manifest(store, await live_in(store))
        requested = await first_users(stores[source], release, users)
    return SharedLists(tuple(manifests[url] for url in names), tuple(requested), notes)


def _require_same_lists(manifests: Mapping[str, Manifest]) -> None:
    """Raise BenchMisused unless the live releases of stores, by URL, have lists of one model."""
    for url, manifest in manifests.items():
        first_url, first = next(iter(manifests.items()))
        if not manifest.has_lists_of(first):
            raise BenchMisused(
                f"{redacted(url)} serves release {manifest.release} and {redacted(first_url)} {first.release}, which "
                "are not of one model; publish one model to both, or bring one release into both: hotplate releases "
                "copy ID --from URL --to URL"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSettings:
    """Settings of the rounds; without `rounds`, as many are made as fit into MEASURING_S, and MIN_ROUNDS at least."""

    rate: float
    duration_s: float
    warmup_s: float
    draw: KeyDraw
    rounds: int | None = None
    full_s: float = 0.0
    """Seconds of full load for each store and round."""

    def count(self, stores: int) -> int:
        """Return the number of rounds in which *stores* are measured."""
        fitting = MEASURING_S / (stores * (self.duration_s + self.full_s + BETWEEN_S))
        return self.rounds or max(MIN_ROUNDS, int(fitting))


@dataclass(frozen=True, slots=True)
class ServiceRun:
    """A run through a service; `full` is the round's run at full load, if allowed."""

    result: Result
    cpu_s: float
    full: "ServiceRun | None" = None

    @property
    def cpu_us(self) -> float:
        """CPU a good response, in µs."""
        return self.cpu_s * 1e6 / max(1, self.result.ok)


@dataclass(frozen=True, slots=True)
class StoreRuns:
    """The runs of one store by round, and the check of its answers."""

    candidate: Candidate
    runs: tuple[ServiceRun, ...]
    checked: CheckResult

    @property
    def results(self) -> list[Result]:
        """The results by round."""
        return [run.result for run in self.runs]

    @property
    def findings(self) -> list[Finding]:
        """What makes its figures unusable: wrong lists, popular lists, errors, or a generator that was too late."""
        name = self.candidate.name
        popular = popular_complaint(self.results)
        not_lists = no_verdict(f"{name} did not serve the users' own lists")
        findings = [
            *self.checked.findings,
            *findings_of(Gravity.POPULAR, [popular] if popular else [], lead=not_lists),
            *findings_of(Gravity.UNMEASURED, lateness(self.results, P99_SAMPLES)),
            *OBJECTIVE.errors_beyond(self.results),
        ]
        return prefixed(findings, f"{name}: ")

    @property
    def sound(self) -> bool:
        """Whether there are figures."""
        return bool(self.runs) and not self.findings

    @property
    def unknown(self) -> Row:
        """A figure of a store that is not sound."""
        return Row(note="see below" if self.runs else "not measured")


class Measured(NamedTuple):
    """All stores, with paired rounds.

    disturbed  rounds that are left out, because the generator was late
    failure    what ended the rounds too early, such as a service that ended; else empty
    """

    stores: tuple[StoreRuns, ...]
    interrupted: bool
    disturbed: int = 0
    failure: str = ""

    @property
    def rounds(self) -> int:
        """The number of rounds, without those that are left out."""
        return len(self.stores[0].runs)

    @property
    def findings(self) -> list[Finding]:
        """What ended the rounds too early, and what makes the figures of stores unusable."""
        ended = findings_of(Gravity.UNMEASURED, filter(None, [self.failure]))
        return [*ended, *(finding for store in self.stores for finding in store.findings)]


# The runs of all stores, by their names.
Round = dict[str, ServiceRun]


def undisturbed(rounds: Sequence[Round]) -> Sequence[Round]:
    """Return the rounds in which the generator was in time, if there are MIN_ROUNDS of them; else all."""
    return [rounds[place] for place in in_time([[run.result for run in runs.values()] for runs in rounds])]


def measure_rounds(setup: Setup, settings: RoundSettings, display: ProgressDisplay) -> Measured:
    """Make all rounds, which measure the stores in turn; then compare sampled responses with the stores' lists.

    Ctrl-C discards an incomplete round, and ends the measurement; so does a failure after the first round. Rounds in
    which the load generator was late are left out of the result if five others remain. Raises BenchFailed, or
    KeyboardInterrupt, if it ends before the first round.
    """
    with LoadWorker(process.GENERATOR_CORE) as worker:
        runs = Runs(worker, display)
        measurement = _Rounds(setup, settings, runs, display)
        ending = until_stopped(measurement.run, measurement.rounds)

    display.start("comparing answers with the stores")
    kept = undisturbed(measurement.rounds)
    stores = [
        StoreRuns(
            candidate,
            tuple(round_of_all[candidate.name] for round_of_all in kept),
            runs.check(candidate.url, candidate.name),
        )
        for candidate in setup.candidates
    ]
    disturbed = len(measurement.rounds) - len(kept)
    return Measured(tuple(stores), ending.interrupted, disturbed, ending.failure)


class _Rounds:
    """Makes the rounds of a comparison."""

    def __init__(self, setup: Setup, settings: RoundSettings, runs: Runs, display: ProgressDisplay) -> None:
        self._setup = setup
        self._order = list(setup.candidates)
        self._settings = settings
        self._runs = runs
        self._display = display
        self.rounds = list[Round]()

    def run(self) -> None:
        """Warm up, then make all rounds."""
        if self._settings.warmup_s:
            for candidate in self._setup.candidates:
                self._display.start(f"warming up {candidate.name}")
                load = replace(self._load(candidate, 0), duration_s=self._settings.warmup_s, samples=0)
                self._run_load(candidate, load)

        count = self._settings.count(len(self._order))
        names = ", ".join(candidate.name for candidate in self._setup.candidates)
        for number in range(1, count + 1):
            self._display.start(f"round {number} of {count}: {names}")
            self._run_round(number)

    def _run_round(self, number: int) -> None:
        """Measure each store (a candidate) once, and append the round.

        Pairs of rounds have a random order and its reverse: no store is measured first more often, and none always
        meets a disturbance that comes every second round.
        """
        runs = Round()
        self._order.reverse()
        if number % 2:
            random.shuffle(self._order)
        for candidate in self._order:
            runs[candidate.name] = self._run_candidate(candidate, number)
        self.rounds.append(runs)

    def _run_candidate(self, candidate: Candidate, number: int) -> ServiceRun:
        """Measure a store (a candidate) at the rate of the round *number*, then for some seconds at full load.

        Full load, a closed loop, shows the CPU a read of a busy service. It is left out for a real Cosmos DB account,
        which charges for it.
        """
        load = self._load(candidate, number)
        run = self._run_load(candidate, load)

        is_charged = candidate.metered and not candidate.emulated
        full_s = self._settings.full_s
        if not full_s or is_charged:
            return run
        full_load = replace(load, rate=None, duration_s=full_s, connections=FULL_CONNECTIONS, samples=0)
        return replace(run, full=self._run_load(candidate, full_load))

    def _load(self, candidate: Candidate, number: int) -> Load:
        """Return the requests to a store (a candidate) in a round, and their rate.

        The round's *number* is the seed, so that all stores get the same requests. A store that is read through
        azure-cosmos gets SDK_RATE at most. About COMPARED responses are kept as samples.
        """
        settings = self._settings
        rate = settings.rate
        if candidate.client == BY_SDK:
            rate = min(rate, SDK_RATE)

        return Load(
            url=candidate.service.url,
            requests=Gets(USER_PATH, RequestKeys(self._setup.users, settings.draw, seed=number)),
            rate=rate,
            duration_s=settings.duration_s,
            samples=COMPARED,
        )

    def _run_load(self, candidate: Candidate, load: Load) -> ServiceRun:
        """Run *load* against the service of a store (a candidate), and return the result and the CPU time in seconds.

        Raises BenchFailed if the service ended.
        """
        service = candidate.service
        cpu_s = service.cpu_s()
        result = self._runs.run(load, candidate.name)
        used_s = service.cpu_s() - cpu_s
        if result.failed:
            process.fetch(f"{service.url}/livez")
        return ServiceRun(result, used_s)
