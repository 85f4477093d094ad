"""The declaration of an engine: what the search, the model folder and the budget know of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from hotplate.offline.input.history import Times
from hotplate.offline.input.pairs import UserItems, items_per_user
from hotplate.offline.train.ranking import RecentWeights

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ParamsT = TypeVar("ParamsT", bound="DataclassInstance")
RankerT = TypeVar("RankerT", bound="DataclassInstance")
# Parameters that no search varies; recency is that of scores.
_FIXED = frozenset({"iterations", "seed", "recency"})
# Called with the iterations done and their total.
OnIteration: TypeAlias = Callable[[int, int], None]


class StoredArray(NamedTuple):
    """An array of a fitted model, an attribute and a file of this *name*.

    is_by_user  whether it has a row per user, else per item
    is_sparse   whether it is a csr_matrix [items, items]
    """

    name: str
    is_by_user: bool = False
    is_sparse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec(Generic[ParamsT, RankerT]):
    """An engine. *user_items* is a float32 csr_matrix [users, items], canonical, above zero.

    fit            called with (user_items, params, on_iteration, times); without recency, which `engine.fit` adds
    ranker         the class of a fitted model
    arrays         of a fitted model
    fit_s          estimated seconds of a fit on one core
    fit_bytes      estimated memory of a fit, besides the matrix
    ranking_s      estimated seconds of a core to rank items for the users of a matrix
    fit_price      price of a fit in the budget of a search, in rough seconds of a core; where given, it replaces
                   *fit_s*, because the rules of the search were validated with the cells that these prices allow
    memory_advice  what to do if memory does not suffice
    varied         names and values of the parameters that a search varies, as the command reads them; by default all
                   but iterations, seed and recency
    cells          default ones of a search: called with (the first one, items)
    past_edge      further cells: called with (cells tried, the best first, items)
    """

    params: type[ParamsT]
    ranker: type[RankerT]
    fit: Callable[[UserItems, ParamsT, OnIteration | None, Times | None], RankerT]
    arrays: tuple[StoredArray, ...]
    varied: Callable[[ParamsT], dict[str, Any]] = lambda params: {
        name: value for name, value in asdict(params).items() if name not in _FIXED
    }
    fit_s: Callable[[ParamsT, UserItems], float] = lambda _params, user_items: 1e-8 * float(user_items.nnz)
    fit_bytes: Callable[[ParamsT, UserItems], int] = lambda _params, _user_items: 0
    ranking_s: Callable[[ParamsT, UserItems], float] = lambda _params, rows: ranking_s(rows)
    fit_price: Callable[[ParamsT, UserItems], float] | None = None
    memory_advice: str = ""
    cells: Callable[[ParamsT, int], Iterable[ParamsT]] = lambda _first, _items: ()
    past_edge: Callable[[Sequence[ParamsT], int], Iterable[ParamsT]] = lambda _best_first, _items: ()

    def restored(self, arrays: Mapping[str, Any], params: ParamsT, recent: RecentWeights | None) -> RankerT:
        """Return the fitted model that has these arrays by name."""
        values = {**arrays, "params": params, "recent": recent}
        return self.ranker(**{field.name: values[field.name] for field in fields(self.ranker)})


def product_terms(user_items: UserItems) -> float:
    """Return the number of terms of a product of all items with all items."""
    return float((items_per_user(user_items).astype(np.float64) ** 2).sum())


def ranking_s(rows: UserItems, *, of_pair: float = 5e-9, of_interaction: float = 0.0) -> float:
    """Estimate the seconds of a core to rank all items for the users of *rows*; the factors were measured on a Xeon."""
    users, items = map(float, rows.shape)
    return items * (users * of_pair + of_interaction * float(rows.nnz))


def scales_past_edge(values: Sequence[float], up: float, down: float) -> list[float]:
    """Return *up* if the first of *values*, the best one, is the largest, and *down* if it is the smallest."""
    scales = []
    if values[0] == max(values):
        scales.append(up)
    if values[0] == min(values):
        scales.append(down)
    return scales
