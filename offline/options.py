"""Options of the offline room that are also flags of the command; loads neither numpy nor polars."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from hotplate.offline.errors import SettingError, require_at_least
from hotplate.stores.catalogue import Arm, DraftRef
from hotplate.stores.encoding import Encoding
from hotplate.stores.options import RARE, Flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hotplate.offline.gates.table import Gate

# Panels of `--help`.
COLUMNS = "Columns of the data"
GATES = "Conditions for going live"
RULES = "Business rules"

# No list or history has more; manifests can hold it.
MOST_COUNTED = 1_000_000_000

Keep = Annotated[int, Flag("The number of earlier releases to keep, besides the live one.", at_least=0)]
EndCanary = Annotated[bool, Flag("Go live even while a canary runs, and end it.", env=False)]
ChosenArm = Annotated[Arm, Flag("The arm of a running experiment.", env=False)]
Reason = Annotated[str, Flag("Why, for `hotplate releases log`.", metavar="WHY")]


def check_settings(settings: Any) -> None:  # noqa: ANN401 -- any dataclass
    """Check the values of a dataclass against its annotations: the choices of a Literal, and the bounds of a Flag.

    For `keep: Annotated[int, Flag("…", at_least=0)]`, the value must be at least 0. None is not checked. Raises
    SettingError with the name and the value of the first wrong field.
    """
    for declared in fields(settings):
        value = getattr(settings, declared.name)
        if value is None:
            continue

        annotation = declared.type
        declaration = None
        if get_origin(annotation) is Annotated:
            annotation, declaration = get_args(annotation)[:2]

        choices = _choices_of(annotation)
        if choices and value not in choices:
            raise SettingError(f"{declared.name} is {value!r}; it must be {' or '.join(choices)}.")
        if isinstance(declaration, Flag):
            _check_bounds(declared.name, value, declaration)


def _choices_of(annotation: Any) -> tuple[str, ...]:  # noqa: ANN401 -- any annotation
    """Return the values of a Literal, or of the Literal of an optional type."""
    for option in (annotation, *get_args(annotation)):
        if get_origin(option) is Literal:
            return get_args(option)
    return ()


def _check_bounds(name: str, value: Any, flag: Flag) -> None:  # noqa: ANN401 -- a number if the flag has bounds
    if flag.at_most is not None and not value <= flag.at_most:
        raise SettingError(f"{name} is {value}; it must be at most {flag.at_most:g}.")
    if flag.at_least is not None:
        require_at_least(name, value, flag.at_least)


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names by role, None to look for a usual name; the time `none` skips times."""

    user: Annotated[str | None, Flag("The column of the user.", COLUMNS, "user-column", metavar="COLUMN")] = None
    item: Annotated[str | None, Flag("The column of the item.", COLUMNS, "item-column", metavar="COLUMN")] = None
    weight: Annotated[str | None, Flag("The column of the weight.", COLUMNS, "weight-column", metavar="COLUMN")] = None
    time: Annotated[
        str | None, Flag("The column of the time; `none` reads no times.", COLUMNS, "time-column", metavar="COLUMN")
    ] = None
    title: Annotated[str | None, Flag("The column of the title.", COLUMNS, "title-column", metavar="COLUMN")] = None
    segment: Annotated[
        str | None, Flag("Each value in this column gets a popular list.", COLUMNS, "segment-column", metavar="COLUMN")
    ] = None
    event: Annotated[
        str | None, Flag("The column of the event, for --event-weights.", COLUMNS, "event-column", metavar="COLUMN")
    ] = None
    count: Annotated[
        str | None,
        Flag(
            "Weigh a user and item by the number of values in this column.", COLUMNS, "count-column", metavar="COLUMN"
        ),
    ] = None
    quantity: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How to read text files.

    delimiter     None takes that of a line `sep=;`, or the most frequent of comma, semicolon and tab in the first
                  line, or else a bar
    time_format   such as %d/%m/%Y %H:%M; None for ISO 8601 or time since the epoch
    max_bad_rows  allowed share of malformed rows, and of rows with an invalid required number or time
    """

    delimiter: Annotated[str | None, Flag("The delimiter of CSV; by default it is detected.", metavar="CHAR")] = None
    header: Annotated[
        bool, Flag("Whether the first row of CSV names the columns; without names, they are 1, 2, ….")
    ] = True
    time_format: Annotated[
        str | None,
        Flag("The format of times, as %d/%m/%Y %H:%M; by default ISO 8601, or time since the epoch.", metavar="FORMAT"),
    ] = None
    max_bad_rows: Annotated[
        float, Flag("The share of bad rows that may be left out.", metavar="SHARE", at_least=0, at_most=1)
    ] = 0.001

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How interactions are read for a training, and which are left out."""

    columns: Columns = field(default_factory=Columns)
    titles: Annotated[Path | None, Flag("A file of item and title, if the data have no titles.", urls=True)] = None
    weighting: Annotated[
        Literal["sum", "binary", "log"],
        Flag("The weight of a user and item: the sum over their rows, 1, or 1 + ln of the sum."),
    ] = "sum"
    where: Annotated[
        Sequence[str],
        Flag(
            "Read only rows that match, as quantity>0, price=5 (also 5.00, not 05), paid=true or code~^\\d{5}; "
            "repeatable.",
            metavar="FILTER",
        ),
    ] = ()
    form: Format = field(default_factory=Format)
    min_per_user: Annotated[int, Flag("Leave out users with fewer items than this.", at_least=1)] = 1
    min_per_item: Annotated[int, Flag("Leave out items with fewer users than this.", at_least=1)] = 1


@dataclass(frozen=True, slots=True)
class ListFormat(Format):
    """How to read text files of lists, which have no times: the flags of `Format` without that of the time."""

    time_format: str | None = None


@dataclass(frozen=True, slots=True)
class RuleFiles:
    """Business rules, as `rule_files.read_rules` reads them from files."""

    available: Annotated[
        Path | None, Flag("Recommend only the items in this file.", RULES, metavar="FILE", urls=True)
    ] = None
    exclude: Annotated[
        Path | None, Flag("Never recommend the items in this file.", RULES, metavar="FILE", urls=True)
    ] = None
    categories: Annotated[
        Path | None,
        Flag(
            "A file of item and category; several are men|shoes, an array, or rows.", RULES, metavar="FILE", urls=True
        ),
    ] = None
    max_per_category: Annotated[
        int | None,
        Flag("The maximum number of items of a category in a list.", RULES, at_least=1, at_most=MOST_COUNTED),
    ] = None
    min_history: Annotated[
        int, Flag("Users with fewer items get the popular list.", RULES, at_least=1, at_most=MOST_COUNTED)
    ] = 1
    boost: Annotated[
        Path | None, Flag("A file of item and factor of its scores.", RULES, metavar="FILE", urls=True)
    ] = None
    pin: Annotated[
        Path | None, Flag("The items in this file come first in every list.", RULES, metavar="FILE", urls=True)
    ] = None
    diversity: Annotated[
        float, Flag("Weight of variety against relevance, as 0.3; 0 is off.", RULES, at_least=0, at_most=0.9)
    ] = 0.0
    rotate: Annotated[
        Path | None,
        Flag(
            "Lower the items in a user's list that these events show without a click.",
            RULES,
            metavar="FOLDER",
            urls=True,
        ),
    ] = None
    explore: Annotated[
        str | None, Flag("Give N of ten places to new items, as new=1,days=7.", RULES, metavar="new=N")
    ] = None

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """How lists are published.

    encoding        None for the default of the store
    keep            number of previously live releases to keep
    resume          a draft to continue with the same lists and settings, as its writer if a DraftRef
    gates           gates, or bounds by name, as {"ndcg": 0.15}; {"basket:ndcg": 0.1} is of the list `basket`
    force           go live despite failed gates
    end_canary      end a running canary
    arm             the arm of a running experiment that gets the release
    probation_wait  time for services to withdraw the release (`serve --probation`)
    reason          why the release goes live, for the log of releases
    """

    encoding: Annotated[
        Encoding | None, Flag("The encoding of lists; by default json in files, zstd elsewhere.", RARE)
    ] = None
    activate: Annotated[bool, Flag("Make the release live once it is written.")] = True
    keep: Keep = 1
    resume: Annotated[
        str | DraftRef | None,
        Flag(
            "Continue this draft of an interrupted command, with the same input and options.",
            env=False,
            metavar="RELEASE",
        ),
    ] = None
    gates: "Sequence[Gate] | Mapping[str, float]" = ()
    force: Annotated[bool, Flag("Go live even if a gate fails; the release records that.", GATES, env=False)] = False
    end_canary: EndCanary = False
    arm: ChosenArm = "A"
    probation_wait: Annotated[
        str,
        Flag("Wait this long for services with `serve --probation` to withdraw the release.", env=False, is_time=True),
    ] = "0s"
    reason: Reason = ""

    def __post_init__(self) -> None:
        check_settings(self)
