"""Truth: the pairs of user and item that lists are held against, or that users had before, read from a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

import polars as pl

from offline.errors import DataError
from offline.input.columns import choose_columns
from offline.input.files import Format, data_errors, find_files
from offline.input.matrix import Matrix, to_matrix
from offline.input.tables import Rows, Table, TableShape, id_reasons, open_tables, with_whole_numbers

_ROLES = ("user", "item")


@dataclass(frozen=True, slots=True)
class Truth:
    """
    What users chose; lives as long as one evaluation.

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
    """
    Read the file, or the folder of files of one kind, at *path*.

    *named* are columns by role, user, item and rating: the first two are guessed where they are None, a rating is read
    only where it is named, and is the mean of a pair's rows. Raises DataError for what cannot be read, for a rating
    that is not a finite number, and where nothing is left.
    """
    tables = open_tables(find_files(path), Format(delimiter), str(path))
    columns = choose_columns(named, list(tables[0].schema), str(path), guessed=_ROLES, required=_ROLES)
    tables, _ = with_whole_numbers(tables, [columns[role] for role in _ROLES])
    shapes = [_shape(table, columns) for table in tables]
    rows = Rows(shapes, str(path), "rating", columns.get("rating"), advice="mend the rows")
    ratings = [pl.col("rating").mean()] if "rating" in columns else []
    with data_errors(path):
        pairs = rows.kept.group_by(_ROLES).agg(ratings).sort(_ROLES).collect(engine="streaming")
    return Truth(pairs, rows.total, rows.left_out)


def read_history(path: Path, named: Mapping[str, str | None], delimiter: str | None = None) -> Matrix:
    """Read what users had before as `read_truth` does; raises DataError also for fewer than two users, or items."""
    return to_matrix(read_truth(path, named, delimiter).pairs.with_columns(weight=pl.lit(1.0)))


def read_lines(path: Path) -> Truth:
    """
    Read the files of the papers on graph models: a line for each user, `user item item …`.

    Raises DataError for a file that cannot be read, or without a pair.
    """
    with data_errors(path):
        lines = [line.split() for line in path.read_text().splitlines()]
    found = [(line[0], item) for line in lines for item in line[1:]]
    if not found:
        raise DataError(f"{path} has no pair; each of its lines is to be: user item item ….")
    pairs = pl.DataFrame(found, schema=dict.fromkeys(_ROLES, pl.String), orient="row").unique().sort(_ROLES)
    return Truth(pairs, len(found), {})


def _shape(table: Table, columns: Mapping[str, str]) -> TableShape:
    values = [table.text(columns[role]).alias(role) for role in _ROLES]
    left_out, invalid = id_reasons({role: role for role in _ROLES}), pl.lit(value=False)
    if "rating" in columns:
        name, rating = columns["rating"], pl.col("rating")
        number = table.number(name).fill_null(inf).fill_nan(None)
        values.append(pl.when(~table.is_absent(name)).then(number).alias("rating"))
        left_out["no rating"] = rating.is_null()
        invalid = rating.is_infinite()
    return TableShape(table, values, left_out, invalid)
