"""Items that users consumed, as bought or dismissed, and that are hidden from their lists for some hours.

They are in memory that the workers share, so an event that one made durable hides its items in all at once:

    users    uint32 [USERS]            time after which nothing is hidden from users of this hash
    tags     uint32 [BUCKETS, WAYS]    upper half of the hash of user and item, whose lower half chooses the bucket
    times    uint32 [BUCKETS, WAYS]    time until which the item of this tag is hidden

Times are in seconds since 1970. A full bucket forgets the pair that expires first. Any worker adds pairs, without a
lock: if two write to the same place at once, one update may be lost until the next start.

A start restores the table from events on disk (`stored_events`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_64_intdigest

from hotplate.base.timing import HOUR_S
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.shared_memory import shared_integers
from hotplate.stores.encoding import IdTest, encode_id

if TYPE_CHECKING:
    from hotplate.serve.api.schemas import Event

# Pairs of user and item for which there is room: of these, about three find their bucket full.
CAPACITY = 1_000_000
# In all 17 MiB, for all workers together.
USERS = 1 << 18
BUCKETS = 1 << 16
WAYS = 32
TAG_SHIFT = 32
MAX_HOURS = 24 * 366


class ConsumedEvent(msgspec.Struct):
    """The fields of an event that say what it hides."""

    type: str
    user: str
    items: tuple[str, ...]
    time: float


@dataclass(frozen=True, slots=True)
class ConsumedPairs:
    """Items that are hidden from a user until a Unix time in seconds, as hashes, which name neither."""

    slot: int
    """The hash of the user modulo USERS."""

    pairs: tuple[int, ...]
    until: int


class Consumed:
    """Pairs of users and items, and until when they are hidden."""

    def __init__(self, hours: Sequence[str]) -> None:
        """Created before the workers. *hours*, as `buy=24`, until items of such an event are shown again.

        Raises ServiceMisused.
        """
        self.hours = dict[str, float]()
        """How long events hide their items, by type."""
        self.hidden_until = shared_integers(USERS)
        """When the last item is shown again, by the hash of a user modulo USERS; 0 if none is hidden.

        The fast lane, the compiled handler of plain GETs, looks up most users here.
        """
        self._tags = shared_integers(BUCKETS * WAYS)
        self._times = shared_integers(BUCKETS * WAYS)
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

    def hidden_from(self, user: str) -> IdTest | None:
        """Return a function that tells, in 0.9 µs, whether an item is hidden; None, in 0.2 µs, if none is."""
        user_hash = _hash_of(user)
        until = self.hidden_until[user_hash % USERS]
        if not until:
            return None
        now = time.time()
        if until <= now:
            return None
        return lambda identifier: self.until(xxh3_64_intdigest(identifier, user_hash)) > now

    @property
    def window_s(self) -> float:
        """The longest time that an event hides items."""
        return HOUR_S * max(self.hours.values())

    def hidden_by(self, events: "Iterable[Event] | Iterable[ConsumedEvent]") -> Iterator[ConsumedPairs]:
        """Yield the items that each event hides from its user, as hashes of user and item; nothing if it hides none.

        `self.hours` has the hours for which each type of events hides items. A time in the future counts as now, so
        that no client hides items for longer than that.
        """
        for event in events:
            now = time.time()
            happened_at = now if event.time is None else min(event.time, now)
            until = int(happened_at + HOUR_S * self.hours.get(event.type, 0))
            if until > now:
                seed = _hash_of(event.user)
                pairs = tuple(xxh3_64_intdigest(encode_id(item), seed) for item in event.items)
                yield ConsumedPairs(seed % USERS, pairs, until)

    def until(self, pair: int) -> int:
        """Return until when the item of a pair is hidden; 0 if it is not. *pair* is a hash of user and item."""
        places, tag = _bucket_of(pair)
        tags = self._tags[places].tolist()
        return self._times[places][tags.index(tag)] if tag in tags else 0

    def hide(self, pairs: ConsumedPairs) -> int:
        """Hide items from a user; return the number of pairs that were forgotten for lack of room."""
        now = time.time()
        forgotten = sum(self._add(pair, pairs.until, now) for pair in pairs.pairs)
        self.hidden_until[pairs.slot] = max(self.hidden_until[pairs.slot], pairs.until)
        return forgotten

    def _add(self, pair: int, until: int, now: float) -> bool:
        """Hide the item of a pair until a Unix time, or for longer if it is already.

        Returns whether a pair, this or another one, was forgotten for lack of room.
        """
        places, tag = _bucket_of(pair)
        tags = self._tags[places]
        times = self._times[places]
        known_tags = tags.tolist()
        if tag in known_tags:
            place = known_tags.index(tag)
            times[place] = max(times[place], until)
            return False

        earliest = min(times)
        if until >= earliest:
            place = times.tolist().index(earliest)
            tags[place] = tag
            times[place] = until
        return earliest > now


def _hash_of(user: str) -> int:
    return xxh3_64_intdigest(user.encode())


def _bucket_of(pair: int) -> tuple[slice, int]:
    """Return the places and the tag of a pair, a hash of user and item."""
    start = pair % BUCKETS * WAYS
    return slice(start, start + WAYS), pair >> TAG_SHIFT
