"""Items bought through one service disappear in the others: over Redis, also after kills and losses."""

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.consumed.entries import MAX_PAIRS, decode_pairs, encode_pairs, parts_of
from hotplate.serve.consumed.segment_tail import RECENT_NS, SegmentTail
from hotplate.serve.consumed.sender import ConsumedSender, SharingState, stream_url
from hotplate.serve.consumed.sharing import ConsumedSharing
from hotplate.serve.consumed.stored_events import ConsumedEvent, restore
from hotplate.serve.consumed.table import ConsumedPairs
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.events.shipment import ship
from hotplate.serve.metrics import TOKEN_FAILURES, Metrics
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tasks import background
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.connect import open_stream
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import AccessDenied, StoreUnavailable
from hotplate.stores.event_log import LogSegment, line_of
from hotplate.stores.users import erase_users
from tests.support import patience
from tests.support.command import json_of
from tests.support.limited_service import counted
from tests.support.memory_store import MemoryStore
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, running, users_of_the_guide
from tests.support.remote import publish
from tests.support.rotation import RotatingProvider
from tests.support.service import UNTIL_S, Service, a_list, publish_lists, publish_to, serving, until
from tests.support.shared import consumed_items

# A busy machine may be late with replies of Redis.
pytestmark = pytest.mark.usefixtures("patience")

LISTS = {f"user:{user}": a_list("a", "b", "c") for user in range(5)} | {"popular:": a_list("p1", "p2")}
HASHES = st.lists(st.integers(0, (1 << 64) - 1), max_size=50).map(tuple)
# Source for services of which the workers alone send items, however late they are.
BY_WORKERS = """
from hotplate.serve.consumed import sender, sharing
sender.SEND_S = sender.HEALTHY_S = sharing.SETTLE_S = 60.0
"""
PAIRS = st.builds(ConsumedPairs, st.text(min_size=1, max_size=64), HASHES, st.integers(0, (1 << 32) - 1))


@dataclass
class Shop:
    """A store in files, and services that share consumed items through one Redis."""

    folder: Path
    server: RedisServer

    @property
    def url(self) -> str:
        return self.server.url(prefix="shop")

    @property
    def stream(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        with redis.Redis(port=self.server.port) as client:
            entries: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange("{shop}:consumed")
            return entries

    def service(self, name: str, *, hours: int = 24, before: str = "") -> AbstractContextManager[Service]:
        """Run a service, with a folder of events by its name; *before* as for `serving`."""
        events = ("--events", str(self.folder / name), "--hide-consumed", f"buy={hours}")
        store = ("--store", f"file://{self.folder / 'store'}")
        before = patience.INSTALL + before
        return serving(self.folder, *store, *events, "--share-consumed", self.url, before=before)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    asyncio.run(publish_lists(tmp_path / "store", LISTS))
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as server:
        yield Shop(tmp_path, server)


def buy(service: Service, user: int, *items: str, kind: str = "buy") -> None:
    body = json.dumps({"events": [{"type": kind, "user": str(user), "items": items}]}).encode()
    assert service.request("POST", "/v1/events", body, Content_Type="application/json").status == 200


def shown(service: Service, user: int) -> list[str]:
    return [item["id"] for item in service.get(f"/v1/recommendations/{user}?n=3").json["items"]]


def hides(service: Service, user: int, item: str) -> bool:
    return item not in shown(service, user)


@given(PAIRS)
def test_entries_hold_all_pairs_of_an_event(pairs: ConsumedPairs) -> None:
    parts = list(parts_of(pairs))
    decoded = [decode_pairs(encode_pairs(part)) for part in parts]
    assert decoded == parts
    assert {(part.user, part.until) for part in parts} <= {(pairs.user, pairs.until)}
    assert tuple(pair for part in parts for pair in part.pairs) == pairs.pairs
    assert max((len(part.pairs) for part in parts), default=0) <= MAX_PAIRS


def test_entry_that_is_not_utf_8_is_left_out() -> None:
    assert decode_pairs(b"\x93\x00\xa2\x00\x80") is None


def test_too_deeply_nested_entry_is_left_out() -> None:
    assert decode_pairs(b"\x94\x01\xa1u\xc4\x00" + b"\x91" * 5000 + b"\x01") is None


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


def next_users(tail: SegmentTail) -> list[str]:
    return [event.user for event in tail.next_events(1000)]


def test_a_tail_reads_each_event_of_a_growing_segment_once(tmp_path: Path) -> None:
    before = LogSegment(tmp_path)
    before.append(events_of("1"))
    before.close()
    tail = SegmentTail(tmp_path, consumed_items("buy=24"))
    assert next_users(tail) == ["1"]
    segment = LogSegment(tmp_path)
    assert next_users(tail) == []
    for users in (["2"], ["3", "4"]):
        segment.append(events_of(*users))
        assert next_users(tail) == users
    segment.append(events_of("5"))
    segment.close()
    assert next_users(tail) == ["5"]
    assert next_users(tail) == []
    tail.restart()
    assert sorted(tail.next_events(1), key=lambda event: event.user)
    assert len(next_users(tail)) >= 1


def test_a_tail_finds_events_that_were_shipped_before_it_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    consumed = consumed_items("buy=24")
    restore(consumed, folder)
    tail = SegmentTail(folder, consumed)
    segment = LogSegment(folder)
    segment.append(events_of("1"))
    assert next_users(tail) == ["1"]
    segment.append(events_of("2"))
    segment.close()
    ship(folder, f"file://{tmp_path / 'shipped'}")
    assert set(next_users(tail)) | set(next_users(tail)) == {"1", "2"}
    assert next_users(tail) == []


def test_a_tail_that_looks_late_finds_a_segment_as_old_as_its_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = SegmentTail(tmp_path, consumed_items("buy=24"))
    changed_at = tmp_path.stat().st_mtime_ns
    monkeypatch.setattr(time, "time_ns", lambda: changed_at)
    assert next_users(tail) == []
    segment = LogSegment(tmp_path)
    segment.append(events_of("1"))
    os.utime(tmp_path, ns=(changed_at, changed_at))  # the clock of a file system ticks every few milliseconds
    monkeypatch.setattr(time, "time_ns", lambda: changed_at + 2 * RECENT_NS)
    assert next_users(tail) == ["1"]
    segment.close()


def test_a_tail_lists_a_folder_again_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = SegmentTail(tmp_path, consumed_items("buy=24"))
    assert next_users(tail) == []
    segment = LogSegment(tmp_path)
    segment.append(events_of("1"))
    os.utime(tmp_path, ns=(0, 0))  # long ago, so it is listed once

    def refuse(folder: Path) -> Iterator[Path]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            tail.next_events(1)
    assert next_users(tail) == ["1"]
    segment.close()


def test_forgotten_items_are_shown_and_others_stay_hidden() -> None:
    consumed = consumed_items("buy=24")
    first = consumed.pairs_of("buy", "1", ["a", "b"], None)
    other = consumed.pairs_of("buy", "2", ["a"], None)
    assert first is not None
    assert other is not None
    consumed.hide(first)
    consumed.hide(other)
    assert (consumed.hides(first), consumed.hides(other)) == (True, True)
    consumed.forget(first)
    assert (consumed.hides(first), consumed.hides(other)) == (False, True)
    consumed.clear()
    assert not consumed.hides(other)
    assert consumed.hidden_from("2") is None


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
    assert stream_url(ServiceSettings(stores, hide_consumed=("buy=24",), share_consumed=chosen)) == url
    assert stream_url(ServiceSettings(stores)) is None


def test_sharing_without_hiding_is_refused() -> None:
    with pytest.raises(ServiceMisused, match="give both"):
        stream_url(ServiceSettings(("redis://b",), share_consumed="redis://b"))


async def test_workers_wait_until_the_stream_was_read() -> None:
    state = SharingState(memoryview(bytearray(8 * SharingState.CELLS)).cast("d"))
    waiting = asyncio.create_task(state.wait_until_started())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    state.note_started()
    await waiting


class FlakyStore(MemoryStore):
    """A store of which every second poll for changes fails."""

    def __init__(self) -> None:
        super().__init__()
        self.polls = 0
        self.opened = 0

    async def poll(self) -> Catalogue:
        self.polls += 1
        if self.polls % 2 == 0:
            raise StoreUnavailable("503")
        return await self.catalogue()

    @asynccontextmanager
    async def open(self, _url: str) -> AsyncIterator["FlakyStore"]:
        self.opened += 1
        yield self


async def test_store_is_kept_open_during_short_outages(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FlakyStore()
    monkeypatch.setattr("hotplate.serve.consumed.sharing.opened", store.open)
    running_sharing = asyncio.create_task(sharing_of(redis_server, tmp_path).run())
    async with asyncio.timeout(60):
        while store.polls < 3:
            await asyncio.sleep(0.01)
    running_sharing.cancel()
    await asyncio.wait([running_sharing])
    assert store.opened == 1


def sharing_of(server: RedisServer, folder: Path) -> ConsumedSharing:
    """Return the sharing of a service that reads one memory store."""
    return ConsumedSharing(
        server.url(prefix=folder.name),
        stores=["memory"],
        folder=folder,
        consumed=consumed_items("buy=24"),
        state=SharingState(memoryview(bytearray(8 * SharingState.CELLS)).cast("d")),
        metrics=Metrics(1, ["memory"]),
    )


def entries_of(server: RedisServer, folder: Path) -> list[tuple[bytes, dict[bytes, bytes]]]:
    with redis.Redis(port=server.port) as client:
        entries: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(f"{{{folder.name}}}:consumed")
        return entries


async def test_sharing_goes_on_after_a_defect(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FlakyStore()
    monkeypatch.setattr("hotplate.serve.consumed.sharing.opened", store.open)
    segment = LogSegment(tmp_path)
    segment.append(events_of("1"))
    next_events = SegmentTail.next_events
    attempts = 0

    def fail_first(tail: SegmentTail, most: int) -> list[ConsumedEvent]:
        nonlocal attempts
        attempts += 1
        return next_events(tail, most if attempts > 1 else 1 // 0)

    monkeypatch.setattr(SegmentTail, "next_events", fail_first)
    async with background(sharing_of(redis_server, tmp_path).run()), asyncio.timeout(60):
        while users_in(entries_of(redis_server, tmp_path)) != {"1"}:
            await asyncio.sleep(0.01)
    assert caplog.text.count("ZeroDivisionError") == 1
    segment.close()


async def test_user_erased_before_an_event_is_sent_does_not_enter_the_stream(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await publish(store, "first")
    has_read_events = asyncio.Event()
    has_read_erased = asyncio.Event()
    loop = asyncio.get_running_loop()
    next_events = SegmentTail.next_events

    @asynccontextmanager
    async def opened(_url: str) -> AsyncIterator[MemoryStore]:
        yield store

    def read_events(tail: SegmentTail, most: int) -> list[ConsumedEvent]:
        events = next_events(tail, most)
        if events:
            loop.call_soon_threadsafe(has_read_events.set)
        return events

    async def read_users(reader: MemoryStore, catalogue: Catalogue) -> ErasedUsers:
        erased = await read_erased(reader, catalogue)
        if erased.covers_user("1"):
            has_read_erased.set()
        return erased

    monkeypatch.setattr(SegmentTail, "next_events", read_events)
    monkeypatch.setattr("hotplate.serve.consumed.sharing.opened", opened)
    monkeypatch.setattr("hotplate.serve.consumed.sharing.read_erased", read_users)
    monkeypatch.setattr("hotplate.serve.consumed.sharing.SETTLE_S", 3600.0)  # so that events are kept
    segment = LogSegment(tmp_path)
    segment.append(events_of("1", "2"))
    async with background(sharing_of(redis_server, tmp_path).run()), asyncio.timeout(60):
        await has_read_events.wait()
        await asyncio.sleep(0.1)
        await erase_users(store, ["1"])
        await has_read_erased.wait()
        await asyncio.sleep(0.1)
    assert "1" not in users_in(entries_of(redis_server, tmp_path))  # "2" may be left to the next start
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
        with shop.service("third") as third:  # has read the stream before its first answer
            assert [hides(third, user, item) for user, item in ((1, "a"), (2, "b"), (3, "a"))] == [True, True, True]
        until(lambda: counted(first, "hotplate_consumed_pairs_total", outcome="received") == 4)
    assert len(shop.stream) == 3


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
            shop.server.start()  # with nothing that it had
            until(lambda: hides(first, 3, "c"))
            until(lambda: hides(again, 2, "b"))
            until(lambda: hides(again, 1, "a"))
        until(lambda: "consumed items are not shared" in first.log.read_text())
        until(lambda: "are shared through" in first.log.read_text())


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


def users_in(stream: list[tuple[bytes, dict[bytes, bytes]]]) -> set[str]:
    entries = [decode_pairs(fields[b"1"]) for _, fields in stream]
    return {entry.user for entry in entries if entry is not None and entry.until > 0}


def test_erased_users_leave_the_stream_and_do_not_come_back(shop: Shop) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(shop.service(name)) for name in ("first", "second"))
        for user in (1, 2):
            buy(first, user, "p1")
        until(lambda: hides(second, 1, "p1"))
        json_of("users", "erase", "1", "--store", f"file://{shop.folder / 'store'}")
        until(lambda: users_in(shop.stream) == {"2"})
        until(lambda: shown(second, 1) == ["p1", "p2"] == shown(first, 1), "the erased user is not forgotten")
        shop.server.kill()
        shop.server.start()
        until(lambda: users_in(shop.stream) == {"2"})
        buy(first, 1, "p2")
        buy(first, 3, "a")
        until(lambda: hides(second, 3, "a"))
        second.kill()
        with shop.service("second") as again:
            assert shown(again, 1) == ["p1", "p2"]
        assert users_in(shop.stream) == {"2", "3"}


def test_the_stream_is_kept_for_the_longest_hours_of_its_services(shop: Shop) -> None:
    with shop.service("long", hours=48) as long:
        buy(long, 1, "a")
        until(lambda: len(shop.stream) == 1)
    with shop.service("short", hours=1) as short:
        buy(short, 2, "b")
        until(lambda: len(shop.stream) == 2)
    with redis.Redis(port=shop.server.port) as client:
        assert 47 * 3600 < client.ttl("{shop}:consumed") <= 48 * 3600 + 1


@pytest.mark.parametrize(("count", "places"), [(700, [300, 699]), (750, [700]), (130, [20, 110]), (2, [0]), (1, [0])])
async def test_erased_entries_leave_the_memory_of_the_server(
    redis_server: RedisServer, count: int, places: list[int]
) -> None:
    """Also those in the last node of the stream, to which entries are still appended."""
    redis_server.execute_command("CONFIG", "SET", "rdbcompression", "no")
    key = "{forgetful}:consumed"
    stream = open_stream(redis_server.url(prefix="forgetful"), "consumed")
    values = [b"entry of user %d." % number for number in range(count)]
    await stream.append(values, keep_s=60, most=10_000)
    entries = await stream.older()
    erased_values = [values[place] for place in places]
    erased = [entry for entry in entries if entry.value in erased_values]

    await stream.erase(erased)

    with redis.Redis(port=redis_server.port) as client:
        dumped = client.dump(key)
    assert dumped is not None
    assert [value for value in values if value not in dumped] == erased_values
    assert redis_server.execute_command("XLEN", key) == count - len(places)
    await stream.erase(erased)
    assert redis_server.execute_command("XLEN", key) == count - len(places)
    redis_server.execute_command("DEL", key)
    await stream.erase(erased)
    assert redis_server.execute_command("EXISTS", key) == 0
    assert await stream.newer(0) is None
    await stream.close()


async def test_entries_are_erased_from_a_full_server(redis_server: RedisServer) -> None:
    stream = open_stream(redis_server.url(prefix="full"), "consumed")
    await stream.append([b"entry %d" % number for number in range(350)], keep_s=60, most=1000)
    erased = [entry for entry in await stream.older() if entry.value in (b"entry 20", b"entry 349")]
    redis_server.execute_command("CONFIG", "SET", "maxmemory", "1")
    try:
        await stream.erase(erased)
    finally:
        redis_server.execute_command("CONFIG", "SET", "maxmemory", "0")
    assert redis_server.execute_command("XLEN", "{full}:consumed") == 348
    redis_server.execute_command("DEL", "{full}:consumed")
    await stream.close()


async def test_a_user_without_eval_erases_nothing(redis_server: RedisServer) -> None:
    """Entries that were only marked as deleted would stay in the memory, and no service could find them."""
    users = users_of_the_guide("denied", redis_server.execute_command, redis_server.url)
    stream = open_stream(users["serve"], "consumed")
    await stream.append([b"entry"], keep_s=60, most=10_000)
    erased = await stream.older()
    redis_server.execute_command("ACL", "SETUSER", "denied-serve", "-eval")

    with pytest.raises(AccessDenied, match="eval"):
        await stream.erase(erased)

    stream.rewind()
    assert await stream.older() == erased
    redis_server.execute_command("DEL", "{denied}:consumed")
    await stream.close()


async def test_erasing_at_once_in_a_full_stream_keeps_the_other_entries(redis_server: RedisServer) -> None:
    """Also while another service appends, which trims the stream."""
    streams = [open_stream(redis_server.url(prefix="both"), "consumed") for _ in range(4)]
    values = [b"entry %d" % number for number in range(1000)]
    try:
        for _ in range(10):
            await streams[0].append(values, keep_s=60, most=1000)
            erased = [entry for entry in await streams[0].older() if entry.value in values[::200]]
            assert len(erased) == 5

            await asyncio.gather(
                *(stream.erase(erased) for stream in streams[:3]),
                *(streams[3].append([b"new"], keep_s=60, most=1100) for _ in range(5)),
            )

            streams[3].rewind()
            left = []
            while streams[3].has_older:
                left += [entry.value or b"" for entry in await streams[3].older()]
            assert sorted(left) == sorted([*set(values) - set(values[::200]), *[b"new"] * 5])
            redis_server.execute_command("DEL", "{both}:consumed")
            for stream in streams:
                stream.rewind()
    finally:
        for stream in streams:
            await stream.close()


async def test_missing_tokens_of_the_stream_are_counted(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTokens(RotatingProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise ValueError("no managed identity here")

    monkeypatch.setattr("hotplate.stores.redis.store.entra_provider", lambda: NoTokens([]).create)
    monkeypatch.setattr("hotplate.serve.consumed.sender.SEND_S", UNTIL_S)
    monkeypatch.setattr("hotplate.serve.consumed.sender.HEALTHY_S", UNTIL_S)
    metrics = Metrics(1, ["file"])
    consumed = consumed_items("buy=24")
    sender = ConsumedSender(
        f"{redis_server.url('rediss')}&auth=entra",
        consumed=consumed,
        state=SharingState(memoryview(bytearray(8 * SharingState.CELLS)).cast("d")),
        metrics=metrics,
        is_erased=lambda _: False,
    )
    pairs = consumed.pairs_of("buy", "1", ["a"], None)
    assert pairs is not None
    await sender.send([pairs])
    await sender.close()
    assert metrics.counted(TOKEN_FAILURES)["consumed",] == [1.0]
    assert metrics.counted(TOKEN_FAILURES)["file",] == [0.0]


def test_the_store_is_used_with_the_rights_of_the_guide(redis_server: RedisServer, tmp_path: Path) -> None:
    urls = users_of_the_guide("guide", redis_server.execute_command, redis_server.url)
    asyncio.run(publish_to(urls["publish"], LISTS))
    options = ("--store", urls["serve"], "--hide-consumed", "buy=24", "--budget", "60")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(serving(tmp_path, *options, "--events", str(tmp_path / name), before=patience.INSTALL))
            for name in ("first", "second")
        )
        buy(first, 1, "a")
        until(lambda: hides(second, 1, "a"))
        json_of("users", "erase", "1", "--store", urls["publish"])
        with redis.Redis(port=redis_server.port) as client:
            until(lambda: users_in(client.xrange("{guide}:consumed")) == set())


async def test_a_cluster_keeps_the_stream_in_the_slot_of_the_catalogue(redis_cluster: RedisCluster) -> None:
    stream = open_stream(redis_cluster.url(prefix="streamed"), "consumed")
    assert await stream.append([b"x", b"y"], keep_s=60, most=1000) == 0
    assert [entry.value for entry in await stream.older()] == [b"y", b"x"]
    assert await stream.newer(0) == []
    await stream.append([b"z"], keep_s=60, most=1000)
    entries = await stream.newer(1000)
    assert entries is not None
    assert [entry.value for entry in entries] == [b"z"]
    await stream.erase(entries)
    assert await stream.newer(0) is not None
    stream.rewind()
    assert [entry.value for entry in await stream.older()] == [b"y", b"x"]
    await stream.close()


async def test_a_stream_is_bounded_by_number_and_time(redis_server: RedisServer) -> None:
    stream = open_stream(redis_server.url(prefix="bounded"), "consumed")
    for _ in range(5):
        await stream.append([b"x"] * 500, keep_s=60, most=1000)
    length = int(redis_server.execute_command("XLEN", "{bounded}:consumed"))
    assert 1000 <= length < 1200
    assert 0 < redis_server.execute_command("TTL", "{bounded}:consumed") <= 60
    await stream.close()

    old_entries = "for n = 1, 500 do redis.call('XADD', KEYS[1], '1-' .. n, '1', 'x') end"  # with times in 1970
    redis_server.execute_command("EVAL", old_entries, "1", "{aged}:consumed")
    stream = open_stream(redis_server.url(prefix="aged"), "consumed")
    await stream.append([b"x"], keep_s=3600, most=1000)
    await stream.append([b"x"], keep_s=3600, most=1000)
    assert int(redis_server.execute_command("XLEN", "{aged}:consumed")) < 200
    await stream.close()
