"""The lists of a model as rows: top-N for users, similar items, popular lists; in the order of their keys."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from offline.input.matrix import Floats, Indices
from offline.list_encoder import ListEncoder, RankedLists, check_length
from offline.measurement import Items, Observe, ignore
from offline.model import Model
from offline.rules import RuledLists, Rules
from offline.train.engine import engine_of
from stores.keys import ITEM, OVERALL, POPULAR, USER
from stores.store import Plan, Row

_BATCH = 4096
# Six decimals distinguish about what float32 does, in half the bytes.
_DECIMALS = 6
_SCORE_BYTES = 8


@dataclass(frozen=True, slots=True)
class ListSettings:
    """How long lists are, whether a user's may contain items that the user has already, and what rules they obey."""

    length: int = 20
    keep_seen: bool = False
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        check_length(self.length)


class ModelLists:
    """All lists of one model, computed and encoded batch by batch; a ListSource that lives as long as one publish."""

    def __init__(self, model: Model, settings: ListSettings) -> None:
        self._model = model
        self._settings = settings
        ids = model.matrix.item_ids
        self._titles = [model.titles.get(item) for item in ids]
        self._encoder = ListEncoder(ids, self._titles)
        self._ruled = RuledLists(model, settings.rules, settings.length, keep_seen=settings.keep_seen)
        self._popular = self._ruled.popular()

    def plan(self) -> Plan:
        """Estimate the rows from the mean size of an item; a user or item without candidates gets no list."""
        matrix, length = self._model.matrix, self._settings.length
        named = zip(matrix.item_ids, self._titles, strict=True)
        item_bytes = np.mean([len(item.encode()) + len((title or "").encode()) + 32 for item, title in named])
        list_bytes = int((item_bytes + _SCORE_BYTES) * min(length, len(matrix.item_ids)))
        rows = len(matrix.item_ids) + len(matrix.user_ids) + 1 + len(self._model.segments)
        return Plan(rows, rows * (list_bytes + 32))

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""
        model = self._model
        return {
            "hotplate": version("hotplate"),
            "engine": engine_of(model.params),
            "trained_at": model.created_at.isoformat(),
            "data": model.data.get("fingerprint"),
            "params": asdict(model.params),
            "metrics": model.metrics,
            "list_length": self._settings.length,
            "keep_seen": self._settings.keep_seen,
            "rules": self._ruled.about(),
        }

    def items(self) -> Items:
        """Return the model's items, of which the catalogue is what may be recommended."""
        return Items(self._model.matrix.item_ids, self._popular[OVERALL].items, self._ruled.catalogue)

    def batches(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, a few thousand at a time; those of users are observed."""
        matrix = self._model.matrix
        for batch in _ranges(len(matrix.item_ids)):
            yield from self._rows(ITEM, matrix.item_ids, batch, *self._ruled.similar(batch))
        yield self._popular_rows()
        for batch in _ranges(len(matrix.user_ids)):
            items, scores = self._ruled.personal(batch)
            listed = items >= 0
            observe([matrix.user_ids[user] for user in batch.tolist()], items[listed], listed.sum(axis=1))
            yield from self._rows(USER, matrix.user_ids, batch, items, scores)

    def _rows(self, kind: str, ids: list[str], batch: Indices, items: Indices, scores: Floats) -> Iterator[list[Row]]:
        present = items >= 0
        lengths = present.sum(axis=1)
        lists = RankedLists(
            owners=[ids[index] for index in batch[lengths > 0].tolist()],
            lengths=lengths[lengths > 0],
            items=items[present],
            scores=scores[present].astype(np.float64).round(_DECIMALS),
        )
        return (self._encoder.rows(kind, part) for part in lists.batches(_BATCH))

    def _popular_rows(self) -> list[Row]:
        segments, ranked = zip(*sorted(self._popular.items()), strict=True)
        lists = RankedLists(
            owners=segments,
            lengths=np.array([len(popular.items) for popular in ranked]),
            items=np.concatenate([popular.items for popular in ranked]),
            scores=np.concatenate([popular.scores for popular in ranked]).astype(np.float64),
        )
        return self._encoder.rows(POPULAR, lists)


def _ranges(count: int) -> Iterator[Indices]:
    for start in range(0, count, _BATCH):
        yield np.arange(start, min(start + _BATCH, count), dtype=np.int32)
