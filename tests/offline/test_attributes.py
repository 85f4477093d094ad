"""Item attributes from files: typed columns of one release, from `publish`, `import` and a pipeline."""

import math
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hotplate as library
from hotplate.offline.attributes import read_attributes
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.serve.lists.filters import rejected_by
from hotplate.stores.attributes import ItemAttributes
from hotplate.stores.encoding import encode_id
from hotplate.stores.errors import StoreMisused
from hotplate.stores.origin import AttributesEntry
from tests.support.command import failed, hotplate, json_of
from tests.support.interactions import checkerboard_model
from tests.support.service import ids

CSV = "id,price,size,stock,colour,new\na,10,42,5,red,true\nb,12.5,XL,,,\nc,,7,0,blue,false\n"
KINDS = {"price": "number", "size": "text", "stock": "number", "colour": "text", "new": "text"}


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text(CSV.replace("id,", "item_id,"))
    return path


def entry_of(path: Path, **kinds: str) -> AttributesEntry:
    return read_attributes(path, kinds).about["item_attributes"]


def write_column(path: Path, cells: Iterable[object]) -> Path:
    rows = [f"p{number},{cell}\n" for number, cell in enumerate(cells)]
    path.write_text("item,price\n" + "".join(rows))
    return path


def values_of(path: Path, **kinds: str) -> list[Any]:
    rows, _ = read_attributes(path, kinds)
    table = ItemAttributes(b"".join(row.value for row in rows))
    column = table.columns["price"]
    items = (encode_id(f"p{number}") for number in range(len(column.values)))
    return [column.value(table.row_of(item)) for item in items]


def test_columns_of_text_files_are_numbers_if_all_values_are(items: Path) -> None:
    assert entry_of(items)["columns"] == KINDS


def test_dash_among_numbers_is_missing_and_shown_with_its_row(tmp_path: Path) -> None:
    path = write_column(tmp_path / "items.csv", [*range(59), "-"])
    entry = entry_of(path)
    assert entry["columns"] == {"price": "number"}
    assert entry["notes"] == [
        f"price (number): 1 cell is no number and is missing: {path}, row 61, column 'price': '-'"
    ]
    *numbers, last = values_of(path)
    assert numbers == list(range(59))
    assert math.isnan(last)


def test_cells_of_several_json_files_tell_the_kind_together(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    rows = [f'{{"item": "p{number}", "price": {number}.5}}\n' for number in range(40)]
    (folder / "a.jsonl").write_text("".join(rows))
    (folder / "b.jsonl").write_text('{"item": "p40", "price": "n/a"}\n')
    values = values_of(folder)
    assert (values[:40], str(values[40])) == ([number + 0.5 for number in range(40)], "nan")  # missing


def test_mixed_column_is_text_with_the_reason(tmp_path: Path) -> None:
    entry = entry_of(write_column(tmp_path / "items.csv", ["38", "39", "S", "M"]))
    assert entry["columns"] == {"price": "text"}
    (note,) = entry["notes"]
    assert "50% of its cells are numbers" in note
    assert "row 4, column 'price': 'S'" in note
    assert "--attribute price=number" in note


def test_decimal_commas_make_a_text_column_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item;price\na;1.234,50\nb;2,5\n")
    entry = entry_of(path)
    assert entry["columns"] == {"price": "text"}
    assert "decimal commas" in entry["notes"][0]


def test_non_numeric_cells_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    (note,) = entry_of(write_column(tmp_path / "items.csv", [*range(200), *["?"] * 8]))["notes"]
    assert note.startswith("price (number): 8 cells are no numbers and are missing: ")
    assert note.count("'?'") == 5


def test_the_kind_of_a_column_can_be_given(tmp_path: Path) -> None:
    half = write_column(tmp_path / "half.csv", [1, "x"])
    assert values_of(half, price="text") == ["1", "x"]
    assert values_of(half, price="number")[0] == 1
    assert "notes" not in entry_of(half, price="text")
    assert "1 cell is no number" in entry_of(half, price="number")["notes"][0]
    empty = write_column(tmp_path / "empty.csv", ["", ""])
    assert entry_of(empty, price="text")["columns"] == {"price": "text"}
    frame = pl.DataFrame({"item": ["p0", "p1"], "price": [7.0, 2.5]})
    frame.write_parquet(tmp_path / "items.parquet")
    assert values_of(tmp_path / "items.parquet", price="text") == ["7", "2.5"]


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        ({"prise": "number"}, "no such column; did you mean price?"),
        ({"price": "number"}, "no cell is a number .*row 2, column 'price': 'x'"),
    ],
)
def test_column_type_that_does_not_fit_is_refused(tmp_path: Path, kinds: dict[str, str], sentence: str) -> None:
    path = write_column(tmp_path / "items.csv", ["x", "y"])
    with pytest.raises(SettingError, match=sentence):
        read_attributes(path, kinds)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("price", "NAME=number"),
        ("price=money", "NAME=number"),
        ("price=date", "no cell is a date"),
        ("=number", "no such column"),
    ],
)
def test_a_kind_is_given_by_name(items: Path, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nal,a,3\n")
    options = ("--store", f"file://{tmp_path}/store", "--attribute", text)
    failed(hotplate("import", tmp_path / "lists.csv", "--item-attributes", items, *options), sentence, code=2)
    failed(
        hotplate("import", tmp_path / "lists.csv", *options[:2], "--attribute", "a=text"), "file of attributes", code=2
    )


def test_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item": [1, 2], "zip": ["007", "8"], "n": [3, None], "on": [True, None]})
    frame.with_columns(day=pl.lit(date(2026, 11, 26))).write_parquet(tmp_path / "items.parquet")
    kinds = {"zip": "text", "n": "number", "on": "text", "day": "date"}
    assert read_attributes(tmp_path / "items.parquet")[1]["item_attributes"]["columns"] == kinds


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("item,unit price\na,1\n", "has a column 'unit price'; rename it"),
        ("item,deny\na,1\n", "has a column 'deny'"),
        ("item,price\na,1\nb,2\na,3\n", "item 'a' has two rows"),
        ("what,price\na,1\n", "looks like the item"),
        ("item\na\n", "of items alone"),
        ("item,price\na,1,5\n", "bad"),
    ],
)
def test_unusable_attribute_file_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "items.csv").write_text(content)
    with pytest.raises(DataError, match=sentence):
        read_attributes(tmp_path / "items.csv")


def test_a_plan_counts_the_rows_of_attributes(items: Path) -> None:
    model = checkerboard_model()
    plain, with_attributes = (ModelLists.of(model, ListSettings(attributes=attributes)) for attributes in (None, items))
    rows = [row for batch in with_attributes.batches() for row in batch]
    assert [key for key, _ in rows if key.startswith("meta:")] == ["meta:attributes/000000"]
    assert with_attributes.plan().rows == plain.plan().rows + 1 == len(rows)


def test_imported_lists_are_filtered_by_their_attributes(items: Path, tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nal,a,3\nal,b,2\nal,c,1\n")
    store = f"file://{tmp_path}/store"
    facts = json_of("import", tmp_path / "lists.csv", "--store", store, "--item-attributes", items)
    assert facts["release"]["about"]["item_attributes"]["columns"] == KINDS
    with library.open_sync(store) as lists:
        for where, expected in (
            ("price>10", "b"),
            ("colour:red|blue,stock>0", "a"),
            ("size:XL", "b"),
            ("new:false", "c"),
        ):
            assert ids(lists.personal("al", where=where)) == [expected], where
    missing = hotplate("import", tmp_path / "lists.csv", "--store", store, "--item-attributes", tmp_path / "none.csv")
    failed(missing, "none.csv does not exist")


# What shops have in a column of digits: ids, prices, whole numbers written by pandas, and codes that begin with zero.
WHOLE = st.integers(-(10**6), 10**6) | st.integers(2**53 - 2, 2**53 + 2) | st.integers(10**18, 10**18 + 2)
PRICES = st.decimals(-(10**6), 10**6, places=2)
CODES = st.sampled_from(["007", "7", "07", "-07", "00", "0"])
SHORT = st.integers(-20, 20)
CELLS = (
    st.lists(WHOLE.map(str), min_size=1, max_size=6)
    | st.lists(SHORT.map(str) | SHORT.map("{}.0".format) | PRICES.map(str), min_size=1, max_size=6)
    | st.lists(CODES | SHORT.map(str), min_size=1, max_size=6)
)


def is_code(digits: str) -> bool:
    unsigned = digits.lstrip("+-")
    return unsigned.isdecimal() and len(unsigned) > 1 and unsigned[0] == "0"


def met_in(path: Path, where: str) -> list[int] | None:
    """Return the places of the items that meet a condition; None if it is refused."""
    rows, _ = read_attributes(path)
    table = ItemAttributes(b"".join(row.value for row in rows))
    items = [encode_id(f"p{number}") for number in range(len(table.columns["price"].values))]
    try:
        rejected = rejected_by(table, where)
    except StoreMisused:
        return None
    return [place for place, item in enumerate(items) if not rejected(item)]


def met_by(cells: list[str], value: str) -> list[int] | None:
    """The same by plain Python: as texts if a number would lose digits, else as decimals."""
    if any(is_code(cell) or abs(Decimal(cell)) >= 2**53 for cell in cells):
        return [place for place, cell in enumerate(cells) if cell == value]
    if is_code(value):
        return None
    return [place for place, cell in enumerate(cells) if Decimal(cell) == Decimal(value)]


@settings(max_examples=60, deadline=None)
@given(cells=CELLS, other=CELLS)
@example(["1750000000000000001", "1750000000000000002"], ["1750000000000000001"])
@example(["01099", "1099"], ["01099"])
@example(["1099", "2000"], ["01099"])
@example(["10.0", "20"], ["10"])
def test_values_are_equal_in_every_file_as_they_are_in_python(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], other: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("attributes")
    files = {"csv": "item,price\n" + "".join(f"p{place},{cell}\n" for place, cell in enumerate(cells))}
    if not any(map(is_code, cells)):  # JSON has no such numbers
        files["jsonl"] = "".join(f'{{"item":"p{place}","price":{cell}}}\n' for place, cell in enumerate(cells))
    for kind, content in files.items():
        (folder / f"items.{kind}").write_text(content)
        for value in (cells[0], other[0]):
            assert met_in(folder / f"items.{kind}", f"price:{value}") == met_by(cells, value), kind


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (pl.Int64(), [1750000000000000001, 1750000000000000002]),
        (pl.UInt64(), [2**64 - 1, 2**64 - 2]),
        (pl.Int128(), [10**30, 10**30 + 1]),
        (pl.Decimal(38, 2), [Decimal("12345678901234567.25"), Decimal("12345678901234567.50")]),
    ],
)
def test_long_numbers_of_parquet_are_texts_and_differ(tmp_path: Path, dtype: pl.DataType, values: list[int]) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item": ["p0", "p1"], "price": pl.Series(values, dtype=dtype)}).write_parquet(path)
    assert entry_of(path)["columns"] == {"price": "text"}
    assert "numbers would not keep all digits" in entry_of(path)["notes"][0]
    assert [met_in(path, f"price:{value}") for value in values] == [[0], [1]]


@pytest.mark.parametrize("dtype", [pl.Float16(), pl.Float32(), pl.Float64()])
def test_floats_of_any_size_keep_their_fraction(dtype: pl.DataType, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    prices = pl.Series([0.5, -1.25, 7.0, None], dtype=dtype)
    pl.DataFrame({"item": ["p0", "p1", "p2", "p3"], "price": prices}).write_parquet(path)
    assert met_in(path, "price<0.75") == [0, 1]
    assert met_in(path, "price:0.5|7") == [0, 2]


@pytest.mark.parametrize("value", ["1_000", "\u0661\u0660\u0660\u0660", "\uff11\uff10\uff10\uff10"])
def test_a_number_is_written_in_ascii_digits_alone(tmp_path: Path, value: str) -> None:
    path = write_column(tmp_path / "items.csv", ["1000", "2000"])
    assert met_in(path, "price:1000") == [0]
    assert met_in(path, f"price:{value}") is None
    rows, _ = read_attributes(path)
    overridden = rejected_by(
        ItemAttributes(b"".join(row.value for row in rows)), "price>0", {"price": {encode_id("p0"): value}}
    )
    assert overridden(encode_id("p0")), "the value is no number, and missing"


def test_numbers_of_parquet_equal_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    for dtype in (pl.Float32, pl.Float64, pl.Decimal(9, 2)):
        column = pl.Series([19.99, 10.0, None]).cast(dtype)
        pl.DataFrame({"item": ["p0", "p1", "p2"], "price": column}).write_parquet(path)
        assert entry_of(path)["columns"] == {"price": "number"}
        assert [met_in(path, where) for where in ("price:19.99", "price:10", "price>=19.99")] == [[0], [1], [0]]
    for large in (2.0**53, 2.0**60, 1e300):
        pl.DataFrame({"item": ["p0", "p1"], "price": [large, None]}).write_parquet(path)
        assert entry_of(path)["columns"] == {"price": "number"}
        assert met_in(path, f"price:{int(large)}") == [0]


def test_numbers_that_are_asked_for_lose_zeros_but_no_digits(tmp_path: Path) -> None:
    path = write_column(tmp_path / "items.csv", ["07", "11", "1750000000000000001"])
    first, second, third = values_of(path, price="number")
    assert (first, second, math.isnan(third)) == (7, 11, True)
    assert "row 4, column 'price': '1750000000000000001'" in entry_of(path, price="number")["notes"][0]


def test_import_says_which_columns_became_texts_to_keep_digits(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nal,a,3\nal,b,2\n")
    items = tmp_path / "items.csv"
    items.write_text("item,seller,zip,price\na,1750000000000000001,01099,10.0\nb,1750000000000000002,1099,12\n")
    store = f"file://{tmp_path}/store"
    facts = json_of("import", tmp_path / "lists.csv", "--store", store, "--item-attributes", items)
    entry = facts["release"]["about"]["item_attributes"]
    assert entry["columns"] == {"seller": "text", "zip": "text", "price": "number"}
    assert [note.split(" digits")[0] for note in entry["notes"]] == [
        "seller (text): numbers would not keep all",
        "zip (text): numbers would not keep all",
    ]
    with library.open_sync(store) as lists:
        for where, expected in (("seller:1750000000000000001", ["a"]), ("zip:1099", ["b"]), ("price:10", ["a"])):
            assert ids(lists.personal("al", where=where)) == expected, where


def column_of(path: Path, name: str, **kinds: str) -> dict[str, Any]:
    """Return the values of an attribute as answers show them, by the ids a, b, …"""
    rows, about = read_attributes(path, kinds)
    table = ItemAttributes(b"".join(row.value for row in rows))
    column = table.columns[name]
    assert about["item_attributes"]["columns"][name] == column.kind
    items = "abcdefg"[: len(column.values)]
    return {item: column.shown(column.value(table.row_of(encode_id(item)))) for item in items}


DATES = {"a": "2026-12-01", "b": "2026-12-01T09:30:00Z", "c": "1999-01-02", "d": None}


def test_dates_are_read_from_each_format_as_utc(tmp_path: Path) -> None:
    written = ["2026-12-01", "2026-12-01T10:30:00+01:00", "1999-01-02T00:00", None]
    table = tmp_path / "items.csv"
    rows = [f"{item},{text or ''}\n" for item, text in zip("abcd", written, strict=True)]
    table.write_text("".join(["item,until\n", *rows]))
    lines = tmp_path / "items.jsonl"
    pl.DataFrame({"item": list("abcd"), "until": written}).write_ndjson(lines)
    parquet = tmp_path / "items.parquet"
    times = [None if text is None else datetime.fromisoformat(text) for text in written]
    utc = [None if time is None else time.replace(tzinfo=time.tzinfo or UTC) for time in times]
    frame = pl.DataFrame({"item": list("abcd"), "until": utc}, schema_overrides={"until": pl.Datetime("us", "UTC")})
    frame.with_columns(pl.col("until").dt.convert_time_zone("Asia/Tokyo")).write_parquet(parquet)
    assert column_of(table, "until") == column_of(lines, "until") == column_of(parquet, "until") == DATES


def test_cells_that_are_no_dates_are_missing_and_shown(tmp_path: Path) -> None:
    path = write_column(tmp_path / "items.csv", [*["2026-12-01"] * 59, "soon"])
    entry = entry_of(path)
    assert (entry["columns"], entry["notes"]) == (
        {"price": "date"},
        [f"price (date): 1 cell is no date and is missing: {path}, row 61, column 'price': 'soon'"],
    )
    few = write_column(tmp_path / "few.csv", ["2026-12-01", "soon", "20261201", "2026-13-01", "12:30"])
    assert entry_of(few)["columns"] == {"price": "text"}
    most = write_column(tmp_path / "most.csv", [*["2026-12-01"] * 9, "never"])
    assert entry_of(most)["columns"] == {"price": "text"}
    (note,) = entry_of(most)["notes"]
    assert note.startswith("price (text): 90% of its cells are dates, and 95% would make it one of dates; ")
    assert note.endswith(f"takes the other cells as missing: {most}, row 11, column 'price': 'never'")


def test_dates_beyond_the_years_that_can_be_shown_are_the_first_or_last(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item,until\na,9999-12-31T23:59:59.9999999\nb,9999-12-31T23:00-02:00\nc,0001-01-01T00:00+01:00\nd,9999-12-31\n"
    )
    assert column_of(path, "until") == {
        "a": "9999-12-31T23:59:59Z",
        "b": "9999-12-31T23:59:59Z",
        "c": "0001-01-01",
        "d": "9999-12-31",
    }


def test_expires_without_any_value_stays_a_date(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,expires\na,\nb,\n")
    parquet = tmp_path / "items.parquet"
    pl.DataFrame({"item": ["a"], "expires": [None]}).write_parquet(parquet)
    assert column_of(path, "expires") == {"a": None, "b": None}
    assert entry_of(path)["columns"] == entry_of(parquet)["columns"] == {"expires": "date"}


def test_arrays_among_texts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item":"a","category":"hats"}\n{"item":"b","category":["men","shoes"]}\n')
    (note,) = entry_of(path)["notes"]
    assert note.startswith("category (text): 1 of its cells are arrays; write all as arrays for a list: ")


LISTS = {"a": ("men", "shoes"), "b": ("müsli 2/XL",), "c": None, "d": ("8", "x y")}


def test_lists_are_read_from_each_format(tmp_path: Path) -> None:
    table = tmp_path / "items.csv"
    table.write_text("item,category\na,men| shoes|men\nb,müsli 2/XL\nc,\nd,8|x y\n")
    semicolons = tmp_path / "semicolons.csv"
    semicolons.write_text('item,category\na,men;shoes\nb,müsli 2/XL\nc,\nd,"8;x y;"\n')
    lines = tmp_path / "items.jsonl"
    lines.write_text(
        '{"item":"a","category":["men","shoes"]}\n{"item":"b","category":["müsli 2/XL"]}\n'
        '{"item":"c","category":[]}\n{"item":"d","category":["8","x y"]}\n'
    )
    parquet = tmp_path / "items.parquet"
    pl.read_ndjson(lines).write_parquet(parquet)
    assert column_of(table, "category", category="list") == LISTS
    assert column_of(semicolons, "category", category="list;") == LISTS
    assert column_of(lines, "category") == column_of(parquet, "category") == LISTS
    assert column_of(table, "category")["a"] == "men| shoes|men", "a text unless it is declared"


@pytest.mark.parametrize("kind", ["list", "list;"])
def test_arrays_are_lists_of_their_texts_whatever_separator_is_given(tmp_path: Path, kind: str) -> None:
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"item":"a","category":["men","sale|50","x;y"]}\n{"item":"b","category":["men"]}\n')
    parquet = tmp_path / "items.parquet"
    pl.read_ndjson(lines).write_parquet(parquet)
    fixed = tmp_path / "fixed.parquet"
    pl.DataFrame(
        {"item": ["a"], "category": pl.Series([["men", "shoes"]], dtype=pl.Array(pl.String, 2))}
    ).write_parquet(fixed)
    for path in (lines, parquet):
        assert column_of(path, "category", category=kind) == {"a": ("men", "sale|50", "x;y"), "b": ("men",)}
        assert column_of(path, "category", category="text") == {"a": "men|sale|50|x;y", "b": "men"}
    assert column_of(fixed, "category") == {"a": ("men", "shoes")}


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("category:men", "a"),
        ("category:shoes|8", "ad"),
        ("category!:shoes", "bd"),
        ("category!:shoes|8", "b"),
        ('category:"müsli 2/XL"', "b"),
        ("category:men,category:shoes", "a"),
    ],
)
def test_conditions_ask_for_one_text_of_a_list(tmp_path: Path, where: str, kept: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,category\na,men|shoes\nb,müsli 2/XL\nc,\nd,8|x y\n")
    rows, _ = read_attributes(path, {"category": "list"})
    rejected = rejected_by(ItemAttributes(b"".join(row.value for row in rows)), where)
    assert "".join(item for item in "abcd" if not rejected(encode_id(item))) == kept
    with pytest.raises(StoreMisused, match="category> takes an attribute of numbers or dates"):
        rejected_by(ItemAttributes(b"".join(row.value for row in rows)), "category>a")


@pytest.mark.parametrize(
    ("cell", "note"),
    [
        ("2026-12-01", "expires (date): each item leaves all lists at that time"),
        (
            "1780000000",
            (
                "expires (number): no item leaves lists; write 2026-12-31 or 2026-12-31T18:00Z, and --attribute "
                "expires=date"
            ),
        ),
    ],
)
def test_expires_is_named_when_it_is_published(tmp_path: Path, cell: str, note: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"item,expires\na,{cell}\n")
    assert entry_of(path)["notes"] == [note]


def test_tables_without_dates_and_lists_keep_the_format_of_earlier_services(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,price,until\na,1,2026-12-01\n")
    rows, _ = read_attributes(path, {"until": "text"})
    assert msgspec.msgpack.decode(rows[0].value)["format"] == 2
    assert "kind" not in str(msgspec.msgpack.decode(rows[0].value))
    rows, _ = read_attributes(path)
    assert msgspec.msgpack.decode(rows[0].value)["format"] == 3
