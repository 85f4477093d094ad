"""Estimates of the time and memory that learning and ranking take, by which a search chooses what it can afford."""

import numpy as np

from hotplate.offline.errors import DataError
from hotplate.offline.input.matrix import UserItems
from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.stores.file.memory import room_bytes

_INDEX_BYTES, _NUMBER_BYTES = 4, 4


def fit_s(params: object, user_items: UserItems) -> float:
    """Return about how many seconds of a core a fit takes; measured on an Intel Xeon."""
    together = float((np.diff(user_items.indptr).astype(np.float64) ** 2).sum())  # pairs of items that users have
    match params:
        case ALSParams():
            return 5e-10 * params.iterations * params.factors**2 * float(sum(user_items.shape))
        case EASEParams():
            return 1.1e-11 * float(user_items.shape[1]) ** 3 + 1.8e-8 * together
        case NeighbourParams():
            return 3e-8 * together
        case _:
            return 1e-8 * float(user_items.nnz)


def rank_s(params: object, rows: UserItems) -> float:
    """Return about how many seconds of a core the lists take of the users who have *rows* [users, items]."""
    users, items = map(float, rows.shape)
    of_pair = 5e-9 + (6e-11 * params.factors if isinstance(params, ALSParams) else 0)
    return items * (users * of_pair + (3e-10 * float(rows.nnz) if isinstance(params, EASEParams) else 0))


def fit_bytes(params: object, user_items: UserItems) -> int:
    """Return about how many bytes a fit takes besides the matrix that it learns from."""
    users, items = user_items.shape
    match params:
        case ALSParams():
            # Three more of the matrix (with confidences, turned round, and on the way there) and the factors: measured
            # with 22 million pairs.
            matrix = user_items.nnz * (_NUMBER_BYTES + _INDEX_BYTES) + (users + 1) * _INDEX_BYTES
            return int(3 * matrix + (users + items) * params.factors * _NUMBER_BYTES)
        case EASEParams():
            return int(4 * items**2 + 4096 * items)  # a table of items by items, and a block of it in float64
        case _:
            return 0


def check_memory(needed: int, instead: str, room: float | None = None) -> None:
    """Raise DataError where *needed* bytes are more than the *room*: by default what machine and cgroups have left.

    *instead* is what else would help than more memory.
    """
    room = room_bytes() if room is None else room
    if needed > room:
        raise DataError(
            f"Learning takes about {needed / 1e9:,.1f} GB of memory, and {room / 1e9:,.1f} GB are left; give the "
            f"process more, {instead}."
        )
