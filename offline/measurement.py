"""Measures of users' lists, and their overlap with the live release."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.base.recommendations import Item
from hotplate.offline.input.pairs import Indices
from hotplate.offline.list_encoder import MAX_LENGTH
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.encoding import ITEM, OVERALL, POPULAR, USER, Decode, RowKey, cut, decode, prefix_of
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.manifest import Manifest, count_in_list
from hotplate.stores.origin import AttributesRecord, Origin
from hotplate.stores.store import Reader
from hotplate.stores.verification import read_results

# For a mean overlap precise to 0.01.
SAMPLED_USERS = 5_000
# The same to 0.02, read from the live release by every publish.
COMPARED_USERS = 500

# Called with users, the concatenated items of their lists, and the lengths.
Observe = Callable[[Sequence[str], Indices, Indices], None]


def ignore(_users: Sequence[str], _items: Indices, _lengths: Indices) -> None:
    """Observe nothing."""


class Items(NamedTuple):
    """*ids* of items, the overall *popular* list, and the size of the catalogue, if known."""

    ids: Sequence[str]
    popular: Indices
    catalogue: int | None


class SampledList(NamedTuple):
    """The first items of a *user*'s list; *hash* is that of the user's id."""

    hash: int
    user: str
    items: Indices


class ListCounts(NamedTuple):
    """Counts of a Measurement: *times* of each of the *items*, and *sampled* lists."""

    users: int
    users_with_lists: int
    shortest: int | None
    items: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    sampled: list[SampledList]


class Measurement:
    """Counts and a sample of the users' lists of one release; *shortest* ignores empty lists."""

    def __init__(self, items: Items, depth: int) -> None:
        """Keep the first *depth* items of sampled lists."""
        self.users = 0
        self.users_with_lists = 0
        self.shortest: int | None = None
        self._items = items
        self._times = np.zeros(len(items.ids), dtype=np.int64)
        self.depth = depth
        self._sampled = list[SampledList]()
        self._below = np.iinfo(np.uint64).max

    def add(self, users: Sequence[str], items: Indices, lengths: Indices) -> None:
        """Count the lists of some *users* (ids), and sample some of them.

        *items* are the numbers of the items of all these lists, one list after the other. *lengths* are the lengths of
        the lists by user, 0 for a user without one.
        """
        np.add.at(self._times, items.astype(np.intp), 1)
        self.users += len(users)
        present = lengths[lengths > 0]
        if not len(present):
            return

        self.users_with_lists += len(present)
        shortest = int(present.min())
        self.shortest = shortest if self.shortest is None else min(shortest, self.shortest)
        self._sample(users, items, lengths)

    def counts(self) -> ListCounts:
        """Return the counts, for `merge`."""
        self._trim()
        listed = np.flatnonzero(self._times)
        return ListCounts(
            users=self.users,
            users_with_lists=self.users_with_lists,
            shortest=self.shortest,
            items=listed,
            times=self._times[listed],
            sampled=self._sampled,
        )

    def merge(self, counts: ListCounts) -> None:
        """Add the counts of other users."""
        self.users += counts.users
        self.users_with_lists += counts.users_with_lists
        lengths = [length for length in (self.shortest, counts.shortest) if length is not None]
        self.shortest = min(lengths, default=None)
        self._times[counts.items] += counts.times
        self._sampled += counts.sampled
        self._trim()

    @property
    def coverage(self) -> float:
        """The share of the catalogue in any list."""
        return float(np.count_nonzero(self._times) / (self._items.catalogue or 1))

    @property
    def mean_length(self) -> float:
        """The mean length of the lists, without empty ones."""
        return float(self._times.sum() / (self.users_with_lists or 1))

    @property
    def popular(self) -> list[str]:
        """The overall popular list."""
        return [self._items.ids[item] for item in self._items.popular.tolist()]

    @property
    def item_ids(self) -> Sequence[str]:
        """The items of the catalogue, or those in any list if that is unknown."""
        return self._items.ids

    def popular_share(self, first: int) -> float:
        """Return the share of all slots taken by the *first* popular items."""
        return float(self._times[self._items.popular[:first]].sum() / (self._times.sum() or 1))

    def sample(self, at_most: int = SAMPLED_USERS) -> dict[str, list[str]]:
        """Return the first items of sampled lists; the sample depends on user ids alone."""
        self._trim()
        ids = self._items.ids
        items_by_user = dict[str, list[str]]()
        for drawn in self._sampled[:at_most]:
            items_by_user[drawn.user] = [ids[item] for item in drawn.items.tolist()]
        return items_by_user

    def _sample(self, users: Sequence[str], items: Indices, lengths: Indices) -> None:
        """Keep the lists of users with the lowest hashes of their ids, a uniform sample.

        *items* are those of all lists, one list after the other, with the *lengths* of the lists by user. `_below` is
        the highest hash in a full sample.
        """
        hashes = pl.Series(users, dtype=pl.String).hash().to_numpy()

        # Where the list of each user starts and ends in *items*, and where its first `depth` items end.
        ends = np.cumsum(lengths)
        starts = ends - lengths
        first_ends = np.minimum(starts + self.depth, ends)

        for user in np.flatnonzero((hashes < self._below) & (lengths > 0)).tolist():
            first_items = items[starts[user] : first_ends[user]].copy()
            self._sampled.append(SampledList(int(hashes[user]), users[user], first_items))

        # The sample may grow to twice its size before it is sorted and cut.
        if len(self._sampled) >= 2 * SAMPLED_USERS:
            self._trim()

    def _trim(self) -> None:
        self._sampled.sort(key=attrgetter("hash"))
        if len(self._sampled) > SAMPLED_USERS:
            del self._sampled[SAMPLED_USERS:]
            self._below = self._sampled[-1].hash


class LiveList(NamedTuple):
    """The list of the live release that a new one is compared with; empty if nothing is live.

    release           the id of the live release
    origin            the origin of the list
    siblings          the names of all lists of the release that have one
    attributes        the release's item attributes
    popular           the overall popular list, as item ids
    sampled           new lists of the users whose live lists were looked up
    by_user           these live lists, of the users who have one
    items             the items in any of the live lists
    segments          the segments of users with a popular list
    users_with_lists  the number of all users with a list
    similar_lists     the number of items with a list of similar ones
    """

    release: str = ""
    origin: Origin = Origin()
    siblings: Collection[str] = ()
    attributes: AttributesRecord = AttributesRecord()
    popular: Sequence[str] = ()
    sampled: Mapping[str, Sequence[str]] = {}
    by_user: Mapping[str, Sequence[str]] = {}
    items: Collection[str] = ()
    segments: Collection[str] = ()
    users_with_lists: int = 0
    similar_lists: int = 0


async def read_live(
    reader: Reader, release: ReleaseRef, manifest: Manifest, sampled: Mapping[str, Sequence[str]], stored: str
) -> LiveList:
    """Read the lists of users in the live release, and its overall popular list, to compare new lists with them.

    *sampled* are the new lists of these users. A release may have several lists for each user; *stored* is the name of
    one in the release's keys, empty for the default one. Missing and damaged lists are left out. Raises ReleaseCorrupt
    if the release cannot be decoded, and StoreError.
    """
    open_value = await load_decode(reader, release, manifest)

    prefix = prefix_of(USER, stored)
    keys = [prefix_of(POPULAR, stored) + OVERALL, *(prefix + user for user in sampled)]
    lists = dict[str, list[str]]()
    async for name, items in read_lists(reader, release, open_value, keys):
        if not isinstance(items, ReleaseCorrupt):
            lists[name] = [item["id"] for item in items]

    return LiveList(
        release=release.id,
        origin=manifest.origin_of(stored),
        siblings={*filter(None, [manifest.default_list]), *manifest.named},
        attributes=manifest.origin.item_attributes,
        items={*chain.from_iterable(lists.values())},
        popular=lists.pop(OVERALL, []),
        sampled=sampled,
        by_user=lists,
        segments=manifest.named[stored] if stored else manifest.segments,
        users_with_lists=count_in_list(manifest.counts, USER, stored),
        similar_lists=count_in_list(manifest.counts, ITEM, stored),
    )


async def read_lists(
    reader: Reader, release: ReleaseRef, open_value: Decode, keys: Sequence[str]
) -> AsyncIterator[tuple[str, list[Item] | ReleaseCorrupt]]:
    """Read the lists at *keys* (KIND:ID) of a release, and yield each id with its list.

    A damaged list yields its id with a ReleaseCorrupt; a key that the release lacks yields nothing. *open_value*
    decodes a value to an offset and a list. Raises StoreError if rows cannot be read.
    """
    async for key, result in read_results(reader, release, keys):
        if result is None:
            continue

        items: list[Item] | ReleaseCorrupt
        try:
            items = result if isinstance(result, ReleaseCorrupt) else decode(cut(open_value(key, result), MAX_LENGTH))
        except ReleaseCorrupt as error:
            items = error
        except ValueError as error:
            items = ReleaseCorrupt(f"the row {key!r} is not a list ({error}); publish the release again")

        yield RowKey.parse(key).id, items
