"""`else`: items of other conditions, or popular ones, that follow where a filter leaves too few."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import hotplate
from hotplate.serve.embedded import SyncLists
from hotplate.stores.attributes import encode_attributes
from hotplate.stores.encoding import OVERALL
from tests.support.property import depths
from tests.support.service import UNTIL_S, a_list, publish_lists, running, until

ITEMS = [f"i{number:02}" for number in range(40)]
RANDOM = Random(41)
BRANDS: dict[str, str | None] = {item: RANDOM.choice(["acme", "bolt", "cox", None]) for item in ITEMS[:-2]}
PRICES: dict[str, float | None] = {item: RANDOM.choice([1.0, 2.5, 3.0, None]) for item in ITEMS[:-2]}
LISTS = {f"u{number}": RANDOM.sample(ITEMS, RANDOM.randrange(1, 25)) for number in range(6)}
SIMILAR = {item: RANDOM.sample([other for other in ITEMS if other != item], 10) for item in ITEMS[:5]}
POPULAR = {OVERALL: RANDOM.sample(ITEMS, 20), "vip": RANDOM.sample(ITEMS, 8)}
CONDITIONS: dict[str, Callable[[str], bool]] = {
    "brand:acme": lambda item: BRANDS.get(item) == "acme",
    "brand!:acme": lambda item: BRANDS.get(item) not in ("acme", None),
    "brand:bolt|cox,price<3": lambda item: BRANDS.get(item) in ("bolt", "cox") and (PRICES.get(item) or 9) < 3,
    "price>1": lambda item: (PRICES.get(item) or 0) > 1,
    "brand:none": lambda _: False,
    "popular": lambda _: True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("else") / "store"
    rows, about = encode_attributes(list(BRANDS), {"brand": [*BRANDS.values()], "price": [*PRICES.values()]})
    about["item_attributes"]["shown"] = ["price"]
    lists = {f"user:{user}": a_list(*items) for user, items in LISTS.items()}
    lists |= {f"item:{item}": a_list(*items) for item, items in SIMILAR.items()}
    lists |= {f"popular:{segment}": a_list(*items) for segment, items in POPULAR.items()}
    asyncio.run(publish_lists(folder, {**lists, **dict(rows)}, about=about))
    return folder


@pytest.fixture(scope="module")
def lists(folder: Path) -> Iterator[SyncLists]:
    with hotplate.open_sync(f"file://{folder}", timeout_s=UNTIL_S) as opened:
        yield opened


def expected(
    own: list[str], segment: str, n: int, *, where: str, else_: str, most: int | None, left_out: set[str]
) -> list[tuple[str, bool]]:
    """Return the ids of the first *n* items, and whether each is filled; *most* items of a brand."""
    popular = [*POPULAR[segment], *POPULAR[OVERALL]]
    first = [(item, False) for item in [*own, *popular] if CONDITIONS[where](item)]
    others = popular if else_ == "popular" else [*own, *popular]
    second = [(item, True) for item in others if else_ and CONDITIONS[else_](item)]
    counts = Counter[str | None]()
    shown = dict[str, bool]()
    for item, is_filled in [*first, *second]:
        brand = BRANDS.get(item)
        is_full = most is not None and brand is not None and counts[brand] >= most
        if len(shown) < n and item not in left_out and item not in shown and not is_full:
            counts[brand] += 1
            shown[item] = is_filled
    return [*shown.items()]


def items_of(answer: Any) -> list[tuple[str, bool]]:  # noqa: ANN401 -- of the library, the client or the service
    items = answer if isinstance(answer, list) else answer.items
    return [(item["id"], item.get("filled", False)) for item in items]


@depths(quick=1_500, soak=20_000)
def test_lists_equal_brute_force(lists: SyncLists, examples: int) -> None:
    random = Random(examples)
    wheres = [name for name in CONDITIONS if name != "popular"]
    for _ in range(examples):
        segment = random.choice([*POPULAR])
        n = random.randrange(1, 30)
        where = random.choice(wheres)
        else_ = random.choice(["", *CONDITIONS])
        most = random.choice([None, 1, 3])
        excluded = random.sample(ITEMS, random.choice([0, 3]))
        options: dict[str, Any] = {"where": where, "else_": else_, "exclude": excluded}
        if most is not None:
            options["per"] = f"brand:{most}"
        kind = random.choice(["user", "item", "popular"])
        own: list[str] = []
        left_out = {*excluded}
        if kind == "user":
            user = random.choice([*LISTS, "nobody"])
            own = LISTS.get(user, [])
            answer = lists.personal(user, n, segment=segment, **options)
        elif kind == "item":
            item = random.choice([*SIMILAR, "nothing"])
            own, segment = SIMILAR.get(item, []), OVERALL
            left_out.add(item)
            answer = lists.similar(item, n, **options)
        else:
            own = POPULAR[segment]
            answer = lists.popular(n, segment=segment, **options)
        assert items_of(answer) == expected(own, segment, n, where=where, else_=else_, most=most, left_out=left_out), (
            kind,
            options,
        )


@pytest.mark.parametrize("else_", ["price>1", "popular"])
def test_pages_show_each_item_once_and_filled_ones_last(lists: SyncLists, else_: str) -> None:
    for user in LISTS:
        options: Any = {"where": "brand:acme", "else_": else_}
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
    (user, *_) = LISTS
    items = lists.personal(user, 20, where="brand:none", else_="price>1", fields=["id", "price"]).items
    assert items
    for item in items:
        assert item.keys() - {"source"} == {"id", "price", "filled"}


@pytest.mark.parametrize("else_", ["size:8", "price<much", "nonsense"])
def test_an_unusable_second_filter_is_refused_even_if_it_is_not_needed(lists: SyncLists, else_: str) -> None:
    for where in ("price>1", ""):
        with pytest.raises(hotplate.StoreMisused, match=r"^else: "):
            lists.popular(1, where=where, else_=else_)


def test_without_where_it_changes_nothing(lists: SyncLists) -> None:
    for user in LISTS:
        assert lists.personal(user, 40, else_="popular") == lists.personal(user, 40)


def test_service_client_and_fold_in_fill_as_the_library_does(folder: Path, lists: SyncLists) -> None:
    with running(folder) as service, hotplate.Client(service.url, timeout_s=UNTIL_S) as client:
        until(service.is_ready)
        options: Any = {"where": "brand:acme", "else_": "popular"}
        wanted = items_of(lists.personal("u1", 25, **options))
        assert {is_filled for _, is_filled in wanted} == {True, False}
        answer = service.get("/v1/recommendations/u1?n=25&where=brand:acme&else=popular")
        assert items_of(answer.json["items"]) == wanted
        assert items_of(client.recommendations("u1", 25, **options)) == wanted
        assert items_of(client.batch(["u0", "u1"], 25, **options)[1]) == wanted
        assert items_of(client.similar("i01", 25, **options)) == items_of(lists.similar("i01", 25, **options))
        assert items_of(client.popular(25, **options)) == items_of(lists.popular(25, **options))
        folded = client.fold_in(["i01"], 25, **options)
        assert "i01" not in dict(items_of(folded))
        assert {is_filled for _, is_filled in items_of(folded)} == {True, False}

        refused = service.get("/v1/recommendations/u1?where=brand:acme&else=nonsense")
        assert (refused.status, "nonsense" in refused.json["detail"]) == (400, True)
        body = b'{"users": ["u1"], "else_": "popular"}'
        refused = service.request("POST", "/v1/recommendations", body)
        assert (refused.status, "else," in refused.json["detail"]) == (400, True)
