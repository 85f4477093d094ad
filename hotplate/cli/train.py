"""`hotplate train`: from interactions to a model folder."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hotplate.cli.flags import local_path_option
from hotplate.cli.terminal import (
    Json,
    Master,
    TextFormat,
    counted,
    err,
    interruptible,
    print_json,
    progress_bars,
    show_report,
)
from hotplate.stores.options import Argument, Flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hotplate.offline.input.files import DataSource
    from hotplate.offline.train.engine import Engine, Params
    from hotplate.offline.train.tuning import TuneOptions
    from hotplate.offline.training import TrainReport, TrainSettings


# Panels of `--help`.
COLUMNS = "Columns of the data"
TEST = "Test"
MODEL = "Engine and parameters"
SEARCH = "Search for parameters"
TRACKING = "MLflow"
# Off a terminal, the time of larger inputs is estimated, by a rate measured on one core.
LARGE_BYTES = 20_000_000
BYTES_PER_SECOND = 30e6


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlags:
    """Flags of `train`, and keys of [train] in a pipeline."""

    data: Annotated[
        tuple[Path, ...],
        Argument(
            "CSV, TSV, JSON lines (.gz and .zst too), Parquet, events, folders of them, or URLs.",
            "DATA",
            urls=True,
        ),
    ]
    user_column: Annotated[str | None, Flag("The column of the user.", COLUMNS)] = None
    item_column: Annotated[str | None, Flag("The column of the item.", COLUMNS)] = None
    weight_column: Annotated[str | None, Flag("The column of the weight.", COLUMNS)] = None
    event_column: Annotated[str | None, Flag("The column of the event, for --event-weights.", COLUMNS)] = None
    count_column: Annotated[str | None, Flag("A pair weighs its number of values in this column.", COLUMNS)] = None
    time_column: Annotated[str | None, Flag("The column of the time; none reads no times.", COLUMNS)] = None
    title_column: Annotated[str | None, Flag("The column of the title.", COLUMNS)] = None
    segment_column: Annotated[str | None, Flag("Each value in this column gets a popular list.", COLUMNS)] = None
    titles: Annotated[Path | None, Flag("A file of item and title, if the data have no titles.", urls=True)] = None
    event_weights: Annotated[str | None, Flag("The weights of events, as view=1,cart=3,buy=5.")] = None
    weighting: Annotated[
        Literal["sum", "binary", "log"],
        Flag("Of a pair: the sum of its rows, 1, or 1 + ln of it.", metavar="sum|binary|log"),
    ] = "sum"
    half_life: Annotated[str | None, Flag("A row loses half of its weight in 30d, 12h or 8w.", metavar="TIME")] = None
    where: Annotated[
        tuple[str, ...], Flag("Only rows like quantity>0 or code~^\\d{5}; repeatable.", metavar="FILTER")
    ] = ()
    text: TextFormat = field(default_factory=TextFormat)
    min_per_user: Annotated[int, Flag("Leave out users with fewer items.", at_least=1)] = 1
    min_per_item: Annotated[int, Flag("Leave out items with fewer users.", at_least=1)] = 1
    split: Annotated[
        Literal["by-time", "by-item", "by-user", "random", "held-out-users", "none"] | None,
        Flag(
            "by-time, by-item, by-user, random, held-out-users or none; else by time if there are times, or by item.",
            TEST,
            metavar="KIND",
        ),
    ] = None
    test_share: Annotated[float, Flag("The share of the data, or of users, to hold back.", TEST)] = 0.25
    k: Annotated[int, Flag("The length of the lists that metrics are of.", TEST, "-k", at_least=1, at_most=1000)] = 10
    engine: Annotated[
        Literal["als", "ease", "neighbours", "popularity", "spark"] | None,
        Flag("als, ease, neighbours, popularity or spark; else the best.", MODEL, metavar="ENGINE"),
    ] = None
    params: Annotated[
        str | None, Flag("Its parameters, as factors=64,alpha=2,recency=7d; no search.", MODEL, metavar="NAME=VALUE,…")
    ] = None
    tune: Annotated[int | None, Flag("Seconds of a core that a search may take; 36.", SEARCH, at_least=1)] = None
    no_tune: Annotated[bool, Flag("Take the default parameters.", SEARCH)] = False
    seed: Annotated[int, Flag("The seed of the split and of the fit.", SEARCH)] = 42
    track: Annotated[bool, Flag("Log parameters, metrics and model as a run of MLflow.", TRACKING)] = False
    register: Annotated[
        str | None, Flag("Track, and register as a version with an alias.", TRACKING, metavar="NAME[@ALIAS]")
    ] = None


def train(
    options: TrainFlags,
    model: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=local_path_option,
            envvar="HOTPLATE_MODEL",
            show_envvar=False,
            help="Write the model to this folder; HOTPLATE_MODEL sets it, too.",
        ),
    ],
    master: Master = None,
    as_json: Json = False,
) -> None:
    """Train a model on interactions: read, split, evaluate, fit, and write a model folder.

    Example: hotplate train clicks.csv.gz --event-weights view=1,buy=5 --min-per-user 5 --out model
    """
    settings = settings_of(options)
    if not options.track and options.register is None:
        with _session(options.engine, master):
            print_training(settings, model, as_json=as_json)
        return
    from hotplate.offline import mlflow_models

    target = None if options.register is None else mlflow_models.Target.of(options.register)
    with _session(options.engine, master):
        print_training(settings, model, as_json=as_json)
    logged = interruptible(lambda: mlflow_models.log_training(model, target))
    mlflow_models.set_alias(logged)
    err.print(f"hotplate: the model is {logged.uri} in MLflow")


def settings_of(given: TrainFlags) -> "TrainSettings":
    """Return the settings; SettingError for invalid or contradicting options."""
    from hotplate.offline.evaluate.splits import SplitOptions
    from hotplate.offline.input.columns import Columns, parse_event_weights, parse_half_life
    from hotplate.offline.training import AutoSplit, TrainSettings

    roles = ("user", "item", "weight", "time", "title", "segment", "event", "count")
    params, tuning = _choice(given)
    split: SplitOptions | AutoSplit | None = None
    if given.split is None:
        split = AutoSplit(given.test_share, given.seed)
    elif given.split != "none":
        split = SplitOptions(given.split, given.test_share, given.seed)
    return TrainSettings(
        path=given.data[0],
        more=given.data[1:],
        columns=Columns(**{role: getattr(given, f"{role}_column") for role in roles}),
        form=given.text.to_format(),
        event_weights=parse_event_weights(given.event_weights) if given.event_weights else None,
        where=given.where,
        half_life=None if given.half_life is None else parse_half_life(given.half_life),
        split=split,
        params=params,
        tuning=tuning,
        **{name: getattr(given, name) for name in ("weighting", "titles", "min_per_user", "min_per_item", "k")},
    )


def print_training(settings: "TrainSettings", model: Path, *, as_json: bool = False) -> "TrainReport":
    """Train, write the folder *model*, and print and return the report."""
    from hotplate.offline.training import train as train_model

    size = _size_of(settings.data)
    if size > LARGE_BYTES and not err.is_terminal:
        seconds = size / BYTES_PER_SECOND
        err.print(
            f"hotplate: reading {size / 1e6:,.0f} MB, which takes about {seconds:,.0f} s; then the rest is estimated"
        )
    with progress_bars() as on_progress:
        report = interruptible(lambda: train_model(settings, model, on_progress, err.print))
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    return report


def _size_of(data: "Iterable[DataSource]") -> int:
    paths = [path for each in data if isinstance(each, str | Path) and (path := Path(each)).exists()]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def _session(engine: "Engine | None", master: str | None) -> "Iterator[None]":
    if engine != "spark":
        if master is not None:
            from hotplate.offline.errors import SettingError

            raise SettingError(f"--master {master} is for --engine spark; give both or none.")
        yield
        return
    from hotplate.offline.train.spark import spark_session

    with spark_session(master):
        yield


def _choice(given: TrainFlags) -> "tuple[Params, TuneOptions | None]":
    from hotplate.offline.errors import SettingError
    from hotplate.offline.train.engine import read_params
    from hotplate.offline.train.tuning import TuneOptions

    params = read_params(given.engine or "als", given.params or "", given.seed)
    reasons = {"--no-tune": given.no_tune, "--params": given.params, "--engine spark": given.engine == "spark"}
    without = [reason for reason, found in reasons.items() if found not in {None, False}]
    if not without:
        return params, TuneOptions(engine=given.engine, budget_s=given.tune)
    if given.tune is not None:
        raise SettingError(f"--tune and {without[0]} contradict each other; leave out one of them.")
    return params, None


def print_report(report: "TrainReport") -> None:
    """Print how good the lists are, the search, the test, and what was read and written."""
    from hotplate.offline.evaluate.model_report import columns, findings, rows
    from hotplate.offline.evaluate.records import read_repeats
    from hotplate.report import Report

    facts = report.to_json()
    record = report.record
    found = findings(record, read_repeats(report.model.tuning))
    shown = Report(
        kind="train",
        sentence=report.verdict or f"The lists were not tested. {report.note}",
        rows=() if record is None else tuple(rows(record)),
        columns=() if record is None else columns(record),
        origins={"model": _model_in_words(report), **dict(found), **dict(_origins(facts))},
        notes=(*([f"look out: {report.warning}"] if report.warning else ()), *facts["data"]["notes"]),
    )
    show_report(shown, as_json=False)


def _model_in_words(report: "TrainReport") -> str:
    from hotplate.offline.train.engine import described

    model = described(report.model.params)
    if report.search is None:
        return f"{model}. {report.tuning_note}"
    tried = f"the best of {len(report.search.trials)} tried in {report.seconds['tune']:.0f} s"
    best = report.search.trials[report.search.best]
    return f"{model}: {tried} (nDCG@{report.search.k} {best.ndcg:.4f} on the inner split)"


def _origins(facts: "Mapping[str, Any]") -> "Iterator[tuple[str, str]]":
    """Yield what was read, kept and written."""
    data = facts["data"]
    left_out = [f"{count:,} left out: {reason}" for reason, count in data["left_out"].items()]
    yield "read", "; ".join([f"{counted(data['rows'], 'row')} of {data['source']}", *left_out])
    yield "columns", ", ".join(f"{role}={name}" for role, name in data["columns"].items() if name)
    few = [
        f"{facts[f'{counts}_left_out']:,} {counts} left out, with fewer than the minimum"
        for counts in ("users", "items", "pairs")
        if facts[f"{counts}_left_out"]
    ]
    kept = ", ".join(f"{facts[counts]:,} {counts}" for counts in ("users", "items", "pairs", "titles"))
    yield "learned", "; ".join([f"from {kept}", *few])
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["seconds"].items())
    yield "written", f"{facts['out']} ({stages})"
