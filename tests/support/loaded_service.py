"""A real service under a constant load, and what its callers saw, its log says and its metrics count."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.loadgen.generator import drive
from bench.loadgen.load import Check, Load
from bench.loadgen.result import Result
from serve.reader import EncodedList, TieredReader, open_reader
from tests.support.service import Service, a_list, serving

# For how long a condition is waited for, on however busy a machine.
WAIT_S = 30.0
# Far over the budget of 0.05 s, for a machine that is busy; far under what a client without a deadline would wait.
HANG_S = 1.5
# The load is made in windows, so that it can go on for as long as its block does.
WINDOW_S = 1.0

USERS = 50
ALL = tuple(f"/v1/recommendations/{n}?n=3" for n in range(USERS))


def lists(mark: str) -> dict[str, bytes]:
    """Return a list for each of USERS users, and a popular one, all of which name *mark*."""
    return {f"user:{n}": a_list(f"{mark}-{n}", "b", "c") for n in range(USERS)} | {
        "popular:": a_list(f"{mark}-popular")
    }


def complete(status: int, body: bytes) -> str | None:
    """Check an answer: a 200 with a list that is not empty and wholly of one release."""
    if status != 200:
        return "status"
    return None if b'"items":[{' in body and body.count(b'"release"') == 1 else "empty"


async def until(is_so: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait until a condition holds; *what* says in a failure what did not come about."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not await is_so():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"in {WAIT_S:.0f} s, {what}") from None


@asynccontextmanager
async def reading(*urls: str, budget_s: float = 0.05) -> AsyncIterator[TieredReader]:
    """Read stores in this process as a worker of the service does, from the first release on."""
    async with open_reader(urls, budget_s=budget_s) as reader:
        await reader.wait_until_ready(WAIT_S)
        yield reader


async def until_read(reader: TieredReader, tier: str, source: str = "personal", user: str = "1") -> EncodedList:
    """Read a user's list until it comes from a tier and a source; return it."""
    answers = list[EncodedList]()

    async def is_so() -> bool:
        answers.append(await reader.personal(user))
        return (answers[-1].tier, answers[-1].source) == (tier, source)

    await until(is_so, f"no {source} list from {tier}")
    return answers[-1]


class Run:
    """A service under constant load, and what it answered, in one result for each window of the load."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.results = list[Result]()
        self._over = False

    async def load(self, load: Load) -> None:
        """Make window after window of a load, until `end`."""
        while not self._over:
            self.results.append(await drive(load))

    def end(self) -> None:
        """Let the window that has begun be the last."""
        self._over = True

    async def windows(self, count: int) -> None:
        """Wait until so many more windows of the load are over."""
        wanted = len(self.results) + count

        async def is_so() -> bool:
            return len(self.results) >= wanted

        await until(is_so, "the load does not go on")

    async def get(self, path: str) -> dict[str, object]:
        answer: dict[str, object] = (await asyncio.to_thread(self.service.get, path)).json
        return answer

    async def until(self, tier: str, source: str = "personal") -> None:
        """Wait until answers come from *tier* and *source*."""

        async def is_so() -> bool:
            answer = await self.get("/v1/recommendations/1")
            return (answer["tier"], answer["source"]) == (tier, source)

        await until(is_so, f"no {source} list from {tier}")

    async def personal(self, users: Sequence[int]) -> float:
        """Request each user's list; return the share that are the users' own."""
        answers = [await self.get(f"/v1/recommendations/{user}") for user in users]
        return sum(answer["source"] == "personal" for answer in answers) / len(answers)

    async def until_personal(self, users: Sequence[int]) -> None:
        """Wait until each of the users gets a list of their own."""

        async def is_so() -> bool:
            return await self.personal(users) == 1

        await until(is_so, "some still get popular lists")

    async def until_release(self, release: str) -> None:
        """Wait until *release* is served."""

        async def is_so() -> bool:
            return (await self.get("/v1/recommendations/1"))["release"] == release

        await until(is_so, f"{release} is not followed")

    async def until_status(self, status: str) -> str:
        """Wait until `/readyz`, which never fails meanwhile, has the *status*; return what it says is wrong."""
        details = list[str]()

        async def is_so() -> bool:
            assert (await asyncio.to_thread(self.service.get, "/readyz")).status == 200
            ready = (await asyncio.to_thread(self.service.admin, "/readyz")).json
            tiers = [tier for worker in ready["workers"] for tier in worker["tiers"]]
            details[:] = [tier["detail"] for tier in tiers if tier["detail"]]
            return bool(ready["status"] == status)

        await until(is_so, f"the status is not {status}")
        return "; ".join(details)

    async def until_counted(self, name: str, more_than: float, **label: str) -> None:
        """Wait until `/metrics` counts more than so many."""

        async def is_so() -> bool:
            return await self.counted(name, **label) > more_than

        await until(is_so, f"{name} is not above {more_than}")

    def answered(self, *tiers: str, source: str | None = None) -> None:
        """Hold the load to the promise: every request answered, none empty, none late, by these tiers."""
        assert self.results
        for result in self.results:
            assert (result.errors, result.dropped, result.ok) == ({}, 0, result.due)
            assert result.latency is not None
            assert result.latency.max < HANG_S * 1e6
        assert set(self.seen("tier")) == set(tiers)
        assert source is None or source in self.seen("source")

    def seen(self, field: str) -> Counter[str]:
        """Return how many answers had each value of a field."""
        return sum((Counter(result.seen[field]) for result in self.results), Counter[str]())

    def share(self, source: str) -> float:
        """Return the share of answers that came from *source*."""
        sources = self.seen("source")
        return sources[source] / sources.total()

    def logged(self, text: str) -> int:
        return self.service.log.read_text().count(text)

    async def counts(self, name: str, label: str) -> dict[str, float]:
        """Return what `/metrics` counts by one label, added up over all others."""
        text = (await asyncio.to_thread(self.service.admin, "/metrics")).body.decode()
        found = defaultdict[str, float](float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    found[sample.labels[label]] += sample.value
        return found

    async def counted(self, name: str, **label: str) -> float:
        """Return what `/metrics` counts in all, or where one label says so."""
        ((by, value),) = label.items() or [("store", "")]
        counts = await self.counts(name, by)
        return counts[value] if value else sum(counts.values())


@asynccontextmanager
async def under_load(
    logs: Path,
    *stores: str,
    paths: tuple[str, ...] = ALL,
    rate: int = 200,
    options: tuple[str, ...] = (),
    check: Check = complete,
) -> AsyncIterator[Run]:
    """Serve *stores* under a load of *rate* requests a second that begins before the block and ends after it."""
    named = [part for url in stores for part in ("--store", url)]
    with ExitStack() as stack:
        # In a thread: a proxy that the service starts up through runs on this loop.
        run = Run(await asyncio.to_thread(stack.enter_context, serving(logs, *named, *options)))
        load = Load(
            url=run.service.url,
            paths=paths,
            rate=rate,
            duration_s=WINDOW_S,
            connections=32,
            check=check,
            observe=("release", "source", "tier"),
        )
        loading = asyncio.create_task(run.load(load))
        try:
            await run.windows(1)
            yield run
            await run.windows(1)
        finally:
            run.end()
            await loading
