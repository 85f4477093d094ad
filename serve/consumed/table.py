"""Items that users consumed, as bought or dismissed, and that are hidden from their lists for some hours.

They are in memory that the workers share, so an event that one made durable hides its items in all at once:

    users    uint32 [USERS]            time after which nothing is hidden from users of this hash
    pairs    uint64 [BUCKETS, WAYS]    32 bits of the hash of user and item ‖ time until which it is hidden

Times are in seconds since 1970. A full bucket forgets the pair that expires first. Any worker adds pairs, without a
lock: if two write the same number at once, one update may be lost until the next start.

A start restores the table from events on disk (`stored_events`).
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from hotplate.serve.errors import ServiceMisused
from hotplate.stores.encoding import encode_id

# In all 9 MiB, for all workers together.
USERS = 1 << 18
BUCKETS = 1 << 17
WAYS = 8
TIME_BITS = 32
TIME_MASK = (1 << TIME_BITS) - 1
HOUR_S = 3600
MAX_HOURS = 24 * 366


@dataclass(frozen=True, slots=True)
class ConsumedPairs:
    """A user, hashes of user and item, and the Unix time in seconds until which these items are hidden."""

    user: str
    pairs: tuple[int, ...]
    until: int


class HiddenItems:
    """The items that are hidden from one user."""

    def __init__(self, pairs: "memoryview[int]", user: int, now: float) -> None:
        self._pairs = pairs
        self._user = user
        self._now = now

    def __contains__(self, identifier: bytes, /) -> bool:
        """Return whether an item, its id as by `encode_id`, is hidden; 0.5 µs."""
        pair = xxh3_64_intdigest(identifier, self._user)
        start = pair % BUCKETS * WAYS
        tag = pair >> TIME_BITS
        bucket = self._pairs[start : start + WAYS]
        return any(entry >> TIME_BITS == tag and entry & TIME_MASK > self._now for entry in bucket)


class Consumed:
    """Pairs of users and items, and until when they are hidden."""

    def __init__(self, hours: Sequence[str], users: "memoryview[int]", pairs: "memoryview[int]") -> None:
        """*hours*, as `buy=24`, until items of such an event are shown again; raises ServiceMisused.

        *users* has USERS numbers, and *pairs* BUCKETS times WAYS.
        """
        self.hours = dict[str, float]()
        """How long events hide their items, by type."""
        self._users = users
        self._pairs = pairs
        for text in hours:
            kind, _, number = text.partition("=")
            try:
                self.hours[kind] = float(number)
            except ValueError:
                self.hours[kind] = 0.0
            if not kind or not 0 < self.hours[kind] <= MAX_HOURS:
                raise ServiceMisused(
                    f"{text!r} does not name events to hide: write their type and at most {MAX_HOURS} hours, as buy=24"
                )

    def hidden_from(self, user: str) -> HiddenItems | None:
        """Return the items that are hidden from a user, or None; 0.2 µs."""
        user_hash = xxh3_64_intdigest(user.encode())
        until = self._users[user_hash % USERS]
        if not until:
            return None
        now = time.time()
        return HiddenItems(self._pairs, user_hash, now) if until > now else None

    @property
    def hidden_until(self) -> "memoryview[int]":
        """When the last item is shown again, by the hash of a user modulo USERS; 0 if none is hidden.

        For the fast lane, the compiled handler of plain GETs, which looks up most users here.
        """
        return self._users

    @property
    def window_s(self) -> float:
        """The longest time that an event hides items."""
        return HOUR_S * max(self.hours.values())

    def pairs_of(self, kind: str, user: str, items: Collection[str], happened_at: float | None) -> ConsumedPairs | None:
        """Return the items that an event hides from its user, as hashes of user and item; None if it hides none.

        *kind* is the type of the event, such as `buy`; `self.hours` has the hours for which each type hides items.
        *happened_at* is a Unix time in seconds, None for now. One in the future counts as now, so that no client hides
        items for longer than the hours.
        """
        now = time.time()
        if happened_at is None or happened_at > now:
            happened_at = now

        until = int(happened_at + HOUR_S * self.hours.get(kind, 0))
        if until <= now:
            return None

        seed = _hash_of(user)
        pairs = tuple(xxh3_64_intdigest(encode_id(item), seed) for item in items)
        return ConsumedPairs(user, pairs, until)

    def add(self, kind: str, user: str, items: Collection[str], happened_at: float | None) -> None:
        """Hide the items of an event of this kind, which happened now or at a Unix time."""
        pairs = self.pairs_of(kind, user, items, happened_at)
        if pairs is not None:
            self.hide(pairs)

    def hide(self, pairs: ConsumedPairs) -> None:
        """Hide items from a user."""
        for pair in pairs.pairs:
            self._add_pair(pair, pairs.until)
        slot = _hash_of(pairs.user) % USERS
        self._users[slot] = max(self._users[slot], pairs.until)

    def hides(self, pairs: ConsumedPairs) -> bool:
        """Return whether all these items are hidden at least as long."""
        return all(self._until(pair) >= pairs.until for pair in pairs.pairs)

    def forget(self, pairs: ConsumedPairs) -> None:
        """Show items to a user again."""
        for pair in pairs.pairs:
            for place in self._places_of(pair):
                self._pairs[place] = 0

    def clear(self) -> None:
        """Forget everything."""
        for numbers in (self._users, self._pairs):
            numbers.cast("B")[:] = bytes(numbers.nbytes)

    def _until(self, pair: int) -> int:
        """Return until when an item is hidden from a user; 0 if it is not."""
        return max((self._pairs[place] & TIME_MASK for place in self._places_of(pair)), default=0)

    def _places_of(self, pair: int) -> list[int]:
        start = pair % BUCKETS * WAYS
        tag = pair >> TIME_BITS
        return [place for place in range(start, start + WAYS) if self._pairs[place] >> TIME_BITS == tag]

    def _add_pair(self, pair: int, until: int) -> None:
        """Hide the item of a pair until a Unix time in seconds; an entry that hides it for longer stays.

        *pair* is a 64-bit hash of user and item: modulo BUCKETS, it chooses a bucket of WAYS entries in the table
        `self._pairs`. An entry is a 64-bit number: its upper half is a tag, the upper 32 bits of the hash, and its
        lower half the time. An entry of the same tag is replaced, or else the one that expires first; free entries are
        0, and so expire before all others.
        """
        tag = pair >> TIME_BITS
        start = pair % BUCKETS * WAYS

        target = start
        earliest = TIME_MASK
        for place in range(start, start + WAYS):
            entry = self._pairs[place]
            expires_at = entry & TIME_MASK
            if entry >> TIME_BITS == tag:
                if expires_at >= until:
                    return
                target = place
                break
            if expires_at < earliest:
                target = place
                earliest = expires_at

        self._pairs[target] = tag << TIME_BITS | until


def _hash_of(user: str) -> int:
    return xxh3_64_intdigest(user.encode())
