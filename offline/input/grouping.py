"""Rows of interactions, grouped by user and item, and by segment of users.

Rows with a negative quantity are cancellations, which end earlier purchases of the same user and item.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.history import Weighting
from hotplate.offline.options import Columns

_USER_AND_ITEM = ["user", "item"]
# Rounds sums of quantities such as 0.1.
_QUANTITY_DECIMALS = 6


def group_log(
    kept: pl.LazyFrame, columns: Columns, weighting: Weighting, source: str, *, has_cancellations: bool
) -> pl.DataFrame:
    """Group the rows *kept* by user, item and, if there are times, time: [user, item, weight, perhaps time].

    The weight is the sum of the rows' weights, or the number of different values in a column to count. Rows with a
    quantity below 0 cancel earlier purchases (*has_cancellations*). Cancelled parts of purchases become separate rows
    with the time of the cancellation in a further column, `ended`. *source* names the data in the DataError that is
    raised if all purchases were cancelled.
    """
    key = ["user", "item"]
    if columns.time is not None:
        key.append("time")
    if not has_cancellations:
        return _group_weights(kept, key, columns, weighting).collect(engine="streaming")

    # Events that the service recorded have no quantity.
    kept = kept.with_columns(pl.col("quantity").fill_null(1.0))
    purchases = kept.filter(pl.col("quantity") > 0)
    bought = _group_weights(purchases, key, columns, weighting, with_quantity=True)
    cancelled = kept.filter(pl.col("quantity") < 0).group_by(key).agg(pl.col("quantity").sum())

    # One frame of both; the rows of cancellations have no weight.
    frames = [frame.collect(engine="streaming") for frame in (bought, cancelled)]
    log = _split_cancelled_purchases(pl.concat(frames, how="diagonal"))
    if log.is_empty():
        raise DataError(f"Nothing is left of {source}: all that was bought was cancelled.")
    return log


def _group_weights(
    rows: pl.LazyFrame, key: Sequence[str], columns: Columns, weighting: Weighting, *, with_quantity: bool = False
) -> pl.LazyFrame:
    """Group *rows* by the columns *key* (user, item, perhaps time), and return [key, weight, perhaps quantity].

    The weight is the sum of the rows' weights. If *columns* name one to count, such as orders, it is the number of
    different values in that column instead. A value that a user and an item have at several times counts once, at the
    first of them. *with_quantity* adds the sum of the quantities.
    """
    quantity = [pl.col("quantity").sum()] if with_quantity else []

    if columns.count is not None:
        # One row for each value that is counted, then the number of these rows.
        first_time = [pl.col("time").min()] if "time" in key else []
        counted_values = rows.group_by("user", "item", "count").agg(*first_time, *quantity)
        number = pl.len().cast(pl.Float64)
        return counted_values.group_by(key).agg(number.alias("weight"), *quantity)

    if weighting == "binary" and not with_quantity:
        # The weight becomes 1 later, and this is faster than a sum.
        return rows.select(key).unique().with_columns(weight=pl.lit(1.0))
    return rows.group_by(key).agg(pl.col("weight").sum(), *quantity)


def count_users_by_segment(kept: pl.LazyFrame, log: pl.DataFrame | None) -> pl.DataFrame:
    """Count the users of each segment (a group of users, such as a country) by item and the day of their first row.

    kept     the rows of the input [user, item, segment, perhaps time and quantity]
    log      their grouped log if there were cancellations, else None; in it, `ended` is null for purchases that were
             not cancelled: users count only for items of which they have such a purchase
    returns  [segment, item, day since 1970 or null, weight: the number of users]
    """
    if log is not None:
        uncancelled = log.filter(pl.col("ended").is_null()) if "ended" in log.columns else log
        pairs = uncancelled.select("user", "item").unique().lazy()
        kept = kept.filter(pl.col("quantity").fill_null(1.0) > 0).join(pairs, on=["user", "item"], how="semi")

    first_day = pl.lit(None)
    if "time" in kept.collect_schema():
        first_day = pl.col("time").min().dt.epoch("d")

    in_segment = kept.filter(pl.col("segment").is_not_null())
    users = in_segment.group_by("segment", "item", "user").agg(first_day.cast(pl.Int64).alias("day"))
    counts = users.group_by("segment", "item", "day").agg(pl.len().cast(pl.Float64).alias("weight"))
    counts = counts.with_columns(pl.col("segment", "item").cast(pl.String))
    return counts.sort("segment", "item", "day").collect(engine="streaming")


def _split_cancelled_purchases(log: pl.DataFrame) -> pl.DataFrame:
    """Divide the purchases of *log* into cancelled and remaining parts, and drop the rows of cancellations.

    log      [user, item, weight, quantity, perhaps time]; a row with a negative quantity cancels the user's latest
             purchases of the item up to its time; rows without a time come first
    returns  [user, item, weight, and with times: time, ended]; a cancelled part is a separate row with its share of the
             purchase's weight, and `ended`, the time of the cancellation; without times, cancelled parts are left out

    A purchase of 3 of which 1 is cancelled later becomes two rows, with 1/3 of the weight (ended) and with 2/3.
    """
    # Only users and items with a cancellation are divided, as it is done row by row.
    cancelled_pairs = log.filter(pl.col("quantity") < 0).select(_USER_AND_ITEM).unique()
    order = [*_USER_AND_ITEM, "time"] if "time" in log.columns else _USER_AND_ITEM
    # At equal times purchases precede cancellations, which have the lower quantity.
    descending = [False] * len(order) + [True]
    affected = log.join(cancelled_pairs, on=_USER_AND_ITEM, how="semi").sort(*order, "quantity", descending=descending)

    schema = {"row": pl.UInt32(), "quantity": pl.Float64(), "ended": log.schema.get("time", pl.Null())}
    parts = pl.DataFrame(_divide_purchases(affected), schema=schema, orient="row")
    # The row of the purchase for each part, with the part's share of the weight.
    divided = affected[parts.get_column("row")].with_columns(
        pl.col("weight") * parts.get_column("quantity") / pl.col("quantity")
    )
    if "time" in log.columns:
        divided = divided.with_columns(parts.get_column("ended"))

    unaffected = log.join(cancelled_pairs, on=_USER_AND_ITEM, how="anti")
    return pl.concat([unaffected, divided], how="diagonal").drop("quantity")


class _PurchasePart(NamedTuple):
    """A *quantity*, part of that of a *row* (its number, from 0), and the time of its cancellation, if any."""

    row: int
    quantity: float
    ended: datetime | None


def _divide_purchases(rows: pl.DataFrame) -> list[_PurchasePart]:
    """Divide purchases into cancelled parts, which end at the time of the cancellation, and remaining parts.

    *rows* [user, item, quantity, perhaps time] are purchases and, with a negative quantity, cancellations, sorted by
    user, item and time. A cancellation takes its quantity from the latest earlier purchases of its user and item, as
    far as they have any left; a surplus has no effect. Parts that were bought and cancelled at the same time are
    dropped, and without times all cancelled parts.
    """
    quantities = rows.get_column("quantity").to_list()
    times = rows.get_column("time").to_list() if "time" in rows.columns else [None] * rows.height
    # The number of the user and item: it grows by 1 where they change.
    pair_numbers = rows.select(pl.struct(_USER_AND_ITEM).rle_id()).to_series()
    is_new_pair = pair_numbers.diff().fill_null(1).to_list()

    cancelled_parts = list[_PurchasePart]()
    remaining = dict[int, float]()  # quantity by row of a purchase
    open_purchases = list[int]()  # rows of the current user and item with a remaining quantity, the latest last
    for row, quantity in enumerate(quantities):
        if is_new_pair[row]:
            open_purchases.clear()

        if quantity > 0:
            remaining[row] = quantity
            open_purchases.append(row)
            continue

        to_cancel = -quantity
        while to_cancel > 0 and open_purchases:
            purchase = open_purchases[-1]
            cancelled = min(remaining[purchase], to_cancel)
            # Without times, both are None.
            if times[purchase] != times[row]:
                cancelled_parts.append(_PurchasePart(purchase, cancelled, ended=times[row]))

            to_cancel = round(to_cancel - cancelled, _QUANTITY_DECIMALS)
            remaining[purchase] = round(remaining[purchase] - cancelled, _QUANTITY_DECIMALS)
            if remaining[purchase] <= 0:
                open_purchases.pop()

    remaining_parts = [_PurchasePart(row, left, ended=None) for row, left in remaining.items() if left > 0]
    return cancelled_parts + remaining_parts
