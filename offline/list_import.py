"""Lists that somebody else computed, as rows of a release: read from files, sorted on disk, encoded batch by batch.

They may be larger than memory: rows are partitioned by owner on disk, and each partition is sorted in memory.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import choose_columns
from hotplate.offline.input.files import (
    DataFile,
    DataSource,
    Format,
    data_errors,
    fingerprint,
    input_files,
    named_paths,
)
from hotplate.offline.input.tables import (
    ROW,
    Rows,
    Table,
    TableShape,
    id_reasons,
    open_tables,
    text_of,
    titles_of,
)
from hotplate.offline.list_encoder import ListEncoder, RankedLists, check_length
from hotplate.offline.measurement import Items, Observe, ignore
from hotplate.stores.keys import ITEM, OVERALL, POPULAR, USER
from hotplate.stores.manifest import MAX_POPULAR_LISTS
from hotplate.stores.store import Plan, Row

if TYPE_CHECKING:
    from hotplate.offline.training import OnStage

# Rows that are sorted at once: about 150 MB with ids of ten characters.
PARTITION_ROWS = 1_000_000
# More would be too many small files; beyond this many, partitions hold more rows instead.
MAX_PARTITIONS = 250
# Bytes on disk, at most, per byte of owners and of what a row has besides: offsets and padding.
DISK_FACTOR = 1.05
_ROW_BYTES = 30
# How many owners are looked at to divide the rows into partitions of one size.
_SAMPLED_OWNERS = 200_000
POPULAR_LENGTH = 100
_NO_NUMBER = "score that is not a number"
_BATCH = 4096
_SCORE_BYTES = 19
# What is around an item in its list: names of fields, braces, quotes, separator.
_FRAME_BYTES = 20


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """Which files make up the release, and how long its lists are; *columns* are names by role, None to guess.

    Those of *lists* and *more* are of the same columns; one of them may be `-`, standard input. Without them a release
    has lists of *similar* items, *popular* lists, or both.
    """

    lists: DataSource | None = None
    more: Sequence[DataSource] = ()
    popular: DataSource | None = None
    similar: DataSource | None = None
    titles: DataSource | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    form: Format = field(default_factory=Format)
    length: int = 20

    def __post_init__(self) -> None:
        check_length(self.length)
        if self.lists is None and self.popular is None and self.similar is None:
            raise SettingError("There is nothing to import; give files of lists, or --similar or --popular.")


class ItemNumbers:
    """Numbers items from 0, in the order in which they come; lives as long as lists that name them by their numbers."""

    def __init__(self) -> None:
        self._categories = pl.Categories.random()
        # polars forgets categories that no data are of.
        self._held = pl.Series(dtype=pl.Categorical(self._categories))

    def number(self, items: pl.Series) -> pl.Series:
        """Return the numbers of *items*, uint32; those that are new get the next ones."""
        return items.cast(pl.Categorical(self._categories)).to_physical()

    def ids(self) -> pl.Series:
        """Return all items so far, in the order of their numbers."""
        return self._categories.to_series().cast(pl.String)

    def ranks(self) -> pl.Series:
        """Return the place of each item so far in the order of their bytes, by number."""
        return self.ids().rank("ordinal")


@dataclass(frozen=True, slots=True)
class SortedLists:
    """Lists in ascending order of their owners' bytes, on disk; lives as long as its folder.

    partitions   files with some of the lists each, in order; no owner is in two of them
    in_lists     in how many lists each item is, by its number
    owners       how many lists there are
    duplicates   rows left out because their owner and item had a higher score in another
    """

    partitions: list[Path]
    in_lists: npt.NDArray[np.int64]
    owners: int
    duplicates: int

    def read(self) -> Iterator[RankedLists]:
        """Yield the lists, those of a partition at a time."""
        for partition in self.partitions:
            with data_errors(partition):
                lists = pl.read_ipc(partition)
            yield ranked_lists(lists)


class ImportedLists:
    """All lists of one import, sorted in a folder and encoded batch by batch; a ListSource that lives as long as it."""

    def __init__(self, settings: ImportSettings, folder: Path, on_progress: "OnStage") -> None:
        """Read, check and sort the files; nothing but ids, titles and counts of items stays in memory."""
        self._settings = settings
        given = [] if settings.lists is None else [settings.lists, *settings.more]
        others = [[] if path is None else [path] for path in (settings.similar, settings.popular, settings.titles)]
        numbers, self._notes = ItemNumbers(), list[str]()
        with ExitStack() as stack:
            files, similar_files, popular_files, title_files = (
                stack.enter_context(input_files(paths)) for paths in (given, *others)
            )
            scored = self._read(files, named_paths(given), "user", "item", settings.columns)
            similar = self._read(similar_files, named_paths(others[0]), "item", "other")
            popular = self._read(popular_files, named_paths(others[1]), "segment", "item")
            self._users = _sorted(scored, numbers, settings.length, folder / "users", partial(on_progress, "sort"))
            report = partial(on_progress, "similar")
            self._similar = _sorted(similar, numbers, settings.length, folder / "similar", report)
            counted = self._similar if scored is None else self._users
            self._popular = _popular(popular, counted, numbers, max(settings.length, POPULAR_LENGTH))
            titles = {} if scored is None else titles_of(scored.kept, named_paths(given))
            if title_files:
                named = {role: settings.columns.get(role) for role in ("item", "title")}
                titled = text_of(title_files, named_paths(others[2]), ("item", "title"), **named)
                titles = titles_of(titled.lazy(), named_paths(others[2]))
            self._fingerprint = fingerprint([*files, *popular_files, *similar_files, *title_files])
        read = next(rows for rows in (scored, similar, popular) if rows is not None)
        self.rows, self.left_out = read.total, dict(read.left_out)
        if self._users.duplicates:
            self.left_out["named twice"] = self._users.duplicates
        self._items = numbers.ids()
        self._titles = [titles.get(item) for item in self._items]
        self._catalogue = len(titles.keys() | set(self._items))
        self._encoder = ListEncoder(self._items.to_list(), self._titles)

    def plan(self) -> Plan:
        """Return the rows and their bytes: exact but for the digits of scores."""
        titles = np.array([len((title or "").encode()) for title in self._titles])
        sizes = self._items.str.len_bytes().to_numpy() + titles + _SCORE_BYTES + _FRAME_BYTES
        sorted_lists = [self._users, self._similar]
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
        for lists in self._similar.read():
            yield from self._rows(ITEM, lists)
        yield from self._rows(POPULAR, self._popular)
        for lists in self._users.read():
            observe(lists.owners, lists.items, lists.lengths)
            yield from self._rows(USER, lists)

    def _rows(self, kind: str, lists: RankedLists) -> Iterator[list[Row]]:
        return (self._encoder.rows(kind, batch) for batch in lists.batches(_BATCH))

    def _read(
        self,
        files: Sequence[DataFile],
        source: str,
        owner: str,
        item: str,
        named: Mapping[str, str | None] | None = None,
    ) -> Rows | None:
        if not files:
            return None
        # Names and a header of the command line are for the lists of users.
        form = self._settings.form if named is not None else Format()
        rows, said = read_scored(files, source, named or {}, form, owner=owner, item=item)
        self._notes += said
        return rows


def _sorted(
    rows: Rows | None, numbers: ItemNumbers, length: int, folder: Path, report: Callable[[int, int], None]
) -> SortedLists:
    if rows is None:
        return SortedLists([], np.zeros(0, dtype=np.int64), 0, 0)
    return sort_lists(rows, numbers, length, folder, report)


def read_scored(
    files: Sequence[DataFile],
    source: str,
    named: Mapping[str, str | None],
    form: Format,
    *,
    owner: str = "user",
    item: str = "item",
) -> tuple[Rows, list[str]]:
    """Read *files*, which messages call *source*: they are checked whole, and counted, before this returns.

    Returned are rows [owner: str, item: str, score: f64, finite, and title: str, if there is such a column], whose
    facts have `owner_bytes`, and notes on bad rows. *named* are columns by
    role, None or missing to guess; *owner* and *item* are the roles of those two columns. Rows without an owner or an
    item are left out; a segment that is missing is the overall one. Raises DataError for what cannot be read, for a
    score that is not a finite number, and if nothing is left.
    """
    tables = open_tables(files, form)
    required = [role for role in (owner, item, "score") if role != "segment"]
    guessed = (owner, item, "score", "title")
    columns = choose_columns(named, list(tables[0].schema), source, guessed=guessed, required=required)
    shapes = [_shape(table, columns, owner, item) for table in tables]
    owner_bytes = pl.col("owner").str.len_bytes().cast(pl.Int64).sum().alias("owner_bytes")
    rows = Rows(shapes, source, owner_bytes)
    note = rows.note_of_bad_rows()
    return rows, [] if note is None else [note]


def _shape(table: Table, columns: Mapping[str, str], owner: str, item: str) -> TableShape:
    """Return how *table* is read: owner, item, score and, if there is such a column, title."""
    name = columns["score"]
    # The digits of a float32 are those that it is written with, rather than those of the double that is nearest.
    is_float32 = table.schema[name] == pl.Float32
    score = pl.col(name).cast(pl.String).cast(pl.Float64) if is_float32 else table.number(name)
    whose = table.text(columns.get(owner))
    whose = whose.fill_null(OVERALL) if owner == "segment" else whose
    values = [whose.alias("owner"), table.text(columns[item]).alias("item"), score.alias("score")]
    if "title" in columns:
        values.append(table.text(columns["title"]).alias("title"))
    left_out = id_reasons({owner: "owner", item: "item"})
    left_out[_NO_NUMBER] = ~pl.col("score").is_finite().fill_null(value=False)
    return TableShape(table, values, left_out, {_NO_NUMBER: (name, "is not a finite number")})


def _popular(scored: Rows | None, lists: SortedLists, numbers: ItemNumbers, length: int) -> RankedLists:
    """Return the lists of *scored*, by segment, and the overall one: the items in most of *lists* if it has none."""
    counted = pl.DataFrame(
        {"item": numbers.ids().head(len(lists.in_lists)), "score": lists.in_lists.astype(np.float64)}
    )
    rows = counted.filter(pl.col("score") > 0).select(owner=pl.lit(OVERALL), item="item", score="score")
    if scored is not None:
        given = scored.kept.select("owner", "item", "score").collect(engine="streaming")
        segments = given.get_column("owner").n_unique()
        if segments >= MAX_POPULAR_LISTS:
            raise DataError(
                f"The popular lists are of {segments:,} segments; at most {MAX_POPULAR_LISTS - 1:,} can have one each."
            )
        rows = given if (given.get_column("owner") == OVERALL).any() else pl.concat([rows, given])
    numbered = rows.with_columns(numbers.number(rows.get_column("item")))
    return ranked_lists(rank_rows(numbered, numbers.ranks(), length)[0])


def sort_lists(
    scored: Rows, numbers: ItemNumbers, length: int, folder: Path, on_progress: Callable[[int, int], None]
) -> SortedLists:
    """Sort rows into files in a new *folder*: by owner, highest score and item; at most *length* items per owner.

    Items get their *numbers*. *on_progress* is called with (rows done, twice the rows), because each is handled twice.
    Raises DataError if the disk is too small (then nothing is written) or gets full.
    """
    _check_free_space(scored, folder.parent)
    folder.mkdir()
    done, total = 0, 2 * scored.facts["rows"]
    on_progress(done, total)
    with data_errors(folder):
        bounds = _bounds(scored)
        rows = scored.kept.select("owner", "item", "score")
        for batch in rows.collect_batches(chunk_size=PARTITION_ROWS, maintain_order=False):
            _spill(batch, numbers, bounds, folder, f"{done}.arrow")
            done += batch.height
            on_progress(done, total)
    ranks = numbers.ranks()
    partitions, in_lists, owners, duplicates = list[Path](), np.zeros(len(ranks), dtype=np.int64), 0, 0
    for pieces in sorted(folder.iterdir(), key=lambda each: int(each.name)):
        with data_errors(folder):
            partition = pl.concat(pl.read_ipc(piece) for piece in pieces.iterdir())
            shutil.rmtree(pieces)
            lists, repeated = rank_rows(partition, ranks, length)
            partitions.append(pieces.with_suffix(".arrow"))
            lists.write_ipc(partitions[-1])
        owners += lists.height
        duplicates += repeated
        in_lists += np.bincount(lists.get_column("item").explode().to_numpy(), minlength=len(ranks))
        done += partition.height
        on_progress(done, total)
    return SortedLists(partitions, in_lists, owners, duplicates)


def rank_rows(rows: pl.DataFrame, ranks: pl.Series, length: int) -> tuple[pl.DataFrame, int]:
    """Return [owner, item: list, score: list], ascending by owner, and how many rows named an item once more.

    *rows* are [owner, item: its number, score]. A list begins with its highest score, equal ones in the order of the
    *ranks* of the items; it keeps *length* items, and the highest score of each.
    """
    names = rows.get_column("owner").unique().sort()
    # Numbers sort faster than texts. Plus zero, because floats have two zeros, which are equal.
    owner, rank = pl.col("owner").cast(pl.Enum(names)), ranks.gather(rows.get_column("item"))
    best = rows.select(owner, "item", pl.col("score") + 0.0, rank=rank).sort(
        "owner", "score", "rank", descending=[False, True, False]
    )
    pair = pl.col("owner").to_physical().cast(pl.UInt64) * len(ranks) + pl.col("item")
    once = best.filter(pair.is_first_distinct())
    lists = once.group_by("owner", maintain_order=True).agg(pl.col("item", "score").head(length))
    return lists.with_columns(pl.col("owner").cast(pl.String)), best.height - once.height


def ranked_lists(lists: pl.DataFrame) -> RankedLists:
    """Return what `rank_rows` does as flat arrays."""
    return RankedLists(
        lists.get_column("owner").to_list(),
        lists.get_column("item").list.len().to_numpy().astype(np.int64),
        lists.get_column("item").explode().to_numpy(),
        lists.get_column("score").explode().to_numpy(),
    )


def _bounds(scored: Rows) -> pl.Series:
    """Return the owners at which partitions begin, so each partition gets about as many rows."""
    count = min(-(-scored.facts["rows"] // PARTITION_ROWS), MAX_PARTITIONS)
    if count == 1:
        return pl.Series(dtype=pl.String)
    step = -(-scored.total // _SAMPLED_OWNERS)
    sampled = scored.kept.filter(pl.col(ROW) % step == 0).select("owner").collect(engine="streaming")
    owners = sampled.to_series().sort()
    starts = [len(owners) * at // count for at in range(1, count)] if len(owners) else []
    return owners.gather(starts).unique(maintain_order=True)


def _spill(rows: pl.DataFrame, numbers: ItemNumbers, bounds: pl.Series, folder: Path, name: str) -> None:
    # Computed here, because inside a query it would not stream: the whole file would be in memory.
    partition = bounds.search_sorted(rows.get_column("owner"), side="right")
    numbered = rows.with_columns(numbers.number(rows.get_column("item")), partition=partition)
    for (number,), part in numbered.partition_by("partition", as_dict=True, include_key=False).items():
        (folder / str(number)).mkdir(exist_ok=True)
        part.write_ipc(folder / str(number) / name)


def _check_free_space(rows: Rows, folder: Path) -> None:
    needed = int((rows.facts["owner_bytes"] + rows.facts["rows"] * _ROW_BYTES) * DISK_FACTOR)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"Sorting takes about {needed / 1e6:,.0f} MB in {folder} and {free / 1e6:,.0f} MB are free; "
            "free some, or set TMPDIR to a folder on a larger disk."
        )
