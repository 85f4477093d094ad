"""Hedged reads: a late read is answered by a replica, which is never believed that something is absent."""

import asyncio
from collections.abc import Sequence

import pytest

from hotplate.serve.embedded import Lists
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import Metrics
from hotplate.serve.tiers.hedging import BURST, HEDGED, Hedge
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import USER
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import ReadResult
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.stores import ref_of
from tests.support.virtual import virtual

BUDGET_S = 0.2
USUAL_S, LATE_S = 0.001, 0.1


class TwoPlaces(RemoteStore):
    """A store with a replica, of which *late* reads in a hundred take LATE_S at the primary."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.late, self.calls, self.calls_elsewhere, self.cancelled = 0, 0, 0, 0
        self.usual_s = USUAL_S
        self.replica: RemoteStore = RemoteStore(inner)
        self.replica.delay_s = USUAL_S
        self.has_second = True

    @property
    def has_replicas(self) -> bool:
        return self.has_second

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        self.calls += 1
        self.delay_s = LATE_S if self.calls % 100 < self.late else self.usual_s
        try:
            return await super().get_many(release, keys, timeout_s=timeout_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def get_many_elsewhere(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float
    ) -> list[ReadResult]:
        self.calls_elsewhere += 1
        return await self.replica.get_many(release, keys, timeout_s=timeout_s)


@pytest.fixture
def store(clock: FakeClock) -> TwoPlaces:
    return TwoPlaces(MemoryStore(clock))


async def opened(store: TwoPlaces) -> TieredReader:
    """Read a release by one tier until its delay is the usual one."""
    await publish(store.inner, "first")
    reader = TieredReader({"redis": store}, budget_s=BUDGET_S)
    (tier,) = reader.tiers
    await tier.follower.refresh()
    for _ in range(1000):
        await reader.read(USER, "1")
    return reader


async def timed(reader: TieredReader, user: str) -> tuple[str, bytes, float]:
    """Return status and body of a list, and the time to read it in seconds."""
    began = asyncio.get_running_loop().time()
    answer = await reader.read(USER, user)
    return answer.status, answer.body, asyncio.get_running_loop().time() - began


@virtual
async def test_late_read_is_answered_by_the_replica(store: TwoPlaces) -> None:
    reader = await opened(store)
    store.late = 100
    before = store.cancelled
    status, body, took_s = await timed(reader, "2")
    assert (status, b"first for 2" in body) == ("ok", True)
    assert took_s < 4 * USUAL_S
    assert store.cancelled == before + 1
    assert 'hotplate_store_hedged_reads_total{outcome="won",store="redis"} 1.0' in (
        Lists(lambda: reader).prometheus_text().decode()
    )
    store.has_second = False
    assert (await timed(reader, "3"))[2] >= LATE_S


@virtual
async def test_replica_answers_if_the_primary_fails_after_the_second_read_was_sent(
    store: TwoPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await opened(store)
    store.replica.delay_s = LATE_S

    async def reset(*_: object, **__: object) -> list[ReadResult]:
        await asyncio.sleep(LATE_S / 2)
        raise StoreUnavailable("the connection was reset")

    monkeypatch.setattr(store, "get_many", reset)
    status, body, took_s = await timed(reader, "2")
    assert (status, b"first for 2" in body) == ("ok", True)
    assert took_s >= LATE_S
    store.replica.failure = StoreUnavailable("the replica is gone")
    assert (await timed(reader, "3"))[0] != "ok"


@pytest.mark.parametrize("replica", ["lags", "has another release", "fails"])
@virtual
async def test_only_an_intact_list_of_the_release_is_taken_from_a_replica(store: TwoPlaces, replica: str) -> None:
    other = MemoryStore()
    if replica == "has another release":
        await publish(other, "other")
        (release,) = other.releases.values()
        other.releases = dict.fromkeys(["any"], release)
    reader = await opened(store)
    inner = store.inner.releases
    if replica == "fails":
        store.replica.failure = StoreUnavailable("the replica is gone")
    else:
        rows = {} if replica == "lags" else release.rows
        store.replica = RemoteStore(other)
        other.releases = {name: type(stored)(stored.writer, rows, sealed=True) for name, stored in inner.items()}
    store.late = 100
    before = store.calls_elsewhere
    status, body, took_s = await timed(reader, "2")
    assert (status, b"first for 2" in body) == ("ok", True)
    assert took_s >= LATE_S
    assert store.calls_elsewhere == before + 1
    assert (await timed(reader, "nobody"))[0] == "unknown"


@virtual
async def test_at_most_a_tenth_of_reads_is_hedged(store: TwoPlaces) -> None:
    reader = await opened(store)
    for late in (3, 50, 100, 0, 100):
        store.late = late
        calls = store.calls
        again = store.calls_elsewhere
        for _ in range(300):
            assert (await timed(reader, "1"))[0] == "ok"
        assert store.calls_elsewhere - again <= BURST + HEDGED * (store.calls - calls)


@virtual
async def test_hedging_hides_a_few_late_reads_in_a_hundred(store: TwoPlaces) -> None:
    reader = await opened(store)
    store.late = 3
    slow = [await timed(reader, "1") for _ in range(500)]
    assert sum(took_s > 5 * USUAL_S for _, _, took_s in slow) <= 1


@virtual
async def test_failed_reads_do_not_shorten_the_delay(store: TwoPlaces) -> None:
    release = await ref_of(store.inner, await publish(store.inner, "first"))
    hedge = Hedge(store, "redis", Metrics(1, ["redis"]))
    store.failure = StoreUnavailable("away")
    for _ in range(2000):
        with pytest.raises(StoreUnavailable):
            await hedge.get_many(release, ["user:1"], lambda _, value: value, timeout_s=BUDGET_S)
    assert store.calls_elsewhere == 0
    store.failure = None
    store.usual_s = 0.004
    await hedge.get_many(release, ["user:1"], lambda _, value: value, timeout_s=BUDGET_S)
    assert store.calls_elsewhere == 0, "4 ms are not late before any read was measured"


@virtual
async def test_cancelled_and_expired_reads_leave_nothing_running(store: TwoPlaces) -> None:
    reader = await opened(store)
    (tier,) = reader.tiers
    store.late, store.replica.delay_s = 100, 1.0
    release = tier.follower.live
    assert release is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(LATE_S / 2):
            await tier.read(release, ["user:2"], BUDGET_S)
    with pytest.raises(StoreUnavailable, match="did not answer in 50 ms"):
        await tier.read(release, ["user:2"], LATE_S / 2)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {task}
