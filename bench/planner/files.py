"""The files of a plan: the report as JSON and as a page."""

import json
from pathlib import Path

from bench.planner.page import page
from bench.planner.report import PlanReport
from bench.report.page import write


def keep(report: PlanReport, name: Path) -> None:
    """Write *name*.json and *name*.html, each whole or not at all."""
    write(name.with_name(f"{name.name}.json"), json.dumps(report.to_json(), indent=1))
    write(name.with_name(f"{name.name}.html"), page(report))
