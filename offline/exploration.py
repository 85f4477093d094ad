"""Exploration: drawn places for new items in users' lists."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from hotplate.offline.errors import SettingError, require_at_least, require_between
from hotplate.offline.input.columns import named_values
from hotplate.offline.input.history import DAY_US, NO_TIME, Times
from hotplate.offline.input.pairs import Indices, Mask, UserItems, no_items, row_slices, users_per_item
from hotplate.offline.model import Model
from hotplate.offline.train.popularity import order_by_popularity
from hotplate.offline.train.ranking import Ranked

_TEN = 10
_MOST_NEW_PER_TEN = 5
NEW_DAYS = 7
# Those with the most users.
_MOST_NEW_ITEMS = 1_000
_CELLS_AT_ONCE = 1 << 20
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Explore:
    """Places for new items; raises SettingError for invalid ones.

    new   of each ten places
    days  an item is new if its first interaction is at most so many days before the newest one
    seed  of the draw
    """

    new: int = 1
    days: int = NEW_DAYS
    seed: int = 0

    def __post_init__(self) -> None:
        require_between("--explore: new", self.new, 1, _MOST_NEW_PER_TEN)
        require_at_least("--explore: days", self.days)
        require_at_least("--explore: seed", self.seed, 0)


def read_explore(text: str) -> Explore:
    """Read `new=1,days=7`; raises SettingError."""
    values = dict(named_values(text))
    known = [field.name for field in fields(Explore)]
    if "new" not in values or values.keys() - known:
        raise SettingError(f"--explore: {text!r} is not like new=1,days=7; it may have {', '.join(known)}.")
    try:
        return msgspec.convert(values, Explore, strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"--explore: {text!r} cannot be read: {error}.") from error


def are_new(user_items: UserItems, times: Times, days: int) -> Mask:
    """Return which items had their first interaction in the last *days* before the newest one [items].

    *times* are the first times of the pairs in *user_items*, in µs, in the order of its data.
    """
    first = np.full(user_items.shape[1], np.iinfo(np.int64).max)
    np.minimum.at(first, user_items.indices, times)
    newest = int(times.max(initial=NO_TIME))
    is_present = users_per_item(user_items) > 0
    new: Mask = is_present & (first > newest - days * DAY_US) & (first != NO_TIME)
    return new


class NewItems:
    """Draws new items for users' lists.

    A user draws without replacement, each item with a weight of 1 plus the number of users who have it. Hashes of seed,
    user and item decide (Efraimidis and Spirakis, 2006), so a draw depends on no other user.
    """

    def __init__(self, explore: Explore, model: Model, new: Mask, *, keep_seen: bool) -> None:
        """Prepare draws of *new* items, a mask [items]; with *keep_seen*, also those that a user has already."""
        # The new items with the most users; the others have -1 and come last.
        counts = users_per_item(model.matrix.user_items)
        by_users = order_by_popularity(np.where(new, counts, -1))
        self.items = np.sort(by_users[: min(int(new.sum()), _MOST_NEW_ITEMS)])
        self.explore = explore
        self._keep_seen = keep_seen

        # The place of each item of the model in `items`, -1 for others.
        self._number_of = np.full(len(new), -1, dtype=np.int32)
        self._number_of[self.items] = np.arange(len(self.items), dtype=np.int32)

        self._hashes = _hashes([model.matrix.item_ids[item] for item in self.items.tolist()], explore.seed)
        self._weights = 1.0 + counts[self.items]

    def insert_new_items(self, users: Sequence[str], user_items: UserItems, lists: Ranked, length: int) -> Ranked:
        """Insert new items into lists of users: `explore.new` at random places of each ten, with a score of -inf.

        *users* are ids, and *user_items* their items [users, items]. The result is wider than *lists*; -1 stands at
        places without an item. The items behind an inserted one move back, and the first of ten places keeps its item.
        Items in the first *length* places are not drawn, but an item further down may then be listed twice. Empty lists
        stay empty.
        """
        items, scores = lists
        # The first *length* places, in groups of ten.
        tens = -(-length // _TEN)
        drawn = self._draw_items(users, user_items, items[:, :length], tens * self.explore.new)
        is_empty = items[:, 0] < 0
        drawn[is_empty] = -1

        # True at the places of new items; the items of the lists take the others.
        width = max(items.shape[1] + drawn.shape[1], tens * _TEN)
        is_inserted = np.zeros((len(items), width), dtype=np.bool_)
        is_inserted[:, : tens * _TEN] = self._draw_places(users, tens)
        padding = ((0, 0), (0, width - drawn.shape[1] - items.shape[1]))

        # A mask is filled row by row, and each row has as many places as items.
        wider = Ranked.empty(len(items), width)
        wider.items[is_inserted] = drawn.ravel()
        wider.items[~is_inserted] = np.pad(items, padding, constant_values=-1).ravel()
        wider.scores[is_inserted] = -np.inf
        wider.scores[~is_inserted] = np.pad(scores, padding).ravel()
        return wider

    def _draw_items(self, users: Sequence[str], user_items: UserItems, listed: Indices, n: int) -> Indices:
        """Draw *n* new items for each user [users, n], -1 if there are fewer.

        A user gets the items with the highest random keys. Not drawn are *listed* items [users, any], those in the list
        already, and those that the user has, unless seen items are kept.
        """
        drawn = no_items(len(listed), n)

        # Blocks of users, as each user has a key for all new items.
        for rows in row_slices(len(listed), _CELLS_AT_ONCE // max(1, len(self.items))):
            keys = self._draw_keys(users[rows])
            self._exclude_from_draw(keys, user_items[rows], listed[rows])

            best = np.argsort(-keys, axis=1, kind="stable")[:, :n]
            is_drawn = np.isfinite(np.take_along_axis(keys, best, axis=1))
            drawn[rows, : best.shape[1]] = np.where(is_drawn, self.items[best], -1)
        return drawn

    def _exclude_from_draw(self, keys: npt.NDArray[np.float64], user_items: UserItems, listed: Indices) -> None:
        """Set the *keys* of a draw [users, new items] to -inf, in place, for items not to be drawn.

        These are *listed* items [users, any], -1 for none, and, unless seen items are kept, those in *user_items*.
        `_number_of` has the column in *keys* of each item of the model, -1 for items that are not new.
        """
        if not self._keep_seen:
            keys[user_items[:, self.items].toarray() > 0] = -np.inf

        columns = np.where(listed < 0, -1, self._number_of[listed])
        rows, places = np.nonzero(columns >= 0)
        keys[rows, columns[rows, places]] = -np.inf

    def _draw_keys(self, users: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return random keys of new items for each user [users, new items]; the items with the highest keys are drawn.

        This is a weighted draw without replacement (Efraimidis and Spirakis, 2006): a key is log(u) / weight, where u
        is uniform in (0, 1), from hashes of the user's and the item's id.
        """
        hashes = _hashes(users, self.explore.seed)[:, None] ^ self._hashes
        keys: npt.NDArray[np.float64] = np.log(_uniform(hashes)) / self._weights
        return keys

    def _draw_places(self, users: Sequence[str], tens: int) -> Mask:
        """Draw places for new items: True for `explore.new` of each ten places [users, 10 * tens].

        *users* are ids, *tens* the number of groups of ten places. Each place has a uniform random key, from hashes of
        the user's id and the place; in each group, those with the lowest keys are drawn.
        """
        places = np.arange(tens * _TEN, dtype=np.uint64)
        hashes = _hashes(users, self.explore.seed)[:, None] + places
        keys = _uniform(hashes).reshape(len(users), tens, _TEN)
        keys[:, :, 0] = 1  # above all others: the first place is not drawn

        drawn = np.argsort(keys, axis=2, kind="stable")[:, :, : self.explore.new]
        is_drawn = np.zeros(keys.shape, dtype=np.bool_)
        np.put_along_axis(is_drawn, drawn, values=True, axis=2)
        return is_drawn.reshape(len(users), tens * _TEN)


def _hashes(ids: Sequence[str], seed: int) -> Hashes:
    """Return a hash of each id."""
    return np.array([xxh3_64_intdigest(name.encode(), seed) for name in ids], dtype=np.uint64)


def _uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Return numbers above 0 and below 1, from hashes mixed by SplitMix64's finalizer."""
    mixed = hashes.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
