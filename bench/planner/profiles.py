"""A day's shape: 24 hourly rates, each as a part of the busiest hour's."""

from collections.abc import Mapping, Sequence

from bench.planner.errors import PlanMisused

HOURS = 24
SHAPES: Mapping[str, tuple[float, ...]] = {
    "flat": (1.0,) * HOURS,
    "office": (
        0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0, 1.0, 0.95,
        0.85, 0.95, 1.0, 1.0, 0.9, 0.7, 0.4, 0.25, 0.15, 0.1, 0.05, 0.05,
    ),
    "evening": (
        0.35, 0.2, 0.12, 0.08, 0.07, 0.08, 0.12, 0.2, 0.3, 0.35, 0.4, 0.42,
        0.45, 0.45, 0.45, 0.48, 0.52, 0.6, 0.72, 0.88, 1.0, 1.0, 0.85, 0.6,
    ),
}  # fmt: skip
"""Shapes by name. They are made up, to have something to begin with; a shop's own log makes a better one."""


def shape(profile: str | Sequence[float]) -> tuple[float, ...]:
    """Give the 24 parts of a named shape, or of 24 rates, absolute or relative."""
    if isinstance(profile, str):
        if profile in SHAPES:
            return SHAPES[profile]
        raise PlanMisused(f"profile {profile!r} is none of {', '.join(SHAPES)}; it may also be 24 numbers")
    if len(profile) != HOURS or min(profile) < 0 or max(profile) <= 0:
        raise PlanMisused("profile takes 24 numbers, one an hour, none below 0 and not all 0")
    return tuple(rate / max(profile) for rate in profile)
