"""The budget of a search, and the announced cost of a training.

Both are in seconds of a core, estimated from the size of the data. A *cell* is an engine with its parameters.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from hotplate.offline.evaluate.splits import Parts
from hotplate.offline.input.pairs import UserItems
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import (
    Params,
    engine_of,
    estimate_fit_bytes,
    estimate_fit_s,
    estimate_ranking_s,
    spec_of,
)
from hotplate.stores.folders import room_bytes

# Seconds of a core for cells, share of that for recency, bytes of a fit, seconds of the last fit.
BUDGET_S = 36.0
RECENCY_SHARE = 0.4
BUDGET_BYTES = 650e6
LAST_FIT_S = 900.0
# Ranks cells as well as more iterations, in half of the time.
TRIAL_ITERATIONS = 8
# Measured: trials of recency and blends per engine, and the share of the search in the CPU of a training with an
# evaluation. All of that takes as long as the estimate of the first cells, on a new core.
_RECENCIES = 13
_SEARCH_SHARE = 0.7
# Seconds of a trial's metrics.
_TRIAL_S = 0.02


def with_fewer_iterations(params: Params) -> Params:
    """Return *params* with the iterations of a trial, at most 8."""
    if isinstance(params, BlendParams):
        return replace(params, als=_with_fewer_iterations(params.als))
    return _with_fewer_iterations(params) if isinstance(params, ALSParams) else params


def _with_fewer_iterations(params: ALSParams) -> ALSParams:
    return replace(params, iterations=min(TRIAL_ITERATIONS, params.iterations))


def counts_by_engine(cells: Iterable[Params]) -> str:
    """Return the number of *cells* of each engine, such as `3 of als, 1 of ease`."""
    engines = Counter(map(engine_of, cells))
    return ", ".join(f"{count} of {engine}" for engine, count in engines.items())


class Budget:
    """Limits of a search: seconds by prices that do not depend on the machine, and memory.

    *seconds* None is BUDGET_S, and BUDGET_BYTES for a trial; with a number, even inf, only the free memory bounds a
    trial. Cells whose last fit would not fit into the free memory, or take over LAST_FIT_S, are always left out.
    """

    def __init__(self, splits: Sequence[Parts], user_items: UserItems, seconds: float | None) -> None:
        self._splits = splits
        self._user_items = user_items
        self._seconds = BUDGET_S if seconds is None else seconds
        self._bytes = BUDGET_BYTES if seconds is None else float(room_bytes())
        self._left_for_cells = self._seconds
        self._left_for_recency = RECENCY_SHARE * self._seconds
        self.left_out: dict[Params, None] = {}

    def affordable(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells* that the budget pays for, and subtract their estimated seconds from it.

        The cheapest cells, each an engine with its parameters, are paid first. A cell is left out, and noted in
        `left_out`, if the seconds left (`_left_for_cells`) do not suffice, if a fit takes too much memory, or if the
        fit on all data takes too long.
        """
        paid: set[Params] = set()
        for params in sorted(cells, key=self._price):
            price_s = self._price(params)
            is_last_fit_short = estimate_fit_s(params, self._user_items) <= LAST_FIT_S

            if is_last_fit_short and self._fits_memory(params) and price_s <= self._left_for_cells:
                self._left_for_cells -= price_s
                paid.add(params)
            else:
                self.left_out[params] = None
        return [params for params in cells if params in paid]

    def affordable_recencies(self, cells: Sequence[Params]) -> list[Params]:
        """Return those of *cells* whose lists the budget for recency pays for; their fits exist."""
        paid = []
        for params in cells:
            price = self._ranking_price(params)
            if price <= self._left_for_recency:
                self._left_for_recency -= price
                paid.append(params)
        return paid

    @property
    def limits(self) -> str:
        """A sentence on the cells left out."""
        return (
            f"not tried within {self._seconds:.0f} s of a core, {self._bytes / 1e9:.1f} GB, and {LAST_FIT_S:.0f} s "
            f"of a last fit: {counts_by_engine(self.left_out)}; --tune SECONDS allows more"
        )

    def _fits_memory(self, params: Params) -> bool:
        """Return whether a trial fits into the budget's memory, and the last fit into the free memory."""
        trial = max(estimate_fit_bytes(params, parts.train) for parts in self._splits)
        return trial <= self._bytes and estimate_fit_bytes(params, self._user_items) <= room_bytes()

    def _price(self, params: Params) -> float:
        """Return what a trial takes of the budget, fits and lists on all splits."""
        spec = spec_of(params)
        price = spec.fit_price or spec.fit_s
        fits = sum(price(with_fewer_iterations(params), parts.train) for parts in self._splits)
        return fits + self._ranking_price(params)

    def _ranking_price(self, params: Params) -> float:
        return sum(estimate_ranking_s(params, _tested_rows(parts)) for parts in self._splits)


def announced_s(splits: Sequence[Parts], cells: Sequence[Params], *, tries_recency: bool, is_evaluated: bool) -> float:
    """Estimate the seconds of a core that a training takes with a search of *cells* on *splits*.

    tries_recency  whether the best cell of each engine is tried with several recencies
    is_evaluated   whether the model is evaluated, and similar items and repeats are chosen, too
    """
    ranks_s = {params: sum(_TRIAL_S + estimate_ranking_s(params, _tested_rows(p)) for p in splits) for params in cells}
    fits = [estimate_fit_s(with_fewer_iterations(params), parts.train) for params in cells for parts in splits]
    seconds = sum([*fits, *ranks_s.values()])
    if tries_recency:
        for engine in {engine_of(params) for params in cells}:
            of_engine = [seconds for params, seconds in ranks_s.items() if engine_of(params) == engine]
            seconds += _RECENCIES * fmean(of_engine)
    return seconds if is_evaluated else _SEARCH_SHARE * seconds


def _tested_rows(parts: Parts) -> UserItems:
    """Return the interactions of the tested users."""
    return parts.seen[parts.tested]
