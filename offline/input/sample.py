"""Generated sample data: users with tastes choose popular items that suit them."""

from datetime import datetime
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hotplate.offline.errors import require_at_least

_STYLES = (
    "Amber Ashen Brushed Classic Copper Coral Crimson Folding Frosted Golden Granite Hammered Indigo Ivory Linen Maple "
    "Marble Matte Midnight Mossy Nordic Oaken Olive Painted Pearl Polished Quilted Rustic Saffron Slate Smoked Striped "
    "Teal Velvet Walnut Woven"
)
_ROOMS = (
    "Balcony Bathroom Bedside Camping Cellar Desk Garden Hallway Kitchen Market Office Picnic Studio Terrace Window"
)
_THINGS = (
    "Basket Bench Blanket Bowl Box Candle Clock Cushion Drawer Frame Hook Jar Kettle Lamp Mirror Mug Planter Rack Rug "
    "Shelf Stool Teapot Tray Vase"
)
_SEGMENTS = ("east", "north", "south", "west")
_TASTES = 8
_USERS_PER_BLOCK = 2000
_START = datetime(2026, 1, 1)  # noqa: DTZ001 -- times are naive UTC throughout
_PERIOD_S = 180 * 24 * 3600


def sample(users: int = 2000, items: int = 600, seed: int = 42) -> pl.DataFrame:
    """Return generated interactions [user, item, weight, title, segment, time], sorted by time.

    *users* and *items* are their numbers, at least 10, or SettingError is raised. Users choose popular items that suit
    their tastes, at random times of 180 days. The same *seed* gives the same data. Takes about 0.1 s and 20 MB per
    million pairs of user and item.
    """
    require_at_least("The number of users", users, 10)
    require_at_least("The number of items", items, 10)

    rng = np.random.default_rng(seed)
    item_tastes = rng.normal(size=(items, _TASTES)).astype(np.float32)
    # Popularity falls with the rank of an item by a power law.
    log_popularity = rng.permutation(-0.8 * np.log(np.arange(1, items + 1))).astype(np.float32)

    # Blocks of users, as each needs the odds of all items in memory.
    blocks = list[_Choices]()
    for start in range(0, users, _USERS_PER_BLOCK):
        choices = _draw_choices(rng, min(_USERS_PER_BLOCK, users - start), item_tastes, log_popularity)
        blocks.append(_Choices(choices.users + start, choices.items))
    user = np.concatenate([block.users for block in blocks])
    item = np.concatenate([block.items for block in blocks])

    titles = pl.Series(_draw_titles(rng, items))
    segments = pl.Series(_SEGMENTS)[rng.integers(len(_SEGMENTS), size=users)]
    seconds = rng.integers(_PERIOD_S, size=len(user)).astype("timedelta64[s]")
    interactions = pl.DataFrame(
        {
            "user": _ids("u", users)[user],
            "item": _ids("p", items)[item],
            "weight": (1 + rng.poisson(0.7, size=len(user))).astype(np.float64),
            "title": titles[item],
            "segment": segments[user],
            "time": (np.datetime64(_START) + seconds).astype("datetime64[us]"),
        }
    )
    return interactions.sort("time", "user", "item")


class _Choices(NamedTuple):
    """Numbers of users and of the items that they chose [choices]."""

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]


def _draw_choices(
    rng: np.random.Generator, users: int, item_tastes: npt.NDArray[np.float32], log_popularity: npt.NDArray[np.float32]
) -> _Choices:
    """Draw the choices of *users* users, numbered from 0: 5 or more different items each.

    item_tastes     [items, tastes]; the users' tastes are drawn
    log_popularity  [items]

    The odds that a user chooses an item are the item's popularity times exp(user tastes · item tastes).
    """
    items = len(item_tastes)
    user_tastes = rng.normal(size=(users, _TASTES)).astype(np.float32)
    log_odds = user_tastes @ item_tastes.T + log_popularity
    # With Gumbel noise, a user's n items of highest value are a sample without replacement by these odds.
    log_odds += rng.gumbel(size=log_odds.shape).astype(np.float32)

    items_per_user = np.clip(rng.lognormal(3.2, 0.5, size=users).astype(np.int64), 5, max(5, items // 3))
    best_first = np.argsort(-log_odds, axis=1)
    is_chosen = np.arange(items) < items_per_user[:, None]  # [users, items], by place in best_first
    return _Choices(np.repeat(np.arange(users), items_per_user), best_first[is_chosen])


def _draw_titles(rng: np.random.Generator, count: int) -> list[str]:
    """Return *count* different titles such as `Amber Balcony Basket`, in random order.

    Once all combinations of words are used, they are repeated as `Amber Balcony Basket No. 2` and so on.
    """
    combinations = [" ".join(words) for words in product(_STYLES.split(), _ROOMS.split(), _THINGS.split())]
    order = rng.permutation(len(combinations))

    titles = list[str]()
    for number in range(count):
        edition, place = divmod(number, len(order))
        title = combinations[order[place]]
        titles.append(f"{title} No. {edition + 1}" if edition else title)
    return titles


def _ids(letter: str, count: int) -> pl.Series:
    width = len(str(count))
    return pl.Series([f"{letter}{number:0{width}}" for number in range(1, count + 1)])
