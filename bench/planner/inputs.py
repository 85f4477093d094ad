"""What a plan begins with: each input with its unit, bounds, default and why, and the places that inputs come from.

The command line's flags are made of the same declarations: an input that names a panel has a flag of its own, and all
others are set by name.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from hotplate.bench.errors import BenchMisused
from hotplate.stores.cosmos.charges import SYSTEM_BYTES
from hotplate.stores.errors import reason_of

if TYPE_CHECKING:
    from hotplate.stores.manifest import Manifest

CONSISTENCIES = ("eventual", "prefix", "session", "bounded", "strong")
CAPACITIES = ("manual", "autoscale", "serverless")
LOAD = "The load"
LISTS = "The lists"
COSMOS = "Cosmos DB and pods"
SCALE = "Past one machine"
REQUIRED = "give at least the users and the peak rate, as: hotplate plan --users 1000000 --peak-rps 500"

HOURS = 24
# The shapes of a day by name. They are made up, to have something to begin with; a shop's own log makes a better one.
SHAPES: Mapping[str, tuple[float, ...]] = {
    "flat": (1.0,) * HOURS,
    "evening": (
        0.35, 0.2, 0.12, 0.08, 0.07, 0.08, 0.12, 0.2, 0.3, 0.35, 0.4, 0.42,
        0.45, 0.45, 0.45, 0.48, 0.52, 0.6, 0.72, 0.88, 1.0, 1.0, 0.85, 0.6,
    ),
}  # fmt: skip

# What a number may end with.
THOUSANDS = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
# Of a row's key in a release: what stands before the id.
KEY_BYTES = len("user:")
# Of `hotplate.bench.report.report`, whose import would need the extra `bench`.
REPORT_FORMAT = 2


class PlanMisused(BenchMisused):
    """An input is missing, unknown or out of range; the sentence names the flag or the key."""


def _input(
    unit: str,
    description: str,
    default: Any = MISSING,  # noqa: ANN401 -- of whatever type its field is
    reason: str = "",
    *,
    low: float = 0,
    high: float | None = None,
    choices: Sequence[str] = (),
    panel: str = "",
) -> Any:  # noqa: ANN401 -- as dataclasses.field itself
    """Declare an input; *reason* is that of its default, and one with a *panel* has a flag there."""
    most = high if high is not None else 1 if unit == "share" else float("inf")
    declared = {
        "unit": unit, "description": description, "reason": reason, "low": low, "high": most, "choices": choices,
        "panel": panel,
    }  # fmt: skip
    return field(metadata=declared) if default is MISSING else field(default=default, metadata=declared)


_load, _lists, _cosmos, _scale = (partial(_input, panel=panel) for panel in (LOAD, LISTS, COSMOS, SCALE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a plan rests on, checked; an input that is None is derived from others."""

    users: int = _load("users", "who have a list", low=1)
    peak_rps: float = _load("requests/s", "in the busiest hour, of all regions together", low=1e-6)
    items: int = _load("items", "that have a list of similar ones", 0, "no similar items")
    profile: str | tuple[float, ...] = _load(
        "", f"shape of a day: {', '.join(SHAPES)}, or 24 rates", "flat", "as busy all day, the dearest day"
    )
    growth_percent: float = _load("%/month", "growth of users, items and requests", 0.0, "no growth", low=-50, high=100)
    months: int = _load("months", "of growth that the plan must last for", 0, "today's load", high=120)
    unknown_share: float = _input("share", "of requests for users without a list", 0.0, "they cost a read, too")
    zipf: float | None = _load(
        "", "exponent of the Zipf law by which users come, as 0.9; 0: all alike", None, "all alike", high=3
    )
    cache_entries: int = _load(
        "lists", "that the cache of each process keeps", 0, "none is counted on; 64 MB, the default, keep some 60,000"
    )
    hit_rate: float | None = _load("share", "of lookups that never reach the store", None)
    hot_share: float | None = _input("share", "of requests for the one hottest user", None)
    regions: int = _load("regions", "that each hold all data", 1, low=1, high=60)
    region_share: float = _input(
        "share", "of requests that any one region must be able to answer", 1.0, "the others may fail", low=0.01
    )
    consistency: str = _cosmos("", "consistency of reads", "eventual", "a release never changes", choices=CONSISTENCIES)
    p99_ms: float | None = _cosmos("ms", "at p99, the objective that a report's rates must keep", None, low=1e-3)

    list_length: int = _lists("items", "in a stored list", 20, "hotplate's default", low=1, high=1000)
    list_bytes: float | None = _lists("bytes", "of a list as stored, in its encoding, measured", None, low=1)
    item_id_chars: float = _input("characters", "of an item's id", 8.0, "a guess", low=1, high=256)
    user_id_chars: float = _input("characters", "of a user's id", 10.0, "a guess", low=1, high=256)
    title_chars: float = _lists("characters", "of an item's title; 0: none", 0.0, "none are stored")
    encoding: str = _lists(
        "", "encoding of lists", "zstd", "hotplate's default for Redis and Cosmos DB", choices=("json", "zstd")
    )
    zstd_share: float = _input(
        "share", "of a list's JSON that zstd leaves", 0.25,
        "161 of 656 bytes, measured with random ids of 9 digits (docs/releases.md)", low=0.01,
    )  # fmt: skip

    refresh_hours: float = _cosmos("hours", "from one publish to the next", 24.0, "daily", low=0.1)
    window_hours: float = _cosmos("hours", "that a publish may take", 1.0, "a guess", low=0.01)
    publish_ru: int | None = _cosmos("RU/s", "reserved for publishing; none: what the window needs", None, low=1)
    kept: int = _input("releases", "kept besides the live one, to roll back to", 1, "hotplate's default")
    system_bytes: int = _input(
        "bytes",
        "that the service adds to an item",
        SYSTEM_BYTES,
        "as seen in answers; that they are charged is assumed",
    )
    read_ru: float | None = _input("RU", "of a read, measured", None, low=0.01)
    write_ru: float | None = _input("RU", "of a written list, measured", None, low=0.01)
    ru_utilisation: float = _input(
        "share", "of its RU/s that a container may use in an hour's mean", 0.7,
        "room for what happens within the hour", low=0.05,
    )  # fmt: skip
    capacity: str = _cosmos(
        "",
        "how Cosmos DB is paid for in the plan's total",
        "manual",
        "its cost is known beforehand",
        choices=CAPACITIES,
    )
    have_ru: int | None = _cosmos("RU/s", "provisioned by hand today", None, low=1)

    request_ms: float = _input(
        "ms", "that a request stays in a pod", 10.0, "the read SLA of Cosmos DB at p99; Redis is faster", low=1e-3
    )
    pod_concurrency: int = _input("requests", "that a pod holds at once", 64, "a guess", low=1)
    pod_utilisation: float = _input("share", "of a pod that may be used", 0.6, "room to lose one", low=0.05)
    request_cpu_us: float = _input(
        "µs", "of CPU a request takes in a pod", 60.0,
        "52 µs measured with an emulated Cosmos DB by TLS (files, Redis: 14), 6 for a key with a rate (figures.md)",
        low=0.1,
    )  # fmt: skip
    pod_cpus: float = _input("vCPU", "of a pod", 1.0, "one worker", low=0.05)
    pod_rps: float | None = _input("requests/s", "that a pod answers inside the objective, measured", None, low=1e-3)
    min_pods: int = _input("pods", "at least, in each region", 2, "one may fail", low=1)

    zones: int = _scale(
        "zones", "that the pods of a region are spread over, of which any one may be lost", 1, "none is lost", low=1,
        high=10,
    )  # fmt: skip

    redis_nodes: int = _input("nodes", "of an instance", 2, "one is the replica", low=1)
    redis_reserved: float = _input(
        "share", "of an instance's memory that is not for data", 0.2,
        "https://learn.microsoft.com/azure/redis/architecture, 2025-05-18", high=0.9,
    )  # fmt: skip
    redis_utilisation: float = _input(
        "share", "of its GETs/s that an instance may use", 0.6, "room for a publish", low=0.05
    )
    redis_node_gb: float | None = _scale(
        "GB", "of a node of a Redis Cluster of your own; none: no such one", None, low=0.5
    )
    redis_read_us: float = _input(
        "µs", "of a core that redis-server takes for a lookup", 1.7,
        "1.67 measured at 67,000 GETs/s on one core, 64 connections (EPYC, 2026-11-20)", low=0.01,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class InputSource:
    """Some inputs from one place; `label` names one of them in a sentence, as `--users` or `users in plan.toml`."""

    source: str
    values: Mapping[str, object]
    label: str = "{name}"

    def label_of(self, name: str) -> str:
        """Name an input as the place does."""
        return self.label.format(name=name, flag=name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class SourcedInputs:
    """Inputs, and the origin of each that is not a default."""

    inputs: Inputs
    sources: Mapping[str, str]

    def source(self, name: str) -> str:
        """Say where an input's value came from; a default is an assumption and gives its reason."""
        if name in self.sources:
            return self.sources[name]
        reason = KNOWN[name].metadata["reason"]
        return f"assumed: {reason}" if reason else "assumed"


KNOWN: Mapping[str, Field[Any]] = {each.name: each for each in fields(Inputs)}


def flag_help(known: Field[Any]) -> str:
    """Return what `--help` says of an input: what it is, its choices and its default."""
    declared = known.metadata
    sentence = f"{declared['unit']} {declared['description']}".strip()
    sentence = sentence[:1].upper() + sentence[1:] + "."
    if declared["choices"]:
        sentence += f" One of {', '.join(declared['choices'])}."
    if known.default in (MISSING, None):
        return sentence
    default = f"{known.default:g}" if isinstance(known.default, float) else known.default
    return f"{sentence} Default: {default}."


def merge(layers: Sequence[InputSource]) -> SourcedInputs:
    """Lay inputs over each other; the last layer wins. Raises PlanMisused naming the flag or the key."""
    values, sources = dict[str, Any](), dict[str, str]()
    for layer in layers:
        for name, value in layer.values.items():
            if name not in KNOWN:
                raise PlanMisused(f"{layer.label_of(name)} is not an input of a plan; there are {', '.join(KNOWN)}")
            values[name] = _checked(KNOWN[name], value, layer.label_of(name))
            sources[name] = layer.source
    _drop_outdated_size(layers, values, sources)
    profile = values.get("profile")
    if "peak_rps" not in values and isinstance(profile, tuple):
        values["peak_rps"], sources["peak_rps"] = max(profile), f"the busiest hour of the profile, {sources['profile']}"
    for name in ("users", "peak_rps"):
        if name not in values:
            raise PlanMisused(f"--{name.replace('_', '-')} is missing: {REQUIRED}")
    return SourcedInputs(Inputs(**values), sources)


def hourly_shares(profile: str | Sequence[float]) -> tuple[float, ...]:
    """Return 24 hourly rates as shares of the busiest hour's, of a named shape or of rates, absolute or relative."""
    if isinstance(profile, str):
        if profile in SHAPES:
            return SHAPES[profile]
        raise PlanMisused(f"profile {profile!r} is none of {', '.join(SHAPES)}; it may also be 24 numbers")
    if len(profile) != HOURS or min(profile) < 0 or max(profile) <= 0:
        raise PlanMisused("profile takes 24 numbers, one an hour, none below 0 and not all 0")
    return tuple(rate / max(profile) for rate in profile)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises PlanMisused naming it if that is not possible."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise PlanMisused(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanMisused(f"{path} is not TOML: {error}") from error


def from_report(path: Path, p99_ms: float | None = None) -> InputSource:
    """Read what `hotplate bench` measured: what a pod can answer, how long a request stays in it, and its CPU.

    With *p99_ms*, only rates that kept it count. Raises PlanMisused for a file that is not a valid report.
    """
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != REPORT_FORMAT:
            raise PlanMisused(f"--from-report: {path} has format {facts['format']}, and this reads {REPORT_FORMAT}")
        if facts["interrupted"] or not facts["valid"]:
            raise PlanMisused(f"--from-report: {path} was stopped or is invalid; measure again")
        machine = facts["machine"]
        bound = facts.get("search", {}).get("at_least")
        source = f"{'at least (the load generator was at its limit)' if bound else 'measured'}: {path.name}, "
        source += f"{machine['cpu']}, {machine['cores']} cores, {str(machine['date'])[:10]}"
        values: dict[str, object] = {}
        rounds = [one for each in facts["series"] for one in each["rounds"] if one["latency_us"]]
        if facts["kind"] == "http":
            values = _measured_pod(facts, rounds, p99_ms, path)
        if facts["kind"] == "stores" and rounds:
            values = _measured_service(facts)
    except OSError as error:
        raise PlanMisused(f"--from-report: {path}: {error.strerror}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, PlanMisused):
            raise
        raise PlanMisused(f"--from-report: {path} is not a report of hotplate bench: {reason_of(error)}") from error
    if not values:
        raise PlanMisused(f"--from-report: {path} holds nothing that a plan can use")
    return InputSource(source, values, f"{{name!r}} in {path}")


def from_release(manifest: "Manifest", store: str) -> InputSource:
    """Read the manifest of a release in *store*: lists by kind, their mean size, their encoding.

    The manifest has one sum of bytes over all rows, so popular lists and pieces of `meta` are in the mean.
    """
    rows = sum(manifest.counts.values())
    mean_bytes = manifest.bytes / max(1, rows)
    key_bytes = KEY_BYTES + fmean([len(key.partition(":")[2].encode()) for key in manifest.sample] or [0])
    values: dict[str, object] = {
        "users": manifest.counts.get("user", 0),
        "items": manifest.counts.get("item", 0),
        "list_bytes": max(1.0, round(mean_bytes - key_bytes, 1)),
        "encoding": manifest.encoding,
    }
    source = f"measured: manifest of {manifest.release} in {store}, {rows:,} rows of {manifest.bytes:,} bytes"
    return InputSource(source, values, f"{{name}} of {manifest.release}")


Rounds = Sequence[Mapping[str, Any]]


def _measured_pod(facts: Mapping[str, Any], rounds: Rounds, p99_ms: float | None, path: Path) -> dict[str, object]:
    """Read what one service bore: the highest rate of a search, or else the rate at which it was measured."""
    points = facts.get("search", {}).get("points", [])
    good = [(float(each["at"]), float(each["p99_us"])) for each in points if each["inside"]]
    if not good:
        good = [(float(one["ok_rate"]), float(one["latency_us"]["p99"])) for one in rounds]
    kept = [rate for rate, p99_us in good if p99_ms is None or p99_us <= p99_ms * 1000]
    if not kept:
        raise PlanMisused(
            f"--from-report: no rate of {path} kept a p99 of {p99_ms:g} ms; raise --p99-ms, or measure another"
        )
    return {"pod_rps": max(kept), "request_ms": _mean_ms(facts)}


def _measured_service(facts: Mapping[str, Any]) -> dict[str, object]:
    """Read what CPU a request took of the service, with the store that took most; emulated stores do not count."""
    cpu_us = [
        fmean([one["service_cpu_us"] for one in each["rounds"]])
        for each in facts["stores"]
        if each["emulated"] is None and each["rounds"]
    ]
    return {"request_cpu_us": round(max(cpu_us), 2), "request_ms": _mean_ms(facts)} if cpu_us else {}


def _mean_ms(facts: Mapping[str, Any]) -> float:
    """Return the mean latency of the middle round, by its lower bound; of several series the longest."""
    answered = [[one for one in each["rounds"] if one["latency_us"]] for each in facts["series"]]
    means_us = [
        median(float((one.get("sent_latency_us") or one["latency_us"])["mean"]) for one in rounds)
        for rounds in answered
        if rounds
    ]
    return round(max(means_us) / 1000, 4)


def _drop_outdated_size(layers: Sequence[InputSource], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Drop a measured size if a later layer changes what a list is made of."""
    order = {name: place for place, layer in enumerate(layers) for name in layer.values}
    for name in ("list_length", "encoding", "title_chars", "item_id_chars"):
        if "list_bytes" in values and order.get(name, -1) > order["list_bytes"]:
            del values["list_bytes"], sources["list_bytes"]


def _checked(known: Field[Any], value: object, label: str) -> Any:  # noqa: ANN401 -- of whatever type its field is
    if known.name == "profile":
        return _profile(value, label)
    choices, low, high = known.metadata["choices"], known.metadata["low"], known.metadata["high"]
    if choices:
        if value not in choices:
            raise PlanMisused(f"{label} is {value!r}, and must be {' or '.join(choices)}")
        return value
    whole = known.type in (int, int | None)
    expected = "a whole number" if whole else "a number"
    try:
        number = _parsed(value)
    except (TypeError, ValueError) as error:
        raise PlanMisused(f"{label} is {value!r}, and must be {expected}") from error
    if not low <= number <= high or number == float("inf"):
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise PlanMisused(f"{label} is {number:g}, and must be at least {low:g}{upper}")
    if whole and number != int(number):
        raise PlanMisused(f"{label} is {number:g}, and must be {expected}")
    return int(number) if whole else number


def _parsed(value: object) -> float:
    """Return a number, or one as people write it: 2_000_000, 500k, 20M, 1.5G."""
    if isinstance(value, str):
        factor = THOUSANDS.get(value[-1:], 1.0)
        return float((value[:-1] if factor > 1 else value).replace("_", "")) * factor
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _profile(value: object, label: str) -> str | tuple[float, ...]:
    listed = value.split(",") if isinstance(value, str) and "," in value else value
    try:
        if isinstance(listed, list | tuple):
            listed = tuple(float(each) for each in listed)
        elif not isinstance(listed, str):
            raise PlanMisused(f"profile is {value!r}; it takes a shape's name, or 24 numbers")
        hourly_shares(listed)
    except ValueError as error:  # PlanMisused is one
        sentence = str(error) if isinstance(error, PlanMisused) else f"profile is {value!r}; it takes 24 numbers"
        raise PlanMisused(sentence.replace("profile", label, 1)) from error
    return listed
