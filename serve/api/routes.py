"""The routes of the service, declared once: a row for each method of a path.

From the rows follow the router (`app`), the checks of queries and keys, the metrics' labels and the OpenAPI document. A
row names a method of the handlers of its tag (`app.HANDLERS`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import Struct

from hotplate.serve.access.keys import EVENTS, READ
from hotplate.serve.api.schemas import (
    EVENT_TYPES,
    BatchAnswer,
    BatchBody,
    EventsAnswer,
    EventsBody,
    FoldInAnswer,
    FoldInBody,
    NoQuery,
    PersonalAnswer,
    PopularAnswer,
    Score,
    ScoreBody,
    SimilarAnswer,
    StatusAnswer,
)
from hotplate.serve.lists.options import PreviewSelection
from hotplate.serve.metric import Metric

Schema = dict[str, Any]

JSON = "application/json"
MSGPACK = "application/msgpack"
TEXT = "text/plain"
HTML = "text/html"

LISTS_TAG = "Lists"
EVENTS_TAG = "Events"
SCORING_TAG = "Scoring"
SERVICE_TAG = "Service"

# Paths of one list, by what it is of: a user or an item, as the key of a row begins, or neither.
USER_PATH = "/v1/recommendations/{user}"
ITEM_PATH = "/v1/similar/{item}"
POPULAR_PATH = "/v1/popular"

# Of late events it is unknown whether they are written.
EVENT_OUTCOMES = (DURABLE, QUEUE_FULL, DISK_FAILED, LATE) = "durable", "queue_full", "disk_failed", "late"
EVENT_COUNTS = Metric("hotplate_events", "Events reported.", {"type": EVENT_TYPES, "outcome": EVENT_OUTCOMES})


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """With the name of an id in braces, if the path has one."""

    handler: str
    """The name of a method of the handlers for this tag."""

    summary: str = ""
    """Empty if the OpenAPI document has no such operation."""

    answer: Any = None
    media: tuple[str, ...] = (JSON,)
    """Of the answer, and of the body."""

    tag: str = LISTS_TAG
    scope: str | None = READ
    """The scope that a caller's key must have; None for a public route."""

    query: type[Struct] | None = NoQuery
    """None if the query is ignored."""

    without: Collection[str] = ()
    """Fields of *query* that this route refuses."""

    body: type[Struct] | None = None
    example: object = None
    """Of the body."""

    answered: tuple[int, ...] = (200,)
    """The statuses that come with `answer`."""

    metric: str = ""
    """The label in metrics, logs and traces; by default the path."""

    counts: Metric | None = None
    """Counted by the handler, by outcomes other than the status of the answer."""

    @property
    def name(self) -> str:
        """The name in error texts."""
        return f"{self.method} {self.path}"

    @property
    def template(self) -> str:
        """The label in metrics, logs and traces."""
        return self.metric or self.path

    @property
    def is_scoring(self) -> bool:
        """Whether its callers expect the scoring contract."""
        return self.tag == SCORING_TAG

    @property
    def statuses(self) -> set[int]:
        """The statuses of its answers."""
        statuses = {*self.answered, 431}  # any request may have too large a header
        options = [kind for kind in (self.query, self.body) if kind is not None]
        if options:
            statuses.add(400)
        if any("list" in kind.__struct_fields__ for kind in options):
            statuses.add(404)
        if self.body is not None:
            statuses |= {413, 415}
        elif self.query is not None:
            statuses.add(304)
        if self.scope is not None:
            statuses |= {401, 403, 503}
            if not self.is_scoring:  # whose callers get 503
                statuses.add(429)
        return statuses


_public = partial(Operation, tag=SERVICE_TAG, scope=None)
_probe = partial(_public, query=None)
_BATCH_EXAMPLE = {"users": ["42", "43"], "n": 3}
_FOLD_IN_EXAMPLE = {"items": ["42", {"id": "43", "weight": 2}], "n": 3, "recency": 0.7}
_SCORE_EXAMPLE = {"data": [{"user": "42", "n": 10}, {"user": "43", "n": 10}]}
_EVENTS_EXAMPLE = {
    "events": [
        {"type": "impression", "user": "42", "items": ["7", "8", "9"], "release": "20261120T064200Z-7f3a"},
        {"type": "click", "user": "42", "items": ["8"], "position": 2, "release": "20261120T064200Z-7f3a"},
    ]
}
OPERATIONS = (
    Operation(
        "GET", USER_PATH, "recommend", "A user's list; for an unknown user the popular list",
        PersonalAnswer, query=PreviewSelection,
    ),
    Operation(
        "POST", "/v1/recommendations", "recommend_many", "The lists of many users",
        BatchAnswer, (JSON, MSGPACK), body=BatchBody, example=_BATCH_EXAMPLE,
    ),
    Operation(
        "POST", "/v1/recommendations/fold-in", "fold_in", "A list computed from a basket of items",
        FoldInAnswer, body=FoldInBody, example=_FOLD_IN_EXAMPLE,
    ),
    Operation(
        "GET", ITEM_PATH, "similar", "Similar items; for an unknown item the popular list",
        SimilarAnswer, query=PreviewSelection, without=("segment",),
    ),
    Operation("GET", POPULAR_PATH, "popular", "The popular list", PopularAnswer, query=PreviewSelection),
    Operation(
        "POST", "/v1/events", "report", "Report what was shown and chosen; answered once it is durable",
        EventsAnswer, tag=EVENTS_TAG, scope=EVENTS, body=EventsBody, example=_EVENTS_EXAMPLE,
        counts=EVENT_COUNTS,
    ),
    Operation(
        "POST", "/score", "score", "Score a batch, as an Azure Machine Learning endpoint does",
        list[Score], tag=SCORING_TAG, query=None, body=ScoreBody, example=_SCORE_EXAMPLE,
    ),
    _public("GET", "/swagger.json", "swagger", "The signature of scoring", Schema, tag=SCORING_TAG),
    _probe("GET", "/", "healthy", "Whether the service is up", str, (TEXT,), tag=SCORING_TAG),
    _probe("GET", "/livez", "live", "Whether the process lives", StatusAnswer),
    _probe("GET", "/readyz", "ready", "Whether the service can answer", StatusAnswer, answered=(200, 503)),
    _public("GET", "/openapi.json", "openapi", "This document", Schema),
    _public("GET", "/docs", "page", "This document as a page, to try it on", str, (HTML,)),
    _probe("GET", "/docs/{file}", "file", metric="/docs"),
    _probe("GET", "/health/live", "live", metric="/livez"),
    _probe("GET", "/health/ready", "ready", metric="/readyz"),
)  # fmt: skip
# Labels of metrics, in the order of the table.
TEMPLATES: tuple[str, ...] = tuple(dict.fromkeys(operation.template for operation in OPERATIONS))

if len({operation.path for operation in OPERATIONS}) != len(OPERATIONS):
    raise ImportError("a path has two rows; a router takes several methods of a path, but this table has one for each")
