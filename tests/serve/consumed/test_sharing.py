"""Items bought through one service disappear in the others: over Redis, also after kills and losses."""

import asyncio
import json
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.api.schemas import Event
from hotplate.serve.consumed.entries import MAX_PAIRS, decode_pairs, encode_pairs, parts_of
from hotplate.serve.consumed.sender import ConsumedSender, SharingState, sharing_url
from hotplate.serve.consumed.sharing import ConsumedSharing
from hotplate.serve.consumed.stored_events import read_events
from hotplate.serve.consumed.table import USERS, Consumed, ConsumedEvent, ConsumedPairs
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import TOKEN_FAILURES, Metrics
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tasks import background
from hotplate.stores.connect import open_entry_log
from hotplate.stores.event_log import LogSegment, line_of
from tests.support import patience
from tests.support.command import json_of
from tests.support.limited_service import counted
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, running, users_of_the_guide
from tests.support.rotation import RotatingProvider
from tests.support.service import UNTIL_S, Service, a_list, ids, published, serving, until
from tests.support.waiting import until_true

# A busy machine may be late with replies of Redis.
pytestmark = pytest.mark.usefixtures("patience")

LISTS = {f"user:{user}": a_list("a", "b", "c") for user in range(10)} | {"popular:": a_list("p1", "p2")}
HASHES = st.lists(st.integers(0, (1 << 64) - 1), max_size=50).map(tuple)
# Source for services of which the workers alone send items, however late they are.
BY_WORKERS = """
from hotplate.serve.consumed import sender
sender.SEND_S = 60.0
"""
PAIRS = st.builds(ConsumedPairs, st.integers(0, USERS - 1), HASHES, st.integers(0, (1 << 32) - 1))


@dataclass
class Shop:
    """A store in files, and services that share consumed items through one Redis."""

    folder: Path
    server: RedisServer

    @property
    def url(self) -> str:
        return self.server.url(prefix="shop")

    @property
    def hiding(self) -> list[ConsumedPairs]:
        """What the entries in Redis hide."""
        return hiding_in(self.server, "shop")

    def service(self, name: str, *, hours: int = 24, before: str = "") -> AbstractContextManager[Service]:
        """Run a service, with a folder of events by its name; *before* as for `serving`."""
        events = ("--events", str(self.folder / name), "--hide-consumed", f"buy={hours}")
        store = ("--store", f"file://{self.folder / 'store'}")
        before = patience.INSTALL + before
        return serving(self.folder, *store, *events, "--share-consumed", self.url, before=before)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    published(tmp_path / "store", LISTS)
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as server:
        yield Shop(tmp_path, server)


def buy(service: Service, user: int, *items: str, kind: str = "buy") -> None:
    body = {"events": [{"type": kind, "user": str(user), "items": items}]}
    assert service.post("/v1/events", body, Content_Type="application/json").status == 200


def shown(service: Service, user: int) -> list[str]:
    return ids(service.get(f"/v1/recommendations/{user}?n=3"))


def hides(service: Service, user: int, item: str) -> bool:
    return item not in shown(service, user)


@given(PAIRS)
def test_entries_hold_all_pairs_of_an_event(pairs: ConsumedPairs) -> None:
    parts = list(parts_of(pairs))
    decoded = [decode_pairs(encode_pairs(part)) for part in parts]
    assert decoded == parts
    assert {(part.slot, part.until) for part in parts} <= {(pairs.slot, pairs.until)}
    assert tuple(pair for part in parts for pair in part.pairs) == pairs.pairs
    assert max((len(part.pairs) for part in parts), default=0) <= MAX_PAIRS


def test_too_deeply_nested_entry_is_left_out() -> None:
    assert decode_pairs(b"\x94\x01\x01\xc4\x00" + b"\x91" * 5000 + b"\x01") is None


@given(st.binary(max_size=60), PAIRS, st.data())
def test_damaged_entries_are_left_out(noise: bytes, pairs: ConsumedPairs, data: st.DataObject) -> None:
    value = encode_pairs(pairs)
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    assert decode_pairs(cut) is None
    decoded = decode_pairs(noise)
    assert decoded is None or decoded.until < 1 << 32


def events_of(*users: str) -> list[bytes]:
    lines = list[bytes]()
    for user in users:
        event = {"id": user, "time": time.time(), "type": "buy", "user": user, "items": ["a"]}
        lines.append(line_of(json.dumps(event, separators=(",", ":")).encode()))
    return lines


@pytest.mark.parametrize(
    ("stores", "chosen", "url"),
    [
        (("file:///a", "redis://b", "rediss://c"), None, "redis://b"),
        (("file:///a", "redis://b"), "off", None),
        (("file:///a",), None, None),
        (("redis://b",), "redis+cluster://d", "redis+cluster://d"),
    ],
)
def test_the_first_redis_store_is_used_by_default(stores: tuple[str, ...], chosen: str | None, url: str | None) -> None:
    assert sharing_url(ServiceSettings(stores, hide_consumed=("buy=24",), share_consumed=chosen)) == url
    assert sharing_url(ServiceSettings(stores)) is None


def test_sharing_without_hiding_is_refused() -> None:
    with pytest.raises(ServiceMisused, match="give both"):
        sharing_url(ServiceSettings(("redis://b",), share_consumed="redis://b"))


def state_of(url: str) -> SharingState:
    return SharingState(url)


def sharing_of(server: RedisServer, folder: Path) -> ConsumedSharing:
    """Return the sharing of a service with events in a folder."""
    return ConsumedSharing(
        state_of(server.url(prefix=folder.name)),
        folder=folder,
        consumed=Consumed(["buy=24"]),
        metrics=Metrics(1, ["memory"]),
    )


def hiding_in(server: RedisServer, prefix: str) -> list[ConsumedPairs]:
    """Return what the entries of a log hide."""
    with redis.Redis(port=server.port) as client:
        entries: list[bytes] = client.zrange(f"{{{prefix}}}:consumed-items", 0, -1)
    decoded = map(decode_pairs, entries)
    return [pairs for pairs in decoded if pairs is not None and pairs.until]


def slots_of(*users: int) -> set[int]:
    """Return what entries name instead of users."""
    consumed = Consumed(["buy=24"])
    events = [Event("buy", str(user), ("a",)) for user in users]
    return {pairs.slot for pairs in consumed.hidden_by(events)}


def slots_in(server: RedisServer, prefix: str) -> set[int]:
    return {pairs.slot for pairs in hiding_in(server, prefix)}


async def test_sharing_goes_on_after_a_defect(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segment = LogSegment(tmp_path)
    segment.append(events_of("1"))
    attempts = 0

    def fail_first(folder: Path, kinds: Collection[str], since: float) -> Iterator[ConsumedEvent]:
        nonlocal attempts
        attempts += 1
        return read_events(folder, kinds, since if attempts > 1 else 1 // 0)

    monkeypatch.setattr("hotplate.serve.consumed.sharing.read_events", fail_first)
    async with background(sharing_of(redis_server, tmp_path).run()), asyncio.timeout(60):
        await until_true(lambda: slots_in(redis_server, tmp_path.name) == slots_of(1))
    assert caplog.text.count("ZeroDivisionError") == 1
    segment.close()


def test_items_sold_by_one_service_are_hidden_by_the_other(shop: Shop) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(shop.service(name, before=BY_WORKERS)) for name in ("first", "second"))
        buy(first, 1, "a")
        buy(first, 1, "b", kind="click")
        buy(second, 2, "b", "c")
        until(lambda: hides(second, 1, "a"))
        until(lambda: hides(first, 2, "c"))
        assert shown(second, 1) == ["b", "c", "p1"]
        assert shown(second, 3) == ["a", "b", "c"]
        assert counted(first, "hotplate_consumed_pairs_total", outcome="sent") == 1
        until(lambda: counted(first, "hotplate_consumed_pairs_total", outcome="received") == 3)
        assert counted(first, "hotplate_consumed_lag_seconds") < 30
        second.kill()
        buy(first, 3, "a")
        with shop.service("third") as third:  # has read the log before its first answer
            assert [hides(third, user, item) for user, item in ((1, "a"), (2, "b"), (3, "a"))] == [True, True, True]
        until(lambda: counted(first, "hotplate_consumed_pairs_total", outcome="received") == 4)
    assert len(shop.hiding) == 3


def test_items_are_hidden_during_a_redis_outage_and_shared_after_it(shop: Shop) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(shop.service(name)) for name in ("first", "second"))
        buy(first, 1, "a")
        until(lambda: hides(second, 1, "a"))
        shop.server.kill()
        buy(first, 2, "b")
        assert hides(first, 2, "b")
        second.kill()
        with shop.service("second") as again:  # starts without Redis
            assert shown(again, 1) == ["a", "b", "c"]
            buy(again, 3, "c")
            until(lambda: "consumed items are not shared" in first.log.read_text())
            shop.server.start()  # with nothing that it had
            until(lambda: hides(first, 3, "c"))
            until(lambda: hides(again, 2, "b"))
            until(lambda: hides(again, 1, "a"))
        until(lambda: "are shared through" in first.log.read_text())


def test_events_that_redis_loses_in_the_middle_of_others_are_sent_again(shop: Shop) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(shop.service(name)) for name in ("first", "second"))
        client = stack.enter_context(redis.Redis(port=shop.server.port))

        def lose_between(earlier: int, later: int) -> None:
            buy(first, earlier, "a")
            until(lambda: hides(second, earlier, "a"))
            client.flushall()
            buy(second, later, "b")  # at once: before either service can look
            until(lambda: slots_in(shop.server, "shop") >= slots_of(earlier, later))

        for user in (0, 2, 4):
            lose_between(user, user + 1)
        with shop.service("third") as third:
            assert hides(third, 4, "a")


def test_events_of_a_killed_service_are_shared_by_its_next_start(shop: Shop) -> None:
    with shop.service("first") as first:
        shop.server.kill()
        buy(first, 1, "a")
        first.kill()
    shop.server.start()
    with shop.service("second") as second:
        assert shown(second, 1) == ["a", "b", "c"]
        with shop.service("first"):
            until(lambda: hides(second, 1, "a"))


def entries_in(server: RedisServer) -> bytes:
    """Return all entries of the log of a shop, one after another."""
    with redis.Redis(port=server.port) as client:
        entries: list[bytes] = client.zrange("{shop}:consumed-items", 0, -1)
    assert len(entries) >= 1
    return b"".join(entries)


def test_nothing_is_hidden_from_erased_users_and_their_ids_are_nowhere_in_redis(shop: Shop) -> None:
    user = "the.user.who.is.erased"
    lists = {f"user:{user}": a_list("a", "b"), "popular:": a_list("p1", "p2")}
    published(shop.folder / "store", LISTS | lists)

    def shown_to_user(service: Service) -> list[str]:
        return ids(service.get(f"/v1/recommendations/{user}?n=2"))

    with ExitStack() as stack:
        first, second = (stack.enter_context(shop.service(name)) for name in ("first", "second"))
        body = {"events": [{"type": "buy", "user": user, "items": ["p1", "a"]}]}
        assert first.post("/v1/events", body, Content_Type="application/json").status == 200
        until(lambda: shown_to_user(second) == ["b", "p2"])
        assert user.encode() not in entries_in(shop.server)
        json_of("users", "erase", user, "--store", f"file://{shop.folder / 'store'}")
        until(lambda: shown_to_user(second) == ["p1", "p2"] == shown_to_user(first), "the erased user is not forgotten")
        assert first.post("/v1/events", body, Content_Type="application/json").status == 200
        buy(first, 3, "a")
        until(lambda: hides(second, 3, "a"))
        second.kill()
        with shop.service("second") as again:
            assert shown_to_user(again) == ["p1", "p2"] == shown_to_user(first)
    assert user.encode() not in entries_in(shop.server)


def test_the_log_is_kept_for_the_longest_hours_of_its_services(shop: Shop) -> None:
    with shop.service("long", hours=48) as long:
        buy(long, 1, "a")
        until(lambda: len(shop.hiding) == 1)
    with shop.service("short", hours=1) as short:
        buy(short, 2, "b")
        until(lambda: len(shop.hiding) == 2)
    with redis.Redis(port=shop.server.port) as client:
        assert 47 * 3600 < client.ttl("{shop}:consumed-items") <= 48 * 3600 + 1


async def test_an_entry_that_is_appended_again_stays_where_it_is(redis_server: RedisServer) -> None:
    entries = open_entry_log(redis_server.url(prefix="twice"), "consumed-items")
    await entries.append([b"a", b"b"])
    first, second = reversed(await entries.before(None))
    await asyncio.gather(entries.append([b"a", b"c"]), entries.append([b"c", b"b"]))
    newer = await entries.after(second.position)
    assert newer is not None
    assert [entry.value for entry in newer] == [b"c"]
    assert await entries.before(second.position) == [first]
    redis_server.execute_command("ZREM", "{twice}:consumed-items", "b")
    assert await entries.after(second.position) is None
    redis_server.execute_command("DEL", "{twice}:consumed-items")
    await entries.close()


async def test_missing_tokens_of_the_log_are_counted(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTokens(RotatingProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise ValueError("no managed identity here")

    monkeypatch.setattr("hotplate.stores.redis.store.entra_provider", lambda: NoTokens([]).create)
    monkeypatch.setattr("hotplate.serve.consumed.sender.SEND_S", UNTIL_S)
    metrics = Metrics(1, ["file"])
    consumed = Consumed(["buy=24"])
    sender = ConsumedSender(state_of(f"{redis_server.url('rediss')}&auth=entra"), metrics)
    await sender.send([*consumed.hidden_by([Event("buy", "1", ("a",))])])
    await sender.close()
    assert metrics.counted(TOKEN_FAILURES)["consumed",] == [1.0]
    assert metrics.counted(TOKEN_FAILURES)["file",] == [0.0]


def test_the_store_is_used_with_the_rights_of_the_guide(redis_server: RedisServer, tmp_path: Path) -> None:
    urls = users_of_the_guide("guide", redis_server.execute_command, redis_server.url)
    published(urls["publish"], LISTS)
    options = ("--store", urls["serve"], "--hide-consumed", "buy=24", "--budget", "60")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(serving(tmp_path, *options, "--events", str(tmp_path / name), before=patience.INSTALL))
            for name in ("first", "second")
        )
        buy(first, 1, "a")
        until(lambda: hides(second, 1, "a"))
        assert slots_in(redis_server, "guide") == slots_of(1)


async def test_a_cluster_keeps_the_log_in_the_slot_of_the_catalogue(redis_cluster: RedisCluster) -> None:
    entries = open_entry_log(redis_cluster.url(prefix="logged"), "consumed-items")
    await entries.append([b"x", b"y"])
    newest, oldest = await entries.before(None)
    assert (oldest.value, newest.value) == (b"x", b"y")
    assert await entries.after(newest.position) == []
    await entries.append([b"z"])
    newer = await entries.after(newest.position)
    assert newer is not None
    assert [entry.value for entry in newer] == [b"z"]
    await entries.close()


async def test_a_log_is_bounded_by_number_and_time(redis_server: RedisServer) -> None:
    entries = open_entry_log(redis_server.url(prefix="bounded"), "consumed-items")
    await entries.append([b"%d" % number for number in range(1500)])
    (newest, *_) = await entries.before(None)
    assert await entries.trim(newest.position, keep_s=60, most=1000) == 500
    assert await entries.trim(newest.position, keep_s=60, most=1000) == 0
    left = await entries.before(None)
    assert [entry.value for entry in left] == [b"%d" % number for number in range(1499, 499, -1)]
    assert 0 < redis_server.execute_command("TTL", "{bounded}:consumed-items") <= 60

    assert await entries.trim(newest.position + 61_000_000, keep_s=60, most=1000) == 0
    assert await entries.before(None) == []
    await entries.close()
