"""`expires`, an attribute of dates: an item leaves all lists then, without a publish, in each way of asking."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

import hotplate
from hotplate.serve.embedded import SyncLists
from hotplate.stores.attributes import encode_attributes, format_date
from hotplate.stores.encoding import OVERALL
from hotplate.stores.errors import StoreMisused
from tests.support.service import UNTIL_S, Answer, Service, a_list, publish_lists, running, until

DAY_S = 86_400
ITEMS = ["i00", 'a"b\\', "\\", "müsli 2/XL", *(f"i{number:02}" for number in range(4, 40))]
RANDOM = Random(3)
NOW = time.time()
# Days from now; None for an item that stays. The last two items have no attributes.
DAYS: dict[str, int | None] = {item: RANDOM.choice([-400, -1, 1, 400, None]) for item in ITEMS[:-2]}
PRICES = {item: float(RANDOM.randrange(5)) for item in DAYS}
BRANDS = {item: RANDOM.choice(["acme", "bolt"]) for item in DAYS}
LISTS = {f"u{number}": RANDOM.sample(ITEMS, RANDOM.randrange(1, 25)) for number in range(6)}
POPULAR = {OVERALL: RANDOM.sample(ITEMS, 20), "vip": RANDOM.sample(ITEMS, 8)}
GONE = {item for item, days in DAYS.items() if days is not None and days < 0}


def publish(
    folder: Path,
    expires: Mapping[str, float | None],
    lists: Mapping[str, Sequence[str]],
    popular: Mapping[str, Sequence[str]],
) -> str:
    columns: dict[str, Sequence[float | str | None]] = {
        "expires": [*expires.values()],
        "price": [PRICES[item] for item in expires],
        "brand": [BRANDS[item] for item in expires],
    }
    rows, about = encode_attributes(list(expires), columns, {"expires": "date"})
    about["item_attributes"]["shown"] = ["expires"]
    bodies = {key: a_list(*items) for key, items in lists.items()}
    bodies |= {f"popular:{segment}": a_list(*items) for segment, items in popular.items()}
    return asyncio.run(publish_lists(folder, {**bodies, **dict(rows)}, about=about))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expiry") / "store"
    expires = {item: None if days is None else NOW + days * DAY_S for item, days in DAYS.items()}
    lists = {f"user:{user}": items for user, items in LISTS.items()}
    lists["item:i00"] = ITEMS[1:20]
    publish(folder, expires, lists, POPULAR)
    return folder


@pytest.fixture(scope="module")
def lists(folder: Path) -> Iterator[SyncLists]:
    with hotplate.open_sync(f"file://{folder}", timeout_s=UNTIL_S) as opened:
        yield opened


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(folder) as running_service:
        yield running_service


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


def shown(items: Sequence[str], popular: Sequence[str], n: int) -> list[str]:
    """Return what an answer has of *items*, and of the *popular* ones that follow if too few are left."""
    kept = [item for item in items if item not in GONE][:n]
    if len(kept) >= min(n, len(items)):
        return kept
    filling = [item for item in popular if item not in GONE and item not in kept]
    return [*kept, *dict.fromkeys(filling)][:n]


def test_each_way_of_asking_leaves_out_expired_items(service: Service, lists: SyncLists) -> None:
    for n in (1, 3, 10, 30):
        for user, items in LISTS.items():
            wanted = shown(items, POPULAR[OVERALL], n)
            assert ids(service.get(f"/v1/recommendations/{user}?n={n}")) == wanted
            assert [item["id"] for item in lists.personal(user, n).items] == wanted
            body = json.dumps({"users": [user], "n": n}).encode()
            (result,) = service.request("POST", "/v1/recommendations", body).json["results"]
            assert [item["id"] for item in result["items"]] == wanted
        popular = shown(POPULAR[OVERALL], [], n)
        assert ids(service.get(f"/v1/popular?n={n}")) == popular
        assert ids(service.get(f"/v1/recommendations/nobody?n={n}")) == popular
        assert ids(service.get(f"/v1/recommendations/nobody?n={n}&segment=vip")) == shown(
            POPULAR["vip"], POPULAR[OVERALL], n
        )
        similar = ids(service.get(f"/v1/similar/i00?n={n}"))
        assert similar == shown(ITEMS[1:20], [item for item in POPULAR[OVERALL] if item != "i00"], n)
        body = json.dumps({"items": ["i00"], "n": n}).encode()
        assert ids(service.request("POST", "/v1/recommendations/fold-in", body)) == similar


def test_random_requests_equal_brute_force(lists: SyncLists) -> None:
    random = Random(4)
    for _ in range(1_000):
        user = random.choice([*LISTS, "nobody"])
        segment = random.choice([*POPULAR])
        n = random.randrange(1, 30)
        excluded = random.sample(ITEMS, random.choice([0, 3]))
        limit = random.choice([None, 3.0])
        brands = random.choice([None, 2])
        candidates = [*LISTS.get(user, []), *POPULAR[segment], *POPULAR[OVERALL]]
        wanted = list[str]()
        counts = {"acme": 0, "bolt": 0}
        for item in dict.fromkeys(candidates):
            if item in GONE or item in excluded or (limit is not None and PRICES.get(item, limit) >= limit):
                continue
            if brands is not None and item in BRANDS and counts[BRANDS[item]] == brands:
                continue
            if item in BRANDS:
                counts[BRANDS[item]] += 1
            wanted.append(item)
        options = {
            "exclude": excluded,
            "where": f"price<{limit}" if limit else "",
            "per": f"brand:{brands}" if brands else "",
        }
        if not any(options.values()):
            wanted = shown(LISTS.get(user, POPULAR[segment]), [*POPULAR[segment], *POPULAR[OVERALL]], n)
        answer = lists.personal(user, n, segment=segment, **options)  # type: ignore[arg-type]  # options by name
        assert [item["id"] for item in answer.items] == wanted[:n]


def test_pages_show_each_item_that_stays_once(lists: SyncLists) -> None:
    for user, items in LISTS.items():
        pages = list[str]()
        after: str | None = "0"
        while after is not None:
            page = lists.personal(user, 3, after=after)
            pages += [item["id"] for item in page.items]
            after = page.next
        assert pages == shown(items, POPULAR[OVERALL], 1000)


def test_conditions_compare_dates(lists: SyncLists) -> None:
    for days in (-2, 0, 2):
        bound = format_date(int(NOW + days * DAY_S))
        answer = lists.personal("nobody", 40, where=f"expires>{bound}")
        wanted = [item for item in POPULAR[OVERALL] if (DAYS.get(item) or -DAY_S) > max(days, 0)]
        assert [item["id"] for item in answer.items] == wanted
    with pytest.raises(StoreMisused, match="expires is a date; write a condition such as expires>2026-12-01"):
        lists.personal("nobody", where="expires>tomorrow")


def test_item_leaves_when_its_time_comes_and_no_cache_keeps_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    live = tmp_path / "live.csv"
    live.write_text("item,expires\n")
    lists = {"user:1": ["i11", "i12", "i13"], "item:i19": ["i12", "i13"], "item:i18": ["i13", "i14"]}
    expires: dict[str, float | None] = dict.fromkeys(["i11", "i12", "i13", "i14"], NOW + DAY_S)
    publish(store, expires, lists, {OVERALL: ["i12", "i14"]})
    with (
        running(store, "--overrides", str(live)) as service,
        hotplate.open_sync(f"file://{store}", timeout_s=UNTIL_S) as opened,
    ):
        similar = service.get("/v1/similar/i19")
        assert (ids(similar), similar.headers["cache-control"]) == (["i12", "i13"], "public, max-age=60")
        expires["i12"] = soon = time.time() + 4
        release = publish(store, expires, lists, {OVERALL: ["i12", "i14"]})
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
        until(lambda: [item["id"] for item in opened.personal("1").items] == ["i11", "i13", "i14"])

        live.write_text("item,expires\ni12,2999-01-01\ni13,2020-01-01T10:00+01:00\n")
        until(lambda: ids(service.get("/v1/recommendations/1")) == ["i11", "i12", "i14"])


def test_dates_are_shown_as_they_are_written(service: Service) -> None:
    items = service.get("/v1/popular?n=30&fields=id,expires").json["items"]
    dates = {item["id"]: item.get("expires") for item in items}
    stays = {item for item in POPULAR[OVERALL] if item not in GONE}
    assert dates.keys() == stays
    for item, shown_date in dates.items():
        days = DAYS.get(item)
        assert shown_date == (None if days is None else format_date(NOW + days * DAY_S))
