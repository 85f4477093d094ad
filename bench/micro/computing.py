"""Figures of the pure parts: a list encoded, cut, decoded, compressed and opened; a step of ALS, top-N and metrics."""

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from scipy.sparse import csr_matrix

from bench.lists import ITEMS, Shape
from bench.micro.rounds import Effort, Figure, Outcome, Sample, figures, interleave
from offline.evaluate import measure as measure_lists
from offline.input.matrix import UserItems
from offline.train.als import ALSParams, Factors, fit, recommend
from stores.compression import TRAINED_ON, Compressor, Decompressor, train
from stores.encoding import ItemEncoder, cut, decode
from stores.store import Row

LIST_LENGTH, SERVED = 20, 10
CALLS = 100_000
MOST_USERS = 20_000
EACH_LIKES = 30
FACTORS = 64

T = TypeVar("T")


def measure(effort: Effort) -> list[Outcome]:
    """Measure lists one by one, and the mathematics with a tenth of the effort's users, 20,000 at most."""
    return [*lists(effort), *learning(effort)]


def lists(effort: Effort) -> list[Figure]:
    """Measure what happens to one list on its way into a store and out of it."""
    shared = Shape(1, LIST_LENGTH).drawn()
    encoder = ItemEncoder([str(1000 + item) for item in range(ITEMS)], [None] * ITEMS)
    picked = np.random.default_rng(0).integers(ITEMS, size=(len(shared), LIST_LENGTH)).tolist()
    scores = [round(0.9999 - place / 100, 4) for place in range(LIST_LENGTH)]
    dictionary = train(shared[:TRAINED_ON])
    compressor, opener = Compressor(dictionary), Decompressor(dictionary)
    packed = [row.value for row in compressor.rows([Row("user:1", value) for value in shared])]
    subjects: dict[str, Callable[[], Sample]] = {
        f"encode {LIST_LENGTH} items": partial(one_by_one, lambda items: encoder.encode(items, scores), picked),
        f"cut {LIST_LENGTH} items to {SERVED}": partial(one_by_one, lambda value: cut(value, SERVED), shared),
        "decode, json: a list to objects": partial(one_by_one, decode, shared),
        "compress, zstd": partial(one_by_one, lambda value: compressor.rows([Row("user:1", value)]), shared),
        "open, zstd": partial(one_by_one, opener.decode, packed),
    }
    taken = interleave(subjects, effort.rounds)
    return [figure for name, samples in taken.items() for figure in figures(name, samples, each="list")]


def learning(effort: Effort) -> list[Figure]:
    """Measure a fit's iteration, the lists of all users, and their evaluation; all cores where the work takes them."""
    users = min(max(effort.users // 10, 100), MOST_USERS)
    liked = made_up(users)
    trained = fit(liked, ALSParams(factors=FACTORS, iterations=1))
    everybody = np.arange(users, dtype=np.int32)
    recommended, _ = recommend(trained, liked, everybody, LIST_LENGTH)
    subjects: dict[str, Callable[[], Sample]] = {
        f"ALS, {FACTORS} factors, {EACH_LIKES * users:,} interactions: one iteration": partial(iteration, liked),
        f"top {LIST_LENGTH} of {ITEMS:,} items": partial(top, trained, liked),
        "metrics of the lists": partial(at_once, lambda: measure_lists(recommended, liked), users),
    }
    taken = interleave(subjects, effort.rounds)
    return [figure for name, samples in taken.items() for figure in figures(name, samples, each="user")]


def made_up(users: int) -> UserItems:
    """Draw what each user liked, popular items more often."""
    chance = np.random.default_rng(0)
    weights = 1 / np.arange(10, ITEMS + 10)
    drawn = chance.choice(ITEMS, users * EACH_LIKES, p=weights / weights.sum())
    rows = np.repeat(np.arange(users), EACH_LIKES)
    made = csr_matrix((np.ones(len(drawn), np.float32), (rows, drawn)), shape=(users, ITEMS))
    made.sum_duplicates()
    return made


def iteration(liked: UserItems) -> Sample:
    """Fit twice, once with an iteration more, and take the difference: what else a fit does is the same in both."""
    users, spent = liked.shape[0], []
    for count in (1, 2):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        fit(liked, ALSParams(factors=FACTORS, iterations=count))
        spent.append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    (wall_s, cpu_s), (more_wall_s, more_cpu_s) = spent
    return Sample(users / max(more_wall_s - wall_s, 1e-9), max(more_cpu_s - cpu_s, 0.0) * 1e6 / users)


def top(trained: Factors, liked: UserItems) -> Sample:
    """Rank for everybody."""
    everybody = np.arange(liked.shape[0], dtype=np.int32)
    return at_once(lambda: recommend(trained, liked, everybody, LIST_LENGTH), len(everybody))


def one_by_one(work: Callable[[T], object], things: Sequence[T]) -> Sample:
    """Do *work* CALLS times, with *things* in turn."""
    chosen = list(itertools.islice(itertools.cycle(things), CALLS))

    def all_of_them() -> None:
        for thing in chosen:
            work(thing)

    return at_once(all_of_them, CALLS)


def at_once(work: Callable[[], object], count: int) -> Sample:
    """Do *work* once, which is for *count* lists or users."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    took_s, spent_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Sample(count / took_s, spent_s * 1e6 / count)
