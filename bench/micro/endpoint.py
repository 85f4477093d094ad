"""Figure: how many `GET`s one core answers, beside the plainest aiohttp service that gives the same answers."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.micro import aiohttp_peer
from bench.micro.rounds import Effort, Outcome, Sample, at_least, figures, interleave, ratio
from bench.process import Server, free_port, on_core, serving
from stores.connect import connect
from stores.encoding import ItemEncoder
from stores.keys import OVERALL, POPULAR, USER
from stores.lifecycle import publish
from stores.store import Plan, Row

USERS = 1_000
ITEMS = 2_000
LIST_LENGTH = 20
HEADERS = {"User-Agent": "hotplate-bench", "Accept": "application/json", "Accept-Language": "en"}


def measure(effort: Effort) -> list[Outcome]:
    """Start both servers on one core and the generator on another, and saturate them in turn."""
    with tempfile.TemporaryDirectory() as folder:
        store, listed = f"file://{folder}/store", Path(folder) / "paths"
        asyncio.run(fill(store))
        paths = [f"{aiohttp_peer.ROUTE}{number}" for number in range(USERS)]
        listed.write_text("\n".join(paths))
        port, peer_port = free_port(), free_port()
        ours = [sys.executable, "-m", "hotplate", "serve", "--store", store, "--port", str(port), "--workers", "1"]
        with serving(ours, port, paths[0]) as hotplate:
            copying = ["--port", str(peer_port), "--like", hotplate.url, "--paths-file", str(listed)]
            plain = [sys.executable, "-m", "bench.micro.aiohttp_peer", *copying]
            with serving(plain, peer_port, paths[0]) as peer, on_core(1):
                return compare(hotplate, peer, paths, effort)


def compare(hotplate: Server, peer: Server, paths: Sequence[str], effort: Effort) -> list[Outcome]:
    """Saturate the two in turn; they must give the same bytes and names of headers."""
    must_be_alike(hotplate.url + paths[0], peer.url + paths[0])
    samples = interleave(
        {
            "hotplate": partial(saturate, hotplate, paths, effort.round_s),
            "aiohttp": partial(saturate, peer, paths, effort.round_s),
        },
        effort.rounds,
    )
    ours, plain = samples["hotplate"], samples["aiohttp"]
    rates = [sample.rate_per_s for sample in ours], [sample.rate_per_s for sample in plain]
    cpus = [sample.cpu_us_per_op for sample in ours], [sample.cpu_us_per_op for sample in plain]
    return [
        *figures("GET on one core, hotplate", ours, each="request"),
        *figures("GET on one core, aiohttp over a dict", plain, each="request"),
        ratio("GET on one core, hotplate / aiohttp: rate", *rates, goal=at_least(0.75)),
        ratio("GET on one core, hotplate / aiohttp: CPU", *cpus),
    ]


def saturate(server: Server, paths: Sequence[str], duration_s: float) -> Sample:
    """Give *server* all that it can take for a while; RuntimeError when it gives one error, as errors are cheap."""
    before_s = server.cpu_s()
    result = run(Load(url=server.url, paths=paths, rate=None, duration_s=duration_s, headers=HEADERS))
    if result.errors:
        raise RuntimeError(f"{server.url} gave errors: {dict(result.errors)}")
    return Sample(result.ok_rate, (server.cpu_s() - before_s) * 1e6 / result.ok)


def must_be_alike(url: str, other: str) -> None:
    """Raise RuntimeError unless both answer with the same body and the same names of headers."""
    (body, headers), (other_body, other_headers) = aiohttp_peer.copy(url), aiohttp_peer.copy(other)
    if body != other_body:
        raise RuntimeError(f"the bodies of {url} and {other} differ: {body[:200]!r} and {other_body[:200]!r}")
    if differ := {name.lower() for name in headers} ^ {name.lower() for name in other_headers}:
        raise RuntimeError(f"only one of {url} and {other} sends the headers {sorted(differ)}")


async def fill(url: str) -> None:
    """Publish a small release: a list for each user, and the popular one."""
    encoder = ItemEncoder([f"item-{item}" for item in range(ITEMS)], [f"Title of item {item}" for item in range(ITEMS)])

    def made(key: str, first: int) -> Row:
        items = [(first * 7 + step) % ITEMS for step in range(LIST_LENGTH)]
        return Row(key, encoder.encode(items, [round(1 - step / 100, 4) for step in range(LIST_LENGTH)]))

    users = [made(key, number) for number, key in enumerate(sorted(f"{USER}{number}" for number in range(USERS)))]
    rows = [made(POPULAR + OVERALL, 0), *users]

    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield rows

    store = connect(url)
    try:
        plan = Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows))
        await publish(store, batches(), plan=plan, about={})
    finally:
        await store.close()
