"""A cache of the lists of a remote store, bounded in bytes: what was used last stays.

A release never changes, so its lists need no expiry, and those of a release that is not served any more are used no
more. That a key has no list is believed for ABSENT_S only, as a replica may be behind, or the list be repaired.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from hotplate.serve.releases.release import ServedRelease
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Slot

# How long a key counts as absent.
ABSENT_S = 10.0
# What an entry takes besides its key's and its value's text: three objects, and their place.
ENTRY_BYTES = 250

# Returned for a key that is not in the cache.
NOT_CACHED = StoreError("it is not in the cache")


class Cache:
    """The lists that were used last of what is served, live and as a canary; lives as long as its tier."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        """Hold *max_bytes* at most; *clock* gives seconds."""
        self._max_bytes, self._clock = max_bytes, clock
        self._entries = OrderedDict[tuple[int, str], bytes | float]()
        """A list by the number of its release and its key; the time until which it counts as absent if there is none.

        As it is never emptied at once, a flip makes no pause.
        """
        self.bytes = 0
        """How much it holds."""

    def get(self, served: ServedRelease, key: str) -> Slot:
        """Return the list of *key* in a release; NOT_CACHED if it is to be read."""
        entry = served.number, key
        value = self._entries.get(entry)
        if value is None:
            return NOT_CACHED
        self._entries.move_to_end(entry)
        if isinstance(value, bytes):
            return value
        return None if value > self._clock() else NOT_CACHED

    def put(self, served: ServedRelease, keys: Sequence[str], slots: Sequence[Slot]) -> None:
        """Keep what was read of a release."""
        absent_until, entries = self._clock() + ABSENT_S, self._entries
        for key, slot in zip(keys, slots, strict=True):
            if isinstance(slot, StoreError):
                continue
            entry = served.number, key
            value = absent_until if slot is None else slot
            if (size := _size(key, value)) > self._max_bytes:
                continue
            self.bytes += size
            if (before := entries.pop(entry, None)) is not None:
                self.bytes -= _size(key, before)
            entries[entry] = value
            while self.bytes > self._max_bytes:
                (_, oldest), gone = entries.popitem(last=False)
                self.bytes -= _size(oldest, gone)


def _size(key: str, value: bytes | float) -> int:
    return len(key) + (len(value) if isinstance(value, bytes) else 0) + ENTRY_BYTES
