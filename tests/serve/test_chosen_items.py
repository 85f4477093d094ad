"""`where`, `else`, `per`, `exclude` and `expires`, together and in each way of asking: lists are those of a model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import pytest

import hotplate
from hotplate.serve.embedded import SyncLists
from hotplate.stores.attributes import encode_attributes, format_date
from hotplate.stores.encoding import OVERALL
from tests.support.property import depths
from tests.support.service import UNTIL_S, Service, a_list, ids, published, running, until

DAY_S = 86_400
NOW = time.time()
RANDOM = Random(41)
ITEMS = ["i00", 'a"b\\', "\\", "müsli 2/XL", *(f"i{number:02}" for number in range(4, 40))]
# The last two items have no attributes. Days are from now; None for an item that stays.
BRANDS: dict[str, str | None] = {item: RANDOM.choice(["acme", "bolt", "cox, inc", None]) for item in ITEMS[:-2]}
PRICES: dict[str, float | None] = {item: RANDOM.choice([1.0, 2.5, 3.0, None]) for item in BRANDS}
DAYS: dict[str, int | None] = {item: RANDOM.choice([-400, -1, 1, 400, None, None]) for item in BRANDS}
LISTS = {f"u{number}": RANDOM.sample(ITEMS, RANDOM.randrange(1, 25)) for number in range(6)}
SIMILAR = {item: RANDOM.sample([other for other in ITEMS if other != item], 10) for item in ITEMS[:1] + ITEMS[4:8]}
POPULAR = {OVERALL: RANDOM.sample(ITEMS, 20), "vip": RANDOM.sample(ITEMS, 8)}
VALUES: dict[str, Mapping[str, object]] = {"brand": BRANDS, "price": PRICES}
CONDITIONS: dict[str, Callable[[str], bool]] = {
    "": lambda _: True,
    "brand:acme": lambda item: BRANDS.get(item) == "acme",
    "brand!:acme": lambda item: BRANDS.get(item) not in ("acme", None),
    'brand:bolt|"cox, inc",price<3': lambda item: (
        BRANDS.get(item) in ("bolt", "cox, inc") and (PRICES.get(item) or 9) < 3
    ),
    "price>1": lambda item: (PRICES.get(item) or 0) > 1,
    f"expires>{format_date(NOW + 2 * DAY_S)}": lambda item: DAYS.get(item) == 400,
    "brand:none": lambda _: False,
    "popular": lambda _: True,
}
WHERES = [where for where in CONDITIONS if where != "popular"]


def publish(
    folder: Path, expires: Mapping[str, float | None], lists: Mapping[str, Sequence[str]], popular: Sequence[str]
) -> str:
    columns: dict[str, Sequence[float | str | None]] = {
        "expires": [*expires.values()],
        "price": [PRICES[item] for item in expires],
        "brand": [BRANDS[item] for item in expires],
    }
    rows, about = encode_attributes(list(expires), columns, {"expires": "date"})
    about["item_attributes"]["shown"] = ["expires", "price"]
    bodies = {key: a_list(*items) for key, items in lists.items()}
    return published(folder, {**bodies, "popular:": a_list(*popular), **dict(rows)}, about=about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen") / "store"
    expires = {item: None if days is None else NOW + days * DAY_S for item, days in DAYS.items()}
    lists = {f"user:{user}": items for user, items in LISTS.items()}
    lists |= {f"item:{item}": items for item, items in SIMILAR.items()}
    publish(folder, expires, lists | {"popular:vip": POPULAR["vip"]}, POPULAR[OVERALL])
    return folder


@pytest.fixture(scope="module")
def lists(folder: Path) -> Iterator[SyncLists]:
    with hotplate.open_sync(f"file://{folder}", timeout_s=UNTIL_S) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[hotplate.Client]:
    with hotplate.Client(service.url, timeout_s=UNTIL_S) as opened:
        yield opened


def is_gone(item: str) -> bool:
    return (DAYS.get(item) or 0) < 0


@dataclass(frozen=True, slots=True)
class Question:
    """A request for the first *n* items of a list, *most* of a value of *attribute*."""

    kind: str
    name: str
    n: int
    segment: str
    where: str
    else_: str
    attribute: str
    most: int
    exclude: Sequence[str]

    @property
    def options(self) -> dict[str, Any]:
        options = {"where": self.where, "else_": self.else_, "exclude": self.exclude}
        options |= {"per": f"{self.attribute}:{self.most}" if self.attribute else "", "segment": self.segment}
        return {name: value for name, value in options.items() if value}

    @property
    def query(self) -> str:
        options = {name.rstrip("_"): value for name, value in self.options.items()}
        return urlencode(options | {"n": self.n, "exclude": ",".join(self.exclude)})

    def own(self) -> Sequence[str]:
        lists: dict[str, dict[str, list[str]]] = {"user": LISTS, "item": SIMILAR}
        return lists.get(self.kind, {}).get(self.name, [])

    def answer(self) -> list[tuple[str, bool]]:
        """Return the ids of the answer, and whether each is filled."""
        own = self.own()
        popular = [*POPULAR[self.segment], *POPULAR[OVERALL]]
        hidden = {*self.exclude, *([self.name] if self.kind == "item" else [])}
        if not (self.where or self.attribute or self.exclude):
            own = own or POPULAR[self.segment]
            kept = [item for item in own if not is_gone(item)][: self.n]
            if len(kept) >= min(self.n, len(own)):
                return [(item, False) for item in kept]
        meets = CONDITIONS[self.where]
        others = popular if self.else_ == "popular" else [*own, *popular]
        candidates = [(item, False) for item in [*own, *popular] if meets(item)]
        if self.where and self.else_:
            candidates += [(item, True) for item in others if CONDITIONS[self.else_](item)]
        counts = Counter[object]()
        shown = dict[str, bool]()
        for item, is_filled in candidates:
            value = VALUES[self.attribute].get(item) if self.attribute else None
            is_full = value is not None and counts[value] >= self.most
            if len(shown) < self.n and item not in hidden and item not in shown and not is_full and not is_gone(item):
                counts[value] += 1
                shown[item] = is_filled
        return [*shown.items()]


def drawn(random: Random) -> Question:
    kind = random.choice(["user", "item", "popular"])
    names = {"user": [*LISTS, "nobody"], "item": [*SIMILAR, "nothing"], "popular": [""]}
    return Question(
        kind=kind,
        name=random.choice(names[kind]),
        n=random.randrange(1, 30),
        segment=OVERALL if kind == "item" else random.choice([*POPULAR]),
        where=random.choice(WHERES),
        else_=random.choice([*CONDITIONS]),
        attribute=random.choice(["", "", *VALUES]),
        most=random.randrange(1, 5),
        exclude=random.sample(ITEMS, random.choice([0, 0, 3])),
    )


def asked(lists: Any, question: Question) -> Any:  # noqa: ANN401 -- of the library or the client
    if question.kind == "popular":
        return lists.popular(question.n, **question.options)
    if question.kind == "item":
        return lists.similar(question.name, question.n, **question.options)
    personal = lists.personal if isinstance(lists, SyncLists) else lists.recommendations
    return personal(question.name, question.n, **question.options)


def items_of(answer: Any) -> list[tuple[str, bool]]:  # noqa: ANN401 -- of the library, the client or the service
    items = answer["items"] if isinstance(answer, dict) else answer.items
    return [(item["id"], item.get("filled", False)) for item in items]


@depths(quick=3_000, soak=40_000)
def test_lists_are_those_of_the_model(lists: SyncLists, examples: int) -> None:
    random = Random(examples)
    for _ in range(examples):
        question = drawn(random)
        assert items_of(asked(lists, question)) == question.answer(), question


def test_each_way_of_asking_gives_the_same_items(service: Service, client: hotplate.Client, lists: SyncLists) -> None:
    random = Random(4)
    for _ in range(150):
        question = drawn(random)
        wanted = items_of(asked(lists, question))
        assert items_of(asked(client, question)) == wanted, question
        path = {"user": f"recommendations/{question.name}", "item": f"similar/{question.name}"}
        answer = service.get(f"/v1/{path.get(question.kind, 'popular')}?{question.query}")
        assert items_of(answer.json) == wanted, question
        if question.kind == "user":
            (_, result) = client.batch(["u0", question.name], question.n, **question.options)
            assert items_of(result) == wanted, question
        if question.kind == "item":
            for caller in (lists, client):
                folded = caller.fold_in([question.name], question.n, **question.options)
                assert items_of(folded) == wanted, question


@pytest.mark.parametrize(
    "options", [{}, {"per": "brand:2"}, *({"where": "brand:acme", "else_": else_} for else_ in ("price>1", "popular"))]
)
def test_pages_show_each_item_once_and_filled_ones_last(lists: SyncLists, options: dict[str, Any]) -> None:
    for user in LISTS:
        whole = lists.personal(user, 1000, **options).items
        pages = list[Any]()
        after: str | None = "0"
        while after is not None:
            page = lists.personal(user, 3, after=after, **options)
            pages += page.items
            after = page.next
        assert pages == whole
        assert [item.get("filled", False) for item in pages] == sorted(item.get("filled", False) for item in pages)


def test_fields_apply_to_filled_items(lists: SyncLists) -> None:
    items = lists.personal("u0", 20, where="brand:none", else_="price>1", fields=["id", "price"]).items
    assert items
    for item in items:
        assert item.keys() - {"source"} == {"id", "price", "filled"}


def test_dates_are_shown_as_they_are_written(service: Service) -> None:
    for item in service.get("/v1/popular?n=30&fields=id,expires").json["items"]:
        days = DAYS.get(item["id"])
        assert item.get("expires") == (None if days is None else format_date(NOW + days * DAY_S))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(
            ({"where": where, "else_": else_}, "else: ")
            for where in ("price>1", "")
            for else_ in ("size:8", "price<much", "nonsense")
        ),
        ({"where": "expires>tomorrow"}, "expires is a date; write a condition such as expires>2026-12-01"),
        ({"per": "brand"}, "per is 'brand'; write it as brand:1"),
        ({"per": "brand:0"}, "write it as brand:1"),
        ({"per": "brand:1:2"}, "write it as brand:1"),
        ({"per": "colour:1"}, "items have no attribute 'colour' in this release; they have expires, price, brand"),
    ],
)
def test_unusable_option_is_refused_with_the_reason_even_if_it_is_not_needed(
    service: Service, client: hotplate.Client, lists: SyncLists, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(hotplate.StoreMisused, match=sentence) as refused:
        lists.popular(1, **options)
    with pytest.raises(hotplate.RequestRefused, match=sentence):
        client.popular(1, **options)
    body = {name.rstrip("_"): value for name, value in options.items()}
    for answer in (
        service.get(f"/v1/popular?{urlencode(body)}"),
        service.post("/v1/recommendations", {"users": ["u1"], **body}),
    ):
        assert (answer.status, str(refused.value) in answer.json["detail"]) == (400, True)


def test_option_by_its_name_in_python_is_refused(service: Service) -> None:
    refused = service.post("/v1/recommendations", {"users": ["u1"], "else_": "popular"})
    assert (refused.status, "else," in refused.json["detail"]) == (400, True)


def test_item_leaves_when_its_time_comes_and_no_cache_keeps_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    live = tmp_path / "live.csv"
    live.write_text("item,expires,brand\n")
    lists = {"user:1": ["i11", "i12", "i13"], "item:i19": ["i12", "i13"], "item:i18": ["i13", "i14"]}
    expires: dict[str, float | None] = dict.fromkeys(["i11", "i12", "i13", "i14"], NOW + DAY_S)
    publish(store, expires, lists, ["i12", "i14"])
    with (
        running(store, "--overrides", str(live)) as service,
        hotplate.open_sync(f"file://{store}", timeout_s=UNTIL_S) as opened,
    ):
        similar = service.get("/v1/similar/i19")
        assert (ids(similar), similar.headers["cache-control"]) == (["i12", "i13"], "public, max-age=60")
        expires["i12"] = soon = time.time() + 4
        release = publish(store, expires, lists, ["i12", "i14"])
        until(lambda: service.get("/v1/popular").headers["x-hotplate-release"] == release)

        first = service.get("/v1/recommendations/1")
        similar = service.get("/v1/similar/i19")
        popular = service.get("/v1/popular")
        if time.time() < soon:  # not on a machine that was too slow
            assert ids(first) == ["i11", "i12", "i13"]
            assert (ids(similar), ids(popular)) == (["i12", "i13"], ["i12", "i14"])
            assert similar.headers["cache-control"] == popular.headers["cache-control"] == "no-store"
        assert service.get("/v1/similar/i18").headers["cache-control"] == "public, max-age=60"

        until(lambda: ids(service.get("/v1/recommendations/1")) == ["i11", "i13", "i14"])
        assert soon <= time.time()
        again = service.get("/v1/recommendations/1", **{"If-None-Match": first.headers["etag"]})
        assert again.status == (200 if "i12" in ids(first) else 304)
        assert ids(service.get("/v1/popular")) == ["i14"]
        assert service.get("/v1/popular").headers["cache-control"] == "public, max-age=60"
        until(lambda: ids(opened.personal("1")) == ["i11", "i13", "i14"])

        live.write_text("item,expires,brand\ni12,2999-01-01,\ni13,2020-01-01T10:00+01:00,\n")
        until(lambda: ids(service.get("/v1/recommendations/1")) == ["i11", "i12", "i14"])
        live.write_text("item,expires,brand\n" + "".join(f"{item},,same\n" for item in expires))
        until(lambda: ids(service.get("/v1/recommendations/1?per=brand:1")) == ["i11"])
