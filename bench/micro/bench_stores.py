"""What a list costs on its way into a store and out of it.

A round works on 1,000 lists or keys, unless its docstring says otherwise: its time in µs is the ns of one of them.
BENCH_USERS sets how many users the release has that is read.
"""

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.lists import Shape, key_of
from bench.micro.publishing import publish_to
from stores.catalogue import ReleaseRef
from stores.compression import Decompressor, Encoder, train
from stores.encoding import HEADER_BYTES, OFFSET_BYTES, Checksum, body_of, cut, decode
from stores.file.store import LmdbStore
from stores.store import Row

COUNT = 1_000
LIST_LENGTH, SERVED = 20, 10
USERS = int(os.environ.get("BENCH_USERS", "100000"))
ROUNDS = 200
RELEASE = "20261120T064200Z-7f3a"


@pytest.fixture(scope="module")
def drawn() -> list[bytes]:
    """Draw lists as a model gives them."""
    return [body[OFFSET_BYTES:] for body in Shape(1, LIST_LENGTH).drawn()]


@pytest.fixture(scope="module")
def lists(drawn: list[bytes]) -> list[bytes]:
    """Take those of one round."""
    return drawn[:COUNT]


@pytest.fixture(scope="module")
def dictionary(drawn: list[bytes]) -> bytes:
    """Train on all of them."""
    return train(drawn)


def for_each(benchmark: BenchmarkFixture, work: Callable[[bytes], object], values: Sequence[bytes]) -> None:
    """Benchmark *work* on each of *values*, one by one."""
    benchmark.extra_info |= {"count": len(values), "each": "list"}

    def work_on_all() -> None:
        for value in values:
            work(value)

    benchmark(work_on_all)


def bench_seal(benchmark: BenchmarkFixture, lists: list[bytes]) -> None:
    """What was encoded to its stored value: a checksum and a body."""
    plain = Encoder(Checksum(RELEASE), None)
    benchmark.extra_info |= {"count": len(lists), "each": "list"}
    benchmark(plain.rows, [Row("user:1", body_of(value)) for value in lists])


def bench_cut(benchmark: BenchmarkFixture, lists: list[bytes]) -> None:
    """From a stored value to the first 10 of 20 items: checked, and cut."""
    checksum = Checksum(RELEASE)
    values = [checksum.seal("user:1", body_of(value)) for value in lists]
    for_each(benchmark, lambda value: cut(checksum.open("user:1", value), SERVED), values)


def bench_decode(benchmark: BenchmarkFixture, lists: list[bytes]) -> None:
    """JSON to objects."""
    for_each(benchmark, decode, lists)


def bench_compress(benchmark: BenchmarkFixture, lists: list[bytes], dictionary: bytes) -> None:
    """JSON to zstd, a row at a time."""
    encoder = Encoder(Checksum(RELEASE), dictionary)
    for_each(benchmark, lambda body: encoder.rows([Row("user:1", body)]), [body_of(value) for value in lists])


def bench_decompress(benchmark: BenchmarkFixture, lists: list[bytes], dictionary: bytes) -> None:
    """Back from zstd to JSON."""
    values = [
        row.value
        for row in Encoder(Checksum(RELEASE), dictionary).rows([Row("user:1", body_of(value)) for value in lists])
    ]
    for_each(benchmark, Decompressor(dictionary).decompress, [value[HEADER_BYTES:] for value in values])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LmdbStore, ReleaseRef, dict[str, bytes]]]:
    """A store with a release of USERS lists, and a dict of the same; all of it was read once, which warms the map.

    The dict holds a value a key, as a real one would: shared values would stay in the processor's cache.
    """
    folder, shape = tmp_path_factory.mktemp("embedded"), Shape(USERS, LIST_LENGTH)
    release = publish_to(f"file://{folder}", shape, shape.values()).release
    assert release is not None
    store = LmdbStore(folder)
    copies = {key: value for key in map(key_of, range(USERS)) if (value := store.get(release, key)) is not None}
    assert len(copies) == USERS
    yield store, release, copies
    asyncio.run(store.close())


Embedded = tuple[LmdbStore, ReleaseRef, dict[str, bytes]]


def one_by_one(benchmark: BenchmarkFixture, get: Callable[[str], bytes | None]) -> None:
    """Benchmark *get* on random keys: new strings, as requests make them, so a dict has to hash them."""
    benchmark.extra_info |= {"count": COUNT, "each": "key"}

    def draw() -> tuple[tuple[list[str]], dict[str, object]]:
        return ([key_of(user) for user in random.choices(range(USERS), k=COUNT)],), {}  # noqa: S311 -- spreads reads

    def get_all(keys: Sequence[str]) -> None:
        for key in keys:
            get(key)

    pedantic = cast("Callable[..., object]", benchmark.pedantic)  # published without the types of its arguments
    pedantic(get_all, setup=draw, rounds=ROUNDS, warmup_rounds=5)


def bench_get(benchmark: BenchmarkFixture, embedded: Embedded) -> None:
    """Read lists from files, one by one."""
    store, release, _ = embedded
    one_by_one(benchmark, partial(store.get, release))


def bench_get_of_a_dict(benchmark: BenchmarkFixture, embedded: Embedded) -> None:
    """Read the same from a dict."""
    one_by_one(benchmark, embedded[2].get)
