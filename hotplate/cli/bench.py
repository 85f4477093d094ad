"""`hotplate bench`: measure a service, and compare two measurements."""

from pathlib import Path
from typing import Annotated

import typer

from hotplate.cli import reference, ru
from hotplate.cli.findings import show, show_comparison, show_verdict
from hotplate.cli.measuring import HOW, WHAT, WHEN, misuse_told, must_be_writable, option, tell
from hotplate.cli.terminal import FAILED, Json, err, print_json

app = typer.Typer(
    no_args_is_help=True,
    help="Measure a service so that the figures survive a review.\n\n"
    "Example: hotplate bench http http://127.0.0.1:8080 --users 1000 --find-max --slo p99=5ms",
)
app.command(cls=ru.SweepCommand)(ru.ru)
app.command()(reference.reference)
LISTS = "/v1/recommendations/{key}"

Url = Annotated[str, typer.Argument(metavar="URL", help="The service, as http://HOST:PORT.")]


@app.command()
def http(
    url: Url,
    rate: Annotated[
        str | None, option("rate", "Requests/s, as 500 or 2k; 1,000 where nothing else is told.", WHEN)
    ] = None,
    ramp: Annotated[str | None, option("ramp", "From one rate to another, as 100:5k.", WHEN)] = None,
    steps: Annotated[str | None, option("steps", "Rates of equal length, as 1k,2k,4k.", WHEN)] = None,
    poisson: Annotated[
        bool, option("poisson", "As independent users arrive, not evenly spaced.", WHEN, "--poisson")
    ] = False,
    closed: Annotated[
        bool,
        option(
            "closed", "Send on each answer; for comparison with tools that do, flatters latencies.", WHEN, "--closed"
        ),
    ] = False,
    think: Annotated[str, option("think", "With --closed: a pause before the next request, as 1.5s.", WHEN)] = "0s",
    duration: Annotated[str, option("duration", "Of one round.", WHEN)] = "10s",
    users: Annotated[int | None, option("users", "Ask for users 0 … N-1.", WHAT)] = None,
    keys_file: Annotated[Path | None, option("keys-file", "Ask for the users of this file, one a line.", WHAT)] = None,
    store: Annotated[
        str | None,
        option(
            "store", "The store behind the service: its users are asked for, and a sample of answers is compared.", WHAT
        ),
    ] = None,
    zipf: Annotated[
        float | None, option("zipf", "Some users more than others, by this exponent, as 0.99.", WHAT)
    ] = None,
    hot: Annotated[
        str | None, option("hot", "A share of the requests to a share of the users, as 80%:20%.", WHAT)
    ] = None,
    unknown: Annotated[str, option("unknown", "The share of users that nobody knows, as 5%.", WHAT)] = "0%",
    path: Annotated[str, option("path", "What to GET; {key} stands for a user.", WHAT)] = LISTS,
    header: Annotated[
        list[str] | None, option("header", "NAME:VALUE to send; may be given several times.", WHAT)
    ] = None,
    batch: Annotated[
        str | None, option("batch", "POST for so many users at once, 20 requests at a time, as 1,50,200,1000.", WHAT)
    ] = None,
    find_max: Annotated[
        bool, option("find-max", "Look for the highest rate inside --slo, from --rate on.", HOW, "--find-max")
    ] = False,
    slo: Annotated[str, option("slo", "The objective of --find-max.", HOW)] = "p99=5ms,errors=0.1%",
    repeat: Annotated[int, option("repeat", "Rounds; 3 or more give intervals that can be compared.", HOW)] = 1,
    warmup: Annotated[str, option("warmup", "Before the first round, thrown away.", HOW)] = "2s",
    connections: Annotated[int, option("connections", "The most requests in flight.", HOW)] = 64,
    timeout: Annotated[str, option("timeout", "After when it was due, a request is given up.", HOW)] = "5s",
    backlog: Annotated[
        int, option("backlog", "Due requests that wait for a connection; more are dropped.", HOW)
    ] = 10_000,
    processes: Annotated[int, option("processes", "Of the generator; one sends some 40,000 requests/s.", HOW)] = 1,
    spin: Annotated[
        bool, option("spin", "Keep the pace to microseconds; takes a core for each process.", HOW, "--spin")
    ] = False,
    seed: Annotated[int, option("seed", "Of what is drawn at random.", HOW)] = 1,
    report: Annotated[Path, option("out", "The report: this name with .json, .html and .hdr.", HOW)] = Path(
        "hotplate-bench"
    ),
    as_json: Json = False,
) -> None:
    """Measure a service under a load that does not wait for it, and write a report.

    Exits 1 where the run is invalid, was stopped, or gave wrong answers.

    Example: hotplate bench http http://127.0.0.1:8080 --rate 2k --duration 30s --repeat 5 --store file:///var/lib/hotplate
    """
    with misuse_told(as_json=as_json):
        from bench.asking import Asked, question
        from bench.http import measure
        from bench.live import viewing
        from bench.report.files import keep

        must_be_writable(report)
        asked = question(
            Asked(
                url=url,
                rate=rate,
                ramp=ramp,
                steps=steps,
                poisson=poisson,
                closed=closed,
                think=think,
                duration=duration,
                users=users,
                keys_file=keys_file,
                store=store,
                zipf=zipf,
                hot=hot,
                unknown=unknown,
                path=path,
                headers=tuple(header or ()),
                batch=batch,
                find_max=find_max,
                slo=slo,
                repeat=repeat,
                warmup=warmup,
                connections=connections,
                timeout=timeout,
                backlog=backlog,
                processes=processes,
                spin=spin,
                seed=seed,
            )
        )
        with viewing(err) as view:
            measured = measure(asked, view)
    keep(measured.report, measured.runs, report)
    tell(measured.report, report, lambda: show(measured), believable=measured.believable, as_json=as_json, log=True)


@app.command()
def stores(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...",
            help="Two stores or more; without any, a folder and a redis-server are started for the time being.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[str, option("rate", "Requests/s through each service; one that all can bear.", WHEN)] = "2k",
    duration: Annotated[str, option("duration", "Of the reads of one store in one round.", WHEN)] = "5s",
    users: Annotated[
        int, option("users", "Ask for so many users, the first of the release; lists are made up for as many.", WHAT)
    ] = 100_000,
    zipf: Annotated[
        float | None, option("zipf", "Some users more than others, by this exponent, as 0.99.", WHAT)
    ] = None,
    encoding: Annotated[str, option("encoding", "Of lists that are made up: json or zstd.", WHAT)] = "zstd",
    publish: Annotated[
        bool,
        option(
            "publish",
            "Write to the stores that are given, too: trial releases, each dropped before its commit. Without URLs "
            "this is always done.",
            HOW,
            "--publish",
        ),
    ] = False,
    repeat: Annotated[
        int, option("repeat", "Valid rounds; 3 or more give intervals. For invalid ones up to 7 more are made.", HOW)
    ] = 10,
    warmup: Annotated[str, option("warmup", "Of each store, thrown away.", HOW)] = "2s",
    cpu_hour: Annotated[
        float | None, option("cpu-hour", "What an hour of CPU costs you, to price a million reads.", HOW)
    ] = None,
    report: Annotated[Path, option("out", "The report: this name with .json and .html.", HOW)] = Path(
        "hotplate-stores"
    ),
    as_json: Json = False,
) -> None:
    """Compare stores: the same release, users and schedule, each alone, behind the service, and while it is written to.

    The stores take turns, round by round. A store that holds nothing is filled with the release of the others, and
    keeps it; stores with different releases are not compared. Exits 1 where too few rounds are valid, an answer was
    wrong, or it was stopped.

    Example: hotplate bench stores

    Example: hotplate bench stores file:///var/lib/hotplate redis://cache:6379/0 --rate 5k --cpu-hour 0.04
    """
    with misuse_told(as_json=as_json):
        from bench.comparison import Asked, compare_stores
        from bench.live import viewing
        from bench.report.files import keep

        must_be_writable(report)
        asked = Asked(
            urls=tuple(urls or ()),
            rate=rate,
            duration=duration,
            repeat=repeat,
            warmup=warmup,
            users=users,
            zipf=zipf,
            encoding=encoding,
            publish=publish,
            cpu_hour=cpu_hour,
        )
        with viewing(err) as view:
            compared = compare_stores(asked, view)
    keep(compared.report, None, report)
    found = compared.report
    tell(found, report, lambda: show_comparison(found), believable=compared.believable, as_json=as_json)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The report to compare with.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The report that may be worse.")],
    metric: Annotated[
        str,
        typer.Option(
            envvar="HOTPLATE_BENCH_METRIC",
            help="What decides: p50, p90, p99, p99.9, p99.99, max, or rate (good answers/s).",
        ),
    ] = "p99",
    as_json: Json = False,
) -> None:
    """Say whether the difference between two measurements is real; exit 1 where it is a regression.

    Rounds are compared in pairs, so measure both with the same --repeat, 3 or more.

    Example: hotplate bench compare before.json after.json --metric p99
    """
    with misuse_told(as_json=as_json):
        from bench.report.compare import compare as weigh
        from bench.report.compare import sole_series
        from bench.report.report import read

        first, second = (sole_series(str(path), read(path)) for path in (before, after))
        verdict = weigh(first, second, metric)
    if as_json:
        print_json(verdict.to_json())
    else:
        show_verdict(verdict)
    raise typer.Exit(FAILED if verdict.regression else 0)
