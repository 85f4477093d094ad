"""Paging: walks through lists against brute force, over flips of the live release, hidden items and filters."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

import hotplate
from hotplate.client import Client, RequestRefused
from hotplate.serve.deny_list import NO_OVERRIDES, DenyList, DenyListFile
from hotplate.serve.filters import filter_of
from hotplate.serve.paging import BEGIN, Cursor, continued, continued_popular, page_of, parse_cursor
from hotplate.serve.reader import TieredReader
from hotplate.serve.shaping import Selection, Shaper
from hotplate.stores.encoding import ITEM, POPULAR, USER, RowKey, decode, encode_id
from hotplate.stores.errors import StoreMisused
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import Service, a_list, publish_lists, publish_through, running, until
from tests.support.virtual import virtual

if TYPE_CHECKING:
    from hotplate.serve.consumed import Consumed

WALKS = 5_000
ITEMS = [f"i{number}" for number in range(25)]
USERS = [f"u{number}" for number in range(6)]
SEGMENTS = ["", "north", "unknown"]

Release = Mapping[str, Sequence[str]]


@dataclass
class World:
    """A store, a reader of it, and what is hidden from whom."""

    store: MemoryStore
    clock: FakeClock
    draws: random.Random
    releases: dict[str, Release] = field(default_factory=dict)
    live: list[str] = field(default_factory=list)
    """Live releases in order, the last one is served."""

    denied: frozenset[bytes] = frozenset()
    consumed: dict[str, frozenset[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = TieredReader({"memory": self.store})
        deny_list = cast("DenyListFile", self)
        self.shaper = Shaper(deny_list, cast("Consumed", self))

    @property
    def current(self) -> DenyList:
        return DenyList(items=self.denied, users=frozenset(), overrides=NO_OVERRIDES)

    def hidden_from(self, user: str) -> frozenset[bytes] | None:
        return self.consumed.get(user)

    def drawn(self, most: int) -> list[str]:
        return self.draws.sample(ITEMS, self.draws.randint(0, most))

    async def flip(self) -> None:
        lists: dict[str, Sequence[str]] = {"popular:": self.draws.sample(ITEMS, 12), "popular:north": self.drawn(9)}
        lists |= {f"user:{user}": self.drawn(20) for user in USERS[1:]}
        lists |= {f"item:{item}": [other for other in self.drawn(9) if other != item] for item in ITEMS[:5]}
        lists = {key: items for key, items in lists.items() if items}
        bodies = {key: a_list(*items) for key, items in lists.items()}
        self.clock.now += 10  # another id
        release = await publish_through(self.store, bodies)
        self.releases[release] = lists
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

    @property
    def user(self) -> str:
        return self.row.id if self.row.kind == USER else ""

    @property
    def beside(self) -> list[str]:
        return [self.row.id] if self.row.kind == ITEM else []


def everything(world: World, release: Release, request: Request) -> list[tuple[int, str]]:
    """Return the places and ids of all items that may be shown now, by brute force."""
    popular = list(release.get(f"popular:{request.segment}") or release["popular:"])
    own = None if request.row.kind == POPULAR else release.get(request.row.text)
    stored = popular if own is None else list(own)
    places = list(dict.fromkeys([*stored, *popular, *release["popular:"]]))
    left_out = set(request.excluded)
    hidden = world.denied | world.consumed.get(request.user, frozenset()) if request.user else world.denied
    left_out |= {item for item in ITEMS if encode_id(item) in hidden}
    if request.beside and (own is None or request.excluded or world.denied):
        left_out |= set(request.beside)
    shown = [(place, item) for place, item in enumerate(places) if item not in left_out]
    kept = [pair for pair in shown if pair[0] < len(stored)]
    is_filled = bool(request.excluded) or len(kept) < len(stored)
    return shown if is_filled else kept


@virtual
async def test_walks_over_flips_equal_brute_force(memory: MemoryStore, clock: FakeClock) -> None:
    draws = random.Random(64)
    world = World(memory, clock, draws)
    await world.flip()
    repeated = flips = restarts = hidden = 0
    for _ in range(WALKS):
        kind = draws.choice([USER, USER, ITEM, POPULAR])
        segment = draws.choice(SEGMENTS) if kind != ITEM else ""
        identifier = {USER: draws.choice(USERS), ITEM: draws.choice(ITEMS[:7]), POPULAR: segment}[kind]
        request = Request(RowKey(kind, identifier), segment, tuple(world.drawn(4)) if draws.random() < 0.3 else ())
        after = BEGIN
        release = ""
        seen = list[str]()
        place = -1
        for page_number in range(60):
            if draws.random() < 0.1:
                await world.flip()
                flips += 1
            if draws.random() < 0.1:
                world.hide_something(request.user)
                hidden += 1
            n = draws.randint(1, 8)
            page, encoded, restarted = await next_page(world, request, after, n)
            if restarted:
                assert release not in world.live[-2:]
                restarts += 1
            if page_number == 0 or restarted:
                release, seen, place = world.live[-1], [], -1
            assert encoded == release
            rest = [pair for pair in everything(world, world.releases[release], request) if pair[0] > place]
            assert page.items == [item for _, item in rest[:n]]
            repeated += len(set(page.items) & set(seen))
            seen += page.items
            assert (page.after is not None) == (len(rest) > n)
            if page.after is None:
                break
            place = rest[n - 1][0]
            after = page.after
        else:
            pytest.fail("the walk does not end")
        world.live = world.live[-3:]
    assert repeated == 0
    assert min(flips, restarts, hidden) > 50


@dataclass(frozen=True)
class ShownPage:
    items: list[str]
    after: str | None


async def next_page(world: World, request: Request, after: str, n: int) -> tuple[ShownPage, str, bool]:
    """Return a page, its release, and whether the walk restarted."""
    if request.row.kind == POPULAR:
        found = continued_popular(world.reader, parse_cursor(after), segment=request.segment)
    else:
        found = await continued(world.reader, parse_cursor(after), request.row, segment=request.segment)
    selection = Selection(n, filter_of(request.excluded, ""))
    page = page_of(world.shaper, found.encoded, selection, found.cursor, user=request.user, beside=request.beside)
    items = [item["id"] for item in decode(page.items)]
    after_page = None if page.following is None else page.following.encoded()
    return ShownPage(items, after_page), found.encoded.served.id, found.restarted


def test_a_cursor_reads_back() -> None:
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


def ids(answer: Any) -> list[str]:  # noqa: ANN401 -- of JSON, the library, or the client
    return [item["id"] for item in (answer["items"] if isinstance(answer, dict) else answer.items)]


def following(page: Any) -> str:  # noqa: ANN401 -- of the library, or the client
    assert page.next is not None
    return str(page.next)


def later(lists: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return other lists of the same keys."""
    return {key: a_list(f"later {key}", "x", "y") for key in lists}


def flip(service: Service, folder: Path) -> str:
    release = asyncio.run(publish_lists(folder, later(LISTS)))
    until(lambda: service.get("/v1/popular").json["release"] == release)
    return release


def test_a_service_answers_page_after_page_over_a_flip(tmp_path: Path) -> None:
    first = asyncio.run(publish_lists(tmp_path / "store", LISTS))
    with running(tmp_path / "store") as service:
        plain = service.get("/v1/recommendations/1?n=2")
        page = service.get("/v1/recommendations/1?n=2&after=0")
        assert (ids(page.json), page.json["release"]) == (["a", "b"], first)
        assert ids(plain.json) == ids(page.json)
        assert plain.json.keys() & {"next", "restarted"} == set()
        similar = service.get("/v1/similar/a?n=2&after=0").json
        popular = service.get("/v1/popular?n=2&after=0&segment=north").json
        assert (ids(popular), "next" in popular) == (["n1", "n2"], False)
        popular = service.get("/v1/popular?n=2&after=0").json
        stranger = service.get("/v1/recommendations/9?n=1&after=0&segment=north").json
        assert (ids(stranger), stranger["source"]) == (["n1"], "popular")

        second = flip(service, tmp_path / "store")
        path = f"/v1/recommendations/1?n=2&after={page.json['next']}"
        page = service.get(path)
        assert (ids(page.json), page.json["release"], page.json.get("restarted")) == (["c", "d"], first, None)
        assert service.get(path, If_None_Match=page.headers["etag"]).status == 304
        last = service.get(f"/v1/recommendations/1?n=2&exclude=p1&after={page.json['next']}").json
        assert ids(last) == ["e", "p2"]
        assert ids(service.get(f"/v1/similar/a?n=2&after={similar['next']}").json) == ["d"]
        assert ids(service.get(f"/v1/popular?n=2&after={popular['next']}").json) == ["p3"]
        assert ids(service.get(f"/v1/recommendations/9?n=1&segment=north&after={stranger['next']}").json) == ["n2"]

        moved = service.get(f"/v1/recommendations/9?n=1&after={stranger['next']}").json
        assert (moved["restarted"], moved["release"]) == (True, second)
        other_list = service.get(f"/v1/similar/a?n=1&after={page.json['next']}").json
        assert other_list["restarted"]
        assert service.get("/v1/recommendations/1?after=1").status == 400
        assert service.get("/v1/recommendations/1?after=0&list=other").status == 404

        third = flip(service, tmp_path / "store")
        restarted = service.get(f"/v1/recommendations/1?n=2&after={page.json['next']}")
        assert (restarted.json["restarted"], restarted.json["release"]) == (True, third)
        assert ids(restarted.json) == ["later user:1", "x"]
        assert restarted.headers["cache-control"] == "no-store"


def test_the_client_and_the_library_page_alike(tmp_path: Path) -> None:
    asyncio.run(publish_lists(tmp_path / "store", LISTS))
    with running(tmp_path / "store") as service, Client(service.url, timeout_s=5) as client:
        with hotplate.open_sync(f"file://{tmp_path}/store") as lists:
            for pages in (client.recommendations, lists.personal):
                first = pages("1", 3, after="0")
                assert (ids(first), first.restarted) == (["a", "b", "c"], False)
                last = pages("1", 3, after=following(first))
                assert (ids(last), last.next) == (["d", "e"], None)
            for similar in (client.similar, lists.similar):
                assert ids(similar("a", 2, after=following(similar("a", 1, after="0")))) == ["c", "d"]
            for popular in (client.popular, lists.popular):
                assert ids(popular(2, after=following(popular(2, after="0")))) == ["p3"]
            with pytest.raises(StoreMisused, match="give the `next` of a page"):
                lists.popular(after="?")
        with pytest.raises(RequestRefused):
            client.popular(after="?")
        client.popular(timeout_s=5)
        service.stop()
        assert client.recommendations("1", after=following(first)).restarted


def test_the_first_page_has_no_cursor() -> None:
    assert parse_cursor(BEGIN) is None
