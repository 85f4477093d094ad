"""From the errors of redis-py and of the network to ours: the one place where they are translated."""

from redis import exceptions as foreign

from stores.errors import StoreError, StoreFull, StoreMisused, StoreUnavailable

# From the special to the general; the first that fits applies.
MEANINGS: tuple[tuple[tuple[type[BaseException], ...], type[StoreError], str], ...] = (
    (
        (foreign.OutOfMemoryError,),
        StoreFull,
        "{where} has reached its maxmemory; raise it, prune old releases, or publish shorter lists",
    ),
    ((foreign.ReadOnlyError,), StoreUnavailable, "{where} is a read-only replica; give the URL of the primary"),
    (
        (foreign.AuthenticationError,),
        StoreUnavailable,
        "{where} does not accept this user and password; check the URL or the secret",
    ),
    ((foreign.NoPermissionError,), StoreMisused, "the Redis user of {where} lacks a permission: {error}"),
    ((foreign.BusyLoadingError,), StoreUnavailable, "{where} is still loading its data; it answers once that is done"),
    ((foreign.TimeoutError, TimeoutError), StoreUnavailable, "{where} did not answer in time"),
    ((foreign.ResponseError,), StoreUnavailable, "{where} refused: {error}"),
    ((BaseException,), StoreUnavailable, "{where} cannot be reached: {error}"),
)


def translated(error: BaseException, where: str) -> StoreError:
    """Return our error for a foreign one; *where* is the store's URL without secrets. Free of secrets itself."""
    kind, sentence = next((kind, sentence) for kinds, kind, sentence in MEANINGS if isinstance(error, kinds))
    return kind(sentence.format(where=where, error=error))
