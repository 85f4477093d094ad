"""A cache of the lists of a remote store's live release, bounded in bytes.

A release never changes, so its lists need no expiry: the release that follows it begins with an empty cache. That
a key has no list is believed for ABSENT_S only, as a replica may be behind, or the list be repaired.
"""

from collections.abc import Callable, Sequence

from hotplate.stores.errors import StoreError
from hotplate.stores.store import Slot

# How long a key counts as absent.
ABSENT_S = 10.0
# What an entry takes besides its key's and its value's text: two objects, and their places in a dict.
ENTRY_BYTES = 150
# Lists are dropped by half of a shard at once, and a shard is emptied when it is first written to after a flip: with so
# many shards, 0.3 µs for each list make pauses of a millisecond at most.
SHARDS = 128

# Returned for a key that is not in the cache.
NOT_CACHED = StoreError("it is not in the cache")


class _Shard:
    """Two generations of entries: what was used since the older one was dropped, and what was not, or not again yet."""

    __slots__ = ("bytes", "flip", "older", "older_bytes", "younger")

    def __init__(self) -> None:
        self.flip = 0
        self.younger = dict[str, bytes | float]()
        """A list by its key; the time until which it counts as absent if there is none."""
        self.older = dict[str, bytes | float]()
        self.bytes = self.older_bytes = 0

    def put(self, key: str, value: bytes | float, max_bytes: int) -> None:
        """Add an entry that is not there to the younger ones, of which there are at most *max_bytes*."""
        size = _size(key, value)
        if size > max_bytes:
            return
        if self.bytes + size > max_bytes:
            self.older, self.older_bytes = self.younger, self.bytes
            self.younger, self.bytes = {}, 0
        self.younger[key] = value
        self.bytes += size

    def pop(self, key: str) -> bytes | float | None:
        """Remove an entry and return it; None if there is none."""
        if (value := self.older.pop(key, None)) is not None:
            self.older_bytes -= _size(key, value)
        elif (value := self.younger.pop(key, None)) is not None:
            self.bytes -= _size(key, value)
        return value

    def clear(self, flip: int) -> None:
        """Drop everything, as another release is served since."""
        self.flip = flip
        self.younger, self.older = {}, {}
        self.bytes = self.older_bytes = 0


class Cache:
    """The lists that were used last of the release that is served; lives as long as its tier.

    A hit takes 0.4 to 0.5 µs. What was not used while as much again came in as the cache holds at most, is dropped.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        """Hold *max_bytes* at most; *clock* gives seconds."""
        self._generation_bytes = max_bytes // (2 * SHARDS)
        self._clock = clock
        self._release: object = None
        self._flip = 0
        self._shards = [_Shard() for _ in range(SHARDS)]

    def limit(self, max_bytes: int) -> None:
        """Hold *max_bytes* at most from now on; what is over that is dropped as lists are put."""
        self._generation_bytes = max_bytes // (2 * SHARDS)

    @property
    def bytes(self) -> int:
        """How much it holds."""
        return sum(shard.bytes + shard.older_bytes for shard in self._shards)

    def get(self, release: object, key: str) -> Slot:
        """Return the list of *key* in *release*, which is the one that is served; NOT_CACHED if it is to be read.

        Releases are compared by identity: the same one, loaded again, may have other lists.
        """
        if release is not self._release:
            self._release = release
            self._flip += 1
        shard = self._shards[hash(key) % SHARDS]
        if shard.flip != self._flip:
            return NOT_CACHED
        value = shard.younger.get(key)
        if value is None:
            value = shard.pop(key)
            if value is None:
                return NOT_CACHED
            shard.put(key, value, self._generation_bytes)
        if isinstance(value, bytes):
            return value
        return None if value > self._clock() else NOT_CACHED

    def put(self, release: object, keys: Sequence[str], slots: Sequence[Slot]) -> None:
        """Keep what was read of *release*, if that is still served."""
        if release is not self._release:
            return
        absent_until = self._clock() + ABSENT_S
        for key, slot in zip(keys, slots, strict=True):
            if isinstance(slot, StoreError):
                continue
            shard = self._shards[hash(key) % SHARDS]
            if shard.flip != self._flip:
                shard.clear(self._flip)
            else:
                shard.pop(key)
            shard.put(key, absent_until if slot is None else slot, self._generation_bytes)


def _size(key: str, value: bytes | float) -> int:
    return len(key) + (len(value) if isinstance(value, bytes) else 0) + ENTRY_BYTES
