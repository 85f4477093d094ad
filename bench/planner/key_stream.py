"""Users in the order in which they were requested: what a cache answers of them, and how unevenly the rest lies."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hotplate.bench.cosmos_emulator.partition_keys import V2_SPAN, effective_key
from hotplate.bench.planner.inputs import Layer, PlanMisused
from hotplate.stores.cosmos.items import name_of
from hotplate.stores.keys import USER


@dataclass(frozen=True, slots=True)
class KeyStream:
    """A stream of requested users, counted; *missed* says where those that a cache let through lie, and their times."""

    source: str
    requests: int
    hottest: float
    """The share of all requests that the most frequent user has."""

    missed: Counter[int] = field(repr=False)
    _shares: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def hit_rate(self) -> float:
        """The share of requests that the cache answered, its warming up included."""
        return 1 - self.missed.total() / self.requests

    @property
    def hottest_missed(self) -> float:
        """The share of what the cache let through that goes to one user."""
        return max(self.missed.values()) / self.missed.total()

    def fullest_share(self, partitions: int) -> float:
        """Return the share of what the cache let through that goes to the fullest of so many partitions.

        Items are placed by the service's own hash of their ids.
        """
        if partitions not in self._shares:
            counts = Counter[int]()
            for place, times in self.missed.items():
                counts[place * partitions // V2_SPAN] += times
            self._shares[partitions] = max(counts.values()) / self.missed.total()
        return self._shares[partitions]

    def layer(self) -> Layer:
        """Return what it measures as inputs of a plan."""
        source = f"measured: {self.source}, {self.requests:,} requests"
        return Layer(source, {"hot_share": self.hottest, "hit_rate": self.hit_rate}, f"{{name}} of {self.source}")


def place_of(user: str) -> int:
    """Return where the service's hash puts the item of a user's list."""
    return int(effective_key([name_of(USER + user)], 2), 16)


def count_keys(source: str, users: Iterable[str], cache_entries: int) -> KeyStream:
    """Count a stream of users, through a cache of so many lists from which the least recently used go first."""
    held, counts, missed = OrderedDict[str, None](), Counter[str](), Counter[str]()
    for user in users:
        counts[user] += 1
        if user in held:
            held.move_to_end(user)
            continue
        missed[user] += 1
        if cache_entries:
            held[user] = None
            if len(held) > cache_entries:
                held.popitem(last=False)
    if not counts:
        raise PlanMisused(f"{source} names no user; it takes one a line, in the order of their requests")
    places = Counter({place_of(user): times for user, times in missed.items()})
    return KeyStream(source, counts.total(), max(counts.values()) / counts.total(), places)


def read_keys(path: Path, cache_entries: int) -> KeyStream:
    """Count the users of a file, one a line. Raises PlanMisused for one that cannot be read, or names no user."""
    try:
        with path.open(encoding="utf-8") as lines:
            return count_keys(path.name, (line.strip() for line in lines if line.strip()), cache_entries)
    except OSError as error:
        raise PlanMisused(f"--keys-file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanMisused(f"--keys-file: {path} is not text: {error}") from error
