"""Cancellations: rows with a negative quantity, which end earlier purchases of the same user and item."""

from datetime import datetime
from typing import NamedTuple

import polars as pl

_USER_AND_ITEM = ["user", "item"]
# Rounds sums of quantities such as 0.1.
_QUANTITY_DECIMALS = 6


def split_cancelled_purchases(log: pl.DataFrame) -> pl.DataFrame:
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
