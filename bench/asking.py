"""From the words of the command to a question: every option read, checked and said in one place."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchMisused
from bench.http import Question
from bench.loadgen import objective, schedule
from bench.loadgen.keys import Draw, HotSet, InTurn, Keys, Uniform, Zipf
from bench.loadgen.requests import PLACE, Gets, Paths
from bench.loadgen.schedule import Arrivals
from bench.loadgen.traffic import Load
from bench.report import units
from stores.connect import connect
from stores.keys import USER
from stores.urls import redacted

USUAL_RATE = "1k"
COMPARED = 500  # answers a round that are compared with the store
OBSERVED = ("source", "tier", "release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command was told, as it was told; None where it was told nothing."""

    url: str
    rate: str | None = None
    ramp: str | None = None
    steps: str | None = None
    poisson: bool = False
    closed: bool = False
    think: str = "0s"
    duration: str = "10s"
    users: int | None = None
    keys_file: Path | None = None
    store: str | None = None
    zipf: float | None = None
    hot: str | None = None
    unknown: str = "0%"
    path: str = "/v1/recommendations/{key}"
    headers: Sequence[str] = ()
    batch: str | None = None
    find_max: bool = False
    slo: str = "p99=5ms"
    repeat: int = 1
    warmup: str = "0s"
    connections: int = 64
    timeout: str = "5s"
    backlog: int = 10_000
    processes: int = 1
    spin: bool = False
    seed: int = 1

    @property
    def configuration(self) -> dict[str, Any]:
        """Give what was told as plain values; of headers only the names, of the store no password."""
        told = {name: value for name, value in asdict(self).items() if value not in (None, (), [], False)}
        told["headers"] = [header.partition(":")[0] for header in self.headers]
        if self.store:
            told["store"] = redacted(self.store)
        return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def question(asked: Asked) -> Question:
    """Make the question. Raises BenchMisused for words that make no sense, StoreError where no users can be read."""
    _only_one({"--rate": asked.rate, "--ramp": asked.ramp, "--steps": asked.steps, "--closed": asked.closed or None})
    _only_one({"--keys-file": asked.keys_file, "--users": asked.users})
    _only_one({"--find-max": asked.find_max or None, "--batch": asked.batch, "--closed": asked.closed or None})
    if asked.repeat < 1 or asked.processes < 1 or asked.backlog < 1:
        raise BenchMisused("--repeat, --processes and --backlog must be 1 or more")
    plan = arrivals(asked)
    keys = keys_of(asked) if asked.batch or PLACE in asked.path else None
    load = Load(
        url=asked.url,
        requests=Paths([asked.path]) if keys is None else Gets(asked.path, keys),
        arrivals=plan,
        duration_s=units.seconds(asked.duration),
        think_s=units.seconds(asked.think),
        connections=asked.connections,
        headers=_headers(asked.headers),
        spin=asked.spin,
        timeout_s=units.seconds(asked.timeout),
        backlog=asked.backlog,
        observe=OBSERVED,
    )
    if asked.store and keys is not None:
        load = replace(load, sample_every=_sample_every(load, asked.batch is not None))
    load.share(asked.processes - 1, asked.processes)  # refuses more processes than connections
    return Question(
        load=load,
        rounds=asked.repeat,
        warmup_s=units.seconds(asked.warmup),
        processes=asked.processes,
        objective=objective.parse(asked.slo) if asked.find_max else None,
        batches=_sizes(asked.batch) if asked.batch else (),
        keys=keys,
        store=asked.store,
        configuration=asked.configuration,
    )


def arrivals(asked: Asked) -> Arrivals | None:
    """Read when requests fall due; None for a closed loop."""
    duration_s, seed = units.seconds(asked.duration), asked.seed if asked.poisson else None
    if asked.closed:
        return None
    if asked.ramp is not None:
        first, colon, last = asked.ramp.partition(":")
        if not colon:
            raise BenchMisused(f"a ramp is written FROM:TO, as 100:5k, not {asked.ramp!r}")
        return schedule.ramp(units.per_second(first), units.per_second(last), duration_s, seed)
    if asked.steps is not None:
        return schedule.steps([units.per_second(each) for each in asked.steps.split(",")], duration_s, seed)
    return schedule.constant(units.per_second(asked.rate or USUAL_RATE), duration_s, seed)


def keys_of(asked: Asked) -> Keys:
    """Find out whose lists to ask for."""
    if asked.keys_file is not None:
        ids: Sequence[str] = [line for line in asked.keys_file.read_text().splitlines() if line]
    elif asked.users is not None:
        ids = [str(number) for number in range(asked.users)]
    elif asked.store is not None:
        ids = asyncio.run(_users_in(asked.store))
    else:
        raise BenchMisused("say whose lists to ask for: --users N, --keys-file FILE or --store URL")
    return Keys(tuple(ids), _draw(asked), units.share(asked.unknown), asked.seed)


async def _users_in(url: str) -> list[str]:
    store = connect(url)
    try:
        live = (await store.catalogue()).live_ref
        if live is None:
            raise BenchMisused(f"nothing is live in {redacted(url)}, so there are no users to ask for")
        return [key.removeprefix(USER) async for key, _ in store.scan(live) if key.startswith(USER)]
    finally:
        await store.close()


def _draw(asked: Asked) -> Draw:
    _only_one({"--zipf": asked.zipf, "--hot": asked.hot})
    if asked.zipf is not None:
        return Zipf(asked.zipf)
    if asked.hot is not None:
        requests, colon, keys = asked.hot.partition(":")
        if not colon:
            raise BenchMisused(f"a hot set is written REQUESTS:USERS, as 80%:20%, not {asked.hot!r}")
        return HotSet(units.share(requests), units.share(keys))
    return InTurn() if asked.keys_file is not None else Uniform()


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


def _sample_every(load: Load, many: bool) -> int:  # noqa: FBT001 -- private, and called once
    """Keep about COMPARED answers a round, by a number that no cycle of keys is likely to share."""
    if many:
        return 41
    expected = load.plan.rate * load.duration_s if load.plan else 100 * COMPARED
    return max(1, int(expected / COMPARED)) | 1


def _only_one(given: Mapping[str, object]) -> None:
    told = [name for name, value in given.items() if value is not None]
    if len(told) > 1:
        raise BenchMisused(f"{' and '.join(told)} cannot be told together")
