"""`hotplate bench` and `hotplate cosmos-emulator`: measure a service, compare stores, compare two measurements."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
from click.exceptions import Exit

from hotplate.base.report import Report, write_file
from hotplate.bench.measure.progress import ProgressDisplay, progress_display
from hotplate.bench.options import HOW, HttpOptions, ReferenceOptions, StoresOptions, SweepOptions
from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import err, out, require_file_path, require_folder, show_report
from hotplate.stores.options import Argument, Flag

if TYPE_CHECKING:
    from hotplate.bench.cosmos_emulator.server import RunningEmulator

app = Verbs(
    prefix="BENCH_",
    help="Measure services and stores, and compare measurements.\n\n"
    "Example: hotplate bench http http://127.0.0.1:8080 --users 1000 --find-max --slo p99=5ms",
)
EXIT_CODES = """
    Exit codes: 0 measured, within the objective; 1 not measured, or only in part (no answers, a store is down, or
    interrupted); 2 invalid options; 3 measured, outside the objective (more errors or higher latencies than --slo
    allows, popular lists instead of the users' own, or a wrong list).
"""
Written = Annotated[Path, Flag("Write the report to NAME.json and NAME.html.", HOW, name="out", metavar="NAME")]
_flag = partial(Flag, prefix="COSMOS_EMULATOR_")
_port = partial(_flag, at_least=0, at_most=65535)


def _measure_and_report(kind: str, measure: Callable[[ProgressDisplay], Report], written: Path) -> NoReturn:
    """Measure, print and write the report, and exit with its code.

    If it is interrupted before anything was measured, the files of an earlier report are kept.
    """
    require_folder(written)
    from hotplate.base import report_page, report_plots  # noqa: F401 -- before the measurement, because of an extra

    is_kept = False
    with progress_display(err) as display:
        try:
            report = measure(display)
        except KeyboardInterrupt:  # before the first result
            from hotplate.bench.measure.experiment import interrupted_report

            report = interrupted_report(kind)
            is_kept = report_page.is_saved(written)
    _print_and_exit(report, None if is_kept else written)


def _print_and_exit(report: Report, written: Path | None) -> NoReturn:
    """Print a report, write it to files with the name *written*, if it is not None, and exit with the report's code.

    It is printed first: what was measured is not lost if it cannot be written.
    """
    show_report(report)
    if written is not None:
        from hotplate.base import report_page  # an extra

        report_page.save(report, written)
        out.print(f"The rest is in {written}.json and {written}.html.")
    raise Exit(report.exit_code)


@app.command(also=EXIT_CODES)
def http(options: HttpOptions, written: Written = Path("hotplate-bench")) -> None:
    """Measure a service under an open-loop load, and write a report.

    Example: hotplate bench http http://127.0.0.1:8080 --rate 2k --duration 30s --repeat 5 --store
    file:///var/lib/hotplate
    """
    from hotplate.bench.http import make_plan, measure
    from hotplate.bench.http_report import report

    _measure_and_report("http", lambda display: report(measure(make_plan(options), display)), written)


@app.command(also=EXIT_CODES)
def stores(options: StoresOptions, written: Written = Path("hotplate-stores")) -> None:
    """Compare stores, each behind a service, with the same lists, users and schedule.

    The table shows latencies, CPU, and the cost of a billion reads. Rounds alternate between the stores. An empty store
    is filled with the release of the others or, if all are empty, with generated lists; lists of different models are
    not compared.

    Example: hotplate bench stores

    Example: hotplate bench stores file:///var/lib/hotplate redis://cache:6379/0 --rate 5k --cpu-hour 0.04
    """
    from hotplate.bench.stores.report import compare_stores

    _measure_and_report("stores", lambda display: compare_stores(options, display), written)


@app.command(also=EXIT_CODES)
def reference(options: ReferenceOptions, written: Written = Path("hotplate-reference")) -> None:
    """Repeat the load of Microsoft's reference architecture on Cosmos DB, beside the published 60 ms.

    200 users send 180 requests/s; the container has 11,000 RU/s. Without --account, Cosmos DB is emulated.

    Example: hotplate bench reference --account cosmos://myaccount/mydatabase
    """
    from hotplate.bench.stores.reference import reproduce

    _measure_and_report("reference", lambda display: reproduce(options, display), written)


@app.command(also=EXIT_CODES)
def ru(options: SweepOptions, written: Written = Path("hotplate-ru")) -> None:
    """Measure reads/s, p50, p99, 429s and cost at each level of provisioned RU/s.

    Starts an emulator of Cosmos DB and a service without cache, or measures --account: it prints the cost, asks,
    creates a database, and drops it at the end, also after Ctrl-C. Levels beyond this machine's load are
    calculated from the RU/s and the measured charge, and marked with =.

    Example: hotplate bench ru --account cosmos://myaccount/mydatabase --levels 400,4k
    """
    from hotplate.bench.ru.run import sweep
    from hotplate.cli import bench_work

    plan = bench_work.confirmed_sweep(options)
    _measure_and_report("ru", lambda display: sweep(plan, display), written)


@app.command()
def charges(
    store: Annotated[str, Flag("The account, as cosmos://ACCOUNT/DATABASE.", metavar="URL", env=False)],
    sizes: Annotated[
        str, Flag("The sizes of items to measure, in KB, as 1,4,16; by default those of our table.", metavar="KB,…")
    ] = "",
    written: Annotated[Path, Flag("Write the charges to this file.", name="out")] = Path("charges.toml"),
    dry_run: Annotated[bool, Flag("Create nothing; print what would be created, and its cost.")] = False,
    yes: Annotated[bool, Flag("Do not ask for confirmation.", env=False)] = False,
) -> None:
    """Measure an account's charge of each operation, and write a file for `plan` and the emulator.

    Prints the cost, asks, creates a database, and drops it at the end, also after Ctrl-C. Operations that cannot be
    measured keep our coefficient, marked so in the file.

    Example: hotplate bench charges --store cosmos://myaccount/mydatabase --dry-run
    """
    require_file_path(written)
    from hotplate.cli import bench_work

    plan = bench_work.confirmed_charges(store, sizes, dry_run=dry_run, yes=yes)
    if plan is None:  # a dry run
        return

    measured = bench_work.measure_charges(plan)
    show_report(measured.report())
    write_file(written, measured.to_toml())
    out.print(f"The charges are in {written}.")


@app.command()
def compare(
    before: Annotated[Path, Argument("The report to compare with.", "A.json")],
    after: Annotated[Path, Argument("The report that may be worse.", "B.json")],
    metric: Annotated[
        str, Flag("The figure that decides: p50, p99, p99.9, or rate (good answers/s).", metavar="FIGURE")
    ] = "p99",
    written: Annotated[
        Path | None, Flag("Also write it to NAME.json and NAME.html.", name="out", metavar="NAME")
    ] = None,
) -> None:
    """Test whether two measurements of `bench http` differ significantly.

    Rounds are compared in pairs, so measure both with the same load and the same --repeat, 5 or more.

    Exit codes: 0 no significant regression; 2 a file cannot be read, or the two cannot be compared; 3 a regression.

    Example: hotplate bench compare before.json after.json --metric p99
    """
    require_folder(written)
    from hotplate.bench.compare import compare as compare_reports
    from hotplate.bench.compare import read as read_report

    report = compare_reports(read_report(before), read_report(after), metric)
    _print_and_exit(report, written)


def cosmos_emulator(
    host: Annotated[str, _flag("Listen on this address.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, _port("Listen on this port; 0 takes any free one.")] = 8081,
    second_region: Annotated[int | None, _port("Add a read region on this port; 0 takes any free one.")] = None,
    key_file: Annotated[
        Path | None, _flag("A file of the account's key in base64; by default the published key.")
    ] = None,
    consistency: Annotated[
        str,
        _flag(
            "The account's default: Strong, BoundedStaleness, Session, ConsistentPrefix or Eventual.", metavar="LEVEL"
        ),
    ] = "Session",
    tls: Annotated[bool, _flag("Serve HTTPS with a new self-signed certificate.")] = False,
    certificate: Annotated[Path | None, _flag("Write the certificate of --tls to this file.")] = None,
    charges: Annotated[Path | None, _flag("Use the coefficients of this file, as charges.toml.")] = None,
    latency: Annotated[str | None, _flag("The delay of responses, as p50=4ms,p99=10ms.", metavar="LATENCY")] = None,
) -> None:
    """Emulate Azure Cosmos DB for NoSQL in memory, with request units and 429s. It is not the service.

    Example: hotplate cosmos-emulator --port 8081 --key-file account.key
    """
    import uvloop

    from hotplate.bench.cosmos_emulator.server import EmulatorSettings, serve
    from hotplate.stores.cosmos.url import EMULATOR_KEY

    logging.getLogger("hotplate.bench.cosmos_emulator").addHandler(logging.StreamHandler())

    key = EMULATOR_KEY
    key_shown = f"{EMULATOR_KEY} (published, not a secret)"
    if key_file is not None:
        key = key_file.read_text(errors="replace").strip()  # no base64 if anything is replaced
        key_shown = str(key_file)  # the key itself is a secret

    settings = EmulatorSettings(
        host=host,
        port=port,
        second_port=second_region,
        key=key,
        consistency=consistency,
        charges=charges,
        tls=tls,
        certificate=certificate,
        latency=latency,
    )
    uvloop.run(serve(settings, partial(_print_ready, key_shown=key_shown)))


def _print_ready(emulator: "RunningEmulator", *, key_shown: str) -> None:
    """Print where the emulator listens; *key_shown* is its key, or the file that holds it."""
    endpoint = emulator.endpoint
    if out.quiet:
        out.print_line(orjson.dumps({"endpoint": endpoint, "ports": emulator.ports}).decode())
        return
    out.print(f"emulating Cosmos DB for NoSQL on {endpoint} (an emulation, in memory; not Azure)")
    out.print(f"store: cosmos+{endpoint}DATABASE, key: {key_shown}")
    out.print(f"metrics: {endpoint}__emulation/metrics, faults: {endpoint}__emulation/faults")
