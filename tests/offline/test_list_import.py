"""Lists that somebody else computed, in any order, and lists encoded thousands at once."""

import math
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from hotplate.base.recommendations import Item
from hotplate.offline import list_import
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import NULL_VALUES
from hotplate.offline.list_encoder import ListEncoder, RankedLists
from hotplate.offline.list_import import ImportedLists, ImportSettings
from hotplate.offline.options import Format
from hotplate.stores.encoding import OFFSET_BYTES, decode, encode
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Row
from tests.support.property import explored

ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4).filter(
    lambda text: text.strip() not in ("", *NULL_VALUES)
)
scored_rows = st.lists(st.tuples(ids, ids, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=60)


def imported(folder: Path, lists: Path | None, **others: object) -> ImportedLists:
    scratch = Path(tempfile.mkdtemp(dir=folder))
    return ImportedLists(ImportSettings(lists, **others), scratch, lambda *_: None)  # type: ignore[arg-type]  # as the test says


def rows_of(made: ImportedLists) -> dict[str, list[tuple[str, float]]]:
    rows = [row for batch in made.batches() for row in batch]
    assert [row.key.encode() for row in rows] == sorted(row.key.encode() for row in rows)
    return {row.key: [(item["id"], item["score"]) for item in decode(row.value[OFFSET_BYTES:])] for row in rows}


def expected(rows: list[tuple[str, str, float]], length: int) -> dict[str, list[tuple[str, float]]]:
    """The same, the plain way: the highest score of each user and item, sorted, cut; and items by how often."""
    best = defaultdict[str, dict[str, float]](dict)
    for user, item, score in rows:
        best[user][item] = max(score, best[user].get(item, score))
    lists = {
        f"user:{user}": sorted(items.items(), key=lambda pair: (-pair[1], pair[0].encode()))[:length]
        for user, items in best.items()
    }
    counts = Counter(item for items in lists.values() for item, _ in items)
    popular = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].encode()))[: max(length, 100)]
    return {"popular:": [(item, float(count)) for item, count in popular], **lists}


@explored(8, 100, rows=scored_rows, length=st.integers(1, 5), partition_rows=st.integers(1, 20))
def test_rows_in_any_order_become_the_expected_lists(
    rows: list[tuple[str, str, float]], length: int, partition_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_import, "PARTITION_ROWS", partition_rows)
        folder = Path(scratch)
        frame = pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")
        frame.write_parquet(folder / "lists.parquet")
        lists = imported(folder, folder / "lists.parquet", length=length)
        assert rows_of(lists) == expected(rows, length)
        assert lists.plan().rows == len(expected(rows, length))


def test_popular_similar_and_titles_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nu,a,1\nu,b,2\n")
    (tmp_path / "popular.csv").write_text("segment,item,score\n,z,9\n,a,8\nfr,b,7\n")
    (tmp_path / "similar.csv").write_text("item,other,score\na,b,0.5\na,c,0.75\nq,a,1\n")
    (tmp_path / "titles.csv").write_text("item,title\na,An A\nc,A C\n")
    more = {name: tmp_path / f"{name}.csv" for name in ("popular", "similar", "titles")}
    lists = imported(tmp_path, tmp_path / "lists.csv", **more)
    assert rows_of(lists) == {
        "item:a": [("c", 0.75), ("b", 0.5)],
        "item:q": [("a", 1.0)],
        "popular:": [("z", 9.0), ("a", 8.0)],
        "popular:fr": [("b", 7.0)],
        "user:u": [("b", 2.0), ("a", 1.0)],
    }
    values = {row.key: decode(row.value[OFFSET_BYTES:]) for batch in lists.batches() for row in batch}
    assert [item.get("title") for item in values["item:a"]] == ["A C", None]
    (tmp_path / "popular.csv").write_text("segment,item,score\nfr,b,7\n")
    lists = imported(tmp_path, tmp_path / "lists.csv", popular=tmp_path / "popular.csv")
    assert rows_of(lists)["popular:"] == [("a", 1.0), ("b", 1.0)]
    (tmp_path / "popular.csv").write_text("segment,item,score\nfr,b,7\nfr,c,9\nde,c,2\nde,c,1\nde,d,1\n")
    lists = imported(tmp_path, None, popular=tmp_path / "popular.csv")
    assert rows_of(lists)["popular:"] == [("c", 2.0), ("b", 1.0), ("d", 1.0)], "the number of segments"


@pytest.mark.parametrize(("titles", "title"), [("a|-|An A\n", "3"), ("caption|sku\nAn A|a\n", "caption")])
def test_all_files_of_an_import_have_one_format(tmp_path: Path, titles: str, title: str) -> None:
    rows = {"lists": "u|a|1\n", "popular": "a|8\n", "similar": "a|b|0.5\na|c|x\n", "titles": titles}
    files = {name: tmp_path / f"{name}.csv" for name in rows}
    for name, text in rows.items():
        files[name].write_text(text)
    form = Format("|", header=False, max_bad_rows=0.5)
    lists = imported(tmp_path, files.pop("lists"), **files, form=form, columns={"title": title})
    assert rows_of(lists) == {"item:a": [("b", 0.5)], "popular:": [("a", 8.0)], "user:u": [("a", 1.0)]}
    values = {row.key: decode(row.value[OFFSET_BYTES:]) for batch in lists.batches() for row in batch}
    assert values["user:u"][0]["title"] == "An A"


def test_header_lines_within_lists_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nu,a,1\nuser,item,score\nv,b,2\n")
    lists = imported(tmp_path, tmp_path / "lists.csv")
    assert lists.left_out == {"header again": 1}
    assert {key for key in rows_of(lists) if key.startswith("user:")} == {"user:u", "user:v"}


def test_lists_of_similar_items_alone_are_a_release(tmp_path: Path) -> None:
    (tmp_path / "similar.csv").write_text("item,other,score\na,b,0.5\na,c,0.75\nq,c,1\n")
    (tmp_path / "titles.csv").write_text("item,title\nc,A C\n")
    lists = imported(tmp_path, None, similar=tmp_path / "similar.csv", titles=tmp_path / "titles.csv")
    assert rows_of(lists) == {
        "item:a": [("c", 0.75), ("b", 0.5)],
        "item:q": [("c", 1.0)],
        "popular:": [("c", 2.0), ("b", 1.0)],
    }
    assert (lists.rows, lists.left_out) == (3, {})
    assert lists.plan().rows == 3
    with pytest.raises(SettingError, match="nothing to import"):
        imported(tmp_path, None)


def test_rows_of_all_kinds_of_lists_are_counted(tmp_path: Path) -> None:
    files = {
        "lists.csv": "user,item,score\nu,a,1\nu,a,2\n,a,1\n",
        "similar.csv": "item,other,score\na,b,0.5\na,b,0.75\na,a,1\n,b,1\n",
        "popular.csv": "segment,item,score\nde,a,1\nde,a,3\n,,1\n",
    }
    lists, similar, popular = (tmp_path / name for name in files)
    for path in (lists, similar, popular):
        path.write_text(files[path.name])
    read = imported(tmp_path, lists, similar=similar, popular=popular)
    assert rows_of(read) == {
        "item:a": [("b", 0.75)],
        "popular:": [("a", 1.0)],
        "popular:de": [("a", 3.0)],
        "user:u": [("a", 2.0)],
    }
    assert (read.rows, read.left_out) == (10, {"no user": 1, "no item": 2, "similar to itself": 1, "named twice": 3})


def test_left_out_rows_are_counted_and_scores_keep_their_digits(tmp_path: Path) -> None:
    long = "x" * 257
    (tmp_path / "lists.csv").write_text(f"user,item,score,title\nu,a,-1.5,T\n,a,1,\nu,,1,\n{long},a,1,\nu,a,2e-7,T\n")
    lists = imported(tmp_path, tmp_path / "lists.csv")
    assert lists.rows == 5
    assert lists.left_out == {"no user": 1, "no item": 1, "user id over 256 bytes": 1, "named twice": 1}
    assert rows_of(lists)["user:u"] == [("a", 2e-7)]
    pl.DataFrame({"user": ["u"], "item": [7.0], "score": [0.1]}, schema_overrides={"score": pl.Float32}).write_parquet(
        tmp_path / "lists.parquet"
    )
    assert rows_of(imported(tmp_path, tmp_path / "lists.parquet"))["user:u"] == [("7", 0.1)]


BAD = {
    "array.jsonl": (
        '{"user": 1, "item": 2, "score": 1}\n{"user": 1, "item": [3], "score": 1}\n',
        "row 2, column 'item': '[3]' is an array or an object; write one id",
    ),
    "columns.csv": ("user,item,points\na,b,1\n", "looks like the score"),
    "nouser.csv": ("who,item,score\na,b,1\n", "looks like the user"),
    "word.csv": ("user,item,score\na,b,1\nb,c,many\n", "row 3, column 'score': 'many'"),
    "nan.csv": ("user,item,score\na,b,nan\n", "row 2"),
    "nobody.csv": ("user,item,score\n,b,1\n", "Nothing is left of the 1 row of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_one_sentence_with_the_location(tmp_path: Path, name: str) -> None:
    content, part = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        imported(tmp_path, tmp_path / name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
catalogues = st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=6)
scores = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**18), 10**18).map(float)
    | st.floats(-1e3, 1e3).map(lambda score: round(score, 6))
)


def ranked(lists: list[list[tuple[int, float]]]) -> RankedLists:
    """Name owners by their place, and lay the lists one after another."""
    columns = {"item": pl.UInt32, "score": pl.Float64}
    return RankedLists(
        owners=[f"{place:04}" for place in range(len(lists))],
        lengths=np.array([len(row) for row in lists], dtype=np.int64),
        entries=pl.DataFrame([item for row in lists for item in row], schema=columns, orient="row"),
    )


def item(identifier: str, title: str | None, score: float) -> Item:
    return Item(id=identifier, score=score) if title is None else Item(id=identifier, score=score, title=title)


@explored(40, 1_000, catalogue=catalogues, data=st.data())
def test_a_batch_has_the_bytes_of_its_lists_encoded_item_by_item(
    catalogue: list[tuple[str, str | None]], data: st.DataObject
) -> None:
    numbers = st.integers(0, len(catalogue) - 1)
    lists = data.draw(st.lists(st.lists(st.tuples(numbers, scores), max_size=13), max_size=5))
    encoder = ListEncoder([identifier for identifier, _ in catalogue], [title for _, title in catalogue])
    assert encoder.rows("user:", ranked(lists)) == [
        Row(f"user:{place:04}", encode(item(*catalogue[number], score) for number, score in items))
        for place, items in enumerate(lists)
    ]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_non_finite_score_in_a_batch_is_refused(score: float) -> None:
    with pytest.raises(StoreMisused, match="finite"):
        ListEncoder(["a"], [None]).rows("user:", ranked([[(0, 1.0), (0, score)]]))
