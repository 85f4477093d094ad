"""A release from lists that somebody else computed: sorted on disk, encoded as they are written to the store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from offline.errors import DataError, SettingError
from offline.files import find_files, fingerprint
from offline.lists import MAX_LENGTH
from offline.scored import Scored, read_scored
from offline.sorting import Sorted, sort
from offline.titles import most_frequent, read_titles
from stores.encoding import ItemEncoder
from stores.keys import ITEM, OVERALL, POPULAR, USER
from stores.store import Plan, Row

POPULAR_LENGTH = 100
_BATCH = 4096
_MAX_SEGMENTS = 1000
_SCORE_BYTES = 19
_FRAME_BYTES = 20
"""What stands around an item in its list: names of fields, braces, quotes, separator."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """Which files make up the release, and how long its lists are; *columns* are names by role, None to guess."""

    lists: Path
    popular: Path | None = None
    similar: Path | None = None
    titles: Path | None = None
    columns: dict[str, str | None] | None = None
    delimiter: str | None = None
    length: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_LENGTH:
            raise SettingError(f"The list length is {self.length}; it must lie between 1 and {MAX_LENGTH}.")


class Imported:
    """All lists of one import, sorted in a folder and encoded as they are asked for; lives as long as the folder."""

    def __init__(self, settings: ImportSettings, folder: Path, tell: Tell) -> None:
        """Read, check and sort the files; nothing but ids, titles and counts of items stays in memory."""
        self._settings = settings
        length = settings.length
        scored = read_scored(settings.lists, settings.columns or {}, delimiter=settings.delimiter)
        similar = self._read(settings.similar, owner="item", item="other")
        popular = self._read(settings.popular, owner="segment", item="item")
        self._users = _sorted(scored, length, folder / "users", "sort", tell)
        self._similar = None if similar is None else _sorted(similar, length, folder / "similar", "similar", tell)
        self._popular = _popular(popular, self._users, max(length, POPULAR_LENGTH))
        self.rows, self.left_out = scored.rows, dict(scored.left_out)
        if self._users.duplicates:
            self.left_out["named twice"] = self._users.duplicates
        titles = self._titles(scored)
        self._items = _items(self._users, self._similar, self._popular)
        ids = self._items.get_column("item").to_list()
        self._named = [titles.get(item) for item in ids]
        self._encoder = ItemEncoder(ids, self._named)

    def plan(self) -> Plan:
        """Say what the rows will take: exact but for the digits of scores."""
        sizes = [len((title or "").encode()) for title in self._named]
        one = self._items.select(
            "item", bytes=pl.col("item").str.len_bytes() + pl.Series(sizes) + _SCORE_BYTES + _FRAME_BYTES
        )
        lists = [(self._users.items, self._users.owners)]
        if self._similar is not None:
            lists.append((self._similar.items, self._similar.owners))
        payload = sum(
            int((joined.get_column("bytes") * joined.get_column("lists")).sum())
            for joined in (counted.join(one, on="item") for counted, _ in lists)
        )
        rows = sum(owners for _, owners in lists) + self._popular.get_column("owner").n_unique()
        longest = int(one.get_column("bytes").max() or 0)  # type: ignore[arg-type]  # bytes are integers
        return Plan(rows, payload + self._popular.height * longest + rows * 32)

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""
        given = (self._settings.lists, self._settings.popular, self._settings.similar, self._settings.titles)
        return {
            "hotplate": version("hotplate"),
            "engine": "import",
            "data": fingerprint([file for path in given if path is not None for file in find_files(path)]),
            "list_length": self._settings.length,
            "rows": self.rows,
            "left_out": self.left_out,
        }

    def batches(self) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, a few thousand at a time."""
        for piece in self._similar.pieces if self._similar is not None else ():
            yield from self._rows(ITEM, pl.read_parquet(piece))
        yield from self._rows(POPULAR, self._popular)
        for piece in self._users.pieces:
            yield from self._rows(USER, pl.read_parquet(piece))

    def _rows(self, kind: str, lists: pl.DataFrame) -> Iterator[list[Row]]:
        placed = lists.join(self._items, on="item", how="left", maintain_order="left")
        places, scores = placed.get_column("place").to_list(), placed.get_column("score").to_list()
        encode, rows, start = self._encoder.encode, list[Row](), 0
        runs = placed.get_column("owner").rle().struct
        for owner, count in zip(runs.field("value").to_list(), runs.field("len").to_list(), strict=True):
            end = start + count
            rows.append(Row(kind + owner, encode(places[start:end], scores[start:end])))
            start = end
            if len(rows) == _BATCH:
                yield rows
                rows = []
        if rows:
            yield rows

    def _read(self, path: Path | None, owner: str, item: str) -> Scored | None:
        if path is None:
            return None
        return read_scored(path, owner=owner, item=item, delimiter=self._settings.delimiter)

    def _titles(self, scored: Scored) -> dict[str, str]:
        given = self._settings
        if given.titles is not None:
            columns = given.columns or {}
            return read_titles(given.titles, columns.get("item") or "item", columns.get("title"), given.delimiter)
        if "title" not in scored.frame.collect_schema():
            return {}
        return most_frequent(scored.frame.select("item", "title"), given.lists)


def _sorted(scored: Scored, length: int, folder: Path, stage: str, tell: Tell) -> Sorted:
    folder.mkdir()
    return sort(scored, length, folder, lambda done, total: tell(stage, done, total))


def _popular(given: Scored | None, users: Sorted, length: int) -> pl.DataFrame:
    """Return [owner, item, score]: the lists that are given, by segment, and the overall one, counted if need be."""
    counted = users.items.head(length).select(
        owner=pl.lit(OVERALL), item="item", score=pl.col("lists").cast(pl.Float64)
    )
    if given is None:
        return counted
    rows = given.frame.select("owner", "item", "score").collect(engine="streaming")
    segments = rows.get_column("owner").n_unique()
    if segments > _MAX_SEGMENTS:
        raise DataError(f"The popular lists are of {segments:,} segments; at most {_MAX_SEGMENTS:,} can have one each.")
    best = rows.group_by("owner", "item").agg(pl.col("score").max())
    ordered = best.sort("owner", "score", "item", descending=[False, True, False])
    lists = ordered.group_by("owner", maintain_order=True).head(length).select("owner", "item", "score")
    return lists if (lists.get_column("owner") == OVERALL).any() else pl.concat([counted, lists])


def _items(users: Sorted, similar: Sorted | None, popular: pl.DataFrame) -> pl.DataFrame:
    """Return [item, place]: every item that a list names, numbered."""
    named = [users.items.select("item"), popular.select("item")]
    if similar is not None:
        named.append(similar.items.select("item"))
    return pl.concat(named).unique().sort("item").with_row_index("place").select("item", "place")
