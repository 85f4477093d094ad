"""Named lists as callers ask for them: one name, one list, and 404 for any other name."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import hotplate
from hotplate.client import Client, RequestRefused
from hotplate.serve.errors import UnknownList
from hotplate.serve.lists.baskets import compute_list
from hotplate.serve.lists.options import Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.metrics import LOOKUPS
from hotplate.stores import lifecycle as life
from hotplate.stores.encoding import ITEM, OFFSET_BYTES, USER, RowKey, decode
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import Reader, Row
from hotplate.stores.users import erase_users
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore
from tests.support.service import UNTIL_S, Service, a_list, published, running
from tests.support.stores import publish
from tests.support.virtual import virtual

ABOUT = {"list": "home", "lists": {"basket": {}}}
LISTS = {
    "item:a": a_list("home similar"),
    "item@basket:a": a_list("basket similar"),
    "popular:": a_list("home popular"),
    "popular@basket:": a_list("basket popular", "second"),
    "popular@basket:France": a_list("vin"),
    "user:1": a_list("home 1"),
    "user@basket:1": a_list("basket 1"),
    "user@basket:2": a_list("basket 2"),
}


async def release(store: MemoryStore, lists: dict[str, bytes] = LISTS, *, live: bool = True) -> hotplate.ReleaseId:
    return await publish(store, [Row(key, value) for key, value in lists.items()], about=ABOUT, live=live)


async def over(*stores: Reader) -> TieredReader:
    reader = TieredReader({f"tier{place}": store for place, store in enumerate(stores)}, budget_s=0.1)
    for tier in reader.tiers:
        await tier.follower.refresh()
    return reader


def first(answer: object) -> tuple[str, str, str]:
    return decode(answer.body[OFFSET_BYTES:])[0]["id"], answer.source, answer.name  # type: ignore[attr-defined]


@virtual
@pytest.mark.parametrize("is_remote", [False, True])
async def test_each_list_has_its_own_users_items_and_popular_lists(
    memory: MemoryStore, remote: RemoteStore, *, is_remote: bool
) -> None:
    await release(memory)
    reader = await over(remote if is_remote else memory)
    assert first(await reader.read(USER, "1")) == first(await reader.read(USER, "1", name="home"))
    assert first(await reader.read(USER, "1")) == ("home 1", "personal", "home")
    assert first(await reader.read(USER, "1", name="basket")) == ("basket 1", "personal", "basket")
    assert first(await reader.read(USER, "2")) == ("home popular", "popular", "home")
    assert first(await reader.read(USER, "3", "France", "basket")) == ("vin", "popular", "basket")
    assert first(await reader.read(ITEM, "a", name="basket")) == ("basket similar", "similar", "basket")
    assert first(await reader.read(ITEM, "b", name="basket")) == ("basket popular", "popular", "basket")
    assert first(reader.popular("Spain", "basket")) == ("basket popular", "popular", "basket")
    assert first((await compute_list(reader, [("a", None)], Selection(5, list="basket"))).encoded)[2] == "basket"
    many = await reader.personal_many(["1", "2", "9", "1"], name="basket")
    assert [first(answer)[0] for answer in many] == ["basket 1", "basket 2", "basket popular", "basket 1"]
    selection = Selection(2, exclude=("basket 1",))
    shortened = Shaper(reader.deny_list).shape(await reader.read(USER, "1", name="basket"), selection)
    assert [item["id"] for item in decode(shortened)] == ["basket popular", "second"]


@virtual
async def test_an_erased_or_denied_user_is_unknown_in_each_list(memory: MemoryStore) -> None:
    await release(memory)
    await erase_users(memory, ["1"])
    reader = await over(memory)
    assert first(await reader.read(USER, "1", name="basket")) == ("basket popular", "popular", "basket")
    many = await reader.personal_many(["1", "2", "1"], name="basket")
    assert [first(answer)[0] for answer in many] == ["basket popular", "basket 2", "basket popular"]
    assert reader.metrics.total(LOOKUPS["popular", "miss"]) == [2]


@virtual
async def test_tier_or_canary_without_the_named_list_is_skipped(
    memory: MemoryStore, remote: RemoteStore, clock: FakeClock
) -> None:
    await release(memory)
    older = MemoryStore(clock)
    await publish(older)
    reader = await over(remote, older)
    remote.failure = StoreUnavailable("gone")
    assert first(await reader.read(USER, "1", name="basket")) == ("basket popular", "popular", "basket")
    (unread,) = await reader.personal_many(["1"], "France", "basket")
    assert (first(unread), unread.status) == (("vin", "popular", "basket"), "error")
    remote.failure = None
    canary = await publish(memory, [Row("popular:", a_list("canary")), Row("user:1", a_list("canary 1"))], live=False)
    await life.start_canary(memory, canary, 99.9999)
    reader = await over(memory)
    with pytest.raises(UnknownList):
        await reader.read(USER, "1", name="basket")
    assert first((await reader.personal_many(["1"], name="basket"))[0])[0] == "basket popular"


async def test_list_that_only_the_canary_has_is_answered_to_its_users(memory: MemoryStore) -> None:
    await publish(memory)
    canary = await release(memory, live=False)
    await life.start_canary(memory, canary, 50)
    reader = await over(memory)
    users = [str(number) for number in range(40)]
    served = reader.tiers[0].follower.canary
    assert served is not None
    of_canary = [user for user in users if served.includes(RowKey(USER, user))]
    assert 0 < len(of_canary) < len(users)
    many = await reader.personal_many(of_canary, name="basket")
    assert [first(answer) for answer in many] == [
        first(await reader.read(USER, user, name="basket")) for user in of_canary
    ]
    with pytest.raises(UnknownList):
        await reader.personal_many(users, name="basket")


async def publish_swapped(store: MemoryStore) -> None:
    """Publish a release of the same lists, of which the other one is the default."""
    bodies = {"popular:": "B", "popular@home:": "H", "user:1": "B 1", "user@home:1": "H 1"}
    rows = [Row(key, a_list(item)) for key, item in bodies.items()]
    await publish(store, rows, about={"list": "basket", "lists": {"home": {}}})


@virtual
async def test_list_is_answered_by_its_name_while_it_stops_being_the_default(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await release(memory)
    reader = await over(remote)
    remote.delay_s = 0.01
    answers = [asyncio.ensure_future(reader.read(USER, "1", name="home")) for _ in range(2)]
    await asyncio.sleep(0)
    await publish_swapped(memory)
    await reader.tiers[0].follower.refresh()
    assert {first(answer)[2] for answer in await asyncio.gather(*answers)} == {"home"}


@virtual
async def test_list_that_becomes_the_default_during_a_failed_read_has_its_popular_list(
    memory: MemoryStore, remote: RemoteStore
) -> None:
    await publish_swapped(memory)
    reader = await over(remote)
    remote.delay_s = 0.05
    late = asyncio.ensure_future(reader.read(USER, "1", name="home"))
    await asyncio.sleep(0.001)
    remote.delay_s = 0.0
    await release(memory)
    await reader.tiers[0].follower.refresh()
    remote.failure = StoreUnavailable("gone")
    assert first(await late) == ("home popular", "popular", "home")


@virtual
async def test_canary_with_another_default_list_answers_by_name(memory: MemoryStore) -> None:
    await publish_swapped(memory)
    canary = await release(memory, live=False)
    await life.start_canary(memory, canary, 99.9999)
    reader = await over(memory)
    for name in ("home", "basket"):
        assert first(await reader.read(USER, "1", name=name)) == (f"{name} 1", "personal", name)
        many = [first(answer)[:2] for answer in await reader.personal_many(["1", "9"], name=name)]
        assert many == [(f"{name} 1", "personal"), (f"{name} popular", "popular")]
        assert first((await compute_list(reader, [("a", None)], Selection(5, list=name))).encoded)[2] == name


@virtual
async def test_list_removed_during_a_read_is_unknown(memory: MemoryStore, remote: RemoteStore) -> None:
    await release(memory)
    reader = await over(remote)
    remote.delay_s = 5
    asked = asyncio.ensure_future(reader.read(USER, "9", name="basket"))
    await asyncio.sleep(0.01)
    remote.delay_s = 0
    await publish(memory)
    await reader.tiers[0].follower.refresh()
    with pytest.raises(UnknownList):
        await asked


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("named") / "store"
    published(folder, LISTS, about=ABOUT)
    with running(folder) as started:
        yield started


def test_list_is_requested_by_name(service: Service) -> None:
    plain = service.get("/v1/recommendations/1").json
    named = service.get("/v1/recommendations/1?list=basket").json
    assert (plain["items"][0]["id"], plain["list"]) == ("home 1", "home")
    assert (named["items"][0]["id"], named["list"]) == ("basket 1", "basket")
    assert service.get("/v1/recommendations/1?list=home").json == plain
    assert service.get("/v1/similar/a?list=basket").json["items"][0]["id"] == "basket similar"
    assert service.get("/v1/popular?list=basket&segment=France").json["items"][0]["id"] == "vin"
    body = {"users": ["2", "9"], "list": "basket"}
    many = service.post("/v1/recommendations", body).json["results"]
    assert [(result["items"][0]["id"], result["list"]) for result in many] == [
        ("basket 2", "basket"),
        ("basket popular", "basket"),
    ]
    folded = service.post("/v1/recommendations/fold-in", b'{"items":["zzz"],"list":"basket"}').json
    assert (folded["source"], folded["list"]) == ("popular", "basket")


@pytest.mark.parametrize("path", ["/v1/recommendations/1", "/v1/similar/a", "/v1/popular"])
def test_an_unknown_name_is_404_and_no_other_list(service: Service, path: str) -> None:
    body = {"users": ["1"], "list": "nothing"}
    for answer in (service.get(f"{path}?list=nothing"), service.post("/v1/recommendations", body)):
        assert answer.problem == (404, "unknown-list")
        assert answer.json["detail"].endswith(" has no list 'nothing'; it has home, basket")


def test_metrics_console_and_events_have_the_list_name(service: Service) -> None:
    for _ in range(3):
        assert service.get("/v1/recommendations/2?list=basket").status == 200
    shown = service.admin("/console/user?id=2&list=basket").json
    assert (shown["items"][0]["id"], shown["list"]) == ("basket 2", "basket")
    assert service.admin("/console/user?id=2&list=nothing").status == 404


def test_client_and_library_accept_the_list_name(service: Service, tmp_path: Path) -> None:
    with Client(service.url, timeout_s=UNTIL_S) as client:
        assert client.recommendations("1", list="basket").items[0]["id"] == "basket 1"
        with pytest.raises(RequestRefused, match="unknown-list"):
            client.recommendations("1", list="nothing")
    published(tmp_path / "store", LISTS, about=ABOUT)
    with hotplate.open_sync(f"file://{tmp_path}/store", timeout_s=UNTIL_S) as lists:
        assert lists.personal("1", list="basket").list == "basket"
        with pytest.raises(hotplate.UnknownList):
            lists.personal("1", list="nothing")
