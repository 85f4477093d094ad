"""Which column of a file holds the user, the item, the weight: as named, or guessed from common names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from offline.errors import DataError

# In order of preference, without case, spaces and punctuation: `Customer ID` and `customer_id` are both `customerid`.
_COMMON_NAMES = {
    "user": (
        "user userid uid username customer customerid visitor visitorid member memberid client clientid "
        "account accountid reviewer reviewerid listener listenerid reader readerid"
    ),
    "item": (
        "item itemid iid movie movieid product productid stockcode sku asin parentasin track trackid article "
        "articleid song songid artist artistid book bookid isbn video videoid content contentid"
    ),
    "weight": "weight rating count plays playcount score strength",
    "time": (
        "time timestamp ts date datetime invoicedate orderdate purchasedate eventtime eventdate createdat ratedat"
    ),
    "title": "title name description itemname itemtitle productname producttitle movietitle trackname",
    "segment": "segment",
    "score": "score prediction rating relevance similarity strength weight value",
    "other": (
        "other otheritem otheritemid otherid similar similaritem similaritemid similarid related relateditem "
        "relateditemid neighbour neighbouritem neighbor neighboritem recommended recommendeditem"
    ),
    "event": "event eventtype eventname action behavior behaviour type",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns to read, each None until it is named or guessed; lives as long as one reading."""

    user: str | None = None
    item: str | None = None
    weight: str | None = None
    time: str | None = None
    title: str | None = None
    segment: str | None = None
    event: str | None = None
    count: str | None = None


def find_column(name: str, available: Sequence[str], what: str, place: str) -> str:
    """
    Return the column that *name* means: itself, or the only one that differs from it in case.

    Raises DataError, which lists the columns of *place* and the closest match, when there is none.
    """
    if name in available:
        return name
    same = [column for column in available if column.casefold() == name.casefold()]
    if len(same) == 1:
        return same[0]
    close = get_close_matches(name.casefold(), [column.casefold() for column in available], n=1)
    hint = next((f" Did you mean {column!r}?" for column in available if close and column.casefold() == close[0]), "")
    raise DataError(f"{place} has no column {name!r} for the {what}.{hint} Its columns are: {_listed(available)}.")


def guess_column(role: str, available: Sequence[str], taken: Iterable[str | None] = ()) -> str | None:
    """Return the column whose name is the most common one for *role*, or None."""
    plain = {_plain(column): column for column in reversed(available) if column not in set(taken)}
    return next((plain[name] for name in _COMMON_NAMES[role].split() if name in plain), None)


def choose_columns(named: Columns, available: Sequence[str], guess: Sequence[str], place: str) -> Columns:
    """
    Return *named* with every name checked against *available*, and the roles of *guess* that have no name guessed.

    Raises DataError when a named column is missing, when one column is named for both user and item, or when no column
    can be the user, the item, or the event that is asked for.
    """
    chosen = Columns()
    roles = ("user", "item", "weight", "time", "title", "segment", "event", "count")
    for role in roles:
        name = getattr(named, role)
        if name is not None:
            chosen = replace(chosen, **{role: find_column(name, available, role, place)})
    if chosen.user is not None and chosen.user == chosen.item:
        raise DataError(f"The column {chosen.user!r} of {place} is named for both the user and the item; name two.")
    for role in guess:
        if getattr(chosen, role) is None:
            taken = [getattr(chosen, each) for each in roles]
            chosen = replace(chosen, **{role: guess_column(role, available, taken)})
    for role in ("user", "item", *({"event"} & set(guess))):
        if getattr(chosen, role) is None:
            raise DataError(
                f"No column of {place} looks like the {role}; name it with --{role}-column. "
                f"Its columns are: {_listed(available)}."
            )
    return chosen


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _listed(available: Sequence[str]) -> str:
    shown = ", ".join(available[:40])
    return shown if len(available) <= 40 else f"{shown} and {len(available) - 40} more"
