"""`fields`: answers with the attributes that a release shows, in each way of asking, and with nothing else."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

import hotplate
from hotplate.base.recommendations import ITEM_FIELDS, Item
from hotplate.serve.lists.filters import ReleaseFilters
from hotplate.stores.attributes import ItemAttributes, encode_attributes
from hotplate.stores.encoding import encode
from tests.support.service import UNTIL_S, Answer, Service, published, running

SHOWN = ("price", "image", "sku")
# By item: price, image, sku and margin, which is not shown. None is missing.
CARDS: dict[str, tuple[float | None, str | None, int | None, float | None]] = {
    "shoe 1": (19.9, "/i/1.jpg", 2**53 + 1, 0.4),
    "müsli 2/XL": (20.0, 'a"b\\c,\nd', 7, 0.1),
    "A-00003": (None, None, -1, None),
    "hat": (0.0, "/i/hat.jpg", None, 0.2),
}
LISTS: dict[str, list[Item]] = {
    "user:7": [
        {"id": "shoe 1", "score": 2.5, "title": "Boots"},
        {"id": "müsli 2/XL", "score": 1e-7},
        {"id": "unheard-of", "score": 0.5, "title": "price"},
        {"id": "A-00003", "score": 0, "title": "Tap"},
    ],
    "item:hat": [{"id": "shoe 1", "score": 1.0}, {"id": "A-00003", "score": 0.5, "title": "Tap"}],
    "popular:": [{"id": "hat", "score": 9.0, "title": "Hat"}, {"id": "shoe 1", "score": 8.0, "title": "Boots"}],
}


def publish(folder: Path, shown: Sequence[str] = SHOWN) -> str:
    prices, images, skus, margins = zip(*CARDS.values(), strict=True)
    columns = {"price": prices, "image": images, "sku": skus, "margin": margins}
    # Numbers beyond 2**53 are texts when they are published.
    texts = ["" if sku is None else str(sku) for sku in skus]
    columns["sku"] = tuple(text or None for text in texts)
    rows, about = encode_attributes(list(CARDS), columns)
    about["item_attributes"]["shown"] = shown
    bodies = {key: encode(items)[4:] for key, items in LISTS.items()}
    return published(folder, {**bodies, **dict(rows)}, about=about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown") / "store"
    publish(folder)
    return folder


def expected(items: Sequence[Item], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return what these items have of *fields*, computed from CARDS."""
    answer = list[dict[str, Any]]()
    for item in items:
        values: dict[str, Any] = {**item}
        if item["id"] in CARDS:
            price, image, sku, _ = CARDS[item["id"]]
            values |= {"price": price, "image": image, "sku": None if sku is None else str(sku)}
        answer.append({name: values[name] for name in fields if values.get(name) is not None})
    return answer


def path_of(name: str, fields: Sequence[str]) -> str:
    return f"/v1/{name}?fields={','.join(fields)}"


def items_of(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return [{name: value for name, value in item.items() if name != "source"} for item in answer.json["items"]]


def drawn_fields() -> Iterator[list[str]]:
    """Yield the id with some of the other fields, in any order."""
    random = Random(81)
    others = [*ITEM_FIELDS[1:], *SHOWN]
    for _ in range(60):
        yield ["id", *random.sample(others, random.randrange(len(others) + 1))]


def test_each_way_of_asking_returns_the_fields_that_were_asked_for(folder: Path, service: Service) -> None:
    with (
        hotplate.open_sync(f"file://{folder}", timeout_s=UNTIL_S) as lists,
        hotplate.Client(service.url, timeout_s=UNTIL_S) as client,
    ):
        for fields in drawn_fields():
            personal, similar, popular = (expected(LISTS[key], fields) for key in ("user:7", "item:hat", "popular:"))
            for name, items in (
                ("recommendations/7", personal),
                ("recommendations/nobody", popular),
                ("similar/hat", similar),
                ("popular", popular),
            ):
                assert items_of(service.get(path_of(name, fields))) == items
            for one in (lists.personal, client.recommendations):
                assert one("7", fields=fields).items == personal
            for many in (lists.personal_many, client.batch):
                assert [answer.items for answer in many(["7", "nobody"], fields=fields)] == [personal, popular]
            assert lists.popular(fields=fields).items == client.popular(fields=fields).items == popular
            folded = lists.fold_in(["hat"], fields=fields).items
            assert folded == client.fold_in(["hat"], fields=fields).items
            assert [item | {"score": 0} for item in folded] == [item | {"score": 0} for item in similar]


def test_pages_and_filters_keep_the_fields(service: Service) -> None:
    fields = ["id", "price"]
    wanted = expected(LISTS["user:7"], fields)
    first = service.get(f"{path_of('recommendations/7', fields)}&n=3&after=0").json
    assert first["items"] == wanted[:3]
    second = service.get(f"{path_of('recommendations/7', fields)}&n=3&after={first['next']}").json
    assert (second["items"], "next" in second) == (wanted[3:], False)
    filtered = service.get(f"{path_of('recommendations/7', fields)}&n=3&where=price<20").json["items"]
    assert filtered == [{"id": "shoe 1", "price": 19.9}, {"id": "hat", "price": 0, "source": "popular"}]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ("id,margin", f"items of this release have {', '.join((*ITEM_FIELDS, *SHOWN))}, and no 'margin'"),
        ("id,size", "and no 'size'"),
        ("id,filler", "and no 'filler'"),
        ("price", "fields is 'price', and begins with id"),
        ("", "fields is '', and begins with id"),
        ("id,", "fields is 'id,', and begins with id"),
        ("id," * 30 + "id", "at most 20 fields"),
        ("id,pri%0Ace", "begins with id"),
    ],
)
def test_field_that_is_not_shown_is_refused_as_an_unknown_one(service: Service, fields: str, sentence: str) -> None:
    for name in ("recommendations/7", "popular", "similar/hat"):
        answer = service.get(f"/v1/{name}?fields={fields}")
        assert (answer.status, sentence in answer.json["detail"]) == (400, True), answer.body
        assert "0.4" not in answer.body.decode()


def test_overrides_replace_shown_values_at_once(folder: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    live.write_text("item,price,image\nshoe 1,17.5,\nunheard-of,3,new.jpg\nhat,,none.jpg\n")
    with running(folder, "--overrides", str(live)) as service:
        answer = items_of(service.get(path_of("recommendations/7", ["id", "price", "image"])))
        assert answer[0] == {"id": "shoe 1", "price": 17.5, "image": "/i/1.jpg"}
        assert answer[2] == {"id": "unheard-of", "price": 3, "image": "new.jpg"}
        assert items_of(service.get(path_of("popular", ["id", "image"])))[0] == {"id": "hat", "image": "none.jpg"}


def test_filler_keeps_the_title_that_was_asked_for(tmp_path: Path) -> None:
    filler = b'{"id":"hat","score":0.0,"filler":true,"title":"Hat"}'  # as `publish` writes it
    published(tmp_path / "store", {"popular:": filler})
    with hotplate.open_sync(f"file://{tmp_path}/store", timeout_s=UNTIL_S) as opened:
        assert opened.popular(fields=["id", "title"]).items == [{"id": "hat", "title": "Hat"}]
        assert opened.popular(fields=["id", "score"]).items == [{"id": "hat", "score": 0.0}]
        assert opened.popular().items == [{"id": "hat", "score": 0.0, "filler": True, "title": "Hat"}]


def test_any_name_that_publish_takes_can_be_asked_for(tmp_path: Path) -> None:
    names = ["größe", "a.b-c_d", "id2"]
    rows, about = encode_attributes(["hat"], {name: [name] for name in names})
    about["item_attributes"]["shown"] = names
    lists = {"popular:": encode(LISTS["popular:"])[4:], **dict(rows)}
    published(tmp_path / "store", lists, about=about)
    with hotplate.open_sync(f"file://{tmp_path}/store", timeout_s=UNTIL_S) as opened:
        assert opened.popular(1, fields=["id", *names]).items == [{"id": "hat", **{name: name for name in names}}]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5.50", 5.5), ("-0", 0), ("9007199254740993", 2**53 + 1.0), ("1e300", 1e300), ("9" * 300, 1e300), ("n/a", None)],
)
def test_numbers_of_any_size_are_shown(text: str, value: float | None) -> None:
    rows, _ = encode_attributes(["a"], {"price": [7.0]})
    filters = ReleaseFilters(ItemAttributes(b"".join(row.value for row in rows)))
    shown = filters.under({"price": {b'"a"': text}}).shown(("price",))(b'"a"')
    assert json.loads(b"{" + shown[1:] + b"}").get("price") == value
