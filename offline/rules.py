"""Business rules of lists: which items may be recommended, and in what order."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hotplate.offline.errors import SettingError, require_at_least, require_between
from hotplate.offline.exploration import Explore
from hotplate.offline.input.columns import MAX_BOOST
from hotplate.offline.input.showings import Showings
from hotplate.offline.variety import MAX_DIVERSITY


@dataclass(frozen=True, slots=True)
class Rules:
    """Business rules of lists; raises SettingError for invalid ones.

    available         ids of recommendable items; None for all
    categories        by item id, one or several; a list has each at most *max_per_category* times
    min_history       users with fewer interactions get no list
    boosts            factors of scores, by item id
    pinned            ids of items at the head of lists, unless the user has them
    diversity         weight of variety against relevance, from 0 to 0.9
    showings          days on which items were shown; those without a click sink
    explore           places for new items
    """

    available: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    categories: Mapping[str, str | Collection[str]] = field(default_factory=dict)
    max_per_category: int | None = None
    min_history: int = 1
    boosts: Mapping[str, float] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    diversity: float = 0.0
    showings: Showings | None = None
    explore: Explore | None = None

    def __post_init__(self) -> None:
        require_at_least("min-history", self.min_history)
        if self.max_per_category is not None:
            require_at_least("max-per-category", self.max_per_category)
        require_both(self.max_per_category, self.categories or None)
        require_between("diversity", self.diversity, 0, MAX_DIVERSITY)
        for item, boost in self.boosts.items():
            if not 0 < boost <= MAX_BOOST:
                raise SettingError(
                    f"The boost of item {item!r} is {boost}; it must be above zero and at most {MAX_BOOST:,}."
                )

    @property
    def rearranges(self) -> bool:
        """Whether a rule changes the order of users' lists, beyond pins and boosts."""
        return self.diversity > 0 or self.showings is not None or self.explore is not None

    @property
    def shortens(self) -> bool:
        """Whether a rule removes items from lists."""
        return self.available is not None or bool(self.excluded) or self.max_per_category is not None


def require_both(max_per_category: int | None, categories: object | None) -> None:
    """Raise SettingError unless both or neither are given."""
    if (max_per_category is None) != (categories is None):
        raise SettingError("A cap needs both --categories FILE and --max-per-category N.")
