"""The tables of a sweep: the same cells on the terminal and on the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.text import format_us
from stores.cosmos.charges import KB

LEVEL_HEADINGS = (
    "RU/s", "read", "costs", "best rate", "by arithmetic", "off by", "spent", "p50", "p99", "429s", "per 100 RU/s",
)  # fmt: skip
EFFECT_HEADINGS = ("effect", "what the planner is told", "RU/s", "best rate", "planner's RU/s for it", "off by")
NONE = "-"


def level_rows(levels: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Give the cells of all levels; a * marks latencies that a late generator spoilt."""
    return [_level(each) for each in levels]


def effect_rows(effects: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Give the cells of all effects."""
    return [_effect(each) for each in effects]


def notes(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the cells leave out."""
    said = [f"{each['ru']:,} RU/s takes larger items, as {why}" for each in levels for why in each["skipped"]]
    said += [f"{each['ru']:,} RU/s was not spent: {each['limit']}" for each in levels if not each["spent"]]
    if any(each["best"] and each["best"]["late"] for each in levels):
        said.append("* The generator came late in this trial (lag p99 above 1 ms): its latencies are not the store's.")
    return said


def _level(one: Mapping[str, Any]) -> tuple[str, ...]:
    best = one["best"]
    size = f"{one['item_bytes'] / KB:g} KB"
    if best is None:
        told = f"{one['ru']:,}", size, f"{one['read_ru']:.2f} RU", NONE, f"{one['arithmetic']:,.1f}/s"
        return (*told, *(NONE,) * (len(LEVEL_HEADINGS) - len(told)))
    late = " *" if best["late"] else ""
    return (
        f"{one['ru']:,}",
        size,
        f"{best['charge_ru']:.2f} RU",
        f"{best['rate']:,.1f}/s",
        f"{one['arithmetic']:,.1f}/s",
        f"{one['off']:+.1%}",
        f"{one['utilisation']:.1%}",
        format_us(best["p50_us"]) + late,
        format_us(best["p99_us"]) + late,
        f"{best['throttled']:.2%}",
        f"{one['per_100_ru']:.1f}/s",
    )


def _effect(one: Mapping[str, Any]) -> tuple[str, ...]:
    if one["rate"] is None:
        return one["name"], f"not measured: {one['limit']}", NONE, NONE, NONE, NONE
    return (
        one["name"],
        one["inputs"],
        f"{one['ru']:,.0f}",
        f"{one['rate']:,.1f}/s",
        f"{one['foretold_ru']:,.0f}",
        f"{one['off']:+.1%}",
    )
