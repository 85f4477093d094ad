"""What training costs at least: polars and implicit called as plainly as can be, with nothing kept and nothing checked.

`python -m hotplate.bench.micro.bare_training FILE FACTORS` reads pairs of user and item, holds a quarter back, fits,
measures, compares with nearest neighbours and popularity, fits on everything, and computes every user's list and every
item's. Parameters, splits' shares, neighbours and the last solve of the users' factors are those of hotplate.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from implicit.cpu._als import least_squares_cg
from implicit.cpu.als import AlternatingLeastSquares
from implicit.nearest_neighbours import TFIDFRecommender
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # published without types

RETAIL_COLUMNS = ("customer_id", "stock_code")
RETAIL_RECIPE = (pl.col("quantity") > 0) & (pl.col("unit_price") > 0) & pl.col("stock_code").str.contains(r"^\d{5}")
LOG_COLUMNS = ("user", "item")
K = 10
LIST_LENGTH = 20
USERS_AT_ONCE = 4096
MIN_PAIRS = 5


def main() -> None:
    """Do the job once."""
    warnings.simplefilter("ignore")  # implicit converts the matrices of its own making
    with threadpool_limits(1, "blas"):
        train_on(read(sys.argv[1]), int(sys.argv[2]))


def read(path: str) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Read pairs into a matrix; Online Retail by its recipe."""
    rows = pl.scan_parquet(path)
    columns = rows.collect_schema().names()
    retail = set(RETAIL_COLUMNS) <= set(columns)
    user, item = RETAIL_COLUMNS if retail else LOG_COLUMNS
    if retail:
        rows = rows.filter(RETAIL_RECIPE, pl.col(user).is_not_null())
    pairs = rows.select(user=pl.col(user).cast(pl.String), item=pl.col(item).cast(pl.String)).unique().collect()
    while retail:
        kept = pairs.filter(pl.len().over("user") >= MIN_PAIRS).filter(pl.len().over("item") >= MIN_PAIRS)
        retail, pairs = kept.height < pairs.height, kept
    codes, sizes = [], []
    for name in ("user", "item"):
        ids = pairs.get_column(name)
        distinct = ids.unique().sort()
        codes.append(ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32))
        sizes.append(len(distinct))
    return matrix(codes[0], codes[1], (sizes[0], sizes[1]))


def matrix(users: Any, items: Any, shape: tuple[int, int]) -> Any:  # noqa: ANN401 -- as above
    """Make a matrix of ones."""
    return csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)


def train_on(everything: Any, factors: int) -> None:  # noqa: ANN401 -- as above
    """Evaluate, and compute all lists."""
    pairs = everything.tocoo()
    held_back = np.random.default_rng(1).random(pairs.nnz) < 1 / 4
    train = matrix(pairs.row[~held_back], pairs.col[~held_back], pairs.shape)
    test = matrix(pairs.row[held_back], pairs.col[held_back], pairs.shape)
    tested = np.flatnonzero(np.diff(test.indptr))
    neighbours = TFIDFRecommender(K=10)
    neighbours.fit(train, show_progress=False)
    popular = np.argsort(-np.bincount(train.indices, minlength=train.shape[1]))[:K]
    for recommend in (fit(train, factors).recommend, neighbours.recommend):
        print(ndcg(lists(recommend, train, tested, K), test, tested))
    print(ndcg(np.tile(popular, (len(tested), 1)), test, tested))
    model = fit(everything, factors)
    lists(model.recommend, everything, np.arange(everything.shape[0]), LIST_LENGTH)
    for start in range(0, everything.shape[1], USERS_AT_ONCE):
        model.similar_items(np.arange(start, min(start + USERS_AT_ONCE, everything.shape[1])), N=LIST_LENGTH + 1)


def fit(user_items: Any, factors: int) -> Any:  # noqa: ANN401 -- as above
    """Fit as hotplate does by default, so lists are the same."""
    model = AlternatingLeastSquares(factors=factors, regularization=30, alpha=4, iterations=15, random_state=42)
    model.fit(user_items, show_progress=False)
    least_squares_cg(4 * user_items, model.user_factors, model.item_factors, 30, cg_steps=6)
    return model


def lists(recommend: Callable[..., Any], user_items: Any, users: Any, n: int) -> Any:  # noqa: ANN401 -- as above
    """Return the lists of *users*."""
    parts = [users[start : start + USERS_AT_ONCE] for start in range(0, len(users), USERS_AT_ONCE)]
    return np.concatenate([recommend(part, user_items[part], N=n)[0] for part in parts])


def ndcg(recommended: Any, test: Any, tested: Any) -> float:  # noqa: ANN401 -- as above
    """Return nDCG of the lists of the users *tested*."""
    width = np.int64(test.shape[1])
    keys = np.sort(test.tocoo().row * width + test.indices)
    wanted = tested[:, None] * width + recommended
    hits = keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted
    discounts = 1 / np.log2(np.arange(2, K + 2))
    ideal = np.cumsum(discounts)[np.minimum(np.diff(test.indptr)[tested], K) - 1]
    return float(((hits * discounts).sum(axis=1) / ideal).mean())


if __name__ == "__main__":
    main()
