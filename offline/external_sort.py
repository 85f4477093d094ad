"""External sort of lists: rows are partitioned by owner on disk, and each partition is sorted in memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from offline.errors import DataError
from offline.input.files import data_errors
from offline.input.tables import Rows
from offline.list_encoder import RankedLists

# Rows that are sorted at once: about 150 MB with ids of ten characters.
PARTITION_ROWS = 1_000_000
# More would be too many small files; beyond this many, partitions hold more rows instead.
MAX_PARTITIONS = 250
# Bytes on disk, at most, per byte of owners and of what a row has besides: offsets and padding.
DISK_FACTOR = 1.05
_ROW_BYTES = 30
# How many owners are looked at to divide the rows into partitions of one size.
_SAMPLED_OWNERS = 200_000


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """
    The rows of one file, or folder, of lists, to be scanned as often as needed.

    frame   [row: its number in its file, owner: str, item: str, score: f64, finite, and title: str, if there is such a
            column], kept rows only
    rows    how many there are; its facts have `owner_bytes`, the bytes of the owners of kept rows
    notes   sentences for the person who brought the data: what was read otherwise than it is written
    """

    frame: pl.LazyFrame
    rows: Rows
    notes: list[str]


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
    """
    Lists in ascending order of their owners' bytes, on disk; lives as long as its folder.

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
            with _disk_errors(partition):
                lists = pl.read_ipc(partition)
            yield ranked_lists(lists)


def sort_lists(
    scored: ScoredRows, numbers: ItemNumbers, length: int, folder: Path, on_progress: Callable[[int, int], None]
) -> SortedLists:
    """
    Sort rows into files in a new *folder*: by owner, then highest score, then item; at most *length* items per owner.

    Items get their *numbers*. *on_progress* is called with (rows done, twice the rows), for each is handled twice.
    Raises DataError where the disk is too small, before anything is written, or gets full.
    """
    _check_free_space(scored.rows, folder.parent)
    folder.mkdir()
    done, total = 0, 2 * scored.rows.facts["rows"]
    on_progress(done, total)
    with _disk_errors(folder):
        bounds = _bounds(scored)
        rows = scored.frame.select("owner", "item", "score")
        for batch in rows.collect_batches(chunk_size=PARTITION_ROWS, maintain_order=False):
            _spill(batch, numbers, bounds, folder, f"{done}.arrow")
            done += batch.height
            on_progress(done, total)
    ranks = numbers.ranks()
    partitions, in_lists, owners, duplicates = list[Path](), np.zeros(len(ranks), dtype=np.int64), 0, 0
    for pieces in sorted(folder.iterdir(), key=lambda each: int(each.name)):
        with _disk_errors(folder):
            partition = pl.concat(pl.read_ipc(piece) for piece in pieces.iterdir())
            shutil.rmtree(pieces)
            lists, repeated = rank_rows(partition, ranks, length)
            lists.write_ipc(pieces)
        partitions.append(pieces)
        owners += lists.height
        duplicates += repeated
        in_lists += np.bincount(lists.get_column("item").explode().to_numpy(), minlength=len(ranks))
        done += partition.height
        on_progress(done, total)
    return SortedLists(partitions, in_lists, owners, duplicates)


def rank_rows(rows: pl.DataFrame, ranks: pl.Series, length: int) -> tuple[pl.DataFrame, int]:
    """
    Return [owner, item: list, score: list], ascending by owner, and how many rows named an item once more.

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


def _bounds(scored: ScoredRows) -> pl.Series:
    """Return the owners at which partitions begin, so that each partition gets about as many rows."""
    count = min(-(-scored.rows.facts["rows"] // PARTITION_ROWS), MAX_PARTITIONS)
    if count == 1:
        return pl.Series(dtype=pl.String)
    step = -(-scored.rows.total // _SAMPLED_OWNERS)
    sampled = scored.frame.filter(pl.col("row") % step == 0).select("owner").collect(engine="streaming")
    owners = sampled.to_series().sort()
    starts = [len(owners) * at // count for at in range(1, count)] if len(owners) else []
    return owners.gather(starts).unique(maintain_order=True)


def _spill(rows: pl.DataFrame, numbers: ItemNumbers, bounds: pl.Series, folder: Path, name: str) -> None:
    """Write each row into the folder of its partition."""
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


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Distinguish a disk that is full from input that cannot be read."""
    try:
        with data_errors(folder):
            yield
    except DataError as error:
        if "No space left" in str(error.__cause__):
            raise DataError(
                f"No space is left in {folder.parent}; free some, or set TMPDIR to a folder on a larger disk."
            ) from error
        raise
