"""Types of the bodies and answers of the service, which validate requests and generate the OpenAPI document."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from hotplate.base.recommendations import Item
from hotplate.serve.lists.options import BEGIN, CURSOR_PATTERN, RECENCY, Count, Id, Selection, Status
from hotplate.stores.encoding import MAX_ID_BYTES, MAX_LIST_NAME

# Users of a batch, and rows of one to score.
MAX_USERS = 2000
# Limits of a basket.
MAX_BASKET = 200
MAX_WEIGHT = 1_000_000
# Types of events that are counted by position; all others are custom ones.
EVENT_TYPES = (IMPRESSION, CLICK, CUSTOM) = "impression", "click", "custom"
# Events of a request, and items of each, as of a list.
MAX_EVENTS = 1000
MAX_ITEMS = 1000


AfterOfUser = Annotated[
    str,
    Meta(
        extra_json_schema={"pattern": CURSOR_PATTERN},
        description=f"`{BEGIN}` for the user's first page, or the `next` of their page before.",
    ),
]


class NoQuery(Struct, frozen=True):
    """The query of a route without parameters."""


class UserPage(Struct, frozen=True, forbid_unknown_fields=True):
    """A user whose list is paged through."""

    id: Id
    after: AfterOfUser


class BatchBody(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/recommendations`."""

    users: Annotated[
        tuple[Id | UserPage, ...],
        Meta(max_length=MAX_USERS, description="User ids, in the order of the answers; with `after`, for a page."),
    ]

    @property
    def selection(self) -> Selection:
        """The options alone, which are the same for all users."""
        return Selection(*(getattr(self, name) for name in Selection.__struct_fields__))

    @property
    def ids(self) -> tuple[str, ...]:
        """The user ids, in order."""
        return tuple(user if isinstance(user, str) else user.id for user in self.users)


class BasketItem(Struct, frozen=True, forbid_unknown_fields=True):
    """An item of a basket, perhaps with its weight."""

    id: Id
    weight: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_WEIGHT)] | None,
        Meta(description="As of an interaction in training; by default the usual one."),
    ] = None


class FoldInBody(Selection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/recommendations/fold-in`."""

    items: Annotated[
        tuple[Id | BasketItem, ...],
        Meta(
            max_length=MAX_BASKET,
            description="The visitor's items, the newest last; weights of a repeated item are added up.",
        ),
    ]
    recency: Annotated[
        float,
        Meta(gt=0, le=1, description="Factor of an item's weight for each newer item; 1 ignores the order."),
    ] = RECENCY


ReleaseName = Annotated[str, Meta(description="The release id of the list.")]
CanaryFlag = Annotated[bool, Meta(description="True if the release is the canary; otherwise absent.")]
TierName = Annotated[str, Meta(description="The store that the list was read from.")]
Source = Annotated[
    Literal["personal", "similar", "popular"], Meta(description="The kind of list; `popular` is the fallback.")
]
UsedSegment = Annotated[str | UnsetType, Meta(description="The segment of a popular list; empty for the overall list.")]
UsedList = Annotated[
    str | UnsetType, Meta(description="The name of the list; absent for a default list without a name.")
]
NextPage = Annotated[str | UnsetType, Meta(description="`after` of the next page; absent on the last one.")]
Restarted = Annotated[
    bool | UnsetType,
    Meta(description="True if the release of the page before is gone: this is a first page. Otherwise absent."),
]
UserStatus = Annotated[
    Status,
    Meta(
        description="`ok`: a personal list; `unknown`: the user has none; `error`: it could not be read. The last two "
        "come with the popular list."
    ),
]


class ListAnswer(Struct, frozen=True):
    """Any list."""

    release: ReleaseName
    source: Source
    tier: TierName
    items: list[Item]
    segment: UsedSegment = UNSET
    list: UsedList = UNSET


class PopularAnswer(ListAnswer, frozen=True, kw_only=True):
    """A popular list, or a page of it."""

    next: NextPage = UNSET
    restarted: Restarted = UNSET


class SimilarAnswer(PopularAnswer, frozen=True, kw_only=True):
    """Items similar to one item."""

    item: Id


class PersonalAnswer(PopularAnswer, frozen=True, kw_only=True):
    """A user's list."""

    user: Id
    canary: CanaryFlag | UnsetType = UNSET


class UserResult(PopularAnswer, frozen=True, kw_only=True):
    """One user's list, or a page of it, in the answer for many."""

    user: Id
    canary: CanaryFlag | UnsetType = UNSET
    status: UserStatus


class FoldInAnswer(ListAnswer, frozen=True, kw_only=True):
    """A list for a basket."""

    known: Annotated[int, Meta(description="How many different items the release knows.")]
    unknown: Annotated[int, Meta(description="How many it does not know, and ignores.")]
    source: Annotated[  # type: ignore[assignment]  # other values than of a stored list
        Literal["fold-in", "popular"], Meta(description="`popular` if no item is known, or nothing is left to show.")
    ]


class BatchAnswer(Struct, frozen=True):
    """The lists of many users, in order, of the live release or the canary; pages stay in their release."""

    release: ReleaseName
    results: list[UserResult]


EventType = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,31}$(?!\n)",
        description="`impression`: the items were shown; `click`: they were chosen; or a custom name such as `buy`.",
    ),
]
# A float, because 2.0 is an integer in JSON.
Position = Annotated[
    float, Meta(ge=1, le=100_000, multiple_of=1, description="The place of the first item in the list, from 1.")
]
Time = Annotated[float, Meta(ge=0, lt=1e11, description="Unix time in seconds; by default, and at most, now.")]
Value = Annotated[
    float,
    Meta(ge=-1e12, le=1e12, description="The value of the whole event, as the price paid; experiments sum it up."),
]
OptionalId = Annotated[str, Meta(max_length=MAX_ID_BYTES)]


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """An event of a user."""

    type: EventType
    user: Id
    items: Annotated[
        tuple[Id, ...], Meta(min_length=1, max_length=MAX_ITEMS, description="The items, in the order of the list.")
    ]
    id: Annotated[
        OptionalId,
        Meta(description="A name for this event alone; of several with the same only one counts, as after a repeat."),
    ] = ""
    release: Annotated[OptionalId, Meta(description="The release that the answer named.")] = ""
    request_id: Annotated[OptionalId, Meta(description="The `X-Request-Id` of the answer.")] = ""
    position: Position | None = None
    value: Value | None = None
    time: Time | None = None
    list: Annotated[str, Meta(max_length=MAX_LIST_NAME, description="The name of the list, as in the answer.")] = ""


class EventsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/events`."""

    events: Annotated[
        tuple[Event, ...], Meta(min_length=1, max_length=MAX_EVENTS, description="Events; all are written, or none.")
    ]


class EventsAnswer(Struct, frozen=True):
    """The number of durable events: all of the request."""

    durable: int


# Numbers of databases may be written as floats, as 42.0.
User = Id | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float


class ScoreRow(Struct, frozen=True):
    """A user and n; other columns are ignored."""

    user: User
    n: Count | None = None


class ScoreColumns(ScoreRow, array_like=True, frozen=True):
    """The same as an array."""


class ScoreBody(Struct, frozen=True):
    """The body of `POST /score`. Every value may be a string."""

    data: Annotated[
        list[
            Annotated[
                Raw,
                Meta(
                    description="A row: an object with `user` and `n`, a list of both, or the user alone. An invalid "
                    "row is reported in its element of the answer."
                ),
            ]
        ],
        Meta(max_length=MAX_USERS),
    ]


class Score(Struct, frozen=True):
    """The result of one row."""

    user: str | None
    status: Annotated[
        Literal["ok", "unknown", "error", "invalid"],
        Meta(
            description="`ok`: the user's own list; `unknown`: the user has none; `error`: it could not be read. Users "
            "of the last two get the popular list. `invalid`: the row cannot be used; `error` gives the reason."
        ),
    ]
    items: list[Item]
    source: str | UnsetType = UNSET
    segment: UsedSegment = UNSET
    release: str | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    canary: CanaryFlag | UnsetType = UNSET
    error: str | UnsetType = UNSET


class ScoreError(Struct, frozen=True):
    """Error members that callers of these routes read."""

    status_code: int
    message: str


class StatusAnswer(Struct, frozen=True):
    """A health status."""

    status: str


class ProblemAnswer(Struct, frozen=True):
    """A problem; scoring routes add `status_code` and `message`."""

    type: str
    title: str
    status: int
    detail: str
