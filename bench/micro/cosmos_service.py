"""Figures of the service over Cosmos DB: what a request takes of it, beside the same lists out of files.

The emulator shares the other core with the generator. Its own time is none of the figures, and no rate here is Azure's.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.micro import endpoint
from bench.micro.cosmos_reads import emulating
from bench.micro.redis_reads import ROUTE, hotplate
from bench.micro.rounds import Effort, Figure, Outcome, Sample, figures, interleave
from bench.process import Server, on_core

RU = 100_000
"""Of the release's container: more than the emulator can be asked for, so that nothing is throttled."""

CONNECTIONS = 32
"""Few enough that no answer is late, and popular lists, which cost less, do not flatter."""

FILES, PLAIN, SECURE = "file://", "cosmos+http://", "cosmos+https://"


def measure(effort: Effort) -> list[Outcome]:
    """Serve the same lists from each store, all services on one core, and ask for all that they can take, in turn."""
    paths = [f"{ROUTE}{user}" for user in range(endpoint.USERS)]
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        certificate = Path(made) / "emulator.pem"
        with on_core(1):
            plain = stack.enter_context(emulating())
            secure = stack.enter_context(emulating("--tls", "--certificate", str(certificate)))
        stores = {
            FILES: f"file://{made}/store",
            PLAIN: f"cosmos+{plain}db?ru={RU}",
            SECURE: f"cosmos+{secure}db?ru={RU}&ca={certificate}",
        }
        for url in stores.values():
            asyncio.run(endpoint.fill(url))
        services = {name: stack.enter_context(hotplate(url, paths[0])) for name, url in stores.items()}
        variants = {name: partial(read, service, paths, effort.round_s) for name, service in services.items()}
        with on_core(1):
            return list(outcomes(interleave(variants, effort.rounds)))


def read(server: Server, paths: Sequence[str], duration_s: float) -> Sample:
    """Ask for *paths* as often as they are answered; RuntimeError for an error, or a list that is not the user's."""
    before_s = server.cpu_s()
    load = Load(
        url=server.url,
        paths=paths,
        rate=None,
        duration_s=duration_s,
        connections=CONNECTIONS,
        headers=endpoint.HEADERS,
        observe=("source",),
    )
    result = run(load)
    if result.errors or set(result.seen["source"]) != {"personal"}:
        raise RuntimeError(f"{server.url} gave {dict(result.seen['source'])} and errors: {dict(result.errors)}")
    return Sample(result.ok_rate, (server.cpu_s() - before_s) * 1e6 / result.ok)


def outcomes(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Figure]:
    """Tell of each, and of what Cosmos DB takes beyond files, round by round."""
    for name, samples in taken.items():
        yield from figures(f"GET, {name}", samples, each="request")
    for name in (PLAIN, SECURE):
        pairs = zip(taken[name], taken[FILES], strict=True)
        more = [there.cpu_us_per_op - here.cpu_us_per_op for there, here in pairs]
        yield Figure(f"GET, {name} - {FILES}: CPU", "µs/request", more)
