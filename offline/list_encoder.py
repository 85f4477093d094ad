"""Ranked lists as flat arrays, and their encoding as rows of a release."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from hotplate.offline.errors import require_between
from hotplate.stores.encoding import MAX_OFFSET, SCORE_DIGITS, SEPARATOR, USUAL_CUT
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Row

# The longest list that the service answers.
MAX_LENGTH = 1000
# Of popular lists.
POPULAR_LENGTH = 100

_FILLER = ',"filler":true'
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
    items     item numbers, from 0 [sum of lengths]
    scores    float64 [sum of lengths]
    """

    owners: Sequence[str]
    lengths: npt.NDArray[Any]
    items: npt.NDArray[Any]
    scores: npt.NDArray[np.float64]

    def batches(self, most: int) -> Iterator["RankedLists"]:
        """Yield these lists in batches of at most *most* lists and _ITEMS_AT_ONCE items, but of one list at least."""
        # List i has the items from item_ends[i] to item_ends[i + 1].
        item_ends = np.concatenate([[0], np.cumsum(self.lengths)])
        start = 0
        while start < len(self.owners):
            # The end of the lists that have at most _ITEMS_AT_ONCE items in all.
            stop_by_items = int(np.searchsorted(item_ends, item_ends[start] + _ITEMS_AT_ONCE, side="right")) - 1
            stop = min(start + most, max(stop_by_items, start + 1), len(self.owners))

            items_of_batch = slice(item_ends[start], item_ends[stop])
            yield RankedLists(
                owners=self.owners[start:stop],
                lengths=self.lengths[start:stop],
                items=self.items[items_of_batch],
                scores=self.scores[items_of_batch],
            )
            start = stop


class ListEncoder:
    """Encodes ranked lists of items, given by number, each with its title or None.

    The constant bytes of items are made once; polars joins a batch of lists as one text, which is then cut.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str | None], *, computed: bool = False) -> None:
        """Encode items by their *ids* and *titles*.

        *computed* scores are rounded to SCORE_DIGITS, and items with a score of 0 are marked as fillers.
        """
        self._computed = computed
        self._heads = _texts(b'{"id":%b,"score":' % orjson.dumps(identifier) for identifier in ids)
        self._tails: pl.Series | None = None
        if any(title is not None for title in titles):
            self._tails = _texts(map(_tail, titles))

    def rows(self, kind: str, lists: RankedLists) -> list[Row]:
        """Return one row per list, as in `hotplate.stores.encoding`; StoreMisused if a score is not finite."""
        new = tuple.__new__  # faster than Row(key, value)
        return [
            new(Row, (kind + owner, body)) for owner, body in zip(lists.owners, self._encode_bodies(lists), strict=True)
        ]

    def _encode_bodies(self, lists: RankedLists) -> list[bytes]:
        """Return the value of each list's row: an offset of four hexadecimal digits, then the items as JSON lines.

        Requests read the first items of a list, most often USUAL_CUT of them. The offset is the number of bytes of
        these, so that the service can cut the list without a search; 0 if the digits cannot hold it.
        """
        # The lines of all lists are one text; each line ends with a separator.
        lines = self._encode_lines(lists.items, lists.scores)
        line_bytes = lines.str.len_bytes().to_numpy()
        line_starts = np.concatenate([[0], np.cumsum(line_bytes, dtype=np.int64)])

        # Lists as numbers of lines, then as bytes of the text, without the separator of the last line.
        stop_lines = np.cumsum(lists.lengths)
        first_lines = stop_lines - lists.lengths
        cut_lines = np.minimum(first_lines + USUAL_CUT, stop_lines)
        starts = line_starts[first_lines]
        ends = np.maximum(line_starts[stop_lines] - len(SEPARATOR), starts)
        cut_ends = np.maximum(line_starts[cut_lines] - len(SEPARATOR), starts)

        cut_bytes = cut_ends - starts
        offsets = np.where(cut_bytes <= MAX_OFFSET, cut_bytes, 0)

        text = lines.str.join("").cast(pl.Binary).item()
        return [
            b"%04x%b" % (offset, text[start:end])
            for offset, start, end in zip(offsets.tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]

    def _encode_lines(self, items: npt.NDArray[Any], scores: npt.NDArray[np.float64]) -> pl.Series:
        """Return a JSON line such as `{"id":"p1","score":0.5,"title":"Mug"}` for each of *items*, in order.

        *items* are numbers of items, with their *scores*. Raises StoreMisused for a score that is not finite.
        """
        if not np.isfinite(scores).all():
            raise StoreMisused("a score is not a finite number; leave such items out of the list")
        if not len(scores):
            return pl.Series(dtype=pl.String)

        if self._computed:
            scores = _significant(scores)

        # orjson writes all scores at once, as `[0.5,0.25]`, with the same digits as in other JSON.
        array = orjson.dumps(np.ascontiguousarray(scores), option=orjson.OPT_SERIALIZE_NUMPY).decode()
        digits = pl.Series([array[1:-1]]).str.split(",").explode()

        # The parts of a line before and after the score were encoded once for each item.
        heads = self._heads.gather(items)
        tails = pl.lit("}" + _SEPARATOR) if self._tails is None else self._tails.gather(items)
        if self._computed and not scores.all():
            digits += pl.Series(np.where(scores == 0, _FILLER, ""))
        return pl.select(pl.concat_str(heads, digits, tails)).to_series()


def _significant(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return *scores* with SCORE_DIGITS significant digits."""
    powers = SCORE_DIGITS - 1 - np.floor(np.log10(np.abs(scores), where=scores != 0, out=np.zeros_like(scores)))
    # Powers of ten with a negative exponent are not exact.
    large = 10.0 ** np.maximum(-powers, 0)
    small = 10.0 ** np.maximum(powers, 0)
    rounded: npt.NDArray[np.float64] = np.round(scores * small / large) * large / small
    return rounded


def _tail(title: str | None) -> bytes:
    """Return the end of an item's line."""
    name = b"" if title is None else b',"title":%b' % orjson.dumps(title)
    return name + b"}" + SEPARATOR


def _texts(encoded: Iterator[bytes]) -> pl.Series:
    """Return UTF-8 bytes as a series of texts."""
    return pl.Series([text.decode() for text in encoded], dtype=pl.String)
