"""Lists that somebody else computed, in any order: what is published is what a plain sort would have made of them."""

import gzip
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.offline import list_import
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import NULL_VALUES
from hotplate.offline.list_import import ImportedLists, ImportSettings
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.publish import PublishSettings, publish
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.encoding import OFFSET_BYTES, decode
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Row
from hotplate.stores.verification import verify
from tests.support.interactions import checkerboard_model
from tests.support.soak import SEED, scaled

ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4).filter(
    lambda text: text.strip() not in ("", *NULL_VALUES)
)
scored_rows = st.lists(st.tuples(ids, ids, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=60)


def imported(folder: Path, lists: Path, **others: object) -> ImportedLists:
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


def check_import(rows: list[tuple[str, str, float]], length: int, partition_rows: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_import, "PARTITION_ROWS", partition_rows)
        folder = Path(scratch)
        frame = pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")
        frame.write_parquet(folder / "lists.parquet")
        made = imported(folder, folder / "lists.parquet", length=length)
        assert rows_of(made) == expected(rows, length)
        assert made.plan().rows == len(expected(rows, length))


@settings(max_examples=15, deadline=None)
@given(scored_rows, st.integers(1, 5), st.integers(1, 20))
def test_rows_in_any_order_become_the_expected_lists(
    rows: list[tuple[str, str, float]], length: int, partition_rows: int
) -> None:
    check_import(rows, length, partition_rows)


@pytest.mark.soak
@settings(max_examples=scaled(100), deadline=None)
@given(scored_rows, st.integers(1, 5), st.integers(1, 20))
def test_hundreds_of_files_of_rows_become_the_expected_lists(
    rows: list[tuple[str, str, float]], length: int, partition_rows: int
) -> None:
    check_import(rows, length, partition_rows)


@pytest.mark.parametrize("name", ["lists.csv", "lists.csv.gz", "lists.tsv", "lists.parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str) -> None:
    draw = np.random.default_rng(4)
    frame = pl.DataFrame(
        {
            "customer_id": [f"{n:05}" for n in draw.integers(0, 300, 4_000)],
            "sku": [f"s{n}" for n in draw.integers(0, 90, 4_000)],
            "rating": draw.random(4_000).round(6),
        }
    )
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if "tsv" in name else ",").encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert rows_of(imported(tmp_path, path)) == expected(list(frame.iter_rows()), 20)


async def check_publication(folder: Path, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": draw.integers(0, count // 11, count),
            "item": draw.integers(0, 500, count),
            "score": draw.random(count).round(4).astype(np.float32),
        }
    )
    frame.write_parquet(folder / "lists.parquet")
    made = imported(folder, folder / "lists.parquet", length=8)
    store, reports = MemoryStore(), list[tuple[int, int]]()
    await publish(made, store, PublishSettings("zstd"), on_progress=lambda done, total: reports.append((done, total)))
    (release,) = (await store.catalogue()).releases
    manifest = await verify(store, release.ref)
    wanted = expected([(str(u), str(i), float(str(np.float32(s)))) for u, i, s in frame.iter_rows()], 8)
    assert manifest.counts == {"meta": 1, "popular": 1, "user": len(wanted) - 1}
    assert rows_of(made) == wanted
    assert reports[-1] == (len(wanted), len(wanted))
    assert manifest.about["rows"] == count


async def test_rows_over_many_partitions_are_published_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_import, "PARTITION_ROWS", 2_000)
    await check_publication(tmp_path, 20_000, seed=5)


@pytest.mark.soak
async def test_half_a_million_rows_over_many_partitions_are_published_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_import, "PARTITION_ROWS", 70_000)
    await check_publication(tmp_path, scaled(500_000, least=100_000), SEED)


def test_the_planned_bytes_are_what_the_lists_take(tmp_path: Path) -> None:
    rows = [(f"user{n % 500}", f"item{n % 97}", n / 7) for n in range(5_000)]
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").write_csv(tmp_path / "lists.csv")
    made = imported(tmp_path, tmp_path / "lists.csv")
    taken = sum(len(key.encode()) + len(value) for batch in made.batches() for key, value in batch)
    assert taken <= made.plan().payload_bytes <= 1.3 * taken


def test_popular_similar_and_titles_come_from_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\nu,a,1\nu,b,2\n")
    (tmp_path / "popular.csv").write_text("segment,item,score\n,z,9\n,a,8\nfr,b,7\n")
    (tmp_path / "similar.csv").write_text("item,other,score\na,b,0.5\na,c,0.75\nq,a,1\n")
    (tmp_path / "titles.csv").write_text("item,title\na,An A\nc,A C\n")
    others = {name: tmp_path / f"{name}.csv" for name in ("popular", "similar", "titles")}
    made = imported(tmp_path, tmp_path / "lists.csv", **others)
    assert rows_of(made) == {
        "item:a": [("c", 0.75), ("b", 0.5)],
        "item:q": [("a", 1.0)],
        "popular:": [("z", 9.0), ("a", 8.0)],
        "popular:fr": [("b", 7.0)],
        "user:u": [("b", 2.0), ("a", 1.0)],
    }
    values = {row.key: decode(row.value[OFFSET_BYTES:]) for batch in made.batches() for row in batch}
    assert [item.get("title") for item in values["item:a"]] == ["A C", None]
    (tmp_path / "popular.csv").write_text("segment,item,score\nfr,b,7\n")
    made = imported(tmp_path, tmp_path / "lists.csv", popular=tmp_path / "popular.csv")
    assert rows_of(made)["popular:"] == [("a", 1.0), ("b", 1.0)]


def test_what_is_left_out_is_counted_and_scores_keep_their_digits(tmp_path: Path) -> None:
    long = "x" * 257
    (tmp_path / "lists.csv").write_text(f"user,item,score,title\nu,a,-1.5,T\n,a,1,\nu,,1,\n{long},a,1,\nu,a,2e-7,T\n")
    made = imported(tmp_path, tmp_path / "lists.csv")
    assert made.rows == 5
    assert made.left_out == {"no user": 1, "no item": 1, "user id over 256 bytes": 1, "named twice": 1}
    assert rows_of(made)["user:u"] == [("a", 2e-7)]
    pl.DataFrame({"user": ["u"], "item": [7.0], "score": [0.1]}, schema_overrides={"score": pl.Float32}).write_parquet(
        tmp_path / "lists.parquet"
    )
    assert rows_of(imported(tmp_path, tmp_path / "lists.parquet"))["user:u"] == [("7", 0.1)]


BAD = {
    "empty.csv": ("", "is empty"),
    "header.csv": ("user,item,score\n", "no rows"),
    "columns.csv": ("user,item,points\na,b,1\n", "looks like the score"),
    "nouser.csv": ("who,item,score\na,b,1\n", "looks like the user"),
    "word.csv": ("user,item,score\na,b,1\nb,c,many\n", "row 3, column 'score': the score 'many'"),
    "nan.csv": ("user,item,score\na,b,nan\n", "row 2"),
    "infinite.csv": ("user,item,score\na,b,1\na,c,-inf\n", "row 3"),
    "absent.csv": ("user,item,score\na,b,\n", "row 2"),
    "ragged.csv": ("user,item,score\na,b,1\nc,d\n", "row 3"),
    "nobody.csv": ("user,item,score\n,b,1\n", "Nothing is left of the 1 rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_one_sentence_that_names_what_and_where(tmp_path: Path, name: str) -> None:
    content, part = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        imported(tmp_path, tmp_path / name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_score_in_parquet_and_a_length_that_makes_no_sense_are_sentences(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["a", "b"], "item": [1, 2], "score": [1.0, float("nan")]}).write_parquet(
        tmp_path / "lists.parquet"
    )
    with pytest.raises(DataError, match="the score nan is not a finite number"):
        imported(tmp_path, tmp_path / "lists.parquet")
    with pytest.raises(SettingError, match="between 1 and 1000"):
        ImportSettings(tmp_path, length=0)


def test_a_temporary_disk_that_is_too_small_is_reported_before_anything_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists.csv").write_text("user,item,score\na,b,1\n")
    monkeypatch.setattr(list_import, "DISK_FACTOR", 1e15)
    with pytest.raises(DataError, match="set TMPDIR"):
        imported(tmp_path, tmp_path / "lists.csv")


@pytest.mark.parametrize("encoding", ["json", "zstd"])
async def test_a_model_is_ranked_again_and_its_draft_finished(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr("hotplate.offline.lists._BATCH", 5)
    model, store = checkerboard_model(), MemoryStore()
    put, left = store.put, 3

    async def put_some(draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise StoreUnavailable("the store went away")
        await put(draft, rows, part)

    monkeypatch.setattr(store, "put", put_some)
    with pytest.raises(StoreUnavailable):
        await publish(ModelLists(model, ListSettings()), store, PublishSettings(encoding))
    (draft,) = (await store.catalogue()).releases
    how = PublishSettings(encoding, resume=draft.id)
    result = (await publish(ModelLists(model, ListSettings()), store, how)).result
    assert (result.manifest.release, result.skipped) == (draft.id, 10 if encoding == "json" else 6)
    assert (await store.catalogue()).live == draft.id
    await verify(store, draft.ref)


def test_ids_are_read_as_a_training_reads_them(tmp_path: Path) -> None:
    rows = "17850.0,i,1\n12.0,i,2\nNULL,i,3\n,i,4\n"
    (tmp_path / "lists.csv").write_text("user,item,score\n" + rows)
    made = imported(tmp_path, tmp_path / "lists.csv")
    assert set(rows_of(made)) == {"popular:", "user:12", "user:17850"}
    assert made.left_out == {"no user": 2}
