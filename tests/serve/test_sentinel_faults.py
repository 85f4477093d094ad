"""Failovers, older data and lagging replicas behind real sentinels: what a worker of the service answers meanwhile."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from serve.reader import EncodedList, TieredReader
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.errors import StoreError, StoreUnavailable
from stores.lifecycle import publish
from stores.store import Plan, Row
from stores.verification import verify
from tests.support.loaded_service import USERS, WAIT_S, lists, reading, until
from tests.support.redis_sentinel import SentinelDeployment, sentinel_deployment
from tests.support.service import publish_to
from tests.support.stores import as_bodies, ref_of

pytestmark = pytest.mark.soak

# How many lists a second are read.
RATE = 200
# A publish that takes about three seconds, so that what happens meanwhile happens in its midst.
BATCHES, BATCH, PAUSE_S = 60, 100, 0.05


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[SentinelDeployment]:
    # Long enough for a machine that is busy: no second failover is wanted.
    with sentinel_deployment(tmp_path, down_after_ms=1000) as running:
        yield running


class Watch:
    """Reads list after list, each of which must be its user's own or popular, and notes when which came."""

    def __init__(self, reader: TieredReader) -> None:
        self.reader = reader
        self.answers = list[tuple[float, EncodedList]]()

    async def run(self) -> None:
        while True:
            for user in range(USERS):
                answer = await self.reader.personal(str(user))
                assert answer.source == "popular" or f'-{user}"'.encode() in answer.body, "somebody else's list"
                self.answers.append((time.monotonic(), answer))
                await asyncio.sleep(1 / RATE)

    def popular(self, since: float | None = None) -> str:
        """Return how many popular lists there were, when after *since* or the first list, and for how long."""
        since = since or self.answers[0][0]
        stretches = list[list[float]]()
        ended = False
        for at, answer in self.answers:
            if answer.source != "popular":
                ended = True
            elif ended or not stretches:
                stretches.append([at])
                ended = False
            else:
                stretches[-1].append(at)
        said = (f"{len(times)} at {times[0] - since:+.2f} s for {times[-1] - times[0]:.2f} s" for times in stretches)
        return ", ".join(said) or "none"

    @property
    def misses(self) -> int:
        """How many lists were said not to exist, of users who all have one."""
        return sum(answer.status == "unknown" for _, answer in self.answers)

    async def until_personal(self, release: str | None = None) -> None:
        """Wait until as many answers in a row as there are users are their own, out of *release* where given."""

        async def is_so() -> bool:
            last = [answer for _, answer in self.answers[-USERS:]]
            releases = {answer.served.id for answer in last}
            return {answer.source for answer in last} == {"personal"} and releases == {release or last[-1].served.id}

        await until(is_so, f"no personal lists of {release or 'a release'}")


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[Watch]:
    """Read what *url* has as a worker does, all the time until the block ends."""
    async with reading(url) as reader:
        watch = Watch(reader)
        watching = asyncio.create_task(watch.run())
        try:
            await watch.until_personal()
            yield watch
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


class Publisher:
    """Publishes a release in small batches, as often as it takes, each time going on where it can."""

    def __init__(self, url: str, mark: str) -> None:
        self.interruptions = list[str]()
        self.put = 0
        self._store = connect(url)
        of = lists(mark)
        rows = [Row(key, of[key]) for key in of] + [
            Row(f"user:more-{n:06}", of["user:1"]) for n in range(BATCHES * BATCH)
        ]
        self._rows = as_bodies(sorted(rows, key=lambda row: row.key.encode()))

    async def batches(self) -> AsyncIterator[list[Row]]:
        for start in range(0, len(self._rows), BATCH):
            yield self._rows[start : start + BATCH]
            self.put = start
            await asyncio.sleep(0 if self.interruptions else PAUSE_S)

    async def publish(self) -> ReleaseId:
        """Return the release, once it is live and has been read back whole."""
        try:
            async with asyncio.timeout(3 * WAIT_S):
                release = await self._publish()
                await verify(self._store, await ref_of(self._store, release))
        finally:
            await self._store.close()
        return release

    async def _publish(self) -> ReleaseId:
        plan, resume = Plan(len(self._rows), 1_000_000), None
        while True:
            try:
                done = await publish(self._store, self.batches(), plan=plan, about={}, resume=resume)
            except StoreUnavailable as error:
                self.interruptions.append(str(error))
                resume = await self._draft()
            else:
                return ReleaseId(done.manifest.release)

    async def _draft(self) -> ReleaseId | None:
        while True:
            try:
                found = await self._store.catalogue()
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                return next((entry.id for entry in found.releases if entry.state == "draft"), None)

    async def until_half(self) -> None:
        async def is_so() -> bool:
            return self.put > len(self._rows) / 2

        await until(is_so, "the publish does not go on")


def killed(deployment: SentinelDeployment) -> None:
    before = deployment.primary
    before.kill()
    deployment.wait_for_other(before)


def replaced(deployment: SentinelDeployment) -> None:
    deployment.fail_over()


@pytest.mark.parametrize("fail_over", [killed, replaced])
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


async def test_a_primary_that_is_restarted_with_older_data_is_followed_to_that(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with sentinel_deployment(tmp_path, down_after_ms=5000) as deployment:
        url, primary = deployment.url(), deployment.primary
        first = await publish_to(url, lists("r0"))
        primary.execute_command("SAVE")
        async with watched(url) as watch:
            second = await publish_to(url, lists("r1"))
            await watch.until_personal(second)
            primary.kill()
            await asyncio.to_thread(primary.start)
            await watch.until_personal(first)
            assert watch.misses == 0
            third = await publish_to(url, lists("r2"))
            await watch.until_personal(third)
    record_property("popular lists", watch.popular())


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
        await asyncio.to_thread(killed, deployment)
        await watch.until_personal(first)
        assert watch.misses == 0
        third = await publish_to(url, lists("r2"))
        await watch.until_personal(third)
    record_property("popular lists", watch.popular())


async def test_replicas_that_lag_answer_nothing_wrong(
    deployment: SentinelDeployment, record_property: Callable[[str, object], None]
) -> None:
    url, primary, replicas = deployment.url(read="replica"), deployment.primary, deployment.replicas
    await publish_to(url, lists("r0"))
    async with watched(url) as watch:
        for replica in replicas:
            replica.execute_command("REPLICAOF", "127.0.0.1", "1")
        second = await publish_to(url, lists("r1"))
        await watch.until_personal(second)
        at_primary = primary.calls("mget")
        await asyncio.sleep(5)
        at_primary = primary.calls("mget") - at_primary
        for replica in replicas:
            replica.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        await asyncio.to_thread(primary.execute_command, "WAIT", "2", "10000")
        await watch.until_personal(second)
        assert watch.misses == 0
    record_property("popular lists", watch.popular())
    record_property("read from the primary meanwhile", at_primary)


async def test_a_replica_that_stands_still_is_left_for_another(
    deployment: SentinelDeployment, record_property: Callable[[str, object], None]
) -> None:
    url, replicas = deployment.url(read="replica"), deployment.replicas
    first = await publish_to(url, lists("r0"))
    async with watched(url) as watch:
        for replica in replicas:
            replica.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2)
            await watch.until_personal(first)
            replica.send_signal(signal.SIGCONT)
        assert watch.misses == 0
    record_property("popular lists", watch.popular())
