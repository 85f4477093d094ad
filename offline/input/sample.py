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

    Deterministic for a seed. Takes about 0.1 s and 20 MB per million pairs of user and item. Raises SettingError below
    10 of either.
    """
    require_at_least("The number of users", users, 10)
    require_at_least("The number of items", items, 10)
    rng = np.random.default_rng(seed)
    tastes = rng.normal(size=(items, _TASTES)).astype(np.float32)
    popularity = rng.permutation(-0.8 * np.log(np.arange(1, items + 1))).astype(np.float32)
    blocks = list[_Choices]()
    for start in range(0, users, _USERS_PER_BLOCK):
        choices = _choices(rng, min(_USERS_PER_BLOCK, users - start), tastes, popularity)
        blocks.append(_Choices(choices.users + start, choices.items))
    user = np.concatenate([block.users for block in blocks])
    item = np.concatenate([block.items for block in blocks])
    titles = pl.Series(_titles(rng, items))
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


def _choices(
    rng: np.random.Generator, users: int, tastes: npt.NDArray[np.float32], popularity: npt.NDArray[np.float32]
) -> _Choices:
    """Draw the choices of users numbered from 0: 5 or more items each, by *tastes* [items, tastes] and popularity."""
    items = len(tastes)
    utilities = rng.normal(size=(users, _TASTES)).astype(np.float32) @ tastes.T + popularity
    # Gumbel top-k trick: sampling without replacement with odds exp(utility).
    utilities += rng.gumbel(size=utilities.shape).astype(np.float32)
    counts = np.clip(rng.lognormal(3.2, 0.5, size=users).astype(np.int64), 5, max(5, items // 3))
    order = np.argsort(-utilities, axis=1)
    is_chosen = np.arange(items) < counts[:, None]
    return _Choices(np.repeat(np.arange(users), counts), order[is_chosen])


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """Return *count* different titles such as `Amber Balcony Basket`, numbered as editions once all are used."""
    names = [" ".join(words) for words in product(_STYLES.split(), _ROOMS.split(), _THINGS.split())]
    order = rng.permutation(len(names))
    numbered = [divmod(number, len(names)) for number in range(count)]
    return [names[order[index]] + (f" No. {edition + 1}" if edition else "") for edition, index in numbered]


def _ids(letter: str, count: int) -> pl.Series:
    width = len(str(count))
    return pl.Series([f"{letter}{number:0{width}}" for number in range(1, count + 1)])
