"""Days on which items were shown to users, from impressions and clicks of the event log.

An impression is a list that the service answered, with the items that the user saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.sparse import csr_matrix

from hotplate.base.timing import DAY_S
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.files import DataFile, DataSource, input_files, named_paths
from hotplate.offline.input.history import DAY_US, NO_TIME, History, Times
from hotplate.offline.input.matrix import Matrix
from hotplate.offline.input.pairs import PairNumbers, UserItems
from hotplate.offline.input.recorded_events import read_segment

# Older impressions are forgotten.
REMEMBERED_DAYS = 30
_IMPRESSION = "impression"
_CLICK = "click"
_EVENT_SCHEMA = {"user": pl.String(), "type": pl.String(), "items": pl.List(pl.String()), "time": pl.Float64()}
_DAYS_SCHEMA = {
    "user": pl.Categorical(),
    "item": pl.Categorical(),
    "day": pl.Int32(),
    "clicked": pl.Boolean(),
}
# Rows that are added before days are counted once.
_ROWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Showings:
    """The days, since 1970 in UTC, of *frame* [user, item, day, clicked], one row for each."""

    frame: pl.DataFrame

    def until(self, time: int) -> "Showings":
        """Return the days before that of *time*, in µs since 1970."""
        return Showings(self.frame.filter(pl.col("day") < time // DAY_US))

    def days_without_click(self, matrix: Matrix) -> UserItems:
        """Return the number of days on which an item was shown to a user without a click: sparse [users, items].

        Users and items are those of *matrix*. Only days after the user's last click on the item, and after the user's
        last interaction with it in *matrix*, count. `frame` has a row for each user, item and day on which the item was
        shown or clicked [user, item, day, clicked].
        """
        # A pair, a user and an item of the matrix, is the number user * number of items + item.
        rows = _with_pair_numbers(self.frame, matrix)
        last_clicks = rows.filter("clicked").group_by("pair").agg(last_click=pl.col("day").max())
        with_last_click = rows.join(last_clicks, on="pair", how="left")
        is_after_click = pl.col("last_click").is_null() | (pl.col("day") > pl.col("last_click"))
        since_click = with_last_click.filter(is_after_click)

        pairs = since_click.get_column("pair").to_numpy()
        if matrix.history is not None:
            days = since_click.get_column("day").to_numpy()
            pairs = pairs[days > _last_days(matrix.history, pairs)]

        # There is one row for each pair and day, so the number of a pair's rows is its number of days.
        pairs, counts = np.unique(pairs, return_counts=True)
        users, items = np.divmod(pairs, matrix.user_items.shape[1])
        return csr_matrix((counts.astype(np.float32), (users, items)), shape=matrix.user_items.shape)


def read_showings(source: DataSource) -> Showings:
    """Read from recorded events on which of the last 30 days items were shown to users, and whether they were clicked.

    *source* is a file of events that the service recorded, or a folder of them. The result takes about 30 bytes per
    user, item and day. Raises DataError if there are no impressions, and SettingError for other files.
    """
    with input_files([source]) as files:
        if any(file.kind != "events" for file in files):
            raise SettingError(
                f"{named_paths([source])} holds other files than events; name a folder of hotplate serve --events, or "
                "one that hotplate events ship fills."
            )

        days = pl.DataFrame(schema=_DAYS_SCHEMA)
        # Many rows are of the same user, item and day: they are merged before they fill the memory.
        unmerged = list[pl.DataFrame]()
        for file in files:
            unmerged.append(_read_shown_items(file))
            if sum(frame.height for frame in unmerged) >= _ROWS_AT_ONCE:
                days = _one_row_a_day([days, *unmerged])
                unmerged.clear()
        days = _one_row_a_day([days, *unmerged])

    if days.is_empty():
        raise DataError(f"{named_paths([source])} has no impressions; name the events that the service wrote.")
    return Showings(days)


def _read_shown_items(file: DataFile) -> pl.DataFrame:
    """Return the items shown or clicked in one file of events [user, item, day, clicked], a row for each."""
    events = read_segment(file, _EVENT_SCHEMA).events
    shown = events.filter(pl.col("type").is_in([_IMPRESSION, _CLICK])).explode("items")
    rows = shown.select("user", item="items", day=pl.col("time") // DAY_S, clicked=pl.col("type") == _CLICK)
    return rows.cast(_DAYS_SCHEMA)  # type: ignore[arg-type]  # polars wants its classes


def _one_row_a_day(pieces: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return one row for each user, item and day of the last 30 days; it is clicked if any of its rows is."""
    rows = pl.concat(pieces)
    rows = rows.filter(pl.col("day") > pl.col("day").max() - REMEMBERED_DAYS)
    return rows.group_by("user", "item", "day").agg(pl.col("clicked").any())


def _with_pair_numbers(shown: pl.DataFrame, matrix: Matrix) -> pl.DataFrame:
    """Return the rows of known users and items [pair, day, clicked]; a pair is user * number of items + item."""
    user = _numbers("user", matrix.user_ids)
    item = _numbers("item", matrix.item_ids)
    return shown.select("day", "clicked", pair=user * len(matrix.item_ids) + item).drop_nulls("pair")


def _numbers(role: str, ids: Sequence[str]) -> pl.Expr:
    """Return the place of each id in *ids*, or null."""
    return pl.col(role).cast(pl.String).cast(pl.Enum(ids), strict=False).to_physical().cast(pl.Int64)


def _last_days(history: History, pairs: PairNumbers) -> Times:
    """Return the day of the last row of each of *pairs*, long ago if there is none; days count from 1970."""
    rows = np.searchsorted(history.pair_numbers, pairs, side="right") - 1
    is_known = (rows >= 0) & (history.pair_numbers[rows] == pairs)
    return np.where(is_known, history.times[rows] // DAY_US, NO_TIME)
