"""`per`: at most some items of each value of an attribute, in the order of the list, filled up with popular items."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

import hotplate
from hotplate.serve.embedded import SyncLists
from hotplate.stores.attributes import encode_attributes
from hotplate.stores.encoding import OVERALL
from tests.support.service import UNTIL_S, a_list, publish_lists, running, until

ITEMS = [f"i{number:02}" for number in range(40)]
RANDOM = Random(40)
BRANDS: dict[str, str | None] = {item: RANDOM.choice(["acme", "bolt", "cox, inc", None]) for item in ITEMS[:-2]}
PRICES: dict[str, float | None] = {item: RANDOM.choice([1.0, 2.5, 3.0, None]) for item in ITEMS[:-2]}
LISTS = {f"u{number}": RANDOM.sample(ITEMS, RANDOM.randrange(1, 25)) for number in range(6)}
POPULAR = {OVERALL: RANDOM.sample(ITEMS, 20), "vip": RANDOM.sample(ITEMS, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("per") / "store"
    rows, about = encode_attributes(list(BRANDS), {"brand": [*BRANDS.values()], "price": [*PRICES.values()]})
    lists = {f"user:{user}": a_list(*items) for user, items in LISTS.items()}
    lists |= {f"popular:{segment}": a_list(*items) for segment, items in POPULAR.items()}
    asyncio.run(publish_lists(folder, {**lists, **dict(rows)}, about=about))
    return folder


@pytest.fixture(scope="module")
def lists(folder: Path) -> Iterator[SyncLists]:
    with hotplate.open_sync(f"file://{folder}", timeout_s=UNTIL_S) as opened:
        yield opened


def chosen(candidates: Sequence[str], n: int, *, values: dict[str, Any], most: int) -> list[str]:
    """Return the first *n* candidates, of each value *most* at most."""
    counts = Counter[Any]()
    items = list[str]()
    for item in candidates:
        value = values.get(item)
        if len(items) == n or item in items or (value is not None and counts[value] >= most):
            continue
        counts[value] += 1
        items.append(item)
    return items


def test_lists_equal_brute_force(lists: SyncLists) -> None:
    random = Random(1)
    for _ in range(1_500):
        user = random.choice([*LISTS, "nobody"])
        segment = random.choice([*POPULAR])
        n = random.randrange(1, 30)
        most = random.randrange(1, 5)
        attributes: dict[str, dict[str, Any]] = {"brand": {**BRANDS}, "price": {**PRICES}}
        name, values = random.choice([*attributes.items()])
        excluded = random.sample(ITEMS, random.choice([0, 3]))
        limit = random.choice([None, 3.0])
        where = {} if limit is None else {"where": f"price<{limit}"}

        candidates = [*LISTS.get(user, []), *POPULAR[segment], *POPULAR[OVERALL]]
        kept = [item for item in candidates if item not in excluded]
        if limit is not None:
            kept = [item for item in kept if (price := PRICES.get(item)) is not None and price < limit]
        answer = lists.personal(user, n, segment=segment, per=f"{name}:{most}", exclude=excluded, **where)
        assert [item["id"] for item in answer.items] == chosen(kept, n, values=values, most=most)


def test_pages_show_each_item_of_the_list_once(lists: SyncLists) -> None:
    for user in LISTS:
        whole = lists.personal(user, 1000, per="brand:2").items
        pages = list[Any]()
        after: str | None = "0"
        while after is not None:
            page = lists.personal(user, 3, per="brand:2", after=after)
            pages += page.items
            after = page.next
        assert pages == whole


@pytest.mark.parametrize(
    ("per", "sentence"),
    [
        ("brand", "per is 'brand'; write it as brand:1"),
        ("brand:0", "write it as brand:1"),
        ("brand:1:2", "write it as brand:1"),
        ("colour:1", "items have no attribute 'colour' in this release; they have brand, price"),
    ],
)
def test_unusable_limit_is_refused_with_the_reason(lists: SyncLists, per: str, sentence: str) -> None:
    with pytest.raises(hotplate.StoreMisused, match=sentence):
        lists.popular(per=per)


def test_service_and_client_limit_as_the_library_does(folder: Path, lists: SyncLists, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    live.write_text("item,brand\n")
    with (
        running(folder, "--overrides", str(live)) as service,
        hotplate.Client(service.url, timeout_s=UNTIL_S) as client,
    ):
        expected = [item["id"] for item in lists.personal("u1", 8, per="brand:1").items]
        answer = service.get("/v1/recommendations/u1?n=8&per=brand:1")
        assert [item["id"] for item in answer.json["items"]] == expected
        assert [item["id"] for item in client.recommendations("u1", 8, per="brand:1").items] == expected
        assert [item["id"] for item in client.batch(["u1"], 8, per="brand:1")[0].items] == expected
        refused = service.get("/v1/popular?per=brand")
        assert (refused.status, "write it as brand:1" in refused.json["detail"]) == (400, True)

        live.write_text("item,brand\n" + "".join(f"{item},same\n" for item in ITEMS))
        until(lambda: len(service.get("/v1/recommendations/u1?n=8&per=brand:1").json["items"]) == 1)
