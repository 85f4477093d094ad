"""What only a sweep has to show on its page: the levels, their knees, and the effects beside the planner's figures."""

from collections.abc import Mapping
from typing import Any

from bench.report.text import escaped, section, table
from bench.ru import plots
from bench.ru.lines import EFFECT_HEADINGS, LEVEL_HEADINGS, effect_rows, level_rows, notes

LEVELS = (
    "The highest rate inside the objective, beside RU/s ÷ RU a read. Spent: RU that answers were charged with at that "
    "rate, of those provisioned."
)
KNEES = "Below the knee every read is answered; beyond it the rest is refused, and the answered ones are no more."
EFFECTS = (
    "Each by itself. The planner is asked how many RU/s the best rate needs, and its answer is held against what the "
    "container had."
)


def sections(found: Mapping[str, Any]) -> list[str]:
    """Lay a sweep out."""
    label = f" ({found['label']})" if found["label"] else ""
    levels, effects = found["levels"], found["effects"]
    said = "".join(f'<p class="soft">{escaped(each)}</p>' for each in notes(levels))
    shown = table(LEVEL_HEADINGS, level_rows(levels), numbers=range(len(LEVEL_HEADINGS)))
    parts = [section(f"What each level bears{label}", shown + said, LEVELS)]
    if len(levels) > 1:
        parts.append(section(f"Best rate over RU/s{label}", plots.levels(levels)))
    if effects:
        shown = table(EFFECT_HEADINGS, effect_rows(effects), numbers=range(2, 6))
        parts.append(section(f"What else decides{label}", shown, EFFECTS))
    for each in levels:
        heading = f"The knee at {each['ru']:,} RU/s{label}"
        parts.append(section(heading, plots.refusals(each), KNEES if each is levels[0] else ""))
    return parts
