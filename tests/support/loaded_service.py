"""A real service under a constant load, and what its callers saw, its log says and its metrics count."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.loadgen.generator import drive
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from tests.serve.test_flip import USERS, whole
from tests.support.service import Service, serving

RECOVERY_S = 5.0
HANG_S = 1.5
"""Far over the budget of 0.05 s, for a machine that is busy; far under what a client without a deadline would wait."""

ALL = tuple(f"/v1/recommendations/{n}?n=3" for n in range(USERS))


class Run:
    """A service under constant load, and what it answered when the load is over."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.result: Result | None = None

    async def until(self, tier: str, source: str = "personal") -> float:
        """Wait until answers come from *tier* again; return how long that took, in seconds."""
        started = time.monotonic()
        while True:
            answer = (await asyncio.to_thread(self.service.get, "/v1/recommendations/1")).json
            if (answer["tier"], answer["source"]) == (tier, source):
                return time.monotonic() - started
            assert time.monotonic() - started < 20, f"still answered by {answer['tier']}, {answer['source']}"
            await asyncio.sleep(0.02)

    async def personal(self, users: Sequence[int]) -> float:
        """Ask for each user's list; return the share that are the users' own."""
        answers = [await asyncio.to_thread(self.service.get, f"/v1/recommendations/{user}") for user in users]
        own = [answer for answer in answers if answer.json["source"] == "personal"]
        return len(own) / len(answers)

    async def until_personal(self, users: Sequence[int]) -> float:
        """Wait until each of the users gets a list of their own; return how long that took, in seconds."""
        started = time.monotonic()
        while await self.personal(users) < 1:
            assert time.monotonic() - started < 20, "some still get popular lists"
        return time.monotonic() - started

    async def until_release(self, release: str) -> None:
        """Wait until *release* is served."""
        started = time.monotonic()
        while (await asyncio.to_thread(self.service.get, "/v1/recommendations/1")).json["release"] != release:
            assert time.monotonic() - started < 20, f"{release} is not followed"
            await asyncio.sleep(0.02)

    async def until_status(self, status: str) -> str:
        """Wait until `/readyz` has the *status*; return what it says is wrong."""
        started = time.monotonic()
        while (ready := await asyncio.to_thread(self.service.get, "/readyz")).json["status"] != status:
            assert ready.status == 200
            assert time.monotonic() - started < 20, f"still {ready.json}"
            await asyncio.sleep(0.02)
        return "; ".join(tier["detail"] for tier in ready.json["tiers"] if tier["detail"])

    def answered(self, *tiers: str, source: str | None = None) -> None:
        """Hold the load to the promise: every request answered, none empty, none late, by these tiers."""
        result = self.result
        assert result is not None
        assert (result.errors, result.dropped, result.ok) == ({}, 0, result.due)
        assert set(result.seen["tier"]) == set(tiers)
        assert source is None or source in result.seen["source"]
        assert result.latency is not None
        assert result.latency.max < HANG_S * 1e6

    def share(self, source: str) -> float:
        """Return the share of answers that came from *source*."""
        assert self.result is not None
        return self.result.seen["source"].get(source, 0) / self.result.due

    def logged(self, text: str) -> int:
        return self.service.log.read_text().count(text)

    async def counts(self, name: str, label: str) -> dict[str, float]:
        """Return what `/metrics` counts by one label, added up over all others."""
        text = (await asyncio.to_thread(self.service.get, "/metrics")).body.decode()
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
async def under_load(logs: Path, *stores: str, seconds: float, paths: tuple[str, ...] = ALL) -> AsyncIterator[Run]:
    """Serve *stores* under 200 requests a second; the block must be over in *seconds*."""
    options = [part for url in stores for part in ("--store", url)]
    with ExitStack() as stack:
        # In a thread: a proxy that the service starts up through runs on this loop.
        run = Run(await asyncio.to_thread(stack.enter_context, serving(logs, *options)))
        load = Load(
            url=run.service.url,
            paths=paths,
            rate=200,
            duration_s=seconds,
            connections=32,
            check=whole,
            observe=("release", "source", "tier"),
        )
        loading = asyncio.create_task(drive(load))
        await asyncio.sleep(0.5)
        yield run
        run.result = await loading
