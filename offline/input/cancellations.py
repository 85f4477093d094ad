"""Cancellations: how much each takes back of the purchases before it."""

import polars as pl

# Sums of quantities such as 0.1 are exact to so many decimals.
_DECIMALS = 6


def take_back(log: pl.DataFrame) -> pl.DataFrame:
    """Return the purchases of *log*, less what was cancelled.

    *log* is [user, item, weight, quantity, and perhaps time]; a quantity below zero is a cancellation. It takes its
    quantity back from the latest purchase of the same user and item up to its time, then from the one before that.
    A rest without a purchase is ignored. Rows without a time come before all others; without times all are of one
    moment.

    Returned is [user, item, weight, and if there are times: time, ended]. A purchase weighs in proportion to what is
    left of it. The part that was taken back is a row of its own, which *ended* at the time of the cancellation; null
    if it was not cancelled.
    """
    pair, moment = ["user", "item"], ["time"] if "time" in log.columns else []
    cancelled = log.filter(pl.col("quantity") < 0).select(pair).unique()
    # Within a moment, purchases come before cancellations.
    descending = [False] * len(pair + moment) + [True]
    touched = log.join(cancelled, on=pair, how="semi").sort(*pair, *moment, "quantity", descending=descending)
    times = touched.get_column("time").to_list() if moment else [None] * touched.height
    quantities = touched.get_column("quantity").to_list()
    pieces = list[tuple[int, float, object]]()
    standing = list[tuple[int, float]]()
    begins = touched.select(pl.struct(pair).rle_id()).to_series().diff().fill_null(1).to_list()
    for row, (begin, quantity) in enumerate(zip(begins, quantities, strict=True)):
        if begin:
            pieces += [(bought, left, None) for bought, left in standing]
            standing = []
        if quantity > 0:
            standing.append((row, quantity))
        wanted = -quantity
        while wanted > 0 and standing:
            bought, left = standing.pop()
            taken = min(left, wanted)
            if times[bought] != times[row]:  # else it never stood
                pieces.append((bought, taken, times[row]))
            wanted, left = round(wanted - taken, _DECIMALS), round(left - taken, _DECIMALS)
            if left > 0:
                standing.append((bought, left))
    pieces += [(bought, left, None) for bought, left in standing]
    rows, parts, ended = zip(*pieces, strict=True) if pieces else ((), (), ())
    found = touched[list(rows)].with_columns(
        pl.col("weight") * pl.Series(parts, dtype=pl.Float64) / pl.col("quantity"),
        *(pl.Series("ended", ended, dtype=log.schema["time"]) for _ in moment),
    )
    others = log.join(cancelled, on=pair, how="anti")
    return pl.concat([others, found], how="diagonal").drop("quantity")
