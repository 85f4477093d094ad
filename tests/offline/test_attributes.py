"""Item attributes from files: typed columns of one release, from `publish`, `import` and a pipeline."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

import hotplate as library
from hotplate.offline.attributes import read_attributes
from hotplate.offline.errors import DataError
from hotplate.offline.lists import ListSettings, ModelLists
from tests.support.command import failed, hotplate, json_of
from tests.support.interactions import checkerboard_model

CSV = "id,price,size,stock,colour,new\na,10,42,5,red,true\nb,12.5,XL,,,\nc,,7,0,blue,false\n"
KINDS = {"price": "number", "size": "text", "stock": "number", "colour": "text", "new": "text"}


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.csv"
    path.write_text(CSV.replace("id,", "item_id,"))
    return path


def test_columns_of_text_files_are_numbers_if_all_values_are(items: Path) -> None:
    assert read_attributes(items)[1] == {"item_attributes": {"pieces": 1, "columns": KINDS}}


def test_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item": [1, 2], "zip": ["007", "8"], "n": [3, None], "on": [True, None]})
    frame.with_columns(day=pl.lit(date(2026, 11, 26))).write_parquet(tmp_path / "items.parquet")
    kinds = {"zip": "text", "n": "number", "on": "text", "day": "text"}
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
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "items.csv").write_text(content)
    with pytest.raises(DataError, match=sentence):
        read_attributes(tmp_path / "items.csv")


def test_a_plan_counts_the_rows_of_attributes(items: Path) -> None:
    model = checkerboard_model()
    plain, with_attributes = (ModelLists(model, ListSettings(attributes=each)) for each in (None, items))
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
            assert [item["id"] for item in lists.personal("al", where=where).items] == [expected], where
    missing = hotplate("import", tmp_path / "lists.csv", "--store", store, "--item-attributes", tmp_path / "none.csv")
    failed(missing, "none.csv does not exist")
