"""Ranked lists as flat arrays, and their encoding as rows of a release."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from hotplate.base.recommendations import ALL_ITEM_FIELDS
from hotplate.offline.errors import require_between
from hotplate.offline.input.pairs import offsets
from hotplate.offline.train.ranking import Ranked
from hotplate.stores.encoding import MAX_OFFSET, SCORE_DIGITS, SEPARATOR, USUAL_CUT, prefix_of
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Row

# The longest list that the service answers.
MAX_LENGTH = 1000
# Of popular lists.
POPULAR_LENGTH = 100
# Estimated bytes of a row besides its items.
ROW_BYTES = 32

# Estimated bytes of a score and the frame of an item's line; a computed score has fewer digits.
_COMPUTED_BYTES = 20
_SCORE_BYTES = 31
LISTS_AT_ONCE = 4096
# Items encoded at once, unless a list has more; fits into the CPU's cache.
_ITEMS_AT_ONCE = 1 << 17

_SEPARATOR = SEPARATOR.decode()


def check_length(length: int, name: str = "The list length") -> None:
    """Raise SettingError unless *length* is a valid list length."""
    require_between(name, length, 1, MAX_LENGTH)


@dataclass(frozen=True, slots=True)
class RankedLists:
    """Concatenated lists, each best first.

    owners    ids of users, items or segments [lists]
    lengths   number of items [lists]
    entries   [item: its number, from 0, score: f64, and texts of other fields] of all lists
    """

    owners: Sequence[str]
    lengths: npt.NDArray[Any]
    entries: pl.DataFrame

    @classmethod
    def of(cls, owners: Sequence[str], ranked: Ranked) -> "RankedLists":
        """Return the lists *ranked* [owners, n], which end with -1."""
        is_listed = ranked.items >= 0
        scores = ranked.scores[is_listed].astype(np.float64)
        return cls(
            owners=owners,
            lengths=is_listed.sum(axis=1),
            entries=pl.DataFrame({"item": ranked.items[is_listed], "score": scores}),
        )

    @property
    def items(self) -> npt.NDArray[Any]:
        """The item numbers of all lists."""
        return self.entries.get_column("item").to_numpy()

    def batches(self, most: int) -> Iterator["RankedLists"]:
        """Yield these lists in batches of at most *most* lists and _ITEMS_AT_ONCE items, but of one list at least."""
        # List i has the items from item_ends[i] to item_ends[i + 1].
        item_ends = offsets(self.lengths)
        start = 0
        while start < len(self.owners):
            # The end of the lists that have at most _ITEMS_AT_ONCE items in all.
            stop_by_items = int(np.searchsorted(item_ends, item_ends[start] + _ITEMS_AT_ONCE, side="right")) - 1
            stop = min(start + most, max(stop_by_items, start + 1), len(self.owners))
            yield RankedLists(
                owners=self.owners[start:stop],
                lengths=self.lengths[start:stop],
                entries=self.entries[item_ends[start] : item_ends[stop]],
            )
            start = stop


class ListEncoder:
    """Encodes ranked lists of items, given by number, each with its title or None, as rows of the list *name*.

    The bytes of fields that an item has in all lists are made once; polars joins a batch of lists as one text, which is
    then cut.
    """

    def __init__(
        self, ids: Sequence[str], titles: Sequence[str | None], name: str = "", *, computed: bool = False
    ) -> None:
        """Encode items by their *ids* and *titles*.

        *computed* scores are rounded to SCORE_DIGITS, and items with a score of 0 are marked as fillers. A release may
        have several lists for each user; *name* is empty for the default one.
        """
        self._name = name
        self._computed = computed
        self._of_items = {"id": _members("id", ids), "title": _members("title", titles)}

    @property
    def line_bytes(self) -> npt.NDArray[np.float64]:
        """The estimated bytes of each item in a list [items], by which stores check their room."""
        rest = _COMPUTED_BYTES if self._computed else _SCORE_BYTES
        members = [column.str.len_bytes().to_numpy() for column in self._of_items.values()]
        return np.asarray(np.sum(members, axis=0) + rest, dtype=np.float64)

    def batches(self, kind: str, lists: RankedLists) -> Iterator[list[Row]]:
        """Yield one row per list of a *kind*, such as USER, in batches, as `rows`; empty lists have no row."""
        prefix = prefix_of(kind, self._name)
        has_items = lists.lengths > 0
        present = RankedLists([*compress(lists.owners, has_items)], lists.lengths[has_items], lists.entries)
        return (self.rows(prefix, batch) for batch in present.batches(LISTS_AT_ONCE))

    def rows(self, prefix: str, lists: RankedLists) -> list[Row]:
        """Return one row per list, as in `hotplate.stores.encoding`; StoreMisused if a score is not finite."""
        new = tuple.__new__  # faster than Row(key, value)
        return [
            new(Row, (prefix + owner, body))
            for owner, body in zip(lists.owners, self._encode_bodies(lists), strict=True)
        ]

    def _encode_bodies(self, lists: RankedLists) -> list[bytes]:
        """Return the value of each list's row: an offset of four hexadecimal digits, then the items as JSON lines.

        Requests read the first items of a list, most often USUAL_CUT of them. The offset is the number of bytes of
        these, so that the service can cut the list without a search; 0 if the digits cannot hold it.
        """
        # The lines of all lists are one text; each line ends with a separator.
        lines = self._encode_lines(lists.entries)
        line_bytes = lines.str.len_bytes().to_numpy()
        line_starts = offsets(line_bytes)

        # Lists as numbers of lines, then as bytes of the text, without the separator of the last line.
        stop_lines = np.cumsum(lists.lengths)
        first_lines = stop_lines - lists.lengths
        cut_lines = np.minimum(first_lines + USUAL_CUT, stop_lines)
        starts = line_starts[first_lines]
        ends = np.maximum(line_starts[stop_lines] - len(SEPARATOR), starts)
        cut_ends = np.maximum(line_starts[cut_lines] - len(SEPARATOR), starts)

        cut_bytes = cut_ends - starts
        cut_offsets = np.where(cut_bytes <= MAX_OFFSET, cut_bytes, 0)

        text = lines.str.join("").cast(pl.Binary).item()
        return [
            b"%04x%b" % (offset, text[start:end])
            for offset, start, end in zip(cut_offsets.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]

    def _encode_lines(self, entries: pl.DataFrame) -> pl.Series:
        """Return a JSON line such as `{"id":"p1","score":0.5,"title":"Mug"}` for each of *entries*, in order.

        *entries* are as in `RankedLists`. Raises StoreMisused for a score that is not finite.
        """
        if entries.is_empty():
            return pl.Series(dtype=pl.String)

        members = {name: column.gather(entries.get_column("item")) for name, column in self._of_items.items()}
        scores = entries.get_column("score")
        if not scores.is_finite().all():
            raise StoreMisused("a score is not a finite number; leave such items out of the list")
        if self._computed:
            scores = scores.round_sig_figs(SCORE_DIGITS)
            is_filler = scores == 0
            if is_filler.any():
                members["filler"] = is_filler.replace_strict({True: ',"filler":true', False: ""})

        # orjson writes all scores at once, as `[0.5,0.25]`, with the same digits as in other JSON.
        array = orjson.dumps(scores.to_numpy(), option=orjson.OPT_SERIALIZE_NUMPY).decode()
        members["score"] = ',"score":' + pl.Series([array[1:-1]]).str.split(",").explode()
        for name in entries.columns[2:]:
            members[name] = _members(name, entries.get_column(name))

        parts = [members[name] for name in ALL_ITEM_FIELDS if name in members]
        return pl.select(pl.concat_str(*parts, pl.lit("}" + _SEPARATOR))).to_series()


def _members(name: str, values: Iterable[str | None]) -> pl.Series:
    """Return the member *name* of JSON lines, empty without a value: `{"id":"p1"`, the first, or `,"title":"Mug"`."""
    start = "{" if name == ALL_ITEM_FIELDS[0] else ","
    start += f'"{name}":'
    members = ["" if value is None else start + orjson.dumps(value).decode() for value in values]
    return pl.Series(members, dtype=pl.String)
