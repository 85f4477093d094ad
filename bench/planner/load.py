"""The load: users and requests as they will have grown, a day's hours, and what of it reaches the store."""

from dataclasses import dataclass

from bench.planner.caching import Cached, che, hottest_share
from bench.planner.figures import Book
from bench.planner.inputs import Inputs
from bench.planner.profiles import shape


@dataclass(frozen=True, slots=True)
class Load:
    """What the stores and the pods of one region must bear; rates in requests/s."""

    users: float
    rows: float
    peak: float
    """In the region that bears most, in the busiest hour."""

    hours: tuple[float, ...]
    """The 24 parts of the peak."""

    hit_rate: float
    hot_share: float
    """Of the reads that reach the store, those of the hottest key."""


def work_out_load(book: Book, inputs: Inputs) -> Load:
    """Work out users, rows and rates."""
    grown = (1 + inputs.growth_percent / 100) ** inputs.months
    book.work("growth", grown, "", "(1 + growth_percent / 100) ** months")
    users = book.work("users_then", inputs.users * grown, "users", "users * growth")
    rows = book.work("rows", (inputs.users + inputs.items) * grown, "lists", "(users + items) * growth")
    total = book.work("peak_then", inputs.peak_rps * grown, "requests/s", "peak_rps * growth")
    peak = book.work("peak_region", total * inputs.region_share, "requests/s", "peak_then * region_share")
    hours = shape(inputs.profile)
    book.work("mean_of_peak", sum(hours) / len(hours), "share", "the mean of profile by its busiest hour")
    hit_rate, hot_share = _skew(book, inputs, max(1, round(users)))
    book.work("reads_s", peak * (1 - hit_rate), "reads/s", "peak_region * (1 - hits)")
    return Load(users, rows, peak, hours, hit_rate, hot_share)


def _skew(book: Book, inputs: Inputs, users: int) -> tuple[float, float]:
    """Work out what the cache answers, and how much of the rest the hottest user asks for."""
    exponent = inputs.zipf or 0.0
    cached = che(users, exponent, inputs.cache_entries)
    if inputs.hit_rate is not None:
        cached = Cached(inputs.hit_rate, inputs.hit_rate)
        hits = book.work("hits", inputs.hit_rate, "share", "hit_rate")
    else:
        of = (
            "cache_entries of users_then, zipf" if inputs.zipf is not None else "cache_entries of users_then, all alike"
        )
        source = "H. Che et al., Hierarchical Web caching systems, IEEE JSAC 20(7), 2002; one cache, never cleared"
        hits = book.work("hits", cached.hit_rate, "share", f"Che's approximation: {of}", source=source)
    if inputs.hot_share is not None:
        asked = book.work("hot_user", inputs.hot_share, "share", "hot_share")
    elif inputs.zipf is None:
        asked = book.work("hot_user", 1 / users, "share", "1 / max(1, round(users_then))")
    else:
        first = hottest_share(users, exponent)
        asked = book.work("hot_user", first, "share", "chance of the first of users_then, zipf")
    missed = asked * (1 - cached.hottest)
    left = missed / (1 - hits) if hits < 1 else 0.0
    formula = "hot_user by the rest, where the cache answers the hottest as it does" if hits else "hot_user"
    return hits, book.work("hot_read", left, "share", formula)
