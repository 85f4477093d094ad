"""Rows of interactions, grouped by user and item, and by segment of users."""

from collections.abc import Sequence

import polars as pl

from hotplate.offline.errors import DataError
from hotplate.offline.input.cancellations import split_cancelled_purchases
from hotplate.offline.input.history import Weighting
from hotplate.offline.options import Columns


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
    log = split_cancelled_purchases(pl.concat(frames, how="diagonal"))
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
