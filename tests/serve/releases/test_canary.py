"""A canary beside the live release: assignment of users, consistent answers, and regressions."""

import asyncio
import json
import logging
from collections.abc import Sequence
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import BUCKETS_S, CANARY, LIVE, ROLE_LOOKUPS, Metrics
from hotplate.serve.processes.states import Reporter
from hotplate.serve.releases.counts import ReleaseCounts
from hotplate.serve.releases.follower import CANARY_S
from hotplate.serve.releases.judgement import find_regression
from hotplate.serve.telemetry.exposition import Exposition
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import GRACE_S, ReleaseId, UserShare
from hotplate.stores.encoding import EVERYBODY, ITEM, OFFSET_BYTES, USER, RowKey
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.transfer import copy
from tests.support.clock import FakeClock
from tests.support.lane import Pair, exchange
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish
from tests.support.stores import ref_of
from tests.support.virtual import virtual

USERS = 40
NAMES = [str(n) for n in range(USERS)]


def texts(answers: Sequence[EncodedList]) -> dict[ReleaseId, set[str]]:
    """Return which publishes the lists of each release are of."""
    by_release = dict[ReleaseId, set[str]]()
    for answer in answers:
        by_release.setdefault(answer.release.id, set()).add(answer.body[OFFSET_BYTES:].decode().partition(" ")[0])
    return by_release


async def with_canary(store: MemoryStore, percent: float = 50, users: range = range(USERS)) -> list[ReleaseId]:
    """Publish a release that is live, and one with lists for *users* that is the canary."""
    live = await publish(store, "live", users=range(USERS))
    canary = await publish(store, "canary", live=False, users=users)
    await life.start_canary(store, canary, percent)
    return [live, canary]


def of_canary(reader: TieredReader) -> list[str]:
    """Return the users of the canary of the first tier; it has neither items nor lists for everybody."""
    canary = reader.tiers[0].follower.canary
    if canary is None:
        return []
    assert not any(canary.includes(row) for row in (EVERYBODY, *(RowKey(ITEM, name) for name in NAMES)))
    return [name for name in NAMES if canary.includes(RowKey(USER, name))]


async def refreshed(reader: TieredReader) -> TieredReader:
    for tier in reader.tiers:
        await tier.follower.refresh()
    return reader


@given(
    salts=st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True),
    low=st.floats(1, 50),
    more=st.floats(0, 49),
)
def test_canary_users_remain_at_larger_shares_and_canaries_are_independent(
    salts: list[str], low: float, more: float
) -> None:
    def seen(salt: str, percent: float) -> set[int]:
        canary = UserShare.of(percent, salt)
        return {user for user in range(1000) if canary.includes(str(user))}

    first, other = (seen(salt, low) for salt in salts)
    assert first <= seen(salts[0], low + more)
    sigma = (1000 * low / 100 * (1 - low / 100)) ** 0.5
    assert abs(len(first) - 10 * low) <= 6 * sigma
    assert abs(len(first & other) - len(first) * len(other) / 1000) <= 6 * (len(first) * len(other) / 1000) ** 0.5 + 6


@virtual
async def test_unknown_or_unreadable_user_gets_popular_list_of_assigned_release(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    live, canary = await with_canary(memory, users=range(0))
    reader = await refreshed(TieredReader({"tier": remote}))
    chosen = set(of_canary(reader))

    def check(answers: Sequence[EncodedList], source: str) -> None:
        for name, answer in zip(NAMES, answers, strict=True):
            assert (answer.release.id, answer.source) == ((canary, "popular") if name in chosen else (live, source))

    check(await reader.personal_many(NAMES), "personal")
    remote.failure = StoreUnavailable("gone")
    check(await asyncio.gather(*(reader.read(USER, name) for name in NAMES)), "popular")
    check(await reader.personal_many(NAMES), "popular")
    cells = reader.metrics.cells[ROLE_LOOKUPS]
    counted = {labels: reader.metrics.total(cell)[0] for labels, cell in cells.items()}
    assert counted["tier", CANARY, "miss"] == len(chosen)
    assert counted["tier", LIVE, "hit"] == USERS - len(chosen)
    assert counted["tier", CANARY, "error"] == 2 * len(chosen)
    assert counted["tier", LIVE, "error"] == 2 * (USERS - len(chosen))


@virtual
async def test_a_second_tier_with_the_same_canary_answers_the_same_users_of_it(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock
) -> None:
    second = MemoryStore(clock)
    live, canary = await with_canary(memory)
    for release in (live, canary):
        await copy(memory, second, release, live=release == live)
    await life.start_canary(second, canary, 50)
    reader = await refreshed(TieredReader({"first": remote, "second": second}))
    before = [answer.release.id for answer in await reader.personal_many(NAMES)]
    remote.failure = StoreUnavailable("gone")
    batch = await reader.personal_many(NAMES)
    singles = await asyncio.gather(*(reader.read(USER, name) for name in NAMES))
    for answers in (batch, singles):
        assert {answer.tier for answer in answers} == {"second"}
        assert [answer.release.id for answer in answers] == before


@virtual
async def test_unloadable_canary_leaves_users_on_the_live_release_until_it_loads(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory)
    ref = await ref_of(memory, canary)
    kept = memory.releases.pop(ref.incarnation)
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live}
        assert "cannot be loaded" in reader.tiers[0].follower.findings[0].sentence
        memory.releases[ref.incarnation] = kept
        await asyncio.sleep(2 * CANARY_S)
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live, canary}
        assert reader.tiers[0].follower.findings == []


@virtual
async def test_process_stops_using_a_worse_canary_until_another_one_is_set(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "warm", warm := AsyncMock())
    live, canary = await with_canary(memory, users=range(USERS // 2))
    async with TieredReader({"tier": memory}, warm=True) as reader:
        await reader.wait_until_ready(5)
        (tier,) = reader.tiers
        for _ in range(10):
            await reader.personal_many(NAMES)
        with caplog.at_level(logging.WARNING):
            await asyncio.sleep(2 * CANARY_S)
        assert "lookups got the popular list, compared with 0.0% in the live release" in caplog.text
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live}
        text = Exposition(reader.metrics, lambda: [Reporter(reader.tiers).state()]).text().decode()
        assert 'hotplate_canary_stopped{store="tier",worker="0"} 1.0' in text
        assert 'role="canary"' in text
        await life.start_canary(memory, canary, 90)  # the same, at another share
        await asyncio.sleep(CANARY_S)
        assert (tier.follower.canary, warm.await_count) == (None, 2)
        await life.abort(memory)
        await tier.follower.refresh()
        assert tier.follower.findings == []
        good = await publish(memory, "good", live=False, users=range(USERS))
        await life.start_canary(memory, good, 50)
        await tier.follower.refresh()
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live, good}


@virtual
async def test_stopped_canary_stays_stopped_if_restarted_between_two_reads(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory, users=range(USERS // 2))
    memory.poll_s = 3600.0  # the follower reads the catalogue only by `refresh`
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        (tier,) = reader.tiers
        loaded = tier.follower.canary
        await life.abort(memory)
        await life.start_canary(memory, canary, 50)
        await tier.follower.refresh()
        assert tier.follower.canary is loaded
        for _ in range(10):
            await reader.personal_many(NAMES)
        await asyncio.sleep(2 * CANARY_S)
        assert tier.follower.followed_canary.is_stopped
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live}
        await publish(memory, "later", live=False)
        await tier.follower.refresh()
        assert tier.follower.followed_canary.is_stopped
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live}


def reads(fast: int, slow: int) -> ReleaseCounts:
    """Return reads of 1 ms and of 25 ms."""
    counts = [0.0] * (len(BUCKETS_S) + 1)
    counts[BUCKETS_S.index(0.001)] = fast
    counts[BUCKETS_S.index(0.025)] = slow
    return ReleaseCounts(reads=tuple(counts))


@pytest.mark.parametrize(
    ("live", "canary", "finding"),
    [
        (ReleaseCounts(900, 100, 0), ReleaseCounts(90, 10, 0), None),
        (ReleaseCounts(900, 100, 0), ReleaseCounts(60, 40, 0), "popular list"),
        (ReleaseCounts(1000, 0, 0), ReleaseCounts(80, 0, 20), "not be read"),
        (ReleaseCounts(700, 0, 300), ReleaseCounts(70, 0, 30), None),
        (ReleaseCounts(10**6, 0, 0), ReleaseCounts(10**6 * 0.96, 10**6 * 0.04, 0), None),
        (reads(1000, 0), reads(800, 200), "reads took more than 10 ms"),
        (reads(1000, 0), reads(970, 30), None),
        (reads(1000, 0), reads(40, 59), None),
    ],
)
def test_canary_regression_needs_the_bound_and_significance(
    live: ReleaseCounts, canary: ReleaseCounts, finding: str | None
) -> None:
    regression = find_regression(live, canary)
    assert (regression is None) if finding is None else (regression is not None and finding in regression)


def request_of(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


@pytest.mark.parametrize("is_remote", [True, False])
async def test_fast_lane_and_aiohttp_agree_on_the_canary_release(
    memory: MemoryStore, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch, *, is_remote: bool
) -> None:
    # It is not judged, because the canary lacks lists and would be stopped.
    monkeypatch.setattr("hotplate.serve.releases.follower.CANARY_S", 3600.0)
    live, canary = await with_canary(memory, users=range(USERS // 2))
    reader = TieredReader({"tier": remote if is_remote else memory}, budget_s=30.0)
    async with Pair(reader) as pair:
        chosen = set(of_canary(reader))
        for name in (*NAMES, "nobody", "somebody"):
            request = request_of(f"/v1/recommendations/{name}?n=1")
            await pair.check(request)
            head, _, body = (await exchange(pair.lane, (request,))).partition(b"\r\n\r\n")
            tag = next(line for line in head.decode().split("\r\n") if line.startswith("ETag: "))[6:]
            await pair.check(request_of(f"/v1/recommendations/{name}?n=1", f"If-None-Match: {tag}"))
            if name in chosen:
                assert f"X-Hotplate-Release: {canary}\r\nX-Hotplate-Canary: {canary}\r\n" in head.decode()
                assert b'"release":"%b","canary":true,' % canary.encode() in body
            elif name in NAMES:
                assert f"X-Hotplate-Release: {live}\r\n" in head.decode()
                assert b"anary" not in head + body.partition(b"HTTP/1.1")[0]
        for path in ("/v1/popular", "/v1/similar/1"):
            await pair.check(request_of(path))
        await life.promote(memory)
        await refreshed(reader)
        answer = await exchange(pair.lane, (request_of("/v1/recommendations/1?n=1"),))
        assert b"anary" not in answer.replace(b"canary for 1", b"")
        await pair.check(request_of("/v1/recommendations/1?n=1"))


async def test_a_batch_names_the_release_of_each_user_and_both_in_its_headers(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory)
    reader = TieredReader({"tier": memory})
    async with Pair(reader) as pair:
        chosen = of_canary(reader)
        for path, fields in (("/v1/recommendations", {"users": NAMES, "n": 1}), ("/score", {"data": NAMES})):
            body = json.dumps(fields)
            request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            answer = await exchange(pair.plain, (request,))
            assert f"X-Hotplate-Release: {live}\r\nX-Hotplate-Canary: {canary}\r\n".encode() in answer
            assert answer.count(b'"release":"%b","canary":true,' % canary.encode()) == len(chosen)
            results = answer.partition(b'"user"')[2]
            assert results.count(b'"release":"%b","source"' % live.encode()) == USERS - len(chosen)


@virtual
async def test_a_canary_is_judged_by_the_lookups_of_all_workers_together(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory)
    metrics = Metrics(3, ["tier"])
    metrics.count_in(ROLE_LOOKUPS, "tier", CANARY, "miss", number=1000)  # of a canary before this one
    async with TieredReader({"tier": memory}, metrics=metrics) as reader:
        await reader.wait_until_ready(5)
        await asyncio.sleep(2 * CANARY_S)
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live, canary}
        for worker in (1, 2):
            own = metrics.in_slot(worker)
            own.count_in(ROLE_LOOKUPS, "tier", LIVE, "hit", number=600)
            own.count_in(ROLE_LOOKUPS, "tier", CANARY, "miss", number=60)
        await asyncio.sleep(2 * CANARY_S)
        assert {answer.release.id for answer in await reader.personal_many(NAMES)} == {live}


@virtual
async def test_vanished_canary_leaves_users_the_live_lists(memory: MemoryStore, remote: RemoteStore) -> None:
    live, canary = await with_canary(memory)
    async with TieredReader({"tier": remote}) as reader:
        await reader.wait_until_ready(5)
        assert of_canary(reader)
        memory.releases.pop((await ref_of(memory, canary)).incarnation)
        answers = [await reader.read(USER, name) for name in NAMES]
        assert {(answer.release.id, answer.source) for answer in answers} == {(live, "personal")}
        assert not reader.tiers[0].breaker.is_open
        assert {answer.source for answer in await reader.personal_many(NAMES)} == {"personal"}
        await asyncio.sleep(2 * CANARY_S)
        assert f"release {canary} is the canary, and" in reader.tiers[0].follower.findings[0].sentence


@pytest.mark.parametrize("is_remote", [True, False])
@virtual
async def test_users_of_a_missing_release_get_lists_of_the_live_one_or_canary(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock, *, is_remote: bool
) -> None:
    await publish(memory, "old", users=range(USERS))
    stores = {"tier": remote if is_remote else memory}
    first, other = [await refreshed(TieredReader(stores, cache_bytes=1 << 20)) for _ in range(2)]
    live, canary = await with_canary(memory)
    clock.now += GRACE_S
    await life.prune(memory, keep=0)
    answers = await asyncio.gather(*(first.read(USER, name) for name in NAMES)), await other.personal_many(NAMES)
    assert of_canary(first) == of_canary(other)
    for read in answers:
        assert texts(read) == {live: {"live"}, canary: {"canary"}}
        assert [name for name, answer in zip(NAMES, read, strict=True) if answer.release.is_canary] == of_canary(first)
