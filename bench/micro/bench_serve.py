"""What one request costs the service apart from HTTP: the lookup, and the rendering of its response.

A round serves 1,000 users: its time in µs is the ns of one request.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from pytest_benchmark.fixture import BenchmarkFixture

from bench.lists import Shape, key_of
from bench.micro.publishing import publish_to
from bench.micro.rounds import ROUTE
from serve.exposition import Exposition
from serve.handlers import Handlers
from serve.lookup import Lookup
from serve.metrics import Metrics
from serve.tiers import Tier
from stores.connect import connect
from stores.keys import OVERALL, USER

COUNT = 1_000
LIST_LENGTH = 20
IDS = [key_of(user).removeprefix(USER) for user in range(COUNT)]


class Service:
    """The parts of a worker that a request passes, over files; lives as long as one benchmark."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        metrics = Metrics(1, ["file"])
        self.tier = Tier("file", connect(url), metrics)
        self.lookup = Lookup([self.tier], metrics, 0.05)
        self.handlers = Handlers(self.lookup, [self.tier], Exposition(metrics, [self.tier]))
        self.loop.run_until_complete(self.tier.follower.refresh())

    def benchmark(self, benchmark: BenchmarkFixture, work: Callable[[str], Coroutine[Any, Any, object]]) -> None:
        """Benchmark *work* on each user."""
        benchmark.extra_info |= {"count": COUNT, "each": "request"}

        async def serve_all() -> None:
            for user in IDS:
                await work(user)

        benchmark(lambda: self.loop.run_until_complete(serve_all()))

    def close(self) -> None:
        """Close the store and the loop."""
        self.loop.run_until_complete(self.tier.close())
        self.loop.close()


@pytest.fixture(scope="module")
def lists() -> list[bytes]:
    """Draw lists as a model gives them."""
    return Shape(1, LIST_LENGTH).drawn()


@pytest.fixture(params=["json", "zstd"])
def service(tmp_path: Path, request: pytest.FixtureRequest, lists: list[bytes]) -> Iterator[Service]:
    """Serve a small release in either encoding."""
    url = f"file://{tmp_path}"
    publish_to(url, Shape(COUNT, LIST_LENGTH), lists, request.param)
    served = Service(url)
    yield served
    served.close()


def bench_lookup(benchmark: BenchmarkFixture, service: Service) -> None:
    """A user's list out of files, decompressed."""
    service.benchmark(benchmark, lambda user: service.lookup.personal(user, OVERALL))


def bench_render(benchmark: BenchmarkFixture, service: Service) -> None:
    """The lookup, and the response with the first 10 items; neither parsing nor sending."""
    request = make_mocked_request("GET", ROUTE + IDS[0])
    service.benchmark(benchmark, lambda user: service.handlers.recommend(request, user, "n=10"))
