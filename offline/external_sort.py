"""External sort of lists: rows are partitioned by owner on disk, and each partition is sorted in memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from offline.errors import DataError
from offline.input.files import data_errors
from offline.list_encoder import RankedLists

Numbers = npt.NDArray[np.uint32]

# Rows that are sorted at once: about 150 MB with ids of ten characters.
PARTITION_ROWS = 1_000_000
# More would be too many small files; beyond this many, partitions hold more rows instead.
MAX_PARTITIONS = 250
# Bytes on disk, at most, per byte of owners and of what a row has besides: offsets and padding.
DISK_FACTOR = 1.05
_ROW_BYTES = 30
# What is in a partition's folder once it is sorted.
_LISTS, _ITEMS = "lists.arrow", "items.arrow"


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """
    The rows of one file, or folder, of lists, to be scanned as often as needed.

    frame        [owner: str, item: str, score: f64, finite, and title: str, if there is such a column], kept rows only
    rows         how many there were, those left out among them
    kept         how many were not left out
    left_out     how many rows were left out, by reason; zeros not listed
    notes        sentences for who brought the data: what was read otherwise than it is written
    owner_bytes  bytes of the owners of all rows that are kept
    owners       owners of rows sampled at even distances, ascending, with repetitions
    """

    frame: pl.LazyFrame
    rows: int
    kept: int
    left_out: dict[str, int]
    notes: list[str]
    owner_bytes: int
    owners: pl.Series


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

    def order(self) -> "ItemOrder":
        """Return the order of all items so far by their bytes."""
        by_rank = self.ids().arg_sort().to_numpy()
        ranks = np.empty_like(by_rank)
        ranks[by_rank] = np.arange(len(by_rank), dtype=ranks.dtype)
        return ItemOrder(by_rank, ranks)


class ItemOrder(NamedTuple):
    """The numbers of items in ascending order of their bytes, and of each number its place in that order."""

    by_rank: Numbers
    ranks: Numbers


@dataclass(frozen=True, slots=True)
class SortedLists:
    """
    Lists in ascending order of their owners' bytes, on disk; lives as long as its folder.

    partitions   folders with some of the lists each, in order; no owner is in two of them
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
                lists, items = pl.read_ipc(partition / _LISTS), pl.read_ipc(partition / _ITEMS)
            yield RankedLists(
                lists.get_column("owner").to_list(),
                lists.get_column("length").to_numpy().astype(np.int64),
                items.get_column("item").to_numpy(),
                items.get_column("score").to_numpy(),
            )


def sort_lists(
    scored: ScoredRows, numbers: ItemNumbers, length: int, folder: Path, on_progress: Callable[[int, int], None]
) -> SortedLists:
    """
    Sort rows into files in a new *folder*: by owner, then highest score, then item; at most *length* items per owner.

    Items get their *numbers*. *on_progress* is called with (rows done, twice the rows), for each is handled twice.
    Raises DataError where the disk is too small, before anything is written, or gets full.
    """
    _check_free_space(scored, folder.parent)
    folder.mkdir()
    total = 2 * scored.kept
    on_progress(0, total)
    bounds = _bounds(scored)
    for done in _partition(scored, numbers, bounds, folder):
        on_progress(done, total)
    order = numbers.order()
    partitions, in_lists = list[Path](), np.zeros(len(order.ranks), dtype=np.int64)
    done, owners, duplicates = scored.kept, 0, 0
    for number in range(len(bounds) + 1):
        partition = folder / str(number)
        if not partition.exists():
            continue
        with _disk_errors(folder):
            rows = pl.concat(pl.read_ipc(piece) for piece in partition.iterdir())
            shutil.rmtree(partition)
            lists, repeated = rank_rows(rows, order, length)
            _write(lists, partition)
        partitions.append(partition)
        done += rows.height
        owners += len(lists.owners)
        duplicates += repeated
        in_lists += np.bincount(lists.items, minlength=len(in_lists))
        on_progress(done, total)
    return SortedLists(partitions, in_lists, owners, duplicates)


def rank_rows(rows: pl.DataFrame, order: ItemOrder, length: int) -> tuple[RankedLists, int]:
    """
    Return the lists of [owner, item number, score], ascending by owner, and how many rows named an item once more.

    A list begins with its highest score, equal ones in the order of the items' bytes; it keeps *length* items, and the
    highest score of each.
    """
    names = rows.get_column("owner").unique().sort()
    owner = rows.get_column("owner").cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    # Negated, so that the best is first; from zero, as there is one zero only then.
    loss = 0.0 - rows.get_column("score").to_numpy()
    item = order.ranks[rows.get_column("item").to_numpy()]
    places = np.lexsort((item, loss, owner))
    pairs = (owner * len(order.ranks) + item)[places]
    if repeated := len(pairs) - pl.Series(pairs).n_unique():
        places = places[np.sort(np.unique(pairs, return_index=True)[1])]
    owner = owner[places]
    begins = np.flatnonzero(np.diff(owner, prepend=-1))
    lengths = np.diff(begins, append=len(owner))
    kept = places[np.arange(len(owner)) - np.repeat(begins, lengths) < length]
    return RankedLists(
        names.to_list(), np.minimum(lengths, length), order.by_rank[item[kept]], 0.0 - loss[kept]
    ), repeated


def _write(lists: RankedLists, partition: Path) -> None:
    partition.mkdir()
    pl.DataFrame({"owner": lists.owners, "length": lists.lengths.astype(np.uint16)}).write_ipc(partition / _LISTS)
    pl.DataFrame({"item": lists.items, "score": lists.scores}).write_ipc(partition / _ITEMS)


def _bounds(scored: ScoredRows) -> pl.Series:
    """Return the owners at which partitions begin, so that each partition gets about as many rows."""
    count = min(-(-scored.kept // PARTITION_ROWS), MAX_PARTITIONS)
    starts = [len(scored.owners) * at // count for at in range(1, count)] if len(scored.owners) else []
    return scored.owners.gather(starts).unique(maintain_order=True)


def _partition(scored: ScoredRows, numbers: ItemNumbers, bounds: pl.Series, folder: Path) -> Iterator[int]:
    """Write each row into the folder of its partition; yield how many rows are written."""
    buffer, done = list[pl.DataFrame](), 0
    with _disk_errors(folder):
        for batch in scored.frame.select("owner", "item", "score").collect_batches(maintain_order=False):
            buffer.append(batch)
            if sum(frame.height for frame in buffer) >= PARTITION_ROWS:
                done += _spill(pl.concat(buffer), numbers, bounds, folder, f"{done}.arrow")
                buffer.clear()
                yield done
        if buffer:
            yield done + _spill(pl.concat(buffer), numbers, bounds, folder, f"{done}.arrow")


def _spill(rows: pl.DataFrame, numbers: ItemNumbers, bounds: pl.Series, folder: Path, name: str) -> int:
    # Computed here, for inside a query it would not stream: the whole file would be in memory.
    partition = bounds.search_sorted(rows.get_column("owner"), side="right")
    numbered = rows.with_columns(numbers.number(rows.get_column("item")), partition=partition)
    for (number,), part in numbered.partition_by("partition", as_dict=True, include_key=False).items():
        (folder / str(number)).mkdir(exist_ok=True)
        part.write_ipc(folder / str(number) / name)
    return rows.height


def _check_free_space(scored: ScoredRows, folder: Path) -> None:
    needed = int((scored.owner_bytes + scored.kept * _ROW_BYTES) * DISK_FACTOR)
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
