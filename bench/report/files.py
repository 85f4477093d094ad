"""The files of a measurement: the report as JSON and as a page, and an HDR log of one histogram a second."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.loadgen.histogram import Histogram, log_of
from bench.loadgen.result import Result
from bench.report.page import page
from bench.report.report import Report
from bench.report.writing import write

Runs = Sequence[tuple[float, Result]]
"""Runs, each with the epoch second of its start."""


def keep(report: Report, runs: Runs | None, name: Path) -> None:
    """Write *name*.json, *name*.html and, of runs of one subject, *name*.hdr, each whole or not at all."""
    texts = {".json": json.dumps(report.to_json(), indent=1), ".html": page(report)}
    if runs is not None:
        texts[".hdr"] = hdr_log(runs)
    for ending, text in texts.items():
        write(name.with_name(name.name + ending), text)


def hdr_log(runs: Runs) -> str:
    """Write runs as an HDR log."""
    return log_of(
        (start_s + place, start_s + place + 1, Histogram.of(second.latencies_s))
        for start_s, result in runs
        for place, second in enumerate(result.seconds)
    )
