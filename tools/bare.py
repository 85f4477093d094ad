"""Peers for the benchmarks: hotplate's libraries without checks, as `python -m tools.bare`.

`aiohttp PORT URL` serves copies of a service's responses, `import CSV LMDB` imports lists with polars, `train PARQUET
FACTORS` fits ALS with implicit.
"""

import sys
import urllib.request
import warnings
from collections.abc import Callable
from typing import Any

ROUTE = "/v1/recommendations/"
LENGTH = 20
COPIED = [f"{user:08d}" for user in range(1_000)]  # all responses fit into the CPU's cache
ROWS_AT_ONCE = 10_000
USERS_AT_ONCE = 4_096
MIN_PAIRS = 5
K = 10


def serve(port: str, like: str) -> None:
    """Serve copies of a service's responses by a bare aiohttp application, until a signal; a peer in measurements.

    *port* is the port to listen on, and *like* the URL of the service, which is asked for the lists of COPIED first.
    """
    import uvloop  # noqa: PLC0415 -- peers load only their own libraries
    from aiohttp import web  # noqa: PLC0415

    responses = {user: fetch(like + ROUTE + user) for user in COPIED}

    async def recommendations(request: web.Request) -> web.Response:
        response = responses.get(request.match_info["user"])
        if response is None:
            raise web.HTTPNotFound
        return web.Response(body=response[0], headers=response[1])

    app = web.Application()
    app.router.add_get(ROUTE + "{user:[^/]+}", recommendations)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop())


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    """Return a response's body and the application's headers."""
    automatic = {"connection", "content-length", "date", "keep-alive", "server"}
    with urllib.request.urlopen(url) as response:  # noqa: S310 -- http on loopback
        headers = {name: value for name, value in response.getheaders() if name.lower() not in automatic}
        return response.read(), headers


def import_lists(source: str, target: str) -> None:
    """Import a CSV file of user, item and score into a new LMDB file: each user's LENGTH best items, as JSON.

    Reads the file again, and raises RuntimeError if a list is missing.
    """
    import lmdb  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    # Rows sorted by user and descending score, with the JSON of each item.
    schema = {"user": pl.String, "item": pl.String, "score": pl.Float64}
    rows = pl.scan_csv(source, schema=schema).sort("user", "score", "item", descending=[False, True, False])
    json = pl.concat_str(pl.lit('{"id":"'), "item", pl.lit('","score":'), pl.col("score").cast(pl.String), pl.lit("}"))
    items = rows.collect(engine="streaming").select("user", json=json)

    # One row for each user: key and list.
    lists = items.group_by("user", maintain_order=True).agg(pl.col("json").head(LENGTH))
    encoded = lists.select(pl.lit("user:") + pl.col("user"), pl.col("json").list.join(",\n"))

    # Keys ascend, so that they can be appended.
    with lmdb.open(target, subdir=False, map_size=1 << 40, sync=False, lock=False) as environment:
        for part in encoded.iter_slices(ROWS_AT_ONCE):
            with environment.begin(write=True) as transaction:
                pairs = ((key.encode(), value.encode()) for key, value in part.iter_rows())
                transaction.cursor().putmulti(pairs, append=True)
        environment.sync(True)

    with lmdb.open(target, subdir=False, readonly=True, lock=False) as environment, environment.begin() as transaction:
        if sum(1 for _, value in transaction.cursor() if value) != encoded.height:
            raise RuntimeError(f"{target} does not hold all lists of {source}")


def train(path: str, factors: str) -> None:
    """Evaluate, fit and compute all lists of Online Retail with hotplate's defaults."""
    import implicit.cpu.als  # noqa: F401, PLC0415 -- only libraries that are loaded can be limited
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    warnings.simplefilter("ignore")
    with threadpool_limits(1, "blas"):
        _train(_read_retail(path), int(factors))


def _read_retail(path: str) -> Any:  # noqa: ANN401 -- scipy publishes no types
    """Return a csr_matrix [user, item] of float32 with 1 for each item that a user of Online Retail bought.

    Leaves out what hotplate's options for this data do: returns, articles without a price or a regular code, and
    users and items with fewer than MIN_PAIRS pairs.
    """
    import numpy as np  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    is_sale = (pl.col("quantity") > 0) & (pl.col("unit_price") > 0) & pl.col("stock_code").str.contains(r"^\d{5}")
    rows = pl.scan_parquet(path).filter(is_sale, pl.col("customer_id").is_not_null())
    user = pl.col("customer_id").cast(pl.String)
    item = pl.col("stock_code").cast(pl.String)
    pairs = rows.select(user=user, item=item).unique().collect()

    # Items without enough users may leave users without enough items, so repeat until nothing changes.
    height_before = 0
    while pairs.height != height_before:
        height_before = pairs.height
        pairs = pairs.filter(pl.len().over("user") >= MIN_PAIRS).filter(pl.len().over("item") >= MIN_PAIRS)

    # Rows and columns in the order of the ids.
    indices = []
    sizes = []
    for name in ("user", "item"):
        ids = pairs.get_column(name)
        distinct_ids = ids.unique().sort()
        indices.append(ids.cast(pl.Enum(distinct_ids)).to_physical().to_numpy().astype(np.int32))
        sizes.append(len(distinct_ids))
    return _matrix(indices[0], indices[1], (sizes[0], sizes[1]))


def _matrix(users: Any, items: Any, shape: tuple[int, int]) -> Any:  # noqa: ANN401 -- as above
    import numpy as np  # noqa: PLC0415
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    return csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)


def _train(user_items: Any, factors: int) -> None:  # noqa: ANN401 -- as above
    """Do the work of `hotplate train` and `publish` with implicit alone, on a csr_matrix [user, item].

    Prints the NDCG of ALS and of TF-IDF on a held-back quarter of the pairs, then fits ALS on all pairs, and computes
    the lists of all users and the neighbours of all items, which are dropped.
    """
    import numpy as np  # noqa: PLC0415
    from implicit.evaluation import ranking_metrics_at_k  # noqa: PLC0415
    from implicit.nearest_neighbours import TFIDFRecommender  # noqa: PLC0415

    pairs = user_items.tocoo()
    is_held_back = np.random.default_rng(1).random(pairs.nnz) < 1 / 4
    train_pairs = _matrix(pairs.row[~is_held_back], pairs.col[~is_held_back], pairs.shape)
    test_pairs = _matrix(pairs.row[is_held_back], pairs.col[is_held_back], pairs.shape)

    neighbours = TFIDFRecommender(K=10)
    neighbours.fit(train_pairs, show_progress=False)
    for fitted in (_fit(train_pairs, factors), neighbours):
        print(ranking_metrics_at_k(fitted, train_pairs, test_pairs, K=K, show_progress=False)["ndcg"])

    model = _fit(user_items, factors)
    users, items = user_items.shape
    for start in range(0, users, USERS_AT_ONCE):
        part = np.arange(start, min(start + USERS_AT_ONCE, users))
        model.recommend(part, user_items[part], N=LENGTH)
    for start in range(0, items, USERS_AT_ONCE):
        model.similar_items(np.arange(start, min(start + USERS_AT_ONCE, items)), N=LENGTH + 1)


def _fit(user_items: Any, factors: int) -> Any:  # noqa: ANN401 -- as above
    from implicit.cpu.als import AlternatingLeastSquares  # noqa: PLC0415

    model = AlternatingLeastSquares(factors=factors, regularization=30, alpha=4, iterations=15, random_state=42)
    model.fit(user_items, show_progress=False)
    return model


COMMANDS: dict[str, Callable[[str, str], None]] = {"aiohttp": serve, "import": import_lists, "train": train}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
