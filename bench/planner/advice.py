"""What would save money: the plan worked out anew with one thing changed, ranked by what that saves in a month."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench.planner.inputs import Inputs
from bench.planner.plan import Plan, again

SHOWN_LENGTH = 10
WORTH_TELLING = 0.01
CACHED_PART, CACHED_MOST = 0.1, 100_000


@dataclass(frozen=True, slots=True)
class Advice:
    """One change, what it gives up, and what it saves, in USD a month; below zero where it costs."""

    says: str
    but: str
    cosmos_saves: float
    redis_saves: float

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self)


def advise(plan: Plan) -> list[Advice]:
    """Try each change by itself and give those that save something, the most first."""
    found = list[Advice]()
    for says, but, changes in _changes(plan.given.inputs):
        then = again(plan, **changes)
        cosmos = _saved(plan, then, "cosmos_total")
        redis = _saved(plan, then, "redis_total")
        if max(cosmos, redis) >= WORTH_TELLING:
            found.append(Advice(says, but, round(cosmos, 2), round(redis, 2)))
    return sorted(found, key=lambda each: max(each.cosmos_saves, each.redis_saves), reverse=True)


def _saved(plan: Plan, then: Plan, name: str) -> float:
    both = plan.figures[name].value, then.figures[name].value
    return both[0] - both[1] if isinstance(both[0], float) and isinstance(both[1], float) else 0.0


def _changes(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield from _of_lists(inputs)
    yield from _of_containers(inputs)
    yield from _of_publishing(inputs)


def _of_lists(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if inputs.list_length > SHOWN_LENGTH:
        shorter: dict[str, Any] = {"list_length": SHOWN_LENGTH}
        if inputs.list_bytes is not None:
            shorter["list_bytes"] = inputs.list_bytes * SHOWN_LENGTH / inputs.list_length
        yield (
            f"lists of {SHOWN_LENGTH} items, not {inputs.list_length}",
            "fewer to fall back on after a filter",
            shorter,
        )
    if inputs.encoding == "json":
        smaller: dict[str, Any] = {"encoding": "zstd"}
        if inputs.list_bytes is not None:
            smaller["list_bytes"] = inputs.list_bytes * inputs.zstd_share
        yield "encoding zstd, not json", "0.8 µs of CPU a read", smaller
    if inputs.title_chars > 0 and inputs.list_bytes is None:
        yield "no titles in the lists", "the caller looks them up", {"title_chars": 0.0}
    if inputs.cache_entries == 0 and inputs.hit_rate is None and inputs.zipf:
        entries = min(CACHED_MOST, max(1, int(inputs.users * CACHED_PART)))
        yield (
            f"an in-process cache of {entries:,} lists",
            "memory in each pod; hotplate serve has none so far",
            {"cache_entries": entries},
        )


def _of_containers(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if inputs.indexing == "default":
        yield "no indexing", "no queries, which a lookup never makes", {"indexing": "none"}
    if inputs.consistency in ("bounded", "strong"):
        but = "a read may be older, but a release never changes"
        yield f"eventual consistency, not {inputs.consistency}", but, {"consistency": "eventual"}
    for capacity, but in (
        ("manual", "a peak above the plan is throttled"),
        ("autoscale", "a peak above its top is throttled"),
        ("serverless", "no latency guarantee"),
    ):
        if capacity != inputs.capacity:
            yield f"{capacity}, not {inputs.capacity}", but, {"capacity": capacity}


def _of_publishing(inputs: Inputs) -> Iterator[tuple[str, str, dict[str, Any]]]:
    longer = min(inputs.refresh_hours / 2, inputs.window_hours * 4)
    if inputs.publish_ru is not None:
        half = max(1, inputs.publish_ru // 2)
        yield f"publishing at {half:,} RU/s, not {inputs.publish_ru:,}", "it takes twice as long", {"publish_ru": half}
    elif longer > inputs.window_hours:
        says = f"{longer:g} hours to publish, not {inputs.window_hours:g}"
        yield says, "lists are fresh that much later", {"window_hours": longer}
    if inputs.publishing == "in-place":
        yield "a container a release", "", {"publishing": "release"}
    elif inputs.kept > 0:
        yield "no release kept beside the live one", "no rollback", {"kept": 0}
