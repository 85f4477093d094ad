"""Lists that somebody else computed, as rows of a release: read from files, sorted on disk, encoded batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from offline.errors import DataError
from offline.external_sort import ItemNumbers, ScoredRows, SortedLists, rank_rows, ranked_lists, sort_lists
from offline.input import notes
from offline.input.columns import choose_columns
from offline.input.files import DataFile, Format, find_files, fingerprint, input_files, named_paths
from offline.input.tables import Rows, Table, TableShape, id_reasons, open_tables, read_titles, with_whole_numbers
from offline.list_encoder import ListEncoder, RankedLists, check_length
from offline.measurement import Items, Observe, ignore
from stores.keys import ITEM, OVERALL, POPULAR, USER
from stores.manifest import MAX_POPULAR_LISTS
from stores.store import Plan, Row

POPULAR_LENGTH = 100
_BATCH = 4096
_SCORE_BYTES = 19
# What is around an item in its list: names of fields, braces, quotes, separator.
_FRAME_BYTES = 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """
    Which files make up the release, and how long its lists are; *columns* are names by role, None to guess.

    Those of *lists* and *more* are of the same columns; one of them may be `-`, standard input.
    """

    lists: Path
    more: Sequence[Path] = ()
    popular: Path | None = None
    similar: Path | None = None
    titles: Path | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    form: Format = field(default_factory=Format)
    length: int = 20

    def __post_init__(self) -> None:
        check_length(self.length)


class ImportedLists:
    """All lists of one import, sorted in a folder and encoded batch by batch; a ListSource that lives as long as it."""

    def __init__(self, settings: ImportSettings, folder: Path, on_progress: Progress) -> None:
        """Read, check and sort the files; nothing but ids, titles and counts of items stays in memory."""
        self._settings = settings
        given, numbers = [settings.lists, *settings.more], ItemNumbers()
        with input_files(given) as files:
            scored = read_scored(files, named_paths(given), settings.columns, settings.form)
            similar = self._read(settings.similar, owner="item", item="other")
            popular = self._read(settings.popular, owner="segment", item="item")
            self._users = sort_lists(scored, numbers, settings.length, folder / "users", partial(on_progress, "sort"))
            titles = read_titles(settings.titles, settings.columns, settings.form, scored.frame, named_paths(given))
            others = [path for path in (settings.popular, settings.similar, settings.titles) if path is not None]
            self._fingerprint = fingerprint(files + [file for path in others for file in find_files(path)])
        self._similar = None
        if similar is not None:
            report = partial(on_progress, "similar")
            self._similar = sort_lists(similar, numbers, settings.length, folder / "similar", report)
        self._popular = _popular(popular, self._users, numbers, max(settings.length, POPULAR_LENGTH))
        self.rows, self.left_out, self._notes = scored.rows.total, dict(scored.rows.left_out), list(scored.notes)
        if self._users.duplicates:
            self.left_out["named twice"] = self._users.duplicates
        self._items = numbers.ids()
        self._notes += filter(None, [notes.of_similar_ids("item", self._items)])
        self._titles = [titles.get(item) for item in self._items]
        self._catalogue = len(titles.keys() | set(self._items))
        self._encoder = ListEncoder(self._items.to_list(), self._titles)

    def plan(self) -> Plan:
        """Return the rows and their bytes: exact but for the digits of scores."""
        titles = np.array([len((title or "").encode()) for title in self._titles])
        sizes = self._items.str.len_bytes().to_numpy() + titles + _SCORE_BYTES + _FRAME_BYTES
        sorted_lists = [self._users] if self._similar is None else [self._users, self._similar]
        payload = sum(int(sizes[: len(lists.in_lists)] @ lists.in_lists) for lists in sorted_lists)
        rows = sum(lists.owners for lists in sorted_lists) + len(self._popular.owners)
        return Plan(rows, payload + len(self._popular.items) * int(sizes.max()) + rows * 32)

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""
        return {
            "hotplate": version("hotplate"),
            "engine": "import",
            "data": self._fingerprint,
            "list_length": self._settings.length,
            "rows": self.rows,
            "left_out": self.left_out,
            "notes": self._notes,
        }

    def items(self) -> Items:
        """Return all items; the catalogue is what all the files name, and not known if there are only the lists."""
        overall = next(self._popular.batches(1))  # ahead of the segments, whose names are longer than its own
        given = (self._settings.similar, self._settings.popular, self._settings.titles)
        return Items(self._items.to_list(), overall.items, self._catalogue if any(given) else None)

    def batches(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, a few thousand at a time; those of users are observed."""
        for lists in self._similar.read() if self._similar is not None else ():
            yield from self._rows(ITEM, lists)
        yield from self._rows(POPULAR, self._popular)
        for lists in self._users.read():
            observe(lists.owners, lists.items, lists.lengths)
            yield from self._rows(USER, lists)

    def _rows(self, kind: str, lists: RankedLists) -> Iterator[list[Row]]:
        return (self._encoder.rows(kind, batch) for batch in lists.batches(_BATCH))

    def _read(self, path: Path | None, owner: str, item: str) -> ScoredRows | None:
        if path is None:
            return None
        return read_scored(find_files(path), str(path), {}, self._settings.form, owner=owner, item=item)


def read_scored(
    files: Sequence[DataFile],
    source: str,
    named: Mapping[str, str | None],
    form: Format,
    *,
    owner: str = "user",
    item: str = "item",
) -> ScoredRows:
    """
    Read *files*, which messages call *source*: they are checked whole, and counted, before this returns.

    *named* are columns by role, None or missing to guess; *owner* and *item* are the roles of those two columns. Rows
    without an owner or an item are left out. Raises DataError for what cannot be read, for a score that is not a finite
    number, and where nothing is left.
    """
    tables = open_tables(files, form, source)
    required = [role for role in (owner, item, "score") if role != "segment"]
    guessed = (owner, item, "score", "title")
    columns = choose_columns(named, list(tables[0].schema), source, guessed=guessed, required=required)
    tables, whole = with_whole_numbers(tables, [columns[role] for role in (owner, item) if role in columns])
    shapes = [_shape(table, columns, owner, item) for table in tables]
    owner_bytes = pl.col("owner").str.len_bytes().cast(pl.Int64).sum().alias("owner_bytes")
    rows = Rows(shapes, source, "score", columns["score"], owner_bytes, advice="mend the rows")
    taken = {role: columns.get(role) for role in (owner, item, "score")}
    said = [note for note in (notes.of_header(tables, taken), notes.of_whole_numbers(whole)) if note is not None]
    return ScoredRows(rows.kept.with_columns(pl.col("owner").fill_null("")), rows, said)


def _shape(table: Table, columns: Mapping[str, str], owner: str, item: str) -> TableShape:
    """Return how *table* is read: owner, item, score and, if there is such a column, title."""
    name = columns["score"]
    # The digits of a float32 are those that it is written with, rather than those of the double that is nearest.
    is_float32 = table.schema[name] == pl.Float32
    score = pl.col(name).cast(pl.String).cast(pl.Float64) if is_float32 else table.number(name)
    values = [table.text(columns.get(owner)).alias("owner"), table.text(columns[item]).alias("item")]
    values.append(score.alias("score"))
    if "title" in columns:
        values.append(table.text(columns["title"]).alias("title"))
    left_out = id_reasons({owner: "owner", item: "item"})
    return TableShape(table, values, left_out, ~pl.col("score").is_finite().fill_null(value=False))


def _popular(scored: ScoredRows | None, users: SortedLists, numbers: ItemNumbers, length: int) -> RankedLists:
    """Return the lists of *scored*, by segment, and the overall one: that of the items in most lists if it has none."""
    counted = pl.DataFrame(
        {"item": numbers.ids().head(len(users.in_lists)), "score": users.in_lists.astype(np.float64)}
    )
    rows = counted.filter(pl.col("score") > 0).select(owner=pl.lit(OVERALL), item="item", score="score")
    if scored is not None:
        given = scored.frame.select("owner", "item", "score").collect(engine="streaming")
        segments = given.get_column("owner").n_unique()
        if segments >= MAX_POPULAR_LISTS:
            raise DataError(
                f"The popular lists are of {segments:,} segments; at most {MAX_POPULAR_LISTS - 1:,} can have one each."
            )
        rows = given if (given.get_column("owner") == OVERALL).any() else pl.concat([rows, given])
    numbered = rows.with_columns(numbers.number(rows.get_column("item")))
    return ranked_lists(rank_rows(numbered, numbers.ranks(), length)[0])
