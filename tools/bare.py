"""Peers for the benchmarks: hotplate's libraries without checks, as `python -m tools.bare`.

`aiohttp PORT URL` serves copies of a service's responses, `import CSV LMDB` imports lists with polars.
"""

import sys
import urllib.request
from collections.abc import Callable

ROUTE = "/v1/recommendations/"
LENGTH = 20
COPIED = [f"{user:08d}" for user in range(1_000)]  # all responses fit into the CPU's cache
ROWS_AT_ONCE = 10_000


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


COMMANDS: dict[str, Callable[[str, str], None]] = {"aiohttp": serve, "import": import_lists}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
