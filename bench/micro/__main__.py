"""`python -m bench.micro`: measure the figures, print them, and write them down with the machine they are of."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.micro import (
    computing,
    cosmos_emulator,
    cosmos_publishing,
    cosmos_reads,
    cosmos_service,
    embedded,
    endpoint,
    generating,
    redis_lookups,
    redis_publishing,
    redis_readers,
    redis_service,
    retail,
)
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured
from bench.report import machine


class Subject(Protocol):
    """A module that measures something."""

    __name__: str

    def measure(self, effort: Effort) -> list[Outcome]:
        """Measure with *effort*, each variant once in each round."""


SHORT = Effort(rounds=1, users=50_000, round_s=0.5)
LONG = {"retail", "cosmos_publishing"}
"""Subjects whose size is given by their data; --short leaves them out."""

PRINTED_WIDTH = 180
"""Columns where there is no terminal that would set them."""

SUBJECTS: tuple[Subject, ...] = (
    computing, endpoint, embedded, redis_service, redis_publishing, redis_readers, redis_lookups, retail, generating,
    cosmos_emulator, cosmos_reads, cosmos_service, cosmos_publishing,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 however the figures came out, 1 when something failed, so that there is no figure."""
    subjects = {subject.__name__.rpartition(".")[2]: subject for subject in SUBJECTS}
    asked = _parse(arguments, list(subjects))
    effort = effort_of(asked)
    found = list[Outcome]()
    console = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    for name in asked.only or [name for name in subjects if not (asked.short and name in LONG)]:
        with console.status(f"measuring: {name}"):
            found += measured(subjects[name], name, effort)
    machine_is = machine.describe()
    console.print(table(found, f"{machine_is['cpu']}, {machine_is['cores']} cores, {machine_is['date']}"))
    asked.out.write_text(json.dumps({"machine": machine_is, "figures": [one.to_json() for one in found]}, indent=1))
    console.print(f"written to {asked.out}")
    return int(any(isinstance(one, Unmeasured) and one.failed for one in found))


def effort_of(asked: argparse.Namespace) -> Effort:
    """Read how much to measure: what was told, else the usual, or with --short a little of everything."""
    usual = SHORT if asked.short else Effort()
    return Effort(
        rounds=usual.rounds if asked.rounds is None else asked.rounds,
        users=usual.users if asked.users is None else asked.users,
        round_s=usual.round_s if asked.seconds is None else asked.seconds,
    )


def measured(subject: Subject, name: str, effort: Effort) -> list[Outcome]:
    """Measure one subject; a failure is an outcome, too."""
    try:
        return subject.measure(effort)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the figures of the other subjects are worth having
        return [Unmeasured(name, str(error) or repr(error), failed=True)]


def table(found: Sequence[Outcome], title: str) -> Table:
    """Lay the figures out for a terminal, and for each without a number the reason."""
    result = Table("figure", "unit", title=title)
    for column in ("median", "min", "max", "n"):
        result.add_column(column, justify="right")
    result.add_column("goal")
    result.add_column("held")
    for one in found:
        if isinstance(one, Figure):
            numbers = (f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in (one.median, one.min, one.max))
            held = {None: "", True: "yes", False: "NO"}[one.held]
            result.add_row(escape(one.name), one.unit, *numbers, str(len(one.values)), str(one.goal or ""), held)
        else:
            result.add_row(escape(f"{one.name}: {'FAILED' if one.failed else 'skipped'}, {one.reason}"))
    return result


def _parse(arguments: Sequence[str] | None, subjects: list[str]) -> argparse.Namespace:
    usual = Effort()
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description="Measure the figures of hotplate.")
    parser.add_argument(
        "--only", choices=subjects, action="append", help="measure this one; may be given several times"
    )
    parser.add_argument(
        "--short", action="store_true", help="in under 2 minutes, to see that all is well; goals are for the usual form"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds per figure ({usual.rounds}; with --short {SHORT.rounds})")
    parser.add_argument(
        "--users", type=int, help=f"lists of the embedded store ({usual.users:,}; with --short {SHORT.users:,})"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of load per round ({usual.round_s:g}; with --short {SHORT.round_s:g})"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where to write the results")
    asked = parser.parse_args(arguments)
    effort = effort_of(asked)
    if effort.rounds < 1 or effort.users < 1 or effort.round_s <= 0:
        parser.error("--rounds, --users and --seconds must be positive")
    return asked


if __name__ == "__main__":
    sys.exit(main())
