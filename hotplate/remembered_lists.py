"""The popular lists that a client remembers, to replace the answers of failed requests."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar

from hotplate.base.recommendations import ITEM_FIELDS, Item, Recommendations

# Remembered lists: how many, and items of each.
REMEMBERED_LISTS = 100
REMEMBERED_ITEMS = 100
# When a list is read again: after a success, and after a failure.
REFRESH_S = 60.0
REFRESH_AGAIN_S = 1.0
# A list that was due for so long was not asked for meanwhile, and makes room for others.
UNUSED_S = 600.0
# Options that are applied to a remembered list. It is remembered for each value of the others.
APPLIED_HERE = {"exclude", "fields", "after"}
# Of few values, unlike conditions.
OF_FEW_VALUES = {"list", "segment"}

Options = Mapping[str, Any]
# Identifies a list: pairs of an option and its value, sorted.
_Key = tuple[tuple[str, Any], ...]
R = TypeVar("R", bound=Recommendations)


class RememberedLists(Generic[R]):
    """Popular lists by the options of the calls that they can replace; *options* are those without empty values.

    The two lists that can replace a call's answer are that of the segment and the overall one. A list is old, and read
    again, a minute after it was read, and a second after an attempt that failed. Threads may share this object.
    """

    def __init__(self) -> None:
        self._lists = dict[_Key, R]()
        # When each list is to be read again, by `time.monotonic`, whether or not the last attempt succeeded.
        self._refresh_at = dict[_Key, float]()

    def replacement(self, options: Options, n: int) -> R | None:
        """Return the list that replaces an answer of *n* items; None if none is remembered.

        The list of the segment is preferred to the overall one, unless all of its items are excluded.
        """
        remembered = filter(None, map(self._lists.get, _keys_of(options)))
        selected = [replace(popular, items=_select_items(popular.items, options, n)) for popular in remembered]
        with_items = (popular for popular in selected if popular.items)
        return next(chain(with_items, selected), None)

    def has_old(self, options: Options) -> bool:
        """Whether lists that can replace an answer are to be read again, or for the first time."""
        return bool(self._old_keys(options))

    async def renew(
        self, options: Options, deadline: float, read: Callable[[Options, float], Awaitable[R | None]]
    ) -> None:
        """Read the old lists again, each within half of the time until *deadline*, by `time.monotonic`.

        *read* takes the options of a list and a deadline; without an answer it returns None, and the former list is
        kept, as for an empty one.
        """
        for key in self._old_keys(options):
            now = time.monotonic()
            if now >= deadline:
                return
            self._refresh_at[key] = now + REFRESH_AGAIN_S  # a successful read replaces it
            popular = await read(dict(key), (now + deadline) / 2)
            if popular is not None and popular.items:
                self._lists[key] = popular
                self._refresh_at[key] = now + REFRESH_S

    def forget_attempts(self) -> None:
        """Let lists that are not remembered yet be read at once."""
        for key in list(self._refresh_at):
            if key not in self._lists:
                self._refresh_at.pop(key, None)  # another thread may have removed it

    def _forget_unused(self, now: float) -> None:
        for key, due_at in list(self._refresh_at.items()):
            if due_at + UNUSED_S < now:
                self._refresh_at.pop(key, None)  # another thread may have removed it
                self._lists.pop(key, None)

    def _old_keys(self, options: Options) -> list[_Key]:
        most_lists = REMEMBERED_LISTS
        if options.keys() - APPLIED_HERE - OF_FEW_VALUES:  # conditions leave room for lists without one
            most_lists = REMEMBERED_LISTS // 2
        now = time.monotonic()
        if len(self._refresh_at) >= most_lists:
            self._forget_unused(now)
        has_room = len(self._refresh_at) < most_lists
        return [
            key
            for key in _keys_of(options)
            if (has_room or key in self._refresh_at) and self._refresh_at.get(key, 0.0) <= now
        ]


def _select_items(items: "list[Item]", options: Options, n: int) -> "list[Item]":
    """Return the first *n* items that are not excluded, with the requested fields."""
    excluded = set(options.get("exclude", ()))
    kept = [item for item in items if item["id"] not in excluded][:n]
    fields = options.get("fields", ITEM_FIELDS)
    return [{name: item[name] for name in fields if name in item} for item in kept]  # type: ignore[literal-required,misc]  # names of fields, as the service takes them


def _keys_of(options: Options) -> list[_Key]:
    """Return the keys of the list of the segment and of the overall one."""
    kept = {name: value for name, value in options.items() if name not in APPLIED_HERE}
    if attributes := set(options.get("fields", ())).difference(ITEM_FIELDS):
        kept["fields"] = (*ITEM_FIELDS, *sorted(attributes))
    of_segment = tuple(sorted(kept.items()))
    overall = tuple(option for option in of_segment if option[0] != "segment")
    return list(dict.fromkeys([of_segment, overall]))
