"""Items that users consumed, as bought or dismissed, and that are hidden from their lists for some hours.

They are in memory that the workers share, so an event that one made durable hides its items in all at once:

    users    uint32 [USERS]            time after which nothing is hidden from users of this hash
    pairs    uint64 [BUCKETS, WAYS]    32 bits of the hash of user and item ‖ time until which it is hidden

Times are in seconds since 1970. A full bucket forgets the pair that expires first. Any worker adds pairs, without a
lock: if two write the same number at once, one update may be lost until the next start.

A start restores the table from the segments in the folder of events. Before `hotplate events ship` removes segments, it
keeps those of their events that may still hide items in KEPT, by the hours that services wrote to HOURS.
"""

import errno
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard
from xxhash import xxh3_64_intdigest

from hotplate.serve.errors import ServiceMisused
from hotplate.stores.encoding import encode_id
from hotplate.stores.errors import WrittenByNewer
from hotplate.stores.event_log import (
    LEVEL,
    SegmentReader,
    decode_event,
    is_newer_segment,
    is_open_segment,
    is_segment,
    line_of,
)
from hotplate.stores.folders import replace_durably, take_lock

log = logging.getLogger(__name__)

# In all 9 MiB, for all workers together.
USERS = 1 << 18
BUCKETS = 1 << 17
WAYS = 8
TIME_BITS = 32
TIME_MASK = (1 << TIME_BITS) - 1
HOUR_S = 3600
MAX_HOURS = 24 * 366
# How long a start reads segments, the newest first.
RESTORE_S = 5.0
# Files in the folder of events, and the wait for the lock of both.
HOURS = ".hide-consumed.json"
KEPT = ".consumed.events.zst"
LOCK = ".hide-consumed.lock"
LOCK_S = 30.0


class ConsumedEvent(msgspec.Struct):
    """The fields of an event that say what it hides."""

    type: str
    user: str
    items: tuple[str, ...]
    time: float


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
        self._hours = dict[str, float]()
        self._users = users
        self._pairs = pairs
        for text in hours:
            kind, _, number = text.partition("=")
            try:
                self._hours[kind] = float(number)
            except ValueError:
                self._hours[kind] = 0.0
            if not kind or not 0 < self._hours[kind] <= MAX_HOURS:
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
        """When the last item is shown again, by the hash of a user modulo USERS; 0 if none is hidden. For the lane."""
        return self._users

    @property
    def kinds(self) -> Collection[str]:
        """The types of events that hide items."""
        return self._hours.keys()

    @property
    def window_s(self) -> float:
        """The longest time that an event hides items."""
        return HOUR_S * max(self._hours.values())

    def pairs_of(self, kind: str, user: str, items: Collection[str], happened_at: float | None) -> ConsumedPairs | None:
        """Return the items that an event hides from its user, as hashes of user and item; None if it hides none.

        *kind* is the type of the event, such as `buy`; `self._hours` has the hours for which each type hides items.
        *happened_at* is a Unix time in seconds, None for now. One in the future counts as now, so that no client hides
        items for longer than the hours.
        """
        now = time.time()
        if happened_at is None or happened_at > now:
            happened_at = now
        until = int(happened_at + HOUR_S * self._hours.get(kind, 0))
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
        return max((self._pairs[place] & TIME_MASK for place in self._places_of(pair)), default=0)

    def _places_of(self, pair: int) -> list[int]:
        start = pair % BUCKETS * WAYS
        tag = pair >> TIME_BITS
        return [place for place in range(start, start + WAYS) if self._pairs[place] >> TIME_BITS == tag]

    def _add_pair(self, pair: int, until: int) -> None:
        """Hide the item of a pair until a Unix time in seconds; an entry that hides it for longer stays.

        *pair* is a 64-bit hash of user and item: modulo BUCKETS, it chooses a bucket of WAYS entries in the table
        `self._pairs`. An entry has a tag, the upper 32 bits of the hash, above the 32 bits of its time. Without an
        entry of the same tag, the one that expires first is overwritten; free entries are 0, and so come first.
        """
        tag = pair >> TIME_BITS
        start = pair % BUCKETS * WAYS
        chosen = start
        earliest = TIME_MASK
        for place in range(start, start + WAYS):
            entry = self._pairs[place]
            expires_at = entry & TIME_MASK
            if entry >> TIME_BITS == tag:
                if expires_at >= until:
                    return
                chosen = place
                break
            if expires_at < earliest:
                chosen = place
                earliest = expires_at

        self._pairs[chosen] = tag << TIME_BITS | until

    def restore(self, folder: Path) -> None:
        """Hide the items of all events in *folder* at a start, from the newest segment to the oldest.

        A segment is a log file of events. Reading stops after RESTORE_S seconds, with a warning; unreadable segments
        are logged and skipped. KEPT, with events of segments that were shipped away, is read last. The hours for which
        this service hides items are written to the folder, for `hotplate events ship`.
        """
        _keep_hours(folder, self._hours)

        deadline = time.monotonic() + RESTORE_S
        paths = list[Path]()
        for path in folder.iterdir():
            if is_newer_segment(path.name):
                log.warning("the events of %s were written by a newer hotplate, and hide nothing", path)
            elif is_segment(path.name) or is_open_segment(path.name):
                paths.append(path)
        paths.sort(key=lambda path: path.name.lstrip("."), reverse=True)
        if (folder / KEPT).exists():
            paths.append(folder / KEPT)

        for path in paths:
            if time.monotonic() > deadline:
                log.warning("older events than of %s were not read in %.0f s: they hide nothing", path.name, RESTORE_S)
                return
            self._restore_segment(path)

    def _restore_segment(self, path: Path) -> None:
        """Hide the items of the events in a segment; what cannot be read is logged."""
        oldest = time.time() - self.window_s
        try:
            segment = SegmentReader(_read_since(oldest, path))
            for _, event in hiding_events(segment, self._hours):
                self.add(event.type, event.user, event.items, event.time)
        except OSError as error:
            log.warning("the events of %s cannot be read, and hide nothing: %s", path, error.strerror)
        except WrittenByNewer as error:
            log.warning("events of %s hide nothing: %s", path, error)


def _hash_of(user: str) -> int:
    return xxh3_64_intdigest(user.encode())


def remove_segments(paths: Sequence[Path], folder: Path) -> None:
    """Remove segments of *folder*, and keep those of their events that may still hide items. Raises OSError."""
    with _locked(folder):
        hours = _read_hours(folder)
        if hours:
            kept = _kept_segment([folder / KEPT, *paths], hours)
            try:
                replace_durably(folder / KEPT, kept)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _remove(paths)  # first, as there is no other room
                replace_durably(folder / KEPT, kept)
        _remove(paths)


def _kept_segment(paths: Sequence[Path], hours: Mapping[str, float]) -> bytes:
    """Return a segment, a compressed log file, of the events in other segments that may still hide items.

    *hours* has how long events of each type hide their items. Missing files are skipped.
    """
    now = time.time()
    lines = list[bytes]()
    for path in paths:
        with suppress(FileNotFoundError):
            for line, event in hiding_events(SegmentReader(path.read_bytes()), hours):
                if event.time + HOUR_S * hours[event.type] > now:
                    lines.append(line_of(line))
    # An event is there twice if a removal was interrupted.
    return zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(dict.fromkeys(lines)))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _keep_hours(folder: Path, hours: Mapping[str, float]) -> None:
    """Write to *folder* for how many hours events of each type hide items: the longest of all services that use it.

    *hours* are those of this service. A failure is logged.
    """
    try:
        with _locked(folder):
            known = _read_hours(folder)
            longest = {kind: max(known.get(kind, 0.0), hours.get(kind, 0.0)) for kind in {*known, *hours}}
            if longest != known:
                replace_durably(folder / HOURS, msgspec.json.encode(longest))
    except (OSError, msgspec.DecodeError) as error:
        log.warning(
            "%s cannot be written (%s): after `hotplate events ship` and a restart, consumed items are shown again",
            folder / HOURS,
            error,
        )


def _read_hours(folder: Path) -> dict[str, float]:
    with suppress(FileNotFoundError):
        return msgspec.json.decode((folder / HOURS).read_bytes(), type=dict[str, float])
    return {}


def hiding_events(lines: Iterable[bytes], kinds: Collection[str]) -> Iterator[tuple[bytes, ConsumedEvent]]:
    """Yield the events of some types with their lines, which are JSON.

    Lines that cannot be of these types are not decoded, which is most of the time of a start. Raises WrittenByNewer.
    """
    marks = [f'"type":"{kind}"'.encode() for kind in kinds]
    wanted = set(kinds)
    decoder = msgspec.json.Decoder(ConsumedEvent)
    for line in lines:
        if any(mark in line for mark in marks):
            event = decode_event(decoder, line)
            if event.type in wanted:
                yield line, event


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = take_lock(folder / LOCK, 0o640, LOCK_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _read_since(oldest: float, path: Path) -> bytes:
    """Read a segment that changed since *oldest*, a Unix time; empty if it did not, or is gone.

    Another process may close it meanwhile, which removes the dot from its name, or ship it.
    """
    closed = path.with_name(path.name.removeprefix("."))
    for candidate in (path, closed):
        with suppress(FileNotFoundError):
            if candidate.stat().st_mtime <= oldest:
                return b""
            return candidate.read_bytes()
    return b""
