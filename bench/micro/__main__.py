"""`python -m bench.micro`: measure the figures, print them, and write them down with the machine they are of."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from bench.micro import endpoint, machine
from bench.micro.rounds import Figure


class Subject(Protocol):
    """A module that measures something."""

    __name__: str

    def measure(self, rounds: int) -> list[Figure]:
        """Measure in *rounds* rounds, each variant once in each."""


SUBJECTS: tuple[Subject, ...] = (endpoint,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    subjects = {subject.__name__.rpartition(".")[2]: subject for subject in SUBJECTS}
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description="Measure the figures of hotplate.")
    parser.add_argument(
        "--only", choices=subjects, action="append", help="measure this one; may be given several times"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (5)")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"), help="where to write the results")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("--rounds must be at least 1")
    found = list[Figure]()
    console = Console()
    for name in asked.only or subjects:
        with console.status(f"measuring: {name}"):
            found += subjects[name].measure(asked.rounds)
    machine_is = machine.describe()
    console.print(table(found, f"{machine_is['cpu']}, {machine_is['cores']} cores, {machine_is['date']}"))
    asked.out.write_text(json.dumps({"machine": machine_is, "figures": [one.to_json() for one in found]}, indent=1))
    console.print(f"written to {asked.out}")
    return 0


def table(found: Sequence[Figure], title: str) -> Table:
    """Lay the figures out for a terminal."""
    result = Table("figure", "unit", title=title)
    for column in ("median", "min", "max", "rounds"):
        result.add_column(column, justify="right")
    result.add_column("goal")
    for one in found:
        numbers = (f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in (one.median, one.min, one.max))
        result.add_row(one.name, one.unit, *numbers, str(len(one.values)), one.goal)
    return result


if __name__ == "__main__":
    sys.exit(main())
