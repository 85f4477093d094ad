"""`where` and `exclude`: what conditions mean, and that popular items which meet them fill every list."""

import asyncio
import csv
import io
import json
import operator
import os
import signal
from contextlib import suppress
from decimal import Decimal
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hotplate
from hotplate.base.recommendations import Item
from hotplate.serve.lists import filters
from hotplate.serve.lists.deny_list import DenyListInvalid, parse_overrides
from hotplate.serve.lists.filters import Condition, ReleaseFilters, parse_where, rejected_by
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.attributes import ItemAttributes, encode_attributes
from hotplate.stores.encoding import decode, encode, encode_id
from hotplate.stores.errors import StoreMisused
from tests.support.lane import Pair, connected
from tests.support.requests import post
from tests.support.service import UNTIL_S, Answer, Service, a_list, published, running, until

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.text("abcä_.-9", min_size=1, max_size=8)
CONDITIONS = st.builds(
    Condition, NAMES, st.sampled_from([":", "!:"]), st.lists(TEXTS, min_size=1, max_size=3).map(tuple)
) | st.builds(Condition, NAMES, st.sampled_from(["<", "<=", ">", ">="]), TEXTS.map(lambda text: (text,)))

PRICES = [None, 10.0, 20.0, 30.0, 40.0]
COLOURS = ["red", "blue", None, "red", "pale, blue"]
IDS = [f"i{n}" for n in range(5)]


def table_of(**columns: list[Any]) -> ItemAttributes:
    rows, _ = encode_attributes(IDS, columns)
    return ItemAttributes(b"".join(row.value for row in rows))


TABLE = table_of(price=PRICES, colour=COLOURS)

COLUMNS = ("price", "category", "stock")
ITEMS = {
    "shoe1": (20.0, "shoes", 3.0), "shoe2": (80.0, "shoes", 1.0), "shoe3": (30.0, "shoes", 0.0),
    "hat1": (10.0, "hats", 5.0), "hat2": (15.0, "hats, caps", 2.0),
    "top1": (25.0, "shoes", 9.0), "top2": (60.0, "hats", 9.0), "vip1": (5.0, "shoes", 9.0),
}  # fmt: skip
LISTS = {
    "user:1": a_list("shoe1", "shoe2", "shoe3", "hat1", "unheard-of"),
    "item:shoe1": a_list("shoe2", "hat1"),
    "popular:": a_list("top1", "hat2", "top2"),
    "popular:vip": a_list("vip1", "hat1"),
}


def publish(
    folder: Path,
    items: dict[str, Any] = ITEMS,
    lists: dict[str, bytes] = LISTS,
    names: tuple[str, ...] = COLUMNS,
) -> str:
    columns = {name: [values[place] for values in items.values()] for place, name in enumerate(names)}
    rows, about = encode_attributes(list(items), columns)
    return published(folder, {**lists, **dict(rows)}, about=about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters") / "store"
    publish(folder)
    return folder


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["id"] + ("+" if "source" in item else "") for item in answer.json["items"]]


def quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=50)
@given(st.lists(CONDITIONS, min_size=1, max_size=4))
@example([Condition("price", "<=", ("5",)), Condition("b", ":", ('a"|,', "\\", ""))])
def test_conditions_parse_to_their_written_form(conditions: list[Condition]) -> None:
    text = ",".join(
        f"{condition.column}{condition.operator}{'|'.join(map(quoted, condition.values))}" for condition in conditions
    )
    assert parse_where(text) == tuple(conditions)


@given(TEXTS | st.text('ab:!<>=,|" \\', max_size=12))
@example('a:"' + '\\"' * 400)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(StoreMisused):
        assert all(condition.values for condition in parse_where(text))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("price<30", "i1 i2"),
        ("price<=30.0", "i1 i2 i3"),
        ("price>2e1", "i3 i4"),
        ("price>=20,price<40", "i2 i3"),
        ("price:10|40", "i1 i4"),
        ("price!:10|40", "i2 i3"),
        ("colour:red", "i0 i3"),
        ("colour:green", ""),
        ("colour!:red", "i1 i4"),
        (' colour : "pale, blue" | blue ', "i1 i4"),
        ("colour:red,price>0", "i3"),
    ],
)
def test_items_without_a_value_match_no_condition(where: str, expected: str) -> None:
    rejected = rejected_by(TABLE, where)
    assert [item for item in [*IDS, "unheard-of"] if not rejected(encode_id(item))] == expected.split()


@given(
    replaced=st.lists(st.booleans(), min_size=5, max_size=5),
    where=st.sampled_from(["price<25", "price!:20", "colour:red", "colour!:blue"]),
)
def test_overrides_replace_values_of_some_items(replaced: list[bool], where: str) -> None:
    changed = list(compress(IDS, replaced))
    values = {"price": {encode_id(item): "20" for item in changed}, "colour": {encode_id(i): "blue" for i in changed}}
    prices = [20.0 if is_replaced else old for is_replaced, old in zip(replaced, PRICES, strict=True)]
    colours = ["blue" if is_replaced else old for is_replaced, old in zip(replaced, COLOURS, strict=True)]
    live = rejected_by(TABLE, where, values)
    published = rejected_by(table_of(price=prices, colour=colours), where)
    assert [live(encode_id(item)) for item in IDS] == [published(encode_id(item)) for item in IDS]


COMPARISONS = {
    ":": operator.eq,
    "!:": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NUMBERS = st.integers(2**53 - 3, 2**53 + 3) | st.integers(-(10**30), 10**30) | st.decimals(-100, 100, places=2)


def test_conditions_have_1024_characters_at_most(service: Service) -> None:
    for length, status in ((1024, 200), (1025, 400)):
        where = "category:".ljust(length, "x")
        assert service.get(f"/v1/recommendations/1?where={where}").status == status


@given(item=NUMBERS, value=NUMBERS, comparison=st.sampled_from(sorted(COMPARISONS)))
@example(2**53, 2**53 + 1, ":")
@example(10**30, 10**30 + 1, "<")
@example(Decimal("9007199254740993." + "1" * 5000), 2**53, ">=")
def test_numbers_compare_as_in_python_however_long_they_are(
    item: int | Decimal, value: int | Decimal, comparison: str
) -> None:
    expected = COMPARISONS[comparison](item, value)
    overridden = rejected_by(TABLE, f"price{comparison}{value}", {"price": {encode_id("i1"): str(item)}})
    assert (not overridden(encode_id("i1"))) == expected
    assert overridden(encode_id("i0")), "which has no price"
    texts = table_of(colour=[str(item), None, None, None, None])
    assert (not rejected_by(texts, f"colour:{value}")(encode_id("i0"))) == (str(item) == str(value))


def test_override_with_a_leading_zero_is_no_number() -> None:
    for where, kept in (("price:20", ["i2"]), ("price>0", ["i2", "i3", "i4"])):
        rejected = rejected_by(TABLE, where, {"price": {encode_id("i1"): "020"}})
        assert [item for item in IDS if not rejected(encode_id(item))] == kept


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("size:4", "no attribute 'size' in this release; they have price, category, stock"),
        ("category<x", "category< takes an attribute of numbers"),
        ("price:cheap", "price is a number"),
        ("price:020", "price is a number, without leading zeros"),
        ("price<nan", "price is a number"),
        ("price<1|2", "and one value"),
        ("price", "cannot be read at 'price'"),
        ("price<1,", "cannot be read"),
        ('colour:["red"]', "not a JSON string"),
        ("category:|", "cannot be read"),
        ("price:" + "|".join(map(str, range(101))), "100 values"),
    ],
)
def test_an_invalid_condition_is_refused_with_a_sentence(service: Service, where: str, sentence: str) -> None:
    answer = service.get(f"/v1/recommendations/1?where={quote(where)}")
    assert answer.problem == (400, "bad-parameter")
    assert sentence in answer.json["detail"]


def test_lists_are_filtered_and_filled_with_popular_items_under_the_filter(service: Service) -> None:
    path = "/v1/recommendations/1?where="
    assert ids(service.get(f"{path}category:shoes")) == ["shoe1", "shoe2", "shoe3", "top1+"]
    assert ids(service.get(f"{path}category:shoes,price<50,stock>0")) == ["shoe1", "top1+"]
    assert ids(service.get(f"{path}price<26&segment=vip&n=4")) == ["shoe1", "hat1", "vip1+", "top1+"]
    assert ids(service.get(f"{path}price<26&n=1")) == ["shoe1"]
    assert ids(service.get(f"{path}{quote('category:' + quoted('hats, caps'))}")) == ["hat2+"]
    assert ids(service.get(f"{path}category:none")) == []
    assert ids(service.get(f"{path}stock>0&exclude=top1,shoe1&fields=id")) == ["shoe2", "hat1", "hat2+", "top2+"]
    unknown = service.get("/v1/recommendations/nobody?where=category:shoes&segment=vip").json
    assert [item["id"] for item in unknown["items"]] == ["vip1", "top1"]
    assert unknown["source"] == "popular"
    assert ids(service.get("/v1/similar/shoe1?where=category:hats")) == ["hat1", "top2+"]
    assert ids(service.get("/v1/popular?where=category:hats")) == ["top2"]


def test_items_named_in_the_request_are_not_used_as_fillers(tmp_path: Path) -> None:
    publish(tmp_path / "store", lists=LISTS | {"item:top1": a_list("hat1", "top2")})
    basket = {"items": ["top1", "unheard-of"], "where": "stock>0"}
    options: dict[str, Any] = {"exclude": ["hat1"]}
    with running(tmp_path / "store") as service:
        assert ids(service.get("/v1/similar/top1?where=stock>0")) == ["hat1", "top2", "hat2+"]
        assert ids(service.get("/v1/similar/unheard-of?exclude=top2&n=2")) == ["top1", "hat2"]
        folded = service.post("/v1/recommendations/fold-in", basket)
        assert ids(folded) == ["hat1", "top2", "hat2+"]
        for query in ("?n=2", "?n=2&fields=id"):  # by the fast lane and not
            assert ids(service.get(f"/v1/similar/top2{query}")) == ["top1", "hat2"]
    (denied := tmp_path / "denied.txt").write_text("item:hat1\n")
    with running(tmp_path / "store", "--deny-list", str(denied)) as service:
        for query in ("", "?n=2&fields=id"):  # by the fast lane and not
            assert ids(service.get(f"/v1/similar/top1{query}")) == ["top2", "hat2+"]
    with hotplate.open_sync(f"file://{tmp_path}/store", timeout_s=UNTIL_S) as lists:
        for answer in (lists.similar("top1", **options), lists.fold_in(["top1"], **options)):
            assert [item["id"] for item in answer.items] == ["top2", "hat2"]
        assert "top2" not in [item["id"] for item in lists.fold_in(["top2"]).items]


async def test_other_requests_run_between_the_lists_of_a_filtered_batch(folder: Path) -> None:
    async with Pair(TieredReader(tiers_of([f"file://{folder}"]))) as pair:
        turns = list[int]()
        for where in ("", "price<0"):
            _, transport = connected(pair.plain)
            body = json.dumps({"users": ["1"] * 300, "n": 1, "where": where})
            transport.feed(post(b"/v1/recommendations", body.encode()))
            turns.append(0)
            while not transport.written:
                await asyncio.sleep(0)
                turns[-1] += 1
        assert turns[1] > turns[0] + 40


def test_conditions_follow_the_live_release(tmp_path: Path) -> None:
    published(tmp_path / "store", LISTS)
    with running(tmp_path / "store") as service:
        refused = service.get("/v1/popular?where=price<50")
        assert (refused.status, "no item attributes" in refused.json["detail"]) == (400, True)
        publish(tmp_path / "store")
        until(lambda: service.get("/v1/popular?where=price<50").status == 200)
        assert ids(service.get("/v1/popular?where=price<50")) == ["top1", "hat2"]
        publish(tmp_path / "store", {"top2": (1.0, "hats", 1.0)})
        until(lambda: ids(service.get("/v1/popular?where=price<50")) == ["top2"])


@pytest.mark.parametrize("most", [0, 2, 1_000])
def test_filter_cache_changes_no_answer(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(filters, "MAX_ITEMS", most)
    monkeypatch.setattr(filters, "MAX_CONDITIONS", most)
    filters_of_release = ReleaseFilters(TABLE)
    body = encode([Item(id=item) for item in IDS])
    for overrides in ({}, {"price": {encode_id("i0"): "15"}}):
        for where in ("price<25", "colour:red", "price<25", "price>=30") * 2:
            kept = [item for item in IDS if not rejected_by(TABLE, where, overrides)(encode_id(item))]
            rejected = filters_of_release.under(overrides).rejected(where)
            assert [item for item in IDS * 2 if not rejected(encode_id(item))] == kept * 2
            popular = filters_of_release.under(overrides).popular(body, where)
            assert [item["id"] for item in decode(popular[4:])] == kept


def test_overrides_apply_at_once_and_a_broken_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    replace(live, "item,stock,category,deny\nshoe1,0,,\nunheard-of,7,shoes,\n")
    with running(folder, "--overrides", str(live)) as service:
        in_stock = partial(service.get, "/v1/recommendations/1?where=category:shoes,stock>0")
        assert ids(in_stock()) == ["shoe2", "unheard-of", "top1+"]
        replace(
            live, '{"item": "shoe1", "stock": null, "deny": false}\n{"item": "shoe2", "deny": true, "size": null}\n'
        )
        until(lambda: ids(in_stock()) == ["shoe1", "top1+"])
        assert ids(service.get("/v1/recommendations/1?n=2")) == ["shoe1", "shoe3"]
        replace(live, "item,stock\nshoe1,0,7\n")
        until(lambda: service.status == "degraded")
        assert ids(in_stock()) == ["shoe1", "top1+"]
        until(lambda: "row 1 cannot be read; a row has an item" in service.log.read_text())


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def test_misspelt_column_of_new_overrides_is_refused_with_the_right_name(folder: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    live.write_text("item,stock\nshoe1,0\n")
    with running(folder, "--overrides", str(live), "--workers", "2") as service:
        in_stock = partial(service.get, "/v1/recommendations/1?where=category:shoes,stock>0&n=1")
        until(lambda: ids(in_stock()) == ["shoe2"])
        replace(live, "item,stok\nshoe1,0\n")
        until(lambda: service.status == "degraded")
        until(
            lambda: (
                "a column stok, which is no attribute of served releases; did you mean stock?" in str(service.states())
            )
        )
        assert ids(in_stock()) == ["shoe2"], "the last good version is in use"
        until(lambda: "did you mean stock?" in service.log.read_text())  # of another process
        replace(live, '{"item": "shoe2", "Deny": true}\n')
        until(lambda: "a column Deny, which is no attribute" in str(service.states()))
        assert "did you mean deny?" in str(service.states())
        replace(live, "item,stock\nshoe2,0\n")
        until(lambda: service.status == "ready")
        # The other worker may read the file later.
        until(lambda: ids(in_stock()) == ["shoe1"])
        assert service.log.read_text().count("did you mean stock?") == 1


def test_misspelt_column_at_the_start_is_named_and_others_count(folder: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.csv"
    live.write_text("item,stok,category,deny\nshoe1,0,hats,\nshoe2,,,true\n")
    with running(folder, "--overrides", str(live)) as service:
        until(lambda: "did you mean stock?" in str(service.states()))
        assert service.status == "degraded"
        assert ids(service.get("/v1/recommendations/1?where=category:shoes&n=1")) == ["shoe3"]
        replace(live, "item,stok,category,deny\nshoe1,0,shoes,\n")
        until(lambda: ids(service.get("/v1/recommendations/1?where=category:shoes&n=1")) == ["shoe1"])
        assert service.status == "degraded"
        assert service.log.read_text().count("did you mean stock?") == 1


def test_overrides_follow_the_attributes_of_the_live_release(tmp_path: Path) -> None:
    store = tmp_path / "store"
    live = tmp_path / "live.csv"
    live.write_text("item,stock\nshoe1,0\n")
    publish(store)
    with running(store, "--overrides", str(live)) as service:
        in_stock = partial(service.get, "/v1/recommendations/1?where=stock>0&n=1")
        until(lambda: ids(in_stock()) == ["shoe2"])

        replace(live, "item,size\nshoe1,44\n")  # before the release that has sizes
        until(lambda: "a column size, which is no attribute" in str(service.states()))
        assert ids(in_stock()) == ["shoe2"]
        publish(store, names=("price", "category", "size"))
        until(lambda: service.status == "ready")
        assert ids(service.get("/v1/recommendations/1?where=size:44")) == ["shoe1"]
        # The process that keeps the last valid file for later workers may read it later than the worker.
        until(lambda: f"loaded {live} again" in service.log.read_text())

        publish(store)  # without sizes again
        until(lambda: service.status == "degraded")
        assert ids(in_stock()) == ["shoe1"]
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: service.workers() not in ([worker], []))
        until(lambda: ids(in_stock()) == ["shoe1"])
        replace(live, "item,size,stock\nshoe1,44,0\n")
        until(lambda: ids(in_stock()) == ["shoe2"])


VALUES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.sampled_from(["red", "a,b", 'q"uo', "é\n"])
OVERRIDES = st.lists(
    st.fixed_dictionaries(
        {"item": st.text('abé ,"', min_size=1)}, optional={"stock": VALUES, "deny": st.none() | st.booleans()}
    ),
    max_size=6,
)


@pytest.mark.parametrize("row", ["i{},,true", "i{},,", "i{},5,"], ids=["denied", "empty", "value"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_each_row_of_overrides_counts_towards_the_limit(monkeypatch: pytest.MonkeyPatch, row: str, end: str) -> None:
    monkeypatch.setattr("hotplate.serve.lists.deny_list.MAX_OVERRIDES", 10)

    def written(rows: int) -> bytes:
        return end.join(["item,stock,deny", *(row.format(number) for number in range(rows))]).encode()

    parse_overrides(written(10))
    with pytest.raises(DenyListInvalid, match="over 10 rows or values"):
        parse_overrides(written(12))


@pytest.mark.parametrize(
    "rows", [["item,stock", "a,5", "b,6"], ['{"item": "a", "stock": 5}', '{"item": "b", "stock": 6}']]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_no_rows_of_overrides(monkeypatch: pytest.MonkeyPatch, rows: list[str], end: str) -> None:
    monkeypatch.setattr("hotplate.serve.lists.deny_list.MAX_OVERRIDES", 10)
    blank_lines = end * 20
    assert parse_overrides(blank_lines.join(rows).encode()) == parse_overrides(end.join(rows).encode())


@settings(max_examples=50)
@given(OVERRIDES)
@example([{"item": "a", "stock": 10**30}])
def test_overrides_mean_the_same_as_csv_and_as_json_lines(rows: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, ["item", "stock", "deny"])
    writer.writeheader()
    writer.writerows({name: str(v).lower() if isinstance(v, bool) else v for name, v in row.items()} for row in rows)
    from_csv = parse_overrides(table.getvalue().encode())
    from_json = parse_overrides("".join(json.dumps(row) + "\n" for row in rows).encode())
    assert from_csv == from_json
    assert from_csv.items == {encode_id(row["item"]) for row in rows if row.get("deny")}


def test_overrides_without_an_item_column_are_refused() -> None:
    for content in (b'[{"item": "a", "stock": 0}]', b"sku,stock\n"):
        with pytest.raises(DenyListInvalid):
            parse_overrides(content)


@given(st.binary(max_size=60) | st.text('{}[]":,itemdny01\n', max_size=60).map(str.encode))
def test_any_overrides_file_is_parsed_or_refused(content: bytes) -> None:
    try:
        overrides = parse_overrides(content)
    except DenyListInvalid:
        return
    rows = [{"item": json.loads(item), "deny": True} for item in overrides.items]
    for attribute, values in overrides.overrides.items():
        rows += [{"item": json.loads(item), attribute: value} for item, value in values.items()]
    written = "".join(json.dumps(row) + "\n" for row in rows)
    assert parse_overrides(written.encode()) == overrides


def test_client_remembers_popular_lists_by_condition(folder: Path) -> None:
    with running(folder) as service, hotplate.Client(service.url, timeout_s=UNTIL_S) as client:
        client.popular(where="category:shoes")
        service.stop()
        kept = client.recommendations("1", where="category:shoes")
        assert ([item["id"] for item in kept.items], kept.source) == (["top1"], "memory")
        with pytest.raises(hotplate.ServiceUnavailable):
            client.recommendations("1", where="category:hats")


def test_overrides_with_arrays_keep_their_texts() -> None:
    rows, _ = encode_attributes(IDS, {"category": [("men",)] * 5, "colour": COLOURS}, {"category": "list"})
    table = ItemAttributes(b"".join(row.value for row in rows))
    lines = (
        b'{"item": "i1", "category": ["sale|50", "men"], "colour": ["red", "blue"]}\n{"item": "i2", "category": "a|b"}'
    )
    filters_of_release = ReleaseFilters(table).under(parse_overrides(lines).overrides)
    kept = {
        where: [item for item in IDS if not filters_of_release.rejected(where)(encode_id(item))]
        for where in ('category:"sale|50"', "category:sale|a", "category:men", 'colour:"red|blue"')
    }
    assert kept == {
        'category:"sale|50"': ["i1"],
        "category:sale|a": ["i2"],
        "category:men": ["i0", "i1", "i3", "i4"],
        'colour:"red|blue"': ["i1"],
    }
