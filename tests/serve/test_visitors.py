"""How often a folded-in list has one of a visitor's next items, on real data: `-m soak -s` prints the hit rates."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

import hotplate
from hotplate.serve.fold_in import RECENCY
from tests.support.paths import DATA, ROOT

# Visitors come after four fifths of the rows; of each, some moments with the last items before and the next ones after.
BEFORE, MOST_VISITORS, MOMENTS = 0.8, 500, 2
N, NEXT, BASKET = 10, 3, 20
RECENCIES = (1.0, 0.9, RECENCY, 0.5)


class Moment(NamedTuple):
    basket: dict[str, float]
    """Weights of the visitor's items, the newest last."""

    following: set[str]


def ratings() -> pl.DataFrame:
    """MovieTweetings; a rating is a weight."""
    names = ["user", "item", "weight", "time"]
    return pl.read_csv(DATA / "movietweetings-100k" / "ratings.csv.gz", new_columns=names).with_columns(
        pl.col("weight").clip(0.5)
    )


def invoices() -> pl.DataFrame:
    """Online Retail, the lines of an invoice in their order; a weight is the logarithm of a quantity."""
    names = {"user": "customer_id", "item": "stock_code", "weight": "quantity", "time": "invoice_date"}
    lines = pl.read_parquet(DATA / "online-retail" / "online_retail.parquet").filter(
        pl.col("quantity") > 0, pl.col("unit_price") > 0, pl.col("stock_code").str.contains(r"^\d{5}")
    )
    return lines.select(pl.col(column).alias(name) for name, column in names.items()).with_columns(
        pl.col("weight").log1p(), pl.col("time").dt.epoch("s")
    )


def moments(rows: pl.DataFrame, draw: np.random.Generator) -> Iterator[list[Moment]]:
    """Yield moments of each visitor."""
    for _, visit in rows.group_by("user", maintain_order=True):
        items, weights = visit["item"].to_list(), visit["weight"].to_list()
        found = list[Moment]()
        for now in draw.permutation(np.arange(1, len(items))):
            start = max(0, now - BASKET)
            basket = dict[str, float]()
            for item, weight in zip(items[start:now], weights[start:now], strict=True):
                basket[item] = basket.pop(item, 0.0) + weight
            following = [item for item in dict.fromkeys(items[now:]) if item not in basket][:NEXT]
            if following and len(found) < MOMENTS:
                found.append(Moment(basket, set(following)))
        if found:
            yield found


def publish(rows: pl.DataFrame, folder: Path, days: int, gamma: float) -> str:
    """Train and publish with factors; returns the URL of the store."""
    rows.with_columns(pl.from_epoch("time")).write_parquet(folder / "log.parquet")
    params = f"factors=128,regularization=30,alpha=4,recency={days}d,gamma={gamma}"
    train = ["train", str(folder / "log.parquet"), "--min-per-user", "5", "--min-per-item", "5", "--no-tune"]
    train += ["--split", "none", "--params", params, "--weighting", "binary", "--out", str(folder / "model")]
    for command in (train, ["publish", str(folder / "model"), "--store", f"file://{folder / 'store'}", "--fold-in"]):
        subprocess.run([sys.executable, "-m", "hotplate", *command], check=True, cwd=ROOT, timeout=280)
    return f"file://{folder / 'store'}"


def recently_popular(rows: pl.DataFrame, half_life_days: int) -> list[str]:
    age_days = (rows["time"].max() - pl.col("time")) / 86_400
    counts = rows.group_by("item").agg(count=(0.5 ** (age_days / half_life_days)).sum())
    return counts.sort("count", "item", descending=True)["item"].to_list()[: 2 * BASKET]


def hit_rates(
    lists: hotplate.SyncLists, visitors: list[list[Moment]], recent: list[str], median: float
) -> dict[str, list[float]]:
    """Return the share of moments with a hit, by way and visitor."""
    popular = {"popular": [item["id"] for item in lists.popular(2 * BASKET).items], "recently popular": recent}

    def ids(basket: list[str] | dict[str, float], recency: float) -> list[str]:
        return [item["id"] for item in lists.fold_in(basket, N, recency=recency).items]

    rates = dict[str, list[float]]()
    for visitor in visitors:
        shown = {
            way: [[item for item in items if item not in moment.basket][:N] for moment in visitor]
            for way, items in popular.items()
        }
        for recency in RECENCIES:
            shown[f"recency {recency}"] = [ids(list(moment.basket), recency) for moment in visitor]
        for recency in (1.0, RECENCY):
            weighted = [{item: weight / median for item, weight in moment.basket.items()} for moment in visitor]
            shown[f"weights, recency {recency}"] = [ids(basket, recency) for basket in weighted]
        for way, found in shown.items():
            hits = [not moment.following.isdisjoint(each) for moment, each in zip(visitor, found, strict=True)]
            rates.setdefault(way, []).append(float(np.mean(hits)))
    return rates


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("read", "days", "gamma"), [(ratings, 2, 2.0), (invoices, 16, 0.5)], ids=["movies", "retail"])
def test_folded_in_lists_have_more_of_the_next_items_than_popular_ones(
    read: Callable[[], pl.DataFrame], days: int, gamma: float, tmp_path: Path
) -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not on this machine")
    rows = read().drop_nulls().with_columns(pl.col("user", "item").cast(pl.String)).sort("time", maintain_order=True)
    cut = rows["time"][int(BEFORE * len(rows))]
    draw, before = np.random.default_rng(1), rows.filter(pl.col("time") <= cut)
    visitors = list(moments(rows.filter(pl.col("time") > cut), draw))
    visitors = [visitors[place] for place in draw.permutation(len(visitors))[:MOST_VISITORS]]
    url, recent, median = (
        publish(before, tmp_path, days, gamma),
        recently_popular(before, days),
        float(np.median(rows["weight"])),
    )
    for factors in (True, False):
        with hotplate.open_sync(url, fold_in=factors) as lists:
            rates = hit_rates(lists, visitors, recent, median)
        sys.stdout.write(f"\n{len(visitors)} visitors, {'factors' if factors else 'similar lists'}\n")
        for way, values in rates.items():
            more = np.subtract(values, rates["recency 1.0"])
            halves = [1.96 * np.std(each) / len(visitors) ** 0.5 for each in (values, more)]
            figures = f"{np.mean(values):.4f} ± {halves[0]:.4f}  {np.mean(more):+.4f} ± {halves[1]:.4f}"
            sys.stdout.write(f"{way:24} {figures}\n")
        assert np.mean(rates[f"recency {RECENCY}"]) > np.mean(rates["popular"])
