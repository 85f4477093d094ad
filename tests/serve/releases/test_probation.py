"""A release on probation: counts, judgement, and withdrawal for its faults only."""

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import erf, exp, log
from operator import add
from pathlib import Path

import numpy as np
import pytest
import redis

from hotplate.base.timing import HOUR_S
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import BUCKETS_S, CANARY
from hotplate.serve.processes.states import Reporter, SharedStates
from hotplate.serve.releases import withdrawal
from hotplate.serve.releases.comparison import (
    NATURAL_LOSS,
    Probation,
    SharedComparisons,
    Stage,
    TierComparisons,
    expected_of,
)
from hotplate.serve.releases.counts import ReleaseCounts, live_counts
from hotplate.serve.releases.judgement import find_regression
from hotplate.serve.releases.live_counts import ReleaseCounter
from hotplate.serve.releases.withdrawal import LOOKUPS, RETRY_S, ReleaseJudge
from hotplate.serve.telemetry.exposition import Exposition
from hotplate.serve.tiers.breaker import FAILURES, PROBE_PAUSES_S
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId, ReleaseRef, State
from hotplate.stores.errors import RefusedByGates, StoreMisused, StoreUnavailable
from hotplate.stores.store import MAY_PUBLISH, Finding, Level, ReadResult, Store
from tests.support.command import hotplate, json_of, succeeded
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer, users_of_the_guide
from tests.support.redis_server import running as redis_running
from tests.support.remote import RemoteStore, publish
from tests.support.service import Service, a_list, published, serving, until
from tests.support.soak import SEED, in_soak, scaled
from tests.support.stores import ref_of

# The judgement, simulated ---------------------------------------------------------------------------------------------

PROBATION_S = 300
# Reads of about 0.6 ms: the share of each bucket.
MEDIAN_S = 0.0006
_BELOW = [0.5 * (1 + erf(log(bound / MEDIAN_S) / 0.6 / 2**0.5)) for bound in BUCKETS_S]
READ_SHARES = np.diff([0.0, *_BELOW, 1.0])


def total_of(counts: ReleaseCounts, further: ReleaseCounts) -> ReleaseCounts:
    """Return the sum of both."""
    *numbers, reads = counts
    *further_numbers, further_reads = further
    return ReleaseCounts._make([*map(add, numbers, further_numbers), tuple(map(add, reads, further_reads))])


class Simulated:
    """A former release with the counts of its last hour, and one on probation, second by second."""

    def __init__(self, random: np.random.Generator, *, lost: float) -> None:
        self.random = random
        self.lost = lost
        self.per_minute = exp(random.uniform(log(20), log(20_000)))
        # Visitors without a list in either release; their misses do not count.
        self.unknown = random.uniform(0.0, 0.3)
        self.requests = 0
        self.counts = ReleaseCounts()
        before = self.counted(random.poisson(self.per_minute * 60), lost=0.0)
        self.expected = expected_of(before)

    def counted(self, requests: int, lost: float) -> ReleaseCounts:
        known = int(self.random.binomial(requests, 1 - self.unknown))
        missing = int(self.random.binomial(known, lost))
        reads = self.random.multinomial(known, READ_SHARES)
        return ReleaseCounts(hit=known - missing, miss=missing, reads=tuple(map(float, reads)))

    def is_withdrawn_in_next_second(self) -> bool:
        requests = int(self.random.poisson(self.per_minute / 60))
        self.requests += requests
        self.counts = total_of(self.counts, self.counted(requests, self.lost))
        return find_regression(self.expected, self.counts) is not None


def returns_in_time(random: np.random.Generator) -> bool:
    """Return whether a release that loses 5 % of the lists is withdrawn within 60 s of its first 200 requests."""
    release = Simulated(random, lost=0.05)
    left_s = 60
    for _ in range(3600):
        if release.is_withdrawn_in_next_second():
            return True
        if release.requests >= 200:
            left_s -= 1
        if left_s < 0:
            break
    return False


def stays(random: np.random.Generator) -> bool:
    """Return whether a release that loses lists naturally passes its probation."""
    release = Simulated(random, lost=random.uniform(0.0, NATURAL_LOSS))
    for second in range(3600):
        if release.is_withdrawn_in_next_second():
            return False
        if second >= PROBATION_S and release.requests >= LOOKUPS:
            break
    return True


@pytest.mark.parametrize(("releases", "seed"), [(100, 64), in_soak(scaled(4000, least=4000), SEED)])
def test_bad_releases_return_and_good_ones_stay(
    releases: int, seed: int, record_property: Callable[[str, object], None]
) -> None:
    random = np.random.default_rng(seed)
    returned = sum(returns_in_time(random) for _ in range(releases))
    kept = sum(stays(random) for _ in range(releases))
    record_property("bad releases withdrawn", f"{returned} of {releases}")
    record_property("good releases withdrawn", f"{releases - kept} of {releases}")
    assert returned >= 0.99 * releases
    assert releases - kept <= max(1, releases // 1000)


# The rules, over stores in memory -------------------------------------------------------------------------------------

USERS = 400
NAMES = [str(number) for number in range(USERS)]
ALL = range(USERS)
# Without lists of 30 users.
FEWER = range(30, USERS)


class Rehearsal:
    """A service of one worker, which counts and judges when it is told to."""

    def __init__(self, store: MemoryStore | RemoteStore, *, admin_store: MemoryStore | None = None) -> None:
        self.now = 1000.0
        self.reader = TieredReader({"tier": store})
        (self.tier,) = self.reader.tiers
        self.states = SharedStates(1, tiers=1)
        self.shared = SharedComparisons(tiers=1)
        self.counter = ReleaseCounter(self.shared, self.reader.tiers)
        self.store = admin_store or store
        self.judge = self.admin()

    def admin(self) -> ReleaseJudge:
        return ReleaseJudge(
            {"tier": self.store},  # type: ignore[dict-item]  # RemoteStore is read only
            self.shared,
            self.states,
            self.reader.metrics,
            probation_s=PROBATION_S,
            clock=lambda: self.now,
        )

    async def follow(self) -> None:
        await self.tier.follower.refresh()
        await self.look()

    async def publish(self, name: str, users: range = ALL) -> ReleaseId:
        """Publish a release, and follow it."""
        assert isinstance(self.store, MemoryStore)
        release = await publish(self.store, name, users=users)
        await self.follow()
        return release

    async def look(self) -> None:
        self.now += 1.0
        self.states.write(0, Reporter(self.reader.tiers).state())
        await self.counter.count()
        await self.judge.judge_live_releases()

    async def answer(self, names: Sequence[str] = NAMES) -> None:
        await self.reader.personal_many(names)
        await self.look()
        await self.look()  # misses are examined once the judge has seen the release

    async def read(self, times: int, *, seconds: float) -> None:
        """Count reads of the store that took a time."""
        for _ in range(times):
            self.reader.metrics.observe(self.tier.read_cell, seconds)
        await self.look()

    def state(self) -> TierComparisons:
        (state,) = self.shared.all()
        return state

    def probation(self) -> Probation:
        probation = self.state().probation
        assert probation is not None
        return probation


@pytest.fixture
async def first(memory: MemoryStore) -> ReleaseId:
    return await publish(memory, "first", users=ALL)


@pytest.fixture
async def service(memory: MemoryStore, first: ReleaseId) -> Rehearsal:
    """A service that has answered an hour from its first release."""
    del first
    service = Rehearsal(memory)
    await service.follow()
    for _ in range(5):
        await service.answer()
    return service


async def test_release_without_lists_of_users_is_withdrawn(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId
) -> None:
    bad = await service.publish("bad", FEWER)
    assert service.state().running is not None
    await service.answer()
    catalogue = await memory.catalogue()
    assert catalogue.live == first
    entry = catalogue.find(bad)
    assert entry.state is State.WITHDRAWN
    reason = (
        "7.5% of its 400 lookups got the popular list, compared with less than 0.1% expected from the release before"
    )
    assert f"probation: {reason}" in entry.refused_by[0]
    with pytest.raises(RefusedByGates, match="refused by probation"):
        await life.activate(memory, bad)
    assert service.probation().stage is Stage.WITHDRAWN
    await service.follow()
    assert service.state().running is None
    assert service.state().withdrawn == 1
    text = Exposition(service.reader.metrics, list, service.shared.all).text().decode()
    assert 'hotplate_releases_withdrawn_total{store="tier"} 1.0' in text
    assert 'hotplate_withdrawal_blocked{store="tier"} 0.0' in text
    await life.activate(memory, bad, override=life.Override.DAMAGE)  # an operator takes it as it is
    await service.follow()
    await service.answer()
    assert (await memory.catalogue()).live == bad


async def test_release_that_was_withdrawn_before_the_service_started_can_be_forced(
    memory: MemoryStore, service: Rehearsal
) -> None:
    bad = await service.publish("bad", FEWER)
    await service.answer()
    started = Rehearsal(memory)
    await started.follow()
    await started.answer()
    await life.activate(memory, bad, override=life.Override.DAMAGE)
    await started.follow()
    assert started.state().live == await ref_of(memory, bad)
    assert started.state().running is None


async def test_lists_missed_of_a_canary_do_not_count_after_its_promotion(
    memory: MemoryStore, service: Rehearsal
) -> None:
    canary = await publish(memory, "canary", live=False, users=FEWER)
    await life.start_canary(memory, canary, 99)
    await service.follow()
    await service.reader.personal_many(NAMES[:30])  # users without a list in the canary
    await life.promote(memory)
    await service.follow()
    assert service.state().running is not None
    await service.answer(["a visitor without a list in both"])
    assert live_counts("tier", service.reader.metrics).miss == 0


async def test_visitors_without_a_list_in_both_releases_are_no_loss(memory: MemoryStore, service: Rehearsal) -> None:
    good = await service.publish("good")
    await service.answer([f"visitor-{number}" for number in range(100)] + NAMES)
    assert service.state().running is not None
    assert (await memory.catalogue()).live == good
    service.now += PROBATION_S
    await service.look()
    assert service.state().running is None


async def test_damaged_values_withdraw_a_release_only_if_the_one_before_is_whole(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await service.publish("bad")
    stored = [memory.releases[(await ref_of(memory, release)).incarnation].rows for release in (bad, first)]
    whole = dict(stored[1])
    for rows in stored:
        rows |= {key: b"damage" + rows[key] for key in rows if key.startswith("user:") and key.endswith(("1", "5"))}
    await service.answer()
    assert (await memory.catalogue()).live == bad
    assert service.probation().stage is Stage.BLOCKED
    assert "damaged, too" in caplog.text
    stored[1] |= whole
    service.now += RETRY_S
    await service.look()
    assert (await memory.catalogue()).live == first
    assert not service.state().is_withdrawal_blocked


async def test_rollback_and_first_release_are_not_on_probation(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId
) -> None:
    assert service.state().running is None
    await service.publish("second")
    assert service.state().running is not None
    await life.rollback(memory)
    await service.follow()
    assert service.state().live == await ref_of(memory, first)
    assert service.state().running is None


async def test_release_that_was_left_briefly_is_counted_from_zero(memory: MemoryStore, service: Rehearsal) -> None:
    service.now += HOUR_S
    await service.look()
    service.now += HOUR_S
    await service.look()  # the counts of the first release are now those of its last hour
    await publish(memory, "second", users=ALL)
    await service.tier.follower.refresh()
    await service.counter.count()
    await life.rollback(memory)
    await service.follow()
    await service.answer(NAMES[:150])
    third = await service.publish("third")
    assert service.probation().expected.lookups == 150
    await service.answer()
    assert (await memory.catalogue()).live == third


async def test_failing_store_withdraws_nothing(memory: MemoryStore) -> None:
    remote = RemoteStore(memory)
    await publish(memory, "first", users=ALL)
    service = Rehearsal(remote, admin_store=memory)
    await service.follow()
    for _ in range(5):
        await service.answer()
    second = await service.publish("second")
    assert service.state().running is not None
    remote.failure = StoreUnavailable("away")
    for _ in range(FAILURES):
        await service.answer()
    assert service.tier.breaker.is_open
    remote.failure = None
    await asyncio.sleep(PROBE_PAUSES_S[1])
    await service.answer()
    service.tier.breaker.begin()  # raises while the circuit is open
    remote.broken_keys = {f"user:{number}" for number in range(0, USERS, 4)}
    for _ in range(3):
        await service.answer()
    assert (await memory.catalogue()).live == second
    assert not service.state().is_withdrawal_blocked


async def test_reads_that_are_slow_in_both_releases_withdraw_nothing(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.read(300, seconds=0.0004)
    second = await service.publish("second")
    slow = {await ref_of(memory, release) for release in (first, second)}
    read = memory.get_many

    async def read_slowly(
        release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        if release in slow and keys[0].startswith("user:"):
            await asyncio.sleep(0.02)
        return await read(release, keys, timeout_s=timeout_s)

    monkeypatch.setattr(memory, "get_many", read_slowly)
    await service.read(300, seconds=0.02)
    assert (await memory.catalogue()).live == second
    slow.remove(await ref_of(memory, first))
    service.now += RETRY_S
    await service.look()
    catalogue = await memory.catalogue()
    assert catalogue.live == first
    assert "reads took more than 10 ms" in catalogue.find(second).refused_by[0]


async def test_failed_reads_of_a_canary_do_not_end_the_judgement_of_live_releases(
    memory: MemoryStore, service: Rehearsal
) -> None:
    await service.read(20, seconds=0.02)
    await service.publish("second")
    metrics = service.reader.metrics
    for _ in range(20):  # counted for the canary, but not among those that succeeded
        metrics.observe(metrics.role_reads["tier", CANARY], 0.02)
    await service.read(300, seconds=0.0004)
    third = await service.publish("third")
    await service.read(3, seconds=0.02)
    await service.read(150, seconds=0.0004)
    assert (await memory.catalogue()).live == third
    service.now += PROBATION_S
    await service.answer()
    assert service.state().running is None


async def test_release_that_is_not_worse_after_all_is_not_reported_as_blocked(
    memory: MemoryStore, service: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.read(300, seconds=0.0004)
    await service.publish("second")

    async def fail(*_: object, **__: object) -> list[ReadResult]:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "get_many", fail)
        await service.read(300, seconds=0.02)
    assert service.probation().stage is Stage.BLOCKED
    service.now += RETRY_S
    await service.look()
    assert not service.state().is_withdrawal_blocked  # as slow as the release before


async def test_one_slow_read_after_a_slow_period_withdraws_nothing(
    memory: MemoryStore, service: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.read(300, seconds=0.0004)
    second = await service.publish("second")
    slow = await ref_of(memory, second)
    read = memory.get_many
    slow_reads = iter([0.02])

    async def read_once_slowly(
        release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        if release == slow and keys[0].startswith("user:"):
            await asyncio.sleep(next(slow_reads, 0.0))
        return await read(release, keys, timeout_s=timeout_s)

    monkeypatch.setattr(memory, "get_many", read_once_slowly)
    await service.read(300, seconds=0.02)
    assert next(slow_reads, None) is None
    assert (await memory.catalogue()).live == second


async def test_service_without_the_right_to_write_says_so(
    memory: MemoryStore, service: Rehearsal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await service.publish("bad", FEWER)

    async def refuse(*_: object) -> None:
        raise StoreMisused("this user may not write")

    monkeypatch.setattr(memory, "swap", refuse)
    await service.answer()
    for _ in range(30):
        await service.look()
    assert (await memory.catalogue()).live == bad
    assert service.probation().stage is Stage.BLOCKED
    assert caplog.text.count("this service cannot withdraw it: this user may not write") == 1
    text = Exposition(service.reader.metrics, list, service.shared.all).text().decode()
    assert 'hotplate_withdrawal_blocked{store="tier"} 1.0' in text
    service.now += HOUR_S
    await service.look()
    assert service.probation().stage is Stage.NOT_WITHDRAWN


class ExaminedStore(RemoteStore):
    """Answers an examination with the right to write, or without it."""

    may_write = False
    raises = True

    async def examine(self) -> list[Finding]:
        if self.failure and self.raises:
            raise self.failure
        if self.failure:  # as a store in Redis does
            return [Finding(Level.ERROR, "server", str(self.failure))]
        level = Level.OK if self.may_write else Level.WARNING
        return [Finding(Level.OK, "may read", "yes"), Finding(level, MAY_PUBLISH, "no: user 65532 may not write")]


@pytest.mark.parametrize("may_write", [False, True])
@pytest.mark.parametrize("raises", [True, False])
async def test_missing_right_to_withdraw_is_logged_once_when_the_store_can_be_read(
    memory: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    may_write: bool,
    raises: bool,
) -> None:
    monkeypatch.setattr(withdrawal, "RETRY_S", 0.0)
    store = ExaminedStore(memory)
    store.may_write = may_write
    store.raises = raises
    store.failure = StoreUnavailable("not reached")
    checking = asyncio.create_task(Rehearsal(store).judge.check_rights("tier"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not checking.done()
    assert not caplog.records
    store.failure = None
    await asyncio.wait_for(checking, 60)
    assert caplog.text.count("may not write to the store: name a URL that may with --admin-store") == (not may_write)


async def test_withdrawal_without_a_clear_result_is_counted_if_it_took_place(
    memory: MemoryStore,
    service: Rehearsal,
    first: ReleaseId,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await service.publish("bad", FEWER)

    async def roll_back_and_stop(store: Store, if_live: ReleaseId, *, reason: str) -> None:
        await life.rollback(store, if_live, reason=reason)
        raise TimeoutError

    monkeypatch.setattr(withdrawal, "rollback", roll_back_and_stop)
    await service.answer()
    assert (await memory.catalogue()).live == first
    assert service.probation().stage is Stage.WITHDRAWN
    assert service.state().withdrawn == 1
    assert "cannot withdraw" not in caplog.text


async def test_one_of_two_concurrent_services_withdraws(memory: MemoryStore, service: Rehearsal) -> None:
    services = [service]
    services.append(Rehearsal(memory))
    await services[1].follow()
    for _ in range(5):
        await services[1].answer()
    first = (await memory.catalogue()).live
    await publish(memory, "bad", users=FEWER)
    for rehearsal in services:
        await rehearsal.follow()
        await rehearsal.reader.personal_many(NAMES)
        await rehearsal.counter.count()
        await rehearsal.counter.count()
    await asyncio.gather(*(rehearsal.judge.judge_live_releases() for rehearsal in services))
    assert (await memory.catalogue()).live == first
    assert sum(rehearsal.state().withdrawn for rehearsal in services) == 1


async def test_admin_process_that_ended_is_continued(memory: MemoryStore, service: Rehearsal, first: ReleaseId) -> None:
    await service.publish("bad", FEWER)
    began = service.state()
    service.judge = service.admin()
    assert service.state() == began
    await service.answer()
    assert (await memory.catalogue()).live == first


async def test_counts_of_a_worker_that_ended_are_continued(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId
) -> None:
    assert live_counts("tier", service.reader.metrics).hit == 5 * USERS
    service.counter = ReleaseCounter(service.shared, service.reader.tiers)
    await service.look()
    await service.answer()
    assert live_counts("tier", service.reader.metrics).hit == 6 * USERS
    assert service.state().live == await ref_of(memory, first)


async def test_worker_that_restarts_during_a_probation_counts_missing_lists(
    memory: MemoryStore, service: Rehearsal, first: ReleaseId
) -> None:
    await service.publish("bad", FEWER)
    service.reader = TieredReader({"tier": memory}, metrics=service.reader.metrics)  # its successor's, in shared memory
    (service.tier,) = service.reader.tiers
    service.counter = ReleaseCounter(service.shared, service.reader.tiers)
    await service.follow()
    await service.answer()
    assert (await memory.catalogue()).live == first


async def test_misses_of_a_bad_release_do_not_withdraw_the_next_one(memory: MemoryStore, service: Rehearsal) -> None:
    """Those that a worker has counted since the last judgement."""
    await service.publish("bad", FEWER)
    for _ in range(3):
        await service.answer(NAMES[30:])
    await service.reader.personal_many(NAMES)
    await service.counter.count()
    good = await service.publish("good")
    for _ in range(3):
        await service.answer()
    assert (await memory.catalogue()).live == good


class LateWorker:
    """Another worker of a rehearsed service, which reports a release and leaves it when it is told to."""

    def __init__(self, service: Rehearsal) -> None:
        service.states = SharedStates(2, tiers=1)
        service.judge = service.admin()
        self.states = service.states
        self.reader = TieredReader({"tier": service.store})

    async def follow(self) -> None:
        await self.reader.tiers[0].follower.refresh()
        self.states.write(1, Reporter(self.reader.tiers).state())


async def test_live_release_is_judged_while_a_worker_serves_the_one_before(
    memory: MemoryStore, service: Rehearsal
) -> None:
    """Also while a newer one is loaded."""
    late = LateWorker(service)
    await late.follow()
    second = await service.publish("second")
    await publish(memory, "bad", users=FEWER)
    for _ in range(5):
        await service.answer()
    await service.follow()
    for _ in range(3):
        await service.answer()
    assert (await memory.catalogue()).live == second


async def test_answers_of_a_release_that_other_workers_have_left_do_not_count(
    memory: MemoryStore, service: Rehearsal
) -> None:
    late = LateWorker(service)
    second = await publish(memory, "second", users=ALL)
    await late.follow()
    await service.look()
    assert service.state().live == await ref_of(memory, second)
    counted = live_counts("tier", service.reader.metrics).lookups
    await service.answer()
    assert live_counts("tier", service.reader.metrics).lookups == counted
    await service.follow()
    await service.answer()
    assert live_counts("tier", service.reader.metrics).lookups == counted + USERS


# With real services ---------------------------------------------------------------------------------------------------

MANY = 2000
STEP = 1237  # the golden section of MANY, and coprime to it
LISTS = {f"user:{number:04}": a_list(*(f"item-{rank}-{number}" for rank in range(20))) for number in range(MANY)}


@contextmanager
def traffic(service: Service) -> Iterator[None]:
    """Request lists of all users one after the other, until the block ends.

    A tenth of the users, in a row by number, is also a tenth of any few requests in a row: the first of more would only
    prove that there are more popular lists, and not yet why.
    """
    stopped = threading.Event()

    def request() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        number = 0
        while not stopped.is_set():
            number = (number + STEP) % MANY
            connection.request("GET", f"/v1/recommendations/{number:04}?n=1")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            stopped.wait(0.002)
        connection.close()

    thread = threading.Thread(target=request)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def metric(service: Service, name: str) -> float:
    """Return the largest value of a metric."""
    lines = service.admin("/metrics").body.decode().splitlines()
    return max((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), default=0.0)


def damage(url: str, release: str) -> None:
    """Change bytes of about every tenth value of a release."""
    incarnation = incarnation_of(url, release)
    if url.startswith("redis:"):
        with redis.Redis.from_url(url.partition("?")[0]) as client:
            for key in client.scan_iter(f"*{incarnation}*user:*0", count=1000):
                client.setrange(key, 12, b"damage")
        return
    (path,) = Path(url.removeprefix("file://")).glob(f"releases/*{incarnation}*.mdb")
    content = path.read_bytes()
    with path.open("r+b") as file:
        for number in range(MANY // 10):
            file.seek(content.index(b'"item-0-%d"' % number))
            file.write(b"damage")


def incarnation_of(url: str, release: str) -> str:
    output = json_of("releases", "list", "--store", url)
    return str(next(entry["incarnation"] for entry in output["releases"] if entry["id"] == release))


def state_of(url: str, release: str) -> str:
    """Return the line of a release in `releases list`."""
    listed = succeeded("releases", "list", "--store", url)
    return next(line for line in listed.splitlines() if line.startswith(release))


def answered(service: Service, release: str) -> float:
    """Return how many lists of a release all workers have looked up."""
    lines = service.admin("/metrics").body.decode().splitlines()
    own = [line for line in lines if line.startswith("hotplate_release_lookups_total") and release in line]
    return sum(float(line.rpartition(" ")[2]) for line in own)


# A probation does not end before a file exists.
UNENDING = """
from hotplate.serve.releases.withdrawal import ReleaseJudge
judge = ReleaseJudge.judge_live_releases
async def judge_for_long(self):
    self._probation_s = 5.0 if seen.exists() else 3600.0
    await judge(self)
ReleaseJudge.judge_live_releases = judge_for_long
"""


@contextmanager
def on_trial(logs: Path, url: str, probation: str, *options: str, before: str = "") -> Iterator[tuple[Service, str]]:
    """Run a service, with requests, after 600 answers of its first release; *options* may name another store."""
    first = published(url, LISTS)
    store = () if "--store" in options else ("--store", url)
    options = (*store, *options, "--probation", probation, "--workers", "2")
    with serving(logs, *options, before=before) as service, traffic(service):
        until(lambda: answered(service, first) >= 600)
        yield service, first


def drill_losing_lists(logs: Path, url: str) -> None:
    with on_trial(logs, url, "5m") as (service, first):
        lists = logs / "lists.csv"
        kept = list(LISTS)[: -MANY * 6 // 100]
        rows = [
            f"{key.removeprefix('user:')},item-{rank}-{number},{20 - rank}"
            for number, key in enumerate(kept)
            for rank in range(20)
        ]
        lists.write_text("\n".join(["user,item,score", *rows]))
        done = hotplate("import", lists, "--store", url, "--probation-wait", "60s")
        assert done.returncode == 3
        assert "was withdrawn" in done.stderr
        assert "got the popular list" in done.stderr
        output = json_of("releases", "list", "--store", url)
        assert output["live"] == first
        bad = next(entry["id"] for entry in output["releases"] if entry["state"] == "withdrawn")
        assert "refused by probation: " in state_of(url, bad)
        until(lambda: metric(service, "hotplate_releases_withdrawn_total") == 1)
        until(lambda: {worker["release"] for worker in service.states()} == {first})
        assert hotplate("releases", "activate", bad, "--store", url).returncode == 3
        assert f"release {bad} was withdrawn, and release {first} is live again" in service.log.read_text()


def drill_damaging_values(logs: Path, url: str) -> None:
    with on_trial(logs, url, "5m") as (service, first):
        bad = published(url, LISTS, live=False)
        damage(url, bad)
        succeeded("releases", "activate", bad, "--store", url)
        until(lambda: json_of("releases", "list", "--store", url)["live"] == first)
        assert "could not be read" in state_of(url, bad)
        until(lambda: metric(service, "hotplate_releases_withdrawn_total") == 1)


def drill_good_release(logs: Path, url: str) -> None:
    seen = logs / "seen"
    before = f"import pathlib; seen = pathlib.Path({str(seen)!r})\n{UNENDING}"
    with on_trial(logs, url, "5s", before=before) as (service, _):
        good = published(url, LISTS)
        until(lambda: metric(service, "hotplate_probation{") == 1)
        seen.touch()
        until(lambda: metric(service, "hotplate_probation{") == 0)
        assert json_of("releases", "list", "--store", url)["live"] == good
        assert metric(service, "hotplate_releases_withdrawn_total") == 0


def drill_killed_store(logs: Path, url: str, server: RedisServer) -> None:
    with on_trial(logs, url, "5m") as (service, _):
        good = published(url, LISTS)
        until(lambda: metric(service, "hotplate_probation{") == 1)
        server.kill()
        until(lambda: metric(service, "hotplate_breaker_open") == 1)
        time.sleep(1)
        server.start()
        until(lambda: metric(service, "hotplate_breaker_open") == 0)
        before = answered(service, good)
        until(lambda: answered(service, good) >= before + 600)
        assert json_of("releases", "list", "--store", url)["live"] == good
        assert metric(service, "hotplate_releases_withdrawn_total") == 0
        assert metric(service, "hotplate_withdrawal_blocked") == 0
        assert metric(service, "hotplate_probation{") == 1


@pytest.mark.soak
@pytest.mark.usefixtures("patience")
def test_only_the_admin_store_user_can_withdraw(tmp_path: Path, server: RedisServer) -> None:
    users = users_of_the_guide("test", server.execute_command, server.url)
    fewer = dict(list(LISTS.items())[: -MANY * 6 // 100])
    with on_trial(tmp_path, users["publish"], "5m", "--store", users["serve"]) as (service, _):
        bad = published(users["publish"], fewer)
        until(lambda: metric(service, "hotplate_withdrawal_blocked") == 1)
        assert json_of("releases", "list", "--store", users["publish"])["live"] == bad
        assert "this service cannot withdraw it" in service.log.read_text()
    options = ("--store", users["serve"], "--admin-store", users["publish"])
    with on_trial(tmp_path, users["publish"], "5m", *options) as (service, first):
        published(users["publish"], fewer)
        until(lambda: json_of("releases", "list", "--store", users["publish"])["live"] == first)
        until(lambda: metric(service, "hotplate_releases_withdrawn_total") == 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that may be killed: it has its data after a restart."""
    (folder := tmp_path / "redis").mkdir()
    with redis_running(folder, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


def test_publish_that_loses_lists_is_withdrawn_from_files(tmp_path: Path) -> None:
    drill_losing_lists(tmp_path, f"file://{tmp_path}/store")


def test_restart_of_redis_withdraws_no_release(tmp_path: Path, server: RedisServer) -> None:
    drill_killed_store(tmp_path, server.url(), server)


@pytest.mark.soak
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("drill", [drill_losing_lists, drill_damaging_values, drill_good_release])
@pytest.mark.parametrize("store", ["file", "redis"])
def test_drills_over_files_and_redis(
    tmp_path: Path, server: RedisServer, store: str, drill: Callable[[Path, str], None], number: int
) -> None:
    url = server.url() if store == "redis" else f"file://{tmp_path}/store-{number}"
    drill(tmp_path, url)
