"""ALS on Spark."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from hotplate.offline.errors import DataError
from hotplate.offline.input.matrix import Floats, UserItems, check_user_items
from hotplate.offline.spark.session import cause_of
from hotplate.offline.train.als import Factors, SparkParams, confidences

# Spark draws initial factors by block. The number of blocks depends on the data alone, so executors change only the
# order of sums.
_PAIRS_PER_BLOCK = 500_000
_BLOCKS = (2, 1000)


def fit(user_items: UserItems, params: SparkParams, on_iteration: Callable[[int, int], None] | None = None) -> Factors:
    """Factorize *user_items* (float32 csr_matrix, canonical, positive) in the active session.

    User factors solve the final item factors. *on_iteration* is called once, at the end. Raises DataError for an
    invalid matrix, for factors that are not finite, and if Spark fails.
    """
    check_user_items(user_items)
    session = SparkSession.builder.getOrCreate()
    blocks = int(np.clip(user_items.nnz // _PAIRS_PER_BLOCK, *_BLOCKS))
    solver = ALS(
        rank=params.factors,
        maxIter=params.iterations,
        regParam=params.reg_param,
        implicitPrefs=True,
        alpha=1.0,
        seed=params.seed,
        numUserBlocks=blocks,
        numItemBlocks=blocks,
        userCol="user",
        itemCol="item",
        ratingCol="rating",
    )
    try:
        model = solver.fit(session.createDataFrame(_ratings(user_items, params)))
        users, items = user_items.shape
        factors = Factors(
            _collected(model.userFactors, users, params), _collected(model.itemFactors, items, params), params
        )
    except Py4JJavaError as error:
        raise DataError(f"Spark could not learn: {cause_of(error)}.") from error
    if not (np.isfinite(factors.user_factors).all() and np.isfinite(factors.item_factors).all()):
        raise DataError(
            f"The factors are not finite with reg_param {params.reg_param} and alpha {params.alpha}; raise reg_param."
        )
    if on_iteration is not None:
        on_iteration(params.iterations, params.iterations)
    return factors


def _ratings(user_items: UserItems, params: SparkParams) -> pa.Table:
    """Return confidences less one, which Spark adds."""
    users = np.repeat(np.arange(user_items.shape[0], dtype=np.int32), np.diff(user_items.indptr))
    ratings = confidences(user_items.data, params.alpha) - np.float32(1)
    return pa.table({"user": users, "item": user_items.indices.astype(np.int32), "rating": ratings})


def _collected(frame: DataFrame, count: int, params: SparkParams) -> Floats:
    """Return factors [count, factors] by id, zeros for ids without pairs."""
    found = frame.toArrow()
    factors = np.zeros((count, params.factors), dtype=np.float32)
    for batch in found.to_batches():
        rows = batch.column("features").flatten().to_numpy().reshape(-1, params.factors)
        factors[batch.column("id").to_numpy()] = rows
    return factors
