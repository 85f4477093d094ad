"""Tiers of stores that report their attempts: a slow key fails alone, a scrape shows the cost; when circuits open."""

import asyncio
from collections.abc import Sequence

import pytest

from hotplate.serve.embedded import Lists
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.breaker import FAILURES, FAILURES_OF_PARTS, PROBE_PAUSES_S
from hotplate.serve.tiers.observer import StoreObserver
from hotplate.serve.tiers.tier import Tier
from hotplate.stores.catalogue import Catalogue, ReleaseRef
from hotplate.stores.encoding import USER
from hotplate.stores.errors import PartUnavailable, ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import TOKEN, Observer, ReadResult
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.virtual import virtual

BUDGET_S = 0.2


class KeyByKeyStore(RemoteStore):
    """A remote store that reads each key separately, reports that to an observer, and names slow keys."""

    coalesce = 1

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.slow_keys = set[str]()
        self.observer: Observer | None = None

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        results = await super().get_many(release, keys)
        if self.slow_keys & set(keys):
            await asyncio.sleep(timeout_s or 0)
        late = StoreUnavailable("this one has no answer yet")
        results = [late if key in self.slow_keys else result for key, result in zip(keys, results, strict=True)]
        failed = [result for result in results if isinstance(result, StoreError)]
        if self.observer is not None:
            self.observer.charged(1.25 * len(results))
            for result in failed:
                self.observer.failed("throttled" if result is late else "a word of its own")
        if len(failed) == len(keys):
            raise PartUnavailable(str(failed[0]))
        return results


@pytest.fixture
def store(clock: FakeClock) -> KeyByKeyStore:
    return KeyByKeyStore(MemoryStore(clock))


async def opened(store: RemoteStore) -> tuple[TieredReader, Tier]:
    """Publish a release, and read it by one tier."""
    await publish(store.inner, "first")
    reader = TieredReader({"cosmos": store}, budget_s=BUDGET_S)
    (tier,) = reader.tiers
    await tier.follower.refresh()
    return reader, tier


async def until_probe(tier: Tier) -> None:
    """Open the circuit of a tier, and wait until it allows a probe."""
    for _ in range(FAILURES):
        tier.breaker.failed(tier.breaker.begin(), StoreUnavailable("away"))
    await asyncio.sleep(PROBE_PAUSES_S[1])


def exposed(reader: TieredReader) -> str:
    return Lists(lambda: reader).prometheus_text().decode()


@virtual
async def test_circuit_opens_for_a_store_that_never_answers(
    store: KeyByKeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    reader, tier = await opened(store)
    store.broken_keys = {f"user:{n}" for n in range(5)}
    for _ in range(FAILURES_OF_PARTS):
        await reader.personal_many(["0", "1", "2", "3"])
    assert tier.breaker.is_open
    assert tier.error == "circuit open after repeated failures: this one could not be read"
    assert [record.levelname for record in caplog.records if record.name == "hotplate.serve.tiers.breaker"] == [
        "WARNING"
    ]


@virtual
async def test_cancelled_calls_leave_the_circuit_closed(store: KeyByKeyStore) -> None:
    reader, tier = await opened(store)
    store.slow_keys = {"user:0", "user:1"}
    for _ in range(FAILURES_OF_PARTS + 1):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(BUDGET_S / 100):
                await reader.personal_many(["0", "1"])
    assert not tier.breaker.is_open
    store.slow_keys = set()
    assert [answer.source for answer in await reader.personal_many(["0", "1"])] == ["personal", "personal"]


@virtual
async def test_a_cancelled_probe_lets_the_next_request_probe(store: KeyByKeyStore) -> None:
    reader, tier = await opened(store)
    await until_probe(tier)
    store.slow_keys = {"user:0", "user:1"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(BUDGET_S / 100):
            await reader.personal_many(["0", "1"])
    store.slow_keys = set()
    assert [answer.source for answer in await reader.personal_many(["0", "1"])] == ["personal", "personal"]
    assert not tier.breaker.is_open


class SilentCatalogue(RemoteStore):
    """A store that does not answer reads of its catalogue, and counts the open ones when it is closed."""

    poll_s = 60.0
    is_silent = False
    reading = 0
    reading_at_close: int | None = None

    async def catalogue(self) -> Catalogue:
        self.reading += 1
        try:
            while self.is_silent:
                await asyncio.sleep(1)
            return await super().catalogue()
        finally:
            self.reading -= 1

    async def close(self) -> None:
        self.reading_at_close = self.reading
        await super().close()


@virtual
async def test_no_catalogue_is_read_from_a_closed_store(clock: FakeClock) -> None:
    store = SilentCatalogue(MemoryStore(clock))
    await publish(store.inner, "first")
    async with TieredReader({"tier": store}) as reader:
        await reader.wait_until_ready(5)
        store.is_silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await reader.tiers[0].follower.refresh()
        assert store.reading == 1, "the read goes on for other callers"
    assert store.reading_at_close == 0


class ShortStore(RemoteStore):
    """A store that returns no result for the last key."""

    is_short = False

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        results = await super().get_many(release, keys, timeout_s=timeout_s)
        return results[:-1] if self.is_short else results


@virtual
async def test_wrong_number_of_results_opens_the_circuit_and_leaves_room_for_probes(clock: FakeClock) -> None:
    store = ShortStore(MemoryStore(clock))
    reader, tier = await opened(store)
    store.is_short = True
    for _ in range(FAILURES):
        assert [answer.source for answer in await reader.personal_many(["0", "1"])] == ["popular", "popular"]
    assert tier.error == "circuit open after repeated failures: cosmos returned 1 results for 2 keys"
    await asyncio.sleep(PROBE_PAUSES_S[1])
    await reader.personal_many(["0", "1"])  # a probe
    store.is_short = False
    await asyncio.sleep(PROBE_PAUSES_S[1])
    assert [answer.source for answer in await reader.personal_many(["0", "1"])] == ["personal", "personal"]
    assert not tier.breaker.is_open


@virtual
async def test_defect_during_a_probe_lets_the_next_request_probe(
    store: KeyByKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, tier = await opened(store)
    await until_probe(tier)
    with monkeypatch.context() as patched:
        patched.setattr(tier.metrics, "observe", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await reader.personal_many(["0", "1"])
    assert [answer.source for answer in await reader.personal_many(["0", "1"])] == ["personal", "personal"]


@virtual
async def test_failures_of_one_part_do_not_open_the_circuit_before_the_limit(store: KeyByKeyStore) -> None:
    reader, tier = await opened(store)
    store.broken_keys = {"user:1"}
    for _ in range(FAILURES_OF_PARTS - 1):
        await reader.read(USER, "1")
    assert (await reader.read(USER, "0")).source == "personal"
    for _ in range(FAILURES_OF_PARTS - 1):
        await reader.read(USER, "1")
    assert not tier.breaker.is_open


@virtual
async def test_scrape_shows_request_units_throttles_and_failures_once_reported(store: KeyByKeyStore) -> None:
    reader, tier = await opened(store)
    await reader.personal_many(["0", "1"])
    assert 'hotplate_store_request_units_total{store="cosmos"}' not in exposed(reader)
    store.observer = StoreObserver(tier.name, reader.metrics)
    store.slow_keys = {"user:1"}
    store.broken_keys = {"user:2"}
    await reader.personal_many(["0", "1", "2"])
    text = exposed(reader)
    assert 'hotplate_store_request_units_total{store="cosmos"} 3.75' in text
    assert 'hotplate_store_charged_responses_total{store="cosmos"} 2.0' in text
    assert 'hotplate_store_throttled_total{store="cosmos"} 1.0' in text
    assert 'hotplate_store_failures_total{kind="other",store="cosmos"} 1.0' in text
    assert 'hotplate_store_token_failures_total{store="cosmos"} 0.0' in text
    store.observer.failed(TOKEN)
    assert 'hotplate_store_token_failures_total{store="cosmos"} 1.0' in exposed(reader)


@virtual
async def test_answer_about_a_gone_release_closes_the_circuit_and_logs_it(
    store: KeyByKeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    reader, tier = await opened(store)
    await until_probe(tier)
    caplog.clear()
    await publish(store.inner, "second")
    store.inner.releases.pop(next(iter(store.inner.releases)))  # the first one is gone
    await reader.personal_many(["0"])
    assert [record.message for record in caplog.records if "circuit" in record.message] == [
        "cosmos: circuit closed, the store answers"
    ]


async def test_damaged_rows_do_not_open_the_circuit(store: KeyByKeyStore) -> None:
    reader, tier = await opened(store)
    store.failure = ReleaseCorrupt("not a list")
    for _ in range(2 * FAILURES):
        assert (await reader.read(USER, "1")).status != "ok"
    assert not tier.breaker.is_open
    store.failure = None
    assert (await reader.read(USER, "1")).status == "ok"
