"""What a read of the embedded store costs in a warm process, beside a dict that holds the same lists."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.lists import Shape, key_of
from bench.micro.rounds import Figure, Sample, at_most, figures, interleave, ratio
from stores.catalogue import ReleaseId
from stores.lmdb_store import LmdbStore

READS = 200_000


def compare(shape: Shape, values: Sequence[bytes], folder: Path, rounds: int) -> list[Figure]:
    """Read random keys of the live release of *folder*, one by one and by batches, and of a dict, in turn."""
    store = LmdbStore(folder)
    try:
        live = asyncio.run(store.catalogue()).live
        if live is None:
            raise RuntimeError(f"nothing is live in {folder}")
        held = read_all(store, live, shape, values)
        return _figures(store, live, held, rounds)
    finally:
        asyncio.run(store.close())


def read_all(store: LmdbStore, live: ReleaseId, shape: Shape, values: Sequence[bytes]) -> dict[str, bytes]:
    """Read every list once, which warms this process's map, and keep the copies; RuntimeError for a wrong one.

    The copies are a value a key, as a real dict's would be: shared values would stay in the processor's cache.
    """
    held = dict[str, bytes]()
    for rows in shape.batches(values):
        for key, value in rows:
            found = store.get(live, key)
            if found != value:
                raise RuntimeError(f"{store.folder} does not hold what was published for {key}")
            held[key] = found
    return held


def _figures(store: LmdbStore, live: ReleaseId, held: dict[str, bytes], rounds: int) -> list[Figure]:
    users = len(held) - 1
    samples = interleave(
        {
            "get": partial(one_by_one, partial(store.get, live), users),
            "dict": partial(one_by_one, held.get, users),
            "get_many": partial(by_batches, store, live, users),
        },
        rounds,
    )
    cpus = {name: [sample.cpu_us_per_op for sample in taken] for name, taken in samples.items()}
    return [
        *figures("file://, warm get", samples["get"], each="key"),
        *figures("a dict's get of the same keys", samples["dict"], each="key"),
        ratio("file://, warm get / a dict's get: CPU", cpus["get"], cpus["dict"], goal=at_most(3)),
        *figures(f"file://, warm get_many of {store.batch}", samples["get_many"], each="key"),
    ]


def one_by_one(get: Callable[[str], bytes | None], users: int) -> Sample:
    """Read random users' keys; they are new strings each time, as requests make them, so a dict has to hash them."""
    keys = random_keys(users)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for key in keys:
        get(key)
    return _sample(wall_s, cpu_s)


def by_batches(store: LmdbStore, live: ReleaseId, users: int) -> Sample:
    """Read random users' keys, as many in a call as the store asks for."""
    keys = random_keys(users)
    batches = [keys[start : start + store.batch] for start in range(0, READS, store.batch)]

    async def read() -> None:
        for batch in batches:
            await store.get_many(live, batch)

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    asyncio.run(read())
    return _sample(wall_s, cpu_s)


def random_keys(users: int) -> list[str]:
    """Draw the keys of READS users, with replacement."""
    return [key_of(user) for user in random.choices(range(users), k=READS)]  # noqa: S311 -- spreads reads, guards nothing


def _sample(wall_s: float, cpu_s: float) -> Sample:
    took_s = time.perf_counter() - wall_s
    return Sample(READS / took_s, (time.process_time() - cpu_s) * 1e6 / READS)
