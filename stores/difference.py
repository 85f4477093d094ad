"""What changed from one release to another: whose lists, how much of each, and how much of all goes to few items."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

from stores.catalogue import ReleaseId
from stores.compression import Decode, load_decode, read_ids
from stores.keys import USER
from stores.store import Store
from stores.verifying import load_manifest

DEPTH = 10
"""How far lists are compared: what is served by default."""

POPULAR_ITEMS = (10, 100)


_Entry = tuple[bytes, list[str]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two releases compared over their users' first DEPTH items.

    compared        users that have a list in both
    only_first      users that have one in the first only; only_second likewise
    overlap         mean share of items, of the longer of the two lists, that both lists of a user name; None for nobody
    unchanged       users whose lists name the same items in the same order
    popular_share   for each release, by number of items: the share of all places that go to its most recommended items
    """

    compared: int
    only_first: int
    only_second: int
    overlap: float | None
    unchanged: int
    popular_share: tuple[dict[int, float], dict[int, float]]


async def diff(store: Store, first: ReleaseId, second: ReleaseId) -> Difference:
    """Compare two sealed releases of one store in one pass over both; memory grows with items, not with users."""
    one, other = await _lists(store, first), await _lists(store, second)
    places = Counter[str](), Counter[str]()
    compared = only_first = only_second = unchanged = 0
    shared = 0.0
    async for left, right in _merged(one, other):
        places[0].update(left or ())
        places[1].update(right or ())
        if right is None:
            only_first += 1
        elif left is None:
            only_second += 1
        else:
            compared += 1
            unchanged += left == right
            shared += len(set(left) & set(right)) / (max(len(left), len(right)) or 1)
    overlap = shared / compared if compared else None
    shares = _shares(places[0]), _shares(places[1])
    return Difference(compared, only_first, only_second, overlap, unchanged, shares)


async def _merged(
    one: AsyncIterator[_Entry], other: AsyncIterator[_Entry]
) -> AsyncIterator[tuple[list[str] | None, list[str] | None]]:
    """Yield the lists of each user, in order of key bytes; None where a release has none for the user."""
    left, right = await anext(one, None), await anext(other, None)
    while left is not None or right is not None:
        if left is not None and (right is None or left[0] < right[0]):
            yield left[1], None
            left = await anext(one, None)
        elif right is not None and (left is None or right[0] < left[0]):
            yield None, right[1]
            right = await anext(other, None)
        elif left is not None and right is not None:
            yield left[1], right[1]
            left, right = await anext(one, None), await anext(other, None)


async def _lists(store: Store, release: ReleaseId) -> AsyncIterator[_Entry]:
    manifest = await load_manifest(store, release)
    return _users(store, release, await load_decode(store, manifest))


async def _users(store: Store, release: ReleaseId, decode: Decode) -> AsyncIterator[_Entry]:
    async for row in store.scan(release):
        if row.key.startswith(USER):
            yield row.key.encode(), read_ids(row, decode)[:DEPTH]


def _shares(places: Counter[str]) -> dict[int, float]:
    total = places.total() or 1
    return {count: sum(times for _, times in places.most_common(count)) / total for count in POPULAR_ITEMS}
