"""Import of computed lists that may exceed memory.

A row says that an item is in the list of an *owner* (a user, an item or a segment), with a score. Rows are partitioned
by owner on disk, and each partition is sorted in memory. Items are numbered in order of appearance.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.base.recommendations import ENTRY_TEXTS
from hotplate.offline.attributes import Attributes, read_attributes
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataFile, fingerprint, input_files, named_paths
from hotplate.offline.input.rows import Rows, read_roles, read_titles
from hotplate.offline.input.tables import ROW, open_tables
from hotplate.offline.list_encoder import POPULAR_LENGTH, ROW_BYTES, ListEncoder, RankedLists, check_length
from hotplate.offline.measurement import Items, Observe, ignore
from hotplate.offline.options import Format
from hotplate.stores.encoding import ITEM, OVERALL, POPULAR, USER
from hotplate.stores.manifest import MAX_POPULAR_LISTS
from hotplate.stores.origin import OriginRecord
from hotplate.stores.store import Plan, Row

if TYPE_CHECKING:
    from hotplate.offline.training import OnStage

# About 150 MB with ids of ten characters.
PARTITION_ROWS = 1_000_000
# Beyond it, partitions get larger.
MAX_PARTITIONS = 250
_SAMPLED_OWNERS = 200_000
# Columns beside those of entries.
_PARTITION = "\0partition"
_RANK = "\0rank"
# The roles of the columns of owners and items, by the kind of lists.
_OWNERS_AND_ITEMS = {"lists": ("user", "item"), "similar": ("item", "other"), "popular": ("segment", "item")}


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """The files of a release, and the length of its lists; *columns* are names by role, None to guess.

    *lists* and *more* have the same columns. *similar* or *popular* alone suffice. *attribute_kinds* are `number`,
    `text`, `date` or `list` by attribute, for those that are not to be guessed; *shown* are attributes that answers
    may have. Only the default list of a release has attributes.
    """

    lists: Path | None = None
    more: Sequence[Path] = ()
    popular: Path | None = None
    similar: Path | None = None
    titles: Path | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    form: Format = field(default_factory=Format)
    length: int = 20
    attributes: Path | None = None
    attribute_kinds: Mapping[str, str] = field(default_factory=dict)
    shown: Sequence[str] = ()

    @property
    def paths(self) -> dict[str, list[Path]]:
        """The files by kind; none of a kind that is not imported."""
        kinds = {
            "lists": (self.lists, *self.more),
            "popular": (self.popular,),
            "similar": (self.similar,),
            "titles": (self.titles,),
        }
        return {kind: [path for path in paths if path is not None] for kind, paths in kinds.items()}

    def __post_init__(self) -> None:
        check_length(self.length)
        if self.lists is None and self.popular is None and self.similar is None:
            raise SettingError("There is nothing to import; give files of lists, or --similar or --popular.")


class ItemNumbers:
    """Numbers items from 0 in order of appearance."""

    def __init__(self) -> None:
        self._categories = pl.Categories.random()
        # polars drops unreferenced categories
        self._held = pl.Series(dtype=pl.Categorical(self._categories))

    def number(self, items: pl.Series) -> pl.Series:
        """Return numbers of *items*, uint32; new items get the next ones."""
        return items.cast(pl.Categorical(self._categories)).to_physical()

    def ids(self) -> pl.Series:
        """Return all items by number."""
        return self._categories.to_series().cast(pl.String)

    def ranks(self) -> pl.Series:
        """Return items' ranks in byte order, by number."""
        return self.ids().rank("ordinal")


@dataclass(frozen=True, slots=True)
class SortedLists:
    """Lists on disk, ascending by their owners' bytes.

    partitions   files, each with all rows of its owners
    list_counts  number of lists that have an item, by item number
    owners       number of lists
    duplicates   rows left out for higher scores of the same owner and item
    """

    partitions: list[Path]
    list_counts: npt.NDArray[np.int64]
    owners: int
    duplicates: int

    def read(self) -> Iterator[RankedLists]:
        """Yield the lists of each partition."""
        for partition in self.partitions:
            with data_errors(partition):
                lists = pl.read_ipc(partition)
            yield ranked_lists(lists)


class Scored(NamedTuple):
    """The checked *rows* of files, and their *entries* [ROW, owner, item: str, score: f64, perhaps more fields]."""

    rows: Rows
    entries: pl.LazyFrame


class _Sources(NamedTuple):
    """The checked rows of an import's files by their kind (`lists`, `similar`, `popular`), and titles by item."""

    scored: Mapping[str, Scored]
    titles: Mapping[str, str]
    fingerprint: str


@contextmanager
def _opened_files(settings: ImportSettings) -> Iterator[_Sources]:
    """Yield the rows of the files that are imported: personal, similar and popular lists, and titles.

    Files at URLs are downloaded first, and deleted after the block. Raises DataError.
    """
    with ExitStack() as stack:
        files = {kind: stack.enter_context(input_files(paths)) for kind, paths in settings.paths.items()}
        # Only the personal lists have the columns that were named.
        named = dict(settings.columns)
        if files["titles"]:
            named["title"] = None

        scored = dict[str, Scored]()
        for kind, (owner, item) in _OWNERS_AND_ITEMS.items():
            if files[kind]:
                columns = named if kind == "lists" else {}
                source = named_paths(settings.paths[kind])
                scored[kind] = read_scored(files[kind], source, columns, settings.form, owner=owner, item=item)
        of_titles = {role: settings.columns.get(role) for role in ("item", "title")}
        rows = scored["lists"].rows.kept if "lists" in scored else pl.LazyFrame()
        titles = read_titles(files["titles"], named_paths(settings.paths["titles"]), of_titles, rows, settings.form)
        yield _Sources(scored, titles, fingerprint([*chain.from_iterable(files.values())]))


class ImportedLists:
    """A ListSource of imported files, sorted into *folder*; only item ids stay in memory.

    *name* is that of a named list, empty for the default one.
    """

    def __init__(self, settings: ImportSettings, folder: Path, on_progress: "OnStage", name: str = "") -> None:
        """Read and sort all files, which takes most of an import's time; raises DataError."""
        self._settings = settings
        numbers = ItemNumbers()
        length = settings.length

        with _opened_files(settings) as sources:
            scored = sources.scored
            on_users = partial(on_progress, "sort")
            on_similar = partial(on_progress, "similar")
            self._users = sort_lists(scored.get("lists"), numbers, length, folder / "users", on_users)
            self._similar = sort_lists(scored.get("similar"), numbers, length, folder / "similar", on_similar)

            # Without a file of popular items, those in the most lists are popular.
            counted = self._users if "lists" in scored else self._similar
            popular = _popular_lists(scored.get("popular"), counted, numbers, max(length, POPULAR_LENGTH))
            self._popular_lists = ranked_lists(popular.lists)
            titles = sources.titles

        rows = [kind.rows for kind in scored.values()]
        self.rows = sum(kind.total for kind in rows)
        self.left_out = _count_left_out(rows, self._users.duplicates + self._similar.duplicates + popular.duplicates)
        self._notes = [note for kind in rows for note in kind.notes]
        self._fingerprint = sources.fingerprint

        self._items = numbers.ids()
        self._catalogue = len(titles.keys() | set(self._items))
        self._encoder = ListEncoder(self._items.to_list(), [titles.get(item) for item in self._items], name)
        self._attributes = Attributes([], {})
        if not name:
            self._attributes = read_attributes(settings.attributes, settings.attribute_kinds, settings.shown)

    def plan(self) -> Plan:
        """Return the most rows to write, and an estimate of their bytes, by which stores check their room.

        Rows of attributes are `meta` rows.
        """
        list_counts = np.bincount(self._popular_lists.items, minlength=len(self._items))
        rows = len(self._popular_lists.owners)
        for lists in (self._users, self._similar):
            list_counts[: len(lists.list_counts)] += lists.list_counts
            rows += lists.owners

        attributes = self._attributes
        return Plan(
            rows=rows + len(attributes.rows),
            payload_bytes=int(self._encoder.line_bytes @ list_counts) + rows * ROW_BYTES + attributes.bytes,
            meta_bytes=attributes.bytes,
        )

    def about(self) -> OriginRecord:
        """See `ListSource`."""
        return {
            "hotplate": version("hotplate"),
            "engine": "import",
            "data": self._fingerprint,
            "list_length": self._settings.length,
            "rows": self.rows,
            "left_out": self.left_out,
            "notes": self._notes,
            **self._attributes.about,
        }

    def items(self) -> Items:
        """See `ListSource`; without users' lists the catalogue is unknown."""
        overall = next(self._popular_lists.batches(1))  # its empty name sorts before all segments
        settings = self._settings
        knows_catalogue = any((settings.similar, settings.popular, settings.titles))
        return Items(self._items.to_list(), overall.items, self._catalogue if knows_catalogue else None)

    def batches(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """Yield all rows of the release in batches, in ascending order of keys: `item`, `popular`, `user`, then `meta`.

        *observe* is called with the lists of users, to measure them: ids, item numbers and lengths.
        """
        for lists in self._similar.read():
            yield from self._encoder.batches(ITEM, lists)

        yield from self._encoder.batches(POPULAR, self._popular_lists)

        for lists in self._users.read():
            observe(lists.owners, lists.items, lists.lengths)
            yield from self._encoder.batches(USER, lists)

        yield from ([row] for row in self._attributes.rows)


def _count_left_out(rows: Sequence[Rows], duplicates: int) -> dict[str, int]:
    """Return the number of rows left out by reason, without zeros, of the files of all kinds."""
    counts = Counter[str]()
    for kind in rows:
        counts.update(kind.left_out)
    counts["named twice"] = duplicates
    return dict(+counts)


def read_scored(
    files: Sequence[DataFile],
    source: str,
    named: Mapping[str, str | None],
    form: Format,
    *,
    owner: str = "user",
    item: str = "item",
) -> Scored:
    """Read files of scored items: a row says that *item* is in the list of *owner*, with a score.

    *owner* and *item* are roles of columns, such as `user`, `segment` (a group of users) or `other` (a similar item).
    *named* are names of columns by role; the others are found by usual names. *source* names the files in messages.
    Rows without an owner or item are left out, but a row without a segment is of the overall list; a score that is not
    finite makes a bad row. Raises DataError.
    """
    required = [role for role in (owner, item, "score") if role != "segment"]
    optional = [role for role in (owner, "title", *ENTRY_TEXTS) if role not in required]
    rows = read_roles(open_tables(files, form), source, named, required=required, optional=optional)
    owners = pl.lit(OVERALL)
    columns = rows.kept.collect_schema()
    if owner in columns:
        owners = pl.col(owner).fill_null(OVERALL)
    texts = [name for name in ENTRY_TEXTS if name in columns]
    return Scored(rows, rows.kept.select(ROW, owners.alias("owner"), pl.col(item).alias("item"), "score", *texts))


def _popular_lists(scored: Scored | None, lists: SortedLists, numbers: ItemNumbers, length: int) -> "RankedRows":
    """Return the overall popular list, and one for each segment (a group of users), of at most *length* items.

    *scored* are rows [owner: segment, item, score] of popular items, None if no file was given. If they have no overall
    list, items are ranked by the number of *lists* that have them (`list_counts`, by item number), or without *lists*
    by the number of segments. *numbers* gives each item its number. Raises DataError for too many segments.
    """
    list_counts = lists.list_counts.astype(np.float64)
    counts = pl.DataFrame({"item": numbers.ids().head(len(list_counts)), "score": list_counts})
    overall = counts.filter(pl.col("score") > 0)
    rows = pl.DataFrame(schema={"owner": pl.String})
    if scored is not None:
        rows = scored.entries.drop(ROW).collect(engine="streaming")
    segments = rows.get_column("owner").n_unique()
    if segments >= MAX_POPULAR_LISTS:
        raise DataError(
            f"The popular lists are of {segments:,} segments; at most {MAX_POPULAR_LISTS - 1:,} can have one each."
        )
    if OVERALL not in rows.get_column("owner"):
        if overall.is_empty():
            overall = rows.group_by("item").agg(score=pl.col("owner").n_unique().cast(pl.Float64))
        rows = pl.concat([overall.with_columns(owner=pl.lit(OVERALL)), rows], how="diagonal")

    numbered = rows.with_columns(numbers.number(rows.get_column("item")))
    return rank_rows(numbered, numbers.ranks(), length)


def sort_lists(
    scored: Scored | None, numbers: ItemNumbers, length: int, folder: Path, on_progress: Callable[[int, int], None]
) -> SortedLists:
    """Sort scored items into lists, by owner (a user or an item) and highest score, in files of a new *folder*.

    scored       rows [owner, item, score] of `read_scored`, None for no lists
    numbers      gives each item its number
    length       the most items of a list
    on_progress  called with (rows done, twice the rows), as there are two passes

    Rows may exceed the memory. So the first pass divides them into partitions, ranges of owners that fit into it, and
    the second sorts each partition. Raises DataError if the disk gets full.
    """
    if scored is None:
        return SortedLists(partitions=[], list_counts=np.zeros(0, dtype=np.int64), owners=0, duplicates=0)

    folder.mkdir()
    total = 2 * scored.rows.kept_rows
    done = 0
    partitions = list[Path]()
    owners = 0
    duplicates = 0
    with data_errors(folder):
        on_progress(done, total)
        for height in _divide_rows(scored, numbers, folder):
            done += height
            on_progress(done, total)

        ranks = numbers.ranks()
        list_counts = np.zeros(len(ranks), dtype=np.int64)
        for part in sorted(folder.iterdir(), key=lambda path: int(path.name)):
            rows = pl.concat(pl.read_ipc(file) for file in part.iterdir())
            shutil.rmtree(part)
            ranked = rank_rows(rows, ranks, length)
            partitions.append(part.with_suffix(".arrow"))
            ranked.lists.write_ipc(partitions[-1])

            owners += ranked.lists.height
            duplicates += ranked.duplicates
            items = ranked.lists.get_column("item").explode().to_numpy()
            list_counts += np.bincount(items, minlength=len(ranks))
            done += rows.height
            on_progress(done, total)
    return SortedLists(partitions=partitions, list_counts=list_counts, owners=owners, duplicates=duplicates)


def _divide_rows(scored: Scored, numbers: ItemNumbers, folder: Path) -> Iterator[int]:
    """Divide rows [owner, item, score] into partitions, ranges of owners, with a subfolder of *folder* for each.

    The subfolders are called `0`, `1` and so on. Rows are read in batches, and each batch adds a file to the partitions
    that it has rows of. *numbers* gives each item its number. Yields the number of rows of each batch.
    """
    bounds = _partition_bounds(scored)
    batches = scored.entries.drop(ROW).collect_batches(chunk_size=PARTITION_ROWS, maintain_order=False)
    for place, batch in enumerate(batches):
        # The number of each row's partition. As part of a polars query, this would load the whole input.
        partition = bounds.search_sorted(batch.get_column("owner"), side="right")
        numbered = batch.with_columns(numbers.number(batch.get_column("item")), partition.alias(_PARTITION))
        for (number,), part in numbered.partition_by(_PARTITION, as_dict=True, include_key=False).items():
            (folder / str(number)).mkdir(exist_ok=True)
            part.write_ipc(folder / str(number) / f"{place}.arrow")
        yield batch.height


class RankedRows(NamedTuple):
    """*lists* [owner, and lists of items, scores and texts], ascending by owner, and the *duplicates* left out."""

    lists: pl.DataFrame
    duplicates: int


def rank_rows(rows: pl.DataFrame, ranks: pl.Series, length: int) -> RankedRows:
    """Return the list of each owner (a user, an item or a segment) in *rows* [owner, item: its number, score, texts].

    A list has at most *length* items, best first. Equal scores are sorted by the rank of the item; *ranks* has the rank
    of each item, by number. An item that an owner has several times counts with its highest score, and the other rows
    are counted as duplicates.
    """
    names = rows.get_column("owner").unique().sort()
    owner = pl.col("owner").cast(pl.Enum(names))  # enums sort faster than strings
    score = pl.col("score") + 0.0  # turns -0.0 into 0.0
    rank = ranks.gather(rows.get_column("item"))
    ranked = rows.with_columns(owner, score, rank.alias(_RANK))
    ranked = ranked.sort("owner", "score", _RANK, descending=[False, True, False]).drop(_RANK)

    # The first row of an owner and an item has their highest score.
    pair = pl.col("owner").to_physical().cast(pl.UInt64) * len(ranks) + pl.col("item")
    best = ranked.filter(pair.is_first_distinct())
    lists = best.group_by("owner", maintain_order=True).agg(pl.all().head(length))
    return RankedRows(lists.with_columns(pl.col("owner").cast(pl.String)), ranked.height - best.height)


def ranked_lists(lists: pl.DataFrame) -> RankedLists:
    """Flatten the lists of `rank_rows`."""
    entries = lists.drop("owner")
    return RankedLists(
        owners=lists.get_column("owner").to_list(),
        lengths=lists.get_column("item").list.len().to_numpy().astype(np.int64),
        entries=entries.explode(entries.columns),
    )


def _partition_bounds(scored: Scored) -> pl.Series:
    """Return the owners at which to divide rows into partitions: the first owner of each partition but the first one.

    Bounds `["g", "p"]` stand for three partitions: owners before g, from g to before p, and from p on. They are chosen
    by a sample of the rows, so that partitions have about PARTITION_ROWS rows each. Empty for one partition.
    """
    partitions = min(-(-scored.rows.kept_rows // PARTITION_ROWS), MAX_PARTITIONS)
    if partitions == 1:
        return pl.Series(dtype=pl.String)

    # Every step-th row is sampled.
    step = -(-scored.rows.total // _SAMPLED_OWNERS)
    sampled = scored.entries.filter(pl.col(ROW) % step == 0).select("owner").collect(engine="streaming")
    owners = sampled.to_series().sort()
    # An owner with more rows than a partition may be at several places of the sorted sample.
    size = -(-len(owners) // partitions) or 1
    return owners.gather_every(size, offset=size).unique(maintain_order=True)
