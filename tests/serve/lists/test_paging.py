"""Paging: walks through lists against brute force, over flips of the live release, hidden items and filters."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

import hotplate
from hotplate.client import Client
from hotplate.serve.lists.deny_list import NO_OVERRIDES, DenyList, DenyListFile
from hotplate.serve.lists.options import BEGIN, Selection
from hotplate.serve.lists.paging import FIRST, Cursor, parse_cursor
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.requests import ListRequest, answer_list, answer_nowait, read_lists, shape_list
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.metrics import LOOKUP_COUNTS
from hotplate.stores.attributes import encode_attributes
from hotplate.stores.encoding import ITEM, POPULAR, USER, IdTest, RowKey, decode, encode_id
from hotplate.stores.errors import StoreMisused
from tests.support import patience
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import running as redis_running
from tests.support.service import (
    UNTIL_S,
    Service,
    a_list,
    ids,
    publish_through,
    published,
    running,
    serving,
    until,
)
from tests.support.soak import SEED, in_soak, scaled
from tests.support.stores import OpenStore
from tests.support.virtual import virtual

if TYPE_CHECKING:
    from hotplate.serve.consumed.table import Consumed

WALKS = 250
# Each page of a walk is preceded by another release, or by other hidden items, with this probability.
CHANGES = 0.3
ITEMS = [f"i{number}" for number in range(25)]
USERS = [f"u{number}" for number in range(6)]
SEGMENTS = ["", "north", "unknown"]


@dataclass(frozen=True)
class Release:
    """The lists of a release by key, and the prices of items that have one."""

    lists: Mapping[str, Sequence[str]]
    prices: Mapping[str, float]


@dataclass
class World:
    """A store, a reader of it, and the hidden items of users."""

    open_store: OpenStore
    draws: random.Random
    clock: FakeClock
    releases: dict[str, Release] = field(default_factory=dict)
    live: list[str] = field(default_factory=list)
    """Live releases in order, the last one is served."""

    denied: frozenset[bytes] = frozenset()
    consumed: dict[str, frozenset[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = TieredReader({"store": self.open_store()}, budget_s=60)
        deny_list = cast("DenyListFile", self)
        self.shaper = Shaper(deny_list, cast("Consumed", self))

    @property
    def current(self) -> DenyList:
        return DenyList(items=self.denied, users=frozenset(), overrides=NO_OVERRIDES)

    def hidden_from(self, user: str) -> IdTest | None:
        return self.consumed[user].__contains__ if user in self.consumed else None

    def drawn(self, most: int) -> list[str]:
        return self.draws.sample(ITEMS, self.draws.randint(0, most))

    async def flip(self) -> None:
        lists: dict[str, Sequence[str]] = {"popular:": self.draws.sample(ITEMS, 12), "popular:north": self.drawn(9)}
        lists |= {f"user:{user}": self.drawn(20) for user in USERS[1:]}
        lists |= {f"item:{item}": [other for other in self.drawn(9) if other != item] for item in ITEMS[:5]}
        lists = {key: items for key, items in lists.items() if items}
        prices = {item: float(self.draws.randint(0, 9)) for item in self.draws.sample(ITEMS, 20)}
        attributes, about = encode_attributes(list(prices), {"price": list(prices.values())})
        bodies = {key: a_list(*items) for key, items in lists.items()}
        self.clock.now += 10  # another id
        release = await publish_through(self.open_store(), bodies | dict(attributes), about=about)
        self.releases[release] = Release(lists, prices)
        self.live.append(release)
        await self.reader.tiers[0].follower.refresh()

    def hide_something(self, user: str) -> None:
        if self.draws.random() < 0.5:
            self.denied = frozenset(map(encode_id, self.drawn(3)))
        self.consumed[user] = frozenset(map(encode_id, self.drawn(4)))


@dataclass(frozen=True)
class Request:
    row: RowKey
    segment: str
    excluded: tuple[str, ...]
    below: int | None
    """The price that all items are below, if any."""

    @classmethod
    def drawn(cls, world: World) -> "Request":
        draws = world.draws
        kind = draws.choice([USER, USER, ITEM, POPULAR])
        segment = draws.choice(SEGMENTS) if kind != ITEM else ""
        identifier = {USER: draws.choice(USERS), ITEM: draws.choice(ITEMS[:7]), POPULAR: segment}[kind]
        excluded = tuple(world.drawn(4)) if draws.random() < 0.3 else ()
        below = draws.randint(1, 9) if draws.random() < 0.3 else None
        return cls(RowKey(kind, identifier), segment, excluded, below)

    @property
    def where(self) -> str:
        return "" if self.below is None else f"price<{self.below}"

    @property
    def has_filter(self) -> bool:
        return bool(self.excluded or self.where)

    @property
    def user(self) -> str:
        return self.row.id if self.row.kind == USER else ""

    @property
    def beside(self) -> list[str]:
        return [self.row.id] if self.row.kind == ITEM else []


def everything(world: World, release: Release, request: Request) -> list[tuple[int, str]]:
    """Return the places and ids of all items that may be shown now, by brute force."""
    lists = release.lists
    popular = list(lists.get(f"popular:{request.segment}") or lists["popular:"])
    own = None if request.row.kind == POPULAR else lists.get(request.row.text)
    stored = popular if own is None else list(own)
    places = list(dict.fromkeys([*stored, *popular, *lists["popular:"]]))
    left_out = set(request.excluded)
    hidden = world.denied | world.consumed.get(request.user, frozenset()) if request.user else world.denied
    left_out |= {item for item in ITEMS if encode_id(item) in hidden}
    if request.beside and (own is None or request.has_filter or world.denied):
        left_out |= set(request.beside)
    if request.below is not None:
        left_out |= {item for item in ITEMS if release.prices.get(item, inf) >= request.below}
    shown = [(place, item) for place, item in enumerate(places) if item not in left_out]
    kept = [pair for pair in shown if pair[0] < len(stored)]
    is_filled = request.has_filter or len(kept) < len(stored)
    return shown if is_filled else kept


@virtual
async def test_walks_over_flips_equal_brute_force(memory: MemoryStore, clock: FakeClock) -> None:
    changes = await walk(World(lambda: memory, random.Random(64), clock), WALKS)
    assert min(changes.values()) > 20


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("open_store", ["redis", "cosmos+http"], indirect=True)
@pytest.mark.parametrize("walks", [10, in_soak(scaled(500))])
async def test_walks_over_flips_of_a_remote_store_equal_brute_force(
    open_store: OpenStore, walks: int, clock: FakeClock, record_property: Callable[[str, object], None]
) -> None:
    changes = await walk(World(open_store, random.Random(SEED), clock), walks)
    record_property("walks", walks)
    for name, count in changes.items():
        record_property(name, count)


async def walk(world: World, walks: int) -> dict[str, int]:
    """Page through random lists, compare each page, and return the numbers of changes between pages."""
    draws = world.draws
    changes = {"flips": 0, "restarts": 0, "changes of hidden items": 0}
    await world.flip()
    for _ in range(walks):
        request = Request.drawn(world)
        after = BEGIN
        release = ""
        seen = set[str]()
        place = -1
        for page_number in range(60):
            if draws.random() < CHANGES:
                await world.flip()
                changes["flips"] += 1
            if draws.random() < CHANGES:
                world.hide_something(request.user)
                changes["changes of hidden items"] += 1
            n = draws.randint(1, 8)
            page = await next_page(world, request, after, n)
            if page.restarted:
                assert release not in world.live[-2:]
                changes["restarts"] += 1
            if page_number == 0 or page.restarted:
                release = world.live[-1]
                seen = set()
                place = -1
            assert page.release == release
            remaining = [pair for pair in everything(world, world.releases[release], request) if pair[0] > place]
            assert page.items == [item for _, item in remaining[:n]]
            assert seen.isdisjoint(page.items)
            seen.update(page.items)
            assert (page.after is not None) == (len(remaining) > n)
            if page.after is None:
                break
            place = remaining[n - 1][0]
            after = page.after
        else:
            pytest.fail("the walk does not end")
        world.live = world.live[-3:]
    return changes


@dataclass(frozen=True)
class ShownPage:
    items: list[str]
    after: str | None
    release: str
    restarted: bool


async def next_page(world: World, request: Request, after: str, n: int) -> ShownPage:
    selection = Selection(n, exclude=tuple(request.excluded), where=request.where, segment=request.segment)
    wanted = ListRequest(request.row.kind, request.row.id, selection=selection, after=parse_cursor(after))
    if request.row.kind == USER and world.draws.random() < 0.5:
        whole = ListRequest(USER, world.draws.choice(USERS), selection=selection)
        _, encoded = await read_lists(world.reader, [whole, wanted])
        answer = shape_list(world.shaper, wanted, encoded)
    else:
        answer = await answer_list(world.reader, world.shaper, wanted)
        if request.row.kind == POPULAR:
            assert answer_nowait(world.reader, world.shaper, wanted) == answer
    return ShownPage(
        items=[item["id"] for item in decode(answer.items)],
        after=answer.next,
        release=answer.encoded.release.id,
        restarted=answer.restarted,
    )


def test_cursor_round_trips() -> None:
    cursor = Cursor(9, "20261120T064200Z-7f3a", "0123456789abcdef")
    assert cursor.encoded() == "9.20261120T064200Z-7f3a.0123456789abcdef"
    assert parse_cursor(cursor.encoded()) == cursor


@pytest.mark.parametrize(
    "text", ["", "1", "a", "1.r.0123", "1.r.0123456789abcdeg", "x.r.0123456789abcdef", "0\n", "-1.r.0"]
)
def test_an_invalid_cursor_is_refused(text: str) -> None:
    with pytest.raises(StoreMisused, match="give the `next` of a page, or 0 for the first"):
        parse_cursor(text)


LISTS = {
    "popular:": a_list("p1", "p2", "p3"),
    "popular:north": a_list("n1", "n2"),
    "user:1": a_list("a", "b", "c", "d", "e"),
    "item:a": a_list("b", "c", "d"),
}


def following(page: Any) -> str:  # noqa: ANN401 -- of the library, or the client
    assert page.next is not None
    return str(page.next)


def later(lists: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return other lists of the same keys."""
    return {key: a_list(f"later {key}", "x", "y") for key in lists}


def flip(service: Service, folder: Path) -> str:
    release = published(folder, later(LISTS))
    until(lambda: service.get("/v1/popular").json["release"] == release)
    return release


def test_pages_continue_over_a_flip(tmp_path: Path) -> None:
    first = published(tmp_path / "store", LISTS)
    with running(tmp_path / "store") as service:
        plain = service.get("/v1/recommendations/1?n=2")
        page = service.get("/v1/recommendations/1?n=2&after=0")
        assert (ids(page.json), page.json["release"]) == (["a", "b"], first)
        assert ids(plain.json) == ids(page.json)
        assert plain.json.keys() & {"next", "restarted"} == set()
        stranger = service.get("/v1/recommendations/9?n=1&after=0&segment=north").json
        assert (ids(stranger), stranger["source"]) == (["n1"], "popular")

        second = flip(service, tmp_path / "store")
        path = f"/v1/recommendations/1?n=2&after={page.json['next']}"
        page = service.get(path)
        assert (ids(page.json), page.json["release"], page.json.get("restarted")) == (["c", "d"], first, None)
        assert service.get(path, If_None_Match=page.headers["etag"]).status == 304
        last = service.get(f"/v1/recommendations/1?n=2&exclude=p1&after={page.json['next']}").json
        assert ids(last) == ["e", "p2"]
        assert ids(service.get(f"/v1/recommendations/9?n=1&segment=north&after={stranger['next']}").json) == ["n2"]

        moved = service.get(f"/v1/recommendations/9?n=1&after={stranger['next']}").json
        assert (moved["restarted"], moved["release"]) == (True, second)
        for route in ("similar/a", "popular"):
            other_list = service.get(f"/v1/{route}?n=1&after={page.json['next']}").json
            assert (other_list["restarted"], other_list["release"]) == (True, second)
        third = flip(service, tmp_path / "store")
        restarted = service.get(f"/v1/recommendations/1?n=2&after={page.json['next']}")
        assert (restarted.json["restarted"], restarted.json["release"]) == (True, third)
        assert ids(restarted.json) == ["later user:1", "x"]
        assert restarted.headers["cache-control"] == "no-store"


def batch(service: Service, users: Sequence[object], n: int) -> Any:  # noqa: ANN401 -- of JSON
    return service.post("/v1/recommendations", {"users": users, "n": n}).json


async def test_popular_page_without_its_release_counts_one_lookup(memory: MemoryStore) -> None:
    await publish_through(memory, LISTS)
    reader = TieredReader({"memory": memory})
    await reader.tiers[0].follower.refresh()
    gone = Cursor(1, "gone", "0" * 16)
    request = ListRequest(POPULAR, "", selection=Selection(n=1), after=gone)
    answer = await answer_list(reader, Shaper(reader.deny_list), request)
    assert answer.restarted
    assert reader.metrics.counted(LOOKUP_COUNTS)["popular", "hit"] == [1]


def test_batch_pages_users_that_have_a_cursor(tmp_path: Path) -> None:
    first = published(tmp_path / "store", {**LISTS, "user:2": a_list("x", "y", "z")})
    with running(tmp_path / "store") as service:
        begin = [{"id": "1", "after": "0"}, {"id": "9", "after": "0"}, "2"]
        known, stranger, plain = batch(service, begin, 2)["results"]
        assert [ids(page) for page in (known, stranger, plain)] == [["a", "b"], ["p1", "p2"], ["x", "y"]]
        assert [page["status"] for page in (known, stranger, plain)] == ["ok", "unknown", "ok"]
        assert "next" not in plain

        second = flip(service, tmp_path / "store")
        following_pages = [
            {"id": "1", "after": known["next"]},
            {"id": "9", "after": stranger["next"]},
            {"id": "2", "after": known["next"]},
        ]
        known, stranger, other = batch(service, following_pages, 3)["results"]
        assert [ids(page) for page in (known, stranger)] == [["c", "d", "e"], ["p3"]]
        assert {page["release"] for page in (known, stranger)} == {first}
        assert not {"next", "restarted"} & (known.keys() | stranger.keys())
        assert ids(other) == ["z"]  # of a list of the same name and kind

        flip(service, tmp_path / "store")
        moved, begun = batch(service, [following_pages[0], {"id": "1", "after": "0"}], 1)["results"]
        assert (moved["restarted"], ids(moved)) == (True, ids(begun))
        assert moved["release"] != second


def test_invalid_cursors_and_lists_are_refused(tmp_path: Path) -> None:
    published(tmp_path / "store", LISTS)
    with running(tmp_path / "store") as service:
        refused = service.get("/v1/recommendations/1?after=1")
        assert refused.status == 400
        assert refused.json["detail"] == "after is '1'; give the `next` of a page, or 0 for the first"
        assert service.get("/v1/recommendations/1?after=0&list=other").status == 404
        assert batch(service, [{"id": "1", "after": "?"}], 1)["detail"].startswith("after is '?'; give the `next`")
        assert batch(service, [{"id": "1"}], 1)["status"] == 400


@pytest.mark.usefixtures("patience")
def test_paging_stops_while_redis_is_down_and_resumes_after(tmp_path: Path) -> None:
    with redis_running(tmp_path, "--appendonly", "yes") as server:
        release = published(server.url(), LISTS)
        with serving(tmp_path, "--store", server.url(), "--budget", "60", before=patience.INSTALL) as service:
            page = service.get("/v1/recommendations/1?n=2&after=0").json
            server.kill()
            shown = list[str]()
            after = page["next"]
            for _ in range(5):
                down = service.get(f"/v1/recommendations/1?n=2&after={after}").json
                assert down["source"] == "popular"
                assert down.get("restarted", False) is (after == page["next"])
                shown += ids(down)
                after = down.get("next")
                if after is None:
                    break
            assert shown == ["p1", "p2", "p3"]
            server.start()
            path = f"/v1/recommendations/1?n=2&after={page['next']}"
            until(lambda: service.get(path).json["source"] == "personal")
            back = service.get(path).json
            assert (ids(back), back["release"], back.get("restarted")) == (["c", "d"], release, None)


@pytest.fixture
def paged(tmp_path: Path) -> Iterator[tuple[Service, Client, hotplate.SyncLists]]:
    """A service, a client of it, and its store opened as a library."""
    published(tmp_path / "store", LISTS)
    with (
        running(tmp_path / "store") as service,
        Client(service.url, timeout_s=UNTIL_S) as client,
        hotplate.open_sync(f"file://{tmp_path}/store", timeout_s=UNTIL_S) as lists,
    ):
        yield service, client, lists


def test_client_and_library_page_equally(paged: tuple[Service, Client, hotplate.SyncLists]) -> None:
    _, client, lists = paged
    for pages in (client.recommendations, lists.personal):
        first = pages("1", 3, after="0")
        assert (ids(first), first.restarted) == (["a", "b", "c"], False)
        last = pages("1", 3, after=following(first))
        assert (ids(last), last.next) == (["d", "e"], None)
    for similar in (client.similar, lists.similar):
        assert ids(similar("a", 2, after=following(similar("a", 1, after="0")))) == ["c", "d"]
    for popular in (client.popular, lists.popular):
        assert ids(popular(2, after=following(popular(2, after="0")))) == ["p3"]
    for many in (client.batch, lists.personal_many):
        known, stranger = many({"1": "0", "9": "0"}, 2)
        assert [ids(page) for page in (known, stranger)] == [["a", "b"], ["p1", "p2"]]
        known, stranger = many({"1": following(known), "9": following(stranger)}, 3)
        assert [ids(page) for page in (known, stranger)] == [["c", "d", "e"], ["p3"]]
        assert (known.next, stranger.next) == (None, None)


def test_client_restarts_pages_from_its_memory_while_the_service_is_down(
    paged: tuple[Service, Client, hotplate.SyncLists],
) -> None:
    service, client, _ = paged
    first = client.recommendations("1", 3, after="0")
    client.popular()
    service.stop()
    assert client.recommendations("1", after=following(first)).restarted
    assert [page.restarted for page in client.batch({"1": following(first), "2": "0"})] == [True, False]


def test_the_first_page_begins_before_any_list() -> None:
    assert parse_cursor(BEGIN) == FIRST
