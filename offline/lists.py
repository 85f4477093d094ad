"""The lists of a model as rows in key order.

Blocks of users or items can be computed in several processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hotplate.offline.attributes import Attributes, read_attributes
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.evaluate.evaluation import evaluate_as_published
from hotplate.offline.evaluate.records import EvaluationRecord
from hotplate.offline.input.files import DataSource, check_source
from hotplate.offline.input.pairs import Indices, row_slices
from hotplate.offline.list_encoder import LISTS_AT_ONCE, ROW_BYTES, ListEncoder, RankedLists, check_length
from hotplate.offline.measurement import Items, Observe, ignore
from hotplate.offline.model import Model, Users
from hotplate.offline.model_folder import load
from hotplate.offline.ruled_lists import RuledLists
from hotplate.offline.rules import Rules
from hotplate.offline.sources import stored_names
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.blend import factors_of
from hotplate.offline.train.engine import engine_of
from hotplate.offline.train.popularity import Popular
from hotplate.offline.train.ranking import Ranked, RecentWeights
from hotplate.stores.encoding import ITEM, OVERALL, POPULAR, USER, significant
from hotplate.stores.factors import FORMAT, PIECE_BYTES, PLAIN_FORMAT, Description, ItemEntry, description_row, pieces
from hotplate.stores.origin import OriginRecord
from hotplate.stores.store import Plan, Row

# A smaller share may be an incomplete file.
LEAST_AVAILABLE = 0.5
# A trained model, or its folder.
AnyModel = Model | Path | str
# Users or items in a block, unless there were too many blocks.
_LEAST_IN_BLOCK = 1_000
_MOST_BLOCKS = 2_000


@dataclass(frozen=True, slots=True)
class ListSettings:
    """The length and rules of lists.

    keep_seen        recommend items that users have
    fold_in          publish item factors, for visitors
    attributes       a file of items and their attributes, for filters of requests
    attribute_kinds  `number`, `text`, `date` or `list` by attribute, for those that are not to be guessed
    shown            attributes that answers may have, as price in `fields=id,price`
    force            publish even if `Rules.available` has less than half of the items, as PublishSettings.force does
    """

    length: int = 20
    keep_seen: bool = False
    rules: Rules = field(default_factory=Rules)
    fold_in: bool = False
    force: bool = False
    attributes: DataSource | None = None
    attribute_kinds: Mapping[str, str] = field(default_factory=dict)
    shown: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_length(self.length)
        if self.attributes is not None:
            check_source(self.attributes)

    def for_named_list(self) -> "ListSettings":
        """Return the settings of a list besides the default one, which alone has item factors and attributes."""
        return replace(self, fold_in=False, attributes=None, attribute_kinds={}, shown=())


@dataclass(frozen=True, slots=True, eq=False)
class ModelLists:
    """A ListSource of one model.

    evaluation   of these lists, None if unknown
    titles       by item number
    ranked       the lists under the rules
    top          popular lists by segment
    attributes   rows of item attributes, and their entry in the manifest
    """

    model: Model
    settings: ListSettings
    evaluation: EvaluationRecord | None
    titles: Sequence[str | None]
    encoder: ListEncoder
    ranked: RuledLists
    top: Mapping[str, Popular]
    attributes: Attributes

    @classmethod
    def of(cls, model: Model, settings: ListSettings, name: str = "") -> "ModelLists":
        """Return the lists of *model* by *settings*, for the list *name* of a release, empty for the default one.

        A release may have several lists for each user. Raises SettingError if lists for visitors are wanted
        (`fold_in`) and the engine has no item factors for them, and DataError if the rules leave too few items.
        """
        if settings.fold_in and factors_of(model.ranker) is None:
            raise SettingError(
                f"Folding in needs item factors, and the engine {engine_of(model.params)} learns none; train with "
                "--engine als."
            )

        ids = model.matrix.item_ids
        titles = [model.titles.get(item) for item in ids]
        ranked = RuledLists.of(model, settings.rules, settings.length, keep_seen=settings.keep_seen)
        lists = cls(
            model=model,
            settings=settings,
            evaluation=model.evaluation,
            titles=titles,
            encoder=ListEncoder(ids, titles, name, computed=True),
            ranked=ranked,
            top=ranked.popular(),
            attributes=read_attributes(settings.attributes, settings.attribute_kinds, settings.shown),
        )

        allowed = ranked.options.allowed
        if allowed is not None and not allowed.any():
            raise DataError(f"None of the {len(ids):,} items of the model may be recommended; see the rules.")
        if ranked.available_count < LEAST_AVAILABLE * len(ids) and not settings.force:
            raise DataError(
                f"Only {ranked.available_count:,} of the {len(ids):,} items of the model are available: check that the "
                "file of available items is complete, and that its ids are those of the data; only if so, publish with "
                "--force."
            )
        return lists

    def measure(self, on_iteration: Callable[[int, int], None] | None = None) -> "ModelLists":
        """Return these lists with their evaluation as published; it takes a fit, unless they were evaluated before."""
        settings = self.settings
        evaluation = evaluate_as_published(
            self.model, settings.rules, settings.length, keep_seen=settings.keep_seen, on_iteration=on_iteration
        )
        return replace(self, evaluation=evaluation)

    def plan(self) -> Plan:
        """Return the most rows to write, and an estimate of their bytes, by which stores check their room.

        Lists are taken to be full. `meta` rows are item attributes, and with `fold_in` (lists for visitors, computed by
        the service) pieces of item factors.
        """
        items = len(self.model.matrix.item_ids)

        # A list for each item and user, and the popular lists: the overall one and those of segments.
        rows = items + len(self.model.matrix.user_ids) + 1 + len(self.model.segments)
        item_bytes = float(self.encoder.line_bytes.mean())
        list_bytes = int(item_bytes * min(self.settings.length, items)) + ROW_BYTES

        meta_bytes = self.attributes.bytes
        meta_rows = len(self.attributes.rows)
        factors = factors_of(self.model.ranker)
        if self.settings.fold_in and factors is not None:
            entry_bytes = int(item_bytes) + 4 * factors.item_factors.shape[1]
            meta_bytes += items * entry_bytes
            # The description, and pieces filled to within two items, the last one less.
            meta_rows += 2 + items * entry_bytes // max(PIECE_BYTES - 2 * entry_bytes, entry_bytes)

        return Plan(
            rows=rows + meta_rows,
            payload_bytes=rows * list_bytes + meta_bytes,
            meta_bytes=meta_bytes,
        )

    def about(self) -> OriginRecord:
        """Describe the lists for the manifest of a release: model, data, parameters, metrics and rules."""
        model = self.model
        return {
            "hotplate": version("hotplate"),
            "engine": engine_of(model.params),
            "model": model.id,
            "trained_at": model.created_at.isoformat(),
            "data": model.data.fingerprint,
            "learnt_until": model.learnt_until,
            "params": asdict(model.params),
            "metrics": None if self.evaluation is None else self.evaluation.to_json(),
            "list_length": self.settings.length,
            "keep_seen": self.settings.keep_seen,
            "rules": self.ranked.about(),
            "fold_in": self.settings.fold_in,
            **self.attributes.about,
        }

    def items(self) -> Items:
        """See `ListSource`; rules do not change the catalogue."""
        ids = self.model.matrix.item_ids
        return Items(ids, self.top[OVERALL].items, len(ids))

    def batches(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """See `ListSource`."""
        yield from self.similar(0, len(self.model.matrix.item_ids))
        yield from self.popular()
        yield from self.personal(observe)
        yield from self.meta()

    def similar(self, start: int, stop: int) -> Iterator[list[Row]]:
        """Yield the rows of similar items from *start* to *stop*."""
        for batch in _batches(start, stop):
            items = [self.model.matrix.item_ids[item] for item in batch.tolist()]
            yield from self.encoder.batches(ITEM, RankedLists.of(items, self.ranked.similar(batch)))

    def popular(self) -> Iterator[list[Row]]:
        """Yield the rows of the popular lists: the overall one, and those of segments (groups of users)."""
        for segment, popular in sorted(self.top.items()):
            ranked = Ranked(popular.items[np.newaxis], popular.scores[np.newaxis])
            yield from self.encoder.batches(POPULAR, RankedLists.of([segment], ranked))

    def personal(self, observe: Observe = ignore) -> Iterator[list[Row]]:
        """Yield the rows of users in order; *observe* gets the lists of each batch, to measure them."""
        user_ids = self.model.matrix.user_ids
        for batch in _batches(0, len(user_ids)):
            users = [user_ids[user] for user in batch.tolist()]
            lists = RankedLists.of(users, self.ranked.personal(batch))
            observe(users, lists.items, lists.lengths)
            yield from self.encoder.batches(USER, lists)

    def meta(self) -> Iterator[list[Row]]:
        """Yield the `meta` rows, one in each batch: item attributes, and with `fold_in` the item factors of the model.

        With the factors, the service computes lists for visitors from the items in their baskets. They are stored as
        float32 in rows (pieces) of some hundred items each. A last row describes them. Those of a blend are of its ALS
        part.
        """
        yield from ([row] for row in self.attributes.rows)
        ranker = factors_of(self.model.ranker)
        if not self.settings.fold_in or ranker is None:
            return

        factors = (row.tobytes() for row in ranker.item_factors.astype("<f4", copy=False))
        written = 0
        for piece in pieces(zip(self._item_entries(ranker.recent), factors, strict=True)):
            yield [piece]
            written += 1

        # The parameters of the training, by which the service solves for a visitor's factors.
        params = ranker.params
        is_spark = isinstance(params, SparkParams)
        cap = self.ranked.cap
        description = Description(
            engine="spark" if is_spark else "als",
            items=len(ranker.item_factors),
            factors=ranker.item_factors.shape[1],
            pieces=written,
            regularization=params.reg_param if isinstance(params, SparkParams) else params.regularization,
            alpha=params.alpha,
            weight=float(np.median(self.model.matrix.user_items.data)),
            max_per_category=self.settings.rules.max_per_category,
            gamma=0.0 if ranker.recent is None else ranker.recent.gamma,
            format=FORMAT if cap is not None and cap.has_several else PLAIN_FORMAT,
        )
        yield [description_row(description)]

    def _item_entries(self, recent: RecentWeights | None) -> Iterator[ItemEntry]:
        """Yield each item with its title and what the rules say of it, for the lists that the service computes."""
        allowed = self.ranked.options.allowed
        cap = self.ranked.cap
        boosts = self.ranked.options.boosts
        for number, item in enumerate(self.model.matrix.item_ids):
            categories = () if cap is None else cap.of(number)
            yield ItemEntry(
                item,
                self.titles[number],
                allowed=allowed is None or bool(allowed[number]),
                category=categories if len(categories) > 1 else next(iter(categories), None),
                multiplier=1.0 if recent is None else significant(math.exp(recent.logs[number])),
                boost=1.0 if boosts is None else float(boosts.factors[number]),
            )

    def for_users(self, users: Users) -> "ModelLists":
        """Return these lists limited to *users*."""
        model = self.model.with_users(users)
        return replace(self, model=model, ranked=self.ranked.for_users(model, users))


def load_lists(models: Mapping[str, AnyModel], settings: Mapping[str, ListSettings]) -> dict[str, ModelLists]:
    """Return the lists of *models* by name, the first as the default list; a folder of several lists is loaded once.

    Only the default list has the item factors and attributes of its settings. Raises as `load` and `ModelLists.of`.
    """
    load_once = cache(load)
    lists = dict[str, ModelLists]()
    for name, stored_name in stored_names(models).items():
        model = models[name]
        if not isinstance(model, Model):
            model = load_once(Path(model))

        list_settings = settings[name]
        if stored_name:
            list_settings = list_settings.for_named_list()
        lists[name] = ModelLists.of(model, list_settings, stored_name)
    return lists


def _batches(start: int, stop: int) -> Iterator[Indices]:
    """Yield the numbers from *start* to *stop* in batches."""
    numbers = np.arange(start, stop, dtype=np.int32)
    return (numbers[rows] for rows in row_slices(len(numbers), LISTS_AT_ONCE))


class Block(NamedTuple):
    """One task: lists of *users*, or, if None, of items from *start* to *stop*."""

    part: int
    start: int
    stop: int
    users: Users | None


def blocks_of(lists: ModelLists) -> list[Block]:
    """Divide the items and the users of a model into blocks, ranges that each are written by one task of a cluster.

    A block writes one part of a draft (the release that is being written). Parts are numbered from 1 in the order of
    their keys, items first. The blocks depend on the size of the model alone, so that each attempt has the same.
    """
    blocks = list[Block]()
    for start, stop in _spans(len(lists.model.matrix.item_ids)):
        blocks.append(Block(part=len(blocks) + 1, start=start, stop=stop, users=None))
    for start, stop in _spans(len(lists.model.matrix.user_ids)):
        users = lists.ranked.users(start, stop)
        blocks.append(Block(part=len(blocks) + 1, start=start, stop=stop, users=users))
    return blocks


def rows_of(lists: ModelLists, block: Block, observe: Observe = ignore) -> Iterator[list[Row]]:
    """Compute the rows of a block in key order; *lists* may lack users."""
    if block.users is None:
        return lists.similar(block.start, block.stop)
    return lists.for_users(block.users).personal(observe)


def _spans(count: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each block of *count* users or items."""
    step = max(_LEAST_IN_BLOCK, -(-count // _MOST_BLOCKS))
    for start in range(0, count, step):
        yield start, min(start + step, count)
