"""`hotplate bench reference`: the reference architecture's load test against each store, and on up to the knee."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.experiment import HOW, WHAT, WHEN, bench_errors, finish, option, require_folder
from hotplate.cli.terminal import Json, err, out, table

if TYPE_CHECKING:
    from bench.report.report import Report


def reference(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...",
            help="Stores; without any, a folder, a redis-server and an emulator of Cosmos DB are started for the test.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        str, option("duration", "Of the 200 users, and of the same rate in an open loop.", WHEN)
    ] = "20s",
    users: Annotated[int, option("users", "Ask for so many users; lists are made up for as many.", WHAT)] = 10_000,
    encoding: Annotated[str, option("encoding", "Of lists that are made up: json or zstd.", WHAT)] = "zstd",
    slo: Annotated[str, option("slo", "The objective that ends the climb to the knee.", HOW)] = "p99=60ms,errors=0.1%",
    report: Annotated[Path, option("out", "The report: this name with .json and .html.", HOW)] = Path(
        "hotplate-reference"
    ),
    as_json: Json = False,
) -> None:
    """Make the reference architecture's load test again, against each store, and go on to where it stopped short.

    200 users in a closed loop, with the pause that gives 180 requests/s, beside the published median of 60 ms at
    11,000 RU/s; then the same rate in an open loop, and on up to the knee. Exits 1 where a run is invalid, or it was
    stopped.

    Example: hotplate bench reference

    Example: hotplate bench reference file:///var/lib/hotplate redis://cache:6379/0
    """
    with bench_errors(as_json=as_json):
        from bench.progress import progress_display
        from bench.reference.reproduce import Asked, reproduce
        from bench.report.page import keep

        require_folder(report)
        asked = Asked(urls=tuple(urls or ()), slo=slo, duration=duration, users=users, encoding=encoding)
        with progress_display(err) as display:
            reproduced = reproduce(asked, display)
    keep(reproduced.report, None, report)
    found = reproduced.report
    finish(found, report, lambda: _show(found), valid=reproduced.valid, as_json=as_json)


def _show(report: "Report") -> None:
    """Print the test for a person."""
    from bench.reference.lines import NOTE

    found = report.extra["reference"]
    group, rows = "", list[tuple[str, ...]]()
    for line in found["lines"]:
        if line["group"] != group:
            group = line["group"]
            rows.append((group, *("" for _ in found["stores"])))
        rows.append((f"  {line['name']}", *line["cells"]))
    out.print(table(("", *found["stores"]), rows))
    for said in (NOTE, *found["endings"]):
        out.print(said, markup=False)
    for doubt in report.invalid_reasons:
        out.print(f"INVALID: {doubt}", markup=False)
    if report.interrupted:
        out.print("stopped before its end", markup=False)
