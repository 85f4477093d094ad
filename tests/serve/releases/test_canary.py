"""A canary beside the live release: who sees it, that no answer mixes the two, and when a process stops using it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import CANARY, CLICK, IMPRESSION, LIVE, Metrics, ReleaseRole
from hotplate.serve.processes.canary_watch import finding_on, watch
from hotplate.serve.reader import EncodedList, TieredReader
from hotplate.serve.releases.canary import (
    MIN_LOOKUPS,
    BothCounts,
    ReleaseCounts,
    ServedCanary,
    click_change,
    fewer_clicks,
    find_regression,
)
from hotplate.serve.releases.follower import CANARY_S
from hotplate.serve.states import Reporter, SharedStates
from hotplate.serve.telemetry.exposition import Exposition
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import GRACE_S, Canary, Catalogue, Release, ReleaseId, State, stop_canary
from hotplate.stores.encoding import OFFSET_BYTES
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.memory import MemoryStore
from hotplate.stores.transfer import copy
from tests.support.clock import FakeClock
from tests.support.lane import Pair, exchange
from tests.support.remote import RemoteStore, publish
from tests.support.service import running_app
from tests.support.stores import ref_of
from tests.support.virtual import virtual

USERS = 40
NAMES = [str(n) for n in range(USERS)]


def texts(answers: Sequence[EncodedList]) -> dict[ReleaseId, set[str]]:
    """Return which publishes the lists of each release are of."""
    found = dict[ReleaseId, set[str]]()
    for one in answers:
        found.setdefault(one.served.id, set()).add(one.body[OFFSET_BYTES:].decode().partition(" ")[0])
    return found


async def with_canary(store: MemoryStore, percent: float = 50, users: range = range(USERS)) -> list[ReleaseId]:
    """Publish a release that is live, and one with lists for *users* that is the canary."""
    live = await publish(store, "live", users=range(USERS))
    canary = await publish(store, "canary", live=False, users=users)
    await life.start_canary(store, canary, percent)
    return [live, canary]


def of_canary(reader: TieredReader) -> list[str]:
    """Return who sees the canary of the first tier."""
    canary = reader.tiers[0].follower.canary
    return [] if canary is None else [name for name in NAMES if canary.includes(f"user:{name}")]


async def refreshed(reader: TieredReader) -> TieredReader:
    for tier in reader.tiers:
        await tier.follower.refresh()
    return reader


@given(
    salts=st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True),
    low=st.floats(1, 50),
    more=st.floats(0, 49),
)
def test_whoever_sees_a_canary_sees_it_at_a_larger_share_and_few_see_all_of_several(
    salts: list[str], low: float, more: float
) -> None:
    served = "no lookup is made of it"

    def seen(salt: str, percent: float) -> set[int]:
        canary = ServedCanary(Canary(ReleaseId("r"), percent, salt), served, 0.0)  # type: ignore[arg-type]  # as it says
        assert not canary.includes("item:1")
        assert not canary.includes("popular:")
        return {user for user in range(1000) if canary.includes(f"user:{user}")}

    one, other = (seen(salt, low) for salt in salts)
    assert one <= seen(salts[0], low + more)
    sigma = (1000 * low / 100 * (1 - low / 100)) ** 0.5
    assert abs(len(one) - 10 * low) <= 6 * sigma
    assert abs(len(one & other) - len(one) * len(other) / 1000) <= 6 * (len(one) * len(other) / 1000) ** 0.5 + 6


@virtual
async def test_an_unknown_user_or_one_who_cannot_be_read_gets_the_popular_list_of_the_release_he_sees(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    live, canary = await with_canary(memory, users=range(0))
    reader = await refreshed(TieredReader({"tier": remote}))
    chosen = set(of_canary(reader))

    def check(answers: Sequence[EncodedList], source: str) -> None:
        for name, one in zip(NAMES, answers, strict=True):
            assert (one.served.id, one.source) == ((canary, "popular") if name in chosen else (live, source))

    check(await reader.personal_many(NAMES), "personal")
    remote.failure = StoreUnavailable("gone")
    check(await asyncio.gather(*map(reader.personal, NAMES)), "popular")
    check(await reader.personal_many(NAMES), "popular")
    counted = {labels: reader.metrics.total(cell)[0] for labels, cell in reader.metrics.canary.items()}
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
    before = [one.served.id for one in await reader.personal_many(NAMES)]
    remote.failure = StoreUnavailable("gone")
    for answers in (await reader.personal_many(NAMES), await asyncio.gather(*map(reader.personal, NAMES))):
        assert {one.tier for one in answers} == {"second"}
        assert [one.served.id for one in answers] == before


@virtual
async def test_a_canary_that_cannot_be_loaded_leaves_all_users_with_the_live_release_until_it_can(
    memory: MemoryStore,
) -> None:
    live, canary = await with_canary(memory)
    ref = await ref_of(memory, canary)
    kept = memory._releases.pop(ref.incarnation)
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live}
        assert "cannot be loaded" in reader.tiers[0].follower.findings[0].sentence
        memory._releases[ref.incarnation] = kept
        await asyncio.sleep(2 * CANARY_S)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live, canary}
        assert reader.tiers[0].follower.findings == []


@virtual
async def test_a_process_stops_using_a_canary_that_is_worse_until_another_one_is_set(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    live, canary = await with_canary(memory, users=range(USERS // 2))
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        (tier,) = reader.tiers
        for _ in range(10):
            await reader.personal_many(NAMES)
        with caplog.at_level(logging.WARNING):
            await asyncio.sleep(2 * CANARY_S)
        assert "of the live release's" in caplog.text
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live}
        text = Exposition(reader.metrics, lambda: [Reporter(reader.tiers).state()]).text().decode()
        assert 'hotplate_canary_stopped{store="tier",worker="0"} 1.0' in text
        assert 'role="canary"' in text
        await life.start_canary(memory, canary, 90)  # the same, at another share
        await tier.follower.refresh()
        assert tier.follower.canary is None
        await life.abort(memory)
        await tier.follower.refresh()
        assert tier.follower.findings == []
        good = await publish(memory, "good", live=False, users=range(USERS))
        await life.start_canary(memory, good, 50)
        await tier.follower.refresh()
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live, good}


@pytest.mark.parametrize(
    ("live", "canary", "finding"),
    [
        (ReleaseCounts(900, 100, 0), ReleaseCounts(90, 10, 0), None),
        (ReleaseCounts(900, 100, 0), ReleaseCounts(60, 40, 0), "popular list"),
        (ReleaseCounts(900, 100, 0), ReleaseCounts(30, 30, 0), None),
        (ReleaseCounts(1000, 0, 0), ReleaseCounts(80, 0, 20), "not be read"),
        (ReleaseCounts(700, 0, 300), ReleaseCounts(70, 0, 30), None),
        (ReleaseCounts(10**6, 0, 0), ReleaseCounts(10**6 * 0.96, 10**6 * 0.04, 0), None),
        (ReleaseCounts(0, 0, 0), ReleaseCounts(0, MIN_LOOKUPS, 0), None),
        (ReleaseCounts(0, 10**6, 0), ReleaseCounts(10**6, 0, 0), None),
    ],
)
def test_a_canary_is_worse_where_it_is_so_beyond_the_bound_and_chance(
    live: ReleaseCounts, canary: ReleaseCounts, finding: str | None
) -> None:
    found = find_regression(live, canary)
    assert (found is None) if finding is None else (found is not None and finding in found)


def clicked(rng: np.random.Generator, looks: int, canary_rate: float) -> Iterator[BothCounts]:
    """Yield what is counted by each look: 5 % of the lists are the canary's, and a live list gets 0.05 clicks."""
    shown = np.cumsum(rng.poisson((9_500, 500), (looks, 2)), axis=0)
    clicks = np.cumsum(rng.poisson((9_500 * 0.05, 500 * canary_rate), (looks, 2)), axis=0)
    for (live, canary), (of_live, of_canary) in zip(shown.tolist(), clicks.tolist(), strict=True):
        yield BothCounts(ReleaseCounts(shown=live, clicks=of_live), ReleaseCounts(shown=canary, clicks=of_canary))


def test_looking_every_second_does_not_make_chance_look_like_a_result() -> None:
    rng, wrong, canaries = np.random.default_rng(1), 0, 200
    for _ in range(canaries):
        bounds = [found for counts in clicked(rng, 600, 0.05) if (found := click_change(counts, 0.05))]
        assert bounds
        wrong += any(low > 0 or high < 0 for low, high in bounds)
    assert wrong <= 0.05 * canaries


@pytest.mark.parametrize(("rate", "finding"), [(0.04, "fewer clicks"), (0.0, "fewer clicks"), (0.05, ""), (0.07, "")])
def test_a_canary_that_gets_fewer_clicks_is_found(rate: float, finding: str) -> None:
    found = {fewer_clicks(counts) for counts in clicked(np.random.default_rng(2), 300, rate)} - {None}
    assert bool(found) is bool(finding)
    assert all(finding in str(one) for one in found)


@pytest.mark.parametrize("shown", [0, 10**6])
def test_clicks_say_nothing_if_no_lists_are_reported_or_of_one_release_only(shown: int) -> None:
    live = ReleaseCounts(shown=shown, clicks=10**5)
    assert click_change(BothCounts(live, ReleaseCounts(clicks=10**5)), 0.05) is None
    assert click_change(BothCounts(ReleaseCounts(clicks=10**5), live), 0.05) is None


async def test_clicks_that_come_later_than_their_lists_stop_no_good_canary(memory: MemoryStore) -> None:
    _, canary = await with_canary(memory)
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        found = reader.tiers[0].follower.canary
        assert found is not None
        shares, lists = [0.05] * 1_200 + [0.5] * 3_600, np.zeros((4_800, 2))
        for second, share in enumerate(shares):
            lists[second] = 1_000 * (1 - share), 1_000 * share
        clicks = 0.05 * np.vstack([np.full((30, 2), (1_000, 0)), lists[:-30]])  # a half minute later
        counted = [
            BothCounts(*(ReleaseCounts(shown=shown, clicks=of_it) for shown, of_it in zip(*both, strict=True)))
            for both in zip(lists.cumsum(axis=0).tolist(), clicks.cumsum(axis=0).tolist(), strict=True)
        ]
        for begins, ends in ((0, 1_200), (1_200, 4_800)):  # the start, and a change of the share
            judged = ServedCanary(found.record, found.served, begins, counted[begins])
            assert judged.click_rates(counted[begins + 1]) == (0, 0, 0, 0, None, None)
            assert {judged.judge(now, counted[now]) for now in range(begins, ends)} == {None}, canary
            assert judged.click_rates(counted[ends - 1]).low is not None


async def test_a_canary_that_gets_fewer_clicks_is_not_used_any_more(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.serve.releases.canary.SETTLE_S", 0.0)
    live, canary = await with_canary(memory)
    metrics = Metrics(1, ("tier",))
    metrics.count_listed(CLICK, CANARY, 1, 5_000)  # of a canary before this one
    async with TieredReader({"tier": memory}, metrics=metrics) as reader:
        await reader.wait_until_ready(5)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live, canary}
        both: tuple[tuple[ReleaseRole, int], ...] = ((LIVE, 500), (CANARY, 300))
        for role, clicks in both:
            for _ in range(10_000):
                metrics.count_listed(IMPRESSION, role, 1, 10)
            metrics.count_listed(CLICK, role, 3, clicks)
        reporter = Reporter(reader.tiers)
        (tier,) = reporter.state().tiers
        assert tier.canary_clicks is not None
        assert tier.canary_clicks[:4] == (10_000, 500, 10_000, 300)
        text = Exposition(metrics, lambda: [reporter.state()]).text().decode()
        assert 'hotplate_canary_click_change{bound="low",store="tier",worker="0"} -0.' in text
        await asyncio.sleep(2 * CANARY_S)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live}
        (tier,) = reporter.state().tiers
        assert tier.canary_stopped is not None
        assert "300 clicks in 10,000 lists, and the live release 500 clicks" in tier.canary_stopped.finding


def request_of(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


@pytest.mark.parametrize("is_remote", [True, False])
async def test_the_fast_lane_and_aiohttp_say_alike_which_release_is_the_canary(
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


@asynccontextmanager
async def admin_listener(answer: Callable[[int], object], status: int = 200) -> AsyncIterator[str]:
    """Answer `/readyz`, and nothing else, with what *answer* returns for the number of the request; yield the URL."""
    looks = count()

    async def readyz(request: web.Request) -> web.Response:
        is_admitted = request.headers.get("X-API-Key") == "key"
        return web.json_response(answer(next(looks)), status=status if is_admitted else 401)

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    async with running_app(app) as url:
        yield f"{url}/"


def workers(*stopped: tuple[Release, str]) -> object:
    """Return what a service with a worker that has stopped using canaries, each for a reason, says of itself."""
    tiers = [
        {
            "tier": "redis",
            "canary_stopped": {
                "release": one.id,
                "incarnation": one.incarnation,
                "superseded_at": one.superseded_at,
                "finding": finding,
            },
        }
        for one, finding in stopped
    ]
    return {"status": "ready", "workers": [{"tiers": []}, {"tiers": [{"tier": "redis"}, *tiers]}]}


@pytest.mark.parametrize("status", [200, 503])
async def test_a_watch_ends_a_canary_that_a_worker_of_the_service_found_worse(memory: MemoryStore, status: int) -> None:
    live, canary = await with_canary(memory)
    judged = (await memory.catalogue()).find(canary)
    others = (replace(judged, id=live), "another"), (replace(judged, superseded_at=1.0), "an earlier canary of it")
    async with (
        admin_listener(lambda look: workers(*others, *[(judged, "it is bad")][: look > 2]), status) as url,
        asyncio.timeout(60),
    ):
        finding = await watch(memory, url, "key", poll_s=0.01)
    assert finding == f"release {canary} is not the canary any more: it is bad"
    found = await memory.catalogue()
    assert (found.live, found.canary) == (live, None)
    assert found.find(canary).canary_stopped == "it is bad"


class AwayStore(MemoryStore):
    """A store that cannot be reached for a while."""

    reads_away = 0
    """For how many reads of its catalogue."""

    async def catalogue(self) -> Catalogue:
        if self.reads_away:
            self.reads_away -= 1
            raise StoreUnavailable("the store is away")
        return await super().catalogue()


async def test_a_watch_outlives_a_store_that_is_away(clock: FakeClock) -> None:
    store = AwayStore(clock)
    _, canary = await with_canary(store)
    judged = (await store.catalogue()).find(canary)

    def answer(look: int) -> object:
        store.reads_away = 2
        return workers(*[(judged, "it is bad")][: look > 0])

    async with admin_listener(answer) as url, asyncio.timeout(60):
        assert "it is bad" in str(await watch(store, url, "key", poll_s=0.01))
    assert (await store.catalogue()).canary is None


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"not HTTP\r\n\r\n"])
async def test_an_answer_that_is_cut_off_is_one_that_a_watch_requests_again(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(OSError, match="not whole"):
            await asyncio.to_thread(finding_on, Release(ReleaseId("r"), "i", State.READY, 0.0), url)


async def test_a_watch_pauses_between_two_requests(memory: MemoryStore) -> None:
    await with_canary(memory)
    requests = list[int]()

    def counted(look: int) -> object:
        requests.append(look)
        return workers()

    async with admin_listener(counted) as url:
        watching = asyncio.create_task(watch(memory, url, "key", poll_s=3600))
        while not requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        watching.cancel()
    assert len(requests) == 1


async def test_a_watch_ends_with_the_canary_and_says_what_is_wrong_with_its_url(memory: MemoryStore) -> None:
    await with_canary(memory)
    async with admin_listener(lambda _: workers()) as url:
        with pytest.raises(ServiceMisused, match="--key"):
            await watch(memory, url, poll_s=0.01)
        watching = asyncio.create_task(watch(memory, url, "key", poll_s=0.01))
        await asyncio.sleep(0.05)
        assert not watching.done()
        await life.abort(memory)
        assert await watching is None
    await with_canary(memory)
    async with admin_listener(lambda _: ["something else"]) as url:
        with pytest.raises(ServiceMisused, match="--watch"):
            await watch(memory, url, "key", poll_s=0.01)


@virtual
async def test_a_canary_is_judged_by_the_lookups_of_all_workers_together(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory)
    metrics = Metrics(3, ["tier"])
    metrics.count(metrics.canary["tier", CANARY, "miss"], 1000)  # of a canary before this one
    async with TieredReader({"tier": memory}, metrics=metrics) as reader:
        await reader.wait_until_ready(5)
        await asyncio.sleep(2 * CANARY_S)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live, canary}
        for worker in (1, 2):
            metrics.use_slot(worker)
            metrics.count(metrics.canary["tier", LIVE, "hit"], 600)
            metrics.count(metrics.canary["tier", CANARY, "miss"], 60)
        await asyncio.sleep(2 * CANARY_S)
        assert {one.served.id for one in await reader.personal_many(NAMES)} == {live}


@virtual
async def test_a_worker_does_not_use_a_canary_that_another_has_stopped(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory, users=range(USERS // 2))
    states = SharedStates(2, 1)
    async with TieredReader({"tier": memory}) as first, TieredReader({"tier": memory}) as second:
        for number, reader in enumerate((first, second)):
            await reader.wait_until_ready(5)
            reader.tiers[0].follower.stopped_elsewhere = states.stopped_canaries
            states.write(number, Reporter(reader.tiers).state())
        for _ in range(10):
            await first.personal_many(NAMES)
        await asyncio.sleep(2 * CANARY_S)
        assert of_canary(second)
        states.write(0, Reporter(first.tiers).state())
        await asyncio.sleep(2 * CANARY_S)
        assert {one.served.id for one in await second.personal_many(NAMES)} == {live}
        assert second.tiers[0].follower.canary_stopped == first.tiers[0].follower.canary_stopped is not None
        await life.abort(memory)
        await life.start_canary(memory, canary, 50)  # before the first has said that it uses it again
        await refreshed(second)
        assert of_canary(second)


@virtual
async def test_no_process_uses_a_canary_that_the_catalogue_says_was_stopped(memory: MemoryStore) -> None:
    live, canary = await with_canary(memory)
    async with TieredReader({"tier": memory}) as reader:
        await reader.wait_until_ready(5)
        assert of_canary(reader)
        entry = (await memory.catalogue()).find(canary)
        await life.change(memory, lambda found: stop_canary(found, entry, "it is bad"))
        for each in (reader, TieredReader({"tier": memory})):  # one that runs, and one that begins
            await refreshed(each)
            assert {one.served.id for one in await each.personal_many(NAMES)} == {live}
            (finding,) = each.tiers[0].follower.findings
            assert (
                finding.sentence
                == f"release {canary} is the canary, and this service does not use it any more: it is bad"
            )


@pytest.mark.parametrize("is_remote", [True, False])
@virtual
async def test_a_canary_that_vanishes_costs_nobody_his_list_of_the_live_release(
    memory: MemoryStore, remote: RemoteStore, *, is_remote: bool
) -> None:
    live, canary = await with_canary(memory)
    async with TieredReader({"tier": remote if is_remote else memory}) as reader:
        await reader.wait_until_ready(5)
        assert of_canary(reader)
        memory._releases.pop((await ref_of(memory, canary)).incarnation)
        answers = [await reader.personal(name) for name in NAMES]
        assert {(one.served.id, one.source) for one in answers} == {(live, "personal")}
        assert not reader.tiers[0].breaker.is_open
        assert {one.source for one in await reader.personal_many(NAMES)} == {"personal"}
        await asyncio.sleep(2 * CANARY_S)
        assert f"release {canary} is the canary, and" in reader.tiers[0].follower.findings[0].sentence


@pytest.mark.parametrize("is_remote", [True, False])
@virtual
async def test_users_of_a_release_that_is_gone_get_their_own_lists_of_the_live_one_or_the_canary(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock, *, is_remote: bool
) -> None:
    await publish(memory, "old", users=range(USERS))
    stores = {"tier": remote if is_remote else memory}
    one, other = [await refreshed(TieredReader(stores, cache_bytes=1 << 20)) for _ in range(2)]
    live, canary = await with_canary(memory)
    clock.now += GRACE_S
    await life.prune(memory, keep=0)
    answers = await asyncio.gather(*map(one.personal, NAMES)), await other.personal_many(NAMES)
    assert of_canary(one) == of_canary(other)
    for each in answers:
        assert texts(each) == {live: {"live"}, canary: {"canary"}}
        assert [name for name, found in zip(NAMES, each, strict=True) if found.served.is_canary] == of_canary(one)
