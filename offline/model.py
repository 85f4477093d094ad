"""A trained model, and the description of its training."""

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from xxhash import xxh3_64_hexdigest

from hotplate.offline.evaluate.records import EvaluationRecord, SearchRecord, json_values, read_evaluation
from hotplate.offline.input.history import Weighting
from hotplate.offline.input.matrix import LeftOut, Matrix
from hotplate.offline.input.pairs import Floats, UserItems
from hotplate.offline.options import Columns
from hotplate.offline.train.als import Factors
from hotplate.offline.train.blend import Blend, factors_of, with_user_factors
from hotplate.offline.train.engine import Params, Ranker, engine_of
from hotplate.offline.train.popularity import Popular
from hotplate.offline.train.repeats import RepeatParams, own_counts
from hotplate.offline.train.similar import Similar


class DataDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The interactions that a model learned from, and how they were read.

    rows, left_out  rows read, and those left out by reason
    fingerprint     digest of all files
    notes           sentences about doubtful data
    source, titles  names of the files
    time_range      first and last time of the rows kept, in ISO 8601 without UTC, if known
    columns         names by role
    """

    rows: int
    left_out: dict[str, int]
    fingerprint: str
    notes: list[str]
    source: str
    titles: str | None
    time_range: tuple[str, str] | None
    columns: Columns
    where: list[str]
    event_weights: dict[str, float] | None
    half_life_s: float | None
    weighting: Weighting
    min_per_user: int
    min_per_item: int


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model with its interactions.

    evaluation     None if it was not evaluated
    data           description of the interactions
    titles         by item id, as far as known
    search         None if its parameters were not searched
    similar        source of similar items
    repeats        how users' own interactions count in lists that keep seen items
    popular_half_life_days  of popularity; None counts all users alike
    """

    ranker: Ranker
    matrix: Matrix
    titles: dict[str, str]
    popular: Popular
    segments: dict[str, Popular]
    params: Params
    evaluation: EvaluationRecord | None
    data: DataDescription
    created_at: datetime
    similar: Similar
    search: SearchRecord | None = None
    popular_half_life_days: float | None = None
    repeats: RepeatParams = field(default_factory=RepeatParams)

    @property
    def id(self) -> str:
        """Identity of the training, kept by `save`."""
        trained = timestamp(self.created_at), engine_of(self.params), asdict(self.params), self.data.fingerprint
        return xxh3_64_hexdigest(json.dumps(trained, sort_keys=True).encode())

    @property
    def learnt_until(self) -> str | None:
        """Time of the newest interaction, in ISO 8601 with UTC, if known."""
        times = self.data.time_range
        return None if times is None else f"{times[1]}+00:00"

    def own_counts(self) -> UserItems | None:
        """Return what users' own interactions add to scores [users, items]; None without weight or times."""
        history = self.matrix.history
        return None if history is None or not self.repeats.weight else own_counts(history, self.repeats)

    def users(self, start: int, stop: int) -> "Users":
        """Return a range of users."""
        factors = factors_of(self.ranker)
        rows = slice(start, stop)
        return Users(
            ids=self.matrix.user_ids[rows],
            user_items=self.matrix.user_items[rows],
            factors=None if factors is None else factors.user_factors[rows],
        )

    def with_users(self, users: "Users") -> "Model":
        """Return the model for *users* alone, with all items and popular lists."""
        ranker = self.ranker
        if isinstance(ranker, Factors | Blend) and users.factors is not None:
            ranker = with_user_factors(ranker, users.factors)
        matrix = replace(self.matrix, user_ids=users.ids, user_items=users.user_items, history=None)
        return replace(self, ranker=ranker, matrix=matrix)


class Users(NamedTuple):
    """Some users of a model, and what rules know of them [users, items].

    own    counts of users' own interactions, if lists keep seen items
    shown  days on which an item was shown without a click
    """

    ids: list[str]
    user_items: UserItems
    factors: Floats | None
    own: UserItems | None = None
    shown: UserItems | None = None


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """The file model.json, with some fields of Model.

    metrics   `evaluation` as JSON
    versions  of hotplate and of libraries, by name
    files     sizes in bytes, by name
    digests   of the files, by name
    digest    of the other fields; earlier versions wrote neither
    """

    format: int
    engine: str
    created_at: str
    params: dict[str, Any]
    metrics: dict[str, Any] | None = None
    tuning: SearchRecord | None = None
    popular_half_life_days: float | None = None
    data: DataDescription
    repeats: RepeatParams
    matrix: LeftOut
    users: int
    items: int
    pairs: int
    versions: dict[str, str]
    python: str
    files: dict[str, int]
    digests: dict[str, str] | UnsetType = UNSET
    digest: str | UnsetType = UNSET

    @property
    def evaluation(self) -> EvaluationRecord | None:
        """The evaluation; DataError if it cannot be read."""
        return read_evaluation(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        description: dict[str, Any] = json_values(self)
        return description


def timestamp(time: datetime) -> str:
    """Return a time in UTC, in ISO 8601 and whole seconds."""
    return time.astimezone(UTC).isoformat(timespec="seconds")
