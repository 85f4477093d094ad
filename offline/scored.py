"""Rows of lists that somebody else computed, in one shape: whose list, which item, and its score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from offline.columns import find_column, guess_column
from offline.errors import DataError
from offline.files import reading
from offline.tables import Table, open_tables
from offline.values import MAX_ID_BYTES, number_of, text_of

_SAMPLE = 200_000


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file of lists by role (`user`, `item`, `other`, `segment`), each None until it is known."""

    owner: str | None
    item: str
    score: str
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """
    The rows of one file, or folder, of lists, to be scanned as often as needed.

    frame      [owner: str, item: str, score: f64, finite, and title: str, if there is such a column], kept rows only
    rows       how many there were, those left out among them
    kept       how many were not left out
    left_out   how many rows were left out, by reason; zeros not listed
    id_bytes   bytes of all owners and items of the rows that are kept
    owners     owners of rows taken at even distances, ascending; as often as they came
    """

    frame: pl.LazyFrame
    rows: int
    kept: int
    left_out: dict[str, int]
    id_bytes: int
    owners: pl.Series


def choose(tables: Sequence[Table], named: dict[str, str | None], owner: str, item: str, place: Path) -> Columns:
    """
    Return the columns as *named* by role, or guessed; *owner* and *item* are the roles that those two columns have.

    Only a `segment` may be missing. Raises DataError, which lists the columns, for any other that cannot be found.
    """
    available = list(tables[0].schema)
    found = dict[str, str | None]()
    for role in (owner, item, "score", "title"):
        name = named.get(role)
        if name is not None:
            found[role] = find_column(name, available, role, str(place))
        else:
            found[role] = guess_column(role, available, found.values())
        if found[role] is None and role not in ("title", "segment"):
            raise DataError(
                f"No column of {place} looks like the {role}; name it {role!r}"
                f"{f' or give --{role}-column' if role in named else ''}. Its columns are: {', '.join(available[:40])}."
            )
    return Columns(found[owner], str(found[item]), str(found["score"]), found["title"])


def read_scored(
    path: Path,
    named: dict[str, str | None] | None = None,
    *,
    owner: str = "user",
    item: str = "item",
    delimiter: str | None = None,
) -> Scored:
    """
    Read the file, or the folder of files of one kind, at *path*: it is checked whole, and counted, before this returns.

    Rows without an owner or an item are left out. Raises DataError for what cannot be read, for a score that is not a
    finite number, and where nothing is left.
    """
    tables = open_tables(path, delimiter)
    columns = choose(tables, named or {}, owner, item, path)
    reasons, frames = list[str](), list[pl.LazyFrame]()
    for number, table in enumerate(tables):
        left_out = _left_out(table, columns, owner, item)
        reasons = list(left_out)
        frames.append(_shaped(table, columns, number, left_out))
    frame = pl.concat(frames)
    survey = _survey(frame, path)
    if survey.get_column("bad").sum():
        raise _bad_score(frame, tables, columns)
    counts = dict(survey.select("why", "rows").iter_rows())
    rows, kept = sum(counts.values()), counts.get(0, 0)
    omitted = {reason: counts[at] for at, reason in enumerate(reasons, start=1) if at in counts}
    if not kept:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in omitted.items())
        raise DataError(f"Nothing is left of the {rows:,} rows of {path}: {listed}; mend the rows.")
    clean = frame.filter(pl.col("why") == 0)
    sampled = clean.filter(pl.col("row") % -(-rows // _SAMPLE) == 0).select("owner")
    with reading(path):
        owners = sampled.collect(engine="streaming").to_series().sort()
    id_bytes = int(survey.filter(pl.col("why") == 0).get_column("bytes").item())
    return Scored(clean.drop("row", "file", "why", "bad"), rows, kept, omitted, id_bytes, owners)


def _survey(frame: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """Return, for each `why` that occurs, the number of rows, of bad ones, and of bytes of ids."""
    size = pl.col("owner").str.len_bytes().cast(pl.Int64) + pl.col("item").str.len_bytes()
    aggregates = [pl.len().alias("rows"), pl.col("bad").sum(), size.sum().alias("bytes")]
    with reading(path):
        return frame.group_by("why").agg(aggregates).collect(engine="streaming")


def _left_out(table: Table, columns: Columns, owner: str, item: str) -> dict[str, pl.Expr]:
    """Return the reasons to leave a row out, in the order in which they are tried, each with its condition."""
    reasons = dict[str, pl.Expr]()
    for role, name in ((owner, columns.owner), (item, columns.item)):
        text = _text(table, name)
        if role != "segment":
            reasons[f"no {role}"] = text.is_null()
        reasons[f"{role} id over {MAX_ID_BYTES} bytes"] = text.str.len_bytes() > MAX_ID_BYTES
    return reasons


def _shaped(table: Table, columns: Columns, number: int, left_out: dict[str, pl.Expr]) -> pl.LazyFrame:
    numbered = [pl.when(condition).then(pl.lit(at)) for at, condition in enumerate(left_out.values(), start=1)]
    why = pl.coalesce(*numbered, pl.lit(0)).cast(pl.UInt8)
    dtype = table.schema[columns.score]
    # The digits of a float32 are those that it is written with, rather than those of the double that is nearest.
    score = (
        pl.col(columns.score).cast(pl.String).cast(pl.Float64)
        if dtype == pl.Float32
        else number_of(columns.score, dtype)
    )
    values = [
        _text(table, columns.owner).fill_null("").alias("owner"),
        _text(table, columns.item).fill_null("").alias("item"),
        score.alias("score"),
    ]
    if columns.title is not None:
        values.append(_text(table, columns.title).alias("title"))
    return table.frame.with_row_index("row").select(
        pl.col("row"),
        pl.lit(number).alias("file"),
        why.alias("why"),
        (~score.is_finite().fill_null(value=False) & (why == 0)).alias("bad"),
        *values,
    )


def _bad_score(frame: pl.LazyFrame, tables: Sequence[Table], columns: Columns) -> DataError:
    number, row = frame.filter("bad").select("file", "row").head(1).collect().row(0)
    table = tables[number]
    value = table.frame.slice(row, 1).select(columns.score).collect().item()
    return DataError(
        f"{table.file}, row {row + 2}, column {columns.score!r}: the score {value!r} is not a finite number; "
        "mend the row, remove it, or name another column."
    )


def _text(table: Table, name: str | None) -> pl.Expr:
    return pl.lit(None, dtype=pl.String) if name is None else text_of(name, table.schema[name], str(table.file))
