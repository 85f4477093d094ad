"""Failovers, older data and lagging replicas behind real sentinels: what a worker of the service answers meanwhile."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.failover import Publisher, watched
from tests.support.readers import lists
from tests.support.redis_sentinel import SentinelDeployment, sentinel_deployment
from tests.support.service import publish_to
from tests.support.soak import long

pytestmark = pytest.mark.soak


PLAIN, OVER_TLS, GUARDED = ((), False), ((), True), (("--min-replicas-to-write", "1"), False)


@pytest.fixture
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SentinelDeployment]:
    options, tls = getattr(request, "param", PLAIN)
    # Long enough for a machine that is busy: no second failover is wanted.
    with sentinel_deployment(tmp_path, *options, tls=tls, down_after_ms=3000) as running:
        yield running


def killed(deployment: SentinelDeployment) -> None:
    before = deployment.primary
    before.kill()
    deployment.wait_for_other(before)


def replaced(deployment: SentinelDeployment) -> None:
    deployment.fail_over()


@pytest.mark.parametrize(
    ("deployment", "fail_over"),
    [(OVER_TLS, killed), (PLAIN, replaced), pytest.param(GUARDED, replaced, marks=long)],
    indirect=["deployment"],
    ids=["killed, over TLS", "replaced", "replaced, with min-replicas-to-write"],
)
async def test_a_failover_in_the_midst_of_a_publish_loses_nothing(
    deployment: SentinelDeployment,
    fail_over: Callable[[SentinelDeployment], None],
    record_property: Callable[[str, object], None],
) -> None:
    await publish_to(deployment.url(), lists("r0"))
    async with watched(deployment.url()) as plain, watched(deployment.url(read="replica")) as at_replicas:
        publisher = Publisher(deployment.url(), "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        started = time.monotonic()
        await asyncio.to_thread(fail_over, deployment)
        elected = time.monotonic()
        release = await publishing
        for watch in (plain, at_replicas):
            await watch.until_personal(release)
            assert watch.misses == 0
    record_property("election", f"{elected - started:.2f} s")
    record_property("popular lists", plain.popular(started))
    record_property("reading from replicas", at_replicas.popular(started))
    record_property("publish interrupted", publisher.interruptions)


async def test_a_replica_that_takes_over_with_half_of_a_release_serves_the_one_before(
    deployment: SentinelDeployment, record_property: Callable[[str, object], None]
) -> None:
    url, primary = deployment.url(), deployment.primary
    first = await publish_to(url, lists("r0"))
    async with watched(url) as watch:
        publisher = Publisher(url, "r1")
        publishing = asyncio.create_task(publisher.publish())
        await publisher.until_half()
        primary.execute_command("WAIT", "2", "5000")
        for replica in deployment.replicas:  # which gets nothing any more
            replica.execute_command("REPLICAOF", "127.0.0.1", "1")
        await watch.until_personal(await publishing)
        started = time.monotonic()
        await asyncio.to_thread(killed, deployment)
        elected = time.monotonic()
        await watch.until_personal(first)
        assert watch.misses == 0
        third = await publish_to(url, lists("r2"))
        await watch.until_personal(third)
    record_property("election", f"{elected - started:.2f} s")
    record_property("popular lists", watch.popular(started))
