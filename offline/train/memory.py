"""The memory that learning takes, compared with what is left before it begins."""

from offline.errors import DataError
from stores.file.memory import room_bytes

_INDEX_BYTES, _NUMBER_BYTES = 4, 4


def als_bytes(pairs: int, users: int, items: int, factors: int) -> int:
    """
    Return about how many bytes ALS takes beside the matrix that it learns from.

    That is three more of the matrix (with confidences, turned round, and on the way there) and the factors: measured
    with 22 million pairs.
    """
    matrix = pairs * (_NUMBER_BYTES + _INDEX_BYTES) + (users + 1) * _INDEX_BYTES
    return 3 * matrix + (users + items) * factors * _NUMBER_BYTES


def ease_bytes(items: int) -> int:
    """Return about how many bytes EASE takes: a table of items by items in float64, and two in float32."""
    return 16 * items**2


def check_memory(needed: int, instead: str, room: float | None = None) -> None:
    """
    Raise DataError where *needed* bytes are more than the *room*: by default what machine and cgroups have left.

    *instead* is what else would help than more memory.
    """
    room = room_bytes() if room is None else room
    if needed > room:
        raise DataError(
            f"Learning takes about {needed / 1e9:,.1f} GB of memory, and {room / 1e9:,.1f} GB are left; give the "
            f"process more, {instead}."
        )
