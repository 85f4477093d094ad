"""What is evaluated: a truth, and candidates, lists for its users.

A truth is read from files, and so are the histories of users. Lists are of files, a model, or a release of a store.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hotplate.offline.input.columns import choose_columns
from hotplate.offline.input.files import Format, data_errors, find_files
from hotplate.offline.input.matrix import Matrix, to_matrix
from hotplate.offline.input.tables import Rows, Table, TableShape, id_reasons, open_tables, with_whole_numbers
from hotplate.offline.list_encoder import MAX_LENGTH
from hotplate.offline.list_import import read_scored
from hotplate.offline.measurement import read_lists
from hotplate.offline.model import Model
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import Item
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

_ROLES = ("user", "item")
_NO_NUMBER = "rating that is not a number"
_SCHEMA = {"user": pl.String, "item": pl.String, "score": pl.Float64}


@dataclass(frozen=True, slots=True)
class Truth:
    """What users chose; lives as long as one evaluation.

    pairs      [user, item, and rating: f64, if there is one], each pair once, by user and item in the order of bytes
    rows       how many there were, those left out among them
    left_out   how many rows were left out, by reason; zeros not listed
    """

    pairs: pl.DataFrame
    rows: int
    left_out: dict[str, int]

    @property
    def users(self) -> pl.Series:
        """All users, each once, in ascending order."""
        return self.pairs.get_column("user").unique().sort()


def read_truth(path: Path, named: Mapping[str, str | None], delimiter: str | None = None) -> Truth:
    """Read the file, or the folder of files of one kind, at *path*.

    *named* are columns by role, user, item and rating: the first two are guessed if they are None, a rating is read
    only if it is named, and is the mean of a pair's rows. Raises DataError for what cannot be read, for a rating
    that is not a finite number, and if nothing is left.
    """
    tables = open_tables(find_files(path), Format(delimiter), str(path))
    columns = choose_columns(named, list(tables[0].schema), str(path), guessed=_ROLES, required=_ROLES)
    tables, _ = with_whole_numbers(tables, [columns[role] for role in _ROLES])
    shapes = [_shape(table, columns) for table in tables]
    rows = Rows(shapes, str(path))
    ratings = [pl.col("rating").mean()] if "rating" in columns else []
    with data_errors(path):
        pairs = rows.kept.group_by(_ROLES).agg(ratings).sort(_ROLES).collect(engine="streaming")
    return Truth(pairs, rows.total, rows.left_out)


def read_history(path: Path, named: Mapping[str, str | None], delimiter: str | None = None) -> Matrix:
    """Read what users had before as `read_truth` does; raises DataError also for fewer than two users, or items."""
    return to_matrix(read_truth(path, named, delimiter).pairs.with_columns(weight=pl.lit(1.0)))


def _shape(table: Table, columns: Mapping[str, str]) -> TableShape:
    values = [table.text(columns[role]).alias(role) for role in _ROLES]
    left_out, bad = id_reasons({role: role for role in _ROLES}), dict[str, tuple[str, str]]()
    if "rating" in columns:
        name, rating = columns["rating"], pl.col("rating")
        number = table.number(name).fill_null(inf).fill_nan(None)
        values.append(pl.when(~table.is_absent(name)).then(number).alias("rating"))
        left_out |= {"no rating": rating.is_null(), _NO_NUMBER: rating.is_infinite()}
        bad[_NO_NUMBER] = name, "is not a finite number"
    return TableShape(table, values, left_out, bad)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Lists that are evaluated; lives as long as that.

    origin       what people call them
    lists        [user, item, score], at most k rows a user, who stand together, best first; users of the truth only
    predictions  [user, item, score], for as many pairs of the truth as there are scores
    popular      the items that users without a list are served, best first; None if that is not known
    history      what users had before, where the origin knows it
    """

    origin: str
    lists: pl.DataFrame
    predictions: pl.DataFrame
    popular: pl.Series | None = None
    history: Matrix | None = None


@dataclass(frozen=True, slots=True)
class LiveRelease:
    """What is live in a store: its id, what its manifest says of its origin, and the items of users' lists, by user."""

    id: str
    about: Mapping[str, Any]
    lists: Mapping[str, Sequence[str]]


def from_files(
    path: Path, pairs: pl.DataFrame, k: int, named: Mapping[str, str | None], form: Format | None = None
) -> Candidate:
    """Read rows of user, item and score, as `import` does; of an item that a user has twice, the higher score counts.

    *pairs* [user, item] are those of the truth: memory grows with the lists of their users, and not with the file.
    Equal scores are in the order of the item ids. Raises DataError as `read_scored` does.
    """
    scored = read_scored(find_files(path), str(path), named, form or Format())[0].kept
    wanted = pairs.select(owner="user").unique().lazy()
    once = scored.join(wanted, on="owner", how="semi").group_by(user="owner", item="item").agg(pl.col("score").max())
    with data_errors(path):
        rows = once.sort("user", "score", "item", descending=[False, True, False]).collect(engine="streaming")
    return Candidate(str(path), rows.group_by("user", maintain_order=True).head(k), _predictions(rows, pairs))


def from_model(model: Model, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Compute the lists of a model, without what users had already; those that it does not know have none."""
    matrix = model.matrix
    known = pl.DataFrame({"user": matrix.user_ids, "row": np.arange(len(matrix.user_ids), dtype=np.int32)})
    users = pairs.select("user").unique().join(known, on="user").sort("row")
    rows, ids = users.get_column("row").to_numpy(), pl.Series("item", matrix.item_ids, dtype=pl.String)
    items, scores = model.ranker.recommend(matrix.user_items, rows, k)
    listed = items >= 0
    lists = pl.DataFrame(
        {
            "user": users.get_column("user").gather(np.nonzero(listed)[0]),
            "item": ids.gather(items[listed]),
            "score": scores[listed],
        },
        schema=_SCHEMA,
    )
    popular = ids.gather(model.popular.items)
    return Candidate(origin, lists, _predictions(lists, pairs), popular, matrix)


async def from_release(reader: Reader, release: ReleaseRef, origin: str, pairs: pl.DataFrame, k: int) -> Candidate:
    """Read the lists of a release, one lookup for each user of *pairs*, and the popular list for everybody.

    Raises ReleaseCorrupt for a damaged list, and StoreError if one cannot be read.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA}
    users = pairs.get_column("user").unique().sort()
    async for user, items in _read(reader, release, [USER + user for user in users]):
        columns["user"] += [user] * len(items)
        columns["item"] += [item["id"] for item in items]
        columns["score"] += [item["score"] for item in items]
    popular = [item["id"] async for _, items in _read(reader, release, [POPULAR + OVERALL]) for item in items]
    whole = pl.DataFrame(columns, schema=_SCHEMA)
    lists = whole.group_by("user", maintain_order=True).head(k)
    return Candidate(origin, lists, _predictions(whole, pairs), pl.Series("item", popular, dtype=pl.String))


async def read_live(reader: Reader, users: Sequence[str], k: int) -> LiveRelease | None:
    """Read *k* items of the lists of *users* in the live release; None if nothing is live. Raises as above."""
    release = (await reader.catalogue()).live_ref
    if release is None:
        return None
    found = _read(reader, release, [USER + user for user in users], k)
    lists = {user: [item["id"] for item in items] async for user, items in found}
    return LiveRelease(release.id, (await load_manifest(reader, release)).about, lists)


async def _read(
    reader: Reader, release: ReleaseRef, keys: Sequence[str], depth: int = MAX_LENGTH
) -> AsyncIterator[tuple[str, list[Item]]]:
    """Yield those *keys* that *release* has, without their kind, and the first items of each; a damaged one raises."""
    decode = await load_decode(reader, release, await load_manifest(reader, release))
    async for name, found in read_lists(reader, release, decode, keys, depth):
        if isinstance(found, ReleaseCorrupt):
            raise found
        yield name, found


def _predictions(lists: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    return lists.join(pairs, on=["user", "item"], how="semi")
