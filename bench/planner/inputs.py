"""What a plan begins with: each input with its unit, its bounds, and why its default is what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from bench.planner.errors import PlanMisused
from bench.planner.profiles import shape
from stores.cosmos.items import SYSTEM_BYTES

CONSISTENCIES = ("eventual", "prefix", "session", "bounded", "strong")
CAPACITIES = ("manual", "autoscale", "serverless")
GIVE_LEAST = "give at least the users and the peak rate, as: hotplate plan --users 1000000 --peak-rps 500"


def _input(
    kind: str,
    unit: str,
    says: str,
    default: Any = MISSING,  # noqa: ANN401 -- of whatever type its field is
    *,
    because: str = "",
    low: float = 0,
    high: float = float("inf"),
    choices: Sequence[str] = (),
) -> Any:  # noqa: ANN401 -- as dataclasses.field itself
    told = {"kind": kind, "unit": unit, "says": says, "because": because, "low": low, "high": high, "choices": choices}
    return field(metadata=told) if default is MISSING else field(default=default, metadata=told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a plan rests on, checked; an input that is None is worked out from others."""

    users: int = _input("whole", "users", "who have a list", low=1)
    peak_rps: float = _input("number", "requests/s", "in the busiest hour, of all regions together", low=1e-6)
    items: int = _input("whole", "items", "that have a list of similar ones", 0, because="no similar items")
    profile: str | tuple[float, ...] = _input(
        "profile", "", "a day: a shape's name, or 24 rates", "flat", because="as busy all day, the dearest day"
    )
    growth_percent: float = _input(
        "number", "%/month", "growth of users, items and requests", 0.0, because="no growth", low=-50, high=100
    )
    months: int = _input(
        "whole", "months", "of growth that the plan must last for", 0, because="today's load", high=120
    )
    unknown_share: float = _input(
        "number", "share", "of requests for users without a list", 0.0, because="they cost a read, too", high=1
    )
    zipf: float | None = _input(
        "number", "", "exponent of how unevenly users come, as 0.9; 0: all alike", None, because="all alike", high=3
    )
    cache_entries: int = _input("whole", "lists", "that each process keeps", 0, because="no in-process cache")
    hit_rate: float | None = _input("number", "share", "of lookups that never reach the store", None, high=1)
    hot_share: float | None = _input("number", "share", "of requests for the one hottest user", None, high=1)
    regions: int = _input("whole", "regions", "that each hold all of it", 1, low=1, high=60)
    region_share: float = _input(
        "number",
        "share",
        "of requests that any one region must bear",
        1.0,
        because="the others may fail",
        low=0.01,
        high=1,
    )
    consistency: str = _input(
        "name", "", "of reads", "eventual", because="a release never changes", choices=CONSISTENCIES
    )
    p99_ms: float | None = _input("number", "ms", "objective, which a report's rates are held to", None, low=1e-3)

    list_length: int = _input("whole", "items", "in a stored list", 20, because="hotplate's default", low=1, high=1000)
    list_bytes: float | None = _input("number", "bytes", "of a list as stored, in its encoding, measured", None, low=1)
    item_id_chars: float = _input("number", "characters", "of an item's id", 8.0, because="a guess", low=1, high=256)
    user_id_chars: float = _input("number", "characters", "of a user's id", 10.0, because="a guess", low=1, high=256)
    title_chars: float = _input("number", "characters", "of an item's title; 0: none", 0.0, because="none are stored")
    encoding: str = _input(
        "name", "", "of lists", "zstd", because="hotplate's default for Redis and Cosmos DB", choices=("json", "zstd")
    )
    zstd_share: float = _input(
        "number", "share", "of a list's JSON that zstd leaves", 0.25,
        because="161 of 656 bytes, measured with random ids of 9 digits (docs/releases.md)", low=0.01, high=1,
    )  # fmt: skip

    refresh_hours: float = _input("number", "hours", "from one publish to the next", 24.0, because="daily", low=0.1)
    window_hours: float = _input("number", "hours", "that a publish may take", 1.0, because="a guess", low=0.01)
    publish_ru: int | None = _input(
        "whole", "RU/s", "reserved for publishing; none: what the window needs", None, low=1
    )
    publishing: str = _input(
        "name", "", "a container a release, or items replaced where they are", "release",
        because="hotplate's way", choices=("release", "in-place"),
    )  # fmt: skip
    kept: int = _input(
        "whole", "releases", "kept beside the live one, to roll back to", 1, because="hotplate's default"
    )
    indexing: str = _input(
        "name", "", "policy of the containers", "none", because="hotplate's way", choices=("none", "default")
    )
    indexed_terms: int = _input(
        "whole", "terms", "of an item that default indexing covers", 2, because="its id and its list, one text"
    )
    system_bytes: int = _input(
        "whole",
        "bytes",
        "that the service adds to an item",
        SYSTEM_BYTES,
        because="as seen in answers; that they are charged is assumed",
    )
    read_ru: float | None = _input("number", "RU", "of a read, measured", None, low=0.01)
    write_ru: float | None = _input("number", "RU", "of a written list, measured", None, low=0.01)
    ru_utilisation: float = _input(
        "number", "share", "of its RU/s that a container may use in an hour's mean", 0.7,
        because="room for what happens within the hour", low=0.05, high=1,
    )  # fmt: skip
    capacity: str = _input(
        "name",
        "",
        "of Cosmos DB, which the plan's cost takes",
        "manual",
        because="it can be foretold",
        choices=CAPACITIES,
    )
    have_ru: int | None = _input("whole", "RU/s", "provisioned by hand today", None, low=1)

    request_ms: float = _input(
        "number",
        "ms",
        "that a request stays in a pod",
        10.0,
        because="the read SLA of Cosmos DB at p99; Redis is faster",
        low=1e-3,
    )
    pod_concurrency: int = _input("whole", "requests", "that a pod holds at once", 64, because="a guess", low=1)
    pod_utilisation: float = _input(
        "number", "share", "of a pod that may be used", 0.6, because="room to lose one", low=0.05, high=1
    )
    request_cpu_us: float = _input(
        "number", "µs", "of CPU a request takes in a pod", 60.0,
        because="32 µs measured with files, and some 28 µs for a remote read (README)", low=0.1,
    )  # fmt: skip
    pod_cpus: float = _input("number", "vCPU", "of a pod", 1.0, because="one worker", low=0.05)
    pod_rps: float | None = _input(
        "number", "requests/s", "that a pod bears inside the objective, measured", None, low=1e-3
    )
    min_pods: int = _input("whole", "pods", "at least, in each region", 2, because="one may fail", low=1)

    redis_nodes: int = _input("whole", "nodes", "of an instance", 2, because="one is the replica", low=1)
    redis_reserved: float = _input(
        "number", "share", "of an instance's memory that is not for data", 0.2,
        because="https://learn.microsoft.com/azure/redis/architecture, 2025-05-18", high=0.9,
    )  # fmt: skip
    redis_utilisation: float = _input(
        "number", "share", "of its GETs/s that an instance may use", 0.6, because="room for a publish", low=0.05, high=1
    )


@dataclass(frozen=True, slots=True)
class Layer:
    """Some inputs from one place; `where` names one of them for a sentence, as `--users` or `users in plan.toml`."""

    source: str
    values: Mapping[str, object]
    where: str = "{name}"

    def naming(self, name: str) -> str:
        """Name an input as the place does."""
        return self.where.format(name=name, flag=name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs, and of each that is no default where it came from."""

    inputs: Inputs
    sources: Mapping[str, str]

    def source(self, name: str) -> str:
        """Say where an input's value came from; a default is an assumption and says why."""
        if name in self.sources:
            return self.sources[name]
        because = KNOWN[name].metadata["because"]
        return f"assumed: {because}" if because else "assumed"


KNOWN: Mapping[str, Field[Any]] = {each.name: each for each in fields(Inputs)}


def gather(layers: Sequence[Layer]) -> Given:
    """Lay inputs over each other, the last wins. Raises PlanMisused naming the flag or the key."""
    values, sources = dict[str, Any](), dict[str, str]()
    for layer in layers:
        for name, told in layer.values.items():
            if name not in KNOWN:
                raise PlanMisused(f"{layer.naming(name)} is no input of a plan; there are {', '.join(KNOWN)}")
            values[name] = _checked(KNOWN[name], told, layer.naming(name))
            sources[name] = layer.source
    _measured_anew(layers, values, sources)
    profile = values.get("profile")
    if "peak_rps" not in values and isinstance(profile, tuple):
        values["peak_rps"], sources["peak_rps"] = max(profile), f"the busiest hour of the profile, {sources['profile']}"
    for name in ("users", "peak_rps"):
        if name not in values:
            raise PlanMisused(f"--{name.replace('_', '-')} is missing: {GIVE_LEAST}")
    return Given(Inputs(**values), sources)


def _measured_anew(layers: Sequence[Layer], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Drop a measured size that a later place contradicts: a list of another make has another size."""
    order = {name: place for place, layer in enumerate(layers) for name in layer.values}
    for name in ("list_length", "encoding", "title_chars", "item_id_chars"):
        if "list_bytes" in values and order.get(name, -1) > order["list_bytes"]:
            del values["list_bytes"], sources["list_bytes"]


def _checked(known: Field[Any], told: object, name: str) -> Any:  # noqa: ANN401 -- of whatever type its field is
    kind, low, high = known.metadata["kind"], known.metadata["low"], known.metadata["high"]
    if kind == "profile":
        return _profile(told, name)
    if kind == "name":
        if told not in known.metadata["choices"]:
            raise PlanMisused(f"{name} is {told!r}, and must be {' or '.join(known.metadata['choices'])}")
        return told
    what = "a whole number" if kind == "whole" else "a number"
    try:
        number = float(told.replace("_", "")) if isinstance(told, str) else float(_number(told))
    except (TypeError, ValueError) as error:
        raise PlanMisused(f"{name} is {told!r}, and must be {what}") from error
    if not low <= number <= high or number == float("inf"):
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise PlanMisused(f"{name} is {number:g}, and must be at least {low:g}{upper}")
    if kind == "whole" and number != int(number):
        raise PlanMisused(f"{name} is {number:g}, and must be {what}")
    return int(number) if kind == "whole" else number


def _number(told: object) -> float:
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise TypeError
    return told


def _profile(told: object, name: str) -> str | tuple[float, ...]:
    try:
        if isinstance(told, str) and "," not in told:
            shape(told)
            return told
        listed = told.split(",") if isinstance(told, str) else told
        if not isinstance(listed, list | tuple):
            raise PlanMisused(f"profile is {told!r}; it takes a shape's name, or 24 numbers")
        rates = tuple(float(each) for each in listed)
        shape(rates)
    except ValueError as error:  # PlanMisused is one
        said = str(error) if isinstance(error, PlanMisused) else f"profile is {told!r}; it takes 24 numbers"
        raise PlanMisused(said.replace("profile", name, 1)) from error
    else:
        return rates
