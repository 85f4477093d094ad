"""The data that trainings are measured on: Online Retail by its recipe, and a log of any size that is made here."""

from pathlib import Path

import numpy as np
import polars as pl

from hotplate.bench.report.machine import ROOT

DATA = ROOT.parent / "shared" / "data"
RETAIL = DATA / "online-retail" / "online_retail.parquet"
RETAIL_COLUMNS = ("customer_id", "stock_code")
RETAIL_RECIPE = (pl.col("quantity") > 0) & (pl.col("unit_price") > 0) & pl.col("stock_code").str.contains(r"^\d{5}")
# The same for the command.
RETAIL_OPTIONS = (
    *("--where", "quantity>0", "--where", "unit_price>0", "--where", r"stock_code~^\d{5}"),
    *("--count-column", "invoice_no", "--weighting", "binary", "--min-per-user", "5", "--min-per-item", "5"),
)
LOG_COLUMNS = ("user", "item")
# Items of the log, and how many interactions a user has.
_LOG_ITEMS, _LOG_EACH = 20_000, 100


def write_log(file: Path, interactions: int) -> None:
    """Write about so many *interactions* as Parquet: users like kinds of items, popular ones more often."""
    rng = np.random.default_rng(0)
    users = max(interactions // _LOG_EACH, 10)
    popularity = 1 / np.arange(10, _LOG_ITEMS + 10) ** 0.8
    kinds = np.arange(_LOG_ITEMS) % 50
    user = np.repeat(np.arange(users, dtype=np.int32), _LOG_EACH)
    drawn = rng.choice(_LOG_ITEMS, len(user), p=popularity / popularity.sum()).astype(np.int32)
    # Half of what a user has is moved to the nearest item of a kind that is the user's own.
    own = rng.random(len(user)) < 1 / 2
    drawn = np.where(own, np.minimum(drawn - kinds[drawn] + user % 50, _LOG_ITEMS - 1), drawn)
    frame = pl.DataFrame({"user": user, "item": drawn}).unique(maintain_order=True)
    frame.select(pl.format("u{}", "user").alias("user"), pl.format("i{}", "item").alias("item")).write_parquet(file)
