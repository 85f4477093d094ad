"""The inputs of a plan, declared with unit, bounds, default and reason.

Inputs with a panel have a flag, others are set by `--set`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hotplate.base.report import Report
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import AT_LEAST, BY_REDIS_PY, BY_SDK, POPULAR_LISTS
from hotplate.bench.options import MAX_POPULAR, is_emulated, parse_number
from hotplate.stores.cosmos.charges import SYSTEM_BYTES
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP, MAX_RU
from hotplate.stores.encoding import USER
from hotplate.stores.errors import did_you_mean

if TYPE_CHECKING:
    from hotplate.stores.manifest import Manifest

CONSISTENCIES = ("eventual", "prefix", "session", "bounded", "strong")
CACHED = ("session", "eventual")  # https://learn.microsoft.com/azure/cosmos-db/integrated-cache
CAPACITIES = ("manual", "autoscale", "serverless")
POD_STORES = ("cosmos", "redis", "files")
LOAD = "The load"
LISTS = "The lists"
COSMOS = "Cosmos DB and pods"
MONEY = "Training and fees"
LOAD_ADVICE = "give at least --users 1000000 --peak-rps 500; or only --have-ru, for what these RU/s carry"
HOURS = 24
# Invented, for a first estimate.
DAY_SHAPES: Mapping[str, tuple[float, ...]] = {
    "flat": (1.0,) * HOURS,
    "evening": (
        0.35, 0.2, 0.12, 0.08, 0.07, 0.08, 0.12, 0.2, 0.3, 0.35, 0.4, 0.42,
        0.45, 0.45, 0.45, 0.48, 0.52, 0.6, 0.72, 0.88, 1.0, 1.0, 0.85, 0.6,
    ),
}  # fmt: skip
MOST = 1e12  # sums beyond it lose whole units
# The clients of `bench stores` besides ours.
OTHER_CLIENTS = (BY_SDK, BY_REDIS_PY)
# The inputs that figures of each kind of report measure, for each store.
HIGHEST_RATE = "highest rate"
CPU = "CPU a request"
MEASURED_INPUTS = {("http", HIGHEST_RATE): "{store}_pod_rps", ("stores", CPU): "{store}_cpu_us"}
# The load of a plan with --have-ru only.
PLACEHOLDER_LOAD: Mapping[str, float] = {"users": 1, "peak_rps": 1e-6}


class PlanMisused(BenchMisused):
    """An input is missing, unknown or out of range."""


def _input(
    unit: str,
    description: str,
    default: Any = MISSING,  # noqa: ANN401 -- any field type
    reason: str = "",
    **options: Any,  # noqa: ANN401 -- low, high, step, choices, panel
) -> Any:  # noqa: ANN401 -- as dataclasses.field
    """Return a dataclass field that declares an input: unit, description, default, and why the default is that.

    *options* are `low`, `high` and `step` of a number, `choices` of a text, and `panel`, the group of its flag in the
    help of `hotplate plan`. An input without a panel has no flag: it is set by `--set`.
    """
    most = 1 if unit == "share" else MOST
    metadata = {"low": 0, "high": most, "step": None, "choices": (), "panel": ""} | options
    metadata |= {"unit": unit, "description": description, "reason": reason}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


_load, _lists, _cosmos, _money = (partial(_input, panel=panel) for panel in (LOAD, LISTS, COSMOS, MONEY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Checked inputs; None means derived from others."""

    users: int = _load("users", "with a list", low=1)
    peak_rps: float = _load("requests/s", "in the busiest hour, of all regions together", low=1e-6)
    items: int = _load("items", "with a list of similar ones", 0, "no similar items")
    profile: str | tuple[float, ...] = _load("", "shape of a day: flat, evening, or 24 rates", "flat", "busy all day")
    growth_percent: float = _load("%/month", "growth of users, items and requests", 0.0, "no growth", low=-50, high=100)
    months: int = _load("months", "of growth that the plan must last for", 0, "today's load", high=120)
    unknown_share: float = _input("share", "of requests for unknown users", 0.0, "they cost a read, too")
    zipf: float = _load("", "exponent of the Zipf law of users, as 0.9; 0: all alike", 0.0, "all alike", high=3)
    hit_rate: float = _load("share", "of lookups that never reach the store", 0.0, "no cache is counted on")
    hot_share: float | None = _input("share", "of requests for the one hottest user", None)
    regions: int = _load("regions", "that each hold all data", 1, low=1, high=60)
    region_share: float = _input("share", "of requests that each region can answer", 1.0, "others may fail", low=0.01)
    consistency: str = _cosmos("", "consistency of reads", "eventual", "a release never changes", choices=CONSISTENCIES)
    list_length: int = _lists("items", "in a stored list", 20, "hotplate's default", low=1, high=1000)
    list_bytes: float | None = _lists("bytes", "of a list as stored, in its encoding, measured", None, low=1)
    item_id_chars: float = _input("characters", "of an item's id", 8.0, "a guess", low=1, high=256)
    user_id_chars: float = _input("characters", "of a user's id", 10.0, "a guess", low=1, high=256)
    title_chars: float = _lists("characters", "of an item's title; 0: none", 0.0, "none are stored")
    encoding: str = _lists("", "encoding of lists", "zstd", "hotplate's default", choices=("json", "zstd"))
    zstd_share: float = _input("share", "that zstd leaves of JSON", 0.25, "161 of 656 bytes, 20 items", low=0.01)
    refresh_hours: float = _cosmos("hours", "from one publish to the next", 24.0, "daily", low=0.1)
    window_hours: float = _cosmos("hours", "that a publish may take", 1.0, "a guess", low=0.01)
    publish_ru: int | None = _cosmos(
        "RU/s", "reserved for publishing; none: what the window needs", None, low=1, high=MAX_RU
    )
    kept: int = _input("releases", "kept besides the live one, to roll back to", 1, "hotplate's default")
    system_bytes: int = _input("bytes", "that the service adds to an item", SYSTEM_BYTES, "seen; assumed to be charged")
    ru_utilisation: float = _input("share", "of RU/s used in an hour's mean", 0.7, "room for peaks within it", low=0.05)
    capacity: str = _cosmos("", "payment of RU/s in the total", "manual", "its cost is known", choices=CAPACITIES)
    have_ru: int | None = _cosmos(
        "RU/s", "provisioned by hand today, in each region", None, low=MANUAL_MIN, high=MAX_RU, step=MANUAL_STEP
    )
    request_ms: float | None = _input("ms", "of a request in a pod, for Azure ML's replicas formula", None, low=1e-3)
    pod_concurrency: int = _input("requests", "that a pod holds at once, for that formula", 1, "Azure ML's", low=1)
    pod_utilisation: float = _input("share", "of a pod that may be used", 0.6, "room to lose one", low=0.05)
    # Multiples of the figures in tools/figures/stores.json, rounded up to 5 µs; a test compares them. Redis and files
    # need room for TLS and slower cores. The figure of Cosmos DB is an upper bound already.
    cosmos_cpu_us: float = _input(
        "µs", "of CPU of a request from Cosmos DB", 125.0, "1.25 times 96.9 measured, on an emulator", low=0.1
    )
    redis_cpu_us: float = _input("µs", "of CPU of a request from Redis", 30.0, "1.5 times 19.1 measured", low=0.1)
    files_cpu_us: float = _input("µs", "of CPU of a request from files", 25.0, "1.5 times 16.6 measured", low=0.1)
    pod_cpus: float = _input("vCPU", "of a pod", 1.0, "one worker", low=0.05)
    cpu_memory_gb: float = _input("GB", "of memory of a vCPU", 4.0, "as of Standard_D4s_v5", low=0.1)
    cosmos_pod_rps: float | None = _input("requests/s", "of a pod with Cosmos DB, measured", None, low=1e-3)
    redis_pod_rps: float | None = _input("requests/s", "of a pod with Redis, measured", None, low=1e-3)
    files_pod_rps: float | None = _input("requests/s", "of a pod with files, measured", None, low=1e-3)
    min_pods: int = _input("pods", "at least, in each region", 2, "one may fail", low=1)
    zones: int = _cosmos("zones", "of a region's pods, of which any may be lost", 1, "none is lost", low=1, high=10)
    redis_nodes: int = _input("nodes", "of an instance", 2, "one is the replica", low=1)
    redis_reserved: float = _input(
        "share", "of memory not for data", 0.2, "https://learn.microsoft.com/azure/redis/architecture", high=0.9
    )
    redis_utilisation: float = _input("share", "of its GETs/s that is used", 0.6, "room for a publish", low=0.05)
    train_nodes: int = _money("nodes", "that train, one VM or a cluster's", 1, "one VM", low=0)
    train_hours: float = _money("hours", "of a training, before each publish", 1.0, "a guess; measure yours")
    train_cpus: float = _input("vCPU", "of a node that trains", 8.0, "a guess", low=0.05)
    train_node_hour: float | None = _money("", "price of a node and hour, with DBUs; none: by train_cpus", None)
    ru_factor: float = _money("", "price of RU/s with zone redundancy by that without", 1.0, "none", low=1, high=10)
    gateway_hit_rate: float = _cosmos(
        "share", "of store reads that a dedicated gateway's integrated cache answers, for 0 RU", 0.0, "no gateway",
        high=0.99,
    )  # fmt: skip
    gateway_month: float = _money("", "cost of a dedicated gateway in a month", 0.0, "none")
    cluster_month: float = _money("", "cost of Kubernetes itself in a month", 0.0, "the free tier of AKS")


@dataclass(frozen=True, slots=True)
class InputSource:
    """Unchecked inputs of a plan by name, and where they come from.

    *label* is a format for an input's name in messages, with the fields {name} and {flag}, as "--{flag}".
    """

    source: str
    values: Mapping[str, object]
    label: str = "{name}"

    def label_of(self, name: str) -> str:
        """Return an input's name for messages."""
        return self.label.format(name=name, flag=name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class SourcedInputs:
    """Inputs, and the sources of non-default values."""

    inputs: Inputs
    sources: Mapping[str, str]
    carries_only: bool = False
    """Only `have_ru` was given, without users and rate."""

    @property
    def assumed(self) -> frozenset[str]:
        """The names of inputs with a value by default, rather than from a source."""
        valued = {name for name in INPUT_FIELDS if getattr(self.inputs, name) is not None}
        return frozenset(valued - self.sources.keys())

    def source(self, name: str) -> str:
        """Describe an input's source; defaults are assumptions."""
        if name in self.sources:
            return self.sources[name]
        reason = INPUT_FIELDS[name].metadata["reason"]
        return f"assumed: {reason}" if reason else "assumed"


INPUT_FIELDS: Mapping[str, Field[Any]] = {known.name: known for known in fields(Inputs)}


def label_of(known: Field[Any]) -> str:
    """Return what an input is, as "Users with a list"."""
    label = f"{known.metadata['unit']} {known.metadata['description']}".strip()
    return label[:1].upper() + label[1:]


def flag_help(known: Field[Any]) -> str:
    """Return a flag's help text."""
    sentence = f"{label_of(known)}."
    if known.default in (MISSING, None):
        return sentence
    default = f"{known.default:g}" if isinstance(known.default, float) else known.default
    return f"{sentence} [default: {default}]"


def flag_metavar(known: Field[Any]) -> str:
    """Return what a flag's help calls its value: the choices, or a number."""
    if known.metadata["choices"]:
        return "|".join(known.metadata["choices"])
    if known.name == "profile":
        return "SHAPE"
    return "N" if known.type in (int, int | None) else "NUMBER"


def merge(layers: Sequence[InputSource]) -> SourcedInputs:
    """Check the inputs of all *layers*, of which later ones replace values of earlier ones, and return all inputs.

    Without a peak rate, that of the busiest hour of the profile is taken. If users and rate are missing, but `have_ru`,
    the RU/s of today, is known, the plan only says what load these carry (`carries_only`), with placeholders for both.
    Raises PlanMisused, with the flag or key, for an unknown, invalid or missing input.
    """
    values = dict[str, Any]()
    sources = dict[str, str]()
    for layer in layers:
        values |= _checked_values(layer)
        sources |= dict.fromkeys(layer.values, layer.source)
    _drop_outdated_list_bytes(layers, values, sources)

    profile = values.get("profile")
    if "peak_rps" not in values and isinstance(profile, tuple):  # 24 rates, rather than a shape's name
        values["peak_rps"] = _checked_value(INPUT_FIELDS["peak_rps"], max(profile), "the busiest hour of profile")
        sources["peak_rps"] = f"the busiest hour of the profile, {sources['profile']}"

    missing = [name for name in ("users", "peak_rps") if name not in values]
    carries_only = len(missing) == 2 and "have_ru" in values
    if carries_only:
        values = {**PLACEHOLDER_LOAD, "hot_share": 0.0, **values}
    elif missing:
        raise PlanMisused(f"--{missing[0].replace('_', '-')} is missing: {LOAD_ADVICE}")

    inputs = Inputs(**values)
    _require_agreement(inputs)
    return SourcedInputs(inputs, sources, carries_only)


def _checked_values(layer: InputSource) -> dict[str, Any]:
    """Return the inputs of a layer as the types of `Inputs`; PlanMisused for unknown and invalid ones."""
    values = dict[str, Any]()
    for name, value in layer.values.items():
        label = layer.label_of(name)
        if name not in INPUT_FIELDS:
            advice = did_you_mean(name, INPUT_FIELDS) or f"remove it, or use one of {', '.join(INPUT_FIELDS)}"
            raise PlanMisused(f"{label} is not an input of a plan; {advice}")
        values[name] = _checked_value(INPUT_FIELDS[name], value, label)
    return values


def _require_agreement(inputs: Inputs) -> None:
    """Raise PlanMisused for inputs that exclude each other."""
    if inputs.gateway_hit_rate and inputs.consistency not in CACHED:
        raise PlanMisused(
            f"consistency is {inputs.consistency}, and the integrated cache (gateway_hit_rate) answers "
            f"{' and '.join(CACHED)} reads only"
        )
    growth = (1 + inputs.growth_percent / 100) ** inputs.months
    if max(inputs.users + inputs.items, inputs.peak_rps) * growth > 2 * MOST:
        raise PlanMisused(
            f"{inputs.months} months of {inputs.growth_percent:g} % make {growth:,.3g} times the load, more than "
            f"{2 * MOST:,.10g} users, items or requests/s"
        )
    answered = inputs.regions * inputs.region_share
    if round(answered, 3) < 1:
        raise PlanMisused(
            f"region_share is {inputs.region_share:g}, so that {inputs.regions} regions answer {answered:.0%} of the "
            f"requests; it must be at least {1 / inputs.regions:.4g}"
        )


def hourly_shares(profile: str | Sequence[float], label: str = "profile") -> tuple[float, ...]:
    """Return 24 rates, or a named shape, as shares of the busiest hour."""
    if isinstance(profile, str):
        if profile in DAY_SHAPES:
            return DAY_SHAPES[profile]
        raise PlanMisused(f"{label} {profile!r} is none of {', '.join(DAY_SHAPES)}; it may also be 24 numbers")
    if len(profile) != HOURS or not all(map(isfinite, profile)) or min(profile) < 0 or max(profile) <= 0:
        raise PlanMisused(f"{label} takes 24 numbers from 0, not all 0")
    return tuple(rate / max(profile) for rate in profile)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises PlanMisused if that fails."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PlanMisused(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanMisused(f"{path} is not TOML: {error}") from error


def from_report(report: Report, path: Path) -> InputSource:
    """Return the inputs of a plan that a report of `hotplate bench` measured, with the report as their source.

    A report of `bench http --find-max` has the requests/s of a pod with its store: the rate of another one is part of
    the requested rate. One of `bench stores` has the CPU of a request from each. One of `bench ru` has no input, but
    plans plot it. *path* is the report's file. Raises PlanMisused for a report that is unsound, or has nothing to use.
    """
    if complaint := _unsound(report):
        raise PlanMisused(f"--from-report: {path} is not sound, measure again: {complaint}")
    values = _measured_values(report)
    is_plotted = report.kind == "ru" and not report.is_empty
    if not values and not is_plotted:
        emulated = f"; {', '.join(report.emulated)} was emulated" if report.emulated else ""
        raise PlanMisused(f"--from-report: {path}, of kind {report.kind}, has nothing that a plan can use{emulated}")

    is_lower_bound = any(row.note == AT_LEAST for row in report.rows)
    file = f"measured: {f'{AT_LEAST} ' if is_lower_bound else ''}{path.name}"
    machine = [str(report.machine.get(name, ""))[:40] for name in ("cpu", "date")]
    source = ", ".join(filter(None, (file, *machine)))
    return InputSource(source, values, f"{{name!r}} in {path}")


def _unsound(report: Report) -> str:
    """Return why a report cannot be used; empty if it is sound.

    It has too many popular lists, which are cheap, or a complaint; or it is of a service, and the store behind it is
    unknown, or an emulator.
    """
    popular = [row for row in report.rows if row.figure == POPULAR_LISTS and (row.value or 0) > MAX_POPULAR]
    if popular:
        worst = max(popular, key=lambda row: (row.value or 0, row.subject))
        return f"{worst.value:.1%} of the lists of {worst.subject or 'the service'} were popular ones"
    if report.complaints:
        return report.complaints[0]
    if report.kind != "http":
        return ""

    # Requests/s of a service are those of the store behind it.
    url = str(report.configuration.get("store", ""))
    if is_emulated(url) or not _store_of(url):
        return f"the service read {url or 'an unknown store'}, and not Cosmos DB, Redis or files; give --store URL"
    return ""


def _store_of(name: str) -> str:
    """Return which of POD_STORES a URL, or a subject of `bench stores`, names; empty if none."""
    return next((store for store in POD_STORES if name.lower().startswith(store.removesuffix("s"))), "")


def _measured_values(report: Report) -> dict[str, float]:
    """Return the inputs that figures of a report measure, as `redis_cpu_us`; of several stores of a kind, the most.

    Emulated stores, and those that were read by another client, are left out.
    """
    values = dict[str, float]()
    for row in report.rows:
        store = _store_of(str(report.configuration["store"]) if report.kind == "http" else row.subject)
        name = MEASURED_INPUTS.get((report.kind, row.figure), "").format(store=store)
        is_of_another = row.subject in report.emulated or any(client in row.subject for client in OTHER_CLIENTS)
        if name and store and row.value and not is_of_another:
            values[name] = max(values.get(name, 0.0), round(row.value, 2))
    return values


def from_release(manifest: "Manifest", store: str) -> InputSource:
    """Return the inputs of a plan that a release's manifest knows: users, items, mean sizes in bytes, and the encoding.

    Means are over all rows, with popular lists and `meta`. Users and items count once for each named list that has
    them. *store* is the store's URL, for the source.
    """
    rows = sum(manifest.counts.values())
    row_bytes = manifest.bytes / max(1, rows)
    # The manifest has a sample of keys, as "user:7", whose ids are as long as those of all rows.
    id_bytes = fmean([len(key.partition(":")[2].encode()) for key in manifest.sample] or [0])

    values: dict[str, object] = {
        "users": manifest.count("user"),
        "items": manifest.count("item"),
        "list_bytes": max(1.0, round(row_bytes - len(USER) - id_bytes, 1)),
        "user_id_chars": max(1.0, id_bytes),
        "encoding": manifest.encoding,
    }

    names = ""
    if manifest.named:
        names = f" of the lists {', '.join([manifest.default_list or 'default', *manifest.named])}"
    source = f"measured: manifest of {manifest.release} in {store}, {rows:,} rows{names} of {manifest.bytes:,} bytes"
    return InputSource(source, values, f"{{name}} of {manifest.release}")


def _drop_outdated_list_bytes(layers: Sequence[InputSource], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Remove `list_bytes`, the measured size of a list, from *values* and *sources* if a later layer changes the lists.

    Inputs of later *layers* replace those of earlier ones. If one has, say, another `list_length`, the size is
    calculated from it.
    """
    last_layer = {name: number for number, layer in enumerate(layers) for name in layer.values}
    for name in ("list_length", "encoding", "title_chars", "item_id_chars"):
        if "list_bytes" in values and last_layer.get(name, -1) > last_layer["list_bytes"]:
            del values["list_bytes"], sources["list_bytes"]


def _checked_value(declared: Field[Any], value: object, label: str) -> Any:  # noqa: ANN401 -- any field type
    """Return an input's *value*, often a text, as a number, a choice, or a profile (a shape's name, or 24 rates).

    *declared* is the input's field of Inputs, whose metadata has the bounds of a number, or the choices. Raises
    PlanMisused, beginning with *label*, the input's name in messages, for an invalid value.
    """
    if declared.name == "profile":
        return _parse_profile(value, label)
    choices = declared.metadata["choices"]
    if choices:
        if value not in choices:
            raise PlanMisused(f"{label} is {value!r}, and must be {' or '.join(choices)}")
        return value

    is_whole = declared.type in (int, int | None)
    expected = "a whole number" if is_whole else "a number"
    try:
        number = _parse_number(value)
    except (TypeError, ValueError) as error:
        examples = ", as 1500, 1.5k or 2M" if str(value)[:1].isdigit() else ""
        raise PlanMisused(f"{label} is {value!r}, and must be {expected}{examples}") from error
    if not _is_within_bounds(declared, number):
        raise PlanMisused(f"{label} is {number:,.10g}, and must be {_format_bounds(declared)}")
    if is_whole and number != int(number):
        raise PlanMisused(f"{label} is {number:g}, and must be {expected}")
    return int(number) if is_whole else number


def _is_within_bounds(declared: Field[Any], number: float) -> bool:
    bounds = declared.metadata
    return bounds["low"] <= number <= bounds["high"] and (bounds["step"] is None or number % bounds["step"] == 0)


def _format_bounds(declared: Field[Any]) -> str:
    bounds = declared.metadata
    limits = f"at least {bounds['low']:,.10g} and at most {bounds['high']:,.10g}"
    return limits if bounds["step"] is None else f"{limits}, in steps of {bounds['step']}"


def _parse_number(value: object) -> float:
    """Convert a number, or a text such as `1_000` or `2M`. Raises TypeError and ValueError."""
    if isinstance(value, str):
        return parse_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _parse_profile(value: object, label: str) -> str | tuple[float, ...]:
    """Convert 24 numbers, as a list or separated by commas, to a tuple; a shape's name stays. Raises PlanMisused."""
    listed = value.split(",") if isinstance(value, str) and "," in value else value
    try:
        shape = listed if isinstance(listed, str) else tuple(map(float, listed))  # type: ignore[call-overload]  # TOML
    except (TypeError, ValueError) as error:
        raise PlanMisused(f"{label} is {value!r}; it takes a shape's name, or 24 numbers") from error
    hourly_shares(shape, label)
    return shape
